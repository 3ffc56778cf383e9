//! The window: every write from the oldest one that is still anybody's business to the tail.
//!
//! An entry leaves at the front once it is answered, on the local disk, and its payload is no longer the
//! memory's concern (copied, spilled, or left to a batch). The window is contiguous in seq.

use std::collections::VecDeque;
use std::ops::{AddAssign, SubAssign};

use bytes::Bytes;

use super::machine::Req;
use crate::core::ids::Seq;
use crate::core::planted::{Bug, planted};
use crate::format::record::OrderRecord;
use crate::limits::BLOCK_BYTES;

/// Bytes of entries that are not charged to the memory FIFO.
const OVERHEAD_FREE_BYTES: u64 = 8 << 20;

/// What a payload takes beside whole pages: who owns it, and who counts its owners.
const PAYLOAD_OVERHEAD_BYTES: u64 = 256;

/// Payloads in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Their bytes.
    pub bytes: u64,
    /// What they take: each lies in pages of its own.
    pub memory: u64,
}

impl Held {
    /// What one payload takes.
    #[must_use]
    pub const fn memory_of(bytes: u64) -> u64 {
        if bytes == 0 { 0 } else { bytes.next_multiple_of(BLOCK_BYTES as u64) + PAYLOAD_OVERHEAD_BYTES }
    }

    /// One payload.
    #[must_use]
    pub fn one(bytes: u64) -> Held {
        Held { bytes, memory: Held::memory_of(bytes) }
    }
}

impl AddAssign for Held {
    fn add_assign(&mut self, other: Held) {
        self.bytes += other.bytes;
        self.memory += other.memory;
    }
}

impl SubAssign for Held {
    fn sub_assign(&mut self, other: Held) {
        self.bytes -= other.bytes;
        self.memory -= other.memory;
    }
}

/// How far the local write has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    /// Behind an overlapping earlier write, or before its intent is durable.
    Waiting {
        admitted: bool,
        intended: bool,
    },
    Running,
    Done,
    Failed,
}

impl Local {
    /// The disk has answered, one way or the other.
    #[must_use]
    pub fn ended(self) -> bool {
        matches!(self, Local::Done | Local::Failed)
    }
}

/// Where the payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The order carries none.
    None,
    /// In memory, not on a stream.
    Queued,
    /// In memory, on a stream.
    Sent,
    /// Being written to the disk FIFO; still in memory.
    Spilling,
    /// In the disk FIFO, from which it is shipped.
    Spilled,
    /// Durable at DR.
    Copied,
    /// Dropped: its range is left to a batch.
    Dropped,
}

/// One write.
#[derive(Clone, Debug)]
pub struct Entry {
    pub record: OrderRecord,
    /// The payload while it is in memory.
    pub data: Bytes,
    /// Whom to answer; `None` once answered (or nobody asked).
    pub req: Option<Req>,
    pub local: Local,
    pub payload: Payload,
}

impl Entry {
    /// What its payload takes, if that is in memory.
    #[must_use]
    pub fn held(&self) -> Held {
        Held::one(self.data.len() as u64)
    }

    /// The intent map says durably that this range may differ between the sides (I2). Before that, a primary that loses
    /// its power forgets the write; so DR must know nothing of it: it would apply it alone, or wait for its payload.
    #[must_use]
    pub fn remembered(&self) -> bool {
        !matches!(self.local, Local::Waiting { intended: false, .. })
    }

    fn settled(&self) -> bool {
        self.req.is_none()
            && self.local.ended()
            && !matches!(self.payload, Payload::Queued | Payload::Sent | Payload::Spilling)
            && !self.owed_to_ring()
    }

    /// A stream, or the disk FIFO, may take the payload: the local disk has answered.
    #[must_use]
    pub fn may_leave(&self) -> bool {
        self.local == Local::Done || self.local == Local::Failed && !planted(Bug::FailedStaysQueued)
    }

    /// The local disk has been given what it needs.
    #[must_use]
    pub fn local_begun(&self) -> bool {
        !matches!(self.local, Local::Waiting { .. })
    }

    /// Dropped for DR, and kept for the auxiliary's payload ring alone.
    #[must_use]
    pub fn owed_to_ring(&self) -> bool {
        self.payload == Payload::Dropped && !self.data.is_empty()
    }
}

/// Contiguous entries `first..=tail`.
#[derive(Clone, Debug)]
pub struct Window {
    /// Seq of the front entry; `tail + 1` when empty.
    first: Seq,
    entries: VecDeque<Entry>,
}

impl Window {
    /// An empty window whose next seq is `next`.
    #[must_use]
    pub fn new(next: Seq) -> Window {
        Window { first: next, entries: VecDeque::new() }
    }

    /// Oldest seq in the window; one past the tail when empty.
    #[must_use]
    pub fn first(&self) -> Seq {
        self.first
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Appends the next write.
    pub fn push(&mut self, entry: Entry) {
        assert_eq!(entry.record.seq.0, self.first.0 + self.entries.len() as u64, "seqs have no gaps (I1)");
        self.entries.push_back(entry);
    }

    #[must_use]
    pub fn get(&self, seq: Seq) -> Option<&Entry> {
        self.entries.get(self.index(seq)?)
    }

    pub fn get_mut(&mut self, seq: Seq) -> Option<&mut Entry> {
        let index = self.index(seq)?;
        self.entries.get_mut(index)
    }

    /// Entries from `seq` on.
    pub fn from(&self, seq: Seq) -> impl Iterator<Item = &Entry> {
        let skip = usize::try_from(seq.0.saturating_sub(self.first.0)).unwrap_or(usize::MAX);
        self.entries.range(skip.min(self.entries.len())..)
    }

    /// Entries from `seq` on, to be changed.
    pub fn from_mut(&mut self, seq: Seq) -> impl Iterator<Item = &mut Entry> {
        let skip = usize::try_from(seq.0.saturating_sub(self.first.0)).unwrap_or(usize::MAX);
        let skip = skip.min(self.entries.len());
        self.entries.range_mut(skip..)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut()
    }

    /// Bytes that the entries take beside their payloads, above what is always allowed for.
    #[must_use]
    pub fn overhead(&self) -> u64 {
        ((self.entries.len() * size_of::<Entry>()) as u64).saturating_sub(OVERHEAD_FREE_BYTES)
    }

    /// Entries whose client still waits.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.entries.iter().filter(|entry| entry.req.is_some()).count()
    }

    /// Drops settled entries at the front, up to a seq: what is not in the intent log yet has to stay.
    pub fn trim(&mut self, logged: Seq) {
        while self.first <= logged && self.entries.front().is_some_and(Entry::settled) {
            self.entries.pop_front();
            self.first = self.first.next();
        }
    }

    fn index(&self, seq: Seq) -> Option<usize> {
        usize::try_from(seq.0.checked_sub(self.first.0)?).ok()
    }
}
