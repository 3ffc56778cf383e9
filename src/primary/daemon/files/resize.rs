//! The disk FIFO gets the size that the configuration asks for, at a start, with everything in it.
//!
//! The file's length is the size of its log. A copy of the new size is made beside it, durably, and renamed: nonce
//! and first position stay those of the superblock, so the rename alone decides which one counts after a crash.

use std::fs::File as StdFile;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;

use crate::core::machine::{IoFail, ReadAt};
use crate::format::relocate::{Log, copy, places, plan};
use crate::format::superblock::{self, SUPERBLOCK_BYTES};
use crate::io::{Direct, OpenOptions, Preallocate, Reactor, vector};
use crate::primary::fifo;

/// The size the FIFO at `path` is to be opened with: `wanted`, or what it has when it cannot be changed.
pub fn resize(reactor: &mut Reactor, path: &Path, wanted: u64, superblock: &dyn ReadAt) -> anyhow::Result<u64> {
    let copied = path.with_extension("new");
    match std::fs::remove_file(&copied) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", copied.display()));
        }
        _ => {}
    }
    let made = std::fs::metadata(path).map_or(0, |data| data.len());
    let slots = superblock.read_at(0, SUPERBLOCK_BYTES)?;
    let Some(known) = superblock::newest(&slots).ok().flatten().filter(|_| made > 0 && made != wanted) else {
        return Ok(if made == 0 { wanted } else { made });
    };
    let name = path.display();
    let open = OpenOptions { path: path.into(), direct: Direct::Never, ..OpenOptions::default() };
    let file = reactor.open(&open)?;
    let reader = reactor.reader(file);
    reactor.close_file(file);
    let reader = reader?;
    let old = Log { size: made, nonce: known.nonce };
    let mut read = |offset, length| reader.read_at(offset, length);
    let found = fifo::scan(made, known.nonce, known.spool_pos, &mut read)?;
    if let Some(why) = &found.damage {
        tracing::warn!("{name} is damaged {why}: it is resized without what is behind that (I8)");
    }
    let entries = places(&reader, old, known.spool_pos, found.end)?;
    let fits = if wanted == 0 { entries.is_empty().then_some((Vec::new(), 0)) } else { None };
    let Some((positions, _)) = fits.or_else(|| plan(&entries, known.spool_pos, wanted).filter(|_| wanted > 0)) else {
        let held: u64 = entries.iter().map(|entry| entry.bytes).sum();
        tracing::warn!(
            "{name} stays at {made} bytes: it holds {held} bytes that do not fit the {wanted} that the configuration \
             asks for; set primary.fifo disk back, or start again once they are at DR"
        );
        return Ok(made);
    };
    let options = OpenOptions {
        path: copied.clone(),
        create: true,
        size: Some(wanted),
        preallocate: Preallocate::Reserve,
        direct: Direct::Never,
        ..OpenOptions::default()
    };
    match reactor.open(&options) {
        Ok(file) => reactor.close_file(file),
        Err(IoFail::NoSpace(text)) => {
            let _ = std::fs::remove_file(&copied);
            tracing::warn!(
                "{name} stays at {made} bytes: beside it there is no room for one of the {wanted} that the \
                 configuration asks for ({text})"
            );
            return Ok(made);
        }
        Err(fail) => return Err(fail.into()),
    }
    let new = StdFile::options().write(true).open(&copied).with_context(|| format!("opening {}", copied.display()))?;
    let failed = |error: std::io::Error| IoFail::Other(format!("{}: cannot write: {error}", copied.display()));
    let mut write = |offset: u64, parts: &[bytes::Bytes]| vector::write_all(&new, parts, offset).map_err(failed);
    copy((&reader, old), Log { size: wanted, nonce: known.nonce }, &entries, known.spool_pos, &positions, &mut write)?;
    new.sync_all()?;
    std::fs::rename(&copied, path).with_context(|| format!("renaming {}", copied.display()))?;
    tracing::info!("{name} was resized from {made} to {wanted} bytes, with {} entries in it", entries.len());
    Ok(wanted)
}
