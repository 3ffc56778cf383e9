//! The link between primary and DR: messages and their frames.
//!
//! A frame is a header of 32 bytes, a body, and for `Payload`, `Chunk`, `Patch` and `Packed` the data:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `FSHL` |
//! | 4 | 1 | version |
//! | 5 | 1 | kind of message |
//! | 6 | 2 | flags, none yet |
//! | 8 | 4 | bytes of body |
//! | 12 | 4 | bytes of data |
//! | 16 | 4 | CRC-32 of the body |
//! | 20 | 8 | reserved |
//! | 28 | 4 | CRC-32 over bytes 0..28 |
//!
//! Header and its checksum stay as they are in every version, so that an unknown version is told from
//! damage. Data is verified by the payload checksum of the record in the body, that of a patch and of packed frames by their own. The bodies:
//!
//! | kind | message | body |
//! |---|---|---|
//! | 1 | hello | purpose 1, reserved 3, epoch 4, group 8, owner 8, incarnation 8, tail 8, name, number of volumes 2, then name and size 8 of each (a name: length 2, bytes) |
//! | 2 | welcome | group 8, epoch 4, flags 1 (synced, blank, gaps, led past), reserved 3, owner 8, journal seq 8, journal chain 8, cut 8, applied 8, batch 8, window 8, room 8, records 8, ranges |
//! | 3 | refuse | code 1, reserved 3, epoch 4, text (length 2, bytes) |
//! | 4 | orders | order records, packed (see `wire/orders.rs`) |
//! | 5 | orders durable | journal seq 8 |
//! | 6 | payload | order record 64 |
//! | 7 | copied | ranges: number 4, reserved 4, then first 8 and last 8 of each |
//! | 8 | chunk | index 8, order record 64 |
//! | 9 | chunks durable | batch 8, number 4, reserved 4, then 8 for each index |
//! | 10 | need | ranges |
//! | 11 | progress | cut 8, applied 8, spool bytes 8, window bytes 8, synced 1, reserved 7, room 8, records 8 |
//! | 12, 13 | ping, pong | nonce 8 |
//! | 14 | room asked | volume 2, reserved 6, size 8 |
//! | 15 | store room | volume 2, flags 1 (holds back), reserved 5, size 8, bytes there are 8, text |
//! | 16 | compare | id 8, volume 2, reserved 6, offset 8, length 8, seq 8, grain 8, number 4, reserved 4, then 8 for each digest |
//! | 17 | compared | id 8, verdict 8 (0 equal or different, 1 passed, 2 unreadable), different 8, text |
//! | 18 | patch | index 8, order record 64, grain 8, carried 8, CRC-32 of the data 4, reserved 4, number 4, reserved 4, then 16 for each digest |
//! | 19 | wanted | batch 8, index 8, parts 8 |
//! | 20 | packed | bytes of the frames that it holds 4, CRC-32 of the data 4 |

mod decode;
mod encode;
mod orders;
mod packed;
mod patch;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

pub use decode::decode;
pub use encode::{Encoder, encode};
pub use orders::orders_frame_bytes;
pub use packed::{Packer, Unpacker};
pub use patch::Patch;

use super::record::OrderRecord;
use crate::core::ids::{Chain, Epoch, Extent, GroupId, Owner, Seq, SeqRange, Volume};
use crate::limits::{RECORD_BYTES, journal_kept_records};

/// Bytes of the header of a frame.
pub const FRAME_HEADER_BYTES: usize = 32;
/// Bytes before the data of a `Payload`: what a receiver can expect ahead of it.
pub const PAYLOAD_HEAD_BYTES: usize = FRAME_HEADER_BYTES + RECORD_BYTES;
/// Bytes before the data of a `Chunk`.
pub const CHUNK_HEAD_BYTES: usize = FRAME_HEADER_BYTES + 8 + RECORD_BYTES;

const MAGIC: [u8; 4] = *b"FSHL";
/// Version of the link: both sides have the same.
pub const VERSION: u8 = 8;
const WHAT: &str = "link frame";

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
    /// Whether orders between the cut and `journal_seq` may have been lost to damage: it is not to be relied upon there.
    pub gaps: bool,
    /// Whether the journal was led past seqs beyond the cut: orders between may have been given out, and are not in it.
    pub led_past: bool,
    /// The batch whose chunks DR keeps, by the seq of its begin; 0 when none.
    pub batch: Seq,
    pub room: JournalRoom,
    /// Payloads beyond the cut that DR has.
    pub have: Vec<SeqRange>,
    /// Bytes of payload the primary may have unacknowledged over all streams.
    pub window_bytes: u64,
    /// Size of the spool, which has to hold a batch and what is written while it is under way.
    pub spool_bytes: u64,
}

/// How far the orders go that DR's journal certainly takes, as long as nothing leaves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalRoom {
    /// Up to here there is room.
    pub upto: Seq,
    /// Records that fit it as a whole.
    pub records: u64,
}

impl JournalRoom {
    /// Records that writes leave free beside a status table of `slots`, but never more than half of the journal.
    #[must_use]
    pub fn kept(self, slots: u64) -> u64 {
        journal_kept_records(slots).min(self.records / 2)
    }
}

/// What room the store of a volume has at DR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreRoom {
    pub volume: Volume,
    /// What is needed, and what there is, bytes.
    pub size: u64,
    pub has: u64,
    /// Said unasked: what has been ordered waits there for it, or (without a text) waits no more.
    pub holds: bool,
    /// What is too small, where, and what to do; empty when there is room.
    pub text: String,
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

/// A refusal: closes the connection after it. DR refuses a hello, the primary a welcome.
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
    /// A piece of a batch of which DR may have parts already (stream, to DR).
    Patch(Patch),
    /// The answer where DR's volume does not have all that it was thought to: these parts of the piece, the first in the
    /// lowest bit, are to come as data (same stream, to primary).
    Wanted {
        batch: Seq,
        index: u64,
        parts: u64,
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
        room: JournalRoom,
    },
    Ping {
        nonce: u64,
    },
    Pong {
        nonce: u64,
    },
    /// Asks whether the store of a volume gets room for so many bytes; DR tries (order connection, to DR).
    RoomAsked {
        volume: Volume,
        size: u64,
    },
    /// The answer, or that something is held back for lack of room (order connection, to primary).
    StoreRoom(StoreRoom),
    /// Asks whether a range of DR's volume is what the primary has there, as of the order right before it (order connection,
    /// to DR).
    Compare(Compare),
    /// The answer (order connection, to primary).
    Compared {
        id: u64,
        verdict: Verdict,
    },
}

/// A range of a volume as of a seq.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// Chosen by the primary, never twice on a connection.
    pub id: u64,
    pub extent: Extent,
    /// The last order before it on this connection: what comes after it is not in the digests.
    pub seq: Seq,
    /// Bytes that each digest is over, but for the last one, which may be over less.
    pub grain: u64,
    /// XXH3 (64 bits) of each part; at most [`COMPARE_PARTS_MAX`](crate::limits::COMPARE_PARTS_MAX).
    pub digests: Vec<u64>,
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The parts that differ, the first in the lowest bit.
    Found { different: u64 },
    /// The volume does not show that seq: it is ahead of it, or is to be overtaken by a batch. Ask again.
    Passed,
    /// The range cannot be read.
    Unreadable { text: String },
}

impl Compare {
    /// Digests of the parts of `bytes`.
    #[must_use]
    pub fn digests(bytes: &[u8], grain: u64) -> Vec<u64> {
        let grain = usize::try_from(grain).expect("a part is in memory");
        bytes.chunks(grain).map(xxh3_64).collect()
    }
}

/// Number of a kind of message on the wire, and its word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Hello = 1,
    Welcome = 2,
    Refuse = 3,
    Orders = 4,
    OrdersDurable = 5,
    Payload = 6,
    Copied = 7,
    Chunk = 8,
    ChunksDurable = 9,
    Need = 10,
    Progress = 11,
    Ping = 12,
    Pong = 13,
    RoomAsked = 14,
    StoreRoom = 15,
    Compare = 16,
    Compared = 17,
    Patch = 18,
    Wanted = 19,
    /// Other frames, compressed: no message of its own.
    Packed = 20,
}

impl Kind {
    const ALL: [Kind; 20] = [
        Kind::Hello,
        Kind::Welcome,
        Kind::Refuse,
        Kind::Orders,
        Kind::OrdersDurable,
        Kind::Payload,
        Kind::Copied,
        Kind::Chunk,
        Kind::ChunksDurable,
        Kind::Need,
        Kind::Progress,
        Kind::Ping,
        Kind::Pong,
        Kind::RoomAsked,
        Kind::StoreRoom,
        Kind::Compare,
        Kind::Compared,
        Kind::Patch,
        Kind::Wanted,
        Kind::Packed,
    ];

    fn from_u8(raw: u8) -> Option<Kind> {
        usize::from(raw).checked_sub(1).and_then(|index| Kind::ALL.get(index).copied())
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Hello => "hello",
            Kind::Welcome => "welcome",
            Kind::Refuse => "refuse",
            Kind::Orders => "orders",
            Kind::OrdersDurable => "orders durable",
            Kind::Payload => "payload",
            Kind::Copied => "copied",
            Kind::Chunk => "chunk",
            Kind::ChunksDurable => "chunks durable",
            Kind::Need => "need",
            Kind::Progress => "progress",
            Kind::Ping => "ping",
            Kind::Pong => "pong",
            Kind::RoomAsked => "room asked",
            Kind::StoreRoom => "store room",
            Kind::Compare => "compare",
            Kind::Compared => "compared",
            Kind::Patch => "patch",
            Kind::Wanted => "wanted",
            Kind::Packed => "packed",
        }
    }
}

impl Message {
    /// What kind of message it is, for logs.
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        self.kind().name()
    }

    fn kind(&self) -> Kind {
        match self {
            Message::Hello(_) => Kind::Hello,
            Message::Welcome(_) => Kind::Welcome,
            Message::Refuse(_) => Kind::Refuse,
            Message::Orders(_) => Kind::Orders,
            Message::OrdersDurable { .. } => Kind::OrdersDurable,
            Message::Payload { .. } => Kind::Payload,
            Message::Copied { .. } => Kind::Copied,
            Message::Chunk { .. } => Kind::Chunk,
            Message::ChunksDurable { .. } => Kind::ChunksDurable,
            Message::Need { .. } => Kind::Need,
            Message::Progress { .. } => Kind::Progress,
            Message::Ping { .. } => Kind::Ping,
            Message::Pong { .. } => Kind::Pong,
            Message::RoomAsked { .. } => Kind::RoomAsked,
            Message::StoreRoom(_) => Kind::StoreRoom,
            Message::Compare(_) => Kind::Compare,
            Message::Compared { .. } => Kind::Compared,
            Message::Patch(_) => Kind::Patch,
            Message::Wanted { .. } => Kind::Wanted,
        }
    }
}
