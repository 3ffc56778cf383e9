//! farshore: disaster-recovery replication of block volumes.
//!
//! The order crosses first, the data follows: every write gets a sequence number, a 64-byte order
//! record of it is made durable far away before the write is acknowledged, and its payload follows
//! through an asynchronous FIFO.
//!
//! # Rooms
//!
//! ```text
//!   cli        one file a verb                         main.rs: parse, run, exit code
//!    │
//!   primary    auxiliary    dr      (never import one another; they meet in format::wire)
//!    │   machine, recovery: pure    daemon: the shell that carries out effects
//!   cluster · nbd               status and control; the NBD protocol, both sides
//!    │
//!   format                      bytes only, one format a file
//!    │
//!   core                        pure vocabulary: ids, cursors, overlaps, the machine contract
//!
//!   io                          the only unsafe code: ring, arena, sockets, disks, clock
//! ```
//!
//! # Glossary
//!
//! - **group**: one or more volumes that share one write order.
//! - **seq**: sequence number of a write in its group, from 1.
//! - **epoch**: generation of the group's writer; grows by one at every promotion; the fencing token.
//! - **order record**: the 64 bytes that describe one write; the same bytes in every log, the same record
//!   packed on the wire.
//! - **journal**: the DR site's durable log of order records.
//! - **status table**: the auxiliary's shared region: ring of order records and the state of each.
//! - **FIFO**: the primary's queue of payloads not yet copied: memory first, then disk, bounded.
//! - **spool**: the DR site's durable store of payloads received but not yet applied.
//! - **cut**: the highest seq P such that DR holds every payload 1..P: the recovery point.
//! - **tail**: the highest seq known to exist. **lag**: tail minus cut.
//! - **stream / batch**: write by write in order / ranges as of a later seq, all or nothing.
//!
//! # Invariants
//!
//! I1 Order · I2 Intent · I3 Ack · I4 Known loss · I5 Prefix · I6 Always promotable · I7 One writer ·
//! I8 Nothing silent · I9 Bounded. Each is named in the code that upholds it.

pub mod auxiliary;
pub mod cli;
pub mod cluster;
pub mod core;
pub mod dr;
pub mod format;
pub mod io;
pub mod limits;
pub mod nbd;
pub mod primary;
