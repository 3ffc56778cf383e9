//! The volumes of a DR site: judged before they are opened, marked once the directory has been recovered.

use std::path::Path;

use anyhow::Context;

use super::{refused, sync_dir};
use crate::cluster::config::{self, Backing, Config, DrConfig};
use crate::cluster::control::Refused;
use crate::core::identity::{Holder, Mark, Part};
use crate::core::ids::Owner;
use crate::core::machine::IoFail;
use crate::core::peer::Role;
use crate::format::superblock::{MARKED, PROMOTED, Superblock};
use crate::io::{Direct, FileId, OpenOptions, Reactor, mark};
use crate::limits::DR_BACKING_KEPT_BYTES_MAX;
use crate::nbd::backing::{Backings, OpenError, Opening};
use crate::nbd::region::uri_connector;

/// Opens them, with the sizes and as the superblock has them. `promotable`: there is a recovery point, and a promotion is to be
/// able to fence the old writer whatever has become of the server of a volume.
pub fn open(
    reactor: &mut Reactor,
    config: &Config,
    dr: &DrConfig,
    sizes: &[u64],
    holders: &[Holder],
    promotable: bool,
) -> anyhow::Result<(Vec<FileId>, Backings, Vec<String>)> {
    let (mut files, mut backings, mut notes) = (Vec::new(), Backings::new(DR_BACKING_KEPT_BYTES_MAX), Vec::new());
    for (((volume, &size), backing), holder) in config.volumes.iter().zip(sizes).zip(&dr.backing).zip(holders) {
        if volume.size != size {
            let (name, says) = (&volume.name, volume.size);
            tracing::info!("volume {name} has {size} bytes here, the configuration says {says}: the order decides");
        }
        let opened = match backing {
            Backing::File(path) => open_volume(reactor, dr, size, path, holder, &mut notes),
            Backing::Nbd(uri) => {
                let connector = uri_connector(uri, config.certificates(Role::Dr).as_ref())?;
                let opening = Opening { volume: &volume.name, size, uri, connector };
                let remote = Backing::remote(&dr.backing);
                let opened = match promotable {
                    true => backings.open_or_wait(reactor, remote, opening),
                    false => backings.open(reactor, remote, opening),
                };
                opened.map_err(|error| match error {
                    OpenError::Unfit(text) => Refused(text).into(),
                    other => other.into(),
                })
            }
        };
        files.push(opened.with_context(|| format!("volume {:?}", volume.name))?);
    }
    for path in dr.backing.iter().filter_map(Backing::path) {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync_dir(parent)?;
    }
    Ok((files, backings, notes))
}

/// What this directory knows of its volumes, by its superblock if it has one.
pub fn holders(config: &Config, dr: &DrConfig, known: Option<&Superblock>, owner: Owner) -> Vec<Holder> {
    let least = known.map(Superblock::least_bytes).unwrap_or_default();
    let promoted = known.is_some_and(|known| known.has(PROMOTED));
    let sizes = known.map(|known| &known.volumes).filter(|volumes| volumes.len() == config.volumes.len());
    let one = |(at, volume): (usize, &config::VolumeConfig)| Holder {
        mark: Mark {
            part: if promoted { Part::Promoted } else { Part::Dr },
            owner,
            group: config.group.name.clone(),
            volume: volume.name.clone(),
        },
        dir: dr.dir.display().to_string(),
        empty: false,
        begun: known.is_some_and(Superblock::has_begun),
        least: least.get(at).copied().unwrap_or(0),
        wanted: sizes.and_then(|sizes| Some(sizes.get(at)?.1)).unwrap_or(volume.size),
        marked: known.is_some_and(|known| known.has(MARKED)),
    };
    config.volumes.iter().enumerate().map(one).collect()
}

/// Before anything is made in a directory that has nothing in it: whether somebody has left a copy there.
pub fn spare(config: &Config, dr: &DrConfig) -> anyhow::Result<()> {
    for ((volume, backing), holder) in config.volumes.iter().zip(&dr.backing).zip(holders(config, dr, None, Owner(0))) {
        if let Some(path) = backing.path() {
            let judged = mark::judge(path, &Holder { empty: true, ..holder })?.map_err(Refused);
            judged.with_context(|| format!("volume {:?}", volume.name))?;
        }
    }
    Ok(())
}

/// Marks those that are files; whether any of them bears a mark.
pub fn claim(dr: &DrConfig, holders: &[Holder]) -> anyhow::Result<bool> {
    let mut any = false;
    for (backing, holder) in dr.backing.iter().zip(holders) {
        if let Some(path) = backing.path() {
            any |= mark::claim(path, holder)?.map_err(Refused)?;
        }
    }
    Ok(any)
}

fn open_volume(
    reactor: &mut Reactor,
    dr: &DrConfig,
    size: u64,
    path: &Path,
    holder: &Holder,
    notes: &mut Vec<String>,
) -> anyhow::Result<FileId> {
    let verdict = mark::judge(path, holder)?.map_err(Refused)?;
    verdict.notes().for_each(|note| tracing::warn!("{note}"));
    mark::tell_written(path, notes);
    let options = OpenOptions {
        path: path.to_path_buf(),
        create: verdict.make,
        size: Some(size),
        direct: if dr.direct == config::Direct::Never { Direct::Never } else { Direct::Auto },
        exclusive_lock: true,
        random: true,
        ..OpenOptions::default()
    };
    reactor.open(&options).map_err(|fail| match fail {
        IoFail::NoSpace(text) if !path.is_file() => refused(format!(
            "{text}: grow what it stands on by its own means (lvextend, …), or bring the right device back"
        )),
        other => other.into(),
    })
}
