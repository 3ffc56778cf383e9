//! Planted bugs: what the simulator has to catch, to show that its checkers check.
//!
//! Owns the list, and the one question asked at the places where a promise is kept. Without the feature
//! `planted`, which nothing but the tests of the simulator turns on, the answer is a constant no and costs
//! nothing. With it each thread has its own bug, so that threads of the simulator do not disturb each other:
//! the only state beside the machines, and never in a binary that is shipped.

macro_rules! bugs {
    ($($(#[doc = $says:literal])+ $name:ident,)+) => {
        /// A mistake that would break an invariant.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[doc = $says])+ $name,)+
        }

        impl Bug {
            pub const ALL: &[Bug] = &[$(Bug::$name,)+];

            /// What is wrong, in a sentence.
            #[must_use]
            pub fn says(self) -> &'static str {
                match self {
                    $(Bug::$name => concat!($($says,)+).trim_ascii(),)+
                }
            }
        }
    };
}

bugs! {
    /// DR calls order records durable that its journal has only taken.
    OrdersDurableEarly,
    /// DR calls an append durable while an earlier one is still in flight.
    JournalOverGap,
    /// DR forgets the last group commit of its journal at a start.
    JournalLosesLast,
    /// DR takes a segment of its journal again that still holds needed records.
    JournalReusedEarly,
    /// The primary counts a commit to the status table as durable when it is sent.
    AuxCommitEarly,
    /// The primary refuses some writes for no reason.
    RefusesSome,
    /// A primary that hears of a higher epoch goes on.
    FenceUnheeded,
    /// A status table that was out of reach is never looked for again.
    TableForgotten,
    /// A new table is written before its fence says whose region it is.
    TableUnclaimed,
    /// What a failed sync has left in the page cache is taken for what the disk has.
    CacheTrusted,
    /// The auxiliary answers a FUA write that is only in the cache.
    AuxIgnoresFua,
    /// With `ack = flush` a flush is answered without waiting for the protection.
    FlushUnprotected,
    /// A flush is answered before the volume is synced.
    FlushUnsynced,
    /// A FUA write goes to the volume as an ordinary one.
    FuaUnsynced,
    /// DR calls a payload copied that is written to the spool and not synced.
    CopiedUnsynced,
    /// DR starts overlapping writes to its volume at once.
    ApplyOverlapped,
    /// The cut passes records whose payload is not here; they are left out of the image.
    ApplyPastMissing,
    /// The cut passes records that the journal has taken and not made durable.
    CutPastJournal,
    /// DR does not apply trims.
    TrimNotApplied,
    /// The primary starts overlapping writes to its volume at once.
    LocalOverlapped,
    /// The state of a slot is written before the record whose state it is.
    StateBeforeRecord,
    /// A slot of the status table is used again before its write is copied, whatever the policy.
    SlotReusedEarly,
    /// Writes do not wait at the bound on the lag.
    LagUnbounded,
    /// What the queue holds in memory has no bound.
    FifoUnbounded,
    /// The payload ring of the auxiliary is overwritten while payloads in it are needed.
    RingReusedEarly,
    /// DR accepts a writer of an epoch that is over.
    DrAcceptsStaleEpoch,
    /// The auxiliary grants its region to a writer of an epoch that is over.
    AuxAcceptsStaleEpoch,
    /// The auxiliary does not cut off the older writer when it grants a new epoch.
    AuxKeepsOldWriter,
    /// The auxiliary grants an epoch before it is durable.
    GrantUnpersisted,
    /// The primary acknowledges after its lease has ended.
    AckAfterLease,
    /// The lease runs from the answer, not from the question.
    LeaseFromAnswer,
    /// A promotion does not wait for the lease of the old writer.
    PromoteWithinLease,
    /// DR drops some payloads that it has called copied.
    PayloadForgotten,
    /// The data of a spool entry is not checked against its record.
    PayloadUnchecked,
    /// Neither checksum nor chain of an order record is checked.
    RecordUnchecked,
    /// DR takes a record after a gap for the next one.
    GapAccepted,
    /// DR checkpoints without a sync of the volumes.
    CheckpointUnsynced,
    /// The superblock of DR promises a tail that the journal has not made durable.
    TailPromisedEarly,
    /// DR writes every superblock to the same slot.
    SuperblockOneSlot,
    /// What stands in one slot of DR's superblock counts, before the other one has it.
    SuperblockOnceCounts,
    /// The primary writes its superblock to one slot, and goes on from there.
    PrimarySuperblockOnce,
    /// Room in the spool is used again before the checkpoint that frees it is durable.
    SpoolFreedEarly,
    /// DR acknowledges chunks of a batch before they are durable.
    ChunkAckEarly,
    /// A batch that carries on one of which nothing is kept is applied.
    CarriedFromNothing,
    /// A batch ends, and is applied, before all of its chunks are durable.
    BatchIncomplete,
    /// A new batch keeps the chunks of the one that was given up for it.
    BatchKeepsOldChunks,
    /// A batch that leaves out a payload which is not here is applied.
    BatchHollow,
    /// The pieces of a batch are read before the writes that it covers are on the disk.
    BatchReadsEarly,
    /// Some ranges of dropped payloads are not remembered for the batch.
    BatchLeavesOutRange,
    /// The report leaves out records of the table that the history has no place for.
    StraysUnreported,
    /// A promotion goes on before its report is stored.
    ServeUnreported,
    /// A block changes before its bit of the intent map is durable.
    IntentAfterWrite,
    /// Bits of the intent map are cleared before DR has what they stand for.
    IntentClearedEarly,
    /// After a loss of power seqs are given out again.
    SeqReused,
    /// Payloads on a stream that is lost are not sent again.
    RequeueForgotten,
    /// The disk FIFO takes payloads out of order.
    SpillUnordered,
    /// The head of the disk FIFO passes payloads that DR does not have yet.
    FifoFreedEarly,
    /// DR applies, and tells, more than its superblock has promised.
    AppliedUnpromised,
    /// A start trusts what it reads and a loss of power could still take.
    UnsyncedTrusted,
    /// A payload that spoils while a batch is applied beside it is passed over.
    SpoiltPassed,
    /// A batch is applied although a payload that it relies on spoiled while the superblock was to name it.
    BatchNotWithdrawn,
    /// A payload that spoils during a promotion is not looked for in the ring again.
    SpoiltNotFetched,
    /// Clients write beyond the old end of a volume before a start would know of the new one.
    ResizeUnmarked,
    /// Whoever was left out of the order is not told the sizes of the volumes.
    SizesUnsaid,
    /// DR gives a volume the size that it hears of, not the one as of its recovery point.
    ResizeEarly,
    /// DR forgets a resize that it has applied.
    ResizeForgotten,
    /// What a resize adds to a volume is not zeroed at DR.
    ResizeUnzeroed,
    /// What is read for a batch that is lost stays queued, and moves the recovery point up to where it is damaged.
    SpoiltMovesUp,
    /// A first sync is carried on without what was written since it began.
    CarriedWithoutWrites,
    /// The primary writes its superblock again while it is being written.
    SuperblocksOverlap,
    /// The payload of a write that failed for want of space stays queued, and those behind it with it.
    FailedStaysQueued,
    /// What a volume without room holds of a write that it refused is not sent after it.
    FailedUnmended,
    /// What a refused write has left is read and ordered while others write there.
    MendedBesideWrites,
    /// A start is not told that a refused write has left something to be copied.
    MendingForgotten,
    /// The mode is said to be in force while something that was acknowledged below it is not covered.
    InForceEarly,
    /// A mode is said to be in force although the table has no room for the orders that it is about.
    OverrunInForce,
    /// Where the queue overflows, writes of `bunker` do not wait for room in the payload ring.
    RingOverflows,
    /// A payload whose order is damaged in DR's journal is let go of, although a promotion may learn that order elsewhere.
    OrphansForgotten,
    /// A piece of a batch that has taken the window of the payload that is due waits for it.
    ShutOutForgotten,
    /// DR compares a range with what the primary had there when later orders have been applied.
    ComparedLate,
    /// Writes go on to a range while the primary reads it to have it compared.
    ComparedBesideWrites,
    /// DR takes what its volume holds for what a patch leaves out, whatever the digests.
    PatchUnchecked,
    /// With `ack = flush`, a batch that goes ahead of orders from before the start is not noted.
    LeapForgotten,
    /// Slots of orders that a batch went ahead of, from before the start, are taken before it is complete.
    SlotsOverLeap,
    /// The primary goes on believing that DR has what it acknowledged, although its order is gone there, and with it, as DR keeps
    /// none without its order, the payload.
    UnsaidBelieved,
    /// Entries stand in what the spool has grown by before the superblock names it.
    GrownUnnamed,
}

/// Whether this mistake is to be made here.
#[cfg(not(feature = "planted"))]
#[inline(always)]
#[must_use]
pub const fn planted(_: Bug) -> bool {
    false
}

/// Bytes of a segment of the journal: shorter only where the simulator wants to see one full soon.
#[cfg(not(feature = "planted"))]
#[inline(always)]
#[must_use]
pub const fn segment_bytes() -> u64 {
    crate::limits::SEGMENT_BYTES
}

#[cfg(feature = "planted")]
pub use chosen::{plant, planted, segment_bytes, segments_of};

#[cfg(feature = "planted")]
mod chosen {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static CHOSEN: Cell<Option<Bug>> = const { Cell::new(None) };
        static SEGMENT_BYTES: Cell<u64> = const { Cell::new(crate::limits::SEGMENT_BYTES) };
    }

    /// Has the journals of this thread consist of segments of so many bytes, whole blocks.
    pub fn segments_of(bytes: u64) {
        SEGMENT_BYTES.set(bytes);
    }

    /// Bytes of a segment of the journal.
    #[must_use]
    pub fn segment_bytes() -> u64 {
        SEGMENT_BYTES.get()
    }

    /// Has this thread make a mistake from now on, or none.
    pub fn plant(bug: Option<Bug>) {
        CHOSEN.set(bug);
    }

    /// Whether this mistake is to be made here.
    #[must_use]
    pub fn planted(bug: Bug) -> bool {
        CHOSEN.get() == Some(bug)
    }
}
