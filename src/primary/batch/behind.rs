//! A DR that does not get on: how far orders may be sent to it, how long writes wait for it, and when they no longer do.
//!
//! Writes wait for DR where its journal has no room, where a batch under way leaves its spool none, and where a full FIFO
//! would have that batch given up. All of that counts against it together, until it gets on:
//!
//! | it gets on when | because |
//! |---|---|
//! | it applies something | only that makes room in its journal and its spool |
//! | a batch brings more than any did since it last got on, or is complete | unless what is waited for is room that applying would make: a DR whose store hangs takes one batch after the other |
//! | a batch begins | on the same condition; ahead of orders that it was not sent three times in a row at the most |

use super::Batch;
use crate::core::ids::Seq;
use crate::core::machine::Level;
use crate::core::modes::Overflow;
use crate::format::wire::JournalRoom;
use crate::primary::machine::{Effect, Machine};

/// How long writes wait for a DR that does not get on, nanoseconds.
pub(super) const STALL_NS: u64 = 10_000_000_000;
/// Batches in a row whose begin ahead of orders counts as getting on.
const LEAPS_MAX: u32 = 3;

/// Records that DR's journal keeps free at its end, from whom. What a promotion finds in the status table always has room
/// there; beyond it what begins and ends batches, and what is ordered beside them: while the link is away, and during a batch
/// that nothing else makes room for.
struct Kept {
    /// From writes that wait for room, and from them during a batch.
    from_writes: u64,
    from_writes_beside: u64,
    /// From orders that are sent, and from the begin and the end of a batch.
    from_orders: u64,
    from_own: u64,
}

/// How DR gets on, measured by those who wait for it.
#[derive(Clone, Debug, Default)]
pub(in crate::primary) struct Headway {
    /// How long, and since when, writes have waited since it last got on.
    pub(super) waited_ns: u64,
    since_ns: Option<u64>,
    /// What it had applied when it last applied something.
    pub(in crate::primary) applied: Seq,
    /// The most bytes that a batch has brought since then.
    brought: u64,
    /// Begins that went ahead of orders it was not sent, since then.
    leaps: u32,
    /// It had no room for too long: it gets no order but the begin of a batch, until it has.
    pub(in crate::primary) left_behind: bool,
}

impl Headway {
    /// Nothing counts against DR of how long writes have waited.
    fn anew(&mut self) {
        (self.waited_ns, self.since_ns) = (0, None);
    }
}

impl Machine {
    /// Orders may be sent up to here: what the status table may come to hold beside them always has room (a promotion
    /// finds it there).
    pub(in crate::primary) fn sends_upto(&self) -> Seq {
        if self.dr.headway.left_behind {
            return self.dr.next.prev();
        }
        let (upto, kept) = (self.dr.room.upto, self.kept());
        // What is left to a batch would only take the room of what is written during it.
        let from_orders = if self.lost_any() { kept.from_writes } else { kept.from_orders };
        let orders = Seq(upto.0.saturating_sub(from_orders));
        // What begins or ends a batch makes room when nothing else does: orders that waited may have left it none but what is
        // kept for it. Of a DR without a copy all of it: that one is not promoted, and lets go of everything before a begin.
        let begin = self.mode.batch().map(|batch| (batch.led_from, batch.begin));
        let own = begin.or_else(|| self.closing.as_ref().and_then(|batch| batch.end).map(|end| (end, end)));
        let most = if begin.is_some() && !self.dr.synced { upto } else { Seq(upto.0.saturating_sub(kept.from_own)) };
        let due = own.filter(|(from, own)| (*from..=*own).contains(&self.dr.next));
        due.map_or(orders, |(_, own)| orders.max(own.min(most)))
    }

    fn kept(&self) -> Kept {
        let all = self.dr.room.kept(self.table_slots());
        let (eighth, half) = (all / 9, all / 18);
        Kept {
            from_writes: all,
            from_writes_beside: all - (half - all / 72),
            from_orders: all - eighth + half,
            from_own: all - eighth,
        }
    }

    /// Orders of writes after `seq` for which DR's journal has room.
    pub(super) fn journal_room_after(&self, seq: Seq) -> u64 {
        let kept = self.kept();
        let from_writes = if self.mode.batch().is_some() { kept.from_writes_beside } else { kept.from_writes };
        self.dr.room.upto.0.saturating_sub(from_writes).saturating_sub(seq.0)
    }

    pub(super) fn journal_room(&self) -> u64 {
        self.journal_room_after(self.tail)
    }

    /// What DR says of its room.
    pub(in crate::primary) fn room_told(&mut self, room: JournalRoom) {
        self.dr.gap.told = room;
        self.dr.room = self.dr.room_now();
        if self.dr.applied > self.dr.headway.applied {
            let left_behind = self.dr.headway.left_behind;
            self.dr.headway = Headway { applied: self.dr.applied, left_behind, ..Headway::default() };
        }
        self.look_behind();
    }

    /// A batch has brought something, or has been taken over.
    pub(in crate::primary) fn batch_moved(&mut self) {
        let under_way = self.mode.batch();
        let brought = under_way.map_or(u64::MAX, Batch::brought);
        if brought > self.dr.headway.brought && !self.waits_for_applying() {
            self.dr.headway.brought = under_way.map_or(0, |_| brought);
            self.dr.headway.anew();
        }
    }

    /// A batch begins, or ahead of orders that DR was not sent: a few times writes wait for one that has to begin where the
    /// last one did; then they do not.
    pub(super) fn batch_begins(&mut self, ahead_of_orders: bool) {
        self.dr.headway.leaps += u32::from(ahead_of_orders);
        let often = ahead_of_orders && self.dr.headway.leaps > LEAPS_MAX;
        if !often && !self.waits_for_applying() {
            self.dr.headway.brought = 0;
            self.dr.headway.anew();
        }
    }

    /// Whether DR is still left behind. Not for a few records, as long as more will leave its journal: they would be full
    /// again at once.
    pub(in crate::primary) fn look_behind(&mut self) {
        let enough = if self.dr_rests() { 0 } else { self.dr.room.records / 16 };
        self.dr.headway.left_behind &= self.journal_room_after(self.dr.next.prev()) <= enough;
    }

    /// Whether DR has applied all that it can, so that nothing more will leave its journal without a batch.
    pub(super) fn dr_rests(&self) -> bool {
        self.dr.applied >= self.dr.cut
    }

    /// Whether orders wait here for room in DR's journal.
    pub(in crate::primary) fn orders_stuck(&self) -> bool {
        self.dr.ready() && self.dr.next <= self.tail && self.dr.next > self.sends_upto()
    }

    /// Whether the journal has no room, and DR could make some.
    fn waits_for_applying(&self) -> bool {
        !self.dr_rests() && self.journal_room() == 0
    }

    /// Writes have waited long for a DR that does not get on.
    pub(in crate::primary) fn dr_stalls(&self) -> bool {
        let waits = self.dr.headway.since_ns.map_or(0, |since| self.now.mono_ns.saturating_sub(since));
        self.dr.headway.waited_ns + waits >= STALL_NS
    }

    /// Time counts against DR only while somebody waits for it. Whether somebody waits for its journal.
    fn note_waiting(&mut self) -> bool {
        let Some(bytes) = self.held_requests.next_bytes() else {
            self.note_waits(false);
            return false;
        };
        let journal = self.journal_wait().is_some() || self.orders_stuck();
        let batch = self.options.overflow == Overflow::Coalesce && self.closes_batch() || self.spool_wait(bytes);
        self.note_waits(journal || batch);
        journal
    }

    fn note_waits(&mut self, waits: bool) {
        let headway = &mut self.dr.headway;
        match headway.since_ns {
            None if waits => headway.since_ns = Some(self.now.mono_ns),
            Some(since) if !waits => {
                headway.waited_ns += self.now.mono_ns.saturating_sub(since);
                headway.since_ns = None;
            }
            _ => {}
        }
    }

    /// With `overflow = coalesce` nobody waits for a DR whose journal stays full: it counts as out of reach until it has room
    /// again and has been sent everything, or a batch in its place.
    pub(in crate::primary) fn leave_behind(&mut self, fx: &mut Vec<Effect>) {
        let waits = self.note_waiting() && self.dr.ready();
        if self.options.overflow != Overflow::Coalesce || !waits || !self.dr_stalls() {
            return;
        }
        (self.dr.caught_up, self.dr.headway.left_behind) = (false, true);
        let text = "DR's journal is full and gets no room: it is not waited for any more (overflow = coalesce)";
        fx.push(Effect::Log { level: Level::Warn, text: text.into() });
        if self.mode.batch().is_some() || self.closing.is_some() {
            self.coalesce("DR's journal has no room for what was written meanwhile", fx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    use crate::core::ids::{Conn, Extent, Volume};
    use crate::core::machine::Now;
    use crate::core::modes::{Protect, Require};
    use crate::core::op::Op;
    use crate::core::ranges::{Cover, VolumeRanges};
    use crate::primary::batch::Mode;
    use crate::primary::link::Phase;
    use crate::primary::link::tests::fresh;

    const SECOND: u64 = 1_000_000_000;
    const ROOM: JournalRoom = JournalRoom { upto: Seq(5000), records: 4096 };

    /// A primary whose writes have waited for nine seconds. DR's journal is full, and it has something to apply or not.
    fn nine_seconds(rests: bool) -> Machine {
        let (mut machine, _) = fresh(Protect::Near, Require::Any, false);
        machine.dr.phase = Phase::Up { conn: Conn(1) };
        (machine.dr.caught_up, machine.tail) = (true, Seq(5000));
        (machine.dr.cut, machine.dr.applied) = (Seq(100), Seq(if rests { 100 } else { 50 }));
        machine.room_told(ROOM);
        machine.dr.headway.waited_ns = 7 * SECOND;
        machine.dr.headway.since_ns = Some(machine.now.mono_ns);
        machine.now.mono_ns += 2 * SECOND;
        assert!(!machine.dr_stalls());
        machine
    }

    /// A batch of so many bytes begins, and all of it arrives; whether DR stalls one second later.
    fn after_batch(machine: &mut Machine, bytes: u64) -> bool {
        let mut ranges = Cover::new();
        ranges.insert(Extent { volume: Volume(0), offset: 0, length: bytes });
        let batch = Batch::new(Seq(200), ranges, VolumeRanges::new(), Now::default());
        machine.mode = Mode::Batch(Box::new(Batch { bytes, bytes_acked: bytes, ..batch }));
        machine.batch_moved();
        machine.now.mono_ns += SECOND;
        machine.dr_stalls()
    }

    #[test]
    fn dr_gets_on_when_it_applies_something_and_not_by_room_behind_a_gap() {
        let mut machine = nine_seconds(false);
        machine.now.mono_ns += SECOND;
        machine.room_told(JournalRoom { upto: Seq(9000), ..ROOM });
        assert!(machine.dr_stalls());
        machine.dr.applied = Seq(51);
        machine.room_told(ROOM);
        assert!(!machine.dr_stalls());
    }

    #[test]
    fn a_batch_counts_for_what_it_brings_beyond_those_before_it() {
        let mut machine = nine_seconds(true);
        assert!(!after_batch(&mut machine, 4096));
        machine.note_waits(true);
        machine.now.mono_ns += 9 * SECOND;
        assert!(after_batch(&mut machine, 4096), "as much as the last one, which was given up");
        assert!(!after_batch(&mut machine, 8192));
    }

    #[test]
    fn batches_do_not_count_while_a_full_journal_waits_for_a_store_that_hangs() {
        let mut machine = nine_seconds(false);
        assert!(after_batch(&mut machine, 4096));
        machine.batch_begins(false);
        machine.batch_begins(true);
        assert!(machine.dr_stalls());
        machine.mode = Mode::Stream;
        machine.batch_moved();
        assert!(machine.dr_stalls(), "nor does one that has been taken over");
    }

    #[test]
    fn a_few_begins_ahead_of_orders_count() {
        let mut machine = nine_seconds(true);
        for begin in 0..=LEAPS_MAX {
            machine.dr.headway.waited_ns = STALL_NS;
            machine.batch_begins(true);
            assert_eq!(machine.dr_stalls(), begin == LEAPS_MAX, "{begin}");
        }
    }

    /// In a full table none of them has a slot, and a promotion took each that it missed for a write.
    #[test]
    fn a_batch_that_goes_ahead_of_writes_leaves_out_nothing_else_that_is_right_before_it() {
        // Room for what is kept, and for so many more.
        for (more, told) in [(3, true), (2, false)] {
            let (mut machine, _) = fresh(Protect::Near, Require::Any, false);
            machine.dr.phase = Phase::Up { conn: Conn(1) };
            (machine.reserved, machine.mode) = (Seq(4000), Mode::Coalescing);
            let write = machine.record(Op::Write, 0, Volume(0), 0, 512, 0);
            machine.append(write, Bytes::new(), None);
            let start = machine.append_control(Op::EpochStart, 0, 0, 0);
            let given_up = machine.append_control(Op::BatchBegin, 0, 0, 0);
            (machine.dr.synced, machine.dr.next, machine.dr.must_jump) = (true, write.seq, true);
            machine.dr.room = JournalRoom { upto: write.seq.prev(), records: 4096 };
            let kept = machine.kept().from_own;
            machine.dr.gap.told = JournalRoom { upto: Seq(write.seq.0 - 1 + kept + more), records: 4096 };
            machine.lost.insert(Extent { volume: Volume(0), offset: 0, length: 512 });
            machine.maybe_begin();
            let begin = machine.mode.batch().expect("it begins").begin;
            assert_eq!((start.next(), given_up.next()), (given_up, begin));
            assert_eq!(machine.dr.next, if told { start } else { begin }, "{more}");
            assert!(machine.sends_upto() >= begin);
            machine.append(machine.record(Op::Write, 0, Volume(0), 512, 512, 0), Bytes::new(), None);
            assert!(machine.sends_upto() >= begin, "whatever is written before they have gone");
        }
    }
}
