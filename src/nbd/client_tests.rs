//! The client's session against our own server's session, in memory, and against servers that misbehave.

use proptest::prelude::*;

use super::*;
use crate::core::modes::TlsMode;
use crate::nbd::session::{self, Kind, Refusal, Session};

const SIZE: usize = 256 << 10;

/// A server with a vector for a disk.
struct Server {
    session: Session,
    rx: Rope,
    out: Outbox,
    disk: Vec<u8>,
    block_min: u32,
    refusal: Option<Refusal>,
    granted: bool,
    /// Answers of a turn go out in reverse.
    reverse: bool,
}

impl Server {
    fn new() -> Server {
        let mut server = Server {
            session: Session::new(),
            rx: Rope::new(),
            out: Outbox::new(),
            disk: vec![0; SIZE],
            block_min: 1,
            refusal: None,
            granted: false,
            reverse: true,
        };
        server.session.greet(&mut server.out);
        server
    }

    fn turn(&mut self) {
        loop {
            let mut events = Vec::new();
            self.session.advance(&mut self.rx, &mut events, &mut self.out).expect("our client keeps the protocol");
            if events.is_empty() {
                return;
            }
            let mut requests = Vec::new();
            for event in events {
                match event {
                    session::Event::Resolve { name, .. } => {
                        let result = self.refusal.clone().map_or_else(|| Ok(self.export(&name)), Err);
                        self.session.resolved(result, &mut self.out);
                    }
                    session::Event::List => unreachable!("the client never lists"),
                    // Both sides of this conversation stay in the clear; what is tried is who speaks when.
                    session::Event::Secure => self.granted = true,
                    session::Event::Request(request) => requests.push(request),
                    session::Event::Disconnect => {}
                }
            }
            let mut results = Vec::new();
            for request in requests {
                results.push((request.cookie, self.carry_out(request.kind)));
            }
            if self.reverse {
                results.reverse();
            }
            for (cookie, result) in results {
                self.session.reply(cookie, result, &mut self.out);
            }
        }
    }

    fn carry_out(&mut self, kind: Kind) -> Result<Bytes, Errno> {
        match kind {
            Kind::Read { offset, length } => {
                Ok(Bytes::copy_from_slice(&self.disk[offset as usize..][..length as usize]))
            }
            Kind::Write { offset, data, .. } => {
                self.disk[offset as usize..][..data.len()].copy_from_slice(&data);
                Ok(Bytes::new())
            }
            Kind::Flush => Ok(Bytes::new()),
            other => unreachable!("not offered: {other:?}"),
        }
    }

    fn export(&self, name: &str) -> session::Export {
        session::Export {
            name: name.to_owned(),
            description: String::new(),
            size: SIZE as u64,
            read_only: false,
            block_min: self.block_min,
            block_preferred: 4096,
            block_max: 32 << 20,
            multi_conn: true,
            trim: false,
            zeroes: false,
            fast_zero: false,
            cache: false,
            allocation: false,
            fua: true,
            flush: true,
        }
    }
}

struct Client {
    session: ClientSession,
    rx: Rope,
    out: Outbox,
    events: Vec<Event>,
}

impl Client {
    fn new(export: &str) -> Client {
        Client { session: ClientSession::new(export), rx: Rope::new(), out: Outbox::new(), events: Vec::new() }
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.rx.push(Bytes::copy_from_slice(bytes));
        self.session.advance(&mut self.rx, &mut self.events, &mut self.out)
    }

    fn sent(&mut self) -> Vec<u8> {
        self.out.drain().flat_map(|part| part.to_vec()).collect()
    }
}

/// Carries bytes between the two, in pieces of `chunk` bytes, until both are silent.
fn converse(client: &mut Client, server: &mut Server, chunk: usize) {
    loop {
        let down: Vec<u8> = server.out.drain().flat_map(|part| part.to_vec()).collect();
        for piece in down.chunks(chunk) {
            client.feed(piece).expect("our server keeps the protocol");
        }
        let up = client.sent();
        if up.is_empty() && down.is_empty() {
            return;
        }
        for piece in up.chunks(chunk) {
            server.rx.push(Bytes::copy_from_slice(piece));
            server.turn();
        }
    }
}

fn ready(server: &mut Server) -> Client {
    let mut client = Client::new("orders");
    converse(&mut client, server, 7);
    let Some(Event::Ready(info)) = client.events.pop() else { panic!("ready") };
    assert_eq!((info.size, info.block_min), (SIZE as u64, 1));
    assert!(info.flags & SEND_FUA != 0);
    client
}

#[test]
fn reads_what_it_wrote_with_answers_in_any_order() {
    let mut server = Server::new();
    let mut client = ready(&mut server);
    let parts = vec![Bytes::from_static(b"abc"), Bytes::from(vec![9; 5000]), Bytes::from_static(b"z")];
    client.session.write(1, 100, parts, true, &mut client.out);
    client.session.flush(2, &mut client.out);
    client.session.read(3, 98, 5008, &mut client.out);
    client.session.read(4, SIZE as u64 - 1, 2, &mut client.out);
    converse(&mut client, &mut server, 1000);
    assert_eq!(client.session.inflight(), 0);
    client.events.sort_by_key(|event| if let Event::Done { cookie, .. } = event { *cookie } else { 0 });
    let expected = [&[0, 0][..], b"abc", &[9; 5000], b"z", &[0, 0]].concat();
    assert_eq!(
        client.events,
        [
            Event::Done { cookie: 1, result: Ok(Bytes::new()) },
            Event::Done { cookie: 2, result: Ok(Bytes::new()) },
            Event::Done { cookie: 3, result: Ok(Bytes::from(expected)) },
            Event::Done { cookie: 4, result: Err(Errno::Inval) },
        ]
    );
}

#[test]
fn a_client_that_wants_tls_says_nothing_else_before_it_and_goes_on_after_it() {
    for mode in [TlsMode::Optional, TlsMode::Required] {
        let mut server = Server::new();
        server.session = Session::with_tls(mode);
        let mut client = Client { session: ClientSession::with_tls("orders"), ..Client::new("") };
        converse(&mut client, &mut server, 5);
        assert_eq!(client.events, [Event::Secure]);
        assert!(server.granted && server.rx.is_empty());
        // What comes in the clear after the grant is not looked at here: to TLS it is no record.
        client.feed(b"forged").unwrap();
        assert_eq!((client.events.len(), client.sent()), (1, vec![]));
        client.rx.clear();
        server.session.secured();
        client.session.secured(&mut client.out);
        converse(&mut client, &mut server, 5);
        assert!(matches!(client.events[..], [Event::Secure, Event::Ready(_)]));
    }
}

#[test]
fn what_comes_in_the_clear_behind_the_grant_of_tls_ends_the_connection() {
    let mut client = Client { session: ClientSession::with_tls("orders"), ..Client::new("") };
    client.feed(b"NBDMAGICIHAVEOPT\x00\x03").unwrap();
    let mut grant = OptionReplyHead::encode(OPT_STARTTLS, REP_ACK, 0).to_vec();
    grant.extend_from_slice(b"forged");
    assert_eq!(client.feed(&grant), Err(ClientError::Injected(6)));
    assert_eq!(client.events, [], "TLS is not begun, and what was said is not believed");
}

#[test]
fn a_server_without_tls_is_told_in_words_also_where_it_has_none_of_its_own() {
    for (code, why) in [(REP_ERR_UNSUP, "(it does not know of it)"), (REP_ERR_POLICY, "(refused by the policy")] {
        let mut client = Client { session: ClientSession::with_tls("orders"), ..Client::new("") };
        client.feed(b"NBDMAGICIHAVEOPT\x00\x03").unwrap();
        client.feed(&OptionReplyHead::encode(OPT_STARTTLS, code, 0)).unwrap();
        let [Event::Refused { text, .. }] = &client.events[..] else { panic!("{:?}", client.events) };
        assert!(text.contains(why), "{text}");
    }
}

#[test]
fn a_client_that_wants_tls_does_not_go_without_it() {
    let mut server = Server::new();
    let mut client = Client { session: ClientSession::with_tls("orders"), ..Client::new("") };
    converse(&mut client, &mut server, 1000);
    let [Event::Refused { code: REP_ERR_POLICY, text }] = &client.events[..] else { panic!("{:?}", client.events) };
    assert!(text.contains("offers no TLS") && text.contains("switched off"), "{text}");
    let mut old = Client { session: ClientSession::with_tls("orders"), ..Client::new("") };
    let greeting = [MAGIC_SERVER.to_be_bytes(), MAGIC_OPTION.to_be_bytes()].concat();
    assert_eq!(old.feed(&[&greeting[..], &[0, 0]].concat()), Err(ClientError::TlsUnknown));
    let mut server = Server::new();
    server.session = Session::with_tls(TlsMode::Required);
    let mut plain = Client::new("orders");
    converse(&mut plain, &mut server, 1000);
    assert!(matches!(&plain.events[..], [Event::Refused { code: REP_ERR_TLS_REQD, .. }]));
}

#[test]
fn a_refusal_arrives_with_its_words() {
    let mut server = Server::new();
    server.refusal = Some(Refusal { code: REP_ERR_POLICY, text: "fenced: epoch 3 is in force".into() });
    let mut client = Client::new("orders/2/0000000000000001");
    converse(&mut client, &mut server, 3);
    let text = "fenced: epoch 3 is in force".to_owned();
    assert_eq!(client.events, [Event::Refused { code: REP_ERR_POLICY, text }]);
    assert!(server.session.finished(), "the client took its leave");
}

#[test]
fn an_old_server_is_asked_the_old_way() {
    // Fixed newstyle without GO.
    let mut client = Client::new("db");
    client.feed(b"NBDMAGICIHAVEOPT\x00\x01").unwrap();
    client.sent();
    client.feed(&OptionReplyHead::encode(OPT_GO, REP_ERR_UNSUP, 0)).unwrap();
    assert_eq!(client.sent(), [&OptionHead::encode(OPT_EXPORT_NAME, 2)[..], b"db"].concat());
    client.feed(&[&4096u64.to_be_bytes()[..], &5u16.to_be_bytes(), &[0; 100]].concat()).unwrap();
    assert_eq!(client.events, [], "without NO_ZEROES there is padding to wait for");
    client.feed(&[0; 24]).unwrap();
    assert!(matches!(client.events[..], [Event::Ready(ExportInfo { size: 4096, flags: 5, .. })]));

    // Newstyle that is not fixed.
    let mut client = Client::new("db");
    client.feed(b"NBDMAGICIHAVEOPT\x00\x00").unwrap();
    assert_eq!(client.sent(), [&[0; 4][..], &OptionHead::encode(OPT_EXPORT_NAME, 2), b"db"].concat());
    assert!(client.session.stage().contains("named"));
}

/// An answer to GO with these block sizes, for an export of 64 KiB.
fn sized(min: u32, max: u32) -> Vec<u8> {
    let sizes = [&INFO_BLOCK_SIZE.to_be_bytes()[..], &min.to_be_bytes(), &[0, 0, 16, 0], &max.to_be_bytes()].concat();
    [
        &OptionReplyHead::encode(OPT_GO, REP_INFO, 12)[..],
        &[0, 0],
        &[0, 0, 0, 0, 0, 1, 0, 0, 0, 1],
        &OptionReplyHead::encode(OPT_GO, REP_INFO, 14),
        &sizes,
        &OptionReplyHead::encode(OPT_GO, REP_ACK, 0),
    ]
    .concat()
}

/// A client that has been greeted, and what it asked for.
fn greeted() -> (Client, Vec<u8>) {
    let mut client = Client::new("");
    client.feed(b"NBDMAGICIHAVEOPT\x00\x03").unwrap();
    let sent = client.sent();
    (client, sent)
}

#[test]
fn block_sizes_are_asked_for_and_the_largest_payload_is_kept_to() {
    let (mut client, sent) = greeted();
    assert_eq!(sent[4..], [&OptionHead::encode(OPT_GO, 8)[..], &[0, 0, 0, 0, 0, 1, 0, 3]].concat());
    client.feed(&sized(1, 1 << 20)).unwrap();
    let info = ExportInfo { size: 65536, flags: 1, block_min: 1, block_max: 1 << 20 };
    assert_eq!((client.events.pop(), client.sent()), (Some(Event::Ready(info)), vec![]), "nothing is to be tried");

    let (mut client, _) = greeted();
    assert!(matches!(client.feed(&sized(3, 1 << 20)), Err(ClientError::Info(_))));
    let (mut client, _) = greeted();
    client.feed(&OptionReplyHead::encode(OPT_GO, REP_ERR_BLOCK_SIZE_REQD, 0)).unwrap();
    assert!(matches!(client.events[..], [Event::Refused { code: REP_ERR_BLOCK_SIZE_REQD, .. }]));
}

#[test]
fn a_smallest_block_binds_where_less_is_refused() {
    const EPERM: u32 = 1;
    const EIO: u32 = 5;
    const EINVAL: u32 = 22;
    for (error, block_min) in [(0, 1), (EPERM, 1), (EIO, 1), (EINVAL, 4096)] {
        let (mut client, _) = greeted();
        client.feed(&sized(4096, u32::MAX)).unwrap();
        let sent = client.sent();
        let number = be64(&sent, 8);
        assert_eq!(sent, RequestHead::encode(0, CMD_READ, number, 1, 1));
        assert_eq!(client.events, [], "whether it insists is not known yet");
        let data: &[u8] = if error == 0 { &[7] } else { &[] };
        client.feed(&[&ReplyHead::encode(error, number)[..], data].concat()).unwrap();
        let block_max = PAYLOAD_BYTES_MAX & !4095;
        let info = ExportInfo { size: 65536, flags: 1, block_min, block_max };
        assert_eq!(client.events, [Event::Ready(info)], "{error}");
        assert_eq!((client.session.info(), client.session.inflight()), (Some(info), 0));
    }
}

#[test]
fn a_server_that_leaves_while_its_blocks_are_tried_is_no_verdict_and_nobodys_request() {
    const ESHUTDOWN: u32 = 108;
    let (mut client, _) = greeted();
    client.feed(&sized(512, u32::MAX)).unwrap();
    let number = be64(&client.sent(), 8);
    client.feed(&ReplyHead::encode(ESHUTDOWN, number)).unwrap();
    assert!(matches!(client.events[..], [Event::Refused { code: REP_ERR_SHUTDOWN, .. }]));

    let (mut client, _) = greeted();
    client.feed(&sized(512, u32::MAX)).unwrap();
    assert!(client.session.stage().contains("smallest block"));
    assert!(client.session.abandon().is_empty());
}

#[test]
fn our_own_server_with_whole_blocks_is_found_to_insist() {
    let mut server = Server::new();
    server.block_min = 512;
    let mut client = Client { session: ClientSession::of_volume("orders", false), ..Client::new("") };
    converse(&mut client, &mut server, 9);
    assert!(matches!(client.events[..], [Event::Ready(ExportInfo { block_min: 512, .. })]), "{:?}", client.events);
}

#[test]
fn servers_that_break_the_protocol_are_named() {
    let mut client = Client::new("x");
    let error = client.feed(b"HTTP/1.1 400 Bad Request\r\n").unwrap_err();
    assert!(matches!(error, ClientError::Greeting(_)));

    let mut client = Client::new("x");
    let oldstyle = [&MAGIC_SERVER.to_be_bytes()[..], &MAGIC_OLDSTYLE.to_be_bytes(), &[0; 10]].concat();
    assert_eq!(client.feed(&oldstyle), Err(ClientError::Oldstyle));

    let mut client = Client::new("x");
    client.feed(b"NBDMAGICIHAVEOPT\x00\x03").unwrap();
    let long = OptionReplyHead::encode(OPT_GO, REP_INFO, 1 << 30);
    assert_eq!(client.feed(&long), Err(ClientError::OptionReplyLength(1 << 30)));

    let mut client = Client::new("x");
    client.feed(b"NBDMAGICIHAVEOPT\x00\x03").unwrap();
    let early = OptionReplyHead::encode(OPT_GO, REP_ACK, 0);
    assert!(matches!(client.feed(&early), Err(ClientError::Info(_))));

    let mut server = Server::new();
    let mut client = ready(&mut server);
    client.session.read(1, 0, 512, &mut client.out);
    assert_eq!(client.feed(&ReplyHead::encode(0, 77)), Err(ClientError::ReplyCookie(77)));
    assert_eq!(client.session.abandon(), [1]);

    let mut client = ready(&mut Server::new());
    assert_eq!(client.feed(&[1; 16]), Err(ClientError::ReplyMagic(0x0101_0101)));
}

#[test]
fn a_reply_counts_once() {
    let mut server = Server::new();
    let mut client = ready(&mut server);
    client.session.flush(1, &mut client.out);
    let number = be64(&client.sent(), 8);
    client.feed(&ReplyHead::encode(0, number)).unwrap();
    client.session.flush(2, &mut client.out);
    assert_eq!(client.feed(&ReplyHead::encode(0, number)), Err(ClientError::ReplyCookie(number)));
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u8, usize),
    Read(u64, u32),
    Flush,
}

proptest! {
    /// Whatever is written is read back, however the network cuts the stream.
    #[test]
    fn a_disk_behind_the_protocol_is_a_disk(
        steps in prop::collection::vec(
            prop_oneof![
                (0u64..200_000, any::<u8>(), 1usize..9000).prop_map(|(at, fill, length)| Step::Write(at, fill, length)),
                (0u64..200_000, 1u32..9000).prop_map(|(at, length)| Step::Read(at, length)),
                Just(Step::Flush),
            ],
            1..30,
        ),
        chunk in 1usize..5000,
    ) {
        let mut server = Server::new();
        server.reverse = false;
        let mut client = ready(&mut server);
        let mut model = vec![0u8; SIZE];
        let mut expected = Vec::new();
        for (cookie, step) in (0u64..).zip(&steps) {
            match *step {
                Step::Write(at, fill, length) => {
                    model[at as usize..][..length].fill(fill);
                    client.session.write(cookie, at, vec![Bytes::from(vec![fill; length])], false, &mut client.out);
                    expected.push(Bytes::new());
                }
                Step::Read(at, length) => {
                    client.session.read(cookie, at, length, &mut client.out);
                    expected.push(Bytes::copy_from_slice(&model[at as usize..][..length as usize]));
                }
                Step::Flush => {
                    client.session.flush(cookie, &mut client.out);
                    expected.push(Bytes::new());
                }
            }
        }
        converse(&mut client, &mut server, chunk);
        let expected: Vec<Event> =
            (0u64..).zip(expected).map(|(cookie, data)| Event::Done { cookie, result: Ok(data) }).collect();
        prop_assert_eq!(client.events, expected);
    }

    /// Bytes of any kind end in an error or in silence, never in a panic.
    #[test]
    fn garbage_is_no_reply(bytes in prop::collection::vec(any::<u8>(), 0..400), greeted in prop::bool::ANY) {
        let mut client = Client::new("x");
        if greeted {
            client.feed(b"NBDMAGICIHAVEOPT\x00\x03").unwrap();
        }
        let _ = client.feed(&bytes);
    }
}
