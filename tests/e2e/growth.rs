//! Volumes that grow under load: at both sites, in the order, and across kills and promotions.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farshore::cli::demo::nbd::Ask;
use farshore::cli::demo::site::{Role, find_program};
use farshore::cluster::status::{PromoteReport, Resized, Status};
use farshore::core::address::Address;

use crate::harness::{FAST, Group, LONG, MIB, SLOW, small};
use crate::listens::listens;

const WHILE: Duration = Duration::from_millis(600);

fn resize(group: &Group, volume: &str, size: &str) -> Result<Resized> {
    let told = group.site.verb(&["resize", volume, size, "--json"])?;
    ensure!(told.exit == 0, "resize ended with {}: {}", told.exit, told.errors);
    serde_json::from_str(&told.out).context("what resize prints")
}

/// The size that a client is told.
fn export_bytes(group: &Group, role: Role, volume: &str) -> Result<u64> {
    // A DR that was promoted is ready before it listens.
    let until = Instant::now() + Duration::from_secs(10);
    let client = loop {
        match group.site.client(role, volume) {
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(50)),
            client => break client?,
        }
    };
    client.timeout(Some(LONG))?;
    let bytes = client.size();
    client.close();
    Ok(bytes)
}

#[test]
fn a_volume_grows_under_load_and_is_promoted_with_its_size_and_bytes() -> Result<()> {
    let mut group = Group::started(SLOW, "protect = \"order\"")?;
    // One that was there before, and does not connect again.
    let mut early = group.site.client(Role::Primary, "db")?;
    early.timeout(Some(LONG))?;
    let load = group.load(1)?;
    std::thread::sleep(WHILE);
    let beyond = early.call(Ask::Write { offset: 20 * MIB, data: &[7; 4096], fua: false });
    ensure!(beyond.is_err(), "a write beyond the end was taken");
    let done = resize(&group, "db", "24MiB")?;
    ensure!((done.old_size_bytes, done.size_bytes) == (16 * MIB, 24 * MIB) && done.seq.is_some(), "{done:?}");
    ensure!(export_bytes(&group, Role::Primary, "db")? == 24 * MIB);
    early.call(Ask::Write { offset: 20 * MIB, data: &[7; 4096], fua: false }).context("beyond the old end")?;
    early.close();
    std::thread::sleep(WHILE);
    let again = resize(&group, "db", "24MiB")?;
    ensure!((again.old_size_bytes, again.seq) == (24 * MIB, None), "{again:?}");
    let name = "demo/log";
    resize(&group, name, "9MiB")?;
    let smaller = group.site.verb(&["resize", "db", "16MiB"])?;
    ensure!(smaller.exit == 3 && smaller.errors.contains("never made smaller"), "{smaller:?}");
    let log = load.finish();
    ensure!(log.ends.is_empty(), "connections ended: {:?}", log.ends);
    group.site.settle(LONG)?;
    group.compare_files()?;
    group.site.kill(Role::Primary)?;
    let report = group.site.promote(&[])?;
    ensure!(report.missing.is_empty(), "{report:?}");
    for (volume, bytes) in [("db", 24 * MIB), ("log", 9 * MIB)] {
        ensure!(export_bytes(&group, Role::Dr, volume)? == bytes, "{volume} was promoted with another size");
        let (here, there) = (group.image(Role::Primary, volume)?, group.site.client(Role::Dr, volume)?.read_all()?);
        ensure!(here == there, "{volume} was promoted with other bytes");
    }
    // As the primary of the new epoch, alone; and after a restart of it.
    ensure!(resize(&group, "log", "10MiB")?.size_bytes == 10 * MIB);
    group.write(Role::Dr, "log", 10 * MIB - 4096, 9)?;
    group.site.kill(Role::Dr)?;
    group.site.start(Role::Dr)?;
    let again = export_bytes(&group, Role::Dr, "log").with_context(|| group.site.log(Role::Dr))?;
    ensure!(again == 10 * MIB, "{again} bytes");
    Ok(())
}

#[test]
fn a_promotion_to_a_point_before_the_resize_serves_the_old_size() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"near\"")?;
    group.write(Role::Primary, "db", 0, 1)?;
    group.site.settle(LONG)?;
    group.site.kill(Role::Dr)?;
    // DR hears of nothing from here on; the auxiliary knows the order, and the write before it is lost.
    group.write(Role::Primary, "db", 4096, 2)?;
    let done = resize(&group, "db", "24MiB")?;
    group.write(Role::Primary, "db", 20 * MIB, 3)?;
    group.site.kill(Role::Primary)?;
    group.site.start(Role::Dr)?;
    let report = group.site.promote(&[])?;
    let lost: Vec<String> = report.missing.iter().map(|write| write.op).collect();
    ensure!(lost == ["write", "resize", "write"], "{report:?}");
    let resize = report.missing.get(1).context("three are missing")?;
    ensure!((Some(resize.seq), resize.offset, resize.length) == (done.seq, 16 * MIB, 24 * MIB), "{resize:?}");
    ensure!(report.missing_bytes == 8192, "{report:?}");
    ensure!(export_bytes(&group, Role::Dr, "db")? == 16 * MIB);
    Ok(())
}

#[test]
fn the_configuration_may_lag_behind_or_lead() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    resize(&group, "db", "24MiB")?;
    // It says 16 MiB still.
    for role in [Role::Primary, Role::Dr] {
        group.site.kill(role)?;
        group.site.start(role)?;
    }
    ensure!(export_bytes(&group, Role::Primary, "db")? == 24 * MIB);
    group.write(Role::Primary, "db", 20 * MIB, 3)?;
    let config = group.site.config();
    let text = std::fs::read_to_string(&config)?;
    let size = text.lines().find(|line| line.starts_with("size")).context("a size")?.to_owned();
    std::fs::write(&config, text.replacen(&size, "size = \"32MiB\"", 1))?;
    group.site.kill(Role::Primary)?;
    group.site.start(Role::Primary)?;
    let until = Instant::now() + LONG;
    while export_bytes(&group, Role::Primary, "db")? != 32 * MIB {
        ensure!(
            Instant::now() < until,
            "it does not grow as the configuration says\n{}",
            group.site.log(Role::Primary)
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    group.write(Role::Primary, "db", 30 * MIB, 4)?;
    group.site.settle(LONG)?;
    group.compare_files()?;
    group.site.kill(Role::Primary)?;
    group.site.promote(&[])?;
    ensure!(export_bytes(&group, Role::Dr, "db")? == 32 * MIB);
    Ok(())
}

/// A resize of `db` to 24 MiB of which DR hears only when it is in the order, once the line is healed.
fn resize_unasked(group: &mut Group) -> Result<()> {
    group.site.line.cut();
    let away = |status: &Status| matches!(status, Status::Primary(it) if it.links.iter().any(|it| it.peer == "dr" && it.state != "up"));
    group.site.wait(Role::Primary, "DR out of reach", away)?;
    let told = group.site.verb(&["resize", "db", "24MiB"])?;
    ensure!(told.exit == 0 && told.out.contains("was not asked"), "{told:?}");
    Ok(())
}

/// DR was promoted before the resize, with what the volume held then. That has been decided, also when there is room later.
fn stands_as_before(group: &mut Group, far_file: &Path, before: &[u8]) -> Result<()> {
    let stands = |group: &Group, what| -> Result<()> {
        ensure!(export_bytes(group, Role::Dr, "db")? == 16 * MIB, "another size {what}");
        ensure!(group.site.client(Role::Dr, "db")?.read_all()? == before, "another image {what}");
        Ok(())
    };
    stands(group, "when it was promoted")?;
    std::fs::File::options().write(true).open(far_file)?.set_len(24 * MIB)?;
    group.site.kill(Role::Dr)?;
    group.site.start(Role::Dr)?;
    stands(group, "after a restart")
}

#[test]
fn by_force_a_promotion_stops_before_a_resize_for_which_there_is_no_room() -> Result<()> {
    let mut group = Group::new(FAST, "protect = \"order\"")?;
    let Some((mut far, far_file, there)) = serve_file(&group, "far", 16 * MIB)? else { return Ok(()) };
    group.put_on(Role::Dr, "db", &there, &there)?;
    group.site.start_all()?;
    group.write(Role::Primary, "db", 0, 4)?;
    group.site.settle(LONG)?;
    let before = group.image(Role::Primary, "db")?;
    resize_unasked(&mut group)?;
    group.site.line.heal();
    group.write(Role::Primary, "db", 0, 5)?;
    group.write(Role::Primary, "db", 20 * MIB, 5)?;
    let tail = group.site.primary()?.tail_seq;
    let held = |status: &Status| matches!(status, Status::Dr(it) if it.holds_back.is_some() && it.cut_seq >= tail);
    group.site.wait(Role::Dr, "everything there, and held back", held)?;
    group.site.kill(Role::Primary)?;
    let refused = group.site.verb(&["promote"])?;
    ensure!(refused.exit == 3 && refused.errors.contains("--force promotes seq"), "{refused:?}");
    let plan: PromoteReport = serde_json::from_str(&group.site.verb(&["promote", "--plan", "--force", "--json"])?.out)?;
    let report = group.site.promote(&["--force"])?;
    let lost: Vec<String> = report.missing.iter().map(|write| write.op).collect();
    ensure!(lost == ["resize", "write", "write"], "{report:?}");
    ensure!((plan.cut_seq, plan.missing.len()) == (report.cut_seq, 3), "{plan:?}");
    stands_as_before(&mut group, &far_file, &before)?;
    far.kill()?;
    Ok(())
}

/// A DR whose store has no room for a resize that a batch brings: the primary goes on, everything has crossed. The server of
/// that store, its file, and what the volume held before.
fn held_before_a_batch(group: &mut Group) -> Result<Option<(Child, PathBuf, Vec<u8>)>> {
    let Some((far, far_file, there)) = serve_file(group, "far", 16 * MIB)? else { return Ok(None) };
    group.put_on(Role::Dr, "db", &there, &there)?;
    group.site.start_all()?;
    group.write(Role::Primary, "db", 0, 4)?;
    group.site.settle(LONG)?;
    let before = group.image(Role::Primary, "db")?;
    resize_unasked(group)?;
    let mut client = group.site.client(Role::Primary, "db")?;
    client.timeout(Some(LONG))?;
    for at in 0..12 {
        client.call(Ask::Write { offset: at * 2 * MIB, data: &vec![at as u8 + 1; MIB as usize], fua: false })?;
    }
    client.close();
    let overflow = |status: &Status| matches!(status, Status::Primary(it) if it.overflow);
    group.site.wait(Role::Primary, "a queue that is full", overflow)?;
    group.site.line.heal();
    let held = |status: &Status| matches!(status, Status::Dr(it) if it.holds_back.is_some() && it.batch.as_ref().is_some_and(|it| it.remaining_bytes == Some(0)));
    group.site.wait(Role::Dr, "a batch that waits for room", held)?;
    Ok(Some((far, far_file, before)))
}

const LITTLE: &str = "fifo = { memory = \"4MiB\", disk = 0 }";

fn little(volumes: &[(&str, u64)]) -> Result<Group> {
    let mut settings = small();
    settings.retain(|(section, _)| *section != "primary");
    settings.extend([("primary", LITTLE.into()), ("group", "protect = \"order\"".into())]);
    Group::of(FAST, settings, volumes)
}

#[test]
fn by_force_a_promotion_stops_before_a_batch_for_whose_resize_there_is_no_room() -> Result<()> {
    let mut group = little(&[("db", 16 * MIB), ("log", 8 * MIB)])?;
    let Some((mut far, far_file, before)) = held_before_a_batch(&mut group)? else { return Ok(()) };
    for words in [&["promote", "--plan"][..], &["promote"]] {
        let refused = group.site.verb(words)?;
        ensure!(refused.exit == 3 && refused.errors.contains("--force promotes seq"), "{words:?}: {refused:?}");
    }
    let control = group.site.dr()?;
    ensure!(control.promotion.is_none() && control.holds_back.is_some(), "{control:?}");
    group.write(Role::Primary, "db", 4096, 9).context("nobody was fenced")?;
    let plan: PromoteReport = serde_json::from_str(&group.site.verb(&["promote", "--plan", "--force", "--json"])?.out)?;
    let report = group.site.promote(&["--force"])?;
    ensure!((plan.cut_seq, &plan.missing) == (report.cut_seq, &report.missing), "{plan:?} and {report:?}");
    ensure!(report.missing.iter().any(|write| write.op == "resize") && plan.refused.is_none(), "{report:?}");
    stands_as_before(&mut group, &far_file, &before)?;
    far.kill()?;
    Ok(())
}

#[test]
fn a_batch_that_waits_for_room_goes_on_by_itself_also_after_a_kill() -> Result<()> {
    let mut group = little(&[("db", 16 * MIB), ("log", 8 * MIB)])?;
    let Some((mut far, far_file, _)) = held_before_a_batch(&mut group)? else { return Ok(()) };
    group.site.kill(Role::Dr)?;
    group.site.start(Role::Dr)?;
    group.write(Role::Primary, "db", 4096, 9)?;
    std::fs::File::options().write(true).open(&far_file)?.set_len(24 * MIB)?;
    group.site.settle(LONG)?;
    group.compare_files()?;
    group.site.kill(Role::Primary)?;
    let report = group.site.promote(&[])?;
    ensure!(report.missing.is_empty(), "{report:?}");
    ensure!(export_bytes(&group, Role::Dr, "db")? == 24 * MIB);
    far.kill()?;
    Ok(())
}

#[test]
fn a_promotion_by_force_that_was_killed_goes_on_by_force() -> Result<()> {
    let mut group = little(&[("db", 16 * MIB), ("log", 8 * MIB)])?;
    let Some((mut far, _, before)) = held_before_a_batch(&mut group)? else { return Ok(()) };
    group.site.kill(Role::Primary)?;
    let mut asker = Command::new(&group.site.plan.program)
        .args(["promote", "--force", "--config"])
        .arg(group.site.config())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    // Behind what is looked at beforehand and its mark in the superblock: what was killed before never began.
    let begun = |how: &str| !["looking", "waiting until", "fencing"].iter().any(|word| how.starts_with(word));
    let fenced = |status: &Status| matches!(status, Status::Dr(it) if it.promotion.as_deref().is_some_and(begun));
    group.site.wait(Role::Dr, "a promotion that has fenced", fenced)?;
    group.site.kill(Role::Dr)?;
    asker.wait()?;
    group.site.start(Role::Dr)?;
    let how = group.site.dr()?.promotion.unwrap_or_default();
    ensure!(how.contains("call promote again; it goes on by force"), "{how}");
    let report = group.site.promote(&[])?;
    ensure!(report.missing.iter().any(|write| write.op == "resize"), "{report:?}");
    ensure!(group.site.client(Role::Dr, "db")?.read_all()? == before, "another image");
    far.kill()?;
    Ok(())
}

#[test]
fn who_asks_twice_for_one_size_is_answered_twice_and_nobody_waits_for_ever() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    for role in [Role::Primary, Role::Dr] {
        if role == Role::Dr {
            group.site.settle(LONG)?;
            group.site.kill(Role::Primary)?;
            group.site.promote(&[])?;
        }
        let control = group.site.path(&format!("{}.ctl", role.word()));
        let ask = |volume: &str, size: &str| -> Result<Child> {
            let mut command = Command::new(&group.site.plan.program);
            command.args(["resize", volume, size, "--timeout", "30", "--control"]).arg(&control);
            Ok(command.stdout(std::process::Stdio::null()).spawn()?)
        };
        let larger = if role == Role::Primary { 0 } else { 16 };
        let size = format!("{}MiB", 24 + larger);
        let mut asked = vec![ask("db", &size)?, ask("db", &size)?, ask("log", &format!("{}MiB", 12 + larger))?];
        for child in &mut asked {
            ensure!(child.wait()?.success(), "not resized on {}", role.word());
        }
        ensure!(ask("db", &format!("{}MiB", 32 + larger))?.wait()?.success(), "nor later, on {}", role.word());
    }
    Ok(())
}

#[test]
fn a_resize_without_a_primary_says_that_and_does_not_ask_a_dr_beside_it() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    group.site.kill(Role::Primary)?;
    let told = group.site.verb(&["resize", "db", "24MiB"])?;
    let primary = group.site.path("primary.ctl").display().to_string();
    ensure!(told.exit != 0 && told.errors.contains(&primary), "{told:?}");
    Ok(())
}

/// `nbdkit file`, which tells the size that its file has when it is connected to.
fn serve_file(group: &Group, name: &str, bytes: u64) -> Result<Option<(Child, PathBuf, Address)>> {
    let Some(program) = find_program("nbdkit") else {
        eprintln!("skipped: nbdkit is not installed");
        return Ok(None);
    };
    let (file, socket) = (group.site.path(&format!("{name}.raw")), group.site.path(&format!("{name}.sock")));
    std::fs::File::create(&file)?.set_len(bytes)?;
    let child = Command::new(program).args(["-f", "-t", "1", "-U"]).arg(&socket).arg("file").arg(&file).spawn()?;
    let until = Instant::now() + LONG;
    while !listens(&socket) {
        ensure!(Instant::now() < until, "nbdkit does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(Some((child, file, Address::Unix(socket))))
}

#[test]
fn what_a_store_is_too_small_for_waits_until_it_has_grown_by_its_own_means() -> Result<()> {
    let mut group = Group::new(FAST, "protect = \"order\"")?;
    let Some((mut near, near_file, at)) = serve_file(&group, "near", 16 * MIB)? else { return Ok(()) };
    let Some((mut far, far_file, there)) = serve_file(&group, "far", 16 * MIB)? else { return Ok(()) };
    group.put_on(Role::Primary, "db", &at, &at)?;
    group.put_on(Role::Dr, "db", &there, &there)?;
    group.site.start_all()?;
    let told = group.site.verb(&["resize", "db", "24MiB"])?;
    ensure!(told.exit == 3 && told.errors.contains("has 16777216 bytes, 25165824 are needed"), "{told:?}");
    ensure!(export_bytes(&group, Role::Primary, "db")? == 16 * MIB);
    std::fs::File::options().write(true).open(&near_file)?.set_len(24 * MIB)?;
    let told = group.site.verb(&["resize", "db", "24MiB"])?;
    let dr_said = ["DR has no room", "volume db is too small here", "25165824 are needed"];
    ensure!(told.exit == 3 && dr_said.iter().all(|said| told.errors.contains(said)), "{told:?}");
    ensure!(export_bytes(&group, Role::Primary, "db")? == 16 * MIB);
    resize_unasked(&mut group)?;
    group.site.line.heal();
    group.write(Role::Primary, "db", 20 * MIB, 5)?;
    group.write(Role::Primary, "log", 0, 6)?;
    let small = |status: &Status| matches!(status, Status::Dr(it) if it.holds_back.is_some());
    group.site.wait(Role::Dr, "the store that is too small named", small)?;
    ensure!(group.site.dr()?.volumes[0].size_bytes == 24 * MIB, "its recovery point has the resize");
    let held = |status: &Status| matches!(status, Status::Primary(it) if it.dr_holds_back.is_some());
    group.site.wait(Role::Primary, "what DR holds back", held)?;
    let held = group.site.primary()?.dr_holds_back.context("it was there")?;
    ensure!((held.volume.as_str(), held.lacking_bytes) == ("db", 8 * MIB), "{held:?}");
    let plan = group.site.verb(&["promote", "--plan"])?;
    ensure!(plan.exit == 3 && plan.errors.contains("volume db lacks 8388608 bytes"), "{plan:?}");
    std::fs::File::options().write(true).open(&far_file)?.set_len(24 * MIB)?;
    group.site.wait(Role::Dr, "the store that has grown", |status| !small(status))?;
    group.site.settle(LONG)?;
    group.compare_files()?;
    group.site.kill(Role::Primary)?;
    group.site.promote(&[])?;
    ensure!(export_bytes(&group, Role::Dr, "db")? == 24 * MIB);
    near.kill()?;
    far.kill()?;
    Ok(())
}

#[test]
fn programs_of_others_see_the_new_size_when_they_connect_again() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    let uri = group.site.uri(Role::Primary, "db");
    let Some(nbdinfo) = find_program("nbdinfo") else {
        eprintln!("skipped: nbdinfo is not installed");
        return Ok(());
    };
    let size = || -> Result<String> {
        let said = Command::new(&nbdinfo).args(["--size", &uri]).output()?;
        ensure!(said.status.success(), "{said:?}");
        Ok(String::from_utf8(said.stdout)?.trim().to_owned())
    };
    ensure!(size()? == (16 * MIB).to_string());
    let qemu_io = find_program("qemu-io");
    let write = |at: &str| -> Result<Option<bool>> {
        let Some(program) = &qemu_io else { return Ok(None) };
        let said =
            Command::new(program).args(["-f", "raw", "-c", &format!("write -P 0x5a {at} 64k"), &uri]).output()?;
        Ok(Some(said.status.success()))
    };
    ensure!(write("20M")? != Some(true), "it wrote beyond the end");
    resize(&group, "db", "24MiB")?;
    ensure!(size()? == (24 * MIB).to_string());
    ensure!(write("20M")? != Some(false), "it cannot write beyond the old end");
    group.site.settle(LONG)?;
    group.compare_files()?;
    let image = group.image(Role::Dr, "db")?;
    ensure!(image.len() as u64 == 24 * MIB);
    ensure!(qemu_io.is_none() || image[20 << 20..][..64 << 10].iter().all(|byte| *byte == 0x5a), "other bytes");
    Ok(())
}

#[test]
fn a_size_from_before_a_resize_is_told_by_check_whether_the_roles_run_or_not() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    resize(&group, "db", "24MiB")?;
    group.site.settle(LONG)?;
    let checked = |group: &Group, how: &str| -> Result<()> {
        for role in ["dr", "primary"] {
            let told = group.site.verb(&["check", "--role", role])?;
            ensure!(told.exit == 0, "{role}, {how}: {told:?}");
            let words = "24MiB; 16MiB is from before a resize: say size = \"24MiB\"";
            ensure!(told.out.contains(words), "{role}, {how}: {told:?}");
        }
        Ok(())
    };
    // Twice: at once, when the superblock of DR need not know of it, and a checkpoint later.
    checked(&group, "running")?;
    group.site.kill(Role::Dr)?;
    let told = group.site.verb(&["check", "--role", "dr"])?;
    ensure!(told.exit == 0 && told.out.contains("say size = \"24MiB\""), "killed: {told:?}");
    group.site.start(Role::Dr)?;
    group.site.ready()?;
    std::thread::sleep(Duration::from_secs(3));
    checked(&group, "running for a while")?;
    group.site.stop(Role::Primary)?;
    group.site.stop(Role::Dr)?;
    checked(&group, "stopped")
}
