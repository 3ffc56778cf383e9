//! One stream for payloads to DR: whether it is up, and what is on it.

use std::collections::BTreeMap;

use super::backlog::Backlog;
use crate::core::ids::{Conn, Seq};
use crate::limits::{STREAM_BYTES_PER_SECOND_MIN, STREAM_STALL_NS};
use crate::primary::fifo::Staged;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Idle { retry_ns: u64 },
    Connecting { conn: Conn, since_ns: u64 },
    Greeting { conn: Conn, since_ns: u64 },
    Up { conn: Conn },
}

impl Phase {
    pub fn conn(self) -> Option<Conn> {
        match self {
            Phase::Idle { .. } => None,
            Phase::Connecting { conn, .. } | Phase::Greeting { conn, .. } | Phase::Up { conn } => Some(conn),
        }
    }
}

/// A payload on a stream, not acknowledged.
#[derive(Clone, Debug)]
pub struct OnStream {
    pub bytes: u64,
    /// Its number in the backlog of the stream.
    pub number: u64,
    /// Set when it came from the disk FIFO.
    pub staged: Option<Staged>,
}

#[derive(Clone, Debug)]
pub struct Stream {
    pub phase: Phase,
    pub sent: BTreeMap<Seq, OnStream>,
    /// Pieces of a batch by index: bytes, and the number in the backlog.
    pub pieces: BTreeMap<u64, (u64, u64)>,
    /// Payloads on it that are nobody's concern any more, by their number in the backlog.
    pub forgotten: BTreeMap<Seq, u64>,
    pub backlog: Backlog,
    pub unacked: u64,
    /// When DR last said something on it.
    pub heard_ns: u64,
    pub pinged_ns: u64,
}

impl Stream {
    pub fn new() -> Stream {
        let phase = Phase::Idle { retry_ns: 0 };
        Stream {
            phase,
            sent: BTreeMap::new(),
            pieces: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            backlog: Backlog::default(),
            unacked: 0,
            heard_ns: 0,
            pinged_ns: 0,
        }
    }

    /// How long it may be silent: a ping waits behind the longest payload.
    pub fn patience_ns(&self) -> u64 {
        let lengths = self.sent.values().map(|sent| sent.bytes).chain(self.pieces.values().map(|piece| piece.0));
        STREAM_STALL_NS + lengths.max().unwrap_or(0) * 1_000_000_000 / STREAM_BYTES_PER_SECOND_MIN
    }

    pub fn conn(&self) -> Option<Conn> {
        self.phase.conn()
    }

    pub fn up(&self) -> Option<Conn> {
        if let Phase::Up { conn } = self.phase { Some(conn) } else { None }
    }
}
