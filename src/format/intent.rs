//! The primary's two intent files (I2): what may differ from DR after a crash.
//!
//! **Intent map**, for a restart after power loss: one bit for each INTENT_EXTENT_BYTES of each volume.
//! Block 0 is a header, the pages of volume 0 follow, then those of volume 1, and so on. A page that is
//! all zeroes was never written and has no bit set; a damaged page says nothing, so all its bits count as
//! set.
//!
//! | page: at | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `FSIM` |
//! | 4 | 2 | version |
//! | 6 | 2 | volume |
//! | 8 | 8 | index of the page in its volume |
//! | 16 | 12 | reserved |
//! | 28 | 4 | CRC-32 over bytes 0..28 and 32..4096 |
//! | 32 | 4064 | bits, lowest first |
//!
//! **Intent log**, for a restart in the same boot: block 0 header, block 1 watermark, then from 8192 a
//! ring of order records, slot = seq % slots. Its writes need only reach the page cache; the boot id in
//! the header says whether that still counts.
//!
//! Headers and watermark have magic, version, fields from 16, a CRC-32 over bytes 0..508 at 508:
//!
//! | block | magic | fields at 16, 24, … |
//! |---|---|---|
//! | map header | `FSHIMAPH` | group, digest of the volumes' sizes |
//! | log header | `FSHILOGH` | group, owner, slots, boot id (16 bytes) |
//! | watermark | `FSHILOGW` | local done, cut, 1 while payloads are dropped, led past at the auxiliary |

use xxhash_rust::xxh3::Xxh3;

use super::FormatError;
use super::layout::{Block, Shape, array_at, put, put_u32, put_u64, reserved_zero, u16_at, u32_at, u64_at};
use crate::core::ids::{GroupId, Owner, Seq, Volume};
use crate::limits::{BLOCK_BYTES, INTENT_EXTENT_BYTES, INTENT_NEIGHBOURS_MAX, RECORD_BYTES, TABLE_SLOTS_MAX};

/// Bits of one page of the map.
pub const PAGE_BITS: u64 = (PAGE_BITS_BYTES * 8) as u64;
/// Bytes of volume that one page of the map covers.
pub const PAGE_COVERS_BYTES: u64 = PAGE_BITS * INTENT_EXTENT_BYTES;

const PAGE_HEADER_BYTES: usize = 32;
const PAGE_BITS_BYTES: usize = BLOCK_BYTES - PAGE_HEADER_BYTES;
const _: () = assert!(PAGE_BITS.is_multiple_of(INTENT_NEIGHBOURS_MAX), "neighbours share a page");
const _: () = assert!(PAGE_BITS.is_multiple_of(64), "a page is made of words");
const PAGE_WHAT: &str = "intent map page";
const PAGE_MAGIC: [u8; 4] = *b"FSIM";
const PAGE_VERSION: u16 = 1;
const PAGE_CRC_AT: usize = 28;
const RECORDS_AT: u64 = 2 * BLOCK_BYTES as u64;
const MAP: Shape = Shape::sector("intent map header", b"FSHIMAPH", 32);
const LOG: Shape = Shape::sector("intent log header", b"FSHILOGH", 56);
const WATERMARK: Shape = Shape::sector("intent log watermark", b"FSHILOGW", 48);

/// Block 0 of the intent map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapHeader {
    pub group: GroupId,
    /// [`sizes_digest`] of the volumes the pages are laid out for.
    pub sizes_digest: u64,
}

impl MapHeader {
    /// The 4096 bytes.
    #[must_use]
    pub fn encode(&self) -> Block {
        let mut out = MAP.start();
        put_u64(&mut out, 16, self.group.0);
        put_u64(&mut out, 24, self.sizes_digest);
        MAP.seal(out)
    }

    /// Reads block 0.
    pub fn decode(bytes: &[u8]) -> Result<MapHeader, FormatError> {
        let block = MAP.open(bytes)?;
        Ok(MapHeader { group: GroupId(u64_at(block, 16)), sizes_digest: u64_at(block, 24) })
    }
}

/// Digest of the sizes of a group's volumes, in order.
#[must_use]
pub fn sizes_digest(sizes: &[u64]) -> u64 {
    let mut digest = Xxh3::new();
    sizes.iter().for_each(|size| digest.update(&size.to_le_bytes()));
    digest.digest()
}

/// Where the pages of each volume stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapLayout {
    /// Pages before the first one of each volume, and all pages at the end.
    first_page: Vec<u64>,
}

impl MapLayout {
    /// The layout for volumes of these sizes, bytes.
    #[must_use]
    pub fn new(sizes: &[u64]) -> MapLayout {
        let mut first_page = vec![0];
        let mut total = 0;
        for size in sizes {
            total += size.div_ceil(PAGE_COVERS_BYTES);
            first_page.push(total);
        }
        MapLayout { first_page }
    }

    /// Pages of all volumes.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.first_page.last().copied().unwrap_or(0)
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        (1 + self.pages()) * BLOCK_BYTES as u64
    }

    /// Pages of one volume.
    #[must_use]
    pub fn volume_pages(&self, volume: Volume) -> u64 {
        let at = usize::from(volume.0);
        self.first_page[at + 1] - self.first_page[at]
    }

    /// Offset in the file of a page.
    #[must_use]
    pub fn page_offset(&self, volume: Volume, page: u64) -> u64 {
        (1 + self.first_page[usize::from(volume.0)] + page) * BLOCK_BYTES as u64
    }

    /// Page and bit of a byte of a volume.
    #[must_use]
    pub fn locate(offset: u64) -> (u64, u64) {
        let bit = offset / INTENT_EXTENT_BYTES;
        (bit / PAGE_BITS, bit % PAGE_BITS)
    }

    /// First byte of the volume that a bit stands for.
    #[must_use]
    pub fn offset_of(page: u64, bit: u64) -> u64 {
        (page * PAGE_BITS + bit) * INTENT_EXTENT_BYTES
    }
}

/// One page of the intent map. Most of them, of large volumes, say the same of all their extents: those take no memory.
#[derive(Clone)]
pub struct Page {
    pub volume: Volume,
    pub index: u64,
    bits: Bits,
}

#[derive(Clone)]
enum Bits {
    None,
    All,
    Mixed(Box<[u8; PAGE_BITS_BYTES]>),
}

static NO_BITS: [u8; PAGE_BITS_BYTES] = [0; PAGE_BITS_BYTES];
static ALL_BITS: [u8; PAGE_BITS_BYTES] = [0xff; PAGE_BITS_BYTES];

impl Bits {
    fn bytes(&self) -> &[u8; PAGE_BITS_BYTES] {
        match self {
            Bits::None => &NO_BITS,
            Bits::All => &ALL_BITS,
            Bits::Mixed(bytes) => bytes,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8; PAGE_BITS_BYTES] {
        if let Bits::None | Bits::All = self {
            *self = Bits::Mixed(Box::new(*self.bytes()));
        }
        match self {
            Bits::Mixed(bytes) => bytes,
            Bits::None | Bits::All => unreachable!("just made"),
        }
    }
}

impl PartialEq for Page {
    fn eq(&self, other: &Page) -> bool {
        (self.volume, self.index) == (other.volume, other.index) && self.bits.bytes() == other.bits.bytes()
    }
}

impl Eq for Page {}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Page({}/{}: {} set)", self.volume, self.index, self.count())
    }
}

impl Page {
    /// A page without a bit set.
    #[must_use]
    pub fn new(volume: Volume, index: u64) -> Page {
        Page { volume, index, bits: Bits::None }
    }

    /// A page with every bit set: what stands for a damaged one.
    #[must_use]
    pub fn full(volume: Volume, index: u64) -> Page {
        Page { volume, index, bits: Bits::All }
    }

    #[must_use]
    pub fn get(&self, bit: u64) -> bool {
        let (byte, mask) = place_of(bit);
        self.bits.bytes()[byte] & mask != 0
    }

    /// Sets a bit; true when it was not set before.
    pub fn set(&mut self, bit: u64) -> bool {
        let (byte, mask) = place_of(bit);
        let fresh = self.bits.bytes()[byte] & mask == 0;
        if fresh {
            self.bits.bytes_mut()[byte] |= mask;
        }
        fresh
    }

    /// Clears a bit; true when it was set before.
    pub fn clear(&mut self, bit: u64) -> bool {
        let (byte, mask) = place_of(bit);
        let was_set = self.bits.bytes()[byte] & mask != 0;
        if was_set {
            self.bits.bytes_mut()[byte] &= !mask;
        }
        was_set
    }

    /// Sets the bits from `first` to `last`, both included; how many of them were not set before.
    pub fn set_range(&mut self, first: u64, last: u64) -> u64 {
        if let Bits::All = self.bits {
            return 0;
        }
        if (first, last) == (0, PAGE_BITS - 1) {
            let fresh = PAGE_BITS - self.count();
            self.bits = Bits::All;
            return fresh;
        }
        let mut fresh = 0;
        let bits = self.bits.bytes_mut();
        for (byte, mask) in masks(first, last) {
            fresh += u64::from((mask & !bits[byte]).count_ones());
            bits[byte] |= mask;
        }
        fresh
    }

    /// The first bit from `first` to `last`, both included, that is not set.
    #[must_use]
    pub fn first_clear(&self, first: u64, last: u64) -> Option<u64> {
        match &self.bits {
            _ if first > last => None,
            Bits::None => Some(first),
            Bits::All => None,
            Bits::Mixed(bits) => {
                let (byte, open) =
                    masks(first, last).map(|(byte, mask)| (byte, mask & !bits[byte])).find(|(_, open)| *open != 0)?;
                Some(byte as u64 * 8 + u64::from(open.trailing_zeros()))
            }
        }
    }

    /// Clears every bit but those that `recent` has, and their neighbours in aligned groups of `together`, a power of two up
    /// to 64; how many bits that were.
    pub fn keep(&mut self, recent: &Page, together: u64) -> u64 {
        assert!(together.is_power_of_two() && together <= 64, "groups lie within words");
        let before = self.count();
        match (&self.bits, &recent.bits) {
            (Bits::None, _) | (_, Bits::All) => return 0,
            (_, Bits::None) => self.bits = Bits::None,
            (_, Bits::Mixed(recent)) => {
                let bits = self.bits.bytes_mut();
                for (word, recent) in bits.chunks_exact_mut(8).zip(recent.chunks_exact(8)) {
                    let kept = u64_at(word, 0) & grouped(u64_at(recent, 0), together);
                    word.copy_from_slice(&kept.to_le_bytes());
                }
                if super::is_zero(&bits[..]) {
                    self.bits = Bits::None;
                }
            }
        }
        before - self.count()
    }

    /// How many bits are set.
    #[must_use]
    pub fn count(&self) -> u64 {
        match &self.bits {
            Bits::None => 0,
            Bits::All => PAGE_BITS,
            Bits::Mixed(bits) => bits.chunks_exact(8).map(|word| u64::from(u64_at(word, 0).count_ones())).sum(),
        }
    }

    /// Whether no bit is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        super::is_zero(&self.bits.bytes()[..])
    }

    /// The bits set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        (0u64..)
            .zip(self.bits.bytes().iter())
            .filter(|&(_, &byte)| byte != 0)
            .flat_map(|(at, &byte)| (0..8).filter(move |bit| byte & (1 << bit) != 0).map(move |bit| at * 8 + bit))
    }

    /// The bits set as runs, ascending: the first of each, and how many.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let whole = matches!(self.bits, Bits::All).then_some((0, PAGE_BITS));
        let mut bits = self.iter().take(if whole.is_some() { 0 } else { usize::MAX }).peekable();
        let mixed = std::iter::from_fn(move || {
            let first = bits.next()?;
            let mut end = first + 1;
            while bits.next_if_eq(&end).is_some() {
                end += 1;
            }
            Some((first, end - first))
        });
        whole.into_iter().chain(mixed)
    }

    /// The 4096 bytes.
    #[must_use]
    pub fn encode(&self) -> Block {
        let mut out = [0; BLOCK_BYTES];
        put(&mut out, 0, &PAGE_MAGIC);
        put(&mut out, 4, &PAGE_VERSION.to_le_bytes());
        put(&mut out, 6, &self.volume.0.to_le_bytes());
        put_u64(&mut out, 8, self.index);
        put(&mut out, PAGE_HEADER_BYTES, &self.bits.bytes()[..]);
        let crc = page_crc(&out);
        put_u32(&mut out, PAGE_CRC_AT, crc);
        out
    }

    /// Reads one page. The caller checks that volume and index are those of the place it read, and takes
    /// a page that is all zeroes ([`super::is_zero`]) for an empty one.
    pub fn decode(bytes: &[u8]) -> Result<Page, FormatError> {
        let what = PAGE_WHAT;
        let block: &Block =
            bytes.try_into().map_err(|_| FormatError::Length { what, got: bytes.len(), want: BLOCK_BYTES })?;
        if block[..4] != PAGE_MAGIC {
            return Err(FormatError::Magic { what });
        }
        if page_crc(block) != u32_at(block, PAGE_CRC_AT) {
            return Err(FormatError::Checksum { what });
        }
        let version = u16_at(block, 4);
        if version != PAGE_VERSION {
            return Err(FormatError::Version { what, got: version, want: PAGE_VERSION });
        }
        reserved_zero(what, &block[16..PAGE_CRC_AT])?;
        let mixed: [u8; PAGE_BITS_BYTES] = array_at(block, PAGE_HEADER_BYTES);
        let bits = if mixed == NO_BITS {
            Bits::None
        } else if mixed == ALL_BITS {
            Bits::All
        } else {
            Bits::Mixed(Box::new(mixed))
        };
        Ok(Page { volume: Volume(u16_at(block, 6)), index: u64_at(block, 8), bits })
    }
}

/// The bytes of a page that hold the bits from `first` to `last`, both included, and which bits of each.
fn masks(first: u64, last: u64) -> impl Iterator<Item = (usize, u8)> {
    let (from, to) = (place_of(first).0, place_of(last).0);
    (from..=to).map(move |byte| {
        let mut mask = 0xff;
        if byte == from {
            mask &= 0xff << (first % 8);
        }
        if byte == to {
            mask &= 0xff >> (7 - last % 8);
        }
        (byte, mask)
    })
}

/// Every bit of a word in whose aligned group of `together` one is set.
fn grouped(word: u64, together: u64) -> u64 {
    let group = u64::MAX >> (64 - together);
    let groups = (0..64).step_by(together as usize).map(|at| group << at);
    groups.filter(|group| word & group != 0).fold(0, |all, group| all | group)
}

fn place_of(bit: u64) -> (usize, u8) {
    assert!(bit < PAGE_BITS, "bit {bit} is not in one page");
    (usize::try_from(bit / 8).expect("less than a page"), 1 << (bit % 8))
}

fn page_crc(block: &Block) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block[..PAGE_CRC_AT]);
    hasher.update(&block[PAGE_HEADER_BYTES..]);
    hasher.finalize()
}

/// Block 0 of the intent log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogHeader {
    pub group: GroupId,
    pub owner: Owner,
    /// Boot of the machine that wrote the ring.
    pub boot_id: [u8; 16],
    /// Records the ring has room for.
    pub slots: u64,
}

impl LogHeader {
    /// The 4096 bytes.
    #[must_use]
    pub fn encode(&self) -> Block {
        let mut out = LOG.start();
        put_u64(&mut out, 16, self.group.0);
        put_u64(&mut out, 24, self.owner.0);
        put_u64(&mut out, 32, self.slots);
        put(&mut out, 40, &self.boot_id);
        LOG.seal(out)
    }

    /// Reads block 0.
    pub fn decode(bytes: &[u8]) -> Result<LogHeader, FormatError> {
        let block = LOG.open(bytes)?;
        let slots = u64_at(block, 32);
        if slots == 0 || slots > TABLE_SLOTS_MAX {
            return Err(LOG.field(format!("{slots} slots, 1 to {TABLE_SLOTS_MAX} are possible")));
        }
        Ok(LogHeader {
            group: GroupId(u64_at(block, 16)),
            owner: Owner(u64_at(block, 24)),
            boot_id: array_at(block, 40),
            slots,
        })
    }
}

/// Block 1 of the intent log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// Every write up to here has reached the local volumes.
    pub local_done: Seq,
    /// DR's cut, as last heard.
    pub cut: Seq,
    /// Payloads were being dropped: the ring need not reach back to the cut, the map does.
    pub coalescing: bool,
    /// The auxiliary's table was led past orders up to here that DR had not either; 0: past none.
    pub aux_skipped: Seq,
}

impl Watermark {
    /// The 4096 bytes.
    #[must_use]
    pub fn encode(&self) -> Block {
        let mut out = WATERMARK.start();
        put_u64(&mut out, 16, self.local_done.0);
        put_u64(&mut out, 24, self.cut.0);
        put_u64(&mut out, 32, u64::from(self.coalescing));
        put_u64(&mut out, 40, self.aux_skipped.0);
        WATERMARK.seal(out)
    }

    /// Reads block 1.
    pub fn decode(bytes: &[u8]) -> Result<Watermark, FormatError> {
        let block = WATERMARK.open(bytes)?;
        let coalescing = match u64_at(block, 32) {
            0 => false,
            1 => true,
            other => {
                let why = format!("coalescing is {other}, neither 0 nor 1");
                return Err(FormatError::Field { what: "intent log watermark", why });
            }
        };
        let (local_done, cut, aux_skipped) = (Seq(u64_at(block, 16)), Seq(u64_at(block, 24)), Seq(u64_at(block, 40)));
        Ok(Watermark { local_done, cut, coalescing, aux_skipped })
    }
}

/// Where everything stands in an intent log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLayout {
    pub slots: u64,
}

impl LogLayout {
    pub const HEADER_AT: u64 = 0;
    pub const WATERMARK_AT: u64 = BLOCK_BYTES as u64;
    pub const RECORDS_AT: u64 = RECORDS_AT;

    /// Offset in the file of the record of a seq.
    #[must_use]
    pub const fn record_offset(&self, seq: Seq) -> u64 {
        RECORDS_AT + (seq.0 % self.slots) * RECORD_BYTES as u64
    }

    /// Bytes of the whole file.
    #[must_use]
    pub const fn total_bytes(&self) -> u64 {
        (RECORDS_AT + self.slots * RECORD_BYTES as u64).next_multiple_of(BLOCK_BYTES as u64)
    }
}
