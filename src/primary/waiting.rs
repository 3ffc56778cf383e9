//! Requests that have no seq yet, because a bound says that they have to wait (I9).
//!
//! They wait in two lanes, so that an ordinary write does not wait behind long ones for as long as the link takes over
//! their payloads: ordinary ones go first, and each lane keeps its order. No client can tell, since none of these writes
//! has been answered. Long ones are not starved: one is due when as many bytes have passed it as it has itself, and then
//! the ordinary ones wait until it has begun. So each lane has at least half of what there is, if it wants it, and an
//! ordinary write waits behind one long one at the most.

use std::collections::VecDeque;

use crate::limits::{BLOCK_BYTES, WAITING_SHORT_BYTES};

/// What waits, with the bytes of its payload.
#[derive(Clone, Debug)]
pub struct Waiting<T> {
    ordinary: VecDeque<(u64, T)>,
    long: VecDeque<(u64, T)>,
    /// Bytes of the ordinary ones that have begun since the first of the long ones waits.
    passed_bytes: u64,
}

impl<T> Default for Waiting<T> {
    fn default() -> Waiting<T> {
        Waiting { ordinary: VecDeque::new(), long: VecDeque::new(), passed_bytes: 0 }
    }
}

impl<T> Waiting<T> {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ordinary.is_empty() && self.long.is_empty()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.ordinary.len() + self.long.len()
    }

    /// A request with `bytes` of payload waits, behind the others of its lane.
    pub fn push(&mut self, bytes: u64, request: T) {
        self.lane(bytes).push_back((bytes, request));
    }

    /// The request whose turn it is: to be said to have `begun`, or to be put back.
    pub fn take(&mut self) -> Option<(u64, T)> {
        if self.long_is_next() { self.long.pop_front() } else { self.ordinary.pop_front() }
    }

    /// What was taken last still has to wait: it keeps its turn.
    pub fn put_back(&mut self, bytes: u64, request: T) {
        self.lane(bytes).push_front((bytes, request));
    }

    /// What was taken last waits no longer.
    pub fn begun(&mut self, bytes: u64) {
        if is_long(bytes) || self.long.is_empty() {
            self.passed_bytes = 0;
        } else {
            // One without payload waits for the same room in journal and table.
            self.passed_bytes += bytes.max(1).next_multiple_of(BLOCK_BYTES as u64);
        }
    }

    /// Bytes of the payload whose turn it is.
    #[must_use]
    pub fn next_bytes(&self) -> Option<u64> {
        let lane = if self.long_is_next() { &self.long } else { &self.ordinary };
        lane.front().map(|(bytes, _)| *bytes)
    }

    /// Whether the ordinary ones wait for a long one with so many bytes, the first or taken last.
    #[must_use]
    pub fn is_due(&self, bytes: u64) -> bool {
        self.passed_bytes >= bytes
    }

    /// All of them are given up.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        let Waiting { ordinary, long, .. } = std::mem::take(self);
        ordinary.into_iter().chain(long).map(|(_, request)| request)
    }

    fn long_is_next(&self) -> bool {
        self.ordinary.is_empty() || self.long.front().is_some_and(|(bytes, _)| self.is_due(*bytes))
    }

    fn lane(&mut self, bytes: u64) -> &mut VecDeque<(u64, T)> {
        if is_long(bytes) { &mut self.long } else { &mut self.ordinary }
    }
}

/// Whether a payload is one of those that others need not wait for.
#[must_use]
pub const fn is_long(bytes: u64) -> bool {
    bytes > WAITING_SHORT_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PAYLOAD_PIECE_BYTES_MAX;

    const PIECE: u64 = PAYLOAD_PIECE_BYTES_MAX;
    const SMALL: u64 = 64 << 10;

    /// The next one begins; its name.
    fn begin<T>(waiting: &mut Waiting<T>) -> Option<T> {
        let (bytes, request) = waiting.take()?;
        waiting.begun(bytes);
        Some(request)
    }

    #[test]
    fn an_ordinary_request_waits_behind_no_long_one() {
        let mut waiting = Waiting::default();
        for long in 0..24 {
            waiting.push(PIECE, long);
        }
        waiting.push(SMALL, 100);
        waiting.push(0, 101);
        assert_eq!(waiting.next_bytes(), Some(SMALL));
        assert_eq!((begin(&mut waiting), begin(&mut waiting)), (Some(100), Some(101)));
        let rest: Vec<i32> = std::iter::from_fn(|| begin(&mut waiting)).collect();
        assert_eq!(rest, (0..24).collect::<Vec<_>>(), "each lane keeps its order");
    }

    #[test]
    fn a_long_one_does_not_wait_for_ever_behind_requests_without_payload() {
        let mut waiting = Waiting::default();
        waiting.push(PIECE, true);
        let passed = (0..1 << 20).take_while(|_| {
            waiting.push(0, false);
            begin(&mut waiting) == Some(false)
        });
        assert_eq!(passed.count() as u64, PIECE / BLOCK_BYTES as u64);
    }

    #[test]
    fn a_long_one_waits_for_as_many_bytes_as_it_has() {
        let mut waiting = Waiting::default();
        waiting.push(PIECE, 'a');
        waiting.push(PIECE, 'b');
        let mut between = Vec::new();
        let mut passed = 0;
        for _ in 0..3 * PIECE / SMALL {
            waiting.push(SMALL, '.');
            match begin(&mut waiting).expect("somebody waits") {
                '.' => passed += SMALL,
                long => between.push((long, std::mem::take(&mut passed))),
            }
        }
        assert_eq!(between, [('a', PIECE), ('b', PIECE)]);
    }

    #[test]
    fn who_is_put_back_keeps_its_turn() {
        let mut waiting = Waiting::default();
        waiting.push(PIECE, 'a');
        waiting.begun(PIECE - 1);
        assert!(!waiting.is_due(PIECE), "what is long itself passes nobody");
        for _ in 0..PIECE / SMALL {
            waiting.begun(SMALL);
        }
        assert!(waiting.is_due(PIECE));
        waiting.push(SMALL, '.');
        for _ in 0..2 {
            let (bytes, long) = waiting.take().expect("it waits");
            assert_eq!((bytes, long), (PIECE, 'a'));
            assert!(waiting.is_due(bytes));
            waiting.put_back(bytes, long);
        }
        assert_eq!((begin(&mut waiting), waiting.is_due(PIECE), waiting.len()), (Some('a'), false, 1));
        assert_eq!(waiting.drain().collect::<String>(), ".");
        assert!(waiting.is_empty());
    }
}
