//! Owns when operations of a simulated disk fail.

use std::fmt::Debug;

use crate::disk::Disk;
use crate::rng::Rng;
use crate::setup::Failing;

/// A disk that fails for a while.
pub struct Fails<F> {
    pub how: Failing,
    pub until_ns: u64,
    /// Files that it does not concern.
    pub spared: fn(F) -> bool,
    /// A failed sync may lose what it was to make durable.
    pub loses: bool,
    /// What it loses may still be read.
    pub ghosts: bool,
    /// So many operations of a hundred fail.
    pub percent: u64,
    /// One fails, and that was all.
    pub once: bool,
    pub rng: Rng,
}

impl<F> Fails<F> {
    /// Whether an operation fails that may.
    pub fn strikes(&mut self, file: F, now_ns: u64) -> bool {
        let concerned = now_ns < self.until_ns && !(self.spared)(file);
        let strikes = concerned && (self.percent >= 100 || self.rng.chance(self.percent));
        if strikes && self.once {
            self.until_ns = 0;
        }
        strikes
    }
}

impl<F: Copy + Eq + Debug> Disk<F> {
    /// From now on operations fail, until then; not those of files that are `spared`.
    pub fn fail(&mut self, how: Failing, until_ns: u64, spared: fn(F) -> bool, loses: bool, rng: Rng) {
        self.fails = Some(Fails { how, until_ns, spared, loses, ghosts: false, percent: 100, once: false, rng });
    }

    /// What a failed sync loses may be read until the file is opened again.
    pub fn leaves_ghosts(&mut self) {
        self.fails.iter_mut().for_each(|fails| fails.ghosts = true);
    }

    /// Only the next one of them does.
    pub fn fails_once(&mut self) {
        self.fails.iter_mut().for_each(|fails| fails.once = true);
    }

    /// Others of them do not.
    pub fn fails_at_times(&mut self, percent: u64) {
        self.fails.iter_mut().for_each(|fails| fails.percent = percent);
    }

    /// Whether operations fail now.
    pub fn fails(&self, now_ns: u64) -> bool {
        self.fails.as_ref().is_some_and(|fails| now_ns < fails.until_ns && !fails.once)
    }

    /// Whether writes and syncs do.
    pub fn fails_writes(&self, now_ns: u64) -> bool {
        self.fails(now_ns) && !self.fails_reads()
    }

    pub fn fails_reads(&self) -> bool {
        self.fails.as_ref().is_some_and(|fails| fails.how == Failing::Reads)
    }
}
