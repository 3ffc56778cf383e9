//! The two clocks. Nothing else in the project reads the time.
//!
//! The monotonic one is CLOCK_BOOTTIME, which also counts the time in which the system was suspended: a lease ends on
//! time in a machine that sleeps (I7), and links that were silent meanwhile are taken for what they are.

use nix::libc;

use crate::core::machine::Now;
use crate::core::rate::WallTime;

/// Both clocks now.
#[must_use]
pub fn now() -> Now {
    Now { mono_ns: mono_ns(), wall_ns: read(libc::CLOCK_REALTIME) }
}

/// A time of the wall clock (nanoseconds since 1970) in the time zone of this host.
#[must_use]
pub fn of_the_week(wall_ns: u64) -> WallTime {
    let seconds = libc::time_t::try_from(wall_ns / 1_000_000_000).unwrap_or(0);
    // SAFETY: every field of it is a number or a pointer, for which zero is a value.
    let mut local: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both live through the call, which writes into `local` alone.
    let known = !unsafe { libc::localtime_r(&raw const seconds, &raw mut local) }.is_null();
    assert!(known, "the year is one that a calendar has");
    let field = |value: libc::c_int| u16::try_from(value).expect("fields of a valid time are not negative");
    // The week of the calendar begins on a Sunday.
    WallTime { day: usize::from(field(local.tm_wday) + 6) % 7, minute: field(local.tm_hour) * 60 + field(local.tm_min) }
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
    fn a_time_of_the_week_is_that_of_the_calendar() {
        // Thursday 1 January 1970, 00:00 UTC; a zone is at most fourteen hours off, in whole minutes.
        const HOUR_NS: u64 = 3_600_000_000_000;
        let minutes = |time: WallTime| time.day as u64 * 1440 + u64::from(time.minute);
        let noon = minutes(of_the_week(36 * HOUR_NS));
        assert!(noon.abs_diff(4 * 1440 + 720) <= 14 * 60, "Friday noon, as {noon} minutes");
        assert_eq!(minutes(of_the_week(37 * HOUR_NS)), noon + 60);
        assert_eq!(minutes(of_the_week((36 + 24 * 7) * HOUR_NS)), noon);
    }

    #[test]
    fn the_monotonic_clock_never_goes_back() {
        let first = now();
        let second = now();
        assert!(second.mono_ns >= first.mono_ns);
        assert!(first.wall_ns > 1_600_000_000_000_000_000, "wall clock is in nanoseconds since 1970");
    }
}
