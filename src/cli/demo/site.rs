//! Three roles of one group as real processes on one machine, in one directory, with the slow line between primary
//! and DR. The demo, the end-to-end tests and the crash rounds all stand on it.
//!
//! ```text
//!   DIR/group.toml   DIR/{primary,aux,dr}/      DIR/{primary,aux,dr}.log
//!   DIR/VOLUME.img   DIR/VOLUME-dr.img          DIR/*.sock
//! ```

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::nbd::Client;
use crate::cli::client;
use crate::cli::relay::line::{Relay, Settings};
use crate::cluster::control::Request;
use crate::cluster::status::{AuxStatus, DrStatus, PrimaryStatus, PromoteReport, Status};
use crate::core::address::Address;

/// How long a role may take to answer, to start or to stop: a start waits for what an earlier process has left, too.
const PATIENCE: Duration = Duration::from_secs(45);
const ASK_EVERY: Duration = Duration::from_millis(5);

/// What a site is to be like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program that runs the roles.
    pub program: PathBuf,
    /// Made if it is not there.
    pub dir: PathBuf,
    /// Name and bytes.
    pub volumes: Vec<(String, u64)>,
    /// The line between primary and DR.
    pub line: Settings,
    /// Lines of the configuration, by section: `group`, `primary`, `aux`, `dr`.
    pub settings: Vec<(&'static str, String)>,
}

/// One of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Aux,
    Dr,
    Primary,
}

impl Role {
    pub const ALL: [Role; 3] = [Role::Aux, Role::Dr, Role::Primary];

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Role::Aux => "aux",
            Role::Dr => "dr",
            Role::Primary => "primary",
        }
    }
}

/// How a verb ended.
#[derive(Debug)]
pub struct Ended {
    pub exit: i32,
    pub out: String,
    pub errors: String,
}

/// The three roles. Those that still run are killed when it is dropped.
pub struct Site {
    pub plan: Plan,
    pub line: Relay,
    children: [Option<Child>; 3],
}

impl Site {
    /// Makes directory, configuration and line; starts nothing.
    pub fn new(plan: Plan) -> Result<Site> {
        std::fs::create_dir_all(&plan.dir).with_context(|| format!("making {}", plan.dir.display()))?;
        let replication = Address::Unix(plan.dir.join("dr.sock"));
        let line = Relay::start(&Address::Tcp("127.0.0.1:0".into()), &replication, plan.line)
            .context("starting the line between primary and DR")?;
        let site = Site { plan, line, children: [None, None, None] };
        site.configure()?;
        Ok(site)
    }

    /// Writes the configuration again, after `plan` was changed.
    pub fn configure(&self) -> Result<()> {
        let path = self.config();
        std::fs::write(&path, self.configuration()).with_context(|| format!("writing {}", path.display()))
    }

    /// The configuration that all roles read.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.path("group.toml")
    }

    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.plan.dir.join(name)
    }

    /// The backing file of a volume at the primary, or at DR.
    #[must_use]
    pub fn backing(&self, role: Role, volume: &str) -> PathBuf {
        self.path(&if role == Role::Dr { format!("{volume}-dr.img") } else { format!("{volume}.img") })
    }

    /// Where the primary, or DR once promoted, serves the volumes.
    #[must_use]
    pub fn export(&self, role: Role) -> Address {
        Address::Unix(self.path(if role == Role::Dr { "nbd-dr.sock" } else { "nbd.sock" }))
    }

    /// The same as a URI for other programs.
    #[must_use]
    pub fn uri(&self, role: Role, volume: &str) -> String {
        let Address::Unix(path) = self.export(role) else { unreachable!("exports are unix sockets here") };
        format!("nbd+unix:///{volume}?socket={}", path.display())
    }

    /// Starts a role and waits until it answers.
    pub fn start(&mut self, role: Role) -> Result<()> {
        self.launch(role)?;
        self.wait(role, "an answer", |_| true).map(|_| ())
    }

    /// Starts a role and does not wait.
    pub fn launch(&mut self, role: Role) -> Result<()> {
        ensure!(self.children[role as usize].is_none(), "{} runs already", role.word());
        let log = self.path(&format!("{}.log", role.word()));
        let log = OpenOptions::new().create(true).append(true).open(&log).context("opening the log of a role")?;
        let mut command = Command::new(&self.plan.program);
        command.arg(role.word()).arg("--config").arg(self.config());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("starting {}", self.plan.program.display()))?;
        self.children[role as usize] = Some(child);
        Ok(())
    }

    /// SIGKILL: the process has no say in it.
    pub fn kill(&mut self, role: Role) -> Result<()> {
        let mut child = self.children[role as usize].take().with_context(|| format!("{} does not run", role.word()))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGSTOP: the process stands still, its sockets stay open.
    pub fn freeze(&self, role: Role) -> Result<()> {
        self.signal(role, Signal::SIGSTOP)
    }

    /// SIGCONT: a frozen process goes on where it was.
    pub fn thaw(&self, role: Role) -> Result<()> {
        self.signal(role, Signal::SIGCONT)
    }

    fn signal(&self, role: Role, signal: Signal) -> Result<()> {
        let child = self.children[role as usize].as_ref().with_context(|| format!("{} does not run", role.word()))?;
        Ok(kill(Pid::from_raw(i32::try_from(child.id())?), signal)?)
    }

    /// SIGTERM.
    pub fn terminate(&self, role: Role) -> Result<()> {
        self.signal(role, Signal::SIGTERM)
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self, role: Role) -> Result<ExitStatus> {
        self.terminate(role)?;
        self.ended(role)
    }

    /// Waits for a role that ends by itself.
    pub fn ended(&mut self, role: Role) -> Result<ExitStatus> {
        let until = Instant::now() + PATIENCE;
        let child = self.children[role as usize].as_mut().with_context(|| format!("{} does not run", role.word()))?;
        loop {
            if let Some(status) = child.try_wait()? {
                self.children[role as usize] = None;
                return Ok(status);
            }
            ensure!(Instant::now() < until, "{} does not end\n{}", role.word(), self.log(role));
            std::thread::sleep(ASK_EVERY);
        }
    }

    /// Whether its process is still there.
    pub fn runs(&mut self, role: Role) -> bool {
        matches!(self.children[role as usize].as_mut().map(Child::try_wait), Some(Ok(None)))
    }

    /// The process of a role, while it runs.
    #[must_use]
    pub fn pid(&self, role: Role) -> Option<u32> {
        self.children[role as usize].as_ref().map(Child::id)
    }

    /// What a role says of itself.
    pub fn status(&self, role: Role) -> Result<Status> {
        let control = self.path(&format!("{}.ctl", role.word()));
        let answer = client::ask(&control, &Request::Status, Some(PATIENCE));
        let answer = answer.map_err(|failure| anyhow::anyhow!("{}: {}", role.word(), failure.text))?;
        Ok(serde_json::from_value(answer)?)
    }

    pub fn primary(&self) -> Result<PrimaryStatus> {
        match self.status(Role::Primary)? {
            Status::Primary(status) => Ok(*status),
            other => bail!("this is not a primary: {other:?}"),
        }
    }

    pub fn dr(&self) -> Result<DrStatus> {
        match self.status(Role::Dr)? {
            Status::Dr(status) => Ok(*status),
            other => bail!("this is not a DR site: {other:?}"),
        }
    }

    pub fn aux(&self) -> Result<AuxStatus> {
        match self.status(Role::Aux)? {
            Status::Aux(status) => Ok(*status),
            other => bail!("this is not an auxiliary: {other:?}"),
        }
    }

    /// Waits until a role's status is as wanted.
    pub fn wait(&mut self, role: Role, what: &str, wanted: impl Fn(&Status) -> bool) -> Result<Status> {
        self.wait_for(role, PATIENCE, what, wanted)
    }

    /// As [`Site::wait`], for longer things.
    pub fn wait_for(
        &mut self,
        role: Role,
        patience: Duration,
        what: &str,
        wanted: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        let until = Instant::now() + patience;
        loop {
            let found = self.status(role);
            if let Ok(status) = &found
                && wanted(status)
            {
                return found;
            }
            if !self.runs(role) {
                bail!("{} ended while {what} was waited for\n{}", role.word(), self.log(role));
            }
            if Instant::now() >= until {
                let shown = found.map_or_else(|error| format!("{error:#}"), |status| format!("{status:#?}"));
                bail!("{} after {patience:?}: no {what}\n{shown}\n{}", role.word(), self.log(role));
            }
            std::thread::sleep(ASK_EVERY);
        }
    }

    /// Waits until everything written is applied at DR, and both sides know it.
    pub fn settle(&mut self, patience: Duration) -> Result<PrimaryStatus> {
        let settled = |status: &Status| {
            matches!(status, Status::Primary(p)
                if p.lag_writes == 0 && p.batch.is_none() && p.inflight_writes == 0 && p.cut_seq == p.tail_seq)
        };
        let Status::Primary(primary) = self.wait_for(Role::Primary, patience, "lag of zero", settled)? else {
            bail!("the primary answers as another role");
        };
        let tail = primary.tail_seq;
        let applied = |status: &Status| matches!(status, Status::Dr(d) if d.applied_seq >= tail && d.synced);
        self.wait_for(Role::Dr, patience, "complete apply", applied)?;
        Ok(*primary)
    }

    /// Waits until there is a recovery point and both peers are up.
    pub fn ready(&mut self) -> Result<()> {
        let up = |status: &Status| {
            matches!(status, Status::Primary(p)
                if p.links.len() >= 2 && p.links.iter().all(|l| l.state == "up") && p.mode == p.protect)
        };
        self.wait(Role::Primary, "links to both peers", up)?;
        self.wait(Role::Dr, "a first recovery point", |status| matches!(status, Status::Dr(d) if d.synced)).map(|_| ())
    }

    /// Starts everything and waits until it is ready.
    pub fn start_all(&mut self) -> Result<()> {
        for role in Role::ALL {
            self.launch(role)?;
        }
        self.ready()
    }

    /// Runs a verb of the program on this site's configuration.
    pub fn verb(&self, words: &[&str]) -> Result<Ended> {
        let output = Command::new(&self.plan.program)
            .arg(words[0])
            .arg("--config")
            .arg(self.config())
            .args(&words[1..])
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("running {}", self.plan.program.display()))?;
        Ok(Ended {
            exit: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// `farshore promote --json`, which has to succeed.
    pub fn promote(&self, words: &[&str]) -> Result<PromoteReport> {
        let ended = self.verb(&[&["promote", "--json"], words].concat())?;
        ensure!(ended.exit == 0, "promote ended with {}: {}\n{}", ended.exit, ended.errors, self.log(Role::Dr));
        serde_json::from_str(&ended.out).context("promote --json prints one object")
    }

    /// A connection to a volume.
    pub fn client(&self, role: Role, volume: &str) -> Result<Client> {
        Client::connect(&self.export(role), volume).with_context(|| format!("connecting to {volume} by NBD"))
    }

    /// The end of what a role has logged, for messages.
    #[must_use]
    pub fn log(&self, role: Role) -> String {
        let path = self.path(&format!("{}.log", role.word()));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    fn configuration(&self) -> String {
        let dir = &self.plan.dir;
        let quoted = |path: PathBuf| toml::Value::String(path.to_string_lossy().into_owned()).to_string();
        let socket = |name: &str| toml::Value::String(format!("unix:{}", dir.join(name).display())).to_string();
        let extra = |section: &str| -> String {
            let lines = self.plan.settings.iter().filter(|(name, _)| *name == section);
            lines.map(|(_, line)| format!("{line}\n")).collect()
        };
        let backing = |role: Role| {
            let one = |(name, _): &(String, u64)| format!("{name} = {}", quoted(self.backing(role, name)));
            self.plan.volumes.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        let name = if extra("group").contains("name") { "" } else { "name = \"demo\"\n" };
        let mut text = format!("[group]\n{name}{}", extra("group"));
        for (name, bytes) in &self.plan.volumes {
            let _ = write!(text, "\n[[volume]]\nname = \"{name}\"\nsize = {bytes}\n");
        }
        for role in Role::ALL {
            let word = role.word();
            let _ = write!(text, "\n[{word}]\ndir = {}\n", quoted(dir.join(word)));
            let _ = writeln!(text, "control = {}", quoted(dir.join(format!("{word}.ctl"))));
            match role {
                Role::Aux => {
                    let _ = writeln!(text, "listen = {}", socket("aux.sock"));
                }
                Role::Dr => {
                    let _ = writeln!(text, "backing = {{ {} }}", backing(role));
                    let _ = writeln!(text, "listen = {}\naddress = \"{}\"", socket("dr.sock"), self.line.address());
                    let _ = writeln!(text, "export = [{}]", socket("nbd-dr.sock"));
                }
                Role::Primary => {
                    let _ = writeln!(text, "backing = {{ {} }}", backing(role));
                    let _ = writeln!(text, "listen = [{}]", socket("nbd.sock"));
                }
            }
            text.push_str(&extra(word));
        }
        text
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for mut child in self.children.iter_mut().filter_map(Option::take) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A directory of its own for a site, short enough for the paths of sockets; removed when dropped unless kept.
pub struct Scratch {
    pub path: PathBuf,
    pub keep: bool,
}

impl Scratch {
    /// A new one among the temporary files.
    pub fn new(name: &str) -> Result<Scratch> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("farshore-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Scratch { path, keep: false })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Whether a program is installed, on the path or where system programs stand.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir: PathBuf| dir.join(name)).find(|file: &PathBuf| file.is_file())
}
