//! What a directory holds that is to be a role's and is none yet: files of somebody else are left as they are, and told of.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;

use crate::cluster::config::{Backing, Config, TablePlace};
use crate::core::address::Address;
use crate::core::names::own_files;
use crate::core::peer::Role;

/// How many names are said.
const NAMED: usize = 3;
/// What a file system has in its root.
const LOST_AND_FOUND: &str = "lost+found";

/// What to say of files in the directory of a role that has not been used by it, if there are any that neither the role nor
/// anything in the configuration explains.
#[must_use]
pub fn tell(config: &Config, role: Role, dir: &Path) -> Option<String> {
    if dir.join("superblock").exists() {
        return None;
    }
    let explained = explained(config, role, dir);
    let found = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.file_name());
    let strange: BTreeSet<OsString> = found.filter(|name| !explained.contains(name)).collect();
    let names: Vec<String> = strange.iter().take(NAMED).map(|name| name.display().to_string()).collect();
    let more = strange.len().saturating_sub(NAMED);
    let names = format!("{}{}", names.join(", "), if more > 0 { format!(" and {more} more") } else { String::new() });
    (!strange.is_empty()).then(|| {
        format!(
            "{} holds files that are not farshore's ({names}) and no superblock: {} puts its files beside them. If that is not \
             meant, or another file system is to be mounted there, name another directory, one of its own",
            dir.display(),
            role.word()
        )
    })
}

/// Names in the directory that have their reason.
fn explained(config: &Config, role: Role, dir: &Path) -> BTreeSet<OsString> {
    let mut names: BTreeSet<OsString> = own_files(role).into_iter().map(OsString::from).collect();
    names.insert(LOST_AND_FOUND.into());
    let mut paths = vec![Path::new(&config.path)];
    let addresses: Vec<&Address> = match role {
        Role::Primary => config.primary.iter().flat_map(|it| it.listen.iter().chain(&it.metrics)).collect(),
        Role::Dr => config.dr.iter().flat_map(|it| it.export.iter().chain([&it.listen]).chain(&it.metrics)).collect(),
        Role::Aux | Role::Client => Vec::new(),
    };
    paths.extend(addresses.into_iter().filter_map(Address::path));
    if let Some(own) = config.aux.as_ref().and_then(|aux| aux.own.as_ref()) {
        paths.extend([own.dir.as_path(), own.control.as_path()]);
        paths.extend(own.listen.path());
    }
    if let Some(primary) = &config.primary {
        paths.extend([primary.dir.as_path(), primary.control.as_path()]);
        paths.extend(primary.backing.iter().filter_map(Backing::path));
    }
    if let Some(dr) = &config.dr {
        paths.extend([dr.dir.as_path(), dr.control.as_path()]);
        paths.extend(dr.backing.iter().filter_map(Backing::path));
    }
    if let Some(TablePlace::File(path)) = config.aux.as_ref().map(|aux| &aux.table) {
        paths.push(path);
    }
    let inside = paths.into_iter().filter_map(|path| path.strip_prefix(dir).ok()?.components().next());
    names.extend(inside.map(|first| first.as_os_str().to_owned()));
    names
}
