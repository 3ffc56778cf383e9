//! The auxiliary: exports the status table's region by NBD and fences older epochs (I7).
//!
//! ```text
//!   nbd::server ──► daemon ──► machine ──► files: superblock (epoch, owner), table (the region)
//!                   (shell)    (pure)  ◄── recovery (pure): what the files say at a start
//! ```
//!
//! The region's bytes are the primary's and DR's business (format::table); nothing here interprets them.

pub mod daemon;
pub mod machine;
pub mod recovery;
