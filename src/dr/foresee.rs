//! What a plan says of the promotion that it is a plan of: whether it would be refused, in the same words. Pure.
//!
//! | a promotion refuses, because | a plan |
//! |---|---|
//! | there is no recovery point; a store has no room for a resize that was tried; the table is another group's, cannot be read, or has more orders than the journal takes | ends with that text, as the promotion does |
//! | the auxiliary is out of reach; another site was promoted; the directory is damaged and the report would not be complete; what is to be replayed cannot be read back | makes its report, with that text in `refused` |
//! | the loss report cannot be stored; a resize does not fit that has not been tried; the auxiliary goes away in between | cannot know: it writes nothing, tries nothing, and sees this moment only |
//!
//! By force a promotion goes on where that helps: a plan by force says nothing of what it would pass over.

use crate::cluster::status::PromoteReport;
use crate::core::ids::{Epoch, Owner, Seq};
use crate::dr::machine::{Machine, Trouble};
use crate::format::table::Fence;

/// Nobody is fenced, and not everything is known.
pub(super) fn without_auxiliary(reason: &str) -> String {
    format!(
        "the auxiliary cannot be reached ({reason}): the old primary may still be writing, and orders that only the status \
         table has would be unknown. Make it reachable, or be sure that the primary is dead and use --force"
    )
}

/// Somebody else was promoted.
pub(super) fn another_site(fence: &Fence, target: Epoch, owner: Owner) -> Option<String> {
    let theirs = fence.epoch > target || fence.epoch == target && fence.owner != owner;
    theirs.then(|| {
        format!(
            "epoch {} of {:016x} is in force at the auxiliary: another site was promoted",
            fence.epoch, fence.owner.0
        )
    })
}

/// A report would not be complete, because of damage here.
pub(super) fn damaged(incomplete: &str, reached: Seq) -> String {
    format!(
        "this directory is DAMAGED: {incomplete}. Connect the primary, what it sends again makes this good; or make the \
         auxiliary reachable, if it is not. If both are lost for good, --force promotes what is here, after seq {reached}, \
         with a report that says what is not known"
    )
}

/// What was stored as the recovery point is damaged since.
pub(super) fn beyond_reach(cut: Seq, here: Seq) -> String {
    format!("the report's recovery point {cut} cannot be reached any more: only {here} is here; --force promotes that")
}

impl Machine {
    /// Why the promotion of a plan would be refused, as things stand; in the order in which it would find out.
    pub(super) fn foreseen(&self, report: &PromoteReport, doubtful: Option<&str>) -> Option<String> {
        let promotion = self.promotion.as_ref().filter(|it| it.plan && !it.rehearsal)?;
        let doubtful = doubtful.filter(|_| self.doubt.is_some() && !promotion.force);
        let damaged = doubtful.map(|text| damaged(text, report.cut_seq));
        damaged.or_else(|| promotion.refused.clone()).or_else(|| self.unreplayable(promotion.force))
    }

    /// Why what is here cannot be replayed, as things stand.
    pub(super) fn unreplayable(&self, force: bool) -> Option<String> {
        let stopped = self.forced_before(force).is_some();
        let stuck = !stopped && self.at_rest() && self.replay.applied() < self.cut;
        let why = self.troubles.contains_key(&Trouble::Damage) || self.too_small().is_some();
        (stuck && why).then(|| self.not_reached().text)
    }

    /// The report of a promotion that was interrupted is final: it goes on with that, where it still can.
    pub(super) fn planned_again(&self, stored: &PromoteReport) -> PromoteReport {
        let mut report = stored.clone();
        let cut = stored.cut_seq;
        if self.cut < cut && self.at_rest() && self.committing.is_none() && self.committed.is_none() {
            let mut view = self.history.clone();
            view.pass_batches(cut);
            let here = view.unbroken_from(self.cut, view.tail());
            report.refused = (here < cut).then(|| beyond_reach(cut, here));
        }
        let unreplayed = report.refused.is_none() && self.replay.applied() < cut;
        if let Some(text) = self.unreplayable(false).filter(|_| unreplayed) {
            report.refused = Some(text);
        }
        report
    }

    /// Nothing is under way here that could bring the recovery point nearer.
    pub(super) fn at_rest(&self) -> bool {
        let quiet = self.journal.idle() && self.intake.idle() && self.replay.idle();
        // What has yet to be promised before it is applied is about to be.
        quiet && self.keeper.settled() && self.desk.idle() && !self.is_growing() && !self.promise_wanted()
    }
}
