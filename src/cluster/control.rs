//! The words of the control socket: one JSON object a line, asked and answered. Pure; who reads and writes the
//! socket is the daemon on one side and `cli` on the other.
//!
//! An answer may be far longer than anybody wants to hold: a loss report names every missing write. So it is given in
//! pieces ([`Pieces`]), each made when there is room for it.
//!
//! ```text
//! → {"verb":"status"}
//! ← {"ok":{"role":"dr",…}}
//! → {"verb":"promote","plan":false,"force":false}
//! ← {"error":"the auxiliary does not answer: …","exit":3}
//! ```
//!
//! Who may ask at all, the mode of the socket says (owner and group); what changes something is done only for the user
//! of the role and for root.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::cluster::losses::MissingWrites;
use crate::cluster::status::{GivenUp, PromoteReport, Resized, Status, VerifyReport};
use crate::core::asker::Asker;
use crate::limits::CONTROL_PIECE_BYTES;

/// Exit status of a verb that failed, as the answer names it.
pub const EXIT_FAILED: u8 = 1;
/// Exit status of a verb that was asked for what there is not.
pub const EXIT_USAGE: u8 = 2;
/// Exit status of a verb refused because it would not be safe; the text says what would make it safe.
pub const EXIT_REFUSED: u8 = 3;

/// A role that does not start because it would not be safe (another group's directory, a volume that is not the one in
/// the superblock, …): ends with [`EXIT_REFUSED`]. The text says what would make it safe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// The status of the role.
    Status,
    /// DR only: take over. `plan` changes nothing; `force` goes on without the auxiliary.
    Promote {
        #[serde(default)]
        plan: bool,
        #[serde(default)]
        force: bool,
    },
    /// Primary only: a volume gets more bytes.
    Resize { volume: String, size: u64 },
    /// Primary only: both sides are compared, at most `rate` bytes a second (0: as fast as it goes); with `repair` what differs
    /// is sent to DR.
    Verify {
        #[serde(default)]
        repair: bool,
        #[serde(default)]
        rate: u64,
        /// The one that is under way is given up instead.
        #[serde(default)]
        stop: bool,
    },
    /// DR only: the volumes are copied anew, in place. Refused, with what that costs, without `give_up`.
    Recopy {
        #[serde(default)]
        give_up: bool,
    },
    /// The durable loss report of the last promotion.
    Loss,
    /// A clean stop, as SIGTERM.
    Stop,
}

/// What a daemon answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Done; the JSON of what there is to say.
    Ok(String),
    /// Done; the report of a promotion, whose list of missing writes it shares.
    Report(Box<PromoteReport>),
    Error {
        error: String,
        exit: u8,
    },
}

impl Request {
    /// Reads one line.
    ///
    /// # Errors
    /// The answer to send back, which says what was wrong with it.
    pub fn parse(line: &[u8]) -> Result<Request, Answer> {
        serde_json::from_slice(line)
            .map_err(|error| Answer::failed(format!("not a request of this version's control socket: {error}")))
    }

    /// Reads one line of somebody, if he may ask that.
    ///
    /// # Errors
    /// The answer to send back, which says what was wrong with it, or who may.
    pub fn asked(line: &[u8], asker: Asker) -> Result<Request, Answer> {
        let request = Request::parse(line)?;
        if asker.is_obeyed() || !request.changes() {
            return Ok(request);
        }
        let (verb, role) = (request.verb(), asker.role);
        Err(Answer::failed(format!(
            "permission denied: {verb} changes this role, which only its own user ({role}) and root may: ask as one of \
             them; who else is let in may ask for status, loss and promote --plan"
        )))
    }

    /// Whether what is asked does more than look.
    fn changes(&self) -> bool {
        match self {
            Request::Status
            | Request::Loss
            | Request::Promote { plan: true, .. }
            | Request::Recopy { give_up: false } => false,
            // It reads all of both sides, and writes hold for it.
            Request::Promote { plan: false, .. }
            | Request::Recopy { give_up: true }
            | Request::Resize { .. }
            | Request::Verify { .. }
            | Request::Stop => true,
        }
    }

    fn verb(&self) -> &'static str {
        match self {
            Request::Status => "status",
            Request::Promote { .. } => "promote",
            Request::Resize { .. } => "resize",
            Request::Verify { .. } => "verify",
            Request::Recopy { .. } => "recopy",
            Request::Loss => "loss",
            Request::Stop => "stop",
        }
    }

    /// The line that asks this, newline included.
    #[must_use]
    pub fn line(&self) -> String {
        json(self) + "\n"
    }
}

impl Answer {
    #[must_use]
    pub fn status(status: &Status) -> Answer {
        Answer::Ok(json(status))
    }

    #[must_use]
    pub fn promoted(report: &PromoteReport) -> Answer {
        Answer::Report(Box::new(report.clone()))
    }

    #[must_use]
    pub fn verified(report: &VerifyReport) -> Answer {
        Answer::Ok(json(report))
    }

    #[must_use]
    pub fn resized(resized: &Resized) -> Answer {
        Answer::Ok(json(resized))
    }

    #[must_use]
    pub fn given_up(done: &GivenUp) -> Answer {
        Answer::Ok(json(done))
    }

    /// Done, with nothing to say.
    #[must_use]
    pub fn done() -> Answer {
        Answer::Ok("true".into())
    }

    #[must_use]
    pub fn failed(error: impl Into<String>) -> Answer {
        Answer::Error { error: error.into(), exit: EXIT_FAILED }
    }

    /// What was asked for cannot be meant; `error` says what can.
    #[must_use]
    pub fn usage(error: impl Into<String>) -> Answer {
        Answer::Error { error: error.into(), exit: EXIT_USAGE }
    }

    /// Refused for safety; `error` says what would make it safe.
    #[must_use]
    pub fn refused(error: impl Into<String>) -> Answer {
        Answer::Error { error: error.into(), exit: EXIT_REFUSED }
    }

    /// The line that says this, newline included, from its beginning.
    #[must_use]
    pub fn pieces(self) -> Pieces {
        let (head, missing, tail) = match self {
            Answer::Ok(text) => (format!("{{\"ok\":{text}}}\n"), MissingWrites::default(), String::new()),
            Answer::Report(report) => {
                let (before, behind) = report.around_missing();
                (format!("{{\"ok\":{before}"), report.missing, format!("{behind}}}\n"))
            }
            Answer::Error { error, exit } => {
                let text = format!("{{\"error\":{},\"exit\":{exit}}}\n", json(&error));
                (text, MissingWrites::default(), String::new())
            }
        };
        Pieces { head, missing, next: 0, tail }
    }
}

/// An answer on its way: pieces of about [`CONTROL_PIECE_BYTES`], one after the other.
#[derive(Clone, Debug)]
pub struct Pieces {
    /// What comes next, before the missing writes.
    head: String,
    missing: MissingWrites,
    /// Place in `missing` of the next one to say.
    next: usize,
    /// What comes behind them.
    tail: String,
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut piece = std::mem::take(&mut self.head);
        while piece.len() < CONTROL_PIECE_BYTES
            && let Some(write) = self.missing.get(self.next)
        {
            if self.next > 0 {
                piece.push(',');
            }
            piece.push_str(&json(&write));
            self.next += 1;
        }
        if self.next == self.missing.len() {
            piece.push_str(&std::mem::take(&mut self.tail));
        }
        (!piece.is_empty()).then(|| piece.into())
    }
}

fn json(value: &(impl Serialize + ?Sized)) -> String {
    serde_json::to_string(value).expect("plain data without maps of odd keys becomes JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::losses::{Entry, Missing};
    use crate::core::ids::{Seq, Volume};
    use crate::core::op::Op;

    #[test]
    fn requests_are_what_the_documentation_says() {
        for (text, request) in [
            (r#"{"verb":"status"}"#, Request::Status),
            (r#"{"verb":"stop"}"#, Request::Stop),
            (r#"{"verb":"loss"}"#, Request::Loss),
            (
                r#"{"verb":"resize","volume":"db","size":1073741824}"#,
                Request::Resize { volume: "db".into(), size: 1 << 30 },
            ),
            (
                r#"{"verb":"verify","repair":true,"rate":1000,"stop":false}"#,
                Request::Verify { repair: true, rate: 1000, stop: false },
            ),
            (r#"{"verb":"promote","plan":true,"force":false}"#, Request::Promote { plan: true, force: false }),
        ] {
            assert_eq!(Request::parse(text.as_bytes()), Ok(request.clone()));
            assert_eq!(request.line(), format!("{text}\n"));
        }
        let bare = Request::parse(br#"{"verb":"promote"}"#);
        assert_eq!(bare, Ok(Request::Promote { plan: false, force: false }));
    }

    #[test]
    fn garbage_is_answered_in_words() {
        for text in ["", "GET / HTTP/1.1", "{}", r#"{"verb":"destroy"}"#, r#"{"verb":"promote","froce":true}"#, "\u{0}"]
        {
            let Err(Answer::Error { error, exit }) = Request::parse(text.as_bytes()) else {
                panic!("{text:?} was taken")
            };
            assert_eq!(exit, EXIT_FAILED);
            assert!(error.contains("control socket"), "{error}");
        }
    }

    #[test]
    fn who_is_not_obeyed_may_look_and_change_nothing() {
        let (own, root, other, gone) = (Some(990), Some(0), Some(1000), None);
        for (text, looks) in [
            (r#"{"verb":"status"}"#, true),
            (r#"{"verb":"loss"}"#, true),
            (r#"{"verb":"promote","plan":true}"#, true),
            (r#"{"verb":"promote","plan":true,"force":true}"#, true),
            (r#"{"verb":"promote"}"#, false),
            (r#"{"verb":"promote","force":true}"#, false),
            (r#"{"verb":"resize","volume":"db","size":1}"#, false),
            (r#"{"verb":"verify"}"#, false),
            (r#"{"verb":"stop"}"#, false),
        ] {
            for (user, obeyed) in [(own, true), (root, true), (other, false), (gone, false)] {
                let asked = Request::asked(text.as_bytes(), Asker { user, role: 990 });
                assert_eq!(asked.is_ok(), obeyed || looks, "{text} by {user:?}: {asked:?}");
                if let Err(Answer::Error { error, exit }) = asked {
                    assert_eq!(exit, EXIT_FAILED);
                    assert!(error.contains("only its own user (990) and root may"), "{error}");
                }
            }
        }
    }

    fn line(answer: Answer) -> String {
        let pieces: Vec<Bytes> = answer.pieces().collect();
        String::from_utf8(pieces.concat()).expect("JSON is text")
    }

    #[test]
    fn an_answer_is_one_line() {
        assert_eq!(line(Answer::done()), "{\"ok\":true}\n");
        assert_eq!(
            line(Answer::failed("disk \"a\" is\nfull")),
            "{\"error\":\"disk \\\"a\\\" is\\nfull\",\"exit\":1}\n"
        );
        assert_eq!(line(Answer::refused("no")), "{\"error\":\"no\",\"exit\":3}\n");
    }

    #[test]
    fn a_report_is_said_in_pieces_and_is_the_same_object() {
        for count in [0, 1, 2, 700, 5000] {
            let entry = |seq| Entry {
                seq: Seq(seq),
                offset: seq * 512,
                length: 512,
                time_ns: seq,
                volume: Volume(0),
                op: Op::Write,
                state: Missing::Sent,
            };
            let missing = MissingWrites::new(vec!["db".into()], (1..=count).map(entry).collect());
            let report = PromoteReport { group: "orders".into(), missing, missing_bytes: 7, ..Default::default() };
            let pieces: Vec<Bytes> = Answer::promoted(&report).pieces().collect();
            // An entry is some 150 bytes.
            assert!(pieces.iter().all(|piece| piece.len() < CONTROL_PIECE_BYTES + 1024), "{count}");
            assert!(pieces.len() > count as usize / 700, "{count}: {} pieces", pieces.len());
            let text = String::from_utf8(pieces.concat()).expect("JSON is text");
            assert_eq!(text, format!("{{\"ok\":{}}}\n", serde_json::to_string(&report).expect("plain data")));
        }
    }
}
