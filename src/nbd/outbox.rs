//! What a session has to say: small pieces coalesced into one buffer, payloads passed on uncopied.
//!
//! A turn that answers many writes yields one buffer of many 16-byte replies instead of many buffers.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes to be sent, in order.
#[derive(Debug, Default)]
pub struct Outbox {
    parts: Vec<Bytes>,
    tail: BytesMut,
    promises: bool,
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
    }

    /// Appends a payload; only short ones are copied, where a copy is cheaper than another part.
    pub fn push(&mut self, payload: Bytes) {
        if payload.len() <= COPY_BYTES_MAX {
            return self.put(&payload);
        }
        self.seal();
        self.parts.push(payload);
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

    /// Hands out everything that waits, in order.
    pub fn drain(&mut self) -> std::vec::Drain<'_, Bytes> {
        self.seal();
        self.parts.drain(..)
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.parts.push(self.tail.split().freeze());
        }
    }
}

/// Room asked for at a time; a buffer is used again once everything in it was sent.
const TAIL_BYTES: usize = 4096;
/// Up to here a payload is copied next to its head.
const COPY_BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

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
}
