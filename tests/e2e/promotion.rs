//! Promotion: what it changes and what it does not, who is refused, and what happens to those who come back.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farshore::cli::demo::load::Log;
use farshore::cli::demo::oracle::Promise;
use farshore::cli::demo::site::Role;
use farshore::cluster::status::PromoteReport;

use crate::harness::{FAST, Group, LONG, SLOW};

const WHILE: Duration = Duration::from_millis(700);

/// A group whose primary was killed under load.
fn orphaned(group: &str) -> Result<(Group, Log)> {
    let mut group = Group::started(SLOW, group)?;
    let load = group.load(1)?;
    std::thread::sleep(WHILE);
    group.site.kill(Role::Primary)?;
    let log = load.finish();
    Ok((group, log))
}

/// Digest of every file of DR and of the auxiliary.
fn digests(group: &Group) -> Result<BTreeMap<String, u32>> {
    let mut found = BTreeMap::new();
    for (name, _) in &group.site.plan.volumes {
        let path = group.site.backing(Role::Dr, name);
        found.insert(path.display().to_string(), crc32fast::hash(&std::fs::read(&path)?));
    }
    for role in [Role::Dr, Role::Aux] {
        for entry in std::fs::read_dir(group.site.path(role.word()))? {
            let path = entry?.path();
            if path.is_file() {
                found.insert(path.display().to_string(), crc32fast::hash(&std::fs::read(&path)?));
            }
        }
    }
    Ok(found)
}

#[test]
fn a_plan_changes_nothing() -> Result<()> {
    let (group, log) = orphaned("protect = \"order\"")?;
    // What was on the line arrives, is applied and checkpointed.
    std::thread::sleep(Duration::from_secs(4));
    let before = digests(&group)?;
    let plan = group.site.promote(&["--plan"])?;
    ensure!(before == digests(&group)?, "a plan changed a file");
    let again = group.site.promote(&["--plan"])?;
    ensure!(
        PromoteReport { duration_seconds: 0.0, ..again } == PromoteReport { duration_seconds: 0.0, ..plan.clone() }
    );
    let report = group.site.promote(&[])?;
    ensure!((plan.cut_seq, plan.tail_seq) == (report.cut_seq, report.tail_seq), "the plan said {plan:?}");
    ensure!(plan.missing == report.missing, "the plan listed other losses");
    group.check(&log, &report, Promise::Acknowledged).map(|_| ())
}

#[test]
fn a_plan_does_not_disturb_a_living_primary() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    let load = group.load(2)?;
    std::thread::sleep(WHILE);
    let plan = group.site.promote(&["--plan"])?;
    ensure!(plan.cut_seq.0 > 0, "{plan:?}");
    let before = load.acked();
    std::thread::sleep(WHILE);
    ensure!(load.acked() > before, "nothing is answered after a plan");
    let log = load.finish();
    ensure!(log.ends.is_empty(), "connections ended: {:?}", log.ends);
    group.settle_and_compare(&log)
}

#[test]
fn without_the_auxiliary_it_takes_force() -> Result<()> {
    let (mut group, log) = orphaned("protect = \"order\"")?;
    group.site.kill(Role::Aux)?;
    // A plan is harmless: it says what it could not read.
    let plan = group.site.promote(&["--plan"])?;
    admits_the_table(&plan)?;
    let people = group.site.verb(&["promote", "--plan"])?;
    ensure!(people.out.contains("would not be promoted (nothing was changed)"), "{people:?}");
    ensure!(group.site.promote(&["--plan", "--force"])?.refused.is_none(), "by force it goes on");
    let refused = group.site.verb(&["promote"])?;
    let foreseen = plan.refused.unwrap_or_default();
    ensure!(refused.errors.contains(&foreseen) && !foreseen.is_empty(), "{foreseen:?}, then {refused:?}");
    ensure!(refused.exit == 3, "it ended with {}: {}", refused.exit, refused.errors);
    ensure!(refused.errors.contains("--force"), "it does not say what to do: {}", refused.errors);
    let report = group.site.promote(&["--force"])?;
    admits_the_table(&report)?;
    let people = group.site.verb(&["loss"])?;
    for part in
        ["INCOMPLETE       the status table was left out", "writes that only it knew are not", "known until      2"]
    {
        ensure!(people.out.contains(part), "{part}: {people:?}");
    }
    // DR was never out of reach: what only the auxiliary knows was not acknowledged.
    group.check(&log, &report, Promise::Acknowledged).map(|_| ())
}

/// What the auxiliary alone holds while DR is out of reach is lost without it, and that is said; where nothing is acknowledged
/// without DR, nothing is.
#[test]
fn what_only_a_lost_auxiliary_knew_is_admitted() -> Result<()> {
    for (group, admits) in [
        ("protect = \"order\"", true),
        ("protect = \"near\"", true),
        ("protect = \"order\"\nrequire = \"both\"", false),
    ] {
        let mut group = Group::started(FAST, group)?;
        let log = group.load_for(1, WHILE)?;
        group.site.settle(LONG)?;
        let dr = group.site.dr()?;
        group.site.kill(Role::Dr)?;
        let late = group.load(2)?;
        std::thread::sleep(Duration::from_secs(2));
        group.site.kill(Role::Primary)?;
        group.site.kill(Role::Aux)?;
        let mut log = log;
        log.merge(late.finish());
        group.site.start(Role::Dr)?;
        let report = group.site.promote(&["--force"])?;
        if admits {
            admits_the_table(&report)?;
            ensure!(report.known_until.as_ref().is_some_and(|known| known.seq >= dr.tail_seq), "{report:?}");
            let found = group.check(&log, &report, Promise::Prefix)?;
            ensure!(found.unknown > 0, "nothing was acknowledged while DR was away: {found:?}");
        } else {
            ensure!(report.incomplete.is_none() && report.known_until.is_none(), "{report:?}");
            group.check(&log, &report, Promise::Acknowledged)?;
        }
    }
    Ok(())
}

#[test]
fn a_promoted_dr_serves_writes_and_survives_a_kill() -> Result<()> {
    let (mut group, log) = orphaned("protect = \"order\"")?;
    let report = group.site.promote(&[])?;
    group.check(&log, &report, Promise::Acknowledged)?;
    let again = group.site.promote(&[])?;
    ensure!(again.missing == report.missing && again.epoch == report.epoch, "promoted twice: {again:?}");
    group.site.kill(Role::Dr)?;
    group.site.start(Role::Dr)?;
    await_export(&group)?;
    group.check(&log, &report, Promise::Acknowledged)?;
    let told = group.site.verb(&["loss", "--json"])?;
    ensure!(told.exit == 0, "loss ended with {}: {}", told.exit, told.errors);
    let told: PromoteReport = serde_json::from_str(&told.out)?;
    ensure!(told.missing == report.missing, "the loss report is another one after a restart");
    Ok(())
}

/// A DR that was promoted before answers for itself a little before it serves.
fn await_export(group: &Group) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(20);
    while group.site.client(Role::Dr, "db").is_err() {
        ensure!(Instant::now() < until, "it does not serve\n{}", group.site.log(Role::Dr));
    }
    Ok(())
}

/// Whoever is taken in is served: neither what a killed process leaves nor one that starts takes anybody in vain.
#[test]
fn a_client_of_a_promoted_dr_that_was_killed_is_served_or_not_taken_at_all() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    group.write(Role::Primary, "db", 0, 1)?;
    group.site.kill(Role::Primary)?;
    group.site.promote(&[])?;
    let path = group.site.path("nbd-dr.sock");
    for _ in 0..4 {
        await_export(&group)?;
        let until = Instant::now() + Duration::from_secs(20);
        group.site.kill(Role::Dr)?;
        let after = UnixStream::connect(&path).err().map(|error| error.kind());
        ensure!(after == Some(ErrorKind::ConnectionRefused), "the socket of a killed process: {after:?}");
        group.site.launch(Role::Dr)?;
        loop {
            ensure!(Instant::now() < until, "it does not serve\n{}", group.site.log(Role::Dr));
            let Ok(mut client) = UnixStream::connect(&path) else { continue };
            client.set_read_timeout(Some(LONG))?;
            let mut greeting = [0; 8];
            client.read_exact(&mut greeting).context("it was taken and not served")?;
            ensure!(&greeting == b"NBDMAGIC", "{greeting:?}");
            break;
        }
    }
    Ok(())
}

#[test]
fn a_promotion_killed_at_any_moment_ends_the_same_when_called_again() -> Result<()> {
    for pause_ms in [0, 5, 20, 60, 150] {
        let (mut group, log) = orphaned("protect = \"order\"")?;
        let config = group.site.config();
        let mut asking = std::process::Command::new(crate::harness::program())
            .args(["promote", "--config"])
            .arg(&config)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        std::thread::sleep(Duration::from_millis(pause_ms));
        group.site.kill(Role::Dr)?;
        asking.wait()?;
        group.site.start(Role::Dr)?;
        let report = group.site.promote(&[])?;
        group.check(&log, &report, Promise::Acknowledged)?;
    }
    Ok(())
}

#[test]
fn an_old_primary_that_returns_is_refused() -> Result<()> {
    let (mut group, log) = orphaned("protect = \"order\"")?;
    let report = group.site.promote(&[])?;
    group.site.launch(Role::Primary)?;
    let until = std::time::Instant::now() + Duration::from_secs(15);
    loop {
        if !group.site.runs(Role::Primary) {
            break;
        }
        if group.site.primary().is_ok_and(|status| status.fenced.is_some()) {
            break;
        }
        ensure!(std::time::Instant::now() < until, "nobody told it\n{}", group.site.log(Role::Primary));
        std::thread::sleep(Duration::from_millis(50));
    }
    ensure!(group.write(Role::Primary, "db", 0, 1).is_err(), "a fenced primary acknowledged a write");
    group.check(&log, &report, Promise::Acknowledged).map(|_| ())
}

#[test]
fn a_living_primary_is_fenced_by_a_promotion() -> Result<()> {
    let group = Group::started(SLOW, "protect = \"order\"")?;
    let load = group.load(3)?;
    std::thread::sleep(WHILE);
    let report = group.site.promote(&[])?;
    let at_promotion = load.acked();
    std::thread::sleep(WHILE);
    let after = load.acked();
    let log = load.finish();
    ensure!(after == at_promotion, "{} writes were acknowledged after the promotion (I7)", after - at_promotion);
    group.check(&log, &report, Promise::Acknowledged).map(|_| ())
}

/// Bytes that are no header, over that of the table under the running auxiliary.
fn spoil_header(path: &std::path::Path) -> Result<()> {
    let file = std::fs::File::options().write(true).open(path)?;
    Ok(std::os::unix::fs::FileExt::write_all_at(&file, &[0xA5; 4096], 0)?)
}

/// Refused, and the living primary goes on, and DR follows it; then by force.
fn refused_for_its_table(mut group: Group, table: &std::path::Path) -> Result<()> {
    let load = group.load(5)?;
    std::thread::sleep(WHILE);
    spoil_header(table)?;
    for _ in 0..2 {
        let refused = group.site.verb(&["promote"])?;
        ensure!(refused.exit == 3 && refused.errors.contains("the status table cannot be read"), "{refused:?}");
        ensure!(!refused.errors.contains("nobody serves"), "nobody is fenced: {refused:?}");
        let before = load.acked();
        std::thread::sleep(WHILE);
        ensure!(load.acked() > before, "nothing is answered after a refusal\n{}", group.site.log(Role::Primary));
        let (primary, dr) = (group.site.primary()?, group.site.dr()?);
        ensure!(primary.fenced.is_none() && dr.promotion.is_none(), "{primary:?}, {dr:?}");
    }
    let log = load.finish();
    ensure!(log.ends.is_empty(), "connections ended: {:?}", log.ends);
    group.settle_and_compare(&log)?;
    let load = group.load(6)?;
    std::thread::sleep(WHILE);
    let report = group.site.promote(&["--force"])?;
    let at_promotion = load.acked();
    std::thread::sleep(WHILE);
    ensure!(load.acked() == at_promotion, "acknowledged after the promotion (I7)");
    let mut log = log;
    log.merge(load.finish());
    // The primary acknowledged by the table alone from the moment on at which DR took no more, until it was fenced.
    admits_the_table(&report)?;
    group.check(&log, &report, Promise::Prefix).map(|_| ())
}

/// A report without the table says that it is, and which order is the last that it knows.
fn admits_the_table(report: &PromoteReport) -> Result<()> {
    ensure!(report.aux == "unreachable", "{}", report.aux);
    let known = report.known_until.clone().context("nothing is said of what came later")?;
    let time = known.time.with_context(|| format!("no time of {known:?}", known = known.seq))?;
    let text = report.incomplete.clone().unwrap_or_default();
    ensure!(text.starts_with("the status table was left out: "), "{text}");
    ensure!(text.contains(&format!("seq {}, taken in at {time}", known.seq)), "{text}");
    Ok(())
}

#[test]
fn a_promotion_that_is_refused_for_the_tables_header_leaves_the_primary_alone() -> Result<()> {
    let group = Group::started(FAST, "protect = \"order\"")?;
    let table = group.site.path("aux/table");
    refused_for_its_table(group, &table)
}

#[test]
fn a_promotion_that_is_refused_for_a_table_in_a_file_leaves_the_primary_alone() -> Result<()> {
    let group = Group::new(FAST, "protect = \"order\"")?;
    // Where the comparison looks for it.
    let path = group.site.path("aux/table");
    std::fs::create_dir_all(group.site.path("aux"))?;
    std::fs::write(&path, vec![0; 32 << 20])?;
    let mut plan = group.site.plan.clone();
    plan.settings.push(("aux", format!("table = \"{}\"", path.display())));
    let mut group = group;
    group.site = farshore::cli::demo::site::Site::new(plan)?;
    group.site.start(Role::Dr)?;
    group.site.start(Role::Primary)?;
    group.site.settle(LONG)?;
    refused_for_its_table(group, &path)
}
