//! README, "Back to the first host": by hand, with real processes, under a client that reconnects. Host A begins as the primary's
//! and host B as DR's; files and addresses of A and B keep their names, whoever uses them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use farshore::cli::demo::load::Random;
use farshore::cli::demo::nbd::{Ask, Client};
use farshore::cli::demo::site::Role;
use farshore::cluster::status::PromoteReport;
use farshore::core::address::Address;
use farshore::core::identity::ATTRIBUTE;
use rustix::fs::removexattr;

use crate::harness::{Group, LONG, SLOW};

const WHILE: Duration = Duration::from_millis(700);
const BLOCK: u64 = 4096;

fn block(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK as usize / 8)
}

/// What a client asked for and what was acknowledged: by volume and block, each write by its number, from 1.
#[derive(Default)]
struct Written {
    asked: u64,
    acked: u64,
    blocks: BTreeMap<(usize, u64), (u64, u64)>,
}

/// Writes one block after the other to whoever serves, and sends again what was not answered, as the kernel does.
struct Writer {
    written: Arc<Mutex<Written>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Writer {
    fn start(group: &Group, seed: u64) -> Writer {
        let written = Arc::new(Mutex::new(Written::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let places = [Role::Primary, Role::Dr].map(|role| group.site.export(role));
        let volumes = group.site.plan.volumes.clone();
        let (into, until) = (written.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let (mut random, mut clients, mut again) = (Random::new(seed), Vec::new(), None);
            while !until.load(Ordering::Relaxed) {
                let volume = random.below(volumes.len() as u64) as usize;
                let (volume, at) = again.unwrap_or((volume, random.below(volumes[volume].1 / BLOCK)));
                again = Some((volume, at));
                if clients.is_empty() {
                    clients = connect(&places, &volumes).unwrap_or_default();
                }
                let Some(client) = clients.get_mut(volume) else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                let mut written = into.lock().expect("nobody panics with it");
                match written.write(client, volume, at) {
                    Ok(()) => again = None,
                    Err(_) => clients.clear(),
                }
                drop(written);
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        Writer { written, stop, thread }
    }

    /// Until more writes are acknowledged.
    fn goes_on(&self) -> Result<()> {
        let acked = || self.written.lock().expect("nobody panics with it").acked;
        let (before, begun) = (acked(), std::time::Instant::now());
        while acked() < before + 50 {
            ensure!(begun.elapsed() < LONG, "nothing is acknowledged any more");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn end(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the writer does not panic");
        std::mem::take(&mut *self.written.lock().expect("nobody panics with it"))
    }
}

fn connect(places: &[Address], volumes: &[(String, u64)]) -> Option<Vec<Client>> {
    let all = |place| volumes.iter().map(|(name, _)| Client::connect(place, name)).collect::<std::io::Result<Vec<_>>>();
    let clients = places.iter().find_map(|place| all(place).ok())?;
    clients.iter().all(|client| client.timeout(Some(LONG)).is_ok()).then_some(clients)
}

impl Written {
    fn write(&mut self, client: &mut Client, volume: usize, at: u64) -> std::io::Result<()> {
        self.asked += 1;
        let number = self.asked;
        let acked = self.blocks.get(&(volume, at)).map_or(0, |it| it.1);
        self.blocks.insert((volume, at), (number, acked));
        client.call(Ask::Write { offset: at * BLOCK, data: &block(number), fua: false })?;
        self.blocks.insert((volume, at), (number, number));
        self.acked += 1;
        Ok(())
    }

    /// Nothing acknowledged is missing in what `host` serves or holds but what the report lists, which is not expected any more.
    fn check(&mut self, group: &Group, host: Role, report: Option<&PromoteReport>) -> Result<()> {
        let volumes = group.site.plan.volumes.clone();
        let mut images = Vec::new();
        for (name, _) in &volumes {
            images.push(match report {
                Some(_) => group.site.client(host, name)?.read_all()?,
                None => group.image(host, name)?,
            });
        }
        for (&(volume, at), (asked, acked)) in &mut self.blocks {
            let here = &images[volume][(at * BLOCK) as usize..][..BLOCK as usize];
            let number = u64::from_le_bytes(here[..8].try_into().expect("eight"));
            let name = &volumes[volume].0;
            ensure!(here == block(number) && number <= *asked, "{name}, block {at}: torn, or of nobody ({number})");
            let listed = report
                .is_some_and(|report| report.missing.iter().any(|it| &it.volume == name && it.offset == at * BLOCK));
            ensure!(number >= *acked || listed, "{name}, block {at}: {number}, acknowledged was {acked}");
            (*asked, *acked) = (number.max(*acked), number);
        }
        Ok(())
    }
}

/// The configuration in which A and B have exchanged their roles.
fn exchanged(group: &Group, text: &str) -> String {
    let dir = group.site.plan.dir.display().to_string();
    let mut text = text.to_owned();
    let names = group.site.plan.volumes.iter().map(|(name, _)| (format!("{name}.img"), format!("{name}-dr.img")));
    for (a, b) in names.chain([("nbd.sock".into(), "nbd-dr.sock".into())]) {
        text = text.replace(&format!("/{a}\""), "/<\"").replace(&format!("/{b}\""), &format!("/{a}\""));
        text = text.replace("/<\"", &format!("/{b}\""));
    }
    // On hosts of their own these have the same name, and are others.
    text.replace(&format!("dir = \"{dir}/primary\""), &format!("dir = \"{dir}/primary-on-b\""))
        .replace(&format!("dir = \"{dir}/dr\""), &format!("dir = \"{dir}/dr-on-a\""))
}

/// `rm -rf` of a directory.
fn empty(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Steps 2 to 5: the host that serves as a promoted DR becomes the primary's, `host` that of DR. `dirs`: those of the roles to be.
fn exchange(group: &mut Group, host: Role, config: &str, dirs: [&str; 2]) -> Result<()> {
    std::fs::write(group.site.config(), config)?;
    ensure!(group.site.stop(Role::Aux)?.success());
    empty(&group.site.path("aux"))?;
    group.site.start(Role::Aux)?;
    for dir in dirs {
        empty(&group.site.path(dir))?;
    }
    // One volume makes room for a new file, the other one is used again.
    std::fs::rename(group.site.backing(host, "db"), group.site.backing(host, "db").with_extension("before"))?;
    let marked = removexattr(group.site.backing(host, "log"), ATTRIBUTE).is_ok();
    if !marked {
        eprintln!("no attributes on this file system");
    }
    // The promoted DR runs still, so that its places are in use.
    let check = group.site.verb(&["check", "--role", "primary"])?;
    ensure!(check.exit < 2, "{check:?}");
    let promoted = group.site.stop(Role::Dr)?;
    ensure!(promoted.success(), "{promoted}\n{}", group.site.log(Role::Dr));
    group.site.start(Role::Primary)?;
    let check = group.site.verb(&["check", "--role", "dr"])?;
    ensure!(check.exit == 0, "{check:?}");
    group.site.start(Role::Dr)?;
    group.site.ready()?;
    let status = group.site.verb(&["status", "--role", "dr"])?;
    ensure!(status.out.contains("can be promoted"), "{status:?}");
    Ok(())
}

#[test]
fn the_roles_are_exchanged_and_back_as_the_readme_says_and_nothing_acknowledged_is_lost() -> Result<()> {
    // Directories of former lives stay for a while: small ones.
    let settings = vec![
        ("group", "protect = \"order\"".into()),
        ("primary", "fifo = { memory = \"16MiB\", disk = \"64MiB\" }".into()),
        ("aux", "slots = 16384".into()),
        ("dr", "journal = \"8MiB\"\nspool = \"192MiB\"".into()),
    ];
    let mut group = Group::with(SLOW, settings)?;
    group.site.start_all()?;
    let first = std::fs::read_to_string(group.site.config())?;
    let other = exchanged(&group, &first);
    let writer = Writer::start(&group, 1);
    std::thread::sleep(WHILE);
    group.site.kill(Role::Primary)?;
    let report = group.site.promote(&[])?;
    writer.goes_on()?;
    // A pause of the client, to look.
    let held = writer.written.clone();
    {
        let mut written = held.lock().expect("nobody panics with it");
        written.check(&group, Role::Dr, Some(&report)).context("after the promotion of B")?;
    }
    exchange(&mut group, Role::Primary, &other, ["primary-on-b", "dr-on-a"]).context("to B")?;
    writer.goes_on()?;
    {
        let mut written = held.lock().expect("nobody panics with it");
        group.site.settle(LONG)?;
        group.compare_files().context("A is DR of B")?;
        written.check(&group, Role::Primary, None)?;
    }
    writer.goes_on()?;
    {
        // The planned switch: nobody writes, the lag is 0.
        let mut written = held.lock().expect("nobody panics with it");
        group.site.settle(LONG)?;
        let status = group.site.verb(&["status", "--role", "primary"])?;
        ensure!(status.out.contains("lag       none"), "{status:?}");
        let status = group.site.stop(Role::Primary)?;
        ensure!(status.success(), "{status}\n{}", group.site.log(Role::Primary));
        let people = group.site.verb(&["promote", "--plan"])?;
        ensure!(people.exit == 0 && people.out.contains("lost             nothing\n"), "{people:?}");
        let plan = group.site.promote(&["--plan"])?;
        ensure!(plan.missing.is_empty() && plan.incomplete.is_none(), "{plan:?}");
        let report = group.site.promote(&[])?;
        ensure!(report.missing.is_empty() && report.incomplete.is_none(), "{report:?}");
        written.check(&group, Role::Primary, Some(&report)).context("after the promotion of A")?;
    }
    writer.goes_on()?;
    exchange(&mut group, Role::Dr, &first, ["primary", "dr"]).context("back to A")?;
    writer.goes_on()?;
    let mut written = writer.end();
    group.site.settle(LONG)?;
    group.compare_files().context("as in the beginning")?;
    written.check(&group, Role::Dr, None)?;
    ensure!(written.acked > 200, "only {} of {} writes", written.acked, written.asked);
    // And it is a group as any other.
    group.site.kill(Role::Primary)?;
    let report = group.site.promote(&[])?;
    ensure!(report.missing.is_empty(), "{report:?}");
    written.check(&group, Role::Dr, Some(&report))
}
