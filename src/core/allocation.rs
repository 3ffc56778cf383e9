//! Which parts of a volume have storage behind them.

/// A stretch of a volume; a list of them goes on from where it was asked for, without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Bytes, never 0.
    pub length: u64,
    /// It has no storage and reads as zeroes. Not set: it has storage, or nobody knows.
    pub hole: bool,
}
