//! The replication connections of a DR site: bytes to messages and back.
//!
//! Owns each connection's encoder, and what is expected on it: payloads of a stream are as long as the last
//! one mostly, so the reactor is told to receive the next where it can be written from.
//!
//! Invariants: nothing is read from a connection that was given up; what the machine says before it closes
//! a connection goes out before the end; a peer that takes nothing is cut off at a bound (I9).

use std::collections::HashMap;

use bytes::Bytes;

use crate::cluster::status::{LinkStatus, seconds};
use crate::core::ids::Conn;
use crate::format::FormatError;
use crate::format::wire::{self, CHUNK_HEAD_BYTES, Encoder, Message, PAYLOAD_HEAD_BYTES, Patch, Purpose, Unpacker};
use crate::io::Reactor;
use crate::limits::BLOCK_BYTES;

/// Bytes queued to a peer that does not take them, at which it is cut off: acknowledgements are small.
const QUEUE_BYTES_MAX: usize = 16 << 20;

#[derive(Default)]
pub struct Links {
    links: HashMap<Conn, Link>,
    dirty: Vec<Conn>,
    out: Vec<Bytes>,
    held: bool,
    /// Of all connections since the start; `order_bytes`: both ways, without those of the streams.
    sent_bytes: u64,
    received_bytes: u64,
    order_bytes: u64,
}

/// Whether data that was received keeps much more memory than its own from use: it is far shorter than the pages it has
/// for itself, or it was not expected and lies somewhere among other messages.
fn pins_more(bytes: usize, expected: bool) -> bool {
    let pages = bytes.next_multiple_of(BLOCK_BYTES);
    bytes > 0 && if expected { bytes < pages / 4 * 3 } else { bytes <= COPIED_BYTES_MAX }
}

/// Longest data that is copied to be rid of what it lies among; longer data has most of that for itself.
const COPIED_BYTES_MAX: usize = 64 << 10;

struct Link {
    peer: String,
    encoder: Encoder,
    /// Of a stream that was welcomed: nobody else sends packed frames.
    unpacker: Option<Unpacker>,
    /// It has said that it is to be one.
    asks_stream: bool,
    dirty: bool,
    /// Being closed, by the machine or for what it said: nothing more is read from it.
    closing: bool,
    /// It has brought payload: a stream, which may be held back. Order connections never are.
    stream: bool,
    /// Head and data of the last message with data.
    hint: (usize, usize),
    /// When our ping left that has not been answered yet, monotonic; and the last round trip, nanoseconds.
    pinged_ns: Option<u64>,
    rtt_ns: Option<u64>,
}

impl Links {
    pub fn add(&mut self, conn: Conn, peer: String) {
        let link = Link {
            peer,
            encoder: Encoder::new(),
            unpacker: None,
            asks_stream: false,
            dirty: false,
            closing: false,
            stream: false,
            hint: (0, 0),
            pinged_ns: None,
            rtt_ns: None,
        };
        self.links.insert(conn, link);
    }

    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Whether it is one of these and still read from.
    pub fn is_open(&self, conn: Conn) -> bool {
        self.links.get(&conn).is_some_and(|link| !link.closing)
    }

    pub fn peer(&self, conn: Conn) -> &str {
        self.links.get(&conn).map_or("", |link| &link.peer)
    }

    /// Forgets a connection that has ended; who it was, if it was one of these.
    pub fn closed(&mut self, conn: Conn) -> Option<String> {
        self.links.remove(&conn).map(|link| link.peer)
    }

    /// The next whole message of a connection.
    pub fn next(&mut self, reactor: &mut Reactor, conn: Conn) -> Result<Option<Message>, FormatError> {
        let Some(link) = self.links.get_mut(&conn).filter(|link| !link.closing) else { return Ok(None) };
        let rx = reactor.rx(conn);
        let before = rx.len();
        let (mut message, packed) = match &mut link.unpacker {
            Some(unpacker) => unpacker.next(rx)?.map_or((None, false), |(message, packed)| (Some(message), packed)),
            None => (wire::decode(rx)?, false),
        };
        let taken = (before - rx.len()) as u64;
        self.received_bytes += taken;
        self.order_bytes += if link.stream { 0 } else { taken };
        let hint = match &message {
            // Of what is packed nothing is to be foreseen.
            Some(_) if packed => link.hint,
            Some(Message::Hello(hello)) => {
                link.asks_stream = hello.purpose == Purpose::Stream;
                return Ok(message);
            }
            Some(Message::Payload { data, .. }) => (PAYLOAD_HEAD_BYTES, data.len()),
            Some(Message::Chunk { data, .. }) => (CHUNK_HEAD_BYTES, data.len()),
            // How much of it comes as data is not to be foreseen.
            Some(Message::Patch(_)) => link.hint,
            _ => return Ok(message),
        };
        if !std::mem::replace(&mut link.stream, true) && self.held {
            reactor.pause(conn, true);
        }
        let expected = std::mem::replace(&mut link.hint, hint) == hint;
        if !expected {
            reactor.hint(conn, hint.0, hint.1);
        }
        if let Some(Message::Payload { data, .. } | Message::Chunk { data, .. } | Message::Patch(Patch { data, .. })) =
            &mut message
            && pins_more(data.len(), expected)
        {
            *data = Bytes::copy_from_slice(data);
        }
        Ok(message)
    }

    pub fn send(&mut self, reactor: &mut Reactor, conn: Conn, message: &Message) {
        let Some(link) = self.links.get_mut(&conn).filter(|link| !link.closing) else { return };
        if matches!(message, Message::Welcome(_)) && link.asks_stream {
            link.unpacker = Some(Unpacker::default());
        }
        link.encoder.push(message, &mut self.out);
        if !std::mem::replace(&mut link.dirty, true) {
            self.dirty.push(conn);
        }
        self.give(reactor, conn);
    }

    /// Gives the reactor what was encoded for a connection.
    fn give(&mut self, reactor: &mut Reactor, conn: Conn) {
        let stream = self.links.get(&conn).is_some_and(|link| link.stream);
        for part in self.out.drain(..) {
            self.sent_bytes += part.len() as u64;
            self.order_bytes += if stream { 0 } else { part.len() as u64 };
            reactor.send(conn, part);
        }
    }

    /// Measures the round trip of the order connection, whenever the primary measures its own.
    pub fn measure(&mut self, reactor: &mut Reactor, conn: Conn, message: &Message) {
        let Some(link) = self.links.get_mut(&conn).filter(|link| !link.stream) else { return };
        let now_ns = reactor.now().mono_ns;
        match message {
            Message::Ping { .. } if link.pinged_ns.is_none() => {
                link.pinged_ns = Some(now_ns);
                self.send(reactor, conn, &Message::Ping { nonce: now_ns });
            }
            Message::Pong { nonce } if link.pinged_ns == Some(*nonce) => {
                link.pinged_ns = None;
                link.rtt_ns = Some(now_ns - nonce);
            }
            _ => {}
        }
    }

    /// What is known here of the link to the primary, whose order connection is `order`.
    pub fn describe(&self, order: Option<Conn>, status: &mut LinkStatus) {
        let order = order.and_then(|conn| self.links.get(&conn));
        status.address = order.map(|link| link.peer.clone()).unwrap_or_default();
        status.rtt_seconds = order.and_then(|link| link.rtt_ns).map(seconds);
        (status.sent_bytes, status.received_bytes) = (self.sent_bytes, self.received_bytes);
        status.order_bytes = self.order_bytes;
    }

    /// Sends what the encoders still hold: once a turn.
    pub fn flush(&mut self, reactor: &mut Reactor) {
        for conn in std::mem::take(&mut self.dirty) {
            let Some(link) = self.links.get_mut(&conn) else { continue };
            link.dirty = false;
            link.encoder.flush(&mut self.out);
            self.give(reactor, conn);
            if reactor.queued_bytes(conn) > QUEUE_BYTES_MAX {
                self.give_up(reactor, conn, "takes no acknowledgements");
            }
        }
    }

    /// Closes a connection after what was sent on it.
    pub fn close(&mut self, reactor: &mut Reactor, conn: Conn, reason: &str) {
        let Some(link) = self.links.get_mut(&conn).filter(|link| !link.closing) else { return };
        link.encoder.flush(&mut self.out);
        link.closing = true;
        self.give(reactor, conn);
        reactor.close(conn, reason);
    }

    /// Ends a connection at once.
    pub fn give_up(&mut self, reactor: &mut Reactor, conn: Conn, reason: &str) {
        if let Some(link) = self.links.get_mut(&conn) {
            link.closing = true;
            reactor.abort(conn, reason);
        }
    }

    pub fn close_all(&mut self, reactor: &mut Reactor, reason: &str) {
        let all: Vec<Conn> = self.links.keys().copied().collect();
        all.into_iter().for_each(|conn| self.close(reactor, conn, reason));
    }

    /// Holds the streams back, or lets them go on.
    pub fn hold(&mut self, reactor: &mut Reactor, held: bool) {
        if std::mem::replace(&mut self.held, held) == held {
            return;
        }
        for (conn, _) in self.links.iter().filter(|(_, link)| link.stream) {
            reactor.pause(*conn, held);
        }
    }
}
