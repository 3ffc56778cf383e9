//! The spool's placement and reclaim: where the next entry goes, what is still needed, what is free.
//!
//! Owns positions of a circular log; bytes are [`crate::format::spool`]'s, which payload stands where is
//! [`super::history`]'s.
//!
//! ```text
//!   floor ≤ first live ≤ head ≤ floor + bytes      positions grow for ever; where an entry stands says [`Ring`]
//!   └ durable in the superblock: recovery scans floor .. floor + bytes
//! ```
//!
//! Invariants:
//! - Nothing is placed at or beyond `floor + bytes`: no entry that recovery may need is overwritten.
//! - Payloads come in any order, but one is stored early only if every payload missing before it still
//!   finds room afterwards, in whatever order ([`Spool::admits`]): so they need only [`Spool::fits`] (I9).
//! - Positions depend on the order of placement alone: a floor that moves takes no room away.
//! - While its shape is changed ([`Spool::hold`]) nothing is placed: where it stands then, the superblock says.

use std::collections::VecDeque;

use crate::format::ring::Ring;

#[derive(Clone, Copy, Debug)]
struct Slot {
    pos: u64,
    bytes: u64,
    live: bool,
}

/// The log of payloads received and not yet applied.
#[derive(Clone, Debug)]
pub struct Spool {
    ring: Ring,
    /// Nothing is placed: its shape is being changed.
    held: bool,
    floor: u64,
    head: u64,
    /// Entries in the order of their positions; the dead at the front are gone.
    slots: VecDeque<Slot>,
    live_bytes: u64,
}

impl Spool {
    /// An empty log that stands at `head`; the durable floor is `floor`.
    #[must_use]
    pub fn new(ring: Ring, floor: u64, head: u64) -> Spool {
        assert!(floor <= head && head <= floor + ring.bytes(), "recovery finds the head within one round of the floor");
        Spool { ring, held: false, floor, head, slots: VecDeque::new(), live_bytes: 0 }
    }

    /// Bytes that it was made with: what it is given for.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.ring.size
    }

    /// Bytes that it has.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ring.bytes()
    }

    #[must_use]
    pub fn ring(&self) -> Ring {
        self.ring
    }

    /// Nothing is placed until its shape is [`Spool::reshaped`].
    pub fn hold(&mut self) {
        self.held = true;
    }

    /// Has this shape from where it stands on.
    pub fn reshaped(&mut self, ring: Ring) {
        (self.ring, self.held) = (ring, false);
    }

    /// The log with another piece of its size, if it can be entered here.
    #[must_use]
    pub fn grown(&self) -> Option<Ring> {
        self.ring.grown(self.floor, self.head).filter(|_| !self.held)
    }

    /// Whether what it has grown by is needed no more.
    #[must_use]
    pub fn outgrown(&self) -> bool {
        self.ring.is_extended() && !self.held && !self.ring.extends_into(self.floor, self.head)
    }

    /// Nothing in it is needed any more.
    pub fn clear(&mut self) {
        self.slots.clear();
        self.live_bytes = 0;
        self.leave_extension();
    }

    /// With nothing in it, goes on behind what it has grown by, if it stands there.
    pub fn leave_extension(&mut self) {
        while self.slots.is_empty() && self.ring.extends_into(self.head, self.head + 1) {
            self.head = self.ring.piece_end(self.head);
        }
    }

    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Where the log stands, and its durable floor.
    #[must_use]
    pub fn bounds(&self) -> (u64, u64) {
        (self.floor, self.head)
    }

    /// Entry found by recovery, in the order of positions.
    pub fn found(&mut self, pos: u64, bytes: u64) {
        assert!(pos >= self.slots.back().map_or(self.floor, |slot| slot.pos + slot.bytes), "entries never overlap");
        assert!(pos + bytes <= self.head, "the head is behind every entry");
        self.slots.push_back(Slot { pos, bytes, live: true });
        self.live_bytes += bytes;
    }

    /// Whether an entry fits now.
    #[must_use]
    pub fn fits(&self, bytes: u64) -> bool {
        self.fits_above(self.floor, bytes)
    }

    /// Whether an entry fits once that is the durable floor.
    #[must_use]
    pub fn fits_above(&self, floor: u64, bytes: u64) -> bool {
        !self.held && bytes <= self.ring.size && self.ring.place(self.head, bytes) + bytes <= floor + self.ring.bytes()
    }

    /// Whether an entry may be placed so that entries of `owed` bytes together, the longest of them
    /// `longest`, can all follow it in whatever order before anything is freed.
    #[must_use]
    pub fn admits(&self, bytes: u64, owed: u64, longest: u64) -> bool {
        if !self.fits(bytes) {
            return false;
        }
        let head = self.ring.place(self.head, bytes) + bytes;
        let end = self.floor + self.ring.bytes();
        // What is skipped where a piece of the log ends is shorter than the longest entry.
        end - head >= owed + longest * self.ring.ends_between(head, end)
    }

    /// Places an entry that fits; its position.
    pub fn put(&mut self, bytes: u64) -> u64 {
        assert!(self.fits(bytes), "callers ask first");
        let pos = self.ring.place(self.head, bytes);
        self.head = pos + bytes;
        self.slots.push_back(Slot { pos, bytes, live: true });
        self.live_bytes += bytes;
        pos
    }

    /// The entry at `pos` is not needed any more (once the next superblock is durable).
    pub fn free(&mut self, pos: u64) {
        if let Ok(index) = self.slots.binary_search_by_key(&pos, |slot| slot.pos) {
            let slot = &mut self.slots[index];
            if slot.live {
                slot.live = false;
                self.live_bytes -= slot.bytes;
            }
        }
        while self.slots.front().is_some_and(|slot| !slot.live) {
            self.slots.pop_front();
        }
    }

    /// With nothing in it, goes on at the next start of the log, so that even an entry as long as the log
    /// fits once the floor has followed. Whether that moved anything.
    pub fn rewind(&mut self) -> bool {
        let start = self.head.next_multiple_of(self.ring.size);
        let moves = self.slots.is_empty() && start != self.head && !self.ring.is_extended();
        if moves {
            self.head = start;
        }
        moves
    }

    /// The floor the next superblock may name: position of the oldest entry that is needed.
    #[must_use]
    pub fn first_live(&self) -> u64 {
        self.slots.front().map_or(self.head, |slot| slot.pos)
    }

    /// A superblock that names this floor is durable: what is below may be overwritten.
    pub fn release(&mut self, floor: u64) {
        assert!(floor <= self.first_live(), "only what is dead is given up");
        self.floor = self.floor.max(floor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn room_comes_back_only_with_the_durable_floor() {
        let mut spool = Spool::new(Ring::plain(4096), 0, 0);
        let (a, b) = (spool.put(2048), spool.put(2048));
        assert!(!spool.fits(512));
        spool.free(a);
        assert!(!spool.fits(512), "the superblock still names it");
        let floor = spool.first_live();
        assert_eq!(floor, b);
        spool.release(floor);
        assert_eq!(spool.put(2048), 4096);
    }

    proptest! {
        /// Payloads come in random order through a bounded reordering window, are applied in order, and
        /// freed: whoever is next in order always finds room.
        #[test]
        fn the_next_in_order_always_finds_room(
            lengths in prop::collection::vec(1u64..9, 1..120),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 1..400),
        ) {
            let size = 32 * 512;
            let bytes: Vec<u64> = lengths.iter().map(|length| length * 512).collect();
            let mut spool = Spool::new(Ring::plain(size), 0, 0);
            let mut placed: Vec<Option<u64>> = vec![None; bytes.len()];
            let mut applied = 0;
            let mut highest = 0;
            let mut picks = picks.into_iter().cycle();
            while applied < bytes.len() {
                let reach = bytes.len().min(applied + 24);
                let open: Vec<usize> = (applied..reach).filter(|&i| placed[i].is_none()).collect();
                let mut tries: Vec<usize> = vec![*picks.next().expect("cycle").get(&open)];
                tries.push(open[0]);
                let mut progress = false;
                for i in tries {
                    if placed[i].is_some() { continue; }
                    let top = highest.max(i);
                    if i < highest && spool.fits(bytes[i]) {
                        placed[i] = Some(spool.put(bytes[i]));
                        progress = true;
                        continue;
                    }
                    let owed: Vec<u64> =
                        (applied..top).filter(|&j| j != i && placed[j].is_none()).map(|j| bytes[j]).collect();
                    if spool.admits(bytes[i], owed.iter().sum(), owed.iter().copied().max().unwrap_or(0)) {
                        placed[i] = Some(spool.put(bytes[i]));
                        highest = top;
                        progress = true;
                    }
                }
                while applied < bytes.len() && let Some(pos) = placed[applied] {
                    spool.free(pos);
                    applied += 1;
                    progress = true;
                }
                let floor = spool.first_live();
                spool.release(floor);
                prop_assert!(progress, "stuck at {applied}");
            }
        }
    }
}
