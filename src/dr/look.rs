//! What a promotion is refused for: looked for while nobody is fenced, and how a refusal ends. Pure.
//!
//! ```text
//!   asked ─► does a store have room? ─► open the read-only view ─► head ─► records ─► looked ─► promotion
//!              (no: refused)              by force: head alone ────────────────────────┘
//! ```
//!
//! A look is the plan of the promotion that was asked for, as far as it takes to know: table and group, another site, room in
//! the journal for the orders; the report too, where this directory is in doubt. One that was interrupted has looked.
//!
//! | a refusal, when | `PROMOTING` | the old primary | what is said |
//! |---|---|---|---|
//! | by the look | was never set | serves | why, and what would make it safe |
//! | after it, and before the fence | is taken back | serves | the same, and what if the fence came through all the same |
//! | after the fence | stays | is fenced | that it is, and to call promote again; so does the status |
//!
//! The second and third are what got worse since the look: then the table is read again, for the writer has gone on.

use crate::core::machine::{Level, Now};
use crate::dr::api::{Effect, PromoteError};
use crate::dr::foresee::without_auxiliary;
use crate::dr::machine::{After, Machine};
use crate::dr::promote::{Asked, Promotion, Step, failed, unsafe_because};
use crate::format::superblock::{FORCED, PROMOTING};

impl Promotion {
    /// Whether the old writer is fenced, or may be.
    fn may_have_fenced(&self) -> bool {
        self.resumed || self.fence_up || self.cut_off
    }

    /// What a refusal says of the old primary, and of what to do.
    fn aftermath(&self, why: &str) -> String {
        let how = if why.contains("--force") { ", or at once with --force," } else { "" };
        let by_now = match (self.fence_up, self.cut_off) {
            (true, _) => "is fenced by now",
            (false, true) => "is refused here by now",
            (false, false) => "may be fenced since an earlier attempt",
        };
        format!(
            ". The old primary {by_now}, and nobody serves until this promotion is completed: call promote again{how} when that is \
             mended"
        )
    }
}

impl Machine {
    /// Whether there is anything to look at before a promotion fences.
    pub(super) fn looks_first(&self, force: bool) -> bool {
        let something = self.options.auxiliary || self.doubt.is_some() && !force;
        something && !self.keeper.get().has(PROMOTING)
    }

    /// The records of the table are read: whether it is known by now that the promotion would not be refused. If not, the
    /// look goes on as a plan does.
    pub(super) fn look_is_over(&self) -> bool {
        let Some(promotion) = self.promotion.as_ref().filter(|it| it.rehearsal) else { return false };
        if self.doubt.is_some() && !promotion.force {
            return false;
        }
        let Some(table) = &promotion.table else { return true };
        // What came in while the table was read is not counted a second time. A promotion waits for what makes room.
        let waits = self.replay.applied() < self.cut;
        let unknown =
            table.records.keys().filter(|&&seq| seq > self.history.floor() && self.history.get(seq).is_none());
        waits || unknown.count() as u64 <= self.room_to_merge()
    }

    /// Nothing more can be found out before the fence: the promotion begins, or is refused with nobody fenced.
    pub(super) fn looked(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let Some(promotion) = &self.promotion else { return };
        let (ticket, force, since_ns) = (promotion.ticket, promotion.force, promotion.started_ns);
        let error = promotion.refused.clone().or_else(|| self.unreplayable(force)).map(unsafe_because);
        let error = error
            .or_else(|| self.does_not_fit(force))
            .or_else(|| self.stopping.then(|| failed("this site is stopping")));
        if let Some(error) = error {
            return self.promote_fails(error, fx);
        }
        if promotion.aux_open {
            fx.push(Effect::AuxClose);
        }
        self.promotion = None;
        if self.tries_room() {
            self.promote_later = Some((ticket, false, force));
            return;
        }
        self.promote_now(now, Asked { ticket, plan: false, force, rehearsal: false, since_ns }, fx);
    }

    pub(super) fn aux_failed(&mut self, now: Now, reason: &str, fenced: bool, fx: &mut Vec<Effect>) {
        let Some(promotion) = self.promotion.as_mut().filter(|it| it.step == Step::Opening) else { return };
        promotion.aux_open = false;
        if fenced {
            let text = format!("the auxiliary refuses this promotion: {reason}. Another site may have been promoted");
            return self.promote_fails(unsafe_because(text), fx);
        }
        let refused = without_auxiliary(reason);
        if promotion.force || promotion.plan {
            promotion.aux = "unreachable";
            promotion.refused = (!promotion.force).then_some(refused);
            if !promotion.rehearsal {
                let text = format!("the auxiliary cannot be reached ({reason}): going on without it");
                fx.push(Effect::Log { level: Level::Warn, text });
            }
            return self.fenced(now, fx);
        }
        let error = match promotion.resumed {
            true => refused,
            // The look has reached it: the answer may be what was lost.
            false => format!("{refused}. If status says that the primary is fenced since, call promote again"),
        };
        self.promote_fails(unsafe_because(error), fx);
    }

    pub(super) fn aux_closed(&mut self, now: Now, reason: &str, fx: &mut Vec<Effect>) {
        // Lost while nothing was asked of it, it is missed when something is.
        let missed = |it: &Promotion| it.table.is_some() && matches!(it.step, Step::States | Step::Fetching);
        let Some(promotion) = self.promotion.as_mut().filter(|it| it.aux_open || missed(it)) else { return };
        promotion.aux_open = false;
        match promotion.step {
            Step::Opening => self.aux_failed(now, reason, false, fx),
            // By force it goes on without what was to be seen.
            Step::Head if promotion.rehearsal && promotion.force => self.looked(now, fx),
            Step::Head
            | Step::Fencing
            | Step::Lease(_)
            | Step::HeadAgain
            | Step::Records
            | Step::States
            | Step::Fetching => {
                let text =
                    format!("the auxiliary was lost while its table was being read ({reason}): call promote again");
                self.promote_fails(failed(text), fx);
            }
            _ => {}
        }
    }

    /// Ends the attempt. Where nobody is fenced, replication may go on; else what is durable of it stays, and the next one
    /// goes on from there.
    pub(super) fn promote_fails(&mut self, error: PromoteError, fx: &mut Vec<Effect>) {
        let Some(mut promotion) = self.promotion.take() else { return };
        if std::mem::take(&mut promotion.aux_open) {
            fx.push(Effect::AuxClose);
        }
        let mut error = error;
        if !promotion.plan && promotion.may_have_fenced() {
            self.last_refusal = Some(error.text.clone());
            error.text += &promotion.aftermath(&error.text);
        }
        fx.push(Effect::Log { level: Level::Error, text: format!("promotion: {}", error.text) });
        if promotion.plan || promotion.may_have_fenced() {
            fx.push(Effect::PromoteDone { ticket: promotion.ticket, result: Err(error) });
            return;
        }
        promotion.step = Step::Abandoning;
        promotion.error = Some(error);
        self.promotion = Some(promotion);
        self.keeper.change(|it| {
            it.set(PROMOTING, false);
            it.set(FORCED, false);
        });
        self.keeper.then(After::Abandoned);
    }

    /// It is durable that no promotion is under way any more.
    pub(super) fn abandoned(&mut self, fx: &mut Vec<Effect>) {
        let Some(promotion) = self.promotion.take() else { return };
        let result = Err(promotion.error.unwrap_or_else(|| failed("the promotion was called off")));
        fx.push(Effect::PromoteDone { ticket: promotion.ticket, result });
    }
}
