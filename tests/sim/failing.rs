//! Owns when operations of a simulated disk fail.

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
