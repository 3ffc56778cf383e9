//! The DR site: journal, spool, ordered apply, promotion.

pub mod api;
pub mod daemon;
pub mod journal;
pub mod machine;
pub mod promote;
pub mod reconcile;
pub mod recovery;
pub mod replay;
pub mod spool;
