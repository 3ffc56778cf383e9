//! Blocks of fixed size: what is accepted is, byte for byte, what is written; and checksums are valid more often here
//! than chance makes them, so that what stands behind them is met.

use farshore::format::intent::{LogHeader, MapHeader, Page, Watermark};
use farshore::format::journal::SegmentHeader;
use farshore::format::record::OrderRecord;
use farshore::format::spool::EntryHeader;
use farshore::format::superblock::{self, Superblock};
use farshore::format::table::{Fence, Heartbeat, SlotState, TableHeader};

use super::{Input, Reached, Wanted};

const NONCE: u64 = 7;

/// Every kind: its name, its length, where its checksum stands, its magic and version, and what its bytes come back as.
type Kind = (&'static str, usize, usize, &'static [u8], fn(&[u8]) -> Option<Vec<u8>>);

const KINDS: [Kind; 12] = [
    ("record", 64, 60, b"", |bytes| OrderRecord::decode(bytes).ok().map(|it| it.encode().to_vec())),
    ("superblock", 4096, 4092, b"FSHSUPER\x04\0", |bytes| {
        Superblock::decode(bytes).ok().map(|it| it.encode().to_vec())
    }),
    ("segment", 4096, 508, b"FSHJOURN\x01\0", |bytes| SegmentHeader::decode(bytes).ok().map(|it| it.encode().to_vec())),
    ("entry", 128, 124, b"FSHENTRY\x01\0", |bytes| {
        EntryHeader::decode(bytes, NONCE).ok().map(|it| it.encode(NONCE).to_vec())
    }),
    ("table header", 4096, 508, b"FSHTABLE\x01\0", |bytes| {
        TableHeader::decode(bytes).ok().map(|it| it.encode().to_vec())
    }),
    ("fence", 4096, 508, b"FSHFENCE\x01\0", |bytes| Fence::decode(bytes).ok().map(|it| it.encode().to_vec())),
    ("heartbeat", 4096, 508, b"FSHHEART\x01\0", |bytes| Heartbeat::decode(bytes).ok().map(|it| it.encode().to_vec())),
    ("state", 32, 28, b"", |bytes| SlotState::decode(bytes).ok().map(|it| it.encode().to_vec())),
    ("map header", 4096, 508, b"FSHIMAPH\x01\0", |bytes| MapHeader::decode(bytes).ok().map(|it| it.encode().to_vec())),
    ("page", 4096, 28, b"FSIM\x01\0", |bytes| Page::decode(bytes).ok().map(|it| it.encode().to_vec())),
    ("log header", 4096, 508, b"FSHILOGH\x01\0", |bytes| LogHeader::decode(bytes).ok().map(|it| it.encode().to_vec())),
    ("watermark", 4096, 508, b"FSHILOGW\x01\0", |bytes| Watermark::decode(bytes).ok().map(|it| it.encode().to_vec())),
];
pub const WANTED: Wanted = &[
    ("record", 2),
    ("superblock", 10),
    ("segment", 1),
    ("entry", 2),
    ("table header", 2),
    ("fence", 3),
    ("heartbeat", 2),
    ("state", 1),
    ("map header", 1),
    ("page", 2),
    ("log header", 1),
    ("watermark", 1),
];
const ENTRY: usize = 3;
const PAGE: usize = 9;

/// A block of the kind that the first byte names, from the bytes of the input at the offsets it names.
pub fn blocks(input: &[u8], reached: &mut Reached) {
    let mut input = Input::new(input);
    let choice = input.u8();
    let index = usize::from(choice & 0x3f) % KINDS.len();
    let (name, length, crc_at, start, again) = KINDS[index];
    let mut block = vec![0; length];
    block[..start.len()].copy_from_slice(start);
    while !input.is_empty() {
        let at = usize::try_from(input.below(length as u64)).expect("small");
        let count = usize::from(input.u8() & 0x3f);
        let bytes = input.bytes(count);
        let count = bytes.len().min(length - at);
        block[at..at + count].copy_from_slice(&bytes[..count]);
    }
    if index == ENTRY && choice & 0x40 != 0 {
        let crc = crc32fast::hash(&block[32..92]);
        block[92..96].copy_from_slice(&crc.to_le_bytes());
    }
    if choice & 0x80 == 0 {
        let mut hasher = crc32fast::Hasher::new();
        if index == ENTRY {
            hasher.update(&NONCE.to_le_bytes());
        }
        hasher.update(&block[..crc_at]);
        if index == PAGE {
            hasher.update(&block[crc_at + 4..]);
        }
        block[crc_at..crc_at + 4].copy_from_slice(&hasher.finalize().to_le_bytes());
    }
    if let Some(again) = again(&block) {
        assert!(again == block, "what is accepted is not what is written");
        reached.one(name);
    }
    if index == 1 {
        slots(&block);
    }
}

/// A superblock beside nothing, beside itself and beside an older one.
fn slots(block: &[u8]) {
    let ours = Superblock::decode(block).ok();
    for place in 0..2u64 {
        let mut both = vec![0; superblock::SUPERBLOCK_BYTES];
        let at = usize::try_from(superblock::slot_offset(place)).expect("small");
        both[at..at + block.len()].copy_from_slice(block);
        if let Ok(Some(found)) = superblock::newest(&both) {
            assert_eq!(Some(&found), ours.as_ref(), "nothing is made up");
            assert_eq!(found.generation % 2, place, "a generation stands in its own slot");
        }
    }
}

/// An old version is refused before anything behind it is read.
#[cfg(test)]
#[test]
fn the_superblock_that_is_planted_is_of_the_version_in_force() {
    let written = Superblock::new(farshore::format::superblock::Role::Dr).encode();
    assert!(written.starts_with(KINDS[1].3));
}
