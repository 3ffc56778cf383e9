//! Where received bytes land: the receive plan of one connection.
//!
//! Without expectation: one plain segment that grows and shrinks with what came last. With a hint of
//! messages of `head` bytes followed by `body` bytes: pairs of segments, heads packed into one page,
//! each body in pages of its own, so that it can be written with direct I/O without a copy. A guess that
//! turns out wrong costs a copy later, never a byte. A long body is received when its head has been seen, so that
//! whoever has no room for it can pause the connection first.
//!
//! Invariants:
//! - A byte of a segment is exposed once it is received, and never received into again.
//! - Segments are filled strictly in order; what is left of a plan is where the stream goes on.
//! - An idle connection holds no more than what its last receives warranted.

use std::collections::VecDeque;
use std::sync::Arc;

use nix::libc;

use super::arena::{PAGE_BYTES, Run};
use super::ring::Kernel;
use crate::core::rope::Rope;

/// Most pairs of head and body in one plan.
const PAIRS_MAX: usize = 16;
/// Most bytes of bodies in one plan, when nothing less is asked for, unless a single body is longer.
pub const AHEAD_BYTES_MAX: usize = 1 << 20;
/// A longer body is received on its own.
const BODY_AHEAD_BYTES_MAX: usize = 64 << 10;
/// Smallest and largest plain segment.
const PLAIN_BYTES_MIN: usize = PAGE_BYTES;
const PLAIN_BYTES_MAX: usize = 256 << 10;
/// Longest head that a hint may name: heads of a plan share one page.
pub const HEAD_BYTES_MAX: usize = PAGE_BYTES / PAIRS_MAX;

/// Most segments a plan has at once.
pub const SEGMENTS_MAX: usize = 2 * PAIRS_MAX + 2;

/// A guess of what comes: messages of `head` bytes and `body` bytes. A `body` of 0 is no guess.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hint {
    pub head: usize,
    pub body: usize,
}

#[derive(Default)]
pub struct Plan {
    hint: Hint,
    segments: VecDeque<Segment>,
    /// Position in the pair of head and body at which the first segment goes on.
    phase: usize,
    /// Bytes of the last receive: what the next plan is sized by.
    last_bytes: usize,
}

/// A part of a run, filled from `filled` to `end`; bytes from `start` on belong to this segment.
struct Segment {
    run: Arc<Run>,
    start: usize,
    filled: usize,
    end: usize,
}

impl Plan {
    /// Readies segments for the next receive. `waiting` are the bytes received and not yet taken, `ahead` those that may
    /// be received of what nobody has seen the head of, about.
    pub fn prepare(&mut self, hint: Hint, waiting: usize, ahead: usize, kernel: &mut Kernel) {
        if hint.body == 0 {
            self.prepare_plain(ahead, kernel);
        } else {
            self.prepare_pairs(hint, waiting, ahead, kernel);
        }
        assert!(!self.segments.is_empty(), "a receive has somewhere to go");
    }

    /// Describes the segments to the kernel.
    pub fn describe(&self, out: &mut Vec<libc::iovec>) {
        out.clear();
        for segment in &self.segments {
            // The kernel writes only between `filled` and `end`, which nobody else can see yet.
            let start = segment.run.as_ptr().wrapping_add(segment.filled);
            out.push(libc::iovec { iov_base: start.cast(), iov_len: segment.end - segment.filled });
        }
    }

    /// Hands `bytes` that the kernel has received to the rope.
    pub fn received(&mut self, bytes: usize, rope: &mut Rope) {
        self.last_bytes = bytes;
        let mut left = bytes;
        while left > 0 {
            let segment = self.segments.front_mut().expect("the kernel fills no more than the plan described");
            let here = left.min(segment.end - segment.filled);
            segment.filled += here;
            left -= here;
            rope.push_tail(Run::expose(&segment.run, segment.start, segment.filled), here);
            if segment.filled == segment.end {
                self.segments.pop_front();
            }
        }
        let pair = self.hint.head + self.hint.body;
        if self.hint.body > 0 {
            self.phase = (self.phase + bytes) % pair;
        }
    }

    /// What is about to be filled in, bytes: the next plan is sized by it.
    pub fn expect(&mut self, bytes: usize) {
        self.last_bytes = bytes;
    }

    /// Copies the front of `bytes` to where they would have been received, as far as one segment goes, and hands them to
    /// the rope; how many they were.
    pub fn fill(&mut self, bytes: &[u8], rope: &mut Rope) -> usize {
        let segment = self.segments.front().expect("a plan was prepared");
        let length = bytes.len().min(segment.end - segment.filled);
        // SAFETY: the run has memory up to `end`, of which nobody sees the part behind `filled` but the plan; the kernel
        // was not shown it, since a connection is either received from by the plan or filled.
        unsafe {
            let to = segment.run.as_ptr().add(segment.filled);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, length);
        }
        let expected = self.last_bytes;
        self.received(length, rope);
        self.last_bytes = expected;
        length
    }

    /// Whether a long body is next, which is received once its head has been seen.
    pub fn at_long_body(&self) -> bool {
        self.hint.body > BODY_AHEAD_BYTES_MAX && self.phase == self.hint.head
    }

    /// Gives all memory back.
    pub fn clear(&mut self) {
        self.segments.clear();
    }

    fn prepare_plain(&mut self, ahead: usize, kernel: &mut Kernel) {
        let most = ahead.clamp(PLAIN_BYTES_MIN, PLAIN_BYTES_MAX);
        let wanted = (self.last_bytes * 2).next_power_of_two().clamp(PLAIN_BYTES_MIN, most);
        let room = self.segments.front().map_or(0, |segment| segment.end - segment.filled);
        let fits = self.hint.body == 0 && room >= wanted / 4 && room <= wanted * 4;
        if fits {
            return;
        }
        self.hint = Hint::default();
        self.segments.clear();
        self.segments.push_back(Segment::new(Arc::new(kernel.allocate(wanted)), 0, wanted));
    }

    fn prepare_pairs(&mut self, hint: Hint, waiting: usize, ahead: usize, kernel: &mut Kernel) {
        let pair = hint.head + hint.body;
        let phase = waiting % pair;
        if self.hint != hint || self.phase != phase {
            self.hint = hint;
            self.phase = phase;
            self.segments.clear();
        }
        if hint.body > BODY_AHEAD_BYTES_MAX {
            return self.prepare_one(hint, kernel);
        }
        let most = (ahead / hint.body).clamp(1, PAIRS_MAX);
        let wanted = (self.last_bytes * 2).div_ceil(pair).clamp(1, most);
        let have = self.segments.len().div_ceil(2);
        if have >= wanted.div_ceil(2) && !self.segments.is_empty() {
            return;
        }
        let heads = Arc::new(kernel.allocate(PAGE_BYTES));
        let mut head_at = 0;
        let mut skip = if self.segments.is_empty() { phase } else { 0 };
        while self.segments.len().div_ceil(2) < wanted {
            let head = hint.head.saturating_sub(skip);
            if head > 0 {
                self.segments.push_back(Segment::new(heads.clone(), head_at, head_at + head));
                head_at += head;
            }
            let body = hint.body - skip.saturating_sub(hint.head);
            self.segments.push_back(Segment::new(Arc::new(kernel.allocate(body)), 0, body));
            skip = 0;
        }
    }

    /// What is left of the head, or else what is left of the body.
    fn prepare_one(&mut self, hint: Hint, kernel: &mut Kernel) {
        if self.segments.is_empty() {
            let head = hint.head.saturating_sub(self.phase);
            let bytes = if head > 0 { head } else { hint.head + hint.body - self.phase };
            self.segments.push_back(Segment::new(Arc::new(kernel.allocate(bytes)), 0, bytes));
        }
    }
}

impl Segment {
    fn new(run: Arc<Run>, start: usize, end: usize) -> Segment {
        assert!(start < end && end <= run.capacity(), "a segment has bytes and lies in its run");
        Segment { run, start, filled: start, end }
    }
}
