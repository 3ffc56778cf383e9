//! Owns the running of seeds: one at a time and deterministic, many at once on all cores, the smallest setup that
//! still fails, and what is said of a failure.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use farshore::core::planted::Bug;

use crate::bounds::Met;
use crate::checkers::Violation;
use crate::cluster::{EVENTS_MAX, World};
use crate::setup::{Disaster, End, Setup};

/// What is left out of a seed's setup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edit {
    /// Faults, by their place in the setup.
    faults: BTreeSet<usize>,
    requests_max: Option<u64>,
    clients_max: Option<u64>,
    /// No interruption, no plan, no loss of power beside the disaster itself.
    plain_end: bool,
}

impl Edit {
    /// The setup without what is left out.
    pub fn apply(&self, setup: &mut Setup) {
        let mut index = 0;
        setup.faults.retain(|_| {
            index += 1;
            !self.faults.contains(&(index - 1))
        });
        setup.requests = setup.requests.min(self.requests_max.unwrap_or(u64::MAX));
        setup.clients = setup.clients.min(self.clients_max.unwrap_or(u64::MAX));
        if let (true, End::Disaster(end)) = (self.plain_end, &mut setup.end) {
            *end = Disaster { dr_power_loss: false, plan_first: false, interruptions: 0, ..*end };
        }
    }
}

/// One run of one seed.
#[derive(Clone, Debug, Default)]
pub struct Run {
    pub seed: u64,
    pub edit: Edit,
    pub bug: Option<Bug>,
    pub recording: bool,
    /// More than this are taken for a livelock, beside the bound that holds for all.
    pub events_max: Option<u64>,
}

/// A run in which nothing was violated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    pub simulated_ns: u64,
    pub events: u64,
    pub summary: String,
    /// Of all that happened and all that was left, if it was recorded.
    pub digest: Option<u64>,
    /// Bounds that were come to.
    pub met: Met,
}

pub struct Failure {
    pub run: Run,
    pub violation: Violation,
    pub events: u64,
    digest: Option<u64>,
    setup: Setup,
    landmarks: Vec<String>,
    history: Vec<String>,
}

#[cfg(feature = "planted")]
fn plant(bug: Option<Bug>) {
    farshore::core::planted::plant(bug);
}

#[cfg(not(feature = "planted"))]
fn plant(bug: Option<Bug>) {
    assert!(bug.is_none(), "bugs are planted with the feature `planted` only");
}

thread_local! {
    /// While a seed runs: the words of its panic.
    static QUIET: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps the panics of a seed for its report; others are shown as ever.
fn hush() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let shown = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let kept = QUIET.with_borrow_mut(|q| q.as_mut().map(|words| *words = info.to_string()).is_some());
            if !kept {
                shown(info);
            }
        }));
    });
}

impl Run {
    pub fn of(seed: u64) -> Run {
        Run { seed, ..Run::default() }
    }

    /// Runs it to its end, on this thread alone.
    pub fn go(&self) -> Result<Passed, Box<Failure>> {
        hush();
        plant(self.bug);
        QUIET.with_borrow_mut(|panic| *panic = Some(String::new()));
        let mut world = World::new(self.seed, &self.edit, self.recording);
        world.events_max = self.events_max.map_or(EVENTS_MAX, |max| max.min(EVENTS_MAX));
        let outcome = catch_unwind(AssertUnwindSafe(|| world.run()));
        let panic = QUIET.with_borrow_mut(Option::take).unwrap_or_default();
        plant(None);
        let violation = match outcome {
            Ok(Ok(())) => {
                let (simulated_ns, events) = (world.now_ns, world.events);
                let (summary, digest, met) = (world.summary(), world.digest(), world.met);
                return Ok(Passed { simulated_ns, events, summary, digest, met });
            }
            Ok(Err(violation)) => violation,
            Err(_) => Violation::new("panic", panic),
        };
        Err(Box::new(Failure {
            run: self.clone(),
            violation,
            events: world.events,
            digest: world.digest(),
            setup: world.setup,
            landmarks: world.landmarks.into_iter().collect(),
            history: world.history.into_iter().collect(),
        }))
    }
}

/// The sums of many runs.
#[derive(Default)]
pub struct Totals {
    pub seeds: u64,
    pub simulated_ns: u64,
    pub events: u64,
    pub seconds: f64,
    /// Of what became of every seed, whatever their order: a change that is to change no behaviour leaves it alone.
    pub digest: u64,
    pub failures: Vec<Failure>,
    /// Seeds that came to each bound.
    pub met: BTreeMap<&'static str, u64>,
}

impl Totals {
    /// One line of figures.
    pub fn line(&self, from: u64) -> String {
        let simulated = self.simulated_ns as f64 / 1e9;
        format!(
            "{} seeds from {from}, {} failures, {} events; {:.0} seeds a second, {:.0} simulated seconds a second \
             ({simulated:.0} in {:.1} s on {} threads); outcomes {:016x}",
            self.seeds,
            self.failures.len(),
            self.events,
            self.seeds as f64 / self.seconds,
            simulated / self.seconds,
            self.seconds,
            threads(),
            self.digest
        )
    }
}

/// Threads that run seeds: `SIM_THREADS`, or one for each core.
pub fn threads() -> usize {
    let asked = crate::env("SIM_THREADS").and_then(|n| usize::try_from(n).ok());
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1)
}

/// Gives numbers below `count` to all threads until they are done or one says that it is enough.
pub fn on_all_threads(count: u64, work: impl Fn(u64) -> bool + Sync) {
    let (next, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    if !work(number) {
                        enough.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

fn digest(seed: u64, outcome: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(outcome.as_bytes(), seed)
}

/// Runs seeds on all cores until they, the time or the failures run out.
pub fn run_seeds(from: u64, count: u64, patience: Duration, failures_max: usize) -> Totals {
    let started = Instant::now();
    let totals = Mutex::new(Totals::default());
    let trace = std::env::var_os("SIM_TRACE").is_some();
    // A digest of each seed's whole history: what is to change no seed's meaning leaves all of them alone.
    let digests = std::env::var_os("SIM_DIGESTS").is_some();
    on_all_threads(count, |number| {
        if started.elapsed() > patience {
            return false;
        }
        let seed = from + number;
        if trace {
            println!("seed {seed}");
        }
        let began = Instant::now();
        let recording = digests || std::env::var_os("SIM_LIVE").is_some();
        let outcome = Run { recording, ..Run::of(seed) }.go();
        let mut totals = totals.lock().expect("nothing panics while it is held");
        totals.seeds += 1;
        match outcome {
            Ok(passed) => {
                totals.simulated_ns += passed.simulated_ns;
                totals.events += passed.events;
                passed.met.count(&mut totals.met);
                totals.digest ^= digest(seed, &passed.summary);
                if digests {
                    println!("seed {seed}: {}, history {:016x}", passed.summary, passed.digest.unwrap_or_default());
                }
                if count == 1 || began.elapsed() > Duration::from_secs(10) {
                    println!("seed {seed}: {}, {:.1} s", passed.summary, began.elapsed().as_secs_f64());
                }
            }
            Err(failure) => {
                println!("seed {seed} violates {}: {}", failure.violation.invariant, failure.violation.text);
                totals.digest ^= digest(seed, &failure.violation.text);
                if digests {
                    println!("seed {seed}: history {:016x}", failure.digest.unwrap_or_default());
                }
                totals.failures.push(*failure);
            }
        }
        totals.failures.len() < failures_max
    });
    let mut totals = totals.into_inner().expect("nothing panics while it is held");
    totals.seconds = started.elapsed().as_secs_f64();
    totals.failures.sort_by_key(|failure| failure.run.seed);
    totals
}

/// How long a setup is made smaller, and runs that are tried at the most.
const SHRINK: Duration = Duration::from_secs(15);
const SHRINK_RUNS: u32 = 200;

/// Tries smaller setups until the time or the runs are used up.
struct Shrink<'a> {
    failure: &'a Failure,
    started: Instant,
    runs: u32,
    best: Edit,
}

impl Shrink<'_> {
    /// Keeps a setup if it breaks the same invariant.
    fn keeps(&mut self, edit: Edit) -> bool {
        self.runs += 1;
        if edit == self.best || self.runs > SHRINK_RUNS || self.started.elapsed() > SHRINK {
            return false;
        }
        // What goes on much longer than the failing run does not end as it did.
        let events_max = Some(self.failure.events * 2 + 20_000);
        let run = Run { edit, recording: false, events_max, ..self.failure.run.clone() };
        let same = run.go().is_err_and(|found| found.violation.invariant == self.failure.violation.invariant);
        if same {
            self.best = run.edit;
        }
        same
    }

    /// Fewer requests: by halves, then by less.
    fn requests(&mut self) {
        let mut step = self.best.requests_max.unwrap_or(self.failure.setup.requests) / 2;
        while step > 0 {
            let requests = self.best.requests_max.unwrap_or(self.failure.setup.requests);
            let fewer = Edit { requests_max: Some(requests.saturating_sub(step)), ..self.best.clone() };
            if requests <= step || !self.keeps(fewer) {
                step /= 2;
            }
        }
    }

    /// Fewer faults: half of them at once, then a quarter, at last one by one.
    fn faults(&mut self) {
        let count = self.failure.setup.faults.len();
        let mut width = count.div_ceil(2);
        while width > 0 {
            for from in (0..count).step_by(width) {
                let mut edit = self.best.clone();
                edit.faults.extend(from..count.min(from + width));
                self.keeps(edit);
            }
            width /= 2;
        }
    }

    fn clients(&mut self) {
        for clients_max in 1..self.failure.setup.clients {
            if self.keeps(Edit { clients_max: Some(clients_max), ..self.best.clone() }) {
                break;
            }
        }
    }
}

/// The smallest setup found that breaks the same invariant: without faults that do not matter, with fewer writes.
pub fn shrink(failure: &Failure) -> Edit {
    let mut shrink = Shrink { failure, started: Instant::now(), runs: 0, best: failure.run.edit.clone() };
    let plain = Edit { plain_end: true, ..shrink.best.clone() };
    if matches!(failure.setup.end, End::Disaster(_)) {
        shrink.keeps(plain);
    }
    shrink.requests();
    shrink.faults();
    shrink.clients();
    shrink.faults();
    shrink.requests();
    shrink.best
}

/// Lines of the last events of each role.
const ROLE_LINES: usize = 25;

/// How a seed is run again: with the feature that this build has, for some setups depend on it.
fn replay(seed: u64) -> String {
    if cfg!(feature = "planted") {
        format!("tools/sim --seed {seed}")
    } else {
        format!("SIM_SEED={seed} cargo test --locked --profile sim --test sim seeds -- --exact --nocapture")
    }
}

/// Says everything about a failing seed: the smallest setup that fails, and what happened last.
pub fn explain(failure: &Failure) -> String {
    let seed = failure.run.seed;
    let again = Run { recording: true, ..failure.run.clone() }.go().err();
    let same = again.as_ref().is_some_and(|found| found.violation == failure.violation);
    let edit = shrink(failure);
    let smaller = Run { recording: true, edit: edit.clone(), ..failure.run.clone() }.go().err();
    let shown = smaller.as_deref().or(again.as_deref()).unwrap_or(failure);
    let mut out = format!("{:#?}\n{}\n", shown.setup, shown.landmarks.join("\n"));
    for role in ["primary", "aux", "dr"] {
        let of_role = |line: &&String| line.split_once("ms  ").is_some_and(|(_, text)| text.starts_with(role));
        let lines: Vec<&String> = shown.history.iter().rev().filter(of_role).take(ROLE_LINES).collect();
        let _ = writeln!(out, "\nthe last events of {role}:");
        lines.iter().rev().for_each(|line| out.extend([line.as_str(), "\n"]));
    }
    let all = shown.history.len().saturating_sub(60);
    let _ = write!(out, "\nthe last events of all:\n{}\n", shown.history[all..].join("\n"));
    let kept = shown.setup.faults.len();
    let drawn = failure.setup.faults.len();
    let _ = write!(
        out,
        "\nsmallest setup that fails: {kept} of {drawn} faults, {} of {} requests, {} of {} clients; there: {}: {}\n\
         \nseed {seed} violates {}: {}\n{}revision {}; replay: {}\n",
        shown.setup.requests,
        failure.setup.requests,
        shown.setup.clients,
        failure.setup.clients,
        shown.violation.invariant,
        shown.violation.text,
        failure.violation.invariant,
        failure.violation.text,
        if same { "" } else { "(and the replay went another way: the run is not deterministic)\n" },
        std::env::var("SIM_REVISION").unwrap_or_else(|_| "not told (tools/sim tells it)".into()),
        replay(seed),
    );
    out
}
