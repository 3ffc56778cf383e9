//! Which parts of a file have storage, found on a helper thread: the answer takes system calls that may wait for the
//! disk, or for a hole that is being punched, and the reactor waits for nothing.
//!
//! What a file system says is what it says at that moment. A write that has been completed is never called a hole:
//! `SEEK_DATA` sees the page cache and what direct writes have reached. Where nobody can tell (block devices, file
//! systems without holes) everything has storage.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::libc;

use super::open::{Opened, failed};
use super::signal::Waker;
use crate::core::allocation::Stretch;
use crate::core::ids::Ticket;
use crate::core::machine::IoFail;

/// The stretches of a range, from its start on without gaps; fewer than all of them if there are very many.
pub type Found = Result<Vec<Stretch>, IoFail>;

pub struct Extents {
    waker: Waker,
    answers: Receiver<(Ticket, Found)>,
    answer: Sender<(Ticket, Found)>,
    /// The helper thread, once there was something to do.
    jobs: Option<Sender<Job>>,
}

struct Job {
    file: File,
    ticket: Ticket,
    range: Range,
}

/// A range of a file.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub offset: u64,
    pub length: u64,
    /// Most stretches that are wanted, at least 1.
    pub most: usize,
}

impl Extents {
    pub fn new(waker: Waker) -> Extents {
        let (answer, answers) = channel();
        Extents { waker, answers, answer, jobs: None }
    }

    /// Begins to look; the answer comes by `answered`, after the reactor was woken.
    pub fn look(&mut self, opened: &Opened, ticket: Ticket, range: Range) {
        assert!(range.length > 0 && range.most > 0, "a range has bytes, and one stretch at least");
        let begun = if opened.block_device { Ok(None) } else { opened.file.try_clone().map(Some) };
        let found = match begun {
            Ok(Some(file)) => match self.hand_over(Job { file, ticket, range }) {
                Ok(()) => return,
                Err(error) => Err(failed(&opened.path, "cannot start a thread to list extents", &error)),
            },
            Ok(None) => Ok(vec![Stretch { length: range.length, hole: false }]),
            Err(error) => Err(failed(&opened.path, "cannot list extents", &error)),
        };
        // The receiver is our own.
        let _ = self.answer.send((ticket, found));
        self.waker.wake();
    }

    /// An answer that has come since.
    pub fn answered(&self) -> Option<(Ticket, Found)> {
        self.answers.try_recv().ok()
    }

    fn hand_over(&mut self, job: Job) -> io::Result<()> {
        if self.jobs.is_none() {
            let (jobs, todo) = channel::<Job>();
            let (answer, waker) = (self.answer.clone(), self.waker.clone());
            let work = move || {
                for Job { file, ticket, range } in todo {
                    // A reactor that is gone wants no answer.
                    let _ = answer.send((ticket, Ok(stretches(&file, range))));
                    waker.wake();
                }
            };
            std::thread::Builder::new().name("extents".into()).spawn(work)?;
            self.jobs = Some(jobs);
        }
        let jobs = self.jobs.as_ref().expect("made above");
        jobs.send(job).map_err(|_| io::Error::other("the helper thread has ended"))
    }
}

/// Looks for the stretches of a range. What cannot be told has storage: that is always a safe answer.
fn stretches(file: &File, Range { offset, length, most }: Range) -> Vec<Stretch> {
    let end = offset + length;
    let mut found = Vec::new();
    let mut at = offset;
    while at < end && found.len() < most {
        let data = match seek(file, at, libc::SEEK_DATA) {
            Ok(Some(data)) => data.min(end),
            Ok(None) => end,
            Err(_) => at,
        };
        if data > at {
            found.push(Stretch { length: data - at, hole: true });
            at = data;
            continue;
        }
        let hole = match seek(file, at, libc::SEEK_HOLE) {
            Ok(Some(hole)) if hole > at => hole.min(end),
            _ => end,
        };
        found.push(Stretch { length: hole - at, hole: false });
        at = hole;
    }
    found
}

/// The next data or hole from a position on; `None` behind the last one.
///
/// # Errors
/// What the file system says, where it knows no holes for example.
pub fn seek(file: &File, from: u64, whence: i32) -> io::Result<Option<u64>> {
    // SAFETY: the descriptor is open, and lseek names no memory. Nobody uses the file position.
    let at = unsafe { libc::lseek(file.as_raw_fd(), from.cast_signed(), whence) };
    match u64::try_from(at) {
        Ok(at) => Ok(Some(at)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_are_found_where_nothing_was_written_and_what_was_written_is_none() {
        let path = std::env::temp_dir().join(format!("farshore-extents-{}", std::process::id()));
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&path).expect("a file");
        let _ = std::fs::remove_file(&path);
        file.set_len(1 << 20).expect("room");
        file.write_all_at(&[7; 65536], 128 << 10).expect("room");
        file.write_all_at(&[7; 65536], 512 << 10).expect("room");
        let all = Range { offset: 0, length: 1 << 20, most: 100 };
        let found: Vec<(u64, bool)> = stretches(&file, all).iter().map(|one| (one.length >> 10, one.hole)).collect();
        assert_eq!(found, [(128, true), (64, false), (320, true), (64, false), (448, true)]);
        let part = stretches(&file, Range { offset: (128 << 10) + 1000, length: 100 << 10, most: 100 });
        assert_eq!(part, [Stretch { length: 64_536, hole: false }, Stretch { length: 37_864, hole: true }]);
        assert_eq!(stretches(&file, Range { most: 2, ..all }).len(), 2);
        assert_eq!(stretches(&file, Range { offset: 600 << 10, length: 1, most: 1 })[0].length, 1);
    }
}
