//! Sets of byte ranges: what a batch has still to copy, what a volume has changed.
//!
//! Invariant: ranges of a set are half-open, not empty, disjoint and not adjacent, so that a set has
//! exactly one representation. How many ranges a set may hold is its owner's bound (I9); a [`Cover`] has one of its own.

use std::collections::BTreeMap;

use super::ids::{Extent, Volume};
use crate::limits::COVER_RANGES_MAX;

/// Disjoint half-open byte ranges of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// Start of a range → its end.
    ends: BTreeMap<u64, u64>,
    /// Sum of the lengths.
    bytes: u64,
}

impl RangeSet {
    #[must_use]
    pub fn new() -> RangeSet {
        RangeSet::default()
    }

    /// Adds a range; parts already there change nothing. Ends past `u64::MAX` are cut off there.
    pub fn insert(&mut self, offset: u64, length: u64) {
        if length == 0 {
            return;
        }
        let (mut start, mut end) = (offset, offset.saturating_add(length));
        while let Some((&at, &to)) = self.ends.range(..=end).next_back() {
            if to < start {
                break;
            }
            start = start.min(at);
            end = end.max(to);
            self.ends.remove(&at);
            self.bytes -= to - at;
        }
        self.ends.insert(start, end);
        self.bytes += end - start;
    }

    /// Takes a range out; parts not there change nothing.
    pub fn remove(&mut self, offset: u64, length: u64) {
        let (start, end) = (offset, offset.saturating_add(length));
        if start == end {
            return;
        }
        while let Some((&at, &to)) = self.ends.range(..end).next_back() {
            if to <= start {
                break;
            }
            self.ends.remove(&at);
            self.bytes -= to - at;
            if to > end {
                self.ends.insert(end, to);
                self.bytes += to - end;
            }
            if at < start {
                self.ends.insert(at, start);
                self.bytes += start - at;
                break;
            }
        }
    }

    /// Whether every byte of the range is in the set (an empty range always is).
    #[must_use]
    pub fn contains(&self, offset: u64, length: u64) -> bool {
        length == 0
            || self.ends.range(..=offset).next_back().is_some_and(|(_, &to)| to >= offset.saturating_add(length))
    }

    /// Whether any byte of the range is in the set.
    #[must_use]
    pub fn intersects(&self, offset: u64, length: u64) -> bool {
        length > 0 && self.ends.range(..offset.saturating_add(length)).next_back().is_some_and(|(_, &to)| to > offset)
    }

    /// The ranges as (offset, length), ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> + '_ {
        self.ends.iter().map(|(&at, &to)| (at, to - at))
    }

    /// Bytes in the set.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of ranges.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Takes at most `max_len` bytes off the first range, as (offset, length).
    pub fn pop_front(&mut self, max_len: u64) -> Option<(u64, u64)> {
        let (&at, &to) = self.ends.first_key_value()?;
        let length = (to - at).min(max_len);
        if length == 0 {
            return None;
        }
        self.remove(at, length);
        Some((at, length))
    }

    /// Joins neighbours across the smallest gaps, until half as many ranges are left (I9).
    pub fn halve(&mut self) {
        let mut joins = self.len() / 2;
        if joins == 0 {
            return;
        }
        let ranges: Vec<(u64, u64)> = std::mem::take(&mut self.ends).into_iter().collect();
        let mut gaps: Vec<u64> = ranges.windows(2).map(|pair| pair[1].0 - pair[0].1).collect();
        let (smaller, &mut widest, _) = gaps.select_nth_unstable(joins - 1);
        // Of those that are exactly as wide, the first ones.
        let narrower = smaller.iter().filter(|gap| **gap < widest).count();
        joins -= narrower;
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(ranges.len() / 2 + 1);
        for (at, to) in ranges {
            let gap = joined.last().map(|last| at - last.1);
            let tie = gap == Some(widest) && joins > 0;
            joins -= usize::from(tie);
            match joined.last_mut().filter(|_| tie || gap.is_some_and(|gap| gap < widest)) {
                Some(last) => last.1 = to,
                None => joined.push((at, to)),
            }
        }
        self.bytes = joined.iter().map(|(at, to)| to - at).sum();
        self.ends = joined.into_iter().collect();
    }
}

/// One [`RangeSet`] for each volume of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeRanges {
    /// Indexed by volume; grows to the highest volume seen, at most 65 536 (the width of [`Volume`]).
    sets: Vec<RangeSet>,
}

impl VolumeRanges {
    #[must_use]
    pub fn new() -> VolumeRanges {
        VolumeRanges::default()
    }

    pub fn insert(&mut self, extent: Extent) {
        self.volume_mut(extent.volume).insert(extent.offset, extent.length);
    }

    pub fn remove(&mut self, extent: Extent) {
        if let Some(set) = self.sets.get_mut(usize::from(extent.volume.0)) {
            set.remove(extent.offset, extent.length);
        }
    }

    /// Whether every byte of the extent is in the set.
    #[must_use]
    pub fn contains(&self, extent: Extent) -> bool {
        self.volume(extent.volume).map_or(extent.length == 0, |set| set.contains(extent.offset, extent.length))
    }

    /// Whether any byte of the extent is in the set.
    #[must_use]
    pub fn intersects(&self, extent: Extent) -> bool {
        self.volume(extent.volume).is_some_and(|set| set.intersects(extent.offset, extent.length))
    }

    /// The set of one volume; `None` when nothing of it was ever inserted.
    #[must_use]
    pub fn volume(&self, volume: Volume) -> Option<&RangeSet> {
        self.sets.get(usize::from(volume.0))
    }

    /// The set of one volume, to change it.
    pub fn volume_mut(&mut self, volume: Volume) -> &mut RangeSet {
        let index = usize::from(volume.0);
        if self.sets.len() <= index {
            self.sets.resize_with(index + 1, RangeSet::new);
        }
        &mut self.sets[index]
    }

    /// Every range, by volume and offset.
    pub fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        (0u16..).zip(&self.sets).flat_map(|(volume, set)| {
            set.iter().map(move |(offset, length)| Extent { volume: Volume(volume), offset, length })
        })
    }

    /// Bytes in all volumes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.sets.iter().map(RangeSet::bytes).sum()
    }

    /// Number of ranges in all volumes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sets.iter().map(RangeSet::len).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sets.iter().all(RangeSet::is_empty)
    }

    /// Takes at most `max_len` bytes off the first range of the first volume that has one.
    pub fn pop_front(&mut self, max_len: u64) -> Option<Extent> {
        (0u16..).zip(&mut self.sets).find_map(|(volume, set)| {
            set.pop_front(max_len).map(|(offset, length)| Extent { volume: Volume(volume), offset, length })
        })
    }

    /// Adds every range of `other`.
    pub fn union(&mut self, other: &VolumeRanges) {
        other.iter().for_each(|extent| self.insert(extent));
    }
}

/// Ranges that cover everything that was inserted, and never more of them than [`COVER_RANGES_MAX`] (I9): beyond it,
/// neighbours are joined across the smallest gaps between them. For what is to be copied: to copy more than has to be is
/// harmless, to leave out what has to be is not. Not for what is *known* of bytes, that they are zeroes for example.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cover(VolumeRanges);

impl Cover {
    #[must_use]
    pub fn new() -> Cover {
        Cover::default()
    }

    pub fn insert(&mut self, extent: Extent) {
        self.0.insert(extent);
        if self.0.len() > COVER_RANGES_MAX {
            self.0.sets.iter_mut().for_each(RangeSet::halve);
        }
    }

    /// Adds every range of `other`.
    pub fn union(&mut self, other: &VolumeRanges) {
        other.iter().for_each(|extent| self.insert(extent));
    }

    /// Takes at most `max_len` bytes off the first range of the first volume that has one.
    pub fn pop_front(&mut self, max_len: u64) -> Option<Extent> {
        self.0.pop_front(max_len)
    }

    /// Leaves out what is behind the end of a volume of `size` bytes.
    pub fn end_at(&mut self, volume: Volume, size: u64) {
        self.0.remove(Extent { volume, offset: size, length: u64::MAX - size });
    }

    /// The ranges, to be taken out one by one.
    #[must_use]
    pub fn into_ranges(self) -> VolumeRanges {
        self.0
    }
}

impl std::ops::Deref for Cover {
    type Target = VolumeRanges;

    fn deref(&self) -> &VolumeRanges {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 200;

    /// The ranges of a bitmap: what the set of the same bytes has to be.
    fn ranges_of(bytes: &[bool]) -> Vec<(u64, u64)> {
        let runs = bytes.chunk_by(|a, b| a == b).scan(0, |at, run| {
            let start = *at;
            *at += run.len() as u64;
            Some((run[0], start, run.len() as u64))
        });
        runs.filter(|run| run.0).map(|(_, offset, length)| (offset, length)).collect()
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_a_bitmap(
            steps in proptest::collection::vec((0u8..8, 0usize..SIZE, 0usize..60, 1u64..40), 1..60),
        ) {
            let (mut set, mut model) = (RangeSet::new(), [false; SIZE]);
            for (action, offset, length, max) in steps {
                let length = length.min(SIZE - offset);
                let (at, len, part) = (offset as u64, length as u64, offset..offset + length);
                match action {
                    0..4 => {
                        set.insert(at, len);
                        model[part.clone()].fill(true);
                    }
                    4..6 => {
                        set.remove(at, len);
                        model[part.clone()].fill(false);
                    }
                    6 => {
                        let want = ranges_of(&model).first().map(|&(at, len)| (at, len.min(max)));
                        assert_eq!(set.pop_front(max), want);
                        if let Some((at, len)) = want {
                            model[at as usize..(at + len) as usize].fill(false);
                        }
                    }
                    _ => {
                        // As if the smallest gaps, of equal ones the first, were filled in one by one.
                        for _ in 0..set.len() / 2 {
                            let ranges = ranges_of(&model);
                            let gaps = ranges.windows(2).map(|pair| (pair[0].0 + pair[0].1, pair[1].0));
                            let (from, to) = gaps.min_by_key(|(from, to)| to - from).expect("two ranges");
                            model[from as usize..to as usize].fill(true);
                        }
                        set.halve();
                    }
                }
                assert_eq!(set.iter().collect::<Vec<_>>(), ranges_of(&model));
                assert_eq!(set.bytes(), model.iter().filter(|&&set| set).count() as u64);
                assert_eq!(set.len(), ranges_of(&model).len());
                assert_eq!(set.contains(at, len), model[part.clone()].iter().all(|&set| set));
                assert_eq!(set.intersects(at, len), model[part].iter().any(|&set| set));
            }
        }
    }

    #[test]
    fn the_end_of_the_number_line_is_no_special_place() {
        let mut set = RangeSet::new();
        set.insert(u64::MAX - 10, 100);
        assert_eq!(set.iter().collect::<Vec<_>>(), [(u64::MAX - 10, 10)]);
        set.insert(0, 1);
        set.halve();
        assert_eq!(set.iter().collect::<Vec<_>>(), [(0, u64::MAX)]);
        set.remove(0, u64::MAX);
        assert!(set.is_empty() && set.pop_front(1).is_none());
    }

    #[test]
    fn volumes_are_kept_apart() {
        let extent = |volume, offset, length| Extent { volume: Volume(volume), offset, length };
        let mut ranges = VolumeRanges::new();
        assert!(ranges.is_empty() && !ranges.intersects(extent(3, 0, 1)));
        ranges.insert(extent(2, 0, 10));
        ranges.insert(extent(0, 5, 10));
        ranges.insert(extent(2, 20, 5));
        assert_eq!((ranges.bytes(), ranges.len()), (25, 3));
        assert!(ranges.contains(extent(2, 3, 4)) && !ranges.contains(extent(0, 3, 4)));
        assert!(ranges.intersects(extent(0, 3, 4)) && !ranges.intersects(extent(1, 0, 100)));
        let mut copy = VolumeRanges::new();
        copy.union(&ranges);
        assert_eq!(copy, ranges);
        ranges.remove(extent(2, 0, 8));
        ranges.remove(extent(9, 0, 8));
        let popped: Vec<_> = std::iter::from_fn(|| ranges.pop_front(6)).collect();
        assert_eq!(popped, [extent(0, 5, 6), extent(0, 11, 4), extent(2, 8, 2), extent(2, 20, 5)]);
        assert!(ranges.is_empty());
    }

    #[test]
    fn a_cover_has_a_bound_and_leaves_nothing_out() {
        let extents = |count: u64| {
            // Pieces of three volumes in an order that jumps, with gaps of many widths.
            (0..count).map(move |step| {
                let at = step * 7919 % count;
                let volume = Volume((at % 3) as u16);
                Extent { volume, offset: (at << 16) + (at * at % 9973), length: 4096 }
            })
        };
        let mut cover = Cover::new();
        for extent in extents(3 * COVER_RANGES_MAX as u64) {
            cover.insert(extent);
            assert!(cover.len() <= COVER_RANGES_MAX);
        }
        assert!(extents(3 * COVER_RANGES_MAX as u64).all(|extent| cover.contains(extent)));
        assert!(cover.len() > COVER_RANGES_MAX / 4, "{}", cover.len());
        let few = extents(100).collect::<Vec<_>>();
        let (mut exact, mut cover) = (VolumeRanges::new(), Cover::new());
        few.iter().for_each(|extent| exact.insert(*extent));
        cover.union(&exact);
        assert_eq!(*cover, exact, "below the bound nothing is added");
    }

    /// As many ranges as it may have, a cover says exactly.
    #[test]
    fn a_cover_joins_nothing_before_its_bound() {
        let mut cover = Cover::new();
        for at in 0..COVER_RANGES_MAX as u64 {
            cover.insert(Extent { volume: Volume(0), offset: 2 * at, length: 1 });
        }
        assert_eq!((cover.len(), cover.bytes()), (COVER_RANGES_MAX, COVER_RANGES_MAX as u64));
        cover.insert(Extent { volume: Volume(1), offset: 0, length: 1 });
        assert!(cover.len() < COVER_RANGES_MAX);
    }

    #[test]
    fn what_is_behind_the_end_of_a_volume_is_left_out_of_a_cover() {
        let extent = |volume, offset, length| Extent { volume: Volume(volume), offset, length };
        let mut cover = Cover::new();
        for it in [extent(0, 0, 300), extent(0, 400, 100), extent(1, 50, 100)] {
            cover.insert(it);
        }
        cover.end_at(Volume(0), 200);
        assert_eq!(cover.iter().collect::<Vec<_>>(), [extent(0, 0, 200), extent(1, 50, 100)]);
        cover.end_at(Volume(1), 150);
        cover.end_at(Volume(7), 0);
        assert_eq!(cover.into_ranges().bytes(), 300);
    }

    #[test]
    fn of_a_volume_without_ranges_only_nothing_is_contained() {
        let ranges = VolumeRanges::new();
        let extent = |length| Extent { volume: Volume(3), offset: 5, length };
        assert!(ranges.contains(extent(0)) && !ranges.contains(extent(1)) && !ranges.intersects(extent(1)));
    }
}
