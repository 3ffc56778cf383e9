//! Three hosts with the real machines, their files and the messages between them: one state of the model, which can
//! be copied. Which of the events that may come next does come is `explore`'s; what is right is `truth`'s.

mod told;

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use farshore::core::ids::{Conn, Epoch, GroupId, Owner, Seq, Ticket, Volume};
use farshore::core::machine::{DiskKind, DiskOp, IoFail, Machine as _, Now};
use farshore::core::modes::{Ack, Overflow, Protect, Require};
use farshore::core::ranges::Cover;
use farshore::format::table::TableLayout;
use farshore::format::wire::Message;
use farshore::{auxiliary, dr, primary};

use crate::store::{Due, Store, range};
use crate::trace::Trace;
use crate::truth::Truth;
use told::brief;

pub const SIZE: u64 = 3 << 16;
const GROUP: &str = "model";
const JOURNAL: u64 = 2 << 20;
const SPOOL: u64 = 2 << 20;
const SLOTS: u64 = 1024;
const RING: u64 = 1 << 20;
/// Numbers that the model itself gives out: states that differ in nothing else are the same.
pub const IDS: Range<u64> = 1 << 40..1 << 41;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    Primary,
    Aux,
    Dr,
}

pub const HOSTS: [Host; 3] = [Host::Primary, Host::Aux, Host::Dr];

/// A file of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum File {
    Primary(primary::machine::File),
    Aux(auxiliary::machine::File),
    Dr(dr::machine::File),
}

impl File {
    fn host(self) -> Host {
        match self {
            File::Primary(_) => Host::Primary,
            File::Aux(_) => Host::Aux,
            File::Dr(_) => Host::Dr,
        }
    }
}

#[derive(Clone, Debug)]
enum Packet {
    Up,
    Closed,
    Link(Message),
    Open(String),
    Read(u64, u64, u64),
    Write(u64, u64, Bytes, bool),
    Granted(u64),
    Refused(String, bool),
    Reply(u64, Result<Bytes, String>),
}

/// A connection: the side that opened it first.
#[derive(Clone, Debug)]
struct Line {
    sides: [(Host, Conn); 2],
    table: bool,
    granted: bool,
}

/// Something that may happen next.
#[derive(Clone, Debug)]
enum Event {
    Disk {
        id: u64,
        file: File,
        ticket: Ticket,
        kind: DiskKind,
    },
    /// To this side of this connection.
    Deliver {
        line: u64,
        side: usize,
        packet: Packet,
    },
    Submit(usize),
    Start(Host),
    Allocated,
    Stored(Ticket, Box<dr::promote::LossReport>),
}

/// How a host goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process is killed; what was on its way to the disk gets there, or does not.
    Kill {
        landed: bool,
    },
    Power,
}

pub const CRASHES: [Crash; 3] = [Crash::Kill { landed: false }, Crash::Kill { landed: true }, Crash::Power];

#[derive(Clone)]
pub struct World {
    now_ns: u64,
    next: u64,
    boots: [u64; 3],
    /// Of the primary.
    starts: u64,
    primary: Option<primary::machine::Machine>,
    aux: Option<auxiliary::machine::Auxiliary>,
    dr: Option<dr::machine::Machine>,
    files: Vec<(File, Store)>,
    dues: Vec<(u64, Due)>,
    lines: Vec<(u64, Line)>,
    /// In the order in which they became possible.
    events: VecDeque<Event>,
    report: Option<dr::promote::LossReport>,
    /// The last answer to a promotion, until it is looked at.
    answer: Option<bool>,
    pub promoted: bool,
    /// A promotion was asked for.
    pub asked: bool,
    /// The primary's host is lost for good.
    pub lost: bool,
    /// What is asked of the payload ring is answered with what stands elsewhere.
    pub misreads_ring: bool,
    pub truth: Truth,
    pub trace: Trace,
}

impl World {
    pub fn new(require: Require, protect: Protect) -> World {
        let layout = TableLayout::new(SLOTS, ring_bytes(protect));
        let files = [
            (File::Primary(primary::machine::File::Superblock), 0),
            (File::Primary(primary::machine::File::IntentMap), 0),
            (File::Primary(primary::machine::File::IntentLog), 0),
            (File::Primary(primary::machine::File::Fifo), 0),
            (File::Primary(primary::machine::File::Volume(Volume(0))), SIZE),
            (File::Aux(auxiliary::machine::File::Superblock), 8192),
            (File::Aux(auxiliary::machine::File::Table), layout.total_bytes()),
            (File::Dr(dr::machine::File::Superblock), 8192),
            (File::Dr(dr::machine::File::Journal), JOURNAL),
            (File::Dr(dr::machine::File::Spool), SPOOL),
            (File::Dr(dr::machine::File::Volume(Volume(0))), SIZE),
        ];
        let files = files.into_iter().map(|(file, size)| (file, Store::new(size))).collect();
        let mut world = World {
            now_ns: 1 << 44,
            next: 1,
            boots: [1; 3],
            starts: 0,
            primary: None,
            aux: None,
            dr: None,
            files,
            dues: Vec::new(),
            lines: Vec::new(),
            events: VecDeque::new(),
            report: None,
            answer: None,
            promoted: false,
            asked: false,
            lost: false,
            misreads_ring: false,
            truth: Truth::new(require, protect),
            trace: Trace::default(),
        };
        [Host::Aux, Host::Dr, Host::Primary].into_iter().for_each(|host| world.start(host));
        world
    }

    fn now(&self) -> Now {
        Now { mono_ns: self.now_ns, wall_ns: self.now_ns + (1 << 50) }
    }

    pub fn store(&self, file: File) -> &Store {
        &self.files.iter().find(|it| it.0 == file).expect("every file is there").1
    }

    fn store_mut(&mut self, file: File) -> &mut Store {
        &mut self.files.iter_mut().find(|it| it.0 == file).expect("every file is there").1
    }

    pub fn up(&self, host: Host) -> bool {
        match host {
            Host::Primary => self.primary.is_some(),
            Host::Aux => self.aux.is_some(),
            Host::Dr => self.dr.is_some(),
        }
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        IDS.start + self.next
    }

    // ---- what may come next ----------------------------------------------------------------------

    /// Positions of the events that may come next, the one that comes by itself first. Messages of one side of a
    /// connection keep their order; everything else may overtake.
    pub fn enabled(&self) -> Vec<usize> {
        let mut seen = Vec::new();
        let mut found = Vec::new();
        for (at, event) in self.events.iter().enumerate() {
            let may = match event {
                Event::Deliver { line, side, .. } => {
                    let first = !seen.contains(&(*line, *side));
                    seen.push((*line, *side));
                    first
                }
                Event::Submit(_) => self.primary.is_some(),
                _ => true,
            };
            if may {
                found.push(at);
            }
        }
        found
    }

    /// The host to which an event happens.
    pub fn whose(&self, at: usize) -> Host {
        match &self.events[at] {
            Event::Disk { file, .. } => file.host(),
            Event::Deliver { line, side, .. } => {
                self.lines.iter().find(|it| it.0 == *line).map_or(Host::Primary, |it| it.1.sides[*side].0)
            }
            Event::Submit(_) | Event::Allocated => Host::Primary,
            Event::Start(host) => *host,
            Event::Stored(..) => Host::Dr,
        }
    }

    /// Lets one of the enabled events happen.
    pub fn happen(&mut self, at: usize) {
        let event = self.events.remove(at).expect("an enabled event");
        self.trace.push(brief(&event));
        match event {
            Event::Disk { id, file, ticket, kind } => {
                let at = self.dues.iter().position(|due| due.0 == id).expect("every operation has one");
                let due = self.dues.remove(at).1;
                let result = Ok(self.store_mut(file).complete(id, &kind, &due));
                match file.host() {
                    Host::Primary => self.primary_step(primary::machine::Input::Disk { ticket, result }),
                    Host::Aux => self.aux_step(auxiliary::machine::Input::Disk { ticket, result }),
                    Host::Dr => self.dr_step(dr::machine::Input::Disk { ticket, result }),
                }
            }
            Event::Deliver { line, side, packet } => self.deliver(line, side, packet),
            Event::Submit(number) => {
                let write = self.truth.submit(number);
                let kind = primary::machine::Kind::Write { offset: write.offset, data: write.data(), fua: write.fua };
                let req = primary::machine::Req(number as u64);
                self.primary_step(primary::machine::Input::Request { req, volume: Volume(0), kind });
            }
            Event::Start(host) => self.start(host),
            Event::Allocated => self.primary_step(primary::machine::Input::Allocated { ranges: Cover::new() }),
            Event::Stored(ticket, report) => {
                self.report = Some(*report);
                self.dr_step(dr::machine::Input::ReportStored { ticket, result: Ok(()) });
            }
        }
    }

    /// Nothing may come next: time passes to the next deadline. False when there is none.
    pub fn tick(&mut self) -> bool {
        let deadlines = [
            self.primary.as_ref().and_then(|machine| machine.deadline_ns()),
            self.dr.as_ref().and_then(|machine| machine.deadline_ns()),
        ];
        let Some(next) = deadlines.iter().flatten().min().copied() else { return false };
        self.now_ns = self.now_ns.max(next) + 1;
        self.trace.push(format!("tick {}", self.now_ns));
        if deadlines[0].is_some_and(|at| at <= self.now_ns) {
            self.primary_step(primary::machine::Input::Tick);
        }
        if deadlines[1].is_some_and(|at| at <= self.now_ns) && self.dr.is_some() {
            self.dr_step(dr::machine::Input::Tick);
        }
        true
    }

    /// So many writes, in this order unless something comes between.
    pub fn submit(&mut self, writes: usize) {
        self.truth.writes.truncate(writes);
        (0..writes).for_each(|number| self.events.push_back(Event::Submit(number)));
    }

    pub fn synced(&self) -> bool {
        self.dr.as_ref().is_some_and(|dr| dr.status(self.now()).synced)
            && self.primary.as_ref().is_some_and(|primary| primary.in_full())
    }

    pub fn promote(&mut self, force: bool) {
        self.trace.push(format!("promote force={force}"));
        let ticket = Ticket(self.id());
        self.answer = None;
        self.asked = true;
        self.dr_step(dr::machine::Input::Promote { ticket, plan: false, force });
    }

    /// How the last promotion ended, if it has.
    pub fn take_answer(&mut self) -> Option<bool> {
        self.answer.take()
    }

    pub fn crash(&mut self, host: Host, how: Crash, back: bool) {
        self.trace.push(format!("{host:?} {how:?} back={back}"));
        self.boots[host as usize] += u64::from(how == Crash::Power);
        match host {
            Host::Primary => self.primary = None,
            Host::Aux => self.aux = None,
            Host::Dr => self.dr = None,
        }
        for event in std::mem::take(&mut self.events) {
            match event {
                Event::Disk { id, file, kind, .. } if file.host() == host => {
                    let at = self.dues.iter().position(|due| due.0 == id).expect("every operation has one");
                    let due = self.dues.remove(at).1;
                    // A sync that did not end made nothing durable.
                    if how == (Crash::Kill { landed: true }) && !matches!(kind, DiskKind::Sync) {
                        self.store_mut(file).complete(id, &kind, &due);
                    }
                }
                Event::Allocated if host == Host::Primary => {}
                Event::Stored(..) if host == Host::Dr => {}
                other => self.events.push_back(other),
            }
        }
        if how == Crash::Power {
            self.files.iter_mut().filter(|file| file.0.host() == host).for_each(|file| file.1.lose_power());
        }
        for (line, _) in self.lines.clone().iter().filter(|(_, line)| line.sides.iter().any(|side| side.0 == host)) {
            let side =
                self.lines.iter().find(|it| it.0 == *line).and_then(|it| it.1.sides.iter().position(|s| s.0 == host));
            self.hang_up(*line, side.expect("it is one of the sides"));
        }
        self.lost |= !back && host == Host::Primary;
        if back {
            self.events.push_back(Event::Start(host));
        }
    }

    // ---- connections -----------------------------------------------------------------------------

    fn send(&mut self, line: u64, side: usize, packet: Packet) {
        self.events.push_back(Event::Deliver { line, side, packet });
    }

    fn line_of(&self, host: Host, conn: Conn) -> Option<(u64, usize)> {
        self.lines.iter().find_map(|(id, line)| Some((*id, line.sides.iter().position(|side| *side == (host, conn))?)))
    }

    /// `side` closes: it hears nothing more, the other one does after what was sent.
    fn hang_up(&mut self, line: u64, side: usize) {
        self.events
            .retain(|event| !matches!(event, Event::Deliver { line: l, side: s, .. } if (*l, *s) == (line, side)));
        if let Some(at) = self.lines.iter().position(|it| it.0 == line) {
            // A conn of 0 is nobody's: the half that is still there hears of the end.
            self.lines[at].1.sides[side].1 = Conn(0);
            if self.lines[at].1.sides[1 - side].1 == Conn(0) {
                self.lines.remove(at);
            } else {
                self.send(line, 1 - side, Packet::Closed);
            }
        }
    }

    fn connect(&mut self, from: (Host, Conn), to: Host, table: bool, first: Packet) {
        let (id, conn) = (self.id(), Conn(self.id()));
        let open = self.up(to);
        let sides = [from, (to, if open { conn } else { Conn(0) })];
        self.lines.push((id, Line { sides, table, granted: false }));
        if open {
            self.send(id, 1, first);
            if !table {
                self.send(id, 0, Packet::Up);
            }
        } else {
            self.send(id, 0, Packet::Closed);
        }
    }

    fn deliver(&mut self, id: u64, side: usize, packet: Packet) {
        let Some(line) = self.lines.iter().find(|it| it.0 == id).map(|it| it.1.clone()) else { return };
        let (host, conn) = line.sides[side];
        if matches!(packet, Packet::Closed) {
            self.lines.retain(|it| it.0 != id);
        }
        match (host, line.table, packet) {
            (Host::Aux, _, Packet::Open(export)) => {
                self.aux_step(auxiliary::machine::Input::Open { conn, export, peer: String::new() });
            }
            (Host::Aux, _, Packet::Closed) => self.aux_step(auxiliary::machine::Input::Closed { conn }),
            (Host::Aux, _, Packet::Read(cookie, offset, length)) => {
                let astray = self.misreads_ring && offset >= TableLayout::new(SLOTS, RING).payload_at;
                let kind = auxiliary::machine::Kind::Read { offset: if astray { 0 } else { offset }, length };
                self.aux_step(auxiliary::machine::Input::Request { conn, cookie, kind });
            }
            (Host::Aux, _, Packet::Write(cookie, offset, data, fua)) => {
                let kind = auxiliary::machine::Kind::Write { offset, data, fua };
                self.aux_step(auxiliary::machine::Input::Request { conn, cookie, kind });
            }
            (Host::Primary, true, packet) => {
                use primary::machine::Input;
                let reason = "closed".to_owned();
                self.primary_step(match packet {
                    Packet::Granted(size) => Input::AuxOpened { size, fencing: true },
                    Packet::Refused(reason, fenced) => Input::AuxFailed { reason, fenced },
                    Packet::Reply(ticket, result) => {
                        Input::AuxDone { ticket: Ticket(ticket), result: result.map_err(IoFail::Other) }
                    }
                    _ if line.granted => Input::AuxClosed { reason },
                    _ => Input::AuxFailed { reason, fenced: false },
                });
            }
            (Host::Dr, true, packet) => {
                use dr::machine::Input;
                let reason = "closed".to_owned();
                self.dr_step(match packet {
                    Packet::Granted(size) => Input::AuxOpened { size, fencing: true },
                    Packet::Refused(reason, fenced) => Input::AuxFailed { reason, fenced },
                    Packet::Reply(ticket, result) => {
                        Input::AuxDone { ticket: Ticket(ticket), result: result.map_err(IoFail::Other) }
                    }
                    _ if line.granted => Input::AuxClosed { reason },
                    _ => Input::AuxFailed { reason, fenced: false },
                });
            }
            (Host::Primary, _, Packet::Up) => self.primary_step(primary::machine::Input::DrUp { conn }),
            (Host::Primary, _, Packet::Link(message)) => {
                self.primary_step(primary::machine::Input::DrMessage { conn, message });
            }
            (Host::Primary, ..) => {
                self.primary_step(primary::machine::Input::DrClosed { conn, reason: "closed".into() });
            }
            (Host::Dr, _, Packet::Up) => self.dr_step(dr::machine::Input::Opened { conn }),
            (Host::Dr, _, Packet::Link(message)) => self.dr_step(dr::machine::Input::Message { conn, message }),
            (Host::Dr, ..) => self.dr_step(dr::machine::Input::Closed { conn }),
            (Host::Aux, _, packet) => panic!("not for an auxiliary: {packet:?}"),
        }
    }

    fn table_line(&self, host: Host) -> Option<(u64, Conn)> {
        let of = |line: &Line| line.table && line.sides[0].0 == host && line.sides[0].1 != Conn(0);
        self.lines.iter().rev().find(|it| of(&it.1)).map(|it| (it.0, it.1.sides[0].1))
    }

    fn table_open(&mut self, host: Host, epoch: Epoch, owner: Owner) {
        self.table_close(host);
        let export = if epoch.0 == 0 { GROUP.to_owned() } else { format!("{GROUP}/{epoch}/{:016x}", owner.0) };
        let conn = Conn(self.id());
        self.connect((host, conn), Host::Aux, true, Packet::Open(export));
    }

    fn table_close(&mut self, host: Host) {
        if let Some((line, _)) = self.table_line(host) {
            self.hang_up(line, 0);
        }
    }

    fn table_ask(&mut self, host: Host, packet: Packet) {
        let line = self.table_line(host).and_then(|(id, _)| self.lines.iter().find(|it| it.0 == id));
        if let Some((id, _)) = line.filter(|(_, line)| line.granted && line.sides[1].1 != Conn(0)) {
            let id = *id;
            self.send(id, 1, packet);
        }
    }

    // ---- machines --------------------------------------------------------------------------------

    fn disk(&mut self, file: File, ticket: Ticket, kind: DiskKind) {
        let id = self.id();
        let clash = self.events.iter().any(|event| match event {
            Event::Disk { file: other, kind: under_way, .. } if *other == file => {
                range(&kind).zip(range(under_way)).is_some_and(|(a, b)| a.0 < b.0 + b.1 && b.0 < a.0 + a.1)
            }
            _ => false,
        });
        let volume =
            matches!(file, File::Primary(primary::machine::File::Volume(_)) | File::Dr(dr::machine::File::Volume(_)));
        assert!(!(volume && clash), "I1: two writes over each other are in flight on {file:?}");
        let due = self.store_mut(file).begin(id, &kind);
        self.dues.push((id, due));
        self.events.push_back(Event::Disk { id, file, ticket, kind });
    }

    fn primary_step(&mut self, input: primary::machine::Input) {
        let now = self.now();
        let Some(machine) = &mut self.primary else { return };
        let before = machine.in_full();
        let mut effects = Vec::new();
        machine.step(now, input, &mut effects);
        machine.step(now, primary::machine::Input::EndOfTurn, &mut effects);
        let full = before && machine.in_full();
        self.primary_effects(effects, full);
    }

    fn primary_effects(&mut self, effects: Vec<primary::machine::Effect>, full: bool) {
        use primary::machine::Effect;
        for effect in effects {
            match effect {
                Effect::Reply { req, result } => {
                    if result.is_ok() {
                        Truth::acknowledged(self, req.0 as usize, full);
                    }
                }
                Effect::Disk(DiskOp { ticket, file, kind }) => {
                    self.truth.saw_intent(file, &kind);
                    Truth::local_write(self, file, &kind);
                    self.disk(File::Primary(file), ticket, kind);
                }
                Effect::AuxOpen { epoch, owner } => self.table_open(Host::Primary, epoch, owner),
                Effect::AuxRead { ticket, offset, length } => {
                    self.table_ask(Host::Primary, Packet::Read(ticket.0, offset, length));
                }
                Effect::AuxWrite { ticket, offset, parts, fua } => {
                    let data: Bytes = parts.concat().into();
                    self.truth.saw_bytes(&data);
                    self.table_ask(Host::Primary, Packet::Write(ticket.0, offset, data, fua));
                }
                Effect::AuxClose => self.table_close(Host::Primary),
                Effect::DrConnect { conn, .. } => self.connect((Host::Primary, conn), Host::Dr, false, Packet::Up),
                Effect::DrSend { conn, message } => {
                    self.truth.saw_message(&message);
                    if let Some((line, side)) = self.line_of(Host::Primary, conn)
                        && self.lines.iter().any(|it| it.0 == line && it.1.sides[1 - side].1 != Conn(0))
                    {
                        self.send(line, 1 - side, Packet::Link(message));
                    }
                }
                Effect::DrClose { conn, .. } => {
                    if let Some((line, side)) = self.line_of(Host::Primary, conn) {
                        self.hang_up(line, side);
                        self.primary_step(primary::machine::Input::DrClosed { conn, reason: "closed here".into() });
                    }
                }
                Effect::LookForHoles { .. } => unreachable!("no range is so long"),
                Effect::Resized { .. } | Effect::Verified { .. } => unreachable!("nobody asks for it"),
                Effect::ListAllocated => self.events.push_back(Event::Allocated),
                Effect::Fatal { text, .. } => panic!("primary: {text}"),
                Effect::Log { text, .. } => self.trace.push(format!("  primary says {text}")),
                Effect::Stopped => {}
            }
        }
    }

    fn aux_step(&mut self, input: auxiliary::machine::Input) {
        use auxiliary::machine::Effect;
        let now = self.now();
        let Some(machine) = &mut self.aux else { return };
        let mut effects = Vec::new();
        machine.step(now, input, &mut effects);
        for effect in effects {
            let answer = match effect {
                Effect::Granted { conn, size, .. } => Some((conn, Packet::Granted(size))),
                Effect::Refused { conn, text, fenced } => Some((conn, Packet::Refused(text, fenced))),
                Effect::Reply { conn, cookie, result } => {
                    Some((conn, Packet::Reply(cookie, result.map_err(|errno| format!("{errno:?}")))))
                }
                Effect::Close { conn, .. } => {
                    if let Some((line, side)) = self.line_of(Host::Aux, conn) {
                        self.hang_up(line, side);
                        self.aux_step(auxiliary::machine::Input::Closed { conn });
                    }
                    None
                }
                Effect::Disk(DiskOp { ticket, file, kind }) => {
                    self.disk(File::Aux(file), ticket, kind);
                    None
                }
                Effect::Fatal { text } => panic!("aux: {text}"),
                Effect::Log { .. } | Effect::Stopped => None,
            };
            let Some((conn, packet)) = answer else { continue };
            if let Some((line, side)) = self.line_of(Host::Aux, conn) {
                if matches!(packet, Packet::Granted(_)) {
                    self.lines.iter_mut().filter(|it| it.0 == line).for_each(|it| it.1.granted = true);
                }
                self.send(line, 1 - side, packet);
            }
        }
    }

    fn dr_step(&mut self, input: dr::machine::Input) {
        let now = self.now();
        let Some(machine) = &mut self.dr else { return };
        let mut effects = Vec::new();
        machine.step(now, input, &mut effects);
        machine.step(now, dr::machine::Input::EndOfTurn, &mut effects);
        self.dr_effects(effects);
    }

    fn dr_effects(&mut self, effects: Vec<dr::machine::Effect>) {
        use dr::machine::Effect;
        for effect in effects {
            match effect {
                Effect::Send { conn, message } => {
                    Truth::dr_said(self, &message);
                    if let Some((line, side)) = self.line_of(Host::Dr, conn)
                        && self.lines.iter().any(|it| it.0 == line && it.1.sides[1 - side].1 != Conn(0))
                    {
                        self.send(line, 1 - side, Packet::Link(message));
                    }
                }
                Effect::RecopyDone { .. } => unreachable!("nobody gives anything up"),
                Effect::Grow { .. } | Effect::GrowSpool { .. } | Effect::ShrinkSpool { .. } => {
                    unreachable!("nothing grows")
                }
                Effect::Close { conn, .. } => {
                    if let Some((line, side)) = self.line_of(Host::Dr, conn) {
                        self.hang_up(line, side);
                        self.dr_step(dr::machine::Input::Closed { conn });
                    }
                }
                Effect::Disk(DiskOp { ticket, file, kind }) => self.disk(File::Dr(file), ticket, kind),
                Effect::AuxOpen { epoch, owner } => self.table_open(Host::Dr, epoch, owner),
                Effect::AuxRead { ticket, offset, length } => {
                    self.table_ask(Host::Dr, Packet::Read(ticket.0, offset, length));
                }
                Effect::AuxWrite { ticket, offset, parts, fua } => {
                    self.table_ask(Host::Dr, Packet::Write(ticket.0, offset, parts.concat().into(), fua));
                }
                Effect::AuxClose => self.table_close(Host::Dr),
                Effect::StoreReport { ticket, report } => {
                    self.events.push_back(Event::Stored(ticket, Box::new(report)));
                }
                Effect::PromoteDone { result, .. } => {
                    self.answer = Some(result.is_ok());
                    match result {
                        Ok(report) => {
                            self.promoted = true;
                            Truth::promoted(self, &report);
                        }
                        Err(error) => self.trace.push(format!("promotion refused: {error}")),
                    }
                }
                Effect::Fatal { text } => panic!("dr: {text}"),
                Effect::Log { text, .. } => self.trace.push(format!("  dr says {text}")),
                Effect::Serve { .. } | Effect::Stopped => {}
            }
        }
    }

    // ---- starting --------------------------------------------------------------------------------

    fn start(&mut self, host: Host) {
        self.files.iter_mut().filter(|file| file.0.host() == host).for_each(|file| file.1.settle());
        match host {
            Host::Primary => self.start_primary(),
            Host::Aux => {
                use auxiliary::machine::File as F;
                let slots = self.store(File::Aux(F::Superblock)).cache.read(0, 8192);
                let table = &self.store(File::Aux(F::Table)).cache;
                let (head, size) = (table.read(0, 4096), table.size);
                let found =
                    auxiliary::recovery::recover(&slots, &head, GROUP, Owner(77)).expect("the auxiliary starts");
                for (offset, block) in found.creation() {
                    self.store_mut(File::Aux(F::Superblock)).plant(offset, &block);
                }
                self.aux = Some(auxiliary::machine::Auxiliary::new(found, size));
            }
            Host::Dr => {
                use dr::machine::File as F;
                let options = dr::machine::Options {
                    group_name: GROUP.into(),
                    volumes: vec![("db".into(), SIZE)],
                    journal_bytes: JOURNAL,
                    table_slots: 1024,
                    spool_bytes: SPOOL,
                    spool_bytes_max: SPOOL,
                    cache_bytes: farshore::limits::DR_CACHE_BYTES_MAX,
                    protect: self.truth.protect,
                    ack: Ack::Write,
                    require: self.truth.require,
                    auxiliary: true,
                    owner: Owner(88),
                    nonce: 5,
                };
                let superblock = self.store(File::Dr(F::Superblock)).cache.read(0, 8192);
                let found = dr::recovery::Found {
                    superblock: &superblock,
                    journal: &self.store(File::Dr(F::Journal)).cache,
                    spool: &self.store(File::Dr(F::Spool)).cache,
                    blank: true,
                    report: self.report.clone(),
                };
                let recovered = dr::recovery::recover(found, &options).expect("DR starts");
                self.dr = Some(dr::machine::Machine::new(recovered, options));
                self.dr_step(dr::machine::Input::Tick);
            }
        }
    }

    fn start_primary(&mut self) {
        use primary::machine::File as F;
        use primary::recovery::{Expect, Files, Place, recover};
        let volumes = vec![("db".to_owned(), SIZE)];
        let expect = Expect {
            group_name: GROUP.into(),
            volumes: volumes.clone(),
            boot_id: u128::from(self.boots[0]).to_le_bytes(),
            fifo_disk_bytes: 0,
            log_slots: SLOTS,
            fresh_group: GroupId(5),
            fresh_owner: Owner(66),
            fresh_nonce: 9,
        };
        for file in [F::Superblock, F::IntentMap, F::IntentLog] {
            let store = self.store_mut(File::Primary(file));
            let written = store.cache.clone();
            // A file that was never written is not there.
            store.cache.size = if written.read(0, 8192).iter().any(|&byte| byte != 0) { 1 << 20 } else { 0 };
        }
        let files = Files {
            superblock: &self.store(File::Primary(F::Superblock)).cache,
            map: &self.store(File::Primary(F::IntentMap)).cache,
            log: &self.store(File::Primary(F::IntentLog)).cache,
            fifo: &self.store(File::Primary(F::Fifo)).cache,
        };
        let recovered = recover(&expect, &files).expect("the primary starts");
        for (place, offset, block) in recovered.format.clone() {
            let file = if place == Place::Map { F::IntentMap } else { F::IntentLog };
            self.store_mut(File::Primary(file)).plant(offset, &block);
        }
        let image = self.store(File::Primary(F::Volume(Volume(0)))).cache.read(0, SIZE);
        self.truth.restarted(image);
        self.starts += 1;
        let options = primary::machine::Options {
            group_name: GROUP.into(),
            volumes,
            protect: self.truth.protect,
            ack: Ack::Write,
            require: self.truth.require,
            isolated_continue: false,
            freeze_timeout_ns: 0,
            overflow: Overflow::Coalesce,
            lag_max: None,
            fifo_memory_bytes: 1 << 20,
            fifo_disk_bytes: 0,
            streams: 1,
            table_slots: SLOTS,
            spool_bytes: SPOOL,
            standalone: false,
            table_payload_bytes: ring_bytes(self.truth.protect),
            intent_neighbours: 1,
            look_bytes: u64::MAX,
            asks: true,
            ask_room: false,
            scrub: None,
            incarnation: self.starts,
        };
        let mut effects = Vec::new();
        let now = self.now();
        self.primary = Some(primary::machine::Machine::new(options, recovered, now, &mut effects));
        self.primary_effects(effects, false);
    }

    pub fn cut(&self) -> Seq {
        self.dr.as_ref().map_or(Seq(0), |dr| dr.status(self.now()).cut_seq)
    }
}

/// Bytes of the payload ring in the status table.
fn ring_bytes(protect: Protect) -> u64 {
    if protect == Protect::Bunker { RING } else { 0 }
}
