//! Why orders were missing here that a promotion takes from the table. Found by hand: a primary was killed after a start that
//! had followed a disk failure, and orders that had never come were called damaged.

use bytes::Bytes;

use super::damage::beyond_its_checkpoint;
use super::named::greet;
use super::run::Trial;
use crate::core::ids::{Conn, Seq};
use crate::dr::api::{File, Input};
use crate::format::wire::{Message, Purpose};

const TOLD: usize = 6;
const UNTOLD: usize = 4;

/// What is done to the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    None,
    /// To an order with others right behind it.
    InTheMiddle,
    /// To the last one before the primary goes on, found by a start after that.
    BeforeTheJump,
    /// To the same one, found by a start before that.
    AtTheEnd,
}

fn writes(trial: &mut Trial, count: usize) {
    (0..count as u8).for_each(|at| trial.writer.write_at(0, 4096 * u64::from(at), Bytes::from(vec![at + 60; 512])));
}

/// The orders of the writer from `first` on come in, and no data.
fn tell(trial: &mut Trial, conn: Conn, first: usize) {
    greet(trial, conn, Purpose::Order);
    trial.drain_disk();
    let records = trial.writer.records[first..].to_vec();
    trial.step(Input::Message { conn, message: Message::Orders(records) });
    trial.drain_disk();
    trial.tick_on();
    trial.lose_primary();
    trial.hang_up(conn);
}

fn spoil(trial: &mut Trial, seq: Seq) {
    trial.stop_applying(|trial| {
        let slot = trial.journal_slots().into_iter().find(|slot| slot.0 == seq).expect("it is above the checkpoint");
        trial.disk.flip(File::Journal, slot.1 + 20, 3);
    });
    trial.drain_disk();
}

/// What the promotion says, of which the first of the orders was told DR; and that one.
fn said(harm: Harm, skips: u64) -> (Vec<String>, Seq) {
    let mut trial = beyond_its_checkpoint(20, true);
    trial.lose_primary();
    let before = trial.writer.records.len();
    let first = trial.writer.tail().next();
    writes(&mut trial, TOLD);
    tell(&mut trial, Conn(1 << 40), before);
    let last = trial.writer.tail();
    writes(&mut trial, UNTOLD);
    if harm == Harm::AtTheEnd {
        spoil(&mut trial, last);
    }
    let known = trial.writer.records.len();
    trial.writer.lose_power(skips);
    tell(&mut trial, Conn(2 << 40), known);
    match harm {
        Harm::None => trial.crash(true),
        Harm::InTheMiddle => spoil(&mut trial, last.prev()),
        Harm::BeforeTheJump => spoil(&mut trial, last),
        Harm::AtTheEnd => {}
    }
    trial.give_region(trial.writer.records.len());
    let tail = trial.writer.tail();
    let report = trial.promote_damaged(0, tail);
    assert_eq!(report.missing.len(), TOLD + UNTOLD, "{harm:?}: {report:?}");
    let lines = trial.said.iter().filter(|text| text.contains("are the status table's"));
    (lines.cloned().collect(), first)
}

#[test]
fn orders_that_had_never_come_are_not_called_damaged_and_damaged_ones_are() {
    let names = |first: Seq, from: usize, count: usize| {
        format!("seqs {} to {}", first.0 + from as u64, first.0 + (from + count) as u64 - 1)
    };
    for skips in [0, 40] {
        let (lines, first) = said(Harm::None, skips);
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert!(line.starts_with("4 orders, which had not come here") && !line.contains("damaged"), "{line}");
        assert!(line.ends_with(&names(first, TOLD, UNTOLD)), "{line}");
        let (lines, first) = said(Harm::InTheMiddle, skips);
        let [line, damaged] = &lines[..] else { panic!("{lines:?}") };
        assert!(line.starts_with("4 orders, which had not come here"), "{line}");
        assert!(line.ends_with(&names(first, TOLD, UNTOLD)), "{line}");
        assert!(damaged.starts_with("1 orders, damaged in the journal here, are"), "{damaged}");
        assert!(damaged.ends_with(&names(first, TOLD - 2, 1)), "{damaged}");
        for harm in [Harm::BeforeTheJump, Harm::AtTheEnd] {
            let (lines, first) = said(harm, skips);
            let [line] = &lines[..] else { panic!("{harm:?}: {lines:?}") };
            assert!(line.contains("5 orders, damaged in the journal here, or not come here"), "{harm:?}: {line}");
            assert!(line.ends_with(&names(first, TOLD - 1, UNTOLD + 1)), "{harm:?}: {line}");
        }
    }
}
