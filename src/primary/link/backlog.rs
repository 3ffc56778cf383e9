//! What was given to a stream and has not left this host.
//!
//! It holds memory until the kernel has taken it, also when its payload went to the disk FIFO meanwhile and is charged
//! to nobody any more (I9); a small one holds whole pages. So there is a bound for it, apart from the window that DR
//! grants. The shell says from time to time how much of it is left; what DR acknowledges has left as well.

use std::collections::VecDeque;

use crate::primary::window::Held;

/// What one stream has been given, in order.
#[derive(Clone, Debug, Default)]
pub struct Backlog {
    parts: VecDeque<Held>,
    /// The number of the first part.
    first: u64,
    held: Held,
}

impl Backlog {
    /// A message with this many bytes of data is given to the stream; its number.
    pub fn push(&mut self, bytes: u64) -> u64 {
        let part = Held::one(bytes);
        self.parts.push_back(part);
        self.held += part;
        self.first + self.parts.len() as u64 - 1
    }

    /// The message of this number has been acknowledged: it and those before it have left.
    pub fn reached(&mut self, number: u64) {
        while self.first <= number && self.pop() {}
    }

    /// Of all that was given, at most `bytes` have not left, heads and all.
    pub fn left(&mut self, bytes: u64) {
        while self.parts.front().is_some_and(|part| self.held.bytes - part.bytes >= bytes) {
            self.pop();
        }
    }

    /// Whether the message of this number may not have left.
    #[must_use]
    pub fn holds(&self, number: u64) -> bool {
        number >= self.first
    }

    /// What it takes, bytes.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.held.memory
    }

    fn pop(&mut self) -> bool {
        let Some(part) = self.parts.pop_front() else { return false };
        self.first += 1;
        self.held -= part;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_leave_from_the_front_by_what_is_left_and_by_what_is_acknowledged() {
        let mut backlog = Backlog::default();
        let numbers: Vec<u64> = (0..4).map(|_| backlog.push(1000)).collect();
        assert_eq!(numbers, [0, 1, 2, 3]);
        let one = Held::memory_of(1000);
        assert!(one > 4096, "a small one takes a page");
        backlog.left(5000);
        assert_eq!(backlog.memory(), 4 * one, "heads are left as well");
        backlog.left(2100);
        assert_eq!(backlog.memory(), 3 * one, "of the second one something is left");
        backlog.reached(1);
        assert_eq!(backlog.memory(), 2 * one);
        backlog.reached(0);
        assert_eq!(backlog.memory(), 2 * one, "known long since");
        backlog.left(0);
        assert_eq!(backlog.memory(), 0);
        assert_eq!(backlog.push(5), 4);
        backlog.reached(4);
        assert_eq!(backlog.memory(), 0);
    }
}
