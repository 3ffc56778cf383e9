//! The status table: the region on shared storage that both sites can read.
//!
//! ```text
//!   0        header: the layout, the same from when it is made on
//!   4096     fence of a writer of an even epoch: taken over at a promotion
//!   8192     heartbeat of the writer, with floor and tail
//!   12288    fence of a writer of an odd epoch
//!   16384    ring of order records       64 bytes × slots   slot = seq % slots
//!            ring of their states        32 bytes × slots   slot = seq % slots
//!            ring of payloads (bunker)   entries as in a spool, nonce = group
//! ```
//!
//! Header, fence and heartbeat have 8 bytes of magic, 2 of version, 6 reserved, fields from 16, a CRC-32
//! over bytes 0..508 at 508, and zeroes after it:
//!
//! | block | magic | fields at 16, 24, … |
//! |---|---|---|
//! | header | `FSHTABLE` | group, slots, records at, states at, payload at, payload bytes |
//! | fence | `FSHFENCE` | owner, epoch (4 bytes) |
//! | heartbeat | `FSHHEART` | owner, counter, wall clock ns, floor, tail, epoch (4 bytes) |
//!
//! State of a slot: seq 8, payload position 8, state 1, reserved 11, CRC-32 over bytes 0..28 at 28.

use super::layout::{Block, Shape, put_u32, put_u64, reserved_zero, u32_at, u64_at};
use super::{FormatError, is_zero};
use crate::core::ids::{Epoch, GroupId, Owner, Seq};
use crate::limits::{BLOCK_BYTES, RECORD_BYTES, TABLE_SLOTS_MAX, TABLE_SLOTS_MIN, VOLUME_BYTES_MAX};

/// Where the blocks with one owner each stand.
pub const HEADER_AT: u64 = 0;
pub const HEARTBEAT_AT: u64 = 2 * BLOCK_BYTES as u64;
/// Where the fences of even and of odd epochs stand.
pub const FENCES_AT: [u64; 2] = [BLOCK_BYTES as u64, 3 * BLOCK_BYTES as u64];
/// Where the ring of order records begins.
pub const RECORDS_AT: u64 = 4 * BLOCK_BYTES as u64;
/// Bytes of the state of one slot.
pub const STATE_BYTES: usize = 32;
/// Payload position of a slot whose payload is not in the ring.
pub const NO_PAYLOAD: u64 = u64::MAX;
/// No writer comes to a later position in the ring: beyond it stands none, or what somebody made up.
pub const PAYLOAD_POS_MAX: u64 = u64::MAX >> 1;

/// States in one block: numbers of slots are multiples of it, so that both rings are whole blocks.
const SLOTS_GRANULE: u64 = (BLOCK_BYTES / STATE_BYTES) as u64;
const WHAT_STATE: &str = "slot state";
const HEADER: Shape = Shape::sector("status table header", b"FSHTABLE", 64);
const FENCE: Shape = Shape::sector("status table fence", b"FSHFENCE", 28);
const HEARTBEAT: Shape = Shape::sector("status table heartbeat", b"FSHHEART", 60);

/// Where everything stands in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLayout {
    pub slots: u64,
    pub records_at: u64,
    pub states_at: u64,
    pub payload_at: u64,
    pub payload_bytes: u64,
}

impl TableLayout {
    /// The layout with at least `slots` slots (rounded up to whole blocks of states, kept within their
    /// limits) and a payload ring of at most `payload_bytes` (rounded down to whole blocks).
    #[must_use]
    pub const fn new(slots: u64, payload_bytes: u64) -> TableLayout {
        let slots = if slots < TABLE_SLOTS_MIN {
            TABLE_SLOTS_MIN
        } else if slots > TABLE_SLOTS_MAX {
            TABLE_SLOTS_MAX
        } else {
            slots.next_multiple_of(SLOTS_GRANULE)
        };
        let payload_bytes = if payload_bytes > VOLUME_BYTES_MAX { VOLUME_BYTES_MAX } else { payload_bytes };
        let states_at = RECORDS_AT + slots * RECORD_BYTES as u64;
        let payload_at = states_at + slots * STATE_BYTES as u64;
        let payload_bytes = payload_bytes - payload_bytes % BLOCK_BYTES as u64;
        TableLayout { slots, records_at: RECORDS_AT, states_at, payload_at, payload_bytes }
    }

    /// The layout with the most slots that leaves `payload_bytes` for payloads in a region of
    /// `region_bytes`; `None` when the smallest table does not fit.
    #[must_use]
    pub fn fitting(region_bytes: u64, payload_bytes: u64) -> Option<TableLayout> {
        let room = region_bytes.checked_sub(RECORDS_AT)?.checked_sub(payload_bytes)?;
        let slots = room / (RECORD_BYTES + STATE_BYTES) as u64;
        let slots = slots - slots % SLOTS_GRANULE;
        (slots >= TABLE_SLOTS_MIN).then(|| TableLayout::new(slots, payload_bytes))
    }

    /// Bytes of the whole region.
    #[must_use]
    pub const fn total_bytes(&self) -> u64 {
        self.payload_at + self.payload_bytes
    }

    /// Index of a seq in both rings.
    #[must_use]
    pub const fn slot(&self, seq: Seq) -> u64 {
        seq.0 % self.slots
    }

    /// Offset in the region of the record of a seq.
    #[must_use]
    pub const fn record_offset(&self, seq: Seq) -> u64 {
        self.records_at + self.slot(seq) * RECORD_BYTES as u64
    }

    /// Offset in the region of the state of a seq.
    #[must_use]
    pub const fn state_offset(&self, seq: Seq) -> u64 {
        self.states_at + self.slot(seq) * STATE_BYTES as u64
    }

    /// Offset in the region of an absolute position of the payload ring.
    ///
    /// # Panics
    /// When the table has no payload ring.
    #[must_use]
    pub const fn payload_offset(&self, pos: u64) -> u64 {
        assert!(self.payload_bytes > 0, "positions exist only in a ring");
        self.payload_at + pos % self.payload_bytes
    }
}

/// Block 0: the layout, and whose table it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableHeader {
    pub group: GroupId,
    pub slots: u64,
    pub records_at: u64,
    pub states_at: u64,
    pub payload_at: u64,
    pub payload_bytes: u64,
}

impl TableHeader {
    #[must_use]
    pub fn new(group: GroupId, layout: &TableLayout) -> TableHeader {
        let TableLayout { slots, records_at, states_at, payload_at, payload_bytes } = *layout;
        TableHeader { group, slots, records_at, states_at, payload_at, payload_bytes }
    }

    /// The layout it describes.
    #[must_use]
    pub fn layout(&self) -> TableLayout {
        TableLayout {
            slots: self.slots,
            records_at: self.records_at,
            states_at: self.states_at,
            payload_at: self.payload_at,
            payload_bytes: self.payload_bytes,
        }
    }

    /// The 4096 bytes.
    #[must_use]
    pub fn encode(&self) -> Block {
        let mut out = HEADER.start();
        let fields = [self.group.0, self.slots, self.records_at, self.states_at, self.payload_at, self.payload_bytes];
        (16..).step_by(8).zip(fields).for_each(|(at, value)| put_u64(&mut out, at, value));
        HEADER.seal(out)
    }

    /// Reads block 0. A header that is accepted describes a layout this program would make itself, so its
    /// offsets can be used; that the region is long enough is the caller's to check.
    pub fn decode(bytes: &[u8]) -> Result<TableHeader, FormatError> {
        let block = HEADER.open(bytes)?;
        let header = TableHeader {
            group: GroupId(u64_at(block, 16)),
            slots: u64_at(block, 24),
            records_at: u64_at(block, 32),
            states_at: u64_at(block, 40),
            payload_at: u64_at(block, 48),
            payload_bytes: u64_at(block, 56),
        };
        if header.layout() != TableLayout::new(header.slots, header.payload_bytes) {
            return Err(HEADER.field(format!("{} slots with a layout that is not ours", header.slots)));
        }
        Ok(header)
    }
}

/// Blocks 1 and 3: the writer in force (I7). A writer that finds a higher epoch, or another owner, stops.
///
/// One epoch and the next have a block each: what an old writer had on its way when it was fenced, and a slow network or server
/// brings later, goes over no taker's fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    pub epoch: Epoch,
    pub owner: Owner,
}

impl Fence {
    /// The 4096 bytes.
    #[must_use]
    pub fn encode(&self) -> Block {
        let mut out = FENCE.start();
        put_u64(&mut out, 16, self.owner.0);
        put_u32(&mut out, 24, self.epoch.0);
        FENCE.seal(out)
    }

    /// Where the fence of an epoch stands.
    #[must_use]
    pub fn place(epoch: Epoch) -> u64 {
        FENCES_AT[(epoch.0 % 2) as usize]
    }

    /// The fence in force, of the first [`RECORDS_AT`] bytes of a table: that of the highest epoch.
    ///
    /// # Errors
    ///
    /// Neither block holds one: what is wrong with the first that was written at all, or with the first.
    pub fn in_force(head: &[u8]) -> Result<Fence, FormatError> {
        let blocks = FENCES_AT.map(|at| {
            let from = usize::try_from(at).expect("within the head");
            head.get(from..from + BLOCK_BYTES).unwrap_or_default()
        });
        let newest = blocks.iter().filter_map(|block| Fence::decode(block).ok()).max_by_key(|fence| fence.epoch);
        let worst = blocks.iter().find(|block| !is_zero(block)).unwrap_or(&blocks[0]);
        newest.map_or_else(|| Fence::decode(worst), Ok)
    }

    /// Reads one of the blocks.
    pub fn decode(bytes: &[u8]) -> Result<Fence, FormatError> {
        let block = FENCE.open(bytes)?;
        Ok(Fence { owner: Owner(u64_at(block, 16)), epoch: Epoch(u32_at(block, 24)) })
    }
}

/// Block 2: sign of life of the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    pub epoch: Epoch,
    pub owner: Owner,
    /// Grows with every heartbeat.
    pub counter: u64,
    pub wall_ns: u64,
    /// Everything up to here is copied: its slots may be used again.
    pub floor: Seq,
    /// Highest seq durable in the table, with all before it; there may be more after it, written since.
    pub tail: Seq,
}

impl Heartbeat {
    /// The 4096 bytes.
    #[must_use]
    pub fn encode(&self) -> Block {
        let mut out = HEARTBEAT.start();
        let fields = [self.owner.0, self.counter, self.wall_ns, self.floor.0, self.tail.0];
        (16..).step_by(8).zip(fields).for_each(|(at, value)| put_u64(&mut out, at, value));
        put_u32(&mut out, 56, self.epoch.0);
        HEARTBEAT.seal(out)
    }

    /// Reads block 2.
    pub fn decode(bytes: &[u8]) -> Result<Heartbeat, FormatError> {
        let block = HEARTBEAT.open(bytes)?;
        let heartbeat = Heartbeat {
            owner: Owner(u64_at(block, 16)),
            counter: u64_at(block, 24),
            wall_ns: u64_at(block, 32),
            floor: Seq(u64_at(block, 40)),
            tail: Seq(u64_at(block, 48)),
            epoch: Epoch(u32_at(block, 56)),
        };
        if heartbeat.floor > heartbeat.tail {
            return Err(HEARTBEAT.field(format!("floor {} is above tail {}", heartbeat.floor, heartbeat.tail)));
        }
        Ok(heartbeat)
    }
}

/// How far the payload of a slot has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum State {
    /// Waits in the FIFO; never left.
    Queued = 1,
    /// On its way; whether it arrived is not known.
    Sent = 2,
    /// Durable in DR's spool.
    Copied = 3,
}

impl State {
    /// The word of the loss report.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Sent => "sent",
            State::Copied => "copied",
        }
    }
}

/// State of one slot. A slot that was never used is all zeroes ([`super::is_zero`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotState {
    /// The seq it is about: the slot may hold an older round of the ring.
    pub seq: Seq,
    pub state: State,
    /// Absolute position in the payload ring, or [`NO_PAYLOAD`].
    pub payload_pos: u64,
}

impl SlotState {
    /// The 32 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; STATE_BYTES] {
        let mut out = [0; STATE_BYTES];
        put_u64(&mut out, 0, self.seq.0);
        put_u64(&mut out, 8, self.payload_pos);
        out[16] = self.state as u8;
        let crc = crc32fast::hash(&out[..28]);
        put_u32(&mut out, 28, crc);
        out
    }

    /// Reads 32 bytes.
    pub fn decode(bytes: &[u8]) -> Result<SlotState, FormatError> {
        let bytes: &[u8; STATE_BYTES] = bytes.try_into().map_err(|_| FormatError::Length {
            what: WHAT_STATE,
            got: bytes.len(),
            want: STATE_BYTES,
        })?;
        if crc32fast::hash(&bytes[..28]) != u32_at(bytes, 28) {
            return Err(FormatError::Checksum { what: WHAT_STATE });
        }
        let state = match bytes[16] {
            1 => State::Queued,
            2 => State::Sent,
            3 => State::Copied,
            other => return Err(FormatError::Field { what: WHAT_STATE, why: format!("unknown state {other}") }),
        };
        reserved_zero(WHAT_STATE, &bytes[17..28])?;
        Ok(SlotState { seq: Seq(u64_at(bytes, 0)), state, payload_pos: u64_at(bytes, 8) })
    }
}
