//! A plan says beforehand why its promotion is refused, in the same words.

use super::damage::{EVERY_HARM, harmed};
use super::named::{caught_up, site};
use super::run::Trial;
use crate::cluster::status::PromoteReport;
use crate::core::ids::{Epoch, Owner, Ticket};
use crate::dr::api::{Input, PromoteError};
use crate::format::table::Fence;

pub fn asked(trial: &mut Trial, plan: bool, force: bool) -> Result<PromoteReport, PromoteError> {
    trial.outcome = None;
    trial.step(Input::Promote { ticket: Ticket(1), plan, force });
    trial.settle(0);
    trial.outcome.take().expect("settled")
}

/// Plan and promotion, one after the other: either both go through, or both say the same.
fn held_against(mut trial: Trial, what: &str) -> Option<String> {
    trial.lose_primary();
    trial.drain_disk();
    let (plan, forced) = (asked(&mut trial, true, false), asked(&mut trial, true, true));
    let promoted = asked(&mut trial, false, false);
    let foreseen = match plan {
        Ok(report) => report.refused,
        Err(error) => Some(error.text),
    };
    assert_eq!(foreseen, promoted.as_ref().err().map(|error| error.text.clone()), "{what}");
    if let Err(error) = promoted {
        assert!(error.refused_for_safety, "{what}: {error}");
        let passes = error.text.contains("--force");
        assert_eq!(forced.expect("a plan by force").refused.is_none(), passes, "{what}: {error}");
    }
    foreseen
}

#[test]
fn a_plan_says_that_the_directory_is_damaged_as_its_promotion_does() {
    let mut refused = 0;
    for what in EVERY_HARM {
        for region in [false, true] {
            let mut trial = harmed(what, false, region);
            if region {
                trial.give_region(trial.writer.records.len());
            }
            refused += usize::from(held_against(trial, &format!("{what:?} region {region}")).is_some());
        }
    }
    assert!(refused >= EVERY_HARM.len() - 1, "{refused}");
}

#[test]
fn a_plan_says_that_without_the_auxiliary_nobody_is_promoted() {
    let mut trial = site(3, true);
    caught_up(&mut trial);
    let text = held_against(trial, "no auxiliary").expect("refused");
    assert!(text.contains("cannot be reached"), "{text}");
    let text = held_against(harmed(EVERY_HARM[0], false, true), "nor an undamaged disk").expect("refused");
    assert!(text.contains("DAMAGED"), "{text}");
}

#[test]
fn a_plan_says_that_another_site_was_promoted() {
    let mut trial = site(4, true);
    caught_up(&mut trial);
    trial.give_region(trial.writer.records.len());
    let fence = Fence { epoch: Epoch(9), owner: Owner(77) }.encode();
    let region = trial.region.as_mut().expect("just given");
    region[Fence::place(Epoch(9)) as usize..][..fence.len()].copy_from_slice(&fence);
    let text = held_against(trial, "another site").expect("refused");
    assert!(text.contains("another site was promoted"), "{text}");
}

#[test]
fn a_plan_of_a_promotion_that_goes_through_says_nothing() {
    let mut trial = site(5, true);
    caught_up(&mut trial);
    trial.give_region(trial.writer.records.len());
    assert_eq!(held_against(trial, "whole"), None);
}
