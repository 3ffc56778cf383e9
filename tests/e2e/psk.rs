//! Shared keys of NBD clients: served, restarted, changed and promoted, with libnbd as the client.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farshore::cli::demo::site::{Role, Scratch, find_program};
use farshore::core::address::Address;
use farshore::core::modes::NO_SHARED_KEYS;

use crate::harness::{Group, LONG, SLOW, small};

const KEY: &str = "4f1d7f1a0b9c2e3d4c5b6a798897a6b5c4d3e2f101112131415161718191a1b1";
const OTHER: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn keys(dir: &Path, name: &str, text: &str, mode: u32) -> Result<PathBuf> {
    let path = dir.join(name);
    std::fs::write(&path, text)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    Ok(path)
}

fn group(server: &Path) -> Result<Group> {
    let mut all = small();
    all.push(("primary", format!("\n[tls]\npsk = \"{}\"", server.display())));
    Group::with(SLOW, all)
}

/// Whether the reason why this cannot be tried here was told.
fn skipped() -> bool {
    let missing = ["nbdcopy"].into_iter().find(|name| find_program(name).is_none());
    let why = NO_SHARED_KEYS.map(String::from).or(missing.map(|name| format!("{name} is not installed")));
    why.inspect(|why| eprintln!("skipped: {why}")).is_some()
}

fn uri(group: &Group, role: Role, name: &str, keys: &Path) -> Result<String> {
    let Address::Unix(socket) = group.site.export(role) else { anyhow::bail!("exports are on unix sockets") };
    Ok(format!("nbds+unix://{name}@/db?socket={}&tls-psk-file={}", socket.display(), keys.display()))
}

/// Whether nbdcopy succeeds, and what it says.
fn copy(from: &str, to: &str) -> Result<(bool, String)> {
    let program = find_program("nbdcopy").context("nbdcopy was found before")?;
    let output = Command::new(program).args(["--flush", from, to]).stdin(Stdio::null()).output()?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[test]
fn with_shared_keys_a_volume_outlives_restarts_new_keys_and_a_promotion() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let scratch = Scratch::new("psk")?;
    let dir = &scratch.path;
    let server = keys(dir, "server.psk", &format!("alice:{KEY}\n"), 0o600)?;
    let (alice, carol) = (
        keys(dir, "alice.psk", &format!("alice:{KEY}\n"), 0o600)?,
        keys(dir, "carol.psk", &format!("carol:{OTHER}\n"), 0o600)?,
    );
    let mut group = group(&server)?;
    group.site.start_all()?;
    let (image, back) = (dir.join("image"), dir.join("back"));
    let text = |path: &Path| path.display().to_string();
    let bytes: Vec<u8> = (0..16u64 << 20).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 31) as u8).collect();
    std::fs::write(&image, &bytes)?;
    let same = |group: &Group, role: Role, name: &str, keys: &Path| -> Result<()> {
        let (copied, said) = copy(&uri(group, role, name, keys)?, &text(&back))?;
        ensure!(copied, "{said}\n{}", group.site.log(role));
        ensure!(std::fs::read(&back)? == bytes, "{name} reads other bytes");
        Ok(())
    };
    let refused = |group: &Group, role: Role, name: &str, keys: &Path, log: &str| -> Result<()> {
        // The log has at most one such line a second.
        std::thread::sleep(Duration::from_millis(1100));
        let (copied, said) = copy(&uri(group, role, name, keys)?, &text(&back))?;
        ensure!(!copied, "{name} is let in");
        let until = Instant::now() + LONG;
        while !group.site.log(role).contains(log) {
            ensure!(Instant::now() < until, "{said}\n{}", group.site.log(role));
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    };
    let (copied, said) = copy(&text(&image), &uri(&group, Role::Primary, "alice", &alice)?)?;
    ensure!(copied, "{said}\n{}", group.site.log(Role::Primary));
    same(&group, Role::Primary, "alice", &alice)?;
    ensure!(group.site.stop(Role::Primary)?.success(), "{}", group.site.log(Role::Primary));
    group.site.start(Role::Primary)?;
    group.site.ready()?;
    same(&group, Role::Primary, "alice", &alice)?;
    refused(&group, Role::Primary, "carol", &carol, "calls itself \"carol\", which has no key in")?;
    keys(dir, "server.psk", &format!("alice:{OTHER}\ncarol:{OTHER}\n"), 0o600)?;
    same(&group, Role::Primary, "carol", &carol)?;
    refused(&group, Role::Primary, "alice", &alice, "calls itself \"alice\", and its key is not the one in")?;
    group.site.settle(LONG)?;
    group.site.kill(Role::Primary)?;
    group.site.promote(&[])?;
    same(&group, Role::Dr, "carol", &carol)?;
    refused(&group, Role::Dr, "alice", &alice, "calls itself \"alice\", and its key is not the one in")?;
    for role in [Role::Primary, Role::Dr] {
        let log = group.site.log(role);
        ensure!(!log.contains(&KEY[..8]) && !log.contains(&OTHER[..8]), "a key is told:\n{log}");
    }
    Ok(())
}

#[test]
fn a_role_does_not_start_with_keys_that_others_can_read_and_says_what_to_do() -> Result<()> {
    let scratch = Scratch::new("psk")?;
    let server = keys(&scratch.path, "server.psk", &format!("alice:{KEY}\n"), 0o644)?;
    let mut group = group(&server)?;
    let part = if NO_SHARED_KEYS.is_some() { "--features psk" } else { "open to others (mode 0644): chmod 600" };
    for role in [Role::Primary, Role::Dr] {
        group.site.launch(role)?;
        let status = group.site.ended(role)?;
        let said = group.site.log(role);
        ensure!(status.code() == Some(2) && said.contains(part), "{status}\n{said}");
        let checked = group.site.verb(&["check", "--role", role.word()])?;
        let said = format!("{}{}", checked.out, checked.errors);
        ensure!(checked.exit == 2 && said.contains(part), "{checked:?}");
        ensure!(!said.contains(&KEY[..8]), "{said}");
    }
    if NO_SHARED_KEYS.is_none() {
        keys(&scratch.path, "server.psk", &format!("alice:{KEY}\n"), 0o600)?;
        let checked = group.site.verb(&["check", "--role", "dr"])?;
        ensure!(checked.out.contains("the keys that dr shares with NBD clients can be used: 1"), "{checked:?}");
    }
    Ok(())
}
