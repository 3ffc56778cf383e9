//! One trial: a seed decides everything.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::disk::{Disk, Rng};
use super::writer::{VOLUME_BYTES, Writer, volumes};
use crate::cluster::status::PromoteReport;
use crate::core::ids::{Conn, Epoch, Owner, Seq, Ticket, Volume};
use crate::core::machine::{Level, Machine as _, Now};
use crate::core::modes::{Ack, Protect, Require};
use crate::dr::api::{Effect, File, Input, Lacking, Options, PromoteError};
use crate::dr::machine::Machine;
use crate::dr::promote::LossReport;
use crate::dr::recovery::{Found, recover};
use crate::dr::report::LEFT_OUT;
use crate::format::spool::{ENTRY_HEADER_BYTES, EntryHeader};
use crate::format::superblock::{SYNCED, Superblock, read_slots};
use crate::format::table::TableLayout;
use crate::format::wire::{Message, Purpose};

const JOURNAL: usize = 4 << 20;
const SPOOL: usize = 1 << 20;

pub fn options(auxiliary: bool) -> Options {
    Options {
        group_name: "orders".into(),
        volumes: volumes(),
        journal_bytes: JOURNAL as u64,
        table_slots: 1024,
        spool_bytes: SPOOL as u64,
        spool_bytes_max: SPOOL as u64,
        cache_bytes: crate::limits::DR_CACHE_BYTES_MAX,
        protect: Protect::Order,
        ack: Ack::Write,
        require: Require::Any,
        auxiliary,
        owner: Owner(9),
        nonce: 0x5EED,
    }
}

#[derive(Clone)]
pub struct Trial {
    pub rng: Rng,
    pub disk: Disk,
    pub machine: Machine,
    pub writer: Writer,
    pub options: Options,
    pub now: Now,
    report: Option<LossReport>,
    next_conn: u64,
    /// DR's messages on their way back.
    back: Vec<(Conn, Message)>,
    refusals: Vec<(Conn, crate::format::wire::Refuse)>,
    pub outcome: Option<Result<PromoteReport, PromoteError>>,
    pub served: Option<(Epoch, Seq)>,
    pub stopped: bool,
    pub fatal: Option<String>,
    pub errors: Vec<String>,
    /// All that DR has said.
    pub said: Vec<String>,
    /// The region of the auxiliary, if it can be reached.
    pub region: Option<Vec<u8>>,
    region_ops: Vec<Effect>,
    /// Epochs that the region was asked for with: 0 is the view that fences nobody.
    pub opened: Vec<Epoch>,
    /// It closes older writers itself.
    pub fencing: bool,
    storing: Option<Ticket>,
    /// Bytes that the store of a volume can have at most, and those that were asked to grow.
    pub room_bytes: u64,
    growing: Vec<(Volume, u64)>,
    /// Bytes that the file of the spool can have, and is to have.
    pub spool_room: u64,
    spool_growing: Option<u64>,
    pub given_up: Option<Result<Seq, String>>,
}

/// What a report cannot vouch for because of damage, be the table left out or not.
pub fn damage_in(report: &PromoteReport) -> Option<String> {
    let text = report.incomplete.as_ref()?;
    let damage = text.split(LEFT_OUT).next()?.trim_end_matches("; ");
    (!damage.is_empty()).then(|| damage.to_owned())
}

impl Trial {
    pub fn new(seed: u64, auxiliary: bool) -> Trial {
        let mut rng = Rng::new(seed);
        let blank = rng.chance(50);
        let writer = Writer::new(&mut rng, blank);
        let options = options(auxiliary);
        let disk = Disk::new(&[
            (File::Superblock, 8192),
            (File::Journal, JOURNAL),
            (File::Spool, SPOOL),
            (File::Volume(Volume(0)), VOLUME_BYTES as usize),
            (File::Volume(Volume(1)), VOLUME_BYTES as usize),
        ]);
        let machine = Machine::new(Self::recovered(&disk, &options, None), options.clone());
        let mut trial = Trial {
            rng,
            disk,
            machine,
            writer,
            options,
            now: Now { mono_ns: 1, wall_ns: 1_795_341_700_000_000_000 },
            report: None,
            next_conn: 0,
            back: Vec::new(),
            refusals: Vec::new(),
            outcome: None,
            served: None,
            stopped: false,
            fatal: None,
            errors: Vec::new(),
            said: Vec::new(),
            region: None,
            region_ops: Vec::new(),
            opened: Vec::new(),
            fencing: true,
            storing: None,
            room_bytes: u64::MAX,
            growing: Vec::new(),
            spool_room: u64::MAX,
            spool_growing: None,
            given_up: None,
        };
        trial.step(Input::Tick);
        trial
    }

    fn recovered(disk: &Disk, options: &Options, report: Option<LossReport>) -> crate::dr::recovery::Recovered {
        let found = Found {
            superblock: &disk.files[&File::Superblock].cache,
            journal: &disk.files[&File::Journal],
            spool: &disk.files[&File::Spool],
            blank: true,
            report,
        };
        recover(found, options).expect("a directory of our own is recovered")
    }

    /// One input, and the end of the turn where it has to follow.
    pub fn step(&mut self, input: Input) {
        let ends = matches!(input, Input::Message { .. } | Input::Disk { .. });
        self.step_only(input);
        if ends {
            self.step_only(Input::EndOfTurn);
        }
        if let Some(bytes) = self.spool_growing.take() {
            let fits = bytes <= self.spool_room;
            if fits {
                self.disk.resize(File::Spool, bytes as usize);
            }
            let result = fits.then_some(()).ok_or_else(|| "the file system is full".to_owned());
            self.step_only(Input::SpoolGrown { result });
        }
        while let Some((volume, size)) = self.growing.pop() {
            let has = self.room_bytes;
            let lacking = || Lacking { has, text: format!("volume {volume} is too small") };
            let result = (has >= size).then_some(size).ok_or_else(lacking);
            self.step_only(Input::Grown { volume, result });
        }
    }

    fn step_only(&mut self, input: Input) {
        let mut fx = Vec::new();
        self.machine.step(self.now, input, &mut fx);
        for effect in fx {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send { conn, message } => {
                if let Message::Refuse(refuse) = &message {
                    self.refusals.push((conn, refuse.clone()));
                }
                self.back.push((conn, message));
            }
            Effect::Close { conn, .. } => self.drop_conn(conn),
            Effect::Disk(op) => self.disk.submit(op),
            Effect::Log { level, text } => {
                println!("{} {level:?} {text}", self.now.mono_ns / 1_000_000);
                // A spool too small for its load gives up what it acknowledged, and says so.
                self.writer.forgiving |= text.contains("are given up; a batch has to cover them");
                if level == Level::Error {
                    self.errors.push(text.clone());
                }
                self.said.push(text);
            }
            Effect::AuxClose => {}
            Effect::Grow { volume, size } => self.growing.push((volume, size)),
            Effect::RecopyDone { result, .. } => self.given_up = Some(result),
            Effect::GrowSpool { bytes } => self.spool_growing = Some(bytes),
            Effect::ShrinkSpool { bytes } => {
                let named = self.superblock().spool().bytes();
                assert!(named <= bytes, "a start would find it shorter than its superblock says");
                self.disk.resize(File::Spool, bytes as usize);
            }
            Effect::Fatal { text } => self.fatal = Some(text),
            Effect::Stopped => self.stopped = true,
            Effect::StoreReport { ticket, report } => {
                self.storing = Some(ticket);
                // Durable before it is answered: a crash in between finds it.
                self.report = Some(report);
            }
            Effect::PromoteDone { result, .. } => self.outcome = Some(result),
            Effect::Serve { epoch, tail, .. } => self.served = Some((epoch, tail)),
            aux => {
                if let Effect::AuxOpen { epoch, .. } = &aux {
                    self.opened.push(*epoch);
                }
                self.region_ops.push(aux);
            }
        }
    }

    /// A connection breaks.
    pub fn drop_conn(&mut self, conn: Conn) {
        self.back.retain(|(to, _)| *to != conn);
        self.writer.cut_off(conn);
    }

    fn connect(&mut self, purpose: Purpose) -> Conn {
        self.next_conn += 1;
        let conn = Conn(self.next_conn);
        let hello = self.writer.hello(purpose);
        self.writer.conns.entry(conn).or_default().push_back(hello);
        match purpose {
            Purpose::Order => self.writer.order = Some(conn),
            Purpose::Stream => self.writer.streams.push(conn),
        }
        self.step(Input::Opened { conn });
        conn
    }

    /// Something happens; what, the seed decides.
    pub fn turn(&mut self) {
        self.now.mono_ns += self.rng.below(10_000_000);
        self.now.wall_ns += 1_000_000;
        match self.rng.below(20) {
            0..=5 => self.complete_disk(),
            6..=9 => self.deliver(),
            10..=12 => self.deliver_back(),
            13..=16 => {
                let mut rng = self.rng.clone();
                self.writer.send(&mut rng);
                self.rng = rng;
            }
            17 => self.region_op(),
            18 => self.keep_connected(),
            _ => {
                let due = self.machine.deadline_ns().unwrap_or(0);
                if due > self.now.mono_ns && self.rng.chance(30) && !self.disk.busy() {
                    // Nothing else would happen until then, but links stay alive.
                    self.now.mono_ns = due.min(self.now.mono_ns + 500_000_000);
                }
                self.ping();
                self.step(Input::Tick);
            }
        }
        assert_eq!(self.fatal, None);
    }

    fn ping(&mut self) {
        let conns: Vec<Conn> = self.writer.conns.keys().copied().collect();
        for conn in conns {
            if self.writer.order == Some(conn) {
                self.writer.conns.entry(conn).or_default().push_back(Message::Ping { nonce: 1 });
            }
        }
        while let Some(storing) = self.storing.take() {
            self.step(Input::ReportStored { ticket: storing, result: Ok(()) });
        }
    }

    pub fn complete_disk(&mut self) {
        if let Some((ticket, result)) = self.disk.complete(&mut self.rng) {
            self.step(Input::Disk { ticket, result });
        }
    }

    fn deliver(&mut self) {
        let ready: Vec<Conn> =
            self.writer.conns.iter().filter(|(_, queue)| !queue.is_empty()).map(|(&conn, _)| conn).collect();
        if ready.is_empty() {
            return;
        }
        let conn = ready[self.rng.index(ready.len())];
        let together = 1 + self.rng.index(3);
        for _ in 0..together {
            let queue = self.writer.conns.get_mut(&conn);
            let Some(message) = queue.and_then(std::collections::VecDeque::pop_front) else { break };
            self.step_only(Input::Message { conn, message });
        }
        self.step_only(Input::EndOfTurn);
    }

    /// One message back; each connection keeps its order.
    fn deliver_back(&mut self) {
        if self.back.is_empty() {
            return;
        }
        let conn = self.back[self.rng.index(self.back.len())].0;
        let index = self.back.iter().position(|(to, _)| *to == conn).expect("just seen");
        let (conn, message) = self.back.remove(index);
        if !self.writer.conns.contains_key(&conn) {
            return;
        }
        if let Message::Refuse(refuse) = &message
            && matches!(refuse.code, crate::format::wire::RefuseCode::NotNow)
        {
            self.hang_up(conn);
            return;
        }
        self.writer.receive(conn, message);
    }

    pub fn hang_up(&mut self, conn: Conn) {
        self.drop_conn(conn);
        self.step(Input::Closed { conn });
    }

    fn keep_connected(&mut self) {
        if self.outcome.is_some() || self.storing.is_some() {
            return;
        }
        if self.writer.order.is_none() {
            for stream in self.writer.streams.clone() {
                self.hang_up(stream);
            }
            self.connect(Purpose::Order);
        } else if self.writer.streams.len() < 3 {
            self.connect(Purpose::Stream);
        }
    }

    /// One operation on the auxiliary's region.
    fn region_op(&mut self) {
        if self.region_ops.is_empty() {
            return;
        }
        let index = self.rng.index(self.region_ops.len());
        let op = self.region_ops.swap_remove(index);
        let Some(region) = &mut self.region else {
            return self.step(Input::AuxFailed { reason: "connection refused".into(), fenced: false });
        };
        match op {
            Effect::AuxOpen { .. } => {
                let size = region.len() as u64;
                self.step(Input::AuxOpened { size, fencing: self.fencing });
            }
            Effect::AuxRead { ticket, offset, length } => {
                let bytes = Bytes::copy_from_slice(&region[offset as usize..(offset + length) as usize]);
                self.step(Input::AuxDone { ticket, result: Ok(bytes) });
            }
            Effect::AuxWrite { ticket, offset, parts, .. } => {
                let bytes = parts.concat();
                region[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
                self.step(Input::AuxDone { ticket, result: Ok(Bytes::new()) });
            }
            other => panic!("{other:?} is no operation on a region"),
        }
    }

    /// DR dies and starts again. `power`: what was not synced is lost.
    pub fn crash(&mut self, power: bool) {
        println!("{} crash, power {power}", self.now.mono_ns / 1_000_000);
        for conn in self.writer.conns.keys().copied().collect::<Vec<_>>() {
            self.drop_conn(conn);
        }
        if power {
            self.disk.crash(&mut self.rng);
        } else {
            self.disk.kill(&mut self.rng);
        }
        self.back.clear();
        self.region_ops.clear();
        self.storing = None;
        let recovered = Self::recovered(&self.disk, &self.options, self.report.clone());
        self.machine = Machine::new(recovered, self.options.clone());
        self.step(Input::Tick);
    }

    /// An application writes something.
    pub fn write(&mut self) {
        let mut rng = self.rng.clone();
        self.writer.write(&mut rng);
        self.rng = rng;
    }

    /// The writer's queue overflows: payloads are dropped, and a batch follows.
    pub fn overflow(&mut self) {
        let mut rng = self.rng.clone();
        self.writer.overflow(&mut rng);
    }

    /// An application writes data, many times.
    pub fn write_data(&mut self) {
        for at in 0..30u8 {
            self.writer.write_at(0, u64::from(at) * 2048, Bytes::from(vec![at; 1536]));
        }
    }

    /// Everything under way on the disk ends.
    pub fn drain_disk(&mut self) {
        while self.disk.busy() {
            self.complete_disk();
        }
    }

    /// Time passes to the next thing that is due.
    pub fn tick_on(&mut self) {
        if let Some(due) = self.machine.deadline_ns() {
            self.now.mono_ns = self.now.mono_ns.max(due);
        }
        self.step(Input::Tick);
        self.drain_disk();
    }

    /// The auxiliary answers one operation.
    pub fn settle_region(&mut self) {
        self.region_op();
    }

    /// Something that DR waits for ends; whether there was anything.
    pub fn answer(&mut self) -> bool {
        match (self.disk.busy(), self.region_ops.is_empty()) {
            (true, false) if self.rng.chance(50) => self.complete_disk(),
            (_, false) => self.region_op(),
            (true, true) => self.complete_disk(),
            (false, true) => {
                let Some(ticket) = self.storing.take() else { return false };
                self.step(Input::ReportStored { ticket, result: Ok(()) });
            }
        }
        true
    }

    /// What DR sent on a connection and nobody has read.
    pub fn sent(&self, conn: Conn) -> Vec<Message> {
        self.back.iter().filter(|(to, _)| *to == conn).map(|(_, message)| message.clone()).collect()
    }

    /// The last thing DR said to a connection it closed.
    pub fn refused(&self, conn: Conn) -> Option<crate::format::wire::Refuse> {
        self.refusals.iter().rev().find(|(to, _)| *to == conn).map(|(_, refuse)| refuse.clone())
    }

    /// Flips a bit in every entry of the spool that DR may still read; whether there was one.
    pub fn damage_spool(&mut self) -> bool {
        let floor = self.machine.status(self.now).spool_bytes;
        let places: Vec<usize> = {
            let bytes = &self.disk.files[&File::Spool].stable;
            (0..bytes.len()).step_by(512).filter(|&at| bytes[at..].starts_with(b"FSHENTRY")).collect()
        };
        for &at in &places {
            self.disk.flip(File::Spool, at + 200, 1);
        }
        floor > 0
    }

    /// The superblock that the next start reads.
    pub fn superblock(&self) -> Superblock {
        let bytes = &self.disk.files[&File::Superblock].stable;
        read_slots(bytes).expect("valid").newest.expect("written")
    }

    /// Order records in the journal: seq and offset, ascending.
    pub fn journal_slots(&self) -> Vec<(Seq, usize)> {
        let bytes = &self.disk.files[&File::Journal].stable;
        let slots = (0..bytes.len()).step_by(64).filter(|&at| at % (1 << 20) >= 4096);
        let records = slots.filter_map(|at| {
            crate::format::record::OrderRecord::decode(&bytes[at..at + 64]).ok().map(|record| (record.seq, at))
        });
        let mut records: Vec<(Seq, usize)> = records.collect();
        records.sort_unstable();
        records
    }

    /// Entries of payloads in the spool: seq and offset.
    pub fn spool_entries(&self) -> Vec<(Seq, usize)> {
        let bytes = &self.disk.files[&File::Spool].stable;
        let nonce = self.superblock().nonce;
        let places = (0..bytes.len()).step_by(512).filter(|&at| bytes[at..].starts_with(b"FSHENTRY"));
        let entry = |at: usize| EntryHeader::decode(&bytes[at..at + ENTRY_HEADER_BYTES], nonce).ok();
        let mut found: Vec<(Seq, usize)> = places.filter_map(|at| Some((entry(at)?.record.seq, at))).collect();
        found.sort_unstable();
        found
    }

    /// Offset of the last order record in the journal.
    pub fn last_journal_slot(&self) -> usize {
        let bytes = &self.disk.files[&File::Journal].stable;
        let slots = (0..bytes.len()).step_by(64).filter(|&at| at % (1 << 20) >= 4096);
        let records = slots.filter_map(|at| {
            crate::format::record::OrderRecord::decode(&bytes[at..at + 64]).ok().map(|record| (record.seq, at))
        });
        records.max().expect("there are records").1
    }

    /// DR dies, something is done to its files, and it starts again.
    pub fn stop_applying(&mut self, damage: impl FnOnce(&mut Trial)) {
        for conn in self.writer.conns.keys().copied().collect::<Vec<_>>() {
            self.drop_conn(conn);
        }
        self.disk.crash(&mut self.rng);
        self.writer.damaged = true;
        damage(self);
        self.crash(true);
    }

    /// DR is told to stop, and does.
    pub fn stop_cleanly(&mut self) {
        self.lose_primary();
        self.step(Input::Stop);
        for _ in 0..10_000 {
            if self.stopped {
                break;
            }
            self.drain_disk();
            self.tick_on();
        }
        assert!(std::mem::take(&mut self.stopped));
    }

    /// What is applied, and what the writer was told, was promised durably before.
    pub fn check_promises(&self) {
        let status = self.machine.status(self.now);
        let it = &self.disk.files[&File::Superblock].stable;
        let Some(it) = read_slots(it).ok().and_then(|slots| slots.newest) else { return };
        if status.synced && it.has(SYNCED) {
            assert!(status.applied_seq <= it.promised_cut, "{} applied", status.applied_seq);
            assert!(self.writer.cut <= it.promised_cut || self.writer.damaged, "{} told", self.writer.cut);
        }
    }

    /// The report that the shell keeps.
    pub fn stored_report(&self) -> Option<LossReport> {
        self.report.clone()
    }

    /// Whether DR says that it is damaged.
    pub fn in_doubt(&self) -> bool {
        self.machine.status(self.now).degraded.iter().any(|it| it.what.contains("DAMAGED"))
    }

    /// The primary's process dies and starts again.
    pub fn restart_primary(&mut self) {
        for conn in self.writer.conns.keys().copied().collect::<Vec<_>>() {
            self.hang_up(conn);
        }
        let mut rng = self.rng.clone();
        self.writer.restart(&mut rng);
        self.rng = rng;
    }

    /// The primary is lost for good.
    pub fn lose_primary(&mut self) {
        for conn in self.writer.conns.keys().copied().collect::<Vec<_>>() {
            self.hang_up(conn);
        }
        self.writer.order = None;
        self.back.clear();
    }

    /// The auxiliary's region holds the first `known` records.
    pub fn give_region(&mut self, known: usize) {
        let layout = TableLayout::new(1024, if self.writer.bunker { 16 << 20 } else { 0 });
        self.region = Some(self.writer.table(&layout, known));
    }

    /// Drives everything until nothing is left to do (without the primary).
    pub fn settle(&mut self, crash_percent: u64) {
        for _ in 0..20_000 {
            if self.outcome.is_some() && !self.disk.busy() {
                return;
            }
            if self.rng.below(2000) < crash_percent {
                return;
            }
            self.now.mono_ns += 1_000_000;
            match self.rng.below(4) {
                0 | 1 => self.complete_disk(),
                2 => self.region_op(),
                _ => {
                    if !self.disk.busy()
                        && let Some(due) = self.machine.deadline_ns()
                    {
                        self.now.mono_ns = self.now.mono_ns.max(due);
                    }
                    self.ping();
                    self.step(Input::Tick);
                }
            }
            assert_eq!(self.fatal, None);
        }
        panic!("does not settle: {:?}", self.machine.status(self.now));
    }

    /// Promotes, with crashes in between if wanted, and checks image and report against the oracle.
    pub fn promote(&mut self, force: bool, crashes: u64, known_tail: Seq) -> PromoteReport {
        let report = self.try_promote(force, crashes).expect("promoted");
        assert_eq!((damage_in(&report), report.incomplete.is_some()), (None, report.aux == "unreachable"));
        self.check_image(report.cut_seq);
        self.check_report(&report, known_tail);
        report
    }

    /// Promotes, without force if that is safe; whatever is claimed has to be true. `known_tail`: of the table.
    pub fn promote_damaged(&mut self, crashes: u64, known_tail: Seq) -> PromoteReport {
        let report = match self.try_promote(false, crashes) {
            Ok(report) => {
                assert_eq!(report.incomplete, None, "only by force");
                report
            }
            Err(error) => {
                assert!(error.refused_for_safety && error.text.contains("--force"), "{error}");
                self.try_promote(true, crashes).expect("by force")
            }
        };
        let incomplete = report.incomplete.is_some();
        assert_eq!(incomplete, self.said.iter().any(|text| text.contains("INCOMPLETE")), "said in the log, too");
        let Some(text) = damage_in(&report) else {
            assert_eq!(incomplete, report.aux == "unreachable");
            self.check_image(report.cut_seq);
            self.check_report(&report, known_tail);
            return report;
        };
        assert!(self.errors.iter().any(|text| text.contains("INCOMPLETE")), "said loudly");
        if !text.contains("the volumes may hold") {
            self.check_image(report.cut_seq);
        }
        if !text.contains("known") {
            self.check_report(&report, known_tail);
        }
        let listed: BTreeSet<u64> = report.missing.iter().map(|write| write.seq.0).collect();
        assert!(listed.iter().all(|&seq| seq > report.cut_seq.0 && self.writer.record(Seq(seq)).seq == Seq(seq)));
        report
    }

    fn try_promote(&mut self, force: bool, crashes: u64) -> Result<PromoteReport, PromoteError> {
        self.lose_primary();
        let mut left = crashes;
        loop {
            self.outcome = None;
            self.settle_start();
            self.step(Input::Promote { ticket: Ticket(1 << 60), plan: false, force });
            self.settle(if left > 0 { 20 } else { 0 });
            if self.outcome.is_some() {
                break;
            }
            left -= 1;
            let power = self.rng.chance(50);
            self.crash(power);
        }
        self.outcome.clone().expect("settled")
    }

    /// A start needs its first superblock and repairs to be durable.
    pub fn settle_start(&mut self) {
        for _ in 0..200 {
            self.complete_disk();
        }
    }

    /// I5: byte for byte the state after the seqs up to the cut, durable.
    pub fn check_image(&self, cut: Seq) {
        let want = self.writer.prefix(cut);
        for (volume, want) in (0..).zip(&want) {
            let have = &self.disk.files[&File::Volume(Volume(volume))].stable;
            if let Some(at) = have.iter().zip(want).position(|(have, want)| have != want) {
                let last = self.writer.records.iter().rev().find(|record| {
                    record.seq <= cut
                        && record.changes_volume()
                        && record.volume.0 == volume
                        && (record.offset..record.offset + record.length).contains(&(at as u64))
                });
                let age = (0..=self.writer.tail().0)
                    .rev()
                    .find(|&seq| self.writer.prefix(Seq(seq))[usize::from(volume)][at..at + 8] == have[at..at + 8]);
                let first = (0..=self.writer.tail().0)
                    .find(|&seq| self.writer.prefix(Seq(seq))[usize::from(volume)][at..at + 8] == have[at..at + 8]);
                panic!(
                    "volume {volume} differs at {at}, cut {cut}; {:?} has what was there from {first:?} to {age:?}; last written by {last:?}",
                    &have[at..at + 8]
                );
            }
        }
    }

    /// I4: exactly the writes above the cut that anyone alive knows of.
    pub fn check_report(&self, report: &PromoteReport, known_tail: Seq) {
        assert!(report.tail_seq >= known_tail.max(self.writer.durable), "{} < {known_tail}", report.tail_seq);
        let listed: BTreeSet<u64> = report.missing.iter().map(|write| write.seq.0).collect();
        let lost: BTreeSet<u64> = self
            .writer
            .records
            .iter()
            .filter(|record| record.changes_volume())
            .filter(|record| record.seq > report.cut_seq && record.seq <= report.tail_seq)
            .map(|record| record.seq.0)
            .collect();
        assert_eq!(listed, lost, "the report is exactly what is lost");
        assert!(report.incomplete.is_some() || report.cut_seq >= self.writer.cut, "the recovery point went back");
        assert_eq!(report.missing_bytes, report.missing.iter().map(|write| write.length).sum::<u64>());
        assert_eq!(self.served, Some((report.epoch, report.tail_seq)));
        if self.writer.damaged {
            return;
        }
        // Nothing that could be applied is missing: the first record after the cut really is not whole.
        if let Some(next) = report.missing.first().filter(|write| write.seq == report.cut_seq.next()) {
            assert!(next.state != "held" || self.writer.batch_is_open(), "{next:?}");
        }
    }
}
