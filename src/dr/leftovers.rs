//! What a batch that gave way had staged in the spool. The next one brings mostly the same: its pieces that come as digests
//! are put together of it, so that a primary that was restarted goes on where it stood.
//!
//! Invariants:
//! - Nothing follows from what is here: what is used of it has the digests of what the primary has read.
//! - It keeps room from nobody: the oldest goes where room is needed, and what its successor has brought goes with that (I9).
//! - No two overlap. It is forgotten with the process.

use std::collections::BTreeMap;

use crate::core::ids::{Extent, Volume};
use crate::dr::batch::{Chunk, place};

type Place = (Volume, u64);

#[derive(Clone, Copy, Debug)]
struct Leftover {
    chunk: Chunk,
    /// Bytes of it that the batch that comes in has brought.
    brought: u64,
}

/// Chunks by their place in the volumes.
#[derive(Clone, Debug, Default)]
pub(super) struct Leftovers {
    chunks: BTreeMap<Place, Leftover>,
    /// Their positions in the spool, which no other entry shares.
    positions: BTreeMap<u64, Place>,
}

impl Leftovers {
    pub(super) fn bytes(&self) -> u64 {
        self.chunks.values().map(|it| it.chunk.record.payload_bytes()).sum()
    }

    /// Keeps chunks; positions of older ones that they overlap, which are not kept any more.
    pub(super) fn keep(&mut self, chunks: impl IntoIterator<Item = Chunk>) -> Vec<u64> {
        let mut gone = Vec::new();
        for chunk in chunks {
            let extent = place(&chunk.record);
            for older in self.within(extent) {
                self.remove(&older);
                gone.push(older.pos);
            }
            self.chunks.insert((extent.volume, extent.offset), Leftover { chunk, brought: 0 });
            self.positions.insert(chunk.pos, (extent.volume, extent.offset));
        }
        gone
    }

    /// Those that have a part of a range, in the order of their places.
    pub(super) fn within(&self, range: Extent) -> Vec<Chunk> {
        let before = self.chunks.range(..(range.volume, range.offset + range.length)).rev();
        let reaches = |it: &Leftover| overlap(place(&it.chunk.record), range).is_some();
        let mut found: Vec<Chunk> = before.map(|(_, it)| it).take_while(|it| reaches(it)).map(|it| it.chunk).collect();
        found.reverse();
        found
    }

    /// The batch that comes in has brought a range: positions of those of which it has all now.
    pub(super) fn brought(&mut self, range: Extent) -> Vec<u64> {
        let mut gone = Vec::new();
        for chunk in self.within(range) {
            let key = (chunk.record.volume, chunk.record.offset);
            let it = self.chunks.get_mut(&key).expect("just found");
            it.brought += overlap(place(&chunk.record), range).map_or(0, |part| part.length);
            if it.brought >= chunk.record.length {
                self.remove(&chunk);
                gone.push(chunk.pos);
            }
        }
        gone
    }

    /// Lets go of the one that stands first in the spool; its position.
    pub(super) fn pop_first(&mut self) -> Option<u64> {
        let (pos, place) = self.positions.pop_first()?;
        self.chunks.remove(&place);
        Some(pos)
    }

    /// Lets go of the one that stands at a position; whether there was one.
    pub(super) fn take_at(&mut self, pos: u64) -> bool {
        self.positions.remove(&pos).is_some_and(|place| self.chunks.remove(&place).is_some())
    }

    fn remove(&mut self, chunk: &Chunk) {
        self.positions.remove(&chunk.pos);
        self.chunks.remove(&(chunk.record.volume, chunk.record.offset));
    }
}

/// What two ranges share.
pub(super) fn overlap(a: Extent, b: Extent) -> Option<Extent> {
    let (from, to) = (a.offset.max(b.offset), (a.offset + a.length).min(b.offset + b.length));
    (a.volume == b.volume && from < to).then(|| Extent { volume: a.volume, offset: from, length: to - from })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::op::Op;
    use crate::format::record::OrderRecord;

    fn chunk(pos: u64, volume: u16, offset: u64, length: u64) -> Chunk {
        let record = OrderRecord { volume: Volume(volume), offset, length, ..OrderRecord::sample(5, Op::Write) };
        Chunk { pos, record }
    }

    fn range(volume: u16, offset: u64, length: u64) -> Extent {
        Extent { volume: Volume(volume), offset, length }
    }

    fn positions(chunks: &[Chunk]) -> Vec<u64> {
        chunks.iter().map(|chunk| chunk.pos).collect()
    }

    #[test]
    fn what_is_found_in_a_range_has_a_part_of_it() {
        let mut all = Leftovers::default();
        let chunks = [chunk(7, 0, 0, 4096), chunk(1, 0, 4096, 8192), chunk(9, 0, 65536, 512), chunk(3, 1, 4096, 512)];
        assert!(all.keep(chunks).is_empty());
        for (of, found) in [
            (range(0, 0, 4096), vec![7]),
            (range(0, 4095, 2), vec![7, 1]),
            (range(0, 0, 1 << 20), vec![7, 1, 9]),
            (range(0, 12288, 53248), vec![]),
            (range(0, 12287, 53250), vec![1, 9]),
            (range(1, 0, 4096), vec![]),
            (range(1, 4000, 97), vec![3]),
            (range(2, 0, 1 << 20), vec![]),
        ] {
            assert_eq!(positions(&all.within(of)), found, "{of:?}");
        }
        assert_eq!(all.bytes(), 4096 + 8192 + 512 + 512);
    }

    #[test]
    fn newer_ones_take_the_place_of_older_ones_and_the_first_in_the_spool_goes_first() {
        let mut all = Leftovers::default();
        all.keep([chunk(10, 0, 0, 4096), chunk(11, 0, 4096, 4096), chunk(12, 0, 8192, 4096)]);
        assert_eq!(all.keep([chunk(20, 0, 2048, 4096)]), [10, 11]);
        all.keep([chunk(21, 1, 0, 4096)]);
        assert_eq!([10, 22, 21, 21].map(|pos| all.take_at(pos)), [false, false, true, false]);
        assert!(all.within(range(1, 0, 1 << 20)).is_empty());
        assert_eq!(positions(&all.within(range(0, 0, 1 << 20))), [20, 12]);
        assert_eq!([all.pop_first(), all.pop_first(), all.pop_first()], [Some(12), Some(20), None]);
        assert_eq!(all.bytes(), 0);
    }

    #[test]
    fn one_goes_once_its_successor_has_brought_all_of_it() {
        let mut all = Leftovers::default();
        all.keep([chunk(1, 0, 0, 8192), chunk(2, 0, 8192, 4096)]);
        assert!(all.brought(range(0, 0, 4096)).is_empty());
        assert!(all.brought(range(1, 0, 1 << 20)).is_empty());
        assert_eq!(all.brought(range(0, 4096, 8192)), [1, 2]);
        assert!(all.within(range(0, 0, 1 << 20)).is_empty());
    }
}
