//! What the site says of itself. Reads the machine, changes nothing.

use crate::cluster::status::{BatchStatus, Degraded, DrStatus, LinkStatus, VolumeStatus, seconds};
use crate::core::ids::{Conn, Seq};
use crate::core::machine::Now;
use crate::dr::links::Part;
use crate::dr::machine::Machine;
use crate::format::superblock::{FORCED, PROMOTED, PROMOTING};

impl Machine {
    /// The recovery point; 0 while there is none.
    #[must_use]
    pub fn recovery_point(&self) -> Seq {
        self.point(self.cut)
    }

    /// The order connection of the primary, while it is up.
    #[must_use]
    pub fn order_conn(&self) -> Option<Conn> {
        self.links.order
    }

    /// Where this site stands; bytes and times of its connections are known to who has them.
    #[must_use]
    pub fn status(&self, now: Now) -> DrStatus {
        let it = self.keeper.get();
        let (cut, tail) = (self.cut, self.history.tail());
        let sizes = self.sizes_at(cut);
        let (mut lag_writes, mut lag_bytes, mut oldest_ns, mut pending) = (0, 0, None, 0);
        for entry in self.history.above(cut).filter(|entry| entry.record.changes_volume()) {
            lag_writes += 1;
            lag_bytes += entry.record.extent().map_or(0, |extent| extent.length);
            oldest_ns.get_or_insert(entry.record.time_ns);
            pending += u64::from(entry.payload.is_some());
        }
        DrStatus {
            group: self.options.group_name.clone(),
            epoch: it.epoch,
            volumes: self
                .options
                .volumes
                .iter()
                .zip(sizes)
                .map(|((name, _), size)| VolumeStatus {
                    name: name.clone(),
                    size_bytes: size,
                    ..VolumeStatus::default()
                })
                .collect(),
            tail_seq: tail,
            cut_seq: self.point(cut),
            journal_seq: self.journal.durable(),
            applied_seq: self.point(self.replay.applied()),
            checkpoint_seq: self.history.floor(),
            lag_writes,
            lag_bytes,
            lag_seconds: oldest_ns.map_or(0.0, |oldest| seconds(now.wall_ns.saturating_sub(oldest))),
            pending_writes: pending,
            missing_writes: self.history.missing_above(cut) as u64,
            spool_bytes: self.intake.spool.live_bytes(),
            spool_limit_bytes: self.intake.spool.bytes(),
            journal_bytes: self.journal.used_bytes(),
            journal_limit_bytes: self.journal.size_bytes(),
            synced: self.synced(),
            batch: self.batch_status(),
            promotion: self.promotion_status(),
            holds_back: self.holds_back(),
            degraded: self.degraded(now),
            links: self.link_status(now),
            ..DrStatus::default()
        }
    }

    fn batch_status(&self) -> Option<BatchStatus> {
        let (seq, total, remaining_bytes, reason) = match (&self.batch, &self.committed) {
            (Some(batch), _) => {
                let total = self.history.open_batch(self.cut).and_then(|(_, end)| end).map(|end| end.length);
                let reason = match batch.direct {
                    _ if batch.end.is_some() => "waiting for room in a store",
                    true => "first sync",
                    false => "resync",
                };
                let remaining = total.map(|total| total.saturating_sub(batch.bytes));
                (batch.begin, total.unwrap_or(batch.bytes), remaining, reason)
            }
            (None, Some(batch)) => (batch.begin, 0, Some(0), "applying"),
            (None, None) => return None,
        };
        let reason = reason.into();
        Some(BatchStatus { seq, total_bytes: total, remaining_bytes, reason, ..BatchStatus::default() })
    }

    fn promotion_status(&self) -> Option<String> {
        let it = self.keeper.get();
        if it.has(PROMOTED) {
            return Some(format!("promoted to epoch {}", it.epoch));
        }
        match &self.promotion {
            Some(promotion) if !promotion.plan => Some(promotion.step.word().into()),
            Some(promotion) if promotion.rehearsal => {
                Some("looking, before anybody is fenced, whether it would be refused".into())
            }
            _ if it.has(PROMOTING) => {
                let how = if it.has(FORCED) { "; it goes on by force" } else { "" };
                let why = self.last_refusal.as_ref().map_or(String::new(), |why| format!(". Last time: {why}"));
                Some(format!(
                    "to epoch {}, interrupted: call promote again{how}; until then nobody serves, for the old primary may be \
                     fenced{why}",
                    it.target_epoch
                ))
            }
            None if self.promote_later.is_some() => Some("waiting until it can begin".into()),
            _ => None,
        }
    }

    fn degraded(&self, now: Now) -> Vec<Degraded> {
        let mut list: Vec<Degraded> =
            self.troubles.values().map(|(text, since)| Degraded::new(text.clone(), *since, now.wall_ns)).collect();
        let wall_of = |mono_ns: u64| now.wall_ns.saturating_sub(now.mono_ns.saturating_sub(mono_ns));
        if !self.synced() {
            list.push(Degraded::new("no recovery point yet: the first sync is not complete", now.wall_ns, now.wall_ns));
        }
        if let Some((text, since)) = &self.links.turned_down {
            list.push(Degraded::new(text.clone(), *since, now.wall_ns));
        }
        if self.links.order.is_none() && !self.keeper.get().has(PROMOTED) {
            list.push(Degraded::new("no primary is connected", wall_of(self.alone_since_ns), now.wall_ns));
        }
        list
    }

    fn link_status(&self, now: Now) -> Vec<LinkStatus> {
        let streams = self.links.streams().len() as u64;
        let order = self.links.order.and_then(|conn| self.links.peers.get(&conn));
        let since = order.map_or(self.alone_since_ns, |peer| peer.since_ns);
        let strangers = self.links.peers.values().any(|peer| matches!(peer.part, Part::Pending(_)));
        let state = match order {
            Some(_) => "up",
            None if self.links.turned_down.is_some() => "refused",
            None if strangers => "connecting",
            None => "down",
        };
        vec![LinkStatus {
            peer: "primary".into(),
            state: state.into(),
            reason: self.links.turned_down.as_ref().map(|(text, _)| text.clone()),
            streams,
            seconds: seconds(now.mono_ns.saturating_sub(since)),
            ..LinkStatus::default()
        }]
    }
}
