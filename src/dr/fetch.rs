//! Payloads that DR lacks and the auxiliary's ring still has: fetched in order, as far as they move the cut.
//!
//! Each is verified against the record of the history before it counts (I8), and durable in the spool
//! before the cut passes it. A plan verifies them the same way and keeps none.

use bytes::Bytes;

use crate::core::ids::Seq;
use crate::core::machine::{Level, Now};
use crate::dr::api::Effect;
use crate::dr::history::{Entry, History};
use crate::dr::intake::Arrival;
use crate::dr::machine::Machine;
use crate::dr::promote::{Fetch, Promotion, Step};
use crate::dr::reconcile::{Decision, Known, decide};
use crate::dr::replay::Item;
use crate::dr::table::TableReader;
use crate::format::record::OrderRecord;
use crate::format::spool::{decode_entry, entry_bytes};
use crate::limits::DR_FETCH_BYTES_MAX;

impl Machine {
    /// The states are known, and no batch is about to move the cut: which payloads are to be fetched, in order, up to the first
    /// that cannot be had, or to where there is no room for a resize. What completes a batch that is here otherwise comes first:
    /// with it the cut goes to its end, whatever the order alone would allow.
    pub(super) fn plan_fetch(&mut self, fx: &mut Vec<Effect>) {
        let plan = self.promotion.as_ref().filter(|promotion| promotion.plan);
        let (planned, forced) = (plan.is_some(), plan.is_some_and(|plan| plan.force));
        let stop = self.sizes.stops_at.or_else(|| self.forced_before(forced).filter(|_| planned));
        let completed = self.fetch_of_batch(stop);
        if let (false, Some((_, lacking))) = (planned, &completed)
            && let Some(promotion) = self.promotion.as_mut().filter(|it| !lacking.is_empty() && !it.completed)
        {
            promotion.step = Step::Fetching;
            promotion.unusable = None;
            promotion.fetch = lacking.iter().copied().collect();
            (promotion.completed, promotion.completing) = (true, true);
            return;
        }
        if !planned {
            self.abandon_batch(Seq(0));
        }
        let cut = self.cut;
        let Some(promotion) = &mut self.promotion else { return };
        promotion.step = Step::Fetching;
        promotion.unusable = None;
        promotion.fetch.clear();
        if let Some(view) = &mut promotion.view {
            view.pass_batches(Seq(0));
        }
        let from = match completed.filter(|_| planned) {
            Some((end, lacking)) => {
                promotion.fetch.extend(lacking);
                promotion.ends_at = Some(end);
                end
            }
            None => cut,
        };
        let Some(table) = &promotion.table else { return };
        let view = promotion.view.as_ref().unwrap_or(&self.history);
        let conflicts = view.above(cut).filter(|entry| decided(table, entry).conflict).count();
        if conflicts > 0 {
            let text =
                format!("the status table says of {conflicts} payloads that they were copied; they are not here");
            fx.push(Effect::Log { level: Level::Error, text });
        }
        for entry in view.above(from) {
            if !entry.unbroken || stop.is_some_and(|stop| entry.record.seq > stop) {
                break;
            }
            if entry.complete() {
                continue;
            }
            let Some((pos, offset)) = in_ring(table, entry) else { break };
            promotion.fetch.push_back((entry.record, pos, offset));
        }
    }

    /// The end of a batch that is here but for payloads that the ring has, and those; of none that ends behind `stop`.
    fn fetch_of_batch(&self, stop: Option<Seq>) -> Option<(Seq, Vec<Fetch>)> {
        let promotion = self.promotion.as_ref()?;
        let history = promotion.view.as_ref().unwrap_or(&self.history);
        let batch = self.committing.as_ref().or(self.batch.as_ref())?;
        let (end, lacking) = self.completes(batch, history)?;
        if stop.is_some_and(|stop| end.seq > stop) {
            return None;
        }
        let place = |record: &OrderRecord| {
            let (pos, offset) = in_ring(promotion.table.as_ref()?, history.get(record.seq)?)?;
            Some((*record, pos, offset))
        };
        Some((end.seq, lacking.iter().map(place).collect::<Option<Vec<_>>>()?))
    }

    /// How far the cut of a plan goes, in the history that it looks at.
    pub(super) fn planned_cut(&self, promotion: &Promotion, history: &History) -> Seq {
        let batch = self.committing.as_ref().or(self.batch.as_ref());
        let completed = promotion.ends_at.zip(batch).and_then(|(_, batch)| self.completes(batch, history));
        let end = completed.filter(|(_, lacking)| lacking.is_empty()).map(|(end, _)| end.seq);
        history.unbroken_from(end.unwrap_or(self.cut).max(self.cut), history.tail())
    }

    /// Nobody is left who could complete the batch that was coming in. An earlier attempt has passed all up to `promised`.
    pub(super) fn abandon_batch(&mut self, promised: Seq) {
        self.history.pass_batches(promised);
        self.drop_leftovers();
        for chunk in self.batch.take().iter().flat_map(|batch| batch.chunks.values()) {
            self.intake.spool.free(chunk.pos);
        }
    }

    /// Fetches the next payload, one at a time; with none left, the report is due.
    pub(super) fn fetch_more(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let applying = self.is_applying();
        let Some(promotion) = &mut self.promotion else { return };
        if promotion.fetching.is_some() {
            return;
        }
        let plan = promotion.plan;
        // What was here and is damaged, the ring may still have: it comes before what lies behind it.
        if !plan && promotion.fetch_again && promotion.table.is_some() {
            if self.intake.idle() {
                promotion.fetch_again = false;
                self.want_states();
            }
            return;
        }
        if let Some(&(record, _, offset)) = promotion.fetch.front() {
            let length = entry_bytes(record.payload_bytes());
            // What was fetched is held until it is in the spool.
            if !plan && self.intake.storing_bytes() + length > DR_FETCH_BYTES_MAX && !self.intake.idle() {
                return;
            }
            if !plan && !self.intake.spool.fits(length) {
                if self.fetch_needs_room(&record, fx) {
                    self.fetch_more(now, fx);
                }
                return;
            }
            let ticket = self.desk.ticket();
            promotion.fetching = Some(ticket);
            fx.push(Effect::AuxRead { ticket, offset, length });
        } else if promotion.completing {
            // The batch is complete by now, or what it lacks cannot be had: what is behind either is looked for.
            if self.intake.idle() && self.journal.idle() {
                promotion.completing = false;
                self.want_states();
            }
        // A batch that these records complete moves the cut: what the report says of it is final. So everything up to it has been
        // read before: what is found damaged then can still be fetched.
        } else if plan || self.intake.idle() && self.journal.idle() && self.committing.is_none() && !applying {
            self.report_now(now, fx);
        }
    }

    /// A full spool that only holds what the order forbids to apply before this payload. Where it cannot grow, the oldest of
    /// that gives way: without this payload nothing behind it can be applied, and with it what the ring has of the rest can be
    /// fetched again. Whether the fetch is over because nothing more can be given up.
    fn fetch_needs_room(&mut self, record: &OrderRecord, fx: &mut Vec<Effect>) -> bool {
        let freeing = self.replay.applied() > self.history.floor() || self.is_applying();
        if !self.intake.idle() || freeing || !self.keeper.settled() || !self.checkpoints.idle() {
            return false;
        }
        if self.grow_spool(fx) {
            return false;
        }
        let length = entry_bytes(record.payload_bytes());
        let given_up = self.give_up_until(|spool| spool.fits_above(spool.first_live(), length));
        if !given_up.is_empty() {
            let text = format!(
                "the spool ({} bytes) is full: {} payloads give way to that of seq {}, and are fetched after it where the ring \
                 has them",
                self.intake.spool.bytes(),
                given_up.len(),
                record.seq
            );
            fx.push(Effect::Log { level: Level::Warn, text });
        }
        let (floor, _) = self.intake.spool.bounds();
        if self.intake.spool.rewind() || self.intake.spool.first_live() > floor {
            self.save_floor();
            if !given_up.is_empty() {
                self.want_states();
            }
            return false;
        }
        let text = format!("no room in the spool to fetch the payload of seq {}: the cut stays before it", record.seq);
        fx.push(Effect::Log { level: Level::Error, text });
        if let Some(promotion) = &mut self.promotion {
            promotion.fetch.clear();
        }
        true
    }

    /// Whether something that is here is on its way into the volumes.
    fn is_applying(&self) -> bool {
        let rests = self.replay.idle() && self.desk.idle() && self.keeper.settled() && !self.is_growing();
        self.replay.applied() < self.cut && (!rests || self.promise_wanted())
    }

    /// A payload came from the ring.
    pub(super) fn fetched(&mut self, bytes: &Bytes, fx: &mut Vec<Effect>) {
        let Some(promotion) = &mut self.promotion else { return };
        let Some((record, pos, _)) = promotion.fetch.pop_front() else { return };
        let Some(table) = &promotion.table else { return };
        let why = match decode_entry(bytes, table.group.0) {
            Ok((header, data)) if header.record == record && header.pos == pos => {
                promotion.count_fetched(record.seq);
                if !promotion.plan {
                    let arrival = Arrival { conn: crate::core::ids::Conn(u64::MAX), record, data };
                    self.intake.store(Item::Payload(record.seq), arrival, &mut self.desk, fx);
                }
                return;
            }
            Ok((header, _)) => format!("it holds seq {}", header.record.seq),
            Err(err) => err.to_string(),
        };
        // The writer goes on during a plan: what DR got from it meanwhile has left the ring.
        let arrived = record.seq <= self.cut || self.history.get(record.seq).is_some_and(|it| it.payload.is_some());
        if promotion.plan && arrived {
            promotion.pretend(record.seq);
            return;
        }
        // What comes after it could not be applied anyway.
        promotion.fetch.clear();
        let text = format!("the payload of seq {} in the auxiliary's ring is not usable: {why}", record.seq);
        promotion.unusable = Some((record.seq, text.clone()));
        fx.push(Effect::Log { level: Level::Error, text });
    }
}

/// What reconciliation says of an order of the history, of which the table has been read.
fn decided(table: &TableReader, entry: &Entry) -> Decision {
    decide(Known {
        in_journal: true,
        in_table: true,
        in_image: false,
        has_payload: entry.record.op.has_payload(),
        here: entry.payload.is_some(),
        in_ring: table.ring_place(&entry.record).is_some(),
        state: table.states.get(&entry.record.seq).map(|state| state.state),
    })
}

/// Where the ring has the payload of an order that is not here: position and offset.
fn in_ring(table: &TableReader, entry: &Entry) -> Option<(u64, u64)> {
    table.ring_place(&entry.record).filter(|_| decided(table, entry).fetch)
}

impl Promotion {
    /// One more payload could be had; a plan pretends to hold it.
    fn count_fetched(&mut self, seq: Seq) {
        self.add_fetched();
        if self.plan {
            self.pretend(seq);
        }
    }

    /// A plan looks at a history in which what can be had is here.
    fn pretend(&mut self, seq: Seq) {
        if let Some(view) = &mut self.view {
            view.hold(seq, 0);
        }
    }
}
