//! The superblock: what is intended, what is written, what is durable, and who waits for it.
//!
//! Invariants:
//! - One write at a time, to the slot the newest durable generation is not in: a torn write leaves the
//!   generation before it.
//! - Whoever waits is woken only when both slots contain the change it waits for (persist before promise): epochs,
//!   batches, checkpoints and promotions all go through here, and a bit that flips in either slot takes none of them
//!   back. What changes while one slot is written goes into the other one, so that this costs a write after the last.

use bytes::Bytes;

use crate::core::ids::Ticket;
use crate::core::planted::{Bug, planted};
use crate::format::superblock::{CLEAN, Superblock};

/// Keeps one superblock; `A` is what is to be done after a change is durable.
#[derive(Clone, Debug)]
pub struct Keeper<A> {
    intended: Superblock,
    /// Nothing of it has been written to the disk yet, by this process or one before it.
    unwritten: bool,
    /// Changes made to `intended`; how many of them the newest durable generation contains, and how many both slots do.
    changed: u64,
    written: u64,
    durable: u64,
    /// The write in flight, and what it contains.
    writing: Option<(Ticket, u64)>,
    waiting: Vec<(u64, A)>,
}

impl<A> Keeper<A> {
    /// `fresh`: nothing of it is on disk yet. `half`: it is only in one slot, and written to the other one at once.
    #[must_use]
    pub fn new(found: Superblock, fresh: bool, half: bool) -> Keeper<A> {
        let (changed, written) = (u64::from(fresh || half), u64::from(half));
        Keeper { intended: found, unwritten: fresh, changed, written, durable: 0, writing: None, waiting: Vec::new() }
    }

    /// The superblock as it is or will be on disk.
    #[must_use]
    pub fn get(&self) -> &Superblock {
        &self.intended
    }

    /// Changes it; the next write contains the change.
    pub fn change(&mut self, change: impl FnOnce(&mut Superblock)) {
        self.intended.set(CLEAN, false);
        change(&mut self.intended);
        self.changed += 1;
    }

    /// Changes it to say that the process ended cleanly; any later change takes that back.
    pub fn change_cleanly(&mut self) {
        self.intended.set(CLEAN, true);
        self.changed += 1;
    }

    /// Whether `ready` has something to give.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        self.waiting.iter().any(|(change, _)| *change <= self.durable)
    }

    /// Has `after` returned once everything changed so far is durable, in both slots.
    pub fn then(&mut self, after: A) {
        self.waiting.push((self.changed, after));
    }

    /// Everything changed so far is durable.
    #[must_use]
    pub fn settled(&self) -> bool {
        self.durable == self.changed && self.waiting.is_empty()
    }

    /// What may be done because it is durable by now.
    pub fn ready(&mut self) -> Vec<A> {
        let durable = self.durable;
        self.waiting.extract_if(.., |(change, _)| *change <= durable).map(|(_, after)| after).collect()
    }

    /// The next write, durable, to be made at the offset.
    pub fn next_write(&mut self, ticket: Ticket) -> Option<(u64, Bytes)> {
        if self.writing.is_some() || self.changed == self.durable {
            return None;
        }
        // A fresh directory writes the generation it was given, 1; every other write is a new one, so that it never goes
        // over the slot in force.
        if !std::mem::take(&mut self.unwritten) || self.changed > 1 {
            self.intended.generation += 1;
        }
        self.writing = Some((ticket, self.changed));
        let offset = if planted(Bug::SuperblockOneSlot) { 0 } else { self.intended.offset() };
        Some((offset, Bytes::copy_from_slice(&self.intended.encode())))
    }

    /// A write has been completed. Whether it was the superblock's.
    pub fn done(&mut self, ticket: Ticket) -> bool {
        match self.writing {
            Some((writing, contains)) if writing == ticket => {
                let before = if planted(Bug::SuperblockOnceCounts) { contains } else { self.written };
                (self.durable, self.written) = (before, contains);
                self.writing = None;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::Epoch;
    use crate::format::superblock::{Role, SUPERBLOCK_BYTES, read_slots};
    use crate::limits::BLOCK_BYTES;

    /// Both slots, as they are on the disk.
    struct Disk {
        slots: Vec<u8>,
        writes: u64,
    }

    impl Disk {
        fn new() -> Disk {
            Disk { slots: vec![0; SUPERBLOCK_BYTES], writes: 0 }
        }

        /// The next write, if there is one, and where it went.
        fn write<A>(&mut self, keeper: &mut Keeper<A>) -> Option<usize> {
            let ticket = Ticket(self.writes);
            let (offset, bytes) = keeper.next_write(ticket)?;
            assert!(keeper.next_write(Ticket(self.writes + 1)).is_none(), "one write at a time");
            let at = usize::try_from(offset).expect("one of two slots");
            self.slots[at..at + BLOCK_BYTES].copy_from_slice(&bytes);
            self.writes += 1;
            assert!(!keeper.done(Ticket(self.writes)) && keeper.done(ticket));
            Some(at)
        }

        fn found(&self) -> Superblock {
            read_slots(&self.slots).expect("valid").newest.expect("written")
        }

        /// What a start finds when a bit of this slot has flipped.
        fn found_without(&self, slot: usize) -> Option<Superblock> {
            let mut slots = self.slots.clone();
            slots[slot * BLOCK_BYTES + 100] ^= 1;
            read_slots(&slots).ok()?.newest
        }
    }

    fn with_epoch(generation: u64, epoch: u32) -> Superblock {
        Superblock { generation, epoch: Epoch(epoch), ..Superblock::new(Role::Dr) }
    }

    /// The first change after a start went over the only slot of a directory that had written no more than one.
    #[test]
    fn the_first_change_after_a_start_does_not_go_over_the_slot_in_force() {
        let mut disk = Disk::new();
        let first_at = disk.write(&mut Keeper::<()>::new(Superblock::new(Role::Dr), true, false)).expect("a fresh one");
        let mut keeper: Keeper<()> = Keeper::new(disk.found(), false, false);
        keeper.change(|it| it.epoch = Epoch(2));
        assert_ne!(disk.write(&mut keeper), Some(first_at));
        assert_eq!(disk.found().generation, 2);
    }

    #[test]
    fn nobody_is_woken_before_his_change_is_durable_in_both_slots() {
        let (mut disk, mut keeper) = (Disk::new(), Keeper::new(Superblock::new(Role::Dr), true, false));
        keeper.then("first");
        let first_at = disk.write(&mut keeper).expect("a fresh directory is written");
        assert!(keeper.ready().is_empty() && !keeper.settled(), "a bit that flips would take it back");
        keeper.change(|it| it.epoch = Epoch(2));
        keeper.then("second");
        assert_ne!(disk.write(&mut keeper), Some(first_at), "slots alternate");
        assert_eq!(keeper.ready(), ["first"]);
        assert_eq!(disk.found_without(1).map(|it| it.epoch), Some(Epoch(2)));
        assert_eq!(disk.found_without(0).map(|it| it.epoch), Some(Epoch(0)), "the change is in one slot");
        assert_eq!(disk.write(&mut keeper), Some(first_at));
        assert_eq!(keeper.ready(), ["second"]);
        assert!(keeper.settled() && disk.write(&mut keeper).is_none());
        for slot in [0, 1] {
            assert_eq!(disk.found_without(slot).map(|it| it.epoch), Some(Epoch(2)));
        }
    }

    /// Changes that come one after the other cost a write each, and one after the last.
    #[test]
    fn what_changes_meanwhile_goes_into_the_other_slot() {
        let (mut disk, mut keeper) = (Disk::new(), Keeper::new(with_epoch(7, 0), false, false));
        for epoch in 1..=10 {
            keeper.change(|it| it.epoch = Epoch(epoch));
            keeper.then(epoch);
            disk.write(&mut keeper).expect("a change");
            assert_eq!(keeper.ready(), if epoch > 1 { vec![epoch - 1] } else { Vec::new() });
        }
        disk.write(&mut keeper).expect("the last one once more");
        assert_eq!((keeper.ready(), disk.writes), (vec![10], 11));
    }

    /// Generation 1 promises nothing: a start that finds it torn, and nothing else, begins afresh.
    #[test]
    fn only_what_says_nothing_yet_is_written_as_generation_1() {
        for changes in 0..3 {
            let (mut disk, mut keeper) = (Disk::new(), Keeper::<()>::new(Superblock::new(Role::Dr), true, false));
            (0..changes).for_each(|_| keeper.change(|it| it.epoch = Epoch(it.epoch.0 + 1)));
            disk.write(&mut keeper).expect("a fresh directory is written");
            let written = disk.found();
            assert_eq!((written.epoch, written.generation == 1), (Epoch(changes), changes == 0));
        }
    }

    #[test]
    fn a_slot_that_lacks_something_is_written_at_once_and_a_whole_directory_only_when_something_changes() {
        for half in [false, true] {
            let found = with_epoch(7, 3);
            let in_force = usize::try_from(found.offset()).expect("one of two slots");
            let (mut disk, mut keeper) = (Disk::new(), Keeper::<()>::new(found, false, half));
            assert_eq!(keeper.settled(), !half);
            let write = disk.write(&mut keeper);
            assert_eq!(write.is_some(), half);
            assert_ne!(write, Some(in_force), "the slot in force stays");
            assert!(keeper.settled() && disk.write(&mut keeper).is_none(), "that was all");
            if half {
                assert_eq!(disk.found(), with_epoch(8, 3));
            }
        }
    }

    #[test]
    fn who_waits_is_seen_to_be_ready_and_unsettled_until_it_is_taken() {
        let (mut disk, mut keeper) = (Disk::new(), Keeper::new(Superblock::new(Role::Dr), false, false));
        keeper.change(|it| it.epoch = Epoch(2));
        keeper.then("it");
        assert!(!keeper.has_ready());
        for done in [false, true] {
            disk.write(&mut keeper).expect("the change");
            assert_eq!((keeper.has_ready(), keeper.settled()), (done, false));
        }
        assert_eq!(keeper.ready(), ["it"]);
        assert!(!keeper.has_ready() && keeper.settled());
    }

    /// A start that finds a clean end looks for no torn one.
    #[test]
    fn a_clean_end_is_said_until_anything_changes() {
        let (mut disk, mut keeper) = (Disk::new(), Keeper::<()>::new(Superblock::new(Role::Dr), false, false));
        for clean in [true, false] {
            if clean {
                keeper.change_cleanly();
            } else {
                keeper.change(|_| {});
            }
            while disk.write(&mut keeper).is_some() {}
            assert_eq!([0, 1].map(|slot| disk.found_without(slot).map(|it| it.has(CLEAN))), [Some(clean); 2]);
        }
    }
}
