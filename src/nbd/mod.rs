//! The NBD protocol, both sides (the NBD protocol specification, "doc/proto.md" of the nbd project).
//!
//! ```text
//!   server  ── session ──┐                    ┌── client ── region
//!   (shell)    (pure)    ├── protocol, slots ─┤   (pure)   (shell: the status table, wherever it stands)
//!                        └────── outbox ──────┘
//! ```

pub mod client;
pub mod outbox;
pub mod protocol;
pub mod region;
pub mod server;
pub mod session;
pub mod slots;
