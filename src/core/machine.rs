//! The contract between a pure machine and its shell.
//!
//! `step(now, input, &mut effects)`: time and input go in, effects come out; nothing else is touched.
//!
//! Rules a shell (and the simulator) keeps:
//! - Effects are carried out in the order they were emitted.
//! - Disk operations run concurrently and may complete in any order, except that a `Write` that is
//!   not `durable` on a file the shell opened *buffered* is in the page cache when the next effect
//!   is carried out: it survives the death of the process, not the loss of power.
//! - A `durable` write is completed only when it and its metadata are on stable storage.
//! - A `Sync` covers every write completed before it was emitted.
//! - Before recovery reads a file, what it holds is made durable: a process that was killed may have left
//!   bytes that can be read and would not survive a loss of power.
//! - Every operation is completed exactly once, by its ticket, unless the process dies.
//! - After a failed write or sync of a file nothing more is trusted of that file until reopened.

use bytes::Bytes;

use crate::core::ids::Ticket;

/// The two clocks of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, nanoseconds since an arbitrary start.
    pub mono_ns: u64,
    /// Wall clock, nanoseconds since the Unix epoch.
    pub wall_ns: u64,
}

/// Until when a writer may tell its clients what it promised them (I7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// At any time: nobody can take over, or the operator has answered for it.
    Unbound,
    /// Until then, monotonic nanoseconds.
    Until(u64),
    /// Never again: a newer epoch is in force.
    Over,
}

/// A pure state machine.
pub trait Machine {
    type Input;
    type Effect;

    /// Takes one input and appends what is to be done to `fx`.
    fn step(&mut self, now: Now, input: Self::Input, fx: &mut Vec<Self::Effect>);

    /// Monotonic time at which the machine wants its `Tick` input, or `None` while nothing is due.
    fn deadline_ns(&self) -> Option<u64>;
}

/// One disk operation on a file named by `F` (each role has its own enum of files).
#[derive(Clone, Debug)]
pub struct DiskOp<F> {
    pub ticket: Ticket,
    pub file: F,
    pub kind: DiskKind,
}

#[derive(Clone, Debug)]
pub enum DiskKind {
    /// Reads exactly `length` bytes; past the end of the file reads as zeroes.
    Read { offset: u64, length: u64 },
    /// Writes the parts one after another from `offset`.
    Write { offset: u64, parts: Vec<Bytes>, durable: bool },
    /// Makes a range read as zeroes; `unmap` allows (not demands) that its space be given back.
    Zero { offset: u64, length: u64, unmap: bool, durable: bool },
    /// Makes every completed write durable.
    Sync,
}

/// Result of a disk operation: the bytes of a read, empty otherwise.
pub type DiskResult = Result<Bytes, IoFail>;

/// A failed operation, in words an operator understands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoFail {
    #[error("no space left: {0}")]
    NoSpace(String),
    #[error("{0}")]
    Other(String),
}

/// How loud an effect's log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

/// Reads a file during recovery: the one way pure recovery code sees stored bytes.
pub trait ReadAt {
    /// Size of the file, bytes.
    fn size(&self) -> u64;

    /// Exactly `length` bytes from `offset`; past the end of the file reads as zeroes.
    fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, IoFail>;
}
