//! The scan of a journal alone, over bytes in memory: what one start keeps, the next one finds.

use std::ops::RangeInclusive;

use bytes::Bytes;

use super::run::options;
use crate::core::ids::{Chain, Epoch, GroupId, Seq, Volume};
use crate::core::machine::{IoFail, ReadAt};
use crate::core::op::Op;
use crate::dr::api::Options;
use crate::dr::history::History;
use crate::dr::journal::append_blocks_max;
use crate::dr::recovery::{Found, Recovered, recover};
use crate::dr::scan::{FoundJournal, News, ScanError, scan_journal};
use crate::format::journal::{SegmentHeader, segment_offset};
use crate::format::record::OrderRecord;
use crate::format::spool::{ENTRY_HEADER_BYTES, EntryHeader, Kind, sized_nonce};
use crate::format::superblock::{PROMOTING, Role, SETTLED, SUPERBLOCK_BYTES, SYNCED, Superblock, name_digest};
use crate::limits::{BLOCK_BYTES, DR_APPENDS_INFLIGHT_MAX, RECORD_BYTES, SEGMENT_BYTES};

const GROUP: GroupId = GroupId(5);
pub const SEGMENTS: u64 = 2;
/// Of each write, all of them zero.
const DATA_BYTES: usize = 512;

pub struct Memory(pub Vec<u8>);

impl ReadAt for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, IoFail> {
        Ok(Bytes::copy_from_slice(&self.0[offset as usize..offset as usize + length]))
    }
}

/// A journal whose first segment is 1, with nothing in it.
pub fn journal() -> Memory {
    let mut file = Memory(vec![0; (SEGMENTS * SEGMENT_BYTES) as usize]);
    let header =
        SegmentHeader { group: GROUP, number: 1, first_seq: Seq(1), previous_seq: Seq(0), previous_chain: Chain(0) };
    let at = segment_offset(1, SEGMENTS) as usize;
    file.0[at..at + BLOCK_BYTES].copy_from_slice(&header.encode());
    file
}

impl Memory {
    /// Puts the records in `places` (seq, block, slot), of one chain, where they stand.
    pub fn put(&mut self, places: &[(u64, usize, usize)]) {
        for &(seq, block, slot) in places {
            self.put_record(&record(seq), block, slot);
        }
    }

    pub fn put_record(&mut self, record: &OrderRecord, block: usize, slot: usize) {
        let at = segment_offset(1, SEGMENTS) as usize + block * BLOCK_BYTES + slot * RECORD_BYTES;
        self.0[at..at + RECORD_BYTES].copy_from_slice(&record.encode());
    }

    fn scan(&self) -> (Vec<u64>, FoundJournal) {
        self.scan_from(0)
    }

    /// The same, with the checkpoint at `floor`.
    fn scan_from(&self, floor: u64) -> (Vec<u64>, FoundJournal) {
        let chain = if floor == 0 { Chain(0) } else { record(floor).chain };
        let mut history = History::after(Seq(floor), chain);
        let found =
            scan_journal(self, GROUP, SEGMENTS, 1, &mut history, &mut News::new()).expect("memory does not fail");
        (history.above(Seq(floor)).map(|entry| entry.record.seq.0).collect(), found)
    }

    fn mend(&mut self, found: &FoundJournal) {
        for write in &found.start.repairs {
            let mut at = write.offset as usize;
            for part in &write.parts {
                self.0[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
        }
    }

    /// What a start finds, and what the next one does after its repairs.
    fn started_twice(mut self) -> (Vec<u64>, Vec<u64>) {
        let (first, found) = self.scan();
        self.mend(&found);
        (first, self.scan().0)
    }
}

/// The record of this seq, in a chain from seq 1 on.
pub fn record(seq: u64) -> OrderRecord {
    let chain = if seq == 1 { Chain(0) } else { record(seq - 1).chain };
    OrderRecord {
        seq: Seq(seq),
        epoch: Epoch(1),
        volume: Volume(0),
        op: Op::Write,
        flags: 0,
        offset: 0,
        length: DATA_BYTES as u64,
        time_ns: 1,
        chain,
        payload_crc: crc32fast::hash(&[0; DATA_BYTES]),
    }
    .chained(chain)
}

/// Found by fuzzing: zeroing the torn end took away what told a lost write from a torn one.
#[test]
fn what_is_kept_behind_a_lost_write_is_kept_at_the_next_start_too() {
    let mut file = journal();
    file.put(&[(1, 1, 0), (40, 60, 0), (90, 118, 0)]);
    assert_eq!(file.started_twice(), (vec![1, 40, 90], vec![1, 40, 90]));
}

#[test]
fn a_record_out_of_order_far_behind_does_not_make_a_torn_end_a_lost_write() {
    let mut file = journal();
    file.put(&[(5, 1, 0), (40, 20, 0), (3, 200, 0)]);
    assert_eq!(file.started_twice(), (vec![], vec![]));
}

#[test]
fn a_torn_end_is_zeroed_and_the_next_start_finds_a_clean_one() {
    let mut file = journal();
    file.put(&[(1, 1, 0), (2, 1, 1), (40, 20, 0), (90, 60, 0)]);
    assert_eq!(file.started_twice(), (vec![1, 2], vec![1, 2]));
    let mut file = journal();
    file.put(&[(1, 1, 0), (2, 1, 1), (40, 20, 0)]);
    let (_, found) = file.scan();
    assert!(found.damage.is_none() && !found.start.repairs.is_empty());
}

#[test]
fn what_is_torn_in_the_block_of_the_last_record_does_not_hide_what_follows() {
    for floor in 0..=3 {
        let mut file = journal();
        // The last sector of a block that was written again, and the block after it, without the sectors before.
        file.put(&[(1, 1, 0), (2, 1, 1), (3, 1, 2), (40, 1, 56), (41, 1, 57), (48, 2, 0)]);
        let (found, journal) = file.scan_from(floor);
        assert_eq!(found.last().copied().unwrap_or(floor), 3);
        file.mend(&journal);
        let (block, slot) = (journal.start.block as usize, journal.start.partial.len());
        file.put(&[(4, block, slot), (5, block, slot + 1)]);
        let (found, journal) = file.scan_from(floor);
        assert_eq!(found.last(), Some(&5), "checkpoint {floor}");
        assert!(journal.damage.is_none() && journal.start.repairs.is_empty(), "checkpoint {floor}");
    }
}

#[test]
fn an_order_that_a_promotion_appended_again_takes_the_place_of_the_damaged_one() {
    let mut file = journal();
    file.put(&[(1, 1, 0), (2, 1, 1), (3, 1, 2), (4, 1, 3), (5, 1, 4), (3, 1, 5)]);
    let at = segment_offset(1, SEGMENTS) as usize + BLOCK_BYTES + 2 * RECORD_BYTES;
    file.0[at + 20] ^= 1;
    assert_eq!(file.scan().0, [1, 2, 3, 4, 5]);
    file.put(&[(6, 1, 6)]);
    assert_eq!(file.started_twice(), (vec![1, 2, 3, 4, 5, 6], vec![1, 2, 3, 4, 5, 6]));
}

/// Found by seed 2179647: what a promotion had found of the orders before a gap was in flight when it was killed, and was
/// called damage.
#[test]
fn what_a_promotion_was_appending_when_it_was_killed_is_torn_not_damage() {
    let jump = OrderRecord { seq: Seq(100), op: Op::EpochStart, offset: 0, length: 1, payload_crc: 0, ..record(1) };
    // (places of orders before the gap behind it, what a start finds, whether it is damage)
    type Case<'a> = (&'a [(u64, usize, usize)], &'a [u64], bool);
    let cases: [Case; 6] = [
        (&[(3, 1, 3), (4, 1, 4)], &[1, 2, 3, 4, 100], false),
        (&[(4, 1, 8), (5, 1, 9)], &[1, 2, 100], false),
        (&[(3, 1, 3), (6, 2, 0), (7, 2, 1), (8, 3, 0)], &[1, 2, 3, 100], false),
        (&[(3, 1, 3), (9, 30, 0)], &[1, 2, 3, 100], false),
        (&[(4, 1, 3), (5, 1, 4)], &[1, 2, 100], true),
        (&[(3, 1, 3), (9, 120, 0)], &[1, 2, 3, 100], true),
    ];
    for (places, wanted, damaged) in cases {
        let mut file = journal();
        file.put(&[(1, 1, 0), (2, 1, 1)]);
        file.put_record(&jump.chained(Chain(0)), 1, 2);
        file.put(places);
        let (found, journal) = file.scan();
        assert_eq!((&found[..], journal.damage.is_some()), (wanted, damaged), "{places:?}");
        if !damaged {
            file.mend(&journal);
            let (found, again) = file.scan();
            assert_eq!((&found[..], again.damage, again.start.repairs.len()), (wanted, None, 0), "{places:?}");
        }
    }
}

/// What a start that looks for `segments` segments says of a journal, or why it is none.
fn said(file: &Memory, segments: u64, floor: u64) -> Result<Vec<String>, ScanError> {
    let chain = if floor == 0 { Chain(0) } else { record(floor).chain };
    let (mut history, mut news) = (History::after(Seq(floor), chain), News::new());
    scan_journal(file, GROUP, segments, 1, &mut history, &mut news)?;
    Ok(news.into_iter().map(|(_, text)| text).collect())
}

#[test]
fn only_of_what_is_not_whole_a_start_says_anything() {
    let mut file = journal();
    assert_eq!(said(&file, SEGMENTS, 0), Ok(vec![]));
    file.put(&[(1, 1, 0), (2, 1, 1), (3, 1, 2), (4, 1, 3)]);
    for floor in 0..=4 {
        assert_eq!(said(&file, SEGMENTS, floor), Ok(vec![]), "checkpoint {floor}");
    }
    file.0[segment_offset(1, SEGMENTS) as usize + BLOCK_BYTES + 20] ^= 1;
    let [before] = &said(&file, SEGMENTS, 3).expect("readable")[..] else { panic!("it is harmless") };
    assert!(before.contains("in 1 records before the checkpoint"), "{before}");
    let jump = OrderRecord { seq: Seq(100), op: Op::EpochStart, offset: 0, length: 1, payload_crc: 0, ..record(1) };
    let mut file = journal();
    file.put(&[(1, 1, 0), (2, 1, 1)]);
    file.put_record(&jump.chained(Chain(0)), 1, 2);
    for (count, at) in [(1, 8), (2, 9)] {
        file.put(&[(count + 3, 1, at)]);
        let [stray] = &said(&file, SEGMENTS, 0).expect("readable")[..] else { panic!("they are torn") };
        assert!(stray.starts_with(&format!("{count} orders that a promotion was appending")), "{stray}");
    }
}

#[test]
fn a_journal_of_another_length_is_refused_and_that_of_another_group_is_none() {
    let header = |group: GroupId, number: u64| {
        SegmentHeader { group, number, first_seq: Seq(1), previous_seq: Seq(0), previous_chain: Chain(0) }.encode()
    };
    let mut file = journal();
    file.put(&[(1, 1, 0)]);
    let bytes = SEGMENTS * SEGMENT_BYTES;
    assert_eq!(said(&file, SEGMENTS - 1, 0), Err(ScanError::Shrunk { found: bytes, bytes: bytes / 2 }));
    // Segment 2 begins the file where there are two of them, not where there are three.
    let mut longer = Memory(file.0.clone());
    longer.0.resize((bytes + SEGMENT_BYTES) as usize, 0);
    longer.0[..BLOCK_BYTES].copy_from_slice(&header(GROUP, 2));
    let (bytes, number, slot) = (bytes + SEGMENT_BYTES, 2, 0);
    assert_eq!(said(&longer, SEGMENTS + 1, 0), Err(ScanError::Resized { bytes, number, slot }));
    longer.0[..BLOCK_BYTES].copy_from_slice(&header(GroupId(6), 2));
    assert_eq!(said(&longer, SEGMENTS + 1, 0), Ok(vec![]));
}

/// Only its header says that a segment is in use, but a damaged one loses none of the orders behind it.
#[test]
fn the_orders_of_the_newest_segment_are_kept_when_its_header_is_damaged() {
    let mut file = journal();
    file.put(&[(1, 1, 0), (2, 1, 1)]);
    // The first segment is left with room: what counts is what follows.
    let at = segment_offset(2, SEGMENTS) as usize;
    for (seq, slot) in [(3, 0), (4, 1)] {
        let at = at + BLOCK_BYTES + slot * RECORD_BYTES;
        file.0[at..at + RECORD_BYTES].copy_from_slice(&record(seq).encode());
    }
    file.0[at..at + 512].fill(0xA5);
    assert_eq!(file.scan().0, [1, 2, 3, 4]);
    let lines = said(&file, SEGMENTS, 0).expect("readable");
    assert!(lines.iter().any(|text| text.contains("the header of segment 2 ")), "{lines:?}");
    assert_eq!(file.started_twice(), (vec![1, 2, 3, 4], vec![1, 2, 3, 4]));
}

/// Where the next segment will be, the oldest one stands: its orders are older than the checkpoint, too (seed 8007010).
#[test]
fn what_follows_the_checkpoint_goes_behind_it_and_not_over_it() {
    let mut file = journal();
    file.put(&[(1, 1, 0), (2, 1, 1), (3, 1, 2)]);
    let at = segment_offset(2, SEGMENTS) as usize;
    let (first_seq, previous_seq, previous_chain) = (Seq(4), Seq(3), record(3).chain);
    let header = SegmentHeader { group: GROUP, number: 2, first_seq, previous_seq, previous_chain };
    file.0[at..at + BLOCK_BYTES].copy_from_slice(&header.encode());
    for (slot, seq) in [4, 5].into_iter().enumerate() {
        let at = at + BLOCK_BYTES + slot * RECORD_BYTES;
        file.0[at..at + RECORD_BYTES].copy_from_slice(&record(seq).encode());
    }
    let mut history = History::after(Seq(5), record(5).chain);
    let found = scan_journal(&file, GROUP, SEGMENTS, 2, &mut history, &mut News::new()).expect("memory does not fail");
    assert_eq!((found.start.used.last().map(|it| it.0), found.start.block, found.anchored), (Some(2), 2, true));
}

/// A writer that starts goes on behind any gap: whether orders before it were here and are lost, only what is around it tells.
#[test]
fn orders_that_are_lost_before_a_start_of_the_writer_are_named_and_none_where_nothing_is_missing() {
    // (seq that the start names as the last one before it, in which segment it stands, its slot there, the last seq before
    // that segment, whether orders are lost)
    for (named, segment, slot, previous, lost) in [
        (2, 1, 2, 0, false),
        (4, 1, 2, 0, false),
        (2, 1, 8, 0, false),
        (4, 1, 8, 0, true),
        (2, 2, 0, 2, false),
        (4, 2, 0, 2, false),
        (4, 2, 0, 4, true),
    ] {
        let start =
            OrderRecord { seq: Seq(100), op: Op::EpochStart, offset: named, length: 1, payload_crc: 0, ..record(1) };
        let mut file = journal();
        file.put(&[(1, 1, 0), (2, 1, 1)]);
        let at = segment_offset(segment, SEGMENTS) as usize;
        if segment > 1 {
            let previous_chain = record(previous).chain;
            let (first_seq, previous_seq) = (Seq(100), Seq(previous));
            let header = SegmentHeader { group: GROUP, number: segment, first_seq, previous_seq, previous_chain };
            file.0[at..at + BLOCK_BYTES].copy_from_slice(&header.encode());
        }
        let at = at + BLOCK_BYTES + slot * RECORD_BYTES;
        file.0[at..at + RECORD_BYTES].copy_from_slice(&start.chained(Chain(0)).encode());
        let what = format!("{named} {segment} {slot} {previous}");
        let (found, journal) = file.scan();
        assert_eq!(found, [1, 2, 100], "{what}");
        assert_eq!((journal.damage.is_some(), journal.gaps.contains(&Seq(100))), (lost, lost), "{what}");
    }
}

/// A crash may leave nothing of the appends that were in flight but the last block of the last one.
#[test]
fn the_furthest_block_that_can_have_been_in_flight_is_torn_not_damage() {
    let furthest = DR_APPENDS_INFLIGHT_MAX * append_blocks_max();
    let mut file = journal();
    file.put(&[(1, 1, 0), (2, 1, 1), (90, 1 + furthest, 0)]);
    let (found, journal) = file.scan();
    assert_eq!((found, journal.damage), (vec![1, 2], None));
}

/// What a start makes of a directory with its checkpoint at `floor`: the seqs that it knows, and whether it is in doubt.
fn started(journal: &Memory, spooled: RangeInclusive<u64>, floor: u64) -> (Vec<u64>, bool) {
    let spooled: Vec<Entry> = spooled.map(|seq| (Kind::Payload, 0, record(seq))).collect();
    let found = recovered(journal, &spooled, |it| (it.seq, it.chain) = (Seq(floor), record(floor).chain));
    let known = found.history.above(Seq(floor)).map(|entry| entry.record.seq.0);
    (known.collect(), found.doubt.is_some())
}

/// Of the spool: what it is, the index of a piece, and its record.
pub type Entry = (Kind, u64, OrderRecord);

/// What a start makes of a journal, entries of the spool one after the other, and a superblock.
pub fn recovered(journal: &Memory, spooled: &[Entry], says: impl FnOnce(&mut Superblock)) -> Recovered {
    let options = Options { journal_bytes: SEGMENTS * SEGMENT_BYTES, ..options(false) };
    let mut it = Superblock::new(Role::Dr);
    it.group = GROUP;
    it.group_name.clone_from(&options.group_name);
    it.nonce = sized_nonce(options.nonce, options.spool_bytes);
    it.volumes = options.volumes.iter().map(|(name, size)| (name_digest(name), *size)).collect();
    it.set(SYNCED, true);
    says(&mut it);
    let mut slots = vec![0; SUPERBLOCK_BYTES];
    slots[it.offset() as usize..][..BLOCK_BYTES].copy_from_slice(&it.encode());
    let mut spool = Memory(vec![0; options.spool_bytes as usize]);
    let mut pos = 0;
    for &(kind, index, record) in spooled {
        let header = EntryHeader { pos, kind, index, record, skipped: 0 };
        spool.0[pos as usize..][..ENTRY_HEADER_BYTES].copy_from_slice(&header.encode(it.nonce));
        pos += header.entry_bytes();
    }
    let found = Found { superblock: &slots, journal, spool: &spool, blank: false, report: None };
    recover(found, &options).unwrap_or_else(|error| panic!("{error}"))
}

/// Found by seed 531028: the cut went up to an order that only the spool had. A checkpoint there is one that the next start
/// does not find.
#[test]
fn an_order_that_was_torn_before_a_jump_of_the_writer_is_not_known_from_its_payload() {
    // As a writer starts that has lost its power.
    let start = OrderRecord { seq: Seq(100), op: Op::EpochStart, offset: 0, length: 1, payload_crc: 0, ..record(1) };
    let start = start.chained(Chain(0));
    let mut file = journal();
    file.put(&[(1, 1, 0), (2, 1, 1), (3, 1, 2)]);
    file.put_record(&start, 1, 3);
    assert_eq!(started(&file, 2..=5, 1), (vec![2, 3, 100], false));
    assert_eq!(started(&file, 2..=5, 3), (vec![100], false));
    assert_eq!(started(&file, 2..=5, 5), (vec![100], true), "a checkpoint that the journal does not hold");
    let mut damaged = journal();
    damaged.put(&[(1, 1, 0), (2, 1, 1), (3, 1, 2), (4, 1, 3)]);
    damaged.0[segment_offset(1, SEGMENTS) as usize + BLOCK_BYTES + 2 * RECORD_BYTES + 20] ^= 1;
    assert_eq!(started(&damaged, 2..=5, 1), (vec![2, 3, 4], true), "what is damaged is");
}

/// It had passed the begin of a batch that nobody was left to complete, and had applied what follows: a start in its middle
/// finds what was promised, and goes on.
#[test]
fn a_promotion_that_has_passed_a_batch_is_in_no_doubt_after_a_start() {
    let begin = OrderRecord { seq: Seq(3), op: Op::BatchBegin, length: 0, payload_crc: 0, ..record(1) };
    let begin = begin.chained(record(2).chain);
    let after = OrderRecord { seq: Seq(4), ..record(1) }.chained(begin.chain);
    let mut file = journal();
    file.put(&[(1, 1, 0), (2, 1, 1)]);
    file.put_record(&begin, 1, 2);
    file.put_record(&after, 1, 3);
    for (promoting, promised, doubted) in
        [(true, 4, false), (true, 2, false), (true, 5, true), (false, 2, false), (false, 4, true)]
    {
        let here = [(Kind::Payload, 0, record(2)), (Kind::Payload, 0, after)];
        let found = recovered(&file, &here, |it| {
            (it.seq, it.chain) = (Seq(1), record(1).chain);
            it.set(SETTLED, true);
            it.set(PROMOTING, promoting);
            it.target_epoch = Epoch(if promoting { 2 } else { 0 });
            it.promised_cut = Seq(promised);
        });
        assert_eq!(found.doubt.is_some(), doubted, "promoting {promoting}, up to {promised}");
        let passed = promoting && promised > 2;
        let reached = found.history.unbroken_from(Seq(1), Seq(9));
        assert_eq!(reached, Seq(if passed { 4 } else { 2 }), "promoting {promoting}, up to {promised}");
    }
}
