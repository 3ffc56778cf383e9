//! Where the entries of a spool stand in its file: round and round, and where it has grown, over what was added as well.
//!
//! Positions grow for ever. A log that has never grown has `pos % size` for its offset. An extension of it is entered at one
//! position and is a piece of each round from there on:
//!
//! ```text
//!   positions   … pos % size …   │ extension │ … pos % size … │ extension │ …
//!                               from        + bytes          + size       each round: size + bytes
//!   file        0 ────────────── size ─────────── size + bytes
//! ```
//!
//! A log that has been extended once may be so again, in the same way: what it had until then is what the rest of a round goes
//! over. Each extension is a whole number of `size`: what stands outside of all has the offset `pos % size` before, while and
//! after there are any. So they come and go without any entry being moved, at a moment when no entry that is needed stands
//! where the offset would be another.
//!
//! An entry never straddles the end of a piece, where the next position stands elsewhere in the file.

/// What was added to a log at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extension {
    /// The position that stands first in it.
    pub from: u64,
    /// Its length: a multiple of the size of the log. 0: there is none, nor one behind it.
    pub bytes: u64,
}

/// How often a log can be extended while something stands in what was added before.
pub const EXTENSIONS_MAX: usize = 8;

/// What was added to a log, in the order in which it was, and stands in its file.
pub type Extensions = [Extension; EXTENSIONS_MAX];

/// The shape of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Bytes that it was made with.
    pub size: u64,
    pub extensions: Extensions,
}

/// Offset of a position, and bytes from there to the end of the piece.
fn locate(size: u64, extensions: &[Extension], pos: u64) -> (u64, u64) {
    let Some((last, before)) = extensions.split_last() else { return (pos % size, size - pos % size) };
    let had = size + before.iter().map(|it| it.bytes).sum::<u64>();
    if pos < last.from {
        let (offset, left) = locate(size, before, pos);
        return (offset, left.min(last.from - pos));
    }
    let at = (pos - last.from) % (had + last.bytes);
    if at < last.bytes {
        return (had + at, last.bytes - at);
    }
    let (offset, left) = locate(size, before, last.from + (at - last.bytes));
    (offset, left.min(had + last.bytes - at))
}

impl Ring {
    /// A log as it is made.
    #[must_use]
    pub const fn plain(size: u64) -> Ring {
        Ring { size, extensions: [Extension { from: 0, bytes: 0 }; EXTENSIONS_MAX] }
    }

    /// Bytes that it has grown by.
    #[must_use]
    pub fn grown_bytes(&self) -> u64 {
        self.extensions.iter().map(|it| it.bytes).sum()
    }

    /// Whether it was extended.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.extensions[0].bytes > 0
    }

    fn extended(&self) -> &[Extension] {
        let count = self.extensions.iter().take_while(|it| it.bytes > 0).count();
        &self.extensions[..count]
    }

    /// Bytes of its file: what all entries that are needed may take together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.size + self.grown_bytes()
    }

    /// Where `pos` stands in the file.
    #[must_use]
    pub fn offset(&self, pos: u64) -> u64 {
        locate(self.size, self.extended(), pos).0
    }

    /// The position behind the piece of the file in which `pos` stands.
    #[must_use]
    pub fn piece_end(&self, pos: u64) -> u64 {
        pos + locate(self.size, self.extended(), pos).1
    }

    /// Where an entry really starts when the log stands at `pos`: there, or at the start of the next piece that holds it.
    ///
    /// # Panics
    /// When the entry is longer than the log was made.
    #[must_use]
    pub fn place(&self, pos: u64, entry_bytes: u64) -> u64 {
        assert!(entry_bytes <= self.size, "a log holds at least its longest entry");
        let mut at = pos;
        // An extension, or a round without any, is long enough.
        while self.piece_end(at) - at < entry_bytes {
            at = self.piece_end(at);
        }
        at
    }

    /// How many pieces end behind `from` and before `to`.
    #[must_use]
    pub fn ends_between(&self, from: u64, to: u64) -> u64 {
        if !self.is_extended() {
            return u64::from(to > from.next_multiple_of(self.size));
        }
        let ends = std::iter::successors(Some(self.piece_end(from)), |at| Some(self.piece_end(*at)));
        ends.take_while(|at| *at < to).fold(0, |count, _| count + 1)
    }

    /// Whether anything of `floor..head` stands in an extension.
    #[must_use]
    pub fn extends_into(&self, floor: u64, head: u64) -> bool {
        let mut at = floor;
        while self.is_extended() && at < head {
            if self.offset(at) >= self.size {
                return true;
            }
            at = self.piece_end(at);
        }
        false
    }

    /// The log with another piece of its size, to be entered at `head`, where nothing of `floor..head` has another offset
    /// then; `None` where something would.
    #[must_use]
    pub fn grown(&self, floor: u64, head: u64) -> Option<Ring> {
        let into = self.extends_into(floor, head);
        // What is not entered yet, is entered here, and is longer.
        let entered = |it: &&Extension| into && it.from < head;
        let kept = self.extended().iter().take_while(entered).count();
        let mut bytes = self.size + self.extended()[kept..].iter().map(|it| it.bytes).sum::<u64>();
        let (mut from, mut at) = (head, kept);
        if let Some(last) = self.extended()[..kept].last()
            && head <= last.from + last.bytes
        {
            (from, at, bytes) = (last.from, kept - 1, bytes + last.bytes);
        }
        let mut extensions = Ring::plain(self.size).extensions;
        extensions[..at].copy_from_slice(&self.extensions[..at]);
        *extensions.get_mut(at)? = Extension { from, bytes };
        Some(Ring { extensions, ..*self })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 8;

    #[test]
    fn a_log_that_never_grew_goes_round() {
        let ring = Ring::plain(SIZE);
        for pos in 0..40 {
            assert_eq!((ring.offset(pos), ring.piece_end(pos)), (pos % SIZE, pos - pos % SIZE + SIZE));
            for bytes in 1..=SIZE {
                assert_eq!(ring.place(pos, bytes), super::super::spool::place(pos, SIZE, bytes));
            }
        }
        assert_eq!((ring.bytes(), ring.extends_into(3, 11)), (SIZE, false));
    }

    #[test]
    fn each_round_has_every_byte_of_the_file_once() {
        for (from, times) in (0..20).flat_map(|from| (1..4).map(move |times| (from, times))) {
            let mut ring = Ring::plain(SIZE);
            ring.extensions[0] = Extension { from, bytes: times * SIZE };
            if from > 9 {
                ring.extensions[1] = Extension { from: from + times * SIZE + from % 7, bytes: SIZE };
            }
            let round = ring.bytes();
            let last = ring.extended()[ring.extended().len() - 1];
            for at in last.from..last.from + 3 * round {
                let mut offsets: Vec<u64> = (at..at + round).map(|pos| ring.offset(pos)).collect();
                offsets.sort_unstable();
                assert_eq!(offsets, (0..round).collect::<Vec<_>>(), "from {at}, {ring:?}");
                let end = ring.piece_end(at);
                assert!((at..end).all(|pos| ring.offset(pos) - ring.offset(at) == pos - at), "{at} in {ring:?}");
                assert!(end - at <= times * SIZE, "none is longer than the extension");
            }
        }
    }

    #[test]
    fn ends_of_pieces_are_counted_that_lie_between_and_where_a_round_begins() {
        let plain = Ring::plain(SIZE);
        for (from, to, ends) in
            [(0, 0, 0), (0, 1, 1), (1, 8, 0), (1, 9, 1), (8, 8, 0), (8, 9, 1), (9, 16, 0), (9, 17, 1)]
        {
            assert_eq!(plain.ends_between(from, to), ends, "{from} to {to}");
        }
        let mut ring = Ring::plain(SIZE);
        ring.extensions[0] = Extension { from: 12, bytes: 2 * SIZE };
        for (from, to) in (0..80).flat_map(|from| (from..90).map(move |to| (from, to))) {
            let ends = (from + 1..to).filter(|at| ring.piece_end(at - 1) == *at).count();
            assert_eq!(ring.ends_between(from, to), ends as u64, "{from} to {to}");
        }
    }

    #[test]
    fn an_extension_that_nothing_stands_in_is_entered_anew_with_more() {
        let mut ring = Ring::plain(SIZE);
        ring.extensions[0] = Extension { from: 8, bytes: SIZE };
        assert!(!ring.extends_into(4, 8) && ring.extends_into(4, 9), "it is entered at 8");
        let behind = (17..40).find(|at| !ring.extends_into(17, *at + 1) && at % 8 == 4).expect("a round has both");
        let grown = ring.grown(17, behind).expect("there is a place for it");
        assert_eq!(grown.extended(), [Extension { from: behind, bytes: 2 * SIZE }]);
    }

    proptest! {
        /// Entries come and go, and the log grows and shrinks: none that is needed ever stands elsewhere, or on another.
        #[test]
        fn whatever_it_grows_and_shrinks_by_no_entry_moves_and_none_is_overwritten(
            steps in prop::collection::vec((0..8u8, 1..=SIZE), 1..300),
        ) {
            let mut ring = Ring::plain(SIZE);
            let (mut floor, mut head) = (0, 0);
            // Position, length and offset, as it was written.
            let mut live: Vec<(u64, u64, u64)> = Vec::new();
            for (what, bytes) in steps {
                match what {
                    0..4 => {
                        let pos = ring.place(head, bytes);
                        if pos + bytes > floor + ring.bytes() { continue; }
                        let offset = ring.offset(pos);
                        prop_assert!(live.iter().all(|it| it.2 + it.1 <= offset || offset + bytes <= it.2), "overwritten");
                        live.push((pos, bytes, offset));
                        head = pos + bytes;
                    }
                    4..6 => {
                        if !live.is_empty() { live.remove(0); }
                        floor = live.first().map_or(head, |it| it.0);
                    }
                    6 => if let Some(grown) = ring.grown(floor, head).filter(|it| it.bytes() <= 9 * SIZE) {
                        prop_assert_eq!(grown.bytes(), ring.bytes() + SIZE);
                        // What it was stuck at finds room.
                        prop_assert!(grown.place(head, SIZE) + SIZE <= floor + grown.bytes() + SIZE);
                        ring = grown;
                    },
                    _ => if ring.is_extended() && !ring.extends_into(floor, head) {
                        ring = Ring::plain(SIZE);
                    },
                }
                for (pos, bytes, offset) in &live {
                    prop_assert_eq!(ring.offset(*pos), *offset, "{} moved: {:?}", pos, ring);
                    prop_assert!(ring.piece_end(*pos) >= pos + bytes, "{} straddles: {:?}", pos, ring);
                }
                let offsets: Vec<u64> = (floor..head).map(|pos| ring.offset(pos)).collect();
                let mut once = offsets.clone();
                once.sort_unstable();
                once.dedup();
                prop_assert_eq!(once.len(), offsets.len(), "{}..{} in {:?}", floor, head, ring);
            }
        }
    }
}
