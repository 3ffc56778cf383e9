//! Owns the simulated disks: files with a cache, a stable image, and everything that lies between.
//!
//! What is modelled (core/machine.rs has the contract):
//! - Operations run concurrently and complete in the order the world's clock says, which is random.
//! - A *buffered* file shows a write at once to later reads and keeps it when the process dies. A *direct*
//!   file takes it at some moment between submission and completion; when the process dies in between, it is
//!   there, not there, or there in some of its sectors.
//! - Power loss keeps, loses or tears (at 512-byte sectors) each write that is not durable yet, each by itself
//!   and so in any order. A durable write is safe when completed and like any other before.
//! - A sync covers the writes completed before it was submitted; it may cover more, and here does not.
//! - Writing part of a sector rewrites the sector, as a device does.
//! - While a disk fails, reads, writes or syncs of it do, or writes for want of space. What a failed write leaves
//!   is in the cache or not, or in part; a failed sync keeps what it was to make durable, or loses it, or leaves it to be
//!   read and never written: until a shell opens the file again, which drops what is cached.
//! - A bit at rest may flip. One write may land in another place of its file.

use std::collections::VecDeque;
use std::fmt::Debug;

use bytes::Bytes;
use farshore::core::ids::Ticket;
use farshore::core::machine::{DiskKind, DiskOp, DiskResult, IoFail, ReadAt};
use farshore::core::planted::{Bug, planted};
use xxhash_rust::xxh3::Xxh3;

use crate::failing::Fails;
use crate::memory::{self, Lent, is_shared_zero, is_zero, zeroed, zeroes};
use crate::rng::Rng;
use crate::setup::Failing;

pub const SECTOR: usize = 512;

/// How the shell opened a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Buffered,
    Direct,
}

/// A range that has just become durable, for the checkers.
#[derive(Clone, Debug)]
pub struct Settled<F> {
    pub file: F,
    pub offset: u64,
    pub length: u64,
}

/// All files of one host.
pub struct Disk<F> {
    files: Vec<(F, SimFile)>,
    /// By their numbers, of which the last one is `operations`; `None` where one has ended.
    pending: VecDeque<Option<Pending<F>>>,
    operations: u64,
    version: u64,
    settled: Vec<Settled<F>>,
    pub fails: Option<Fails<F>>,
    /// The next write to such a file goes astray.
    misdirects: Option<(Which<F>, Rng)>,
    /// One has, in this file.
    misdirected: Option<F>,
    /// Bits that have flipped at rest.
    flips: Vec<Flip<F>>,
    /// A loss of power may leave the begin of a sector as it was to be, and the rest as it had been.
    pub tears: Which<F>,
}

/// A bit that has flipped, and the version of what it flipped in.
#[derive(Clone, Copy, Debug)]
struct Flip<F> {
    file: F,
    at: u64,
    bit: u8,
    version: u64,
}

/// Some of the files.
pub type Which<F> = fn(F) -> bool;

pub struct SimFile {
    class: Class,
    pub size: usize,
    /// As long as the file, or longer: they were another file's once.
    pub cache: Vec<u8>,
    pub stable: Vec<u8>,
    /// Sectors of `cache` that were ever written.
    pub touched: Vec<bool>,
    /// Version of the write each sector of `stable` comes from.
    pub sector_versions: Vec<u64>,
    pub unsynced: Vec<Unsynced>,
    /// What a failed sync has left: read, and never durable whoever syncs.
    pub ghosts: Vec<Unsynced>,
    /// How often bytes of `stable` have changed.
    pub changes: u64,
}

/// A write that is in the cache and may be lost with the power.
pub struct Unsynced {
    version: u64,
    /// Range the write itself covered, bytes.
    pub offset: u64,
    pub length: u64,
    /// When it was reported complete; `None` while in flight.
    pub completed_ns: Option<u64>,
    first_sector: usize,
    sectors: Bytes,
}

struct Pending<F> {
    ticket: Ticket,
    file: F,
    action: Action,
}

enum Action {
    Read { offset: u64, length: u64 },
    Write { offset: u64, data: Bytes, durable: bool, version: Option<u64> },
    Sync { versions: Vec<u64> },
}

impl Action {
    fn fails(&self, how: Failing) -> bool {
        match self {
            Action::Read { .. } => how == Failing::Reads,
            Action::Write { .. } => matches!(how, Failing::Writes | Failing::Full),
            Action::Sync { .. } => how == Failing::Syncs,
        }
    }
}

impl<F: Copy + Eq + Debug> Disk<F> {
    pub fn new() -> Disk<F> {
        Disk {
            files: Vec::new(),
            pending: VecDeque::new(),
            operations: 0,
            version: 0,
            settled: Vec::new(),
            fails: None,
            misdirects: None,
            misdirected: None,
            flips: Vec::new(),
            tears: |_| false,
        }
    }

    pub fn mend(&mut self) {
        self.fails = None;
        self.misdirects = None;
    }

    /// The next write to a file that `may` be hit lands in another place of it.
    pub fn misdirect(&mut self, may: fn(F) -> bool, rng: Rng) {
        self.misdirects = Some((may, rng));
    }

    /// The file in which a write has gone astray since this was last asked.
    pub fn take_misdirected(&mut self) -> Option<F> {
        self.misdirected.take()
    }

    /// Creates a file of `size` zero bytes.
    pub fn create(&mut self, file: F, size: u64, class: Class) {
        let sectors = (size as usize).div_ceil(SECTOR);
        let size = sectors * SECTOR;
        let made = SimFile {
            class,
            size,
            cache: zeroed(size),
            stable: zeroed(size),
            touched: vec![false; sectors],
            sector_versions: vec![0; sectors],
            unsynced: Vec::new(),
            ghosts: Vec::new(),
            changes: 1,
        };
        assert!(!self.has(file), "{file:?} is created once");
        self.files.push((file, made));
    }

    /// Writes outside of any process, at once and durably (setting the scene).
    pub fn plant(&mut self, file: F, offset: u64, bytes: &[u8]) {
        let version = self.next_version();
        let target = self.file_mut(file);
        if target.unsynced.is_empty() && !bytes.is_empty() {
            return target.plant(offset as usize, bytes, version);
        }
        target.write_cache(offset, &Bytes::copy_from_slice(bytes), version);
        let settled = target.settle(|_| true);
        assert!(!settled.is_empty() || bytes.is_empty(), "planted bytes are durable");
    }

    /// A bit at rest changes, and nobody is told.
    pub fn flip(&mut self, file: F, at: u64, bit: u8) {
        let target = self.file_mut(file);
        let version = target.sector_versions[at as usize / SECTOR];
        target.touched[at as usize / SECTOR] = true;
        target.cache[at as usize] ^= 1 << bit;
        target.stable[at as usize] ^= 1 << bit;
        target.changes += 1;
        self.flips.push(Flip { file, at, bit, version });
    }

    pub fn file(&self, file: F) -> &SimFile {
        let found = self.files.iter().find(|(name, _)| *name == file);
        &found.unwrap_or_else(|| panic!("{file:?} does not exist")).1
    }

    /// The memory of a file, for a start to read without a copy of it; [`Disk::give_back`] follows before anything else.
    pub fn lend(&mut self, file: F) -> Lent {
        let target = self.file_mut(file);
        Lent::new(std::mem::take(&mut target.cache), target.size)
    }

    /// Who kept a piece of it keeps it: then the file gets memory of its own.
    pub fn give_back(&mut self, file: F, lent: Lent) {
        self.file_mut(file).cache = lent.into_memory();
    }

    pub fn has(&self, file: F) -> bool {
        self.files.iter().any(|(name, _)| *name == file)
    }

    /// Makes everything durable, as a shell does when it opens its files.
    pub fn sync_all(&mut self) {
        let names: Vec<F> = self.files.iter().map(|(name, _)| *name).collect();
        for name in names {
            self.settle(name, |_| true);
            if !planted(Bug::CacheTrusted) {
                self.file_mut(name).forget_ghosts();
            }
        }
    }

    /// Takes an operation; the caller completes it later by the number returned.
    pub fn submit(&mut self, op: DiskOp<F>, rng: &mut Rng) -> u64 {
        let class = self.file(op.file).class;
        let action = match op.kind {
            DiskKind::Read { offset, length } => Action::Read { offset, length },
            DiskKind::Write { offset, parts, durable } => {
                let data = join(&parts);
                self.begin_write(op.file, class, offset, data, durable, rng)
            }
            DiskKind::Zero { offset, length, durable, .. } => {
                let data = zeroes(length as usize);
                self.begin_write(op.file, class, offset, data, durable, rng)
            }
            DiskKind::Sync => Action::Sync {
                versions: self
                    .file(op.file)
                    .unsynced
                    .iter()
                    .filter(|w| w.completed_ns.is_some())
                    .map(|w| w.version)
                    .collect(),
            },
        };
        self.operations += 1;
        self.pending.push_back(Some(Pending { ticket: op.ticket, file: op.file, action }));
        self.operations
    }

    fn begin_write(&mut self, file: F, class: Class, offset: u64, data: Bytes, durable: bool, rng: &mut Rng) -> Action {
        let size = self.file(file).size as u64;
        assert!(
            offset + data.len() as u64 <= size,
            "I9: write of {} bytes at {offset} of {file:?} ends beyond its {size} bytes",
            data.len()
        );
        let offset = self.astray(file, offset, data.len() as u64);
        let at_once = class == Class::Buffered || rng.chance(30);
        let version = at_once.then(|| {
            let version = self.next_version();
            self.file_mut(file).write_cache(offset, &data, version);
            version
        });
        Action::Write { offset, data, durable, version }
    }

    /// Where a write really lands.
    fn astray(&mut self, file: F, offset: u64, length: u64) -> u64 {
        let size = self.file(file).size as u64;
        let Some((may, rng)) = &mut self.misdirects else { return offset };
        if !may(file) || length == 0 || size < length + SECTOR as u64 {
            return offset;
        }
        let sector = SECTOR as u64;
        let elsewhere = rng.below((size - length) / sector) * sector + offset % sector;
        if elsewhere == offset || elsewhere + length > size {
            return offset;
        }
        self.misdirects = None;
        self.misdirected = Some(file);
        elsewhere
    }

    /// What comes of an operation that fails.
    fn spoil(&mut self, file: F, action: Action) -> DiskResult {
        let Some(mut fails) = self.fails.take() else { return Ok(Bytes::new()) };
        match action {
            Action::Write { offset, data, version: None, .. } => {
                let version = self.next_version();
                let whole = data.len() / SECTOR * SECTOR;
                // It ends where a sector of the disk does, as what a loss of power tears.
                let part = fails.rng.below(whole as u64 / SECTOR as u64 + 1) as usize * SECTOR;
                let kept = [0, part.saturating_sub(offset as usize % SECTOR), data.len()];
                let kept = fails.rng.pick(&kept);
                self.file_mut(file).write_cache(offset, &data.slice(..kept), version);
            }
            Action::Sync { versions } if fails.loses && fails.rng.chance(50) => {
                let ghosts = fails.ghosts && fails.rng.chance(60);
                self.file_mut(file).lose(|version| versions.binary_search(&version).is_ok(), ghosts);
            }
            _ => {}
        }
        let full = fails.how == Failing::Full;
        self.fails = Some(fails);
        Err(if full { IoFail::NoSpace("simulated".into()) } else { IoFail::Other("simulated".into()) })
    }

    /// Whether an operation under way is a read.
    pub fn is_read(&self, operation: u64) -> bool {
        let pending = self.place(operation).and_then(|place| self.pending[place].as_ref());
        pending.is_some_and(|it| matches!(it.action, Action::Read { .. }))
    }

    /// Completes an operation: what its ticket is answered.
    pub fn complete(&mut self, operation: u64, now_ns: u64) -> Option<(Ticket, DiskResult)> {
        let place = self.place(operation)?;
        let Pending { ticket, file, action } = self.pending[place].take()?;
        while self.pending.pop_front_if(|first| first.is_none()).is_some() {}
        if self.fails.as_mut().is_some_and(|it| action.fails(it.how) && it.strikes(file, now_ns)) {
            return Some((ticket, self.spoil(file, action)));
        }
        let result = match action {
            Action::Read { offset, length } => self.file(file).read_at(offset, length as usize),
            Action::Write { offset, data, durable, version } => {
                let version = version.unwrap_or_else(|| {
                    let version = self.next_version();
                    self.file_mut(file).write_cache(offset, &data, version);
                    version
                });
                self.completed(file, version, durable, now_ns);
                Ok(Bytes::new())
            }
            Action::Sync { versions } => {
                self.settle(file, |v| versions.binary_search(&v).is_ok());
                Ok(Bytes::new())
            }
        };
        Some((ticket, result))
    }

    /// A write has got to the cache and is answered.
    fn completed(&mut self, file: F, version: u64, durable: bool, now_ns: u64) {
        let target = self.file_mut(file);
        let Ok(at) = target.unsynced.binary_search_by_key(&version, |write| write.version) else { return };
        if durable {
            let write = target.unsynced.remove(at);
            let (offset, length) = target.settle_write(&write);
            self.settled.push(Settled { file, offset, length });
        } else {
            target.unsynced[at].completed_ns = Some(now_ns);
        }
    }

    /// The process died: what was in flight to direct files is there, not there, or there in part.
    pub fn kill(&mut self, rng: &mut Rng) {
        self.kill_in_flight(rng);
        // Whatever of it got to the cache is covered by the next sync, whoever asks for it.
        for write in self.files.iter_mut().flat_map(|(_, f)| &mut f.unsynced) {
            write.completed_ns.get_or_insert(0);
        }
    }

    fn kill_in_flight(&mut self, rng: &mut Rng) {
        for pending in std::mem::take(&mut self.pending).into_iter().flatten() {
            let Action::Write { offset, data, version: None, .. } = pending.action else { continue };
            let version = self.next_version();
            let target = self.file_mut(pending.file);
            match rng.below(3) {
                0 => {}
                1 => target.write_cache(offset, &data, version),
                _ => {
                    let mut at = 0;
                    while at < data.len() {
                        let room = SECTOR - ((offset as usize + at) % SECTOR);
                        let piece = room.min(data.len() - at);
                        if rng.chance(50) {
                            target.write_cache(offset + at as u64, &data.slice(at..at + piece), version);
                        }
                        at += piece;
                    }
                }
            }
        }
    }

    /// The host lost its power: only what is durable is sure to be there afterwards.
    pub fn power_loss(&mut self, rng: &mut Rng) {
        self.kill(rng);
        let mood = rng.below(4);
        for (name, file) in &mut self.files {
            let tears = (self.tears)(*name);
            file.forget_ghosts();
            let writes = std::mem::take(&mut file.unsynced);
            for write in &writes {
                let fate = match mood {
                    0 => 0,
                    1 => 1,
                    _ => rng.below(3),
                };
                if fate == 0 {
                    continue;
                }
                let version = write.version;
                for (index, sector) in write.sectors.chunks(SECTOR).enumerate() {
                    if fate == 2 && tears && rng.chance(25) {
                        file.tear_sector(write.first_sector + index, sector, version, rng);
                    } else if fate == 1 || rng.chance(50) {
                        file.settle_sector(write.first_sector + index, sector, version);
                    }
                }
            }
            // Elsewhere both are the same.
            for write in &writes {
                let range = write.first_sector * SECTOR..write.first_sector * SECTOR + write.sectors.len();
                file.cache[range.clone()].copy_from_slice(&file.stable[range]);
            }
        }
    }

    /// Ranges that became durable since this was last asked.
    pub fn take_settled(&mut self) -> Vec<Settled<F>> {
        std::mem::take(&mut self.settled)
    }

    /// The file of an operation under way.
    pub fn file_of(&self, operation: u64) -> Option<F> {
        Some(self.pending[self.place(operation)?].as_ref()?.file)
    }

    /// The range that an operation under way reads.
    pub fn reading(&self, operation: u64) -> Option<(F, u64, u64)> {
        let pending = self.pending[self.place(operation)?].as_ref()?;
        let Pending { file, action: Action::Read { offset, length }, .. } = pending else {
            return None;
        };
        Some((*file, *offset, *length))
    }

    /// All that it holds, and what is on its way.
    pub fn digest(&self, into: &mut Xxh3) {
        for (file, it) in &self.files {
            into.update(format!("{file:?} {}", it.size).as_bytes());
            into.update(it.cache.get(..it.size).unwrap_or_default());
            into.update(it.stable());
            let words = it.unsynced.iter().flat_map(|w| [w.version, w.offset, w.length, w.completed_ns.unwrap_or(1)]);
            for word in it.sector_versions.iter().copied().chain(words) {
                into.update(&word.to_le_bytes());
            }
        }
    }

    /// How many bits have flipped.
    pub fn flips(&self) -> usize {
        self.flips.len()
    }

    /// Those after the first so many flip back, in files so `wanted`, but in what was written since: there nothing is damaged any
    /// more.
    pub fn unflip(&mut self, from: usize, wanted: impl Fn(F) -> bool) {
        let (back, left): (Vec<_>, Vec<_>) = self.flips.split_off(from).into_iter().partition(|it| wanted(it.file));
        self.flips.extend(left);
        for Flip { file, at, bit, version } in back {
            let target = self.file_mut(file);
            if target.sector_versions[at as usize / SECTOR] != version {
                continue;
            }
            if target.at_rest(at) {
                target.cache[at as usize] ^= 1 << bit;
            }
            target.stable[at as usize] ^= 1 << bit;
            target.changes += 1;
        }
    }

    /// Whether a write to `file` that overlaps the range is in flight.
    pub fn write_in_flight(&self, file: F, offset: u64, length: u64) -> bool {
        self.pending.iter().flatten().any(|p| match &p.action {
            Action::Write { offset: o, data, .. } => {
                p.file == file && *o < offset + length && offset < *o + data.len() as u64
            }
            _ => false,
        })
    }

    fn settle(&mut self, file: F, covered: impl Fn(u64) -> bool) {
        let ranges = self.file_mut(file).settle(covered);
        self.settled.extend(ranges.into_iter().map(|(offset, length)| Settled { file, offset, length }));
    }

    pub fn file_mut(&mut self, file: F) -> &mut SimFile {
        let found = self.files.iter_mut().find(|(name, _)| *name == file);
        &mut found.unwrap_or_else(|| panic!("{file:?} does not exist")).1
    }

    /// Where an operation stands in `pending`, if it may be there.
    fn place(&self, operation: u64) -> Option<usize> {
        let gone = self.operations - self.pending.len() as u64;
        let place = operation.checked_sub(gone + 1)? as usize;
        (place < self.pending.len()).then_some(place)
    }

    fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }
}

impl SimFile {
    /// What a reader sees now.
    pub fn cache(&self) -> &[u8] {
        &self.cache[..self.size]
    }

    /// What is sure to survive a loss of power.
    pub fn stable(&self) -> &[u8] {
        &self.stable[..self.size]
    }

    /// How often what [`SimFile::stable`] shows has changed: as long as this is the same, so is that.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    pub fn unsynced(&self) -> &[Unsynced] {
        &self.unsynced
    }

    /// Whether nothing is on its way to the sector of this byte.
    pub fn at_rest(&self, at: u64) -> bool {
        let sector = at as usize / SECTOR;
        let reaches = |write: &Unsynced| {
            (write.first_sector..write.first_sector + write.sectors.len() / SECTOR).contains(&sector)
        };
        !self.unsynced.iter().any(reaches)
    }

    fn write_cache(&mut self, offset: u64, data: &Bytes, version: u64) {
        if data.is_empty() {
            return;
        }
        let start = offset as usize;
        assert!(start + data.len() <= self.size, "a write ends in its file");
        let first_sector = start / SECTOR;
        let end_sector = (start + data.len()).div_ceil(SECTOR);
        // What was never written is zero, in the cache and in the stable image.
        let nothing_new = is_shared_zero(data) && !self.touched[first_sector..end_sector].contains(&true);
        if !nothing_new {
            self.cache[start..start + data.len()].copy_from_slice(data);
            self.touched[first_sector..end_sector].fill(true);
        }
        let whole = start.is_multiple_of(SECTOR) && data.len().is_multiple_of(SECTOR);
        let sectors = || Bytes::copy_from_slice(&self.cache[first_sector * SECTOR..end_sector * SECTOR]);
        self.unsynced.push(Unsynced {
            version,
            offset,
            length: data.len() as u64,
            completed_ns: None,
            first_sector,
            sectors: if whole { data.clone() } else { sectors() },
        });
    }

    /// What comes of a write and of a sync of it while nothing else is on its way: both images get the bytes.
    fn plant(&mut self, start: usize, bytes: &[u8], version: u64) {
        let end = start + bytes.len();
        let sectors = start / SECTOR..end.div_ceil(SECTOR);
        self.cache[start..end].copy_from_slice(bytes);
        self.stable[start..end].copy_from_slice(bytes);
        self.touched[sectors.clone()].fill(true);
        self.sector_versions[sectors].fill(version);
        self.changes += 1;
    }

    /// Writes that were in the cache are gone from it, or as ghosts will be: what is read is what the disk has, and what came
    /// after them.
    fn lose(&mut self, lost: impl Fn(u64) -> bool, ghosts: bool) {
        self.ghosts.extend(self.unsynced.extract_if(.., |w| lost(w.version)));
        if !ghosts {
            self.forget_ghosts();
        }
    }

    fn forget_ghosts(&mut self) {
        for write in std::mem::take(&mut self.ghosts) {
            let (from, to) = (write.first_sector * SECTOR, write.first_sector * SECTOR + write.sectors.len());
            self.cache[from..to].copy_from_slice(&self.stable[from..to]);
            for kept in &self.unsynced {
                let start = kept.first_sector * SECTOR;
                let (low, high) = (from.max(start), to.min(start + kept.sectors.len()));
                if low < high {
                    self.cache[low..high].copy_from_slice(&kept.sectors[low - start..high - start]);
                }
            }
        }
    }

    fn settle(&mut self, covered: impl Fn(u64) -> bool) -> Vec<(u64, u64)> {
        let mut ranges = Vec::new();
        let settling: Vec<Unsynced> = self.unsynced.extract_if(.., |w| covered(w.version)).collect();
        ranges.extend(settling.iter().map(|write| self.settle_write(write)));
        ranges
    }

    /// A write is durable from now on: its range in whole sectors.
    fn settle_write(&mut self, write: &Unsynced) -> (u64, u64) {
        let (first, count) = (write.first_sector, write.sectors.len() / SECTOR);
        let versions = &mut self.sector_versions[first..first + count];
        if versions.iter().all(|version| *version < write.version) {
            versions.fill(write.version);
            if is_shared_zero(&write.sectors) && !self.touched[first..first + count].contains(&true) {
                return ((first * SECTOR) as u64, write.sectors.len() as u64);
            }
            self.stable[first * SECTOR..(first + count) * SECTOR].copy_from_slice(&write.sectors);
            self.changes += 1;
        } else {
            for (index, sector) in write.sectors.chunks(SECTOR).enumerate() {
                self.settle_sector(first + index, sector, write.version);
            }
        }
        ((first * SECTOR) as u64, write.sectors.len() as u64)
    }

    /// Only the first bytes of it got there.
    fn tear_sector(&mut self, sector: usize, bytes: &[u8], version: u64, rng: &mut Rng) {
        let mut torn = self.stable[sector * SECTOR..(sector + 1) * SECTOR].to_vec();
        let upto = rng.below(SECTOR as u64) as usize;
        torn[..upto].copy_from_slice(&bytes[..upto]);
        self.settle_sector(sector, &torn, version);
    }

    fn settle_sector(&mut self, sector: usize, bytes: &[u8], version: u64) {
        if self.sector_versions[sector] < version {
            self.sector_versions[sector] = version;
            self.stable[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(bytes);
            self.changes += 1;
        }
    }
}

impl ReadAt for SimFile {
    fn size(&self) -> u64 {
        self.size as u64
    }

    fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, IoFail> {
        let mut out = Vec::with_capacity(length);
        out.extend_from_slice(&self.cache[memory::within(offset, length, self.size)]);
        out.resize(length, 0);
        Ok(out.into())
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if self.cache.len() < self.size {
            // Lent to a start that panicked.
            return;
        }
        let mut sector = 0;
        for run in self.touched.chunk_by(|a, b| a == b) {
            let range = sector * SECTOR..(sector + run.len()) * SECTOR;
            sector += run.len();
            if run[0] {
                self.cache[range.clone()].fill(0);
                self.stable[range].fill(0);
            }
        }
        memory::keep([std::mem::take(&mut self.cache), std::mem::take(&mut self.stable)]);
    }
}

fn join(parts: &[Bytes]) -> Bytes {
    let length = parts.iter().map(Bytes::len).sum();
    match parts {
        [one] => one.clone(),
        _ if length >= memory::ZEROES.len() / 2 && parts.iter().all(|part| is_zero(part)) => zeroes(length),
        _ => parts.concat().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, byte: u8, length: usize, durable: bool) -> DiskOp<u8> {
        let parts = vec![Bytes::from(vec![byte; length])];
        DiskOp { ticket: Ticket(1), file: 0, kind: DiskKind::Write { offset, parts, durable } }
    }

    fn disk(class: Class) -> Disk<u8> {
        let mut disk = Disk::new();
        disk.create(0, 8192, class);
        disk
    }

    #[test]
    fn unsynced_write_survives_kill_but_power_loss_may_take_or_tear_it() {
        let (mut kept, mut lost, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut disk = disk(Class::Buffered);
            let op = disk.submit(write(512, 7, 1024, false), &mut rng);
            disk.complete(op, 1);
            disk.kill(&mut rng);
            assert_eq!(disk.file(0).cache()[512], 7, "the page cache survives the process");
            disk.power_loss(&mut rng);
            match (disk.file(0).cache()[512], disk.file(0).cache()[1024]) {
                (7, 7) => kept += 1,
                (0, 0) => lost += 1,
                _ => torn += 1,
            }
        }
        assert!(kept > 20 && lost > 20 && torn > 5, "every fate occurs: {kept} {lost} {torn}");
    }

    #[test]
    fn durable_write_is_safe_once_completed_and_older_unsynced_ones_never_undo_it() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut disk = disk(if seed % 2 == 0 { Class::Direct } else { Class::Buffered });
            let old = disk.submit(write(0, 1, 2048, false), &mut rng);
            disk.complete(old, 1);
            let new = disk.submit(write(512, 2, 512, true), &mut rng);
            disk.complete(new, 2);
            assert_eq!(disk.take_settled().len(), 1);
            disk.power_loss(&mut rng);
            assert!(disk.file(0).cache()[512..1024].iter().all(|&b| b == 2));
        }
    }

    #[test]
    fn sync_covers_what_was_completed_before_it_and_nothing_else() {
        let mut missing = 0;
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut disk = disk(Class::Buffered);
            let first = disk.submit(write(0, 1, 512, false), &mut rng);
            disk.complete(first, 1);
            let sync = disk.submit(DiskOp { ticket: Ticket(2), file: 0, kind: DiskKind::Sync }, &mut rng);
            let second = disk.submit(write(4096, 1, 512, false), &mut rng);
            disk.complete(second, 2);
            disk.complete(sync, 3);
            assert_eq!(disk.file(0).unsynced().len(), 1);
            disk.power_loss(&mut rng);
            assert_eq!(disk.file(0).cache()[0], 1);
            missing += usize::from(disk.file(0).cache()[4096] == 0);
        }
        assert!(missing > 30);
    }

    #[test]
    fn bit_that_flips_back_leaves_alone_what_was_written_since() {
        for written in [false, true] {
            let mut disk = disk(Class::Buffered);
            disk.plant(0, 0, &[7; 1024]);
            disk.flip(0, 600, 3);
            if written {
                disk.plant(0, 512, &[9; 512]);
            }
            disk.unflip(0, |_| true);
            let want = if written { 9 } else { 7 };
            assert_eq!((disk.file(0).cache()[600], disk.file(0).stable()[600]), (want, want));
            assert_eq!(disk.flips(), 0);
        }
    }

    #[test]
    fn direct_write_in_flight_at_a_kill_is_whole_partial_or_absent() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut disk = disk(Class::Direct);
            disk.submit(write(256, 9, 1024, true), &mut rng);
            disk.kill(&mut rng);
            let sectors = disk.file(0).cache()[..1536].chunks(SECTOR).map(|s| s.contains(&9)).collect::<Vec<_>>();
            seen.insert(sectors);
        }
        assert_eq!(seen.len(), 8, "every combination of sectors occurs");
    }
}
