//! A volume that is not the one in the superblock: missing, cut short, exchanged, another's; and who may take it over.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use farshore::cli::demo::site::{Role, Site};
use farshore::core::identity::{ATTRIBUTE, Mark, Part};
use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};

use crate::harness::{FAST, Group, LONG, MIB};

const CONTENT: u8 = 0xd5;

/// In sync, each volume with something at its end; one role is stopped.
fn stopped(role: Role) -> Result<Group> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    group.write(Role::Primary, "db", 15 * MIB, CONTENT)?;
    group.write(Role::Primary, "log", 7 * MIB, CONTENT + 1)?;
    group.site.settle(LONG)?;
    group.site.stop(role)?;
    Ok(group)
}

/// Neither does the role start nor is the configuration called good, with this exit status; both say all of `words`.
fn refused(group: &mut Group, role: Role, exit: i32, words: &[&str]) -> Result<()> {
    let check = group.site.verb(&["check", "--role", role.word()])?;
    ensure!(check.exit == exit, "check ended with {}: {}", check.exit, check.out);
    group.site.launch(role)?;
    let status = group.site.ended(role)?;
    let log = group.site.log(role);
    ensure!(status.code() == Some(exit), "{} ended with {status}: {log}", role.word());
    for word in words {
        ensure!(
            check.out.contains(word) && log.lines().last().is_some_and(|line| line.contains(word)),
            "{word}: {log}"
        );
    }
    Ok(())
}

fn mark_of(path: &Path) -> Option<Mark> {
    let mut bytes = [0u8; 256];
    let length = getxattr(path, ATTRIBUTE, &mut bytes[..]).ok()?;
    Mark::read(&bytes[..length])
}

/// Whether files bear marks here; says so if not.
fn marks(site: &Site, role: Role) -> bool {
    let there = mark_of(&site.backing(role, "db")).is_some();
    if !there {
        eprintln!("skipped: no attributes on this file system");
    }
    there
}

fn aside(path: &Path) -> PathBuf {
    path.with_extension("aside")
}

fn missing_or_short(role: Role) -> Result<()> {
    let mut group = stopped(role)?;
    let path = group.site.backing(role, "db");
    let shown = path.display().to_string();
    std::fs::rename(&path, aside(&path))?;
    refused(&mut group, role, 3, &[&shown, "is missing", "mount the file system", "lost for good"])?;
    ensure!(!path.exists(), "it was made anew");
    std::fs::File::create(&path)?;
    refused(&mut group, role, 3, &[&shown, "has 0 bytes"])?;
    std::fs::remove_file(&path)?;
    std::fs::rename(aside(&path), &path)?;
    let whole = std::fs::read(&path)?;
    std::fs::File::options().write(true).open(&path)?.set_len(8 * MIB)?;
    refused(&mut group, role, 3, &[&shown, "has 8388608 bytes, the volume has 16777216", "truncated"])?;
    ensure!(std::fs::metadata(&path)?.len() == 8 * MIB, "it was grown");
    // In place, so that its mark stays.
    std::fs::write(&path, &whole)?;
    group.site.start(role)?;
    group.site.ready()?;
    group.site.settle(LONG)?;
    group.compare_files()?;
    ensure!(std::fs::read(&path)? == whole, "it has changed");
    Ok(())
}

#[test]
fn a_missing_or_shortened_volume_of_dr_is_neither_made_nor_grown() -> Result<()> {
    missing_or_short(Role::Dr)
}

#[test]
fn a_missing_or_shortened_volume_of_the_primary_is_neither_made_nor_grown() -> Result<()> {
    missing_or_short(Role::Primary)
}

fn exchanged_or_foreign(role: Role) -> Result<()> {
    let mut group = stopped(role)?;
    if !marks(&group.site, role) {
        return Ok(());
    }
    let (db, log) = (group.site.backing(role, "db"), group.site.backing(role, "log"));
    let shown = db.display().to_string();
    let before = (std::fs::read(&db)?, std::fs::read(&log)?);
    let exchange = || -> Result<()> {
        std::fs::rename(&db, aside(&db))?;
        std::fs::rename(&log, &db)?;
        Ok(std::fs::rename(aside(&db), &log)?)
    };
    exchange()?;
    refused(&mut group, role, 3, &[&shown, "is marked as volume \"log\"", "setfattr -x user.farshore.volume"])?;
    exchange()?;
    ensure!((std::fs::read(&db)?, std::fs::read(&log)?) == before, "a refused start changed them");
    let own = mark_of(&db).expect("looked at above");
    let others = [
        Mark { group: "other".into(), ..own.clone() },
        Mark { owner: farshore::core::ids::Owner(own.owner.0 ^ 1), ..own.clone() },
    ];
    for other in others {
        setxattr(&db, ATTRIBUTE, other.to_string().as_bytes(), XattrFlags::REPLACE)?;
        refused(&mut group, role, 3, &[&shown, "is marked as volume \"db\"", "it is not volume \"db\""])?;
    }
    setxattr(&db, ATTRIBUTE, b"farshore-volume 2 who=knows", XattrFlags::REPLACE)?;
    refused(&mut group, role, 3, &[&shown, "none of this version"])?;
    // The way out that the message names.
    removexattr(&db, ATTRIBUTE)?;
    let check = group.site.verb(&["check", "--role", role.word()])?;
    ensure!(check.exit == 0 && check.out.contains("no mark any more"), "{check:?}");
    group.site.start(role)?;
    let said = group.site.log(role);
    ensure!(said.contains("WARN") && said.contains("no mark any more"), "{said}");
    ensure!(mark_of(&db) == Some(own), "it is marked again");
    group.site.ready()?;
    group.write(Role::Primary, "db", 0, 1)?;
    group.site.settle(LONG)?;
    group.compare_files()
}

#[test]
fn exchanged_and_foreign_volumes_of_dr_are_refused() -> Result<()> {
    exchanged_or_foreign(Role::Dr)
}

#[test]
fn exchanged_and_foreign_volumes_of_the_primary_are_refused() -> Result<()> {
    exchanged_or_foreign(Role::Primary)
}

#[test]
fn two_names_of_one_file_are_refused() -> Result<()> {
    for role in [Role::Primary, Role::Dr] {
        let mut group = Group::new(FAST, "protect = \"order\"")?;
        let (db, log) = (group.site.backing(role, "db"), group.site.backing(role, "log"));
        std::fs::File::create(&db)?.set_len(16 * MIB)?;
        std::os::unix::fs::symlink(&db, &log)?;
        refused(&mut group, role, 2, &[&log.display().to_string(), "each needs its own"])?;
    }
    Ok(())
}

#[test]
fn a_new_dr_copies_over_no_file_that_anybody_has_left() -> Result<()> {
    let mut group = stopped(Role::Dr)?;
    let db = group.site.backing(Role::Dr, "db");
    let old = mark_of(&db);
    std::fs::remove_dir_all(group.site.path("dr"))?;
    if let Some(old) = &old {
        let primary = Mark { part: Part::Primary, ..old.clone() };
        setxattr(&db, ATTRIBUTE, primary.to_string().as_bytes(), XattrFlags::REPLACE)?;
        refused(&mut group, Role::Dr, 3, &["of the primary of group", "the first copy would overwrite it"])?;
        std::fs::remove_dir_all(group.site.path("dr"))?;
        setxattr(&db, ATTRIBUTE, old.to_string().as_bytes(), XattrFlags::REPLACE)?;
        refused(&mut group, Role::Dr, 3, &["would overwrite it", "mounted?", "remove", "setfattr -x"])?;
        ensure!(mark_of(&db).as_ref() == Some(old));
        // The way out that is named: one is removed, and of the other one the mark.
        std::fs::remove_file(&db)?;
        removexattr(group.site.backing(Role::Dr, "log"), ATTRIBUTE)?;
    }
    group.site.start(Role::Dr)?;
    ensure!(old.is_none() || mark_of(&db) != old && mark_of(&db).is_some());
    group.site.ready()?;
    group.site.settle(LONG)?;
    group.compare_files()
}

#[test]
fn a_dr_that_lost_its_directory_and_kept_its_volumes_is_sent_what_differs() -> Result<()> {
    let mut group = stopped(Role::Dr)?;
    let db = group.site.backing(Role::Dr, "db");
    if mark_of(&db).is_none() {
        return Ok(());
    }
    // 4 MiB of one byte each: as zeroes they would cross as holes.
    for at in 0..4 * 256 {
        group.write(Role::Primary, "db", 4 * MIB + at * 4096, 5)?;
    }
    group.site.start(Role::Dr)?;
    group.site.settle(LONG)?;
    group.site.stop(Role::Dr)?;
    group.write(Role::Primary, "db", 5 * MIB, 6)?;
    std::fs::remove_dir_all(group.site.path("dr"))?;
    for volume in ["db", "log"] {
        removexattr(group.site.backing(Role::Dr, volume), ATTRIBUTE)?;
    }
    let sent = |group: &Group| -> Result<u64> {
        let links = group.site.primary()?.links;
        Ok(links.iter().filter(|link| link.peer == "dr").map(|link| link.sent_bytes).sum())
    };
    let before = sent(&group)?;
    group.site.start(Role::Dr)?;
    group.site.ready()?;
    group.site.settle(LONG)?;
    let crossed = sent(&group)? - before;
    ensure!(crossed < MIB, "one block of 4 MiB differed, {crossed} bytes crossed");
    ensure!(group.site.log(Role::Primary).contains("of which DR had"), "{}", group.site.log(Role::Primary));
    group.compare_files()
}

/// Until it holds, or nobody waits any longer.
fn eventually(mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !holds()? {
        ensure!(begun.elapsed() < LONG, "it never holds");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// As if the file system of DR's directory and volumes were not mounted at a start, and then were.
#[test]
fn a_dr_that_comes_back_without_its_recovery_point_is_told_and_the_old_one_is_welcome_again() -> Result<()> {
    let mut group = stopped(Role::Dr)?;
    let things = [group.site.path("dr"), group.site.backing(Role::Dr, "db"), group.site.backing(Role::Dr, "log")];
    for thing in &things {
        std::fs::rename(thing, aside(thing))?;
    }
    group.write(Role::Primary, "db", MIB, CONTENT + 2)?;
    // A line that nothing gets across keeps the new copy from being complete.
    group.site.line.set(|it| it.bytes_per_second = 10_000.0);
    group.site.start(Role::Dr)?;
    let what = "DR came back without the recovery point it had (up to seq";
    let told = |group: &Group| -> Result<bool> {
        Ok(group.site.primary()?.degraded.iter().any(|it| it.what.contains(what) && it.what.contains("mounted?")))
    };
    eventually(|| told(&group))?;
    ensure!(group.site.log(Role::Primary).contains(what));
    group.site.stop(Role::Dr)?;
    for thing in &things {
        match std::fs::metadata(thing)?.is_dir() {
            true => std::fs::remove_dir_all(thing)?,
            false => std::fs::remove_file(thing)?,
        }
        std::fs::rename(aside(thing), thing)?;
    }
    group.site.line.set(|it| it.bytes_per_second = f64::INFINITY);
    group.site.start(Role::Dr)?;
    eventually(|| Ok(group.site.log(Role::Primary).contains("DR is back with the recovery point it had")))?;
    ensure!(!told(&group)?);
    group.write(Role::Primary, "db", 2 * MIB, CONTENT + 3)?;
    group.site.settle(LONG)?;
    group.compare_files()
}

#[test]
fn a_promoted_site_says_so_on_its_volumes_and_a_new_primary_may_take_them_over() -> Result<()> {
    let mut group = stopped(Role::Primary)?;
    group.site.promote(&[])?;
    let db = group.site.backing(Role::Dr, "db");
    group.write(Role::Dr, "db", 0, 9)?;
    group.site.stop(Role::Dr)?;
    std::fs::rename(&db, aside(&db))?;
    refused(&mut group, Role::Dr, 3, &["is missing", "promoted DR"])?;
    std::fs::rename(aside(&db), &db)?;
    group.site.start(Role::Dr)?;
    group.site.stop(Role::Dr)?;
    if !marks(&group.site, Role::Dr) {
        return Ok(());
    }
    ensure!(mark_of(&db).is_some_and(|mark| mark.part == Part::Promoted), "{:?}", mark_of(&db));
    // The next life: its volumes, a new directory, a primary.
    let promoted = std::fs::read_to_string(group.site.config())?;
    let dir = group.site.plan.dir.display().to_string();
    let next = promoted
        .replace(&format!("{dir}/db.img"), &format!("{dir}/old.img"))
        .replace(&format!("{dir}/db-dr.img"), &format!("{dir}/db.img"))
        .replace(&format!("{dir}/db.img"), &format!("{dir}/new-dr.img"))
        .replace(&format!("{dir}/old.img"), &db.display().to_string())
        .replace(&format!("dir = \"{dir}/primary\""), &format!("dir = \"{dir}/next\""));
    std::fs::write(group.site.config(), next)?;
    group.site.start(Role::Primary)?;
    ensure!(group.site.log(Role::Primary).contains("of the promoted DR of group"), "{}", group.site.log(Role::Primary));
    ensure!(mark_of(&db).is_some_and(|mark| mark.part == Part::Primary), "{:?}", mark_of(&db));
    group.site.stop(Role::Primary)?;
    // From then on the old site keeps its hands off them.
    std::fs::write(group.site.config(), promoted)?;
    refused(&mut group, Role::Dr, 3, &["is marked as volume \"db\" of the primary"])
}

#[test]
fn a_resize_that_a_kill_interrupts_starts_again_at_both_sites() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    for round in 0..4u64 {
        let size = format!("{}MiB", 20 + 4 * round);
        let config = group.site.config();
        let mut verb = std::process::Command::new(crate::harness::program())
            .args(["resize", "db", &size, "--config"])
            .arg(config)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        std::thread::sleep(std::time::Duration::from_millis(3 * round));
        for role in [Role::Primary, Role::Dr] {
            group.site.kill(role)?;
        }
        verb.wait()?;
        group.site.start(Role::Dr)?;
        group.site.start(Role::Primary)?;
        group.site.ready()?;
    }
    // A store that was grown before the kill is longer than its volume, until a resize comes to its end.
    let whole = group.site.verb(&["resize", "db", "40MiB"])?;
    ensure!(whole.exit == 0, "nothing interrupts this one: {whole:?}");
    group.write(Role::Primary, "db", 39 * MIB, CONTENT)?;
    group.site.settle(LONG)?;
    group.compare_files()
}
