//! The server's session against scripts of bytes, chunked at random, and against garbage.

use proptest::prelude::*;

use super::*;
use crate::limits::{CONNECTION_PAYLOAD_BYTES_MAX, CONNECTION_REQUESTS_MAX, NBD_OPTION_BYTES_MAX, PAYLOAD_BYTES_MAX};
use crate::nbd::protocol::*;

/// Reads without a write after which no payload is expected any more, and some.
const MANY_READS: usize = 20;

pub fn export() -> Export {
    Export {
        name: "db".into(),
        description: "the database".into(),
        size: 1 << 20,
        read_only: false,
        block_min: 1,
        block_preferred: 4096,
        block_max: 64 << 10,
        multi_conn: true,
        trim: true,
        zeroes: true,
        fast_zero: true,
        cache: true,
        allocation: true,
        fua: true,
        flush: true,
    }
}

/// A session with a shell that answers questions at once and keeps requests.
pub struct Bench {
    pub session: Session,
    pub rx: Rope,
    pub out: Outbox,
    pub sent: Vec<u8>,
    pub events: Vec<Event>,
    pub export: Result<Export, Refusal>,
}

impl Bench {
    pub fn new() -> Bench {
        let mut bench = Bench {
            session: Session::new(),
            rx: Rope::new(),
            out: Outbox::new(),
            sent: Vec::new(),
            events: Vec::new(),
            export: Ok(export()),
        };
        bench.session.greet(&mut bench.out);
        bench
    }

    /// In the transmission phase, with nothing sent or seen yet.
    pub fn going(export: Export) -> Bench {
        let mut bench = Bench::new();
        bench.export = Ok(export);
        let infos = [INFO_BLOCK_SIZE];
        bench.feed(&[client_flags(), option(OPT_GO, &go("db", &infos))].concat()).expect("a good handshake");
        assert!(bench.session.transmitting());
        bench.sent.clear();
        bench.events.clear();
        bench
    }

    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        self.rx.push(Bytes::copy_from_slice(bytes));
        self.advance()
    }

    pub fn advance(&mut self) -> Result<(), SessionError> {
        loop {
            let mut events = Vec::new();
            let result = self.session.advance(&mut self.rx, &mut events, &mut self.out);
            let mut asked = false;
            for event in &events {
                match event {
                    Event::Resolve { .. } => self.session.resolved(self.export.clone(), &mut self.out),
                    Event::List => {
                        let list = [("db".to_owned(), "the database".to_owned()), ("log".to_owned(), String::new())];
                        self.session.listed(&list, &mut self.out);
                    }
                    Event::Request(_) | Event::Secure | Event::Disconnect => continue,
                }
                asked = true;
            }
            self.events.append(&mut events);
            for part in self.out.drain() {
                self.sent.extend_from_slice(&part);
            }
            result?;
            if !asked {
                return Ok(());
            }
        }
    }

    /// Sends the same so many times, and takes answers only once nothing more is parsed: never more than `room` and another
    /// one wait. How often they were taken.
    pub fn flood(&mut self, one: &[u8], count: usize, room: u64) -> usize {
        self.rx.push(Bytes::from(one.repeat(count)));
        let mut taken = 0;
        loop {
            let mut events = Vec::new();
            self.out.set_room(room);
            self.session
                .advance(&mut self.rx, &mut events, &mut self.out)
                .expect("nothing leaves the stream out of step");
            if !events.is_empty() {
                events.into_iter().for_each(|event| self.answer(event));
                continue;
            }
            let bytes: usize = self
                .out
                .drain()
                .map(|part| {
                    self.sent.extend_from_slice(&part);
                    part.len()
                })
                .sum();
            assert!(bytes as u64 <= room + 256, "{bytes} bytes wait");
            if bytes == 0 {
                assert!(self.rx.is_empty() && !self.session.full() && self.session.inflight() == 0);
                return taken;
            }
            taken += 1;
        }
    }

    fn answer(&mut self, event: Event) {
        let Bench { session, out, .. } = self;
        match event {
            Event::Request(Request { cookie, kind: Kind::Status { length, .. } }) => {
                session.status(cookie, &[Stretch { length, hole: false }], out);
            }
            Event::Request(Request { cookie, kind: Kind::Read { length, .. } }) => {
                session.reply(cookie, Ok(Bytes::from(vec![1; length as usize])), out);
            }
            Event::Request(Request { cookie, .. }) => session.reply(cookie, Ok(Bytes::new()), out),
            Event::List => session.listed(&[("db".to_owned(), "the database".to_owned())], out),
            other => panic!("a flood asks for nothing like {other:?}"),
        }
    }

    pub fn reply(&mut self, cookie: u64, result: Result<Bytes, Errno>) {
        self.session.reply(cookie, result, &mut self.out);
        self.out.drain().for_each(|part| self.sent.extend_from_slice(&part));
    }

    pub fn requests(&mut self) -> Vec<Request> {
        let events = self.events.drain(..);
        events.filter_map(|event| if let Event::Request(request) = event { Some(request) } else { None }).collect()
    }

    /// (error, cookie) of the simple replies sent; there are no payloads among them.
    pub fn replies(&mut self) -> Vec<(u32, u64)> {
        let heads = self.sent.chunks_exact(REPLY_BYTES).map(|raw| ReplyHead::decode(raw.try_into().unwrap()));
        let replies = heads.inspect(|head| assert_eq!(head.magic, MAGIC_REPLY)).map(|head| (head.error, head.cookie));
        let replies = replies.collect();
        self.sent.clear();
        replies
    }
}

pub fn client_flags() -> Vec<u8> {
    3u32.to_be_bytes().to_vec()
}

pub fn option(option: u32, data: &[u8]) -> Vec<u8> {
    [&OptionHead::encode(option, data.len() as u32)[..], data].concat()
}

pub fn go(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((infos.len() as u16).to_be_bytes());
    infos.iter().for_each(|info| data.extend(info.to_be_bytes()));
    data
}

pub fn request(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    RequestHead::encode(flags, command, cookie, offset, length).to_vec()
}

pub fn write(cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    [request(0, CMD_WRITE, cookie, offset, data.len() as u32), data.to_vec()].concat()
}

/// The answers to options in a server's bytes: (option, reply, data).
pub fn option_replies(mut raw: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut replies = Vec::new();
    while !raw.is_empty() {
        let head = OptionReplyHead::decode(raw[..OPTION_REPLY_BYTES].try_into().unwrap());
        assert_eq!(head.magic, MAGIC_OPTION_REPLY);
        let end = OPTION_REPLY_BYTES + head.length as usize;
        replies.push((head.option, head.reply, raw[OPTION_REPLY_BYTES..end].to_vec()));
        raw = &raw[end..];
    }
    replies
}

#[test]
fn greeting_is_fixed_newstyle_without_zeroes() {
    let mut bench = Bench::new();
    bench.advance().unwrap();
    assert_eq!(bench.sent, b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn go_describes_what_was_asked_for_and_begins_transmission() {
    let mut bench = Bench::new();
    let infos = [INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE, 99];
    bench.feed(&[client_flags(), option(OPT_INFO, &go("db", &infos))].concat()).unwrap();
    assert!(!bench.session.transmitting(), "INFO does not end the handshake");
    let replies = option_replies(&bench.sent[GREETING_BYTES..]);
    let kinds: Vec<_> = replies.iter().map(|(option, reply, data)| (*option, *reply, data.get(1).copied())).collect();
    let info = |kind| (OPT_INFO, REP_INFO, Some(kind));
    assert_eq!(kinds, [info(0), info(1), info(2), info(3), (OPT_INFO, REP_ACK, None)]);
    assert_eq!(replies[0].2, [0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0b1101, 0b0110_1101]);
    assert_eq!(replies[1].2, b"\0\x01db");
    assert_eq!(replies[3].2, [0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 0, 1, 0, 0]);

    bench.sent.clear();
    bench.feed(&option(OPT_GO, &go("db", &[INFO_BLOCK_SIZE]))).unwrap();
    assert!(bench.session.transmitting());
    assert_eq!(option_replies(&bench.sent).len(), 3);
    let purposes: Vec<_> = bench.events.iter().collect();
    let resolve = |purpose| Event::Resolve { name: "db".into(), purpose };
    assert_eq!(purposes, [&resolve(Purpose::Info), &resolve(Purpose::Go)]);
}

#[test]
fn export_name_pads_only_for_clients_that_want_it() {
    for (flags, padding) in [(1u32, EXPORT_NAME_PADDING_BYTES), (3, 0), (0, EXPORT_NAME_PADDING_BYTES)] {
        let mut bench = Bench::new();
        bench.export = Ok(Export { block_max: PAYLOAD_BYTES_MAX, ..export() });
        bench.feed(&[flags.to_be_bytes().to_vec(), option(OPT_EXPORT_NAME, b"db")].concat()).unwrap();
        assert_eq!(bench.sent.len(), GREETING_BYTES + EXPORT_NAME_REPLY_BYTES + padding);
        assert_eq!(bench.sent[GREETING_BYTES..][..10], [0, 0, 0, 0, 0, 0x10, 0, 0, 0b1101, 0b0110_1101]);
        assert!(bench.session.transmitting());
    }
}

#[test]
fn a_refused_export_is_told_in_words_or_by_closing() {
    let refusal = Refusal { code: REP_ERR_POLICY, text: "fenced: epoch 3 is in force".into() };
    let mut bench = Bench::new();
    bench.export = Err(refusal.clone());
    bench.feed(&[client_flags(), option(OPT_GO, &go("x", &[]))].concat()).unwrap();
    let replies = option_replies(&bench.sent[GREETING_BYTES..]);
    assert_eq!(replies, [(OPT_GO, REP_ERR_POLICY, refusal.text.into_bytes())]);
    assert!(!bench.session.finished(), "the client may try another");

    bench.sent.clear();
    bench.feed(&option(OPT_EXPORT_NAME, b"x")).unwrap();
    assert!(bench.sent.is_empty());
    assert!(bench.session.finished());
}

#[test]
fn list_names_every_export() {
    let mut bench = Bench::new();
    bench.feed(&[client_flags(), option(OPT_LIST, b""), option(OPT_LIST, b"?")].concat()).unwrap();
    let replies = option_replies(&bench.sent[GREETING_BYTES..]);
    assert_eq!(replies[0], (OPT_LIST, REP_SERVER, b"\0\0\0\x02dbthe database".to_vec()));
    assert_eq!(replies[1], (OPT_LIST, REP_SERVER, b"\0\0\0\x03log".to_vec()));
    assert_eq!(replies[2], (OPT_LIST, REP_ACK, vec![]));
    assert_eq!((replies[3].1, replies.len()), (REP_ERR_INVALID, 4));
}

#[test]
fn options_out_of_bounds_are_refused_and_the_stream_stays_in_step() {
    let mut broken = go("db", &[]);
    broken[3] = 200;
    let mut miscounted = go("db", &[INFO_NAME]);
    miscounted[7] = 9;
    let cases: [(Vec<u8>, u32); 14] = [
        (option(OPT_STARTTLS, b""), REP_ERR_POLICY),
        (option(OPT_STARTTLS, b"?"), REP_ERR_INVALID),
        (option(OPT_STRUCTURED_REPLY, b"?"), REP_ERR_INVALID),
        (option(OPT_EXTENDED_HEADERS, b"?"), REP_ERR_INVALID),
        (option(OPT_LIST_META_CONTEXT, b"\0\0\0\0\0\0\0\0"), REP_ERR_INVALID),
        (option(OPT_SET_META_CONTEXT, &[1; 300_000]), REP_ERR_INVALID),
        (option(4, &[1; 300_000]), REP_ERR_UNSUP),
        (option(OPT_GO, b"\0\0\0\x03d\0b\0\0"), REP_ERR_INVALID),
        (option(0xdead_beef, b"data"), REP_ERR_UNSUP),
        (option(OPT_GO, &broken), REP_ERR_INVALID),
        (option(OPT_GO, &miscounted), REP_ERR_INVALID),
        (option(OPT_INFO, b"\0\0\0"), REP_ERR_INVALID),
        (option(OPT_GO, &[b"\0\0\0\x02\xff\xfe" as &[u8], b"\0\0"].concat()), REP_ERR_INVALID),
        (option(OPT_GO, &vec![0; NBD_OPTION_BYTES_MAX + 1]), REP_ERR_TOO_BIG),
    ];
    for (bytes, code) in cases {
        let mut bench = Bench::new();
        bench.feed(&client_flags()).unwrap();
        bench.feed(&bytes[..bytes.len() / 2]).unwrap();
        bench.feed(&bytes[bytes.len() / 2..]).unwrap();
        bench.feed(&option(OPT_ABORT, b"bye")).unwrap();
        let codes: Vec<u32> = option_replies(&bench.sent[GREETING_BYTES..]).iter().map(|reply| reply.1).collect();
        assert_eq!(codes, [code, REP_ACK], "{:?}", &bytes[..16]);
        assert_eq!(bench.events, [Event::Disconnect]);
        assert!(bench.session.finished());
    }
}

#[test]
fn an_unknown_option_is_skipped_without_being_kept() {
    let mut bench = Bench::new();
    bench.feed(&client_flags()).unwrap();
    bench.feed(&OptionHead::encode(77, u32::MAX)).unwrap();
    for _ in 0..10 {
        bench.feed(&[0; 100_000]).unwrap();
        assert!(bench.rx.is_empty());
    }
}

/// What is refused, or answered at once, is parsed as far as its answers are taken: each of them comes, and in order.
#[test]
fn floods_without_data_are_parsed_as_far_as_answers_are_taken() {
    const COUNT: usize = 20_000;
    let mut bench = Bench::new();
    bench.feed(&client_flags()).unwrap();
    for (kind, replies) in [(77, 1), (OPT_STARTTLS, 1), (OPT_LIST, 2)] {
        bench.sent.clear();
        assert!(bench.flood(&option(kind, b""), COUNT, 4096) >= COUNT * replies * OPTION_REPLY_BYTES / 4352);
        let said = option_replies(&bench.sent);
        assert_eq!(said.len(), COUNT * replies);
        assert!(said.iter().all(|(option, ..)| *option == kind));
    }
    for (command, length, data) in
        [(77, 512, 0), (CMD_READ, 0, 0), (CMD_READ, 1, 1), (CMD_FLUSH, 0, 0), (CMD_TRIM, 8, 0)]
    {
        let mut bench = Bench::going(export());
        let taken = bench.flood(&request(0, command, 5, 0, length), COUNT, 4096);
        assert_eq!(bench.sent.len(), COUNT * (REPLY_BYTES + data), "command {command}");
        assert!(taken >= bench.sent.len() / 4352, "{taken} times");
    }
}

#[test]
fn garbage_is_named() {
    let mut bench = Bench::new();
    assert_eq!(bench.feed(b"GET "), Err(SessionError::ClientFlags(0x4745_5420)));

    let mut bench = Bench::new();
    let error = bench.feed(&[&client_flags()[..], &[7; 16]].concat()).unwrap_err();
    assert_eq!(error, SessionError::OptionMagic(0x0707_0707_0707_0707));

    let mut bench = Bench::new();
    let long = [client_flags(), OptionHead::encode(OPT_EXPORT_NAME, 5000).to_vec()].concat();
    assert_eq!(bench.feed(&long), Err(SessionError::NameLength(5000)));

    let mut bench = Bench::going(export());
    assert_eq!(bench.feed(&[9; 28]), Err(SessionError::RequestMagic(0x0909_0909)));
}

#[test]
fn requests_come_out_as_they_were_sent() {
    let mut bench = Bench::going(export());
    let script = [
        write(1, 512, b"hello"),
        request(CMD_FLAG_FUA, CMD_READ, 2, 0, 4096),
        request(0, CMD_FLUSH, 3, 0, 0),
        request(CMD_FLAG_FUA, CMD_TRIM, 4, 4096, 8192),
        request(CMD_FLAG_FUA | CMD_FLAG_NO_HOLE, CMD_WRITE_ZEROES, 5, 0, 1 << 20),
        [request(CMD_FLAG_FUA, CMD_WRITE, 6, (1 << 20) - 2, 2), b"xy".to_vec()].concat(),
    ];
    bench.feed(&script.concat()).unwrap();
    let requests = bench.requests();
    let kinds: Vec<Kind> = requests.iter().map(|request| request.kind.clone()).collect();
    let expected = [
        Kind::Write { offset: 512, data: Bytes::from_static(b"hello"), fua: false },
        Kind::Read { offset: 0, length: 4096 },
        Kind::Flush,
        Kind::Trim { offset: 4096, length: 8192, fua: true },
        Kind::Zeroes { offset: 0, length: 1 << 20, fua: true, no_hole: true, fast: false },
        Kind::Write { offset: (1 << 20) - 2, data: Bytes::from_static(b"xy"), fua: true },
    ];
    assert_eq!(kinds, expected);
    assert_eq!(bench.session.inflight(), 6);

    // Answers in another order, by the client's own numbers; the read's bytes follow its head.
    for (index, request) in requests.iter().enumerate().rev() {
        let result = match index {
            1 => Ok(Bytes::from(vec![3; 4096])),
            4 => Err(Errno::NoSpc),
            _ => Ok(Bytes::new()),
        };
        bench.reply(request.cookie, result);
    }
    let payload_at = 5 * REPLY_BYTES;
    assert_eq!(bench.sent[payload_at..][..4096], [3; 4096]);
    bench.sent.drain(payload_at..payload_at + 4096);
    assert_eq!(bench.replies(), [(0, 6), (28, 5), (0, 4), (0, 3), (0, 2), (0, 1)]);
    assert_eq!(bench.session.inflight(), 0);
}

#[test]
fn refused_requests_are_answered_here_with_the_error_of_the_specification() {
    const END: u64 = 1 << 20;
    let payload = |length: usize| vec![0xee; length];
    let cases: Vec<(Vec<u8>, Errno)> = vec![
        (request(0, CMD_READ, 1, END - 511, 512), Errno::Inval),
        (request(0, CMD_READ, 1, u64::MAX - 5, 512), Errno::Inval),
        (request(0, CMD_READ, 1, 0, (64 << 10) + 1), Errno::Inval),
        (request(0, CMD_TRIM, 1, END, 1), Errno::Inval),
        (request(0, CMD_WRITE_ZEROES, 1, 1, END as u32), Errno::NoSpc),
        (write(1, END - 1, &payload(2)), Errno::NoSpc),
        (write(1, u64::MAX, &payload(4096)), Errno::NoSpc),
        (write(1, 0, &payload((64 << 10) + 1)), Errno::Inval),
        ([request(CMD_FLAG_NO_HOLE, CMD_WRITE, 1, 0, 9), payload(9)].concat(), Errno::Inval),
        ([request(1 << 15, CMD_WRITE, 1, 0, 9), payload(9)].concat(), Errno::Inval),
        (request(CMD_FLAG_DF, CMD_WRITE_ZEROES, 1, 0, 512), Errno::Inval),
        (request(CMD_FLAG_DF, CMD_READ, 1, 0, 512), Errno::Inval),
        (request(CMD_FLAG_REQ_ONE, CMD_READ, 1, 0, 512), Errno::Inval),
        (request(CMD_FLAG_FAST_ZERO, CMD_TRIM, 1, 0, 512), Errno::Inval),
        (request(CMD_FLAG_PAYLOAD_LEN, CMD_READ, 1, 0, 512), Errno::Inval),
        (request(CMD_FLAG_PAYLOAD_LEN, CMD_CACHE, 1, 0, 512), Errno::Inval),
        (request(0, CMD_CACHE, 1, END, 512), Errno::Inval),
        (request(0, CMD_FLUSH, 1, 0, 1), Errno::Inval),
        (request(0, 7, 1, 0, 512), Errno::Inval),
        (request(0, 999, 1, 0, 512), Errno::Inval),
    ];
    for (bytes, errno) in cases {
        let mut bench = Bench::going(export());
        bench.feed(&bytes).unwrap();
        bench.feed(&request(0, CMD_READ, 2, 0, 512)).unwrap();
        assert_eq!(bench.replies(), [(errno as u32, 1)], "{:?}", RequestHead::decode(bytes[..28].try_into().unwrap()));
        assert_eq!(bench.requests().len(), 1, "the next request is understood");
    }
}

#[test]
fn what_an_export_does_not_offer_is_refused() {
    let bare =
        Export { trim: false, zeroes: false, fua: false, flush: false, cache: false, block_min: 512, ..export() };
    let mut bench = Bench::going(bare);
    let script = [
        request(0, CMD_TRIM, 1, 0, 512),
        request(0, CMD_WRITE_ZEROES, 2, 0, 512),
        request(0, CMD_FLUSH, 3, 0, 0),
        request(CMD_FLAG_FUA, CMD_READ, 4, 0, 512),
        request(0, CMD_READ, 5, 1, 512),
        write(6, 512, &[0; 511]),
        request(0, CMD_CACHE, 7, 0, 512),
    ];
    bench.feed(&script.concat()).unwrap();
    assert_eq!(bench.replies(), [(22, 1), (22, 2), (22, 3), (22, 4), (22, 5), (22, 6), (22, 7)]);
    let mut bench = Bench::going(Export { fast_zero: false, ..export() });
    bench.feed(&request(CMD_FLAG_FAST_ZERO, CMD_WRITE_ZEROES, 1, 0, 512)).unwrap();
    assert_eq!(bench.replies(), [(22, 1)]);

    let mut bench = Bench::going(Export { read_only: true, ..export() });
    let script = [write(1, 0, &[0; 512]), request(0, CMD_TRIM, 2, 0, 512), request(0, CMD_WRITE_ZEROES, 3, 0, 512)];
    bench.feed(&script.concat()).unwrap();
    assert_eq!(bench.replies(), [(1, 1), (1, 2), (1, 3)]);
    assert_eq!(bench.events, []);
}

#[test]
fn empty_requests_succeed_without_being_done() {
    let mut bench = Bench::going(export());
    let script = [write(1, 7, b""), request(0, CMD_READ, 2, 1 << 20, 0), request(0, CMD_TRIM, 3, 0, 0)];
    bench.feed(&script.concat()).unwrap();
    assert_eq!(bench.replies(), [(0, 1), (0, 2), (0, 3)]);
    assert_eq!(bench.events, []);
}

#[test]
fn a_refused_write_of_four_gigabytes_is_skipped_without_being_kept() {
    let mut bench = Bench::going(export());
    bench.feed(&request(0, CMD_WRITE, 1, 0, u32::MAX)).unwrap();
    for _ in 0..100 {
        bench.feed(&[0x25; 10_000]).unwrap();
        assert!(bench.rx.is_empty());
    }
    assert!(bench.replies().is_empty(), "the answer follows the payload");
}

#[test]
fn disconnect_waits_for_what_is_in_flight_and_hears_nothing_more() {
    let mut bench = Bench::going(export());
    let script = [request(0, CMD_READ, 1, 0, 8), request(0, CMD_DISC, 0, 0, 0), request(0, CMD_READ, 2, 0, 8)];
    bench.feed(&script.concat()).unwrap();
    assert_eq!(bench.events.last(), Some(&Event::Disconnect));
    let requests = bench.requests();
    assert_eq!(requests.len(), 1);
    assert!(bench.session.finished());
    bench.feed(&[0xff; 100]).unwrap();
    bench.reply(requests[0].cookie, Err(Errno::Io));
    assert_eq!(bench.replies(), [(5, 1)]);
}

#[test]
fn requests_in_flight_are_bounded() {
    let mut bench = Bench::going(export());
    let all: Vec<u8> =
        (0..CONNECTION_REQUESTS_MAX as u64 + 10).flat_map(|cookie| request(0, CMD_FLUSH, cookie, 0, 0)).collect();
    bench.feed(&all).unwrap();
    assert!(bench.session.blocked());
    let requests = bench.requests();
    assert_eq!(requests.len(), CONNECTION_REQUESTS_MAX);
    for request in &requests[..4] {
        bench.reply(request.cookie, Ok(Bytes::new()));
    }
    bench.advance().unwrap();
    assert_eq!(bench.requests().len(), 4);
    assert!(bench.session.blocked());
}

#[test]
fn payload_bytes_in_flight_are_bounded() {
    let mut bench = Bench::going(Export { size: 1 << 40, block_max: 32 << 20, ..export() });
    let one = 2u64 << 20;
    let script: Vec<u8> = (0..14).flat_map(|cookie| request(0, CMD_READ, cookie, cookie * one, one as u32)).collect();
    bench.feed(&script).unwrap();
    let requests = bench.requests();
    assert_eq!(requests.len() as u64, CONNECTION_PAYLOAD_BYTES_MAX / one);
    assert!(bench.session.blocked());
    bench.reply(requests[0].cookie, Err(Errno::Io));
    bench.advance().unwrap();
    assert_eq!(bench.requests().len(), 1);
}

#[test]
fn a_write_in_one_piece_is_not_copied() {
    let mut bench = Bench::going(export());
    let bytes = Bytes::from(write(1, 0, &[5; 4096]));
    bench.rx.push(bytes.clone());
    bench.advance().unwrap();
    let Kind::Write { data, .. } = &bench.requests()[0].kind else { panic!("a write") };
    assert_eq!(data.as_ptr(), bytes[REQUEST_BYTES..].as_ptr());
}

#[test]
fn the_hint_follows_the_writes() {
    let mut bench = Bench::going(export());
    assert_eq!(bench.session.body_hint(), 0);
    bench.feed(&request(0, CMD_WRITE, 1, 0, 4096)).unwrap();
    assert_eq!(bench.session.body_hint(), 4096, "known before the payload is there");
    bench.feed(&[0; 4096]).unwrap();
    for _ in 0..MANY_READS {
        bench.feed(&request(0, CMD_READ, 2, 0, 512)).unwrap();
    }
    assert_eq!(bench.session.body_hint(), 0);
}

fn any_request() -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![4 => Just(0u16), 1 => Just(1u16), 1 => any::<u16>()];
    let command = prop_oneof![6 => 0u16..8, 1 => any::<u16>()];
    let offset = prop_oneof![4 => 0u64..(1 << 20) + 5000, 1 => any::<u64>()];
    let length = prop_oneof![4 => 0u32..9000, 1 => 60_000u32..70_000];
    (flags, command, any::<u64>(), offset, length).prop_map(|(flags, command, cookie, offset, length)| {
        let command = if command == CMD_DISC { CMD_WRITE } else { command };
        let mut bytes = request(flags, command, cookie, offset, length);
        if command == CMD_WRITE {
            bytes.extend((0..length).map(|at| at as u8));
        }
        bytes
    })
}

fn any_option() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (any::<u32>().prop_filter("not a way out", |kind| !matches!(kind, 1 | 2 | 7 | 8 | 11)), 0usize..3000)
            .prop_map(|(kind, length)| option(kind, &vec![1; length])),
        Just(option(OPT_LIST, b"")),
        "[a-z/]{0,40}".prop_map(|name| option(OPT_INFO, &go(&name, &[INFO_NAME, INFO_BLOCK_SIZE]))),
    ]
}

proptest! {
    /// However the network cuts the stream, the same events and the same replies come out.
    #[test]
    fn chunks_do_not_matter(
        options in prop::collection::vec(any_option(), 0..4),
        requests in prop::collection::vec(any_request(), 0..12),
        cuts in prop::collection::vec(1usize..20_000, 1..40),
    ) {
        let mut script = client_flags();
        script.extend(options.concat());
        script.extend(option(OPT_GO, &go("db", &[INFO_BLOCK_SIZE])));
        script.extend(requests.concat());
        script.extend(request(0, CMD_DISC, 0, 0, 0));
        let mut whole = Bench::new();
        whole.feed(&script).unwrap();
        let mut chunked = Bench::new();
        let mut rest = &script[..];
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            chunked.feed(now).unwrap();
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(whole.events.last(), Some(&Event::Disconnect));
        prop_assert_eq!(&whole.events, &chunked.events);
        prop_assert_eq!(&whole.sent, &chunked.sent);
        prop_assert!(chunked.rx.is_empty());
    }

    /// Bytes of any kind end in an error or in silence, never in a panic, and every range is inside.
    #[test]
    fn garbage_never_gets_through(
        head in prop::bool::ANY,
        flips in prop::collection::vec((0usize..4000, any::<u8>()), 0..20),
        requests in prop::collection::vec(any_request(), 0..6),
    ) {
        let mut bench = if head { Bench::new() } else { Bench::going(export()) };
        let mut script = if head { [client_flags(), option(OPT_GO, &go("db", &[INFO_BLOCK_SIZE]))].concat() } else { vec![] };
        script.extend(requests.concat());
        for (at, byte) in flips {
            if let Some(slot) = script.get_mut(at) {
                *slot = byte;
            }
        }
        let _ = bench.feed(&script);
        for request in bench.requests() {
            let (offset, length) = match request.kind {
                Kind::Read { offset, length } => (offset, u64::from(length)),
                Kind::Trim { offset, length, .. }
                | Kind::Zeroes { offset, length, .. }
                | Kind::Cache { offset, length }
                | Kind::Status { offset, length, .. } => (offset, length),
                Kind::Write { offset, data, .. } => (offset, data.len() as u64),
                Kind::Flush => (0, 1),
            };
            prop_assert!(length > 0 && offset + length <= 1 << 20);
        }
    }
}
