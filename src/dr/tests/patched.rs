//! Pieces of a batch that come as digests: what the volume has need not cross, and what it does not have is asked for.

use bytes::Bytes;

use super::named::{batch_end, greet, greeted, order, synced};
use super::run::Trial;
use crate::core::ids::{Chain, Conn, Seq, Volume};
use crate::core::machine::{DiskKind, DiskOp};
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
