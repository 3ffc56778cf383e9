//! Rounds of random SIGKILL over the slow line, each with the oracle at its end. A few by default; `tools/crash` runs
//! as many as wanted:
//!
//! | variable | meaning |
//! |---|---|
//! | `CRASH_ROLE` | primary, dr, aux; stop: the rounds of `stop.rs` |
//! | `CRASH_ROUNDS` | how many |
//! | `CRASH_SEED` | of the first round; each next one adds 1 |

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farshore::cli::demo::load::Random;
use farshore::cli::demo::oracle::{Found, Promise};
use farshore::cli::demo::site::Role;

use crate::harness::{Group, SLOW};

/// Sums over rounds.
#[derive(Debug, Default)]
struct Sums {
    rounds: u64,
    asked: usize,
    acked: usize,
    kept: usize,
    reported: usize,
    kills: usize,
    lost_bytes: u64,
}

impl Sums {
    fn add(&mut self, asked: usize, found: Found, kills: usize, lost_bytes: u64) {
        self.rounds += 1;
        self.asked += asked;
        self.acked += found.acked;
        self.kept += found.kept;
        self.reported += found.reported;
        self.kills += kills;
        self.lost_bytes += lost_bytes;
    }
}

/// Kills the role at random moments under load. A peer comes back, and both sides have to be equal; at the end of every
/// round the primary is killed and DR promoted, and both held against the oracle.
fn round(role: Role, seed: u64, sums: &mut Sums) -> Result<()> {
    let mut random = Random::new(seed);
    let mode = ["order", "near", "sync", "bunker", "order"][random.below(5) as usize];
    let mut group = Group::started(SLOW, &format!("protect = \"{mode}\""))?;
    let origin = group.origin.clone();
    let mut plan = group.load_plan(seed);
    plan.depth = 1 + random.below(32) as usize;
    plan.bytes_max = 16 << random.below(3) << 10;
    // Sometimes more than the line carries, sometimes about as much.
    plan.pause = Duration::from_millis(random.below(4));
    let mut kills = 0;
    let mut log = farshore::cli::demo::load::Log::default();
    if role != Role::Primary {
        let load = farshore::cli::demo::load::Load::start(&plan, &origin)?;
        for _ in 0..=random.below(3) {
            std::thread::sleep(Duration::from_millis(50 + random.below(700)));
            group.site.kill(role)?;
            kills += 1;
            std::thread::sleep(Duration::from_millis(random.below(300)));
            group.site.start(role)?;
        }
        log = load.finish();
        ensure!(log.ends.is_empty(), "clients were disturbed: {:?}", log.ends);
        group.settle_and_compare(&log).context("after the restarts")?;
    }
    let load = farshore::cli::demo::load::Load::start(&plan, &origin)?;
    std::thread::sleep(Duration::from_millis(20 + random.below(1500)));
    if role != Role::Primary && random.below(2) == 0 {
        // The promotion also meets a peer that has just come back.
        group.site.kill(role)?;
        kills += 1;
        std::thread::sleep(Duration::from_millis(random.below(200)));
        group.site.start(role)?;
        std::thread::sleep(Duration::from_millis(random.below(300)));
    }
    group.site.kill(Role::Primary)?;
    log.merge(load.finish());
    let report = group.site.promote(&[]).with_context(|| format!("protect = {mode}"))?;
    let found = group.check(&log, &report, Promise::Acknowledged).with_context(|| format!("protect = {mode}"))?;
    if role == Role::Primary && (mode == "sync" || mode == "bunker") {
        ensure!(found.reported == 0, "{mode} lost acknowledged writes: {found:?}");
    }
    sums.add(log.submissions.len(), found, kills + 1, report.missing_bytes);
    Ok(())
}

fn rounds(role: Role, count: u64, first_seed: u64) -> Result<()> {
    let (mut sums, begin) = (Sums::default(), Instant::now());
    for number in 0..count {
        let seed = first_seed + number;
        round(role, seed, &mut sums).with_context(|| format!("round {number}, CRASH_SEED={seed}"))?;
        if (number + 1) % 10 == 0 && number + 1 < count {
            eprintln!("{} rounds, {:.0} s", number + 1, begin.elapsed().as_secs_f64());
        }
    }
    let Sums { rounds, asked, acked, kept, reported, kills, lost_bytes } = sums;
    println!(
        "crash of {}: {rounds} rounds, {kills} kills, {asked} requests, {acked} acknowledged = {kept} in the image + \
         {reported} in the loss report; {lost_bytes} bytes lost in all; 0 differences, {:.0} s",
        role.word(),
        begin.elapsed().as_secs_f64()
    );
    Ok(())
}

#[test]
fn a_primary_killed_at_random_moments() -> Result<()> {
    rounds(Role::Primary, 2, 1)
}

#[test]
fn a_dr_killed_at_random_moments() -> Result<()> {
    rounds(Role::Dr, 1, 1)
}

#[test]
fn an_auxiliary_killed_at_random_moments() -> Result<()> {
    rounds(Role::Aux, 1, 1)
}

#[test]
#[ignore = "as long as asked for: see tools/crash"]
fn rounds_as_asked_for() -> Result<()> {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(Ok(default), |text| text.parse()).with_context(|| format!("{name} is a number"))
    };
    let word = std::env::var("CRASH_ROLE").unwrap_or_else(|_| "primary".into());
    if word == "stop" {
        return crate::stop::rounds(number("CRASH_ROUNDS", 10)?, number("CRASH_SEED", 1)?);
    }
    let role =
        Role::ALL.into_iter().find(|role| role.word() == word).context("CRASH_ROLE is primary, dr, aux or stop")?;
    rounds(role, number("CRASH_ROUNDS", 10)?, number("CRASH_SEED", 1)?)
}
