//! Whether the directory of a role, and what stands where a volume is to be, can be used: as the role finds it at its start.

use std::path::Path;

use super::Host;
use crate::cli::arguments::RoleName;
use crate::cli::check::Weight;
use crate::cluster::control::Refused;
use crate::core::identity::{Holder, Mark, Part};
use crate::core::ids::Owner;
use crate::core::machine::ReadAt as _;
use crate::core::names::{self, SUPERBLOCK};
use crate::format::superblock::{self, MARKED, PROMOTED, SUPERBLOCK_BYTES, Superblock};
use crate::io::{Still, is_absent, mark};
use crate::{auxiliary, dr, primary};

impl Host<'_, '_, '_> {
    /// Notes what a start would say of a directory, or where it is to be; whether it would go on.
    pub(super) fn judged(&mut self, role: RoleName, dir: &Path) -> bool {
        let promoted = || superblock(&dir.join(SUPERBLOCK)).is_some_and(|known| known.has(PROMOTED));
        let judged = match role {
            RoleName::Aux => auxiliary::daemon::judge(dir, &self.config.group.name),
            RoleName::Primary => primary::daemon::judge(self.config, dir, false),
            RoleName::Dr => dr::daemon::judge(self.config).and_then(|()| match promoted() {
                true => primary::daemon::judge(self.config, dir, true),
                false => Ok(()),
            }),
        };
        judged.map_err(|error| self.findings.ends(&[role.word(), "dir"], error)).is_ok()
    }

    /// Notes what is wrong with a volume's file, or worth knowing. Of one that the role would open, whether it would make it.
    pub(super) fn is_ours(
        &mut self,
        role: RoleName,
        keys: &[&str],
        dir: &Path,
        at: usize,
        path: &Path,
    ) -> Option<bool> {
        let holder = self.holder(role, dir, at);
        let judged = mark::judge(path, &holder).map_err(anyhow::Error::from);
        match judged.and_then(|judged| judged.map_err(|text| Refused(text).into())) {
            Ok(verdict) => {
                verdict.notes().cloned().chain(mark::written_since(path)).for_each(|note| {
                    self.findings.note(Weight::Warning, keys, note);
                });
                Some(verdict.make)
            }
            Err(error) => {
                self.findings.ends(keys, error);
                None
            }
        }
    }

    /// What the directory of a role knows of a volume.
    fn holder(&self, role: RoleName, dir: &Path, at: usize) -> Holder {
        let known = superblock(&dir.join(SUPERBLOCK));
        let promoted = known.as_ref().is_some_and(|known| known.has(PROMOTED));
        let since = promoted.then(|| superblock(&dir.join(format!("{}{SUPERBLOCK}", names::PROMOTED)))).flatten();
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
            empty: is_absent(&dir.join(SUPERBLOCK)),
            begun: known.as_ref().is_some_and(Superblock::has_begun),
            wanted: known
                .as_ref()
                .filter(|known| known.volumes.len() == self.config.volumes.len())
                .map_or(self.config.volumes[at].size, |known| known.volumes[at].1),
            least: sizes.filter_map(|sizes| sizes.get(at).copied()).max().unwrap_or(0),
            marked: known.iter().chain(&since).any(|known| known.has(MARKED)),
        }
    }
}

/// The one in force, if it can be read: what is wrong with it the role says.
pub(super) fn superblock(path: &Path) -> Option<Superblock> {
    let bytes = Still::of(path, 0).ok()?.read_at(0, SUPERBLOCK_BYTES).ok()?;
    superblock::newest(&bytes).ok().flatten()
}
