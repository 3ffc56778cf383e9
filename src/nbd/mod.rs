//! The NBD protocol, both sides (the NBD protocol specification, "doc/proto.md" of the nbd project).
//!
//! ```text
//!   server  ── session ──┬─ handshake ── options, meta
//!   (shell,    (pure)    └─ transmission ── check, reply, long
//!    budget)
//!
//!   region ── remote ── client               protocol, outbox, slots: below both
//!   (shell: the status table, wherever it stands)
//! ```

mod budget;
mod check;
pub mod client;
pub mod ended;
mod export;
mod handshake;
mod meta;
mod options;
pub mod outbox;
pub mod protocol;
pub mod region;
mod remote;
mod reply;
pub mod server;
pub mod session;
pub mod slots;
mod transmission;
