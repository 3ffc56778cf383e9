//! The client's side of an NBD connection against a server that sends anything: as the status table uses it, and as a
//! backing store does, with structured replies and `base:allocation`.
//!
//! After a handshake that the target made itself, what each answer says is noted beside it ([`Told`]), so that all that the
//! session makes of it is known: the bytes of a read, however they were cut, the stretches of a block status, the refusal of
//! whatever does not answer what was asked.

use bytes::Bytes;
use farshore::core::allocation::Stretch;
use farshore::core::rope::Rope;
use farshore::limits::{BACKING_STATUS_ANSWER_BYTES_MAX, PAYLOAD_BYTES_MAX};
use farshore::nbd::client::{ClientSession, Event};
use farshore::nbd::outbox::Outbox;
use farshore::nbd::protocol::*;

use super::{Input, Reached, Wanted};

pub const WANTED: Wanted = &[
    ("ready", 120),
    ("ready of a volume", 60),
    ("secure", 25),
    ("answer", 70),
    ("read in pieces", 4),
    ("read with holes", 6),
    ("block status", 15),
    ("error", 20),
    ("refused", 15),
    ("broken off", 90),
];

const SIZE: u64 = 1 << 20;
/// The number that the server gives to `base:allocation`.
const CONTEXT: u32 = 0x5eed;
const ALLOCATION: &[u8] = b"base:allocation";
/// What a simple reply to a read carries.
const READ_BYTE: u8 = 0x77;
const OPEN_MAX: usize = 64;
/// Longer than the longest error, so that answers of any length are met.
const LENGTH_MAX: u16 = 3 * STRING_BYTES_MAX as u16;

/// Of the first byte: what the session wants, and what the server does in a handshake of the target's own.
const OF_VOLUME: u8 = 1;
const TLS: u8 = 2;
const HANDSHAKE: u8 = 4;
const UNSTRUCTURED: u8 = 8;
const NO_CONTEXT: u8 = 16;
const BLOCK_SIZES: u8 = 32;
const INSISTS: u8 = 64;

/// The client's session against a server that sends anything.
pub fn client(input: &[u8], reached: &mut Reached) {
    let mut input = Input::new(input);
    let shape = input.u8();
    let mut run = Run::new(shape);
    if shape & HANDSHAKE != 0 {
        run.handshake(shape, reached);
    }
    while !input.is_empty() {
        let action = input.u8();
        let bytes = run.act(action, &mut input);
        let piece = if action & 0x80 != 0 { 3 } else { usize::MAX };
        for piece in bytes.chunks(piece) {
            if !run.take(piece, reached) {
                return;
            }
        }
        run.settle();
    }
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    Change,
    Read { offset: u64, length: u32 },
    Status { length: u32 },
}

impl What {
    /// Bytes of a simple reply that is no error.
    fn simple_bytes(self) -> usize {
        if let What::Read { length, .. } = self { length as usize } else { 0 }
    }
}

/// A request that is not answered.
struct Open {
    cookie: u64,
    /// As it is called on the wire.
    number: u64,
    what: What,
    told: Told,
}

/// What the chunks of one answer have said.
struct Told {
    /// The bytes of a read.
    bytes: Vec<Option<u8>>,
    /// A part of it was empty, was told twice or lies outside.
    crooked: bool,
    parts: usize,
    hole: bool,
    failed: bool,
    stretches: Vec<Stretch>,
}

impl Told {
    fn new(what: What) -> Told {
        let bytes = vec![None; what.simple_bytes()];
        Told { bytes, crooked: false, parts: 0, hole: false, failed: false, stretches: Vec::new() }
    }

    /// Bytes of the read from its offset on that are known.
    fn covered(&self) -> u64 {
        self.bytes.iter().position(Option::is_none).unwrap_or(self.bytes.len()) as u64
    }

    fn part(&mut self, what: What, at: u64, length: u64, byte: u8) {
        let What::Read { offset, .. } = what else { return };
        self.parts += 1;
        self.crooked |= length == 0;
        for at in at..at + length {
            let place = at.checked_sub(offset).and_then(|at| self.bytes.get_mut(usize::try_from(at).ok()?));
            self.crooked |= place.is_none_or(|place| place.replace(byte).is_some());
        }
    }

    /// What the session makes of it when nothing more follows.
    fn answer(&self, what: What, cookie: u64) -> Expected {
        if self.failed {
            return Expected::Failed(cookie);
        }
        match what {
            What::Change => Expected::Data(cookie, Vec::new()),
            What::Status { .. } if self.stretches.is_empty() => Expected::Refused,
            What::Status { .. } => Expected::Status(cookie, self.stretches.clone()),
            What::Read { .. } => match self.bytes.iter().copied().collect::<Option<Vec<u8>>>() {
                Some(bytes) if !self.crooked => Expected::Data(cookie, bytes),
                _ => Expected::Refused,
            },
        }
    }
}

/// What the session is to make of what it is given next.
#[derive(Debug, PartialEq)]
enum Expected {
    /// Anything that answers what was asked, once.
    Anything,
    Nothing,
    /// Nothing yet, and no answer later but an error.
    NothingOrRefused,
    Refused,
    Failed(u64),
    Data(u64, Vec<u8>),
    Status(u64, Vec<Stretch>),
}

struct Run {
    session: ClientSession,
    rope: Rope,
    out: Outbox,
    of_volume: bool,
    tls: bool,
    /// Structured replies were agreed upon in a handshake of the target's own.
    structured: bool,
    /// The option that was asked last, and the number of a read that nobody here has asked for.
    asked: u32,
    probe: Option<u64>,
    open: Vec<Open>,
    /// Every request there was: its number, and what it was.
    numbers: Vec<(u64, What)>,
    next: u64,
    ready: bool,
    refused: bool,
    /// Nothing was said that is not noted.
    exact: bool,
    expected: Expected,
}

impl Run {
    fn new(shape: u8) -> Run {
        let (of_volume, tls) = (shape & OF_VOLUME != 0, shape & TLS != 0);
        let session = match (of_volume, tls) {
            (false, false) => ClientSession::new("orders"),
            (false, true) => ClientSession::with_tls("orders"),
            (true, _) => ClientSession::of_volume("orders", tls),
        };
        Run {
            session,
            rope: Rope::new(),
            out: Outbox::new(),
            of_volume,
            tls,
            structured: false,
            asked: OPT_GO,
            probe: None,
            open: Vec::new(),
            numbers: Vec::new(),
            next: 0,
            ready: false,
            refused: false,
            exact: false,
            expected: Expected::Anything,
        }
    }

    /// Everything that a server says until it is ready, as it has to be.
    fn handshake(&mut self, shape: u8, reached: &mut Reached) {
        let structured = self.of_volume && shape & UNSTRUCTURED == 0;
        let mut steps = vec![greeting(3)];
        if self.tls {
            steps.push(option_reply(OPT_STARTTLS, REP_ACK, &[]));
        }
        if self.of_volume {
            let code = if structured { REP_ACK } else { REP_ERR_UNSUP };
            steps.push(option_reply(OPT_STRUCTURED_REPLY, code, &[]));
        }
        if structured && shape & NO_CONTEXT == 0 {
            steps.push(option_reply(OPT_SET_META_CONTEXT, REP_META_CONTEXT, &context(CONTEXT)));
        }
        if structured {
            steps.push(option_reply(OPT_SET_META_CONTEXT, REP_ACK, &[]));
        }
        steps.push(option_reply(OPT_GO, REP_INFO, &export_info()));
        if shape & BLOCK_SIZES != 0 {
            steps.push(option_reply(OPT_GO, REP_INFO, &block_sizes(12)));
        }
        steps.push(option_reply(OPT_GO, REP_ACK, &[]));
        for step in steps {
            assert!(self.take(&step, reached), "a handshake as it has to be is refused");
        }
        if let Some(number) = self.probe {
            assert!(shape & BLOCK_SIZES != 0 && !self.ready);
            let reply = match (shape & INSISTS != 0, structured) {
                (true, _) => ReplyHead::encode(22, number).to_vec(),
                (false, false) => [&ReplyHead::encode(0, number)[..], &[1]].concat(),
                (false, true) => chunk(true, REPLY_OFFSET_DATA, number, &[&1u64.to_be_bytes()[..], &[1]].concat()),
            };
            assert!(self.take(&reply, reached), "an answer to the probe is refused");
        }
        let block_min = if shape & BLOCK_SIZES != 0 && shape & INSISTS != 0 { 4096 } else { 1 };
        assert_eq!(self.session.info().map(|info| (info.size, info.block_min)), Some((SIZE, block_min)));
        assert_eq!(self.session.knows_holes(), structured && shape & NO_CONTEXT == 0);
        assert!(self.ready);
        (self.exact, self.structured) = (true, structured);
    }

    /// What the server sends next; or the client asks for something.
    fn act(&mut self, action: u8, input: &mut Input<'_>) -> Vec<u8> {
        self.expected = Expected::Anything;
        match action % 8 {
            0 => {
                self.exact = false;
                input.bytes(usize::from(action >> 3)).to_vec()
            }
            1 => {
                self.exact = false;
                greeting(u16::from(action >> 3 & 7))
            }
            2 | 3 => {
                self.exact = false;
                self.option(action, input)
            }
            4 => self.simple(action, input),
            7 if self.of_volume => self.chunk(input),
            _ if self.ready && self.open.len() < OPEN_MAX => {
                self.ask(action, input);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// An answer to the option that was asked last, or to another.
    fn option(&self, action: u8, input: &mut Input<'_>) -> Vec<u8> {
        let meta = if self.of_volume { REP_META_CONTEXT } else { REP_SERVER };
        let codes = [REP_ACK, REP_INFO, REP_INFO, meta, REP_ERR_UNSUP, REP_ERR_BLOCK_SIZE_REQD, REP_ERR_POLICY, 99];
        let which = usize::from(action >> 3 & 7);
        let count = usize::from(input.u8());
        let data = input.bytes(count);
        let option = if self.of_volume && count == 0xff { OPT_LIST } else { self.asked };
        let data = match (action & 0x40 != 0, which) {
            (false, _) => data.to_vec(),
            (true, 3) if self.of_volume => context(CONTEXT),
            (true, 2) if self.of_volume => block_sizes(count % 18),
            (true, 0) if self.of_volume => Vec::new(),
            (true, _) => export_info(),
        };
        option_reply(option, codes[which], &data)
    }

    /// A simple reply to any request that there ever was.
    fn simple(&mut self, action: u8, input: &mut Input<'_>) -> Vec<u8> {
        let which = usize::from(input.u8());
        let (number, what) = match self.numbers.len() {
            0 => (7, What::Change),
            count => self.numbers[which % count],
        };
        let error = if action & 0x10 != 0 { u32::from(input.u8()) } else { 0 };
        let data = if error == 0 { what.simple_bytes() } else { 0 };
        self.expected = match self.open.iter().find(|open| open.number == number) {
            None => Expected::Refused,
            Some(open) if error == 0 => Expected::Data(open.cookie, vec![READ_BYTE; data]),
            Some(open) => Expected::Failed(open.cookie),
        };
        [ReplyHead::encode(error, number).to_vec(), vec![READ_BYTE; data]].concat()
    }

    /// A chunk of an answer, which goes on where the one before it ended, or does not fit what was asked.
    fn chunk(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let (which, how, count) = (input.u8(), input.u8(), u64::from(input.u8()));
        let lie = if how & 0x10 != 0 { u64::from(input.u8()) } else { 0 };
        let done = how & 1 != 0;
        let last = if lie & 1 == 0 { 77 } else { REPLY_ERROR_BIT + 9 };
        let kinds = [
            REPLY_OFFSET_DATA,
            REPLY_OFFSET_DATA,
            REPLY_OFFSET_HOLE,
            REPLY_BLOCK_STATUS,
            REPLY_NONE,
            REPLY_ERROR,
            REPLY_ERROR_OFFSET,
            last,
        ];
        let kind = kinds[usize::from(how >> 1 & 7)];
        let open = match self.open.len() {
            0 => None,
            length => self.open.get_mut(usize::from(which & 0x7f) % length).filter(|_| which & 0x80 == 0),
        };
        let Some(open) = open else {
            // Of one that was answered, or never asked; or of one that is open after all.
            let number = self.numbers.get(usize::from(which & 0x7f)).map_or(7, |request| request.0);
            let known = self.open.iter().any(|open| open.number == number);
            self.exact &= !known;
            self.expected = Expected::Refused;
            return chunk(done, kind, number, &[0; 16]);
        };
        let what = open.what;
        let (data, fits) = match kind {
            REPLY_OFFSET_DATA | REPLY_OFFSET_HOLE => {
                let (data, byte) = part(open, kind, how, count, lie);
                (data, matches!(what, What::Read { .. }) && byte)
            }
            REPLY_BLOCK_STATUS => status(open, count, lie, input),
            REPLY_NONE => (vec![0; usize::from(lie != 0)], lie == 0),
            kind if kind & REPLY_ERROR_BIT != 0 => {
                open.told.failed |= lie & 4 == 0;
                let data =
                    [&(1 + count as u32).to_be_bytes()[..], &(lie as u16 & 8).to_be_bytes(), &[b'x'; 16]].concat();
                (data[..if lie & 4 == 0 { 6 + lie as usize % 16 } else { 5 }].to_vec(), lie & 4 == 0)
            }
            _ => (vec![0; 12], false),
        };
        self.expected = match (fits && self.structured, done) {
            (false, _) => Expected::Refused,
            // What cannot end well any more may be refused at once.
            (true, false) if open.told.crooked => Expected::NothingOrRefused,
            (true, false) => Expected::Nothing,
            (true, true) if open.told.crooked && open.told.failed => Expected::Anything,
            (true, true) => open.told.answer(what, open.cookie),
        };
        chunk(done, kind, open.number, &data)
    }

    /// The client asks for something.
    fn ask(&mut self, action: u8, input: &mut Input<'_>) {
        let length = u32::from(input.u16() % LENGTH_MAX);
        let offset = if self.of_volume { u64::from(input.u8()) << 9 } else { 0 };
        let (session, out, next) = (&mut self.session, &mut self.out, self.next);
        let what = match action >> 3 & 3 {
            0 => {
                session.read(next, offset, length, out);
                What::Read { offset, length }
            }
            1 => {
                session.write(next, offset, vec![Bytes::from(vec![1; length as usize])], true, out);
                What::Change
            }
            2 if self.of_volume => {
                session.zeroes(next, offset, length, action & 0x20 != 0, action & 0x40 != 0, out);
                What::Change
            }
            3 if session.knows_holes() => {
                session.status(next, offset, length, action & 0x20 != 0, out);
                What::Status { length }
            }
            _ => {
                session.flush(next, out);
                What::Change
            }
        };
        let sent: Vec<u8> = self.out.drain().flatten().collect();
        let number = RequestHead::decode(sent.first_chunk().expect("a whole request")).cookie;
        assert!(self.numbers.iter().all(|known| known.0 != number), "a number is used twice");
        self.numbers.push((number, what));
        self.open.push(Open { cookie: next, number, what, told: Told::new(what) });
        self.next += 1;
    }

    /// Gives the session bytes; false when it gave up.
    fn take(&mut self, bytes: &[u8], reached: &mut Reached) -> bool {
        self.rope.push(Bytes::copy_from_slice(bytes));
        loop {
            let mut events = Vec::new();
            let result = self.session.advance(&mut self.rope, &mut events, &mut self.out);
            let secure = events.contains(&Event::Secure);
            events.into_iter().for_each(|event| self.event(event, reached));
            self.look_at_what_was_sent();
            let probing = usize::from(self.probe.is_some() && !self.ready && !self.refused);
            assert_eq!(self.session.inflight(), self.open.len() + probing);
            if result.is_err() {
                let may = matches!(self.expected, Expected::Anything | Expected::Refused | Expected::NothingOrRefused);
                assert!(!self.exact || may, "refused, where {:?} was expected: {result:?}", self.expected);
                let mut left = self.session.abandon();
                left.sort_unstable();
                let open: Vec<u64> = self.open.iter().map(|open| open.cookie).collect();
                assert_eq!(left, open, "each is given back once");
                reached.one("broken off");
                return false;
            }
            let longest = self.open.iter().map(|open| match open.what {
                What::Status { .. } => BACKING_STATUS_ANSWER_BYTES_MAX as usize,
                what => what.simple_bytes(),
            });
            let longest = longest.max().unwrap_or(0);
            assert!(self.rope.len() < OPTION_REPLY_BYTES + 2 * STRING_BYTES_MAX + CHUNK_BYTES + longest + 9);
            if !secure {
                return true;
            }
            self.session.secured(&mut self.out);
            self.look_at_what_was_sent();
        }
    }

    /// All of an answer has been given: it has come to what it says.
    fn settle(&self) {
        if self.exact {
            let settled = matches!(self.expected, Expected::Anything | Expected::Nothing | Expected::NothingOrRefused);
            assert!(settled, "nothing came of {:?}", self.expected);
        }
    }

    fn event(&mut self, event: Event, reached: &mut Reached) {
        match event {
            Event::Secure => {
                assert!(self.tls && !self.ready && self.rope.is_empty());
                reached.one("secure");
            }
            Event::Ready(info) => {
                assert!(!self.ready && !self.refused, "ready once, and not when refused");
                assert!(info.block_min.is_power_of_two() && info.block_max >= info.block_min);
                assert!(info.block_max <= PAYLOAD_BYTES_MAX);
                self.ready = true;
                reached.one("ready");
                reached.when("ready of a volume", self.of_volume);
            }
            Event::Refused { code, text } => {
                assert!(!self.ready && !self.refused && code & REP_ERROR_BIT != 0 && !text.is_empty());
                self.refused = true;
                reached.one("refused");
            }
            Event::Status { cookie, stretches } => {
                let open = self.answered(cookie);
                let What::Status { length } = open.what else { panic!("nobody asked for holes") };
                let covered: u64 = stretches.iter().map(|stretch| stretch.length).sum();
                assert!(stretches.iter().all(|stretch| stretch.length > 0) && covered <= u64::from(length));
                reached.one("block status");
                self.expect(&Expected::Status(cookie, stretches));
            }
            Event::Done { cookie, result: Err(_) } => {
                self.answered(cookie);
                reached.one("error");
                self.expect(&Expected::Failed(cookie));
            }
            Event::Done { cookie, result: Ok(data) } => {
                let open = self.answered(cookie);
                assert_eq!(data.len(), open.what.simple_bytes());
                reached.one("answer");
                reached.when("read in pieces", open.told.parts > 1);
                reached.when("read with holes", open.told.hole);
                self.expect(&Expected::Data(cookie, data.to_vec()));
            }
        }
    }

    fn answered(&mut self, cookie: u64) -> Open {
        let at = self.open.iter().position(|open| open.cookie == cookie);
        self.open.remove(at.expect("an answer to what was asked, once"))
    }

    fn expect(&mut self, found: &Expected) {
        if self.exact && self.expected != Expected::Anything {
            assert_eq!(&self.expected, found);
            self.expected = Expected::Nothing;
        }
    }

    /// Which option is waited for, and whether the session tries what the server insists on.
    fn look_at_what_was_sent(&mut self) {
        let sent: Vec<u8> = self.out.drain().flatten().collect();
        let option = |at: &usize| sent[*at..].starts_with(&MAGIC_OPTION.to_be_bytes());
        if let Some(head) = (0..sent.len()).rev().find(option).and_then(|at| sent[at..].first_chunk()) {
            self.asked = OptionHead::decode(head).option;
        }
        let head = sent.last_chunk::<REQUEST_BYTES>().map(RequestHead::decode);
        if let Some(head) = head.filter(|head| head.magic == MAGIC_REQUEST && head.command == CMD_READ) {
            self.probe = Some(head.cookie);
            self.numbers.push((head.cookie, What::Read { offset: head.offset, length: head.length }));
        }
    }
}

/// A part of a read: data or a hole. Whether its head is one that is read.
fn part(open: &mut Open, kind: u16, how: u8, count: u64, lie: u64) -> (Vec<u8>, bool) {
    let (offset, length) =
        if let What::Read { offset, length } = open.what { (offset, u64::from(length)) } else { (0, 9) };
    let mut at = offset + open.told.covered();
    if how & 0x20 != 0 {
        at += count;
    }
    let left = (offset + length).saturating_sub(at);
    let mut bytes = if count == 0 { left } else { left.min(count << (how >> 6)) };
    at += lie & 1;
    bytes += lie >> 1 & 1;
    let hole = kind == REPLY_OFFSET_HOLE;
    let byte = if hole { 0 } else { how ^ 0x55 };
    open.told.hole |= hole;
    open.told.part(open.what, at, bytes, byte);
    let mut data = at.to_be_bytes().to_vec();
    if hole {
        data.extend_from_slice(&(bytes as u32).to_be_bytes());
    } else {
        data.resize(8 + bytes as usize, byte);
    }
    (data, hole || bytes > 0)
}

/// A block status of `1 + count % 4` stretches. Whether it is one that is accepted.
fn status(open: &mut Open, count: u64, lie: u64, input: &mut Input<'_>) -> (Vec<u8>, bool) {
    let context = if lie & 1 == 0 { CONTEXT } else { CONTEXT + 1 };
    let mut data = context.to_be_bytes().to_vec();
    let asked = if let What::Status { length } = open.what { u64::from(length) } else { 0 };
    let (mut left, mut fits) = (asked, lie & 1 == 0 && matches!(open.what, What::Status { .. }));
    open.told.stretches.clear();
    for _ in 0..=count % 4 {
        let (length, flags) = (u32::from(input.u16()), u32::from(input.u8()));
        data.extend_from_slice(&length.to_be_bytes());
        data.extend_from_slice(&flags.to_be_bytes());
        fits &= length > 0;
        let within = left.min(u64::from(length));
        left -= within;
        if within > 0 {
            open.told.stretches.push(Stretch { length: within, hole: flags & 3 == 3 });
        }
    }
    if lie & 2 != 0 {
        data.push(0);
        fits = false;
    }
    (data, fits)
}

fn greeting(flags: u16) -> Vec<u8> {
    [&MAGIC_SERVER.to_be_bytes()[..], &MAGIC_OPTION.to_be_bytes(), &flags.to_be_bytes()].concat()
}

fn option_reply(option: u32, code: u32, data: &[u8]) -> Vec<u8> {
    [&OptionReplyHead::encode(option, code, data.len() as u32)[..], data].concat()
}

fn chunk(done: bool, kind: u16, number: u64, data: &[u8]) -> Vec<u8> {
    let flags = if done { REPLY_FLAG_DONE } else { 0 };
    [&ChunkHead::encode(flags, kind, number, data.len() as u32)[..], data].concat()
}

fn context(number: u32) -> Vec<u8> {
    [&number.to_be_bytes()[..], ALLOCATION].concat()
}

fn export_info() -> Vec<u8> {
    [&INFO_EXPORT.to_be_bytes()[..], &SIZE.to_be_bytes(), &HAS_FLAGS.to_be_bytes()].concat()
}

/// The smallest block is two to the power of `power`.
fn block_sizes(power: usize) -> Vec<u8> {
    let sizes = [1u32 << power, 4096, 1 << 20].map(u32::to_be_bytes).concat();
    [&INFO_BLOCK_SIZE.to_be_bytes()[..], &sizes].concat()
}
