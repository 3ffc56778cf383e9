//! The words of the control socket: one JSON object a line, asked and answered. Pure; who reads and writes the
//! socket is the daemon on one side and `cli` on the other.
//!
//! ```text
//! → {"verb":"status"}
//! ← {"ok":{"role":"dr",…}}
//! → {"verb":"promote","plan":false,"force":false}
//! ← {"error":"the auxiliary does not answer: …","exit":3}
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cluster::status::{PromoteReport, Status};

/// Longest request line, bytes, newline included. Longer ones end the connection.
pub const REQUEST_BYTES_MAX: usize = 4096;

/// Exit status of a verb that failed, as the answer names it.
pub const EXIT_FAILED: u8 = 1;
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
    /// The durable loss report of the last promotion.
    Loss,
    /// A clean stop, as SIGTERM.
    Stop,
}

/// What a daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    Ok { ok: Value },
    Error { error: String, exit: u8 },
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

    /// The line that asks this, newline included.
    #[must_use]
    pub fn line(&self) -> String {
        line(self)
    }
}

impl Answer {
    #[must_use]
    pub fn status(status: &Status) -> Answer {
        Answer::ok(status)
    }

    #[must_use]
    pub fn promoted(report: &PromoteReport) -> Answer {
        Answer::ok(report)
    }

    /// Done, with nothing to say.
    #[must_use]
    pub fn done() -> Answer {
        Answer::Ok { ok: Value::Bool(true) }
    }

    #[must_use]
    pub fn failed(error: impl Into<String>) -> Answer {
        Answer::Error { error: error.into(), exit: EXIT_FAILED }
    }

    /// Refused for safety; `error` says what would make it safe.
    #[must_use]
    pub fn refused(error: impl Into<String>) -> Answer {
        Answer::Error { error: error.into(), exit: EXIT_REFUSED }
    }

    fn ok(value: &impl Serialize) -> Answer {
        Answer::Ok { ok: serde_json::to_value(value).expect("plain data without maps of odd keys becomes JSON") }
    }

    /// The line that says this, newline included.
    #[must_use]
    pub fn line(&self) -> String {
        line(self)
    }
}

fn line(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string(value).expect("plain data without maps of odd keys becomes JSON");
    text.push('\n');
    text
}

/// Cuts request lines out of the bytes of one connection.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
}

/// A client sent more than [`REQUEST_BYTES_MAX`] without a newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a control request is one line of at most {REQUEST_BYTES_MAX} bytes")]
pub struct LineTooLong;

impl Lines {
    /// Takes received bytes; at most one line and what follows it are kept.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete line without its newline, `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`LineTooLong`]: answer and close.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, LineTooLong> {
        match self.buffer.iter().position(|byte| *byte == b'\n') {
            Some(at) if at < REQUEST_BYTES_MAX => {
                let mut line: Vec<u8> = self.buffer.drain(..=at).collect();
                line.pop();
                Ok(Some(line))
            }
            None if self.buffer.len() < REQUEST_BYTES_MAX => Ok(None),
            _ => Err(LineTooLong),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_the_documentation_says() {
        for (text, request) in [
            (r#"{"verb":"status"}"#, Request::Status),
            (r#"{"verb":"stop"}"#, Request::Stop),
            (r#"{"verb":"loss"}"#, Request::Loss),
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
    fn answers_read_back() {
        for answer in [Answer::done(), Answer::failed("disk full"), Answer::refused("use --force when …")] {
            let line = answer.line();
            assert!(line.ends_with('\n') && line.matches('\n').count() == 1);
            assert_eq!(serde_json::from_str::<Answer>(&line).expect("one object"), answer);
        }
        assert_eq!(Answer::refused("no").line(), "{\"error\":\"no\",\"exit\":3}\n");
    }

    #[test]
    fn lines_are_cut_however_they_arrive() {
        let mut lines = Lines::default();
        for byte in b"{\"verb\":\"status\"}" {
            lines.push(&[*byte]);
            assert_eq!(lines.next_line(), Ok(None));
        }
        lines.push(b"\nnext\n");
        assert_eq!(lines.next_line(), Ok(Some(b"{\"verb\":\"status\"}".to_vec())));
        assert_eq!(lines.next_line(), Ok(Some(b"next".to_vec())));
        assert_eq!(lines.next_line(), Ok(None));
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut lines = Lines::default();
        lines.push(&[b'x'; REQUEST_BYTES_MAX]);
        assert_eq!(lines.next_line(), Err(LineTooLong));
    }
}
