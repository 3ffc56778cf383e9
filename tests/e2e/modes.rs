//! Every protection mode: the primary is killed under load over the slow line, DR is promoted, and what came of every
//! write is held against what the mode promises.

use std::time::Duration;

use anyhow::{Result, ensure};
use farshore::cli::demo::oracle::{Found, Promise};
use farshore::cli::demo::site::Role;

use crate::harness::{Group, SLOW};

fn killed_and_promoted(group: &str, promise: Promise) -> Result<Found> {
    let mut group = Group::started(SLOW, group)?;
    let load = group.load(1)?;
    std::thread::sleep(Duration::from_millis(1500));
    ensure!(load.acked() > 20, "only {} requests were answered", load.acked());
    group.site.kill(Role::Primary)?;
    let log = load.finish();
    let report = group.site.promote(&[])?;
    ensure!(report.aux == "read", "the auxiliary was {}", report.aux);
    let found = group.check(&log, &report, promise)?;
    // What is acknowledged before anybody else knows of it may have come after all that is known: that is said, and only then.
    ensure!(report.incomplete.is_none(), "{:?}", report.incomplete);
    ensure!(report.known_until.is_some() == (promise != Promise::Acknowledged), "{:?}", report.known_until);
    for verb in [["loss"].as_slice(), &["promote"]] {
        let people = group.site.verb(verb)?.out;
        let said = people.contains("what was acknowledged after that is lost, and cannot all be listed");
        ensure!(said == report.known_until.is_some(), "{people}");
    }
    eprintln!("{found:?}");
    Ok(found)
}

#[test]
fn async_leaves_a_prefix() -> Result<()> {
    killed_and_promoted("protect = \"async\"", Promise::Prefix).map(|_| ())
}

#[test]
fn near_knows_every_lost_write() -> Result<()> {
    killed_and_promoted("protect = \"near\"", Promise::Acknowledged).map(|_| ())
}

#[test]
fn order_knows_every_lost_write() -> Result<()> {
    killed_and_promoted("protect = \"order\"\nrequire = \"both\"", Promise::Acknowledged).map(|_| ())
}

#[test]
fn bunker_loses_no_acknowledged_write() -> Result<()> {
    let found = killed_and_promoted("protect = \"bunker\"", Promise::Acknowledged)?;
    ensure!(found.reported == 0, "acknowledged writes were lost: {found:?}");
    Ok(())
}

#[test]
fn sync_loses_no_acknowledged_write() -> Result<()> {
    let found = killed_and_promoted("protect = \"sync\"", Promise::Acknowledged)?;
    ensure!(found.reported == 0, "acknowledged writes were lost: {found:?}");
    Ok(())
}

#[test]
fn acknowledging_at_flush_keeps_or_reports_every_flushed_write() -> Result<()> {
    killed_and_promoted("protect = \"order\"\nack = \"flush\"", Promise::Flushed).map(|_| ())
}

#[test]
fn every_mode_ends_with_two_equal_sides() -> Result<()> {
    for mode in ["async", "near", "order", "bunker", "sync"] {
        let mut group = Group::started(SLOW, &format!("protect = \"{mode}\""))?;
        let log = group.load_for(2, Duration::from_millis(500))?;
        group.settle_and_compare(&log)?;
    }
    Ok(())
}
