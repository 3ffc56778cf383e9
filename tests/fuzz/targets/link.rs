//! The link: frames as a peer may send them, packed ones as well, and packed order records.

use bytes::Bytes;
use farshore::core::ids::{Chain, Seq};
use farshore::core::rope::Rope;
use farshore::format::record::OrderRecord;
use farshore::format::wire::{FRAME_HEADER_BYTES, Message, Packer, Unpacker, VERSION, decode, encode};
use farshore::limits::{CHUNK_BYTES_MAX, COMMIT_RECORDS_MAX, FRAME_BODY_BYTES_MAX, PAYLOAD_BYTES_MAX};

use super::{Input, Reached, Wanted};

pub const FRAMES_WANTED: Wanted = &[
    ("hello", 2),
    ("welcome", 1),
    ("refuse", 1),
    ("orders", 400),
    ("orders durable", 1),
    ("payload", 4),
    ("copied", 2),
    ("chunk", 2),
    ("chunks durable", 4),
    ("patch", 2),
    ("wanted", 30),
    ("need", 1),
    ("progress", 1),
    ("ping", 1),
    ("pong", 1),
    ("room asked", 4),
    ("store room", 1),
    ("compare", 2),
    ("compared", 3),
    ("packed", 20),
];
pub const ORDERS_WANTED: Wanted = &[("order", 2500), ("other history", 5), ("refusal", 60)];

const ORDERS: u8 = 4;
const PAYLOAD: u8 = 6;
const CHUNK: u8 = 8;
const PATCH: u8 = 18;
const PACKED: u8 = 20;

fn bytes_of(message: &Message) -> Vec<u8> {
    let mut parts = Vec::new();
    encode(message, &mut parts);
    parts.concat()
}

/// A frame with valid checksums around any body and data.
fn frame(kind: u8, body: &[u8], data: &[u8]) -> Vec<u8> {
    let mut out = [0; FRAME_HEADER_BYTES];
    out[..4].copy_from_slice(b"FSHL");
    out[4..6].copy_from_slice(&[VERSION, kind]);
    out[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
    out[12..16].copy_from_slice(&(data.len() as u32).to_le_bytes());
    out[16..20].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    let crc = crc32fast::hash(&out[..28]);
    out[28..32].copy_from_slice(&crc.to_le_bytes());
    [&out[..], body, data].concat()
}

/// Makes the record at `at` one that is accepted for `data`, if its other fields are.
fn mend(body: &mut [u8], at: usize, data: Option<&[u8]>) {
    let Some(record) = body.get_mut(at..at + 64) else { return };
    if let Some(data) = data {
        record[24..32].copy_from_slice(&(data.len() as u64).to_le_bytes());
        record[48..52].copy_from_slice(&crc32fast::hash(data).to_le_bytes());
    }
    let crc = crc32fast::hash(&record[..60]);
    record[60..64].copy_from_slice(&crc.to_le_bytes());
}

/// Each message that is read is written to the bytes it came as, and nothing waits for more than a frame can have.
pub fn frames(input: &[u8], reached: &mut Reached) {
    let mut input = Input::new(input);
    let mut packer = Packer::new().expect("there is memory");
    let mut stream = Vec::new();
    while !input.is_empty() {
        let kind = input.u8();
        if kind >= 0xf0 {
            let count = usize::from(input.u8());
            stream.extend_from_slice(input.bytes(count));
            continue;
        }
        let count = usize::from(input.u8());
        let mut body = input.bytes(count).to_vec();
        let (data, mended) = (input.u8(), input.u8());
        let data = input.bytes(usize::from(data)).to_vec();
        let at = if matches!(kind, CHUNK | PATCH) { 8 } else { 0 };
        if matches!(kind, ORDERS | PAYLOAD | CHUNK) && mended & 1 != 0 {
            mend(&mut body, at, (mended & 2 != 0).then_some(&data[..]));
        }
        if kind == PATCH && mended & 1 != 0 {
            mend(&mut body, at, None);
            if let Some(crc) = body.get_mut(88..92) {
                crc.copy_from_slice(&crc32fast::hash(&data).to_le_bytes());
            }
        }
        let mut start = stream.len();
        match (kind, mended & 3) {
            // Whatever was before it, all in one; or nonsense that is no damage.
            (PACKED, 1) => {
                stream = packer.pack(&[stream.clone().into()]).map_or(stream, |frames| frames.concat());
                start = 0;
            }
            (PACKED, 2) => {
                let body = [u32::from(input.u16()).to_le_bytes(), crc32fast::hash(&data).to_le_bytes()].concat();
                stream.extend_from_slice(&frame(kind, &body, &data));
            }
            _ => stream.extend_from_slice(&frame(kind, &body, &data)),
        }
        let length = stream.len() - start;
        if mended & 0x80 != 0 && length > 0 {
            stream[start + usize::from(mended >> 2) % length] ^= 1;
        }
    }
    let piece = 1 + stream.first().map_or(0, |&first| usize::from(first)) * 3;
    let (mut rope, mut unpacker, mut taken) = (Rope::new(), Unpacker::default(), 0);
    for piece in stream.chunks(piece) {
        rope.push(Bytes::copy_from_slice(piece));
        loop {
            let before = rope.len();
            match unpacker.next(&mut rope) {
                Ok(Some((message, packed))) => {
                    let length = before - rope.len();
                    if !packed {
                        assert_eq!(bytes_of(&message), &stream[taken..taken + length], "{message:?}");
                    }
                    check(&message);
                    taken += length;
                    reached.one(message.kind_name());
                    reached.when("packed", packed);
                }
                Ok(None) => {
                    assert_eq!(rope.len(), before, "what is not whole stays");
                    break;
                }
                Err(_) => return,
            }
        }
        assert!(rope.len() < FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX + PAYLOAD_BYTES_MAX as usize);
    }
}

/// What a receiver relies on.
fn check(message: &Message) {
    match message {
        Message::Payload { record, data } | Message::Chunk { record, data, .. } => {
            assert_eq!(data.len() as u64, record.payload_bytes());
            assert!(data.is_empty() || crc32fast::hash(data) == record.payload_crc, "damaged data was let through");
            assert!(matches!(message, Message::Payload { .. }) || data.len() <= CHUNK_BYTES_MAX as usize);
        }
        Message::Copied { ranges } | Message::Need { ranges } => {
            assert!(ranges.iter().all(|range| range.first.0 > 0 && range.first <= range.last));
        }
        Message::Orders(records) => assert!(records.len() <= COMMIT_RECORDS_MAX),
        _ => {}
    }
}

/// A history comes back as it was sent; one that was changed on the way, with checksums that match, is refused or
/// means what its bytes say.
pub fn orders(input: &[u8], reached: &mut Reached) {
    let mut input = Input::new(input);
    let changes = input.u8() % 4;
    let mut changed = Vec::new();
    for _ in 0..changes {
        changed.push((input.u16(), input.u8()));
    }
    let mut records: Vec<OrderRecord> = Vec::new();
    while !input.is_empty() && records.len() < COMMIT_RECORDS_MAX {
        let previous = records.last().map_or((Seq(0), Chain(9)), |last| (last.seq, last.chain));
        let mut record = input.record(previous);
        let more = input.u8();
        record.flags = more & 3;
        record.time_ns = if more & 4 == 0 { input.number() } else { u64::from(more) };
        record.volume.0 = u16::from(more >> 6);
        record.payload_crc = if more & 8 == 0 { 0 } else { u32::from(more) };
        let own = record.chain_after(previous.1);
        record.chain = if more & 0x30 == 0x30 { record.chain } else { own };
        records.push(record);
    }
    let sent = bytes_of(&Message::Orders(records.clone()));
    let read = |bytes: Vec<u8>| {
        decode(&mut {
            let mut rope = Rope::new();
            rope.push(bytes.into());
            rope
        })
    };
    assert_eq!(read(sent.clone()), Ok(Some(Message::Orders(records.clone()))), "a history comes back as it was sent");
    reached.many("order", records.len());
    let mut body = sent[FRAME_HEADER_BYTES..].to_vec();
    for (at, change) in changed {
        let length = body.len();
        match (length, change & 1) {
            (0, _) => {}
            (_, 0) => body[usize::from(at) % length] ^= change,
            _ => body.truncate(usize::from(at) % length),
        }
    }
    let again = frame(ORDERS, &body, &[]);
    match read(again.clone()) {
        Ok(Some(message @ Message::Orders(_))) => {
            check(&message);
            assert_eq!(bytes_of(&message), again, "there is one way only to pack a history");
            reached.when("other history", again != sent);
        }
        Ok(other) => panic!("orders became {other:?}"),
        Err(_) => reached.one("refusal"),
    }
}
