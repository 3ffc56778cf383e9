//! `farshore verify`: has the primary of this host compare both sides, and says what differs.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use super::arguments::Verify;
use super::client;
use super::failure::Failure;
use super::files;
use crate::cluster::control::{EXIT_FAILED, Request};
use crate::cluster::size::human_size;
use crate::cluster::status::{Status, VerifyProgress, VerifyReport};

/// Ranges that are printed for a person.
const PRINTED_MAX: usize = 20;
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
const STATUS_WITHIN: Duration = Duration::from_secs(5);

/// Asks, waits, and says what was found; fails unless both sides are equal.
pub fn run(options: &Verify, out: &mut dyn Write) -> Result<(), Failure> {
    let control = match &options.control {
        Some(control) => control.clone(),
        None => {
            let config = files::load(&options.config.config)?;
            let missing = || Failure::usage(format!("{}: there is no [primary]", config.path));
            config.primary.as_ref().map(|primary| primary.control.clone()).ok_or_else(missing)?
        }
    };
    let request = Request::Verify { repair: options.repair, rate: options.rate.unwrap_or(0), stop: options.stop };
    if options.stop {
        client::ask(&control, &request, None)?;
        return Ok(());
    }
    let answer = with_progress(&control, !options.json, || client::ask(&control, &request, None))?;
    let strange = |error: serde_json::Error| Failure::failed(format!("{}: {error}", control.display()));
    let report: VerifyReport = serde_json::from_value(answer).map_err(strange)?;
    if options.json {
        writeln!(out, "{}", serde_json::to_string(&report).map_err(strange)?)?;
    } else {
        print(&report, out)?;
    }
    // What there is to say has been said.
    if report.equal { Ok(()) } else { Err(Failure { text: String::new(), exit: EXIT_FAILED }) }
}

fn print(report: &VerifyReport, out: &mut dyn Write) -> std::io::Result<()> {
    let (checked, different) = (human_size(report.checked_bytes), human_size(report.different_bytes));
    let verdict = match (report.equal, report.different_bytes) {
        (true, 0) => "both sides are equal".to_owned(),
        (true, _) => format!("{different} differed and are repaired: both sides are equal"),
        (false, _) => format!("{different} DIFFER"),
    };
    let group = &report.group;
    writeln!(
        out,
        "{group}: {verdict}; {checked} compared in {:.1} s, up to seq {}",
        report.duration_seconds, report.as_of_seq
    )?;
    for range in report.ranges.iter().take(PRINTED_MAX) {
        let why = range.unreadable.as_ref().map_or(String::new(), |why| format!("  cannot be read: {why}"));
        writeln!(out, "  {:<16} {:>16} {:>12}{why}", range.volume, range.offset, range.length)?;
    }
    let more = report.ranges.len().saturating_sub(PRINTED_MAX) as u64 + report.ranges_left_out;
    if more > 0 {
        writeln!(out, "  … and {more} more ranges; --json lists more of them")?;
    }
    if !report.ranges_exact {
        writeln!(out, "  neighbours were joined, for there are too many: not all of these bytes differ")?;
    }
    if !report.equal {
        writeln!(out, "`farshore verify --repair` sends what the primary holds there to DR once more")?;
    }
    Ok(())
}

/// Runs `work`, and says on a terminal how far the primary is meanwhile; what it waits for, in any case.
fn with_progress<T>(control: &Path, shown: bool, work: impl FnOnce() -> T) -> T {
    let shown = shown && std::io::stderr().is_terminal();
    let mut waited: Option<String> = None;
    let look = |over: bool| {
        let clear = if shown { "\r\x1b[K" } else { "" };
        if over {
            return eprint!("{clear}");
        }
        let Some(progress) = running(control) else { return };
        if progress.waits_for != waited {
            waited.clone_from(&progress.waits_for);
            waited.iter().for_each(|what| eprintln!("farshore: waiting: {what}"));
        }
        if shown {
            eprint!("{clear}{}", line(&progress));
        }
    };
    client::meanwhile(PROGRESS_EVERY, look, work)
}

/// What the primary says of the comparison under way.
fn running(control: &Path) -> Option<VerifyProgress> {
    let answer = client::ask(control, &Request::Status, Some(STATUS_WITHIN)).ok()?;
    let Ok(Status::Primary(status)) = serde_json::from_value::<Status>(answer) else { return None };
    status.verify?.running
}

fn line(it: &VerifyProgress) -> String {
    let (checked, total) = (human_size(it.checked_bytes), human_size(it.total_bytes));
    format!("{}: {checked} of {total}, {} differ so far", it.phase, human_size(it.different_bytes))
}
