//! Bytes only: one format a file. Little-endian (NBD excepted), fixed size, explicit offsets, magic,
//! version, checksum, reserved bytes zero and verified. A change of a layout bumps its version.

pub mod intent;
pub mod journal;
mod layout;
pub mod record;
pub mod relocate;
pub mod ring;
pub mod spool;
pub mod superblock;
pub mod table;
pub mod wire;

pub use crate::core::zero::is_zero;
pub use layout::Block;

/// Why bytes were not accepted (I8). Says what is wrong with which part; the caller adds where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("{what} is {got} bytes long, expected {want}")]
    Length { what: &'static str, got: usize, want: usize },
    #[error("{what}: no magic number, not one of ours or overwritten")]
    Magic { what: &'static str },
    #[error("{what}: version {got}, this program reads version {want}")]
    Version { what: &'static str, got: u16, want: u16 },
    #[error("{what}: checksum mismatch, the bytes are damaged")]
    Checksum { what: &'static str },
    #[error("{what}: {why}")]
    Field { what: &'static str, why: String },
}
