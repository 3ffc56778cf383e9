//! How a file is opened.

use std::path::PathBuf;

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
    /// Space is reserved (fallocate), so that a write never finds the disk full.
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
    /// Refuse when another process has the file open with this flag.
    pub exclusive_lock: bool,
    /// Access is random: no read-ahead, and no large folios that make small overwrites slow.
    pub random: bool,
}
