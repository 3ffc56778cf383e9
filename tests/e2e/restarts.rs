//! Roles that are killed or stopped and come back, and a line that is cut: replication goes on by itself, nothing is
//! lost, and both sides end equal.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use farshore::cli::demo::load::content;
use farshore::cli::demo::nbd::{Ask, Client};
use farshore::cli::demo::oracle::Promise;
use farshore::cli::demo::site::Role;
use farshore::cli::relay::line::Settings;
use farshore::cluster::status::Status;

use crate::harness::{FAST, Group, LONG, MIB, SLOW};

const WHILE: Duration = Duration::from_millis(500);

/// Kills a peer of the primary under load, starts it again, and compares.
fn peer_comes_back(peer: Role, times: usize) -> Result<()> {
    let mut group = Group::started(SLOW, "protect = \"order\"")?;
    let load = group.load(3)?;
    for _ in 0..times {
        std::thread::sleep(WHILE);
        group.site.kill(peer)?;
        let before = load.acked();
        std::thread::sleep(WHILE);
        group.site.start(peer)?;
        ensure!(load.acked() > before, "with require = any one peer is enough, but nothing was answered");
    }
    std::thread::sleep(WHILE);
    let log = load.finish();
    ensure!(log.ends.is_empty(), "connections ended: {:?}", log.ends);
    ensure!(log.submissions.iter().all(|one| one.acked.is_some()), "a request failed");
    group.settle_and_compare(&log)?;
    group.site.ready()
}

#[test]
fn a_killed_dr_comes_back_and_catches_up() -> Result<()> {
    peer_comes_back(Role::Dr, 2)
}

#[test]
fn a_killed_auxiliary_comes_back() -> Result<()> {
    peer_comes_back(Role::Aux, 2)
}

#[test]
fn a_killed_primary_comes_back_with_its_fifo() -> Result<()> {
    let mut group = Group::started(SLOW, "protect = \"order\"")?;
    let mut log = farshore::cli::demo::load::Log::default();
    for round in 0..3 {
        let load = group.load(10 + round)?;
        std::thread::sleep(WHILE);
        group.site.kill(Role::Primary)?;
        log.merge(load.finish());
        log.interrupted();
        group.site.start(Role::Primary)?;
    }
    group.settle_and_compare(&log)?;
    // And it is still a group that can be promoted exactly.
    let load = group.load(20)?;
    std::thread::sleep(WHILE);
    group.site.kill(Role::Primary)?;
    log.merge(load.finish());
    let report = group.site.promote(&[])?;
    group.check(&log, &report, Promise::Acknowledged).map(|_| ())
}

#[test]
fn a_stopped_primary_answers_what_it_took_in_and_goes_on_after() -> Result<()> {
    let mut group = Group::started(SLOW, "protect = \"order\"")?;
    let load = group.load(4)?;
    std::thread::sleep(WHILE);
    let status = group.site.stop(Role::Primary)?;
    ensure!(status.success(), "it ended with {status}\n{}", group.site.log(Role::Primary));
    let mut log = load.finish();
    log.interrupted();
    group.site.start(Role::Primary)?;
    log.merge(group.load_for(5, WHILE)?);
    group.settle_and_compare(&log)
}

#[test]
fn peers_stop_cleanly_and_come_back() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"near\"")?;
    let mut log = group.load_for(6, WHILE)?;
    for role in [Role::Dr, Role::Aux] {
        let status = group.site.stop(role)?;
        ensure!(status.success(), "{} ended with {status}\n{}", role.word(), group.site.log(role));
        group.site.start(role)?;
        group.site.ready()?;
        log.merge(group.load_for(7 + role as u64, WHILE)?);
    }
    group.settle_and_compare(&log)
}

#[test]
fn a_cut_line_heals() -> Result<()> {
    let mut group = Group::started(SLOW, "protect = \"order\"")?;
    let load = group.load(8)?;
    std::thread::sleep(WHILE);
    group.site.line.cut();
    let before = load.acked();
    // Long enough to be taken for dead.
    std::thread::sleep(Duration::from_secs(5));
    ensure!(load.acked() > before, "the auxiliary alone is enough, but nothing was answered");
    ensure!(!group.site.primary()?.degraded.is_empty(), "a cut line is not shown as degraded");
    group.site.line.heal();
    std::thread::sleep(WHILE);
    group.site.line.reset();
    std::thread::sleep(WHILE);
    let log = load.finish();
    ensure!(log.ends.is_empty(), "connections ended: {:?}", log.ends);
    group.settle_and_compare(&log)?;
    group.site.ready()
}

#[test]
fn everything_is_killed_at_once_and_comes_back() -> Result<()> {
    let mut group = Group::started(SLOW, "protect = \"order\"")?;
    let load = group.load(9)?;
    std::thread::sleep(2 * WHILE);
    for role in [Role::Dr, Role::Primary, Role::Aux] {
        group.site.kill(role)?;
    }
    let mut log = load.finish();
    log.interrupted();
    group.site.start_all()?;
    log.merge(group.load_for(10, WHILE)?);
    group.settle_and_compare(&log)
}

#[test]
fn existing_data_crosses_once_and_only_what_is_allocated() -> Result<()> {
    let mut group = Group::new(FAST, "protect = \"order\"")?;
    let backing = group.site.backing(Role::Primary, "db");
    let file = std::fs::File::create(&backing)?;
    file.set_len(16 * MIB)?;
    let pieces: [(u64, u64); 3] = [(0, 64 << 10), (5 * MIB, MIB), (16 * MIB - 4096, 4096)];
    for (offset, length) in pieces {
        file.write_all_at(&content(offset, length), offset)?;
    }
    file.sync_all()?;
    group.site.start_all()?;
    group.site.settle(LONG)?;
    group.compare_files()?;
    let crossed = group.site.line.stats().bytes[0];
    ensure!(crossed < 2 * MIB, "{crossed} bytes crossed for little more than 1 MiB of data");
    let log = group.load_for(11, WHILE)?;
    group.site.settle(LONG)?;
    group.compare_files()?;
    ensure!(log.acked() > 0, "nothing was written");
    Ok(())
}

#[test]
fn what_the_fifo_cannot_hold_crosses_as_ranges() -> Result<()> {
    let mut settings = crate::harness::small();
    settings[0].1 = "fifo = { memory = \"1MiB\", disk = 0 }".into();
    settings.push(("group", "protect = \"near\"".into()));
    let mut group = Group::with(SLOW, settings)?;
    group.site.start_all()?;
    let log = group.load_for(12, 4 * WHILE)?;
    group.settle_and_compare(&log)
}

#[test]
fn a_primary_stops_at_once_though_clients_stay_and_loses_no_reply_that_it_sent() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    // Some that never end their side, one of whom has not taken its replies yet.
    let mut idle: Vec<Client> = (0..8).map(|_| group.site.client(Role::Primary, "db")).collect::<Result<_>>()?;
    for _ in 0..3 {
        let load = group.load(5)?;
        std::thread::sleep(WHILE);
        let begun = Instant::now();
        group.site.stop(Role::Primary)?;
        let took = begun.elapsed();
        ensure!(took < Duration::from_secs(1), "it took {took:?} with nothing left to tell anybody");
        let _ = load.finish();
        for client in &mut idle {
            client.timeout(Some(LONG))?;
            ensure!(client.receive().is_err(), "it was told of the end");
        }
        group.site.start(Role::Primary)?;
        group.site.ready()?;
        idle = (0..8).map(|_| group.site.client(Role::Primary, "db")).collect::<Result<_>>()?;
    }
    let mut slow = group.site.client(Role::Primary, "log")?;
    let before = group.site.primary()?.acknowledged_writes;
    for cookie in 0..32 {
        slow.send(cookie, Ask::Write { offset: cookie * 4096, data: &[7; 4096], fua: false })?;
    }
    let all = |status: &Status| matches!(status, Status::Primary(it) if it.acknowledged_writes >= before + 32);
    group.site.wait(Role::Primary, "the writes", all)?;
    group.site.stop(Role::Primary)?;
    slow.timeout(Some(LONG))?;
    for _ in 0..32 {
        slow.receive()?;
    }
    ensure!(slow.receive().is_err(), "more replies than requests");
    Ok(())
}

#[test]
fn a_batch_that_stands_still_has_no_time_left_to_tell() -> Result<()> {
    // 8 MiB at 1 MB/s.
    let mut group = Group::new(Settings { delay: Duration::ZERO, bytes_per_second: 1e6 }, "protect = \"near\"")?;
    std::fs::write(group.site.backing(Role::Primary, "log"), content(1, 8 << 20))?;
    for role in Role::ALL {
        group.site.launch(role)?;
    }
    let left = |status: &Status| match status {
        Status::Primary(it) => it.batch.as_ref().map(|batch| batch.remaining_seconds),
        _ => None,
    };
    let known = |status: &Status| left(status).is_some_and(|left| left.is_some());
    group.site.wait(Role::Primary, "an estimate", known)?;
    group.site.line.cut();
    let unknown = |status: &Status| left(status).is_some_and(|left| left.is_none());
    group.site.wait(Role::Primary, "the end of the estimate", unknown)?;
    let told = group.site.verb(&["status", "--role", "primary"])?;
    ensure!(told.out.contains("too little crosses at present") && !told.out.contains("consistent again"), "{told:?}");
    group.site.line.heal();
    group.site.settle(LONG)?;
    group.compare_files()
}
