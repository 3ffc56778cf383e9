//! `farshore verify` on the side of the shell: who waits for the result, and the last one, kept over restarts.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Shell;
use crate::cluster::control::Answer;
use crate::cluster::status::VerifyReport;
use crate::core::ids::Conn;
use crate::limits::SCRUB_RATE_MIN;
use crate::primary::machine::Input;
use crate::primary::verify::Asked;

/// Comparisons that wait for another one.
const WAITING_MAX: usize = 8;
/// The last result, in the directory of the primary: its age is known over restarts, and nothing depends on it.
const LAST: &str = "verify.json";

#[derive(Serialize, Deserialize)]
struct Last {
    /// Nanoseconds since the Unix epoch.
    wall_ns: u64,
    report: VerifyReport,
}

/// Comparisons that were asked for.
#[derive(Default)]
pub(super) struct Verifying {
    /// Each with who waits for it; the first one is under way.
    queue: VecDeque<(Asked, Vec<Conn>)>,
    /// Where the last result is kept.
    dir: Option<PathBuf>,
}

impl Shell {
    /// Begins a comparison, or has it wait for the one that is under way: what that has compared already may have changed since.
    /// The answer, if there is one already.
    pub(super) fn verify_asked(&mut self, conn: Conn, asked: Asked) -> anyhow::Result<Option<Answer>> {
        if asked.rate > 0 && asked.rate < SCRUB_RATE_MIN {
            let text = format!(
                "{} bytes a second are too few: at least {SCRUB_RATE_MIN}, or 0 for as fast as it goes",
                asked.rate
            );
            return Ok(Some(Answer::usage(text)));
        }
        if let Err(text) = self.machine.may_verify() {
            return Ok(Some(Answer::refused(text)));
        }
        self.forget_gone(1);
        let count = self.verifying.queue.len();
        match self.verifying.queue.back_mut() {
            None => {
                self.verifying.queue.push_back((asked, vec![conn]));
                self.step(Input::Verify(asked))?;
            }
            Some((same, conns)) if *same == asked && count > 1 => conns.push(conn),
            Some(_) if count > WAITING_MAX => {
                return Ok(Some(Answer::failed(
                    "too many comparisons wait for the one under way: `farshore verify --stop`",
                )));
            }
            Some(_) => self.verifying.queue.push_back((asked, vec![conn])),
        }
        Ok(None)
    }

    /// What nobody waits for any more is not begun; those `under_way` go on.
    fn forget_gone(&mut self, under_way: usize) {
        let mut at = 0;
        self.verifying.queue.retain(|(_, conns)| {
            at += 1;
            at <= under_way || conns.iter().any(|conn| self.controls.holds(*conn))
        });
    }

    /// Gives up the comparison that is under way, whoever asked for it.
    pub(super) fn verify_stopped(&mut self) -> anyhow::Result<Answer> {
        self.step(Input::StopVerify)?;
        Ok(Answer::done())
    }

    /// Tells everybody who waits what was found, and begins the next one.
    pub(super) fn verified(&mut self, result: &Result<VerifyReport, String>) -> anyhow::Result<()> {
        if let Ok(report) = result {
            self.keep_verified(report);
        }
        let answer = match result {
            Ok(report) => Answer::verified(report),
            Err(text) => Answer::failed(text.clone()),
        };
        let (_, conns) = self.verifying.queue.pop_front().unwrap_or_default();
        for conn in conns {
            self.controls.answer(&mut self.reactor, conn, answer.clone().pieces());
        }
        self.forget_gone(0);
        let next = self.verifying.queue.front().map(|(asked, _)| *asked);
        next.map_or(Ok(()), |asked| self.step(Input::Verify(asked)))
    }

    /// Small, rare, and not synced: a crash loses the age of a result at the worst.
    fn keep_verified(&self, report: &VerifyReport) {
        let Some(dir) = &self.verifying.dir else { return };
        let last = Last { wall_ns: self.reactor.now().wall_ns, report: report.clone() };
        let text = serde_json::to_string(&last).expect("plain data becomes JSON");
        let new = dir.join("verify.json.new");
        let kept = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, dir.join(LAST)));
        if let Err(error) = kept {
            tracing::warn!("the result of the comparison is not kept over a restart: {}: {error}", dir.display());
        }
    }

    /// What an earlier process found.
    pub(super) fn verified_before(&mut self, dir: &Path) {
        self.verifying.dir = Some(dir.to_owned());
        let text = std::fs::read_to_string(dir.join(LAST)).ok();
        if let Some(Last { wall_ns, report }) = text.and_then(|text| serde_json::from_str(&text).ok()) {
            self.machine.verified_before(&report, wall_ns);
        }
    }
}
