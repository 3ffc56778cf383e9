//! Newtypes for everything that would otherwise be a bare integer.

use std::fmt;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

newtype!(
    /// Sequence number of a write in its group. The first write has 1; 0 means "before the first".
    Seq(u64)
);
newtype!(
    /// Generation of the group's writer, from 1; the fencing token (I7).
    Epoch(u32)
);
newtype!(
    /// Index of a volume in its group, in the order of the configuration.
    Volume(u16)
);
newtype!(
    /// Random identity of a group, drawn when its primary is first started; 0 means "none yet".
    GroupId(u64)
);
newtype!(
    /// Random identity of one writer's data directory: tells a restart from a second primary.
    Owner(u64)
);
newtype!(
    /// Digest over a record and everything before it: two histories that differ once differ ever after.
    Chain(u64)
);
newtype!(
    /// Names one asynchronous operation between a machine and its shell; never reused in a run.
    Ticket(u64)
);
newtype!(
    /// Names one connection between a machine and its shell; never reused in a run.
    Conn(u64)
);

impl Seq {
    /// The seq after this one.
    #[must_use]
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }

    /// The seq before this one; `Seq(0)` has none before it and stays.
    #[must_use]
    pub fn prev(self) -> Seq {
        Seq(self.0.saturating_sub(1))
    }
}

/// An inclusive run of seqs, `first ≤ last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct SeqRange {
    pub first: Seq,
    pub last: Seq,
}

impl SeqRange {
    /// How many seqs these are.
    #[must_use]
    pub fn count(self) -> u64 {
        self.last.0 - self.first.0 + 1
    }

    /// Adds a seq that is no lower than any in `runs`: to the last of them, if it is next to it.
    pub fn add_to(runs: &mut Vec<SeqRange>, seq: Seq) {
        match runs.last_mut() {
            Some(run) if run.last == seq => {}
            Some(run) if run.last.next() == seq => run.last = seq,
            _ => runs.push(SeqRange { first: seq, last: seq }),
        }
    }

    /// Ascending seqs as runs.
    pub fn runs_of(seqs: impl IntoIterator<Item = Seq>) -> Vec<SeqRange> {
        let mut runs = Vec::new();
        seqs.into_iter().for_each(|seq| SeqRange::add_to(&mut runs, seq));
        runs
    }
}

/// A byte range of one volume. `length` is never 0 in a stored value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extent {
    pub volume: Volume,
    pub offset: u64,
    pub length: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascending_seqs_are_runs_without_gaps_each_seq_once() {
        let runs = SeqRange::runs_of([1, 2, 2, 3, 5, 7, 8].map(Seq));
        let found: Vec<_> = runs.iter().map(|run| (run.first.0, run.last.0, run.count())).collect();
        assert_eq!(found, [(1, 3, 3), (5, 5, 1), (7, 8, 2)]);
        assert_eq!(SeqRange::runs_of([]), []);
    }
}
