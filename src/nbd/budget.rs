//! What all connections of a server may hold together (I9).
//!
//! A client that never reads, or that sends the first half of a write, holds memory as long as it likes; many of them
//! would hold all of it. So there is a budget for what goes out (reads in flight, replies not taken) and one for what
//! comes in (writes): two, so that writes that wait for a peer never keep a read waiting. And each has lanes:
//!
//! | lane | payload | takes room | of what comes in |
//! |---|---|---|---|
//! | small | up to 64 KiB | once it has arrived: until then it is part of what is received ahead | all that is free |
//! | short | up to 1 MiB | from its head on, for its memory is there to receive it; where others hold many, once the beginning of its payload is there, too | not what is kept for small ones |
//! | long | more, in pieces | each piece as a short one | a budget of its own |
//!
//! So no number of clients who send one byte after the other keeps small writes waiting, and the few long requests keep
//! nobody waiting but each other.
//!
//! Of the lanes of small and short requests a client may hold as much as it leaves free: alone, half; beside n that are
//! stuck with their share, one part in n + 2. So nobody who is stuck stops another one. Of the lane of
//! long ones a client may hold half, and where others use it, one small piece: who is stuck with one holds little, many
//! such find room side by side, and should there be no more, they are cut off together.

use crate::limits::{
    LONG_BYTES, SERVER_CROWDED_BYTES, SERVER_LONG_BYTES_MAX, SERVER_LONG_PIECE_BYTES, SERVER_MANY_BYTES,
    SERVER_READ_BYTES_MAX, SERVER_SMALL_KEPT_BYTES, SERVER_WRITE_BYTES_MAX, SMALL_BYTES,
};

/// One of something for the bytes that go to a client, and one for those that come from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ways<T> {
    pub read: T,
    pub write: T,
}

/// One of something for small requests, one for other ordinary ones, and one for long ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lanes<T> {
    pub small: T,
    pub short: T,
    pub long: T,
}

/// Bytes that are held.
pub type Held = Ways<Lanes<u64>>;

/// What may begin on one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    pub bytes: Lanes<u64>,
    /// What of the lane of long requests it may hold beside what it does: not for others to give.
    pub own_long: u64,
    /// Others use the lane of long requests, or wait for it.
    pub crowded: bool,
}

/// What all clients hold.
#[derive(Debug, Default)]
pub struct Budget(Held);

impl Lanes<u64> {
    /// A request of this size, in its lane.
    #[must_use]
    pub fn of(bytes: u64) -> Lanes<u64> {
        match bytes {
            _ if bytes > LONG_BYTES => Lanes::long(bytes),
            _ if bytes > SMALL_BYTES => Lanes { short: bytes, ..Lanes::default() },
            _ => Lanes { small: bytes, ..Lanes::default() },
        }
    }

    /// A piece of a long one, however short it is.
    #[must_use]
    pub fn long(bytes: u64) -> Lanes<u64> {
        Lanes { long: bytes, ..Lanes::default() }
    }

    /// All of it.
    pub fn sum(&self) -> u64 {
        self.small + self.short + self.long
    }
}

impl std::ops::AddAssign for Lanes<u64> {
    fn add_assign(&mut self, more: Lanes<u64>) {
        self.small += more.small;
        self.short += more.short;
        self.long += more.long;
    }
}

impl std::ops::SubAssign for Lanes<u64> {
    fn sub_assign(&mut self, less: Lanes<u64>) {
        self.small -= less.small;
        self.short -= less.short;
        self.long -= less.long;
    }
}

impl Share {
    /// Whatever the connection's own bounds allow.
    pub const ALL: Share =
        Share { bytes: Lanes { small: u64::MAX, short: u64::MAX, long: u64::MAX }, own_long: u64::MAX, crowded: false };

    /// Whether a request may begin that takes so much.
    #[must_use]
    pub fn allows(&self, cost: Lanes<u64>) -> bool {
        cost.small <= self.bytes.small && cost.short <= self.bytes.short && cost.long <= self.bytes.long
    }

    /// Takes the room of a request, if it is there.
    pub fn take(&mut self, cost: Lanes<u64>) -> bool {
        let allowed = self.allows(cost);
        if !allowed || *self == Share::ALL {
            return allowed;
        }
        self.bytes.long -= cost.long;
        self.own_long = self.own_long.saturating_sub(cost.long);
        // It holds more, and less is free.
        self.bytes.small = self.bytes.small.saturating_sub(2 * (cost.small + cost.short));
        self.bytes.short = self.bytes.short.saturating_sub(2 * cost.short).min(self.bytes.small);
        allowed
    }

    /// Others use the lane of long requests, or wait for it, and this client holds so much of it.
    pub fn crowd(&mut self, own_long: u64) {
        (self.crowded, self.own_long) = (true, SMALL_BYTES.saturating_sub(own_long));
    }

    /// The longest piece of a long request that may begin.
    #[must_use]
    pub fn piece_max(&self) -> u64 {
        if self.crowded { SMALL_BYTES } else { SERVER_LONG_PIECE_BYTES }
    }
}

impl Budget {
    /// A connection holds `now` instead of `before`.
    pub fn change(&mut self, before: Held, now: Held) {
        let Ways { read, write } = &mut self.0;
        *read -= before.read;
        *read += now.read;
        *write -= before.write;
        *write += now.write;
    }

    /// What a client that holds `own` may begin.
    #[must_use]
    pub fn room(&self, own: Held) -> Ways<Share> {
        let Ways { read, write } = self.0;
        Ways {
            read: share(SERVER_READ_BYTES_MAX, 0, read, own.read),
            write: share(SERVER_WRITE_BYTES_MAX, SERVER_SMALL_KEPT_BYTES, write, own.write),
        }
    }

    /// Whether others hold so many short writes that one which takes its time is to begin before it has room.
    #[must_use]
    pub fn others_hold_many(&self, own: Held) -> bool {
        self.0.write.short - own.write.short > SERVER_MANY_BYTES
    }

    /// Whether what keeps a short write waiting are small ones, and not those of its own lane.
    #[must_use]
    pub fn small_writes_are_many(&self) -> bool {
        self.0.write.short < (SERVER_WRITE_BYTES_MAX - SERVER_SMALL_KEPT_BYTES) / 2
    }
}

fn share(most: u64, kept: u64, used: Lanes<u64>, own: Lanes<u64>) -> Share {
    let small = most.saturating_sub(used.small + used.short).saturating_sub(own.small + own.short);
    let short = (most - kept).saturating_sub(used.short).saturating_sub(own.short).min(small);
    let long = SERVER_LONG_BYTES_MAX.saturating_sub(used.long);
    let own_long = (SERVER_LONG_BYTES_MAX / 2).saturating_sub(own.long);
    let mut share = Share { bytes: Lanes { small, short, long }, own_long, crowded: false };
    if used.long.saturating_sub(own.long) >= SERVER_CROWDED_BYTES {
        share.crowd(own.long);
    }
    share
}

#[cfg(test)]
mod tests {
    use super::*;
    const STEP: u64 = 64 << 10;

    fn reads(short: u64, long: u64) -> Held {
        Ways { read: Lanes { small: 0, short, long }, write: Lanes::default() }
    }

    /// What a client gets that asks for one thing after another.
    fn fill(budget: &mut Budget) -> u64 {
        let mut own = 0;
        loop {
            let mut room = budget.room(reads(own, 0));
            let before = own;
            while room.read.take(Lanes::of(STEP)) {
                own += STEP;
            }
            if own == before {
                return own;
            }
            budget.change(reads(before, 0), reads(own, 0));
        }
    }

    #[test]
    fn those_who_are_stuck_leave_as_much_as_each_of_them_has() {
        let mut budget = Budget::default();
        let mut free = SERVER_READ_BYTES_MAX;
        while free > 2 * STEP {
            let got = fill(&mut budget);
            assert!(got.abs_diff(free / 2) <= STEP, "{got} of {free}");
            free -= got;
            assert!(
                budget.room(Held::default()).read.allows(Lanes { short: free, ..Lanes::default() }),
                "for a new one all of it is free"
            );
        }
    }

    #[test]
    fn long_requests_wait_for_each_other_only() {
        let mut budget = Budget::default();
        let (longest, long) = (SERVER_LONG_BYTES_MAX / 2, LONG_BYTES + 1);
        let mut room = budget.room(Held::default());
        assert!(room.read.take(Lanes::of(longest)) && room.read.take(Lanes::long(longest)));
        assert!(!room.read.allows(Lanes::of(long)), "the lane is full");
        budget.change(Held::default(), reads(0, 2 * longest));
        let room = budget.room(Held::default());
        assert!(
            !room.read.allows(Lanes::of(long)) && room.read.allows(Lanes::of(LONG_BYTES)),
            "ordinary ones pass it by"
        );
        assert!(
            room.write.allows(Lanes::of(longest)),
            "writes that wait keep no read waiting, nor the other way round"
        );
        budget.change(reads(0, 2 * longest), reads(0, longest));
        assert!(budget.room(Held::default()).read.allows(Lanes::of(longest)));
    }

    #[test]
    fn what_is_given_back_is_room_again() {
        let mut budget = Budget::default();
        let all = budget.room(Held::default());
        let held = reads(u64::MAX / 4, 20);
        budget.change(Held::default(), held);
        assert!(!budget.room(Held::default()).read.allows(Lanes::of(1)));
        budget.change(held, Held::default());
        assert_eq!(budget.room(Held::default()), all);
        let mut unbound = Share::ALL;
        assert!(unbound.take(Lanes::of(u64::MAX / 4)) && unbound == Share::ALL);
    }

    /// Whatever others hold of short writes, small ones begin, and those that were begun leave room for short ones.
    #[test]
    fn short_writes_leave_what_is_kept_for_small_ones() {
        let mut budget = Budget::default();
        let mut taken = Lanes::default();
        loop {
            let mut room = budget.room(Held::default()).write;
            if !room.take(Lanes::of(LONG_BYTES / 2)) {
                break;
            }
            let before = Ways { read: Lanes::default(), write: taken };
            taken.short += LONG_BYTES / 2;
            budget.change(before, Ways { write: taken, ..before });
        }
        assert_eq!(taken.short, SERVER_WRITE_BYTES_MAX - SERVER_SMALL_KEPT_BYTES);
        let mut room = budget.room(Held::default()).write;
        assert!(!room.allows(Lanes::of(SMALL_BYTES + 1)) && !budget.small_writes_are_many());
        assert!(room.take(Lanes::of(SMALL_BYTES)) && room.bytes.small == SERVER_SMALL_KEPT_BYTES - 2 * SMALL_BYTES);
        let few = Ways { read: Lanes::default(), write: Lanes { small: SERVER_SMALL_KEPT_BYTES, ..Lanes::default() } };
        let mut budget = Budget::default();
        budget.change(Held::default(), few);
        assert!(budget.room(Held::default()).write.allows(Lanes::of(LONG_BYTES)) && budget.small_writes_are_many());
    }

    /// Whoever is stuck with a long request holds little of its lane once others use it.
    #[test]
    fn many_who_are_stuck_with_long_requests_leave_room_for_those_who_are_not() {
        let mut budget = Budget::default();
        let mut stuck = Vec::new();
        loop {
            let mut room = budget.room(Held::default()).read;
            let mut held = 0;
            while room.own_long >= room.piece_max() && room.take(Lanes::long(room.piece_max())) {
                held += room.piece_max();
                budget.change(Held::default(), Ways { read: Lanes::long(room.piece_max()), ..Ways::default() });
            }
            if held == 0 {
                break;
            }
            stuck.push(held);
        }
        assert_eq!((stuck[0], stuck[1]), (SERVER_LONG_BYTES_MAX / 2, SMALL_BYTES), "the first is alone");
        assert_eq!(stuck.len() as u64, 1 + SERVER_LONG_BYTES_MAX / 2 / SMALL_BYTES);
        assert!(!budget.room(Held::default()).write.crowded, "the other way has its own");
    }
}
