//! The connections to DR: the machine's names for them, their encoders, and what arrives on them.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::cluster::config::{DrConfig, PrimaryConfig};
use crate::cluster::status::LinkStatus;
use crate::core::ids::{Conn, Epoch, Ticket};
use crate::core::modes::Compress;
use crate::core::rate::RateLimit;
use crate::format::FormatError;
use crate::format::wire::{self, Encoder, Message, Packer, Patch, Purpose, Refuse, RefuseCode};
use crate::io::tls::Connector;
use crate::io::{Reactor, clock};
use crate::primary::packing::{Next, Packing};
use crate::primary::paths::{End, Paths};
use crate::primary::window::Held;

/// Connections by both names: the machine chooses its own, the reactor has one for each socket.
#[derive(Default)]
pub struct DrConns {
    by_machine: HashMap<Conn, Conn>,
    by_reactor: HashMap<Conn, Line>,
    dirty: Vec<Conn>,
    out: Vec<Bytes>,
    /// Of all connections since the start.
    received_bytes: u64,
    sent_bytes: u64,
    /// What the streams may send together.
    limit: RateLimit,
    /// When they are next told what each may.
    pace_due_ns: u64,
    /// Whether the streams are compressed.
    compress: Compress,
    /// Used by one job at a time.
    packer: Option<Arc<Mutex<Packer>>>,
    /// The connection of each group of frames that is being packed.
    jobs: HashMap<Ticket, Conn>,
    /// The ways to DR, and the connections that only look whether one works: which one.
    paths: Paths,
    looks: HashMap<Conn, Look>,
    tickets: u64,
    /// What packing has saved, bytes.
    saved_bytes: u64,
}

/// A connection that only looks whether a way works. Who accepts it may not be DR yet: that ends it when we do.
struct Look {
    path: usize,
    established_ns: Option<u64>,
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
    /// Of a stream.
    packing: Option<Packing>,
    /// Its way to DR, until it has ended there.
    path: Option<usize>,
    /// When something was heard on it last, once it was established, monotonic.
    heard_ns: Option<u64>,
}

/// How long what a stream leaves of its share is not another's, nanoseconds.
const PACE_EVERY_NS: u64 = 100_000_000;
/// So much memory may be given to a connection before the machine is told how much of it has left.
const TELL_BYTES: u64 = 256 << 10;
/// What the kernel holds of a stream that the network has not taken: more would be a long run that DR's cut waits for.
const UNSENT_BYTES_MAX: u32 = 256 << 10;
/// A connection that is given up and has been silent for so long says that its way is out of order, nanoseconds.
const SILENT_NS: u64 = 2_000_000_000;

impl DrConns {
    /// What is configured for the streams.
    pub fn configure(&mut self, primary: &PrimaryConfig, dr: &DrConfig) {
        (self.limit, self.compress) = (primary.link.clone(), primary.compress);
        self.paths = Paths::new(dr.ways().cloned());
    }

    pub fn connect(&mut self, reactor: &mut Reactor, name: Conn, purpose: Purpose, connector: Option<&Connector>) {
        self.pace_due_ns = 0;
        let path = self.paths.choose(purpose);
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
            packing: (purpose == Purpose::Stream).then(|| Packing::new(self.compress)),
            path: Some(path),
            heard_ns: None,
        };
        self.by_reactor.insert(conn, line);
        reactor.connect_with(conn, self.paths.address(path).expect("there is such a way"), connector);
    }

    /// Looks whether a way works again, and moves a stream to one that has fewer.
    pub fn look_after_paths(&mut self, reactor: &mut Reactor, connector: Option<&Connector>) {
        let now_ns = reactor.now().mono_ns;
        if let Some(path) = self.paths.look(now_ns) {
            let conn = reactor.next_conn();
            self.looks.insert(conn, Look { path, established_ns: None });
            reactor.connect_with(conn, self.paths.address(path).expect("there is such a way"), connector);
        }
        let late = |look: &Look| look.established_ns.is_some_and(|since_ns| now_ns >= since_ns + SILENT_NS);
        let late: Vec<Conn> = self.looks.iter().filter(|(_, look)| late(look)).map(|(conn, _)| *conn).collect();
        for conn in late {
            let look = self.looks.remove(&conn).expect("just seen");
            self.paths.found_dead(look.path, now_ns);
            reactor.abort(conn, "nobody ends it");
        }
        let Some(crowded) = self.paths.crowded(now_ns) else { return };
        let on = |line: &Line| line.purpose == Purpose::Stream && line.path == Some(crowded) && line.heard_ns.is_some();
        if let Some((conn, line)) = self.by_reactor.iter_mut().find(|(_, line)| on(line)) {
            line.path = None;
            self.paths.ended(crowded, Purpose::Stream, End::Ours, now_ns);
            reactor.abort(*conn, "moved to another way to DR");
        }
    }

    /// A connection is established: the machine's name of it.
    pub fn established(&mut self, reactor: &mut Reactor, conn: Conn) -> Option<Conn> {
        if let Some(look) = self.looks.get_mut(&conn) {
            look.established_ns = Some(reactor.now().mono_ns);
            reactor.wait_for_peer(conn, true);
            reactor.close(conn, "it works");
            return None;
        }
        let line = self.by_reactor.get_mut(&conn)?;
        line.heard_ns = Some(reactor.now().mono_ns);
        line.path.into_iter().for_each(|path| self.paths.works(path));
        if line.purpose == Purpose::Stream {
            reactor.keep_unsent_below(conn, UNSENT_BYTES_MAX);
        }
        self.connected(conn)
    }

    /// A connection has ended, or is given up: the way it was on, if that was not known.
    fn left(&mut self, conn: Conn, end: End, now_ns: u64) -> Option<usize> {
        let line = self.by_reactor.get_mut(&conn)?;
        let path = line.path.take()?;
        self.paths.ended(path, line.purpose, end, now_ns);
        Some(path)
    }

    /// A way is dead: what has been silent on it as well does not wait until that is found out once more.
    fn leave(&mut self, reactor: &mut Reactor, path: usize) {
        let now_ns = reactor.now().mono_ns;
        let silent = |line: &Line| line.heard_ns.is_none_or(|heard_ns| now_ns >= heard_ns + SILENT_NS);
        let on = |line: &Line| line.purpose == Purpose::Stream && line.path == Some(path) && silent(line);
        let conns: Vec<Conn> = self.by_reactor.iter().filter(|(_, line)| on(line)).map(|(conn, _)| *conn).collect();
        for conn in conns {
            self.left(conn, End::Ours, now_ns);
            reactor.abort(conn, "its way is out of order");
        }
    }

    /// What the streams may send together at a time of the wall clock, bytes a second.
    pub fn limit_at(&self, wall_ns: u64) -> Option<u64> {
        self.limit.least().and_then(|_| self.limit.at(clock::of_the_week(wall_ns)))
    }

    /// What is known here of the link.
    pub fn describe(&self, link: &mut LinkStatus, wall_ns: u64) {
        let order = self.by_reactor.values().find(|line| line.purpose == Purpose::Order && !line.dropped);
        let order = order.and_then(|line| line.path);
        link.address = self.paths.address(order.unwrap_or(0)).map(ToString::to_string).unwrap_or_default();
        link.paths = self.paths.status();
        link.received_bytes = self.received_bytes;
        link.sent_bytes = self.sent_bytes;
        link.compression_saved_bytes = self.saved_bytes;
        link.limit_bytes_per_second = self.limit_at(wall_ns);
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
        let busy =
            |conn: Conn, line: &Line| !reactor.has_arrived(conn) || line.packing.as_ref().is_some_and(Packing::holds);
        let busy = streams.iter().filter(|(conn, line)| busy(**conn, line)).count().max(1);
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
    pub fn closed(&mut self, reactor: &Reactor, conn: Conn) -> Option<Conn> {
        let now_ns = reactor.now().mono_ns;
        if let Some(Look { path, established_ns }) = self.looks.remove(&conn) {
            match established_ns {
                Some(_) => self.paths.works(path),
                None => self.paths.found_dead(path, now_ns),
            }
        }
        let established = self.by_reactor.get(&conn).is_some_and(|line| line.heard_ns.is_some());
        self.left(conn, if established { End::Closed } else { End::Dead }, now_ns);
        let line = self.by_reactor.remove(&conn)?;
        self.by_machine.remove(&line.name);
        (!line.dropped).then_some(line.name)
    }

    pub fn send(&mut self, reactor: &mut Reactor, name: Conn, message: &Message) {
        let Some(conn) = self.by_machine.get(&name).copied() else { return };
        let Some(line) = self.by_reactor.get_mut(&conn) else { return };
        line.refusing |= matches!(message, Message::Refuse(_));
        if let Message::Payload { data, .. } | Message::Chunk { data, .. } | Message::Patch(Patch { data, .. }) =
            message
        {
            line.handed += Held::memory_of(data.len() as u64);
        }
        line.encoder.push(message, &mut self.out);
        if !std::mem::replace(&mut line.dirty, true) {
            self.dirty.push(conn);
        }
        self.encoded(reactor, conn, false);
    }

    /// What was encoded joins what waits to be packed, or goes to the socket; `ended`: no more follows at once.
    fn encoded(&mut self, reactor: &mut Reactor, conn: Conn, ended: bool) {
        let Some(line) = self.by_reactor.get_mut(&conn) else { return };
        let Some(packing) = &mut line.packing else {
            self.sent_bytes += length(&self.out);
            return self.out.drain(..).for_each(|part| reactor.send(conn, part));
        };
        if packing.push(self.out.drain(..)) || ended {
            self.give(reactor, conn, ended);
        }
    }

    /// Gives the socket what is to go, or the helper thread what is to be packed before.
    fn give(&mut self, reactor: &mut Reactor, conn: Conn, ended: bool) {
        loop {
            let Some(line) = self.by_reactor.get_mut(&conn) else { return };
            let Some(packing) = &mut line.packing else { return };
            match packing.next(ended, reactor.now().mono_ns, || reactor.unsent_bytes(conn)) {
                Next::Wait => return,
                Next::Pass(parts) => self.sent_bytes += pass(reactor, conn, packing, parts),
                Next::Pack(parts) => self.pack(reactor, conn, parts),
            }
        }
    }

    fn pack(&mut self, reactor: &mut Reactor, conn: Conn, frames: Vec<Bytes>) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.jobs.insert(ticket, conn);
        let begun = self.packer().and_then(|packer| {
            let job = move || {
                let packed = packer.lock().unwrap_or_else(PoisonError::into_inner).pack(&frames);
                packed.unwrap_or(frames)
            };
            reactor.work(ticket, Box::new(job))
        });
        if let Err(error) = begun {
            tracing::error!("nothing is compressed any more: {error}");
            self.compress = Compress::Off;
            self.by_reactor.values_mut().filter_map(|line| line.packing.as_mut()).for_each(Packing::stop);
            // What it carried is sent again.
            self.jobs.remove(&ticket);
            reactor.abort(conn, "its frames cannot be compressed");
        }
    }

    fn packer(&mut self) -> io::Result<Arc<Mutex<Packer>>> {
        if self.packer.is_none() {
            self.packer = Some(Arc::new(Mutex::new(Packer::new()?)));
        }
        Ok(Arc::clone(self.packer.as_ref().expect("just made")))
    }

    /// Frames have been packed, or are as they were.
    pub fn packed(&mut self, reactor: &mut Reactor, ticket: Ticket, parts: Vec<Bytes>) {
        let Some(conn) = self.jobs.remove(&ticket) else { return };
        // The connection may have ended.
        let Some(line) = self.by_reactor.get_mut(&conn).filter(|line| !line.dropped) else { return };
        let Some(packing) = &mut line.packing else { return };
        let sent = length(&parts);
        let frames = packing.done(sent, reactor.now().mono_ns, reactor.unsent_bytes(conn));
        self.saved_bytes += frames - sent;
        self.sent_bytes += sent;
        packing.gave(sent, frames, reactor.queued_bytes(conn) as u64);
        parts.into_iter().for_each(|part| reactor.send(conn, part));
        if line.watched {
            reactor.tell_sent(conn);
        }
        self.give(reactor, conn, true);
    }

    /// Sends what the encoders still hold: once a turn.
    pub fn flush(&mut self, reactor: &mut Reactor) {
        for conn in std::mem::take(&mut self.dirty) {
            let Some(line) = self.by_reactor.get_mut(&conn) else { continue };
            line.dirty = false;
            line.encoder.flush(&mut self.out);
            self.encoded(reactor, conn, true);
            let Some(line) = self.by_reactor.get_mut(&conn) else { continue };
            line.watched |= line.handed >= TELL_BYTES;
            if line.watched {
                reactor.tell_sent(conn);
            }
        }
    }

    /// All of what was queued on a connection has been taken, when the machine wants to know: its name, and the bytes
    /// that have been queued since.
    pub fn sent(&mut self, reactor: &mut Reactor, conn: Conn) -> Option<(Conn, u64)> {
        let line = self.by_reactor.get_mut(&conn).filter(|line| line.watched && !line.dropped)?;
        let queued = reactor.queued_bytes(conn) as u64;
        let left = line.packing.as_ref().map_or(queued, |packing| packing.left(queued));
        (line.watched, line.handed) = (left > 0, 0);
        if line.watched {
            reactor.tell_sent(conn);
        }
        Some((line.name, left))
    }

    pub fn close(&mut self, reactor: &mut Reactor, name: Conn, end: End) {
        let Some(conn) = self.by_machine.remove(&name) else { return };
        let path = self.left(conn, end, reactor.now().mono_ns);
        if let Some(path) = path.filter(|_| end == End::Dead) {
            self.leave(reactor, path);
        }
        let Some(line) = self.by_reactor.get_mut(&conn) else { return };
        line.dropped = true;
        if !line.refusing {
            return reactor.abort(conn, "given up");
        }
        line.encoder.flush(&mut self.out);
        self.encoded(reactor, conn, true);
        reactor.close(conn, "refused");
    }

    /// The next whole message of a connection.
    pub fn next(&mut self, reactor: &mut Reactor, conn: Conn) -> Result<Option<(Conn, Message)>, FormatError> {
        let Some(line) = self.by_reactor.get_mut(&conn).filter(|line| !line.dropped) else { return Ok(None) };
        line.heard_ns = Some(clock::mono_ns());
        let rx = reactor.rx(conn);
        let before = rx.len();
        let message = wire::decode(rx)?;
        self.received_bytes += (before - rx.len()) as u64;
        Ok(message.map(|message| (line.name, message)))
    }
}

/// What is not to be packed goes out as it is: so many bytes.
fn pass(reactor: &mut Reactor, conn: Conn, packing: &mut Packing, frames: Vec<Bytes>) -> u64 {
    let bytes = length(&frames);
    packing.gave(bytes, bytes, reactor.queued_bytes(conn) as u64);
    frames.into_iter().for_each(|part| reactor.send(conn, part));
    bytes
}

fn length(parts: &[Bytes]) -> u64 {
    parts.iter().map(|part| part.len() as u64).sum()
}

/// The bytes of a refusal.
pub fn refusal(epoch: Epoch, text: String) -> Vec<Bytes> {
    let mut out = Vec::new();
    wire::encode(&Message::Refuse(Refuse { code: RefuseCode::Fenced, epoch, text }), &mut out);
    out
}
