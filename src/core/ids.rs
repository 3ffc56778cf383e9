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

/// A byte range of one volume. `length` is never 0 in a stored value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extent {
    pub volume: Volume,
    pub offset: u64,
    pub length: u64,
}
