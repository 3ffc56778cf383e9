//! The numbers and the fixed-size messages of the NBD protocol ("Values" and "Message" sections of its
//! specification; extended headers are those of its branch extension-ext-header). Everything here is big-endian,
//! unlike our own formats.
//!
//! Owns constants and their packing; decides nothing.

use crate::core::errno::Errno;

/// First eight bytes of a server, every style of negotiation.
pub const MAGIC_SERVER: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes of a newstyle server, and head of every option of a client.
pub const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
/// Second eight bytes of an oldstyle server, which we do not speak.
pub const MAGIC_OLDSTYLE: u64 = 0x0000_4202_8186_1253;
/// Head of every answer to an option.
pub const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// Head of a request.
pub const MAGIC_REQUEST: u32 = 0x2560_9513;
/// Head of a request with extended headers.
pub const MAGIC_REQUEST_EXTENDED: u32 = 0x21e4_1c71;
/// Head of a simple reply.
pub const MAGIC_REPLY: u32 = 0x6744_6698;
/// Head of a chunk of a structured reply.
pub const MAGIC_REPLY_STRUCTURED: u32 = 0x668e_33ef;
/// Head of a chunk of a reply with extended headers.
pub const MAGIC_REPLY_EXTENDED: u32 = 0x6e8a_278c;

/// Handshake flags of the server; the client's flags have the same bits.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Options.
pub const OPT_EXPORT_NAME: u32 = 1;
pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_STARTTLS: u32 = 5;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;
pub const OPT_STRUCTURED_REPLY: u32 = 8;
pub const OPT_LIST_META_CONTEXT: u32 = 9;
pub const OPT_SET_META_CONTEXT: u32 = 10;
pub const OPT_EXTENDED_HEADERS: u32 = 11;

/// Answers to options.
pub const REP_ACK: u32 = 1;
pub const REP_SERVER: u32 = 2;
pub const REP_INFO: u32 = 3;
pub const REP_META_CONTEXT: u32 = 4;
/// Bit that marks an answer as an error.
pub const REP_ERROR_BIT: u32 = 1 << 31;
pub const REP_ERR_UNSUP: u32 = REP_ERROR_BIT + 1;
pub const REP_ERR_POLICY: u32 = REP_ERROR_BIT + 2;
pub const REP_ERR_INVALID: u32 = REP_ERROR_BIT + 3;
pub const REP_ERR_PLATFORM: u32 = REP_ERROR_BIT + 4;
pub const REP_ERR_TLS_REQD: u32 = REP_ERROR_BIT + 5;
pub const REP_ERR_UNKNOWN: u32 = REP_ERROR_BIT + 6;
pub const REP_ERR_SHUTDOWN: u32 = REP_ERROR_BIT + 7;
pub const REP_ERR_BLOCK_SIZE_REQD: u32 = REP_ERROR_BIT + 8;
pub const REP_ERR_TOO_BIG: u32 = REP_ERROR_BIT + 9;
pub const REP_ERR_EXT_HEADER_REQD: u32 = REP_ERROR_BIT + 10;

/// Information types.
pub const INFO_EXPORT: u16 = 0;
pub const INFO_NAME: u16 = 1;
pub const INFO_DESCRIPTION: u16 = 2;
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flags.
pub const HAS_FLAGS: u16 = 1 << 0;
pub const READ_ONLY: u16 = 1 << 1;
pub const SEND_FLUSH: u16 = 1 << 2;
pub const SEND_FUA: u16 = 1 << 3;
pub const SEND_TRIM: u16 = 1 << 5;
pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
pub const SEND_DF: u16 = 1 << 7;
pub const CAN_MULTI_CONN: u16 = 1 << 8;
pub const SEND_CACHE: u16 = 1 << 10;
pub const SEND_FAST_ZERO: u16 = 1 << 11;
pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;

/// Commands.
pub const CMD_READ: u16 = 0;
pub const CMD_WRITE: u16 = 1;
pub const CMD_DISC: u16 = 2;
pub const CMD_FLUSH: u16 = 3;
pub const CMD_TRIM: u16 = 4;
pub const CMD_CACHE: u16 = 5;
pub const CMD_WRITE_ZEROES: u16 = 6;
pub const CMD_BLOCK_STATUS: u16 = 7;

/// Command flags.
pub const CMD_FLAG_FUA: u16 = 1 << 0;
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
pub const CMD_FLAG_DF: u16 = 1 << 2;
pub const CMD_FLAG_REQ_ONE: u16 = 1 << 3;
pub const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;
pub const CMD_FLAG_PAYLOAD_LEN: u16 = 1 << 5;

/// Flags of a chunk.
pub const REPLY_FLAG_DONE: u16 = 1 << 0;

/// Types of chunks.
pub const REPLY_NONE: u16 = 0;
pub const REPLY_OFFSET_DATA: u16 = 1;
pub const REPLY_OFFSET_HOLE: u16 = 2;
pub const REPLY_BLOCK_STATUS: u16 = 5;
pub const REPLY_BLOCK_STATUS_EXT: u16 = 6;
/// Bit that marks a chunk as an error.
pub const REPLY_ERROR_BIT: u16 = 1 << 15;
pub const REPLY_ERROR: u16 = REPLY_ERROR_BIT + 1;
pub const REPLY_ERROR_OFFSET: u16 = REPLY_ERROR_BIT + 2;

/// Status flags of the metadata context `base:allocation`.
pub const STATE_HOLE: u32 = 1 << 0;
pub const STATE_ZERO: u32 = 1 << 1;

/// Bytes of the server's greeting: two magics and the handshake flags.
pub const GREETING_BYTES: usize = 18;
/// Bytes of the head of an option.
pub const OPTION_BYTES: usize = 16;
/// Bytes of the head of an answer to an option.
pub const OPTION_REPLY_BYTES: usize = 20;
/// Bytes of a request without its payload.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a request with extended headers, without its payload.
pub const REQUEST_EXTENDED_BYTES: usize = 32;
/// Bytes of a simple reply without its payload.
pub const REPLY_BYTES: usize = 16;
/// Bytes of the head of a chunk, structured and extended.
pub const CHUNK_BYTES: usize = 20;
pub const CHUNK_EXTENDED_BYTES: usize = 32;
/// Bytes of the answer to `OPT_EXPORT_NAME`, without and with its padding.
pub const EXPORT_NAME_REPLY_BYTES: usize = 10;
pub const EXPORT_NAME_PADDING_BYTES: usize = 124;
/// Longest string of the protocol, bytes ("Conventions").
pub const STRING_BYTES_MAX: usize = 4096;

/// Head of an option as a client sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHead {
    pub magic: u64,
    pub option: u32,
    pub length: u32,
}

impl OptionHead {
    #[must_use]
    pub fn encode(option: u32, length: u32) -> [u8; OPTION_BYTES] {
        let mut raw = [0; OPTION_BYTES];
        raw[0..8].copy_from_slice(&MAGIC_OPTION.to_be_bytes());
        raw[8..12].copy_from_slice(&option.to_be_bytes());
        raw[12..16].copy_from_slice(&length.to_be_bytes());
        raw
    }

    #[must_use]
    pub fn decode(raw: &[u8; OPTION_BYTES]) -> OptionHead {
        OptionHead { magic: be64(raw, 0), option: be32(raw, 8), length: be32(raw, 12) }
    }
}

/// Head of an answer to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHead {
    pub magic: u64,
    pub option: u32,
    pub reply: u32,
    pub length: u32,
}

impl OptionReplyHead {
    #[must_use]
    pub fn encode(option: u32, reply: u32, length: u32) -> [u8; OPTION_REPLY_BYTES] {
        let mut raw = [0; OPTION_REPLY_BYTES];
        raw[0..8].copy_from_slice(&MAGIC_OPTION_REPLY.to_be_bytes());
        raw[8..12].copy_from_slice(&option.to_be_bytes());
        raw[12..16].copy_from_slice(&reply.to_be_bytes());
        raw[16..20].copy_from_slice(&length.to_be_bytes());
        raw
    }

    #[must_use]
    pub fn decode(raw: &[u8; OPTION_REPLY_BYTES]) -> OptionReplyHead {
        OptionReplyHead { magic: be64(raw, 0), option: be32(raw, 8), reply: be32(raw, 12), length: be32(raw, 16) }
    }
}

/// A request without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHead {
    pub magic: u32,
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

impl RequestHead {
    #[must_use]
    pub fn encode(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> [u8; REQUEST_BYTES] {
        let mut raw = [0; REQUEST_BYTES];
        raw[0..4].copy_from_slice(&MAGIC_REQUEST.to_be_bytes());
        raw[4..6].copy_from_slice(&flags.to_be_bytes());
        raw[6..8].copy_from_slice(&command.to_be_bytes());
        raw[8..16].copy_from_slice(&cookie.to_be_bytes());
        raw[16..24].copy_from_slice(&offset.to_be_bytes());
        raw[24..28].copy_from_slice(&length.to_be_bytes());
        raw
    }

    #[must_use]
    pub fn decode(raw: &[u8; REQUEST_BYTES]) -> RequestHead {
        RequestHead {
            magic: be32(raw, 0),
            flags: be16(raw, 4),
            command: be16(raw, 6),
            cookie: be64(raw, 8),
            offset: be64(raw, 16),
            length: be32(raw, 24),
        }
    }

    /// The same with extended headers: its length has 64 bits.
    #[must_use]
    pub fn encode_extended(
        flags: u16,
        command: u16,
        cookie: u64,
        offset: u64,
        length: u64,
    ) -> [u8; REQUEST_EXTENDED_BYTES] {
        let mut raw = [0; REQUEST_EXTENDED_BYTES];
        raw[..24].copy_from_slice(&RequestHead::encode(flags, command, cookie, offset, 0)[..24]);
        raw[0..4].copy_from_slice(&MAGIC_REQUEST_EXTENDED.to_be_bytes());
        raw[24..32].copy_from_slice(&length.to_be_bytes());
        raw
    }
}

/// A simple reply without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyHead {
    pub magic: u32,
    pub error: u32,
    pub cookie: u64,
}

impl ReplyHead {
    #[must_use]
    pub fn encode(error: u32, cookie: u64) -> [u8; REPLY_BYTES] {
        let mut raw = [0; REPLY_BYTES];
        raw[0..4].copy_from_slice(&MAGIC_REPLY.to_be_bytes());
        raw[4..8].copy_from_slice(&error.to_be_bytes());
        raw[8..16].copy_from_slice(&cookie.to_be_bytes());
        raw
    }

    #[must_use]
    pub fn decode(raw: &[u8; REPLY_BYTES]) -> ReplyHead {
        ReplyHead { magic: be32(raw, 0), error: be32(raw, 4), cookie: be64(raw, 8) }
    }
}

/// The head of one chunk of a structured reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHead {
    pub magic: u32,
    pub flags: u16,
    pub kind: u16,
    pub cookie: u64,
    /// Bytes of what follows.
    pub length: u32,
}

impl ChunkHead {
    #[must_use]
    pub fn encode(flags: u16, kind: u16, cookie: u64, length: u32) -> [u8; CHUNK_BYTES] {
        let mut raw = [0; CHUNK_BYTES];
        raw[0..4].copy_from_slice(&MAGIC_REPLY_STRUCTURED.to_be_bytes());
        raw[4..6].copy_from_slice(&flags.to_be_bytes());
        raw[6..8].copy_from_slice(&kind.to_be_bytes());
        raw[8..16].copy_from_slice(&cookie.to_be_bytes());
        raw[16..20].copy_from_slice(&length.to_be_bytes());
        raw
    }

    #[must_use]
    pub fn decode(raw: &[u8; CHUNK_BYTES]) -> ChunkHead {
        ChunkHead {
            magic: be32(raw, 0),
            flags: be16(raw, 4),
            kind: be16(raw, 6),
            cookie: be64(raw, 8),
            length: be32(raw, 16),
        }
    }

    /// The same with extended headers: with the offset of the request, and a length of 64 bits.
    #[must_use]
    pub fn encode_extended(flags: u16, kind: u16, cookie: u64, offset: u64, length: u64) -> [u8; CHUNK_EXTENDED_BYTES] {
        let mut raw = [0; CHUNK_EXTENDED_BYTES];
        raw[..16].copy_from_slice(&ChunkHead::encode(flags, kind, cookie, 0)[..16]);
        raw[0..4].copy_from_slice(&MAGIC_REPLY_EXTENDED.to_be_bytes());
        raw[16..24].copy_from_slice(&offset.to_be_bytes());
        raw[24..32].copy_from_slice(&length.to_be_bytes());
        raw
    }
}

/// The error of a reply; a number the specification does not list counts as `Inval`, as it asks.
#[must_use]
pub fn errno_from_wire(raw: u32) -> Errno {
    const KNOWN: [Errno; 8] = [
        Errno::Perm,
        Errno::Io,
        Errno::NoMem,
        Errno::Inval,
        Errno::NoSpc,
        Errno::Overflow,
        Errno::NotSup,
        Errno::Shutdown,
    ];
    KNOWN.into_iter().find(|errno| *errno as u32 == raw).unwrap_or(Errno::Inval)
}

/// Two big-endian bytes at `at`; the caller has checked the length.
#[must_use]
pub fn be16(raw: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([raw[at], raw[at + 1]])
}

/// Four big-endian bytes at `at`; the caller has checked the length.
#[must_use]
pub fn be32(raw: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]])
}

/// Eight big-endian bytes at `at`; the caller has checked the length.
#[must_use]
pub fn be64(raw: &[u8], at: usize) -> u64 {
    u64::from(be32(raw, at)) << 32 | u64::from(be32(raw, at + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_have_the_bytes_of_the_specification() {
        let raw = RequestHead::encode(CMD_FLAG_FUA, CMD_WRITE, 0x0102_0304_0506_0708, 0x1_0000_0200, 4096);
        let golden =
            [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0x10, 0];
        assert_eq!(raw, golden);
        let head = RequestHead::decode(&raw);
        assert_eq!((head.magic, head.flags, head.command), (MAGIC_REQUEST, CMD_FLAG_FUA, CMD_WRITE));
        assert_eq!((head.cookie, head.offset, head.length), (0x0102_0304_0506_0708, 0x1_0000_0200, 4096));

        assert_eq!(ReplyHead::encode(5, 9), [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!(&OptionHead::encode(OPT_GO, 3)[..8], b"IHAVEOPT");
        assert_eq!(&MAGIC_SERVER.to_be_bytes(), b"NBDMAGIC");
        let reply = OptionReplyHead::encode(OPT_GO, REP_ERR_POLICY, 7);
        assert_eq!(&reply[..8], &[0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9]);
        assert_eq!(&reply[8..], &[0, 0, 0, 7, 0x80, 0, 0, 2, 0, 0, 0, 7]);
    }

    #[test]
    fn heads_of_chunks_and_extended_heads_have_the_bytes_of_the_specification() {
        let cookie = 0x0102_0304_0506_0708;
        let raw = ChunkHead::encode(REPLY_FLAG_DONE, REPLY_OFFSET_DATA, cookie, 4104);
        assert_eq!(raw, [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x10, 8]);
        let head = ChunkHead::decode(&raw);
        assert_eq!((head.magic, head.flags, head.kind), (MAGIC_REPLY_STRUCTURED, REPLY_FLAG_DONE, REPLY_OFFSET_DATA));
        assert_eq!((head.cookie, head.length), (cookie, 4104));

        let raw = ChunkHead::encode_extended(0, REPLY_ERROR_OFFSET, cookie, 0x1_0000_0200, 14);
        assert_eq!(raw[..16], [0x6e, 0x8a, 0x27, 0x8c, 0, 0, 0x80, 2, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(raw[16..], [0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 14]);

        let raw = RequestHead::encode_extended(CMD_FLAG_PAYLOAD_LEN, CMD_WRITE, cookie, 512, 1 << 33);
        assert_eq!(raw[..16], [0x21, 0xe4, 0x1c, 0x71, 0, 0x20, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(raw[16..], [0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
    }

    #[test]
    fn unlisted_errors_count_as_invalid() {
        assert_eq!(errno_from_wire(28), Errno::NoSpc);
        assert_eq!(errno_from_wire(108), Errno::Shutdown);
        assert_eq!(errno_from_wire(4711), Errno::Inval);
    }
}
