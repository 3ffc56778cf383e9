//! The blocking client of a role's control socket: one line asked, one line answered.
//!
//! What is short is held as a whole; a loss report is read as it comes (`answer`).

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

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

/// How long a role that ended before it looked at a question, or that is to be promoted and is not there, may take to
/// be there (again), and how often that is tried.
const AGAIN_WITHIN: Duration = Duration::from_secs(5);
const AGAIN_EVERY: Duration = Duration::from_millis(100);

/// Why one attempt came to nothing.
enum No {
    /// Nobody is there.
    Absent(Failure),
    /// Somebody was, and ended before the question was looked at: it can be asked again.
    Reset,
    Failed(Failure),
}

/// Asks the role behind `control`; `timeout` bounds each wait for bytes.
///
/// # Errors
/// Nobody answers, or the role answered with an error (whose exit status is taken over).
pub fn ask(control: &Path, request: &Request, timeout: Option<Duration>) -> Result<Value, Failure> {
    patiently(control, request, || {
        let stream = asking(control, request, timeout)?;
        let mut answer = Vec::new();
        BufReader::new((&stream).take(CONTROL_ANSWER_BYTES_MAX)).read_until(b'\n', &mut answer).map_err(|error| {
            let why = if answer.is_empty() { NoReply::unread(error) } else { NoReply::Read(answer::plain(error)) };
            No::of(control, &why)
        })?;
        match serde_json::from_slice::<Short>(&answer) {
            Ok(Short { error: Some(error), exit, .. }) => Err(No::Failed(ended(error, exit.unwrap_or(EXIT_FAILED)))),
            Ok(Short { ok: Some(ok), .. }) => Ok(ok),
            Ok(_) => Err(No::of(control, &NoReply::Strange("neither done nor an error".into()))),
            Err(_) if answer.is_empty() => Err(No::of(control, &NoReply::Nothing)),
            Err(error) => Err(No::of(control, &NoReply::Strange(error.to_string()))),
        }
    })
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
    mut print: Option<&mut dyn Write>,
) -> Result<PromoteReport, Failure> {
    patiently(control, request, || {
        let stream = asking(control, request, timeout)?;
        let print: Option<&mut dyn Write> = match &mut print {
            Some(print) => Some(&mut **print),
            None => None,
        };
        match answer::read(&stream, &mut *each, print) {
            Ok(Reply::Report(report)) => Ok(*report),
            Ok(Reply::Error { error, exit }) => Err(No::Failed(ended(error, exit))),
            Err(NoReply::Print(error)) => Err(No::Failed(error.into())),
            Err(error) => Err(No::of(control, &error)),
        }
    })
}

/// Asks again for a while, where whoever was asked ended before it looked at the question: it may be starting. So may
/// who is not there at all, which only somebody who has a site to save waits for: others want to hear of it at once.
fn patiently<T>(control: &Path, request: &Request, mut attempt: impl FnMut() -> Result<T, No>) -> Result<T, Failure> {
    let waits = matches!(request, Request::Promote { .. });
    let mut until: Option<Instant> = None;
    let mut was_there = false;
    loop {
        let why = match attempt() {
            Ok(done) => return Ok(done),
            Err(No::Failed(failure)) => return Err(failure),
            Err(No::Absent(failure)) if !waits && !was_there => return Err(failure),
            Err(No::Absent(failure)) if !was_there => failure.text,
            Err(No::Absent(_) | No::Reset) => {
                was_there = true;
                format!("{}: {}", control.display(), NoReply::Reset)
            }
        };
        if Instant::now() >= *until.get_or_insert_with(|| Instant::now() + AGAIN_WITHIN) {
            let tried = AGAIN_WITHIN.as_secs();
            return Err(Failure::failed(format!(
                "{why}; it was asked again for {tried} seconds: it may be starting: ask again"
            )));
        }
        std::thread::sleep(AGAIN_EVERY);
    }
}

impl No {
    fn of(control: &Path, why: &NoReply) -> No {
        match why {
            NoReply::Reset => No::Reset,
            _ => No::Failed(Failure::failed(format!("{}: {why}", control.display()))),
        }
    }
}

fn ended(error: String, exit: u8) -> Failure {
    Failure { exit: exit.max(1), text: error }
}

/// A connection on which the request has been made.
fn asking(control: &Path, request: &Request, timeout: Option<Duration>) -> Result<UnixStream, No> {
    let stream = UnixStream::connect(control).map_err(|error| {
        let failure = Failure::failed(unreachable(control, &error));
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => No::Absent(failure),
            _ => No::Failed(failure),
        }
    })?;
    let ask = || -> std::io::Result<()> {
        stream.set_read_timeout(timeout)?;
        stream.set_write_timeout(timeout)?;
        (&stream).write_all(request.line().as_bytes())
    };
    ask().map_err(|error| No::of(control, &NoReply::unread(error)))?;
    Ok(stream)
}

/// Runs `work`, and looks every so often as long as it takes; and once more when it is over, of which it is told.
pub fn meanwhile<T>(every: Duration, mut look: impl FnMut(bool) + Send, work: impl FnOnce() -> T) -> T {
    let (done, ended) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                look(false);
            }
            look(true);
        });
        let result = work();
        drop(done);
        result
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A role that is killed with questions in its queue, and is there again a little later, `after` so many of them.
    fn role(resets: usize) -> (std::path::PathBuf, std::thread::JoinHandle<()>) {
        let path = std::env::temp_dir().join(format!("farshore-client-{}-{resets}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let mut listener = UnixListener::bind(&path).expect("a place of our own");
        let place = path.clone();
        let serve = std::thread::spawn(move || {
            for _ in 0..resets {
                let (stream, _) = listener.accept().expect("somebody asks");
                // What it was asked is not read, so that the kernel resets the connection.
                std::thread::sleep(Duration::from_millis(50));
                drop(listener);
                drop(stream);
                std::thread::sleep(Duration::from_millis(300));
                std::fs::remove_file(&place).expect("there");
                listener = UnixListener::bind(&place).expect("free again");
            }
            let (mut stream, _) = listener.accept().expect("asked again");
            let mut asked = String::new();
            BufReader::new(&stream).read_line(&mut asked).expect("a line");
            assert!(asked.starts_with("{\"verb\""), "{asked}");
            stream.write_all(b"{\"ok\":{\"group\":\"g\",\"missing\":[]}}\n").expect("it listens");
        });
        (path, serve)
    }

    #[test]
    fn a_role_that_was_killed_and_starts_again_is_asked_again() {
        let (path, serve) = role(2);
        let status = ask(&path, &Request::Status, Some(AGAIN_WITHIN)).expect("answered");
        assert_eq!(status["group"], "g");
        serve.join().expect("no panic");
        std::fs::remove_file(path).expect("there");
    }

    #[test]
    fn a_promotion_waits_for_a_role_that_is_only_starting() {
        let path = std::env::temp_dir().join(format!("farshore-client-{}-starting", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let status = ask(&path, &Request::Status, None).expect_err("not there").text;
        assert!(status.contains("there is no control socket"), "{status}");
        let place = path.clone();
        let serve = std::thread::spawn(move || {
            // No socket at first, then one of a process that was killed, then the role.
            std::thread::sleep(Duration::from_millis(300));
            drop(UnixListener::bind(&place).expect("a place of our own"));
            std::thread::sleep(Duration::from_millis(300));
            std::fs::remove_file(&place).expect("there");
            let (mut stream, _) = UnixListener::bind(&place).expect("free again").accept().expect("asked again");
            BufReader::new(&stream).read_line(&mut String::new()).expect("a line");
            stream.write_all(b"{\"ok\":{\"group\":\"g\",\"missing\":[]}}\n").expect("it listens");
        });
        let request = Request::Promote { plan: false, force: false };
        assert_eq!(ask(&path, &request, None).expect("answered")["group"], "g");
        serve.join().expect("no panic");
        let gone = report(&path, &request, None, &mut |_| {}, None).expect_err("gone").text;
        assert!(gone.contains("nobody answers") && gone.contains("ask again"), "{gone}");
        std::fs::remove_file(path).expect("there");
    }

    #[test]
    fn a_role_that_does_not_come_back_may_be_starting() {
        let (path, serve) = role(0);
        ask(&path, &Request::Status, Some(AGAIN_WITHIN)).expect("answered");
        serve.join().expect("no panic");
        let gone = ask(&path, &Request::Status, Some(AGAIN_WITHIN)).expect_err("it is gone").text;
        assert!(gone.contains("nobody answers"), "{gone}");
        let reset = patiently::<()>(&path, &Request::Status, || Err(No::Reset)).expect_err("never there").text;
        assert!(reset.contains("it may be starting: ask again"), "{reset}");
        std::fs::remove_file(path).expect("there");
    }
}
