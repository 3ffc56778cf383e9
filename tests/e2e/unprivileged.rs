//! Without privileges: every role and verb runs as an ordinary user in a directory of its own, and what that user may
//! not do is said with the place and the way out. Skipped where the tests do not run as root with `setpriv`: there the
//! other tests run everything without privileges anyway.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use farshore::cli::demo::site::{Plan, Role, Scratch, Site};

use crate::harness::{FAST, MIB, small};
use crate::listens::listens;

const NOBODY: u32 = 65534;

/// A directory of an ordinary user, with a program that runs ours as that user.
struct Ordinary {
    dir: PathBuf,
    program: PathBuf,
    _scratch: Scratch,
}

impl Ordinary {
    fn new() -> Result<Option<Ordinary>> {
        let root = nix::unistd::geteuid().is_root();
        let able = Command::new("setpriv").arg("--version").output().is_ok_and(|done| done.status.success());
        if !root || !able {
            eprintln!("skipped: needs root and setpriv to become an ordinary user");
            return Ok(None);
        }
        let scratch = Scratch::new("nobody")?;
        std::fs::set_permissions(&scratch.path, PermissionsExt::from_mode(0o755))?;
        let program = scratch.path.join("farshore");
        // A copy, for the ordinary user may not reach where this build stands.
        let ours = scratch.path.join("build");
        std::fs::copy(crate::harness::program(), &ours)?;
        std::fs::set_permissions(&ours, PermissionsExt::from_mode(0o755))?;
        let text = format!(
            "#!/bin/sh\nexec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups {} \"$@\"\n",
            ours.display()
        );
        std::fs::write(&program, text)?;
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
        let dir = scratch.path.join("d");
        std::fs::create_dir(&dir)?;
        chown(&dir, Some(NOBODY), Some(NOBODY))?;
        Ok(Some(Ordinary { dir, program, _scratch: scratch }))
    }

    fn run(&self, words: &[&str]) -> Result<Output> {
        Ok(Command::new(&self.program).args(words).current_dir(&self.dir).output()?)
    }

    /// Runs a verb on a configuration, and holds its exit status and what it says.
    fn said(&self, words: &[&str], config: &Path, exit: i32, all_of: &[&str]) -> Result<()> {
        let shown = config.display().to_string();
        let output = self.run(&[words, &["--config", &shown]].concat())?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.code() == Some(exit), "{words:?}: {}\n{text}", output.status);
        for word in all_of {
            ensure!(text.contains(word), "{words:?} does not say {word:?}:\n{text}");
        }
        Ok(())
    }

    /// A configuration, changed.
    fn configured(&self, name: &str, change: impl Fn(&str) -> String) -> Result<PathBuf> {
        let dir = self.dir.join("data").display().to_string();
        let output = self.run(&["init", "orders", "--volume", "db=16MiB", "--dir", &dir])?;
        ensure!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout)?;
        let mut text = text.replace("\"8GiB\"", "\"64MiB\"").replace("\"1024MiB\"", "\"192MiB\"");
        // Sockets of its own: other tests may have the ports.
        for port in ["10809", "10820", "10830", "10831"] {
            text = text.replace(&format!("127.0.0.1:{port}"), &format!("unix:{dir}/{port}.sock"));
        }
        let path = self.dir.join(name);
        std::fs::write(&path, change(&text))?;
        Ok(path)
    }
}

#[test]
fn every_role_and_verb_runs_as_an_ordinary_user() -> Result<()> {
    let Some(user) = Ordinary::new()? else { return Ok(()) };
    let dir = user.dir.join("site");
    let plan = Plan {
        program: user.program.clone(),
        dir: dir.clone(),
        volumes: vec![("db".into(), 16 * MIB)],
        line: FAST,
        settings: small(),
    };
    let mut site = Site::new(plan)?;
    chown(&dir, Some(NOBODY), Some(NOBODY))?;
    site.start_all()?;
    let mut client = site.client(Role::Primary, "db")?;
    client.call(farshore::cli::demo::nbd::Ask::Write { offset: 0, data: &[5; 8192], fua: true })?;
    client.close();
    site.settle(Duration::from_secs(30))?;
    for words in [&["check"][..], &["status"], &["status", "--json"], &["promote", "--plan"]] {
        let ended = site.verb(words)?;
        ensure!(ended.exit == 0, "{words:?}: {ended:?}");
    }
    for (what, place) in [("superblock", "primary"), ("table", "aux"), ("journal", "dr"), ("spool", "dr")] {
        let output = user.run(&["inspect", what, &dir.join(place).display().to_string()])?;
        ensure!(output.status.success(), "inspect {what}: {output:?}");
    }
    site.stop(Role::Primary)?;
    site.promote(&[])?;
    ensure!(site.verb(&["loss"])?.exit == 0);
    let mut client = site.client(Role::Dr, "db")?;
    ensure!(client.read_all()?[..8192].iter().all(|byte| *byte == 5), "the write is in the promoted image");
    client.close();
    for role in [Role::Dr, Role::Aux] {
        ensure!(site.stop(role)?.success(), "{}", site.log(role));
    }
    let owner = |path: &Path| std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(path).expect("it is there"));
    ensure!(owner(&dir.join("dr/journal")) == NOBODY, "it did run as an ordinary user");
    Ok(())
}

#[test]
fn what_an_ordinary_user_may_not_do_is_said_with_place_and_way_out() -> Result<()> {
    let Some(user) = Ordinary::new()? else { return Ok(()) };
    let way = "runs as user 65534: give that user access";
    let foreign = user.dir.join("foreign");
    std::fs::create_dir(&foreign)?;
    let foreign_text = foreign.display().to_string();
    let data = user.dir.join("data").display().to_string();
    // The directories of the roles.
    let config = user.configured("dirs.toml", |text| {
        let lines = text.lines().map(|line| match line.starts_with("dir ") {
            true => line.replace(&data, &foreign_text),
            false => line.into(),
        });
        lines.collect::<Vec<String>>().join("\n")
    })?;
    for role in Role::ALL {
        let place = foreign.join(role.word()).display().to_string();
        let words = format!("{place}: cannot make the directory: Permission denied");
        user.said(&[role.word()], &config, 1, &[&words, way])?;
        let key = format!("{}.dir: {words}", role.word());
        user.said(&["check", "--role", role.word()], &config, 1, &[&key, way])?;
    }
    // A backing store of somebody else.
    let config =
        user.configured("backing.toml", |text| text.replace(&format!("{data}/db"), &format!("{foreign_text}/db")))?;
    for (role, name) in [("primary", "db.img"), ("dr", "db-dr.img")] {
        let path = foreign.join(name);
        std::fs::write(&path, vec![0; 16 << 20])?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
        let place = path.display().to_string();
        user.said(&[role], &config, 1, &[&place, "cannot open: Permission denied", way])?;
        user.said(&["check", "--role", role], &config, 1, &[&place, "cannot open: Permission denied", way])?;
    }
    // The directory of a socket: one that cannot be made, one that cannot be written.
    for (name, place) in [("none.toml", format!("{foreign_text}/none/x")), ("there.toml", foreign_text.clone())] {
        let config = user
            .configured(name, |text| text.replace(&format!("control = \"{data}/"), &format!("control = \"{place}/")))?;
        for role in Role::ALL {
            user.said(&[role.word()], &config, 1, &[&place, "Permission denied", way])?;
            let key = format!("{}.control: {place}", role.word());
            user.said(
                &["check", "--role", role.word()],
                &config,
                1,
                &[&key, "cannot be made: Permission denied", way],
            )?;
        }
    }
    // The configuration itself, and files to be looked at.
    let config = user.configured("secret.toml", str::to_owned)?;
    std::fs::set_permissions(&config, PermissionsExt::from_mode(0o600))?;
    for verb in ["check", "aux", "dr", "primary", "status", "promote", "loss"] {
        user.said(&[verb], &config, 2, &["secret.toml", "cannot read the configuration", way])?;
    }
    let file = foreign.join("db.img").display().to_string();
    let output = user.run(&["inspect", "spool", "--nonce", "1", &file])?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && text.contains(&file) && text.contains(way), "{text}");
    Ok(())
}

#[test]
fn a_role_of_somebody_else_is_not_asked() -> Result<()> {
    let Some(user) = Ordinary::new()? else { return Ok(()) };
    let config = user.configured("g.toml", str::to_owned)?;
    let mut child = Command::new(crate::harness::program())
        .args(["aux", "--config"])
        .arg(&config)
        .stderr(std::process::Stdio::null())
        .spawn()
        .context("starting the auxiliary as root")?;
    let socket = user.dir.join("data/aux.ctl");
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while !listens(&socket) && std::time::Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    let asked = user.said(&["status", "--role", "aux"], &config, 1, &["aux.ctl", "as the user of the role or as root"]);
    child.kill()?;
    child.wait()?;
    asked
}

#[test]
fn a_group_may_look_and_only_the_own_user_and_root_change_something() -> Result<()> {
    let Some(user) = Ordinary::new()? else { return Ok(()) };
    let dir = user.dir.join("site");
    let plan = Plan {
        program: user.program.clone(),
        dir: dir.clone(),
        volumes: vec![("db".into(), 16 * MIB)],
        line: FAST,
        settings: small(),
    };
    let mut site = Site::new(plan)?;
    chown(&dir, Some(NOBODY), Some(NOBODY))?;
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755))?;
    site.start_all()?;
    site.settle(Duration::from_secs(30))?;
    let (member, stranger) = ((NOBODY - 1, NOBODY), (NOBODY - 1, NOBODY - 1));
    let config = site.config().display().to_string();
    let ask_by = |config: &str, (uid, gid): (u32, u32), words: &[&str]| -> Result<(Option<i32>, String)> {
        let (uid, gid) = (uid.to_string(), gid.to_string());
        let output = Command::new("setpriv")
            .args(["--reuid", &uid, "--regid", &gid, "--clear-groups"])
            .arg(user.program.with_file_name("build"))
            .args(words)
            .args(["--config", config])
            .current_dir(&dir)
            .output()?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    let ask = |who: (u32, u32), words: &[&str]| ask_by(&config, who, words);
    for role in Role::ALL {
        let socket = dir.join(format!("{}.ctl", role.word()));
        let found = std::fs::metadata(&socket).with_context(|| socket.display().to_string())?;
        ensure!(found.permissions().mode() & 0o777 == 0o660, "{}: {:o}", socket.display(), found.permissions().mode());
        let words = ["status", "--role", role.word()];
        ensure!(ask(member, &words)?.0 == Some(0), "{role:?}: {:?}", ask(member, &words)?);
        let (exit, text) = ask(stranger, &words)?;
        ensure!(exit == Some(1) && text.contains("permission denied; run this as the user of the role"), "{text}");
        // A configuration that has every role asked for a promotion.
        let crossed = std::fs::read_to_string(&config)?.replace("/dr.ctl", &format!("/{}.ctl", role.word()));
        let path = user.dir.join("crossed.toml");
        std::fs::write(&path, crossed)?;
        let (exit, text) = ask_by(&path.display().to_string(), member, &["promote", "--force"])?;
        let denied = "permission denied: promote changes this role, which only its own user (65534) and root may";
        ensure!(exit == Some(1) && text.contains(denied), "{role:?}: {exit:?}: {text}");
    }
    ensure!(ask(member, &["promote", "--plan"])?.0 == Some(0), "a plan changes nothing");
    ensure!(ask(stranger, &["promote"])?.0 == Some(1), "a stranger is not let in");
    site.stop(Role::Primary)?;
    let (exit, text) = ask((0, 0), &["promote"])?;
    ensure!(exit == Some(0), "root is obeyed by a role of somebody else: {text}");
    ensure!(ask(member, &["loss"])?.0 == Some(0), "a report changes nothing");
    for role in [Role::Dr, Role::Aux] {
        ensure!(site.stop(role)?.success(), "{}", site.log(role));
    }
    Ok(())
}
