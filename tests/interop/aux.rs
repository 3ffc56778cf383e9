//! The auxiliary as a process: its region through our client and the clients of others, fencing (I7), restarts,
//! kills at any moment, a clean stop.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use farshore::core::address::Address;
use farshore::nbd::region::{RegionEvent, TableTarget};

use super::harness::{Driver, Process, Scratch, noise, python_with_libnbd, run, tool};

const CONFIG: &str = r#"
[group]
name = "orders"

[[volume]]
name = "db"
size = "64MiB"

[aux]
dir = "DIR/aux"
listen = "unix:DIR/aux.sock"
control = "DIR/aux.ctl"
slots = 4096
"#;

struct Aux {
    scratch: Scratch,
    process: Process,
}

impl Aux {
    fn start() -> Aux {
        let scratch = Scratch::new();
        let dir = scratch.path("").display().to_string();
        let config = CONFIG.replace("DIR", dir.trim_end_matches('/'));
        std::fs::write(scratch.path("farshore.toml"), config).expect("room for a configuration");
        let process = Process(spawn(&scratch));
        let mut aux = Aux { scratch, process };
        aux.wait_until_ready();
        aux
    }

    /// SIGKILL, and a new process on the same directory.
    fn kill_and_restart(&mut self) {
        self.process.0.kill().expect("it runs");
        self.process.0.wait().expect("it ends");
        self.restart();
    }

    fn restart(&mut self) {
        self.process = Process(spawn(&self.scratch));
        self.wait_until_ready();
    }

    fn wait_until_ready(&mut self) {
        let until = Instant::now() + Duration::from_secs(60);
        // A killed predecessor's socket may still accept for a moment; it answers nothing.
        while self.try_ask(r#"{"verb":"status"}"#).is_err() {
            let ended = self.process.0.try_wait().expect("a child");
            assert!(ended.is_none(), "it ended at once, {ended:?}\n{}", self.log());
            assert!(Instant::now() < until, "it does not come up\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.path("aux.log")).unwrap_or_default()
    }

    fn socket(&self) -> PathBuf {
        self.scratch.path("aux.sock")
    }

    fn target(&self) -> TableTarget {
        TableTarget::Own { address: Address::Unix(self.socket()), group: "orders".into() }
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    fn ask(&self, request: &str) -> serde_json::Value {
        self.try_ask(request).expect("an answer of the control socket")
    }

    fn try_ask(&self, request: &str) -> std::io::Result<serde_json::Value> {
        let mut stream = UnixStream::connect(self.scratch.path("aux.ctl"))?;
        stream.write_all(request.as_bytes()).and_then(|()| stream.write_all(b"\n"))?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    fn stop(&mut self) -> std::process::ExitStatus {
        let id = self.process.0.id().to_string();
        run(Command::new("kill").args(["-TERM", &id]));
        self.process.0.wait().expect("it ends")
    }
}

fn spawn(scratch: &Scratch) -> Child {
    let log = File::options().create(true).append(true).open(scratch.path("aux.log")).expect("room for a log");
    Command::new(env!("CARGO_BIN_EXE_farshore"))
        .arg("aux")
        .arg("--config")
        .arg(scratch.path("farshore.toml"))
        .env("FARSHORE_LOG", "info")
        .stderr(log)
        .spawn()
        .expect("our own program")
}

fn refused(target: &TableTarget, epoch: u32, owner: u64) -> String {
    match Driver::open(target, epoch, owner).event() {
        RegionEvent::Failed { text, fenced: true } => text,
        other => panic!("epoch {epoch} of {owner} should be fenced: {other:?}"),
    }
}

#[test]
fn the_region_is_an_ordinary_export_to_others() {
    let aux = Aux::start();
    let (mut driver, size) = Driver::opened(&aux.target(), 1, 7);
    driver.write(4096, &noise(3, 8192), true).expect("a write");
    driver.flush().expect("a flush");

    if let Some(mut nbdinfo) = tool("nbdinfo") {
        let output = run(nbdinfo.args(["--list", "--json"]).arg(aux.uri("")));
        let info: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(info["exports"].as_array().expect("a list").len(), 1);
        let export = &info["exports"][0];
        assert_eq!((&export["export-name"], &export["is_read_only"]), (&"orders".into(), &true.into()));
        assert_eq!(export["export-size"], size);
        assert!(export["description"].as_str().expect("a text").contains("status table"));
    }
    if let Some(mut python) = python_with_libnbd() {
        // To ask about a writer's export fences nobody.
        let ask = "import nbd,sys\nh=nbd.NBD()\nh.set_opt_mode(True)\nh.connect_uri(sys.argv[1])\nh.opt_info()\n\
                   print(h.is_read_only())";
        let output = run(python.args(["-c", ask]).arg(aux.uri("orders/9/0000000000000009")));
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "False");
        driver.write(0, b"still mine", true).expect("epoch 1 is in force");
        assert_eq!(aux.ask(r#"{"verb":"status"}"#)["ok"]["epoch"], 1);
    }
    if let Some(mut nbdcopy) = tool("nbdcopy") {
        let copy = aux.scratch.path("copy");
        run(nbdcopy.arg(aux.uri("orders")).arg(&copy));
        let copy = std::fs::read(copy).expect("the copy");
        assert!(copy.len() as u64 == size && copy[4096..][..8192] == noise(3, 8192));
    }
    if let Some(mut io) = tool("qemu-io") {
        let mut view = io.args(["-f", "raw", "-c", "write 0 4k"]).arg(aux.uri("orders")).output().expect("it runs");
        assert!(!view.status.success(), "the view is read-only");
        // qemu as the next writer: an export of ours is an export like any other.
        let mut io = tool("qemu-io").expect("found above");
        let uri = aux.uri("orders/2/0000000000000002");
        run(io.args(["-f", "raw", "-c", "write -f -P 9 0 64k", "-c", "read -P 9 0 64k", "-c", "flush"]).arg(uri));
        view = tool("qemu-io")
            .expect("found above")
            .args(["-r", "-f", "raw", "-c", "read -P 9 0 64k"])
            .arg(aux.uri(""))
            .output()
            .expect("it runs");
        assert!(view.status.success());
        assert!(matches!(driver.event(), RegionEvent::Closed { .. }), "epoch 1 was cut off");
    }
}

#[test]
fn a_higher_epoch_cuts_the_old_writer_off_at_once_and_for_good() {
    let mut aux = Aux::start();
    let target = aux.target();
    let (mut old, _) = Driver::opened(&target, 1, 7);
    old.write(0, b"epoch one", true).expect("a write");
    let text = refused(&target, 1, 8);
    assert!(text.contains("second primary"), "{text}");
    old.write(0, b"epoch one", true).expect("the second primary disturbed nobody");

    let begun = Instant::now();
    let (mut new, _) = Driver::opened(&target, 2, 8);
    let ticket = old.start_write(0, vec![Bytes::from_static(b"too late!")], true);
    match old.event() {
        RegionEvent::Done { ticket: ended, result } => assert!(ended == ticket && result.is_err()),
        other => panic!("{other:?}"),
    }
    assert!(matches!(old.event(), RegionEvent::Closed { .. }));
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(new.read(0, 9).expect("a read"), "epoch one");

    let text = refused(&target, 1, 7);
    assert!(text.contains("fenced: epoch 2 is in force"), "{text}");
    aux.kill_and_restart();
    let text = refused(&target, 1, 7);
    assert!(text.contains("fenced: epoch 2 is in force"), "after a restart: {text}");
    refused(&target, 2, 7);
    let (mut again, _) = Driver::opened(&target, 2, 8);
    assert_eq!(again.read(0, 9).expect("a read"), "epoch one");
    let status = aux.ask(r#"{"verb":"status"}"#);
    assert_eq!((&status["ok"]["role"], &status["ok"]["epoch"]), (&"aux".into(), &2.into()));
    assert_eq!(status["ok"]["fenced"], 2);
    assert_eq!(status["ok"]["links"][0]["state"], "up");
}

#[test]
fn a_writer_that_reconnects_replaces_its_own_connection() {
    let aux = Aux::start();
    let (mut first, _) = Driver::opened(&aux.target(), 1, 7);
    let (mut second, _) = Driver::opened(&aux.target(), 1, 7);
    assert!(matches!(first.event(), RegionEvent::Closed { .. }));
    second.write(0, b"here", true).expect("a write");
}

/// Killed while a writer writes and epochs are granted: what was answered is there, and nobody who was
/// outdated gets in. (A kill keeps the page cache; power loss is the simulator's.)
#[test]
fn kill_at_any_moment_loses_no_answered_write_and_no_epoch() {
    let mut aux = Aux::start();
    let target = aux.target();
    for epoch in 1..=12u32 {
        if epoch > 1 {
            refused(&target, epoch - 1, 100 + u64::from(epoch));
        }
        let (mut driver, _) = Driver::opened(&target, epoch, 7);
        let answered = u64::from(epoch) * 5;
        for n in 1..=answered {
            driver.write(n * 512, &[epoch as u8; 512], n % 2 == 0).expect("a write");
        }
        for n in 0..20 {
            driver.start_write(1 << 17, vec![Bytes::from(vec![n; 70_000])], true);
        }
        let mut promoting = (epoch % 3 == 0).then(|| Driver::open(&target, epoch + 1, 8));
        std::thread::sleep(Duration::from_micros(u64::from(epoch) * 300));
        aux.kill_and_restart();
        drop((driver, promoting.take()));

        let (mut view, _) = Driver::opened(&target, 0, 0);
        let found = view.read(512, answered * 512).expect("a read");
        assert!(found.iter().all(|byte| *byte == epoch as u8), "epoch {epoch}: an answered write is gone");
        let in_force = aux.ask(r#"{"verb":"status"}"#)["ok"]["epoch"].as_u64().expect("a number");
        assert!(in_force >= u64::from(epoch), "epoch {epoch} was granted, {in_force} is in force");
        if in_force > u64::from(epoch) {
            // The promotion got through: whoever comes next has to go beyond it, as the loop does not.
            refused(&target, epoch, 7);
            return kill_after(&mut aux, in_force as u32);
        }
    }
}

/// The rest of the run above once another owner holds an epoch.
fn kill_after(aux: &mut Aux, in_force: u32) {
    aux.kill_and_restart();
    refused(&aux.target(), in_force, 7);
    let (mut driver, _) = Driver::opened(&aux.target(), in_force + 1, 7);
    driver.write(0, b"on", true).expect("a write");
}

#[test]
fn sigterm_stops_cleanly_and_leaves_no_socket_in_the_way() {
    let mut aux = Aux::start();
    let (mut driver, _) = Driver::opened(&aux.target(), 3, 7);
    driver.write(0, b"kept", false).expect("a write");
    assert_eq!(aux.stop().code(), Some(0));
    assert!(matches!(driver.event(), RegionEvent::Closed { .. }));
    aux.restart();
    let (mut driver, _) = Driver::opened(&aux.target(), 3, 7);
    assert_eq!(driver.read(0, 4).expect("a read"), "kept");
    assert_eq!(aux.ask(r#"{"verb":"stop"}"#)["ok"], true);
    assert_eq!(aux.process.0.wait().expect("it ends").code(), Some(0));
}

#[test]
fn a_directory_has_one_process_and_a_lost_superblock_is_not_made_anew() {
    let mut aux = Aux::start();
    let second = Command::new(env!("CARGO_BIN_EXE_farshore"))
        .args(["aux", "--config"])
        .arg(aux.scratch.path("farshore.toml"))
        .output()
        .expect("our own program");
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use"), "{second:?}");

    let (mut driver, _) = Driver::opened(&aux.target(), 1, 7);
    driver.write(0, b"FSHTABLE", true).expect("a write");
    aux.stop();
    std::fs::remove_file(aux.scratch.path("aux/superblock")).expect("it was there");
    let mut process = Command::new(env!("CARGO_BIN_EXE_farshore"))
        .args(["aux", "--config"])
        .arg(aux.scratch.path("farshore.toml"))
        .stderr(Stdio::piped())
        .spawn()
        .expect("our own program");
    let mut said = String::new();
    process.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    assert_eq!(process.wait().expect("it ends").code(), Some(3));
    assert!(said.contains("the epoch in force"), "{said}");
}

#[test]
fn the_control_socket_answers_nonsense_in_words() {
    let aux = Aux::start();
    assert!(aux.ask(r#"{"verb":"promote"}"#)["error"].as_str().expect("a text").contains("DR"));
    assert!(aux.ask("what?").get("error").is_some());
    assert!(aux.ask(&"x".repeat(5000)).get("error").is_some());
    assert_eq!(aux.ask(r#"{"verb":"status"}"#)["ok"]["group"], "orders");
}
