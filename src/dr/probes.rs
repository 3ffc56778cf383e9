//! Who has asked for ranges of the volumes, and waits for what the replay reads there.

use std::collections::{BTreeMap, VecDeque};

use crate::core::ids::Conn;

/// What was asked, in order, each with who did.
#[derive(Clone, Debug)]
pub(super) struct Probes<T> {
    pub(super) waiting: VecDeque<(Conn, T)>,
    /// Given to the replay, by the number of the probe.
    pub(super) probing: BTreeMap<u64, (Conn, T)>,
}

impl<T> Default for Probes<T> {
    fn default() -> Probes<T> {
        Probes { waiting: VecDeque::new(), probing: BTreeMap::new() }
    }
}

impl<T> Probes<T> {
    /// Whoever asked is gone: if he comes again, he asks again.
    pub(super) fn drop_of(&mut self, conn: Conn) {
        self.waiting.retain(|(of, _)| *of != conn);
        self.probing.retain(|_, (of, _)| *of != conn);
    }

    /// Everything that has not been answered.
    pub(super) fn all(&self) -> impl Iterator<Item = &T> {
        self.waiting.iter().chain(self.probing.values()).map(|(_, it)| it)
    }
}
