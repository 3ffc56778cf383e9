//! Pieces of a batch that come as digests where DR may have the same: put together with what the volume holds.
//!
//! | the range in the volume | the piece |
//! |---|---|
//! | has the digests | is a chunk like any other: of a first sync it is in place already, else it goes into the spool |
//! | differs, and a batch that gave way has brought it | is read there, over what the volume holds |
//! | differs, or cannot be read | is not: what differs is asked for as data |
//!
//! Nothing follows from when the range was read: what was put together is what the primary has read, or no piece at all.
//! Only what is left in place must not be written to by what was pushed before, so it is read in the order of the replay,
//! and not before its batch has begun here.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use crate::core::ids::{Conn, Extent, Seq, Ticket};
use crate::core::machine::DiskKind;
use crate::dr::api::{Effect, File};
use crate::dr::batch::{Chunk, Placed, place};
use crate::dr::intake::Arrival;
use crate::dr::leftovers::{Leftovers, overlap};
use crate::dr::machine::Machine;
use crate::dr::probes::Probes;
use crate::dr::replay::{Action, Step};
use crate::format::record::OrderRecord;
use crate::format::spool::ENTRY_HEADER_BYTES;
use crate::format::wire::{Message, Patch, RefuseCode};
use crate::limits::ENTRY_ALIGN_BYTES;

impl Probes<Patch> {
    /// Bytes of the pieces.
    fn bytes(&self) -> u64 {
        self.all().map(Patch::length).sum()
    }
}

/// A piece of which the volume lacks something that a batch that gave way had brought.
#[derive(Clone, Debug)]
struct Filling {
    conn: Conn,
    patch: Patch,
    here: BytesMut,
    /// Reads of the spool that are under way.
    reads: usize,
}

/// Batches that gave way, and the pieces that are being put together of what they brought.
#[derive(Clone, Debug, Default)]
pub(super) struct Fillings {
    pub(super) leftovers: Leftovers,
    /// By the first of their reads.
    pieces: BTreeMap<Ticket, Filling>,
    /// Of which piece a read is, which range is read, and after how many bytes of what was read it begins.
    reads: BTreeMap<Ticket, (Ticket, Extent, usize)>,
}

impl Fillings {
    /// Bytes of the pieces.
    fn bytes(&self) -> u64 {
        self.pieces.values().map(|piece| piece.patch.length()).sum()
    }

    /// Who sent them is gone.
    pub(super) fn drop_of(&mut self, conn: Conn) {
        self.pieces.retain(|_, piece| piece.conn != conn);
    }
}

impl Machine {
    /// A piece comes in parts.
    pub(super) fn patch(&mut self, conn: Conn, patch: Patch, fx: &mut Vec<Effect>) {
        if let Err(text) = self.acceptable(&patch.record) {
            return self.refuse(conn, RefuseCode::Protocol, text, fx);
        }
        self.patches.waiting.push_back((conn, patch));
        self.probe_patches(fx);
        if self.intake.over_window(self.patches.bytes() + self.fillings.bytes()) {
            self.refuse(conn, RefuseCode::Protocol, "more pieces than the window granted".into(), fx);
        }
    }

    /// Reads the ranges of pieces that came as patches, as long as there is room for what is read.
    pub(super) fn probe_patches(&mut self, fx: &mut Vec<Effect>) {
        while let Some((conn, patch)) = self.patches.waiting.front() {
            let (conn, index, record) = (*conn, patch.index, patch.record);
            let begin = self.batch.as_ref().map_or(Seq(0), |batch| batch.begin);
            if record.seq > begin.max(self.history.tail()) {
                return;
            }
            let over = begin != record.seq;
            if over {
                self.chunk_of_another(conn, record.seq, index);
            }
            if over || self.known_chunk(record.seq, index, conn) {
                self.patches.waiting.pop_front();
                continue;
            }
            if !self.replay.room() {
                return;
            }
            let Some((conn, patch)) = self.patches.waiting.pop_front() else { return };
            let extent = place(&record);
            // The order that makes its volume so large comes on another connection; and a store that is shorter reads as
            // zeroes behind its end, where it may hold anything once it has grown.
            if self.sizes.outside(&record) || !self.sizes.has_room(record.volume, record.offset + record.length) {
                want(conn, &patch, patch.parts(), fx);
                continue;
            }
            let probe = self.replay.new_probe();
            self.patches.probing.insert(probe, (conn, patch));
            let reached = self.replay.applied();
            self.replay.push(Step { action: Action::Probe { extent, probe }, reached, tag: None });
        }
    }

    /// What is in the place of a piece was read, or let go of.
    pub(super) fn patch_probed(&mut self, probe: u64, here: Option<&Bytes>, fx: &mut Vec<Effect>) {
        let Some((conn, patch)) = self.patches.probing.remove(&probe) else { return };
        let current = self.batch.as_ref().is_some_and(|batch| batch.begin == patch.record.seq);
        let Some(here) = here.filter(|_| current) else {
            return self.patches.waiting.push_front((conn, patch));
        };
        if here.len() as u64 != patch.length() {
            return want(conn, &patch, patch.parts(), fx);
        }
        if let Err(parts) = self.put_together(conn, &patch, here) {
            self.fill(conn, patch, here, parts, fx);
        }
    }

    /// Makes a piece of the batch that comes in of what is here, or says which parts are not.
    fn put_together(&mut self, conn: Conn, patch: &Patch, here: &Bytes) -> Result<(), u64> {
        let (index, record) = (patch.index, patch.record);
        if self.known_chunk(record.seq, index, conn) {
            return Ok(());
        }
        let data = patch.put_together(here)?;
        match self.batch.as_mut().filter(|batch| batch.direct && patch.carried == 0) {
            Some(batch) => batch.unsynced.push(Placed { index, extent: place(&record), conns: vec![conn] }),
            None => self.intake.wait_chunk(index, Arrival { conn, record, data }),
        }
        Ok(())
    }

    /// Reads what a batch that gave way had brought of the parts that are lacking; asks for them if there is nothing.
    fn fill(&mut self, conn: Conn, patch: Patch, here: &Bytes, parts: u64, fx: &mut Vec<Effect>) {
        let staged = self.batch.as_ref().is_some_and(|batch| !batch.direct);
        let lacking = |chunk: &Chunk| lacking(&patch, parts).any(|part| overlap(part, place(&chunk.record)).is_some());
        let mut found = self.fillings.leftovers.within(place(&patch.record));
        found.retain(|chunk| staged && lacking(chunk));
        if found.is_empty() {
            return want(conn, &patch, parts, fx);
        }
        let mut here = BytesMut::from(&here[..]);
        let (first, mut reads) = (self.desk.next(), 0);
        for Chunk { pos, record } in &found {
            let Some(both) = overlap(place(&patch.record), place(record)) else { continue };
            if record.payload_bytes() == 0 {
                lay_over(&mut here, &patch.record, both, None);
                continue;
            }
            let data = ENTRY_HEADER_BYTES as u64 + both.offset - record.offset;
            let from = data / ENTRY_ALIGN_BYTES * ENTRY_ALIGN_BYTES;
            let length = (data + both.length).next_multiple_of(ENTRY_ALIGN_BYTES) - from;
            let kind = DiskKind::Read { offset: self.intake.spool.ring().offset(*pos) + from, length };
            let ticket = self.desk.disk(fx, File::Spool, kind);
            self.fillings.reads.insert(ticket, (first, both, to_usize(data - from)));
            reads += 1;
        }
        let piece = Filling { conn, patch, here, reads };
        if reads == 0 {
            return self.filled(piece, fx);
        }
        self.fillings.pieces.insert(first, piece);
    }

    /// Whether an operation is to read what had been brought.
    pub(super) fn reads_leftover(&self, ticket: Ticket) -> bool {
        self.fillings.reads.contains_key(&ticket)
    }

    /// What had been brought was read, or could not be: nothing then. Whether that was what this operation was for.
    pub(super) fn leftover_read(&mut self, ticket: Ticket, bytes: &Bytes, fx: &mut Vec<Effect>) -> bool {
        let Some((of, range, skip)) = self.fillings.reads.remove(&ticket) else { return false };
        let Some(piece) = self.fillings.pieces.get_mut(&of) else { return true };
        // The entry may have been let go of and written over meanwhile: what is not the same has other digests.
        if let Some(data) = bytes.get(skip..).filter(|data| !data.is_empty()) {
            lay_over(&mut piece.here, &piece.patch.record, range, Some(data));
        }
        piece.reads -= 1;
        if piece.reads == 0
            && let Some(piece) = self.fillings.pieces.remove(&of)
        {
            self.filled(piece, fx);
        }
        true
    }

    fn filled(&mut self, piece: Filling, fx: &mut Vec<Effect>) {
        let Filling { conn, patch, here, .. } = piece;
        if self.batch.as_ref().is_none_or(|batch| batch.begin != patch.record.seq) {
            return self.patches.waiting.push_front((conn, patch));
        }
        if let Err(parts) = self.put_together(conn, &patch, &here.freeze()) {
            want(conn, &patch, parts, fx);
        }
    }

    /// The batch that comes in gives way: what it has staged is kept for the next one.
    pub(super) fn keep_leftovers(&mut self, chunks: impl IntoIterator<Item = Chunk>) {
        for pos in self.fillings.leftovers.keep(chunks) {
            self.intake.spool.free(pos);
        }
    }

    /// Lets go of everything that batches that gave way had staged.
    pub(super) fn drop_leftovers(&mut self) {
        while let Some(pos) = self.fillings.leftovers.pop_first() {
            self.intake.spool.free(pos);
        }
    }

    /// Lets go of it where it stands first in the spool, if it does: elsewhere it would make no room.
    pub(super) fn drop_leftover_in_front(&mut self) -> bool {
        let first = self.intake.spool.first_live();
        let dropped = self.fillings.leftovers.take_at(first);
        if dropped {
            self.intake.spool.free(first);
        }
        dropped
    }

    /// What is in the place of a piece cannot be read.
    pub(super) fn patch_unread(&mut self, probe: u64, fx: &mut Vec<Effect>) {
        if let Some((conn, patch)) = self.patches.probing.remove(&probe) {
            want(conn, &patch, patch.parts(), fx);
        }
    }
}

/// Asks for parts of a piece as data.
fn want(conn: Conn, patch: &Patch, parts: u64, fx: &mut Vec<Effect>) {
    let message = Message::Wanted { batch: patch.record.seq, index: patch.index, parts };
    fx.push(Effect::Send { conn, message });
}

/// The ranges of parts of a piece.
fn lacking(patch: &Patch, parts: u64) -> impl Iterator<Item = Extent> {
    let (record, grain) = (patch.record, patch.grain);
    (0..record.length.div_ceil(grain)).filter(move |part| parts & (1 << part) != 0).map(move |part| {
        let offset = part * grain;
        Extent { volume: record.volume, offset: record.offset + offset, length: grain.min(record.length - offset) }
    })
}

/// Puts what was brought of a range (zeroes, without `data`) in its place in the bytes of a piece.
fn lay_over(here: &mut BytesMut, piece: &OrderRecord, range: Extent, data: Option<&[u8]>) {
    let (from, length) = (to_usize(range.offset - piece.offset), to_usize(range.length));
    let here = &mut here[from..from + length];
    match data {
        Some(data) => here.copy_from_slice(&data[..length]),
        None => here.fill(0),
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("inside a piece in memory")
}
