//! The DR site: journal, spool, ordered apply, promotion.

pub mod api;
pub mod apply;
pub mod daemon;
pub mod desk;
pub mod fetch;
pub mod history;
pub mod intake;
pub mod journal;
pub mod keeper;
pub mod links;
pub mod machine;
pub mod promote;
pub mod receive;
pub mod reconcile;
pub mod recovery;
pub mod replay;
pub mod scan;
pub mod spool;
pub mod table;
#[cfg(test)]
mod trial;
pub mod view;
