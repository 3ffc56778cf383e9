//! What DR asks for again: payloads that it has not, or has not any more.

use bytes::Bytes;

use crate::core::ids::{Seq, SeqRange};
use crate::core::planted::{Bug, planted};
use crate::format::wire::Welcome;
use crate::limits::LIST_ITEMS_MAX;
use crate::primary::machine::{Effect, Machine};
use crate::primary::window::Payload;

impl Machine {
    /// DR lost payloads it had, or found them damaged: what memory has not is left to a batch.
    pub(super) fn needed(&mut self, ranges: &[SeqRange], fx: &mut Vec<Effect>) {
        // The batch under way may bring everything there is: then nothing from before its begin is owed.
        let everything = self.mode.batch().map(|batch| batch.begin).filter(|begin| *begin == self.dr.everything_in);
        // Nothing that was written before the next batch begins is owed.
        if self.mode.batch().is_some_and(|batch| batch.ahead) {
            return;
        }
        let under_way = self.mode.batch().or(self.closing.as_ref());
        let brought = under_way.filter(|batch| batch.whole && !self.dr.lacks_orders).map(|batch| batch.begin);
        for range in ranges {
            for seq in range.first.0..=range.last.0.min(self.tail.0) {
                if everything.is_some_and(|begin| Seq(seq) < begin) {
                    continue;
                }
                let entry = self.window.get_mut(Seq(seq)).map(|entry| entry.payload);
                match entry {
                    // Asked for again on the same connection: DR cannot take it, it has lost the order that it belongs to.
                    _ if !self.dr.asked.insert(Seq(seq)) => {
                        self.left_to_batch(Seq(seq), fx);
                        return;
                    }
                    Some(Payload::Queued | Payload::Sent | Payload::Spilling | Payload::Spilled) => {
                        self.requeue(Seq(seq));
                    }
                    // DR had no room any more for what the batch under way brings: where that was given up for it, no batch
                    // came to its end while something was written.
                    _ if brought.is_some_and(|begin| Seq(seq) < begin) => {}
                    // Left to a batch already: the one under way, or the next.
                    Some(Payload::Dropped) if self.lost_any() || self.mode.batch().is_some() => {}
                    // Gone from memory; or there never was one, and it is the order itself that DR has lost.
                    _ => {
                        self.left_to_batch(Seq(seq), fx);
                        return;
                    }
                }
            }
        }
    }

    /// DR has acknowledged payloads that it does not name any more: nobody sends them again, and what it lost with their
    /// orders it cannot ask for. `before` is up to where it has said that it has the orders.
    pub(super) fn unsaid(&mut self, welcome: &Welcome, before: Seq, fx: &mut Vec<Effect>) {
        let under_way = self.mode.batch().or(self.closing.as_ref()).map(|batch| batch.begin);
        let from = welcome.cut.max(under_way.unwrap_or_default()).next().max(self.window.first());
        let named_upto =
            if welcome.have.len() < LIST_ITEMS_MAX { self.tail } else { welcome.have[LIST_ITEMS_MAX - 1].last };
        let mut named = welcome.have.iter().peekable();
        let copied = |seq: &Seq| self.window.get(*seq).is_none_or(|entry| entry.payload == Payload::Copied);
        let kept = (from.0..=welcome.journal_seq.min(named_upto).0).map(Seq).find(|seq| {
            while named.next_if(|range| range.last < *seq).is_some() {}
            copied(seq) && named.peek().is_none_or(|range| *seq < range.first)
        });
        let ordered = (welcome.journal_seq.0 + 1..=before.0.min(self.tail.0)).map(Seq).find(copied);
        if let Some(seq) = kept.or(ordered).filter(|_| !planted(Bug::UnsaidBelieved)) {
            self.left_to_batch(seq, fx);
        }
    }

    /// A payload that DR lacks cannot be brought by the stream.
    fn left_to_batch(&mut self, seq: Seq, fx: &mut Vec<Effect>) {
        self.coalesce(&format!("DR has not the payload of seq {seq}"), fx);
        // What is queued comes after it: DR could only hold it back, and may have no room to.
        self.drop_queued();
        self.lost.union(&self.intent.ranges());
    }

    /// DR has these payloads.
    pub(super) fn mark_copied(&mut self, range: SeqRange) {
        for seq in range.first.0.max(self.window.first().0)..=range.last.0.min(self.tail.0) {
            if let Some(entry) = self.window.get_mut(Seq(seq))
                && matches!(entry.payload, Payload::Queued | Payload::Sent)
                && entry.local.ended()
            {
                self.held -= entry.held();
                entry.payload = Payload::Copied;
                entry.data = Bytes::new();
            }
        }
    }
}
