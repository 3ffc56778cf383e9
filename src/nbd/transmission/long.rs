//! Payloads longer than a piece: a write is received, and a read is sent, piece by piece, each with room of its own.
//!
//! A disk promises no atomicity for a long request, so the pieces of a write are writes, several at a time and in
//! ascending order; its client hears of it once, when all of them are done or the first has failed and the rest of the
//! payload has passed by. Of a read one piece is asked for while those before it go out: as chunks where the client takes
//! several, otherwise as one reply that nothing may come between, for which the answers to other requests wait.
//!
//! Invariants: I9 - a piece fits its lane and is never in that of ordinary requests. A read in pieces is the only long
//! one of its connection: what waits behind its reply never holds the room that its next piece needs.

use bytes::Bytes;

use super::{Task, Transmission, What, words};
use crate::core::allocation::Stretch;
use crate::core::errno::Errno;
use crate::core::rope::Rope;
use crate::limits::{BLOCK_BYTES, LONG_BYTES, SERVER_LONG_PIECE_BYTES};
use crate::nbd::budget::{Held, Lanes, Ways};
use crate::nbd::check::Asked;
use crate::nbd::outbox::Outbox;
use crate::nbd::protocol::{CMD_READ, CMD_WRITE};
use crate::nbd::reply::{Failure, Style, To};
use crate::nbd::session::{Event, Kind, Request, Step, skip};

/// What has not arrived yet of a write in pieces.
#[derive(Debug)]
pub(super) struct Body {
    /// The task of the whole.
    whole: u64,
    to: To,
    offset: u64,
    left: u64,
    fua: bool,
    /// Bytes of the piece that has its room and is arriving.
    piece: u64,
}

/// What has become of a write in pieces.
#[derive(Debug, Default)]
pub(super) struct Whole {
    /// Pieces that are not answered.
    pieces: usize,
    /// Nothing more of it comes.
    arrived: bool,
    /// The first failure, and where the piece begins.
    failed: Option<(Errno, u64)>,
}

/// A read in pieces.
#[derive(Debug)]
pub(super) struct Reading {
    cookie: u64,
    to: To,
    length: u64,
    /// Where the piece begins that is asked for, or is next.
    at: u64,
    /// What has not been asked for.
    left: u64,
    /// It is one reply, or one chunk of one.
    unbroken: bool,
    /// Something of its reply is out.
    begun: bool,
    /// The next piece waits for room.
    waits: bool,
    /// For that of other connections.
    wants: Option<Held>,
}

/// An answer that waits for the end of a reply that nothing may come between.
#[derive(Debug)]
pub(super) enum Deferred {
    Done(u64, Result<Bytes, Errno>),
    Status(u64, Vec<Stretch>),
}

/// Bytes of the first piece of a payload, at most `most` of at least two blocks. It ends at a block, so that the next begins
/// where direct I/O can; and two halves follow where a whole piece would leave little.
pub(super) fn piece_bytes(offset: u64, left: u64, most: u64) -> u64 {
    const BLOCK: u64 = BLOCK_BYTES as u64;
    if left <= most {
        return left;
    }
    let most = most.min(left.div_ceil(2));
    (offset + most) / BLOCK * BLOCK - offset
}

pub(super) fn pages(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK_BYTES as u64)
}

impl Reading {
    /// Whether nothing else may be sent now.
    fn is_alone(&self) -> bool {
        self.unbroken && self.begun
    }
}

impl Transmission {
    /// Whether a request passes in pieces: one that is longer than a piece, and any long one where the lane is crowded.
    pub(super) fn in_pieces(&self, asked: &Asked) -> bool {
        let crowded = match asked.command {
            CMD_READ => self.room.read.crowded,
            CMD_WRITE => self.room.write.crowded,
            _ => return false,
        };
        asked.length > if crowded { LONG_BYTES } else { SERVER_LONG_PIECE_BYTES }
    }

    // ---- writes ------------------------------------------------------------------------------

    /// Begins a write whose head is at the front; its payload is received by `receive_piece`.
    pub(super) fn begin_body(&mut self, asked: &Asked, to: To, rx: &mut Rope) -> Step {
        if !self.may_begin(Ways::default()) {
            return Step::Stop;
        }
        rx.skip(asked.head);
        let what = What::Whole(Box::default());
        let whole = self.keep(Task { to, bytes: 0, cost: Ways::default(), what });
        let Asked { offset, length, .. } = *asked;
        self.body = Some(Body { whole, to, offset, left: length, fua: asked.fua(), piece: 0 });
        Step::Again
    }

    /// Takes the next piece of a write, when it has its room and has arrived.
    pub(super) fn receive_piece(&mut self, rx: &mut Rope, events: &mut Vec<Event>, out: &mut Outbox) -> Step {
        let mut body = self.body.take().expect("the caller has looked");
        let failed = self.whole(body.whole).failed.is_some();
        if failed {
            if let Some(write) = self.arriving.take() {
                self.give_back(Ways { read: Lanes::default(), write });
            }
            skip(rx, &mut body.left);
        } else {
            if self.arriving.is_none() {
                body.piece = self.body_piece(&body);
            }
            let length = body.piece;
            let cost = Ways { read: Lanes::default(), write: Lanes::long(pages(length)) };
            if self.arriving.is_none() && self.may_begin(cost) {
                self.arriving = Some(cost.write);
            }
            if self.arriving.is_none() || (rx.len() as u64) < length {
                self.body = Some(body);
                return Step::Stop;
            }
            self.arriving = None;
            let data = rx.take(length as usize);
            let Body { whole, to, offset, fua, .. } = body;
            self.whole(whole).pieces += 1;
            let task = Task { to: To { offset, ..to }, bytes: 0, cost, what: What::Piece { whole } };
            let cookie = self.keep(task);
            events.push(Event::Request(Request { cookie, kind: Kind::Write { offset, data, fua } }));
            (body.offset, body.left) = (offset + length, body.left - length);
        }
        let whole = body.whole;
        if body.left > 0 {
            self.body = Some(body);
            return if failed { Step::Stop } else { Step::Again };
        }
        self.whole(whole).arrived = true;
        self.conclude(whole, out);
        Step::Again
    }

    /// One piece of a write was carried out, or not.
    pub(super) fn piece_done(&mut self, cookie: u64, result: Result<Bytes, Errno>, out: &mut Outbox) {
        let Task { to, what, .. } = self.retire(cookie);
        let What::Piece { whole } = what else { unreachable!("the caller has looked") };
        let state = self.whole(whole);
        state.pieces -= 1;
        if let Err(errno) = result {
            state.failed.get_or_insert((errno, to.offset));
        }
        self.conclude(whole, out);
    }

    /// Answers a write in pieces when nothing of it is left.
    fn conclude(&mut self, whole: u64, out: &mut Outbox) {
        let state = self.whole(whole);
        if state.pieces == 0 && state.arrived {
            let result = state.failed.map_or(Ok(Bytes::new()), |(errno, _)| Err(errno));
            self.answer(whole, result, out);
        }
    }

    fn whole(&mut self, cookie: u64) -> &mut Whole {
        match self.tasks.get_mut(cookie) {
            Some(Task { what: What::Whole(whole), .. }) => whole,
            _ => unreachable!("the whole stays until its last piece"),
        }
    }

    /// Bytes of the next piece of the write that is arriving; 0 when its rest only passes by.
    pub(super) fn next_piece(&self) -> Option<usize> {
        let body = self.body.as_ref()?;
        match self.tasks.get(body.whole) {
            Some(Task { what: What::Whole(whole), .. }) if whole.failed.is_some() => Some(0),
            _ if self.arriving.is_some() => Some(body.piece as usize),
            _ => Some(self.body_piece(body) as usize),
        }
    }

    fn body_piece(&self, body: &Body) -> u64 {
        piece_bytes(body.offset, body.left, self.room.write.piece_max())
    }

    // ---- reads -------------------------------------------------------------------------------

    /// Whether a long read has to wait for another one of its connection.
    pub(super) fn reads_too_much(&self, asked: &Asked, in_pieces: bool) -> bool {
        asked.command == CMD_READ
            && asked.length > LONG_BYTES
            && (self.reading.is_some() || in_pieces && self.inflight.read.long > 0)
    }

    /// Begins a read in pieces; the first one has its room.
    pub(super) fn begin_reading(&mut self, asked: &Asked, to: To, cost: Held, events: &mut Vec<Event>) {
        let Asked { offset, length, .. } = *asked;
        let first = piece_bytes(offset, length, self.room.read.piece_max());
        let cookie = self.keep(Task { to, bytes: first as u32, cost, what: What::Reading });
        self.reading = Some(Reading {
            cookie,
            to,
            length,
            at: offset,
            left: length - first,
            unbroken: self.terms.style == Style::Simple || asked.is_unbroken(),
            begun: false,
            waits: false,
            wants: None,
        });
        events.push(Event::Request(Request { cookie, kind: Kind::Read { offset, length: first as u32 } }));
    }

    /// Asks for the next piece, when there is room.
    pub(super) fn go_on_reading(&mut self, events: &mut Vec<Event>) {
        let Some(Reading { cookie, at, left, waits: true, .. }) = self.reading else { return };
        let length = piece_bytes(at, left, self.room.read.piece_max());
        let cost = Ways { read: Lanes::long(pages(length)), write: Lanes::default() };
        let own = self.has_own_room(cost);
        let begins = own && self.takes_room(cost);
        let reading = self.reading.as_mut().expect("looked at above");
        reading.wants = (own && !begins).then_some(cost);
        if begins {
            reading.waits = false;
            reading.left -= length;
            let task = self.tasks.get_mut(cookie).expect("a read in pieces stays until its last one");
            (task.bytes, task.cost) = (length as u32, cost);
            events.push(Event::Request(Request { cookie, kind: Kind::Read { offset: at, length: length as u32 } }));
        }
    }

    /// One piece of a read was read, or not.
    pub(super) fn piece_read(&mut self, cookie: u64, result: Result<Bytes, Errno>, out: &mut Outbox) {
        let task = self.tasks.get_mut(cookie).expect("the caller has looked");
        let bytes = task.bytes;
        let cost = std::mem::take(&mut task.cost);
        self.give_back(cost);
        let style = self.terms.style;
        let reading = self.reading.as_mut().expect("its task stays as long as it");
        match result {
            Ok(data) => {
                assert_eq!(data.len(), bytes as usize, "a read is answered with what it asked for");
                let last = reading.left == 0;
                if !reading.unbroken {
                    style.part(out, reading.to, reading.at, data, last);
                } else {
                    if !reading.begun {
                        style.begin(out, reading.to, reading.length);
                    }
                    out.push_piece(data);
                    if last {
                        style.end(out, reading.to);
                    }
                }
                reading.at += u64::from(bytes);
                (reading.begun, reading.waits) = (true, !last);
                if last {
                    self.end_reading(out);
                }
            }
            // No error can follow, and nothing else may: only the end of the connection says it.
            Err(_) if reading.is_alone() && style == Style::Simple => self.broken = true,
            Err(errno) => {
                if reading.is_alone() {
                    pad(out, reading.left + u64::from(bytes));
                }
                let failure = Failure { errno, at: Some(reading.at), text: words(errno) };
                style.failed(out, reading.to, failure);
                self.end_reading(out);
            }
        }
    }

    fn end_reading(&mut self, out: &mut Outbox) {
        let reading = self.reading.take().expect("the caller has looked");
        self.retire(reading.cookie);
        for deferred in std::mem::take(&mut self.deferred) {
            match deferred {
                Deferred::Done(cookie, result) => self.answer(cookie, result, out),
                Deferred::Status(cookie, stretches) => self.status(cookie, &stretches, out),
            }
        }
    }

    /// Whether the next piece of a read waits for room.
    pub(super) fn reading_waits(&self) -> bool {
        self.reading.as_ref().is_some_and(|reading| reading.waits)
    }

    /// What it needs, when others hold it.
    pub(super) fn reading_wants(&self) -> Option<Held> {
        self.reading.as_ref().and_then(|reading| reading.wants)
    }

    /// Whether a reply is on its way that nothing may come between.
    pub(super) fn is_sealed(&self) -> bool {
        self.reading.as_ref().is_some_and(Reading::is_alone)
    }

    /// Keeps an answer for later. One without data holds nothing any more.
    pub(super) fn defer(&mut self, deferred: Deferred) {
        if let Deferred::Done(cookie, result) = &deferred
            && result.as_ref().map_or(0, Bytes::len) == 0
            && let Some(task) = self.tasks.get_mut(*cookie)
        {
            let cost = std::mem::take(&mut task.cost);
            self.give_back(cost);
        }
        self.deferred.push(deferred);
    }

    /// Bytes of data among the answers that were kept for later.
    #[must_use]
    pub fn deferred_bytes(&self) -> u64 {
        let bytes = |deferred: &Deferred| match deferred {
            Deferred::Done(_, result) => result.as_ref().map_or(0, Bytes::len) as u64,
            Deferred::Status(..) => 0,
        };
        self.deferred.iter().map(bytes).sum()
    }
}

impl Whole {
    /// Where it failed.
    pub(super) fn failed_at(&self) -> Option<u64> {
        self.failed.map(|(_, at)| at)
    }
}

/// What is left of a chunk whose data cannot be read: "it MUST use padding bytes which SHOULD be zero".
fn pad(out: &mut Outbox, mut bytes: u64) {
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    while bytes > 0 {
        let now = bytes.min(ZEROES.len() as u64);
        out.push(Bytes::from_static(&ZEROES[..now as usize]));
        bytes -= now;
    }
}

#[cfg(test)]
#[path = "long_tests.rs"]
mod tests;
