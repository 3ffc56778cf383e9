//! Volumes that grow under load: at both sites, in the order, and across kills and promotions.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farshore::cli::demo::nbd::Ask;
use farshore::cli::demo::site::Role;
use farshore::cluster::status::Resized;

use crate::harness::{FAST, Group, LONG, MIB, SLOW};

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
    ensure!((done.old_size_bytes, done.size_bytes) == (16 * MIB, 24 * MIB) && done.seq.0 > 0, "{done:?}");
    ensure!(export_bytes(&group, Role::Primary, "db")? == 24 * MIB);
    early.call(Ask::Write { offset: 20 * MIB, data: &[7; 4096], fua: false }).context("beyond the old end")?;
    early.close();
    std::thread::sleep(WHILE);
    let again = resize(&group, "db", "24MiB")?;
    ensure!(again.old_size_bytes == 24 * MIB, "{again:?}");
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
    ensure!((resize.seq, resize.offset, resize.length) == (done.seq, 16 * MIB, 24 * MIB), "{resize:?}");
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
