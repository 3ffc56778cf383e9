//! From "received" to "part of the volume": the cut, and what is fed to the replay.
//!
//! | step | durable before it |
//! |---|---|
//! | the cut moves to seq | every record up to it in the journal, every payload up to it in the spool |
//! | the cut jumps over a batch | all of that, all chunks of the batch, and the superblock that names the batch |
//! | a chunk of a batch reaches a volume | that superblock: from then on a crash redoes the batch (I6) |
//!
//! Until a batch is complete the volume stays at the recovery point before it (I6); only the first sync,
//! when there is no recovery point yet, writes its chunks in place.

use crate::core::ids::{Extent, Seq, SeqRange};
use crate::core::machine::{Level, Now};
use crate::core::op::Op;
use crate::core::planted::{Bug, planted};
use crate::core::ranges::{RangeSet, VolumeRanges};
use crate::dr::api::Effect;
use crate::dr::batch::{Batch, Stage, chunk_action, unmaps};
use crate::dr::history::Entry;
use crate::dr::machine::{After, Machine, Trouble};
use crate::dr::replay::{Action, Data, Item, Step};

impl Machine {
    /// Moves the cut as far as what is durable allows, and completes the batch when it can be.
    pub(super) fn advance_cut(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let early = planted(Bug::CutPastJournal);
        let durable = if early { self.history.tail() } else { self.journal.durable() };
        if self.synced() {
            // Nothing moves it on to where a promotion is not to go.
            let until = self.sizes.stops_at.map_or(durable, |stop| stop.min(durable));
            self.cut = self.history.unbroken_from(self.cut, until);
        }
        // A site that was promoted takes none any more.
        if self.committing.is_some() || self.committed.is_some() || self.replay_held() {
            return;
        }
        let Some(mut batch) = self.batch.take() else { return };
        if batch.begin <= durable {
            batch.cursor = self.history.unbroken_from(batch.cursor, durable);
            batch.end = self.batch_complete(now, &batch, fx);
        }
        let Some(end) = batch.end.map(|end| end.seq) else {
            self.batch = Some(batch);
            return self.disown_batch(fx);
        };
        // Once it is named it has to be applied as a whole: not before it can be. Of a first sync on, a store has the size that
        // the superblock says, or has lost it.
        if end > self.ceiling() || !self.have_room(end) {
            self.batch = Some(batch);
            return;
        }
        let (begin, direct) = (batch.begin, batch.direct);
        self.committing = Some(batch);
        self.drop_leftovers();
        if direct {
            // There is no recovery point to go back to: whatever happens before it is applied, the first sync
            // begins again.
            return self.committed(fx);
        }
        self.batch = self.history.open_batch(end).map(|(begun, _)| Batch::unkept(begun));
        self.keeper.change(|it| {
            it.batch = begin;
            it.promised_cut = it.promised_cut.max(end);
        });
        self.keeper.then(After::Committed);
    }

    /// Gives the replay what may be applied, as long as it has room.
    pub(super) fn feed(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let held = self.replay_held();
        loop {
            let mut fed = false;
            while !held && self.replay.room() {
                let Some(step) = self.next_step(fx) else { break };
                if !self.fits(&step) {
                    self.pieces.push_front(step);
                    break;
                }
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
    fn next_step(&mut self, fx: &mut Vec<Effect>) -> Option<Step> {
        if let Some(step) = self.pieces.pop_front() {
            return Some(step);
        }
        let Some(committed) = self.committed.as_ref().filter(|it| self.fed < it.end) else {
            if let Some(probe) = self.next_probe(fx) {
                return Some(probe);
            }
            let limit = if self.synced() { self.firm_cut() } else { self.cut }.min(self.ceiling());
            let entry = *self.history.next_after(self.fed).filter(|entry| entry.record.seq <= limit)?;
            return self.record_step(&entry, entry.record.seq);
        };
        let (base, begin, end, stage) = (committed.base, committed.begin, committed.end, committed.stage);
        match stage {
            Stage::Before => loop {
                let Some(entry) = self.history.next_after(self.fed).copied().filter(|it| it.record.seq < begin) else {
                    self.stage(Stage::Chunks(0));
                    return self.next_step(fx);
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
                    return self.next_step(fx);
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
        self.pieces.extend(outside_of(covered, step));
        self.pieces.pop_front()
    }

    pub(super) fn stage(&mut self, stage: Stage) {
        if let Some(committed) = &mut self.committed {
            committed.stage = stage;
        }
    }

    fn record_step(&mut self, entry: &Entry, reached: Seq) -> Option<Step> {
        let record = entry.record;
        let action = match record.op {
            Op::Write if planted(Bug::ApplyPastMissing) && entry.payload.is_none() => Action::Nothing,
            Op::Trim if planted(Bug::TrimNotApplied) => Action::Nothing,
            Op::Write if record.length > 0 => {
                let pos = entry.payload?;
                let data = self.intake.recall(record.seq).map_or(Data::Spool(pos), Data::Memory);
                Action::write(Item::Payload(record.seq), record, data)
            }
            Op::WriteZeroes | Op::Trim => match record.extent() {
                Some(extent) => Action::Zero { extent, unmap: unmaps(&record) },
                None => Action::Nothing,
            },
            Op::Resize => {
                let added = record.extent().filter(|_| !planted(Bug::ResizeUnzeroed));
                Action::Resize { volume: record.volume, size: record.length, added }
            }
            _ => Action::Nothing,
        };
        self.fed = record.seq;
        self.fed_writes += u64::from(record.changes_volume());
        Some(Step { action, reached, tag: None })
    }

    /// An entry read back from the spool is not what was stored there (I8): named, asked for, never applied.
    pub(super) fn damaged(&mut self, now: Now, item: Item, why: &str, fx: &mut Vec<Effect>) {
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
            Item::Payload(seq) => self.payload_damaged(now, seq, fx),
            Item::Chunk { .. } => self.lose_batch(now, fx),
        }
    }

    /// The writer was told that it is here, and need not have it any more: what a batch that is being applied does not bring
    /// in its place, makes that batch none that may be applied (I5).
    fn payload_damaged(&mut self, now: Now, seq: Seq, fx: &mut Vec<Effect>) {
        let entry = self.history.get(seq).copied();
        if let Some(pos) = entry.and_then(|entry| entry.payload) {
            self.intake.spool.free(pos);
        }
        self.history.lose(seq);
        self.copied.remove(&seq);
        // No read outlives the batch it was for, so that this never moves up.
        self.fed = if planted(Bug::SpoiltMovesUp) { seq.prev() } else { self.fed.min(seq.prev()) };
        self.pieces.clear();
        if let Some(committed) = self.committed.as_ref().filter(|it| seq <= it.end) {
            let needed = entry.is_none_or(|entry| !committed.supersedes(&entry.record));
            if needed && !planted(Bug::SpoiltPassed) {
                return self.lose_batch(now, fx);
            }
            return self.stage(Stage::Before);
        }
        if let Some(promotion) = &mut self.promotion {
            promotion.fetch_again = !planted(Bug::SpoiltNotFetched);
        }
        self.fall_back(now, seq, fx);
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
}

/// The same step with what is covered left out, in parts if need be.
fn outside_of(covered: &VolumeRanges, step: Step) -> Vec<Step> {
    let extent = match &step.action {
        Action::Nothing | Action::Probe { .. } | Action::Resize { added: None, .. } => None,
        Action::Zero { extent, .. } | Action::Resize { added: Some(extent), .. } => Some(*extent),
        Action::Write { record, .. } => record.extent(),
    };
    let Some(extent) = extent.filter(|extent| covered.intersects(*extent)) else { return vec![step] };
    let mut open = RangeSet::new();
    open.insert(extent.offset, extent.length);
    for (offset, length) in covered.volume(extent.volume).iter().flat_map(|set| set.iter()) {
        open.remove(offset, length);
    }
    let part = |(offset, length)| match &step.action {
        Action::Write { item, record, data, .. } => {
            let skip = offset - extent.offset;
            Action::Write { item: *item, record: *record, data: data.clone(), skip, length }
        }
        Action::Zero { unmap, .. } => Action::Zero { extent: Extent { offset, length, ..extent }, unmap: *unmap },
        Action::Resize { .. } | Action::Nothing | Action::Probe { .. } => {
            Action::Zero { extent: Extent { offset, length, ..extent }, unmap: true }
        }
    };
    let actions = open.iter().map(part).chain([Action::Nothing]);
    actions.map(|action| Step { action, reached: step.reached, tag: None }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::ids::Volume;
    use crate::format::record::OrderRecord;

    const SIZE: usize = 100;

    /// What a step does to each byte of a volume: 0 nothing, 1 zeroes, 2 + n the byte n of its payload.
    fn paint(volume: &mut [usize; SIZE], step: &Step) {
        match &step.action {
            Action::Nothing | Action::Probe { .. } | Action::Resize { added: None, .. } => {}
            Action::Zero { extent, .. } | Action::Resize { added: Some(extent), .. } => {
                volume[extent.offset as usize..][..extent.length as usize].fill(1);
            }
            Action::Write { record, skip, length, .. } => {
                for at in *skip..skip + length {
                    volume[(record.offset + at) as usize] = 2 + at as usize;
                }
            }
        }
    }

    proptest! {
        /// The chunks of a first sync are newer than what was written before it began, whatever that was.
        #[test]
        fn what_came_before_a_first_sync_changes_every_byte_outside_of_its_chunks_and_none_within(
            kind in 0..3u8,
            (offset, length) in (0..90u64, 1..10u64),
            chunks in prop::collection::vec((0..2u16, 0..95u64, 1..5u64), 0..20),
        ) {
            let volume = Volume(1);
            let extent = Extent { volume, offset, length };
            let record = OrderRecord { volume, offset, length, ..OrderRecord::sample(3, Op::Write) };
            let action = match kind {
                0 => Action::write(Item::Payload(Seq(3)), record, Data::Spool(0)),
                1 => Action::Zero { extent, unmap: false },
                _ => Action::Resize { volume, size: offset + length, added: Some(extent) },
            };
            let step = Step { action, reached: Seq(3), tag: None };
            let (mut whole, mut wanted, mut got) = ([0; SIZE], [0; SIZE], [0; SIZE]);
            paint(&mut whole, &step);
            let mut covered = VolumeRanges::new();
            chunks.iter().for_each(|&(of, offset, length)| covered.insert(Extent { volume: Volume(of), offset, length }));
            for (at, byte) in whole.iter().enumerate() {
                let newer = covered.contains(Extent { volume, offset: at as u64, length: 1 });
                wanted[at] = if newer { 0 } else { *byte };
            }
            let parts = outside_of(&covered, step);
            parts.iter().for_each(|part| paint(&mut got, part));
            prop_assert_eq!(got, wanted);
            prop_assert!(!parts.is_empty() && parts.iter().all(|part| part.reached == Seq(3)));
            for part in &parts {
                let end = part.action.needs().map(|(of, end)| (of == volume, end));
                prop_assert!(end.is_none_or(|(ours, end)| ours && offset < end && end <= offset + length));
            }
            let unmapped = parts.iter().any(|it| matches!(it.action, Action::Zero { unmap: true, .. }));
            prop_assert!(kind == 2 || !unmapped, "what may not become a hole becomes none");
        }
    }
}
