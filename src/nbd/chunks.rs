//! Structured replies as a client takes them ("Structured reply types" of the specification): the chunks of one answer,
//! gathered until the last. Pure.
//!
//! A read that comes as one chunk is handed on as it was received; several, or holes, are joined.
//!
//! Invariant: I8 - what does not answer the request exactly, each byte of a read once, is an error and no answer.

use bytes::{Bytes, BytesMut};

use crate::core::allocation::Stretch;
use crate::core::errno::Errno;
use crate::core::rope::Rope;
use crate::limits::BACKING_STATUS_ANSWER_BYTES_MAX;
use crate::nbd::client::Event;
use crate::nbd::protocol::*;

/// Bytes of an error chunk at the most: number, length and text, offset.
const ERROR_BYTES_MAX: u32 = 4 + 2 + STRING_BYTES_MAX as u32 + 8;

/// What a request waits for, and what has come of it.
#[derive(Debug)]
pub struct Asked {
    what: What,
    parts: Vec<Part>,
    stretches: Vec<Stretch>,
    failed: Option<Errno>,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Nothing,
    Read { offset: u64, length: u32 },
    Status { context: u32, length: u32 },
}

/// A part of a read; without data it reads as zeroes.
#[derive(Debug)]
struct Part {
    offset: u64,
    length: u64,
    data: Option<Bytes>,
}

/// One chunk.
#[derive(Debug)]
pub enum Chunk {
    Nothing,
    Data { offset: u64, data: Bytes },
    Hole { offset: u64, length: u32 },
    Status { context: u32, stretches: Vec<Stretch> },
    Failed(Errno),
}

impl Chunk {
    /// Takes what follows the head of a chunk; all of it is there.
    pub fn take(kind: u16, length: usize, rx: &mut Rope) -> Result<Chunk, &'static str> {
        match kind {
            REPLY_NONE if length == 0 => Ok(Chunk::Nothing),
            REPLY_OFFSET_DATA if length > 8 => {
                let offset = be64(&rx.take(8), 0);
                Ok(Chunk::Data { offset, data: rx.take(length - 8) })
            }
            REPLY_OFFSET_HOLE if length == 12 => {
                let raw = rx.take(12);
                Ok(Chunk::Hole { offset: be64(&raw, 0), length: be32(&raw, 8) })
            }
            REPLY_BLOCK_STATUS if length >= 12 && length % 8 == 4 => {
                let raw = rx.take(length);
                let stretch = |raw: &[u8]| {
                    let hole = be32(raw, 4) & (STATE_HOLE | STATE_ZERO) == STATE_HOLE | STATE_ZERO;
                    Stretch { length: u64::from(be32(raw, 0)), hole }
                };
                let stretches = raw[4..].chunks_exact(8).map(stretch).collect();
                Ok(Chunk::Status { context: be32(&raw, 0), stretches })
            }
            kind if kind & REPLY_ERROR_BIT != 0 && length >= 6 => {
                let raw = rx.take(length);
                Ok(Chunk::Failed(errno_from_wire(be32(&raw, 0))))
            }
            _ => Err("its type is not known, or does not have this length"),
        }
    }
}

impl Asked {
    fn new(what: What) -> Asked {
        Asked { what, parts: Vec::new(), stretches: Vec::new(), failed: None }
    }

    pub fn nothing() -> Asked {
        Asked::new(What::Nothing)
    }

    pub fn read(offset: u64, length: u32) -> Asked {
        Asked::new(What::Read { offset, length })
    }

    pub fn status(context: u32, length: u32) -> Asked {
        Asked::new(What::Status { context, length })
    }

    /// Longest chunk that can be a part of the answer.
    pub fn chunk_bytes_max(&self) -> u32 {
        match self.what {
            What::Nothing => ERROR_BYTES_MAX,
            What::Read { length, .. } => ERROR_BYTES_MAX.max(length.saturating_add(8)),
            What::Status { .. } => BACKING_STATUS_ANSWER_BYTES_MAX,
        }
    }

    /// Takes a chunk of the answer.
    pub fn add(&mut self, chunk: Chunk) -> Result<(), &'static str> {
        match (chunk, self.what) {
            (Chunk::Nothing, _) => {}
            (Chunk::Failed(errno), _) => self.failed = Some(errno),
            (Chunk::Data { offset, data }, What::Read { .. }) => {
                self.parts.push(Part { offset, length: data.len() as u64, data: Some(data) });
            }
            (Chunk::Hole { offset, length }, What::Read { .. }) => {
                self.parts.push(Part { offset, length: u64::from(length), data: None });
            }
            (Chunk::Status { context, stretches }, What::Status { context: known, length }) => {
                if context != known {
                    return Err("a block status of a context that was not asked for");
                }
                self.stretches = within(stretches, u64::from(length))?;
            }
            _ => return Err("it does not belong to what was asked"),
        }
        match self.what {
            What::Read { length, .. } if self.parts.len() > length as usize => Err("it repeats parts of a read"),
            _ => Ok(()),
        }
    }

    /// The last chunk has come.
    pub fn done(&mut self, cookie: u64) -> Result<Event, &'static str> {
        if let Some(errno) = self.failed {
            return Ok(Event::Done { cookie, result: Err(errno) });
        }
        match self.what {
            What::Nothing => Ok(Event::Done { cookie, result: Ok(Bytes::new()) }),
            What::Status { .. } if self.stretches.is_empty() => Err("a block status without any"),
            What::Status { .. } => Ok(Event::Status { cookie, stretches: std::mem::take(&mut self.stretches) }),
            What::Read { offset, length } => {
                let data = join(std::mem::take(&mut self.parts), offset, u64::from(length))?;
                Ok(Event::Done { cookie, result: Ok(data) })
            }
        }
    }
}

/// Stretches as far as what was asked: the last one may go beyond it.
fn within(stretches: Vec<Stretch>, length: u64) -> Result<Vec<Stretch>, &'static str> {
    let mut left = length;
    let mut found = Vec::with_capacity(stretches.len());
    for stretch in stretches {
        if stretch.length == 0 {
            return Err("a block status with an empty stretch");
        }
        let length = stretch.length.min(left);
        left -= length;
        if length > 0 {
            found.push(Stretch { length, ..stretch });
        }
    }
    Ok(found)
}

/// The bytes of a read from its parts, which cover it exactly.
fn join(mut parts: Vec<Part>, offset: u64, length: u64) -> Result<Bytes, &'static str> {
    parts.sort_by_key(|part| part.offset);
    let mut at = offset;
    for part in &parts {
        if part.offset != at || part.length == 0 || part.length > offset + length - at {
            return Err("the parts of a read do not cover it exactly");
        }
        at += part.length;
    }
    if at != offset + length {
        return Err("the parts of a read do not cover it exactly");
    }
    if let [Part { data: Some(data), .. }] = &parts[..] {
        return Ok(data.clone());
    }
    let mut joined = BytesMut::zeroed(usize::try_from(length).map_err(|_| "the read is too long")?);
    for part in &parts {
        if let Some(data) = &part.data {
            let from = usize::try_from(part.offset - offset).map_err(|_| "the read is too long")?;
            joined[from..from + data.len()].copy_from_slice(data);
        }
    }
    Ok(joined.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(offset: u64, bytes: &'static [u8]) -> Chunk {
        Chunk::Data { offset, data: Bytes::from_static(bytes) }
    }

    fn read(chunks: Vec<Chunk>) -> Result<Event, &'static str> {
        let mut asked = Asked::read(100, 8);
        chunks.into_iter().try_for_each(|chunk| asked.add(chunk))?;
        asked.done(7)
    }

    #[test]
    fn a_read_in_any_number_of_chunks_is_whole_or_an_error() {
        let whole = |bytes: &'static [u8]| Ok(Event::Done { cookie: 7, result: Ok(Bytes::from_static(bytes)) });
        assert_eq!(read(vec![data(100, b"abcdefgh")]), whole(b"abcdefgh"));
        assert_eq!(read(vec![data(104, b"efgh"), data(100, b"abcd"), Chunk::Nothing]), whole(b"abcdefgh"));
        let hole = || Chunk::Hole { offset: 102, length: 6 };
        assert_eq!(read(vec![data(100, b"ab"), hole()]), whole(b"ab\0\0\0\0\0\0"));
        for wrong in [
            vec![],
            vec![data(100, b"abcdefg")],
            vec![data(101, b"abcdefgh")],
            vec![data(100, b"abcd"), hole()],
            vec![data(100, b"abcdefgh"), data(108, b"i")],
            vec![Chunk::Hole { offset: 100, length: u32::MAX }],
            vec![Chunk::Status { context: 1, stretches: vec![] }],
        ] {
            let shown = format!("{wrong:?}");
            assert!(read(wrong).is_err(), "{shown}");
        }
        let failed = read(vec![data(100, b"ab"), Chunk::Failed(Errno::Io)]);
        assert_eq!(failed, Ok(Event::Done { cookie: 7, result: Err(Errno::Io) }));
    }

    #[test]
    fn a_block_status_ends_where_it_was_asked_to() {
        let stretch = |length, hole| Stretch { length, hole };
        let status = |context, stretches| {
            let mut asked = Asked::status(1, 100);
            asked.add(Chunk::Status { context, stretches })?;
            asked.done(7)
        };
        let found = status(1, vec![stretch(40, true), stretch(4096, false), stretch(5, true)]);
        assert_eq!(found, Ok(Event::Status { cookie: 7, stretches: vec![stretch(40, true), stretch(60, false)] }));
        assert!(status(2, vec![stretch(40, true)]).is_err(), "another context");
        assert!(status(1, vec![stretch(0, true)]).is_err(), "nothing");
        assert!(Asked::status(1, 100).chunk_bytes_max() >= 4 + (8 << 20), "servers tell 2^20 stretches at once");
        assert!(Asked::status(1, 100).done(7).is_err(), "no answer");
    }
}
