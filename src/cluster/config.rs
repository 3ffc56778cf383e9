//! The configuration file: its types, and `parse`, which turns text into them or into a list of everything wrong
//! with it, by file, line and key.
//!
//! One file describes a group for all its hosts; each role reads its own section and what it needs of the others
//! (their addresses). Pure: whether a path exists or a port is free is for `farshore check`.

mod link;
mod places;
mod read;
#[cfg(test)]
mod tests;
mod tls;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::core::address::{Address, NbdUri};
use crate::core::modes::{Ack, Compress, LagMax, Overflow, Protect, Require, Scrub, TlsMode};
use crate::core::peer::{End, Paths, PeerName, Role};
use crate::core::rate::RateLimit;

/// A group as its file describes it. What `parse` returns has been checked as far as text can be.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The file's name, for messages.
    pub path: String,
    pub group: Group,
    /// In the order of the file: the index is `core::ids::Volume`.
    pub volumes: Vec<VolumeConfig>,
    pub primary: Option<PrimaryConfig>,
    pub aux: Option<AuxConfig>,
    pub dr: Option<DrConfig>,
    pub tls: Tls,
    /// `[tls] psk`: the file of the keys that NBD clients share with the primary and a promoted DR.
    pub psk: Option<PathBuf>,
    /// Keys that are accepted and do less than an operator may expect.
    pub warnings: Vec<ConfigError>,
}

/// `[tls]`: the certificates of the hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// Nothing is said: fine as long as every link stays on its host.
    #[default]
    Absent,
    /// `tls = "off"`: links are plain, whoever may listen to them.
    Off,
    /// Links are secure, and known by name.
    Certificates(Paths),
}

/// `[group]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub protect: Protect,
    pub ack: Ack,
    pub require: Require,
    pub on_isolated: OnIsolated,
    /// How long frozen writes wait before they fail; 0: for ever.
    pub freeze_timeout_seconds: u64,
}

/// What a primary cut off from both its peers does with writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnIsolated {
    /// They wait.
    #[default]
    Freeze,
    /// They are acknowledged: at the risk of two writers, for who has another fence.
    Continue,
}

/// `[[volume]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeConfig {
    pub name: String,
    /// Bytes.
    pub size: u64,
}

/// `[primary]`
#[derive(Clone, Debug, PartialEq)]
pub struct PrimaryConfig {
    pub dir: PathBuf,
    /// What each volume stands on, in the order of [`Config::volumes`].
    pub backing: Vec<Backing>,
    /// Where NBD clients connect.
    pub listen: Vec<Address>,
    pub control: PathBuf,
    pub fifo: Fifo,
    pub overflow: Overflow,
    /// Set with `overflow = "pace"` only.
    pub lag_max: Option<LagMax>,
    /// How often both sides are compared by themselves, and how fast.
    pub scrub: Option<Scrub>,
    /// How many bytes of data a second may go to DR.
    pub link: RateLimit,
    /// Whether that is compressed.
    pub compress: Compress,
    pub direct: Direct,
    pub metrics: Option<Address>,
    /// What NBD clients may do without TLS, and whether they need certificates with it.
    pub tls: TlsMode,
    pub client_certificates: bool,
}

/// What a volume stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A file or a block device.
    File(PathBuf),
    /// An export of any NBD server.
    Nbd(NbdUri),
}

impl Backing {
    /// Whether both are the same, as far as their names tell.
    #[must_use]
    pub fn is_same(&self, other: &Backing) -> bool {
        match (self, other) {
            (Backing::Nbd(one), Backing::Nbd(other)) => one.is_same_export(other),
            _ => self == other,
        }
    }

    /// The path of a file or block device.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Backing::File(path) => Some(path),
            Backing::Nbd(_) => None,
        }
    }

    /// How many volumes stand on servers.
    #[must_use]
    pub fn remote(all: &[Backing]) -> usize {
        all.iter().filter(|one| matches!(one, Backing::Nbd(_))).count()
    }
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backing::File(path) => write!(f, "{}", path.display()),
            Backing::Nbd(uri) => write!(f, "{uri}"),
        }
    }
}

/// Bounds of the FIFO, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fifo {
    pub memory: u64,
    /// 0: no disk FIFO.
    pub disk: u64,
}

/// Whether volumes are opened O_DIRECT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// Where the filesystem can.
    #[default]
    Auto,
    Never,
}

/// `[aux]`
#[derive(Clone, Debug, PartialEq)]
pub struct AuxConfig {
    /// Where our own daemon runs; `None` when the table stands elsewhere.
    pub own: Option<OwnAux>,
    pub slots: u64,
    /// Bytes of the payload ring (`bunker`).
    pub payload: u64,
    /// Where primary and DR find the status table.
    pub table: TablePlace,
    pub metrics: Option<Address>,
}

/// Our own auxiliary daemon.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnAux {
    pub dir: PathBuf,
    pub listen: Address,
    pub control: PathBuf,
}

/// Where the status table stands.
#[derive(Clone, Debug, PartialEq)]
pub enum TablePlace {
    /// `farshore aux` at this address.
    Own(Address),
    /// Any NBD server.
    Nbd(NbdUri),
    /// A file on storage that both hosts mount.
    File(PathBuf),
}

/// `[dr]`
#[derive(Clone, Debug, PartialEq)]
pub struct DrConfig {
    pub dir: PathBuf,
    /// As [`PrimaryConfig::backing`].
    pub backing: Vec<Backing>,
    /// Where replication arrives.
    pub listen: Address,
    /// Where the primary connects: `listen`, unless `address` says otherwise.
    pub address: Address,
    /// Other ways to the same.
    pub paths: Vec<Address>,
    /// Where NBD clients connect after a promotion.
    pub export: Vec<Address>,
    pub control: PathBuf,
    pub streams: usize,
    /// Bytes of the journal.
    pub journal: u64,
    /// Bytes of the spool.
    pub spool: u64,
    /// Bytes that it may grow to; `None`: as long as as much again stays free on its file system.
    pub spool_max: Option<u64>,
    pub direct: Direct,
    pub metrics: Option<Address>,
    /// As [`PrimaryConfig::tls`], after a promotion.
    pub tls: TlsMode,
    pub client_certificates: bool,
}

impl DrConfig {
    /// Every way for the primary to connect.
    pub fn ways(&self) -> impl Iterator<Item = &Address> {
        std::iter::once(&self.address).chain(&self.paths)
    }
}

/// Something wrong in a configuration file. `line` 0: the file as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub path: String,
    pub line: usize,
    /// The dotted key, or the section, or empty.
    pub key: String,
    /// What is wrong and what to do.
    pub text: String,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.text)
    }
}

/// Reads the text of a configuration file; `path` is for messages only.
///
/// # Errors
/// Everything that is wrong with it, in the order of the file.
pub fn parse(text: &str, path: &str) -> Result<Config, Vec<ConfigError>> {
    read::config(text, path)
}

/// The line of a file's text at which a key stands, for complaints that need more than the text to be found:
/// `keys` lead to it, as `["dr", "backing", "db"]`. 0 when there is no such key.
#[must_use]
pub fn line_of(text: &str, keys: &[&str]) -> usize {
    crate::cluster::toml::line_of(text, keys)
}

impl Config {
    /// The certificates of a role, if links are secure.
    #[must_use]
    pub fn certificates(&self, role: Role) -> Option<Paths> {
        match &self.tls {
            Tls::Certificates(paths) => Some(paths.of_role(role)),
            Tls::Absent | Tls::Off => None,
        }
    }

    /// The file of the keys that NBD clients of a role show, unless they go without TLS.
    #[must_use]
    pub fn shared_keys(&self, role: Role) -> Option<PathBuf> {
        let mode = match role {
            Role::Primary => self.primary.as_ref().map(|primary| primary.tls),
            Role::Dr => self.dr.as_ref().map(|dr| dr.tls),
            Role::Aux | Role::Client => None,
        };
        mode.filter(|mode| *mode != TlsMode::Off).and(self.psk.as_ref()).map(|path| role.path(path))
    }

    /// At which ends of connections a role shows its certificate to who asks for it: those of the links, and NBD clients. What
    /// NBD servers of others ask for is theirs.
    #[must_use]
    pub fn ends(&self, role: Role) -> Vec<End> {
        let serves = self.primary.as_ref().is_some_and(|primary| primary.tls != TlsMode::Off);
        let serves = serves && self.shared_keys(Role::Primary).is_none();
        let own_table = matches!(self.aux.as_ref().map(|aux| &aux.table), Some(TablePlace::Own(_)));
        let (client, server) = match role {
            Role::Primary => (true, serves),
            Role::Aux => (false, true),
            Role::Dr => (own_table, true),
            Role::Client => (true, false),
        };
        [client.then_some(End::Client), server.then_some(End::Server)].into_iter().flatten().collect()
    }

    /// The name that a role of this group has to have in its certificate.
    #[must_use]
    pub fn name(&self, role: Role) -> PeerName {
        PeerName::new(&self.group.name, role)
    }

    /// The section of the primary, with those of its peers present.
    ///
    /// # Errors
    /// Which section is missing.
    pub fn need_primary(&self) -> Result<(&PrimaryConfig, &AuxConfig, &DrConfig), ConfigError> {
        let primary = self.need("primary", self.primary.as_ref(), "run the primary from")?;
        let aux = self.need("aux", self.aux.as_ref(), "run the primary from (it has to know where the table is)")?;
        let dr = self.need("dr", self.dr.as_ref(), "run the primary from (it has to know where to replicate to)")?;
        Ok((primary, aux, dr))
    }

    /// The section of DR, with that of the auxiliary present (a promotion reads and fences it).
    ///
    /// # Errors
    /// Which section is missing.
    pub fn need_dr(&self) -> Result<(&DrConfig, &AuxConfig), ConfigError> {
        let dr = self.need("dr", self.dr.as_ref(), "run DR from")?;
        let aux = self.need("aux", self.aux.as_ref(), "run DR from (a promotion reads the status table)")?;
        Ok((dr, aux))
    }

    /// The section of the auxiliary, with `dir` and `listen`.
    ///
    /// # Errors
    /// What is missing.
    pub fn need_aux(&self) -> Result<(&AuxConfig, &OwnAux), ConfigError> {
        let aux = self.need("aux", self.aux.as_ref(), "run the auxiliary from")?;
        let own = aux.own.as_ref().ok_or_else(|| ConfigError {
            path: self.path.clone(),
            line: 0,
            key: "aux".into(),
            text: "`table` says that the status table stands elsewhere, so there is no auxiliary to run; \
                   set `dir` and `listen` to run one"
                .into(),
        })?;
        Ok((aux, own))
    }

    fn need<'a, T>(&self, section: &str, found: Option<&'a T>, purpose: &str) -> Result<&'a T, ConfigError> {
        found.ok_or_else(|| ConfigError {
            path: self.path.clone(),
            line: 0,
            key: section.into(),
            text: format!("there is no [{section}] section to {purpose}; add one (`farshore init` shows how)"),
        })
    }
}
