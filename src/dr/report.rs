//! The report of a promotion: every write that is not in the image, and why (I4).
//!
//! Made once everything that can be had is durable here; from the moment it is stored its cut is final.

use std::collections::BTreeMap;

use crate::cluster::status::{MissingWrite, PromoteReport, rfc3339, seconds};
use crate::core::ids::{Seq, SeqRange};
use crate::core::machine::Now;
use crate::core::planted::{Bug, planted};
use crate::dr::api::Effect;
use crate::dr::doubt;
use crate::dr::history::History;
use crate::dr::machine::Machine;
use crate::dr::promote::{BLANK_TABLE, LossReport, Promotion, Step};
use crate::dr::reconcile::{Known, decide};
use crate::format::record::OrderRecord;

impl Machine {
    /// Decides what is stored in the report, and has it made durable.
    pub(super) fn report_now(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let report = self.make_report(now);
        if self.rehearsed(now, &report, fx) {
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

    /// Every write above the cut, and why it is not in the image (I4).
    fn make_report(&self, now: Now) -> PromoteReport {
        let Some(promotion) = &self.promotion else { return PromoteReport::default() };
        // A plan looks at a copy of the history in which what could be fetched is held already.
        let history = promotion.view.as_ref().filter(|_| promotion.plan).unwrap_or(&self.history);
        let cut = if promotion.plan { history.unbroken_from(self.cut, history.tail()) } else { self.cut };
        let all = above(cut, &promotion.strays, history);
        let missing: Vec<MissingWrite> = all
            .values()
            .filter(|(record, _)| record.seq > cut && record.op.changes_volume())
            .filter_map(|(record, here)| {
                let state = promotion.table.as_ref().and_then(|table| table.states.get(&record.seq));
                let known = Known {
                    in_journal: true,
                    in_table: state.is_some(),
                    in_image: false,
                    has_payload: record.op.has_payload(),
                    here: *here,
                    in_ring: false,
                    state: state.map(|state| state.state),
                };
                let missing = decide(known).missing?;
                Some(self.missing_write(record, missing.word()))
            })
            .collect();
        // The cut may have passed what a plan looked at: the writer went on meanwhile.
        let told = promotion.table.as_ref().map_or(Seq(0), |table| table.told);
        let tail = all.keys().next_back().copied().unwrap_or(cut).max(history.tail()).max(told).max(cut);
        let until = self.doubt.as_ref().map_or(tail, |doubt| doubt.until.max(tail));
        let unknown = doubt::unknown(cut, until, &all, promotion.table.as_ref()).0;
        let due = history.above(self.fed).take_while(|entry| entry.record.seq <= cut);
        let due = due.filter(|entry| entry.record.op.changes_volume()).count() as u64;
        PromoteReport {
            group: self.options.group_name.clone(),
            epoch: promotion.target,
            cut_seq: cut,
            tail_seq: tail,
            replayed: self.fed_writes - promotion.fed_before + due,
            fetched_from_aux: promotion.fetched,
            missing_bytes: missing.iter().map(|write| write.length).sum(),
            missing,
            aux: promotion.aux.into(),
            duration_seconds: seconds(now.mono_ns.saturating_sub(promotion.started_ns)),
            incomplete: self.vouched(promotion, cut, tail, &all).or_else(|| given_up(&unknown)),
            unknown,
        }
    }

    /// What the report cannot vouch for, because of damage here or at the auxiliary.
    fn vouched(
        &self,
        promotion: &Promotion,
        cut: Seq,
        tail: Seq,
        all: &BTreeMap<Seq, (OrderRecord, bool)>,
    ) -> Option<String> {
        let table = match &promotion.table {
            Some(table) => table.doubt(cut, tail, |seq| all.contains_key(&seq)),
            None => promotion.blank.then(|| BLANK_TABLE.to_owned()),
        };
        let why: Vec<String> = self.incomplete(promotion, cut, all).into_iter().chain(table).collect();
        (!why.is_empty()).then(|| why.join("; "))
    }

    fn missing_write(&self, record: &OrderRecord, state: &str) -> MissingWrite {
        let name = self.options.volumes.get(usize::from(record.volume.0)).map(|(name, _)| name.clone());
        MissingWrite {
            seq: record.seq,
            volume: name.unwrap_or_else(|| format!("#{}", record.volume)),
            op: record.op.word().into(),
            offset: record.offset,
            length: record.length,
            time: rfc3339(record.time_ns),
            state: state.into(),
        }
    }
}

/// Every record above the cut, and whether its payload is here. A batch may have taken the cut past strays.
fn above(cut: Seq, strays: &BTreeMap<Seq, OrderRecord>, history: &History) -> BTreeMap<Seq, (OrderRecord, bool)> {
    let mut all = BTreeMap::new();
    if !planted(Bug::StraysUnreported) {
        all.extend(strays.range(cut.next()..).map(|(&seq, &record)| (seq, (record, false))));
    }
    all.extend(history.above(cut).map(|entry| (entry.record.seq, (entry.record, entry.payload.is_some()))));
    all
}

/// What an undamaged site says of seqs that it knows nothing of.
fn given_up(unknown: &[SeqRange]) -> Option<String> {
    let (first, last) = (unknown.first()?.first, unknown.last()?.last);
    let count: u64 = unknown.iter().map(|range| range.last.0 - range.first.0 + 1).sum();
    Some(format!(
        "up to {count} writes between seqs {first} and {last} are lost and cannot be listed: they had not reached DR, and \
         the auxiliary's table does not hold their orders: it lost them, or went on without them (overflow = \"coalesce\") \
         because it was full or the primary lost its power and wrote on"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::{Chain, Epoch, GroupId, Volume};
    use crate::core::op::Op;
    use crate::dr::table::TableReader;
    use crate::format::table::TableLayout;
    use crate::limits::SEQ_RESERVE;

    /// A plan is made while a batch takes the cut past records that only the table has.
    #[test]
    fn strays_that_the_cut_has_passed_are_neither_lost_nor_unknown() {
        let record = |seq| OrderRecord {
            seq: Seq(seq),
            epoch: Epoch(1),
            volume: Volume(0),
            op: Op::Write,
            flags: 0,
            offset: 0,
            length: 512,
            time_ns: 0,
            chain: Chain(0),
            payload_crc: 0,
        };
        let strays: BTreeMap<Seq, OrderRecord> = [6, 7, 11].map(|seq| (Seq(seq), record(seq))).into();
        let history = History::after(Seq(9), Chain(0));
        let all = above(Seq(10), &strays, &history);
        assert_eq!(all.keys().copied().collect::<Vec<_>>(), [Seq(11)]);
        assert_eq!(doubt::unknown(Seq(10), Seq(11), &all, None).0, []);
        assert_eq!(doubt::unknown(Seq(11), Seq(11), &above(Seq(11), &strays, &history), None).0, []);
    }

    /// Found by the matrix of tools/power: a primary lost its power, wrote over slots that DR still needed, and was lost.
    #[test]
    fn what_a_primary_without_power_wrote_over_in_the_table_is_unknown_and_no_more() {
        let start = 1 << 20;
        let record = |seq, op| OrderRecord {
            seq: Seq(seq),
            epoch: Epoch(1),
            volume: Volume(0),
            op,
            flags: 0,
            offset: 0,
            length: 512,
            time_ns: 0,
            chain: Chain(0),
            payload_crc: 0,
        };
        let layout = TableLayout::new(1024, 0);
        // Before: up to 20, of which DR has 10. After: as many records, from slot 0 on.
        for (count, unknown) in [(8, vec![]), (13, vec![(11, 12)]), (41, vec![(11, 40)]), (1024, vec![(11, start - 1)])]
        {
            let mut table = TableReader::new(layout, GroupId(1), Seq(10), Epoch(1));
            let old = (11..=20).filter(|seq| *seq >= count).map(|seq| record(seq, Op::Write));
            let new =
                (start..start + count).map(|seq| record(seq, if seq == start { Op::EpochStart } else { Op::Write }));
            old.chain(new).for_each(|record| table.take(record));
            // As a promotion does, before it makes its report.
            let records = std::mem::take(&mut table.records);
            let all = records.into_iter().map(|(seq, record)| (seq, (record, false))).collect();
            let found = doubt::unknown(Seq(10), Seq(start + count - 1), &all, Some(&table)).0;
            let found: Vec<_> = found.iter().map(|range| (range.first.0, range.last.0)).collect();
            assert_eq!(found, unknown, "{count} records after the start");
        }
    }

    /// The primary lost its power again before DR was back, and wrote over all that it had written between the two losses.
    #[test]
    fn what_was_written_between_two_losses_of_power_and_is_gone_from_the_table_is_unknown() {
        let start = |losses: u64| losses * SEQ_RESERVE + 1;
        let record = |seq, op| OrderRecord {
            seq: Seq(seq),
            epoch: Epoch(1),
            volume: Volume(0),
            op,
            flags: 0,
            offset: 0,
            length: 512,
            time_ns: 0,
            chain: Chain(0),
            payload_crc: 0,
        };
        // DR has 14 of 15. After the last loss came `count` records.
        for (losses, count, unknown) in [
            (1, 15, vec![(15, 15)]),
            (2, 15, vec![(15, 15), (start(1), start(1) + 14)]),
            (2, 9, vec![(start(1), start(1) + 8)]),
            (3, 4, vec![(start(1), start(1) + 3), (start(2), start(2) + 3)]),
            (2, 1024, vec![(15, start(2) - 1)]),
            (17, 3, (1..17).map(|loss| (start(loss), start(loss) + 2)).collect()),
            (18, 3, vec![(16, start(18) - 1)]),
        ] {
            let mut table = TableReader::new(TableLayout::new(1024, 0), GroupId(1), Seq(14), Epoch(1));
            let old = (count < 15).then(|| record(15, Op::Write));
            let (first, end) = (start(losses), start(losses) + count);
            let new = (first..end).map(|seq| record(seq, if seq == first { Op::EpochStart } else { Op::Write }));
            old.into_iter().chain(new).for_each(|record| table.take(record));
            let records = std::mem::take(&mut table.records);
            let all = records.into_iter().map(|(seq, record)| (seq, (record, false))).collect();
            let found = doubt::unknown(Seq(14), Seq(end - 1), &all, Some(&table)).0;
            let found: Vec<_> = found.iter().map(|range| (range.first.0, range.last.0)).collect();
            assert_eq!(found, unknown, "{losses} losses, {count} records after the last");
        }
    }
}
