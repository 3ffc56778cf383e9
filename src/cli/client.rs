//! The blocking client of a role's control socket: one line asked, one line answered.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::failure::Failure;
use crate::cluster::control::{Answer, Request};

/// Longest answer that is read, bytes: a loss report of millions of writes fits.
const ANSWER_BYTES_MAX: u64 = 1 << 30;

/// Asks the role behind `control`; `timeout` bounds each wait for bytes.
///
/// # Errors
/// Nobody answers, or the role answered with an error (whose exit status is taken over).
pub fn ask(control: &Path, request: &Request, timeout: Option<Duration>) -> Result<Value, Failure> {
    let stream = UnixStream::connect(control).map_err(|error| Failure::failed(unreachable(control, &error)))?;
    let answer = exchange(&stream, request, timeout)
        .map_err(|error| Failure::failed(format!("{}: the role stopped answering: {error}", control.display())))?;
    match serde_json::from_slice::<Answer>(&answer) {
        Ok(Answer::Ok { ok }) => Ok(ok),
        Ok(Answer::Error { error, exit }) => Err(Failure { exit: exit.max(1), text: error }),
        Err(_) if answer.is_empty() => Err(Failure::failed(format!(
            "{}: the role closed the connection without an answer; its log says why",
            control.display()
        ))),
        Err(error) => {
            Err(Failure::failed(format!("{}: the answer is not one of farshore's: {error}", control.display())))
        }
    }
}

/// Whether some process answers at a control socket.
pub fn answers(control: &Path) -> bool {
    UnixStream::connect(control).is_ok()
}

fn exchange(stream: &UnixStream, request: &Request, timeout: Option<Duration>) -> std::io::Result<Vec<u8>> {
    stream.set_read_timeout(timeout)?;
    stream.set_write_timeout(timeout)?;
    let mut writer = stream;
    writer.write_all(request.line().as_bytes())?;
    let mut answer = Vec::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_until(b'\n', &mut answer).map_err(|error| {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => std::io::Error::other("no answer in time"),
            _ => error,
        }
    })?;
    Ok(answer)
}

fn unreachable(control: &Path, error: &std::io::Error) -> String {
    let shown = control.display();
    match error.kind() {
        ErrorKind::NotFound => format!("{shown}: there is no control socket; is the role running on this host?"),
        ErrorKind::ConnectionRefused => {
            format!("{shown}: nobody answers; the role was killed or is not running: start it and ask again")
        }
        ErrorKind::PermissionDenied => {
            format!("{shown}: permission denied; run this as the user of the role or as root")
        }
        _ => format!("{shown}: {error}"),
    }
}
