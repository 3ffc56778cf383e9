//! A piece of a batch of which DR has parts: those cross as digests, the others as data.
//!
//! ```text
//!   primary ──patch: all digests──► DR reads its volume ──all equal──► a chunk like any other
//!      ▲                                   │
//!      └──────── wanted: what differs ─────┘  ──patch: that as data, the rest as digests──► …
//! ```
//!
//! A piece that was put together is what the primary has read, whatever DR's volume was when it was looked at: its bytes
//! have the digests. So nobody has to know as of which seq the volume was.

use bytes::{Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_128;

use super::super::FormatError;
use super::decode::Reader;
use crate::core::planted::{Bug, planted};
use crate::format::record::OrderRecord;
use crate::limits::{BLOCK_BYTES, CHUNK_BYTES_MAX, PATCH_PARTS_MAX};

/// A piece of a batch, in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// As that of a chunk.
    pub index: u64,
    /// A write, as that of a chunk; the payload checksum is over the whole piece.
    pub record: OrderRecord,
    /// Bytes of each part but the last, which may have less.
    pub grain: u64,
    /// The parts that come as data, the first in the lowest bit.
    pub carried: u64,
    /// XXH3 (128 bits) of each other part, in order.
    pub digests: Vec<u128>,
    /// The parts that are carried, one behind the other.
    pub data: Bytes,
}

/// Bytes of a part of a piece of `length` bytes: whole blocks, and few enough parts for a bit each.
fn grain_of(length: u64) -> u64 {
    let parts = PATCH_PARTS_MAX as u64;
    length.div_ceil(parts).next_power_of_two().max(BLOCK_BYTES as u64)
}

/// All of so many parts.
fn all(parts: u64) -> u64 {
    u64::MAX >> (PATCH_PARTS_MAX as u64 - parts.min(PATCH_PARTS_MAX as u64))
}

impl Patch {
    /// Every part of a piece of `length` bytes.
    #[must_use]
    pub fn parts_of(length: u64) -> u64 {
        all(length.div_ceil(grain_of(length)))
    }

    /// The piece that `record` is about and `bytes` are, with the parts `carried` as data.
    ///
    /// # Panics
    /// If there are no bytes, or more than a piece may have.
    #[must_use]
    pub fn new(index: u64, record: OrderRecord, bytes: &Bytes, carried: u64) -> Patch {
        assert!(!bytes.is_empty() && bytes.len() <= CHUNK_BYTES_MAX as usize, "a piece of a batch");
        let grain = grain_of(bytes.len() as u64);
        let (mut digests, mut data) = (Vec::new(), BytesMut::new());
        for (part, bytes) in bytes.chunks(to_usize(grain)).enumerate() {
            if carried & (1 << part) != 0 {
                data.extend_from_slice(bytes);
            } else {
                digests.push(xxh3_128(bytes));
            }
        }
        let carried = carried & Patch::parts_of(bytes.len() as u64);
        Patch { index, record, grain, carried, digests, data: data.freeze() }
    }

    /// Bytes of the piece.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.record.length
    }

    /// Every part of it.
    #[must_use]
    pub fn parts(&self) -> u64 {
        all(self.length().div_ceil(self.grain))
    }

    /// Bytes that do not cross.
    #[must_use]
    pub fn spared(&self) -> u64 {
        self.length() - self.data.len() as u64
    }

    /// The piece, made of what is carried and of what is `here` in its place; or the parts that are not here.
    ///
    /// `here` has the length of the piece.
    pub fn put_together(&self, here: &Bytes) -> Result<Bytes, u64> {
        assert_eq!(here.len() as u64, self.length(), "the range of the piece");
        let grain = to_usize(self.grain);
        let (mut digests, mut missing) = (self.digests.iter(), 0);
        for (part, bytes) in here.chunks(grain).enumerate().filter(|(part, _)| self.carried & (1 << part) == 0) {
            let same = digests.next().is_some_and(|digest| xxh3_128(bytes) == *digest);
            missing |= u64::from(!same && !planted(Bug::PatchUnchecked)) << part;
        }
        if missing != 0 {
            return Err(missing);
        }
        let whole = if self.carried == 0 { here.clone() } else { self.over(here) };
        // Each part is what it is to be, so that the whole is, too: this is a second opinion.
        let sound = crc32fast::hash(&whole) == self.record.payload_crc || planted(Bug::PatchUnchecked);
        if sound { Ok(whole) } else { Err(self.parts()) }
    }

    /// What is carried, over a copy of what is here.
    fn over(&self, here: &Bytes) -> Bytes {
        let (mut whole, mut data) = (BytesMut::from(&here[..]), &self.data[..]);
        for (_, part) in
            whole.chunks_mut(to_usize(self.grain)).enumerate().filter(|(part, _)| self.carried & (1 << part) != 0)
        {
            let (front, rest) = data.split_at(part.len());
            part.copy_from_slice(front);
            data = rest;
        }
        whole.freeze()
    }

    /// Reads the body; `data` has come behind it.
    ///
    /// Errors: parts, digests and data that do not make up the piece, and data that is not what was sent.
    pub(super) fn of_body(body: &mut Reader<'_>, data: Bytes) -> Result<Patch, FormatError> {
        let (index, record) = (body.u64()?, body.record()?);
        let (grain, carried) = (body.u64()?, body.u64()?);
        let (crc, reserved) = (body.u32()?, body.u32()?);
        let count = body.count(16)?;
        let digests = (0..count).map(|_| body.u128()).collect::<Result<Vec<_>, _>>()?;
        if record.payload_bytes() == 0 || record.length > u64::from(CHUNK_BYTES_MAX) || reserved != 0 {
            return Err(body.wrong(format!("{} of {} bytes is no piece in parts", record.op.word(), record.length)));
        }
        let parts = if grain == 0 { u64::MAX } else { record.length.div_ceil(grain) };
        if parts > PATCH_PARTS_MAX as u64 || carried & !all(parts) != 0 {
            return Err(
                body.wrong(format!("parts of {grain} bytes, {carried:#x} of them carried, of {}", record.length))
            );
        }
        let last = record.length - (parts - 1) * grain;
        let of_last = if carried & (1 << (parts - 1)) == 0 { 0 } else { grain - last };
        let carried_bytes = u64::from(carried.count_ones()) * grain - of_last;
        if count as u64 + u64::from(carried.count_ones()) != parts || data.len() as u64 != carried_bytes {
            let text = format!("{count} digests and {} bytes do not make up {} bytes", data.len(), record.length);
            return Err(body.wrong(text));
        }
        if crc32fast::hash(&data) != crc {
            return Err(FormatError::Checksum { what: "patch data" });
        }
        Ok(Patch { index, record, grain, carried, digests, data })
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("inside a piece in memory")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::op::Op;

    fn record(bytes: &[u8]) -> OrderRecord {
        let (length, payload_crc) = (bytes.len() as u64, crc32fast::hash(bytes));
        OrderRecord { length, payload_crc, ..OrderRecord::sample(7, Op::Write) }
    }

    #[test]
    fn parts_are_whole_blocks_and_a_word_has_a_bit_for_each() {
        for (length, grain, parts) in [
            (1, 4096, 1),
            (4096, 4096, 1),
            (4097, 4096, 3),
            (64 * 4096, 4096, u64::MAX),
            (64 * 4096 + 1, 8192, (1 << 33) - 1),
            (1 << 20, 16384, u64::MAX),
        ] {
            assert_eq!((grain_of(length), Patch::parts_of(length)), (grain, parts), "{length}");
        }
    }

    proptest! {
        /// Whatever DR has in the place of a piece: it asks for exactly what differs, and has the piece then.
        #[test]
        fn a_piece_is_put_together_of_what_is_there_and_what_is_carried(
            length in 1..300_000usize,
            differs in prop::collection::vec(0..300_000usize, 0..6),
            carried in any::<u64>(),
        ) {
            let there: Bytes = (0..length).map(|at| (at / 7) as u8).collect::<Vec<_>>().into();
            let mut here = there.to_vec();
            let grain = to_usize(grain_of(length as u64));
            let mut different = 0;
            for at in differs.into_iter().filter(|at| *at < length) {
                here[at] = !there[at];
                different |= 1 << (at / grain);
            }
            let here = Bytes::from(here);
            let first = Patch::new(3, record(&there), &there, carried);
            let missing = different & !carried;
            match first.put_together(&here) {
                Ok(whole) => prop_assert!(missing == 0 && whole == there),
                Err(parts) => {
                    prop_assert_eq!(parts, missing);
                    let second = Patch::new(3, record(&there), &there, carried | parts);
                    prop_assert_eq!(second.put_together(&here), Ok(there));
                }
            }
            prop_assert_eq!(first.spared() + first.data.len() as u64, length as u64);
        }
    }

    #[test]
    fn a_whole_that_is_not_what_its_record_says_is_asked_for_as_data() {
        let bytes = Bytes::from(vec![5; 8192]);
        let patch = Patch::new(0, OrderRecord { payload_crc: 1, ..record(&bytes) }, &bytes, 0);
        assert_eq!(patch.put_together(&bytes), Err(3));
    }
}
