//! The bytes of answers to requests, in each of the three styles that a client can negotiate ("Simple reply message",
//! "Structured reply chunk message", and "Extended reply chunk message" of the branch extension-ext-header).
//!
//! A read is one chunk `OFFSET_DATA` that is the last one too: its data is there as a whole before the head goes out, so
//! that no error can come after it. One in pieces is a chunk for each of them; or, where it must not be broken up, one chunk
//! that is not the last, for an error can come while it is sent. What is nothing but zeroes is a chunk `OFFSET_HOLE`, whether
//! it is a hole in the store or not: it says what is read, and who wants to know of storage asks for the block status. Successes without data are simple replies where they may be: they are the shortest.

use bytes::Bytes;

use crate::core::allocation::Stretch;
use crate::core::errno::Errno;
use crate::core::zero::is_zero;
use crate::nbd::options::clip;
use crate::nbd::outbox::Outbox;
use crate::nbd::protocol::*;

/// How replies look, and with extended headers requests as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    #[default]
    Simple,
    Structured,
    Extended,
}

/// The request that is answered: the number that its client gave it, and its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct To {
    pub cookie: u64,
    pub offset: u64,
}

/// Why a request has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure<'a> {
    pub errno: Errno,
    /// Where, when that is known; inside the range of the request.
    pub at: Option<u64>,
    /// For a person; sent where the style has room for it.
    pub text: &'a str,
}

/// Number of the only metadata context there is.
pub const ALLOCATION_ID: u32 = 1;

impl Style {
    /// The data of a read that has succeeded.
    pub fn data(self, out: &mut Outbox, to: To, data: Bytes) {
        if self == Style::Simple {
            out.put(&ReplyHead::encode(0, to.cookie));
            out.push(data);
        } else {
            self.chunk_of(out, to, to.offset, data, true, Outbox::push);
        }
    }

    /// One chunk of the data of a read in pieces, from `at` on.
    pub fn part(self, out: &mut Outbox, to: To, at: u64, data: Bytes, last: bool) {
        self.chunk_of(out, to, at, data, last, Outbox::push_piece);
    }

    fn chunk_of(self, out: &mut Outbox, to: To, at: u64, data: Bytes, last: bool, push: fn(&mut Outbox, Bytes)) {
        let flags = if last { REPLY_FLAG_DONE } else { 0 };
        if !data.is_empty() && is_zero(&data) {
            self.head(out, to, flags, REPLY_OFFSET_HOLE, 12);
            out.put(&at.to_be_bytes());
            return out.put(&(data.len() as u32).to_be_bytes());
        }
        self.head(out, to, flags, REPLY_OFFSET_DATA, 8 + data.len());
        out.put(&at.to_be_bytes());
        push(out, data);
    }

    /// What comes before the data of a read that follows in pieces, `length` bytes of them together.
    pub fn begin(self, out: &mut Outbox, to: To, length: u64) {
        if self == Style::Simple {
            return out.put(&ReplyHead::encode(0, to.cookie));
        }
        self.head(out, to, 0, REPLY_OFFSET_DATA, 8 + length as usize);
        out.put(&to.offset.to_be_bytes());
    }

    /// What comes behind it.
    pub fn end(self, out: &mut Outbox, to: To) {
        if self != Style::Simple {
            self.chunk(out, to, REPLY_NONE, 0);
        }
    }

    /// Success without data. Reads, even empty ones, are never answered by a simple reply once structured ones have
    /// been negotiated.
    pub fn done(self, out: &mut Outbox, to: To, read: bool) {
        match self {
            Style::Structured if read => self.chunk(out, to, REPLY_NONE, 0),
            Style::Simple | Style::Structured => out.put(&ReplyHead::encode(0, to.cookie)),
            Style::Extended => self.chunk(out, to, REPLY_NONE, 0),
        }
    }

    pub fn failed(self, out: &mut Outbox, to: To, failure: Failure<'_>) {
        if self == Style::Simple {
            return out.put(&ReplyHead::encode(failure.errno as u32, to.cookie));
        }
        let text = clip(failure.text);
        let (kind, fixed) = if failure.at.is_some() { (REPLY_ERROR_OFFSET, 14) } else { (REPLY_ERROR, 6) };
        self.chunk(out, to, kind, fixed + text.len());
        out.put(&(failure.errno as u32).to_be_bytes());
        out.put(&(text.len() as u16).to_be_bytes());
        out.put(text.as_bytes());
        if let Some(at) = failure.at {
            out.put(&at.to_be_bytes());
        }
    }

    /// The block status of the context `base:allocation`.
    pub fn status(self, out: &mut Outbox, to: To, stretches: &[Stretch]) {
        let flags = |stretch: &Stretch| if stretch.hole { STATE_HOLE | STATE_ZERO } else { 0 };
        // As long as a read may be, so it counts as one.
        let mut data = Vec::with_capacity(16 * stretches.len());
        match self {
            Style::Simple => unreachable!("a block status is asked for with structured replies only"),
            Style::Structured => {
                self.chunk(out, to, REPLY_BLOCK_STATUS, 4 + 8 * stretches.len());
                out.put(&ALLOCATION_ID.to_be_bytes());
                for stretch in stretches {
                    let length = u32::try_from(stretch.length).expect("a request of 32 bits is not overrun");
                    data.extend(length.to_be_bytes());
                    data.extend(flags(stretch).to_be_bytes());
                }
            }
            Style::Extended => {
                self.chunk(out, to, REPLY_BLOCK_STATUS_EXT, 8 + 16 * stretches.len());
                out.put(&ALLOCATION_ID.to_be_bytes());
                out.put(&(stretches.len() as u32).to_be_bytes());
                for stretch in stretches {
                    data.extend(stretch.length.to_be_bytes());
                    data.extend(u64::from(flags(stretch)).to_be_bytes());
                }
            }
        }
        out.push(data.into());
    }

    /// The head of a chunk that is the last of its reply.
    fn chunk(self, out: &mut Outbox, to: To, kind: u16, length: usize) {
        self.head(out, to, REPLY_FLAG_DONE, kind, length);
    }

    fn head(self, out: &mut Outbox, to: To, flags: u16, kind: u16, length: usize) {
        let To { cookie, offset } = to;
        if self == Style::Extended {
            out.put(&ChunkHead::encode_extended(flags, kind, cookie, offset, length as u64));
        } else {
            out.put(&ChunkHead::encode(flags, kind, cookie, length as u32));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: To = To { cookie: 0x0a0b_0c0d_0e0f_1011, offset: 0x2_0000_0200 };

    fn bytes(make: impl FnOnce(&mut Outbox)) -> Vec<u8> {
        let mut out = Outbox::new();
        make(&mut out);
        out.drain().flatten().collect()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Golden bytes: magic, flags, type, cookie, (offset,) length, and what follows.
    #[test]
    fn every_reply_has_the_bytes_of_the_specification() {
        let data = |style: Style| bytes(|out| style.data(out, TO, Bytes::from_static(b"abc")));
        assert_eq!(hex(&data(Style::Simple)), "67446698000000000a0b0c0d0e0f1011616263");
        assert_eq!(hex(&data(Style::Structured)), "668e33ef000100010a0b0c0d0e0f10110000000b0000000200000200616263");
        assert_eq!(
            hex(&data(Style::Extended)),
            "6e8a278c000100010a0b0c0d0e0f10110000000200000200000000000000000b0000000200000200616263"
        );

        let zeroes = |style: Style| bytes(|out| style.data(out, TO, Bytes::from_static(&[0; 4096])));
        assert_eq!(zeroes(Style::Simple).len(), 16 + 4096);
        assert_eq!(hex(&zeroes(Style::Structured)), "668e33ef000100020a0b0c0d0e0f10110000000c000000020000020000001000");
        assert_eq!(
            hex(&zeroes(Style::Extended)),
            "6e8a278c000100020a0b0c0d0e0f10110000000200000200000000000000000c000000020000020000001000"
        );
        let nearly = Bytes::from([&[0; 4095][..], &[1]].concat());
        assert_eq!(bytes(|out| Style::Structured.data(out, TO, nearly)).len(), 20 + 8 + 4096);

        let done = |style: Style, read| bytes(|out| style.done(out, TO, read));
        assert_eq!(hex(&done(Style::Simple, true)), "67446698000000000a0b0c0d0e0f1011");
        assert_eq!(hex(&done(Style::Structured, false)), "67446698000000000a0b0c0d0e0f1011");
        assert_eq!(hex(&done(Style::Structured, true)), "668e33ef000100000a0b0c0d0e0f101100000000");
        assert_eq!(
            hex(&done(Style::Extended, false)),
            "6e8a278c000100000a0b0c0d0e0f101100000002000002000000000000000000"
        );
    }

    #[test]
    fn every_failure_has_the_bytes_of_the_specification() {
        let failed =
            |style: Style, at| bytes(|out| style.failed(out, TO, Failure { errno: Errno::NoSpc, at, text: "full" }));
        assert_eq!(hex(&failed(Style::Simple, Some(7))), "674466980000001c0a0b0c0d0e0f1011");
        assert_eq!(
            hex(&failed(Style::Structured, None)),
            "668e33ef000180010a0b0c0d0e0f10110000000a0000001c000466756c6c"
        );
        assert_eq!(
            hex(&failed(Style::Structured, Some(0x2_0000_1000))),
            "668e33ef000180020a0b0c0d0e0f1011000000120000001c000466756c6c0000000200001000"
        );
        assert_eq!(
            hex(&failed(Style::Extended, None)),
            "6e8a278c000180010a0b0c0d0e0f10110000000200000200000000000000000a0000001c000466756c6c"
        );
        let long = "é".repeat(3000);
        let sent = bytes(|out| Style::Structured.failed(out, TO, Failure { errno: Errno::Io, at: None, text: &long }));
        assert_eq!(sent.len(), CHUNK_BYTES + 6 + STRING_BYTES_MAX, "a text has a bound of its own");
    }

    #[test]
    fn every_status_has_the_bytes_of_the_specification() {
        let stretches = [Stretch { length: 4096, hole: false }, Stretch { length: 0x8000_0000, hole: true }];
        let status = |style: Style| bytes(|out| style.status(out, TO, &stretches));
        assert_eq!(
            hex(&status(Style::Structured)),
            "668e33ef000100050a0b0c0d0e0f10110000001400000001000010000000000080000000 00000003".replace(' ', "")
        );
        assert_eq!(
            hex(&status(Style::Extended)),
            "6e8a278c000100060a0b0c0d0e0f10110000000200000200000000000000002800000001000000020000000000001000\
             000000000000000000000000800000000000000000000003"
        );
    }
}
