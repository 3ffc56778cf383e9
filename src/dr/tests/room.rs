//! A store that is too small for a resize: what waits for it, and what a promotion may do meanwhile.

use bytes::Bytes;

use super::foresee::asked;
use super::named::{batch_end, order, synced};
use super::run::Trial;
use super::writer::VOLUME_BYTES;
use crate::core::ids::{Chain, Conn, Seq, Ticket, Volume};
use crate::core::machine::Machine as _;
use crate::core::op::Op;
use crate::dr::api::{File, Input};
use crate::dr::machine::Machine;
use crate::format::record::OrderRecord;
use crate::format::superblock::{FORCED, PROMOTED, PROMOTING};
use crate::format::wire::Message;

/// A resize (seq 3) for which there is no room, a write (seq 4) whose payload was dropped, and the batch that brings what
/// that wrote (seqs 5 and 6): all of it is here.
fn a_batch_without_room(seed: u64) -> Trial {
    let (mut trial, chain) = synced(seed);
    trial.room_bytes = VOLUME_BYTES;
    let (offset, length) = (VOLUME_BYTES, 2 * VOLUME_BYTES);
    let resize = OrderRecord { offset, length, payload_crc: 0, chain: Chain(0), ..order(3, Op::Resize, chain) };
    let resize = resize.chained(chain);
    let write = order(4, Op::Write, resize.chain);
    let begin = order(5, Op::BatchBegin, write.chain);
    let end = batch_end(6, &begin, begin.chain);
    let chunk = OrderRecord { op: Op::WriteZeroes, ..begin };
    for (conn, message) in [
        (Conn(1), Message::Orders(vec![resize, write, begin])),
        (Conn(2), Message::Chunk { index: 0, record: chunk, data: Bytes::new() }),
        (Conn(1), Message::Orders(vec![end])),
    ] {
        trial.step(Input::Message { conn, message });
        trial.drain_disk();
    }
    trial
}

fn stands(machine: &Machine) -> (Seq, Seq) {
    (machine.keeper.get().batch, machine.replay.applied())
}

#[test]
fn nothing_of_a_batch_is_applied_before_every_store_has_room_for_it() {
    let mut trial = a_batch_without_room(21);
    for _ in 0..20 {
        trial.tick_on();
        assert_eq!(stands(&trial.machine), (Seq(0), Seq(2)), "not named, and nothing of it applied");
        assert!(trial.machine.status(trial.now).holds_back.is_some());
    }
    for power in [false, true] {
        trial.crash(power);
        (0..20).for_each(|_| trial.tick_on());
        assert_eq!(stands(&trial.machine), (Seq(0), Seq(2)), "after a crash, power {power}");
    }
}

#[test]
fn a_promotion_before_such_a_batch_is_refused_with_nobody_fenced_and_done_by_force() {
    let mut trial = a_batch_without_room(22);
    trial.tick_on();
    for plan in [true, false] {
        let error = asked(&mut trial, plan, false).expect_err("no room");
        assert!(error.refused_for_safety && error.text.contains("--force promotes seq 2"), "{error}");
        assert!(!trial.machine.keeper.get().has(PROMOTING), "nobody was fenced");
    }
    let plan = asked(&mut trial, true, true).expect("a plan by force");
    let report = asked(&mut trial, false, true).expect("promoted by force");
    assert_eq!((plan.cut_seq, plan.missing.clone(), plan.refused), (Seq(2), report.missing.clone(), None));
    let lost: Vec<Seq> = report.missing.iter().map(|write| write.seq).collect();
    assert_eq!((report.cut_seq, lost), (Seq(2), vec![Seq(3), Seq(4)]));
    // What was decided stays, also when there is room later.
    trial.room_bytes = u64::MAX;
    trial.crash(true);
    (0..20).for_each(|_| trial.tick_on());
    assert!(trial.machine.keeper.get().has(PROMOTED));
    assert_eq!(stands(&trial.machine), (Seq(0), Seq(2)));
}

#[test]
fn a_report_that_stands_before_a_batch_is_final_though_there_is_room_by_the_next_start() {
    let mut trial = a_batch_without_room(23);
    trial.tick_on();
    trial.step(Input::Promote { ticket: Ticket(1), plan: false, force: true });
    for _ in 0..20_000 {
        if trial.machine.report.is_some() {
            break;
        }
        trial.now.mono_ns += 1_000_000;
        trial.step(Input::Tick);
        trial.complete_disk();
    }
    assert!(trial.machine.report.is_some() && trial.outcome.is_none(), "stored, and no more");
    trial.room_bytes = u64::MAX;
    trial.crash(false);
    (0..20).for_each(|_| trial.tick_on());
    assert_eq!(stands(&trial.machine), (Seq(0), Seq(2)));
    let report = asked(&mut trial, false, false).expect("it goes on");
    assert_eq!((report.cut_seq, report.missing.len()), (Seq(2), 2));
    assert_eq!(stands(&trial.machine), (Seq(0), Seq(2)));
}

#[test]
fn a_promotion_by_force_that_was_killed_goes_on_by_force_whoever_calls_it_again() {
    for seed in 24..28 {
        let mut trial = a_batch_without_room(seed);
        trial.tick_on();
        trial.step(Input::Promote { ticket: Ticket(1), plan: false, force: true });
        trial.drain_disk();
        trial.crash(seed % 2 == 0);
        (0..20).for_each(|_| trial.tick_on());
        assert!(trial.machine.keeper.get().has(PROMOTING) && trial.machine.keeper.get().has(FORCED));
        let status = trial.machine.status(trial.now);
        assert!(status.promotion.is_some_and(|it| it.contains("call promote again; it goes on by force")));
        let plan = asked(&mut trial, true, false).expect("a plan of it");
        let report = asked(&mut trial, false, false).expect("promoted");
        assert_eq!((plan.cut_seq, plan.refused, report.cut_seq), (Seq(2), None, Seq(2)));
        assert!(!trial.machine.keeper.get().has(FORCED), "that is over");
    }
}

/// A promotion that is asked for at the moment at which a store is tried for the first time.
#[test]
fn a_promotion_waits_with_its_fence_until_it_is_known_whether_there_is_room() {
    let mut trial = a_batch_without_room(28);
    trial.tick_on();
    trial.crash(false);
    trial.outcome = None;
    trial.step(Input::Promote { ticket: Ticket(1), plan: false, force: false });
    trial.settle(0);
    let error = trial.outcome.take().expect("settled").expect_err("no room");
    assert!(error.refused_for_safety && !trial.machine.keeper.get().has(PROMOTING), "{error}");
}

/// A store had room, and lost it while the batch was applied: the volumes may be between two recovery points.
#[test]
fn in_the_middle_of_a_batch_force_is_refused_too_and_nobody_is_fenced() {
    let mut trial = a_batch_without_room(29);
    trial.tick_on();
    trial.room_bytes = u64::MAX;
    let store = trial.disk.files.get_mut(&File::Volume(Volume(0))).expect("it has two volumes");
    store.cache.resize(2 * VOLUME_BYTES as usize, 0);
    store.stable.resize(2 * VOLUME_BYTES as usize, 0);
    for _ in 0..100 {
        if trial.machine.committed.is_some() {
            break;
        }
        trial.now.mono_ns = trial.machine.deadline_ns().map_or(trial.now.mono_ns, |due| due.max(trial.now.mono_ns));
        trial.step(Input::Tick);
        trial.complete_disk();
    }
    assert_eq!(trial.machine.keeper.get().batch, Seq(5), "named, and its first step under way");
    trial.room_bytes = VOLUME_BYTES;
    trial.crash(true);
    (0..20).for_each(|_| trial.tick_on());
    for (plan, force) in [(true, true), (false, true), (true, false), (false, false)] {
        let error = asked(&mut trial, plan, force).expect_err("between two recovery points");
        assert!(error.refused_for_safety && !error.text.contains("--force"), "{error}");
        assert!(!trial.machine.keeper.get().has(PROMOTING), "nobody was fenced");
    }
}
