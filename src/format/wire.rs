//! The link between primary and DR: messages and their frames.

use bytes::Bytes;

use super::record::OrderRecord;
use crate::core::ids::{Chain, Epoch, GroupId, Owner, Seq, SeqRange};

/// What a connection is for. The primary opens one `Order` and N `Stream` connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Order records one way; their acknowledgement, progress and pings the other.
    Order,
    /// Payloads and chunks one way, their acknowledgement the other.
    Stream,
}

/// First message of the side that connected (the primary).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub purpose: Purpose,
    pub group: GroupId,
    pub group_name: String,
    pub epoch: Epoch,
    /// Identity of the writer.
    pub owner: Owner,
    /// Drawn anew at each start of the primary's process: streams must match their order connection.
    pub incarnation: u64,
    /// Name and size in bytes of each volume, in order.
    pub volumes: Vec<(String, u64)>,
    /// Highest seq of this history, and its chain.
    pub tail: Seq,
}

/// Answer of DR to an acceptable hello: where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    pub group: GroupId,
    pub epoch: Epoch,
    /// Identity of this DR directory.
    pub owner: Owner,
    /// Last seq durable in the journal, and its chain.
    pub journal_seq: Seq,
    pub journal_chain: Chain,
    pub cut: Seq,
    pub applied: Seq,
    /// Whether a first sync has ever been completed: the volume has a recovery point.
    pub synced: bool,
    /// Whether the volume was known to be all zeroes when DR took it (holes need not be sent).
    pub blank: bool,
    /// The batch whose chunks DR keeps, by the seq of its begin; 0 when none.
    pub batch: Seq,
    /// Payloads beyond the cut that DR has.
    pub have: Vec<SeqRange>,
    /// Bytes of payload the primary may have unacknowledged over all streams.
    pub window_bytes: u64,
}

/// Why a hello was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RefuseCode {
    Version = 1,
    WrongGroup = 2,
    /// A higher epoch is in force here: the sender has been fenced (I7).
    Fenced = 3,
    /// Another writer of the same epoch.
    SecondPrimary = 4,
    Volumes = 5,
    /// This side is not ready: starting, or promoting.
    NotNow = 6,
    Protocol = 7,
}

/// A refusal: closes the connection after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refuse {
    pub code: RefuseCode,
    /// Epoch in force at the refuser.
    pub epoch: Epoch,
    /// What, where and what to do, for the operator.
    pub text: String,
}

/// Every message of the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Hello(Hello),
    Welcome(Welcome),
    Refuse(Refuse),
    /// Order records, in order (order connection, to DR).
    Orders(Vec<OrderRecord>),
    /// All records up to here are durable in the journal (order connection, to primary).
    OrdersDurable {
        journal_seq: Seq,
    },
    /// One payload with its record (stream, to DR).
    Payload {
        record: OrderRecord,
        data: Bytes,
    },
    /// Payloads durable in the spool (same stream, to primary).
    Copied {
        ranges: Vec<SeqRange>,
    },
    /// A piece of a batch (stream, to DR). `record.seq` is the id of the batch; `op` is `Write` with data
    /// or `WriteZeroes` without. `index` counts from 0 in the batch.
    Chunk {
        index: u64,
        record: OrderRecord,
        data: Bytes,
    },
    /// Chunks durable (same stream, to primary).
    ChunksDurable {
        batch: Seq,
        indexes: Vec<u64>,
    },
    /// DR lost or found damaged these payloads; send them again or cover them by a batch (to primary).
    Need {
        ranges: Vec<SeqRange>,
    },
    /// Where DR stands (order connection, to primary; at changes, at most ten times a second).
    Progress {
        cut: Seq,
        applied: Seq,
        synced: bool,
        spool_bytes: u64,
        window_bytes: u64,
    },
    Ping {
        nonce: u64,
    },
    Pong {
        nonce: u64,
    },
}
