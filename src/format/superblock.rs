//! The superblock: who a data directory is, and where its logs stand. Two slots at 0 and 4096.
//!
//! Slot `generation % 2` is written, so a torn write leaves the generation before it (see [`read_slots`]
//! for what each state of the two slots means). A slot that is damaged at rest cannot be told from a torn one: so nothing
//! counts that stands in one of them only, and whoever waits for a change waits for two generations with it.
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `FSHSUPER` |
//! | 8 | 2 | version |
//! | 10 | 1 | role |
//! | 11 | 1 | length of the group's name |
//! | 12 | 4 | flags |
//! | 16 | 8 | generation |
//! | 24 | 8 | group |
//! | 32 | 8 | owner |
//! | 40 | 8 | peer |
//! | 48 | 4 | epoch |
//! | 52 | 4 | target epoch |
//! | 56 | 16 | boot id |
//! | 72 | 8 | seq |
//! | 80 | 8 | chain |
//! | 88 | 8 | batch |
//! | 96 | 8 | spool position |
//! | 104 | 8 | nonce |
//! | 112 | 8 | journal segment |
//! | 120 | 2 | number of volumes |
//! | 122 | 6 | reserved |
//! | 128 | 64 | name of the group, padded with zeroes |
//! | 192 | 64 × 16 | digest of the name and size of each volume |
//! | 1216 | 8 | promised recovery point |
//! | 1224 | 8 | promised end of the journal |
//! | 1232 | 8 | suspect up to this seq |
//! | 1240 | 8 | bytes of the journal |
//! | 1248 | 8 | seq of the last resize |
//! | 1256 | 8 | size of a volume that is being resized, 0: of none |
//! | 1264 | 2 | which volume that is |
//! | 1266 | 6 | reserved |
//! | 1272 | 8 × 16 | extensions of the spool: position at which it is entered, and bytes, a multiple of the spool's size; 0: none |
//! | 1400 | 2692 | reserved |
//! | 4092 | 4 | CRC-32 over bytes 0..4092 |

use xxhash_rust::xxh3::xxh3_64;

use super::layout::{Block, Shape, array_at, put, put_u32, put_u64, reserved_zero, u16_at, u32_at, u64_at};
use super::ring::{EXTENSIONS_MAX, Extension, Extensions, Ring};
use super::spool::{SIZED_BYTES_MAX, nonce_bytes};
use super::{FormatError, is_zero};
use crate::core::ids::{Chain, Epoch, GroupId, Owner, Seq, Volume};
use crate::limits::{BLOCK_BYTES, ENTRY_ALIGN_BYTES, NAME_BYTES_MAX, VOLUMES_MAX};

/// Bytes of both slots.
pub const SUPERBLOCK_BYTES: usize = 2 * BLOCK_BYTES;

/// There has been a complete first sync: the volume has a recovery point.
pub const SYNCED: u32 = 1;
/// A promotion to `target_epoch` is under way.
pub const PROMOTING: u32 = 2;
/// This directory has been promoted.
pub const PROMOTED: u32 = 4;
/// Stopped cleanly.
pub const CLEAN: u32 = 8;
/// A first sync overwrote the volume in place.
pub const DIRECT: u32 = 16;
/// The volume was all zeroes when it was taken.
pub const BLANK: u32 = 32;
/// DR: a start found something lost that had been promised; nothing is promoted without force until it is made good.
pub const DAMAGED: u32 = 64;
/// DR: at the checkpoint a batch has been completed since the writer last started.
pub const SETTLED: u32 = 128;
/// Files of volumes have been marked as such (`core::identity`).
pub const MARKED: u32 = 256;
/// DR: the promotion under way is one by force, whoever calls it again.
pub const FORCED: u32 = 512;
const FLAGS_KNOWN: u32 = SYNCED | PROMOTING | PROMOTED | CLEAN | DIRECT | BLANK | DAMAGED | SETTLED | MARKED | FORCED;

/// With one of these the volumes of a DR hold something.
const HOLDS: u32 = SYNCED | PROMOTING | PROMOTED | DIRECT;

const NAME_AT: usize = 128;
const VOLUMES_AT: usize = NAME_AT + NAME_BYTES_MAX;
const VOLUMES_END: usize = VOLUMES_AT + VOLUMES_MAX * 16;
const PROMISES_AT: usize = VOLUMES_END;
const PROMISES_END: usize = PROMISES_AT + 32;
const RESIZE_AT: usize = PROMISES_END;
const EXTENSION_AT: usize = RESIZE_AT + 24;
const EXTENSION_END: usize = EXTENSION_AT + EXTENSIONS_MAX * 16;

const SHAPE: Shape = Shape {
    what: "superblock",
    magic: *b"FSHSUPER",
    version: 4,
    first: 10,
    used: EXTENSION_END,
    crc_at: BLOCK_BYTES - 4,
};

/// Boot id of a primary that ended because a disk failed it: what its caches held is not believed in any boot.
pub const NO_BOOT: [u8; 16] = [0; 16];

/// Boot id of one start alone, which no other has: where nobody knows when a cache was emptied last. That of the system is a
/// random UUID, whose seventh byte begins with a 4 (RFC 9562, section 5.4); this one begins there with a 15.
#[must_use]
pub fn drawn_boot(random: u128) -> [u8; 16] {
    let mut boot_id = random.to_le_bytes();
    boot_id[6] |= 0xF0;
    boot_id
}

/// Whether a boot id is one of [`drawn_boot`].
#[must_use]
pub fn is_drawn(boot_id: &[u8; 16]) -> bool {
    boot_id[6] >= 0xF0
}

/// Whose directory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    Primary = 1,
    Auxiliary = 2,
    Dr = 3,
}

impl Role {
    /// The word of the CLI.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Auxiliary => "aux",
            Role::Dr => "dr",
        }
    }
}

/// One generation of a superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// From 1; the higher of two valid slots wins.
    pub generation: u64,
    pub role: Role,
    pub group: GroupId,
    /// At most [`NAME_BYTES_MAX`] bytes.
    pub group_name: String,
    /// Identity of this directory.
    pub owner: Owner,
    /// Primary: the DR directory it replicates to. DR, auxiliary: the writer. 0 = none yet.
    pub peer: Owner,
    pub epoch: Epoch,
    /// [`SYNCED`] | [`PROMOTING`] | …
    pub flags: u32,
    pub boot_id: [u8; 16],
    /// Primary: seqs are reserved up to here. DR: the applied checkpoint.
    pub seq: Seq,
    /// The chain at the checkpoint.
    pub chain: Chain,
    /// DR: begin of the complete batch that is being applied, or 0.
    pub batch: Seq,
    /// First position of the spool (DR) or FIFO (primary) to scan.
    pub spool_pos: u64,
    /// Nonce of that log.
    pub nonce: u64,
    /// DR: number of the first journal segment to scan.
    pub journal_segment: u64,
    /// DR: epoch of a promotion under way.
    pub target_epoch: Epoch,
    /// [`name_digest`] of the name, and size in bytes, of each volume. DR: as of the checkpoint.
    pub volumes: Vec<(u64, u64)>,
    /// DR: nothing above is applied; whoever recovers less has lost something that was here.
    pub promised_cut: Seq,
    /// DR: the journal held everything up to here durably, likewise.
    pub promised_tail: Seq,
    /// DR, with [`DAMAGED`]: until a checkpoint passes this seq.
    pub suspect_until: Seq,
    /// DR: length of the journal file; 0 = not known.
    pub journal_bytes: u64,
    /// Primary: whoever has everything up to here knows the sizes; 0 = as the volumes were made.
    pub resized: Seq,
    /// Primary: a volume that is being resized, and the bytes it gets. Its order may have left already: a start goes on.
    pub resizing: Option<(Volume, u64)>,
    /// DR: what the spool has grown by.
    pub extensions: Extensions,
}

impl Superblock {
    /// The first generation of a new directory.
    #[must_use]
    pub fn new(role: Role) -> Superblock {
        Superblock {
            generation: 1,
            role,
            group: GroupId(0),
            group_name: String::new(),
            owner: Owner(0),
            peer: Owner(0),
            epoch: Epoch(0),
            flags: 0,
            boot_id: [0; 16],
            seq: Seq(0),
            chain: Chain(0),
            batch: Seq(0),
            spool_pos: 0,
            nonce: 0,
            journal_segment: 0,
            target_epoch: Epoch(0),
            volumes: Vec::new(),
            promised_cut: Seq(0),
            promised_tail: Seq(0),
            suspect_until: Seq(0),
            journal_bytes: 0,
            resized: Seq(0),
            resizing: None,
            extensions: Extensions::default(),
        }
    }

    /// Size of each volume, bytes, once what is being resized has been.
    #[must_use]
    pub fn sizes_to_be(&self) -> Vec<u64> {
        let mut sizes: Vec<u64> = self.volumes.iter().map(|(_, size)| *size).collect();
        if let Some((volume, size)) = self.resizing {
            sizes[usize::from(volume.0)] = size;
        }
        sizes
    }

    /// The shape of a DR's spool.
    #[must_use]
    pub fn spool(&self) -> Ring {
        Ring { size: nonce_bytes(self.nonce), extensions: self.extensions }
    }

    /// Whether something is lost when a volume is: of a DR from the moment on in which a writer has come.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.role != Role::Dr || self.group.0 != 0 || self.seq.0 != 0 || self.flags & HOLDS != 0
    }

    /// Bytes that the store of each volume has, or has lost. What a first copy has yet to complete is copied anew after a
    /// start, and a DR that takes its sizes over from the writer notes them before its stores have grown: until there is
    /// a recovery point, the length of a store says nothing.
    #[must_use]
    pub fn least_bytes(&self) -> Vec<u64> {
        let counts = self.role != Role::Dr || self.flags & (SYNCED | PROMOTING | PROMOTED) != 0;
        self.volumes.iter().map(|(_, size)| if counts { *size } else { 0 }).collect()
    }

    /// Whether all of these flags are set.
    #[must_use]
    pub fn has(&self, flags: u32) -> bool {
        self.flags & flags == flags
    }

    /// Sets or clears flags.
    pub fn set(&mut self, flags: u32, on: bool) {
        self.flags = if on { self.flags | flags } else { self.flags & !flags };
    }

    /// Where this generation is written.
    #[must_use]
    pub fn offset(&self) -> u64 {
        slot_offset(self.generation)
    }

    /// Gives both slots what this says, in generations of their own: what to write, in this order, as offset and bytes.
    pub fn in_both_slots(&mut self) -> [(u64, Block); 2] {
        [(); 2].map(|()| {
            self.generation += 1;
            (self.offset(), self.encode())
        })
    }

    /// The 4096 bytes.
    ///
    /// # Panics
    /// When the generation is 0, the name or the list of volumes is over its bound, or a flag is unknown.
    #[must_use]
    pub fn encode(&self) -> Block {
        assert!(self.generation > 0, "generations count from 1");
        assert!(self.volumes.len() <= VOLUMES_MAX, "the configuration bounds the volumes");
        assert!(self.flags & !FLAGS_KNOWN == 0, "only flags that decode knows");
        let name = self.group_name.as_bytes();
        assert!(name.len() <= NAME_BYTES_MAX, "the configuration bounds the name");
        let mut out = SHAPE.start();
        out[10] = self.role as u8;
        out[11] = u8::try_from(name.len()).expect("at most 64");
        put_u32(&mut out, 12, self.flags);
        put_u64(&mut out, 16, self.generation);
        put_u64(&mut out, 24, self.group.0);
        put_u64(&mut out, 32, self.owner.0);
        put_u64(&mut out, 40, self.peer.0);
        put_u32(&mut out, 48, self.epoch.0);
        put_u32(&mut out, 52, self.target_epoch.0);
        put(&mut out, 56, &self.boot_id);
        put_u64(&mut out, 72, self.seq.0);
        put_u64(&mut out, 80, self.chain.0);
        put_u64(&mut out, 88, self.batch.0);
        put_u64(&mut out, 96, self.spool_pos);
        put_u64(&mut out, 104, self.nonce);
        put_u64(&mut out, 112, self.journal_segment);
        put(&mut out, 120, &u16::try_from(self.volumes.len()).expect("at most 64").to_le_bytes());
        put(&mut out, NAME_AT, name);
        for (index, &(digest, size)) in self.volumes.iter().enumerate() {
            put_u64(&mut out, VOLUMES_AT + index * 16, digest);
            put_u64(&mut out, VOLUMES_AT + index * 16 + 8, size);
        }
        put_u64(&mut out, PROMISES_AT, self.promised_cut.0);
        put_u64(&mut out, PROMISES_AT + 8, self.promised_tail.0);
        put_u64(&mut out, PROMISES_AT + 16, self.suspect_until.0);
        put_u64(&mut out, PROMISES_AT + 24, self.journal_bytes);
        put_u64(&mut out, RESIZE_AT, self.resized.0);
        if let Some((volume, size)) = self.resizing {
            assert!(
                usize::from(volume.0) < self.volumes.len() && size > 0,
                "one of its volumes is resized, to something"
            );
            put_u64(&mut out, RESIZE_AT + 8, size);
            put(&mut out, RESIZE_AT + 16, &volume.0.to_le_bytes());
        }
        assert!(extend(&self.extensions, self.nonce), "an extension is some whole times its spool");
        for (at, extension) in (EXTENSION_AT..).step_by(16).zip(&self.extensions) {
            put_u64(&mut out, at, extension.from);
            put_u64(&mut out, at + 8, extension.bytes);
        }
        SHAPE.seal(out)
    }

    /// Reads one slot. Errors: everything that is not exactly what `encode` writes.
    pub fn decode(bytes: &[u8]) -> Result<Superblock, FormatError> {
        let block = SHAPE.open(bytes)?;
        let role = match block[10] {
            1 => Role::Primary,
            2 => Role::Auxiliary,
            3 => Role::Dr,
            other => return Err(SHAPE.field(format!("unknown role {other}"))),
        };
        let flags = u32_at(block, 12);
        if flags & !FLAGS_KNOWN != 0 {
            return Err(SHAPE.field(format!("unknown flags {flags:#x}")));
        }
        let generation = u64_at(block, 16);
        if generation == 0 {
            return Err(SHAPE.field("generation 0 does not exist"));
        }
        reserved_zero(SHAPE.what, &block[122..NAME_AT])?;
        Ok(Superblock {
            generation,
            role,
            group: GroupId(u64_at(block, 24)),
            group_name: name_of(block)?,
            owner: Owner(u64_at(block, 32)),
            peer: Owner(u64_at(block, 40)),
            epoch: Epoch(u32_at(block, 48)),
            flags,
            boot_id: array_at(block, 56),
            seq: Seq(u64_at(block, 72)),
            chain: Chain(u64_at(block, 80)),
            batch: Seq(u64_at(block, 88)),
            spool_pos: u64_at(block, 96),
            nonce: u64_at(block, 104),
            journal_segment: u64_at(block, 112),
            target_epoch: Epoch(u32_at(block, 52)),
            volumes: volumes_of(block)?,
            promised_cut: Seq(u64_at(block, PROMISES_AT)),
            promised_tail: Seq(u64_at(block, PROMISES_AT + 8)),
            suspect_until: Seq(u64_at(block, PROMISES_AT + 16)),
            journal_bytes: u64_at(block, PROMISES_AT + 24),
            resized: Seq(u64_at(block, RESIZE_AT)),
            resizing: resizing_of(block)?,
            extensions: extensions_of(block)?,
        })
    }
}

/// What the two slots hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    /// The generation in force; `None` when nothing was ever written.
    pub newest: Option<Superblock>,
    /// The other slot is damaged: a torn write of the next generation, or worse. Worth a log line.
    pub damaged: Option<FormatError>,
    /// The other slot says the same, in a generation before: the loss of either changes nothing.
    pub twice: bool,
}

/// Reads both slots.
///
/// | one slot | the other | means |
/// |---|---|---|
/// | zero | zero | new |
/// | valid | zero | the valid one |
/// | valid | valid | the higher generation |
/// | valid | damaged | the valid one: it has whatever was promised to anyone |
/// | damaged | zero or damaged | error: nothing can be trusted |
/// | other version, or nonsense under a valid checksum | anything | error: not for this program to judge |
pub fn read_slots(bytes: &[u8]) -> Result<Slots, FormatError> {
    if bytes.len() != SUPERBLOCK_BYTES {
        return Err(FormatError::Length { what: SHAPE.what, got: bytes.len(), want: SUPERBLOCK_BYTES });
    }
    let (first, second) = bytes.split_at(BLOCK_BYTES);
    match (read_slot(first, 0)?, read_slot(second, 1)?) {
        (Slot::Zero, Slot::Zero) => Ok(Slots { newest: None, damaged: None, twice: false }),
        (Slot::Valid(only), Slot::Zero) | (Slot::Zero, Slot::Valid(only)) => {
            Ok(Slots { newest: Some(*only), damaged: None, twice: false })
        }
        (Slot::Valid(a), Slot::Valid(b)) => {
            let (newest, mut before) = if a.generation > b.generation { (*a, *b) } else { (*b, *a) };
            before.generation = newest.generation;
            Ok(Slots { twice: newest == before, newest: Some(newest), damaged: None })
        }
        (Slot::Valid(only), Slot::Damaged(error)) | (Slot::Damaged(error), Slot::Valid(only)) => {
            Ok(Slots { newest: Some(*only), damaged: Some(error), twice: false })
        }
        (Slot::Damaged(error), _) | (_, Slot::Damaged(error)) => Err(error),
    }
}

/// The generation in force, `None` when nothing was ever written (see [`read_slots`]).
pub fn newest(bytes: &[u8]) -> Result<Option<Superblock>, FormatError> {
    read_slots(bytes).map(|slots| slots.newest)
}

/// Offset in the file of the slot that a generation is written to.
#[must_use]
pub fn slot_offset(generation: u64) -> u64 {
    (generation % 2) * BLOCK_BYTES as u64
}

/// Digest of a volume's name.
#[must_use]
pub fn name_digest(name: &str) -> u64 {
    xxh3_64(name.as_bytes())
}

enum Slot {
    Zero,
    Valid(Box<Superblock>),
    Damaged(FormatError),
}

fn read_slot(bytes: &[u8], index: u64) -> Result<Slot, FormatError> {
    if is_zero(bytes) {
        return Ok(Slot::Zero);
    }
    match Superblock::decode(bytes) {
        Ok(found) if found.generation % 2 != index => Err(SHAPE.field("a generation stands in the other's slot")),
        Ok(found) => Ok(Slot::Valid(Box::new(found))),
        Err(torn @ (FormatError::Magic { .. } | FormatError::Checksum { .. })) => Ok(Slot::Damaged(torn)),
        Err(other) => Err(other),
    }
}

fn name_of(block: &Block) -> Result<String, FormatError> {
    let length = usize::from(block[11]);
    if length > NAME_BYTES_MAX {
        return Err(SHAPE.field(format!("a name of {length} bytes, at most {NAME_BYTES_MAX} are allowed")));
    }
    let (name, padding) = block[NAME_AT..VOLUMES_AT].split_at(length);
    reserved_zero(SHAPE.what, padding)?;
    String::from_utf8(name.to_vec()).map_err(|_| SHAPE.field("the name is not UTF-8"))
}

fn resizing_of(block: &Block) -> Result<Option<(Volume, u64)>, FormatError> {
    let (size, volume) = (u64_at(block, RESIZE_AT + 8), u16_at(block, RESIZE_AT + 16));
    match size {
        0 if volume == 0 => Ok(None),
        size if size > 0 && volume < u16_at(block, 120) => Ok(Some((Volume(volume), size))),
        _ => Err(SHAPE.field(format!("volume {volume}, which there is not, is being resized to {size} bytes"))),
    }
}

/// Whether the spool whose size this nonce tells can have grown by these.
fn extend(extensions: &Extensions, nonce: u64) -> bool {
    let size = nonce_bytes(nonce);
    let whole = |it: &Extension| size > 0 && it.bytes.is_multiple_of(size) && it.from.is_multiple_of(ENTRY_ALIGN_BYTES);
    let (there, none): (Vec<&Extension>, Vec<&Extension>) = extensions.iter().partition(|it| it.bytes > 0);
    let bytes =
        there.iter().try_fold(size, |sum: u64, it| sum.checked_add(it.bytes).filter(|sum| *sum < SIZED_BYTES_MAX));
    let first = extensions.iter().take_while(|it| it.bytes > 0).count();
    let ascend =
        there.windows(2).all(|pair| pair[0].from.checked_add(pair[0].bytes).is_some_and(|end| end < pair[1].from));
    let alone = first == there.len() && none.iter().all(|it| it.from == 0);
    alone && (there.is_empty() || bytes.is_some()) && there.into_iter().all(whole) && ascend
}

fn extensions_of(block: &Block) -> Result<Extensions, FormatError> {
    reserved_zero(SHAPE.what, &block[RESIZE_AT + 18..EXTENSION_AT])?;
    let of = |at: usize| Extension { from: u64_at(block, at), bytes: u64_at(block, at + 8) };
    let extensions = std::array::from_fn(|at| of(EXTENSION_AT + at * 16));
    if !extend(&extensions, u64_at(block, 104)) {
        return Err(SHAPE.field(format!("the spool cannot have grown by these pieces: {extensions:?}")));
    }
    Ok(extensions)
}

fn volumes_of(block: &Block) -> Result<Vec<(u64, u64)>, FormatError> {
    let count = usize::from(u16_at(block, 120));
    if count > VOLUMES_MAX {
        return Err(SHAPE.field(format!("{count} volumes, at most {VOLUMES_MAX} are allowed")));
    }
    let (used, padding) = block[VOLUMES_AT..VOLUMES_END].split_at(count * 16);
    reserved_zero(SHAPE.what, padding)?;
    Ok(used.chunks_exact(16).map(|pair| (u64_at(pair, 0), u64_at(pair, 8))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawn_boot_id_is_told_from_that_of_the_system_and_from_none() {
        for random in [0, 1, 0x4000_0000_0000_0000, u128::MAX] {
            assert!(is_drawn(&drawn_boot(random)), "{random:x}");
        }
        assert!(drawn_boot(1) != drawn_boot(2) && !is_drawn(&NO_BOOT));
        for version in 0..15u8 {
            let mut uuid = [0xFF; 16];
            uuid[6] = version << 4 | 0xF;
            assert!(!is_drawn(&uuid), "{version}");
        }
    }
}
