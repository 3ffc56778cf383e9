//! All mutants that cargo-mutants lists for some files in one build, and one run of the tests for each.
//!
//! ```text
//!   list      what cargo-mutants lists
//!   rewrite   a file with its mutants behind a switch; switch.rs is the switch
//!   compile   the copy of the project, and its build; what does not compile is taken out
//!   run       which tests reach a mutant, and whether one of them fails
//!   report    what came of it, held against what is explained
//! ```
//!
//! Called by tools/mutants, from the directory of the project: `mutants-batch WORK EXPLAINED LAST MINUTES JOBS ONLY < LIST`.

mod compile;
mod list;
mod report;
mod rewrite;
mod run;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use compile::Build;
use list::Mutant;
use report::{Result_, Results};
use run::{Runner, STAGES, Verdict};

fn main() -> ExitCode {
    match go() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mutants: {error}");
            ExitCode::from(2)
        }
    }
}

struct Plan {
    work: PathBuf,
    explained: BTreeMap<String, String>,
    /// The last stage to be run.
    last: usize,
    minutes: u64,
    jobs: usize,
    /// Beginnings of the names of files whose mutants are run; the others are only built.
    only: Vec<String>,
}

fn plan() -> Result<Plan, String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [work, explained, last, minutes, jobs, only] = args.as_slice() else { return Err("see tools/mutants".into()) };
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text} is not a number"));
    let known = || format!("--until takes one of {}", STAGES.join(", "));
    Ok(Plan {
        work: std::path::absolute(work).map_err(|error| error.to_string())?,
        explained: report::explained(Path::new(explained))?,
        last: STAGES.iter().position(|stage| stage == last).ok_or_else(known)?,
        minutes: number(minutes)?,
        jobs: usize::try_from(number(jobs)?).unwrap_or(1).max(1),
        only: only.split(',').map(String::from).collect(),
    })
}

fn go() -> Result<bool, String> {
    let plan = plan()?;
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|error| error.to_string())?;
    let mutants = list::read(&text)?;
    if mutants.is_empty() {
        return Err("there are no mutants in these files".into());
    }
    eprintln!("{} mutants", mutants.len());
    let targets = ["--lib", "--test", "format", "--test", "model", "--test", "sim"];
    let build = compile::build(&plan.work, &mutants, &targets)?;
    let runner = Runner::new(&build, &plan.work, plan.last)?;
    let results = Mutex::new(Results::open(&plan.work.join("results"))?);
    run_all(&plan, &mutants, &build, &runner, &results)?;
    let results = results.into_inner().map_err(|_| "a thread panicked")?;
    Ok(report::report(&mutants, &build, &results, &plan.explained, plan.last, |number| runner.reached(number)))
}

/// Runs what is not known yet, `jobs` at a time.
fn run_all(
    plan: &Plan,
    mutants: &[Mutant],
    build: &Build,
    runner: &Runner,
    results: &Mutex<Results>,
) -> Result<(), String> {
    let until = Instant::now() + Duration::from_secs(plan.minutes * 60);
    let mut waiting = Vec::new();
    let asked = |mutant: &Mutant| plan.only.iter().any(|only| mutant.file.starts_with(only));
    let all = (1u32..).zip(mutants).filter(|(number, mutant)| !build.out.contains_key(number) && asked(mutant));
    for (number, mutant) in all {
        let results = results.lock().map_err(|_| "a thread panicked")?;
        let known = results.get(&mutant.key).filter(|known| known.file == build.digests[&mutant.file]);
        let first = match known {
            Some(Result_ { verdict: Verdict::Missed, stages, all, .. }) if *all == build.digest => *stages,
            Some(Result_ { verdict: Verdict::Missed, .. }) | None => 0,
            Some(_) => continue,
        };
        if first <= plan.last {
            waiting.push((number, mutant, first));
        }
    }
    // Those that are expected to survive take the longest and tell the least.
    waiting.sort_by_key(|(_, mutant, _)| plan.explained.contains_key(&mutant.key));
    eprintln!("{} to run", waiting.len());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..plan.jobs {
            scope.spawn(|| {
                while let Some(&(number, mutant, first)) = waiting.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if Instant::now() > until {
                        return;
                    }
                    let verdict = runner.run(number, &mutant.file, first, plan.last);
                    let file = build.digests[&mutant.file];
                    let result = Result_ { verdict, stages: plan.last + 1, file, all: build.digest };
                    let mut results = results.lock().expect("nothing panics while it is held");
                    results.add(&mutant.key, result).expect("the results can be written");
                }
            });
        }
    });
    Ok(())
}
