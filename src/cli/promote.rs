//! `farshore promote`: asks the DR daemon of this host to take over, and says what came of it.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use super::arguments::Promote;
use super::client;
use super::failure::Failure;
use super::files;
use super::view::duration;
use crate::cluster::control::{EXIT_REFUSED, Request};
use crate::cluster::losses::MissingWrite;
use crate::cluster::size::human_size;
use crate::cluster::status::{DrStatus, PromoteReport, Status};
use crate::core::op::Op;
use crate::core::sparing::Sparing;
use crate::limits::VOLUMES_MAX;

/// Missing writes that are listed for people; the rest is counted.
const LISTED_MAX: usize = 20;
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Pause between two lines that say what is waited for, nanoseconds.
const NOTICE_EVERY_NS: u64 = 30_000_000_000;
const STATUS_WITHIN: Duration = Duration::from_secs(5);

/// Promotes, or with `--plan` says what a promotion would do.
pub fn run(options: &Promote, out: &mut dyn Write) -> Result<(), Failure> {
    let control = control(options.control.as_deref(), &options.config.config)?;
    let request = Request::Promote { plan: options.plan, force: options.force };
    // However long it takes: a promotion that is under way is not to be given up by its asker.
    if options.json {
        // On a terminal it would be written over by the progress.
        let shown = !std::io::stdout().is_terminal();
        let done = with_progress(&control, shown, || client::report(&control, &request, None, &mut |_| {}, Some(out)));
        if let Some(refused) = done.as_ref().err().filter(|it| options.plan && it.exit == EXIT_REFUSED) {
            // Known before there is anything to report: the field is that of a report.
            writeln!(out, "{}", json!({ "refused": refused.text }))?;
        }
        return done.map(drop);
    }
    let mut tally = Tally::of(None);
    let begun = Instant::now();
    let report =
        with_progress(&control, true, || client::report(&control, &request, None, &mut |it| tally.add(it), None))?;
    let title = match (options.plan, options.plan && already(&control)) {
        (true, false) if report.refused.is_some() => "would not be promoted (nothing was changed)",
        (true, true) => "was promoted already (nothing was changed)",
        (true, false) => "would be promoted (nothing was changed)",
        (false, _) => "promoted",
    };
    let epoch = report.epoch;
    // The report has the time until it was stored; the replay that followed was waited for here.
    let took = if options.plan { 0.0 } else { begun.elapsed().as_secs_f64() };
    writeln!(out, "{} {title}: epoch {epoch}, in {}", report.group, duration(report.duration_seconds.max(took)))?;
    summary(&report, &tally, out)?;
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

/// What is told to people of the missing writes, counted as they come.
#[derive(Debug, Default)]
pub struct Tally {
    /// Only this volume is told of.
    volume: Option<String>,
    writes: u64,
    bytes: u64,
    /// Times of the earliest and the latest.
    span: Option<(String, String)>,
    /// Writes and bytes lost of each volume, in the order of their first loss.
    volumes: Vec<(String, u64, u64)>,
    /// The first ones.
    listed: Vec<MissingWrite>,
}

impl Tally {
    /// Of one volume, or of all.
    pub fn of(volume: Option<&str>) -> Tally {
        Tally { volume: volume.map(str::to_owned), ..Tally::default() }
    }

    pub fn add(&mut self, write: MissingWrite) {
        if self.volume.as_ref().is_some_and(|volume| *volume != write.volume) {
            return;
        }
        self.writes += 1;
        // A resize has a new size there, and no data.
        let bytes = if write.op == Op::Resize.word() { 0 } else { write.length };
        self.bytes = self.bytes.saturating_add(bytes);
        match &mut self.span {
            Some((first, _)) if write.time < *first => first.clone_from(&write.time),
            Some((_, last)) if write.time > *last => last.clone_from(&write.time),
            Some(_) => {}
            None => self.span = Some((write.time.clone(), write.time.clone())),
        }
        match self.volumes.iter_mut().find(|volume| volume.0 == write.volume) {
            Some(sum) => (sum.1, sum.2) = (sum.1 + 1, sum.2.saturating_add(bytes)),
            // A group has no more; whatever else is named is in the sum only.
            None => {
                if self.volumes.len() < VOLUMES_MAX {
                    self.volumes.push((write.volume.clone(), 1, bytes));
                }
            }
        }
        if self.listed.len() < LISTED_MAX {
            self.listed.push(write);
        }
    }
}

/// Recovery point and losses of a report, for people.
pub fn summary(report: &PromoteReport, lost: &Tally, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "  recovery point   seq {} of {} known", report.cut_seq, report.tail_seq)?;
    writeln!(out, "  replayed         {} writes", report.replayed)?;
    let aux = match report.aux.as_str() {
        "read" => format!("read; {} payloads fetched from it", report.fetched_from_aux),
        other if report.known_until.is_some() => {
            format!("{other}: writes that only it knew are not in this report")
        }
        other => format!("{other}: it knew of nothing that DR does not know"),
    };
    writeln!(out, "  auxiliary        {aux}")?;
    if let Some(text) = &report.refused {
        writeln!(out, "  REFUSED          {text}")?;
    }
    if let Some(text) = &report.waits_for {
        writeln!(out, "  would wait for   {text}")?;
    }
    if let Some(text) = &report.damage {
        writeln!(out, "  DAMAGED          {text}")?;
    }
    if let Some(text) = &report.incomplete {
        writeln!(out, "  INCOMPLETE       {text}")?;
    }
    if let Some(known) = &report.known_until {
        let seq = known.seq;
        let until = match &known.time {
            Some(time) => format!("{time} (seq {seq})"),
            None => format!("seq {seq}, taken in at a time that is not known"),
        };
        writeln!(
            out,
            "  known until      {until}: what was acknowledged after that is lost, and cannot all be listed"
        )?;
    }
    let Some((first, last)) = &lost.span else {
        let none = match &report.incomplete {
            Some(_) => "not known: see INCOMPLETE",
            None if report.known_until.is_some() => "nothing that is known of",
            None => "nothing",
        };
        return writeln!(out, "  lost             {none}");
    };
    writeln!(out, "  lost             {} writes, {}", lost.writes, human_size(lost.bytes))?;
    writeln!(out, "  taken in         {first} to {last}")?;
    for (volume, writes, bytes) in &lost.volumes {
        writeln!(out, "    {volume}: {writes} writes, {}", human_size(*bytes))?;
    }
    writeln!(
        out,
        "    {:>12}  {:<12} {:>16} {:>10}  {:<8} {:<30} volume",
        "seq", "op", "offset", "length", "state", "time"
    )?;
    for w in &lost.listed {
        let (seq, op, state) = (w.seq, &w.op, &w.state);
        writeln!(
            out,
            "    {seq:>12}  {op:<12} {:>16} {:>10}  {state:<8} {:<30} {}",
            w.offset, w.length, w.time, w.volume
        )?;
    }
    let more = lost.writes - lost.listed.len() as u64;
    if more > 0 {
        writeln!(out, "    … and {more} more; `farshore loss --json` has them all")?;
    }
    Ok(())
}

/// Runs `work`, and meanwhile says what it waits for, and, where it is to be shown, on a terminal how far the role says
/// it is.
fn with_progress<T>(control: &Path, shown: bool, work: impl FnOnce() -> T) -> T {
    let shown = shown && std::io::stderr().is_terminal();
    let (mut notices, begun) = (Notices::new(), Instant::now());
    let clear = |on: bool| if on { "\r\x1b[K" } else { "" };
    let mut line = false;
    let look = |over: bool| {
        if over {
            return eprint!("{}", clear(line));
        }
        let Some(dr) = promoting(control) else { return };
        if let Some(notice) = notices.next(begun.elapsed(), dr.waits_for.as_deref()) {
            eprintln!("{}farshore: {notice}", clear(line));
        }
        if shown {
            eprint!("{}{}", clear(true), progress(&dr));
            line = true;
        }
    };
    client::meanwhile(PROGRESS_EVERY, look, work)
}

/// What DR says of itself, while it answers.
fn promoting(control: &Path) -> Option<DrStatus> {
    let answer = client::ask(control, &Request::Status, Some(STATUS_WITHIN)).ok()?;
    if let Ok(Status::Dr(dr)) = serde_json::from_value::<Status>(answer) { Some(*dr) } else { None }
}

fn progress(dr: &DrStatus) -> String {
    let step = dr.promotion.as_deref().unwrap_or("promoting");
    format!("{step}: seq {} of {} applied", dr.applied_seq, dr.cut_seq)
}

/// What a promotion waits for, said as soon as it does, and once in a while for as long as it does.
struct Notices(Sparing);

impl Notices {
    fn new() -> Notices {
        Notices(Sparing::new(NOTICE_EVERY_NS))
    }

    fn next(&mut self, since_begin: Duration, waits_for: Option<&str>) -> Option<String> {
        let Some(what) = waits_for else {
            *self = Notices::new();
            return None;
        };
        self.0.due(u64::try_from(since_begin.as_nanos()).unwrap_or(u64::MAX))?;
        Some(format!("waiting for {what}: see that it runs; the promotion goes on by itself"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::losses::MissingWrites;
    use crate::cluster::status::KnownUntil;
    use crate::core::ids::Seq;

    fn write(seq: u64, volume: &str) -> MissingWrite {
        MissingWrite {
            seq: Seq(seq),
            volume: volume.into(),
            op: "write".into(),
            length: 4096,
            time: format!("2026-11-22T10:00:{seq:02}.000000000Z"),
            state: "sent".into(),
            ..Default::default()
        }
    }

    fn shown(report: &PromoteReport, volume: Option<&str>) -> String {
        let mut tally = Tally::of(volume);
        report.missing.iter().for_each(|write| tally.add(write));
        let mut out = Vec::new();
        summary(report, &tally, &mut out).expect("memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_loss_is_told_by_count_bytes_time_and_place() {
        let missing = (1..=30).map(|seq| write(seq, if seq < 5 { "db" } else { "log" }));
        let missing = MissingWrites::of(missing).expect("sound");
        let report = PromoteReport { aux: "read".into(), missing, ..Default::default() };
        let text = shown(&report, None);
        let span = "10:00:01.000000000Z to 2026-11-22T10:00:30.000000000Z";
        for part in ["30 writes, 120 KiB", span, "db: 4 writes, 16 KiB", "… and 10 more"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let text = shown(&report, Some("db"));
        assert!(text.contains("lost             4 writes") && !text.contains("log:"), "{text}");
    }

    #[test]
    fn names_without_end_are_counted_and_not_kept() {
        let mut tally = Tally::of(None);
        (0..1000).for_each(|seq| tally.add(write(seq, &seq.to_string())));
        assert_eq!((tally.writes, tally.volumes.len(), tally.listed.len()), (1000, VOLUMES_MAX, LISTED_MAX));
    }

    #[test]
    fn what_a_promotion_waits_for_is_said_at_once_and_once_in_a_while() {
        let mut notices = Notices::new();
        let mut said = |second, what| notices.next(Duration::from_secs(second), what);
        assert_eq!(said(1, None), None);
        let text = said(2, Some("the server of volume db")).expect("said");
        assert!(text.contains("the server of volume db: see that it runs"), "{text}");
        assert_eq!(said(3, Some("the server of volume db")), None);
        assert!(said(32, Some("the server of volume db")).is_some(), "once in a while");
        assert_eq!(said(33, None), None);
        assert!(said(34, Some("the server of volume db")).is_some(), "away again");
    }

    #[test]
    fn only_a_fenced_auxiliary_is_said_to_refuse_the_old_primary() {
        let said = |aux: &str| fenced(&PromoteReport { aux: aux.into(), ..Default::default() });
        assert!(said("read").starts_with("The auxiliary and this site"));
        assert!(said("unreachable").contains("until it is shut down"));
    }

    #[test]
    fn no_loss_and_no_auxiliary_are_said_in_words() {
        let mut report = PromoteReport { aux: "unreachable".into(), ..Default::default() };
        let text = shown(&report, None);
        assert!(text.contains("unreachable: it knew of nothing that DR does not know"), "{text}");
        assert!(text.contains("lost             nothing\n") && !text.contains("known until"), "{text}");
        report.known_until = Some(KnownUntil { seq: Seq(7), time: Some("2026-11-22T10:00:00Z".into()) });
        let text = shown(&report, None);
        assert!(text.contains("unreachable: writes that only it knew are not in this report"), "{text}");
        assert!(text.contains("lost             nothing that is known of\n"), "{text}");
        let until = "known until      2026-11-22T10:00:00Z (seq 7): what was acknowledged after that is lost, and cannot all be listed";
        assert!(text.contains(until), "{text}");
        report.known_until = Some(KnownUntil { seq: Seq(7), time: None });
        assert!(shown(&report, None).contains("known until      seq 7, taken in"), "{text}");
    }
}
