//! Decisions and schedules, exhaustively for small bounds.
//!
//! `decisions`: pure decisions over all their inputs. `explore`: schedules of three hosts over copies of the real machines
//! (`world`, `store`), against `truth`, which asks `reach` how far a promotion could have come. Which bounds are exhausted:
//!
//! | run | of | departures | modes |
//! |---|---|---|---|
//! | CI | 3 writes | one: an event overtakes, or a crash, or the promotion | `order` (`any` and `both`), `near` |
//! | CI | 3 writes | one crash or the promotion, no overtaking | all five |
//! | CI | 3 writes | two of: a crash of each host, the promotion; no overtaking | `order`, `bunker` |
//! | CI | 1 write | every order, and one crash or promotion at every point of it | `order` |
//! | `tools/model --strikes 2` | 3 writes | the same | all five |
//! | `tools/model --strikes 1 --overtakes 1` | 3 writes | one of these and one overtaking | all five |
//! | `tools/model --departures 2` | 3 writes | two of whatever kind | `order` |
//!
//! `tools/model --strikes 4` is one crash of each host and the promotion, in every order and at every point; `--strikes 3` leaves
//! one out. Neither ends in minutes: README says how far they were followed.

mod decisions;
mod explore;
mod reach;
mod store;
mod trace;
mod truth;
mod world;
