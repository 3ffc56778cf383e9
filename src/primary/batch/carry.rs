//! A first sync in several batches, and what any batch leaves of DR's spool to writes.
//!
//! | batch | while it is under way | it ends |
//! |---|---|---|
//! | of a first sync, far from done | payloads are dropped, their ranges remembered: they would only fill the spool | carried on by another, of what is to go and of those ranges |
//! | of a first sync, the last | payloads follow it into the spool | complete; carried on as well if they take half of the spool or of the journal |
//! | any other | chunks and the payloads of all writes meanwhile stand in the spool together: writes wait so that it holds them | complete |
//!
//! What each batch of a first sync has to bring is less than the one before, unless writes come faster than the link
//! takes them: then the next one is the last, and they wait for it.

use super::patch::Form;
use super::{Batch, Mode, share};
use crate::core::ids::Seq;
use crate::core::machine::{Level, Now};
use crate::core::op::Op;
use crate::core::planted::{Bug, planted};
use crate::core::ranges::Cover;
use crate::format::record::OrderRecord;
use crate::format::spool::entry_bytes;
use crate::limits::{CHUNK_BYTES_MAX, ENTRY_ALIGN_BYTES, spool_for_any_batch};
use crate::primary::machine::{Effect, Machine};

impl Batch {
    /// The batch that carries on this one, of which nothing is under way, from `begin` on.
    pub(super) fn carry_on(mut self, begin: Seq, now: Now) -> Batch {
        let mut todo = self.since.take().filter(|_| !planted(Bug::CarriedWithoutWrites)).unwrap_or_default();
        todo.union(&self.todo);
        self.holes.union(&self.zeroes);
        for piece in self.again {
            if piece.form == Form::Hole { self.holes.insert(piece.extent) } else { todo.insert(piece.extent) }
        }
        todo.iter().for_each(|extent| self.holes.remove(extent));
        self.all.union(&todo);
        let next = Batch::new(begin, todo, self.holes, now);
        let hole_bytes_max = self.hole_bytes_max;
        let sparing = self.sparing;
        Batch { all: self.all, since: Some(Cover::new()), carried: self.begin, hole_bytes_max, sparing, ..next }
    }

    /// Bytes that would be to go if it were carried on now.
    pub(in crate::primary) fn behind(&self) -> u64 {
        self.bytes_left() + self.since.as_ref().map_or(0, |since| since.bytes())
    }

    /// What it takes of DR's spool, as far as is known: what was sent, and what is to go, in which holes may yet be found.
    fn staged_bytes(&self) -> u64 {
        let pieces = self.todo.len() as u64 + self.todo.bytes() / u64::from(CHUNK_BYTES_MAX);
        self.staged + self.todo.bytes() + pieces * (entry_bytes(0) + ENTRY_ALIGN_BYTES)
    }

    /// Whether pieces get ahead of what is written.
    fn gains(&self) -> bool {
        self.behind().saturating_mul(8) <= self.total.saturating_mul(7)
    }
}

impl Machine {
    /// A first sync remembers what is written while it is under way; the payloads of any batch's writes take room in DR's
    /// spool.
    pub(in crate::primary) fn written_since_begin(&mut self, record: &OrderRecord) {
        let Some(batch) = self.mode.batch_mut().or(self.closing.as_mut()) else { return };
        if let (Some(since), Some(extent)) = (&mut batch.since, record.extent()) {
            since.insert(extent);
        }
        if !batch.ahead && record.payload_bytes() > 0 {
            batch.spooled += entry_bytes(record.payload_bytes());
        }
    }

    /// What of DR's spool is counted on: a log that goes round leaves some of it unused.
    fn spool_usable(&self) -> u64 {
        self.dr.spool_bytes - self.dr.spool_bytes / 16
    }

    /// What a batch leaves of DR's spool, where that is known.
    pub(in crate::primary) fn spool_left(&self) -> Option<u64> {
        let batch = self.mode.batch().or(self.closing.as_ref());
        let staged = batch.filter(|batch| batch.since.is_none()).map_or(0, |it| it.staged_bytes() + it.held_back);
        (self.dr.spool_bytes > 0).then(|| self.spool_usable().saturating_sub(staged))
    }

    /// Whether more of the batch was sent than DR's spool holds.
    pub(super) fn outgrows_spool(&self, batch: &Batch) -> bool {
        batch.since.is_none() && batch.staged > self.dr.spool_bytes - self.dr.spool_bytes / 32
    }

    /// Why the batch under way does not get on, or none is begun after it: DR's spool does not hold it as a whole. Another
    /// begins once the spool is another.
    pub(in crate::primary) fn unfit(&self) -> Option<String> {
        let spool = self.dr.spool_bytes;
        let found = spool > 0 && spool == self.dr.unfit_spool_bytes;
        if !self.dr.synced || !found && !self.mode.batch().is_some_and(|batch| self.outgrows_spool(batch)) {
            return None;
        }
        let enough = spool_for_any_batch(self.options.volumes.iter().map(|(_, size)| size).sum()) >> 20;
        Some(format!(
            "a batch waits that DR's spool of {} MiB does not hold as a whole: set [dr] spool to \"{enough}MiB\", which \
             holds any batch of this group, or make room for it to grow on its file system, and restart DR; it keeps what it has. Or see `farshore recopy` there",
            spool >> 20
        ))
    }

    /// Whether payloads of writes during the batch are better left to another: it is a first sync with much to bring.
    pub(super) fn goes_ahead(&self, batch: &Batch) -> bool {
        batch.since.is_some() && batch.behind() > self.spool_usable() / 4
    }

    /// Whether the first sync under way is to be carried on by another batch, and if so, whether that one goes ahead of the
    /// payloads, too. It is when what it was to bring is there or nearly so, or the payloads meanwhile have taken half of
    /// the spool, or the orders half of the room that DR's journal had; of the latter two only if pieces get ahead of what
    /// is written. (Else writes are slowed down until it is complete.)
    pub(super) fn carry_wanted(&mut self) -> Option<bool> {
        let (room, spool) = (self.journal_room(), self.spool_usable());
        let (standing, journal, ready) = (self.dr.caught_up(), self.dr.journal, self.dr.ready());
        let batch = self.mode.batch_mut()?;
        batch.room = batch.room.max(room);
        batch.since.as_ref()?;
        if !ready || batch.begin > journal {
            return None;
        }
        let near = batch.behind() <= spool / 4;
        let ended = batch.ahead && (near || batch.complete());
        let full = standing && room < batch.room / 2 || batch.spooled > spool / 2;
        (ended || full && batch.gains()).then(|| batch.ahead && !near && batch.gains())
    }

    /// The FIFO has no room, and writes are not to wait for it. What is queued during a first sync is left to the batch that
    /// carries it on, else to one that is yet to begin.
    pub(in crate::primary) fn fifo_overflows(&mut self, fx: &mut Vec<Effect>) {
        let why = "the FIFO is full";
        match &mut self.mode {
            Mode::Batch(batch) if batch.since.is_some() => {
                batch.ahead = true;
                let text = format!(
                    "{why}: what is written during batch {} is left to another, which carries it on",
                    batch.begin
                );
                fx.push(Effect::Log { level: Level::Warn, text });
                self.drop_queued();
                self.batches_given_up += 1;
                self.gave_up_why = why.into();
            }
            _ => self.coalesce(why, fx),
        }
    }

    /// Begins the batch that carries on the first sync once the pieces under way have arrived.
    pub(super) fn carry_on(&mut self, ahead: bool, fx: &mut Vec<Effect>) {
        let Some(batch) = self.mode.batch().filter(|batch| batch.reading.is_empty() && batch.unacked.is_empty()) else {
            return;
        };
        let (before, bytes) = (batch.begin, batch.bytes_acked);
        let begin = self.append_control(Op::BatchBegin, before.0, 0, 0);
        self.say_sizes();
        let Mode::Batch(batch) = std::mem::replace(&mut self.mode, Mode::Stream) else { return };
        let batch = Batch { ahead, ..batch.carry_on(begin, self.now) };
        let text = format!(
            "batch {before} has brought {bytes} bytes and is carried on by batch {begin}, of {} bytes: what is to go and what \
             was written meanwhile",
            batch.total
        );
        fx.push(Effect::Log { level: Level::Info, text });
        if self.dr.everything_in == before {
            self.dr.everything_in = begin;
        }
        self.mode = Mode::Batch(Box::new(batch));
        self.batch_begins(false);
    }

    /// Whether a write with a payload of `bytes` waits because DR's spool has to hold everything that is written until the
    /// batch is complete: three quarters of what the batch leaves are for writes from the first, the rest as pieces arrive.
    /// Not for a batch that gets nowhere, nor for one that leaves very little, unless one was given up before.
    pub(in crate::primary) fn spool_wait(&self, bytes: u64) -> bool {
        let waits = self.dr.ready() && !self.dr_stalls();
        let Some(batch) = self.mode.batch().filter(|batch| !batch.ahead && waits) else {
            return false;
        };
        let (usable, room) = (self.spool_usable(), self.spool_left().unwrap_or_default());
        if bytes == 0 || room < usable / 8 && self.batches_given_up == 0 {
            return false;
        }
        let kept = room / 4;
        let freed = if batch.total == 0 { kept } else { share(kept, batch.bytes_acked.min(batch.total), batch.total) };
        batch.spooled > 0 && batch.spooled + entry_bytes(bytes) > room - kept + freed
    }
}

#[cfg(test)]
mod tests {
    use super::super::behind::STALL_NS;
    use super::*;
    use crate::core::ids::{Extent, Volume};
    use crate::core::modes::{Protect, Require};
    use crate::core::ranges::VolumeRanges;
    use crate::format::wire::JournalRoom;
    use crate::primary::link::Phase;
    use crate::primary::link::tests::fresh;

    const MIB: u64 = 1 << 20;
    /// Of which 180 MiB are counted on.
    const SPOOL: u64 = 192 * MIB;

    /// A primary with a batch of so many MiB, some of which have arrived, in a journal with much room.
    fn with_batch(first_sync: bool, total: u64, acked: u64) -> Machine {
        let (mut machine, _) = fresh(Protect::Near, Require::Any, false);
        machine.dr.phase = Phase::Up { conn: crate::core::ids::Conn(1) };
        machine.dr.room = JournalRoom { upto: Seq(1 << 20), records: 1 << 20 };
        (machine.dr.spool_bytes, machine.dr.journal, machine.dr.caught_up) = (SPOOL, Seq(1), true);
        let mut todo = Cover::new();
        todo.insert(Extent { volume: Volume(0), offset: 0, length: (total - acked) * MIB });
        let batch = Batch::new(Seq(1), todo, VolumeRanges::new(), Now::default());
        let since = first_sync.then(Cover::new);
        let (staged, acked, total) = (acked * MIB, acked * MIB, total * MIB);
        let batch = Batch { since, staged, total, bytes: acked, bytes_acked: acked, ..batch };
        machine.mode = Mode::Batch(Box::new(batch));
        machine
    }

    fn batch(machine: &mut Machine) -> &mut Batch {
        machine.mode.batch_mut().expect("it is under way")
    }

    #[test]
    fn a_first_sync_keeps_payloads_only_once_a_quarter_of_the_spool_is_to_go() {
        let goes = |first, total, acked| {
            let mut machine = with_batch(first, total, acked);
            let batch = batch(&mut machine).clone();
            machine.goes_ahead(&batch)
        };
        assert_eq!([goes(true, 45, 0), goes(true, 46, 0), goes(true, 1000, 990)], [false, true, false]);
        assert!(!goes(false, 1000, 0), "an older copy at DR stays as it is, and the batch is all or nothing");
    }

    #[test]
    fn one_ahead_is_carried_on_ahead_until_little_is_to_go_or_it_does_not_get_on() {
        let next = |total, acked, written: u64| {
            let mut machine = with_batch(true, total, acked);
            let since = Extent { volume: Volume(0), offset: 1 << 40, length: written * MIB };
            let under_way = batch(&mut machine);
            under_way.ahead = true;
            under_way.since.as_mut().expect("a first sync").insert(since);
            machine.carry_wanted()
        };
        assert_eq!(next(1000, 0, 10), None, "it has only begun");
        assert_eq!(next(1000, 900, 20), None, "much of it is to go");
        assert_eq!(next(1000, 990, 20), Some(false), "little is to go: the last one");
        assert_eq!(next(1000, 1000, 500), Some(true), "all is there, half of it was written meanwhile");
        assert_eq!(next(1000, 1000, 900), Some(false), "writes come too fast: they wait for the next one");
    }

    #[test]
    fn the_last_one_is_carried_on_when_payloads_have_taken_half_of_the_spool_and_it_gets_on() {
        let next = |acked, spooled| {
            let mut machine = with_batch(true, 32, acked);
            batch(&mut machine).spooled = spooled * MIB;
            machine.carry_wanted()
        };
        assert_eq!([next(16, 90), next(0, 91), next(16, 91)], [None, None, Some(false)]);
    }

    #[test]
    fn writes_wait_so_that_the_spool_holds_a_batch_and_everything_written_meanwhile() {
        let waits = |first, total, acked, spooled| {
            let mut machine = with_batch(first, total, acked);
            batch(&mut machine).spooled = spooled * MIB;
            [machine.spool_wait(MIB), machine.spool_wait(0)]
        };
        let (go, wait) = ([false, false], [true, false]);
        // A first sync takes none of it: 180 MiB are there, 135 at once.
        assert_eq!([waits(true, 32, 0, 133), waits(true, 32, 0, 135)], [go, wait]);
        assert_eq!([waits(true, 32, 16, 156), waits(true, 32, 16, 157)], [go, wait], "half of the rest");
        // Another takes its size: 80 are left, 60 of them at once.
        assert_eq!([waits(false, 100, 0, 58), waits(false, 100, 0, 60)], [go, wait]);
        assert_eq!([waits(false, 100, 100, 78), waits(false, 100, 100, 80)], [go, wait]);
        assert_eq!(waits(false, 160, 0, 200), go, "it leaves very little");
        assert_eq!(waits(false, 100, 0, 0), go);
        let mut machine = with_batch(false, 160, 0);
        batch(&mut machine).spooled = 15 * MIB;
        machine.batches_given_up = 1;
        assert!(machine.spool_wait(MIB), "but one was given up before");
        let mut machine = with_batch(false, 100, 0);
        batch(&mut machine).spooled = 70 * MIB;
        machine.dr.headway.waited_ns = STALL_NS;
        assert!(!machine.spool_wait(MIB), "nor for one that gets nowhere");
    }

    #[test]
    fn no_batch_begins_after_one_that_the_spool_did_not_hold_until_the_spool_is_another() {
        let sent = |first_sync, mib| {
            let mut machine = with_batch(first_sync, 1000, 0);
            machine.dr.synced = !first_sync;
            batch(&mut machine).staged = mib * MIB;
            machine
        };
        let given_up = |mut machine: Machine| {
            machine.coalesce("it is a test", &mut Vec::new());
            machine
        };
        for (first_sync, mib, fits) in [(false, 186, true), (false, 187, false), (true, 1000, true)] {
            assert_eq!(sent(first_sync, mib).unfit().is_none(), fits, "under way, {mib} MiB sent");
            assert_eq!(given_up(sent(first_sync, mib)).unfit().is_none(), fits, "given up, {mib} MiB sent");
        }
        let mut machine = given_up(sent(false, 187));
        assert!(machine.unfit().is_some_and(|text| text.contains("set [dr] spool to")));
        machine.dr.spool_bytes *= 8;
        assert_eq!(machine.unfit(), None);
    }

    #[test]
    fn a_fifo_that_is_full_during_a_first_sync_takes_nothing_back_that_has_arrived() {
        let mut machine = with_batch(true, 1000, 900);
        machine.fifo_overflows(&mut Vec::new());
        let under_way = machine.mode.batch().expect("it goes on");
        assert!(under_way.ahead && under_way.bytes_acked == 900 * MIB && machine.lost.is_empty());
        let mut machine = with_batch(false, 1000, 900);
        machine.fifo_overflows(&mut Vec::new());
        assert_eq!(machine.lost.bytes(), 100 * MIB);
    }
}
