//! Who a host is, as its certificate says it: a role of a group, written as a URI among the certificate's alternative
//! names (RFC 5280, section 4.2.1.6).
//!
//! ```text
//!   farshore://orders/primary
//!              group  role
//! ```
//!
//! A name of DNS would not do: it knows no case and no underscore, and groups that differ in nothing else are two.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::limits::NAME_BYTES_MAX;

/// What a host is in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Primary,
    Aux,
    Dr,
    /// Who uses the volumes.
    Client,
}

/// A role of a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerName {
    pub group: String,
    pub role: Role,
}

/// An end of a connection: a certificate may be meant for one only (extended key usage; RFC 5280, section 4.2.1.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Who connects.
    Client,
    /// Who is connected to.
    Server,
}

/// Where the certificates of a host are, all of them PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Certificates of those who sign.
    pub ca: PathBuf,
    /// The host's own certificate, with those between it and the CA; and its key. A client may have none.
    pub own: Option<(PathBuf, PathBuf)>,
}

impl Paths {
    /// Those of a client, by the names that libnbd and QEMU look for; `known`: it has a certificate of its own.
    #[must_use]
    pub fn in_directory(dir: &Path, known: bool) -> Paths {
        let own = (dir.join("client-cert.pem"), dir.join("client-key.pem"));
        Paths { ca: dir.join("ca-cert.pem"), own: known.then_some(own) }
    }

    /// With the word of a role where `{role}` stands: several roles on one host have one configuration.
    #[must_use]
    pub fn of_role(&self, role: Role) -> Paths {
        Paths { ca: role.path(&self.ca), own: self.own.as_ref().map(|(cert, key)| (role.path(cert), role.path(key))) }
    }
}

/// How names begin.
pub const SCHEME: &str = "farshore://";

impl Role {
    pub const ALL: [Role; 4] = [Role::Primary, Role::Aux, Role::Dr, Role::Client];

    /// The word of the command line and of the configuration's sections.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Aux => "aux",
            Role::Dr => "dr",
            Role::Client => "client",
        }
    }

    /// A path with this word where `{role}` stands.
    #[must_use]
    pub fn path(self, path: &Path) -> PathBuf {
        match path.to_str() {
            Some(text) => text.replace("{role}", self.word()).into(),
            None => path.into(),
        }
    }
}

impl PeerName {
    #[must_use]
    pub fn new(group: &str, role: Role) -> PeerName {
        PeerName { group: group.to_owned(), role }
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.group, self.role.word())
    }
}

impl FromStr for PeerName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<PeerName, &'static str> {
        let rest = text.strip_prefix(SCHEME).ok_or("does not begin with farshore://")?;
        let (group, word) = rest.split_once('/').ok_or("names no role: farshore://GROUP/ROLE")?;
        if group.is_empty() || group.len() > NAME_BYTES_MAX {
            return Err("names no group: farshore://GROUP/ROLE");
        }
        let role = Role::ALL.into_iter().find(|role| role.word() == word).ok_or("names a role that there is not")?;
        Ok(PeerName::new(group, role))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_nothing_else_is_one() {
        for role in Role::ALL {
            for group in ["orders", "A_b.c-1"] {
                let name = PeerName::new(group, role);
                assert_eq!(name.to_string().parse(), Ok(name));
            }
        }
        let longest = format!("{SCHEME}{}/dr", "g".repeat(NAME_BYTES_MAX));
        assert!(longest.parse::<PeerName>().is_ok());
        let long = format!("{SCHEME}{}/dr", "g".repeat(NAME_BYTES_MAX + 1));
        for text in ["", "farshore://", "farshore://g", "farshore:///dr", "farshore://g/DR", "Farshore://g/dr", &long] {
            assert!(text.parse::<PeerName>().is_err(), "{text}");
        }
        for text in ["farshore://g/dr/", "farshore://g/dr ", "https://g/dr", "farshore://g/x/dr"] {
            assert!(text.parse::<PeerName>().is_err(), "{text}");
        }
    }
}
