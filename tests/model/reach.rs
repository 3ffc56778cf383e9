//! How far a promotion could come: the highest seq of which everything is there, worked out from the bytes that survive and
//! from nothing that the machines remember (I5).
//!
//! An order is known if the journal has it, or the status table where that was read. Its payload can be had if an entry of the
//! spool holds it, or the payload ring at the place that the slot names. From a recovery point it goes on
//!
//! | to | if |
//! |---|---|
//! | the end of a batch | all of its pieces are in the spool, and all between begin and end can be had; of what comes before it, what cannot be had is covered by a piece |
//! | a start of the primary | it names the order before it, and no batch is to follow |
//! | the begin of a batch | nothing is left out before it, and the writer has completed one since it started |
//! | anything else | it is the next one, and its payload can be had |

use std::collections::{BTreeMap, BTreeSet};

use farshore::core::ids::Seq;
use farshore::core::op::Op;
use farshore::format::record::OrderRecord;
use farshore::format::spool::{ENTRY_HEADER_BYTES, EntryHeader, Kind, decode_entry};
use farshore::format::superblock::newest;
use farshore::format::table::{NO_PAYLOAD, STATE_BYTES, SlotState, TableHeader};
use farshore::limits::{BLOCK_BYTES, ENTRY_ALIGN_BYTES};
use farshore::{auxiliary, dr};

use crate::world::{File, World};

const TABLE: File = File::Aux(auxiliary::machine::File::Table);
const SPOOL: File = File::Dr(dr::machine::File::Spool);
const SUPERBLOCK: File = File::Dr(dr::machine::File::Superblock);

/// What is there for a promotion to build on.
pub struct Survivors {
    /// Orders that are known.
    orders: Vec<OrderRecord>,
    /// Those of them whose payloads the payload ring has.
    ringed: BTreeSet<Seq>,
    /// Payloads in the spool.
    pub spooled: BTreeSet<Seq>,
    /// Pieces of each batch by their numbers, of those that carry on no other.
    pieces: BTreeMap<Seq, BTreeMap<u64, OrderRecord>>,
}

impl Survivors {
    /// `table`: the status table was read.
    pub fn of(world: &World, table: bool) -> Survivors {
        let known = |record: &&OrderRecord| world.in_journal(record) || table && world.in_table(record);
        let orders: Vec<OrderRecord> = world.truth.records().filter(known).copied().collect();
        let (mut spooled, mut pieces) = (BTreeSet::new(), BTreeMap::<Seq, BTreeMap<u64, OrderRecord>>::new());
        for header in world.spool_entries() {
            match header.kind {
                Kind::Payload => drop(spooled.insert(header.record.seq)),
                Kind::Chunk => drop(pieces.entry(header.record.seq).or_default().insert(header.index, header.record)),
            }
        }
        let ringed = orders.iter().filter(|record| table && world.in_ring(record)).map(|record| record.seq).collect();
        Survivors { orders, ringed, spooled, pieces }
    }

    fn complete(&self, record: &OrderRecord) -> bool {
        !record.op.has_payload() || self.spooled.contains(&record.seq) || self.ringed.contains(&record.seq)
    }

    /// The highest seq that a promotion can come to from the recovery point `from`.
    pub fn highest(&self, from: Seq) -> Seq {
        let mut reached = from;
        loop {
            let batch = self.orders.iter().filter(|end| self.batch_ends(reached, end)).map(|end| end.seq).max();
            match batch.or_else(|| self.next(reached)) {
                Some(next) => reached = next,
                None => return reached,
            }
        }
    }

    /// Whether this is the end of a batch that takes the recovery point from `reached` to it.
    fn batch_ends(&self, reached: Seq, end: &OrderRecord) -> bool {
        let begin = Seq(end.offset);
        let begun = self.orders.iter().any(|it| it.op == Op::BatchBegin && it.seq == begin && it.offset == 0);
        if end.op != Op::BatchEnd || begin <= reached || !begun {
            return false;
        }
        let none = BTreeMap::new();
        let pieces = self.pieces.get(&begin).unwrap_or(&none);
        let bytes: u64 = pieces.values().map(|piece| piece.length).sum();
        let covers = |record: &OrderRecord| {
            pieces
                .values()
                .any(|it| it.offset <= record.offset && record.offset + record.length <= it.offset + it.length)
        };
        let mut last = begin;
        let between = self.orders.iter().filter(|it| it.seq > begin && it.seq <= end.seq);
        let whole = between.into_iter().all(|it| {
            let next = it.seq == last.next();
            last = it.seq;
            next && self.complete(it)
        });
        let before = self.orders.iter().filter(|it| it.seq > reached && it.seq < begin);
        let left_out = before.into_iter().any(|it| !self.complete(it) && !covers(it));
        pieces.len() as u64 == end.pieces() && bytes == end.length && whole && !left_out
    }

    /// The order after `reached`, if it can be taken by itself.
    fn next(&self, reached: Seq) -> Option<Seq> {
        let at = self.orders.iter().position(|record| record.seq > reached)?;
        let record = &self.orders[at];
        let before = at.checked_sub(1).map(|at| &self.orders[at]).filter(|before| before.seq == reached)?;
        let continues = record.chain == record.chain_after(before.chain);
        let next = record.seq == reached.next();
        let starts = self.orders[..at].iter().rev().map(|it| it.op);
        let settled = starts.into_iter().find(|op| matches!(op, Op::EpochStart | Op::BatchEnd)) == Some(Op::BatchEnd);
        let may = match record.op {
            Op::EpochStart => Seq(record.offset) == reached && record.length == 0,
            Op::BatchBegin => next && settled,
            _ => next,
        };
        (may && continues && self.complete(record)).then_some(record.seq)
    }
}

impl World {
    /// Whole entries of DR's spool, needed or not.
    fn spool_entries(&self) -> Vec<EntryHeader> {
        let blocks = self.store(SUPERBLOCK).stable.read(0, 2 * BLOCK_BYTES as u64);
        let Some(superblock) = newest(&blocks).ok().flatten() else { return Vec::new() };
        let nonce = superblock.nonce;
        let spool = &self.store(SPOOL).stable;
        let places = spool.used().flat_map(|page| page.step_by(ENTRY_ALIGN_BYTES as usize));
        let entries = places.filter_map(|at| self.entry(SPOOL, at, nonce));
        entries.filter(|(at, header)| superblock.spool().offset(header.pos) == *at).map(|it| it.1).collect()
    }

    /// The entry at an offset of a file, if one is whole there.
    fn entry(&self, file: File, at: u64, nonce: u64) -> Option<(u64, EntryHeader)> {
        let stable = &self.store(file).stable;
        let header = EntryHeader::decode(&stable.read(at, ENTRY_HEADER_BYTES as u64), nonce).ok()?;
        let (header, _) = decode_entry(&stable.read(at, header.entry_bytes()).into(), nonce).ok()?;
        Some((at, header))
    }

    /// Whether DR's spool holds the payload of an order.
    pub fn in_spool(&self, record: &OrderRecord) -> bool {
        self.spool_entries().iter().any(|it| it.kind == Kind::Payload && it.record == *record)
    }

    /// Whether the auxiliary's payload ring holds it, and its slot says where.
    pub fn in_ring(&self, record: &OrderRecord) -> bool {
        let stable = &self.store(TABLE).stable;
        let Ok(header) = TableHeader::decode(&stable.read(0, BLOCK_BYTES as u64)) else { return false };
        let (layout, group) = (header.layout(), header.group);
        let Ok(state) = SlotState::decode(&stable.read(layout.state_offset(record.seq), STATE_BYTES as u64)) else {
            return false;
        };
        if layout.payload_bytes == 0 || state.seq != record.seq || state.payload_pos == NO_PAYLOAD {
            return false;
        }
        let entry = self.entry(TABLE, layout.payload_offset(state.payload_pos), group.0);
        entry.is_some_and(|(_, it)| it.pos == state.payload_pos && it.record == *record)
    }
}
