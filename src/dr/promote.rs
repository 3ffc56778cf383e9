//! Promotion: fence, read the table, reconcile, fetch, report, replay, serve.
//!
//! ```text
//!   look ─► PROMOTING durable ─► open epoch+1 (fences) ─► head ─► fence block ─► lease ─► head again ─► records
//!     ─► settle ─► append records ─► states ─► fetch from the ring ─► report durable ─► replay
//!     ─► checkpoint ─► PROMOTED durable ─► done, serve
//!   look: what it would be refused for, found out while nobody is fenced ([`super::look`])
//!   plan: open the read-only view ─► head ─► records ─► states ─► fetch, only to verify ─► done
//! ```
//!
//! Invariants:
//! - Nobody is fenced by a promotion that is refused for what could be known before: that is looked for first.
//! - Nothing is fenced before it is durable that a promotion is under way, nothing is served before the
//!   report, the volumes and the new epoch are (I7, I4). Killed anywhere and called again, it ends the same:
//!   what it adds goes to journal and spool first, and once the report is stored its cut is final. What was begun by
//!   force goes on by force.
//! - Between the fence and the first look at the table that counts, every writer that the fence cannot reach
//!   has lost its lease (I7). Until then it may format a region that was blank or damaged, and fill it (I4), so
//!   the head is read again; and if it has formatted over the fence, that is put up again, and the lease with it.
//! - A plan writes nothing and closes nothing.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::cluster::status::{PromoteReport, seconds};
use crate::core::ids::{Chain, Epoch, GroupId, Owner, Seq, Ticket};
use crate::core::machine::{DiskResult, Level, Now};
use crate::core::modes::Require;
use crate::core::planted::{Bug, planted};
use crate::dr::api::{Effect, PromoteError};
use crate::dr::foresee::{another_site, beyond_reach};
use crate::dr::history::{Divergence, History};
use crate::dr::machine::{After, Machine};
use crate::dr::receive::plausible;
use crate::dr::table::TableReader;
use crate::format::is_zero;
use crate::format::record::OrderRecord;
use crate::format::superblock::{FORCED, PROMOTED, PROMOTING};
use crate::format::table::{Fence, HEADER_AT, HEARTBEAT_AT, Heartbeat, RECORDS_AT, TableHeader};
use crate::limits::{BLOCK_BYTES, LEASE_MARGIN_NS, LEASE_NS};

/// Conflicts between table and journal that are named one by one.
const CONFLICTS_NAMED_MAX: usize = 4;

/// What a report says where the region of the table is empty.
pub(super) const BLANK_TABLE: &str = "the status table is blank: it was wiped or replaced, or the primary never reached the \
                                      auxiliary; writes that only the table knew would not be known";

/// What a request is answered with that cannot be joined to what is under way.
const UNDER_WAY: &str = "a promotion is under way already: `farshore status` says how far it is, and once it is done \
                         `farshore loss` prints its report; ask again then, if it failed";
const UNDER_WAY_PLAN: &str = "a plan of a promotion is being worked out for somebody else: ask again in a few seconds; a \
                              promotion need not wait for it, `farshore promote` without --plan begins as soon as it is done";

/// What a promotion decided, kept durably by the shell (as JSON) before anything is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossReport {
    pub group_id: GroupId,
    /// Chain of the last record of the old epoch: where the history of the new one goes on.
    pub tail_chain: Chain,
    /// The object that `farshore promote --json` prints.
    pub report: PromoteReport,
}

/// Where a promotion stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The superblock with `PROMOTING` is being written.
    Marking,
    Opening,
    Head,
    Fencing,
    /// Until then a writer that the fence does not reach may still acknowledge.
    Lease(u64),
    /// The head is read again: what it says now counts.
    HeadAgain,
    Records,
    /// What came in before the links were cut becomes durable and is applied.
    Settling,
    /// Records that only the table had become durable here.
    Appending,
    States,
    Fetching,
    Storing(Ticket),
    Replaying,
    Finishing,
    Abandoning,
}

impl Step {
    /// The word of the status.
    pub(super) fn word(self) -> &'static str {
        match self {
            Step::Marking | Step::Opening | Step::Head | Step::Fencing => "fencing",
            Step::Lease(_) => "waiting for the lease of the old writer to end",
            Step::HeadAgain | Step::Records | Step::States => "reading the status table",
            Step::Settling | Step::Appending => "settling what has come in",
            Step::Fetching => "fetching from the auxiliary",
            Step::Storing(_) => "storing the loss report",
            Step::Replaying | Step::Finishing => "replaying",
            Step::Abandoning => "calling it off",
        }
    }
}

/// What an operator asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) ticket: Ticket,
    pub(super) plan: bool,
    pub(super) force: bool,
    pub(super) rehearsal: bool,
    /// When it was asked for.
    pub(super) since_ns: u64,
}

/// A payload in the ring: its order, and position and offset there.
pub(super) type Fetch = (OrderRecord, u64, u64);

/// One promotion, or plan of one.
#[derive(Clone, Debug)]
pub(super) struct Promotion {
    pub(super) ticket: Ticket,
    pub(super) plan: bool,
    pub(super) force: bool,
    /// A look whether the promotion that was asked for is safe: a plan, as far as that takes.
    pub(super) rehearsal: bool,
    /// An earlier attempt may have fenced already.
    pub(super) resumed: bool,
    pub(super) target: Epoch,
    pub(super) step: Step,
    pub(super) started_ns: u64,
    /// `read`, `unreachable`, `none`.
    pub(super) aux: &'static str,
    pub(super) aux_open: bool,
    /// This attempt has fenced the old writer at the auxiliary, or is about to.
    pub(super) fence_up: bool,
    /// It goes on as far as it can without a fence there.
    pub(super) cut_off: bool,
    pub(super) head: Option<Ticket>,
    pub(super) fence: Option<Ticket>,
    pub(super) table: Option<TableReader>,
    /// The region of the status table holds none.
    pub(super) blank: bool,
    /// Of a plan: the history with the table's records and with what could be fetched.
    pub(super) view: Option<History>,
    /// Records of the table that the history has no place for: reported, never applied.
    pub(super) strays: BTreeMap<Seq, OrderRecord>,
    /// Records of the table that are missing in the middle of the history here, on their way to the journal.
    pub(super) mended: Vec<OrderRecord>,
    pub(super) fetch: VecDeque<Fetch>,
    /// What a batch lacks is being fetched; and was, as far as it could be.
    pub(super) completing: bool,
    pub(super) completed: bool,
    /// Of a plan: the end of the batch that it completes.
    pub(super) ends_at: Option<Seq>,
    pub(super) fetching: Option<Ticket>,
    pub(super) fetched: u64,
    /// A payload was found damaged meanwhile: what the ring has is looked for once more.
    pub(super) fetch_again: bool,
    /// The payload in the ring that is damaged, and why: nothing behind it could be had.
    pub(super) unusable: Option<(Seq, String)>,
    /// Writes given to the replay before it began.
    pub(super) fed_before: u64,
    pub(super) error: Option<PromoteError>,
    /// Of a plan: why the promotion would be refused.
    pub(super) refused: Option<String>,
}

impl Promotion {
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        match self.step {
            Step::Lease(until) => Some(until),
            _ => None,
        }
    }

    pub(super) fn add_fetched(&mut self) {
        self.fetched += 1;
    }

    /// Everything is applied that will be: only a checkpoint is missing.
    pub(super) fn wants_checkpoint(&self) -> bool {
        matches!(self.step, Step::Settling | Step::Replaying | Step::Fetching)
    }
}

/// An error that says what would make it safe.
pub(super) fn unsafe_because(text: impl Into<String>) -> PromoteError {
    PromoteError { text: text.into(), refused_for_safety: true }
}

/// One block of the head of the table.
fn block(bytes: &Bytes, at: u64) -> &[u8] {
    let at = usize::try_from(at).expect("the head is small");
    bytes.get(at..at + BLOCK_BYTES).unwrap_or_default()
}

pub(super) fn failed(text: impl Into<String>) -> PromoteError {
    PromoteError { text: text.into(), refused_for_safety: false }
}

impl Machine {
    /// An operator asks for a promotion or a plan.
    pub(super) fn promote(&mut self, now: Now, ticket: Ticket, plan: bool, force: bool, fx: &mut Vec<Effect>) {
        if let Some(result) = self.promote_at_once(plan, force) {
            fx.push(Effect::PromoteDone { ticket, result });
            return;
        }
        if !self.is_ready() || self.promotion.is_some() || !plan && self.tries_room() {
            self.promote_later = Some((ticket, plan, force));
            return;
        }
        if let Some(error) = self.does_not_fit(force) {
            return fx.push(Effect::PromoteDone { ticket, result: Err(error) });
        }
        let rehearsal = !plan && self.looks_first(force);
        self.promote_now(now, Asked { ticket, plan, force, rehearsal, since_ns: now.mono_ns }, fx);
    }

    /// Begins a promotion, a plan of one, or the rehearsal of one that may not be safe.
    pub(super) fn promote_now(&mut self, now: Now, asked: Asked, fx: &mut Vec<Effect>) {
        let Asked { ticket, rehearsal, since_ns, .. } = asked;
        let plan = asked.plan || rehearsal;
        if !plan {
            self.drop_leftovers();
        }
        let it = self.keeper.get();
        let resumed = it.has(PROMOTING);
        let force = asked.force || resumed && it.has(FORCED);
        self.sizes.stops_at = self.sizes.stops_at.filter(|_| force);
        let target = if resumed { it.target_epoch } else { Epoch(it.epoch.0 + 1) };
        self.promotion = Some(Promotion {
            ticket,
            plan,
            force,
            rehearsal,
            resumed,
            target,
            step: Step::Marking,
            started_ns: since_ns,
            aux: "none",
            aux_open: false,
            fence_up: false,
            cut_off: false,
            head: None,
            fence: None,
            table: None,
            blank: false,
            view: None,
            strays: BTreeMap::new(),
            mended: Vec::new(),
            fetch: VecDeque::new(),
            completing: false,
            completed: false,
            ends_at: None,
            fetching: None,
            fetched: 0,
            fetch_again: false,
            unusable: None,
            fed_before: self.fed_writes,
            error: None,
            refused: None,
        });
        if plan {
            return self.open_table(now, Epoch(0), fx);
        }
        fx.push(Effect::Log { level: Level::Info, text: format!("promotion to epoch {target} begins") });
        self.last_refusal = None;
        self.close_all(&format!("this site is being promoted to epoch {target}"), fx);
        self.intake.drop_waiting(None);
        self.keeper.change(|it| {
            it.set(PROMOTING, true);
            it.set(FORCED, force);
            it.target_epoch = target;
        });
        self.keeper.then(After::Promoting);
    }

    /// Whether a promotion that was asked for, while this site was starting or a plan was made, may begin.
    pub(super) fn promote_due(&self) -> bool {
        self.promote_later.is_some()
            && self.promotion.is_none()
            && (self.is_ready() && !self.tries_room() || self.stopping)
    }

    pub(super) fn promote_waiting(&mut self, now: Now, fx: &mut Vec<Effect>) {
        if self.promote_due()
            && let Some((ticket, plan, force)) = self.promote_later.take()
        {
            self.promote(now, ticket, plan, force, fx);
        }
    }

    /// What needs no promotion to be answered.
    fn promote_at_once(&self, plan: bool, force: bool) -> Option<Result<PromoteReport, PromoteError>> {
        let it = self.keeper.get();
        if it.has(PROMOTED) {
            let stored = self.report.as_ref().map(|stored| stored.report.clone());
            return Some(stored.ok_or_else(|| failed("this site is promoted already; its loss report is missing")));
        }
        // A promotion is not put off by somebody's plan: it begins when that is done, which changes nothing.
        let planning = self.promotion.as_ref().is_some_and(|it| it.plan && !it.rehearsal);
        let may_wait = planning && !plan && self.promote_later.is_none();
        if (self.promotion.is_some() || self.promote_later.is_some()) && !may_wait {
            let only_plan = planning && self.promote_later.is_none();
            return Some(Err(failed(if only_plan { UNDER_WAY_PLAN } else { UNDER_WAY })));
        }
        if self.stopping {
            return Some(Err(failed("this site is stopping")));
        }
        if !self.synced() {
            let text = "no recovery point yet: no first copy, nor one that damage or `recopy` made necessary, was completed since; there is nothing to promote";
            return Some(Err(unsafe_because(text)));
        }
        let of_target = |stored: &&LossReport| it.has(PROMOTING) && stored.report.epoch == it.target_epoch;
        let stored = self.report.as_ref().filter(of_target).filter(|_| plan)?;
        let planned = self.planned_again(&stored.report);
        // By force another one would take its place.
        let anew = planned.refused.is_some() && (force || it.has(FORCED));
        (!anew).then_some(Ok(planned))
    }

    /// It is durable that a promotion is under way: the writer may be fenced.
    pub(super) fn may_fence(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let Some(promotion) = &mut self.promotion else { return };
        let target = promotion.target;
        // A stored report is final: everything before it was done. Unless what it relies on was lost since.
        if let Some(stored) = self.report.as_ref().filter(|stored| stored.report.epoch == target) {
            let cut = stored.report.cut_seq;
            let lost = self.doubt.is_some() && self.cut < cut;
            if !(lost && promotion.force) {
                promotion.step = Step::Replaying;
                // It may have died before the superblock promised what its report is final about.
                if self.cut < cut && self.committing.is_none() && self.committed.is_none() {
                    self.abandon_batch(cut);
                }
                return;
            }
            self.report = None;
        }
        self.open_table(now, target, fx);
    }

    fn open_table(&mut self, now: Now, epoch: Epoch, fx: &mut Vec<Effect>) {
        let owner = if epoch == Epoch(0) { Owner(0) } else { self.keeper.get().owner };
        if !self.options.auxiliary {
            return self.fenced(now, fx);
        }
        if let Some(promotion) = &mut self.promotion {
            promotion.step = Step::Opening;
            promotion.aux_open = true;
            fx.push(Effect::AuxOpen { epoch, owner });
        }
    }

    pub(super) fn aux_opened(&mut self, _now: Now, size: u64, fencing: bool, fx: &mut Vec<Effect>) {
        let Some(promotion) = self.promotion.as_mut().filter(|it| it.step == Step::Opening) else { return };
        // Our auxiliary closes older writers itself; elsewhere the fence block stops them.
        promotion.fence_up |= fencing && !promotion.plan;
        if size < RECORDS_AT {
            let text = format!("the status table is {size} bytes long: not one of ours");
            return self.promote_fails(unsafe_because(text), fx);
        }
        promotion.step = Step::Head;
        self.read_head(fx);
    }

    fn read_head(&mut self, fx: &mut Vec<Effect>) {
        let ticket = self.desk.ticket();
        let Some(promotion) = &mut self.promotion else { return };
        promotion.head = Some(ticket);
        fx.push(Effect::AuxRead { ticket, offset: HEADER_AT, length: RECORDS_AT });
    }

    pub(super) fn aux_done(&mut self, now: Now, ticket: Ticket, result: DiskResult, fx: &mut Vec<Effect>) {
        let Some(promotion) = &mut self.promotion else { return };
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(fail) => return self.aux_closed(now, &fail.to_string(), fx),
        };
        if promotion.head == Some(ticket) {
            promotion.head = None;
            self.head_read(now, &bytes, fx);
        } else if promotion.fence == Some(ticket) {
            promotion.fence = None;
            self.fenced(now, fx);
        } else if promotion.fetching == Some(ticket) {
            promotion.fetching = None;
            self.fetched(&bytes, fx);
        } else if let Some(table) = &mut promotion.table {
            let history = &self.history;
            table.read(ticket, &bytes, |it| history.get(it.seq).is_some_and(|entry| entry.record == *it));
        }
    }

    /// Header, fence and heartbeat of the table. Before the fence they say whether it may be put up there; after the
    /// lease, and to a plan, what there is to read.
    fn head_read(&mut self, now: Now, bytes: &Bytes, fx: &mut Vec<Effect>) {
        let owner = self.keeper.get().owner;
        if let Err(error) = self.look_at_head(bytes, fx) {
            return self.promote_fails(error, fx);
        }
        let Some(promotion) = &mut self.promotion else { return };
        let target = promotion.target;
        let fence = Fence::in_force(bytes).ok();
        let refused = fence.and_then(|fence| another_site(&fence, target, owner));
        if promotion.plan {
            promotion.refused = refused;
            // By force nothing of the records is a reason to refuse.
            let enough = promotion.rehearsal && promotion.force;
            return if enough { self.looked(now, fx) } else { self.fenced(now, fx) };
        }
        if let Some(text) = refused {
            return self.promote_fails(unsafe_because(text), fx);
        }
        if promotion.step == Step::HeadAgain {
            if fence.is_some_and(|fence| fence.epoch == target) {
                promotion.step = Step::Records;
                return;
            }
            // A writer that did not see it may have renewed its lease since.
            let text = "the fence is gone from the status table: putting it up again";
            fx.push(Effect::Log { level: Level::Warn, text: text.into() });
        }
        let ticket = self.desk.ticket();
        let Some(promotion) = &mut self.promotion else { return };
        promotion.step = Step::Fencing;
        promotion.fence_up = true;
        promotion.fence = Some(ticket);
        let parts = vec![Bytes::copy_from_slice(&Fence { epoch: target, owner }.encode())];
        fx.push(Effect::AuxWrite { ticket, offset: Fence::place(target), parts, fua: true });
    }

    /// What kind of table there is, if any, and where its records are.
    fn look_at_head(&mut self, bytes: &Bytes, fx: &mut Vec<Effect>) -> Result<(), PromoteError> {
        let (group, above) = (self.keeper.get().group, self.history.floor());
        let Some(promotion) = &mut self.promotion else { return Ok(()) };
        promotion.aux = "read";
        promotion.table = None;
        let counts = promotion.plan && !promotion.rehearsal || promotion.step == Step::HeadAgain;
        let header = block(bytes, HEADER_AT);
        promotion.blank = is_zero(header);
        if promotion.blank {
            if counts {
                fx.push(Effect::Log { level: Level::Warn, text: BLANK_TABLE.into() });
            }
            return Ok(());
        }
        match TableHeader::decode(header) {
            Ok(header) if header.group == group => {
                let mut table = TableReader::new(header.layout(), group, above, promotion.target);
                match Heartbeat::decode(block(bytes, HEARTBEAT_AT)) {
                    Ok(beat) => table.told = beat.tail,
                    Err(err) if counts => {
                        let text = format!("the heartbeat of the status table cannot be read: {err}");
                        fx.push(Effect::Log { level: Level::Warn, text });
                    }
                    Err(_) => {}
                }
                promotion.table = Some(table);
                Ok(())
            }
            Ok(header) => {
                let (there, here) = (header.group.0, group.0);
                let text = format!("the status table belongs to group {there:016x}, this site to {here:016x}");
                Err(unsafe_because(text))
            }
            Err(err) => {
                let text = format!("the status table cannot be read: {err}. With --force it is left out");
                if !promotion.force {
                    return Err(unsafe_because(text));
                }
                promotion.aux = "unreachable";
                if counts {
                    fx.push(Effect::Log { level: Level::Error, text });
                }
                Ok(())
            }
        }
    }

    /// The fence stands, as far as one can be had. Answers of the auxiliary and of this site that were given
    /// before it may still be on their way to the old writer, or in the buffers of one that was stopped: it
    /// acknowledges by them until its lease ends, and that is waited for (I7).
    pub(super) fn fenced(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let Some(promotion) = &mut self.promotion else { return };
        if promotion.plan {
            promotion.step = Step::Records;
            return;
        }
        promotion.cut_off = true;
        if self.options.require == Require::None {
            let text = "require = none: an old primary that is cut off goes on acknowledging; make sure it is down";
            fx.push(Effect::Log { level: Level::Warn, text: text.into() });
        }
        let wait_ns = if planted(Bug::PromoteWithinLease) { 0 } else { LEASE_NS + LEASE_MARGIN_NS };
        promotion.step = Step::Lease(now.mono_ns + wait_ns);
    }

    /// A promoted site applies nothing any more: its volumes belong to the new epoch.
    pub(super) fn replay_held(&self) -> bool {
        self.keeper.get().has(PROMOTED)
    }

    /// Goes on with the promotion as far as it can. Whether anything changed.
    pub(super) fn promote_step(&mut self, now: Now, fx: &mut Vec<Effect>) -> bool {
        let Some(promotion) = &mut self.promotion else { return false };
        let before = promotion.step;
        match before {
            // Without the auxiliary there is nothing to look at.
            Step::Lease(until) if now.mono_ns >= until && !promotion.aux_open => promotion.step = Step::Records,
            Step::Lease(until) if now.mono_ns >= until => {
                promotion.step = Step::HeadAgain;
                self.read_head(fx);
            }
            Step::Records if self.table_read(fx) => self.table_done(now, fx),
            // A batch that the table's records complete is on its way into the superblock: it moves the cut, and what is behind
            // its end can be had all the same.
            Step::States if self.table_read(fx) && self.committing.is_none() => self.plan_fetch(fx),
            Step::Settling => self.settling(fx),
            Step::Appending if self.journal.idle() => self.appended(fx),
            Step::Fetching => self.fetch_more(now, fx),
            Step::Replaying => self.replaying(now, fx),
            _ => {}
        }
        self.promotion.as_ref().is_some_and(|promotion| promotion.step != before)
    }

    /// Makes the next reads of the table; whether it is done.
    fn table_read(&mut self, fx: &mut Vec<Effect>) -> bool {
        let Some(promotion) = &mut self.promotion else { return false };
        let Some(table) = &mut promotion.table else { return true };
        while let Some((offset, length)) = table.next_read(self.desk.next()) {
            let ticket = self.desk.ticket();
            fx.push(Effect::AuxRead { ticket, offset, length });
        }
        table.done()
    }

    fn table_done(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let enough = self.look_is_over();
        let Some(promotion) = &mut self.promotion else { return };
        if enough {
            return self.looked(now, fx);
        }
        if let Some(damaged) = promotion.table.as_ref().map(|it| it.damaged_slots()).filter(|damaged| *damaged > 0) {
            let text = format!("{damaged} slots of the status table are not readable and were left out");
            fx.push(Effect::Log { level: Level::Warn, text });
        }
        promotion.step = Step::Settling;
        if promotion.plan {
            self.merge(fx);
        }
    }

    /// Waits until everything received is durable and applied, so that the cut is what it can be.
    fn settling(&mut self, fx: &mut Vec<Effect>) {
        let quiet = self.journal.idle() && self.intake.idle() && self.committing.is_none() && !self.room_is_coming();
        // Where it stops before a resize, what lies behind that is not waited for.
        let waits = self.replay.applied() < self.cut || self.sizes.stops_at.is_none() && self.batch_waits_for_room();
        if quiet && self.committed.is_none() && self.replay.idle() && !waits {
            return self.merge(fx);
        }
        let stuck = quiet && self.at_rest();
        if !stuck || !waits {
            return;
        }
        if self.stop_before_resize(fx) {
            return self.merge(fx);
        }
        let error = self.not_reached();
        self.promote_fails(error, fx);
    }

    /// Takes the records that only the table has into the history, durably unless it is a plan.
    fn merge(&mut self, fx: &mut Vec<Effect>) {
        let mut room = self.room_to_merge();
        let Some(promotion) = &mut self.promotion else { return };
        // A plan changes nothing: it looks at a copy. A promotion holds every record once.
        let mut view = promotion.plan.then(|| self.history.clone());
        let records = promotion.table.as_mut().map(|table| std::mem::take(&mut table.records)).unwrap_or_default();
        let (mut conflicts, mut apart, mut unfit) = (Vec::new(), 0, 0);
        // One by one, so that what has been looked at is let go of.
        for (seq, record) in records {
            if let Err(why) = plausible(&record, &self.options, &self.intake.spool) {
                conflicts.push(format!("a record in the status table cannot be one of this group: {why}"));
                continue;
            }
            if let Some(size) = record.new_size() {
                self.sizes.learn(record.volume, size);
            }
            let history = view.as_mut().unwrap_or(&mut self.history);
            let known = history.get(seq).is_some();
            if !known && room == 0 {
                unfit += 1;
                promotion.strays.insert(seq, record);
                continue;
            }
            let taken = history.take(record);
            let mended = taken.is_err() && history.could_fill(&record, promotion.mended.last());
            match taken {
                _ if mended => {
                    room -= 1;
                    promotion.mended.push(record);
                    if !promotion.plan {
                        self.journal.push(record);
                    }
                }
                Ok(crate::dr::history::Intake::New) if promotion.plan => room -= 1,
                Ok(crate::dr::history::Intake::New) => {
                    room -= 1;
                    self.journal.push(record);
                }
                Ok(_) => {}
                Err(why) if !known => {
                    match why {
                        Divergence::Gap { .. } | Divergence::Absent { .. } => apart += 1,
                        _ => conflicts.push(format!("the status table's {why}")),
                    }
                    promotion.strays.insert(seq, record);
                }
                Err(why) => conflicts.push(format!("the status table's {why}; the journal's record counts")),
            }
        }
        // A table that went on without what it had no room for gives as many as it has slots: the report names them.
        if apart > 0 {
            let text = format!(
                "{apart} orders of the status table stand apart from this site's history: what was ordered before them neither of the \
                 two has. They are reported, and not applied"
            );
            fx.push(Effect::Log { level: Level::Warn, text });
        }
        let more = conflicts.len().saturating_sub(CONFLICTS_NAMED_MAX);
        for text in conflicts.into_iter().take(CONFLICTS_NAMED_MAX) {
            fx.push(Effect::Log { level: Level::Error, text });
        }
        if more > 0 {
            let text = format!("{more} more records of the status table do not continue this site's history");
            fx.push(Effect::Log { level: Level::Error, text });
        }
        if unfit > 0 {
            let text = format!(
                "the journal ({} bytes) has no room for {unfit} orders that only the status table has: a status table of so \
                 many slots needs a larger one",
                self.journal.size_bytes()
            );
            if !promotion.force {
                let text = format!("{text}. With --force their data is left out, and they are reported as missing");
                return self.promote_fails(unsafe_because(text), fx);
            }
            fx.push(Effect::Log { level: Level::Error, text: format!("{text}; their data is left out") });
        }
        // What mends a gap counts only once it is durable here ([`Machine::appended`]), but in a plan.
        if let Some(view) = &mut view {
            view.fill(&std::mem::take(&mut promotion.mended));
        }
        promotion.view = view;
        promotion.step = Step::Appending;
        if promotion.plan {
            self.want_states();
        }
    }

    /// What the table had is durable here: what mends a gap may be counted on.
    fn appended(&mut self, fx: &mut Vec<Effect>) {
        let mut mended = self.promotion.as_mut().map(|it| std::mem::take(&mut it.mended)).unwrap_or_default();
        // A batch that is complete now may have passed the gap.
        let mut taken = self.history.fill(&mended).into_iter();
        mended.retain(|_| taken.next() == Some(true));
        self.say_mended(&mended, fx);
        self.history.disown().into_iter().for_each(|pos| self.intake.spool.free(pos));
        self.want_states();
    }

    /// Asks for the states of everything that is not going to be in the image by itself. They are read by the next step, also
    /// where there are none: this one has changed something then, whatever it was called from.
    pub(super) fn want_states(&mut self) {
        let cut = self.cut;
        let Some(promotion) = &mut self.promotion else { return };
        let view = promotion.view.as_ref().unwrap_or(&self.history);
        if let Some(table) = &mut promotion.table {
            let missing = view.above(cut).filter(|entry| !entry.complete()).map(|entry| entry.record.seq);
            table.want_states(missing.chain(promotion.strays.keys().copied()).collect::<Vec<_>>().into_iter());
        }
        promotion.step = Step::States;
    }

    /// Replays to the cut, checkpoints, and takes the epoch.
    fn replaying(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let Some(stored) = &self.report else { return };
        let (cut, epoch) = (stored.report.cut_seq, stored.report.epoch);
        let quiet = self.replay.idle() && self.committed.is_none() && self.journal.idle() && self.intake.idle();
        if self.replay.applied() >= cut && quiet && self.history.floor() >= cut && self.keeper.settled() {
            if let Some(promotion) = &mut self.promotion {
                promotion.step = Step::Finishing;
            }
            self.keeper.change(|it| {
                it.epoch = epoch;
                it.set(PROMOTING, false);
                it.set(FORCED, false);
                it.set(PROMOTED, true);
            });
            self.keeper.then(After::Promoted);
        } else if quiet && self.keeper.settled() && self.desk.idle() && self.cut < cut {
            let text = beyond_reach(cut, self.cut);
            if self.promotion.as_ref().is_some_and(|promotion| promotion.force) {
                return self.promote_anew(now, &text, fx);
            }
            self.promote_fails(unsafe_because(text), fx);
        } else if quiet && self.keeper.settled() && self.desk.idle() && self.replay.applied() < cut {
            if self.too_small().is_none() {
                return;
            }
            let error = self.not_reached();
            if self.stop_before_resize(fx) {
                return self.promote_anew(now, &error.text, fx);
            }
            self.promote_fails(error, fx);
        }
    }

    /// What the stored report relied on is damaged since, or does not fit, and nobody was told of it: by force another one takes
    /// its place.
    fn promote_anew(&mut self, now: Now, why: &str, fx: &mut Vec<Effect>) {
        let text = format!("{why}: the report is made anew");
        fx.push(Effect::Log { level: Level::Error, text });
        self.report = None;
        let Some(promotion) = &mut self.promotion else { return };
        promotion.table = None;
        promotion.view = None;
        promotion.strays.clear();
        promotion.mended.clear();
        promotion.fetch.clear();
        (promotion.completing, promotion.completed) = (false, false);
        let target = promotion.target;
        self.open_table(now, target, fx);
    }

    /// Report, volumes and epoch are durable: the old epoch is over.
    pub(super) fn promoted(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let Some(promotion) = self.promotion.take() else { return };
        let Some(stored) = &self.report else { return };
        // As it was stored: whoever asks again later is told the same.
        let report = stored.report.clone();
        let text = format!(
            "promoted: epoch {}, cut {}, tail {}, {} writes missing, in {:.2} s",
            report.epoch,
            report.cut_seq,
            report.tail_seq,
            report.missing.len(),
            seconds(now.mono_ns.saturating_sub(promotion.started_ns))
        );
        fx.push(Effect::Log { level: Level::Info, text });
        self.serve(fx);
        fx.push(Effect::PromoteDone { ticket: promotion.ticket, result: Ok(report) });
    }

    /// The volumes may be served by the new epoch.
    pub(super) fn serve(&mut self, fx: &mut Vec<Effect>) {
        self.give_spool_back();
        let epoch = self.keeper.get().epoch;
        let (tail, chain) = match &self.report {
            Some(stored) => (stored.report.tail_seq, stored.tail_chain),
            None => (self.history.tail(), self.history.tail_chain()),
        };
        fx.push(Effect::Serve { epoch, tail, chain });
    }
}
