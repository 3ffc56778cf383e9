//! The spool gets the size that the configuration asks for, at a start, with everything in it.
//!
//! | `spool.new` | superblock names | `spool` has | a crash left | so |
//! |---|---|---|---|---|
//! | none | S | S | nothing | |
//! | any | S | S | a copy that nothing speaks of | it is removed |
//! | N bytes | N | S | a whole copy, not yet under its name | it is renamed |
//!
//! The copy is durable before the superblock names it, and the superblock before the rename: at each moment one file
//! has the size that the superblock in force tells by its nonce (I6).

use std::fs::File as StdFile;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{log, sync_dir};
use crate::core::machine::{IoFail, Level};
use crate::core::names::{SPOOL, SPOOL_NEW};
use crate::dr::scan::scan_spool;
use crate::format::relocate::{Log, Place, copy, plan};
use crate::format::ring::Ring;
use crate::format::spool::{nonce_bytes, resized_nonce};
use crate::format::superblock::{self, Superblock};
use crate::io::{Direct, FileId, OpenOptions, Preallocate, Reactor, vector};

/// Makes the spool as large as `wanted` where that can be done; otherwise says why not, and leaves it.
pub fn resize(
    reactor: &mut Reactor,
    dir: &Path,
    wanted: u64,
    slots: &[u8],
    superblock_file: FileId,
) -> anyhow::Result<()> {
    let (path, copied) = (dir.join(SPOOL), dir.join(SPOOL_NEW));
    let Some(known) = superblock::newest(slots).ok().flatten() else {
        return Ok(());
    };
    let made = nonce_bytes(known.nonce);
    if copied.exists() {
        if stands(dir, Some(&known)) == copied {
            std::fs::rename(&copied, &path).with_context(|| format!("renaming {}", copied.display()))?;
            sync_dir(dir)?;
        } else {
            std::fs::remove_file(&copied).with_context(|| format!("removing {}", copied.display()))?;
        }
    }
    if made == wanted || length(&path) != made || known.spool().is_extended() {
        return Ok(());
    }
    let name = path.display();
    match moved(reactor, dir, wanted, &known)? {
        Some(entries) => {
            // Both slots, so that the loss of one does not bring the former size back.
            let nonce = resized_nonce(known.nonce, wanted);
            let mut next = Superblock { nonce, generation: known.generation + 1, ..known };
            reactor.write_sync(superblock_file, next.offset(), &next.encode()[..])?;
            std::fs::rename(&copied, &path).with_context(|| format!("renaming {}", copied.display()))?;
            sync_dir(dir)?;
            next.generation += 1;
            reactor.write_sync(superblock_file, next.offset(), &next.encode()[..])?;
            tracing::info!("{name} was resized from {made} to {wanted} bytes, with {entries} entries in it");
        }
        None => {
            let _ = std::fs::remove_file(&copied);
        }
    }
    Ok(())
}

/// Where the spool of a directory is: a copy that the superblock speaks of may not have its name yet.
pub fn stands(dir: &Path, known: Option<&Superblock>) -> PathBuf {
    let (path, copied) = (dir.join(SPOOL), dir.join(SPOOL_NEW));
    let made = known.map_or(0, |known| nonce_bytes(known.nonce));
    let plain = known.is_some_and(|known| !known.spool().is_extended());
    if made > 0 && plain && length(&copied) == made && length(&path) < made { copied } else { path }
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |data| data.len())
}

/// Makes the copy, durably; how many entries it has, or `None` after saying why there is none.
fn moved(reactor: &mut Reactor, dir: &Path, wanted: u64, known: &Superblock) -> anyhow::Result<Option<usize>> {
    let made = nonce_bytes(known.nonce);
    let name = dir.join(SPOOL);
    let name = name.display();
    let spool = reactor.open(&OpenOptions { direct: Direct::Never, ..log(dir, SPOOL, made) })?;
    let reader = reactor.reader(spool)?;
    let mut news = Vec::new();
    let scanned = scan_spool(&reader, Ring::plain(made), known.spool_pos, known.nonce, &mut news);
    reactor.close_file(spool);
    let (found, _) = scanned.map_err(|error| anyhow::anyhow!("{error}"))?;
    if news.iter().any(|(level, _)| *level <= Level::Warn) {
        tracing::warn!(
            "{name} is not resized from {made} to {wanted} bytes while something in it is damaged: start again once \
             status shows no missing writes"
        );
        return Ok(None);
    }
    let entries: Vec<Place> = found.iter().map(|entry| Place { pos: entry.header.pos, bytes: entry.bytes }).collect();
    let Some((positions, _)) = plan(&entries, known.spool_pos, wanted) else {
        let held: u64 = entries.iter().map(|entry| entry.bytes).sum();
        tracing::warn!(
            "{name} stays at {made} bytes: it holds {held} bytes that do not fit the {wanted} that the configuration \
             asks for; set [dr] spool back, or start again once less is in it"
        );
        return Ok(None);
    };
    let copied = dir.join(SPOOL_NEW);
    let options =
        OpenOptions { direct: Direct::Never, preallocate: Preallocate::Reserve, ..log(dir, SPOOL_NEW, wanted) };
    match reactor.open(&options) {
        Ok(file) => reactor.close_file(file),
        Err(fail) => {
            tracing::warn!(
                "{name} stays at {made} bytes: beside it there is no room for one of the {wanted} that the configuration \
                 asks for ({fail})"
            );
            return Ok(None);
        }
    }
    let file = StdFile::options().write(true).open(&copied)?;
    let failed = |error: std::io::Error| IoFail::Other(format!("{}: cannot write: {error}", copied.display()));
    let mut write = |offset: u64, parts: &[bytes::Bytes]| vector::write_all(&file, parts, offset).map_err(failed);
    let to = Log { size: wanted, nonce: resized_nonce(known.nonce, wanted) };
    copy((&reader, Log { size: made, nonce: known.nonce }), to, &entries, known.spool_pos, &positions, &mut write)?;
    file.sync_all()?;
    sync_dir(dir)?;
    Ok(Some(entries.len()))
}
