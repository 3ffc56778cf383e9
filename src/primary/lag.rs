//! The lag: what a promotion without this host could come to miss, the bound that `overflow = "pace"` can put on it, and
//! how long the FIFO will hold what comes in.

use std::collections::VecDeque;

use super::batch::Batch;
use super::machine::{Machine, PERIOD_NS};
use crate::core::ids::{Owner, Seq};
use crate::core::machine::Now;
use crate::core::modes::{LagMax, Overflow};
use crate::core::planted::{Bug, planted};
use crate::format::record::OrderRecord;

/// Over how long the rate is taken at which the FIFO fills, nanoseconds.
const OUTLOOK_NS: u64 = 60_000_000_000;
/// How often its fill is noted for that.
const OUTLOOK_STEP_NS: u64 = 1_000_000_000;
/// Parts in which the bytes of a bound are counted, and how many are kept at the most.
const PARTS: u64 = 64;
const PARTS_MAX: usize = 4096;
/// After how long a rate is told.
const OUTLOOK_MIN_NS: u64 = 5_000_000_000;

/// When writes were given their seqs, about every [`PERIOD_NS`].
#[derive(Clone, Debug, Default)]
pub(super) struct Ages {
    samples: VecDeque<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    seq: Seq,
    wall_ns: u64,
    mono_ns: u64,
}

impl Ages {
    pub(super) fn note(&mut self, seq: Seq, wall_ns: u64, mono_ns: u64) {
        if self.samples.back().is_none_or(|last| mono_ns >= last.mono_ns + PERIOD_NS) {
            self.samples.push_back(Sample { seq, wall_ns, mono_ns });
        }
    }

    /// Nobody asks for seqs up to `seq` any more. Of very many samples every second one goes.
    pub(super) fn forget(&mut self, seq: Seq) {
        while self.samples.len() > 1 && self.samples[1].seq <= seq {
            self.samples.pop_front();
        }
        if self.samples.len() > 100_000 {
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    /// What is known of the time before this start.
    pub(super) fn recovered(oldest: Option<(Seq, u64)>, now: Now) -> Ages {
        let sample = |(seq, wall_ns)| {
            let mono_ns = now.mono_ns.saturating_sub(now.wall_ns.saturating_sub(wall_ns));
            Sample { seq, wall_ns, mono_ns }
        };
        Ages { samples: oldest.map(sample).into_iter().collect() }
    }

    /// The last one from before `seq` or at it, else the first of all.
    fn at(&self, seq: Seq) -> Option<&Sample> {
        let after = self.samples.partition_point(|sample| sample.seq <= seq);
        self.samples.get(after.saturating_sub(1))
    }

    /// Wall time of `seq`, or a little before.
    pub(super) fn wall_ns(&self, seq: Seq) -> Option<u64> {
        self.at(seq).map(|sample| sample.wall_ns)
    }
}

/// Bytes changed by writes, zeroes and trims that DR may not have, or not without a gap before them: in parts, each with its
/// last seq.
#[derive(Clone, Debug, Default)]
pub(super) struct Changed {
    parts: VecDeque<(Seq, u64)>,
    bytes: u64,
}

impl Changed {
    fn note(&mut self, seq: Seq, length: u64, part: u64) {
        self.bytes += length;
        let full = self.parts.len() >= PARTS_MAX;
        match self.parts.back_mut().filter(|(_, bytes)| full || bytes + length <= part) {
            Some((last, bytes)) => (*last, *bytes) = (seq, *bytes + length),
            None => self.parts.push_back((seq, length)),
        }
    }

    /// DR has everything up to `floor`.
    fn forget(&mut self, floor: Seq) {
        while let Some((_, bytes)) = self.parts.front().filter(|(last, _)| *last <= floor) {
            self.bytes -= bytes;
            self.parts.pop_front();
        }
    }
}

/// How full the FIFO was, once a second over the last minute.
#[derive(Clone, Debug, Default)]
pub(super) struct Outlook {
    fills: VecDeque<(u64, u64)>,
}

impl Outlook {
    fn note(&mut self, mono_ns: u64, fill: u64) {
        if self.fills.back().is_some_and(|(last, _)| mono_ns < last + OUTLOOK_STEP_NS) {
            return;
        }
        self.fills.push_back((mono_ns, fill));
        while self.fills.front().is_some_and(|(first, _)| first + OUTLOOK_NS < mono_ns) {
            self.fills.pop_front();
        }
    }

    /// How long until `room` bytes more have come in, seconds, at the rate since it was last as empty as ever in the last
    /// minute: what was calm before an outage says nothing. `None` when it does not fill.
    fn full_in_seconds(&self, room: u64) -> Option<f64> {
        // Of several that are as empty the last one.
        let (from_ns, from) = *self.fills.iter().rev().min_by_key(|(_, fill)| fill)?;
        let (to_ns, to) = *self.fills.back()?;
        let (elapsed, filled) = (to_ns - from_ns, to - from);
        (elapsed >= OUTLOOK_MIN_NS && filled > 0).then(|| room as f64 * (elapsed as f64 / 1e9) / filled as f64)
    }
}

impl Machine {
    /// Writes of which DR may not have order and payload; `None` where nobody has to have them: a site that serves alone, a DR
    /// without a copy.
    #[must_use]
    pub fn lag_writes(&self) -> Option<u64> {
        let lags = !self.options.standalone && !self.lacks_copy();
        lags.then(|| self.tail.0 - self.lag_floor().0)
    }

    /// DR's cut, as it said last or as it was known before this start.
    pub(super) fn cut_known(&self) -> Seq {
        self.dr.cut.max(self.cut_before)
    }

    /// DR has everything up to here, order and payload, as far as is known.
    pub(super) fn lag_floor(&self) -> Seq {
        self.floor().max(self.cut_known()).min(self.tail)
    }

    /// Bytes that have yet to cross.
    pub(super) fn lag_bytes(&self) -> u64 {
        let batch = self.mode.batch().map_or(0, Batch::behind);
        self.held.bytes + self.fifo.bytes() + self.lost.bytes() + self.mending.bytes() + batch
    }

    pub(super) fn note_outlook(&mut self) {
        self.outlook.note(self.now.mono_ns, self.held.bytes + self.fifo.bytes());
    }

    /// How long the FIFO will take what comes in at the present rate, seconds; `None` when it does not fill up.
    pub(super) fn fifo_full_in_seconds(&self) -> Option<f64> {
        let (held, disk) = (self.held.bytes, self.fifo.bytes());
        let bound = self.options.fifo_memory_bytes + self.options.fifo_disk_bytes;
        if self.mode.drops_payloads() {
            return None;
        }
        self.outlook.full_in_seconds(bound.saturating_sub(held + disk))
    }

    /// Whether a write that changes `bytes` waits because of the bound on the lag. A DR without a copy cannot lag.
    pub(super) fn lag_wait(&mut self, bytes: u64) -> bool {
        self.lag_waits = self.lag_exceeded(bytes);
        self.lag_waits.is_some()
    }

    /// What of the bound is reached.
    pub(super) fn lag_exceeded(&mut self, bytes: u64) -> Option<&'static str> {
        let LagMax { writes, bytes: bytes_max, seconds } = self.options.lag_max?;
        if self.options.overflow != Overflow::Pace || self.options.standalone || self.lacks_copy() {
            return None;
        }
        let floor = self.lag_floor();
        self.changed.forget(floor);
        if floor == self.tail || planted(Bug::LagUnbounded) {
            return None;
        }
        // Neither how old it is what an earlier incarnation took is known, for the clock may have been set, nor how much it is.
        let before = floor.next() < self.first;
        let old = |most: u64| {
            let sample = self.ages.at(floor.next()).filter(|_| !before);
            sample.is_none_or(|at| self.now.mono_ns.saturating_sub(at.mono_ns) >= most.saturating_mul(1_000_000_000))
        };
        if writes.is_some_and(|most| self.tail.0 - floor.0 >= most) {
            Some("the lag in writes is at primary.lag_max")
        } else if bytes_max.is_some_and(|most| before || self.changed.bytes > 0 && self.changed.bytes + bytes > most) {
            Some("the lag in bytes is at primary.lag_max")
        } else if seconds.is_some_and(old) {
            Some("the lag in seconds is at primary.lag_max")
        } else {
            None
        }
    }

    /// A record got its seq.
    pub(super) fn note_changed(&mut self, record: &OrderRecord) {
        let most = self.options.lag_max.and_then(|most| most.bytes);
        if let (Some(most), Some(extent)) = (most, record.extent()) {
            self.changed.note(record.seq, extent.length, most / PARTS);
        }
    }

    /// Whether DR is known to have no recovery point. Of one that has not been heard of since a start that is not known.
    fn lacks_copy(&self) -> bool {
        let told = self.dr.last_heard_ns > 0 || self.superblock.peer == Owner(0);
        !self.dr.synced && told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::{Chain, Epoch, Volume};
    use crate::core::modes::{Protect, Require};
    use crate::core::op::Op;
    use crate::primary::link::tests::fresh;

    const SECOND: u64 = 1_000_000_000;

    fn a_trim() -> OrderRecord {
        let (seq, epoch, volume) = (Seq(0), Epoch(1), Volume(0));
        let (offset, length, time_ns, payload_crc, flags) = (0, 0, 0, 0, 0);
        OrderRecord { seq, epoch, volume, op: Op::Trim, flags, offset, length, time_ns, chain: Chain(0), payload_crc }
    }

    fn bounded(writes: Option<u64>, bytes: Option<u64>, seconds: Option<u64>) -> Machine {
        let (mut machine, _) = fresh(Protect::Async, Require::Any, false);
        machine.options.overflow = Overflow::Pace;
        machine.options.lag_max = Some(LagMax { writes, bytes, seconds });
        (machine.dr.synced, machine.dr.last_heard_ns) = (true, 1);
        (machine.first, machine.tail, machine.dr.cut) = (Seq(2), Seq(100), Seq(90));
        machine
    }

    #[test]
    fn writes_wait_at_a_lag_of_so_many_writes() {
        assert_eq!(bounded(Some(11), None, None).lag_exceeded(512), None);
        assert!(bounded(Some(10), None, None).lag_exceeded(512).is_some_and(|why| why.contains("writes")));
    }

    #[test]
    fn bytes_count_from_the_first_that_dr_lacks_whatever_has_crossed_after_it() {
        let mut machine = bounded(None, Some(64 * 1024), None);
        assert_eq!(machine.lag_exceeded(1 << 20), None, "longer than the bound, but alone");
        let trim = |seq, length| OrderRecord { seq: Seq(seq), length, ..a_trim() };
        (91..=190).for_each(|seq| machine.note_changed(&trim(seq, 512)));
        machine.tail = Seq(190);
        assert_eq!(machine.lag_exceeded(64 * 1024 - 51_200), None);
        assert!(machine.lag_exceeded(64 * 1024 - 51_200 + 1).is_some_and(|why| why.contains("bytes")));
        machine.dr.cut = Seq(92);
        assert_eq!(machine.lag_exceeded(64 * 1024 - 50_176), None, "two of them are a part");
        machine.dr.cut = Seq(190);
        assert_eq!(machine.lag_exceeded(64 * 1024), None);
        assert_eq!(machine.changed.bytes, 0);
        (0..1 << 16).for_each(|seq| machine.note_changed(&trim(200 + seq, 2048)));
        assert_eq!((machine.changed.parts.len(), machine.changed.bytes), (PARTS_MAX, 1 << 27));
    }

    #[test]
    fn what_an_earlier_incarnation_took_counts_as_too_old_and_is_counted_from_the_cut_that_it_knew() {
        let mut machine = bounded(Some(20), None, None);
        (machine.first, machine.dr.cut, machine.dr.last_heard_ns, machine.superblock.peer) =
            (Seq(95), Seq(0), 0, Owner(7));
        machine.cut_before = Seq(81);
        assert_eq!((machine.lag_writes(), machine.lag_exceeded(512)), (Some(19), None));
        machine.options.lag_max = Some(LagMax { seconds: Some(1000), ..LagMax::default() });
        assert!(machine.lag_exceeded(512).is_some());
        machine.options.lag_max = Some(LagMax { bytes: Some(1 << 30), ..LagMax::default() });
        assert!(machine.lag_exceeded(512).is_some());
        machine.cut_before = Seq(0);
        machine.dr.cut = Seq(94);
        assert_eq!(machine.lag_exceeded(512), None);
    }

    #[test]
    fn writes_wait_while_the_oldest_that_is_not_at_dr_is_too_old_by_the_monotonic_clock() {
        let mut machine = bounded(None, None, Some(3));
        let began = machine.now.mono_ns;
        machine.ages = Ages::default();
        machine.ages.note(Seq(80), 1, began);
        machine.ages.note(Seq(91), 1 << 60, began + SECOND);
        machine.ages.note(Seq(95), 2, began + 2 * SECOND);
        machine.now.mono_ns = began + 4 * SECOND - 1;
        assert_eq!(machine.lag_exceeded(512), None);
        machine.now.mono_ns += 1;
        assert!(machine.lag_exceeded(512).is_some_and(|why| why.contains("seconds")));
        machine.dr.cut = Seq(94);
        assert_eq!(machine.lag_exceeded(512), None);
        machine.dr.cut = machine.tail;
        machine.now.mono_ns += 100 * SECOND;
        assert_eq!(machine.lag_exceeded(512), None, "nothing lags");
    }

    #[test]
    fn the_bound_is_not_for_a_first_sync_and_holds_while_dr_has_yet_to_be_heard_of() {
        let mut machine = bounded(Some(1), None, None);
        machine.dr.synced = false;
        assert_eq!(machine.lag_exceeded(512), None);
        machine.dr.last_heard_ns = 0;
        assert_eq!(machine.lag_exceeded(512), None, "there never was one");
        machine.superblock.peer = Owner(7);
        assert!(machine.lag_exceeded(512).is_some());
    }

    #[test]
    fn a_fifo_that_fills_says_how_long_it_holds() {
        let mut outlook = Outlook::default();
        for second in 0..100 {
            outlook.note(second * SECOND, if second < 40 { 1000 } else { 1000 + 50 * (second - 39) });
            let told = (second >= 44).then_some(120.0);
            assert_eq!(outlook.full_in_seconds(6000), told, "{second}: of the calm before, nothing counts");
        }
        outlook.note(101 * SECOND, 10);
        assert_eq!(outlook.full_in_seconds(6000), None);
    }

    #[test]
    fn ages_are_kept_for_what_is_asked_for() {
        let mut ages = Ages::default();
        (0..250_000).for_each(|at| ages.note(Seq(at), at, at * PERIOD_NS));
        ages.forget(Seq(10));
        assert_eq!(ages.wall_ns(Seq(10)), Some(10));
        assert!(ages.samples.len() <= 125_000);
        assert!(ages.wall_ns(Seq(200_001)).is_some_and(|wall| (199_999..=200_001).contains(&wall)));
    }
}
