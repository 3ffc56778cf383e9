//! Which frames of a stream are packed before they cross: where the link is what holds them up, and they become shorter.
//!
//! Owns the frames of one stream that have not been given to its socket, in order, and the count of what has. Knows no thread
//! and no compression: the shell has a group packed, says when that is done, and gives on what is to go as it is.
//!
//! Invariants:
//! - Frames leave in the order in which they came: none overtakes what is being packed.
//! - [`Packing::left`] is never less than what has not left, whatever the frames were packed to.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::core::modes::Compress;

/// Bytes of frames that are packed together: more of them hardly become shorter, and the last would wait longer.
const GROUP_BYTES: u64 = 128 << 10;
/// Less than that is not worth it.
const GROUP_BYTES_MIN: u64 = 1 << 10;
/// Groups being packed at a time: the next one is there when the helper thread has done one.
const JOBS_MAX: usize = 2;
/// After what did not become shorter, or took too long, so much goes as it is, before it is tried again: twice as much each time.
const PASS_BYTES_MIN: u64 = 256 << 10;
const PASS_BYTES_MAX: u64 = 32 << 20;
/// What the kernel has not sent at once says nothing of the network below that, bytes.
const UNSENT_BYTES_MIN: u64 = 64 << 10;
/// So long frames are packed after the network was behind: what is in its buffers hides how slow it is, nanoseconds.
const HOLD_NS: u64 = 30_000_000_000;
/// So long the network is behind before it is known how much it takes, nanoseconds.
const MEASURE_NS: u64 = 50_000_000;

/// What to do with the next frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing yet.
    Wait,
    /// They go as they are.
    Pass(Vec<Bytes>),
    /// They are to be packed; [`Packing::done`] follows.
    Pack(Vec<Bytes>),
}

#[derive(Clone, Debug, Default)]
struct Group {
    parts: Vec<Bytes>,
    bytes: u64,
}

/// Bytes that were given to the socket, and of the frames that they are.
#[derive(Clone, Copy, Debug)]
struct Given {
    sent: u64,
    frames: u64,
}

/// The frames of one stream.
#[derive(Clone, Debug)]
pub struct Packing {
    mode: Compress,
    /// The last one may grow.
    waiting: VecDeque<Group>,
    waiting_bytes: u64,
    /// Bytes of the groups that are being packed and since when, oldest first, and the sum of the bytes.
    jobs: VecDeque<(u64, u64)>,
    jobs_bytes: u64,
    given: VecDeque<Given>,
    given_bytes: u64,
    /// Bytes given to the socket altogether.
    given_ever: u64,
    /// Since when the network has been behind without a break, and what it had taken then.
    behind: Option<(u64, u64)>,
    /// What the network took when it was behind last, bytes a second.
    line: Option<u64>,
    /// It was behind a while ago, and would be without packing.
    packs_until_ns: u64,
    /// Bytes that go as they are before it is tried again, and how many the next time.
    pass: u64,
    pass_next: u64,
}

impl Packing {
    #[must_use]
    pub fn new(mode: Compress) -> Packing {
        Packing {
            mode,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            jobs: VecDeque::new(),
            jobs_bytes: 0,
            given: VecDeque::new(),
            given_bytes: 0,
            given_ever: 0,
            behind: None,
            line: None,
            packs_until_ns: 0,
            pass: 0,
            pass_next: PASS_BYTES_MIN,
        }
    }

    /// Whole frames that follow those before; whether it is time for [`Packing::next`], before they grow more.
    pub fn push(&mut self, parts: impl Iterator<Item = Bytes>) -> bool {
        if self.waiting.back().is_none_or(|group| group.bytes >= GROUP_BYTES) {
            self.waiting.push_back(Group::default());
        }
        let group = self.waiting.back_mut().expect("just made");
        for part in parts {
            group.bytes += part.len() as u64;
            self.waiting_bytes += part.len() as u64;
            group.parts.push(part);
        }
        group.bytes >= GROUP_BYTES
    }

    /// Whether the network is behind, where so many bytes that the socket was given have not been sent.
    fn is_behind(&mut self, unsent: u64, now_ns: u64) -> bool {
        if unsent < UNSENT_BYTES_MIN {
            self.behind = None;
            return false;
        }
        let taken = self.given_ever.saturating_sub(unsent);
        match self.behind {
            Some((since_ns, before)) if now_ns >= since_ns + MEASURE_NS => {
                let bytes = u128::from(taken.saturating_sub(before));
                self.line = u64::try_from(bytes * 1_000_000_000 / u128::from(now_ns - since_ns)).ok();
                self.behind = Some((now_ns, taken));
            }
            Some(_) => {}
            None => self.behind = Some((now_ns, taken)),
        }
        true
    }

    /// What is to become of the next frames. `unsent`: what the socket was given and the network has not taken, bytes; `ended`:
    /// no more frames follow at once.
    pub fn next(&mut self, ended: bool, now_ns: u64, unsent: impl FnOnce() -> u64) -> Next {
        let idle = self.jobs.is_empty();
        let Some(group) = self.waiting.front().filter(|group| group.bytes > 0) else { return Next::Wait };
        // What comes while others are packed joins it.
        if group.bytes < GROUP_BYTES && !(ended && idle) {
            return Next::Wait;
        }
        let worth = group.bytes >= GROUP_BYTES_MIN;
        let pack = match self.mode {
            Compress::Off => false,
            Compress::Auto => {
                if self.is_behind(unsent(), now_ns) {
                    self.packs_until_ns = now_ns + HOLD_NS;
                }
                now_ns < self.packs_until_ns && self.pass == 0 && worth
            }
            Compress::Always => worth,
        };
        if if pack { self.jobs.len() >= JOBS_MAX } else { !idle } {
            return Next::Wait;
        }
        let Group { parts, bytes } = self.waiting.pop_front().expect("just seen");
        self.waiting_bytes -= bytes;
        if !pack {
            self.pass = self.pass.saturating_sub(bytes);
            return Next::Pass(parts);
        }
        self.jobs.push_back((bytes, now_ns));
        self.jobs_bytes += bytes;
        Next::Pack(parts)
    }

    /// The oldest group has been packed to so many bytes; as many as it had: it goes as it is. Where the network would have taken
    /// it in less time than that took, the processor is what holds things up. How many bytes it had.
    ///
    /// # Panics
    /// When none is being packed.
    pub fn done(&mut self, sent: u64, now_ns: u64, unsent: u64) -> u64 {
        let (frames, since_ns) = self.jobs.pop_front().expect("one was being packed");
        self.jobs_bytes -= frames;
        let dry = !self.is_behind(unsent, now_ns);
        let would_have = |line: u64| u128::from(line) * u128::from(now_ns - since_ns) / 1_000_000_000;
        let slow = dry && self.line.is_none_or(|line| would_have(line) > u128::from(frames));
        if sent < frames && !slow {
            self.pass_next = PASS_BYTES_MIN;
        } else {
            (self.pass, self.packs_until_ns) = (self.pass_next, 0);
            self.pass_next = (2 * self.pass_next).min(PASS_BYTES_MAX);
        }
        frames
    }

    /// So many bytes, which are `frames` bytes of frames, are given to the socket, in which `queued` are from before.
    pub fn gave(&mut self, sent: u64, frames: u64, queued: u64) {
        while self.given.front().is_some_and(|front| self.given_bytes - front.sent >= queued) {
            self.given_bytes -= self.given.pop_front().expect("just seen").sent;
        }
        self.given.push_back(Given { sent, frames });
        self.given_bytes += sent;
        self.given_ever += sent;
    }

    /// Nothing can be packed any more.
    pub fn stop(&mut self) {
        self.mode = Compress::Off;
    }

    /// Whether something has not been given to the socket.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.waiting_bytes + self.jobs_bytes > 0
    }

    /// Of all frames that came, at most so many bytes have not left, where the socket has `queued`.
    #[must_use]
    pub fn left(&self, queued: u64) -> u64 {
        let (mut sent, mut frames) = (0, self.waiting_bytes + self.jobs_bytes);
        for given in self.given.iter().rev() {
            if sent >= queued {
                break;
            }
            sent += given.sent;
            frames += given.frames;
        }
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEHIND: u64 = UNSENT_BYTES_MIN;

    fn frames(bytes: u64) -> std::iter::Once<Bytes> {
        std::iter::once(vec![0; bytes as usize].into())
    }

    fn bytes(next: &Next) -> (char, u64) {
        match next {
            Next::Wait => ('w', 0),
            Next::Pass(parts) => ('-', parts.iter().map(|part| part.len() as u64).sum()),
            Next::Pack(parts) => ('p', parts.iter().map(|part| part.len() as u64).sum()),
        }
    }

    #[test]
    fn frames_are_packed_while_the_link_holds_them_up_and_none_overtakes_them() {
        let mut packing = Packing::new(Compress::Auto);
        assert!(!packing.push(frames(4096)));
        assert_eq!(bytes(&packing.next(false, 0, || BEHIND)), ('w', 0), "more may follow at once");
        assert_eq!(bytes(&packing.next(true, 0, || 0)), ('-', 4096));
        assert!(packing.push(frames(GROUP_BYTES)));
        assert!(!packing.push(frames(4096)), "of the next group");
        assert_eq!(bytes(&packing.next(false, 0, || BEHIND)), ('p', GROUP_BYTES));
        assert_eq!(bytes(&packing.next(true, 0, || BEHIND)), ('w', 0), "it grows while others are packed");
        assert!(packing.push(frames(GROUP_BYTES)));
        assert_eq!(bytes(&packing.next(true, HOLD_NS, || 0)), ('w', 0), "it would overtake them");
        assert_eq!(bytes(&packing.next(true, 0, || BEHIND)), ('p', GROUP_BYTES + 4096));
        packing.push(frames(GROUP_BYTES));
        assert_eq!(bytes(&packing.next(true, 0, || BEHIND)), ('w', 0), "two at a time");
        packing.done(1000, 0, BEHIND);
        packing.done(1000, 0, BEHIND);
        assert_eq!(bytes(&packing.next(true, HOLD_NS - 1, || 0)), ('p', GROUP_BYTES), "it was behind");
        packing.done(1000, HOLD_NS - 1, BEHIND);
        packing.push(frames(GROUP_BYTES));
        assert_eq!(bytes(&packing.next(true, HOLD_NS, || 0)), ('-', GROUP_BYTES), "long ago");
        assert!(!packing.holds());
        packing.push(frames(GROUP_BYTES_MIN - 1));
        assert_eq!(bytes(&packing.next(true, 0, || BEHIND)), ('-', GROUP_BYTES_MIN - 1));
    }

    #[test]
    fn what_does_not_become_shorter_is_tried_less_and_less_until_it_does() {
        let mut packing = Packing::new(Compress::Auto);
        let mut passed = Vec::new();
        // The last one but one becomes short, and takes longer than the network.
        for sent in [GROUP_BYTES, GROUP_BYTES, 9, 7, GROUP_BYTES] {
            packing.push(frames(GROUP_BYTES));
            assert_eq!(bytes(&packing.next(true, 0, || BEHIND)), ('p', GROUP_BYTES));
            packing.done(sent, 1000, if sent == 7 { 0 } else { BEHIND });
            let mut bytes = 0;
            while packing.pass > 0 {
                packing.push(frames(GROUP_BYTES));
                assert!(matches!(packing.next(true, 0, || BEHIND), Next::Pass(_)));
                bytes += GROUP_BYTES;
            }
            passed.push(bytes >> 18);
        }
        assert_eq!(passed, [1, 2, 0, 1, 2], "in quarters of a MiB");
        let mut always = Packing::new(Compress::Always);
        for _ in 0..2 {
            always.push(frames(GROUP_BYTES));
            assert_eq!(bytes(&always.next(true, 0, || 0)), ('p', GROUP_BYTES), "bytes cost more than time");
            always.done(GROUP_BYTES, 0, 0);
        }
        let mut off = Packing::new(Compress::Off);
        off.push(frames(GROUP_BYTES));
        assert_eq!(bytes(&off.next(true, 0, || BEHIND)), ('-', GROUP_BYTES));
    }

    #[test]
    fn what_is_left_is_counted_in_frames_whatever_they_were_packed_to() {
        let mut packing = Packing::new(Compress::Always);
        packing.gave(1000, 1000, 0);
        packing.gave(100, 9000, 1000);
        packing.gave(50, 4000, 1100);
        for (queued, left) in
            [(0, 0), (1, 4000), (50, 4000), (51, 13_000), (150, 13_000), (151, 14_000), (1150, 14_000)]
        {
            assert_eq!(packing.left(queued), left, "{queued}");
        }
        packing.gave(10, 70, 50);
        assert_eq!((packing.given.len(), packing.left(60)), (2, 4070), "what has left is forgotten");
        packing.push(frames(GROUP_BYTES));
        assert_eq!(packing.left(0), GROUP_BYTES);
        assert!(matches!(packing.next(true, 0, || BEHIND), Next::Pack(_)));
        assert_eq!((packing.left(0), packing.holds()), (GROUP_BYTES, true), "being packed");
        packing.done(10, 0, BEHIND);
        packing.gave(10, GROUP_BYTES, 60);
        assert_eq!((packing.left(70), packing.holds()), (4070 + GROUP_BYTES, false));
    }

    #[test]
    fn a_network_that_runs_dry_is_no_reason_to_stop_unless_it_would_have_taken_the_frames_in_that_time() {
        const MS: u64 = 1_000_000;
        // 100 MB/s, and 1 MB/s: it takes 1.3 ms or 131 ms for a group. The last: 1 ms sharp.
        const MB: u64 = 1_000_000;
        const SHARP: u64 = GROUP_BYTES * 1000;
        for (line, job_ns, stops) in [
            (100 * MB, MS, false),
            (100 * MB, 2 * MS, true),
            (MB, 2 * MS, false),
            (MB, 140 * MS, true),
            (SHARP, MS, false),
            (SHARP, MS + 8, true),
        ] {
            let mut packing = Packing::new(Compress::Auto);
            packing.gave(1 << 30, 1 << 30, 0);
            let (since_ns, taken) = (7 * MS, line / 10);
            assert!(packing.is_behind(1 << 29, since_ns));
            assert!(packing.is_behind((1 << 29) - taken, since_ns + 100 * MS));
            assert_eq!(packing.line, Some(line));
            packing.push(frames(GROUP_BYTES));
            assert_eq!(bytes(&packing.next(true, 100 * MS, || BEHIND)), ('p', GROUP_BYTES));
            packing.done(100, 100 * MS + job_ns, 0);
            assert_eq!(packing.pass > 0, stops, "{line} bytes a second, {job_ns} ns");
        }
    }

    #[test]
    fn nothing_is_a_group_and_once_nothing_can_be_packed_nothing_is() {
        let mut packing = Packing::new(Compress::Always);
        assert!(!packing.push(std::iter::empty()));
        assert_eq!(bytes(&packing.next(true, 0, || BEHIND)), ('w', 0));
        packing.push(frames(GROUP_BYTES));
        packing.stop();
        assert_eq!(bytes(&packing.next(true, 0, || BEHIND)), ('-', GROUP_BYTES));
    }
}
