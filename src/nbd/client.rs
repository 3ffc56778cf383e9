//! The client's side of one NBD connection, pure: bytes in, answers out, requests pipelined by cookie.
//!
//! ```text
//!   Greeting ──► [Structuring ──► Selecting] ──► Going (OPT_GO) ──► [Probing] ──► Ready
//!     │  ▲        of a volume only                 │ unsupported                    ▲
//!     │  │                                         └──► Naming ─────────────────────┘   (OPT_EXPORT_NAME, for servers of before 2016)
//!     ▼  └── the connection is secure
//!   Upgrading (OPT_STARTTLS) ──► Securing
//! ```
//!
//! Owns the handshake and the pairing of replies with requests. Does not own the socket, nor any policy of
//! reconnecting. Who has a use for holes (`of_volume`) asks for structured replies and `base:allocation`, and goes
//! without where the server has none; for the rest they would only be longer, and a server must not send any. Extended
//! headers are not asked for. Servers that refuse to go without them, or without TLS, are told apart in words; who was
//! told to use TLS never goes without.
//!
//! Block sizes are always asked for ("Block size constraints"): some servers name theirs to nobody else, and enforce them
//! all the same. A largest payload is kept to. A smallest block above 1 may be enforced, or be only what suits the server,
//! which takes any length (qemu-nbd on a device of 4096-byte sectors, nbdkit with its `allow` policy): a read of one byte
//! (`Probing`) tells, and only a server that refuses it with EINVAL insists.
//!
//! Invariants: I8 - bytes that are no NBD reply end the connection with words, never with a guess; every
//! request is answered by exactly one `Done`, also when the connection ends (`abandon`).

use bytes::Bytes;

use crate::core::allocation::Stretch;
use crate::core::errno::Errno;
use crate::core::rope::Rope;
use crate::limits::PAYLOAD_BYTES_MAX;
use crate::nbd::chunks::{Asked, Chunk};
use crate::nbd::meta::ALLOCATION;
use crate::nbd::options::clip;
use crate::nbd::outbox::Outbox;
use crate::nbd::protocol::*;
use crate::nbd::slots::Slots;

/// What the server says of the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Bytes.
    pub size: u64,
    /// Transmission flags, `protocol::READ_ONLY` and so on.
    pub flags: u16,
    /// Offsets and lengths must be multiples of it: 1 also where the server prefers more and does not insist.
    pub block_min: u32,
    /// Longest payload of one request, bytes.
    pub block_max: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The server grants TLS: begin it, and say [`ClientSession::secured`].
    Secure,
    /// Requests may be sent.
    Ready(ExportInfo),
    /// The server refuses the export: an error reply's code and text. The connection is of no more use.
    Refused { code: u32, text: String },
    /// The request with this cookie is answered: the bytes of a read, nothing otherwise.
    Done { cookie: u64, result: Result<Bytes, Errno> },
    /// The block status with this cookie is answered: stretches from its offset on, at least one, maybe not all.
    Status { cookie: u64, stretches: Vec<Stretch> },
}

/// The server broke the protocol: close the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    #[error("this is not an NBD server: it greets with {0:#018x}")]
    Greeting(u64),
    #[error("this NBD server only speaks the oldstyle negotiation, which has no export names")]
    Oldstyle,
    #[error("TLS is asked for, and this NBD server is too old to have it")]
    TlsUnknown,
    #[error(
        "{0} bytes in the clear follow the grant of TLS, where a server has nothing to say before its client: somebody on the \
         way may have put them there"
    )]
    Injected(usize),
    #[error("expected the answer to option {want}, got one to option {got} (magic number {magic:#018x})")]
    OptionReply { want: u32, got: u32, magic: u64 },
    #[error("the server's answer to an option has {0} bytes, more than any it may send")]
    OptionReplyLength(u32),
    #[error("the server's description of the export is malformed: {0}")]
    Info(&'static str),
    #[error("expected an NBD reply, got {0:#010x} where its magic number belongs")]
    ReplyMagic(u32),
    #[error("the server answers a request that was never sent or was answered before (cookie {0:#x})")]
    ReplyCookie(u64),
    #[error("a chunk of a structured reply is malformed: {0}")]
    Chunk(&'static str),
}

/// The client's side of one connection.
#[derive(Debug)]
pub struct ClientSession {
    export: String,
    phase: Phase,
    info: Option<ExportInfo>,
    block_min: u32,
    block_max: u32,
    no_zeroes: bool,
    /// TLS is wanted, and nothing without it.
    tls: bool,
    /// Block status is wanted, where the server has it.
    allocation: bool,
    /// Structured replies are agreed upon, and the number of `base:allocation` if that was selected.
    structured: bool,
    context: Option<u32>,
    inflight: Slots<InFlight>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Greeting,
    Upgrading,
    Securing,
    Structuring,
    Selecting,
    Going,
    Naming,
    /// Whether the server insists on its smallest block is being tried.
    Probing,
    Ready,
    Ended,
}

#[derive(Debug)]
struct InFlight {
    cookie: u64,
    /// Bytes a successful simple reply carries.
    length: u32,
    asked: Asked,
}

enum Step {
    Again,
    Stop,
}

impl ClientSession {
    /// A session that will ask for `export`. The server speaks first.
    #[must_use]
    pub fn new(export: &str) -> ClientSession {
        ClientSession {
            export: export.to_owned(),
            phase: Phase::Greeting,
            info: None,
            block_min: 1,
            block_max: PAYLOAD_BYTES_MAX,
            no_zeroes: false,
            tls: false,
            allocation: false,
            structured: false,
            context: None,
            inflight: Slots::default(),
        }
    }

    /// As `new`, for a connection that is to become secure first.
    #[must_use]
    pub fn with_tls(export: &str) -> ClientSession {
        ClientSession { tls: true, ..ClientSession::new(export) }
    }

    /// As `new` or `with_tls`, for who wants to know of holes.
    #[must_use]
    pub fn of_volume(export: &str, tls: bool) -> ClientSession {
        ClientSession { tls, allocation: true, ..ClientSession::new(export) }
    }

    /// The connection has become secure: asks for the export.
    ///
    /// # Panics
    /// When TLS was not granted.
    pub fn secured(&mut self, out: &mut Outbox) {
        assert!(self.phase == Phase::Securing, "a connection becomes secure after the server has granted it");
        self.negotiate(out);
    }

    /// Parses what has arrived.
    pub fn advance(&mut self, rx: &mut Rope, events: &mut Vec<Event>, out: &mut Outbox) -> Result<(), ClientError> {
        loop {
            let step = match self.phase {
                Phase::Ready => self.reply(rx, events)?,
                Phase::Probing => self.probe_reply(rx, events, out)?,
                Phase::Greeting => self.greeting(rx, out)?,
                Phase::Going | Phase::Upgrading | Phase::Structuring | Phase::Selecting => {
                    self.option_reply(rx, events, out)?
                }
                Phase::Securing => Step::Stop,
                Phase::Naming => self.export_name_reply(rx, events)?,
                // The server may still answer the goodbye, or what was in flight before it.
                Phase::Ended => {
                    rx.skip(rx.len());
                    Step::Stop
                }
            };
            if let Step::Stop = step {
                return Ok(());
            }
        }
    }

    /// Asks for `length` bytes from `offset`; the session must be ready.
    pub fn read(&mut self, cookie: u64, offset: u64, length: u32, out: &mut Outbox) {
        let number = self.number(cookie, length, Asked::read(offset, length));
        out.put(&RequestHead::encode(0, CMD_READ, number, offset, length));
    }

    /// Writes the parts one after another from `offset`; the session must be ready.
    pub fn write(&mut self, cookie: u64, offset: u64, parts: Vec<Bytes>, fua: bool, out: &mut Outbox) {
        let length: usize = parts.iter().map(Bytes::len).sum();
        let length = u32::try_from(length).expect("a write is cut to the server's maximum before");
        let number = self.number(cookie, 0, Asked::nothing());
        out.put(&RequestHead::encode(if fua { CMD_FLAG_FUA } else { 0 }, CMD_WRITE, number, offset, length));
        parts.into_iter().for_each(|part| out.push(part));
    }

    /// Makes every answered write durable; the session must be ready.
    pub fn flush(&mut self, cookie: u64, out: &mut Outbox) {
        let number = self.number(cookie, 0, Asked::nothing());
        out.put(&RequestHead::encode(0, CMD_FLUSH, number, 0, 0));
    }

    /// Makes a range read as zeroes; with `hole` its space may be given back. The session must be ready, and the server
    /// offer it.
    pub fn zeroes(&mut self, cookie: u64, offset: u64, length: u32, hole: bool, fua: bool, out: &mut Outbox) {
        let flags = if fua { CMD_FLAG_FUA } else { 0 } | if hole { 0 } else { CMD_FLAG_NO_HOLE };
        let number = self.number(cookie, 0, Asked::nothing());
        out.put(&RequestHead::encode(flags, CMD_WRITE_ZEROES, number, offset, length));
    }

    /// Asks which parts of a range have storage, or with `one` about what it begins with; the session must be ready, and know
    /// `base:allocation`.
    ///
    /// # Panics
    /// When it does not.
    pub fn status(&mut self, cookie: u64, offset: u64, length: u32, one: bool, out: &mut Outbox) {
        let context = self.context.expect("asked only where the server has it");
        let flags = if one { CMD_FLAG_REQ_ONE } else { 0 };
        let number = self.number(cookie, 0, Asked::status(context, length));
        out.put(&RequestHead::encode(flags, CMD_BLOCK_STATUS, number, offset, length));
    }

    /// Whether `status` can be asked.
    #[must_use]
    pub fn knows_holes(&self) -> bool {
        self.context.is_some()
    }

    /// Says goodbye, if the server is still listening.
    pub fn disconnect(&mut self, out: &mut Outbox) {
        match self.phase {
            Phase::Ready | Phase::Probing => out.put(&RequestHead::encode(0, CMD_DISC, 0, 0, 0)),
            Phase::Going | Phase::Upgrading | Phase::Structuring | Phase::Selecting => {
                out.put(&OptionHead::encode(OPT_ABORT, 0))
            }
            Phase::Greeting | Phase::Securing | Phase::Naming | Phase::Ended => {}
        }
        self.phase = Phase::Ended;
    }

    /// The connection is gone: the cookies of requests that were never answered, in no order.
    pub fn abandon(&mut self) -> Vec<u64> {
        if self.phase == Phase::Probing {
            // The probe is nobody's request.
            self.inflight.take_all();
        }
        self.phase = Phase::Ended;
        self.inflight.take_all().into_iter().map(|request| request.cookie).collect()
    }

    /// What the server said of the export, once ready.
    #[must_use]
    pub fn info(&self) -> Option<ExportInfo> {
        self.info
    }

    /// What was going on, to explain a connection that closed.
    #[must_use]
    pub fn stage(&self) -> &'static str {
        match self.phase {
            Phase::Greeting => "before its greeting",
            Phase::Upgrading => "while TLS was asked for",
            Phase::Securing => "in the TLS handshake",
            Phase::Structuring | Phase::Selecting | Phase::Going => "while the export was asked for",
            Phase::Naming => "when the export was named: it may have none of that name",
            Phase::Probing => "on a read of less than the smallest block that it named",
            Phase::Ready => "while in use",
            Phase::Ended => "after the end",
        }
    }

    /// Requests not answered yet.
    #[must_use]
    pub fn inflight(&self) -> usize {
        self.inflight.len()
    }

    /// Takes a number for a request whose successful answer carries `length` bytes.
    fn number(&mut self, cookie: u64, length: u32, asked: Asked) -> u64 {
        assert!(self.phase == Phase::Ready, "requests are sent once the server said it is ready");
        self.inflight.insert(InFlight { cookie, length, asked })
    }

    fn greeting(&mut self, rx: &mut Rope, out: &mut Outbox) -> Result<Step, ClientError> {
        let mut raw = [0; GREETING_BYTES];
        if !rx.peek(&mut raw) {
            return Ok(Step::Stop);
        }
        if be64(&raw, 0) != MAGIC_SERVER {
            return Err(ClientError::Greeting(be64(&raw, 0)));
        }
        if be64(&raw, 8) != MAGIC_OPTION {
            let oldstyle = be64(&raw, 8) == MAGIC_OLDSTYLE;
            return Err(if oldstyle { ClientError::Oldstyle } else { ClientError::Greeting(be64(&raw, 8)) });
        }
        rx.skip(GREETING_BYTES);
        let flags = be16(&raw, 16) & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        self.no_zeroes = flags & FLAG_NO_ZEROES != 0;
        out.put(&u32::from(flags).to_be_bytes());
        if self.tls {
            if flags & FLAG_FIXED_NEWSTYLE == 0 {
                return Err(ClientError::TlsUnknown);
            }
            out.put(&OptionHead::encode(OPT_STARTTLS, 0));
            self.phase = Phase::Upgrading;
        } else if flags & FLAG_FIXED_NEWSTYLE != 0 {
            self.negotiate(out);
        } else {
            self.name_export(out);
        }
        Ok(Step::Again)
    }

    /// Asks for what has to be agreed upon before the export.
    fn negotiate(&mut self, out: &mut Outbox) {
        if !self.allocation {
            return self.go(out);
        }
        out.put(&OptionHead::encode(OPT_STRUCTURED_REPLY, 0));
        self.phase = Phase::Structuring;
    }

    /// Asks for `base:allocation`.
    fn select(&mut self, out: &mut Outbox) {
        let length = 4 + self.export.len() + 4 + 4 + ALLOCATION.len();
        out.put(&OptionHead::encode(OPT_SET_META_CONTEXT, length as u32));
        out.put(&(self.export.len() as u32).to_be_bytes());
        out.put(self.export.as_bytes());
        out.put(&1u32.to_be_bytes());
        out.put(&(ALLOCATION.len() as u32).to_be_bytes());
        out.put(ALLOCATION.as_bytes());
        self.phase = Phase::Selecting;
    }

    /// Asks for the export, and for its block sizes.
    fn go(&mut self, out: &mut Outbox) {
        let length = 4 + self.export.len() + 2 + 2;
        out.put(&OptionHead::encode(OPT_GO, length as u32));
        out.put(&(self.export.len() as u32).to_be_bytes());
        out.put(self.export.as_bytes());
        out.put(&1u16.to_be_bytes());
        out.put(&INFO_BLOCK_SIZE.to_be_bytes());
        self.phase = Phase::Going;
    }

    fn name_export(&mut self, out: &mut Outbox) {
        out.put(&OptionHead::encode(OPT_EXPORT_NAME, self.export.len() as u32));
        out.put(self.export.as_bytes());
        self.phase = Phase::Naming;
    }

    fn option_reply(&mut self, rx: &mut Rope, events: &mut Vec<Event>, out: &mut Outbox) -> Result<Step, ClientError> {
        let mut raw = [0; OPTION_REPLY_BYTES];
        if !rx.peek(&mut raw) {
            return Ok(Step::Stop);
        }
        let head = OptionReplyHead::decode(&raw);
        let want = match self.phase {
            Phase::Upgrading => OPT_STARTTLS,
            Phase::Structuring => OPT_STRUCTURED_REPLY,
            Phase::Selecting => OPT_SET_META_CONTEXT,
            _ => OPT_GO,
        };
        if head.magic != MAGIC_OPTION_REPLY || head.option != want {
            return Err(ClientError::OptionReply { want, got: head.option, magic: head.magic });
        }
        if head.length as usize > 2 * STRING_BYTES_MAX {
            return Err(ClientError::OptionReplyLength(head.length));
        }
        if rx.len() < OPTION_REPLY_BYTES + head.length as usize {
            return Ok(Step::Stop);
        }
        rx.skip(OPTION_REPLY_BYTES);
        let data = rx.take(head.length as usize);
        match self.phase {
            Phase::Upgrading => self.upgrade_reply(head.reply, &data, rx, events, out),
            Phase::Structuring | Phase::Selecting => {
                self.preamble_reply(head.reply, &data, out);
                Ok(Step::Again)
            }
            _ => self.go_reply(head.reply, &data, rx, events, out),
        }
    }

    /// The answer to STARTTLS. What comes behind a grant in the clear is not of the server, which waits for the client to begin
    /// the handshake (RFC 8446, section 2): nothing that was said so far can be believed either.
    fn upgrade_reply(
        &mut self,
        reply: u32,
        data: &[u8],
        rx: &mut Rope,
        events: &mut Vec<Event>,
        out: &mut Outbox,
    ) -> Result<Step, ClientError> {
        if reply == REP_ACK && rx.is_empty() {
            self.phase = Phase::Securing;
            events.push(Event::Secure);
            return Ok(Step::Stop);
        }
        if reply == REP_ACK {
            return Err(ClientError::Injected(rx.len()));
        }
        if reply & REP_ERROR_BIT == 0 {
            return Ok(Step::Again);
        }
        out.put(&OptionHead::encode(OPT_ABORT, 0));
        rx.skip(rx.len());
        self.phase = Phase::Ended;
        let said = String::from_utf8_lossy(data);
        let why = match (clip(&said), reply) {
            ("", REP_ERR_UNSUP) => "it does not know of it",
            ("", code) => refusal_word(code),
            (said, _) => said,
        };
        let text = format!("the server offers no TLS, which is asked for here ({why})");
        events.push(Event::Refused { code: reply, text });
        Ok(Step::Stop)
    }

    /// The answer to what is asked before the export: a server that has none of it does without.
    fn preamble_reply(&mut self, reply: u32, data: &[u8], out: &mut Outbox) {
        match reply {
            REP_ACK if self.phase == Phase::Structuring => {
                self.structured = true;
                self.select(out);
            }
            REP_META_CONTEXT if data.len() >= 4 && data[4..] == *ALLOCATION.as_bytes() => {
                self.context = Some(be32(data, 0));
            }
            REP_ACK => self.go(out),
            code if code & REP_ERROR_BIT != 0 => {
                self.context = None;
                self.go(out);
            }
            // Other contexts, which nobody asked for.
            _ => {}
        }
    }

    /// The answer to GO.
    fn go_reply(
        &mut self,
        reply: u32,
        data: &[u8],
        rx: &mut Rope,
        events: &mut Vec<Event>,
        out: &mut Outbox,
    ) -> Result<Step, ClientError> {
        match reply {
            REP_INFO => self.option_info(data)?,
            REP_ACK => {
                let mut info = self.info.ok_or(ClientError::Info("it ends without size and flags"))?;
                (info.block_min, info.block_max) = (self.block_min, self.block_max);
                if info.block_min > 1 && info.size > PROBE_OFFSET {
                    self.probe(info, out);
                } else {
                    self.ready(info, events);
                }
            }
            REP_ERR_UNSUP => self.name_export(out),
            code if code & REP_ERROR_BIT != 0 => {
                // The soft way out, which the specification asks of a client that is turned away.
                out.put(&OptionHead::encode(OPT_ABORT, 0));
                rx.skip(rx.len());
                self.phase = Phase::Ended;
                let text = String::from_utf8_lossy(data);
                let text = if text.is_empty() { refusal_word(code).to_owned() } else { text.into_owned() };
                events.push(Event::Refused { code, text });
                return Ok(Step::Stop);
            }
            // Other answers are of extensions nobody asked for; the specification has them ignored.
            _ => {}
        }
        Ok(Step::Again)
    }

    fn option_info(&mut self, data: &[u8]) -> Result<(), ClientError> {
        if data.len() < 2 {
            return Err(ClientError::Info("an item without a type"));
        }
        match be16(data, 0) {
            INFO_EXPORT => {
                if data.len() != 12 {
                    return Err(ClientError::Info("size and flags have the wrong length"));
                }
                let (size, flags) = (be64(data, 2), be16(data, 10));
                self.info = Some(ExportInfo { size, flags, block_min: 1, block_max: PAYLOAD_BYTES_MAX });
            }
            INFO_BLOCK_SIZE => {
                if data.len() != 14 {
                    return Err(ClientError::Info("block sizes have the wrong length"));
                }
                let (min, max) = (be32(data, 2), be32(data, 10));
                if !min.is_power_of_two() || min > 1 << 16 || max < min {
                    return Err(ClientError::Info("block sizes contradict one another"));
                }
                self.block_min = min;
                self.block_max = max.min(PAYLOAD_BYTES_MAX) & !(min - 1);
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads one byte from the middle of a block.
    fn probe(&mut self, info: ExportInfo, out: &mut Outbox) {
        self.info = Some(info);
        self.phase = Phase::Probing;
        let number = self.inflight.insert(InFlight { cookie: 0, length: 1, asked: Asked::read(PROBE_OFFSET, 1) });
        out.put(&RequestHead::encode(0, CMD_READ, number, PROBE_OFFSET, 1));
    }

    /// The answer to the probe: EINVAL is what the specification has for a request that breaks a size constraint. Any
    /// other error is no verdict on sizes, and comes again where it matters.
    fn probe_reply(&mut self, rx: &mut Rope, events: &mut Vec<Event>, out: &mut Outbox) -> Result<Step, ClientError> {
        let step = self.reply(rx, events)?;
        if !self.inflight.is_empty() {
            return Ok(step);
        }
        let Some(Event::Done { result, .. }) = events.pop() else { unreachable!("a read is answered by one event") };
        let info = self.info.expect("it was there before the probe");
        match result {
            Err(Errno::Inval) => self.ready(info, events),
            Err(Errno::Shutdown) => {
                self.disconnect(out);
                let (code, text) = (REP_ERR_SHUTDOWN, refusal_word(REP_ERR_SHUTDOWN).to_owned());
                events.push(Event::Refused { code, text });
            }
            Ok(_) | Err(_) => self.ready(ExportInfo { block_min: 1, ..info }, events),
        }
        Ok(Step::Again)
    }

    fn export_name_reply(&mut self, rx: &mut Rope, events: &mut Vec<Event>) -> Result<Step, ClientError> {
        let padding = if self.no_zeroes { 0 } else { EXPORT_NAME_PADDING_BYTES };
        if rx.len() < EXPORT_NAME_REPLY_BYTES + padding {
            return Ok(Step::Stop);
        }
        let raw = rx.take(EXPORT_NAME_REPLY_BYTES);
        rx.skip(padding);
        let (size, flags) = (be64(&raw, 0), be16(&raw, 8));
        self.ready(ExportInfo { size, flags, block_min: 1, block_max: PAYLOAD_BYTES_MAX }, events);
        Ok(Step::Again)
    }

    fn ready(&mut self, info: ExportInfo, events: &mut Vec<Event>) {
        self.info = Some(info);
        self.phase = Phase::Ready;
        events.push(Event::Ready(info));
    }

    fn reply(&mut self, rx: &mut Rope, events: &mut Vec<Event>) -> Result<Step, ClientError> {
        let mut raw = [0; REPLY_BYTES];
        if !rx.peek(&mut raw) {
            return Ok(Step::Stop);
        }
        let head = ReplyHead::decode(&raw);
        if self.structured && head.magic == MAGIC_REPLY_STRUCTURED {
            return self.chunk(rx, events);
        }
        if head.magic != MAGIC_REPLY {
            return Err(ClientError::ReplyMagic(head.magic));
        }
        let Some(request) = self.inflight.get(head.cookie) else {
            return Err(ClientError::ReplyCookie(head.cookie));
        };
        let length = if head.error == 0 { request.length as usize } else { 0 };
        if rx.len() < REPLY_BYTES + length {
            return Ok(Step::Stop);
        }
        rx.skip(REPLY_BYTES);
        let data = rx.take(length);
        let request = self.inflight.remove(head.cookie).expect("it was found a moment ago");
        let result = if head.error == 0 { Ok(data) } else { Err(errno_from_wire(head.error)) };
        events.push(Event::Done { cookie: request.cookie, result });
        Ok(Step::Again)
    }

    /// One chunk of a structured reply ("Structured reply chunk message").
    fn chunk(&mut self, rx: &mut Rope, events: &mut Vec<Event>) -> Result<Step, ClientError> {
        let mut raw = [0; CHUNK_BYTES];
        if !rx.peek(&mut raw) {
            return Ok(Step::Stop);
        }
        let head = ChunkHead::decode(&raw);
        let Some(request) = self.inflight.get_mut(head.cookie) else {
            return Err(ClientError::ReplyCookie(head.cookie));
        };
        if head.length > request.asked.chunk_bytes_max() {
            return Err(ClientError::Chunk("it is longer than any answer to its request"));
        }
        if rx.len() < CHUNK_BYTES + head.length as usize {
            return Ok(Step::Stop);
        }
        rx.skip(CHUNK_BYTES);
        let chunk = Chunk::take(head.kind, head.length as usize, rx).map_err(ClientError::Chunk)?;
        request.asked.add(chunk).map_err(ClientError::Chunk)?;
        if head.flags & REPLY_FLAG_DONE != 0 {
            events.push(request.asked.done(request.cookie).map_err(ClientError::Chunk)?);
            self.inflight.remove(head.cookie);
        }
        Ok(Step::Again)
    }
}

/// Where one byte is read to learn whether a server insists on whole blocks.
const PROBE_OFFSET: u64 = 1;

/// What a refusal without a text means.
fn refusal_word(code: u32) -> &'static str {
    match code {
        REP_ERR_POLICY => "refused by the policy of the server",
        REP_ERR_PLATFORM => "the server cannot do this where it runs",
        REP_ERR_TLS_REQD => "the server insists on TLS: [tls] in the configuration, or nbds:// for a URI",
        REP_ERR_EXT_HEADER_REQD => "the server insists on extended headers, which this client does not speak",
        REP_ERR_UNKNOWN => "the server has no export of this name",
        REP_ERR_SHUTDOWN => "the server is shutting down",
        REP_ERR_BLOCK_SIZE_REQD => "the server insists on block sizes it did not name",
        REP_ERR_TOO_BIG => "the server finds the request too big",
        _ => "the server refused and gave no reason",
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
