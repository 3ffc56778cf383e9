//! What the DR machine takes in and gives out. The machine is pure; its shell (`daemon`) and the
//! simulator carry these effects out in the order they were emitted.
//!
//! Every effect that promises something to a peer or an operator says what is durable before it (I3, I8).

use bytes::Bytes;

use crate::cluster::status::PromoteReport;
use crate::core::ids::{Chain, Conn, Epoch, Owner, Seq, Ticket, Volume};
use crate::core::machine::{DiskOp, DiskResult, IoFail, Level};
use crate::core::modes::{Ack, Protect, Require};
use crate::dr::promote::LossReport;
use crate::format::wire::Message;

/// The files of a DR directory, and the volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum File {
    /// Two slots of one block.
    Superblock,
    /// `Options::journal_bytes` long.
    Journal,
    /// `Options::spool_bytes` long, and what it has grown by.
    Spool,
    Volume(Volume),
}

/// What happens to the machine.
#[derive(Clone, Debug)]
pub enum Input {
    /// A replication connection was accepted.
    Opened { conn: Conn },
    /// A whole, verified message came in. `EndOfTurn` has to follow.
    Message { conn: Conn, message: Message },
    /// Everything that has come together was given.
    EndOfTurn,
    /// A replication connection is gone; also given after [`Effect::Close`].
    Closed { conn: Conn },
    /// A disk operation ended. `EndOfTurn` has to follow.
    Disk { ticket: Ticket, result: DiskResult },
    /// `deadline_ns` has passed.
    Tick,
    /// An operator wants this site promoted; `plan`: only says what would be.
    Promote { ticket: Ticket, plan: bool, force: bool },
    /// The region asked for by [`Effect::AuxOpen`] is open. `fencing`: it closes writers of older epochs itself.
    AuxOpened { size: u64, fencing: bool },
    /// It could not be opened; `fenced`: because a newer epoch or another owner is in force there.
    AuxFailed { reason: String, fenced: bool },
    /// An operation on the region ended.
    AuxDone { ticket: Ticket, result: DiskResult },
    /// The region was lost. Operations under way are not answered any more.
    AuxClosed { reason: String },
    /// The report of [`Effect::StoreReport`] is durable, or could not be made so.
    ReportStored { ticket: Ticket, result: Result<(), IoFail> },
    /// The store of a volume was asked to grow ([`Effect::Grow`]): the bytes it has now, or why it does not have enough, where
    /// that is and what to do.
    Grown { volume: Volume, result: Result<u64, Lacking> },
    /// The file of the spool is as long as [`Effect::GrowSpool`] asked, which a sync makes durable; or why it is not, and
    /// where.
    SpoolGrown { result: Result<(), String> },
    /// The operator gives up the recovery point: the volumes are copied anew, in place. Answered by [`Effect::RecopyDone`].
    Recopy { ticket: Ticket },
    /// The operator wants the process to end.
    Stop,
}

/// A store that is too small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// Bytes that it has.
    pub has: u64,
    /// Which it is, where, and what to do.
    pub text: String,
}

/// What the machine wants done.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Sends a message. `OrdersDurable`: those records are durable in the journal. `Copied`,
    /// `ChunksDurable`: those payloads are durable in the spool (chunks of a first sync: in the volume).
    /// `Welcome`: group, epoch and writer in it are durable in the superblock.
    Send {
        conn: Conn,
        message: Message,
    },
    /// Closes a connection after what was sent.
    Close {
        conn: Conn,
        reason: String,
    },
    Disk(DiskOp<File>),
    /// Sees to it that the store of a volume has this many bytes at least: a file is grown, durably, of anything else its size
    /// is looked at again. Answered by [`Input::Grown`].
    Grow {
        volume: Volume,
        size: u64,
    },
    /// Makes the file of the spool longer, with space reserved: it has this many bytes then. Answered by [`Input::SpoolGrown`].
    GrowSpool {
        bytes: u64,
    },
    /// Cuts the file of the spool to this many bytes; that nothing stands behind them is durable before.
    ShrinkSpool {
        bytes: u64,
    },
    /// Opens the status table: epoch 0 is the read-only view, another one fences older writers (I7); that
    /// this promotion is under way is durable before.
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
    /// Makes the loss report durable, replacing an older one; answered by [`Input::ReportStored`].
    StoreReport {
        ticket: Ticket,
        report: LossReport,
    },
    /// The end of a promotion or a plan. `Ok` without `plan`: report, volumes and superblock are durable.
    PromoteDone {
        ticket: Ticket,
        result: Result<PromoteReport, PromoteError>,
    },
    /// `Ok`: that the recovery point, which was this seq, is given up is durable. Or why it is not.
    RecopyDone {
        ticket: Ticket,
        result: Result<Seq, String>,
    },
    /// Serve the volumes as the writer of `epoch`, whose history goes on after `tail`. Emitted after a
    /// promotion, and at each start after one.
    Serve {
        epoch: Epoch,
        tail: Seq,
        chain: Chain,
    },
    Log {
        level: Level,
        text: String,
    },
    /// Nothing more can be promised: the shell ends the process with this text; a restart recovers.
    Fatal {
        text: String,
    },
    /// Everything is settled; the process may end.
    Stopped,
}

/// Why a promotion did not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct PromoteError {
    pub text: String,
    /// It would not have been safe (exit status 3): the text says what would make it so.
    pub refused_for_safety: bool,
}

/// What a DR site is told by its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub group_name: String,
    /// Name and size in bytes of each volume, in the order of the configuration. The sizes are those of a new directory: a
    /// superblock knows its own.
    pub volumes: Vec<(String, u64)>,
    /// Bytes, a multiple of one segment (1 MiB), at least two.
    pub journal_bytes: u64,
    /// Records of the status table: a promotion finds as many elsewhere.
    pub table_slots: u64,
    /// Bytes, a multiple of 1 MiB.
    pub spool_bytes: u64,
    /// Bytes that the spool may grow to, as far as is known; not more than `spool_bytes`: it does not.
    pub spool_bytes_max: u64,
    /// Bytes of payload kept in memory between receipt and apply; the rest is read back from the spool.
    pub cache_bytes: u64,
    pub protect: Protect,
    pub ack: Ack,
    pub require: Require,
    /// Whether the group has a status table anywhere.
    pub auxiliary: bool,
    /// Random identity of this directory; used when it is started for the first time.
    pub owner: Owner,
    /// Random number of the spool's log; used when it is started for the first time.
    pub nonce: u64,
}
