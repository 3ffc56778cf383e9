//! What DR asks for again: payloads that it has not, or has not any more.

use bytes::Bytes;

use crate::core::ids::{Seq, SeqRange};
use crate::core::planted::{Bug, planted};
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
        // Which payloads a batch leaves out DR can say once it knows of it.
        let unheard = under_way.map(|batch| batch.begin).filter(|begin| *begin > self.dr.journal);
        for range in ranges {
            for seq in (range.first.0..=range.last.0.min(self.tail.0)).map(Seq) {
                if everything.max(unheard).is_some_and(|begin| seq < begin) {
                    continue;
                }
                if self.is_to_come(seq) {
                    // It may be the order itself that is lost there: then it cannot take the payload either (seed 7180457).
                    if self.dr.lacks_orders {
                        self.dr.asked.insert(seq);
                    }
                    continue;
                }
                match self.window.get(seq).map(|entry| entry.payload) {
                    // DR tells at its welcome what is missing there. Whether it was dropped nobody knows any more; DR will say
                    // so if the next batch does not bring it.
                    None if self.lost_any() && self.dr.streams_up() == 0 => {}
                    // Asked for again on the same connection: DR cannot take it, it has lost the order that it belongs to.
                    _ if !self.dr.asked.insert(seq) => return self.left_to_batch(seq, fx),
                    Some(Payload::Sent | Payload::Spilled) => self.requeue(seq),
                    // DR had no room any more for what the batch under way brings: where that was given up for it, no batch
                    // came to its end while something was written.
                    _ if brought.is_some_and(|begin| seq < begin) => {}
                    // Left to a batch already: the one under way, or the next.
                    Some(Payload::Dropped) if self.lost_any() || self.mode.batch().is_some() => {}
                    // Gone from memory; or there never was one, and it is the order itself that DR has lost.
                    _ => return self.left_to_batch(seq, fx),
                }
            }
        }
    }

    /// Whether a payload has yet to be sent on the connections of now.
    fn is_to_come(&self, seq: Seq) -> bool {
        match self.window.get(seq).map(|entry| entry.payload) {
            Some(Payload::Queued | Payload::Spilling) => true,
            Some(Payload::Spilled) | None => self.fifo.may_send(seq),
            Some(Payload::Sent | Payload::Copied | Payload::Dropped | Payload::None) => false,
        }
    }

    /// DR has acknowledged orders up to `told`, by themselves or by their payloads, and has lost those after `journal`: with
    /// them went their payloads, and those that it acknowledged it cannot ask for.
    pub(super) fn unsaid(&mut self, journal: Seq, told: Seq, fx: &mut Vec<Effect>) {
        let copied = |seq: &Seq| match self.window.get(*seq).map(|entry| entry.payload) {
            Some(payload) => payload == Payload::Copied,
            None => !self.fifo.may_send(*seq),
        };
        let first = (journal.0 + 1..=told.0.min(self.tail.0)).map(Seq).find(copied);
        if let Some(seq) = first.filter(|_| !planted(Bug::UnsaidBelieved)) {
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
