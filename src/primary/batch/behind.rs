//! A DR whose journal gets no room: how far orders may be sent, how long writes wait for it, and when they no longer do.

use super::BATCH_STALL_NS;
use crate::core::ids::Seq;
use crate::core::machine::Level;
use crate::core::modes::Overflow;
use crate::format::wire::JournalRoom;
use crate::primary::machine::{Effect, Machine};

impl Machine {
    /// Orders may be sent up to here: what the status table may come to hold beside them always has room (a promotion
    /// finds it there).
    pub(in crate::primary) fn sends_upto(&self) -> Seq {
        if self.dr.left_behind {
            return self.dr.next.prev();
        }
        let upto = self.dr.room.upto;
        let kept = self.dr.room.kept(self.table_slots());
        let orders = Seq(upto.0.saturating_sub(kept - kept / 9));
        // A DR without a copy is not promoted, and lets go of everything before the begin of a batch. Nothing else makes room
        // there: what has been sent may have left the begin none but what is kept.
        let begin =
            self.mode.batch().map(|batch| batch.begin).filter(|begin| !self.dr.synced && *begin == self.dr.next);
        begin.map_or(orders, |begin| orders.max(begin.min(upto)))
    }

    /// DR gets on.
    pub(in crate::primary) fn dr_moved(&mut self) {
        self.dr.waits_anew();
        (self.dr.best_acked, self.dr.leaps, self.dr.moved_applied) = (0, 0, self.dr.applied);
    }

    /// What DR says of its room. It gets on when something has been applied: only that makes room.
    pub(in crate::primary) fn room_told(&mut self, room: JournalRoom) {
        self.dr.gap.told = room;
        self.dr.room = self.dr.room_now();
        if self.dr.applied > self.dr.moved_applied {
            self.dr_moved();
        }
        self.look_behind();
    }

    /// Whether DR is still left behind. Not for a few records, as long as more will leave its journal: they would be full
    /// again at once.
    pub(in crate::primary) fn look_behind(&mut self) {
        let enough = if self.dr_rests() { 0 } else { self.dr.room.records / 16 };
        self.dr.left_behind &= self.journal_room_after(self.dr.next.prev()) <= enough;
    }

    /// Whether DR has applied all that it can, so that nothing more will leave its journal without a batch.
    pub(super) fn dr_rests(&self) -> bool {
        self.dr.applied >= self.dr.cut
    }

    /// Whether orders wait here for room in DR's journal.
    pub(in crate::primary) fn orders_stuck(&self) -> bool {
        self.dr.ready() && self.dr.next <= self.tail && self.dr.next > self.sends_upto()
    }

    /// Writes have waited long for room in DR's journal, and nothing was applied there, nor does a batch get further than
    /// those before it.
    pub(in crate::primary) fn dr_stalls(&self) -> bool {
        let waits = self.dr.waits_since_ns.map_or(0, |since| self.now.mono_ns.saturating_sub(since));
        self.dr.waited_ns + waits >= BATCH_STALL_NS
    }

    /// Time counts against DR only while somebody waits for it.
    fn note_waiting(&mut self) -> bool {
        let full = self.journal_wait().is_some() || self.orders_stuck();
        let waits = full && !self.held_requests.is_empty();
        match self.dr.waits_since_ns {
            None if waits => self.dr.waits_since_ns = Some(self.now.mono_ns),
            Some(since) if !waits => {
                self.dr.waited_ns += self.now.mono_ns.saturating_sub(since);
                self.dr.waits_since_ns = None;
            }
            _ => {}
        }
        waits
    }

    /// With `overflow = coalesce` nobody waits for a DR whose journal stays full: it counts as out of reach until it has room
    /// again and has been sent everything, or a batch in its place.
    pub(in crate::primary) fn leave_behind(&mut self, fx: &mut Vec<Effect>) {
        let waits = self.note_waiting() && self.dr.caught_up();
        if self.options.overflow != Overflow::Coalesce || !waits || !self.dr_stalls() {
            return;
        }
        (self.dr.caught_up, self.dr.left_behind) = (false, true);
        let text = "DR's journal is full and gets no room: it is not waited for any more (overflow = coalesce)";
        fx.push(Effect::Log { level: Level::Warn, text: text.into() });
        if self.mode.batch().is_some() || self.closing.is_some() {
            self.coalesce("DR's journal has no room for what was written meanwhile", fx);
        }
    }
}
