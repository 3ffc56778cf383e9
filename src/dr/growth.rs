//! The spool grows where what waits in it leaves no room for what it waits for, and gives that back (I6, I9).
//!
//! | | before | who says |
//! |---|---|---|
//! | longer file | nothing may be placed | the shell: there is room for it on its file system |
//! | durably longer | the superblock names it | a sync of the spool |
//! | named, in both slots | something may stand in it | the superblock |
//! | nothing needed stands in it, in both slots | nothing may be placed | a checkpoint |
//! | named no more, in both slots | the file is cut | the superblock |
//!
//! A batch is staged as a whole, with the payloads of everything that is written meanwhile, so that the recovery point before
//! it stays. Without more room something of it would have to be given up, or it would never be complete.
//!
//! The writer is told how much there may be, not how much there is: it slows writes down, or leaves a batch, for want of room
//! in the spool. What cannot be had after all, it hears in another welcome.

use crate::core::ids::Ticket;
use crate::core::machine::{DiskKind, Level, Now};
use crate::core::planted::{Bug, planted};
use crate::dr::api::{Effect, File};
use crate::dr::machine::{After, Machine, Trouble};
use crate::format::ring::Ring;

/// How far the spool may grow, and what is being done about it.
#[derive(Clone, Debug)]
pub(super) struct Growth {
    /// Bytes that it may have.
    limit: u64,
    /// Why it does not get as many as the configuration allows.
    refused: Option<String>,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Idle,
    /// The shell makes the file longer.
    Asked(Ring),
    /// That becomes durable.
    Syncing(Ring, Ticket),
    /// The superblock says so.
    Naming,
}

impl Growth {
    pub fn new(limit: u64) -> Growth {
        Growth { limit, refused: None, step: Step::Idle }
    }

    /// Nothing of it is under way.
    pub fn idle(&self) -> bool {
        self.step == Step::Idle
    }

    /// Why it does not grow any more, for who asks for more of it.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }
}

impl Machine {
    /// Bytes that the spool has, or may get.
    pub(super) fn spool_to_be(&self) -> u64 {
        self.intake.spool.bytes().max(self.growth.limit)
    }

    /// What is due, or a promotion fetches, has no room: has the spool grow, if it can. Whether that is under way, or anything
    /// else that keeps it from being used.
    pub(super) fn grow_spool(&mut self, fx: &mut Vec<Effect>) -> bool {
        if !self.growth.idle() {
            return true;
        }
        let grown = self.intake.spool.grown().filter(|ring| ring.bytes() <= self.growth.limit);
        let Some(ring) = grown.filter(|_| !self.stopping) else { return false };
        self.intake.spool.hold();
        self.growth.step = Step::Asked(ring);
        fx.push(Effect::GrowSpool { bytes: ring.bytes() });
        true
    }

    /// The file of the spool is as long as was asked, or it cannot be.
    pub(super) fn spool_grown(&mut self, now: Now, result: Result<(), String>, fx: &mut Vec<Effect>) {
        let Step::Asked(ring) = self.growth.step else { return };
        match result {
            Ok(()) if planted(Bug::GrownUnnamed) => self.spool_reshaped(ring, fx),
            Ok(()) => {
                let ticket = self.desk.disk(fx, File::Spool, DiskKind::Sync);
                self.growth.step = Step::Syncing(ring, ticket);
            }
            Err(text) => {
                self.growth.step = Step::Idle;
                self.growth.limit = self.intake.spool.bytes();
                self.intake.spool.reshaped(self.intake.spool.ring());
                let text = format!("the spool does not grow beyond {} bytes: {text}", self.growth.limit);
                self.growth.refused = Some(text.clone());
                self.trouble(now, Trouble::SpoolFull, text, fx);
                if let Some(conn) = self.links.order {
                    self.close(conn, "the spool here has less room than was said", fx);
                }
            }
        }
    }

    /// Whether this was the sync of a file that has grown: the superblock may name it.
    pub(super) fn growth_synced(&mut self, ticket: Ticket) -> bool {
        let Step::Syncing(ring, syncing) = self.growth.step else { return false };
        if ticket != syncing {
            return false;
        }
        self.name_shape(ring);
        true
    }

    /// What the spool has grown by is given back where nothing in it is needed any more.
    pub(super) fn shrink_spool(&mut self) {
        // What a promotion fetches has its room from the moment on in which it is asked for.
        if self.growth.idle() && self.promotion.is_none() && self.intake.spool.outgrown() {
            let ring = Ring::plain(self.intake.spool.size());
            self.intake.spool.hold();
            self.name_shape(ring);
        }
    }

    /// A promoted site needs nothing of its spool any more: what that has grown by is given back.
    pub(super) fn give_spool_back(&mut self) {
        if self.intake.spool.ring().is_extended() && self.checkpoints.idle() {
            self.intake.spool.clear();
            self.save_floor();
        }
    }

    fn name_shape(&mut self, ring: Ring) {
        self.growth.step = Step::Naming;
        self.keeper.change(|it| it.extensions = ring.extensions);
        self.keeper.then(After::SpoolReshaped(ring));
    }

    /// The superblock names the shape of the spool durably.
    pub(super) fn spool_reshaped(&mut self, ring: Ring, fx: &mut Vec<Effect>) {
        let before = self.intake.spool.bytes();
        self.growth.step = Step::Idle;
        self.intake.spool.reshaped(ring);
        self.replay.reshaped(ring);
        let (bytes, live) = (ring.bytes(), self.intake.spool.live_bytes());
        let text = if bytes > before {
            format!("the spool has grown from {before} to {bytes} bytes, {live} of which hold what is needed")
        } else {
            fx.push(Effect::ShrinkSpool { bytes });
            format!("the spool is back at {bytes} bytes: what it had grown by is not needed any more")
        };
        fx.push(Effect::Log { level: Level::Info, text });
    }
}
