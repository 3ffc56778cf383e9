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
//! before `Closed`); a durable write is `Done` when the server says it is durable, never before.

use std::fmt;
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};

use crate::core::address::{Address, NbdUri};
use crate::core::errno::Errno;
use crate::core::fence::{TableExport, Writer};
use crate::core::ids::{Conn, Epoch, Owner, Ticket};
use crate::core::machine::{DiskKind, DiskResult, IoFail};
use crate::io;
use crate::io::{Direct, FileId, OpenOptions, Preallocate, Reactor};
use crate::limits::{LINK_SILENCE_NS, REGION_PIECE_BYTES};
use crate::nbd::client::{ClientSession, Event, ExportInfo};
use crate::nbd::outbox::Outbox;
use crate::nbd::protocol::{READ_ONLY, REP_ERR_POLICY, SEND_FLUSH, SEND_FUA};
use crate::nbd::slots::Slots;

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
    state: State,
}

#[derive(Debug)]
enum State {
    Nbd(Box<Nbd>),
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

#[derive(Debug)]
struct Nbd {
    conn: Conn,
    session: ClientSession,
    rx_events: Vec<Event>,
    out: Outbox,
    fencing: bool,
    info: Option<ExportInfo>,
    ops: Slots<Op>,
    /// Requests on the wire: which operation, and which piece of it.
    pieces: Slots<(u64, usize)>,
    /// When the server last said something, or was asked something after a silence.
    heard_ns: u64,
}

/// An operation, cut into pieces.
#[derive(Debug)]
struct Op {
    ticket: Ticket,
    left: usize,
    /// The bytes of a read, by piece.
    data: Vec<Bytes>,
    failed: Option<Errno>,
    /// FUA by other means: flush when every piece is written.
    flush_after: bool,
}

impl Region {
    /// Begins to open. `epoch` 0 is the read-only view; another one, with its owner, takes the region for
    /// writing (and fences older ones, where the server can).
    pub fn open(reactor: &mut Reactor, target: &TableTarget, epoch: Epoch, owner: Owner) -> Region {
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
                return Region { place: target.to_string(), view, state };
            }
        };
        let conn = reactor.next_conn();
        reactor.connect(conn, address);
        let nbd = Nbd {
            conn,
            session: ClientSession::new(&export),
            rx_events: Vec::new(),
            out: Outbox::new(),
            fencing,
            info: None,
            ops: Slots::default(),
            pieces: Slots::default(),
            heard_ns: reactor.now().mono_ns,
        };
        Region { place: target.to_string(), view, state: State::Nbd(Box::new(nbd)) }
    }

    /// Whether this connection is its own.
    #[must_use]
    pub fn owns(&self, conn: Conn) -> bool {
        matches!(&self.state, State::Nbd(nbd) if nbd.conn == conn)
    }

    /// Reads `length` bytes from `offset`.
    pub fn read(&mut self, reactor: &mut Reactor, ticket: Ticket, offset: u64, length: u64) {
        match &mut self.state {
            State::Nbd(nbd) if nbd.info.is_some() => nbd.read(reactor, ticket, offset, length),
            State::Files { reader, .. } => reactor.disk(*reader, ticket, DiskKind::Read { offset, length }),
            _ => panic!("the region is used between Opened and Closed"),
        }
    }

    /// Writes the parts one after another from `offset`; with `fua` durably.
    pub fn write(&mut self, reactor: &mut Reactor, ticket: Ticket, offset: u64, parts: Vec<Bytes>, fua: bool) {
        match &mut self.state {
            State::Nbd(nbd) if nbd.info.is_some() => nbd.write(reactor, ticket, offset, parts, fua),
            State::Files { writer: Some(writer), .. } => {
                reactor.disk(*writer, ticket, DiskKind::Write { offset, parts, durable: fua });
            }
            _ => panic!("the region is written between Opened and Closed, and not through its view"),
        }
    }

    /// Makes every write that is `Done` durable.
    pub fn flush(&mut self, reactor: &mut Reactor, ticket: Ticket) {
        match &mut self.state {
            State::Nbd(nbd) if nbd.info.is_some() => nbd.flush(reactor, ticket),
            State::Files { writer: Some(writer), .. } => reactor.disk(*writer, ticket, DiskKind::Sync),
            _ => panic!("the region is flushed between Opened and Closed, and not through its view"),
        }
    }

    /// Lets go of the region. No more events come; operations in flight stay unanswered.
    pub fn close(mut self, reactor: &mut Reactor) {
        match &mut self.state {
            State::Nbd(nbd) => {
                nbd.session.disconnect(&mut nbd.out);
                nbd.send(reactor);
                reactor.close(nbd.conn, "the status table is let go");
            }
            State::Files { reader, writer, .. } => close_files(reactor, *reader, *writer),
            State::Broken { .. } | State::Ended => {}
        }
    }

    /// Takes an event of the reactor; false when it is about somebody else.
    pub fn on_event(&mut self, reactor: &mut Reactor, event: &io::Event, out: &mut Vec<RegionEvent>) -> bool {
        match (event, &mut self.state) {
            (io::Event::Connected { conn } | io::Event::Sent { conn }, State::Nbd(nbd)) => nbd.conn == *conn,
            (io::Event::Received { conn }, State::Nbd(nbd)) if nbd.conn == *conn => {
                self.received(reactor, out);
                true
            }
            (io::Event::Closed { conn, reason }, State::Nbd(nbd)) if nbd.conn == *conn => {
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
            State::Nbd(nbd) => nbd.silence_ends_ns(),
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
            State::Nbd(nbd) if nbd.silence_ends_ns().is_some_and(|end| end <= reactor.now().mono_ns) => {
                let reason = format!("silent for {} ms {}", LINK_SILENCE_NS / 1_000_000, nbd.session.stage());
                reactor.abort(nbd.conn, &reason);
                self.ended(&reason, out);
            }
            State::Nbd(_) | State::Files { .. } | State::Ended => {}
        }
    }

    fn received(&mut self, reactor: &mut Reactor, out: &mut Vec<RegionEvent>) {
        let State::Nbd(nbd) = &mut self.state else { return };
        nbd.heard_ns = reactor.now().mono_ns;
        let parsed = nbd.session.advance(reactor.rx(nbd.conn), &mut nbd.rx_events, &mut nbd.out);
        nbd.send(reactor);
        let mut end = parsed.err().map(|error| (error.to_string(), false));
        for event in std::mem::take(&mut nbd.rx_events) {
            match event {
                Event::Ready(info) => match nbd.unusable(&info, self.view) {
                    Some(text) => end = Some((text.to_owned(), false)),
                    None => {
                        nbd.info = Some(info);
                        out.push(RegionEvent::Opened { size: info.size, fencing: nbd.fencing });
                    }
                },
                Event::Refused { code, text } => end = Some((text, nbd.fencing && code == REP_ERR_POLICY)),
                Event::Done { cookie, result } => nbd.piece_done(reactor, cookie, result, out),
            }
        }
        if let Some((text, fenced)) = end {
            // A goodbye may still be on its way out.
            reactor.close(nbd.conn, &text);
            self.ended_as(&text, fenced, out);
        }
    }

    fn ended(&mut self, reason: &str, out: &mut Vec<RegionEvent>) {
        let text = match &self.state {
            State::Nbd(nbd) if nbd.info.is_none() => format!("{reason} ({})", nbd.session.stage()),
            _ => reason.to_owned(),
        };
        self.ended_as(&text, false, out);
    }

    fn ended_as(&mut self, reason: &str, fenced: bool, out: &mut Vec<RegionEvent>) {
        let State::Nbd(mut nbd) = std::mem::replace(&mut self.state, State::Ended) else { return };
        let text = format!("{}: {reason}", self.place);
        for op in nbd.ops.take_all() {
            out.push(RegionEvent::Done { ticket: op.ticket, result: Err(IoFail::Other(text.clone())) });
        }
        out.push(match nbd.info {
            Some(_) => RegionEvent::Closed { reason: text },
            None => RegionEvent::Failed { text, fenced },
        });
    }
}

impl Nbd {
    /// Why an export cannot be the status table, if it cannot.
    fn unusable(&self, info: &ExportInfo, view: bool) -> Option<&'static str> {
        if !view && info.flags & READ_ONLY != 0 {
            Some("the export is read-only; a status table has to be writable")
        } else if info.block_min > 1 {
            Some("the server insists on whole blocks, the status table writes less; allow any length there")
        } else {
            None
        }
    }

    fn read(&mut self, reactor: &mut Reactor, ticket: Ticket, offset: u64, length: u64) {
        let pieces = pieces(offset, length, self.piece_bytes());
        let data = vec![Bytes::new(); pieces.len()];
        let op = self.begin(reactor, Op { ticket, left: pieces.len(), data, failed: None, flush_after: false });
        for (index, (offset, length)) in pieces.into_iter().enumerate() {
            let piece = self.pieces.insert((op, index));
            self.session.read(piece, offset, length, &mut self.out);
        }
        self.send(reactor);
    }

    fn write(&mut self, reactor: &mut Reactor, ticket: Ticket, offset: u64, parts: Vec<Bytes>, fua: bool) {
        let flags = self.flags();
        let length: usize = parts.iter().map(Bytes::len).sum();
        let pieces = pieces(offset, length as u64, self.piece_bytes());
        let flush_after = fua && flags & SEND_FUA == 0 && flags & SEND_FLUSH != 0;
        let op = Op { ticket, left: pieces.len(), data: Vec::new(), failed: None, flush_after };
        let op = self.begin(reactor, op);
        let mut parts = parts.into_iter();
        let mut rest = Bytes::new();
        for (index, (offset, length)) in pieces.into_iter().enumerate() {
            let piece = self.pieces.insert((op, index));
            let parts = cut(&mut parts, &mut rest, length as usize);
            self.session.write(piece, offset, parts, fua && flags & SEND_FUA != 0, &mut self.out);
        }
        self.send(reactor);
    }

    fn flush(&mut self, reactor: &mut Reactor, ticket: Ticket) {
        let op = self.begin(reactor, Op { ticket, left: 1, data: Vec::new(), failed: None, flush_after: false });
        self.send_flush(op);
        self.send(reactor);
    }

    fn send_flush(&mut self, op: u64) {
        let piece = self.pieces.insert((op, 0));
        self.session.flush(piece, &mut self.out);
    }

    fn piece_done(&mut self, reactor: &mut Reactor, piece: u64, result: DataResult, out: &mut Vec<RegionEvent>) {
        let (number, index) = self.pieces.remove(piece).expect("the session answers what it was given, once");
        let op = self.ops.get_mut(number).expect("an operation lives until its last piece");
        op.left -= 1;
        match result {
            Ok(data) if !op.data.is_empty() => op.data[index] = data,
            Ok(_) => {}
            Err(errno) => op.failed = Some(errno),
        }
        if op.left > 0 {
            return;
        }
        if op.flush_after && op.failed.is_none() {
            (op.left, op.flush_after) = (1, false);
            self.send_flush(number);
            return self.send(reactor);
        }
        let op = self.ops.remove(number).expect("it was found a moment ago");
        let result = op.failed.map_or_else(|| Ok(join(op.data)), |errno| Err(io_fail(errno)));
        out.push(RegionEvent::Done { ticket: op.ticket, result });
    }

    fn begin(&mut self, reactor: &Reactor, op: Op) -> u64 {
        assert!(op.left > 0, "an operation covers at least one byte");
        if self.ops.is_empty() {
            self.heard_ns = reactor.now().mono_ns;
        }
        self.ops.insert(op)
    }

    fn send(&mut self, reactor: &mut Reactor) {
        for part in self.out.drain() {
            reactor.send(self.conn, part);
        }
    }

    /// When the silence of a server that owes an answer has lasted too long.
    fn silence_ends_ns(&self) -> Option<u64> {
        (self.info.is_none() || !self.ops.is_empty()).then(|| self.heard_ns.saturating_add(LINK_SILENCE_NS))
    }

    fn flags(&self) -> u16 {
        self.info.map_or(0, |info| info.flags)
    }

    fn piece_bytes(&self) -> u32 {
        self.info.map_or(REGION_PIECE_BYTES, |info| info.block_max.min(REGION_PIECE_BYTES))
    }
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

type DataResult = Result<Bytes, Errno>;

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

/// (offset, length) of the pieces of a range.
fn pieces(offset: u64, length: u64, piece: u32) -> Vec<(u64, u32)> {
    let count = length.div_ceil(u64::from(piece));
    let cut = |index: u64| {
        let at = index * u64::from(piece);
        (offset + at, u32::try_from(length - at).unwrap_or(u32::MAX).min(piece))
    };
    (0..count).map(cut).collect()
}

/// The next `length` bytes of a run of parts; `rest` keeps what is left of a part.
fn cut(parts: &mut impl Iterator<Item = Bytes>, rest: &mut Bytes, length: usize) -> Vec<Bytes> {
    let mut taken = Vec::new();
    let mut left = length;
    while left > 0 {
        if rest.is_empty() {
            *rest = parts.next().expect("the pieces cover the parts exactly");
        }
        let part = rest.split_to(left.min(rest.len()));
        left -= part.len();
        taken.push(part);
    }
    taken
}

fn join(mut data: Vec<Bytes>) -> Bytes {
    if data.len() == 1 {
        return data.remove(0);
    }
    let mut joined = BytesMut::with_capacity(data.iter().map(Bytes::len).sum());
    data.iter().for_each(|part| joined.extend_from_slice(part));
    joined.freeze()
}

fn io_fail(errno: Errno) -> IoFail {
    match errno {
        Errno::NoSpc => IoFail::NoSpace("the server of the status table says so".to_owned()),
        Errno::Inval => IoFail::Other(
            "the server of the status table refuses the request as invalid; one that insists on whole blocks does so"
                .to_owned(),
        ),
        other => IoFail::Other(format!("the server of the status table answers {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_range_exactly() {
        assert_eq!(pieces(100, 10, 4), [(100, 4), (104, 4), (108, 2)]);
        assert_eq!(pieces(7, 4, 4), [(7, 4)]);
        assert_eq!(pieces(0, 1 << 33, 1 << 31).len(), 4);
    }

    #[test]
    fn parts_are_cut_without_loss() {
        let mut parts = [&b"abc"[..], b"", b"defgh"].into_iter().map(Bytes::from_static);
        let mut rest = Bytes::new();
        let taken: Vec<Vec<Bytes>> = (0..2).map(|_| cut(&mut parts, &mut rest, 4)).collect();
        assert_eq!(taken, [vec!["abc", "d"], vec!["efgh"]]);
        assert_eq!(join(taken.concat()), "abcdefgh");
    }
}
