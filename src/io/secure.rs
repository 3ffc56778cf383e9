//! TLS on the connections of a reactor: where records and plaintext pass between the ring and `tls`.
//!
//! ```text
//!   kernel ─► room of Tls ─► decrypt ─► plan ─► rx            (what was plain before is thrown away)
//!   queue ─► [gate open?] ─► encrypt ─► pending ─► [gate] ─► kernel
//! ```
//!
//! - Plaintext is placed as it would have been received: bodies land page-aligned, long ones when their head was seen.
//! - A queue is encrypted when it can be sent, in batches; records go out in their order, under the lease if any of them
//!   tells what is promised (I7). One that was made and is held keeps everything behind it waiting.
//! - A connection of a secure listener is nobody's before its handshake is done: it is not announced, and its end is
//!   told in the log only. How many of these there are, for how long, and what they hold, is bounded (I9).

use std::io;

use nix::libc;

use super::clock;
use super::lease::{Lease, Sent};
use super::net::Net;
use super::plan::Hint;
use super::reactor::Event;
use super::ring::Kernel;
use super::sending::{Outcome, wait_for_room};
use super::socket::{Phase, Socket};
use super::tls::{Tls, TlsError};
use crate::core::ids::Conn;
use crate::core::rope::Rope;
use crate::core::sparing::Sparing;
use crate::limits::{TLS_HANDSHAKE_NS, TLS_HANDSHAKES_MAX};

/// TLS of one connection.
pub struct Secure {
    pub tls: Tls,
    /// Bytes of the queue, from its front, that were queued before TLS began.
    pub plain_bytes: usize,
    /// Plaintext whose records are pending; still counted as queued.
    encrypted_bytes: usize,
    /// The receive in flight was begun before TLS, into the plan.
    receives_plan: bool,
    /// What is told once the handshake is done.
    announce: Option<Announce>,
    /// It is of no more use: only what is pending is sent.
    failed: bool,
}

/// What the end of a handshake means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announce {
    /// There is a connection, from a listener.
    Accepted(usize),
    /// The connection that was asked for is up.
    Connected,
    /// The connection that there was has become secure.
    Secured,
}

/// What connections with TLS share.
pub struct Shared {
    /// Connections of secure listeners in their handshake, the oldest first.
    handshakes: Vec<Conn>,
    /// Connections with plaintext to be placed in the next turn.
    pub again: Vec<Conn>,
    /// Memory to join short parts in, and for records.
    staging: Vec<u8>,
    records: Vec<u8>,
    refused: Sparing,
}

/// Pause between two lines about connections that did not get through their handshake, nanoseconds.
const REFUSED_PAUSE_NS: u64 = 1_000_000_000;

impl Default for Shared {
    fn default() -> Shared {
        Shared {
            handshakes: Vec::new(),
            again: Vec::new(),
            staging: Vec::new(),
            records: Vec::new(),
            refused: Sparing::new(REFUSED_PAUSE_NS),
        }
    }
}

impl Secure {
    /// Whether the daemon knows of the connection.
    pub fn is_known(&self) -> bool {
        !matches!(self.announce, Some(Announce::Accepted(_)))
    }

    /// Whether the handshake is going on.
    pub fn is_handshaking(&self) -> bool {
        self.announce.is_some()
    }

    /// Ends our side of the stream, once; whether there is something to send for it.
    pub fn say_goodbye(&mut self) -> bool {
        if self.failed || self.tls.closed() {
            return false;
        }
        self.tls.close();
        !self.tls.pending().is_empty()
    }
}

impl Net {
    /// Begins TLS on an open connection. What was received and not taken is thrown away; what is queued goes out first,
    /// as it is.
    pub fn secure(&mut self, conn: Conn, begun: Result<Tls, TlsError>, announce: Announce) {
        let Some(socket) = self.sockets.get_mut(&conn).filter(|socket| socket.phase == Phase::Open) else { return };
        assert!(socket.secure.is_none(), "TLS begins once");
        let tls = match begun {
            Ok(tls) => tls,
            Err(error) => return self.abort(conn, &error.to_string()),
        };
        socket.rx.clear();
        socket.hint = Hint::default();
        let in_the_middle = announce == Announce::Secured;
        socket.secure = Some(Box::new(Secure {
            tls,
            plain_bytes: if in_the_middle { socket.queued_bytes } else { 0 },
            encrypted_bytes: 0,
            receives_plan: socket.receiving,
            announce: Some(announce),
            failed: false,
        }));
        if !socket.receiving {
            socket.plan.clear();
        }
        socket.deadline_ns = clock::mono_ns() + TLS_HANDSHAKE_NS;
        self.timed.push(conn);
        if let Announce::Accepted(_) = announce {
            self.tls.handshakes.push(conn);
            if self.tls.handshakes.len() > TLS_HANDSHAKES_MAX {
                let oldest = self.tls.handshakes.remove(0);
                self.abort(oldest, "a newer connection needs its place, and its TLS handshake is not done");
            }
        }
        self.drive(conn, &mut Vec::new());
    }

    /// A receive of a connection with TLS has ended.
    pub fn received_secured(&mut self, conn: Conn, result: i32, kernel: &mut Kernel, events: &mut Vec<Event>) {
        let socket = self.sockets.get_mut(&conn).expect("the caller has just looked it up");
        let secure = socket.secure.as_mut().expect("the caller has just looked at it");
        let into_plan = std::mem::take(&mut secure.receives_plan);
        match (socket.phase, result) {
            (Phase::Open, 1..) => {
                let bytes = result as usize;
                if into_plan {
                    let mut rope = Rope::new();
                    socket.plan.received(bytes, &mut rope);
                    socket.plan.clear();
                    secure.tls.feed(&rope.take(bytes));
                } else {
                    // SAFETY: this receive was given the room of this connection, which nothing has moved since: `room`
                    // is asked for by receives only, of which there was one, and `feed` is called above only.
                    unsafe { secure.tls.received(bytes) };
                }
                self.drive(conn, events);
                self.place(conn, kernel, events);
            }
            // Draining: what still comes is thrown away, and was not shown to anybody.
            (_, 1..) => socket.plan.clear(),
            (_, _) if matches!(-result, libc::EINTR | libc::EAGAIN) => {}
            (Phase::Open, 0) => {
                let reason = secure.tls.cut_off();
                self.abort(conn, reason);
            }
            (Phase::Draining, 0) => {
                socket.ended = true;
                super::net::hasten(socket);
            }
            _ => {
                let error = io::Error::from_raw_os_error(-result);
                self.abort(conn, &format!("receive failed: {error}"));
            }
        }
    }

    /// Goes on with the records that are there; tells of the end of the handshake.
    fn drive(&mut self, conn: Conn, events: &mut Vec<Event>) {
        let Some(socket) = self.sockets.get_mut(&conn) else { return };
        let Some(secure) = &mut socket.secure else { return };
        if let Err(text) = secure.tls.drive() {
            return self.fail(conn, &text);
        }
        if secure.tls.established()
            && let Some(announce) = secure.announce.take()
        {
            socket.deadline_ns = u64::MAX;
            self.timed.retain(|timed| *timed != conn);
            events.push(match announce {
                Announce::Accepted(listener) => {
                    self.tls.handshakes.retain(|other| *other != conn);
                    let who = secure.tls.peer().map_or_else(String::new, |name| format!(" ({name})"));
                    Event::Accepted { listener, conn, peer: format!("{}{who}", socket.peer) }
                }
                Announce::Connected => Event::Connected { conn },
                Announce::Secured => Event::Secured { conn },
            });
        }
        super::net::mark(socket, &mut self.dirty);
    }

    /// Ends a connection whose TLS is of no more use, once the peer was told why.
    fn fail(&mut self, conn: Conn, reason: &str) {
        let Some(socket) = self.sockets.get_mut(&conn) else { return };
        let Some(secure) = &mut socket.secure else { return };
        secure.failed = true;
        secure.tls.discard();
        // Of the queue only what precedes TLS can still be sent, and that is an answer nobody waits for any more.
        if secure.plain_bytes > 0 || (socket.sending && !socket.polling) {
            return self.abort(conn, reason);
        }
        socket.queue.clear();
        (socket.queued_bytes, socket.leased_bytes) =
            (secure.encrypted_bytes, socket.leased_bytes.min(secure.encrypted_bytes));
        self.drain(conn, reason);
    }

    /// Places plaintext as it would have been received, as far as the connection takes it; whether all of it.
    pub fn place(&mut self, conn: Conn, kernel: &mut Kernel, events: &mut Vec<Event>) {
        let Some(socket) = self.sockets.get_mut(&conn).filter(|socket| socket.phase == Phase::Open) else { return };
        let Some(secure) = &mut socket.secure else { return };
        let mut placed = false;
        let mut head_first = false;
        socket.plan.expect(secure.tls.held_bytes());
        while let Some(front) = secure.tls.front() {
            if socket.paused || socket.rx.len() >= super::net::UNTAKEN_BYTES_MAX || head_first {
                break;
            }
            socket.plan.prepare(socket.hint, socket.rx.len(), socket.ahead, kernel);
            let bytes = socket.plan.fill(front, &mut socket.rx);
            secure.tls.consume(bytes);
            placed = true;
            head_first = socket.plan.at_long_body();
        }
        if placed {
            events.push(Event::Received { conn });
        }
        if secure.tls.front().is_some() {
            if head_first && !socket.paused {
                self.tls.again.push(conn);
            }
        } else if secure.tls.peer_closed() && !socket.ended {
            socket.ended = true;
            self.drain(conn, "closed by the peer");
        }
    }

    /// The end of a connection that nobody was told of.
    pub fn not_secured(&mut self, conn: Conn, peer: &str, reason: &str) {
        self.tls.handshakes.retain(|other| *other != conn);
        if let Some(left_out) = self.tls.refused.due(clock::mono_ns()) {
            let more = Sparing::and_more(left_out);
            tracing::warn!("a connection from {peer} was refused: {reason}{more}");
        }
    }
}

/// Sends what is pending and what is queued of a connection with TLS, from this thread, as far as there is room; where
/// there is none it is waited for.
pub fn send(
    socket: &mut Socket,
    lease: Option<&Lease>,
    shared: &mut Shared,
    kernel: &mut Kernel,
) -> io::Result<Outcome> {
    while !socket.sending {
        let Some(secure) = &mut socket.secure else { break };
        let sent = if secure.plain_bytes > 0 {
            let plain = secure.plain_bytes;
            socket.send_plain(plain, lease)
        } else if !secure.tls.pending().is_empty() {
            socket.send_records(lease)
        } else if secure.tls.established() && !secure.tls.closed() && !socket.queue.is_empty() {
            if lease.is_some_and(Lease::is_shut) {
                Sent::Shut
            } else {
                secure.tls.lend(std::mem::take(&mut shared.records));
                match secure.tls.encrypt(&mut socket.queue, &mut shared.staging) {
                    Ok(bytes) => secure.encrypted_bytes += bytes,
                    Err(text) => return Ok(Outcome::Failed(io::Error::other(text))),
                }
                continue;
            }
        } else {
            break;
        };
        if matches!(sent, Sent::Shut | Sent::Failed(libc::EAGAIN))
            && let Some(memory) = socket.secure.as_mut().and_then(|secure| secure.tls.settle())
        {
            shared.records = memory;
        }
        match sent {
            Sent::Bytes(_) => gone(socket, shared),
            Sent::Failed(libc::EINTR) => {}
            Sent::Shut => {
                socket.delayed = true;
                return Ok(Outcome::Held);
            }
            Sent::Failed(libc::EAGAIN) => wait_for_room(socket, kernel)?,
            Sent::Failed(errno) => return Ok(Outcome::Failed(io::Error::from_raw_os_error(errno))),
        }
    }
    Ok(Outcome::Going)
}

/// Something has gone out: plaintext counts as sent when its last record is.
fn gone(socket: &mut Socket, shared: &mut Shared) {
    let Some(secure) = &mut socket.secure else { return };
    if secure.tls.pending().is_empty() && secure.encrypted_bytes > 0 {
        let bytes = std::mem::take(&mut secure.encrypted_bytes);
        socket.queued_bytes -= bytes;
        socket.leased_bytes = socket.leased_bytes.saturating_sub(bytes);
        if let Some(memory) = secure.tls.give_back() {
            shared.records = memory;
        }
    }
}
