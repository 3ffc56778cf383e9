//! The units of `systemd/`: systemd understands every line, and rates their sandboxes no worse than they are today.
//! Skipped where there is no systemd. `tools/units` runs them for real, `tools/reboot` with a line of /etc/fstab.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a role may be rated with at most, tenths: it needs the network, and no privilege.
const ROLE_EXPOSURE_MAX: u32 = 12;
/// What attach may be rated with: CAP_SYS_ADMIN, its device and netlink come on top.
const ATTACH_EXPOSURE_MAX: u32 = 18;

const ROLES: [&str; 3] = ["aux", "dr", "primary"];

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(source(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The units as installed, the attach template for one device, in a directory that is removed at the end.
struct Installed(PathBuf);

impl Installed {
    fn new(test: &str) -> Installed {
        let dir = std::env::temp_dir().join(format!("farshore-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let installed = Installed(dir);
        for role in ROLES {
            installed.put(&format!("farshore-{role}.service"), &text(&format!("farshore-{role}.service")));
        }
        installed.put("farshore-attach@nbd0.service", &text("farshore-attach@.service").replace("%i", "nbd0"));
        installed
    }

    fn put(&self, name: &str, text: &str) {
        // A program that is there.
        let text = text.replace("/usr/local/bin/farshore", env!("CARGO_BIN_EXE_farshore"));
        std::fs::write(self.0.join(name), text).expect("writes");
    }

    fn units(&self) -> Vec<(PathBuf, u32)> {
        let roles = ROLES.map(|role| (self.0.join(format!("farshore-{role}.service")), ROLE_EXPOSURE_MAX));
        [&roles[..], &[(self.0.join("farshore-attach@nbd0.service"), ATTACH_EXPOSURE_MAX)]].concat()
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        // What cannot be removed now is of no use to anybody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs systemd-analyze, if it is there and knows `word`.
fn analyze(word: &str, arguments: &[&str], unit: &Path) -> Option<Output> {
    let help = Command::new("systemd-analyze").arg("--help").output();
    if !help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains(word)) {
        eprintln!("skipped: there is no systemd-analyze that knows {word} here");
        return None;
    }
    let output = Command::new("systemd-analyze").args(arguments).arg(unit).output();
    Some(output.expect("it ran a moment ago"))
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn systemd_understands_every_line() {
    let installed = Installed::new("units-verify");
    for (unit, _) in installed.units() {
        let Some(output) = analyze("verify", &["verify", "--man=no"], &unit) else { return };
        let name = unit.file_name().expect("it has one").to_string_lossy().into_owned();
        let said = said(&output);
        // Of a unit that is wrong it says where; what it thinks of others on this host is their matter.
        let ours: Vec<&str> = said.lines().filter(|line| line.contains("farshore")).collect();
        assert!(ours.is_empty(), "{name}: {}", ours.join("\n"));
    }
}

#[test]
fn sandboxes_stay_as_tight_as_they_are() {
    let installed = Installed::new("units-security");
    for (unit, exposure_max) in installed.units() {
        let threshold = format!("--threshold={exposure_max}");
        let arguments = ["security", "--no-pager", "--offline=yes", &threshold];
        let Some(output) = analyze("--offline", &arguments, &unit) else { return };
        let said = said(&output);
        let rating = said.lines().last().unwrap_or_default();
        println!("{rating}");
        let loose: Vec<&str> = said.lines().filter(|line| line.starts_with('✗')).collect();
        assert!(
            output.status.success(),
            "over {}.{}: {rating}\n{}",
            exposure_max / 10,
            exposure_max % 10,
            loose.join("\n")
        );
    }
}

#[test]
fn the_user_of_the_units_is_one_that_sysusers_makes() {
    let made = text("farshore.sysusers.conf");
    assert!(made.lines().any(|line| line.starts_with("u farshore ")), "{made}");
    for unit in ROLES.map(|role| format!("farshore-{role}.service")).iter().chain([&"farshore-attach@.service".into()])
    {
        let text = text(unit);
        for line in ["User=farshore", "Group=farshore"] {
            assert!(text.lines().any(|found| found == line), "{unit} has no {line}");
        }
    }
    if Command::new("systemd-sysusers").arg("--version").output().is_err() {
        return eprintln!("skipped: there is no systemd-sysusers here");
    }
    let root = Installed::new("units-sysusers");
    std::fs::create_dir_all(root.0.join("etc")).expect("a directory");
    let output = Command::new("systemd-sysusers")
        .arg(format!("--root={}", root.0.display()))
        .arg(source("farshore.sysusers.conf"))
        .output()
        .expect("it ran a moment ago");
    let users = std::fs::read_to_string(root.0.join("etc/passwd")).unwrap_or_default();
    assert!(users.starts_with("farshore:"), "{users}: {}", said(&output));
}

#[test]
fn the_three_roles_are_started_alike() {
    let service = |role: &str| {
        let text = text(&format!("farshore-{role}.service"));
        let (_, service) = text.split_once("[Service]").expect("a service");
        service.replace(&format!("farshore {role} "), "farshore ROLE ")
    };
    for role in ROLES {
        assert_eq!(service(role), service("aux"), "farshore-{role}.service");
    }
}

#[test]
fn the_readme_and_the_unit_give_the_same_line_of_fstab() {
    let readme = include_str!("../README.md");
    let (_, line) = readme.split_once("echo '/dev/nbd0 ").expect("a line of fstab");
    let (line, _) = line.split_once("' >> /etc/fstab").expect("its end");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<String>>();
    let attach = text("farshore-attach@.service");
    let comment = attach.lines().find_map(|line| line.strip_prefix("#   /dev/nbd0 ")).expect("a line of fstab");
    assert_eq!(words(comment), words(line));
}

/// An unmount at a shutdown writes for as long as what `require` asks for is there.
#[test]
fn a_primary_stops_before_the_peers_of_its_host() {
    let primary = text("farshore-primary.service");
    assert!(primary.lines().any(|line| line == "After=farshore-aux.service farshore-dr.service"), "{primary}");
}
