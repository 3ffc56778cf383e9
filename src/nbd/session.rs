//! The server's side of one NBD connection, pure: bytes in, requests and replies out.
//!
//! ```text
//!   Handshake ──────────► Transmission ─────► over
//!      │    ▲                                  ▲
//!      ▼    │ resolved / listed                │ DISC, ABORT, refused EXPORT_NAME
//!    waiting ──────────────────────────────────┘
//! ```
//!
//! Owns what the two phases share with who sits behind them: that one sees only ranges inside the export, of commands
//! and flags the export offers. The phases are in `handshake` (with `options` and `meta`) and `transmission` (with
//! `check` and `reply`). Does not own sockets, exports or what a request does.

use bytes::Bytes;

use crate::core::allocation::Stretch;
use crate::core::errno::Errno;
use crate::core::modes::TlsMode;
use crate::core::rope::Rope;
use crate::nbd::budget::{Held, Lanes, Share, Ways};
pub use crate::nbd::export::Export;
use crate::nbd::handshake::{Handshake, Outcome};
use crate::nbd::outbox::Outbox;
use crate::nbd::protocol::STRING_BYTES_MAX;
use crate::nbd::transmission::Transmission;

/// Why the client asks about an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To know about it, or about its metadata contexts: must change nothing.
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
    /// The client was granted TLS: send what there is, begin it, and say [`Session::secured`]. Nothing is parsed before.
    Secure,
    /// A checked request: answer with [`Session::reply`], or [`Session::status`] if it is a [`Kind::Status`].
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

/// Lengths are never 0 and ranges never leave the export. Those of `Trim` and `Zeroes` are at most `RANGE_BYTES_MAX`, those of
/// `Read` and `Write` at most `PAYLOAD_PIECE_BYTES_MAX`: what is longer is asked for in pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Read {
        offset: u64,
        length: u32,
    },
    Write {
        offset: u64,
        data: Bytes,
        fua: bool,
    },
    Flush,
    Trim {
        offset: u64,
        length: u64,
        fua: bool,
    },
    /// `fast`: to be refused at once with `NotSup`, nothing changed, if writing zeroes would not be slower.
    Zeroes {
        offset: u64,
        length: u64,
        fua: bool,
        no_hole: bool,
        fast: bool,
    },
    /// The client will read this soon.
    Cache {
        offset: u64,
        length: u64,
    },
    /// Which parts have storage. `one`: only the first stretch is wanted.
    Status {
        offset: u64,
        length: u64,
        one: bool,
    },
}

/// The client broke the protocol in a way that leaves the stream out of step, or we had to: close the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error("client sent unknown handshake flags {0:#010x}: not an NBD client, or a newer protocol")]
    ClientFlags(u32),
    #[error("expected an option of the NBD handshake, got {0:#018x} where its magic number belongs")]
    OptionMagic(u64),
    #[error("export name of {0} bytes, longer than the {STRING_BYTES_MAX} the protocol allows")]
    NameLength(u32),
    #[error("export name: {0}")]
    NameText(&'static str),
    #[error("the client names an export without TLS, which is required here, by an option that has no answer in words")]
    TlsRequired,
    #[error(
        "{0} bytes in the clear follow STARTTLS, behind which a client waits for its answer: somebody on the way may have put \
         them there"
    )]
    Injected(usize),
    #[error("the client chose extended headers, and then the option EXPORT_NAME, which has no place for them")]
    NameExtended,
    #[error("expected an NBD request, got {0:#010x} where its magic number belongs")]
    RequestMagic(u32),
    #[error("a payload of {0} bytes, longer than the longest that was agreed on")]
    PayloadLength(u64),
    #[error("a read failed in the middle of its reply, which in simple replies only the end of the connection can say")]
    ReplyBroken,
}

/// The server's side of one connection.
#[derive(Debug, Default)]
pub struct Session {
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Handshake(Handshake),
    Transmission(Box<Transmission>),
}

impl Default for Phase {
    fn default() -> Phase {
        Phase::Handshake(Handshake::default())
    }
}

/// Whether parsing goes on with what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Again,
    Stop,
}

impl Session {
    #[must_use]
    pub fn new() -> Session {
        Session::default()
    }

    /// A session in which TLS has this part; it is off in a [`Session::new`].
    #[must_use]
    pub fn with_tls(tls: TlsMode) -> Session {
        Session { phase: Phase::Handshake(Handshake::new(tls)) }
    }

    /// The connection has become secure, as a [`Event::Secure`] wanted.
    ///
    /// # Panics
    /// When none did.
    pub fn secured(&mut self) {
        match &mut self.phase {
            Phase::Handshake(handshake) => handshake.secured(),
            Phase::Transmission(_) => panic!("a connection became secure that no client asked to be"),
        }
    }

    /// The server speaks first: call once, before anything else.
    pub fn greet(&mut self, out: &mut Outbox) {
        Handshake::greet(out);
    }

    /// Parses what has arrived. Stops at the end of what is complete, at a question to be answered, at the bound of
    /// requests in flight, or where the outbox is full: call it again after each of these has changed.
    ///
    /// # Errors
    /// What leaves the stream out of step.
    pub fn advance(&mut self, rx: &mut Rope, events: &mut Vec<Event>, out: &mut Outbox) -> Result<(), SessionError> {
        if let Phase::Transmission(transmission) = &mut self.phase {
            transmission.resume(events);
        }
        loop {
            let step = match &mut self.phase {
                Phase::Transmission(transmission) => transmission.step(rx, events, out)?,
                Phase::Handshake(handshake) => handshake.step(rx, events, out)?,
            };
            if let Step::Stop = step {
                return Ok(());
            }
        }
    }

    /// Answers a [`Event::Resolve`].
    ///
    /// # Panics
    /// When nothing was asked.
    pub fn resolved(&mut self, result: Result<Export, Refusal>, out: &mut Outbox) {
        let Phase::Handshake(handshake) = &mut self.phase else {
            panic!("an export was resolved that no client asked for");
        };
        if let Outcome::Begins { export, style, allocation } = handshake.resolved(result, out) {
            self.phase = Phase::Transmission(Box::new(Transmission::new(export, style, allocation)));
        }
    }

    /// The export has this size from now on. The protocol has no word for it: who is connected hears of it elsewhere, or
    /// keeps to the size it was told.
    pub fn resized(&mut self, size: u64) {
        if let Phase::Transmission(transmission) = &mut self.phase {
            transmission.resized(size);
        }
    }

    /// Answers a [`Event::List`] with (name, description) of each export.
    ///
    /// # Panics
    /// When nothing was asked.
    pub fn listed(&mut self, exports: &[(String, String)], out: &mut Outbox) {
        match &mut self.phase {
            Phase::Handshake(handshake) => handshake.listed(exports, out),
            Phase::Transmission(_) => panic!("a list was given that no client asked for"),
        }
    }

    /// Answers a request: the bytes of a read, nothing otherwise.
    ///
    /// # Panics
    /// When it is answered twice, or with what it did not ask for.
    pub fn reply(&mut self, cookie: u64, result: Result<Bytes, Errno>, out: &mut Outbox) {
        self.transmission_mut().reply(cookie, result, out);
    }

    /// Answers a [`Kind::Status`]: stretches from its offset on, at least one and not more than it asked for.
    ///
    /// # Panics
    /// When it is answered twice, or with what it did not ask for.
    pub fn status(&mut self, cookie: u64, stretches: &[Stretch], out: &mut Outbox) {
        self.transmission_mut().status(cookie, stretches, out);
    }

    /// Refuses whatever is still to be negotiated: the server is being shut down.
    pub fn shut_down(&mut self) {
        if let Phase::Handshake(handshake) = &mut self.phase {
            handshake.shut_down();
        }
    }

    /// What may begin of each way: all connections share what there is.
    pub fn set_room(&mut self, room: Ways<Share>) {
        if let Phase::Transmission(transmission) = &mut self.phase {
            transmission.set_room(room);
        }
    }

    /// A write that is not small takes its room once the beginning of its payload is there, if `there` is given: in what was
    /// received, or among so many bytes that wait to be.
    pub fn set_thrift(&mut self, there: Option<usize>) {
        if let Phase::Transmission(transmission) = &mut self.phase {
            transmission.set_thrift(there);
        }
    }

    /// Memory of the payloads in flight, bytes; a write that is not small is from its head on.
    #[must_use]
    pub fn inflight_bytes(&self) -> Held {
        self.transmission().map_or(Held::default(), Transmission::inflight)
    }

    /// The part of it that is of a write which has not arrived completely.
    #[must_use]
    pub fn arriving_bytes(&self) -> Lanes<u64> {
        self.transmission().map_or(Lanes::default(), Transmission::arriving)
    }

    /// Bytes of data among the answers that wait behind a reply which nothing may come between.
    #[must_use]
    pub fn deferred_bytes(&self) -> u64 {
        self.transmission().map_or(0, Transmission::deferred_bytes)
    }

    /// Bytes of the next payload, or of the piece of one that is arriving, guessed from the last write: 0 when the client
    /// has turned to reading.
    #[must_use]
    pub fn body_hint(&self) -> usize {
        self.transmission().map_or(0, Transmission::body_hint)
    }

    /// Bytes of the head that comes before it: 0 in the middle of a payload.
    #[must_use]
    pub fn head_bytes(&self) -> usize {
        self.transmission().map_or(0, Transmission::head_bytes)
    }

    /// Whether `advance` stopped because too much is in flight, with a request left to be parsed.
    #[must_use]
    pub fn blocked(&self) -> bool {
        self.transmission().is_some_and(Transmission::blocked)
    }

    /// Whether `advance` stopped there, or in the middle of a read in pieces.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.transmission().is_some_and(Transmission::waits)
    }

    /// Whether `advance` stopped because too many bytes of small replies wait, or are owed, with something left to be parsed.
    #[must_use]
    pub fn full(&self) -> bool {
        match &self.phase {
            Phase::Handshake(handshake) => handshake.is_full(),
            Phase::Transmission(transmission) => transmission.is_full(),
        }
    }

    /// What the next request needs, when it waits for what other connections hold.
    #[must_use]
    pub fn wants(&self) -> Option<Held> {
        self.transmission().and_then(Transmission::wants)
    }

    /// Whether the connection is to be closed once what is in flight has been answered.
    #[must_use]
    pub fn finished(&self) -> bool {
        match &self.phase {
            Phase::Handshake(handshake) => handshake.is_over(),
            Phase::Transmission(transmission) => transmission.is_over(),
        }
    }

    /// Whether the handshake is over.
    #[must_use]
    pub fn transmitting(&self) -> bool {
        self.transmission().is_some_and(|transmission| !transmission.is_over())
    }

    /// Whether anything that was asked has yet to be carried out.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.transmission().is_some_and(Transmission::is_asked)
    }

    /// Requests not answered yet, and pieces of them.
    #[must_use]
    pub fn inflight(&self) -> usize {
        self.transmission().map_or(0, Transmission::requests)
    }

    fn transmission(&self) -> Option<&Transmission> {
        match &self.phase {
            Phase::Handshake(_) => None,
            Phase::Transmission(transmission) => Some(transmission),
        }
    }

    fn transmission_mut(&mut self) -> &mut Transmission {
        match &mut self.phase {
            Phase::Handshake(_) => panic!("a request was answered that no client made"),
            Phase::Transmission(transmission) => transmission,
        }
    }
}

/// Drops what is there of `left` bytes that pass by.
pub fn skip(rx: &mut Rope, left: &mut u64) {
    let now = usize::try_from(*left).unwrap_or(usize::MAX).min(rx.len());
    rx.skip(now);
    *left -= now as u64;
}

#[cfg(test)]
#[path = "session_tests.rs"]
pub(in crate::nbd) mod tests;
