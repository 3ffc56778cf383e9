//! Waiting for a process that is already dead, or about to end.
//!
//! The kernel takes a ring apart in its own time after its process has ended: for some milliseconds, for seconds
//! under load, its sockets keep listening and the block devices it used stay locked. Who is started again at once (a
//! supervisor, a person) must not take that for a second process; and who does start a second one is to hear of it soon.

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

/// What stands in the way, as far as the kernel tells.
pub struct Obstacle {
    /// What is in use, and by whom.
    pub text: String,
    /// Its process has ended: it goes by itself, once the kernel lets go of it.
    pub ended: bool,
}

/// Tries until it works, or what is in the way has had the time to go, or this process is told to stop. A wait that is
/// long enough to be noticed is told once, with what is in the way.
pub fn patiently<T>(
    in_the_way: io::ErrorKind,
    what: impl Fn() -> Obstacle,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> Result<T, Late> {
    let begun = Instant::now();
    let (mut pause, mut told) = (PAUSE_FIRST, false);
    loop {
        let error = match attempt() {
            Ok(done) => {
                if told {
                    tracing::info!("going on after {} ms", begun.elapsed().as_millis());
                }
                return Ok(done);
            }
            Err(error) => error,
        };
        let waited = begun.elapsed();
        let in_vain = error.kind() != in_the_way || told_to_stop() || waited >= PATIENCE_ENDED;
        if in_vain || waited >= PATIENCE && !what().ended {
            return Err(Late { error, seconds: waited.as_secs() });
        }
        if waited >= TELL_AFTER && !std::mem::replace(&mut told, true) {
            let Obstacle { text, ended } = what();
            let (why, most) = match ended {
                true => ("the kernel is still taking apart what that process had", PATIENCE_ENDED),
                false => ("it may be about to end", PATIENCE),
            };
            tracing::warn!("{text}; {why}: waiting for up to {} seconds", most.as_secs());
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(PAUSE_LAST);
    }
}

/// Whether a process is no more, or waits for nothing but that somebody asks how it ended.
pub fn has_ended(pid: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    // Its name may have anything in it, parentheses too.
    let state = status.rsplit_once(')').map_or("", |(_, rest)| rest.trim_start());
    state.starts_with(['Z', 'X'])
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

/// For what a living process has: one that is being stopped ends within that, and who starts a second one by mistake hears
/// of it soon.
const PATIENCE: Duration = Duration::from_secs(2);
/// For what a process has left: far longer than the kernel has been seen to take.
const PATIENCE_ENDED: Duration = Duration::from_secs(30);
/// Waits up to here are those of every quick restart, and not worth a line.
const TELL_AFTER: Duration = Duration::from_millis(100);
/// Doubled each time, up to the last: a process that does live is not to be plagued with attempts.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_LAST: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_go_away_is_waited_for() {
        let mut left = 3;
        let result = patiently(io::ErrorKind::AddrInUse, held_by(false), || {
            left -= 1;
            if left > 0 { Err(io::ErrorKind::AddrInUse.into()) } else { Ok(left) }
        });
        assert_eq!(result.expect("the third attempt"), 0);
        let begun = Instant::now();
        let other = || Err::<(), _>(io::ErrorKind::NotFound.into());
        assert!(patiently(io::ErrorKind::AddrInUse, held_by(false), other).is_err());
        assert!(begun.elapsed() < TELL_AFTER);
    }

    #[test]
    fn a_living_process_is_waited_for_shortly_and_one_that_has_ended_for_longer() {
        let busy = || Err::<(), _>(io::ErrorKind::AddrInUse.into());
        let late = patiently(io::ErrorKind::AddrInUse, held_by(false), busy).expect_err("in use");
        assert_eq!(late.seconds, PATIENCE.as_secs());
        let begun = Instant::now();
        let free_later = || if begun.elapsed() > PATIENCE + PAUSE_LAST { Ok(()) } else { busy() };
        patiently(io::ErrorKind::AddrInUse, held_by(true), free_later).expect("it goes by itself");
    }

    #[test]
    fn a_process_that_has_ended_is_known() {
        let mut child = std::process::Command::new("true").spawn().expect("it is there");
        assert!(!has_ended(std::process::id()));
        let until = Instant::now() + PATIENCE_ENDED;
        while !has_ended(child.id()) {
            assert!(Instant::now() < until, "nobody has asked how it ended, and it is taken for alive");
        }
        child.wait().expect("it ends");
        assert!(has_ended(child.id()));
    }

    fn held_by(ended: bool) -> impl Fn() -> Obstacle {
        move || Obstacle { text: "the address is in use".into(), ended }
    }
}
