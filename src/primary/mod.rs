//! The primary: order, acknowledgement, shipping, restart.

pub mod daemon;
pub mod machine;
pub mod recovery;
