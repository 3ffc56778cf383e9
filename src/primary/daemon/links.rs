//! The connections to DR: the machine's names for them, their encoders, and what arrives on them.

use std::collections::HashMap;

use bytes::Bytes;

use crate::core::address::Address;
use crate::core::ids::{Conn, Epoch};
use crate::core::rate::RateLimit;
use crate::format::FormatError;
use crate::format::wire::{self, Encoder, Message, Purpose, Refuse, RefuseCode};
use crate::io::tls::Connector;
use crate::io::{Reactor, clock};
use crate::primary::window::Held;

/// Connections by both names: the machine chooses its own, the reactor has one for each socket.
#[derive(Default)]
pub struct DrConns {
    by_machine: HashMap<Conn, Conn>,
    by_reactor: HashMap<Conn, Line>,
    dirty: Vec<Conn>,
    out: Vec<Bytes>,
    /// Of all connections since the start.
    pub received_bytes: u64,
    /// What the streams may send together.
    pub limit: RateLimit,
    /// When they are next told what each may.
    pace_due_ns: u64,
}

struct Line {
    name: Conn,
    purpose: Purpose,
    /// What it may send, bytes a second, as the kernel was told.
    pace: Option<u64>,
    encoder: Encoder,
    dirty: bool,
    /// The machine has given it up: its end is of no interest.
    dropped: bool,
    /// DR was told why it is refused: that goes out before the end.
    refusing: bool,
    /// Memory of data that was sent since the machine was last told how much is left of it, bytes.
    handed: u64,
    /// The machine knows that something is left, and is told when nothing is.
    watched: bool,
}

/// How long what a stream leaves of its share is not another's, nanoseconds.
const PACE_EVERY_NS: u64 = 100_000_000;
/// So much memory may be given to a connection before the machine is told how much of it has left.
const TELL_BYTES: u64 = 256 << 10;

impl DrConns {
    pub fn connect(
        &mut self,
        reactor: &mut Reactor,
        name: Conn,
        purpose: Purpose,
        address: &Address,
        connector: Option<&Connector>,
    ) {
        self.pace_due_ns = 0;
        let conn = reactor.next_conn();
        self.by_machine.insert(name, conn);
        let line = Line {
            name,
            purpose,
            pace: None,
            encoder: Encoder::new(),
            dirty: false,
            dropped: false,
            refusing: false,
            handed: 0,
            watched: false,
        };
        self.by_reactor.insert(conn, line);
        reactor.connect_with(conn, address, connector);
    }

    /// What the streams may send together at a time of the wall clock, bytes a second.
    pub fn limit_at(&self, wall_ns: u64) -> Option<u64> {
        self.limit.least().and_then(|_| self.limit.at(clock::of_the_week(wall_ns)))
    }

    /// Shares out what may be sent: among the streams that have something to send. What is ordered goes as fast as it can.
    pub fn pace(&mut self, reactor: &mut Reactor) {
        let now = reactor.now();
        if self.limit.least().is_none() || now.mono_ns < self.pace_due_ns {
            return;
        }
        self.pace_due_ns = now.mono_ns + PACE_EVERY_NS;
        let limit = self.limit_at(now.wall_ns);
        let streams = self.by_reactor.iter_mut().filter(|(_, line)| line.purpose == Purpose::Stream);
        let streams: Vec<(&Conn, &mut Line)> = streams.collect();
        let busy = streams.iter().filter(|(conn, _)| !reactor.has_arrived(**conn)).count().max(1);
        let share = limit.map(|limit| limit / busy as u64);
        for (conn, line) in streams {
            if std::mem::replace(&mut line.pace, share) != share {
                reactor.limit_rate(*conn, share);
            }
        }
    }

    /// Whether a connection is in no hurry: what no reply waits for goes out while the local disk works, and what one
    /// does wait for before, since a peer takes longer than a disk does.
    pub fn bulk(&self, reactor: &mut Reactor, name: Conn, bulk: bool) {
        if let Some(conn) = self.by_machine.get(&name) {
            reactor.bulk(*conn, bulk);
        }
    }

    /// The machine's name of a connection that is up.
    pub fn connected(&self, conn: Conn) -> Option<Conn> {
        self.by_reactor.get(&conn).filter(|line| !line.dropped).map(|line| line.name)
    }

    /// The machine's name of a connection that has ended, if the machine does not know yet.
    pub fn closed(&mut self, conn: Conn) -> Option<Conn> {
        let line = self.by_reactor.remove(&conn)?;
        self.by_machine.remove(&line.name);
        (!line.dropped).then_some(line.name)
    }

    pub fn send(&mut self, reactor: &mut Reactor, name: Conn, message: &Message) {
        let Some(conn) = self.by_machine.get(&name).copied() else { return };
        let Some(line) = self.by_reactor.get_mut(&conn) else { return };
        line.refusing |= matches!(message, Message::Refuse(_));
        if let Message::Payload { data, .. } | Message::Chunk { data, .. } = message {
            line.handed += Held::memory_of(data.len() as u64);
        }
        line.encoder.push(message, &mut self.out);
        if !std::mem::replace(&mut line.dirty, true) {
            self.dirty.push(conn);
        }
        for part in self.out.drain(..) {
            reactor.send(conn, part);
        }
    }

    /// Sends what the encoders still hold: once a turn.
    pub fn flush(&mut self, reactor: &mut Reactor) {
        for conn in std::mem::take(&mut self.dirty) {
            let Some(line) = self.by_reactor.get_mut(&conn) else { continue };
            line.dirty = false;
            line.encoder.flush(&mut self.out);
            for part in self.out.drain(..) {
                reactor.send(conn, part);
            }
            if line.handed >= TELL_BYTES && !line.watched {
                line.watched = true;
                reactor.tell_sent(conn);
            }
        }
    }

    /// All of what was queued on a connection has been taken, when the machine wants to know: its name, and the bytes
    /// that have been queued since.
    pub fn sent(&mut self, reactor: &mut Reactor, conn: Conn) -> Option<(Conn, u64)> {
        let line = self.by_reactor.get_mut(&conn).filter(|line| line.watched && !line.dropped)?;
        let left = reactor.queued_bytes(conn) as u64;
        (line.watched, line.handed) = (left > 0, 0);
        if line.watched {
            reactor.tell_sent(conn);
        }
        Some((line.name, left))
    }

    pub fn close(&mut self, reactor: &mut Reactor, name: Conn) {
        let Some(conn) = self.by_machine.remove(&name) else { return };
        let Some(line) = self.by_reactor.get_mut(&conn) else { return };
        line.dropped = true;
        if !line.refusing {
            return reactor.abort(conn, "given up");
        }
        line.encoder.flush(&mut self.out);
        self.out.drain(..).for_each(|part| reactor.send(conn, part));
        reactor.close(conn, "refused");
    }

    /// The next whole message of a connection.
    pub fn next(&mut self, reactor: &mut Reactor, conn: Conn) -> Result<Option<(Conn, Message)>, FormatError> {
        let Some(name) = self.connected(conn) else { return Ok(None) };
        let rx = reactor.rx(conn);
        let before = rx.len();
        let message = wire::decode(rx)?;
        self.received_bytes += (before - rx.len()) as u64;
        Ok(message.map(|message| (name, message)))
    }
}

/// The bytes of a refusal.
pub fn refusal(epoch: Epoch, text: String) -> Vec<Bytes> {
    let mut out = Vec::new();
    wire::encode(&Message::Refuse(Refuse { code: RefuseCode::Fenced, epoch, text }), &mut out);
    out
}
