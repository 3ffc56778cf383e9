//! Is a file the volume that a directory takes it for? The mark that a role leaves on it, and what follows from it.
//!
//! The mark is the extended attribute [`ATTRIBUTE`], a line of text:
//!
//! ```text
//!   farshore-volume 1 part=dr owner=00000000000004d2 group=orders volume=db
//! ```
//!
//! | store | directory | so |
//! |---|---|---|
//! | missing, or a file without a byte | new | it is made |
//! | missing | has begun | refused: what it held is not there |
//! | shorter than the superblock says | has begun | refused |
//! | shorter than the volume, and not empty | new | refused: a wrong size, or a wrong file |
//! | longer than the volume | new | used, with a warning: what is behind its end is not part of it |
//! | without a mark, and begins as a file does that roles keep | new | refused: it is one |
//! | anything else | | its mark decides |
//!
//! | mark | directory | so |
//! |---|---|---|
//! | none, and none can be set | | used |
//! | none | never set one | marked |
//! | none | had set one | marked, with a warning |
//! | that of this directory and volume | | used |
//! | that of DR's copy, of the same volume | DR, empty | refused, but for a file without a byte |
//! | that of DR's copy, of the same volume | DR, from a first start that came to nothing | taken over, with a line in the log |
//! | another one, of the same volume and a part that can be followed | new | taken over, with a line in the log |
//! | another one | | refused |
//! | not readable | | refused |
//!
//! What can be followed by a new directory: a primary's volume by another primary, and so can that of a promoted DR be. A DR
//! follows nobody by itself: its first copy overwrites what is there, and a copy whose directory is not to be seen may be
//! the last one (I6): its file system may only not be mounted.
//!
//! Invariants: I5, I8 - a store that lacks what was promised, or that is another's, is found before anything is made,
//! grown or served.

use std::fmt;

use crate::core::ids::Owner;

/// How the files begin that roles keep in their directories, and what each is.
const KEPT: [(&[u8; HEAD_BYTES], &str); 6] = [
    (b"FSHSUPER", "a superblock"),
    (b"FSHIMAPH", "the intent map of a primary"),
    (b"FSHILOGH", "the intent log of a primary"),
    (b"FSHENTRY", "a FIFO or a spool"),
    (b"FSHJOURN", "the journal of a DR"),
    (b"FSHTABLE", "a status table"),
];
/// Bytes of a file that tell whether it is one of those.
pub const HEAD_BYTES: usize = 8;

/// Which of the files that roles keep begins like this.
#[must_use]
pub fn kept(head: &[u8; HEAD_BYTES]) -> Option<&'static str> {
    KEPT.iter().find(|(magic, _)| *magic == head).map(|(_, what)| *what)
}

/// What is said of a store that has fewer bytes than its volume.
#[must_use]
pub fn too_small(path: &str, bytes: u64, volume: u64) -> String {
    format!("{path} has {bytes} bytes, but the volume has {volume}: grow it, or correct the size")
}

/// The extended attribute of a volume's file.
pub const ATTRIBUTE: &str = "user.farshore.volume";
/// Longest mark that is looked at, bytes; two names and some words fit.
pub const MARK_BYTES_MAX: usize = 256;

const HEAD: &str = "farshore-volume 1";

/// What a directory does with its volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Primary,
    Dr,
    /// A DR that has taken over.
    Promoted,
}

impl Part {
    pub const ALL: [Part; 3] = [Part::Primary, Part::Dr, Part::Promoted];

    fn word(self) -> &'static str {
        match self {
            Part::Primary => "primary",
            Part::Dr => "dr",
            Part::Promoted => "promoted",
        }
    }

    fn role(self) -> &'static str {
        match self {
            Part::Primary => "the primary",
            Part::Dr => "DR",
            Part::Promoted => "the promoted DR",
        }
    }

    /// Whether a new directory may take the volume of such a one over without being told to.
    fn follows(self, before: Part) -> bool {
        match self {
            Part::Primary | Part::Promoted => before != Part::Dr,
            Part::Dr => false,
        }
    }
}

/// Whose a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub part: Part,
    /// The directory.
    pub owner: Owner,
    pub group: String,
    pub volume: String,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mark { part, owner, group, volume } = self;
        write!(f, "{HEAD} part={} owner={:016x} group={group} volume={volume}", part.word(), owner.0)
    }
}

impl Mark {
    /// Reads what `Display` writes, and nothing else.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Mark> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut words = text.strip_prefix(HEAD)?.strip_prefix(' ')?.split(' ');
        let mut word = |key: &str| words.next()?.strip_prefix(key)?.strip_prefix('=');
        let part = word("part")?;
        let mark = Mark {
            part: Part::ALL.into_iter().find(|one| one.word() == part)?,
            owner: Owner(u64::from_str_radix(word("owner")?, 16).ok()?),
            group: word("group")?.into(),
            volume: word("volume")?.into(),
        };
        let named = !mark.group.is_empty() && !mark.volume.is_empty();
        (named && mark.to_string() == text).then_some(mark)
    }

    fn of(&self) -> String {
        let Mark { part, owner, group, volume } = self;
        format!("volume {volume:?} of {} of group {group:?} (directory {:016x})", part.role(), owner.0)
    }
}

/// The directory that a volume is opened for, and what it knows of the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// What it would be marked with; the owner of a new directory may not be known yet.
    pub mark: Mark,
    /// The directory, for messages.
    pub dir: String,
    /// Nothing is in it, not even what a first start leaves that came to nothing once its volumes were marked.
    pub empty: bool,
    /// Its superblock says that its volumes hold something.
    pub begun: bool,
    /// Bytes that the volume has by it, at least.
    pub least: u64,
    /// Bytes that the volume is to have.
    pub wanted: u64,
    /// It has marked its volumes.
    pub marked: bool,
}

/// What stands where a volume is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    Missing,
    /// A symbolic link, and what it leads to, which is not there.
    Dangling(String),
    /// Bytes, and the mark.
    File(u64, Seen),
    /// A device, whose size is judged when it is opened, and anything else that is no file.
    Other,
}

/// A mark as it is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The file system keeps none.
    Impossible,
    Nothing,
    /// None, and the file begins as one does that roles keep: which.
    Kept(&'static str),
    Text(Vec<u8>),
}

/// What is to be done with a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// It may be made if it is missing.
    pub make: bool,
    /// It is to be marked.
    pub mark: bool,
    /// What an operator should know.
    pub note: Option<String>,
    /// It is longer than the volume, in words.
    pub longer: Option<String>,
}

impl Verdict {
    /// All that an operator should know.
    pub fn notes(&self) -> impl Iterator<Item = &String> {
        self.note.iter().chain(&self.longer)
    }
}

impl Holder {
    /// What is to be done with the store at `path`.
    ///
    /// # Errors
    /// Why it is not to be touched, where it is, and what to do.
    pub fn judge(&self, path: &str, store: &Store) -> Result<Verdict, String> {
        match store {
            Store::Missing if self.begun => Err(self.missing(path)),
            Store::Dangling(target) => Err(format!(
                "{path} is a symbolic link to {target}, which is not there, and no file is made at the end of a link: mount \
                 what it leads to (activate the device), or name the file itself in the configuration"
            )),
            Store::Missing if is_device(path) => Err(format!(
                "{path}: there is no such device, and no file is made in its place: activate it, or correct the name in the \
                 configuration{}",
                hidden(path)
            )),
            Store::Missing => Ok(Verdict { make: true, mark: true, ..Verdict::default() }),
            Store::Other => Ok(Verdict::default()),
            Store::File(bytes, seen) => {
                // Whose it is says more than how long it is.
                let verdict = self.identify(path, *bytes, seen)?;
                if self.begun && *bytes < self.least {
                    return Err(self.short(path, *bytes));
                }
                if !self.begun && (1..self.wanted).contains(bytes) {
                    return Err(format!(
                        "{}. A file without a byte is grown by itself: if nothing in it is needed, empty it or remove it, and \
                         start again",
                        too_small(path, *bytes, self.wanted)
                    ));
                }
                let longer = (!self.begun && *bytes > self.wanted).then(|| self.longer(path, *bytes));
                Ok(Verdict { make: !self.begun, longer, ..verdict })
            }
        }
    }

    fn identify(&self, path: &str, bytes: u64, seen: &Seen) -> Result<Verdict, String> {
        let nothing = bytes == 0;
        let bytes = match seen {
            Seen::Impossible => return Ok(Verdict::default()),
            Seen::Kept(what) if !self.begun && !self.marked => return Err(self.kept(path, what)),
            Seen::Nothing | Seen::Kept(_) => {
                let note = self.marked.then(|| self.unmarked(path));
                return Ok(Verdict { mark: true, note, ..Verdict::default() });
            }
            Seen::Text(bytes) => bytes,
        };
        let Some(found) = Mark::read(bytes) else { return Err(self.unreadable(path)) };
        let same_volume = (&found.group, &found.volume) == (&self.mark.group, &self.mark.volume);
        if same_volume && found.owner == self.mark.owner {
            // A DR that takes over says so for good.
            let mark = self.mark.part == Part::Promoted && found.part == Part::Dr;
            return Ok(Verdict { mark, ..Verdict::default() });
        }
        let copy = same_volume && !self.begun && (self.mark.part, found.part) == (Part::Dr, Part::Dr);
        if copy && self.empty && !nothing {
            return Err(self.abandoned(path, &found));
        }
        if copy || same_volume && !self.begun && self.mark.part.follows(found.part) {
            let note = format!("{path} was {}: it is taken over by the new directory {}", found.of(), self.dir);
            return Ok(Verdict { mark: true, note: Some(note), ..Verdict::default() });
        }
        Err(self.foreign(path, &found))
    }

    fn name(&self) -> String {
        format!("volume {:?} of {} ({})", self.mark.volume, self.mark.part.role(), self.dir)
    }

    /// What to do once a volume is lost.
    fn lost(&self) -> String {
        match self.mark.part {
            Part::Primary => {
                "If it is lost for good, do not start this primary: promote DR, which has the copy (README, \
                              \"When the primary is gone\")"
                    .into()
            }
            Part::Dr => format!(
                "If it is lost for good and the primary is alive, empty {} and its volumes and start DR again: a new first copy is made",
                self.dir
            ),
            Part::Promoted => {
                "It is what this site serves since it was promoted; if it is lost for good, what was written \
                               since is lost with it: restore it from a backup"
                    .into()
            }
        }
    }

    fn missing(&self, path: &str) -> String {
        format!(
            "{path} is missing: {} stood there, and is not made anew, for nothing of what it held would be in it. Bring it \
             back, or mount the file system (activate the device) that it stands on, and start again{}. {}",
            self.name(),
            hidden(path),
            self.lost()
        )
    }

    fn short(&self, path: &str, bytes: u64) -> String {
        format!(
            "{path} has {bytes} bytes, the volume has {}: {} was truncated or replaced, and is not made longer, for what it \
             held there would be missing. Bring the whole file back and start again. {}",
            self.least,
            self.name(),
            self.lost()
        )
    }

    fn longer(&self, path: &str, bytes: u64) -> String {
        format!(
            "{path} has {bytes} bytes, and the volume has {}: what is behind that is no part of the volume, and stays as it is. \
             If all of it is meant, stop now and correct the size in the configuration",
            self.wanted
        )
    }

    fn kept(&self, path: &str, what: &str) -> String {
        format!(
            "{path} begins as {what} does, a file that a role of farshore keeps in its directory: it is not taken for {}, for that \
             would overwrite it. Name another file in the configuration, and start again",
            self.name()
        )
    }

    fn foreign(&self, path: &str, found: &Mark) -> String {
        let danger = match (self.begun, self.mark.part) {
            (false, Part::Dr) => ", and the first copy would overwrite it",
            _ => "",
        };
        format!(
            "{path} is marked as {}; it is not {}{danger}. Were two files exchanged, or is another one named in the \
             configuration? Bring the right one back, or name it. {}",
            found.of(),
            self.name(),
            take_over(path)
        )
    }

    fn abandoned(&self, path: &str, found: &Mark) -> String {
        format!(
            "{path} is marked as {}, and {} is a new directory, whose first copy would overwrite it: before that is complete \
             there would be no recovery point. Is the file system that {} stood on mounted? Mount it and start again. If that \
             directory is lost for good, and the primary is alive, remove {path} (or its mark alone, `setfattr -x {ATTRIBUTE} \
             {path}`, of the package attr) and start again: a new first copy is made",
            found.of(),
            self.dir,
            self.dir
        )
    }

    fn unreadable(&self, path: &str) -> String {
        format!(
            "{path} has a mark ({ATTRIBUTE}) that is none of this version of farshore, so that nobody can tell whether it is \
             {}. {}",
            self.name(),
            take_over(path)
        )
    }

    fn unmarked(&self, path: &str) -> String {
        format!(
            "{path} has no mark any more, though {} was marked: it was restored or copied without its attributes, or is \
             another file. It is used and marked anew; if it is not the right one, stop now and bring that back",
            self.name()
        )
    }
}

/// What else may be the matter with a device that is not there.
fn hidden(path: &str) -> &'static str {
    if is_device(path) {
        " (where it is there, the unit hides it from this role: a drop-in with DeviceAllow= shows it; README, \"Under systemd\")"
    } else {
        ""
    }
}

/// Whether a path is one of a device, and not of memory that is used as a file system.
fn is_device(path: &str) -> bool {
    path.starts_with("/dev/") && !path.starts_with("/dev/shm/")
}

/// How an operator says that a file is to be used all the same.
fn take_over(path: &str) -> String {
    format!(
        "To use what is in this file as that volume all the same, take its mark away (`setfattr -x {ATTRIBUTE} {path}`, of the package attr) and \
         start again"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(part: Part, owner: u64, group: &str, volume: &str) -> Mark {
        Mark { part, owner: Owner(owner), group: group.into(), volume: volume.into() }
    }

    #[test]
    fn a_mark_is_read_as_it_was_written_and_nothing_else_is_one() {
        let text = "farshore-volume 1 part=dr owner=00000000000004d2 group=orders volume=db";
        let longest = "n".repeat(crate::limits::NAME_BYTES_MAX);
        for part in Part::ALL {
            for mark in [mark(part, 1234, "orders", "db"), mark(part, u64::MAX, &longest, &longest)] {
                let written = mark.to_string();
                assert_eq!(Mark::read(written.as_bytes()), Some(mark));
                assert!(written.len() <= MARK_BYTES_MAX);
            }
        }
        assert_eq!(mark(Part::Dr, 1234, "orders", "db").to_string(), text);
        for end in 0..text.len() - 1 {
            assert_eq!(Mark::read(&text.as_bytes()[..end]), None, "{}", &text[..end]);
        }
        for other in ["", "farshore-volume 2 part=dr", &format!("{text} "), &format!("{text} more=1")] {
            assert_eq!(Mark::read(other.as_bytes()), None, "{other}");
        }
        for (from, to) in [("1 part", "2 part"), ("part=dr", "part=aux"), ("4d2", "4D2"), (" group", "  group")] {
            assert_eq!(Mark::read(text.replace(from, to).as_bytes()), None, "{from} -> {to}");
        }
        assert_eq!(Mark::read(b"\xff\xfe"), None);
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Is {
        Made,
        Used,
        Marked,
        Warned,
        TakenOver,
        Missing,
        Short,
        Small,
        Kept,
        Foreign,
        Unreadable,
    }

    fn is(judged: &Result<Verdict, String>, missing: bool) -> Is {
        match judged {
            Err(text) if text.contains("is missing") => Is::Missing,
            Err(text) if text.contains("bytes, the volume has") => Is::Short,
            Err(text) if text.contains("bytes, but the volume has") => Is::Small,
            Err(text) if text.contains("begins as the journal of a DR does") => Is::Kept,
            Err(text) if text.contains("is marked as") => Is::Foreign,
            Err(_) => Is::Unreadable,
            Ok(Verdict { make: true, .. }) if missing => Is::Made,
            Ok(Verdict { note: Some(note), .. }) if note.contains("taken over") => Is::TakenOver,
            Ok(Verdict { note: Some(_), mark: true, .. }) => Is::Warned,
            Ok(Verdict { mark: true, .. }) => Is::Marked,
            Ok(_) => Is::Used,
        }
    }

    /// The tables above, over all their inputs: part, directory, size and whatever the mark may say.
    #[test]
    fn every_store_is_judged_by_the_table() {
        let journal = Seen::Kept(kept(b"FSHJOURN").expect("one of ours"));
        let mut seen = vec![Seen::Impossible, Seen::Nothing, journal, Seen::Text(b"something else".to_vec())];
        for part in Part::ALL {
            for (owner, group, volume) in
                [(1, "g", "db"), (2, "g", "db"), (1, "g", "log"), (2, "h", "db"), (1, "h", "db")]
            {
                seen.push(Seen::Text(mark(part, owner, group, volume).to_string().into_bytes()));
            }
        }
        let known = [(false, false), (false, true), (true, false), (true, true)].map(|it| (false, it.0, it.1));
        let all = known.into_iter().chain([(true, false, false)]);
        for (part, (empty, begun, marked)) in
            Part::ALL.into_iter().flat_map(|part| all.clone().map(move |it| (part, it)))
        {
            let (ours, dir) = (mark(part, 1, "g", "db"), "/d".into());
            let holder = Holder { mark: ours, dir, empty, begun, least: 100, wanted: 100, marked };
            let missing = is(&holder.judge("/f", &Store::Missing), true);
            assert_eq!(missing, if begun { Is::Missing } else { Is::Made }, "{holder:?}");
            assert_eq!(holder.judge("/f", &Store::Other), Ok(Verdict::default()));
            for (bytes, seen) in [0, 99, 100, 101].into_iter().flat_map(|bytes| seen.iter().map(move |it| (bytes, it)))
            {
                let judged = holder.judge("/f", &Store::File(bytes, seen.clone()));
                let whose = match seen {
                    Seen::Impossible => Is::Used,
                    Seen::Kept(_) if !begun && !marked => Is::Kept,
                    Seen::Nothing | Seen::Kept(_) if marked => Is::Warned,
                    Seen::Nothing | Seen::Kept(_) => Is::Marked,
                    Seen::Text(text) => match Mark::read(text) {
                        None => Is::Unreadable,
                        Some(it) if it == (Mark { part: it.part, ..holder.mark.clone() }) => {
                            let promoted = (part, it.part) == (Part::Promoted, Part::Dr);
                            if promoted { Is::Marked } else { Is::Used }
                        }
                        Some(it) if it.group == "g" && it.volume == "db" && !begun => match (part, it.part) {
                            (Part::Dr, Part::Dr) if bytes == 0 || !empty => Is::TakenOver,
                            (Part::Dr, _) | (_, Part::Dr) => Is::Foreign,
                            _ => Is::TakenOver,
                        },
                        Some(_) => Is::Foreign,
                    },
                };
                let refused = matches!(whose, Is::Foreign | Is::Unreadable | Is::Kept);
                let want = match (begun, bytes) {
                    _ if refused => whose,
                    (true, ..100) => Is::Short,
                    (false, 1..100) => Is::Small,
                    _ => whose,
                };
                assert_eq!(is(&judged, false), want, "{bytes} {seen:?} {holder:?}: {judged:?}");
                match judged {
                    Ok(verdict) => {
                        assert_eq!(verdict.make, !begun);
                        let longer = verdict.longer.is_some_and(|text| text.contains("/f has 101 bytes"));
                        assert_eq!(longer, !begun && bytes == 101);
                    }
                    Err(text) => assert!(text.contains("/f") && text.contains("start again"), "{text}"),
                }
            }
        }
    }

    /// Whoever is refused has to be able to tell which file, whose it is, whose it should be, and what to do next.
    #[test]
    fn a_refusal_says_whose_the_file_is_and_what_to_do() {
        let roles = ["the primary", "DR", "the promoted DR"];
        let advice = [
            "do not start this primary: promote DR",
            "empty /d and its volumes and start DR again",
            "restore it from a backup",
        ];
        for (part, (role, advice)) in Part::ALL.into_iter().zip(roles.into_iter().zip(advice)) {
            let (ours, dir) = (mark(part, 1, "g", "db"), "/d".into());
            let new = Holder { mark: ours, dir, empty: false, begun: false, least: 100, wanted: 100, marked: true };
            let begun = Holder { begun: true, ..new.clone() };
            let ours = format!("volume \"db\" of {role} (/d)");
            for lost in [begun.judge("/f", &Store::Missing), begun.judge("/f", &Store::File(99, Seen::Impossible))] {
                let text = lost.expect_err("what it held is not there");
                assert!(text.contains("/f") && text.contains(&ours) && text.contains(advice), "{text}");
            }
            let note = new.judge("/f", &Store::File(100, Seen::Nothing)).expect("used").note.expect("with a warning");
            assert!(note.contains("/f has no mark any more") && note.contains(&ours), "{note}");
            let told = |holder: &Holder, text: &str| {
                let told =
                    holder.judge("/f", &Store::File(100, Seen::Text(text.into()))).expect_err("not to be touched");
                assert!(told.contains(&ours) && told.contains("setfattr -x user.farshore.volume /f"), "{told}");
                told
            };
            assert!(told(&new, "something else").contains(ATTRIBUTE));
            for (found, whose) in Part::ALL.into_iter().zip(roles) {
                let other = mark(found, 0x4d2, "h", "log").to_string();
                let theirs = format!("volume \"log\" of {whose} of group \"h\" (directory 00000000000004d2)");
                for holder in [&new, &begun] {
                    let text = told(holder, &other);
                    assert!(text.contains(&theirs), "{text}");
                    let overwrites = !holder.begun && part == Part::Dr;
                    assert_eq!(text.contains("the first copy would overwrite it"), overwrites, "{text}");
                }
            }
        }
    }
}
