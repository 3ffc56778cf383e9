//! Whether two names lead to one place, also where nothing is yet; and whether the directory of a role can be used at all: what a
//! start asks before it makes or opens anything, and `farshore check` with the same words.

use std::path::{Component, Path, PathBuf};

use super::mark;
use super::open::{examine, judge, judge_dir};
use crate::core::machine::IoFail;

/// Links that are followed in one path.
const LINKS_MAX: u32 = 40;

/// What all names of one place have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spot {
    /// A file, a directory or a device.
    There((bool, u64, u64)),
    /// Nothing is there, at the end of all links.
    Gone(PathBuf),
}

/// Where a path leads.
#[must_use]
pub fn spot(path: &Path) -> Spot {
    match std::fs::metadata(path) {
        Ok(found) => Spot::There(mark::identity(&found)),
        Err(_) => Spot::Gone(resolved(path, &mut { LINKS_MAX })),
    }
}

/// A path without links, and without steps back.
fn resolved(path: &Path, links: &mut u32) -> PathBuf {
    let mut at = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                at.pop();
            }
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => at.push(part),
            Component::Normal(name) => match std::fs::read_link(at.join(name)) {
                Ok(target) if *links > 0 => {
                    *links -= 1;
                    at = resolved(&at.join(target), links);
                }
                _ => at.push(name),
            },
        }
    }
    at
}

/// Two things that would be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// Two volumes, by their places in the list.
    Volumes(usize, usize),
    /// A volume and a file that the role keeps in its directory.
    Kept(usize),
}

/// The first volume that leads where another one does, or to a file of these names in the directory.
#[must_use]
pub fn shared(dir: &Path, names: &[String], volumes: &[Option<&Path>]) -> Option<Shared> {
    let kept: Vec<Spot> = names.iter().map(|name| spot(&dir.join(name))).collect();
    let mut before: Vec<(usize, Spot)> = Vec::new();
    for (at, path) in volumes.iter().enumerate() {
        let Some(found) = path.map(spot) else { continue };
        if kept.contains(&found) {
            return Some(Shared::Kept(at));
        }
        if let Some((first, _)) = before.iter().find(|(_, other)| *other == found) {
            return Some(Shared::Volumes(*first, at));
        }
        before.push((at, found));
    }
    None
}

/// Whether a directory can be made or is there, and what stands in it under names of the role are files that it may use.
/// `opened`: these are made where they are missing; `beside`: these may be there.
///
/// # Errors
/// What is in the way.
pub fn judge_all(dir: &Path, opened: &[&str], beside: &[String]) -> Result<(), IoFail> {
    if !judge_dir(dir)? {
        return Ok(());
    }
    for name in opened {
        judge(&dir.join(name), true)?;
    }
    for name in beside {
        examine(&dir.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_place_are_found_whether_or_not_it_is_there() {
        let dir = std::env::temp_dir().join(format!("farshore-places-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let link = |target: PathBuf, name: &str| std::os::unix::fs::symlink(target, dir.join(name)).expect("links");
        link(dir.join("p"), "pp");
        link(dir.join("pp/superblock"), "db.img");
        link("loop".into(), "loop");
        let names = ["superblock".to_owned(), "fifo".to_owned()];
        for made in [false, true] {
            let of = |paths: &[&str]| {
                let paths: Vec<PathBuf> = paths.iter().map(|path| dir.join(path)).collect();
                let paths: Vec<Option<&Path>> =
                    std::iter::once(None).chain(paths.iter().map(|it| Some(&**it))).collect();
                shared(&dir.join("p"), &names, &paths)
            };
            for path in ["p/superblock", "p/../p/fifo", "pp/superblock", "pp/../p/./fifo", "db.img"] {
                assert_eq!(of(&["other", path]), Some(Shared::Kept(2)), "{path}, made: {made}");
            }
            assert_eq!(of(&["p/a", "b", "pp/a"]), Some(Shared::Volumes(1, 3)), "made: {made}");
            assert_eq!(of(&["p/a", "b", "p/superblock2", "loop"]), None);
            std::fs::create_dir_all(dir.join("p")).expect("a directory");
            std::fs::write(dir.join("p/superblock"), "").expect("a file");
        }
        std::fs::hard_link(dir.join("p/superblock"), dir.join("hard")).expect("links");
        assert_eq!(shared(&dir.join("p"), &names, &[Some(&dir.join("hard"))]), Some(Shared::Kept(0)));
        std::fs::remove_dir_all(dir).expect("there");
    }

    #[test]
    fn what_is_no_file_is_named_and_not_waited_for() {
        let dir = std::env::temp_dir().join(format!("farshore-odd-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("dir")).expect("a directory");
        let at = |name: &str| dir.join(name);
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        std::fs::write(at("file"), "x").expect("a file");
        for (name, target) in [("null", "/dev/null".into()), ("dangling", at("nowhere")), ("loop", at("loop"))] {
            std::os::unix::fs::symlink(target, at(name)).expect("links");
        }
        for (name, words) in [
            ("pipe", "but a pipe"),
            ("dir", "but a directory"),
            ("null", "but a device"),
            ("dangling", "nothing is made at the end of a link"),
            ("loop", "cannot examine"),
        ] {
            for (opened, beside) in [(vec![name], vec![]), (vec![], vec![name.to_owned()])] {
                let said = judge_all(&dir, &opened, &beside).expect_err(name).to_string();
                assert!(said.contains(words) && said.contains(&at(name).display().to_string()), "{said}");
            }
            let options = super::super::OpenOptions { path: at(name), create: true, ..Default::default() };
            let said = super::super::open::open(&options).expect_err(name).to_string();
            assert!(said.contains(words), "{said}");
            assert!(super::super::open::to_read(&at(name)).is_err());
            let said = judge_dir(&at(name)).err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(said.is_empty(), name == "dir", "{said}");
        }
        assert_eq!(judge_all(&dir, &["file"], &["missing".to_owned()]), Ok(()));
        assert!(!at("missing").exists() && !at("nowhere").exists(), "nothing is made");
        assert_eq!(judge_all(&at("new"), &["file"], &[]), Ok(()));
        let said = judge_all(&at("file/new"), &[], &[]).expect_err("in a file").to_string();
        assert!(said.contains("cannot"), "{said}");
        let said = judge_all(&at("no/new"), &[], &[]).expect_err("in nothing").to_string();
        assert!(said.contains("mount the file system"), "{said}");
        std::fs::remove_dir_all(dir).expect("there");
    }
}
