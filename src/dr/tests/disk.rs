//! Files in memory: completions in random order, unsynced writes lost at a crash, writes torn at sectors.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::core::ids::Ticket;
use crate::core::machine::{DiskKind, DiskOp, DiskResult, IoFail, ReadAt};
use crate::dr::api::File;

const SECTOR: usize = 512;

/// xorshift64*: reproducible from its seed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound.max(1)
    }

    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Debug, Default)]
pub struct Store {
    /// What survives a crash.
    pub stable: Vec<u8>,
    /// What reads see.
    pub cache: Vec<u8>,
    /// Written and not synced: number of the write, offset, bytes.
    dirty: Vec<(u64, usize, Vec<u8>)>,
}

impl ReadAt for Store {
    fn size(&self) -> u64 {
        self.cache.len() as u64
    }

    fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, IoFail> {
        let from = (offset as usize).min(self.cache.len());
        let to = (from + length).min(self.cache.len());
        let mut out = self.cache[from..to].to_vec();
        out.resize(length, 0);
        Ok(out.into())
    }
}

#[derive(Clone)]
pub struct Disk {
    pub files: BTreeMap<File, Store>,
    inflight: Vec<(DiskOp<File>, u64)>,
    writes: u64,
}

impl Disk {
    pub fn new(sizes: &[(File, usize)]) -> Disk {
        let store = |size| Store { stable: vec![0; size], cache: vec![0; size], dirty: Vec::new() };
        Disk { files: sizes.iter().map(|&(file, size)| (file, store(size))).collect(), inflight: Vec::new(), writes: 0 }
    }

    /// Gives a file that many bytes, durably; what is added is zeroes.
    pub fn resize(&mut self, file: File, bytes: usize) {
        let store = self.files.get_mut(&file).expect("every file exists");
        store.stable.resize(bytes, 0);
        store.cache.resize(bytes, 0);
        store.dirty.retain(|(_, offset, data)| offset + data.len() <= bytes);
    }

    pub fn submit(&mut self, op: DiskOp<File>) {
        self.inflight.push((op, self.writes));
    }

    pub fn busy(&self) -> bool {
        !self.inflight.is_empty()
    }

    /// Every operation under way.
    pub fn under_way(&self) -> impl Iterator<Item = &DiskOp<File>> {
        self.inflight.iter().map(|(op, _)| op)
    }

    /// An operation under way.
    pub fn any_ticket(&self) -> Option<Ticket> {
        self.inflight.first().map(|(op, _)| op.ticket)
    }

    /// Completes one operation, any of them.
    pub fn complete(&mut self, rng: &mut Rng) -> Option<(Ticket, DiskResult)> {
        if self.inflight.is_empty() {
            return None;
        }
        Some(self.complete_at(rng.index(self.inflight.len())))
    }

    /// Completes this one of the operations under way.
    pub fn complete_at(&mut self, index: usize) -> (Ticket, DiskResult) {
        let (op, emitted) = self.inflight.swap_remove(index);
        self.apply(op, emitted)
    }

    fn apply(&mut self, op: DiskOp<File>, emitted: u64) -> (Ticket, DiskResult) {
        let store = self.files.get_mut(&op.file).expect("every file exists");
        let (offset, bytes, durable) = match op.kind {
            DiskKind::Read { offset, length } => {
                let from = offset as usize;
                let data = Bytes::copy_from_slice(&store.cache[from..from + length as usize]);
                return (op.ticket, Ok(data));
            }
            DiskKind::Sync => {
                for (_, offset, bytes) in store.dirty.extract_if(.., |write| write.0 <= emitted) {
                    store.stable[offset..offset + bytes.len()].copy_from_slice(&bytes);
                }
                return (op.ticket, Ok(Bytes::new()));
            }
            DiskKind::Write { offset, parts, durable } => (offset as usize, parts.concat(), durable),
            DiskKind::Zero { offset, length, durable, .. } => (offset as usize, vec![0; length as usize], durable),
        };
        store.cache[offset..offset + bytes.len()].copy_from_slice(&bytes);
        if durable {
            // What stands in the cache under it goes first.
            let end = offset + bytes.len();
            let under = |write: &mut (u64, usize, Vec<u8>)| write.1 < end && write.1 + write.2.len() > offset;
            for (_, offset, bytes) in store.dirty.extract_if(.., under) {
                store.stable[offset..offset + bytes.len()].copy_from_slice(&bytes);
            }
            store.stable[offset..offset + bytes.len()].copy_from_slice(&bytes);
        } else {
            self.writes += 1;
            store.dirty.push((self.writes, offset, bytes));
        }
        (op.ticket, Ok(Bytes::new()))
    }

    /// Power is lost: of what was not durable, any sectors survive.
    pub fn crash(&mut self, rng: &mut Rng) {
        let mut lost: Vec<(File, usize, Vec<u8>)> = Vec::new();
        for (&file, store) in &mut self.files {
            lost.extend(store.dirty.drain(..).map(|(_, offset, bytes)| (file, offset, bytes)));
        }
        for (op, _) in self.inflight.drain(..) {
            match op.kind {
                DiskKind::Write { offset, parts, .. } => lost.push((op.file, offset as usize, parts.concat())),
                DiskKind::Zero { offset, length, .. } => {
                    lost.push((op.file, offset as usize, vec![0; length as usize]));
                }
                DiskKind::Read { .. } | DiskKind::Sync => {}
            }
        }
        let mode = rng.below(3);
        for (file, offset, bytes) in lost {
            let store = self.files.get_mut(&file).expect("every file exists");
            let whole = rng.chance(40);
            for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                let survives = match mode {
                    0 => false,
                    1 => whole,
                    _ => rng.chance(50),
                };
                if survives {
                    let at = offset + index * SECTOR;
                    store.stable[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        for store in self.files.values_mut() {
            store.cache.clone_from(&store.stable);
        }
    }

    /// The process dies, the machine lives on: what was written stays in the cache, what was in flight may
    /// have got there or not. Nothing of it has become durable.
    pub fn kill(&mut self, rng: &mut Rng) {
        while self.busy() {
            let index = rng.index(self.inflight.len());
            if let DiskKind::Write { durable, .. } | DiskKind::Zero { durable, .. } = &mut self.inflight[index].0.kind {
                *durable = false;
            }
            let (op, emitted) = self.inflight.swap_remove(index);
            if rng.chance(50) && !matches!(op.kind, DiskKind::Sync) {
                let _ = self.apply(op, emitted);
            }
        }
    }

    /// Replaces what is stored.
    pub fn overwrite(&mut self, file: File, offset: usize, length: usize, byte: u8) {
        let store = self.files.get_mut(&file).expect("every file exists");
        store.stable[offset..offset + length].fill(byte);
        store.cache[offset..offset + length].fill(byte);
    }

    /// Flips one bit of what is stored.
    pub fn flip(&mut self, file: File, offset: usize, bit: u8) {
        let store = self.files.get_mut(&file).expect("every file exists");
        store.stable[offset] ^= 1 << bit;
        store.cache[offset] ^= 1 << bit;
    }
}
