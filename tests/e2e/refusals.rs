//! Bad input: each ends in a message that says what and where, with the right exit status, and nothing lost.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use farshore::cli::demo::load::content;
use farshore::cli::demo::site::{Role, Site};
use farshore::core::address::Address;

use crate::harness::{FAST, Group, MIB};

const WHILE: Duration = Duration::from_millis(400);

/// Another primary with a directory of its own, that calls the peers of `group`.
fn stranger(group: &Group, name: &str, change: impl Fn(&str) -> String) -> Result<std::process::Child> {
    let text = std::fs::read_to_string(group.site.config())?;
    let at = text.find("[primary]").context("a primary is configured")?;
    let (head, primary) = text.split_at(at);
    let dir = group.site.plan.dir.display().to_string();
    let primary = primary.replace(&format!("{dir}/"), &format!("{dir}/{name}-"));
    let path = group.site.path(&format!("{name}.toml"));
    std::fs::write(&path, change(&format!("{head}{primary}")))?;
    let log = std::fs::File::create(group.site.path(&format!("{name}.log")))?;
    let child = std::process::Command::new(crate::harness::program())
        .args(["primary", "--config"])
        .arg(path)
        .stderr(log)
        .spawn()?;
    Ok(child)
}

/// Waits until the stranger's log has one of the words, and ends it.
fn told(group: &Group, name: &str, mut child: std::process::Child, words: &[&str]) -> Result<String> {
    let until = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        let log = std::fs::read_to_string(group.site.path(&format!("{name}.log")))?;
        let found = words.iter().all(|word| log.to_lowercase().contains(word));
        if found || std::time::Instant::now() > until {
            let _ = child.kill();
            child.wait()?;
            ensure!(found, "nothing of {words:?} is said:\n{log}");
            return Ok(log);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_second_primary_is_refused() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    let load = group.load(1)?;
    std::thread::sleep(WHILE);
    let child = stranger(&group, "second", str::to_owned)?;
    told(&group, "second", child, &["second primary"])?;
    std::thread::sleep(WHILE);
    let log = load.finish();
    ensure!(log.ends.is_empty(), "the first primary was disturbed: {:?}", log.ends);
    group.settle_and_compare(&log)
}

#[test]
fn another_group_is_refused() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    let log = group.load_for(2, WHILE)?;
    let child = stranger(&group, "other", |text| text.replace("name = \"demo\"", "name = \"other\""))?;
    told(&group, "other", child, &["group"])?;
    group.settle_and_compare(&log)
}

#[test]
fn a_volume_that_lost_its_end_is_refused_and_a_smaller_size_in_the_configuration_changes_nothing() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    let log = group.load_for(3, WHILE)?;
    group.site.settle(crate::harness::LONG)?;
    group.site.stop(Role::Primary)?;
    let config = std::fs::read_to_string(group.site.config())?;
    let path = group.site.backing(Role::Primary, "log");
    let whole = std::fs::read(&path)?;
    let backing = std::fs::OpenOptions::new().write(true).open(&path)?;
    // Whatever the configuration says.
    for size in [8 * MIB, 12 * MIB] {
        std::fs::write(group.site.config(), config.replace(&format!("size = {}", 8 * MIB), &format!("size = {size}")))?;
        backing.set_len(6 * MIB)?;
        group.site.launch(Role::Primary)?;
        let status = group.site.ended(Role::Primary)?;
        let said = group.site.log(Role::Primary);
        let last = said.lines().last().unwrap_or_default();
        ensure!(status.code() == Some(3), "it ended with {status}: {said}");
        ensure!(last.contains("log") && last.contains("the volume has 8388608"), "it does not say so: {last}");
        std::fs::write(&path, &whole)?;
    }
    std::fs::write(
        group.site.config(),
        config.replace(&format!("size = {}", 8 * MIB), &format!("size = {}", 4 * MIB)),
    )?;
    group.site.start(Role::Primary)?;
    group.site.ready()?;
    ensure!(group.site.primary()?.volumes[1].size_bytes == 8 * MIB, "a volume became smaller");
    ensure!(group.site.log(Role::Primary).contains("which it never gets"), "it does not say so");
    group.site.stop(Role::Primary)?;
    std::fs::write(group.site.config(), config)?;
    group.site.start(Role::Primary)?;
    group.site.ready()?;
    group.settle_and_compare(&log)
}

#[test]
fn a_directory_of_another_role_is_refused() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    for role in Role::ALL {
        group.site.stop(role)?;
    }
    let config = std::fs::read_to_string(group.site.config())?;
    let (aux, dr) = (group.site.path("aux").display().to_string(), group.site.path("dr").display().to_string());
    let swapped = config.replace(&format!("dir = \"{dr}\""), &format!("dir = \"{aux}\""));
    ensure!(swapped != config, "the directory is in the configuration");
    std::fs::write(group.site.config(), swapped)?;
    group.site.launch(Role::Dr)?;
    let status = group.site.ended(Role::Dr)?;
    let said = group.site.log(Role::Dr);
    ensure!(!status.success() && said.contains("aux"), "it ended with {status}: {said}");
    std::fs::write(group.site.config(), config)?;
    group.site.start_all()
}

#[test]
fn a_role_runs_once() -> Result<()> {
    let group = Group::started(FAST, "protect = \"order\"")?;
    for role in Role::ALL {
        let begun = Instant::now();
        let ended = group.site.verb(&[role.word()])?;
        let took = begun.elapsed();
        ensure!(ended.exit == 1, "a second {} ended with {}", role.word(), ended.exit);
        ensure!(took < Duration::from_secs(4), "a second {} took {took:?} to say so", role.word());
        let place = group.site.path(role.word()).join("superblock");
        let pid = group.site.pid(role).context("it runs")?;
        let said = format!("{} is in use by another process, pid {pid} (farshore)", place.display());
        ensure!(ended.errors.contains(&format!("{said}; it may be about to end: waiting")), "{ended:?}");
        ensure!(ended.errors.contains("for all of 2 seconds; only one process at a time"), "{ended:?}");
    }
    group.write(Role::Primary, "db", 0, 1)
}

#[test]
fn an_address_in_use_is_told_soon() -> Result<()> {
    let group = Group::started(FAST, "protect = \"order\"")?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let socket = group.site.path("nbd.sock").display().to_string();
    for address in [format!("unix:{socket}"), taken.local_addr()?.to_string()] {
        let begun = Instant::now();
        let own = format!("unix:{}", group.site.path("second-nbd.sock").display());
        let child = stranger(&group, "second", |text| text.replace(&own, &address))?;
        let log = told(&group, "second", child, &["for all of 2 seconds; stop that process"])?;
        ensure!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
        ensure!(log.contains(&address) && log.contains("waiting for up to 2 seconds"), "{log}");
    }
    Ok(())
}

/// A slip of the pen makes no tree of directories.
#[test]
fn a_demo_in_a_directory_whose_parent_is_missing_is_refused() -> Result<()> {
    let group = Group::new(FAST, "protect = \"order\"")?;
    let dir = group.site.path("none").join("x");
    let output =
        std::process::Command::new(crate::harness::program()).args(["demo", "--json", "--dir"]).arg(&dir).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2), "{}: {errors}", output.status);
    ensure!(errors.contains("none is not a directory that exists; make it first"), "{errors}");
    ensure!(!group.site.path("none").exists(), "it was made");
    Ok(())
}

/// Bytes that are not a protocol, on every socket there is.
#[test]
fn garbage_on_every_socket_does_no_harm() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    let load = group.load(4)?;
    for seed in 0..6 {
        for name in ["aux.sock", "dr.sock", "nbd.sock", "aux.ctl", "dr.ctl", "primary.ctl"] {
            let mut stream = UnixStream::connect(group.site.path(name)).with_context(|| format!("{name}: {seed}"))?;
            stream.set_write_timeout(Some(Duration::from_secs(2)))?;
            // A peer that hangs up in mid-sentence is part of the test.
            let _ = stream.write_all(&garbage(seed));
            if seed % 2 == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let Address::Tcp(address) = group.site.line.address() else { unreachable!("the line is TCP") };
        let _ = TcpStream::connect(address)?.write_all(&garbage(seed));
    }
    for role in Role::ALL {
        ensure!(group.site.runs(role), "{} ended\n{}", role.word(), group.site.log(role));
    }
    let log = load.finish();
    ensure!(log.ends.is_empty(), "clients were disturbed: {:?}", log.ends);
    group.settle_and_compare(&log)
}

/// Pure noise, long noise, nothing, and beginnings of the real protocols that go wrong.
fn garbage(seed: u64) -> Vec<u8> {
    match seed {
        0 => content(1, 100),
        1 => content(2, 300_000),
        2 => Vec::new(),
        3 => [b"LHSF".to_vec(), content(3, 5000)].concat(),
        4 => [b"FSHL\x01\x01\0\0".to_vec(), vec![0xff; 4096]].concat(),
        _ => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
    }
}

#[test]
fn a_damaged_superblock_is_named() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    for role in Role::ALL {
        group.site.stop(role)?;
    }
    for role in Role::ALL {
        let path = group.site.path(role.word()).join("superblock");
        let sound = std::fs::read(&path)?;
        // Both slots.
        let damaged: Vec<u8> = sound.iter().map(|byte| byte ^ 0x10).collect();
        std::fs::write(&path, &damaged)?;
        group.site.launch(role)?;
        let status = group.site.ended(role)?;
        let said = group.site.log(role);
        ensure!(!status.success() && said.contains("superblock"), "{} ended with {status}: {said}", role.word());
        std::fs::write(&path, &sound)?;
    }
    group.site.start_all()
}

/// What is done to a file of a role that does not run.
const DAMAGES: [&str; 5] = ["delete", "empty", "cut", "append", "flip"];

fn damage(path: &std::path::Path, how: &str) -> Result<()> {
    let bytes = std::fs::metadata(path)?.len();
    let file = std::fs::File::options().write(true).open(path)?;
    match how {
        "delete" => std::fs::remove_file(path)?,
        "empty" => file.set_len(0)?,
        "cut" => file.set_len(bytes / 2 + 700)?,
        "append" => std::os::unix::fs::FileExt::write_all_at(&file, &content(9, 5000), bytes)?,
        _ => {
            let mut sound = std::fs::read(path)?;
            sound.iter_mut().step_by(300).take(200).for_each(|byte| *byte ^= 0x20);
            std::fs::write(path, sound)?;
        }
    }
    Ok(())
}

/// `check` judges a directory with what the start judges it with.
#[test]
fn check_says_of_a_damaged_directory_what_the_start_says() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    let log = group.load_for(7, WHILE)?;
    group.settle_and_compare(&log)?;
    for role in [Role::Primary, Role::Dr, Role::Aux] {
        group.site.stop(role)?;
    }
    let mut refused = 0;
    for role in Role::ALL {
        let (dir, kept) = (group.site.path(role.word()), group.site.path("kept"));
        let files: Vec<_> =
            std::fs::read_dir(&dir)?.map(|file| file.map(|file| file.file_name())).collect::<Result<_, _>>()?;
        let files = files.into_iter().filter(|name| !name.to_string_lossy().contains("control"));
        for (name, how) in files.flat_map(|name| DAMAGES.map(|how| (name.clone(), how))) {
            let what = format!("{}/{}, {how}", role.word(), name.display());
            copy_dir(&dir, &kept)?;
            damage(&dir.join(&name), how)?;
            let check = group.site.verb(&["check", "--role", role.word()])?;
            group.site.launch(role)?;
            let until = Instant::now() + Duration::from_secs(20);
            while group.site.runs(role) && group.site.status(role).is_err() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(20));
            }
            let start = if group.site.runs(role) {
                group.site.kill(role)?;
                0
            } else {
                group.site.ended(role)?.code().context("it was not killed")?
            };
            let said = &check.out;
            ensure!(
                check.exit == start,
                "{what}: check {}, start {start}:\n{said}\n{}",
                check.exit,
                group.site.log(role)
            );
            refused += u32::from(start == 3);
            copy_dir(&kept, &dir)?;
        }
    }
    ensure!(refused > 10, "only {refused} of them are refused");
    Ok(())
}

/// The files in a directory, and nothing else, in another.
fn copy_dir(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to)?;
    let done = std::process::Command::new("cp").args(["-a", "--sparse=always"]).arg(from.join(".")).arg(to).status()?;
    ensure!(done.success(), "cp of {}", from.display());
    Ok(())
}

/// I8: what is damaged of the intent log is named, and no loss of power is made up for it.
#[test]
fn a_damaged_intent_log_is_named_with_file_and_offset() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"")?;
    let log = group.load_for(8, WHILE)?;
    group.settle_and_compare(&log)?;
    let path = group.site.path("primary").join("intent.log");
    for (how, words) in [
        ("block", "intent.log) is damaged, or was cut off, at offset 12288"),
        ("empty", "has no header: it is missing, or was emptied, at offset 0"),
    ] {
        ensure!(group.site.stop(Role::Primary)?.success());
        match how {
            "block" => {
                let file = std::fs::File::options().write(true).open(&path)?;
                std::os::unix::fs::FileExt::write_all_at(&file, &content(3, 4096), 12288)?;
            }
            _ => damage(&path, how)?,
        }
        group.site.start(Role::Primary)?;
        let said = group.site.log(Role::Primary);
        ensure!(said.contains(words), "{how}: {said}");
        ensure!(!said.contains("lost power"), "{how}: {said}");
        group.site.settle(crate::harness::LONG)?;
        group.compare_files()?;
    }
    Ok(())
}

/// A small filesystem in memory; `None` with a line where this user may not mount one.
struct Small<'a>(&'a Site);

impl Small<'_> {
    fn mount(site: &Site, bytes: u64) -> Result<Option<Small<'_>>> {
        std::fs::create_dir_all(site.path("small"))?;
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(site.path("small"))
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Ok(Some(Small(site)));
        }
        eprintln!("skipped: this user may not mount a small filesystem");
        Ok(None)
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path("small")).output();
    }
}

#[test]
fn a_dr_without_room_says_so_and_does_not_start() -> Result<()> {
    let mut group = Group::new(FAST, "protect = \"order\"")?;
    let plan = group.site.plan.clone();
    let other = Site::new(farshore::cli::demo::site::Plan { dir: group.site.path("x"), ..plan })?;
    let Some(_small) = Small::mount(&other, 32 * MIB)? else { return Ok(()) };
    let config = std::fs::read_to_string(group.site.config())?;
    let dir = format!("dir = \"{}\"", group.site.path("dr").display());
    ensure!(config.contains(&dir), "{config}");
    std::fs::write(
        group.site.config(),
        config.replace(&dir, &format!("dir = \"{}/dr\"", other.path("small").display())),
    )?;
    group.site.launch(Role::Dr)?;
    let status = group.site.ended(Role::Dr)?;
    let said = group.site.log(Role::Dr).to_lowercase();
    ensure!(status.code() == Some(1) && said.contains("space"), "it ended with {status}: {said}");
    Ok(())
}

#[test]
fn a_full_disk_under_dr_stops_nothing_and_loses_nothing() -> Result<()> {
    let mut group = Group::new(FAST, "protect = \"order\"")?;
    let plan = group.site.plan.clone();
    let other = Site::new(farshore::cli::demo::site::Plan { dir: group.site.path("x"), ..plan })?;
    let Some(small) = Small::mount(&other, 4 * MIB)? else { return Ok(()) };
    // DR's copy of `db` stands where only a quarter of it fits.
    let config = std::fs::read_to_string(group.site.config())?;
    let here = group.site.backing(Role::Dr, "db").display().to_string();
    let there = other.path("small").join("db-dr.img");
    std::fs::write(group.site.config(), config.replace(&here, &there.display().to_string()))?;
    group.site.start_all()?;
    let load = group.load(5)?;
    std::thread::sleep(3 * WHILE);
    let log = load.finish();
    ensure!(log.ends.is_empty(), "the primary's clients noticed: {:?}", log.ends);
    ensure!(log.submissions.iter().all(|one| one.failed.is_none()), "the primary failed a write");
    let said = group.site.log(Role::Dr).to_lowercase();
    ensure!(said.contains("space"), "DR does not say that its disk is full: {said}");
    if !group.site.runs(Role::Dr) {
        // It would end again at once, and check says so.
        let check = group.site.verb(&["check", "--role", "dr"])?;
        ensure!(check.exit == 1 && check.out.contains("wait to be applied to"), "{}: {}", check.exit, check.out);
    }
    // The operator makes room, and starts DR again if it has ended.
    let grown =
        std::process::Command::new("mount").args(["-o", "remount,size=64m"]).arg(small.0.path("small")).status()?;
    ensure!(grown.success(), "remount failed");
    if !group.site.runs(Role::Dr) {
        let _ = group.site.ended(Role::Dr)?;
        group.site.start(Role::Dr)?;
    }
    group.site.settle(crate::harness::LONG)?;
    let here = std::fs::read(group.site.backing(Role::Primary, "db"))?;
    ensure!(here == std::fs::read(&there)?, "the sides differ");
    Ok(())
}
