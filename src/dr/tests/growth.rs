//! A batch that the spool was not made for: it grows, whatever happens meanwhile, and is what it was afterwards. Where it cannot,
//! the operator may give up the recovery point.

use bytes::Bytes;

use super::foresee::asked;
use super::named::{batch_end, order, site, synced};
use super::run::Trial;
use crate::core::ids::{Chain, Conn, Seq, Ticket, Volume};
use crate::core::machine::Machine as _;
use crate::core::op::Op;
use crate::dr::api::{File, Input};
use crate::format::record::OrderRecord;
use crate::format::ring::Ring;
use crate::format::superblock::{PROMOTED, PROMOTING, SYNCED};
use crate::format::wire::{Hello, Message, Purpose};

const PIECE: usize = 24 << 10;
const SPOOL: u64 = 1 << 20;

fn say(trial: &mut Trial, conn: Conn, message: Message) {
    trial.step(Input::Message { conn, message });
    trial.drain_disk();
}

/// A connection of the writer whose history goes on to `tail`.
fn greet(trial: &mut Trial, conn: Conn, purpose: Purpose, tail: Seq) {
    trial.step(Input::Opened { conn });
    let Message::Hello(hello) = trial.writer.hello(purpose) else { unreachable!("a hello") };
    say(trial, conn, Message::Hello(Hello { tail, ..hello }));
}

/// A piece at the front of the first volume: all have that range.
fn piece(begin: &OrderRecord, index: u64) -> (OrderRecord, Bytes) {
    let data: Bytes = vec![index as u8 + 1; PIECE].into();
    let (length, payload_crc) = (PIECE as u64, crc32fast::hash(&data));
    (OrderRecord { op: Op::Write, length, payload_crc, ..*begin }, data)
}

fn front(trial: &Trial) -> Vec<u8> {
    trial.disk.files[&File::Volume(Volume(0))].cache[..PIECE].to_vec()
}

fn limit(trial: &Trial) -> u64 {
    trial.machine.status(trial.now).spool_limit_bytes
}

/// Sends `count` pieces of the batch that `begin` names, again where they are not said to be durable; `each` before each.
fn bring(
    trial: &mut Trial,
    stream: &mut Conn,
    begin: &OrderRecord,
    count: u64,
    mut each: impl FnMut(&mut Trial, u64, &mut Conn),
) {
    for index in 0..count {
        each(trial, index, stream);
        let (record, data) = piece(begin, index);
        let durable = |trial: &Trial| {
            let told = |it| matches!(it, Message::ChunksDurable { indexes, .. } if indexes.contains(&index));
            trial.sent(*stream).into_iter().any(told)
        };
        for _ in 0..20 {
            if !durable(trial) {
                say(trial, *stream, Message::Chunk { index, record, data: data.clone() });
            }
        }
        assert!(durable(trial), "{index}: {:?}", trial.machine.status(trial.now));
    }
}

/// A crash, and the same writer again.
fn crash(trial: &mut Trial, index: u64, stream: &mut Conn, tail: Seq) {
    trial.crash(trial.now.mono_ns.is_multiple_of(2));
    trial.drain_disk();
    greet(trial, Conn(100 + 2 * index), Purpose::Order, tail);
    *stream = Conn(101 + 2 * index);
    greet(trial, *stream, Purpose::Stream, tail);
}

fn end(trial: &mut Trial, conn: Conn, begin: &OrderRecord, count: u64) -> OrderRecord {
    let end = batch_end(begin.seq.0 + 1, begin, begin.chain);
    let end = OrderRecord { length: count * PIECE as u64, payload_crc: count as u32, chain: Chain(0), ..end };
    let end = end.chained(begin.chain);
    say(trial, conn, Message::Orders(vec![end]));
    for _ in 0..200 {
        trial.tick_on();
        trial.drain_disk();
    }
    end
}

#[test]
fn a_batch_that_is_larger_than_the_spool_is_complete_and_the_spool_is_what_it_was() {
    for (every, times) in [(1000, 2), (7, 2), (13, 5), (1, 1)] {
        let (mut trial, chain) = synced(50);
        trial.options.spool_bytes_max = 6 * SPOOL;
        trial.crash(false);
        trial.drain_disk();
        let mut begin = order(3, Op::BatchBegin, chain);
        // A second one finds the spool as the first did.
        for time in 0..times {
            let (mut conn, mut stream) = (Conn(11 + 2 * time), Conn(12 + 2 * time));
            greet(&mut trial, conn, Purpose::Order, begin.seq.prev());
            greet(&mut trial, stream, Purpose::Stream, begin.seq.prev());
            say(&mut trial, conn, Message::Orders(vec![begin]));
            let cut = trial.machine.cut;
            let before = front(&trial);
            let count = 150;
            bring(&mut trial, &mut stream, &begin, count, |trial, index, stream| {
                if index % every == every - 1 {
                    crash(trial, begin.seq.0 * 1000 + index, stream, begin.seq);
                    conn = Conn(stream.0 - 1);
                }
                assert_eq!((trial.machine.cut, front(trial) == before), (cut, true), "the recovery point stays (I6)");
            });
            assert!(limit(&trial) >= 4 * SPOOL, "{}", limit(&trial));
            assert!(trial.said.iter().any(|text| text.contains("has grown from 1048576 to")), "{:?}", trial.said);
            let end = end(&mut trial, conn, &begin, count);
            assert_eq!((trial.machine.cut, front(&trial)), (end.seq, vec![count as u8; PIECE]));
            assert_eq!(
                (limit(&trial), trial.superblock().extensions),
                (SPOOL, Ring::plain(SPOOL).extensions),
                "it is given back"
            );
            assert_eq!(trial.disk.files[&File::Spool].stable.len() as u64, SPOOL);
            begin = order(end.seq.0 + 1, Op::BatchBegin, end.chain);
        }
    }
}

#[test]
fn where_there_is_no_room_it_says_so_and_the_recovery_point_stays() {
    let (mut trial, chain) = synced(51);
    trial.options.spool_bytes_max = 8 * SPOOL;
    trial.spool_room = 2 * SPOOL;
    trial.crash(false);
    trial.drain_disk();
    greet(&mut trial, Conn(11), Purpose::Order, Seq(2));
    let said = trial.sent(Conn(11)).into_iter().find_map(|it| match it {
        Message::Welcome(welcome) => Some(welcome.spool_bytes),
        _ => None,
    });
    assert_eq!(said, Some(8 * SPOOL), "what it may have");
    greet(&mut trial, Conn(12), Purpose::Stream, Seq(2));
    let begin = order(3, Op::BatchBegin, chain);
    say(&mut trial, Conn(11), Message::Orders(vec![begin]));
    let mut index = 0;
    while trial.machine.growth.refused().is_none() {
        let (record, data) = piece(&begin, index);
        say(&mut trial, Conn(12), Message::Chunk { index, record, data });
        index += 1;
        assert!(index < 100, "there is room for two times the spool");
    }
    assert!((2 * SPOOL / PIECE as u64 - 3..=2 * SPOOL / PIECE as u64).contains(&index), "{index} pieces fit it");
    assert_eq!(limit(&trial), 2 * SPOOL);
    greet(&mut trial, Conn(13), Purpose::Order, begin.seq);
    let said = trial.sent(Conn(13)).into_iter().find_map(|it| match it {
        Message::Welcome(welcome) => Some(welcome.spool_bytes),
        _ => None,
    });
    assert_eq!(said, Some(2 * SPOOL), "what it has");
    greet(&mut trial, Conn(14), Purpose::Stream, begin.seq);
    for index in index - 1..index + 2 {
        let (record, data) = piece(&begin, index);
        say(&mut trial, Conn(14), Message::Chunk { index, record, data });
    }
    let degraded = format!("{:?}", trial.machine.status(trial.now).degraded);
    assert!(
        degraded.contains("needs more spool than 2 MiB (") && degraded.contains("the file system is full"),
        "{degraded}"
    );
    assert_eq!(trial.machine.cut, Seq(2));
}

#[test]
fn a_file_that_a_crash_left_longer_is_cut() {
    let (mut trial, _) = synced(52);
    trial.disk.resize(File::Spool, 3 << 20);
    trial.crash(true);
    trial.drain_disk();
    assert_eq!(trial.disk.files[&File::Spool].stable.len() as u64, SPOOL);
    assert_eq!(trial.machine.intake.spool.ring(), Ring::plain(SPOOL));
}

fn recopy(trial: &mut Trial) -> Option<Result<Seq, String>> {
    trial.given_up = None;
    trial.step(Input::Recopy { ticket: Ticket(7) });
    trial.drain_disk();
    trial.given_up.take()
}

/// A site whose spool does not hold the batch that came in, and does not grow.
fn stuck(seed: u64) -> (Trial, OrderRecord) {
    let (mut trial, chain) = synced(seed);
    let begin = order(3, Op::BatchBegin, chain);
    say(&mut trial, Conn(1), Message::Orders(vec![begin]));
    let mut index = 0;
    let too_large =
        |trial: &Trial| format!("{:?}", trial.machine.status(trial.now).degraded).contains("farshore recopy");
    while !too_large(&trial) {
        let (record, data) = piece(&begin, index);
        say(&mut trial, Conn(2), Message::Chunk { index, record, data });
        index += 1;
        assert!(index < 60, "the spool holds no more");
    }
    (trial, begin)
}

#[test]
fn whoever_gives_up_the_recovery_point_gets_a_copy_in_place_and_whoever_does_not_keeps_it() {
    for killed in [false, true] {
        let (mut trial, begin) = stuck(53);
        assert_eq!((trial.machine.cut, trial.machine.status(trial.now).synced), (Seq(2), true), "it stays");
        assert_eq!(recopy(&mut trial), Some(Ok(Seq(2))));
        assert!(!trial.superblock().has(SYNCED), "durably");
        if killed {
            trial.crash(true);
            trial.drain_disk();
        }
        let status = trial.machine.status(trial.now);
        assert_eq!((status.synced, status.cut_seq, status.spool_bytes), (false, Seq(0), 0));
        assert!(recopy(&mut trial).is_some_and(|it| it.is_err_and(|why| why.contains("no recovery point"))));
        greet(&mut trial, Conn(21), Purpose::Order, begin.seq);
        greet(&mut trial, Conn(22), Purpose::Stream, begin.seq);
        let welcome = trial.sent(Conn(21)).into_iter().find_map(|it| match it {
            Message::Welcome(welcome) => Some((welcome.synced, welcome.cut, welcome.journal_seq)),
            _ => None,
        });
        assert_eq!(welcome, Some((false, Seq(0), begin.seq)), "everything is to be copied");
        let first = order(4, Op::BatchBegin, begin.chain);
        say(&mut trial, Conn(21), Message::Orders(vec![first]));
        // As much as did not fit the spool.
        bring(&mut trial, &mut Conn(22), &first, 100, |_, _, _| {});
        let end = end(&mut trial, Conn(21), &first, 100);
        assert_eq!((trial.machine.status(trial.now).cut_seq, front(&trial)), (end.seq, vec![100; PIECE]));
        assert!(trial.superblock().has(SYNCED));
    }
}

#[test]
fn nobody_gives_up_what_there_is_not_or_what_is_in_use() {
    let mut trial = Trial::new(54, false);
    trial.drain_disk();
    assert!(recopy(&mut trial).is_some_and(|it| it.is_err_and(|why| why.contains("no recovery point"))));
    let mut trial = site(55, false);
    trial.promote(false, 0, Seq(0));
    assert!(recopy(&mut trial).is_some_and(|it| it.is_err_and(|why| why.contains("was promoted"))));
    assert!(trial.superblock().has(PROMOTED) && trial.superblock().has(SYNCED));
    let mut trial = site(58, false);
    trial.machine.keeper.change(|it| it.set(PROMOTING, true));
    assert!(recopy(&mut trial).is_some_and(|it| it.is_err_and(|why| why.contains("call promote again"))));
    // What is on its way into the volumes comes first.
    let (mut trial, _) = stuck(56);
    trial.step(Input::Recopy { ticket: Ticket(8) });
    trial.given_up = None;
    trial.step(Input::Recopy { ticket: Ticket(9) });
    assert!(trial.given_up.take().is_some_and(|it| it.is_err()), "once is enough");
    assert!(trial.superblock().has(SYNCED), "not yet durable");
    trial.drain_disk();
    assert_eq!((trial.given_up.take(), trial.superblock().has(SYNCED)), (Some(Ok(Seq(2))), false));
}

#[test]
fn a_promotion_in_the_middle_of_a_batch_gives_back_what_the_spool_had_grown_by() {
    for killed in [false, true] {
        let (mut trial, chain) = synced(57);
        trial.options.spool_bytes_max = 4 * SPOOL;
        trial.crash(false);
        trial.drain_disk();
        greet(&mut trial, Conn(11), Purpose::Order, Seq(2));
        greet(&mut trial, Conn(12), Purpose::Stream, Seq(2));
        let begin = order(3, Op::BatchBegin, chain);
        say(&mut trial, Conn(11), Message::Orders(vec![begin]));
        bring(&mut trial, &mut Conn(12), &begin, 60, |_, _, _| {});
        assert_eq!(limit(&trial), 2 * SPOOL);
        let report = asked(&mut trial, false, true).expect("promoted");
        assert_eq!((report.cut_seq, trial.superblock().has(PROMOTED)), (Seq(3), true));
        if killed {
            trial.crash(true);
        }
        trial.drain_disk();
        assert_eq!((limit(&trial), trial.superblock().extensions), (SPOOL, Ring::plain(SPOOL).extensions));
        assert_eq!(trial.disk.files[&File::Spool].stable.len() as u64, SPOOL);
    }
}

#[test]
fn it_is_asked_for_once_and_what_is_not_extended_is_not_given_back() {
    let (mut trial, _) = synced(60);
    trial.options.spool_bytes_max = 4 * SPOOL;
    trial.crash(false);
    trial.drain_disk();
    let mut fx = Vec::new();
    trial.machine.shrink_spool();
    trial.machine.give_spool_back();
    assert!(trial.machine.growth.idle() && trial.machine.intake.spool.ring() == Ring::plain(SPOOL));
    assert!(trial.machine.grow_spool(&mut fx) && !trial.machine.growth.idle());
    assert!(trial.machine.grow_spool(&mut fx), "it is under way");
    assert_eq!(fx.len(), 1, "{fx:?}");
}

#[test]
fn a_spool_that_does_not_extend_keeps_what_it_holds_at_a_promotion() {
    let mut trial = site(61, false);
    (0..40).for_each(|_| trial.write());
    while trial.machine.intake.spool.live_bytes() == 0 {
        trial.turn();
    }
    let live = trial.machine.intake.spool.live_bytes();
    trial.machine.give_spool_back();
    assert_eq!(trial.machine.intake.spool.live_bytes(), live);
}

#[test]
fn who_is_asked_hears_what_the_point_is_worth_and_what_keeps_it() {
    let (mut trial, _) = stuck(62);
    assert_eq!(trial.machine.point_is_worth(), "");
    let under_way =
        |trial: &Trial| trial.machine.keeps_point_because().is_some_and(|why| why.contains("a promotion is under way"));
    assert!(!under_way(&trial));
    trial.machine.promote_later = Some((Ticket(1), false, false));
    assert!(under_way(&trial), "it waits");
    let mut planned = site(65, true);
    planned.drain_disk();
    planned.step(Input::Promote { ticket: Ticket(1), plan: true, force: false });
    assert!(planned.outcome.is_none() && under_way(&planned), "it reads the table");
    trial.step(Input::Closed { conn: Conn(1) });
    assert!(trial.machine.point_is_worth().contains("No primary is connected"));
    let (trial, _) = synced(63);
    assert!(trial.machine.point_is_worth().contains("No batch waits"));
}

#[test]
fn a_batch_that_is_being_taken_over_keeps_the_point_from_being_given_up() {
    let (mut trial, chain) = synced(64);
    let begin = order(3, Op::BatchBegin, chain);
    say(&mut trial, Conn(1), Message::Orders(vec![begin]));
    greet(&mut trial, Conn(12), Purpose::Stream, begin.seq);
    bring(&mut trial, &mut Conn(12), &begin, 4, |_, _, _| {});
    let end = batch_end(begin.seq.0 + 1, &begin, begin.chain);
    let end = OrderRecord { length: 4 * PIECE as u64, payload_crc: 4, chain: Chain(0), ..end };
    trial.step(Input::Message { conn: Conn(1), message: Message::Orders(vec![end.chained(begin.chain)]) });
    let mut met = (false, false);
    let mut look = |trial: &Trial| {
        let (committing, committed) = (trial.machine.committing.is_some(), trial.machine.committed.is_some());
        met = (met.0 | (committing && !committed), met.1 | (committed && !committing));
        let kept = trial.machine.keeps_point_because().is_some_and(|why| why.contains("a batch is complete"));
        assert_eq!(kept, committing || committed);
    };
    for _ in 0..200 {
        trial.now.mono_ns = trial.machine.deadline_ns().unwrap_or(0).max(trial.now.mono_ns);
        trial.step(Input::Tick);
        look(&trial);
        while trial.disk.busy() {
            trial.complete_disk();
            look(&trial);
        }
    }
    assert_eq!((met, trial.machine.cut), ((true, true), Seq(4)));
}
