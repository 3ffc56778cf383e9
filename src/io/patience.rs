//! Waiting for a process that is already dead, or about to end.
//!
//! The kernel takes a ring apart in its own time after its process has ended: for some milliseconds, for seconds
//! under load, its sockets keep listening and the block devices it used stay locked. Who is started again at once (a
//! supervisor, a person) must not take that for a second process.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use nix::libc;

/// What was in the way to the end.
#[derive(Debug)]
pub struct Late {
    pub error: io::Error,
    /// How long it was waited for.
    pub seconds: u64,
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seconds {
            0 => write!(f, "{}", self.error),
            seconds => write!(f, "{}, for all of {seconds} seconds", self.error),
        }
    }
}

/// Tries until it works, or what is in the way has had the time to go, or this process is told to stop. A wait that is
/// long enough to be asked about is told once, with what `what` says is in the way.
pub fn patiently<T>(
    in_the_way: io::ErrorKind,
    what: impl Fn() -> String,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> Result<T, Late> {
    let begun = Instant::now();
    let (mut pause, mut told) = (PAUSE_FIRST, false);
    loop {
        match attempt() {
            Err(error) if error.kind() == in_the_way && begun.elapsed() < PATIENCE && !told_to_stop() => {
                if begun.elapsed() >= TELL_AFTER && !std::mem::replace(&mut told, true) {
                    let most = PATIENCE.as_secs();
                    tracing::warn!(
                        "{}; it may be a process that has just ended, or that is about to: waiting for up to {most} \
                         seconds",
                        what()
                    );
                }
                std::thread::sleep(pause);
                pause = (2 * pause).min(PAUSE_LAST);
            }
            Ok(done) => {
                if told {
                    tracing::info!("going on after {} ms", begun.elapsed().as_millis());
                }
                return Ok(done);
            }
            Err(error) => return Err(Late { error, seconds: begun.elapsed().as_secs() }),
        }
    }
}

/// Whether SIGTERM or SIGINT has come: they are blocked and wait for the reactor, which does not turn yet.
fn told_to_stop() -> bool {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigpending writes the whole set, and says so with 0; the numbers of signals are valid.
    unsafe {
        libc::sigpending(set.as_mut_ptr()) == 0
            && [libc::SIGTERM, libc::SIGINT].into_iter().any(|signal| libc::sigismember(set.as_ptr(), signal) == 1)
    }
}

/// Far longer than the kernel has been seen to take; who starts a second process by mistake is told what is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Waits up to here are those of every quick restart, and not worth a line.
const TELL_AFTER: Duration = Duration::from_millis(500);
/// Doubled each time, up to the last: a process that does live is not to be plagued with attempts.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_LAST: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_go_away_is_waited_for() {
        let mut left = 3;
        let result = patiently(io::ErrorKind::AddrInUse, String::new, || {
            left -= 1;
            if left > 0 { Err(io::ErrorKind::AddrInUse.into()) } else { Ok(left) }
        });
        assert_eq!(result.expect("the third attempt"), 0);
        let begun = Instant::now();
        let other = || Err::<(), _>(io::ErrorKind::NotFound.into());
        assert!(patiently(io::ErrorKind::AddrInUse, String::new, other).is_err());
        assert!(begun.elapsed() < TELL_AFTER);
    }
}
