//! Why orders were missing in the journal here that a promotion takes from the status table: damage is named (I8), and nothing
//! is called damage that is none.
//!
//! | the next order that is here | the journal, as far as starts could see | why |
//! |---|---|---|
//! | came only after those before it (no jump) | | damaged here |
//! | a jump of the writer | whole | had not come: the journal was led past them |
//! | | damaged right before the jump, or it lost its end there, or where nobody knows any more | one or the other |
//!
//! A writer jumps when it has lost its power, or a disk has failed it: it goes on behind the seqs that it may have given out, and
//! what of them DR had not been told does not come any more.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::ids::{Seq, SeqRange};
use crate::core::machine::Level;
use crate::dr::api::Effect;
use crate::dr::doubt::{Seen, spelled};
use crate::dr::machine::Machine;
use crate::format::record::OrderRecord;
use crate::format::superblock::{DAMAGED, Superblock};

/// Where the journal may have lost orders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lacks {
    /// Right before these jumps.
    before: BTreeSet<Seq>,
    /// Anywhere in here, and nothing shows it any more.
    within: Option<SeqRange>,
}

impl Lacks {
    /// As a start sees it, to which orders up to `until` are known to have existed.
    pub(super) fn of(it: &Superblock, seen: &Seen, until: Seq) -> Lacks {
        let ended = !seen.anchored || seen.open || seen.tail < it.promised_tail;
        // What an earlier start found, it may have mended so that this one does not find it.
        let first = if it.has(DAMAGED) { Some(it.seq.next()) } else { ended.then_some(seen.tail.next()) };
        let within = first.filter(|first| *first <= until).map(|first| SeqRange { first, last: until });
        Lacks { before: seen.gaps.clone(), within }
    }

    fn any(&self, run: SeqRange, jump: Seq) -> bool {
        self.before.contains(&jump) || self.within.is_some_and(|it| run.first <= it.last && it.first <= run.last)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    HadNotCome,
    Damaged,
    Either,
}

impl Why {
    /// The table in the module's doc.
    fn of(run: SeqRange, next: &OrderRecord, lacks: Option<&Lacks>) -> Why {
        match (next.op.may_jump(), lacks.is_some_and(|lacks| lacks.any(run, next.seq))) {
            (false, _) => Why::Damaged,
            (true, false) => Why::HadNotCome,
            (true, true) => Why::Either,
        }
    }

    fn line(self, runs: &[SeqRange]) -> (Level, String) {
        let count: u64 = runs.iter().map(|run| run.count()).sum();
        let (level, what) = match self {
            Why::HadNotCome => {
                (Level::Info, "which had not come here when the primary went on behind them (that is no damage)")
            }
            Why::Damaged => (Level::Warn, "damaged in the journal here"),
            Why::Either => (
                Level::Warn,
                "damaged in the journal here, or not come here when the primary went on behind them, which cannot be told \
                 apart any more",
            ),
        };
        (level, format!("{count} orders, {what}, are the status table's: seqs {}", spelled(runs)))
    }
}

impl Machine {
    /// Says which orders of the status table the history has now, and why it had not. `mended` ascends.
    pub(super) fn say_mended(&self, mended: &[OrderRecord], fx: &mut Vec<Effect>) {
        let lacks = self.doubt.as_ref().map(|doubt| &doubt.lacks);
        let mut found: BTreeMap<Why, Vec<SeqRange>> = BTreeMap::new();
        for run in SeqRange::runs_of(mended.iter().map(|record| record.seq)) {
            // What is filled in stands before something.
            if let Some(next) = self.history.next_after(run.last) {
                found.entry(Why::of(run, &next.record, lacks)).or_default().push(run);
            }
        }
        for (why, runs) in found {
            let (level, text) = why.line(&runs);
            fx.push(Effect::Log { level, text });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::op::Op;
    use crate::format::superblock::Role;

    fn range(first: u64, last: u64) -> SeqRange {
        SeqRange { first: Seq(first), last: Seq(last) }
    }

    #[test]
    fn over_all_inputs_only_what_may_be_damage_is_called_so() {
        let run = range(10, 20);
        let withins = [None, Some(range(1, 9)), Some(range(1, 10)), Some(range(20, 30)), Some(range(21, 30))];
        for op in [Op::Write, Op::Trim, Op::Mark, Op::BatchEnd, Op::BatchBegin, Op::EpochStart] {
            for (before, within) in [0, 99, 100].into_iter().flat_map(|at| withins.map(|within| (at, within))) {
                let lacks = Lacks { before: BTreeSet::from([Seq(before)]), within };
                let next = OrderRecord::sample(100, op);
                let jumps = matches!(op, Op::BatchBegin | Op::EpochStart);
                let hit = before == 100 || within.is_some_and(|it| it.first.0 <= 20 && it.last.0 >= 10);
                let wanted = match (jumps, hit) {
                    (false, _) => Why::Damaged,
                    (true, true) => Why::Either,
                    (true, false) => Why::HadNotCome,
                };
                assert_eq!(Why::of(run, &next, Some(&lacks)), wanted, "{op:?} {lacks:?}");
                let undoubted = if jumps { Why::HadNotCome } else { Why::Damaged };
                assert_eq!(Why::of(run, &next, None), undoubted, "{op:?}");
            }
        }
    }

    #[test]
    fn what_a_start_cannot_see_any_more_may_be_lost_anywhere() {
        let seen = |anchored, open| Seen {
            anchored,
            damage: None,
            segments: 4,
            reached: Seq(7),
            tail: Seq(8),
            spoiled: 0,
            gaps: BTreeSet::from([Seq(6)]),
            open,
            highest: Seq(0),
            named: Vec::new(),
        };
        for (damaged, anchored, open, promised) in
            (0..16u8).map(|bits| (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0, if bits & 8 != 0 { 9 } else { 8 }))
        {
            let mut it = Superblock { seq: Seq(2), promised_tail: Seq(promised), ..Superblock::new(Role::Dr) };
            it.set(DAMAGED, damaged);
            let lacks = Lacks::of(&it, &seen(anchored, open), Seq(20));
            let ended = !anchored || open || promised == 9;
            let within = if damaged { Some(range(3, 20)) } else { ended.then(|| range(9, 20)) };
            assert_eq!(lacks, Lacks { before: BTreeSet::from([Seq(6)]), within });
            assert_eq!(Lacks::of(&it, &seen(anchored, open), Seq(2)).within, None, "nothing is there to be lost");
        }
    }

    #[test]
    fn only_where_nothing_is_damaged_the_line_is_no_warning() {
        let (level, text) = Why::HadNotCome.line(&[range(3, 5), range(8, 8)]);
        assert!(
            level == Level::Info && text.starts_with("4 orders, ") && text.ends_with("seqs 3 to 5, 8 to 8"),
            "{text}"
        );
        let many: Vec<SeqRange> = (0..9).map(|at| range(at * 3, at * 3)).collect();
        for why in [Why::Damaged, Why::Either] {
            let (level, text) = why.line(&many);
            assert!(
                level == Level::Warn && text.contains("damaged in the journal here") && text.ends_with(", …"),
                "{text}"
            );
        }
    }
}
