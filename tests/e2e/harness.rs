//! What the tests share: a group of two small volumes, the workload on it, and the comparison of its two sides.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use farshore::cli::demo::load::{self, Load, Log, Origin};
use farshore::cli::demo::nbd::Client;
use farshore::cli::demo::oracle::{self, Found, Oracle, Promise};
use farshore::cli::demo::site::{Plan, Role, Scratch, Site};
use farshore::cli::relay::line::Settings;
use farshore::cluster::status::PromoteReport;
use farshore::core::address::Address;
use farshore::core::ids::Volume;

pub const MIB: u64 = 1 << 20;
/// Everything has to be over by then, on a machine that does other things as well.
pub const LONG: Duration = Duration::from_secs(90);

/// 20 ms there and back, 100 Mbit/s.
pub const SLOW: Settings = Settings { delay: Duration::from_millis(10), bytes_per_second: 12.5e6 };
pub const FAST: Settings = Settings { delay: Duration::ZERO, bytes_per_second: f64::INFINITY };

/// What is tested: the program of this build, or the one that `FARSHORE_PROGRAM` names (another build of it).
pub fn program() -> PathBuf {
    std::env::var_os("FARSHORE_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_farshore").into(), PathBuf::from)
}

/// A group with its site; what is left of it is removed at the end.
pub struct Group {
    pub site: Site,
    pub origin: Origin,
    /// Volumes that stand on NBD servers, and where those are; the export has no name.
    pub servers: Vec<(Role, String, Address)>,
    _scratch: Scratch,
}

/// Small logs, so that starting costs little.
pub fn small() -> Vec<(&'static str, String)> {
    vec![
        ("primary", "fifo = { memory = \"64MiB\", disk = \"256MiB\" }".into()),
        ("aux", "slots = 262144".into()),
        ("dr", "journal = \"48MiB\"\nspool = \"192MiB\"".into()),
    ]
}

impl Group {
    /// Configured; nothing runs.
    pub fn new(line: Settings, group: &str) -> Result<Group> {
        let mut settings = small();
        settings.push(("group", group.into()));
        Group::with(line, settings)
    }

    pub fn with(line: Settings, settings: Vec<(&'static str, String)>) -> Result<Group> {
        Group::of(line, settings, &[("db", 16 * MIB), ("log", 8 * MIB)])
    }

    pub fn of(line: Settings, settings: Vec<(&'static str, String)>, volumes: &[(&str, u64)]) -> Result<Group> {
        let scratch = Scratch::new("e2e")?;
        let plan = Plan {
            program: program(),
            dir: scratch.path.clone(),
            volumes: volumes.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect(),
            line,
            settings,
        };
        Ok(Group { site: Site::new(plan)?, origin: Origin::default(), servers: Vec::new(), _scratch: scratch })
    }

    /// Configured, running and ready.
    pub fn started(line: Settings, group: &str) -> Result<Group> {
        let mut group = Group::new(line, group)?;
        group.site.start_all()?;
        Ok(group)
    }

    /// What the workload does by default: both volumes, overlapping, deep.
    pub fn load_plan(&self, seed: u64) -> load::Plan {
        let volumes = self.site.plan.volumes.iter().zip(0..);
        load::Plan {
            seed,
            address: self.site.export(Role::Primary),
            volumes: volumes.map(|((name, bytes), index)| (name.clone(), index, *bytes)).collect(),
            connections: 2,
            depth: 16,
            bytes_max: 32 << 10,
            pause: Duration::ZERO,
        }
    }

    pub fn load(&self, seed: u64) -> Result<Load> {
        Ok(Load::start(&self.load_plan(seed), &self.origin)?)
    }

    /// Runs the workload for a while, undisturbed.
    pub fn load_for(&self, seed: u64, time: Duration) -> Result<Log> {
        let load = self.load(seed)?;
        std::thread::sleep(time);
        let log = load.finish();
        ensure!(log.ends.is_empty(), "connections ended: {:?}", log.ends);
        let failed = log.submissions.iter().find(|one| one.failed.is_some());
        ensure!(failed.is_none(), "a request failed: {failed:?}");
        ensure!(log.acked() > 20, "only {} requests were answered", log.acked());
        Ok(log)
    }

    /// Waits for lag zero and compares both sides, as files and with the oracle.
    pub fn settle_and_compare(&mut self, log: &Log) -> Result<()> {
        let tail = self.site.settle(LONG)?.tail_seq;
        self.compare_files()?;
        let history = oracle::history(&self.site.plan.dir, true)?;
        let oracle = Oracle::new(log, &history, &self.site.plan.volumes, &[], Promise::Acknowledged)?;
        for (index, (name, bytes)) in self.site.plan.volumes.iter().enumerate() {
            let volume = Volume(index as u16);
            let want = oracle.image(volume, tail, vec![0; *bytes as usize]);
            oracle.compare(volume, tail, &want, &self.image(Role::Dr, name)?)?;
        }
        Ok(())
    }

    /// Puts a volume on an NBD server, before its role starts; `at` is the way that the role takes to it.
    pub fn put_on(&mut self, role: Role, volume: &str, at: &Address, direct: &Address) -> Result<()> {
        let uri = match at {
            Address::Unix(path) => format!("nbd+unix:///?socket={}", path.display()),
            Address::Tcp(place) => format!("nbd://{place}"),
        };
        self.put_at(role, volume, &uri, direct)
    }

    /// The same with a whole URI.
    pub fn put_at(&mut self, role: Role, volume: &str, uri: &str, direct: &Address) -> Result<()> {
        let config = self.site.config();
        let file = self.site.backing(role, volume).display().to_string();
        let text = std::fs::read_to_string(&config)?;
        ensure!(text.contains(&file), "{file} is not in {text}");
        std::fs::write(&config, text.replace(&file, uri))?;
        self.servers.push((role, volume.to_owned(), direct.clone()));
        Ok(())
    }

    /// What a volume holds, as its file or its server says.
    pub fn image(&self, role: Role, volume: &str) -> Result<Vec<u8>> {
        let on_server = self.servers.iter().find(|(of, name, _)| *of == role && name == volume);
        match on_server {
            Some((_, _, address)) => {
                let mut client = Client::connect(address, "")?;
                client.timeout(Some(LONG))?;
                Ok(client.read_all()?)
            }
            None => Ok(std::fs::read(self.site.backing(role, volume))?),
        }
    }

    /// Both sides hold the same bytes.
    pub fn compare_files(&self) -> Result<()> {
        for (name, _) in &self.site.plan.volumes {
            let (here, there) = (self.image(Role::Primary, name)?, self.image(Role::Dr, name)?);
            ensure!(here.len() == there.len(), "{name}: {} and {} bytes", here.len(), there.len());
            if let Some(at) = here.iter().zip(&there).position(|(a, b)| a != b) {
                let count = here.iter().zip(&there).filter(|(a, b)| a != b).count();
                anyhow::bail!("{name} differs between the sides in {count} bytes, the first at {at}");
            }
        }
        Ok(())
    }

    /// Holds a promotion against the oracle: records, report, and every byte as DR serves it.
    pub fn check(&self, log: &Log, report: &PromoteReport, promise: Promise) -> Result<Found> {
        let history = oracle::history(&self.site.plan.dir, report.aux == "read")?;
        let oracle = Oracle::new(log, &history, &self.site.plan.volumes, &[], promise)?;
        let found = oracle.report(report, promise)?;
        for (index, (name, bytes)) in self.site.plan.volumes.iter().enumerate() {
            let volume = Volume(index as u16);
            let want = oracle.image(volume, report.cut_seq, vec![0; *bytes as usize]);
            let got = self.site.client(Role::Dr, name)?.read_all()?;
            oracle.compare(volume, report.cut_seq, &want, &got)?;
        }
        Ok(found)
    }

    /// Writes one block and waits for the answer.
    pub fn write(&self, role: Role, volume: &str, offset: u64, byte: u8) -> Result<()> {
        let mut client = self.site.client(role, volume)?;
        client.timeout(Some(LONG))?;
        let data = [byte; 4096];
        client.call(farshore::cli::demo::nbd::Ask::Write { offset, data: &data, fua: false })?;
        client.close();
        Ok(())
    }
}
