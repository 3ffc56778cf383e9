//! The primary: order, acknowledgement, shipping, restart.
//!
//! ```text
//!  NBD request ─► intake ─► seq + record ─┬─► intent log, intent map ─► local disk (I1, I2)
//!                                         ├─► auxiliary: table   ┐
//!                                         ├─► DR: journal        ├─► watermarks ─► policy ─► reply (I3)
//!                                         └─► FIFO ─► streams ─► spool (copied) ┘
//!                                               └─ full, or lost at a restart ─► ranges ─► batch
//! ```
//!
//! `machine` holds the state and the life of one write; `policy` says what a reply waits for;
//! `intent`, `fifo`, `table`, `link` and `batch` each own one of the arrows, `resize` the sizes, `mending` what a full
//! volume has refused, `verify` whether both sides are equal.

pub mod ack;
pub mod batch;
pub mod daemon;
pub mod fifo;
pub mod intake;
pub mod intent;
mod lag;
pub mod link;
pub mod listing;
pub mod local;
pub mod machine;
mod mending;
pub mod packing;
pub mod paths;
pub mod policy;
pub mod recovery;
pub mod report;
mod resize;
pub mod ship;
pub mod table;
pub mod upkeep;
pub mod verify;
pub mod waiting;
pub mod window;
