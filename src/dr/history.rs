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

use std::collections::{BTreeMap, BTreeSet, VecDeque};

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
    /// Begin of the last batch in the history.
    batch: Option<Seq>,
    /// The records that end batches, by their begins.
    ends: BTreeMap<Seq, OrderRecord>,
    /// The records that say how large a volume is from there on: which one, and bytes.
    resizes: BTreeMap<Seq, (Volume, u64)>,
    /// Payloads in the spool whose orders are damaged in the journal, or were lost before they were durable, until those are
    /// known from elsewhere: position.
    orphans: BTreeMap<Seq, (OrderRecord, u64)>,
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

    /// Takes in records that are missing here and are known from elsewhere, in ascending order: each if it continues the one
    /// right before it. What begins, ends or starts something only before the last batch that was begun here: of later ones
    /// something may have followed that was decided without it. Which of them were taken. Costs one pass over the history.
    pub fn fill(&mut self, records: &[OrderRecord]) -> Vec<bool> {
        let mut taken = vec![false; records.len()];
        // Mostly there is nothing to fill in.
        if !records.iter().any(|record| self.index(record.seq).is_err_and(|index| index < self.entries.len())) {
            return taken;
        }
        let mut known = std::mem::take(&mut self.entries);
        self.entries.reserve(known.len() + records.len());
        let (mut begun, mut filled) = (None, false);
        for (record, taken) in records.iter().zip(&mut taken) {
            while let Some(entry) = known.pop_front_if(|entry| entry.record.seq < record.seq) {
                self.go_on(entry, &mut begun, std::mem::take(&mut filled));
            }
            let Some(next) = known.front() else { break };
            if next.record.seq == record.seq || !self.continues(record, self.before(self.entries.len())) {
                continue;
            }
            let unbroken = follows(record, self.before(self.entries.len()), begun);
            let payload = self.payload_of(record);
            self.note_resize(record);
            self.go_on(Entry { record: *record, unbroken, payload }, &mut begun, false);
            (*taken, filled) = (true, true);
        }
        while let Some(entry) = known.pop_front() {
            self.go_on(entry, &mut begun, std::mem::take(&mut filled));
        }
        taken
    }

    /// The next entry of a history that is put together anew; `begun`: the last batch that was; `judged`: what is before it was
    /// not there until now.
    fn go_on(&mut self, mut entry: Entry, begun: &mut Option<Seq>, judged: bool) {
        if judged {
            entry.unbroken = follows(&entry.record, self.before(self.entries.len()), *begun);
        }
        if entry.record.op == Op::BatchBegin {
            *begun = Some(entry.record.seq);
        }
        self.entries.push_back(entry);
    }

    /// Whether [`History::fill`] would take it once `last`, the last of those before it that are to be filled in, is.
    #[must_use]
    pub fn could_fill(&self, record: &OrderRecord, last: Option<&OrderRecord>) -> bool {
        let Err(index) = self.index(record.seq) else { return false };
        let known = self.before(index);
        let before = last.map(|last| (last.seq, last.chain)).filter(|last| last.0 > known.0).unwrap_or(known);
        index < self.entries.len() && self.continues(record, before)
    }

    /// Whether a record that is missing here may be filled in behind the one with this seq and chain.
    fn continues(&self, record: &OrderRecord, before: (Seq, Chain)) -> bool {
        let plain = !record.op.may_jump() && record.op != Op::BatchEnd;
        let decided = plain || self.batch.is_some_and(|begun| record.seq < begun);
        decided && record.seq == before.0.next() && record.chain == record.chain_after(before.1)
    }

    /// Seq and chain of the entry before `index`, or of the floor.
    fn before(&self, index: usize) -> (Seq, Chain) {
        index.checked_sub(1).map_or((self.floor, self.floor_chain), |at| {
            let record = &self.entries[at].record;
            (record.seq, record.chain)
        })
    }

    fn push(&mut self, record: OrderRecord, unbroken: bool) {
        if record.op == Op::BatchBegin {
            self.batch = Some(record.seq);
        }
        if record.op == Op::BatchEnd && self.batch == Some(Seq(record.offset)) {
            self.ends.insert(Seq(record.offset), record);
        }
        let payload = self.payload_of(&record);
        self.note_resize(&record);
        self.entries.push_back(Entry { record, unbroken, payload });
        self.tail = record.seq;
        self.chain = record.chain;
    }

    /// Keeps a payload at `pos` of the spool whose order the journal has not. Whether there was none of that seq.
    pub fn adopt(&mut self, record: OrderRecord, pos: u64) -> bool {
        let new = !self.orphans.contains_key(&record.seq);
        self.orphans.entry(record.seq).or_insert((record, pos));
        new
    }

    /// Lets go of payloads whose orders did not turn up: their positions.
    pub fn disown(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.orphans).into_values().map(|(_, pos)| pos).collect()
    }

    /// The same of those whose place in the order is taken.
    pub fn disown_passed(&mut self) -> Vec<u64> {
        let beyond = self.orphans.split_off(&self.tail.next());
        std::mem::replace(&mut self.orphans, beyond).into_values().map(|(_, pos)| pos).collect()
    }

    /// Where the payload of a new record is, if it is here already; else it is missed.
    fn payload_of(&mut self, record: &OrderRecord) -> Option<u64> {
        let here = self.orphans.get(&record.seq).filter(|(of, _)| of == record).map(|(_, pos)| *pos);
        if here.is_some() {
            self.orphans.remove(&record.seq);
        } else if record.op.has_payload() {
            self.miss(record.seq, entry_bytes(record.payload_bytes()));
        }
        here
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

    /// Whether every order after `after` and up to `seq` is known here. `lost`: records that may follow a gap, and before which
    /// orders were lost.
    #[must_use]
    pub fn known_between(&self, after: Seq, seq: Seq, lost: &BTreeSet<Seq>) -> bool {
        let mut before = (after, self.chain_at(after));
        self.above(after).take_while(|entry| entry.record.seq <= seq).all(|Entry { record, .. }| {
            let next = record.seq == before.0.next() && record.chain_after(before.1) == record.chain;
            let jumps = record.op.may_jump() && !lost.contains(&record.seq);
            before = (record.seq, record.chain);
            next || jumps
        })
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
        self.ends.retain(|_, end| end.seq > seq);
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
        Some((begin, self.end_of(begin)))
    }

    /// The record that ends a batch, if that is known.
    #[must_use]
    pub fn end_of(&self, begin: Seq) -> Option<OrderRecord> {
        self.ends.get(&begin).copied()
    }

    /// Batches that began after `seq` and whose ends are known: begin and end.
    pub fn ended_after(&self, seq: Seq) -> impl Iterator<Item = (Seq, OrderRecord)> {
        self.ends.range(seq.next()..).map(|(begin, end)| (*begin, *end))
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

    /// What is missing here above `cut` and before a batch, which therefore has to bring what it changes. What a writer ordered that
    /// lost its power since is nobody's: of what it had done it knew its map, which the batch brings; what it had not begun was
    /// never there, even if table and ring have it.
    pub fn missing_before(&self, begin: Seq, cut: Seq) -> impl Iterator<Item = &Entry> {
        let before = move |entry: &&Entry| entry.record.seq < begin;
        let anew = self.above(cut).take_while(before).filter(|entry| entry.record.starts_anew()).last();
        let owed = self.above(anew.map_or(cut, |entry| entry.record.seq)).take_while(before);
        owed.filter(|entry| self.is_missing(entry.record.seq))
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
#[path = "history_tests.rs"]
mod tests;
