//! Acknowledgement: what may be answered, and when nothing may (I3, I7).

use super::batch::Mode;
use super::machine::{Effect, FlushStage, Machine};
use super::policy::{self, NOTHING, Standing};
use super::window::Local;
use crate::core::errno::Errno;
use crate::core::ids::Seq;
use crate::core::machine::{Lease, Level, Now};
use crate::core::modes::{Ack, Require};
use crate::core::planted::{Bug, planted};
use crate::format::record::FLAG_FUA;
use crate::limits::LEASE_NS;

impl Machine {
    /// Where each kind of durability stands, for the policy and for status.
    #[must_use]
    pub(super) fn standing(&self) -> Standing {
        let copied = self.dr.caught_up() && matches!(self.mode, Mode::Stream) && self.closing.is_none();
        let (aux_whole, journal_whole) = (self.aux.skipped <= self.floor(), self.dr.skipped <= self.dr.cut);
        let aux_held = if aux_whole { self.aux.durable } else { self.aux.held };
        Standing {
            aux: (aux_whole && self.aux.in_reach()).then_some(self.aux.durable),
            aux_payload: (aux_whole && self.aux.keeps_payloads() && self.ring_passable()).then_some(self.aux.durable),
            journal: (journal_whole && self.dr.caught_up()).then_some(self.dr.journal),
            copied: copied.then_some(self.copied),
            held: aux_held.max(self.journal_held()),
        }
    }

    /// A promotion goes past a batch that never came, but not the first one after a start.
    pub(super) fn ring_passable(&self) -> bool {
        self.settled_start || !self.catches_up()
    }

    /// What may have been acknowledged, by this process or by one before it: not all before it need be.
    pub(super) fn owed(&self) -> Seq {
        self.allowed.max(self.protected.min(self.tail)).max(self.first.prev())
    }

    /// The places that have everything that was acknowledged, or DR has it: while one of those that the mode wants is not
    /// among them, less than the mode is in force, although replies wait for all of it again (I3).
    pub(super) fn covering(&self) -> Standing {
        let (at, owed, floor) = (self.standing(), self.owed(), self.floor());
        let covers = |seq: &Seq| owed <= floor.max(*seq) || planted(Bug::InForceEarly);
        // What the log does not tell of (a loss of power, damage to it) nobody can write into the table any more, and what had
        // been acknowledged with less nobody knows, until DR has all of it.
        let known = self.log_began.prev() <= floor;
        let whole = |seq: &Seq| covers(seq) && known && !self.table_overrun();
        let got = |seq: &Seq| covers(seq) && self.dr.never_gets <= self.dr.cut;
        Standing {
            aux: at.aux.filter(whole),
            aux_payload: at.aux_payload.filter(whole),
            journal: at.journal.filter(got),
            copied: at.copied.filter(covers),
            held: at.held,
        }
    }

    /// Everything up to here is in DR's journal, without a hole that no batch has closed yet.
    pub(super) fn journal_held(&self) -> Seq {
        if self.dr.skipped <= self.dr.cut { self.dr.journal } else { self.dr.held }
    }

    /// Whether the lease allows an acknowledgement (I7).
    pub(super) fn may_acknowledge(&self) -> bool {
        match self.lease() {
            Lease::Unbound => true,
            Lease::Until(until_ns) => self.now.mono_ns <= until_ns,
            Lease::Over => false,
        }
    }

    /// Until when what was acknowledged may still be told: the process may be stopped in between.
    #[must_use]
    pub fn lease(&self) -> Lease {
        let options = &self.options;
        if self.fenced.is_some() {
            Lease::Over
        } else if options.standalone || options.isolated_continue || planted(Bug::AckAfterLease) {
            Lease::Unbound
        } else if self.alone() {
            Lease::Until(self.lease_until_ns.max(self.now.mono_ns + LEASE_NS))
        } else {
            Lease::Until(self.lease_until_ns)
        }
    }

    /// Whether this primary may go on by itself: nothing is required, and both peers have been found out of reach since
    /// it last heard of them, in an attempt that would have told of a newer epoch (I7).
    fn alone(&self) -> bool {
        self.options.require == Require::None && self.aux.gone && self.dr.gone
    }

    /// Time has passed between two inputs. Whoever was stopped for as long as a lease asks its peers again before it
    /// goes on alone.
    pub(super) fn notice_time(&mut self, now: Now) {
        if now.mono_ns > self.now.mono_ns + LEASE_NS {
            (self.aux.gone, self.dr.gone) = (false, false);
        }
        self.now = now;
    }

    /// A peer answered something that was sent at `sent_ns`, at our epoch: the lease runs from then.
    pub(super) fn renew_lease(&mut self, sent_ns: u64) {
        let sent_ns = if planted(Bug::LeaseFromAnswer) { self.now.mono_ns } else { sent_ns };
        self.lease_until_ns = self.lease_until_ns.max(sent_ns + LEASE_NS);
    }

    /// Replies to what has become protected.
    pub(super) fn settle(&mut self, fx: &mut Vec<Effect>) {
        let old = self.protected;
        self.acked = self.acked();
        self.allowed = self.owed();
        self.protected = if self.options.standalone {
            policy::EVERYTHING
        } else {
            policy::protected(self.options.protect, self.options.require, self.standing())
        };
        if !self.may_acknowledge() {
            self.withheld = true;
        } else {
            // While everything is protected, each write is answered as its local write completes.
            let again = std::mem::take(&mut self.withheld);
            let from = if again { self.window.first() } else { old.min(self.tail).next() };
            let to = if again { self.tail } else { self.protected.min(self.tail) };
            for seq in from.max(self.window.first()).0..=to.0 {
                self.reply_if_ready(Seq(seq), fx);
            }
            self.settle_flushes(fx);
            self.settle_resize(fx);
        }
        self.note_frozen(fx);
    }

    /// Everything up to here has been acknowledged.
    pub(super) fn acked(&self) -> Seq {
        if self.withheld { self.acked } else { self.acked.max(self.protected.min(self.local_done)) }
    }

    pub(super) fn reply_if_ready(&mut self, seq: Seq, fx: &mut Vec<Effect>) {
        let deferred = self.options.ack == Ack::Flush;
        let protected = self.protected;
        let Some(entry) = self.window.get_mut(seq) else { return };
        if entry.local != Local::Done {
            return;
        }
        let promised = seq <= protected || (deferred && entry.record.flags & FLAG_FUA == 0);
        if promised && let Some(req) = entry.req.take() {
            fx.push(Effect::Reply { req, result: Ok(()) });
        }
    }

    pub(super) fn settle_flushes(&mut self, fx: &mut Vec<Effect>) {
        let wait = if self.options.ack == Ack::Flush && !planted(Bug::FlushUnprotected) {
            self.protected
        } else {
            policy::EVERYTHING
        };
        self.flushes.retain(|flush| {
            let synced = flush.stage == FlushStage::Synced || planted(Bug::FlushUnsynced);
            let done = synced && flush.seq <= wait;
            if done {
                fx.push(Effect::Reply { req: flush.req, result: Ok(()) });
            }
            !done
        });
    }

    pub(super) fn note_frozen(&mut self, fx: &mut Vec<Effect>) {
        let stuck = !self.may_acknowledge() || self.protected == NOTHING;
        let cut_off = stuck && (self.flushes_waiting() || self.window.unanswered() > 0);
        match (cut_off, self.frozen_since_ns) {
            (true, None) => {
                self.frozen_since_ns = Some(self.now.mono_ns);
                let text = format!("writes wait: {}", self.frozen_why());
                fx.push(Effect::Log { level: Level::Warn, text });
            }
            (false, Some(since)) => {
                self.frozen_since_ns = None;
                // Nothing waits any more because everything was failed: nothing goes on.
                if stuck {
                    return;
                }
                let ms = (self.now.mono_ns - since) / 1_000_000;
                fx.push(Effect::Log { level: Level::Info, text: format!("writes go on after {ms} ms") });
            }
            _ => {}
        }
    }

    fn flushes_waiting(&self) -> bool {
        self.flushes.iter().any(|flush| flush.stage == FlushStage::Synced)
    }

    /// Why nothing is acknowledged.
    pub(super) fn frozen_why(&self) -> &'static str {
        if self.may_acknowledge() {
            "what the protection mode requires is out of reach"
        } else {
            "neither the auxiliary nor DR has answered within the lease"
        }
    }

    /// Fails what has waited longer than the group allows.
    pub(super) fn expire_frozen(&mut self, fx: &mut Vec<Effect>) {
        let timeout = self.options.freeze_timeout_ns;
        let Some(since) = self.frozen_since_ns else { return };
        if timeout == 0 || self.now.mono_ns < since + timeout {
            return;
        }
        let mut failed = 0;
        for entry in self.window.iter_mut().filter(|entry| entry.local == Local::Done) {
            if let Some(req) = entry.req.take() {
                fx.push(Effect::Reply { req, result: Err(Errno::Io) });
                failed += 1;
            }
        }
        for flush in self.flushes.drain(..) {
            fx.push(Effect::Reply { req: flush.req, result: Err(Errno::Io) });
            failed += 1;
        }
        if failed > 0 {
            let text = format!("{failed} requests failed: no protection within freeze_timeout_seconds");
            fx.push(Effect::Log { level: Level::Error, text });
        }
    }

    /// A higher epoch is in force: this writer never acknowledges again (I7).
    pub(super) fn fence(&mut self, text: &str, fx: &mut Vec<Effect>) {
        if self.fenced.is_some() || planted(Bug::FenceUnheeded) {
            return;
        }
        self.fenced = Some(text.to_string());
        fx.push(Effect::Log { level: Level::Error, text: format!("fenced, refusing all I/O: {text}") });
        for entry in self.window.iter_mut() {
            if let Some(req) = entry.req.take() {
                fx.push(Effect::Reply { req, result: Err(Errno::Shutdown) });
            }
        }
        for (req, ..) in self.held_requests.drain() {
            fx.push(Effect::Reply { req, result: Err(Errno::Shutdown) });
        }
        for flush in self.flushes.drain(..) {
            fx.push(Effect::Reply { req: flush.req, result: Err(Errno::Shutdown) });
        }
        self.fail_resizes("this primary has been fenced: a newer epoch serves the group", fx);
    }
}
