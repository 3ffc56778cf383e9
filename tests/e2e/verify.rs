//! Both sides are compared while a load goes on: nothing that is equal is called different, and what is damaged is found, named
//! and repaired.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farshore::cli::demo::load::{Load, Plan};
use farshore::cli::demo::nbd::Ask;
use farshore::cli::demo::site::{Ended, Role};
use farshore::cli::relay::line::Settings;
use farshore::cluster::status::VerifyReport;

use crate::harness::{FAST, Group, LONG, MIB, SLOW, small};

const WHILE: Duration = Duration::from_millis(600);
/// Both volumes together.
const ALL_BYTES: u64 = 24 * MIB;

fn verify(group: &Group, more: &[&str]) -> Result<(Ended, VerifyReport)> {
    let mut words = vec!["verify", "--json"];
    words.extend(more);
    let told = group.site.verb(&words)?;
    let report = serde_json::from_str(&told.out).with_context(|| format!("{told:?}"))?;
    Ok((told, report))
}

/// A byte of DR's volume changes, and nobody notices.
fn damage(group: &Group, volume: &str, at: u64) -> Result<()> {
    let path = group.site.backing(Role::Dr, volume);
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[!byte[0]], at)?;
    file.sync_all()?;
    Ok(())
}

#[test]
fn under_load_what_is_equal_is_never_called_different() -> Result<()> {
    let mut group = Group::started(SLOW, "protect = \"near\"")?;
    // No more than the line carries: nothing is compared while DR catches up by a batch.
    let plan = Plan { pause: Duration::from_millis(5), bytes_max: 8 << 10, ..group.load_plan(1) };
    let load = Load::start(&plan, &group.origin)?;
    std::thread::sleep(WHILE);
    for _ in 0..4 {
        let (told, report) = verify(&group, &[])?;
        ensure!(told.exit == 0 && report.equal && report.ranges.is_empty(), "{told:?}");
        ensure!(report.checked_bytes == ALL_BYTES && report.as_of_seq.0 > 0, "{report:?}");
    }
    let log = load.finish();
    ensure!(log.ends.is_empty(), "connections ended: {:?}", log.ends);
    group.settle_and_compare(&log)
}

#[test]
fn what_is_damaged_is_found_and_repaired_and_then_promoted() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    group.load_for(2, WHILE)?;
    group.site.settle(LONG)?;
    // One block each: in the middle, the last of a volume, and two side by side.
    for (volume, at) in [("db", MIB + 5000), ("db", 16 * MIB - 1), ("log", 0), ("log", 4096)] {
        damage(&group, volume, at)?;
    }
    let plan = Plan { pause: Duration::from_millis(5), bytes_max: 8 << 10, ..group.load_plan(3) };
    let load = Load::start(&plan, &group.origin)?;
    let (told, report) = verify(&group, &[])?;
    let listed: Vec<(&str, u64, u64)> =
        report.ranges.iter().map(|it| (it.volume.as_str(), it.offset, it.length)).collect();
    let wanted = [("db", MIB + 4096, 4096), ("db", 16 * MIB - 4096, 4096), ("log", 0, 8192)];
    // What the load wrote over is equal again.
    ensure!(
        listed.iter().all(|it| wanted.contains(it) || *it == ("log", 0, 4096) || *it == ("log", 4096, 4096)),
        "{told:?}"
    );
    ensure!(told.exit == i32::from(!report.equal) && report.different_bytes <= 4 * 4096, "{told:?}");
    ensure!(load.finish().ends.is_empty(), "connections ended");
    group.site.settle(LONG)?;
    damage(&group, "db", 3 * MIB)?;
    let (told, report) = verify(&group, &[])?;
    ensure!(told.exit == 1 && !report.equal && report.different_bytes >= 4096, "{told:?}");
    let status = group.site.primary()?;
    let last = status.verify.and_then(|verify| verify.last).context("the last result")?;
    ensure!(
        !last.equal && status.degraded.iter().any(|it| it.what.contains("verify --repair")),
        "{:?}",
        status.degraded
    );
    let (told, report) = verify(&group, &["--repair"])?;
    ensure!(told.exit == 0 && report.equal && report.repaired_bytes == report.different_bytes, "{told:?}");
    let (told, report) = verify(&group, &["--rate", "400MiB"])?;
    ensure!(told.exit == 0 && report.different_bytes == 0, "{told:?}");
    // It is known over a restart when that was.
    group.site.stop(Role::Primary)?;
    group.site.start(Role::Primary)?;
    let verify = group.site.primary()?.verify.context("after a restart")?;
    ensure!(verify.last.is_some_and(|last| last.equal) && verify.last_age_seconds.is_some_and(|age| age < 60.0));
    group.site.settle(LONG)?;
    group.compare_files()?;
    group.site.kill(Role::Primary)?;
    let report = group.site.promote(&[])?;
    ensure!(report.missing.is_empty(), "{report:?}");
    Ok(())
}

#[test]
fn where_nothing_can_be_compared_it_is_said_why() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"near\"")?;
    group.load_for(4, WHILE)?;
    group.site.kill(Role::Dr)?;
    std::thread::sleep(WHILE);
    let told = group.site.verb(&["verify"])?;
    ensure!(told.exit == 3 && told.errors.contains("DR: "), "{told:?}");
    group.site.start(Role::Dr)?;
    group.site.settle(LONG)?;
    let told = group.site.verb(&["verify"])?;
    ensure!(told.exit == 0 && told.out.contains("both sides are equal"), "{told:?}");
    group.site.kill(Role::Primary)?;
    group.site.promote(&[])?;
    let control = group.site.path("dr.ctl").display().to_string();
    let told = group.site.verb(&["verify", "--control", &control])?;
    ensure!(told.exit == 3 && told.errors.contains("serves alone"), "{told:?}");
    Ok(())
}

/// What one comparison has passed may change while it goes on: who asks then is answered by another one.
#[test]
fn who_asks_while_one_is_under_way_is_told_of_what_was_damaged_before() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"near\"")?;
    group.load_for(5, WHILE)?;
    group.site.settle(LONG)?;
    let slow = group.site.verb(&["verify", "--rate", "1KiB"])?;
    ensure!(slow.exit == 2 && slow.errors.contains("at least 65536"), "{slow:?}");
    std::thread::scope(|scope| -> Result<()> {
        let first = scope.spawn(|| group.site.verb(&["verify", "--rate", "8MiB", "--json"]));
        let until = Instant::now() + LONG;
        let far = || -> Result<bool> {
            let running = group.site.primary()?.verify.and_then(|verify| verify.running);
            Ok(running.is_some_and(|running| running.checked_bytes >= MIB))
        };
        while !far()? {
            ensure!(Instant::now() < until, "it does not get on");
            std::thread::sleep(Duration::from_millis(20));
        }
        damage(&group, "db", 4096)?;
        let (told, report) = verify(&group, &[])?;
        ensure!(told.exit == 1 && report.different_bytes == 4096, "{told:?}");
        let first = first.join().expect("no panic")?;
        ensure!(first.exit == 0, "it had passed that: {first:?}");
        let third = scope.spawn(|| group.site.verb(&["verify", "--rate", "64KiB"]));
        std::thread::sleep(WHILE);
        let stop = group.site.verb(&["verify", "--stop"])?;
        let third = third.join().expect("no panic")?;
        ensure!(stop.exit == 0 && third.exit == 1 && third.errors.contains("given up, as it was asked"), "{third:?}");
        Ok(())
    })?;
    let (told, report) = verify(&group, &["--repair"])?;
    ensure!(told.exit == 0 && report.repaired_bytes == 4096, "{told:?}");
    group.compare_files()
}

/// A repair of much, over a line that is slower than it, holds up nobody who writes.
#[test]
fn a_repair_leaves_room_to_those_who_write() -> Result<()> {
    for policy in ["pace", "refuse"] {
        let line = Settings { bytes_per_second: 3e6, ..FAST };
        let mut settings = small();
        settings.retain(|(section, _)| *section != "primary");
        let fifo = "fifo = { memory = \"1MiB\", disk = 0 }";
        settings.push(("primary", format!("{fifo}\noverflow = \"{policy}\"")));
        settings.push(("group", "protect = \"near\"".into()));
        let mut group = Group::with(line, settings)?;
        group.site.start_all()?;
        let mut client = group.site.client(Role::Primary, "db")?;
        client.timeout(Some(LONG))?;
        for at in 0..128 {
            client.call(Ask::Write { offset: at << 16, data: &[5; 64 << 10], fua: false })?;
            if policy == "refuse" && at % 4 == 3 {
                group.site.settle(LONG)?;
            }
        }
        client.close();
        group.site.settle(LONG)?;
        for at in 0..2048 {
            damage(&group, "db", at * 4096)?;
        }
        std::thread::scope(|scope| -> Result<()> {
            let repair = scope.spawn(|| verify(&group, &["--repair"]));
            let (mut writes, mut longest) = (0, Duration::ZERO);
            while !repair.is_finished() {
                let begun = Instant::now();
                group.write(Role::Primary, "log", 4096 * (writes % 100), 7).context(policy)?;
                longest = longest.max(begun.elapsed());
                writes += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            let (told, report) = repair.join().expect("no panic")?;
            ensure!(told.exit == 0 && report.repaired_bytes == 2048 * 4096, "{policy}: {told:?}");
            ensure!(writes > 20 && longest < Duration::from_secs(2), "{policy}: {writes} writes, one took {longest:?}");
            Ok(())
        })?;
        group.site.settle(LONG)?;
        group.compare_files()?;
    }
    Ok(())
}
