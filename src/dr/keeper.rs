//! The superblock: what is intended, what is written, what is durable, and who waits for it.
//!
//! Invariants:
//! - One write at a time, to the slot the newest durable generation is not in: a torn write leaves the
//!   generation before it.
//! - Whoever waits is woken only by a generation that contains the change it waits for (persist before
//!   promise): epochs, batches, checkpoints and promotions all go through here.

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
    /// Changes made to `intended`, contained in the write in flight, and durable.
    changed: u64,
    durable: u64,
    writing: Option<(Ticket, u64)>,
    waiting: Vec<(u64, A)>,
}

impl<A> Keeper<A> {
    /// `fresh`: nothing of it is on disk yet. `half`: only in one slot, the other one is damaged and written at once.
    #[must_use]
    pub fn new(found: Superblock, fresh: bool, half: bool) -> Keeper<A> {
        let changed = u64::from(fresh || half);
        Keeper { intended: found, unwritten: fresh, changed, durable: 0, writing: None, waiting: Vec::new() }
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

    /// Has `after` returned once everything changed so far is durable.
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
                self.durable = contains;
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
    use crate::format::superblock::Role;

    /// The first change after a start went over the only slot of a directory that had written no more than one.
    #[test]
    fn the_first_change_after_a_start_does_not_go_over_the_slot_in_force() {
        let mut keeper: Keeper<()> = Keeper::new(Superblock::new(Role::Dr), true, false);
        let (first_at, bytes) = keeper.next_write(Ticket(1)).expect("a fresh directory is written");
        let found = Superblock::decode(&bytes).expect("valid");
        let mut keeper: Keeper<()> = Keeper::new(found, false, false);
        keeper.change(|it| it.epoch = Epoch(2));
        let (next_at, bytes) = keeper.next_write(Ticket(1)).expect("the change");
        assert_ne!(first_at, next_at);
        assert_eq!(Superblock::decode(&bytes).expect("valid").generation, 2);
    }

    #[test]
    fn nobody_is_woken_before_his_change_is_durable() {
        let mut keeper = Keeper::new(Superblock::new(Role::Dr), true, false);
        keeper.then("first");
        let (first_at, _) = keeper.next_write(Ticket(1)).expect("a fresh directory is written");
        keeper.change(|it| it.epoch = Epoch(2));
        keeper.then("second");
        assert!(keeper.next_write(Ticket(2)).is_none(), "one write at a time");
        assert!(keeper.ready().is_empty());
        assert!(keeper.done(Ticket(1)));
        assert_eq!(keeper.ready(), ["first"]);
        let (second_at, bytes) = keeper.next_write(Ticket(3)).expect("the change");
        assert_ne!(first_at, second_at, "slots alternate");
        assert_eq!(Superblock::decode(&bytes).expect("valid").epoch, Epoch(2));
        assert!(!keeper.done(Ticket(2)));
        assert!(keeper.done(Ticket(3)));
        assert_eq!(keeper.ready(), ["second"]);
        assert!(keeper.settled());
    }

    /// Generation 1 promises nothing: a start that finds it torn, and nothing else, begins afresh.
    #[test]
    fn only_what_says_nothing_yet_is_written_as_generation_1() {
        for changes in 0..3 {
            let mut keeper: Keeper<()> = Keeper::new(Superblock::new(Role::Dr), true, false);
            (0..changes).for_each(|_| keeper.change(|it| it.epoch = Epoch(it.epoch.0 + 1)));
            let (_, bytes) = keeper.next_write(Ticket(1)).expect("a fresh directory is written");
            let written = Superblock::decode(&bytes).expect("valid");
            assert_eq!((written.epoch, written.generation == 1), (Epoch(changes), changes == 0));
        }
    }

    #[test]
    fn a_damaged_slot_is_written_at_once_and_a_whole_directory_only_when_something_changes() {
        for half in [false, true] {
            let found = Superblock { generation: 7, ..Superblock::new(Role::Dr) };
            let in_force = found.offset();
            let mut keeper: Keeper<()> = Keeper::new(found, false, half);
            assert_eq!(keeper.settled(), !half);
            let write = keeper.next_write(Ticket(1));
            assert_eq!(write.is_some(), half);
            let Some((at, bytes)) = write else { continue };
            assert_ne!(at, in_force, "the slot in force stays");
            assert_eq!(Superblock::decode(&bytes).expect("valid").generation, 8);
            assert!(!keeper.settled() && keeper.done(Ticket(1)) && keeper.settled());
            assert!(keeper.next_write(Ticket(2)).is_none(), "that was all");
        }
    }

    #[test]
    fn who_waits_is_seen_to_be_ready_and_unsettled_until_it_is_taken() {
        let mut keeper = Keeper::new(Superblock::new(Role::Dr), false, false);
        keeper.change(|it| it.epoch = Epoch(2));
        keeper.then("it");
        assert!(!keeper.has_ready());
        keeper.next_write(Ticket(1)).expect("the change");
        assert!(!keeper.has_ready() && keeper.done(Ticket(1)));
        assert!(keeper.has_ready() && !keeper.settled(), "it is durable, and nobody has been told");
        assert_eq!(keeper.ready(), ["it"]);
        assert!(!keeper.has_ready() && keeper.settled());
    }

    /// A start that finds a clean end looks for no torn one.
    #[test]
    fn a_clean_end_is_said_until_anything_changes() {
        let mut keeper: Keeper<()> = Keeper::new(Superblock::new(Role::Dr), false, false);
        let written = |keeper: &mut Keeper<()>| {
            let (_, bytes) = keeper.next_write(Ticket(1)).expect("a change");
            assert!(keeper.done(Ticket(1)));
            Superblock::decode(&bytes).expect("valid").has(CLEAN)
        };
        keeper.change_cleanly();
        assert!(written(&mut keeper));
        keeper.change(|_| {});
        assert!(!written(&mut keeper));
    }
}
