//! Entries of the two logs that hold payloads: DR's spool and the primary's disk FIFO (and the payload
//! ring of a status table). A circular log of fixed size.
//!
//! An absolute position `pos` grows for ever; an entry stands at `pos % size`, never wraps (the writer
//! goes on at the start when it would, see [`place`]) and is aligned to 512. Entry = 128-byte header +
//! data, padded with zeroes to 512:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `FSHENTRY` |
//! | 8 | 2 | version |
//! | 10 | 1 | kind: payload, chunk |
//! | 11 | 5 | reserved |
//! | 16 | 8 | pos |
//! | 24 | 8 | index of the chunk in its batch, 0 for a payload |
//! | 32 | 64 | order record |
//! | 96 | 8 | bytes passed over before this entry, in a log that has nothing else between two entries; otherwise 0 |
//! | 104 | 20 | reserved |
//! | 124 | 4 | CRC-32 over the log's nonce and bytes 0..124 |
//! | 128 | | data: the record's payload, verified by the record's payload checksum |
//!
//! The nonce makes the bytes of any other log, or of this file's earlier life, no entry of this one; the
//! position does the same for the earlier rounds of this log. What was passed over tells a reader of the disk FIFO the
//! place where the writer went on at the start from one where an entry is damaged.

use bytes::Bytes;

use super::FormatError;
use super::layout::{array_at, put, put_u64, reserved_zero, u16_at, u32_at, u64_at};
use super::record::OrderRecord;
use crate::core::op::Op;
use crate::core::planted::{Bug, planted};
use crate::limits::{ENTRY_ALIGN_BYTES, PAYLOAD_BYTES_MAX, RECORD_BYTES};

/// Bytes of the header.
pub const ENTRY_HEADER_BYTES: usize = 128;

const WHAT: &str = "log entry";
const MAGIC: [u8; 8] = *b"FSHENTRY";
const VERSION: u16 = 1;
const RECORD_AT: usize = 32;
const SKIPPED_AT: usize = RECORD_AT + RECORD_BYTES;
const RESERVED_AT: usize = SKIPPED_AT + 8;
const CRC_AT: usize = ENTRY_HEADER_BYTES - 4;
static PADDING: [u8; ENTRY_ALIGN_BYTES as usize] = [0; ENTRY_ALIGN_BYTES as usize];

/// What an entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The payload of an order record.
    Payload = 1,
    /// A piece of a batch; without data when its record is `WriteZeroes`.
    Chunk = 2,
}

/// Header of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// Absolute position of this entry in its log.
    pub pos: u64,
    pub kind: Kind,
    /// Index of the chunk in its batch; 0 for a payload.
    pub index: u64,
    pub record: OrderRecord,
    /// Bytes between the end of the entry before and `pos`, where that entry would have wrapped; 0 in a log whose
    /// places are taken in any order.
    pub skipped: u64,
}

impl EntryHeader {
    /// The 128 bytes, for the log with this nonce.
    #[must_use]
    pub fn encode(&self, nonce: u64) -> [u8; ENTRY_HEADER_BYTES] {
        let mut out = [0; ENTRY_HEADER_BYTES];
        put(&mut out, 0, &MAGIC);
        put(&mut out, 8, &VERSION.to_le_bytes());
        out[10] = self.kind as u8;
        put_u64(&mut out, 16, self.pos);
        put_u64(&mut out, 24, self.index);
        put(&mut out, RECORD_AT, &self.record.encode());
        put_u64(&mut out, SKIPPED_AT, self.skipped);
        let crc = seeded_crc(nonce, &out[..CRC_AT]);
        put(&mut out, CRC_AT, &crc.to_le_bytes());
        out
    }

    /// Reads the first 128 bytes of an entry. The caller checks that `pos` is where it reads.
    ///
    /// Errors: everything that is not exactly what `encode` writes with this nonce.
    pub fn decode(bytes: &[u8], nonce: u64) -> Result<EntryHeader, FormatError> {
        let bytes: &[u8; ENTRY_HEADER_BYTES] = bytes.try_into().map_err(|_| FormatError::Length {
            what: WHAT,
            got: bytes.len(),
            want: ENTRY_HEADER_BYTES,
        })?;
        if array_at::<8>(bytes, 0) != MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        if seeded_crc(nonce, &bytes[..CRC_AT]) != u32_at(bytes, CRC_AT) {
            return Err(FormatError::Checksum { what: WHAT });
        }
        let version = u16_at(bytes, 8);
        if version != VERSION {
            return Err(FormatError::Version { what: WHAT, got: version, want: VERSION });
        }
        let field = |why: String| FormatError::Field { what: WHAT, why };
        let kind = match bytes[10] {
            1 => Kind::Payload,
            2 => Kind::Chunk,
            other => return Err(field(format!("unknown kind {other}"))),
        };
        reserved_zero(WHAT, &bytes[11..16])?;
        reserved_zero(WHAT, &bytes[RESERVED_AT..CRC_AT])?;
        let (pos, index) = (u64_at(bytes, 16), u64_at(bytes, 24));
        let record = OrderRecord::decode(&bytes[RECORD_AT..SKIPPED_AT])?;
        let skipped = u64_at(bytes, SKIPPED_AT);
        let op_fits = record.op == Op::Write || (kind == Kind::Chunk && record.op == Op::WriteZeroes);
        if !op_fits || record.payload_bytes() > u64::from(PAYLOAD_BYTES_MAX) {
            return Err(field(format!("{} of {} bytes has no place in it", record.op.word(), record.length)));
        }
        if !pos.is_multiple_of(ENTRY_ALIGN_BYTES) {
            return Err(field(format!("position {pos} is not a multiple of {ENTRY_ALIGN_BYTES}")));
        }
        if !skipped.is_multiple_of(ENTRY_ALIGN_BYTES) || skipped > pos {
            return Err(field(format!("{skipped} bytes before position {pos} cannot have been passed over")));
        }
        Ok(EntryHeader { pos, kind, index, record, skipped })
    }

    /// Bytes of data that follow the header.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.record.payload_bytes()
    }

    /// Bytes of the whole entry.
    #[must_use]
    pub fn entry_bytes(&self) -> u64 {
        entry_bytes(self.data_bytes())
    }

    /// Whether `data` is what the record says: the bytes between header and padding.
    pub fn verify_data(&self, data: &[u8]) -> Result<(), FormatError> {
        let want = usize::try_from(self.data_bytes()).unwrap_or(usize::MAX);
        if data.len() != want {
            return Err(FormatError::Length { what: "payload", got: data.len(), want });
        }
        if want > 0 && crc32fast::hash(data) != self.record.payload_crc {
            return Err(FormatError::Checksum { what: "payload" });
        }
        Ok(())
    }
}

/// Appends a whole entry to `parts`: header, the data itself (not copied), padding.
///
/// # Panics
/// When `data` is not as long as the record says.
pub fn encode_entry(header: &EntryHeader, nonce: u64, data: Bytes, parts: &mut Vec<Bytes>) {
    assert!(data.len() as u64 == header.data_bytes(), "an entry holds exactly its record's payload");
    let total = header.entry_bytes();
    let padding = total - ENTRY_HEADER_BYTES as u64 - data.len() as u64;
    parts.push(Bytes::copy_from_slice(&header.encode(nonce)));
    if !data.is_empty() {
        parts.push(data);
    }
    if padding > 0 {
        parts.push(Bytes::from_static(&PADDING[..usize::try_from(padding).expect("less than 512")]));
    }
}

/// Reads a whole entry: header, verified data (a slice of `bytes`), padding that is zero.
pub fn decode_entry(bytes: &Bytes, nonce: u64) -> Result<(EntryHeader, Bytes), FormatError> {
    let Some(head) = bytes.get(..ENTRY_HEADER_BYTES) else {
        return Err(FormatError::Length { what: WHAT, got: bytes.len(), want: ENTRY_HEADER_BYTES });
    };
    let header = EntryHeader::decode(head, nonce)?;
    let want = usize::try_from(header.entry_bytes()).unwrap_or(usize::MAX);
    if bytes.len() != want {
        return Err(FormatError::Length { what: WHAT, got: bytes.len(), want });
    }
    let end = ENTRY_HEADER_BYTES + usize::try_from(header.data_bytes()).unwrap_or(usize::MAX);
    let data = bytes.slice(ENTRY_HEADER_BYTES..end);
    if !planted(Bug::PayloadUnchecked) {
        header.verify_data(&data)?;
    }
    reserved_zero(WHAT, &bytes[end..])?;
    Ok((header, data))
}

/// Bytes that an entry with `data_len` bytes of data takes up in its log.
#[must_use]
pub const fn entry_bytes(data_len: u64) -> u64 {
    (ENTRY_HEADER_BYTES as u64 + data_len).next_multiple_of(ENTRY_ALIGN_BYTES)
}

/// Where an entry really starts when the log stands at `pos`: there, or at the next start of the log when
/// it would wrap.
///
/// # Panics
/// When the entry is longer than the log.
#[must_use]
pub const fn place(pos: u64, size: u64, entry_bytes: u64) -> u64 {
    assert!(entry_bytes <= size, "a log holds at least its longest entry");
    if pos % size + entry_bytes > size { pos.next_multiple_of(size) } else { pos }
}

/// Low bits of a DR spool's nonce that hold its size in MiB: a log is read only with the size it was written with.
const SIZE_BITS: u32 = 24;

/// Largest size of a log whose nonce tells its size, bytes (exclusive).
pub const SIZED_BYTES_MAX: u64 = 1 << (SIZE_BITS + 20);

/// A nonce that tells the size of its log, a whole number of MiB below [`SIZED_BYTES_MAX`].
#[must_use]
pub const fn sized_nonce(random: u64, log_bytes: u64) -> u64 {
    random << SIZE_BITS | log_bytes >> 20
}

/// The size, bytes, that [`sized_nonce`] put into a nonce.
#[must_use]
pub const fn nonce_bytes(nonce: u64) -> u64 {
    (nonce & ((1 << SIZE_BITS) - 1)) << 20
}

/// The nonce of the log that follows this one with another size: what is left of the old one is no entry of it.
#[must_use]
pub const fn resized_nonce(nonce: u64, log_bytes: u64) -> u64 {
    sized_nonce(nonce >> SIZE_BITS, log_bytes)
}

fn seeded_crc(nonce: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&nonce.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}
