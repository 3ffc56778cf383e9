//! Reading and writing open files without the ring: start-up and recovery only.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::arena::{Arena, Run};
use super::open::{Opened, failed, failed_at, to_read};
use crate::core::machine::{IoFail, ReadAt};

/// Reads a file of a reactor. Independent of the reactor; blocks.
pub struct FileReader {
    file: File,
    path: PathBuf,
    size: u64,
    align: usize,
    arena: Arena,
}

impl FileReader {
    pub(super) fn new(opened: &Opened, arena: &Arena) -> Result<FileReader, IoFail> {
        let file = opened.file.try_clone().map_err(|error| failed(&opened.path, "cannot reopen", &error))?;
        let align = opened.direct_align.unwrap_or(1);
        Ok(FileReader { file, path: opened.path.clone(), size: opened.size, align, arena: arena.clone() })
    }
}

impl ReadAt for FileReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, IoFail> {
        let (run, _) = self.arena.allocate(length + 2 * self.align);
        read(&self.file, self.align, offset, length, run)
            .map_err(|error| failed_at(&self.path, "cannot read", offset, length as u64, &error))
    }
}

/// A file as it is, whether or not it is there: opened for reading only, and changed by nothing that looks at it.
pub struct Still {
    file: Option<File>,
    path: PathBuf,
    size: u64,
}

impl Still {
    /// The file at `path`; a shorter one, or none, is as one that has been grown to `least` bytes with zeroes.
    ///
    /// # Errors
    /// It is there and cannot be opened.
    pub fn of(path: &Path, least: u64) -> Result<Still, IoFail> {
        let fail = |error: io::Error| failed(path, "cannot open", &error);
        let file = match to_read(path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(fail(error)),
        };
        let found = file.as_ref().map_or(Ok(0), |file| file.metadata().map(|data| data.len())).map_err(fail)?;
        Ok(Still { file, path: path.into(), size: found.max(least) })
    }
}

impl ReadAt for Still {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, IoFail> {
        let mut bytes = vec![0; length];
        let mut done = 0;
        while let Some(file) = self.file.as_ref().filter(|_| done < length) {
            match file.read_at(&mut bytes[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed_at(&self.path, "cannot read", offset, length as u64, &error)),
            }
        }
        Ok(bytes.into())
    }
}

/// Reads exactly `length` bytes into a run that has room for them and two blocks more.
fn read(file: &File, align: usize, offset: u64, length: usize, mut run: Run) -> io::Result<Bytes> {
    let from = offset / align as u64 * align as u64;
    let lead = (offset - from) as usize;
    let wanted = (lead + length).next_multiple_of(align);
    let into = &mut run.as_mut_slice()[..wanted];
    let mut done = 0;
    while done < wanted {
        match file.read_at(&mut into[done..], from + done as u64) {
            Ok(0) => break,
            Ok(bytes) => done += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if !done.is_multiple_of(align) {
            break;
        }
    }
    into[done..].fill(0);
    Ok(run.freeze(wanted).slice(lead..lead + length))
}

/// Writes and makes durable.
pub fn write_durably(opened: &Opened, arena: &Arena, offset: u64, bytes: &[u8]) -> Result<(), IoFail> {
    let align = opened.direct_align.unwrap_or(1) as u64;
    assert!(
        offset.is_multiple_of(align) && (bytes.len() as u64).is_multiple_of(align),
        "at start-up whole blocks are written"
    );
    let (mut run, _) = arena.allocate(bytes.len());
    run.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
    let written = opened.file.write_all_at(&run.freeze(bytes.len()), offset);
    let length = bytes.len() as u64;
    written
        .and_then(|()| opened.file.sync_all())
        .map_err(|error| failed_at(&opened.path, "cannot write", offset, length, &error))
}

/// Zeroes a range that lies within one block, through the block.
pub fn zero_within_block(opened: &Opened, arena: &Arena, offset: u64, length: u64) -> Result<(), IoFail> {
    let align = opened.direct_align.unwrap_or(1) as u64;
    let base = offset / align * align;
    let attempt = || -> io::Result<()> {
        let (mut run, _) = arena.allocate(align.max(length) as usize);
        let block = &mut run.as_mut_slice()[..(offset + length - base).next_multiple_of(align) as usize];
        block.fill(0);
        let mut done = 0;
        while align > 1 && done < block.len() {
            match opened.file.read_at(&mut block[done..], base + done as u64)? {
                0 => break,
                bytes => done += bytes,
            }
        }
        block[(offset - base) as usize..(offset + length - base) as usize].fill(0);
        opened.file.write_all_at(block, base)
    };
    attempt().map_err(|error| failed_at(&opened.path, "writing zeroes failed", offset, length, &error))
}
