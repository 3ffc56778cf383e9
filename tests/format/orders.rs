//! Order records packed on the link: golden bytes, histories with jumps and breaks, lies about packing.

use farshore::core::ids::{Chain, Epoch, Seq, Volume};
use farshore::core::op::Op;
use farshore::format::FormatError;
use farshore::format::record::{FLAG_FUA, FLAG_NO_HOLE, OrderRecord};
use farshore::format::wire::{FRAME_HEADER_BYTES, Message, decode, orders_frame_bytes};
use farshore::limits::COMMIT_RECORDS_MAX;
use proptest::prelude::*;

use crate::hex;
use crate::wire::{LINK, bytes_of, forged, rope_of};

const TIME_NS: u64 = 1_700_000_000_000_000_000;
/// Mask of a packed record that says "in full".
const FULL: u8 = 0xc0;

fn first() -> OrderRecord {
    OrderRecord {
        seq: Seq(7),
        epoch: Epoch(3),
        volume: Volume(0),
        op: Op::Write,
        flags: 0,
        offset: 1 << 30,
        length: 4096,
        time_ns: TIME_NS,
        chain: Chain(0xabc),
        payload_crc: 0x0102_0304,
    }
}

/// What follows `previous` in an unbroken history, changed by `change`.
fn after(previous: &OrderRecord, change: impl FnOnce(&mut OrderRecord)) -> OrderRecord {
    let mut record = OrderRecord { seq: Seq(previous.seq.0.wrapping_add(1)), ..*previous };
    change(&mut record);
    record.chained(previous.chain)
}

/// A history with every kind of difference: packed, by a jump in full, by a broken chain in full.
fn history() -> Vec<OrderRecord> {
    let mut records = vec![first()];
    let mut then = |change: &dyn Fn(&mut OrderRecord)| {
        let record = after(records.last().expect("not empty"), change);
        records.push(record);
    };
    then(&|r| (r.offset, r.time_ns, r.payload_crc) = (r.offset + 4096, TIME_NS + 1000, 0x0506_0708));
    then(&|r| (r.offset, r.flags, r.payload_crc) = (512, FLAG_FUA, 0));
    then(&|r| {
        (r.op, r.volume, r.flags) = (Op::WriteZeroes, Volume(258), FLAG_NO_HOLE);
        (r.offset, r.length, r.time_ns) = (1, u32::MAX.into(), TIME_NS + 999);
    });
    then(&|r| {
        (r.seq, r.op, r.epoch, r.volume, r.flags) = (Seq(1000), Op::EpochStart, Epoch(4), Volume(0), 0);
        (r.offset, r.length, r.time_ns) = (10, 0, TIME_NS + 2000);
    });
    then(&|r| (r.op, r.epoch, r.payload_crc, r.time_ns) = (Op::Mark, Epoch(5), 9, TIME_NS + 2127));
    then(&|r| {
        (r.op, r.payload_crc) = (Op::Trim, 0);
        (r.offset, r.length, r.time_ns) = (u64::MAX - 501, u64::MAX, 0);
    });
    records[6].chain = Chain(6);
    let last = after(&records[6], |r| (r.offset, r.length, r.time_ns) = (0, 127, u64::MAX));
    records.push(last);
    records
}

const GOLDEN: &str = "4653484c08040000090100000000000006ffabfb0000000000000000e4718a1707000000000000000300000000000100\
                      0000004000000000001000000000000000002a36fe9c9717bc0a000000000000040302010000000000000000f6d795fe\
                      a00807060502e80748018d808002001e02010202ffffffff0ffd07ffffffffffffffffff01c0e8030000000000000400\
                      0000000007000a000000000000000000000000000000d0072a36fe9c971737dfd64642630c0500000000000000000000\
                      0000f52ed454a5050000000409000000007fc0ea0300000000000005000000000003000afeffffffffffffffffffffff\
                      ffffff00000000000000000600000000000000000000000000000000000000d0ea2691107fec07ffffffffffffffffff\
                      01f4bb5d25501c60ac";

/// Decodes a body under valid checksums.
fn read(body: &[u8]) -> Result<Vec<OrderRecord>, FormatError> {
    match decode(&mut rope_of(&forged(LINK, 4, body.len() as u32, 0, body)))? {
        Some(Message::Orders(records)) => Ok(records),
        other => panic!("a whole frame of orders became {other:?}"),
    }
}

fn body_of(records: &[OrderRecord]) -> Vec<u8> {
    bytes_of(&Message::Orders(records.to_vec()))[FRAME_HEADER_BYTES..].to_vec()
}

#[test]
fn packed_orders_have_their_golden_bytes() {
    let (message, golden) = (Message::Orders(history()), hex(GOLDEN));
    assert!(bytes_of(&message) == golden, "{:02x?}", bytes_of(&message));
    assert_eq!(orders_frame_bytes(&history()), golden.len());
    assert_eq!(decode(&mut rope_of(&golden)), Ok(Some(message)));
    for length in 0..golden.len() {
        assert_eq!(decode(&mut rope_of(&golden[..length])), Ok(None), "cut to {length} bytes");
    }
    let mut bytes = golden;
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&mut rope_of(&bytes)).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn a_body_cut_short_or_grown_under_valid_checksums_is_refused() {
    let body = body_of(&history());
    assert_eq!(read(&body), Ok(history()));
    for length in 0..body.len() {
        match length {
            0 => assert_eq!(read(&[]), Ok(vec![])),
            64 => assert_eq!(read(&body[..64]), Ok(vec![first()])),
            _ => assert!(read(&body[..length]).is_err(), "cut to {length} bytes"),
        }
    }
    for byte in 0..=255 {
        assert!(read(&[&body[..], &[byte]].concat()).is_err(), "grown by {byte:#04x}");
    }
}

#[test]
fn random_writes_of_4_kib_take_less_than_24_bytes_each() {
    let mut state = 1_u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) % below
    };
    let mut records = vec![first()];
    for _ in 1..32 {
        let record = after(&records[records.len() - 1], |r| {
            // Anywhere on a volume of 4 TiB, up to a millisecond apart.
            (r.offset, r.payload_crc) = (random(1 << 30) * 4096, random(1 << 32) as u32);
            r.time_ns += random(1_000_000);
        });
        records.push(record);
    }
    let bytes = bytes_of(&Message::Orders(records.clone())).len();
    assert!(bytes < 24 * records.len(), "{bytes} bytes for {} records, header and all", records.len());
    assert_eq!(orders_frame_bytes(&records), bytes);
}

#[test]
fn the_size_of_long_lists_counts_every_frame() {
    let mut records = vec![first()];
    for count in [0, 1, 2, COMMIT_RECORDS_MAX, COMMIT_RECORDS_MAX + 1, 2 * COMMIT_RECORDS_MAX] {
        while records.len() < count {
            records.push(after(&records[records.len() - 1], |r| r.time_ns += 100));
        }
        let bytes = bytes_of(&Message::Orders(records[..count].to_vec())).len();
        assert_eq!(orders_frame_bytes(&records[..count]), bytes, "{count} records");
    }
    assert_eq!(orders_frame_bytes(&[first()]), FRAME_HEADER_BYTES + 64, "one alone is what it always was");
}

#[test]
fn more_records_than_a_commit_holds_are_refused() {
    let mut body = first().encode().to_vec();
    let mut last = first();
    for count in 2..=COMMIT_RECORDS_MAX + 1 {
        body.extend([0x80, 0, 0]);
        last = after(&last, |r| r.payload_crc = 0);
        let read = read(&[&body[..], &last.chain.0.to_le_bytes()].concat());
        assert_eq!(read.map(|records| records.len()).ok(), (count <= COMMIT_RECORDS_MAX).then_some(count));
    }
}

#[test]
fn lies_about_packing_are_refused() {
    let packed = |first: OrderRecord, change: fn(&mut OrderRecord), bytes: &str| {
        let chain = after(&first, change).chain.0.to_le_bytes();
        read(&[&first.encode()[..], &hex(bytes), &chain].concat())
    };
    fn plain_change(r: &mut OrderRecord) {
        (r.offset, r.payload_crc) = (r.offset + 4096, 0);
    }
    let plain: fn(&mut OrderRecord) = plain_change;
    assert_eq!(packed(first(), plain, "800200"), Ok(vec![first(), after(&first(), plain)]));
    let lies = [
        ("an offset with two zeroes to spare", "8082800000"),
        ("an offset with a zero to spare", "80820000"),
        ("a time with a zero to spare", "80028000"),
        ("a varint without end", "8002ffffffffffffffffffff01"),
        ("a varint of 65 bits", "8002ffffffffffffffffff02"),
        ("a varint that is cut off", "8002ff"),
        ("a smaller unit than fits", "401000"),
        ("the smallest unit", "00804000"),
        ("more units than there are bytes", "808280808080808080800100"),
        ("an epoch that is the same", "81030000000200"),
        ("a volume that is the same", "8200000200"),
        ("an op that is the same", "84010200"),
        ("flags that are the same", "88000200"),
        ("a length that is the same", "9080200200"),
        ("a checksum that is zero", "a0000000000200"),
        ("fields of a record in full", "c10200"),
        ("a record in full that is not there", "c00200"),
        ("an unknown op", "84080200"),
        ("op 0", "84000200"),
        ("unknown flags", "88040200"),
        ("a byte too many", "80020000"),
        ("a byte too few", "8002"),
        ("nothing", ""),
    ];
    for (name, bytes) in lies {
        assert!(
            matches!(packed(first(), plain, bytes), Err(FormatError::Field { .. } | FormatError::Checksum { .. })),
            "{name}"
        );
    }
    // The chain fits what is left of a varint whose highest bits are cut off.
    let later: fn(&mut OrderRecord) = |r| {
        plain_change(r);
        r.time_ns = r.time_ns.wrapping_add(u64::MAX >> 1);
    };
    assert!(packed(first(), later, "8002ffffffffffffffff7f").is_ok());
    assert!(packed(first(), later, "8002ffffffffffffffffff02").is_err(), "65 bits");
    let earlier: fn(&mut OrderRecord) = |r| {
        plain_change(r);
        r.time_ns -= 1;
    };
    assert!(packed(first(), earlier, "8002ffffffffffffffffff01").is_ok(), "64 bits");

    let at_the_end = OrderRecord { seq: Seq(u64::MAX), ..first() };
    assert!(packed(at_the_end, plain, "800200").is_err(), "no seq is left");

    // Where only the bits above the unit lie: 2^52 units of 4096 are no difference at all.
    let same: fn(&mut OrderRecord) = |r| r.payload_crc = 0;
    assert!(packed(first(), same, "800000").is_ok());
    assert!(packed(first(), same, "80808080808080801000").is_err(), "a difference that wraps to none");
}

#[test]
fn chains_that_differ_are_refused_and_broken_ones_are_kept() {
    let second = after(&first(), |r| r.offset += 4096);
    let mut body = body_of(&[first(), second]);
    assert!(body.len() < 128);
    *body.last_mut().expect("not empty") ^= 1;
    assert!(matches!(read(&body), Err(FormatError::Field { .. })), "the chain does not come out");

    let broken = OrderRecord { chain: Chain(second.chain.0 ^ 1), ..second };
    let body = body_of(&[first(), broken]);
    assert_eq!((body.len(), body[64]), (64 + 65 + 8, FULL));
    assert_eq!(read(&body), Ok(vec![first(), broken]));
}

#[test]
fn a_record_in_full_may_stand_anywhere_and_is_verified() {
    let second = after(&first(), |r| r.offset += 4096);
    let chain = second.chain.0.to_le_bytes();
    let body = [&first().encode()[..], &[FULL], &second.encode(), &chain].concat();
    assert_eq!(read(&body), Ok(vec![first(), second]));
    for bit in 0..128 * 8 + 8 {
        let mut body = body.clone();
        body[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&body).is_err(), "bit {bit}");
    }
    let alone = [&first().encode()[..], &first().chain.0.to_le_bytes()].concat();
    assert!(read(&alone).is_err(), "there is one way to send a record alone");
}

/// A number of any size, small ones and the ends as likely as others.
fn number() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0u32..64, any::<bool>()).prop_map(|(value, shift, high)| {
        let small = value >> shift;
        if high { u64::MAX - small } else { small }
    })
}

/// What a record does to the one before it; `None` leaves a field as it is.
#[derive(Clone, Debug)]
struct Step {
    /// A jump in the seqs, or a chain that is not what it has to be.
    seq: Option<u64>,
    chain: Option<u64>,
    op: Option<Op>,
    flags: u8,
    /// Epoch, volume, length, checksum.
    rest: [Option<u64>; 4],
    /// Difference of the offset, shifted left so that any unit may fit; difference of the time.
    offset: u64,
    shift: u32,
    time_ns: u64,
}

impl Step {
    fn take(&self, previous: &OrderRecord) -> OrderRecord {
        let [epoch, volume, length, payload_crc] = self.rest;
        let record = OrderRecord {
            seq: Seq(self.seq.unwrap_or(previous.seq.0.wrapping_add(1)).max(1)),
            epoch: epoch.map_or(previous.epoch, |epoch| Epoch(epoch as u32)),
            volume: volume.map_or(previous.volume, |volume| Volume(volume as u16)),
            op: self.op.unwrap_or(previous.op),
            flags: self.flags,
            offset: previous.offset.wrapping_add(self.offset << self.shift),
            length: length.unwrap_or(previous.length),
            time_ns: previous.time_ns.wrapping_add(self.time_ns),
            chain: Chain(0),
            payload_crc: payload_crc.unwrap_or(0) as u32,
        };
        let chained = record.chained(previous.chain);
        OrderRecord { chain: self.chain.map_or(chained.chain, Chain), ..chained }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let maybe = |likely| prop::option::weighted(likely, number());
    let rest = (maybe(0.1), maybe(0.2), maybe(0.3), maybe(0.7)).prop_map(|(a, b, c, d)| [a, b, c, d]);
    let op = prop::option::weighted(0.2, (1u8..=8).prop_map(|raw| Op::from_u8(raw).expect("there are eight")));
    (maybe(0.05), maybe(0.05), op, 0u8..4, rest, number(), 0u32..16, number()).prop_map(
        |(seq, chain, op, flags, rest, offset, shift, time_ns)| Step {
            seq,
            chain,
            op,
            flags,
            rest,
            offset,
            shift,
            time_ns,
        },
    )
}

fn any_history() -> impl Strategy<Value = Vec<OrderRecord>> {
    (step(), prop::collection::vec(step(), 0..60)).prop_map(|(start, steps)| {
        let mut records = vec![start.take(&first())];
        for step in steps {
            records.push(step.take(records.last().expect("not empty")));
        }
        records
    })
}

proptest! {
    #[test]
    fn histories_come_back_exactly(records in any_history()) {
        let bytes = bytes_of(&Message::Orders(records.clone()));
        prop_assert_eq!(orders_frame_bytes(&records), bytes.len());
        prop_assert!(bytes.len() <= FRAME_HEADER_BYTES + 65 * records.len() + 7, "packing never costs more");
        prop_assert_eq!(decode(&mut rope_of(&bytes)), Ok(Some(Message::Orders(records))));
    }

    #[test]
    fn what_is_accepted_is_what_the_encoder_makes(
        records in any_history(), cut in any::<prop::sample::Index>(), tail in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut body = body_of(&records);
        let at = cut.index(body.len());
        body.splice(at..(at + tail.len()).min(body.len()), tail);
        if let Ok(read) = read(&body) {
            let again = body_of(&read);
            prop_assert!(again == body || again.len() < body.len(), "only a needless record in full is another way");
        }
    }

    #[test]
    fn any_packed_bytes_are_read_or_refused(
        mask in any::<u8>(), tail in prop::collection::vec(any::<u8>(), 0..60), seq in number(),
    ) {
        let start = OrderRecord { seq: Seq(seq.max(1)), ..first() };
        let _ = read(&[&start.encode()[..], &[mask], &tail].concat());
        let _ = read(&tail);
    }
}
