//! The policies of a group: what a reply waits for, and what happens when it cannot be had.

use serde::{Deserialize, Serialize};

/// What is durable before a write is acknowledged, besides the local write (design: the table of modes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protect {
    /// Nothing; order records follow at once.
    Async,
    /// The order record at the auxiliary.
    Near,
    /// The order record at the auxiliary and in DR's journal.
    #[default]
    Order,
    /// Order record and payload at the auxiliary.
    Bunker,
    /// `Order`, and the payload in DR's spool.
    Sync,
}

/// Which peers the reply to a plain write waits for, so that what they are sent is in a hurry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Awaited {
    pub aux: bool,
    pub journal: bool,
}

impl Protect {
    #[must_use]
    pub fn awaited(self, ack: Ack) -> Awaited {
        let each = ack == Ack::Write;
        Awaited { aux: each && self != Protect::Async, journal: each && matches!(self, Protect::Order | Protect::Sync) }
    }

    /// Whether DR's journal holds the order of every write that this promises to keep, whatever is out of reach.
    #[must_use]
    pub fn tells_dr(self, require: Require) -> bool {
        require == Require::Both && matches!(self, Protect::Order | Protect::Sync)
    }

    /// Whether writes are acknowledged while nobody but the primary knows of them, so that the last are not known once it is
    /// lost.
    #[must_use]
    pub fn hides_the_last(self, ack: Ack, require: Require) -> bool {
        self == Protect::Async || ack == Ack::Flush || require == Require::None
    }
}

/// Where the wait takes place: at each write, or at FLUSH and FUA only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    #[default]
    Write,
    Flush,
}

/// What still acknowledges while the auxiliary or DR's journal is out of reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Require {
    /// Everything the mode asks for, or I/O waits.
    Both,
    /// At least one of the two holds the order.
    #[default]
    Any,
    /// The local disk is enough (and isolation does not freeze).
    None,
}

/// What NBD clients may do without TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// Everything: it is not offered.
    #[default]
    Off,
    /// Everything; who wants it gets it.
    Optional,
    /// Nothing.
    Required,
}

impl TlsMode {
    /// On a unix socket, which files' permissions guard and nobody can listen to, TLS is offered and never required.
    #[must_use]
    pub fn on_unix(self) -> TlsMode {
        if self == TlsMode::Required { TlsMode::Optional } else { self }
    }
}

/// Why this build cannot use keys that it shares with NBD clients, if it cannot.
pub const NO_SHARED_KEYS: Option<&str> = if cfg!(feature = "psk") {
    None
} else {
    Some(
        "this farshore was built without TLS with shared keys: build it with `cargo build --release --locked --features \
         psk` (which needs libssl-dev and pkg-config), or use certificates",
    )
};

/// What happens to writes when the FIFO is at its bound (I9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overflow {
    /// Payloads are dropped, their ranges remembered; a batch follows.
    #[default]
    Coalesce,
    /// New writes wait until there is room.
    Pace,
    /// New writes fail with ENOSPC.
    Refuse,
}

/// Whether what the streams to DR carry is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compress {
    Off,
    /// Where the link is what holds it up.
    #[default]
    Auto,
    /// Also where the link has room: its bytes cost something.
    Always,
}

/// A comparison of both sides from time to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scrub {
    /// From the end of one to the begin of the next, nanoseconds.
    pub every_ns: u64,
    /// Bytes a second, at the most.
    pub rate: u64,
}

/// How far DR may lag behind before writes wait, where they are paced: each part for itself, as far as it is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LagMax {
    pub writes: Option<u64>,
    pub bytes: Option<u64>,
    /// Age of the oldest write that is not at DR.
    pub seconds: Option<u64>,
}
