//! The two clocks. Nothing else in the project reads the time.
//!
//! The monotonic one is CLOCK_BOOTTIME, which also counts the time in which the system was suspended: a lease ends on
//! time in a machine that sleeps (I7), and links that were silent meanwhile are taken for what they are.

use nix::libc;

use crate::core::machine::Now;

/// Both clocks now.
#[must_use]
pub fn now() -> Now {
    Now { mono_ns: mono_ns(), wall_ns: read(libc::CLOCK_REALTIME) }
}

/// The monotonic clock, nanoseconds.
#[must_use]
pub fn mono_ns() -> u64 {
    read(libc::CLOCK_BOOTTIME)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the whole call, which only writes into it.
    let status = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(status, 0, "both clocks exist on every Linux");
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_never_goes_back() {
        let first = now();
        let second = now();
        assert!(second.mono_ns >= first.mono_ns);
        assert!(first.wall_ns > 1_600_000_000_000_000_000, "wall clock is in nanoseconds since 1970");
    }
}
