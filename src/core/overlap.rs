//! Which writes of one volume may run now: overlapping ones run one after another, in order (I1).
//!
//! Owns the writes admitted and not yet finished. A write waits as long as an earlier one that it
//! overlaps has not finished, whether that one runs or waits itself.
//!
//! ```text
//!   admitted   1 ├──────┤            map of last writers, after 3 was admitted:
//!              2     ├──────┤          ├─1─┤├─3─────────┤
//!              3     ├───────────┤   edges: 1 → 2, 2 → 3     (3 never asks about 1: it follows 2)
//! ```
//!
//! Invariants:
//! - Segments of the map are disjoint, not empty, and belong to writes that have not finished.
//! - Whoever was pushed out of a segment is followed by the one that pushed it out. So it is enough to
//!   wait for the last writers: everything older under them finishes before them.
//! - A write may run exactly when no edge leads to it any more.
//!
//! Cost: an admission adds at most three segments and removes the ones it covers, so edges and segments
//! are O(1) amortized for each write, and each is found in O(log n). Slots and edges are reused: nothing
//! is allocated for a write once the tables have grown to the number in flight.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// The writes in flight of one volume.
#[derive(Clone, Debug)]
pub struct InFlight<T> {
    slots: HashMap<T, u32, BuildHasherDefault<IdHasher>>,
    entries: Vec<Entry<T>>,
    free_entries: Vec<u32>,
    edges: Vec<Edge>,
    free_edges: Vec<u32>,
    /// Start of a segment → its last writer.
    segments: BTreeMap<u64, Segment>,
    /// Segments under a new range; kept for its memory.
    covered: Vec<(u64, Segment)>,
    waiting: usize,
}

#[derive(Clone, Debug)]
struct Entry<T> {
    id: T,
    offset: u64,
    end: u64,
    /// Edges that lead here: earlier writes that have to finish first.
    waits: u32,
    /// Segments of the map that are this write's.
    owned: u32,
    /// Edges to the writes that wait for this one, in the order of their admission.
    first_edge: u32,
    last_edge: u32,
}

#[derive(Clone, Copy, Debug)]
struct Edge {
    to: u32,
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    end: u64,
    owner: u32,
}

/// No edge.
const NONE: u32 = u32::MAX;

impl<T> Default for InFlight<T> {
    fn default() -> Self {
        InFlight {
            slots: HashMap::default(),
            entries: Vec::new(),
            free_entries: Vec::new(),
            edges: Vec::new(),
            free_edges: Vec::new(),
            segments: BTreeMap::new(),
            covered: Vec::new(),
            waiting: 0,
        }
    }
}

impl<T: Copy + Eq + Hash> InFlight<T> {
    #[must_use]
    pub fn new() -> InFlight<T> {
        InFlight::default()
    }

    /// Takes in the next write of the order. True: it may run now. False: it waits; `finish` names it.
    ///
    /// # Panics
    /// When `id` is already in flight, or the range ends past `u64::MAX`.
    #[must_use = "a write that was not admitted must not run"]
    pub fn admit(&mut self, id: T, offset: u64, length: u64) -> bool {
        let end = offset.checked_add(length).expect("requests are checked against the volume's size");
        let slot = self.new_entry(id, offset, end);
        assert!(self.slots.insert(id, slot).is_none(), "an id is in flight once");
        if length == 0 {
            return true;
        }
        // The last segment that starts before our end is the only one to look at when nothing overlaps.
        if self.segments.range(..end).next_back().is_some_and(|(_, last)| last.end > offset) {
            self.take_over(slot, offset, end);
        }
        self.segments.insert(offset, Segment { end, owner: slot });
        self.entries[slot as usize].owned += 1;
        let free = self.entries[slot as usize].waits == 0;
        self.waiting += usize::from(!free);
        free
    }

    /// A running write is done: appends to `started` the ids that may run now, in the order of their admission.
    ///
    /// # Panics
    /// When `id` is not in flight or still waits.
    pub fn finish(&mut self, id: T, started: &mut Vec<T>) {
        let slot = self.slots.remove(&id).expect("only what was admitted finishes");
        assert!(self.entries[slot as usize].waits == 0, "a write that waits cannot have finished");
        self.release_segments(slot);
        let mut at = self.entries[slot as usize].first_edge;
        while at != NONE {
            let Edge { to, next } = self.edges[at as usize];
            self.free_edges.push(at);
            at = next;
            let waiter = &mut self.entries[to as usize];
            waiter.waits -= 1;
            if waiter.waits == 0 {
                self.waiting -= 1;
                started.push(waiter.id);
            }
        }
        self.free_entries.push(slot);
    }

    /// Writes admitted and not finished.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Those of them that wait for another.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether a range overlaps anything in flight.
    #[must_use]
    pub fn overlaps(&self, offset: u64, length: u64) -> bool {
        length > 0
            && self.segments.range(..offset.saturating_add(length)).next_back().is_some_and(|(_, s)| s.end > offset)
    }

    fn new_entry(&mut self, id: T, offset: u64, end: u64) -> u32 {
        let entry = Entry { id, offset, end, waits: 0, owned: 0, first_edge: NONE, last_edge: NONE };
        match self.free_entries.pop() {
            Some(slot) => {
                self.entries[slot as usize] = entry;
                slot
            }
            None => {
                self.entries.push(entry);
                u32::try_from(self.entries.len() - 1).expect("requests in flight are bounded far below 2^32")
            }
        }
    }

    /// Pushes the last writers out of `offset..end` and lets `slot` wait for them.
    fn take_over(&mut self, slot: u32, offset: u64, end: u64) {
        let mut covered = std::mem::take(&mut self.covered);
        for (&start, &segment) in self.segments.range(..end).rev() {
            if segment.end <= offset {
                break;
            }
            covered.push((start, segment));
        }
        for (start, segment) in covered.drain(..) {
            self.segments.remove(&start);
            let mut pieces = 0;
            if start < offset {
                self.segments.insert(start, Segment { end: offset, owner: segment.owner });
                pieces += 1;
            }
            if segment.end > end {
                self.segments.insert(end, segment);
                pieces += 1;
            }
            let owner = &mut self.entries[segment.owner as usize];
            owner.owned = owner.owned - 1 + pieces;
            self.add_edge(segment.owner, slot);
        }
        self.covered = covered;
    }

    /// `to` waits for `from`.
    fn add_edge(&mut self, from: u32, to: u32) {
        if self.entries[from as usize].last_edge != NONE
            && self.edges[self.entries[from as usize].last_edge as usize].to == to
        {
            return;
        }
        let edge = Edge { to, next: NONE };
        let at = match self.free_edges.pop() {
            Some(at) => {
                self.edges[at as usize] = edge;
                at
            }
            None => {
                self.edges.push(edge);
                u32::try_from(self.edges.len() - 1).expect("edges are bounded by segments, far below 2^32")
            }
        };
        let from = &mut self.entries[from as usize];
        match from.last_edge {
            NONE => from.first_edge = at,
            last => self.edges[last as usize].next = at,
        }
        from.last_edge = at;
        self.entries[to as usize].waits += 1;
    }

    /// Takes the segments of a finished write out of the map.
    fn release_segments(&mut self, slot: u32) {
        let Entry { offset, end, mut owned, .. } = self.entries[slot as usize];
        let mut at = offset;
        while owned > 0 {
            let (&start, &segment) =
                self.segments.range(at..end).next().expect("owned counts the segments within the write's range");
            if segment.owner == slot {
                self.segments.remove(&start);
                owned -= 1;
            }
            at = segment.end;
        }
    }
}

/// Ids are counters of our own, never an adversary's: one multiplication spreads them well enough.
#[derive(Clone, Copy, Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 ^= self.0 >> 32;
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finish(inflight: &mut InFlight<u32>, id: u32) -> Vec<u32> {
        let mut started = Vec::new();
        inflight.finish(id, &mut started);
        started
    }

    #[test]
    fn disjoint_writes_run_at_once() {
        let mut inflight = InFlight::new();
        assert!(inflight.admit(1, 0, 4096));
        assert!(inflight.admit(2, 4096, 4096));
        assert!(inflight.admit(3, 0, 0), "an empty range overlaps nothing");
        assert_eq!((inflight.len(), inflight.waiting()), (3, 0));
        assert!(finish(&mut inflight, 2).is_empty());
        assert!(finish(&mut inflight, 3).is_empty());
        assert!(finish(&mut inflight, 1).is_empty());
        assert!(inflight.is_empty());
    }

    #[test]
    fn a_waiting_write_blocks_later_ones_that_overlap_it() {
        let mut inflight = InFlight::new();
        assert!(inflight.admit(1, 0, 10));
        assert!(!inflight.admit(2, 5, 10));
        assert!(!inflight.admit(3, 12, 10), "overlaps only the one that waits");
        assert_eq!(finish(&mut inflight, 1), [2]);
        assert_eq!(finish(&mut inflight, 2), [3]);
        assert_eq!(finish(&mut inflight, 3), Vec::<u32>::new());
    }

    #[test]
    fn one_end_starts_all_that_waited_for_it_alone_in_order() {
        let mut inflight = InFlight::new();
        assert!(inflight.admit(1, 0, 100));
        assert!(inflight.admit(2, 100, 10));
        assert!(!inflight.admit(3, 60, 10));
        assert!(!inflight.admit(4, 10, 10));
        assert!(!inflight.admit(5, 95, 10), "waits for 1 and 2");
        assert_eq!(finish(&mut inflight, 1), [3, 4]);
        assert_eq!(finish(&mut inflight, 2), [5]);
        assert!(inflight.overlaps(60, 1) && !inflight.overlaps(0, 10));
    }

    #[test]
    fn tables_do_not_grow_with_the_number_of_writes() {
        let mut inflight = InFlight::new();
        for round in 0..1000u32 {
            assert!(inflight.admit(round * 2, 0, 10));
            assert!(!inflight.admit(round * 2 + 1, 5, 10));
            assert_eq!(finish(&mut inflight, round * 2), [round * 2 + 1]);
            finish(&mut inflight, round * 2 + 1);
        }
        assert_eq!((inflight.entries.len(), inflight.edges.len(), inflight.segments.len()), (2, 1, 0));
    }

    /// What `InFlight` has to do, without a thought for its cost.
    #[derive(Default)]
    struct Naive {
        /// Id, range, running; in the order of admission.
        writes: Vec<(u32, u64, u64, bool)>,
    }

    impl Naive {
        fn blocked(&self, upto: usize, offset: u64, end: u64) -> bool {
            self.writes[..upto].iter().any(|&(_, other, other_end, _)| other.max(offset) < other_end.min(end))
        }

        fn admit(&mut self, id: u32, offset: u64, length: u64) -> bool {
            let free = !self.blocked(self.writes.len(), offset, offset + length);
            self.writes.push((id, offset, offset + length, free));
            free
        }

        fn finish(&mut self, id: u32) -> Vec<u32> {
            self.writes.retain(|write| write.0 != id);
            let mut started = Vec::new();
            for at in 0..self.writes.len() {
                let (id, offset, end, running) = self.writes[at];
                if !running && !self.blocked(at, offset, end) {
                    self.writes[at].3 = true;
                    started.push(id);
                }
            }
            started
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]
        #[test]
        fn agrees_with_the_naive_model(
            steps in proptest::collection::vec((0u64..64, 0u64..24, 0usize..100, 0u8..5), 1..120),
        ) {
            let (mut inflight, mut naive) = (InFlight::new(), Naive::default());
            for (id, (offset, length, pick, action)) in (0u32..).zip(steps) {
                let running: Vec<u32> = naive.writes.iter().filter(|w| w.3).map(|w| w.0).collect();
                if action < 3 || running.is_empty() {
                    assert_eq!(inflight.admit(id, offset, length), naive.admit(id, offset, length));
                } else {
                    let done = running[pick % running.len()];
                    assert_eq!(finish(&mut inflight, done), naive.finish(done));
                }
                assert_eq!(inflight.len(), naive.writes.len());
                assert_eq!(inflight.waiting(), naive.writes.iter().filter(|w| !w.3).count());
                assert_eq!(inflight.overlaps(offset, length), naive.blocked(naive.writes.len(), offset, offset + length));
            }
            while let Some(done) = naive.writes.iter().find(|w| w.3).map(|w| w.0) {
                assert_eq!(finish(&mut inflight, done), naive.finish(done));
            }
            assert!(naive.writes.is_empty() && inflight.is_empty() && inflight.segments.is_empty());
            assert_eq!(inflight.free_edges.len(), inflight.edges.len());
        }
    }
}
