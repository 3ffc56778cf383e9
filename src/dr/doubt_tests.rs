//! What a start takes for lost, over all that it can see; and which seqs nobody can account for.

use proptest::prelude::*;

use super::*;
use crate::core::ids::{Chain, Epoch, Volume};
use crate::format::superblock::Role;

/// What the superblock promised, against what journal and spool hold: 2 flags for each of 4, 3 seqs for each promise.
#[test]
fn over_all_inputs_whatever_was_promised_and_is_not_here_is_in_doubt_and_named() {
    for bits in 0..1u32 << 6 {
        let bit = |at: u32| bits & 1 << at != 0;
        for (seq, tail, reached, spoiled) in [0, 5].into_iter().flat_map(|seq| {
            (9..12).flat_map(move |tail| (7..10).flat_map(move |it| [0, 3].map(|by| (seq, tail, it, by))))
        }) {
            let mut it = Superblock { seq: Seq(seq), journal_segment: 1, ..Superblock::new(Role::Dr) };
            (it.promised_cut, it.promised_tail) = (Seq(8), Seq(10));
            [SYNCED, DAMAGED, PROMOTED, CLEAN].into_iter().zip(0..).for_each(|(flag, at)| it.set(flag, bit(at)));
            let damage = bit(4).then(|| "the journal is torn".to_owned());
            let (anchored, named) = (bit(5), vec!["an entry is torn".to_owned()]);
            let (reached, tail, highest) = (Seq(reached), Seq(tail), Seq(tail % 2 * 20));
            let gaps = BTreeSet::new();
            let seen =
                Seen { anchored, damage, segments: 4, reached, tail, spoiled, gaps, open: false, highest, named };
            let broken = [
                (seq > 0 && !anchored, "does not hold the checkpoint"),
                (seen.damage.is_some(), "the journal is torn"),
                (tail < Seq(10), "held everything up to 10"),
                (reached < Seq(8), "writes up to 8 may be in the volumes; an entry is torn"),
            ];
            let (synced, damaged, promoted, clean) = (bit(0), bit(1), bit(2), bit(3));
            let doubted = !promoted && (damaged || synced && broken.iter().any(|it| it.0));
            let doubt = Doubt::of(&it, &seen);
            assert_eq!(doubt.is_some(), doubted, "{it:?}");
            let Some(doubt) = doubt else { continue };
            for (is, what) in broken {
                assert_eq!(doubt.reason.contains(what), synced && is, "{}", doubt.reason);
            }
            assert!(doubt.text.contains(&doubt.reason) && doubt.text.contains(&format!("after seq {reached} ")));
            let existed = [8, 10, tail.0 + spoiled, highest.0].into_iter().max().expect("four");
            assert_eq!((doubt.until, doubt.applied_until), (Seq(existed), Seq(8)));
            let journal = !anchored || seen.damage.is_some() || tail < Seq(10);
            assert_eq!(doubt.open, damaged || journal && !clean, "more may have been acknowledged");
            assert_eq!(doubt.journal, seen.damage.is_some());
        }
    }
}

#[test]
fn of_many_damaged_entries_some_are_named() {
    let mut it = Superblock { promised_cut: Seq(8), ..Superblock::new(Role::Dr) };
    it.set(SYNCED, true);
    let named = (0..100).map(|at| format!("entry {at} is torn")).collect();
    let (reached, tail) = (Seq(7), Seq(8));
    let (gaps, highest) = (BTreeSet::new(), Seq(0));
    let seen = Seen {
        anchored: true,
        damage: None,
        segments: 4,
        reached,
        tail,
        spoiled: 0,
        gaps,
        open: false,
        highest,
        named,
    };
    let reason = Doubt::of(&it, &seen).expect("less than promised").reason;
    assert_eq!(reason.matches("is torn").count(), NAMED_MAX);
}

/// What is left out is said to be left out, and nothing else is.
#[test]
fn of_many_ranges_the_first_are_spelled_out_and_the_others_are_said_to_be_there() {
    for count in 0..2 * NAMED_MAX as u64 {
        let ranges: Vec<SeqRange> =
            (0..count).map(|at| SeqRange { first: Seq(10 * at + 1), last: Seq(10 * at + 3) }).collect();
        let text = spelled(&ranges);
        let named: Vec<&str> = text.split(", ").filter(|part| part.contains(" to ")).collect();
        assert_eq!(named.len() as u64, count.min(NAMED_MAX as u64), "{text}");
        assert!(
            named.iter().zip(0..).all(|(part, at)| **part == format!("{} to {}", 10 * at + 1, 10 * at + 3)),
            "{text}"
        );
        assert_eq!(text.ends_with(", …"), count > NAMED_MAX as u64, "{text}");
    }
}

/// Steps of seqs from one record to the next, and where a writer started.
fn records() -> impl Strategy<Value = Vec<(u64, bool, u64)>> {
    prop::collection::vec((1..6u64, any::<bool>(), 0..6u64), 0..8)
}

proptest! {
    #[test]
    fn a_seq_is_accounted_for_by_its_record_or_by_the_start_that_skipped_it(
        cut in 0..5u64, until in 0..40u64, steps in records(),
    ) {
        let mut at = cut;
        let mut records = Vec::new();
        for (step, starts, before) in steps {
            let previous = at;
            at += step;
            let (op, offset) = if starts { (Op::EpochStart, (previous + before).clamp(1, at.max(2) - 1)) } else { (Op::Write, 0) };
            records.push(OrderRecord {
                seq: Seq(at),
                epoch: Epoch(1),
                volume: Volume(0),
                op,
                flags: 0,
                offset,
                length: 512,
                time_ns: 0,
                chain: Chain(0),
                payload_crc: 0,
            });
        }
        let (ranges, last) = unknown(Seq(cut), Seq(until), records.iter().copied(), Asked::Needless);
        prop_assert_eq!(last, Seq(at));
        prop_assert!(ranges.iter().all(|range| range.first <= range.last));
        prop_assert!(ranges.windows(2).all(|pair| pair[0].last < pair[1].first));
        for seq in cut + 1..=until.max(at) + 1 {
            let told = ranges.iter().any(|range| range.first.0 <= seq && seq <= range.last.0);
            let next = records.iter().find(|record| record.seq.0 >= seq);
            let wanted = seq <= until && match next {
                Some(record) if record.seq.0 == seq => false,
                Some(record) if record.op == Op::EpochStart => seq <= record.offset,
                _ => true,
            };
            prop_assert_eq!(told, wanted, "seq {} in {:?}", seq, ranges);
        }
    }
}
