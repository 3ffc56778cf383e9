//! The shell around server sessions: carries bytes between the reactor and the sessions of a set of
//! connections, and requests between the sessions and a daemon.
//!
//! How a daemon drives it, each turn:
//!
//! ```text
//!   reactor.turn(deadline, events)
//!   for event:  server.on_event(reactor, event, asked)      (Accepted: server.add)
//!   repeat:     answer what was asked  (resolved, listed, reply: now or in a later turn)
//!               server.flush(reactor, asked)                 until nothing new is asked
//! ```
//!
//! Owns no policy: what exports there are, and what a request does, is the daemon's. Replies of one turn go
//! out together. Bounds (I9): requests in flight and payload bytes by the session; replies that a client does
//! not take stop the parsing of its requests; a handshake that takes too long is ended.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::core::errno::Errno;
use crate::core::ids::Conn;
use crate::io;
use crate::io::Reactor;
use crate::limits::{CONNECTION_QUEUE_BYTES_MAX, CONNECTIONS_MAX, HANDSHAKE_NS};
use crate::nbd::outbox::Outbox;
use crate::nbd::protocol::REQUEST_BYTES;
use crate::nbd::session::{Event, Export, Refusal, Session};

/// The NBD connections of one daemon.
#[derive(Debug, Default)]
pub struct NbdServer {
    clients: HashMap<Conn, Client>,
    /// Clients with something to send or to be looked at again.
    dirty: Vec<Conn>,
    /// When each handshake has taken too long, monotonic, in the order they began.
    handshakes: VecDeque<(u64, Conn)>,
    scratch: Vec<Event>,
}

#[derive(Debug)]
struct Client {
    session: Session,
    out: Outbox,
    dirty: bool,
    paused: bool,
    /// It said goodbye: it is closed once it has been answered.
    done: bool,
    /// Whether the reactor was told to close it.
    closing: bool,
    hint: usize,
}

impl NbdServer {
    #[must_use]
    pub fn new() -> NbdServer {
        NbdServer::default()
    }

    /// Takes over a connection that was accepted, and greets it.
    pub fn add(&mut self, reactor: &mut Reactor, conn: Conn) {
        if self.clients.len() >= CONNECTIONS_MAX {
            return reactor.abort(conn, "too many NBD connections");
        }
        let mut client = Client {
            session: Session::new(),
            out: Outbox::new(),
            dirty: false,
            paused: false,
            done: false,
            closing: false,
            hint: 0,
        };
        self.handshakes.push_back((reactor.now().mono_ns.saturating_add(HANDSHAKE_NS), conn));
        client.session.greet(&mut client.out);
        client.send(reactor, conn);
        self.clients.insert(conn, client);
    }

    /// Whether this connection is one of its own.
    #[must_use]
    pub fn owns(&self, conn: Conn) -> bool {
        self.clients.contains_key(&conn)
    }

    /// Number of connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Takes an event of the reactor; false when it is about somebody else. What clients ask is appended to
    /// `asked`. Each connection ends with exactly one `Disconnect`, when it is gone; after a goodbye it is closed
    /// here as soon as everything it asked has been answered. Answers to one that is gone go nowhere.
    pub fn on_event(&mut self, reactor: &mut Reactor, event: &io::Event, asked: &mut Vec<(Conn, Event)>) -> bool {
        match event {
            io::Event::Received { conn } if self.owns(*conn) => self.pump(reactor, *conn, asked),
            io::Event::Sent { conn } if self.owns(*conn) => self.mark(*conn),
            io::Event::Closed { conn, .. } => {
                if self.clients.remove(conn).is_none() {
                    return false;
                }
                asked.push((*conn, Event::Disconnect));
            }
            _ => return false,
        }
        true
    }

    /// Answers a `Resolve`.
    pub fn resolved(&mut self, conn: Conn, result: Result<Export, Refusal>) {
        if let Some(client) = self.live(conn) {
            client.session.resolved(result, &mut client.out);
            self.mark(conn);
        }
    }

    /// Answers a `List` with (name, description) of each export.
    pub fn listed(&mut self, conn: Conn, exports: &[(String, String)]) {
        if let Some(client) = self.live(conn) {
            client.session.listed(exports, &mut client.out);
            self.mark(conn);
        }
    }

    /// Answers a request: the bytes of a read, nothing otherwise. Goes out with the next `flush`.
    pub fn reply(&mut self, conn: Conn, cookie: u64, result: Result<Bytes, Errno>) {
        if let Some(client) = self.live(conn) {
            client.session.reply(cookie, result, &mut client.out);
            self.mark(conn);
        }
    }

    /// Sends what was answered and parses what had to wait for it. Call until `asked` stays empty.
    pub fn flush(&mut self, reactor: &mut Reactor, asked: &mut Vec<(Conn, Event)>) {
        for conn in std::mem::take(&mut self.dirty) {
            if let Some(client) = self.clients.get_mut(&conn) {
                client.dirty = false;
                self.pump(reactor, conn, asked);
            }
        }
    }

    /// Closes a connection at once: nothing more is answered to it.
    pub fn abort(&mut self, reactor: &mut Reactor, conn: Conn, reason: &str) {
        if let Some(client) = self.clients.get_mut(&conn) {
            client.out = Outbox::new();
            client.closing = true;
            reactor.abort(conn, reason);
        }
    }

    /// Closes every connection after what was answered to it has been sent.
    pub fn close_all(&mut self, reactor: &mut Reactor, reason: &str) {
        for (conn, client) in &mut self.clients {
            client.send(reactor, *conn);
            if !client.closing {
                client.closing = true;
                reactor.close(*conn, reason);
            }
        }
    }

    /// When `tick` wants to be called, monotonic nanoseconds.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        self.handshakes.front().map(|(until_ns, _)| *until_ns)
    }

    /// Ends handshakes that have taken too long.
    pub fn tick(&mut self, reactor: &mut Reactor) {
        while let Some((until_ns, conn)) = self.handshakes.front().copied() {
            let late = until_ns <= reactor.now().mono_ns;
            let going = self.clients.get_mut(&conn).filter(|client| client.handshaking());
            match going {
                Some(_) if !late => return,
                Some(client) => {
                    client.closing = true;
                    reactor.abort(conn, "the NBD handshake took too long");
                }
                None => {}
            }
            self.handshakes.pop_front();
        }
    }

    /// A client that can still be answered.
    fn live(&mut self, conn: Conn) -> Option<&mut Client> {
        self.clients.get_mut(&conn).filter(|client| !client.closing)
    }

    fn mark(&mut self, conn: Conn) {
        if let Some(client) = self.clients.get_mut(&conn)
            && !client.dirty
        {
            client.dirty = true;
            self.dirty.push(conn);
        }
    }

    /// Sends, parses as far as the bounds allow, and closes what has come to its end.
    fn pump(&mut self, reactor: &mut Reactor, conn: Conn, asked: &mut Vec<(Conn, Event)>) {
        let Some(client) = self.clients.get_mut(&conn).filter(|client| !client.closing) else { return };
        client.send(reactor, conn);
        let congested = reactor.queued_bytes(conn) > CONNECTION_QUEUE_BYTES_MAX;
        let mut parsed = Ok(());
        if !congested {
            parsed = client.session.advance(reactor.rx(conn), &mut self.scratch, &mut client.out);
            client.send(reactor, conn);
        }
        for event in self.scratch.drain(..) {
            match event {
                Event::Disconnect => client.done = true,
                other => asked.push((conn, other)),
            }
        }
        if let Err(error) = parsed {
            client.closing = true;
            return reactor.close(conn, &error.to_string());
        }
        if client.session.finished() && client.session.inflight() == 0 {
            client.closing = true;
            let reason = if client.done { "the client is done" } else { "the export it named was refused" };
            return reactor.close(conn, reason);
        }
        let hint = client.session.body_hint();
        if hint != client.hint {
            client.hint = hint;
            reactor.hint(conn, REQUEST_BYTES, hint);
        }
        let paused = congested || client.session.blocked();
        if paused != client.paused {
            client.paused = paused;
            reactor.pause(conn, paused);
        }
    }
}

impl Client {
    fn send(&mut self, reactor: &mut Reactor, conn: Conn) {
        let promises = self.out.take_promises();
        for part in self.out.drain() {
            if promises {
                reactor.send_leased(conn, part);
            } else {
                reactor.send(conn, part);
            }
        }
    }

    fn handshaking(&self) -> bool {
        !self.closing && !self.session.transmitting() && !self.session.finished()
    }
}
