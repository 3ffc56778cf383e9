//! Runs of mutants: which tests reach one, and whether one of them fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::compile::Build;

/// What is run, in this order; the first failure wins.
pub const STAGES: [&str; 5] = ["unit", "format", "lib", "model", "sim"];

/// Seeds of the simulator for each mutant: half of them from where every kind of fault is drawn.
const SEEDS: &str = "300";
const SEEDS_FROM: &str = "99850";

/// A mutant that takes this many times as much of a core as none, and some seconds, hangs.
const SLOWER: u32 = 4;
const GRACE: Duration = Duration::from_secs(3);

/// So many times as long by the clock: it may wait for others that use the machine.
const IDLE: u32 = 20;

/// Limits of memory and of time on a core, then the program.
const LIMITED: &str = "ulimit -v \"$0\" && ulimit -S -t \"$1\" && shift && exec nice -n 5 \"$@\"";
const SIGXCPU: i32 = 24;

/// Tests that take less are run before the others.
const QUICK: Duration = Duration::from_millis(60);

/// A stage without a mutant ends by then.
const BASELINE_MAX: Duration = Duration::from_secs(1800);

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

impl Baseline {
    /// What is kept of it: whose it is, how long all of it takes, and each test; milliseconds.
    fn write(&self, path: &Path, numbers: u64) -> std::io::Result<()> {
        let mut text = format!("{numbers}\n{}\n", self.took.as_millis());
        for (test, took) in &self.tests {
            text += &format!("{} {test}\n", took.as_millis());
        }
        fs::write(path, text)
    }

    fn read(path: &Path, numbers: u64) -> Option<Baseline> {
        let text = fs::read_to_string(path).ok()?;
        let mut lines = text.lines();
        let same = lines.next()?.parse() == Ok(numbers);
        let took = Duration::from_millis(lines.next()?.parse().ok()?);
        let test = |line: &str| {
            let (took, name) = line.split_once(' ')?;
            Some((name.to_owned(), Duration::from_millis(took.parse().ok()?)))
        };
        same.then(|| Baseline { took, tests: lines.filter_map(test).collect(), reached: BTreeMap::new() })
    }
}

impl Baseline {
    /// The tests of a stage that come by a mutant, in the order in which they are tried; an empty list is all tests.
    fn rounds(&self, stage: &str, number: u32, own: &str) -> Vec<Vec<&str>> {
        let Some(threads) = self.reached.get(&number) else { return Vec::new() };
        // A thread of no test: which one started it is not known.
        let known = threads.iter().all(|name| self.tests.contains_key(name));
        let wanted = |name: &&str| stage == "format" || name.starts_with(own) == (stage == "unit");
        let tests: Vec<&str> = match stage {
            "unit" | "lib" | "format" if known || stage == "unit" => {
                threads.iter().map(String::as_str).filter(wanted).collect()
            }
            _ => return vec![Vec::new()],
        };
        // The quick ones first, by themselves: most mutants never come to the slow ones.
        let (quick, slow): (Vec<&str>, Vec<&str>) = tests.into_iter().partition(|name| self.took(name) < QUICK);
        [quick, slow].into_iter().filter(|tests| !tests.is_empty()).collect()
    }

    fn took(&self, test: &str) -> Duration {
        self.tests.get(test).copied().unwrap_or_default()
    }
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
        // The unit tests are the lib's, too.
        for stage in STAGES.into_iter().filter(|stage| *stage == "lib" || STAGES[1..=last].contains(stage)) {
            let (kept, reached) = (work.join(format!("baseline-{stage}")), work.join(format!("reached-{stage}")));
            let mut baseline = match Baseline::read(&kept, build.numbers) {
                Some(baseline) => baseline,
                None => runner.measure(stage, &kept, &reached)?,
            };
            for line in fs::read_to_string(&reached).unwrap_or_default().lines() {
                if let Some((number, name)) = line.split_once(' ') {
                    baseline.reached.entry(number.parse().unwrap_or(0)).or_default().insert(name.to_owned());
                }
            }
            eprintln!("{stage}: {:.1} s, {} mutants reached", baseline.took.as_secs_f64(), baseline.reached.len());
            runner.baselines.insert(stage, baseline);
        }
        Ok(runner)
    }

    /// Runs a stage without a mutant, twice: how long it takes, and what it reaches.
    fn measure(&self, stage: &str, kept: &Path, reached: &Path) -> Result<Baseline, String> {
        let _ = fs::remove_file(reached);
        let _ = fs::remove_file(kept);
        let recording = [("MUTANT_REACHED", reached.to_string_lossy().into_owned())];
        let mut baseline = Baseline::default();
        for environment in [&recording[..], &[]] {
            let began = Instant::now();
            baseline.tests.clear();
            match self.process(stage, &[], environment, BASELINE_MAX, &mut baseline.tests) {
                Ended::Passed => baseline.took = began.elapsed(),
                Ended::Failed(test) => return Err(format!("without a mutant, {test} fails in {stage}")),
                Ended::Hung => return Err(format!("without a mutant, {stage} does not end")),
            }
        }
        baseline.write(kept, self.build.numbers).map_err(|error| format!("{}: {error}", kept.display()))?;
        Ok(baseline)
    }

    /// Runs a mutant through the stages from `first` to `last`.
    pub fn run(&self, number: u32, file: &str, first: usize, last: usize) -> Verdict {
        for &stage in &STAGES[first..=last] {
            let baseline = &self.baselines[if stage == "unit" { "lib" } else { stage }];
            for tests in baseline.rounds(stage, number, &module(file)) {
                let usual =
                    if tests.is_empty() { baseline.took } else { tests.iter().map(|it| baseline.took(it)).sum() };
                let chosen = [("MUTANT", number.to_string())];
                match self.process(stage, &tests, &chosen, GRACE + usual * SLOWER, &mut BTreeMap::new()) {
                    Ended::Passed => {}
                    Ended::Failed(by) => return Verdict::Caught(format!("{stage} {by}")),
                    Ended::Hung => return Verdict::Timeout(stage.into()),
                }
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
        command.args(["-c", LIMITED, MEMORY_KIB, &patience.as_secs().to_string()]).arg(path).args(fixed).args(tests);
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
        let mut running = String::new();
        let ended = watch(&mut child, patience * IDLE, &mut running, took);
        if !matches!(ended, Ended::Passed) {
            let _ = child.kill();
        }
        match (child.wait(), ended) {
            (Ok(status), Ended::Passed) if status.signal() == Some(SIGXCPU) => Ended::Hung,
            (Ok(status), Ended::Passed) if !status.success() => Ended::Failed(format!("{running} ({status})")),
            (Err(error), Ended::Passed) => Ended::Failed(error.to_string()),
            (_, ended) => ended,
        }
    }
}

/// Reads what the tests print until one fails, or they end.
fn watch(child: &mut Child, patience: Duration, running: &mut String, took: &mut BTreeMap<String, Duration>) -> Ended {
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
    loop {
        let line = match lines.recv_timeout(patience.saturating_sub(began.elapsed())) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => return Ended::Hung,
            Err(RecvTimeoutError::Disconnected) => return Ended::Passed,
        };
        if let Some(test) = line.strip_prefix("test ").and_then(|rest| rest.split(" ... ").next()) {
            test.trim_end_matches(" - should panic").clone_into(running);
        }
        let seed = line.starts_with("seed ") || line.contains("... seed ");
        if line.ends_with("FAILED") || seed && line.contains(" violates ") {
            return Ended::Failed(running.clone());
        }
        if line.ends_with("ok") {
            took.insert(running.clone(), last.elapsed());
            last = Instant::now();
        }
    }
}
