//! The file of the spool, longer than it was made where a batch needs more: opened, extended, cut.
//!
//! | `spool_max` | it grows |
//! |---|---|
//! | a size | to that, as far as there is space |
//! | `auto` | as long as as much again as it has grown by stays free: what is staged in it is going to be applied, and the volumes may stand on the same file system, with holes where it goes |
//!
//! A file may be longer than the superblock names, after a crash. What neither slot names is cut before space is reserved; what
//! one still does, once the other one counts durably.

use std::path::Path;

use anyhow::Context;

use super::{PIECE_BYTES, check_log, log, open_log, refused};
use crate::cluster::size::human_size;
use crate::core::names::SPOOL;
use crate::format::superblock::Superblock;
use crate::io::open::free_bytes;
use crate::io::{Direct, FileId, OpenOptions, Preallocate, Reactor};
use crate::limits::{BLOCK_BYTES, spool_for_any_batch};

/// Bytes to which a spool of `size` grows by itself, for volumes of so many bytes together.
pub fn limit(dir: &Path, size: u64, volumes: u64) -> u64 {
    let enough = spool_for_any_batch(volumes).next_multiple_of(size) + size;
    let had = std::fs::metadata(dir.join(SPOOL)).map_or(size, |found| found.len()).max(size);
    let (free, grown) = (free_bytes(dir), had - size);
    // Half of what is not taken is for what is applied.
    let more = free.saturating_add(grown) / 2 / size * size;
    size.saturating_add(more.max(grown)).min(enough.max(had))
}

/// As [`check_log`], of a spool that may be longer than the superblock names.
pub fn check_spool(path: &Path, known: &Superblock) -> anyhow::Result<()> {
    let (made, named) = (known.spool().size, known.spool().bytes());
    match std::fs::metadata(path) {
        Ok(found) if made > 0 && found.len() > named && found.len().is_multiple_of(made) => Ok(()),
        _ => check_log(path, named),
    }
}

/// Cuts a file that is longer than either slot of the superblock names: a crash left it so, and there may be no space for what is
/// not allocated of it.
pub fn cut(dir: &Path, slots: &[u8]) -> anyhow::Result<()> {
    let each = slots.chunks(BLOCK_BYTES).filter_map(|slot| Superblock::decode(slot).ok());
    let Some(named) = each.map(|it| it.spool().bytes()).max().filter(|named| *named > 0) else { return Ok(()) };
    let path = dir.join(SPOOL);
    let longer =
        std::fs::metadata(&path).is_ok_and(|found| found.len() > named && found.len().is_multiple_of(PIECE_BYTES));
    if longer {
        let cut = || {
            let file = std::fs::OpenOptions::new().write(true).open(&path)?;
            file.set_len(named)?;
            file.sync_all()
        };
        cut().with_context(|| format!("cutting {} to {named} bytes, which is what it holds", path.display()))?;
    }
    Ok(())
}

/// Opens the spool as long as it is.
pub fn open(reactor: &mut Reactor, dir: &Path, wanted: u64, known: Option<&Superblock>) -> anyhow::Result<FileId> {
    let reserved =
        |bytes| OpenOptions { direct: Direct::Never, preallocate: Preallocate::Reserve, ..log(dir, SPOOL, bytes) };
    let made = known.map_or(0, |known| known.spool().size);
    let path = dir.join(SPOOL);
    let length = std::fs::metadata(&path).map_or(0, |found| found.len());
    if length <= made || made == 0 {
        return open_log(reactor, reserved(wanted));
    }
    if made != wanted.next_multiple_of(PIECE_BYTES) {
        tracing::warn!(
            "{} stays at {made} bytes, where the configuration asks for {wanted}: a batch stands in what it has grown by; start \
             again once that is applied",
            path.display()
        );
    }
    reactor.open(&reserved(length)).map_err(|fail| refused(fail.to_string()))
}

/// Gives the file `bytes`; `beside` have to stay free.
pub fn extend(reactor: &mut Reactor, file: FileId, bytes: u64, beside: u64) -> Result<(), String> {
    let path = reactor.file_path(file).to_path_buf();
    let (free, more) = (free_bytes(&path), bytes.saturating_sub(reactor.file_size(file)));
    if free < more.saturating_add(beside) {
        return Err(format!(
            "{} is to be {} longer, and its file system has {} free, of which {} are left for what is applied: make room \
             there, and restart DR",
            path.display(),
            human_size(more),
            human_size(free),
            human_size(beside)
        ));
    }
    reactor.extend(file, bytes).map_err(|fail| fail.to_string())
}
