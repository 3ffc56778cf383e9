//! Checks the checkers: each planted bug has to be caught by some seed, and by which invariant is said.

use std::sync::Mutex;
use std::time::Instant;

use farshore::core::planted::Bug;

use crate::runner::{Run, on_all_threads};

/// Seeds within which a bug has to be caught.
const SEEDS_MAX: u64 = 3000;

/// No seed is known that shows these: they are run and told like the others, and do not fail the run. Each waits for
/// a simulator that brings its bound, its delay or its damage about often enough; nothing may be added here.
const OPEN: &[Bug] = &[
    Bug::JournalReusedEarly,
    Bug::SlotReusedEarly,
    Bug::RingReusedEarly,
    Bug::LeaseFromAnswer,
    Bug::PayloadUnchecked,
    Bug::RecordUnchecked,
    Bug::GapAccepted,
    Bug::BatchHollow,
    Bug::StraysUnreported,
];

struct Caught {
    bug: Bug,
    /// Seeds that were needed, the seed, the invariant and its words.
    by: Option<(u64, u64, &'static str, String)>,
    seconds: f64,
}

#[test]
fn every_planted_bug_is_caught() {
    let from = crate::env("SIM_FROM").unwrap_or(crate::FROM);
    let seeds_max = crate::env("SIM_SEEDS").unwrap_or(SEEDS_MAX);
    let only = std::env::var("SIM_PLANTED").ok();
    let wanted = |bug: &&Bug| only.as_ref().is_none_or(|only| only.split(',').any(|name| format!("{bug:?}") == name));
    let bugs: Vec<Bug> = Bug::ALL.iter().filter(wanted).copied().collect();
    let table = Mutex::new(Vec::new());
    on_all_threads(bugs.len() as u64, |number| {
        let bug = bugs[usize::try_from(number).expect("there are few")];
        let began = Instant::now();
        let caught = (0..seeds_max).find_map(|count| {
            let seed = from + count;
            let failure = Run { bug: Some(bug), ..Run::of(seed) }.go().err()?;
            if Run::of(seed).go().is_err() {
                println!("seed {seed} fails without a planted bug");
                return None;
            }
            Some((count + 1, seed, failure.violation.invariant, failure.violation.text.clone()))
        });
        let caught = Caught { bug, by: caught, seconds: began.elapsed().as_secs_f64() };
        println!("{}", line(&caught));
        table.lock().expect("nothing panics while it is held").push(caught);
        true
    });
    let mut table = table.into_inner().expect("nothing panics while it is held");
    table.sort_by_key(|caught| bugs.iter().position(|bug| *bug == caught.bug));
    println!("\n| planted bug | caught by | seeds needed | what is wrong |\n|---|---|---|---|");
    for Caught { bug, by, .. } in &table {
        let (by, seeds) = by.as_ref().map_or(("NOT CAUGHT", seeds_max), |(count, _, by, _)| (by, *count));
        println!("| {bug:?} | {by} | {seeds} | {} |", bug.says());
    }
    let (open, missed): (Vec<Bug>, Vec<Bug>) =
        table.iter().filter(|caught| caught.by.is_none()).map(|caught| caught.bug).partition(|bug| OPEN.contains(bug));
    println!(
        "\n{} of {} caught; known not to be caught yet: {open:?}",
        bugs.len() - open.len() - missed.len(),
        bugs.len()
    );
    assert!(missed.is_empty(), "not caught within {seeds_max} seeds: {missed:?}");
}

fn line(caught: &Caught) -> String {
    let Caught { bug, by, seconds } = caught;
    match by {
        Some((count, seed, invariant, text)) => {
            let end = text.char_indices().nth(160).map_or(text.len(), |(at, _)| at);
            format!("{bug:?}: {invariant} after {count} seeds ({seed}, {seconds:.1} s): {}", &text[..end])
        }
        None => format!("{bug:?}: not caught, {seconds:.1} s"),
    }
}
