//! The auxiliary as a process: one thread, one ring, the machine's effects carried out.
//!
//! Owns the directory (locked), its two files, the NBD listener and the control socket. Everything that is
//! decided is decided in `machine` and `recovery`.
//!
//! A kill at any moment is safe: the superblock is two slots, both written before a grant; the table's bytes
//! are as durable as their writer was told.

use std::path::Path;

use anyhow::{Context, bail};

use crate::auxiliary::machine::{Auxiliary, Effect, File, Input, Kind};
use crate::auxiliary::recovery::{Recovered, check_length, recover};
use crate::cluster::config::{AuxConfig, Config, OwnAux};
use crate::cluster::control::{Answer, Refused, Request};
use crate::cluster::metrics;
use crate::cluster::status::{CertificateStatus, Degraded, Status};
use crate::core::address::Address;
use crate::core::ids::{Conn, Owner};
use crate::core::machine::{IoFail, Level, Machine, ReadAt as _};
use crate::core::modes::TlsMode;
use crate::core::names::{self, SUPERBLOCK, TABLE};
use crate::core::peer::Role;
use crate::format::superblock::SUPERBLOCK_BYTES;
use crate::format::table::TableLayout;
use crate::io::control::Controls;
use crate::io::http::{Asked, HttpServer};
use crate::io::open::to_read;
use crate::io::tls::{Acceptor, Clients, Versions};
use crate::io::{
    Direct, Event, FileId, OpenOptions, Preallocate, Reactor, ReactorOptions, Still, make_dir, notify, places,
};
use crate::limits::{BLOCK_BYTES, PAYLOAD_BYTES_MAX};
use crate::nbd::ended::Ended;
use crate::nbd::protocol::{REP_ERR_POLICY, REP_ERR_UNKNOWN};
use crate::nbd::server::NbdServer;
use crate::nbd::session::{self, Export, Purpose, Refusal};

/// Runs the auxiliary of a group until it is told to stop.
///
/// # Errors
/// What kept it from starting, or from going on.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let (aux, own) = config.need_aux()?;
    let options = ReactorOptions { arena_bytes: ARENA_BYTES, signals: true, prompt: true, ..ReactorOptions::default() };
    let reactor = Reactor::new(options).context("io_uring is needed, and the kernel does not give it")?;
    let acceptor = match config.certificates(Role::Aux) {
        Some(paths) => {
            let peers = Clients::Named(vec![config.name(Role::Primary), config.name(Role::Dr)]);
            Some(Acceptor::new(&paths, Some(&config.name(Role::Aux)), peers, Versions::Newest)?)
        }
        None => None,
    };
    let mut shell = Shell::start(reactor, &config.group.name, aux, own)?;
    shell.acceptor = acceptor;
    shell.serve()
}

/// The machine and what it acts on.
pub struct Shell {
    reactor: Reactor,
    machine: Auxiliary,
    nbd: NbdServer,
    superblock: FileId,
    table: FileId,
    listener: usize,
    /// With it every client has to become secure, and be the primary or DR of the group.
    acceptor: Option<Acceptor>,
    controls: Controls,
    peers: Ended,
    asked: Vec<(Conn, session::Event)>,
    http: HttpServer,
    pages: Vec<Asked>,
    effects: Vec<Effect>,
    stopped: bool,
}

impl Shell {
    /// Locks the directory, recovers it, and listens.
    ///
    /// # Errors
    /// What is wrong with the directory, its files or the addresses.
    pub fn start(mut reactor: Reactor, group: &str, aux: &AuxConfig, own: &OwnAux) -> anyhow::Result<Shell> {
        places(&own.dir)?;
        make_dir(&own.dir)?;
        let (superblock, recovered) = open_superblock(&mut reactor, &own.dir, group)?;
        let layout = TableLayout::new(aux.slots, aux.payload);
        let table = open_table(&mut reactor, &own.dir.join(TABLE), layout.total_bytes())?;
        let table_bytes = reactor.file_size(table);
        if table_bytes != layout.total_bytes() {
            tracing::warn!(
                "the table has {table_bytes} bytes, the configuration asks for {}: it stays as large as it is",
                layout.total_bytes()
            );
        }
        let machine = Auxiliary::new(recovered, table_bytes);
        let listener = reactor.listen(&own.listen).with_context(|| format!("listening on {}", own.listen))?;
        let controls = Controls::start(&mut reactor, &own.control)
            .with_context(|| format!("listening on {}", own.control.display()))?;
        let http = HttpServer::start(&mut reactor, aux.metrics.as_ref()).context("listening on [aux] metrics")?;
        let address = reactor.listen_address(listener).unwrap_or(&own.listen);
        let status = format!("serving on {address}, epoch {} is in force", machine.writer().epoch);
        tracing::info!("{status}");
        notify::ready(&status);
        Ok(Shell {
            reactor,
            machine,
            nbd: NbdServer::new(),
            superblock,
            table,
            listener,
            acceptor: None,
            controls,
            peers: Ended::default(),
            asked: Vec::new(),
            http,
            pages: Vec::new(),
            effects: Vec::new(),
            stopped: false,
        })
    }

    /// Serves until a stop is asked for and everything is settled.
    ///
    /// # Errors
    /// A failed write of its files, after which only a restart can be trusted; a failed ring.
    pub fn serve(mut self) -> anyhow::Result<()> {
        let mut events = Vec::new();
        while !self.stopped {
            self.reactor.turn(self.nbd.deadline_ns(), &mut events).context("the ring failed")?;
            for event in events.drain(..) {
                self.on_event(event)?;
            }
            self.nbd.tick(&mut self.reactor);
            self.answer()?;
        }
        self.drain(&mut events)
    }

    /// Where its clients connect.
    #[must_use]
    pub fn address(&self) -> Option<&Address> {
        self.reactor.listen_address(self.listener)
    }

    /// Makes it stop from another thread.
    #[must_use]
    pub fn stopper(&self) -> crate::io::Stopper {
        self.reactor.stopper()
    }

    fn on_event(&mut self, event: Event) -> anyhow::Result<()> {
        if let Event::Closed { conn, reason } = &event
            && let Some(text) = self.peers.closed(self.reactor.now().mono_ns, *conn, reason)
        {
            tracing::warn!("{text}");
        }
        if self.nbd.on_event(&mut self.reactor, &event, &mut self.asked) {
            return Ok(());
        }
        if self.http.on_event(&mut self.reactor, &event, &mut self.pages) {
            for asked in std::mem::take(&mut self.pages) {
                let page = metrics::page(&asked.path, &self.status());
                HttpServer::reply(&mut self.reactor, &asked, page.code, page.kind, &page.body);
            }
            return Ok(());
        }
        if self.controls.on_event(&mut self.reactor, &event) {
            return self.control();
        }
        match event {
            Event::Accepted { conn, peer, .. } => {
                let mode = if self.acceptor.is_some() { TlsMode::Required } else { TlsMode::Off };
                self.nbd.add_with(&mut self.reactor, conn, &peer, mode, self.acceptor.as_ref());
                self.peers.add(conn, peer);
            }
            Event::Disk { ticket, result, .. } => self.step(Input::Disk { ticket, result })?,
            Event::Stop => self.stop()?,
            // Of connections that have ended.
            Event::Received { .. } | Event::Closed { .. } => {}
            Event::Connected { .. }
            | Event::Secured { .. }
            | Event::Sent { .. }
            | Event::Extents { .. }
            | Event::Worked { .. } => {}
        }
        Ok(())
    }

    /// Gives the machine what clients ask, until everything that could be answered now has been sent.
    fn answer(&mut self) -> anyhow::Result<()> {
        loop {
            for (conn, event) in std::mem::take(&mut self.asked) {
                self.on_asked(conn, event)?;
            }
            // What is done already is answered in the same turn.
            let mut completed = Vec::new();
            self.reactor.completed(&mut completed);
            let more = !completed.is_empty();
            for event in completed {
                self.on_event(event)?;
            }
            self.nbd.flush(&mut self.reactor, &mut self.asked);
            if self.asked.is_empty() && !more {
                return Ok(());
            }
        }
    }

    fn on_asked(&mut self, conn: Conn, event: session::Event) -> anyhow::Result<()> {
        match event {
            session::Event::Resolve { name: export, purpose: Purpose::Info } => {
                self.step(Input::Probe { conn, export })
            }
            session::Event::Resolve { name: export, .. } => {
                let peer = self.peers.peer(conn).to_owned();
                self.step(Input::Open { conn, export, peer })
            }
            session::Event::List => {
                self.nbd.listed(conn, &self.machine.exports());
                Ok(())
            }
            session::Event::Request(request) => {
                self.step(Input::Request { conn, cookie: request.cookie, kind: kind(request.kind) })
            }
            session::Event::Disconnect => self.step(Input::Closed { conn }),
            session::Event::Secure => unreachable!("the server begins TLS by itself"),
        }
    }

    fn step(&mut self, input: Input) -> anyhow::Result<()> {
        self.machine.step(self.reactor.now(), input, &mut self.effects);
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Granted { conn, export, size, read_only } => {
                    self.nbd.resolved(conn, Ok(describe(export, size, read_only)));
                }
                Effect::Refused { conn, text, fenced } => {
                    let code = if fenced { REP_ERR_POLICY } else { REP_ERR_UNKNOWN };
                    self.nbd.resolved(conn, Err(Refusal { code, text }));
                }
                Effect::Reply { conn, cookie, result } => self.nbd.reply(conn, cookie, result),
                Effect::Close { conn, reason } => {
                    self.peers.told(conn);
                    self.nbd.abort(&mut self.reactor, conn, &reason);
                }
                Effect::Disk(op) => {
                    let file = if op.file == File::Table { self.table } else { self.superblock };
                    self.reactor.disk(file, op.ticket, op.kind);
                }
                Effect::Log { level, text } => log(level, &text),
                Effect::Fatal { text } => bail!("{text}; restart to reopen the files"),
                Effect::Stopped => self.stopped = true,
            }
        }
        Ok(())
    }

    fn control(&mut self) -> anyhow::Result<()> {
        while let Some((conn, line)) = self.controls.next(&mut self.reactor) {
            match line {
                Ok(line) => {
                    let answer = self.control_request(conn, &line)?;
                    self.controls.answer(&mut self.reactor, conn, answer.pieces());
                }
                Err(error) => {
                    let answer = Answer::failed(error.to_string());
                    self.controls.refuse(&mut self.reactor, conn, answer.pieces());
                }
            }
        }
        Ok(())
    }

    fn control_request(&mut self, conn: Conn, line: &[u8]) -> anyhow::Result<Answer> {
        Ok(match Request::asked(line, self.reactor.asker(conn)) {
            Ok(Request::Status) => Answer::status(&self.status()),
            Ok(Request::Stop) => {
                self.stop()?;
                Answer::done()
            }
            Ok(Request::Recopy { .. }) => {
                Answer::failed("this is the auxiliary; the recovery point is that of DR: ask there")
            }
            Ok(Request::Promote { .. } | Request::Loss) => {
                Answer::failed("this is the auxiliary; a promotion is asked of the DR host")
            }
            Ok(Request::Verify { .. }) => Answer::failed("this is the auxiliary; a comparison is asked of the primary"),
            Ok(Request::Resize { .. }) => Answer::failed("this is the auxiliary; a resize is asked of the primary"),
            Err(answer) => answer,
        })
    }

    fn status(&self) -> Status {
        let now = self.reactor.now();
        let mut status = self.machine.status(now);
        let crowded = self.nbd.crowded(now).into_iter();
        status.degraded.extend(crowded.map(|(text, since_ns)| Degraded::new(text, since_ns, now.wall_ns)));
        let certificate = self.acceptor.as_ref().and_then(Acceptor::validity).map(Into::into);
        CertificateStatus::fill(certificate, now.wall_ns, &mut status.certificate, &mut status.degraded);
        Status::Aux(Box::new(status))
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        tracing::info!("stopping");
        notify::stopping();
        self.reactor.stop_listening(self.listener);
        self.nbd.shut_down();
        self.step(Input::Stop)
    }

    /// Lets the last replies go out, for a bounded time.
    fn drain(&mut self, events: &mut Vec<Event>) -> anyhow::Result<()> {
        self.nbd.flush(&mut self.reactor, &mut self.asked);
        self.nbd.close_all(&mut self.reactor, "the auxiliary stops");
        self.controls.stop(&mut self.reactor, "the auxiliary stops");
        self.http.stop(&mut self.reactor);
        let until_ns = self.reactor.now().mono_ns + STOP_NS;
        while !(self.nbd.is_empty() && self.controls.is_empty()) && self.reactor.now().mono_ns < until_ns {
            self.reactor.turn(Some(until_ns), events).context("the ring failed")?;
            for event in events.drain(..) {
                self.nbd.on_event(&mut self.reactor, &event, &mut self.asked);
                self.controls.on_event(&mut self.reactor, &event);
            }
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Opens, locks and judges the superblock; writes it when it is new.
fn open_superblock(reactor: &mut Reactor, dir: &Path, group: &str) -> anyhow::Result<(FileId, Recovered)> {
    let options = OpenOptions {
        path: dir.join(SUPERBLOCK),
        create: true,
        size: Some(SUPERBLOCK_BYTES as u64),
        preallocate: Preallocate::Written,
        exclusive_lock: true,
        ..OpenOptions::default()
    };
    let file = reactor.open(&options)?;
    let slots = reactor.read_sync(file, 0, SUPERBLOCK_BYTES)?;
    let recovered = judged(dir, &slots, group)?;
    recovered.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    for (offset, block) in recovered.creation() {
        reactor.write_sync(file, offset, &block)?;
    }
    // The file's name has to survive a loss of power as its contents do: the epoch in force is in it (I7).
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("syncing {}", dir.display()))?;
    Ok((file, recovered))
}

/// Whether a start would take the directory as it is, or make it; opens nothing for writing, and makes nothing.
///
/// # Errors
/// What the start would say.
pub fn judge(dir: &Path, group: &str) -> anyhow::Result<()> {
    places(dir)?;
    let slots = Still::of(&dir.join(SUPERBLOCK), SUPERBLOCK_BYTES as u64)?.read_at(0, SUPERBLOCK_BYTES)?;
    judged(dir, &slots, group).map(|_| ())
}

fn judged(dir: &Path, slots: &[u8], group: &str) -> anyhow::Result<Recovered> {
    let (head, bytes) = table_head(&dir.join(TABLE))?;
    recover(slots, &head, group, Owner(random()?))
        .and_then(|recovered| check_length(&head, bytes).map(|()| recovered))
        .map_err(|error| Refused(error.to_string()))
        .with_context(|| dir.display().to_string())
}

/// Whether what stands under the names of its files can be used, before anything is opened or made.
fn places(dir: &Path) -> Result<(), IoFail> {
    places::judge_all(dir, names::opened(Role::Aux), &names::beside(Role::Aux))
}

/// The first block of the table, empty when there is none yet, and how long the file is.
fn table_head(path: &Path) -> anyhow::Result<(Vec<u8>, u64)> {
    use std::io::Read;

    let mut head = Vec::new();
    match to_read(path) {
        Ok(file) => file.metadata().and_then(|found| {
            file.take(BLOCK_BYTES as u64).read_to_end(&mut head)?;
            Ok((head, found.len()))
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok((head, 0)),
        Err(error) => Err(error),
    }
    .with_context(|| format!("reading {}", path.display()))
}

/// The region. Small overwrites go through the page cache: writers group theirs into one fdatasync.
fn open_table(reactor: &mut Reactor, path: &Path, bytes: u64) -> anyhow::Result<FileId> {
    let written = bytes <= WRITTEN_BYTES_MAX;
    let options = OpenOptions {
        path: path.to_owned(),
        create: true,
        size: Some(bytes),
        preallocate: if written { Preallocate::Written } else { Preallocate::Reserve },
        direct: Direct::Never,
        exclusive_lock: true,
        random: true,
        ..OpenOptions::default()
    };
    Ok(reactor.open(&options)?)
}

fn describe(name: String, size: u64, read_only: bool) -> Export {
    let description = if read_only { "status table, read-only view" } else { "status table" };
    Export {
        name,
        description: description.to_owned(),
        size,
        read_only,
        block_min: 1,
        block_preferred: BLOCK_BYTES as u32,
        block_max: PAYLOAD_BYTES_MAX,
        // One cache behind all of them; but a writer's second connection ends its first.
        multi_conn: read_only,
        trim: false,
        zeroes: false,
        fast_zero: false,
        cache: false,
        allocation: false,
        fua: true,
        flush: true,
    }
}

fn kind(kind: session::Kind) -> Kind {
    match kind {
        session::Kind::Read { offset, length } => Kind::Read { offset, length: u64::from(length) },
        session::Kind::Write { offset, data, fua } => Kind::Write { offset, data, fua },
        session::Kind::Flush => Kind::Flush,
        session::Kind::Trim { .. }
        | session::Kind::Zeroes { .. }
        | session::Kind::Cache { .. }
        | session::Kind::Status { .. } => {
            unreachable!("the session refuses what the export does not offer")
        }
    }
}

fn log(level: Level, text: &str) {
    match level {
        Level::Error => tracing::error!("{text}"),
        Level::Warn => tracing::warn!("{text}"),
        Level::Info => tracing::info!("{text}"),
        Level::Debug => tracing::debug!("{text}"),
    }
}

/// A number nobody else has.
fn random() -> anyhow::Result<u64> {
    use std::io::Read;

    let mut raw = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut raw))
        .context("reading /dev/urandom")?;
    Ok(u64::from_le_bytes(raw).max(1))
}

/// Up to here the table is written with zeroes when it is made, so that no durable write changes metadata.
const WRITTEN_BYTES_MAX: u64 = 64 << 20;
/// Most registered memory: group commits and, in `bunker`, payloads on their way to the disk.
const ARENA_BYTES: usize = 64 << 20;
/// How long a stop waits for clients to take their last replies.
const STOP_NS: u64 = 1_000_000_000;
