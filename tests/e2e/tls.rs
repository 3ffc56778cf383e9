//! Links with certificates: the whole story over TLS, and what happens to who shows the wrong one.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farshore::cli::certs::{self, Plan, own_files};
use farshore::cli::demo::oracle::Promise;
use farshore::cli::demo::site::{Role, Scratch};
use farshore::core::peer;

use crate::harness::{FAST, Group, LONG, SLOW, small};

/// Certificates of the group `demo`, and of another one by the same CA.
fn certificates() -> Result<Scratch> {
    let scratch = Scratch::new("tls")?;
    let plan =
        |group: &str, ca| Plan { group: group.into(), dir: scratch.path.join(group), days: 2, ca, hosts: Vec::new() };
    let made =
        certs::make(&plan("demo", None)).and_then(|()| certs::make(&plan("other", Some(scratch.path.join("demo")))));
    made.map_err(|failure| anyhow::anyhow!("{}", failure.text))?;
    Ok(scratch)
}

fn group(settings: &str, dir: &Path) -> Result<Group> {
    let mut all = small();
    all.push(("group", settings.into()));
    let shown = dir.join("demo").join("{role}");
    let path = |name: &str| shown.join(name).display().to_string();
    let section = format!(
        "\n[tls]\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"",
        path("ca-cert.pem"),
        path("cert.pem"),
        path("key.pem")
    );
    all.push(("primary", section));
    let line = if settings.contains("bunker") { FAST } else { SLOW };
    Group::with(line, all)
}

/// Waits until a role's log says something.
fn heard(group: &Group, role: Role, text: &str) -> Result<()> {
    let until = Instant::now() + LONG;
    while !group.site.log(role).contains(text) {
        ensure!(Instant::now() < until, "{} does not say {text:?}\n{}", role.word(), group.site.log(role));
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn over_tls_a_killed_primary_is_promoted_as_without_it() -> Result<()> {
    for settings in ["protect = \"order\"", "protect = \"sync\"", "protect = \"bunker\""] {
        let scratch = certificates()?;
        let mut group = group(settings, &scratch.path)?;
        group.site.start_all()?;
        let load = group.load(5)?;
        std::thread::sleep(Duration::from_millis(1500));
        group.site.kill(Role::Primary)?;
        let log = load.finish();
        ensure!(log.acked() > 20, "{settings}: only {} requests were answered", log.acked());
        let report = group.site.promote(&[])?;
        ensure!(report.aux == "read", "{settings}: {}", report.aux);
        group.check(&log, &report, Promise::Acknowledged)?;
    }
    Ok(())
}

#[test]
fn over_tls_both_sides_become_equal_and_a_stop_loses_nothing() -> Result<()> {
    let scratch = certificates()?;
    let mut group = group("protect = \"order\"", &scratch.path)?;
    group.site.start_all()?;
    let log = group.load_for(6, Duration::from_secs(2))?;
    group.settle_and_compare(&log)?;
    let status = group.site.primary()?;
    let certificate = status.certificate.context("a certificate is in use")?;
    ensure!((86_400.0..=172_800.0).contains(&certificate.remaining_seconds), "valid for two days: {certificate:?}");
    ensure!(status.degraded.iter().any(|one| one.what.contains("expires at")), "{:?}", status.degraded);
    ensure!(group.site.dr()?.certificate.is_some() && group.site.aux()?.certificate.is_some(), "each has its own");
    for role in [Role::Primary, Role::Dr, Role::Aux] {
        ensure!(group.site.stop(role)?.success(), "{}", group.site.log(role));
    }
    Ok(())
}

/// Puts other files where those of the primary are.
fn swap(scratch: &Path, from: &str, to: &Path) -> Result<()> {
    let of = |dir: &Path| own_files(dir, peer::Role::Primary);
    let (cert, key) = of(&scratch.join(from).join("primary"));
    let (to_cert, to_key) = of(to);
    std::fs::copy(cert, to_cert)?;
    std::fs::copy(key, to_key)?;
    Ok(())
}

#[test]
fn a_valid_certificate_of_another_group_is_refused_in_words_at_both_ends_and_mended_without_a_restart() -> Result<()> {
    let scratch = certificates()?;
    let mut group = group("protect = \"order\"", &scratch.path)?;
    group.site.start_all()?;
    let kept: PathBuf = scratch.path.join("kept").join("primary");
    std::fs::create_dir_all(&kept)?;
    swap(&scratch.path, "demo", &kept)?;
    let own = scratch.path.join("demo").join("primary");
    swap(&scratch.path, "other", &own)?;
    // What is connected stays so; who connects anew shows the new one.
    group.site.stop(Role::Dr)?;
    group.site.start(Role::Dr)?;
    heard(&group, Role::Dr, "farshore://other/primary")?;
    heard(&group, Role::Primary, "another role or group")?;
    swap(&scratch.path, "kept", &own)?;
    group.site.ready()?;
    let log = group.load_for(7, Duration::from_secs(1))?;
    group.settle_and_compare(&log)
}

#[test]
fn a_role_does_not_start_with_the_certificate_of_another_and_says_what_to_do() -> Result<()> {
    let scratch = certificates()?;
    let mut group = group("protect = \"order\"", &scratch.path)?;
    let dir = scratch.path.join("demo").join("dr");
    swap(&scratch.path, "demo", &dir)?;
    group.site.launch(Role::Dr)?;
    let status = group.site.ended(Role::Dr)?;
    ensure!(status.code() == Some(2), "{status}");
    let said = group.site.log(Role::Dr);
    for part in ["cert.pem", "farshore://demo/primary", "has to be farshore://demo/dr", "farshore certs"] {
        ensure!(said.contains(part), "{part} is missing:\n{said}");
    }
    let checked = group.site.verb(&["check", "--role", "dr"])?;
    ensure!(checked.exit == 2 && checked.out.contains("has to be farshore://demo/dr"), "{checked:?}");
    ensure!(!said.contains("PRIVATE") && !checked.out.contains("PRIVATE"));
    Ok(())
}
