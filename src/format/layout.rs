//! What every block format shares: magic, version, checksum, and reserved bytes that have to be zero.
//!
//! Owns no format of its own. A block that is rewritten in place keeps all of its fields and their
//! checksum within the first 512 bytes ([`Shape::sector`]): disks write a sector whole or not at all, so
//! such a block is never found half old and half new.

use super::{FormatError, is_zero};
use crate::limits::BLOCK_BYTES;

/// One block of a log or header.
pub type Block = [u8; BLOCK_BYTES];

/// The frame of one kind of block: where its fields end and its checksum stands.
pub(super) struct Shape {
    pub what: &'static str,
    pub magic: [u8; 8],
    pub version: u16,
    /// Fields stand in `first..used`; what surrounds them is reserved.
    pub first: usize,
    pub used: usize,
    /// CRC-32 over everything before it; everything after it is reserved.
    pub crc_at: usize,
}

impl Shape {
    /// A block whose fields, checksum included, fit the first sector.
    pub const fn sector(what: &'static str, magic: &[u8; 8], used: usize) -> Shape {
        assert!(used <= 508);
        Shape { what, magic: *magic, version: 1, first: 16, used, crc_at: 508 }
    }

    /// An empty block with magic and version.
    pub fn start(&self) -> Block {
        let mut out = [0; BLOCK_BYTES];
        put(&mut out, 0, &self.magic);
        put(&mut out, 8, &self.version.to_le_bytes());
        out
    }

    /// The block with its checksum.
    pub fn seal(&self, mut out: Block) -> Block {
        let crc = crc32fast::hash(&out[..self.crc_at]);
        put(&mut out, self.crc_at, &crc.to_le_bytes());
        out
    }

    /// Verifies everything but the fields' values.
    pub fn open<'a>(&self, bytes: &'a [u8]) -> Result<&'a Block, FormatError> {
        let what = self.what;
        let block: &Block =
            bytes.try_into().map_err(|_| FormatError::Length { what, got: bytes.len(), want: BLOCK_BYTES })?;
        if block[..8] != self.magic {
            return Err(FormatError::Magic { what });
        }
        if crc32fast::hash(&block[..self.crc_at]) != u32_at(block, self.crc_at) {
            return Err(FormatError::Checksum { what });
        }
        let version = u16_at(block, 8);
        if version != self.version {
            return Err(FormatError::Version { what, got: version, want: self.version });
        }
        for reserved in [10..self.first, self.used..self.crc_at, self.crc_at + 4..BLOCK_BYTES] {
            reserved_zero(what, &block[reserved])?;
        }
        Ok(block)
    }

    /// An error about one of the fields.
    pub fn field(&self, why: impl Into<String>) -> FormatError {
        FormatError::Field { what: self.what, why: why.into() }
    }
}

pub(super) fn reserved_zero(what: &'static str, bytes: &[u8]) -> Result<(), FormatError> {
    if is_zero(bytes) {
        return Ok(());
    }
    Err(FormatError::Field { what, why: "reserved bytes are not zero".into() })
}

pub(super) fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

pub(super) fn put_u64(out: &mut [u8], at: usize, value: u64) {
    put(out, at, &value.to_le_bytes());
}

pub(super) fn put_u32(out: &mut [u8], at: usize, value: u32) {
    put(out, at, &value.to_le_bytes());
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

pub(super) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes")
}
