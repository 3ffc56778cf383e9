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

/// The first volume becomes twice as large.
pub fn resize(seq: u64, previous: Chain) -> OrderRecord {
    let (offset, length) = (VOLUME_BYTES, 2 * VOLUME_BYTES);
    let resize = OrderRecord { offset, length, payload_crc: 0, chain: Chain(0), ..order(seq, Op::Resize, previous) };
    resize.chained(previous)
}

/// A resize (seq 3) for which there is no room, a write (seq 4) whose payload was dropped, and the batch that brings what
/// that wrote (seqs 5 and 6): all of it is here.
fn a_batch_without_room(seed: u64) -> Trial {
    let (mut trial, chain) = synced(seed);
    trial.room_bytes = VOLUME_BYTES;
    let resize = resize(3, chain);
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

/// Its store grows when it is asked to.
fn give_room(trial: &mut Trial) {
    trial.room_bytes = u64::MAX;
    let store = trial.disk.files.get_mut(&File::Volume(Volume(0))).expect("it has two volumes");
    store.cache.resize(2 * VOLUME_BYTES as usize, 0);
    store.stable.resize(2 * VOLUME_BYTES as usize, 0);
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

/// A write (seq 3) whose payload the auxiliary's ring has alone, and a resize (seq 4) for which there is no room: that comes up
/// only when the report, whose recovery point lies behind it, is stored.
fn refused_behind_its_report(seed: u64) -> Trial {
    let (mut trial, chain) = synced(seed);
    trial.room_bytes = VOLUME_BYTES;
    let write = order(3, Op::Write, chain);
    let resize = resize(4, write.chain);
    trial.step(Input::Message { conn: Conn(1), message: Message::Orders(vec![write, resize]) });
    trial.drain_disk();
    (trial.options.auxiliary, trial.machine.options.auxiliary) = (true, true);
    trial.writer.bunker = true;
    trial.writer.records = vec![write, resize];
    trial.writer.data.insert(Seq(3), Bytes::from(vec![7; 4096]));
    trial.give_region(2);
    let error = asked(&mut trial, false, false).expect_err("no room");
    let stored = trial.machine.report.as_ref().map(|stored| stored.report.cut_seq);
    assert_eq!((stored, stands(&trial.machine).1), (Some(Seq(4)), Seq(3)));
    for part in ["--force promotes seq 3", "nobody serves", "at once with --force"] {
        assert!(error.refused_for_safety && error.text.contains(part), "{part}: {error}");
    }
    trial
}

#[test]
fn by_force_a_report_whose_resize_does_not_fit_is_made_anew() {
    for seed in 30..36 {
        let mut trial = refused_behind_its_report(seed);
        if seed % 2 == 0 {
            trial.crash(seed % 4 == 0);
            (0..20).for_each(|_| trial.tick_on());
        }
        let plan = asked(&mut trial, true, false).expect("the stored report");
        assert!(plan.refused.is_some_and(|text| text.contains("--force promotes seq 3")) && plan.cut_seq == Seq(4));
        let plan = asked(&mut trial, true, true).expect("a plan by force");
        assert!(asked(&mut trial, false, false).is_err(), "still no room");
        if seed % 3 == 0 {
            // Begun by force and killed, it goes on by force.
            trial.step(Input::Promote { ticket: Ticket(1), plan: false, force: true });
            trial.drain_disk();
            trial.crash(true);
            (0..20).for_each(|_| trial.tick_on());
        }
        let report = asked(&mut trial, false, seed % 3 != 0).expect("promoted by force");
        let lost: Vec<Seq> = report.missing.iter().map(|write| write.seq).collect();
        assert_eq!((report.cut_seq, report.tail_seq, lost), (Seq(3), Seq(4), vec![Seq(4)]));
        assert_eq!((plan.cut_seq, plan.refused, plan.missing), (Seq(3), None, report.missing.clone()));
        trial.room_bytes = u64::MAX;
        trial.crash(true);
        (0..20).for_each(|_| trial.tick_on());
        assert!(trial.machine.keeper.get().has(PROMOTED));
        assert_eq!(stands(&trial.machine), (Seq(0), Seq(3)), "what was decided stays");
        assert_eq!(trial.disk.files[&File::Volume(Volume(0))].stable[..4096], [7; 4096], "and what was replayed");
        assert_eq!(asked(&mut trial, false, false).expect("the stored report").missing, report.missing);
    }
}

#[test]
fn without_force_such_a_report_is_replayed_once_there_is_room() {
    let mut trial = refused_behind_its_report(36);
    give_room(&mut trial);
    (0..20).for_each(|_| trial.tick_on());
    let report = asked(&mut trial, false, false).expect("promoted");
    assert_eq!((report.cut_seq, report.missing.len()), (Seq(4), 0));
}

/// It stopped before the resize and then lost the auxiliary: called again, it waits for nothing behind that.
#[test]
fn by_force_what_failed_once_behind_its_stop_goes_on() {
    let mut trial = a_batch_without_room(37);
    (trial.options.auxiliary, trial.machine.options.auxiliary) = (true, true);
    trial.give_region(0);
    trial.tick_on();
    trial.step(Input::Promote { ticket: Ticket(1), plan: false, force: true });
    for _ in 0..20_000 {
        if trial.machine.sizes.stops_at.is_some() {
            break;
        }
        trial.now.mono_ns += 1_000_000;
        trial.step(Input::Tick);
        trial.complete_disk();
        trial.settle_region();
    }
    assert_eq!(trial.machine.sizes.stops_at, Some(Seq(2)));
    trial.step(Input::AuxClosed { reason: "gone".into() });
    trial.outcome.take().expect("it failed").expect_err("the auxiliary was lost");
    let report = asked(&mut trial, false, true).expect("promoted by force");
    assert_eq!((report.cut_seq, report.missing.len()), (Seq(2), 2));
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
    give_room(&mut trial);
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

/// A payload (seq 3) spoils that the redo after a start reads once a promotion has begun, and the batch that has waited for
/// room (seqs 5 and 6) brings what it wrote.
fn spoiled_before_a_batch(seed: u64) -> Trial {
    let (mut trial, chain) = synced(seed);
    trial.room_bytes = VOLUME_BYTES;
    let write = order(3, Op::Write, chain);
    let data = Bytes::from(vec![7; 4096]);
    let resize = resize(4, write.chain);
    let begin = order(5, Op::BatchBegin, resize.chain);
    let end = batch_end(6, &begin, begin.chain);
    let chunk = OrderRecord { op: Op::WriteZeroes, ..begin };
    for (conn, message) in [
        (Conn(1), Message::Orders(vec![write, resize, begin])),
        (Conn(2), Message::Payload { record: write, data }),
        (Conn(2), Message::Chunk { index: 0, record: chunk, data: Bytes::new() }),
        (Conn(1), Message::Orders(vec![end])),
    ] {
        trial.step(Input::Message { conn, message });
        trial.drain_disk();
    }
    (trial.options.auxiliary, trial.machine.options.auxiliary) = (true, true);
    trial.give_region(0);
    give_room(&mut trial);
    trial.crash(false);
    assert!(trial.damage_spool());
    trial
}

/// Seed 1215765: with nothing left to be read, a promotion that looks once more at what the ring has goes on all the same.
#[test]
fn a_promotion_goes_on_when_a_batch_has_brought_what_was_damaged_meanwhile() {
    let mut passed = 0;
    for seed in 100..160 {
        let mut trial = spoiled_before_a_batch(seed);
        trial.outcome = None;
        trial.step(Input::Promote { ticket: Ticket(1), plan: false, force: true });
        let mut again = false;
        // No tick but one that is due: none may be needed.
        while trial.outcome.is_none() {
            again |= trial.machine.promotion.as_ref().is_some_and(|it| it.fetch_again);
            if trial.answer() {
                continue;
            }
            let due = trial.machine.deadline_ns().expect("it does not hang");
            trial.now.mono_ns = trial.now.mono_ns.max(due);
            trial.step(Input::Tick);
        }
        let cut = trial.outcome.take().and_then(Result::ok).map(|report| report.cut_seq);
        passed += u64::from(again && cut == Some(Seq(6)));
    }
    assert!(passed > 3, "what was damaged was brought by the batch: {passed}");
}

/// A resize (seq 4) for which there is no room, and a whole batch (seqs 6 and 7) that cannot be applied for it. The payload of
/// what comes before, seq 3, the auxiliary's ring has alone.
fn a_batch_without_room_and_a_ring(seed: u64) -> Trial {
    let (mut trial, chain) = synced(seed);
    trial.room_bytes = VOLUME_BYTES;
    let write = order(3, Op::Write, chain);
    let resize = resize(4, write.chain);
    let behind = order(5, Op::Write, resize.chain);
    let begin = order(6, Op::BatchBegin, behind.chain);
    let end = batch_end(7, &begin, begin.chain);
    let chunk = OrderRecord { op: Op::WriteZeroes, ..begin };
    for (conn, message) in [
        (Conn(1), Message::Orders(vec![write, resize, behind, begin])),
        (Conn(2), Message::Chunk { index: 0, record: chunk, data: Bytes::new() }),
        (Conn(1), Message::Orders(vec![end])),
    ] {
        trial.step(Input::Message { conn, message });
        trial.drain_disk();
    }
    (trial.options.auxiliary, trial.machine.options.auxiliary) = (true, true);
    trial.writer.bunker = true;
    trial.writer.records = vec![write, resize, behind, begin, end];
    [3, 5].into_iter().for_each(|seq| drop(trial.writer.data.insert(Seq(seq), Bytes::from(vec![7; 4096]))));
    trial.give_region(5);
    trial
}

/// Seed 3677493.
#[test]
fn by_force_what_the_ring_has_before_the_resize_is_not_lost() {
    for seed in 60..66 {
        let mut trial = a_batch_without_room_and_a_ring(seed);
        trial.tick_on();
        let error = asked(&mut trial, false, false).expect_err("no room");
        assert!(error.text.contains("--force promotes seq 2 or what the auxiliary's ring has behind it"), "{error}");
        let plan = asked(&mut trial, true, true).expect("a plan by force");
        if seed % 2 == 0 {
            trial.step(Input::Promote { ticket: Ticket(1), plan: false, force: true });
            trial.settle(40);
            trial.crash(true);
            (0..20).for_each(|_| trial.tick_on());
        }
        let report = asked(&mut trial, false, true).expect("promoted by force");
        let lost: Vec<Seq> = report.missing.iter().map(|write| write.seq).collect();
        assert_eq!((report.cut_seq, lost), (Seq(3), vec![Seq(4), Seq(5)]));
        assert_eq!((plan.cut_seq, plan.fetched_from_aux, plan.refused), (Seq(3), 1, None));
        assert_eq!(plan.missing, report.missing);
        assert_eq!(trial.disk.files[&File::Volume(Volume(0))].stable[..4096], [7; 4096], "what the ring had");
    }
}
