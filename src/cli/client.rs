//! The blocking client of a role's control socket: one line asked, one line answered.
//!
//! What is short is held as a whole; a loss report is read as it comes (`answer`).

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::answer::{self, NoReply, Reply};
use super::failure::Failure;
use crate::cluster::control::{EXIT_FAILED, Request};
use crate::cluster::losses::MissingWrite;
use crate::cluster::status::PromoteReport;
use crate::limits::CONTROL_ANSWER_BYTES_MAX;

/// An answer that is held as a whole.
#[derive(Deserialize)]
struct Short {
    ok: Option<Value>,
    error: Option<String>,
    exit: Option<u8>,
}

/// Asks the role behind `control`; `timeout` bounds each wait for bytes.
///
/// # Errors
/// Nobody answers, or the role answered with an error (whose exit status is taken over).
pub fn ask(control: &Path, request: &Request, timeout: Option<Duration>) -> Result<Value, Failure> {
    let no = |text: String| Failure::failed(format!("{}: {text}", control.display()));
    let stream = asking(control, request, timeout)?;
    let mut answer = Vec::new();
    BufReader::new((&stream).take(CONTROL_ANSWER_BYTES_MAX))
        .read_until(b'\n', &mut answer)
        .map_err(|error| no(NoReply::Read(answer::plain(error)).to_string()))?;
    match serde_json::from_slice::<Short>(&answer) {
        Ok(Short { error: Some(error), exit, .. }) => Err(ended(error, exit.unwrap_or(EXIT_FAILED))),
        Ok(Short { ok: Some(ok), .. }) => Ok(ok),
        Ok(_) => Err(no(NoReply::Strange("neither done nor an error".into()).to_string())),
        Err(_) if answer.is_empty() => Err(no(NoReply::Nothing.to_string())),
        Err(error) => Err(no(NoReply::Strange(error.to_string()).to_string())),
    }
}

/// Asks for a report, of which nothing but what stands around its list is held: `each` is given every missing write,
/// and `print` the report as the role says it.
///
/// # Errors
/// As [`ask`]; also when the answer does not come to its end.
pub fn report(
    control: &Path,
    request: &Request,
    timeout: Option<Duration>,
    each: &mut dyn FnMut(MissingWrite),
    print: Option<&mut dyn Write>,
) -> Result<PromoteReport, Failure> {
    let stream = asking(control, request, timeout)?;
    match answer::read(&stream, each, print) {
        Ok(Reply::Report(report)) => Ok(*report),
        Ok(Reply::Error { error, exit }) => Err(ended(error, exit)),
        Err(NoReply::Print(error)) => Err(error.into()),
        Err(error) => Err(Failure::failed(format!("{}: {error}", control.display()))),
    }
}

fn ended(error: String, exit: u8) -> Failure {
    Failure { exit: exit.max(1), text: error }
}

/// A connection on which the request has been made.
fn asking(control: &Path, request: &Request, timeout: Option<Duration>) -> Result<UnixStream, Failure> {
    let stream = UnixStream::connect(control).map_err(|error| Failure::failed(unreachable(control, &error)))?;
    let ask = || -> std::io::Result<()> {
        stream.set_read_timeout(timeout)?;
        stream.set_write_timeout(timeout)?;
        (&stream).write_all(request.line().as_bytes())
    };
    ask()
        .map_err(|error| Failure::failed(format!("{}: {}", control.display(), NoReply::Read(answer::plain(error)))))?;
    Ok(stream)
}

/// Whether some process answers at a control socket.
pub fn answers(control: &Path) -> bool {
    UnixStream::connect(control).is_ok()
}

fn unreachable(control: &Path, error: &std::io::Error) -> String {
    let shown = control.display();
    match error.kind() {
        ErrorKind::NotFound => format!("{shown}: there is no control socket; is the role running on this host?"),
        ErrorKind::ConnectionRefused => {
            format!("{shown}: nobody answers; the role was killed or is not running: start it and ask again")
        }
        ErrorKind::PermissionDenied => {
            format!(
                "{shown}: permission denied; run this as the user of the role or as root; members of its group may look, too"
            )
        }
        _ => format!("{shown}: {error}"),
    }
}
