//! Runs of mutants: which tests reach one, and whether one of them fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::compile::Build;

/// What is run, in this order; the first failure wins.
pub const STAGES: [&str; 5] = ["unit", "lib", "format", "model", "sim"];

/// Seeds of the simulator for each mutant: half of them from where every kind of fault is drawn.
const SEEDS: &str = "300";
const SEEDS_FROM: &str = "99850";

/// A mutant that takes this many times as long as none, and some seconds, hangs.
const SLOWER: u32 = 8;
const GRACE: Duration = Duration::from_secs(4);

/// Memory of one run, KiB: a mutant that grows without end is not to take the machine with it.
const MEMORY_KIB: &str = "6000000";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Caught(String),
    Timeout(String),
    Missed,
}

/// One stage without a mutant.
#[derive(Default)]
struct Baseline {
    took: Duration,
    /// Of each test.
    tests: BTreeMap<String, Duration>,
    /// Threads that come by each mutant: mostly named after their test.
    reached: BTreeMap<u32, BTreeSet<String>>,
}

pub struct Runner<'a> {
    build: &'a Build,
    baselines: BTreeMap<&'static str, Baseline>,
}

/// What came of one process.
enum Ended {
    Passed,
    Failed(String),
    Hung,
}

/// The binary of a stage, and what it is asked to run beside single tests.
fn binary(stage: &str) -> (&str, &[&str]) {
    match stage {
        "unit" | "lib" => ("lib", &[]),
        "sim" => ("sim", &["seeds", "--exact"]),
        other => (other, &[]),
    }
}

/// `core::overlap::` for `src/core/overlap.rs`.
fn module(file: &str) -> String {
    let inside = file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    format!("{}::", inside.replace('/', "::"))
}

impl<'a> Runner<'a> {
    /// Runs the stages up to `last` without a mutant, and notes which mutants each test comes by.
    pub fn new(build: &'a Build, work: &Path, last: usize) -> Result<Runner<'a>, String> {
        let mut runner = Runner { build, baselines: BTreeMap::new() };
        for stage in STAGES[1..].iter().filter(|stage| STAGES[..=last.max(1)].contains(stage)) {
            let path = work.join(format!("reached-{stage}"));
            let _ = fs::remove_file(&path);
            let mut baseline = Baseline::default();
            let recording = [("MUTANT_REACHED", path.to_string_lossy().into_owned())];
            let ended = runner.process(stage, &[], &recording, Duration::from_secs(1200), &mut baseline.tests);
            match ended {
                Ended::Passed => {}
                Ended::Failed(test) => return Err(format!("without a mutant, {test} fails in {stage}")),
                Ended::Hung => return Err(format!("without a mutant, {stage} does not end")),
            }
            for line in fs::read_to_string(&path).unwrap_or_default().lines() {
                if let Some((number, name)) = line.split_once(' ') {
                    baseline.reached.entry(number.parse().unwrap_or(0)).or_default().insert(name.to_owned());
                }
            }
            // Recording is slow: how long it takes is measured without.
            let began = Instant::now();
            runner.process(stage, &[], &[], Duration::from_secs(1200), &mut BTreeMap::new());
            baseline.took = began.elapsed();
            eprintln!("{stage}: {:.1} s, {} mutants reached", baseline.took.as_secs_f64(), baseline.reached.len());
            runner.baselines.insert(stage, baseline);
        }
        Ok(runner)
    }

    /// Runs a mutant through the stages from `first` to `last`.
    pub fn run(&self, number: u32, file: &str, first: usize, last: usize) -> Verdict {
        let own = module(file);
        for &stage in &STAGES[first..=last] {
            let baseline = &self.baselines[if stage == "unit" { "lib" } else { stage }];
            let Some(threads) = baseline.reached.get(&number) else { continue };
            let known = threads.iter().all(|name| baseline.tests.contains_key(name));
            let mut tests: Vec<&str> = Vec::new();
            match stage {
                "unit" => tests.extend(threads.iter().map(String::as_str).filter(|name| name.starts_with(&own))),
                "lib" | "format" if known => {
                    let is_own = |name: &&str| stage == "lib" && name.starts_with(&own);
                    tests.extend(threads.iter().map(String::as_str).filter(|name| !is_own(name)));
                }
                _ => {}
            }
            // A thread of no test: which one started it is not known, and all are run.
            if tests.is_empty() && (stage == "unit" || (known && matches!(stage, "lib" | "format"))) {
                continue;
            }
            let usual = match tests.as_slice() {
                [] => baseline.took,
                tests => tests.iter().filter_map(|name| baseline.tests.get(*name)).sum(),
            };
            let chosen = [("MUTANT", number.to_string())];
            match self.process(stage, &tests, &chosen, GRACE + usual * SLOWER, &mut BTreeMap::new()) {
                Ended::Passed => {}
                Ended::Failed(by) => return Verdict::Caught(format!("{stage} {by}")),
                Ended::Hung => return Verdict::Timeout(stage.into()),
            }
        }
        Verdict::Missed
    }

    pub fn reached(&self, number: u32) -> bool {
        self.baselines.values().any(|baseline| baseline.reached.contains_key(&number))
    }

    /// One run of a test binary, ended at the first test that fails.
    fn process(
        &self,
        stage: &str,
        tests: &[&str],
        environment: &[(&str, String)],
        patience: Duration,
        took: &mut BTreeMap<String, Duration>,
    ) -> Ended {
        let (name, fixed) = binary(stage);
        let Some(path) = self.build.binaries.get(name) else { return Ended::Failed(format!("no binary {name}")) };
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -v \"$0\" && exec nice -n 5 \"$@\"", MEMORY_KIB]).arg(path).args(fixed).args(tests);
        if !tests.is_empty() {
            command.arg("--exact");
        }
        command
            .args(["--test-threads", "1", "--nocapture"])
            .envs(environment.iter().map(|(name, value)| (name, value)));
        // Failures are not made smaller: that there is one is enough.
        command.env("PROPTEST_MAX_SHRINK_ITERS", "0").env("RUST_BACKTRACE", "0");
        command.envs([("SIM_FROM", SEEDS_FROM), ("SIM_SEEDS", SEEDS), ("SIM_SECONDS", "3600"), ("SIM_THREADS", "1")]);
        command.env("MODEL_SECONDS", "3600").env("FARSHORE_DR_SEEDS", "20").current_dir(&self.build.tree);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return Ended::Failed(error.to_string()),
        };
        let stdout = child.stdout.take().expect("it is piped");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let (began, mut last) = (Instant::now(), Instant::now());
        let mut running = String::new();
        let ended = loop {
            match lines.recv_timeout(patience.saturating_sub(began.elapsed())) {
                Ok(line) => {
                    if let Some(test) = line.strip_prefix("test ").and_then(|rest| rest.split(" ... ").next()) {
                        running = test.to_owned();
                    }
                    if line.ends_with("FAILED")
                        || (line.starts_with("seed ") || line.contains("... seed ")) && line.contains(" violates ")
                    {
                        break Ended::Failed(running.clone());
                    }
                    if line.ends_with("ok") {
                        took.insert(running.clone(), last.elapsed());
                        last = Instant::now();
                    }
                }
                Err(RecvTimeoutError::Timeout) => break Ended::Hung,
                Err(RecvTimeoutError::Disconnected) => break Ended::Passed,
            }
        };
        if !matches!(ended, Ended::Passed) {
            let _ = child.kill();
        }
        match (child.wait(), ended) {
            (Ok(status), Ended::Passed) if !status.success() => Ended::Failed(format!("{running} ({status})")),
            (Err(error), Ended::Passed) => Ended::Failed(error.to_string()),
            (_, ended) => ended,
        }
    }
}
