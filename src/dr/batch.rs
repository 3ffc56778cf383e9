//! Batches: ranges as of a later seq, all or nothing.
//!
//! Owns the chunks of the batch that comes in, and the moment it is complete. When its parts are applied is
//! [`super::apply`]'s.
//!
//! | | first sync | any other batch |
//! |---|---|---|
//! | chunks go | into the volumes, at once | into the spool |
//! | a chunk is acknowledged | after a sync of the volumes | after a sync of the spool |
//! | before it is complete | no recovery point | the recovery point before it stays (I6) |
//! | complete | the cut jumps | the superblock names it durably, then the cut jumps |
//! | applied | records from before it where no chunk is; records after it | those records, chunks, records after it |
//!
//! A first sync may be carried on by another: its chunks stay where they are, and orders from before the new begin may
//! leave the journal. The writer takes a batch for a first sync until it hears that there is a recovery point; here it is
//! none any more once the first copy is complete, and its chunks are staged. Who carries on what is staged, or forgotten,
//! counts on chunks that are not kept: his batch is never complete, and he begins another.
//!
//! Complete is a batch when its end is in the journal, all chunks that the end counts are durable, and every
//! record between begin and end is durable with its payload; and when it covers the range of every payload from
//! before its begin that is not here (I5). What does not add up is named and not applied (I8).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::core::ids::{Conn, Extent, Seq, SeqRange, Volume};
use crate::core::machine::{DiskKind, Level, Now};
use crate::core::op::Op;
use crate::core::planted::{Bug, planted};
use crate::core::ranges::{RangeSet, VolumeRanges};
use crate::dr::api::{Effect, File};
use crate::dr::history::History;
use crate::dr::machine::{After, Machine, Trouble};
use crate::dr::replay::{Action, Data, Item, Step};
use crate::format::record::{FLAG_NO_HOLE, OrderRecord};
use crate::format::superblock::DIRECT;
use crate::format::wire::Message;
use crate::limits::{LIST_ITEMS_MAX, NEED_AFTER_NS};

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
    pub(super) covered: VolumeRanges,
    /// Everything above `begin` up to here is complete and unbroken.
    pub(super) cursor: Seq,
    /// The volumes may be written (first sync only).
    pub(super) marked: bool,
    /// The record that ends it, once everything it promises is here: it may have to wait for a store to have room.
    pub(super) end: Option<OrderRecord>,
    /// Found at a start: which chunks of a first sync are in the volumes is not known any more.
    forgotten: bool,
    /// Chunks of it that were acknowledged are not here any more: the writer has to begin another.
    disowned: bool,
    /// He has yet to be told.
    untold: bool,
    /// Orders from before its begin were lost here since: it may leave out what they changed, and is never complete.
    pub(super) lacking: bool,
    /// It was being applied before the start, and orders from before its begin are lost here: it is complete once they are
    /// known. With the records that may follow a gap, and before which there is one.
    unsure: Option<BTreeSet<Seq>>,
    /// Chunks written to the volumes and not synced yet, with who waits for them.
    pub(super) unsynced: Vec<Placed>,
    pub(super) writing: BTreeMap<u64, Placed>,
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

    /// One that had begun behind another, which a start found whole and went on with: nothing of this one was kept.
    pub(super) fn unkept(begin: Seq) -> Batch {
        Batch { disowned: true, untold: true, ..Batch::new(begin, false) }
    }

    /// The batch whose chunks are kept here, for the welcome; 0 if what was acknowledged of it is forgotten.
    #[must_use]
    pub fn kept(&self) -> Seq {
        if self.disowned || self.forgotten && self.have.is_empty() { Seq(0) } else { self.begin }
    }

    /// Nothing of it is here any more: its chunks, whose room is free, and the writer has to begin another.
    pub(super) fn forgo(&mut self) -> BTreeMap<u64, Chunk> {
        self.disowned = true;
        self.have = RangeSet::default();
        self.bytes = 0;
        std::mem::take(&mut self.chunks)
    }

    /// Orders from before its begin are lost here, and what it brings is in the volumes in part: a promotion may learn of
    /// them; a writer has to begin another.
    pub(super) fn wait_for_orders(&mut self, lost: BTreeSet<Seq>) {
        (self.disowned, self.unsure) = (true, Some(lost));
    }

    /// Whether it may leave out what orders that are lost here have changed.
    fn lacks_orders(&self, cut: Seq, history: &History) -> bool {
        match &self.unsure {
            Some(lost) => !history.known_between(cut, self.begin, lost),
            None => self.lacking,
        }
    }

    /// The one that it carries on is not kept here.
    pub(super) fn orphan(&mut self, told: bool) {
        (self.lacking, self.disowned, self.untold) = (true, true, !told);
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

impl Committed {
    /// Whether what this order writes is overwritten by the chunks, which are newer.
    pub(super) fn supersedes(&self, record: &OrderRecord) -> bool {
        let brought = |extent| match &self.direct {
            Some(in_place) => in_place.contains(extent),
            None => covered(&self.chunks).contains(extent),
        };
        record.seq < self.begin && record.extent().is_none_or(brought)
    }
}

/// A chunk of a first sync on its way into its volume.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) index: u64,
    pub(super) extent: Extent,
    pub(super) conns: Vec<Conn>,
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

impl Machine {
    /// A record was taken into the history.
    pub(super) fn taken(&mut self, record: &OrderRecord, fx: &mut Vec<Effect>) {
        if record.op != Op::BatchBegin {
            return;
        }
        let old = self.batch.take();
        let stands = record.offset == 0 || old.as_ref().is_some_and(|old| old.direct && old.kept().0 == record.offset);
        let kept = old.clone().filter(|_| planted(Bug::BatchKeepsOldChunks));
        // What those of a first sync brought stays in the volumes, and stays newer than what was ordered before it.
        let brought = old.as_ref().filter(|old| old.direct).map(|old| old.covered.clone()).unwrap_or_default();
        if let Some(old) = old {
            let (given, begin) = (old.begin, record.seq);
            self.keep_leftovers(old.chunks.into_values());
            let mut text = format!("batch {given} gives way to batch {begin}");
            if let kept @ 1.. = self.fillings.leftovers.bytes() {
                write!(text, "; what it brought ({kept} bytes) is used where it still holds").expect("text");
            }
            fx.push(Effect::Log { level: Level::Info, text });
        }
        self.relieved(Trouble::BatchTooLarge, "the batch that did not fit was given up", fx);
        let direct = self.never_synced();
        let text = format!("batch {} begins{}", record.seq, if direct { ": first sync, in place" } else { "" });
        fx.push(Effect::Log { level: Level::Info, text });
        let mut batch = match kept {
            Some(old) => Batch { chunks: old.chunks, have: old.have, ..Batch::new(record.seq, direct) },
            None => Batch { covered: brought, ..Batch::new(record.seq, direct) },
        };
        if !stands && !planted(Bug::CarriedFromNothing) {
            batch.orphan(false);
        }
        self.batch = Some(batch);
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

    /// It is durable that the volumes are being overwritten.
    pub(super) fn direct_marked(&mut self) {
        if let Some(batch) = &mut self.batch {
            batch.marked = true;
        }
    }

    /// The end of a batch, if everything it promises is here.
    pub(super) fn batch_complete(&mut self, now: Now, batch: &Batch, fx: &mut Vec<Effect>) -> Option<OrderRecord> {
        // What had come of it is forgotten: an end that counts no chunks is not to be taken for a copy.
        if batch.lacks_orders(self.cut, &self.history) || batch.forgotten && batch.have.is_empty() {
            return None;
        }
        // Another may have begun behind it, as a promotion learns from the table.
        let begin = batch.begin;
        let end = self.history.end_of(begin).filter(|_| begin > self.cut)?;
        if planted(Bug::BatchIncomplete) {
            return Some(end);
        }
        if batch.cursor < end.seq || batch.have.bytes() != end.pieces() {
            return None;
        }
        let count = end.pieces();
        if !batch.have.contains(0, count) || batch.bytes != end.length {
            let text = format!(
                "batch {begin} does not add up: {} bytes in {count} chunks are here, its end says {} bytes; not applied",
                batch.bytes, end.length
            );
            self.trouble(now, Trouble::Diverged, text, fx);
            return None;
        }
        if !batch.direct && !planted(Bug::BatchHollow) && self.hollow(now, batch, fx) {
            return None;
        }
        Some(end)
    }

    /// The writer ends a batch when all of its chunks were acknowledged: one that is not here then was lost to damage, and
    /// nobody would bring it. The writer hears of it in the next welcome, and begins another batch.
    pub(super) fn disown_batch(&mut self, fx: &mut Vec<Effect>) {
        let Some(batch) = self.batch.as_mut().filter(|it| it.kept() == it.begin) else { return };
        let open = self.history.open_batch(self.cut).filter(|(begin, _)| *begin == batch.begin);
        let count = open.and_then(|(_, end)| end).map_or(0, |end| end.pieces());
        if batch.have.bytes() >= count {
            return;
        }
        batch.disowned = true;
        let text =
            format!("{} chunks of batch {} are lost here: it is begun anew", count - batch.have.bytes(), batch.begin);
        self.have_begun_anew(&text, fx);
    }

    /// Says of a batch whose predecessor is not kept that it is no use, once its writer is there to hear it.
    pub(super) fn disown_orphan(&mut self, fx: &mut Vec<Effect>) {
        let heard = self.links.order.is_some();
        let Some(batch) = self.batch.as_mut().filter(|batch| batch.untold && heard) else { return };
        batch.untold = false;
        let text = format!("batch {} counts on chunks that are not kept here: it is begun anew", batch.begin);
        self.have_begun_anew(&text, fx);
    }

    /// Has the writer connect again, if he is: he is told then that nothing is kept of his batch.
    fn have_begun_anew(&mut self, text: &str, fx: &mut Vec<Effect>) {
        fx.push(Effect::Log { level: Level::Warn, text: text.to_owned() });
        if let Some(conn) = self.links.order {
            self.close(conn, text, fx);
        }
    }

    /// Whether the batch leaves out the range of a payload from before its begin that is not here: the writer
    /// took it for copied when the batch began, and it was given up here meanwhile. The batch is not applied (I5);
    /// the writer is asked for the payloads, and brings them or begins another batch.
    fn hollow(&mut self, now: Now, batch: &Batch, fx: &mut Vec<Effect>) -> bool {
        let left_out = self.left_out(batch);
        let Some(first) = left_out.first().map(|range| range.first) else { return false };
        if now.mono_ns >= self.hollow_due_ns {
            self.hollow_due_ns = now.mono_ns + NEED_AFTER_NS;
            let text = format!(
                "batch {} leaves out the payload of seq {first}, which is not here: not applied, it is asked for",
                batch.begin
            );
            fx.push(Effect::Log { level: Level::Info, text });
            self.need(left_out, fx);
        }
        true
    }

    /// The end of a batch all of whose chunks are here, if it is complete once `lacking` payloads are: of orders up to its end
    /// that it does not bring. In `history`, which may be a plan's.
    pub(super) fn completes(&self, batch: &Batch, history: &History) -> Option<(OrderRecord, Vec<OrderRecord>)> {
        let end = history.end_of(batch.begin).filter(|_| batch.begin > self.cut)?;
        let whole = batch.have.bytes() == end.pieces() && batch.have.contains(0, end.pieces());
        if batch.lacks_orders(self.cut, history)
            || batch.forgotten
            || batch.direct
            || !whole
            || batch.bytes != end.length
        {
            return None;
        }
        let before = left_out_of(history, self.cut, batch);
        let mut lacking: Vec<OrderRecord> = before.iter().filter_map(|seq| Some(history.get(*seq)?.record)).collect();
        for entry in history.above(batch.begin).take_while(|entry| entry.record.seq <= end.seq) {
            if !entry.unbroken {
                return None;
            }
            if !entry.complete() {
                lacking.push(entry.record);
            }
        }
        Some((end, lacking))
    }

    /// Payloads above the cut and from before the batch that are not here, and whose ranges it does not bring.
    pub(super) fn left_out(&self, batch: &Batch) -> Vec<SeqRange> {
        let seqs = left_out_of(&self.history, self.cut, batch);
        seqs.into_iter().take(LIST_ITEMS_MAX).map(|seq| SeqRange { first: seq, last: seq }).collect()
    }
    /// The superblock names the batch, or there was no recovery point before it: the cut jumps to its end.
    pub(super) fn committed(&mut self, fx: &mut Vec<Effect>) {
        let Some(batch) = self.committing.take() else { return };
        // A payload that it relies on may have been found damaged while the superblock was to name it.
        let unchecked = batch.direct || planted(Bug::BatchHollow) || planted(Bug::BatchNotWithdrawn);
        if !unchecked && !self.left_out(&batch).is_empty() {
            return self.withdraw(batch);
        }
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
        if !batch.direct {
            self.promises.cut = self.promises.cut.max(end.seq);
        }
        self.committed = Some(Committed {
            base,
            begin: batch.begin,
            end: end.seq,
            direct: batch.direct.then_some(batch.covered),
            chunks: batch.chunks,
            stage: Stage::Before,
        });
    }

    /// Nothing of the batch is applied yet: it comes in as before, unless another has begun meanwhile.
    fn withdraw(&mut self, batch: Batch) {
        self.keeper.change(|it| it.batch = Seq(0));
        if self.batch.is_none() {
            self.batch = Some(Batch { end: None, ..batch });
            return;
        }
        for chunk in batch.chunks.values() {
            self.intake.spool.free(chunk.pos);
        }
    }

    /// Places chunks that wait: staged in the spool, or straight into the volume.
    pub(super) fn place_chunks(&mut self, fx: &mut Vec<Effect>) {
        self.probe_patches(fx);
        while let Some((index, record)) = self.intake.first_chunk() {
            let current = self.batch.as_ref().map_or(Seq(0), |batch| batch.begin);
            if record.seq > current.max(self.history.tail()) {
                return;
            }
            let Some(batch) = self.batch.as_ref().filter(|batch| batch.begin == record.seq) else {
                if let Some((index, arrival)) = self.intake.take_chunk() {
                    self.chunk_of_another(arrival.conn, record.seq, index);
                }
                continue;
            };
            let (begin, direct, marked) = (batch.begin, batch.direct, batch.marked);
            let item = Item::Chunk { batch: begin, index };
            let known = self.intake.first_chunk_conn().is_some_and(|conn| self.known_chunk(begin, index, conn));
            if known {
                self.intake.take_chunk();
                continue;
            }
            // The order that makes its volume so large comes on another connection, and its store grows when it is needed.
            if self.sizes.outside(&record) {
                return;
            }
            let ready = if direct {
                let end = record.offset + record.length;
                marked && self.replay.room() && self.sizes.has_room(record.volume, end)
            } else {
                self.may_place(record.payload_bytes(), None)
            };
            if !ready {
                return;
            }
            let Some((index, arrival)) = self.intake.take_chunk() else { return };
            if direct {
                let action = chunk_action(item, &record, Data::Memory(arrival.data));
                let reached = self.replay.applied();
                self.replay.push(Step { action, reached, tag: Some(item) });
                if let Some(batch) = &mut self.batch {
                    let extent = place(&record);
                    batch.writing.insert(index, Placed { index, extent, conns: vec![arrival.conn] });
                }
            } else {
                self.intake.store(item, arrival, &mut self.desk, fx);
            }
        }
    }

    /// A chunk is not of the batch that comes in: of one that is complete, here already; of one that was given up, not wanted.
    pub(super) fn chunk_of_another(&mut self, conn: Conn, begin: Seq, index: u64) {
        if begin <= self.cut || self.committing.as_ref().is_some_and(|batch| batch.begin == begin) {
            self.chunks_copied.push((conn, begin, index));
        }
    }

    /// A chunk came twice: acknowledged (again) when it is durable. Whether it did.
    fn chunk_again(&mut self, index: u64, conn: Conn) -> bool {
        let Some(batch) = &self.batch else { return false };
        if batch.have.contains(index, 1) {
            self.chunks_copied.push((conn, batch.begin, index));
            return true;
        }
        let placed = self.placed(index);
        placed.map(|placed| placed.conns.push(conn)).is_some()
    }

    /// Whether a chunk of the batch that comes in is here or on its way into its store; `conn` is told when it is durable.
    pub(super) fn known_chunk(&mut self, batch: Seq, index: u64, conn: Conn) -> bool {
        self.chunk_again(index, conn) || self.intake.also(Item::Chunk { batch, index }, conn)
    }

    /// A chunk of the first sync under way that is in its volume or on its way there, and not durable yet.
    fn placed(&mut self, index: u64) -> Option<&mut Placed> {
        let batch = self.batch.as_mut()?;
        let syncing = self.checkpoints.direct_chunks.iter_mut().filter(|_| self.checkpoints.direct_of == batch.begin);
        let mut all = batch.writing.values_mut().chain(&mut batch.unsynced).chain(syncing);
        all.find(|placed| placed.index == index)
    }

    /// A chunk of a first sync is in its volume, not yet durable there.
    pub(super) fn chunk_written(&mut self, begin: Seq, index: u64) {
        if let Some(batch) = self.batch.as_mut().filter(|batch| batch.begin == begin)
            && let Some(placed) = batch.writing.remove(&index)
        {
            batch.unsynced.push(placed);
        }
    }

    /// One sync of the volumes for all chunks of a first sync that wait.
    pub(super) fn sync_direct(&mut self, fx: &mut Vec<Effect>) {
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
                    for pos in self.fillings.leftovers.brought(place(&record)) {
                        self.intake.spool.free(pos);
                    }
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
}

/// As [`Machine::left_out`].
fn left_out_of(history: &History, cut: Seq, batch: &Batch) -> Vec<Seq> {
    if history.first_missing_above(cut).is_none_or(|seq| seq >= batch.begin) {
        return Vec::new();
    }
    let covered = covered(&batch.chunks);
    let missing = history.missing_before(batch.begin, cut);
    let left_out = missing.filter(|entry| entry.record.extent().is_some_and(|extent| !covered.contains(extent)));
    left_out.map(|entry| entry.record.seq).collect()
}

/// The ranges that chunks bring.
pub(super) fn covered(chunks: &BTreeMap<u64, Chunk>) -> VolumeRanges {
    let mut covered = VolumeRanges::new();
    for Chunk { record, .. } in chunks.values() {
        covered.insert(place(record));
    }
    covered
}

/// Where a piece goes.
pub(super) fn place(record: &OrderRecord) -> Extent {
    Extent { volume: record.volume, offset: record.offset, length: record.length }
}

pub(super) fn unmaps(record: &OrderRecord) -> bool {
    record.op == Op::Trim || record.flags & FLAG_NO_HOLE == 0
}

pub(super) fn chunk_action(item: Item, record: &OrderRecord, data: Data) -> Action {
    if record.op == Op::Write {
        return Action::write(item, *record, data);
    }
    let extent = place(record);
    Action::Zero { extent, unmap: unmaps(record) }
}
