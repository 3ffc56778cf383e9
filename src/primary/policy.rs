//! What a reply waits for: the protection table of the design as a pure function (I3).
//!
//! Watermarks are seqs: everything up to them has been made durable there, without a hole. A component
//! that cannot be had right now is *out*; `require` says what its absence means:
//!
//! | require | a component is out | all components are out |
//! |---|---|---|
//! | both | nothing is acknowledged | nothing is acknowledged |
//! | any  | the others are waited for; the order must be at the auxiliary or in the journal | only what one of them already holds |
//! | none | the others are waited for | the local disk is enough |

use crate::core::ids::Seq;
use crate::core::modes::{Protect, Require};

/// Where each kind of durability stands. `None`: that place is out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Order records durable at the auxiliary.
    pub aux: Option<Seq>,
    /// Order records with their payloads durable at the auxiliary.
    pub aux_payload: Option<Seq>,
    /// Order records durable in DR's journal.
    pub journal: Option<Seq>,
    /// Payloads durable at DR, every one up to here.
    pub copied: Option<Seq>,
    /// What one of the two held when it was last in reach: it still holds it.
    pub held: Seq,
}

/// Seq that has no writes after it: nothing has to be waited for.
pub const EVERYTHING: Seq = Seq(u64::MAX);
/// Nothing may be acknowledged.
pub const NOTHING: Seq = Seq(0);

/// The highest seq whose protection is what `protect` and `require` promise.
#[must_use]
pub fn protected(protect: Protect, require: Require, at: Standing) -> Seq {
    let wanted: &[Option<Seq>] = match protect {
        Protect::Async => return EVERYTHING,
        Protect::Near => &[at.aux],
        Protect::Order => &[at.aux, at.journal],
        Protect::Bunker => &[at.aux, at.aux_payload],
        Protect::Sync => &[at.aux, at.journal, at.copied],
    };
    if wanted.iter().all(Option::is_some) {
        return wanted.iter().flatten().copied().min().unwrap_or(EVERYTHING);
    }
    match require {
        Require::Both => NOTHING,
        Require::Any => degraded(wanted, at),
        Require::None => wanted.iter().flatten().copied().min().unwrap_or(EVERYTHING),
    }
}

/// `require = any` with something out: what is left of the wanted, and the order in one place at least.
fn degraded(wanted: &[Option<Seq>], at: Standing) -> Seq {
    let left = wanted.iter().flatten().copied().min().unwrap_or(EVERYTHING);
    let order = match (at.aux, at.journal) {
        (Some(aux), Some(journal)) => aux.max(journal),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => at.held,
    };
    left.min(order)
}

/// Whether the full protection of the mode is in force (else status says "degraded").
#[must_use]
pub fn in_full(protect: Protect, at: Standing) -> bool {
    match protect {
        Protect::Async => true,
        Protect::Near => at.aux.is_some(),
        Protect::Order => at.aux.is_some() && at.journal.is_some(),
        Protect::Bunker => at.aux.is_some() && at.aux_payload.is_some(),
        Protect::Sync => at.aux.is_some() && at.journal.is_some() && at.copied.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::modes::{Ack, Awaited};

    const PROTECTS: [Protect; 5] = [Protect::Async, Protect::Near, Protect::Order, Protect::Bunker, Protect::Sync];

    /// Every combination of places in and out of reach, each with its own watermark.
    fn standings() -> Vec<Standing> {
        let pick = |on: bool, seq: u64| on.then_some(Seq(seq));
        (0..16)
            .map(|bits: u32| Standing {
                aux: pick(bits & 1 != 0, 40),
                aux_payload: pick(bits & 1 != 0 && bits & 2 != 0, 30),
                journal: pick(bits & 4 != 0, 20),
                copied: pick(bits & 4 != 0 && bits & 8 != 0, 10),
                held: Seq(5),
            })
            .collect()
    }

    /// The table above said a second time, of one write and not of watermarks: whether its reply may go out.
    fn may_acknowledge(protect: Protect, require: Require, at: Standing, write: Seq) -> bool {
        let asked = match protect {
            Protect::Async => vec![],
            Protect::Near => vec![at.aux],
            Protect::Order => vec![at.journal, at.aux],
            Protect::Bunker => vec![at.aux_payload, at.aux],
            Protect::Sync => vec![at.copied, at.journal, at.aux],
        };
        let has = |place: &Option<Seq>| place.is_some_and(|durable| durable >= write);
        let in_reach_have_it = asked.iter().all(|place| place.is_none() || has(place));
        let something_is_out = asked.contains(&None);
        assert_eq!(in_full(protect, at), !something_is_out, "{protect:?} {at:?}");
        let nobody_is_there = at.aux.is_none() && at.journal.is_none();
        let order_is_somewhere = has(&at.aux) || has(&at.journal) || nobody_is_there && at.held >= write;
        match (something_is_out, require) {
            (false, _) | (true, Require::None) => in_reach_have_it,
            (true, Require::Both) => false,
            (true, Require::Any) => in_reach_have_it && order_is_somewhere,
        }
    }

    /// Five watermarks at six heights are in every order that there is, ties included; each place out of reach or not.
    #[test]
    fn every_write_is_acknowledged_as_the_table_says_in_whatever_order_the_places_stand() {
        let heights = || (0..=5).map(Seq);
        let places = || std::iter::once(None).chain(heights().map(Some));
        let mut cases = 0;
        for (aux, aux_payload) in places().flat_map(|aux| places().map(move |payload| (aux, payload))) {
            for (journal, copied) in places().flat_map(|journal| places().map(move |copied| (journal, copied))) {
                for held in heights() {
                    let at = Standing { aux, aux_payload, journal, copied, held };
                    cases += every_mode_says_the_same(at);
                }
            }
        }
        assert_eq!(cases, 7 * 7 * 7 * 7 * 6 * 5 * 3);
    }

    fn every_mode_says_the_same(at: Standing) -> u32 {
        let mut cases = 0;
        for protect in PROTECTS {
            for require in [Require::Both, Require::Any, Require::None] {
                let got = protected(protect, require, at);
                for write in (1..=6).map(Seq).chain([EVERYTHING]) {
                    let may = may_acknowledge(protect, require, at, write);
                    assert_eq!(write <= got, may, "{protect:?} {require:?} {at:?}: the reply to {write}");
                }
                cases += 1;
            }
        }
        cases
    }

    #[test]
    fn both_acknowledges_nothing_unless_everything_is_in_reach() {
        for protect in PROTECTS {
            for at in standings() {
                let got = protected(protect, Require::Both, at);
                assert_eq!(got != NOTHING, in_full(protect, at), "{protect:?} {at:?}");
            }
        }
    }

    #[test]
    fn any_never_acknowledges_what_no_place_holds() {
        for protect in PROTECTS.into_iter().filter(|p| *p != Protect::Async) {
            for at in standings() {
                let best = at.aux.max(at.journal).unwrap_or(at.held);
                assert!(protected(protect, Require::Any, at) <= best, "{protect:?} {at:?}");
            }
        }
    }

    #[test]
    fn what_is_awaited_is_what_holds_replies_back() {
        let (all, none) = (standings()[15], NOTHING);
        let without_aux = Standing { aux: Some(none), aux_payload: Some(none), ..all };
        let without_dr = Standing { journal: Some(none), copied: Some(none), ..all };
        for protect in PROTECTS {
            let held_back = |at: Standing| protected(protect, Require::Any, at) == NOTHING;
            let expected = Awaited { aux: held_back(without_aux), journal: held_back(without_dr) };
            assert_eq!(protect.awaited(Ack::Write), expected, "{protect:?}");
            assert_eq!(protect.awaited(Ack::Flush), Awaited { aux: false, journal: false }, "{protect:?}");
        }
    }

    #[test]
    fn a_place_in_reach_is_never_skipped() {
        for at in standings() {
            for require in [Require::Both, Require::Any, Require::None] {
                if let (Some(aux), Some(journal)) = (at.aux, at.journal) {
                    assert!(protected(Protect::Order, require, at) <= aux.min(journal));
                }
                if let Some(copied) = at.copied {
                    assert!(protected(Protect::Sync, require, at) <= copied);
                }
                if let Some(payload) = at.aux_payload {
                    assert!(protected(Protect::Bunker, require, at) <= payload);
                }
            }
        }
    }

    #[test]
    fn any_goes_on_with_what_is_in_reach_and_with_what_was_held_when_nothing_is() {
        for (protect, aux, journal, goes_on) in [
            (Protect::Near, None, Some(20), 20),
            (Protect::Near, None, None, 5),
            (Protect::Order, Some(40), None, 40),
            (Protect::Order, None, Some(20), 20),
            (Protect::Order, None, None, 5),
            (Protect::Bunker, Some(40), None, 40),
            (Protect::Bunker, None, Some(20), 20),
            (Protect::Sync, Some(40), None, 40),
            (Protect::Sync, None, Some(20), 20),
            (Protect::Sync, None, None, 5),
        ] {
            let (aux, journal) = (aux.map(Seq), journal.map(Seq));
            let at = Standing { aux, aux_payload: None, journal, copied: None, held: Seq(5) };
            assert_eq!(protected(protect, Require::Any, at), Seq(goes_on), "{protect:?} {at:?}");
        }
    }

    #[test]
    fn none_goes_on_alone() {
        let alone = Standing { aux: None, aux_payload: None, journal: None, copied: None, held: Seq(5) };
        for protect in PROTECTS {
            assert_eq!(protected(protect, Require::None, alone), EVERYTHING);
        }
    }

    #[test]
    fn full_protection_is_the_least_of_its_parts() {
        let at = Standing {
            aux: Some(Seq(9)),
            aux_payload: Some(Seq(8)),
            journal: Some(Seq(7)),
            copied: Some(Seq(6)),
            held: Seq(9),
        };
        let got = PROTECTS.map(|p| protected(p, Require::Any, at));
        assert_eq!(got, [EVERYTHING, Seq(9), Seq(7), Seq(8), Seq(6)]);
    }
}
