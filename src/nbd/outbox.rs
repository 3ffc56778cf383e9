//! What a session has to say: small pieces coalesced into one buffer, payloads passed on uncopied.
//!
//! A turn that answers many writes yields one buffer of many 16-byte replies instead of many buffers.
//!
//! Small pieces, replies without data above all, have a bound (I9): whoever makes them looks whether the outbox `is_full`
//! before it goes on. Payloads have room of their own, in the budget of all connections.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use crate::limits::LONG_BYTES;

/// Bytes to be sent, in order.
#[derive(Debug)]
pub struct Outbox {
    parts: Vec<Part>,
    tail: BytesMut,
    promises: bool,
    /// Bytes of small pieces that wait.
    small: u64,
    /// How many of them there may be.
    room: u64,
}

/// A piece of what is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Small pieces.
    Small(Bytes),
    Payload(Bytes),
    /// A payload, or a piece of one, that has its room in the lane of long requests.
    Long(Bytes),
}

impl Part {
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        let (Part::Small(bytes) | Part::Payload(bytes) | Part::Long(bytes)) = self;
        bytes
    }
}

impl Default for Outbox {
    fn default() -> Outbox {
        Outbox { parts: Vec::new(), tail: BytesMut::new(), promises: false, small: 0, room: u64::MAX }
    }
}

impl Outbox {
    #[must_use]
    pub fn new() -> Outbox {
        Outbox::default()
    }

    /// Appends a small piece by copying it.
    pub fn put(&mut self, small: &[u8]) {
        if self.tail.capacity() == self.tail.len() {
            self.tail.reserve(TAIL_BYTES);
        }
        self.tail.put_slice(small);
        self.small += small.len() as u64;
    }

    /// Appends a payload; only short ones are copied, where a copy is cheaper than another part.
    pub fn push(&mut self, payload: Bytes) {
        let long = payload.len() as u64 > LONG_BYTES;
        self.push_part(payload, if long { Part::Long } else { Part::Payload });
    }

    /// As `push`, for a piece of a long one.
    pub fn push_piece(&mut self, piece: Bytes) {
        self.push_part(piece, Part::Long);
    }

    fn push_part(&mut self, payload: Bytes, part: fn(Bytes) -> Part) {
        if payload.len() <= COPY_BYTES_MAX {
            return self.put(&payload);
        }
        self.seal();
        self.parts.push(part(payload));
    }

    /// What is in here tells of something that is promised: it is sent as long as the promise may be given (I7).
    pub fn promise(&mut self) {
        self.promises = true;
    }

    /// Whether a promise was given since this was last asked.
    pub fn take_promises(&mut self) -> bool {
        std::mem::take(&mut self.promises)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.tail.is_empty()
    }

    /// At most about so many bytes of small pieces are to wait here from now on.
    pub fn set_room(&mut self, bytes: u64) {
        self.room = bytes;
    }

    /// Whether no more small pieces are to be asked for, while so many bytes of them are still to come.
    #[must_use]
    pub fn is_full(&self, owed: u64) -> bool {
        self.small + owed >= self.room
    }

    /// Hands out everything that waits, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = Bytes> + '_ {
        self.drain_parts().map(Part::into_bytes)
    }

    /// As `drain`; what is small is told from payloads.
    pub fn drain_parts(&mut self) -> std::vec::Drain<'_, Part> {
        self.seal();
        self.small = 0;
        self.parts.drain(..)
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.parts.push(Part::Small(self.tail.split().freeze()));
        }
    }
}

/// Which of the bytes that were given to a connection, and that it has not taken yet, are payloads.
#[derive(Debug, Default)]
pub struct Untaken {
    /// Where each payload ends among all bytes that were ever given, its bytes, and whether it is a long one.
    parts: VecDeque<(u64, u64, bool)>,
    /// Their sums.
    bytes: Payloads,
}

/// Bytes of payloads, long ones apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Payloads {
    pub short: u64,
    pub long: u64,
}

impl Payloads {
    fn of(&mut self, long: bool) -> &mut u64 {
        if long { &mut self.long } else { &mut self.short }
    }
}

impl Untaken {
    /// A payload was given, which ends there.
    pub fn give(&mut self, end: u64, bytes: u64, long: bool) {
        self.parts.push_back((end, bytes, long));
        *self.bytes.of(long) += bytes;
    }

    /// What is left of them when so many of all bytes have been taken.
    pub fn payloads(&mut self, taken: u64) -> Payloads {
        while let Some((end, bytes, long)) = self.parts.front().copied() {
            if end > taken {
                let mut left = self.bytes;
                *left.of(long) -= bytes.saturating_sub(end - taken);
                return left;
            }
            self.parts.pop_front();
            *self.bytes.of(long) -= bytes;
        }
        self.bytes
    }
}

/// Room asked for at a time; a buffer is used again once everything in it was sent.
const TAIL_BYTES: usize = 4096;
/// Up to here a payload is copied next to its head.
pub const COPY_BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::reply::{Style, To};

    #[test]
    fn small_pieces_coalesce_and_payloads_stay_where_they_are() {
        let mut out = Outbox::new();
        assert!(out.is_empty());
        let payload = Bytes::from(vec![7; 4096]);
        for _ in 0..3 {
            out.put(&[1; 16]);
        }
        out.push(payload.clone());
        out.put(&[2; 16]);
        out.push(Bytes::from_static(b"short"));
        assert!(!out.is_empty());
        let parts: Vec<Bytes> = out.drain().collect();
        assert_eq!(parts.iter().map(Bytes::len).collect::<Vec<_>>(), [48, 4096, 21]);
        assert_eq!(parts[1].as_ptr(), payload.as_ptr());
        assert!(out.is_empty());
    }

    #[test]
    fn small_pieces_have_a_bound_and_payloads_do_not_count() {
        let mut out = Outbox::new();
        assert!(!out.is_full(1 << 40));
        out.set_room(64);
        out.push(Bytes::from(vec![7; 4096]));
        out.put(&[1; 48]);
        assert!(!out.is_full(15) && out.is_full(16));
        out.put(&[1; 160]);
        assert!(out.is_full(0));
        assert!(
            matches!(&out.drain_parts().collect::<Vec<_>>()[..], [Part::Payload(_), Part::Small(small)] if small.len() == 208)
        );
        assert!(!out.is_full(0));
        out.set_room(0);
        assert!(out.is_full(0));
    }

    /// Each stays in the lane that it has its room in.
    #[test]
    fn long_payloads_and_pieces_of_them_are_told_from_others() {
        let bytes = |length: u64| Bytes::from(vec![7; usize::try_from(length).expect("small")]);
        let mut out = Outbox::new();
        out.push(bytes(LONG_BYTES));
        out.push(bytes(LONG_BYTES + 1));
        out.push_piece(bytes(4096));
        for style in [Style::Simple, Style::Structured, Style::Extended] {
            style.data(&mut out, To { cookie: 1, offset: 0 }, bytes(4096));
        }
        Style::Structured.part(&mut out, To { cookie: 1, offset: 0 }, 0, bytes(4096), true);
        let parts: Vec<bool> = out
            .drain_parts()
            .filter(|part| !matches!(part, Part::Small(_)))
            .map(|part| matches!(part, Part::Long(_)))
            .collect();
        assert_eq!(parts, [false, true, true, false, false, false, true]);
    }

    #[test]
    fn what_is_not_taken_of_payloads_is_told_from_what_is_between_them() {
        let mut untaken = Untaken::default();
        let long = LONG_BYTES + 1;
        untaken.give(116, 100, false);
        untaken.give(132 + long, long, true);
        assert_eq!(untaken.payloads(0), Payloads { short: 100, long });
        assert_eq!(untaken.payloads(16), Payloads { short: 100, long });
        assert_eq!(untaken.payloads(17), Payloads { short: 99, long });
        assert_eq!(untaken.payloads(116), Payloads { short: 0, long });
        assert_eq!(untaken.payloads(133), Payloads { short: 0, long: long - 1 });
        untaken.give(200 + long, 10, false);
        assert_eq!(untaken.payloads(132 + long), Payloads { short: 10, long: 0 });
        assert_eq!(untaken.payloads(200 + long), Payloads::default());
    }
}
