//! The NBD protocol, both sides (the NBD protocol specification, "doc/proto.md" of the nbd project).
//!
//! ```text
//!   server  ── session ──┬─ handshake ── options, meta
//!   (shell,    (pure)    └─ transmission ── check, reply, long
//!    budget, places)
//!
//!   region ── remote ──┬─ client ── chunks   protocol, outbox, slots: below both
//!   backing ── store ──┘
//!   (shells: the status table, wherever it stands; volumes on NBD servers)
//! ```

pub mod backing;
mod budget;
mod check;
mod chunks;
pub mod client;
pub mod ended;
mod export;
mod handshake;
mod meta;
mod options;
pub mod outbox;
pub mod places;
pub mod protocol;
pub mod region;
mod remote;
mod reply;
pub mod server;
pub mod session;
pub mod slots;
mod store;
mod transmission;
