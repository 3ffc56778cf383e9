//! Files of one host, cheap to copy: what a reader sees, what would survive a loss of power, what is in between.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use farshore::core::machine::{DiskKind, IoFail, ReadAt};
use xxhash_rust::xxh3::xxh3_64_with_seed;

const PAGE: u64 = 4096;

type Page = Arc<[u8; PAGE as usize]>;

/// Bytes by pages; a page that is not there is zero.
#[derive(Clone, Default)]
pub struct Image {
    pages: BTreeMap<u64, Page>,
    pub size: u64,
    /// Sum of the digests of the pages, kept up to date: states are compared far more often than they change.
    digest: u64,
}

impl Image {
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let start = (at % PAGE) as usize;
            let (part, more) = rest.split_at(rest.len().min(PAGE as usize - start));
            let page = self.pages.entry(at / PAGE).or_insert_with(|| Arc::new([0; PAGE as usize]));
            if page[start..start + part.len()] != *part {
                let before = page_digest(at / PAGE, page);
                Arc::make_mut(page)[start..start + part.len()].copy_from_slice(part);
                self.digest = self.digest.wrapping_sub(before).wrapping_add(page_digest(at / PAGE, page));
            }
            at += part.len() as u64;
            rest = more;
        }
    }

    pub fn zero(&mut self, offset: u64, length: u64) {
        for page in offset / PAGE..=(offset + length - 1) / PAGE {
            let (from, to) = (offset.max(page * PAGE), (offset + length).min((page + 1) * PAGE));
            if let Some(bytes) = self.pages.get_mut(&page) {
                let before = page_digest(page, bytes);
                Arc::make_mut(bytes)[(from - page * PAGE) as usize..(to - page * PAGE) as usize].fill(0);
                self.digest = self.digest.wrapping_sub(before).wrapping_add(page_digest(page, bytes));
            }
        }
    }

    pub fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        let mut out = vec![0; length as usize];
        for (&page, bytes) in self.pages.range(offset / PAGE..(offset + length).div_ceil(PAGE)) {
            let (from, to) = (offset.max(page * PAGE), (offset + length).min((page + 1) * PAGE));
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&bytes[(from - page * PAGE) as usize..(to - page * PAGE) as usize]);
        }
        out
    }

    fn change(&mut self, offset: u64, change: &Change) {
        match change {
            Change::Bytes(bytes) => self.write(offset, bytes),
            Change::Zero(length) => self.zero(offset, *length),
        }
    }
}

/// A page of zeroes counts as one that is not there.
fn page_digest(number: u64, page: &Page) -> u64 {
    if page.iter().all(|&byte| byte == 0) { 0 } else { xxh3_64_with_seed(&page[..], number) }
}

impl Hash for Image {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

impl ReadAt for Image {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, IoFail> {
        Ok(self.read(offset, length as u64).into())
    }
}

#[derive(Clone, Hash)]
enum Change {
    Bytes(Bytes),
    Zero(u64),
}

/// One file.
#[derive(Clone, Default)]
pub struct Store {
    pub stable: Image,
    pub cache: Image,
    /// Seen by readers and not durable: operation, whether it has completed, and what it changes.
    dirty: Vec<(u64, bool, u64, Change)>,
}

impl Hash for Store {
    /// All but which operations are under way ([`Store::under_way`]).
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.stable, &self.cache).hash(state);
        self.dirty.iter().for_each(|(_, done, offset, change)| (done, offset, change).hash(state));
    }
}

/// What an operation does when it completes.
#[derive(Clone, Debug)]
pub struct Due(Vec<u64>);

impl Store {
    pub fn new(size: u64) -> Store {
        let image = Image { size, ..Image::default() };
        Store { stable: image.clone(), cache: image, dirty: Vec::new() }
    }

    /// The operations whose changes are not durable.
    pub fn under_way(&self) -> impl Iterator<Item = u64> {
        self.dirty.iter().map(|dirty| dirty.0)
    }

    /// Begins an operation: what is not durable is seen by readers from now on.
    pub fn begin(&mut self, id: u64, kind: &DiskKind) -> Due {
        if let Some((offset, change, false)) = changes(kind) {
            self.cache.change(offset, &change);
            self.dirty.push((id, false, offset, change));
        }
        let covered = self.dirty.iter().filter(|dirty| dirty.1).map(|dirty| dirty.0);
        Due(if matches!(kind, DiskKind::Sync) { covered.collect() } else { Vec::new() })
    }

    /// Completes it; the bytes of a read.
    pub fn complete(&mut self, id: u64, kind: &DiskKind, due: &Due) -> Bytes {
        match changes(kind) {
            Some((offset, change, true)) => {
                self.cache.change(offset, &change);
                self.stable.change(offset, &change);
            }
            Some(_) => self.dirty.iter_mut().filter(|dirty| dirty.0 == id).for_each(|dirty| dirty.1 = true),
            None => {
                let (synced, left) = std::mem::take(&mut self.dirty).into_iter().partition(|it| due.0.contains(&it.0));
                self.dirty = left;
                let synced: Vec<(u64, bool, u64, Change)> = synced;
                synced.iter().for_each(|(_, _, offset, change)| self.stable.change(*offset, change));
            }
        }
        match kind {
            DiskKind::Read { offset, length } => self.cache.read(*offset, *length).into(),
            _ => Bytes::new(),
        }
    }

    /// Writes and makes durable at once, as a shell does before a machine starts.
    pub fn plant(&mut self, offset: u64, bytes: &[u8]) {
        self.cache.write(offset, bytes);
        self.stable.write(offset, bytes);
    }

    /// What nobody made durable is gone.
    pub fn lose_power(&mut self) {
        self.cache = self.stable.clone();
        self.dirty.clear();
    }

    /// Recovery reads nothing that is not durable.
    pub fn settle(&mut self) {
        self.stable = self.cache.clone();
        self.dirty.clear();
    }
}

fn changes(kind: &DiskKind) -> Option<(u64, Change, bool)> {
    match kind {
        DiskKind::Write { offset, parts, durable } => Some((*offset, Change::Bytes(parts.concat().into()), *durable)),
        DiskKind::Zero { offset, length, durable, .. } => Some((*offset, Change::Zero(*length), *durable)),
        DiskKind::Read { .. } | DiskKind::Sync => None,
    }
}

/// The range that an operation changes.
pub fn range(kind: &DiskKind) -> Option<(u64, u64)> {
    match kind {
        DiskKind::Write { offset, parts, .. } => Some((*offset, parts.iter().map(|part| part.len() as u64).sum())),
        DiskKind::Zero { offset, length, .. } => Some((*offset, *length)),
        DiskKind::Read { .. } | DiskKind::Sync => None,
    }
}

impl Image {
    /// The pages that anything was ever written to: their offsets.
    pub fn used(&self) -> impl Iterator<Item = Range<u64>> {
        self.pages.keys().map(|page| page * PAGE..(page + 1) * PAGE)
    }

    /// Whether any page is as wanted.
    pub fn pages_with(&self, wanted: impl Fn(&[u8]) -> bool) -> bool {
        self.pages.values().any(|page| wanted(&page[..]))
    }
}
