//! What goes to DR: the limit on it, for which data waits and writes do not, its compression, and the ways it takes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farshore::cli::demo::nbd::Ask;
use farshore::cli::demo::site::Role;
use farshore::cli::relay::line::{Relay, Settings};
use farshore::cluster::status::LinkStatus;
use farshore::core::address::Address;

use crate::harness::{FAST, Group, LONG, MIB, SLOW, small};

const LIMIT: u64 = MIB;
const WRITTEN: u64 = 6 * MIB;
const REQUEST: u64 = 64 << 10;

fn limited(link: &str, streams: u64) -> Result<()> {
    let mut settings = small();
    settings.push(("dr", format!("streams = {streams}")));
    settings.push(("group", "protect = \"order\"".into()));
    // What it is full of would hardly take any time.
    settings.push(("primary", format!("link = {link}\ncompress = \"off\"")));
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

/// Half of what is written becomes a few bytes, half of it no shorter. Bytes that crossed, and that did not have to.
fn compressed(compress: &str, line: Settings, kill: bool) -> Result<(u64, u64)> {
    let mut settings = small();
    settings.push(("group", "protect = \"order\"".into()));
    settings.push(("primary", format!("compress = \"{compress}\"")));
    let mut group = Group::with(line, settings)?;
    group.site.start_all()?;
    group.site.settle(LONG)?;
    let sent = |group: &Group| -> Result<(u64, u64)> {
        let status = group.site.primary()?;
        let link = status.links.iter().find(|link| link.peer == "dr").context("there is a link to DR")?;
        Ok((link.sent_bytes, link.compression_saved_bytes))
    };
    let before = sent(&group)?;
    let mut client = group.site.client(Role::Primary, "db")?;
    client.timeout(Some(LONG))?;
    let mut noise = 7u64;
    for offset in (0..8 * MIB).step_by(REQUEST as usize) {
        let page: Vec<u8> = (0..REQUEST).map(|at| if at % 7 == 0 { (at >> 9) as u8 } else { b'-' }).collect();
        let mut next = || {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (noise >> 56) as u8
        };
        let even = (offset / REQUEST).is_multiple_of(2);
        let data = if even { page } else { (0..REQUEST).map(|_| next()).collect() };
        client.call(Ask::Write { offset, data: &data, fua: false })?;
    }
    client.close();
    // What it has counted dies with it.
    let counted = sent(&group)?;
    if kill {
        group.site.kill(Role::Primary)?;
        group.site.start(Role::Primary)?;
        group.site.ready()?;
    }
    group.site.settle(LONG)?;
    group.compare_files()?;
    if kill {
        return Ok(counted);
    }
    let after = sent(&group)?;
    let people = group.site.verb(&["status"])?.out;
    ensure!(people.contains("saved by compression") == (after.1 > 0), "{people}");
    Ok((after.0 - before.0, after.1 - before.1))
}

#[test]
fn what_becomes_shorter_crosses_compressed_if_that_is_asked_for_or_the_line_holds_it_up() -> Result<()> {
    let (sent, saved) = compressed("always", FAST, false)?;
    ensure!(saved > 2 * MIB && sent + saved > 8 * MIB && sent + saved < 9 * MIB, "always: {sent} sent, {saved} saved");
    let (sent, saved) = compressed("off", SLOW, false)?;
    ensure!(saved == 0 && sent > 8 * MIB, "off: {sent} sent, {saved} saved");
    let limited = "auto\"\nlink = { bytes_per_second = \"1MiB\" }\n#\"";
    let (sent, saved) = compressed(limited, FAST, false)?;
    ensure!(saved > MIB / 2 && sent > 4 * MIB, "auto: {sent} sent, {saved} saved");
    Ok(())
}

#[test]
fn a_primary_that_is_killed_while_frames_are_packed_loses_none() -> Result<()> {
    let (sent, saved) = compressed("always", SLOW, true)?;
    ensure!(saved > 0, "{sent} sent, {saved} saved");
    Ok(())
}

/// The ways to DR: whether each works, and the streams on it; once that is as `wanted`, or it never is.
fn ways(group: &Group, wanted: &[(&str, u64)]) -> Result<LinkStatus> {
    let end = Instant::now() + LONG;
    loop {
        let link = group.site.primary()?.links.into_iter().find(|link| link.peer == "dr").context("a link to DR")?;
        let paths: Vec<(&str, u64)> = link.paths.iter().map(|path| (path.state.as_str(), path.streams)).collect();
        if paths == wanted {
            return Ok(link);
        }
        ensure!(Instant::now() < end, "{paths:?} and not {wanted:?}: {}", group.site.log(Role::Primary));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn several_ways_are_used_together_and_one_that_is_dead_is_left_out_until_it_works() -> Result<()> {
    let mut settings = small();
    settings.push(("group", "protect = \"near\"".into()));
    let mut group = Group::with(SLOW, settings)?;
    let to = Address::Unix(group.site.plan.dir.join("dr.sock"));
    let other = Relay::start(&"127.0.0.1:0".parse()?, &to, SLOW)?;
    let config = group.site.config();
    let text = std::fs::read_to_string(&config)?;
    let with = text.replacen("\nexport = ", &format!("\npaths = [\"{}\"]\nexport = ", other.address()), 2);
    ensure!(with.matches("\npaths = ").count() == 1, "{with}");
    std::fs::write(&config, with)?;
    group.site.start_all()?;
    let check = group.site.verb(&["check"])?;
    ensure!(check.exit == 0, "{}", check.out);
    let write = |group: &Group, byte: u8| -> Result<()> {
        let mut client = group.site.client(Role::Primary, "db")?;
        client.timeout(Some(LONG))?;
        for at in 0..32u64 {
            let data = vec![byte ^ at as u8; REQUEST as usize];
            client.call(Ask::Write { offset: (at * 7 % 32) * REQUEST + u64::from(byte), data: &data, fua: false })?;
        }
        client.close();
        Ok(())
    };
    let first = ways(&group, &[("up", 2), ("up", 2)])?;
    ensure!(first.address == first.paths[0].address, "{first:?}");
    write(&group, 1)?;
    // Nothing comes through any more, and nobody says so.
    other.cut();
    write(&group, 2)?;
    ways(&group, &[("up", 4), ("down", 0)])?;
    group.site.settle(LONG)?;
    other.heal();
    ways(&group, &[("up", 2), ("up", 2)])?;
    write(&group, 3)?;
    group.site.line.cut();
    write(&group, 4)?;
    let second = ways(&group, &[("down", 0), ("up", 4)])?;
    ensure!(second.address == second.paths[1].address, "{second:?}");
    group.site.settle(LONG)?;
    let people = group.site.verb(&["status"])?.out;
    ensure!(people.contains(&format!("{} out of order", second.paths[0].address)), "{people}");
    group.site.line.heal();
    ways(&group, &[("up", 2), ("up", 2)])?;
    // A DR that was restarted is no way that is out of order.
    group.site.kill(Role::Dr)?;
    group.site.start(Role::Dr)?;
    write(&group, 5)?;
    group.site.settle(LONG)?;
    ways(&group, &[("up", 2), ("up", 2)])?;
    group.compare_files()
}
