//! Continuity, what is filled in and passed, and what is missing, against a list of its own.

use super::*;
use crate::core::ids::{Epoch, Volume};

fn record(seq: u64, op: Op, offset: u64, previous: Chain) -> OrderRecord {
    OrderRecord {
        seq: Seq(seq),
        epoch: Epoch(1),
        volume: Volume(0),
        op,
        flags: 0,
        offset,
        length: if op == Op::EpochStart { 0 } else { 4096 },
        time_ns: seq,
        chain: Chain(0),
        payload_crc: 0,
    }
    .chained(previous)
}

fn fills(history: &mut History, record: OrderRecord) -> bool {
    history.fill(&[record]) == [true]
}

fn writes(history: &mut History, count: u64) {
    for _ in 0..count {
        let next = record(history.tail().next().0, Op::Write, 0, history.tail_chain());
        assert_eq!(history.take(next), Ok(Intake::New));
    }
}

#[test]
fn a_record_is_taken_once_and_a_different_one_never() {
    let mut history = History::after(Seq(0), Chain(0));
    writes(&mut history, 3);
    let second = history.get(Seq(2)).expect("taken").record;
    assert_eq!(history.take(second), Ok(Intake::Known));
    let other = OrderRecord { offset: 4096, ..second };
    assert_eq!(history.take(other), Err(Divergence::Differs { seq: Seq(2) }));
    let late = record(5, Op::Write, 0, history.tail_chain());
    assert_eq!(history.take(late), Err(Divergence::Gap { seq: Seq(5), expected: Seq(4) }));
    let foreign = record(4, Op::Write, 0, Chain(77));
    assert_eq!(history.take(foreign), Err(Divergence::Chain { seq: Seq(4) }));
}

#[test]
fn a_record_lost_to_damage_is_taken_only_where_it_was() {
    let mut whole = History::after(Seq(0), Chain(0));
    writes(&mut whole, 6);
    let records: Vec<OrderRecord> = whole.above(Seq(0)).map(|entry| entry.record).collect();
    let mut damaged = History::after(Seq(0), Chain(0));
    for at in [0, 3, 5] {
        damaged.take_after_gap(records[at]);
    }
    let mut history = damaged.clone();
    assert!(history.could_fill(&records[1], None) && !history.could_fill(&records[2], None));
    assert!(history.could_fill(&records[2], Some(&records[1])), "once the one before it is filled in");
    assert!(history.could_fill(&records[4], Some(&records[2])) && !history.could_fill(&records[3], Some(&records[2])));
    assert_eq!(history.len(), 3, "nothing was taken");
    assert!(!fills(&mut history, records[2]), "what it continues is not here");
    assert!(!fills(&mut history, records[3]), "it is here");
    assert!(!fills(&mut history, OrderRecord { offset: 8192, ..records[1] }), "its chain is another");
    let begin = record(2, Op::BatchBegin, 0, records[0].chain);
    assert!(!fills(&mut history, begin) && fills(&mut history, records[1]));
    assert!(!history.get(Seq(4)).expect("behind the gap").unbroken, "seq 3 is still missing");
    assert!(fills(&mut history, records[2]) && fills(&mut history, records[4]));
    assert!(!fills(&mut history, record(7, Op::Write, 0, records[5].chain)), "nothing is known behind it");
    history.entries.front_mut().expect("seq 1").unbroken = true;
    (1..=6).for_each(|seq| history.hold(Seq(seq), 0));
    assert_eq!((history.unbroken_from(Seq(0), Seq(9)), history.missing_len()), (Seq(6), 0));
    assert_eq!(history.gaps(9), []);
    let mut end = History::after(Seq(0), Chain(0));
    let begin = record(1, Op::BatchBegin, 0, Chain(0));
    let write = record(2, Op::Write, 0, begin.chain);
    end.take_after_gap(begin);
    end.take_after_gap(record(3, Op::BatchEnd, 1, write.chain));
    assert!(fills(&mut end, write) && end.get(Seq(3)).expect("the end").unbroken);
}

#[test]
fn what_begins_or_ends_something_is_filled_in_only_before_the_last_batch_that_is_known() {
    let mut whole = History::after(Seq(0), Chain(0)).settled(true);
    writes(&mut whole, 1);
    for (seq, op, offset) in [(2, Op::BatchBegin, 0), (3, Op::Write, 0), (4, Op::BatchEnd, 2), (5, Op::EpochStart, 4)] {
        assert_eq!(whole.take(record(seq, op, offset, whole.tail_chain())), Ok(Intake::New));
    }
    for (op, last, fills) in [(Op::BatchBegin, 6, true), (Op::Write, 6, false), (Op::EpochStart, 6, false)] {
        let mut all = whole.clone();
        assert_eq!(all.take(record(last, op, 5, all.tail_chain())), Ok(Intake::New));
        let records: Vec<OrderRecord> = all.above(Seq(0)).map(|entry| entry.record).collect();
        let mut history = History::after(Seq(0), Chain(0)).settled(true);
        for at in [0, 5] {
            history.take_after_gap(records[at]);
        }
        let filled = history.fill(&records[1..5]);
        assert_eq!(filled, [fills; 4], "{op:?}");
        assert!(!fills || history.open_batch(Seq(0)) == Some((Seq(6), None)), "the last one is the last one");
        let unbroken = |history: &History| history.above(Seq(1)).map(|entry| entry.unbroken).collect::<Vec<_>>();
        assert!(!fills || unbroken(&history) == unbroken(&all), "as if it had been told");
        history.pass_batches(Seq(0));
        all.pass_batches(Seq(0));
        assert!(!fills || unbroken(&history) == unbroken(&all) && unbroken(&all) == [true, true, true, true, false]);
    }
}

#[test]
fn an_epoch_start_is_passable_only_if_nothing_is_between_and_no_batch_is_to_follow() {
    let mut history = History::after(Seq(0), Chain(0));
    writes(&mut history, 3);
    let mut behind = history.clone();
    let start = record(100, Op::EpochStart, 3, history.tail_chain());
    assert_eq!(history.take(start), Ok(Intake::New));
    assert!(history.get(Seq(100)).expect("taken").unbroken && !history.led_past(Seq(0)));
    let ahead = record(100, Op::EpochStart, 2, behind.tail_chain());
    assert_eq!(behind.take(ahead), Ok(Intake::New));
    assert!(!behind.get(Seq(100)).expect("taken").unbroken, "record 3 is not in the writer's history");
    assert!(behind.led_past(Seq(3)) && behind.led_past(Seq(0)) && !behind.led_past(Seq(100)));
    let mut open = History::after(Seq(0), Chain(0));
    writes(&mut open, 3);
    let start = OrderRecord { length: 1, ..record(100, Op::EpochStart, 3, Chain(0)) }.chained(open.tail_chain());
    assert_eq!(open.take(start), Ok(Intake::New));
    assert!(!open.get(Seq(100)).expect("taken").unbroken, "what was written before may not be in its volumes");
}

#[test]
fn the_begin_of_a_batch_is_passed_only_where_nothing_was_left_out_and_no_start_is_open() {
    for (jump, settled, promised) in
        [(0, true, 0), (1, true, 0), (0, false, 0), (0, false, 3), (0, false, 2), (1, true, 9)]
    {
        let mut history = History::after(Seq(0), Chain(0));
        history.floor_settled = settled;
        writes(&mut history, 2);
        let begin = record(3 + jump, Op::BatchBegin, 0, history.tail_chain());
        assert_eq!(history.take(begin), Ok(Intake::New));
        writes(&mut history, 1);
        [1, 2, 4 + jump].into_iter().for_each(|seq| history.hold(Seq(seq), 0));
        assert_eq!(history.unbroken_from(Seq(0), Seq(9)), Seq(2));
        history.pass_batches(Seq(promised));
        let passed = jump == 0 && (settled || promised >= 3);
        assert_eq!(history.unbroken_from(Seq(0), Seq(9)), if passed { Seq(4) } else { Seq(2) });
    }
}

/// Found by a trial of `dr::tests`: a promotion was killed behind its checkpoint there, and its own report could not be
/// reached any more.
#[test]
fn the_end_of_a_batch_whose_begin_was_passed_and_forgotten_is_passed_with_it() {
    for (floor, passed) in [(3, true), (4, true), (2, false)] {
        let mut whole = History::after(Seq(0), Chain(0)).settled(true);
        writes(&mut whole, 2);
        let begin = record(3, Op::BatchBegin, 0, whole.tail_chain());
        assert_eq!(whole.take(begin), Ok(Intake::New));
        writes(&mut whole, 1);
        assert_eq!(whole.take(record(5, Op::BatchEnd, 3, whole.tail_chain())), Ok(Intake::New));
        writes(&mut whole, 1);
        // As a start reads it again.
        let mut history = History::after(Seq(floor), whole.chain_at(Seq(floor)));
        for entry in whole.above(Seq(floor)) {
            assert_eq!(history.take(entry.record), Ok(Intake::New));
            history.hold(entry.record.seq, 0);
        }
        assert!(history.unbroken_from(Seq(floor), Seq(9)) < Seq(5), "not by itself");
        history.pass_batches(Seq(0));
        assert_eq!(history.unbroken_from(Seq(floor), Seq(9)) == Seq(6), passed, "{floor}");
    }
}

#[test]
fn a_start_of_the_writer_is_open_until_a_batch_is_complete() {
    let mut history = History::after(Seq(0), Chain(0));
    let ops =
        [(Op::EpochStart, 0, false), (Op::BatchBegin, 0, false), (Op::BatchEnd, 2, true), (Op::EpochStart, 3, false)];
    for (seq, (op, offset, settled)) in (1..).zip(ops) {
        let next = record(seq, op, offset, history.tail_chain());
        assert_eq!(history.take(next), Ok(Intake::New));
        assert_eq!(history.settled_at(Seq(seq)), settled, "{op:?}");
        history.forget(Seq(seq));
        assert_eq!(history.settled_at(Seq(seq)), settled, "{op:?} forgotten");
    }
}

#[test]
fn ranges_that_are_here_skip_what_is_missing() {
    let mut history = History::after(Seq(0), Chain(0));
    writes(&mut history, 5);
    for seq in [2, 3, 5] {
        history.hold(Seq(seq), 0);
    }
    let range = |first, last| SeqRange { first: Seq(first), last: Seq(last) };
    assert_eq!(history.have_above(Seq(0), 10), vec![range(2, 3), range(5, 5)]);
    assert_eq!(history.missing_above(Seq(0)), 2);
    assert_eq!(history.first_missing_above(Seq(1)), Some(Seq(4)));
    history.lose(Seq(2));
    assert_eq!(history.missing_bytes(Seq(0), Seq(4), u64::MAX).0, 2 * entry_bytes(4096));
}

#[test]
fn what_is_forgotten_is_known_all_the_same() {
    let mut history = History::after(Seq(0), Chain(0));
    writes(&mut history, 5);
    let old = history.get(Seq(2)).expect("there").record;
    history.forget(Seq(3));
    assert_eq!((history.floor(), history.len(), history.missing_len()), (Seq(3), 2, 2));
    assert_eq!(history.take(old), Ok(Intake::Known));
    assert_eq!(history.next_after(Seq(0)).expect("there").record.seq, Seq(4));
}

/// What a list of its own knows of each record above the floor: bytes of its payload in the spool (0: it has none), and
/// whether that is here.
type List = BTreeMap<u64, (u64, bool)>;

/// Seqs in ascending order as ranges of neighbours.
fn ranges_of(seqs: impl Iterator<Item = u64>) -> Vec<SeqRange> {
    let mut ranges: Vec<SeqRange> = Vec::new();
    for seq in seqs.map(Seq) {
        match ranges.last_mut() {
            Some(range) if range.last.0 + 1 == seq.0 => range.last = seq,
            _ => ranges.push(SeqRange { first: seq, last: seq }),
        }
    }
    ranges
}

fn missing_is_as_listed(history: &History, list: &List, low: u64, high: u64) {
    let missing =
        || list.iter().filter(|(_, (bytes, here))| *bytes > 0 && !here).map(|(seq, (bytes, _))| (*seq, *bytes));
    let above = || missing().filter(|(seq, _)| *seq > low);
    assert_eq!(history.missing_len(), missing().count());
    assert_eq!(history.missing_total(), missing().map(|(_, bytes)| bytes).sum::<u64>());
    assert_eq!(history.missing_above(Seq(low)), above().count());
    assert_eq!(history.first_missing_above(Seq(low)), above().next().map(|(seq, _)| Seq(seq)));
    assert_eq!(history.is_missing(Seq(high)), missing().any(|(seq, _)| seq == high));
    let ranges = ranges_of(above().map(|(seq, _)| seq));
    for limit in 1..4 {
        let wanted: Vec<SeqRange> = ranges.iter().copied().take(limit).collect();
        assert_eq!(history.missing_ranges_above(Seq(low), limit), wanted);
    }
    let between = || above().filter(|(seq, _)| *seq < high).map(|(_, bytes)| bytes);
    let (sum, longest) = (between().sum(), between().max().unwrap_or(0));
    assert_eq!(history.missing_bytes(Seq(low), Seq(high), u64::MAX), (sum, longest));
    for enough in [0, sum / 2, sum] {
        let (got, _) = history.missing_bytes(Seq(low), Seq(high), enough);
        assert!(got == sum || enough < got && got < sum, "{got} of {sum} when {enough} is enough");
    }
}

fn here_is_as_listed(history: &History, list: &List, low: u64, high: u64) {
    let all = history.have_above(Seq(low), usize::MAX);
    for limit in 1..4 {
        assert_eq!(history.have_above(Seq(low), limit), all[..limit.min(all.len())]);
    }
    assert!(all.iter().all(|range| list.get(&range.first.0).is_some_and(|it| it.1)), "each begins with a payload");
    for (&seq, &(bytes, here)) in list.range(low + 1..) {
        let told = all.iter().filter(|range| range.first.0 <= seq && seq <= range.last.0).count();
        assert!(told == usize::from(here) || bytes == 0 && told < 2, "seq {seq}: {all:?}");
    }
    let next = list.range(low + 1..).next().map(|(seq, _)| Seq(*seq));
    assert_eq!(history.next_after(Seq(low)).map(|entry| entry.record.seq), next);
    assert_eq!(history.get(Seq(high)).is_some(), list.contains_key(&high));
    let complete = list.range(low + 1..).take_while(|(seq, it)| **seq <= high && (it.0 == 0 || it.1)).last();
    assert_eq!(history.unbroken_from(Seq(low), Seq(high)), Seq(complete.map_or(low, |(seq, _)| *seq)));
}

proptest::proptest! {
    #[test]
    fn what_is_here_and_what_is_missing_is_as_a_list_says(
        steps in proptest::collection::vec((0..7u8, proptest::prelude::any::<u8>()), 1..40),
        from in 0..60u64,
        length in 0..60u64,
    ) {
        let (mut history, mut list) = (History::after(Seq(0), Chain(0)), List::new());
        for (what, number) in steps {
            let number = u64::from(number);
            let (tail, chain) = (history.tail(), history.tail_chain());
            let pick = Seq(history.floor().0 + number % (tail.0 - history.floor().0 + 1));
            let next = match what {
                0..=1 => OrderRecord { length: (1 + number) * 512, ..record(tail.0 + 1, Op::Write, 0, chain) },
                2 => record(tail.0 + 1, Op::Trim, 0, chain),
                3 => record(tail.0 + 1 + number % 3, Op::EpochStart, tail.0, chain),
                4 | 5 => {
                    if let Some(it) = list.get_mut(&pick.0).filter(|it| it.0 > 0) {
                        history.hold(pick, 4096);
                        it.1 = true;
                    }
                    continue;
                }
                _ if number % 2 == 0 => {
                    history.lose(pick);
                    list.entry(pick.0).and_modify(|it| it.1 = false);
                    continue;
                }
                _ => {
                    history.forget(pick);
                    list = list.split_off(&(pick.0 + 1));
                    continue;
                }
            };
            let next = OrderRecord { chain: Chain(0), ..next }.chained(chain);
            assert_eq!(history.take(next), Ok(Intake::New));
            list.insert(next.seq.0, (if what < 2 { entry_bytes(next.length) } else { 0 }, false));
        }
        assert_eq!(history.len(), list.len());
        let low = history.floor().0 + from;
        missing_is_as_listed(&history, &list, low, low + length);
        here_is_as_listed(&history, &list, low, low + length);
    }
}

proptest::proptest! {
    /// In one pass as one by one, whatever is missing and whatever it is.
    #[test]
    fn what_is_filled_in_together_is_as_if_it_came_one_after_the_other(
        ops in proptest::collection::vec((0..8u8, proptest::prelude::any::<bool>()), 2..40),
    ) {
        let mut whole = History::after(Seq(0), Chain(0));
        for (op, _) in &ops {
            let (next, open) = (whole.tail().next().0, whole.open_batch(Seq(0)));
            let (op, offset) = match (op, open) {
                (0, _) => (Op::BatchBegin, 0),
                (1, Some((begin, None))) => (Op::BatchEnd, begin.0),
                (2, _) => (Op::EpochStart, next - 1),
                (3, _) => (Op::Trim, 0),
                _ => (Op::Write, 0),
            };
            assert_eq!(whole.take(record(next, op, offset, whole.tail_chain())), Ok(Intake::New));
        }
        let records: Vec<OrderRecord> = whole.above(Seq(0)).map(|entry| entry.record).collect();
        let last = records.len() - 1;
        let kept = |at: &usize| ops[*at].1 || *at == last;
        let mut together = History::after(Seq(0), Chain(0));
        (0..=last).filter(kept).for_each(|at| together.take_after_gap(records[at]));
        let mut singly = together.clone();
        let missing: Vec<OrderRecord> = (0..=last).filter(|at| !kept(at)).map(|at| records[at]).collect();
        let taken = together.fill(&missing);
        let one_by_one: Vec<bool> = missing.iter().map(|record| fills(&mut singly, *record)).collect();
        assert_eq!(taken, one_by_one);
        assert_eq!(together.entries, singly.entries);
        assert_eq!((together.missing_total(), together.missing_len()), (singly.missing_total(), singly.missing_len()));
    }
}
