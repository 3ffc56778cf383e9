//! Files on the ring: reads, writes, zeroing and syncs, direct or through the page cache.
//!
//! ```text
//!   direct    aligned     WRITE_FIXED / READ_FIXED (plain outside the arena), RWF_DSYNC when durable
//!             unaligned   read of the blocks at the edges, overlay, write
//!   buffered  writes      pwritev in the thread (the ring would pass them to a worker thread); those of one
//!                         turn that follow one another in the file are one call
//!             reads       preadv2 without waiting, the ring for what is not cached
//!   both      zeroes      FALLOCATE, else zeroes are written
//!             syncs       one fdatasync in flight a file, for all that wait
//! ```
//!
//! Invariants:
//! - A completed operation is reported once, in an event, never from within `submit`.
//! - Memory named by an operation is owned by its entry in `ops` until it is completed.
//! - A sync reports success only for operations completed before it was submitted.
//! - After a failed sync nothing more is done on the file: what is on it is not known any more.
//! - Callers keep ranges that share a 4096-byte block from being in flight at once.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;

use bytes::Bytes;
use io_uring::opcode;
use io_uring::squeue::Entry;
use nix::libc;

use super::arena::Run;
use super::open::{Opened, Preallocate, enlarge, extend, failed, failed_at, shorten};
use super::reactor::{Event, FileId};
use super::ring::{Kernel, Kind, Target, Token, on};
use super::{reader, vector};
use crate::core::ids::Ticket;
use crate::core::machine::{DiskKind, DiskResult, IoFail};

/// Bytes of one piece when zeroes have to be written out.
const ZEROES_BYTES: usize = 1 << 20;
/// Most bytes that one advice brings into the page cache: clients cannot drive everything else out with it.
const READ_AHEAD_BYTES_MAX: u64 = 64 << 20;
/// Reads that are submitted together. The requests of a client come in a burst, and a disk that gets all of it at the
/// end of the turn has nothing to do until then, and answers in a burst as well.
const READS_AT_ONCE: usize = 2;
/// Most bytes of one system call; the kernel's own limit is just below 2 GiB.
const TRANSFER_BYTES_MAX: u64 = 1 << 30;

pub struct Disk {
    files: Vec<Option<DiskFile>>,
    ops: Vec<Option<Op>>,
    free_ops: Vec<usize>,
    /// Results not yet given as events.
    ready: VecDeque<Event>,
    /// Files with operations that wait for a sync.
    unsynced: Vec<usize>,
    /// A megabyte of zeroes, made when first needed.
    zeroes: Bytes,
    /// Buffered writes not made yet: they go on where one another ended.
    held: Option<Held>,
}

/// Buffered writes of one file that are made by one call, at the end of the turn at the latest.
struct Held {
    file: usize,
    offset: u64,
    bytes: usize,
    parts: Vec<Bytes>,
    tickets: Vec<(Ticket, bool)>,
}

/// Bytes of writes that are held together.
const HELD_BYTES_MAX: usize = 1 << 20;

struct DiskFile {
    opened: Opened,
    target: Target,
    inflight: usize,
    closing: bool,
    /// Tickets that the next sync completes, and those that the sync in flight completes.
    waiting: Vec<Ticket>,
    syncing: Vec<Ticket>,
    sync_inflight: bool,
    listed: bool,
    /// A sync failed: nothing more is trusted.
    broken: Option<IoFail>,
    /// Ways to zero that the file system has refused.
    no_punch: bool,
    no_zero_range: bool,
    /// The file system has zeroed a range without giving its space back.
    zero_range: bool,
}

struct Op {
    file: usize,
    ticket: Ticket,
    stage: Stage,
}

enum Stage {
    /// Reads blocks `base..base + wanted` into `run`; `offset..offset + length` are asked for.
    Read {
        run: Run,
        base: u64,
        wanted: usize,
        done: usize,
        lead: usize,
        length: usize,
    },
    /// Reads the blocks at the edges of an unaligned write; `pending` reads are in flight.
    Edges {
        run: Run,
        base: u64,
        total: usize,
        lead: usize,
        parts: Vec<Bytes>,
        durable: bool,
        pending: u8,
        error: Option<i32>,
    },
    Write {
        source: Source,
        base: u64,
        total: usize,
        done: usize,
        durable: bool,
    },
    /// FALLOCATE of the range; written zeroes when that is refused.
    Zero {
        offset: u64,
        length: u64,
        unmap: bool,
        durable: bool,
    },
    /// Writes zeroes over `at..to`, whole blocks.
    WriteZeroes {
        at: u64,
        to: u64,
        durable: bool,
    },
    /// Advice that a range will be read.
    ReadAhead {
        offset: u64,
        length: u64,
    },
}

/// Memory that a write goes out from.
enum Source {
    Run(Run),
    Bytes(Bytes),
    /// Several aligned parts, with the vectors that name them.
    Parts {
        parts: Vec<Bytes>,
        vectors: Box<[libc::iovec]>,
    },
}

/// Parts of one vectored write; the kernel takes 1024.
const VECTORS_MAX: usize = 256;

impl Source {
    /// Memory from which aligned parts can be written as they are, or else one aligned copy.
    fn of(mut parts: Vec<Bytes>, total: usize, align: usize, kernel: &mut Kernel) -> Source {
        let aligned = |part: &Bytes| (part.as_ptr() as usize).is_multiple_of(align) && part.len().is_multiple_of(align);
        if parts.len() <= VECTORS_MAX && parts.iter().all(aligned) {
            if parts.len() == 1 {
                return Source::Bytes(parts.remove(0));
            }
            return Source::Parts { vectors: vector::of(&parts).into_boxed_slice(), parts };
        }
        let mut run = kernel.allocate(total);
        copy_parts(&parts, run.as_mut_slice());
        Source::Run(run)
    }

    /// What a write goes on from after `done` of `total` bytes. Parts are joined then: it is rare.
    fn after_short_write(self, total: usize, kernel: &mut Kernel) -> Source {
        match self {
            Source::Parts { parts, .. } => {
                let mut run = kernel.allocate(total);
                copy_parts(&parts, run.as_mut_slice());
                Source::Run(run)
            }
            other => other,
        }
    }

    fn entry(&self, kernel: &Kernel, target: Target, base: u64, total: usize, done: usize, durable: bool) -> Entry {
        let flags = if durable { libc::RWF_DSYNC } else { 0 };
        let offset = base + done as u64;
        let start = match self {
            Source::Parts { vectors, .. } => {
                let (first, count) = (vectors.as_ptr(), vectors.len() as u32);
                return on!(target, |fd| opcode::Writev::new(fd, first, count).offset(offset).rw_flags(flags).build());
            }
            Source::Run(run) => run.as_ptr().cast_const(),
            Source::Bytes(bytes) => bytes.as_ptr(),
        };
        let (start, length) = (start.wrapping_add(done), (total - done) as u32);
        match kernel.fixed_index(start, total - done) {
            Some(index) => on!(target, |fd| {
                opcode::WriteFixed::new(fd, start, length, index).offset(offset).rw_flags(flags).build()
            }),
            None => on!(target, |fd| opcode::Write::new(fd, start, length).offset(offset).rw_flags(flags).build()),
        }
    }
}

fn read_entry(kernel: &Kernel, target: Target, into: *mut u8, length: usize, offset: u64) -> Entry {
    let bytes = length as u32;
    match kernel.fixed_index(into, length) {
        Some(index) => {
            on!(target, |fd| opcode::ReadFixed::new(fd, into, bytes, index).offset(offset).build())
        }
        None => on!(target, |fd| opcode::Read::new(fd, into, bytes).offset(offset).build()),
    }
}

/// What was asked for of a read that got `done` of `wanted` bytes before the end of the file.
fn finish_read(mut run: Run, done: usize, wanted: usize, lead: usize, length: usize) -> Bytes {
    run.as_mut_slice()[done..wanted].fill(0);
    run.freeze(wanted).slice(lead..lead + length)
}

fn copy_parts(parts: &[Bytes], into: &mut [u8]) {
    let mut at = 0;
    for part in parts {
        into[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
}

impl Disk {
    pub fn new() -> Disk {
        Disk {
            files: Vec::new(),
            ops: Vec::new(),
            free_ops: Vec::new(),
            ready: VecDeque::new(),
            unsynced: Vec::new(),
            zeroes: Bytes::new(),
            held: None,
        }
    }

    pub fn add(&mut self, opened: Opened, kernel: &mut Kernel) -> FileId {
        let target = kernel.register_file(opened.file.as_raw_fd());
        self.files.push(Some(DiskFile {
            opened,
            target,
            inflight: 0,
            closing: false,
            waiting: Vec::new(),
            syncing: Vec::new(),
            sync_inflight: false,
            listed: false,
            broken: None,
            no_punch: false,
            no_zero_range: false,
            zero_range: false,
        }));
        FileId(self.files.len() - 1)
    }

    /// What is known of a file.
    ///
    /// # Panics
    /// When the file has been closed: names of files are not used after `close`.
    pub fn opened(&self, file: FileId) -> &Opened {
        &self.files[file.0].as_ref().expect("a closed file is not used").opened
    }

    /// As [`open::enlarge`].
    pub fn enlarge(&mut self, file: FileId, wanted: u64, preallocate: Preallocate) -> Result<u64, IoFail> {
        let found = self.files[file.0].as_mut().expect("a closed file is not used");
        enlarge(&mut found.opened, wanted, preallocate)
    }

    /// As [`open::extend`](super::open::extend).
    pub fn extend(&mut self, file: FileId, wanted: u64) -> Result<(), IoFail> {
        extend(&mut self.files[file.0].as_mut().expect("a closed file is not used").opened, wanted)
    }

    /// As [`open::shorten`](super::open::shorten).
    pub fn shorten(&mut self, file: FileId, bytes: u64) -> Result<(), IoFail> {
        shorten(&mut self.files[file.0].as_mut().expect("a closed file is not used").opened, bytes)
    }

    /// Closes a file once what is in flight is done.
    pub fn close(&mut self, file: FileId, kernel: &mut Kernel) {
        self.write_held();
        if let Some(found) = &mut self.files[file.0] {
            found.closing = true;
        }
        self.close_if_quiet(file.0, kernel);
    }

    pub fn submit(&mut self, file: FileId, ticket: Ticket, kind: DiskKind, kernel: &mut Kernel) -> io::Result<()> {
        let found = self.files[file.0].as_ref().expect("a closed file is not used");
        assert!(!found.closing, "a closing file is not used");
        // Whatever cannot join what is held comes after it, in its own file and in others (I2).
        if found.opened.direct_align.is_some() || !matches!(kind, DiskKind::Write { .. }) {
            self.write_held();
        }
        let found = self.files[file.0].as_ref().expect("a closed file is not used");
        if let Some(broken) = &found.broken {
            let result = Err(broken.clone());
            self.report(file.0, ticket, result);
            return Ok(());
        }
        match kind {
            DiskKind::Read { length: 0, .. } => {
                self.report(file.0, ticket, Ok(Bytes::new()));
                Ok(())
            }
            DiskKind::Read { offset, length } => self.read(file.0, ticket, offset, length, kernel),
            DiskKind::Write { offset, parts, durable } => self.write(file.0, ticket, offset, parts, durable, kernel),
            DiskKind::Zero { offset, length, unmap, durable } => {
                let stage = Stage::Zero { offset, length, unmap, durable };
                if length == 0 {
                    self.finish_write(file.0, ticket, durable)
                } else {
                    self.begin(file.0, ticket, stage, kernel)?
                }
                Ok(())
            }
            DiskKind::Sync => {
                self.finish_write(file.0, ticket, true);
                Ok(())
            }
        }
    }

    /// Brings the beginning of a range into the page cache, where there is one in the way.
    pub fn read_ahead(
        &mut self,
        file: FileId,
        ticket: Ticket,
        offset: u64,
        length: u64,
        kernel: &mut Kernel,
    ) -> io::Result<()> {
        if self.opened(file).direct_align.is_some() || self.opened(file).memory_only {
            self.report(file.0, ticket, Ok(Bytes::new()));
            return Ok(());
        }
        let length = length.min(READ_AHEAD_BYTES_MAX);
        self.begin(file.0, ticket, Stage::ReadAhead { offset, length }, kernel)
    }

    /// Whether zeroing this range is known to take no writing of zeroes. A block device does whole sectors only; ways
    /// that cannot be tried without changing something are known once they have worked.
    pub fn zeroes_fast(&self, file: FileId, offset: u64, length: u64, unmap: bool) -> bool {
        let found = self.files[file.0].as_ref().expect("a closed file is not used");
        let whole = (offset | length).is_multiple_of(super::arena::PAGE_BYTES as u64);
        let way =
            if unmap { !found.no_punch && found.opened.punches } else { !found.no_zero_range && found.zero_range };
        way && (whole || !found.opened.block_device)
    }

    /// Makes the writes that are held.
    pub fn write_held(&mut self) {
        let Some(Held { file, offset, parts, tickets, .. }) = self.held.take() else { return };
        let found = self.files[file].as_ref().expect("a file stays while a write of it is held");
        match vector::write_all(&found.opened.file, &parts, offset) {
            Ok(()) => tickets.into_iter().for_each(|(ticket, durable)| self.finish_write(file, ticket, durable)),
            Err(error) => {
                let length = parts.iter().map(|part| part.len() as u64).sum();
                let fail = failed_at(&found.opened.path, "write failed", offset, length, &error);
                tickets.into_iter().for_each(|(ticket, _)| self.report(file, ticket, Err(fail.clone())));
            }
        }
    }

    /// A buffered write goes with those that it follows in the file.
    fn hold(&mut self, file: usize, ticket: Ticket, offset: u64, mut parts: Vec<Bytes>, bytes: usize, durable: bool) {
        if let Some(held) = &mut self.held
            && held.file == file
            && held.offset + held.bytes as u64 == offset
            && held.bytes + bytes <= HELD_BYTES_MAX
        {
            held.bytes += bytes;
            held.parts.append(&mut parts);
            held.tickets.push((ticket, durable));
            return;
        }
        self.write_held();
        self.held = Some(Held { file, offset, bytes, parts, tickets: vec![(ticket, durable)] });
    }

    /// Submits the syncs that are waited for.
    pub fn flush(&mut self, kernel: &mut Kernel) -> io::Result<()> {
        self.write_held();
        for index in std::mem::take(&mut self.unsynced) {
            let Some(file) = &mut self.files[index] else { continue };
            file.listed = false;
            if file.sync_inflight || file.waiting.is_empty() {
                continue;
            }
            file.sync_inflight = true;
            file.inflight += 1;
            std::mem::swap(&mut file.waiting, &mut file.syncing);
            let flags = io_uring::types::FsyncFlags::DATASYNC;
            let entry = on!(file.target, |fd| opcode::Fsync::new(fd).flags(flags).build());
            // SAFETY: no memory is named; the file stays open while something is in flight on it.
            unsafe { kernel.push(entry, Token::new(Kind::Sync, index as u64))? };
        }
        Ok(())
    }

    pub fn collect(&mut self, events: &mut Vec<Event>) {
        events.extend(self.ready.drain(..));
    }

    pub fn sync_completed(&mut self, index: usize, result: i32, kernel: &mut Kernel) {
        let file = self.files[index].as_mut().expect("a file stays while something is in flight on it");
        file.sync_inflight = false;
        file.inflight -= 1;
        let mut tickets = std::mem::take(&mut file.syncing);
        let result = if result < 0 {
            let error = io::Error::from_raw_os_error(-result);
            let broken =
                failed(&file.opened.path, "sync failed, nothing on it is trusted until it is reopened", &error);
            tracing::error!("{broken}");
            file.broken = Some(broken.clone());
            tickets.append(&mut file.waiting);
            Err(broken)
        } else {
            Ok(Bytes::new())
        };
        for ticket in tickets {
            self.report(index, ticket, result.clone());
        }
        self.list_unsynced(index);
        self.close_if_quiet(index, kernel);
    }

    pub fn completed(&mut self, id: usize, result: i32, kernel: &mut Kernel) -> io::Result<()> {
        let op = self.ops[id].take().expect("an operation is kept until it is completed");
        let Op { file, ticket, stage } = op;
        let again = matches!(-result, libc::EAGAIN | libc::EINTR);
        match stage {
            Stage::Edges { .. } => return self.edge_read(id, Op { file, ticket, stage }, result, kernel),
            _ if again => return self.resume(id, Op { file, ticket, stage }, kernel),
            Stage::Read { run, base, wanted, done, lead, length } => {
                let Ok(bytes) = usize::try_from(result) else {
                    let range = (base + lead as u64, length as u64);
                    return self.op_failed(id, (file, ticket), "read failed", range, result, kernel);
                };
                let done = done + bytes;
                let align = self.align(file);
                if bytes > 0 && done < wanted && done.is_multiple_of(align) {
                    let stage = Stage::Read { run, base, wanted, done, lead, length };
                    return self.resume(id, Op { file, ticket, stage }, kernel);
                }
                let data = finish_read(run, done, wanted, lead, length);
                self.report(file, ticket, Ok(data));
            }
            Stage::Write { source, base, total, done, durable } => {
                if result <= 0 {
                    let result = if result == 0 { -libc::EIO } else { result };
                    let range = (base, total as u64);
                    return self.op_failed(id, (file, ticket), "write failed", range, result, kernel);
                }
                let done = done + result as usize;
                if done < total {
                    let source = source.after_short_write(total, kernel);
                    let stage = Stage::Write { source, base, total, done, durable };
                    return self.resume(id, Op { file, ticket, stage }, kernel);
                }
                // Direct writes that must be durable were submitted with RWF_DSYNC.
                self.report(file, ticket, Ok(Bytes::new()));
            }
            Stage::Zero { offset, length, unmap, durable } => {
                if matches!(-result, libc::EOPNOTSUPP | libc::EINVAL | libc::ENODEV | libc::ENOSYS) {
                    let found = self.files[file].as_mut().expect("a file stays while something is in flight on it");
                    let refused = if unmap { &mut found.no_punch } else { &mut found.no_zero_range };
                    // EINVAL speaks of this range (a block device wants whole sectors), not of the file.
                    *refused = *refused || result != -libc::EINVAL;
                    let stage = Stage::Zero { offset, length, unmap, durable };
                    return self.begin_zeroes(id, Op { file, ticket, stage }, kernel);
                }
                if result < 0 {
                    return self.op_failed(id, (file, ticket), "zeroing failed", (offset, length), result, kernel);
                }
                self.files[file].as_mut().expect("a file stays while something is in flight on it").zero_range |=
                    !unmap;
                self.finish_write(file, ticket, durable);
            }
            // Advice that is not taken changes nothing.
            Stage::ReadAhead { .. } => self.report(file, ticket, Ok(Bytes::new())),
            Stage::WriteZeroes { at, to, durable } => {
                if result <= 0 {
                    let result = if result == 0 { -libc::EIO } else { result };
                    return self.op_failed(id, (file, ticket), "writing zeroes failed", (at, to - at), result, kernel);
                }
                let at = at + result as u64;
                if at < to {
                    return self.resume(id, Op { file, ticket, stage: Stage::WriteZeroes { at, to, durable } }, kernel);
                }
                self.finish_write(file, ticket, durable);
            }
        }
        self.end(id, file, kernel);
        Ok(())
    }

    fn read(&mut self, file: usize, ticket: Ticket, offset: u64, length: u64, kernel: &mut Kernel) -> io::Result<()> {
        assert!(length <= TRANSFER_BYTES_MAX, "reads are bounded by their callers");
        let align = self.align(file) as u64;
        let base = offset / align * align;
        let lead = (offset - base) as usize;
        let wanted = (lead + length as usize).next_multiple_of(align as usize);
        let mut run = kernel.allocate(wanted);
        let mut done = 0;
        let found = self.files[file].as_ref().expect("looked at by the caller");
        if found.opened.direct_align.is_none() {
            match vector::read_cached(&found.opened, &mut run.as_mut_slice()[..wanted], base) {
                Ok(Some(bytes)) => done = bytes,
                Ok(None) => {
                    // The end of the file: what lies behind it reads as zeroes.
                    self.report(file, ticket, Ok(finish_read(run, 0, wanted, lead, length as usize)));
                    return Ok(());
                }
                Err(error) => {
                    let fail = failed_at(&found.opened.path, "read failed", offset, length, &error);
                    self.report(file, ticket, Err(fail));
                    return Ok(());
                }
            }
            if done == wanted {
                self.report(file, ticket, Ok(finish_read(run, done, wanted, lead, length as usize)));
                return Ok(());
            }
        }
        self.begin(file, ticket, Stage::Read { run, base, wanted, done, lead, length: length as usize }, kernel)?;
        kernel.submit_from(READS_AT_ONCE)
    }

    fn write(
        &mut self,
        file: usize,
        ticket: Ticket,
        offset: u64,
        mut parts: Vec<Bytes>,
        durable: bool,
        kernel: &mut Kernel,
    ) -> io::Result<()> {
        parts.retain(|part| !part.is_empty());
        let total: usize = parts.iter().map(Bytes::len).sum();
        assert!(total as u64 <= TRANSFER_BYTES_MAX, "writes are bounded by their callers");
        let found = self.files[file].as_mut().expect("looked at by the caller");
        if total == 0 {
            self.finish_write(file, ticket, durable);
            return Ok(());
        }
        let Some(align) = found.opened.direct_align else {
            self.hold(file, ticket, offset, parts, total, durable);
            return Ok(());
        };
        found.opened.size = found.opened.size.max(offset + total as u64);
        let base = offset / align as u64 * align as u64;
        let lead = (offset - base) as usize;
        let whole = (lead + total).next_multiple_of(align);
        if whole == total {
            let source = Source::of(parts, total, align, kernel);
            return self.begin(file, ticket, Stage::Write { source, base, total, done: 0, durable }, kernel);
        }
        let run = kernel.allocate(whole);
        let stage = Stage::Edges { run, base, total: whole, lead, parts, durable, pending: 0, error: None };
        self.begin(file, ticket, stage, kernel)
    }

    fn begin(&mut self, file: usize, ticket: Ticket, stage: Stage, kernel: &mut Kernel) -> io::Result<()> {
        self.files[file].as_mut().expect("looked at by the caller").inflight += 1;
        let id = self.free_ops.pop().unwrap_or_else(|| {
            self.ops.push(None);
            self.ops.len() - 1
        });
        self.resume(id, Op { file, ticket, stage }, kernel)
    }

    /// Submits the next system call of an operation.
    fn resume(&mut self, id: usize, mut op: Op, kernel: &mut Kernel) -> io::Result<()> {
        let file = self.files[op.file].as_ref().expect("a file stays while something is in flight on it");
        let token = Token::new(Kind::Disk, id as u64);
        let target = file.target;
        let entry = match &mut op.stage {
            Stage::Read { run, base, wanted, done, .. } => {
                read_entry(kernel, target, run.as_ptr().wrapping_add(*done), *wanted - *done, *base + *done as u64)
            }
            Stage::Edges { .. } => return self.read_edges(id, op, kernel),
            Stage::Write { source, base, total, done, durable } => {
                source.entry(kernel, target, *base, *total, *done, *durable)
            }
            Stage::Zero { offset, length, unmap, .. } => {
                let refused = if *unmap { file.no_punch } else { file.no_zero_range };
                if refused {
                    return self.begin_zeroes(id, op, kernel);
                }
                let mode = if *unmap { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
                let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
                on!(target, |fd| opcode::Fallocate::new(fd, *length).offset(*offset).mode(mode).build())
            }
            Stage::ReadAhead { offset, length } => {
                let advice = libc::POSIX_FADV_WILLNEED;
                on!(target, |fd| opcode::Fadvise::new(fd, length.cast_signed(), advice).offset(*offset).build())
            }
            Stage::WriteZeroes { at, to, .. } => {
                let length = (*to - *at).min(self.zeroes.len() as u64) as u32;
                let start = self.zeroes.as_ptr();
                on!(target, |fd| opcode::Write::new(fd, start, length).offset(*at).build())
            }
        };
        self.ops[id] = Some(op);
        // SAFETY: the memory named belongs to the operation, which stays in `ops` until this completes;
        // the file stays open while something is in flight on it.
        unsafe { kernel.push(entry, token) }
    }

    /// Reads the first and the last block of an unaligned write.
    fn read_edges(&mut self, id: usize, mut op: Op, kernel: &mut Kernel) -> io::Result<()> {
        let align = self.align(op.file);
        let target = self.files[op.file].as_ref().expect("a file stays while something is in flight on it").target;
        let Stage::Edges { run, base, total, lead, parts, pending, .. } = &mut op.stage else {
            unreachable!("called for this stage only")
        };
        let end = *lead + parts.iter().map(Bytes::len).sum::<usize>();
        let first = (*lead > 0).then_some(0);
        let last = (!end.is_multiple_of(align)).then_some(*total - align).filter(|last| first != Some(*last));
        let mut entries = Vec::with_capacity(2);
        for at in [first, last].into_iter().flatten() {
            // A block that ends behind the end of the file is read in part: the rest must be zeroes.
            run.as_mut_slice()[at..at + align].fill(0);
            entries.push(read_entry(kernel, target, run.as_ptr().wrapping_add(at), align, *base + at as u64));
        }
        *pending = entries.len() as u8;
        self.ops[id] = Some(op);
        for entry in entries {
            // SAFETY: both blocks lie in the operation's run, apart from each other; the operation stays in
            // `ops` until the last of them is completed.
            unsafe { kernel.push(entry, Token::new(Kind::Disk, id as u64))? };
        }
        Ok(())
    }

    fn edge_read(&mut self, id: usize, mut op: Op, result: i32, kernel: &mut Kernel) -> io::Result<()> {
        let Stage::Edges { pending, error, .. } = &mut op.stage else { unreachable!("called for this stage only") };
        *pending -= 1;
        if result < 0 {
            *error = Some(result);
        }
        if *pending > 0 {
            self.ops[id] = Some(op);
            return Ok(());
        }
        let Op { file, ticket, stage } = op;
        let Stage::Edges { mut run, base, total, lead, parts, durable, error, .. } = stage else {
            unreachable!("called for this stage only")
        };
        match error {
            Some(error) if matches!(-error, libc::EAGAIN | libc::EINTR) => {
                let stage = Stage::Edges { run, base, total, lead, parts, durable, pending: 0, error: None };
                return self.resume(id, Op { file, ticket, stage }, kernel);
            }
            Some(error) => {
                let range = (base + lead as u64, parts.iter().map(|part| part.len() as u64).sum());
                let what = "read before an unaligned write failed";
                return self.op_failed(id, (file, ticket), what, range, error, kernel);
            }
            None => {}
        }
        copy_parts(&parts, &mut run.as_mut_slice()[lead..]);
        let stage = Stage::Write { source: Source::Run(run), base, total, done: 0, durable };
        self.resume(id, Op { file, ticket, stage }, kernel)
    }

    /// Begins to write zeroes where the file system makes none: the unaligned edges at once (they are rare
    /// and less than a block each), the rest by the ring.
    fn begin_zeroes(&mut self, id: usize, op: Op, kernel: &mut Kernel) -> io::Result<()> {
        let Op { file, ticket, stage } = op;
        let Stage::Zero { offset, length, durable, .. } = stage else { unreachable!("called for this stage only") };
        let align = self.align(file) as u64;
        let (from, to) = (offset.next_multiple_of(align), (offset + length) / align * align);
        let opened = &self.files[file].as_ref().expect("a file stays while something is in flight on it").opened;
        let mut edges = Ok(());
        if from > to {
            edges = reader::zero_within_block(opened, &kernel.arena, offset, length);
        } else {
            for (edge, edge_length) in [(offset, from - offset), (to, offset + length - to)] {
                if edges.is_ok() && edge_length > 0 {
                    edges = reader::zero_within_block(opened, &kernel.arena, edge, edge_length);
                }
            }
        }
        if edges.is_err() || from >= to {
            match edges {
                Ok(()) => self.finish_write(file, ticket, durable),
                Err(fail) => self.report(file, ticket, Err(fail)),
            }
            self.end(id, file, kernel);
            return Ok(());
        }
        if self.zeroes.is_empty() {
            let mut run = kernel.allocate(ZEROES_BYTES);
            run.as_mut_slice().fill(0);
            self.zeroes = run.freeze(ZEROES_BYTES);
        }
        let stage = Stage::WriteZeroes { at: from, to, durable };
        self.resume(id, Op { file, ticket, stage }, kernel)
    }

    /// `range`: offset and length of what was asked for.
    fn op_failed(
        &mut self,
        id: usize,
        (file, ticket): (usize, Ticket),
        what: &str,
        range: (u64, u64),
        result: i32,
        kernel: &mut Kernel,
    ) -> io::Result<()> {
        let path = &self.files[file].as_ref().expect("a file stays while something is in flight on it").opened.path;
        let fail = failed_at(path, what, range.0, range.1, &io::Error::from_raw_os_error(-result));
        self.report(file, ticket, Err(fail));
        self.end(id, file, kernel);
        Ok(())
    }

    /// Reports a change that is complete, once it is durable if it must be.
    fn finish_write(&mut self, index: usize, ticket: Ticket, durable: bool) {
        let file = self.files[index].as_mut().expect("a file stays while something is in flight on it");
        if !durable || file.opened.memory_only {
            self.report(index, ticket, Ok(Bytes::new()));
        } else {
            file.waiting.push(ticket);
            self.list_unsynced(index);
        }
    }

    fn list_unsynced(&mut self, index: usize) {
        if let Some(file) = &mut self.files[index]
            && !file.listed
            && !file.waiting.is_empty()
        {
            file.listed = true;
            self.unsynced.push(index);
        }
    }

    fn report(&mut self, file: usize, ticket: Ticket, result: DiskResult) {
        self.ready.push_back(Event::Disk { file: FileId(file), ticket, result });
    }

    fn end(&mut self, id: usize, file: usize, kernel: &mut Kernel) {
        assert!(self.ops[id].is_none(), "an operation is taken out before it ends");
        self.free_ops.push(id);
        self.files[file].as_mut().expect("a file stays while something is in flight on it").inflight -= 1;
        self.close_if_quiet(file, kernel);
    }

    fn close_if_quiet(&mut self, index: usize, kernel: &mut Kernel) {
        if self.files[index].as_ref().is_some_and(|file| file.closing && file.inflight == 0 && file.waiting.is_empty())
        {
            let file = self.files[index].take().expect("just looked at");
            // The lock goes now, also where the ring keeps the file a little longer.
            let _ = file.opened.file.unlock();
            kernel.unregister_file(file.target);
        }
    }

    fn align(&self, file: usize) -> usize {
        self.files[file].as_ref().expect("a closed file is not used").opened.direct_align.unwrap_or(1)
    }
}
