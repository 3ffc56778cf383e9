//! Decisions and schedules, exhaustively for small bounds.
//!
//! `decisions`: pure decisions over all their inputs.

mod decisions;
