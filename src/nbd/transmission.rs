//! The transmission phase of a server, pure: requests in, each checked; replies out, each once.
//!
//! Owns the requests in flight. What is refused is answered here, and its payload passes by without being kept, so that
//! the stream stays in step. A range that is longer than an order record's (only extended headers can say one) is asked
//! for in pieces, one after another; its client hears of it once, when all is done or at the first failure. Payloads
//! longer than a piece are `long`.
//!
//! Invariants: I9 - requests and payload bytes in flight are bounded, and replies without data, those that are still owed
//! among them (`Outbox::is_full`): `step` stops parsing at the bound; a request is
//! answered exactly once, and the number that answers it is never taken for another one.

mod long;

use std::collections::VecDeque;

use bytes::Bytes;

use self::long::{Body, Deferred, Reading, Whole, pages, piece_bytes};
use crate::core::allocation::Stretch;
use crate::core::errno::Errno;
use crate::core::rope::Rope;
use crate::limits::{
    BLOCK_BYTES, CONNECTION_PAYLOAD_BYTES_MAX, CONNECTION_REQUESTS_MAX, FIRST_BYTES, PIECE_BYTES_MAX, RANGE_BYTES_MAX,
    SERVER_LONG_PIECE_BYTES, SMALL_BYTES, STATUS_STRETCHES_MAX,
};
use crate::nbd::budget::{Held, Lanes, Share, Ways};
use crate::nbd::check::{Asked, Terms, Verdict, check, check_range};
use crate::nbd::export::Export;
use crate::nbd::outbox::{COPY_BYTES_MAX, Outbox};
use crate::nbd::protocol::{CHUNK_EXTENDED_BYTES, CMD_BLOCK_STATUS, CMD_CACHE, CMD_FLAG_REQ_ONE, CMD_READ, CMD_WRITE};
use crate::nbd::reply::{Failure, Style, To};
use crate::nbd::session::{Event, Kind, Request, SessionError, Step, skip};
use crate::nbd::slots::Slots;

#[derive(Debug)]
pub struct Transmission {
    terms: Terms,
    tasks: Slots<Task>,
    /// Memory of the payloads in flight, from and to the client, bytes.
    inflight: Held,
    /// What may begin beside that.
    room: Ways<Share>,
    /// The next request has its room, and waits for its payload (no small one does): how much of `inflight` that is.
    arriving: Option<Lanes<u64>>,
    /// Bytes that wait to be received, where the beginning of a payload has to be there before it takes room.
    thrift: Option<usize>,
    /// The next payload has yet to begin.
    begins: bool,
    /// Tasks whose next piece is to be asked for.
    resumed: VecDeque<u64>,
    /// The payload of a refused request is passing by.
    skipping: Option<Skipping>,
    /// A write in pieces is arriving.
    body: Option<Body>,
    /// A read in pieces is going out.
    reading: Option<Reading>,
    /// Answers that wait for its end.
    deferred: Vec<Deferred>,
    /// It failed where no error can be told.
    broken: bool,
    blocked: bool,
    /// It stopped there because the client does not take its replies.
    full: bool,
    /// Bytes of replies that will be copied into the outbox for what is in flight.
    owed: u64,
    /// What the next request needs of `room`, when it is not there.
    wants: Option<Held>,
    /// The client has said goodbye.
    over: bool,
    write_bytes: u32,
    reads_since_write: u32,
}

#[derive(Debug)]
struct Task {
    to: To,
    /// Payload bytes, one way or the other.
    bytes: u32,
    /// What it takes of the room.
    cost: Held,
    what: What,
}

impl Task {
    /// Bytes of its reply that will be copied, about: its head, and the data of a short read or status.
    fn owes(&self) -> u64 {
        let data = match self.what {
            What::Read if self.bytes as usize <= COPY_BYTES_MAX => CHUNK_MORE_BYTES + u64::from(self.bytes),
            What::Read => CHUNK_MORE_BYTES,
            What::Status { one: true } => STRETCH_BYTES,
            What::Status { one: false } => COPY_BYTES_MAX as u64,
            _ => 0,
        };
        CHUNK_EXTENDED_BYTES as u64 + data
    }
}

#[derive(Debug)]
enum What {
    Read,
    Change,
    Status {
        one: bool,
    },
    Long(Box<Long>),
    /// A write in pieces, and one of them.
    Whole(Box<Whole>),
    Piece {
        whole: u64,
    },
    /// A read in pieces.
    Reading,
}

/// A range in pieces.
#[derive(Debug)]
struct Long {
    /// What has not been asked for yet.
    rest: Kind,
    /// Where the piece that is asked for begins.
    at: u64,
}

#[derive(Debug)]
struct Skipping {
    left: u64,
    to: To,
    failure: Failure<'static>,
}

impl Transmission {
    #[must_use]
    pub fn new(export: Export, style: Style, allocation: bool) -> Transmission {
        Transmission {
            terms: Terms { export, style, allocation },
            tasks: Slots::default(),
            inflight: Held::default(),
            room: Ways { read: Share::ALL, write: Share::ALL },
            arriving: None,
            thrift: None,
            begins: false,
            resumed: VecDeque::new(),
            skipping: None,
            body: None,
            reading: None,
            deferred: Vec::new(),
            broken: false,
            blocked: false,
            full: false,
            owed: 0,
            wants: None,
            over: false,
            write_bytes: 0,
            reads_since_write: 0,
        }
    }

    /// What is asked from now on is checked against this size.
    pub fn resized(&mut self, size: u64) {
        self.terms.export.size = size;
    }

    /// Asks for the next pieces of what is in pieces.
    pub fn resume(&mut self, events: &mut Vec<Event>) {
        while let Some(cookie) = self.resumed.pop_front() {
            let task = self.tasks.get_mut(cookie).expect("a task in pieces stays until its last one");
            let What::Long(long) = &mut task.what else { unreachable!("only what is in pieces is resumed") };
            let kind = first_piece(&mut long.rest);
            long.at = start(&kind);
            events.push(Event::Request(Request { cookie, kind }));
        }
        self.go_on_reading(events);
    }

    /// Parses one step of what has arrived.
    ///
    /// # Errors
    /// What leaves the stream out of step.
    pub fn step(&mut self, rx: &mut Rope, events: &mut Vec<Event>, out: &mut Outbox) -> Result<Step, SessionError> {
        (self.blocked, self.full) = (false, false);
        self.begins = false;
        self.wants = None;
        if self.broken {
            return Err(SessionError::ReplyBroken);
        }
        if self.over {
            rx.skip(rx.len());
            return Ok(Step::Stop);
        }
        let sealed = self.is_sealed();
        if let Some(Skipping { left, to, failure }) = &mut self.skipping {
            skip(rx, left);
            if *left > 0 {
                return Ok(Step::Stop);
            }
            if sealed {
                return Ok(self.block());
            }
            self.terms.style.failed(out, *to, *failure);
            self.skipping = None;
        }
        if self.body.is_some() {
            return Ok(self.receive_piece(rx, events, out));
        }
        let Some(asked) = Asked::peek(rx, &self.terms)? else { return Ok(Step::Stop) };
        // What has begun to arrive has its room, and gives it back the sooner.
        if out.is_full(self.owed) && self.arriving.is_none() {
            self.full = true;
            return Ok(self.block());
        }
        let to = To { cookie: asked.cookie, offset: asked.offset };
        match check(&self.terms, &asked) {
            Verdict::Accepted => return Ok(self.accept(asked, to, rx, events, out)),
            Verdict::Disconnect => {
                rx.skip(rx.len());
                self.over = true;
                events.push(Event::Disconnect);
                return Ok(Step::Stop);
            }
            Verdict::Refused(failure) => {
                rx.skip(asked.head);
                self.skipping = Some(Skipping { left: asked.payload, to, failure });
            }
            Verdict::Nothing if sealed => return Ok(self.block()),
            Verdict::Nothing => {
                rx.skip(asked.head);
                self.terms.style.done(out, to, asked.command == CMD_READ);
            }
        }
        Ok(Step::Again)
    }

    /// Answers a request: the bytes of a read, nothing otherwise.
    ///
    /// # Panics
    /// When it is answered twice, or with what it did not ask for.
    pub fn reply(&mut self, cookie: u64, result: Result<Bytes, Errno>, out: &mut Outbox) {
        let task = self.tasks.get_mut(cookie).expect("a request is answered once, by the cookie it came with");
        match &task.what {
            What::Long(long) if result.is_ok() && length(&long.rest) > 0 => self.resumed.push_back(cookie),
            What::Piece { .. } => self.piece_done(cookie, result, out),
            What::Reading => self.piece_read(cookie, result, out),
            _ => self.answer(cookie, result, out),
        }
    }

    fn answer(&mut self, cookie: u64, result: Result<Bytes, Errno>, out: &mut Outbox) {
        if self.is_sealed() {
            return self.defer(Deferred::Done(cookie, result));
        }
        let Task { to, bytes, what, .. } = self.retire(cookie);
        match result {
            Ok(data) => {
                let read = matches!(what, What::Read);
                assert!(!matches!(what, What::Status { .. }), "a block status is answered with one");
                assert_eq!(
                    data.len(),
                    if read { bytes as usize } else { 0 },
                    "a read is answered with what it asked for"
                );
                if read {
                    self.terms.style.data(out, to, data);
                } else {
                    self.terms.style.done(out, to, false);
                    out.promise();
                }
            }
            Err(errno) => {
                // What came before the piece that failed is done.
                let at = match &what {
                    What::Long(long) => Some(long.at),
                    What::Whole(whole) => whole.failed_at(),
                    _ => None,
                };
                self.terms.style.failed(out, to, Failure { errno, at, text: words(errno) });
            }
        }
    }

    /// Answers a [`Kind::Status`] with stretches from its offset on, at least one and not more than it asked for.
    ///
    /// # Panics
    /// When it is answered twice, or with what it did not ask for.
    pub fn status(&mut self, cookie: u64, stretches: &[Stretch], out: &mut Outbox) {
        if self.is_sealed() {
            return self.defer(Deferred::Status(cookie, stretches.to_vec()));
        }
        let Task { to, what, .. } = self.retire(cookie);
        let What::Status { one } = what else { panic!("a block status for a request that did not ask for it") };
        assert!(stretches.iter().all(|stretch| stretch.length > 0) && !stretches.is_empty(), "a status makes progress");
        self.terms.style.status(out, to, if one { &stretches[..1] } else { stretches });
    }

    /// What may begin beside what is in flight.
    pub fn set_room(&mut self, room: Ways<Share>) {
        self.room = room;
    }

    /// As the session's.
    pub fn set_thrift(&mut self, there: Option<usize>) {
        self.thrift = there;
    }

    /// Memory of the payloads in flight, bytes.
    #[must_use]
    pub fn inflight(&self) -> Held {
        self.inflight
    }

    /// The part of it that belongs to a payload which has not arrived completely.
    #[must_use]
    pub fn arriving(&self) -> Lanes<u64> {
        self.arriving.unwrap_or_default()
    }

    /// Requests not answered yet, and pieces of them.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.tasks.len()
    }

    /// Whether anything that was asked has yet to be carried out; all else waits for the client, or for memory.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        let waiting = usize::from(self.body.is_some()) + usize::from(self.reading_waits()) + self.deferred.len();
        self.tasks.len() > waiting
    }

    /// Bytes of the next payload, or of the piece of one that is arriving, guessed from the last write: 0 when the client
    /// has turned to reading.
    #[must_use]
    pub fn body_hint(&self) -> usize {
        if let Some(bytes) = self.next_piece() {
            return bytes;
        }
        // Its beginning takes no more memory than what comes.
        if self.begins {
            return 0;
        }
        if self.reads_since_write < READS_FORGET_WRITES { self.write_bytes as usize } else { 0 }
    }

    /// Bytes of the head that comes before it: 0 in the middle of a payload.
    #[must_use]
    pub fn head_bytes(&self) -> usize {
        use crate::nbd::protocol::{REQUEST_BYTES, REQUEST_EXTENDED_BYTES};
        if self.body.is_some() {
            return 0;
        }
        if self.terms.style == Style::Extended { REQUEST_EXTENDED_BYTES } else { REQUEST_BYTES }
    }

    /// Whether parsing stopped because too much is in flight, with a request left to be parsed.
    #[must_use]
    pub fn blocked(&self) -> bool {
        self.blocked
    }

    /// Whether anything waits for what its own client holds, or others do.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.blocked || self.reading_waits()
    }

    /// Whether that is because replies without data wait to be taken, or are owed.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// What the next request needs, when it waits for what other connections hold.
    #[must_use]
    pub fn wants(&self) -> Option<Held> {
        self.reading_wants().or(self.wants)
    }

    /// Whether the client has said goodbye.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    fn accept(&mut self, asked: Asked, to: To, rx: &mut Rope, events: &mut Vec<Event>, out: &mut Outbox) -> Step {
        // What was checked is no longer than a payload of the export, which 32 bits hold.
        let bytes = match asked.command {
            CMD_READ | CMD_WRITE => asked.length as u32,
            _ => 0,
        };
        let pieces = self.in_pieces(&asked);
        let cost = self.cost(&asked, pieces);
        let arrived = (rx.len() - asked.head) as u64 >= asked.payload;
        if self.arriving.is_none() {
            self.remember(&asked);
            if asked.command == CMD_WRITE && pieces {
                return self.begin_body(&asked, to, rx);
            }
            if self.reads_too_much(&asked, pieces) || (asked.chooses() && self.is_sealed()) {
                return self.block();
            }
            // It lies in what is received ahead, and takes no room before it is all there.
            if !arrived && asked.payload <= SMALL_BYTES {
                return Step::Stop;
            }
            if !arrived && self.has_yet_to_begin(&asked, rx.len() - asked.head) {
                return Step::Stop;
            }
            if !self.may_begin(cost) {
                return Step::Stop;
            }
            self.arriving = Some(cost.write);
        }
        if !arrived {
            return Step::Stop;
        }
        self.arriving = None;
        rx.skip(asked.head);
        if asked.command == CMD_READ && pieces {
            self.begin_reading(&asked, to, cost, events);
            return Step::Again;
        }
        let data = rx.take(asked.payload as usize);
        let asked = if asked.chooses() {
            let verdict = match asked.chosen(&data) {
                Ok(asked) => (asked, check_range(&self.terms, &asked, false)),
                Err(failure) => (asked, Verdict::Refused(failure)),
            };
            match verdict {
                (asked, Verdict::Accepted) => asked,
                (_, Verdict::Refused(failure)) => {
                    self.give_back(cost);
                    self.terms.style.failed(out, to, failure);
                    return Step::Again;
                }
                (_, other) => unreachable!("a block status is accepted or refused, not {other:?}"),
            }
        } else {
            asked
        };
        let kind = asked.kind(data);
        self.begin(to, bytes, cost, kind, events);
        Step::Again
    }

    /// Whether a payload, of which `here` bytes were received, has to come nearer before it takes room.
    fn has_yet_to_begin(&mut self, asked: &Asked, here: usize) -> bool {
        let Some(there) = self.thrift else { return false };
        self.begins = ((here + there) as u64) < asked.payload.min(FIRST_BYTES);
        self.begins
    }

    fn begin(&mut self, to: To, bytes: u32, cost: Held, mut kind: Kind, events: &mut Vec<Event>) {
        let what = match &kind {
            Kind::Read { .. } => {
                self.reads_since_write = self.reads_since_write.saturating_add(1);
                What::Read
            }
            Kind::Status { one, .. } => What::Status { one: *one },
            Kind::Trim { length, .. } | Kind::Zeroes { length, .. } if *length > RANGE_BYTES_MAX => {
                let first = first_piece(&mut kind);
                let rest = std::mem::replace(&mut kind, first);
                What::Long(Box::new(Long { rest, at: to.offset }))
            }
            _ => What::Change,
        };
        let cookie = self.keep(Task { to, bytes, cost, what });
        events.push(Event::Request(Request { cookie, kind }));
    }

    fn keep(&mut self, task: Task) -> u64 {
        self.owed += task.owes();
        self.tasks.insert(task)
    }

    fn retire(&mut self, cookie: u64) -> Task {
        let task = self.tasks.remove(cookie).expect("a request is answered once, by the cookie it came with");
        self.owed -= task.owes();
        self.give_back(task.cost);
        task
    }

    fn give_back(&mut self, cost: Held) {
        self.inflight.read -= cost.read;
        self.inflight.write -= cost.write;
    }

    /// Parsing stops, with a request left.
    fn block(&mut self) -> Step {
        self.blocked = true;
        Step::Stop
    }

    /// Whether the next request, or piece of a write, may begin; takes its room. A read in pieces goes first.
    fn may_begin(&mut self, cost: Held) -> bool {
        let own = !self.reading_waits() && self.tasks.len() < CONNECTION_REQUESTS_MAX && self.has_own_room(cost);
        let begins = own && self.takes_room(cost);
        self.blocked = !begins;
        if own && !begins {
            self.wants = Some(cost);
        }
        begins
    }

    /// Whether that many payload bytes may begin, by the bounds of their connection.
    fn has_own_room(&self, cost: Held) -> bool {
        let Ways { read, write } = self.inflight;
        let room = &self.room;
        read.sum() + write.sum() + cost.read.sum() + cost.write.sum() <= CONNECTION_PAYLOAD_BYTES_MAX
            && cost.read.long <= room.read.own_long
            && cost.write.long <= room.write.own_long
    }

    /// Takes the part of it of the room there is for all connections, if it is there.
    fn takes_room(&mut self, cost: Held) -> bool {
        let Ways { read, write } = &mut self.room;
        if !read.allows(cost.read) || !write.allows(cost.write) {
            return false;
        }
        assert!(read.take(cost.read) && write.take(cost.write), "both allow it");
        self.inflight.read += cost.read;
        self.inflight.write += cost.write;
        true
    }

    /// Notes the length of a write as soon as its head is there: the rest of a long one profits already.
    fn remember(&mut self, asked: &Asked) {
        if asked.command == CMD_WRITE {
            self.write_bytes = piece_bytes(asked.offset, asked.length, SERVER_LONG_PIECE_BYTES) as u32;
            self.reads_since_write = 0;
        }
    }

    /// What a request takes of the room, bytes: a payload lies in pages of its own (of a read in pieces the first), the
    /// longest answer to a block status too, and whatever waits for others as writes do counts as a page.
    fn cost(&self, asked: &Asked, in_pieces: bool) -> Held {
        const PAGE: u64 = BLOCK_BYTES as u64;
        let read = |bytes| Ways { read: Lanes::of(bytes), write: Lanes::default() };
        match asked.command {
            CMD_READ if in_pieces => {
                let first = piece_bytes(asked.offset, asked.length, self.room.read.piece_max());
                Ways { read: Lanes::long(pages(first)), write: Lanes::default() }
            }
            CMD_READ => read(pages(asked.length)),
            CMD_BLOCK_STATUS if asked.flags & CMD_FLAG_REQ_ONE == 0 => read(STATUS_BYTES),
            CMD_BLOCK_STATUS | CMD_CACHE => read(PAGE),
            CMD_WRITE => Ways { read: Lanes::default(), write: Lanes::of(pages(asked.length)) },
            _ => Ways { read: Lanes::default(), write: Lanes::of(PAGE) },
        }
    }
}

/// What a chunk with data, or of a hole, says beside its head, bytes.
const CHUNK_MORE_BYTES: u64 = 12;
/// Answer to a block status of one stretch, beside its head, bytes: the number of its context, and what counts stretches.
const STRETCH_BYTES: u64 = 8 + 16;
/// Longest answer to a block status, bytes: 16 for a stretch where headers are extended.
const STATUS_BYTES: u64 = 16 * STATUS_STRETCHES_MAX as u64;

/// Takes the first piece off a range. Pieces end at multiples of their greatest length, and only the first one can be
/// refused for being slow: after it the client is owed the rest.
fn first_piece(rest: &mut Kind) -> Kind {
    let mut piece = rest.clone();
    let (Kind::Trim { offset, length, .. } | Kind::Zeroes { offset, length, .. }) = rest else {
        unreachable!("only ranges without data are in pieces")
    };
    let end = (*offset / PIECE_BYTES_MAX + 1) * PIECE_BYTES_MAX;
    let taken = (end - *offset).min(*length);
    (*offset, *length) = (*offset + taken, *length - taken);
    if let Kind::Trim { length, .. } | Kind::Zeroes { length, .. } = &mut piece {
        *length = taken;
    }
    if let Kind::Zeroes { fast, .. } = rest {
        *fast = false;
    }
    piece
}

fn start(kind: &Kind) -> u64 {
    match kind {
        Kind::Trim { offset, .. } | Kind::Zeroes { offset, .. } => *offset,
        _ => unreachable!("only ranges without data are in pieces"),
    }
}

fn length(kind: &Kind) -> u64 {
    match kind {
        Kind::Trim { length, .. } | Kind::Zeroes { length, .. } => *length,
        _ => unreachable!("only ranges without data are in pieces"),
    }
}

/// What an error that comes from behind the session means.
fn words(errno: Errno) -> &'static str {
    match errno {
        Errno::Io => "the backing store failed; the log of the server says how",
        Errno::NoSpc => "no space left in the backing store or in the queue",
        Errno::NotSup => "zeroing this range would not be fast",
        Errno::Shutdown => "the server is being shut down, or has been fenced",
        Errno::Perm => "the export is read-only",
        Errno::NoMem | Errno::Inval | Errno::Overflow => "",
    }
}

/// After so many reads without a write the next request is expected to have no payload.
const READS_FORGET_WRITES: u32 = 16;

#[cfg(test)]
#[path = "transmission_tests.rs"]
mod tests;
