//! Structured replies and extended headers: every command, every violation, and ranges in pieces.

use bytes::Bytes;

use crate::core::allocation::Stretch;
use crate::core::errno::Errno;
use crate::limits::{FIRST_BYTES, PIECE_BYTES_MAX, SERVER_READ_BYTES_MAX, SERVER_WRITE_BYTES_MAX};
use crate::nbd::budget::{Budget, Held, Lanes, Ways};
use crate::nbd::outbox::Part;
use crate::nbd::protocol::*;
use crate::nbd::session::tests::{Bench, client_flags, export, go, option, request, write};
use crate::nbd::session::{Event, Export, Kind, Request, SessionError};

/// In the transmission phase, in a style, with `base:allocation` selected.
fn going(style: u32, export: Export) -> Bench {
    let mut bench = Bench::new();
    bench.export = Ok(export);
    let mut contexts = b"\0\0\0\x02db\0\0\0\x01\0\0\0\x0f".to_vec();
    contexts.extend(b"base:allocation");
    let script = [
        client_flags(),
        option(style, b""),
        option(OPT_SET_META_CONTEXT, &contexts),
        option(OPT_GO, &go("db", &[INFO_BLOCK_SIZE])),
    ];
    bench.feed(&script.concat()).expect("a good handshake");
    assert!(bench.session.transmitting());
    bench.sent.clear();
    bench.events.clear();
    bench
}

fn structured() -> Bench {
    going(OPT_STRUCTURED_REPLY, export())
}

fn extended(export: Export) -> Bench {
    going(OPT_EXTENDED_HEADERS, export)
}

fn long(flags: u16, command: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    RequestHead::encode_extended(flags, command, cookie, offset, length).to_vec()
}

/// A reply, of whichever style.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Simple(u64, u32),
    /// Cookie, type, data; it is always the only chunk of its reply.
    Chunk(u64, u16, Vec<u8>),
}

/// What was sent since the last call. `offsets`: extended replies repeat the offset of their request.
fn said(bench: &mut Bench, offsets: &[u64]) -> Vec<Said> {
    let sent = std::mem::take(&mut bench.sent);
    let (mut rest, mut said) = (&sent[..], Vec::new());
    while !rest.is_empty() {
        let (head, length) = match be32(rest, 0) {
            MAGIC_REPLY => (REPLY_BYTES, 0),
            MAGIC_REPLY_STRUCTURED => (CHUNK_BYTES, be32(rest, 16) as usize),
            MAGIC_REPLY_EXTENDED => {
                assert!(offsets.contains(&be64(rest, 16)), "the offset of a request");
                (CHUNK_EXTENDED_BYTES, be64(rest, 24) as usize)
            }
            magic => panic!("{magic:#x} is not the beginning of a reply"),
        };
        if head == REPLY_BYTES {
            said.push(Said::Simple(be64(rest, 8), be32(rest, 4)));
        } else {
            assert_eq!(be16(rest, 4), REPLY_FLAG_DONE);
            said.push(Said::Chunk(be64(rest, 8), be16(rest, 6), rest[head..head + length].to_vec()));
        }
        rest = &rest[head + length..];
    }
    said
}

/// The errno, and the offset where there is one, of a reply that is an error chunk.
fn error(said: &Said) -> (u64, u32, Option<u64>) {
    let Said::Chunk(cookie, kind, data) = said else { panic!("a chunk, not {said:?}") };
    let text = usize::from(be16(data, 4));
    assert!(text > 0 && str::from_utf8(&data[6..6 + text]).is_ok(), "an error says what is wrong");
    let at = match *kind {
        REPLY_ERROR => None,
        REPLY_ERROR_OFFSET => Some(be64(data, 6 + text)),
        other => panic!("{other} is no error"),
    };
    assert_eq!(data.len(), 6 + text + if at.is_some() { 8 } else { 0 });
    (*cookie, be32(data, 0), at)
}

fn only(bench: &mut Bench) -> Request {
    let mut requests = bench.requests();
    assert_eq!(requests.len(), 1);
    requests.remove(0)
}

#[test]
fn a_structured_read_is_one_chunk_and_its_failure_an_error_chunk() {
    let mut bench = structured();
    bench.feed(&[request(CMD_FLAG_DF, CMD_READ, 1, 4096, 8), request(0, CMD_READ, 2, 0, 8)].concat()).unwrap();
    let requests = bench.requests();
    assert_eq!(requests[0].kind, Kind::Read { offset: 4096, length: 8 });
    bench.reply(requests[1].cookie, Err(Errno::Io));
    bench.reply(requests[0].cookie, Ok(Bytes::from_static(b"12345678")));
    let said = said(&mut bench, &[]);
    assert_eq!(error(&said[0]), (2, 5, None));
    let data = [&4096u64.to_be_bytes()[..], b"12345678"].concat();
    assert_eq!(said[1], Said::Chunk(1, REPLY_OFFSET_DATA, data));
    bench.feed(&request(0, CMD_READ, 3, 0, 0)).unwrap();
    assert_eq!(self::said(&mut bench, &[]), [Said::Chunk(3, REPLY_NONE, vec![])], "no simple reply to any read");
}

#[test]
fn what_carries_no_data_is_a_simple_reply_or_an_extended_one() {
    let mut bench = structured();
    bench.feed(&[write(1, 0, &[1; 600]), request(0, CMD_FLUSH, 2, 0, 0)].concat()).unwrap();
    for request in bench.requests() {
        bench.reply(request.cookie, Ok(Bytes::new()));
    }
    assert_eq!(said(&mut bench, &[]), [Said::Simple(1, 0), Said::Simple(2, 0)]);

    let mut bench = extended(export());
    let head = long(CMD_FLAG_PAYLOAD_LEN | CMD_FLAG_FUA, CMD_WRITE, 1, 512, 3);
    bench.feed(&[head, b"abc".to_vec(), long(0, CMD_FLUSH, 2, 0, 0)].concat()).unwrap();
    let requests = bench.requests();
    assert_eq!(requests[0].kind, Kind::Write { offset: 512, data: Bytes::from_static(b"abc"), fua: true });
    for request in requests {
        bench.reply(request.cookie, Ok(Bytes::new()));
    }
    let none = |cookie| Said::Chunk(cookie, REPLY_NONE, vec![]);
    assert_eq!(said(&mut bench, &[0, 512]), [none(1), none(2)]);
}

/// Block status of one stretch, refused requests and holes are as short as any reply without data: as many wait.
#[test]
fn floods_of_short_chunks_are_parsed_as_far_as_they_are_taken() {
    for (flags, command, length) in [
        (0, CMD_BLOCK_STATUS, 4096),
        (CMD_FLAG_REQ_ONE, CMD_BLOCK_STATUS, 4096),
        (0, 77, 0),
        (0, CMD_READ, 1),
        (0, CMD_READ, 0),
    ] {
        let mut bench = structured();
        let taken = bench.flood(&request(flags, command, 5, 0, length), 5000, 8192);
        let said = said(&mut bench, &[]);
        assert!(said.len() == 5000 && said.iter().all(|said| matches!(said, Said::Chunk(5, ..))));
        assert!(taken >= 5000 * CHUNK_BYTES / 8448, "{taken} times");

        let mut bench = extended(export());
        bench.flood(&long(flags, command, 5, 0, u64::from(length)), 5000, 8192);
        assert_eq!(self::said(&mut bench, &[0]).len(), 5000);
    }
}

/// An answer that is longer than all that may wait passes, and is data: as long as a read, it has the room of one.
#[test]
fn a_long_block_status_passes() {
    let mut bench = structured();
    bench.out.set_room(1024);
    bench.rx.push(Bytes::from(request(0, CMD_BLOCK_STATUS, 5, 0, 1 << 20)));
    bench.advance().unwrap();
    let asked = only(&mut bench);
    let stretches: Vec<Stretch> = (0..2048).map(|at| Stretch { length: 512, hole: at % 2 == 0 }).collect();
    bench.session.status(asked.cookie, &stretches, &mut bench.out);
    assert!(!bench.out.is_full(0));
    let parts: Vec<Part> = bench.out.drain_parts().collect();
    assert!(matches!(&parts[1], Part::Payload(data) if data.len() == 8 * 2048));
}

/// Refused requests: what they are, the error, and where, in both styles with chunks.
#[test]
fn refusals_say_which_error_and_where() {
    const END: u64 = 1 << 20;
    let cases: [(u16, u16, u64, u32, Errno, Option<u64>); 17] = [
        (0, CMD_READ, END - 511, 512, Errno::Inval, Some(END)),
        (0, CMD_READ, END + 5, 512, Errno::Inval, Some(END + 5)),
        (0, CMD_READ, u64::MAX - 5, 512, Errno::Inval, Some(u64::MAX - 5)),
        (0, CMD_READ, 0, (64 << 10) + 1, Errno::Overflow, None),
        (CMD_FLAG_DF, CMD_READ, 0, (64 << 10) + 1, Errno::Overflow, None),
        (CMD_FLAG_NO_HOLE, CMD_READ, 0, 512, Errno::Inval, None),
        (CMD_FLAG_DF, CMD_TRIM, 0, 512, Errno::Inval, None),
        (0, CMD_TRIM, END, 1, Errno::Inval, Some(END)),
        (0, CMD_CACHE, END - 1, 2, Errno::Inval, Some(END)),
        (CMD_FLAG_FAST_ZERO, CMD_CACHE, 0, 2, Errno::Inval, None),
        (0, CMD_WRITE_ZEROES, END - 1, 2, Errno::NoSpc, Some(END)),
        (CMD_FLAG_REQ_ONE, CMD_WRITE_ZEROES, 0, 2, Errno::Inval, None),
        (0, CMD_BLOCK_STATUS, END - 1, 2, Errno::Inval, Some(END)),
        (0, CMD_BLOCK_STATUS, 0, 0, Errno::Inval, None),
        (CMD_FLAG_DF, CMD_BLOCK_STATUS, 0, 512, Errno::Inval, None),
        (0, CMD_FLUSH, 0, 1, Errno::Inval, None),
        (0, 8, 0, 1, Errno::Inval, None),
    ];
    for (flags, command, offset, length, errno, at) in cases {
        let mut bench = structured();
        bench.feed(&request(flags, command, 7, offset, length)).unwrap();
        assert_eq!(error(&said(&mut bench, &[])[0]), (7, errno as u32, at), "{command} {offset} {length}");
        let mut bench = extended(export());
        bench.feed(&long(flags, command, 7, offset, u64::from(length))).unwrap();
        assert_eq!(error(&said(&mut bench, &[offset])[0]), (7, errno as u32, at), "{command} {offset} {length}");
        bench.feed(&long(0, CMD_FLUSH, 8, 0, 0)).unwrap();
        assert_eq!(bench.requests().len(), 1, "the next request is understood");
    }
}

#[test]
fn a_block_status_answers_with_what_it_is_told_and_one_if_one_is_wanted() {
    let stretches = [
        Stretch { length: 4096, hole: false },
        Stretch { length: 8192, hole: true },
        Stretch { length: 4096, hole: false },
    ];
    let mut bench = structured();
    let script =
        [request(0, CMD_BLOCK_STATUS, 1, 4096, 16384), request(CMD_FLAG_REQ_ONE, CMD_BLOCK_STATUS, 2, 0, 4096)];
    bench.feed(&script.concat()).unwrap();
    let requests = bench.requests();
    assert_eq!(requests[0].kind, Kind::Status { offset: 4096, length: 16384, one: false });
    assert_eq!(requests[1].kind, Kind::Status { offset: 0, length: 4096, one: true });
    for request in &requests {
        bench.session.status(request.cookie, &stretches, &mut bench.out);
    }
    bench.advance().unwrap();
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
    let all = words(&[1, 4096, 0, 8192, STATE_HOLE | STATE_ZERO, 4096, 0]);
    let one = words(&[1, 4096, 0]);
    let expected = [Said::Chunk(1, REPLY_BLOCK_STATUS, all), Said::Chunk(2, REPLY_BLOCK_STATUS, one)];
    assert_eq!(said(&mut bench, &[]), expected);

    let mut bench = Bench::going(export());
    bench.feed(&request(0, CMD_BLOCK_STATUS, 1, 0, 4096)).unwrap();
    assert_eq!(bench.replies(), [(22, 1)], "not without a context");
}

#[test]
fn a_block_status_with_a_payload_names_its_contexts() {
    let ask = |ids: &[u32]| {
        let payload: Vec<u8> =
            8192u64.to_be_bytes().into_iter().chain(ids.iter().flat_map(|id| id.to_be_bytes())).collect();
        [long(CMD_FLAG_PAYLOAD_LEN, CMD_BLOCK_STATUS, 3, 4096, payload.len() as u64), payload].concat()
    };
    let mut bench = extended(export());
    bench.feed(&ask(&[1])).unwrap();
    let request = only(&mut bench);
    assert_eq!(request.kind, Kind::Status { offset: 4096, length: 8192, one: false });
    bench.session.status(request.cookie, &[Stretch { length: 8192, hole: true }], &mut bench.out);
    bench.advance().unwrap();
    let data = [&[0, 0, 0, 1, 0, 0, 0, 1][..], &8192u64.to_be_bytes(), &3u64.to_be_bytes()].concat();
    assert_eq!(said(&mut bench, &[4096]), [Said::Chunk(3, REPLY_BLOCK_STATUS_EXT, data)]);
    for ids in [&[][..], &[2], &[1, 1], &[1, 2]] {
        bench.feed(&ask(ids)).unwrap();
        assert_eq!(error(&said(&mut bench, &[4096])[0]), (3, 22, None), "{ids:?}");
    }
    assert_eq!(bench.events, []);
    let far = [&(2u64 << 20).to_be_bytes()[..], &1u32.to_be_bytes()].concat();
    bench.feed(&[long(CMD_FLAG_PAYLOAD_LEN, CMD_BLOCK_STATUS, 3, 4096, 12), far].concat()).unwrap();
    assert_eq!(error(&said(&mut bench, &[4096])[0]), (3, 22, Some(1 << 20)));
}

#[test]
fn payload_lengths_follow_their_flag() {
    let mut bench = extended(export());
    // A write without the flag has a payload all the same: so does QEMU.
    bench.feed(&[long(0, CMD_WRITE, 1, 0, 3), b"abc".to_vec()].concat()).unwrap();
    assert_eq!(only(&mut bench).kind, Kind::Write { offset: 0, data: Bytes::from_static(b"abc"), fua: false });
    // A payload that no command wants passes by.
    let flags = CMD_FLAG_PAYLOAD_LEN;
    for command in [CMD_READ, CMD_TRIM, CMD_FLUSH, CMD_CACHE, CMD_WRITE_ZEROES, 99] {
        bench.feed(&[long(flags, command, 2, 0, 5000), vec![0x21; 5000]].concat()).unwrap();
        assert_eq!(error(&said(&mut bench, &[0])[0]), (2, 22, None), "{command}");
    }
    bench.feed(&long(0, CMD_FLUSH, 3, 0, 0)).unwrap();
    assert_eq!(only(&mut bench).kind, Kind::Flush, "still in step");
    // One that is longer than was agreed on ends the connection.
    let error = bench.feed(&long(flags, CMD_WRITE, 4, 0, (64 << 10) + 1)).unwrap_err();
    assert_eq!(error, SessionError::PayloadLength((64 << 10) + 1));
    let mut bench = extended(export());
    let compact = [request(0, CMD_READ, 1, 0, 512), request(0, CMD_READ, 2, 0, 512)].concat();
    assert_eq!(bench.feed(&compact), Err(SessionError::RequestMagic(MAGIC_REQUEST)));
    let mut bench = structured();
    assert_eq!(bench.feed(&long(0, CMD_READ, 1, 0, 512)), Err(SessionError::RequestMagic(MAGIC_REQUEST_EXTENDED)));
}

#[test]
fn a_range_longer_than_a_record_is_done_in_pieces_and_answered_once() {
    const PIECE: u64 = PIECE_BYTES_MAX;
    let huge = || Export { size: 1 << 40, ..export() };
    let mut bench = extended(huge());
    let flags = CMD_FLAG_FAST_ZERO | CMD_FLAG_FUA;
    bench.feed(&long(flags, CMD_WRITE_ZEROES, 1, 4096, 3 * PIECE)).unwrap();
    let mut seen = Vec::new();
    loop {
        let Request { cookie, kind } = only(&mut bench);
        let Kind::Zeroes { offset, length, fua: true, no_hole: false, fast } = kind else { panic!("zeroes") };
        seen.push((offset, length, fast));
        bench.reply(cookie, Ok(Bytes::new()));
        if offset + length == 4096 + 3 * PIECE {
            break;
        }
        assert_eq!(said(&mut bench, &[]), [], "not before the last piece");
        assert_eq!(bench.session.inflight(), 1);
        bench.advance().unwrap();
    }
    let expected =
        [(4096, PIECE - 4096, true), (PIECE, PIECE, false), (2 * PIECE, PIECE, false), (3 * PIECE, 4096, false)];
    assert_eq!(seen, expected);
    assert_eq!(said(&mut bench, &[4096]), [Said::Chunk(1, REPLY_NONE, vec![])]);

    // The first failure is the answer, with its place; a goodbye does not cut off what is left.
    let mut bench = extended(huge());
    bench.feed(&[long(0, CMD_TRIM, 2, 0, 1 << 40), long(0, CMD_DISC, 0, 0, 0)].concat()).unwrap();
    assert_eq!(bench.events.pop(), Some(Event::Disconnect));
    let first = only(&mut bench);
    assert_eq!(first.kind, Kind::Trim { offset: 0, length: PIECE, fua: false });
    bench.reply(first.cookie, Ok(Bytes::new()));
    bench.advance().unwrap();
    let second = only(&mut bench);
    assert_eq!(second.kind, Kind::Trim { offset: PIECE, length: PIECE, fua: false });
    bench.reply(second.cookie, Err(Errno::Io));
    assert_eq!(error(&said(&mut bench, &[0])[0]), (2, 5, Some(PIECE)));
    assert_eq!(bench.session.inflight(), 0);
}

#[test]
fn only_the_success_of_a_change_is_a_promise() {
    let mut bench = structured();
    let script = [write(1, 0, b"a"), write(2, 0, b"b"), request(0, CMD_READ, 3, 0, 1)];
    bench.feed(&[&script.concat()[..], &request(0, CMD_BLOCK_STATUS, 4, 0, 1)].concat()).unwrap();
    let cookies: Vec<u64> = bench.requests().iter().map(|request| request.cookie).collect();
    bench.reply(cookies[0], Err(Errno::Io));
    bench.reply(cookies[2], Ok(Bytes::from_static(b"x")));
    bench.session.status(cookies[3], &[Stretch { length: 1, hole: false }], &mut bench.out);
    assert!(!bench.out.take_promises());
    bench.reply(cookies[1], Ok(Bytes::new()));
    assert!(bench.out.take_promises());
}

#[test]
fn what_others_hold_is_waited_for() {
    let mut bench = structured();
    let whole = Budget::default();
    let room = |read: u64, write: u64| {
        let held = Ways { read: SERVER_READ_BYTES_MAX - read, write: SERVER_WRITE_BYTES_MAX - write };
        let small = |small| Lanes { small, ..Lanes::default() };
        let held = Ways { read: small(held.read), write: small(held.write) };
        let mut others = Budget::default();
        others.change(Held::default(), held);
        others.room(Held::default())
    };
    bench.session.set_room(room(8192, 0));
    bench.feed(&[request(0, CMD_READ, 1, 0, 8192), write(2, 0, &[1; 512])].concat()).unwrap();
    assert_eq!(bench.requests().len(), 1);
    assert!(bench.session.blocked());
    assert_eq!(bench.session.wants(), Some(Ways { read: Lanes::default(), write: Lanes::of(4096) }));
    bench.session.set_room(room(0, 4096));
    bench.feed(&request(0, CMD_READ, 3, 0, 1)).unwrap();
    assert_eq!(bench.requests().len(), 1, "the write");
    assert_eq!(bench.session.wants(), Some(Ways { read: Lanes::of(4096), write: Lanes::default() }));
    bench.session.set_room(whole.room(Held::default()));
    bench.advance().unwrap();
    assert_eq!(bench.requests().len(), 1);
    assert_eq!(bench.session.inflight_bytes().read.small, 8192 + 4096);
    assert_eq!(bench.session.inflight_bytes().write.small, 4096);
    assert_eq!(bench.session.wants(), None);
}

#[test]
fn a_write_has_its_room_from_its_head_on() {
    let mut bench = going(OPT_STRUCTURED_REPLY, Export { block_max: 1 << 20, ..export() });
    const BYTES: u64 = 128 << 10;
    let whole = write(1, 0, &[7; BYTES as usize]);
    bench.feed(&whole[..100]).unwrap();
    assert!(bench.requests().is_empty() && !bench.session.blocked());
    assert_eq!((bench.session.inflight_bytes().write.short, bench.session.arriving_bytes().sum()), (BYTES, BYTES));
    bench.session.set_room(Ways::default());
    bench.feed(&whole[100..]).unwrap();
    let cookie = bench.requests()[0].cookie;
    assert_eq!((bench.session.inflight_bytes().write.short, bench.session.arriving_bytes().sum()), (BYTES, 0));
    bench.feed(&write(2, 0, &[8; 128 << 10])[..28]).unwrap();
    assert!(bench.session.blocked(), "its head alone shows that there is no room");
    bench.reply(cookie, Ok(Bytes::new()));
    assert_eq!(bench.session.inflight_bytes(), Held::default());
}

#[test]
fn where_others_hold_many_a_write_takes_room_once_its_beginning_is_there() {
    const BYTES: u64 = 128 << 10;
    let whole = write(1, 0, &[7; BYTES as usize]);
    let first = 28 + FIRST_BYTES as usize;
    for (received, waiting, begins) in
        [(28, 0, false), (first - 1, 0, false), (first, 0, true), (28, FIRST_BYTES as usize, true), (100, 100, false)]
    {
        let mut bench = going(OPT_STRUCTURED_REPLY, Export { block_max: 1 << 20, ..export() });
        bench.session.set_thrift(Some(waiting));
        bench.feed(&whole[..received]).unwrap();
        assert_eq!(bench.session.arriving_bytes().sum(), if begins { BYTES } else { 0 }, "{received} {waiting}");
        // Until then it is received like anything that nobody expects, and nobody waits for room.
        assert_eq!(bench.session.body_hint(), if begins { BYTES as usize } else { 0 });
        assert!(!bench.session.blocked() && bench.session.wants().is_none());
        // What is not many any more, or all there, needs no beginning.
        if received > 28 {
            bench.session.set_thrift(None);
        }
        bench.feed(&whole[received..]).unwrap();
        assert_eq!(bench.requests().len(), 1);
    }
}

#[test]
fn a_small_write_takes_no_room_before_it_has_arrived() {
    let mut bench = structured();
    let whole = write(1, 0, &[7; 64 << 10]);
    let (all_but_one, last) = whole.split_at(whole.len() - 1);
    bench.feed(all_but_one).unwrap();
    assert!(bench.requests().is_empty() && !bench.session.blocked());
    assert_eq!((bench.session.inflight_bytes(), bench.session.arriving_bytes().sum()), (Held::default(), 0));
    bench.session.set_room(Ways::default());
    bench.feed(last).unwrap();
    assert!(bench.requests().is_empty() && bench.session.blocked());
    assert_eq!(bench.session.wants(), Some(Ways { read: Lanes::default(), write: Lanes::of(64 << 10) }));
    bench.session.set_room(Budget::default().room(Held::default()));
    bench.advance().unwrap();
    assert_eq!(bench.requests().len(), 1);
    assert_eq!(bench.session.inflight_bytes().write.small, 64 << 10);
}

#[test]
fn a_refused_payload_of_gigabytes_is_skipped_without_being_kept() {
    let mut bench = structured();
    bench.feed(&request(0, CMD_WRITE, 1, 0, u32::MAX)).unwrap();
    for _ in 0..100 {
        bench.feed(&[0x25; 10_000]).unwrap();
        assert!(bench.rx.is_empty());
    }
    assert!(said(&mut bench, &[]).is_empty(), "the answer follows the payload");
}
