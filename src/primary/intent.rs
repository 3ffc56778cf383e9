//! The intent map: which extents of each volume may differ from DR's copy (I2).
//!
//! A bit is durable on the primary's own disk before a block of its extent changes, so after a loss of
//! power the ranges to copy are known without a scan and without asking anybody. Bits are cleared
//! lazily, in cycles: a bit may go when no write touched its extent since the cycle began, everything up
//! to the cycle's seq is at or below DR's cut, and the local disk has been synced since.
//!
//! A page write costs as much as the write that waits for it. So while the map says little, a bit is set
//! with its neighbours, which writes are likely to touch next, and neighbours are cleared together; the more
//! places are touched in one cycle, the more neighbours. What a loss of power makes the primary copy for
//! nothing is bounded ([`INTENT_EAGER_EXTENTS`]).

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::core::ids::{Extent, Seq, Volume};
use crate::core::ranges::Cover;
use crate::format::intent::{MapLayout, Page};
use crate::limits::{INTENT_EAGER_EXTENTS, INTENT_EXTENT_BYTES, INTENT_NEIGHBOURS, INTENT_NEIGHBOURS_MAX};

/// Unmarked places touched in a cycle after which twice as many extents are set together.
const MISSES_DOUBLE: u32 = 4;

/// One page in its three versions.
#[derive(Clone, Debug)]
struct Leaf {
    /// What has been asked for: the newest version.
    wanted: Page,
    /// What is known to be on disk: writes of these extents may start.
    durable: Page,
    /// Touched since the present cycle began.
    recent: Page,
    dirty: bool,
}

/// A cycle of clearing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cycle {
    /// Writes up to here are the ones whose bits may go.
    upto: Seq,
    began_ns: u64,
}

/// One durable page write to issue.
#[derive(Clone, Debug)]
pub struct PageWrite {
    pub offset: u64,
    pub bytes: Bytes,
}

/// The map of a group. At most one round of page writes is in flight, so page writes never race.
#[derive(Clone, Debug)]
pub struct IntentMap {
    layout: MapLayout,
    sizes: Vec<u64>,
    volumes: Vec<Vec<Leaf>>,
    /// The pages of the round in flight, as written: volume, page, content.
    round: Vec<Page>,
    left: usize,
    dirty: Vec<(Volume, u64)>,
    cycle: Option<Cycle>,
    /// Bits of the newest version.
    set: u64,
    /// Extents set together, at aligned places: a divisor of the bits of a page.
    neighbours: u64,
    /// Unmarked places touched since the cycle began.
    misses: u32,
    /// Pages have other places since a volume has grown, and have not all been written there.
    relaying: bool,
}

impl IntentMap {
    /// An empty map for volumes of these sizes, bytes.
    #[must_use]
    pub fn new(sizes: &[u64]) -> IntentMap {
        let layout = MapLayout::new(sizes);
        let leaf = |volume, index| {
            let page = Page::new(volume, index);
            Leaf { wanted: page.clone(), durable: page.clone(), recent: page, dirty: false }
        };
        let volumes = (0..sizes.len())
            .map(|at| {
                let volume = volume_at(at);
                (0..layout.volume_pages(volume)).map(|index| leaf(volume, index)).collect()
            })
            .collect();
        IntentMap {
            layout,
            sizes: sizes.to_vec(),
            volumes,
            round: Vec::new(),
            left: 0,
            dirty: Vec::new(),
            cycle: None,
            set: 0,
            neighbours: INTENT_NEIGHBOURS,
            misses: 0,
            relaying: false,
        }
    }

    /// Size of each volume that the pages are laid out for, bytes.
    #[must_use]
    pub fn sizes(&self) -> &[u64] {
        &self.sizes
    }

    /// Lays the pages out for a volume that has grown. Not while a round is in flight.
    ///
    /// Every page whose place changes is written in the next round, and with it every place that has another owner. Until
    /// the header tells of the new layout a start finds a foreign page wherever that differs, which counts as full; so
    /// nothing is ever taken for unwritten, whichever of the two layouts it reads (I2).
    pub fn grow(&mut self, volume: Volume, size: u64) {
        assert!(self.left == 0, "pages are never moved under a page write");
        let grown = &mut self.sizes[usize::from(volume.0)];
        assert!(*grown <= size, "volumes only grow");
        *grown = size;
        let before = std::mem::replace(&mut self.layout, MapLayout::new(&self.sizes));
        for at in 0..self.volumes.len() {
            let volume = volume_at(at);
            let known = self.volumes[at].len() as u64;
            for page in 0..self.layout.volume_pages(volume) {
                let offset = self.layout.page_offset(volume, page);
                if page >= known {
                    let page = Page::new(volume, page);
                    self.volumes[at].push(Leaf {
                        wanted: page.clone(),
                        durable: page.clone(),
                        recent: page,
                        dirty: false,
                    });
                } else if before.page_offset(volume, page) == offset {
                    continue;
                }
                self.relaying = true;
                if !std::mem::replace(&mut self.volumes[at][index(page)].dirty, true) {
                    self.dirty.push((volume, page));
                }
            }
        }
    }

    /// Whether pages have yet to be written to new places: until then the header may not tell of them.
    #[must_use]
    pub fn relaying(&self) -> bool {
        self.relaying
    }

    /// Takes over a page as found on disk.
    pub fn load(&mut self, page: Page) {
        self.set += page.iter().count() as u64;
        let leaf = self.leaf(page.volume, page.index);
        leaf.wanted = page.clone();
        leaf.durable = page;
    }

    /// Sets other than the usual number of extents together: a power of two up to it.
    pub fn set_neighbours(&mut self, neighbours: u64) {
        assert!(neighbours.is_power_of_two() && neighbours <= INTENT_NEIGHBOURS, "neighbours share a page");
        self.neighbours = neighbours;
    }

    /// Marks the extents of a write. True when all of them are durable already: the write may start.
    pub fn want(&mut self, extent: Extent) -> bool {
        let mut durable = true;
        for (page, bit) in places(extent) {
            let leaf = self.leaf(extent.volume, page);
            leaf.recent.set(bit);
            if leaf.durable.get(bit) {
                continue;
            }
            durable = false;
            if !leaf.wanted.get(bit) {
                self.set_around(extent.volume, page, bit);
            }
        }
        durable
    }

    /// Sets a bit, and its neighbours while the map says little.
    fn set_around(&mut self, volume: Volume, page: u64, bit: u64) {
        let together = if self.set < INTENT_EAGER_EXTENTS { self.spread() } else { 1 };
        let size = self.sizes[usize::from(volume.0)];
        let leaf = &mut self.volumes[usize::from(volume.0)][index(page)];
        let first = bit / together * together;
        for bit in (first..first + together).filter(|&bit| MapLayout::offset_of(page, bit) < size) {
            self.set += u64::from(leaf.wanted.set(bit));
        }
        if !std::mem::replace(&mut leaf.dirty, true) {
            self.dirty.push((volume, page));
        }
    }

    /// How many extents the next unmarked place is set with. Writes scattered over a volume would otherwise wait for a
    /// page write each, place by place.
    fn spread(&mut self) -> u64 {
        if self.neighbours < INTENT_NEIGHBOURS {
            return self.neighbours;
        }
        self.misses = self.misses.saturating_add(1);
        let doubled = (self.misses - 1) / MISSES_DOUBLE;
        INTENT_NEIGHBOURS_MAX.min(self.neighbours << doubled.min(INTENT_NEIGHBOURS_MAX.ilog2()))
    }

    /// Whether every extent of the range is durable in the map.
    #[must_use]
    pub fn is_durable(&self, extent: Extent) -> bool {
        let leaves = &self.volumes[usize::from(extent.volume.0)];
        places(extent).all(|(page, bit)| leaves[index(page)].durable.get(bit))
    }

    /// The next round of page writes; empty while one is in flight or nothing is wanted.
    pub fn round(&mut self) -> Vec<PageWrite> {
        if self.left > 0 {
            return Vec::new();
        }
        self.round.clear();
        let mut writes = Vec::new();
        for (volume, page) in std::mem::take(&mut self.dirty) {
            let leaf = self.leaf(volume, page);
            leaf.dirty = false;
            let copy = leaf.wanted.clone();
            writes.push(PageWrite {
                offset: self.layout.page_offset(volume, page),
                bytes: Bytes::copy_from_slice(&copy.encode()),
            });
            self.round.push(copy);
        }
        self.left = writes.len();
        writes
    }

    /// One page write of the round is durable. True when the round is complete: waiting writes may start.
    pub fn page_done(&mut self) -> bool {
        assert!(self.left > 0, "a page write completed that was not issued");
        self.left -= 1;
        if self.left > 0 {
            return false;
        }
        // A round takes whatever is dirty, and none is in flight when a volume grows: this one had all of them.
        self.relaying = false;
        for page in std::mem::take(&mut self.round) {
            let (volume, index) = (page.volume, page.index);
            let leaf = self.leaf(volume, index);
            leaf.durable = page;
        }
        true
    }

    /// Whether a cycle of clearing could begin: something is set and none is under way.
    #[must_use]
    pub fn may_begin_cycle(&self) -> bool {
        self.set > 0 && self.cycle.is_none()
    }

    /// Begins a cycle: bits not touched from now on may be cleared once `upto` is copied and synced.
    pub fn begin_cycle(&mut self, upto: Seq, now_ns: u64) {
        for leaf in self.volumes.iter_mut().flatten() {
            leaf.recent = Page::new(leaf.recent.volume, leaf.recent.index);
        }
        self.cycle = Some(Cycle { upto, began_ns: now_ns });
        self.misses = 0;
    }

    /// The seq that the present cycle waits for, and when it began.
    #[must_use]
    pub fn cycle(&self) -> Option<(Seq, u64)> {
        self.cycle.map(|cycle| (cycle.upto, cycle.began_ns))
    }

    /// Gives the cycle up: a batch has to follow.
    pub fn abandon_cycle(&mut self) {
        self.cycle = None;
    }

    /// Ends the cycle: clears what was not touched since it began, neighbours together. Not while a round is in
    /// flight.
    pub fn end_cycle(&mut self) {
        assert!(self.left == 0, "bits are never cleared under a page write");
        self.cycle = None;
        let together = if self.set <= INTENT_EAGER_EXTENTS { self.neighbours } else { 1 };
        for leaf in self.volumes.iter_mut().flatten() {
            let recent: BTreeSet<u64> = leaf.recent.iter().map(|bit| bit / together).collect();
            let stale: Vec<u64> = leaf.wanted.iter().filter(|bit| !recent.contains(&(bit / together))).collect();
            for bit in &stale {
                leaf.wanted.clear(*bit);
                leaf.durable.clear(*bit);
            }
            self.set -= stale.len() as u64;
            if !stale.is_empty() && !std::mem::replace(&mut leaf.dirty, true) {
                self.dirty.push((leaf.wanted.volume, leaf.wanted.index));
            }
        }
    }

    /// Whether a round of page writes is in flight.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.left > 0
    }

    /// Every extent set, as ranges clipped to the volumes; where there are very many, with what lies between them.
    #[must_use]
    pub fn ranges(&self) -> Cover {
        let mut out = Cover::new();
        for leaf in self.volumes.iter().flatten() {
            let size = self.sizes[usize::from(leaf.wanted.volume.0)];
            for offset in leaf.wanted.iter().map(|bit| MapLayout::offset_of(leaf.wanted.index, bit)) {
                if offset < size {
                    let length = INTENT_EXTENT_BYTES.min(size - offset);
                    out.insert(Extent { volume: leaf.wanted.volume, offset, length });
                }
            }
        }
        out
    }

    fn leaf(&mut self, volume: Volume, page: u64) -> &mut Leaf {
        &mut self.volumes[usize::from(volume.0)][index(page)]
    }
}

fn index(page: u64) -> usize {
    usize::try_from(page).expect("indexes pages that are in memory")
}

fn volume_at(index: usize) -> Volume {
    Volume(u16::try_from(index).expect("at most VOLUMES_MAX volumes"))
}

/// Page and bit of every extent a range touches.
fn places(range: Extent) -> impl Iterator<Item = (u64, u64)> {
    let first = range.offset / INTENT_EXTENT_BYTES;
    let last = (range.offset + range.length.max(1) - 1) / INTENT_EXTENT_BYTES;
    (first..=last).map(|extent| MapLayout::locate(extent * INTENT_EXTENT_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 64 * INTENT_EXTENT_BYTES;

    fn extent(offset: u64, length: u64) -> Extent {
        Extent { volume: Volume(0), offset, length }
    }

    /// A map that sets each bit by itself.
    fn single(sizes: &[u64]) -> IntentMap {
        let mut map = IntentMap::new(sizes);
        map.set_neighbours(1);
        map
    }

    fn settle(map: &mut IntentMap) {
        while !map.round().is_empty() {
            while map.busy() {
                map.page_done();
            }
        }
    }

    #[test]
    fn scattered_writes_mark_more_and_more_at_a_time() {
        let places = 256;
        let mut map = IntentMap::new(&[places << 20]);
        let mut rounds = 0;
        // Every MiB once, in an order that jumps.
        for at in (0..places).map(|step| step * 149 % places) {
            if !map.want(extent(at << 20, 4096)) {
                rounds += 1;
                settle(&mut map);
            }
            assert!(map.is_durable(extent(at << 20, 4096)));
        }
        assert!(rounds <= 32, "{rounds} page writes were waited for");
        map.begin_cycle(Seq(1), 0);
        map.end_cycle();
        settle(&mut map);
        assert!(!map.want(extent(0, 4096)));
        settle(&mut map);
        assert!(!map.is_durable(extent(1 << 20, 4096)), "what begins anew begins with few");
    }

    #[test]
    fn a_write_waits_until_its_bit_is_durable() {
        let mut map = single(&[SIZE]);
        assert!(!map.want(extent(0, 4096)));
        assert_eq!(map.round().len(), 1);
        assert!(!map.is_durable(extent(0, 4096)));
        assert!(map.page_done());
        assert!(map.is_durable(extent(0, 4096)));
        assert!(map.want(extent(0, 4096)));
    }

    #[test]
    fn a_bit_wanted_during_a_round_waits_for_the_next_one_and_delays_nobody() {
        let mut map = single(&[SIZE]);
        map.want(extent(0, 4096));
        assert_eq!(map.round().len(), 1);
        map.want(extent(INTENT_EXTENT_BYTES, 4096));
        assert!(map.page_done());
        assert!(map.is_durable(extent(0, 4096)));
        assert!(!map.is_durable(extent(INTENT_EXTENT_BYTES, 4096)));
        settle(&mut map);
        assert!(map.is_durable(extent(INTENT_EXTENT_BYTES, 4096)));
    }

    #[test]
    fn a_cycle_clears_only_what_was_not_touched_since_it_began() {
        let mut map = single(&[SIZE]);
        map.want(extent(0, 4096));
        map.want(extent(INTENT_EXTENT_BYTES, 4096));
        settle(&mut map);
        map.begin_cycle(Seq(2), 0);
        map.want(extent(0, 1));
        map.end_cycle();
        assert_eq!(map.ranges().iter().collect::<Vec<_>>(), vec![extent(0, INTENT_EXTENT_BYTES)]);
        assert!(!map.want(extent(INTENT_EXTENT_BYTES, 1)), "a cleared bit has to be made durable again");
    }

    #[test]
    fn ranges_are_clipped_to_the_volume() {
        let mut map = single(&[INTENT_EXTENT_BYTES + 512]);
        map.want(extent(INTENT_EXTENT_BYTES, 512));
        assert_eq!(map.ranges().iter().collect::<Vec<_>>(), vec![extent(INTENT_EXTENT_BYTES, 512)]);
    }

    #[test]
    fn neighbours_are_set_with_the_first_of_them_and_cleared_with_the_last() {
        let mut map = IntentMap::new(&[SIZE - 512]);
        let neighbours = INTENT_NEIGHBOURS * INTENT_EXTENT_BYTES;
        assert!(!map.want(extent(neighbours + INTENT_EXTENT_BYTES, 4096)));
        settle(&mut map);
        assert_eq!(map.ranges().iter().collect::<Vec<_>>(), vec![extent(neighbours, neighbours)]);
        assert!(map.want(extent(2 * neighbours - 4096, 4096)), "a neighbour is durable already");
        assert!(!map.want(extent(SIZE - 4096, 100)));
        settle(&mut map);
        map.begin_cycle(Seq(2), 0);
        map.want(extent(neighbours, 1));
        map.end_cycle();
        assert_eq!(map.ranges().iter().collect::<Vec<_>>(), vec![extent(neighbours, neighbours)]);
        settle(&mut map);
        map.begin_cycle(Seq(3), 0);
        map.end_cycle();
        assert_eq!((map.ranges().iter().count(), map.set), (0, 0));
    }

    #[test]
    fn a_map_that_says_much_sets_no_neighbours() {
        let bytes = 2 * INTENT_EAGER_EXTENTS * INTENT_EXTENT_BYTES;
        let mut map = IntentMap::new(&[bytes]);
        let mut at = 0;
        while map.set < INTENT_EAGER_EXTENTS {
            map.want(extent(at, 1));
            at += INTENT_NEIGHBOURS * INTENT_EXTENT_BYTES;
        }
        let before = map.set;
        map.want(extent(bytes - 1, 1));
        assert_eq!(map.set, before + 1);
    }

    /// The bytes of a map file, and what it says of volumes of these sizes, as a start reads it: ranges that count.
    struct OnDisk(Vec<u8>);

    impl OnDisk {
        fn write(&mut self, write: &PageWrite) {
            let at = usize::try_from(write.offset).expect("small");
            self.0.resize(self.0.len().max(at + write.bytes.len()), 0);
            self.0[at..at + write.bytes.len()].copy_from_slice(&write.bytes);
        }

        fn counts(&self, sizes: &[u64], extent: Extent) -> bool {
            let layout = MapLayout::new(sizes);
            let (page, bit) = MapLayout::locate(extent.offset);
            let at = usize::try_from(layout.page_offset(extent.volume, page)).expect("small");
            let Some(block) = self.0.get(at..at + crate::limits::BLOCK_BYTES) else { return false };
            match Page::decode(block) {
                Ok(found) if found.volume == extent.volume && found.index == page => found.get(bit),
                _ => !crate::format::is_zero(block),
            }
        }
    }

    /// Volumes that grow move the pages of those behind them. Whichever of them are written when the power goes, and
    /// whether the header tells of the new layout by then: nothing that was durable in the map is forgotten.
    #[test]
    fn a_map_that_is_laid_out_anew_forgets_nothing_in_either_layout() {
        use crate::format::intent::PAGE_COVERS_BYTES;
        let of = |volume: u16, page: u64, bit: u64| Extent {
            volume: Volume(volume),
            offset: page * PAGE_COVERS_BYTES + bit * INTENT_EXTENT_BYTES,
            length: 4096,
        };
        let (small, large) =
            (vec![PAGE_COVERS_BYTES; 3], vec![2 * PAGE_COVERS_BYTES, PAGE_COVERS_BYTES, PAGE_COVERS_BYTES]);
        for subset in 0..1u32 << 5 {
            let mut map = single(&small);
            let mut disk = OnDisk(Vec::new());
            let before = [of(0, 0, 1), of(1, 0, 2), of(2, 0, 3)];
            before.iter().for_each(|extent| assert!(!map.want(*extent)));
            map.round().iter().for_each(|write| disk.write(write));
            while map.busy() {
                map.page_done();
            }
            map.grow(Volume(0), 2 * PAGE_COVERS_BYTES);
            assert!(map.relaying() && map.sizes() == large);
            let during = [of(0, 1, 0), of(2, 0, 9)];
            during.iter().for_each(|extent| assert!(!map.want(*extent)));
            let round = map.round();
            assert_eq!(round.len(), 3, "one page is new and two have moved");
            let all = subset & 7 == 7;
            round.iter().enumerate().filter(|(at, _)| subset >> at & 1 != 0).for_each(|(_, write)| disk.write(write));
            assert!(before.iter().all(|extent| disk.counts(&small, *extent)), "{subset:b}: by the old header");
            if !all {
                continue;
            }
            while map.busy() {
                map.page_done();
            }
            assert!(!map.relaying());
            // What comes after, before and behind the header.
            let after = of(1, 0, 20);
            assert!(!map.want(after) && during.iter().all(|extent| map.is_durable(*extent)));
            if subset >> 3 & 1 != 0 {
                map.round().iter().for_each(|write| disk.write(write));
            }
            let written = subset >> 3 & 1 != 0;
            let layout = if subset >> 4 & 1 != 0 { &large } else { &small };
            let held = before.iter().chain(&during).filter(|it| it.offset < layout[usize::from(it.volume.0)]);
            for extent in held.chain(written.then_some(&after)) {
                assert!(disk.counts(layout, *extent), "{subset:b}: {extent:?}");
            }
        }
    }

    #[test]
    fn a_volume_that_grows_within_its_page_moves_nothing() {
        let mut map = single(&[SIZE, SIZE]);
        map.grow(Volume(0), 2 * SIZE);
        assert!(!map.relaying() && map.round().is_empty());
        assert!(!map.want(extent(2 * SIZE - 4096, 4096)));
    }
}
