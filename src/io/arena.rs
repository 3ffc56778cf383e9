//! Page-aligned memory for payloads: what is received, read and written without a copy.
//!
//! One reserved range of addresses, in chunks of 1 MiB that are registered with the ring as fixed
//! buffers when they are first used. Pages are handed out in runs; a run goes back, page by page, when
//! the last `Bytes` that points into it is dropped. When the arena has no run, plain heap memory takes
//! its place (counted), so that a bound of the arena is never a bound of the data path.
//!
//! Invariants:
//! - A page belongs to at most one run at a time; a run is given back once.
//! - Bytes of a run that the kernel or we still write are never visible through a `Bytes`: only
//!   [`Run::expose`]d ranges are, and those are never written again.
//! - The mapping lives until the last run and the arena itself are gone.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use nix::libc;

/// Alignment of every run; the strictest that direct I/O asks for.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of one chunk, which is one fixed buffer.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Chunks without a used page that are kept for the next burst.
const IDLE_CHUNKS_MAX: usize = 16;
const CHUNK_PAGES: usize = CHUNK_BYTES / PAGE_BYTES;
const WORDS: usize = CHUNK_PAGES / 64;

const _: () = assert!(CHUNK_PAGES.is_multiple_of(64), "a chunk's pages fill whole words of its bitmap");

/// The memory of one reactor. Cheap to clone.
#[derive(Clone)]
pub struct Arena {
    shared: Arc<Shared>,
}

/// A run of pages that nobody else has: page-aligned, zeroed or with old contents, never uninitialised.
pub struct Run {
    ptr: NonNull<u8>,
    capacity: usize,
    home: Home,
}

// SAFETY: a run is plain memory owned through it alone; the arena's bookkeeping is behind a mutex.
unsafe impl Send for Run {}
// SAFETY: `&Run` gives out only addresses and `Bytes` of ranges that are no longer written.
unsafe impl Sync for Run {}

enum Home {
    Arena {
        shared: Arc<Shared>,
        chunk: u32,
        page: u16,
        pages: u16,
    },
    Heap {
        layout: Layout,
    },
    /// A mapping of its own, for what is longer than a chunk: its pages cost nothing before they are written.
    Mapping,
}

/// What the arena has handed out, for status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaStatus {
    pub chunks_used: usize,
    pub chunks_max: usize,
    pub pages_used: usize,
    /// Allocations that had to be taken from the heap although they would have fitted a chunk.
    pub heap_fallbacks: u64,
}

struct Shared {
    base: NonNull<u8>,
    chunks_max: usize,
    state: Mutex<State>,
    heap_fallbacks: AtomicU64,
}

// SAFETY: `base` is only used for address arithmetic; access to pages is governed by runs.
unsafe impl Send for Shared {}
// SAFETY: as above; all mutable bookkeeping is in the mutex.
unsafe impl Sync for Shared {}

#[derive(Default)]
struct State {
    chunks: Vec<Chunk>,
    /// Chunks of `chunks` that are open and of which no page is used.
    idle: usize,
    /// Chunks of `chunks` that were given back to the system.
    shut: usize,
    /// Where the last run was found: the search starts there.
    hint: usize,
    pages_used: usize,
}

struct Chunk {
    /// One bit a page, set while it is free.
    free: [u64; WORDS],
    free_pages: u16,
    /// Its memory was given back to the system: it is opened again before pages of it are handed out.
    shut: bool,
    /// Whether the ring knows the chunk as the fixed buffer of its index.
    registered: bool,
}

impl Arena {
    /// Reserves addresses for `bytes` (rounded up to chunks); memory is taken as it is used.
    pub fn new(bytes: usize) -> std::io::Result<Arena> {
        let chunks_max = bytes.div_ceil(CHUNK_BYTES).clamp(1, 16 << 10);
        // SAFETY: a fresh anonymous private mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                chunks_max * CHUNK_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).expect("a mapping made without MAP_FIXED is never at 0");
        let shared =
            Shared { base, chunks_max, state: Mutex::new(State::default()), heap_fallbacks: AtomicU64::new(0) };
        Ok(Arena { shared: Arc::new(shared) })
    }

    /// A run of at least `bytes`, and the chunk that must now be registered, if a new one was opened.
    pub fn allocate(&self, bytes: usize) -> (Run, Option<usize>) {
        let pages = bytes.div_ceil(PAGE_BYTES).max(1);
        if pages > CHUNK_PAGES {
            return (mapped_run(pages), None);
        }
        let mut state = self.shared.lock();
        let (place, opened) = match state.find(pages) {
            Some(place) => (place, None),
            None if state.shut > 0 || state.chunks.len() < self.shared.chunks_max => {
                let chunk = state.open();
                ((chunk, 0), Some(chunk))
            }
            None => {
                drop(state);
                self.shared.heap_fallbacks.fetch_add(1, Ordering::Relaxed);
                return (heap_run(pages), None);
            }
        };
        let (chunk, page) = place;
        state.take(chunk, page, pages);
        drop(state);
        // SAFETY: chunk < chunks_max and page < CHUNK_PAGES, so the address lies in the mapping.
        let ptr = unsafe { self.shared.base.add(chunk * CHUNK_BYTES + page * PAGE_BYTES) };
        let home =
            Home::Arena { shared: self.shared.clone(), chunk: chunk as u32, page: page as u16, pages: pages as u16 };
        (Run { ptr, capacity: pages * PAGE_BYTES, home }, opened)
    }

    /// Start and number of addresses of a chunk, for registering it.
    #[must_use]
    pub fn chunk_range(&self, chunk: usize) -> (*mut u8, usize) {
        assert!(chunk < self.shared.chunks_max, "chunks are counted by the arena");
        // SAFETY: the chunk lies in the mapping, by the assertion above.
        (unsafe { self.shared.base.add(chunk * CHUNK_BYTES) }.as_ptr(), CHUNK_BYTES)
    }

    /// Notes that the ring knows a chunk as a fixed buffer.
    pub fn set_registered(&self, chunk: usize) {
        self.shared.lock().chunks[chunk].registered = true;
    }

    /// Takes a chunk that is not used out of use, when there are more of them than are worth keeping: the
    /// ring has to forget it, and then [`Arena::release`] it.
    #[must_use]
    pub fn shut_idle(&self) -> Option<(usize, bool)> {
        let mut state = self.shared.lock();
        if state.idle <= IDLE_CHUNKS_MAX {
            return None;
        }
        let chunk =
            state.chunks.iter().rposition(|chunk| !chunk.shut && usize::from(chunk.free_pages) == CHUNK_PAGES)?;
        state.idle -= 1;
        state.shut += 1;
        let found = &mut state.chunks[chunk];
        found.shut = true;
        Some((chunk, std::mem::take(&mut found.registered)))
    }

    /// Gives the memory of a chunk that was shut back to the system.
    pub fn release(&self, chunk: usize) {
        assert!(self.shared.lock().chunks[chunk].shut, "only a chunk that is out of use is given back");
        let (start, length) = self.chunk_range(chunk);
        // SAFETY: the chunk is part of the mapping, and none of its pages is handed out or registered; it
        // reads as zeroes when it is used again.
        let status = unsafe { libc::madvise(start.cast(), length, libc::MADV_DONTNEED) };
        assert_eq!(status, 0, "giving back anonymous memory of our own does not fail");
    }

    /// The fixed buffer that holds all of these addresses, if one does.
    #[must_use]
    pub fn fixed_index(&self, ptr: *const u8, length: usize) -> Option<u16> {
        let offset = (ptr as usize).checked_sub(self.shared.base.as_ptr() as usize)?;
        let chunk = offset / CHUNK_BYTES;
        if length == 0 || chunk >= self.shared.chunks_max || (offset + length - 1) / CHUNK_BYTES != chunk {
            return None;
        }
        let state = self.shared.lock();
        state.chunks.get(chunk).filter(|chunk| chunk.registered).map(|_| chunk as u16)
    }

    /// Most chunks this arena will ever have: the size of the table of fixed buffers.
    #[must_use]
    pub fn chunks_max(&self) -> usize {
        self.shared.chunks_max
    }

    #[must_use]
    pub fn status(&self) -> ArenaStatus {
        let state = self.shared.lock();
        ArenaStatus {
            chunks_used: state.chunks.len() - state.shut,
            chunks_max: self.shared.chunks_max,
            pages_used: state.pages_used,
            heap_fallbacks: self.shared.heap_fallbacks.load(Ordering::Relaxed),
        }
    }
}

impl Run {
    /// Bytes the run has room for, whole pages.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// First address. Whoever shows it to the kernel keeps the run until the operation is completed.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// The memory of a run that nobody else has.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: `&mut self` proves that nothing was exposed (exposing needs the run in an `Arc`), and
        // arena pages and heap runs are zeroed when they are first made, so every byte is initialised.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.capacity) }
    }

    /// Gives the first `length` bytes away as `Bytes`.
    #[must_use]
    pub fn freeze(self, length: usize) -> Bytes {
        Run::expose(&Arc::new(self), 0, length)
    }

    /// Makes bytes `from..to` visible. They must be written completely, and are never written again.
    #[must_use]
    pub fn expose(run: &Arc<Run>, from: usize, to: usize) -> Bytes {
        assert!(from <= to && to <= run.capacity, "only bytes of the run can be exposed");
        Bytes::from_owner(View { run: run.clone(), from, to })
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        match &self.home {
            Home::Arena { shared, chunk, page, pages } => {
                shared.lock().give_back(*chunk as usize, *page as usize, *pages as usize);
            }
            // SAFETY: the memory was allocated with this very layout by `heap_run` and is freed once.
            Home::Heap { layout } => unsafe { std::alloc::dealloc(self.ptr.as_ptr(), *layout) },
            // SAFETY: the mapping was made with this very length by `mapped_run`, and is taken away once.
            Home::Mapping => unsafe {
                libc::munmap(self.ptr.as_ptr().cast(), self.capacity);
            },
        }
    }
}

/// A visible part of a run; keeps the run.
struct View {
    run: Arc<Run>,
    from: usize,
    to: usize,
}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `expose` checked the bounds, and its contract says that these bytes are initialised
        // and not written again while anyone can see them.
        unsafe { std::slice::from_raw_parts(self.run.ptr.as_ptr().add(self.from), self.to - self.from) }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the arena's lock")
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `Arena::new` with this length, and no run is left: each holds
        // an `Arc` of this.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.chunks_max * CHUNK_BYTES) };
    }
}

impl State {
    /// Opens a chunk: one that was shut, or a new one.
    fn open(&mut self) -> usize {
        self.idle += 1;
        if let Some(chunk) = self.chunks.iter().position(|chunk| chunk.shut) {
            self.chunks[chunk].shut = false;
            self.shut -= 1;
            return chunk;
        }
        self.chunks.push(Chunk::default());
        self.chunks.len() - 1
    }

    /// A place with `pages` free pages in a row.
    fn find(&mut self, pages: usize) -> Option<(usize, usize)> {
        let count = self.chunks.len();
        for step in 0..count {
            let index = (self.hint + step) % count;
            let chunk = &self.chunks[index];
            if chunk.shut || usize::from(chunk.free_pages) < pages {
                continue;
            }
            if let Some(page) = chunk.find(pages) {
                self.hint = index;
                return Some((index, page));
            }
        }
        None
    }

    fn take(&mut self, chunk: usize, page: usize, pages: usize) {
        let chunk = &mut self.chunks[chunk];
        self.idle -= usize::from(usize::from(chunk.free_pages) == CHUNK_PAGES);
        each_word(page, pages, |word, mask| {
            assert_eq!(chunk.free[word] & mask, mask, "only free pages are handed out");
            chunk.free[word] &= !mask;
        });
        chunk.free_pages -= pages as u16;
        self.pages_used += pages;
    }

    fn give_back(&mut self, chunk: usize, page: usize, pages: usize) {
        let chunk = &mut self.chunks[chunk];
        each_word(page, pages, |word, mask| {
            assert_eq!(chunk.free[word] & mask, 0, "a page is given back once");
            chunk.free[word] |= mask;
        });
        chunk.free_pages += pages as u16;
        self.idle += usize::from(usize::from(chunk.free_pages) == CHUNK_PAGES);
        self.pages_used -= pages;
    }
}

impl Default for Chunk {
    fn default() -> Chunk {
        Chunk { free: [u64::MAX; WORDS], free_pages: CHUNK_PAGES as u16, shut: false, registered: false }
    }
}

impl Chunk {
    /// First page of a row of `pages` free pages.
    fn find(&self, pages: usize) -> Option<usize> {
        if pages == 1 {
            let word = self.free.iter().position(|word| *word != 0)?;
            return Some(word * 64 + self.free[word].trailing_zeros() as usize);
        }
        let mut start = 0;
        let mut page = 0;
        while page < CHUNK_PAGES {
            let word = self.free[page / 64] >> (page % 64);
            if word & 1 == 0 {
                // Whole runs of used pages are skipped at once, within their word.
                page += if word == 0 { 64 - page % 64 } else { word.trailing_zeros() as usize };
                start = page;
            } else {
                page += ((!word).trailing_zeros() as usize).min(64 - page % 64);
            }
            if page - start >= pages {
                return Some(start);
            }
        }
        None
    }
}

/// Calls `f(word, mask)` for the words of a bitmap that hold bits `from..from + count`.
fn each_word(from: usize, count: usize, mut f: impl FnMut(usize, u64)) {
    let mut bit = from;
    let end = from + count;
    while bit < end {
        let here = (64 - bit % 64).min(end - bit);
        let ones = if here == 64 { u64::MAX } else { (1 << here) - 1 };
        f(bit / 64, ones << (bit % 64));
        bit += here;
    }
}

/// Memory that the system gives page by page as it is written: a client that only promises a long payload holds none.
fn mapped_run(pages: usize) -> Run {
    let capacity = pages * PAGE_BYTES;
    // SAFETY: a fresh anonymous private mapping at an address of the kernel's choice aliases nothing.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            capacity,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    match NonNull::new(start.cast()) {
        Some(ptr) if start != libc::MAP_FAILED => Run { ptr, capacity, home: Home::Mapping },
        _ => heap_run(pages),
    }
}

fn heap_run(pages: usize) -> Run {
    let layout =
        Layout::from_size_align(pages * PAGE_BYTES, PAGE_BYTES).expect("sizes of payloads are far below isize");
    // SAFETY: the layout has at least one page, so its size is not zero.
    let ptr = unsafe { std::alloc::alloc_zeroed(layout) };
    let Some(ptr) = NonNull::new(ptr) else { std::alloc::handle_alloc_error(layout) };
    Run { ptr, capacity: layout.size(), home: Home::Heap { layout } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exhausted_arena_falls_back_to_the_heap_and_recovers() {
        let arena = Arena::new(2 * CHUNK_BYTES).unwrap();
        let mut held = Vec::new();
        for _ in 0..2 * CHUNK_PAGES {
            held.push(arena.allocate(PAGE_BYTES).0);
        }
        assert_eq!(arena.status().heap_fallbacks, 0);
        assert_eq!(arena.status().pages_used, 2 * CHUNK_PAGES);
        let extra = arena.allocate(1).0;
        assert_eq!(arena.status().heap_fallbacks, 1);
        assert_eq!(extra.as_ptr() as usize % PAGE_BYTES, 0);
        assert_eq!(arena.fixed_index(extra.as_ptr(), 1), None);
        held.truncate(CHUNK_PAGES);
        let whole = arena.allocate(CHUNK_BYTES).0;
        assert_eq!(arena.status().heap_fallbacks, 1, "the freed chunk is used again");
        drop((held, whole));
        assert_eq!(arena.status().pages_used, 0);
    }

    #[test]
    fn pages_never_overlap_whatever_the_order_of_frees() {
        let arena = Arena::new(4 * CHUNK_BYTES).unwrap();
        let mut live: Vec<(Run, u8)> = Vec::new();
        let mut random = 12345u64;
        for round in 0..20_000u64 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let pick = (random >> 33) as usize;
            if live.len() > 40 || (pick.is_multiple_of(3) && !live.is_empty()) {
                let (mut run, mark) = live.swap_remove(pick % live.len());
                assert!(run.as_mut_slice().iter().all(|byte| *byte == mark), "a live run was overwritten");
            } else {
                let (mut run, _) = arena.allocate(1 + pick % (20 * PAGE_BYTES));
                let mark = (round % 251) as u8;
                run.as_mut_slice().fill(mark);
                live.push((run, mark));
            }
        }
        live.clear();
        assert_eq!(arena.status().pages_used, 0);
    }

    #[test]
    fn bytes_keep_their_run_and_give_it_back() {
        let arena = Arena::new(CHUNK_BYTES).unwrap();
        let (mut run, opened) = arena.allocate(10_000);
        assert_eq!(opened, Some(0));
        run.as_mut_slice()[..3].copy_from_slice(b"abc");
        let bytes = run.freeze(10_000);
        let part = bytes.slice(1..3);
        drop(bytes);
        assert_eq!(arena.status().pages_used, 3);
        assert_eq!(&part[..], b"bc");
        drop(arena.clone());
        drop(part);
        assert_eq!(arena.status().pages_used, 0);
    }

    #[test]
    fn memory_of_a_burst_is_given_back_and_taken_again() {
        let arena = Arena::new(64 * CHUNK_BYTES).unwrap();
        let burst: Vec<Run> = (0..64).map(|_| arena.allocate(CHUNK_BYTES).0).collect();
        assert_eq!(arena.shut_idle(), None);
        drop(burst);
        let mut shut = 0;
        while let Some((chunk, registered)) = arena.shut_idle() {
            assert!(!registered);
            arena.release(chunk);
            shut += 1;
        }
        assert_eq!(shut, 64 - IDLE_CHUNKS_MAX);
        assert_eq!(arena.status().chunks_used, IDLE_CHUNKS_MAX);
        let mut again: Vec<Run> = (0..64).map(|_| arena.allocate(CHUNK_BYTES).0).collect();
        assert_eq!(arena.status().heap_fallbacks, 0);
        for (mark, run) in again.iter_mut().enumerate() {
            run.as_mut_slice().fill(mark as u8);
        }
        assert!(again.iter_mut().enumerate().all(|(mark, run)| run.as_mut_slice().iter().all(|b| *b == mark as u8)));
    }

    #[test]
    fn what_is_longer_than_a_chunk_is_zeroed_memory_of_its_own() {
        let arena = Arena::new(CHUNK_BYTES).unwrap();
        let (mut run, opened) = arena.allocate(CHUNK_BYTES + 1);
        assert_eq!((opened, run.capacity(), arena.status().pages_used), (None, CHUNK_BYTES + PAGE_BYTES, 0));
        assert!(run.as_mut_slice().iter().all(|byte| *byte == 0));
        run.as_mut_slice()[CHUNK_BYTES] = 7;
        let bytes = run.freeze(CHUNK_BYTES + 1);
        assert_eq!(arena.fixed_index(bytes.as_ptr(), 1), None);
        assert_eq!(bytes[CHUNK_BYTES], 7);
    }

    #[test]
    fn only_registered_chunks_have_a_fixed_index() {
        let arena = Arena::new(2 * CHUNK_BYTES).unwrap();
        let (run, opened) = arena.allocate(CHUNK_BYTES);
        assert_eq!(arena.fixed_index(run.as_ptr(), 4096), None);
        arena.set_registered(opened.unwrap());
        assert_eq!(arena.fixed_index(run.as_ptr(), CHUNK_BYTES), Some(0));
        assert_eq!(arena.fixed_index(run.as_ptr(), CHUNK_BYTES + 1), None, "one fixed buffer, not two");
        let outside = [0u8; 16];
        assert_eq!(arena.fixed_index(outside.as_ptr(), 16), None);
    }
}
