//! Payloads in pieces: every style, failures in the middle, what waits behind them, and any mixture of requests.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::limits::{CONNECTION_PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_MAX, SERVER_LONG_BYTES_MAX, SMALL_BYTES};
use crate::nbd::budget::{Budget, Held, Lanes, Share};
use crate::nbd::protocol::*;
use crate::nbd::session::Export;
use crate::nbd::session::SessionError;
use crate::nbd::session::tests::{Bench, client_flags, export, go, option, request, write};

const MIB: u64 = 1 << 20;
const PIECE: u64 = SERVER_LONG_PIECE_BYTES;
const SIZE: u64 = 64 * MIB;

fn bench(style: Style) -> Bench {
    let mut bench = Bench::new();
    bench.export = Ok(Export { size: SIZE, block_max: PAYLOAD_BYTES_MAX, ..export() });
    let mut script = client_flags();
    match style {
        Style::Simple => {}
        Style::Structured => script.extend(option(OPT_STRUCTURED_REPLY, b"")),
        Style::Extended => script.extend(option(OPT_EXTENDED_HEADERS, b"")),
    }
    script.extend(option(OPT_GO, &go("db", &[INFO_BLOCK_SIZE])));
    bench.feed(&script).expect("a good handshake");
    bench.sent.clear();
    bench.events.clear();
    bench
}

/// Bytes that tell where they belong.
fn pattern(offset: u64, length: u64) -> Vec<u8> {
    (offset..offset + length).map(|at| (at >> 12) as u8 ^ at as u8).collect()
}

/// Offset, length and FUA of the only request, a write, and its cookie.
fn written(request: &Request) -> (u64, Vec<u8>, bool) {
    let Kind::Write { offset, data, fua } = &request.kind else { panic!("a write, not {:?}", request.kind) };
    (*offset, data.to_vec(), *fua)
}

fn only(bench: &mut Bench) -> Request {
    bench.advance().unwrap();
    let mut requests = bench.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    requests.remove(0)
}

/// Answers the piece of a read that is asked for; where it began, and how long it was.
fn serve(bench: &mut Bench) -> (u64, u64) {
    let Request { cookie, kind } = only(bench);
    let Kind::Read { offset, length } = kind else { panic!("a read, not {kind:?}") };
    bench.reply(cookie, Ok(pattern(offset, u64::from(length)).into()));
    (offset, u64::from(length))
}

#[test]
fn a_long_write_is_pieces_in_order_and_one_reply() {
    let mut bench = bench(Style::Simple);
    let (offset, length) = (3 * 4096 + 5, 32 * MIB - 7);
    let data = Bytes::from(pattern(offset, length));
    bench.feed(&request(CMD_FLAG_FUA, CMD_WRITE, 7, offset, length as u32)).unwrap();
    assert_eq!(
        (bench.session.head_bytes(), bench.session.body_hint() as u64),
        (0, PIECE - 5),
        "known from the head on"
    );
    let (mut at, mut cookies) = (offset, Vec::new());
    while at < offset + length {
        let piece = bench.session.body_hint();
        let bytes = data.slice((at - offset) as usize..).slice(..piece);
        bench.rx.push(bytes.slice(..piece / 2));
        bench.advance().unwrap();
        assert_eq!(bench.session.arriving_bytes(), Lanes::long((piece as u64).next_multiple_of(4096)));
        bench.rx = crate::core::rope::Rope::new();
        bench.rx.push(bytes.clone());
        let Request { cookie, kind } = only(&mut bench);
        let Kind::Write { offset, data, fua: true } = kind else { panic!("a write with FUA, not {kind:?}") };
        assert_eq!((offset, data.as_ptr(), data.len()), (at, bytes.as_ptr(), piece), "in order, and not copied");
        assert!(piece as u64 > LONG_BYTES - 4096 && piece as u64 <= PIECE);
        at += piece as u64;
        assert!(at.is_multiple_of(4096) || at == offset + piece as u64 && at == 3 * 4096 + 5 + length);
        cookies.push(cookie);
        if cookies.len() > 2 {
            bench.reply(cookies.remove(1), Ok(Bytes::new()));
        }
    }
    assert_eq!((bench.session.head_bytes(), bench.session.body_hint() as u64), (REQUEST_BYTES, PIECE - 5));
    for cookie in cookies {
        assert_eq!(bench.replies(), [], "not before the last one is done");
        bench.reply(cookie, Ok(Bytes::new()));
    }
    assert_eq!(bench.replies(), [(0, 7)]);
    assert_eq!((bench.session.inflight(), bench.session.inflight_bytes()), (0, Held::default()));
}

#[test]
fn the_first_failure_of_a_long_write_is_its_answer_and_the_rest_passes_by() {
    for style in [Style::Simple, Style::Structured] {
        let mut bench = bench(style);
        bench.feed(&request(0, CMD_WRITE, 7, MIB, 20 * MIB as u32)).unwrap();
        bench.feed(&pattern(0, 2 * PIECE + 100)).unwrap();
        let pieces = bench.requests();
        assert_eq!(pieces.iter().map(|piece| written(piece).0).collect::<Vec<_>>(), [MIB, MIB + PIECE]);
        bench.reply(pieces[1].cookie, Err(Errno::NoSpc));
        bench.advance().unwrap();
        assert_eq!((bench.session.body_hint(), bench.session.arriving_bytes().sum(), bench.rx.len()), (0, 0, 0));
        bench.feed(&pattern(0, 20 * MIB - 2 * PIECE - 100)).unwrap();
        bench.feed(&request(0, CMD_FLUSH, 8, 0, 0)).unwrap();
        let flush = only(&mut bench);
        assert_eq!(flush.kind, Kind::Flush, "in step, and nothing more of it is written");
        assert!(bench.sent.is_empty(), "the first piece is still under way");
        bench.reply(pieces[0].cookie, Err(Errno::Io));
        if style == Style::Simple {
            assert_eq!(bench.replies(), [(28, 7)]);
        } else {
            let at = bench.sent.len() - 8;
            let head = (be16(&bench.sent, 6), be64(&bench.sent, 8), be32(&bench.sent, CHUNK_BYTES));
            assert_eq!((head, be64(&bench.sent, at)), ((REPLY_ERROR_OFFSET, 7, 28), MIB + PIECE));
        }
        bench.reply(flush.cookie, Ok(Bytes::new()));
        assert_eq!((bench.session.inflight(), bench.session.inflight_bytes()), (0, Held::default()));
    }
}

#[test]
fn a_client_that_leaves_in_the_middle_has_written_a_part_and_hears_nothing() {
    let mut bench = bench(Style::Simple);
    bench.feed(&request(0, CMD_WRITE, 7, 0, 32 * MIB as u32)).unwrap();
    bench.feed(&pattern(0, PIECE + PIECE / 2)).unwrap();
    let piece = only(&mut bench);
    assert_eq!(written(&piece), (0, pattern(0, PIECE), false));
    bench.reply(piece.cookie, Ok(Bytes::new()));
    assert_eq!(bench.replies(), []);
    let held = bench.session.inflight_bytes();
    assert_eq!(
        (held.write.long, bench.session.arriving_bytes()),
        (PIECE, Lanes::long(PIECE)),
        "what the server gives back"
    );
}

#[test]
fn each_piece_waits_for_room_of_its_own() {
    let mut bench = bench(Style::Simple);
    let room = |held: u64| {
        let mut others = Budget::default();
        let lanes = Lanes { long: held, ..Lanes::default() };
        others.change(Held::default(), Ways { read: lanes, write: lanes });
        let Ways { read, write } = others.room(Held::default());
        let alone = |share| Share { crowded: false, own_long: u64::MAX, ..share };
        Ways { read: alone(read), write: alone(write) }
    };
    bench.session.set_room(room(SERVER_LONG_BYTES_MAX - PIECE));
    bench.feed(&request(0, CMD_WRITE, 7, 0, 10 * MIB as u32)).unwrap();
    bench.feed(&pattern(0, PIECE)).unwrap();
    let first = only(&mut bench);
    assert!(bench.session.blocked(), "before anything of the next one has come");
    assert_eq!(bench.session.wants(), Some(Ways { read: Lanes::default(), write: Lanes::long(PIECE) }));
    bench.reply(first.cookie, Ok(Bytes::new()));
    bench.session.set_room(room(0));
    bench.feed(&pattern(PIECE, 8 * MIB)).unwrap();
    for piece in bench.requests() {
        bench.reply(piece.cookie, Ok(Bytes::new()));
    }
    assert_eq!(bench.replies(), [(0, 7)]);

    bench.session.set_room(room(SERVER_LONG_BYTES_MAX - PIECE));
    bench.feed(&[request(0, CMD_READ, 8, 0, 10 * MIB as u32), write(9, 0, &[1; 512])].concat()).unwrap();
    let pieces = bench.requests();
    assert_eq!(pieces.len(), 2, "the write needs other room");
    bench.reply(pieces[0].cookie, Ok(pattern(0, PIECE).into()));
    bench.feed(&write(10, 0, &[1; 512])).unwrap();
    assert!(bench.requests().is_empty() && bench.session.blocked(), "nothing begins while a read waits to go on");
    assert_eq!(bench.session.wants(), Some(Ways { read: Lanes::long(PIECE), write: Lanes::default() }));
    bench.session.set_room(room(0));
    bench.advance().unwrap();
    assert_eq!(bench.requests().len(), 2, "the next piece, and the other write");
    assert_eq!(bench.session.wants(), None);
}

#[test]
fn a_long_read_is_a_chunk_for_each_piece_and_others_are_answered_between() {
    let mut bench = bench(Style::Structured);
    let (offset, length) = (4096 + 512, 9 * MIB);
    bench.feed(&request(0, CMD_READ, 7, offset, length as u32)).unwrap();
    let mut at = offset;
    while at < offset + length {
        let (from, bytes) = serve(&mut bench);
        assert!(from == at && bytes > LONG_BYTES - 4096 && bytes <= PIECE);
        at += bytes;
        let done = if at == offset + length { REPLY_FLAG_DONE } else { 0 };
        assert_eq!((be16(&bench.sent, 4), be16(&bench.sent, 6)), (done, REPLY_OFFSET_DATA));
        assert_eq!(be32(&bench.sent, 16) as u64, 8 + bytes);
        assert_eq!(be64(&bench.sent, CHUNK_BYTES), from);
        assert!(bench.sent[CHUNK_BYTES + 8..] == pattern(from, bytes));
        bench.sent.clear();
        bench.feed(&write(8, 0, b"x")).unwrap();
        let (small, others): (Vec<_>, Vec<_>) =
            bench.requests().into_iter().partition(|one| matches!(one.kind, Kind::Write { .. }));
        bench.reply(small[0].cookie, Ok(Bytes::new()));
        assert_eq!(bench.replies(), [(0, 8)]);
        bench.events.extend(others.into_iter().map(Event::Request));
    }
    assert_eq!((bench.session.inflight(), bench.session.inflight_bytes()), (0, Held::default()));

    bench.feed(&request(0, CMD_READ, 9, 0, 9 * MIB as u32)).unwrap();
    let (_, first) = serve(&mut bench);
    bench.sent.clear();
    let piece = only(&mut bench);
    bench.reply(piece.cookie, Err(Errno::Io));
    assert_eq!((be16(&bench.sent, 4), be16(&bench.sent, 6)), (REPLY_FLAG_DONE, REPLY_ERROR_OFFSET));
    assert_eq!(be64(&bench.sent, bench.sent.len() - 8), first, "what came before is good");
    assert_eq!(bench.session.inflight(), 0);
}

#[test]
fn an_unbroken_read_is_one_chunk_that_nothing_comes_between() {
    let mut bench = bench(Style::Structured);
    bench.feed(&request(CMD_FLAG_DF, CMD_READ, 7, 0, 3 * MIB as u32)).unwrap();
    let (_, first) = serve(&mut bench);
    assert_eq!((be16(&bench.sent, 4), be32(&bench.sent, 16) as u64), (0, 8 + 3 * MIB), "an error can still come");
    assert_eq!(bench.sent.len() as u64, CHUNK_BYTES as u64 + 8 + first);
    // One that is done, one that is refused, one of nothing: all of them wait.
    bench.feed(&write(8, 0, &[1; 4096])).unwrap();
    let requests = bench.requests();
    bench.reply(requests[1].cookie, Ok(Bytes::new()));
    assert_eq!(bench.session.inflight_bytes().write, Lanes::default(), "what is done keeps nobody waiting");
    bench.feed(&[request(0, 99, 9, 0, 0), request(0, CMD_READ, 10, 0, 0)].concat()).unwrap();
    assert!(bench.session.blocked());
    assert_eq!(bench.sent.len() as u64, CHUNK_BYTES as u64 + 8 + first);
    bench.reply(requests[0].cookie, Ok(pattern(first, 3 * MIB - first).into()));
    bench.advance().unwrap();
    let rest = bench.sent.split_off(CHUNK_BYTES + 8 + 3 * MIB as usize);
    assert!(bench.sent[CHUNK_BYTES + 8..] == pattern(0, 3 * MIB));
    assert_eq!((be16(&rest, 4), be16(&rest, 6), be64(&rest, 8)), (REPLY_FLAG_DONE, REPLY_NONE, 7));
    assert_eq!(ReplyHead::decode(rest[CHUNK_BYTES..][..REPLY_BYTES].try_into().unwrap()).cookie, 8);
    assert_eq!(be64(&rest[CHUNK_BYTES + REPLY_BYTES..], 8), 9);
    assert_eq!(be64(&rest[rest.len() - CHUNK_BYTES..], 8), 10);

    bench.sent.clear();
    bench.feed(&request(CMD_FLAG_DF, CMD_READ, 7, 0, 32 * MIB as u32)).unwrap();
    let (_, first) = serve(&mut bench);
    let piece = only(&mut bench);
    bench.reply(piece.cookie, Err(Errno::Io));
    let rest = bench.sent.split_off(CHUNK_BYTES + 8 + 32 * MIB as usize);
    assert!(bench.sent[CHUNK_BYTES + 8 + first as usize..].iter().all(|byte| *byte == 0), "the chunk is completed");
    assert_eq!((be16(&rest, 4), be16(&rest, 6), be64(&rest, rest.len() - 8)), (1, REPLY_ERROR_OFFSET, first));
    assert_eq!(bench.session.inflight(), 0);
}

#[test]
fn a_simple_read_that_fails_in_its_middle_ends_the_connection() {
    let mut bench = bench(Style::Simple);
    bench.feed(&[request(0, CMD_READ, 7, 0, 9 * MIB as u32), request(0, CMD_READ, 8, 0, 512)].concat()).unwrap();
    let requests = bench.requests();
    bench.reply(requests[0].cookie, Ok(pattern(0, PIECE).into()));
    bench.reply(requests[1].cookie, Ok(pattern(0, 512).into()));
    assert_eq!((bench.sent.len() as u64, bench.session.deferred_bytes()), (REPLY_BYTES as u64 + PIECE, 512));
    let piece = only(&mut bench);
    bench.reply(piece.cookie, Err(Errno::Io));
    assert_eq!(bench.advance(), Err(SessionError::ReplyBroken));
    assert_eq!(bench.sent.len() as u64, REPLY_BYTES as u64 + PIECE, "no further data");
    // One that fails before is an error like any other.
    let mut bench = self::bench(Style::Simple);
    bench.feed(&request(0, CMD_READ, 7, 0, 9 * MIB as u32)).unwrap();
    let piece = only(&mut bench);
    bench.reply(piece.cookie, Err(Errno::Io));
    bench.advance().unwrap();
    assert_eq!((bench.replies(), bench.session.inflight()), (vec![(5, 7)], 0));
}

#[test]
fn a_read_in_pieces_is_the_only_long_one_of_its_connection() {
    let mut bench = bench(Style::Simple);
    let script = [(1, 2 * MIB), (2, 9 * MIB), (3, 512), (4, 2 * MIB)]
        .map(|(cookie, length)| request(0, CMD_READ, cookie, 0, length as u32));
    bench.feed(&script.concat()).unwrap();
    let first = only(&mut bench);
    assert!(bench.session.blocked() && bench.session.wants().is_none());
    bench.reply(first.cookie, Ok(pattern(0, 2 * MIB).into()));
    bench.advance().unwrap();
    let requests = bench.requests();
    assert_eq!(requests.len(), 2, "the pieces, and what is short");
    assert!(bench.session.blocked());
    bench.reply(requests[0].cookie, Err(Errno::Io));
    bench.advance().unwrap();
    assert_eq!(bench.requests().len(), 1);
}

/// Where others use the lane, pieces are small; a request that would be one piece elsewhere is in pieces, too.
#[test]
fn in_a_crowd_pieces_are_small() {
    let room = Share { bytes: Lanes { small: MIB, short: MIB, long: 3 * MIB }, own_long: u64::MAX, crowded: true };
    for length in [2 * MIB, 9 * MIB + 512] {
        let mut bench = bench(Style::Structured);
        bench.session.set_room(Ways { read: room, write: room });
        bench.feed(&request(0, CMD_READ, 7, 0, length as u32)).unwrap();
        let mut at = 0;
        while at < length {
            bench.session.set_room(Ways { read: room, write: room });
            let (from, bytes) = serve(&mut bench);
            assert!(from == at && bytes <= SMALL_BYTES && bytes >= SMALL_BYTES.min(length - at) / 2, "{bytes} at {at}");
            at += bytes;
        }
        assert_eq!((bench.session.inflight(), bench.session.inflight_bytes()), (0, Held::default()));

        bench.feed(&request(0, CMD_WRITE, 8, 0, length as u32)).unwrap();
        let mut at = 0;
        while at < length {
            bench.session.set_room(Ways { read: room, write: room });
            bench.feed(&pattern(at, 1)).unwrap();
            let piece = bench.session.body_hint() as u64;
            assert!(
                piece <= SMALL_BYTES && bench.session.arriving_bytes() == Lanes::long(piece.next_multiple_of(4096))
            );
            bench.session.set_room(Ways::default());
            assert_eq!(bench.session.body_hint() as u64, piece, "it has its room, whatever there is now");
            bench.feed(&pattern(at, piece)[1..]).unwrap();
            let request = only(&mut bench);
            assert!(written(&request) == (at, pattern(at, piece), false));
            bench.reply(request.cookie, Ok(Bytes::new()));
            at += piece;
        }
        assert!(bench.session.inflight() == 0 && bench.session.inflight_bytes() == Held::default());
    }
}

#[test]
fn pieces_are_long_and_end_at_blocks() {
    for offset in [0, 1, 511, 512, 4095, 4096, 1 << 40] {
        for length in (1..33).flat_map(|mib| [mib * MIB - 1, mib * MIB, mib * MIB + 1, mib * MIB + 4095]) {
            let (mut at, mut left) = (offset, length);
            while left > 0 {
                let piece = piece_bytes(at, left, PIECE);
                assert!(piece <= PIECE && (piece == length || piece > LONG_BYTES - 4096), "{piece} of {left} at {at}");
                (at, left) = (at + piece, left - piece);
                assert!(left == 0 || at.is_multiple_of(4096));
                for most in [SMALL_BYTES, 100_000] {
                    let piece = piece_bytes(at, left, most);
                    assert!(piece <= most && (piece == left || piece >= most / 2 - 4096), "{piece} of {left} at {at}");
                }
            }
        }
    }
}

/// A request of a mixture: command, flags, length.
fn mixed() -> impl Strategy<Value = (u16, bool, u64)> {
    let length = prop_oneof![2 => 1u64..9000, 1 => MIB..PIECE, 3 => PIECE..14 * MIB];
    (prop_oneof![3 => Just(CMD_READ), 3 => Just(CMD_WRITE), 1 => Just(CMD_TRIM)], any::<bool>(), length)
}

/// What a client makes of the answers: for each cookie its error, and the data of a read.
fn heard(style: Style, sent: &[u8], asked: &BTreeMap<u64, (u16, u64, u64)>) -> BTreeMap<u64, (u32, Vec<u8>)> {
    let (mut rest, mut heard, mut parts) = (sent, BTreeMap::new(), BTreeMap::<u64, (u32, Vec<u8>)>::new());
    while !rest.is_empty() {
        if be32(rest, 0) == MAGIC_REPLY {
            let (error, cookie) = (be32(rest, 4), be64(rest, 8));
            let data = if asked[&cookie].0 == CMD_READ && error == 0 { asked[&cookie].2 as usize } else { 0 };
            assert!(heard.insert(cookie, (error, rest[REPLY_BYTES..][..data].to_vec())).is_none());
            rest = &rest[REPLY_BYTES + data..];
            continue;
        }
        let extended = style == Style::Extended;
        let (head, length) = if extended { (32, be64(rest, 24) as usize) } else { (20, be32(rest, 16) as usize) };
        let (flags, kind, cookie, data) = (be16(rest, 4), be16(rest, 6), be64(rest, 8), &rest[head..][..length]);
        let part = parts.entry(cookie).or_default();
        match kind {
            REPLY_OFFSET_DATA => {
                assert_eq!(be64(data, 0), asked[&cookie].1 + part.1.len() as u64, "in order, without gaps");
                part.1.extend_from_slice(&data[8..]);
            }
            REPLY_NONE => {}
            _ => part.0 = be32(data, 0),
        }
        if flags & REPLY_FLAG_DONE != 0 {
            assert!(heard.insert(cookie, parts.remove(&cookie).unwrap()).is_none());
        }
        rest = &rest[head + length..];
    }
    assert!(parts.is_empty(), "every reply is whole");
    heard
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever is asked, however the stream is cut, in whatever order what begins is carried out, and however little room
    /// there is: each request is answered once with what it asked for, what was written is what was sent, no more than the
    /// room is held, and nothing is stuck.
    #[test]
    fn any_mixture_is_answered_once_and_right(
        style in prop_oneof![Just(Style::Simple), Just(Style::Structured), Just(Style::Extended)],
        requests in prop::collection::vec(mixed(), 1..6),
        cuts in prop::collection::vec(1usize..3 << 20, 1..9),
        order in prop::collection::vec(any::<usize>(), 1..9),
        tight in any::<bool>(),
        crowds in prop::collection::vec(any::<bool>(), 1..9),
    ) {
        let mut bench = bench(style);
        let (mut script, mut asked) = (Vec::new(), BTreeMap::new());
        for (cookie, &(command, unbroken, length)) in (0u64..).zip(&requests) {
            let offset = cookie * (SIZE / 6) + cookie * 513 % 4096;
            let length = length.min(SIZE / 6 - 4096);
            let flags = if command == CMD_READ && unbroken && style != Style::Simple { CMD_FLAG_DF } else { 0 };
            let flags = flags | if command == CMD_WRITE && style == Style::Extended { CMD_FLAG_PAYLOAD_LEN } else { 0 };
            match style {
                Style::Extended => script.extend(RequestHead::encode_extended(flags, command, cookie, offset, length)),
                _ => script.extend(RequestHead::encode(flags, command, cookie, offset, length as u32)),
            }
            if command == CMD_WRITE {
                script.extend(pattern(offset, length));
            }
            asked.insert(cookie, (command, offset, length));
        }
        let tightest = Lanes { small: 16 << 10, short: 16 << 10, long: PIECE };
        let room = if tight { Share { bytes: tightest, own_long: u64::MAX, crowded: false } } else { Share::ALL };
        let (mut rest, mut cuts, mut order) = (&script[..], cuts.iter().cycle(), order.iter().cycle());
        let mut crowds = crowds.iter().cycle();
        let (mut open, mut disk) = (Vec::<Request>::new(), BTreeMap::<u64, u64>::new());
        loop {
            let Ways { read, write } = bench.session.inflight_bytes();
            let left = |held: Lanes<u64>| Share {
                bytes: Lanes {
                    small: room.bytes.small.saturating_sub(held.small),
                    short: room.bytes.short.saturating_sub(held.short),
                    long: room.bytes.long.saturating_sub(held.long),
                },
                own_long: u64::MAX,
                crowded: false,
            };
            let (read, write) = if tight { (left(read), left(write)) } else { (room, room) };
            let mut crowded = |share| Share { crowded: *crowds.next().unwrap(), ..share };
            bench.session.set_room(Ways { read: crowded(read), write: crowded(write) });
            let (now, later) = rest.split_at(if bench.session.blocked() { 0 } else { rest.len().min(*cuts.next().unwrap()) });
            bench.feed(now).unwrap();
            rest = later;
            open.extend(bench.requests());
            let Ways { read, write } = bench.session.inflight_bytes();
            prop_assert!(read.sum() + write.sum() <= CONNECTION_PAYLOAD_BYTES_MAX);
            prop_assert!(!tight || read.long <= PIECE && write.long <= PIECE);
            if !open.is_empty() {
                let Request { cookie, kind } = open.remove(order.next().unwrap() % open.len());
                let result = match kind {
                    Kind::Read { offset, length } => pattern(offset, u64::from(length)),
                    Kind::Write { offset, data, .. } => {
                        prop_assert!(data == pattern(offset, data.len() as u64));
                        prop_assert!(disk.insert(offset, data.len() as u64).is_none());
                        vec![]
                    }
                    _ => vec![],
                };
                bench.reply(cookie, Ok(result.into()));
            } else if rest.is_empty() && bench.session.inflight() == 0 && bench.rx.is_empty() {
                break;
            } else {
                prop_assert!(!now.is_empty() || !bench.session.blocked() || bench.session.wants().is_none(), "stuck");
            }
        }
        let heard = heard(style, &bench.sent, &asked);
        prop_assert_eq!(heard.len(), asked.len());
        for (cookie, (command, offset, length)) in asked {
            let expected = if command == CMD_READ { pattern(offset, length) } else { vec![] };
            prop_assert!(heard[&cookie] == (0, expected));
            let written: u64 = disk.range(offset..offset + length).map(|(_, bytes)| bytes).sum();
            prop_assert_eq!(written, if command == CMD_WRITE { length } else { 0 });
        }
        prop_assert_eq!(bench.session.inflight_bytes(), Held::default());
    }
}
