//! Waiting for a process that is already dead.
//!
//! The kernel takes a ring apart in its own time after its process has ended: for some milliseconds the files
//! stay locked and the sockets keep listening. Who is started again at once (a supervisor, a test) must not take
//! that for a second process.

use std::io;
use std::time::{Duration, Instant};

/// Tries until it works, or what is in the way has had the time to go.
pub fn patiently<T>(in_the_way: io::ErrorKind, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let until = Instant::now() + PATIENCE;
    let mut pause = PAUSE_FIRST;
    loop {
        match attempt() {
            Err(error) if error.kind() == in_the_way && Instant::now() < until => {
                std::thread::sleep(pause);
                pause *= 2;
            }
            other => return other,
        }
    }
}

/// Far longer than the kernel has been seen to take, short enough for who starts a second process by mistake.
const PATIENCE: Duration = Duration::from_secs(3);
/// Doubled each time: a process that does live is not to be plagued with attempts.
const PAUSE_FIRST: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_go_away_is_waited_for() {
        let mut left = 3;
        let result = patiently(io::ErrorKind::AddrInUse, || {
            left -= 1;
            if left > 0 { Err(io::ErrorKind::AddrInUse.into()) } else { Ok(left) }
        });
        assert_eq!(result.expect("the third attempt"), 0);
        let begun = Instant::now();
        assert!(patiently(io::ErrorKind::AddrInUse, || Err::<(), _>(io::ErrorKind::NotFound.into())).is_err());
        assert!(begun.elapsed() < PATIENCE);
    }
}
