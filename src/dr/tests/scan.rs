//! The scan of a journal alone, over bytes in memory: what one start keeps, the next one finds.

use bytes::Bytes;

use crate::core::ids::{Chain, Epoch, GroupId, Seq, Volume};
use crate::core::machine::{IoFail, ReadAt};
use crate::core::op::Op;
use crate::dr::history::History;
use crate::dr::scan::{FoundJournal, News, scan_journal};
use crate::format::journal::{SegmentHeader, segment_offset};
use crate::format::record::OrderRecord;
use crate::limits::{BLOCK_BYTES, RECORD_BYTES, SEGMENT_BYTES};

const GROUP: GroupId = GroupId(5);
const SEGMENTS: u64 = 2;

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
fn journal() -> Memory {
    let mut file = Memory(vec![0; (SEGMENTS * SEGMENT_BYTES) as usize]);
    let header =
        SegmentHeader { group: GROUP, number: 1, first_seq: Seq(1), previous_seq: Seq(0), previous_chain: Chain(0) };
    let at = segment_offset(1, SEGMENTS) as usize;
    file.0[at..at + BLOCK_BYTES].copy_from_slice(&header.encode());
    file
}

impl Memory {
    /// Puts the records 1 to `seq` in a chain, of which only those in `places` (seq, block, slot) reach the disk.
    fn put(&mut self, places: &[(u64, usize, usize)]) {
        let mut chain = Chain(0);
        for seq in 1..=places.iter().map(|place| place.0).max().expect("something is put") {
            let record = OrderRecord {
                seq: Seq(seq),
                epoch: Epoch(1),
                volume: Volume(0),
                op: Op::Write,
                flags: 0,
                offset: 0,
                length: 512,
                time_ns: 1,
                chain,
                payload_crc: 0,
            }
            .chained(chain);
            chain = record.chain;
            for &(_, block, slot) in places.iter().filter(|place| place.0 == seq) {
                let at = segment_offset(1, SEGMENTS) as usize + block * BLOCK_BYTES + slot * RECORD_BYTES;
                self.0[at..at + RECORD_BYTES].copy_from_slice(&record.encode());
            }
        }
    }

    fn scan(&self) -> (Vec<u64>, FoundJournal) {
        let mut history = History::after(Seq(0), Chain(0));
        let found =
            scan_journal(self, GROUP, SEGMENTS, 1, &mut history, &mut News::new()).expect("memory does not fail");
        (history.above(Seq(0)).map(|entry| entry.record.seq.0).collect(), found)
    }

    /// What a start finds, and what the next one does after its repairs.
    fn started_twice(mut self) -> (Vec<u64>, Vec<u64>) {
        let (first, found) = self.scan();
        for &(offset, length) in &found.start.repairs {
            self.0[offset as usize..(offset + length) as usize].fill(0);
        }
        (first, self.scan().0)
    }
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
