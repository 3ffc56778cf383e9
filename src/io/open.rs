//! Opening files: making and growing them, locking them, and finding out what they can do.
//!
//! Owns nothing but what it returns. Direct I/O is used where the kernel says which alignment it wants
//! and the size of the file is a multiple of it, so that no read or write of a block ever crosses the end.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::libc;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access, geteuid};

use super::arena::PAGE_BYTES;
use super::extents::seek;
use super::lock::{self, Lock};
use crate::core::machine::IoFail;

/// Whether a file bypasses the page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// Where the file system and the size of the file allow it.
    #[default]
    Auto,
    Never,
}

/// What is done for the space of a file that is made or grown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocate {
    /// Nothing: holes.
    #[default]
    Sparse,
    /// Space is reserved (fallocate), so that a write never finds the disk full; that of a file that is there, too.
    Reserve,
    /// Space is reserved and written with zeroes, so that a durable overwrite changes no metadata.
    Written,
}

/// How a file is opened. `Default`: read and write, must exist, direct where possible.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    pub path: PathBuf,
    /// Make the file when it does not exist (with its missing space as `preallocate` says).
    pub create: bool,
    /// Size the file shall have at least, bytes: a regular file is grown, a block device must be as large.
    pub size: Option<u64>,
    pub preallocate: Preallocate,
    pub direct: Direct,
    pub read_only: bool,
    /// Refuse when another process has the file open with this flag (after a while: `patience`).
    pub exclusive_lock: bool,
    /// Access is random: no read-ahead, and no large folios that make small overwrites slow.
    pub random: bool,
}

/// An open file and what it can do.
#[derive(Debug)]
pub struct Opened {
    pub file: File,
    pub path: PathBuf,
    pub size: u64,
    /// Alignment that direct I/O wants of offsets and lengths; `None`: through the page cache.
    pub direct_align: Option<usize>,
    /// Memory is all the storage there is: nothing to sync.
    pub memory_only: bool,
    pub block_device: bool,
    /// A hole can be punched into it, which is how zeroes are made without writing them.
    pub punches: bool,
    /// The file was made by this call.
    pub created: bool,
    /// Held as long as the file is open.
    pub lock: Option<Lock>,
}

/// Who may look at what is made here, whatever the umask is: the owner writes, and its group reads.
const FILE_MODE: u32 = 0o640;
const DIR_MODE: u32 = 0o750;

/// Whether there is certainly nothing of this name, not even a link; what cannot be looked at may be there.
#[must_use]
pub fn is_absent(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Makes the directory of a role where there is none, and nothing above it: what a file system that is not mounted would hold
/// is not made beside it. If it was made, what there is to say about that.
///
/// # Errors
/// It cannot be made.
pub fn make_dir(dir: &Path) -> Result<Option<String>, IoFail> {
    if judge_dir(dir)? {
        return Ok(None);
    }
    std::fs::DirBuilder::new().mode(DIR_MODE).create(dir).map_err(|error| failed(dir, NO_DIR, &error))?;
    let text = format!(
        "the directory {} was not there, and was made anew: this is a first start. If this role has run here before, \
         stop it, mount the file system that the directory stands on, and start it again",
        dir.display()
    );
    tracing::warn!("{text}");
    Ok(Some(text))
}

const NO_DIR: &str = "cannot make the directory";

/// Whether the directory of a role is there; otherwise it can be made. Makes nothing.
///
/// # Errors
/// It can be neither used nor made.
pub fn judge_dir(dir: &Path) -> Result<bool, IoFail> {
    match std::fs::metadata(dir) {
        Ok(found) if found.is_dir() => return Ok(true),
        Ok(found) => {
            let text = format!(
                "{} is not a directory, but {}: move that away, or name another directory",
                dir.display(),
                kind(&found)
            );
            return Err(IoFail::Other(text));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => not_dangling(dir)?,
        Err(error) => return Err(failed(dir, "cannot examine", &error)),
    }
    match std::fs::metadata(parent(dir)) {
        Ok(found) if found.is_dir() => may_make_in(parent(dir)).map_err(|error| failed(dir, NO_DIR, &error))?,
        Ok(_) => return Err(failed(dir, NO_DIR, &io::Error::from_raw_os_error(libc::ENOTDIR))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(IoFail::Other(format!(
                "{}: what this directory stands in does not exist: mount the file system that it belongs to, or make it \
                 (mkdir -p)",
                dir.display()
            )));
        }
        Err(error) => return Err(failed(dir, NO_DIR, &error)),
    }
    Ok(false)
}

/// Whether the directory of a socket is there, or can be made with all above it. Makes nothing.
///
/// # Errors
/// What [`std::fs::create_dir_all`] would stumble over.
pub fn judge_dirs(dir: &Path) -> io::Result<()> {
    let mut at = dir;
    loop {
        match std::fs::metadata(at) {
            Ok(found) if found.is_dir() && at == dir => return Ok(()),
            Ok(found) if found.is_dir() => return may_make_in(at),
            Ok(_) => return Err(io::Error::other(format!("{} is not a directory", at.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                not_dangling(at).map_err(io::Error::other)?;
                at = parent(at);
            }
            Err(error) => return Err(error),
        }
    }
}

/// What stands at a path that is to be a file or a block device. It is not opened for that: a pipe would be waited for, and a
/// device may do more than be read. `None`: nothing is there, not even a link.
///
/// # Errors
/// Something else is there, or a link that leads nowhere, or it cannot be looked at.
pub fn examine(path: &Path) -> Result<Option<Metadata>, IoFail> {
    match std::fs::metadata(path) {
        Ok(found) if is_store(&found) => Ok(Some(found)),
        Ok(found) => Err(IoFail::Other(format!("{}: {}", path.display(), no_store(&found)))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => not_dangling(path).map(|()| None),
        Err(error) => Err(failed(path, "cannot examine", &error)),
    }
}

/// What [`open`] would say of a path, for reading and writing; opens and makes nothing. `create`: it may be missing.
///
/// # Errors
/// It could be neither opened nor made.
pub fn judge(path: &Path, create: bool) -> Result<Option<Metadata>, IoFail> {
    judge_for(path, create, AccessFlags::R_OK | AccessFlags::W_OK)
}

fn judge_for(path: &Path, create: bool, mode: AccessFlags) -> Result<Option<Metadata>, IoFail> {
    let fail = |error: io::Error| failed(path, "cannot open", &error);
    if let Some(found) = examine(path)? {
        access(path, mode).map_err(|error| fail(error.into()))?;
        return Ok(Some(found));
    }
    if !create {
        return Err(fail(io::ErrorKind::NotFound.into()));
    }
    match std::fs::metadata(parent(path)) {
        Ok(_) => may_make_in(parent(path)).map_err(|error| failed(path, "cannot be made", &error))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(IoFail::Other(format!(
                "{}: its directory {} does not exist; make it, or mount what belongs there",
                path.display(),
                parent(path).display()
            )));
        }
        Err(error) => return Err(failed(path, "cannot be made", &error)),
    }
    Ok(None)
}

/// Opens a file or a block device to look into it, and nothing else: nothing is waited for.
///
/// # Errors
/// As of opening it; or it is something else.
pub fn to_read(path: &Path) -> io::Result<File> {
    let refuse = |found: &Metadata| match is_store(found) {
        true => Ok(()),
        false => Err(io::Error::other(no_store(found))),
    };
    refuse(&std::fs::metadata(path)?)?;
    // Between the two something else may have taken its place.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    refuse(&file.metadata()?)?;
    Ok(file)
}

fn is_store(found: &Metadata) -> bool {
    found.is_file() || found.file_type().is_block_device()
}

fn no_store(found: &Metadata) -> String {
    format!("neither a file nor a block device, but {}", kind(found))
}

fn kind(found: &Metadata) -> &'static str {
    match found.file_type() {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a pipe",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_file() => "a file",
        _ => "a device",
    }
}

/// Nothing is made at the end of a link.
fn not_dangling(path: &Path) -> Result<(), IoFail> {
    match std::fs::read_link(path) {
        Ok(target) => Err(IoFail::Other(format!(
            "{} is a symbolic link to {}, which is not there, and nothing is made at the end of a link: mount what it leads \
             to, or remove the link",
            path.display(),
            target.display()
        ))),
        Err(_) => Ok(()),
    }
}

/// Whether this process may make something in a directory that is there.
pub(super) fn may_make_in(dir: &Path) -> io::Result<()> {
    if !std::fs::metadata(dir)?.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
    }
    access(dir, AccessFlags::W_OK | AccessFlags::X_OK).map_err(io::Error::from)
}

/// The directory that something stands in.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// Opens a file as the options say.
pub fn open(options: &OpenOptions) -> Result<Opened, IoFail> {
    let path = &options.path;
    let fail = |what: &str, error: io::Error| failed(path, what, &error);
    let mode = if options.read_only { AccessFlags::R_OK } else { AccessFlags::R_OK | AccessFlags::W_OK };
    let existed = judge_for(path, options.create && !options.read_only, mode)?.is_some();
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .create(options.create && !options.read_only)
        .truncate(false)
        .mode(FILE_MODE)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)
        .map_err(|error| fail("cannot open", error))?;
    let found = file.metadata().map_err(|error| fail("cannot examine", error))?;
    if !is_store(&found) {
        return Err(IoFail::Other(format!("{}: {}", path.display(), no_store(&found))));
    }
    let block_device = found.file_type().is_block_device();
    let lock = if options.exclusive_lock { Some(Lock::take(path, &file)?) } else { None };
    let mut size = size_of(&file).map_err(|error| fail("cannot examine", error))?;
    if let Some(wanted) = options.size.filter(|wanted| *wanted > size) {
        if block_device || options.read_only {
            let text = format!("{}: has {size} bytes, needs {wanted}", path.display());
            return Err(IoFail::NoSpace(text));
        }
        grow(&file, size, wanted, options.preallocate).map_err(|error| fail("cannot allocate space", error))?;
        size = wanted;
        // Whoever is told of a size relies on it, also after a loss of power.
        file.sync_data().map_err(|error| fail("cannot sync", error))?;
    }
    if existed && !block_device && !options.read_only && options.preallocate != Preallocate::Sparse {
        reserve(&file, size).map_err(|error| fail("cannot allocate space", error))?;
    }
    if existed && !options.read_only {
        // A process that was killed may have left writes on their way, and bytes that can be read and are not durable;
        // recovery trusts what it reads (core::machine), so both are waited for first.
        if lock.is_some() {
            lock::settle(&file).map_err(|error| fail("cannot wait for its writes", error))?;
        }
        file.sync_data().map_err(|error| fail("cannot sync", error))?;
        // Bytes whose writing has failed stay in the page cache, clean and never written: that a process before this one was told
        // is no use here. What is read from now on is what the disk has.
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .map_err(|error| fail("cannot drop its cached pages", error.into()))?;
    }
    if options.random {
        // Advice only: a file system that takes none is as good.
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM);
    }
    let memory_only = nix::sys::statfs::fstatfs(&file)
        .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC && !block_device);
    let direct_align = match options.direct {
        Direct::Auto => go_direct(&file, size),
        Direct::Never => None,
    };
    let punches = !options.read_only && can_punch(&file, size, block_device);
    let (path, created) = (path.clone(), !existed);
    Ok(Opened { file, path, size, direct_align, memory_only, block_device, punches, created, lock })
}

/// Whether holes can be punched: tried behind the end of a file, where there is nothing to lose; asked of the queue of
/// a block device, which has nothing behind its end.
fn can_punch(file: &File, size: u64, block_device: bool) -> bool {
    if !block_device {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let behind = size.next_multiple_of(PAGE_BYTES as u64);
        return fallocate(file, flags, behind.cast_signed(), PAGE_BYTES as i64).is_ok();
    }
    let Ok(data) = file.metadata() else { return false };
    let device = data.rdev();
    let dir = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
    // A partition has the queue of the device that it is a part of.
    let limit = |dir: &str| std::fs::read_to_string(format!("{dir}/queue/write_zeroes_max_bytes"));
    let found = limit(&dir).or_else(|_| limit(&format!("{dir}/.."))).unwrap_or_default();
    found.trim().parse::<u64>().is_ok_and(|most| most > 0)
}

/// Whether any part of a file is not a hole; of a block device nobody knows, so that all of it is none.
pub fn has_storage(opened: &Opened) -> io::Result<bool> {
    Ok(opened.size > 0 && (opened.block_device || seek(&opened.file, 0, libc::SEEK_DATA)?.is_some()))
}

/// Turns an error of the system into one that names the file.
pub fn failed(path: &Path, what: &str, error: &io::Error) -> IoFail {
    let mut text = format!("{}: {what}: {error}", path.display());
    if error.kind() == io::ErrorKind::PermissionDenied {
        text.push_str("; ");
        text.push_str(&denied());
    }
    if error.kind() == io::ErrorKind::ReadOnlyFilesystem {
        text.push_str("; where it is mounted writable, the unit does not let this role write there: a drop-in with ");
        text.push_str("ReadWritePaths= or DeviceAllow= does (README, \"Under systemd\")");
    }
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => IoFail::NoSpace(text),
        _ => IoFail::Other(text),
    }
}

/// As [`failed`], of a range of the file.
pub fn failed_at(path: &Path, what: &str, offset: u64, length: u64, error: &io::Error) -> IoFail {
    failed(path, &format!("{what}, {length} bytes at offset {offset}"), error)
}

/// What to do when permission is denied.
#[must_use]
pub fn denied() -> String {
    let user = nix::unistd::geteuid();
    format!("this process runs as user {user}: give that user access (chown, chmod), or run it as the owner")
}

/// Size of a file or block device, bytes.
fn size_of(file: &File) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

/// Gives an open file at least so many bytes, durably; the size of a block device is looked at again. How many it has now.
/// A file that is direct stays fit for that.
pub fn enlarge(opened: &mut Opened, wanted: u64, preallocate: Preallocate) -> Result<u64, IoFail> {
    let fail = |what: &str, error: io::Error| failed(&opened.path, what, &error);
    let mut size = size_of(&opened.file).map_err(|error| fail("cannot examine", error))?;
    if size < wanted && !opened.block_device {
        let wanted = wanted.next_multiple_of(if opened.direct_align.is_some() { PAGE_BYTES as u64 } else { 1 });
        // Through the page cache, which wants no alignment of what is written.
        let same = format!("/proc/self/fd/{}", opened.file.as_raw_fd());
        let file =
            std::fs::OpenOptions::new().write(true).open(same).map_err(|error| fail("cannot open again", error))?;
        grow(&file, size, wanted, preallocate)
            .and_then(|()| file.sync_all())
            .map_err(|error| fail("cannot allocate space", error))?;
        size = wanted;
    }
    opened.size = opened.size.max(size);
    Ok(size)
}

/// Gives an open file at least so many bytes, with space reserved; durable with the next sync of it.
pub fn extend(opened: &mut Opened, wanted: u64) -> Result<(), IoFail> {
    let fail = |error: io::Error| failed(&opened.path, "cannot allocate space", &error);
    let size = size_of(&opened.file).map_err(fail)?;
    if size < wanted {
        grow(&opened.file, size, wanted, Preallocate::Reserve).map_err(fail)?;
    }
    opened.size = opened.size.max(wanted);
    Ok(())
}

/// Cuts an open file to so many bytes, if it is longer.
pub fn shorten(opened: &mut Opened, bytes: u64) -> Result<(), IoFail> {
    let fail = |error: io::Error| failed(&opened.path, "cannot shorten", &error);
    if size_of(&opened.file).map_err(fail)? > bytes {
        opened.file.set_len(bytes).map_err(fail)?;
        opened.size = bytes;
    }
    Ok(())
}

/// What this user can still use of the file system that `path` stands on, bytes; as many as there can be, where that cannot be
/// told.
#[must_use]
pub fn free_bytes(path: &Path) -> u64 {
    let Ok(found) = statvfs(path) else { return u64::MAX };
    let blocks = if geteuid().is_root() { found.blocks_free() } else { found.blocks_available() };
    blocks * found.fragment_size()
}

fn grow(file: &File, size: u64, wanted: u64, preallocate: Preallocate) -> io::Result<()> {
    file.set_len(wanted)?;
    if preallocate == Preallocate::Sparse {
        return Ok(());
    }
    let (from, length) = (size.cast_signed(), (wanted - size).cast_signed());
    match fallocate(file, FallocateFlags::empty(), from, length) {
        // A file system that reserves nothing is written to instead, or taken as it is.
        Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => {}
        Err(error) => {
            file.set_len(size)?;
            return Err(error.into());
        }
    }
    if preallocate == Preallocate::Written {
        let zeroes = vec![0u8; 1 << 20];
        let mut at = size;
        while at < wanted {
            let here = (wanted - at).min(zeroes.len() as u64) as usize;
            file.write_all_at(&zeroes[..here], at)?;
            at += here as u64;
        }
        file.sync_all()?;
    }
    Ok(())
}

/// Gives a file the space of its holes, if it has any: an earlier version made it without, or it was copied.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    if file.metadata()?.blocks().saturating_mul(512) >= size {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::empty(), 0, size.cast_signed()) {
        Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Switches a file to direct I/O where that works; the alignment it wants.
fn go_direct(file: &File, size: u64) -> Option<usize> {
    let align = direct_align(file)?;
    if align > PAGE_BYTES || !size.is_multiple_of(align as u64) {
        return None;
    }
    let flags = nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_GETFL).ok()?;
    let direct = nix::fcntl::OFlag::from_bits_retain(flags) | nix::fcntl::OFlag::O_DIRECT;
    nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_SETFL(direct)).ok()?;
    Some(align)
}

/// The alignment that direct I/O on a file wants, if the file system offers any.
fn direct_align(file: &File) -> Option<usize> {
    // SAFETY: a statx of zeroes is valid: it holds only integers.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty C string, `found` lives through the call, which only writes into it.
    let status = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &raw mut found)
    };
    if status != 0 || found.stx_mask & libc::STATX_DIOALIGN == 0 || found.stx_dio_offset_align == 0 {
        return None;
    }
    let align = found.stx_dio_offset_align.max(found.stx_dio_mem_align) as usize;
    align.is_power_of_two().then_some(align)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparse_file_that_is_to_have_its_space_gets_it_when_it_is_opened() {
        let path = std::env::temp_dir().join(format!("farshore-sparse-{}", std::process::id()));
        File::create(&path).and_then(|file| file.set_len(4 << 20)).expect("makes");
        let blocks = || std::fs::metadata(&path).expect("there").blocks() * 512;
        let options = OpenOptions { path: path.clone(), size: Some(4 << 20), ..OpenOptions::default() };
        open(&options).expect("opens");
        assert!(blocks() < 4 << 20, "this file system has no holes");
        let reserved = OpenOptions { preallocate: Preallocate::Reserve, ..options };
        open(&reserved).expect("opens");
        assert!(blocks() >= 4 << 20, "{} bytes", blocks());
        let larger = OpenOptions { size: Some(1 << 55), ..reserved };
        let refused = open(&larger).expect_err("no disk has as much");
        assert!(matches!(refused, IoFail::NoSpace(_)), "{refused}");
        let length = std::fs::metadata(&path).expect("there").len();
        assert_eq!(length, 4 << 20, "what cannot be had changes nothing");
        std::fs::remove_file(path).expect("there");
    }
}
