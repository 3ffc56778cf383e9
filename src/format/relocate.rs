//! Moves the entries of a circular log to another file of another size. Bytes only; the caller owns both files,
//! makes the new one durable and puts it into the place of the old one.
//!
//! A log's positions are taken modulo its size, so it cannot be grown where it stands. Entries keep their order and
//! contents, and get positions from the same floor on; nothing of the old file is changed, so a crash on the way
//! leaves what was.

use bytes::Bytes;

use super::FormatError;
use super::spool::{ENTRY_HEADER_BYTES, EntryHeader, decode_entry, encode_entry, place};
use crate::core::machine::{IoFail, ReadAt};

/// One end of a move.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// Bytes of the file.
    pub size: u64,
    pub nonce: u64,
}

/// An entry of the old log: its position, and the bytes it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub pos: u64,
    pub bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error(transparent)]
    Io(#[from] IoFail),
    #[error("the entry at position {pos} of the old log: {source}")]
    Damaged { pos: u64, source: FormatError },
}

/// Writes parts one after another from an offset of the new file.
pub type WriteAt<'a> = dyn FnMut(u64, &[Bytes]) -> Result<(), IoFail> + 'a;

/// The entries between two positions, which the caller has found sound.
pub fn places(file: &dyn ReadAt, log: Log, head: u64, end: u64) -> Result<Vec<Place>, MoveError> {
    let (mut pos, mut found) = (head, Vec::new());
    while pos < end {
        let bytes = file.read_at(pos % log.size, ENTRY_HEADER_BYTES)?;
        match EntryHeader::decode(&bytes, log.nonce) {
            Ok(header) if header.pos == pos => {
                found.push(Place { pos, bytes: header.entry_bytes() });
                pos += header.entry_bytes();
            }
            // The writer went on at the start of the log.
            Ok(_) | Err(_) if !pos.is_multiple_of(log.size) => pos = pos.next_multiple_of(log.size),
            Ok(_) => return Err(MoveError::Damaged { pos, source: FormatError::Magic { what: "log entry" } }),
            Err(source) => return Err(MoveError::Damaged { pos, source }),
        }
    }
    Ok(found)
}

/// Where each entry goes in a log of `size` bytes whose floor is `floor`, and where that log ends; `None` when they
/// do not fit.
#[must_use]
pub fn plan(entries: &[Place], floor: u64, size: u64) -> Option<(Vec<u64>, u64)> {
    let mut end = floor;
    let mut positions = Vec::with_capacity(entries.len());
    for entry in entries {
        if entry.bytes > size {
            return None;
        }
        let pos = place(end, size, entry.bytes);
        end = pos + entry.bytes;
        if end > floor + size {
            return None;
        }
        positions.push(pos);
    }
    Some((positions, end))
}

/// Copies each entry to its new position, as [`plan`] has it from this floor on; `write` gets offsets of the new file.
pub fn copy(
    from: (&dyn ReadAt, Log),
    to: Log,
    entries: &[Place],
    floor: u64,
    positions: &[u64],
    write: &mut WriteAt<'_>,
) -> Result<(), MoveError> {
    let (file, log) = from;
    let mut end = floor;
    for (entry, &pos) in entries.iter().zip(positions) {
        let length = usize::try_from(entry.bytes).expect("an entry fits memory");
        let bytes = file.read_at(entry.pos % log.size, length)?;
        let (header, data) =
            decode_entry(&bytes, log.nonce).map_err(|source| MoveError::Damaged { pos: entry.pos, source })?;
        let mut parts = Vec::with_capacity(3);
        encode_entry(&EntryHeader { pos, skipped: pos - end, ..header }, to.nonce, data, &mut parts);
        write(pos % to.size, &parts)?;
        end = pos + entry.bytes;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::{Chain, Epoch, Seq, Volume};
    use crate::core::op::Op;
    use crate::format::record::OrderRecord;
    use crate::format::spool::{Kind, entry_bytes};

    struct Memory(Vec<u8>);

    impl ReadAt for Memory {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, IoFail> {
            let mut out = vec![0; length];
            let from = usize::try_from(offset).expect("small");
            let here = self.0.len().saturating_sub(from).min(length);
            out[..here].copy_from_slice(&self.0[from..from + here]);
            Ok(out.into())
        }
    }

    fn put(file: &mut [u8], offset: u64, parts: &[Bytes]) {
        let mut at = usize::try_from(offset).expect("small");
        for part in parts {
            file[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
    }

    fn fill(log: Log, floor: u64, lengths: &[u64]) -> (Memory, u64) {
        let mut file = vec![0; usize::try_from(log.size).expect("small")];
        let mut end = floor;
        for (index, &length) in lengths.iter().enumerate() {
            let data = Bytes::from(vec![index as u8 + 1; usize::try_from(length).expect("small")]);
            let record = OrderRecord {
                seq: Seq(index as u64 + 1),
                epoch: Epoch(1),
                volume: Volume(0),
                op: Op::Write,
                flags: 0,
                offset: 0,
                length,
                time_ns: 1,
                chain: Chain(0),
                payload_crc: crc32fast::hash(&data),
            };
            let pos = place(end, log.size, entry_bytes(length));
            let header = EntryHeader { pos, kind: Kind::Payload, index: 0, record, skipped: pos - end };
            let mut parts = Vec::new();
            encode_entry(&header, log.nonce, data, &mut parts);
            put(&mut file, pos % log.size, &parts);
            end = pos + entry_bytes(length);
        }
        (Memory(file), end)
    }

    #[test]
    fn entries_keep_order_and_contents_through_growth_and_wrapping() {
        let lengths = [600, 100, 3000, 1, 2000];
        let (old, floor) = (Log { size: 16 << 10, nonce: 5 }, (16 << 10) * 3 + 14336);
        let (file, end) = fill(old, floor, &lengths);
        let entries = places(&file, old, floor, end).expect("sound");
        assert_eq!(entries.len(), lengths.len());
        for size in [32 << 10, 17408, 1 << 20] {
            let new = Log { size, nonce: 6 };
            let Some((positions, new_end)) = plan(&entries, floor, size) else { panic!("{size} bytes are enough") };
            let mut grown = Memory(vec![0; usize::try_from(size).expect("small")]);
            let mut write = |offset, parts: &[Bytes]| {
                put(&mut grown.0, offset, parts);
                Ok(())
            };
            copy((&file, old), new, &entries, floor, &positions, &mut write).expect("sound");
            let found = places(&grown, new, floor, new_end).expect("sound");
            assert_eq!(found.len(), lengths.len(), "{size}");
            for (index, (place, length)) in found.iter().zip(lengths).enumerate() {
                let bytes = grown.read_at(place.pos % size, usize::try_from(place.bytes).expect("small"));
                let (header, data) = decode_entry(&bytes.expect("memory"), 6).expect("sound");
                assert_eq!((header.record.seq, data.len() as u64), (Seq(index as u64 + 1), length));
            }
        }
        assert_eq!(plan(&entries, floor, 4096), None, "too small");
    }

    /// Entries of 1024 bytes and one of 2048, in a log of 4096.
    const SHORT: u64 = 1024 - ENTRY_HEADER_BYTES as u64;
    const LONG: u64 = 2048 - ENTRY_HEADER_BYTES as u64;

    #[test]
    fn a_log_may_be_full_to_its_last_byte() {
        let log = Log { size: 4096, nonce: 5 };
        let (file, end) = fill(log, 0, &[SHORT; 4]);
        let entries = places(&file, log, 0, end).expect("sound");
        assert_eq!((end, entries.len()), (4096, 4));
        assert_eq!(plan(&entries, 0, 4096), Some((vec![0, 1024, 2048, 3072], 4096)));
        assert_eq!(plan(&entries, 0, 4095), None);
        let (file, end) = fill(log, 0, &[4096 - ENTRY_HEADER_BYTES as u64]);
        let whole = places(&file, log, 0, end).expect("sound");
        assert_eq!(plan(&whole, 0, 4096), Some((vec![0], 4096)));
    }

    #[test]
    fn an_entry_left_from_an_earlier_round_is_passed_over() {
        let log = Log { size: 4096, nonce: 5 };
        let (before, end) = fill(log, 0, &[SHORT; 4]);
        // In the next round the last of three does not fit behind the others, and goes to the start.
        let (after, head) = fill(log, end, &[LONG, SHORT, LONG]);
        let mut file = after.0;
        file[3072..].copy_from_slice(&before.0[3072..]);
        let found = places(&Memory(file), log, end + 2048, head).expect("sound");
        assert_eq!(found.iter().map(|place| place.pos).collect::<Vec<_>>(), [6144, 8192]);
    }

    #[test]
    fn where_the_log_begins_an_entry_stands_or_it_is_damaged() {
        let log = Log { size: 4096, nonce: 5 };
        let (old, end) = fill(log, 0, &[SHORT]);
        assert!(matches!(places(&Memory(vec![0; 4096]), log, 0, end), Err(MoveError::Damaged { pos: 0, .. })));
        let stale = places(&old, log, 4096, 5120);
        assert!(matches!(stale, Err(MoveError::Damaged { pos: 4096, .. })), "it is of the round before");
    }

    #[test]
    fn a_damaged_entry_is_not_moved() {
        let old = Log { size: 8192, nonce: 5 };
        let (mut file, end) = fill(old, 0, &[600, 100]);
        let entries = places(&file, old, 0, end).expect("sound");
        file.0[200] ^= 1;
        let moved = copy((&file, old), Log { size: 16384, nonce: 5 }, &entries, 0, &[0, 1024], &mut |_, _| Ok(()));
        assert!(matches!(moved, Err(MoveError::Damaged { pos: 0, .. })));
    }
}
