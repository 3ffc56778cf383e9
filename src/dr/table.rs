//! Reads the status table at a promotion: which reads to make, and what they say.
//!
//! Owns the reads in flight and what was found. The table is read whole, in pieces: the writer may have
//! left its records in any order, and jumped (I4). Nothing that is not exactly what a writer writes is
//! taken; damaged slots are counted and named (I8).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;

use crate::core::ids::{Epoch, GroupId, Seq, Ticket};
use crate::format::is_zero;
use crate::format::record::OrderRecord;
use crate::format::table::{NO_PAYLOAD, STATE_BYTES, SlotState, TableLayout};
use crate::limits::{RECORD_BYTES, TABLE_READ_BYTES, TABLE_READS_INFLIGHT_MAX};

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
    pub records: BTreeMap<Seq, OrderRecord>,
    pub states: BTreeMap<Seq, SlotState>,
    /// Slots that hold neither a record nor nothing.
    pub damaged_slots: u64,
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
            records: BTreeMap::new(),
            states: BTreeMap::new(),
            damaged_slots: 0,
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

    /// A read ended. Whether it was one of this reader's.
    pub fn read(&mut self, ticket: Ticket, bytes: &Bytes) -> bool {
        let Some((area, offset)) = self.reading.remove(&ticket) else { return false };
        match area {
            Area::Records => self.take_records((offset - self.layout.records_at) / RECORD_BYTES as u64, bytes),
            Area::States => self.take_states((offset - self.layout.states_at) / STATE_BYTES as u64, bytes),
        }
        true
    }

    fn take_records(&mut self, first: u64, bytes: &Bytes) {
        for (slot, bytes) in (first..).zip(bytes.chunks_exact(RECORD_BYTES)) {
            if is_zero(bytes) {
                continue;
            }
            match OrderRecord::decode(bytes) {
                Ok(record) if self.layout.slot(record.seq) == slot && record.epoch <= self.epoch => {
                    if record.seq > self.above {
                        self.records.insert(record.seq, record);
                    }
                }
                _ => self.damaged_slots += 1,
            }
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
                _ => self.damaged_slots += 1,
            }
        }
    }

    /// Where the payload of a seq stands in the region, if its slot names a place in the ring: absolute
    /// position and offset.
    #[must_use]
    pub fn ring_place(&self, seq: Seq) -> Option<(u64, u64)> {
        let pos = self.states.get(&seq)?.payload_pos;
        (pos != NO_PAYLOAD && self.layout.payload_bytes > 0).then(|| (pos, self.layout.payload_offset(pos)))
    }
}

fn pieces(area: Area, from: u64, to: u64) -> impl Iterator<Item = (Area, u64, u64)> {
    let step = usize::try_from(TABLE_READ_BYTES).expect("a quarter of a MiB");
    (from..to).step_by(step).map(move |at| (area, at, TABLE_READ_BYTES.min(to - at)))
}
