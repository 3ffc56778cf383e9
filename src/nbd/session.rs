//! The server's side of one NBD connection, pure: bytes in, requests and replies out.
//!
//! ```text
//!   Flags ──► Options ──► Transmission ──► Finished
//!              │   ▲                          ▲
//!              ▼   │ resolved / listed        │ DISC, ABORT, refused EXPORT_NAME
//!            Waiting ─────────────────────────┘
//! ```
//!
//! Owns the handshake (fixed newstyle, no TLS, simple replies) and the checks of every request: who sits
//! behind it sees only ranges inside the export, of commands and flags the export offers. What is refused
//! is answered here, and its payload is skipped without being kept, so that the stream stays in step.
//! Does not own sockets, exports or what a request does.
//!
//! Invariants: I9 - requests and payload bytes in flight are bounded, `advance` stops parsing at the bound;
//! a request is answered exactly once, and the number that answers it is never taken for another one.

use bytes::Bytes;

use crate::core::errno::Errno;
use crate::core::rope::Rope;
use crate::limits::{CONNECTION_PAYLOAD_BYTES_MAX, CONNECTION_REQUESTS_MAX};
use crate::nbd::options::{Infos, clip, describe, go_data, list_item, option_reply, refused_option};
use crate::nbd::outbox::Outbox;
use crate::nbd::protocol::*;
use crate::nbd::slots::Slots;

/// What a client is told about an export, and what its requests are checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    pub name: String,
    pub description: String,
    /// Bytes.
    pub size: u64,
    pub read_only: bool,
    /// Offsets and lengths are multiples of it; a power of two.
    pub block_min: u32,
    pub block_preferred: u32,
    /// Longest payload of one request, bytes.
    pub block_max: u32,
    pub multi_conn: bool,
    pub trim: bool,
    pub zeroes: bool,
    pub fua: bool,
    pub flush: bool,
}

impl Export {
    /// The flags of the transmission phase.
    #[must_use]
    pub fn flags(&self) -> u16 {
        let offered = [
            (self.read_only, READ_ONLY),
            (self.flush, SEND_FLUSH),
            (self.fua, SEND_FUA),
            (self.trim && !self.read_only, SEND_TRIM),
            (self.zeroes && !self.read_only, SEND_WRITE_ZEROES),
            (self.multi_conn, CAN_MULTI_CONN),
        ];
        offered.iter().filter(|(on, _)| *on).fold(HAS_FLAGS, |flags, (_, flag)| flags | flag)
    }
}

/// Why the client asks about an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To know about it: must change nothing.
    Info,
    /// To use it.
    Go,
    /// To use it, by the old option that cannot be refused in words.
    ExportName,
}

/// A refused export: one of the protocol's `REP_ERR_…` and a text for the person at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: u32,
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The client asks for an export: answer with [`Session::resolved`]. Nothing is parsed before that.
    Resolve { name: String, purpose: Purpose },
    /// The client asks what there is: answer with [`Session::listed`]. Nothing is parsed before that.
    List,
    /// A checked request: answer with [`Session::reply`].
    Request(Request),
    /// The client is done; what is in flight is still to be answered.
    Disconnect,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What [`Session::reply`] wants back. Not the number the client chose.
    pub cookie: u64,
    pub kind: Kind,
}

/// Lengths are never 0 and ranges never leave the export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Read { offset: u64, length: u32 },
    Write { offset: u64, data: Bytes, fua: bool },
    Flush,
    Trim { offset: u64, length: u32, fua: bool },
    Zeroes { offset: u64, length: u32, fua: bool, no_hole: bool },
}

/// The client broke the protocol in a way that leaves the stream out of step: close the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error("client sent unknown handshake flags {0:#010x}: not an NBD client, or a newer protocol")]
    ClientFlags(u32),
    #[error("expected an option of the NBD handshake, got {0:#018x} where its magic number belongs")]
    OptionMagic(u64),
    #[error("export name of {0} bytes, longer than the {STRING_BYTES_MAX} the protocol allows")]
    NameLength(u32),
    #[error("export name is not UTF-8")]
    NameText,
    #[error("expected an NBD request, got {0:#010x} where its magic number belongs")]
    RequestMagic(u32),
}

/// The server's side of one connection.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    no_zeroes: bool,
    inflight: Slots<InFlight>,
    /// Payload bytes of the requests in flight, both ways.
    inflight_bytes: u64,
    blocked: bool,
    write_bytes: u32,
    reads_since_write: u32,
}

#[derive(Debug)]
enum Phase {
    Flags,
    Options,
    /// The data of a refused option is passing by.
    OptionSkip {
        left: u64,
        option: u32,
        code: u32,
        text: &'static str,
    },
    Resolving {
        option: u32,
        purpose: Purpose,
        infos: Infos,
    },
    Listing,
    Transmission {
        export: Export,
    },
    /// The payload of a refused write is passing by.
    PayloadSkip {
        export: Export,
        left: u64,
        cookie: u64,
        errno: Errno,
    },
    Finished,
}

#[derive(Debug)]
struct InFlight {
    client_cookie: u64,
    length: u32,
    read: bool,
}

/// Whether parsing goes on with what is there.
enum Step {
    Again,
    Stop,
}

impl Default for Session {
    fn default() -> Self {
        Session::new()
    }
}

impl Session {
    #[must_use]
    pub fn new() -> Session {
        Session {
            phase: Phase::Flags,
            no_zeroes: false,
            inflight: Slots::default(),
            inflight_bytes: 0,
            blocked: false,
            write_bytes: 0,
            reads_since_write: 0,
        }
    }

    /// The server speaks first: call once, before anything else.
    pub fn greet(&mut self, out: &mut Outbox) {
        out.put(&MAGIC_SERVER.to_be_bytes());
        out.put(&MAGIC_OPTION.to_be_bytes());
        out.put(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    }

    /// Parses what has arrived. Stops at the end of what is complete, at a question to be answered, or at
    /// the bound of requests in flight: call it again after each of these has changed.
    pub fn advance(&mut self, rx: &mut Rope, events: &mut Vec<Event>, out: &mut Outbox) -> Result<(), SessionError> {
        self.blocked = false;
        loop {
            let step = match &mut self.phase {
                Phase::Transmission { .. } => self.request(rx, events, out)?,
                Phase::PayloadSkip { left, .. } => {
                    skip(rx, left);
                    if *left == 0 { self.payload_skipped(out) } else { Step::Stop }
                }
                Phase::Flags => self.client_flags(rx)?,
                Phase::Options => self.option(rx, events, out)?,
                Phase::OptionSkip { left, option, code, text } => {
                    skip(rx, left);
                    if *left == 0 {
                        option_reply(out, *option, *code, text.as_bytes());
                        self.phase = Phase::Options;
                        Step::Again
                    } else {
                        Step::Stop
                    }
                }
                Phase::Resolving { .. } | Phase::Listing => Step::Stop,
                Phase::Finished => {
                    rx.skip(rx.len());
                    Step::Stop
                }
            };
            if let Step::Stop = step {
                return Ok(());
            }
        }
    }

    /// Answers a [`Event::Resolve`].
    pub fn resolved(&mut self, result: Result<Export, Refusal>, out: &mut Outbox) {
        let Phase::Resolving { option, purpose, infos } = self.phase else {
            panic!("an export was resolved that no client asked for");
        };
        self.phase = match (result, purpose) {
            (Ok(export), Purpose::ExportName) => {
                out.put(&export.size.to_be_bytes());
                out.put(&export.flags().to_be_bytes());
                if !self.no_zeroes {
                    out.put(&[0; EXPORT_NAME_PADDING_BYTES]);
                }
                Phase::Transmission { export }
            }
            (Ok(export), _) => {
                describe(out, option, &export, infos);
                if purpose == Purpose::Go { Phase::Transmission { export } } else { Phase::Options }
            }
            // The old option has no answer in words: the specification has the server close the connection.
            (Err(_), Purpose::ExportName) => Phase::Finished,
            (Err(refusal), _) => {
                assert!(refusal.code & REP_ERROR_BIT != 0, "a refusal carries an error code");
                option_reply(out, option, refusal.code, clip(&refusal.text).as_bytes());
                Phase::Options
            }
        };
    }

    /// Answers a [`Event::List`] with (name, description) of each export.
    pub fn listed(&mut self, exports: &[(String, String)], out: &mut Outbox) {
        assert!(matches!(self.phase, Phase::Listing), "a list was given that no client asked for");
        exports.iter().for_each(|(name, description)| list_item(out, name, description));
        option_reply(out, OPT_LIST, REP_ACK, b"");
        self.phase = Phase::Options;
    }

    /// Answers a request: the bytes of a read, nothing otherwise.
    pub fn reply(&mut self, cookie: u64, result: Result<Bytes, Errno>, out: &mut Outbox) {
        let request = self.inflight.remove(cookie).expect("a request is answered once, by the cookie it came with");
        self.inflight_bytes -= u64::from(request.length);
        match result {
            Ok(data) => {
                let length = if request.read { request.length as usize } else { 0 };
                assert_eq!(data.len(), length, "a read is answered with the bytes it asked for, the rest with none");
                out.put(&ReplyHead::encode(0, request.client_cookie));
                out.push(data);
                if !request.read {
                    out.promise();
                }
            }
            Err(errno) => out.put(&ReplyHead::encode(errno as u32, request.client_cookie)),
        }
    }

    /// Payload length of the next write, guessed from the last one: 0 when the client has turned to reading.
    #[must_use]
    pub fn body_hint(&self) -> usize {
        if self.reads_since_write < READS_FORGET_WRITES { self.write_bytes as usize } else { 0 }
    }

    /// Whether `advance` stopped because too much is in flight, with a request left to be parsed.
    #[must_use]
    pub fn blocked(&self) -> bool {
        self.blocked
    }

    /// Whether the connection is to be closed once what is in flight has been answered.
    #[must_use]
    pub fn finished(&self) -> bool {
        matches!(self.phase, Phase::Finished)
    }

    /// Whether the handshake is over.
    #[must_use]
    pub fn transmitting(&self) -> bool {
        matches!(self.phase, Phase::Transmission { .. } | Phase::PayloadSkip { .. })
    }

    /// Requests not answered yet.
    #[must_use]
    pub fn inflight(&self) -> usize {
        self.inflight.len()
    }

    fn client_flags(&mut self, rx: &mut Rope) -> Result<Step, SessionError> {
        let mut raw = [0; 4];
        if !rx.peek(&mut raw) {
            return Ok(Step::Stop);
        }
        rx.skip(raw.len());
        let flags = u32::from_be_bytes(raw);
        if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
            return Err(SessionError::ClientFlags(flags));
        }
        self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
        self.phase = Phase::Options;
        Ok(Step::Again)
    }

    fn option(&mut self, rx: &mut Rope, events: &mut Vec<Event>, out: &mut Outbox) -> Result<Step, SessionError> {
        let mut raw = [0; OPTION_BYTES];
        if !rx.peek(&mut raw) {
            return Ok(Step::Stop);
        }
        let head = OptionHead::decode(&raw);
        if head.magic != MAGIC_OPTION {
            return Err(SessionError::OptionMagic(head.magic));
        }
        if head.option == OPT_EXPORT_NAME && head.length as usize > STRING_BYTES_MAX {
            return Err(SessionError::NameLength(head.length));
        }
        if let Some((code, text)) = refused_option(&head) {
            rx.skip(OPTION_BYTES);
            self.phase = Phase::OptionSkip { left: u64::from(head.length), option: head.option, code, text };
            return Ok(Step::Again);
        }
        let length = head.length as usize;
        if rx.len() < OPTION_BYTES + length {
            return Ok(Step::Stop);
        }
        rx.skip(OPTION_BYTES);
        let data = rx.take(length);
        match head.option {
            OPT_ABORT => {
                option_reply(out, OPT_ABORT, REP_ACK, b"");
                self.phase = Phase::Finished;
                events.push(Event::Disconnect);
            }
            OPT_LIST => {
                self.phase = Phase::Listing;
                events.push(Event::List);
            }
            OPT_EXPORT_NAME => {
                let name = str::from_utf8(&data).map_err(|_| SessionError::NameText)?.to_owned();
                let purpose = Purpose::ExportName;
                self.phase = Phase::Resolving { option: head.option, purpose, infos: Infos::default() };
                events.push(Event::Resolve { name, purpose });
            }
            _ => {
                let purpose = if head.option == OPT_GO { Purpose::Go } else { Purpose::Info };
                match go_data(&data) {
                    Ok((name, infos)) => {
                        self.phase = Phase::Resolving { option: head.option, purpose, infos };
                        events.push(Event::Resolve { name, purpose });
                    }
                    Err(text) => option_reply(out, head.option, REP_ERR_INVALID, text.as_bytes()),
                }
            }
        }
        Ok(Step::Again)
    }

    fn request(&mut self, rx: &mut Rope, events: &mut Vec<Event>, out: &mut Outbox) -> Result<Step, SessionError> {
        let Phase::Transmission { export } = &self.phase else { unreachable!("called in the transmission phase only") };
        let mut raw = [0; REQUEST_BYTES];
        if !rx.peek(&mut raw) {
            return Ok(Step::Stop);
        }
        let head = RequestHead::decode(&raw);
        if head.magic != MAGIC_REQUEST {
            return Err(SessionError::RequestMagic(head.magic));
        }
        let payload = if head.command == CMD_WRITE { head.length as usize } else { 0 };
        match check(export, &head) {
            Verdict::Disconnect => {
                rx.skip(rx.len());
                self.phase = Phase::Finished;
                events.push(Event::Disconnect);
                return Ok(Step::Stop);
            }
            Verdict::Refused(errno) => {
                rx.skip(REQUEST_BYTES);
                if payload == 0 {
                    out.put(&ReplyHead::encode(errno as u32, head.cookie));
                } else {
                    self.start_payload_skip(payload as u64, head.cookie, errno);
                }
                return Ok(Step::Again);
            }
            Verdict::Nothing => {
                rx.skip(REQUEST_BYTES);
                out.put(&ReplyHead::encode(0, head.cookie));
                return Ok(Step::Again);
            }
            Verdict::Accepted => {}
        }
        let moves = if matches!(head.command, CMD_READ | CMD_WRITE) { head.length } else { 0 };
        self.blocked = self.inflight.len() >= CONNECTION_REQUESTS_MAX
            || (self.inflight_bytes > 0 && self.inflight_bytes + u64::from(moves) > CONNECTION_PAYLOAD_BYTES_MAX);
        if self.blocked || rx.len() < REQUEST_BYTES + payload {
            self.remember(&head);
            return Ok(Step::Stop);
        }
        rx.skip(REQUEST_BYTES);
        let data = rx.take(payload);
        self.remember(&head);
        self.inflight_bytes += u64::from(moves);
        let read = head.command == CMD_READ;
        let cookie = self.inflight.insert(InFlight { client_cookie: head.cookie, length: moves, read });
        if read {
            self.reads_since_write = self.reads_since_write.saturating_add(1);
        }
        events.push(Event::Request(Request { cookie, kind: kind(&head, data) }));
        Ok(Step::Again)
    }

    /// Notes the length of a write as soon as its head is there: the rest of a long one profits already.
    fn remember(&mut self, head: &RequestHead) {
        if head.command == CMD_WRITE {
            self.write_bytes = head.length;
            self.reads_since_write = 0;
        }
    }

    fn start_payload_skip(&mut self, left: u64, cookie: u64, errno: Errno) {
        let Phase::Transmission { export } = std::mem::replace(&mut self.phase, Phase::Finished) else {
            unreachable!("called in the transmission phase only")
        };
        self.phase = Phase::PayloadSkip { export, left, cookie, errno };
    }

    fn payload_skipped(&mut self, out: &mut Outbox) -> Step {
        let Phase::PayloadSkip { export, cookie, errno, .. } = std::mem::replace(&mut self.phase, Phase::Finished)
        else {
            unreachable!("called while a payload is skipped only")
        };
        out.put(&ReplyHead::encode(errno as u32, cookie));
        self.phase = Phase::Transmission { export };
        Step::Again
    }
}

/// What is to become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Accepted,
    /// Succeeds without anything being done.
    Nothing,
    Refused(Errno),
    Disconnect,
}

/// Checks a request against its export; which error means what is in "Error values" and "Request types".
fn check(export: &Export, head: &RequestHead) -> Verdict {
    use Verdict::{Accepted, Disconnect, Nothing, Refused};

    let (offered, changes) = match head.command {
        CMD_DISC => return Disconnect,
        CMD_READ => (true, false),
        CMD_WRITE => (true, true),
        CMD_FLUSH => (export.flush, false),
        CMD_TRIM => (export.trim, true),
        CMD_WRITE_ZEROES => (export.zeroes, true),
        _ => (false, false),
    };
    let fua = if export.fua { CMD_FLAG_FUA } else { 0 };
    let no_hole = if head.command == CMD_WRITE_ZEROES { CMD_FLAG_NO_HOLE } else { 0 };
    if !offered || head.flags & !(fua | no_hole) != 0 {
        return Refused(Errno::Inval);
    }
    if changes && export.read_only {
        return Refused(Errno::Perm);
    }
    if head.command == CMD_FLUSH {
        return if head.offset == 0 && head.length == 0 { Accepted } else { Refused(Errno::Inval) };
    }
    let inside = head.offset.checked_add(u64::from(head.length)).is_some_and(|end| end <= export.size);
    let aligned = (head.offset | u64::from(head.length)) & u64::from(export.block_min.max(1) - 1) == 0;
    let carries = matches!(head.command, CMD_READ | CMD_WRITE);
    match (inside, head.command) {
        (false, CMD_WRITE | CMD_WRITE_ZEROES) => Refused(Errno::NoSpc),
        (false, _) => Refused(Errno::Inval),
        (true, _) if !aligned || (carries && head.length > export.block_max) => Refused(Errno::Inval),
        (true, _) if head.length == 0 => Nothing,
        (true, _) => Accepted,
    }
}

fn kind(head: &RequestHead, data: Bytes) -> Kind {
    let (offset, length) = (head.offset, head.length);
    let fua = head.flags & CMD_FLAG_FUA != 0;
    match head.command {
        CMD_READ => Kind::Read { offset, length },
        CMD_WRITE => Kind::Write { offset, data, fua },
        CMD_FLUSH => Kind::Flush,
        CMD_TRIM => Kind::Trim { offset, length, fua },
        CMD_WRITE_ZEROES => Kind::Zeroes { offset, length, fua, no_hole: head.flags & CMD_FLAG_NO_HOLE != 0 },
        other => unreachable!("command {other} was refused before"),
    }
}

fn skip(rx: &mut Rope, left: &mut u64) {
    let now = usize::try_from(*left).unwrap_or(usize::MAX).min(rx.len());
    rx.skip(now);
    *left -= now as u64;
}

/// After so many reads without a write the next request is expected to have no payload.
const READS_FORGET_WRITES: u32 = 16;

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
