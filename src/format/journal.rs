//! DR's journal: one file of K segments of 1 MiB, segment `number` at `(number % K)` MiB.
//!
//! Block 0 of a segment is its header, order records follow from block 1. A record slot that is all
//! zeroes means "go on at the next block"; a block that starts with one ends the segment. Records left
//! over from the segment that stood here before are told apart by their chain: whoever scans accepts a
//! record only if it continues the history (or is allowed to jump).
//!
//! Header (the fields and the checksum in the first sector, the rest of the block reserved):
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `FSHJOURN` |
//! | 8 | 2 | version |
//! | 10 | 6 | reserved |
//! | 16 | 8 | group |
//! | 24 | 8 | number of the segment, grows for ever |
//! | 32 | 8 | first seq |
//! | 40 | 8 | previous seq: the last one of the segment before |
//! | 48 | 8 | previous chain: at that seq |
//! | 56 | 452 | reserved |
//! | 508 | 4 | CRC-32 over bytes 0..508 |

use super::layout::{Block, Shape, put_u64, u64_at};
use super::record::OrderRecord;
use super::{FormatError, is_zero};
use crate::core::ids::{Chain, GroupId, Seq};
use crate::core::planted::segment_bytes;
use crate::limits::{BLOCK_BYTES, RECORD_BYTES, SEGMENT_BYTES};

/// Records that fit a segment.
pub const SEGMENT_RECORDS: usize = (SEGMENT_BYTES as usize - BLOCK_BYTES) / RECORD_BYTES;

const SHAPE: Shape = Shape::sector("journal segment", b"FSHJOURN", 56);

/// First block of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub group: GroupId,
    pub number: u64,
    /// The first record written to it.
    pub first_seq: Seq,
    /// The record before that one, in the history, and its chain.
    pub previous_seq: Seq,
    pub previous_chain: Chain,
}

impl SegmentHeader {
    /// The 4096 bytes.
    #[must_use]
    pub fn encode(&self) -> Block {
        let mut out = SHAPE.start();
        put_u64(&mut out, 16, self.group.0);
        put_u64(&mut out, 24, self.number);
        put_u64(&mut out, 32, self.first_seq.0);
        put_u64(&mut out, 40, self.previous_seq.0);
        put_u64(&mut out, 48, self.previous_chain.0);
        SHAPE.seal(out)
    }

    /// Reads one block. The caller checks group and number: an older segment may stand here.
    pub fn decode(bytes: &[u8]) -> Result<SegmentHeader, FormatError> {
        let block = SHAPE.open(bytes)?;
        Ok(SegmentHeader {
            group: GroupId(u64_at(block, 16)),
            number: u64_at(block, 24),
            first_seq: Seq(u64_at(block, 32)),
            previous_seq: Seq(u64_at(block, 40)),
            previous_chain: Chain(u64_at(block, 48)),
        })
    }
}

/// Offset in the file of a segment, in a journal of `segments` segments.
#[must_use]
pub fn segment_offset(number: u64, segments: u64) -> u64 {
    (number % segments) * segment_bytes()
}

/// The record slots of one segment in the order they were written.
///
/// Yields the offset within the segment and the record, or why it cannot be read. An error does not end
/// the iteration: the caller decides whether it is the torn end of the log or damage in its middle.
#[derive(Clone, Debug)]
pub struct SegmentRecords<'a> {
    segment: &'a [u8],
    at: usize,
}

impl<'a> SegmentRecords<'a> {
    /// `segment` starts with the header block and may be cut short after any block.
    #[must_use]
    pub fn new(segment: &'a [u8]) -> SegmentRecords<'a> {
        SegmentRecords { segment, at: BLOCK_BYTES }
    }
}

impl Iterator for SegmentRecords<'_> {
    type Item = (usize, Result<OrderRecord, FormatError>);

    fn next(&mut self) -> Option<Self::Item> {
        let mut slot = self.segment.get(self.at..self.at + RECORD_BYTES)?;
        if is_zero(slot) && !self.at.is_multiple_of(BLOCK_BYTES) {
            self.at = self.at.next_multiple_of(BLOCK_BYTES);
            slot = self.segment.get(self.at..self.at + RECORD_BYTES)?;
        }
        if is_zero(slot) {
            return None;
        }
        let at = self.at;
        self.at += RECORD_BYTES;
        Some((at, OrderRecord::decode(slot)))
    }
}
