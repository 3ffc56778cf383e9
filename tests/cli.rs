//! The command line as a script sees it: what each verb prints, and how it exits.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A directory that is removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Directory {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("farshore-cli-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("the temporary directory is writable");
        Directory(path)
    }

    /// A configuration in it, as `init` writes it, on ports of its own.
    fn configured(&self) -> PathBuf {
        // Roles make their own directories, and nothing above them.
        std::fs::create_dir_all(self.0.join("data")).expect("writable");
        let output = farshore(&["init", "orders", "--volume", "db=16MiB", "--dir", &self.text("data")]);
        assert_eq!(code(&output), 0, "{}", err(&output));
        let mut text = out(&output).replace("8GiB", "64MiB").replace("\"1024MiB\"", "\"192MiB\"");
        for port in ["10809", "10820", "10830", "10831"] {
            text = text.replace(port, &free_port().to_string());
        }
        self.write("farshore.toml", &text)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("the temporary directory is writable");
        path
    }

    fn text(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A child that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_farshore"));
    command.args(arguments).env_remove("FARSHORE_LOG").env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET");
    command
}

fn farshore(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the binary of this build runs")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it was not killed")
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a verb on a configuration file.
fn on(verb: &[&str], config: &Path) -> Output {
    farshore(&[verb, &["--config", &config.to_string_lossy()]].concat())
}

#[test]
fn every_verb_has_help_with_an_example() {
    let help = out(&farshore(&["--help"]));
    for verb in "init check aux dr primary status promote loss inspect demo".split(' ') {
        assert!(help.contains(&format!("  {verb} ")), "{verb} is listed: {help}");
        let output = farshore(&[verb, "--help"]);
        assert_eq!(code(&output), 0);
        assert!(out(&output).contains(&format!("Example:\n  farshore {verb}")), "{verb}: {}", out(&output));
    }
    assert!(help.contains("3 refused for safety"));
}

#[test]
fn a_wrong_command_line_is_status_2() {
    for arguments in [&["promot"][..], &[], &["status", "--jsno"], &["inspect", "everything", "x"], &["init"]] {
        assert_eq!(code(&farshore(arguments)), 2, "{arguments:?}");
    }
    assert_eq!(code(&farshore(&["--version"])), 0);
}

#[test]
fn what_init_writes_is_good_and_never_overwrites() {
    let dir = Directory::new();
    let config = dir.configured();
    let output = on(&["check"], &config);
    assert_eq!(code(&output), 0, "{}{}", out(&output), err(&output));
    assert!(out(&output).contains("group orders, 1 volume, protect order: good"), "{}", out(&output));
    let path = dir.text("new.toml");
    assert_eq!(code(&farshore(&["init", "g", "--output", &path])), 0);
    let before = std::fs::read(&path).expect("written");
    let output = farshore(&["init", "other", "--output", &path]);
    assert_eq!(code(&output), 3);
    assert!(err(&output).contains("is not overwritten"), "{}", err(&output));
    assert_eq!(std::fs::read(&path).expect("still there"), before);
    let output = farshore(&["init", "g", "--output", &dir.text("none/new.toml")]);
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("does not exist: make it first"), "{}", err(&output));
}

#[test]
fn check_names_file_line_and_key() {
    let dir = Directory::new();
    let config = dir.configured();
    let text = std::fs::read_to_string(&config).expect("written");
    let line = 1 + text.lines().position(|line| line.starts_with("streams")).expect("a line of its own");
    let wrong = dir.write("wrong.toml", &text.replace("\nstreams ", "\nstreems ").replace("16MiB", "16M"));
    let output = on(&["check"], &wrong);
    assert_eq!(code(&output), 2);
    let all = out(&output);
    assert!(all.contains(&format!("wrong.toml:{line}: dr.streems: unknown key; did you mean `streams`?")), "{all}");
    assert!(all.contains("volume.size: \"16M\" is ambiguous") && all.contains("2 errors"), "{all}");
    let json: Value = serde_json::from_str(&out(&on(&["check", "--json"], &wrong))).expect("one object");
    assert_eq!(json["ok"], false);
    assert_eq!(json["findings"][1]["line"], line);
    // No verb does anything with such a file.
    for verb in ["aux", "dr", "primary", "status", "promote", "loss"] {
        let output = on(&[verb], &wrong);
        assert_eq!(code(&output), 2, "{verb}: {}", err(&output));
        assert!(err(&output).contains(&format!(":{line}: dr.streems")), "{verb}: {}", err(&output));
    }
}

#[test]
fn a_file_that_is_not_there_or_not_text_is_status_2() {
    let dir = Directory::new();
    let output = on(&["check"], &dir.0.join("none.toml"));
    assert_eq!(code(&output), 2);
    assert!(err(&output).contains("none.toml: there is no such file"), "{}", err(&output));
    std::fs::write(dir.0.join("binary"), [0xff, 0xfe, 0]).expect("writable");
    let output = on(&["primary"], &dir.0.join("binary"));
    assert_eq!((code(&output), err(&output).contains("is not UTF-8")), (2, true));
    assert_eq!(code(&on(&["check"], &dir.0)), 2, "a directory");
}

#[test]
fn check_sees_a_port_in_use_and_a_volume_of_another_size() {
    let dir = Directory::new();
    let config = dir.configured();
    let text = std::fs::read_to_string(&config).expect("written");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port();
    let replaced: String =
        text.lines()
            .map(|line| {
                if line.starts_with("export") {
                    format!("export = \"127.0.0.1:{port}\"\n")
                } else {
                    format!("{line}\n")
                }
            })
            .collect();
    let busy = dir.write("busy.toml", &replaced);
    let output = on(&["check"], &busy);
    assert_eq!(code(&output), 2);
    assert!(out(&output).contains(&format!("dr.export: 127.0.0.1:{port}: the port is in use")), "{}", out(&output));
    std::fs::create_dir_all(dir.0.join("data")).expect("writable");
    std::fs::write(dir.0.join("data/db.img"), [0; 4096]).expect("writable");
    // As the start, which refuses to take it.
    for output in [on(&["check"], &config), on(&["primary"], &config)] {
        let said = out(&output) + &err(&output);
        assert_eq!(code(&output), 3, "{said}");
        assert!(said.contains("has 4096 bytes, but the volume has 16777216"), "{said}");
    }
}

#[test]
fn check_sees_two_roles_on_one_port() {
    let dir = Directory::new();
    let text = std::fs::read_to_string(dir.configured()).expect("written");
    let port = free_port();
    let same: String = text
        .lines()
        .map(|line| {
            if line.starts_with("listen  = \"") {
                format!("listen = \"127.0.0.1:{port}\"\n")
            } else {
                format!("{line}\n")
            }
        })
        .collect();
    let output = on(&["check"], &dir.write("same.toml", &same));
    assert_eq!(code(&output), 2);
    assert!(out(&output).contains("by another line of this file"), "{}", out(&output));
}

#[test]
fn check_asks_only_for_what_belongs_to_this_host() {
    let dir = Directory::new();
    let config = dir.configured();
    let text = std::fs::read_to_string(&config).expect("written");
    // An address of the documentation block, which no host has.
    let elsewhere: String = text
        .lines()
        .map(|line| {
            if line.starts_with("listen  = \"") { "listen = \"192.0.2.7:10830\"\n".into() } else { format!("{line}\n") }
        })
        .collect();
    let output = on(&["check"], &dir.write("open.toml", &elsewhere));
    assert_eq!(code(&output), 2);
    assert!(out(&output).contains("dr.listen: 192.0.2.7:10830 is a link to another host"), "{}", out(&output));
    let file = dir.write("elsewhere.toml", &format!("tls = \"off\"\n{elsewhere}"));
    let output = on(&["check"], &file);
    assert_eq!(code(&output), 0, "{}", out(&output));
    assert!(out(&output).contains("dr: runs on another host (192.0.2.7:10830)"), "{}", out(&output));
    for output in [on(&["check", "--role", "dr"], &file), on(&["dr"], &file)] {
        let said = out(&output) + &err(&output);
        assert_eq!(code(&output), 1, "{said}");
        assert!(said.contains("192.0.2.7 is not an address of this host"), "{said}");
    }
}

#[test]
fn certificates_are_made_once_for_their_owner_and_checked() {
    use std::os::unix::fs::PermissionsExt;

    let dir = Directory::new();
    let certs = dir.text("certs");
    let output = farshore(&["certs", "orders", "--dir", &certs, "--days", "9", "--host", "dr=dr.example"]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    for part in ["valid for 9 days", "/dr/*.pem", "[tls]", "ca-key.pem away from these hosts"] {
        assert!(out(&output).contains(part), "{part}: {}", out(&output));
    }
    let mode = |name: &str| std::fs::metadata(format!("{certs}/{name}")).expect(name).permissions().mode() & 0o777;
    for key in ["ca-key.pem", "primary/key.pem", "aux/key.pem", "dr/key.pem", "client/client-key.pem"] {
        assert_eq!(mode(key), 0o600, "{key}");
    }
    let again = farshore(&["certs", "orders", "--dir", &certs]);
    assert_eq!(code(&again), 3);
    assert!(err(&again).contains("nothing in it is overwritten"), "{}", err(&again));
    assert_eq!(code(&farshore(&["certs", "--dir", &dir.text("none")])), 2, "which group?");
    assert_eq!(code(&farshore(&["certs", "orders", "--dir", &dir.text("x"), "--host", "dr=a b"])), 2);

    let text = std::fs::read_to_string(dir.configured()).expect("written");
    let section = |role: &str| {
        let path = |name: &str| format!("{certs}/{role}/{name}");
        format!(
            "{text}\n[tls]\nca = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n",
            path("ca-cert.pem"),
            path("cert.pem"),
            path("key.pem")
        )
    };
    let output = on(&["check"], &dir.write("good.toml", &section("{role}")));
    assert_eq!(code(&output), 0, "{}", out(&output));
    assert!(out(&output).contains("tls: the certificates of dr can be used"), "{}", out(&output));
    let output = on(&["check", "--role", "aux"], &dir.write("wrong.toml", &section("dr")));
    assert_eq!(code(&output), 2);
    assert!(out(&output).contains("has to be farshore://orders/aux"), "{}", out(&output));
    let half = "tls = \"optional\"\nclient_certificates = \"yes\"\n";
    for (role, after) in [("primary", "[primary]\n"), ("dr", "[dr]                    # the far site\n")] {
        let text = section("{role}");
        assert_eq!(text.matches(after).count(), 1, "{after}");
        let file = dir.write("half.toml", &text.replace(after, &format!("{after}{half}")));
        for verb in [&["check", "--role", role][..], &[role]] {
            let output = on(verb, &file);
            let said = format!("{}{}", out(&output), err(&output));
            assert!(code(&output) == 2 && said.contains("write tls = \"required\""), "{verb:?}: {said}");
        }
    }
}

#[test]
fn whoever_may_write_from_outside_without_showing_anything_is_told_of_by_check_and_at_the_start() {
    let dir = Directory::new();
    let text = std::fs::read_to_string(dir.configured()).expect("written");
    let listens = text.lines().find(|line| line.starts_with("listen  = [")).expect("NBD clients connect somewhere");
    let outside = listens.replace("\"127.0.0.1:", "\"0.0.0.0:");
    let file = dir.write("outside.toml", &text.replace(listens, &outside));
    let line = text.lines().position(|line| line == listens).expect("it was there") + 1;
    let told = format!("outside.toml:{line}: primary.listen: 0.0.0.0:");
    let checked = on(&["check"], &file);
    assert!(code(&checked) == 0 && out(&checked).contains(&told), "{}", out(&checked));
    let mut primary = Running(
        command(&["primary", "--config", &file.to_string_lossy()]).stderr(Stdio::piped()).spawn().expect("it runs"),
    );
    let said = BufReader::new(primary.0.stderr.take().expect("piped")).lines().next().expect("a line").expect("text");
    assert!(said.contains(&told) && said.contains("can read and write the volumes"), "{said}");
}

#[test]
fn nobody_to_ask_is_status_1_and_says_where_was_asked() {
    let dir = Directory::new();
    let config = dir.configured();
    for verb in [&["status"][..], &["status", "--json"], &["promote"], &["promote", "--json", "--force"], &["loss"]] {
        let output = on(verb, &config);
        assert_eq!(code(&output), 1, "{verb:?}");
        assert!(err(&output).contains("dr.ctl: there is no control socket"), "{verb:?}: {}", err(&output));
        assert!(out(&output).is_empty());
    }
}

/// Answers control requests with one text; returns what was asked.
fn answering(socket: &Path, answer: &'static str) -> std::thread::JoinHandle<String> {
    let listener = UnixListener::bind(socket).expect("a short path");
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("somebody asks");
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).expect("a line");
        (&stream).write_all(answer.as_bytes()).expect("somebody listens");
        line
    })
}

#[test]
fn promote_prints_the_report_for_people_and_for_scripts() {
    const REPORT: &str = r#"{"group":"orders","epoch":2,"cut_seq":4711,"tail_seq":4720,"replayed":120,"fetched_from_aux":0,"missing":[{"seq":4712,"volume":"db","op":"write","offset":8192,"length":4096,"time":"2026-11-22T10:00:00.123456789Z","state":"sent"}],"missing_bytes":4096,"aux":"read","duration_seconds":0.31}"#;
    const ANSWER: &str = r#"{"ok":{"group":"orders","epoch":2,"cut_seq":4711,"tail_seq":4720,"replayed":120,"fetched_from_aux":0,"missing":[{"seq":4712,"volume":"db","op":"write","offset":8192,"length":4096,"time":"2026-11-22T10:00:00.123456789Z","state":"sent"}],"missing_bytes":4096,"aux":"read","duration_seconds":0.31}}
"#;
    let dir = Directory::new();
    let socket = dir.0.join("s");
    let asked = answering(&socket, ANSWER);
    let output = farshore(&["promote", "--control", &dir.text("s"), "--json", "--force"]);
    assert_eq!((code(&output), out(&output).as_str()), (0, &*format!("{REPORT}\n")), "{}", err(&output));
    assert_eq!(asked.join().expect("it answered"), "{\"verb\":\"promote\",\"plan\":false,\"force\":true}\n");
    std::fs::remove_file(&socket).expect("there");
    let asked = answering(&socket, ANSWER);
    let text = out(&farshore(&["promote", "--control", &dir.text("s"), "--plan"]));
    assert!(asked.join().expect("it answered").contains("\"plan\":true"));
    for part in
        ["orders would be promoted (nothing was changed): epoch 2", "seq 4711 of 4720", "1 writes, 4 KiB", "4712"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_refusal_is_status_3_and_says_what_would_make_it_safe() {
    let dir = Directory::new();
    let refusal = "{\"error\":\"the auxiliary does not answer; make sure that the old primary is off, then use --force\",\"exit\":3}\n";
    let asked = answering(&dir.0.join("s"), refusal);
    let output = farshore(&["promote", "--control", &dir.text("s"), "--json"]);
    asked.join().expect("it answered");
    assert_eq!(code(&output), 3);
    assert!(err(&output).contains("then use --force") && out(&output).is_empty(), "{}", err(&output));
}

#[test]
fn answers_that_make_no_sense_are_status_1() {
    for answer in ["", "\n", "garbage\n", "{\"ok\"", "{\"fine\":1}\n"] {
        let dir = Directory::new();
        let asked = answering(&dir.0.join("s"), answer);
        let output = farshore(&["status", "--control", &dir.text("s")]);
        asked.join().expect("it answered");
        assert_eq!(code(&output), 1, "{answer:?}: {}", out(&output));
    }
}

/// Waits for a child's control socket to answer.
fn status_within(config: &Path, role: &str) -> Output {
    let start = Instant::now();
    loop {
        let output = on(&["status", "--json", "--role", role], config);
        if code(&output) == 0 || start.elapsed() > Duration::from_secs(20) {
            return output;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_auxiliary_runs_answers_is_seen_by_check_and_stops_on_sigterm() {
    let dir = Directory::new();
    let config = dir.configured();
    let notify = std::os::unix::net::UnixDatagram::bind(dir.0.join("notify")).expect("a short path");
    let mut role = command(&["aux", "--config", &config.to_string_lossy()]);
    role.env("NOTIFY_SOCKET", dir.0.join("notify")).stderr(Stdio::piped());
    let mut child = Running(role.spawn().expect("the binary of this build runs"));
    let output = status_within(&config, "aux");
    assert_eq!(code(&output), 0, "{}", err(&output));
    let status: Value = serde_json::from_str(&out(&output)).expect("one object");
    assert_eq!((&status["role"], &status["group"]), (&Value::from("aux"), &Value::from("orders")));
    let mut buffer = [0; 256];
    let bytes = notify.recv(&mut buffer).expect("a datagram");
    assert!(buffer[..bytes].starts_with(b"READY=1\n"));
    assert!(out(&on(&["status"], &config)).starts_with("orders · aux · epoch 0"));
    let output = on(&["check", "--role", "aux"], &config);
    assert!(code(&output) == 0 && out(&output).contains("aux: is running on this host"), "{}", out(&output));
    let mut second = command(&["aux", "--config", &config.to_string_lossy()]);
    assert_eq!(code(&second.output().expect("it runs")), 1, "a second one on the same directory");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.0.id()).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
    assert_eq!(child.0.wait().expect("it ends").code(), Some(0));
    let log = std::io::read_to_string(child.0.stderr.take().expect("piped")).expect("text");
    assert!(!log.is_empty() && log.lines().all(|line| line.contains(" group=orders role=aux ")), "{log}");
}

#[test]
fn a_directory_of_another_group_is_refused_with_status_3() {
    let dir = Directory::new();
    let config = dir.configured();
    {
        let role = command(&["aux", "--config", &config.to_string_lossy()]).stderr(Stdio::null()).spawn();
        let _child = Running(role.expect("the binary of this build runs"));
        assert_eq!(code(&status_within(&config, "aux")), 0);
    }
    let text = std::fs::read_to_string(&config).expect("written").replace("\"orders\"", "\"invoices\"");
    let output = on(&["aux"], &dir.write("other.toml", &text));
    assert_eq!(code(&output), 3, "{}", err(&output));
    assert!(err(&output).contains("belongs to group \"orders\""), "{}", err(&output));
}

#[test]
fn inspect_reads_the_superblock_of_a_directory() {
    let dir = Directory::new();
    let config = dir.configured();
    let role = command(&["aux", "--config", &config.to_string_lossy()]).stderr(Stdio::null()).spawn();
    let _child = Running(role.expect("the binary of this build runs"));
    assert_eq!(code(&status_within(&config, "aux")), 0);
    let output = farshore(&["inspect", "superblock", &dir.text("data/aux"), "--json"]);
    assert_eq!(code(&output), 0, "{}{}", out(&output), err(&output));
    let first: Value = serde_json::from_str(out(&output).lines().next().expect("a line")).expect("an object");
    assert_eq!((&first["role"], &first["group"]), (&Value::from("aux"), &Value::from("orders")), "{first}");
    let output = farshore(&["inspect", "journal", &dir.text("farshore.toml")]);
    assert_eq!(code(&output), 1, "a file that is no journal");
    assert!(out(&output).contains("DAMAGE"), "{}", out(&output));
}

#[test]
fn output_that_nobody_reads_is_no_failure() {
    let mut child = command(&["init", "g"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(!err(&output).contains("panicked"), "{}", err(&output));
}

#[test]
fn the_systemd_units_pass_their_own_check() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("skipped: needs systemd-analyze");
        return;
    }
    let dir = Directory::new();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    let mut checked = 0;
    let service = |unit: &std::fs::DirEntry| unit.path().extension().is_some_and(|it| it == "service");
    for unit in std::fs::read_dir(units).expect("the units are there").flatten().filter(service) {
        let text = std::fs::read_to_string(unit.path()).expect("text");
        // The check wants to find the program; an installation has it there.
        let text = text.replace("/usr/local/bin/farshore", env!("CARGO_BIN_EXE_farshore"));
        // A template is checked as one of its instances.
        let name = unit.file_name().to_string_lossy().replace("@.", "@nbd0.");
        let path = dir.write(&name, &text.replace("%i", "nbd0"));
        let verify = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output();
        let verify = verify.expect("it runs");
        assert!(verify.status.success() && verify.stderr.is_empty(), "{}", err(&verify));
        // What it runs exists as a verb, with the options it names.
        let line = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("it runs something");
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        if name.contains('@') {
            assert_eq!(words[..4], ["attach", "--foreground", "--config", "/etc/farshore/farshore.toml"], "{line}");
        } else {
            assert_eq!((words.len(), words[1], words[2]), (3, "--config", "/etc/farshore/farshore.toml"), "{line}");
        }
        assert_eq!(code(&farshore(&[words[0], "--help"])), 0, "{line}");
        checked += 1;
    }
    assert_eq!(checked, 4);
}

#[test]
fn a_device_that_cannot_be_attached_says_why() {
    let dir = Directory::new();
    let config = dir.configured();
    for (words, exit, says) in [
        (vec!["attach", "/dev/sda", "db"], 2, "/dev/sda: not a device of the nbd driver"),
        (vec!["attach", "/dev/nbd0", "nothing"], 2, "there is no volume \"nothing\""),
        (vec!["attach", "/dev/nbd0", "nbds://host/x"], 2, "nbds://host/x"),
        (vec!["attach", "/dev/nbd0", "db", "--block-size", "513"], 2, "512, 1024, 2048 and 4096"),
        (vec!["detach", "/dev/null"], 2, "/dev/null: not a device of the nbd driver"),
    ] {
        let mut words = words;
        if words[0] == "attach" {
            words.extend(["--foreground", "--config", config.to_str().expect("a path")]);
        }
        let output = farshore(&words);
        assert_eq!(code(&output), exit, "{words:?}: {}", err(&output));
        assert!(err(&output).contains(says), "{words:?}: {}", err(&output));
    }
}

#[test]
fn what_is_no_file_is_not_waited_for_as_a_configuration() {
    let dir = Directory::new();
    let pipe = dir.0.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("makes a pipe");
    for (path, word) in [(pipe.as_path(), "a pipe"), (&dir.0, "a directory"), (Path::new("/dev/zero"), "a device")] {
        let output = on(&["check"], path);
        assert_eq!(code(&output), 2);
        assert!(err(&output).contains(&format!("it is {word}, not a file")), "{}", err(&output));
    }
}

#[test]
fn an_unusable_volume_name_is_one_error() {
    let dir = Directory::new();
    let text = std::fs::read_to_string(dir.configured()).expect("written");
    for name in ["../x", "\u{fc}", &"x".repeat(300)] {
        let file = dir.write(
            "name.toml",
            &text.replace("\"db\"", &format!("{name:?}")).replace("{ db =", &format!("{{ {name:?} =")),
        );
        let output = on(&["check"], &file);
        assert_eq!(code(&output), 2);
        assert!(out(&output).contains(": 1 error\n"), "{}", out(&output));
    }
}

#[test]
fn check_finds_places_that_cannot_work() {
    let dir = Directory::new();
    let text = std::fs::read_to_string(dir.configured()).expect("written");
    let data = dir.text("data");
    let (db, db_dr) = (format!("{data}/db.img"), format!("{data}/db-dr.img"));
    let table = |what: &str| {
        let (head, aux) = text.split_once("[aux]").expect("written");
        let (_, dr) = aux.split_once("[dr]").expect("written");
        format!("{head}[aux]\ntable = {what:?}\n[dr]{dr}")
    };
    let short = |name: &str, bytes: u64| {
        let file = std::fs::File::create(dir.0.join(name)).expect("the temporary directory is writable");
        file.set_len(bytes).expect("sparse");
        table(&dir.text(name))
    };
    let bunker = |text: String| text.replacen("protect = \"order\"", "protect = \"bunker\"", 1);
    for (changed, exit, words) in [
        (short("tiny", 4096), 2, "it has 4096 bytes, and a status table as configured takes 12599296; nothing"),
        (bunker(short("short", 64 << 20)), 2, "takes 1086341120; nothing can be kept there"),
        (short("fewer", 8 << 20), 0, "there will be only 87168 slots"),
        (bunker(short("enough", 1_086_341_120)), 0, "can be reached from here"),
        (text.replace(&db_dr, &format!("{data}/nowhere/db.img")), 1, "nowhere does not exist"),
        (text.replace(&db_dr, &db), 2, "is what primary.backing.db"),
        (text.replace(&format!("{data}/dr\""), &format!("{data}/mount/dr\"")), 1, "mount the file system"),
        (text.replace(&format!("{data}/dr\""), &format!("{data}/primary\"")), 2, "is what primary.dir"),
        (table("http://x"), 2, "expected nbd://host"),
        (table("relative/path"), 2, "is a relative path"),
        (table("/nonexist/t"), 0, "/nonexist does not exist"),
        (table("nbd://127.0.0.1:1/x"), 0, "nobody answers there"),
    ] {
        let output = on(&["check"], &dir.write("changed.toml", &changed));
        assert_eq!(code(&output), exit, "{words}: {}", out(&output));
        assert!(out(&output).contains(words), "{words}: {}", out(&output));
    }
}

/// What would make a start fail is an error of `check`, whichever role is asked for, and no role starts with it.
#[test]
fn places_that_two_things_would_use_are_errors_of_the_configuration() {
    let dir = Directory::new();
    let text = std::fs::read_to_string(dir.configured()).expect("written");
    let data = dir.text("data");
    let listen = text.lines().find(|line| line.starts_with("listen") && line.contains("orders.sock")).expect("written");
    let backing = |path: &str| text.replace(&format!("{data}/db.img"), path);
    let of_primary = |key: &str, value: &str| text.replacen("[primary]", &format!("[primary]\n{key} = {value}"), 1);
    for (changed, words) in [
        (backing(&format!("{data}/primary/superblock")), "keeps in primary.dir"),
        (backing(&format!("{data}/primary//./fifo")), "keeps in primary.dir"),
        (backing(&dir.text("data/primary.ctl")), "each needs its own"),
        (of_primary("metrics", &format!("\"unix:{data}/orders.sock\"")), "primary.listen: "),
        (text.replace(&format!("{data}/primary\""), "/\""), "is the root of the whole system"),
        (text.replace(listen, "listen = [\"127.0.0.1:7\", \"0.0.0.0:7\"]"), "each needs its own"),
    ] {
        assert_ne!(changed, text, "{words}");
        let config = dir.write("changed.toml", &changed);
        for role in ["primary", "aux", "dr"] {
            let output = on(&["check", "--role", role], &config);
            assert_eq!(code(&output), 2, "{words}, {role}: {}", out(&output));
            assert!(out(&output).contains(words), "{words}: {}", out(&output));
        }
        let output = on(&["primary"], &config);
        assert_eq!(code(&output), 2, "{words}: {}", err(&output));
        assert!(err(&output).contains(words), "{words}: {}", err(&output));
    }
    // Two hosts may use one name, also through a tunnel.
    let shared = text.replace(&format!("{data}/aux\""), &format!("{data}/primary\""));
    assert_ne!(shared, text);
    let output = on(&["check", "--role", "primary"], &dir.write("shared.toml", &shared));
    let said = out(&output);
    assert!(
        code(&output) == 0 && said.contains("aux.dir: ") && said.contains("if both roles run on one host"),
        "{said}"
    );
}

#[test]
fn a_link_that_leads_nowhere_is_no_volume_to_be_made() {
    let dir = Directory::new();
    let config = dir.configured();
    std::os::unix::fs::symlink(dir.0.join("unmounted/db.img"), dir.0.join("data/db.img")).expect("links");
    for output in [on(&["check", "--role", "primary"], &config), on(&["primary"], &config)] {
        let said = out(&output) + &err(&output);
        assert_eq!(code(&output), 3, "{said}");
        assert!(said.contains("is a symbolic link to") && said.contains("which is not there"), "{said}");
    }
    assert!(!dir.0.join("unmounted").exists());
}

#[test]
fn files_of_somebody_else_in_the_directory_of_a_role_are_told_of() {
    let dir = Directory::new();
    let config = dir.configured();
    std::fs::create_dir(dir.0.join("data/aux")).expect("writable");
    dir.write("data/aux/lost+found", "");
    let output = on(&["check", "--role", "aux"], &config);
    assert!(code(&output) == 0 && !out(&output).contains("are not farshore's"), "{}", out(&output));
    dir.write("data/aux/photo.jpg", "");
    let output = on(&["check", "--role", "aux"], &config);
    assert!(code(&output) == 0 && out(&output).contains("not farshore's (photo.jpg)"), "{}", out(&output));
    let role = command(&["aux", "--config", &config.to_string_lossy()]).stderr(Stdio::piped()).spawn();
    let mut child = Running(role.expect("the binary of this build runs"));
    assert_eq!(code(&status_within(&config, "aux")), 0);
    child.0.kill().expect("it runs");
    let log = std::io::read_to_string(child.0.stderr.take().expect("piped")).expect("text");
    assert!(log.contains("not farshore's (photo.jpg)"), "{log}");
    let output = on(&["check", "--role", "aux"], &config);
    assert!(!out(&output).contains("not farshore's"), "it has begun: {}", out(&output));
}

#[test]
fn the_losses_of_an_unknown_volume_are_not_nothing() {
    let dir = Directory::new();
    let status = r#"{"ok":{"role":"dr","group":"g","epoch":1,"volumes":[{"name":"db","size_bytes":4096,"clients":0},{"name":"log","size_bytes":4096,"clients":0}],"tail_seq":0,"cut_seq":0,"journal_seq":0,"applied_seq":0,"checkpoint_seq":0,"lag_writes":0,"lag_bytes":0,"lag_seconds":0.0,"pending_writes":0,"missing_writes":0,"spool_bytes":0,"spool_limit_bytes":0,"journal_bytes":0,"journal_limit_bytes":0,"synced":true,"batch":null,"promotion":null,"degraded":[],"links":[]}}
"#;
    let asked = answering(&dir.0.join("s"), status);
    let output = farshore(&["loss", "--control", &dir.text("s"), "--volume", "bd"]);
    asked.join().expect("it answered");
    assert_eq!(code(&output), 2, "{}", out(&output));
    assert!(err(&output).contains("there is db, log"), "{}", err(&output));
}

#[test]
fn the_units_start_a_role_again_for_as_long_as_it_takes() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    for role in ["aux", "dr", "primary"] {
        let text = std::fs::read_to_string(dir.join(format!("farshore-{role}.service"))).expect("a unit of each role");
        let (head, service) = text.split_once("[Service]").expect("a section");
        assert!(head.lines().any(|line| line == "StartLimitIntervalSec=0"), "{role}: the limit stands in [Unit]");
        assert!(service.lines().any(|line| line == "Restart=on-failure"), "{role}");
    }
}
