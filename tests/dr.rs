//! The DR site as a process: killed and restarted while the primary writes, promoted, refused, lied to.
//! Three real processes on loopback in a directory of each test's own.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

const VOLUME_BYTES: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// A group with its directory; what was started is ended with it.
struct Site {
    dir: PathBuf,
    aux: Option<Child>,
    dr: Option<Child>,
    primary: Option<Child>,
}

impl Site {
    fn new(protect: &str) -> Site {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("dr-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&dir).expect("a directory");
        let at = dir.display();
        let text = format!(
            r#"
            [group]
            name = "g"
            protect = "{protect}"
            [[volume]]
            name = "v"
            size = "{VOLUME_BYTES}"
            [primary]
            dir = "{at}/p"
            backing = {{ v = "{at}/p.img" }}
            listen = ["unix:{at}/p.sock"]
            control = "{at}/p.ctl"
            fifo = {{ memory = "16MiB", disk = "64MiB" }}
            [aux]
            dir = "{at}/a"
            listen = "unix:{at}/a.sock"
            [dr]
            dir = "{at}/d"
            backing = {{ v = "{at}/d.img" }}
            listen = "unix:{at}/d.sock"
            export = ["unix:{at}/e.sock"]
            control = "{at}/d.ctl"
            journal = "20MiB"
            spool = "192MiB"
            "#
        );
        std::fs::write(dir.join("g.toml"), text).expect("a configuration");
        Site { dir, aux: None, dr: None, primary: None }
    }

    /// Aux, DR and primary, and the first sync done.
    fn running(protect: &str) -> Site {
        let mut site = Site::new(protect);
        site.aux = Some(site.start("aux", "a.sock"));
        site.dr = Some(site.start("dr", "d.ctl"));
        site.primary = Some(site.start("primary", "p.sock"));
        site.wait("first sync", |site| site.status("d.ctl").is_some_and(|status| status["synced"] == true));
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_farshore"));
        command.arg(verb).arg("--config").arg(self.path("g.toml"));
        command
    }

    /// Starts a role and waits until somebody listens on its socket.
    fn start(&self, role: &str, socket: &str) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(self.path(&format!("{role}.log")));
        let log = Stdio::from(log.expect("a log file"));
        let child = self.command(role).stdout(Stdio::null()).stderr(log).spawn().expect("the program runs");
        self.wait(role, |site| UnixStream::connect(site.path(socket)).is_ok());
        child
    }

    fn restart_dr(&mut self) {
        kill(&mut self.dr);
        self.dr = Some(self.start("dr", "d.ctl"));
        // For some milliseconds the socket of the process that was killed may still take connections.
        self.wait("DR answers", |site| site.status("d.ctl").is_some());
    }

    fn wait(&self, what: &str, mut done: impl FnMut(&Site) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < until, "{what}: not in time; {}", self.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn logs(&self) -> String {
        ["aux", "dr", "primary"]
            .map(|role| std::fs::read_to_string(self.path(&format!("{role}.log"))).unwrap_or_default())
            .join("\n")
    }

    fn status(&self, control: &str) -> Option<Value> {
        let mut stream = UnixStream::connect(self.path(control)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.write_all(b"{\"verb\":\"status\"}\n").ok()?;
        let mut line = Vec::new();
        let mut byte = [0];
        while stream.read(&mut byte).ok()? == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        serde_json::from_slice::<Value>(&line).ok().map(|answer| answer["ok"].clone())
    }

    /// Waits until DR has applied everything the primary knows of.
    fn wait_applied(&self) {
        self.wait("everything applied", |site| {
            let (Some(primary), Some(dr)) = (site.status("p.ctl"), site.status("d.ctl")) else { return false };
            primary["tail_seq"] == dr["applied_seq"] && primary["cut_seq"] == primary["tail_seq"]
        });
    }

    fn promote(&self, arguments: &[&str]) -> Output {
        self.command("promote").arg("--json").args(arguments).output().expect("the program runs")
    }

    /// Both volumes, byte for byte. Nobody may be writing.
    fn assert_equal(&self) {
        let (here, there) = (std::fs::read(self.path("p.img")), std::fs::read(self.path("d.img")));
        let (here, there) = (here.expect("the primary's volume"), there.expect("DR's volume"));
        let differs = here.chunks(4096).zip(there.chunks(4096)).position(|(one, other)| one != other);
        assert!(here.len() == there.len() && differs.is_none(), "block {differs:?} differs; {}", self.logs());
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        [&mut self.primary, &mut self.dr, &mut self.aux].into_iter().for_each(kill);
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// SIGKILL.
fn kill(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// SIGTERM; the exit status.
fn terminate(child: &mut Option<Child>) -> Option<i32> {
    let mut child = child.take()?;
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
    child.wait().expect("it ends").code()
}

/// A blocking NBD client of one export: the least that writes and reads.
struct Nbd(UnixStream);

impl Nbd {
    fn open(socket: &Path, export: &str) -> Nbd {
        let mut stream = UnixStream::connect(socket).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("sets");
        let mut hello = [0; 18];
        stream.read_exact(&mut hello).expect("a greeting");
        let mut ask = 3u32.to_be_bytes().to_vec();
        ask.extend(b"IHAVEOPT");
        ask.extend(1u32.to_be_bytes());
        ask.extend(u32::try_from(export.len()).expect("short").to_be_bytes());
        ask.extend(export.as_bytes());
        stream.write_all(&ask).expect("asks");
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).expect("the export is granted");
        assert_eq!(u64::from_be_bytes(answer[..8].try_into().expect("8 bytes")), VOLUME_BYTES);
        Nbd(stream)
    }

    fn ask(&mut self, command: u16, offset: u64, length: u32, data: &[u8]) -> std::io::Result<()> {
        let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
        request.extend(0u16.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        request.extend(data);
        self.0.write_all(&request)
    }

    fn answer(&mut self) -> std::io::Result<()> {
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply)?;
        assert_eq!(reply[4..8], [0; 4], "the request failed");
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.ask(1, offset, u32::try_from(data.len()).expect("short"), data)?;
        self.answer()
    }

    fn read_all(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        for offset in (0..VOLUME_BYTES).step_by(1 << 20) {
            self.ask(0, offset, 1 << 20, &[]).expect("asks");
            self.answer().expect("an answer");
            let mut piece = vec![0; 1 << 20];
            self.0.read_exact(&mut piece).expect("data");
            all.extend(piece);
        }
        all
    }
}

fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 24
}

/// Writes of random places and sizes, a TRIM now and then.
fn write_some(nbd: &mut Nbd, state: &mut u64, count: usize) -> std::io::Result<()> {
    for _ in 0..count {
        let length = [512, 4096, 4096, 12_288, 65_536, 7 * 512][(next(state) % 6) as usize];
        let offset = next(state) % (VOLUME_BYTES - length) / 512 * 512;
        if next(state).is_multiple_of(16) {
            nbd.ask(4, offset, u32::try_from(length).expect("short"), &[])?;
            nbd.answer()?;
        } else {
            let data: Vec<u8> = (0..length / 8).flat_map(|_| next(state).to_le_bytes()).collect();
            nbd.write(offset, &data)?;
        }
    }
    Ok(())
}

#[test]
fn a_dr_that_is_killed_again_and_again_ends_up_equal() {
    let mut site = Site::running("near");
    let socket = site.path("p.sock");
    let writer = std::thread::spawn(move || {
        let mut nbd = Nbd::open(&socket, "v");
        let mut state = 1;
        write_some(&mut nbd, &mut state, 3000).expect("writes go on without DR");
    });
    for round in 0..6 {
        std::thread::sleep(Duration::from_millis(100 + 70 * round));
        site.restart_dr();
    }
    writer.join().expect("every write was acknowledged");
    site.wait_applied();
    assert_eq!(terminate(&mut site.dr), Some(0), "{}", site.logs());
    assert_eq!(terminate(&mut site.primary), Some(0), "{}", site.logs());
    site.assert_equal();
}

#[test]
fn a_promotion_that_is_killed_is_finished_by_the_next_and_serves_the_same_bytes() {
    let mut site = Site::running("order");
    let mut nbd = Nbd::open(&site.path("p.sock"), "v");
    write_some(&mut nbd, &mut 7, 400).expect("writes");
    site.wait_applied();
    kill(&mut site.primary);
    let plan = site.promote(&["--plan"]);
    assert!(plan.status.success(), "{plan:?}");
    for pause_ms in [0, 1, 3, 6] {
        let mut asked = site.command("promote").stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("runs");
        std::thread::sleep(Duration::from_millis(pause_ms));
        site.restart_dr();
        let _ = asked.wait();
    }
    let done = site.promote(&[]);
    assert!(done.status.success(), "{done:?} {}", site.logs());
    let report: Value = serde_json::from_slice(&done.stdout).expect("a report");
    assert_eq!(report["epoch"], 2);
    let again = site.promote(&[]);
    let same: Value = serde_json::from_slice(&again.stdout).unwrap_or_default();
    assert_eq!(same["missing"], report["missing"], "{again:?}");
    assert_eq!(report["missing"], serde_json::json!([]), "everything had crossed");
    let primary = std::fs::read(site.path("p.img")).expect("the old primary's volume");
    let mut promoted = Nbd::open(&site.path("e.sock"), "v");
    assert!(promoted.read_all() == primary, "{}", site.logs());
    promoted.write(0, &[9; 4096]).expect("the new primary takes writes");
    site.restart_dr();
    site.wait("the export", |site| UnixStream::connect(site.path("e.sock")).is_ok());
    let again = Nbd::open(&site.path("e.sock"), "v").read_all();
    assert!(again[..4096] == [9; 4096] && again[4096..] == primary[4096..], "{}", site.logs());
    assert_eq!(terminate(&mut site.dr), Some(0), "{}", site.logs());
}

#[test]
fn without_the_auxiliary_a_promotion_needs_force() {
    let mut site = Site::running("order");
    write_some(&mut Nbd::open(&site.path("p.sock"), "v"), &mut 3, 50).expect("writes");
    site.wait_applied();
    kill(&mut site.primary);
    kill(&mut site.aux);
    let refused = site.promote(&[]);
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--force"), "{refused:?}");
    let forced = site.promote(&["--force"]);
    assert!(forced.status.success(), "{forced:?} {}", site.logs());
    let report: Value = serde_json::from_slice(&forced.stdout).expect("a report");
    assert_eq!((&report["aux"], &report["missing"]), (&"unreachable".into(), &serde_json::json!([])));
    site.assert_equal();
}

#[test]
fn one_process_a_directory_and_nobody_is_believed_who_talks_nonsense() {
    let mut site = Site::running("order");
    let second = site.command("dr").output().expect("runs");
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use"), "{second:?}");
    let mut state = 5;
    for length in [1, 31, 32, 100, 5000, 1 << 20] {
        let mut liar = UnixStream::connect(site.path("d.sock")).expect("connects");
        let noise: Vec<u8> = (0..length).map(|_| next(&mut state) as u8).collect();
        // It may be cut off in the middle.
        let _ = liar.write_all(&noise);
        let _ = liar.shutdown(std::net::Shutdown::Write);
        liar.set_read_timeout(Some(PATIENCE)).expect("sets");
        let ended = liar.read(&mut [0; 1]);
        assert!(matches!(ended, Ok(0) | Err(_)), "nobody answers nonsense");
    }
    let mut idle: Vec<UnixStream> =
        (0..50).map(|_| UnixStream::connect(site.path("d.sock")).expect("connects")).collect();
    idle[0].write_all(b"{\"verb\":").expect("writes");
    let mut long = UnixStream::connect(site.path("d.ctl")).expect("connects");
    let _ = long.write_all(&vec![b'x'; 1 << 20]);
    write_some(&mut Nbd::open(&site.path("p.sock"), "v"), &mut state, 100).expect("writes go on");
    site.wait_applied();
    assert_eq!(terminate(&mut site.dr), Some(0), "{}", site.logs());
    assert_eq!(terminate(&mut site.primary), Some(0), "{}", site.logs());
    site.assert_equal();
}

/// Writes that cross and are applied; then the power of DR fails, and the primary and the auxiliary are lost.
fn alone_with_its_disk(site: &mut Site) {
    write_some(&mut Nbd::open(&site.path("p.sock"), "v"), &mut 11, 300).expect("writes");
    site.wait_applied();
    kill(&mut site.dr);
}

/// Overwrites a piece of a file.
fn garble(path: &Path, offset: u64, length: usize) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(path).expect("it is there");
    file.write_all_at(&vec![0xA5; length], offset).expect("writes");
}

#[test]
fn a_journal_that_is_garbled_while_dr_is_down_is_promoted_by_force_only_and_the_report_says_so() {
    let mut site = Site::running("order");
    alone_with_its_disk(&mut site);
    kill(&mut site.primary);
    kill(&mut site.aux);
    garble(&site.path("d/journal"), 0, 20 << 20);
    site.dr = Some(site.start("dr", "d.ctl"));
    site.wait("DR answers", |site| site.status("d.ctl").is_some());
    let status = site.status("d.ctl").expect("it answers");
    assert!(status["degraded"].to_string().contains("DAMAGED"), "{status}");
    assert!(site.logs().contains("DAMAGED: the file journal does not hold the checkpoint"), "{}", site.logs());
    let refused = site.promote(&[]);
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("DAMAGED") && text.contains("--force"), "{text}");
    let forced = site.promote(&["--force"]);
    assert!(forced.status.success(), "{forced:?} {}", site.logs());
    let report: Value = serde_json::from_slice(&forced.stdout).expect("a report");
    assert!(report["incomplete"].as_str().is_some_and(|text| text.contains("not known")), "{report}");
    let stored = std::fs::read_to_string(site.path("d/loss-report.json")).expect("stored");
    assert!(stored.contains("incomplete"), "{stored}");
    let told = site.command("loss").output().expect("runs");
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(text.contains("INCOMPLETE") && !text.contains("nothing"), "{text}");
}

#[test]
fn the_primary_makes_good_what_dr_lost_on_its_disk() {
    let mut site = Site::running("order");
    alone_with_its_disk(&mut site);
    garble(&site.path("d/journal"), 0, 20 << 20);
    garble(&site.path("d/spool"), 0, 8 << 20);
    site.dr = Some(site.start("dr", "d.ctl"));
    write_some(&mut Nbd::open(&site.path("p.sock"), "v"), &mut 12, 100).expect("writes go on");
    site.wait("made good", |site| {
        site.status("d.ctl").is_some_and(|it| it["synced"] == true && !it["degraded"].to_string().contains("DAMAGED"))
    });
    site.wait_applied();
    let plan = site.promote(&["--plan"]);
    let report: Value = serde_json::from_slice(&plan.stdout).expect("a report");
    assert_eq!((&report["incomplete"], &report["missing"]), (&Value::Null, &serde_json::json!([])));
    assert_eq!(terminate(&mut site.dr), Some(0), "{}", site.logs());
    assert_eq!(terminate(&mut site.primary), Some(0), "{}", site.logs());
    site.assert_equal();
}

#[test]
fn a_log_that_is_gone_or_shorter_is_refused_by_name_at_the_start() {
    let mut site = Site::running("order");
    alone_with_its_disk(&mut site);
    let refused = |site: &Site, words: &[&str]| {
        let output = site.command("dr").output().expect("runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    };
    for (name, bytes) in [("journal", 20u64 << 20), ("spool", 192 << 20)] {
        let (path, aside) = (site.path("d").join(name), site.path("aside"));
        std::fs::rename(&path, &aside).expect("moves");
        refused(&site, &[name, "is missing", "Put the file back"]);
        assert!(!path.exists(), "none is made in its place");
        std::fs::copy(&aside, &path).expect("copies");
        for short in [bytes / 2, bytes - 512, 0] {
            std::fs::File::options().write(true).open(&path).expect("opens").set_len(short).expect("cuts");
            refused(&site, &[name, &format!("is {short} bytes long, it was made with {bytes}"), "truncated"]);
        }
        std::fs::rename(&aside, &path).expect("moves back");
    }
    site.dr = Some(site.start("dr", "d.ctl"));
    site.wait_applied();
}
