//! A primary that stands still at any moment and goes on after a promotion has returned acknowledges nothing (I7).
//!
//! ```text
//!   load, depth 32 ──► SIGSTOP ──► promote returns ──► clients drain ──► SIGCONT ──► count
//! ```
//!
//! While the process stands still nothing of it can reach its clients. So whatever they read before it goes on left it
//! before the promotion returned, and whatever they read afterwards did not. A few rounds by default; `tools/crash --role
//! stop` runs as many as wanted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farshore::cli::demo::load::{Load, Random};
use farshore::cli::demo::oracle::Promise;
use farshore::cli::demo::site::Role;

use crate::harness::{FAST, Group};

/// Connections to each of the two volumes: the more of them, the longer the sending of one turn's answers takes.
const CONNECTIONS: usize = 8;
const DEPTH: usize = 32;
/// Rounds under way at a time: they mostly wait for leases.
const AT_ONCE: u64 = 3;
/// Nothing new for so long: the clients have read everything there was.
const QUIET: Duration = Duration::from_millis(200);
/// How long a primary that goes on is watched.
const WATCHED: Duration = Duration::from_millis(1200);

/// What a round saw.
struct Seen {
    /// Acknowledged before the primary went on.
    before: u64,
    /// Acknowledged afterwards.
    after: u64,
}

fn round(seed: u64) -> Result<Seen> {
    let mut random = Random::new(seed);
    let mode = ["near", "order", "async", "bunker"][random.below(4) as usize];
    let group = Group::started(FAST, &format!("protect = \"{mode}\""))?;
    let mut plan = group.load_plan(seed);
    (plan.connections, plan.depth) = (CONNECTIONS, DEPTH);
    plan.bytes_max = 8 << 10;
    let load = Load::start(&plan, &group.origin)?;
    std::thread::sleep(Duration::from_micros(100_000 + random.below(400_000)));
    group.site.freeze(Role::Primary)?;
    let report = group.site.promote(&[]).with_context(|| format!("protect = {mode}"))?;
    let before = drained(&load);
    group.site.thaw(Role::Primary)?;
    std::thread::sleep(WATCHED);
    let after = load.acked() - before;
    let log = load.finish();
    // In `async` the last instants are not known to anybody: there is nothing to hold the report against.
    if after == 0 && mode != "async" {
        group.check(&log, &report, Promise::Acknowledged).with_context(|| format!("protect = {mode}"))?;
    }
    Ok(Seen { before, after })
}

/// Acknowledgements, once no more are being read.
fn drained(load: &Load) -> u64 {
    let (mut count, mut since) = (load.acked(), Instant::now());
    while since.elapsed() < QUIET {
        std::thread::sleep(QUIET / 20);
        if load.acked() != count {
            (count, since) = (load.acked(), Instant::now());
        }
    }
    count
}

/// Rounds with the seeds from `first_seed` on, and one line of counts.
pub fn rounds(count: u64, first_seed: u64) -> Result<()> {
    let begin = Instant::now();
    let (next, before) = (AtomicU64::new(0), AtomicU64::new(0));
    let (late_rounds, late) = (AtomicU64::new(0), AtomicU64::new(0));
    let work = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            let seed = first_seed + number;
            let seen = round(seed).with_context(|| format!("round {number}, CRASH_SEED={seed}"))?;
            before.fetch_add(seen.before, Ordering::Relaxed);
            if seen.after > 0 {
                eprintln!(
                    "round {number}, CRASH_SEED={seed}: {} acknowledged after the promotion returned",
                    seen.after
                );
                late_rounds.fetch_add(1, Ordering::Relaxed);
                late.fetch_add(seen.after, Ordering::Relaxed);
            }
        }
    };
    let ended: Vec<Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE.min(count)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a round panicked")).collect()
    });
    ended.into_iter().collect::<Result<()>>()?;
    let (late_rounds, late) = (late_rounds.into_inner(), late.into_inner());
    println!(
        "stop of the primary: {count} rounds, {} acknowledged before it went on; after a promotion had returned: {late}, in \
         {late_rounds} rounds; {:.0} s",
        before.into_inner(),
        begin.elapsed().as_secs_f64()
    );
    ensure!(late == 0, "{late} requests were acknowledged after a promotion had returned (I7)");
    Ok(())
}

#[test]
fn a_primary_stopped_at_random_moments_acknowledges_nothing_after_a_promotion() -> Result<()> {
    rounds(3, 1)
}
