//! The DR site as a process: one thread, one ring, the machine's effects carried out.
//!
//! ```text
//!   run ──► files: lock, recover ──► listen ──► turn, step, carry out, turn, … ──► Stopped
//!                                                                            └──► Promoted
//! ```
//!
//! Owns the directory (locked), the volumes, the replication listener and its connections, the connection
//! to the status table during a promotion, and the control socket. What is decided is decided in `machine`
//! and `recovery`; here is only carried out, in the order it was emitted. A promotion ends this shell: what
//! it leaves goes on as the primary of the new epoch.
//!
//! Invariants: I6 - a restart at any moment goes through recovery and nothing else; I8 - a connection that
//! says what is no message is ended, and nothing of what follows on it is looked at; I9 - streams are not
//! received from while too much of what they brought is on its way to the disk.

mod files;
mod links;

use std::collections::HashMap;

use anyhow::{Context, bail};

use self::files::Files;
pub use self::files::{judge, to_apply};
use self::links::Links;
use super::machine::{Effect, Input, Machine, PromoteError};
use super::promote::LossReport;
use crate::cluster::config::{Config, TablePlace};
use crate::cluster::control::{Answer, Request};
use crate::cluster::metrics;
use crate::cluster::size::human_size;
use crate::cluster::status::{CertificateStatus, Degraded, GivenUp, PromoteReport, Status};
use crate::core::address::Address;
use crate::core::ids::{Chain, Conn, Epoch, GroupId, Owner, Seq, Ticket};
use crate::core::machine::{DiskKind, DiskResult, IoFail, Level, Machine as _};
use crate::core::peer::Role;
use crate::io::control::Controls;
use crate::io::http::{Asked as Page, HttpServer};
use crate::io::tls::{Acceptor, Clients, Connector, Versions};
use crate::io::{Event, Reactor, ReactorOptions, clock, notify};
use crate::limits::{DR_WRITE_OVERHEAD_BYTES, DR_WRITING_BYTES_HIGH, DR_WRITING_BYTES_LOW};
use crate::nbd::backing::{Backings, StopError};
use crate::nbd::region::{Region, RegionEvent, TableTarget};

/// Most registered memory: what streams bring, until it is in the spool and applied.
const ARENA_BYTES: usize = 64 << 20;
/// How long last answers may take at the end, nanoseconds.
const STOP_NS: u64 = 1_000_000_000;

/// How a DR site ended.
pub enum Outcome {
    /// It was told to stop, and everything is settled.
    Stopped,
    /// It is to be the primary of a new epoch.
    Promoted(Box<Promoted>),
}

/// What a promotion leaves to the primary of the new epoch: files are closed, connections of older epochs too.
pub struct Promoted {
    pub reactor: Reactor,
    pub group: GroupId,
    pub owner: Owner,
    pub epoch: Epoch,
    pub tail: Seq,
    pub chain: Chain,
    /// The control socket in `reactor`: its connections, with what they have said of a line and are still being told.
    pub controls: Controls,
    /// Metrics, for the same address.
    pub http: HttpServer,
    /// The replication listener: whoever comes with an older epoch is to be told that it is fenced (I7).
    pub replication: usize,
    /// What is to be sent, and to whom, as soon as the volumes are served.
    pub replies: Vec<(Conn, Answer)>,
    /// What a request for the loss report, or to promote again, is answered with.
    pub loss: Answer,
    /// The report is missing; in words.
    pub loss_missing: Option<String>,
    /// The volumes that stand on NBD servers, connected.
    pub backings: Backings,
    /// Name and size in bytes of each volume, as of the recovery point.
    pub volumes: Vec<(String, u64)>,
}

/// What the page cache has done at once is followed by the next for so long; then orders have their turn: a large batch that is
/// applied would hold up their acknowledgements.
const AT_ONCE_NS: u64 = 2_000_000;

/// Runs the DR site of a group until it is told to stop or is promoted.
///
/// # Errors
/// What kept it from starting, or from going on.
pub fn run(config: &Config) -> anyhow::Result<Outcome> {
    let span = tracing::info_span!("dr", group = %config.group.name);
    let _entered = span.enter();
    // Where replies wait for the journal, the time to wake up would be theirs.
    let spin = config.group.protect.awaited(config.group.ack).journal;
    let options = ReactorOptions { arena_bytes: ARENA_BYTES, signals: true, spin, ..ReactorOptions::default() };
    let reactor = Reactor::new(options).context("io_uring is needed, and the kernel does not give it")?;
    Shell::start(reactor, config)?.serve()
}

/// The machine and what it acts on.
pub struct Shell {
    reactor: Reactor,
    machine: Machine,
    files: Files,
    links: Links,
    listener: usize,
    /// With it the primary has to become secure.
    acceptor: Option<Acceptor>,
    controls: Controls,
    http: HttpServer,
    pages: Vec<Page>,
    table: TableTarget,
    table_tls: Option<Connector>,
    region: Option<Region>,
    /// Whether the region may be used: between its `Opened` and its end.
    region_open: bool,
    region_events: Vec<RegionEvent>,
    effects: Vec<Effect>,
    /// Inputs that came of carrying out effects; taken before anything else.
    inputs: Vec<Input>,
    /// Operations in flight, with the bytes that they write.
    disk: HashMap<Ticket, u64>,
    writing_bytes: u64,
    next_promotion: u64,
    /// Who asked for a promotion or a plan.
    asked: HashMap<Ticket, Asked>,
    /// Who gives up the recovery point.
    recopies: HashMap<Ticket, Conn>,
    report: Option<LossReport>,
    /// Answers that are sent when the volumes are served.
    replies: Vec<(Conn, Answer)>,
    serve: Option<(Epoch, Seq, Chain)>,
    stopped: bool,
    stopping: bool,
}

struct Asked {
    /// The first of them began it, the others asked for the same meanwhile.
    conns: Vec<Conn>,
    plan: bool,
    force: bool,
}

/// What somebody is told who asks DR for a resize.
const NO_RESIZE: &str = "this is DR, and resize is a verb of the primary: ask on the primary's host, DR gets it with the order; \
                         once this site is promoted it is the one to ask";

impl Shell {
    /// Locks the directory, recovers it, and listens.
    ///
    /// # Errors
    /// What is wrong with the directory, its files or the addresses.
    pub fn start(mut reactor: Reactor, config: &Config) -> anyhow::Result<Shell> {
        let (dr, aux) = config.need_dr()?;
        let table = match &aux.table {
            TablePlace::Own(address) => TableTarget::Own { address: address.clone(), group: config.group.name.clone() },
            TablePlace::Nbd(uri) => TableTarget::Nbd(uri.clone()),
            TablePlace::File(path) => TableTarget::File { path: path.clone(), create: None },
        };
        // Certificates first: what is wrong with them is known before anything is made.
        let (own, certificates) = (config.name(Role::Dr), config.certificates(Role::Dr));
        let table_tls = Region::connector(&table, certificates.as_ref(), &own)?;
        let primary = Clients::Named(vec![config.name(Role::Primary)]);
        let accept = |paths| Acceptor::new(paths, Some(&own), primary, Versions::Newest);
        let acceptor = certificates.as_ref().map(accept).transpose()?;
        // Not needed before a promotion, when it would be late to find that they cannot be used.
        config.shared_keys(Role::Dr).map(|file| Acceptor::with_keys(&file)).transpose()?;
        let (files, recovered, options) = files::open(&mut reactor, config)?;
        let report = files.report.clone();
        let machine = Machine::new(recovered, options);
        let listener = reactor
            .listen_with(&dr.listen, acceptor.as_ref())
            .with_context(|| format!("listening on {}", dr.listen))?;
        let controls = Controls::start(&mut reactor, &dr.control)
            .with_context(|| format!("listening on {}", dr.control.display()))?;
        let http = HttpServer::start(&mut reactor, dr.metrics.as_ref()).context("listening on [dr] metrics")?;
        let address = reactor.listen_address(listener).unwrap_or(&dr.listen);
        tracing::info!("replication arrives on {address}");
        Ok(Shell {
            reactor,
            machine,
            files,
            links: Links::default(),
            listener,
            acceptor,
            controls,
            http,
            pages: Vec::new(),
            table,
            table_tls,
            region: None,
            region_open: false,
            region_events: Vec::new(),
            effects: Vec::new(),
            inputs: Vec::new(),
            disk: HashMap::new(),
            writing_bytes: 0,
            next_promotion: 1,
            asked: HashMap::new(),
            recopies: HashMap::new(),
            report,
            replies: Vec::new(),
            serve: None,
            stopped: false,
            stopping: false,
        })
    }

    /// Serves until a stop or a promotion, and everything is settled.
    ///
    /// # Errors
    /// A failed operation, after which only a restart can be trusted; a failed ring.
    pub fn serve(mut self) -> anyhow::Result<Outcome> {
        notify::ready("waiting for the primary");
        let mut events = Vec::new();
        self.step(Input::Tick)?;
        while !self.stopped && self.serve.is_none() {
            let deadlines = [
                self.machine.deadline_ns(),
                self.region.as_ref().and_then(Region::deadline_ns),
                self.files.backings.deadline_ns(),
            ];
            self.links.flush(&mut self.reactor);
            let due_ns = if events.is_empty() { deadlines.into_iter().flatten().min() } else { Some(0) };
            self.reactor.turn(due_ns, &mut events).context("the ring failed")?;
            self.files.backings.tick(&mut self.reactor);
            self.files.backings.completed(&mut events);
            let until_ns = clock::mono_ns() + AT_ONCE_NS;
            while !events.is_empty() {
                for event in events.drain(..) {
                    self.on_event(event)?;
                }
                self.step(Input::EndOfTurn)?;
                self.reactor.completed(&mut events);
                self.files.backings.completed(&mut events);
                if clock::mono_ns() >= until_ns {
                    break;
                }
            }
            if self.stopping {
                self.files.backings.stop_waits(self.reactor.now())?;
            }
            if let Some(region) = &mut self.region {
                region.tick(&mut self.reactor, &mut self.region_events);
            }
            self.region_said()?;
            if self.machine.deadline_ns().is_some_and(|due| due <= self.reactor.now().mono_ns) {
                self.step(Input::Tick)?;
            }
        }
        self.links.flush(&mut self.reactor);
        self.settle(&mut events)?;
        match self.serve {
            Some((epoch, tail, chain)) => Ok(Outcome::Promoted(Box::new(self.hand_over(epoch, tail, chain)))),
            None => self.stop_cleanly(&mut events),
        }
    }

    /// Where the primary connects.
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
        if self.files.backings.on_event(&mut self.reactor, &event) {
            return Ok(self.files.backings.sound()?);
        }
        if let Some(region) = &mut self.region
            && region.on_event(&mut self.reactor, &event, &mut self.region_events)
        {
            return self.region_said();
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
                tracing::debug!("connection {conn} from {peer}");
                self.links.add(conn, peer);
                self.step(Input::Opened { conn })
            }
            Event::Received { conn } if self.links.is_open(conn) => self.received(conn),
            Event::Closed { conn, reason } => match self.links.closed(conn) {
                Some(peer) => {
                    tracing::debug!("connection {conn} from {peer} ended: {reason}");
                    self.step(Input::Closed { conn })
                }
                None => Ok(()),
            },
            Event::Disk { ticket, result, .. } => self.disk_done(ticket, result),
            Event::Stop => self.stop(),
            Event::Received { .. } | Event::Connected { .. } | Event::Secured { .. } => Ok(()),
            Event::Sent { .. } | Event::Extents { .. } | Event::Worked { .. } => Ok(()),
        }
    }

    /// Gives the machine every whole message of a connection.
    fn received(&mut self, conn: Conn) -> anyhow::Result<()> {
        loop {
            match self.links.next(&mut self.reactor, conn) {
                Ok(Some(message)) => {
                    self.links.measure(&mut self.reactor, conn, &message);
                    self.step(Input::Message { conn, message })?;
                }
                Ok(None) => return Ok(()),
                Err(error) => {
                    let peer = self.links.peer(conn);
                    tracing::error!("{peer} sent what is not a message of the link: {error}");
                    self.links.give_up(&mut self.reactor, conn, &format!("not a message of the link: {error}"));
                    return Ok(());
                }
            }
        }
    }

    fn step(&mut self, input: Input) -> anyhow::Result<()> {
        let mut next = Some(input);
        while let Some(input) = next {
            self.machine.step(self.reactor.now(), input, &mut self.effects);
            let mut effects = std::mem::take(&mut self.effects);
            for effect in effects.drain(..) {
                self.carry_out(effect)?;
            }
            self.effects = effects;
            next = if self.inputs.is_empty() { None } else { Some(self.inputs.remove(0)) };
        }
        Ok(())
    }

    fn carry_out(&mut self, effect: Effect) -> anyhow::Result<()> {
        match effect {
            Effect::Send { conn, message } => self.links.send(&mut self.reactor, conn, &message),
            Effect::Close { conn, reason } => self.links.close(&mut self.reactor, conn, &reason),
            Effect::Disk(op) => {
                let bytes = write_bytes(&op.kind);
                self.writing_bytes += bytes;
                let previous = self.disk.insert(op.ticket, bytes);
                assert!(previous.is_none(), "tickets are never used again");
                let file = self.files.id(op.file);
                self.files.backings.disk(&mut self.reactor, file, op.ticket, op.kind);
                self.hold_back();
            }
            Effect::Grow { volume, size } => {
                let result = self.files.enlarge(&mut self.reactor, volume, size);
                self.inputs.push(Input::Grown { volume, result });
            }
            Effect::GrowSpool { bytes } => {
                let result = self.files.extend_spool(&mut self.reactor, bytes);
                self.inputs.push(Input::SpoolGrown { result });
            }
            Effect::ShrinkSpool { bytes } => self.files.cut_spool(&mut self.reactor, bytes),
            Effect::AuxOpen { epoch, owner } => {
                self.close_region();
                self.region = Some(Region::open(&mut self.reactor, &self.table, self.table_tls.as_ref(), epoch, owner));
            }
            Effect::AuxRead { ticket, offset, length } => match &mut self.region {
                Some(region) if self.region_open => region.read(&mut self.reactor, ticket, offset, length),
                _ => self.inputs.push(region_gone(ticket)),
            },
            Effect::AuxWrite { ticket, offset, parts, fua } => match &mut self.region {
                Some(region) if self.region_open => region.write(&mut self.reactor, ticket, offset, parts, fua),
                _ => self.inputs.push(region_gone(ticket)),
            },
            Effect::AuxClose => self.close_region(),
            Effect::StoreReport { ticket, report } => {
                let result = self.files.store_report(&report);
                self.report = Some(report).filter(|_| result.is_ok()).or(self.report.take());
                self.inputs.push(Input::ReportStored { ticket, result });
            }
            Effect::PromoteDone { ticket, result } => self.promote_done(ticket, result),
            Effect::RecopyDone { ticket, result } => self.recopy_done(ticket, result),
            Effect::Serve { epoch, tail, chain } => self.serve = Some((epoch, tail, chain)),
            Effect::Log { level, text } => log(level, &text),
            Effect::Fatal { text } => bail!("{text}"),
            Effect::Stopped => self.stopped = true,
        }
        Ok(())
    }

    fn disk_done(&mut self, ticket: Ticket, result: DiskResult) -> anyhow::Result<()> {
        let Some(bytes) = self.disk.remove(&ticket) else { return Ok(()) };
        self.writing_bytes -= bytes;
        self.step(Input::Disk { ticket, result })?;
        self.hold_back();
        Ok(())
    }

    /// Stops receiving from streams, or goes on, by what is on its way to the disk (I9).
    fn hold_back(&mut self) {
        if self.writing_bytes > DR_WRITING_BYTES_HIGH {
            self.links.hold(&mut self.reactor, true);
        } else if self.writing_bytes < DR_WRITING_BYTES_LOW {
            self.links.hold(&mut self.reactor, false);
        }
    }

    fn region_said(&mut self) -> anyhow::Result<()> {
        for event in std::mem::take(&mut self.region_events) {
            let input = match event {
                RegionEvent::Opened { size, fencing } => {
                    self.region_open = true;
                    Input::AuxOpened { size, fencing }
                }
                RegionEvent::Done { ticket, result } => Input::AuxDone { ticket, result },
                RegionEvent::Failed { text, fenced } => {
                    self.close_region();
                    Input::AuxFailed { reason: text, fenced }
                }
                RegionEvent::Closed { reason } => {
                    self.close_region();
                    Input::AuxClosed { reason }
                }
            };
            self.step(input)?;
        }
        Ok(())
    }

    fn close_region(&mut self) {
        self.region_open = false;
        if let Some(region) = self.region.take() {
            region.close(&mut self.reactor);
        }
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
            Ok(Request::Promote { plan, force }) => {
                self.promote_asked(conn, plan, force)?;
                return Ok(None);
            }
            Ok(Request::Loss) => match self.files.report_damaged().filter(|_| self.report.is_none()) {
                Some(why) => Answer::failed(format!("the loss report is damaged, and there is no other: {why}")),
                None => loss_answer(self.report.as_ref()),
            },
            Ok(Request::Recopy { give_up }) => return self.recopy_asked(conn, give_up),
            Ok(Request::Resize { .. }) => Answer::refused(NO_RESIZE),
            Ok(Request::Verify { .. }) => {
                Answer::failed("this is DR: both sides are compared by the primary, ask on its host")
            }
            Ok(Request::Stop) => {
                self.stop()?;
                Answer::done()
            }
            Err(answer) => answer,
        }))
    }

    /// Begins a promotion or a plan. Who asks for a promotion while the same is under way waits for its answer.
    fn promote_asked(&mut self, conn: Conn, plan: bool, force: bool) -> anyhow::Result<()> {
        let mut under_way = self.asked.values_mut();
        if let Some(same) = under_way.find(|it| !plan && !it.plan && it.force == force) {
            same.conns.push(conn);
            return Ok(());
        }
        let ticket = Ticket(self.next_promotion);
        self.next_promotion += 1;
        self.asked.insert(ticket, Asked { conns: vec![conn], plan, force });
        self.step(Input::Promote { ticket, plan, force })
    }

    /// What giving up the recovery point costs; or does it, and answers when that is durable.
    fn recopy_asked(&mut self, conn: Conn, give_up: bool) -> anyhow::Result<Option<Answer>> {
        if let Some(text) = self.machine.keeps_point_because() {
            return Ok(Some(Answer::refused(text)));
        }
        if !give_up {
            let status = self.machine.status(self.reactor.now());
            let size = status.volumes.iter().map(|volume| volume.size_bytes).sum();
            return Ok(Some(Answer::refused(format!(
                "this gives up the recovery point, seq {}: what differs of {} is copied into the volumes, in place, and until that is \
                 complete nothing here can be promoted{}. Say --give-up-recovery-point if that is what you want",
                status.cut_seq,
                human_size(size),
                self.machine.point_is_worth()
            ))));
        }
        let ticket = Ticket(self.next_promotion);
        self.next_promotion += 1;
        self.recopies.insert(ticket, conn);
        self.step(Input::Recopy { ticket })?;
        Ok(None)
    }

    fn recopy_done(&mut self, ticket: Ticket, result: Result<Seq, String>) {
        let Some(conn) = self.recopies.remove(&ticket) else { return };
        let group = self.machine.status(self.reactor.now()).group;
        let answer = match result {
            Ok(cut_seq) => Answer::given_up(&GivenUp { group, cut_seq }),
            Err(text) => Answer::refused(text),
        };
        self.controls.answer(&mut self.reactor, conn, answer.pieces());
    }

    fn status(&self) -> Status {
        let now = self.reactor.now();
        let mut status = self.machine.status(now);
        let certificate = self.acceptor.as_ref().and_then(Acceptor::validity).map(Into::into);
        CertificateStatus::fill(certificate, now.wall_ns, &mut status.certificate, &mut status.degraded);
        let order = self.machine.order_conn();
        status.links.iter_mut().for_each(|link| self.links.describe(order, link));
        let lacking = self.files.backings.degraded(now).into_iter();
        status.degraded.extend(lacking.map(|(text, since_ns)| Degraded::new(text, since_ns, now.wall_ns)));
        let made = self.files.made.iter().filter(|_| !status.synced);
        let notes = self.files.notes.iter().chain(made).cloned();
        status.degraded.extend(notes.map(|text| Degraded::new(text, self.files.opened_ns, now.wall_ns)));
        status.waits_for = self.files.backings.waits_for(now);
        Status::Dr(Box::new(status))
    }

    /// A plan and a refusal are answered at once; a promotion when the volumes are served.
    fn promote_done(&mut self, ticket: Ticket, result: Result<PromoteReport, PromoteError>) {
        let Some(Asked { conns, plan, .. }) = self.asked.remove(&ticket) else { return };
        let done = result.is_ok() && !plan;
        let answer = match result {
            Ok(report) if plan => {
                let waits_for = self.files.backings.waits_for(self.reactor.now());
                Answer::promoted(&PromoteReport { waits_for, ..report })
            }
            Ok(report) => Answer::promoted(&report),
            Err(error) if error.refused_for_safety => Answer::refused(error.text),
            Err(error) => Answer::failed(error.text),
        };
        for conn in conns {
            if done {
                self.replies.push((conn, answer.clone()));
            } else {
                self.controls.answer(&mut self.reactor, conn, answer.clone().pieces());
            }
        }
    }

    // ---- the end -----------------------------------------------------------------------------

    fn stop(&mut self) -> anyhow::Result<()> {
        if std::mem::replace(&mut self.stopping, true) {
            bail!(StopError::Twice);
        }
        tracing::info!("stopping");
        notify::stopping();
        self.reactor.stop_listening(self.listener);
        self.step(Input::Stop)
    }

    /// Waits for the operations in flight; their results are of no more interest.
    fn settle(&mut self, events: &mut Vec<Event>) -> anyhow::Result<()> {
        while !self.disk.is_empty() {
            if self.stopping {
                self.files.backings.stop_waits(self.reactor.now())?;
            }
            let due = self.files.backings.deadline_ns();
            self.reactor.turn(due, events).context("the ring failed")?;
            self.files.backings.tick(&mut self.reactor);
            self.files.backings.completed(events);
            for event in events.drain(..) {
                if self.files.backings.on_event(&mut self.reactor, &event)
                    || self.controls.on_event(&mut self.reactor, &event)
                {
                    continue;
                }
                match event {
                    Event::Disk { ticket, .. } => drop(self.disk.remove(&ticket)),
                    Event::Closed { conn, .. } => drop(self.links.closed(conn)),
                    Event::Accepted { conn, .. } => self.reactor.abort(conn, "not taken any more"),
                    Event::Stop if self.stopping => bail!(StopError::Twice),
                    Event::Stop => self.stopping = true,
                    _ => {}
                }
            }
        }
        if self.stopping && self.serve.is_some() {
            // It came in the middle of the hand-over: the primary that goes on stops.
            self.reactor.stopper().stop();
        }
        self.close_region();
        Ok(())
    }

    fn hand_over(self, epoch: Epoch, tail: Seq, chain: Chain) -> Promoted {
        let volumes = self.machine.volumes();
        let Shell { mut reactor, mut links, files, report, controls, http, listener, mut replies, asked, .. } = self;
        // Who asked for the same while it was under way gets the same answer.
        let conns = asked.into_values().flat_map(|asked| asked.conns);
        replies.extend(conns.map(|conn| (conn, loss_answer(report.as_ref()))));
        links.close_all(&mut reactor, "this DR was promoted");
        let group = report.as_ref().map_or(files.group, |report| report.group_id);
        let owner = files.owner;
        let loss_missing = report.is_none().then(|| files.report_lost());
        if let Some(text) = &loss_missing {
            tracing::error!("{text}");
        }
        let loss = match &loss_missing {
            Some(text) => Answer::failed(format!("this site was promoted already: {text}")),
            None => loss_answer(report.as_ref()),
        };
        let backings = files.close(&mut reactor);
        tracing::info!("going on as primary of epoch {epoch} after seq {tail}");
        Promoted {
            reactor,
            group,
            owner,
            epoch,
            tail,
            chain,
            controls,
            http,
            replication: listener,
            replies,
            loss,
            loss_missing,
            backings,
            volumes,
        }
    }

    /// Lets the last answers go out, for a bounded time.
    fn stop_cleanly(mut self, events: &mut Vec<Event>) -> anyhow::Result<Outcome> {
        self.links.close_all(&mut self.reactor, "DR stops");
        for conn in self.asked.drain().flat_map(|(_, asked)| asked.conns) {
            let answer = Answer::failed("DR stops before the promotion was done");
            self.controls.answer(&mut self.reactor, conn, answer.pieces());
        }
        self.controls.stop(&mut self.reactor, "DR stops");
        self.http.stop(&mut self.reactor);
        self.files.backings.close(&mut self.reactor);
        let until_ns = self.reactor.now().mono_ns + STOP_NS;
        let over = |it: &Shell| it.links.is_empty() && it.controls.is_empty() && it.files.backings.is_closed();
        while !over(&self) && self.reactor.now().mono_ns < until_ns {
            self.reactor.turn(Some(until_ns), events).context("the ring failed")?;
            for event in events.drain(..) {
                if !self.files.backings.on_event(&mut self.reactor, &event)
                    && !self.controls.on_event(&mut self.reactor, &event)
                    && let Event::Closed { conn, .. } = event
                {
                    self.links.closed(conn);
                }
            }
        }
        if self.stopped {
            self.files.leave();
        }
        tracing::info!("stopped");
        Ok(Outcome::Stopped)
    }
}

/// Bytes that an operation keeps in memory until it is done.
fn write_bytes(kind: &DiskKind) -> u64 {
    match kind {
        DiskKind::Write { parts, .. } => {
            DR_WRITE_OVERHEAD_BYTES + parts.iter().map(|part| part.len() as u64).sum::<u64>()
        }
        DiskKind::Read { .. } | DiskKind::Zero { .. } | DiskKind::Sync => 0,
    }
}

fn region_gone(ticket: Ticket) -> Input {
    Input::AuxDone { ticket, result: Err(IoFail::Other("the status table is not open any more".into())) }
}

fn loss_answer(report: Option<&LossReport>) -> Answer {
    match report {
        Some(report) => Answer::promoted(&report.report),
        None => Answer::failed("there is no loss report: this DR has never been promoted"),
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
