//! What may be asked of an export, and what is answered to the rest: which error means what is in "Error values",
//! "Request types" and "Command flags" of the specification, and in those of its branch extension-ext-header.

use bytes::Bytes;

use crate::core::errno::Errno;
use crate::core::rope::Rope;
use crate::nbd::export::Export;
use crate::nbd::meta;
use crate::nbd::protocol::*;
use crate::nbd::reply::{Failure, Style};
use crate::nbd::session::{Kind, SessionError};

/// A request as it came, of either size of head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    /// Bytes of the export, or of the payload.
    pub length: u64,
    /// Bytes of its head.
    pub head: usize,
    /// Bytes that follow its head.
    pub payload: u64,
}

/// What is to become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    /// Succeeds without anything being done.
    Nothing,
    Refused(Failure<'static>),
    Disconnect,
}

/// What was negotiated about one export.
#[derive(Debug)]
pub struct Terms {
    pub export: Export,
    pub style: Style,
    /// Its block status may be asked for.
    pub allocation: bool,
}

impl Asked {
    /// Reads the head at the front, when it is there.
    ///
    /// # Errors
    /// What leaves the stream out of step, or would fill memory: a client that sets `CMD_FLAG_PAYLOAD_LEN` promises to
    /// know the bound.
    pub fn peek(rx: &Rope, terms: &Terms) -> Result<Option<Asked>, SessionError> {
        if terms.style == Style::Extended {
            return Asked::peek_extended(rx, terms.export.block_max);
        }
        let mut raw = [0; REQUEST_BYTES];
        if !rx.peek(&mut raw) {
            return Ok(None);
        }
        let RequestHead { magic, flags, command, cookie, offset, length } = RequestHead::decode(&raw);
        if magic != MAGIC_REQUEST {
            return Err(SessionError::RequestMagic(magic));
        }
        let length = u64::from(length);
        let payload = if command == CMD_WRITE { length } else { 0 };
        Ok(Some(Asked { flags, command, cookie, offset, length, head: REQUEST_BYTES, payload }))
    }

    fn peek_extended(rx: &Rope, block_max: u32) -> Result<Option<Asked>, SessionError> {
        let mut raw = [0; REQUEST_EXTENDED_BYTES];
        if !rx.peek(&mut raw) {
            return Ok(None);
        }
        if be32(&raw, 0) != MAGIC_REQUEST_EXTENDED {
            return Err(SessionError::RequestMagic(be32(&raw, 0)));
        }
        let (flags, command, length) = (be16(&raw, 4), be16(&raw, 6), be64(&raw, 24));
        // The specification has every write set the flag; QEMU 10.0 does not, and sends the payload all the same.
        let carries = flags & CMD_FLAG_PAYLOAD_LEN != 0 || command == CMD_WRITE;
        let payload = if carries { length } else { 0 };
        if payload > u64::from(block_max) {
            return Err(SessionError::PayloadLength(payload));
        }
        let (cookie, offset) = (be64(&raw, 8), be64(&raw, 16));
        Ok(Some(Asked { flags, command, cookie, offset, length, head: REQUEST_EXTENDED_BYTES, payload }))
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Whether what it does is durable when it is answered.
    #[must_use]
    pub fn fua(&self) -> bool {
        self.has(CMD_FLAG_FUA)
    }

    /// Whether what it reads has to come in one chunk.
    #[must_use]
    pub fn is_unbroken(&self) -> bool {
        self.has(CMD_FLAG_DF)
    }

    /// Whether its range is in its payload.
    #[must_use]
    pub fn chooses(&self) -> bool {
        self.command == CMD_BLOCK_STATUS && self.has(CMD_FLAG_PAYLOAD_LEN)
    }

    /// With what its payload says.
    ///
    /// # Errors
    /// The payload names no context, one twice, or one that was not selected.
    pub fn chosen(self, payload: &[u8]) -> Result<Asked, Failure<'static>> {
        let length = meta::chosen(payload).ok_or_else(|| invalid("each selected metadata context is named once"))?;
        Ok(Asked { length, ..self })
    }

    /// What it asks for; it was accepted.
    #[must_use]
    pub fn kind(&self, data: Bytes) -> Kind {
        let Asked { offset, length, .. } = *self;
        let fua = self.fua();
        match self.command {
            CMD_READ => {
                Kind::Read { offset, length: u32::try_from(length).expect("a read is no longer than a payload") }
            }
            CMD_WRITE => Kind::Write { offset, data, fua },
            CMD_FLUSH => Kind::Flush,
            CMD_TRIM => Kind::Trim { offset, length, fua },
            CMD_CACHE => Kind::Cache { offset, length },
            CMD_WRITE_ZEROES => {
                let (no_hole, fast) = (self.has(CMD_FLAG_NO_HOLE), self.has(CMD_FLAG_FAST_ZERO));
                Kind::Zeroes { offset, length, fua, no_hole, fast }
            }
            CMD_BLOCK_STATUS => Kind::Status { offset, length, one: self.has(CMD_FLAG_REQ_ONE) },
            other => unreachable!("command {other} was refused before"),
        }
    }
}

/// Judges a request by its head; one whose range is in its payload is judged again with it.
#[must_use]
pub fn check(terms: &Terms, asked: &Asked) -> Verdict {
    let export = &terms.export;
    let (offered, changes) = match asked.command {
        CMD_DISC => return Verdict::Disconnect,
        CMD_READ => (true, false),
        CMD_WRITE => (true, true),
        CMD_FLUSH => (export.flush, false),
        CMD_TRIM => (export.trim, true),
        CMD_CACHE => (export.cache, false),
        CMD_WRITE_ZEROES => (export.zeroes, true),
        CMD_BLOCK_STATUS => (terms.allocation, false),
        _ => (false, false),
    };
    if !offered {
        return refused("this export does not offer the command");
    }
    if asked.flags & !allowed_flags(terms, asked.command) != 0 {
        return refused("a flag is not defined for this command, or not offered");
    }
    if changes && export.read_only {
        return Verdict::Refused(Failure { errno: Errno::Perm, at: None, text: "the export is read-only" });
    }
    if asked.command == CMD_FLUSH {
        let whole = asked.offset == 0 && asked.length == 0;
        return if whole { Verdict::Accepted } else { refused("a flush has no range") };
    }
    if asked.chooses() {
        return Verdict::Accepted;
    }
    check_range(terms, asked, changes)
}

/// As [`check`], for the range of a request that is allowed otherwise.
#[must_use]
pub fn check_range(terms: &Terms, asked: &Asked, changes: bool) -> Verdict {
    let Terms { export, style, .. } = terms;
    let Asked { command, offset, length, .. } = *asked;
    let inside = offset.checked_add(length).is_some_and(|end| end <= export.size);
    if !inside {
        // "The server SHOULD return NBD_ENOSPC if it receives a write request including one or more sectors beyond the
        // size of the device", and NBD_EINVAL for the others.
        let errno = if changes && command != CMD_TRIM { Errno::NoSpc } else { Errno::Inval };
        let at = (offset < export.size || length > 0).then_some(offset.max(export.size));
        return Verdict::Refused(Failure { errno, at, text: "the range leaves the export" });
    }
    if (offset | length) & u64::from(export.block_min.max(1) - 1) != 0 {
        return refused("the range is not a multiple of the smallest block");
    }
    if matches!(command, CMD_READ | CMD_WRITE) && length > u64::from(export.block_max) {
        // EOVERFLOW is for reads where fragmenting is a question at all, that is, not with simple replies.
        let errno = if command == CMD_READ && *style != Style::Simple { Errno::Overflow } else { Errno::Inval };
        return Verdict::Refused(Failure { errno, at: None, text: "longer than the longest payload" });
    }
    match (length, command) {
        (0, CMD_BLOCK_STATUS) => refused("a block status of nothing"),
        (0, _) => Verdict::Nothing,
        _ => Verdict::Accepted,
    }
}

/// The flags that a command may have here ("Command flags").
fn allowed_flags(terms: &Terms, command: u16) -> u16 {
    let (export, extended) = (&terms.export, terms.style == Style::Extended);
    let flag = |on: bool, flag: u16| if on { flag } else { 0 };
    // "valid for all commands, provided NBD_FLAG_SEND_FUA has been negotiated"
    let fua = flag(export.fua, CMD_FLAG_FUA);
    fua | match command {
        CMD_READ => flag(terms.style != Style::Simple, CMD_FLAG_DF),
        CMD_WRITE => flag(extended, CMD_FLAG_PAYLOAD_LEN),
        CMD_WRITE_ZEROES => CMD_FLAG_NO_HOLE | flag(export.fast_zero, CMD_FLAG_FAST_ZERO),
        CMD_BLOCK_STATUS => CMD_FLAG_REQ_ONE | flag(extended, CMD_FLAG_PAYLOAD_LEN),
        _ => 0,
    }
}

fn refused(text: &'static str) -> Verdict {
    Verdict::Refused(invalid(text))
}

fn invalid(text: &'static str) -> Failure<'static> {
    Failure { errno: Errno::Inval, at: None, text }
}
