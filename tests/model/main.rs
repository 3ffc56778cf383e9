//! Decisions and schedules, exhaustively for small bounds.
//!
//! `decisions`: pure decisions over all their inputs. `explore`: every schedule of three hosts, three writes, a crash of
//! each and a promotion, within a bound, over copies of the real machines (`world`, `store`), against `truth`.

mod decisions;
mod explore;
mod store;
mod trace;
mod truth;
mod world;
