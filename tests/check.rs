//! `farshore check` and the start of a role judge alike: over many odd directories, volumes and sockets both end with the same
//! status, and the start says what `check` says. `check` waits for nothing and changes nothing.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

const ROLES: [&str; 3] = ["primary", "aux", "dr"];
const VOLUME_BYTES: u64 = 1 << 20;
/// How long a `check` or a start may take until it says something; far more than either takes.
const WITHIN: Duration = Duration::from_secs(30);

/// A directory with a configuration; removed when dropped.
struct Site(PathBuf);

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How a start ended, or that it came to serve.
struct Start {
    exit: i32,
    said: String,
}

impl Site {
    fn new() -> Site {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("farshore-check-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let site = Site(std::env::temp_dir().join(name));
        std::fs::create_dir_all(&site.0).expect("the temporary directory is writable");
        site.configure(|text| text);
        site
    }

    /// A copy of another one, as it is.
    fn like(other: &Site) -> Site {
        let site = Site::new();
        let from = format!("{}/.", other.0.display());
        let copied = Command::new("cp").args(["-a", "--sparse=always", &from]).arg(&site.0).status();
        assert!(copied.expect("cp is there").success());
        site.configure(|text| text);
        site
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    fn configure(&self, change: impl Fn(String) -> String) {
        let text = r#"[group]
name = "g"
[[volume]]
name = "db"
size = "1MiB"
[primary]
dir = "@/primary"
backing = { db = "@/primary.img" }
listen = ["unix:@/primary.sock"]
control = "@/primary.ctl"
metrics = "unix:@/primary.metrics"
fifo = { memory = "1MiB", disk = "64MiB" }
[aux]
dir = "@/aux"
listen = "unix:@/aux.sock"
control = "@/aux.ctl"
slots = 1024
[dr]
dir = "@/dr"
backing = { db = "@/dr.img" }
listen = "unix:@/dr.sock"
export = ["unix:@/export.sock"]
control = "@/dr.ctl"
spool = "192MiB"
journal = "4MiB"
"#;
        let text = change(text.replace('@', &self.0.display().to_string()));
        std::fs::write(self.at("farshore.toml"), text).expect("writable");
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_farshore"));
        command.args(words).arg("--config").arg(self.at("farshore.toml"));
        command.env_remove("FARSHORE_LOG").env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn check(&self, role: &str) -> Output {
        let child = self.command(&["check", "--json", "--role", role]).spawn().expect("the binary of this build runs");
        ended(child).expect("check waits for nothing")
    }

    /// Starts a role, and ends it as soon as it serves.
    fn start(&self, role: &str, signal: nix::sys::signal::Signal) -> Start {
        let place = self.at("notify");
        let _ = std::fs::remove_file(&place);
        let notify = UnixDatagram::bind(&place).expect("a place of our own");
        notify.set_read_timeout(Some(Duration::from_millis(10))).expect("a time");
        let mut child = self.command(&[role]).env("NOTIFY_SOCKET", &place).spawn().expect("the binary runs");
        let begun = Instant::now();
        let mut told = [0; 4096];
        let ready = loop {
            if notify.recv(&mut told).is_ok_and(|length| told[..length].starts_with(b"READY=1")) {
                break true;
            }
            if child.try_wait().expect("a child").is_some() || begun.elapsed() > WITHIN {
                break false;
            }
        };
        if ready {
            let pid = nix::unistd::Pid::from_raw(child.id().try_into().expect("a pid"));
            nix::sys::signal::kill(pid, signal).expect("it runs");
        }
        let output = ended(child).expect("it serves or ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Start { exit: if ready { 0 } else { output.status.code().expect("it was not killed") }, said }
    }

    /// Every name, and how long what it is of is.
    fn listing(&self) -> BTreeSet<(PathBuf, u64)> {
        fn walk(dir: &Path, found: &mut BTreeSet<(PathBuf, u64)>) {
            for entry in std::fs::read_dir(dir).expect("a directory").flatten() {
                let data = entry.metadata().expect("just listed");
                found.insert((entry.path(), if data.is_file() { data.len() } else { 0 }));
                if data.is_dir() {
                    walk(&entry.path(), found);
                }
            }
        }
        let mut found = BTreeSet::new();
        walk(&self.0, &mut found);
        found
    }

    /// Runs `check` and the start, and says how they differ.
    fn differ(&self, role: &str) -> Result<i32, String> {
        let before = self.listing();
        let checked = self.check(role);
        let told = String::from_utf8_lossy(&checked.stdout).into_owned();
        if self.listing() != before {
            return Err(format!("check has changed something: {told}"));
        }
        let start = self.start(role, nix::sys::signal::Signal::SIGKILL);
        let exit = checked.status.code().expect("it was not killed");
        let json: Value = serde_json::from_str(&told).map_err(|error| format!("{error}: {told}"))?;
        let errors = json["findings"].as_array().expect("a list").iter().filter(|it| it["level"] == "error");
        let errors: Vec<&str> = errors.map(|it| it["text"].as_str().expect("text")).collect();
        let shared = errors.first().is_none_or(|text| start.said.contains(text));
        if exit != start.exit || !shared || (exit == 0) != errors.is_empty() {
            return Err(format!(
                "check {exit}, start {}\n    check: {errors:?}\n    start: {}",
                start.exit, start.said
            ));
        }
        Ok(exit)
    }
}

/// Waits for a child, and ends it when it takes too long.
fn ended(mut child: Child) -> Option<Output> {
    let begun = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if begun.elapsed() > WITHIN {
            child.kill().expect("it runs");
            let output = child.wait_with_output().expect("a child");
            eprintln!("ended after {WITHIN:?}: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Some(child.wait_with_output().expect("a child"))
}

/// Cases that differ, and how often each status came about.
#[derive(Default)]
struct Tally {
    wrong: Vec<String>,
    exits: [usize; 4],
}

impl Tally {
    fn add(&mut self, site: &Site, role: &str, case: &str, wanted: Option<i32>) {
        match site.differ(role) {
            Ok(exit) if wanted.is_some_and(|wanted| wanted != exit) => {
                self.wrong.push(format!("{role}, {case}: both {exit}, wanted {wanted:?}"));
            }
            Ok(exit) => self.exits[usize::try_from(exit).expect("0 to 3")] += 1,
            Err(how) => self.wrong.push(format!("{role}, {case}: {how}")),
        }
    }

    fn finish(self) -> [usize; 4] {
        assert!(self.wrong.is_empty(), "{} differ:\n{}", self.wrong.len(), self.wrong.join("\n"));
        self.exits
    }
}

/// What may stand where a file is to be; and whether a role may not wait for it.
const ODD: [&str; 11] =
    ["gone", "empty", "half", "longer", "zeroed", "dangling", "dangling here", "loop", "directory", "pipe", "null"];

fn make_odd(what: &str, path: &Path) {
    let file = || std::fs::File::options().write(true).open(path).expect("a file");
    let length = std::fs::metadata(path).map_or(0, |data| data.len());
    match what {
        "empty" => return file().set_len(0).expect("shorter"),
        "half" => return file().set_len(length / 2).expect("shorter"),
        "longer" => return file().set_len(length + (1 << 20)).expect("longer"),
        "zeroed" => {
            return std::os::unix::fs::FileExt::write_all_at(&file(), &[0; 4096], 0).expect("writable");
        }
        _ => {}
    }
    match std::fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => std::fs::remove_dir_all(path).expect("there"),
        Ok(_) => std::fs::remove_file(path).expect("there"),
        Err(_) => {}
    }
    match what {
        "gone" => {}
        "dangling" => symlink("/nonexistent/z", path).expect("links"),
        "dangling here" => symlink(path.with_extension("elsewhere"), path).expect("links"),
        "loop" => symlink(path, path).expect("links"),
        "directory" => std::fs::create_dir(path).expect("writable"),
        "pipe" => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("writable"),
        "null" => symlink("/dev/null", path).expect("links"),
        "file" => std::fs::write(path, "x").expect("writable"),
        other => unreachable!("{other}"),
    }
}

/// A site whose roles have run once.
fn used() -> Site {
    let site = Site::new();
    for role in ROLES {
        let start = site.start(role, nix::sys::signal::Signal::SIGTERM);
        assert_eq!(start.exit, 0, "{role}: {}", start.said);
    }
    site
}

#[test]
fn whatever_stands_where_a_role_keeps_a_file_check_says_what_the_start_says() {
    let (used, mut tally) = (used(), Tally::default());
    for (role, names) in [
        ("primary", &["superblock", "intent.map", "intent.log", "fifo"][..]),
        ("aux", &["superblock", "table"]),
        ("dr", &["superblock", "journal", "spool"]),
    ] {
        for name in names {
            for what in ODD {
                let site = Site::like(&used);
                make_odd(what, &site.at(role).join(name));
                let wanted = matches!(what, "dangling" | "loop" | "directory" | "pipe" | "null").then_some(1);
                tally.add(&site, role, &format!("{name} {what}"), wanted);
            }
        }
    }
    // What a role finds beside that, and may be waited for.
    for (role, name) in
        [("primary", "fifo.new"), ("dr", "spool.new"), ("dr", "promoted.fifo"), ("dr", "loss-report.json")]
    {
        for what in ["pipe", "directory", "dangling", "file"] {
            let site = Site::like(&used);
            make_odd(what, &site.at(role).join(name));
            tally.add(&site, role, &format!("{name} {what}"), None);
        }
    }
    let exits = tally.finish();
    assert!(exits.iter().enumerate().all(|(exit, count)| exit == 2 || *count > 3), "{exits:?}");
}

#[test]
fn wherever_the_directory_of_a_role_leads_check_says_what_the_start_says() {
    let (used, mut tally) = (used(), Tally::default());
    for role in ROLES {
        for what in ["gone", "dangling", "dangling here", "loop", "pipe", "null", "file", "directory"] {
            for (how, site) in [("new", Site::new()), ("used", Site::like(&used))] {
                make_odd(what, &site.at(role));
                let wanted = match what {
                    "directory" | "gone" => (how == "new").then_some(0),
                    _ => Some(1),
                };
                tally.add(&site, role, &format!("directory {what}, {how}"), wanted);
            }
        }
        for (place, wanted) in [("nowhere/x", 1), ("a-file/x", 1), ("below/x", 0)] {
            let site = Site::new();
            std::fs::write(site.at("a-file"), "").expect("writable");
            std::fs::create_dir(site.at("below")).expect("writable");
            site.configure(|text| text.replace(&format!("/{role}\""), &format!("/{place}\"")));
            tally.add(&site, role, &format!("directory {place}"), Some(wanted));
        }
        let site = Site::like(&used);
        let other = if role == "dr" { "primary" } else { "dr" };
        std::fs::remove_dir_all(site.at(role)).expect("there");
        std::fs::rename(site.at(other), site.at(role)).expect("there");
        tally.add(&site, role, "the directory of another role", Some(3));
    }
    tally.finish();
}

#[test]
fn whatever_stands_where_a_volume_is_to_be_check_says_what_the_start_says() {
    let (used, mut tally) = (used(), Tally::default());
    let copy = |site: &Site, name: &str, bytes: u64| {
        let file = std::fs::File::create(site.at(name)).expect("writable");
        file.set_len(bytes).expect("sparse");
    };
    for role in ["primary", "dr"] {
        let image = format!("{role}.img");
        for what in ODD {
            for (how, site) in [("new", Site::new()), ("used", Site::like(&used))] {
                if how == "new" {
                    copy(&site, &image, VOLUME_BYTES);
                }
                make_odd(what, &site.at(&image));
                let wanted = match (how, what) {
                    (_, "loop" | "directory" | "pipe" | "null") => Some(1),
                    (_, "dangling" | "dangling here") | ("new", "half") => Some(3),
                    ("new", _) | (_, "longer") => Some(0),
                    _ => None,
                };
                tally.add(&site, role, &format!("volume {what}, {how}"), wanted);
            }
        }
        for (place, wanted) in [
            ("nowhere/x.img", 1),
            ("a-file/x.img", 1),
            ("own/x.img", 0),
            ("own/superblock", 2),
            ("own/../own/superblock", 2),
        ] {
            let site = Site::new();
            std::fs::write(site.at("a-file"), "").expect("writable");
            let place = place.replace("own", role);
            site.configure(|text| text.replace(&image, &place));
            // A configuration that names such a file itself is wrong for every role, and read before anything else.
            if place != format!("{role}/superblock") {
                tally.add(&site, role, &format!("volume {place}"), Some(wanted));
            }
        }
        let site = Site::new();
        let gone = format!("/dev/farshore-no-such-device-{}", std::process::id());
        site.configure(|text| text.replace(&site.text(&image), &gone));
        tally.add(&site, role, "no such device", Some(3));
        assert!(!Path::new(&gone).exists());
        // A file that the role keeps, by links, before and after it is made.
        for (how, site) in [("new", Site::new()), ("used", Site::like(&used))] {
            let _ = std::fs::remove_file(site.at(&image));
            symlink(site.at(role).join("superblock"), site.at(&image)).expect("links");
            tally.add(&site, role, &format!("a link to its superblock, {how}"), Some(2));
            let site = if how == "new" { Site::new() } else { Site::like(&used) };
            symlink(site.at(role), site.at("other")).expect("links");
            site.configure(|text| text.replace(&image, "other/superblock"));
            tally.add(&site, role, &format!("its superblock through a link, {how}"), Some(2));
        }
    }
    // Files that other roles keep: unmarked, and known by how they begin.
    for (role, kept) in [
        ("dr", "primary/superblock"),
        ("dr", "primary/intent.log"),
        ("dr", "primary/intent.map"),
        ("dr", "aux/table"),
        ("primary", "aux/table"),
        ("primary", "dr/superblock"),
    ] {
        let site = Site::like(&used);
        std::fs::remove_dir_all(site.at(role)).expect("there");
        let before = std::fs::read(site.at(kept)).expect("there");
        site.configure(|text| text.replace(&format!("{role}.img"), kept));
        tally.add(&site, role, &format!("volume {kept}"), Some(3));
        assert!(std::fs::read(site.at(kept)).expect("there") == before, "{kept} is as it was");
    }
    tally.finish();
}

#[test]
fn whatever_stands_where_a_socket_is_to_be_check_says_what_the_start_says() {
    let mut tally = Tally::default();
    for role in ROLES {
        let ends: &[&str] = if role == "primary" { &["sock", "ctl", "metrics"] } else { &["sock", "ctl"] };
        for end in ends {
            let socket = format!("{role}.{end}");
            for what in ["file", "directory", "pipe", "null", "dangling", "dangling here", "loop"] {
                let site = Site::new();
                make_odd(what, &site.at(&socket));
                tally.add(&site, role, &format!("{socket} {what}"), Some(1));
            }
            let site = Site::new();
            drop(UnixListener::bind(site.at(&socket)).expect("a place of our own"));
            tally.add(&site, role, &format!("{socket}, and nobody listens"), Some(0));
            for (what, wanted) in [("gone", 0), ("file", 1), ("dangling", 1), ("loop", 1), ("directory", 0)] {
                let site = Site::new();
                make_odd(what, &site.at("run"));
                site.configure(|text| text.replace(&socket, &format!("run/below/{socket}")));
                tally.add(&site, role, &format!("{socket} below {what}"), Some(wanted));
            }
        }
    }
    tally.finish();
}

/// The words of a start that has waited for whoever has the address are its own.
#[test]
fn a_socket_that_is_in_use_is_a_failure_for_both() {
    let site = Site::new();
    let _listener = UnixListener::bind(site.at("aux.sock")).expect("a place of our own");
    let (checked, start) = (site.check("aux"), site.start("aux", nix::sys::signal::Signal::SIGKILL));
    let told = String::from_utf8_lossy(&checked.stdout).into_owned();
    let named = format!("in use by another process, pid {}", std::process::id());
    assert_eq!((checked.status.code(), start.exit), (Some(1), 1), "{told}\n{}", start.said);
    assert!(told.contains(&named) && start.said.contains(&named), "{told}\n{}", start.said);
}

#[test]
fn nothing_waits_for_a_pipe_where_something_is_to_be_looked_into() {
    let site = Site::new();
    make_odd("pipe", &site.at("pipe"));
    for what in ["superblock", "journal", "table", "spool"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_farshore"));
        let child = command.args(["inspect", what]).arg(site.at("pipe")).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = ended(child.spawn().expect("it runs")).expect("inspect waits for nothing");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains("but a pipe"), "{what}: {said}");
    }
    let tls = format!("[tls]\nca = {0:?}\ncert = {0:?}\nkey = {0:?}\n", site.at("pipe"));
    site.configure(|text| format!("{text}{tls}"));
    for role in ROLES {
        assert_eq!(site.differ(role), Ok(2), "{role}");
    }
    // The status table of others.
    make_odd("pipe", &site.at("table"));
    site.configure(|text| {
        let (head, tail) = text.split_once("[aux]").expect("written");
        let (_, dr) = tail.split_once("[dr]").expect("written");
        format!("{head}[aux]\nslots = 1024\ntable = {:?}\n[dr]{dr}", site.at("table"))
    });
    assert_eq!(site.differ("primary"), Ok(0), "it starts without");
}
