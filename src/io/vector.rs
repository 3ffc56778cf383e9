//! Vectored reads and writes in the calling thread, for files in the page cache.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use bytes::Bytes;
use nix::libc;

use super::open::Opened;

/// Parts of one call; the kernel takes 1024.
const VECTORS_MAX: usize = 1024;

/// Vectors that name the parts, valid as long as the parts are.
pub fn of(parts: &[Bytes]) -> Vec<libc::iovec> {
    let name = |part: &Bytes| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
    parts.iter().map(name).collect()
}

/// Writes all parts one after another from `offset`.
pub fn write_all(file: &File, parts: &[Bytes], offset: u64) -> io::Result<()> {
    let mut vectors = of(parts);
    let (mut first, mut at) = (0, offset);
    while first < vectors.len() {
        let some = &vectors[first..(first + VECTORS_MAX).min(vectors.len())];
        // SAFETY: the vectors name memory of `parts`, which outlive the call; the kernel only reads it.
        let written = unsafe { libc::pwritev(file.as_raw_fd(), some.as_ptr(), some.len() as i32, at.cast_signed()) };
        let Ok(mut written) = usize::try_from(written) else {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        };
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        at += written as u64;
        while first < vectors.len() && written >= vectors[first].iov_len {
            written -= vectors[first].iov_len;
            first += 1;
        }
        if written > 0 {
            let vector = &mut vectors[first];
            vector.iov_base = vector.iov_base.cast::<u8>().wrapping_add(written).cast();
            vector.iov_len -= written;
        }
    }
    Ok(())
}

/// Reads what needs no waiting: `None` at the end of the file, otherwise how many bytes were there.
pub fn read_cached(opened: &Opened, into: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
    let vector = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let flags = if opened.memory_only { 0 } else { libc::RWF_NOWAIT };
    loop {
        // SAFETY: the one vector names `into`, which is borrowed for the call and only written by it.
        let read = unsafe { libc::preadv2(opened.file.as_raw_fd(), &raw const vector, 1, offset.cast_signed(), flags) };
        if let Ok(read) = usize::try_from(read) {
            return Ok(if read == 0 { None } else { Some(read) });
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN | libc::EOPNOTSUPP) => return Ok(Some(0)),
            _ => return Err(error),
        }
    }
}
