//! The primary as a process: one thread, one ring, the machine's effects carried out.
//!
//! Owns the directory (locked), the backing stores, the NBD listeners, the connections to the auxiliary and
//! to DR, and the control socket. What is decided is decided in `machine` and `recovery`. The same shell
//! serves a promoted DR, alone, as primary of the new epoch.

mod clients;
mod files;
mod links;
mod listing;
mod resize;
mod secure;
mod verify;

use std::collections::{HashMap, VecDeque};

use anyhow::{Context, bail};

use self::files::Opened;
pub use self::files::judge;
use self::links::DrConns;
use self::listing::Looking;
use self::resize::Resizing;
use self::secure::Security;
use self::verify::Verifying;
use super::machine::{Effect, Input, Machine, Options};
use super::recovery::{self, Recovered};
use super::verify::Asked as Compare;
use crate::cluster::config::{Config, OnIsolated, TablePlace};
use crate::cluster::control::{Answer, Refused, Request};
use crate::cluster::metrics;
use crate::cluster::status::{CertificateStatus, Degraded, Status};
use crate::core::address::Address;
use crate::core::ids::{Chain, Conn, Epoch, Extent, GroupId, Owner, Seq, Ticket, Volume};
use crate::core::machine::Level;
use crate::core::modes::{Awaited, Overflow};
use crate::core::peer::Role;
use crate::format::wire::Purpose;
use crate::io::control::Controls;
use crate::io::http::{Asked as Page, HttpServer};
use crate::io::{Event, Reactor, ReactorOptions, entropy, notify};
use crate::limits::{BACKING_KEPT_BYTES_MAX, BATCH_LOOK_BYTES, INTENT_NEIGHBOURS, REQUESTS_INFLIGHT_MAX};
use crate::nbd::backing::{Backings, StopError};
use crate::nbd::ended::Ended;
use crate::nbd::region::{Region, RegionEvent, TableTarget};
use crate::nbd::server::NbdServer;
use crate::nbd::session;
use crate::nbd::slots::Slots;

/// Registered memory beside the FIFO's: receive buffers, reads, staging.
const ARENA_EXTRA_BYTES: usize = 32 << 20;
/// Tickets of reads, which do not pass through the machine, have this bit.
const READ_TICKET: u64 = 1 << 63;
/// That of a look at what has storage.
const LISTING_TICKET: Ticket = Ticket(u64::MAX);
const HOLES_TICKET: Ticket = Ticket(u64::MAX - 1);
/// How long last replies may take at a stop or at the end of a role, nanoseconds.
const STOP_NS: u64 = 2_000_000_000;
/// How often is looked, at a stop, for who has taken them, nanoseconds.
const STOP_LOOK_NS: u64 = 10_000_000;
/// How long local writes and the spilling of the FIFO may take at a stop, nanoseconds.
const DRAIN_NS: u64 = 60_000_000_000;

/// A DR that has been promoted and goes on as primary of the new epoch.
pub struct Promotion {
    pub reactor: Reactor,
    pub group: GroupId,
    pub owner: Owner,
    pub epoch: Epoch,
    pub tail: Seq,
    pub chain: Chain,
    /// The control socket in `reactor`, and its connections, which stay.
    pub controls: Controls,
    pub http: HttpServer,
    /// The replication listener: whoever comes with an older epoch is told that it is fenced (I7).
    pub replication: Option<usize>,
    /// What is sent, and to whom, as soon as the volumes are served.
    pub replies: Vec<(Conn, Answer)>,
    /// What `loss` answers, and `promote`, which has been done.
    pub loss: Answer,
    /// The loss report is missing; in words.
    pub loss_missing: Option<String>,
    /// The volumes on NBD servers, connected.
    pub backings: Backings,
    /// Name and size in bytes of each volume, as of where the promotion has come to.
    pub volumes: Vec<(String, u64)>,
}

/// Runs the primary of a group until it is told to stop.
///
/// # Errors
/// What kept it from starting, or from going on.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let (primary, aux, dr) = config.need_primary()?;
    let span = tracing::info_span!("primary", group = %config.group.name);
    let _entered = span.enter();
    let table = match &aux.table {
        TablePlace::Own(address) => TableTarget::Own { address: address.clone(), group: config.group.name.clone() },
        TablePlace::Nbd(uri) => TableTarget::Nbd(uri.clone()),
        TablePlace::File(path) => {
            let bytes = crate::format::table::TableLayout::new(aux.slots, aux.payload).total_bytes();
            TableTarget::File { path: path.clone(), create: Some(bytes) }
        }
    };
    // Certificates first: what is wrong with them is known before anything is made.
    let security = Security::of_primary(config, &table)?;
    let arena_bytes = usize::try_from(primary.fifo.memory)? + ARENA_EXTRA_BYTES;
    let mut reactor =
        Reactor::new(ReactorOptions { arena_bytes, signals: true, spin: true, ..ReactorOptions::default() })
            .context("io_uring is needed, and the kernel does not give it")?;
    let volumes = configured(config);
    let setup = files::Setup {
        dir: &primary.dir,
        volumes: &volumes,
        promoted: None,
        backing: &primary.backing,
        role: Role::Primary,
        direct: primary.direct,
        fifo_disk_bytes: primary.fifo.disk,
        log_slots: aux.slots,
    };
    let mut opened = files::open(&mut reactor, Backings::new(BACKING_KEPT_BYTES_MAX), config, &setup)?;
    let expect = files::expect(config, &setup, &opened)?;
    let mut recovered = recovery::recover(&expect, &opened.views())
        .map_err(|error| Refused(error.to_string()))
        .with_context(|| format!("the directory {}", primary.dir.display()))?;
    opened.claim(&setup, &mut recovered.superblock)?;
    let options = Options {
        isolated_continue: config.group.on_isolated == OnIsolated::Continue,
        overflow: primary.overflow,
        lag_max: primary.lag_max,
        scrub: primary.scrub,
        fifo_memory_bytes: primary.fifo.memory,
        fifo_disk_bytes: opened.fifo_bytes,
        streams: dr.streams,
        table_slots: aux.slots,
        spool_bytes: dr.spool,
        table_payload_bytes: aux.payload,
        standalone: false,
        ..alone(config, &volumes)?
    };
    let mut shell = Shell::new(reactor, opened, recovered, options)?;
    (shell.table, shell.security) = (Some(table), security);
    shell.dr.configure(primary, dr);
    shell.listen(&primary.listen)?;
    shell.controls = Controls::start(&mut shell.reactor, &primary.control)
        .with_context(|| format!("listening on {}", primary.control.display()))?;
    let address = primary.metrics.as_ref();
    shell.http = HttpServer::start(&mut shell.reactor, address).context("listening on [primary] metrics")?;
    shell.verified_before(&primary.dir);
    shell.resize_as_configured(&volumes)?;
    shell.serve()
}

/// Goes on as primary of the epoch a promotion has begun. The answers to the promotion are sent once the
/// volumes can be reached.
///
/// # Errors
/// What kept it from serving, or from going on.
pub fn run_promoted(config: &Config, promotion: Promotion) -> anyhow::Result<()> {
    let (dr, _) = config.need_dr()?;
    let span = tracing::info_span!("primary", group = %config.group.name, epoch = promotion.epoch.0);
    let _entered = span.enter();
    let security = Security::of_promoted(config)?;
    let Promotion { mut reactor, group, owner, epoch, tail, chain, volumes, .. } = promotion;
    let setup = files::Setup {
        dir: &dr.dir,
        volumes: &volumes,
        promoted: Some(owner),
        backing: &dr.backing,
        role: Role::Dr,
        direct: dr.direct,
        fifo_disk_bytes: 0,
        log_slots: crate::limits::TABLE_SLOTS_MIN,
    };
    let mut opened = files::open(&mut reactor, promotion.backings, config, &setup)?;
    let expect = files::expect(config, &setup, &opened)?;
    let mut recovered = match recovery::recover(&expect, &opened.views()) {
        Ok(found) if found.superblock.epoch == epoch && found.superblock.group == group => found,
        Ok(_) => recovery::promoted(&expect, group, owner, epoch, tail, chain),
        Err(error) => {
            let refused = Err(Refused(error.to_string()));
            return refused.with_context(|| format!("the directory {}", dr.dir.display()));
        }
    };
    opened.claim(&setup, &mut recovered.superblock)?;
    let mut shell = Shell::new(reactor, opened, recovered, alone(config, &volumes)?)?;
    shell.controls = promotion.controls;
    shell.http = promotion.http;
    shell.replication = promotion.replication;
    shell.loss = Some(promotion.loss);
    shell.loss_missing = promotion.loss_missing;
    shell.security = security;
    shell.listen(&dr.export)?;
    for (conn, answer) in promotion.replies {
        shell.controls.answer(&mut shell.reactor, conn, answer.pieces());
    }
    // What they asked during the hand-over has been received, and will not be announced again.
    shell.control()?;
    shell.serve()
}

/// Name and size in bytes of each volume in the configuration.
fn configured(config: &Config) -> Vec<(String, u64)> {
    config.volumes.iter().map(|volume| (volume.name.clone(), volume.size)).collect()
}

/// The options of a primary without peers.
fn alone(config: &Config, volumes: &[(String, u64)]) -> anyhow::Result<Options> {
    Ok(Options {
        group_name: config.group.name.clone(),
        volumes: volumes.to_vec(),
        protect: config.group.protect,
        ack: config.group.ack,
        require: config.group.require,
        isolated_continue: true,
        freeze_timeout_ns: config.group.freeze_timeout_seconds.saturating_mul(1_000_000_000),
        overflow: Overflow::Coalesce,
        lag_max: None,
        fifo_memory_bytes: 0,
        fifo_disk_bytes: 0,
        streams: 1,
        table_slots: 0,
        spool_bytes: 0,
        table_payload_bytes: 0,
        standalone: true,
        intent_neighbours: INTENT_NEIGHBOURS,
        look_bytes: BATCH_LOOK_BYTES,
        asks: true,
        ask_room: true,
        scrub: None,
        incarnation: entropy::random()?,
    })
}

/// A request of a client that waits for its answer.
struct Asked {
    conn: Conn,
    cookie: u64,
    bytes: u64,
}

struct Shell {
    reactor: Reactor,
    machine: Machine,
    opened: Opened,
    group: String,
    nbd: NbdServer,
    ended: Ended,
    /// Which volume a connection has opened.
    exports: HashMap<Conn, Volume>,
    requests: Slots<Asked>,
    resizes: Vec<Resizing>,
    verifying: Verifying,
    asked: Vec<(Conn, session::Event)>,
    deferred: VecDeque<(Conn, session::Event)>,
    listeners: Vec<usize>,
    security: Security,
    table: Option<TableTarget>,
    region: Option<Region>,
    region_events: Vec<RegionEvent>,
    dr: DrConns,
    awaited: Awaited,
    controls: Controls,
    http: HttpServer,
    pages: Vec<Page>,
    replication: Option<usize>,
    /// Connections of the replication listener: they only hear that they are fenced.
    strangers: HashMap<Conn, ()>,
    /// Of a promoted site: what `loss` and `promote` are answered with; and the words for a report that is missing.
    loss: Option<Answer>,
    loss_missing: Option<String>,
    started_wall_ns: u64,
    effects: Vec<Effect>,
    completed: Vec<Event>,
    looking: Option<Looking>,
    /// Ranges of batches that are looked at for holes, in the order of the answers.
    holes_asked: VecDeque<(Seq, Extent)>,
    disk_inflight: u64,
    acknowledged: (u64, u64),
    stop_by_ns: Option<u64>,
    stopped: bool,
}

impl Shell {
    fn new(reactor: Reactor, opened: Opened, recovered: Recovered, options: Options) -> anyhow::Result<Shell> {
        recovered.notes.iter().for_each(|note| tracing::warn!("{note}"));
        for (place, offset, bytes) in &recovered.format {
            let file = match place {
                recovery::Place::Map => opened.map,
                recovery::Place::Log => opened.log,
            };
            reactor.write_sync(file, *offset, bytes)?;
        }
        let group = options.group_name.clone();
        let awaited = options.protect.awaited(options.ack);
        let mut effects = Vec::new();
        let now = reactor.now();
        let machine = Machine::new(options, recovered, now, &mut effects);
        let mut shell = Shell {
            reactor,
            machine,
            opened,
            group,
            nbd: NbdServer::new(),
            ended: Ended::default(),
            exports: HashMap::new(),
            requests: Slots::default(),
            resizes: Vec::new(),
            verifying: Verifying::default(),
            asked: Vec::new(),
            deferred: VecDeque::new(),
            listeners: Vec::new(),
            security: Security::default(),
            table: None,
            region: None,
            region_events: Vec::new(),
            dr: DrConns::default(),
            awaited,
            controls: Controls::default(),
            http: HttpServer::default(),
            pages: Vec::new(),
            replication: None,
            strangers: HashMap::new(),
            loss: None,
            loss_missing: None,
            started_wall_ns: now.wall_ns,
            effects,
            completed: Vec::new(),
            looking: None,
            holes_asked: VecDeque::new(),
            disk_inflight: 0,
            acknowledged: (0, 0),
            stop_by_ns: None,
            stopped: false,
        };
        // Connections are made by ticks, so these effects are of the disk only; targets are set afterwards.
        shell.settle_disk()?;
        Ok(shell)
    }

    /// Carries out what the machine wants before anything else is set up.
    fn settle_disk(&mut self) -> anyhow::Result<()> {
        let deferred = self.carry_out_disk()?;
        self.effects = deferred;
        Ok(())
    }

    fn carry_out_disk(&mut self) -> anyhow::Result<Vec<Effect>> {
        let mut deferred = Vec::new();
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Disk(_) | Effect::Log { .. } | Effect::Fatal { .. } => self.carry_out(effect)?,
                other => deferred.push(other),
            }
        }
        Ok(deferred)
    }

    fn listen(&mut self, addresses: &[Address]) -> anyhow::Result<()> {
        for address in addresses {
            let listener = self.reactor.listen(address).with_context(|| format!("listening on {address}"))?;
            self.security.listening(listener, address);
            self.listeners.push(listener);
            tracing::info!("serving {} volumes by NBD on {address}", self.machine.volumes().len());
        }
        Ok(())
    }

    fn serve(mut self) -> anyhow::Result<()> {
        tracing::info!("primary of epoch {}, last seq {}", self.machine.epoch(), self.machine.tail());
        notify::ready("serving");
        let mut events = Vec::new();
        self.apply()?;
        while !self.stopped || self.disk_inflight > 0 {
            let deadlines = [
                self.machine.deadline_ns(),
                self.nbd.deadline_ns(),
                self.region.as_ref().and_then(Region::deadline_ns),
                self.opened.backings.deadline_ns(),
                self.stop_by_ns,
                self.resize_due_ns(),
            ];
            self.reactor.turn(deadlines.into_iter().flatten().min(), &mut events).context("the ring failed")?;
            for event in events.drain(..) {
                self.on_event(event)?;
            }
            self.dr.pace(&mut self.reactor);
            self.dr.look_after_paths(&mut self.reactor, self.security.dr.as_ref());
            self.nbd.tick(&mut self.reactor);
            self.opened.backings.tick(&mut self.reactor);
            self.look_for_room()?;
            if let Some(region) = &mut self.region {
                region.tick(&mut self.reactor, &mut self.region_events);
            }
            self.region_said()?;
            self.answer()?;
            // What was acknowledged is told while the lease lasts, and waits in its connection beyond (I7).
            self.reactor.lease(self.machine.lease()).context("a timer for the lease is needed")?;
            if self.stop_by_ns.is_some() {
                self.opened.backings.stop_waits(self.reactor.now())?;
            }
            if self.stop_by_ns.is_some_and(|by| self.reactor.now().mono_ns > by) {
                tracing::warn!("stopping without waiting any longer; the restart recovers what is open");
                break;
            }
        }
        self.drain(&mut events)
    }

    /// Asks the machine what clients asked, ends the turn, and sends what is answered, until all is said.
    fn answer(&mut self) -> anyhow::Result<()> {
        loop {
            self.deferred.extend(self.asked.drain(..));
            // Beyond the bound they wait here; their connections stop being read at a bound of their own (I9).
            while self.requests.len() < REQUESTS_INFLIGHT_MAX
                && let Some((conn, event)) = self.deferred.pop_front()
            {
                self.on_asked(conn, event)?;
            }
            self.step(Input::EndOfTurn)?;
            self.reactor.completed(&mut self.completed);
            self.opened.backings.completed(&mut self.completed);
            let more = !self.completed.is_empty();
            for event in std::mem::take(&mut self.completed) {
                self.on_event(event)?;
            }
            self.dr.flush(&mut self.reactor);
            self.nbd.flush(&mut self.reactor, &mut self.asked);
            if self.asked.is_empty() && !more {
                return Ok(());
            }
        }
    }

    fn on_event(&mut self, event: Event) -> anyhow::Result<()> {
        if self.opened.backings.on_event(&mut self.reactor, &event) {
            return self.backed();
        }
        let event = match event {
            Event::Disk { ticket, result, .. } if ticket.0 & READ_TICKET != 0 => {
                self.read_done(ticket, result);
                return Ok(());
            }
            Event::Extents { ticket: LISTING_TICKET, result } => return self.listed(result),
            Event::Extents { ticket: HOLES_TICKET, result } => return self.holes_found(result),
            Event::Extents { ticket, result } => {
                self.status_done(ticket, result);
                return Ok(());
            }
            other => other,
        };
        if let Event::Closed { conn, reason } = &event
            && let Some(text) = self.ended.closed(self.reactor.now().mono_ns, *conn, reason)
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
        if let Some(region) = &mut self.region
            && region.on_event(&mut self.reactor, &event, &mut self.region_events)
        {
            return self.region_said();
        }
        if self.controls.on_event(&mut self.reactor, &event) {
            return self.control();
        }
        match event {
            // A region in a file that was let go of: nobody waits for it any more.
            Event::Disk { file, .. } if !self.opened.owns(file) => Ok(()),
            Event::Disk { ticket, result, .. } => {
                self.disk_inflight -= 1;
                self.step(Input::Disk { ticket, result })
            }
            Event::Accepted { listener, conn, peer } => {
                self.accepted(listener, conn, peer);
                Ok(())
            }
            Event::Received { conn } if self.strangers.contains_key(&conn) => {
                self.stranger(conn);
                Ok(())
            }
            Event::Connected { conn } => match self.dr.established(&mut self.reactor, conn) {
                Some(conn) => self.step(Input::DrUp { conn }),
                None => Ok(()),
            },
            Event::Received { conn } => self.dr_received(conn),
            Event::Closed { conn, reason } => {
                self.strangers.remove(&conn);
                match self.dr.closed(&self.reactor, conn) {
                    Some(conn) => self.step(Input::DrClosed { conn, reason }),
                    None => Ok(()),
                }
            }
            Event::Stop => self.stop(),
            Event::Sent { conn } => match self.dr.sent(&mut self.reactor, conn) {
                Some((conn, left)) => self.step(Input::DrTaken { conn, left }),
                None => Ok(()),
            },
            Event::Worked { ticket, bytes } => {
                self.dr.packed(&mut self.reactor, ticket, bytes);
                Ok(())
            }
            Event::Secured { .. } | Event::Extents { .. } => Ok(()),
        }
    }

    /// What the servers of volumes have completed.
    fn backed(&mut self) -> anyhow::Result<()> {
        self.opened.backings.sound()?;
        let mut events = Vec::new();
        self.opened.backings.completed(&mut events);
        for event in events {
            self.on_event(event)?;
        }
        Ok(())
    }

    fn accepted(&mut self, listener: usize, conn: Conn, peer: String) {
        if Some(listener) == self.replication {
            self.strangers.insert(conn, ());
        } else {
            let (mode, acceptor) = self.security.of_client(listener);
            self.nbd.add_with(&mut self.reactor, conn, &peer, mode, acceptor);
            self.ended.add(conn, peer);
        }
    }

    fn step(&mut self, input: Input) -> anyhow::Result<()> {
        self.machine.step(self.reactor.now(), input, &mut self.effects);
        self.apply()
    }

    fn apply(&mut self) -> anyhow::Result<()> {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            self.carry_out(effect)?;
        }
        if self.effects.is_empty() {
            self.effects = effects;
        }
        Ok(())
    }

    fn carry_out(&mut self, effect: Effect) -> anyhow::Result<()> {
        match effect {
            Effect::Reply { req, result } => self.reply(req, result),
            Effect::Disk(op) => {
                self.disk_inflight += 1;
                let file = self.opened.file(op.file);
                self.opened.backings.disk(&mut self.reactor, file, op.ticket, op.kind);
            }
            Effect::AuxOpen { epoch, owner } => {
                if let Some(old) = self.region.take() {
                    old.close(&mut self.reactor);
                }
                if let Some(target) = &self.table {
                    let region = Region::open(&mut self.reactor, target, self.security.table.as_ref(), epoch, owner);
                    region.bulk(&mut self.reactor, !self.awaited.aux);
                    self.region = Some(region);
                }
            }
            Effect::AuxRead { ticket, offset, length } => {
                if let Some(region) = &mut self.region {
                    region.read(&mut self.reactor, ticket, offset, length);
                }
            }
            Effect::AuxWrite { ticket, offset, parts, fua } => {
                if let Some(region) = &mut self.region {
                    region.write(&mut self.reactor, ticket, offset, parts, fua);
                }
            }
            Effect::AuxClose => {
                if let Some(region) = self.region.take() {
                    region.close(&mut self.reactor);
                }
            }
            Effect::DrConnect { conn, records } => {
                let purpose = if records { Purpose::Order } else { Purpose::Stream };
                self.dr.connect(&mut self.reactor, conn, purpose, self.security.dr.as_ref());
                self.dr.bulk(&mut self.reactor, conn, !(records && self.awaited.journal));
            }
            Effect::DrSend { conn, message } => self.dr.send(&mut self.reactor, conn, &message),
            Effect::DrClose { conn, end } => self.dr.close(&mut self.reactor, conn, end),
            Effect::ListAllocated => self.list(),
            Effect::LookForHoles { batch, extent } => self.look_for_holes(batch, extent),
            Effect::Resized { volume, size, result, dr_asked } => self.resized((volume, size), result, dr_asked),
            Effect::Verified { result } => self.verified(&result)?,
            Effect::Log { level, text } => log(level, &text),
            Effect::Fatal { text, marks } => {
                for (offset, block) in marks {
                    if let Err(error) = self.reactor.write_sync(self.opened.superblock, offset, &block) {
                        tracing::error!("the next start is not told of this failure: {error}");
                    }
                }
                self.last_answers("the primary ends: its disk failed");
                bail!("{text}")
            }
            Effect::Stopped => self.stopped = true,
        }
        Ok(())
    }

    // ---- peers -------------------------------------------------------------------------------

    fn region_said(&mut self) -> anyhow::Result<()> {
        for event in std::mem::take(&mut self.region_events) {
            let input = match event {
                RegionEvent::Opened { size, fencing } => Input::AuxOpened { size, fencing },
                RegionEvent::Failed { text, fenced } => Input::AuxFailed { reason: text, fenced },
                RegionEvent::Done { ticket, result } => Input::AuxDone { ticket, result },
                RegionEvent::Closed { reason } => Input::AuxClosed { reason },
            };
            self.step(input)?;
        }
        Ok(())
    }

    fn dr_received(&mut self, conn: Conn) -> anyhow::Result<()> {
        loop {
            match self.dr.next(&mut self.reactor, conn) {
                Ok(Some((conn, message))) => self.step(Input::DrMessage { conn, message })?,
                Ok(None) => return Ok(()),
                Err(error) => {
                    tracing::error!("DR sent what is not a message of the link: {error}");
                    self.reactor.abort(conn, &format!("not a message of the link: {error}"));
                    return Ok(());
                }
            }
        }
    }

    /// Whoever replicates to a promoted DR is told that its epoch is over (I7).
    fn stranger(&mut self, conn: Conn) {
        let epoch = self.machine.epoch();
        let text = format!("this DR was promoted: epoch {epoch} is in force and serves the group from here");
        for part in links::refusal(epoch, text) {
            self.reactor.send(conn, part);
        }
        self.strangers.remove(&conn);
        self.reactor.close(conn, "fenced");
    }

    // ---- control -----------------------------------------------------------------------------

    fn control(&mut self) -> anyhow::Result<()> {
        while let Some((conn, line)) = self.controls.next(&mut self.reactor) {
            match line {
                Ok(line) => {
                    if let Some(answer) = self.control_request(conn, &line)? {
                        self.controls.answer(&mut self.reactor, conn, answer.pieces());
                    }
                }
                Err(error) => {
                    let answer = Answer::failed(error.to_string());
                    self.controls.refuse(&mut self.reactor, conn, answer.pieces());
                }
            }
        }
        Ok(())
    }

    /// The answer to a request; `None` when it comes later.
    fn control_request(&mut self, conn: Conn, line: &[u8]) -> anyhow::Result<Option<Answer>> {
        Ok(Some(match Request::asked(line, self.reactor.asker(conn)) {
            Ok(Request::Status) => Answer::status(&self.status()),
            Ok(Request::Stop) => {
                self.stop()?;
                Answer::done()
            }
            Ok(Request::Promote { .. }) => self
                .loss
                .clone()
                .unwrap_or_else(|| Answer::failed("this is the primary; a promotion is asked of the DR host")),
            Ok(Request::Recopy { .. }) if self.loss.is_some() => {
                Answer::refused("this site was promoted: its volumes are in use")
            }
            Ok(Request::Recopy { .. }) => Answer::failed("this is the primary; the recovery point is DR's: ask there"),
            Ok(Request::Loss) => self
                .loss
                .clone()
                .unwrap_or_else(|| Answer::failed("this is the primary: no promotion has taken place here")),
            Ok(Request::Resize { volume, size }) => return self.resize_asked(Some(conn), &volume, size),
            Ok(Request::Verify { stop: true, .. }) => self.verify_stopped()?,
            Ok(Request::Verify { repair, rate, .. }) => return self.verify_asked(conn, Compare { repair, rate }),
            Err(answer) => answer,
        }))
    }

    fn status(&self) -> Status {
        let now = self.reactor.now();
        let mut status = self.machine.status(now);
        for (index, volume) in status.volumes.iter_mut().enumerate() {
            volume.clients = self.exports.values().filter(|on| usize::from(on.0) == index).count() as u64;
        }
        (status.acknowledged_writes, status.acknowledged_bytes) = self.acknowledged;
        status.listing = self.looking.as_ref().map(Looking::status);
        let lacking = self.opened.backings.degraded(now).into_iter().chain(self.nbd.crowded(now));
        status.degraded.extend(lacking.map(|(text, since_ns)| Degraded::new(text, since_ns, now.wall_ns)));
        for text in self.loss_missing.iter().chain(&self.opened.notes) {
            status.degraded.push(Degraded::new(text.clone(), self.started_wall_ns, now.wall_ns));
        }
        for link in &mut status.links {
            match (link.peer.as_str(), &self.table) {
                ("aux", Some(TableTarget::Own { address, .. })) => link.address = address.to_string(),
                ("aux", other) => link.address = other.as_ref().map(ToString::to_string).unwrap_or_default(),
                _ => self.dr.describe(link, now.wall_ns),
            }
        }
        let certificate = self.security.validity().map(Into::into);
        CertificateStatus::fill(certificate, now.wall_ns, &mut status.certificate, &mut status.degraded);
        Status::Primary(Box::new(status))
    }

    // ---- stopping ----------------------------------------------------------------------------

    fn stop(&mut self) -> anyhow::Result<()> {
        if self.stop_by_ns.is_some() {
            bail!(StopError::Twice);
        }
        tracing::info!("stopping");
        notify::stopping();
        for listener in std::mem::take(&mut self.listeners) {
            self.reactor.stop_listening(listener);
        }
        self.nbd.shut_down();
        self.give_up_resizes();
        self.stop_by_ns = Some(self.reactor.now().mono_ns + DRAIN_NS);
        self.step(Input::Stop)
    }

    /// Sends clients what they are answered already, the error that ends the role among it, for a bounded time. Whatever
    /// else happens meanwhile is left to the next start.
    fn last_answers(&mut self, why: &str) {
        self.nbd.flush(&mut self.reactor, &mut self.asked);
        self.nbd.close_all(&mut self.reactor, why);
        let until_ns = self.reactor.now().mono_ns + STOP_NS;
        let mut events = Vec::new();
        while !self.nbd.is_empty() && self.reactor.now().mono_ns < until_ns {
            self.reactor.hurry();
            let look_ns = until_ns.min(self.reactor.now().mono_ns + STOP_LOOK_NS);
            // Nothing more can be said where the ring fails, and why the role ends is known.
            if self.reactor.turn(Some(look_ns), &mut events).is_err() {
                return;
            }
            for event in events.drain(..) {
                self.nbd.on_event(&mut self.reactor, &event, &mut self.asked);
            }
        }
    }

    /// Lets the last replies go out, for a bounded time.
    fn drain(&mut self, events: &mut Vec<Event>) -> anyhow::Result<()> {
        self.nbd.flush(&mut self.reactor, &mut self.asked);
        self.nbd.close_all(&mut self.reactor, "the primary stops");
        self.controls.stop(&mut self.reactor, "the primary stops");
        self.http.stop(&mut self.reactor);
        self.opened.backings.close(&mut self.reactor);
        let until_ns = self.reactor.now().mono_ns + STOP_NS;
        let over = |it: &Shell| it.nbd.is_empty() && it.controls.is_empty() && it.opened.backings.is_closed();
        while !over(self) && self.reactor.now().mono_ns < until_ns {
            // Who has its replies need not end its side; only who has not is waited for.
            self.reactor.hurry();
            let look_ns = until_ns.min(self.reactor.now().mono_ns + STOP_LOOK_NS);
            self.reactor.turn(Some(look_ns), events).context("the ring failed")?;
            for event in events.drain(..) {
                self.opened.backings.on_event(&mut self.reactor, &event);
                self.nbd.on_event(&mut self.reactor, &event, &mut self.asked);
                self.controls.on_event(&mut self.reactor, &event);
            }
        }
        if self.stopped {
            self.opened.leave();
        }
        tracing::info!("stopped");
        Ok(())
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
