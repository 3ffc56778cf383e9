//! The journal's append and reclaim logic: which block a record goes to, what is durable, what is free.
//!
//! Owns positions and the order of completion; the bytes' layout is [`crate::format::journal`]'s. Group
//! commit: everything that waits goes out in one durable write, up to four of them in flight.
//!
//! ```text
//!   floor ≤ durable ≤ written ≤ taken          segments  first … current   (current - first < K)
//!           └ acknowledged: the contiguous prefix of completed appends
//! ```
//!
//! Invariants:
//! - `durable` moves only over appends that are complete without a gap (I3): a record is never promised
//!   while one before it could still be lost.
//! - A block with durable records is rewritten only with the same records and more after them, and never
//!   while a write to it is in flight: a torn write changes no sector that was promised.
//! - A record that may follow a gap in the seqs is written only when everything before it is durable: so
//!   recovery can tell a gap that the writer made from one that a crash tore.
//! - A segment is zeroed, durably, before its first record is written: what stands behind the last
//!   append is zeroes, never an older record.
//! - A segment is taken again only when the superblock that leaves it behind is durable (I8, I9).

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::core::ids::{Chain, GroupId, Seq, Ticket};
use crate::core::planted::{Bug, planted, segment_bytes};
use crate::format::journal::{SegmentHeader, segment_offset};
use crate::format::record::OrderRecord;
use crate::limits::{BLOCK_BYTES, DR_APPEND_BLOCKS_MAX, DR_APPENDS_INFLIGHT_MAX, RECORD_BYTES, RECORDS_PER_BLOCK};

static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// One write to the journal file, always durable.
#[derive(Clone, Debug)]
pub struct Write {
    pub offset: u64,
    pub parts: Vec<Bytes>,
}

impl Write {
    /// That many zeroes from `offset` on.
    #[must_use]
    pub fn zeroes(offset: u64, bytes: u64) -> Write {
        Write { offset, parts: zeroes(bytes) }
    }
}

/// Where a journal stands when its machine starts.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// Segments in the file.
    pub segments: u64,
    /// The oldest segment that is needed.
    pub first: u64,
    /// Numbers of the segments in use, ascending, each with the seq before its first record. Empty: fresh.
    pub used: Vec<(u64, Seq)>,
    /// The next block to write in the last of them, and the records that stand in it already.
    pub block: u64,
    pub partial: Vec<OrderRecord>,
    pub durable: Seq,
    /// What rids the file of torn remains, before anything is appended.
    pub repairs: Vec<Write>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    /// Records up to here; touches blocks up to this one (counted over all segments).
    Append { last: Seq, block: u64 },
    /// At the start, before anything else.
    Repair,
}

/// The appending end of the journal.
#[derive(Clone, Debug)]
pub struct Journal {
    group: GroupId,
    segments: u64,
    first: u64,
    used: VecDeque<(u64, Seq)>,
    /// Next block in the current segment; [`segment_blocks`] when it is full.
    block: u64,
    /// Records that stand in `block` already.
    partial: Vec<OrderRecord>,
    waiting: VecDeque<OrderRecord>,
    /// Seq and chain of the last record that was put into a write.
    written: Seq,
    written_chain: Chain,
    durable: Seq,
    appends: VecDeque<(Ticket, Job, bool)>,
    repairs: Vec<Write>,
    repairing: usize,
    prepared: Option<(u64, bool)>,
    preparing: Option<Ticket>,
}

impl Journal {
    /// A journal that goes on where recovery found it; `chain` is that of the last durable record.
    #[must_use]
    pub fn new(group: GroupId, start: Start, chain: Chain) -> Journal {
        assert!(start.segments >= 2, "recovery refuses a journal of one segment");
        Journal {
            group,
            segments: start.segments,
            first: start.first,
            used: start.used.into(),
            block: start.block,
            partial: start.partial,
            waiting: VecDeque::new(),
            written: start.durable,
            written_chain: chain,
            durable: start.durable,
            appends: VecDeque::new(),
            repairs: start.repairs,
            repairing: 0,
            prepared: None,
            preparing: None,
        }
    }

    /// The group became known (a fresh directory).
    pub fn adopt(&mut self, group: GroupId) {
        self.group = group;
    }

    /// Every record up to here is durable.
    #[must_use]
    pub fn durable(&self) -> Seq {
        self.durable
    }

    /// Nothing waits or is in flight.
    #[must_use]
    pub fn idle(&self) -> bool {
        self.waiting.is_empty() && self.appends.is_empty() && self.repairing == 0 && self.repairs.is_empty()
    }

    /// Torn remains of an earlier life are gone: appends may follow.
    #[must_use]
    pub fn repaired(&self) -> bool {
        self.repairing == 0 && self.repairs.is_empty()
    }

    /// Records wait and there is no segment to put them in.
    #[must_use]
    pub fn full(&self) -> bool {
        !self.waiting.is_empty() && self.block_is_full() && !self.segment_free(self.current() + 1)
    }

    /// Records that certainly still fit, those that wait among them. With several appends in flight each may leave most
    /// of its last block empty: until half of the segments are in use a block counts for one record.
    #[must_use]
    pub fn room(&self) -> u64 {
        let used = self.used.len() as u64;
        let free = self.first + self.segments - 1 - self.current();
        let loose = (self.segments / 2).saturating_sub(used).min(free);
        let rest = match segment_blocks() - self.block.min(segment_blocks()) {
            0 => 0,
            _ if self.used.is_empty() => 0,
            blocks if self.roomy() => blocks - 1,
            blocks => blocks * RECORDS_PER_BLOCK as u64 - self.partial.len() as u64,
        };
        loose * (segment_blocks() - 1) + (free - loose) * segment_records() + rest
    }

    /// Records that fit it when nothing is in it.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.segments * segment_records()
    }

    /// Bytes of segments in use.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used.len() as u64 * segment_bytes()
    }

    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.segments * segment_bytes()
    }

    /// Records that wait for a write.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes a record to be appended.
    pub fn push(&mut self, record: OrderRecord) {
        self.waiting.push_back(record);
    }

    /// The first segment needed once everything up to `applied` may be forgotten: what the next
    /// superblock says.
    #[must_use]
    pub fn first_needed(&self, applied: Seq) -> u64 {
        let mut first = self.used.front().map_or(self.first, |&(number, _)| number);
        // A segment is over when the one after it starts at or below the checkpoint. One of which nothing
        // is durable yet is not counted on: the superblock never names a segment that may not exist.
        for &(number, previous) in self.used.iter().skip(1) {
            if previous <= applied && previous < self.durable {
                first = number;
            }
        }
        first
    }

    /// Whether a segment becomes free once everything up to `applied` may be forgotten.
    #[must_use]
    pub fn frees(&self, applied: Seq) -> bool {
        self.first_needed(applied) > self.used.front().map_or(self.first, |&(number, _)| number)
    }

    /// A superblock that starts at segment `first` is durable: earlier ones may be taken again.
    pub fn release(&mut self, first: u64) {
        self.first = self.first.max(first);
        while self.used.len() > 1 && self.used.front().is_some_and(|&(number, _)| number < self.first) {
            self.used.pop_front();
        }
    }

    /// The next write that can go out, if one can; `ticket` names it.
    pub fn next_write(&mut self, ticket: Ticket) -> Option<Write> {
        if let Some(write) = self.repairs.pop() {
            self.repairing += 1;
            self.appends.push_back((ticket, Job::Repair, false));
            return Some(write);
        }
        if self.repairing > 0 {
            return None;
        }
        if let Some(write) = self.prepare(ticket) {
            return Some(write);
        }
        // Appends in flight together cannot share a block: with the journal half full, room counts for more.
        let inflight_max = if self.roomy() { DR_APPENDS_INFLIGHT_MAX } else { 1 };
        if self.waiting.is_empty() || self.appends.len() >= inflight_max {
            return None;
        }
        // A record that may follow a gap waits until everything before it is durable: whoever finds it after a
        // crash knows that what seems to be missing before it never was here.
        if self.waiting.front().is_some_and(|record| record.op.may_jump()) && !self.appends.is_empty() {
            return None;
        }
        self.leave_busy_block();
        let mut parts = Vec::new();
        let mut offset = None;
        if self.block_is_full() {
            let next = self.current() + 1;
            if self.prepared != Some((next, true)) {
                return None;
            }
            offset = Some(self.segment_at(next));
            parts.push(self.enter(next));
        }
        let offset = offset.unwrap_or_else(|| self.segment_at(self.current()) + self.block * BLOCK_BYTES as u64);
        let last_block = self.fill(&mut parts);
        let last = self.written;
        self.appends.push_back((ticket, Job::Append { last, block: last_block }, false));
        Some(Write { offset, parts })
    }

    /// A write has been completed. Whether it was one of the journal's.
    pub fn done(&mut self, ticket: Ticket) -> bool {
        if self.preparing == Some(ticket) {
            self.preparing = None;
            if let Some(prepared) = &mut self.prepared {
                prepared.1 = true;
            }
            return true;
        }
        let Some(append) = self.appends.iter_mut().find(|append| append.0 == ticket) else { return false };
        append.2 = true;
        if planted(Bug::JournalOverGap)
            && let Job::Append { last, .. } = append.1
        {
            self.durable = self.durable.max(last);
        }
        while let Some(&(_, job, true)) = self.appends.front() {
            self.appends.pop_front();
            match job {
                Job::Append { last, .. } => self.durable = self.durable.max(last),
                Job::Repair => self.repairing -= 1,
            }
        }
        true
    }

    fn roomy(&self) -> bool {
        self.used.len() as u64 * 2 <= self.segments
    }

    fn current(&self) -> u64 {
        // Before the first segment: `first` is the one to be entered next.
        self.used.back().map_or(self.first - 1, |&(number, _)| number)
    }

    fn block_is_full(&self) -> bool {
        self.used.is_empty() || self.block >= segment_blocks()
    }

    fn segment_free(&self, number: u64) -> bool {
        number < self.first + self.segments || planted(Bug::JournalReusedEarly)
    }

    fn segment_at(&self, number: u64) -> u64 {
        segment_offset(number, self.segments)
    }

    /// Zeroes the next segment while the current one is being filled.
    fn prepare(&mut self, ticket: Ticket) -> Option<Write> {
        let next = self.current() + 1;
        let wanted = self.prepared.is_none_or(|(number, _)| number < next)
            && (self.block_is_full() && !self.waiting.is_empty() || self.block >= segment_blocks() / 2)
            && !(self.used.is_empty() && self.waiting.is_empty());
        if !wanted || self.preparing.is_some() || !self.segment_free(next) {
            return None;
        }
        self.prepared = Some((next, false));
        self.preparing = Some(ticket);
        Some(Write::zeroes(self.segment_at(next), segment_bytes()))
    }

    /// A block that an append in flight writes to is not written again: the next append starts after it.
    fn leave_busy_block(&mut self) {
        let here = self.current() * segment_blocks() + self.block;
        let busy = self
            .appends
            .iter()
            .any(|&(_, job, done)| !done && matches!(job, Job::Append { block, .. } if block == here));
        if busy && !self.partial.is_empty() {
            self.partial.clear();
            self.block += 1;
        }
    }

    /// Opens a segment: its header block.
    fn enter(&mut self, number: u64) -> Bytes {
        let first_seq = self.waiting.front().map_or(self.written.next(), |record| record.seq);
        let header = SegmentHeader {
            group: self.group,
            number,
            first_seq,
            previous_seq: self.written,
            previous_chain: self.written_chain,
        };
        self.used.push_back((number, self.written));
        self.block = 1;
        self.partial.clear();
        Bytes::copy_from_slice(&header.encode())
    }

    /// Puts as many waiting records as fit into blocks from `block` on; the last block they touch.
    fn fill(&mut self, parts: &mut Vec<Bytes>) -> u64 {
        let mut out = BytesMut::new();
        let mut blocks = 0;
        let base = self.current() * segment_blocks();
        loop {
            let touched = base + self.block;
            let room = RECORDS_PER_BLOCK - self.partial.len();
            let mut first = blocks == 0;
            for _ in 0..room {
                let Some(record) = self.waiting.pop_front_if(|record| first || !record.op.may_jump()) else { break };
                first = false;
                // What a promotion found elsewhere of damaged records comes behind later ones.
                if record.seq > self.written {
                    self.written = record.seq;
                    self.written_chain = record.chain;
                }
                self.partial.push(record);
            }
            for record in &self.partial {
                out.extend_from_slice(&record.encode());
            }
            out.resize(out.len() + (RECORDS_PER_BLOCK - self.partial.len()) * RECORD_BYTES, 0);
            blocks += 1;
            if self.partial.len() == RECORDS_PER_BLOCK {
                self.partial.clear();
                self.block += 1;
            }
            let barrier = self.waiting.front().is_none_or(|record| record.op.may_jump());
            if barrier || blocks == append_blocks_max() || self.block >= segment_blocks() {
                parts.push(out.freeze());
                return touched;
            }
        }
    }
}

/// Blocks of a segment, its header's among them.
pub(super) fn segment_blocks() -> u64 {
    segment_bytes() / BLOCK_BYTES as u64
}

fn segment_records() -> u64 {
    (segment_blocks() - 1) * RECORDS_PER_BLOCK as u64
}

/// Blocks of one append at the most: what a crash can tear is less than a segment.
pub(super) fn append_blocks_max() -> usize {
    DR_APPEND_BLOCKS_MAX.min(usize::try_from(segment_blocks() / 8).expect("a segment fits memory"))
}

/// That many zero bytes, without memory of their own.
fn zeroes(bytes: u64) -> Vec<Bytes> {
    let mut parts = Vec::new();
    let mut left = usize::try_from(bytes).expect("at most a segment");
    while left > 0 {
        let part = left.min(ZEROES.len());
        parts.push(Bytes::from_static(&ZEROES[..part]));
        left -= part;
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::op::Op;

    fn records(next: &mut u64, count: u64) -> impl Iterator<Item = OrderRecord> {
        let first = *next;
        *next += count;
        (first..*next).map(|seq| OrderRecord::sample(seq, Op::Trim))
    }

    /// Makes every write that can go out, with at most so many others under way.
    fn pump(journal: &mut Journal, ticket: &mut u64, open: &mut VecDeque<Ticket>, under_way: usize) {
        loop {
            *ticket += 1;
            if journal.next_write(Ticket(*ticket)).is_some() {
                open.push_back(Ticket(*ticket));
            } else if open.is_empty() {
                return;
            } else {
                journal.done(open.pop_front().expect("not empty"));
            }
            while open.len() > under_way + 1 {
                journal.done(open.pop_front().expect("counted"));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// However few records go out at once, and however many appends are in flight: the room that was told is there,
        /// and what is told later never takes any of it back.
        #[test]
        fn the_room_that_is_told_is_there(
            segments in 2..7_u64,
            commits in prop::collection::vec((1..200_u64, 0..4_usize, 0..40_u8), 1..900),
        ) {
            let mut journal = Journal::new(GroupId(1), Start { segments, first: 1, ..Start::default() }, Chain(0));
            let (mut next, mut ticket, mut open, mut promised) = (1, 0, VecDeque::new(), 0);
            for (count, under_way, release) in commits {
                promised = promised.max(next - 1 + journal.room() - journal.waiting() as u64);
                let count = count.min(promised + 1 - next);
                records(&mut next, count).for_each(|record| journal.push(record));
                pump(&mut journal, &mut ticket, &mut open, under_way);
                prop_assert!(!journal.full(), "full with {promised} promised, {next} next");
                prop_assert!(next - 1 + journal.room() - journal.waiting() as u64 >= promised);
                if release == 0 {
                    journal.release(journal.first_needed(journal.durable()));
                }
            }
            let count = promised + 1 - next;
            records(&mut next, count).for_each(|record| journal.push(record));
            pump(&mut journal, &mut ticket, &mut open, 3);
            prop_assert!(!journal.full() && journal.idle());
            prop_assert_eq!(journal.durable(), Seq(promised));
        }
    }
}
