//! Locks that end with their process.
//!
//! The kernel takes a ring apart some time after its process has ended, for seconds when it has much to do, and until
//! then every file that the ring knows stays open. A lock on one of these would outlive its process, and whoever is
//! started again would be told that the files are in use. So a lock stands on an opening of its own, which the ring
//! never sees: it is free in the moment in which the process is gone.
//!
//! That moment is too early for one thing: direct writes that the dead process had begun may still be on their way.
//! For a regular file, [`settle`] waits for them. A block device has no such wait, so there the lock stands on the
//! opening that the ring uses, and is free when the ring is.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::unistd::Whence;

use super::open::failed;
use super::patience::{Obstacle, has_ended, patiently};
use crate::core::machine::IoFail;

/// A lock on a file; given up when dropped, at the latest when the process ends.
#[derive(Debug)]
pub struct Lock {
    /// `None`: it stands on the descriptor of the data.
    own: Option<File>,
}

impl Lock {
    /// Locks an open file, waiting for a process that has just ended.
    pub fn take(path: &Path, file: &File) -> Result<Lock, IoFail> {
        let fail = |what: &str, error: io::Error| failed(path, what, &error);
        let data = file.metadata().map_err(|error| fail("cannot examine", error))?;
        let own = match data.file_type().is_block_device() {
            true => None,
            false => Some(open_again(path, &data).map_err(|error| fail("cannot open for its lock", error))?),
        };
        let locked = own.as_ref().unwrap_or(file);
        let held_by = || match holder(&data) {
            Some(pid) if pid == std::process::id() => "this process, which opens it twice".to_owned(),
            Some(pid) => format!("another process, {}", named(pid)),
            None => "another process".to_owned(),
        };
        let attempt = || match locked.try_lock().map_err(io::Error::from) {
            // Waiting for oneself would never end.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && holder(&data) == Some(std::process::id()) => {
                Err(io::Error::other(format!("in use by {}", held_by())))
            }
            other => other,
        };
        let obstacle = || Obstacle {
            text: format!("{} is in use by {}", path.display(), held_by()),
            ended: holder(&data).is_some_and(has_ended),
        };
        match patiently(io::ErrorKind::WouldBlock, obstacle, attempt) {
            Ok(()) => Ok(Lock { own }),
            Err(late) if late.error.kind() == io::ErrorKind::WouldBlock => {
                let (shown, seconds) = (path.display(), late.seconds.max(1));
                Err(IoFail::Other(format!(
                    "{shown}: in use by {}, for all of {seconds} seconds; only one process at a time may use it: stop that \
                     one first, or name another place in the configuration",
                    held_by()
                )))
            }
            Err(late) => Err(fail("cannot lock", late.error)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(own) = &self.own {
            // Closing it says the same.
            let _ = own.unlock();
        }
    }
}

/// Waits until no direct write of a process that has ended is on its way to a regular file any more: file systems wait
/// for them before they give a file more space, be it space that it has.
pub fn settle(file: &File) -> io::Result<()> {
    if !file.metadata()?.is_file() {
        return Ok(());
    }
    // Where there is data nothing is added; a file without any gets its first block, empty.
    let first = nix::unistd::lseek(file, 0, Whence::SeekData).unwrap_or(0);
    match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, first, 1) {
        // What was to be waited for was waited for before space was looked for; elsewhere there is none to wait for.
        Ok(()) | Err(Errno::ENOSPC | Errno::EDQUOT | Errno::EOPNOTSUPP | Errno::EFBIG) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Opens the same file a second time.
fn open_again(path: &Path, known: &std::fs::Metadata) -> io::Result<File> {
    // Writable, since a network file system takes an exclusive lock from nobody else.
    let file = File::options().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(path)?;
    let found = file.metadata()?;
    if (found.dev(), found.ino()) != (known.dev(), known.ino()) {
        return Err(io::Error::other("it was replaced by another file in this very moment"));
    }
    Ok(file)
}

/// The process that holds a lock on a file, as far as the kernel tells.
fn holder(file: &std::fs::Metadata) -> Option<u32> {
    let device = file.dev();
    let place = format!("{:02x}:{:02x}:{}", libc::major(device), libc::minor(device), file.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    holder_in(&locks, &place)
}

/// `1: FLOCK  ADVISORY  WRITE 4711 fe:00:131075 0 EOF`; who only waits has an arrow before the kind.
fn holder_in(locks: &str, place: &str) -> Option<u32> {
    let held = locks.lines().map(|line| line.split_whitespace().collect::<Vec<&str>>());
    let mut held = held.filter(|words| words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&place));
    held.find_map(|words| words[4].parse().ok())
}

/// A process as a person looks for it.
pub(super) fn named(pid: u32) -> String {
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("pid {pid} ({})", name.trim()),
        Err(_) => format!("pid {pid}, which has ended"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found_by_its_file() {
        let locks = "1: FLOCK  ADVISORY  WRITE 17 fe:00:5 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 18 fe:00:6 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 19 fe:00:6 0 EOF\n3: FLOCK  ADVISORY  WRITE 20 fe:00:6 0 EOF\n";
        assert_eq!(holder_in(locks, "fe:00:6"), Some(20));
        assert_eq!(holder_in(locks, "fe:00:7"), None);
    }

    #[test]
    fn a_lock_ends_with_its_owner_though_the_data_stays_open() {
        let path = std::env::temp_dir().join(format!("farshore-lock-{}", std::process::id()));
        let data = File::create(&path).expect("a file");
        let lock = Lock::take(&path, &data).expect("free");
        let second = Lock::take(&path, &data).expect_err("taken").to_string();
        assert!(second.contains("opens it twice"), "{second}");
        drop(lock);
        drop(Lock::take(&path, &data).expect("free again, with `data` still open"));
        settle(&data).expect("a regular file");
        std::fs::remove_file(path).expect("there");
    }
}
