//! Pieces of a batch that come as digests: what the volume has need not cross, and what it does not have is asked for.

use bytes::Bytes;

use super::named::{asked_for, batch_end, greet, greeted, order, synced};
use super::room::resize;
use super::run::Trial;
use super::writer::VOLUME_BYTES;
use crate::core::ids::{Chain, Conn, Seq, SeqRange, Ticket, Volume};
use crate::core::machine::{DiskKind, DiskOp, IoFail};
use crate::core::op::Op;
use crate::dr::api::{File, Input};
use crate::format::record::OrderRecord;
use crate::format::wire::{Message, Patch, Purpose};

/// A piece of eight blocks at the front of the first volume: its record in the batch, and its bytes, with sevens in `sevens`.
fn piece(begin: &OrderRecord, sevens: std::ops::Range<usize>) -> (OrderRecord, Bytes) {
    let mut bytes = vec![0; 8 * 4096];
    bytes[sevens].fill(7);
    let (length, payload_crc) = (bytes.len() as u64, crc32fast::hash(&bytes));
    (OrderRecord { op: Op::Write, length, payload_crc, ..*begin }, bytes.into())
}

fn say(trial: &mut Trial, conn: u64, message: Message) {
    trial.step(Input::Message { conn: Conn(conn), message });
    trial.drain_disk();
}

/// What was said of pieces of a batch on a connection: parts that are wanted, and indexes that are durable.
fn answers(trial: &Trial, conn: u64, of: u64) -> (Vec<u64>, Vec<u64>) {
    let (mut wanted, mut durable) = (Vec::new(), Vec::new());
    for message in trial.sent(Conn(conn)) {
        match message {
            Message::Wanted { batch, index: 0, parts } if batch == Seq(of) => wanted.push(parts),
            Message::ChunksDurable { batch, indexes } if batch == Seq(of) => durable.extend(indexes),
            _ => {}
        }
    }
    (wanted, durable)
}

fn front(trial: &Trial) -> Vec<u8> {
    trial.disk.files[&File::Volume(Volume(0))].cache[..8 * 4096].to_vec()
}

#[test]
fn what_the_volume_lacks_of_a_piece_is_asked_for_and_the_piece_is_whole_with_it() {
    let (mut trial, chain) = synced(3);
    let begin = order(3, Op::BatchBegin, chain);
    let (record, bytes) = piece(&begin, 4096..4097);
    say(&mut trial, 2, Message::Patch(Patch::new(0, record, &bytes, 0)));
    assert_eq!(answers(&trial, 2, 3), (vec![], vec![]), "its batch has not begun here");
    say(&mut trial, 1, Message::Orders(vec![begin]));
    assert_eq!(answers(&trial, 2, 3), (vec![2], vec![]), "one block differs");
    say(&mut trial, 2, Message::Patch(Patch::new(0, record, &bytes, 2)));
    assert_eq!(answers(&trial, 2, 3), (vec![2], vec![0]));
    say(&mut trial, 2, Message::Patch(Patch::new(0, record, &bytes, 0)));
    assert_eq!(answers(&trial, 2, 3), (vec![2], vec![0, 0]), "it is here, whatever the volume holds");
    assert!(front(&trial).iter().all(|byte| *byte == 0), "the recovery point stays until the batch is complete");
    let end = OrderRecord { length: record.length, chain: Chain(0), ..batch_end(4, &begin, begin.chain) };
    say(&mut trial, 1, Message::Orders(vec![end.chained(begin.chain)]));
    trial.tick_on();
    trial.drain_disk();
    assert_eq!((trial.machine.cut, front(&trial)), (Seq(4), bytes.to_vec()));
    say(&mut trial, 2, Message::Patch(Patch::new(0, record, &bytes, 0)));
    assert_eq!(answers(&trial, 2, 3), (vec![2], vec![0; 3]), "and is still, once the batch is over");
}

#[test]
fn of_a_first_sync_what_is_there_stays_in_place_and_counts_once_it_is_durable() {
    let mut trial = greeted(9);
    let begin = order(1, Op::BatchBegin, Chain(0));
    say(&mut trial, 1, Message::Orders(vec![begin]));
    let (record, bytes) = piece(&begin, 0..8 * 4096);
    trial.disk.overwrite(File::Volume(Volume(0)), 0, 8 * 4096, 7);
    trial.step(Input::Message { conn: Conn(2), message: Message::Patch(Patch::new(0, record, &bytes, 0)) });
    while trial.disk.busy() {
        let writes = |op: &DiskOp<File>| matches!((op.file, &op.kind), (File::Volume(_), DiskKind::Write { .. }));
        assert!(!trial.disk.under_way().any(writes), "it is there");
        trial.complete_disk();
    }
    assert_eq!(answers(&trial, 2, 1), (vec![], vec![0]));
    let end = OrderRecord { length: record.length, chain: Chain(0), ..batch_end(2, &begin, begin.chain) };
    say(&mut trial, 1, Message::Orders(vec![end.chained(begin.chain)]));
    trial.tick_on();
    assert!(trial.machine.status(trial.now).synced);
}

#[test]
fn a_piece_that_the_volume_cannot_hold_yet_is_asked_for_as_a_whole() {
    let (mut trial, chain) = synced(4);
    let begin = order(3, Op::BatchBegin, chain);
    say(&mut trial, 1, Message::Orders(vec![begin]));
    let (record, bytes) = piece(&begin, 0..0);
    let behind = OrderRecord { offset: trial.options.volumes[0].1 - 4096, ..record };
    say(&mut trial, 2, Message::Patch(Patch::new(0, behind, &bytes, 0)));
    assert_eq!(answers(&trial, 2, 3), (vec![255], vec![]));
}

#[test]
fn nor_is_a_store_read_behind_its_end_while_its_volume_is_larger() {
    let (mut trial, chain) = synced(4);
    trial.room_bytes = VOLUME_BYTES;
    let grown = resize(3, chain);
    let begin = order(4, Op::BatchBegin, grown.chain);
    say(&mut trial, 1, Message::Orders(vec![grown, begin]));
    let (record, bytes) = piece(&begin, 0..0);
    say(&mut trial, 2, Message::Patch(Patch::new(0, OrderRecord { offset: VOLUME_BYTES, ..record }, &bytes, 0)));
    assert_eq!(answers(&trial, 2, 4), (vec![255], vec![]));
}

#[test]
fn a_piece_whose_place_cannot_be_read_is_asked_for_as_a_whole() {
    let (mut trial, chain) = synced(4);
    let begin = order(3, Op::BatchBegin, chain);
    say(&mut trial, 1, Message::Orders(vec![begin]));
    let (record, bytes) = piece(&begin, 0..0);
    trial.step(Input::Message { conn: Conn(2), message: Message::Patch(Patch::new(0, record, &bytes, 0)) });
    let reads = |op: &&DiskOp<File>| matches!((op.file, &op.kind), (File::Volume(_), DiskKind::Read { .. }));
    let ticket = trial.disk.under_way().find(reads).expect("its place is read").ticket;
    trial.step(Input::Disk { ticket, result: Err(IoFail::Other("a bad sector".into())) });
    assert_eq!(answers(&trial, 2, 3), (vec![255], vec![]));
}

#[test]
fn who_sends_more_pieces_than_the_window_has_room_for_is_refused() {
    let (mut trial, chain) = synced(4);
    let begin = order(3, Op::BatchBegin, chain);
    let (record, bytes) = piece(&begin, 0..0);
    // Twice the window: half of the spool.
    for index in 0..=(trial.options.spool_bytes / 2 / record.length) {
        assert_eq!(trial.refused(Conn(2)), None, "{index}");
        trial.step(Input::Message { conn: Conn(2), message: Message::Patch(Patch::new(index, record, &bytes, 0)) });
    }
    assert!(trial.refused(Conn(2)).is_some_and(|refuse| refuse.text.contains("window")));
}

#[test]
fn who_is_gone_hears_of_no_piece_and_who_comes_again_does() {
    let (mut trial, chain) = synced(5);
    let begin = order(3, Op::BatchBegin, chain);
    say(&mut trial, 1, Message::Orders(vec![begin]));
    let (record, bytes) = piece(&begin, 0..9);
    let message = Message::Patch(Patch::new(0, record, &bytes, 0));
    trial.step(Input::Message { conn: Conn(2), message: message.clone() });
    trial.hang_up(Conn(2));
    trial.drain_disk();
    assert_eq!(answers(&trial, 2, 3), (vec![], vec![]));
    greet(&mut trial, Conn(5), Purpose::Stream);
    say(&mut trial, 5, message);
    assert_eq!(answers(&trial, 5, 3), (vec![1], vec![]));
}

/// Batch 3 has staged a piece that the volume does not hold, and another begins behind it: the first order of that one.
fn another_begins(seed: u64, sevens: std::ops::Range<usize>) -> (Trial, OrderRecord) {
    let (mut trial, chain) = synced(seed);
    let first = order(3, Op::BatchBegin, chain);
    say(&mut trial, 1, Message::Orders(vec![first]));
    let (record, data) = piece(&first, sevens);
    say(&mut trial, 2, Message::Chunk { index: 0, record, data });
    assert_eq!(answers(&trial, 2, 3), (vec![], vec![0]));
    let second = order(4, Op::BatchBegin, first.chain);
    say(&mut trial, 1, Message::Orders(vec![second]));
    (trial, second)
}

#[test]
fn what_a_batch_that_gave_way_had_brought_need_not_cross_again() {
    let (mut trial, begin) = another_begins(6, 4096..3 * 4096);
    let (record, bytes) = piece(&begin, 4096..3 * 4096);
    let spool = |trial: &Trial| trial.machine.status(trial.now).spool_bytes;
    let before = spool(&trial);
    say(&mut trial, 2, Message::Patch(Patch::new(0, record, &bytes, 0)));
    assert_eq!(answers(&trial, 2, 4), (vec![], vec![0]));
    assert_eq!(spool(&trial), before, "the old one went when the new one was there");
    assert!(front(&trial).iter().all(|byte| *byte == 0), "the recovery point stays until the batch is complete");
    let end = OrderRecord { length: record.length, chain: Chain(0), ..batch_end(5, &begin, begin.chain) };
    say(&mut trial, 1, Message::Orders(vec![end.chained(begin.chain)]));
    trial.tick_on();
    trial.drain_disk();
    assert_eq!((trial.machine.cut, front(&trial)), (Seq(5), bytes.to_vec()));
}

#[test]
fn of_what_it_had_brought_only_what_is_still_so_is_used() {
    // The third block of the old piece is another now; a piece of the new batch has half of it, and begins elsewhere.
    let (mut trial, begin) = another_begins(7, 4096..3 * 4096);
    let (record, bytes) = piece(&begin, 4096..2 * 4096);
    let (length, data) = (5 * 4096, bytes.slice(4096..6 * 4096));
    let record = OrderRecord { offset: 4096, length, payload_crc: crc32fast::hash(&data), ..record };
    say(&mut trial, 2, Message::Patch(Patch::new(0, record, &data, 0)));
    assert_eq!(answers(&trial, 2, 4), (vec![2], vec![]), "the first part of it is here, the second is not");
    say(&mut trial, 2, Message::Patch(Patch::new(0, record, &data, 2)));
    assert_eq!(answers(&trial, 2, 4), (vec![2], vec![0]));
}

#[test]
fn what_it_had_brought_and_cannot_be_read_crosses_again() {
    let (mut trial, begin) = another_begins(10, 4096..3 * 4096);
    let (record, bytes) = piece(&begin, 4096..3 * 4096);
    trial.step(Input::Message { conn: Conn(2), message: Message::Patch(Patch::new(0, record, &bytes, 0)) });
    let reads = |op: &&DiskOp<File>| op.file == File::Spool && matches!(op.kind, DiskKind::Read { .. });
    while trial.disk.under_way().find(reads).is_none() {
        trial.complete_disk();
    }
    let ticket = trial.disk.under_way().find(reads).expect("just seen").ticket;
    trial.step(Input::Disk { ticket, result: Err(IoFail::Other("a bad sector".into())) });
    assert_eq!(answers(&trial, 2, 4), (vec![6], vec![]), "what the volume has not");
    assert!(trial.said.iter().any(|text| text.contains("a bad sector")));
    say(&mut trial, 2, Message::Patch(Patch::new(0, record, &bytes, 6)));
    assert_eq!(answers(&trial, 2, 4), (vec![6], vec![0]));
}

/// The spool is full: what a batch that gave way had brought, and of a write in the middle of it.
#[test]
fn what_stands_first_makes_room_and_nothing_behind_it_goes_in_vain() {
    let (mut trial, chain) = synced(11);
    let first = order(3, Op::BatchBegin, chain);
    say(&mut trial, 1, Message::Orders(vec![first]));
    let chunk = |begin: &OrderRecord, index: u64| {
        let data = Bytes::from(vec![7; 4096]);
        let offset = index % 24 * 4096;
        let record = OrderRecord { op: Op::Write, offset, payload_crc: crc32fast::hash(&data), ..*begin };
        Message::Chunk { index, record, data }
    };
    let write = order(4, Op::Write, first.chain);
    for index in 0..12 {
        if index == 2 {
            say(&mut trial, 1, Message::Orders(vec![write]));
            say(&mut trial, 2, Message::Payload { record: write, data: vec![7; 4096].into() });
        }
        say(&mut trial, 2, chunk(&first, index));
    }
    let second = order(5, Op::BatchBegin, write.chain);
    say(&mut trial, 1, Message::Orders(vec![second]));
    let left = |trial: &Trial| trial.machine.fillings.leftovers.bytes() / 4096;
    let gave_up = |trial: &Trial| asked_for(trial, Conn(1)).contains(&SeqRange { first: Seq(4), last: Seq(4) });
    assert_eq!((left(&trial), gave_up(&trial)), (12, false));
    let mut seen = Vec::new();
    for index in 0..400 {
        // Ranges in the second half: what is left of the first batch is in the way, and not brought.
        say(&mut trial, 2, chunk(&second, 12 + index / 12 * 24 + index % 12));
        let now = (left(&trial), gave_up(&trial));
        if seen.last() != Some(&now) {
            seen.push(now);
        }
    }
    assert_eq!(seen, [(12, false), (10, false), (0, true)]);
}

#[test]
fn who_is_gone_while_it_is_read_hears_nothing() {
    let (mut trial, begin) = another_begins(8, 0..4096);
    let (record, bytes) = piece(&begin, 0..4096);
    let message = Message::Patch(Patch::new(0, record, &bytes, 0));
    trial.step(Input::Message { conn: Conn(2), message: message.clone() });
    while !trial.disk.under_way().any(|op| op.file == File::Spool && matches!(op.kind, DiskKind::Read { .. })) {
        trial.complete_disk();
    }
    trial.hang_up(Conn(2));
    trial.drain_disk();
    assert_eq!(answers(&trial, 2, 4), (vec![], vec![]));
    greet(&mut trial, Conn(5), Purpose::Stream);
    say(&mut trial, 5, message);
    assert_eq!(answers(&trial, 5, 4), (vec![], vec![0]));
}

#[test]
fn a_promotion_has_all_of_the_room() {
    let (mut trial, _) = another_begins(9, 0..4096);
    assert!(trial.machine.status(trial.now).spool_bytes > 0);
    trial.step(Input::Promote { ticket: Ticket(1), plan: true, force: true });
    assert!(trial.machine.status(trial.now).spool_bytes > 0, "a plan changes nothing");
    trial.drain_disk();
    trial.step(Input::Promote { ticket: Ticket(2), plan: false, force: true });
    trial.drain_disk();
    assert_eq!(trial.machine.status(trial.now).spool_bytes, 0);
}
