//! The limit on what goes to DR: data waits for it, writes do not.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use farshore::cli::demo::nbd::Ask;
use farshore::cli::demo::site::Role;

use crate::harness::{FAST, Group, LONG, MIB, small};

const LIMIT: u64 = MIB;
const WRITTEN: u64 = 6 * MIB;
const REQUEST: u64 = 64 << 10;

fn limited(link: &str, streams: u64) -> Result<()> {
    let mut settings = small();
    settings.push(("dr", format!("streams = {streams}")));
    settings.push(("group", "protect = \"order\"".into()));
    settings.push(("primary", format!("link = {link}")));
    let mut group = Group::with(FAST, settings)?;
    // A name has several addresses: what is limited is not the first socket alone.
    let config = group.site.config();
    let text = std::fs::read_to_string(&config)?;
    ensure!(text.contains("\naddress = \"127.0.0.1:"), "{text}");
    std::fs::write(&config, text.replace("\naddress = \"127.0.0.1:", "\naddress = \"localhost:"))?;
    group.site.start_all()?;
    let mut client = group.site.client(Role::Primary, "db")?;
    client.timeout(Some(LONG))?;
    let began = Instant::now();
    for offset in (0..WRITTEN).step_by(REQUEST as usize) {
        let data = vec![1 + (offset / REQUEST) as u8; REQUEST as usize];
        client.call(Ask::Write { offset, data: &data, fua: false })?;
    }
    client.close();
    // A machine that is slower than the limit tells nothing about what waits.
    let waiting = group.site.primary()?;
    ensure!(
        waiting.lag_bytes > MIB || began.elapsed() > Duration::from_secs(4),
        "only {} bytes wait",
        waiting.lag_bytes
    );
    let limit = waiting.links.iter().find(|link| link.peer == "dr").and_then(|link| link.limit_bytes_per_second);
    ensure!(limit == Some(LIMIT), "{limit:?}");
    let people = group.site.verb(&["status"])?.out;
    ensure!(people.contains("at most 1 MiB a second"), "{people}");
    group.site.settle(LONG)?;
    // What the kernels take at once on four streams and a relay is less than two seconds of it.
    let took = began.elapsed();
    ensure!(took >= Duration::from_secs(WRITTEN / LIMIT - 2), "{WRITTEN} bytes crossed in {took:?}");
    group.compare_files()
}

#[test]
fn data_goes_no_faster_than_the_limit_and_writes_do_not_wait_for_it() -> Result<()> {
    limited("{ bytes_per_second = \"1MiB\" }", 4)
}

/// What a stream was told before it had a socket was lost, and of a single one no share ever changes.
#[test]
fn the_limit_holds_for_a_single_stream_to_a_name() -> Result<()> {
    limited("{ bytes_per_second = \"1MiB\" }", 1)
}

#[test]
fn a_limit_may_hold_at_some_hours_only() -> Result<()> {
    limited(
        "{ bytes_per_second = \"1GiB\", hours = [{ from = \"00:00\", to = \"24:00\", bytes_per_second = \"1MiB\" }] }",
        4,
    )
}
