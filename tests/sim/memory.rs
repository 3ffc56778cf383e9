//! Owns the memory of the simulated files: kept from seed to seed, lent to a start that reads it, zeroes shared by all.

use std::cell::RefCell;
use std::ops::Range;

use bytes::Bytes;
use farshore::core::machine::{IoFail, ReadAt};

/// A file's bytes as a reader sees them, away from their file for so long.
pub struct Lent {
    bytes: Bytes,
    size: usize,
}

impl Lent {
    /// The first `size` bytes of this memory.
    pub fn new(memory: Vec<u8>, size: usize) -> Lent {
        Lent { bytes: memory.into(), size }
    }

    /// The memory again, or a copy of it if anybody has kept a piece.
    pub fn into_memory(self) -> Vec<u8> {
        self.bytes.into()
    }
}

/// What of a range stands in a file of `size` bytes.
pub fn within(offset: u64, length: usize, size: usize) -> Range<usize> {
    (offset as usize).min(size)..(offset as usize).saturating_add(length).min(size)
}

impl ReadAt for Lent {
    fn size(&self) -> u64 {
        self.size as u64
    }

    fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, IoFail> {
        let range = within(offset, length, self.size);
        if range.len() == length {
            return Ok(self.bytes.slice(range));
        }
        let mut out = self.bytes[range].to_vec();
        out.resize(length, 0);
        Ok(out.into())
    }
}

thread_local! {
    /// Memory of the files of earlier seeds, all of it zero.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// At least `size` zero bytes. Most of a file is never written, so zeroing what was is cheaper than all of it.
pub fn zeroed(size: usize) -> Vec<u8> {
    SPARE
        .with_borrow_mut(|spare| {
            let fits = spare.iter().enumerate().filter(|(_, it)| it.len() >= size).min_by_key(|(_, it)| it.len());
            fits.map(|(at, _)| at).map(|at| spare.swap_remove(at))
        })
        .unwrap_or_else(|| vec![0; size])
}

/// How many files' memory is kept for the next seeds.
const SPARE_MAX: usize = 48;

/// Takes the memory of a file that is gone, all of it zero again.
pub fn keep(memory: [Vec<u8>; 2]) {
    SPARE.with_borrow_mut(|spare| {
        spare.extend(memory);
        if spare.len() > SPARE_MAX {
            spare.sort_unstable_by_key(|it| std::cmp::Reverse(it.len()));
            spare.truncate(SPARE_MAX);
        }
    });
}

/// As long as a segment of the journal, which is zeroed before it is used.
pub static ZEROES: [u8; 1 << 20] = [0; 1 << 20];

/// Zeroes, without memory of their own if they are not too many.
pub fn zeroes(length: usize) -> Bytes {
    ZEROES.get(..length).map_or_else(|| vec![0; length].into(), Bytes::from_static)
}

/// Whether these are some of the shared zeroes.
pub fn is_shared_zero(data: &Bytes) -> bool {
    ZEROES.as_ptr_range().contains(&data.as_ptr())
}

pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, tail) = bytes.as_chunks::<16>();
    words.iter().all(|word| *word == [0; 16]) && tail.iter().all(|byte| *byte == 0)
}
