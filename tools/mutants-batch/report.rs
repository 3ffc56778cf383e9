//! What became of the mutants: kept from run to run, held against what is explained, and said.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use crate::compile::Build;
use crate::list::{Mutant, Out};
use crate::run::Verdict;

/// A verdict, and what it holds for.
#[derive(Clone)]
pub struct Result_ {
    pub verdict: Verdict,
    /// Number of stages that it passed.
    pub stages: usize,
    /// Of the file, and of everything: what is missed may be caught when a test changes, not what is caught.
    pub file: u64,
    pub all: u64,
}

/// Verdicts of former runs and of this one, by key.
pub struct Results {
    known: BTreeMap<String, Result_>,
    log: File,
}

impl Results {
    pub fn open(path: &Path) -> Result<Results, String> {
        let mut known = BTreeMap::new();
        for line in fs::read_to_string(path).unwrap_or_default().lines() {
            if let Some((key, result)) = parse(line) {
                known.insert(key, result);
            }
        }
        let log = File::options().create(true).append(true).open(path);
        Ok(Results { known, log: log.map_err(|error| format!("{}: {error}", path.display()))? })
    }

    pub fn get(&self, key: &str) -> Option<&Result_> {
        self.known.get(key)
    }

    pub fn add(&mut self, key: &str, result: Result_) -> std::io::Result<()> {
        let (word, by) = match &result.verdict {
            Verdict::Caught(by) => ("caught", by.as_str()),
            Verdict::Timeout(by) => ("timeout", by.as_str()),
            Verdict::Missed => ("missed", "-"),
        };
        writeln!(self.log, "{key}\t{word}\t{by}\t{}\t{}\t{}", result.stages, result.file, result.all)?;
        self.known.insert(key.to_owned(), result);
        Ok(())
    }
}

fn parse(line: &str) -> Option<(String, Result_)> {
    let mut fields = line.split('\t');
    let (key, word, by) = (fields.next()?, fields.next()?, fields.next()?);
    let verdict = match word {
        "caught" => Verdict::Caught(by.into()),
        "timeout" => Verdict::Timeout(by.into()),
        _ => Verdict::Missed,
    };
    let stages = fields.next()?.parse().ok()?;
    let (file, all) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((key.into(), Result_ { verdict, stages, file, all }))
}

/// Survivors that are explained: a line with the key, then an indented line with the reason.
pub fn explained(path: &Path) -> Result<BTreeMap<String, String>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let (mut all, mut key) = (BTreeMap::new(), None);
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        match (line.strip_prefix("    "), key.take()) {
            (Some(reason), Some(key)) => drop(all.insert(key, reason.to_owned())),
            (None, None) => key = Some(line.to_owned()),
            _ => return Err(format!("{}: a mutant has one line of reason: {line}", path.display())),
        }
    }
    Ok(all)
}

#[derive(Default)]
struct Row {
    caught: u32,
    timeout: u32,
    explained: u32,
    missed: u32,
    unviable: u32,
    unswitchable: u32,
    not_run: u32,
}

/// Prints the table and what is to be looked at; false where a survivor has no reason, or a reason no survivor.
pub fn report(
    mutants: &[Mutant],
    build: &Build,
    results: &Results,
    explained: &BTreeMap<String, String>,
    last: usize,
    reached: impl Fn(u32) -> bool,
) -> bool {
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    let (mut missed, mut out, mut stale) = (String::new(), String::new(), BTreeSet::new());
    let files: BTreeSet<&str> = mutants.iter().map(|mutant| mutant.file.as_str()).collect();
    for key in explained.keys().filter(|key| files.contains(key.split(": ").next().unwrap_or(""))) {
        stale.insert(key.as_str());
    }
    for (number, mutant) in (1u32..).zip(mutants) {
        let row = rows.entry(&mutant.file).or_default();
        match build.out.get(&number) {
            Some(Out::Unviable(_)) => {
                row.unviable += 1;
                continue;
            }
            Some(Out::Unswitchable(why)) => {
                row.unswitchable += 1;
                let _ = writeln!(out, "{}\n    {why}", mutant.name);
                continue;
            }
            None => {}
        }
        // What passed fewer stages, or other tests, has not shown yet that it survives.
        let counts = |result: &&Result_| match result.verdict {
            Verdict::Missed => result.all == build.digest && result.stages > last,
            Verdict::Caught(_) | Verdict::Timeout(_) => result.file == build.digests[&mutant.file],
        };
        let result = results.get(&mutant.key).filter(counts);
        match result.map(|result| &result.verdict) {
            Some(Verdict::Caught(_)) => row.caught += 1,
            Some(Verdict::Timeout(_)) => row.timeout += 1,
            Some(Verdict::Missed) if explained.contains_key(&mutant.key) => {
                stale.remove(mutant.key.as_str());
                row.explained += 1;
            }
            Some(Verdict::Missed) => {
                row.missed += 1;
                let word = if reached(number) { "" } else { "  (no test comes by)" };
                let _ = writeln!(missed, "{}{word}", mutant.name);
            }
            None => {
                stale.remove(mutant.key.as_str());
                row.not_run += 1;
            }
        }
    }
    if !out.is_empty() {
        println!("not switchable:\n{out}");
    }
    if !missed.is_empty() {
        println!("missed, and not explained:\n{missed}");
    }
    for key in &stale {
        println!("stale, nothing survives there: {key}");
    }
    table(&rows);
    missed.is_empty() && stale.is_empty()
}

fn table(rows: &BTreeMap<&str, Row>) {
    println!("{:32} caught timeout explained missed | unviable not-switchable not-run", "");
    let mut all = Row::default();
    let line = |name: &str, row: &Row| {
        let Row { caught, timeout, explained, missed, unviable, unswitchable, not_run } = row;
        println!(
            "{name:32} {caught:6} {timeout:7} {explained:9} {missed:6} | {unviable:8} {unswitchable:14} {not_run:7}"
        );
    };
    for (name, row) in rows {
        line(name, row);
        all.caught += row.caught;
        all.timeout += row.timeout;
        all.explained += row.explained;
        all.missed += row.missed;
        all.unviable += row.unviable;
        all.unswitchable += row.unswitchable;
        all.not_run += row.not_run;
    }
    line("all", &all);
    let caught = all.caught + all.timeout;
    let run = caught + all.explained + all.missed;
    println!("{caught} of {run} that were run are caught: {:.1} %", 100.0 * f64::from(caught) / f64::from(run.max(1)));
}
