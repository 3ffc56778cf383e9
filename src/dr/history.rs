//! The order as this site knows it: every record above the checkpoint, and whether its payload is here.
//!
//! Owns the records in memory, their continuity, and the set of payloads that are missing. Knows
//! nothing of disks: what is durable in the journal is [`super::journal`]'s, where payloads stand is
//! [`super::spool`]'s.
//!
//! Invariants:
//! - Seqs ascend strictly. `unbroken` of a record says that the record before it in this history is the
//!   one it was written after: same chain, no seq between them that could name a write (I5, I8).
//! - `missing` holds exactly the records with a payload that is not durable here.
//!
//! Bound (I9): records above the checkpoint stand in the journal, so there are at most as many as fit it.

use std::collections::{BTreeMap, VecDeque};

use crate::core::ids::{Chain, Seq, SeqRange, Volume};
use crate::core::op::Op;
use crate::core::planted::{Bug, planted};
use crate::format::record::OrderRecord;
use crate::format::spool::entry_bytes;

/// One record and what is known of it here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub record: OrderRecord,
    /// It follows the entry before it without a gap, so that the cut may pass from there to here.
    pub unbroken: bool,
    /// Position of its payload in the spool, once durable there.
    pub payload: Option<u64>,
}

impl Entry {
    /// Whether everything this order needs is here.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.payload.is_some() || !self.record.op.has_payload()
    }
}

/// What became of a record that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intake {
    /// Appended.
    New,
    /// Known already, bit for bit, or older than everything that is kept.
    Known,
}

/// Why a record cannot be part of this history (I8): silent divergence is the enemy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Divergence {
    #[error("seq {seq} differs from what the journal here has under that number")]
    Differs { seq: Seq },
    #[error("seq {seq} came where {expected} was due")]
    Gap { seq: Seq, expected: Seq },
    #[error("seq {seq} does not continue the chain of the record before it")]
    Chain { seq: Seq },
    #[error("seq {seq} is not in the journal here, which goes on after it")]
    Absent { seq: Seq },
}

/// The records above the checkpoint.
#[derive(Clone, Debug, Default)]
pub struct History {
    entries: VecDeque<Entry>,
    /// Everything up to here has been applied and forgotten.
    floor: Seq,
    floor_chain: Chain,
    /// When that was taken in, if its record was seen.
    floor_time_ns: Option<u64>,
    /// A batch was completed there since the writer last started, as far as is known.
    floor_settled: bool,
    /// Seq and chain of the last record.
    tail: Seq,
    chain: Chain,
    /// Entry bytes in the spool that each missing payload will take.
    missing: BTreeMap<Seq, u64>,
    /// Their sum.
    missing_total: u64,
    /// Begin of the last batch in the history, and the record that ends it.
    batch: Option<Seq>,
    batch_end: Option<OrderRecord>,
    /// The records that say how large a volume is from there on: which one, and bytes.
    resizes: BTreeMap<Seq, (Volume, u64)>,
}

impl History {
    /// A history that goes on after a record with this seq and chain.
    #[must_use]
    pub fn after(seq: Seq, chain: Chain) -> History {
        History { floor: seq, floor_chain: chain, tail: seq, chain, ..History::default() }
    }

    /// The same, where it is known whether a batch was completed there since the writer last started.
    #[must_use]
    pub fn settled(mut self, settled: bool) -> History {
        self.floor_settled = settled;
        self
    }

    /// Whether a batch was completed since the writer last started, as of `seq`.
    #[must_use]
    pub fn settled_at(&self, seq: Seq) -> bool {
        let ops = self.entries.iter().take_while(|entry| entry.record.seq <= seq).map(|entry| entry.record.op);
        ops.filter_map(settled_by).last().unwrap_or(self.floor_settled)
    }

    #[must_use]
    pub fn floor(&self) -> Seq {
        self.floor
    }

    #[must_use]
    pub fn tail(&self) -> Seq {
        self.tail
    }

    #[must_use]
    pub fn tail_chain(&self) -> Chain {
        self.chain
    }

    /// When the last record was taken in by its writer, nanoseconds since the Unix epoch, if it was seen.
    #[must_use]
    pub fn tail_time_ns(&self) -> Option<u64> {
        self.entries.back().map_or(self.floor_time_ns, |entry| Some(entry.record.time_ns))
    }

    /// The record of the floor was found after all.
    pub fn found_floor(&mut self, record: &OrderRecord) {
        if (record.seq, record.chain) == (self.floor, self.floor_chain) {
            self.floor_time_ns = Some(record.time_ns);
        }
    }

    /// Chain of the record with this seq, which is in the history or its floor.
    #[must_use]
    pub fn chain_at(&self, seq: Seq) -> Chain {
        self.get(seq).map_or(self.floor_chain, |entry| entry.record.chain)
    }

    /// Records kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes in a record from the writer.
    pub fn take(&mut self, record: OrderRecord) -> Result<Intake, Divergence> {
        let seq = record.seq;
        if seq <= self.floor {
            return Ok(Intake::Known);
        }
        if seq <= self.tail {
            return match self.get(seq) {
                Some(entry) if entry.record == record => Ok(Intake::Known),
                Some(_) => Err(Divergence::Differs { seq }),
                None => Err(Divergence::Absent { seq }),
            };
        }
        if !record.op.may_jump() && !planted(Bug::GapAccepted) {
            if seq != self.tail.next() {
                return Err(Divergence::Gap { seq, expected: self.tail.next() });
            }
            if record.chain_after(self.chain) != record.chain && !planted(Bug::RecordUnchecked) {
                return Err(Divergence::Chain { seq });
            }
        }
        let unbroken = follows(&record, (self.tail, self.chain), self.batch);
        self.push(record, unbroken);
        Ok(Intake::New)
    }

    /// Takes in a record that stands in the journal behind damage: kept so that it is not forgotten (I4),
    /// but the cut does not pass the gap before it.
    pub fn take_after_gap(&mut self, record: OrderRecord) {
        assert!(record.seq > self.tail, "a journal is read in ascending order");
        self.push(record, false);
    }

    /// Takes in a record that was lost here to damage and is known from elsewhere, if it continues the one right before it.
    /// Not what begins, ends or starts something: what follows from that was decided without it. Whether it was taken.
    pub fn fill(&mut self, record: OrderRecord) -> bool {
        let Some(index) = self.gap_for(&record, None) else { return false };
        if record.op.has_payload() {
            self.miss(record.seq, entry_bytes(record.payload_bytes()));
        }
        self.note_resize(&record);
        self.entries.insert(index, Entry { record, unbroken: true, payload: None });
        let begins = self.entries.range(..index).rev().find(|entry| entry.record.op == Op::BatchBegin);
        let open = begins.map(|entry| entry.record.seq);
        let next = &mut self.entries[index + 1];
        next.unbroken = follows(&next.record, (record.seq, record.chain), open);
        true
    }

    /// Whether [`History::fill`] would take it once `last`, the last of those before it that are to be filled in, is.
    #[must_use]
    pub fn could_fill(&self, record: &OrderRecord, last: Option<&OrderRecord>) -> bool {
        self.gap_for(record, last).is_some()
    }

    fn gap_for(&self, record: &OrderRecord, last: Option<&OrderRecord>) -> Option<usize> {
        let index = self.index(record.seq).err().filter(|index| *index < self.entries.len())?;
        let known = index.checked_sub(1).map_or((self.floor, self.floor_chain), |at| {
            let entry = &self.entries[at];
            (entry.record.seq, entry.record.chain)
        });
        let before = last.map(|last| (last.seq, last.chain)).filter(|last| last.0 > known.0).unwrap_or(known);
        let plain = !record.op.may_jump() && record.op != Op::BatchEnd;
        let continues = record.seq == before.0.next() && record.chain == record.chain_after(before.1);
        (plain && continues).then_some(index)
    }

    fn push(&mut self, record: OrderRecord, unbroken: bool) {
        if record.op == Op::BatchBegin {
            self.batch = Some(record.seq);
            self.batch_end = None;
        }
        if record.op == Op::BatchEnd && self.batch == Some(Seq(record.offset)) {
            self.batch_end = Some(record);
        }
        if record.op.has_payload() {
            self.miss(record.seq, entry_bytes(record.payload_bytes()));
        }
        self.note_resize(&record);
        self.entries.push_back(Entry { record, unbroken, payload: None });
        self.tail = record.seq;
        self.chain = record.chain;
    }

    fn note_resize(&mut self, record: &OrderRecord) {
        if let Some(size) = record.new_size() {
            self.resizes.insert(record.seq, (record.volume, size));
        }
    }

    /// Seq, volume and new size in bytes of each record above `seq` that names one.
    pub fn resizes_after(&self, seq: Seq) -> impl Iterator<Item = (Seq, Volume, u64)> {
        self.resizes.range(seq.next()..).map(|(&seq, &(volume, size))| (seq, volume, size))
    }

    /// With no writer left to complete it, a batch is no reason to stop: where nothing was left out before its begin, the
    /// order goes on there as anywhere else, if what it would have brought is here by itself (from the ring).
    ///
    /// Not so the first batch after a start of the writer: it also takes back what DR was sent of writes that a killed
    /// writer had not made on its own disk yet, and which its clients never saw again (I5). Up to `promised` an earlier
    /// attempt at the same promotion has passed them; where it has checkpointed behind one, its end is an order as any other.
    pub fn pass_batches(&mut self, promised: Seq) {
        let mut before = (self.floor, self.floor_chain);
        let mut settled = self.floor_settled;
        let mut begun = false;
        for entry in &mut self.entries {
            let record = &entry.record;
            let passed = match record.op {
                Op::BatchBegin => settled || record.seq <= promised,
                Op::BatchEnd => !begun && Seq(record.offset) <= self.floor,
                _ => false,
            };
            if passed && record.seq == before.0.next() {
                entry.unbroken |= record.chain_after(before.1) == record.chain;
            }
            begun |= record.op == Op::BatchBegin;
            settled = settled_by(record.op).unwrap_or(settled);
            before = (record.seq, record.chain);
        }
    }

    /// Position of a seq in `entries`, or of the first one after it.
    fn index(&self, seq: Seq) -> Result<usize, usize> {
        let Some(front) = self.entries.front() else { return Err(0) };
        let guess = usize::try_from(seq.0.saturating_sub(front.record.seq.0)).unwrap_or(usize::MAX);
        if self.entries.get(guess).is_some_and(|entry| entry.record.seq == seq) {
            return Ok(guess);
        }
        self.entries.binary_search_by_key(&seq, |entry| entry.record.seq)
    }

    #[must_use]
    pub fn get(&self, seq: Seq) -> Option<&Entry> {
        self.index(seq).ok().map(|index| &self.entries[index])
    }

    /// The first record above `seq`.
    #[must_use]
    pub fn next_after(&self, seq: Seq) -> Option<&Entry> {
        let index = match self.index(seq) {
            Ok(index) => index + 1,
            Err(index) => index,
        };
        self.entries.get(index)
    }

    /// Records above `seq`, ascending.
    pub fn above(&self, seq: Seq) -> impl Iterator<Item = &Entry> {
        let from = match self.index(seq) {
            Ok(index) => index + 1,
            Err(index) => index,
        };
        self.entries.range(from..)
    }

    /// How far everything is complete and unbroken after `seq`, not beyond `durable`: where the cut stands (I5).
    #[must_use]
    pub fn unbroken_from(&self, seq: Seq, durable: Seq) -> Seq {
        let mut reached = seq;
        for entry in self.above(seq) {
            let complete = entry.complete() || planted(Bug::ApplyPastMissing);
            if !entry.unbroken || !complete || entry.record.seq > durable {
                break;
            }
            reached = entry.record.seq;
        }
        reached
    }

    /// The payload of `seq` is durable in the spool at `pos`.
    pub fn hold(&mut self, seq: Seq, pos: u64) {
        if let Ok(index) = self.index(seq) {
            self.entries[index].payload = Some(pos);
            self.missing_total -= self.missing.remove(&seq).unwrap_or(0);
        }
    }

    /// The payload of `seq` was found damaged: it is missing again.
    pub fn lose(&mut self, seq: Seq) {
        if let Ok(index) = self.index(seq) {
            let entry = &mut self.entries[index];
            if entry.payload.take().is_some() {
                let bytes = entry_bytes(entry.record.payload_bytes());
                self.miss(seq, bytes);
            }
        }
    }

    /// Forgets everything up to `seq`, which is applied and checkpointed.
    pub fn forget(&mut self, seq: Seq) {
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.record.seq <= seq) {
            self.floor_chain = entry.record.chain;
            self.floor_time_ns = Some(entry.record.time_ns);
            self.floor_settled = settled_by(entry.record.op).unwrap_or(self.floor_settled);
        }
        while self.missing.first_key_value().is_some_and(|(&missing, _)| missing <= seq) {
            self.missing_total -= self.missing.pop_first().map_or(0, |(_, bytes)| bytes);
        }
        self.resizes = self.resizes.split_off(&seq.next());
        self.floor = self.floor.max(seq);
    }

    fn miss(&mut self, seq: Seq, bytes: u64) {
        let before = self.missing.insert(seq, bytes).unwrap_or(0);
        self.missing_total = self.missing_total + bytes - before;
    }

    /// Spool bytes that all missing payloads will take together.
    #[must_use]
    pub fn missing_total(&self) -> u64 {
        self.missing_total
    }

    /// The batch that is open after `cut`: its begin, and its end if that is known.
    #[must_use]
    pub fn open_batch(&self, cut: Seq) -> Option<(Seq, Option<OrderRecord>)> {
        let begin = self.batch.filter(|&begin| begin > cut)?;
        Some((begin, self.batch_end))
    }

    /// How many payloads above `seq` are missing.
    #[must_use]
    pub fn missing_above(&self, seq: Seq) -> usize {
        self.missing.range(seq.next()..).count()
    }

    /// Number of payloads that are missing, of whatever seq.
    #[must_use]
    pub fn missing_len(&self) -> usize {
        self.missing.len()
    }

    /// Whether the payload of `seq` is known to be missing.
    #[must_use]
    pub fn is_missing(&self, seq: Seq) -> bool {
        self.missing.contains_key(&seq)
    }

    /// The lowest missing payload above `seq`.
    #[must_use]
    pub fn first_missing_above(&self, seq: Seq) -> Option<Seq> {
        self.missing.range(seq.next()..).next().map(|(&seq, _)| seq)
    }

    /// The missing payloads above `seq` as at most `limit` ranges of neighbouring seqs.
    #[must_use]
    pub fn missing_ranges_above(&self, seq: Seq, limit: usize) -> Vec<SeqRange> {
        let mut ranges: Vec<SeqRange> = Vec::new();
        for &seq in self.missing.range(seq.next()..).map(|(seq, _)| seq) {
            if let Some(range) = ranges.last_mut().filter(|range| range.last.next() == seq) {
                range.last = seq;
            } else if ranges.len() < limit {
                ranges.push(SeqRange { first: seq, last: seq });
            } else {
                break;
            }
        }
        ranges
    }

    /// Spool bytes that the missing payloads between `low` and `high` (both exclusive) will take, and the
    /// longest of them. Stops adding once the sum is over `enough`.
    #[must_use]
    pub fn missing_bytes(&self, low: Seq, high: Seq, enough: u64) -> (u64, u64) {
        let (mut sum, mut longest) = (0, 0);
        if low.next() < high {
            for (_, &bytes) in self.missing.range(low.next()..high) {
                sum += bytes;
                longest = bytes.max(longest);
                if sum > enough {
                    break;
                }
            }
        }
        (sum, longest)
    }

    /// The seqs above `cut` whose payloads are here, as at most `limit` ranges. Records without payload
    /// inside a range are part of it.
    #[must_use]
    pub fn have_above(&self, cut: Seq, limit: usize) -> Vec<SeqRange> {
        let mut ranges: Vec<SeqRange> = Vec::new();
        let mut open: Option<SeqRange> = None;
        for entry in self.above(cut) {
            if !entry.complete() {
                ranges.extend(open.take());
                if ranges.len() >= limit {
                    return ranges;
                }
                continue;
            }
            let seq = entry.record.seq;
            let grown = open.map_or(SeqRange { first: seq, last: seq }, |range| SeqRange { last: seq, ..range });
            open = (entry.payload.is_some() || open.is_some()).then_some(grown);
        }
        ranges.extend(open);
        ranges
    }

    /// Seqs between two neighbours that no jump explains: lost to damage. At most `limit` ranges.
    #[must_use]
    pub fn gaps(&self, limit: usize) -> Vec<SeqRange> {
        let mut gaps = Vec::new();
        let mut previous = self.floor;
        for entry in &self.entries {
            let seq = entry.record.seq;
            if !entry.unbroken && !entry.record.op.may_jump() && seq != previous.next() && gaps.len() < limit {
                gaps.push(SeqRange { first: previous.next(), last: seq.prev() });
            }
            previous = seq;
        }
        gaps
    }

    /// Whether there are seqs beyond `cut` that a jump has gone over, and which it does not prove to be nobody's.
    #[must_use]
    pub fn led_past(&self, cut: Seq) -> bool {
        let before = std::iter::once(cut).chain(self.above(cut).map(|entry| entry.record.seq));
        self.above(cut).zip(before).any(|(entry, before)| !entry.unbroken && entry.record.seq != before.next())
    }
}

/// Whether `record` was written directly after the one with this seq and chain, where batch `open` is the last begun.
///
/// | op | cut may pass when |
/// |---|---|
/// | `BatchBegin` | never: only its complete batch takes the cut past it; but see [`History::pass_batches`] |
/// | `EpochStart` | its chain continues, it names that seq as the one before it, and no batch is to follow |
/// | `BatchEnd` | its chain continues, next seq, and it ends the batch that is open |
/// | others | its chain continues, next seq |
fn follows(record: &OrderRecord, before: (Seq, Chain), open: Option<Seq>) -> bool {
    if planted(Bug::GapAccepted) && !record.op.may_jump() {
        return true;
    }
    if record.chain_after(before.1) != record.chain && !planted(Bug::RecordUnchecked) {
        return false;
    }
    let next = record.seq == before.0.next();
    match record.op {
        Op::BatchBegin => false,
        Op::EpochStart => Seq(record.offset) == before.0 && record.length == 0,
        Op::BatchEnd => next && open == Some(Seq(record.offset)),
        _ => next,
    }
}

/// Whether both sides agree on what a writer's last start may have undone, once this record is applied; `None`: as before.
fn settled_by(op: Op) -> Option<bool> {
    match op {
        Op::EpochStart => Some(false),
        Op::BatchEnd => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::{Epoch, Volume};

    fn record(seq: u64, op: Op, offset: u64, previous: Chain) -> OrderRecord {
        OrderRecord {
            seq: Seq(seq),
            epoch: Epoch(1),
            volume: Volume(0),
            op,
            flags: 0,
            offset,
            length: if op == Op::EpochStart { 0 } else { 4096 },
            time_ns: seq,
            chain: Chain(0),
            payload_crc: 0,
        }
        .chained(previous)
    }

    fn writes(history: &mut History, count: u64) {
        for _ in 0..count {
            let next = record(history.tail().next().0, Op::Write, 0, history.tail_chain());
            assert_eq!(history.take(next), Ok(Intake::New));
        }
    }

    #[test]
    fn a_record_is_taken_once_and_a_different_one_never() {
        let mut history = History::after(Seq(0), Chain(0));
        writes(&mut history, 3);
        let second = history.get(Seq(2)).expect("taken").record;
        assert_eq!(history.take(second), Ok(Intake::Known));
        let other = OrderRecord { offset: 4096, ..second };
        assert_eq!(history.take(other), Err(Divergence::Differs { seq: Seq(2) }));
        let late = record(5, Op::Write, 0, history.tail_chain());
        assert_eq!(history.take(late), Err(Divergence::Gap { seq: Seq(5), expected: Seq(4) }));
        let foreign = record(4, Op::Write, 0, Chain(77));
        assert_eq!(history.take(foreign), Err(Divergence::Chain { seq: Seq(4) }));
    }

    #[test]
    fn a_record_lost_to_damage_is_taken_only_where_it_was() {
        let mut whole = History::after(Seq(0), Chain(0));
        writes(&mut whole, 6);
        let records: Vec<OrderRecord> = whole.above(Seq(0)).map(|entry| entry.record).collect();
        let mut damaged = History::after(Seq(0), Chain(0));
        for at in [0, 3, 5] {
            damaged.take_after_gap(records[at]);
        }
        let mut history = damaged.clone();
        assert!(history.could_fill(&records[1], None) && !history.could_fill(&records[2], None));
        assert!(history.could_fill(&records[2], Some(&records[1])), "once the one before it is filled in");
        assert!(
            history.could_fill(&records[4], Some(&records[2])) && !history.could_fill(&records[3], Some(&records[2]))
        );
        assert_eq!(history.len(), 3, "nothing was taken");
        assert!(!history.fill(records[2]), "what it continues is not here");
        assert!(!history.fill(records[3]), "it is here");
        assert!(!history.fill(OrderRecord { offset: 8192, ..records[1] }), "its chain is another");
        let begin = record(2, Op::BatchBegin, 0, records[0].chain);
        assert!(!history.fill(begin) && history.fill(records[1]));
        assert!(!history.get(Seq(4)).expect("behind the gap").unbroken, "seq 3 is still missing");
        assert!(history.fill(records[2]) && history.fill(records[4]));
        assert!(!history.fill(record(7, Op::Write, 0, records[5].chain)), "nothing is known behind it");
        history.entries.front_mut().expect("seq 1").unbroken = true;
        (1..=6).for_each(|seq| history.hold(Seq(seq), 0));
        assert_eq!((history.unbroken_from(Seq(0), Seq(9)), history.missing_len()), (Seq(6), 0));
        assert_eq!(history.gaps(9), []);
        let mut end = History::after(Seq(0), Chain(0));
        let begin = record(1, Op::BatchBegin, 0, Chain(0));
        let write = record(2, Op::Write, 0, begin.chain);
        end.take_after_gap(begin);
        end.take_after_gap(record(3, Op::BatchEnd, 1, write.chain));
        assert!(end.fill(write) && end.get(Seq(3)).expect("the end").unbroken);
    }

    #[test]
    fn an_epoch_start_is_passable_only_if_nothing_is_between_and_no_batch_is_to_follow() {
        let mut history = History::after(Seq(0), Chain(0));
        writes(&mut history, 3);
        let mut behind = history.clone();
        let start = record(100, Op::EpochStart, 3, history.tail_chain());
        assert_eq!(history.take(start), Ok(Intake::New));
        assert!(history.get(Seq(100)).expect("taken").unbroken && !history.led_past(Seq(0)));
        let ahead = record(100, Op::EpochStart, 2, behind.tail_chain());
        assert_eq!(behind.take(ahead), Ok(Intake::New));
        assert!(!behind.get(Seq(100)).expect("taken").unbroken, "record 3 is not in the writer's history");
        assert!(behind.led_past(Seq(3)) && behind.led_past(Seq(0)) && !behind.led_past(Seq(100)));
        let mut open = History::after(Seq(0), Chain(0));
        writes(&mut open, 3);
        let start = OrderRecord { length: 1, ..record(100, Op::EpochStart, 3, Chain(0)) }.chained(open.tail_chain());
        assert_eq!(open.take(start), Ok(Intake::New));
        assert!(!open.get(Seq(100)).expect("taken").unbroken, "what was written before may not be in its volumes");
    }

    #[test]
    fn the_begin_of_a_batch_is_passed_only_where_nothing_was_left_out_and_no_start_is_open() {
        for (jump, settled, promised) in
            [(0, true, 0), (1, true, 0), (0, false, 0), (0, false, 3), (0, false, 2), (1, true, 9)]
        {
            let mut history = History::after(Seq(0), Chain(0));
            history.floor_settled = settled;
            writes(&mut history, 2);
            let begin = record(3 + jump, Op::BatchBegin, 0, history.tail_chain());
            assert_eq!(history.take(begin), Ok(Intake::New));
            writes(&mut history, 1);
            [1, 2, 4 + jump].into_iter().for_each(|seq| history.hold(Seq(seq), 0));
            assert_eq!(history.unbroken_from(Seq(0), Seq(9)), Seq(2));
            history.pass_batches(Seq(promised));
            let passed = jump == 0 && (settled || promised >= 3);
            assert_eq!(history.unbroken_from(Seq(0), Seq(9)), if passed { Seq(4) } else { Seq(2) });
        }
    }

    /// Found by a trial of `dr::tests`: a promotion was killed behind its checkpoint there, and its own report could not be
    /// reached any more.
    #[test]
    fn the_end_of_a_batch_whose_begin_was_passed_and_forgotten_is_passed_with_it() {
        for (floor, passed) in [(3, true), (4, true), (2, false)] {
            let mut whole = History::after(Seq(0), Chain(0)).settled(true);
            writes(&mut whole, 2);
            let begin = record(3, Op::BatchBegin, 0, whole.tail_chain());
            assert_eq!(whole.take(begin), Ok(Intake::New));
            writes(&mut whole, 1);
            assert_eq!(whole.take(record(5, Op::BatchEnd, 3, whole.tail_chain())), Ok(Intake::New));
            writes(&mut whole, 1);
            // As a start reads it again.
            let mut history = History::after(Seq(floor), whole.chain_at(Seq(floor)));
            for entry in whole.above(Seq(floor)) {
                assert_eq!(history.take(entry.record), Ok(Intake::New));
                history.hold(entry.record.seq, 0);
            }
            assert!(history.unbroken_from(Seq(floor), Seq(9)) < Seq(5), "not by itself");
            history.pass_batches(Seq(0));
            assert_eq!(history.unbroken_from(Seq(floor), Seq(9)) == Seq(6), passed, "{floor}");
        }
    }

    #[test]
    fn a_start_of_the_writer_is_open_until_a_batch_is_complete() {
        let mut history = History::after(Seq(0), Chain(0));
        let ops = [
            (Op::EpochStart, 0, false),
            (Op::BatchBegin, 0, false),
            (Op::BatchEnd, 2, true),
            (Op::EpochStart, 3, false),
        ];
        for (seq, (op, offset, settled)) in (1..).zip(ops) {
            let next = record(seq, op, offset, history.tail_chain());
            assert_eq!(history.take(next), Ok(Intake::New));
            assert_eq!(history.settled_at(Seq(seq)), settled, "{op:?}");
            history.forget(Seq(seq));
            assert_eq!(history.settled_at(Seq(seq)), settled, "{op:?} forgotten");
        }
    }

    #[test]
    fn ranges_that_are_here_skip_what_is_missing() {
        let mut history = History::after(Seq(0), Chain(0));
        writes(&mut history, 5);
        for seq in [2, 3, 5] {
            history.hold(Seq(seq), 0);
        }
        let range = |first, last| SeqRange { first: Seq(first), last: Seq(last) };
        assert_eq!(history.have_above(Seq(0), 10), vec![range(2, 3), range(5, 5)]);
        assert_eq!(history.missing_above(Seq(0)), 2);
        assert_eq!(history.first_missing_above(Seq(1)), Some(Seq(4)));
        history.lose(Seq(2));
        assert_eq!(history.missing_bytes(Seq(0), Seq(4), u64::MAX).0, 2 * entry_bytes(4096));
    }

    #[test]
    fn what_is_forgotten_is_known_all_the_same() {
        let mut history = History::after(Seq(0), Chain(0));
        writes(&mut history, 5);
        let old = history.get(Seq(2)).expect("there").record;
        history.forget(Seq(3));
        assert_eq!((history.floor(), history.len(), history.missing_len()), (Seq(3), 2, 2));
        assert_eq!(history.take(old), Ok(Intake::Known));
        assert_eq!(history.next_after(Seq(0)).expect("there").record.seq, Seq(4));
    }

    /// What a list of its own knows of each record above the floor: bytes of its payload in the spool (0: it has none), and
    /// whether that is here.
    type List = BTreeMap<u64, (u64, bool)>;

    /// Seqs in ascending order as ranges of neighbours.
    fn ranges_of(seqs: impl Iterator<Item = u64>) -> Vec<SeqRange> {
        let mut ranges: Vec<SeqRange> = Vec::new();
        for seq in seqs.map(Seq) {
            match ranges.last_mut() {
                Some(range) if range.last.0 + 1 == seq.0 => range.last = seq,
                _ => ranges.push(SeqRange { first: seq, last: seq }),
            }
        }
        ranges
    }

    fn missing_is_as_listed(history: &History, list: &List, low: u64, high: u64) {
        let missing =
            || list.iter().filter(|(_, (bytes, here))| *bytes > 0 && !here).map(|(seq, (bytes, _))| (*seq, *bytes));
        let above = || missing().filter(|(seq, _)| *seq > low);
        assert_eq!(history.missing_len(), missing().count());
        assert_eq!(history.missing_total(), missing().map(|(_, bytes)| bytes).sum::<u64>());
        assert_eq!(history.missing_above(Seq(low)), above().count());
        assert_eq!(history.first_missing_above(Seq(low)), above().next().map(|(seq, _)| Seq(seq)));
        assert_eq!(history.is_missing(Seq(high)), missing().any(|(seq, _)| seq == high));
        let ranges = ranges_of(above().map(|(seq, _)| seq));
        for limit in 1..4 {
            let wanted: Vec<SeqRange> = ranges.iter().copied().take(limit).collect();
            assert_eq!(history.missing_ranges_above(Seq(low), limit), wanted);
        }
        let between = || above().filter(|(seq, _)| *seq < high).map(|(_, bytes)| bytes);
        let (sum, longest) = (between().sum(), between().max().unwrap_or(0));
        assert_eq!(history.missing_bytes(Seq(low), Seq(high), u64::MAX), (sum, longest));
        for enough in [0, sum / 2, sum] {
            let (got, _) = history.missing_bytes(Seq(low), Seq(high), enough);
            assert!(got == sum || enough < got && got < sum, "{got} of {sum} when {enough} is enough");
        }
    }

    fn here_is_as_listed(history: &History, list: &List, low: u64, high: u64) {
        let all = history.have_above(Seq(low), usize::MAX);
        for limit in 1..4 {
            assert_eq!(history.have_above(Seq(low), limit), all[..limit.min(all.len())]);
        }
        assert!(all.iter().all(|range| list.get(&range.first.0).is_some_and(|it| it.1)), "each begins with a payload");
        for (&seq, &(bytes, here)) in list.range(low + 1..) {
            let told = all.iter().filter(|range| range.first.0 <= seq && seq <= range.last.0).count();
            assert!(told == usize::from(here) || bytes == 0 && told < 2, "seq {seq}: {all:?}");
        }
        let next = list.range(low + 1..).next().map(|(seq, _)| Seq(*seq));
        assert_eq!(history.next_after(Seq(low)).map(|entry| entry.record.seq), next);
        assert_eq!(history.get(Seq(high)).is_some(), list.contains_key(&high));
        let complete = list.range(low + 1..).take_while(|(seq, it)| **seq <= high && (it.0 == 0 || it.1)).last();
        assert_eq!(history.unbroken_from(Seq(low), Seq(high)), Seq(complete.map_or(low, |(seq, _)| *seq)));
    }

    proptest::proptest! {
        #[test]
        fn what_is_here_and_what_is_missing_is_as_a_list_says(
            steps in proptest::collection::vec((0..7u8, proptest::prelude::any::<u8>()), 1..40),
            from in 0..60u64,
            length in 0..60u64,
        ) {
            let (mut history, mut list) = (History::after(Seq(0), Chain(0)), List::new());
            for (what, number) in steps {
                let number = u64::from(number);
                let (tail, chain) = (history.tail(), history.tail_chain());
                let pick = Seq(history.floor().0 + number % (tail.0 - history.floor().0 + 1));
                let next = match what {
                    0..=1 => OrderRecord { length: (1 + number) * 512, ..record(tail.0 + 1, Op::Write, 0, chain) },
                    2 => record(tail.0 + 1, Op::Trim, 0, chain),
                    3 => record(tail.0 + 1 + number % 3, Op::EpochStart, tail.0, chain),
                    4 | 5 => {
                        if let Some(it) = list.get_mut(&pick.0).filter(|it| it.0 > 0) {
                            history.hold(pick, 4096);
                            it.1 = true;
                        }
                        continue;
                    }
                    _ if number % 2 == 0 => {
                        history.lose(pick);
                        list.entry(pick.0).and_modify(|it| it.1 = false);
                        continue;
                    }
                    _ => {
                        history.forget(pick);
                        list = list.split_off(&(pick.0 + 1));
                        continue;
                    }
                };
                let next = OrderRecord { chain: Chain(0), ..next }.chained(chain);
                assert_eq!(history.take(next), Ok(Intake::New));
                list.insert(next.seq.0, (if what < 2 { entry_bytes(next.length) } else { 0 }, false));
            }
            assert_eq!(history.len(), list.len());
            let low = history.floor().0 + from;
            missing_is_as_listed(&history, &list, low, low + length);
            here_is_as_listed(&history, &list, low, low + length);
        }
    }
}
