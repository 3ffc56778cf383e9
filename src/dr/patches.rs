//! Pieces of a batch that come as digests where DR may have the same: put together with what the volume holds.
//!
//! | the range in the volume | the piece |
//! |---|---|
//! | has the digests | is a chunk like any other: of a first sync it is in place already, else it goes into the spool |
//! | differs, or cannot be read | is not: what differs is asked for as data |
//!
//! Nothing follows from when the range was read: what was put together is what the primary has read, or no piece at all.
//! Only what is left in place must not be written to by what was pushed before, so it is read in the order of the replay,
//! and not before its batch has begun here.

use bytes::Bytes;

use crate::core::ids::{Conn, Extent, Seq};
use crate::dr::api::Effect;
use crate::dr::batch::Placed;
use crate::dr::intake::Arrival;
use crate::dr::machine::Machine;
use crate::dr::probes::Probes;
use crate::dr::replay::{Action, Step};
use crate::format::wire::{Message, Patch, RefuseCode};

impl Probes<Patch> {
    /// Bytes of the pieces.
    fn bytes(&self) -> u64 {
        self.all().map(Patch::length).sum()
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
        if self.intake.over_window(self.patches.bytes()) {
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
            let extent = Extent { volume: record.volume, offset: record.offset, length: record.length };
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
        let (index, record) = (patch.index, patch.record);
        let current = self.batch.as_ref().is_some_and(|batch| batch.begin == record.seq);
        let Some(here) = here.filter(|_| current) else {
            return self.patches.waiting.push_front((conn, patch));
        };
        if self.known_chunk(record.seq, index, conn) {
            return;
        }
        let whole = here.len() as u64 == patch.length();
        let data = match if whole { patch.put_together(here) } else { Err(patch.parts()) } {
            Ok(data) => data,
            Err(parts) => return want(conn, &patch, parts, fx),
        };
        let Some(batch) = self.batch.as_mut().filter(|batch| batch.direct && patch.carried == 0) else {
            return self.intake.wait_chunk(index, Arrival { conn, record, data });
        };
        let extent = Extent { volume: record.volume, offset: record.offset, length: record.length };
        batch.unsynced.push(Placed { index, extent, conns: vec![conn] });
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
