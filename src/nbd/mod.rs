//! The NBD protocol, both sides (the NBD protocol specification, "doc/proto.md" of the nbd project).

pub mod client;
pub mod protocol;
pub mod region;
pub mod server;
pub mod session;
