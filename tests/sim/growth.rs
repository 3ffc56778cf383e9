//! Files that get longer and shorter: volumes, and the spool of DR, which grows where a batch needs more of it.
//!
//! What a file has grown by is lost with the power until it is synced. A start that finds the spool shorter than its
//! superblock names refuses, and so does this one: there would be nobody to promote.

use std::fmt::Debug;

use farshore::core::ids::{Seq, Ticket};
use farshore::core::machine::{DiskKind, DiskOp};
use farshore::core::modes::Overflow;
use farshore::dr::api::File;
use farshore::dr::machine::Input;

use crate::checkers::Verdict;
use crate::cluster::{Event, World};
use crate::disk::{Disk, SECTOR};
use crate::network::Node;
use crate::rng::Rng;
use crate::setup::{Fault, MS, Setup};

impl<F: Copy + Eq + Debug> Disk<F> {
    /// A file has `size` bytes from now on, durably; what is added holds noise (a device) or zeroes.
    pub fn grow(&mut self, file: F, size: u64, noise: Option<&mut Rng>) {
        let target = self.file_mut(file);
        let (old, sectors) = (target.size, (size as usize).div_ceil(SECTOR));
        if sectors * SECTOR <= old {
            return;
        }
        target.size = sectors * SECTOR;
        target.changes += 1;
        let length = target.size.max(target.cache.len());
        target.cache.resize(length, 0);
        target.stable.resize(target.size.max(target.stable.len()), 0);
        target.touched.resize(sectors, false);
        target.sector_versions.resize(sectors, 0);
        if let Some(rng) = noise {
            rng.fill(&mut target.cache[old..sectors * SECTOR]);
            target.stable[old..sectors * SECTOR].copy_from_slice(&target.cache[old..sectors * SECTOR]);
            target.touched[old / SECTOR..].fill(true);
        }
    }

    /// A file has `size` bytes from now on, if it had more; a later one that long has zeroes there.
    pub fn cut(&mut self, file: F, size: u64) {
        let target = self.file_mut(file);
        let (old, sectors) = (target.size, (size as usize).div_ceil(SECTOR));
        if sectors * SECTOR >= old {
            return;
        }
        target.size = sectors * SECTOR;
        target.changes += 1;
        target.cache[sectors * SECTOR..old].fill(0);
        target.stable[sectors * SECTOR..old].fill(0);
        target.touched.truncate(sectors);
        target.sector_versions.truncate(sectors);
        for writes in [&mut target.unsynced, &mut target.ghosts] {
            writes.retain(|write| write.offset + write.length <= size);
        }
    }
}

/// The file of DR's spool.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpoolFile {
    /// Bytes that survive a loss of power.
    durable: u64,
    /// A sync of it is under way: the operation, and bytes that it had when that began.
    syncing: Option<(u64, u64)>,
    /// The operator has given up a recovery point.
    pub given_up: bool,
    /// Which.
    pub cut_given_up: Seq,
}

impl Setup {
    /// A spool that is smaller than a batch may be, and grows.
    pub fn let_grow(&mut self, rng: &mut Rng) {
        if !rng.chance(70) {
            return;
        }
        if rng.chance(60) {
            self.outgrow(rng);
        }
        while rng.chance(12) {
            let at = rng.below(self.horizon_ns);
            self.faults.push((at, Fault::Recopy));
        }
        self.faults.sort_by_key(|(at, _)| *at);
        let piece = self.request_bytes_max.max(1 << 20);
        let small = (2 * piece).next_multiple_of(1 << 20).max(rng.pick(&[2, 2, 3, 5]) << 20);
        if small < self.spool_bytes {
            let times = self.spool_bytes.div_ceil(small) + rng.pick(&[1, 1, 2, 4]);
            self.spool_bytes_max = small * times;
            self.spool_bytes = small;
        }
    }

    /// Much is written in a large volume while little of it fits the queue: batches of more than the spool, and what is
    /// written meanwhile waits for them. DR dies in the middle of it.
    fn outgrow(&mut self, rng: &mut Rng) {
        self.volume_bytes[0] = rng.range(3 << 8, 2 << 10) * 4096;
        self.request_bytes_max = rng.pick(&[16, 64, 128, 256]) << 10;
        self.tiny_bytes = 0;
        self.discard_percent = self.discard_percent.min(5);
        self.requests = self.requests.max(rng.range(150, 500));
        self.think_ns_max = self.think_ns_max.min(20 * MS);
        self.overflow = if self.lag_max.is_some() { Overflow::Pace } else { Overflow::Coalesce };
        self.fifo_memory_bytes = rng.scale(256 << 10, 1 << 20);
        self.fifo_disk_bytes = 0;
        if self.table_payload_bytes > 0 {
            // As in a real configuration: the longest payload fits the ring.
            self.table_payload_bytes = self.table_payload_bytes.max(1 << 20);
        }
        self.wan.bytes_per_second = self.wan.bytes_per_second.max(8 << 20);
        self.spool_bytes = (self.volume_bytes.iter().sum::<u64>() * 5 / 4).next_multiple_of(1 << 20).max(6 << 20);
        for _ in 0..rng.below(4) {
            let at = rng.below(self.horizon_ns);
            let down_ns = rng.scale(10, 500) * MS;
            let (node, power) = (Node::Dr, rng.chance(80));
            let fault = match rng.below(3) {
                0 if power => Fault::PowerLoss { node, down_ns },
                0 => Fault::Kill { node, down_ns },
                _ => Fault::KillAtSuperblock { node, power, down_ns },
            };
            self.faults.push((at, fault));
        }
    }
}

impl World {
    fn spool_length(&self) -> u64 {
        self.dr_disk.file(File::Spool).size as u64
    }

    /// DR's file of the spool is to be longer.
    pub fn spool_grows(&mut self, bytes: u64) -> Verdict {
        if bytes > self.setup.spool_bytes_max {
            return self
                .fail("I9", format!("DR's spool grows to {bytes} bytes, {} are allowed", self.setup.spool_bytes_max));
        }
        let at = self.disk_time(Node::Dr);
        let run = self.host(Node::Dr).run;
        self.spool_file.durable = self.spool_file.durable.max(self.setup.spool_bytes);
        self.at(at, Event::SpoolGrown { run, bytes });
        Ok(())
    }

    pub fn spool_grown(&mut self, bytes: u64) -> Verdict {
        self.dr_disk.grow(File::Spool, bytes, None);
        self.dr_step(Input::SpoolGrown { result: Ok(()) })
    }

    /// It is cut; that this is durable nobody relies on.
    pub fn spool_shrinks(&mut self, bytes: u64) {
        self.dr_disk.cut(File::Spool, bytes);
        self.spool_file.durable = self.spool_file.durable.min(bytes);
    }

    /// The operator gives up DR's recovery point, and whatever DR has told of it: there is none until the next is complete.
    pub fn ask_recopy(&mut self) -> Verdict {
        let host = self.host(Node::Dr);
        let Some(machine) = self.dr.as_ref().filter(|_| host.up && host.paused.is_none()) else { return Ok(()) };
        if machine.keeps_point_because().is_some() {
            return Ok(());
        }
        self.spool_file.cut_given_up = self.spool_file.cut_given_up.max(self.cut_told);
        (self.spool_file.given_up, self.synced_told, self.cut_told) = (true, false, Seq(0));
        self.dr_step(Input::Recopy { ticket: Ticket(1) })
    }

    /// An operation of DR begins: none of the spool is behind its end.
    pub fn spool_asked(&mut self, op: &DiskOp<File>) -> Verdict {
        if op.file != File::Spool {
            return Ok(());
        }
        let end = match &op.kind {
            DiskKind::Read { offset, length } | DiskKind::Zero { offset, length, .. } => offset + *length,
            DiskKind::Write { offset, parts, .. } => offset + parts.iter().map(|it| it.len() as u64).sum::<u64>(),
            DiskKind::Sync => 0,
        };
        if end > self.spool_length() {
            return self
                .fail("I8", format!("DR goes behind the end of its spool, to {end} of {}", self.spool_length()));
        }
        Ok(())
    }

    pub fn spool_syncs(&mut self, operation: u64) {
        self.spool_file.syncing = Some((operation, self.spool_length()));
    }

    pub fn spool_synced(&mut self, operation: u64) {
        if let Some((_, bytes)) = self.spool_file.syncing.take_if(|it| it.0 == operation) {
            self.spool_file.durable = self.spool_file.durable.max(bytes.min(self.spool_length()));
        }
    }

    /// DR's process is gone, or its power.
    pub fn spool_left(&mut self, power: bool) {
        self.spool_file.syncing = None;
        if power && self.spool_file.durable > 0 && self.spool_file.durable < self.spool_length() {
            self.dr_disk.cut(File::Spool, self.spool_file.durable);
        }
    }

    /// A start looks at the length of the file first.
    pub fn spool_stands(&mut self) -> Verdict {
        let named = self.dr_superblock.as_ref().map_or(0, |it| it.spool().grown_bytes());
        let (bytes, named) = (self.spool_length(), self.setup.spool_bytes + named);
        if bytes < named {
            return self
                .fail("I6", format!("DR does not start: its spool has {bytes} bytes, its superblock names {named}"));
        }
        Ok(())
    }
}
