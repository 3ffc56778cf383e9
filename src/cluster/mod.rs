//! What operators see of a group: its configuration, its status, the control socket's words.

pub mod config;
pub mod control;
pub mod status;
