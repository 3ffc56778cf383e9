//! What a report cannot know, and says so; and says nothing where it knows everything (I4).

use super::foresee::asked;
use super::named::{caught_up, site};
use super::run::Trial;
use crate::cluster::status::{PromoteReport, rfc3339};
use crate::core::ids::{Chain, Conn, Seq, SeqRange, Ticket};
use crate::core::modes::{Ack, Protect, Require};
use crate::core::op::Op;
use crate::dr::api::Input;
use crate::dr::promote::BLANK_TABLE;
use crate::dr::report::LEFT_OUT;
use crate::format::record::OrderRecord;
use crate::format::wire::Message;

/// What became of the status table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    Read,
    Unreachable,
    DamagedHeader,
    Blank,
    /// The group has none.
    None,
}

fn promoted(trial: &Trial, modes: (Protect, Ack, Require), table: Table) -> PromoteReport {
    let mut trial = trial_with(trial, modes, table != Table::None);
    let known = trial.writer.records.len();
    if !matches!(table, Table::Unreachable | Table::None) {
        trial.give_region(known);
        let region = trial.region.as_mut().expect("just given");
        match table {
            Table::DamagedHeader => region[..4096].fill(0xA5),
            Table::Blank => region.fill(0),
            _ => {}
        }
    }
    asked(&mut trial, false, true).expect("promoted by force")
}

/// The same site, in another mode.
fn trial_with(trial: &Trial, (protect, ack, require): (Protect, Ack, Require), auxiliary: bool) -> Trial {
    let mut trial = trial.clone();
    let options = &mut trial.options;
    (options.protect, options.ack, options.require, options.auxiliary) = (protect, ack, require, auxiliary);
    trial.crash(false);
    trial.drain_disk();
    trial
}

#[test]
fn a_report_admits_what_it_cannot_know_in_every_mode_and_nowhere_else() {
    let mut trial = site(41, true);
    caught_up(&mut trial);
    trial.lose_primary();
    (0..20).for_each(|_| trial.tick_on());
    assert_eq!(trial.machine.history.floor(), trial.writer.tail(), "all of it is checkpointed");
    let newest = *trial.writer.records.last().expect("it wrote");
    let protects = [Protect::Async, Protect::Near, Protect::Order, Protect::Bunker, Protect::Sync];
    let tables = [Table::Read, Table::Unreachable, Table::DamagedHeader, Table::Blank, Table::None];
    for (protect, table) in protects.into_iter().flat_map(|protect| tables.map(|table| (protect, table))) {
        for (ack, require) in [
            (Ack::Write, Require::Both),
            (Ack::Write, Require::Any),
            (Ack::Write, Require::None),
            (Ack::Flush, Require::Both),
        ] {
            let report = promoted(&trial, (protect, ack, require), table);
            let at_dr = require == Require::Both && matches!(protect, Protect::Order | Protect::Sync);
            let lacks = !at_dr && !matches!(table, Table::Read | Table::None);
            let text = report.incomplete.clone().unwrap_or_default();
            let what = if table == Table::Blank { BLANK_TABLE } else { LEFT_OUT };
            assert_eq!(text.starts_with(what), lacks, "{protect:?} {ack:?} {require:?} {table:?}: {text}");
            assert_eq!(report.incomplete.is_some(), lacks, "{protect:?} {ack:?} {require:?} {table:?}: {text}");
            let hidden = protect == Protect::Async || ack == Ack::Flush || require == Require::None;
            let Some(known) = report.known_until else {
                assert!(!lacks && !hidden, "{protect:?} {ack:?} {require:?} {table:?} says until when");
                continue;
            };
            assert!(lacks || hidden, "{protect:?} {ack:?} {require:?} {table:?} knows everything");
            // After a restart, too, with all of it applied and checkpointed.
            assert_eq!((known.seq, known.time), (newest.seq, Some(rfc3339(newest.time_ns))));
            if lacks && table != Table::Blank {
                assert!(
                    text.contains(&format!("seq {}, taken in at {}", newest.seq, rfc3339(newest.time_ns))),
                    "{text}"
                );
                assert_eq!(text.contains("out of reach"), matches!(protect, Protect::Order | Protect::Sync), "{text}");
            }
        }
    }
}

#[test]
fn the_newest_order_is_the_tables_where_that_goes_on() {
    let mut trial = site(42, true);
    caught_up(&mut trial);
    trial.lose_primary();
    (0..3).for_each(|_| trial.write());
    let newest = *trial.writer.records.last().expect("it wrote");
    let mut trial = trial_with(&trial, (Protect::Async, Ack::Write, Require::Any), true);
    trial.give_region(trial.writer.records.len());
    let plan = asked(&mut trial, true, false).expect("a plan");
    let report = asked(&mut trial, false, false).expect("promoted");
    let known = report.known_until.clone().expect("the last instants are not known");
    assert_eq!((known.seq, known.time), (newest.seq, Some(rfc3339(newest.time_ns))));
    assert_eq!((plan.known_until, report.incomplete), (report.known_until, None));
}

/// A primary that has lost its power names no last seq where it goes on: what only the table knew from before is not known
/// without the table, and lies before orders that are known.
#[test]
fn what_a_left_out_table_may_hold_from_before_a_loss_of_power_is_unknown() {
    for (require, unknown) in [(Require::Any, 1), (Require::Both, 0)] {
        let (mut trial, chain) = super::named::synced(43);
        let start = super::named::order(1 << 20, Op::EpochStart, chain);
        let start = OrderRecord { offset: 0, length: 0, payload_crc: 0, chain: Chain(0), ..start }.chained(chain);
        trial.step(Input::Message { conn: Conn(1), message: Message::Orders(vec![start]) });
        trial.drain_disk();
        trial.options.require = require;
        trial.options.auxiliary = true;
        trial.crash(false);
        trial.drain_disk();
        trial.outcome = None;
        trial.step(Input::Promote { ticket: Ticket(1), plan: false, force: true });
        trial.settle(0);
        let report = trial.outcome.take().expect("done").expect("by force");
        assert_eq!(report.tail_seq, Seq(1 << 20));
        let range = SeqRange { first: Seq(3), last: Seq((1 << 20) - 1) };
        assert_eq!(report.unknown, vec![range; unknown], "{require:?}");
        assert_eq!(report.incomplete.is_some(), unknown > 0);
    }
}
