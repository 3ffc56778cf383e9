//! How far orders may be sent: the room that DR's journal has, counted in records across gaps in the seqs.

use super::DrLink;
use crate::core::ids::Seq;
use crate::format::wire::JournalRoom;

impl DrLink {
    /// The next record that DR gets is this one, whatever seqs are between: none of them takes room in its journal.
    pub(in crate::primary) fn leap(&mut self, to: Seq) {
        self.gap = (self.next.prev(), to);
        self.next = to;
        self.left_behind = false;
        self.room = self.beyond_gap(self.room);
    }

    /// What DR says of its room, as of before or behind the last gap.
    pub(super) fn beyond_gap(&self, room: JournalRoom) -> JournalRoom {
        let (before, behind) = self.gap;
        if room.upto >= behind {
            return room;
        }
        let left = room.upto.0.saturating_sub(before.0);
        JournalRoom { upto: Seq(behind.prev().0.saturating_add(left)), ..room }
    }
}
