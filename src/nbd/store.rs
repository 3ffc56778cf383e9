//! A volume on an NBD server: its operations over one connection after another, none lost and none out of order. Pure:
//! `backing` carries the bytes, and makes the connections.
//!
//! ```text
//!   begin ──► waiting ──► ready ──► on the wire ──► settled ──► forgotten
//!                 ▲                      │              │         (a flush that was sent after it has succeeded)
//!                 └── the connection ends ──────────────┘
//! ```
//!
//! What a server has acknowledged and not flushed may be gone when *the server* was started again, and nobody tells a
//! client so. Therefore every change is remembered, its bytes with it, from its beginning until a flush covers it, and a
//! new connection begins with all of them once more. That is bounded (I9): a flush of our own comes before the bound, and
//! at it what is new waits. So a server that comes back with all that it ever called durable is a pause, and nothing else.
//!
//! Invariants:
//! - Each operation is answered once, whatever becomes of connections.
//! - On a new connection what is remembered is sent again in the order in which it began: one that overlaps an earlier one
//!   waits until that is answered (I1). Callers never have overlapping changes in flight at once, so that is the order in
//!   which they were carried out before.
//! - A sync is answered by a flush that was sent after all changes that were answered before had been acknowledged on the
//!   same connection (I2, I3, I6).
//! - A FUA change that overwrites one which no flush covers is answered by a flush: sent once more, the older one would
//!   for a moment be what is durable (I3).
//! - What was answered is never dropped (I3, I8): a change that is refused when it is sent once more ends the trust in the
//!   store, and so does a failed flush, as a failed sync does in a file. Whoever waits hears of it, nothing succeeds any
//!   more, and what is not durable is nobody's but the role's, which begins again from what is.

mod line;
mod op;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use self::line::{FLUSH, Flushing, Line, Piece, room, send, status_bytes_after};
use self::op::{Op, Work, join};
use crate::core::allocation::Stretch;
use crate::core::errno::Errno;
use crate::core::ids::Ticket;
use crate::core::machine::{DiskKind, DiskResult, IoFail};
use crate::core::overlap::InFlight;
use crate::core::rope::Rope;
use crate::limits::{BACKING_REQUESTS_MAX, BACKING_STATUS_BYTES_MIN, BACKING_WIRE_BYTES_MAX};
use crate::nbd::client::{ClientSession, Event, ExportInfo};
use crate::nbd::outbox::Outbox;
use crate::nbd::protocol::*;
use crate::nbd::slots::Slots;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Done {
        ticket: Ticket,
        result: DiskResult,
    },
    /// Stretches of what was asked about.
    Extents {
        ticket: Ticket,
        stretches: Vec<Stretch>,
    },
}

/// What became of bytes that have come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Nothing,
    /// TLS is to begin.
    Secure,
    /// The server is fit for the volume: operations go on.
    Ready,
    /// The connection is of no use: why, in words. `for_good`: another attempt will hardly end otherwise.
    Useless {
        text: String,
        for_good: bool,
    },
}

/// A volume.
#[derive(Debug)]
pub struct Store {
    /// Where it is, for messages.
    place: String,
    size: u64,
    /// Most bytes of changes that no flush covers.
    kept_bytes_max: u64,
    /// By the order in which they began.
    ops: BTreeMap<u64, Op>,
    next: u64,
    /// Syncs that the next flush answers.
    syncs: Vec<Ticket>,
    line: Option<Line>,
    /// A flush failed, or a change that was answered before: nothing more is trusted.
    broken: Option<IoFail>,
    zeroes: Bytes,
    said: Vec<Said>,
}

impl Store {
    /// `place`: where it is, for messages; `kept_bytes_max`: what may be remembered.
    #[must_use]
    pub fn new(place: String, size: u64, kept_bytes_max: u64) -> Store {
        Store {
            place,
            size,
            kept_bytes_max,
            ops: BTreeMap::new(),
            next: 0,
            syncs: Vec::new(),
            line: None,
            broken: None,
            zeroes: Bytes::new(),
            said: Vec::new(),
        }
    }

    /// Why nothing here is trusted any more, once that is so. There is no way back, and no use in another connection.
    #[must_use]
    pub fn broken(&self) -> Option<&IoFail> {
        self.broken.as_ref()
    }

    /// Whether the server was found to have so many bytes; if so, no other is fit from now on.
    pub fn enlarge(&mut self, size: u64) -> bool {
        let fits = self.info().is_some_and(|info| info.size >= size);
        if fits {
            self.size = self.size.max(size);
        }
        fits
    }

    /// Answers since the last call.
    pub fn said(&mut self) -> std::vec::Drain<'_, Said> {
        self.said.drain(..)
    }

    // ---- operations --------------------------------------------------------------------------

    /// Takes an operation on; it lies within the volume.
    pub fn begin(&mut self, now_ns: u64, ticket: Ticket, kind: DiskKind) {
        if let Some(fail) = &self.broken {
            return self.said.push(Said::Done { ticket, result: Err(fail.clone()) });
        }
        let (work, offset, length) = match kind {
            DiskKind::Read { offset, length } => (Work::Read, offset, length),
            DiskKind::Write { offset, parts, durable } => {
                let length = parts.iter().map(|part| part.len() as u64).sum();
                (Work::Write { parts, durable }, offset, length)
            }
            DiskKind::Zero { offset, length, unmap, durable } => {
                (Work::Zero { unmap, durable, written: false }, offset, length)
            }
            DiskKind::Sync => {
                self.syncs.push(ticket);
                return self.pump(now_ns);
            }
        };
        if length == 0 {
            return self.said.push(Said::Done { ticket, result: Ok(Bytes::new()) });
        }
        self.take_on(now_ns, ticket, work, offset, length);
    }

    /// Looks which parts of a range have storage.
    pub fn extents(&mut self, now_ns: u64, ticket: Ticket, offset: u64, length: u64, most: usize) {
        self.take_on(now_ns, ticket, Work::Status { most, found: Vec::new() }, offset, length);
    }

    fn take_on(&mut self, now_ns: u64, ticket: Ticket, work: Work, offset: u64, length: u64) {
        let op =
            Op { ticket, work, offset, length, at: offset, left: 0, data: Vec::new(), failed: None, answered: false };
        if let Some(fail) = self.broken.clone() {
            return self.refuse(op, fail);
        }
        let number = self.next;
        self.next += 1;
        self.ops.insert(number, op);
        if let Some(line) = self.line.as_mut().filter(|line| line.info.is_some()) {
            let free = line.order.as_mut().is_none_or(|order| order.admit(number, offset, length));
            if free {
                line.ready.push_back(number);
            }
        }
        self.pump(now_ns);
    }

    /// Operations that are not answered yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let flushing = self.line.as_ref().and_then(|line| line.flushing.as_ref());
        self.ops.values().filter(|op| !op.answered).count()
            + self.syncs.len()
            + flushing.map_or(0, |flushing| flushing.syncs.len())
    }

    // ---- the connection ----------------------------------------------------------------------

    /// A connection is being made; the server speaks first.
    pub fn connect(&mut self, now_ns: u64, export: &str, tls: bool) {
        assert!(self.line.is_none(), "one connection at a time: the old one has ended before there is a new one");
        self.line = Some(Line {
            session: ClientSession::of_volume(export, tls),
            out: Outbox::new(),
            info: None,
            pieces: Slots::default(),
            wire_bytes: 0,
            ready: VecDeque::new(),
            asking: VecDeque::new(),
            asked: false,
            order: None,
            behind: 0,
            settled: Vec::new(),
            owed: 0,
            flushing: None,
            kept_bytes: 0,
            leaving: false,
            no_zeroes: false,
            status_bytes: BACKING_STATUS_BYTES_MIN,
            heard_ns: now_ns,
        });
    }

    /// What is to be sent.
    pub fn out(&mut self) -> Option<&mut Outbox> {
        self.line.as_mut().map(|line| &mut line.out)
    }

    /// TLS is established.
    pub fn secured(&mut self, now_ns: u64) {
        if let Some(line) = &mut self.line {
            line.heard_ns = now_ns;
            line.session.secured(&mut line.out);
        }
    }

    /// Parses what has come.
    pub fn received(&mut self, now_ns: u64, rx: &mut Rope) -> Heard {
        let Some(line) = &mut self.line else { return Heard::Nothing };
        line.heard_ns = now_ns;
        let mut events = Vec::new();
        let parsed = line.session.advance(rx, &mut events, &mut line.out);
        let mut heard = Heard::Nothing;
        for event in events {
            match event {
                Event::Secure => heard = Heard::Secure,
                Event::Ready(info) => match unfit(&info, self.size) {
                    Some(text) => heard = Heard::Useless { text, for_good: true },
                    None => {
                        self.ready(info);
                        heard = Heard::Ready;
                    }
                },
                Event::Refused { code, text } => {
                    heard = Heard::Useless { text, for_good: code != REP_ERR_SHUTDOWN };
                }
                Event::Done { cookie, result } => self.piece_done(cookie, result),
                Event::Status { cookie, stretches } => self.status_done(cookie, stretches),
            }
        }
        if let Some(fail) = &self.broken {
            return Heard::Useless { text: fail.to_string(), for_good: true };
        }
        if let Err(error) = parsed {
            return Heard::Useless { text: error.to_string(), for_good: false };
        }
        self.pump(now_ns);
        if self.line.as_ref().is_some_and(|line| line.leaving) {
            return Heard::Useless { text: "the server is shutting down".into(), for_good: false };
        }
        heard
    }

    /// The connection has ended: everything that it had not made durable waits for the next one.
    pub fn lost(&mut self) {
        let Some(line) = self.line.take() else { return };
        if let Some(flushing) = line.flushing {
            self.syncs.splice(0..0, flushing.syncs);
        }
        self.ops.values_mut().for_each(Op::begin_again);
    }

    /// What a connection was doing, to explain its end; `None` once it was in use.
    #[must_use]
    pub fn stage(&self) -> Option<&'static str> {
        self.line.as_ref().filter(|line| line.info.is_none()).map(|line| line.session.stage())
    }

    /// Whether operations are carried out.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.line.as_ref().is_some_and(Line::usable)
    }

    /// What the server offers; once ready.
    #[must_use]
    pub fn info(&self) -> Option<ExportInfo> {
        self.line.as_ref().and_then(|line| line.info)
    }

    /// Whether the server tells holes from data; once ready.
    #[must_use]
    pub fn knows_holes(&self) -> bool {
        self.line.as_ref().is_some_and(|line| line.info.is_some() && line.session.knows_holes())
    }

    /// Since when an answer is waited for, monotonic nanoseconds.
    #[must_use]
    pub fn silent_since_ns(&self) -> Option<u64> {
        self.line.as_ref().filter(|line| !line.pieces.is_empty()).map(|line| line.heard_ns)
    }

    /// Ends the connection, politely.
    pub fn disconnect(&mut self) {
        if let Some(line) = &mut self.line {
            line.session.disconnect(&mut line.out);
        }
    }

    /// The server is fit: everything that is remembered, and all that waits, in order.
    fn ready(&mut self, info: ExportInfo) {
        let Some(line) = &mut self.line else { return };
        line.info = Some(info);
        if self.ops.is_empty() {
            return;
        }
        let mut order = InFlight::new();
        let mut others = Vec::new();
        for (number, op) in &self.ops {
            let free = order.admit(*number, op.offset, op.length);
            line.behind += usize::from(op.answered);
            if free && op.answered {
                line.ready.push_back(*number);
            } else if free {
                others.push(*number);
            }
        }
        line.ready.extend(others);
        line.order = Some(order);
    }

    // ---- requests ----------------------------------------------------------------------------

    /// Sends what may be sent.
    fn pump(&mut self, now_ns: u64) {
        let Some(line) = self.line.as_mut().filter(|line| line.usable()) else { return };
        let idle = line.pieces.is_empty();
        let mut held = false;
        while let Some(line) = &mut self.line
            && let Some(number) = line.ready.front().copied()
        {
            let Some(op) = self.ops.get_mut(&number).filter(|op| op.at < op.end() && op.failed.is_none()) else {
                line.ready.pop_front();
                continue;
            };
            if matches!(op.work, Work::Status { .. }) {
                line.ready.pop_front();
                if line.session.knows_holes() {
                    line.asking.push_back(number);
                } else {
                    self.guess(number);
                }
                continue;
            }
            let full = line.pieces.len() >= BACKING_REQUESTS_MAX || line.wire_bytes >= BACKING_WIRE_BYTES_MAX;
            held = !full && !room(line, op, self.kept_bytes_max);
            if full || held {
                break;
            }
            send(line, number, op, &mut self.zeroes);
            if op.at >= op.end() {
                line.ready.pop_front();
            }
        }
        while let Some(line) = self.line.as_mut().filter(|line| !line.asked)
            && let Some(number) = line.asking.pop_front()
        {
            if let Some(op) = self.ops.get_mut(&number) {
                line.asked = true;
                send(line, number, op, &mut self.zeroes);
            }
        }
        self.flush_if_due(held);
        if let Some(line) = self.line.as_mut().filter(|_| idle) {
            line.heard_ns = now_ns;
        }
    }

    /// A flush, when somebody waits for one, or half of what may be remembered is, or a change is held because of it.
    fn flush_if_due(&mut self, held: bool) {
        let Some(line) = &mut self.line else { return };
        if line.flushing.is_some() || line.behind > 0 {
            return;
        }
        let asked = !self.syncs.is_empty() || line.owed > 0;
        let much = (held || line.kept_bytes >= self.kept_bytes_max / 2) && !line.settled.is_empty();
        if asked || much {
            let piece = line.pieces.insert(Piece { op: FLUSH, index: 0, bytes: 0 });
            line.session.flush(piece, &mut line.out);
            let covered = std::mem::take(&mut line.settled);
            line.owed = 0;
            line.flushing = Some(Flushing { covered, syncs: std::mem::take(&mut self.syncs) });
        }
    }

    fn piece_done(&mut self, cookie: u64, result: Result<Bytes, Errno>) {
        let Some(line) = &mut self.line else { return };
        let piece = line.pieces.remove(cookie).expect("the session answers what it was given, once");
        line.wire_bytes -= piece.bytes;
        if result == Err(Errno::Shutdown) {
            // No verdict on the operation: it is sent again to whoever comes after this server.
            line.leaving = true;
            return;
        }
        if piece.op == FLUSH {
            return self.flushed(result);
        }
        let op = self.ops.get_mut(&piece.op).expect("an operation lives until its last piece");
        op.left -= 1;
        match (result, &op.work) {
            (_, Work::Status { .. }) => {
                line.asked = false;
                return self.guess(piece.op);
            }
            (Ok(data), Work::Read) => op.data[piece.index] = data,
            (Ok(_), _) => {}
            (Err(errno), _) if op.answered && !op.can_be_written(errno) => {
                let fail = op.refused(&self.place, errno);
                return self.give_up(IoFail::Other(format!(
                    "{fail}. It had been acknowledged, and was sent again because the connection was lost before a \
                     flush: what is there now is not known"
                )));
            }
            (Err(errno), _) => {
                line.no_zeroes |= op.can_be_written(errno);
                op.failed = Some(errno);
            }
        }
        self.settle_if_done(piece.op);
    }

    fn settle_if_done(&mut self, number: u64) {
        let Some(line) = &mut self.line else { return };
        let Some(op) = self.ops.get_mut(&number) else { return };
        if op.left > 0 || (op.at < op.end() && op.failed.is_none()) {
            return;
        }
        if op.failed.is_some_and(|errno| op.can_be_written(errno)) {
            // Zeroes are written instead.
            op.begin_again();
            line.kept_bytes -= op.kept_bytes();
            line.ready.retain(|other| *other != number);
            line.ready.push_front(number);
            return;
        }
        line.finish(number, &self.ops);
        let overwrites = |op: &Op| self.ops.range(..number).any(|(_, older)| older.changes() && older.overlaps(op));
        let flush_answers = self.ops.get(&number).is_some_and(|op| match op.failed {
            // Whoever hears of it reads back what is there: older changes of the range must not come once more.
            Some(errno) => errno == Errno::NoSpc,
            None => op.durable() && (line.flags() & SEND_FUA == 0 || overwrites(op)),
        });
        let Some(op) = self.ops.get_mut(&number) else { return };
        if !op.changes() {
            let op = self.ops.remove(&number).expect("it was found a moment ago");
            let result = match op.failed {
                Some(errno) => Err(op.refused(&self.place, errno)),
                None => Ok(join(op.data)),
            };
            return self.said.push(Said::Done { ticket: op.ticket, result });
        }
        line.settled.push(number);
        if op.answered {
            line.behind -= 1;
        } else if flush_answers {
            line.owed += 1;
        } else {
            answer(&self.place, op, &mut self.said);
        }
    }

    fn flushed(&mut self, result: Result<Bytes, Errno>) {
        if let Err(errno) = result {
            return self.give_up(IoFail::Other(format!("{}: flush: the server answers {errno}", self.place)));
        }
        let Some(line) = &mut self.line else { return };
        let Some(Flushing { covered, syncs }) = line.flushing.take() else { return };
        for number in covered {
            let mut op = self.ops.remove(&number).expect("a change is remembered until it is flushed");
            line.kept_bytes -= op.kept_bytes();
            if !op.answered {
                answer(&self.place, &mut op, &mut self.said);
            }
        }
        self.said.extend(syncs.into_iter().map(|ticket| Said::Done { ticket, result: Ok(Bytes::new()) }));
    }

    /// Ends the trust in the store: whoever waits hears why.
    fn give_up(&mut self, fail: IoFail) {
        let flushing = self.line.take().and_then(|line| line.flushing);
        let syncs = flushing.map_or_else(Vec::new, |flushing| flushing.syncs);
        for op in std::mem::take(&mut self.ops).into_values().filter(|op| !op.answered) {
            self.refuse(op, fail.clone());
        }
        for ticket in syncs.into_iter().chain(std::mem::take(&mut self.syncs)) {
            self.said.push(Said::Done { ticket, result: Err(fail.clone()) });
        }
        self.broken = Some(fail);
    }

    /// Answers an operation on a store that is not trusted any more.
    fn refuse(&mut self, op: Op, fail: IoFail) {
        let Op { ticket, length, .. } = op;
        self.said.push(match op.work {
            Work::Status { .. } => Said::Extents { ticket, stretches: vec![Stretch { length, hole: false }] },
            Work::Read | Work::Write { .. } | Work::Zero { .. } => Said::Done { ticket, result: Err(fail) },
        });
    }

    // ---- block status ------------------------------------------------------------------------

    fn status_done(&mut self, cookie: u64, stretches: Vec<Stretch>) {
        let Some(line) = &mut self.line else { return };
        let piece = line.pieces.remove(cookie).expect("the session answers what it was given, once");
        line.asked = false;
        if let Some(op) = self.ops.get_mut(&piece.op) {
            op.left -= 1;
            if let Work::Status { most, .. } = op.work
                && most > 1
            {
                let bytes = stretches.iter().map(|stretch| stretch.length).sum();
                line.status_bytes = status_bytes_after(line.status_bytes, most as u64, stretches.len() as u64, bytes);
            }
        }
        self.status_found(piece.op, stretches);
    }

    /// Nobody knows what the rest of a block status is: it has storage, which is always a safe answer.
    fn guess(&mut self, number: u64) {
        let Some(op) = self.ops.get(&number) else { return };
        self.status_found(number, vec![Stretch { length: op.end() - op.at, hole: false }]);
    }

    /// The next stretches of a block status; the rest is asked for in its turn.
    fn status_found(&mut self, number: u64, stretches: Vec<Stretch>) {
        let Some(line) = &mut self.line else { return };
        let Some(op) = self.ops.get_mut(&number) else { return };
        let Work::Status { most, found, .. } = &mut op.work else { return };
        for stretch in stretches {
            op.at += stretch.length;
            match found.last_mut().filter(|last| last.hole == stretch.hole) {
                Some(last) => last.length += stretch.length,
                None => found.push(stretch),
            }
        }
        if op.at < op.offset + op.length && found.len() < *most {
            return line.asking.push_back(number);
        }
        line.finish(number, &self.ops);
        let Some(Op { ticket, work: Work::Status { most, mut found }, .. }) = self.ops.remove(&number) else { return };
        found.truncate(most);
        self.said.push(Said::Extents { ticket, stretches: found });
    }
}

/// Answers a change.
fn answer(place: &str, op: &mut Op, said: &mut Vec<Said>) {
    op.answered = true;
    let result = op.failed.map_or_else(|| Ok(Bytes::new()), |errno| Err(op.refused(place, errno)));
    said.push(Said::Done { ticket: op.ticket, result });
}

/// Why an export cannot be this volume, if it cannot.
#[must_use]
pub fn unfit(info: &ExportInfo, size: u64) -> Option<String> {
    let text = if info.size < size {
        format!("has {} bytes, the configuration says {size}: grow it, or correct the size", info.size)
    } else if info.flags & READ_ONLY != 0 {
        "the export is read-only, and a volume is written: export it writable".into()
    } else if info.flags & SEND_FLUSH == 0 {
        "the server offers no FLUSH, so that nothing written there could be called durable: use one that does".into()
    } else if info.block_min > 1 {
        format!(
            "the server insists on whole blocks of {} bytes, and volumes are written in any length: put nbdkit with \
             --filter=blocksize between, or allow any length there",
            info.block_min
        )
    } else {
        return None;
    };
    Some(text)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
