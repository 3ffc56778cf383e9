//! Single situations, each with the sentence that holds in it.

use bytes::Bytes;

use super::run::{Trial, options};
use super::writer::{GROUP, VOLUME_BYTES, volumes};
use crate::core::ids::{Chain, Conn, Epoch, Owner, Seq, SeqRange, Ticket, Volume};
use crate::core::machine::{DiskKind, IoFail, Level, Machine as _};
use crate::core::op::Op;
use crate::dr::api::{Effect, File, Input};
use crate::dr::links::{Standing, Writer, judge};
use crate::dr::recovery::{Found, recover};
use crate::format::is_zero;
use crate::format::record::OrderRecord;
use crate::format::spool::{ENTRY_HEADER_BYTES, EntryHeader};
use crate::format::superblock::{CLEAN, PROMOTED, PROMOTING, Role, SYNCED, Superblock, read_slots};
use crate::format::table::Fence;
use crate::format::wire::{Hello, Message, Purpose, RefuseCode};
use crate::limits::{BLOCK_BYTES, LEASE_MARGIN_NS, LEASE_NS};

/// A site with a recovery point and some history behind it.
pub fn site(seed: u64, auxiliary: bool) -> Trial {
    let mut trial = Trial::new(seed, auxiliary);
    for _ in 0..200_000 {
        if trial.machine.status(trial.now).synced && trial.writer.tail() > Seq(120) && !trial.writer.batch_is_open() {
            break;
        }
        if trial.rng.chance(4) {
            trial.write();
        }
        trial.turn();
    }
    assert!(trial.machine.status(trial.now).synced);
    trial
}

/// Until DR holds and has applied everything.
pub fn caught_up(trial: &mut Trial) {
    for _ in 0..200_000 {
        let status = trial.machine.status(trial.now);
        if status.applied_seq == trial.writer.tail() {
            return;
        }
        trial.turn();
    }
    panic!("never catches up: {:?}", trial.machine.status(trial.now));
}

#[test]
fn without_a_first_sync_nothing_is_promoted() {
    let mut trial = Trial::new(1, false);
    trial.drain_disk();
    trial.step(Input::Promote { ticket: Ticket(1), plan: false, force: true });
    let error = trial.outcome.take().expect("answered at once").expect_err("refused");
    assert!(error.refused_for_safety && error.text.contains("no recovery point yet"), "{error}");
}

#[test]
fn a_promoted_site_answers_with_the_stored_report_and_serves_after_a_restart() {
    let mut trial = site(2, false);
    let first = trial.promote(false, 0, Seq(0));
    trial.served = None;
    trial.crash(true);
    trial.drain_disk();
    assert_eq!(trial.served.map(|served| served.0), Some(Epoch(2)), "served again");
    trial.outcome = None;
    trial.step(Input::Promote { ticket: Ticket(1), plan: false, force: false });
    let again = trial.outcome.take().expect("answered at once").expect("the stored report");
    assert_eq!((again.cut_seq, again.tail_seq, &again.missing), (first.cut_seq, first.tail_seq, &first.missing));
    trial.drain_disk();
    trial.check_image(first.cut_seq);
}

#[test]
fn a_promotion_refuses_older_epochs_from_then_on() {
    let mut trial = site(3, false);
    trial.promote(false, 0, Seq(0));
    let conn = Conn(1 << 40);
    trial.step(Input::Opened { conn });
    let hello = trial.writer.hello(Purpose::Order);
    trial.step(Input::Message { conn, message: hello });
    let refuse = trial.refused(conn).expect("refused");
    assert_eq!((refuse.code, refuse.epoch), (RefuseCode::Fenced, Epoch(2)));
}

#[test]
fn a_plan_writes_nothing_closes_nothing_and_says_what_the_promotion_will() {
    let mut trial = site(4, true);
    for _ in 0..60 {
        trial.write();
    }
    trial.writer.bunker = true;
    trial.lose_primary();
    trial.drain_disk();
    for _ in 0..20 {
        trial.tick_on();
    }
    trial.give_region(trial.writer.records.len());
    let before = trial.region.clone();
    trial.step(Input::Promote { ticket: Ticket(1), plan: true, force: false });
    while trial.outcome.is_none() {
        assert!(!trial.disk.busy(), "a plan does not touch the disk");
        trial.settle_region();
    }
    assert_eq!(trial.region, before, "a plan does not touch the table");
    let plan = trial.outcome.take().expect("done").expect("a plan");
    assert!(plan.fetched_from_aux > 0);
    let done = trial.promote(false, 0, trial.writer.tail());
    assert_eq!(
        (plan.cut_seq, plan.tail_seq, plan.fetched_from_aux),
        (done.cut_seq, done.tail_seq, done.fetched_from_aux)
    );
    assert_eq!(plan.missing, done.missing);
}

#[test]
fn what_only_the_table_knows_is_reported_with_its_state() {
    let mut trial = site(5, true);
    caught_up(&mut trial);
    let known = trial.writer.tail();
    trial.lose_primary();
    for _ in 0..10 {
        trial.write();
    }
    trial.give_region(trial.writer.records.len());
    let report = trial.promote(false, 0, trial.writer.tail());
    assert_eq!(report.aux, "read");
    assert!(report.cut_seq >= known);
    assert_eq!(report.tail_seq, trial.writer.tail());
    for write in report.missing.iter() {
        let want = if write.op == "write" { "queued" } else { "held" };
        assert_eq!(write.state, want, "{write:?}");
    }
}

/// Storage that cannot fence: a writer that finds the region blank formats it, beside the fence or on a server that has lost it,
/// and fills it while its lease lasts.
#[test]
fn what_is_written_to_a_blank_table_before_the_lease_ends_is_reported() {
    for lost in [false, true] {
        let mut trial = site(5, true);
        caught_up(&mut trial);
        trial.lose_primary();
        trial.region = Some(vec![0; 1 << 20]);
        trial.step(Input::Promote { ticket: Ticket(1), plan: false, force: false });
        let block = |epoch: Epoch| {
            let from = Fence::place(epoch) as usize;
            from..from + BLOCK_BYTES
        };
        let fence = |trial: &Trial| trial.region.as_ref().expect("given")[block(Epoch(2))].to_vec();
        while is_zero(&fence(&trial)) {
            trial.settle_region();
            trial.drain_disk();
        }
        let (ours, fenced_ns) = (fence(&trial), trial.now.mono_ns);
        for _ in 0..10 {
            trial.write();
        }
        trial.give_region(trial.writer.records.len());
        let theirs = Fence { epoch: Epoch(1), owner: Owner(42) }.encode();
        let stands = if lost { vec![0; BLOCK_BYTES] } else { ours.clone() };
        trial.region.as_mut().expect("given")[block(Epoch(2))].copy_from_slice(&stands);
        // What a writer that was late writes stands beside it.
        trial.region.as_mut().expect("given")[block(Epoch(1))].copy_from_slice(&theirs);
        trial.settle(0);
        let report = trial.outcome.take().expect("settled").expect("promoted");
        let tail = trial.writer.tail();
        assert_eq!((report.aux.as_str(), report.incomplete.as_deref(), report.tail_seq), ("read", None, tail));
        trial.check_report(&report, tail);
        assert_eq!(fence(&trial), ours, "the fence stands");
        // Who did not see it may have renewed its lease meanwhile.
        let leases = if lost { 2 } else { 1 };
        assert!(trial.now.mono_ns - fenced_ns >= leases * (LEASE_NS + LEASE_MARGIN_NS), "{lost}");
    }
}

/// A site that is caught up, and a writer of `bunker` that has written since and whose queue has overflown.
fn overflown(seed: u64) -> Trial {
    let mut trial = site(seed, true);
    caught_up(&mut trial);
    trial.writer.bunker = true;
    (0..12).for_each(|_| trial.write());
    trial.overflow();
    trial
}

/// Promotes what is here with everything in table and ring: nothing is lost.
fn promotes_all(trial: &mut Trial, seed: u64) {
    trial.give_region(trial.writer.records.len());
    let tail = trial.writer.tail();
    let report = trial.promote(false, seed % 4, tail);
    assert_eq!((report.cut_seq, report.missing.len()), (tail, 0), "seed {seed}: {report:?}");
}

/// Payloads were dropped by the primary, whose batch never came, and all of them stand in the auxiliary's ring.
#[test]
fn with_the_ring_nothing_is_lost_in_the_middle_of_a_batch() {
    let mut passed = 0;
    for seed in 40..70 {
        let mut trial = overflown(seed);
        for turn in 0..120 {
            if turn % 10 == 0 {
                trial.write();
            }
            trial.turn();
        }
        let open = trial.writer.batch_is_open();
        trial.lose_primary();
        promotes_all(&mut trial, seed);
        passed += u64::from(open);
    }
    assert!(passed > 5, "batches were open");
}

/// Seed 3267017: what the table knows completes a batch, whose end then moves the cut; what is behind that stands in the ring.
#[test]
fn with_the_ring_nothing_is_lost_behind_a_batch_that_the_table_completes() {
    let mut completed = 0;
    for seed in 70..90 {
        let mut trial = overflown(seed);
        let ended = |trial: &Trial| trial.writer.records.last().is_some_and(|record| record.op == Op::BatchEnd);
        while !ended(&trial) {
            trial.turn();
        }
        let end = trial.writer.tail();
        trial.lose_primary();
        trial.drain_disk();
        (0..8).for_each(|_| trial.write());
        let before = trial.machine.status(trial.now).cut_seq;
        promotes_all(&mut trial, seed);
        completed += u64::from(before < end);
    }
    assert!(completed > 5, "batches were completed by the table: {completed}");
}

/// One bit that had flipped in the ring lost thousands of writes that `bunker` keeps, and only a line of the log said why.
#[test]
fn a_damaged_payload_in_the_ring_is_the_reason_that_plan_and_report_give_for_what_is_lost() {
    let mut trial = site(41, true);
    caught_up(&mut trial);
    trial.writer.bunker = true;
    for _ in 0..12 {
        trial.write_data();
    }
    trial.lose_primary();
    trial.drain_disk();
    trial.give_region(trial.writer.records.len());
    let tail = trial.writer.tail();
    let region = trial.region.as_mut().expect("just given");
    let entry = |at: usize| EntryHeader::decode(&region[at..at + ENTRY_HEADER_BYTES], GROUP.0).ok();
    let spoilt = Seq(tail.0 - 6);
    let place = (0..region.len()).step_by(512).find(|&at| entry(at).is_some_and(|it| it.record.seq == spoilt));
    region[place.expect("its payload is there") + ENTRY_HEADER_BYTES] ^= 4;
    trial.step(Input::Promote { ticket: Ticket(1), plan: true, force: false });
    while trial.outcome.is_none() {
        trial.settle_region();
    }
    let plan = trial.outcome.take().expect("done").expect("a plan");
    let report = trial.promote(false, 0, tail);
    assert_eq!((report.cut_seq, report.missing.len(), &report.damage), (spoilt.prev(), 7, &plan.damage));
    let text = report.damage.as_ref().expect("it is named");
    assert!(text.contains(&format!("the payload of seq {spoilt} in the auxiliary's ring")), "{text}");
    assert_eq!(trial.stored_report().expect("stored").report.damage, report.damage);
}

#[test]
fn without_the_auxiliary_a_promotion_is_refused_and_replication_goes_on() {
    let mut trial = site(6, true);
    trial.step(Input::Promote { ticket: Ticket(1), plan: false, force: false });
    while trial.outcome.is_none() {
        trial.settle_region();
        trial.drain_disk();
    }
    let error = trial.outcome.take().expect("done").expect_err("refused");
    assert!(error.refused_for_safety && error.text.contains("--force"), "{error}");
    trial.write();
    caught_up(&mut trial);
    assert_eq!(trial.machine.status(trial.now).promotion, None);
}

#[test]
fn forced_without_the_auxiliary_the_lease_is_waited_out_first() {
    let mut trial = site(7, true);
    let before = trial.now.mono_ns;
    let report = trial.promote(true, 0, Seq(0));
    assert_eq!(report.aux, "unreachable");
    assert!(trial.now.mono_ns - before >= crate::limits::LEASE_NS + crate::limits::LEASE_MARGIN_NS);
}

#[test]
fn a_damaged_payload_is_named_asked_for_again_and_never_applied() {
    let mut trial = site(8, false);
    trial.write_data();
    // Wait until something is held back beyond the cut, then damage everything that the spool holds.
    let mut damaged = false;
    for _ in 0..200_000 {
        let status = trial.machine.status(trial.now);
        if !damaged && status.pending_writes > 3 {
            // A restart empties the cache: payloads have to be read back.
            trial.crash(true);
            damaged = trial.damage_spool();
            trial.writer.damaged = true;
        }
        if damaged && trial.errors.iter().any(|text| text.contains("damaged")) {
            break;
        }
        if trial.rng.chance(6) {
            trial.write();
        }
        trial.turn();
    }
    assert!(damaged);
    caught_up(&mut trial);
    for _ in 0..100 {
        trial.tick_on();
    }
    trial.drain_disk();
    let tail = trial.writer.tail();
    trial.promote(false, 0, Seq(0));
    trial.check_image(tail);
}

#[test]
fn a_damaged_order_stops_the_cut_and_is_named() {
    let mut trial = site(9, false);
    for _ in 0..40 {
        trial.write();
    }
    for _ in 0..3000 {
        trial.turn();
    }
    trial.stop_applying(|trial| {
        let at = trial.last_journal_slot() - 5 * 64;
        trial.disk.flip(File::Journal, at + 20, 3);
    });
    assert!(trial.errors.iter().any(|text| text.contains("the journal is damaged")), "{:?}", trial.errors);
    assert!(!trial.machine.status(trial.now).degraded.is_empty());
}

#[test]
fn after_a_failed_write_nothing_is_acknowledged_any_more() {
    let mut trial = site(10, false);
    trial.write_data();
    for _ in 0..10_000 {
        if trial.disk.busy() {
            break;
        }
        trial.turn();
    }
    let ticket = trial.disk.any_ticket().expect("something is under way");
    let mut fx = Vec::new();
    let fail = IoFail::NoSpace("disk full".into());
    trial.machine.step(trial.now, Input::Disk { ticket, result: Err(fail) }, &mut fx);
    assert!(fx.iter().any(|effect| matches!(effect, Effect::Fatal { text } if text.contains("disk full"))), "{fx:?}");
    fx.clear();
    trial.machine.step(trial.now, Input::Tick, &mut fx);
    assert!(fx.is_empty() && trial.machine.deadline_ns().is_none());
}

/// A connection is made, and greets.
pub fn greet(trial: &mut Trial, conn: Conn, purpose: Purpose) {
    trial.step(Input::Opened { conn });
    let message = trial.writer.hello(purpose);
    trial.step(Input::Message { conn, message });
}

/// A new site with a writer, its order connection 1 and its stream 2.
pub fn greeted(seed: u64) -> Trial {
    let mut trial = Trial::new(seed, false);
    trial.drain_disk();
    greet(&mut trial, Conn(1), Purpose::Order);
    trial.drain_disk();
    greet(&mut trial, Conn(2), Purpose::Stream);
    trial
}

pub fn order(seq: u64, op: Op, previous: Chain) -> OrderRecord {
    OrderRecord {
        seq: Seq(seq),
        epoch: Epoch(1),
        volume: Volume(0),
        op,
        flags: 0,
        offset: 0,
        length: 4096,
        time_ns: 1,
        chain: Chain(0),
        payload_crc: crc32fast::hash(&[7; 4096]),
    }
    .chained(previous)
}

#[test]
fn a_chunk_that_comes_again_while_the_volumes_are_synced_for_it_is_acknowledged_to_who_sent_it_last() {
    let mut trial = greeted(8);
    let begin = order(1, Op::BatchBegin, Chain(0));
    trial.step(Input::Message { conn: Conn(1), message: Message::Orders(vec![begin]) });
    trial.drain_disk();
    let zeroes = OrderRecord { op: Op::WriteZeroes, ..begin };
    let chunk = Message::Chunk { index: 0, record: zeroes, data: Bytes::new() };
    trial.step(Input::Message { conn: Conn(2), message: chunk.clone() });
    trial.complete_disk();
    assert!(trial.disk.busy(), "written, and being synced");
    trial.hang_up(Conn(2));
    greet(&mut trial, Conn(3), Purpose::Stream);
    trial.step(Input::Message { conn: Conn(3), message: chunk });
    trial.drain_disk();
    let told = Message::ChunksDurable { batch: Seq(1), indexes: vec![0] };
    assert!(trial.sent(Conn(3)).contains(&told), "{:?}", trial.sent(Conn(3)));
}

/// Seed 443901: a chunk was acknowledged and damaged at rest; its batch had ended, and nobody brought it again.
#[test]
fn a_batch_that_has_ended_without_a_chunk_that_was_acknowledged_is_begun_anew() {
    let mut trial = greeted(9);
    let begin = order(1, Op::BatchBegin, Chain(0));
    // Two chunks were acknowledged, the end says; one is here.
    let end =
        OrderRecord { offset: 1, length: 8192, payload_crc: 2, chain: Chain(0), ..order(2, Op::BatchEnd, Chain(0)) };
    let end = end.chained(begin.chain);
    trial.writer.records = vec![begin, end];
    trial.step(Input::Message { conn: Conn(1), message: Message::Orders(vec![begin]) });
    trial.drain_disk();
    let zeroes = OrderRecord { op: Op::WriteZeroes, ..begin };
    let chunk = Message::Chunk { index: 1, record: zeroes, data: Bytes::new() };
    trial.step(Input::Message { conn: Conn(2), message: chunk });
    trial.drain_disk();
    let kept = |trial: &mut Trial, conn| {
        greet(trial, conn, Purpose::Order);
        trial.drain_disk();
        let said =
            trial.sent(conn).into_iter().find_map(|it| if let Message::Welcome(it) = it { Some(it) } else { None });
        said.expect("it is welcome").batch
    };
    assert_eq!(kept(&mut trial, Conn(3)), Seq(1));
    trial.step(Input::Message { conn: Conn(3), message: Message::Orders(vec![end]) });
    trial.drain_disk();
    assert_eq!(kept(&mut trial, Conn(4)), Seq(0), "the writer hears that it is not kept");
    trial.step(Input::Message { conn: Conn(4), message: Message::Ping { nonce: 5 } });
    assert!(trial.sent(Conn(4)).contains(&Message::Pong { nonce: 5 }), "and is not turned away again");
}

/// Seed 445989: a payload waited for its order, came again on another stream, and the first was never told of it.
#[test]
fn a_payload_that_waits_and_comes_again_is_acknowledged_on_both_streams() {
    let copied = Message::Copied { ranges: vec![SeqRange { first: Seq(1), last: Seq(1) }] };
    for lost in [None, Some(Conn(2)), Some(Conn(3))] {
        let mut trial = greeted(10);
        greet(&mut trial, Conn(3), Purpose::Stream);
        let record = order(1, Op::Write, Chain(0));
        let payload = Message::Payload { record, data: vec![7; 4096].into() };
        trial.step(Input::Message { conn: Conn(2), message: payload.clone() });
        trial.step(Input::Message { conn: Conn(3), message: payload });
        lost.into_iter().for_each(|conn| trial.hang_up(conn));
        trial.step(Input::Message { conn: Conn(1), message: Message::Orders(vec![record]) });
        trial.drain_disk();
        for conn in [Conn(2), Conn(3)] {
            assert_eq!(trial.sent(conn).contains(&copied), lost != Some(conn), "{conn:?}, lost {lost:?}");
        }
    }
}

/// The record that ends the batch begun by `begin`: one chunk of 4096 bytes.
pub fn batch_end(seq: u64, begin: &OrderRecord, previous: Chain) -> OrderRecord {
    let end = order(seq, Op::BatchEnd, previous);
    OrderRecord { offset: begin.seq.0, payload_crc: 1, chain: Chain(0), ..end }.chained(previous)
}

/// A site whose first sync, seqs 1 and 2, is complete and applied; the chain there.
pub fn synced(seed: u64) -> (Trial, Chain) {
    let mut trial = greeted(seed);
    let begin = order(1, Op::BatchBegin, Chain(0));
    let end = batch_end(2, &begin, begin.chain);
    let chunk = OrderRecord { op: Op::WriteZeroes, ..begin };
    for (conn, message) in [
        (Conn(1), Message::Orders(vec![begin])),
        (Conn(2), Message::Chunk { index: 0, record: chunk, data: Bytes::new() }),
        (Conn(1), Message::Orders(vec![end])),
    ] {
        trial.step(Input::Message { conn, message });
        trial.drain_disk();
    }
    trial.tick_on();
    assert!(trial.machine.status(trial.now).synced);
    (trial, end.chain)
}

/// What was asked for on a connection.
pub fn asked_for(trial: &Trial, conn: Conn) -> Vec<SeqRange> {
    let needs = trial.sent(conn).into_iter().filter_map(|it| match it {
        Message::Need { ranges } => Some(ranges),
        _ => None,
    });
    needs.flatten().collect()
}

/// Minutes pass in which the link has nothing to carry, and no disk answers.
fn idle_minutes(trial: &mut Trial, minutes: u64) {
    for nonce in 0..minutes * 60 {
        trial.now.mono_ns += 1_000_000_000;
        for conn in [Conn(1), Conn(2)] {
            trial.step(Input::Message { conn, message: Message::Ping { nonce } });
        }
        trial.step(Input::Tick);
    }
}

/// Seed 521417: while the superblock that names a complete batch was written, what the batch passes counted as due.
#[test]
fn what_a_complete_batch_passes_is_not_asked_for_while_the_superblock_is_to_name_it() {
    let (mut trial, chain) = synced(11);
    let left_out = order(3, Op::Write, chain);
    let begin = order(4, Op::BatchBegin, left_out.chain);
    trial.step(Input::Message { conn: Conn(1), message: Message::Orders(vec![left_out, begin]) });
    trial.drain_disk();
    let chunk = OrderRecord { op: Op::WriteZeroes, ..begin };
    trial.step(Input::Message {
        conn: Conn(2),
        message: Message::Chunk { index: 0, record: chunk, data: Bytes::new() },
    });
    trial.drain_disk();
    let end = batch_end(5, &begin, begin.chain);
    trial.step(Input::Message { conn: Conn(1), message: Message::Orders(vec![end]) });
    while trial.machine.committing.is_none() {
        trial.complete_disk();
    }
    idle_minutes(&mut trial, 2);
    assert_eq!(asked_for(&trial, Conn(1)), []);
    greet(&mut trial, Conn(3), Purpose::Order);
    trial.drain_disk();
    assert_eq!((trial.machine.cut, asked_for(&trial, Conn(3))), (Seq(5), vec![]));
}

#[test]
fn a_payload_that_is_due_after_a_long_silence_has_its_time_to_come() {
    let (mut trial, chain) = synced(12);
    idle_minutes(&mut trial, 3);
    let record = order(3, Op::Write, chain);
    trial.step(Input::Message { conn: Conn(1), message: Message::Orders(vec![record]) });
    trial.drain_disk();
    trial.step(Input::Tick);
    assert_eq!(asked_for(&trial, Conn(1)), [], "it is on its way");
    idle_minutes(&mut trial, 2);
    assert_eq!(asked_for(&trial, Conn(1)), [SeqRange { first: Seq(3), last: Seq(3) }], "it is not");
}

#[test]
fn stopped_cleanly_it_says_so_and_everything_is_checkpointed() {
    let mut trial = site(11, false);
    trial.step(Input::Stop);
    for _ in 0..10_000 {
        if trial.stopped {
            break;
        }
        trial.drain_disk();
        trial.tick_on();
    }
    assert!(trial.stopped);
    let superblock = read_slots(&trial.disk.files[&File::Superblock].stable).expect("valid").newest.expect("written");
    assert!(superblock.has(CLEAN | SYNCED));
    trial.check_image(superblock.seq);
}

/// Found by a trial: a process was killed while it wrote one slot, the next one wrote the other, and a loss of power tore
/// both.
#[test]
fn a_start_writes_the_other_slot_of_the_superblock_only_when_the_one_it_found_is_durable() {
    let mut trial = site(9, false);
    trial.stop_cleanly();
    trial.crash(false);
    let written = |trial: &Trial| {
        let mut all = trial.disk.under_way();
        all.any(|op| op.file == File::Superblock && matches!(op.kind, DiskKind::Write { .. }))
    };
    for _ in 0..3 {
        assert!(!written(&trial), "what was found may be in a cache only");
        trial.complete_disk();
    }
    assert!(written(&trial), "that the site was stopped cleanly is taken back");
}

/// Found by seed 2314990: while nothing happened the damaged slot stayed as it was, and the next damage took the other one.
#[test]
fn a_damaged_slot_of_the_superblock_is_written_again_at_a_start() {
    for newest in [false, true] {
        let mut trial = site(9, false);
        trial.settle_start();
        let at = trial.superblock().offset() as usize ^ if newest { 0 } else { BLOCK_BYTES };
        trial.disk.flip(File::Superblock, at + 100, 1);
        trial.crash(false);
        trial.settle_start();
        let bytes = &trial.disk.files[&File::Superblock].stable;
        assert_eq!(read_slots(bytes).expect("valid").damaged, None, "newest {newest}");
    }
}

#[test]
fn a_silent_link_is_closed_and_a_ping_is_answered() {
    let mut trial = Trial::new(12, false);
    trial.drain_disk();
    let conn = Conn(1 << 40);
    trial.step(Input::Opened { conn });
    trial.step(Input::Message { conn, message: Message::Ping { nonce: 5 } });
    assert!(trial.sent(conn).contains(&Message::Pong { nonce: 5 }));
    let due = trial.machine.deadline_ns().expect("silence is watched");
    trial.now.mono_ns = due;
    let mut fx = Vec::new();
    trial.machine.step(trial.now, Input::Tick, &mut fx);
    assert!(fx.iter().any(|effect| matches!(effect, Effect::Close { conn: closed, .. } if *closed == conn)), "{fx:?}");
}

#[test]
fn two_histories_under_one_epoch_are_refused_loudly() {
    let mut trial = site(13, false);
    caught_up(&mut trial);
    trial.write();
    let conn = trial.writer.order.expect("connected");
    let mut record = *trial.writer.records.last().expect("just written");
    record.time_ns += 1;
    let forged = record.chained(crate::core::ids::Chain(99));
    let mut fx = Vec::new();
    trial.machine.step(trial.now, Input::Message { conn, message: Message::Orders(vec![forged]) }, &mut fx);
    let loud = |effect: &Effect| matches!(effect, Effect::Log { level: Level::Error, .. });
    let refused = |effect: &Effect| matches!(effect, Effect::Send { message: Message::Refuse(refuse), .. } if refuse.code == RefuseCode::Protocol);
    assert!(fx.iter().any(loud) && fx.iter().any(refused), "{fx:?}");
}

#[test]
fn a_record_outside_its_volume_is_refused() {
    let mut trial = site(14, false);
    caught_up(&mut trial);
    let conn = trial.writer.order.expect("connected");
    let last = *trial.writer.records.last().expect("written");
    let record = crate::format::record::OrderRecord {
        seq: last.seq.next(),
        op: crate::core::op::Op::Trim,
        offset: 1 << 40,
        length: 1,
        payload_crc: 0,
        ..last
    };
    let message = Message::Orders(vec![record.chained(last.chain)]);
    let mut fx = Vec::new();
    trial.machine.step(trial.now, Input::Message { conn, message }, &mut fx);
    let text = format!("{fx:?}");
    assert!(text.contains("ends outside volume"), "{text}");
}

#[test]
fn hellos_are_judged_as_the_table_says() {
    let options = options(false);
    let mut superblock = Superblock::new(Role::Dr);
    superblock.group = GROUP;
    superblock.group_name = "orders".into();
    superblock.epoch = Epoch(3);
    superblock.peer = Owner(42);
    let hello = Hello {
        purpose: Purpose::Order,
        group: GROUP,
        group_name: "orders".into(),
        epoch: Epoch(3),
        owner: Owner(42),
        incarnation: 7,
        volumes: volumes(),
        tail: Seq(10),
    };
    let code = |hello: &Hello, superblock: &Superblock, writer: Option<Writer>, ready: bool| {
        let sizes = Some(&[VOLUME_BYTES; 2][..]);
        let here = Standing { superblock, options: &options, sizes, tail: Seq(10), writer, ready };
        judge(hello, &here).err().map(|refuse| refuse.code)
    };
    let order = |hello: &Hello| code(hello, &superblock, None, true);
    assert_eq!(order(&hello), None);
    assert_eq!(order(&Hello { epoch: Epoch(4), owner: Owner(1), ..hello.clone() }), None, "a higher epoch is adopted");
    assert_eq!(order(&Hello { group: crate::core::ids::GroupId(1), ..hello.clone() }), Some(RefuseCode::WrongGroup));
    assert_eq!(order(&Hello { group_name: "other".into(), ..hello.clone() }), Some(RefuseCode::WrongGroup));
    assert_eq!(order(&Hello { volumes: vec![], ..hello.clone() }), Some(RefuseCode::Volumes));
    let sized =
        |bytes| Hello { volumes: volumes().into_iter().map(|(name, _)| (name, bytes)).collect(), ..hello.clone() };
    assert_eq!(order(&sized(VOLUME_BYTES + 512)), None, "the order makes it as large here");
    assert_eq!(order(&sized(VOLUME_BYTES - 512)), Some(RefuseCode::Volumes), "nothing gets smaller");
    assert_eq!(order(&Hello { epoch: Epoch(2), ..hello.clone() }), Some(RefuseCode::Fenced));
    assert_eq!(order(&Hello { owner: Owner(1), ..hello.clone() }), Some(RefuseCode::SecondPrimary));
    assert_eq!(order(&Hello { tail: Seq(9), ..hello.clone() }), Some(RefuseCode::Protocol));
    assert_eq!(code(&hello, &superblock, None, false), Some(RefuseCode::NotNow));
    let stream = Hello { purpose: Purpose::Stream, ..hello.clone() };
    assert_eq!(order(&stream), Some(RefuseCode::NotNow), "no order connection");
    assert_eq!(code(&stream, &superblock, Some(Writer::of(&hello)), true), None);
    let later = Writer { incarnation: 8, ..Writer::of(&hello) };
    assert_eq!(code(&stream, &superblock, Some(later), true), Some(RefuseCode::NotNow));
    superblock.set(PROMOTING, true);
    assert_eq!(code(&hello, &superblock, None, true), Some(RefuseCode::NotNow));
    superblock.set(PROMOTED, true);
    assert_eq!(code(&hello, &superblock, None, true), Some(RefuseCode::Fenced));
}

#[test]
fn a_directory_that_does_not_fit_its_configuration_is_refused_with_words() {
    let mut trial = site(15, false);
    trial.crash(true);
    let text = |change: &dyn Fn(&mut crate::dr::api::Options)| {
        let mut options = options(false);
        change(&mut options);
        let found = Found {
            superblock: &trial.disk.files[&File::Superblock].stable,
            journal: &trial.disk.files[&File::Journal],
            spool: &trial.disk.files[&File::Spool],
            blank: false,
            report: None,
        };
        recover(found, &options).err().map_or(String::new(), |err| err.to_string())
    };
    assert!(text(&|_| ()).is_empty());
    assert!(text(&|options| options.group_name = "other".into()).contains("belongs to group \"orders\""));
    assert!(text(&|options| options.volumes[0].0 = "other".into()).contains("volumes in the configuration"));
    assert!(text(&|options| options.volumes[0].1 += 4096).is_empty(), "the superblock knows its sizes");
    assert!(text(&|options| options.spool_bytes *= 2).contains("[dr] spool"));
    assert!(text(&|options| options.journal_bytes = 3 << 20).contains("[dr] journal"));
    let mut flipped = trial.disk.files[&File::Superblock].stable.clone();
    flipped[100] ^= 1;
    flipped[4096 + 100] ^= 1;
    let found = Found {
        superblock: &flipped,
        journal: &trial.disk.files[&File::Journal],
        spool: &trial.disk.files[&File::Spool],
        blank: false,
        report: None,
    };
    let err = recover(found, &options(false)).err().expect("both slots are damaged");
    assert!(err.to_string().contains("cannot be trusted"), "{err}");
}

#[test]
fn the_report_is_printed_as_documented() {
    let mut trial = site(16, true);
    caught_up(&mut trial);
    trial.lose_primary();
    trial.writer.write_at(0, 8192, Bytes::from(vec![7; 4096]));
    trial.give_region(trial.writer.records.len());
    let mut report = trial.promote(false, 0, trial.writer.tail());
    report.duration_seconds = 0.31;
    report.replayed = 120;
    let (cut, tail) = (report.cut_seq, report.tail_seq);
    assert_eq!(tail, cut.next());
    let time = crate::cluster::status::rfc3339(trial.writer.record(tail).time_ns);
    let golden = format!(
        r#"{{"group":"orders","epoch":2,"cut_seq":{cut},"tail_seq":{tail},"replayed":120,"fetched_from_aux":0,"missing":[{{"seq":{tail},"volume":"db","op":"write","offset":8192,"length":4096,"time":"{time}","state":"queued"}}],"missing_bytes":4096,"aux":"read","duration_seconds":0.31}}"#
    );
    assert_eq!(serde_json::to_string(&report).expect("plain data"), golden);
}
