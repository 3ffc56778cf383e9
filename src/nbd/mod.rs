//! The NBD protocol, both sides (the NBD protocol specification, "doc/proto.md" of the nbd project).
//!
//! ```text
//!   server  ── session ──┐                    ┌── client ── remote ── region
//!   (shell)    (pure,    ├── protocol, slots ─┤   (pure)   (shell: the status table, wherever it stands)
//!              options)  └────── outbox ──────┘
//! ```

pub mod client;
mod options;
pub mod outbox;
pub mod protocol;
pub mod region;
mod remote;
pub mod server;
pub mod session;
pub mod slots;
