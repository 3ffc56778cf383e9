//! What operators see of a group: its configuration, its status, the control socket's words. Pure.
//!
//! ```text
//!   farshore.toml ──toml──► config ──► every daemon and verb
//!   machines ──► status ──► control (one line of JSON, in pieces) ──► cli
//! ```

pub mod config;
pub mod control;
pub mod losses;
pub mod metrics;
pub mod size;
pub mod status;
mod toml;
