//! Whether the directory of a role, and what stands where a volume is to be, can be used: as the role finds it at its start.

use std::path::Path;

use super::Host;
use crate::cli::arguments::RoleName;
use crate::cli::check::Weight;
use crate::cli::role::exit_status;
use crate::cluster::control::EXIT_REFUSED;
use crate::core::identity::{Holder, Mark, Part, Verdict};
use crate::core::ids::Owner;
use crate::format::superblock::{self, MARKED, PROMOTED, SUPERBLOCK_BYTES, Superblock};
use crate::io::{is_absent, mark};
use crate::{auxiliary, dr, primary};

impl Host<'_, '_, '_> {
    /// Notes what a start would say of a directory that is there.
    pub(super) fn judged(&mut self, role: RoleName, dir: &Path) {
        let promoted = || superblock(&dir.join("superblock")).is_some_and(|known| known.has(PROMOTED));
        let judged = match role {
            RoleName::Aux => auxiliary::daemon::judge(dir, &self.config.group.name),
            RoleName::Primary => primary::daemon::judge(self.config, dir, false),
            RoleName::Dr => dr::daemon::judge(self.config).and_then(|()| match promoted() {
                true => primary::daemon::judge(self.config, dir, true),
                false => Ok(()),
            }),
        };
        let keys = [role.word(), "dir"];
        match judged {
            Ok(()) => {}
            Err(error) if exit_status(&error) == EXIT_REFUSED => self.findings.refuse(&keys, format!("{error:#}")),
            Err(error) => self.findings.note(Weight::Error, &keys, format!("{error:#}")),
        }
    }

    /// Notes what is wrong with a volume's file, or worth knowing; whether the role would open it.
    pub(super) fn is_ours(&mut self, role: RoleName, keys: &[&str], dir: &Path, at: usize, path: &Path) -> bool {
        let holder = self.holder(role, dir, at);
        match mark::judge(path, &holder) {
            Ok(Ok(Verdict { note, .. })) => {
                note.into_iter().chain(mark::written_since(path)).for_each(|note| {
                    self.findings.note(Weight::Warning, keys, note);
                });
            }
            Ok(Err(text)) => {
                self.findings.refuse(keys, text);
                return false;
            }
            Err(fail) => {
                self.findings.note(Weight::Error, keys, fail.to_string());
                return false;
            }
        }
        true
    }

    /// What the directory of a role knows of a volume.
    fn holder(&self, role: RoleName, dir: &Path, at: usize) -> Holder {
        let known = superblock(&dir.join("superblock"));
        let promoted = known.as_ref().is_some_and(|known| known.has(PROMOTED));
        let since = promoted.then(|| superblock(&dir.join("promoted.superblock"))).flatten();
        let sizes = known.iter().chain(&since).map(Superblock::least_bytes);
        let part = match role {
            RoleName::Dr if promoted => Part::Promoted,
            RoleName::Dr => Part::Dr,
            _ => Part::Primary,
        };
        Holder {
            mark: Mark {
                part,
                owner: known.as_ref().map_or(Owner::default(), |known| known.owner),
                group: self.config.group.name.clone(),
                volume: self.config.volumes[at].name.clone(),
            },
            dir: dir.display().to_string(),
            empty: is_absent(&dir.join("superblock")),
            begun: known.as_ref().is_some_and(Superblock::has_begun),
            least: sizes.filter_map(|sizes| sizes.get(at).copied()).max().unwrap_or(0),
            marked: known.iter().chain(&since).any(|known| known.has(MARKED)),
        }
    }
}

/// The one in force, if it can be read: what is wrong with it the role says.
fn superblock(path: &Path) -> Option<Superblock> {
    let bytes = std::fs::read(path).ok()?;
    superblock::newest(bytes.get(..SUPERBLOCK_BYTES)?).ok().flatten()
}
