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
}
