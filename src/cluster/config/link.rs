//! `primary.link`: how many bytes a second may go to DR, and when.

use std::ops::RangeInclusive;

use crate::cluster::config::{DrConfig, PrimaryConfig, line_of};
use crate::cluster::size::exact_size;
use crate::cluster::toml::{Reader, Section};
use crate::core::address::Address;
use crate::core::rate::{DAY_MINUTES, DAYS, Hours, RateLimit, minute_of_day};
use crate::limits::STREAM_BYTES_PER_SECOND_MIN;

const KEYS: &[&str] = &["bytes_per_second", "hours"];
const HOURS_KEYS: &[&str] = &["from", "to", "days", "bytes_per_second"];
const BOUNDS: RangeInclusive<u64> = STREAM_BYTES_PER_SECOND_MIN..=1 << 40;

pub(super) fn read(r: &mut Reader<'_>, s: &Section<'_>) -> RateLimit {
    let Some(t) = r.child(s, "link", KEYS) else { return RateLimit::default() };
    let limit = limit(r, &t);
    let sections = r.children(&t, "hours", HOURS_KEYS);
    let hours: Vec<Hours> = sections.iter().filter_map(|section| hours(r, section)).collect();
    if !KEYS.iter().any(|key| t.has(key)) {
        r.error(s, "link", "names no limit: for example { bytes_per_second = \"50MiB\" }");
    }
    RateLimit { limit, hours }
}

/// `None`: none is written.
fn limit(r: &mut Reader<'_>, s: &Section<'_>) -> Option<u64> {
    if s.has("bytes_per_second") { r.size(s, "bytes_per_second", BOUNDS, None) } else { None }
}

fn hours(r: &mut Reader<'_>, s: &Section<'_>) -> Option<Hours> {
    let from = time(r, s, "from", DAY_MINUTES - 1);
    let to = time(r, s, "to", DAY_MINUTES);
    let mut days = [!s.has("days"); 7];
    for name in if s.has("days") { r.strings(s, "days", "on which days they begin")? } else { Vec::new() } {
        match DAYS.iter().position(|day| *day == name) {
            Some(day) => days[day] = true,
            None => r.error(s, "days", format!("{name:?} is no day: they are {}", DAYS.join(", "))),
        }
    }
    Some(Hours { days, from: from?, to: to?, limit: limit(r, s) })
}

fn time(r: &mut Reader<'_>, s: &Section<'_>, key: &str, last: u16) -> Option<u16> {
    let text = r.required(s, key, "a time of day, as \"08:30\"")?;
    let minute = minute_of_day(text).filter(|minute| *minute <= last);
    if minute.is_none() {
        r.error(s, key, format!("{text:?} is no time of day: two digits each, as \"08:30\""));
    }
    minute
}

/// Whether the streams can live on it, and whether it can be kept.
pub(super) fn check(r: &mut Reader<'_>, text: &str, primary: Option<&PrimaryConfig>, dr: Option<&DrConfig>) {
    let (Some(primary), Some(dr)) = (primary, dr) else { return };
    let Some(least) = primary.link.least() else { return };
    let line = line_of(text, &["primary", "link"]);
    let needed = dr.streams as u64 * STREAM_BYTES_PER_SECOND_MIN;
    if least < needed {
        let (streams, needed) = (dr.streams, exact_size(needed));
        let text = format!(
            "{least} bytes a second are too few for {streams} streams: at least \"{needed}\", or fewer [dr] streams"
        );
        r.error_at(line, "primary.link", text);
    }
    if matches!(dr.address, Address::Unix(_)) {
        r.error_at(line, "primary.link", "only what goes over TCP can be limited, and [dr] address is a unix socket");
    }
}
