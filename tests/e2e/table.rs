//! A status table that was overwritten: formatted anew by itself when it is ours and nothing is known only by it,
//! handed over by an operator when nobody can tell whose it is.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use farshore::cli::demo::oracle::Promise;
use farshore::cli::demo::site::{Role, Site};
use farshore::cluster::status::PrimaryStatus;

use crate::harness::{FAST, Group, LONG, SLOW, program, small};

const WHILE: Duration = Duration::from_millis(400);

/// Bytes that are no table; `from` spares what stands before.
fn garble(path: &Path, from: usize) -> Result<()> {
    let mut bytes = std::fs::read(path)?;
    let mut state = 7u64;
    for byte in &mut bytes[from..] {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 56) as u8;
    }
    Ok(std::fs::write(path, bytes)?)
}

fn link(status: &PrimaryStatus) -> (String, String) {
    let aux = status.links.iter().find(|link| link.peer == "aux");
    aux.map(|aux| (aux.state.clone(), aux.reason.clone().unwrap_or_default())).unwrap_or_default()
}

fn until(site: &Site, what: &str, wanted: impl Fn(&PrimaryStatus) -> bool) -> Result<PrimaryStatus> {
    let start = std::time::Instant::now();
    loop {
        let status = site.primary()?;
        if wanted(&status) {
            return Ok(status);
        }
        ensure!(start.elapsed() < LONG, "not {what}: {status:?}\n{}", site.log(Role::Primary));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Under load: the table is garbled, comes back by itself, and a promotion knows everything that was acknowledged.
fn comes_back(group_lines: &str, from: usize) -> Result<()> {
    let mut group = Group::started(SLOW, group_lines)?;
    let load = group.load(1)?;
    std::thread::sleep(WHILE);
    group.site.stop(Role::Aux)?;
    garble(&group.site.path("aux/table"), from)?;
    group.site.start(Role::Aux)?;
    std::thread::sleep(WHILE);
    until(&group.site, "up again", |status| link(status).0 == "up")?;
    ensure!(group.site.log(Role::Primary).contains("formatting it anew; DR holds every write up to seq"));
    std::thread::sleep(WHILE);
    group.site.kill(Role::Primary)?;
    let log = load.finish();
    let report = group.site.promote(&[])?;
    ensure!(report.aux == "read", "the table was not read: {report:?}");
    group.check(&log, &report, Promise::Acknowledged).map(|_| ())
}

#[test]
fn a_garbled_table_is_formatted_anew_once_dr_holds_everything() -> Result<()> {
    comes_back("protect = \"order\"", 0)
}

#[test]
fn a_table_with_a_damaged_header_is_formatted_anew_in_bunker_too() -> Result<()> {
    let mut settings = small();
    settings.extend([("group", "protect = \"bunker\"".into()), ("aux", "payload = \"64MiB\"".into())]);
    let mut group = Group::with(FAST, settings)?;
    group.site.start_all()?;
    let mut log = group.load_for(2, WHILE)?;
    group.site.stop(Role::Aux)?;
    let path = group.site.path("aux/table");
    let mut bytes = std::fs::read(&path)?;
    bytes[100] ^= 1;
    std::fs::write(&path, bytes)?;
    group.site.start(Role::Aux)?;
    until(&group.site, "up again", |status| link(status).0 == "up" && status.degraded.is_empty())?;
    log.merge(group.load_for(3, WHILE)?);
    group.settle_and_compare(&log)
}

#[test]
fn a_damaged_table_is_kept_while_dr_lacks_a_write() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"near\"")?;
    let mut log = group.load_for(4, WHILE)?;
    group.site.stop(Role::Dr)?;
    log.merge(group.load_for(5, WHILE)?);
    group.site.stop(Role::Aux)?;
    let path = group.site.path("aux/table");
    garble(&path, 0)?;
    let garbled = std::fs::read(&path)?;
    group.site.start(Role::Aux)?;
    let waits = "is formatted anew by itself once DR holds every write up to seq";
    let status = until(&group.site, "waiting", |status| link(status).1.contains(waits))?;
    ensure!(status.degraded.iter().any(|one| one.what.contains(waits)), "{:?}", status.degraded);
    std::thread::sleep(Duration::from_secs(3));
    ensure!(std::fs::read(&path)? == garbled, "the table was touched while DR lacks what may be in it");
    group.site.start(Role::Dr)?;
    until(&group.site, "up again", |status| link(status).0 == "up")?;
    log.merge(group.load_for(6, WHILE)?);
    group.settle_and_compare(&log)
}

#[test]
fn a_foreign_region_is_refused_until_it_is_handed_over() -> Result<()> {
    let group = Group::new(FAST, "protect = \"order\"")?;
    let path = group.site.path("region");
    std::fs::write(&path, vec![0; 32 << 20])?;
    garble(&path, 0)?;
    let mut settings = group.site.plan.settings.clone();
    settings.push(("aux", format!("table = \"{}\"", path.display())));
    let mut plan = group.site.plan.clone();
    plan.settings = settings;
    let mut site = Site::new(plan)?;
    site.start(Role::Dr)?;
    site.start(Role::Primary)?;
    let help = "fill its first 16 KiB with zeroes";
    let status = until(&site, "refused", |status| link(status).1.contains(help))?;
    ensure!(status.degraded.iter().any(|one| one.what.contains(help)), "{:?}", status.degraded);
    let inspect = std::process::Command::new(program()).args(["inspect", "table"]).arg(&path).output()?;
    let said = String::from_utf8_lossy(&inspect.stdout);
    ensure!(inspect.status.code() == Some(1) && said.contains("16 KiB"), "{inspect:?}");
    let mut bytes = std::fs::read(&path)?;
    bytes[..16 << 10].fill(0);
    std::fs::write(&path, bytes)?;
    until(&site, "up", |status| link(status).0 == "up")?;
    site.settle(LONG)?;
    // Now its fence block names this primary: a damaged header is its own affair.
    site.stop(Role::Primary)?;
    garble(&path, 16 << 10)?;
    let mut bytes = std::fs::read(&path)?;
    bytes[100] ^= 1;
    std::fs::write(&path, bytes)?;
    site.start(Role::Primary)?;
    until(&site, "up again", |status| link(status).0 == "up" && status.degraded.is_empty())?;
    ensure!(site.log(Role::Primary).contains("formatting it anew"));
    let inspect = std::process::Command::new(program()).args(["inspect", "table"]).arg(&path).output()?;
    ensure!(inspect.status.success(), "{}", String::from_utf8_lossy(&inspect.stdout));
    Ok(())
}
