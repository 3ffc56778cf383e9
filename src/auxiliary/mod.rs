//! The auxiliary: exports the status table's region by NBD and fences older epochs.

pub mod daemon;
pub mod machine;
pub mod recovery;
