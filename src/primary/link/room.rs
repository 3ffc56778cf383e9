//! The room that DR's journal has, counted in records across gaps in the seqs.

use super::DrLink;
use crate::core::ids::Seq;
use crate::format::wire::JournalRoom;

/// Seqs that DR is not sent, none of which takes room in its journal.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::primary) struct Gap {
    /// The last record before it, and the one behind it.
    before: Seq,
    behind: Seq,
    /// What DR said of its room last, which it counts from the last record that it has.
    pub(in crate::primary) told: JournalRoom,
}

impl Gap {
    pub(super) fn new(told: JournalRoom) -> Gap {
        Gap { told, ..Gap::default() }
    }
}

impl DrLink {
    /// The next record that DR gets is this one, whatever seqs are between.
    pub(in crate::primary) fn leap(&mut self, to: Seq) {
        // The one behind the last gap may not have been sent: then DR counts from before that.
        let unsent = self.gap.behind > Seq(0) && self.next <= self.gap.behind;
        let before = if unsent { self.gap.before } else { self.next.prev() };
        self.gap = Gap { before, behind: to, ..self.gap };
        (self.next, self.never_gets) = (to, to.prev());
        self.headway.left_behind = false;
        self.room = self.room_now();
    }

    /// How far the orders go for which there is room. Once the record behind a gap is on its way it is not known which side
    /// of the gap DR counts from, until it has acknowledged that record: what was known before is true in any case.
    pub(in crate::primary) fn room_now(&self) -> JournalRoom {
        let Gap { before, behind, told } = self.gap;
        if self.journal >= behind {
            return told;
        }
        if self.next > behind {
            return self.room;
        }
        let left = told.upto.0.saturating_sub(before.0);
        JournalRoom { upto: Seq(behind.prev().0.saturating_add(left)), ..told }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::primary::link::tests::primary;

    const fn room(upto: u64) -> JournalRoom {
        JournalRoom { upto: Seq(upto), records: 4096 }
    }

    /// Found by seed 102598: room that reaches further than the gap in the seqs was taken for room behind it.
    #[test]
    fn room_is_counted_across_a_gap_until_the_record_behind_it_is_acknowledged() {
        let mut dr = primary().dr;
        (dr.journal, dr.next, dr.gap) = (Seq(1454), Seq(1455), Gap::new(room(3386)));
        dr.room = dr.room_now();
        assert_eq!(dr.room, room(3386));
        dr.leap(Seq(2542));
        assert_eq!(dr.room, room(2541 + 1932), "as many as before");
        dr.gap.told = room(3486);
        assert_eq!(dr.room_now(), room(2541 + 2032), "not sent yet: DR counts from before the gap");
        dr.leap(Seq(2600));
        assert_eq!(dr.room, room(2599 + 2032), "nor is what it leaps over");
        dr.next = Seq(2601);
        dr.gap.told = room(2600 + 2031);
        assert_eq!(dr.room_now(), room(2599 + 2032), "on its way: whichever side that counts from");
        dr.journal = Seq(2600);
        assert_eq!(dr.room_now(), room(2600 + 2031));
    }
}
