//! Owns the judgement: what the invariants I1 to I7 demand of what the simulator saw.
//!
//! The ledger knows which order records and payloads are durable where, by looking into the stable bytes of
//! the simulated disks whenever some become stable, never by asking a machine. The checks themselves are
//! plain functions over ledger, oracle and outcome, so that a test can show that each one fails when it must.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use farshore::core::ids::{Seq, SeqRange, Volume};
use farshore::core::modes::{Ack, LagMax, Protect, Require};
use farshore::core::op::Op;
use farshore::format::record::OrderRecord;
use farshore::format::spool::{ENTRY_HEADER_BYTES, EntryHeader, Kind};
use farshore::limits::RECORD_BYTES;

use crate::oracle::{Holders, Images, Oracle, Promise};
use crate::workload::Ask;

/// An invariant that did not hold, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub text: String,
}

pub type Verdict = Result<(), Violation>;

impl Violation {
    pub fn new(invariant: &'static str, text: impl Into<String>) -> Violation {
        Violation { invariant, text: text.into() }
    }
}

/// Order records found in stable bytes: where each stands.
#[derive(Clone, Debug, Default)]
pub struct Records(HashMap<Seq, u64, SeqHash>);

impl Records {
    /// Bytes `offset..offset + length` of `stable` have become durable.
    pub fn settled(&mut self, stable: &[u8], offset: u64, length: u64) {
        let start = (offset as usize).next_multiple_of(RECORD_BYTES);
        let end = ((offset + length) as usize).min(stable.len());
        for at in (start..end).step_by(RECORD_BYTES) {
            let Some(slot) = stable.get(at..at + RECORD_BYTES) else { break };
            if slot[14] == 0 || self.known(slot, at as u64) {
                continue;
            }
            if let Ok(record) = OrderRecord::decode(slot) {
                self.0.insert(record.seq, at as u64);
            }
        }
    }

    /// Whether a record of this seq was found here before: [`Records::holds`] compares its bytes each time.
    fn known(&self, slot: &[u8], at: u64) -> bool {
        let seq = Seq(u64::from_le_bytes(slot[..8].try_into().expect("eight bytes")));
        self.0.get(&seq) == Some(&at)
    }

    /// Whether a record of this seq ever stood here, whole and durable.
    pub fn had(&self, seq: Seq) -> bool {
        self.0.contains_key(&seq)
    }

    /// Whether the record of this seq stands in the stable bytes now, byte for byte.
    pub fn holds(&self, stable: &[u8], seq: Seq, encoded: &[u8; RECORD_BYTES]) -> bool {
        let Some(&at) = self.0.get(&seq) else { return false };
        let at = at as usize;
        stable.get(at..at + RECORD_BYTES).is_some_and(|slot| slot == encoded)
    }
}

/// Seqs differ in their low bits: spreading those is all that a table of them needs.
#[derive(Clone, Copy, Default)]
pub struct SeqHasher(u64);

pub type SeqHash = BuildHasherDefault<SeqHasher>;

impl Hasher for SeqHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

/// Payloads found whole in stable bytes of a log of entries.
#[derive(Clone, Debug, Default)]
pub struct Payloads {
    payloads: HashSet<Seq, SeqHash>,
    /// Chunks by their batch and index.
    chunks: HashSet<(Seq, u64), SeqHash>,
}

/// The entry of a log with this nonce at `at`, if it is whole.
pub fn whole_entry(bytes: &[u8], at: usize, nonce: u64) -> Option<EntryHeader> {
    let data_at = at + ENTRY_HEADER_BYTES;
    let header = EntryHeader::decode(bytes.get(at..data_at)?, nonce).ok()?;
    let data = bytes.get(data_at..data_at + header.data_bytes() as usize)?;
    header.verify_data(data).ok().map(|()| header)
}

impl Payloads {
    /// Bytes `offset..offset + length` of a log with this nonce have become durable.
    pub fn settled(&mut self, stable: &[u8], nonce: u64, offset: u64, length: u64) {
        let start = (offset as usize).next_multiple_of(512);
        for at in (start..(offset + length) as usize).step_by(512) {
            let Some(header) = whole_entry(stable, at, nonce) else { continue };
            match header.kind {
                Kind::Payload => self.payloads.insert(header.record.seq),
                Kind::Chunk => self.chunks.insert((header.record.seq, header.index)),
            };
        }
    }

    /// Whether the payload of `seq` ever stood here whole and durable.
    pub fn had(&self, seq: Seq) -> bool {
        self.payloads.contains(&seq)
    }

    /// The same of a chunk of a batch.
    pub fn had_chunk(&self, batch: Seq, index: u64) -> bool {
        self.chunks.contains(&(batch, index))
    }
}

/// I3: what was durable when a write was acknowledged, against what its mode promises.
pub fn check_promise(protect: Protect, require: Require, record: &OrderRecord, promise: Promise) -> Verdict {
    let Promise { holders: at, full, .. } = promise;
    let no_payload = record.payload_bytes() == 0;
    // Record and payload at DR are at least as good as anything the auxiliary could hold.
    let crossed = at.dr && (at.dr_payload || no_payload);
    let kept = crossed
        || match protect {
            Protect::Async => true,
            Protect::Near => at.aux,
            Protect::Order => at.aux && at.dr,
            Protect::Bunker => at.aux && (at.aux_payload || at.dr_payload || no_payload),
            Protect::Sync => false,
        };
    let degraded = match require {
        Require::Both => false,
        Require::Any => at.aux || at.dr,
        Require::None => true,
    };
    if kept || (!full && degraded) {
        return Ok(());
    }
    let state = if full { "in full force" } else { "degraded" };
    let text = format!("seq {} acknowledged under {protect:?}/{require:?} ({state}) with only {at:?}", record.seq);
    Err(Violation::new("I3", text))
}

/// What a promotion said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub cut: Seq,
    pub tail: Seq,
    pub missing: Vec<Lost>,
    /// The status table was read.
    pub aux_read: bool,
    /// Seqs said to have existed, and to be lost, without more.
    pub unknown: Vec<SeqRange>,
    /// The report says that it is not complete.
    pub incomplete: bool,
    /// It says so because the status table was left out.
    pub without_table: bool,
    /// It says so because the status table was blank.
    pub blank: bool,
    /// It says that what these wrote may be in the image, whole or in part.
    pub in_part: Option<SeqRange>,
    /// The last order that it claims to know of, where it says that others may have come.
    pub known_until: Option<Seq>,
}

/// What a promotion can be held to.
pub struct Reach<'a> {
    /// What was promised after it is of no concern (a plan is made while the primary goes on).
    pub until_ns: u64,
    /// Whether a place that the promotion read has this record.
    pub knowable: &'a dyn Fn(&OrderRecord) -> bool,
    /// Whether what the auxiliary held of a seq was damaged there: it may be lost, and then that is said (I8).
    pub rotten: &'a dyn Fn(Seq) -> bool,
    /// Whether the payload that DR held of a seq was damaged there, and nobody knew when a write was asked for then.
    pub rotten_payload: &'a dyn Fn(Seq, u64) -> bool,
    /// Whether the auxiliary's ring has the payload of a seq, and says where.
    pub in_ring: &'a dyn Fn(Seq) -> bool,
    /// Whether the group's policy at a full status table gave this record up (`overflow = coalesce`).
    pub given_up: &'a dyn Fn(Seq) -> bool,
    /// Whether it was forced to stop before a resize for which there was no room: what follows is left out, and listed.
    pub stopped: bool,
}

/// One line of a loss report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    pub seq: Seq,
    pub volume: Volume,
    pub op: String,
    pub offset: u64,
    pub length: u64,
}

/// I5: the images are the state after seqs 1..cut, byte for byte.
///
/// At a start of the primary with nothing after it, that is also what its predecessor wrote: a write that DR was sent and
/// a killed primary had not made on its own disk is in the one history, and taken back by the first batch of the other.
pub struct Prefix<'a> {
    oracle: &'a Oracle,
    cut: Seq,
    /// Made once for all images that are held against it.
    want: Images,
    /// Bytes of it that are not known.
    unsure: Option<Images>,
}

impl Prefix<'_> {
    pub fn of(oracle: &Oracle, cut: Seq) -> Prefix<'_> {
        Prefix { oracle, cut, want: oracle.state_after(cut), unsure: oracle.unsure_after(cut) }
    }

    /// What these wrote, or a start among them has found taken back, may be in the images or not, whole or in part: a site
    /// says so of itself when it has lost them.
    pub fn but_for(mut self, seqs: Option<SeqRange>) -> Self {
        let Some(seqs) = seqs else { return self };
        let unsure = self.unsure.get_or_insert_with(|| self.want.iter().map(|image| vec![0; image.len()]).collect());
        let (known, old) = self.oracle.changes(seqs.first.prev(), seqs.last);
        for extent in known.iter().chain(&old).filter_map(OrderRecord::extent) {
            let image = &mut unsure[extent.volume.0 as usize];
            let upto = ((extent.offset + extent.length) as usize).min(image.len());
            image[(extent.offset as usize).min(upto)..upto].fill(1);
        }
        for base in self.oracle.bases_between(seqs.first.prev(), seqs.last) {
            for ((unsure, want), base) in unsure.iter_mut().zip(&self.want).zip(base) {
                let bytes = unsure.iter_mut().zip(want).zip(base);
                bytes.filter(|((_, want), base)| want != base).for_each(|((unsure, _), _)| *unsure = 1);
            }
        }
        self
    }

    pub fn check(&self, images: &[&[u8]]) -> Verdict {
        let Prefix { oracle, cut, .. } = *self;
        if let Some(unsure) = &self.unsure {
            let known: Images = images.iter().zip(&self.want).zip(unsure).map(known_as).collect();
            let views: Vec<&[u8]> = known.iter().map(Vec::as_slice).collect();
            return compare(oracle, cut, &views, &self.want);
        }
        let verdict = compare(oracle, cut, images, &self.want);
        let start = oracle.record(cut).is_some_and(|record| record.op == Op::EpochStart);
        let before = oracle.back_from(cut, Seq(0)).nth(1).map(|record| record.seq).filter(|_| start);
        match before {
            Some(before) if verdict.is_err() => compare(oracle, before, images, &oracle.state_after(before)),
            _ => verdict,
        }
    }
}

/// An image with what is not known of it as it would be right.
fn known_as(((have, want), unsure): ((&&[u8], &Vec<u8>), &Vec<u8>)) -> Vec<u8> {
    let mut known = have.to_vec();
    known
        .iter_mut()
        .zip(want)
        .zip(unsure)
        .filter(|(_, unsure)| **unsure > 0)
        .for_each(|((have, want), _)| *have = *want);
    known
}

fn compare(oracle: &Oracle, cut: Seq, images: &[&[u8]], want: &Images) -> Verdict {
    for (index, (have, want)) in images.iter().zip(want).enumerate() {
        let volume = Volume(index as u16);
        if *have == &want[..] {
            continue;
        }
        let Some(at) = have.iter().zip(want).position(|(a, b)| a != b) else {
            let text = format!("volume {index} has {} bytes, after seq {cut} it has {}", have.len(), want.len());
            return Err(Violation::new("I5", text));
        };
        let differing = have.iter().zip(want).filter(|(a, b)| a != b).count();
        let piece = &have[at..(at + 64).min(have.len())];
        let text = format!(
            "volume {index} differs from the state after seq {cut} in {differing} bytes from byte {at} on: there should \
             be {}, there is {}",
            oracle.writer_of(cut, volume, at as u64),
            oracle.source_of(volume, at as u64, piece)
        );
        return Err(Violation::new("I5", text));
    }
    Ok(())
}

/// Whether the last `lag` orders are within a bound: what came while DR had no copy yet may be more.
pub fn within(oracle: &Oracle, lag: u64, most: LagMax) -> bool {
    let floor = Seq(oracle.tail().0.saturating_sub(lag));
    let changed = oracle.back_from(oracle.tail(), floor).filter_map(OrderRecord::extent).map(|extent| extent.length);
    most.writes.is_none_or(|most| lag <= most) && most.bytes.is_none_or(|most| changed.sum::<u64>() <= most)
}

/// I9: no more was acknowledged and is not in the image than the bound on the lag allows.
pub fn check_lag(oracle: &Oracle, cut: Seq, most: LagMax) -> Verdict {
    let lost: Vec<&OrderRecord> =
        oracle.back_from(oracle.tail(), cut).filter(|record| oracle.is_acked(record.seq)).collect();
    let changed: Vec<u64> = lost.iter().filter_map(|record| record.extent()).map(|extent| extent.length).collect();
    let (bytes, alone) = (changed.iter().sum::<u64>(), changed.len() < 2);
    if most.writes.is_some_and(|most| lost.len() as u64 > most) || most.bytes.is_some_and(|most| bytes > most && !alone)
    {
        let text = format!("{} acknowledged writes, {bytes} bytes, are lost; bound: {most:?}", lost.len());
        return Err(Violation::new("I9", text));
    }
    Ok(())
}

/// I4: a report says that it does not know everything where that is so in this mode, by what could be read, and nowhere else.
pub fn check_admitted(protect: Protect, ack: Ack, require: Require, outcome: &Outcome) -> Verdict {
    let everything_at_dr = require == Require::Both && matches!(protect, Protect::Order | Protect::Sync);
    let without_table = !outcome.aux_read && !everything_at_dr;
    let blank = outcome.blank && !everything_at_dr;
    let hidden = protect == Protect::Async || ack == Ack::Flush || require == Require::None;
    let open = without_table || blank || hidden;
    let said = (outcome.without_table, outcome.blank, outcome.known_until.is_some());
    if said == (without_table, blank, open) && (outcome.incomplete || !without_table) {
        return Ok(());
    }
    let text =
        format!("under {protect:?}/{ack:?}/{require:?} the report admits {said:?}, which does not fit: {outcome:?}");
    Err(Violation::new("I4", text))
}

/// I4: the loss report is exactly the volume-changing records in (cut, tail] of the history that ends there,
/// and every acknowledged write that DR or the table that was read held is in the image or in the report.
///
pub fn check_report(oracle: &Oracle, protect: Protect, outcome: &Outcome, reach: &Reach<'_>) -> Verdict {
    let (known, old) = oracle.changes(outcome.cut, outcome.tail);
    let possible: BTreeMap<Seq, &OrderRecord> = known.iter().chain(&old).map(|r| (r.seq, r)).collect();
    let got: BTreeMap<Seq, &Lost> = outcome.missing.iter().map(|l| (l.seq, l)).collect();
    let unknown = |seq: Seq| outcome.unknown.iter().any(|range| (range.first..=range.last).contains(&seq));
    let wrong = |text: String| Err(Violation::new("I4", text));
    if got.len() != outcome.missing.len() {
        return wrong("a write is listed twice in the loss report".into());
    }
    for range in &outcome.unknown {
        if let Some(seq) = got.range(range.first..=range.last).next().map(|(seq, _)| seq) {
            return wrong(format!("seq {seq} is listed and said to be unknown ({range:?})"));
        }
        if range.last > outcome.tail || range.first <= outcome.cut {
            return wrong(format!("{range:?} is said to be unknown, cut {}, tail {}", outcome.cut, outcome.tail));
        }
        if !oracle.gave_out(*range) {
            return wrong(format!("{range:?} is said to be unknown and was never given out"));
        }
    }
    for (seq, lost) in &got {
        let Some(record) = possible.get(seq) else {
            return wrong(format!("the loss report lists {lost:?}, which is no lost write"));
        };
        let same = (lost.volume, lost.op.as_str(), lost.offset, lost.length)
            == (record.volume, record.op.word(), record.offset, record.length);
        if !same {
            return wrong(format!("the loss report says {lost:?} of {record:?}"));
        }
    }
    let said = |seq: Seq| (reach.rotten)(seq) && (unknown(seq) || outcome.incomplete);
    let left_out = |r: &&OrderRecord| !got.contains_key(&r.seq) && (reach.knowable)(r) && !said(r.seq);
    if let Some(record) = known.iter().find(left_out) {
        return wrong(format!("the loss report (cut {}, tail {}) leaves out {record:?}", outcome.cut, outcome.tail));
    }
    let before_jump = old.iter().map(|record| record.seq).max().unwrap_or_default();
    // A payload that cannot be had holds back what comes after it.
    let spoiled = |seq: Seq| oracle.back_from(seq, outcome.cut).any(|record| (reach.rotten)(record.seq));
    let spoiled_at_dr = |seq: Seq, asked_ns: u64| {
        oracle.back_from(seq, outcome.cut).any(|record| (reach.rotten_payload)(record.seq, asked_ns))
    };
    let gone = |seq: Seq| (reach.rotten_payload)(seq, 0) && !(reach.in_ring)(seq);
    let gone_at_both = |seq: Seq| oracle.back_from(seq, outcome.cut).any(|record| gone(record.seq));
    for request in &oracle.requests {
        let (Some(promise), Some(seq)) = (request.promise, request.seq) else { continue };
        if promise.at_ns >= reach.until_ns {
            continue;
        }
        if (reach.given_up)(seq) && unknown(seq) {
            continue;
        }
        let rotten = !promise.holders.dr && (reach.rotten)(seq);
        if rotten && (unknown(seq) || outcome.incomplete) {
            continue;
        }
        let known = promise.holders.dr || (promise.holders.aux && outcome.aux_read);
        if known && seq > outcome.cut && !got.contains_key(&seq) {
            return wrong(format!(
                "seq {seq}, promised at {} ns and held by {:?}, is neither in the image (cut {}) nor in the report \
                 (tail {})",
                promise.at_ns, promise.holders, outcome.cut, outcome.tail
            ));
        }
        let beyond = outcome.known_until.is_some_and(|until| seq > until);
        if seq > outcome.cut && !got.contains_key(&seq) && !unknown(seq) && !beyond {
            return wrong(format!(
                "seq {seq}, held by {:?}, is lost, and the report (cut {}, tail {}) neither lists it nor calls it unknown ({:?})",
                promise.holders, outcome.cut, outcome.tail, outcome.known_until
            ));
        }
        let nothing_lost = match protect {
            // Beside the primary only DR has the payloads: one that a bit flips in is lost with the primary, and holds back
            // what comes after it. That is known, and listed. What is asked for after the start that finds it is not.
            Protect::Sync => promise.full && !spoiled_at_dr(seq, request.submitted_ns),
            // A primary that came back from a loss of power goes on after a gap in the seqs, and DR with it: what only
            // the table knew from before has no place in DR's history any more, until the batch that it then makes is
            // complete. Lost before that, it is lost a second time; the report lists what that costs.
            // A payload that DR had may have left the ring, and be damaged at DR: known, and listed.
            Protect::Bunker => {
                promise.full && outcome.aux_read && !spoiled(seq) && !gone_at_both(seq) && seq > before_jump
            }
            _ => false,
        };
        if nothing_lost && seq > outcome.cut && !reach.stopped {
            return wrong(format!("seq {seq}, acknowledged in full {protect:?}, is lost: the cut is {}", outcome.cut));
        }
    }
    Ok(())
}

/// I8: whatever a report claims not to know, what it lists was written so.
pub fn check_listed(oracle: &Oracle, outcome: &Outcome) -> Verdict {
    for lost in &outcome.missing {
        let same = oracle.record(lost.seq).is_some_and(|record| {
            (lost.volume, lost.op.as_str(), lost.offset, lost.length)
                == (record.volume, record.op.word(), record.offset, record.length)
        });
        if !same {
            return Err(Violation::new("I8", format!("the loss report lists {lost:?}, which nobody wrote")));
        }
    }
    Ok(())
}

/// I3 at the primary itself: what was acknowledged is on the local disk, unless a later write overlaps it.
pub fn check_local(oracle: &Oracle, number: usize, image: &[u8]) -> Verdict {
    let request = &oracle.requests[number];
    let Some((offset, length)) = request.ask.range() else { return Ok(()) };
    let have = &image[offset as usize..(offset + length) as usize];
    let whole = match &request.ask {
        Ask::Write { data, .. } => have == &data[..],
        _ => have.iter().all(|&b| b == 0),
    };
    let later = || {
        let overlaps = |other: &crate::oracle::Request| {
            let (o, l) = other.ask.range()?;
            Some(other.volume == request.volume && o < offset + length && offset < o + l)
        };
        oracle.requests.iter().enumerate().rev().any(|(n, other)| {
            n != number && overlaps(other).unwrap_or(false) && { other.seq.is_some() && other.seq > request.seq }
        })
    };
    if whole || later() {
        return Ok(());
    }
    let at = match &request.ask {
        Ask::Write { data, .. } => have.iter().zip(data).position(|(a, b)| a != b),
        _ => have.iter().position(|&b| b != 0),
    };
    let at = at.unwrap_or(0);
    let text = format!(
        "request {number} (seq {:?}, {length} bytes at {offset}) is acknowledged and not on the disk: byte {at} of it is \
         from {}",
        request.seq,
        oracle.source_of(request.volume, offset + at as u64, &have[at..(at + 16).min(have.len())])
    );
    Err(Violation::new("I3", text))
}

/// What holds a record, by the ledger.
pub fn holders(aux: bool, dr: bool, aux_payload: bool, dr_payload: bool) -> Holders {
    Holders { aux, dr, aux_payload, dr_payload }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::content;
    use farshore::core::ids::{Chain, Epoch};

    fn record(seq: u64, offset: u64, data: &[u8]) -> OrderRecord {
        OrderRecord {
            seq: Seq(seq),
            epoch: Epoch(1),
            volume: Volume(0),
            op: Op::Write,
            flags: 0,
            offset,
            length: data.len() as u64,
            time_ns: 0,
            chain: Chain(0),
            payload_crc: crc32fast::hash(data),
        }
    }

    /// Three acknowledged writes of 512 bytes, side by side.
    fn scene() -> Oracle {
        let mut oracle = Oracle::new(vec![vec![0; 4096]]);
        for seq in 1..=3 {
            let data = content(seq, 512);
            let number =
                oracle.submit(seq, Volume(0), Ask::Write { offset: seq * 512, data: data.clone(), fua: false });
            oracle.saw(&record(seq, seq * 512, &data)).expect("in order");
            oracle.requests[number].acked_ns = Some(9);
            oracle.requests[number].promise =
                Some(Promise { at_ns: 9, holders: holders(true, seq < 3, false, false), full: true });
        }
        oracle
    }

    fn outcome(cut: u64, tail: u64, missing: &[u64]) -> Outcome {
        let lost =
            |&seq: &u64| Lost { seq: Seq(seq), volume: Volume(0), op: "write".into(), offset: seq * 512, length: 512 };
        Outcome {
            in_part: None,
            cut: Seq(cut),
            tail: Seq(tail),
            missing: missing.iter().map(lost).collect(),
            aux_read: true,
            unknown: Vec::new(),
            incomplete: false,
            without_table: false,
            blank: false,
            known_until: None,
        }
    }

    #[test]
    fn exact_report_passes_and_every_other_one_fails() {
        let oracle = scene();
        let reach = Reach {
            until_ns: u64::MAX,
            knowable: &|_| true,
            given_up: &|_| false,
            rotten: &|_| false,
            rotten_payload: &|_, _| false,
            in_ring: &|_| false,
            stopped: false,
        };
        let check = |o: &Outcome| check_report(&oracle, Protect::Order, o, &reach);
        assert!(check(&outcome(1, 3, &[2, 3])).is_ok());
        assert!(check(&outcome(3, 3, &[])).is_ok());
        assert!(check(&outcome(1, 3, &[3])).is_err(), "one left out");
        assert!(check(&outcome(1, 3, &[2, 3, 3])).is_err(), "one twice");
        assert!(check(&outcome(2, 3, &[2, 3])).is_err(), "one that is not lost");
        assert!(check(&outcome(1, 2, &[2])).is_err(), "tail too low for what the table held");
        let without_aux = Outcome { aux_read: false, ..outcome(1, 2, &[2]) };
        assert!(check(&without_aux).is_err(), "only the table held seq 3, and nothing is said of that");
        let admitted = Outcome { known_until: Some(Seq(2)), ..without_aux.clone() };
        assert!(check(&admitted).is_ok());
        assert!(check(&Outcome { known_until: Some(Seq(3)), ..without_aux }).is_err(), "it claims to know seq 3");
        let mut misplaced = outcome(2, 3, &[3]);
        misplaced.missing[0].offset = 0;
        assert!(check(&misplaced).is_err());
        let range = |first, last| SeqRange { first: Seq(first), last: Seq(last) };
        let unknown = Outcome { unknown: vec![range(3, 3)], ..outcome(1, 3, &[2]) };
        assert!(check(&unknown).is_err(), "unknown, and a place that was read holds it");
        let given = Reach { knowable: &|r| r.seq < Seq(3), given_up: &|seq| seq == Seq(3), ..reach };
        let reach = Reach {
            until_ns: u64::MAX,
            knowable: &|_| true,
            given_up: &|_| false,
            rotten: &|_| false,
            rotten_payload: &|_, _| false,
            in_ring: &|_| false,
            stopped: false,
        };
        assert!(check_report(&oracle, Protect::Order, &unknown, &given).is_ok(), "given up, and said so");
        let silent = outcome(1, 3, &[2]);
        assert!(check_report(&oracle, Protect::Order, &silent, &given).is_err(), "given up in silence");
        let twice = Outcome { unknown: vec![range(3, 3)], ..outcome(1, 3, &[2, 3]) };
        assert!(check(&twice).is_err(), "listed and unknown");
        assert!(check_report(&oracle, Protect::Sync, &outcome(1, 3, &[2, 3]), &reach).is_err(), "sync loses nothing");
    }

    #[test]
    fn what_is_not_known_is_admitted_where_it_is_so_and_nowhere_else() {
        let told = outcome(1, 2, &[2]);
        let admits = Outcome {
            aux_read: false,
            incomplete: true,
            without_table: true,
            known_until: Some(Seq(2)),
            ..told.clone()
        };
        let check = |protect, require, o: &Outcome| check_admitted(protect, Ack::Write, require, o).is_ok();
        for protect in [Protect::Near, Protect::Order, Protect::Bunker, Protect::Sync] {
            let whole = matches!(protect, Protect::Order | Protect::Sync);
            for require in [Require::Any, Require::Both] {
                let certain = whole && require == Require::Both;
                assert!(check(protect, require, &told) && check(protect, require, &admits) != certain);
                let silent = Outcome { aux_read: false, ..told.clone() };
                assert_eq!(check(protect, require, &silent), certain, "{protect:?} {require:?}");
            }
        }
        let last = Outcome { known_until: Some(Seq(2)), ..told.clone() };
        assert!(check(Protect::Async, Require::Any, &last) && !check(Protect::Async, Require::Any, &told));
        assert!(!check(Protect::Near, Require::Any, &last), "the table was read");
        assert!(check_admitted(Protect::Sync, Ack::Flush, Require::Both, &last).is_ok());
    }

    #[test]
    fn image_that_is_no_prefix_is_found() {
        let oracle = scene();
        let mut image = oracle.state_after(Seq(2)).remove(0);
        assert!(Prefix::of(&oracle, Seq(2)).check(&[&image]).is_ok());
        assert!(Prefix::of(&oracle, Seq(1)).check(&[&image]).is_err());
        image[513] ^= 2;
        assert!(Prefix::of(&oracle, Seq(2)).check(&[&image]).is_err());
    }

    #[test]
    fn promise_table() {
        let r = record(1, 0, &[1]);
        let check = |protect, require, bits: u32, full| {
            let holders = holders(bits & 1 != 0, bits & 2 != 0, bits & 4 != 0, bits & 8 != 0);
            check_promise(protect, require, &r, Promise { at_ns: 0, holders, full }).is_ok()
        };
        let needs =
            [(Protect::Async, 0), (Protect::Near, 1), (Protect::Order, 3), (Protect::Bunker, 5), (Protect::Sync, 10)];
        for (protect, need) in needs {
            for bits in 0..16 {
                let at_dr = bits & 10 == 10 || (protect == Protect::Bunker && bits & 9 == 9);
                let kept = bits & need == need || at_dr;
                assert_eq!(check(protect, Require::Any, bits, true), kept);
                assert_eq!(check(protect, Require::Both, bits, false), kept);
                assert_eq!(check(protect, Require::Any, bits, false), kept || bits & 3 != 0);
                assert!(check(protect, Require::None, bits, false));
            }
        }
    }

    #[test]
    fn records_and_payloads_are_found_in_stable_bytes_and_missed_when_overwritten() {
        let data = content(5, 700);
        let r = record(5, 0, &data);
        let mut bytes = vec![0; 8192];
        bytes[128..192].copy_from_slice(&r.encode());
        let mut records = Records::default();
        records.settled(&bytes, 0, 4096);
        assert!(records.holds(&bytes, r.seq, &r.encode()));
        assert!(!records.holds(&bytes, r.seq, &OrderRecord { time_ns: 1, ..r }.encode()));
        bytes[130] ^= 1;
        assert!(!records.holds(&bytes, r.seq, &r.encode()) && records.had(r.seq) && !records.had(Seq(6)));
        let header = EntryHeader { pos: 4096, kind: Kind::Payload, index: 0, record: r, skipped: 0 };
        bytes[4096..4096 + ENTRY_HEADER_BYTES].copy_from_slice(&header.encode(9));
        bytes[4096 + ENTRY_HEADER_BYTES..4096 + ENTRY_HEADER_BYTES + 700].copy_from_slice(&data);
        let mut payloads = Payloads::default();
        payloads.settled(&bytes, 8, 4096, 4096);
        assert!(!payloads.had(Seq(5)), "another log's nonce");
        payloads.settled(&bytes, 9, 4096, 4096);
        assert!(payloads.had(Seq(5)));
    }

    #[test]
    fn acknowledged_write_that_is_not_on_the_local_disk_is_found() {
        let oracle = scene();
        let image = oracle.state_after(Seq(3)).remove(0);
        assert!((0..3).all(|n| check_local(&oracle, n, &image).is_ok()));
        assert!(check_local(&oracle, 1, &vec![0; 4096]).is_err());
    }
}
