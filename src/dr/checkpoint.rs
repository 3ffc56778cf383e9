//! Checkpoints: what is applied becomes durable in the volumes, and is forgotten; room comes back.
//!
//! | step | durable before it |
//! |---|---|
//! | the superblock names a checkpoint | the volumes, up to it |
//! | records and payloads are forgotten, their room is used again | that superblock |
//!
//! When journal or spool is full and no checkpoint would free anything, this is where that is said, and where
//! what can be given up is given up (I9).

use std::collections::{BTreeMap, BTreeSet};

use crate::core::ids::{Chain, Seq, SeqRange, Ticket, Volume};
use crate::core::machine::{DiskKind, Now};
use crate::core::planted::{Bug, planted};
use crate::dr::api::{Effect, File};
use crate::dr::batch::Placed;
use crate::dr::machine::{After, Machine, Trouble};
use crate::dr::spool::Spool;
use crate::format::record::OrderRecord;
use crate::format::superblock::{DIRECT, SETTLED, SYNCED};
use crate::limits::{DR_CHECKPOINT_BYTES, DR_CHECKPOINT_NS, LIST_ITEMS_MAX, spool_for_any_batch};

/// Checkpoints: what is under way, and when the next is due.
#[derive(Clone, Debug, Default)]
pub struct Checkpoints {
    syncing: BTreeSet<Ticket>,
    target: Seq,
    /// Since when something is applied and not checkpointed.
    pub(super) dirty_since_ns: Option<u64>,
    bytes: u64,
    saving: bool,
    /// Syncs of a first sync's chunks: ticket → done when empty.
    pub(super) direct: BTreeSet<Ticket>,
    pub(super) direct_chunks: Vec<Placed>,
    /// The batch they belong to.
    pub(super) direct_of: Seq,
    pub(super) stopped: bool,
}

impl Checkpoints {
    pub(super) fn idle(&self) -> bool {
        self.syncing.is_empty() && !self.saving
    }

    /// A checkpoint for which the volumes are being synced says no more than this.
    pub(super) fn not_beyond(&mut self, seq: Seq) {
        self.target = self.target.min(seq);
    }
}

impl Machine {
    /// When the next checkpoint is due.
    pub(super) fn checkpoint_due_ns(&self) -> Option<u64> {
        let since = self.checkpoints.dirty_since_ns?;
        // What a checkpoint under way has covered meanwhile needs no other: an idle site sleeps.
        let due = self.checkpoints.idle() && self.replay.applied() > self.history.floor();
        due.then_some(since + DR_CHECKPOINT_NS)
    }

    /// Makes what is applied durable: volumes, then the superblock; then it is forgotten.
    pub(super) fn checkpoint(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let applied = self.replay.applied();
        if self.checkpoints.idle() && applied > self.history.floor() && self.checkpoint_wanted(now) {
            self.checkpoints.target = applied;
            self.checkpoints.bytes = self.replay.applied_bytes();
            self.checkpoints.dirty_since_ns = None;
            self.checkpoints.saving = true;
            for volume in 0..self.options.volumes.len() {
                if planted(Bug::CheckpointUnsynced) {
                    break;
                }
                let volume = Volume(u16::try_from(volume).expect("at most 64 volumes"));
                let ticket = self.desk.disk(fx, File::Volume(volume), DiskKind::Sync);
                self.checkpoints.syncing.insert(ticket);
            }
        } else if self.checkpoints.saving && self.checkpoints.syncing.is_empty() && self.checkpoints.target > Seq(0) {
            self.save_checkpoint();
        }
        if self.checkpoints.idle() && self.skip_unsynced(|it, last| it.frees_journal(last)) {
            return;
        }
        self.stuck(now, fx);
    }

    fn checkpoint_wanted(&self, now: Now) -> bool {
        let bytes = self.replay.applied_bytes() - self.checkpoints.bytes;
        bytes >= DR_CHECKPOINT_BYTES.min(self.intake.spool.size() / 8)
            || self.checkpoint_due_ns().is_some_and(|due| now.mono_ns >= due)
            || self.intake.has_waiting()
            || self.frees_journal(self.replay.applied())
            || self.stopping
            || self.promotion.as_ref().is_some_and(|promotion| promotion.wants_checkpoint())
            || self.committed.as_ref().is_some_and(|committed| self.replay.applied() >= committed.end)
    }

    /// Whether the journal is short of room, and to forget everything up to `seq` makes some.
    fn frees_journal(&self, seq: Seq) -> bool {
        self.journal_short() && self.journal.frees(seq)
    }

    /// Whether a checkpoint is under way or due that makes room in the journal, and what the status table holds may need it.
    pub(super) fn room_is_coming(&self) -> bool {
        let table = self.promotion.as_ref().and_then(|promotion| promotion.table.as_ref());
        let found = table.map_or(0, |table| table.records.len());
        let coming = !self.checkpoints.idle() || self.replay.applied() > self.history.floor();
        found as u64 > self.journal.room() && coming
    }

    /// Records of the status table that the journal takes. A plan waits for no checkpoint; a promotion has.
    pub(super) fn room_to_merge(&self) -> u64 {
        if self.room_is_coming() { u64::MAX } else { self.journal.room() }
    }

    /// A sync of a volume ended.
    pub(super) fn volume_synced(&mut self, ticket: Ticket) {
        if self.checkpoints.direct.remove(&ticket) {
            if self.checkpoints.direct.is_empty() {
                for placed in std::mem::take(&mut self.checkpoints.direct_chunks) {
                    if let Some(batch) = self.batch.as_mut().filter(|batch| batch.begin == self.checkpoints.direct_of) {
                        batch.have(placed.index, placed.extent.length);
                        batch.covered.insert(placed.extent);
                        let told = placed.conns.into_iter().map(|conn| (conn, batch.begin, placed.index));
                        self.chunks_copied.extend(told);
                    }
                }
            }
            return;
        }
        self.checkpoints.syncing.remove(&ticket);
    }

    /// Volumes are synced up to the target: the superblock says so.
    fn save_checkpoint(&mut self) {
        let seq = self.checkpoints.target;
        self.checkpoints.target = Seq(0);
        let chain = self.history.chain_at(seq);
        self.free_payloads(seq);
        let over = self.committed.take_if(|committed| committed.end <= seq);
        for chunk in over.iter().flat_map(|committed| committed.chunks.values()) {
            self.intake.spool.free(chunk.pos);
        }
        let first = over.as_ref().is_some_and(|committed| committed.direct.is_some());
        self.save(seq, chain, over.is_some(), first);
    }

    /// The payloads of records up to `seq` are not needed any more.
    fn free_payloads(&mut self, seq: Seq) {
        let records = self.history.above(self.history.floor()).take_while(|entry| entry.record.seq <= seq);
        let dead: Vec<u64> = records.filter_map(|entry| entry.payload).collect();
        for pos in dead {
            self.intake.spool.free(pos);
        }
    }

    /// Has the superblock say that everything up to `seq` is in the volumes, or not needed.
    fn save(&mut self, seq: Seq, chain: Chain, batch_over: bool, first_sync_over: bool) {
        self.checkpoints.saving = true;
        self.intake.spool.leave_extension();
        let spool_pos = self.intake.spool.first_live();
        let segment = self.journal.first_needed(seq);
        if planted(Bug::SpoolFreedEarly) {
            self.intake.spool.release(spool_pos);
        }
        let durable = self.journal.durable();
        let settled = self.history.settled_at(seq);
        let sizes = self.sizes_at(seq);
        self.keeper.change(|it| {
            it.set(SETTLED, settled);
            it.promised_tail = it.promised_tail.max(durable);
            it.seq = seq;
            it.volumes.iter_mut().zip(&sizes).for_each(|(volume, size)| volume.1 = *size);
            it.chain = chain;
            it.spool_pos = spool_pos;
            it.journal_segment = segment;
            if batch_over {
                it.batch = Seq(0);
            }
            if first_sync_over {
                it.set(DIRECT, false);
                it.set(SYNCED, true);
                it.promised_cut = seq;
            }
        });
        self.keeper.then(After::Checkpointed { seq, spool_pos, segment });
    }

    /// The checkpoint is durable: what it covers is forgotten, its room is free.
    pub(super) fn checkpointed(&mut self, now: Now, seq: Seq, spool_pos: u64, segment: u64, fx: &mut Vec<Effect>) {
        self.checkpoints.saving = false;
        // Set by nothing but a checkpoint, and only one is under way at a time.
        if !self.synced && self.keeper.get().has(SYNCED) {
            self.synced = true;
            self.promises.cut = seq;
        }
        self.intake.spool.release(spool_pos);
        self.shrink_spool();
        self.journal.release(segment);
        // A payload that a batch had covered may have become durable meanwhile.
        self.free_payloads(seq);
        self.history.forget(seq);
        if self.replay.applied() > seq {
            self.checkpoints.dirty_since_ns = Some(now.mono_ns);
        }
        self.made_good(seq, fx);
        self.relieved(Trouble::SpoolFull, "the spool has room again", fx);
    }

    /// Something waits for room and nothing will free any (I9): makes room if it must, and says so.
    fn stuck(&mut self, now: Now, fx: &mut Vec<Effect>) {
        if self.promise_wanted() || !self.growth.idle() {
            return;
        }
        // What a batch that is complete is about to apply makes room, and none of it may be given up any more.
        let complete = self.committing.is_some();
        let settled = self.checkpoints.idle() && self.replay.idle() && self.intake.idle() && !complete;
        if !settled || self.replay.applied() > self.history.floor() {
            return;
        }
        if (self.intake.has_waiting() || self.journal.full()) && self.skip_unsynced(|_, _| true) {
            return;
        }
        // What the last checkpoint could not let go of yet, as nothing stood behind it: nothing is applied that would bring another.
        if self.frees_journal(self.history.floor()) {
            return self.save_floor();
        }
        if !self.intake.has_waiting() {
            return;
        }
        if self.intake.spool.rewind() || self.leftovers_make_room() {
            return self.save_floor();
        }
        let size = self.intake.spool.bytes();
        let waiting = self.intake.first_waiting().filter(|record| record.seq <= self.history.tail());
        let due = self.history.first_missing_above(self.due_above());
        let payload_due = waiting.is_some_and(|record| due.is_some_and(|due| record.seq <= due));
        let staged = self.batch.as_ref().is_some_and(|batch| !batch.direct && batch.begin <= self.history.tail());
        // A chunk waits for the payloads that are due before what is stored; they make no room, but they come. Unless what waits
        // here has taken the window (seed 8396302).
        let shuts_out =
            |record: &OrderRecord| self.intake.shuts_out(record.payload_bytes()) && !planted(Bug::ShutOutForgotten);
        let due_entry = due.filter(|due| *due <= self.intake.highest()).and_then(|due| self.history.get(due));
        let comes = due_entry.is_some_and(|entry| !shuts_out(&entry.record));
        let chunk_due = staged && self.intake.has_waiting_chunks() && !comes;
        // What a whole batch waits with for room in a store is neither given up nor in its own way.
        let held = self.batch_waits_for_room();
        if !held && (payload_due || chunk_due) && self.grow_spool(fx) {
            return;
        }
        if !held && ((payload_due || chunk_due) && self.evict(now, fx) || payload_due && self.forgo_batch(now, fx)) {
            return;
        }
        if let (true, Some(batch)) = (chunk_due, &self.batch) {
            let volumes = self.sizes.known().iter().sum();
            let enough = spool_for_any_batch(volumes) >> 20;
            let refused = self.growth.refused().map_or(String::new(), |why| format!(" ({why})"));
            let text = format!(
                "batch {} of more than {} bytes needs more spool than {} MiB{refused}: set [dr] spool to \"{enough}MiB\", \
                 which holds any batch of this group, or make room for it to grow on its file system, and restart DR; it keeps what \
                 is in it. Or have it go into the volumes, at the cost of the recovery point: farshore recopy",
                batch.begin,
                batch.bytes,
                size >> 20
            );
            self.trouble(now, Trouble::BatchTooLarge, text, fx);
        } else if waiting.is_some() {
            let text = format!("the spool ({size} bytes) is full of payloads that wait for an earlier one");
            self.trouble(now, Trouble::SpoolFull, text, fx);
        }
    }

    /// What batches that gave way have left goes first, a window of it at once, as far as nothing else stands before it.
    /// Whether that moves the floor.
    fn leftovers_make_room(&mut self) -> bool {
        let (floor, _) = self.intake.spool.bounds();
        let enough = floor + self.intake.window_bytes();
        while self.intake.spool.first_live() < enough && self.drop_leftover_in_front() {}
        self.intake.spool.first_live() > floor
    }

    /// Without a recovery point nothing from before the last batch is needed: it brings everything that those before it
    /// have not brought into the volumes, and everything written since the first began. Makes room when journal or spool
    /// is full of that and it is worth it. Whether it did.
    fn skip_unsynced(&mut self, worth: impl Fn(&Machine, Seq) -> bool) -> bool {
        if !self.never_synced() || self.committing.is_some() {
            return false;
        }
        let durable = self.journal.durable();
        let begin = self.history.open_batch(self.cut).map(|(begin, _)| begin);
        let skipped = self.history.above(self.history.floor()).take_while(|it| Some(it.record.seq) != begin);
        let Some(last) = skipped.filter(|it| it.record.seq <= durable).last().map(|it| it.record) else { return false };
        if !worth(self, last.seq) {
            return false;
        }
        self.free_payloads(last.seq);
        self.cut = last.seq;
        self.fed = last.seq;
        self.replay.skip_to(last.seq);
        self.save(last.seq, last.chain, false, false);
        true
    }

    /// The payload or chunk that is due has no room, and nothing will free any: the spool is full of what waits
    /// for a batch, or of what a crash tore. The oldest payloads that are held back give way, a window of them at
    /// once: the writer covers them by a batch.
    fn evict(&mut self, now: Now, fx: &mut Vec<Effect>) -> bool {
        let (floor, _) = self.intake.spool.bounds();
        let enough = floor + self.intake.window_bytes();
        let given_up = self.give_up_until(|spool| spool.first_live() >= enough);
        if let (Some(&first), Some(batch)) = (given_up.first(), &mut self.batch) {
            batch.cursor = batch.cursor.min(first.prev().max(batch.begin));
        }
        if !given_up.is_empty() {
            let text = format!(
                "the spool ({} bytes) is full: {} payloads that were held back are given up; a batch has to cover them",
                self.intake.spool.bytes(),
                given_up.len()
            );
            self.trouble(now, Trouble::SpoolFull, text, fx);
            let ranges: Vec<SeqRange> = given_up.iter().map(|&seq| SeqRange { first: seq, last: seq }).collect();
            for ranges in ranges.chunks(LIST_ITEMS_MAX) {
                self.need(ranges.to_vec(), fx);
            }
        }
        let moved = self.intake.spool.first_live() > floor;
        if moved {
            self.save_floor();
        }
        moved
    }

    /// Gives up payloads that are held back, and what batches that gave way have left between them, in the order in which they
    /// stand, until it is enough. Which.
    pub(super) fn give_up_until(&mut self, enough: impl Fn(&Spool) -> bool) -> BTreeSet<Seq> {
        let held: BTreeMap<u64, Seq> =
            self.history.above(self.cut).filter_map(|entry| Some((entry.payload?, entry.record.seq))).collect();
        let mut given_up = BTreeSet::new();
        while !enough(&self.intake.spool) {
            if self.drop_leftover_in_front() {
                continue;
            }
            let Some(&seq) = held.get(&self.intake.spool.first_live()) else { break };
            self.intake.spool.free(self.intake.spool.first_live());
            self.history.lose(seq);
            given_up.insert(seq);
            self.copied.remove(&seq);
        }
        given_up
    }

    /// Chunks stand where the payload that is due needs room, and will not go before it is here: they and what was
    /// written meanwhile do not fit together. The chunks are given up; in the next batch those writes are ranges, too.
    /// Whether there were any.
    fn forgo_batch(&mut self, now: Now, fx: &mut Vec<Effect>) -> bool {
        let (floor, _) = self.intake.spool.bounds();
        let first = self.intake.spool.first_live();
        let Some(batch) = self.batch.as_mut().filter(|it| it.chunks.values().any(|chunk| chunk.pos == first)) else {
            return false;
        };
        for chunk in batch.forgo().values() {
            self.intake.spool.free(chunk.pos);
        }
        let text = format!(
            "the spool ({} bytes) does not hold batch {} and what was written meanwhile: the batch is begun anew",
            self.intake.spool.bytes(),
            batch.begin
        );
        self.trouble(now, Trouble::SpoolFull, text.clone(), fx);
        // The writer hears of it in the next welcome.
        if let Some(conn) = self.links.order {
            self.close(conn, &text, fx);
        }
        if self.intake.spool.first_live() > floor {
            self.save_floor();
        }
        true
    }

    /// Room in spool and journal that needs no checkpoint of the volumes.
    pub(super) fn save_floor(&mut self) {
        self.checkpoints.saving = true;
        let (seq, spool_pos) = (self.history.floor(), self.intake.spool.first_live());
        let segment = self.journal.first_needed(seq).max(self.keeper.get().journal_segment);
        self.keeper.change(|it| (it.spool_pos, it.journal_segment) = (spool_pos, segment));
        self.keeper.then(After::Checkpointed { seq, spool_pos, segment });
    }
}
