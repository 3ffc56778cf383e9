//! Sets of byte ranges: what a batch has still to copy, what a volume has changed.
//!
//! Invariant: ranges of a set are half-open, not empty, disjoint and not adjacent, so that a set has
//! exactly one representation. How many ranges a set may hold is its owner's bound (I9): round what is
//! inserted to a granule, or [`RangeSet::coarsen`].

use std::collections::BTreeMap;

use super::ids::{Extent, Volume};

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

    pub fn clear(&mut self) {
        self.ends.clear();
        self.bytes = 0;
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

    /// Adds every range of `other`.
    pub fn union(&mut self, other: &RangeSet) {
        other.iter().for_each(|(offset, length)| self.insert(offset, length));
    }

    /// Grows every range to multiples of `granule`, not past `size`: fewer ranges, more bytes (I9).
    pub fn coarsen(&mut self, granule: u64, size: u64) {
        let old = std::mem::take(self);
        for (offset, length) in old.iter() {
            let start = offset - offset % granule;
            let end = offset.saturating_add(length).checked_next_multiple_of(granule).unwrap_or(u64::MAX);
            self.insert(start, end.min(size.max(offset.saturating_add(length))) - start);
        }
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

    pub fn clear(&mut self) {
        self.sets.clear();
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
