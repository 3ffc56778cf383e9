//! The oracle: from what the clients asked and the order records on disk, what a promoted image and a loss report
//! have to be, byte for byte and write for write.
//!
//! The order of writes that were in flight together is nobody's but the primary's, so it is taken from the records
//! (DR's journal and the auxiliary's table, read as files). What the records say is not believed: each has to belong
//! to exactly one request with the same range and checksum, and no write answered before another was asked may have
//! the higher seq. Checked are I1, I4 and I5; the bytes come from the requests alone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::load::{Log, Submission, content};
use crate::cluster::losses::MissingWrite;
use crate::cluster::status::{PromoteReport, rfc3339};
use crate::core::ids::{Chain, Seq, Volume};
use crate::core::op::Op;
use crate::format::is_zero;
use crate::format::journal::{SegmentHeader, SegmentRecords, segment_offset};
use crate::format::record::OrderRecord;
use crate::format::table::{HEADER_AT, TableHeader};
use crate::limits::{BLOCK_BYTES, RECORD_BYTES, SEGMENT_BYTES};

/// Order records by seq.
pub type History = BTreeMap<Seq, OrderRecord>;

/// What the group promised to know after a failover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Every acknowledged write is in the image or in the report.
    Acknowledged,
    /// Every write that an acknowledged FLUSH covers, and every FUA write (`ack = "flush"`).
    Flushed,
    /// What came last may be unknown, and then the report says behind which order (`async`; without the status table).
    Prefix,
}

/// Requests and records, matched.
pub struct Oracle<'a> {
    log: &'a Log,
    history: &'a History,
    volumes: &'a [(String, u64)],
    /// Place in the log of the request of a record.
    request_of: HashMap<Seq, usize>,
    seq_of: HashMap<usize, Seq>,
    /// Acknowledged writes that no record on disk speaks of.
    unknown: Vec<usize>,
}

/// What was found about a promotion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub acked: usize,
    /// Acknowledged and in the image.
    pub kept: usize,
    /// Acknowledged and in the loss report.
    pub reported: usize,
    /// Acknowledged, in neither; only where the mode allows it.
    pub unknown: usize,
    /// In the image without an acknowledgement, as order allows.
    pub unacked_kept: usize,
}

impl<'a> Oracle<'a> {
    /// Matches every record with its request. Volumes in `foreign` were written by others: their records are left.
    pub fn new(
        log: &'a Log,
        history: &'a History,
        volumes: &'a [(String, u64)],
        foreign: &[u16],
        promise: Promise,
    ) -> Result<Oracle<'a>> {
        let mut by_key: HashMap<(u16, u8, u64, u64, u32), Vec<usize>> = HashMap::new();
        for (at, one) in log.submissions.iter().enumerate() {
            by_key.entry((one.volume, one.op as u8, one.offset, one.length, one.crc)).or_default().push(at);
        }
        let mut oracle =
            Oracle { log, history, volumes, request_of: HashMap::new(), seq_of: HashMap::new(), unknown: Vec::new() };
        let mut previous: Option<&OrderRecord> = None;
        for record in history.values() {
            if let Some(previous) = previous {
                let from = if record.op == Op::EpochStart { Seq(record.offset) } else { previous.seq };
                let follows = record.seq == previous.seq.next() || record.op.may_jump() && from == previous.seq;
                ensure!(follows, "I1: {record:?} does not follow {previous:?}");
            }
            previous = Some(record);
            if !record.changes_volume() || record.op == Op::Resize || foreign.contains(&record.volume.0) {
                continue;
            }
            let key = (record.volume.0, record.op as u8, record.offset, record.length, record.payload_crc);
            let at = by_key.get_mut(&key).and_then(Vec::pop);
            let at = at.with_context(|| format!("I1: nobody asked for {record:?}, or it has two seqs"))?;
            oracle.request_of.insert(record.seq, at);
            oracle.seq_of.insert(at, record.seq);
        }
        oracle.real_time_order()?;
        oracle.unknown = oracle.promised(promise).filter(|at| !oracle.seq_of.contains_key(at)).collect();
        if promise != Promise::Prefix
            && let Some(at) = oracle.unknown.first()
        {
            let (lost, tail) = (&log.submissions[*at], history.keys().last());
            bail!("I4: {} acknowledged writes have no record (tail {tail:?}), first {lost:?}", oracle.unknown.len());
        }
        Ok(oracle)
    }

    /// Holds a loss report against what was acknowledged (I4).
    pub fn report(&self, report: &PromoteReport, promise: Promise) -> Result<Found> {
        // What the promoted DR wrote since as the new primary is not part of what was lost.
        let older = |record: &&OrderRecord| record.epoch < report.epoch;
        let tail = self.history.values().filter(older).map(|record| record.seq).max().unwrap_or_default();
        ensure!(report.tail_seq == tail, "the report ends at {}, the records on disk at {tail}", report.tail_seq);
        let missing = |record: &&OrderRecord| record.changes_volume() && record.seq > report.cut_seq;
        let wanted: Vec<&OrderRecord> = self.history.values().filter(older).filter(missing).collect();
        for (record, line) in wanted.iter().zip(report.missing.iter()) {
            let same = MissingWrite {
                seq: record.seq,
                volume: self.volumes[usize::from(record.volume.0)].0.clone(),
                op: record.op.word().into(),
                offset: record.offset,
                length: record.length,
                time: rfc3339(record.time_ns),
                state: line.state.clone(),
            };
            ensure!(same == line, "I4: the loss report has {line:?} where {record:?} belongs");
            ensure!(["queued", "sent", "unknown", "held"].contains(&line.state.as_str()), "state of {line:?}");
        }
        let counts = (wanted.len(), report.missing.len());
        ensure!(counts.0 == counts.1, "I4: {} writes are missing, the report lists {}", counts.0, counts.1);
        let bytes: u64 = wanted.iter().filter(|it| it.op != Op::Resize).map(|record| record.length).sum();
        ensure!(bytes == report.missing_bytes, "{bytes} bytes are missing, the report says {}", report.missing_bytes);
        if let Some(first) = report.missing.first() {
            // Otherwise a later recovery point was possible (I5).
            let stopped = first.op == "write" && first.state != "held";
            ensure!(stopped, "I5: the cut stops before {first:?}, which needs no payload or has it");
        }
        self.admitted(report)?;
        let mut found = Found { unknown: self.unknown.len(), ..Found::default() };
        for (at, one) in self.log.submissions.iter().enumerate() {
            let kept = self.seq_of.get(&at).is_some_and(|seq| *seq <= report.cut_seq);
            match one.acked {
                Some(_) => {
                    found.acked += 1;
                    found.kept += usize::from(kept);
                    found.reported += usize::from(!kept && self.seq_of.contains_key(&at));
                }
                None => found.unacked_kept += usize::from(kept),
            }
        }
        if promise == Promise::Acknowledged {
            ensure!(found.kept + found.reported == found.acked, "I4: {found:?} does not add up");
        }
        Ok(found)
    }

    /// What nobody knows of came behind the last order that the report claims to know: none of it was answered before that was
    /// asked for.
    fn admitted(&self, report: &PromoteReport) -> Result<()> {
        let known = report.known_until.as_ref().map(|known| known.seq);
        let newest = self.request_of.iter().filter(|(seq, _)| known.is_some_and(|known| **seq <= known));
        let newest = newest.max_by_key(|(seq, _)| **seq).map(|(_, at)| self.log.submissions[*at].submitted);
        for at in &self.unknown {
            let one = &self.log.submissions[*at];
            ensure!(known.is_some(), "I4: {one:?} has no record, and the report does not say that there may be such");
            let behind = one.acked.zip(newest).is_none_or(|(acked, newest)| acked >= newest);
            ensure!(behind, "I4: {one:?} has no record, and came before seq {known:?}, up to which orders are known");
        }
        Ok(())
    }

    /// The volume after seqs 1..`cut`, on top of `base`.
    #[must_use]
    pub fn image(&self, volume: Volume, cut: Seq, mut base: Vec<u8>) -> Vec<u8> {
        for (seq, record) in self.history.range(..=cut) {
            if record.volume != volume {
                continue;
            }
            let Some(at) = self.request_of.get(seq) else { continue };
            let one = &self.log.submissions[*at];
            let range = &mut base[one.offset as usize..][..one.length as usize];
            match one.op {
                Op::Write => range.copy_from_slice(&content(one.id, one.length)),
                _ => range.fill(0),
            }
        }
        base
    }

    /// Which bytes of it only the disk of a killed primary decides: the last write to them was torn.
    fn torn(&self, volume: Volume, cut: Seq, bytes: usize) -> Vec<bool> {
        let mut torn = vec![false; bytes];
        for (seq, record) in self.history.range(..=cut).filter(|(_, record)| record.volume == volume) {
            let Some(at) = self.request_of.get(seq) else { continue };
            torn[record.offset as usize..][..record.length as usize].fill(self.log.submissions[*at].torn);
        }
        torn
    }

    /// Compares a volume with what it has to be; the first difference is explained.
    pub fn compare(&self, volume: Volume, cut: Seq, want: &[u8], got: &[u8]) -> Result<()> {
        let name = &self.volumes[usize::from(volume.0)].0;
        ensure!(want.len() == got.len(), "{name} has {} bytes, not {}", got.len(), want.len());
        if want == got {
            return Ok(());
        }
        let torn = self.torn(volume, cut, want.len());
        let wrong = |at: &usize| want[*at] != got[*at] && !torn[*at];
        let Some(at) = (0..want.len()).find(wrong) else { return Ok(()) };
        let different = (0..want.len()).filter(wrong).count();
        let covers = |one: &Submission| {
            one.volume == volume.0 && one.offset <= at as u64 && (at as u64) < one.offset + one.length
        };
        let mut story = String::new();
        for (index, one) in self.log.submissions.iter().enumerate().filter(|(_, one)| covers(one)) {
            let seq = self.seq_of.get(&index);
            let here = one.op == Op::Write && content(one.id, one.length)[at - one.offset as usize] == got[at];
            let mark = if here { " ← perhaps these bytes" } else { "" };
            let (op, offset, length) = (one.op.word(), one.offset, one.length);
            story += &format!("\n  seq {seq:?}: {op} {offset}+{length}, acknowledged {:?}{mark}", one.acked);
        }
        bail!("I5: {name} is not the state after seq {cut}: {different} bytes differ, the first at {at}:{story}");
    }

    /// No write may have a lower seq than one that was answered before it was asked.
    fn real_time_order(&self) -> Result<()> {
        let mut latest: Option<(Duration, Seq)> = None;
        for seq in self.history.keys() {
            let Some(at) = self.request_of.get(seq) else { continue };
            let one = &self.log.submissions[*at];
            if let (Some(acked), Some((asked, earlier))) = (one.acked, latest)
                && acked < asked
            {
                bail!("I1: seq {earlier} was asked after seq {seq} had been answered: {one:?}");
            }
            if latest.is_none_or(|(asked, _)| asked < one.submitted) {
                latest = Some((one.submitted, *seq));
            }
        }
        Ok(())
    }

    /// The requests that a failover must account for.
    fn promised(&self, promise: Promise) -> impl Iterator<Item = usize> + use<'a> {
        let flushed = self.log.flushes.iter().map(|(asked, _)| *asked).max().unwrap_or_default();
        let log = self.log;
        log.submissions.iter().enumerate().filter_map(move |(at, one)| {
            let acked = one.acked?;
            (promise != Promise::Flushed || one.fua || acked < flushed).then_some(at)
        })
    }
}

/// Reads all order records that DR's journal holds, and the auxiliary's table if that is to be known as well.
///
/// # Errors
/// Files that cannot be read, and two records that contradict one another.
pub fn history(dir: &Path, with_table: bool) -> Result<History> {
    let mut history = History::new();
    let table = if with_table { table(&dir.join("aux/table"))? } else { Vec::new() };
    for record in journal(&dir.join("dr/journal"))?.into_iter().chain(table) {
        let known = history.entry(record.seq).or_insert(record);
        if known.epoch < record.epoch {
            *known = record;
        }
        ensure!(known.epoch > record.epoch || *known == record, "I8: one seq, two records: {known:?} and {record:?}");
    }
    Ok(history)
}

fn journal(path: &Path) -> Result<Vec<OrderRecord>> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let segments = bytes.len() as u64 / SEGMENT_BYTES;
    let mut headers: Vec<SegmentHeader> = bytes
        .chunks(SEGMENT_BYTES as usize)
        .filter_map(|segment| SegmentHeader::decode(segment.get(..BLOCK_BYTES)?).ok())
        .collect();
    headers.sort_by_key(|header| header.number);
    // Small appends take a block each while the disk is slow: a journal may come round sooner than its size says.
    let trimmed = headers.first().map_or(Seq(0), |header| header.previous_seq);
    ensure!(trimmed == Seq(0), "nothing can be held against {}: it begins after seq {trimmed:?}", path.display());
    let mut records = Vec::new();
    let mut seen = HashSet::new();
    for header in headers {
        let at = segment_offset(header.number, segments) as usize;
        let (mut chain, mut seq): (Chain, Seq) = (header.previous_chain, header.previous_seq);
        for (_, record) in SegmentRecords::new(&bytes[at..at + SEGMENT_BYTES as usize]) {
            let Ok(record) = record else { break };
            if !(record.op.may_jump() || record.chain_after(chain) == record.chain && record.seq > seq) {
                break;
            }
            (chain, seq) = (record.chain, record.seq);
            if seen.insert(record) {
                records.push(record);
            }
        }
    }
    Ok(records)
}

fn table(path: &Path) -> Result<Vec<OrderRecord>> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let Some(Ok(header)) = bytes.get(HEADER_AT as usize..BLOCK_BYTES).map(TableHeader::decode) else {
        return Ok(Vec::new());
    };
    let (from, slots) = (header.records_at as usize, header.slots as usize);
    let ring = bytes.get(from..from + slots * RECORD_BYTES).context("the table is shorter than its header says")?;
    let full = ring.chunks(RECORD_BYTES).filter(|slot| !is_zero(slot));
    Ok(full.filter_map(|slot| OrderRecord::decode(slot).ok()).collect())
}

#[cfg(test)]
mod tests;
