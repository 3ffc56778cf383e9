//! What a write has left behind that its volume had no room for.
//!
//! Its client is told, and nobody else is held up: its order and its payload cross as if it had been done, for the cut
//! passes no order without its payload. What the volume really holds there is read back, and follows as a write of our own.
//! Until that has crossed, DR's image has the refused write in full, as any disk may after an error.
//!
//! ```text
//!   refused ──► to be read ──room──► piece: newcomers that overlap it wait ──those under way are done──► read ──► ordered
//!                   ▲                                                                                      │
//!                   └───────────────────────────────── no room any more ───────────────────────────────────┘
//! ```
//!
//! 1. What is ordered is what the volume holds after every overlapping write before it, and before every one after it (I1):
//!    those under way are done when the read begins, and others get no seq until the piece has its own.
//! 2. Until it is ordered its bits stay in the intent map, and until DR's cut has passed it the watermark says that ranges
//!    are to be copied: so a start makes both sides equal (I2).
//! 3. With `pace` newcomers wait until it is ordered: they would take every room that becomes free for it, and until it is
//!    ordered DR may have the refused write in place of one that was acknowledged.
//! 4. What a comparison found to differ at DR follows in the same way, behind all of that: nobody waits for it, it takes no more
//!    than half of the FIFO's memory and as many bytes a second as the comparison, and what cannot be read of it is left.
//! 5. While payloads are dropped, the batch that is yet to begin brings it: its pieces are read later.

use bytes::Bytes;

use super::intake::{Room, rounded, touches};
use super::machine::{Effect, File, Kind, Machine, Pending, Stopping};
use crate::core::ids::{Extent, Seq, Volume};
use crate::core::machine::{DiskKind, DiskOp};
use crate::core::modes::Overflow;
use crate::core::op::Op;
use crate::core::planted::{Bug, planted};
use crate::core::ranges::{Cover, VolumeRanges};
use crate::core::sparing::Sparing;
use crate::format::is_zero;
use crate::limits::CHUNK_BYTES_MAX;

/// What part of a bound on the lag one piece is, and its length at the least, bytes.
const LAG_PARTS: u64 = 4;
const PIECE_BYTES_MIN: u64 = 64 << 10;
/// What part of the FIFO's memory one piece of a repair takes at the most.
const REPAIR_PART: u64 = 8;

/// Ranges that refused writes have left, on their way to an order of their own.
#[derive(Clone, Debug)]
pub(super) struct Mending {
    todo: Cover,
    /// No write that overlaps it gets its seq.
    piece: Option<Extent>,
    reading: bool,
    /// Seq of the last one that was ordered.
    ordered: Seq,
    /// Lines about refused writes: a client can cause many.
    pub(super) lines: Sparing,
    /// What a comparison found to differ: it comes after everything else, and holds nobody up for room.
    repairs: Cover,
    /// The piece is of these.
    repairing: bool,
    /// No piece of them before this.
    repair_from_ns: u64,
}

impl Default for Mending {
    fn default() -> Mending {
        let lines = Sparing::new(LINES_PAUSE_NS);
        Mending {
            todo: Cover::default(),
            piece: None,
            reading: false,
            ordered: Seq(0),
            lines,
            repairs: Cover::default(),
            repairing: false,
            repair_from_ns: 0,
        }
    }
}

/// Pause between two of them, nanoseconds.
const LINES_PAUSE_NS: u64 = 1_000_000_000;

impl Mending {
    /// Whether anything has yet to get its order.
    pub(super) fn waits(&self) -> bool {
        self.piece.is_some() || !self.todo.is_empty() || !self.repairs.is_empty()
    }

    /// Bytes that have yet to get their order.
    pub(super) fn bytes(&self) -> u64 {
        self.todo.bytes() + self.repairs.bytes() + self.piece.map_or(0, |piece| piece.length)
    }
}

impl Machine {
    /// Seq of the last order about what a refused write has left.
    #[must_use]
    pub fn mended(&self) -> Seq {
        self.mending.ordered
    }

    /// Whether what a refused write has left has yet to be ordered.
    #[must_use]
    pub fn mends(&self) -> bool {
        self.mending.waits()
    }

    /// Whether a start would have to copy what a refused write has left.
    pub(super) fn mending_open(&self) -> bool {
        let open = self.mending.waits() || self.dr.cut < self.mending.ordered;
        open && !planted(Bug::MendingForgotten)
    }

    /// The volume had no room for a write to this range.
    pub(super) fn mend(&mut self, extent: Extent, fx: &mut Vec<Effect>) {
        if self.options.standalone || planted(Bug::FailedUnmended) {
            return;
        }
        if self.lost_any() {
            return self.lose(extent);
        }
        self.mending.todo.insert(extent);
        // A cycle that began before the refusal does not end with its bits.
        self.intent.want(extent);
        self.save_watermark(fx);
    }

    /// DR does not have there what these volumes hold.
    pub(super) fn repair(&mut self, ranges: &VolumeRanges, fx: &mut Vec<Effect>) {
        for extent in ranges.iter() {
            if self.lost_any() {
                self.lose(extent);
            } else {
                self.mending.repairs.insert(extent);
                self.intent.want(extent);
            }
        }
        self.save_watermark(fx);
    }

    /// Whether what is read back is a piece of a repair.
    pub(super) fn repairs(&self) -> bool {
        self.mending.repairing
    }

    /// A piece of a repair cannot be read here: what is compared once more says so.
    pub(super) fn repair_unread(&mut self) {
        self.mending.piece = None;
        (self.mending.reading, self.mending.repairing) = (false, false);
    }

    /// Why something has yet to be read back.
    pub(super) fn mends_why(&self) -> String {
        let bytes = self.mending.bytes();
        if self.mending.todo.is_empty() && (self.mending.repairing || self.mending.piece.is_none()) {
            return format!("{bytes} bytes differ at DR: what the volumes hold there is sent once more");
        }
        format!("a volume had no room for writes to {bytes} bytes: what it holds there follows them to DR")
    }

    /// Whether a request waits until what overlaps it has been read and has its seq.
    pub(super) fn mending_holds(&self, volume: Volume, kind: &Kind) -> bool {
        let held = self.mending.piece.is_some_and(|piece| touches(volume, kind, piece));
        held && !planted(Bug::MendedBesideWrites)
    }

    /// Whether newcomers wait until the next piece has its order: it has no room, or is being read.
    pub(super) fn mending_first(&mut self) -> bool {
        if self.options.overflow != Overflow::Pace {
            return false;
        }
        let piece = self.mending.piece.filter(|_| !self.mending.repairing);
        let Some(next) = piece.map(|piece| piece.length).or_else(|| self.next_piece(&self.mending.todo)) else {
            return false;
        };
        let lags = self.lag_wait(next);
        piece.is_some() || lags || !matches!(self.room(next), Room::Yes)
    }

    /// Bytes of the next piece: with a bound on the lag in bytes a small part of it, so that room for it comes soon; no more
    /// than the FIFO keeps in memory, of however many refused writes it is.
    fn next_piece(&self, todo: &Cover) -> Option<u64> {
        let part = self.options.lag_max.and_then(|most| most.bytes).map_or(u64::MAX, |most| most / LAG_PARTS);
        let most = u64::from(CHUNK_BYTES_MAX).min(part).min(self.options.fifo_memory_bytes).max(PIECE_BYTES_MIN);
        todo.iter().next().map(|front| front.length.min(most))
    }

    /// Takes the next piece, and reads it once nothing that overlaps it is under way.
    pub(super) fn pump_mending(&mut self, fx: &mut Vec<Effect>) {
        if self.mending.reading || self.stopping != Stopping::No || self.fenced.is_some() {
            return;
        }
        if self.mending.piece.is_none()
            && let Some(length) =
                self.next_piece(&self.mending.todo).filter(|length| self.mending_has_room(*length, false))
        {
            self.mending.piece = self.mending.todo.pop_front(length);
            self.mending.repairing = false;
        }
        if self.mending.piece.is_none()
            && self.mending.todo.is_empty()
            && self.now.mono_ns >= self.mending.repair_from_ns
        {
            let most = self.options.fifo_memory_bytes / REPAIR_PART;
            let next = self.next_piece(&self.mending.repairs).map(|length| length.min(most.max(PIECE_BYTES_MIN)));
            if let Some(length) = next.filter(|length| self.mending_has_room(*length, true)) {
                self.mending.piece = self.mending.repairs.pop_front(length);
                self.mending.repairing = true;
                self.mending.repair_from_ns = self.now.mono_ns + self.repair_pause_ns(length);
            }
        }
        let Some(piece) = self.mending.piece else { return };
        let (from, length) = rounded(piece);
        if self.inflight[usize::from(piece.volume.0)].overlaps(from, length) && !planted(Bug::MendedBesideWrites) {
            return;
        }
        self.mending.reading = true;
        let ticket = self.ticket(Pending::Mending);
        let kind = DiskKind::Read { offset: piece.offset, length: piece.length };
        fx.push(Effect::Disk(DiskOp { ticket, file: File::Volume(piece.volume), kind }));
    }

    /// What the volume holds gets its order.
    pub(super) fn mending_read(&mut self, bytes: &Bytes) {
        let piece = self.mending.piece.take().expect("a piece is read");
        self.mending.reading = false;
        let repairing = std::mem::take(&mut self.mending.repairing);
        if self.fenced.is_some() || !self.mending_has_room(piece.length, repairing) {
            let from = if repairing { &mut self.mending.repairs } else { &mut self.mending.todo };
            return from.insert(piece);
        }
        let hole = is_zero(bytes);
        // It may stay in the queue for long, and what was read belongs to the shell's buffers.
        let data = if hole { Bytes::new() } else { Bytes::copy_from_slice(bytes) };
        let (op, crc) = if hole { (Op::WriteZeroes, 0) } else { (Op::Write, crc32fast::hash(&data)) };
        let record = self.record(op, 0, piece.volume, piece.offset, piece.length, crc);
        self.mending.ordered = record.seq;
        self.append_there(record, data);
    }

    /// The bounds are those of a client's write (I9): what finds none waits for it. A repair leaves half of the FIFO's memory, and
    /// every place that somebody waits for, to those.
    fn mending_has_room(&mut self, bytes: u64, repairs: bool) -> bool {
        let half = self.held.memory + bytes <= self.options.fifo_memory_bytes / 2 || self.held.bytes == 0;
        let fits = !repairs || self.held_requests.is_empty() && half;
        fits && self.lag_exceeded(bytes).is_none() && matches!(self.room(bytes), Room::Yes)
    }

    /// When the next piece of a repair may be taken.
    pub(super) fn repair_due_ns(&self) -> Option<u64> {
        let due = self.mending.repair_from_ns;
        (!self.mending.repairs.is_empty() && self.mending.piece.is_none() && due > self.now.mono_ns).then_some(due)
    }
}
