//! A status table: its three blocks, then the slots in the order of seqs, each with its state and payload.

use serde_json::{Value, json};

use super::{Image, Printer, record_json, record_text};
use crate::cli::failure::Failure;
use crate::cluster::status::rfc3339;
use crate::core::ids::Seq;
use crate::format::record::OrderRecord;
use crate::format::spool::{ENTRY_HEADER_BYTES, EntryHeader, entry_bytes};
use crate::format::table::{
    FENCES_AT, Fence, HEADER_AT, HEARTBEAT_AT, Heartbeat, NO_PAYLOAD, RECORDS_AT, STATE_BYTES, SlotState, State,
    TableHeader, TableLayout,
};
use crate::format::{FormatError, is_zero};
use crate::limits::{BLOCK_BYTES, RECORD_BYTES};

/// Slots read at a time.
const SLOTS_AT_ONCE: u64 = 4096;

/// Prints a region.
pub fn print(file: &Image, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let header = block(file, HEADER_AT, printer, TableHeader::decode, |h| {
        let text = format!("group {:016x}, {} slots, {} bytes of payload ring", h.group.0, h.slots, h.payload_bytes);
        let fields = json!({ "group_id": format!("{:016x}", h.group.0), "slots": h.slots, "records_at": h.records_at,
            "states_at": h.states_at, "payload_at": h.payload_at, "payload_bytes": h.payload_bytes });
        ("header", text, fields)
    })?;
    let [even, odd] = FENCES_AT;
    let blank = |at: u64| Ok::<_, Failure>(is_zero(&file.read(at, BLOCK_BYTES as u64)?));
    // Most tables have one of the two.
    let shown: &[u64] = match (blank(even)?, blank(odd)?) {
        (_, true) => &[even],
        (true, false) => &[odd],
        (false, false) => &FENCES_AT,
    };
    for &at in shown {
        block(file, at, printer, Fence::decode, |f| {
            let owner = format!("{:016x}", f.owner.0);
            ("fence", format!("epoch {}, owner {owner}", f.epoch), json!({ "epoch": f.epoch, "owner": owner }))
        })?;
    }
    let heartbeat = block(file, HEARTBEAT_AT, printer, Heartbeat::decode, |h| {
        let (owner, time) = (format!("{:016x}", h.owner.0), rfc3339(h.wall_ns));
        let text = format!(
            "floor {}, tail {}, epoch {}, owner {owner}, beat {} at {time}",
            h.floor, h.tail, h.epoch, h.counter
        );
        let fields = json!({ "floor": h.floor, "tail": h.tail, "epoch": h.epoch, "owner": owner,
            "counter": h.counter, "time": time });
        ("heartbeat", text, fields)
    })?;
    let Some(header) = header else {
        let text = "without a header nothing can be told of the slots; if nothing else lives in this region, fill its \
                    first 16 KiB with zeroes while no primary uses it, and the primary formats it anew";
        return if printer.damages == 0 { Ok(()) } else { printer.remark(HEADER_AT, text) };
    };
    let layout = header.layout();
    if file.bytes < layout.total_bytes() {
        let text = format!("the file has {} bytes, the header speaks of {}", file.bytes, layout.total_bytes());
        printer.damage(file.bytes, &text)?;
    }
    let floor = heartbeat.map_or(Seq(0), |heartbeat| heartbeat.floor);
    let mut table = Table { file, layout, group: header.group.0, floor, ring_end: 0 };
    table.ring_end = table.find_ring_end()?;
    let first = layout.slot(floor.next());
    table.slots(first, layout.slots, printer)?;
    table.slots(0, first, printer)
}

/// Prints one of the blocks at the head of a region, and returns it when it is sound.
fn block<T>(
    file: &Image,
    at: u64,
    printer: &mut Printer<'_>,
    decode: impl Fn(&[u8]) -> Result<T, FormatError>,
    show: impl Fn(&T) -> (&'static str, String, Value),
) -> Result<Option<T>, Failure> {
    let bytes = file.read(at, BLOCK_BYTES as u64)?;
    if bytes.len() < BLOCK_BYTES {
        let text = format!("the file ends at {}, a status table has {RECORDS_AT} bytes before its slots", file.bytes);
        return printer.damage(file.bytes, &text).map(|()| None);
    }
    match decode(&bytes) {
        Ok(found) => {
            let (kind, text, fields) = show(&found);
            printer.item(at, kind, &text, fields)?;
            Ok(Some(found))
        }
        Err(_) if is_zero(&bytes) => printer.remark(at, "never written").map(|()| None),
        Err(error) => printer.damage(at, &error.to_string()).map(|()| None),
    }
}

struct Table<'a> {
    file: &'a Image,
    layout: TableLayout,
    group: u64,
    /// Everything up to here is copied, whatever its slot says.
    floor: Seq,
    /// Where the newest payload ends: what began a whole ring before that has been written over, which the primary
    /// does with payloads that are copied, also where their slots do not say so yet.
    ring_end: u64,
}

impl Table<'_> {
    fn find_ring_end(&self) -> Result<u64, Failure> {
        let (mut first, mut end) = (0, 0);
        while self.layout.payload_bytes > 0 && first < self.layout.slots {
            let count = SLOTS_AT_ONCE.min(self.layout.slots - first);
            let records = self.file.read(self.layout.record_offset(Seq(first)), count * RECORD_BYTES as u64)?;
            let states = self.file.read(self.layout.state_offset(Seq(first)), count * STATE_BYTES as u64)?;
            for (record, state) in records.chunks(RECORD_BYTES).zip(states.chunks(STATE_BYTES)) {
                if let (Ok(record), Ok(state)) = (OrderRecord::decode(record), SlotState::decode(state))
                    && (state.seq, state.payload_pos != NO_PAYLOAD) == (record.seq, true)
                {
                    end = end.max(state.payload_pos.saturating_add(entry_bytes(record.payload_bytes())));
                }
            }
            first += count;
        }
        Ok(end)
    }

    /// Slots `first..end`, a few at a time.
    fn slots(&self, first: u64, end: u64, printer: &mut Printer<'_>) -> Result<(), Failure> {
        let mut first = first;
        while first < end {
            let count = SLOTS_AT_ONCE.min(end - first);
            let records_at = self.layout.record_offset(Seq(first));
            let records = self.file.read(records_at, count * RECORD_BYTES as u64)?;
            let states = self.file.read(self.layout.state_offset(Seq(first)), count * STATE_BYTES as u64)?;
            for (index, (record, state)) in records.chunks(RECORD_BYTES).zip(states.chunks(STATE_BYTES)).enumerate() {
                if !is_zero(record) || !is_zero(state) {
                    self.slot(records_at + (index * RECORD_BYTES) as u64, record, state, printer)?;
                }
            }
            first += count;
        }
        Ok(())
    }

    fn slot(&self, at: u64, record: &[u8], state: &[u8], printer: &mut Printer<'_>) -> Result<(), Failure> {
        let record = match OrderRecord::decode(record) {
            Ok(record) => record,
            Err(error) => return printer.damage(at, &error.to_string()),
        };
        let state_at = self.layout.state_offset(record.seq);
        if self.layout.record_offset(record.seq) != at {
            return printer.damage(at, &format!("seq {} does not belong into this slot", record.seq));
        }
        let known = match SlotState::decode(state) {
            Ok(found) if found.seq == record.seq => Some(found),
            // The record is written before its state: a slot taken again may still show its former state.
            Ok(_) => None,
            Err(_) if is_zero(state) => None,
            Err(error) => {
                printer.damage(state_at, &format!("seq {}: {error}", record.seq))?;
                None
            }
        };
        let copied = record.seq <= self.floor;
        let word = if copied { State::Copied.word() } else { known.map_or("unknown", |state| state.state.word()) };
        let pos = known.map(|state| state.payload_pos).filter(|pos| *pos != NO_PAYLOAD);
        let mut fields = record_json(&record);
        if let Some(fields) = fields.as_object_mut() {
            fields.extend([("state".into(), json!(word)), ("payload_pos".into(), json!(pos))]);
        }
        let ring = pos.map(|pos| format!(", payload at position {pos}")).unwrap_or_default();
        printer.item(at, "slot", &format!("{word} {}{ring}", record_text(&record)), fields)?;
        match (known, pos) {
            // The payload of a copied write may have been overwritten: nobody needs it.
            (Some(SlotState { state: State::Queued | State::Sent, .. }), Some(pos))
                if !copied && pos + self.layout.payload_bytes >= self.ring_end =>
            {
                self.payload(&record, pos, printer)
            }
            _ => Ok(()),
        }
    }

    /// Verifies the payload of a write that DR may need from here.
    fn payload(&self, record: &OrderRecord, pos: u64, printer: &mut Printer<'_>) -> Result<(), Failure> {
        if self.layout.payload_bytes == 0 {
            return printer
                .damage(self.layout.state_offset(record.seq), "a payload position, but there is no payload ring");
        }
        let at = self.layout.payload_offset(pos);
        let verdict = EntryHeader::decode(&self.file.read(at, ENTRY_HEADER_BYTES as u64)?, self.group);
        match verdict {
            Ok(header) if header.pos == pos && header.record == *record => {
                let data = self.file.read(at + ENTRY_HEADER_BYTES as u64, header.data_bytes())?;
                match header.verify_data(&data) {
                    Ok(()) => Ok(()),
                    Err(error) => printer.damage(at, &format!("payload of seq {}: {error}", record.seq)),
                }
            }
            Ok(header) => printer.damage(
                at,
                &format!("payload of seq {} stands where that of seq {} should", header.record.seq, record.seq),
            ),
            Err(error) => printer.damage(at, &format!("payload of seq {}: {error}", record.seq)),
        }
    }
}
