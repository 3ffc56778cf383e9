//! What an operator is told of a primary (I9: status says which policy acts).

use std::fmt::Write as _;

use super::batch::{Batch, Mode};
use super::intake::Room;
use super::machine::Machine;
use super::policy;
use crate::cluster::status::{BatchStatus, Degraded, LinkStatus, PrimaryStatus, VolumeStatus};
use crate::core::machine::Now;
use crate::core::modes::{Ack, Overflow, Protect, Require};
use crate::core::planted::{Bug, planted};
use crate::limits::BLOCK_BYTES;

impl Machine {
    /// Where this primary stands. Addresses, clients and received bytes are the shell's to fill in.
    #[must_use]
    pub fn status(&self, now: Now) -> PrimaryStatus {
        // A promoted site serves alone: there is nothing that anybody has yet to get.
        let cut = if self.options.standalone { self.tail } else { self.cut_known().min(self.tail) };
        let disk = self.fifo.bytes();
        PrimaryStatus {
            group: self.options.group_name.clone(),
            epoch: self.superblock.epoch,
            volumes: self.volume_status(),
            tail_seq: self.tail,
            cut_seq: cut,
            acked_seq: self.acked(),
            lag_writes: self.tail.0 - if self.options.standalone { cut.0 } else { self.lag_floor().0 },
            lag_bytes: self.lag_bytes(),
            lag_seconds: self.lag_seconds(now),
            protect: word(self.options.protect).into(),
            mode: self.mode_in_force().into(),
            ack: if self.options.ack == Ack::Write { "write" } else { "flush" }.into(),
            require: match self.options.require {
                Require::Both => "both",
                Require::Any => "any",
                Require::None => "none",
            }
            .into(),
            policy: match self.options.overflow {
                Overflow::Coalesce => "coalesce",
                Overflow::Pace => "pace",
                Overflow::Refuse => "refuse",
            }
            .into(),
            overflow: self.held() > 0 || self.refuses() || (self.lost_any() && !self.options.standalone),
            frozen: self.frozen_since_ns.map(|_| self.frozen_why().into()),
            resizing: self.resize_waits_for(),
            paced: self.paced.map(|paced| paced.why.into()),
            fenced: self.fenced.clone(),
            fifo_bytes: self.held.bytes + disk,
            fifo_memory_bytes: self.held.bytes,
            fifo_disk_bytes: disk,
            fifo_memory_limit_bytes: self.options.fifo_memory_bytes,
            fifo_disk_limit_bytes: self.options.fifo_disk_bytes,
            fifo_full_in_seconds: self.fifo_full_in_seconds(),
            lag_max: self.options.lag_max,
            inflight_writes: self.window.unanswered() as u64 + self.held() as u64,
            table_slots_used: (self.tail.0 - self.floor().0.min(self.tail.0)).min(self.aux.slots()),
            table_slots: self.aux.slots(),
            batch: self.batch_status(now),
            verify: self.verify_status(now),
            dr_holds_back: self.dr_holds_back(),
            degraded: self.degraded(now),
            links: self.links(now),
            ..PrimaryStatus::default()
        }
    }

    /// Whether replies wait for everything the mode promises, and it holds of everything acknowledged before; otherwise
    /// status says what is degraded.
    #[must_use]
    pub fn in_full(&self) -> bool {
        policy::in_full(self.options.protect, self.covering())
    }

    /// Whether an ordinary write would be refused now.
    pub(super) fn refuses(&self) -> bool {
        !self.options.standalone && matches!(self.room(BLOCK_BYTES as u64), Room::No)
    }

    fn batch(&self) -> Option<&Batch> {
        self.mode.batch()
    }

    fn volume_status(&self) -> Vec<VolumeStatus> {
        let volume = |(name, size): &(String, u64)| VolumeStatus { name: name.clone(), size_bytes: *size, clients: 0 };
        self.options.volumes.iter().map(volume).collect()
    }

    /// Age of the oldest write that is not in DR's cut.
    fn lag_seconds(&self, now: Now) -> f64 {
        let first = self.lag_floor().next();
        if self.options.standalone || first > self.tail {
            return 0.0;
        }
        let oldest = self.window.get(first).map(|entry| entry.record.time_ns);
        let since = oldest.or_else(|| self.ages.wall_ns(first)).unwrap_or(now.wall_ns);
        seconds(now.wall_ns.saturating_sub(since))
    }

    /// The mode in force, in a word.
    #[must_use]
    pub fn mode_in_force(&self) -> &'static str {
        if self.options.standalone {
            return "alone";
        }
        if self.in_full() {
            return word(self.options.protect);
        }
        // What has been acknowledged stands in several places, and no one of them has all of it yet: as those in reach say.
        let covering = self.covering();
        if self.table_overrun() && !planted(Bug::OverrunInForce) {
            // Where no journal has the orders that the table had no room for, nobody has.
            return if self.journal_has_orders() { "journal only" } else { "async" };
        }
        let parts = covering.aux.is_none() && covering.journal.is_none();
        let at = if parts { self.standing() } else { covering };
        match (self.options.require, at.aux.is_some(), at.journal.is_some()) {
            (Require::Both, _, _) => "frozen",
            (_, true, true) => "order",
            (_, true, false) => "near",
            (_, false, true) => "journal only",
            (Require::Any, false, false) => "frozen",
            (Require::None, false, false) => "async",
        }
    }

    /// Whether DR's journal has every order that it has no payload of: it may have been led past some, which a batch covers
    /// that DR has yet to take over.
    fn journal_has_orders(&self) -> bool {
        self.covering().journal.is_some() && !self.catches_up()
    }

    fn batch_status(&self, now: Now) -> Option<BatchStatus> {
        let batch = self.batch().or(self.closing.as_ref())?;
        Some(BatchStatus {
            seq: batch.begin,
            total_bytes: batch.all.bytes(),
            remaining_bytes: Some(batch.behind()),
            reason: if self.dr.synced { "catch-up" } else { "first sync" }.into(),
            remaining_seconds: batch.seconds_left(now).filter(|_| self.dr.ready()),
            spared_bytes: Some(batch.spared_bytes()),
        })
    }

    fn degraded(&self, now: Now) -> Vec<Degraded> {
        let mut out = Vec::new();
        if self.options.standalone {
            out.push(Degraded::new("no DR: this site serves alone since its promotion", now.wall_ns, now.wall_ns));
            return out;
        }
        if !self.aux.in_reach() {
            let why = self.aux.problem.clone().unwrap_or_else(|| self.aux.word().into());
            out.push(Degraded::new(format!("auxiliary: {why}"), self.aux.since(now), now.wall_ns));
        }
        if !self.dr.caught_up() {
            let full = self.orders_stuck();
            let word = if full { "its journal is full, orders wait here" } else { self.dr.word() };
            let why = self.dr.problem.clone().unwrap_or_else(|| word.into());
            out.push(Degraded::new(format!("DR: {why}"), self.dr.since(now), now.wall_ns));
        }
        out.extend(self.held_back(now));
        if self.aux.in_reach() && self.aux.skipped > self.floor() {
            let text = format!("the auxiliary lacks records up to seq {}, which DR has not either", self.aux.skipped);
            out.push(Degraded::new(text, self.aux.since(now), now.wall_ns));
        }
        if self.dr.caught_up() && self.dr.skipped > self.dr.cut {
            let text = format!("DR lacks records up to seq {} until its batch is complete", self.dr.skipped);
            out.push(Degraded::new(text, self.dr.since(now), now.wall_ns));
        }
        if self.table_overrun() {
            let mut text =
                "the auxiliary's table is full: orders of writes that DR may not have are overwritten".to_string();
            if !self.in_full() && !self.journal_has_orders() {
                let mode = word(self.options.protect);
                write!(
                    text,
                    "; {mode} is not in force, after a loss of this host those writes are known by their seqs only"
                )
                .expect("into a string");
            }
            out.push(Degraded::new(text, self.dr.since(now), now.wall_ns));
        }
        if self.options.protect == Protect::Bunker && self.aux.in_reach() && !self.aux.keeps_payloads() {
            out.push(Degraded::new(self.aux.ring_problem(), self.aux.since(now), now.wall_ns));
        }
        if matches!(self.mode, Mode::Coalescing) {
            let text = format!("payloads are dropped, a batch of {} bytes follows", self.lost.bytes());
            let since = self.dropped_since_ns.unwrap_or(now.wall_ns);
            out.push(Degraded::new(text, since, now.wall_ns));
        }
        if self.mends() {
            out.push(Degraded::new(self.mends_why(), now.wall_ns, now.wall_ns));
        }
        if let Some((bytes, since_ns)) = self.verify_differs() {
            let text = format!(
                "{bytes} bytes differed at DR, or could not be read, when both sides were compared: `farshore verify --repair`"
            );
            out.push(Degraded::new(text, since_ns, now.wall_ns));
        }
        out.extend(self.unfit().map(|text| Degraded::new(text, self.dr.since(now), now.wall_ns)));
        out.extend(self.below_mode(now));
        if self.batches_given_up > 0 {
            let pace = if self.closes_batch() { ": writes wait for the present one when the FIFO is full" } else { "" };
            let (count, why) = (self.batches_given_up, &self.gave_up_why);
            let text = format!("{count} batches were given up, the last one because {why}{pace}");
            out.push(Degraded::new(text, now.wall_ns, now.wall_ns));
        }
        if let Some(paced) = self.paced {
            let text = format!("paced: {}, writes wait until something has left", paced.why);
            out.push(Degraded::new(text, paced.since_wall_ns, now.wall_ns));
        }
        if self.refuses() {
            let text = match self.journal_wait() {
                Some(_) => "DR's journal is full and gets no room: writes are refused (ENOSPC)",
                None if self.table_full() => "the status table is full: writes are refused (ENOSPC)",
                None => "the FIFO is full: writes are refused (ENOSPC)",
            };
            let since = self.refused_since_ns.unwrap_or(now.wall_ns);
            out.push(Degraded::new(text, since, now.wall_ns));
        }
        if let Some(former) = &self.dr.former {
            out.push(Degraded::new(former.text(), former.since_ns, now.wall_ns));
        } else if self.dr.ready() && !self.dr.synced {
            out.push(Degraded::new(
                "DR has no complete copy yet: it cannot be promoted",
                self.dr.since(now),
                now.wall_ns,
            ));
        }
        out
    }

    /// Why less than the mode is in force while everything it wants is in reach.
    fn below_mode(&self, now: Now) -> Vec<Degraded> {
        let mut out = Vec::new();
        if self.options.protect == Protect::Bunker && self.catches_up() && !self.settled_start {
            let text = match self.options.require {
                Require::Both => "bunker: nothing is acknowledged until DR's first batch is complete",
                _ => {
                    "bunker is not in force: data is acknowledged with its order only until DR's first batch is complete"
                }
            };
            out.push(Degraded::new(text, self.dr.since(now), now.wall_ns));
        }
        if matches!(self.options.protect, Protect::Sync) && self.catches_up() {
            let text = match self.options.require {
                Require::Both => "sync: nothing is acknowledged until DR's batch is complete",
                _ => "sync is not in force: data is acknowledged before it is at DR until its batch is complete",
            };
            out.push(Degraded::new(text, self.dr.since(now), now.wall_ns));
        }
        if policy::in_full(self.options.protect, self.standing()) && !self.in_full() && !self.table_overrun() {
            let (mode, owed) = (word(self.options.protect), self.owed());
            let text = format!(
                "{mode} is not in force: writes up to seq {owed} were acknowledged with less, and are not all where it wants \
                 them yet; what is written now waits for them"
            );
            out.push(Degraded::new(text, self.dr.since(now), now.wall_ns));
        }
        out
    }

    fn links(&self, now: Now) -> Vec<LinkStatus> {
        if self.options.standalone {
            return Vec::new();
        }
        let rtt = |ns: u64| (ns > 0).then(|| seconds(ns));
        let aux = LinkStatus {
            peer: "aux".into(),
            state: self.aux.word().into(),
            reason: self.aux.problem.clone(),
            rtt_seconds: rtt(self.aux.rtt_ns),
            sent_bytes: self.aux.sent_bytes,
            order_bytes: self.aux.order_bytes,
            seconds: seconds(now.wall_ns.saturating_sub(self.aux.since(now))),
            ..LinkStatus::default()
        };
        let dr = LinkStatus {
            peer: "dr".into(),
            state: self.dr.word().into(),
            reason: self.dr.problem.clone(),
            rtt_seconds: rtt(self.dr.rtt_ns),
            order_bytes: self.dr.order_bytes,
            streams: self.dr.streams_up() as u64,
            seconds: seconds(now.wall_ns.saturating_sub(self.dr.since(now))),
            ..LinkStatus::default()
        };
        vec![aux, dr]
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn word(protect: Protect) -> &'static str {
    match protect {
        Protect::Async => "async",
        Protect::Near => "near",
        Protect::Order => "order",
        Protect::Bunker => "bunker",
        Protect::Sync => "sync",
    }
}
