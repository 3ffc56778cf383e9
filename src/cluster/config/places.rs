//! Places that two things of one role would use: told by their names alone, so that nothing starts with them. Two roles may
//! use the same names on two hosts, also where a tunnel makes the link between them look local: that is warned of. What several names
//! lead to is looked at by `farshore check` and at the start.

use std::path::{Component, Path, PathBuf};

use super::{AuxConfig, Backing, Config, ConfigError, DrConfig, PrimaryConfig, TablePlace};
use crate::cluster::toml::{Reader, line_of};
use crate::core::address::{Address, is_one_port};
use crate::core::names::own_files;
use crate::core::peer::Role;

/// Whether a directory is that of the whole system, however it is written.
pub(super) fn is_root(dir: &Path) -> bool {
    dir.is_absolute() && !dir.components().any(|part| matches!(part, Component::Normal(_)))
}

impl Config {
    /// What is wrong with a volume of a role that leads to where another volume leads (`with`), or to a file that the role keeps
    /// in its directory, under whatever names.
    #[must_use]
    pub fn shared_place(&self, role: Role, at: usize, with: Option<usize>) -> ConfigError {
        let backing = match role {
            Role::Dr => self.dr.as_ref().map(|dr| &dr.backing[..]),
            _ => self.primary.as_ref().map(|primary| &primary.backing[..]),
        };
        let section = role.word();
        let shown = |at: usize| backing.and_then(|all| all.get(at)).map(ToString::to_string).unwrap_or_default();
        let key = |at: usize| format!("{section}.backing.{}", self.volumes[at].name);
        let text = match with {
            Some(one) => format!("{} is what {} ({}) is, too; each needs its own", shown(at), key(one), shown(one)),
            None => format!("{} leads to a file that a role keeps in {section}.dir; name another place", shown(at)),
        };
        ConfigError { path: self.path.clone(), line: 0, key: key(at), text }
    }
}

/// Something that one thing has to itself.
struct Place {
    keys: Vec<String>,
    what: What,
    /// A file that the role keeps in its directory.
    kept: bool,
}

#[derive(PartialEq)]
enum What {
    Path(PathBuf),
    Port(Address),
}

/// Complains of every place that is used twice.
pub(super) fn check(
    r: &mut Reader<'_>,
    text: &str,
    primary: Option<&PrimaryConfig>,
    aux: Option<&AuxConfig>,
    dr: Option<&DrConfig>,
    volumes: &[&str],
) {
    let table = aux.and_then(|aux| match &aux.table {
        TablePlace::File(path) => Some(path.as_path()),
        _ => None,
    });
    let mut roles: Vec<(Role, Vec<Place>)> = Vec::new();
    if let Some(primary) = primary {
        let mut places = of_role(Role::Primary, &primary.dir, &primary.control, primary.metrics.as_ref());
        places.extend(backings("primary", &primary.backing, volumes).chain(table.map(table_place)));
        places.extend(primary.listen.iter().map(|address| served("primary", "listen", address)));
        roles.push((Role::Primary, places));
    }
    if let Some((own, aux)) = aux.and_then(|aux| Some((aux.own.as_ref()?, aux))) {
        let mut places = of_role(Role::Aux, &own.dir, &own.control, aux.metrics.as_ref());
        places.push(served("aux", "listen", &own.listen));
        roles.push((Role::Aux, places));
    }
    if let Some(dr) = dr {
        let mut places = of_role(Role::Dr, &dr.dir, &dr.control, dr.metrics.as_ref());
        places.extend(backings("dr", &dr.backing, volumes).chain(table.map(table_place)));
        places.push(served("dr", "listen", &dr.listen));
        places.extend(dr.export.iter().map(|address| served("dr", "export", address)));
        roles.push((Role::Dr, places));
    }
    let local = |address: Option<&Address>| address.is_some_and(Address::is_local);
    let beside_aux = local(aux.and_then(|aux| match &aux.table {
        TablePlace::Own(address) => Some(address),
        _ => None,
    }));
    let beside_dr = local(dr.map(|dr| &dr.address));
    for (at, (role, places)) in roles.iter().enumerate() {
        for (index, place) in places.iter().enumerate() {
            let here = places[..index].iter().find(|other| other.meets(place));
            let elsewhere = roles[..at].iter().filter(|(other, _)| match (*role, *other) {
                (Role::Aux, _) | (_, Role::Aux) => beside_aux,
                _ => beside_dr,
            });
            let mut elsewhere = elsewhere.flat_map(|(_, places)| places);
            let Some(other) = here.or_else(|| elsewhere.find(|other| other.meets(place))) else { continue };
            let keys: Vec<&str> = place.keys.iter().map(String::as_str).collect();
            let (what, theirs) = (&place.what, other.keys.join("."));
            let same = match (place.kept, other.kept) {
                // It has been said of their directories.
                (true, true) => continue,
                (_, false) => format!("{what} is what {theirs} is, too; each needs its own"),
                (false, true) => format!("{what} is a file that a role keeps in {theirs}; name another place"),
            };
            let (line, key) = (line_of(text, &keys), keys.join("."));
            match here {
                Some(_) => r.error_at(line, &key, same),
                None => r.warn_at(line, &key, format!("{same}, if both roles run on one host")),
            }
        }
    }
}

/// What every role has.
fn of_role(role: Role, dir: &Path, control: &Path, metrics: Option<&Address>) -> Vec<Place> {
    let word = role.word();
    let path = |key: &str, path: &Path| Place { keys: keys(&[word, key]), what: at(path), kept: false };
    let mut places = vec![path("dir", dir)];
    places.extend(own_files(role).into_iter().map(|name| Place { kept: true, ..path("dir", &dir.join(name)) }));
    places.push(path("control", control));
    places.extend(metrics.map(|address| served(word, "metrics", address)));
    places
}

fn backings<'a>(section: &'a str, backing: &'a [Backing], volumes: &'a [&'a str]) -> impl Iterator<Item = Place> + 'a {
    let files = backing.iter().zip(volumes).filter_map(|(backing, volume)| Some((backing.path()?, volume)));
    files.map(move |(path, volume)| Place { keys: keys(&[section, "backing", volume]), what: at(path), kept: false })
}

fn table_place(path: &Path) -> Place {
    Place { keys: keys(&["aux", "table"]), what: at(path), kept: false }
}

fn served(section: &str, key: &str, address: &Address) -> Place {
    let what = match address {
        Address::Unix(path) => at(path),
        Address::Tcp(_) => What::Port(address.clone()),
    };
    Place { keys: keys(&[section, key]), what, kept: false }
}

fn keys(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Without what means nothing in a path.
fn at(path: &Path) -> What {
    What::Path(path.components().collect())
}

impl Place {
    /// The table that primary and DR share is one place with one name.
    fn meets(&self, other: &Place) -> bool {
        let shared = self.keys == other.keys && self.keys[..] == ["aux", "table"];
        !shared
            && match (&self.what, &other.what) {
                (What::Port(one), What::Port(other)) => is_one_port(one, other),
                (one, other) => one == other,
            }
    }
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            What::Path(path) => write!(f, "{}", path.display()),
            What::Port(address) => write!(f, "{address}"),
        }
    }
}
