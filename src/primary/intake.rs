//! Intake: a write gets its seq and its order record, waits where a bound says so (I9), and goes to the
//! local disk when no earlier overlapping write is under way (I1) and its intent is durable (I2).

use bytes::{Bytes, BytesMut};

use super::machine::{
    Effect, File, FlushStage, Kind, Machine, PERIOD_NS, Pending, PendingFlush, Req, Stopping, disk_write,
};
use super::waiting::is_long;
use super::window::{Entry, Held, Local, Payload};
use crate::core::errno::Errno;
use crate::core::ids::{Chain, Extent, Seq, Volume};
use crate::core::machine::{DiskKind, DiskOp};
use crate::core::modes::{Overflow, Protect};
use crate::core::op::Op;
use crate::core::planted::{Bug, planted};
use crate::format::record::{FLAG_FUA, FLAG_NO_HOLE, OrderRecord};
use crate::limits::{BLOCK_BYTES, FIFO_ORDINARY_PART, PAYLOAD_PIECE_BYTES_MAX, RANGE_BYTES_MAX};

/// How long what no reply waits for is gathered, nanoseconds; and how many writes at the most.
const GATHER_NS: u64 = 2_000_000;
const GATHER_WRITES: u64 = 64;
/// How much longer to wait for a turn in which a local write begins, nanoseconds.
pub(super) const GATHER_SLACK_NS: u64 = 500_000;

impl Machine {
    pub(super) fn request(&mut self, req: Req, volume: Volume, kind: Kind, fx: &mut Vec<Effect>) {
        if self.fenced.is_some() || self.stopping != Stopping::No {
            fx.push(Effect::Reply { req, result: Err(Errno::Shutdown) });
            return;
        }
        if let Err(errno) = self.acceptable(volume, &kind) {
            fx.push(Effect::Reply { req, result: Err(errno) });
            return;
        }
        if matches!(kind, Kind::Flush) {
            self.flushes.push(PendingFlush { req, volume, seq: self.tail, stage: FlushStage::Waiting });
            return;
        }
        // Whose turn it is is found out at the end of the turn.
        let bytes = payload_bytes(&kind);
        let held =
            if self.held_requests.is_empty() { self.admit(req, volume, kind, fx) } else { Some((req, volume, kind)) };
        if let Some(held) = held {
            self.held_requests.push(bytes, held);
        }
    }

    pub(super) fn acceptable(&self, volume: Volume, kind: &Kind) -> Result<(), Errno> {
        let size = self.options.volumes.get(usize::from(volume.0)).ok_or(Errno::Inval)?.1;
        let (offset, length, longest) = match kind {
            Kind::Write { offset, data, .. } => (*offset, data.len() as u64, PAYLOAD_PIECE_BYTES_MAX),
            Kind::Zeroes { offset, length, .. } | Kind::Trim { offset, length, .. } => {
                (*offset, *length, RANGE_BYTES_MAX)
            }
            Kind::Flush => return Ok(()),
        };
        let end = offset.checked_add(length).ok_or(Errno::NoSpc)?;
        if end > size {
            return Err(Errno::NoSpc);
        }
        if length == 0 || length > longest { Err(Errno::Inval) } else { Ok(()) }
    }

    /// Gives the write its seq, or hands it back because it has to wait.
    pub(super) fn admit(
        &mut self,
        req: Req,
        volume: Volume,
        kind: Kind,
        fx: &mut Vec<Effect>,
    ) -> Option<(Req, Volume, Kind)> {
        if self.mending_holds(volume, &kind)
            || self.verify_holds(volume, &kind)
            || self.mending_first()
            || self.lag_wait(changed_bytes(&kind))
        {
            return Some((req, volume, kind));
        }
        match self.room(payload_bytes(&kind)) {
            Room::Yes if planted(Bug::RefusesSome) && req.0.is_multiple_of(10) => {
                fx.push(Effect::Reply { req, result: Err(Errno::NoSpc) });
                return None;
            }
            Room::Yes => {}
            Room::Wait => return Some((req, volume, kind)),
            Room::No => {
                fx.push(Effect::Reply { req, result: Err(Errno::NoSpc) });
                return None;
            }
            Room::Coalesce => self.fifo_overflows(fx),
        }
        let (op, flags, offset, length, data) = match kind {
            Kind::Write { offset, data, fua } => (Op::Write, fua_flag(fua), offset, data.len() as u64, data),
            Kind::Zeroes { offset, length, fua, no_hole } => {
                let flags = fua_flag(fua) | if no_hole { FLAG_NO_HOLE } else { 0 };
                (Op::WriteZeroes, flags, offset, length, Bytes::new())
            }
            Kind::Trim { offset, length, fua } => (Op::Trim, fua_flag(fua), offset, length, Bytes::new()),
            Kind::Flush => unreachable!("flushes carry no order"),
        };
        let payload_crc = if data.is_empty() { 0 } else { crc32fast::hash(&data) };
        let record = self.record(op, flags, volume, offset, length, payload_crc);
        self.append(record, data, Some(req));
        None
    }

    /// Whether a payload of `bytes` may enter (I9).
    pub(super) fn room(&self, bytes: u64) -> Room {
        if self.tail >= self.reserved {
            return Room::Wait;
        }
        if let Some(full) = self.journal_wait() {
            let refuses = full && self.options.overflow == Overflow::Refuse && self.dr_stalls();
            return if refuses { Room::No } else { Room::Wait };
        }
        if self.spool_wait(bytes) {
            return Room::Wait;
        }
        if (self.options.overflow != Overflow::Coalesce || self.ring_needs_slots()) && self.table_full() {
            return if self.options.overflow == Overflow::Refuse { Room::No } else { Room::Wait };
        }
        if self.ring_wait(bytes) {
            return if self.options.overflow == Overflow::Refuse { Room::No } else { Room::Wait };
        }
        if self.ring_owed_bytes() + bytes > self.options.fifo_memory_bytes.max(bytes) {
            return Room::Wait;
        }
        if self.mode.drops_payloads() || self.held.bytes == 0 {
            return Room::Yes;
        }
        // Writes without payload are charged for what is kept of them while an earlier payload waits.
        let charge = Held::memory_of(bytes) + self.window.overhead();
        let full = match self.options.overflow {
            _ if self.fifo.has_room(self.held.bytes + bytes) && self.may_spill() => Room::Wait,
            Overflow::Coalesce if self.closes_batch() => Room::Wait,
            Overflow::Coalesce => Room::Coalesce,
            Overflow::Pace => Room::Wait,
            Overflow::Refuse => Room::No,
        };
        let waits = matches!(full, Room::Wait);
        let most = if waits { self.memory_for(bytes) } else { self.options.fifo_memory_bytes };
        let fits = self.held.memory + charge <= most || planted(Bug::FifoUnbounded);
        if charge == 0 || fits { Room::Yes } else { full }
    }

    /// Memory of the FIFO up to which a payload enters that can wait. A long one leaves some to ordinary ones until it is
    /// due: they find room at once, although what is before them in the FIFO leaves at the pace of the link.
    pub(super) fn memory_for(&self, bytes: u64) -> u64 {
        let all = self.options.fifo_memory_bytes;
        if is_long(bytes) && !self.held_requests.is_due(bytes) { all - all / FIFO_ORDINARY_PART } else { all }
    }

    pub(super) fn record(
        &self,
        op: Op,
        flags: u8,
        volume: Volume,
        offset: u64,
        length: u64,
        payload_crc: u32,
    ) -> OrderRecord {
        let record = OrderRecord {
            seq: self.tail.next(),
            epoch: self.superblock.epoch,
            volume,
            op,
            flags,
            offset,
            length,
            time_ns: self.now.wall_ns,
            chain: Chain(0),
            payload_crc,
        };
        record.chained(self.chain)
    }

    /// A record of our own: nobody waits for its answer.
    pub(super) fn append_control(&mut self, op: Op, offset: u64, length: u64, payload_crc: u32) -> Seq {
        self.append_of(Volume(0), op, offset, length, payload_crc)
    }

    /// One about a volume.
    pub(super) fn append_of(&mut self, volume: Volume, op: Op, offset: u64, length: u64, payload_crc: u32) -> Seq {
        let record = self.record(op, 0, volume, offset, length, payload_crc);
        self.append(record, Bytes::new(), None);
        record.seq
    }

    pub(super) fn append(&mut self, record: OrderRecord, data: Bytes, req: Option<Req>) {
        self.enter(record, data, req, false);
    }

    /// One of our own about what its volume holds already.
    pub(super) fn append_there(&mut self, record: OrderRecord, data: Bytes) {
        let kept = !self.mode.drops_payloads() || self.owes_ring(record.seq);
        self.enter(record, if kept { data } else { Bytes::new() }, None, true);
    }

    fn enter(&mut self, record: OrderRecord, data: Bytes, req: Option<Req>, there: bool) {
        self.tail = record.seq;
        self.chain = record.chain;
        if !record.op.may_jump() {
            self.own_from = record.seq.next();
        }
        self.ages.note(record.seq, record.time_ns, self.now.mono_ns);
        self.note_changed(&record);
        let dropped = self.mode.drops_payloads();
        let payload = match record.payload_bytes() {
            0 => Payload::None,
            _ if dropped => Payload::Dropped,
            bytes => {
                self.held += Held::one(bytes);
                Payload::Queued
            }
        };
        let local = match record.extent() {
            None => Local::Done,
            Some(extent) => {
                if self.lost_any() {
                    self.lose(extent);
                }
                self.written_since_begin(&record);
                if there { self.there_already(extent) } else { self.local_turn(record.seq, extent) }
            }
        };
        self.window.push(Entry { record, data, req, local, payload });
    }

    fn there_already(&mut self, extent: Extent) -> Local {
        self.intent.want(extent);
        Local::Done
    }

    /// Takes the write's place among those that overlap it, and asks for its intent.
    fn local_turn(&mut self, seq: Seq, extent: Extent) -> Local {
        let (from, length) = rounded(extent);
        let admitted = self.inflight[usize::from(extent.volume.0)].admit(seq, from, length);
        let admitted = admitted || planted(Bug::LocalOverlapped);
        let intended = self.intent.want(extent) || planted(Bug::IntentAfterWrite);
        if admitted && intended {
            self.startable.push(seq);
        }
        if !intended {
            self.unintended.push_back(seq);
        }
        Local::Waiting { admitted, intended }
    }

    pub(super) fn end_of_turn(&mut self, fx: &mut Vec<Effect>) {
        self.leave_behind(fx);
        self.pump_mending(fx);
        self.pump_verify(fx);
        self.resume_held(fx);
        if !self.marked {
            return self.tick_if_due(fx);
        }
        self.advance_resize(fx);
        self.write_log(fx);
        let started = !self.startable.is_empty();
        self.start_local(fx);
        self.write_intent(fx);
        self.issue_flushes(fx);
        let all = self.gathered(started);
        if all || self.aux_awaited() {
            self.pump_aux(fx);
        }
        if all || self.dr_awaited() {
            self.pump_orders(fx);
        }
        self.advance_copied();
        if all || self.options.protect == Protect::Sync {
            self.pump_payloads(fx);
        }
        self.pump_batch(fx);
        self.pump_spill(fx);
        self.shorten_window();
        self.settle(fx);
        self.window.trim(self.log_written);
        self.advance_local_done();
        self.tick_if_due(fx);
        self.go_on_stopping(fx);
    }

    fn tick_if_due(&mut self, fx: &mut Vec<Effect>) {
        if self.now.mono_ns >= self.due_ns {
            self.periodic(fx);
            self.due_ns = self.now.mono_ns + self.period();
        }
    }

    /// What no reply waits for goes out together: at most every [`GATHER_NS`], sooner when it is much. True when
    /// its time has come. `started`: a local write begins in this turn.
    fn gathered(&mut self, started: bool) -> bool {
        let behind = self.orders_can_go() || self.commits_can_go() || self.payloads_can_go();
        if !behind {
            self.gather_ns = None;
            return true;
        }
        let due = *self.gather_ns.get_or_insert(self.now.mono_ns + GATHER_NS);
        let much = self.tail.0 - self.gathered_tail.0 >= GATHER_WRITES;
        // Sending costs the thread least while the disk works.
        let all = much || self.now.mono_ns >= if started { due } else { due + GATHER_SLACK_NS };
        if all {
            self.gather_ns = None;
            self.gathered_tail = self.tail;
        }
        all
    }

    /// Whether a reply waits for the auxiliary.
    fn aux_awaited(&self) -> bool {
        self.options.protect != Protect::Async
    }

    /// Whether a reply waits for DR's journal.
    fn dr_awaited(&self) -> bool {
        match self.options.protect {
            Protect::Async => false,
            Protect::Near | Protect::Bunker => !self.aux.in_reach(),
            Protect::Order | Protect::Sync => true,
        }
    }

    /// Short while anything is under way, long when idle: an idle primary wakes twice a second.
    pub(super) fn period(&self) -> u64 {
        let busy = self.floor() < self.tail
            || self.intent.cycle().is_some()
            || self.frozen_since_ns.is_some()
            || self.watermark_saved != (self.local_done, self.dr.cut, self.aux.skipped);
        if busy { PERIOD_NS } else { 5 * PERIOD_NS }
    }

    pub(super) fn resume_held(&mut self, fx: &mut Vec<Effect>) {
        self.verify_holds_nobody();
        while let Some((bytes, (req, volume, kind))) = self.held_requests.take() {
            if let Some(back) = self.admit(req, volume, kind, fx) {
                self.held_requests.put_back(bytes, back);
                break;
            }
            self.held_requests.begun(bytes);
        }
        if self.tail.0 + self.reserve_ahead() / 2 > self.reserved.0 || self.fifo.wants_saving() {
            self.reserve(fx);
        }
    }

    /// Records reach the page cache before any of their blocks can change: exact after a crash of the process.
    pub(super) fn write_log(&mut self, fx: &mut Vec<Effect>) {
        let mut runs: Vec<(u64, BytesMut)> = Vec::new();
        for entry in self.window.from(self.log_written.next()) {
            let offset = self.log.record_offset(entry.record.seq);
            match runs.last_mut() {
                Some((start, bytes)) if *start + bytes.len() as u64 == offset => {
                    bytes.extend_from_slice(&entry.record.encode());
                }
                _ => runs.push((offset, BytesMut::from(&entry.record.encode()[..]))),
            }
        }
        for (offset, bytes) in runs {
            let ticket = self.ticket(Pending::Unwatched("intent log"));
            fx.push(disk_write(ticket, File::IntentLog, offset, vec![bytes.freeze()], false));
        }
        self.log_written = self.tail;
        self.log_first = self.log_first.max(Seq((self.tail.0 + 1).saturating_sub(self.log.slots)));
    }

    pub(super) fn start_local(&mut self, fx: &mut Vec<Effect>) {
        for seq in std::mem::take(&mut self.startable) {
            let ticket = self.ticket(Pending::Local(seq));
            let ring = self.owes_ring(seq);
            let entry = self.window.get_mut(seq).expect("a write stays in the window until its local write is done");
            entry.local = Local::Running;
            let record = entry.record;
            let durable = record.flags & FLAG_FUA != 0 && !planted(Bug::FuaUnsynced);
            let kind = match record.op {
                Op::Write => {
                    let data = entry.data.clone();
                    if entry.payload == Payload::Copied || entry.payload == Payload::Dropped && !ring {
                        entry.data = Bytes::new();
                    }
                    DiskKind::Write { offset: record.offset, parts: vec![data], durable }
                }
                _ => {
                    let unmap = record.flags & FLAG_NO_HOLE == 0;
                    let Extent { offset, length, .. } = record.extent().expect("only ranges are written");
                    DiskKind::Zero { offset, length, unmap, durable }
                }
            };
            fx.push(Effect::Disk(DiskOp { ticket, file: File::Volume(record.volume), kind }));
        }
    }

    pub(super) fn write_intent(&mut self, fx: &mut Vec<Effect>) {
        for page in self.intent.round() {
            let ticket = self.ticket(Pending::IntentPage);
            fx.push(disk_write(ticket, File::IntentMap, page.offset, vec![page.bytes], true));
        }
    }

    /// One sync of a volume at a time; it covers every flush that waited when it was issued.
    pub(super) fn issue_flushes(&mut self, fx: &mut Vec<Effect>) {
        for index in 0..self.options.volumes.len() {
            let volume = Volume(u16::try_from(index).expect("at most VOLUMES_MAX volumes"));
            let of_volume = |flush: &&mut PendingFlush| flush.volume == volume;
            if !self.flushes.iter().any(|flush| flush.volume == volume && flush.stage == FlushStage::Waiting) {
                continue;
            }
            // One sync at a time, also when those that asked for it have been given up: its end must not be
            // taken for the end of a later one.
            let under_way = |it: &Pending| matches!(it, Pending::Flush { volume: of, .. } if *of == volume);
            if self.pending.values().any(under_way) {
                continue;
            }
            let mut upto = 0;
            for flush in self.flushes.iter_mut().filter(of_volume).filter(|flush| flush.stage == FlushStage::Waiting) {
                flush.stage = FlushStage::Syncing;
                upto += 1;
            }
            if upto > 0 {
                let ticket = self.ticket(Pending::Flush { volume, upto });
                fx.push(Effect::Disk(DiskOp { ticket, file: File::Volume(volume), kind: DiskKind::Sync }));
            }
        }
    }
}

/// Whether a write may enter.
pub(super) enum Room {
    Yes,
    Wait,
    No,
    Coalesce,
}

fn payload_bytes(kind: &Kind) -> u64 {
    if let Kind::Write { data, .. } = kind { data.len() as u64 } else { 0 }
}

/// Bytes of its volume that the write changes.
fn changed_bytes(kind: &Kind) -> u64 {
    match kind {
        Kind::Zeroes { length, .. } | Kind::Trim { length, .. } => *length,
        _ => payload_bytes(kind),
    }
}

fn fua_flag(fua: bool) -> u8 {
    if fua { FLAG_FUA } else { 0 }
}

/// Whether a request changes a block of a range.
pub(super) fn touches(volume: Volume, kind: &Kind, range: Extent) -> bool {
    let (offset, length) = match kind {
        Kind::Write { offset, .. } | Kind::Zeroes { offset, .. } | Kind::Trim { offset, .. } => {
            (*offset, changed_bytes(kind))
        }
        Kind::Flush => return false,
    };
    let ((at, long), (from, wide)) = (rounded(Extent { volume, offset, length }), rounded(range));
    volume == range.volume && at < from + wide && from < at + long
}

/// The range in whole blocks: what a read-modify-write of its edges touches.
pub(super) fn rounded(extent: Extent) -> (u64, u64) {
    let block = BLOCK_BYTES as u64;
    let from = extent.offset / block * block;
    (from, (extent.offset + extent.length).div_ceil(block) * block - from)
}
