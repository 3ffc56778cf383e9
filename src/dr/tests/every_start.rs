//! The table in the doc of [`crate::dr::recovery`] over all its inputs: superblock, the batch that it names, what is found. What has
//! to come out is said a second time, by what the case is made of and not by what recovery reads.
//!
//! The history of every case, of which the journal has the first so many, and one of those may be damaged:
//!
//! | seq | | payload or pieces |
//! |---|---|---|
//! | 1 | a write of the first sector | the checkpoint |
//! | 2 | another write of it | in the spool, or not |
//! | 3, 4 | begin and end of a batch | a piece that brings the first sector, one elsewhere, both or none; the end counts 0 to 2 |
//! | 5 | a third write of it | in the spool, or not |
//! | 6 | the begin of another batch | |

use super::run::options;
use super::scan::{Memory, SEGMENTS, recovered};
use super::staged::{history, journal_of, payload, piece};
use crate::core::ids::Seq;
use crate::dr::api::Options;
use crate::dr::recovery::{Found, Recovered, recover};
use crate::format::journal::segment_offset;
use crate::format::spool::Kind;
use crate::format::superblock::{DIRECT, Role, SUPERBLOCK_BYTES, SYNCED, Superblock};
use crate::limits::{BLOCK_BYTES, RECORD_BYTES, SEGMENT_BYTES};

#[derive(Clone, Copy, Debug)]
struct Case {
    synced: bool,
    /// The superblock names batch 3: it was being applied.
    named: bool,
    /// Records of the journal, from seq 1 on.
    records: u64,
    /// Which of them is damaged.
    damaged: Option<u64>,
    /// Pieces that the end of the batch counts.
    counted: u32,
    /// In the spool: the payload of seq 2, the piece that brings what it writes, the other one, the payload of seq 5.
    second: bool,
    cover: bool,
    beside: bool,
    fifth: bool,
}

/// What a start has to come to.
#[derive(Debug, PartialEq, Eq)]
struct Expected {
    /// The volumes have a recovery point.
    point: bool,
    /// A batch is applied again.
    applied: bool,
    /// Everything up to here is whole, from the recovery point on.
    reached: u64,
    /// The batch that comes in.
    open: Option<u64>,
    /// The volumes are half overwritten: it takes a full copy in place.
    half: bool,
    /// An operator is told that something is lost.
    told: bool,
}

impl Case {
    fn every() -> impl Iterator<Item = Case> {
        let bit = |bits: u32, at: u32| bits >> at & 1 == 1;
        let whole = (1..=6).flat_map(|records| (0..3).map(move |counted| (records, None, counted)));
        let damaged = (2..=6).flat_map(|records| (2..=records).map(move |at| (records, Some(at), 1)));
        whole.chain(damaged).flat_map(move |(records, damaged, counted)| {
            (0..64).map(move |bits| Case {
                synced: bit(bits, 0),
                named: bit(bits, 1),
                records,
                damaged,
                counted,
                second: bit(bits, 2),
                cover: bit(bits, 3),
                beside: bit(bits, 4),
                fifth: bit(bits, 5),
            })
        })
    }

    fn start(self) -> Recovered {
        let mut journal = journal_of(&history(self.counted)[..self.records as usize]);
        if let Some(seq) = self.damaged {
            let at = segment_offset(1, SEGMENTS) as usize + BLOCK_BYTES + (seq as usize - 1) * RECORD_BYTES;
            journal.0[at + 20] ^= 1;
        }
        let fifth = (Kind::Payload, 0, history(self.counted)[4]);
        let entries = [(self.second, payload(2)), (self.cover, piece(3, 0, 0))];
        let entries = entries.into_iter().chain([(self.beside, piece(3, 1, 4096)), (self.fifth, fifth)]);
        let entries: Vec<_> = entries.filter(|entry| entry.0).map(|entry| entry.1).collect();
        recovered(&journal, &entries, |it| {
            (it.seq, it.chain) = (Seq(1), history(1)[0].chain);
            it.batch = Seq(if self.named { 3 } else { 0 });
            it.set(SYNCED, self.synced);
        })
    }

    /// Whether an order is known: from the journal, or, where it is damaged there and others follow, from its payload.
    fn knows(self, seq: u64) -> bool {
        let from_payload = seq == 2 && self.second || seq == 5 && self.fifth;
        seq <= self.records && (self.damaged != Some(seq) || from_payload && seq < self.records)
    }

    /// All of batch 3 is here, and of what came before it all that it does not bring.
    fn whole_batch(self) -> bool {
        let pieces = u32::from(self.cover) + u32::from(self.beside);
        self.knows(3) && self.knows(4) && pieces == self.counted && (self.second || self.cover || !self.knows(2))
    }

    fn expected(self) -> Expected {
        let applied = self.named && self.whole_batch() && self.knows(2);
        let waits = self.named && self.whole_batch() && !self.knows(2);
        let point = self.synced && (!self.named || applied || waits);
        let from = if applied { 4 } else { 1 };
        let reached = match from {
            1 if self.knows(2) && self.second => 2,
            4 if self.knows(5) && self.fifth => 5,
            from => from,
        };
        let last = [6, 3].into_iter().find(|&begin| begin > from && self.knows(begin));
        let first = !applied && self.synced && point && self.whole_batch();
        let open = if first { Some(3) } else { last };
        let half = self.named && !applied && !waits;
        Expected { point, applied, reached, open, half, told: half || self.damaged.is_some() }
    }
}

#[test]
fn every_start_of_a_directory_that_was_used_comes_to_what_the_table_says() {
    let (mut cases, mut wrong) = (0, Vec::new());
    for case in Case::every() {
        let found = case.start();
        let after = found.committed.as_ref().map_or(found.superblock.seq, |it| it.end);
        let got = Expected {
            point: found.superblock.has(SYNCED),
            applied: found.committed.is_some(),
            reached: found.history.unbroken_from(after, found.history.tail()).0,
            open: found.batch.as_ref().map(|batch| batch.begin.0),
            half: found.superblock.has(DIRECT),
            told: found.damage.is_some(),
        };
        if got != case.expected() {
            wrong.push(format!("{case:?}:\n  {got:?}, expected {:?}", case.expected()));
        }
        assert_eq!(found.superblock.batch, Seq(if got.applied { 3 } else { 0 }), "{case:?}");
        assert!(!found.fresh, "{case:?}");
        cases += 1;
    }
    let first = wrong.iter().take(20).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} of {cases} cases:\n{first}", wrong.len());
    assert_eq!(cases, (6 * 3 + 15) * 64);
}

/// Without a superblock: nothing was promised, or it is lost.
#[test]
fn every_start_without_a_superblock_begins_anew_only_where_the_journal_is_empty() {
    let options = Options { journal_bytes: SEGMENTS * SEGMENT_BYTES, ..options(false) };
    let block = Superblock::new(Role::Dr).encode();
    for torn in [false, true] {
        for (records, header) in (0..=6).flat_map(|records| [(records, false), (records, true)]) {
            let mut slots = vec![0; SUPERBLOCK_BYTES];
            if torn {
                slots[BLOCK_BYTES..BLOCK_BYTES + 512].copy_from_slice(&block[..512]);
            }
            let mut journal = journal_of(&history(1)[..records]);
            if !header {
                let at = segment_offset(1, SEGMENTS) as usize;
                journal.0[at..at + BLOCK_BYTES].fill(0);
            }
            let spool = Memory(vec![0; options.spool_bytes as usize]);
            let found = Found { superblock: &slots, journal: &journal, spool: &spool, blank: true, report: None };
            let fresh = recover(found, &options).map(|found| {
                assert!(found.fresh && !found.superblock.has(SYNCED) && found.history.is_empty());
            });
            // Whatever stands in a segment, its header says that it is in use.
            assert_eq!(fresh.is_ok(), !header, "torn {torn}, {records} records, header {header}: {fresh:?}");
        }
    }
}
