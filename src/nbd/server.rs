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
//! not take stop the parsing of its requests, those without data soon, for they have no part of the budget; a handshake
//! that takes too long is ended; who has a place, and gives way to whom, `places` says; what all of them hold has a
//! `budget`, for which they queue, and who holds up the others by taking
//! next to nothing, or by sending next to nothing of a request that has its room, is cut off.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

use bytes::Bytes;

use crate::core::allocation::Stretch;
use crate::core::errno::Errno;
use crate::core::ids::Conn;
use crate::core::machine::Now;
use crate::core::modes::TlsMode;
use crate::io;
use crate::io::Reactor;
use crate::io::tls::Acceptor;
use crate::limits::{
    CONNECTION_QUEUE_BYTES_MAX, CONNECTION_REPLIES_BYTES_MAX, CONNECTIONS_PEER_MAX, HANDSHAKE_NS, PATIENCE_BYTES,
    PATIENCE_NS, SERVER_AHEAD_BYTES_MAX, SERVER_REPLIES_BYTES_MAX, SLOW_BYTES, SLOW_HOLDS_BYTES_MIN, SLOW_NS,
    SLOW_PART,
};
use crate::nbd::budget::{Budget, Held, Lanes, Share, Ways};
use crate::nbd::outbox::{Outbox, Part, Payloads, Untaken};
use crate::nbd::places::{Census, Pace, Peer, Place, Seat, Standing, place};
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
    /// Clients whose next request waits for what others hold, and since when, monotonic.
    starved: Ways<Lanes<VecDeque<(Conn, u64)>>>,
    /// Those that are slow are looked for next at this time, while somebody waits for them.
    look_ns: Option<u64>,
    /// Whoever has not begun yet is told that the server is being shut down.
    shutdown: bool,
    /// Places run out, or did a moment ago.
    crowded: Option<Crowded>,
    pace: Pace,
}

/// That places run out.
#[derive(Debug)]
struct Crowded {
    text: String,
    /// Nanoseconds since the Unix epoch.
    since_ns: u64,
    /// When they last were, monotonic.
    seen_ns: u64,
    /// Connections that were ended for newer ones since then, and newcomers that were refused.
    ended: u64,
    refused: u64,
}

#[derive(Debug, Default)]
struct Client {
    session: Session,
    peer: Peer,
    /// How many requests it has made.
    asked: u64,
    /// When bytes last came, or answers last went, monotonic.
    moved_ns: u64,
    out: Outbox,
    /// What it can be made secure with, and whether it is.
    acceptor: Option<Acceptor>,
    secured: bool,
    dirty: bool,
    paused: bool,
    /// It said goodbye: it is closed once it has been answered.
    done: bool,
    /// Whether the reactor was told to close it.
    closing: bool,
    /// Bytes of the head and the body that come next, as the reactor was told.
    hint: (usize, usize),
    /// Bytes that may be received ahead of what has begun, as the reactor was told.
    ahead: usize,
    held: Held,
    /// Received, and not parsed.
    kept: usize,
    /// Bytes that were given to the reactor for it, and that it sent itself.
    sent: u64,
    received: u64,
    /// The payloads among what was given to the reactor.
    untaken: Untaken,
    /// Since when it is waited for in the middle of a request, monotonic, and how many bytes it had taken and sent by then.
    stuck: Option<(u64, u64)>,
    /// Since when it is slow, monotonic, and how many bytes it had taken and sent by then.
    slow: Option<(u64, u64)>,
}

impl NbdServer {
    #[must_use]
    pub fn new() -> NbdServer {
        NbdServer::default()
    }

    /// Takes over a connection that was accepted from `peer`, as the reactor names it, and greets it.
    pub fn add(&mut self, reactor: &mut Reactor, conn: Conn, peer: &str) {
        self.add_with(reactor, conn, peer, TlsMode::Off, None);
    }

    /// As `add`, with TLS as `mode` says; `acceptor` is needed where it is not off.
    pub fn add_with(
        &mut self,
        reactor: &mut Reactor,
        conn: Conn,
        peer: &str,
        mode: TlsMode,
        acceptor: Option<&Acceptor>,
    ) {
        assert!(mode == TlsMode::Off || acceptor.is_some(), "who offers TLS has certificates");
        let (now, peer) = (reactor.now(), Peer::of(peer));
        match self.place(reactor, peer) {
            Place::Free => {}
            Place::Of(other) => self.abort(reactor, other, "a newer NBD connection needs its place"),
            Place::None => return reactor.abort(conn, "too many NBD connections"),
        }
        let session = Session::with_tls(mode);
        let moved_ns = now.mono_ns;
        let mut client = Client { session, peer, moved_ns, acceptor: acceptor.cloned(), ..Client::default() };
        if self.shutdown {
            client.session.shut_down();
        }
        self.handshakes.push_back((now.mono_ns.saturating_add(HANDSHAKE_NS), conn));
        client.session.greet(&mut client.out);
        reactor.count_sent(conn);
        client.send(reactor, conn);
        self.clients.insert(conn, client);
        let census = self.census();
        self.count(&census, now);
        // Whoever would give way next has time for its first words: the others wait to be accepted. Not for the sake of those
        // of one peer that has all it may have.
        let all = census.is_full(peer).then_some(CONNECTIONS_PEER_MAX);
        self.pace.step(now.mono_ns, all.unwrap_or_else(|| self.unasked()));
        if !census.has_room(peer) {
            reactor.rest(conn, self.pace.next_ns());
        }
    }

    /// A place for one more of `peer`; notes what becomes of whom where there is none.
    fn place(&mut self, reactor: &Reactor, peer: Peer) -> Place {
        let census = self.census();
        if census.has_room(peer) {
            return Place::Free;
        }
        let now = reactor.now();
        // Nobody can foresee it.
        let chance = RandomState::new().hash_one(now.mono_ns);
        let mut seats = self.seats(reactor);
        let mut found = place(&seats, peer, now.mono_ns, chance);
        // All are asked only where it makes a difference: that costs as much as everything else about a newcomer.
        if let Place::Of(conn) = found
            && self.clients[&conn].has_unread(reactor, conn)
        {
            for Seat { conn, standing, .. } in &mut seats {
                let client = &self.clients[conn];
                *standing = client.standing(client.has_unread(reactor, *conn), now.mono_ns);
            }
            found = place(&seats, peer, now.mono_ns, chance);
        }
        self.count(&census, now);
        if let Some(crowded) = &mut self.crowded {
            crowded.ended += u64::from(matches!(found, Place::Of(_)));
            crowded.refused += u64::from(found == Place::None);
        }
        found
    }

    /// Whether places run out, or did in the last seconds: who had them, what became of newcomers, and since when, nanoseconds
    /// since the Unix epoch.
    #[must_use]
    pub fn crowded(&self, now: Now) -> Option<(String, u64)> {
        let Crowded { text, since_ns, seen_ns, ended, refused } = self.crowded.as_ref()?;
        let said = match (ended, refused) {
            (0, 0) => text.clone(),
            _ => format!("{text}; since then {ended} were ended for newer ones, and {refused} newcomers were refused"),
        };
        (now.mono_ns < seen_ns + CROWDED_NS).then_some((said, *since_ns))
    }

    /// Notes whether places run out, and who has them.
    fn count(&mut self, census: &Census, now: Now) {
        let Some(text) = census.run_out() else { return };
        let seen_ns = now.mono_ns;
        self.crowded = Some(match self.crowded.take().filter(|it| seen_ns < it.seen_ns + CROWDED_NS) {
            Some(before) => Crowded { text, seen_ns, ..before },
            None => Crowded { text, since_ns: now.wall_ns, seen_ns, ended: 0, refused: 0 },
        });
    }

    /// How many have not asked for anything yet.
    fn unasked(&self) -> usize {
        self.clients.values().filter(|client| !client.closing && client.asked == 0).count()
    }

    fn census(&self) -> Census {
        Census::take(self.clients.values().filter(|client| !client.closing).map(|client| client.peer))
    }

    /// Who has a place, in the order in which they came, as far as is known without looking for what has just arrived.
    fn seats(&mut self, reactor: &Reactor) -> Vec<Seat> {
        let now_ns = reactor.now().mono_ns;
        let open = self.clients.iter_mut().filter(|(_, client)| !client.closing);
        let seat = |(conn, client): (&Conn, &mut Client)| {
            client.look(reactor.queued_bytes(*conn), now_ns);
            Seat { conn: *conn, peer: client.peer, standing: client.standing(false, now_ns) }
        };
        let mut seats: Vec<Seat> = open.map(seat).collect();
        seats.sort_by_key(|seat| seat.conn);
        seats
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
            io::Event::Secured { conn } if self.owns(*conn) => {
                if let Some(client) = self.live(*conn) {
                    client.session.secured();
                    client.secured = true;
                }
            }
            io::Event::Closed { conn, .. } => {
                // As it is with this one: what is full stays so for a while.
                if self.crowded.is_some() {
                    self.count(&self.census(), reactor.now());
                }
                let Some(client) = self.clients.remove(conn) else { return false };
                self.budget.change(client.held, Held::default());
                self.starved.leave(*conn);
                self.wake_starved(reactor.now().mono_ns);
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

    /// The export of these connections has another size from now on: what is asked beyond its old end is no error any more.
    pub fn resized(&mut self, conns: impl IntoIterator<Item = Conn>, size: u64) {
        for conn in conns {
            if let Some(client) = self.live(conn) {
                client.session.resized(size);
            }
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
            self.wake_starved(reactor.now().mono_ns);
        }
    }

    /// Closes a connection at once: nothing more is answered to it.
    pub fn abort(&mut self, reactor: &mut Reactor, conn: Conn, reason: &str) {
        if let Some(client) = self.clients.get_mut(&conn) {
            client.out = Outbox::new();
            client.closing = true;
            self.budget.change(std::mem::take(&mut client.held), Held::default());
            self.starved.leave(conn);
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
            self.look_for_slow(reactor);
            self.wake_starved(reactor.now().mono_ns);
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

    /// Who waits for what others hold tries again when there is enough for its next request; of the long ones, the first.
    fn wake_starved(&mut self, now_ns: u64) {
        if self.starved.is_empty() {
            return;
        }
        let Ways { read, write } = &self.starved;
        let small = read.small.iter().chain(&write.small);
        let short = small.chain(&read.short).chain(&write.short);
        let waiting: Vec<Conn> =
            short.chain(read.long.front()).chain(write.long.front()).map(|(conn, _)| *conn).collect();
        for conn in waiting {
            let Some(client) = self.clients.get(&conn) else { continue };
            // As much as it will find: whoever is woken in vain would be woken for ever.
            let room = self.starved.narrow(conn, client.held, &self.budget, now_ns);
            let wants = client.session.wants().unwrap_or_default();
            if room.read.allows(wants.read) && room.write.allows(wants.write) {
                self.mark(conn);
            }
        }
    }

    /// Cuts off who has been slow to take its replies, or to send what it announced, while others wait for that memory.
    fn look_for_slow(&mut self, reactor: &mut Reactor) {
        let now_ns = reactor.now().mono_ns;
        let starved = &self.starved;
        let waited = |queue: &Queue, conn: Conn| queue.iter().any(|(other, _)| *other != conn);
        self.look_ns = (!self.starved.is_empty()).then_some(now_ns + LOOK_EVERY_NS);
        let mut late = Vec::new();
        for (conn, client) in self.clients.iter_mut().filter(|(_, client)| !client.closing) {
            let queued = reactor.queued_bytes(*conn);
            // What was taken meanwhile is room, also before all of it is.
            client.account(&mut self.budget, queued);
            let queued = queued as u64;
            let moved = client.sent - queued + client.received;
            let payloads = client.payloads(queued);
            let arriving = client.session.arriving_bytes();
            let (short, long) = (payloads.short + client.session.deferred_bytes(), payloads.long);
            let read = &starved.read;
            let sends = [(&starved.write.short, arriving.short), (&starved.write.long, arriving.long)];
            let held = [(&read.small, short), (&read.short, short), (&read.long, long)].into_iter().chain(sends);
            let holds = held.filter(|(queue, _)| waited(queue, *conn)).map(|(_, bytes)| bytes).max().unwrap_or(0);
            // Whoever holds much has to be through with it soon.
            let enough = SLOW_BYTES.max(holds / SLOW_PART);
            client.slow = match client.slow {
                _ if holds < SLOW_HOLDS_BYTES_MIN => None,
                Some((since_ns, before)) if moved < before + enough => Some((since_ns, before)),
                _ => Some((now_ns, moved)),
            };
            if client.slow.is_some_and(|(since_ns, _)| now_ns >= since_ns + SLOW_NS) {
                late.push(*conn);
            }
        }
        for conn in late {
            self.abort(
                reactor,
                conn,
                "it is too slow to take its replies, or to send its write, and others wait for that memory",
            );
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
        let count = self.clients.len().max(1);
        let ahead = SERVER_AHEAD_BYTES_MAX / count;
        let replies_max = CONNECTION_REPLIES_BYTES_MAX.min(SERVER_REPLIES_BYTES_MAX / count as u64);
        let Some(client) = self.clients.get_mut(&conn).filter(|client| !client.closing) else { return };
        client.send(reactor, conn);
        let now_ns = reactor.now().mono_ns;
        let queued = reactor.queued_bytes(conn);
        let congested = queued > CONNECTION_QUEUE_BYTES_MAX;
        if client.paused && !congested && reactor.peer_left(conn) {
            // Whoever has left may have sent them again on another connection, and written the same place since.
            return self.abort(reactor, conn, "it left while requests of its own waited to begin");
        }
        if client.stuck.is_some() {
            client.look(queued, now_ns);
        }
        let before = client.session.inflight_bytes();
        let mut parsed = Ok(());
        let mut sent = 0;
        if !congested {
            // What was answered since is room for what it asks next.
            client.account(&mut self.budget, queued);
            let held = client.held;
            client.session.set_room(self.starved.narrow(conn, held, &self.budget, now_ns));
            let many = self.budget.others_hold_many(held);
            client.session.set_thrift(many.then(|| reactor.waiting_bytes(conn)));
            client.make_room(queued as u64, replies_max);
            let rx = reactor.rx(conn);
            if rx.len() > client.kept {
                client.moved_ns = now_ns;
            }
            client.received += (rx.len() - client.kept) as u64;
            parsed = client.session.advance(rx, &mut self.scratch, &mut client.out);
            client.kept = rx.len();
            sent = client.send(reactor, conn);
        }
        client.account(&mut self.budget, queued + sent);
        client.look(queued, now_ns);
        let wants = client.session.wants().filter(|_| !congested && parsed.is_ok()).unwrap_or_default();
        let alone = self.starved.is_empty();
        if wants != Ways::default() || !alone {
            self.starved.enter(conn, wants, client.session.inflight_bytes() != before, now_ns);
            // What went out at once nobody was told of: the first look comes soon.
            self.look_ns.get_or_insert(now_ns + if alone { LOOK_SOON_NS } else { LOOK_EVERY_NS });
        }
        if !alone || queued + sent > TELL_BYTES || client.session.full() || client.session.waits() {
            reactor.tell_sent(conn);
        }
        if client.ahead != ahead {
            client.ahead = ahead;
            reactor.receive_ahead(conn, ahead);
        }
        for event in self.scratch.drain(..) {
            match event {
                Event::Disconnect => client.done = true,
                Event::Secure => {
                    let acceptor = client.acceptor.as_ref().expect("TLS is granted by who has certificates");
                    reactor.secure_server(conn, acceptor);
                    client.kept = 0;
                }
                other => {
                    client.asked += u64::from(matches!(other, Event::Request(_)));
                    asked.push((conn, other));
                }
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
        client.steer(reactor, conn, congested);
    }
}

/// Clients that wait, in the order they began to.
type Queue = VecDeque<(Conn, u64)>;

impl Ways<Lanes<Queue>> {
    fn is_empty(&self) -> bool {
        let Ways { read, write } = self;
        [read, write].into_iter().all(|it| it.small.is_empty() && it.short.is_empty() && it.long.is_empty())
    }

    fn leave(&mut self, conn: Conn) {
        let Ways { read, write } = self;
        for queues in [read, write] {
            for queue in [&mut queues.small, &mut queues.short, &mut queues.long] {
                queue.retain(|(other, _)| *other != conn);
            }
        }
    }

    /// A client waits for what it wants: behind the others, also if something of it has just begun.
    fn enter(&mut self, conn: Conn, wants: Held, begun: bool, now_ns: u64) {
        for (queues, Lanes { small, short, long }) in [(&mut self.read, wants.read), (&mut self.write, wants.write)] {
            let lanes = [(&mut queues.small, small), (&mut queues.short, short), (&mut queues.long, long)];
            for (queue, waits) in lanes.map(|(queue, bytes)| (queue, bytes > 0)) {
                let at = queue.iter().position(|(other, _)| *other == conn);
                if let Some(at) = at.filter(|_| begun || !waits) {
                    queue.remove(at);
                }
                if waits && (begun || at.is_none()) {
                    queue.push_back((conn, now_ns));
                }
            }
        }
    }

    /// What of its room a client may use while others wait.
    fn narrow(&self, conn: Conn, held: Held, budget: &Budget, now_ns: u64) -> Ways<Share> {
        let mut room = budget.room(held);
        let late =
            |queue: &Queue| queue.front().is_some_and(|(other, since)| *other != conn && now_ns >= since + PATIENCE_NS);
        let many = budget.small_writes_are_many();
        for (queues, held, share, many) in
            [(&self.read, held.read, &mut room.read, true), (&self.write, held.write, &mut room.write, many)]
        {
            let one = if held.small + held.short == 0 { PATIENCE_BYTES } else { 0 };
            let (small, short) = (late(&queues.small), late(&queues.short));
            if small || short {
                share.bytes.short = share.bytes.short.min(one);
            }
            // Small writes are not what keeps a short one waiting while others of its kind have most of their part.
            if small || short && many {
                share.bytes.small = share.bytes.small.min(one);
            }
            if queues.long.front().is_some_and(|(other, _)| *other != conn) {
                share.bytes.long = 0;
            }
            if queues.long.iter().any(|(other, _)| *other != conn) {
                share.crowd(held.long);
            }
        }
        room
    }
}

/// How long it is told that places ran out once they do no more, nanoseconds.
const CROWDED_NS: u64 = 10_000_000_000;
/// How often who is slow is looked for, nanoseconds.
const LOOK_EVERY_NS: u64 = 1_000_000_000;
/// And for the first time after somebody began to wait.
const LOOK_SOON_NS: u64 = 1_000_000;
/// Whoever gets through so many bytes of a request goes on with it.
const MOVES_BYTES: u64 = 4096;
/// Of so many queued bytes it is worth being told when they have gone out.
const TELL_BYTES: usize = 64 << 10;

impl Client {
    /// Gives what it has to say to the reactor; how many bytes that were.
    fn send(&mut self, reactor: &mut Reactor, conn: Conn) -> usize {
        let promises = self.out.take_promises();
        let mut bytes = 0;
        for part in self.out.drain_parts() {
            let (is_payload, is_long) = (!matches!(part, Part::Small(_)), matches!(part, Part::Long(_)));
            let part = part.into_bytes();
            bytes += part.len();
            if is_payload {
                self.untaken.give(self.sent + bytes as u64, part.len() as u64, is_long);
            }
            if promises {
                reactor.send_leased(conn, part);
            } else {
                reactor.send(conn, part);
            }
        }
        self.sent += bytes as u64;
        if bytes > 0 && self.asked > 0 {
            self.moved_ns = reactor.now().mono_ns;
        }
        bytes
    }

    /// Tells the reactor what to expect of it, and whether to receive at all.
    fn steer(&mut self, reactor: &mut Reactor, conn: Conn, congested: bool) {
        let hint = (self.session.head_bytes(), self.session.body_hint());
        if hint != self.hint {
            self.hint = hint;
            reactor.hint(conn, hint.0, hint.1);
        }
        let paused = congested || self.session.blocked() || self.session.full();
        if paused != self.paused {
            self.paused = paused;
            reactor.pause(conn, paused);
        }
    }

    /// Notes whether it is waited for in the middle of a request: whether, and since when, it does not go on. `queued`: bytes
    /// that it has not taken.
    fn look(&mut self, queued: usize, now_ns: u64) {
        let session = &self.session;
        let sends = session.wants().is_none() && (self.kept > 0 || session.inflight() > 0);
        let waited_for = session.transmitting() && !session.is_asked() && (queued > 0 || sends);
        let moved = self.sent - queued as u64 + self.received;
        self.stuck = match self.stuck {
            _ if !waited_for => None,
            Some((since_ns, before)) if moved < before + MOVES_BYTES => Some((since_ns, before)),
            _ => Some((now_ns, moved)),
        };
    }

    /// Whether bytes of it have arrived that will be looked at in the next turn. Of whom nothing is received for now, what
    /// waits will do so for long.
    fn has_unread(&self, reactor: &Reactor, conn: Conn) -> bool {
        !self.paused && reactor.arrived_bytes(conn) > self.kept
    }

    /// What it does with its place. `unread`: bytes of it have arrived, and are looked at in the next turn, from when on the
    /// standing is what they make of it.
    fn standing(&self, unread: bool, now_ns: u64) -> Standing {
        let (session, used) = (&self.session, self.asked > 0);
        let through = self.secured || session.transmitting();
        // Whoever was only refused things has not asked for anything, also if it takes none of these answers.
        let blocked = session.blocked() && (used || !session.full());
        let waits = session.inflight() > 0 || blocked || (used && self.stuck.is_some());
        match (waits, used, self.received) {
            (true, _, _) if self.stuck.is_some_and(|(since_ns, _)| now_ns >= since_ns + SLOW_NS) => {
                Standing::Stuck { since_ns: self.stuck.map_or(0, |(since_ns, _)| since_ns) }
            }
            (true, _, _) => Standing::Busy,
            // A request, as far as is known: who sends what is none all the time could as well send one.
            (false, _, _) if unread && session.transmitting() => Standing::Busy,
            (false, false, _) if through => Standing::Ready,
            (false, false, 0) if !unread => Standing::Silent { since_ns: self.moved_ns },
            (false, false, _) => Standing::Begun,
            (false, true, _) => Standing::Idle { since_ns: self.moved_ns, asked: self.asked },
        }
    }

    /// How many of the bytes that were given to the reactor and not taken are data.
    fn payloads(&mut self, queued: u64) -> Payloads {
        self.untaken.payloads(self.sent - queued)
    }

    /// Bounds the replies without data: those that it has not taken leave the rest to those that are made.
    fn make_room(&mut self, queued: u64, replies_max: u64) {
        let Payloads { short, long } = self.payloads(queued);
        self.out.set_room(replies_max.saturating_sub(queued - short - long));
    }

    /// Tells the budget what it holds. Replies without data, which have a bound of their own, take no room from reads.
    fn account(&mut self, budget: &mut Budget, queued: usize) {
        let Payloads { short, long } = self.payloads(queued as u64);
        let mut held = self.session.inflight_bytes();
        held.read.long += long;
        held.read.short += short;
        budget.change(std::mem::replace(&mut self.held, held), held);
    }

    fn handshaking(&self) -> bool {
        !self.closing && !self.session.transmitting() && !self.session.finished()
    }
}
