//! The primary's machine: the life of a write, from its seq to its reply.
//!
//! It owns the order (I1), says when a block may change (I2), when a write is acknowledged (I3), and
//! stops for ever once a higher epoch is seen (I7). Where payloads and records go is in the files
//! beside this one; all of them are methods of [`Machine`].

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::batch::{Batch, Mode};
use super::fifo::DiskFifo;
use super::intake::GATHER_SLACK_NS;
use super::intent::IntentMap;
use super::lag::{Ages, Changed, Outlook};
use super::link::DrLink;
use super::mending::Mending;
use super::paths::End;
use super::policy::NOTHING;
use super::recovery::Recovered;
use super::resize::Resize;
use super::table::AuxLink;
use super::verify::{self, Verify};
use super::waiting::Waiting;
use super::window::{Held, Window};
use crate::cluster::status::VerifyReport;
use crate::core::allocation::Stretch;
use crate::core::errno::Errno;
use crate::core::ids::{Chain, Conn, Epoch, Extent, GroupId, Owner, Seq, Ticket, Volume};
use crate::core::machine::{DiskKind, DiskOp, DiskResult, Level, Now};
use crate::core::modes::{Ack, LagMax, Overflow, Protect, Require, Scrub};
use crate::core::op::Op;
use crate::core::overlap::InFlight;
use crate::core::planted::{Bug, planted};
use crate::core::ranges::Cover;
use crate::format::intent::LogLayout;
use crate::format::superblock::{self, Superblock};
use crate::format::wire::Message;
use crate::limits::{BLOCK_BYTES, RECORD_BYTES, seq_reserve};

/// Files of the primary's directory, and the volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum File {
    Superblock,
    IntentMap,
    IntentLog,
    Fifo,
    Volume(Volume),
}

/// Names a request of a client; chosen by the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Req(pub u64);

/// A request that changes something or waits for something. Reads do not come here.
#[derive(Clone, Debug)]
pub enum Kind {
    Write { offset: u64, data: Bytes, fua: bool },
    Zeroes { offset: u64, length: u64, fua: bool, no_hole: bool },
    Trim { offset: u64, length: u64, fua: bool },
    Flush,
}

#[derive(Clone, Debug)]
pub enum Input {
    Request {
        req: Req,
        volume: Volume,
        kind: Kind,
    },
    /// Everything that was ready has been delivered: group commits go out now.
    EndOfTurn,
    Disk {
        ticket: Ticket,
        result: DiskResult,
    },
    AuxOpened {
        size: u64,
        fencing: bool,
    },
    AuxFailed {
        reason: String,
        fenced: bool,
    },
    AuxDone {
        ticket: Ticket,
        result: DiskResult,
    },
    /// The connection is gone; operations under way on it are never completed.
    AuxClosed {
        reason: String,
    },
    DrUp {
        conn: Conn,
    },
    DrMessage {
        conn: Conn,
        message: Message,
    },
    /// The kernel has taken what was sent on a connection, but for this many bytes.
    DrTaken {
        conn: Conn,
        left: u64,
    },
    DrClosed {
        conn: Conn,
        reason: String,
    },
    /// Answer to [`Effect::ListAllocated`].
    Allocated {
        ranges: Cover,
    },
    /// Answer to [`Effect::LookForHoles`]: from the start of the range on, as much as was found out together.
    Stretches {
        batch: Seq,
        extent: Extent,
        stretches: Vec<Stretch>,
    },
    /// A volume is to have `size` bytes. Its store, and the file of the intent map, have room for that already.
    Resize {
        volume: Volume,
        size: u64,
    },
    /// Both sides are to be compared.
    Verify(verify::Asked),
    /// No longer.
    StopVerify,
    Tick,
    Stop,
}

#[derive(Clone, Debug)]
pub enum Effect {
    Reply {
        req: Req,
        result: Result<(), Errno>,
    },
    Disk(DiskOp<File>),
    AuxOpen {
        epoch: Epoch,
        owner: Owner,
    },
    AuxRead {
        ticket: Ticket,
        offset: u64,
        length: u64,
    },
    AuxWrite {
        ticket: Ticket,
        offset: u64,
        parts: Vec<Bytes>,
        fua: bool,
    },
    AuxClose,
    DrConnect {
        conn: Conn,
        /// It is the one that carries order records.
        records: bool,
    },
    DrSend {
        conn: Conn,
        message: Message,
    },
    DrClose {
        conn: Conn,
        end: End,
    },
    /// Asks which ranges of the volumes are allocated in their backing stores.
    ListAllocated,
    /// Asks which parts of a range have no storage. For one batch it is asked one at a time; nobody waits for that of a batch
    /// that was given up.
    LookForHoles {
        batch: Seq,
        extent: Extent,
    },
    /// What became of [`Input::Resize`]. `Ok`: the order is as durable as the mode asks, the volume has the size from now
    /// on, and a start knows it.
    /// Its seq is in it; none where the volume had that size already. `dr_asked`: whether DR was asked for room; nothing
    /// where there is none to ask.
    Resized {
        volume: Volume,
        size: u64,
        result: Result<Option<Seq>, Unresized>,
        dr_asked: Option<bool>,
    },
    /// What became of [`Input::Verify`], or of a comparison that was due; an error says why there is no result.
    Verified {
        result: Result<VerifyReport, String>,
    },
    Log {
        level: Level,
        text: String,
    },
    /// Nothing can be trusted any more: the process ends and a restart recovers.
    Fatal {
        text: String,
        /// Written to the superblock before, at these offsets, if that is still possible: what the next start has to know.
        marks: [(u64, Bytes); 2],
    },
    Stopped,
}

/// Why a volume was not resized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresized {
    pub text: String,
    /// Nothing was begun; the text says what would make it possible.
    pub refused: bool,
}

/// What the machine is told once.
#[derive(Clone, Debug)]
pub struct Options {
    pub group_name: String,
    /// Name and size in bytes of each volume; the directory knows better what size it has.
    pub volumes: Vec<(String, u64)>,
    pub protect: Protect,
    pub ack: Ack,
    pub require: Require,
    /// Go on acknowledging when cut off from both peers (gives up I7 in a partition).
    pub isolated_continue: bool,
    /// How long a write waits for its protection before it fails with EIO; 0: for ever.
    pub freeze_timeout_ns: u64,
    pub overflow: Overflow,
    pub lag_max: Option<LagMax>,
    pub fifo_memory_bytes: u64,
    pub fifo_disk_bytes: u64,
    pub streams: usize,
    pub table_slots: u64,
    /// Size of DR's spool as far as is known here, until DR says it.
    pub spool_bytes: u64,
    /// No peers: a promoted DR that serves alone.
    pub standalone: bool,
    /// Bytes of the auxiliary's region to leave for payloads when it is formatted (`bunker`).
    pub table_payload_bytes: u64,
    /// Extents of the intent map that are set together.
    pub intent_neighbours: u64,
    /// In a range of a batch that is as long as this holes are looked for before it is read, bytes.
    pub look_bytes: u64,
    /// DR is asked whether it has a piece of a batch before that crosses.
    pub asks: bool,
    /// DR is asked for room before a volume grows.
    pub ask_room: bool,
    /// Both sides are compared from time to time.
    pub scrub: Option<Scrub>,
    /// Drawn at each start.
    pub incarnation: u64,
}

/// What an operation under way was for.
#[derive(Clone, Debug)]
pub(super) enum Pending {
    Local(Seq),
    IntentPage,
    Unwatched(&'static str),
    Superblock {
        reserved: Seq,
        fifo_head: u64,
        says: Says,
        /// What the other slot is given before any of it counts.
        again: Option<Box<Superblock>>,
    },
    MapHeader,
    Flush {
        volume: Volume,
        upto: usize,
    },
    CycleSync,
    StopSync,
    Spill {
        upto: u64,
        seqs: Vec<Seq>,
        held: Held,
    },
    FifoRead {
        pos: u64,
    },
    LogRead {
        peer: Peer,
        first: Seq,
        count: usize,
    },
    Chunk {
        batch: Seq,
        read: u64,
    },
    /// What a refused write has left.
    Mending,
    /// A range that is compared, by the number of the comparison.
    Compare(u64),
}

/// What a superblock says of sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Says {
    pub resizing: Option<(Volume, u64)>,
    pub resized: Seq,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Aux,
    Dr,
}

#[derive(Clone, Debug)]
pub(super) struct PendingFlush {
    pub req: Req,
    pub volume: Volume,
    pub seq: Seq,
    /// The sync that covers it has been issued, or completed.
    pub stage: FlushStage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlushStage {
    Waiting,
    Syncing,
    Synced,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(super) options: Options,
    pub(super) superblock: Superblock,
    pub(super) superblock_busy: bool,
    /// It changed while it was being written: up to where seqs are reserved then.
    pub(super) superblock_waits: Option<Seq>,
    /// The superblock of this incarnation is durable: a directory that is in use never looks cleanly stopped, so
    /// its seqs are never given out again. No record leaves before.
    pub(super) marked: bool,
    /// Seqs up to here may be assigned: the durable reservation.
    pub(super) reserved: Seq,
    /// The `EpochStart` of this incarnation.
    pub(super) first: Seq,
    /// The first of the last orders each of which may follow a gap: no write is behind it.
    pub(super) own_from: Seq,
    pub(super) tail: Seq,
    pub(super) chain: Chain,
    pub(super) window: Window,
    pub(super) inflight: Vec<InFlight<Seq>>,
    pub(super) intent: IntentMap,
    /// Writes whose intent is not durable yet, in seq order.
    pub(super) unintended: VecDeque<Seq>,
    /// What orders from before the start change and the intent map does not durably tell of yet.
    pub(super) unmarked: Vec<Extent>,
    /// Writes that may start on the local disk at the end of the turn.
    pub(super) startable: Vec<Seq>,
    /// Everything up to here is on the local disk.
    pub(super) local_done: Seq,
    pub(super) log: LogLayout,
    /// Oldest record that the intent log still holds.
    pub(super) log_first: Seq,
    /// The same when this process started: seqs may have a gap before it, which a loss of power left.
    pub(super) log_began: Seq,
    /// Records up to here have been handed to the intent log.
    pub(super) log_written: Seq,
    pub(super) watermark_saved: (Seq, Seq, Seq),
    /// Everything up to here has its protection.
    pub(super) protected: Seq,
    /// Everything up to here was acknowledged once, whatever peers have been lost since.
    pub(super) acked: Seq,
    /// Up to here something may have been.
    pub(super) allowed: Seq,
    /// Replies were withheld for the lease: the whole window has to be looked at again.
    pub(super) withheld: bool,
    pub(super) held_requests: Waiting<(Req, Volume, Kind)>,
    pub(super) flushes: Vec<PendingFlush>,
    pub(super) fifo: DiskFifo,
    /// Payloads in memory that are still to be copied.
    pub(super) held: Held,
    /// The part of it that is on its way to the disk FIFO.
    pub(super) spilling: Held,
    /// No payload before it is in memory and could be spilled.
    pub(super) spill_next: Seq,
    /// Everything up to here is durable at DR, or carries no payload.
    pub(super) copied: Seq,
    pub(super) mode: Mode,
    /// Ranges of payloads that were dropped and that no batch has taken over.
    pub(super) lost: Cover,
    /// Ranges of writes that a volume had no room for.
    pub(super) mending: Mending,
    pub(super) verify: Verify,
    /// The batch whose end has not passed DR's cut yet, kept in case DR loses its pieces.
    pub(super) closing: Option<Batch>,
    pub(super) aux: AuxLink,
    pub(super) dr: DrLink,
    pub(super) pending: HashMap<Ticket, Pending>,
    pub(super) next_ticket: u64,
    pub(super) fenced: Option<String>,
    pub(super) lease_until_ns: u64,
    pub(super) frozen_since_ns: Option<u64>,
    /// Writes wait for room, which `overflow = "pace"` makes them do.
    pub(super) paced: Option<Paced>,
    /// Wall time since when writes are refused, and payloads dropped.
    pub(super) refused_since_ns: Option<u64>,
    pub(super) dropped_since_ns: Option<u64>,
    pub(super) stopping: Stopping,
    pub(super) stop_syncs_left: usize,
    /// The syncs that end a cycle of the intent map: issued, and how many are under way.
    pub(super) cycle_syncing: bool,
    pub(super) cycle_syncs_left: usize,
    pub(super) ages: Ages,
    /// DR's cut as it was known before this start, until DR says where it stands.
    pub(super) cut_before: Seq,
    /// What of the bound on the lag the write waits for whose turn it is.
    pub(super) lag_waits: Option<&'static str>,
    pub(super) changed: Changed,
    pub(super) outlook: Outlook,
    pub(super) now: Now,
    pub(super) next_conn: u64,
    /// Time of the next periodic work, monotonic.
    pub(super) due_ns: u64,
    pub(super) dropped_writes: u64,
    /// No batch begins before this, and how long the last pause was.
    pub(super) batch_from_ns: u64,
    pub(super) batch_pause_ns: u64,
    /// A batch has been completed since this start.
    pub(super) settled_start: bool,
    /// Batches given up since both sides were last consistent.
    pub(super) batches_given_up: u64,
    pub(super) gave_up_why: String,
    /// When what is being gathered goes out; the tail when it last did.
    pub(super) gather_ns: Option<u64>,
    pub(super) gathered_tail: Seq,
    /// Volumes that are to be resized, one after the other.
    pub(super) resizes: VecDeque<Resize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopping {
    No,
    Draining,
    Syncing,
    Stopped,
}

/// How often periodic work is looked at while there is any, nanoseconds.
pub(super) const PERIOD_NS: u64 = 100_000_000;
/// How long bits of the intent map stay at the least, nanoseconds.
pub(super) const CYCLE_NS: u64 = 5_000_000_000;

impl Machine {
    /// A machine that goes on from what recovery found. Its first record is an `EpochStart`.
    #[must_use]
    pub fn new(options: Options, recovered: Recovered, now: Now, fx: &mut Vec<Effect>) -> Machine {
        let first = recovered.tail.next();
        let volumes = options.volumes.len();
        let mode = if options.standalone || recovered.lost_any { Mode::Coalescing } else { Mode::Stream };
        let mut machine = Machine {
            reserved: recovered.superblock.seq,
            superblock: recovered.superblock,
            superblock_busy: false,
            superblock_waits: None,
            marked: false,
            first,
            own_from: recovered.own_from,
            tail: recovered.tail,
            chain: recovered.chain,
            window: Window::new(first),
            inflight: (0..volumes).map(|_| InFlight::new()).collect(),
            intent: {
                let mut intent = recovered.intent;
                intent.set_neighbours(options.intent_neighbours);
                intent
            },
            unintended: VecDeque::new(),
            unmarked: recovered.unmarked,
            startable: Vec::new(),
            local_done: recovered.tail,
            log: recovered.log,
            log_first: recovered.log_first,
            log_began: recovered.log_first,
            log_written: recovered.tail,
            watermark_saved: (Seq(0), Seq(0), Seq(0)),
            protected: NOTHING,
            acked: Seq(0),
            allowed: Seq(0),
            withheld: false,
            held_requests: Waiting::default(),
            flushes: Vec::new(),
            fifo: recovered.fifo,
            held: Held::default(),
            spilling: Held::default(),
            spill_next: Seq(0),
            copied: Seq(0),
            mode,
            lost: recovered.lost,
            mending: Mending::default(),
            verify: Verify::default(),
            closing: None,
            aux: AuxLink::new(recovered.log_first, recovered.tail, recovered.aux_skipped),
            dr: DrLink::new(options.spool_bytes),
            pending: HashMap::new(),
            next_ticket: 1,
            fenced: None,
            lease_until_ns: 0,
            frozen_since_ns: None,
            paced: None,
            refused_since_ns: None,
            dropped_since_ns: None,
            stopping: Stopping::No,
            stop_syncs_left: 0,
            cycle_syncing: false,
            cycle_syncs_left: 0,
            ages: Ages::recovered(recovered.oldest, now),
            cut_before: recovered.cut,
            lag_waits: None,
            changed: Changed::default(),
            outlook: Outlook::default(),
            now,
            next_conn: 1,
            due_ns: now.mono_ns,
            dropped_writes: 0,
            batch_from_ns: 0,
            batch_pause_ns: 0,
            settled_start: false,
            batches_given_up: 0,
            gave_up_why: String::new(),
            gather_ns: None,
            gathered_tail: Seq(0),
            resizes: VecDeque::new(),
            options,
        };
        machine.unmarked.retain(|extent| !machine.intent.want(*extent));
        machine.go_on_resizing();
        machine.reserve(fx);
        let previous = recovered.previous;
        machine.append_control(
            Op::EpochStart,
            previous.0,
            u64::from(machine.lost_any() && !machine.options.standalone),
            0,
        );
        machine.order_again();
        machine.end_of_turn(fx);
        machine
    }

    /// Takes one input; what is to be done is appended to `fx`.
    pub fn step(&mut self, now: Now, input: Input, fx: &mut Vec<Effect>) {
        self.notice_time(now);
        match input {
            Input::Request { req, volume, kind } => self.request(req, volume, kind, fx),
            Input::EndOfTurn => self.end_of_turn(fx),
            Input::Disk { ticket, result } => self.disk_done(ticket, result, fx),
            Input::AuxOpened { size, fencing } => self.aux_opened(size, fencing, fx),
            Input::AuxFailed { reason, fenced } => self.aux_failed(&reason, fenced, fx),
            Input::AuxDone { ticket, result } => self.aux_done(ticket, result, fx),
            Input::AuxClosed { reason } => self.aux_closed(&reason, fx),
            Input::DrUp { conn } => self.dr_up(conn, fx),
            Input::DrMessage { conn, message } => self.dr_message(conn, message, fx),
            Input::DrTaken { conn, left } => self.dr.taken(conn, left),
            Input::DrClosed { conn, reason } => self.dr_closed(conn, &reason, fx),
            Input::Allocated { ranges } => self.allocated(ranges, fx),
            Input::Stretches { batch, extent, stretches } => self.holes_found(batch, extent, &stretches),
            Input::Resize { volume, size } => self.resize(volume, size, fx),
            Input::Verify(asked) => self.verify(asked, fx),
            Input::StopVerify => self.stop_verify(fx),
            Input::Tick => self.end_of_turn(fx),
            Input::Stop => {
                if self.stopping == Stopping::No {
                    self.stopping = Stopping::Draining;
                }
            }
        }
    }

    /// When the machine wants its next `Tick`.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        let gather = self.gather_ns.map_or(u64::MAX, |due| due + GATHER_SLACK_NS);
        let verify = self.verify_due_ns().into_iter().chain(self.repair_due_ns()).min().unwrap_or(u64::MAX);
        (self.stopping != Stopping::Stopped).then_some(self.due_ns.min(gather).min(verify))
    }

    /// Whether reads may be answered from the local disk: not once fenced.
    #[must_use]
    pub fn readable(&self) -> bool {
        self.fenced.is_none()
    }

    /// Writes admitted and not answered, plus writes held back: the shell stops receiving beyond a bound (I9).
    #[must_use]
    pub fn held(&self) -> usize {
        self.held_requests.len()
    }

    pub(super) fn ticket(&mut self, pending: Pending) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.pending.insert(ticket, pending);
        ticket
    }

    /// A ticket for an operation at the auxiliary; those are kept by the auxiliary's link.
    pub(super) fn bare_ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket - 1)
    }

    pub(super) fn conn(&mut self) -> Conn {
        self.next_conn += 1;
        Conn(self.next_conn - 1)
    }

    /// How many seqs are reserved at a time: no fewer than whoever reads the table takes for the least.
    pub(super) fn reserve_ahead(&self) -> u64 {
        seq_reserve(self.options.table_slots.max(self.table_slots()))
    }

    pub(super) fn reserve(&mut self, fx: &mut Vec<Effect>) {
        if !self.superblock_busy {
            let reserved = Seq(self.tail.0 + self.reserve_ahead());
            self.superblock.seq = reserved;
            self.superblock.flags &= !superblock::CLEAN;
            self.write_superblock(reserved, fx);
        }
    }

    /// Writes the superblock, durably, to the slot not written last and then to the other one; one at a time: an older one
    /// must not land over a newer, nor both slots be lost at once.
    pub(super) fn write_superblock(&mut self, reserved: Seq, fx: &mut Vec<Effect>) {
        if self.superblock_busy && !planted(Bug::SuperblocksOverlap) {
            self.superblock_waits = self.superblock_waits.max(Some(reserved));
            return;
        }
        self.superblock_busy = true;
        let fifo_head = self.fifo.head();
        self.superblock.spool_pos = fifo_head;
        self.superblock.generation += 1;
        let says = Says { resizing: self.superblock.resizing, resized: self.superblock.resized };
        let block = self.superblock.clone();
        let again = (!planted(Bug::PrimarySuperblockOnce)).then(|| Box::new(block.clone()));
        self.put_superblock(&block, Pending::Superblock { reserved, fifo_head, says, again }, fx);
    }

    pub(super) fn put_superblock(&mut self, block: &Superblock, pending: Pending, fx: &mut Vec<Effect>) {
        let ticket = self.ticket(pending);
        let bytes = Bytes::copy_from_slice(&block.encode());
        fx.push(disk_write(ticket, File::Superblock, block.offset(), vec![bytes], true));
    }

    /// After a failed operation nothing that only a cache may hold is believed: the next start goes on as after a loss of
    /// power, even in the same boot. Seqs that the log forgot are never given out again, and what a volume forgot is copied.
    pub(super) fn disk_failed(&mut self, text: String, fx: &mut Vec<Effect>) {
        self.superblock.boot_id = superblock::NO_BOOT;
        self.superblock.flags &= !superblock::CLEAN;
        let marks = self.superblock.in_both_slots().map(|(offset, block)| (offset, Bytes::copy_from_slice(&block)));
        fx.push(Effect::Fatal { text, marks });
    }

    /// Everything up to here needs no slot of the table and no bit of the map any more.
    #[must_use]
    pub(super) fn floor(&self) -> Seq {
        if self.options.standalone {
            self.tail
        } else if self.catches_up() || self.dr.skipped > self.dr.cut {
            self.dr.cut
        } else {
            self.dr.cut.max(self.copied.min(self.dr.journal))
        }
    }

    /// Whether something was dropped that no batch has taken over.
    #[must_use]
    pub(super) fn lost_any(&self) -> bool {
        matches!(self.mode, Mode::Coalescing)
    }

    pub(super) fn group(&self) -> GroupId {
        self.superblock.group
    }

    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.superblock.epoch
    }

    #[must_use]
    pub fn tail(&self) -> Seq {
        self.tail
    }
}

/// A time in which writes wait for room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paced {
    pub since_wall_ns: u64,
    /// When it was last so, monotonic.
    pub seen_ns: u64,
    pub why: &'static str,
}

impl Pending {
    pub(super) fn what(&self) -> &'static str {
        match self {
            Pending::Local(_) => "local write",
            Pending::IntentPage | Pending::MapHeader => "intent map",
            Pending::Unwatched(what) => what,
            Pending::Superblock { .. } => "superblock",
            Pending::Flush { .. } | Pending::CycleSync | Pending::StopSync => "sync of a volume",
            Pending::Spill { .. } => "disk FIFO, writing",
            Pending::FifoRead { .. } => "disk FIFO, reading",
            Pending::LogRead { .. } => "intent log, reading",
            Pending::Chunk { .. } => "volume, reading for a batch",
            Pending::Mending => "volume, reading after a write without room",
            Pending::Compare(_) => "volume, reading to compare it",
        }
    }
}

/// A disk write as an effect.
pub(super) fn disk_write(ticket: Ticket, file: File, offset: u64, parts: Vec<Bytes>, durable: bool) -> Effect {
    Effect::Disk(DiskOp { ticket, file, kind: DiskKind::Write { offset, parts, durable } })
}

const _: () = assert!(RECORD_BYTES * 64 == BLOCK_BYTES);

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
