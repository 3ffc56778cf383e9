//! The volumes of a primary: judged before they are opened, marked once the directory has been recovered.

use std::path::Path;

use anyhow::Context;

use super::{Setup, Sizes};
use crate::cluster::config::{self, Config};
use crate::cluster::control::Refused;
use crate::core::identity::{Holder, Mark, Part, too_small};
use crate::core::machine::IoFail;
use crate::format::superblock::{MARKED, Superblock};
use crate::io::{Direct, FileId, OpenOptions, Reactor, mark};

/// What the directory knows of its volumes: by its superblock, and a promoted DR by what it was before.
pub(super) fn holders(config: &Config, setup: &Setup<'_>, known: Option<&Superblock>, sizes: &Sizes) -> Vec<Holder> {
    let promoted = setup.promoted.is_some();
    let one = |((name, _), least): (&(String, u64), &u64)| Holder {
        mark: Mark {
            part: if promoted { Part::Promoted } else { Part::Primary },
            owner: setup.promoted.or(known.map(|known| known.owner)).unwrap_or_default(),
            group: config.group.name.clone(),
            volume: name.clone(),
        },
        dir: setup.dir.display().to_string(),
        // Of a primary it makes no difference.
        empty: false,
        begun: promoted || known.is_some(),
        least: *least,
        wanted: *least,
        marked: known.is_some_and(|known| known.has(MARKED)),
    };
    setup.volumes.iter().zip(&sizes.has).map(one).collect()
}

/// Marks those that are files, for the directory that was recovered, which notes it.
pub fn claim(setup: &Setup<'_>, holders: Vec<Holder>, superblock: &mut Superblock) -> anyhow::Result<()> {
    for (backing, mut holder) in setup.backing.iter().zip(holders) {
        let Some(path) = backing.path() else { continue };
        holder.mark.owner = superblock.owner;
        if mark::claim(path, &holder)?.map_err(Refused)? {
            superblock.set(MARKED, true);
        }
    }
    Ok(())
}

/// Opens a volume that has so many bytes, and is to get so many.
pub(super) fn open(
    reactor: &mut Reactor,
    path: &Path,
    holder: &Holder,
    (has, gets): (u64, u64),
    direct: config::Direct,
    notes: &mut Vec<String>,
) -> anyhow::Result<FileId> {
    let verdict = mark::judge(path, holder)?.map_err(Refused)?;
    verdict.notes().for_each(|note| tracing::warn!("{note}"));
    mark::tell_written(path, notes);
    let direct = match direct {
        config::Direct::Auto => Direct::Auto,
        config::Direct::Never => Direct::Never,
    };
    let options = OpenOptions {
        path: path.to_path_buf(),
        create: verdict.make,
        size: None,
        direct,
        exclusive_lock: true,
        random: true,
        ..OpenOptions::default()
    };
    let file = reactor.open(&options)?;
    let found = reactor.file_size(file);
    let fresh = verdict.make && (reactor.file_was_created(file) || found == 0);
    if found >= gets && !fresh {
        return Ok(file);
    }
    let shown = path.display();
    if found < has && !fresh {
        return Err(Refused(too_small(&shown.to_string(), found, has)).into());
    }
    reactor.close_file(file);
    let opened = reactor.open(&OpenOptions { size: Some(gets), ..options }).map_err(|fail| match fail {
        IoFail::NoSpace(text) if !fresh => {
            let text = format!(
                "{text}: the volume is to grow from {has} to {gets} bytes (its size in the configuration, or a resize that \
                 was under way). Grow what it stands on first, by its own means (lvextend, …), or put the size back"
            );
            Refused(text).into()
        }
        other => anyhow::Error::from(other),
    })?;
    // Its name is as durable as the superblock that will rely on it.
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = std::fs::File::open(parent).and_then(|dir| dir.sync_all());
    synced.with_context(|| format!("syncing {}", parent.display()))?;
    Ok(opened)
}
