//! What an operator sees and does: starts again at once, a report that is gone, a queue that is full, whoever knocks at
//! the wrong door.

use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farshore::cli::demo::nbd::Ask;
use farshore::cli::demo::site::{Role, Site};
use farshore::cluster::status::Status;

use crate::harness::{FAST, Group, LONG, MIB};

const WHILE: Duration = Duration::from_millis(300);

/// Waits for words in the log of a role.
fn said(site: &Site, role: Role, words: &str) -> Result<String> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let log = std::fs::read_to_string(site.path(&format!("{}.log", role.word())))?;
        if log.contains(words) {
            return Ok(log);
        }
        ensure!(Instant::now() < until, "{} does not say {words:?}:\n{log}", role.word());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_killed_role_can_be_started_again_at_once() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    let load = group.load(1)?;
    for round in 0..6 {
        let role = [Role::Primary, Role::Dr, Role::Aux][round % 3];
        std::thread::sleep(WHILE);
        group.site.kill(role)?;
        // No wait in between; an exit is an error.
        group.site.start(role)?;
    }
    let mut log = load.finish();
    log.interrupted();
    Ok(())
}

#[test]
fn the_disk_fifo_has_its_space_from_the_start_and_gets_it_when_it_had_not() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    let path = group.site.path("primary").join("fifo");
    let whole = |what: &str| -> Result<()> {
        let found = std::fs::metadata(&path)?;
        ensure!(found.blocks() * 512 >= found.len(), "{what}: {} of {}", found.blocks() * 512, found.len());
        Ok(())
    };
    whole("made")?;
    group.site.stop(Role::Primary)?;
    // As an earlier version made it.
    std::fs::File::create(&path)?.set_len(256 * MIB)?;
    group.site.start(Role::Primary)?;
    whole("found sparse")
}

#[test]
fn a_missing_loss_report_is_said_and_a_promotion_called_again_answers_what_there_is() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    group.write(Role::Primary, "db", 0, 7)?;
    group.site.kill(Role::Primary)?;
    let first = group.site.promote(&[])?;
    ensure!(group.site.promote(&[])?.cut_seq == first.cut_seq);
    let again = group.site.verb(&["promote", "--plan"])?;
    ensure!(again.exit == 0 && again.out.contains("was promoted already"), "{again:?}");
    let typo = group.site.verb(&["loss", "--volume", "bd"])?;
    ensure!(typo.exit == 2 && typo.errors.contains("db, log"), "{typo:?}");
    ensure!(group.site.verb(&["loss", "--volume", "db"])?.exit == 0);

    group.site.stop(Role::Dr)?;
    std::fs::remove_file(group.site.path("dr").join("loss-report.json"))?;
    group.site.start(Role::Dr)?;
    said(&group.site, Role::Dr, "the loss report of the promotion is missing")?;
    let Status::Primary(status) = group.site.status(Role::Dr)? else { anyhow::bail!("DR is a primary by now") };
    ensure!(status.degraded.iter().any(|one| one.what.contains("loss report")), "{:?}", status.degraded);
    for verb in [&["loss"][..], &["promote"], &["promote", "--plan"]] {
        let ended = group.site.verb(verb)?;
        ensure!(
            ended.exit == 1 && ended.errors.contains("loss report of the promotion is missing"),
            "{verb:?} {ended:?}"
        );
    }
    Ok(())
}

#[test]
fn a_damaged_loss_report_is_said_and_kept_and_the_volumes_are_served() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    group.write(Role::Primary, "db", 0, 7)?;
    group.site.kill(Role::Primary)?;
    let promoted = group.site.verb(&["promote", "--json"])?;
    ensure!(promoted.exit == 0, "{promoted:?}");
    ensure!(group.site.verb(&["loss", "--json"])?.out == promoted.out, "the report is told as it was");
    let path = group.site.path("dr").join("loss-report.json");
    let whole = std::fs::read(&path)?;
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [&flipped[..], &whole[..whole.len() - 9], &[]] {
        group.site.stop(Role::Dr)?;
        std::fs::write(&path, damaged)?;
        group.site.start(Role::Dr)?;
        let words = format!("the loss report of the promotion is damaged: {}", path.display());
        said(&group.site, Role::Dr, &words)?;
        let serves = |status: &Status| matches!(status, Status::Primary(_));
        let Status::Primary(status) = group.site.wait(Role::Dr, "a primary", serves)? else {
            unreachable!("as waited for")
        };
        group.write(Role::Dr, "db", 4096, 9)?;
        ensure!(status.degraded.iter().any(|one| one.what.contains(&words)), "{:?}", status.degraded);
        for verb in [&["loss"][..], &["loss", "--json"], &["promote"], &["promote", "--plan"]] {
            let ended = group.site.verb(verb)?;
            ensure!(ended.exit == 1 && ended.errors.contains(&words), "{verb:?} {ended:?}");
            ensure!(ended.errors.contains("put") && ended.errors.contains("back from a backup"), "{verb:?} {ended:?}");
        }
        ensure!(std::fs::read(&path)? == damaged, "the file is left as it was");
    }
    group.site.stop(Role::Dr)?;
    std::fs::write(&path, &whole)?;
    group.site.start(Role::Dr)?;
    ensure!(group.site.verb(&["loss", "--json"])?.out == promoted.out, "put back, it is told again");
    Ok(())
}

/// Killed between the report and the replay's end: the report is made anew, and what was damaged stays beside it.
#[test]
fn a_promotion_that_finds_its_report_damaged_makes_another_and_keeps_the_first() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    group.write(Role::Primary, "db", 0, 7)?;
    group.site.settle(LONG)?;
    group.site.stop(Role::Dr)?;
    let path = group.site.path("dr").join("loss-report.json");
    std::fs::write(&path, "{\"crc32\":")?;
    group.site.start(Role::Dr)?;
    let asked = group.site.verb(&["loss"])?;
    ensure!(asked.exit == 1 && asked.errors.contains("the loss report is damaged"), "{asked:?}");
    group.site.kill(Role::Primary)?;
    let report = group.site.promote(&[])?;
    ensure!(report.missing.is_empty(), "{report:?}");
    ensure!(std::fs::read_to_string(path.with_extension("json.damaged"))? == "{\"crc32\":");
    ensure!(group.site.verb(&["loss"])?.exit == 0);
    Ok(())
}

#[test]
fn two_who_ask_for_a_promotion_get_the_same_report_and_a_plan_does_not_stand_in_its_way() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    group.write(Role::Primary, "db", 0, 7)?;
    group.site.kill(Role::Primary)?;
    let ask = |line: &str| -> Result<UnixStream> {
        let mut stream = UnixStream::connect(group.site.path("dr.ctl"))?;
        stream.set_read_timeout(Some(LONG))?;
        stream.write_all(format!("{line}\n").as_bytes())?;
        Ok(stream)
    };
    let plan = ask(r#"{"verb":"promote","plan":true}"#)?;
    let asked: Vec<UnixStream> = (0..3).map(|_| ask(r#"{"verb":"promote"}"#)).collect::<Result<_>>()?;
    std::thread::sleep(WHILE);
    // The lease of the old writer takes two seconds.
    let mut other = String::new();
    let mut forced = ask(r#"{"verb":"promote","force":true}"#)?;
    let mut piece = [0; 4096];
    while !other.ends_with('\n') {
        let count = forced.read(&mut piece)?;
        ensure!(count > 0, "it hung up: {other}");
        other.push_str(std::str::from_utf8(&piece[..count])?);
    }
    ensure!(other.contains("farshore status") && other.contains("farshore loss"), "{other}");
    let mut told = Vec::new();
    for mut stream in asked.into_iter().chain([plan]) {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let count = stream.read(&mut piece)?;
            ensure!(count > 0, "it hung up: {}", String::from_utf8_lossy(&line));
            line.extend_from_slice(&piece[..count]);
        }
        told.push(String::from_utf8(line)?);
    }
    ensure!(told[0].starts_with("{\"ok\":{\"group\"") && told[1] == told[0] && told[2] == told[0], "{told:?}");
    ensure!(told[3].starts_with("{\"ok\":{\"group\""), "{told:?}");
    let loss = group.site.verb(&["loss", "--json"])?;
    ensure!(format!("{{\"ok\":{}}}\n", loss.out.trim_end()) == told[0], "{loss:?}");
    Ok(())
}

#[test]
fn dr_says_what_it_knows_of_its_link() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    group.write(Role::Primary, "db", 0, 7)?;
    let measured = |status: &Status| {
        matches!(status, Status::Dr(dr) if dr.links.first().is_some_and(|link| {
            link.rtt_seconds.is_some() && link.sent_bytes > 0 && link.received_bytes > 4096 && !link.address.is_empty()
        }))
    };
    group.site.wait(Role::Dr, "numbers of its link", measured).map(|_| ())
}

#[test]
fn a_paced_primary_says_so_while_nothing_leaves() -> Result<()> {
    let settings = vec![
        ("group", "protect = \"async\"".into()),
        ("primary", "fifo = { memory = \"1MiB\", disk = 0 }\noverflow = \"pace\"".into()),
        ("dr", "spool = \"192MiB\"".into()),
    ];
    let mut group = Group::with(FAST, settings)?;
    group.site.start_all()?;
    group.site.kill(Role::Dr)?;
    let address = group.site.export(Role::Primary);
    let writer = std::thread::spawn(move || -> Result<()> {
        let mut client = farshore::cli::demo::nbd::Client::connect(&address, "db")?;
        client.timeout(Some(LONG))?;
        let data = vec![5; 128 << 10];
        for at in 0..24 {
            client.call(Ask::Write { offset: at * (128 << 10), data: &data, fua: false })?;
        }
        Ok(())
    });
    let paced = |status: &Status| {
        matches!(status, Status::Primary(p)
            if p.paced.is_some() && p.degraded.iter().any(|one| one.what.contains("paced: the FIFO is full")))
    };
    group.site.wait(Role::Primary, "word of the pace", paced)?;
    group.site.start(Role::Dr)?;
    writer.join().expect("no panic").context("the writes go on once DR is back")?;
    let calm = |status: &Status| matches!(status, Status::Primary(p) if p.paced.is_none());
    group.site.wait(Role::Primary, "end of the pace", calm).map(|_| ())
}

#[test]
fn a_bound_on_the_lag_is_kept_while_dr_is_away() -> Result<()> {
    const MOST: u64 = 10;
    let settings = vec![
        ("group", "protect = \"near\"".into()),
        ("primary", format!("overflow = \"pace\"\nlag_max = {{ writes = {MOST} }}")),
    ];
    let mut group = Group::with(FAST, settings)?;
    group.site.start_all()?;
    group.write(Role::Primary, "db", 0, 7)?;
    group.site.settle(LONG)?;
    group.site.kill(Role::Dr)?;
    // What is held while nobody can say what DR has is held after a restart of the primary as well.
    group.site.kill(Role::Primary)?;
    group.site.start(Role::Primary)?;
    let address = group.site.export(Role::Primary);
    let done = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = done.clone();
    let writer = std::thread::spawn(move || -> Result<()> {
        let mut client = farshore::cli::demo::nbd::Client::connect(&address, "db")?;
        client.timeout(Some(LONG))?;
        for at in 0..3 * MOST {
            client.call(Ask::Write { offset: at * 4096, data: &[5; 4096], fua: false })?;
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
        Ok(())
    });
    let paced = |status: &Status| {
        matches!(status, Status::Primary(p) if p.lag_max.is_some()
            && p.paced.as_ref().is_some_and(|why| why.contains("the lag in writes is at primary.lag_max")))
    };
    group.site.wait(Role::Primary, "word of the lag", paced)?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    let before = done.load(std::sync::atomic::Ordering::SeqCst);
    ensure!(before <= MOST, "{before} writes are acknowledged of which DR has nothing");
    group.site.start(Role::Dr)?;
    writer.join().expect("no panic").context("the writes go on once DR is back")?;
    let calm = |status: &Status| matches!(status, Status::Primary(p) if p.paced.is_none());
    group.site.wait(Role::Primary, "end of the pace", calm).map(|_| ())
}

#[test]
fn garbage_on_an_nbd_socket_is_worth_one_line() -> Result<()> {
    let group = Group::started(FAST, "protect = \"order\"")?;
    for (role, socket) in [(Role::Primary, "nbd.sock"), (Role::Aux, "aux.sock")] {
        for _ in 0..20 {
            // Whoever listens may be gone before all of it is written.
            let mut stream = UnixStream::connect(group.site.path(socket))?;
            let _ = stream.write_all(&[0xff; 64]);
            stream.set_read_timeout(Some(LONG))?;
            let _ = stream.read_to_end(&mut Vec::new());
        }
        let log = said(&group.site, role, "the NBD connection from unix pid")?;
        let lines = log.lines().filter(|line| line.contains("the NBD connection from")).count();
        ensure!(lines < 10, "{lines} lines for 20 connections");
    }
    Ok(())
}

#[test]
fn a_second_dr_is_told_once_that_it_is_not_wanted() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    group.write(Role::Primary, "db", 0, 7)?;
    group.site.settle(LONG)?;
    // Another DR, with a copy of its own, under the same address.
    let stash = |group: &Group, to: &str, from: &str| -> Result<()> {
        for name in ["dr", "db-dr.img", "log-dr.img"] {
            std::fs::rename(group.site.path(&format!("{from}{name}")), group.site.path(&format!("{to}{name}")))?;
        }
        Ok(())
    };
    group.site.stop(Role::Dr)?;
    stash(&group, "first-", "")?;
    group.site.start(Role::Dr)?;
    group.site.ready()?;
    group.site.settle(LONG)?;
    group.site.stop(Role::Dr)?;
    stash(&group, "second-", "")?;
    stash(&group, "", "first-")?;
    group.site.start(Role::Dr)?;
    said(&group.site, Role::Dr, "the primary refuses this DR: a second DR")?;
    std::thread::sleep(Duration::from_secs(7));
    let log = said(&group.site, Role::Dr, "refuses this DR")?;
    let lines = log.lines().filter(|line| line.contains("refuses this DR")).count();
    ensure!(lines == 1, "{lines} lines:\n{log}");
    let dr = group.site.dr()?;
    ensure!(dr.links[0].state == "refused" && dr.degraded.iter().any(|one| one.what.contains("second DR")), "{dr:?}");
    Ok(())
}

#[test]
fn a_damaged_slot_of_the_primarys_superblock_is_told() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    group.site.stop(Role::Primary)?;
    let file = std::fs::File::options().write(true).open(group.site.path("primary").join("superblock"))?;
    file.write_all_at(&[0xa5; 64], 4096 + 128)?;
    group.site.start(Role::Primary)?;
    said(&group.site, Role::Primary, "one slot of the superblock is damaged").map(|_| ())
}

#[test]
fn a_write_that_failed_for_want_of_protection_does_not_go_on() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"\nfreeze_timeout_seconds = 1")?;
    group.site.kill(Role::Dr)?;
    group.site.kill(Role::Aux)?;
    ensure!(group.write(Role::Primary, "db", 0, 7).is_err(), "answered without any protection");
    said(&group.site, Role::Primary, "requests failed: no protection")?;
    std::thread::sleep(WHILE);
    let log = said(&group.site, Role::Primary, "writes wait")?;
    ensure!(!log.contains("writes go on"), "{log}");
    group.site.start(Role::Aux)?;
    group.site.start(Role::Dr)?;
    group.site.ready()?;
    group.write(Role::Primary, "db", 0, 8)
}

#[test]
fn what_was_acknowledged_stays_so_while_writes_wait() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"\nrequire = \"both\"")?;
    group.write(Role::Primary, "db", 0, 1)?;
    group.site.settle(LONG)?;
    let before = group.site.primary()?;
    ensure!(before.acked_seq == before.tail_seq, "all is acknowledged: {before:?}");
    group.site.kill(Role::Aux)?;
    let mut client = group.site.client(Role::Primary, "db")?;
    let writer = std::thread::spawn(move || {
        client.timeout(Some(LONG))?;
        client.call(Ask::Write { offset: 4096, data: &[2; 4096], fua: false })
    });
    let frozen = |status: &Status| matches!(status, Status::Primary(p) if p.frozen.is_some());
    let Status::Primary(frozen) = group.site.wait(Role::Primary, "a write that waits", frozen)? else {
        unreachable!("a primary answers as one")
    };
    ensure!(frozen.tail_seq > before.tail_seq && frozen.acked_seq == before.acked_seq, "{frozen:?}");
    group.site.start(Role::Aux)?;
    writer.join().expect("no panic")?;
    ensure!(group.site.primary()?.acked_seq >= frozen.tail_seq, "it was answered");
    Ok(())
}
