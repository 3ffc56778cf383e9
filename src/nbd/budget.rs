//! What all connections of a server may hold together, beside the bounds that each has (I9).
//!
//! A client that never reads, or that sends the first half of a long write, holds memory as long as it likes; many of
//! them would hold all of it. So there is one budget for what goes out (reads in flight, replies not taken), one for
//! what has come in and is being done (writes in flight), and one for what has come in and is not a whole request yet.
//! At the first two nothing new begins; beyond the third, and where replies are not taken, somebody is cut off.

use crate::limits::{SERVER_KEPT_BYTES_MAX, SERVER_READ_BYTES_MAX, SERVER_WRITE_BYTES_MAX};
use crate::nbd::session::Room;

/// What one connection holds, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Reads in flight and replies that were not taken.
    pub read: u64,
    /// Writes in flight.
    pub write: u64,
    /// Received, and not parsed.
    pub kept: u64,
}

/// What all of them hold.
#[derive(Debug, Default)]
pub struct Budget(Held);

impl Budget {
    /// A connection holds `now` instead of `before`.
    pub fn change(&mut self, before: Held, now: Held) {
        let Held { read, write, kept } = &mut self.0;
        *read = *read - before.read + now.read;
        *write = *write - before.write + now.write;
        *kept = *kept - before.kept + now.kept;
    }

    /// What may still begin. A single request is never too much for a budget nobody uses.
    #[must_use]
    pub fn room(&self) -> Room {
        Room {
            read: SERVER_READ_BYTES_MAX.saturating_sub(self.0.read),
            write: SERVER_WRITE_BYTES_MAX.saturating_sub(self.0.write),
        }
    }

    /// Whether somebody has to go.
    #[must_use]
    pub fn keeps_too_much(&self) -> bool {
        self.0.kept > SERVER_KEPT_BYTES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PAYLOAD_BYTES_MAX;

    #[test]
    fn what_is_given_back_is_room_again() {
        let mut budget = Budget::default();
        let all = budget.room();
        assert!(all.read >= u64::from(PAYLOAD_BYTES_MAX) && all.write >= u64::from(PAYLOAD_BYTES_MAX));
        let held = Held { read: 10, write: 20, kept: SERVER_KEPT_BYTES_MAX };
        budget.change(Held::default(), held);
        assert_eq!(budget.room(), Room { read: all.read - 10, write: all.write - 20 });
        assert!(!budget.keeps_too_much());
        let more = Held { read: u64::MAX / 2, write: 0, kept: held.kept + 1 };
        budget.change(held, more);
        assert_eq!(budget.room(), Room { read: 0, write: all.write });
        assert!(budget.keeps_too_much());
        budget.change(more, Held::default());
        assert_eq!(budget.room(), all);
    }
}
