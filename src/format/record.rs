//! The order record: the 64 bytes that describe one write, the same in every log; the link packs it
//! (`wire/orders.rs`).
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | seq |
//! | 8 | 4 | epoch |
//! | 12 | 2 | volume; of the end of a batch the high bits of how many pieces it has |
//! | 14 | 1 | op |
//! | 15 | 1 | flags |
//! | 16 | 8 | offset, bytes |
//! | 24 | 8 | length, bytes |
//! | 32 | 8 | time of intake, ns since the Unix epoch |
//! | 40 | 8 | chain: digest over the previous record's chain and this record |
//! | 48 | 4 | payload checksum (CRC-32), 0 without payload; of the end of a batch the low bits of how many pieces it has |
//! | 52 | 8 | reserved, zero |
//! | 60 | 4 | CRC-32 over bytes 0..60 |

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::FormatError;
use crate::core::ids::{Chain, Epoch, Extent, Seq, Volume};
use crate::core::op::Op;
use crate::core::planted::{Bug, planted};
use crate::limits::RECORD_BYTES;

/// The write was FUA: durable on the local disk before its reply.
pub const FLAG_FUA: u8 = 1;
/// WRITE_ZEROES with NO_HOLE: the range stays allocated.
pub const FLAG_NO_HOLE: u8 = 2;
/// Flags a record may have.
pub(super) const FLAGS_KNOWN: u8 = FLAG_FUA | FLAG_NO_HOLE;

const WHAT: &str = "order record";

/// One order record, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrderRecord {
    pub seq: Seq,
    pub epoch: Epoch,
    pub volume: Volume,
    pub op: Op,
    pub flags: u8,
    /// Bytes from the start of the volume (see [`Op`] for records that are not writes).
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    pub time_ns: u64,
    pub chain: Chain,
    pub payload_crc: u32,
}

impl OrderRecord {
    /// This record with its chain computed from the chain of the record before it.
    #[must_use]
    pub fn chained(mut self, previous: Chain) -> OrderRecord {
        self.chain = self.chain_after(previous);
        self
    }

    /// The chain this record has to carry if `previous` is the chain of the record before it.
    #[must_use]
    #[inline]
    pub fn chain_after(&self, previous: Chain) -> Chain {
        let mut bytes = self.body();
        bytes[40..48].fill(0);
        Chain(xxh3_64_with_seed(&bytes[..52], previous.0))
    }

    /// The range it changes, if it changes one: of a resize what was added.
    #[must_use]
    pub fn extent(&self) -> Option<Extent> {
        let length = match self.op {
            Op::Resize => self.length.saturating_sub(self.offset),
            _ => self.length,
        };
        (self.op.concerns_volume() && length > 0).then_some(Extent { volume: self.volume, offset: self.offset, length })
    }

    /// Whether the volume is another one afterwards. A resize that only says what is so changes nothing.
    #[must_use]
    pub fn changes_volume(&self) -> bool {
        self.op.concerns_volume() && (self.op != Op::Resize || self.length > self.offset)
    }

    /// Bytes that the volume has from this record on, if it says so.
    #[must_use]
    pub fn new_size(&self) -> Option<u64> {
        (self.op == Op::Resize).then_some(self.length)
    }

    /// Whether it is a start of a writer that relies on no order from before: it is the first of all, or it has lost its power.
    #[must_use]
    pub fn starts_anew(&self) -> bool {
        self.op == Op::EpochStart && self.offset == 0
    }

    /// Of the end of a batch: how many pieces that has. The high bits stand where other records name a volume.
    #[must_use]
    pub fn pieces(&self) -> u64 {
        u64::from(self.volume.0) << 32 | u64::from(self.payload_crc)
    }

    /// A number of pieces as the fields of the record that ends a batch.
    ///
    /// # Panics
    ///
    /// With 2^48 or more: of 1 MiB each they would be more bytes than can be counted, and shorter ones are ends of ranges,
    /// each of which is in memory.
    #[must_use]
    pub fn pieces_as(count: u64) -> (Volume, u32) {
        let high = u16::try_from(count >> 32).expect("a batch has fewer than 2^48 pieces");
        (Volume(high), u32::try_from(count & u64::from(u32::MAX)).expect("the low half"))
    }

    /// First byte behind what it needs of its volume, if it is about one; `None` in it: there is no such byte.
    #[must_use]
    pub fn end(&self) -> Option<Option<u64>> {
        let end = match self.op {
            Op::Resize => Some(self.length),
            _ => self.offset.checked_add(self.length),
        };
        self.op.concerns_volume().then_some(end)
    }

    /// Bytes of payload that follow it through the FIFO.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        if self.op.has_payload() { self.length } else { 0 }
    }

    /// The 64 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut out = self.body();
        let crc = crc32fast::hash(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads 64 bytes. Errors: length, checksum, unknown op or flag, reserved bytes not zero.
    pub fn decode(bytes: &[u8]) -> Result<OrderRecord, FormatError> {
        let bytes: &[u8; RECORD_BYTES] =
            bytes.try_into().map_err(|_| FormatError::Length { what: WHAT, got: bytes.len(), want: RECORD_BYTES })?;
        if crc32fast::hash(&bytes[..60]) != u32_at(bytes, 60) && !planted(Bug::RecordUnchecked) {
            return Err(FormatError::Checksum { what: WHAT });
        }
        let field = |why: String| FormatError::Field { what: WHAT, why };
        let op = Op::from_u8(bytes[14]).ok_or_else(|| field(format!("unknown operation {}", bytes[14])))?;
        if bytes[15] & !FLAGS_KNOWN != 0 {
            return Err(field(format!("unknown flags {:#04x}", bytes[15])));
        }
        if u64_at(bytes, 52) != 0 {
            return Err(field("reserved bytes are not zero".into()));
        }
        if u64_at(bytes, 0) == 0 {
            return Err(field("seq 0 does not exist".into()));
        }
        Ok(OrderRecord {
            seq: Seq(u64_at(bytes, 0)),
            epoch: Epoch(u32_at(bytes, 8)),
            volume: Volume(u16::from_le_bytes([bytes[12], bytes[13]])),
            op,
            flags: bytes[15],
            offset: u64_at(bytes, 16),
            length: u64_at(bytes, 24),
            time_ns: u64_at(bytes, 32),
            chain: Chain(u64_at(bytes, 40)),
            payload_crc: u32_at(bytes, 48),
        })
    }

    /// What bytes that do not decode still show of an order: the seq they bear, and whether operation and reserved
    /// bytes are those of one. For telling a spoiled record from garbage; nothing else of it is to be trusted.
    #[must_use]
    pub fn remains(bytes: &[u8; RECORD_BYTES]) -> (Seq, bool) {
        let shaped = Op::from_u8(bytes[14]).is_some() && u64_at(bytes, 52) == 0;
        (Seq(u64_at(bytes, 0)), shaped)
    }

    /// The record without its checksum.
    fn body(&self) -> [u8; RECORD_BYTES] {
        let mut out = [0; RECORD_BYTES];
        out[0..8].copy_from_slice(&self.seq.0.to_le_bytes());
        out[8..12].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[12..14].copy_from_slice(&self.volume.0.to_le_bytes());
        out[14] = self.op as u8;
        out[15] = self.flags;
        out[16..24].copy_from_slice(&self.offset.to_le_bytes());
        out[24..32].copy_from_slice(&self.length.to_le_bytes());
        out[32..40].copy_from_slice(&self.time_ns.to_le_bytes());
        out[40..48].copy_from_slice(&self.chain.0.to_le_bytes());
        out[48..52].copy_from_slice(&self.payload_crc.to_le_bytes());
        out
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
#[cfg(test)]
impl OrderRecord {
    /// One of 512 bytes at the beginning of the first volume, for tests that care for no more than its seq and what it does.
    #[must_use]
    pub fn sample(seq: u64, op: Op) -> OrderRecord {
        OrderRecord {
            seq: Seq(seq),
            epoch: Epoch(1),
            volume: Volume(0),
            op,
            flags: 0,
            offset: 0,
            length: 512,
            time_ns: 0,
            chain: Chain(0),
            payload_crc: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_may_have_more_pieces_than_the_low_bits_count() {
        for count in [0, 1, u64::from(u32::MAX), 1 << 32, (1 << 32) + 7, (1 << 48) - 1] {
            let (volume, payload_crc) = OrderRecord::pieces_as(count);
            let end = OrderRecord { volume, payload_crc, ..OrderRecord::sample(1, Op::BatchEnd) };
            assert_eq!(OrderRecord::decode(&end.encode()).expect("a record").pieces(), count);
            assert_eq!((end.extent(), end.end()), (None, None), "it is about no volume");
        }
    }

    /// Spoiled or garbage: a spoiled record was promised, garbage was not.
    #[test]
    fn what_remains_of_a_record_shows_its_seq_and_whether_it_ever_was_one() {
        let whole = OrderRecord::sample(7, Op::Trim).encode();
        assert_eq!(OrderRecord::remains(&whole), (Seq(7), true));
        for (at, value, shaped) in
            [(20, 0xff, true), (63, 0xff, true), (14, 0, false), (14, 99, false), (52, 1, false), (59, 1, false)]
        {
            let mut spoiled = whole;
            spoiled[at] = value;
            assert_eq!(OrderRecord::remains(&spoiled), (Seq(7), shaped), "byte {at}");
        }
    }
}
