//! From the bytes of a DR directory to a machine that can start (I8).

use crate::core::machine::ReadAt;
use crate::dr::api::Options;
use crate::dr::promote::LossReport;

/// What the shell found in the directory.
pub struct Found<'a> {
    /// The first 8192 bytes of the superblock file; empty or all zeroes in a fresh directory.
    pub superblock: &'a [u8],
    pub journal: &'a dyn ReadAt,
    pub spool: &'a dyn ReadAt,
    /// Whether every volume file was just created or has no allocated range.
    pub blank: bool,
    /// The stored loss report of a promotion, if there is one.
    pub report: Option<LossReport>,
}

/// Why a directory cannot be used. The text says what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RecoverError(pub String);

/// Everything a machine starts from. Only [`recover`] makes one.
pub struct Recovered {
    _private: (),
}

/// Reads superblock, journal and spool; writes nothing.
pub fn recover(_found: Found<'_>, _options: &Options) -> Result<Recovered, RecoverError> {
    Ok(Recovered { _private: () })
}
