//! From "received" to "part of the volume": the cut, batches, the feed of the replay, checkpoints.
//!
//! | step | durable before it |
//! |---|---|
//! | the cut moves to seq | every record up to it in the journal, every payload up to it in the spool |
//! | the cut jumps over a batch | all of that, all chunks of the batch, and the superblock that names the batch |
//! | a chunk of a batch reaches a volume | that superblock: from then on a crash redoes the batch (I6) |
//! | records and payloads are forgotten | volumes synced, then the superblock with the checkpoint |
//!
//! Until a batch is complete the volume stays at the recovery point before it (I6); only the first sync,
//! when there is no recovery point yet, writes its chunks in place.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::ids::{Chain, Conn, Extent, Seq, SeqRange, Ticket, Volume};
use crate::core::machine::{DiskKind, Level, Now};
use crate::core::op::Op;
use crate::core::ranges::{RangeSet, VolumeRanges};
use crate::dr::api::{Effect, File};
use crate::dr::history::Entry;
use crate::dr::machine::{After, Machine, Trouble};
use crate::dr::replay::{Action, Data, Item, Step};
use crate::format::record::{FLAG_NO_HOLE, OrderRecord};
use crate::format::superblock::{DIRECT, SYNCED};
use crate::format::wire::Message;
use crate::limits::{DR_CHECKPOINT_BYTES, DR_CHECKPOINT_NS, LIST_ITEMS_MAX};

/// A chunk that is durable in the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub pos: u64,
    pub record: OrderRecord,
}

/// A batch that comes in.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Seq of its begin: its name.
    pub begin: Seq,
    /// Its chunks go straight into the volumes: a first sync.
    pub direct: bool,
    /// Staged chunks by index.
    pub chunks: BTreeMap<u64, Chunk>,
    /// Indexes of the chunks that are durable, and the bytes they cover.
    pub have: RangeSet,
    pub bytes: u64,
    /// What the chunks of a first sync cover: records from before the begin are older than that.
    covered: VolumeRanges,
    /// Everything above `begin` up to here is complete and unbroken.
    cursor: Seq,
    /// The volumes may be written (first sync only).
    marked: bool,
    /// The record that ends it, once everything it promises is here.
    end: Option<OrderRecord>,
    /// Found at a start: which chunks of a first sync are in the volumes is not known any more.
    forgotten: bool,
    /// Chunks written to the volumes and not synced yet, with who waits for them.
    unsynced: Vec<Placed>,
    writing: BTreeMap<u64, Placed>,
}

impl Batch {
    #[must_use]
    pub fn new(begin: Seq, direct: bool) -> Batch {
        Batch { begin, direct, cursor: begin, ..Batch::default() }
    }

    /// A first sync found at a start: it begins again if any chunk of it was acknowledged before.
    #[must_use]
    pub fn forgotten(begin: Seq) -> Batch {
        Batch { forgotten: true, ..Batch::new(begin, true) }
    }

    /// The batch whose chunks are kept here, for the welcome; 0 if what was acknowledged of it is forgotten.
    #[must_use]
    pub fn kept(&self) -> Seq {
        if self.forgotten && self.have.is_empty() { Seq(0) } else { self.begin }
    }

    /// A chunk is durable.
    pub fn have(&mut self, index: u64, length: u64) {
        if !self.have.contains(index, 1) {
            self.have.insert(index, 1);
            self.bytes += length;
        }
    }
}

/// A complete batch that is being applied.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The recovery point before it.
    pub base: Seq,
    pub begin: Seq,
    pub end: Seq,
    pub chunks: BTreeMap<u64, Chunk>,
    pub stage: Stage,
    /// Of a first sync: its chunks are in the volumes already, and cover this.
    pub direct: Option<VolumeRanges>,
}

/// A chunk of a first sync on its way into its volume.
#[derive(Clone, Debug)]
struct Placed {
    index: u64,
    extent: Extent,
    conns: Vec<Conn>,
}

/// What is fed to the replay next while a batch is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Records before the begin whose payloads did arrive.
    Before,
    /// Chunks from this index on.
    Chunks(u64),
    /// Records from the begin to the end.
    After,
}

/// Checkpoints: what is under way, and when the next is due.
#[derive(Clone, Debug, Default)]
pub struct Checkpoints {
    syncing: BTreeSet<Ticket>,
    target: Seq,
    /// Since when something is applied and not checkpointed.
    dirty_since_ns: Option<u64>,
    bytes: u64,
    saving: bool,
    /// Syncs of a first sync's chunks: ticket → done when empty.
    direct: BTreeSet<Ticket>,
    direct_chunks: Vec<Placed>,
    /// The batch they belong to.
    direct_of: Seq,
    pub stopped: bool,
}

impl Checkpoints {
    pub fn start(&mut self, _now: Now) {}

    fn idle(&self) -> bool {
        self.syncing.is_empty() && !self.saving
    }
}

impl Machine {
    /// A record was taken into the history.
    pub(super) fn taken(&mut self, record: &OrderRecord, fx: &mut Vec<Effect>) {
        if record.op != Op::BatchBegin {
            return;
        }
        if let Some(old) = self.batch.take() {
            let text = format!("batch {} is given up for batch {}", old.begin, record.seq);
            fx.push(Effect::Log { level: Level::Info, text });
            for chunk in old.chunks.values() {
                self.intake.spool.free(chunk.pos);
            }
        }
        self.relieved(Trouble::BatchTooLarge, "the batch that did not fit was given up", fx);
        let direct = self.never_synced();
        let text = format!("batch {} begins{}", record.seq, if direct { ": first sync, in place" } else { "" });
        fx.push(Effect::Log { level: Level::Info, text });
        self.batch = Some(Batch::new(record.seq, direct));
        self.mark_direct();
    }

    /// Before a first sync writes to the volumes, the superblock says that it does.
    pub(super) fn mark_direct(&mut self) {
        let marked = self.direct();
        let Some(batch) = self.batch.as_mut().filter(|batch| batch.direct) else { return };
        batch.marked = marked;
        if !marked {
            self.keeper.change(|it| it.set(DIRECT, true));
            self.keeper.then(After::DirectMarked);
        }
    }

    /// Without a recovery point nothing from before the first batch is needed: it copies everything. Makes
    /// room when journal or spool is full of that. Whether it did. (What was ordered after the first batch
    /// began is not in later ones, if its payload came.)
    fn skip_unsynced(&mut self) -> bool {
        if !self.never_synced() || self.committing.is_some() || !self.replay.idle() {
            return false;
        }
        let durable = self.journal.durable();
        let skipped = self.history.above(self.history.floor()).take_while(|it| it.record.op != Op::BatchBegin);
        let Some(last) = skipped.filter(|it| it.record.seq <= durable).last().map(|it| it.record) else { return false };
        let held: Vec<u64> = self
            .history
            .above(self.history.floor())
            .take_while(|it| it.record.seq <= last.seq)
            .filter_map(|it| it.payload)
            .collect();
        for pos in held {
            self.intake.spool.free(pos);
        }
        self.cut = last.seq;
        self.fed = last.seq;
        self.replay.skip_to(last.seq);
        self.save(last.seq, last.chain, false, false);
        true
    }

    /// It is durable that the volumes are being overwritten.
    pub(super) fn direct_marked(&mut self) {
        if let Some(batch) = &mut self.batch {
            batch.marked = true;
        }
    }

    /// Moves the cut as far as what is durable allows, and completes the batch when it can be.
    pub(super) fn advance_cut(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let durable = self.journal.durable();
        if self.synced() {
            self.cut = self.history.unbroken_from(self.cut, durable);
        }
        if self.committing.is_some() || self.committed.is_some() {
            return;
        }
        let Some(mut batch) = self.batch.take() else { return };
        if batch.begin <= durable {
            batch.cursor = self.history.unbroken_from(batch.cursor, durable);
            batch.end = self.batch_complete(now, &batch, fx);
        }
        if batch.end.is_none() {
            self.batch = Some(batch);
            return;
        }
        let (begin, direct) = (batch.begin, batch.direct);
        self.committing = Some(batch);
        if direct {
            // There is no recovery point to go back to: whatever happens before it is applied, the first sync
            // begins again.
            return self.committed(fx);
        }
        self.keeper.change(|it| it.batch = begin);
        self.keeper.then(After::Committed);
    }

    /// The end of a batch, if everything it promises is here.
    fn batch_complete(&mut self, now: Now, batch: &Batch, fx: &mut Vec<Effect>) -> Option<OrderRecord> {
        let (begin, end) = self.history.open_batch(self.cut)?;
        let end = end?;
        if begin != batch.begin || batch.cursor < end.seq || batch.have.bytes() != u64::from(end.payload_crc) {
            return None;
        }
        let count = u64::from(end.payload_crc);
        if !batch.have.contains(0, count) || batch.bytes != end.length {
            let text = format!(
                "batch {begin} does not add up: {} bytes in {count} chunks are here, its end says {} bytes; not applied",
                batch.bytes, end.length
            );
            self.trouble(now, Trouble::Diverged, text, fx);
            return None;
        }
        Some(end)
    }

    /// The superblock names the batch, or there was no recovery point before it: the cut jumps to its end.
    pub(super) fn committed(&mut self, fx: &mut Vec<Effect>) {
        let Some(batch) = self.committing.take() else { return };
        let end = batch.end.expect("only a batch that is complete is committed");
        let base = self.cut;
        let text = format!(
            "batch {} is complete: {} bytes in {} chunks; consistent again at seq {}",
            batch.begin,
            batch.bytes,
            batch.have.bytes(),
            end.seq
        );
        fx.push(Effect::Log { level: Level::Info, text });
        self.relieved(Trouble::SpoolFull, "the spool has room again", fx);
        self.cut = end.seq;
        self.committed = Some(Committed {
            base,
            begin: batch.begin,
            end: end.seq,
            direct: batch.direct.then_some(batch.covered),
            chunks: batch.chunks,
            stage: Stage::Before,
        });
    }

    /// Gives the replay what may be applied, as long as it has room.
    pub(super) fn feed(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let held = self.replay_held();
        loop {
            let mut fed = false;
            while !held && self.replay.room() {
                let Some(step) = self.next_step() else { break };
                self.replay.push(step);
                fed = true;
            }
            self.replay.pump(&mut self.desk, fx);
            for item in self.replay.finished() {
                if let Item::Chunk { batch, index } = item {
                    self.chunk_written(batch, index);
                }
            }
            if !fed {
                break;
            }
        }
        self.sync_direct(fx);
        if self.checkpoints.dirty_since_ns.is_none() && self.replay.applied() > self.history.floor() {
            self.checkpoints.dirty_since_ns = Some(now.mono_ns);
        }
    }

    /// The next step of the order, if it may be applied.
    fn next_step(&mut self) -> Option<Step> {
        if let Some(step) = self.pieces.pop_front() {
            return Some(step);
        }
        let Some(committed) = self.committed.as_ref().filter(|it| self.fed < it.end) else {
            let entry = *self.history.next_after(self.fed).filter(|entry| entry.record.seq <= self.cut)?;
            return self.record_step(&entry, entry.record.seq);
        };
        let (base, begin, end, stage) = (committed.base, committed.begin, committed.end, committed.stage);
        match stage {
            Stage::Before => loop {
                let Some(entry) = self.history.next_after(self.fed).copied().filter(|it| it.record.seq < begin) else {
                    self.stage(Stage::Chunks(0));
                    return self.next_step();
                };
                if entry.complete() {
                    let step = self.record_step(&entry, entry.record.seq.min(base))?;
                    return self.outside_of_chunks(step);
                }
                self.fed = entry.record.seq;
            },
            Stage::Chunks(from) => {
                let Some((&index, &chunk)) = committed.chunks.range(from..).next() else {
                    self.fed = begin;
                    self.stage(Stage::After);
                    return self.next_step();
                };
                self.stage(Stage::Chunks(index + 1));
                let item = Item::Chunk { batch: begin, index };
                let action = chunk_action(item, &chunk.record, Data::Spool(chunk.pos));
                Some(Step { action, reached: base, tag: None })
            }
            Stage::After => {
                let entry = *self.history.next_after(self.fed).filter(|entry| entry.record.seq <= end)?;
                let seq = entry.record.seq;
                self.record_step(&entry, if seq == end { end } else { base })
            }
        }
    }

    /// A record from before a first sync changes only what the chunks, which are newer, do not cover. (Of a
    /// staged batch the chunks come later and overwrite it.) Each batch of a first sync covers what those
    /// that were given up before it did.
    fn outside_of_chunks(&mut self, step: Step) -> Option<Step> {
        let Some(covered) = self.committed.as_ref().and_then(|committed| committed.direct.as_ref()) else {
            return Some(step);
        };
        let extent = match &step.action {
            Action::Nothing => return Some(step),
            Action::Zero { extent, .. } => *extent,
            Action::Write { record, .. } => record.extent()?,
        };
        if !covered.intersects(extent) {
            return Some(step);
        }
        let mut open = RangeSet::new();
        open.insert(extent.offset, extent.length);
        let within = covered.volume(extent.volume);
        for (offset, length) in within.iter().flat_map(|set| set.iter()) {
            open.remove(offset, length);
        }
        for (offset, length) in open.iter() {
            let part = Extent { offset, length, ..extent };
            let action = match &step.action {
                Action::Zero { unmap, .. } => Action::Zero { extent: part, unmap: *unmap },
                Action::Write { item, record, data, .. } => {
                    let skip = offset - extent.offset;
                    Action::Write { item: *item, record: *record, data: data.clone(), skip, length }
                }
                Action::Nothing => Action::Nothing,
            };
            self.pieces.push_back(Step { action, reached: step.reached, tag: None });
        }
        self.pieces.push_back(Step { action: Action::Nothing, reached: step.reached, tag: None });
        self.pieces.pop_front()
    }

    fn stage(&mut self, stage: Stage) {
        if let Some(committed) = &mut self.committed {
            committed.stage = stage;
        }
    }

    fn record_step(&mut self, entry: &Entry, reached: Seq) -> Option<Step> {
        let record = entry.record;
        let action = match record.op {
            Op::Write if record.length > 0 => {
                let pos = entry.payload?;
                let data = self.intake.recall(record.seq).map_or(Data::Spool(pos), Data::Memory);
                Action::write(Item::Payload(record.seq), record, data)
            }
            Op::WriteZeroes | Op::Trim => match record.extent() {
                Some(extent) => Action::Zero { extent, unmap: unmaps(&record) },
                None => Action::Nothing,
            },
            _ => Action::Nothing,
        };
        self.fed = record.seq;
        self.fed_writes += u64::from(record.op.changes_volume());
        Some(Step { action, reached, tag: None })
    }

    /// An entry read back from the spool is not what was stored there (I8): named, asked for, never applied.
    pub(super) fn damaged(&mut self, now: Now, item: Item, why: &str, fx: &mut Vec<Effect>) {
        let committed = self.committed.as_ref().map(|it| (it.begin, it.end));
        let text = match item {
            Item::Payload(seq) => format!("the payload of seq {seq} in the spool is damaged ({why}): asked for again"),
            Item::Chunk { batch, index } => format!(
                "chunk {index} of batch {batch} in the spool is damaged ({why}): the batch cannot be applied; \
                 a full copy has to be made again"
            ),
        };
        fx.push(Effect::Log { level: Level::Error, text: text.clone() });
        self.trouble(now, Trouble::Damage, text, fx);
        match item {
            Item::Payload(seq) => {
                if let Some(pos) = self.history.get(seq).and_then(|entry| entry.payload) {
                    self.intake.spool.free(pos);
                }
                self.history.lose(seq);
                self.fed = seq.prev();
                self.pieces.clear();
                match committed {
                    Some((begin, end)) if seq <= end => {
                        self.stage(if seq < begin { Stage::Before } else { Stage::After });
                    }
                    _ => self.cut = seq.prev(),
                }
                if let Some(batch) = &mut self.batch {
                    batch.cursor = batch.cursor.min(seq.prev().max(batch.begin));
                }
                // Room that waiting payloads hope for is needed for this one first.
                self.intake.drop_waiting(None);
                self.need(vec![SeqRange { first: seq, last: seq }], fx);
                for stream in self.links.streams() {
                    self.close(stream, "a damaged payload has to be sent again first", fx);
                }
            }
            Item::Chunk { index, .. } => self.stage(Stage::Chunks(index)),
        }
    }

    /// Places chunks that wait: staged in the spool, or straight into the volume.
    pub(super) fn place_chunks(&mut self, fx: &mut Vec<Effect>) {
        while let Some((index, record)) = self.intake.first_chunk() {
            let current = self.batch.as_ref().map_or(Seq(0), |batch| batch.begin);
            if record.seq > current.max(self.history.tail()) {
                return;
            }
            let Some(batch) = self.batch.as_ref().filter(|batch| batch.begin == record.seq) else {
                // Of a batch that is complete: here already. Of one that was given up: not wanted.
                if let Some((index, arrival)) = self.intake.take_chunk()
                    && (record.seq <= self.cut || self.committing.as_ref().is_some_and(|it| it.begin == record.seq))
                {
                    self.chunks_copied.push((arrival.conn, record.seq, index));
                }
                continue;
            };
            let (begin, direct, marked) = (batch.begin, batch.direct, batch.marked);
            let item = Item::Chunk { batch: begin, index };
            let known = batch.have.contains(index, 1)
                || batch.writing.contains_key(&index)
                || batch.unsynced.iter().any(|it| it.index == index)
                || self.checkpoints.direct_of == begin
                    && self.checkpoints.direct_chunks.iter().any(|it| it.index == index);
            if known || self.also_chunk(item) {
                let Some((index, arrival)) = self.intake.take_chunk() else { return };
                self.chunk_again(index, &arrival.record, arrival.conn);
                continue;
            }
            let ready =
                if direct { marked && self.replay.room() } else { self.may_place(record.payload_bytes(), None) };
            if !ready {
                return;
            }
            let Some((index, arrival)) = self.intake.take_chunk() else { return };
            if direct {
                let action = chunk_action(item, &record, Data::Memory(arrival.data));
                let reached = self.replay.applied();
                self.replay.push(Step { action, reached, tag: Some(item) });
                if let Some(batch) = &mut self.batch {
                    let extent = Extent { volume: record.volume, offset: record.offset, length: record.length };
                    batch.writing.insert(index, Placed { index, extent, conns: vec![arrival.conn] });
                }
            } else {
                self.intake.store(item, arrival, &mut self.desk, fx);
            }
        }
    }

    fn also_chunk(&mut self, item: Item) -> bool {
        let conn = self.intake.first_chunk_conn();
        conn.is_some_and(|conn| self.intake.also(item, conn))
    }

    /// A chunk came twice: acknowledged (again) when it is durable.
    fn chunk_again(&mut self, index: u64, record: &OrderRecord, conn: Conn) {
        let Some(batch) = &mut self.batch else { return };
        if batch.have.contains(index, 1) {
            self.chunks_copied.push((conn, record.seq, index));
        } else if let Some(placed) = batch.writing.get_mut(&index) {
            placed.conns.push(conn);
        } else if let Some(placed) = batch.unsynced.iter_mut().find(|it| it.index == index) {
            placed.conns.push(conn);
        }
    }

    /// A chunk of a first sync is in its volume, not yet durable there.
    fn chunk_written(&mut self, begin: Seq, index: u64) {
        if let Some(batch) = self.batch.as_mut().filter(|batch| batch.begin == begin)
            && let Some(placed) = batch.writing.remove(&index)
        {
            batch.unsynced.push(placed);
        }
    }

    /// One sync of the volumes for all chunks of a first sync that wait.
    fn sync_direct(&mut self, fx: &mut Vec<Effect>) {
        let Some(batch) = &mut self.batch else { return };
        if batch.unsynced.is_empty() || !self.checkpoints.direct.is_empty() {
            return;
        }
        self.checkpoints.direct_chunks = std::mem::take(&mut batch.unsynced);
        self.checkpoints.direct_of = batch.begin;
        for volume in 0..self.options.volumes.len() {
            let volume = Volume(u16::try_from(volume).expect("at most 64 volumes"));
            let ticket = self.desk.disk(fx, File::Volume(volume), DiskKind::Sync);
            self.checkpoints.direct.insert(ticket);
        }
    }

    /// A chunk is durable, in the spool (`pos`) or in its volume.
    pub(super) fn chunk_stored(
        &mut self,
        begin: Seq,
        index: u64,
        pos: Option<u64>,
        record: OrderRecord,
        conns: &[Conn],
    ) {
        match &mut self.batch {
            Some(batch) if batch.begin == begin => {
                batch.have(index, record.length);
                if let Some(pos) = pos {
                    batch.chunks.insert(index, Chunk { pos, record });
                }
                self.chunks_copied.extend(conns.iter().map(|&conn| (conn, begin, index)));
            }
            _ => {
                if let Some(pos) = pos {
                    self.intake.spool.free(pos);
                }
            }
        }
    }

    /// Acknowledges chunks whose batch has its begin in the journal.
    pub(super) fn acknowledge_chunks(&mut self, durable: Seq, fx: &mut Vec<Effect>) {
        if self.chunks_copied.is_empty() {
            return;
        }
        let mut ready: BTreeMap<(Conn, Seq), Vec<u64>> = BTreeMap::new();
        for (conn, batch, index) in self.chunks_copied.extract_if(.., |it| it.1 <= durable) {
            ready.entry((conn, batch)).or_default().push(index);
        }
        for ((conn, batch), indexes) in ready {
            if self.links.peers.contains_key(&conn) {
                for indexes in indexes.chunks(LIST_ITEMS_MAX) {
                    let message = Message::ChunksDurable { batch, indexes: indexes.to_vec() };
                    fx.push(Effect::Send { conn, message });
                }
            }
        }
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
                let volume = Volume(u16::try_from(volume).expect("at most 64 volumes"));
                let ticket = self.desk.disk(fx, File::Volume(volume), DiskKind::Sync);
                self.checkpoints.syncing.insert(ticket);
            }
        } else if self.checkpoints.saving && self.checkpoints.syncing.is_empty() && self.checkpoints.target > Seq(0) {
            self.save_checkpoint();
        }
        self.stuck(now, fx);
    }

    fn checkpoint_wanted(&self, now: Now) -> bool {
        let bytes = self.replay.applied_bytes() - self.checkpoints.bytes;
        bytes >= DR_CHECKPOINT_BYTES.min(self.intake.spool.size() / 8)
            || self.checkpoint_due_ns().is_some_and(|due| now.mono_ns >= due)
            || self.intake.has_waiting()
            || self.journal.full()
            || self.stopping
            || self.promotion.as_ref().is_some_and(|promotion| promotion.wants_checkpoint())
            || self.committed.as_ref().is_some_and(|committed| self.replay.applied() >= committed.end)
    }

    /// Volumes are synced up to the target: the superblock says so.
    fn save_checkpoint(&mut self) {
        let seq = self.checkpoints.target;
        self.checkpoints.target = Seq(0);
        let chain = self.history.chain_at(seq);
        let dead: Vec<u64> = self
            .history
            .above(self.history.floor())
            .take_while(|entry| entry.record.seq <= seq)
            .filter_map(|entry| entry.payload)
            .collect();
        for pos in dead {
            self.intake.spool.free(pos);
        }
        let over = self.committed.take_if(|committed| committed.end <= seq);
        for chunk in over.iter().flat_map(|committed| committed.chunks.values()) {
            self.intake.spool.free(chunk.pos);
        }
        let first = over.as_ref().is_some_and(|committed| committed.direct.is_some());
        self.save(seq, chain, over.is_some(), first);
    }

    /// Has the superblock say that everything up to `seq` is in the volumes, or not needed.
    fn save(&mut self, seq: Seq, chain: Chain, batch_over: bool, first_sync_over: bool) {
        self.checkpoints.saving = true;
        let spool_pos = self.intake.spool.first_live();
        let segment = self.journal.first_needed(seq);
        self.keeper.change(|it| {
            it.seq = seq;
            it.chain = chain;
            it.spool_pos = spool_pos;
            it.journal_segment = segment;
            if batch_over {
                it.batch = Seq(0);
            }
            if first_sync_over {
                it.set(DIRECT, false);
                it.set(SYNCED, true);
            }
        });
        self.keeper.then(After::Checkpointed { seq, spool_pos, segment });
    }

    /// The checkpoint is durable: what it covers is forgotten, its room is free.
    pub(super) fn checkpointed(&mut self, now: Now, seq: Seq, spool_pos: u64, segment: u64, fx: &mut Vec<Effect>) {
        self.checkpoints.saving = false;
        // No change of it is made but by a checkpoint, and only one is under way at a time.
        self.synced = self.keeper.get().has(SYNCED);
        self.intake.spool.release(spool_pos);
        self.journal.release(segment);
        self.history.forget(seq);
        if self.replay.applied() > seq {
            self.checkpoints.dirty_since_ns = Some(now.mono_ns);
        }
        self.relieved(Trouble::SpoolFull, "the spool has room again", fx);
    }

    /// Something waits for room and nothing will free any (I9): makes room if it must, and says so.
    fn stuck(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let settled = self.checkpoints.idle() && self.replay.idle() && self.intake.idle();
        if !settled || self.replay.applied() > self.history.floor() {
            return;
        }
        if (self.intake.has_waiting() || self.journal.full()) && self.skip_unsynced() {
            return;
        }
        if !self.intake.has_waiting() {
            return;
        }
        if self.intake.spool.rewind() {
            return self.save_floor();
        }
        let size = self.intake.spool.size();
        let waiting = self.intake.first_waiting().filter(|record| record.seq <= self.history.tail());
        let due = self.history.first_missing_above(self.due_above());
        if waiting.is_some_and(|record| due.is_some_and(|due| record.seq <= due)) && self.evict(now, fx) {
            return;
        }
        if let (true, Some(batch)) = (self.intake.has_waiting_chunks(), &self.batch)
            && !batch.direct
            && batch.begin <= self.history.tail()
        {
            let text = format!(
                "batch {} of more than {} bytes needs more spool than {size} bytes: raise [dr] spool",
                batch.begin, batch.bytes
            );
            self.trouble(now, Trouble::BatchTooLarge, text, fx);
        } else if waiting.is_some() {
            let text = format!("the spool ({size} bytes) is full of payloads that wait for an earlier one");
            self.trouble(now, Trouble::SpoolFull, text, fx);
        }
    }

    /// The payload that everything waits for has no room: torn entries of a crash hold it. The oldest payload
    /// that is held back gives way; it is asked for again.
    fn evict(&mut self, now: Now, fx: &mut Vec<Effect>) -> bool {
        let pos = self.intake.spool.first_live();
        let held = self.history.above(self.cut).find(|entry| entry.payload == Some(pos)).map(|entry| entry.record.seq);
        let (floor, _) = self.intake.spool.bounds();
        if held.is_none() && pos == floor {
            return false;
        }
        if let Some(seq) = held.filter(|_| pos == floor) {
            let text = format!("the spool is too full for the next payload due: seq {seq}, held back, is given up");
            self.trouble(now, Trouble::SpoolFull, text, fx);
            self.intake.spool.free(pos);
            self.history.lose(seq);
            if let Some(batch) = &mut self.batch {
                batch.cursor = batch.cursor.min(seq.prev().max(batch.begin));
            }
            self.need(vec![SeqRange { first: seq, last: seq }], fx);
        }
        self.save_floor();
        true
    }

    /// Room in the spool that needs no checkpoint of the volumes.
    fn save_floor(&mut self) {
        self.checkpoints.saving = true;
        let (seq, spool_pos) = (self.history.floor(), self.intake.spool.first_live());
        self.keeper.change(|it| it.spool_pos = spool_pos);
        let segment = self.keeper.get().journal_segment;
        self.keeper.then(After::Checkpointed { seq, spool_pos, segment });
    }
}

fn unmaps(record: &OrderRecord) -> bool {
    record.op == Op::Trim || record.flags & FLAG_NO_HOLE == 0
}

fn chunk_action(item: Item, record: &OrderRecord, data: Data) -> Action {
    if record.op == Op::Write {
        return Action::write(item, *record, data);
    }
    let extent = Extent { volume: record.volume, offset: record.offset, length: record.length };
    Action::Zero { extent, unmap: unmaps(record) }
}
