//! The trials themselves. A failing seed becomes a test of its own, by name.

use super::damage::{EVERY_HARM, harm};
use super::disk::Rng;
use super::run::{Trial, damage_in};
use crate::core::ids::Seq;

/// Seeds of each trial; more from the environment, for a long night.
fn rounds() -> u64 {
    std::env::var("FARSHORE_DR_SEEDS").ok().and_then(|it| it.parse().ok()).unwrap_or(100)
}

/// A life of DR: writes, overflows, broken links, crashes. Ends with the primary still there.
fn live(trial: &mut Trial, turns: usize, crashes: bool) {
    for _ in 0..turns {
        let mut rng: Rng = trial.rng.clone();
        if rng.chance(8) && trial.writer.records.len() < 700 {
            trial.writer.write(&mut rng);
        }
        let often = if trial.writer.batch_is_open() { 1 } else { 3 };
        if rng.below(1000) < often && trial.writer.records.len() > 4 {
            trial.writer.overflow(&mut rng);
        }
        trial.rng = rng;
        if trial.rng.below(1000) < 1 {
            trial.restart_primary();
        }
        if trial.rng.below(1000) < 4 {
            let conns: Vec<_> = trial.writer.conns.keys().copied().collect();
            if !conns.is_empty() {
                let conn = conns[trial.rng.index(conns.len())];
                trial.hang_up(conn);
            }
        }
        if crashes && trial.rng.below(1000) < 4 {
            let power = trial.rng.chance(60);
            trial.crash(power);
        }
        trial.turn();
        trial.check_promises();
    }
}

/// A first sync without accidents, then the life above.
fn start(trial: &mut Trial) {
    for _ in 0..8000 {
        if promotable(trial) {
            break;
        }
        live(trial, 20, false);
    }
}

/// Whether there was a recovery point to promote.
fn promotable(trial: &Trial) -> bool {
    trial.machine.status(trial.now).synced
}

fn alone(seed: u64) -> bool {
    println!("seed {seed}");
    let mut trial = Trial::new(seed, false);
    start(&mut trial);
    live(&mut trial, 3000, true);
    if !promotable(&trial) {
        return false;
    }
    let crashes = trial.rng.below(4);
    trial.promote(false, crashes, Seq(0));
    true
}

fn with_table(seed: u64) -> bool {
    println!("seed {seed}");
    let mut trial = Trial::new(seed, true);
    trial.writer.bunker = trial.rng.chance(50);
    start(&mut trial);
    live(&mut trial, 3000, true);
    if !promotable(&trial) {
        return false;
    }
    // The table knows at least what DR was acknowledged; perhaps everything.
    let all = trial.writer.records.len();
    let durable = trial.writer.durable;
    let least = trial.writer.records.partition_point(|record| record.seq <= durable);
    let known = least + trial.rng.index(all - least + 1);
    let known_tail = trial.writer.records[known - 1].seq;
    trial.give_region(known);
    let crashes = trial.rng.below(4);
    let report = trial.promote(false, crashes, known_tail);
    assert_eq!(report.aux, "read");
    if trial.writer.bunker && !trial.writer.batch_is_open() {
        assert!(report.cut_seq >= known_tail, "everything known can be had");
    }
    true
}

#[test]
fn promoted_without_an_auxiliary_the_image_is_a_prefix_and_the_report_is_exact() {
    let promoted = (0..rounds()).filter(|&seed| alone(seed)).count();
    assert!(promoted > rounds() as usize / 2, "{promoted} of {} trials got as far as a recovery point", rounds());
}

#[test]
fn promoted_with_a_status_table_every_known_write_is_in_the_image_or_in_the_report() {
    let promoted = (0..rounds()).filter(|&seed| with_table(1000 + seed)).count();
    assert!(promoted > rounds() as usize / 2, "{promoted} of {} trials got as far as a recovery point", rounds());
}

/// A life, then harm between a stop and a start, perhaps more life, and a promotion by whom is left: what is
/// claimed is true, and what is not known is said. Whether it was promoted, and whether by force.
fn harmed(seed: u64) -> Option<bool> {
    println!("seed {seed}");
    let auxiliary = seed.is_multiple_of(2);
    let mut trial = Trial::new(seed, auxiliary);
    trial.writer.bunker = trial.rng.chance(50);
    start(&mut trial);
    live(&mut trial, 2000, true);
    if !promotable(&trial) {
        return None;
    }
    assert!(!trial.in_doubt(), "nothing was harmed yet");
    let clean = trial.rng.chance(30);
    if clean {
        trial.stop_cleanly();
    }
    trial.stop_applying(|trial| {
        for _ in 0..=trial.rng.index(2) {
            let what = EVERY_HARM[trial.rng.index(EVERY_HARM.len())];
            let done = harm(trial, what);
            println!("{what:?}: {done}, clean {clean}");
        }
    });
    if trial.rng.chance(30) {
        trial.restart_primary();
    }
    if trial.rng.chance(60) {
        let (turns, crashes) = (trial.rng.index(6000), trial.rng.chance(50));
        live(&mut trial, turns, crashes);
    }
    if !promotable(&trial) {
        return None;
    }
    let all = trial.writer.records.len();
    let durable = trial.writer.durable;
    let least = trial.writer.records.partition_point(|record| record.seq <= durable);
    let known = least + trial.rng.index(all - least + 1);
    let mut known_tail = Seq(0);
    if auxiliary && trial.rng.chance(70) {
        trial.give_region(known);
        known_tail = trial.writer.records[known - 1].seq;
    }
    let crashes = trial.rng.below(4);
    let report = trial.promote_damaged(crashes, known_tail);
    Some(damage_in(&report).is_some())
}

#[test]
fn promoted_after_damage_at_rest_what_is_claimed_is_true_and_what_is_not_known_is_said() {
    let done: Vec<bool> = (0..rounds()).filter_map(|seed| harmed(2000 + seed)).collect();
    let incomplete = done.iter().filter(|incomplete| **incomplete).count();
    println!("{} promoted, {incomplete} of them incomplete", done.len());
    assert!(done.len() > rounds() as usize / 4 && incomplete > 0 && incomplete < done.len());
}

#[test]
#[ignore = "for a seed from the environment"]
fn one_seed() {
    let seed: u64 = std::env::var("SEED").ok().and_then(|it| it.parse().ok()).unwrap_or(0);
    if seed < 1000 {
        alone(seed);
    } else if seed < 2000 {
        with_table(seed);
    } else {
        harmed(seed);
    }
}
