//! One connection to the server of a volume: what may be sent on it, what is on the wire, what a flush covers.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::op::{Op, Work, part};
use crate::core::ids::Ticket;
use crate::core::overlap::InFlight;
use crate::limits::{BACKING_PIECE_BYTES, BACKING_RANGE_BYTES, BACKING_STATUS_BYTES, BACKING_STATUS_BYTES_MIN};
use crate::nbd::client::{ClientSession, ExportInfo};
use crate::nbd::outbox::Outbox;
use crate::nbd::protocol::*;
use crate::nbd::slots::Slots;

/// One connection.
#[derive(Debug)]
pub struct Line {
    pub session: ClientSession,
    pub out: Outbox,
    pub info: Option<ExportInfo>,
    pub pieces: Slots<Piece>,
    /// Payload of requests on the wire, both ways.
    pub wire_bytes: u64,
    /// May be sent, the next one first.
    pub ready: VecDeque<u64>,
    /// The same, of those that ask for block status; and whether one is being answered. It takes the server long, and what is
    /// sent after it may have to wait for that: there is one at a time, and they take turns.
    pub asking: VecDeque<u64>,
    pub asked: bool,
    /// While operations of earlier connections are sent again.
    pub order: Option<InFlight<u64>>,
    /// Changes that were answered before this connection, and are not acknowledged on it.
    pub behind: usize,
    /// Acknowledged since the last flush was sent; and how many of them are answered only once they are flushed.
    pub settled: Vec<u64>,
    pub owed: usize,
    pub flushing: Option<Flushing>,
    /// Of changes that were sent here and that no flush covers.
    pub kept_bytes: u64,
    /// The server has said that it is leaving: nothing more is asked.
    pub leaving: bool,
    /// The server has refused to write zeroes by itself.
    pub no_zeroes: bool,
    /// How long a range it is asked about at a time, bytes: so that an answer is about as long as what is asked for.
    pub status_bytes: u64,
    pub heard_ns: u64,
}

#[derive(Debug)]
pub struct Flushing {
    pub covered: Vec<u64>,
    pub syncs: Vec<Ticket>,
}

/// A request on the wire: a part of an operation, or a flush.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub op: u64,
    pub index: usize,
    pub bytes: u64,
}

/// Number of no operation: that of flushes.
pub const FLUSH: u64 = u64::MAX;

impl Line {
    pub fn usable(&self) -> bool {
        self.info.is_some() && !self.leaving
    }

    /// An operation is over here: those that waited for it may be sent. What was answered before goes first: no flush
    /// makes room for others before that.
    pub fn finish(&mut self, number: u64, ops: &BTreeMap<u64, Op>) {
        let Some(order) = &mut self.order else { return };
        let mut started = Vec::new();
        order.finish(number, &mut started);
        for next in started {
            if ops.get(&next).is_some_and(|op| op.answered) {
                self.ready.push_front(next);
            } else {
                self.ready.push_back(next);
            }
        }
        if order.is_empty() {
            self.order = None;
        }
    }

    pub fn flags(&self) -> u16 {
        self.info.map_or(0, |info| info.flags)
    }

    pub fn piece_bytes(&self) -> u64 {
        u64::from(self.info.map_or(BACKING_PIECE_BYTES, |info| info.block_max.min(BACKING_PIECE_BYTES)))
    }

    pub fn writes_zeroes(&self) -> bool {
        self.flags() & SEND_WRITE_ZEROES != 0 && !self.no_zeroes
    }
}

/// So many stretches are a good answer: others wait for no more.
const STRETCHES: u64 = 512;

/// How long a range is asked about next, bytes, after one of which so many stretches were told, `bytes` in all, where at most
/// `most` were asked for: so that an answer is about as long as that, and not long.
pub fn status_bytes_after(status_bytes: u64, most: u64, told: u64, bytes: u64) -> u64 {
    let most = most.min(STRETCHES);
    if told > 2 * most {
        (bytes / told * most).clamp(BACKING_STATUS_BYTES_MIN, BACKING_STATUS_BYTES)
    } else if told <= most / 2 {
        BACKING_STATUS_BYTES.min(2 * status_bytes)
    } else {
        status_bytes
    }
}

/// Whether a change that has not begun here may: what is remembered has a bound (I9).
pub fn room(line: &Line, op: &Op, kept_bytes_max: u64) -> bool {
    let begins = op.changes() && op.at == op.offset && op.left == 0;
    !begins || op.answered || line.kept_bytes == 0 || line.kept_bytes + op.kept_bytes() <= kept_bytes_max
}

/// Sends the next piece of an operation.
pub fn send(line: &mut Line, number: u64, op: &mut Op, zeroes: &mut Bytes) {
    if op.at == op.offset && op.left == 0 {
        line.kept_bytes += op.kept_bytes();
        if let Work::Zero { written, .. } = &mut op.work {
            *written = !line.writes_zeroes();
        }
    }
    let (at, left) = (op.at, op.end() - op.at);
    let by_pieces = left.min(line.piece_bytes());
    let (length, bytes) = match &op.work {
        Work::Read | Work::Write { .. } => (by_pieces, by_pieces),
        Work::Zero { written: true, .. } => (by_pieces.min(ZEROES_BYTES), by_pieces.min(ZEROES_BYTES)),
        Work::Zero { .. } => (left.min(BACKING_RANGE_BYTES), 0),
        // Who asks for what a range begins with is told no more.
        Work::Status { most: 1, .. } => (left.min(BACKING_STATUS_BYTES), 0),
        Work::Status { .. } => (left.min(line.status_bytes), 0),
    };
    let short = u32::try_from(length).expect("pieces are bounded far below 2^32");
    let piece = line.pieces.insert(Piece { op: number, index: op.data.len(), bytes });
    line.wire_bytes += bytes;
    op.left += 1;
    let fua = op.durable() && line.flags() & SEND_FUA != 0;
    let Line { session, out, .. } = line;
    match &op.work {
        // How much of it that will be is not known.
        Work::Status { most, .. } => return session.status(piece, at, short, *most == 1, out),
        Work::Read => {
            op.data.push(Bytes::new());
            session.read(piece, at, short, out);
        }
        Work::Write { parts, .. } => session.write(piece, at, part(parts, at - op.offset, length), fua, out),
        Work::Zero { written: false, unmap, .. } => session.zeroes(piece, at, short, *unmap, fua, out),
        Work::Zero { .. } => {
            if zeroes.is_empty() {
                *zeroes = Bytes::from(vec![0; ZEROES_BYTES as usize]);
            }
            session.write(piece, at, vec![zeroes.slice(..length as usize)], fua, out);
        }
    }
    op.at += length;
}

/// Bytes of one piece when zeroes have to be written out.
const ZEROES_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// However much of a volume there is to tell, an answer becomes about as long as what is asked for, and stays so.
    #[test]
    fn ranges_that_are_asked_about_suit_what_there_is_to_tell_of_them() {
        let most = STRETCHES;
        for stretch in [512, 4096, 65536, 1 << 20, 1 << 30] {
            let mut status_bytes = BACKING_STATUS_BYTES_MIN;
            for _ in 0..10 {
                status_bytes = status_bytes_after(status_bytes, most, status_bytes.div_ceil(stretch), status_bytes);
            }
            let told = status_bytes.div_ceil(stretch);
            assert!(told <= 2 * most, "{stretch}: {told}");
            assert!(told > most / 2 || status_bytes == BACKING_STATUS_BYTES, "{stretch}: {told}");
            // From one extreme to the other in a step, and back.
            let dense =
                status_bytes_after(BACKING_STATUS_BYTES, most, BACKING_STATUS_BYTES / 512, BACKING_STATUS_BYTES);
            assert_eq!(dense, BACKING_STATUS_BYTES_MIN);
        }
    }
}
