//! `farshore verify`: both sides are compared while writes go on, each range as of one seq on both.
//!
//! ```text
//!   range ──► held: newcomers that overlap it wait ──those under way are done──► read ──► digests, as of the tail
//!     ▲                                                                                      │
//!     │                       DR: passed, or the link was lost                               ▼
//!     └──────────◄──────────────────────── sent right behind the order of that seq ◄─────────┘
//!     └── differs: asked once more, in parts of a block each
//! ```
//!
//! 1. What is hashed is what the volume holds after every order up to the tail, and before every one after it: those that
//!    overlap it are done when the read begins, and others get no seq before it is read (I1). So a write waits for at most
//!    one read of [`COMPARE_BYTES_MAX`].
//! 2. The question stands on the order connection between the orders up to that seq and the first one behind it: DR cannot
//!    have applied more. What it finds is never an artefact of timing.
//! 3. While one side is not in the order of the other (a batch, a first sync, what a refused write has left) nothing is
//!    compared: it waits, and status says for what.
//! 4. What differs is repaired as what a refused write has left is: the range is read back here and follows as a write of our
//!    own ([`super::mending`]). Then it is compared once more.

use std::collections::{BTreeMap, VecDeque};

use super::batch::Mode;
use super::intake::{rounded, touches};
use super::machine::{Effect, File, Kind, Machine, Options, Pending, Stopping};
use crate::cluster::status::{VerifyProgress, VerifyRange, VerifyReport, VerifyStatus, rfc3339, seconds};
use crate::core::ids::{Extent, Owner, Seq, Volume};
use crate::core::machine::{DiskKind, DiskOp, DiskResult, Level, Now};
use crate::core::planted::{Bug, planted};
use crate::core::ranges::{Cover, VolumeRanges};
use crate::format::wire::{Compare, Verdict};
use crate::limits::{BLOCK_BYTES, COMPARE_BYTES_MAX, COMPARE_PARTS_MAX};

/// Ranges being read here at once: each may hold up writes that overlap it.
const READS_MAX: usize = 2;
/// Ranges that DR has been asked about and has not answered.
const ASKED_MAX: usize = 32;
/// How long to wait when DR could not show a seq, nanoseconds.
const PASSED_PAUSE_NS: u64 = 100_000_000;
/// For how long a range may hold up writes that overlap it, nanoseconds: at first, and where it was let go of again and again;
/// and how long to leave it then.
const HELD_NS: u64 = 20_000_000;
const HELD_NS_MAX: u64 = 1_000_000_000;
const HELD_PAUSE_NS: u64 = 1_000_000_000;
/// Ranges that a report lists.
const LISTED_MAX: usize = 10_000;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// What differs is sent to DR.
    pub repair: bool,
    /// Bytes a second at the most; 0: as fast as it goes.
    pub rate: u64,
}

/// What there is to know of comparisons.
#[derive(Clone, Debug, Default)]
pub(super) struct Verify {
    job: Option<Job>,
    next_id: u64,
    pieces: BTreeMap<u64, Piece>,
    /// The next request waits for a range.
    holds_up: bool,
    /// Read, and not sent yet: in the order of their seqs.
    outbox: VecDeque<Compare>,
    /// The last result without its ranges, and when it was there, nanoseconds since the Unix epoch.
    last: Option<(VerifyReport, u64)>,
    /// The DR directory that it is about.
    last_of: Owner,
    /// No scrub begins before this, nanoseconds since the Unix epoch.
    scrub_from_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Writes that overlap it are under way.
    Held,
    Reading,
    /// Read; DR is asked, or about to be.
    Asked,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    extent: Extent,
    grain: u64,
    stage: Stage,
    since_ns: u64,
    /// For how long it may hold up others.
    patience_ns: u64,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Comparing,
    /// What differs is on its way; then it is compared once more.
    Repairing,
    Again,
}

#[derive(Clone, Debug)]
struct Job {
    asked: Asked,
    phase: Phase,
    todo: VolumeRanges,
    /// To be asked again.
    again: VecDeque<Piece>,
    total: u64,
    checked: u64,
    found: Found,
    /// Before the repair.
    before: Option<Found>,
    started: Now,
    /// The tail when the last range was read.
    as_of: Seq,
    next_ns: u64,
}

/// What was found out.
#[derive(Clone, Debug, Default)]
struct Found {
    different: Cover,
    bytes: u64,
    unreadable: Vec<Unreadable>,
    /// Bytes that cannot be read and are not listed there.
    more_unreadable: u64,
}

/// A range that a side cannot read.
#[derive(Clone, Debug)]
struct Unreadable {
    extent: Extent,
    /// It is this side: there is nothing to send.
    here: bool,
    why: String,
}

impl Found {
    fn equal(&self) -> bool {
        self.all_bytes() == 0
    }

    fn add(&mut self, extent: Extent) {
        self.different.insert(extent);
        self.bytes += extent.length;
    }

    /// Everything that may differ; without what there is nothing to send for, if it is to be sent.
    fn ranges(&self, sent: bool) -> VolumeRanges {
        let mut ranges = self.different.clone().into_ranges();
        let unreadable = self.unreadable.iter().filter(|it| !sent || !it.here);
        unreadable.for_each(|it| ranges.insert(it.extent));
        ranges
    }

    /// Bytes that differ, or cannot be read.
    fn all_bytes(&self) -> u64 {
        self.bytes + self.more_unreadable + self.unreadable.iter().map(|it| it.extent.length).sum::<u64>()
    }
}

/// What there is to say of a comparison that is over.
fn verify_report(job: &Job, options: &Options, now: Now) -> VerifyReport {
    let before = job.before.as_ref().unwrap_or(&job.found);
    let range = |extent: Extent, why: Option<&String>| VerifyRange {
        volume: options.volumes[usize::from(extent.volume.0)].0.clone(),
        offset: extent.offset,
        length: extent.length,
        unreadable: why.cloned(),
    };
    let unreadable = before.unreadable.iter().map(|it| range(it.extent, Some(&it.why)));
    let mut ranges: Vec<VerifyRange> =
        before.different.iter().map(|extent| range(extent, None)).chain(unreadable).collect();
    let ranges_left_out = ranges.len().saturating_sub(LISTED_MAX) as u64;
    ranges.truncate(LISTED_MAX);
    let (left, repaired) = (job.found.all_bytes(), job.before.is_some());
    VerifyReport {
        group: options.group_name.clone(),
        checked_bytes: job.checked - if repaired { before.ranges(false).bytes().min(job.checked) } else { 0 },
        different_bytes: before.all_bytes(),
        ranges,
        ranges_left_out,
        ranges_exact: before.different.bytes() == before.bytes,
        repaired_bytes: if repaired { before.all_bytes().saturating_sub(left) } else { 0 },
        equal: left == 0,
        as_of_seq: job.as_of,
        ended: rfc3339(now.wall_ns),
        duration_seconds: seconds(now.mono_ns.saturating_sub(job.started.mono_ns)),
    }
}

/// How long `bytes` take at a rate, nanoseconds.
fn pause_ns(bytes: u64, rate: u64) -> u64 {
    u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX)
}

impl Machine {
    /// Begins to compare both sides; one that is under way is given up for it, and says nothing any more: what it has compared
    /// already may have changed since.
    pub(super) fn verify(&mut self, asked: Asked, fx: &mut Vec<Effect>) {
        if let Err(text) = self.may_verify() {
            fx.push(Effect::Verified { result: Err(text) });
            return;
        }
        self.begin_verify(asked, fx);
    }

    /// A comparison under way is given up, as somebody asks.
    pub(super) fn stop_verify(&mut self, fx: &mut Vec<Effect>) {
        if self.verify.job.is_some() {
            // A scrub does not begin again at once.
            self.verify.scrub_from_ns =
                self.now.wall_ns.saturating_add(self.options.scrub.map_or(0, |scrub| scrub.every_ns));
            self.verify_ends(Err("the comparison was given up, as it was asked to be".into()), fx);
        }
    }

    fn begin_verify(&mut self, asked: Asked, fx: &mut Vec<Effect>) {
        self.verify.pieces.clear();
        self.verify.outbox.clear();
        let mut todo = VolumeRanges::new();
        for (index, (_, size)) in (0..).zip(&self.options.volumes) {
            todo.insert(Extent { volume: Volume(index), offset: 0, length: *size });
        }
        self.verify.job = Some(Job {
            asked,
            phase: Phase::Comparing,
            total: todo.bytes(),
            todo,
            again: VecDeque::new(),
            checked: 0,
            found: Found::default(),
            before: None,
            started: self.now,
            as_of: self.tail,
            next_ns: self.now.mono_ns,
        });
        fx.push(Effect::Log { level: Level::Info, text: "verify: both sides are compared".into() });
    }

    /// Why nothing can be compared, if nobody knows how long that will be.
    pub fn may_verify(&self) -> Result<(), String> {
        if let Some(text) = &self.fenced {
            return Err(text.clone());
        }
        if self.options.standalone {
            return Err("this site serves alone since its promotion: there is no other side to compare it with".into());
        }
        if self.stopping != Stopping::No {
            return Err("the primary stops".into());
        }
        if !self.dr.ready() {
            let why = self.dr.problem.clone().unwrap_or_else(|| self.dr.word().into());
            return Err(format!("DR: {why}; both sides are compared when it is connected"));
        }
        if !self.dr.synced {
            return Err("DR has no complete copy yet: both sides are compared once the first sync is complete".into());
        }
        Ok(())
    }

    /// What a comparison waits for.
    fn verify_waits(&self) -> Option<&'static str> {
        if !self.dr.ready() {
            return Some("DR is out of reach");
        }
        if !self.dr.synced {
            return Some("DR has no complete copy");
        }
        if !matches!(self.mode, Mode::Stream) || self.closing.is_some() || self.dr.must_jump {
            return Some("DR catches up by a batch");
        }
        self.mends().then_some("what the volumes hold is on its way to DR")
    }

    /// Whose turn it is has yet to be found out.
    pub(super) fn verify_holds_nobody(&mut self) {
        self.verify.holds_up = false;
    }

    /// Whether a request waits until what overlaps it has been read.
    pub(super) fn verify_holds(&mut self, volume: Volume, kind: &Kind) -> bool {
        let holds = |piece: &Piece| piece.stage != Stage::Asked && touches(volume, kind, piece.extent);
        let held = self.verify.pieces.values().any(holds) && !planted(Bug::ComparedBesideWrites);
        self.verify.holds_up |= held;
        held
    }

    /// Takes the next ranges, reads what can be read, and ends what is done.
    pub(super) fn pump_verify(&mut self, fx: &mut Vec<Effect>) {
        self.scrub(fx);
        if self.verify.job.is_none() {
            return;
        }
        if let Some(why) = &self.fenced {
            let text = format!("the comparison was given up: {why}");
            return self.verify_ends(Err(text), fx);
        }
        if self.stopping != Stopping::No {
            return self.verify_ends(Err("the comparison was given up: the primary stops".into()), fx);
        }
        let waits = self.verify_waits().is_some();
        self.hold_no_longer(waits);
        if waits {
            return;
        }
        while let Some(piece) = self.next_range() {
            self.verify.pieces.insert(self.verify.next_id, piece);
            self.verify.next_id += 1;
        }
        let held = |(id, piece): (&u64, &Piece)| (piece.stage == Stage::Held).then_some((*id, piece.extent));
        for (id, extent) in self.verify.pieces.iter().filter_map(held).collect::<Vec<_>>() {
            let (from, length) = rounded(extent);
            let busy = self.inflight[usize::from(extent.volume.0)].overlaps(from, length);
            if !busy || planted(Bug::ComparedBesideWrites) {
                self.verify.pieces.get_mut(&id).expect("just seen").stage = Stage::Reading;
                let ticket = self.ticket(Pending::Compare(id));
                let kind = DiskKind::Read { offset: extent.offset, length: extent.length };
                fx.push(Effect::Disk(DiskOp { ticket, file: File::Volume(extent.volume), kind }));
            }
        }
        self.verify_goes_on(fx);
    }

    /// Lets go of ranges that hold up writes for nothing, or for too long: of those that are only held `all`.
    fn hold_no_longer(&mut self, all: bool) {
        let now_ns = self.now.mono_ns;
        let waited_for = self.verify.holds_up;
        let too_long = |piece: &Piece| match piece.stage {
            Stage::Asked => false,
            Stage::Held if all => true,
            Stage::Held | Stage::Reading => waited_for && now_ns >= piece.since_ns + piece.patience_ns,
        };
        let ids: Vec<u64> = self.verify.pieces.iter().filter(|(_, piece)| too_long(piece)).map(|(id, _)| *id).collect();
        for id in &ids {
            // What a slow disk never reads in that time is not put off for ever.
            let longer = |piece: &mut Piece| piece.patience_ns = (2 * piece.patience_ns).min(HELD_NS_MAX);
            self.verify.pieces.get_mut(id).into_iter().filter(|_| !all).for_each(longer);
            self.ask_again(*id);
        }
        if let Some(job) = self.verify.job.as_mut().filter(|_| !ids.is_empty() && !all) {
            job.next_ns = job.next_ns.max(now_ns + HELD_PAUSE_NS);
        }
    }

    /// How long a repair waits after so many bytes.
    pub(super) fn repair_pause_ns(&self, bytes: u64) -> u64 {
        let rate = self.verify.job.as_ref().map_or(0, |job| job.asked.rate);
        if rate == 0 { 0 } else { pause_ns(bytes, rate) }
    }

    /// The next range to take, if it may be now.
    fn next_range(&mut self) -> Option<Piece> {
        let pieces = self.verify.pieces.values();
        let reads = pieces.clone().filter(|piece| piece.stage != Stage::Asked).count();
        if reads >= READS_MAX || pieces.len() >= ASKED_MAX {
            return None;
        }
        let now_ns = self.now.mono_ns;
        let job = self.verify.job.as_mut().filter(|job| job.phase != Phase::Repairing && now_ns >= job.next_ns)?;
        let next = match job.again.pop_front() {
            Some(again) => Piece { stage: Stage::Held, since_ns: now_ns, ..again },
            None => {
                let extent = job.todo.pop_front(COMPARE_BYTES_MAX)?;
                let (grain, patience_ns) = (COMPARE_BYTES_MAX, HELD_NS);
                Piece { extent, grain, stage: Stage::Held, since_ns: now_ns, patience_ns }
            }
        };
        if job.asked.rate > 0 {
            job.next_ns = now_ns.saturating_add(pause_ns(next.extent.length, job.asked.rate));
        }
        Some(next)
    }

    /// When the next range may be taken.
    pub(super) fn verify_due_ns(&self) -> Option<u64> {
        let job = self.verify.job.as_ref()?;
        let holds = self.verify.pieces.values().filter(|piece| piece.stage != Stage::Asked);
        let held = holds.map(|piece| piece.since_ns + piece.patience_ns).min().filter(|_| self.verify.holds_up);
        let next = Some(job.next_ns).filter(|next| *next > self.now.mono_ns);
        next.into_iter().chain(held).min()
    }

    /// A range was read here.
    pub(super) fn compare_read(&mut self, id: u64, result: DiskResult) {
        let waits = self.verify_waits().is_some();
        // It was let go of meanwhile.
        let Some(piece) = self.verify.pieces.get_mut(&id) else { return };
        let (extent, grain) = (piece.extent, piece.grain);
        match result {
            Ok(bytes) if !waits => {
                piece.stage = Stage::Asked;
                let digests = Compare::digests(&bytes, grain);
                self.verify.outbox.push_back(Compare { id, extent, seq: self.tail, grain, digests });
                self.verify.job.iter_mut().for_each(|job| job.as_of = self.tail);
            }
            Ok(_) => self.ask_again(id),
            Err(fail) => {
                let name = &self.options.volumes[usize::from(extent.volume.0)].0;
                let text = format!("volume {name} at the primary: {fail}");
                self.unreadable(id, true, text);
            }
        }
    }

    /// The next comparison that stands right behind the last order that was sent.
    pub(super) fn next_compare(&mut self) -> Option<Compare> {
        while let Some(front) = self.verify.outbox.front() {
            if self.dr.next <= front.seq {
                return None;
            }
            let front = self.verify.outbox.pop_front()?;
            if self.dr.next == front.seq.next() {
                return Some(front);
            }
            // The orders went on without it.
            self.ask_again(front.id);
        }
        None
    }

    /// Orders behind this one wait until what is to be compared with it has been asked.
    pub(super) fn compared_upto(&self) -> Seq {
        self.verify.outbox.front().map_or(Seq(u64::MAX), |front| front.seq)
    }

    /// The connection is gone, and with it what was asked on it.
    pub(super) fn let_go(&mut self) {
        self.verify.outbox.clear();
        let pieces = std::mem::take(&mut self.verify.pieces);
        if let Some(job) = &mut self.verify.job {
            job.again.extend(pieces.into_values());
        }
    }

    fn ask_again(&mut self, id: u64) {
        if let (Some(piece), Some(job)) = (self.verify.pieces.remove(&id), &mut self.verify.job) {
            job.again.push_back(piece);
        }
    }

    fn unreadable(&mut self, id: u64, here: bool, why: String) {
        if let (Some(piece), Some(job)) = (self.verify.pieces.remove(&id), &mut self.verify.job) {
            job.checked += piece.extent.length;
            if job.found.unreadable.len() < LISTED_MAX {
                job.found.unreadable.push(Unreadable { extent: piece.extent, here, why });
            } else {
                job.found.more_unreadable += piece.extent.length;
            }
        }
    }

    /// DR has compared a range.
    pub(super) fn compared(&mut self, id: u64, verdict: Verdict) {
        if self.verify.pieces.get(&id).is_none_or(|piece| piece.stage != Stage::Asked) {
            return;
        }
        let different = match verdict {
            Verdict::Found { different } => different,
            Verdict::Unreadable { text } => return self.unreadable(id, false, text),
            Verdict::Passed => {
                if let Some(job) = &mut self.verify.job {
                    job.next_ns = job.next_ns.max(self.now.mono_ns + PASSED_PAUSE_NS);
                }
                return self.ask_again(id);
            }
        };
        let (Some(piece), Some(job)) = (self.verify.pieces.remove(&id), &mut self.verify.job) else { return };
        let Extent { volume, offset, length } = piece.extent;
        if different != 0 && piece.grain > BLOCK_BYTES as u64 {
            return job.again.push_back(Piece { grain: BLOCK_BYTES as u64, ..piece });
        }
        job.checked += length;
        for part in (0..COMPARE_PARTS_MAX as u64).filter(|part| different & (1 << part) != 0) {
            let from = (part * piece.grain).min(length);
            let length = piece.grain.min(length - from);
            job.found.add(Extent { volume, offset: offset + from, length });
        }
    }

    /// Goes to the next phase when this one is over.
    fn verify_goes_on(&mut self, fx: &mut Vec<Effect>) {
        let Some(job) = &mut self.verify.job else { return };
        if !self.verify.pieces.is_empty() || !job.again.is_empty() || !job.todo.is_empty() {
            return;
        }
        match job.phase {
            Phase::Comparing if job.asked.repair && !job.found.equal() => {
                let ranges = job.found.ranges(true);
                job.phase = Phase::Repairing;
                let text = format!("verify: {} bytes differ and are sent to DR", ranges.bytes());
                fx.push(Effect::Log { level: Level::Warn, text });
                self.repair(&ranges, fx);
            }
            // What was on its way has its order: compared as of later ones, it shows.
            Phase::Repairing => {
                job.phase = Phase::Again;
                job.todo = job.found.ranges(false);
                job.total += job.todo.bytes();
                job.before = Some(std::mem::take(&mut job.found));
            }
            Phase::Comparing | Phase::Again => {
                let report = verify_report(job, &self.options, self.now);
                self.verify_ends(Ok(report), fx);
            }
        }
    }

    fn verify_ends(&mut self, result: Result<VerifyReport, String>, fx: &mut Vec<Effect>) {
        self.verify.job = None;
        self.verify.pieces.clear();
        self.verify.outbox.clear();
        let (level, text) = match &result {
            Ok(report) if report.equal && report.different_bytes == 0 => {
                (Level::Info, format!("both sides are equal: {} bytes compared", report.checked_bytes))
            }
            Ok(report) if report.equal => (
                Level::Warn,
                format!("{} bytes differed and are repaired: both sides are equal", report.different_bytes),
            ),
            Ok(report) => (
                Level::Error,
                format!("{} bytes differ: `farshore verify --repair` sends them to DR", report.different_bytes),
            ),
            Err(text) => (Level::Warn, text.clone()),
        };
        fx.push(Effect::Log { level, text: format!("verify: {text}") });
        if let Ok(report) = &result {
            self.verified_before(report, self.now.wall_ns);
        }
        fx.push(Effect::Verified { result });
    }

    /// The last result, which may be from before this start.
    pub fn verified_before(&mut self, report: &VerifyReport, wall_ns: u64) {
        self.verify.last = Some((VerifyReport { ranges: Vec::new(), ..report.clone() }, wall_ns));
        self.verify.last_of = self.superblock.peer;
    }

    /// Begins the comparison that is due.
    fn scrub(&mut self, fx: &mut Vec<Effect>) {
        let Some(scrub) = self.options.scrub.filter(|_| self.verify.job.is_none()) else { return };
        let last_ns = self.verify.last.as_ref().map_or(0, |(_, at_ns)| *at_ns);
        let due = self.now.wall_ns >= self.verify.scrub_from_ns
            && self.now.wall_ns >= last_ns.saturating_add(scrub.every_ns)
            || self.now.wall_ns < last_ns;
        if due && self.may_verify().is_ok() && self.verify_waits().is_none() {
            self.begin_verify(Asked { repair: false, rate: scrub.rate }, fx);
        }
    }

    /// For the status.
    pub(super) fn verify_status(&self, now: Now) -> Option<VerifyStatus> {
        let running = self.verify.job.as_ref().map(|job| VerifyProgress {
            phase: match job.phase {
                Phase::Comparing => "comparing",
                Phase::Repairing => "repairing",
                Phase::Again => "comparing what was repaired",
            }
            .into(),
            checked_bytes: job.checked,
            total_bytes: job.total,
            different_bytes: job.found.bytes,
            seconds: seconds(now.mono_ns.saturating_sub(job.started.mono_ns)),
            waits_for: self.verify_waits().map(str::to_owned),
        });
        let (last, at_ns) = self.verify.last.clone().unzip();
        let age = at_ns.map(|at_ns| seconds(now.wall_ns.saturating_sub(at_ns)));
        (running.is_some() || last.is_some()).then_some(VerifyStatus { running, last, last_age_seconds: age })
    }

    /// Bytes that a comparison has found to differ, the last time, and that were not repaired.
    pub(super) fn verify_differs(&self) -> Option<(u64, u64)> {
        let same = self.verify.last_of == self.superblock.peer;
        let (report, at_ns) = self.verify.last.as_ref().filter(|(report, _)| !report.equal && same)?;
        Some((report.different_bytes - report.repaired_bytes, *at_ns))
    }
}
