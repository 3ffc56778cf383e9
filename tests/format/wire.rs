//! The link's frames: golden bytes, flips, cuts, splits, lies about lengths.

use bytes::Bytes;
use farshore::core::ids::{Chain, Epoch, Extent, GroupId, Owner, Seq, SeqRange, Volume};
use farshore::core::op::Op;
use farshore::core::rope::Rope;
use farshore::format::FormatError;
use farshore::format::record::OrderRecord;
use farshore::format::wire::{
    CHUNK_HEAD_BYTES, Compare, Encoder, Hello, JournalRoom, Message, PAYLOAD_HEAD_BYTES, Patch, Purpose, Refuse,
    RefuseCode, StoreRoom, Verdict, Welcome, decode, encode,
};
use farshore::limits::{
    CHUNK_BYTES_MAX, COMMIT_RECORDS_MAX, COMPARE_BYTES_MAX, COMPARE_PARTS_MAX, LIST_ITEMS_MAX, NAME_BYTES_MAX,
    REFUSE_TEXT_BYTES_MAX, VOLUME_BYTES_MAX, VOLUMES_MAX,
};
use proptest::prelude::*;

use crate::{DATA, hex, write_record, zeroes_record};

fn range(first: u64, last: u64) -> SeqRange {
    SeqRange { first: Seq(first), last: Seq(last) }
}

/// A write whose payload `bytes` are.
fn write_record_of(bytes: &[u8]) -> OrderRecord {
    OrderRecord { length: bytes.len() as u64, payload_crc: crc32fast::hash(bytes), ..write_record() }
}

/// One message of each kind and its bytes.
pub(crate) fn golden() -> Vec<(Message, &'static str)> {
    vec![
        (
            Message::Hello(Hello {
                purpose: Purpose::Stream,
                group: GroupId(0x2002),
                group_name: "group".into(),
                epoch: Epoch(7),
                owner: Owner(0x3003),
                incarnation: 0x4004,
                volumes: vec![("a".into(), 4096), ("bc".into(), 1 << 62)],
                tail: Seq(0x5005),
            }),
            "4653484c080100004800000000000000538289a500000000000000004a5a8e6b02000000070000000220000000000000\
             033000000000000004400000000000000550000000000000050067726f75700200010061001000000000000002006263\
             0000000000000040",
        ),
        (
            Message::Welcome(Welcome {
                group: GroupId(0x2002),
                epoch: Epoch(7),
                owner: Owner(0x3003),
                journal_seq: Seq(1),
                journal_chain: Chain(2),
                cut: Seq(3),
                applied: Seq(4),
                synced: true,
                blank: true,
                gaps: true,
                led_past: false,
                batch: Seq(5),
                have: vec![range(1, 2), range(4, 4)],
                window_bytes: 6,
                spool_bytes: 9,
                room: JournalRoom { upto: Seq(7), records: 8 },
            }),
            "4653484c080200008800000000000000ca92ed540000000000000000d88c634502200000000000000700000007000000\
             033000000000000001000000000000000200000000000000030000000000000004000000000000000500000000000000\
             060000000000000009000000000000000700000000000000080000000000000002000000000000000100000000000000\
             020000000000000004000000000000000400000000000000",
        ),
        (
            Message::Refuse(Refuse { code: RefuseCode::Fenced, epoch: Epoch(8), text: "fenced".into() }),
            "4653484c0803000010000000000000004e5b524900000000000000004f68ab530300000008000000060066656e636564",
        ),
        (
            Message::Orders(vec![write_record(), zeroes_record()]),
            "4653484c080400008900000000000000baf2411b0000000000000000a1f41f0b08070605040302011413121122210101\
             383736353433323108000000000000005857565554535251686766656463626183da373b00000000000000006d0f3be2\
             c00900000000000000020000000100020200100000000000000020000000000000070000000000000005000000000000\
             000000000000000000000000006fc860b90500000000000000",
        ),
        (
            Message::OrdersDurable { journal_seq: Seq(0x1234) },
            "4653484c080500000800000000000000090fe49400000000000000006bca40293412000000000000",
        ),
        (
            Message::Payload { record: write_record(), data: Bytes::from_static(DATA) },
            "4653484c0806000040000000080000001cdf44210000000000000000e9e7dab408070605040302011413121122210101\
             383736353433323108000000000000005857565554535251686766656463626183da373b00000000000000006d0f3be2\
             66617273686f7265",
        ),
        (
            Message::Copied { ranges: vec![range(1, 3)] },
            "4653484c08070000180000000000000075390302000000000000000031d23ea901000000000000000100000000000000\
             0300000000000000",
        ),
        (
            Message::Chunk { index: 7, record: zeroes_record(), data: Bytes::new() },
            "4653484c08080000480000000000000016b1d9a700000000000000008bb0ee7e07000000000000000900000000000000\
             020000000100020200100000000000000020000000000000070000000000000005000000000000000000000000000000\
             000000006fc860b9",
        ),
        (
            Message::ChunksDurable { batch: Seq(9), indexes: vec![0, 5] },
            "4653484c08090000200000000000000038a61f9a00000000000000003dfc508b09000000000000000200000000000000\
             00000000000000000500000000000000",
        ),
        (
            Message::Need { ranges: vec![range(2, 2), range(5, 6)] },
            "4653484c080a00002800000000000000f50adc310000000000000000504b7ba002000000000000000200000000000000\
             020000000000000005000000000000000600000000000000",
        ),
        (
            Message::Progress {
                cut: Seq(1),
                applied: Seq(2),
                synced: true,
                spool_bytes: 3,
                window_bytes: 4,
                room: JournalRoom { upto: Seq(5), records: 6 },
            },
            "4653484c080b0000380000000000000032741bd300000000000000007efe05dd01000000000000000200000000000000\
             03000000000000000400000000000000010000000000000005000000000000000600000000000000",
        ),
        (
            Message::Ping { nonce: 0x77 },
            "4653484c080c00000800000000000000e047b7c30000000000000000beb32d4f7700000000000000",
        ),
        (
            Message::Pong { nonce: 0x78 },
            "4653484c080d000008000000000000004c55971a00000000000000004b29c1a87800000000000000",
        ),
        (
            Message::RoomAsked { volume: Volume(3), size: 0x4000 },
            "4653484c080e00001000000000000000de8a7881000000000000000000e7533103000000000000000040000000000000",
        ),
        (
            Message::StoreRoom(StoreRoom {
                volume: Volume(3),
                size: 0x4000,
                has: 0x1000,
                holds: true,
                text: "too small".into(),
            }),
            "4653484c080f0000230000000000000099f85c480000000000000000c418d44f03000100000000000040000000000000\
             00100000000000000900746f6f20736d616c6c",
        ),
        (
            Message::Compare(Compare {
                id: 9,
                extent: Extent { volume: Volume(3), offset: 0x40000, length: 0x1800 },
                seq: Seq(77),
                grain: 0x1000,
                digests: vec![0x1112_1314_1516_1718, 0x2122_2324_2526_2728],
            }),
            "4653484c08100000480000000000000003d3c6cd0000000000000000ab11cefc09000000000000000300000000000000\
             000004000000000000180000000000004d00000000000000001000000000000002000000000000001817161514131211\
             2827262524232221",
        ),
        (
            Message::Compared { id: 9, verdict: Verdict::Found { different: 5 } },
            "4653484c081100001a000000000000005dfef1fb00000000000000001bed0b3709000000000000000000000000000000\
             05000000000000000000",
        ),
        (
            Message::Compared { id: 9, verdict: Verdict::Passed },
            "4653484c081100001a00000000000000f8838af20000000000000000d3f9e24009000000000000000100000000000000\
             00000000000000000000",
        ),
        (
            Message::Compared { id: 9, verdict: Verdict::Unreadable { text: "EIO: disk".into() } },
            "4653484c081100002300000000000000327af2f30000000000000000be579cf809000000000000000200000000000000\
             0000000000000000090045494f3a206469736b",
        ),
        (
            Message::Patch(Patch::new(5, write_record_of(&[9; 4098]), &Bytes::from(vec![9; 4098]), 2)),
            "4653484c08120000780000000200000022644967000000000000000066ba62ff05000000000000000807060504030201\
             141312112221010138373635343332310210000000000000585756555453525168676665646362614f540ced00000000\
             00000000179fc6ab001000000000000002000000000000001211c7e90000000001000000000000005287b92cfcdca845\
             328f13390fcddc020909",
        ),
        (
            Message::Wanted { batch: Seq(9), index: 5, parts: 3 },
            "4653484c0813000018000000000000004c493f040000000000000000b4b067de09000000000000000500000000000000\
             0300000000000000",
        ),
    ]
}

pub(crate) fn bytes_of(message: &Message) -> Vec<u8> {
    let mut parts = Vec::new();
    encode(message, &mut parts);
    parts.concat()
}

pub(crate) fn rope_of(bytes: &[u8]) -> Rope {
    let mut rope = Rope::new();
    rope.push(Bytes::copy_from_slice(bytes));
    rope
}

#[test]
fn messages_have_their_golden_bytes() {
    for (message, golden) in golden() {
        let name = message.kind_name();
        let golden = hex(golden);
        assert!(bytes_of(&message) == golden, "{name}: {:02x?}", bytes_of(&message));
        let mut rope = rope_of(&golden);
        assert_eq!(decode(&mut rope), Ok(Some(message)), "{name}");
        assert!(rope.is_empty(), "{name} is taken whole");
        for length in 0..golden.len() {
            assert_eq!(decode(&mut rope_of(&golden[..length])), Ok(None), "{name} cut to {length} bytes");
        }
    }
}

#[test]
fn every_single_bit_flip_is_detected() {
    for (message, golden) in golden() {
        let mut bytes = hex(golden);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&mut rope_of(&bytes)).is_err(), "{}: bit {bit}", message.kind_name());
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn data_is_never_copied() {
    let data = Bytes::from(vec![9; 1 << 20]);
    let record = OrderRecord { length: data.len() as u64, payload_crc: crc32fast::hash(&data), ..write_record() };
    let mut parts = Vec::new();
    encode(&Message::Payload { record, data: data.clone() }, &mut parts);
    assert_eq!((parts.len(), parts[0].len()), (2, PAYLOAD_HEAD_BYTES));
    assert_eq!(parts[1].as_ptr(), data.as_ptr());
    let mut rope = Rope::new();
    parts.into_iter().for_each(|part| rope.push(part));
    let Ok(Some(Message::Payload { data: received, .. })) = decode(&mut rope) else { panic!("a payload") };
    assert_eq!(received.as_ptr(), data.as_ptr());

    let mut parts = Vec::new();
    encode(&Message::Chunk { index: 0, record, data }, &mut parts);
    assert_eq!(parts[0].len(), CHUNK_HEAD_BYTES);
}

#[test]
fn small_messages_come_out_as_one_piece() {
    let mut encoder = Encoder::new();
    let mut parts = Vec::new();
    for (message, _) in golden() {
        encoder.push(&message, &mut parts);
    }
    encoder.flush(&mut parts);
    encoder.flush(&mut parts);
    assert_eq!(parts.len(), 5, "what is before each of the two messages with data, its data, what is after them");
    let mut rope = Rope::new();
    parts.into_iter().for_each(|part| rope.push(part));
    for (message, _) in golden() {
        assert_eq!(decode(&mut rope), Ok(Some(message)));
    }
    assert_eq!(decode(&mut rope), Ok(None));
}

#[test]
fn long_lists_go_out_as_several_messages() {
    let records = vec![write_record(); COMMIT_RECORDS_MAX + 1];
    let mut rope = rope_of(&bytes_of(&Message::Orders(records)));
    let mut lengths = Vec::new();
    while let Some(Message::Orders(records)) = decode(&mut rope).expect("intact") {
        lengths.push(records.len());
    }
    assert_eq!(lengths, [COMMIT_RECORDS_MAX, 1]);

    let indexes = (0..2 * LIST_ITEMS_MAX as u64).collect();
    let mut rope = rope_of(&bytes_of(&Message::ChunksDurable { batch: Seq(3), indexes }));
    for part in 0..2 {
        let Ok(Some(Message::ChunksDurable { batch, indexes })) = decode(&mut rope) else { panic!("part {part}") };
        assert_eq!((batch, indexes.len(), indexes[0]), (Seq(3), LIST_ITEMS_MAX, part * LIST_ITEMS_MAX as u64));
    }

    let (Message::Welcome(mut welcome), _) = golden().swap_remove(1) else { panic!("the welcome") };
    welcome.have = vec![range(1, 1); LIST_ITEMS_MAX + 1];
    let Ok(Some(Message::Welcome(read))) = decode(&mut rope_of(&bytes_of(&Message::Welcome(welcome)))) else {
        panic!("a welcome")
    };
    assert_eq!(read.have.len(), LIST_ITEMS_MAX, "what is cut off is sent again, which changes nothing");

    let text = "é".repeat(REFUSE_TEXT_BYTES_MAX);
    let refuse = Message::Refuse(Refuse { code: RefuseCode::Protocol, epoch: Epoch(0), text });
    let Ok(Some(Message::Refuse(read))) = decode(&mut rope_of(&bytes_of(&refuse))) else { panic!("a refusal") };
    assert_eq!(read.text, "é".repeat(REFUSE_TEXT_BYTES_MAX / 2));
}

/// The longest messages of the kinds whose length varies.
fn longest() -> Vec<Message> {
    let name = "n".repeat(NAME_BYTES_MAX);
    let (Message::Hello(hello), _) = golden().swap_remove(0) else { panic!("the hello") };
    let volumes = vec![(name.clone(), 4096); VOLUMES_MAX];
    let (Message::Welcome(welcome), _) = golden().swap_remove(1) else { panic!("the welcome") };
    let have: Vec<SeqRange> = (0..LIST_ITEMS_MAX as u64).map(|it| range(2 * it + 1, 2 * it + 1)).collect();
    let text = "x".repeat(REFUSE_TEXT_BYTES_MAX);
    let longest = vec![7; CHUNK_BYTES_MAX as usize];
    vec![
        Message::Hello(Hello { group_name: name, volumes, ..hello }),
        Message::Welcome(Welcome { have, ..welcome }),
        Message::Refuse(Refuse { code: RefuseCode::Protocol, epoch: Epoch(0), text: text.clone() }),
        Message::ChunksDurable { batch: Seq(3), indexes: (0..LIST_ITEMS_MAX as u64).collect() },
        Message::StoreRoom(StoreRoom { volume: Volume(1), holds: true, size: 1024, has: 512, text: text.clone() }),
        Message::Compare(Compare {
            id: 1,
            extent: Extent {
                volume: Volume(0),
                offset: VOLUME_BYTES_MAX - COMPARE_BYTES_MAX,
                length: COMPARE_BYTES_MAX,
            },
            seq: Seq(1),
            grain: COMPARE_BYTES_MAX / COMPARE_PARTS_MAX as u64,
            digests: vec![u64::MAX; COMPARE_PARTS_MAX],
        }),
        Message::Compared { id: 1, verdict: Verdict::Unreadable { text } },
        Message::Patch(Patch::new(u64::MAX, write_record_of(&longest), &longest.into(), 0)),
        Message::Wanted { batch: Seq(1), index: 1, parts: u64::MAX },
    ]
}

/// What a configuration allows is never refused at the other end: a bound that is one too small would cut a site off.
#[test]
fn the_longest_message_of_each_kind_is_read_as_it_was_written() {
    for message in longest() {
        let read = decode(&mut rope_of(&bytes_of(&message)));
        assert!(read == Ok(Some(message)), "{:?}", read.err());
    }
}

/// The primary decides by them whether a first sync, a copy of everything or nothing is needed.
#[test]
fn each_flag_of_a_welcome_is_read_by_itself() {
    for bits in 0..16u8 {
        let (Message::Welcome(welcome), _) = golden().swap_remove(1) else { panic!("the welcome") };
        let [synced, blank, gaps, led_past] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
        let message = Message::Welcome(Welcome { synced, blank, gaps, led_past, ..welcome });
        assert_eq!(decode(&mut rope_of(&bytes_of(&message))), Ok(Some(message)));
    }
}

/// What writes leave free for a batch grows with the status table, and never takes more than half of a small journal.
#[test]
fn of_a_small_journal_half_is_kept_free_at_the_most() {
    let kept = |records, slots| JournalRoom { upto: Seq(1), records }.kept(slots);
    assert_eq!([kept(10, 1024), kept(11, 1024), kept(0, 1024)], [5, 5, 0]);
    let whole = kept(u64::MAX, 1024);
    assert!(whole > 0 && kept(2 * whole, 1024) == whole && kept(2 * whole - 2, 1024) == whole - 1);
}

/// The version of the frames.
pub(crate) const LINK: u8 = 8;

/// A frame as a liar would make it: valid checksums over anything.
pub(crate) fn forged(version: u8, kind: u8, body_len: u32, data_len: u32, body: &[u8]) -> Vec<u8> {
    let mut out = b"FSHL".to_vec();
    out.extend([version, kind, 0, 0]);
    out.extend(body_len.to_le_bytes());
    out.extend(data_len.to_le_bytes());
    out.extend(crc32fast::hash(body).to_le_bytes());
    out.extend([0; 8]);
    out.extend(crc32fast::hash(&out).to_le_bytes());
    out.extend(body);
    out
}

#[test]
fn a_length_over_its_bound_is_refused_before_anything_waits_for_it() {
    for kind in 1..=19 {
        for (body_len, data_len) in [(u32::MAX, 0), (1 << 21, 0), (64, u32::MAX), (72, (32 << 20) + 1)] {
            let read = decode(&mut rope_of(&forged(LINK, kind, body_len, data_len, &[])));
            assert!(matches!(read, Err(FormatError::Field { .. })), "kind {kind}: {read:?}");
        }
    }
    assert!(decode(&mut rope_of(&forged(LINK, 12, 8, 1, &[0; 9]))).is_err(), "a ping has no data");
    let fixed = golden().into_iter().map(|(message, _)| message).filter(|it| matches!(it, Message::Chunk { .. }));
    for message in longest().into_iter().chain(fixed) {
        let bytes = bytes_of(&message);
        let body_len = u32::from_le_bytes(bytes[8..12].try_into().expect("four"));
        let head = |body_len| decode(&mut rope_of(&forged(LINK, bytes[5], body_len, 0, &[])));
        assert_eq!(head(body_len), Ok(None), "it may come");
        assert!(matches!(head(body_len + 1), Err(FormatError::Field { .. })), "kind {}", bytes[5]);
    }
}

#[test]
fn flags_and_reserved_bytes_of_a_frame_are_zero() {
    for at in [6, 7, 20, 27] {
        let mut bytes = forged(LINK, 12, 8, 0, &[0; 8]);
        bytes[at] = 1;
        let crc = crc32fast::hash(&bytes[..28]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        let read = decode(&mut rope_of(&bytes));
        assert!(matches!(read, Err(FormatError::Field { .. })), "byte {at}: {read:?}");
    }
}

#[test]
fn another_version_or_kind_is_named() {
    let ping = |version, kind| decode(&mut rope_of(&forged(version, kind, 8, 0, &[0; 8])));
    assert_eq!(ping(LINK + 1, 12), Err(FormatError::Version { what: "link frame", got: 9, want: 8 }));
    assert_eq!(ping(LINK - 1, 12), Err(FormatError::Version { what: "link frame", got: 7, want: 8 }));
    assert!(matches!(ping(LINK, 0), Err(FormatError::Field { .. })));
    assert!(matches!(ping(LINK, 18), Err(FormatError::Field { .. })));
    assert_eq!(ping(LINK, 12), Ok(Some(Message::Ping { nonce: 0 })));
    assert_eq!(decode(&mut rope_of(&[0; 32])), Err(FormatError::Magic { what: "link frame" }));
}

#[test]
fn nonsense_under_valid_checksums_is_refused() {
    let le = |values: &[u64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    let whole = |kind, body: &[u8]| decode(&mut rope_of(&forged(LINK, kind, body.len() as u32, 0, body)));
    let refused = |kind, body: &[u8]| assert!(whole(kind, body).is_err(), "kind {kind}: {body:?}");
    refused(7, &le(&[u32::MAX.into()]));
    refused(7, &le(&[1, 2, 1]));
    refused(7, &le(&[1, 0, 1]));
    refused(7, &le(&[1 << 32]));
    refused(7, &le(&[1, 1, 1, 1]));
    assert!(whole(7, &le(&[1, 1, 1])).is_ok());
    refused(9, &le(&[1, 2, 1]));
    assert!(whole(11, &le(&[1, 1, 1, 1, 1, 1, 1])).is_ok());
    refused(11, &le(&[1, 1, 1, 1, 2, 1, 1]));
    assert!(whole(14, &le(&[1, 512])).is_ok());
    refused(14, &le(&[1 << 16, 512]));
    let room = |word: u64, text: &[u8]| [&le(&[word, 1, 1])[..], &(text.len() as u16).to_le_bytes(), text].concat();
    assert!(whole(15, &room(1 << 16, b"no")).is_ok());
    refused(15, &room(1 << 17, b"no"));
    refused(15, &room(0, b"\xff"));
    let compare = |word: u64, offset: u64, length: u64, grain: u64, count: u64| {
        [le(&[1, word, offset, length, 1, grain, count]), vec![0; count as usize * 8]].concat()
    };
    assert!(whole(16, &compare(1, 0, 4097, 4096, 2)).is_ok());
    for body in [
        compare(1 << 16, 0, 4096, 4096, 1),
        compare(0, 0, 4096, 4096, 2),
        compare(0, 0, 4096, 0, 1),
        compare(0, 0, 4096, 0, 0),
        compare(0, 0, 0, 4096, 1),
        compare(0, 0, COMPARE_BYTES_MAX + 1, COMPARE_BYTES_MAX, 2),
        compare(0, VOLUME_BYTES_MAX - 4095, 4096, 4096, 1),
        compare(0, u64::MAX, 4096, 4096, 1),
    ] {
        refused(16, &body);
    }
    for (word, different, text, sound) in [
        (0, 5, "", true),
        (0, 0, "no", false),
        (1, 0, "", true),
        (1, 1, "", false),
        (2, 1, "", false),
        (3, 0, "", false),
    ] {
        let body = [&le(&[1, word, different])[..], &(text.len() as u16).to_le_bytes(), text.as_bytes()].concat();
        assert_eq!(whole(17, &body).is_ok(), sound, "{word} {different} {text}");
    }
    // Parts that do not make up the piece: of 8192 bytes, two parts of 4096 each.
    let patch = |length: u64, grain: u64, carried: u64, reserved: u64, digests: u64, op: Op| {
        let record = OrderRecord { op, length, ..write_record() };
        let crc = u64::from(crc32fast::hash(&[])) | reserved << 32;
        let fields = [&le(&[1])[..], &record.encode(), &le(&[grain, carried, crc, digests])];
        [fields.concat(), vec![0; digests as usize * 16]].concat()
    };
    assert!(whole(18, &patch(8192, 4096, 0, 0, 2, Op::Write)).is_ok());
    for body in [
        patch(8192, 4096, 0, 0, 1, Op::Write),
        patch(8192, 4096, 0, 0, 3, Op::Write),
        patch(8192, 4096, 1, 0, 1, Op::Write),
        patch(8192, 4096, 4, 0, 1, Op::Write),
        patch(8192, 0, 0, 0, 0, Op::Write),
        patch(8192, u64::MAX, 1, 0, 0, Op::Write),
        patch(8192, 100, 0, 0, 64, Op::Write),
        patch(8192, 4096, 0, 1, 2, Op::Write),
        patch(0, 4096, 0, 0, 0, Op::Write),
        patch(8192, 4096, 0, 0, 2, Op::WriteZeroes),
        patch(2 << 20, 1 << 20, 0, 0, 2, Op::Write),
    ] {
        refused(18, &body);
    }
    assert!(whole(19, &le(&[1, 1, 1])).is_ok());
    refused(19, &le(&[1, 1, 0]));
    refused(4, &write_record().encode()[..63]);
    refused(6, &write_record().encode());
    refused(6, &zeroes_record().encode());
    refused(8, &[&[0; 8][..], &write_record().encode()].concat());
    refused(8, &[&[0; 8][..], &OrderRecord { op: Op::Trim, ..zeroes_record() }.encode()].concat());
    let (Message::Hello(hello), _) = golden().swap_remove(0) else { panic!("the hello") };
    let body = bytes_of(&Message::Hello(hello))[32..].to_vec();
    assert!(whole(1, &body).is_ok());
    for (at, value) in [(0, 3), (1, 1), (40, 65), (40, 6), (42, 0xff), (47, 65), (47, 1), (59, 0x40), (71, 0x41)] {
        let mut body = body.clone();
        body[at] = value;
        refused(1, &body);
    }
    let mut body = bytes_of(&golden()[1].0)[32..].to_vec();
    assert!(whole(2, &body).is_ok());
    body[12] = 16;
    refused(2, &body);
    for (at, value) in [(0, 0), (0, 8), (2, 1), (8, 7)] {
        let mut body = bytes_of(&golden()[2].0)[32..].to_vec();
        body[at] = value;
        refused(3, &body);
    }
}

fn record(op: Op, payload: &[u8]) -> impl Strategy<Value = OrderRecord> + use<> {
    let (length, payload_crc) = (payload.len() as u64, crc32fast::hash(payload));
    (1u64.., any::<u32>(), any::<u16>(), 0u8..4, any::<u64>(), any::<u64>(), any::<u64>()).prop_map(
        move |(seq, epoch, volume, flags, offset, time_ns, chain)| OrderRecord {
            seq: Seq(seq),
            epoch: Epoch(epoch),
            volume: Volume(volume),
            op,
            flags,
            offset,
            length,
            time_ns,
            chain: Chain(chain),
            payload_crc,
        },
    )
}

fn ranges() -> impl Strategy<Value = Vec<SeqRange>> {
    prop::collection::vec((1u64.., any::<u64>()).prop_map(|(a, b)| range(a.min(b.max(1)), a.max(b))), 0..20)
}

pub(crate) fn any_message() -> impl Strategy<Value = Message> {
    let data = prop::collection::vec(any::<u8>(), 0..3000);
    prop_oneof![
        any::<u64>().prop_map(|nonce| Message::Ping { nonce }),
        any::<u64>().prop_map(|nonce| Message::Pong { nonce }),
        ranges().prop_map(|ranges| Message::Copied { ranges }),
        ranges().prop_map(|ranges| Message::Need { ranges }),
        prop::collection::vec(record(Op::BatchEnd, b"x"), 0..100).prop_map(Message::Orders),
        (any::<u64>(), prop::collection::vec(any::<u64>(), 0..50))
            .prop_map(|(batch, indexes)| Message::ChunksDurable { batch: Seq(batch), indexes }),
        data.clone().prop_flat_map(|data| record(Op::Write, &data)
            .prop_map(move |record| Message::Payload { record, data: data.clone().into() })),
        (data, any::<u64>()).prop_flat_map(|(data, index)| record(Op::Write, &data)
            .prop_map(move |record| Message::Chunk { index, record, data: data.clone().into() })),
        (any::<u32>(), ".{0,40}").prop_map(|(epoch, text)| Message::Refuse(Refuse {
            code: RefuseCode::NotNow,
            epoch: Epoch(epoch),
            text
        })),
    ]
}

/// All that is read of bytes that come in pieces of these lengths, over and over; and what is left of them.
pub(crate) fn read_in_pieces<T>(
    bytes: &[u8],
    cuts: &[usize],
    mut next: impl FnMut(&mut Rope) -> Option<T>,
) -> (Vec<T>, Rope) {
    let (mut rope, mut read, mut rest) = (Rope::new(), Vec::new(), bytes);
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let (part, later) = rest.split_at(rest.len().min(*cuts.next().expect("a cycle has no end")));
        rope.push(Bytes::copy_from_slice(part));
        rest = later;
        read.extend(std::iter::from_fn(|| next(&mut rope)));
    }
    (read, rope)
}

proptest! {
    #[test]
    fn messages_survive_any_split(
        messages in prop::collection::vec(any_message(), 1..8),
        cuts in prop::collection::vec(1usize..700, 1..40),
    ) {
        let bytes: Vec<u8> = messages.iter().flat_map(bytes_of).collect();
        let (read, rope) = read_in_pieces(&bytes, &cuts, |rope| decode(rope).expect("intact"));
        prop_assert_eq!(read, messages);
        prop_assert!(rope.is_empty());
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic(
        kind in 0u8..21, body in prop::collection::vec(any::<u8>(), 0..400), data in 0u32..100,
    ) {
        let mut bytes = forged(LINK, kind, body.len() as u32, data, &body);
        bytes.extend(vec![0; data as usize]);
        let _ = decode(&mut rope_of(&bytes));
        let _ = decode(&mut rope_of(&body));
    }
}
