//! Received bytes in the order they came, taken off again without a copy where that is possible.
//!
//! Owns the queue of slices of one connection. Knows nothing of messages: codecs peek at the front
//! and take what is complete. Memory is bounded by whoever pushes (the reactor pauses a connection).

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

/// A queue of byte slices read as one run of bytes.
#[derive(Clone, Debug, Default)]
pub struct Rope {
    /// Never contains an empty slice.
    parts: VecDeque<Bytes>,
    /// Sum of the lengths of `parts`.
    len: usize,
}

impl Rope {
    #[must_use]
    pub fn new() -> Rope {
        Rope::default()
    }

    /// Appends bytes at the back.
    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.len += bytes.len();
            self.parts.push_back(bytes);
        }
    }

    /// Appends the last `new` bytes of `whole`. When what came before them in `whole` is still the end of
    /// the rope (the same memory), both become one part, so that a message received in pieces into one
    /// buffer is taken without a copy.
    ///
    /// # Panics
    /// When `whole` has fewer than `new` bytes.
    pub fn push_tail(&mut self, whole: Bytes, new: usize) {
        let old = whole.len().checked_sub(new).expect("the new bytes are part of the whole");
        if new == 0 {
            return;
        }
        let address = |bytes: &Bytes| bytes.as_ptr() as usize;
        match self.parts.back_mut() {
            Some(last) if address(last) >= address(&whole) && address(last) + last.len() == address(&whole) + old => {
                *last = whole.slice(old - last.len()..);
            }
            _ => self.parts.push_back(whole.slice(old..)),
        }
        self.len += new;
    }

    /// Bytes that wait to be taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies the front into `out` without consuming it; false (and `out` untouched) when there is less.
    #[must_use]
    pub fn peek(&self, out: &mut [u8]) -> bool {
        if self.len < out.len() {
            return false;
        }
        let mut at = 0;
        for part in &self.parts {
            if at == out.len() {
                break;
            }
            let take = part.len().min(out.len() - at);
            out[at..at + take].copy_from_slice(&part[..take]);
            at += take;
        }
        true
    }

    /// Takes the first `n` bytes: a slice of what was pushed when they came in one piece, one copy otherwise.
    ///
    /// # Panics
    /// When fewer than `n` bytes wait: the caller has to compare with [`Rope::len`] first.
    #[must_use]
    pub fn take(&mut self, n: usize) -> Bytes {
        assert!(n <= self.len, "take of {n} bytes from a rope of {}", self.len);
        if n == 0 {
            return Bytes::new();
        }
        self.len -= n;
        let front = self.parts.front_mut().expect("a rope that is not empty has a part");
        if front.len() > n {
            return front.split_to(n);
        }
        if front.len() == n {
            return self.parts.pop_front().expect("the part just looked at");
        }
        let mut joined = BytesMut::with_capacity(n);
        while joined.len() < n {
            let front = self.parts.front_mut().expect("len counts the bytes of all parts");
            let want = (n - joined.len()).min(front.len());
            joined.extend_from_slice(&front[..want]);
            self.drop_front(want);
        }
        joined.freeze()
    }

    /// Drops the first `n` bytes.
    ///
    /// # Panics
    /// When fewer than `n` bytes wait.
    pub fn skip(&mut self, n: usize) {
        assert!(n <= self.len, "skip of {n} bytes in a rope of {}", self.len);
        self.len -= n;
        let mut left = n;
        while left > 0 {
            let want = left.min(self.parts.front().map_or(0, Bytes::len));
            self.drop_front(want);
            left -= want;
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.parts.clear();
        self.len = 0;
    }

    /// Drops `n` bytes of the first part, and the part with its last byte; `len` is the caller's.
    fn drop_front(&mut self, n: usize) {
        let front = self.parts.front_mut().expect("len counts the bytes of all parts");
        if front.len() == n {
            self.parts.pop_front();
        } else {
            front.advance(n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(parts: &[&'static [u8]]) -> Rope {
        let mut rope = Rope::new();
        parts.iter().for_each(|part| rope.push(Bytes::from_static(part)));
        rope
    }

    #[test]
    fn take_within_one_part_shares_its_memory() {
        let whole = Bytes::from(vec![7; 100]);
        let mut rope = Rope::new();
        rope.push(whole.clone());
        assert_eq!(rope.take(40).as_ptr(), whole.as_ptr());
        assert_eq!(rope.take(60).as_ptr(), whole[40..].as_ptr());
        assert!(rope.is_empty());
    }

    #[test]
    fn a_buffer_filled_in_pieces_is_taken_without_a_copy() {
        let whole = Bytes::from((0..100).collect::<Vec<u8>>());
        let mut rope = rope(&[b"head"]);
        rope.push_tail(whole.slice(..30), 30);
        rope.push_tail(whole.slice(..70), 40);
        rope.skip(4 + 10);
        rope.push_tail(whole.clone(), 30);
        assert_eq!(rope.len(), 90);
        let taken = rope.take(90);
        assert_eq!(taken, whole.slice(10..));
        assert_eq!(taken.as_ptr(), whole[10..].as_ptr());
        rope.push_tail(whole.clone(), 5);
        assert_eq!(rope.take(5), whole.slice(95..), "only new bytes are appended when nothing precedes them");
    }

    #[test]
    fn take_across_parts_joins_them() {
        let mut rope = rope(&[b"ab", b"", b"cde", b"f"]);
        assert_eq!(rope.len(), 6);
        assert_eq!(&rope.take(4)[..], b"abcd");
        assert_eq!(&rope.take(2)[..], b"ef");
        assert_eq!(&rope.take(0)[..], b"");
    }

    #[test]
    fn peek_consumes_nothing_and_refuses_what_is_not_there() {
        let mut rope = rope(&[b"ab", b"cd"]);
        let mut out = [0; 3];
        assert!(rope.peek(&mut out));
        assert_eq!(&out, b"abc");
        assert!(!rope.peek(&mut [0; 5]));
        rope.skip(3);
        assert_eq!(&rope.take(1)[..], b"d");
        assert!(rope.peek(&mut []));
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_a_flat_buffer(
            steps in proptest::collection::vec((0u8..4, proptest::collection::vec(0u8.., 0..9), 0usize..20), 0..60),
        ) {
            let (mut rope, mut flat) = (Rope::new(), Vec::new());
            for (action, bytes, n) in steps {
                let mut front = vec![0; n];
                let n = n.min(flat.len());
                match action {
                    0 => assert_eq!(rope.take(n), flat.drain(..n).collect::<Vec<u8>>()),
                    1 => {
                        rope.skip(n);
                        flat.drain(..n);
                    }
                    _ => {
                        flat.extend(&bytes);
                        rope.push(bytes.into());
                    }
                }
                assert_eq!((rope.len(), rope.is_empty()), (flat.len(), flat.is_empty()));
                assert_eq!(rope.peek(&mut front), flat.len() >= front.len());
                if flat.len() >= front.len() {
                    assert_eq!(front, flat[..front.len()]);
                }
            }
        }
    }
}
