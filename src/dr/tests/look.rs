//! A refusal that could be known beforehand fences nobody; one that could not says that somebody is fenced.

use super::foresee::asked;
use super::named::{caught_up, order, site};
use super::run::Trial;
use super::writer::GROUP;
use crate::core::ids::{Chain, Epoch, GroupId, Owner, Seq, Ticket};
use crate::core::op::Op;
use crate::dr::api::{Input, PromoteError};
use crate::format::record::OrderRecord;
use crate::format::superblock::{FORCED, PROMOTED, PROMOTING};
use crate::format::table::{Fence, HEADER_AT, TableHeader, TableLayout};
use crate::limits::BLOCK_BYTES;

const VIEW: Epoch = Epoch(0);

/// A site that has everything, its primary connected, and a status table that says the same.
fn ready(seed: u64) -> Trial {
    let mut trial = site(seed, true);
    caught_up(&mut trial);
    trial.give_region(trial.writer.records.len());
    trial
}

fn spoil_header(trial: &mut Trial) {
    let region = trial.region.as_mut().expect("given");
    region[HEADER_AT as usize..][..BLOCK_BYTES].fill(0xA5);
}

fn put(trial: &mut Trial, at: u64, bytes: &[u8]) {
    trial.region.as_mut().expect("given")[at as usize..][..bytes.len()].copy_from_slice(bytes);
}

/// More orders than the journal has room for, which continue what is here, or nothing.
fn too_many_orders(trial: &mut Trial, continue_it: bool) {
    let layout = TableLayout::new(131_072, 0);
    let last = *trial.writer.records.last().expect("it has written");
    trial.region = Some(vec![0; layout.total_bytes() as usize]);
    put(trial, HEADER_AT, &TableHeader::new(GROUP, &layout).encode());
    let mut chain = if continue_it { last.chain } else { Chain(1) };
    for seq in last.seq.0 + 1..=last.seq.0 + 80_000 {
        let trim = OrderRecord { payload_crc: 0, chain: Chain(0), ..order(seq, Op::Trim, Chain(0)) }.chained(chain);
        chain = trim.chain;
        put(trial, layout.record_offset(Seq(seq)), &trim.encode());
    }
}

/// Refused, with the auxiliary as it was and replication going on.
fn refused(mut trial: Trial, force: bool, says: &str) -> Trial {
    let before = trial.region.clone();
    let error = asked(&mut trial, false, force).expect_err(says);
    assert!(error.refused_for_safety && error.text.contains(says), "{error}");
    assert!(!error.text.contains("nobody serves"), "nobody is fenced: {error}");
    assert!(trial.region == before && trial.opened.iter().all(|epoch| *epoch == VIEW), "{says}: {:?}", trial.opened);
    assert!(!trial.superblock().has(PROMOTING) && trial.machine.status(trial.now).promotion.is_none());
    let begun = |text: &&String| text.contains("promotion to epoch") || text.contains("being promoted");
    assert_eq!(trial.said.iter().find(begun), None, "{says}");
    let tail = trial.writer.tail();
    trial.write_data();
    caught_up(&mut trial);
    assert!(trial.writer.tail() > tail, "{says}: replication goes on");
    trial
}

#[test]
fn what_is_wrong_with_the_table_is_found_before_anybody_is_fenced() {
    let mut trial = ready(40);
    spoil_header(&mut trial);
    let mut trial = refused(trial, false, "With --force it is left out");
    let report = asked(&mut trial, false, true).expect("by force");
    assert_eq!((report.aux.as_str(), trial.opened.last()), ("unreachable", Some(&Epoch(2))));
    for force in [false, true] {
        let mut trial = ready(41);
        put(&mut trial, HEADER_AT, &TableHeader::new(GroupId(7), &TableLayout::new(1024, 0)).encode());
        refused(trial, force, "the status table belongs to group");
        let mut trial = ready(42);
        trial.region.as_mut().expect("given").truncate(BLOCK_BYTES);
        refused(trial, force, "not one of ours");
        let mut trial = ready(43);
        put(&mut trial, Fence::place(Epoch(9)), &Fence { epoch: Epoch(9), owner: Owner(77) }.encode());
        refused(trial, force, "another site was promoted");
        let mut trial = ready(44);
        trial.fencing = false;
        spoil_header(&mut trial);
        if !force {
            refused(trial, force, "With --force it is left out");
        }
    }
}

#[test]
fn orders_that_the_journal_has_no_room_for_are_found_before_anybody_is_fenced() {
    let mut trial = ready(45);
    too_many_orders(&mut trial, true);
    refused(trial, false, "has no room for");
    // What continues nothing takes none: it is reported, as before.
    let mut trial = ready(46);
    too_many_orders(&mut trial, false);
    let report = asked(&mut trial, false, false).expect("promoted");
    assert_eq!((report.missing.len(), trial.opened), (80_000, vec![VIEW, Epoch(2)]));
}

#[test]
fn a_dead_auxiliary_is_found_before_anybody_is_fenced() {
    let mut trial = ready(51);
    trial.region = None;
    refused(trial, false, "the auxiliary cannot be reached");
}

/// Until the auxiliary was asked to fence, by `trial.fencing` or a fence block.
fn until_it_fences(trial: &mut Trial, force: bool) {
    trial.outcome = None;
    trial.step(Input::Promote { ticket: Ticket(1), plan: false, force });
    for _ in 0..20_000 {
        if trial.opened.last() == Some(&Epoch(2)) {
            return;
        }
        trial.now.mono_ns += 1_000_000;
        match trial.disk.busy() {
            true => trial.complete_disk(),
            false => trial.settle_region(),
        }
        trial.step(Input::Tick);
    }
    panic!("it never fences: {:?}", trial.outcome);
}

fn ended(trial: &mut Trial) -> PromoteError {
    trial.settle(0);
    trial.outcome.take().expect("settled").expect_err("refused")
}

#[test]
fn what_got_worse_after_the_fence_says_that_the_primary_is_fenced_and_what_to_do() {
    let mut trial = ready(47);
    until_it_fences(&mut trial, false);
    spoil_header(&mut trial);
    let error = ended(&mut trial);
    assert!(error.refused_for_safety && error.text.contains("The old primary is fenced by now"), "{error}");
    assert!(error.text.contains("call promote again, or at once with --force"), "{error}");
    let says = |trial: &Trial| trial.machine.status(trial.now).promotion.expect("it is interrupted");
    let status = says(&trial);
    assert!(status.contains("call promote again") && status.contains("may be fenced"), "{status}");
    assert!(status.contains("cannot be read"), "{status}");
    trial.crash(true);
    (0..20).for_each(|_| trial.tick_on());
    assert!(trial.superblock().has(PROMOTING) && says(&trial).contains("may be fenced"));
    let error = asked(&mut trial, false, false).expect_err("still damaged");
    assert!(error.text.contains("fenced by now"), "{error}");
    let report = asked(&mut trial, false, true).expect("by force");
    assert_eq!((report.aux.as_str(), trial.machine.keeper.get().has(PROMOTED)), ("unreachable", true));
}

#[test]
fn what_got_worse_before_the_fence_calls_the_promotion_off() {
    for (seed, fencing) in [(48, true), (49, false)] {
        let mut trial = ready(seed);
        trial.fencing = fencing;
        until_it_fences(&mut trial, false);
        match fencing {
            // It was asked, and goes away before it answers.
            true => trial.step(Input::AuxClosed { reason: "reset".into() }),
            // A plain table is opened as before, and its head is damaged before the fence block is written.
            false => spoil_header(&mut trial),
        }
        let before = trial.region.clone();
        let error = ended(&mut trial);
        assert!(error.refused_for_safety && !error.text.contains("fenced by now"), "{error}");
        assert!(trial.region == before, "no fence block");
        let it = trial.superblock();
        assert!(!it.has(PROMOTING) && !it.has(FORCED) && trial.machine.status(trial.now).promotion.is_none());
    }
}

#[test]
fn a_look_costs_no_copy_of_the_history_and_the_time_counts_from_when_it_was_asked_for() {
    let mut trial = ready(50);
    trial.step(Input::Promote { ticket: Ticket(1), plan: false, force: false });
    let begun = trial.now.mono_ns;
    let mut looked = false;
    while trial.opened.last() != Some(&Epoch(2)) {
        if let Some(promotion) = trial.machine.promotion.as_ref().filter(|it| it.rehearsal) {
            looked = true;
            assert!(promotion.view.is_none() && promotion.started_ns <= begun);
            let status = trial.machine.status(trial.now).promotion.expect("it says what it does");
            assert!(status.contains("before anybody is fenced"), "{status}");
        }
        trial.now.mono_ns += 1_000_000;
        trial.complete_disk();
        trial.settle_region();
        trial.step(Input::Tick);
    }
    assert!(looked && trial.machine.promotion.as_ref().is_some_and(|it| it.started_ns <= begun));
    trial.settle(0);
    assert!(trial.outcome.take().expect("settled").is_ok());
}
