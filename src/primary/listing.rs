//! Which parts of the volumes have storage, looked up piece by piece for a first copy. Pure: the shell asks the backing
//! stores.
//!
//! Bounded (I9): what is found is kept as a [`Cover`] from the first piece on, however fragmented a volume is. A write
//! that begins while this goes on is in the intent map, whatever is found here.

use crate::core::allocation::Stretch;
use crate::core::ids::{Extent, Volume};
use crate::core::ranges::Cover;

/// A look at all volumes of a group, under way.
#[derive(Clone, Debug)]
pub struct Listing {
    sizes: Vec<u64>,
    volume: usize,
    at: u64,
    found: Cover,
}

impl Listing {
    /// `sizes` of the volumes, bytes.
    #[must_use]
    pub fn new(sizes: Vec<u64>) -> Listing {
        let mut listing = Listing { sizes, volume: 0, at: 0, found: Cover::new() };
        listing.skip_ended();
        listing
    }

    /// What is to be looked at next, as much of it as is told at once; `None` when everything has been.
    #[must_use]
    pub fn next(&self) -> Option<Extent> {
        let size = self.sizes.get(self.volume)?;
        let volume = Volume(u16::try_from(self.volume).expect("at most VOLUMES_MAX volumes"));
        Some(Extent { volume, offset: self.at, length: size - self.at })
    }

    /// What was found from there on.
    pub fn found(&mut self, stretches: &[Stretch]) {
        for stretch in stretches {
            let Some(next) = self.next() else { return };
            let length = stretch.length.min(next.length);
            if !stretch.hole {
                self.found.insert(Extent { length, ..next });
            }
            self.at += length;
            if length == next.length {
                // What a store tells behind the end of a volume is not about the next one.
                return self.skip_ended();
            }
        }
    }

    fn skip_ended(&mut self) {
        while self.sizes.get(self.volume).is_some_and(|size| self.at >= *size) {
            (self.volume, self.at) = (self.volume + 1, 0);
        }
    }

    /// Bytes that have been looked at, and in all.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        let sum = |sizes: &[u64]| sizes.iter().fold(0, |sum: u64, size| sum.saturating_add(*size));
        (sum(&self.sizes[..self.volume]).saturating_add(self.at), sum(&self.sizes))
    }

    /// Everything that is not known to be a hole.
    #[must_use]
    pub fn finish(self) -> Cover {
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::COVER_RANGES_MAX;

    fn stretch(length: u64, hole: bool) -> Stretch {
        Stretch { length, hole }
    }

    #[test]
    fn volumes_are_looked_at_one_after_the_other_and_to_their_ends() {
        let extent = |volume, offset, length| Extent { volume: Volume(volume), offset, length };
        let mut listing = Listing::new(vec![0, 100, 0, 50]);
        assert_eq!((listing.next(), listing.progress()), (Some(extent(1, 0, 100)), (0, 150)));
        listing.found(&[stretch(10, true), stretch(20, false)]);
        assert_eq!((listing.next(), listing.progress()), (Some(extent(1, 30, 70)), (30, 150)));
        listing.found(&[]);
        listing.found(&[stretch(60, true), stretch(500, false), stretch(500, false)]);
        assert_eq!((listing.next(), listing.progress()), (Some(extent(3, 0, 50)), (100, 150)));
        listing.found(&[stretch(50, false)]);
        assert_eq!((listing.next(), listing.progress()), (None, (150, 150)));
        listing.found(&[stretch(50, false)]);
        let found: Vec<Extent> = listing.finish().iter().collect();
        assert_eq!(found, [extent(1, 10, 20), extent(1, 90, 10), extent(3, 0, 50)]);
    }

    #[test]
    fn a_volume_of_fragments_is_listed_in_bounded_memory() {
        let pieces = 4 * COVER_RANGES_MAX as u64;
        let mut listing = Listing::new(vec![pieces << 14]);
        for _ in 0..pieces {
            listing.found(&[stretch(8192, true), stretch(8192, false)]);
            assert!(listing.found.len() <= COVER_RANGES_MAX);
        }
        assert_eq!(listing.next(), None);
        let found = listing.finish();
        let data = |piece: u64| Extent { volume: Volume(0), offset: (piece << 14) + 8192, length: 8192 };
        assert!((0..pieces).all(|piece| found.contains(data(piece))), "nothing is left out");
    }
}
