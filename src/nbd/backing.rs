//! Volumes on NBD servers: connections made, kept and made again, so that a volume is used like a file of the reactor.
//!
//! ```text
//!   role ── disk, extents, … ──► Backings ─┬─ a file or block device: the reactor, at once
//!                                          └─ `FileId` of a remote: Store (pure) ── connection ── server
//! ```
//!
//! Owns the connections: when one is attempted, given up, spoken of in the log and in status. What is sent again on the
//! next one, and in which order, is [`Store`]'s. Results come as the reactor's own events, so that a role asks in one place
//! which of the two a volume is: here.
//!
//! Invariants: a connection is made only after the server has ended the one before it, or the system says that it is
//! lost: also where it is we who end it, the server's side is waited for, however long that takes, for until then it may
//! carry out what it was asked there, and nothing of that may come after what is asked on the next one (I1). A server
//! that is out of reach is a pause for whoever waits, never an error; nothing is attempted more often than
//! [`PAUSE_FIRST_NS`] apart, and less and less often.

use std::fmt;

use crate::core::address::NbdUri;
use crate::core::allocation::Stretch;
use crate::core::ids::{Conn, Ticket};
use crate::core::machine::{DiskKind, IoFail, Now};
use crate::core::sparing::Sparing;
use crate::io::tls::{self, Connector};
use crate::io::{Event, FileId, Preallocate, Range, Reactor, ReactorOptions};
use crate::limits::{BACKING_KEPT_BYTES_MIN, BACKING_STATUS_BYTES, HANDSHAKE_NS};
use crate::nbd::client::ExportInfo;
use crate::nbd::protocol::{SEND_FUA, SEND_WRITE_ZEROES};
use crate::nbd::store::{Heard, Said, Store};

/// Files of the reactor have numbers far below.
const REMOTE: usize = 1 << 31;
/// Rest before the next attempt to connect, nanoseconds: doubled each time, up to the last.
const PAUSE_FIRST_NS: u64 = 100_000_000;
const PAUSE_LAST_NS: u64 = 3_000_000_000;
/// A connection that was good for so long has earned the shortest pause again.
const GOOD_NS: u64 = 5_000_000_000;
/// How long a server may owe an answer, or the end of a connection, before that is spoken of.
const SILENCE_NS: u64 = 10_000_000_000;
const SILENT: &str = "does not answer";
/// How long a start waits for a server.
const OPEN_NS: u64 = 30_000_000_000;
/// The same where it is not needed at once, nanoseconds.
const OPEN_OR_WAIT_NS: u64 = 2_000_000_000;
/// How long a server may be away, out of reach or silent, before a stop does not wait for it any longer, nanoseconds.
const STOP_AWAY_NS: u64 = 10_000_000_000;
/// How long it may be before whoever waits to stop or to be promoted is told, nanoseconds.
const TOLD_NS: u64 = 1_000_000_000;
/// How soon a connection is given up to see whether the export has grown, nanoseconds.
const LOOK_AGAIN_NS: u64 = 1_000_000_000;
/// Pause between two lines about attempts that fail.
const LINES_PAUSE_NS: u64 = 30_000_000_000;

/// A volume that is to be opened.
#[derive(Debug)]
pub struct Opening<'a> {
    pub volume: &'a str,
    /// Bytes.
    pub size: u64,
    pub uri: &'a NbdUri,
    /// What the connection is made secure with, if it is.
    pub connector: Option<Connector>,
}

/// Why a volume could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The server answers, and what it has cannot be the volume.
    #[error("{0}")]
    Unfit(String),
    #[error("{0}")]
    Unreachable(String),
    /// Its certificate or key is not believed, or it does not believe ours.
    #[error("{0}")]
    Distrusted(String),
    #[error("told to stop while a backing store was waited for")]
    Stopped,
}

/// A stop does without a server, or ends at once: what is open is as after a kill.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    #[error("stopping without {0}; the restart recovers what is open")]
    Away(String),
    #[error("told to stop a second time: ending at once; the restart recovers what is open")]
    Twice,
}

/// Why a store is too small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Short {
    /// Bytes that there are, as far as is known.
    pub has: u64,
    pub text: String,
    /// Its server is being connected to again: soon it may tell another size.
    pub asked: bool,
}

/// The volumes of a group that stand on NBD servers.
#[derive(Debug)]
pub struct Backings {
    /// Most bytes of changes that no flush covers, of all together.
    kept_bytes_max: u64,
    remotes: Vec<Remote>,
    events: Vec<Event>,
    closing: bool,
    /// A role is stopping, and it has been said what for.
    stopping: bool,
    stop_told: bool,
}

#[derive(Debug)]
struct Remote {
    volume: String,
    store: Store,
    uri: NbdUri,
    connector: Option<Connector>,
    /// The connection, and since when it is being made.
    conn: Option<Conn>,
    since_ns: u64,
    /// It is being closed: nothing more is read from it.
    closing: bool,
    /// Since when the server is to end a connection that it was asked something on and that we have ended.
    left_ns: Option<u64>,
    /// When the next one may be made.
    retry_ns: u64,
    pause_ns: u64,
    /// Since when operations wait for a connection, and why.
    lost: Option<Now>,
    why: String,
    /// What the server answered last that another attempt will not change, until it is fit.
    unfit: Option<String>,
    /// The last attempt failed for a certificate or a shared key.
    distrusted: bool,
    /// It has said something, of no use, since it was connected to last.
    answered: bool,
    /// Bytes that the server said there are, when it was last connected to.
    told: Option<u64>,
    lines: Sparing,
    silence_told: bool,
}

impl Backings {
    /// None yet. `kept_bytes_max`: what all together may keep of changes that no flush covers, bytes.
    #[must_use]
    pub fn new(kept_bytes_max: u64) -> Backings {
        Backings {
            kept_bytes_max,
            remotes: Vec::new(),
            events: Vec::new(),
            closing: false,
            stopping: false,
            stop_told: false,
        }
    }

    /// Whether a file is a volume on a server, of anybody.
    #[must_use]
    pub fn owns(file: FileId) -> bool {
        file.0 >= REMOTE
    }

    /// Which volume on a server a file is, if it is one.
    fn index(&self, file: FileId) -> Option<usize> {
        file.0.checked_sub(REMOTE)
    }

    /// Whether there is any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remotes.is_empty()
    }

    /// Connects, and waits for the server; start-up only. `volumes`: how many of the group stand on servers. One that is
    /// open already (a DR that was promoted) is the same.
    ///
    /// # Errors
    /// The server is out of reach, or not fit.
    pub fn open(&mut self, reactor: &mut Reactor, volumes: usize, opening: Opening<'_>) -> Result<FileId, OpenError> {
        if let Some(index) = self.remotes.iter().position(|remote| remote.uri.is_same_export(opening.uri)) {
            return Ok(FileId(REMOTE + index));
        }
        let index = self.add(reactor.now(), volumes, opening);
        self.await_server(reactor, index, OPEN_NS)?;
        Ok(FileId(REMOTE + index))
    }

    /// As [`Backings::open`], by who has something to do that needs no volume: a server that is out of reach is waited for
    /// shortly, and what is asked of the volume then waits for it.
    ///
    /// # Errors
    /// The server is not fit.
    pub fn open_or_wait(
        &mut self,
        reactor: &mut Reactor,
        volumes: usize,
        opening: Opening<'_>,
    ) -> Result<FileId, OpenError> {
        let index = self.add(reactor.now(), volumes, opening);
        match self.await_server(reactor, index, OPEN_OR_WAIT_NS) {
            Err(OpenError::Unreachable(text) | OpenError::Distrusted(text)) => {
                tracing::warn!("{text}; going on, what is asked of it waits")
            }
            done => done?,
        }
        Ok(FileId(REMOTE + index))
    }

    /// Takes a volume on; its connection is made by the next `tick`.
    fn add(&mut self, now: Now, volumes: usize, opening: Opening<'_>) -> usize {
        let kept = (self.kept_bytes_max / volumes.max(1) as u64).max(BACKING_KEPT_BYTES_MIN);
        let index = self.remotes.len();
        self.remotes.push(Remote {
            volume: opening.volume.to_owned(),
            store: Store::new(opening.uri.to_string(), opening.size, kept),
            uri: opening.uri.clone(),
            connector: opening.connector,
            conn: None,
            since_ns: 0,
            closing: false,
            left_ns: None,
            retry_ns: now.mono_ns,
            pause_ns: PAUSE_FIRST_NS,
            lost: Some(now),
            why: "not connected yet".into(),
            unfit: None,
            distrusted: false,
            answered: false,
            told: None,
            lines: Sparing::new(LINES_PAUSE_NS),
            silence_told: false,
        });
        index
    }

    fn await_server(&mut self, reactor: &mut Reactor, index: usize, within_ns: u64) -> Result<(), OpenError> {
        let until_ns = reactor.now().mono_ns + within_ns;
        let mut events = Vec::new();
        loop {
            self.tick(reactor);
            let remote = &self.remotes[index];
            let failed = format!("{}: {}", remote.place(), remote.why);
            if remote.lost.is_none() {
                return Ok(());
            } else if remote.unfit.is_some() {
                return Err(OpenError::Unfit(failed));
            } else if remote.distrusted {
                return Err(OpenError::Distrusted(failed));
            } else if reactor.now().mono_ns >= until_ns {
                let ask = if remote.answered { "" } else { " Is the server running?" };
                let seconds = within_ns / 1_000_000_000;
                return Err(OpenError::Unreachable(format!("{failed}.{ask} It was waited for {seconds} seconds")));
            }
            let due = self.deadline_ns().unwrap_or(until_ns).min(until_ns);
            if let Err(error) = reactor.turn(Some(due), &mut events) {
                return Err(OpenError::Unreachable(format!("the ring failed: {error}")));
            }
            for event in events.drain(..) {
                if let Event::Stop = event {
                    return Err(OpenError::Stopped);
                }
                self.on_event(reactor, &event);
            }
        }
    }

    // ---- what a role asks of a volume --------------------------------------------------------

    /// As [`Reactor::disk`].
    pub fn disk(&mut self, reactor: &mut Reactor, file: FileId, ticket: Ticket, kind: DiskKind) {
        let Some(index) = self.index(file) else { return reactor.disk(file, ticket, kind) };
        let now_ns = reactor.now().mono_ns;
        self.remotes[index].store.begin(now_ns, ticket, kind);
        self.said(reactor, index);
    }

    /// As [`Reactor::extents`].
    pub fn extents(&mut self, reactor: &mut Reactor, file: FileId, ticket: Ticket, range: Range) {
        let Some(index) = self.index(file) else { return reactor.extents(file, ticket, range) };
        let Range { offset, length, most } = range;
        let store = &mut self.remotes[index].store;
        if store.is_ready() && !store.knows_holes() {
            let stretches = vec![Stretch { length, hole: false }];
            return self.events.push(Event::Extents { ticket, result: Ok(stretches) });
        }
        store.extents(reactor.now().mono_ns, ticket, offset, length, most);
        self.said(reactor, index);
    }

    /// How much of a file is to be looked at together: of what a server tells no more than fits an answer.
    #[must_use]
    pub fn extents_bytes_max(&self, file: FileId) -> u64 {
        let Some(index) = self.index(file) else { return u64::MAX };
        let store = &self.remotes[index].store;
        if store.is_ready() && !store.knows_holes() { u64::MAX } else { BACKING_STATUS_BYTES }
    }

    /// As [`Reactor::read_ahead`]; a server is left alone with it.
    pub fn read_ahead(&mut self, reactor: &mut Reactor, file: FileId, ticket: Ticket, offset: u64, length: u64) {
        match self.index(file) {
            None => reactor.read_ahead(file, ticket, offset, length),
            Some(_) => self.events.push(Event::Disk { file, ticket, result: Ok(bytes::Bytes::new()) }),
        }
    }

    /// As [`Reactor::zeroes_fast`]; of a server nobody knows.
    #[must_use]
    pub fn zeroes_fast(&self, reactor: &Reactor, file: FileId, offset: u64, length: u64, unmap: bool) -> bool {
        self.index(file).is_none() && reactor.zeroes_fast(file, offset, length, unmap)
    }

    /// Has the store of a volume of so many bytes grow, or finds that it has: a file is grown, of a device and of an export
    /// the size is looked at again. How many bytes it has now.
    ///
    /// # Errors
    /// What is too small, where it is and what to do; of an export it may be that it only has to be asked again.
    pub fn enlarge(&mut self, reactor: &mut Reactor, file: FileId, size: u64) -> Result<u64, Short> {
        let Some(index) = self.index(file) else {
            let path = reactor.file_path(file).display().to_string();
            return match reactor.enlarge(file, size, Preallocate::Sparse) {
                Ok(has) if has >= size => Ok(has),
                Ok(has) => Err(Short {
                    has,
                    text: format!(
                        "{path} has {has} bytes, {size} are needed: grow it by its own means (lvextend, …) first"
                    ),
                    asked: false,
                }),
                Err(fail) => Err(Short { has: reactor.file_size(file), text: fail.to_string(), asked: false }),
            };
        };
        let now = reactor.now();
        let remote = &mut self.remotes[index];
        if remote.store.enlarge(size) {
            return Ok(size);
        }
        // While it is connected to again, what it said before holds.
        let has = remote.store.info().map(|info| info.size).or(remote.told);
        let known = has.map_or_else(|| "an unknown number of".to_owned(), |has| has.to_string());
        let text = if remote.lost.is_some() && !remote.why.starts_with(LOOKED_AT) {
            format!(
                "{} is out of reach ({}), and had {known} bytes before; {size} are needed: start its server again, with as many",
                remote.uri, remote.why
            )
        } else {
            format!("{} has {known} bytes, {size} are needed: grow what the server exports first", remote.uri)
        };
        // A server tells its size when it is connected to, and at no other time.
        let idle = remote.lost.is_none() && now.mono_ns >= remote.since_ns.saturating_add(LOOK_AGAIN_NS);
        if let Some(conn) = remote.conn.filter(|_| idle && !remote.closing) {
            let why = format!("{LOOKED_AT}, for {size} bytes are needed");
            reactor.close(conn, &why);
            remote.leave(now, why, false);
        }
        Err(Short { has: has.unwrap_or(0), text, asked: true })
    }

    /// Whether everything that was answered on the servers is still there.
    ///
    /// # Errors
    /// A server has refused what it must not: the role ends, and begins again from what is durable.
    pub fn sound(&self) -> Result<(), IoFail> {
        let broken = |remote: &Remote| {
            let text = format!("volume {}: {}. Mend the server and start again", remote.volume, remote.store.broken()?);
            Some(IoFail::Other(text))
        };
        self.remotes.iter().find_map(broken).map_or(Ok(()), Err)
    }

    // ---- what happens ------------------------------------------------------------------------

    /// What has completed.
    pub fn completed(&mut self, events: &mut Vec<Event>) {
        events.append(&mut self.events);
    }

    /// Takes an event of the reactor; false when it is about somebody else.
    pub fn on_event(&mut self, reactor: &mut Reactor, event: &Event) -> bool {
        let (Event::Connected { conn }
        | Event::Sent { conn }
        | Event::Secured { conn }
        | Event::Received { conn }
        | Event::Closed { conn, .. }) = event
        else {
            return false;
        };
        let Some(index) = self.remotes.iter().position(|remote| remote.conn == Some(*conn)) else { return false };
        match event {
            Event::Secured { .. } => {
                let now_ns = reactor.now().mono_ns;
                self.remotes[index].store.secured(now_ns);
                self.said(reactor, index);
            }
            Event::Received { .. } => self.received(reactor, index, *conn),
            Event::Closed { reason, .. } => {
                // What arrived with the end are answers as well.
                self.received(reactor, index, *conn);
                self.ended(reactor, index, reason);
            }
            _ => {}
        }
        true
    }

    fn received(&mut self, reactor: &mut Reactor, index: usize, conn: Conn) {
        let remote = &mut self.remotes[index];
        if remote.closing {
            return;
        }
        let now = reactor.now();
        let heard = remote.store.received(now.mono_ns, reactor.rx(conn));
        remote.silence_told = false;
        let useless = match heard {
            Heard::Nothing => None,
            Heard::Secure => match &remote.connector {
                Some(connector) => {
                    reactor.secure_client(conn, connector);
                    None
                }
                None => Some(("grants TLS that nobody asked for".to_owned(), false)),
            },
            Heard::Ready => {
                remote.ready(now);
                // It will be asked something: from now on it is the server that ends the connection.
                reactor.wait_for_peer(conn, true);
                None
            }
            Heard::Useless { text, for_good } => Some((text, for_good)),
        };
        self.said(reactor, index);
        if let Some((text, for_good)) = useless {
            reactor.close(conn, &text);
            self.remotes[index].answered = true;
            self.remotes[index].leave(now, text, for_good);
        }
    }

    fn ended(&mut self, reactor: &mut Reactor, index: usize, reason: &str) {
        let now = reactor.now();
        let remote = &mut self.remotes[index];
        if !remote.closing {
            let stage = remote.store.stage().map(|stage| format!(" {stage}")).unwrap_or_default();
            remote.distrusted = tls::is_of_certificates(reason);
            remote.interrupted(now, format!("the connection ended{stage}: {reason}"), false);
        }
        remote.store.lost();
        (remote.conn, remote.closing, remote.left_ns) = (None, false, None);
        remote.retry_ns = now.mono_ns + remote.pause_ns;
    }

    /// Gives the reactor what a store has to say to its server, and the role what it has to say to that.
    fn said(&mut self, reactor: &mut Reactor, index: usize) {
        let remote = &mut self.remotes[index];
        if let (Some(conn), Some(out)) = (remote.conn, remote.store.out()) {
            out.drain().for_each(|part| reactor.send(conn, part));
        }
        let file = FileId(REMOTE + index);
        for said in remote.store.said() {
            match said {
                Said::Done { ticket, result } => self.events.push(Event::Disk { file, ticket, result }),
                Said::Extents { ticket, stretches } => {
                    self.events.push(Event::Extents { ticket, result: Ok(stretches) });
                }
            }
        }
    }

    /// Makes connections that are due, and ends those that do not come about.
    pub fn tick(&mut self, reactor: &mut Reactor) {
        for remote in &mut self.remotes {
            let now = reactor.now();
            match remote.conn {
                None if remote.may_connect(self.closing) && now.mono_ns >= remote.retry_ns => {
                    remote.connect(reactor, now);
                }
                Some(conn) if remote.is_shaking_hands() && now.mono_ns >= remote.since_ns + HANDSHAKE_NS => {
                    reactor.abort(conn, "no end of the handshake within 10 seconds");
                    remote.since_ns = now.mono_ns;
                }
                _ => {}
            }
            if !remote.silence_told && remote.overdue_at_ns().is_some_and(|at| now.mono_ns >= at) {
                remote.silence_told = true;
                let (place, seconds) = (remote.place(), SILENCE_NS / 1_000_000_000);
                if remote.left_ns.is_some() {
                    tracing::warn!(
                        "{place}: the old connection has not been ended by the server for {seconds} seconds; waiting, \
                         for what it was asked there may still be carried out. Where it hangs, start it again"
                    );
                } else {
                    tracing::warn!("{place}: no answer for {seconds} seconds; waiting, for the connection stands");
                }
            }
        }
    }

    /// When `tick` wants to be called, monotonic nanoseconds.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        if !self.events.is_empty() {
            return Some(0);
        }
        let due = |remote: &Remote| match remote.conn {
            None => remote.may_connect(self.closing).then_some(remote.retry_ns),
            Some(_) if remote.is_shaking_hands() => Some(remote.since_ns + HANDSHAKE_NS),
            Some(_) => remote.overdue_at_ns().filter(|_| !remote.silence_told),
        };
        let stop = self.remotes.iter().filter(|_| self.stopping).filter_map(Remote::away_since_ns);
        let stop = stop.map(|since_ns| since_ns + if self.stop_told { STOP_AWAY_NS } else { TOLD_NS });
        self.remotes.iter().filter_map(due).chain(stop).min()
    }

    /// What is less than it should be, in words, and since when (wall clock).
    #[must_use]
    pub fn degraded(&self, now: Now) -> Vec<(String, u64)> {
        let one = |remote: &Remote| {
            let (place, waiting) = (remote.place(), remote.store.waiting());
            if let Some(lost) = remote.lost {
                let until = remote.left_ns.map_or("", |_| LEFT);
                let text = format!("{place} is out of reach ({}): {waiting} requests wait{until}", remote.why);
                return Some((text, lost.wall_ns));
            }
            let silent_ns = now.mono_ns.saturating_sub(remote.store.silent_since_ns()?);
            let text = format!("{place} {SILENT}: {waiting} requests wait");
            (silent_ns >= SILENCE_NS).then(|| (text, now.wall_ns.saturating_sub(silent_ns)))
        };
        self.remotes.iter().filter_map(one).collect()
    }

    /// The server that something has waited for longest, in words, and for how long, nanoseconds.
    fn away(&self, now: Now) -> Option<(String, u64)> {
        let away = self.remotes.iter().filter_map(|remote| Some((remote.away_since_ns()?, remote)));
        let (since_ns, remote) = away.min_by_key(|(since_ns, _)| *since_ns)?;
        let how = if remote.lost.is_some() { format!("is out of reach ({})", remote.why) } else { SILENT.into() };
        let place = remote.place();
        Some((format!("the server of {place}, which {how}"), now.mono_ns.saturating_sub(since_ns)))
    }

    /// A server that is away and that something waits for, in words.
    #[must_use]
    pub fn waits_for(&self, now: Now) -> Option<String> {
        let (server, ns) = self.away(now)?;
        (ns >= TOLD_NS).then_some(server)
    }

    /// To be called while a role stops: it waits for its last writes and syncs, but not for ever for a server that is
    /// away. For whoever starts again that is as after a kill.
    ///
    /// # Errors
    /// A server for which something waits has been away for long enough.
    pub fn stop_waits(&mut self, now: Now) -> Result<(), StopError> {
        self.stopping = true;
        let Some((server, ns)) = self.away(now) else { return Ok(()) };
        if ns >= STOP_AWAY_NS {
            return Err(StopError::Away(server));
        }
        if ns >= TOLD_NS && !std::mem::replace(&mut self.stop_told, true) {
            let seconds = (STOP_AWAY_NS - ns).div_ceil(1_000_000_000);
            tracing::warn!(
                "stopping waits for {server}; it ends without it in {seconds} seconds, or at once when it \
                 is told to stop a second time"
            );
        }
        Ok(())
    }

    /// Says goodbye to the servers.
    pub fn close(&mut self, reactor: &mut Reactor) {
        self.closing = true;
        for index in 0..self.remotes.len() {
            self.remotes[index].store.disconnect();
            self.said(reactor, index);
            let remote = &mut self.remotes[index];
            remote.closing = true;
            if let Some(conn) = remote.conn {
                reactor.wait_for_peer(conn, false);
                reactor.close(conn, "the volume is let go");
            }
        }
    }

    /// Whether no connection is left.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.remotes.iter().all(|remote| remote.conn.is_none())
    }
}

/// Why a connection was ended that nothing is wrong with.
const LOOKED_AT: &str = "its size is looked at again";
/// What requests wait for where we have ended a connection.
const LEFT: &str = " until the server has ended the old connection, on which it may still carry out what it was asked; \
                    where it hangs, start it again";

impl Remote {
    fn place(&self) -> String {
        format!("volume {}: {}", self.volume, self.uri)
    }

    fn may_connect(&self, closing: bool) -> bool {
        !closing && self.store.broken().is_none()
    }

    fn is_shaking_hands(&self) -> bool {
        self.lost.is_some() && !self.closing
    }

    fn connect(&mut self, reactor: &mut Reactor, now: Now) {
        let conn = reactor.next_conn();
        (self.conn, self.since_ns, self.answered) = (Some(conn), now.mono_ns, false);
        self.store.connect(now.mono_ns, &self.uri.export, self.connector.is_some());
        reactor.connect(conn, &self.uri.address);
    }

    fn ready(&mut self, now: Now) {
        let (place, waiting) = (self.place(), self.store.waiting());
        let seconds = self.lost.take().map_or(0, |lost| now.mono_ns.saturating_sub(lost.mono_ns)) / 1_000_000;
        let offers = self.store.info().map(|info| Offers(info, self.store.knows_holes()).to_string());
        let offers = offers.unwrap_or_default();
        tracing::info!("{place}: connected after {seconds} ms, {offers}; {waiting} requests have waited");
        (self.since_ns, self.unfit, self.silence_told) = (now.mono_ns, None, false);
        (self.told, self.distrusted) = (self.store.info().map(|info| info.size), false);
    }

    /// The connection is of no use, and is being ended. What it still brings is not looked at.
    fn leave(&mut self, now: Now, why: String, for_good: bool) {
        self.closing = true;
        if self.store.broken().is_some() {
            // The role ends.
            return;
        }
        self.left_ns = self.lost.is_none().then_some(now.mono_ns);
        self.silence_told = false;
        self.store.lost();
        self.interrupted(now, why, for_good);
    }

    /// Operations wait, for a reason: the first time it is told, and whenever it is a new one that asks for somebody.
    fn interrupted(&mut self, now: Now, why: String, for_good: bool) {
        let was_good = self.lost.is_none();
        let long = was_good && now.mono_ns.saturating_sub(self.since_ns) >= GOOD_NS;
        self.pause_ns = if long { PAUSE_FIRST_NS } else { (2 * self.pause_ns).min(PAUSE_LAST_NS) };
        self.lost.get_or_insert(now);
        let asks_anew = for_good && self.unfit.as_ref() != Some(&why);
        if was_good || asks_anew {
            self.lines = Sparing::new(LINES_PAUSE_NS);
        }
        if let Some(more) = self.lines.due(now.mono_ns) {
            let (place, waiting, more) = (self.place(), self.store.waiting(), Sparing::and_more(more));
            tracing::warn!("{place}: {why}; trying again, {waiting} requests wait for it{more}");
        }
        if for_good {
            self.unfit = Some(why.clone());
        }
        self.why = why;
    }

    /// Since when something has waited for a server that is out of reach, or may be silent.
    fn away_since_ns(&self) -> Option<u64> {
        let since_ns = self.lost.map_or_else(|| self.store.silent_since_ns(), |lost| Some(lost.mono_ns));
        since_ns.filter(|_| self.store.waiting() > 0)
    }

    /// When a server has owed an answer, or the end of a connection, for too long.
    fn overdue_at_ns(&self) -> Option<u64> {
        let silent = || self.store.silent_since_ns().filter(|_| self.lost.is_none());
        self.left_ns.or_else(silent).map(|since| since + SILENCE_NS)
    }
}

/// What a server offers, in words: what is missing is made by other means.
pub struct Offers(pub ExportInfo, pub bool);

impl fmt::Display for Offers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Offers(info, holes) = self;
        write!(f, "{} bytes", info.size)?;
        let without = [
            (info.flags & SEND_FUA != 0, "FUA (a flush does it)"),
            (info.flags & SEND_WRITE_ZEROES != 0, "WRITE_ZEROES (zeroes are written)"),
            (*holes, "base:allocation (everything counts as allocated)"),
        ];
        let missing: Vec<&str> = without.iter().filter(|(has, _)| !has).map(|(_, what)| *what).collect();
        if missing.is_empty() { Ok(()) } else { write!(f, ", without {}", missing.join(", ")) }
    }
}

/// Connects to a server, asks what it has, and leaves: for `farshore check`.
///
/// # Errors
/// As [`Backings::open`].
pub fn probe(opening: Opening<'_>, within_ns: u64) -> Result<Offers, OpenError> {
    let options = ReactorOptions { arena_bytes: 8 << 20, ..ReactorOptions::default() };
    let mut reactor = Reactor::new(options).map_err(|error| OpenError::Unreachable(error.to_string()))?;
    let mut backings = Backings::new(BACKING_KEPT_BYTES_MIN);
    let index = backings.add(reactor.now(), 1, opening);
    backings.await_server(&mut reactor, index, within_ns)?;
    let store = &backings.remotes[index].store;
    let info = store.info().expect("a server that is ready has said what it has");
    let offers = Offers(info, store.knows_holes());
    backings.close(&mut reactor);
    let (until_ns, mut events) = (reactor.now().mono_ns + GOODBYE_NS, Vec::new());
    while !backings.is_closed() && reactor.now().mono_ns < until_ns && reactor.turn(Some(until_ns), &mut events).is_ok()
    {
        for event in events.drain(..) {
            backings.on_event(&mut reactor, &event);
        }
    }
    Ok(offers)
}

/// How long a goodbye may take, nanoseconds.
const GOODBYE_NS: u64 = 1_000_000_000;
