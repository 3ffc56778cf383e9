//! The ordered apply: what has passed the cut goes to the volumes, in order where it matters.
//!
//! Owns the steps between "may be applied" and "written". What is fed to it, and when what is written
//! becomes a checkpoint, is [`super::apply`]'s.
//!
//! ```text
//!   push ──► queue: data read back from the spool and verified ──► running: overlaps in order ──► applied
//! ```
//!
//! Invariants:
//! - Steps that overlap (rounded to blocks) are written one after another, in the order they were
//!   pushed (I1). Others run concurrently.
//! - No step is started before the data of every step pushed earlier is in memory and verified: a
//!   damaged payload is found while the volume is still a prefix of the history (I5, I8).
//! - `applied` moves only over steps that are written without a gap.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;

use crate::core::ids::{Extent, Seq, Ticket, Volume};
use crate::core::machine::DiskKind;
use crate::core::overlap::InFlight;
use crate::core::planted::{Bug, planted};
use crate::dr::api::{Effect, File};
use crate::dr::desk::Desk;
use crate::format::record::OrderRecord;
use crate::format::ring::Ring;
use crate::format::spool::{Kind, decode_entry, entry_bytes};
use crate::limits::{BLOCK_BYTES, DR_APPLY_BYTES_MAX, DR_APPLY_INFLIGHT_MAX};

/// Names a payload or a piece of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Item {
    Payload(Seq),
    Chunk { batch: Seq, index: u64 },
}

/// Where the data of a step is.
#[derive(Clone, Debug)]
pub enum Data {
    Memory(Bytes),
    /// In the spool at this position.
    Spool(u64),
}

/// What a step does to the volumes.
#[derive(Clone, Debug)]
pub enum Action {
    /// A record without effect on a volume.
    Nothing,
    Zero {
        extent: Extent,
        unmap: bool,
    },
    /// The volume has `size` bytes from here on; what was added reads as zeroes.
    Resize {
        volume: Volume,
        size: u64,
        added: Option<Extent>,
    },
    /// Writes a part of the payload: `length` bytes from `skip` on.
    Write {
        item: Item,
        record: OrderRecord,
        data: Data,
        skip: u64,
        length: u64,
    },
    /// Reads a range as it is between the steps before and after.
    Probe {
        extent: Extent,
        probe: u64,
    },
}

impl Action {
    /// Writes the whole payload.
    #[must_use]
    pub fn write(item: Item, record: OrderRecord, data: Data) -> Action {
        Action::Write { item, record, data, skip: 0, length: record.length }
    }

    /// The volume whose store it needs, and how much room there, bytes.
    #[must_use]
    pub fn needs(&self) -> Option<(Volume, u64)> {
        match self {
            // Past the end of a store are zeroes.
            Action::Nothing | Action::Probe { .. } => None,
            Action::Zero { extent, .. } => Some((extent.volume, extent.offset + extent.length)),
            Action::Resize { volume, size, .. } => Some((*volume, *size)),
            Action::Write { record, skip, length, .. } => Some((record.volume, record.offset + skip + length)),
        }
    }
}

/// One step; once it and everything before it is written, `reached` is the applied seq.
#[derive(Clone, Debug)]
pub struct Step {
    pub action: Action,
    pub reached: Seq,
    /// Whoever pushed it wants to hear when it is written.
    pub tag: Option<Item>,
}

#[derive(Clone, Debug)]
struct Queued {
    step: Step,
    /// Set while its data is being read.
    reading: Option<Ticket>,
}

#[derive(Clone, Debug)]
struct Running {
    id: u64,
    reached: Seq,
    bytes: u64,
    /// Of these, bytes of a payload.
    written: u64,
    tag: Option<Item>,
    done: bool,
}

/// Steps under way.
#[derive(Clone, Debug)]
pub struct Replay {
    nonce: u64,
    spool: Ring,
    queue: VecDeque<Queued>,
    running: VecDeque<Running>,
    overlaps: Vec<InFlight<u64>>,
    /// Admitted steps that wait behind an overlapping one.
    parked: HashMap<u64, (Extent, DiskKind)>,
    writes: HashMap<Ticket, (u64, Extent)>,
    next_id: u64,
    bytes: u64,
    applied: Seq,
    applied_bytes: u64,
    finished: Vec<Item>,
    /// Running steps that only probe, by their id; and what they saw, nothing where they were let go of.
    probes: BTreeMap<u64, Option<u64>>,
    probed: Vec<(u64, Option<Bytes>)>,
    next_probe: u64,
}

impl Replay {
    #[must_use]
    pub fn new(volumes: usize, applied: Seq, nonce: u64, spool: Ring) -> Replay {
        Replay {
            nonce,
            spool,
            queue: VecDeque::new(),
            running: VecDeque::new(),
            overlaps: (0..volumes).map(|_| InFlight::new()).collect(),
            parked: HashMap::new(),
            writes: HashMap::new(),
            next_id: 0,
            bytes: 0,
            applied,
            applied_bytes: 0,
            finished: Vec::new(),
            probes: BTreeMap::new(),
            probed: Vec::new(),
            next_probe: 0,
        }
    }

    /// The spool has this shape from where it stands on: no entry that is needed has moved.
    pub fn reshaped(&mut self, spool: Ring) {
        self.spool = spool;
    }

    /// Everything up to here is written to the volumes (not yet durable there).
    #[must_use]
    pub fn applied(&self) -> Seq {
        self.applied
    }

    /// What is below `seq` is not needed: the first sync brings it. What is under way are pieces of that.
    pub fn skip_to(&mut self, seq: Seq) {
        assert!(self.queue.iter().all(|it| it.step.reached <= self.applied), "no order is applied before a first sync");
        self.applied = self.applied.max(seq);
    }

    /// A batch is lost: what is queued of it is not applied any more, and nothing above `seq` counts as applied, whatever of
    /// it the volumes hold. What was queued besides has to be pushed again; and what is being written, too, which counts only
    /// then: until it is through, what is pushed again before it has taken the place of it in the volumes.
    pub fn fall_back(&mut self, seq: Seq) {
        if !planted(Bug::SpoiltMovesUp) {
            self.drop_from(0);
        }
        self.applied = self.applied.min(seq);
        for running in &mut self.running {
            running.reached = self.applied.min(running.reached);
        }
        let let_go = self.probes.values_mut().filter_map(Option::take).map(|probe| (probe, None));
        self.probed.extend(let_go);
    }

    fn drop_from(&mut self, index: usize) {
        for dropped in self.queue.drain(index..) {
            self.bytes -= step_bytes(&dropped.step);
            if let Action::Probe { probe, .. } = dropped.step.action {
                self.probed.push((probe, None));
            }
        }
    }

    /// Bytes written since the start.
    #[must_use]
    pub fn applied_bytes(&self) -> u64 {
        self.applied_bytes
    }

    /// Whether another step may be pushed (I9).
    #[must_use]
    pub fn room(&self) -> bool {
        self.queue.len() + self.running.len() < DR_APPLY_INFLIGHT_MAX && self.bytes < DR_APPLY_BYTES_MAX
    }

    /// Nothing is under way.
    #[must_use]
    pub fn idle(&self) -> bool {
        self.queue.is_empty() && self.running.is_empty()
    }

    pub fn push(&mut self, step: Step) {
        self.bytes += step_bytes(&step);
        self.queue.push_back(Queued { step, reading: None });
    }

    /// Tags of the steps that have been written since the last call.
    pub fn finished(&mut self) -> Vec<Item> {
        std::mem::take(&mut self.finished)
    }

    /// A number for a probe, given once.
    pub fn new_probe(&mut self) -> u64 {
        self.next_probe += 1;
        self.next_probe
    }

    /// What probes have seen since the last call; `None`: that one was let go of.
    pub fn probed(&mut self) -> Vec<(u64, Option<Bytes>)> {
        std::mem::take(&mut self.probed)
    }

    /// The probe that an operation under way is of; `Some(None)`: of one that was let go of.
    #[must_use]
    pub fn probe_of(&self, ticket: Ticket) -> Option<Option<u64>> {
        self.writes.get(&ticket).and_then(|(id, _)| self.probes.get(id).copied())
    }

    /// Starts what can be started.
    pub fn pump(&mut self, desk: &mut Desk, fx: &mut Vec<Effect>) {
        for queued in &mut self.queue {
            if let (None, Action::Write { record, data: Data::Spool(pos), .. }) = (queued.reading, &queued.step.action)
            {
                let length = entry_bytes(record.payload_bytes());
                queued.reading =
                    Some(desk.disk(fx, File::Spool, DiskKind::Read { offset: self.spool.offset(*pos), length }));
            }
        }
        while self.queue.front().is_some_and(|queued| spool_pos(&queued.step).is_none()) {
            let Some(queued) = self.queue.pop_front() else { break };
            self.start(queued.step, desk, fx);
        }
        self.advance();
    }

    fn start(&mut self, step: Step, desk: &mut Desk, fx: &mut Vec<Effect>) {
        let id = self.next_id;
        self.next_id += 1;
        let bytes = step_bytes(&step);
        let (extent, kind) = match step.action {
            Action::Nothing | Action::Resize { added: None, .. } => (None, DiskKind::Sync),
            Action::Zero { extent, unmap } => (Some(extent), zero(extent, unmap)),
            Action::Resize { added: Some(extent), .. } => (Some(extent), zero(extent, true)),
            Action::Write { record, data, skip, length, .. } => {
                let Data::Memory(data) = data else { unreachable!("only steps with their data here are started") };
                let offset = record.offset + skip;
                let part = data.slice(to_usize(skip)..to_usize(skip + length));
                let extent = Extent { volume: record.volume, offset, length };
                (Some(extent), DiskKind::Write { offset, parts: vec![part], durable: false })
            }
            Action::Probe { extent, probe } => {
                self.probes.insert(id, Some(probe));
                (Some(extent), DiskKind::Read { offset: extent.offset, length: extent.length })
            }
        };
        let done = extent.is_none();
        let written = if self.probes.contains_key(&id) { 0 } else { bytes };
        self.running.push_back(Running { id, reached: step.reached, bytes, written, tag: step.tag, done });
        let Some(extent) = extent else { return };
        let (offset, length) = blocks(&extent);
        if planted(Bug::ApplyOverlapped) || self.overlaps[usize::from(extent.volume.0)].admit(id, offset, length) {
            let ticket = desk.disk(fx, File::Volume(extent.volume), kind);
            self.writes.insert(ticket, (id, extent));
        } else {
            self.parked.insert(id, (extent, kind));
        }
    }

    /// Data came back from the spool. `Ok(false)`: not a read of this replay. `Err`: the entry is damaged;
    /// that step and all after it have been dropped from the queue.
    pub fn loaded(&mut self, ticket: Ticket, bytes: &Bytes) -> Result<bool, (Item, String)> {
        let Some(index) = self.queue.iter().position(|queued| queued.reading == Some(ticket)) else {
            return Ok(false);
        };
        let Action::Write { item, record, data, .. } = &mut self.queue[index].step.action else { return Ok(false) };
        let Data::Spool(pos) = *data else { return Ok(false) };
        match verify(bytes, self.nonce, pos, *item, record) {
            Ok(payload) => {
                *data = Data::Memory(payload);
                Ok(true)
            }
            Err(why) => {
                let item = *item;
                self.drop_from(index);
                Err((item, why))
            }
        }
    }

    /// Whether a ticket is one of a write under way.
    #[must_use]
    pub fn owns(&self, ticket: Ticket) -> bool {
        self.writes.contains_key(&ticket)
    }

    /// An operation on a volume ended; starts those that waited for it. Whether it was one of this replay's. `bytes`: what
    /// was read.
    pub fn ended(&mut self, ticket: Ticket, bytes: &Bytes, desk: &mut Desk, fx: &mut Vec<Effect>) -> bool {
        let Some((id, extent)) = self.writes.remove(&ticket) else { return false };
        if let Some(probe) = self.probes.remove(&id) {
            self.probed.extend(probe.map(|probe| (probe, Some(bytes.clone()))));
        }
        let mut started = Vec::new();
        if !planted(Bug::ApplyOverlapped) {
            self.overlaps[usize::from(extent.volume.0)].finish(id, &mut started);
        }
        for next in started {
            let (extent, kind) = self.parked.remove(&next).expect("whoever waits was parked");
            let ticket = desk.disk(fx, File::Volume(extent.volume), kind);
            self.writes.insert(ticket, (next, extent));
        }
        let front = self.running.front().map_or(0, |running| running.id);
        let index = usize::try_from(id - front).expect("ids in flight are close together");
        self.running[index].done = true;
        self.advance();
        true
    }

    fn advance(&mut self) {
        while self.running.front().is_some_and(|running| running.done) {
            let Some(done) = self.running.pop_front() else { break };
            self.applied = self.applied.max(done.reached);
            self.bytes -= done.bytes;
            self.applied_bytes += done.written;
            self.finished.extend(done.tag);
        }
    }
}

fn zero(extent: Extent, unmap: bool) -> DiskKind {
    DiskKind::Zero { offset: extent.offset, length: extent.length, unmap, durable: false }
}

fn spool_pos(step: &Step) -> Option<u64> {
    match &step.action {
        Action::Write { data: Data::Spool(pos), .. } => Some(*pos),
        _ => None,
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("inside a payload in memory")
}

fn step_bytes(step: &Step) -> u64 {
    match &step.action {
        Action::Write { record, .. } => record.payload_bytes(),
        Action::Probe { extent, .. } => extent.length,
        _ => 0,
    }
}

/// The range in whole blocks: a disk that has to read, modify and write never does so to one block twice
/// at once.
fn blocks(extent: &Extent) -> (u64, u64) {
    let block = BLOCK_BYTES as u64;
    let start = extent.offset - extent.offset % block;
    (start, (extent.offset + extent.length).next_multiple_of(block) - start)
}

/// The payload in an entry read back, if it is exactly the entry that was written there (I8).
fn verify(bytes: &Bytes, nonce: u64, pos: u64, item: Item, record: &OrderRecord) -> Result<Bytes, String> {
    let (header, data) = decode_entry(bytes, nonce).map_err(|err| err.to_string())?;
    let (kind, index) = match item {
        Item::Payload(_) => (Kind::Payload, 0),
        Item::Chunk { index, .. } => (Kind::Chunk, index),
    };
    if header.pos != pos || header.kind != kind || header.index != index || header.record != *record {
        return Err(format!("position {pos} of the spool holds another entry: seq {}", header.record.seq));
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::Volume;
    use crate::core::machine::DiskOp;

    fn push(replay: &mut Replay, seqs: std::ops::RangeInclusive<u64>) {
        for seq in seqs {
            let extent = Extent { volume: Volume(0), offset: 0, length: 4096 };
            replay.push(Step { action: Action::Zero { extent, unmap: true }, reached: Seq(seq), tag: None });
        }
    }

    /// Ends the one write that is under way, and starts the next.
    fn end_one(replay: &mut Replay, desk: &mut Desk, fx: &mut Vec<Effect>) {
        let ended =
            fx.drain(..).find_map(|it| if let Effect::Disk(DiskOp { ticket, .. }) = it { Some(ticket) } else { None });
        assert!(replay.ended(ended.expect("one is under way"), &Bytes::new(), desk, fx));
    }

    /// Seed 2181594: older writes were made once more over newer ones that were under way; those counted, the payloads were
    /// forgotten, and damage kept them from being made again.
    #[test]
    fn what_is_under_way_when_a_batch_is_lost_counts_once_it_was_pushed_again() {
        let (mut replay, mut desk, mut fx) =
            (Replay::new(1, Seq(10), 1, Ring::plain(1 << 20)), Desk::default(), Vec::new());
        push(&mut replay, 11..=13);
        replay.pump(&mut desk, &mut fx);
        end_one(&mut replay, &mut desk, &mut fx);
        assert_eq!(replay.applied(), Seq(11));
        replay.fall_back(Seq(12));
        push(&mut replay, 12..=12);
        replay.pump(&mut desk, &mut fx);
        for _ in 0..2 {
            end_one(&mut replay, &mut desk, &mut fx);
            assert_eq!(replay.applied(), Seq(11), "12 is to be made after them");
        }
        end_one(&mut replay, &mut desk, &mut fx);
        assert!(replay.applied() == Seq(12) && replay.idle());
    }
}
