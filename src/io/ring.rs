//! One io_uring and the memory it knows: a thin wrapper.
//!
//! Owns the ring, its table of fixed buffers (the chunks of the arena) and its table of fixed files.
//! Knows nothing of what an operation means: a completion is a [`Token`] and a result.
//!
//! Invariants:
//! - One thread: the ring is made SINGLE_ISSUER where the kernel allows it, and the type is not `Send`.
//! - Whoever pushes an entry owns the memory it names until its completion has been seen.
//! - Everything queued is submitted by the next `enter`: one system call a turn.

use std::io;
use std::marker::PhantomData;
use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, opcode};
use nix::libc;

use super::arena::{Arena, Run};

/// Entries of the submission queue; more are submitted early.
const ENTRIES: u32 = 1024;
/// Entries of the completion queue.
const COMPLETIONS: u32 = 8192;
/// Entries of the table of fixed files; files beyond are used by their descriptor.
const FIXED_FILES: u32 = 2048;

/// Chunks given back in one go.
const TRIM_CHUNKS: usize = 8;

/// What a completion belongs to: packed into the 64 bits that the kernel hands back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    /// A connection, listener or disk operation, by number; below 2^56.
    pub id: u64,
}

/// The kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Cancel = 0,
    Signal = 1,
    Wake = 2,
    Accept = 3,
    Connect = 4,
    Receive = 5,
    Send = 6,
    Disk = 7,
    Sync = 8,
}

const KINDS: [Kind; 9] = [
    Kind::Cancel,
    Kind::Signal,
    Kind::Wake,
    Kind::Accept,
    Kind::Connect,
    Kind::Receive,
    Kind::Send,
    Kind::Disk,
    Kind::Sync,
];

impl Token {
    #[must_use]
    pub fn new(kind: Kind, id: u64) -> Token {
        assert!(id < 1 << 56, "numbers are counted from 0 and never reach 2^56");
        Token { kind, id }
    }

    fn pack(self) -> u64 {
        (self.kind as u64) << 56 | self.id
    }

    fn unpack(raw: u64) -> Token {
        Token { kind: KINDS[(raw >> 56) as usize], id: raw & ((1 << 56) - 1) }
    }
}

/// The result of an operation, as the kernel gives it: negative is an errno.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    pub token: Token,
    pub result: i32,
}

/// How long `enter` waits for a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    No,
    ForNs(u64),
    Forever,
}

/// A file as an operation names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Fixed(u32),
    Descriptor(RawFd),
}

/// Builds an entry for a target: `on!(target, |fd| opcode::Something::new(fd, …).build())`.
macro_rules! on {
    ($target:expr, |$fd:ident| $build:expr) => {
        match $target {
            $crate::io::ring::Target::Fixed(slot) => {
                let $fd = io_uring::types::Fixed(slot);
                $build
            }
            $crate::io::ring::Target::Descriptor(fd) => {
                let $fd = io_uring::types::Fd(fd);
                $build
            }
        }
    };
}
pub(super) use on;

/// The ring and the arena it has registered.
pub struct Kernel {
    ring: IoUring,
    pub arena: Arena,
    /// Free entries of the table of fixed files; empty when the kernel refused the table.
    free_files: Vec<u32>,
    /// Whether chunks are registered as fixed buffers (the kernel or a limit may refuse).
    fixed_buffers: bool,
    /// Operations submitted whose last completion has not been seen.
    inflight: u64,
    _one_thread: PhantomData<*const ()>,
}

impl Kernel {
    pub fn new(arena: Arena) -> io::Result<Kernel> {
        let ring = build_ring()?;
        let submitter = ring.submitter();
        let free_files = match submitter.register_files_sparse(FIXED_FILES) {
            Ok(()) => (0..FIXED_FILES).rev().collect(),
            Err(_) => Vec::new(),
        };
        let chunks = u32::try_from(arena.chunks_max()).expect("an arena has at most 16384 chunks");
        let fixed_buffers = submitter.register_buffers_sparse(chunks).is_ok();
        Ok(Kernel { ring, arena, free_files, fixed_buffers, inflight: 0, _one_thread: PhantomData })
    }

    /// Memory for at least `bytes`, registered as a fixed buffer where possible.
    pub fn allocate(&mut self, bytes: usize) -> Run {
        let (run, opened) = self.arena.allocate(bytes);
        if let Some(chunk) = opened
            && self.fixed_buffers
        {
            self.register_chunk(chunk);
        }
        run
    }

    /// Gives memory of an earlier burst back, a few chunks at a time: for a moment in which there is nothing
    /// else to do.
    pub fn trim(&mut self) {
        for _ in 0..TRIM_CHUNKS {
            let Some((chunk, registered)) = self.arena.shut_idle() else { return };
            if registered {
                let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
                // SAFETY: an empty entry names no memory; the chunk's own entry is dropped once no
                // operation uses it, and none does: none of its pages is handed out.
                let forgotten =
                    unsafe { self.ring.submitter().register_buffers_update(chunk as u32, &[nothing], Some(&[0])) };
                if forgotten.is_err() {
                    // Still pinned: it stays shut, which costs addresses and its memory, and nothing else.
                    return;
                }
            }
            self.arena.release(chunk);
        }
    }

    /// The fixed buffer that holds all of these addresses, if one does.
    #[must_use]
    pub fn fixed_index(&self, ptr: *const u8, length: usize) -> Option<u16> {
        if self.fixed_buffers { self.arena.fixed_index(ptr, length) } else { None }
    }

    /// Enters a file into the table of fixed files, or names it by its descriptor.
    pub fn register_file(&mut self, fd: RawFd) -> Target {
        let Some(slot) = self.free_files.pop() else { return Target::Descriptor(fd) };
        match self.ring.submitter().register_files_update(slot, &[fd]) {
            Ok(_) => Target::Fixed(slot),
            Err(_) => Target::Descriptor(fd),
        }
    }

    /// Takes a file out of the table again. No operation on it may be in flight.
    pub fn unregister_file(&mut self, target: Target) {
        if let Target::Fixed(slot) = target {
            // A slot that could not be emptied still pins its file: it is not used again.
            if self.ring.submitter().register_files_update(slot, &[-1]).is_ok() {
                self.free_files.push(slot);
            }
        }
    }

    /// Queues an operation; it is submitted by the next `enter` at the latest.
    ///
    /// # Safety
    /// Memory and descriptor that the entry names must stay valid, and memory the kernel writes must not
    /// be touched otherwise, until a completion of `token` without `more` has been seen.
    pub unsafe fn push(&mut self, entry: Entry, token: Token) -> io::Result<()> {
        let entry = entry.user_data(token.pack());
        // SAFETY: the caller's promise is exactly what the queue asks for.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.enter(Wait::No)?;
        }
        self.inflight += 1;
        Ok(())
    }

    /// Asks the kernel to end an operation early; its completion still comes.
    pub fn cancel(&mut self, token: Token) -> io::Result<()> {
        let entry = opcode::AsyncCancel::new(token.pack()).build();
        // SAFETY: the entry names no memory.
        unsafe { self.push(entry, Token::new(Kind::Cancel, 0)) }
    }

    /// Whether something waits to be submitted.
    pub fn queued(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// Submits what is queued and waits for a completion.
    pub fn enter(&mut self, wait: Wait) -> io::Result<()> {
        let queued = {
            let mut queue = self.ring.submission();
            queue.sync();
            queue.len() as u32
        };
        let submitter = self.ring.submitter();
        let entered = match wait {
            // SAFETY: no argument is passed, and GETEVENTS only lets the kernel run deferred work.
            Wait::No => unsafe { submitter.enter::<libc::sigset_t>(queued, 0, EnterFlags::GETEVENTS.bits(), None) },
            Wait::Forever => submitter.submit_and_wait(1),
            Wait::ForNs(ns) => {
                let time = Timespec::new().sec(ns / 1_000_000_000).nsec((ns % 1_000_000_000) as u32);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
        };
        match entered {
            Ok(_) => Ok(()),
            // Time is up, a signal came, or completions must be read before more is submitted.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Submits what is queued once it is so much, and looks at no completion.
    pub fn submit_from(&mut self, entries: usize) -> io::Result<()> {
        if self.ring.submission().len() < entries {
            return Ok(());
        }
        match self.ring.submitter().submit() {
            Ok(_) => Ok(()),
            // A signal came, or completions must be read before more is submitted: the next `enter` does it.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Moves what is completed to `out`.
    pub fn completions(&mut self, out: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            let more = io_uring::cqueue::more(entry.flags());
            if !more {
                self.inflight -= 1;
            }
            out.push(Completion { token: Token::unpack(entry.user_data()), result: entry.result() });
        }
    }

    /// Ends every operation, so that no memory is in the kernel's hands any more; false when that could
    /// not be had in time.
    pub fn cancel_all(&mut self) -> bool {
        let mut seen = Vec::new();
        for _ in 0..200 {
            if self.enter(Wait::No).is_err() {
                return false;
            }
            self.completions(&mut seen);
            if self.inflight == 0 {
                return true;
            }
            // Nothing found to cancel is no error here: disk operations end by themselves.
            let _ = self.ring.submitter().register_sync_cancel(None, CancelBuilder::any());
            if self.enter(Wait::ForNs(10_000_000)).is_err() {
                return false;
            }
            self.completions(&mut seen);
        }
        self.inflight == 0
    }

    /// Gives up every file and buffer that the ring knows: what the kernel does with it at the end of the process
    /// takes its time, and until then files would stay open and sockets connected.
    fn forget_all(&self) {
        let submitter = self.ring.submitter();
        // Nothing registered, or nothing that can be done about it: the end of the process remains.
        let _ = submitter.unregister_files();
        let _ = submitter.unregister_buffers();
    }

    fn register_chunk(&mut self, chunk: usize) {
        let (start, length) = self.arena.chunk_range(chunk);
        let buffer = libc::iovec { iov_base: start.cast(), iov_len: length };
        // SAFETY: the chunk is part of the arena's mapping, which `self.arena` keeps at least as long as the ring.
        let registered = unsafe { self.ring.submitter().register_buffers_update(chunk as u32, &[buffer], None) };
        match registered {
            Ok(()) => self.arena.set_registered(chunk),
            Err(error) => {
                // Usually the limit of locked memory: the rest of the arena works as plain memory.
                tracing::warn!(chunk, %error, "registering memory refused: going on with plain buffers");
                self.fixed_buffers = chunk > 0;
            }
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.forget_all();
    }
}

/// The ring with every helpful flag that this kernel takes.
fn build_ring() -> io::Result<IoUring> {
    let attempts: [fn(&mut io_uring::Builder); 3] = [
        |builder| {
            builder.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun();
        },
        |builder| {
            builder.setup_coop_taskrun();
        },
        |_| (),
    ];
    let mut refused = None;
    for attempt in attempts {
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(COMPLETIONS).setup_submit_all();
        attempt(&mut builder);
        match builder.build(ENTRIES) {
            Ok(ring) => return Ok(ring),
            Err(error) => refused = Some(error),
        }
    }
    let error = refused.expect("every attempt that did not succeed left its error");
    Err(match error.raw_os_error() {
        Some(libc::ENOMEM) => io::Error::new(
            error.kind(),
            format!(
                "{error}; a ring counts as locked memory: raise `ulimit -l` (systemd: LimitMEMLOCK) to 8 MiB or more"
            ),
        ),
        Some(libc::EPERM | libc::ENOSYS) => io::Error::other(format!(
            "{error}; sysctl kernel.io_uring_disabled has to be 0 (or 1 for root), and a container's seccomp profile has to \
             allow it"
        )),
        _ => error,
    })
}
