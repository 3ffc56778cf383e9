//! What `farshore check` holds of places that more than one thing uses: two volumes in one file, two roles in one
//! directory, and the status table that stands elsewhere.

use std::io::{Seek, SeekFrom};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::identity::superblock;
use super::{Host, nearest, resolve};
use crate::cli::arguments::RoleName;
use crate::cli::check::Weight;
use crate::cluster::config::{TablePlace, VolumeConfig};
use crate::cluster::control::{EXIT_USAGE, Refused};
use crate::core::address::{Address, NbdUri};
use crate::core::modes::Protect;
use crate::core::names::SUPERBLOCK;
use crate::format::superblock::{PROMOTED, SYNCED};
use crate::format::table::TableLayout;
use crate::io::open::to_read;
use crate::io::places::{Spot, spot};
use crate::nbd::backing::{self, OpenError, Opening};
use crate::nbd::region::{Region, TableTarget, uri_connector};

/// How long an NBD server may take to take a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// How long one may take to say what it has, nanoseconds.
const ANSWER_WITHIN_NS: u64 = 5_000_000_000;

/// A path that one thing has to itself.
pub(super) struct Place {
    role: RoleName,
    keys: Vec<String>,
    path: PathBuf,
    identity: Identity,
}

/// What two names of one file have in common.
#[derive(PartialEq, Eq)]
enum Identity {
    Path(Spot),
    Export(NbdUri),
}

impl Host<'_, '_, '_> {
    /// Notes that a role has a path to itself, and complains of who has it already.
    pub(super) fn alone(&mut self, role: RoleName, keys: &[&str], path: &Path) {
        let identity = Identity::Path(spot(path));
        // What things of one role share, the role itself finds.
        if let Some(other) = self.places.iter().find(|other| other.role != role && other.identity == identity) {
            let (shown, theirs) = (path.display(), other.keys.join("."));
            if self.one_host(other.role, role) {
                let text = format!("{shown} is what {theirs} ({}) is, too; each needs its own", other.path.display());
                self.findings.fail(EXIT_USAGE, keys, text);
            } else {
                let text = format!("{shown} is what {theirs} is, too: if both run on this host, each needs its own");
                self.findings.note(Weight::Warning, keys, text);
            }
        }
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        self.places.push(Place { role, keys, path: path.into(), identity });
    }

    /// A volume on an NBD server: connects, and reports what is there.
    pub(super) fn remote(&mut self, role: RoleName, keys: &[&str], volume: &VolumeConfig, uri: &NbdUri, running: bool) {
        let identity = Identity::Export(uri.clone());
        if let Some(other) = self.places.iter().find(|other| other.identity == identity) {
            let text = format!("{uri} is what {} is, too; each volume needs its own export", other.keys.join("."));
            return self.findings.fail(EXIT_USAGE, keys, text);
        }
        let kept = keys.iter().map(|key| (*key).to_owned()).collect();
        self.places.push(Place { role, keys: kept, path: PathBuf::from(uri.to_string()), identity });
        if running {
            // Many servers take one connection at a time, and it has that one.
            let text = format!("{uri} is in use by the {} that runs here; not connected to", role.word());
            return self.findings.note(Weight::Ok, keys, text);
        }
        let connector = match uri_connector(uri, self.config.certificates(super::peer(role)).as_ref()) {
            Ok(connector) => connector,
            Err(error) => return self.findings.ends(keys, error),
        };
        let opening = Opening { volume: &volume.name, size: volume.size, uri, connector };
        match backing::probe(opening, ANSWER_WITHIN_NS) {
            Ok(offers) => self.findings.note(Weight::Ok, keys, format!("{uri} answers: {offers}")),
            Err(OpenError::Unfit(text)) => self.findings.ends(keys, Refused(text)),
            // With a recovery point DR waits for its servers.
            Err(error) if role == RoleName::Dr && self.promotable() => {
                self.findings.note(Weight::Warning, keys, format!("{error}; DR starts, and waits for it"));
            }
            Err(error) => self.findings.ends(keys, error),
        }
    }

    /// Whether DR has a recovery point that it could be promoted at.
    fn promotable(&self) -> bool {
        let dir = self.config.dr.as_ref().map(|dr| dr.dir.join(SUPERBLOCK));
        let known = dir.and_then(|path| superblock(&path));
        known.is_some_and(|known| known.has(SYNCED) && !known.has(PROMOTED))
    }

    /// Whether two roles can only be on one host: one reaches the other over an address that leads nowhere else.
    fn one_host(&self, one: RoleName, other: RoleName) -> bool {
        let aux = match self.config.aux.as_ref().map(|aux| &aux.table) {
            Some(TablePlace::Own(address)) => leads_nowhere_else(address),
            _ => false,
        };
        let dr = self.config.dr.as_ref().is_some_and(|dr| leads_nowhere_else(&dr.address));
        if [one, other].contains(&RoleName::Aux) { aux } else { dr }
    }

    /// The table on somebody else's storage: it may come up later, but it is better to know now.
    pub(super) fn table(&mut self, role: RoleName, running: bool) {
        let keys = ["aux", "table"];
        // Primary and DR on one host see it alike.
        if std::mem::replace(&mut self.table_seen, true) {
            return;
        }
        let Some(aux) = &self.config.aux else { return };
        let size = match &aux.table {
            TablePlace::Own(_) => return,
            TablePlace::Nbd(uri) => match unreachable_server(&uri.address) {
                Some(why) => Err(format!("{}: nobody answers there: {why}", uri.address)),
                // Many servers take one connection at a time, and it has that one.
                None if running => Ok(None),
                None => self.table_bytes(role, uri),
            },
            TablePlace::File(path) => match unreachable_file(path) {
                Some(why) => Err(why),
                // One that is not there is made as long as it has to be.
                None => Ok(path.exists().then(|| table_file_bytes(path)).flatten()),
            },
        };
        let ring = if self.config.group.protect == Protect::Bunker { aux.payload } else { 0 };
        let wanted = TableLayout::new(aux.slots, ring);
        match size {
            Err(text) => {
                let text = format!("{text}; until it does, writes are not kept there, and a promotion needs --force");
                self.findings.note(Weight::Warning, &keys, text);
            }
            Ok(Some(size)) if size < wanted.total_bytes() => {
                let what =
                    format!("it has {size} bytes, and a status table as configured takes {}", wanted.total_bytes());
                let (weight, text) = match TableLayout::fitting(size, ring) {
                    Some(less) => (Weight::Warning, format!("there will be only {} slots", less.slots)),
                    None => (
                        Weight::Error,
                        "nothing can be kept there: enlarge it, or lower aux.slots and aux.payload".into(),
                    ),
                };
                match weight {
                    Weight::Error => self.findings.fail(EXIT_USAGE, &keys, format!("{what}; {text}")),
                    _ => self.findings.note(weight, &keys, format!("{what}; {text}")),
                }
            }
            Ok(_) => self.findings.note(Weight::Ok, &keys, "the status table can be reached from here"),
        }
    }

    /// What an NBD server has for the table, bytes.
    fn table_bytes(&self, role: RoleName, uri: &NbdUri) -> Result<Option<u64>, String> {
        let connector = uri_connector(uri, self.config.certificates(super::peer(role)).as_ref())
            .map_err(|error| error.to_string())?;
        Region::size_of(&TableTarget::Nbd(uri.clone()), connector.as_ref(), ANSWER_WITHIN_NS).map(Some)
    }
}

/// Of a file or a block device.
fn table_file_bytes(path: &Path) -> Option<u64> {
    to_read(path).and_then(|mut file| file.seek(SeekFrom::End(0))).ok()
}

fn unreachable_server(address: &Address) -> Option<String> {
    match address {
        Address::Unix(path) => UnixStream::connect(path).err().map(|error| error.to_string()),
        Address::Tcp(text) => {
            let addresses = match resolve(text) {
                Ok(addresses) => addresses,
                Err(why) => return Some(why),
            };
            let mut refused = None;
            for address in addresses {
                match TcpStream::connect_timeout(&address, CONNECT_WITHIN) {
                    Ok(_) => return None,
                    Err(error) => refused = Some(error.to_string()),
                }
            }
            refused
        }
    }
}

fn unreachable_file(path: &Path) -> Option<String> {
    if path.is_dir() {
        return Some(format!("{} is a directory, and has to be a file", path.display()));
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    match nearest(parent) {
        (_, true) => Some(format!("{} does not exist (is the shared storage mounted?)", parent.display())),
        (found, false) if !found.is_dir() => Some(format!("{} is not a directory", found.display())),
        _ => None,
    }
}

/// Loopback and unix sockets: both ends are on one host.
fn leads_nowhere_else(address: &Address) -> bool {
    match address {
        Address::Unix(_) => true,
        Address::Tcp(text) => {
            resolve(text).is_ok_and(|found| found.iter().all(|one| one.ip().to_canonical().is_loopback()))
        }
    }
}
