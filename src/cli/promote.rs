//! `farshore promote`: asks the DR daemon of this host to take over, and says what came of it.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use serde_json::Value;

use super::arguments::Promote;
use super::client;
use super::failure::Failure;
use super::files;
use super::view::duration;
use crate::cluster::control::Request;
use crate::cluster::size::human_size;
use crate::cluster::status::{MissingWrite, PromoteReport, Status};

/// Missing writes that are listed for people; the rest is counted.
const LISTED_MAX: usize = 20;
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
const STATUS_WITHIN: Duration = Duration::from_secs(5);

/// Promotes, or with `--plan` says what a promotion would do.
pub fn run(options: &Promote, out: &mut dyn Write) -> Result<(), Failure> {
    let control = control(options.control.as_deref(), &options.config.config)?;
    let request = Request::Promote { plan: options.plan, force: options.force };
    // However long it takes: a promotion that is under way is not to be given up by its asker.
    let answer = with_progress(&control, || client::ask(&control, &request, None))?;
    if options.json {
        return Ok(writeln!(out, "{answer}")?);
    }
    let report = report(answer)?;
    let title = match (options.plan, options.plan && already(&control)) {
        (true, true) => "was promoted already (nothing was changed)",
        (true, false) => "would be promoted (nothing was changed)",
        (false, _) => "promoted",
    };
    let epoch = report.epoch;
    writeln!(out, "{} {title}: epoch {epoch}, in {}", report.group, duration(report.duration_seconds))?;
    summary(&report, None, out)?;
    if !options.plan {
        writeln!(out, "The volumes are served by NBD as [dr] export says. {}", fenced(&report))?;
    }
    Ok(())
}

/// Who refuses the old writer from now on (I7).
fn fenced(report: &PromoteReport) -> &'static str {
    match report.aux.as_str() {
        "read" => "The auxiliary and this site refuse older epochs from now on.",
        _ => {
            "This site refuses older epochs from now on; the auxiliary may not know of the new one: an old primary that \
             reaches it goes on acknowledging writes until it is shut down. Make sure that it is."
        }
    }
}

/// Whether who answers is the primary of its epoch: the report is that of the promotion that made it one.
fn already(control: &Path) -> bool {
    let answer = client::ask(control, &Request::Status, Some(STATUS_WITHIN)).ok();
    answer.is_some_and(|answer| matches!(serde_json::from_value(answer), Ok(Status::Primary(_))))
}

/// The control socket of DR: named, or that of the configuration.
pub fn control(named: Option<&Path>, config: &Path) -> Result<PathBuf, Failure> {
    if let Some(path) = named {
        return Ok(path.into());
    }
    let config = files::load(config)?;
    Ok(config.need_dr()?.0.control.clone())
}

/// The report in an answer.
pub fn report(answer: Value) -> Result<PromoteReport, Failure> {
    serde_json::from_value(answer).map_err(|error| Failure::failed(format!("the answer is not a report: {error}")))
}

/// Recovery point and losses of a report, for people; `volume` limits the list.
pub fn summary(report: &PromoteReport, volume: Option<&str>, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "  recovery point   seq {} of {} known", report.cut_seq, report.tail_seq)?;
    writeln!(out, "  replayed         {} writes", report.replayed)?;
    let aux = match report.aux.as_str() {
        "read" => format!("read; {} payloads fetched from it", report.fetched_from_aux),
        other => format!("{other}: writes that only it knew are not in this report"),
    };
    writeln!(out, "  auxiliary        {aux}")?;
    let missing: Vec<&MissingWrite> =
        report.missing.iter().filter(|write| volume.is_none_or(|volume| volume == write.volume)).collect();
    if let Some(text) = &report.incomplete {
        writeln!(out, "  INCOMPLETE       {text}")?;
    }
    if missing.is_empty() {
        let none = if report.incomplete.is_some() { "not known: see INCOMPLETE" } else { "nothing" };
        return writeln!(out, "  lost             {none}");
    }
    let bytes: u64 = missing.iter().map(|write| write.length).sum();
    let (first, last) = (missing.iter().map(|w| &w.time).min(), missing.iter().map(|w| &w.time).max());
    writeln!(out, "  lost             {} writes, {}", missing.len(), human_size(bytes))?;
    if let (Some(first), Some(last)) = (first, last) {
        writeln!(out, "  taken in         {first} to {last}")?;
    }
    for (volume, writes, bytes) in by_volume(&missing) {
        writeln!(out, "    {volume}: {writes} writes, {}", human_size(bytes))?;
    }
    writeln!(
        out,
        "    {:>12}  {:<12} {:>16} {:>10}  {:<8} {:<30} volume",
        "seq", "op", "offset", "length", "state", "time"
    )?;
    for w in missing.iter().take(LISTED_MAX) {
        let (seq, op, state) = (w.seq, &w.op, &w.state);
        writeln!(
            out,
            "    {seq:>12}  {op:<12} {:>16} {:>10}  {state:<8} {:<30} {}",
            w.offset, w.length, w.time, w.volume
        )?;
    }
    if missing.len() > LISTED_MAX {
        writeln!(out, "    … and {} more; `farshore loss --json` has them all", missing.len() - LISTED_MAX)?;
    }
    Ok(())
}

/// Writes and bytes lost of each volume, in the order of their first loss.
fn by_volume<'a>(missing: &[&'a MissingWrite]) -> Vec<(&'a str, u64, u64)> {
    let mut sums: Vec<(&str, u64, u64)> = Vec::new();
    for write in missing {
        match sums.iter_mut().find(|sum| sum.0 == write.volume) {
            Some(sum) => (sum.1, sum.2) = (sum.1 + 1, sum.2 + write.length),
            None => sums.push((&write.volume, 1, write.length)),
        }
    }
    sums
}

/// Runs `work`, and meanwhile shows on a terminal how far the role says it is.
fn with_progress<T: Send>(control: &Path, work: impl FnOnce() -> T + Send) -> T {
    if !std::io::stderr().is_terminal() {
        return work();
    }
    let (done, waiting) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut shown = false;
            while waiting.recv_timeout(PROGRESS_EVERY) == Err(RecvTimeoutError::Timeout) {
                if let Some(line) = progress(control) {
                    eprint!("\r\x1b[K{line}");
                    shown = true;
                }
            }
            if shown {
                eprint!("\r\x1b[K");
            }
        });
        let result = work();
        drop(done);
        result
    })
}

fn progress(control: &Path) -> Option<String> {
    let answer = client::ask(control, &Request::Status, Some(STATUS_WITHIN)).ok()?;
    let Ok(Status::Dr(dr)) = serde_json::from_value::<Status>(answer) else { return None };
    let step = dr.promotion.unwrap_or_else(|| "promoting".into());
    Some(format!("{step}: seq {} of {} applied", dr.applied_seq, dr.cut_seq))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::Seq;

    fn write(seq: u64, volume: &str) -> MissingWrite {
        MissingWrite {
            seq: Seq(seq),
            volume: volume.into(),
            op: "write".into(),
            length: 4096,
            time: format!("2026-11-22T10:00:{seq:02}Z"),
            state: "sent".into(),
            ..Default::default()
        }
    }

    fn shown(report: &PromoteReport, volume: Option<&str>) -> String {
        let mut out = Vec::new();
        summary(report, volume, &mut out).expect("memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_loss_is_told_by_count_bytes_time_and_place() {
        let missing: Vec<MissingWrite> = (1..=30).map(|seq| write(seq, if seq < 5 { "db" } else { "log" })).collect();
        let report = PromoteReport { aux: "read".into(), missing, ..Default::default() };
        let text = shown(&report, None);
        for part in ["30 writes, 120 KiB", "10:00:01Z to 2026-11-22T10:00:30Z", "db: 4 writes, 16 KiB", "… and 10 more"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        let text = shown(&report, Some("db"));
        assert!(text.contains("lost             4 writes") && !text.contains("log:"), "{text}");
    }

    #[test]
    fn only_a_fenced_auxiliary_is_said_to_refuse_the_old_primary() {
        let said = |aux: &str| fenced(&PromoteReport { aux: aux.into(), ..Default::default() });
        assert!(said("read").starts_with("The auxiliary and this site"));
        assert!(said("unreachable").contains("until it is shut down"));
    }

    #[test]
    fn no_loss_and_no_auxiliary_are_said_in_words() {
        let report = PromoteReport { aux: "unreachable".into(), ..Default::default() };
        let text = shown(&report, None);
        assert!(text.contains("lost             nothing"), "{text}");
        assert!(text.contains("unreachable: writes that only it knew are not in this report"), "{text}");
    }
}
