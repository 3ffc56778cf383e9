//! One operation on a volume: what it is, how far it got on the connection that there is, and what it has brought.

use std::fmt;

use bytes::{Bytes, BytesMut};

use crate::core::allocation::Stretch;
use crate::core::errno::Errno;
use crate::core::ids::Ticket;
use crate::core::machine::IoFail;

#[derive(Debug)]
pub struct Op {
    pub ticket: Ticket,
    pub work: Work,
    pub offset: u64,
    pub length: u64,
    /// Where the next request begins, and requests on the wire; of this connection.
    pub at: u64,
    pub left: usize,
    /// What a read has brought, by piece.
    pub data: Vec<Bytes>,
    pub failed: Option<Errno>,
    pub answered: bool,
}

#[derive(Debug)]
pub enum Work {
    Read,
    Write {
        parts: Vec<Bytes>,
        durable: bool,
    },
    /// `written`: as bytes, for the server does not do it by itself.
    Zero {
        unmap: bool,
        durable: bool,
        written: bool,
    },
    Status {
        most: usize,
        found: Vec<Stretch>,
    },
}

impl Op {
    pub fn changes(&self) -> bool {
        matches!(self.work, Work::Write { .. } | Work::Zero { .. })
    }

    pub fn durable(&self) -> bool {
        matches!(self.work, Work::Write { durable: true, .. } | Work::Zero { durable: true, .. })
    }

    pub fn end(&self) -> u64 {
        self.offset + self.length
    }

    pub fn kept_bytes(&self) -> u64 {
        let bytes = if let Work::Write { .. } = self.work { self.length } else { 0 };
        if self.changes() { bytes + CHANGE_BYTES } else { 0 }
    }

    /// Whether it has bytes in common with another.
    pub fn overlaps(&self, other: &Op) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }

    /// Whether an error means no more than that the server does not write zeroes by itself: they are written instead.
    pub fn can_be_written(&self, errno: Errno) -> bool {
        errno == Errno::NotSup && matches!(self.work, Work::Zero { written: false, .. })
    }

    /// That the server at `place` has answered it with an error.
    pub fn refused(&self, place: &str, errno: Errno) -> IoFail {
        let text = format!("{place}: {self}: the server answers {errno}");
        if errno == Errno::NoSpc { IoFail::NoSpace(text) } else { IoFail::Other(text) }
    }

    /// As it was before any connection.
    pub fn begin_again(&mut self) {
        (self.at, self.left, self.failed) = (self.offset, 0, None);
        self.data.clear();
        if let Work::Status { found, .. } = &mut self.work {
            found.clear();
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.work {
            Work::Read => "read",
            Work::Write { .. } => "write",
            Work::Zero { .. } => "zeroing",
            Work::Status { .. } => "block status",
        };
        write!(f, "{what} of {} bytes at {}", self.length, self.offset)
    }
}

/// `length` bytes of a run of parts from `skip` on.
pub fn part(parts: &[Bytes], mut skip: u64, length: u64) -> Vec<Bytes> {
    let mut taken = Vec::with_capacity(parts.len());
    let mut left = length;
    for part in parts {
        let here = part.len() as u64;
        if skip >= here {
            skip -= here;
            continue;
        }
        let bytes = left.min(here - skip);
        if bytes == 0 {
            break;
        }
        let (from, to) = (skip as usize, (skip + bytes) as usize);
        taken.push(part.slice(from..to));
        (skip, left) = (0, left - bytes);
    }
    taken
}

pub fn join(mut data: Vec<Bytes>) -> Bytes {
    if data.len() == 1 {
        return data.remove(0);
    }
    let mut joined = BytesMut::with_capacity(data.iter().map(Bytes::len).sum());
    data.iter().for_each(|part| joined.extend_from_slice(part));
    joined.freeze()
}

/// What a change is counted with beside its bytes.
const CHANGE_BYTES: u64 = 256;
