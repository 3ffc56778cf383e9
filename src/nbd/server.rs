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
//! not take stop the parsing of its requests; a handshake that takes too long is ended, and sooner when a newer
//! connection needs its place; what all of them hold has a `budget`, and who holds up the others by taking nothing, or
//! by never ending a request, is cut off.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::core::allocation::Stretch;
use crate::core::errno::Errno;
use crate::core::ids::Conn;
use crate::io;
use crate::io::Reactor;
use crate::limits::{CONNECTION_QUEUE_BYTES_MAX, CONNECTIONS_MAX, HANDSHAKE_NS, UNTAKEN_NS};
use crate::nbd::budget::{Budget, Held};
use crate::nbd::outbox::Outbox;
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
    budget: Budget,
    /// Clients whose next request waits for what others hold.
    starved: Vec<Conn>,
    /// Those that take nothing are looked for next at this time, while somebody waits for them.
    look_ns: Option<u64>,
    /// Whoever has not begun yet is told that the server is being shut down.
    shutdown: bool,
}

#[derive(Debug, Default)]
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
    held: Held,
    /// Whether it is on the list of those that wait for others.
    starved: bool,
    /// Bytes that were given to the reactor for it.
    sent: u64,
    /// Since when it takes nothing, monotonic, and how much it had taken then.
    untaken: Option<(u64, u64)>,
}

impl NbdServer {
    #[must_use]
    pub fn new() -> NbdServer {
        NbdServer::default()
    }

    /// Takes over a connection that was accepted, and greets it.
    pub fn add(&mut self, reactor: &mut Reactor, conn: Conn) {
        let open = self.clients.values().filter(|client| !client.closing).count();
        if open >= CONNECTIONS_MAX && !self.end_oldest_handshake(reactor) {
            return reactor.abort(conn, "too many NBD connections");
        }
        let mut client = Client::default();
        if self.shutdown {
            client.session.shut_down();
        }
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
                let Some(client) = self.clients.remove(conn) else { return false };
                self.budget.change(client.held, Held::default());
                self.wake_starved();
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

    /// Answers a request for the block status: stretches from its offset on, at least one.
    pub fn status(&mut self, conn: Conn, cookie: u64, stretches: &[Stretch]) {
        if let Some(client) = self.live(conn) {
            client.session.status(cookie, stretches, &mut client.out);
            self.mark(conn);
        }
    }

    /// Refuses whatever is still to be negotiated; what transmits already goes on.
    pub fn shut_down(&mut self) {
        self.shutdown = true;
        self.clients.values_mut().for_each(|client| client.session.shut_down());
    }

    /// Sends what was answered and parses what had to wait for it. Call until `asked` stays empty.
    pub fn flush(&mut self, reactor: &mut Reactor, asked: &mut Vec<(Conn, Event)>) {
        // Who is woken may give back room in turn; each is woken only when there is enough for it, so this ends.
        while !self.dirty.is_empty() {
            for conn in std::mem::take(&mut self.dirty) {
                if let Some(client) = self.clients.get_mut(&conn) {
                    client.dirty = false;
                    self.pump(reactor, conn, asked);
                }
            }
            self.wake_starved();
        }
    }

    /// Closes a connection at once: nothing more is answered to it.
    pub fn abort(&mut self, reactor: &mut Reactor, conn: Conn, reason: &str) {
        if let Some(client) = self.clients.get_mut(&conn) {
            client.out = Outbox::new();
            client.closing = true;
            self.budget.change(client.held, Held::default());
            client.held = Held::default();
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
        let handshake = self.handshakes.front().map(|(until_ns, _)| *until_ns);
        [handshake, self.look_ns].into_iter().flatten().min()
    }

    /// Ends handshakes that have taken too long, and looks for who holds up the others.
    pub fn tick(&mut self, reactor: &mut Reactor) {
        if self.look_ns.is_some_and(|at| at <= reactor.now().mono_ns) {
            self.look_for_untaken(reactor);
            self.wake_starved();
        }
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

    /// Who waits for what others hold tries again when there is enough for its next request.
    fn wake_starved(&mut self) {
        if self.starved.is_empty() {
            return;
        }
        let room = self.budget.room();
        for conn in std::mem::take(&mut self.starved) {
            let Some(client) = self.clients.get_mut(&conn) else { continue };
            match client.session.wants() {
                Some(wants) if wants.read > room.read || wants.write > room.write => self.starved.push(conn),
                _ => {
                    client.starved = false;
                    self.mark(conn);
                }
            }
        }
    }

    /// Makes room for a new connection; false when everybody is past the handshake.
    fn end_oldest_handshake(&mut self, reactor: &mut Reactor) -> bool {
        let going = |conn: &Conn| self.clients.get(conn).is_some_and(Client::handshaking);
        let Some(conn) = self.handshakes.iter().map(|(_, conn)| *conn).find(going) else { return false };
        self.abort(reactor, conn, "a newer NBD connection needs its place, and its handshake is not done");
        true
    }

    /// Cuts off who has taken nothing of its replies for too long while others wait for that memory.
    fn look_for_untaken(&mut self, reactor: &mut Reactor) {
        let now_ns = reactor.now().mono_ns;
        let wants = |conn: &Conn| self.clients.get(conn).and_then(|client| client.session.wants());
        let waited_for = self.starved.iter().filter_map(wants).any(|wants| wants.read > 0);
        self.look_ns = (!self.starved.is_empty()).then_some(now_ns + LOOK_EVERY_NS);
        let mut late = Vec::new();
        for (conn, client) in &mut self.clients {
            let queued = reactor.queued_bytes(*conn) as u64;
            // What was taken meanwhile is room, also before all of it is.
            let held = Held { read: client.session.inflight_bytes().read + queued, ..client.held };
            if !client.closing {
                self.budget.change(std::mem::replace(&mut client.held, held), held);
            }
            let taken = client.sent - queued;
            client.untaken = match client.untaken {
                _ if !waited_for || queued == 0 => None,
                Some((since_ns, before)) if taken == before => Some((since_ns, before)),
                _ => Some((now_ns, taken)),
            };
            if client.untaken.is_some_and(|(since_ns, _)| now_ns >= since_ns + UNTAKEN_NS) {
                late.push(*conn);
            }
        }
        for conn in late {
            self.abort(reactor, conn, "it takes nothing of its replies, and others wait for the memory they are in");
        }
    }

    /// Cuts off who keeps most of requests that are not complete.
    fn end_fullest(&mut self, reactor: &mut Reactor) {
        let live = self.clients.iter().filter(|(_, client)| !client.closing);
        if let Some((conn, _)) = live.max_by_key(|(_, client)| client.held.kept) {
            let conn = *conn;
            self.abort(reactor, conn, "too much was received of requests that are not complete");
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
        let queued = reactor.queued_bytes(conn);
        let congested = queued > CONNECTION_QUEUE_BYTES_MAX;
        let mut parsed = Ok(());
        let (mut kept, mut sent) = (client.held.kept, 0);
        if !congested {
            client.session.set_room(self.budget.room());
            let rx = reactor.rx(conn);
            parsed = client.session.advance(rx, &mut self.scratch, &mut client.out);
            kept = rx.len() as u64;
            sent = client.send(reactor, conn);
        }
        let inflight = client.session.inflight_bytes();
        let held = Held { read: inflight.read + (queued + sent) as u64, write: inflight.write, kept };
        self.budget.change(client.held, held);
        client.held = held;
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
            reactor.hint(conn, client.session.head_bytes(), hint);
        }
        let paused = congested || client.session.blocked();
        if paused != client.paused {
            client.paused = paused;
            reactor.pause(conn, paused);
        }
        if client.session.wants().is_some() && !client.starved {
            client.starved = true;
            self.starved.push(conn);
            self.look_ns.get_or_insert(reactor.now().mono_ns + LOOK_EVERY_NS);
        }
        if self.budget.keeps_too_much() {
            self.end_fullest(reactor);
        }
    }
}

/// How often who takes nothing is looked for, nanoseconds.
const LOOK_EVERY_NS: u64 = 1_000_000_000;

impl Client {
    /// Gives what it has to say to the reactor; how many bytes that were.
    fn send(&mut self, reactor: &mut Reactor, conn: Conn) -> usize {
        let promises = self.out.take_promises();
        let mut bytes = 0;
        for part in self.out.drain() {
            bytes += part.len();
            if promises {
                reactor.send_leased(conn, part);
            } else {
                reactor.send(conn, part);
            }
        }
        self.sent += bytes as u64;
        bytes
    }

    fn handshaking(&self) -> bool {
        !self.closing && !self.session.transmitting() && !self.session.finished()
    }
}
