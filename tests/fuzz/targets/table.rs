//! A status table as anything may have left it, read as a promotion reads it: head, records, states, payloads of the ring.

use std::collections::BTreeMap;

use bytes::Bytes;
use farshore::core::ids::{Chain, Epoch, GroupId, Owner, Seq, Ticket};
use farshore::core::op::Op;
use farshore::dr::table::TableReader;
use farshore::format::record::OrderRecord;
use farshore::format::spool::{EntryHeader, Kind, decode_entry, encode_entry, entry_bytes, place};
use farshore::format::table::{
    FENCES_AT, Fence, HEADER_AT, HEARTBEAT_AT, Heartbeat, NO_PAYLOAD, RECORDS_AT, SlotState, State, TableHeader,
    TableLayout,
};
use farshore::limits::{BLOCK_BYTES, RECORD_BYTES};

use super::{Input, Memory, Reached, Wanted};

pub const WANTED: Wanted = &[
    ("header", 45),
    ("fence", 4),
    ("two fences", 2),
    ("heartbeat", 3),
    ("record", 1700),
    ("state", 800),
    ("payload", 300),
    ("payload refused", 250),
    ("damage", 80),
];

const GROUP: GroupId = GroupId(5);
const EPOCH: Epoch = Epoch(2);
const RING_BYTES: u64 = 16 << 10;

/// Of the first byte: the table has a ring of payloads, and a head.
const RING: u8 = 8;
const HEAD: u8 = 16;

/// A region, and where its writer stands.
struct Region {
    layout: TableLayout,
    bytes: Memory,
    last: (Seq, Chain),
    /// Of the ring: where the next entry goes, and where the last one stands.
    pos: u64,
    entry: u64,
}

/// What is found stands in its own place, whole; nothing outside the region is asked for.
pub fn table(input: &[u8], reached: &mut Reached) {
    let mut input = Input::new(input);
    let shape = input.u8();
    let above = Seq(u64::from(shape & 7));
    let layout = TableLayout::new(1024, if shape & RING == 0 { 0 } else { RING_BYTES });
    let bytes = Memory(vec![0; layout.total_bytes() as usize]);
    let mut region = Region { layout, bytes, last: (Seq(0), Chain(0)), pos: 0, entry: 0 };
    if shape & HEAD != 0 {
        region.bytes.put(HEADER_AT as usize, &TableHeader::new(GROUP, &layout).encode());
    }
    while !input.is_empty() {
        let action = input.u8();
        region.change(action, &mut input);
    }
    let layout = match shape & HEAD {
        0 => Some(layout),
        _ => head(&region.bytes.0[..RECORDS_AT as usize], reached),
    };
    // What a header speaks of may lie behind the end of the region: there is nothing to read there.
    let Some(layout) = layout.filter(|layout| layout.total_bytes() <= region.bytes.0.len() as u64) else { return };
    read(&region.bytes.0, layout, above, reached);
}

impl Region {
    /// What a writer does, or somebody else.
    fn change(&mut self, action: u8, input: &mut Input<'_>) {
        let more = action & 8 != 0;
        let (records_at, states_at) = (self.layout.records_at as usize, self.layout.states_at as usize);
        match action % 8 {
            0..=3 => {
                let record = input.record(self.last);
                self.record(record, action & 0x18 == 0x18);
            }
            4 => {
                let state = [State::Queued, State::Sent, State::Copied][usize::from(input.u8() % 3)];
                let payload_pos = match action >> 3 & 7 {
                    0..=2 => NO_PAYLOAD,
                    3 => input.number(),
                    4 => input.number() << 9,
                    _ => self.entry,
                };
                self.state(SlotState { seq: self.last.0, state, payload_pos });
            }
            5 => {
                let from = [records_at, 0, self.layout.payload_at as usize, self.layout.payload_at as usize];
                self.bytes.flip((from[usize::from(action >> 3 & 3)] + usize::from(input.u16())) * 8 + 1);
            }
            6 if more => self.pos += 512 * u64::from(input.u8()),
            6 => {
                // A record that stands in another's slot.
                let from = self.layout.record_offset(self.last.0) as usize;
                let bytes = self.bytes.0[from..from + RECORD_BYTES].to_vec();
                self.bytes.put(records_at + usize::from(input.u8()) * RECORD_BYTES, &bytes);
            }
            _ if more => self.head_block(action, input),
            _ => {
                let at = states_at + usize::from(input.u16()) % 32768;
                let bytes = input.bytes(4);
                self.bytes.put(at, bytes);
            }
        }
    }

    /// A record; with `in_ring` its payload as well, and where it stands.
    fn record(&mut self, mut record: OrderRecord, in_ring: bool) {
        let in_ring = in_ring && record.op == Op::Write && self.layout.payload_bytes > 0;
        if in_ring {
            let data = vec![record.seq.0 as u8; record.length as usize];
            record.payload_crc = crc32fast::hash(&data);
            record = record.chained(self.last.1);
            self.entry = place(self.pos, self.layout.payload_bytes, entry_bytes(record.length));
            let header = EntryHeader { pos: self.entry, kind: Kind::Payload, index: 0, record, skipped: 0 };
            let mut parts = Vec::new();
            encode_entry(&header, GROUP.0, data.into(), &mut parts);
            self.bytes.put(self.layout.payload_offset(self.entry) as usize, &parts.concat());
            self.pos = self.entry + header.entry_bytes();
            self.state(SlotState { seq: record.seq, state: State::Queued, payload_pos: self.entry });
        }
        self.bytes.put(self.layout.record_offset(record.seq) as usize, &record.encode());
        self.last = (record.seq, record.chain);
    }

    fn state(&mut self, state: SlotState) {
        self.bytes.put(self.layout.state_offset(state.seq) as usize, &state.encode());
    }

    /// One of the blocks at the head, or a few bytes of them.
    fn head_block(&mut self, action: u8, input: &mut Input<'_>) {
        match action >> 4 & 3 {
            0 => {
                let fence = Fence { epoch: Epoch(input.u8().into()), owner: Owner(input.number()) };
                self.bytes.put(Fence::place(fence.epoch) as usize, &fence.encode());
            }
            1 => {
                let (floor, tail) = (Seq(input.number()), Seq(input.number()));
                let beat = Heartbeat { epoch: EPOCH, owner: Owner(3), counter: 1, wall_ns: 2, floor, tail };
                self.bytes.put(HEARTBEAT_AT as usize, &beat.encode());
            }
            2 => {
                let group = GroupId(u64::from(input.u8()));
                let mut header = TableHeader::new(group, &self.layout);
                header.slots = header.slots.wrapping_add(input.number());
                header.payload_at = header.payload_at.wrapping_add(input.number());
                header.payload_bytes ^= input.number() << 9;
                self.bytes.put(HEADER_AT as usize, &header.encode());
            }
            _ => {
                let at = usize::from(input.u16() % RECORDS_AT as u16);
                let bytes = input.bytes(4);
                self.bytes.put(at, bytes);
            }
        }
    }
}

/// What the head says of the layout, if it is that of this group; every block of it that is accepted is one as it is written.
fn head(head: &[u8], reached: &mut Reached) -> Option<TableLayout> {
    let block = |at: u64| &head[at as usize..at as usize + BLOCK_BYTES];
    let fences = FENCES_AT.map(|at| Fence::decode(block(at)).ok().inspect(|it| assert!(it.encode() == block(at))));
    let newest = fences.iter().flatten().map(|fence| fence.epoch).max();
    let in_force = Fence::in_force(head).ok();
    assert_eq!(in_force.map(|fence| fence.epoch), newest, "the fence of the highest epoch is in force");
    assert!(in_force.is_none() || fences.contains(&in_force), "nothing is made up");
    reached.when("fence", in_force.is_some());
    reached.when("two fences", fences.iter().all(Option::is_some));
    if let Ok(beat) = Heartbeat::decode(block(HEARTBEAT_AT)) {
        assert!(beat.floor <= beat.tail && beat.encode() == block(HEARTBEAT_AT));
        reached.one("heartbeat");
    }
    let header = TableHeader::decode(block(HEADER_AT)).ok()?;
    let layout = header.layout();
    assert!(header.encode() == block(HEADER_AT) && layout.records_at == RECORDS_AT);
    assert!(layout.records_at + layout.slots * RECORD_BYTES as u64 <= layout.states_at);
    assert!(layout.states_at + layout.slots * 32 <= layout.payload_at && layout.payload_bytes % 4096 == 0);
    reached.one("header");
    (header.group == GROUP).then_some(layout)
}

fn drive(reader: &mut TableReader, region: &[u8]) {
    let mut ticket = 0;
    while !reader.done() {
        ticket += 1;
        let Some((offset, length)) = reader.next_read(Ticket(ticket)) else { panic!("nothing is read, nothing done") };
        let end = (offset + length) as usize;
        assert!(end <= region.len(), "a read outside the region");
        assert!(reader.read(Ticket(ticket), &Bytes::copy_from_slice(&region[offset as usize..end]), |_| false));
    }
}

/// Records and states, then the payloads that these name.
fn read(region: &[u8], layout: TableLayout, above: Seq, reached: &mut Reached) {
    let mut reader = TableReader::new(layout, GROUP, above, EPOCH);
    drive(&mut reader, region);
    let records: BTreeMap<Seq, OrderRecord> = reader.records.clone();
    reader.want_states(records.keys().copied());
    drive(&mut reader, region);
    for (seq, record) in &records {
        let at = layout.record_offset(*seq) as usize;
        assert_eq!(&region[at..at + RECORD_BYTES], record.encode(), "seq {seq} does not stand in its slot");
        assert!(record.seq == *seq && *seq > above && record.epoch <= EPOCH);
    }
    for (seq, state) in &reader.states {
        let at = layout.state_offset(*seq) as usize;
        assert_eq!(&region[at..at + 32], state.encode(), "the state of seq {seq} does not stand in its slot");
    }
    reached.many("record", records.len());
    reached.many("state", reader.states.len());
    reached.when("damage", reader.damaged_slots() > 0);
    for record in records.values().filter(|record| record.op.has_payload()) {
        let Some((pos, offset)) = reader.ring_place(record) else { continue };
        let end = (offset + entry_bytes(record.payload_bytes())) as usize;
        assert!(offset >= layout.payload_at && end <= region.len(), "a payload outside the ring");
        let entry = Bytes::copy_from_slice(&region[offset as usize..end]);
        match decode_entry(&entry, GROUP.0) {
            Ok((header, data)) if header.record == *record && header.pos == pos => {
                assert_eq!(crc32fast::hash(&data), record.payload_crc, "damaged data was let through");
                assert_eq!(data.len() as u64, record.payload_bytes());
                reached.one("payload");
            }
            _ => reached.one("payload refused"),
        }
    }
}
