//! The files of a primary: opened, locked, made with their space when they are new.

mod resize;
mod volumes;

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cluster::config::{self, Backing, Config};
use crate::cluster::control::Refused;
use crate::cluster::size::human_size;
use crate::core::identity::Holder;
use crate::core::ids::{GroupId, Owner};
use crate::core::machine::{IoFail, ReadAt};
use crate::core::names::{self, FIFO, INTENT_LOG, INTENT_MAP, SUPERBLOCK};
use crate::core::peer::Role;
use crate::format::intent::{LogLayout, MapLayout};
use crate::format::superblock::{self, SUPERBLOCK_BYTES, Superblock};
use crate::io::places::{self, Shared};
use crate::io::{Direct, FileId, FileReader, OpenOptions, Preallocate, Reactor, Still, entropy, make_dir, mark};
use crate::nbd::backing::{Backings, OpenError, Opening};
use crate::nbd::region::uri_connector;
use crate::primary::machine::File;
use crate::primary::recovery::{self, Expect, Files};

/// Where things are and how large.
pub struct Setup<'a> {
    pub dir: &'a Path,
    /// Name of each volume, and the bytes it has, or is to have: what a directory that is there knows better counts if it
    /// is more.
    pub volumes: &'a [(String, u64)],
    /// Of a promoted DR: the owner of its directory.
    pub promoted: Option<Owner>,
    pub backing: &'a [Backing],
    /// Whose certificates a server is shown.
    pub role: Role,
    pub direct: config::Direct,
    pub fifo_disk_bytes: u64,
    pub log_slots: u64,
}

/// The open files.
pub struct Opened {
    pub superblock: FileId,
    pub map: FileId,
    pub log: FileId,
    pub fifo: FileId,
    pub volumes: Vec<FileId>,
    /// Size of the disk FIFO; what the configuration says, unless it holds too much for that.
    pub fifo_bytes: u64,
    /// The volumes that stand on NBD servers.
    pub backings: Backings,
    /// What was known of each volume before it was opened.
    holders: Vec<Holder>,
    /// Files of volumes.
    paths: Vec<PathBuf>,
    /// What status has to say of the files.
    pub notes: Vec<String>,
    readers: [FileReader; 4],
}

impl Opened {
    /// Whether this is one of its files.
    pub fn owns(&self, file: FileId) -> bool {
        [self.superblock, self.map, self.log, self.fifo].contains(&file) || self.volumes.contains(&file)
    }

    /// A file of the machine, by its number in the reactor.
    pub fn file(&self, file: File) -> FileId {
        match file {
            File::Superblock => self.superblock,
            File::IntentMap => self.map,
            File::IntentLog => self.log,
            File::Fifo => self.fifo,
            File::Volume(volume) => self.volumes[usize::from(volume.0)],
        }
    }

    /// Marks the volumes for the directory that was recovered.
    pub fn claim(&mut self, setup: &Setup<'_>, superblock: &mut Superblock) -> anyhow::Result<()> {
        volumes::claim(setup, std::mem::take(&mut self.holders), superblock)?;
        self.paths = setup.backing.iter().filter_map(Backing::path).map(Into::into).collect();
        Ok(())
    }

    /// The role has stopped cleanly.
    pub fn leave(&self) {
        mark::leave(self.paths.iter().map(PathBuf::as_path));
    }

    /// What recovery reads.
    pub fn views(&self) -> Files<'_> {
        let [superblock, map, log, fifo] = &self.readers;
        Files { superblock, map, log, fifo }
    }
}

/// What the directory has to match.
pub fn expect(config: &Config, setup: &Setup<'_>, opened: &Opened) -> anyhow::Result<Expect> {
    Ok(Expect {
        group_name: config.group.name.clone(),
        volumes: setup.volumes.to_vec(),
        boot_id: boot_id(setup.backing)?,
        fifo_disk_bytes: opened.fifo_bytes,
        log_slots: setup.log_slots,
        fresh_group: GroupId(entropy::random()?),
        fresh_owner: Owner(entropy::random()?),
        fresh_nonce: entropy::random()?,
    })
}

/// What a start has to find unchanged, to rely on what was written and not flushed. A page cache lives as long as this
/// machine runs; when the server of a volume was started last, nobody knows: no two starts have it in common.
fn boot_id(backing: &[Backing]) -> anyhow::Result<[u8; 16]> {
    if Backing::remote(backing) > 0 {
        let drawn = u128::from(entropy::random()?) << 64 | u128::from(entropy::random()?);
        return Ok(superblock::drawn_boot(drawn));
    }
    entropy::boot_id().context("reading the boot id")
}

/// Opens everything; the superblock's lock keeps a second process out.
pub fn open(
    reactor: &mut Reactor,
    mut backings: Backings,
    config: &Config,
    setup: &Setup<'_>,
) -> anyhow::Result<Opened> {
    places(config, setup.dir, setup.role, setup.backing)?;
    make_dir(setup.dir)?;
    let path = |name: &str| named(setup.dir, setup.promoted.is_some(), name);
    lost_superblock(&path)?;
    let superblock = kept(path(SUPERBLOCK), SUPERBLOCK_BYTES as u64, Direct::Auto, Preallocate::Written);
    let superblock = reactor.open(&superblock)?;
    // Before anything more is made in what may be the directory of another role or group.
    fits(&config.group.name, setup.dir, setup.volumes, &reactor.reader(superblock)?, &path(INTENT_LOG))?;
    let known = superblock::newest(&reactor.read_sync(superblock, 0, SUPERBLOCK_BYTES)?).ok().flatten();
    let sizes = Sizes::of(known.as_ref(), setup.volumes);
    cut_short(&path(INTENT_MAP), MapLayout::new(&sizes.has).total_bytes())?;
    let map_bytes = MapLayout::new(&sizes.gets).total_bytes();
    let map = reactor.open(&kept(path(INTENT_MAP), map_bytes, Direct::Auto, Preallocate::Written))?;
    let log_bytes = LogLayout { slots: setup.log_slots }.total_bytes();
    let log = reactor.open(&kept(path(INTENT_LOG), log_bytes, Direct::Never, Preallocate::Reserve));
    let log = log.inspect_err(|_| distrust(reactor, superblock))?;
    let fifo_bytes = resize::resize(reactor, &path(FIFO), setup.fifo_disk_bytes, &reactor.reader(superblock)?)?;
    let fifo = open_fifo(reactor, &kept(path(FIFO), fifo_bytes, Direct::Never, Preallocate::Reserve))?;
    let holders = volumes::holders(config, setup, known.as_ref(), &sizes);
    let (mut files, mut notes) = (Vec::new(), Vec::new());
    for (at, ((name, _), backing)) in setup.volumes.iter().zip(setup.backing).enumerate() {
        let opened = match backing {
            Backing::File(path) => {
                volumes::open(reactor, path, &holders[at], (sizes.has[at], sizes.gets[at]), setup.direct, &mut notes)
            }
            Backing::Nbd(uri) => {
                let connector = uri_connector(uri, config.certificates(setup.role).as_ref())?;
                let opening = Opening { volume: name, size: sizes.gets[at], uri, connector };
                files.push(open_remote(reactor, &mut backings, setup, opening)?);
                continue;
            }
        };
        let failed = |error: &anyhow::Error| !error.is::<Refused>();
        files.push(opened.inspect_err(|error| {
            if failed(error) {
                distrust(reactor, superblock)
            }
        })?);
    }
    // Names have to survive a loss of power as contents do.
    std::fs::File::open(setup.dir)
        .and_then(|dir| dir.sync_all())
        .with_context(|| format!("syncing {}", setup.dir.display()))?;
    let readers = [reactor.reader(superblock)?, reactor.reader(map)?, reactor.reader(log)?, reactor.reader(fifo)?];
    Ok(Opened {
        superblock,
        map,
        log,
        fifo,
        volumes: files,
        fifo_bytes,
        backings,
        holders,
        paths: Vec::new(),
        notes,
        readers,
    })
}

/// How a file of the directory is opened, or made with this size.
fn kept(path: PathBuf, size: u64, direct: Direct, preallocate: Preallocate) -> OpenOptions {
    OpenOptions {
        path,
        create: true,
        size: Some(size),
        preallocate,
        direct,
        exclusive_lock: true,
        ..OpenOptions::default()
    }
}

/// Whether a start would take a primary's directory, or that of a promoted DR, as it is; opens nothing for writing, and makes
/// nothing. It is to be asked while the role does not run there.
///
/// # Errors
/// What [`open`] and the recovery after it would say.
pub fn judge(config: &Config, dir: &Path, promoted: bool) -> anyhow::Result<()> {
    let (role, backing) = match promoted {
        true => (Role::Dr, config.dr.as_ref().map(|dr| &dr.backing)),
        false => (Role::Primary, config.primary.as_ref().map(|primary| &primary.backing)),
    };
    places(config, dir, role, backing.map_or(&[], |all| all))?;
    let path = |name: &str| named(dir, promoted, name);
    lost_superblock(&path)?;
    let volumes: Vec<_> = config.volumes.iter().map(|volume| (volume.name.clone(), volume.size)).collect();
    fits(&config.group.name, dir, &volumes, &Still::of(&path(SUPERBLOCK), 0)?, &path(INTENT_LOG))
}

/// Whether recovery would take a directory with this superblock and log.
fn fits(group: &str, dir: &Path, volumes: &[(String, u64)], superblock: &dyn ReadAt, log: &Path) -> anyhow::Result<()> {
    recovery::judge(group, volumes, superblock, &Still::of(log, 0)?, &mut Vec::new())
        .map_err(|error| Refused(error.to_string()))
        .with_context(|| format!("the directory {}", dir.display()))?;
    Ok(())
}

/// Whether what stands under the names of its files can be used, and its volumes are others, before anything is opened or made.
fn places(config: &Config, dir: &Path, role: Role, backing: &[Backing]) -> anyhow::Result<()> {
    places::judge_all(dir, names::opened(role), &names::beside(role))?;
    let paths: Vec<Option<&Path>> = backing.iter().map(Backing::path).collect();
    match places::shared(dir, &names::own_files(role), &paths) {
        None => Ok(()),
        Some(Shared::Kept(at)) => Err(config.shared_place(role, at, None).into()),
        Some(Shared::Volumes(one, at)) => Err(config.shared_place(role, at, Some(one)).into()),
    }
}

/// A file in a directory: a promoted DR keeps those of its new life beside its own.
fn named(dir: &Path, promoted: bool, name: &str) -> PathBuf {
    dir.join(format!("{}{name}", if promoted { names::PROMOTED } else { "" }))
}

/// Sizes of the volumes, bytes.
struct Sizes {
    /// What they have: their stores have as much, or have lost it.
    has: Vec<u64>,
    /// What they have or are about to get: their stores grow to it if they can.
    gets: Vec<u64>,
}

impl Sizes {
    fn of(known: Option<&Superblock>, volumes: &[(String, u64)]) -> Sizes {
        let asked: Vec<u64> = volumes.iter().map(|(_, size)| *size).collect();
        let Some(known) = known.filter(|known| known.volumes.len() == asked.len()) else {
            return Sizes { has: asked.clone(), gets: asked };
        };
        let gets = known.sizes_to_be().into_iter().zip(asked).map(|(has, asked)| asked.max(has)).collect();
        Sizes { has: known.volumes.iter().map(|(_, size)| *size).collect(), gets }
    }
}

/// The disk FIFO with all of its space: a queue that finds the disk full in the middle of an outage ends the role.
fn open_fifo(reactor: &mut Reactor, options: &OpenOptions) -> anyhow::Result<FileId> {
    let wanted = options.size.unwrap_or(0);
    reactor.open(options).map_err(|fail| match fail {
        IoFail::NoSpace(text) => anyhow::anyhow!(
            "{text}. The disk FIFO has all of its {} from the start: make room on this file system, or set disk of \
             [primary] fifo to less",
            human_size(wanted)
        ),
        other => other.into(),
    })
}

/// A directory with everything but its superblock is not a new one.
fn lost_superblock(path: &dyn Fn(&str) -> PathBuf) -> anyhow::Result<()> {
    let there = |name: &str| std::fs::metadata(path(name)).is_ok_and(|found| found.len() > 0);
    let left = [INTENT_MAP, INTENT_LOG, FIFO].into_iter().find(|name| there(name));
    if let (false, Some(left)) = (there(SUPERBLOCK), left) {
        let text = format!(
            "{} is missing or empty, but {} is there: the superblock was lost; restore it, or empty the directory of \
             this primary, its auxiliary and its DR and let everything be copied anew",
            path(SUPERBLOCK).display(),
            path(left).display()
        );
        return Err(Refused(text).into());
    }
    Ok(())
}

/// A map that lost its end is as good as none: what it said there is not known, and grown again with zeroes it would
/// say that nothing was written (I2). Without its header, recovery has everything copied.
fn cut_short(map: &Path, made: u64) -> anyhow::Result<()> {
    let found = std::fs::metadata(map).map_or(0, |data| data.len());
    if found > 0 && found < made {
        let name = map.display();
        tracing::error!("{name} is {found} bytes long, it was made with {made}: truncated; it counts for nothing");
        let file = std::fs::File::options().write(true).open(map);
        file.and_then(|file| file.set_len(0)).with_context(|| format!("emptying {name}"))?;
    }
    Ok(())
}

/// A file cannot be opened, perhaps because what a cache held of it could not be written: the system tells that once,
/// so that it is noted for the start that succeeds.
fn distrust(reactor: &Reactor, file: FileId) {
    let note = || -> anyhow::Result<()> {
        let Some(mut known) = superblock::newest(&reactor.read_sync(file, 0, SUPERBLOCK_BYTES)?)? else {
            return Ok(());
        };
        known.boot_id = superblock::NO_BOOT;
        known.set(superblock::CLEAN, false);
        for (offset, block) in known.in_both_slots() {
            reactor.write_sync(file, offset, &block)?;
        }
        Ok(())
    };
    if let Err(error) = note() {
        tracing::error!("the next start is not told of this failure: {error:#}");
    }
}

fn open_remote(
    reactor: &mut Reactor,
    backings: &mut Backings,
    setup: &Setup<'_>,
    opening: Opening<'_>,
) -> anyhow::Result<FileId> {
    backings.open(reactor, Backing::remote(setup.backing), opening).map_err(|error| match error {
        OpenError::Unfit(text) => Refused(text).into(),
        other => other.into(),
    })
}
