//! The operator gives up the recovery point: what crosses goes into the volumes in place.
//!
//! A batch that the spool does not hold, and cannot grow for, never becomes complete: DR keeps its recovery point, and falls
//! behind. Whether an old point is worth more than the way to a new one, nobody but the operator can say. Once it is given up
//! the writer begins a first copy, which sends what differs.

use crate::core::ids::Ticket;
use crate::dr::api::Effect;
use crate::dr::machine::{After, Machine, Trouble};
use crate::format::superblock::{PROMOTED, PROMOTING};

impl Machine {
    /// What speaks against giving up the recovery point just now, for who is asked.
    #[must_use]
    pub fn point_is_worth(&self) -> &'static str {
        if self.links.order.is_none() {
            ". No primary is connected: if it does not come back, there is no copy left here"
        } else if !self.troubles.contains_key(&Trouble::BatchTooLarge) {
            ". No batch waits for room here: there is no need to"
        } else {
            ""
        }
    }

    /// Why the recovery point cannot be given up, if it cannot.
    #[must_use]
    pub fn keeps_point_because(&self) -> Option<String> {
        let why = if self.keeper.get().has(PROMOTED) {
            "this site was promoted: its volumes are in use"
        } else if self.promotion.is_some() || self.promote_later.is_some() {
            "a promotion is under way"
        } else if self.keeper.get().has(PROMOTING) {
            "a promotion was interrupted, and the writer may be fenced: call promote again, it ends what was begun"
        } else if !self.synced() {
            "there is no recovery point that could be given up: a first copy is under way, or begins once the primary connects"
        } else if self.committing.is_some() || self.committed.is_some() {
            "a batch is complete and is being applied: the recovery point moves on by itself"
        } else {
            return None;
        };
        Some(why.into())
    }

    /// The operator wants it given up.
    pub(super) fn recopy(&mut self, ticket: Ticket, fx: &mut Vec<Effect>) {
        let asked = "somebody else has asked for it already".to_owned();
        if let Some(text) = self.keeps_point_because().or(self.recopy.map(|_| asked)) {
            return fx.push(Effect::RecopyDone { ticket, result: Err(text) });
        }
        self.recopy = Some(ticket);
        // A writer that connects again hears that everything has to be copied.
        self.close_all("the operator gives up the recovery point here: the volumes are copied anew, in place", fx);
        self.intake.drop_waiting(None);
    }

    /// Does it, once nothing is on its way into the volumes.
    pub(super) fn recopy_step(&mut self, fx: &mut Vec<Effect>) {
        let Some(ticket) = self.recopy else { return };
        if let Some(text) = self.keeps_point_because() {
            self.recopy = None;
            fx.push(Effect::RecopyDone { ticket, result: Err(text) });
        } else if self.copy_rests() {
            self.recopy = None;
            let cut = self.cut;
            let text = "the operator has given up the recovery point: the volumes are copied anew, in place; until that is done there \
                        is none";
            self.give_up_copy(text, fx);
            self.relieved(Trouble::BatchTooLarge, "the batch that did not fit was given up", fx);
            self.keeper.then(After::GivenUp(ticket, cut));
        }
    }
}
