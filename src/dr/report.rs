//! The report of a promotion: every write that is not in the image, and why (I4).
//!
//! Made once everything that can be had is durable here; from the moment it is stored its cut is final.

use std::collections::BTreeMap;

use crate::cluster::losses::{Entry, MissingWrites};
use crate::cluster::status::{KnownUntil, PromoteReport, rfc3339, seconds};
use crate::core::ids::{Seq, SeqRange, Ticket};
use crate::core::machine::{IoFail, Now};
use crate::core::modes::Protect;
use crate::core::op::Op;
use crate::core::planted::{Bug, planted};
use crate::dr::api::{Effect, Options};
use crate::dr::doubt::{self, Asked};
use crate::dr::history::History;
use crate::dr::machine::Machine;
use crate::dr::promote::{BLANK_TABLE, LossReport, Promotion, Step, failed};
use crate::dr::reconcile::{Known, decide};
use crate::format::record::OrderRecord;

/// What the text of a report begins with that was made without a table that it needs.
pub(super) const LEFT_OUT: &str = "the status table was left out";

impl Machine {
    /// Decides what is stored in the report, and has it made durable.
    pub(super) fn report_now(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let (mut report, doubtful) = self.make_report(now);
        report.refused = self.foreseen(&report, doubtful.as_deref());
        if self.rehearsed(now, &report, doubtful.as_deref(), fx) {
            return;
        }
        let ticket = self.desk.ticket();
        let tail_chain = self.history.tail_chain();
        let group_id = self.keeper.get().group;
        let Some(promotion) = &mut self.promotion else { return };
        if promotion.aux_open {
            promotion.aux_open = false;
            fx.push(Effect::AuxClose);
        }
        if promotion.plan {
            let ticket = promotion.ticket;
            self.promotion = None;
            fx.push(Effect::PromoteDone { ticket, result: Ok(report) });
            return;
        }
        let report = LossReport { group_id, tail_chain, report };
        promotion.step = if planted(Bug::ServeUnreported) { Step::Replaying } else { Step::Storing(ticket) };
        fx.push(Effect::StoreReport { ticket, report: report.clone() });
        self.report = Some(report);
    }

    /// The report is durable: its cut is final, and what is below it may be replayed.
    pub(super) fn report_stored(
        &mut self,
        _now: Now,
        ticket: Ticket,
        result: Result<(), IoFail>,
        fx: &mut Vec<Effect>,
    ) {
        let Some(promotion) = self.promotion.as_mut().filter(|it| it.step == Step::Storing(ticket)) else { return };
        match result {
            Ok(()) => promotion.step = Step::Replaying,
            Err(fail) => {
                self.report = None;
                self.promote_fails(failed(format!("the loss report cannot be stored: {fail}")), fx);
            }
        }
    }

    /// Every write above the cut, and why it is not in the image (I4); and what is in doubt of that, but for want of a table.
    fn make_report(&self, now: Now) -> (PromoteReport, Option<String>) {
        let Some(promotion) = &self.promotion else { return Default::default() };
        // A plan looks at a copy of the history in which what could be fetched is held already.
        let history = promotion.view.as_ref().filter(|_| promotion.plan).unwrap_or(&self.history);
        let cut = if promotion.plan { self.planned_cut(promotion, history) } else { self.cut };
        let cut = self.forced_before(promotion.force).map_or(cut, |before| before.min(cut));
        let all = Above::new(cut, &promotion.strays, history);
        let mut missing = Vec::with_capacity(history.len() + promotion.strays.len());
        missing.extend(all.iter().filter_map(|(record, here)| entry(promotion, &record, here)));
        // The cut may have passed what a plan looked at: the writer went on meanwhile.
        let told = promotion.table.as_ref().map_or(Seq(0), |table| table.told);
        let tail = all.last().max(told);
        let until = self.doubt.as_ref().map_or(tail, |doubt| doubt.until.max(tail));
        let unknown = self.unknown(promotion, cut, until, all).0;
        let due = history.above(self.fed).take_while(|entry| entry.record.seq <= cut);
        let due = due.filter(|entry| entry.record.changes_volume()).count() as u64;
        let doubtful =
            self.vouched(promotion, cut, tail, all).or_else(|| given_up(&unknown, promotion.table.is_some()));
        let newest = all.newest();
        let left_out = self.leaves_out_table(promotion).then(|| self.without_table(&newest));
        let incomplete: Vec<String> = doubtful.clone().into_iter().chain(left_out).collect();
        let report = PromoteReport {
            group: self.options.group_name.clone(),
            epoch: promotion.target,
            cut_seq: cut,
            tail_seq: tail,
            replayed: self.fed_writes - promotion.fed_before + due,
            fetched_from_aux: promotion.fetched,
            // A resize has a new size there, and no data.
            missing_bytes: missing.iter().filter(|it| it.op != Op::Resize).map(|it| it.length).sum(),
            missing: MissingWrites::new(self.options.volumes.iter().map(|(name, _)| name.clone()).collect(), missing),
            aux: promotion.aux.into(),
            duration_seconds: seconds(now.mono_ns.saturating_sub(promotion.started_ns)),
            damage: promotion.unusable.as_ref().filter(|(seq, _)| *seq > cut).map(|(seq, why)| damage(*seq, why)),
            incomplete: (!incomplete.is_empty()).then(|| incomplete.join("; ")),
            unknown,
            known_until: self.known_until(promotion, all, newest),
            ..PromoteReport::default()
        };
        (report, doubtful)
    }

    /// Whether orders of acknowledged writes may stand in the status table alone, so that a report needs it.
    fn needs_table(&self) -> bool {
        let Options { auxiliary, protect, require, .. } = self.options;
        auxiliary && !protect.tells_dr(require)
    }

    /// Whether a table that is needed was left out. (One that is blank was read, and says less: [`BLANK_TABLE`].)
    fn leaves_out_table(&self, promotion: &Promotion) -> bool {
        promotion.table.is_none() && !promotion.blank && self.needs_table()
    }

    /// Behind which order writes may have been acknowledged that nobody knows of, where that can be: the newest of all, or one
    /// before which the primary lost its power, and with it what it had told nobody.
    fn known_until(&self, promotion: &Promotion, all: Above<'_>, newest: KnownUntil) -> Option<KnownUntil> {
        let Options { protect, ack, require, .. } = self.options;
        let hides = protect.hides_the_last(ack, require);
        let goes_on = hides || promotion.table.is_none() && self.needs_table();
        goes_on.then(|| hides.then(|| all.before_power_loss()).flatten().unwrap_or(newest))
    }

    /// Seqs above the cut of which nothing is known, and the last that is known.
    pub(super) fn unknown(&self, promotion: &Promotion, cut: Seq, until: Seq, all: Above<'_>) -> (Vec<SeqRange>, Seq) {
        let table = match &promotion.table {
            Some(table) => Asked::Read(table),
            None if self.needs_table() => Asked::Silent,
            None => Asked::Needless,
        };
        doubt::unknown(cut, until, all.records(), table)
    }

    /// What a report that was made without the table does not know, and since when.
    fn without_table(&self, newest: &KnownUntil) -> String {
        let KnownUntil { seq, time } = newest;
        let when = match self.options.protect {
            Protect::Order | Protect::Sync => ", which is so only while DR is out of reach or catches up,",
            Protect::Async | Protect::Near | Protect::Bunker => "",
        };
        let taken = time.as_ref().map_or_else(String::new, |time| format!(", taken in at {time}"));
        format!(
            "{LEFT_OUT}: writes whose orders had reached the auxiliary and not DR{when} are lost and cannot be listed; the \
             newest order that is known is seq {seq}{taken}"
        )
    }

    /// What the report cannot vouch for, because of damage here or at the auxiliary.
    fn vouched(&self, promotion: &Promotion, cut: Seq, tail: Seq, all: Above<'_>) -> Option<String> {
        let table = match &promotion.table {
            Some(table) => table.doubt(cut, tail, |seq| all.contains(seq)),
            None => (promotion.blank && self.needs_table()).then(|| BLANK_TABLE.to_owned()),
        };
        let why: Vec<String> = self.incomplete(promotion, cut, all).into_iter().chain(table).collect();
        (!why.is_empty()).then(|| why.join("; "))
    }
}

/// Why writes are missing whose data was kept for a promotion.
fn damage(seq: Seq, why: &str) -> String {
    format!(
        "{why}: so seq {seq} is lost, and with it all after it, whatever the ring holds of that (an image is a prefix)"
    )
}

/// What the report says of a record above the cut, if it is one of a write.
fn entry(promotion: &Promotion, record: &OrderRecord, here: bool) -> Option<Entry> {
    if !record.changes_volume() {
        return None;
    }
    let state = promotion.table.as_ref().and_then(|table| table.states.get(&record.seq));
    let known = Known {
        in_journal: true,
        in_table: state.is_some(),
        in_image: false,
        has_payload: record.op.has_payload(),
        here,
        in_ring: false,
        state: state.map(|state| state.state),
    };
    Some(Entry {
        seq: record.seq,
        offset: record.offset,
        length: record.length,
        time_ns: record.time_ns,
        volume: record.volume,
        op: record.op,
        state: decide(known).missing?,
    })
}

/// Every record above a cut, and whether its payload is here; looked at where they are kept, for there may be very many.
/// A batch may have taken the cut past strays.
#[derive(Clone, Copy)]
pub(super) struct Above<'a> {
    cut: Seq,
    strays: Option<&'a BTreeMap<Seq, OrderRecord>>,
    history: &'a History,
}

impl<'a> Above<'a> {
    fn new(cut: Seq, strays: &'a BTreeMap<Seq, OrderRecord>, history: &'a History) -> Above<'a> {
        Above { cut, strays: Some(strays).filter(|_| !planted(Bug::StraysUnreported)), history }
    }

    /// In the order of their seqs.
    pub(super) fn iter(self) -> impl Iterator<Item = (OrderRecord, bool)> + use<'a> {
        let strays = self.strays.into_iter().flat_map(move |strays| strays.range(self.cut.next()..));
        let mut strays = strays.map(|(_, record)| (*record, false)).peekable();
        let known = self.history.above(self.cut);
        let mut known = known.map(|entry| (entry.record, entry.payload.is_some())).peekable();
        std::iter::from_fn(move || {
            let stray = strays.peek().map(|(record, _)| record.seq);
            let first = known.peek().map(|(record, _)| record.seq);
            match (stray, first) {
                (Some(stray), Some(first)) if stray > first => known.next(),
                (Some(stray), first) => {
                    let it = strays.next();
                    // What the history has as well is its own.
                    if first == Some(stray) { known.next() } else { it }
                }
                (None, _) => known.next(),
            }
        })
    }

    pub(super) fn records(self) -> impl Iterator<Item = OrderRecord> + use<'a> {
        self.iter().map(|(record, _)| record)
    }

    fn contains(self, seq: Seq) -> bool {
        let stray = self.strays.is_some_and(|strays| strays.contains_key(&seq));
        seq > self.cut && (stray || self.history.get(seq).is_some())
    }

    /// The last order of all that are known, be it up to the cut.
    fn newest(self) -> KnownUntil {
        let stray = self.strays.and_then(|strays| strays.last_key_value()).map(|(&seq, it)| (seq, Some(it.time_ns)));
        let known = (self.history.tail(), self.history.tail_time_ns());
        let (seq, time_ns) = stray.filter(|stray| stray.0 > known.0).unwrap_or(known);
        KnownUntil { seq, time: time_ns.map(rfc3339) }
    }

    /// The last order, or the cut, before a writer that had lost its power went on behind a gap.
    fn before_power_loss(self) -> Option<KnownUntil> {
        let mut last = (self.cut, None);
        for record in self.records() {
            if record.starts_anew() && record.seq > last.0.next() {
                return Some(KnownUntil { seq: last.0, time: last.1.map(rfc3339) });
            }
            last = (record.seq, Some(record.time_ns));
        }
        None
    }

    /// The last seq that is known, or the cut.
    fn last(self) -> Seq {
        let stray = self.strays.and_then(|strays| strays.last_key_value()).map_or(self.cut, |(&seq, _)| seq);
        stray.max(self.history.tail()).max(self.cut)
    }
}

/// What an undamaged site says of seqs that it knows nothing of.
fn given_up(unknown: &[SeqRange], read: bool) -> Option<String> {
    let (first, last) = (unknown.first()?.first, unknown.last()?.last);
    let count: u64 = unknown.iter().map(|range| range.count()).sum();
    let why = if read {
        "the auxiliary's table does not hold their orders: it lost them, or went on without them (overflow = \"coalesce\") \
         because it was full or the primary lost its power and wrote on"
    } else {
        "the auxiliary's table, which may hold their orders, says nothing"
    };
    Some(format!(
        "up to {count} writes between seqs {first} and {last} are lost and cannot be listed: they had not reached DR, and {why}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::{Chain, Epoch, GroupId};
    use crate::dr::table::TableReader;
    use crate::format::table::TableLayout;
    use crate::limits::seq_reserve;

    /// A plan is made while a batch takes the cut past records that only the table has.
    #[test]
    fn strays_that_the_cut_has_passed_are_neither_lost_nor_unknown() {
        let strays: BTreeMap<Seq, OrderRecord> =
            [6, 7, 11].map(|seq| (Seq(seq), OrderRecord::sample(seq, Op::Write))).into();
        let history = History::after(Seq(9), Chain(0));
        let all = Above::new(Seq(10), &strays, &history);
        assert_eq!(all.records().map(|record| record.seq).collect::<Vec<_>>(), [Seq(11)]);
        assert_eq!(doubt::unknown(Seq(10), Seq(11), all.records(), Asked::Needless).0, []);
        let none = Above::new(Seq(11), &strays, &history);
        assert_eq!(doubt::unknown(Seq(11), Seq(11), none.records(), Asked::Needless).0, []);
    }

    #[test]
    fn strays_and_history_are_one_order() {
        let record = |seq, length| OrderRecord { length, ..OrderRecord::sample(seq, Op::Trim) };
        for bits in 0..1u32 << 12 {
            // Seqs 11 to 16: whether each is a stray, and whether it is in the history.
            let seqs = |shift: u32| (0..6).filter(move |at| bits >> (shift + at) & 1 != 0).map(|at| 11 + u64::from(at));
            let strays: BTreeMap<Seq, OrderRecord> = seqs(0).map(|seq| (Seq(seq), record(seq, 1))).collect();
            let mut history = History::after(Seq(10), Chain(0));
            for seq in seqs(6) {
                let start = OrderRecord { op: Op::EpochStart, offset: history.tail().0, ..record(seq, 2) };
                let _ = history.take(start.chained(history.tail_chain()));
            }
            for cut in 10..16 {
                let mut map: BTreeMap<Seq, u64> =
                    strays.range(Seq(cut + 1)..).map(|(&seq, it)| (seq, it.length)).collect();
                map.extend(history.above(Seq(cut)).map(|entry| (entry.record.seq, entry.record.length)));
                let all = Above::new(Seq(cut), &strays, &history);
                let found: Vec<(Seq, u64)> = all.records().map(|record| (record.seq, record.length)).collect();
                assert_eq!(found, map.iter().map(|(&seq, &length)| (seq, length)).collect::<Vec<_>>());
                assert!((9..18).all(|seq| all.contains(Seq(seq)) == map.contains_key(&Seq(seq))));
                let last = map.last_key_value().map_or(Seq(cut), |(&seq, _)| seq);
                assert_eq!(all.last(), last.max(history.tail()));
            }
        }
    }

    /// Found by the simulator (seed 1017505): a primary that told orders behind its back lost its power, and was lost soon
    /// after it had gone on.
    #[test]
    fn behind_a_loss_of_power_not_everything_is_known() {
        let lost_power = seq_reserve(1024) + 1;
        for (start, offset, expected) in [(lost_power, 0, Some((12, Some(rfc3339(12))))), (13, 0, None), (14, 12, None)]
        {
            let record = |seq, op| OrderRecord { time_ns: seq, ..OrderRecord::sample(seq, op) };
            let strays: BTreeMap<Seq, OrderRecord> = [
                record(12, Op::Write),
                OrderRecord { offset, ..record(start, Op::EpochStart) },
                record(start + 1, Op::Write),
            ]
            .map(|it| (it.seq, it))
            .into();
            let history = History::after(Seq(10), Chain(0));
            let all = Above::new(Seq(10), &strays, &history);
            let found = all.before_power_loss().map(|it| (it.seq.0, it.time));
            assert_eq!(found, expected, "start at {start}");
            let found = Above::new(Seq(12), &strays, &history).before_power_loss().map(|it| (it.seq.0, it.time));
            assert_eq!(found, expected.map(|_| (12, None)), "the cut is the last before it");
            assert_eq!(Above::new(Seq(start), &strays, &history).before_power_loss(), None, "the cut has passed it");
        }
    }

    const SLOTS: u64 = 1024;

    /// Ranges that a report calls unknown: DR has up to `cut`, the table these runs of seqs, each but the first begins with
    /// the start of a writer that had lost its power.
    fn unknown_between(cut: u64, runs: &[std::ops::Range<u64>]) -> Vec<(u64, u64)> {
        let end = runs.last().expect("a start").end;
        let mut table = TableReader::new(TableLayout::new(SLOTS, 0), GroupId(1), Seq(cut), Epoch(1));
        let stands =
            |seq: &u64| !runs.iter().any(|run| run.clone().any(|later| later > *seq && later % SLOTS == seq % SLOTS));
        for seq in runs.iter().flat_map(Clone::clone).filter(stands) {
            table.take(OrderRecord::sample(
                seq,
                if runs[1..].iter().any(|run| run.start == seq) { Op::EpochStart } else { Op::Write },
            ));
        }
        // As a promotion does, before it makes its report.
        let records = std::mem::take(&mut table.records);
        let found = doubt::unknown(Seq(cut), Seq(end - 1), records.into_values(), Asked::Read(&table)).0;
        found.iter().map(|range| (range.first.0, range.last.0)).collect()
    }

    /// Found by the matrix of tools/power: a primary lost its power, wrote over slots that DR still needed, and was lost.
    #[test]
    fn what_a_primary_without_power_wrote_over_in_the_table_is_unknown_and_no_more() {
        // Before: up to 20, of which DR has 10.
        let start = seq_reserve(SLOTS) + 1;
        for (end, unknown) in [
            (start + 8, vec![]),
            (SLOTS + 11, vec![]),
            (SLOTS + 13, vec![(11, 12)]),
            (SLOTS + 41, vec![(11, 40)]),
            (SLOTS + start, vec![(11, start - 1)]),
        ] {
            assert_eq!(unknown_between(10, &[1..21, start..end]), unknown, "up to {end}");
        }
    }

    /// The primary lost its power again before DR was back, and wrote over all that it had written between the two losses.
    #[test]
    fn what_was_written_between_two_losses_of_power_and_is_gone_from_the_table_is_unknown() {
        let reserve = seq_reserve(SLOTS);
        // DR has 14 of 15. What was written between the two begins at a reservation at the least, wherever that ended.
        for between in [reserve + 1..reserve + 9, reserve + 100..reserve + 140] {
            let start = between.end.next_multiple_of(reserve) + reserve;
            let runs = |end| [1..16, between.clone(), start..end];
            assert_eq!(unknown_between(14, &runs(start + 3)), []);
            let partly = SLOTS + between.start + 4;
            assert_eq!(unknown_between(14, &runs(partly)), [(15, between.start + 3)]);
            let whole = unknown_between(14, &runs(SLOTS + between.end));
            assert_eq!(whole, [(15, between.end - 1)], "all that was taken, for it may have been written");
        }
        // Slots that only a later lap of the same writer has taken.
        let far = 5 * SLOTS + 1;
        assert_eq!(unknown_between(14, &[1..16, far..far + 20]), unknown_of_laps(14, far, 20));
        assert_eq!(
            unknown_between(14, &[1..16, (1 << 23)..(1 << 23) + 3]),
            [(16, (1 << 23) - 1)],
            "too many to look at"
        );
    }

    /// Whatever stands `count` records behind `start` in the slots of, above `cut`.
    fn unknown_of_laps(cut: u64, start: u64, count: u64) -> Vec<(u64, u64)> {
        let taken = |seq: u64| (start..start + count).any(|later| later % SLOTS == seq % SLOTS);
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        // 15 stands in the table, if its slot was not taken.
        let first = if taken(15) { cut + 1 } else { 16 };
        for seq in (first..start).filter(|seq| taken(*seq)) {
            match ranges.last_mut() {
                Some(range) if range.1 + 1 == seq => range.1 = seq,
                _ => ranges.push((seq, seq)),
            }
        }
        ranges
    }
}
