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

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::core::ids::{Extent, Seq, Volume};
use crate::core::ranges::Cover;
use crate::format::intent::{MapLayout, PAGE_BITS, Page};
use crate::limits::{
    BLOCK_BYTES, INTENT_EAGER_EXTENTS, INTENT_EXTENT_BYTES, INTENT_NEIGHBOURS, INTENT_NEIGHBOURS_MAX,
    INTENT_ROUND_PAGES,
};

const LAST_BIT: u64 = PAGE_BITS - 1;

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
    /// It is among those that are written in the next round.
    dirty: bool,
    /// It is among those that are written when there is time: nobody waits for it alone.
    later: bool,
    /// Its place is another one, or new, since a volume has grown, and not all of those are written yet.
    moved: bool,
}

impl Leaf {
    fn new(volume: Volume, index: u64) -> Leaf {
        let page = Page::new(volume, index);
        Leaf { wanted: page.clone(), durable: page.clone(), recent: page, dirty: false, later: false, moved: false }
    }
}

/// A cycle of clearing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cycle {
    /// Writes up to here are the ones whose bits may go.
    upto: Seq,
    began_ns: u64,
}

/// One durable write to issue: a page, or several that stand behind one another.
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
    later: VecDeque<(Volume, u64)>,
    cycle: Option<Cycle>,
    /// Bits of the newest version.
    set: u64,
    /// Extents set together, at aligned places: a divisor of the bits of a page.
    neighbours: u64,
    /// Unmarked places touched since the cycle began.
    misses: u32,
    /// Pages have other places since a volume has grown, and have not all been written there.
    relaying: bool,
    /// Those that have: they count as durable once all of them are.
    relaid: Vec<Page>,
}

/// What a page takes of memory at the most: its three versions, none of them all alike, bytes.
const PAGE_MEMORY_BYTES: u64 = 3 * BLOCK_BYTES as u64 + size_of::<Leaf>() as u64;

/// The most memory that the map of volumes of these sizes takes, bytes.
#[must_use]
pub fn memory_bytes_max(sizes: &[u64]) -> u64 {
    MapLayout::new(sizes).pages().saturating_mul(PAGE_MEMORY_BYTES)
}

impl IntentMap {
    /// An empty map for volumes of these sizes, bytes.
    #[must_use]
    pub fn new(sizes: &[u64]) -> IntentMap {
        let layout = MapLayout::new(sizes);
        let volumes = (0..sizes.len())
            .map(|at| {
                let volume = volume_at(at);
                (0..layout.volume_pages(volume)).map(|index| Leaf::new(volume, index)).collect()
            })
            .collect();
        IntentMap {
            layout,
            sizes: sizes.to_vec(),
            volumes,
            round: Vec::new(),
            left: 0,
            dirty: Vec::new(),
            later: VecDeque::new(),
            cycle: None,
            set: 0,
            neighbours: INTENT_NEIGHBOURS,
            misses: 0,
            relaying: false,
            relaid: Vec::new(),
        }
    }

    /// Size of each volume that the pages are laid out for, bytes.
    #[must_use]
    pub fn sizes(&self) -> &[u64] {
        &self.sizes
    }

    /// Lays the pages out for a volume that has grown. Not while the map is busy.
    ///
    /// Every page whose place changes is written in the next rounds, and with it every place that has another owner. Until
    /// the header tells of the new layout a start finds a foreign page wherever that differs, which counts as full. None
    /// of them counts as durable before all are written: so nothing is ever taken for unwritten, whichever of the two
    /// layouts it reads (I2).
    pub fn grow(&mut self, volume: Volume, size: u64) {
        assert!(!self.busy(), "pages are never moved under a page write");
        let grown = &mut self.sizes[usize::from(volume.0)];
        assert!(*grown <= size, "volumes only grow");
        *grown = size;
        let before = std::mem::replace(&mut self.layout, MapLayout::new(&self.sizes));
        for at in 0..self.volumes.len() {
            let volume = volume_at(at);
            let known = self.volumes[at].len() as u64;
            for page in 0..self.layout.volume_pages(volume) {
                if page >= known {
                    self.volumes[at].push(Leaf::new(volume, page));
                } else if before.page_offset(volume, page) == self.layout.page_offset(volume, page) {
                    continue;
                }
                self.relaying = true;
                self.leaf(volume, page).moved = true;
                self.write_later(volume, page);
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
        self.set += page.count();
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
        for (page, first, last) in places(extent) {
            let leaf = self.leaf(extent.volume, page);
            leaf.recent.set_range(first, last);
            if leaf.durable.first_clear(first, last).is_none() {
                continue;
            }
            durable = false;
            let before = self.set;
            let mut from = first;
            while let Some(bit) = self.leaf(extent.volume, page).wanted.first_clear(from, last) {
                if self.set >= INTENT_EAGER_EXTENTS {
                    self.set += self.leaf(extent.volume, page).wanted.set_range(bit, last);
                    break;
                }
                self.set_around(extent.volume, page, bit);
                from = bit + 1;
            }
            match (first, last) {
                _ if self.set == before && !self.leaf(extent.volume, page).later => {}
                (0, LAST_BIT) => self.write_later(extent.volume, page),
                _ => self.write_soon(extent.volume, page),
            }
        }
        durable
    }

    /// Sets a bit, and its neighbours while the map says little.
    fn set_around(&mut self, volume: Volume, page: u64, bit: u64) {
        let together = self.spread();
        let size = self.sizes[usize::from(volume.0)];
        let first = bit / together * together;
        let end = (size.div_ceil(INTENT_EXTENT_BYTES) - page * PAGE_BITS).min(first + together);
        // What is behind the end of the volume has no bit.
        if first < end {
            self.set += self.leaf(volume, page).wanted.set_range(first, end - 1);
        }
    }

    fn write_soon(&mut self, volume: Volume, page: u64) {
        if !std::mem::replace(&mut self.leaf(volume, page).dirty, true) {
            self.dirty.push((volume, page));
        }
    }

    fn write_later(&mut self, volume: Volume, page: u64) {
        if !std::mem::replace(&mut self.leaf(volume, page).later, true) {
            self.later.push_back((volume, page));
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
        places(extent).all(|(page, first, last)| leaves[index(page)].durable.first_clear(first, last).is_none())
    }

    /// Whether an extent of a range is not durable in the map, of one that has a place there: a record may say more than the
    /// volumes have.
    #[must_use]
    pub fn lacks(&self, extent: Extent) -> bool {
        let end = extent.offset.checked_add(extent.length);
        let size = self.sizes.get(usize::from(extent.volume.0)).copied().unwrap_or(0);
        end.is_some_and(|end| end <= size) && !self.is_durable(extent)
    }

    /// The next round of page writes; empty while one is in flight or nothing is wanted. Pages that somebody waits for go
    /// first, and very many others in several rounds: those that come to be waited for meanwhile do not wait for all of them.
    pub fn round(&mut self) -> Vec<PageWrite> {
        if self.left > 0 {
            return Vec::new();
        }
        self.round.clear();
        for (volume, page) in std::mem::take(&mut self.dirty) {
            self.add_to_round(volume, page);
        }
        while self.round.len() < INTENT_ROUND_PAGES
            && let Some((volume, page)) = self.later.pop_front()
        {
            if self.leaf(volume, page).later {
                self.add_to_round(volume, page);
            }
        }
        // Those that went first are there no more, so that a round follows exactly if there is something to be written.
        while self.later.front().is_some_and(|(volume, page)| !self.volumes[usize::from(volume.0)][index(*page)].later)
        {
            self.later.pop_front();
        }
        let mut writes: Vec<(u64, Volume, BytesMut)> = Vec::new();
        for page in &self.round {
            let offset = self.layout.page_offset(page.volume, page.index);
            match writes.last_mut() {
                Some((at, volume, bytes)) if *volume == page.volume && *at + bytes.len() as u64 == offset => {
                    bytes.extend_from_slice(&page.encode());
                }
                _ => writes.push((offset, page.volume, BytesMut::from(&page.encode()[..]))),
            }
        }
        self.left = writes.len();
        writes.into_iter().map(|(offset, _, bytes)| PageWrite { offset, bytes: bytes.freeze() }).collect()
    }

    fn add_to_round(&mut self, volume: Volume, page: u64) {
        let leaf = self.leaf(volume, page);
        (leaf.dirty, leaf.later) = (false, false);
        let page = leaf.wanted.clone();
        self.round.push(page);
    }

    /// One page write of the round is durable. True when the round is complete: waiting writes may start.
    pub fn page_done(&mut self) -> bool {
        assert!(self.left > 0, "a page write completed that was not issued");
        self.left -= 1;
        if self.left > 0 {
            return false;
        }
        for page in std::mem::take(&mut self.round) {
            let leaf = self.leaf(page.volume, page.index);
            if leaf.moved { self.relaid.push(page) } else { leaf.durable = page }
        }
        if self.relaying && self.later.is_empty() {
            self.relaying = false;
            self.volumes.iter_mut().flatten().for_each(|leaf| leaf.moved = false);
            // The newest version of each comes last.
            for page in std::mem::take(&mut self.relaid) {
                let leaf = self.leaf(page.volume, page.index);
                leaf.durable = page;
            }
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
        assert!(!self.busy(), "bits are never cleared under a page write");
        self.cycle = None;
        let together = if self.set <= INTENT_EAGER_EXTENTS { self.neighbours } else { 1 };
        let mut changed = Vec::new();
        for leaf in self.volumes.iter_mut().flatten() {
            let cleared = leaf.wanted.keep(&leaf.recent, together);
            leaf.durable.keep(&leaf.recent, together);
            self.set -= cleared;
            if cleared > 0 {
                changed.push((leaf.wanted.volume, leaf.wanted.index));
            }
        }
        changed.into_iter().for_each(|(volume, page)| self.write_later(volume, page));
    }

    /// Whether a round of page writes is in flight, or more have to follow before pages may be moved or bits cleared.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.left > 0 || self.relaying
    }

    /// Every extent set, as ranges clipped to the volumes; where there are very many, with what lies between them.
    #[must_use]
    pub fn ranges(&self) -> Cover {
        let mut out = Cover::new();
        for (leaves, size) in self.volumes.iter().zip(&self.sizes) {
            // What goes on in the next page is one range with it.
            let mut open: Option<Extent> = None;
            for leaf in leaves {
                let Page { volume, index, .. } = leaf.wanted;
                for (first, count) in leaf.wanted.runs() {
                    let offset = MapLayout::offset_of(index, first);
                    let length = (count * INTENT_EXTENT_BYTES).min(size.saturating_sub(offset));
                    match &mut open {
                        Some(it) if it.offset + it.length == offset => it.length += length,
                        _ => open.replace(Extent { volume, offset, length }).into_iter().for_each(|it| out.insert(it)),
                    }
                }
            }
            open.into_iter().for_each(|it| out.insert(it));
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

/// Every page that a range touches, and its first and last bit there.
fn places(range: Extent) -> impl Iterator<Item = (u64, u64, u64)> {
    let (from, first) = MapLayout::locate(range.offset);
    let (to, last) = MapLayout::locate(range.offset + range.length.max(1) - 1);
    (from..=to).map(move |page| (page, if page == from { first } else { 0 }, if page == to { last } else { LAST_BIT }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::format::intent::PAGE_COVERS_BYTES;

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

    /// The same, extent by extent.
    #[derive(Clone)]
    struct Naive {
        size: u64,
        wanted: BTreeSet<u64>,
        durable: BTreeSet<u64>,
        recent: BTreeSet<u64>,
        neighbours: u64,
        misses: u32,
    }

    impl Naive {
        fn want(&mut self, extent: Extent) -> bool {
            let last = (extent.offset + extent.length.max(1) - 1) / INTENT_EXTENT_BYTES;
            let mut durable = true;
            for bit in extent.offset / INTENT_EXTENT_BYTES..=last {
                self.recent.insert(bit);
                if self.durable.contains(&bit) {
                    continue;
                }
                durable = false;
                if self.wanted.contains(&bit) {
                    continue;
                }
                let mut together = 1;
                if (self.wanted.len() as u64) < INTENT_EAGER_EXTENTS {
                    together = self.neighbours;
                    if self.neighbours == INTENT_NEIGHBOURS {
                        self.misses += 1;
                        together = (together << ((self.misses - 1) / MISSES_DOUBLE).min(16)).min(INTENT_NEIGHBOURS_MAX);
                    }
                }
                let first = bit % PAGE_BITS / together * together + bit / PAGE_BITS * PAGE_BITS;
                self.wanted.extend((first..first + together).filter(|bit| bit * INTENT_EXTENT_BYTES < self.size));
            }
            durable
        }

        fn end_cycle(&mut self) {
            let together = if self.wanted.len() as u64 <= INTENT_EAGER_EXTENTS { self.neighbours } else { 1 };
            let group = |bit: u64| (bit / PAGE_BITS, bit % PAGE_BITS / together);
            let recent: BTreeSet<(u64, u64)> = self.recent.iter().map(|bit| group(*bit)).collect();
            self.wanted.retain(|bit| recent.contains(&group(*bit)));
            self.durable.retain(|bit| recent.contains(&group(*bit)));
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
        #[test]
        fn whole_ranges_are_marked_as_extent_by_extent(
            eager in proptest::prelude::any::<bool>(),
            steps in proptest::collection::vec((0u8..8, 0u64..3 * PAGE_BITS + 9, 1u64..2 * PAGE_BITS), 1..24),
        ) {
            let size = 2 * PAGE_BITS * INTENT_EXTENT_BYTES - 512;
            let neighbours = if eager { INTENT_NEIGHBOURS } else { 1 };
            let mut map = IntentMap::new(&[size]);
            map.set_neighbours(neighbours);
            let none = BTreeSet::new();
            let mut naive = Naive {
                size, wanted: none.clone(), durable: none.clone(), recent: none, neighbours, misses: 0,
            };
            for (action, at, length) in steps {
                let at = at % (naive.size / INTENT_EXTENT_BYTES);
                // Short ones and long ones.
                let length = if action < 3 { length % 40 + 1 } else { length };
                let offset = at * INTENT_EXTENT_BYTES + 512;
                let range = extent(offset, (length * INTENT_EXTENT_BYTES - 1024).min(naive.size - offset));
                match action {
                    0..5 => assert_eq!(map.want(range), naive.want(range)),
                    5 => {
                        settle(&mut map);
                        naive.durable.clone_from(&naive.wanted);
                    }
                    6 => {
                        settle(&mut map);
                        naive.durable.clone_from(&naive.wanted);
                        map.end_cycle();
                        naive.end_cycle();
                        map.begin_cycle(Seq(1), 0);
                        naive.recent.clear();
                        naive.misses = 0;
                    }
                    _ => {
                        settle(&mut map);
                        naive.durable.clone_from(&naive.wanted);
                        naive.size += (length % PAGE_BITS) * 3 * INTENT_EXTENT_BYTES;
                        map.grow(Volume(0), naive.size);
                        settle(&mut map);
                    }
                }
                assert_eq!(map.set, naive.wanted.len() as u64);
                let set = map.volumes[0].iter().flat_map(|leaf| {
                    leaf.wanted.iter().map(|bit| leaf.wanted.index * PAGE_BITS + bit)
                });
                assert!(set.eq(naive.wanted.iter().copied()));
                let durable = map.volumes[0].iter().flat_map(|leaf| {
                    leaf.durable.iter().map(|bit| leaf.durable.index * PAGE_BITS + bit)
                });
                assert!(durable.eq(naive.durable.iter().copied()));
                let mut ranges = Cover::new();
                for offset in naive.wanted.iter().map(|bit| bit * INTENT_EXTENT_BYTES) {
                    ranges.insert(extent(offset, INTENT_EXTENT_BYTES.min(naive.size - offset)));
                }
                assert_eq!(map.ranges(), ranges);
                let covered = range.offset / INTENT_EXTENT_BYTES..(range.offset + range.length).div_ceil(INTENT_EXTENT_BYTES);
                assert_eq!(map.is_durable(range), covered.clone().all(|bit| naive.durable.contains(&bit)));
            }
        }
    }

    #[test]
    fn a_volume_that_becomes_very_large_is_marked_in_rounds_that_others_need_not_wait_for() {
        let (small, large) = (PAGE_COVERS_BYTES, 100 << 40);
        let mut map = single(&[small, small]);
        map.grow(Volume(0), large);
        assert!(!map.want(extent(small, large - small)));
        let pages = map.round();
        assert_eq!(pages.len(), 2, "the last one, and those that stand behind one another");
        let bytes = |writes: &[PageWrite]| writes.iter().map(|it| it.bytes.len()).sum::<usize>();
        assert!(map.relaying() && map.busy() && bytes(&pages) == INTENT_ROUND_PAGES * BLOCK_BYTES);
        // A place that has not moved is waited for by itself; one that has, until all of them are where they belong.
        assert!(!map.want(extent(0, 512)));
        let moved = Extent { volume: Volume(1), ..extent(0, 512) };
        assert!(!map.want(moved));
        assert!(!map.page_done() && map.page_done() && !map.is_durable(extent(0, 512)));
        let next = map.round();
        assert_eq!([next[0].offset, next[0].bytes.len() as u64], [BLOCK_BYTES as u64; 2]);
        next.iter().for_each(|_| assert!(map.page_done() || map.left > 0));
        assert!(map.is_durable(extent(0, 512)) && !map.is_durable(moved) && map.busy());
        let mut rounds = 2;
        while map.busy() {
            let writes = map.round();
            assert!(!writes.is_empty() && bytes(&writes) <= INTENT_ROUND_PAGES * BLOCK_BYTES);
            writes.iter().for_each(|_| assert!(map.page_done() || map.left > 0));
            rounds += 1;
        }
        assert_eq!(rounds, (large / PAGE_COVERS_BYTES).div_ceil(INTENT_ROUND_PAGES as u64));
        assert!(map.is_durable(moved) && map.is_durable(extent(small, large - small)));
        let all = [extent(0, 65536), extent(small, large - small), Extent { length: 65536, ..moved }];
        assert_eq!(map.ranges().iter().collect::<Vec<_>>(), all);
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
