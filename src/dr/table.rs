//! Reads the status table at a promotion: which reads to make, and what they say.
//!
//! Owns the reads in flight and what was found. The table is read whole, in pieces: the writer may have
//! left its records in any order, and jumped (I4). Nothing that is not exactly what a writer writes is
//! taken; damaged slots are counted and named (I8).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;

use crate::core::ids::{Epoch, GroupId, Seq, SeqRange, Ticket};
use crate::format::is_zero;
use crate::format::record::OrderRecord;
use crate::format::spool::entry_bytes;
use crate::format::table::{STATE_BYTES, SlotState, TableLayout};
use crate::limits::{ENTRY_ALIGN_BYTES, RECORD_BYTES, TABLE_READ_BYTES, TABLE_READS_INFLIGHT_MAX, seq_reserve};

/// Seqs between two records that are looked at one by one.
const BETWEEN_MAX: u64 = 1 << 22;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Area {
    Records,
    States,
}

/// A status table being read.
#[derive(Clone, Debug)]
pub struct TableReader {
    pub layout: TableLayout,
    /// Nonce of the payload ring.
    pub group: GroupId,
    /// Records of this seq and below are of no interest.
    above: Seq,
    /// No record of a later epoch is believed.
    epoch: Epoch,
    todo: VecDeque<(Area, u64, u64)>,
    reading: HashMap<Ticket, (Area, u64)>,
    /// The table held everything up to here, its writer's last heartbeat says.
    pub told: Seq,
    pub records: BTreeMap<Seq, OrderRecord>,
    /// The seq whose record stands in a slot; the highest of all where that cannot be told.
    slots: HashMap<u64, Seq>,
    pub states: BTreeMap<Seq, SlotState>,
    /// Slots of records that hold neither a record nor nothing.
    spoiled: BTreeSet<u64>,
    /// States that are neither one nor nothing.
    damaged_states: u64,
}

impl TableReader {
    /// Starts to read the records above `above`, of no later epoch than `epoch`.
    #[must_use]
    pub fn new(layout: TableLayout, group: GroupId, above: Seq, epoch: Epoch) -> TableReader {
        let end = layout.records_at + layout.slots * RECORD_BYTES as u64;
        TableReader {
            layout,
            group,
            above,
            epoch,
            todo: pieces(Area::Records, layout.records_at, end).collect(),
            reading: HashMap::new(),
            told: Seq(0),
            records: BTreeMap::new(),
            slots: HashMap::new(),
            states: BTreeMap::new(),
            spoiled: BTreeSet::new(),
            damaged_states: 0,
        }
    }

    /// Asks for the states of these seqs.
    pub fn want_states(&mut self, seqs: impl Iterator<Item = Seq>) {
        let end = self.layout.states_at + self.layout.slots * STATE_BYTES as u64;
        let wanted: BTreeSet<u64> =
            seqs.map(|seq| (self.layout.state_offset(seq) - self.layout.states_at) / TABLE_READ_BYTES).collect();
        for piece in wanted {
            let from = self.layout.states_at + piece * TABLE_READ_BYTES;
            self.todo.push_back((Area::States, from, end.min(from + TABLE_READ_BYTES) - from));
        }
    }

    /// The next read to make, as (offset, length); `ticket` will name it.
    pub fn next_read(&mut self, ticket: Ticket) -> Option<(u64, u64)> {
        if self.reading.len() >= TABLE_READS_INFLIGHT_MAX {
            return None;
        }
        let (area, offset, length) = self.todo.pop_front()?;
        self.reading.insert(ticket, (area, offset));
        Some((offset, length))
    }

    /// Everything asked for has been read.
    #[must_use]
    pub fn done(&self) -> bool {
        self.todo.is_empty() && self.reading.is_empty()
    }

    /// A read ended. Whether it was one of this reader's. Records that are `known` here are not kept a second time.
    pub fn read(&mut self, ticket: Ticket, bytes: &Bytes, known: impl Fn(&OrderRecord) -> bool) -> bool {
        let Some((area, offset)) = self.reading.remove(&ticket) else { return false };
        match area {
            Area::Records => self.take_records((offset - self.layout.records_at) / RECORD_BYTES as u64, bytes, known),
            Area::States => self.take_states((offset - self.layout.states_at) / STATE_BYTES as u64, bytes),
        }
        true
    }

    fn take_records(&mut self, first: u64, bytes: &Bytes, known: impl Fn(&OrderRecord) -> bool) {
        for (slot, bytes) in (first..).zip(bytes.chunks_exact(RECORD_BYTES)) {
            if is_zero(bytes) {
                continue;
            }
            match OrderRecord::decode(bytes) {
                Ok(record) if self.layout.slot(record.seq) == slot && record.epoch <= self.epoch => {
                    let known = known(&record);
                    self.take(record);
                    if known {
                        self.records.remove(&record.seq);
                    }
                }
                _ => {
                    self.slots.insert(slot, Seq(u64::MAX));
                    self.spoiled.insert(slot);
                }
            }
        }
    }

    /// A record that stands in its own slot.
    pub(super) fn take(&mut self, record: OrderRecord) {
        self.slots.insert(self.layout.slot(record.seq), record.seq);
        if record.seq > self.above {
            self.records.insert(record.seq, record);
        }
    }

    fn take_states(&mut self, first: u64, bytes: &Bytes) {
        for (slot, bytes) in (first..).zip(bytes.chunks_exact(STATE_BYTES)) {
            if is_zero(bytes) {
                continue;
            }
            match SlotState::decode(bytes) {
                Ok(state) if self.layout.slot(state.seq) == slot => {
                    self.states.insert(state.seq, state);
                }
                _ => self.damaged_states += 1,
            }
        }
    }

    /// Slots and states that could not be read.
    #[must_use]
    pub fn damaged_slots(&self) -> u64 {
        self.spoiled.len() as u64 + self.damaged_states
    }

    /// What a report that ends at `tail` cannot vouch for because of damaged slots (I8). A slot is that of the last seq
    /// up to the tail that belongs there, which may be in the image or known from elsewhere: then nothing is lost.
    /// Damaged slots that follow the tail's may hold later orders.
    #[must_use]
    pub fn doubt(&self, cut: Seq, tail: Seq, known: impl Fn(Seq) -> bool) -> Option<String> {
        let slots = self.layout.slots;
        let last_in = |slot: u64| tail.0.checked_sub((tail.0 + slots - slot) % slots).map(Seq);
        let lost =
            self.spoiled.iter().filter_map(|&slot| last_in(slot)).filter(|&seq| seq > cut && !known(seq)).count();
        let behind =
            (1..slots).take_while(|after| self.spoiled.contains(&self.layout.slot(Seq(tail.0 + after)))).count();
        let mut why = Vec::new();
        if lost > 0 {
            why.push(format!("what was written under {lost} seqs up to {tail} is not known"));
        }
        if behind > 0 {
            why.push(format!("writes after seq {tail} may have been acknowledged and are not known"));
        }
        let damaged = self.spoiled.len();
        (!why.is_empty()).then(|| format!("{damaged} slots of the status table are damaged: {}", why.join("; ")))
    }

    /// Seqs after `seq` and before `start` that the table may have held and that are not in it any more: their slots were
    /// taken by records from `start` on, which is where the writer went on after it had lost its power.
    ///
    /// Seqs have no gaps from one such start to the next, so the first slot that was not taken and does not hold its own
    /// says that there were no more. Each start lies a reservation of seqs or more behind the one before: where there is
    /// room for others between the two, of which nothing is left, whatever was taken is counted, for they may have written it.
    #[must_use]
    pub fn overwritten(&self, seq: Seq, start: Seq) -> Vec<SeqRange> {
        let between = start.0 - seq.0 - 1;
        if between > BETWEEN_MAX {
            return vec![SeqRange { first: seq.next(), last: start.prev() }];
        }
        let taken = |seq: Seq| self.slots.get(&self.layout.slot(seq)).is_some_and(|&stands| stands >= start);
        let hides_starts = between >= seq_reserve(self.layout.slots);
        let seqs = (seq.next().0..start.0).map(Seq);
        if hides_starts {
            SeqRange::runs_of(seqs.filter(|at| taken(*at)))
        } else {
            SeqRange::runs_of(seqs.take_while(|at| taken(*at)))
        }
    }

    /// Where the payload of an order stands in the region, if its slot names a place that an entry of the ring can have:
    /// absolute position and offset. Any other place is not read: it could lie outside the region, which would be taken
    /// for the loss of the auxiliary.
    #[must_use]
    pub fn ring_place(&self, record: &OrderRecord) -> Option<(u64, u64)> {
        let pos = self.states.get(&record.seq)?.payload_pos;
        let at = pos.checked_rem(self.layout.payload_bytes)?;
        let fits = at + entry_bytes(record.payload_bytes()) <= self.layout.payload_bytes;
        (fits && pos.is_multiple_of(ENTRY_ALIGN_BYTES)).then(|| (pos, self.layout.payload_offset(pos)))
    }
}

fn pieces(area: Area, from: u64, to: u64) -> impl Iterator<Item = (Area, u64, u64)> {
    let step = usize::try_from(TABLE_READ_BYTES).expect("a quarter of a MiB");
    (from..to).step_by(step).map(move |at| (area, at, TABLE_READ_BYTES.min(to - at)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::op::Op;
    use crate::format::table::{NO_PAYLOAD, State};

    const SLOTS: u64 = 1024;

    /// A table of seqs 1 to `tail`, of which the slots of `spoiled` are damaged.
    fn table(tail: u64, spoiled: &[u64]) -> TableReader {
        let layout = TableLayout::new(SLOTS, 0);
        let mut bytes = vec![0; SLOTS as usize * RECORD_BYTES];
        for seq in tail.saturating_sub(SLOTS - 1).max(1)..=tail {
            let at = layout.slot(Seq(seq)) as usize * RECORD_BYTES;
            let record = OrderRecord::sample(seq, Op::Write);
            bytes[at..at + RECORD_BYTES].copy_from_slice(&record.encode());
        }
        spoiled.iter().for_each(|&seq| bytes[layout.slot(Seq(seq)) as usize * RECORD_BYTES + 20] ^= 4);
        let mut reader = TableReader::new(layout, GroupId(1), Seq(0), Epoch(2));
        reader.take_records(0, &bytes.into(), |_| false);
        reader
    }

    #[test]
    fn a_record_that_is_known_here_is_not_kept_a_second_time() {
        let mut reader = table(40, &[]);
        let bytes: Vec<u8> = reader.records.values().flat_map(OrderRecord::encode).collect();
        let (slots, kept) = (reader.slots.clone(), reader.records.split_off(&Seq(31)));
        reader.records.clear();
        reader.slots.clear();
        let first = reader.layout.slot(Seq(1));
        reader.take_records(first, &bytes.into(), |record| record.seq <= Seq(30));
        assert_eq!((reader.records, reader.slots), (kept, slots), "which slots are taken is known all the same");
    }

    #[test]
    fn a_damaged_slot_is_missed_where_its_seq_is_neither_in_the_image_nor_known() {
        for tail in [40, SLOTS - 1, SLOTS, SLOTS + 40, 7 * SLOTS + 3] {
            let reader = table(tail, &[tail - 5]);
            assert!(!reader.records.contains_key(&Seq(tail - 5)));
            let doubt = |cut: u64, known: bool| reader.doubt(Seq(cut), Seq(tail), |_| known);
            assert!(doubt(tail - 6, false).is_some_and(|text| text.contains("1 seqs")), "{tail}");
            assert_eq!(doubt(tail - 5, false), None, "in the image");
            assert_eq!(doubt(tail - 6, true), None, "the journal has it");
        }
    }

    #[test]
    fn damaged_slots_behind_the_last_record_may_hold_later_ones() {
        for tail in [40, SLOTS - 1, SLOTS, SLOTS + 40] {
            // The last two are damaged: what can be read ends before them.
            let reader = table(tail, &[tail - 1, tail]);
            assert_eq!(reader.records.last_key_value().map(|it| it.0.0), Some(tail - 2));
            let text = reader.doubt(Seq(0), Seq(tail - 2), |_| true).expect("they may have been acknowledged");
            assert!(text.contains(&format!("after seq {}", tail - 2)), "{text}");
            assert_eq!(table(tail, &[]).doubt(Seq(0), Seq(tail), |_| true), None);
        }
    }

    #[test]
    fn only_where_an_entry_can_stand_in_the_ring_is_one_looked_for() {
        const RING: u64 = 16 << 10;
        let record = OrderRecord { length: 1000, ..OrderRecord::sample(7, Op::Write) };
        let place = |ring: u64, payload_pos: u64| {
            let layout = TableLayout::new(SLOTS, ring);
            let mut reader = TableReader::new(layout, GroupId(1), Seq(0), Epoch(2));
            reader.states.insert(record.seq, SlotState { seq: record.seq, state: State::Sent, payload_pos });
            reader.ring_place(&record).map(|(pos, offset)| (pos, offset - layout.payload_at))
        };
        let last = RING - entry_bytes(1000);
        assert_eq!(place(RING, 512), Some((512, 512)));
        assert_eq!(place(RING, 3 * RING + last), Some((3 * RING + last, last)));
        for pos in [last + 512, 3 * RING - 512, 513, u64::MAX - 511, NO_PAYLOAD] {
            assert_eq!(place(RING, pos), None, "{pos}");
        }
        assert_eq!(place(0, 512), None, "there is no ring");
    }
}
