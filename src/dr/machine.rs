//! The DR machine: ties receipt, journal, spool, apply and promotion together.
//!
//! Owns the state of one site and the order of its effects. How each part decides is in its own file:
//! [`super::links`] (hellos), [`super::receive`] (messages), [`super::apply`] (cut, batches, checkpoints),
//! [`super::promote`] (failover).
//!
//! ```text
//!   checkpoint ≤ applied ≤ cut ≤ tail            cut: every payload up to here is durable in the spool and
//!   cut ≤ journal durable ≤ journal taken = tail      every record up to here durable in the journal (I5)
//! ```
//!
//! Every input is followed by one pass over all parts ([`Machine::settle`]), which starts whatever has
//! become possible. So no part needs to know who waits for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::core::ids::{Conn, Seq, Ticket};
use crate::core::machine::{DiskKind, DiskResult, Level, Now};
use crate::core::planted::{Bug, planted};
use crate::dr::asking::Asking;
use crate::dr::batch::{Batch, Committed};
use crate::dr::checkpoint::Checkpoints;
use crate::dr::desk::Desk;
use crate::dr::doubt::{Doubt, Promises};
use crate::dr::growth::Growth;
use crate::dr::history::History;
use crate::dr::intake::Intake;
use crate::dr::journal::Journal;
use crate::dr::keeper::Keeper;
use crate::dr::links::Links;
use crate::dr::patches::Fillings;
use crate::dr::probes::Probes;
use crate::dr::promote::{LossReport, Promotion};
use crate::dr::recovery::Recovered;
use crate::dr::replay::{Replay, Step};
use crate::dr::sizes::Sizes;
use crate::format::record::OrderRecord;
use crate::format::ring::Ring;
use crate::format::superblock::{CLEAN, DIRECT, PROMOTED, SYNCED};
use crate::format::wire::{Compare, JournalRoom, Patch};
use crate::limits::{LINK_SILENCE_NS, STREAM_SILENCE_NS};

pub use crate::dr::api::{Effect, File, Input, Options, PromoteError};

/// What is done once the superblock that says so is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// The directory exists: hellos are accepted.
    Started,
    /// The hello of this connection is adopted.
    Welcome(Conn),
    /// The volumes may be overwritten by a first sync.
    DirectMarked,
    /// The batch is complete for good.
    Committed,
    /// Everything up to here is applied for good.
    Checkpointed {
        seq: Seq,
        spool_pos: u64,
        segment: u64,
    },
    /// Everything up to here may be applied: a start that reaches less knows that something was lost.
    Promised(Seq),
    /// The promotion may fence.
    Promoting,
    /// The promotion was called off before anything was fenced.
    Abandoned,
    Promoted,
    /// The spool has this shape from here on.
    SpoolReshaped(Ring),
    /// The recovery point, which was this one, is given up, as was asked.
    GivenUp(Ticket, Seq),
    Stopped,
}

/// What is less than it should be; each is shown with its text and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    JournalFull,
    SpoolFull,
    BatchTooLarge,
    Damage,
    Diverged,
    Doubt,
    TooSmall,
}

/// One DR site of one group.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(super) options: Options,
    pub(super) desk: Desk,
    pub(super) keeper: Keeper<After>,
    pub(super) history: History,
    pub(super) journal: Journal,
    pub(super) intake: Intake,
    pub(super) growth: Growth,
    /// The operator wants the recovery point given up, once nothing is on its way into the volumes.
    pub(super) recopy: Option<Ticket>,
    pub(super) replay: Replay,
    pub(super) links: Links,
    /// The recovery point.
    pub(super) cut: Seq,
    /// The batch that comes in, the complete one being written down, the one being applied.
    pub(super) batch: Option<Batch>,
    pub(super) committing: Option<Batch>,
    pub(super) committed: Option<Committed>,
    /// Last seq given to the replay.
    pub(super) fed: Seq,
    /// Steps of one record that was cut into pieces, not given to it yet.
    pub(super) pieces: VecDeque<Step>,
    /// Writes given to it since the start.
    pub(super) fed_writes: u64,
    pub(super) checkpoints: Checkpoints,
    pub(super) sizes: Sizes,
    /// In the order of their seqs.
    pub(super) comparisons: Probes<Compare>,
    /// Pieces that came as patches and are not put together yet.
    pub(super) patches: Probes<Patch>,
    pub(super) fillings: Fillings,
    /// Orders from the begin of a batch on that wait until the one before it, which is here as a whole, is durably so.
    pub(super) held_orders: VecDeque<(Conn, Vec<OrderRecord>)>,
    pub(super) promotion: Option<Promotion>,
    /// A promotion asked for before this site was ready, or while a plan was made: ticket, plan, force.
    pub(super) promote_later: Option<(Ticket, bool, bool)>,
    /// Why the last promotion that had fenced, or may have, did not go on.
    pub(super) last_refusal: Option<String>,
    pub(super) report: Option<LossReport>,
    /// Something promised was found lost.
    pub(super) doubt: Option<Doubt>,
    pub(super) promises: Promises,
    pub(super) troubles: BTreeMap<Trouble, (String, u64)>,
    /// Copies that wait for their order record to be durable: seq → who is to be told.
    pub(super) copied: BTreeMap<Seq, Vec<Conn>>,
    pub(super) chunks_copied: Vec<(Conn, Seq, u64)>,
    /// When the payloads that a batch leaves out are asked for again.
    pub(super) hollow_due_ns: u64,
    pub(super) asking: Asking,
    /// What the order connection was last told.
    pub(super) told: Told,
    /// The superblock with `SYNCED` is durable.
    pub(super) synced: bool,
    /// Since when no order connection is up.
    pub(super) alone_since_ns: u64,
    pub(super) started: bool,
    /// Syncs of what recovery found.
    starting: BTreeSet<Ticket>,
    superblock_stands: bool,
    pub(super) ready: bool,
    pub(super) stopping: bool,
    /// A fatal error was reported: nothing is done any more.
    /// A crash left the file of the spool longer than the superblock names: it is cut once that stands.
    spool_is_longer: bool,
    dead: bool,
    news: Vec<(Level, String)>,
}

/// What the order connection was last told, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub journal: Seq,
    pub cut: Seq,
    pub applied: Seq,
    pub synced: bool,
    pub room: JournalRoom,
    pub at_ns: u64,
    /// As [`Sizes::held_changes`](crate::dr::sizes::Sizes) counts.
    pub held_changes: u64,
}

impl Machine {
    /// A machine that goes on from what recovery found.
    #[must_use]
    pub fn new(recovered: Recovered, options: Options) -> Machine {
        let Recovered {
            superblock,
            fresh,
            half,
            history,
            journal,
            spool,
            batch,
            committed,
            report,
            news,
            damage,
            doubt,
            spool_is_longer,
        } = recovered;
        let nonce = superblock.nonce;
        let cut = committed.as_ref().map_or(superblock.seq, |committed| committed.end);
        let fed = superblock.seq;
        let replay = Replay::new(options.volumes.len(), superblock.seq, nonce, spool.ring());
        let highest = history.above(Seq(0)).filter(|entry| entry.payload.is_some()).map(|entry| entry.record.seq).max();
        let chain = history.tail_chain();
        let mut troubles = BTreeMap::new();
        troubles.extend(doubt.iter().map(|doubt| (Trouble::Doubt, (doubt.text.clone(), 0))));
        troubles.extend(damage.map(|text| (Trouble::Damage, (text, 0))));
        Machine {
            desk: Desk::default(),
            journal: Journal::new(superblock.group, journal, chain),
            intake: Intake::new(spool, nonce, options.cache_bytes, highest.unwrap_or_default()),
            growth: Growth::new(options.spool_bytes_max),
            recopy: None,
            replay,
            links: Links::default(),
            cut,
            batch,
            committing: None,
            committed,
            fed,
            pieces: VecDeque::new(),
            fed_writes: 0,
            checkpoints: Checkpoints::default(),
            sizes: Sizes::found(&superblock, &history),
            comparisons: Probes::default(),
            patches: Probes::default(),
            fillings: Fillings::default(),
            held_orders: VecDeque::new(),
            promotion: None,
            promote_later: None,
            last_refusal: None,
            report,
            doubt,
            promises: Promises::found(&superblock, cut),
            troubles,
            copied: BTreeMap::new(),
            chunks_copied: Vec::new(),
            hollow_due_ns: 0,
            asking: Asking::default(),
            told: Told::default(),
            synced: superblock.has(SYNCED),
            alone_since_ns: 0,
            started: false,
            starting: BTreeSet::new(),
            superblock_stands: false,
            ready: false,
            stopping: false,
            dead: false,
            spool_is_longer,
            news,
            keeper: Keeper::new(superblock, fresh, half),
            history,
            options,
        }
    }

    /// First step of a life: what recovery had to say, and the first superblock of a fresh directory.
    fn start(&mut self, now: Now, fx: &mut Vec<Effect>) {
        self.started = true;
        self.alone_since_ns = now.mono_ns;
        fx.extend(std::mem::take(&mut self.news).into_iter().map(|(level, text)| Effect::Log { level, text }));
        for (_, since) in self.troubles.values_mut() {
            *since = now.wall_ns;
        }
        if self.keeper.get().has(CLEAN) {
            self.keeper.change(|_| ());
        }
        self.mark_damaged();
        self.mark_direct();
        self.keeper.then(After::Started);
        // What recovery read may be in a cache only: a process that was killed left it there.
        for file in [File::Superblock, File::Journal, File::Spool] {
            if planted(Bug::UnsyncedTrusted) {
                break;
            }
            let ticket = self.desk.disk(fx, file, DiskKind::Sync);
            self.starting.insert(ticket);
        }
    }

    /// What recovery found is durable, and so is the superblock: from here on it may be relied on.
    fn started(&mut self, fx: &mut Vec<Effect>) {
        if !self.ready && self.superblock_stands && self.starting.is_empty() {
            self.ready = true;
            if std::mem::take(&mut self.spool_is_longer) {
                fx.push(Effect::ShrinkSpool { bytes: self.intake.spool.bytes() });
            }
            self.shrink_spool();
            if self.keeper.get().has(PROMOTED) {
                self.serve(fx);
            }
        }
    }

    /// Whether hellos may be accepted: what recovery found is durable and the journal repaired.
    pub(super) fn is_ready(&self) -> bool {
        self.ready && self.journal.repaired() && !self.stopping
    }

    /// Whether there is a recovery point, durably.
    pub(super) fn synced(&self) -> bool {
        self.synced
    }

    /// Whether a batch that begins now is a first sync, which goes in place.
    pub(super) fn never_synced(&self) -> bool {
        !self.keeper.get().has(SYNCED) && self.committed.is_none()
    }

    /// How far the orders go that certainly fit the journal, as long as nothing leaves it.
    pub(super) fn room(&self) -> JournalRoom {
        let free = self.journal.room().saturating_sub(self.journal.waiting() as u64);
        JournalRoom { upto: Seq(self.history.tail().0.saturating_add(free)), records: self.journal.records() }
    }

    /// Whether orders up to `upto` come near to what the writer keeps free of the journal.
    pub(super) fn is_short(&self, upto: Seq) -> bool {
        let room = self.room();
        upto.0 < self.history.tail().0.saturating_add(room.kept(self.options.table_slots) + room.records / 8)
    }

    /// Whether the writer's orders come near to the end of the journal.
    pub(super) fn journal_short(&self) -> bool {
        self.journal.full() || self.is_short(self.room().upto)
    }

    /// A seq as a recovery point: 0 while there is none.
    pub(super) fn point(&self, seq: Seq) -> Seq {
        if self.synced() { seq } else { Seq(0) }
    }

    /// Whether the first sync has begun to overwrite the volumes.
    pub(super) fn direct(&self) -> bool {
        self.keeper.get().has(DIRECT)
    }

    pub(super) fn trouble(&mut self, now: Now, what: Trouble, text: String, fx: &mut Vec<Effect>) {
        if self.troubles.get(&what).is_none_or(|(known, _)| *known != text) {
            fx.push(Effect::Log { level: Level::Warn, text: text.clone() });
            let since = self.troubles.get(&what).map_or(now.wall_ns, |&(_, since)| since);
            self.troubles.insert(what, (text, since));
        }
    }

    pub(super) fn relieved(&mut self, what: Trouble, text: &str, fx: &mut Vec<Effect>) {
        if self.troubles.remove(&what).is_some() {
            fx.push(Effect::Log { level: Level::Info, text: text.into() });
        }
    }

    /// Nothing can be trusted any more (style rule 10): no effect follows this one.
    pub(super) fn fatal(&mut self, text: String, fx: &mut Vec<Effect>) {
        fx.push(Effect::Fatal { text });
        self.dead = true;
    }

    fn disk_done(&mut self, now: Now, ticket: Ticket, result: DiskResult, fx: &mut Vec<Effect>) {
        let Some(file) = self.desk.ended(ticket) else { return };
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(fail) if let Some(probe) = self.replay.probe_of(ticket) => {
                probe.into_iter().for_each(|probe| self.probe_failed(probe, &fail, fx));
                Bytes::new()
            }
            // It is asked for as data, as if it had never been there.
            Err(fail) if self.reads_leftover(ticket) => {
                let text = format!("spool: {fail}: what a batch that gave way had brought there is not used");
                fx.push(Effect::Log { level: Level::Warn, text });
                Bytes::new()
            }
            Err(fail) => {
                let name = self.file_name(file);
                let text = format!(
                    "{name}: {fail}. Nothing is acknowledged after a failed operation: the process ends; mend the \
                     cause and start it again, it recovers by itself"
                );
                return self.fatal(text, fx);
            }
        };
        if self.starting.remove(&ticket) {
            return;
        }
        match file {
            File::Superblock => {
                self.keeper.done(ticket);
            }
            File::Journal => {
                self.journal.done(ticket);
            }
            File::Spool if self.growth_synced(ticket) => {}
            File::Spool if self.leftover_read(ticket, &bytes, fx) => {}
            File::Spool => match self.replay.loaded(ticket, &bytes) {
                Ok(true) => {}
                Ok(false) => {
                    for stored in self.intake.done(ticket) {
                        self.stored(stored);
                    }
                }
                Err((item, why)) => self.damaged(now, item, &why, fx),
            },
            File::Volume(_) => {
                if !self.replay.ended(ticket, &bytes, &mut self.desk, fx) {
                    self.volume_synced(ticket);
                }
            }
        }
        self.probed(fx);
    }

    fn file_name(&self, file: File) -> String {
        match file {
            File::Superblock => "superblock".into(),
            File::Journal => "journal".into(),
            File::Spool => "spool".into(),
            File::Volume(volume) => {
                let name = self.options.volumes.get(usize::from(volume.0)).map_or("?", |(name, _)| name.as_str());
                format!("volume {name:?}")
            }
        }
    }

    /// Starts everything that has become possible.
    fn settle(&mut self, now: Now, fx: &mut Vec<Effect>) {
        loop {
            for after in self.keeper.ready() {
                self.after(now, after, fx);
            }
            self.started(fx);
            self.place_waiting(now, fx);
            self.intake.sync(&mut self.desk, fx);
            // What a start found is durable before anything of it is mended.
            while self.ready
                && let Some(write) = self.journal.next_write(self.desk.next())
            {
                let kind = DiskKind::Write { offset: write.offset, parts: write.parts, durable: true };
                self.desk.disk(fx, File::Journal, kind);
            }
            let mut again = false;
            if self.ready {
                self.disown_orphan(fx);
                self.advance_cut(now, fx);
                again = self.release_orders(now, fx);
                self.promise(now);
                self.feed(now, fx);
                self.acknowledge(fx);
                self.checkpoint(now, fx);
            }
            self.recopy_step(fx);
            self.promote_waiting(now, fx);
            again |= self.promote_step(now, fx) || self.promote_due();
            // Nor is the superblock written over its other slot while the one in force may be in a cache only.
            if self.starting.is_empty()
                && let Some((offset, block)) = self.keeper.next_write(self.desk.next())
            {
                let kind = DiskKind::Write { offset, parts: vec![block], durable: true };
                self.desk.disk(fx, File::Superblock, kind);
            }
            if self.dead || !(again || self.keeper.has_ready()) {
                break;
            }
        }
        self.grow(now, fx);
        self.progress(now, fx);
        self.tell_held(fx);
        self.ask_again(now, fx);
        self.watch(now, fx);
        self.stop_step(fx);
    }

    /// Carries out what waited for a superblock.
    fn after(&mut self, now: Now, after: After, fx: &mut Vec<Effect>) {
        match after {
            After::Started => self.superblock_stands = true,
            After::Welcome(conn) => self.welcome(now, conn, fx),
            After::DirectMarked => self.direct_marked(),
            After::Committed => self.committed(fx),
            After::Checkpointed { seq, spool_pos, segment } => self.checkpointed(now, seq, spool_pos, segment, fx),
            After::Promised(cut) => self.promised(cut),
            After::Promoting => self.may_fence(now, fx),
            After::Abandoned => self.abandoned(fx),
            After::Promoted => self.promoted(now, fx),
            After::SpoolReshaped(ring) => self.spool_reshaped(ring, fx),
            After::GivenUp(ticket, cut) => fx.push(Effect::RecopyDone { ticket, result: Ok(cut) }),
            After::Stopped => fx.push(Effect::Stopped),
        }
    }

    /// Keeps the list of what is degraded, and closes links that have gone silent.
    fn watch(&mut self, now: Now, fx: &mut Vec<Effect>) {
        if self.journal.full() {
            let text = format!(
                "the journal ({} bytes) is full: orders are not acknowledged until older ones are applied",
                self.journal.size_bytes()
            );
            self.trouble(now, Trouble::JournalFull, text, fx);
        } else {
            self.relieved(Trouble::JournalFull, "the journal has room again", fx);
        }
        let silent: Vec<Conn> = self
            .links
            .peers
            .iter()
            .filter(|(_, peer)| now.mono_ns.saturating_sub(peer.heard_ns) >= self.silence_ns(peer.part))
            .map(|(&conn, _)| conn)
            .collect();
        for conn in silent {
            self.close(conn, "silent for too long", fx);
        }
    }

    fn silence_ns(&self, part: super::links::Part) -> u64 {
        match part {
            super::links::Part::Stream => STREAM_SILENCE_NS,
            _ => LINK_SILENCE_NS,
        }
    }

    /// A clean end: everything in flight settles, a last checkpoint, then the flag that says so.
    fn stop_step(&mut self, fx: &mut Vec<Effect>) {
        if !self.stopping || self.dead || self.checkpoints.stopped {
            return;
        }
        let written = self.journal.idle() && self.intake.idle() && self.growth.idle() && self.keeper.settled();
        let quiet = self.ready && written && self.replay.idle();
        if quiet && self.replay.applied() <= self.history.floor() {
            self.checkpoints.stopped = true;
            let durable = self.journal.durable();
            self.keeper.change(|it| it.promised_tail = it.promised_tail.max(durable));
            self.keeper.change_cleanly();
            self.keeper.then(After::Stopped);
            if let Some((offset, block)) = self.keeper.next_write(self.desk.next()) {
                let kind = DiskKind::Write { offset, parts: vec![block], durable: true };
                self.desk.disk(fx, File::Superblock, kind);
            }
        }
    }
}

impl crate::core::machine::Machine for Machine {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, now: Now, input: Input, fx: &mut Vec<Effect>) {
        if self.dead {
            return;
        }
        if !self.started {
            self.start(now, fx);
        }
        // What has come together is taken in together: one append, one sync, one answer.
        let more = matches!(input, Input::Message { .. } | Input::Disk { .. });
        match input {
            Input::Opened { conn } => self.opened(now, conn, fx),
            Input::Message { conn, message } => self.message(now, conn, message, fx),
            Input::Closed { conn } => {
                self.alone_since_ns = if self.links.order == Some(conn) { now.mono_ns } else { self.alone_since_ns };
                self.closed(conn, fx);
            }
            Input::Disk { ticket, result } => self.disk_done(now, ticket, result, fx),
            Input::Tick | Input::EndOfTurn => {}
            Input::Promote { ticket, plan, force } => self.promote(now, ticket, plan, force, fx),
            Input::AuxOpened { size, fencing } => self.aux_opened(now, size, fencing, fx),
            Input::AuxFailed { reason, fenced } => self.aux_failed(now, &reason, fenced, fx),
            Input::AuxDone { ticket, result } => self.aux_done(now, ticket, result, fx),
            Input::AuxClosed { reason } => self.aux_closed(now, &reason, fx),
            Input::ReportStored { ticket, result } => self.report_stored(now, ticket, result, fx),
            Input::Grown { volume, result } => self.grown(now, volume, result, fx),
            Input::SpoolGrown { result } => self.spool_grown(now, result, fx),
            Input::Recopy { ticket } => self.recopy(ticket, fx),
            Input::Stop => self.stop(fx),
        }
        if !self.dead && !more {
            self.settle(now, fx);
        }
    }

    fn deadline_ns(&self) -> Option<u64> {
        if self.dead {
            return None;
        }
        if !self.started {
            return Some(0);
        }
        let silences = self.links.peers.values().map(|peer| peer.heard_ns + self.silence_ns(peer.part)).min();
        let progress = self.progress_due_ns();
        let checkpoint = self.checkpoint_due_ns();
        let promise = self.promise_due_ns();
        let promotion = self.promotion.as_ref().and_then(Promotion::deadline_ns);
        let grow = self.grow_due_ns();
        [silences, progress, checkpoint, promise, promotion, self.ask_due_ns(), grow].into_iter().flatten().min()
    }
}
