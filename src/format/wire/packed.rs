//! A `packed` frame: other frames, whole ones, compressed together by Zstandard (RFC 8878).
//!
//! Whoever reads the messages of a connection need not know: [`Unpacker`] gives the same ones, whatever came packed. Each
//! of them has its own checksums as ever; the packed bytes have one, too, so that what the decompressor sees was sent so.
//! Nothing is allocated beyond what a frame may hold, whatever it claims.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use zstd::bulk::{Compressor, Decompressor};

use super::decode::{head_of, taken};
use super::{FRAME_HEADER_BYTES, Kind, Message, encode};
use crate::core::rope::Rope;
use crate::format::FormatError;
use crate::limits::PACKED_BYTES_MAX;

/// Level of the compression: the fastest but one, of which more buys little on pages of files and databases.
const LEVEL: i32 = 1;
/// Of bytes that compress to more than so many of 16, the time of both sides is worth more.
const WORTH_OF_16: usize = 15;

/// Packs frames.
pub struct Packer(Compressor<'static>);

impl Packer {
    /// # Errors
    /// There is no memory for it.
    pub fn new() -> io::Result<Packer> {
        Compressor::new(LEVEL).map(Packer)
    }

    /// One frame for these whole ones; `None` when it would be hardly shorter, or they are more than one may hold.
    pub fn pack(&mut self, frames: &[Bytes]) -> Option<Vec<Bytes>> {
        let length: usize = frames.iter().map(Bytes::len).sum();
        if length == 0 || length > PACKED_BYTES_MAX {
            return None;
        }
        let mut whole = Vec::with_capacity(length);
        frames.iter().for_each(|part| whole.extend_from_slice(part));
        // What does not fit here is of no use.
        let mut packed = vec![0; length * WORTH_OF_16 / 16];
        let taken = self.0.compress_to_buffer(&whole, &mut packed).ok()?;
        packed.truncate(taken);
        packed.shrink_to_fit();
        let mut head = BytesMut::with_capacity(FRAME_HEADER_BYTES + 8);
        encode::frame(&mut head, Kind::Packed, packed.len(), |body| {
            body.put_u32_le(u32::try_from(length).expect("a few MiB at the most"));
            body.put_u32_le(crc32fast::hash(&packed));
        });
        Some(vec![head.freeze(), packed.into()])
    }
}

/// Reads the messages of one connection.
#[derive(Default)]
pub struct Unpacker {
    /// What is left of the last packed frame.
    frames: Rope,
    decompressor: Option<Decompressor<'static>>,
}

impl Unpacker {
    /// Takes the next message of the connection; `None` while it is not complete. And whether it was packed: its data lies
    /// among that of others then.
    ///
    /// # Errors
    /// As [`decode`](super::decode()); and where a packed frame does not hold what it says, or another packed one.
    pub fn next(&mut self, rope: &mut Rope) -> Result<Option<(Message, bool)>, FormatError> {
        loop {
            if !self.frames.is_empty() {
                let message = super::decode(&mut self.frames)?;
                let message = message.ok_or_else(|| wrong("it ends in the middle of a frame".into()))?;
                return Ok(Some((message, true)));
            }
            let Some(head) = head_of(rope)? else { return Ok(None) };
            if head.kind != Kind::Packed {
                return Ok(super::decode(rope)?.map(|message| (message, false)));
            }
            let Some((body, packed)) = taken(rope, &head)? else { return Ok(None) };
            let frames = self.unpacked(&body, &packed)?;
            self.frames.push(frames);
        }
    }

    fn unpacked(&mut self, body: &Bytes, packed: &Bytes) -> Result<Bytes, FormatError> {
        let word = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().expect("eight bytes"));
        let (length, crc) = (word(0) as usize, word(4));
        if length == 0 || length > PACKED_BYTES_MAX {
            return Err(wrong(format!("{length} bytes are said to be in it")));
        }
        if crc32fast::hash(packed) != crc {
            return Err(FormatError::Checksum { what: Kind::Packed.name() });
        }
        if self.decompressor.is_none() {
            let made = Decompressor::new().map_err(|error| wrong(format!("no decompressor: {error}")))?;
            self.decompressor = Some(made);
        }
        let decompressor = self.decompressor.as_mut().expect("just made");
        let frames = decompressor.decompress(packed, length).map_err(|error| wrong(error.to_string()))?;
        if frames.len() != length {
            return Err(wrong(format!("{length} bytes are said to be in it, and {} are", frames.len())));
        }
        Ok(frames.into())
    }
}

fn wrong(why: String) -> FormatError {
    FormatError::Field { what: Kind::Packed.name(), why }
}
