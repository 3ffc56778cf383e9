//! The auxiliary as a pure machine: who may use the region, and what becomes of each request.
//!
//! ```text
//!   Open(writer) ─► queue ─► verdict ─┬─ refused: older epoch, or another owner of this one
//!                                     ├─ new epoch: superblock twice, durable ─┐
//!                                     └─ same writer again ────────────────────┤
//!                                          cut every other writer off ◄────────┘
//!                                          wait for their writes on the disk, then Granted
//! ```
//!
//! Owns the epoch in force and the connections that were granted something. Does not own the NBD protocol
//! (ranges were checked by its session) nor the meaning of the region's bytes.
//!
//! Invariants:
//! - I7: an epoch is durable in both slots of the superblock before it is granted. When `Granted` is emitted
//!   no write of another writer is on its way to the disk, and none will be answered.
//! - I3: a write with FUA, and a flush, are answered when the disk says they are durable, not before.
//! - After a failed write or sync nothing more is accepted: the process ends, and reopens its files.
//!
//! Grouping of concurrent durable writes into one fdatasync is the shell's (core::machine: `durable`).

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::auxiliary::recovery::{Recovered, writer};
use crate::cluster::status::{AuxStatus, LinkStatus, seconds};
use crate::core::errno::Errno;
use crate::core::fence::{TableExport, Verdict, Writer, verdict};
use crate::core::ids::{Conn, Ticket};
use crate::core::machine::{DiskKind, DiskOp, DiskResult, IoFail, Level, Machine, Now};
use crate::core::planted::{Bug, planted};
use crate::format::superblock::Superblock;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum File {
    Superblock,
    Table,
}

/// A checked request: inside the region, never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Read { offset: u64, length: u64 },
    Write { offset: u64, data: Bytes, fua: bool },
    Flush,
}

#[derive(Clone, Debug)]
pub enum Input {
    /// A client wants to use an export. `peer` is its address, for the status.
    Open {
        conn: Conn,
        export: String,
        peer: String,
    },
    /// A client wants to know about an export; changes nothing.
    Probe {
        conn: Conn,
        export: String,
    },
    Request {
        conn: Conn,
        cookie: u64,
        kind: Kind,
    },
    Closed {
        conn: Conn,
    },
    Disk {
        ticket: Ticket,
        result: DiskResult,
    },
    Tick,
    /// Finish what is in flight, then `Stopped`.
    Stop,
}

#[derive(Clone, Debug)]
pub enum Effect {
    /// `Open`: the epoch is durable and the others are cut off. `Probe`: what an `Open` would get.
    Granted {
        conn: Conn,
        export: String,
        size: u64,
        read_only: bool,
    },
    /// `fenced`: because of the epoch or the owner; otherwise there is no such export.
    Refused {
        conn: Conn,
        text: String,
        fenced: bool,
    },
    /// A write with FUA and a flush: durable. A write: in the page cache.
    Reply {
        conn: Conn,
        cookie: u64,
        result: Result<Bytes, Errno>,
    },
    /// Cut it off at once; nothing more is answered to it.
    Close {
        conn: Conn,
        reason: String,
    },
    Disk(DiskOp<File>),
    Log {
        level: Level,
        text: String,
    },
    /// The files cannot be trusted any more: end the process with this text; a restart reopens them.
    Fatal {
        text: String,
    },
    /// Everything written is durable; the process may end.
    Stopped,
}

/// The auxiliary of one group.
#[derive(Clone, Debug)]
pub struct Auxiliary {
    superblock: Superblock,
    settled: bool,
    table_bytes: u64,
    links: BTreeMap<Conn, Link>,
    opens: VecDeque<(Conn, Writer)>,
    grant: Option<Grant>,
    /// What waits for the disk.
    pending: BTreeMap<Ticket, Pending>,
    writes_pending: usize,
    next_ticket: u64,
    state: State,
    counters: Counters,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Serving,
    /// Waiting for the writes in flight, then for a last sync.
    Stopping,
    Stopped,
    Failed,
}

#[derive(Clone, Debug)]
struct Link {
    peer: String,
    /// `None`: the read-only view.
    writer: Option<Writer>,
    granted: bool,
    since_ns: u64,
    read_bytes: u64,
    written_bytes: u64,
}

/// A writer on its way in.
#[derive(Clone, Copy, Debug)]
struct Grant {
    conn: Conn,
    writer: Writer,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// This many writes of the superblock are still to be durable.
    Persisting(u8),
    /// Writes of those who were cut off are still on their way to the disk.
    Draining,
}

#[derive(Clone, Debug)]
enum Pending {
    Request { conn: Conn, cookie: u64, write: bool, bytes: u64 },
    Superblock,
    LastSync,
}

#[derive(Clone, Debug, Default)]
struct Counters {
    reads: u64,
    writes: u64,
    written_bytes: u64,
    fenced: u64,
}

/// Slots of the superblock that carry a writer before it is granted.
const SLOTS: u8 = 2;

impl Machine for Auxiliary {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, now: Now, input: Input, fx: &mut Vec<Effect>) {
        match input {
            Input::Open { conn, export, peer } => self.open(now, conn, &export, peer, fx),
            Input::Probe { conn, export } => self.probe(conn, &export, fx),
            Input::Request { conn, cookie, kind } => self.request(conn, cookie, kind, fx),
            Input::Closed { conn } => self.closed(conn, fx),
            Input::Disk { ticket, result } => self.disk_done(ticket, result, fx),
            Input::Tick => {}
            Input::Stop => self.stop(fx),
        }
    }

    fn deadline_ns(&self) -> Option<u64> {
        None
    }
}

impl Auxiliary {
    /// An auxiliary over what recovery found; what `Recovered::creation` asks for is durable already.
    #[must_use]
    pub fn new(recovered: Recovered, table_bytes: u64) -> Auxiliary {
        Auxiliary {
            superblock: recovered.superblock,
            settled: recovered.settled,
            table_bytes,
            links: BTreeMap::new(),
            opens: VecDeque::new(),
            grant: None,
            pending: BTreeMap::new(),
            writes_pending: 0,
            next_ticket: 1,
            state: State::Serving,
            counters: Counters::default(),
        }
    }

    /// The writer in force: no older one is ever let in again.
    #[must_use]
    pub fn writer(&self) -> Writer {
        writer(&self.superblock)
    }

    /// (name, description) of what this server exports.
    #[must_use]
    pub fn exports(&self) -> Vec<(String, String)> {
        let description = format!("status table, read-only view (epoch {} is in force)", self.superblock.epoch);
        vec![(self.superblock.group_name.clone(), description)]
    }

    #[must_use]
    pub fn status(&self, now: Now) -> AuxStatus {
        let links = self.links.values().map(|link| link.status(now)).collect();
        AuxStatus {
            group: self.superblock.group_name.clone(),
            epoch: self.superblock.epoch,
            table_bytes: self.table_bytes,
            reads: self.counters.reads,
            writes: self.counters.writes,
            written_bytes: self.counters.written_bytes,
            fenced: self.counters.fenced,
            links,
            ..AuxStatus::default()
        }
    }

    fn open(&mut self, now: Now, conn: Conn, export: &str, peer: String, fx: &mut Vec<Effect>) {
        let Some(asked) = self.resolve(conn, export, fx) else { return };
        let link = Link {
            peer,
            writer: asked.writer,
            granted: asked.writer.is_none(),
            since_ns: now.mono_ns,
            read_bytes: 0,
            written_bytes: 0,
        };
        self.links.insert(conn, link);
        match asked.writer {
            None => fx.push(self.granted(conn, true)),
            Some(writer) => {
                self.opens.push_back((conn, writer));
                self.next_open(fx);
            }
        }
    }

    fn probe(&mut self, conn: Conn, export: &str, fx: &mut Vec<Effect>) {
        let Some(asked) = self.resolve(conn, export, fx) else { return };
        let Some(asked) = asked.writer else { return fx.push(self.granted(conn, true)) };
        match self.refusal(asked) {
            Some(text) => fx.push(Effect::Refused { conn, text, fenced: true }),
            None => fx.push(self.granted(conn, false)),
        }
    }

    /// The export that a name means; refuses names that are not ours. The empty name is the view.
    fn resolve(&self, conn: Conn, export: &str, fx: &mut Vec<Effect>) -> Option<TableExport> {
        let group = &self.superblock.group_name;
        let refuse = |text| Effect::Refused { conn, text, fenced: false };
        if self.state != State::Serving {
            fx.push(refuse("this auxiliary is stopping".to_owned()));
            return None;
        }
        match export.parse::<TableExport>() {
            Ok(asked) if asked.group == *group || export.is_empty() => Some(asked),
            Ok(asked) => {
                fx.push(refuse(format!("this auxiliary serves group {group:?}, not {:?}", asked.group)));
                None
            }
            Err(error) => {
                fx.push(refuse(error.to_string()));
                None
            }
        }
    }

    /// Why this writer is not let in, if it is not.
    fn refusal(&self, asked: Writer) -> Option<String> {
        let stored = self.writer();
        let group = &self.superblock.group_name;
        match verdict(stored, asked) {
            _ if planted(Bug::AuxAcceptsStaleEpoch) => None,
            Verdict::Advance | Verdict::Resume => None,
            Verdict::Fenced => Some(format!(
                "fenced: epoch {} is in force in group {group:?}, epoch {} is over",
                stored.epoch, asked.epoch
            )),
            Verdict::SecondPrimary => Some(format!(
                "second primary: epoch {} of group {group:?} belongs to {:016x}, not to {:016x}",
                stored.epoch, stored.owner.0, asked.owner.0
            )),
        }
    }

    /// Takes up the next writer that waits, if none is on its way in.
    fn next_open(&mut self, fx: &mut Vec<Effect>) {
        while self.grant.is_none() && self.state == State::Serving {
            let Some((conn, writer)) = self.opens.pop_front() else { return };
            if let Some(text) = self.refusal(writer) {
                self.links.remove(&conn);
                self.counters.fenced += 1;
                fx.push(Effect::Log { level: Level::Warn, text: format!("refused a writer: {text}") });
                fx.push(Effect::Refused { conn, text, fenced: true });
                continue;
            }
            if verdict(self.writer(), writer) == Verdict::Resume && self.settled {
                self.grant = Some(Grant { conn, writer, stage: Stage::Draining });
                self.cut_others(conn, fx);
                self.finish_grant(fx);
            } else {
                self.superblock.epoch = writer.epoch;
                self.superblock.peer = writer.owner;
                self.settled = false;
                self.grant = Some(Grant { conn, writer, stage: Stage::Persisting(SLOTS) });
                if planted(Bug::GrantUnpersisted) {
                    fx.push(self.granted(conn, false));
                    self.links.entry(conn).and_modify(|link| link.granted = true);
                }
                self.persist(fx);
            }
        }
    }

    /// Writes the next generation of the superblock, durably.
    fn persist(&mut self, fx: &mut Vec<Effect>) {
        self.superblock.generation += 1;
        let parts = vec![Bytes::copy_from_slice(&self.superblock.encode())];
        let kind = DiskKind::Write { offset: self.superblock.offset(), parts, durable: true };
        self.disk(File::Superblock, kind, Pending::Superblock, fx);
    }

    /// One of the two slots is durable.
    fn persisted(&mut self, fx: &mut Vec<Effect>) {
        let grant = self.grant.as_mut().expect("the superblock is written for a grant only");
        let Stage::Persisting(left) = grant.stage else { panic!("the superblock is written while persisting only") };
        if left > 1 {
            grant.stage = Stage::Persisting(left - 1);
            return self.persist(fx);
        }
        grant.stage = Stage::Draining;
        let conn = grant.conn;
        self.settled = true;
        self.cut_others(conn, fx);
        self.finish_grant(fx);
    }

    /// Closes every writer but the one on its way in. Those that still wait are judged in their turn.
    fn cut_others(&mut self, keep: Conn, fx: &mut Vec<Effect>) {
        let stored = self.writer();
        if planted(Bug::AuxKeepsOldWriter) {
            return;
        }
        let cut =
            |(conn, link): (&Conn, &Link)| (link.granted && link.writer.is_some() && *conn != keep).then_some(*conn);
        let conns: Vec<Conn> = self.links.iter().filter_map(cut).collect();
        for conn in conns {
            let link = self.links.remove(&conn).expect("it was found a moment ago");
            let reason = if link.writer == Some(stored) {
                "the same writer has a newer connection".to_owned()
            } else {
                self.counters.fenced += 1;
                format!("fenced: epoch {} is in force", stored.epoch)
            };
            fx.push(Effect::Log { level: Level::Warn, text: format!("cut off the writer at {}: {reason}", link.peer) });
            fx.push(Effect::Close { conn, reason });
        }
    }

    /// Lets the writer in once nothing of another one is on its way to the disk any more.
    fn finish_grant(&mut self, fx: &mut Vec<Effect>) {
        let Some(Grant { conn, writer, stage: Stage::Draining }) = self.grant else { return };
        if self.writes_pending > 0 || self.state == State::Failed {
            return;
        }
        self.grant = None;
        // Its connection may be gone by now: its epoch is in force all the same.
        if let Some(link) = self.links.get_mut(&conn) {
            link.granted = true;
            let text = format!("epoch {} granted to {:016x} at {}", writer.epoch, writer.owner.0, link.peer);
            fx.push(Effect::Log { level: Level::Info, text });
            fx.push(self.granted(conn, false));
        }
    }

    fn granted(&self, conn: Conn, read_only: bool) -> Effect {
        Effect::Granted { conn, export: self.superblock.group_name.clone(), size: self.table_bytes, read_only }
    }

    fn request(&mut self, conn: Conn, cookie: u64, kind: Kind, fx: &mut Vec<Effect>) {
        // A request of a connection that was cut off in this very turn: it gets no answer, ever.
        let Some(link) = self.links.get_mut(&conn) else { return };
        assert!(link.granted, "the session holds requests back until its export is granted");
        let refused = match (self.state, &kind) {
            (State::Stopping | State::Stopped, _) => Some(Errno::Shutdown),
            (State::Failed, _) => Some(Errno::Io),
            (State::Serving, Kind::Write { .. }) if link.writer.is_none() => Some(Errno::Perm),
            (State::Serving, _) => None,
        };
        if let Some(errno) = refused {
            return fx.push(Effect::Reply { conn, cookie, result: Err(errno) });
        }
        let (disk, write, bytes) = match kind {
            Kind::Read { offset, length } => {
                self.counters.reads += 1;
                link.read_bytes += length;
                (DiskKind::Read { offset, length }, false, length)
            }
            Kind::Write { offset, data, fua } => {
                let bytes = data.len() as u64;
                assert!(offset + bytes <= self.table_bytes, "the session checked the range");
                self.counters.writes += 1;
                self.counters.written_bytes += bytes;
                link.written_bytes += bytes;
                let durable = fua && !planted(Bug::AuxIgnoresFua);
                (DiskKind::Write { offset, parts: vec![data], durable }, true, bytes)
            }
            Kind::Flush => (DiskKind::Sync, true, 0),
        };
        self.writes_pending += usize::from(write);
        self.disk(File::Table, disk, Pending::Request { conn, cookie, write, bytes }, fx);
    }

    fn closed(&mut self, conn: Conn, fx: &mut Vec<Effect>) {
        self.opens.retain(|(waiting, _)| *waiting != conn);
        if let Some(link) = self.links.remove(&conn)
            && link.granted
            && link.writer.is_some()
        {
            let text = format!("the writer at {} is gone", link.peer);
            fx.push(Effect::Log { level: Level::Info, text });
        }
    }

    fn disk_done(&mut self, ticket: Ticket, result: DiskResult, fx: &mut Vec<Effect>) {
        let pending = self.pending.remove(&ticket).expect("an operation completes once, by its ticket");
        match pending {
            Pending::Request { conn, cookie, write, bytes } => {
                self.writes_pending -= usize::from(write);
                if let Err(fail) = &result {
                    self.request_failed(write, fail, fx);
                }
                let result = result.map_err(|fail| errno(&fail));
                // After a failed sync a later one may claim success for what was lost.
                let result = if write && self.state == State::Failed { result.and(Err(Errno::Io)) } else { result };
                let length = if write { 0 } else { bytes };
                assert!(result.as_ref().map_or(true, |data| data.len() as u64 == length), "a read returns its length");
                if self.links.contains_key(&conn) {
                    fx.push(Effect::Reply { conn, cookie, result });
                }
                self.finish_grant(fx);
                self.next_open(fx);
                self.finish_stop(fx);
            }
            Pending::Superblock => match result {
                Ok(_) => {
                    self.persisted(fx);
                    self.next_open(fx);
                    self.finish_stop(fx);
                }
                Err(fail) => self.fail(format!("the superblock could not be written: {fail}"), fx),
            },
            Pending::LastSync => match result {
                Ok(_) => {
                    self.state = State::Stopped;
                    fx.push(Effect::Stopped);
                }
                Err(fail) => self.fail(format!("the table could not be synced: {fail}"), fx),
            },
        }
    }

    fn request_failed(&mut self, write: bool, fail: &IoFail, fx: &mut Vec<Effect>) {
        if write {
            self.fail(format!("the table could not be written: {fail}"), fx);
        } else {
            fx.push(Effect::Log { level: Level::Error, text: format!("the table could not be read: {fail}") });
        }
    }

    fn fail(&mut self, text: String, fx: &mut Vec<Effect>) {
        if self.state != State::Failed {
            self.state = State::Failed;
            fx.push(Effect::Fatal { text });
        }
    }

    fn stop(&mut self, fx: &mut Vec<Effect>) {
        if self.state != State::Serving {
            return;
        }
        self.state = State::Stopping;
        for (conn, _) in std::mem::take(&mut self.opens) {
            self.links.remove(&conn);
            fx.push(Effect::Refused { conn, text: "this auxiliary is stopping".to_owned(), fenced: false });
        }
        self.finish_stop(fx);
    }

    /// The last sync covers what was written without FUA.
    fn finish_stop(&mut self, fx: &mut Vec<Effect>) {
        if self.state == State::Stopping && self.pending.is_empty() {
            self.disk(File::Table, DiskKind::Sync, Pending::LastSync, fx);
        }
    }

    fn disk(&mut self, file: File, kind: DiskKind, pending: Pending, fx: &mut Vec<Effect>) {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.pending.insert(ticket, pending);
        fx.push(Effect::Disk(DiskOp { ticket, file, kind }));
    }
}

impl Link {
    fn status(&self, now: Now) -> LinkStatus {
        LinkStatus {
            peer: if self.writer.is_some() { "primary" } else { "reader" }.to_owned(),
            address: self.peer.clone(),
            state: if self.granted { "up" } else { "connecting" }.to_owned(),
            sent_bytes: self.read_bytes,
            received_bytes: self.written_bytes,
            seconds: seconds(now.mono_ns.saturating_sub(self.since_ns)),
            ..LinkStatus::default()
        }
    }
}

fn errno(fail: &IoFail) -> Errno {
    match fail {
        IoFail::NoSpace(_) => Errno::NoSpc,
        IoFail::Other(_) => Errno::Io,
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
