//! `farshore demo`: the whole story on one machine, told step by step, with every byte checked at the end.
//!
//! ```text
//!   files of this machine ─► mke2fs ─► nbdcopy ──┐                    ┌─► aux
//!                                                ├─NBD─► primary ─────┤
//!   random writes, 4 connections ────────────────┘      ▲ SIGKILL     └─slow line─► dr ─► promote ─► NBD ─► check
//! ```

mod input;
pub mod load;
pub mod nbd;
pub mod oracle;
pub mod site;

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::arguments::Demo;
use super::failure::Failure;
use super::promote::{Tally, summary};
use super::relay::line::Settings;
use super::view::duration;
use crate::cluster::losses::MissingWrites;
use crate::cluster::size::human_size;
use crate::cluster::status::{PrimaryStatus, PromoteReport};
use crate::core::ids::{Seq, Volume};
use crate::limits::SOCKET_PATH_BYTES_MAX;
use input::Input;
use load::{Load, Log, Origin};
use oracle::{Found, Oracle, Promise};
use site::{Role, Scratch, Site, find_program};

/// The volume with the filesystem, and the one with the random writes.
const FILES: (&str, u16, u64) = ("files", 0, 96 << 20);
const DB: (&str, u16, u64) = ("db", 1, 64 << 20);
/// The line to DR: 20 ms there and back, 100 Mbit/s.
const LINE: Settings = Settings { delay: Duration::from_millis(10), bytes_per_second: 12.5e6 };
/// The workload runs at least this long, and until DR is behind.
const LOAD_AT_LEAST: Duration = Duration::from_secs(4);
const LOAD_AT_MOST: Duration = Duration::from_secs(15);
/// How far behind DR is to be when the primary is killed.
const LAG_WRITES_MIN: u64 = 100;

/// Runs the demo; exit status 0 only if everything holds.
pub fn run(options: &Demo, out: &mut dyn Write) -> Result<(), Failure> {
    let scratch = directory(options)?;
    let mut story = Story { out, json: options.json, begin: Instant::now(), step: Instant::now(), facts: json!({}) };
    let result = tell(&mut story, &scratch);
    let seconds = story.begin.elapsed().as_secs_f64();
    story.fact("seconds", json!(seconds));
    story.fact("ok", json!(result.is_ok()));
    match &result {
        Ok(()) => story.say(&format!("Everything held, in {}.", duration(seconds)))?,
        Err(error) => {
            story.fact("error", json!(format!("{error:#}")));
            story.say("")?;
        }
    }
    if scratch.keep {
        story.fact("dir", json!(scratch.path));
        story.say(&format!("Everything is left in {}", scratch.path.display()))?;
    }
    if options.json {
        writeln!(story.out, "{}", story.facts)?;
    }
    result.map_err(|error| Failure::failed(format!("the demo failed: {error:#}")))
}

/// The directory of the demo: new and empty, with room for the paths of sockets in it.
fn directory(options: &Demo) -> Result<Scratch, Failure> {
    let made = |error: anyhow::Error| Failure::failed(format!("{error:#}"));
    let Some(path) = &options.dir else {
        let mut scratch = Scratch::new("demo").map_err(made)?;
        scratch.keep = options.keep;
        return Ok(scratch);
    };
    let failed = |error: std::io::Error| Failure::failed(format!("{}: {error}", path.display()));
    if path.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Failure::refused(format!("{} is not empty; name a new directory", path.display())));
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
        // A slip of the pen is not to make a tree of directories, by the rights of whoever runs this.
        let (shown, parent) = (path.display(), parent.display());
        return Err(Failure::usage(format!(
            "{shown}: {parent} is not a directory that exists; make it first (mkdir -p), or name another --dir"
        )));
    }
    if !path.is_dir() {
        std::fs::create_dir(path).map_err(failed)?;
    }
    let path = path.canonicalize().map_err(failed)?;
    if path.as_os_str().len() + "/nbd-dr.sock".len() > SOCKET_PATH_BYTES_MAX {
        let shown = path.display();
        return Err(Failure::usage(format!("{shown}: too long a path for the sockets in it; name a shorter --dir")));
    }
    Ok(Scratch { path, keep: options.keep })
}

/// What has been said and found so far.
struct Story<'a> {
    out: &'a mut dyn Write,
    json: bool,
    begin: Instant,
    step: Instant,
    facts: Value,
}

impl Story<'_> {
    /// A line for people.
    fn say(&mut self, text: &str) -> std::io::Result<()> {
        if self.json {
            return Ok(());
        }
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }

    /// A step is done: says what came of it and how long it took.
    fn done(&mut self, text: &str) -> std::io::Result<()> {
        let took = duration(self.step.elapsed().as_secs_f64());
        self.step = Instant::now();
        self.say(&format!("  {text} ({took})"))
    }

    /// A field of the object that `--json` prints.
    fn fact(&mut self, name: &str, value: Value) {
        self.facts[name] = value;
    }
}

fn tell(story: &mut Story<'_>, scratch: &Scratch) -> Result<()> {
    story.say("farshore demo: three real processes on this machine, 20 ms and 100 Mbit/s between primary and DR")?;
    story.say("\n1. A filesystem made of this machine's own files")?;
    let input = Input::build(&scratch.path, FILES.2)?;
    story.fact("input", input.facts());
    story.done(&input.told())?;

    story.say("\n2. Auxiliary, DR and primary: volumes `files` and `db` with one write order over both")?;
    let mut site = Site::new(plan(scratch)?)?;
    site.start_all()?;
    story.done("three processes run, protect = \"order\": no reply before the order is durable at aux and DR")?;

    story.say("\n3. The filesystem is written through NBD")?;
    let by = input.copy_in(&site, FILES.0)?;
    story.done(&format!("written by {by}"))?;
    let settled = site.settle(Duration::from_secs(60))?.tail_seq;
    story.done(&format!("all of it crossed the slow line: seqs 1 to {settled} are applied at DR"))?;

    story.say(
        "\n4. Random writes, zeroes, trims and flushes: 4 connections, 64 in flight, more than the line carries",
    )?;
    let (log, before) = load_and_kill(&mut site)?;
    told_load(story, &log, &before)?;

    story.say("\n5. The DR site takes over")?;
    let report = promote(story, &site)?;

    story.say("\n6. Every byte of the promoted volumes, read through NBD, against the oracle")?;
    let found = check(story, &site, &input, &log, settled, &report)?;
    told_loss(story, &log, &before, &report, found)
}

fn plan(scratch: &Scratch) -> Result<site::Plan> {
    Ok(site::Plan {
        program: std::env::current_exe().context("finding this program")?,
        dir: scratch.path.clone(),
        volumes: [FILES, DB].iter().map(|(name, _, bytes)| ((*name).to_string(), *bytes)).collect(),
        line: LINE,
        settings: vec![
            ("group", "protect = \"order\"".into()),
            ("dr", "journal = \"32MiB\"\nspool = \"512MiB\"".into()),
        ],
    })
}

/// Runs the workload until DR is behind, then kills the primary in the middle of it.
fn load_and_kill(site: &mut Site) -> Result<(Log, PrimaryStatus)> {
    let plan = load::Plan {
        seed: u64::from(std::process::id()),
        address: site.export(Role::Primary),
        volumes: vec![(DB.0.into(), DB.1, DB.2)],
        connections: 4,
        depth: 16,
        bytes_max: 32 << 10,
        pause: Duration::ZERO,
    };
    let load = Load::start(&plan, &Origin::default()).context("starting the workload")?;
    let begin = Instant::now();
    let before = loop {
        std::thread::sleep(Duration::from_millis(50));
        let status = site.primary()?;
        let behind = status.lag_writes >= LAG_WRITES_MIN && status.inflight_writes > 0;
        if begin.elapsed() >= LOAD_AT_LEAST && behind {
            break status;
        }
        ensure!(begin.elapsed() < LOAD_AT_MOST, "DR never fell behind: {status:?}");
    };
    site.kill(Role::Primary)?;
    Ok((load.finish(), before))
}

fn told_load(story: &mut Story<'_>, log: &Log, before: &PrimaryStatus) -> Result<()> {
    let (asked, acked) = (log.submissions.len(), log.acked());
    story.done(&format!("SIGKILL of the primary in mid-write: {asked} requests asked, {acked} acknowledged"))?;
    story.say(&format!(
        "  a moment before, DR was {} writes behind: {}, {}",
        before.lag_writes,
        human_size(before.lag_bytes),
        duration(before.lag_seconds)
    ))?;
    let failed = log.submissions.iter().find(|one| one.failed.is_some());
    ensure!(failed.is_none(), "the primary failed a request: {failed:?}");
    story.fact("workload", json!({ "requests": asked, "acknowledged": acked, "flushes": log.flushes.len() }));
    let lag = json!({ "lag_writes": before.lag_writes, "lag_bytes": before.lag_bytes,
        "lag_seconds": before.lag_seconds, "inflight_writes": before.inflight_writes });
    story.fact("kill", lag);
    Ok(())
}

/// First the plan, which has to change nothing, then the promotion, which has to come to the same.
fn promote(story: &mut Story<'_>, site: &Site) -> Result<PromoteReport> {
    let plan = site.promote(&["--plan"])?;
    story.done(&format!(
        "promote --plan: would lose {} writes, {}; changes nothing",
        plan.missing.len(),
        human_size(plan.missing_bytes)
    ))?;
    let report = site.promote(&[])?;
    ensure!((plan.tail_seq, plan.epoch) == (report.tail_seq, report.epoch), "the plan said otherwise: {plan:?}");
    // What was on the line may still have arrived in between: the loss only shrinks.
    ensure!(plan.cut_seq <= report.cut_seq, "the plan promised more: seq {}", plan.cut_seq);
    story.done(&format!("promote: epoch {} is in force, DR serves the volumes by NBD", report.epoch))?;
    let mut facts = serde_json::to_value(PromoteReport { missing: MissingWrites::default(), ..report.clone() })?;
    facts["missing"] = json!(report.missing.len());
    story.fact("promotion", facts);
    Ok(report)
}

fn check(
    story: &mut Story<'_>,
    site: &Site,
    input: &Input,
    log: &Log,
    settled: Seq,
    report: &PromoteReport,
) -> Result<Found> {
    let history = oracle::history(&site.plan.dir, true)?;
    let oracle = Oracle::new(log, &history, &site.plan.volumes, &[FILES.1], Promise::Acknowledged)?;
    let found = oracle.report(report, Promise::Acknowledged)?;
    ensure!(report.cut_seq >= settled, "seq {} was settled, the cut is {}", settled, report.cut_seq);
    story.done(&format!("{} order records: each of one request, in an order that clients saw", history.len()))?;

    let db = site.client(Role::Dr, DB.0)?.read_all()?;
    let want = oracle.image(Volume(DB.1), report.cut_seq, vec![0; DB.2 as usize]);
    oracle.compare(Volume(DB.1), report.cut_seq, &want, &db)?;
    story.done(&format!("`db`: {} are the state after seq {}, to the byte", human_size(DB.2), report.cut_seq))?;

    let (by, clean) = input.check_out(site, FILES.0)?;
    story.done(&format!("`files`: {} read by {by} are what was written; {clean}", human_size(FILES.2)))?;
    story.fact("checked_bytes", json!(DB.2 + FILES.2));
    story.fact("filesystem", json!(clean));
    Ok(found)
}

fn told_loss(
    story: &mut Story<'_>,
    log: &Log,
    before: &PrimaryStatus,
    report: &PromoteReport,
    found: Found,
) -> Result<()> {
    ensure!(!report.missing.is_empty(), "nothing was lost, although DR was {} writes behind", before.lag_writes);
    story.say("\n7. What was lost, to the write")?;
    if !story.json {
        let mut tally = Tally::of(None);
        report.missing.iter().for_each(|write| tally.add(write));
        summary(report, &tally, story.out)?;
    }
    let times = |pick: fn(&Log) -> Option<Duration>| pick(log).unwrap_or_default().as_secs_f64();
    let last = times(|log| log.submissions.iter().filter_map(|one| one.acked).max());
    let seconds = lost_seconds(report).unwrap_or(0.0);
    story.say(&format!(
        "\n  In words: of {} writes acknowledged in {}, {} are in the image and {} in the list above;\n  the last {} of \
         the primary's life are gone, {} in {} writes, every one of them known.",
        found.acked,
        duration(last),
        found.kept,
        found.reported,
        duration(seconds),
        human_size(report.missing_bytes),
        report.missing.len()
    ))?;
    story.fact(
        "loss",
        json!({ "acknowledged": found.acked, "in_image": found.kept, "in_report": found.reported,
            "unaccounted": found.unknown, "writes": report.missing.len(), "bytes": report.missing_bytes,
            "seconds": seconds }),
    );
    ensure!(found.unknown == 0 && found.kept + found.reported == found.acked, "I4: {found:?} does not add up");
    Ok(())
}

/// From the intake of the first missing write to that of the last.
fn lost_seconds(report: &PromoteReport) -> Option<f64> {
    let times: Vec<jiff::Timestamp> = report.missing.iter().filter_map(|write| write.time.parse().ok()).collect();
    Some(times.iter().max()?.duration_since(*times.iter().min()?).as_secs_f64())
}

/// Runs another program to its end.
fn run_program(name: &str, change: impl FnOnce(&mut Command)) -> Result<()> {
    let path: PathBuf = find_program(name).with_context(|| format!("{name} is not installed"))?;
    let mut command = Command::new(path);
    change(&mut command);
    let output = command.stdin(std::process::Stdio::null()).output().with_context(|| format!("running {name}"))?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "{name} ended with {}: {}", output.status, String::from_utf8_lossy(&said));
    Ok(())
}
