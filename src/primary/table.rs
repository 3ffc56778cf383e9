//! The status table as the primary writes it: through an ordinary NBD export or a file, wherever it stands.
//!
//! Records go out in group commits, many in flight; `durable` moves only over a contiguous prefix. A slot
//! is used again only when its write is copied (`floor`), unless the overflow policy is to coalesce. In
//! `bunker` the payloads and the states that say where they are belong to the commit.

mod anew;
mod ring;
mod states;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};

use bytes::{Bytes, BytesMut};

use super::machine::{Effect, File, Machine, Peer, Pending};
use super::window::Entry;
use crate::core::ids::{Epoch, Seq, Ticket};
use crate::core::machine::{DiskKind, DiskOp, DiskResult, Level, Now};
use crate::core::modes::{Overflow, Protect};
use crate::core::planted::{Bug, planted};
use crate::format::record::OrderRecord;
use crate::format::spool;
use crate::format::table::{self, Fence, Heartbeat, PAYLOAD_POS_MAX, STATE_BYTES, SlotState, TableHeader, TableLayout};
use crate::limits::{BLOCK_BYTES, COMMIT_RECORDS_MAX, COMMITS_INFLIGHT_MAX, PING_EVERY_NS, RECORD_BYTES};

/// Of the NBD protocol, around each commit.
const REQUEST_BYTES: usize = 28;
const SIMPLE_REPLY_BYTES: usize = 16;
/// Slots that are kept for records of our own where those of the rest are not given up.
const OWN_SLOTS: u64 = 128;
const RETRY_NS: u64 = 1_000_000_000;
/// Bytes of states read at once when a payload ring is taken over.
const STATES_READ_BYTES: u64 = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle {
        retry_ns: u64,
    },
    Opening {
        since_ns: u64,
    },
    /// Reading or writing the head, or looking for what the payload ring holds; since the last answer.
    Preparing {
        since_ns: u64,
    },
    Ready,
}

#[derive(Clone, Debug)]
enum AuxOp {
    ReadHead {
        sent_ns: u64,
    },
    /// Our fence block is being written; of a table that is made anew, or of one that was found.
    Claim {
        anew: bool,
    },
    FirstHeartbeat,
    WriteHead,
    /// Slots of a damaged table are being zeroed; where to go on.
    Wipe {
        next: u64,
    },
    FenceBeforeFormat {
        sent_ns: u64,
    },
    ReadStates {
        offset: u64,
    },
    ReadLastRecord {
        pos: u64,
    },
    Commit {
        last: Seq,
    },
    Heartbeat {
        sent_ns: u64,
    },
    ReadFence {
        sent_ns: u64,
    },
    States,
}

#[derive(Clone, Debug)]
struct Commit {
    first: Seq,
    last: Seq,
    left: usize,
    sent_ns: u64,
}

/// Writes of states that are on their way, and the lowest seq whose state they say.
#[derive(Clone, Copy, Debug, Default)]
struct StatesOut {
    left: usize,
    oldest: Seq,
}

/// The primary's side of the table.
#[derive(Clone, Debug)]
pub struct AuxLink {
    phase: Phase,
    fencing: bool,
    region_bytes: u64,
    layout: Option<TableLayout>,
    /// Next record to write.
    pub(super) next: Seq,
    /// Records durable, without a hole but the one that `skipped` tells of.
    pub durable: Seq,
    /// Records up to here may stand in it.
    written: Seq,
    /// Records up to here, after `held`, were left out: the table had gone on without them.
    pub(super) skipped: Seq,
    /// Records durable before what was left out.
    pub(super) held: Seq,
    commits: VecDeque<Commit>,
    ops: HashMap<Ticket, AuxOp>,
    backfill: VecDeque<OrderRecord>,
    reading_log: bool,
    caught_up: bool,
    counter: u64,
    last_heartbeat_ns: u64,
    /// Floor and tail found in the table when it was opened.
    found_floor: Seq,
    found_tail: Seq,
    /// Highest seq of a commit that is durable in the table, with all before it.
    committed: Seq,
    states_dirty: Vec<Seq>,
    states_tail: Seq,
    states_out: StatesOut,
    /// Payload ring: next position, and the live entries (seq, position).
    ring_pos: u64,
    ring_live: VecDeque<(Seq, u64)>,
    ring_full: bool,
    /// The next record waits until its payload has room in it.
    ring_waits: bool,
    ring_found: Option<(Seq, u64)>,
    /// Highest seq whose record was committed without the payload it has.
    hole: Seq,
    /// The tail when the table was first found damaged: no record in it is later.
    unreadable: Option<Seq>,
    /// The last attempt to open it failed, and nothing was heard of it since.
    pub(super) gone: bool,
    pub problem: Option<String>,
    pub since_ns: u64,
    pub rtt_ns: u64,
    pub sent_bytes: u64,
    /// Bytes of group commits both ways: the synchronous path.
    pub order_bytes: u64,
}

impl AuxLink {
    /// A table to which `next` is written first; earlier lives may have written up to `written`, and led it past orders up to
    /// `skipped`.
    #[must_use]
    pub fn new(next: Seq, written: Seq, skipped: Seq) -> AuxLink {
        AuxLink {
            phase: Phase::Idle { retry_ns: 0 },
            fencing: false,
            region_bytes: 0,
            layout: None,
            next,
            durable: Seq(0),
            written,
            skipped,
            held: Seq(0),
            commits: VecDeque::new(),
            ops: HashMap::new(),
            backfill: VecDeque::new(),
            reading_log: false,
            caught_up: false,
            counter: 0,
            last_heartbeat_ns: 0,
            found_floor: Seq(0),
            found_tail: Seq(0),
            committed: Seq(0),
            states_dirty: Vec::new(),
            states_tail: Seq(0),
            states_out: StatesOut::default(),
            ring_pos: 0,
            ring_live: VecDeque::new(),
            ring_full: false,
            ring_waits: false,
            ring_found: None,
            hole: Seq(0),
            unreadable: None,
            gone: false,
            problem: None,
            since_ns: 0,
            rtt_ns: 0,
            sent_bytes: 0,
            order_bytes: 0,
        }
    }

    /// The table is open and has every record up to about now: waiting for it makes sense.
    #[must_use]
    pub fn in_reach(&self) -> bool {
        self.phase == Phase::Ready && self.caught_up
    }

    /// The payload ring takes payloads, and nothing acknowledged before is missing from it.
    #[must_use]
    pub fn keeps_payloads(&self) -> bool {
        self.in_reach() && self.layout.is_some_and(|l| l.payload_bytes > 0) && !self.ring_full && self.hole == Seq(0)
    }

    /// Why the payload ring protects nothing, for status.
    #[must_use]
    pub fn ring_problem(&self) -> String {
        if self.layout.is_none_or(|layout| layout.payload_bytes == 0) {
            return "the auxiliary has no payload ring: data is acknowledged with its order only".into();
        }
        if self.ring_full {
            return "the auxiliary's payload ring is full: data is acknowledged with its order only".into();
        }
        format!("the auxiliary's payload ring lacks data up to seq {}, which DR has not either", self.hole)
    }

    /// The word of status.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self.phase {
            Phase::Idle { .. } => "down",
            Phase::Opening { .. } => "connecting",
            Phase::Preparing { .. } => "preparing",
            Phase::Ready if !self.caught_up => "catching up",
            Phase::Ready => "up",
        }
    }

    /// Wall time since when the link is in its present state.
    #[must_use]
    pub fn since(&self, now: Now) -> u64 {
        if self.since_ns == 0 { now.wall_ns } else { self.since_ns }
    }

    #[must_use]
    pub fn slots(&self) -> u64 {
        self.layout.map_or(0, |layout| layout.slots)
    }

    /// No record up to here is on its way: it stands in the table, or has been passed over.
    fn arrived(&self) -> Seq {
        self.commits.front().map_or(self.next, |commit| commit.first).prev()
    }

    fn note_state(&mut self, seq: Seq) {
        if self.phase == Phase::Ready {
            self.states_dirty.push(seq);
        }
    }
}

impl Machine {
    pub(super) fn aux_opened(&mut self, size: u64, fencing: bool, fx: &mut Vec<Effect>) {
        self.aux.phase = Phase::Preparing { since_ns: self.now.mono_ns };
        self.aux.gone = false;
        self.aux.fencing = fencing;
        self.aux.region_bytes = size;
        self.read_head(fx);
    }

    pub(super) fn aux_failed(&mut self, reason: &str, fenced: bool, fx: &mut Vec<Effect>) {
        if fenced {
            self.fence(reason, fx);
        }
        self.aux_down(reason, fx);
    }

    pub(super) fn aux_closed(&mut self, reason: &str, fx: &mut Vec<Effect>) {
        self.aux_down(reason, fx);
    }

    fn aux_down(&mut self, reason: &str, fx: &mut Vec<Effect>) {
        if self.aux.problem.as_deref() != Some(reason) {
            let text = format!("auxiliary out of reach: {reason}");
            fx.push(Effect::Log { level: Level::Warn, text });
        }
        self.aux.problem = Some(reason.to_string());
        if matches!(self.aux.phase, Phase::Ready | Phase::Preparing { .. }) || self.aux.since_ns == 0 {
            self.aux.since_ns = self.now.wall_ns;
        }
        // Whoever was just cut off asks at once why: it may have been fenced (I7).
        self.aux.gone = matches!(self.aux.phase, Phase::Opening { .. } | Phase::Preparing { .. });
        let patience = if self.aux.phase == Phase::Ready { RETRY_NS / 50 } else { RETRY_NS };
        let patience = if planted(Bug::TableForgotten) { u64::MAX >> 2 } else { patience };
        self.aux.phase = Phase::Idle { retry_ns: self.now.mono_ns + patience };
        self.due_ns = self.due_ns.min(self.now.mono_ns + patience);
        self.aux.ops.clear();
        self.aux.states_out = StatesOut::default();
        self.aux.commits.clear();
        self.aux.backfill.clear();
        self.aux.caught_up = false;
        self.aux.next = self.aux.durable.next();
        self.forget_ring_data(self.aux.next, self.tail);
    }

    /// Gives the connection up; it is tried again later.
    fn aux_reject(&mut self, reason: &str, fx: &mut Vec<Effect>) {
        fx.push(Effect::AuxClose);
        self.aux_down(reason, fx);
    }

    fn aux_read(&mut self, op: AuxOp, offset: u64, length: u64, fx: &mut Vec<Effect>) {
        let ticket = self.bare_ticket();
        self.aux.ops.insert(ticket, op);
        fx.push(Effect::AuxRead { ticket, offset, length });
    }

    fn aux_write(&mut self, op: AuxOp, offset: u64, parts: Vec<Bytes>, fua: bool, fx: &mut Vec<Effect>) {
        let ticket = self.bare_ticket();
        self.aux.ops.insert(ticket, op);
        self.aux.sent_bytes += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        fx.push(Effect::AuxWrite { ticket, offset, parts, fua });
    }

    pub(super) fn aux_done(&mut self, ticket: Ticket, result: DiskResult, fx: &mut Vec<Effect>) {
        // What belongs to an earlier connection is of no interest.
        let Some(op) = self.aux.ops.remove(&ticket) else { return };
        if let Phase::Preparing { since_ns } = &mut self.aux.phase {
            *since_ns = self.now.mono_ns;
        }
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(fail) => return self.aux_reject(&format!("an operation on the table failed: {fail}"), fx),
        };
        match op {
            AuxOp::ReadHead { sent_ns } if self.may_be_taken_since(sent_ns) => self.read_head(fx),
            AuxOp::ReadHead { .. } => self.head_read(&bytes, fx),
            AuxOp::Claim { anew: true } => self.write_first_heartbeat(fx),
            AuxOp::Claim { anew: false } | AuxOp::FirstHeartbeat => self.write_header(fx),
            AuxOp::WriteHead => self.head_ready(fx),
            AuxOp::Wipe { next } => self.wipe(next, fx),
            AuxOp::FenceBeforeFormat { sent_ns } if self.may_be_taken_since(sent_ns) => {
                self.read_fence_before_format(fx)
            }
            AuxOp::FenceBeforeFormat { .. } => self.fence_before_format(&bytes, fx),
            AuxOp::ReadStates { offset } => self.states_read(offset, &bytes, fx),
            AuxOp::ReadLastRecord { pos } => self.last_record_read(pos, &bytes),
            AuxOp::Commit { last } => self.commit_done(last),
            AuxOp::Heartbeat { sent_ns } => {
                self.aux.rtt_ns = self.now.mono_ns - sent_ns;
                if self.aux.fencing {
                    self.renew_lease(sent_ns);
                }
            }
            AuxOp::ReadFence { sent_ns } => self.fence_read(&bytes, sent_ns, fx),
            AuxOp::States => self.aux.states_out.left -= 1,
        }
    }

    /// Whether the next write would take the slot of one that the table is still needed for (I4).
    ///
    /// While the table is open that is every write not copied yet. Out of reach, its slots are taken when it is back:
    /// until then those count that only it may know, of this incarnation or an earlier one.
    pub(super) fn table_full(&self) -> bool {
        // Before its first copy is complete DR cannot be promoted, and all of these orders are nobody's report.
        if self.dr.ready() && !self.dr.synced && !self.ring_takes() {
            return false;
        }
        let slots = self.table_slots();
        let needed_after = if self.aux.phase == Phase::Ready {
            self.floor()
        } else {
            let known = self.known_elsewhere();
            if known >= self.aux.durable.max(self.first.prev()) {
                return false;
            }
            known
        };
        // Records of our own, which nothing keeps waiting in `bunker`, have a few left.
        let left = if self.ring_needs_slots() { OWN_SLOTS } else { 1 };
        self.tail.0 - needed_after.0.min(self.tail.0) + left >= slots && !planted(Bug::SlotReusedEarly)
    }

    /// Records of the table, of the configuration's while it has not been seen.
    pub(super) fn table_slots(&self) -> u64 {
        self.aux.layout.map_or(self.options.table_slots, |layout| layout.slots)
    }

    /// Everything up to here is told of by DR, whatever becomes of the table.
    fn known_elsewhere(&self) -> Seq {
        self.floor().max(self.aux.found_floor).max(self.journal_held())
    }

    /// The last seq whose record may be written now: it takes no slot that only the table may need. Records of our own,
    /// which nothing keeps waiting, come to this after a loss of power, when seqs go on far behind the last.
    fn slots_until(&self) -> Seq {
        let ring = self.ring_holds_data();
        let bound = (ring || self.options.overflow != Overflow::Coalesce) && !planted(Bug::SlotReusedEarly);
        let slots = self.aux.layout.map_or(u64::MAX, |layout| layout.slots);
        // DR's journal goes on over such a gap, and over what a batch went ahead of, be it from before this start. What was
        // written before it may stand in the table alone, until the cut of a DR that can be promoted has passed it.
        let led = self.dr.cut < self.dr.never_gets && !planted(Bug::SlotsOverLeap);
        let over_gap = self.dr.synced && (self.dr.cut.next() < self.log_began || led);
        let known = if over_gap {
            self.dr.cut.max(self.aux.found_floor)
        } else if ring {
            self.floor().max(self.aux.found_floor)
        } else {
            self.known_elsewhere()
        };
        let until = if bound { Seq(known.0.saturating_add(slots)) } else { Seq(u64::MAX) };
        until.min(self.slots_quiet_until(slots))
    }

    /// The last seq whose slot nothing is on its way to: a server may carry out in any order what it was asked for at the
    /// same time, and an older record, or its state, would stand there in the end.
    fn slots_quiet_until(&self, slots: u64) -> Seq {
        let StatesOut { left, oldest } = self.aux.states_out;
        let arrived = self.aux.arrived();
        let quiet = if left > 0 { arrived.min(oldest.prev()) } else { arrived };
        Seq(quiet.0.saturating_add(slots))
    }

    /// Whether later records have taken the slots of writes that are not copied, be it before the auxiliary went out of reach:
    /// the policy has given them up.
    #[must_use]
    pub(super) fn table_overrun(&self) -> bool {
        let written = if self.aux.phase == Phase::Ready { self.tail } else { self.aux.written };
        !self.options.standalone && written.0.saturating_sub(self.floor().0) > self.table_slots()
    }

    // ---- opening -----------------------------------------------------------------------------

    fn read_head(&mut self, fx: &mut Vec<Effect>) {
        self.aux_read(AuxOp::ReadHead { sent_ns: self.now.mono_ns }, 0, table::RECORDS_AT, fx);
    }

    fn head_read(&mut self, bytes: &Bytes, fx: &mut Vec<Effect>) {
        if bytes.iter().all(|byte| *byte == 0) {
            return self.format_blank(fx);
        }
        let header = match TableHeader::decode(&bytes[..BLOCK_BYTES]) {
            Ok(header) => header,
            Err(why) => return self.judge_unreadable(bytes, &why, fx),
        };
        if header.group != self.group() {
            let text = format!(
                "the status table belongs to group {:016x}, not to this one ({:016x}); name another region, or, if that \
                 group is gone, fill the first 16 KiB of this one with zeroes",
                header.group.0,
                self.group().0
            );
            return self.aux_reject(&text, fx);
        }
        if header.layout().total_bytes() > self.aux.region_bytes {
            return self.aux_reject("the region is smaller than the table in it; restore its size", fx);
        }
        self.aux.layout = Some(header.layout());
        let beat = Heartbeat::decode(&bytes[2 * BLOCK_BYTES..3 * BLOCK_BYTES]).ok();
        self.aux.found_floor = beat.map_or(Seq(0), |beat| beat.floor);
        self.aux.found_tail = beat.map_or(Seq(0), |beat| beat.tail);
        self.aux.counter = beat.map_or(0, |beat| beat.counter);
        match Fence::in_force(bytes) {
            Ok(fence) if !self.may_hold(&fence, fx) => {}
            Ok(fence) if fence == self.own_fence() => self.write_header(fx),
            // A damaged fence block can only be a torn write of a taker; the next epoch decides.
            _ => self.claim(false, fx),
        }
    }

    /// Whether nobody holds the table that this primary has to give way to. False after refusing it.
    fn may_hold(&mut self, fence: &Fence, fx: &mut Vec<Effect>) -> bool {
        let (epoch, owner) = (self.superblock.epoch, self.superblock.owner);
        if fence.epoch > epoch {
            let text = format!("epoch {} has taken the status table, this primary is of epoch {epoch}", fence.epoch);
            self.fence(&text, fx);
            self.aux_reject(&text, fx);
            return false;
        }
        if fence.epoch == epoch && fence.owner != owner && fence.epoch != Epoch(0) {
            let text = format!("a second primary ({:016x}) of epoch {epoch} holds the status table", fence.owner.0);
            self.aux_reject(&text, fx);
            return false;
        }
        true
    }

    fn head_ready(&mut self, fx: &mut Vec<Effect>) {
        let layout = self.aux.layout.expect("known once the head is written");
        if layout.payload_bytes > 0 && self.aux.ring_pos == 0 && self.options.protect == Protect::Bunker {
            return self.read_states(layout.states_at, fx);
        }
        self.aux_ready();
    }

    fn read_states(&mut self, offset: u64, fx: &mut Vec<Effect>) {
        let layout = self.aux.layout.expect("known while preparing");
        let end = layout.states_at + layout.slots * STATE_BYTES as u64;
        let length = STATES_READ_BYTES.min(end - offset);
        self.aux_read(AuxOp::ReadStates { offset }, offset, length, fx);
    }

    /// What an earlier incarnation left in the payload ring and DR may still need.
    fn states_read(&mut self, offset: u64, bytes: &Bytes, fx: &mut Vec<Effect>) {
        let layout = self.aux.layout.expect("known while preparing");
        for raw in bytes.chunks_exact(STATE_BYTES) {
            let Ok(state) = SlotState::decode(raw) else { continue };
            if state.payload_pos > PAYLOAD_POS_MAX {
                continue;
            }
            if self.aux.ring_found.is_none_or(|(_, pos)| state.payload_pos > pos) {
                self.aux.ring_found = Some((state.seq, state.payload_pos));
            }
            if state.seq > self.aux.found_floor {
                self.aux.ring_live.push_back((state.seq, state.payload_pos));
            }
        }
        let next = offset + bytes.len() as u64;
        if next < layout.states_at + layout.slots * STATE_BYTES as u64 {
            return self.read_states(next, fx);
        }
        self.aux.ring_live.make_contiguous().sort_unstable();
        match self.aux.ring_found {
            Some((seq, pos)) => {
                let offset = layout.record_offset(seq);
                self.aux_read(AuxOp::ReadLastRecord { pos }, offset, RECORD_BYTES as u64, fx);
            }
            None => self.aux_ready(),
        }
    }

    fn last_record_read(&mut self, pos: u64, bytes: &Bytes) {
        let layout = self.aux.layout.expect("known while preparing");
        let length = OrderRecord::decode(bytes).map_or(u64::from(u32::MAX), |record| record.payload_bytes());
        // An unreadable record: start at the next lap, beyond whatever is there.
        let after = pos + spool::entry_bytes(length);
        self.aux.ring_pos =
            if after - pos > layout.payload_bytes { (pos + 1).next_multiple_of(layout.payload_bytes) } else { after };
        self.aux_ready();
    }

    fn aux_ready(&mut self) {
        let layout = self.aux.layout.expect("known once ready");
        self.aux.phase = Phase::Ready;
        self.aux.problem = None;
        self.aux.unreadable = None;
        self.aux.since_ns = self.now.wall_ns;
        self.aux.last_heartbeat_ns = 0;
        let floor = self.floor().max(self.aux.found_floor.min(self.tail));
        let oldest = Seq((self.tail.0 + 1).saturating_sub(layout.slots)).max(self.log_first);
        self.aux_goes_on(self.aux.durable.next().max(floor.next()).max(oldest));
        self.aux.states_tail = self.aux.next.prev();
    }

    /// The table continues with record `next`. What of this incarnation it never gets, and DR has not either, is
    /// not protected by it (I3): until DR has that, the auxiliary counts as out of reach.
    fn aux_goes_on(&mut self, next: Seq) {
        let known = self.aux.durable.max(self.floor()).max(self.first);
        if next.prev() > known {
            self.aux.held = if self.aux.skipped <= self.floor() { self.aux.durable } else { self.aux.held };
            self.aux.skipped = next.prev();
        }
        self.aux.next = next;
        self.aux.durable = next.prev();
    }

    // ---- running -----------------------------------------------------------------------------

    pub(super) fn tick_aux(&mut self, fx: &mut Vec<Effect>) {
        if !self.may_connect() {
            return;
        }
        let now = self.now.mono_ns;
        match self.aux.phase {
            Phase::Idle { retry_ns } if now >= retry_ns => {
                self.aux.phase = Phase::Opening { since_ns: now };
                fx.push(Effect::AuxOpen { epoch: self.superblock.epoch, owner: self.superblock.owner });
            }
            Phase::Opening { since_ns } if now > since_ns + crate::limits::LINK_SILENCE_NS => {
                self.aux_reject("no answer to the connection", fx);
            }
            Phase::Preparing { since_ns } if now > since_ns + crate::limits::LINK_SILENCE_NS => {
                self.aux_reject("no answer while the table was looked at", fx);
            }
            Phase::Ready => {
                let oldest = self.aux.commits.front().map_or(now, |commit| commit.sent_ns);
                if now > oldest + crate::limits::LINK_SILENCE_NS || self.heartbeat_overdue() {
                    return self.aux_reject("no answer within the time allowed", fx);
                }
                let beating = || self.aux.ops.values().any(|op| matches!(op, AuxOp::Heartbeat { .. }));
                if now >= self.aux.last_heartbeat_ns + PING_EVERY_NS && !beating() {
                    self.beat(fx);
                }
                self.flush_states(fx);
            }
            _ => {}
        }
    }

    fn heartbeat_overdue(&self) -> bool {
        self.aux.ops.values().any(|op| match op {
            AuxOp::Heartbeat { sent_ns } | AuxOp::ReadFence { sent_ns } => {
                self.now.mono_ns > sent_ns + crate::limits::LINK_SILENCE_NS
            }
            _ => false,
        })
    }

    /// Its tail is what whoever reads the table has to find there, unless a later lap has taken the slot.
    fn heartbeat(&self) -> Heartbeat {
        let floor = self.floor().max(self.aux.found_floor);
        Heartbeat {
            epoch: self.superblock.epoch,
            owner: self.superblock.owner,
            counter: self.aux.counter,
            wall_ns: self.now.wall_ns,
            floor,
            tail: self.aux.committed.max(self.aux.found_tail).max(floor),
        }
    }

    fn beat(&mut self, fx: &mut Vec<Effect>) {
        let sent_ns = self.now.mono_ns;
        self.aux.last_heartbeat_ns = sent_ns;
        self.aux.counter += 1;
        self.aux_write(AuxOp::Heartbeat { sent_ns }, table::HEARTBEAT_AT, vec![self.heartbeat_block()], true, fx);
        if !self.aux.fencing {
            self.aux_read(AuxOp::ReadFence { sent_ns }, 0, table::RECORDS_AT, fx);
        }
    }

    /// On storage that cannot fence, the writer looks whether it still holds the table (I7).
    fn fence_read(&mut self, bytes: &Bytes, sent_ns: u64, fx: &mut Vec<Effect>) {
        match Fence::in_force(bytes) {
            Ok(fence) if fence == self.own_fence() => self.renew_lease(sent_ns),
            Ok(fence) => {
                if self.may_hold(&fence, fx) {
                    self.aux_reject("this primary's fence block is gone from the status table", fx);
                }
            }
            Err(why) => self.aux_reject(&format!("the fence block cannot be read: {why}"), fx),
        }
    }

    /// Whether records wait that could be written to the table now.
    pub(super) fn commits_can_go(&self) -> bool {
        self.aux.phase == Phase::Ready
            && self.fenced.is_none()
            && !self.aux.reading_log
            && !self.aux.ring_waits
            && self.aux.next <= self.tail.min(self.slots_until())
            && self.aux.commits.len() < COMMITS_INFLIGHT_MAX
    }

    pub(super) fn pump_aux(&mut self, fx: &mut Vec<Effect>) {
        if self.aux.phase != Phase::Ready || self.fenced.is_some() {
            return;
        }
        self.release_ring();
        let until = self.slots_until();
        while self.aux.commits.len() < COMMITS_INFLIGHT_MAX && self.aux.next <= self.tail.min(until) {
            let mut records = self.next_records(Peer::Aux, fx);
            records.retain(|record| record.seq <= until);
            if records.is_empty() {
                return;
            }
            self.commit(&records, fx);
            if self.aux.ring_waits {
                return;
            }
        }
        if self.aux.next > self.tail {
            self.aux.caught_up = true;
        }
    }

    /// One group commit: the records, and in `bunker` their payloads and where they are.
    fn commit(&mut self, records: &[OrderRecord], fx: &mut Vec<Effect>) {
        let layout = self.aux.layout.expect("known once ready");
        let first = records[0].seq;
        let room = usize::try_from(layout.slots - layout.slot(first)).unwrap_or(usize::MAX);
        let records = &records[..records.len().min(room)];
        let (mut writes, mut taken) = (Vec::new(), records.len());
        self.aux.ring_waits = false;
        if self.options.protect == Protect::Bunker && layout.payload_bytes > 0 {
            taken = self.commit_payloads(records, layout, &mut writes);
        }
        let Some(last) = records[..taken].last().map(|record| record.seq) else { return };
        let records = &records[..taken];
        let mut bytes = BytesMut::with_capacity(records.len() * RECORD_BYTES);
        records.iter().for_each(|record| bytes.extend_from_slice(&record.encode()));
        writes.push((layout.record_offset(first), vec![bytes.freeze()]));
        self.aux.commits.push_back(Commit { first, last, left: writes.len(), sent_ns: self.now.mono_ns });
        (self.aux.next, self.aux.written) = (last.next(), self.aux.written.max(last));
        if planted(Bug::AuxCommitEarly) {
            self.aux.durable = last;
        }
        for (offset, parts) in writes {
            let bytes: usize = parts.iter().map(Bytes::len).sum();
            self.aux.order_bytes += (bytes + REQUEST_BYTES + SIMPLE_REPLY_BYTES) as u64;
            self.aux_write(AuxOp::Commit { last }, offset, parts, true, fx);
        }
    }

    fn commit_done(&mut self, last: Seq) {
        let Some(commit) = self.aux.commits.iter_mut().find(|commit| commit.last == last) else { return };
        commit.left -= 1;
        let sent_ns = commit.sent_ns;
        if self.aux.fencing {
            self.renew_lease(sent_ns);
        }
        let durable_before = self.aux.durable;
        while self.aux.commits.front().is_some_and(|commit| commit.left == 0) {
            let commit = self.aux.commits.pop_front().expect("just seen");
            self.aux.durable = self.aux.durable.max(commit.last);
            self.aux.committed = self.aux.committed.max(commit.last);
        }
        if self.options.protect == Protect::Bunker {
            self.forget_ring_data(durable_before.next(), self.aux.durable);
        }
    }

    // ---- records for a peer that is behind -----------------------------------------------------

    /// The next records for a peer: from the window, or from the intent log when they have left it. Empty
    /// while they are being read.
    pub(super) fn next_records(&mut self, peer: Peer, fx: &mut Vec<Effect>) -> Vec<OrderRecord> {
        let (next, backfill) = match peer {
            Peer::Aux => (self.aux.next, &mut self.aux.backfill),
            Peer::Dr => (self.dr.next, &mut self.dr.backfill),
        };
        while backfill.front().is_some_and(|record| record.seq < next) {
            backfill.pop_front();
        }
        if backfill.front().is_some_and(|record| record.seq == next) {
            let count = backfill.len().min(COMMIT_RECORDS_MAX);
            return backfill.drain(..count).collect();
        }
        if next >= self.window.first() {
            let entries = self.window.from(next).take(COMMIT_RECORDS_MAX);
            // DR applies an order without payload as soon as it has it, and waits for ever for a payload that nobody knows.
            let may_go = |entry: &&Entry| peer == Peer::Aux || entry.remembered();
            return entries.take_while(may_go).map(|entry| entry.record).collect();
        }
        self.read_log(peer, next, fx);
        Vec::new()
    }

    pub(super) fn read_log(&mut self, peer: Peer, first: Seq, fx: &mut Vec<Effect>) {
        let reading = match peer {
            Peer::Aux => &mut self.aux.reading_log,
            Peer::Dr => &mut self.dr.reading_log,
        };
        if std::mem::replace(reading, true) {
            return;
        }
        let to_end = self.log.slots - first.0 % self.log.slots;
        let count = (self.tail.0 - first.0 + 1).min(to_end).min(4 * COMMIT_RECORDS_MAX as u64);
        let kind = DiskKind::Read { offset: self.log.record_offset(first), length: count * RECORD_BYTES as u64 };
        let count = usize::try_from(count).expect("a few commits");
        let ticket = self.ticket(Pending::LogRead { peer, first, count });
        fx.push(Effect::Disk(DiskOp { ticket, file: File::IntentLog, kind }));
    }

    pub(super) fn log_read(&mut self, peer: Peer, first: Seq, count: usize, bytes: &Bytes, fx: &mut Vec<Effect>) {
        let mut records = VecDeque::with_capacity(count);
        for (at, raw) in bytes.chunks_exact(RECORD_BYTES).enumerate() {
            match OrderRecord::decode(raw) {
                Ok(record) if record.seq.0 == first.0 + at as u64 => records.push_back(record),
                _ => break,
            }
        }
        match peer {
            Peer::Aux => {
                self.aux.reading_log = false;
                if records.is_empty() && self.aux.next == first {
                    // Overwritten or damaged: the ring at the auxiliary goes on with the next one there is.
                    self.aux_goes_on(self.log_first.max(first.next()));
                }
                self.aux.backfill = records;
            }
            Peer::Dr => {
                self.dr.reading_log = false;
                self.dr_log_read(first, records, fx);
            }
        }
    }
}
