//! What `farshore check` looks at on a host: kernel, directories, volumes, addresses, space.

mod filling;
mod identity;
mod places;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::arguments::RoleName;
use super::check::{Findings, Weight};
use super::role::{judge_directory, words};
use super::{client, strangers};
use crate::cluster::config::{Backing, Config, ConfigError, DrConfig, OwnAux, PrimaryConfig};
use crate::cluster::control::{EXIT_FAILED, EXIT_USAGE, Refused, Request};
use crate::cluster::size::{exact_size, human_size};
use crate::cluster::status::Status;
use crate::core::address::{Address, is_one_port};
use crate::core::identity::too_small;
use crate::core::names::{SPOOL, SUPERBLOCK, own_files};
use crate::core::peer::Role;
use crate::io::{is_absent, listen, open, tls};
use crate::limits;

/// How long a role that runs may take to say what sizes its volumes have.
const STATUS_WITHIN: Duration = Duration::from_secs(5);

/// This host, as one configuration sees it.
pub struct Host<'a, 'f, 't> {
    config: &'a Config,
    findings: &'f mut Findings<'t>,
    /// Kept bound until the end, so that two roles with one address are found as well.
    bound: Vec<(OwnedFd, Address)>,
    needs: BTreeMap<u64, Need>,
    /// Directories and volumes of the roles of this host.
    places: Vec<places::Place>,
    table_seen: bool,
}

/// What is asked of one filesystem, bytes.
struct Need {
    at: PathBuf,
    free: u64,
    /// Preallocated by farshore: logs and queues.
    reserved: u64,
    /// Volumes, which may stay sparse.
    volumes: u64,
}

impl<'a, 'f, 't> Host<'a, 'f, 't> {
    pub fn new(config: &'a Config, findings: &'f mut Findings<'t>) -> Host<'a, 'f, 't> {
        Host { config, findings, bound: Vec::new(), needs: BTreeMap::new(), places: Vec::new(), table_seen: false }
    }

    /// io_uring, without which no role runs.
    pub fn kernel(&mut self) {
        if let Err(error) = io_uring::IoUring::new(8) {
            let text = format!(
                "io_uring is not to be had ({error}); Linux 6.1 or later is needed, with sysctl kernel.io_uring_disabled = 0, \
                 and in a container a seccomp profile that allows it"
            );
            self.findings.fail(EXIT_FAILED, &["host"], text);
            self.findings.next_role();
        }
    }

    /// Everything one role needs here; `asked`: the operator says that it runs here.
    pub fn role(&mut self, role: RoleName, asked: bool) {
        let word = role.word();
        if let Err(error) = self.section(role) {
            if asked {
                self.findings.fail(EXIT_USAGE, &[word], error.text);
            }
            return;
        }
        if !asked && let Some(address) = self.elsewhere(role) {
            self.findings.note(Weight::Ok, &[word], format!("runs on another host ({address}), not checked here"));
            return;
        }
        let running = self.running(role);
        self.certificates(role);
        let config = self.config;
        match role {
            RoleName::Primary => config.primary.iter().for_each(|primary| self.primary(primary, running)),
            RoleName::Dr => config.dr.iter().for_each(|dr| self.dr(dr, running)),
            RoleName::Aux => {
                config.aux.iter().filter_map(|aux| aux.own.as_ref()).for_each(|own| self.aux(own, running));
            }
        }
        self.findings.next_role();
    }

    /// Certificate and key of a role, and the keys it shares with NBD clients, as this host has them.
    fn certificates(&mut self, role: RoleName) {
        let peer = peer(role);
        if let Some(file) = self.config.shared_keys(peer) {
            match tls::check_keys(&file) {
                Ok(names) => {
                    let text = format!("the keys that {} shares with NBD clients can be used: {names}", role.word());
                    self.findings.note(Weight::Ok, &["tls", "psk"], text);
                }
                Err(error) => self.findings.ends(&["tls", "psk"], error),
            }
        }
        let Some(paths) = self.config.certificates(peer) else { return };
        match tls::check(&paths, Some(&self.config.name(peer)), &self.config.ends(peer)) {
            Ok(()) => {
                self.findings.note(Weight::Ok, &["tls"], format!("the certificates of {} can be used", role.word()))
            }
            Err(error) => self.findings.ends(&["tls"], error),
        }
    }

    fn section(&self, role: RoleName) -> Result<(), ConfigError> {
        match role {
            RoleName::Primary => self.config.need_primary().map(|_| ()),
            RoleName::Dr => self.config.need_dr().map(|_| ()),
            RoleName::Aux => self.config.need_aux().map(|_| ()),
        }
    }

    /// The address that shows that a role belongs to another host.
    fn elsewhere(&self, role: RoleName) -> Option<String> {
        let addresses: Vec<&Address> = match role {
            RoleName::Primary => self.config.primary.iter().flat_map(|primary| &primary.listen).collect(),
            RoleName::Dr => self.config.dr.iter().map(|dr| &dr.listen).collect(),
            RoleName::Aux => self.config.aux.iter().filter_map(|aux| aux.own.as_ref()).map(|own| &own.listen).collect(),
        };
        addresses.into_iter().find_map(|address| match address {
            Address::Tcp(text) => match resolve(text).ok()?.into_iter().map(TcpListener::bind).next()? {
                Err(error) if error.kind() == ErrorKind::AddrNotAvailable => Some(text.clone()),
                _ => None,
            },
            Address::Unix(_) => None,
        })
    }

    fn primary(&mut self, primary: &PrimaryConfig, running: bool) {
        let slots = self.config.aux.as_ref().map_or(limits::TABLE_SLOTS_DEFAULT, |aux| aux.slots);
        let reserved = primary.fifo.disk + slots * limits::RECORD_BYTES as u64;
        self.directory(RoleName::Primary, &primary.dir, reserved, running);
        let known = Known::of(&primary.dir, running.then_some(&primary.control));
        self.backing(RoleName::Primary, &known, &primary.backing);
        if !running {
            self.listening(RoleName::Primary, &primary.listen, &primary.control, primary.metrics.as_ref());
        }
        self.table(RoleName::Primary, running);
    }

    fn dr(&mut self, dr: &DrConfig, running: bool) {
        self.directory(RoleName::Dr, &dr.dir, dr.journal + dr.spool, running);
        self.journal(dr);
        self.spool(dr);
        let known = Known::of(&dr.dir, running.then_some(&dr.control));
        self.backing(RoleName::Dr, &known, &dr.backing);
        if !running {
            self.listening(RoleName::Dr, std::slice::from_ref(&dr.listen), &dr.control, dr.metrics.as_ref());
            self.filling(dr);
            // A start does without them, and a promotion does not.
            dr.export.iter().for_each(|address| self.address(EXIT_USAGE, &["dr", "export"], address));
        }
        self.journal_beside_table(dr);
        self.table(RoleName::Dr, running);
    }

    /// What is known of each order that is not applied yet is held in memory: as many as the journal has room for.
    fn journal(&mut self, dr: &DrConfig) {
        let orders = dr.journal / limits::RECORD_BYTES as u64;
        let [usual, promotion, plan] = limits::DR_RECORD_MEMORY_BYTES.map(|each| human_size(orders * each));
        let text = format!(
            "room for {orders} orders; if so many wait for their data, DR takes {usual} of memory for them (beside {}), \
             {promotion} while it is promoted, {plan} for a plan of that",
            human_size(limits::DR_MEMORY_BYTES)
        );
        self.findings.note(Weight::Ok, &["dr", "journal"], text);
    }

    /// The journal keeps the size that it was made with, whatever the configuration says since.
    fn journal_beside_table(&mut self, dr: &DrConfig) {
        let made = std::fs::metadata(dr.dir.join("journal")).map_or(0, |data| data.len());
        let slots = self.config.aux.as_ref().map_or(0, |aux| aux.slots);
        let enough = limits::journal_beside_table(slots);
        if made > 0 && made < enough {
            let text = format!(
                "was made with {}, which is too little for a status table of {slots} slots: a promotion may find no room for \
                 its orders. Make the table anew with fewer slots, or empty this directory and the volumes: a new first copy is made, with \
                 a journal of {} or more",
                human_size(made),
                human_size(enough)
            );
            self.findings.fail(EXIT_USAGE, &["dr", "journal"], text);
        }
    }

    /// A batch is applied all or nothing: it waits in the spool as a whole, and stalls when it does not fit and cannot grow.
    fn spool(&mut self, dr: &DrConfig) {
        let volumes = self.config.volumes.iter().map(|volume| volume.size).sum();
        let enough = limits::spool_for_any_batch(volumes);
        let known = identity::superblock(&dr.dir.join(SUPERBLOCK));
        // It may have grown beyond that.
        let made = known.map_or(0, |known| known.spool().size);
        if made > 0 && made != dr.spool {
            let text = format!(
                "the spool in {} has {}; the next start of DR resizes it to {} with what is in it, and leaves it if that \
                 does not fit",
                dr.dir.display(),
                human_size(made),
                human_size(dr.spool)
            );
            self.findings.note(Weight::Ok, &["dr", "spool"], text);
        }
        let most = dr.spool_max.unwrap_or(u64::MAX).max(dr.spool);
        if most < enough {
            let text = format!(
                "{}: after an outage that outgrows primary.fifo, more than about this much changed data does not cross \
                 until it is raised; \"{}MiB\" holds any batch of these volumes",
                human_size(most),
                enough >> 20
            );
            self.findings.note(Weight::Warning, &["dr", "spool"], text);
        } else if dr.spool < enough && !spool_can_grow(dr) {
            let text = format!(
                "{}, and its file system has {} free, too little for it to grow where a batch needs more: make room there, or \
                 raise it; \"{}MiB\" holds any batch of these volumes",
                human_size(dr.spool),
                human_size(open::free_bytes(&dr.dir)),
                enough >> 20
            );
            self.findings.note(Weight::Warning, &["dr", "spool"], text);
        } else if dr.spool < enough {
            let text = format!(
                "{}, and it grows where a batch needs more{}; \"{}MiB\" holds any batch of these volumes",
                human_size(dr.spool),
                if dr.spool_max.is_none() { ", as long as as much again stays free on its file system" } else { "" },
                enough >> 20
            );
            self.findings.note(Weight::Ok, &["dr", "spool"], text);
        }
    }

    fn aux(&mut self, own: &OwnAux, running: bool) {
        let (slots, payload) = self.config.aux.as_ref().map_or((0, 0), |aux| (aux.slots, aux.payload));
        self.directory(RoleName::Aux, &own.dir, slots * 96 + payload, running);
        if !running {
            let metrics = self.config.aux.as_ref().and_then(|aux| aux.metrics.as_ref());
            self.listening(RoleName::Aux, std::slice::from_ref(&own.listen), &own.control, metrics);
        }
    }

    /// Whether the role runs already, so that its ports and volumes are in use by itself; otherwise, whether its sockets have
    /// directories.
    fn running(&mut self, role: RoleName) -> bool {
        let Some((control, sockets)) = self.sockets(role) else { return false };
        let word = role.word();
        if client::answers(control) {
            let text = "is running on this host; its ports and devices are in use by itself";
            self.findings.note(Weight::Ok, &[word], text);
            return true;
        }
        let listed = sockets.into_iter().filter_map(|(key, address)| Some((key, address.path()?)));
        for (key, socket) in std::iter::once(("control", control)).chain(listed) {
            if let Err(text) = judge_directory(socket) {
                self.findings.fail(EXIT_FAILED, &[word, key], text);
            }
        }
        false
    }

    /// The control socket of a role, and its addresses by their keys, as its start looks for their directories.
    fn sockets(&self, role: RoleName) -> Option<(&'a Path, Vec<(&'static str, &'a Address)>)> {
        let config = self.config;
        let listen = |address| ("listen", address);
        let metrics = |address: &'a Option<Address>| address.iter().map(|address| ("metrics", address));
        Some(match role {
            RoleName::Primary => {
                let own = config.primary.as_ref()?;
                (&own.control, own.listen.iter().map(listen).chain(metrics(&own.metrics)).collect())
            }
            RoleName::Dr => {
                let own = config.dr.as_ref()?;
                let export = own.export.iter().map(|address| ("export", address));
                (&own.control, export.chain([listen(&own.listen)]).chain(metrics(&own.metrics)).collect())
            }
            RoleName::Aux => {
                let aux = config.aux.as_ref()?;
                let own = aux.own.as_ref()?;
                (&own.control, std::iter::once(listen(&own.listen)).chain(metrics(&aux.metrics)).collect())
            }
        })
    }

    /// Where a role listens from its start on, in its order.
    fn listening(&mut self, role: RoleName, listen: &[Address], control: &Path, metrics: Option<&Address>) {
        let word = role.word();
        listen.iter().for_each(|address| self.address(EXIT_FAILED, &[word, "listen"], address));
        self.address(EXIT_FAILED, &[word, "control"], &Address::Unix(control.into()));
        metrics.into_iter().for_each(|address| self.address(EXIT_FAILED, &[word, "metrics"], address));
    }

    /// The directory of a role: there, or able to be made; and what is in it.
    fn directory(&mut self, role: RoleName, dir: &Path, reserved: u64, running: bool) {
        let keys = [role.word(), "dir"];
        self.alone(role, &keys, dir);
        if !running && !self.judged(role, dir) {
            return;
        }
        let missing = is_absent(dir);
        let found = if missing { dir.parent().unwrap_or(dir) } else { dir };
        let state = match (missing, access(found, AccessFlags::W_OK | AccessFlags::X_OK)) {
            (true, _) => "will be made",
            (_, Ok(())) => "is writable",
            (_, Err(error)) => {
                let text = format!("{} cannot be written to: {}{}", dir.display(), error.desc(), advice(error));
                self.findings.note(Weight::Warning, &keys, text);
                "is there"
            }
        };
        let text = format!("{} {state}, {} for its logs and queues", dir.display(), human_size(reserved));
        self.findings.note(Weight::Ok, &keys, text);
        self.need(found, reserved.saturating_sub(allocated_under(dir)), 0);
        if let Some(text) = strangers::tell(self.config, peer(role), dir) {
            self.findings.note(Weight::Warning, &keys, text);
        }
        for own in own_files(peer(role)).iter().map(|name| dir.join(name)).filter(|path| path.exists()) {
            self.alone(role, &keys, &own);
        }
    }

    fn backing(&mut self, role: RoleName, known: &Known<'_>, backing: &[Backing]) {
        let config = self.config;
        for (at, (volume, backing)) in config.volumes.iter().zip(backing).enumerate() {
            let keys = [role.word(), "backing", volume.name.as_str()];
            let path = match backing {
                Backing::File(path) => path,
                Backing::Nbd(uri) => {
                    self.remote(role, &keys, volume, uri, known.running);
                    continue;
                }
            };
            self.alone(role, &keys, path);
            let Some(make) = self.is_ours(role, &keys, known.dir, at, path) else { continue };
            match volume_file(path, volume.size, known, (role, at), make) {
                Ok(File { text, missing, at }) => {
                    self.findings.note(Weight::Ok, &keys, text);
                    self.need(&at, 0, missing);
                }
                Err(error) => self.findings.ends(&keys, error),
            }
        }
    }

    /// `exit`: what it counts as if nobody can listen there.
    fn address(&mut self, exit: u8, keys: &[&str], address: &Address) {
        match listen::judge(address) {
            Ok(Some(listener)) => {
                self.bound.push((listener, address.clone()));
                self.findings.note(Weight::Ok, keys, format!("{address} is free"));
            }
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::AddrInUse && matches!(address, Address::Tcp(_)) => {
                // Bound by this check: by another line.
                if self.bound.iter().any(|(_, other)| is_one_port(other, address)) {
                    let text =
                        format!("{address}: the port is in use by another line of this file; change one of the two");
                    return self.findings.fail(EXIT_USAGE, keys, text);
                }
                let text = format!(
                    "{address}: the port is in use by another process; stop that (`ss -ltnp` says which it is), or name \
                     another address in the configuration"
                );
                self.findings.fail(exit, keys, text);
            }
            Err(error) => self.findings.fail(exit, keys, words(&error.into())),
        }
    }

    /// Adds to what is asked of the filesystem at `at`.
    fn need(&mut self, at: &Path, reserved: u64, volumes: u64) {
        let (Ok(metadata), Ok(statistics)) = (std::fs::metadata(at), statvfs(at)) else { return };
        let free = statistics.blocks_available() * statistics.fragment_size();
        let at = at.to_path_buf();
        let need = self.needs.entry(metadata.dev()).or_insert(Need { at, free, reserved: 0, volumes: 0 });
        need.reserved += reserved;
        need.volumes += volumes;
    }

    /// Whether every filesystem has room for all that is asked of it together.
    pub fn space(self) {
        for need in self.needs.values() {
            let (at, free) = (need.at.display(), human_size(need.free));
            if need.reserved > need.free {
                let reserved = human_size(need.reserved);
                let text = format!(
                    "the filesystem of {at} has {free} free, but logs and queues take {reserved}; \
                     make room or configure less (primary.fifo, aux.payload, dr.spool)"
                );
                self.findings.fail(EXIT_FAILED, &["space"], text);
            } else if need.reserved + need.volumes > need.free {
                let full = human_size(need.reserved + need.volumes);
                let text = format!("the filesystem of {at} has {free} free, but full volumes would take {full}");
                self.findings.note(Weight::Warning, &["space"], text);
            } else {
                let text = format!("{at} has {free} free, {} may be taken", human_size(need.reserved + need.volumes));
                self.findings.note(Weight::Ok, &["space"], text);
            }
        }
    }
}

/// Whether the file system of the spool has room for it to grow once, beside what it takes itself if it is yet to be made.
fn spool_can_grow(dr: &DrConfig) -> bool {
    let beside = if dr.spool_max.is_none() { dr.spool } else { 0 };
    let itself = if is_absent(&dr.dir.join(SPOOL)) { dr.spool } else { 0 };
    open::free_bytes(&dr.dir) >= dr.spool.saturating_add(beside).saturating_add(itself)
}

/// A role by the name that certificates have for it.
fn peer(role: RoleName) -> Role {
    match role {
        RoleName::Primary => Role::Primary,
        RoleName::Dr => Role::Dr,
        RoleName::Aux => Role::Aux,
    }
}

/// What to do about an error of access.
fn advice(error: nix::errno::Errno) -> String {
    match error {
        nix::errno::Errno::EACCES => {
            let denied = crate::io::open::denied().replace("this process runs", "this runs");
            format!("; {denied}; check as the user of the role")
        }
        _ => String::new(),
    }
}

/// What is known of the volumes of a role: it starts, or goes on, with that, whatever the configuration says.
struct Known<'a> {
    dir: &'a Path,
    running: bool,
    /// Bytes of each volume, by the superblock and by the role that runs: that of DR lags behind what has been ordered.
    sizes: Vec<u64>,
}

impl<'a> Known<'a> {
    /// `control`: of a role that runs.
    fn of(dir: &'a Path, control: Option<&PathBuf>) -> Known<'a> {
        let noted = identity::superblock(&dir.join(SUPERBLOCK));
        let noted = noted.map(|noted| noted.volumes.into_iter().map(|(_, size)| size).collect::<Vec<u64>>());
        let mut sizes = noted.unwrap_or_default();
        let told = control.and_then(|control| told_sizes(control)).unwrap_or_default();
        sizes.resize(sizes.len().max(told.len()), 0);
        sizes.iter_mut().zip(told).for_each(|(size, told)| *size = told.max(*size));
        Known { dir, running: control.is_some(), sizes }
    }

    fn size(&self, volume: usize) -> Option<u64> {
        self.sizes.get(volume).copied()
    }
}

/// Bytes of each volume, as the role behind a control socket says. One that says nothing is found out elsewhere.
fn told_sizes(control: &Path) -> Option<Vec<u64>> {
    let answer = client::ask(control, &Request::Status, Some(STATUS_WITHIN)).ok()?;
    let volumes = match serde_json::from_value(answer).ok()? {
        Status::Primary(status) => status.volumes,
        Status::Dr(status) => status.volumes,
        Status::Aux(_) => return None,
    };
    Some(volumes.iter().map(|volume| volume.size_bytes).collect())
}

/// A usable backing store: what to say, bytes it may still take, and on which filesystem.
struct File {
    text: String,
    missing: u64,
    at: PathBuf,
}

/// What has to be known of the file or device of a volume (`volume`: of which role, and which). `make`: it may be missing.
fn volume_file(
    path: &Path,
    size: u64,
    known: &Known<'_>,
    (role, volume): (RoleName, usize),
    make: bool,
) -> anyhow::Result<File> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if make && parent == known.dir && is_absent(parent) {
        // The role makes it, and what the volume stands in has been looked at.
        let at = parent.parent().unwrap_or(parent).into();
        return Ok(File { text: to_be_made(path, size), missing: size, at });
    }
    let Some(metadata) = open::judge(path, make)? else {
        return Ok(File { text: to_be_made(path, size), missing: size, at: parent.into() });
    };
    if metadata.file_type().is_block_device() {
        let least = match known.size(volume) {
            Some(has) if role == RoleName::Dr => has,
            has => has.unwrap_or(0).max(size),
        };
        return block_device(path, least, known.running);
    }
    let shown = path.display();
    if metadata.len() < size && known.dir.join(SUPERBLOCK).exists() {
        // A directory that is in use: the configuration leads.
        let (has, missing) = (human_size(metadata.len()), size - metadata.len());
        let text = format!("{shown} is there, {has}; the volume is to grow to {}", human_size(size));
        return Ok(File { text, missing, at: path.into() });
    }
    if let Some(has) = known.size(volume).filter(|has| *has > size && *has <= metadata.len()) {
        let (has, said) = (exact_size(has), exact_size(size));
        let text = format!("{shown} is there, {has}; {said} is from before a resize: say size = \"{has}\"");
        return Ok(File { text, missing: metadata.len().saturating_sub(metadata.blocks() * 512), at: path.into() });
    }
    if metadata.len() > size && known.size(volume).is_some() {
        // The role starts with it: one that was killed may not have noted yet what the order says, and nothing is ever cut.
        let (has, said) = (exact_size(metadata.len()), exact_size(size));
        let text = format!(
            "{shown} is there, {has}, and more than {said} is noted nowhere yet: the order decides; after a resize to \
             that, say size = \"{has}\""
        );
        return Ok(File { text, missing: metadata.len().saturating_sub(metadata.blocks() * 512), at: path.into() });
    }
    let missing = size.saturating_sub(metadata.blocks() * 512);
    Ok(File { text: format!("{shown} is there, {}", human_size(metadata.len())), missing, at: path.into() })
}

fn to_be_made(path: &Path, size: u64) -> String {
    format!("{} will be made, {}", path.display(), human_size(size))
}

fn block_device(path: &Path, least: u64, running: bool) -> anyhow::Result<File> {
    let shown = path.display();
    // O_EXCL on a block device: refused while it is mounted or part of something else.
    let exclusive = if running { 0 } else { nix::libc::O_EXCL };
    let mut device = std::fs::OpenOptions::new().read(true).custom_flags(exclusive).open(path).map_err(|error| {
        match error.kind() {
            ErrorKind::ResourceBusy => {
                anyhow::anyhow!("{shown}: is in use (mounted, or part of another device); unmount it first")
            }
            _ => open::failed(path, "cannot open", &error).into(),
        }
    })?;
    let bytes = std::io::Seek::seek(&mut device, std::io::SeekFrom::End(0))?;
    if bytes < least {
        return Err(Refused(too_small(&shown.to_string(), bytes, least)).into());
    }
    Ok(File { text: format!("{shown} is there, {}", human_size(bytes)), missing: 0, at: path.into() })
}

fn resolve(text: &str) -> Result<Vec<SocketAddr>, String> {
    let found: Vec<SocketAddr> =
        text.to_socket_addrs().map_err(|error| format!("the host's name is not known here: {error}"))?.collect();
    if found.is_empty() { Err("the host's name has no address".into()) } else { Ok(found) }
}

/// The path itself or its nearest ancestor that exists, and whether the path itself is missing.
fn nearest(path: &Path) -> (PathBuf, bool) {
    let mut at = path;
    while !at.exists() {
        match at.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => at = parent,
            _ => return (PathBuf::from("."), true),
        }
    }
    (at.to_path_buf(), at != path)
}

/// Bytes that the files directly in a directory take already.
fn allocated_under(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.blocks() * 512).sum()
}
