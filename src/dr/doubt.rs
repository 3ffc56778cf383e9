//! Damage at rest: what was promised before a stop and is not here after the next start (I4, I5, I8).
//!
//! Journal and spool alone cannot tell a lost end from one that never was. So the superblock carries promises:
//!
//! | promise | made durable | a start that finds less |
//! |---|---|---|
//! | `promised_cut` | before anything up to there is applied, or told to the writer as recovery point | the volumes may hold writes that are not here any more: no prefix |
//! | `promised_tail` | at most [`DR_PROMISE_NS`] after the orders were acknowledged; exactly, at a clean stop | acknowledged orders are unknown |
//!
//! ```text
//!   checkpoint ≤ applied ≤ promised_cut ≤ cut        promised_tail ≤ journal durable
//! ```
//!
//! What is in doubt stays so, durably (`DAMAGED`), until a checkpoint has passed all of it and the tail of a
//! writer that came after it was found. Meanwhile a promotion is rehearsed as a whole first, and refused without force if
//! its report would not be complete; by force the report says what it cannot know.
//!
//! | in doubt | made good by |
//! |---|---|
//! | orders above the recovery point | the writer sends them again, or a batch of what it may still owe |
//! | what the volumes hold | a first copy, in place: the writer may have forgotten what it owed below that point |
//! | either, and no writer | the status table and the payload ring at a promotion, as far as they reach |
//!
//! The gap that remains: orders acknowledged in the last [`DR_PROMISE_NS`] before a process was killed, if
//! precisely their place in the journal is zeroed before the next start, look like appends that never ended.

use std::collections::BTreeSet;

use crate::cluster::status::PromoteReport;
use crate::core::ids::{Seq, SeqRange};
use crate::core::machine::{Level, Now};
use crate::core::op::Op;
use crate::core::planted::{Bug, planted};
use crate::dr::api::Effect;
use crate::dr::batch::Batch;
use crate::dr::foresee::damaged;
use crate::dr::machine::{After, Machine, Trouble};
use crate::dr::mended::Lacks;
use crate::dr::promote::{Promotion, unsafe_because};
use crate::dr::report::Above;
use crate::dr::table::TableReader;
use crate::format::journal::segment_offset;
use crate::format::record::OrderRecord;
use crate::format::superblock::{CLEAN, DAMAGED, DIRECT, PROMOTED, SYNCED, Superblock};
use crate::limits::DR_PROMISE_NS;

/// Most ranges and reasons that a text spells out.
const NAMED_MAX: usize = 8;

/// What recovery saw of journal and spool.
pub(super) struct Seen {
    /// The journal holds the checkpoint, or a header that names it.
    pub anchored: bool,
    pub damage: Option<String>,
    pub segments: u64,
    /// Everything up to here is whole.
    pub reached: Seq,
    pub tail: Seq,
    /// Orders behind `tail` that stood in the journal and cannot be read any more.
    pub spoiled: u64,
    /// Records that may follow a gap, and before which orders in the journal are damaged.
    pub gaps: BTreeSet<Seq>,
    /// What stood behind `tail` is damaged.
    pub open: bool,
    /// Highest seq of any entry in the spool.
    pub highest: Seq,
    /// What is damaged in the spool, in words.
    pub named: Vec<String>,
}

/// Something that was promised is not here any more.
#[derive(Clone, Debug)]
pub(super) struct Doubt {
    /// What is wrong, what it means, and what to do.
    pub text: String,
    /// What is wrong.
    reason: String,
    /// Orders up to here existed.
    pub(super) until: Seq,
    /// Writes up to here may be in the volumes.
    applied_until: Seq,
    /// Orders beyond `until` may have been acknowledged.
    open: bool,
    /// The journal may lack orders above the recovery point.
    journal: bool,
    /// Which.
    pub(super) lacks: Lacks,
    /// Tail of a writer that came since.
    heard: Option<Seq>,
    /// The checkpoint that the journal does not show: the next start would miss it again.
    unfound: Option<Seq>,
}

/// The durable promise of how far may be applied.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Promises {
    pub cut: Seq,
    /// Earlier lives may have applied up to here.
    inherited: Seq,
    writing: bool,
    made_ns: u64,
}

impl Promises {
    pub fn found(it: &Superblock, cut: Seq) -> Promises {
        let cut = it.promised_cut.max(cut);
        Promises { cut, inherited: cut, ..Promises::default() }
    }
}

impl Doubt {
    /// What was promised and is not here.
    pub fn of(it: &Superblock, seen: &Seen) -> Option<Doubt> {
        // After a promotion the volumes are the new writer's.
        if it.has(PROMOTED) || !it.has(SYNCED) && !it.has(DAMAGED) {
            return None;
        }
        let mut why = Vec::new();
        if it.has(SYNCED) {
            why = reasons(it, seen);
        }
        if why.is_empty() && it.has(DAMAGED) {
            why.push("an earlier start found journal or spool damaged (its log says where)".into());
        }
        let reason = (!why.is_empty()).then(|| why.join("; "))?;
        let journal = !seen.anchored || seen.damage.is_some() || seen.tail < it.promised_tail;
        let stood = Seq(seen.tail.0 + seen.spoiled);
        let until = seen.highest.max(stood).max(it.promised_cut).max(it.promised_tail).max(it.suspect_until);
        Some(Doubt {
            text: advice(&reason, seen.reached),
            reason,
            until,
            applied_until: it.promised_cut,
            open: it.has(DAMAGED) || journal && !it.has(CLEAN),
            journal: seen.damage.is_some(),
            lacks: Lacks::of(it, seen, until),
            heard: None,
            unfound: (!seen.anchored).then_some(it.seq),
        })
    }
}

fn advice(reason: &str, reached: Seq) -> String {
    format!(
        "this directory is DAMAGED: {reason}. Acknowledged writes after seq {reached} may be unknown here, or be in the \
         volumes in part. Connect the primary: what it sends again makes this good; do not promote before, if it is alive"
    )
}

/// What is wrong: which file, where.
fn reasons(it: &Superblock, seen: &Seen) -> Vec<String> {
    let mut why = Vec::new();
    if it.seq > Seq(0) && !seen.anchored {
        let (number, at) = (it.journal_segment, segment_offset(it.journal_segment, seen.segments));
        why.push(format!(
            "the file journal does not hold the checkpoint, seq {}, which stood in segment {number} at offset {at} or \
             behind it: removed, truncated or overwritten",
            it.seq
        ));
    }
    why.extend(seen.damage.clone());
    if seen.tail < it.promised_tail {
        let (tail, promised) = (seen.tail, it.promised_tail);
        why.push(format!("the file journal ends at seq {tail}, it held everything up to {promised}"));
    }
    if seen.reached < it.promised_cut {
        let (reached, promised) = (seen.reached, it.promised_cut);
        why.push(format!("journal and spool reach seq {reached}, writes up to {promised} may be in the volumes"));
        why.extend(seen.named.iter().take(NAMED_MAX).cloned());
    }
    why
}

impl Machine {
    /// How far the writer may rely on this site: what the next start is known to find, or to miss.
    pub(super) fn firm_cut(&self) -> Seq {
        let unpromised = planted(Bug::AppliedUnpromised);
        if self.synced() && !unpromised { self.cut.min(self.promises.cut) } else { self.cut }
    }

    /// The recovery point as the writer is told it.
    pub(super) fn told_cut(&self) -> Seq {
        self.point(self.firm_cut())
    }

    /// Whether there is more here than was promised.
    pub(super) fn promise_wanted(&self) -> bool {
        let it = self.keeper.get();
        let cut = self.cut > self.promises.cut && self.committing.is_none() && self.committed.is_none();
        let wanted = self.promises.writing || cut || self.journal.durable() > it.promised_tail;
        wanted && self.synced() && !self.replay_held()
    }

    /// When the next promise is due.
    pub(super) fn promise_due_ns(&self) -> Option<u64> {
        let due = self.ready && !self.promises.writing && self.promise_wanted();
        due.then_some(self.promises.made_ns + DR_PROMISE_NS)
    }

    /// Says durably how far will be applied, before it is, and how far the journal reaches. One write of the
    /// superblock for everything that came in since the last.
    pub(super) fn promise(&mut self, now: Now) {
        let promoting = self.promotion.as_ref().is_some_and(|promotion| !promotion.plan);
        let hurry = promoting || self.stopping || self.intake.has_waiting() || self.journal_short();
        let Some(due) = self.promise_due_ns() else { return };
        if now.mono_ns < due && !hurry && self.promises.made_ns > 0 {
            return;
        }
        let settled = self.committing.is_none() && self.committed.is_none();
        let cut = if settled { self.cut.max(self.promises.cut) } else { self.promises.cut };
        let early = planted(Bug::TailPromisedEarly);
        let durable = if early { self.history.tail() } else { self.journal.durable() };
        self.promises.writing = true;
        self.promises.made_ns = now.mono_ns;
        self.keeper.change(|it| {
            // A batch that is being completed has promised its end already.
            it.promised_cut = it.promised_cut.max(cut);
            it.promised_tail = it.promised_tail.max(durable);
        });
        self.keeper.then(After::Promised(cut));
    }

    /// A promise is durable, if it was not taken back meanwhile.
    pub(super) fn promised(&mut self, cut: Seq) {
        self.promises.cut = self.promises.cut.max(cut).min(self.keeper.get().promised_cut);
        self.promises.writing = false;
    }

    /// A payload up to which was promised cannot be read back: the recovery point lies before it. If an earlier
    /// life may have applied it, what the volumes hold is in doubt; else the promise is taken back.
    pub(super) fn fall_back(&mut self, now: Now, seq: Seq, fx: &mut Vec<Effect>) {
        self.cut = if planted(Bug::SpoiltMovesUp) { seq.prev() } else { self.cut.min(seq.prev()) };
        let cut = self.cut;
        if seq <= self.promises.inherited {
            let reason = format!("the payload of seq {seq} in the spool is damaged, and may be in the volumes in part");
            self.applied_in_part(now, reason, self.promises.inherited, fx);
        } else if self.promises.cut >= seq {
            self.promises.cut = cut;
            // A batch that is being named has promised its end, and what it brings in place of the payload needs none.
            let named = self.committing.as_ref().filter(|it| self.left_out(it).is_empty()).and_then(|it| it.end);
            let promised = named.map_or(cut, |end| end.seq);
            // One that counts on the payload is taken back with the promise: a start would go on with it.
            let withdrawn = named.is_none() && self.committing.as_ref().is_some_and(|it| !it.direct);
            let withdrawn = withdrawn && !planted(Bug::BatchNotWithdrawn);
            self.keeper.change(|it| {
                it.promised_cut = promised;
                it.batch = if withdrawn { Seq(0) } else { it.batch };
            });
            self.keeper.then(After::Promised(cut));
        }
        // A writer that was told of more has to hear of it: what it owed up to there, it may have forgotten.
        if self.told.cut >= seq
            && let Some(conn) = self.links.order
        {
            self.close(conn, "the recovery point went back: a payload here is damaged", fx);
        }
    }

    /// A piece of a batch that is being applied, or a payload that it relies on, cannot be read back: the volumes are between
    /// two states, and the writer has forgotten what is lost. As after a start that finds it so, only a copy of everything
    /// makes that good.
    pub(super) fn lose_batch(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let Some(committed) = self.committed.take() else { return };
        for chunk in committed.chunks.values() {
            self.intake.spool.free(chunk.pos);
        }
        self.pieces.clear();
        // A payload that the batch made needless is missed again, whatever was applied past it.
        let missing = self.history.first_missing_above(self.keeper.get().seq);
        self.cut = missing.map_or(committed.base, |seq| committed.base.min(seq.prev()));
        self.replay.fall_back(self.cut);
        // What was queued is dropped, of the batch or not: up to the recovery point it is read and applied again.
        self.fed = self.replay.applied();
        self.checkpoints.not_beyond(self.cut);
        if committed.direct.is_some() {
            self.forget_first_sync();
        } else {
            let reason = format!(
                "batch {} in the spool, or what belongs to it, is damaged, and may be in the volumes in part",
                committed.begin
            );
            self.applied_in_part(now, reason, committed.end, fx);
        }
        if let Some(conn) = self.links.order {
            self.close(conn, "a batch here is damaged: a full copy has to be made again", fx);
        }
    }

    /// There is no recovery point that could be in doubt: the first sync begins again.
    fn forget_first_sync(&mut self) {
        for chunk in self.batch.take().iter().flat_map(|batch| batch.chunks.values()) {
            self.intake.spool.free(chunk.pos);
        }
        self.batch = self.history.open_batch(self.cut).map(|(begin, _)| Batch::forgotten(begin));
        self.mark_direct();
    }

    /// What the volumes hold of seqs up to `applied_until` is in doubt.
    fn applied_in_part(&mut self, now: Now, reason: String, applied_until: Seq, fx: &mut Vec<Effect>) {
        let text = advice(&reason, self.cut);
        let until = self.history.tail().max(self.promises.cut);
        let doubt = self.doubt.get_or_insert(Doubt {
            text: text.clone(),
            reason,
            until,
            applied_until,
            open: false,
            journal: false,
            lacks: Lacks::default(),
            heard: None,
            unfound: None,
        });
        doubt.applied_until = doubt.applied_until.max(applied_until);
        self.mark_damaged();
        self.trouble(now, Trouble::Doubt, text, fx);
        // What a writer has to bring is decided where it greets.
        for conn in self.links.pending() {
            self.close(conn, "what is here is in doubt", fx);
        }
    }

    /// Whether the writer may not count on the journal, because orders in it are lost.
    pub(super) fn lacks_orders(&self) -> bool {
        self.doubt.as_ref().is_some_and(|doubt| doubt.journal) || !self.history.gaps(1).is_empty()
    }

    /// Has the superblock say that something is in doubt.
    pub(super) fn mark_damaged(&mut self) {
        let Some(until) = self.doubt.as_ref().map(|doubt| doubt.until) else { return };
        if !self.keeper.get().has(DAMAGED) || self.keeper.get().suspect_until < until {
            self.keeper.change(|it| {
                it.set(DAMAGED, true);
                it.suspect_until = until;
            });
        }
    }

    /// A writer connects. If the volumes may hold what is not here, only a copy of everything makes them good.
    pub(super) fn writer_is_here(&mut self, tail: Seq, fx: &mut Vec<Effect>) -> Result<(), String> {
        if self.recopy.is_some() {
            return Err("this site is about to give up its recovery point".into());
        }
        let Some(doubt) = &self.doubt else { return Ok(()) };
        if self.synced() && self.cut < doubt.applied_until {
            if !self.copy_rests() {
                return Err("this site settles what is left of its journal first".into());
            }
            let text = "the volumes hold writes that are not known here any more: they are copied anew, in place; until that \
                        is done there is no recovery point";
            self.give_up_copy(text, fx);
        }
        let known = self.history.tail().max(self.keeper.get().promised_tail).max(self.keeper.get().promised_cut);
        if let Some(doubt) = &mut self.doubt {
            doubt.heard = doubt.heard.max(Some(tail));
            // It knows every order that it gave out: what a start took for more were none.
            if tail >= known {
                doubt.until = doubt.until.min(tail);
            }
        }
        // There may be nothing more that a checkpoint could pass.
        self.made_good(self.keeper.get().seq, fx);
        Ok(())
    }

    /// Whether nothing is on its way into the volumes, nor about to be.
    pub(super) fn copy_rests(&self) -> bool {
        let applying = !self.replay.idle() || self.committing.is_some() || self.committed.is_some();
        !applying && self.checkpoints.idle() && self.promotion.is_none()
    }

    /// From here on there is no recovery point: a first sync overwrites the volumes in place.
    pub(super) fn give_up_copy(&mut self, text: &str, fx: &mut Vec<Effect>) {
        fx.push(Effect::Log { level: Level::Error, text: text.into() });
        self.drop_leftovers();
        if let Some(batch) = self.batch.take() {
            for chunk in batch.chunks.values() {
                self.intake.spool.free(chunk.pos);
            }
        }
        // No older order is applied beside what the first sync brings: what is due follows when it is complete, outside of that.
        self.pieces.clear();
        self.cut = self.replay.applied();
        self.replay.fall_back(self.cut);
        self.fed = self.cut;
        self.checkpoints.not_beyond(self.cut);
        self.synced = false;
        self.promises = Promises { made_ns: self.promises.made_ns, ..Promises::default() };
        self.keeper.change(|it| {
            it.set(SYNCED, false);
            it.set(DIRECT, true);
            it.batch = Seq(0);
            it.promised_cut = Seq(0);
        });
    }

    /// A checkpoint up to `seq` is durable: what was in doubt is over if all of it, and all that the writer knew
    /// when it came back, is applied - from its own orders and payloads, or by a batch.
    pub(super) fn made_good(&mut self, seq: Seq, fx: &mut Vec<Effect>) {
        let Some(doubt) = &self.doubt else { return };
        let passed = doubt.heard.is_some_and(|tail| seq >= tail.max(doubt.until));
        if !passed || doubt.unfound == Some(seq) || !self.synced() {
            return;
        }
        self.doubt = None;
        self.keeper.change(|it| {
            it.set(DAMAGED, false);
            it.suspect_until = Seq(0);
        });
        self.relieved(Trouble::Doubt, "what was lost here has been made good", fx);
        self.relieved(Trouble::Damage, "what was damaged here is not needed any more", fx);
    }

    /// What a report of the cut and of all records above it cannot vouch for.
    pub(super) fn incomplete(&self, promotion: &Promotion, cut: Seq, above: Above<'_>) -> Option<String> {
        let doubt = self.doubt.as_ref()?;
        let mut why = Vec::new();
        if cut < doubt.applied_until {
            let first = cut.next();
            why.push(format!(
                "the volumes may hold, whole or in part, writes of seqs {first} to {}, which cannot be replayed: where \
                 those wrote, the image is not the state at seq {cut}",
                doubt.applied_until
            ));
            let lost: Vec<String> = above
                .iter()
                .take_while(|(record, _)| record.seq <= doubt.applied_until)
                .filter(|(record, here)| record.op.has_payload() && !here)
                .map(|(record, _)| record.seq.to_string())
                .take(NAMED_MAX + 1)
                .collect();
            if !lost.is_empty() {
                let more = if lost.len() > NAMED_MAX { ", …" } else { "" };
                why.push(format!(
                    "the payloads of seqs {}{more} are lost",
                    lost[..lost.len().min(NAMED_MAX)].join(", ")
                ));
            }
        }
        let (unknown, tail) = self.unknown(promotion, cut, doubt.until, above);
        if !unknown.is_empty() {
            why.push(format!("what was written under seqs {} is not known", spelled(&unknown)));
        }
        if doubt.open && promotion.table.is_none() {
            why.push(format!("writes after seq {tail} may have been acknowledged and are not known"));
        }
        (!why.is_empty()).then(|| format!("{} ({})", why.join("; "), doubt.reason))
    }

    /// A report that damage here leaves incomplete ends a promotion without force; any other rehearsal is followed by the
    /// promotion. Whether there is nothing more to do with this report. `doubtful`: what in it is not for want of the table.
    pub(super) fn rehearsed(
        &mut self,
        now: Now,
        report: &PromoteReport,
        doubtful: Option<&str>,
        fx: &mut Vec<Effect>,
    ) -> bool {
        let Some(promotion) = &self.promotion else { return false };
        let (rehearsal, force) = (promotion.rehearsal, promotion.force);
        if promotion.plan && !rehearsal {
            return false;
        }
        let damage = doubtful.filter(|_| self.doubt.is_some());
        if let Some(text) = damage.filter(|_| !force) {
            let text = damaged(text, report.cut_seq);
            self.promote_fails(unsafe_because(text), fx);
            return true;
        }
        if rehearsal {
            self.looked(now, fx);
            return true;
        }
        // Where nothing is damaged, what the policy gave up, or the operator left out, is said, and no reason to wait.
        let (level, how) = match damage {
            Some(_) => (Level::Error, "promoted by force, INCOMPLETE"),
            None => (Level::Warn, "the loss report is INCOMPLETE"),
        };
        if let Some(text) = &report.incomplete {
            fx.push(Effect::Log { level, text: format!("{how}: {text}") });
        }
        false
    }
}

/// Ranges in words, of very many the first.
pub(super) fn spelled(ranges: &[SeqRange]) -> String {
    let named: Vec<String> =
        ranges.iter().take(NAMED_MAX).map(|range| format!("{} to {}", range.first, range.last)).collect();
    let more = if ranges.len() > NAMED_MAX { ", …" } else { "" };
    named.join(", ") + more
}

/// The status table, to whom asks what it held.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked<'a> {
    Read(&'a TableReader),
    /// It may have held what nobody else did, and was not to be had.
    Silent,
    /// It held nothing that DR was not told of as well.
    Needless,
}

/// Seqs between `cut` and `until` that no record names and no start of a writer explains; and the last known one.
/// Where the start itself is not known, seqs that were skipped are among them.
///
/// A writer that has lost its power does not know the last seq before its start, and names none. What came before is in
/// the status table, but for slots that the writer has used again: what those held is not known either, nor what a table held
/// that was not read.
pub(super) fn unknown(
    cut: Seq,
    until: Seq,
    above: impl Iterator<Item = OrderRecord>,
    table: Asked<'_>,
) -> (Vec<SeqRange>, Seq) {
    let mut unknown = Vec::new();
    let mut at = cut;
    for record in above {
        let seq = record.seq;
        let between = match (record.op, table) {
            (Op::EpochStart, Asked::Read(table)) if record.offset == 0 => table.overwritten(at, seq),
            (Op::EpochStart, Asked::Silent) if record.offset == 0 => {
                vec![SeqRange { first: at.next(), last: seq.prev() }]
            }
            // A start names the last seq before it: those between were never given out.
            (Op::EpochStart, _) => vec![SeqRange { first: at.next(), last: Seq(record.offset).min(seq.prev()) }],
            _ => vec![SeqRange { first: at.next(), last: seq.prev() }],
        };
        let between = between.into_iter().map(|range| SeqRange { last: range.last.min(until), ..range });
        unknown.extend(between.filter(|range| range.first <= range.last));
        at = seq;
    }
    if at < until {
        unknown.push(SeqRange { first: at.next(), last: until });
    }
    (unknown, at)
}

#[cfg(test)]
#[path = "doubt_tests.rs"]
mod tests;
