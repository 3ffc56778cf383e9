//! The status table wherever it stands: our own auxiliary (which fences), any NBD server, or a file on shared
//! storage. The primary and DR carry out their `Aux…` effects with it.
//!
//! One `Region` is one opening: after `Failed` or `Closed` it is of no more use, and a new one is made.
//!
//! ```text
//!   open ──► Opened ──► Done, Done, … ──► Closed
//!      └───► Failed
//! ```
//!
//! Owns the connection or the files, the cutting of long operations into what a server takes, and FUA for
//! servers that only know FLUSH. Does not own retries, nor what the bytes mean.
//!
//! Invariants: every operation is answered by one `Done`, also when the connection ends (with the reason, just
//! before `Closed`); one that is begun after the end, by who has not yet heard of it, is not. A durable write is
//! `Done` when the server says it is durable, never before.

use std::fmt;
use std::path::PathBuf;

use bytes::Bytes;

use crate::core::address::{Address, NbdUri};
use crate::core::fence::{TableExport, Writer};
use crate::core::ids::{Conn, Epoch, Owner, Ticket};
use crate::core::machine::{DiskKind, DiskResult, IoFail};
use crate::core::peer::{Paths, PeerName, Role};
use crate::io;
use crate::io::tls::{Connector, Server, TlsError, Versions};
use crate::io::{Direct, FileId, OpenOptions, Preallocate, Reactor, ReactorOptions};
use crate::limits::LINK_SILENCE_NS;
use crate::nbd::client::Event;
use crate::nbd::protocol::REP_ERR_POLICY;
use crate::nbd::remote::Remote;

/// Where the status table stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableTarget {
    /// `farshore aux`.
    Own { address: Address, group: String },
    /// Any NBD server.
    Nbd(NbdUri),
    /// A file or block device that both hosts see. `create`: make it with this many bytes when it is missing.
    File { path: PathBuf, create: Option<u64> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegionEvent {
    /// `fencing`: the server itself cuts writers of older epochs off.
    Opened {
        size: u64,
        fencing: bool,
    },
    /// `fenced`: a newer epoch, or another owner of this one, is in force there.
    Failed {
        text: String,
        fenced: bool,
    },
    Done {
        ticket: Ticket,
        result: DiskResult,
    },
    /// It was open and is not any more.
    Closed {
        reason: String,
    },
}

/// One opening of the region.
#[derive(Debug)]
pub struct Region {
    place: String,
    /// Only to read: the view, or a promotion that is planned.
    view: bool,
    connector: Option<Connector>,
    state: State,
}

#[derive(Debug)]
enum State {
    Remote(Box<Remote>),
    Files {
        reader: FileId,
        writer: Option<FileId>,
        opened: bool,
    },
    /// The files could not be opened; the words are still to be said.
    Broken {
        text: Option<String>,
    },
    Ended,
}

impl Region {
    /// Begins to open. `epoch` 0 is the read-only view; another one, with its owner, takes the region for
    /// writing (and fences older ones, where the server can).
    ///
    /// `connector`: what the connection is made secure with, by STARTTLS; without one it stays plain.
    pub fn open(
        reactor: &mut Reactor,
        target: &TableTarget,
        connector: Option<&Connector>,
        epoch: Epoch,
        owner: Owner,
    ) -> Region {
        let view = epoch == Epoch(0);
        let (address, export, fencing) = match target {
            TableTarget::Own { address, group } => {
                let writer = (!view).then_some(Writer { epoch, owner });
                (address, TableExport { group: group.clone(), writer }.to_string(), true)
            }
            TableTarget::Nbd(uri) => (&uri.address, uri.export.clone(), false),
            TableTarget::File { path, create } => {
                let state = match open_files(reactor, path, create.filter(|_| !view), view) {
                    Ok((reader, writer)) => State::Files { reader, writer, opened: false },
                    Err(fail) => State::Broken { text: Some(fail.to_string()) },
                };
                return Region { place: target.to_string(), view, connector: None, state };
            }
        };
        let conn = reactor.next_conn();
        reactor.connect(conn, address);
        let remote = Remote::new(conn, &export, fencing, connector.is_some(), reactor.now().mono_ns);
        let connector = connector.cloned();
        Region { place: target.to_string(), view, connector, state: State::Remote(Box::new(remote)) }
    }

    /// Opens the view of a region, asks for its size in bytes, and leaves: for `farshore check`.
    ///
    /// # Errors
    /// Why it cannot be opened, in words.
    pub fn size_of(target: &TableTarget, connector: Option<&Connector>, within_ns: u64) -> Result<u64, String> {
        let options = ReactorOptions { arena_bytes: 1 << 20, ..ReactorOptions::default() };
        let mut reactor = Reactor::new(options).map_err(|error| error.to_string())?;
        let mut region = Region::open(&mut reactor, target, connector, Epoch(0), Owner(0));
        let until_ns = reactor.now().mono_ns + within_ns;
        let (mut happened, mut said) = (Vec::new(), Vec::new());
        let size = loop {
            region.tick(&mut reactor, &mut said);
            match said.pop() {
                Some(RegionEvent::Opened { size, .. }) => break Ok(size),
                Some(RegionEvent::Failed { text, .. } | RegionEvent::Closed { reason: text }) => break Err(text),
                Some(RegionEvent::Done { .. }) | None => {}
            }
            if reactor.now().mono_ns >= until_ns {
                break Err(format!("{target} does not answer"));
            }
            let due_ns = region.deadline_ns().map_or(until_ns, |due_ns| due_ns.min(until_ns));
            reactor.turn(Some(due_ns), &mut happened).map_err(|error| error.to_string())?;
            for event in happened.drain(..) {
                region.on_event(&mut reactor, &event, &mut said);
            }
        };
        region.close(&mut reactor);
        size
    }

    /// What the connection to a target is made secure with, if anything. `certificates`: those of this host, `own` its
    /// name.
    ///
    /// # Errors
    /// What keeps certificates from being used.
    pub fn connector(
        target: &TableTarget,
        certificates: Option<&Paths>,
        own: &PeerName,
    ) -> Result<Option<Connector>, TlsError> {
        match (target, certificates) {
            (TableTarget::Own { group, .. }, Some(paths)) => {
                let aux = Server::Named(PeerName::new(group, Role::Aux));
                Connector::new(paths, Some(own), aux, Versions::Newest).map(Some)
            }
            (TableTarget::Nbd(uri), certificates) => uri_connector(uri, certificates),
            (TableTarget::Own { .. } | TableTarget::File { .. }, _) => Ok(None),
        }
    }

    /// Whether this connection is its own.
    #[must_use]
    pub fn owns(&self, conn: Conn) -> bool {
        matches!(&self.state, State::Remote(remote) if remote.conn == conn)
    }

    /// Whether what is written here goes out last in a turn, after disk operations.
    pub fn bulk(&self, reactor: &mut Reactor, bulk: bool) {
        if let State::Remote(remote) = &self.state {
            reactor.bulk(remote.conn, bulk);
        }
    }

    /// Reads `length` bytes from `offset`.
    pub fn read(&mut self, reactor: &mut Reactor, ticket: Ticket, offset: u64, length: u64) {
        match &mut self.state {
            State::Remote(remote) if remote.info.is_some() => {
                remote.read(reactor.now().mono_ns, ticket, offset, length);
                send(remote, reactor);
            }
            State::Files { reader, .. } => reactor.disk(*reader, ticket, DiskKind::Read { offset, length }),
            State::Ended | State::Broken { .. } => {}
            _ => panic!("the region is used once it is Opened"),
        }
    }

    /// Writes the parts one after another from `offset`; with `fua` durably.
    pub fn write(&mut self, reactor: &mut Reactor, ticket: Ticket, offset: u64, parts: Vec<Bytes>, fua: bool) {
        match &mut self.state {
            State::Remote(remote) if remote.info.is_some() => {
                remote.write(reactor.now().mono_ns, ticket, offset, parts, fua);
                send(remote, reactor);
            }
            State::Files { writer: Some(writer), .. } => {
                reactor.disk(*writer, ticket, DiskKind::Write { offset, parts, durable: fua });
            }
            State::Ended | State::Broken { .. } => {}
            _ => panic!("the region is written once it is Opened, and not through its view"),
        }
    }

    /// Makes every write that is `Done` durable.
    pub fn flush(&mut self, reactor: &mut Reactor, ticket: Ticket) {
        match &mut self.state {
            State::Remote(remote) if remote.info.is_some() => {
                remote.flush(reactor.now().mono_ns, ticket);
                send(remote, reactor);
            }
            State::Files { writer: Some(writer), .. } => reactor.disk(*writer, ticket, DiskKind::Sync),
            State::Ended | State::Broken { .. } => {}
            _ => panic!("the region is flushed once it is Opened, and not through its view"),
        }
    }

    /// Lets go of the region. No more events come; operations in flight stay unanswered.
    pub fn close(mut self, reactor: &mut Reactor) {
        match &mut self.state {
            State::Remote(remote) => {
                remote.session.disconnect(&mut remote.out);
                send(remote, reactor);
                reactor.close(remote.conn, "the status table is let go");
            }
            State::Files { reader, writer, .. } => close_files(reactor, *reader, *writer),
            State::Broken { .. } | State::Ended => {}
        }
    }

    /// Takes an event of the reactor; false when it is about somebody else.
    pub fn on_event(&mut self, reactor: &mut Reactor, event: &io::Event, out: &mut Vec<RegionEvent>) -> bool {
        match (event, &mut self.state) {
            (io::Event::Connected { conn } | io::Event::Sent { conn }, State::Remote(remote)) => remote.conn == *conn,
            (io::Event::Secured { conn }, State::Remote(remote)) if remote.conn == *conn => {
                remote.heard_ns = reactor.now().mono_ns;
                remote.session.secured(&mut remote.out);
                send(remote, reactor);
                true
            }
            (io::Event::Received { conn }, State::Remote(remote)) if remote.conn == *conn => {
                self.received(reactor, out);
                true
            }
            (io::Event::Closed { conn, reason }, State::Remote(remote)) if remote.conn == *conn => {
                let reason = reason.clone();
                // What arrived with the end may hold the answer that explains it.
                self.received(reactor, out);
                self.ended(&reason, out);
                true
            }
            (io::Event::Disk { file, ticket, result }, State::Files { reader, writer, .. })
                if file == reader || Some(*file) == *writer =>
            {
                out.push(RegionEvent::Done { ticket: *ticket, result: result.clone() });
                true
            }
            _ => false,
        }
    }

    /// When `tick` wants to be called, monotonic nanoseconds.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        match &self.state {
            State::Remote(remote) => remote.silence_ends_ns(),
            State::Files { opened: false, .. } | State::Broken { text: Some(_) } => Some(0),
            State::Files { .. } | State::Broken { .. } | State::Ended => None,
        }
    }

    /// Says what was found at the opening of a file, and ends a connection that has been silent for too long
    /// while an answer was due.
    pub fn tick(&mut self, reactor: &mut Reactor, out: &mut Vec<RegionEvent>) {
        match &mut self.state {
            State::Files { reader, opened, .. } if !*opened => {
                *opened = true;
                out.push(RegionEvent::Opened { size: reactor.file_size(*reader), fencing: false });
            }
            State::Broken { text } => {
                if let Some(text) = text.take() {
                    out.push(RegionEvent::Failed { text: format!("{}: {text}", self.place), fenced: false });
                }
            }
            State::Remote(remote) if remote.silence_ends_ns().is_some_and(|end| end <= reactor.now().mono_ns) => {
                let reason = format!("silent for {} ms {}", LINK_SILENCE_NS / 1_000_000, remote.session.stage());
                reactor.abort(remote.conn, &reason);
                self.ended(&reason, out);
            }
            State::Remote(_) | State::Files { .. } | State::Ended => {}
        }
    }

    fn received(&mut self, reactor: &mut Reactor, out: &mut Vec<RegionEvent>) {
        let State::Remote(remote) = &mut self.state else { return };
        remote.heard_ns = reactor.now().mono_ns;
        let parsed = remote.session.advance(reactor.rx(remote.conn), &mut remote.rx_events, &mut remote.out);
        let mut end = parsed.err().map(|error| (error.to_string(), false));
        let mut secure = false;
        for event in std::mem::take(&mut remote.rx_events) {
            match event {
                Event::Ready(info) => match remote.unusable(&info, self.view) {
                    Some(text) => end = Some((text.to_owned(), false)),
                    None => {
                        remote.info = Some(info);
                        out.push(RegionEvent::Opened { size: info.size, fencing: remote.fencing });
                    }
                },
                Event::Secure => secure = true,
                Event::Refused { code, text } => end = Some((text, remote.fencing && code == REP_ERR_POLICY)),
                Event::Done { cookie, result } => remote.piece_done(cookie, result, out),
                Event::Status { .. } => unreachable!("nobody asks the status table for holes"),
            }
        }
        send(remote, reactor);
        if secure {
            let connector = self.connector.as_ref().expect("TLS is asked for by who has certificates");
            reactor.secure_client(remote.conn, connector);
        }
        if let Some((text, fenced)) = end {
            // A goodbye may still be on its way out.
            reactor.close(remote.conn, &text);
            self.ended_as(&text, fenced, out);
        }
    }

    fn ended(&mut self, reason: &str, out: &mut Vec<RegionEvent>) {
        let text = match &self.state {
            State::Remote(remote) if remote.info.is_none() => format!("{reason} ({})", remote.session.stage()),
            _ => reason.to_owned(),
        };
        self.ended_as(&text, false, out);
    }

    fn ended_as(&mut self, reason: &str, fenced: bool, out: &mut Vec<RegionEvent>) {
        let State::Remote(mut remote) = std::mem::replace(&mut self.state, State::Ended) else { return };
        let text = format!("{}: {reason}", self.place);
        for op in remote.ops.take_all() {
            out.push(RegionEvent::Done { ticket: op.ticket, result: Err(IoFail::Other(text.clone())) });
        }
        out.push(match remote.info {
            Some(_) => RegionEvent::Closed { reason: text },
            None => RegionEvent::Failed { text, fenced },
        });
    }
}

/// What a connection to a URI is made secure with, if it is to be. `certificates`: those of this host.
///
/// # Errors
/// What keeps certificates from being used.
pub fn uri_connector(uri: &NbdUri, certificates: Option<&Paths>) -> Result<Option<Connector>, TlsError> {
    let Some(tls) = &uri.tls else { return Ok(None) };
    if let Some(key) = &tls.key {
        return Connector::with_key(&key.file, &key.user).map(Some);
    }
    let paths = match (&tls.certificates, certificates) {
        (Some(dir), _) => Paths::in_directory(dir, dir.join("client-cert.pem").exists()),
        (None, Some(paths)) => paths.clone(),
        (None, None) => {
            let text = "which CA is to be believed? Add ?tls-certificates=DIR (with ca-cert.pem in it) to \
                        the URI, or [tls] to the configuration";
            return Err(TlsError(format!("{uri}: {text}")));
        }
    };
    Connector::new(&paths, None, Server::Host(uri.host().to_owned()), Versions::Wide).map(Some)
}

impl fmt::Display for TableTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TableTarget::Own { address, .. } => write!(f, "auxiliary {address}"),
            TableTarget::Nbd(uri) => write!(f, "status table {uri}"),
            TableTarget::File { path, .. } => write!(f, "status table {}", path.display()),
        }
    }
}

fn send(remote: &mut Remote, reactor: &mut Reactor) {
    for part in remote.out.drain() {
        reactor.send(remote.conn, part);
    }
}

/// Reads go around the page cache where that is possible: the other host may have written (a lease depends on
/// seeing it). Writes go through it, since they are smaller than a block.
fn open_files(
    reactor: &mut Reactor,
    path: &std::path::Path,
    create: Option<u64>,
    view: bool,
) -> Result<(FileId, Option<FileId>), IoFail> {
    let options = OpenOptions {
        path: path.to_owned(),
        create: create.is_some(),
        size: create,
        preallocate: Preallocate::Reserve,
        direct: Direct::Never,
        ..OpenOptions::default()
    };
    let writer = if view { None } else { Some(reactor.open(&options)?) };
    let read_only = OpenOptions { path: path.to_owned(), read_only: true, ..OpenOptions::default() };
    match reactor.open(&read_only) {
        Ok(reader) => Ok((reader, writer)),
        Err(fail) => {
            writer.into_iter().for_each(|file| reactor.close_file(file));
            Err(fail)
        }
    }
}

fn close_files(reactor: &mut Reactor, reader: FileId, writer: Option<FileId>) {
    reactor.close_file(reader);
    writer.into_iter().for_each(|file| reactor.close_file(file));
}
