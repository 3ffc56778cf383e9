//! Which slots of the table may be taken.

use super::*;
use crate::primary::link::tests::primary;

/// Seed 419546: a primary lost its power with a full table that DR had not caught up with. DR's journal took the start that
/// followed, and the begin of a batch went over the first record that only the table had.
#[test]
fn what_only_the_table_may_have_from_before_a_loss_of_power_keeps_its_slot_until_the_cut_has_passed_the_gap() {
    for (synced, cut, began, known) in [
        (true, 50, 1, 200),
        (true, 50, 51, 200),
        (true, 50, 120, 50),
        (true, 119, 120, 200),
        // Without a copy to promote the table's records serve nobody.
        (false, 0, 120, 200),
    ] {
        let mut machine = primary();
        machine.options.overflow = Overflow::Pace;
        machine.aux.layout = Some(TableLayout::new(1024, 0));
        machine.log_began = Seq(began);
        (machine.dr.synced, machine.dr.cut, machine.dr.journal) = (synced, Seq(cut), Seq(200));
        assert_eq!(machine.slots_until(), Seq(known + 1024), "synced {synced}, cut {cut}, began {began}");
        machine.options.overflow = Overflow::Coalesce;
        assert_eq!(machine.slots_until(), Seq(u64::MAX), "the policy gives it up");
    }
}
