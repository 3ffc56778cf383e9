//! What stands where a volume is to be, and the mark on it ([`core::identity`](crate::core::identity)): looked at before
//! anything is opened for writing, set once a role has taken it.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read, Seek};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::libc;
use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};
use rustix::io::Errno;

use super::extents::seek;
use super::open::{failed, to_read};
use crate::core::identity::{ATTRIBUTE, HEAD_BYTES, Holder, MARK_BYTES_MAX, Seen, Store, Verdict, kept};
use crate::core::machine::IoFail;

/// What a file of a volume was when its role stopped cleanly.
const STOPPED: &str = "user.farshore.stopped";

/// Looks what is there; a file that bears no mark is read at its head.
///
/// # Errors
/// It cannot be told.
pub fn survey(path: &Path) -> Result<Store, IoFail> {
    let fail = |error: io::Error| failed(path, "cannot examine", &error);
    let data = match std::fs::metadata(path) {
        Ok(data) => data,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(match std::fs::read_link(path) {
                Ok(target) => Store::Dangling(target.display().to_string()),
                Err(_) => Store::Missing,
            });
        }
        Err(error) => return Err(fail(error)),
    };
    if !data.is_file() {
        return Ok(Store::Other);
    }
    let mut found = [0u8; MARK_BYTES_MAX];
    let seen = match getxattr(path, ATTRIBUTE, &mut found[..]) {
        Ok(length) => Seen::Text(found[..length].to_vec()),
        Err(Errno::NODATA) => head(path).map_or(Seen::Nothing, Seen::Kept),
        // Longer than any of ours.
        Err(Errno::RANGE) => Seen::Text(Vec::new()),
        // Who may not read the file does not get far either.
        Err(Errno::NOTSUP | Errno::NOSYS | Errno::PERM | Errno::ACCESS) => {
            head(path).map_or(Seen::Impossible, Seen::Kept)
        }
        Err(error) => return Err(fail(error.into())),
    };
    Ok(Store::File(data.len(), seen))
}

/// Which of the files that roles keep begins as this one does, if any. Where nothing was ever written nothing is read: what is
/// cached of reserved room would be told as data afterwards.
fn head(path: &Path) -> Option<&'static str> {
    let mut head = [0; HEAD_BYTES];
    let mut file = to_read(path).ok()?;
    if seek(&file, 0, libc::SEEK_DATA).is_ok_and(|data| data != Some(0)) {
        return None;
    }
    file.rewind().and_then(|()| file.read_exact(&mut head)).ok()?;
    kept(&head)
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
    if seen == Seen::Impossible {
        tracing::warn!("{}", no_attributes(path));
    }
    if !verdict.mark {
        return Ok(Ok(matches!(seen, Seen::Text(_))));
    }
    let set = || -> io::Result<()> {
        setxattr(path, ATTRIBUTE, holder.mark.to_string().as_bytes(), XattrFlags::empty())?;
        File::open(path)?.sync_all()
    };
    match set() {
        Ok(()) => Ok(Ok(true)),
        Err(error) if error.raw_os_error() == Some(Errno::NOTSUP.raw_os_error()) => {
            tracing::warn!("{}", no_attributes(path));
            Ok(Ok(false))
        }
        Err(error) => {
            tracing::warn!("{}: cannot be marked ({ATTRIBUTE}): {error}; it is used without a mark", path.display());
            Ok(Ok(false))
        }
    }
}

/// Where nothing can be marked.
fn no_attributes(path: &Path) -> String {
    format!(
        "{}: its file system keeps no extended attributes, so that it cannot be marked: if it is exchanged for another file, \
         nobody notices",
        path.display()
    )
}

/// What a file is when its role has stopped cleanly, in the attribute [`STOPPED`].
fn stamp(data: &Metadata) -> String {
    format!("farshore-stopped 1 bytes={} mtime={}.{:09}", data.len(), data.mtime(), data.mtime_nsec())
}

/// Notes on files of volumes what they are now that their role stops: whoever writes to them until the next start changes
/// that. Nothing more than a note: what cannot be noted is not missed.
pub fn leave<'a>(paths: impl IntoIterator<Item = &'a Path>) {
    for path in paths {
        let note = || -> io::Result<()> {
            let file = File::open(path)?;
            setxattr(path, STOPPED, stamp(&file.metadata()?).as_bytes(), XattrFlags::empty())?;
            file.sync_all()
        };
        if let Err(error) = note() {
            tracing::debug!("{}: what it is at this stop cannot be noted: {error}", path.display());
        }
    }
}

/// Says of a file that somebody else has written to since its role stopped, in the log and in `notes` for the status.
pub fn tell_written(path: &Path, notes: &mut Vec<String>) {
    if let Some(note) = take_note(path) {
        tracing::warn!("{note}");
        notes.push(note);
    }
}

/// As [`written_since`]. The note of the stop is taken away: after a crash there is none, and nothing is said.
fn take_note(path: &Path) -> Option<String> {
    let said = written_since(path);
    match removexattr(path, STOPPED) {
        Ok(()) | Err(Errno::NODATA | Errno::NOTSUP | Errno::NOENT) => {}
        Err(error) => tracing::debug!("{}: {error}: its attribute {STOPPED} stays", path.display()),
    }
    said
}

/// What to say of a file that somebody else has written to since its role stopped, as long as it has not started again.
#[must_use]
pub fn written_since(path: &Path) -> Option<String> {
    let mut found = [0u8; MARK_BYTES_MAX];
    let length = getxattr(path, STOPPED, &mut found[..]).ok()?;
    let now = stamp(&std::fs::metadata(path).ok()?);
    let then = std::str::from_utf8(&found[..length]).ok()?.to_owned();
    // An archive may have kept the whole seconds only.
    let seconds = |text: &str| text.split_once('.').map(|(seconds, _)| seconds.to_owned());
    let same = now == then || now.ends_with(".000000000") && seconds(&now) == seconds(&then);
    (!same).then(|| {
        format!(
            "{} was written to by somebody else since this role stopped: it is used as it is. If that was not meant (another \
             volume was copied onto it, say), stop the role and bring the right file back; on DR, with the primary alive, \
             empty DR's directory and volumes and start it, and a new first copy is made; of a primary promote DR instead",
            path.display()
        )
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::identity::{Mark, Part};
    use crate::core::ids::Owner;

    #[test]
    fn a_file_bears_its_mark_under_any_name() {
        let dir = std::env::temp_dir().join(format!("farshore-mark-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let (path, link, other) = (dir.join("a"), dir.join("b"), dir.join("c"));
        assert_eq!(survey(&path).expect("looks"), Store::Missing);
        assert_eq!(survey(&dir).expect("looks"), Store::Other);
        std::os::unix::fs::symlink(dir.join("nowhere"), dir.join("dangling")).expect("links");
        let dangling = survey(&dir.join("dangling")).expect("looks");
        assert!(matches!(&dangling, Store::Dangling(target) if target.ends_with("nowhere")), "{dangling:?}");
        File::create(&path).and_then(|file| file.set_len(8192)).expect("makes");
        File::create(&other).expect("makes");
        std::os::unix::fs::symlink(&path, &link).expect("links");
        let mark = Mark { part: Part::Dr, owner: Owner(7), group: "g".into(), volume: "db".into() };
        let holder =
            Holder { mark, dir: "/d".into(), empty: false, begun: true, least: 8192, wanted: 8192, marked: false };
        let own = dir.join("intent.log");
        std::fs::write(&own, [&b"FSHILOGH"[..], &[0; 8184]].concat()).expect("a file");
        assert!(matches!(survey(&own), Ok(Store::File(8192, Seen::Kept(what))) if what.contains("intent log")));
        let new = Holder { begun: false, ..holder.clone() };
        assert!(judge(&own, &new).expect("looks").is_err_and(|text| text.contains("intent log")));
        if survey(&path).expect("looks") == Store::File(8192, Seen::Impossible) || claim(&path, &holder) != Ok(Ok(true))
        {
            eprintln!("skipped: no attributes on this file system");
        } else {
            assert_eq!(judge(&path, &holder), Ok(Ok(Verdict::default())));
            leave([&*path]);
            assert_eq!(take_note(&path), None, "as it was left");
            std::fs::write(&path, [1; 512]).expect("written to");
            assert_eq!(take_note(&path), None, "and after a crash nobody knows");
            leave([&*path]);
            std::fs::copy(&other, &path).expect("a copy onto it");
            let looked = written_since(&path);
            let text = take_note(&path).expect("it is noticed, and the mark is still there");
            assert_eq!(looked.as_ref(), Some(&text), "who looks first takes nothing away");
            assert_eq!(written_since(&path), None);
            assert!(text.contains("by somebody else"), "{text}");
            File::options().write(true).open(&path).and_then(|file| file.set_len(8192)).expect("grows");
            let swapped = Holder { mark: Mark { volume: "log".into(), ..holder.mark.clone() }, ..holder };
            assert!(matches!(claim(&link, &swapped), Ok(Err(text)) if text.contains("\"db\"")), "by any name");
        }
        std::fs::remove_dir_all(dir).expect("there");
    }
}
