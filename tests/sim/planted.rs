//! Checks the checkers: each planted bug has to be caught by some seed, and by which invariant is said.

use std::sync::Mutex;
use std::time::Instant;

use farshore::core::planted::Bug;

use crate::rng::Rng;
use crate::runner::{Run, on_all_threads};
use crate::setup::{FRESH_SEEDS, LATER_SEEDS, NEWEST_SEEDS, Setup};

/// Seeds within which a bug has to be caught: so many of the freshest, of the newest, and of older ones, in turn.
const SEEDS_MAX: u64 = 1500;
/// Older seeds are long and large where the newest are many and small.
const OLDER: u64 = LATER_SEEDS - 1500;

/// The seed that caught each bug last time: it is tried first, so that a run over all of them is short. One that
/// does not catch it any more costs a search, no more.
const HINTS: &[(Bug, u64)] = &[
    (Bug::GrownUnnamed, 8000039),
    (Bug::UnsaidBelieved, 7029181),
    (Bug::LeapForgotten, 4372940),
    (Bug::SlotsOverLeap, 4389856),
    (Bug::PatchUnchecked, 4200000),
    (Bug::ComparedLate, 3000434),
    (Bug::ComparedBesideWrites, 3003356),
    (Bug::OrphansForgotten, 9000974),
    (Bug::TableUnclaimed, 3001551),
    (Bug::CacheTrusted, 3001510),
    (Bug::CarriedFromNothing, 3234550),
    (Bug::StateBeforeRecord, 3081344),
    (Bug::FenceUnheeded, 8516),
    (Bug::TableForgotten, 8502),
    (Bug::OrdersDurableEarly, 100000),
    (Bug::JournalOverGap, 8501),
    (Bug::JournalLosesLast, 100030),
    (Bug::JournalReusedEarly, 100148),
    (Bug::AuxCommitEarly, 100007),
    (Bug::AuxIgnoresFua, 100025),
    (Bug::FlushUnprotected, 100007),
    (Bug::FlushUnsynced, 8501),
    (Bug::FuaUnsynced, 100002),
    (Bug::CopiedUnsynced, 100007),
    (Bug::ApplyOverlapped, 100004),
    (Bug::ApplyPastMissing, 100013),
    (Bug::CutPastJournal, 8500),
    (Bug::TrimNotApplied, 100007),
    (Bug::LocalOverlapped, 100000),
    (Bug::SlotReusedEarly, 100013),
    (Bug::RingReusedEarly, 100381),
    (Bug::DrAcceptsStaleEpoch, 100205),
    (Bug::AuxAcceptsStaleEpoch, 100016),
    (Bug::AuxKeepsOldWriter, 100016),
    (Bug::GrantUnpersisted, 100000),
    (Bug::AckAfterLease, 8501),
    (Bug::LeaseFromAnswer, 101296),
    (Bug::PromoteWithinLease, 100034),
    (Bug::PayloadForgotten, 3000009),
    (Bug::PayloadUnchecked, 100127),
    (Bug::RecordUnchecked, 100044),
    (Bug::GapAccepted, 100046),
    (Bug::CheckpointUnsynced, 100007),
    (Bug::TailPromisedEarly, 100017),
    (Bug::SuperblockOneSlot, 100007),
    (Bug::SuperblockOnceCounts, 3000076),
    (Bug::PrimarySuperblockOnce, 3001510),
    (Bug::ChunkAckEarly, 8504),
    (Bug::BatchIncomplete, 100000),
    (Bug::BatchKeepsOldChunks, 8522),
    (Bug::BatchReadsEarly, 8543),
    (Bug::StraysUnreported, 100046),
    (Bug::ServeUnreported, 100016),
    (Bug::IntentAfterWrite, 100000),
    (Bug::IntentClearedEarly, 100016),
    (Bug::SeqReused, 100000),
    (Bug::RequeueForgotten, 100031),
    (Bug::BatchHollow, 3000461),
    (Bug::SpoolFreedEarly, 8504),
    (Bug::SpillUnordered, 9050),
    (Bug::BatchLeavesOutRange, 8575),
    (Bug::FifoFreedEarly, 8504),
    (Bug::AppliedUnpromised, 100007),
    (Bug::UnsyncedTrusted, 100045),
    (Bug::SpoiltPassed, 600495),
    (Bug::BatchNotWithdrawn, 3000224),
    (Bug::SpoiltNotFetched, 602655),
    (Bug::ResizeUnmarked, 100409),
    (Bug::SizesUnsaid, 100044),
    (Bug::ResizeEarly, 3000247),
    (Bug::ResizeForgotten, 100044),
    (Bug::ResizeUnzeroed, 100076),
    (Bug::SpoiltMovesUp, 3000394),
    (Bug::SuperblocksOverlap, 124372),
    (Bug::FailedStaysQueued, 100064),
    (Bug::FailedUnmended, 100064),
    (Bug::MendedBesideWrites, 3000194),
    (Bug::MendingForgotten, 100309),
    (Bug::OverrunInForce, 100046),
    (Bug::InForceEarly, 8504),
    (Bug::RingOverflows, 100028),
    (Bug::RefusesSome, 100000),
    (Bug::LagUnbounded, 3000048),
    (Bug::FifoUnbounded, 8501),
    (Bug::ShutOutForgotten, 8396302),
    (Bug::CarriedWithoutWrites, 8505),
];

/// Bugs that show only beside a fault that few seeds draw: they have to be caught within as many seeds that do.
const RARE: &[(Bug, &str)] = &[
    (Bug::BatchHollow, "KillAtCommit"),
    (Bug::BatchNotWithdrawn, "Naming"),
    (Bug::SpoiltMovesUp, "Applying"),
    (Bug::FailedStaysQueued, "VolumesFull"),
    (Bug::FailedUnmended, "VolumesFull"),
    (Bug::MendedBesideWrites, "VolumesFull"),
    (Bug::MendingForgotten, "KillAtMending"),
    (Bug::SuperblockOnceCounts, "Rot { node: Dr"),
    (Bug::PrimarySuperblockOnce, "Rot { node: Primary"),
    (Bug::TableUnclaimed, "plain_table: true"),
    (Bug::StateBeforeRecord, "protect: Bunker"),
    (Bug::CacheTrusted, "how: Syncs"),
];

struct Caught {
    bug: Bug,
    /// Seeds that were needed (none but the one that was known: 1), the seed, the invariant and its words.
    by: Option<(u64, u64, &'static str, String)>,
    seconds: f64,
}

#[test]
fn every_planted_bug_is_caught() {
    let from = crate::env("SIM_FROM").unwrap_or(NEWEST_SEEDS);
    let seeds_max = crate::env("SIM_SEEDS").unwrap_or(SEEDS_MAX);
    // Words of a setup: only seeds that draw it.
    let fault = std::env::var("SIM_FAULT").unwrap_or_default();
    let draws = |seed: &u64, fault: &str| {
        fault.is_empty() || format!("{:?}", Setup::draw(*seed, &mut Rng::new(*seed))).contains(fault)
    };
    // Seeds given by hand: nothing that is known counts.
    let search = crate::env("SIM_FROM").is_some();
    let only = std::env::var("SIM_PLANTED").ok();
    let wanted = |bug: &&Bug| only.as_ref().is_none_or(|only| only.split(',').any(|name| format!("{bug:?}") == name));
    let bugs: Vec<Bug> = Bug::ALL.iter().filter(wanted).copied().collect();
    let table = Mutex::new(Vec::new());
    on_all_threads(bugs.len() as u64, |number| {
        let bug = bugs[usize::try_from(number).expect("there are few")];
        let began = Instant::now();
        let known = HINTS.iter().filter(|(of, _)| *of == bug && !search).map(|(_, seed)| *seed);
        let other = |seed: u64| (!search).then_some(seed);
        let drawn = (0..seeds_max).flat_map(|n| [other(FRESH_SEEDS + n), Some(from + n), other(OLDER + n)]).flatten();
        let needs = RARE.iter().filter(|(of, _)| *of == bug && !search).map(|(_, fault)| *fault);
        let rare =
            needs.flat_map(|fault| (FRESH_SEEDS..).filter(move |seed| draws(seed, fault)).take(seeds_max as usize));
        let seeds = known.chain(rare).chain(drawn).filter(|seed| draws(seed, &fault));
        let caught = seeds.enumerate().find_map(|(count, seed)| {
            let failure = Run { bug: Some(bug), ..Run::of(seed) }.go().err()?;
            if Run::of(seed).go().is_err() {
                println!("seed {seed} fails without a planted bug");
                return None;
            }
            Some((count as u64 + 1, seed, failure.violation.invariant, failure.violation.text.clone()))
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
        let caught_at = by.as_ref().map(|(_, seed, ..)| *seed);
        let (by, seeds) = by.as_ref().map_or(("NOT CAUGHT", seeds_max), |(count, _, by, _)| (by, *count));
        let known = HINTS.iter().any(|(of, seed)| of == bug && Some(*seed) == caught_at) && !search;
        println!("| {bug:?} | {by} | {seeds}{} | {} |", if known { " (known)" } else { "" }, bug.says());
    }
    let missed: Vec<Bug> = table.iter().filter(|caught| caught.by.is_none()).map(|caught| caught.bug).collect();
    println!("\n{} of {} caught", bugs.len() - missed.len(), bugs.len());
    let hints: Vec<String> =
        table.iter().filter_map(|Caught { bug, by, .. }| Some(format!("(Bug::{bug:?}, {})", by.as_ref()?.1))).collect();
    println!("seeds that catch them: {}", hints.join(", "));
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
