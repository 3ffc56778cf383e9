//! What stands where a volume is to be, and the mark on it ([`core::identity`](crate::core::identity)): looked at before
//! anything is opened, set once a role has taken it.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::io::Errno;

use super::open::failed;
use crate::core::identity::{ATTRIBUTE, Holder, MARK_BYTES_MAX, Seen, Store, Verdict};
use crate::core::machine::IoFail;

/// Looks what is there; opens nothing.
///
/// # Errors
/// It cannot be told.
pub fn survey(path: &Path) -> Result<Store, IoFail> {
    let fail = |error: io::Error| failed(path, "cannot examine", &error);
    let data = match std::fs::metadata(path) {
        Ok(data) => data,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Store::Missing);
        }
        Err(error) => return Err(fail(error)),
    };
    if !data.is_file() {
        return Ok(Store::Other);
    }
    let mut found = [0u8; MARK_BYTES_MAX];
    let seen = match getxattr(path, ATTRIBUTE, &mut found[..]) {
        Ok(length) => Seen::Text(found[..length].to_vec()),
        Err(Errno::NODATA) => Seen::Nothing,
        // Longer than any of ours.
        Err(Errno::RANGE) => Seen::Text(Vec::new()),
        // Who may not read the file does not get far either.
        Err(Errno::NOTSUP | Errno::NOSYS | Errno::PERM | Errno::ACCESS) => Seen::Impossible,
        Err(error) => return Err(fail(error.into())),
    };
    Ok(Store::File(data.len(), seen))
}

/// Looks again, now that nobody else has it open, and marks it where that is to be done. Whether it has a mark now.
///
/// # Errors
/// It cannot be told what is there, or `Ok(Err)`: what is there is not to be used, why, and what to do.
pub fn claim(path: &Path, holder: &Holder) -> Result<Result<bool, String>, IoFail> {
    let store = survey(path)?;
    let verdict = match holder.judge(&path.display().to_string(), &store) {
        Ok(verdict) => verdict,
        Err(text) => return Ok(Err(text)),
    };
    let Store::File(_, seen) = store else { return Ok(Ok(false)) };
    if !verdict.mark {
        return Ok(Ok(matches!(seen, Seen::Text(_))));
    }
    let set = || -> io::Result<()> {
        setxattr(path, ATTRIBUTE, holder.mark.to_string().as_bytes(), XattrFlags::empty())?;
        File::open(path)?.sync_all()
    };
    match set() {
        Ok(()) => Ok(Ok(true)),
        Err(error) if error.raw_os_error() == Some(Errno::NOTSUP.raw_os_error()) => Ok(Ok(false)),
        Err(error) => {
            tracing::warn!("{}: cannot be marked ({ATTRIBUTE}): {error}; it is used without a mark", path.display());
            Ok(Ok(false))
        }
    }
}

/// As [`Holder::judge`] of what is at `path` now.
///
/// # Errors
/// As [`claim`].
pub fn judge(path: &Path, holder: &Holder) -> Result<Result<Verdict, String>, IoFail> {
    Ok(holder.judge(&path.display().to_string(), &survey(path)?))
}

/// What all names of one file, or of one device, have in common.
#[must_use]
pub fn identity(data: &Metadata) -> (bool, u64, u64) {
    match data.file_type().is_block_device() {
        true => (true, data.rdev(), 0),
        false => (false, data.dev(), data.ino()),
    }
}

/// The first two of these paths that lead to one file or device, by their places in the list.
#[must_use]
pub fn same(paths: &[Option<&Path>]) -> Option<(usize, usize)> {
    let found: Vec<_> = paths.iter().map(|path| std::fs::metadata((*path)?).ok().map(|data| identity(&data))).collect();
    let pair = |at: usize| Some((found[..at].iter().position(|it| it.is_some() && *it == found[at])?, at));
    (0..found.len()).find_map(pair)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::identity::{Mark, Part};
    use crate::core::ids::Owner;

    #[test]
    fn a_file_bears_its_mark_and_two_names_are_one_file() {
        let dir = std::env::temp_dir().join(format!("farshore-mark-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let (path, link, other) = (dir.join("a"), dir.join("b"), dir.join("c"));
        assert_eq!(survey(&path).expect("looks"), Store::Missing);
        assert_eq!(survey(&dir).expect("looks"), Store::Other);
        File::create(&path).and_then(|file| file.set_len(8192)).expect("makes");
        File::create(&other).expect("makes");
        std::os::unix::fs::symlink(&path, &link).expect("links");
        assert_eq!(same(&[Some(&other), None, Some(&path), Some(&link)]), Some((2, 3)));
        assert_eq!(same(&[Some(&other), Some(&path), Some(&dir.join("d")), Some(&dir.join("d"))]), None);
        let mark = Mark { part: Part::Dr, owner: Owner(7), group: "g".into(), volume: "db".into() };
        let holder = Holder { mark, dir: "/d".into(), begun: true, least: 8192, marked: false };
        if survey(&path).expect("looks") == Store::File(8192, Seen::Impossible) || claim(&path, &holder) != Ok(Ok(true))
        {
            eprintln!("skipped: no attributes on this file system");
        } else {
            assert_eq!(judge(&path, &holder), Ok(Ok(Verdict::default())));
            let swapped = Holder { mark: Mark { volume: "log".into(), ..holder.mark.clone() }, ..holder };
            assert!(matches!(claim(&link, &swapped), Ok(Err(text)) if text.contains("\"db\"")), "by any name");
        }
        std::fs::remove_dir_all(dir).expect("there");
    }
}
