//! Both sides of an NBD connection against a peer that sends anything.
//!
//! What was asked is read from the same bytes a second time, by the few lines of [`Asked`], so that an answer nobody
//! asked for is seen.

use std::collections::BTreeMap;

use bytes::Bytes;
use farshore::core::errno::Errno;
use farshore::core::rope::Rope;
use farshore::limits::{
    CONNECTION_PAYLOAD_BYTES_MAX, CONNECTION_REQUESTS_MAX, NBD_OPTION_BYTES_MAX, PAYLOAD_BYTES_MAX,
};
use farshore::nbd::client::{self, ClientSession};
use farshore::nbd::outbox::Outbox;
use farshore::nbd::protocol::*;
use farshore::nbd::session::{self, Event, Export, Kind, Purpose, Refusal, Session};

use super::Input;

const SIZE: u64 = 1 << 20;

fn export(shape: u8) -> Export {
    Export {
        name: "orders".into(),
        description: "a volume".into(),
        size: SIZE,
        read_only: shape & 1 != 0,
        block_min: if shape & 2 != 0 { 512 } else { 1 },
        block_preferred: 4096,
        block_max: if shape & 4 != 0 { 4096 } else { PAYLOAD_BYTES_MAX },
        multi_conn: true,
        trim: shape & 8 != 0,
        zeroes: shape & 16 != 0,
        fua: shape & 32 != 0,
        flush: shape & 64 != 0,
    }
}

/// What a client's bytes ask for.
#[derive(Default)]
struct Asked {
    options: Vec<u32>,
    /// Cookie, command and length.
    requests: Vec<(u64, u16, u32)>,
}

impl Asked {
    /// Reads the bytes of a whole connection; the handshake ends with the option number `handshake`, if it does.
    fn read(bytes: &[u8], handshake: Option<usize>) -> Asked {
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
        while let Some(head) = rest.first_chunk::<REQUEST_BYTES>().map(RequestHead::decode) {
            if head.magic != MAGIC_REQUEST {
                break;
            }
            asked.requests.push((head.cookie, head.command, head.length));
            let payload = if head.command == CMD_WRITE { head.length as usize } else { 0 };
            match rest.get(REQUEST_BYTES + payload..) {
                Some(after) => rest = after,
                None => break,
            }
        }
        asked
    }

    /// Every answer in `out` is to something asked, and to nothing twice.
    fn check(self, out: &[u8], named: bool, no_zeroes: bool) {
        let mut out = &out[GREETING_BYTES..];
        let mut answered = 0;
        while let Some(head) = out.first_chunk::<OPTION_REPLY_BYTES>().map(OptionReplyHead::decode) {
            if head.magic != MAGIC_OPTION_REPLY {
                break;
            }
            out = &out[OPTION_REPLY_BYTES + head.length as usize..];
            assert_eq!(Some(&head.option), self.options.get(answered), "an option is answered that was not asked");
            answered += usize::from(!matches!(head.reply, REP_INFO | REP_SERVER));
        }
        if named {
            let padding = if no_zeroes { 0 } else { EXPORT_NAME_PADDING_BYTES };
            out = &out[EXPORT_NAME_REPLY_BYTES + padding..];
        }
        // Clients may use one cookie for many requests: what is counted is answers by cookie and length.
        let mut answers: BTreeMap<(u64, usize), usize> = BTreeMap::new();
        while !out.is_empty() {
            let head = ReplyHead::decode(out.first_chunk().expect("replies are whole"));
            assert_eq!(head.magic, MAGIC_REPLY);
            let fit = self.requests.iter().find(|request| request.0 == head.cookie && fits(request, out, head.error));
            let (_, command, length) = fit.expect("a reply to nothing that was asked");
            let data = if *command == CMD_READ && head.error == 0 { *length as usize } else { 0 };
            *answers.entry((head.cookie, data)).or_default() += 1;
            out = &out[REPLY_BYTES + data..];
        }
        for (&(cookie, data), &count) in &answers {
            let of_cookie = self.requests.iter().filter(|request| request.0 == cookie);
            let asked = of_cookie.clone().filter(|it| data == 0 || it.1 == CMD_READ && it.2 as usize == data).count();
            assert!(count <= asked, "{count} answers with {data} bytes to {asked} requests with cookie {cookie}");
            let all: usize = answers.range((cookie, 0)..=(cookie, usize::MAX)).map(|(_, count)| count).sum();
            assert!(all <= of_cookie.count(), "more answers than requests with cookie {cookie}");
        }
    }
}

/// Whether a reply at the front of `out` may be the one to this request. Replies without data can be as long together
/// as one with data, so that what is read is compared, too.
fn fits(request: &(u64, u16, u32), out: &[u8], error: u32) -> bool {
    let data = if request.1 == CMD_READ && error == 0 { request.2 as usize } else { 0 };
    if !out.iter().skip(REPLY_BYTES).take(data).all(|&byte| byte == READ_BYTE) {
        return false;
    }
    out.get(REPLY_BYTES + data..).is_some_and(|rest| rest.is_empty() || rest.starts_with(&MAGIC_REPLY.to_be_bytes()))
}

/// Appends what a client could send, well formed or not.
fn client_bytes(input: &mut Input<'_>, stream: &mut Vec<u8>) {
    let action = input.u8();
    match action % 6 {
        0 => {
            let count = usize::from(input.u8() % 64);
            stream.extend_from_slice(input.bytes(count));
        }
        1 => {
            let option = u32::from(input.u8() % 10);
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
        _ => {
            let (flags, command, cookie) = (u16::from(action >> 6), u16::from(input.u8() % 9), u64::from(input.u8()));
            let offset = input.number() << if action & 8 != 0 { 9 } else { 0 };
            let length = if action & 16 != 0 { input.number() as u32 } else { u32::from(input.u8()) << 9 };
            stream.extend_from_slice(&RequestHead::encode(flags, command, cookie, offset, length));
            if command == CMD_WRITE && length <= 1 << 14 {
                stream.resize(stream.len() + length as usize, 0xab);
            }
        }
    }
}

/// The server's session, with an application behind it that answers in any order.
pub fn server(input: &[u8]) {
    let mut input = Input::new(input);
    let (shape, cut) = (input.u8(), 1 + usize::from(input.u8()) * 7);
    let export = export(shape);
    let mut stream = Vec::new();
    if shape & 0x80 == 0 {
        stream.extend_from_slice(&u32::from(cut as u16 & 3).to_be_bytes());
    }
    let order = input.u64();
    while !input.is_empty() && stream.len() < 1 << 16 {
        client_bytes(&mut input, &mut stream);
    }
    let mut run = Server {
        session: Session::new(),
        export,
        open: Vec::new(),
        out: Vec::new(),
        handshake: None,
        named: false,
        resolves: 0,
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
    assert!(!whole || run.session.inflight() == 0);
    run.out.extend(out.drain().flatten());
    let no_zeroes = stream.get(3).is_some_and(|flags| flags & 2 != 0);
    let asked = Asked::read(&stream[..given], run.handshake);
    asked.check(&run.out, run.named, no_zeroes);
}

/// What every read returns.
const READ_BYTE: u8 = 0x5a;

struct Server {
    session: Session,
    export: Export,
    /// Requests not answered: number, bytes of a read, bytes that count against the bound.
    open: Vec<(u64, usize, u64)>,
    out: Vec<u8>,
    /// Options up to the one that ended the handshake.
    handshake: Option<usize>,
    named: bool,
    resolves: usize,
}

impl Server {
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
            if result.is_err() {
                return false;
            }
            assert_eq!(self.session.inflight(), self.open.len());
            assert!(self.open.len() <= CONNECTION_REQUESTS_MAX);
            let bytes: u64 = self.open.iter().map(|request| request.2).sum();
            assert!(bytes <= CONNECTION_PAYLOAD_BYTES_MAX || self.open.len() == 1, "{bytes} bytes in flight");
            if quiet {
                let waits = OPTION_BYTES + NBD_OPTION_BYTES_MAX.max(REQUEST_BYTES + self.export.block_max as usize);
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

    fn answer(&mut self, out: &mut Outbox, which: usize) {
        let (cookie, length, _) = self.open.swap_remove(which % self.open.len());
        let result = if which & 0x100 == 0 { Ok(Bytes::from(vec![READ_BYTE; length])) } else { Err(Errno::Io) };
        self.session.reply(cookie, result, out);
    }

    fn event(&mut self, event: Event, out: &mut Outbox, order: u64) {
        match event {
            Event::Resolve { name, purpose } => {
                assert!(name.len() <= STRING_BYTES_MAX);
                self.resolves += 1;
                self.out.extend(out.drain().flatten());
                let accepted = order & 0x30 != 0x30;
                let refusal = Refusal { code: REP_ERR_UNKNOWN, text: "there is none".into() };
                self.session.resolved(if accepted { Ok(self.export.clone()) } else { Err(refusal) }, out);
                if accepted && purpose != Purpose::Info {
                    self.named = purpose == Purpose::ExportName;
                    let before = count_options(&self.out);
                    self.handshake = Some(before + 1);
                }
            }
            Event::List => self.session.listed(&[("orders".into(), String::new())], out),
            Event::Request(request) => self.request(request),
            Event::Disconnect => assert!(self.session.finished()),
        }
    }

    fn request(&mut self, request: session::Request) {
        let Export { size, read_only, block_min, block_max, .. } = self.export;
        let (range, moved, changes, fua) = match &request.kind {
            Kind::Read { offset, length } => (Some((*offset, u64::from(*length))), u64::from(*length), false, false),
            Kind::Write { offset, data, fua } => (Some((*offset, data.len() as u64)), data.len() as u64, true, *fua),
            Kind::Flush => (None, 0, !self.export.flush, false),
            Kind::Trim { offset, length, fua } => (Some((*offset, u64::from(*length))), 0, true, *fua),
            Kind::Zeroes { offset, length, fua, .. } => (Some((*offset, u64::from(*length))), 0, true, *fua),
        };
        assert!(!(changes && read_only) && (!fua || self.export.fua), "{request:?} was not offered");
        assert!(!matches!(request.kind, Kind::Trim { .. }) || self.export.trim);
        assert!(!matches!(request.kind, Kind::Zeroes { .. }) || self.export.zeroes);
        if let Some((offset, length)) = range {
            assert!(
                length > 0 && offset.checked_add(length).is_some_and(|end| end <= size),
                "{request:?} leaves the export"
            );
            assert!((offset | length).is_multiple_of(u64::from(block_min)) && moved <= u64::from(block_max));
        }
        assert!(self.open.iter().all(|open| open.0 != request.cookie), "a number is used twice");
        let read = if matches!(request.kind, Kind::Read { .. }) { moved } else { 0 };
        self.open.push((request.cookie, read as usize, moved));
    }
}

/// Options answered to the end so far.
fn count_options(out: &[u8]) -> usize {
    let mut out = &out[GREETING_BYTES..];
    let mut count = 0;
    while let Some(head) = out.first_chunk::<OPTION_REPLY_BYTES>().map(OptionReplyHead::decode) {
        count += usize::from(!matches!(head.reply, REP_INFO | REP_SERVER));
        out = &out[OPTION_REPLY_BYTES + head.length as usize..];
    }
    count
}

/// The client's session against a server that sends anything.
pub fn client(input: &[u8]) {
    let mut input = Input::new(input);
    let mut session = ClientSession::new("orders");
    let (mut rope, mut out) = (Rope::new(), Outbox::new());
    let (mut open, mut numbers, mut next) = (Vec::<(u64, u32)>::new(), Vec::<(u64, u32)>::new(), 0u64);
    let (mut ready, mut refused) = (false, false);
    while !input.is_empty() {
        let action = input.u8();
        let mut bytes = Vec::new();
        match action % 8 {
            0 => bytes.extend_from_slice(input.bytes(usize::from(action >> 3))),
            1 => {
                bytes.extend_from_slice(&MAGIC_SERVER.to_be_bytes());
                bytes.extend_from_slice(&MAGIC_OPTION.to_be_bytes());
                bytes.extend_from_slice(&u16::from(action >> 3 & 7).to_be_bytes());
            }
            2 | 3 => {
                let codes = [
                    REP_ACK,
                    REP_INFO,
                    REP_INFO,
                    REP_SERVER,
                    REP_ERR_UNSUP,
                    REP_ERR_BLOCK_SIZE_REQD,
                    REP_ERR_POLICY,
                    99,
                ];
                let count = usize::from(input.u8());
                let mut data = input.bytes(count).to_vec();
                if action & 0x40 != 0 {
                    data = [&[0, 0][..], &SIZE.to_be_bytes(), &[0, 1]].concat();
                }
                bytes.extend_from_slice(&OptionReplyHead::encode(
                    OPT_GO,
                    codes[usize::from(action >> 3 & 7)],
                    data.len() as u32,
                ));
                bytes.extend_from_slice(&data);
            }
            4 => {
                let which = usize::from(input.u8());
                let (number, length) = if numbers.is_empty() { (7, 0) } else { numbers[which % numbers.len()] };
                let error = if action & 0x10 != 0 { u32::from(input.u8()) } else { 0 };
                bytes.extend_from_slice(&ReplyHead::encode(error, number));
                if error == 0 {
                    bytes.resize(bytes.len() + length as usize, 0x77);
                }
            }
            _ if ready && open.len() < 64 => {
                let length = u32::from(input.u16());
                let wanted = match action >> 3 & 3 {
                    0 => {
                        session.read(next, 0, length, &mut out);
                        length
                    }
                    1 => {
                        session.write(next, 0, vec![Bytes::from(vec![1; length as usize])], true, &mut out);
                        0
                    }
                    _ => {
                        session.flush(next, &mut out);
                        0
                    }
                };
                let sent: Vec<u8> = out.drain().flatten().collect();
                let head = RequestHead::decode(sent.first_chunk().expect("a whole request"));
                assert!(numbers.iter().all(|number| number.0 != head.cookie) || head.cookie >> 32 > 0);
                numbers.push((head.cookie, wanted));
                open.push((next, wanted));
                next += 1;
            }
            _ => {}
        }
        let piece = if action & 0x80 != 0 { 3 } else { usize::MAX };
        for piece in bytes.chunks(piece) {
            rope.push(Bytes::copy_from_slice(piece));
            let mut events = Vec::new();
            let result = session.advance(&mut rope, &mut events, &mut out);
            for event in events {
                match event {
                    client::Event::Ready(info) => {
                        assert!(!ready && !refused, "ready once, and not when refused");
                        assert!(info.block_min.is_power_of_two() && info.block_max >= info.block_min);
                        assert!(info.block_max <= PAYLOAD_BYTES_MAX);
                        ready = true;
                    }
                    client::Event::Refused { code, text } => {
                        assert!(!ready && !refused && code & REP_ERROR_BIT != 0 && !text.is_empty());
                        refused = true;
                    }
                    client::Event::Done { cookie, result } => {
                        let at = open.iter().position(|request| request.0 == cookie);
                        let (_, wanted) = open.remove(at.expect("an answer to what was asked, once"));
                        assert!(result.is_err() || result.is_ok_and(|data| data.len() == wanted as usize));
                    }
                }
            }
            assert_eq!(session.inflight(), open.len());
            if result.is_err() {
                let mut left = session.abandon();
                left.sort_unstable();
                assert_eq!(left, open.iter().map(|request| request.0).collect::<Vec<_>>(), "each is given back once");
                return;
            }
            let longest = open.iter().map(|request| request.1 as usize).max().unwrap_or(0);
            assert!(rope.len() < OPTION_REPLY_BYTES + 2 * STRING_BYTES_MAX + REPLY_BYTES + longest + 1);
        }
    }
}
