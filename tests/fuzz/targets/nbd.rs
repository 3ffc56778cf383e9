//! The server's side of an NBD connection against a client that sends anything.
//!
//! What was asked is read from the same bytes a second time, by the few lines of [`Asked`], so that an answer nobody
//! asked for is seen.

use std::collections::BTreeMap;

use bytes::Bytes;
use farshore::core::allocation::Stretch;
use farshore::core::errno::Errno;
use farshore::core::rope::Rope;
use farshore::limits::{
    CONNECTION_PAYLOAD_BYTES_MAX, CONNECTION_REQUESTS_MAX, NBD_OPTION_BYTES_MAX, PAYLOAD_BYTES_MAX,
    PAYLOAD_PIECE_BYTES_MAX, RANGE_BYTES_MAX,
};
use farshore::nbd::outbox::Outbox;
use farshore::nbd::protocol::*;
use farshore::nbd::session::{self, Event, Export, Kind, Purpose, Refusal, Session, SessionError};

use super::{Input, Reached, Wanted};

pub const WANTED: Wanted = &[
    ("simple replies", 15),
    ("structured replies", 20),
    ("extended headers", 20),
    ("read", 100),
    ("write", 50),
    ("flush", 2),
    ("trim", 40),
    ("zeroes", 80),
    ("cache", 20),
    ("block status", 25),
];

const SIZE: u64 = 1 << 20;

fn export(shape: u8, more: u8) -> Export {
    Export {
        name: "orders".into(),
        description: "a volume".into(),
        size: if more & 4 != 0 { 1 << 40 } else { SIZE },
        read_only: shape & 1 != 0,
        block_min: if shape & 2 != 0 { 512 } else { 1 },
        block_preferred: 4096,
        block_max: if shape & 4 != 0 { 4096 } else { PAYLOAD_BYTES_MAX },
        multi_conn: true,
        trim: shape & 8 != 0,
        zeroes: shape & 16 != 0,
        fast_zero: more & 8 != 0,
        cache: more & 16 != 0,
        allocation: more & 32 != 0,
        fua: shape & 32 != 0,
        flush: shape & 64 != 0,
    }
}

/// What was negotiated, by the answers to options: bytes of the heads of requests and replies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Simple,
    Structured,
    Extended,
}

impl Style {
    fn negotiated(out: &[u8]) -> Style {
        let acknowledged = |option| options(out).any(|head| head.option == option && head.reply == REP_ACK);
        if acknowledged(OPT_EXTENDED_HEADERS) {
            Style::Extended
        } else if acknowledged(OPT_STRUCTURED_REPLY) {
            Style::Structured
        } else {
            Style::Simple
        }
    }
}

/// The heads of the answers to options at the beginning of a server's bytes.
fn options(out: &[u8]) -> impl Iterator<Item = OptionReplyHead> + '_ {
    let mut rest = &out[GREETING_BYTES.min(out.len())..];
    std::iter::from_fn(move || {
        let head = OptionReplyHead::decode(rest.first_chunk::<OPTION_REPLY_BYTES>()?);
        if head.magic != MAGIC_OPTION_REPLY {
            return None;
        }
        rest = &rest[OPTION_REPLY_BYTES + head.length as usize..];
        Some(head)
    })
}

/// A request as it was sent.
#[derive(Clone, Copy)]
struct Sent {
    cookie: u64,
    command: u16,
    offset: u64,
    length: u64,
}

/// What a client's bytes ask for.
#[derive(Default)]
struct Asked {
    options: Vec<u32>,
    requests: Vec<Sent>,
}

impl Asked {
    /// Reads the bytes of a whole connection; the handshake ends with the option number `handshake`, if it does.
    fn read(bytes: &[u8], handshake: Option<usize>, style: Style) -> Asked {
        let mut asked = Asked::default();
        let Some(mut rest) = bytes.get(4..) else { return asked };
        while asked.options.len() != handshake.unwrap_or(usize::MAX) {
            let Some(head) = rest.first_chunk::<OPTION_BYTES>().map(OptionHead::decode) else { return asked };
            if head.magic != MAGIC_OPTION {
                return asked;
            }
            asked.options.push(head.option);
            match rest.get(OPTION_BYTES + head.length as usize..) {
                Some(after) => rest = after,
                None => return asked,
            }
        }
        while let Some((sent, bytes)) = request(rest, style) {
            asked.requests.push(sent);
            match usize::try_from(bytes).ok().and_then(|bytes| rest.get(bytes..)) {
                Some(after) => rest = after,
                None => break,
            }
        }
        asked
    }

    /// Every answer in `out` is to something asked, and to nothing twice.
    fn check(self, out: &[u8], named: bool, no_zeroes: bool, style: Style) {
        let mut answered = 0;
        let mut rest = &out[GREETING_BYTES..];
        for head in options(out) {
            rest = &rest[OPTION_REPLY_BYTES + head.length as usize..];
            assert_eq!(Some(&head.option), self.options.get(answered), "an option is answered that was not asked");
            answered += usize::from(!matches!(head.reply, REP_INFO | REP_SERVER | REP_META_CONTEXT));
        }
        if named {
            let padding = if no_zeroes { 0 } else { EXPORT_NAME_PADDING_BYTES };
            rest = &rest[EXPORT_NAME_REPLY_BYTES + padding..];
        }
        // Clients may use one cookie for many requests: what is counted is answers by cookie and length.
        let mut answers: BTreeMap<(u64, u64), usize> = BTreeMap::new();
        while !rest.is_empty() {
            let (cookie, data, length) =
                if be32(rest, 0) == MAGIC_REPLY { self.simple(rest, style) } else { self.chunk(rest, style) };
            if let Some(cookie) = cookie {
                *answers.entry((cookie, data)).or_default() += 1;
            }
            rest = &rest[length..];
        }
        for (&(cookie, data), &count) in &answers {
            let of_cookie = self.requests.iter().filter(|request| request.cookie == cookie);
            let reads = of_cookie.clone().filter(|it| data == 0 || it.command == CMD_READ && it.length == data).count();
            assert!(count <= reads, "{count} answers with {data} bytes to {reads} requests with cookie {cookie}");
            let all: usize = answers.range((cookie, 0)..=(cookie, u64::MAX)).map(|(_, count)| count).sum();
            assert!(all <= of_cookie.count(), "more answers than requests with cookie {cookie}");
        }
    }

    /// A simple reply at the front: its cookie, the bytes of data, and all of its bytes.
    fn simple(&self, rest: &[u8], style: Style) -> (Option<u64>, u64, usize) {
        assert!(style != Style::Extended, "no simple replies with extended headers");
        let head = ReplyHead::decode(rest.first_chunk().expect("replies are whole"));
        let fit = self.requests.iter().find(|request| {
            // Once structured replies have been negotiated, no read has a simple one.
            request.cookie == head.cookie
                && (style == Style::Simple || request.command != CMD_READ)
                && fits(request, rest, head.error)
        });
        let request = fit.expect("a reply to nothing that was asked");
        let data = if request.command == CMD_READ && head.error == 0 { request.length } else { 0 };
        (Some(head.cookie), data, REPLY_BYTES + data as usize)
    }

    /// A chunk at the front, as `simple`; of a read in pieces, which has several, the last one counts as an answer.
    fn chunk(&self, rest: &[u8], style: Style) -> (Option<u64>, u64, usize) {
        let extended = style == Style::Extended;
        let (magic, head) =
            if extended { (MAGIC_REPLY_EXTENDED, CHUNK_EXTENDED_BYTES) } else { (MAGIC_REPLY_STRUCTURED, CHUNK_BYTES) };
        assert!(style != Style::Simple && be32(rest, 0) == magic);
        let last = be16(rest, 4) == REPLY_FLAG_DONE;
        let (kind, cookie) = (be16(rest, 6), be64(rest, 8));
        let length = if extended { be64(rest, 24) as usize } else { be32(rest, 16) as usize };
        let data = &rest[head..head + length];
        let of_cookie = self.requests.iter().filter(|sent| sent.cookie == cookie);
        let mut of_cookie = of_cookie.filter(|sent| !extended || sent.offset == be64(rest, 16)).copied();
        let fit = of_cookie.find(|sent| match kind {
            REPLY_NONE => {
                let in_pieces = sent.length == 0 || sent.length > PAYLOAD_PIECE_BYTES_MAX;
                last && length == 0 && (extended || sent.command == CMD_READ && in_pieces)
            }
            REPLY_OFFSET_DATA => {
                let (at, bytes) = (be64(data, 0), length as u64 - 8);
                let whole = at == sent.offset && bytes == sent.length;
                let inside = at >= sent.offset && at + bytes <= sent.offset + sent.length;
                // One that must not be broken up and has failed ends in zeroes.
                let right = data[8..].iter().all(|&byte| byte == READ_BYTE) || bytes > PAYLOAD_PIECE_BYTES_MAX;
                let piece = sent.length > PAYLOAD_PIECE_BYTES_MAX && inside && right;
                sent.command == CMD_READ && (whole && last || piece)
            }
            REPLY_BLOCK_STATUS => !extended && sent.command == CMD_BLOCK_STATUS && length > 4 && (length - 4) % 8 == 0,
            REPLY_BLOCK_STATUS_EXT => {
                extended && sent.command == CMD_BLOCK_STATUS && length == 8 + 16 * be32(data, 4) as usize
            }
            REPLY_ERROR => be32(data, 0) != 0 && length == 6 + usize::from(be16(data, 4)),
            REPLY_ERROR_OFFSET => {
                let at = be64(data, length - 8);
                let inside = at >= sent.offset && (at - sent.offset < sent.length || sent.command == CMD_BLOCK_STATUS);
                be32(data, 0) != 0 && length == 14 + usize::from(be16(data, 4)) && inside
            }
            _ => false,
        });
        assert!(fit.is_some(), "a chunk of type {kind} that answers nothing that was asked");
        let whole = fit.is_some_and(|sent| kind == REPLY_OFFSET_DATA && length as u64 == 8 + sent.length);
        (last.then_some(cookie), if whole { length as u64 - 8 } else { 0 }, head + length)
    }
}

/// The request at the front, and all of its bytes.
fn request(rest: &[u8], style: Style) -> Option<(Sent, u64)> {
    if style == Style::Extended {
        let raw = rest.first_chunk::<REQUEST_EXTENDED_BYTES>()?;
        let (flags, command, length) = (be16(raw, 4), be16(raw, 6), be64(raw, 24));
        let payload = if flags & CMD_FLAG_PAYLOAD_LEN != 0 || command == CMD_WRITE { length } else { 0 };
        let sent = Sent { cookie: be64(raw, 8), command, offset: be64(raw, 16), length };
        let bytes = payload.saturating_add(REQUEST_EXTENDED_BYTES as u64);
        return (be32(raw, 0) == MAGIC_REQUEST_EXTENDED).then_some((sent, bytes));
    }
    let head = RequestHead::decode(rest.first_chunk::<REQUEST_BYTES>()?);
    let payload = if head.command == CMD_WRITE { head.length } else { 0 };
    let RequestHead { cookie, command, offset, length, .. } = head;
    let sent = Sent { cookie, command, offset, length: u64::from(length) };
    (head.magic == MAGIC_REQUEST).then_some((sent, REQUEST_BYTES as u64 + u64::from(payload)))
}

/// Whether a simple reply at the front of `out` may be the one to this request. Replies without data can be as long
/// together as one with data, so that what is read is compared, too.
fn fits(request: &Sent, out: &[u8], error: u32) -> bool {
    let data = if request.command == CMD_READ && error == 0 { request.length as usize } else { 0 };
    if !out.iter().skip(REPLY_BYTES).take(data).all(|&byte| byte == READ_BYTE) {
        return false;
    }
    let next = [MAGIC_REPLY, MAGIC_REPLY_STRUCTURED].map(u32::to_be_bytes);
    out.get(REPLY_BYTES + data..)
        .is_some_and(|rest| rest.is_empty() || next.iter().any(|magic| rest.starts_with(magic)))
}

/// Appends what a client could send, well formed or not.
fn client_bytes(input: &mut Input<'_>, stream: &mut Vec<u8>, extended: bool) {
    let action = input.u8();
    match action % 7 {
        0 => {
            let count = usize::from(input.u8() % 64);
            stream.extend_from_slice(input.bytes(count));
        }
        1 => {
            let option = u32::from(input.u8() % 13);
            let count = usize::from(input.u8());
            let data = input.bytes(count);
            stream.extend_from_slice(&OptionHead::encode(option, data.len() as u32));
            stream.extend_from_slice(data);
        }
        2 => {
            let (option, lie) = (if input.u8() & 1 == 0 { OPT_GO } else { OPT_INFO }, input.u8());
            let name = input.bytes(usize::from(lie & 15));
            let infos = usize::from(lie >> 4 & 3);
            stream.extend_from_slice(&OptionHead::encode(option, (6 + name.len() + 2 * infos) as u32));
            stream.extend_from_slice(&(name.len() as u32 + u32::from(lie >> 7)).to_be_bytes());
            stream.extend_from_slice(name);
            stream.extend_from_slice(&(infos as u16).to_be_bytes());
            (0..infos).for_each(|_| stream.extend_from_slice(&u16::from(input.u8() % 5).to_be_bytes()));
        }
        3 => contexts(input, stream),
        _ => {
            let (more, command) = (input.u8(), u16::from(input.u8() % 10));
            let (flags, cookie) = (u16::from(more & 0x3f), u64::from(input.u8()));
            let offset = input.number() << if action & 8 != 0 { 9 } else { 0 };
            let length = if action & 16 != 0 { input.number() } else { u64::from(input.u8()) << 9 };
            if extended != (more & 0xc0 == 0xc0) {
                let length = length << if action & 32 != 0 { 24 } else { 0 };
                stream.extend_from_slice(&RequestHead::encode_extended(flags, command, cookie, offset, length));
                if (flags & CMD_FLAG_PAYLOAD_LEN != 0 || command == CMD_WRITE) && length <= 1 << 14 {
                    let payload = [&512u64.to_be_bytes()[..], &1u32.to_be_bytes()].concat();
                    let filler = stream.len() + length as usize;
                    stream.extend_from_slice(&payload[..payload.len().min(length as usize)]);
                    stream.resize(filler, 0xab);
                }
            } else {
                let length = length as u32;
                stream.extend_from_slice(&RequestHead::encode(flags, command, cookie, offset, length));
                if command == CMD_WRITE && length <= 1 << 14 {
                    stream.resize(stream.len() + length as usize, 0xab);
                }
            }
        }
    }
}

/// Appends an option about metadata contexts.
fn contexts(input: &mut Input<'_>, stream: &mut Vec<u8>) {
    let shape = input.u8();
    let option = if shape & 1 == 0 { OPT_LIST_META_CONTEXT } else { OPT_SET_META_CONTEXT };
    let queries = [&b"base:allocation"[..], b"base:", b"base:x", b"x-y:z", b"none", b":", b""];
    let count = u32::from(shape >> 1 & 3);
    let mut data = [&6u32.to_be_bytes()[..], b"orders", &(count + u32::from(shape >> 7)).to_be_bytes()].concat();
    for _ in 0..count {
        let query = queries[usize::from(input.u8()) % queries.len()];
        data.extend_from_slice(&(query.len() as u32).to_be_bytes());
        data.extend_from_slice(query);
    }
    if shape & 0x40 != 0 {
        data.truncate(usize::from(input.u8()));
    }
    stream.extend_from_slice(&OptionHead::encode(option, data.len() as u32));
    stream.extend_from_slice(&data);
}

/// The server's session, with an application behind it that answers in any order.
pub fn server(input: &[u8], reached: &mut Reached) {
    let mut input = Input::new(input);
    let (shape, cut, more) = (input.u8(), 1 + usize::from(input.u8()) * 7, input.u8());
    let export = export(shape, more);
    let mut stream = Vec::new();
    if shape & 0x80 == 0 {
        stream.extend_from_slice(&u32::from(cut as u16 & 3).to_be_bytes());
        if let option @ (OPT_STRUCTURED_REPLY | OPT_EXTENDED_HEADERS) = [0, 0, 8, 11][usize::from(more & 3)] {
            stream.extend_from_slice(&OptionHead::encode(option, 0));
        }
    }
    let order = input.u64();
    while !input.is_empty() && stream.len() < 1 << 16 {
        client_bytes(&mut input, &mut stream, more & 3 == 3);
    }
    let mut run = Server {
        session: Session::new(),
        reached,
        export,
        open: Vec::new(),
        out: Vec::new(),
        handshake: None,
        named: false,
        broken: false,
    };
    let mut out = Outbox::new();
    run.session.greet(&mut out);
    let (mut rope, mut given, mut order) = (Rope::new(), 0, order);
    let mut whole = true;
    for piece in stream.chunks(cut) {
        rope.push(Bytes::copy_from_slice(piece));
        given += piece.len();
        if !run.turn(&mut rope, &mut out, &mut order) {
            whole = false;
            break;
        }
    }
    while whole && !run.open.is_empty() {
        run.answer(&mut out, order as usize);
        whole = run.turn(&mut rope, &mut out, &mut order);
    }
    // A write that has not arrived completely stays.
    assert!(!whole || run.session.inflight() == usize::from(run.arrives()));
    run.out.extend(out.drain().flatten());
    if run.broken {
        return;
    }
    let no_zeroes = stream.get(3).is_some_and(|flags| flags & 2 != 0);
    let style = Style::negotiated(&run.out);
    if run.handshake.is_some() {
        run.reached.one(match style {
            Style::Simple => "simple replies",
            Style::Structured => "structured replies",
            Style::Extended => "extended headers",
        });
    }
    let asked = Asked::read(&stream[..given], run.handshake, style);
    asked.check(&run.out, run.named, no_zeroes, style);
}

fn kind_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Read { .. } => "read",
        Kind::Write { .. } => "write",
        Kind::Flush => "flush",
        Kind::Trim { .. } => "trim",
        Kind::Zeroes { .. } => "zeroes",
        Kind::Cache { .. } => "cache",
        Kind::Status { .. } => "block status",
    }
}

/// What every read returns.
const READ_BYTE: u8 = 0x5a;

struct Server<'a> {
    session: Session,
    reached: &'a mut Reached,
    export: Export,
    open: Vec<Open>,
    out: Vec<u8>,
    /// Options up to the one that ended the handshake.
    handshake: Option<usize>,
    named: bool,
    /// It ended in the middle of a reply.
    broken: bool,
}

/// A request that is not answered.
struct Open {
    number: u64,
    /// Bytes of a read.
    read: usize,
    /// Bytes that count against the bound.
    moved: u64,
    /// What a block status may cover.
    status: Option<u64>,
}

impl Server<'_> {
    /// Gives what has arrived until nothing happens any more; false when the session gave up.
    fn turn(&mut self, rope: &mut Rope, out: &mut Outbox, order: &mut u64) -> bool {
        loop {
            let mut events = Vec::new();
            let result = self.session.advance(rope, &mut events, out);
            let quiet = events.is_empty();
            for event in events {
                self.event(event, out, *order);
                *order = order.rotate_left(7);
            }
            if let Err(error) = result {
                self.broken = error == SessionError::ReplyBroken;
                return false;
            }
            // Pieces count, and so does what they are of.
            let (inflight, open) = (self.session.inflight(), self.open.len());
            assert!((open..=2 * open + 2).contains(&inflight) && open <= CONNECTION_REQUESTS_MAX);
            let bytes: u64 = self.open.iter().map(|request| request.moved).sum();
            assert!(bytes <= CONNECTION_PAYLOAD_BYTES_MAX, "{bytes} bytes in flight");
            if quiet {
                let waits =
                    OPTION_BYTES + NBD_OPTION_BYTES_MAX.max(REQUEST_EXTENDED_BYTES + self.export.block_max as usize);
                assert!(self.session.blocked() || rope.len() < waits, "{} bytes are kept", rope.len());
                if !self.session.blocked() {
                    return true;
                }
                self.answer(out, *order as usize);
            }
            if *order & 3 == 3 && !self.open.is_empty() {
                self.answer(out, *order as usize >> 2);
            }
        }
    }

    /// Whether a write in pieces is arriving.
    fn arrives(&self) -> bool {
        self.session.transmitting() && self.session.head_bytes() == 0
    }

    fn answer(&mut self, out: &mut Outbox, which: usize) {
        let Open { number, read, status, .. } = self.open.swap_remove(which % self.open.len());
        if which & 0x100 != 0 {
            return self.session.reply(number, Err(Errno::Io), out);
        }
        match status {
            Some(length) => {
                let first = 1 + (which as u64 >> 9) % length;
                let rest = Stretch { length: length - first, hole: true };
                let stretches = [Stretch { length: first, hole: false }, rest];
                self.session.status(number, &stretches[..1 + usize::from(rest.length > 0)], out);
            }
            None => self.session.reply(number, Ok(Bytes::from(vec![READ_BYTE; read])), out),
        }
    }

    fn event(&mut self, event: Event, out: &mut Outbox, order: u64) {
        match event {
            Event::Resolve { name, purpose } => {
                assert!(name.len() <= STRING_BYTES_MAX);
                self.out.extend(out.drain().flatten());
                let accepted = order & 0x30 != 0x30;
                let refusal = Refusal { code: REP_ERR_UNKNOWN, text: "there is none".into() };
                self.session.resolved(if accepted { Ok(self.export.clone()) } else { Err(refusal) }, out);
                if self.session.transmitting() {
                    assert!(accepted && purpose != Purpose::Info);
                    self.named = purpose == Purpose::ExportName;
                    self.handshake = Some(count_options(&self.out) + 1);
                }
            }
            Event::List => self.session.listed(&[("orders".into(), String::new())], out),
            Event::Request(request) => self.request(request),
            Event::Disconnect => assert!(self.session.finished()),
            Event::Secure => unreachable!("TLS is off here"),
        }
    }

    fn request(&mut self, request: session::Request) {
        let Export { size, read_only, block_min, block_max, .. } = self.export;
        let (range, moved, changes, fua) = match &request.kind {
            Kind::Read { offset, length } => (Some((*offset, u64::from(*length))), u64::from(*length), false, false),
            Kind::Write { offset, data, fua } => (Some((*offset, data.len() as u64)), data.len() as u64, true, *fua),
            Kind::Flush => (None, 0, !self.export.flush, false),
            Kind::Trim { offset, length, fua } | Kind::Zeroes { offset, length, fua, .. } => {
                assert!(*length <= RANGE_BYTES_MAX, "longer than a record");
                (Some((*offset, *length)), 0, true, *fua)
            }
            Kind::Cache { offset, length } | Kind::Status { offset, length, .. } => {
                (Some((*offset, *length)), 0, false, false)
            }
        };
        assert!(!(changes && read_only) && (!fua || self.export.fua), "{request:?} was not offered");
        assert!(!matches!(request.kind, Kind::Trim { .. }) || self.export.trim);
        assert!(!matches!(request.kind, Kind::Zeroes { .. }) || self.export.zeroes);
        assert!(!matches!(request.kind, Kind::Zeroes { fast: true, .. }) || self.export.fast_zero);
        assert!(!matches!(request.kind, Kind::Cache { .. }) || self.export.cache);
        assert!(!matches!(request.kind, Kind::Status { .. }) || self.export.allocation);
        if let Some((offset, length)) = range {
            assert!(
                length > 0 && offset.checked_add(length).is_some_and(|end| end <= size),
                "{request:?} leaves the export"
            );
            assert!((offset | length).is_multiple_of(u64::from(block_min)) && moved <= u64::from(block_max));
            assert!(moved <= PAYLOAD_PIECE_BYTES_MAX);
        }
        assert!(self.open.iter().all(|open| open.number != request.cookie), "a number is used twice");
        self.reached.one(kind_name(&request.kind));
        let read = if matches!(request.kind, Kind::Read { .. }) { moved as usize } else { 0 };
        let status = if let Kind::Status { length, .. } = request.kind { Some(length) } else { None };
        self.open.push(Open { number: request.cookie, read, moved, status });
    }
}

/// Options answered to the end so far.
fn count_options(out: &[u8]) -> usize {
    options(out).filter(|head| !matches!(head.reply, REP_INFO | REP_SERVER | REP_META_CONTEXT)).count()
}
