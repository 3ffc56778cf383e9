//! Stream sockets on the ring: listening, connecting, receiving by plan, sending in batches, closing.
//!
//! Owns the connections of one reactor. Knows no protocol.
//!
//! Invariants:
//! - At most one receive and one send are in flight a connection; both end before its descriptor is closed.
//! - Every connection that was accepted or asked for yields exactly one `Closed`.
//! - Bytes received and not taken are bounded (I9): beyond [`UNTAKEN_BYTES_MAX`] nothing more is received.
//! - A close takes bounded time, whatever the peer does, unless it was told to wait for the peer.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;

use bytes::Bytes;
use io_uring::opcode;
use nix::libc;
use nix::sys::socket::SockaddrStorage;

use super::clock;
use super::lease;
use super::listen::{self, Listener};
use super::plan::{AHEAD_BYTES_MAX, HEAD_BYTES_MAX, Hint};
use super::reactor::Event;
use super::resolve::{Resolved, Resolver};
use super::ring::{Completion, Kernel, Kind, Token, on};
use super::secure::{self, Announce, Secure};
use super::sending::{Outcome, send, send_leased};
use super::socket::{Phase, Socket};
use super::tls::{Acceptor, Connector};
use crate::core::address::Address;
use crate::core::asker::Asker;
use crate::core::ids::Conn;
use crate::core::machine::Lease;
use crate::core::rope::Rope;
use crate::core::sparing::Sparing;
use crate::limits::{FRAME_BODY_BYTES_MAX, PAYLOAD_BYTES_MAX};

/// Bytes received and not yet taken beyond which a connection is not received from: the longest message
/// of any protocol spoken here, and a plan's worth of the next.
pub const UNTAKEN_BYTES_MAX: usize = PAYLOAD_BYTES_MAX as usize + FRAME_BODY_BYTES_MAX;
/// How long a close waits for queued bytes to go out and for the peer to close too, nanoseconds.
const CLOSE_NS: u64 = 2_000_000_000;
/// How long it waits for that once the peer has taken everything, where it is in a hurry, nanoseconds.
const HURRIED_NS: u64 = 100_000_000;
/// How long one attempt to connect may take, nanoseconds.
const CONNECT_NS: u64 = 5_000_000_000;
/// Pause between two lines about connections beyond the most, nanoseconds.
const TURNED_AWAY_PAUSE_NS: u64 = 1_000_000_000;
/// A queue of more bytes is sent once the disk operations of the turn are on their way: the copying takes long, and the
/// ring would keep the disk waiting until it is done.
const SMALL_QUEUE_BYTES: usize = 16 << 10;
/// Shortest body worth pages of its own.
const HINT_BODY_BYTES_MIN: usize = 512;

pub struct Net {
    pub(super) sockets: HashMap<Conn, Box<Socket>, BuildHasherDefault<ConnHasher>>,
    pub(super) listeners: Vec<Option<Listener>>,
    resolver: Resolver,
    next_conn: u64,
    pub(super) connections_max: usize,
    /// Connections with something to arm or send at the next flush.
    pub(super) dirty: Vec<Conn>,
    /// Those of them whose sends wait until the rest of the turn is on its way.
    later: Vec<Conn>,
    promise: Promise,
    /// Connections whose sends wait for the lease to go on.
    held: Vec<Conn>,
    /// Connections whose `Closed` was given in the last turn: their bytes can still be read until the next.
    buried: Vec<Conn>,
    /// Connections with a deadline: connecting or closing, in a TLS handshake, or late with a request.
    pub(super) timed: Vec<Conn>,
    /// Lines about those that were one too many.
    pub(super) turned_away: Sparing,
    pub(super) tls: secure::Shared,
    /// What `rx` gives for a connection that does not exist.
    nothing: Rope,
}

/// Whether leased bytes may be sent.
enum Promise {
    Unbound,
    Bound(lease::Lease),
    Over,
}

impl Net {
    pub fn new(resolver: Resolver, connections_max: usize) -> Net {
        Net {
            sockets: HashMap::default(),
            listeners: Vec::new(),
            resolver,
            next_conn: 1,
            connections_max,
            dirty: Vec::new(),
            later: Vec::new(),
            promise: Promise::Unbound,
            held: Vec::new(),
            buried: Vec::new(),
            timed: Vec::new(),
            turned_away: Sparing::new(TURNED_AWAY_PAUSE_NS),
            tls: secure::Shared::default(),
            nothing: Rope::new(),
        }
    }

    pub fn next_conn(&mut self) -> Conn {
        let conn = Conn(self.next_conn);
        self.next_conn += 1;
        conn
    }

    pub fn listen(&mut self, address: &Address, acceptor: Option<Acceptor>, kernel: &mut Kernel) -> io::Result<usize> {
        let mut listener = Listener::open(address)?;
        listener.acceptor = acceptor;
        let index = self.listeners.len();
        self.listeners.push(Some(listener));
        self.accept(index, kernel)?;
        Ok(index)
    }

    pub fn listen_address(&self, index: usize) -> Option<&Address> {
        self.listeners.get(index)?.as_ref().map(|listener| &listener.address)
    }

    pub fn stop_listening(&mut self, index: usize, kernel: &mut Kernel) -> io::Result<()> {
        let Some(Some(listener)) = self.listeners.get_mut(index) else { return Ok(()) };
        listener.stopping = true;
        listener.retire();
        if listener.accepting {
            return kernel.cancel(Token::new(Kind::Accept, index as u64));
        }
        self.listeners[index] = None;
        Ok(())
    }

    pub fn connect(
        &mut self,
        conn: Conn,
        address: &Address,
        connector: Option<&Connector>,
        kernel: &mut Kernel,
    ) -> io::Result<()> {
        let mut socket = Box::new(Socket::new(conn, address.to_string(), Phase::Connecting));
        socket.connector = connector.map(|connector| Box::new(connector.clone()));
        socket.deadline_ns = clock::mono_ns() + CONNECT_NS;
        let previous = self.sockets.insert(conn, socket);
        assert!(previous.is_none(), "names of connections are drawn from next_conn and used once");
        self.timed.push(conn);
        match self.resolver.resolve(conn, address) {
            Some(resolved) => self.resolved(conn, resolved, kernel),
            None => Ok(()),
        }
    }

    pub fn rx(&mut self, conn: Conn) -> &mut Rope {
        match self.sockets.get_mut(&conn) {
            Some(socket) => {
                // Taking bytes may make room for more.
                if !socket.receiving && socket.phase == Phase::Open {
                    mark(socket, &mut self.dirty);
                }
                &mut socket.rx
            }
            None => {
                self.nothing.clear();
                &mut self.nothing
            }
        }
    }

    pub fn hint(&mut self, conn: Conn, head: usize, body: usize) {
        let Some(socket) = self.sockets.get_mut(&conn) else { return };
        let sensible = head <= HEAD_BYTES_MAX && (HINT_BODY_BYTES_MIN..=PAYLOAD_BYTES_MAX as usize).contains(&body);
        socket.hint = if sensible { Hint { head, body } } else { Hint::default() };
    }

    pub fn receive_ahead(&mut self, conn: Conn, bytes: usize) {
        if let Some(socket) = self.sockets.get_mut(&conn) {
            socket.ahead = bytes.min(AHEAD_BYTES_MAX);
        }
    }

    pub fn pause(&mut self, conn: Conn, paused: bool) {
        let Some(socket) = self.sockets.get_mut(&conn) else { return };
        socket.paused = paused;
        if !paused {
            mark(socket, &mut self.dirty);
        }
    }

    pub fn bulk(&mut self, conn: Conn, bulk: bool) {
        if let Some(socket) = self.sockets.get_mut(&conn) {
            socket.bulk = bulk;
        }
    }

    pub fn send(&mut self, conn: Conn, bytes: Bytes, leased: bool) {
        let Some(socket) = self.sockets.get_mut(&conn) else { return };
        // What is sent after close() or to a connection that failed goes nowhere: its Closed is coming.
        if !bytes.is_empty() && matches!(socket.phase, Phase::Open | Phase::Connecting) {
            socket.queued_bytes += bytes.len();
            socket.queue.push_back(bytes);
            if leased {
                socket.leased_bytes = socket.queued_bytes;
            }
            mark(socket, &mut self.dirty);
        }
    }

    /// How much of it is still queued is looked at, to tell whether its peer takes anything.
    pub fn count_sent(&mut self, conn: Conn) {
        if let Some(socket) = self.sockets.get_mut(&conn) {
            socket.counted = true;
        }
    }

    /// `Sent` is wanted for what is queued now, also if there is room for all of it at once.
    pub fn tell_sent(&mut self, conn: Conn) {
        if let Some(socket) = self.sockets.get_mut(&conn) {
            socket.delayed |= socket.queued_bytes > 0;
        }
    }

    /// Until when leased bytes are sent.
    pub fn lease(&mut self, lease: Lease) -> io::Result<()> {
        let waiting = match (lease, &mut self.promise) {
            (_, Promise::Over) => return Ok(()),
            (Lease::Over, _) => {
                self.promise = Promise::Over;
                // Those that wait for room in their socket as well.
                self.sockets.values().filter(|socket| socket.leased_bytes > 0).map(|socket| socket.conn).collect()
            }
            (Lease::Until(until_ns), Promise::Bound(bound)) => {
                if !bound.extend(until_ns)? {
                    return Ok(());
                }
                std::mem::take(&mut self.held)
            }
            (Lease::Until(until_ns), Promise::Unbound) => {
                let mut bound = lease::Lease::new()?;
                bound.extend(until_ns)?;
                self.promise = Promise::Bound(bound);
                return Ok(());
            }
            (Lease::Unbound, _) => {
                self.promise = Promise::Unbound;
                std::mem::take(&mut self.held)
            }
        };
        for conn in waiting {
            if let Some(socket) = self.sockets.get_mut(&conn) {
                mark(socket, &mut self.dirty);
            }
        }
        Ok(())
    }

    pub fn peer_left(&self, conn: Conn) -> bool {
        self.sockets.get(&conn).is_some_and(|socket| socket.peer_left())
    }

    pub fn waiting_bytes(&self, conn: Conn) -> usize {
        self.sockets.get(&conn).map_or(0, |socket| socket.waiting_bytes())
    }

    pub fn arrived_bytes(&self, conn: Conn) -> usize {
        self.sockets.get(&conn).map_or(0, |socket| socket.rx.len() + socket.waiting_bytes())
    }

    pub fn asker(&self, conn: Conn) -> Asker {
        self.sockets.get(&conn).map_or_else(|| listen::asker(None), |socket| socket.asker())
    }

    pub fn keep_unsent_below(&self, conn: Conn, bytes: u32) {
        if let Some(socket) = self.sockets.get(&conn) {
            socket.keep_unsent_below(bytes);
        }
    }

    pub fn limit_rate(&mut self, conn: Conn, limit: Option<u64>) {
        if let Some(socket) = self.sockets.get_mut(&conn) {
            socket.limit_rate(limit);
        }
    }

    pub fn has_arrived(&self, conn: Conn) -> bool {
        self.sockets.get(&conn).is_none_or(|socket| socket.queued_bytes == 0 && socket.has_arrived())
    }

    pub fn unsent_bytes(&self, conn: Conn) -> u64 {
        self.sockets.get(&conn).map_or(0, |socket| (socket.queued_bytes + socket.unsent_bytes()) as u64)
    }

    pub fn queued_bytes(&self, conn: Conn) -> usize {
        self.sockets.get(&conn).map_or(0, |socket| socket.queued_bytes)
    }

    /// Closes after what is queued has been sent; bytes that still come are thrown away.
    pub fn close(&mut self, conn: Conn, reason: &str) {
        let Some(socket) = self.sockets.get_mut(&conn) else { return };
        match socket.phase {
            // What was to be sent can never be: there are no keys for it.
            Phase::Open if socket.secure.as_ref().is_some_and(|secure| secure.is_handshaking()) => {
                self.abort(conn, reason);
            }
            Phase::Open => self.drain(conn, reason),
            Phase::Connecting => self.abort(conn, reason),
            Phase::Draining | Phase::Aborting | Phase::Gone => {}
        }
    }

    /// Whether a close waits for the peer to end its side, however long that takes.
    pub fn wait_for_peer(&mut self, conn: Conn, waits: bool) {
        let Some(socket) = self.sockets.get_mut(&conn) else { return };
        socket.patient = waits;
        if !waits && socket.phase == Phase::Draining {
            hasten(socket);
        }
    }

    /// Ends an open connection then, unless something else is said before; `None`: it may take its time.
    pub fn expire(&mut self, conn: Conn, until_ns: Option<u64>) {
        let Some(socket) = self.sockets.get_mut(&conn) else { return };
        // The deadline of TLS, or of a close, is another one.
        if socket.phase == Phase::Open && socket.secure.is_none() {
            socket.deadline_ns = until_ns.unwrap_or(u64::MAX);
            self.timed.retain(|timed| *timed != conn);
            self.timed.extend(until_ns.map(|_| conn));
        }
    }

    /// Closes an open connection after what can be sent of it.
    pub(super) fn drain(&mut self, conn: Conn, reason: &str) {
        let Some(socket) = self.sockets.get_mut(&conn) else { return };
        socket.phase = Phase::Draining;
        socket.reason = reason.into();
        let waits = socket.patient && !socket.ended;
        socket.deadline_ns = if waits { u64::MAX } else { clock::mono_ns() + CLOSE_NS };
        self.timed.retain(|timed| *timed != conn);
        self.timed.push(conn);
        mark(socket, &mut self.dirty);
    }

    /// Closes at once.
    pub fn abort(&mut self, conn: Conn, reason: &str) {
        let Some(socket) = self.sockets.get_mut(&conn) else { return };
        if matches!(socket.phase, Phase::Aborting | Phase::Gone) {
            return;
        }
        if socket.phase != Phase::Draining {
            socket.reason = reason.into();
        }
        socket.phase = Phase::Aborting;
        socket.drop_queue();
        mark(socket, &mut self.dirty);
    }

    /// Connections that are being closed, and whose peer has taken all that was sent to it and the end, are waited for only
    /// so much longer: it may be busy, or never end its own side.
    pub fn hurry(&mut self) {
        let until_ns = clock::mono_ns() + HURRIED_NS;
        for conn in &self.timed {
            let Some(socket) = self.sockets.get_mut(conn) else { continue };
            if socket.phase == Phase::Draining && !socket.hurried && socket.shut && socket.has_arrived() {
                socket.hurried = true;
                socket.deadline_ns = socket.deadline_ns.min(until_ns);
            }
        }
    }

    /// When `flush` wants to be called although nothing happened.
    pub fn deadline_ns(&self) -> Option<u64> {
        let sockets = self.timed.iter().filter_map(|conn| self.sockets.get(conn)).map(|socket| socket.deadline_ns);
        let listeners = self.listeners.iter().flatten().filter_map(|listener| listener.rest_until_ns);
        sockets.chain(listeners).min()
    }

    /// Forgets what was closed in the last turn, acts on deadlines, arms receives and sends what is queued.
    pub fn flush(&mut self, kernel: &mut Kernel, events: &mut Vec<Event>) -> io::Result<()> {
        for conn in self.buried.drain(..) {
            self.sockets.remove(&conn);
        }
        if !self.timed.is_empty() || self.listeners.iter().flatten().any(|one| one.rest_until_ns.is_some()) {
            self.act_on_deadlines(kernel)?;
        }
        while !self.dirty.is_empty() {
            let mut dirty = std::mem::take(&mut self.dirty);
            for conn in dirty.drain(..) {
                self.flush_one(conn, kernel, events)?;
            }
            // Only the end of a stream marks anything above, once each; the list is given back for its memory.
            dirty.append(&mut self.dirty);
            self.dirty = dirty;
        }
        for conn in std::mem::take(&mut self.tls.again) {
            self.sockets.get_mut(&conn).into_iter().for_each(|socket| mark(socket, &mut self.dirty));
        }
        Ok(())
    }

    /// Arms the receive of a connection, sends what it has queued, and ends it when that is due.
    fn flush_one(&mut self, conn: Conn, kernel: &mut Kernel, events: &mut Vec<Event>) -> io::Result<()> {
        let Some(socket) = self.sockets.get_mut(&conn) else { return Ok(()) };
        socket.dirty = false;
        if socket.secure.as_ref().is_some_and(|secure| secure.tls.front().is_some()) {
            self.place(conn, kernel, events);
        }
        let Some(socket) = self.sockets.get_mut(&conn) else { return Ok(()) };
        match socket.phase {
            Phase::Open => {
                receive(socket, kernel)?;
                if (socket.bulk && !socket.queue.is_empty()) || socket.queued_bytes > SMALL_QUEUE_BYTES {
                    self.later.push(conn);
                } else {
                    self.send_queue(conn, kernel, events)?;
                }
            }
            Phase::Draining => {
                receive(socket, kernel)?;
                self.send_queue(conn, kernel, events)?;
                let Some(socket) = self.sockets.get_mut(&conn) else { return Ok(()) };
                if socket.is_drained() && socket.secure.as_mut().is_some_and(|secure| secure.say_goodbye()) {
                    self.send_queue(conn, kernel, events)?;
                }
                let Some(socket) = self.sockets.get_mut(&conn) else { return Ok(()) };
                if !socket.sending && socket.is_drained() && socket.phase == Phase::Draining {
                    if !socket.shut {
                        // The peer sees the end of the stream, and then ends its own side.
                        socket.shut = true;
                        socket.shutdown(libc::SHUT_WR);
                    }
                    if socket.ended {
                        socket.phase = Phase::Aborting;
                        self.bury_if_quiet(conn, kernel, events)?;
                    }
                }
            }
            Phase::Aborting => self.bury_if_quiet(conn, kernel, events)?,
            Phase::Connecting | Phase::Gone => {}
        }
        Ok(())
    }

    /// Sends the front of a queue, as far as the lease allows.
    fn send_queue(&mut self, conn: Conn, kernel: &mut Kernel, events: &mut Vec<Event>) -> io::Result<()> {
        let Some(socket) = self.sockets.get_mut(&conn) else { return Ok(()) };
        let lease = match &self.promise {
            Promise::Bound(lease) if socket.leased_bytes > 0 => Some(lease),
            _ => None,
        };
        let outcome = match (&self.promise, lease) {
            (Promise::Over, _) if socket.leased_bytes > 0 => {
                Outcome::Failed(io::Error::other("a newer epoch is in force"))
            }
            (_, lease) if socket.secure.is_some() => secure::send(socket, lease, &mut self.tls, kernel)?,
            (_, Some(lease)) => send_leased(socket, lease, kernel)?,
            _ => {
                send(socket, kernel)?;
                Outcome::Going
            }
        };
        match outcome {
            Outcome::Going if socket.delayed && socket.queued_bytes == 0 => {
                socket.delayed = false;
                if socket.phase == Phase::Open {
                    events.push(Event::Sent { conn });
                }
            }
            Outcome::Going => {}
            Outcome::Held => {
                if !self.held.contains(&conn) {
                    self.held.push(conn);
                }
            }
            Outcome::Failed(error) => {
                if socket.phase == Phase::Open {
                    socket.reason = format!("send failed: {error}");
                }
                socket.phase = Phase::Aborting;
                socket.drop_queue();
                self.bury_if_quiet(conn, kernel, events)?;
            }
        }
        Ok(())
    }

    /// Whether sends are left for the end of the turn.
    #[must_use]
    pub fn has_bulk(&self) -> bool {
        !self.later.is_empty()
    }

    /// Sends what is in no hurry, and what is much.
    pub fn flush_bulk(&mut self, kernel: &mut Kernel, events: &mut Vec<Event>) -> io::Result<()> {
        let mut later = std::mem::take(&mut self.later);
        for conn in later.drain(..) {
            if self.sockets.get(&conn).is_some_and(|socket| socket.phase == Phase::Open) {
                self.send_queue(conn, kernel, events)?;
            }
        }
        self.later = later;
        Ok(())
    }

    /// Takes the answers of name servers.
    pub fn take_resolved(&mut self, kernel: &mut Kernel) -> io::Result<()> {
        while let Some((conn, resolved)) = self.resolver.answered() {
            self.resolved(conn, resolved, kernel)?;
        }
        Ok(())
    }

    pub fn completed(
        &mut self,
        completion: Completion,
        kernel: &mut Kernel,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let Completion { token, result } = completion;
        match token.kind {
            Kind::Accept => self.accepted(token.id as usize, result, kernel, events),
            Kind::Connect => self.connected(Conn(token.id), result, kernel, events),
            Kind::Receive => {
                self.received(Conn(token.id), result, kernel, events);
                Ok(())
            }
            Kind::Send => {
                self.sent(Conn(token.id), result, events);
                Ok(())
            }
            _ => unreachable!("the reactor hands over completions of sockets only"),
        }
    }

    fn resolved(&mut self, conn: Conn, resolved: Resolved, kernel: &mut Kernel) -> io::Result<()> {
        let Some(socket) = self.sockets.get_mut(&conn) else { return Ok(()) };
        if socket.phase != Phase::Connecting {
            return Ok(());
        }
        match resolved {
            Ok(addresses) => {
                socket.addresses = addresses;
                socket.addresses.reverse();
                self.connect_next(conn, "no address", kernel)
            }
            Err(reason) => {
                self.abort(conn, &reason);
                Ok(())
            }
        }
    }

    /// Tries the next address of a connection; gives up with `reason` when there is none left.
    fn connect_next(&mut self, conn: Conn, reason: &str, kernel: &mut Kernel) -> io::Result<()> {
        let Some(socket) = self.sockets.get_mut(&conn) else { return Ok(()) };
        let Some(address) = socket.addresses.pop() else {
            let text = format!("cannot connect to {}: {reason}", socket.peer);
            self.abort(conn, &text);
            return Ok(());
        };
        socket.release(kernel);
        match listen::stream_socket(&address) {
            Ok(fd) => socket.adopt(fd, kernel),
            Err(error) => return self.connect_next(conn, &error.to_string(), kernel),
        }
        socket.deadline_ns = clock::mono_ns() + CONNECT_NS;
        socket.address = Some(Box::new(address));
        socket.connecting = true;
        let address: &SockaddrStorage = socket.address.as_ref().expect("just set");
        let (pointer, length) = listen::raw_address(address);
        let target = socket.target.expect("adopt set it");
        let entry = on!(target, |fd| opcode::Connect::new(fd, pointer, length).build());
        // SAFETY: the address is boxed in the socket, which is kept, with its address, until `connecting`
        // is false; so is the descriptor.
        unsafe { kernel.push(entry, Token::new(Kind::Connect, conn.0)) }
    }

    fn connected(&mut self, conn: Conn, result: i32, kernel: &mut Kernel, events: &mut Vec<Event>) -> io::Result<()> {
        let socket = self.sockets.get_mut(&conn).expect("a socket is kept while it is connecting");
        socket.connecting = false;
        if socket.phase != Phase::Connecting {
            mark(socket, &mut self.dirty);
            return Ok(());
        }
        if result < 0 {
            let timed_out = result == -libc::ECANCELED;
            let error = io::Error::from_raw_os_error(if timed_out { libc::ETIMEDOUT } else { -result });
            return self.connect_next(conn, &error.to_string(), kernel);
        }
        socket.phase = Phase::Open;
        self.timed.retain(|timed| *timed != conn);
        mark(socket, &mut self.dirty);
        match socket.connector.take() {
            Some(connector) => self.secure(conn, connector.begin(), Announce::Connected),
            None => events.push(Event::Connected { conn }),
        }
        Ok(())
    }

    fn received(&mut self, conn: Conn, result: i32, kernel: &mut Kernel, events: &mut Vec<Event>) {
        let socket = self.sockets.get_mut(&conn).expect("a socket is kept while it is receiving");
        socket.receiving = false;
        mark(socket, &mut self.dirty);
        if socket.secure.is_some() {
            return self.received_secured(conn, result, kernel, events);
        }
        if result > 0 {
            let bytes = result as usize;
            if socket.phase == Phase::Open {
                socket.plan.received(bytes, &mut socket.rx);
                events.push(Event::Received { conn });
            } else {
                socket.plan.clear();
            }
        } else if !matches!(-result, libc::EINTR | libc::EAGAIN) {
            match (socket.phase, result) {
                (Phase::Open, 0) => {
                    // What is still queued goes out: the peer may have closed only its sending side.
                    socket.ended = true;
                    self.close(conn, "closed by the peer");
                }
                (Phase::Draining, 0) => {
                    socket.ended = true;
                    hasten(socket);
                }
                _ => {
                    let error = io::Error::from_raw_os_error(-result);
                    self.abort(conn, &format!("receive failed: {error}"));
                }
            }
        }
    }

    fn sent(&mut self, conn: Conn, result: i32, events: &mut Vec<Event>) {
        let socket = self.sockets.get_mut(&conn).expect("a socket is kept while it is sending");
        socket.sending = false;
        mark(socket, &mut self.dirty);
        if socket.phase == Phase::Aborting {
            socket.drop_queue();
        } else if std::mem::take(&mut socket.polling) {
            // There is room again, or an error that the next send will name.
        } else if result >= 0 {
            socket.sent(result as usize);
            if socket.queue.is_empty() && socket.phase == Phase::Open {
                socket.delayed = false;
                events.push(Event::Sent { conn });
            }
        } else if !matches!(-result, libc::EINTR | libc::EAGAIN) {
            let error = io::Error::from_raw_os_error(-result);
            self.abort(conn, &format!("send failed: {error}"));
        }
    }

    fn act_on_deadlines(&mut self, kernel: &mut Kernel) -> io::Result<()> {
        let now = clock::mono_ns();
        for index in 0..self.listeners.len() {
            let due = self.listeners[index].as_ref().and_then(|listener| listener.rest_until_ns);
            let accepting = self.listeners[index].as_ref().is_some_and(|listener| listener.accepting);
            if due.is_some_and(|at| at <= now) {
                if accepting {
                    self.listeners[index].as_mut().expect("looked at above").rest_until_ns = None;
                } else {
                    self.accept(index, kernel)?;
                }
            }
        }
        let late = |conn: &Conn| self.sockets.get(conn).is_some_and(|socket| socket.deadline_ns <= now);
        let late: Vec<Conn> = self.timed.iter().copied().filter(late).collect();
        for conn in late {
            let socket = self.sockets.get_mut(&conn).expect("only sockets that exist are late");
            if socket.phase == Phase::Connecting && socket.connecting {
                // This attempt is over; its completion goes on with the next address.
                socket.deadline_ns = u64::MAX;
                kernel.cancel(Token::new(Kind::Connect, conn.0))?;
            } else {
                let reason = match socket.phase {
                    Phase::Connecting => format!("cannot connect to {}: the name server does not answer", socket.peer),
                    Phase::Open if socket.secure.is_some() => "the TLS handshake took too long".into(),
                    Phase::Open => "its request took too long".into(),
                    _ => String::new(),
                };
                self.abort(conn, &reason);
                self.timed.retain(|timed| *timed != conn);
            }
        }
        Ok(())
    }

    /// Ends the operations of a connection, and the connection once they have ended.
    fn bury_if_quiet(&mut self, conn: Conn, kernel: &mut Kernel, events: &mut Vec<Event>) -> io::Result<()> {
        let socket = self.sockets.get_mut(&conn).expect("the caller has just looked it up");
        if socket.is_quiet() {
            socket.release(kernel);
            socket.plan.clear();
            socket.phase = Phase::Gone;
            self.timed.retain(|timed| *timed != conn);
            self.buried.push(conn);
            let reason = std::mem::take(&mut socket.reason);
            if socket.secure.as_deref().is_none_or(Secure::is_known) {
                events.push(Event::Closed { conn, reason });
            } else {
                let peer = std::mem::take(&mut socket.peer);
                self.not_secured(conn, &peer, &reason);
            }
            return Ok(());
        }
        if !socket.cancelled {
            socket.cancelled = true;
            socket.shutdown(libc::SHUT_RDWR);
            for (busy, kind) in
                [(socket.receiving, Kind::Receive), (socket.sending, Kind::Send), (socket.connecting, Kind::Connect)]
            {
                if busy {
                    kernel.cancel(Token::new(kind, conn.0))?;
                }
            }
        }
        Ok(())
    }
}

/// From now on a close takes bounded time.
pub(super) fn hasten(socket: &mut Socket) {
    socket.deadline_ns = socket.deadline_ns.min(clock::mono_ns() + CLOSE_NS);
}

/// Puts a connection on the list of the next flush, once.
pub(super) fn mark(socket: &mut Socket, dirty: &mut Vec<Conn>) {
    if !socket.dirty {
        socket.dirty = true;
        dirty.push(socket.conn);
    }
}

/// Arms a receive unless one is in flight or none is wanted.
fn receive(socket: &mut Socket, kernel: &mut Kernel) -> io::Result<()> {
    let discard = socket.phase == Phase::Draining;
    let waits = socket.secure.as_ref().is_some_and(|secure| secure.tls.front().is_some());
    let held = !discard && (socket.paused || waits || socket.rx.len() >= UNTAKEN_BYTES_MAX);
    if socket.receiving || socket.ended || held {
        return Ok(());
    }
    if socket.secure.is_none() {
        let hint = if discard { Hint::default() } else { socket.hint };
        socket.plan.prepare(hint, socket.rx.len(), socket.ahead, kernel);
    }
    let message = socket.describe_receive();
    let target = socket.target.expect("an open socket has a descriptor");
    let entry = on!(target, |fd| opcode::RecvMsg::new(fd, message).build());
    socket.receiving = true;
    // SAFETY: the message header and its vectors are boxed in the socket, and the runs they name are held
    // by its plan, or the room by its TLS; neither is touched or dropped until `receiving` is false. Nobody sees the bytes before.
    unsafe { kernel.push(entry, Token::new(Kind::Receive, socket.conn.0)) }
}

/// Names of connections are counted up: their low bits are hash enough.
#[derive(Default)]
pub struct ConnHasher(u64);

impl Hasher for ConnHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
