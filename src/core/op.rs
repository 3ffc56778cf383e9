//! What an order record can order.

/// Operation of an order record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// Data: the payload has `length` bytes.
    Write = 1,
    /// The range reads as zeroes afterwards. No payload.
    WriteZeroes = 2,
    /// The range may be deallocated; it reads as zeroes afterwards on both sides. No payload.
    Trim = 3,
    /// A named recovery point. No payload.
    Mark = 4,
    /// Everything before this seq is superseded by the batch that has this seq as its id: payloads of
    /// earlier seqs not yet at DR will never come. May follow a gap in the seqs. `offset` is the first sync whose pieces it
    /// counts on, if it carries one on, or 0.
    BatchBegin = 5,
    /// Batch `offset` (the seq of its `BatchBegin`) is complete; it had `length` bytes of chunks.
    BatchEnd = 6,
    /// First record of a primary's incarnation. `offset` is the seq before it in this history; the seqs
    /// between were never assigned in it. May follow a gap in the seqs. `length` is 1 where a batch is to follow, which
    /// brings what the volumes have now: writes from before may not have been made there.
    EpochStart = 7,
    /// The volume has `length` bytes from here on, and had `offset`; what is between reads as zeroes afterwards on both
    /// sides. Where both are equal it only says so, to whom earlier ones may have been left out. No payload.
    Resize = 8,
}

impl Op {
    /// The operation with this number, if there is one.
    #[must_use]
    pub fn from_u8(raw: u8) -> Option<Op> {
        Some(match raw {
            1 => Op::Write,
            2 => Op::WriteZeroes,
            3 => Op::Trim,
            4 => Op::Mark,
            5 => Op::BatchBegin,
            6 => Op::BatchEnd,
            7 => Op::EpochStart,
            8 => Op::Resize,
            _ => return None,
        })
    }

    /// Whether a record with this operation has a payload of `length` bytes.
    #[must_use]
    pub fn has_payload(self) -> bool {
        self == Op::Write
    }

    /// Whether it orders something about a volume (see [`changes_volume`] of the record for whether that changes it).
    ///
    /// [`changes_volume`]: crate::format::record::OrderRecord::changes_volume
    #[must_use]
    pub fn concerns_volume(self) -> bool {
        matches!(self, Op::Write | Op::WriteZeroes | Op::Trim | Op::Resize)
    }

    /// Whether it may be preceded by a gap in the seqs.
    #[must_use]
    pub fn may_jump(self) -> bool {
        matches!(self, Op::BatchBegin | Op::EpochStart)
    }

    /// The word of the CLI and its JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Op::Write => "write",
            Op::WriteZeroes => "write_zeroes",
            Op::Trim => "trim",
            Op::Mark => "mark",
            Op::BatchBegin => "batch_begin",
            Op::BatchEnd => "batch_end",
            Op::EpochStart => "epoch_start",
            Op::Resize => "resize",
        }
    }
}
