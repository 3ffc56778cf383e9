//! `farshore verify` on the side of the shell: who waits for the result, and the last one, kept over restarts.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Shell;
use crate::cluster::control::Answer;
use crate::cluster::status::VerifyReport;
use crate::core::ids::Conn;
use crate::primary::machine::Input;
use crate::primary::verify::Asked;

/// The last result, in the directory of the primary: its age is known over restarts, and nothing depends on it.
const LAST: &str = "verify.json";

#[derive(Serialize, Deserialize)]
struct Last {
    /// Nanoseconds since the Unix epoch.
    wall_ns: u64,
    report: VerifyReport,
}

impl Shell {
    /// Begins a comparison, or joins the one that is under way; the answer, if there is one already.
    pub(super) fn verify_asked(&mut self, conn: Conn, asked: Asked) -> anyhow::Result<Option<Answer>> {
        if let Err(text) = self.machine.may_verify() {
            return Ok(Some(Answer::refused(text)));
        }
        self.verifying.push(conn);
        self.step(Input::Verify(asked))?;
        Ok(None)
    }

    /// Tells everybody who waits what was found.
    pub(super) fn verified(&mut self, result: &Result<VerifyReport, String>) {
        if let Ok(report) = result {
            self.keep_verified(report);
        }
        for conn in std::mem::take(&mut self.verifying) {
            let answer = match result {
                Ok(report) => Answer::verified(report),
                Err(text) => Answer::failed(text.clone()),
            };
            self.controls.answer(&mut self.reactor, conn, answer.pieces());
        }
    }

    /// Small, rare, and not synced: a crash loses the age of a result at the worst.
    fn keep_verified(&self, report: &VerifyReport) {
        let Some(dir) = &self.verify_dir else { return };
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
        self.verify_dir = Some(dir.to_owned());
        let text = std::fs::read_to_string(dir.join(LAST)).ok();
        if let Some(Last { wall_ns, report }) = text.and_then(|text| serde_json::from_str(&text).ok()) {
            self.machine.verified_before(report, wall_ns);
        }
    }
}
