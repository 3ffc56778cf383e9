//! The files of a DR directory: made, locked, recovered; and the loss report beside them.
//!
//! | name | what | how |
//! |---|---|---|
//! | `superblock` | two slots; locked: one process a directory | direct, written at the start |
//! | `journal` | order records | direct, written at the start: an append changes no metadata |
//! | `spool` | payloads and chunks | through the page cache, grouped syncs; space reserved |
//! | volumes | one file or block device each, locked; or an export of an NBD server | direct where possible |
//! | `loss-report.json` | the report of a promotion, with a checksum | replaced as a whole |
//! | `loss-report.json.damaged` | one that was damaged, kept to be looked at (`.damaged.2`, …) | renamed |
//!
//! Logs keep the size they were made with, since their positions are taken modulo it; the spool is copied to a file
//! of another size when the configuration asks for one ([`resize`]), and longer for a while where a batch needs it
//! ([`growth`]).

mod growth;
mod resize;
mod volumes;

use std::fs::File as StdFile;
use std::io::{BufWriter, ErrorKind, IntoInnerError};
use std::path::{Path, PathBuf};

use anyhow::Context;
use bytes::Bytes;

use crate::cluster::config::{Backing, Config, DrConfig};
use crate::cluster::control::Refused;
use crate::core::ids::{GroupId, Owner, Volume};
use crate::core::machine::{IoFail, ReadAt as _};
use crate::core::names::{self, JOURNAL, REPORT, REPORT_DAMAGED, REPORT_NEW, SPOOL, SUPERBLOCK};
use crate::core::peer::Role;
use crate::core::ranges::VolumeRanges;
use crate::dr::api::Lacking;
use crate::dr::machine::{File, Options};
use crate::dr::promote::LossReport;
use crate::dr::recovery::{self, Found, Recovered, recover};
use crate::dr::stored;
use crate::format::superblock::{self, MARKED, PROMOTED, SUPERBLOCK_BYTES, SYNCED, Superblock};
use crate::io::open::to_read;
use crate::io::places::{self, Shared};
use crate::io::{FileId, OpenOptions, Preallocate, Reactor, Still, entropy, is_absent, make_dir, mark};
use crate::limits::{DR_CACHE_BESIDE_SERVERS_BYTES_MAX, DR_CACHE_BYTES_MAX};
use crate::nbd::backing::Backings;

/// What is written of it at once.
const REPORT_BUFFER_BYTES: usize = 256 << 10;
/// Logs are made of whole pieces of this size.
const PIECE_BYTES: u64 = 1 << 20;

/// The open files of a DR site.
pub struct Files {
    dir: PathBuf,
    superblock: FileId,
    journal: FileId,
    spool: FileId,
    volumes: Vec<FileId>,
    names: Vec<String>,
    /// Those of them that stand on NBD servers.
    pub backings: Backings,
    /// As the superblock had them at the start; a fresh directory has no group yet.
    pub group: GroupId,
    pub owner: Owner,
    /// The report of an earlier promotion.
    pub report: Option<LossReport>,
    /// Why there is none although its file is there: a site that was promoted serves without it.
    report_damaged: Option<String>,
    /// Files of volumes.
    paths: Vec<PathBuf>,
    /// What status has to say of the files.
    pub notes: Vec<String>,
    /// When they were opened, nanoseconds since the Unix epoch.
    pub opened_ns: u64,
    /// The directory was made by this start.
    pub made: Option<String>,
    /// How far it grows, the file system says.
    spool_grows_by_itself: bool,
    /// Bytes that the spool was made with.
    spool_bytes: u64,
}

/// Opens everything and recovers it.
///
/// # Errors
/// What is wrong with the directory or a volume; [`Refused`] when it would not be safe to use them.
pub fn open(reactor: &mut Reactor, config: &Config) -> anyhow::Result<(Files, Recovered, Options)> {
    let (dr, _) = config.need_dr()?;
    let dir = &dr.dir;
    places(config, dr)?;
    let made = make_dir(dir)?;
    if is_absent(&dir.join(SUPERBLOCK)) {
        volumes::spare(config, dr)?;
    }
    let superblock = reactor.open(&log(dir, SUPERBLOCK, SUPERBLOCK_BYTES as u64))?;
    let slots = reactor.read_sync(superblock, 0, SUPERBLOCK_BYTES)?;
    check_logs(dir, &slots)?;
    growth::cut(dir, &slots)?;
    let journal = open_log(reactor, log(dir, JOURNAL, dr.journal))?;
    resize::resize(reactor, dir, dr.spool.next_multiple_of(PIECE_BYTES), &slots, superblock)?;
    let slots = reactor.read_sync(superblock, 0, SUPERBLOCK_BYTES)?;
    let known = superblock::newest(&slots).ok().flatten();
    if let Some(known) = &known {
        growth::check_spool(&dir.join(SPOOL), known)?;
    }
    let spool = growth::open(reactor, dir, dr.spool, known.as_ref())?;
    // What the directory knows counts; the configuration may lag behind a resize, or lead.
    let sizes = match known.as_ref().filter(|known| known.volumes.len() == config.volumes.len()) {
        Some(known) => known.volumes.iter().map(|(_, size)| *size).collect(),
        None => config.volumes.iter().map(|volume| volume.size).collect::<Vec<_>>(),
    };
    let owner = match &known {
        Some(known) => known.owner,
        None => Owner(entropy::random()?),
    };
    let holders = volumes::holders(config, dr, known.as_ref(), owner);
    let promotable = known.as_ref().is_some_and(|known| known.has(SYNCED) && !known.has(PROMOTED));
    let (files, backings, notes) = volumes::open(reactor, config, dr, &sizes, &holders, promotable)?;
    // What stands on a server is not looked through: its holes are made when the first copy brings them.
    let blank = backings.is_empty() && is_blank(reactor, &files)?;
    // The names have to survive a loss of power as what is in the files does.
    sync_dir(dir)?;
    let spool_bytes = spool_made(known.as_ref(), reactor.file_size(spool));
    let options = options(config, (reactor.file_size(journal), spool_bytes), &backings, owner)?;
    let (report, report_damaged) = match load_report(dir) {
        Ok(report) => (report, None),
        Err(error) => {
            let text = format!("{error:#}");
            tracing::error!("the loss report cannot be used, and is left as it is: {text}");
            (None, Some(text))
        }
    };
    let found = Found {
        superblock: &slots,
        journal: &reactor.reader(journal)?,
        spool: &reactor.reader(spool)?,
        blank,
        report: report.clone(),
    };
    let mut recovered = recover(found, &options)
        .map_err(|error| Refused(error.to_string()))
        .with_context(|| format!("the directory {}", dir.display()))?;
    // Only now is it known whose they are to be.
    if volumes::claim(dr, &holders)? {
        recovered.superblock.set(MARKED, true);
    }
    let group = known.map_or(GroupId(0), |known| known.group);
    let names = config.volumes.iter().map(|volume| volume.name.clone()).collect();
    let files = Files {
        dir: dir.clone(),
        superblock,
        journal,
        spool,
        volumes: files,
        names,
        backings,
        group,
        owner,
        report,
        report_damaged,
        paths: dr.backing.iter().filter_map(Backing::path).map(Into::into).collect(),
        notes,
        opened_ns: reactor.now().wall_ns,
        made,
        spool_grows_by_itself: dr.spool_max.is_none(),
        spool_bytes,
    };
    Ok((files, recovered, options))
}

/// Whether a start would take the directory as it is; opens nothing for writing, and makes nothing. It is to be asked while no
/// DR runs there.
///
/// # Errors
/// What [`open`] would say.
pub fn judge(config: &Config) -> anyhow::Result<()> {
    let (dr, _) = config.need_dr()?;
    places(config, dr)?;
    let Seen { slots, journal, options, .. } = look(config)?;
    recovery::judge(&slots, &journal, &options)
        .map_err(|error| Refused(error.to_string()))
        .with_context(|| format!("the directory {}", dr.dir.display()))?;
    Ok(())
}

/// What a start would write to the volumes by itself, of a directory that [`judge`] has nothing against.
///
/// # Errors
/// It cannot be told.
pub fn to_apply(config: &Config) -> anyhow::Result<VolumeRanges> {
    let Seen { slots, journal, spool, options } = look(config)?;
    let found = Found { superblock: &slots, journal: &journal, spool: &spool, blank: false, report: None };
    Ok(recover(found, &options)?.to_apply())
}

/// Whether what stands under the names of its files can be used, and its volumes are others, before anything is opened or made.
fn places(config: &Config, dr: &DrConfig) -> anyhow::Result<()> {
    places::judge_all(&dr.dir, names::opened(Role::Dr), &names::beside(Role::Dr))?;
    let paths: Vec<Option<&Path>> = dr.backing.iter().map(Backing::path).collect();
    match places::shared(&dr.dir, &names::own_files(Role::Dr), &paths) {
        None => Ok(()),
        Some(Shared::Kept(at)) => Err(config.shared_place(Role::Dr, at, None).into()),
        Some(Shared::Volumes(one, at)) => Err(config.shared_place(Role::Dr, at, Some(one)).into()),
    }
}

/// A directory that no DR runs in, read and left as it is.
struct Seen {
    slots: Bytes,
    journal: Still,
    spool: Still,
    options: Options,
}

fn look(config: &Config) -> anyhow::Result<Seen> {
    let (dr, _) = config.need_dr()?;
    let slots = Still::of(&dr.dir.join(SUPERBLOCK), SUPERBLOCK_BYTES as u64)?.read_at(0, SUPERBLOCK_BYTES)?;
    check_logs(&dr.dir, &slots)?;
    let known = superblock::newest(&slots).ok().flatten();
    let as_made = |path: &Path, asked: u64| match std::fs::metadata(path).map_or(0, |data| data.len()) {
        0 => asked.next_multiple_of(PIECE_BYTES),
        made => made,
    };
    let (journal, spool) = (dr.dir.join(JOURNAL), resize::stands(&dr.dir, known.as_ref()));
    let length = as_made(&spool, dr.spool);
    let logs = (as_made(&journal, dr.journal), spool_made(known.as_ref(), length));
    let options = options(config, logs, &Backings::new(0), Owner::default())?;
    Ok(Seen { slots, journal: Still::of(&journal, logs.0)?, spool: Still::of(&spool, length)?, options })
}

/// Bytes that the spool was made with: those of its file, where nothing says so.
fn spool_made(known: Option<&Superblock>, length: u64) -> u64 {
    known.map(|known| known.spool().size).filter(|made| *made > 0).unwrap_or(length)
}

fn options(config: &Config, logs: (u64, u64), backings: &Backings, owner: Owner) -> anyhow::Result<Options> {
    let (journal_bytes, spool_bytes) = logs;
    let (dr, _) = config.need_dr()?;
    let volumes = config.volumes.iter().map(|volume| volume.size).sum();
    Ok(Options {
        group_name: config.group.name.clone(),
        volumes: config.volumes.iter().map(|volume| (volume.name.clone(), volume.size)).collect(),
        journal_bytes,
        table_slots: config.aux.as_ref().map_or(0, |aux| aux.slots),
        spool_bytes,
        spool_bytes_max: dr.spool_max.unwrap_or_else(|| growth::limit(&dr.dir, spool_bytes, volumes)),
        cache_bytes: if backings.is_empty() { DR_CACHE_BYTES_MAX } else { DR_CACHE_BESIDE_SERVERS_BYTES_MAX },
        protect: config.group.protect,
        ack: config.group.ack,
        require: config.group.require,
        auxiliary: true,
        owner,
        nonce: entropy::random()?,
    })
}

impl Files {
    pub fn id(&self, file: File) -> FileId {
        match file {
            File::Superblock => self.superblock,
            File::Journal => self.journal,
            File::Spool => self.spool,
            File::Volume(Volume(index)) => self.volumes[usize::from(index)],
        }
    }

    /// Has the file of the spool grow to `bytes`; an error says why it does not.
    pub fn extend_spool(&self, reactor: &mut Reactor, bytes: u64) -> Result<(), String> {
        let beside = if self.spool_grows_by_itself { bytes.saturating_sub(self.spool_bytes) } else { 0 };
        growth::extend(reactor, self.spool, bytes, beside)
    }

    /// Cuts the file of the spool to `bytes`, if it is longer.
    pub fn cut_spool(&self, reactor: &mut Reactor, bytes: u64) {
        if let Err(fail) = reactor.shorten(self.spool, bytes) {
            tracing::warn!("{fail}: what the spool had grown by is given back at another start");
        }
    }

    /// Has the store of a volume grow; an error says which is too small, and what to do.
    pub fn enlarge(&mut self, reactor: &mut Reactor, volume: Volume, size: u64) -> Result<u64, Lacking> {
        let file = self.volumes[usize::from(volume.0)];
        let grown = self.backings.enlarge(reactor, file, size);
        let name = &self.names[usize::from(volume.0)];
        grown.map_err(|short| Lacking {
            has: short.has,
            text: format!("volume {name} is too small here: {}", short.text),
        })
    }

    /// What is said of a promoted site whose report is not there, or is not what was stored.
    pub fn report_lost(&self) -> String {
        let path = self.dir.join(REPORT);
        let path = path.display();
        match &self.report_damaged {
            Some(why) => format!(
                "the loss report of the promotion is damaged: {why}. The file is left as it is, to be looked at; no list that \
                 it gives can be relied on. Use what `promote` or `loss` printed, or put {path} back from a backup and start \
                 again"
            ),
            None => format!(
                "the loss report of the promotion is missing: {path} was removed or lost. What was lost cannot be told any \
                 more, unless somebody kept what `promote` or `loss` printed: put the file back from a backup and start again"
            ),
        }
    }

    /// What is wrong with the file of the report, if there is one that cannot be used.
    pub fn report_damaged(&self) -> Option<&str> {
        self.report_damaged.as_deref()
    }

    /// Makes a report durable under its name: either the whole new one is there afterwards or what was.
    pub fn store_report(&self, report: &LossReport) -> Result<(), IoFail> {
        let store = || -> std::io::Result<()> {
            let (path, fresh) = (self.dir.join(REPORT), self.dir.join(REPORT_NEW));
            if self.report_damaged.is_some() {
                keep_damaged(&self.dir)?;
            }
            let mut file = BufWriter::with_capacity(REPORT_BUFFER_BYTES, StdFile::create(&fresh)?);
            stored::write(report, &mut file)?;
            file.into_inner().map_err(IntoInnerError::into_error)?.sync_all()?;
            std::fs::rename(&fresh, &path)?;
            StdFile::open(&self.dir)?.sync_all()
        };
        store().map_err(|error| {
            let text = format!("{}: cannot store the loss report: {error}", self.dir.join(REPORT).display());
            if error.kind() == ErrorKind::StorageFull { IoFail::NoSpace(text) } else { IoFail::Other(text) }
        })
    }

    /// The role has stopped cleanly.
    pub fn leave(&self) {
        mark::leave(self.paths.iter().map(PathBuf::as_path));
    }

    /// Closes every file; locks are given up. What is connected stays so.
    pub fn close(self, reactor: &mut Reactor) -> Backings {
        let local = self.volumes.into_iter().filter(|file| !Backings::owns(*file));
        for file in [self.superblock, self.journal, self.spool].into_iter().chain(local) {
            reactor.close_file(file);
        }
        self.backings
    }
}

fn log(dir: &Path, name: &str, bytes: u64) -> OpenOptions {
    OpenOptions {
        path: dir.join(name),
        create: true,
        size: Some(bytes),
        preallocate: Preallocate::Written,
        exclusive_lock: true,
        ..OpenOptions::default()
    }
}

/// Both logs of a directory whose superblock says that it has been used.
fn check_logs(dir: &Path, slots: &[u8]) -> anyhow::Result<()> {
    let Some(known) = superblock::newest(slots).ok().flatten() else { return Ok(()) };
    check_log(&dir.join(JOURNAL), known.journal_bytes)?;
    growth::check_spool(&resize::stands(dir, Some(&known)), &known)
}

/// A directory with a superblock has its logs, as long as they were made: a log that is made anew or that lost
/// its end holds less than was promised of it, and nothing in it would say so (I8).
fn check_log(path: &Path, made: u64) -> anyhow::Result<()> {
    let found = match std::fs::metadata(path) {
        Ok(data) if made > 0 && data.len() == made => return Ok(()),
        Ok(data) if made == 0 && data.len() > 0 && data.len().is_multiple_of(PIECE_BYTES) => return Ok(()),
        Ok(data) => {
            let how = if data.len() < made { "truncated" } else { "replaced or changed" };
            format!("is {} bytes long, it was made with {made}: it was {how}", data.len())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => "is missing, the superblock beside it is there".into(),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    anyhow::bail!(Refused(format!(
        "{} {found}. What was acknowledged here may be lost with it, so this DR does not start. Put the file back; or, \
         if the primary is alive, empty this directory and the volumes: a new first copy is made",
        path.display()
    )))
}

/// Opens a log as large as it was made, whatever the configuration says now.
fn open_log(reactor: &mut Reactor, mut options: OpenOptions) -> anyhow::Result<FileId> {
    let wanted = options.size.unwrap_or(0).next_multiple_of(PIECE_BYTES);
    let made = std::fs::metadata(&options.path).map_or(0, |data| data.len());
    if made > 0 && made != wanted {
        let name = options.path.display();
        tracing::warn!("{name} has {made} bytes, the configuration asks for {wanted}: it stays as large as it is");
    }
    options.size = Some(if made > 0 { made } else { wanted });
    Ok(reactor.open(&options)?)
}

fn refused(text: String) -> anyhow::Error {
    Refused(text).into()
}

/// Whether no volume has ever been written to.
fn is_blank(reactor: &Reactor, volumes: &[FileId]) -> anyhow::Result<bool> {
    for volume in volumes {
        if !reactor.file_was_created(*volume) && reactor.has_storage(*volume)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn load_report(dir: &Path) -> anyhow::Result<Option<LossReport>> {
    let path = dir.join(REPORT);
    let mut file = match to_read(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let bytes = file.metadata().with_context(|| path.display().to_string())?.len();
    Ok(Some(stored::read(&mut file, bytes).with_context(|| path.display().to_string())?))
}

/// Puts a damaged report aside under a name that nothing has, so that a new one does not take its place.
fn keep_damaged(dir: &Path) -> std::io::Result<()> {
    let names =
        std::iter::once(REPORT_DAMAGED.to_owned()).chain((2u64..).map(|number| format!("{REPORT_DAMAGED}.{number}")));
    for aside in names.map(|name| dir.join(name)) {
        if aside.try_exists()? {
            continue;
        }
        return match std::fs::rename(dir.join(REPORT), &aside) {
            // A promotion that failed after this is asked for again.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Ok(()) => {
                tracing::warn!("the damaged loss report of before is kept as {}", aside.display());
                Ok(())
            }
            failed => failed,
        };
    }
    unreachable!("there is always a next number")
}

fn sync_dir(dir: &Path) -> anyhow::Result<()> {
    StdFile::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("syncing {}", dir.display()))
}
