//! What the files of an auxiliary say at a start: which writer is in force, or why nothing may be granted.
//!
//! | superblock | table | means |
//! |---|---|---|
//! | blank | blank or none | new: nobody was ever granted anything |
//! | blank | written | refused: the superblock was lost, and with it who may write |
//! | valid | written | as it says |
//! | valid, epoch 0 | blank or none | as it says |
//! | valid, epoch > 0 | blank or none | as it says, with a warning: the table was lost, or its writer died at once |
//! | damaged | blank or none | new: torn when it was made, before anything was granted |
//! | damaged | written | refused |
//! | of another role, group or version | any | refused |
//!
//! One damaged slot loses nothing: both carry the writer before it is granted (see `machine`).

use crate::core::fence::Writer;
use crate::core::ids::Owner;
use crate::format::FormatError;
use crate::format::superblock::{self, Role, Slots, Superblock};
use crate::format::table::TableHeader;
use crate::limits::BLOCK_BYTES;

/// What a start begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    pub superblock: Superblock,
    /// Whether both slots carry the writer in force; otherwise it is written again before it is granted again.
    pub settled: bool,
    /// The superblock is new: both generations of [`Recovered::creation`] are to be durable before anything else.
    pub fresh: bool,
    /// What an operator should hear.
    pub warnings: Vec<String>,
}

/// Why an auxiliary does not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    #[error(
        "superblock: {0}; nothing here says any more which epoch is in force, so nothing is served (I7); \
             restore the superblock, or move the whole directory away to begin anew"
    )]
    Damaged(FormatError),
    #[error(
        "the table was written but the superblock is blank: it was lost, and with it the epoch in force (I7); \
             restore it, or move the whole directory away to begin anew"
    )]
    Lost,
    #[error(
        "the table is {found} bytes long, it was made with {made}: it was truncated or replaced, and orders that only it \
             had would be missed at a promotion; put it back, or move the whole directory away to begin anew"
    )]
    Truncated { found: u64, made: u64 },
    #[error("this directory belongs to a {}, not to an auxiliary", .0.word())]
    Role(Role),
    #[error("this directory belongs to group {found:?}, the configuration says {configured:?}")]
    Group { found: String, configured: String },
}

/// Judges the two slots of the superblock and the first block of the table (empty when there is no file).
/// `identity` is random and becomes the directory's own if it is new.
pub fn recover(slots: &[u8], table_head: &[u8], group: &str, identity: Owner) -> Result<Recovered, RecoveryError> {
    let blank_table = table_head.iter().all(|byte| *byte == 0);
    let slots_read = superblock::read_slots(slots);
    match slots_read {
        Ok(Slots { newest: Some(superblock), damaged, .. }) => resume(superblock, damaged, slots, blank_table, group),
        Ok(Slots { newest: None, .. }) if blank_table => Ok(fresh(group, identity, Vec::new())),
        Ok(Slots { newest: None, .. }) => Err(RecoveryError::Lost),
        Err(FormatError::Magic { .. } | FormatError::Checksum { .. }) if blank_table => {
            let warning = "the superblock was torn when it was made; made anew, nothing had been granted".to_owned();
            Ok(fresh(group, identity, vec![warning]))
        }
        Err(error) => Err(RecoveryError::Damaged(error)),
    }
}

/// Whether the table's file, `bytes` long, holds all of what its first block describes (I8). A first block that says
/// nothing is judged by whoever reads the table.
pub fn check_length(table_head: &[u8], bytes: u64) -> Result<(), RecoveryError> {
    match TableHeader::decode(table_head) {
        Ok(header) if header.layout().total_bytes() > bytes => {
            Err(RecoveryError::Truncated { found: bytes, made: header.layout().total_bytes() })
        }
        _ => Ok(()),
    }
}

impl Recovered {
    /// What is to be written, durably and in this order, before a fresh auxiliary serves: (offset, bytes).
    #[must_use]
    pub fn creation(&self) -> Vec<(u64, [u8; BLOCK_BYTES])> {
        if !self.fresh {
            return Vec::new();
        }
        let first = Superblock { generation: self.superblock.generation - 1, ..self.superblock.clone() };
        [first, self.superblock.clone()].iter().map(|block| (block.offset(), block.encode())).collect()
    }
}

/// The writer that a superblock says is in force.
#[must_use]
pub fn writer(superblock: &Superblock) -> Writer {
    Writer { epoch: superblock.epoch, owner: superblock.peer }
}

fn resume(
    superblock: Superblock,
    damaged: Option<FormatError>,
    slots: &[u8],
    blank_table: bool,
    group: &str,
) -> Result<Recovered, RecoveryError> {
    if superblock.role != Role::Auxiliary {
        return Err(RecoveryError::Role(superblock.role));
    }
    if superblock.group_name != group {
        return Err(RecoveryError::Group { found: superblock.group_name, configured: group.to_owned() });
    }
    let mut warnings = Vec::new();
    if let Some(error) = damaged {
        warnings.push(format!("one slot of the superblock is damaged ({error}); the other one holds"));
    }
    if blank_table && superblock.epoch.0 > 0 {
        warnings.push(format!(
            "the table is blank although epoch {} was granted: unless its writer died at once, what it held is lost",
            superblock.epoch
        ));
    }
    let mut halves = slots.chunks(BLOCK_BYTES).map(|slot| Superblock::decode(slot).ok().map(|block| writer(&block)));
    let settled = halves.all(|half| half == Some(writer(&superblock)));
    Ok(Recovered { superblock, settled, fresh: false, warnings })
}

fn fresh(group: &str, identity: Owner, warnings: Vec<String>) -> Recovered {
    let superblock =
        Superblock { generation: 2, group_name: group.to_owned(), owner: identity, ..Superblock::new(Role::Auxiliary) };
    Recovered { superblock, settled: true, fresh: true, warnings }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::GroupId;
    use crate::format::table::TableLayout;

    #[test]
    fn a_table_shorter_than_its_header_says_is_refused() {
        let layout = TableLayout::new(1024, 1 << 20);
        let head = TableHeader::new(GroupId(1), &layout).encode();
        let made = layout.total_bytes();
        assert_eq!(check_length(&head, made), Ok(()));
        assert_eq!(check_length(&head, made + 4096), Ok(()));
        let found = made - 1;
        assert_eq!(check_length(&head, found), Err(RecoveryError::Truncated { found, made }));
        assert_eq!(check_length(&[0; BLOCK_BYTES], 4096), Ok(()), "nothing was written yet");
        assert_eq!(check_length(&[], 0), Ok(()));
    }
    use crate::core::ids::Epoch;
    use crate::format::superblock::SUPERBLOCK_BYTES;

    const WRITTEN: [u8; 8] = *b"FSHTABLE";

    fn slots(blocks: &[Superblock]) -> Vec<u8> {
        let mut bytes = vec![0; SUPERBLOCK_BYTES];
        for block in blocks {
            bytes[block.offset() as usize..][..BLOCK_BYTES].copy_from_slice(&block.encode());
        }
        bytes
    }

    fn granted(generation: u64, epoch: u32) -> Superblock {
        let superblock = fresh("orders", Owner(9), vec![]).superblock;
        Superblock { generation, epoch: Epoch(epoch), peer: Owner(u64::from(epoch) + 100), ..superblock }
    }

    fn judge(slots: &[u8], table: &[u8]) -> Result<Recovered, RecoveryError> {
        recover(slots, table, "orders", Owner(1))
    }

    #[test]
    fn every_row_of_the_table() {
        let blank = slots(&[]);
        let valid = slots(&[granted(3, 2), granted(4, 2)]);
        let never = slots(&[granted(1, 0), granted(2, 0)]);
        let mut damaged = slots(&[granted(1, 1)]);
        damaged[5000] ^= 1;

        for table in [&[0u8; 8][..], &[]] {
            let new = judge(&blank, table).unwrap();
            assert!(new.fresh && new.settled && new.warnings.is_empty());
            assert!(judge(&damaged, table).unwrap().fresh);
            assert_eq!(judge(&valid, table).unwrap().warnings.len(), 1);
            assert!(judge(&never, table).unwrap().warnings.is_empty());
        }
        assert_eq!(judge(&blank, &WRITTEN), Err(RecoveryError::Lost));
        assert!(matches!(judge(&damaged, &WRITTEN), Err(RecoveryError::Damaged(_))));
        let found = judge(&valid, &WRITTEN).unwrap();
        assert!(!found.fresh && found.settled && found.warnings.is_empty());
        assert_eq!(writer(&found.superblock), Writer { epoch: Epoch(2), owner: Owner(102) });

        let dr = slots(&[Superblock { role: Role::Dr, ..granted(3, 2) }]);
        assert_eq!(judge(&dr, &WRITTEN), Err(RecoveryError::Role(Role::Dr)));
        assert!(matches!(recover(&valid, &WRITTEN, "other", Owner(1)), Err(RecoveryError::Group { .. })));
    }

    #[test]
    fn a_new_superblock_is_found_again_by_either_of_its_slots() {
        let new = judge(&slots(&[]), &[]).unwrap();
        let mut bytes = vec![0; SUPERBLOCK_BYTES];
        for (offset, block) in new.creation() {
            bytes[offset as usize..][..BLOCK_BYTES].copy_from_slice(&block);
        }
        assert_eq!((new.superblock.owner, &*new.superblock.group_name), (Owner(1), "orders"));
        let again = judge(&bytes, &[]).unwrap();
        assert_eq!((again.superblock, again.settled, again.fresh), (new.superblock, true, false));
    }

    #[test]
    fn no_single_flipped_bit_forgets_the_epoch() {
        let bytes = slots(&[granted(3, 2), granted(4, 2)]);
        for bit in (0..bytes.len() * 8).step_by(61) {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let found = judge(&flipped, &WRITTEN).unwrap();
            assert_eq!(found.superblock.epoch, Epoch(2));
            assert!(!found.settled, "the damaged slot is written anew before the next grant");
        }
    }

    #[test]
    fn half_a_grant_is_in_force_but_not_settled() {
        let found = judge(&slots(&[granted(4, 2), granted(5, 3)]), &WRITTEN).unwrap();
        assert_eq!(writer(&found.superblock).epoch, Epoch(3));
        assert!(!found.settled);
    }
}
