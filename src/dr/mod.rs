//! The DR site: receives the order and the data, keeps both durably, applies them in order, takes over.
//!
//! ```text
//!   links ──► receive ──┬─ orders ──► history ──► journal ─────────┐ durable: acknowledged
//!                       └─ payloads ─► intake ──► spool ───────────┤ durable: acknowledged
//!                                                                  ▼
//!              promote ◄── table, reconcile, fetch          apply: the cut
//!                 │                                                │
//!                 └───────────► replay: in order to the volumes ◄──┘──► checkpoint ──► keeper (superblock)
//!
//!   doubt: what was promised and is not here any more      sizes: how large the volumes are, as of a seq
//!   mended: why an order was missing here that the status table has      compare: whether a range is what the primary has
//!   growth: more room in the spool, for a while      recopy: the operator gives up the recovery point
//!   recovery, scan: from bytes to a machine      api: what goes in and out      daemon: the shell
//! ```

pub mod api;
pub mod apply;
mod asking;
pub mod batch;
pub mod checkpoint;
mod compare;
pub mod daemon;
pub mod desk;
pub mod doubt;
pub mod fetch;
mod foresee;
pub mod growth;
pub mod history;
pub mod intake;
pub mod journal;
pub mod keeper;
mod leftovers;
pub mod links;
mod look;
pub mod machine;
mod mended;
mod patches;
mod probes;
pub mod promote;
pub mod receive;
pub mod reconcile;
pub mod recopy;
pub mod recovery;
pub mod replay;
pub mod report;
pub mod scan;
mod sizes;
pub mod spool;
pub mod stored;
pub mod table;
pub mod view;

#[cfg(test)]
mod tests;
