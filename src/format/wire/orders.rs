//! The body of an `orders` frame: each record packed against the one before it. Owns both directions.
//!
//! A write waits until its record has crossed, so these bytes are the price of the synchronous path. The
//! first record stands in full (64 bytes, its own checksum verified); each of the others begins with a byte:
//!
//! | bits | meaning |
//! |---|---|
//! | 0 | epoch, 4 bytes: differs from the record before |
//! | 1 | volume, 2 bytes: differs |
//! | 2 | op, 1 byte: differs |
//! | 3 | flags, 1 byte: differ |
//! | 4 | length, varint: differs |
//! | 5 | payload checksum, 4 bytes: is not 0 |
//! | 6, 7 | unit of the offset: 0 bytes, 1 of 512, 2 of 4096; 3 (all other bits 0): the record follows in full |
//!
//! Then, in that order, the fields whose bits are set; then the offset less the one before, signed, in its
//! unit (the largest that divides it), as zigzag varint; then the time less the one before, modulo 2^64, as
//! varint. A varint has seven bits a byte, the low ones first, and no byte that could be left out.
//!
//! Two fields never cross. The seq is the one before plus one, and the chain is recomputed from the chain
//! before: a record that jumps, or whose chain is not what it has to be, goes in full. The body ends with the
//! chain of the last record, 8 bytes: both sides prove by it that they mean the same history (I8). A record
//! that is alone has its chain in it and is 64 bytes, as it was; no records are an empty body.

use bytes::{BufMut, BytesMut};

use super::FRAME_HEADER_BYTES;
use super::decode::Reader;
use crate::core::ids::{Chain, Epoch, Seq, Volume};
use crate::core::op::Op;
use crate::format::FormatError;
use crate::format::record::{FLAGS_KNOWN, OrderRecord};
use crate::limits::{COMMIT_RECORDS_MAX, FRAME_BODY_BYTES_MAX, RECORD_BYTES};

/// Bytes of the longest body.
pub(super) const BODY_BYTES_MAX: usize = COMMIT_RECORDS_MAX * (1 + RECORD_BYTES) - 1 + CHAIN_BYTES;

const CHAIN_BYTES: usize = 8;
const VARINT_BYTES_MAX: usize = 10;
/// Every field there is: mask, epoch, volume, op, flags, checksum; length, offset and time.
const PACKED_BYTES_MAX: usize = 1 + 4 + 2 + 1 + 1 + 4 + 3 * VARINT_BYTES_MAX;
/// What a packed write of a busy volume takes: how many records a decoder makes room for at once.
const PACKED_BYTES_USUAL: usize = 12;

const EPOCH: u8 = 1;
const VOLUME: u8 = 1 << 1;
const OP: u8 = 1 << 2;
const FLAGS: u8 = 1 << 3;
const LENGTH: u8 = 1 << 4;
const CHECKSUM: u8 = 1 << 5;
const UNIT_AT: u32 = 6;
/// Bits of an offset that each unit leaves out.
const UNIT_BITS: [u32; 3] = [0, 9, 12];
const FULL: u8 = 3 << UNIT_AT;

const _: () = assert!(PACKED_BYTES_MAX < RECORD_BYTES, "packing never costs");
const _: () = assert!(BODY_BYTES_MAX <= FRAME_BODY_BYTES_MAX, "a commit of full records fits a frame");

/// Bytes that these records take on the link as `orders`: frames and all, as the encoder makes them.
#[must_use]
pub fn orders_frame_bytes(records: &[OrderRecord]) -> usize {
    let frames = records.len().div_ceil(COMMIT_RECORDS_MAX).max(1);
    let bodies = records.chunks(COMMIT_RECORDS_MAX).map(|part| {
        let packed = part.windows(2).map(|pair| match continues(&pair[1], &pair[0]) {
            true => pack_one(&pair[1], &pair[0], &mut [0; PACKED_BYTES_MAX]),
            false => 1 + RECORD_BYTES,
        });
        RECORD_BYTES + packed.sum::<usize>() + if part.len() > 1 { CHAIN_BYTES } else { 0 }
    });
    frames * FRAME_HEADER_BYTES + bodies.sum::<usize>()
}

/// Appends the body for at most [`COMMIT_RECORDS_MAX`] records.
pub(super) fn put_orders(body: &mut BytesMut, records: &[OrderRecord]) {
    assert!(records.len() <= COMMIT_RECORDS_MAX, "longer lists go out as several frames");
    let Some((mut previous, rest)) = records.split_first() else { return };
    body.put_slice(&previous.encode());
    for record in rest {
        if continues(record, previous) {
            let start = body.len();
            body.put_bytes(0, PACKED_BYTES_MAX);
            let taken = pack_one(record, previous, &mut body[start..]);
            body.truncate(start + taken);
        } else {
            body.put_u8(FULL);
            body.put_slice(&record.encode());
        }
        previous = record;
    }
    if !rest.is_empty() {
        body.put_u64_le(previous.chain.0);
    }
}

/// Reads a whole body. Whatever its bytes are: no panic, and no memory beyond what they pay for.
pub(super) fn orders(body: &mut Reader<'_>) -> Result<Vec<OrderRecord>, FormatError> {
    if body.rest.is_empty() {
        return Ok(Vec::new());
    }
    if body.rest.len() == RECORD_BYTES {
        return Ok(vec![body.record()?]);
    }
    let chain = body.last_u64()?;
    let first = body.record()?;
    if body.rest.is_empty() {
        return Err(body.wrong("a record that is alone is sent without its chain".into()));
    }
    let mut records = Vec::with_capacity(COMMIT_RECORDS_MAX.min(1 + body.rest.len().div_ceil(PACKED_BYTES_USUAL)));
    records.push(first);
    while !body.rest.is_empty() {
        if records.len() == COMMIT_RECORDS_MAX {
            return Err(body.wrong(format!("more than {COMMIT_RECORDS_MAX} records")));
        }
        unpack(body, &mut records)?;
    }
    match records.last() {
        Some(last) if last.chain.0 != chain => {
            Err(body.wrong(format!("the chain at seq {} is not the sender's", last.seq)))
        }
        _ => Ok(records),
    }
}

/// Whether the receiver can tell seq and chain of `record` from the record before it.
fn continues(record: &OrderRecord, previous: &OrderRecord) -> bool {
    previous.seq.0.checked_add(1) == Some(record.seq.0) && record.chain == record.chain_after(previous.chain)
}

/// The first byte of a packed record: there is one way only to pack it.
fn mask(record: &OrderRecord, previous: &OrderRecord) -> u8 {
    let bit = |set: bool, bit: u8| if set { bit } else { 0 };
    let unit = match record.offset.wrapping_sub(previous.offset).trailing_zeros() {
        0..9 => 0,
        9..12 => 1,
        _ => 2,
    };
    bit(record.epoch != previous.epoch, EPOCH)
        | bit(record.volume != previous.volume, VOLUME)
        | bit(record.op != previous.op, OP)
        | bit(record.flags != previous.flags, FLAGS)
        | bit(record.length != previous.length, LENGTH)
        | bit(record.payload_crc != 0, CHECKSUM)
        | unit << UNIT_AT
}

/// Packs a record into `out`, which has room for [`PACKED_BYTES_MAX`], and says how many bytes it took.
fn pack_one(record: &OrderRecord, previous: &OrderRecord, out: &mut [u8]) -> usize {
    let mask = mask(record, previous);
    let mut out = Packer { out, at: 0 };
    out.put([mask]);
    if mask & EPOCH != 0 {
        out.put(record.epoch.0.to_le_bytes());
    }
    if mask & VOLUME != 0 {
        out.put(record.volume.0.to_le_bytes());
    }
    if mask & OP != 0 {
        out.put([record.op as u8]);
    }
    if mask & FLAGS != 0 {
        out.put([record.flags]);
    }
    if mask & LENGTH != 0 {
        out.varint(record.length);
    }
    if mask & CHECKSUM != 0 {
        out.put(record.payload_crc.to_le_bytes());
    }
    let moved = record.offset.wrapping_sub(previous.offset).cast_signed();
    out.varint(zigzag(moved >> UNIT_BITS[usize::from(mask >> UNIT_AT)]));
    out.varint(record.time_ns.wrapping_sub(previous.time_ns));
    out.at
}

/// Fills a slice from front to back.
struct Packer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Packer<'_> {
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.out[self.at..self.at + N].copy_from_slice(&bytes);
        self.at += N;
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put([value as u8 | 0x80]);
            value >>= 7;
        }
        self.put([value as u8]);
    }
}

/// Appends the record that follows the last one. Fields are read into registers and the record is made where
/// it stays: to copy it around as it grows takes longer than to unpack it.
fn unpack(body: &mut Reader<'_>, records: &mut Vec<OrderRecord>) -> Result<(), FormatError> {
    let previous = records.last().expect("the first record stands in full");
    let sent = body.u8()?;
    if sent == FULL {
        records.push(body.record()?);
        return Ok(());
    }
    let Some(&unit) = UNIT_BITS.get(usize::from(sent >> UNIT_AT)) else {
        return Err(body.wrong(format!("unknown fields {sent:#04x}")));
    };
    let seq = Seq(previous.seq.0.checked_add(1).ok_or_else(|| body.wrong("no seq is left".into()))?);
    let epoch = if sent & EPOCH != 0 { Epoch(body.u32()?) } else { previous.epoch };
    let volume = if sent & VOLUME != 0 { Volume(body.u16()?) } else { previous.volume };
    let op = if sent & OP != 0 {
        let op = body.u8()?;
        Op::from_u8(op).ok_or_else(|| body.wrong(format!("unknown operation {op}")))?
    } else {
        previous.op
    };
    let flags = if sent & FLAGS != 0 { body.u8()? } else { previous.flags };
    if flags & !FLAGS_KNOWN != 0 {
        return Err(body.wrong(format!("unknown flags {flags:#04x}")));
    }
    let length = if sent & LENGTH != 0 { varint(body)? } else { previous.length };
    let payload_crc = if sent & CHECKSUM != 0 { body.u32()? } else { 0 };
    let units = unzigzag(varint(body)?);
    let moved = units << unit;
    let offset = previous.offset.wrapping_add(moved.cast_unsigned());
    let time_ns = previous.time_ns.wrapping_add(varint(body)?);
    let record = OrderRecord { seq, epoch, volume, op, flags, offset, length, time_ns, chain: Chain(0), payload_crc };
    if moved >> unit != units || mask(&record, previous) != sent {
        return Err(body.wrong(format!("seq {seq} is not packed as it has to be")));
    }
    let chain = record.chain_after(previous.chain);
    records.push(OrderRecord { chain, ..record });
    Ok(())
}

fn varint(body: &mut Reader<'_>) -> Result<u64, FormatError> {
    let mut value = 0;
    for (at, &byte) in body.rest.iter().take(VARINT_BYTES_MAX).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let (shorter, too_large) = (at > 0 && byte == 0, at == VARINT_BYTES_MAX - 1 && byte > 1);
            if shorter || too_large {
                break;
            }
            body.rest = &body.rest[at + 1..];
            return Ok(value);
        }
    }
    Err(body.wrong("a varint is cut off, too large or longer than it has to be".into()))
}

/// Small numbers of either sign to small numbers: 0, -1, 1, -2, … to 0, 1, 2, 3, …
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}
