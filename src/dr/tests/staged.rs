//! What a start keeps of the spool, and what it makes of the batches that are staged there, over bytes in memory.

use super::scan::{Entry, Memory, journal, record, recovered};
use crate::core::ids::Seq;
use crate::core::op::Op;
use crate::dr::recovery::Recovered;
use crate::format::record::OrderRecord;
use crate::format::spool::{Kind, entry_bytes};
use crate::format::superblock::{DIRECT, SYNCED};

/// Of every entry here: its data is a sector.
const ENTRY: u64 = entry_bytes(512);

/// Two writes to the first sector, a batch, and the begin of another: seqs 1 to 6, of which the last is left out with less.
pub fn history(pieces: u32) -> Vec<OrderRecord> {
    let mut records = vec![record(1), record(2)];
    let data = record(1).payload_crc;
    for (op, offset, length, crc) in [
        (Op::BatchBegin, 0, 0, 0),
        (Op::BatchEnd, 3, 512, pieces),
        (Op::Write, 0, 512, data),
        (Op::BatchBegin, 0, 0, 0),
    ] {
        let last = *records.last().expect("two");
        let next = OrderRecord { seq: last.seq.next(), op, offset, length, payload_crc: crc, ..last };
        records.push(next.chained(last.chain));
    }
    records
}

pub fn journal_of(records: &[OrderRecord]) -> Memory {
    let mut file = journal();
    (0..).zip(records).for_each(|(slot, record)| file.put_record(record, 1, slot));
    file
}

pub fn payload(seq: u64) -> Entry {
    (Kind::Payload, 0, record(seq))
}

/// A sector at `offset` of the volume, as a piece of a batch.
pub fn piece(batch: u64, index: u64, offset: u64) -> Entry {
    (Kind::Chunk, index, OrderRecord { seq: Seq(batch), offset, ..record(1) })
}

/// A start with its checkpoint at seq 1 and, where `applied` is one, a batch that was being applied.
fn start(records: &[OrderRecord], spooled: &[Entry], applied: u64) -> Recovered {
    recovered(&journal_of(records), spooled, |it| {
        (it.seq, it.chain, it.batch) = (Seq(1), record(1).chain, Seq(applied));
    })
}

#[test]
fn a_payload_is_kept_once_and_only_if_it_is_of_this_history() {
    let stranger = OrderRecord { time_ns: 99, ..record(2) };
    for (entries, kept, more, named) in [
        (vec![payload(2)], true, 0, false),
        (vec![payload(2), payload(2)], true, 0, false),
        // Of one beyond the last order here others may know the order.
        (vec![payload(1), payload(2), payload(9)], true, ENTRY, false),
        (vec![(Kind::Payload, 0, stranger)], false, 0, true),
        (vec![(Kind::Payload, 0, stranger), payload(2)], true, 0, true),
    ] {
        let found = start(&history(1)[..2], &entries, 0);
        assert_eq!(found.history.is_missing(Seq(2)), !kept, "{entries:?}");
        assert_eq!(found.spool.live_bytes(), more + if kept { ENTRY } else { 0 }, "{entries:?}");
        assert_eq!(found.news.iter().any(|(_, text)| text.contains("another history")), named, "{:?}", found.news);
    }
}

/// What a promise is missed for is said with it (I8).
#[test]
fn an_entry_that_is_left_out_of_what_was_promised_is_named_in_the_doubt() {
    let stranger = OrderRecord { time_ns: 99, ..record(2) };
    let found = recovered(&journal_of(&history(1)[..2]), &[(Kind::Payload, 0, stranger)], |it| {
        (it.seq, it.chain, it.promised_cut) = (Seq(1), record(1).chain, Seq(2));
    });
    let text = found.doubt.expect("less than promised").text;
    assert!(text.contains("the payload of seq 2 in the spool belongs to another history"), "{text}");
}

#[test]
fn of_a_batch_that_comes_in_each_piece_is_kept_once_and_of_others_none() {
    let entries = [piece(3, 0, 0), piece(3, 1, 4096), piece(3, 0, 0), piece(2, 0, 0)];
    let found = start(&history(1)[..3], &entries, 0);
    let batch = found.batch.expect("it is open");
    assert_eq!((batch.begin, batch.bytes), (Seq(3), 1024));
    assert_eq!(batch.chunks.keys().copied().collect::<Vec<_>>(), [0, 1]);
    assert_eq!((found.committed.is_none(), found.spool.live_bytes()), (true, 2 * ENTRY));
    // Of a first sync nothing is staged: pieces went to the volumes, and which is not known any more.
    let first = recovered(&journal_of(&history(1)[..3]), &entries, |it| {
        (it.seq, it.chain) = (Seq(1), record(1).chain);
        it.set(SYNCED, false);
    });
    let batch = first.batch.expect("it is open");
    assert_eq!((batch.begin, batch.chunks.len(), batch.bytes, first.spool.live_bytes()), (Seq(3), 0, 0, 0));
}

/// A batch that was being applied has half overwritten the volumes: it is applied again if all of it is here, and if it is
/// not, nothing there is a state that ever was (I5).
#[test]
fn a_batch_that_was_being_applied_goes_on_only_with_all_that_it_stands_on() {
    let cover = piece(3, 0, 0);
    let beside = piece(3, 0, 4096);
    for (entries, pieces, whole) in [
        (vec![cover], 1, true),
        (vec![beside], 1, false),
        (vec![payload(2), beside], 1, true),
        (vec![payload(2)], 1, false),
        (vec![payload(2), cover, piece(3, 1, 8192)], 1, false),
        (vec![payload(2), cover], 2, false),
        (vec![payload(2), cover, piece(3, 1, 8192)], 2, true),
    ] {
        let found = start(&history(pieces)[..4], &entries, 3);
        assert_eq!(found.committed.is_some(), whole, "{entries:?}, {pieces} pieces");
        assert_eq!(found.damage.is_none(), whole);
        let it = &found.superblock;
        assert_eq!((it.has(SYNCED), it.has(DIRECT), it.batch), (whole, !whole, Seq(if whole { 3 } else { 0 })));
        if let Some(committed) = found.committed {
            assert_eq!((committed.base, committed.begin, committed.end), (Seq(1), Seq(3), Seq(4)));
            assert_eq!(committed.chunks.len() as u32, pieces);
            assert!(found.batch.is_none());
        }
    }
    let torn = start(&history(1)[..3], &[payload(2), cover], 3);
    assert!(torn.committed.is_none() && torn.damage.is_some(), "its end is not in the journal");
}

#[test]
fn the_batch_that_is_applied_and_the_one_that_comes_in_after_it_keep_their_own_pieces() {
    let found = start(&history(1), &[payload(2), piece(3, 0, 0), piece(6, 0, 4096), piece(6, 7, 8192)], 3);
    let (committed, batch) = (found.committed.expect("all of it is here"), found.batch.expect("it is open"));
    assert_eq!((committed.begin, committed.chunks.len()), (Seq(3), 1));
    assert_eq!((batch.begin, batch.chunks.keys().copied().collect::<Vec<_>>()), (Seq(6), vec![0, 7]));
    assert_eq!(found.spool.live_bytes(), 4 * ENTRY);
}
