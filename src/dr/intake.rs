//! Payloads and chunks between receipt and the durable spool.
//!
//! Owns the waiting room (arrived before their order record, or before there is room), the writes to the
//! spool and their group sync, and a bounded cache of data that will be applied soon.
//!
//! ```text
//!   arrived ──► waiting ──► storing: written, then synced ──► durable ──► acknowledged
//!                 order record known,          one sync for all         order record durable too
//!                 room in the spool
//! ```
//!
//! Invariants:
//! - Only data whose record is exactly the one of the history is stored (I8).
//! - An item is reported durable only after a sync that was emitted after its write had completed (I3).
//! - The waiting room holds at most what the granted window allows; the cache has its own bound (I9).

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;

use crate::core::ids::{Conn, Seq, Ticket};
use crate::core::machine::DiskKind;
use crate::core::planted::{Bug, planted};
use crate::core::sparing::Sparing;
use crate::dr::api::{Effect, File};
use crate::dr::desk::Desk;
use crate::dr::replay::Item;
use crate::dr::spool::Spool;
use crate::format::record::OrderRecord;
use crate::format::spool::{EntryHeader, Kind, encode_entry, entry_bytes};
use crate::limits::{BLOCK_BYTES, DR_WINDOW_BYTES_MAX, RECORD_BYTES};

/// A payload or chunk that came in.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub conn: Conn,
    pub record: OrderRecord,
    pub data: Bytes,
}

/// An item that has become durable in the spool.
#[derive(Clone, Debug)]
pub struct Stored {
    pub item: Item,
    pub pos: u64,
    pub record: OrderRecord,
    /// Who sent it, once or several times.
    pub conns: Vec<Conn>,
}

/// The receiving end of the spool.
#[derive(Clone, Debug)]
pub struct Intake {
    nonce: u64,
    pub spool: Spool,
    /// Each with who else has sent it.
    waiting: BTreeMap<Seq, (Arrival, Vec<Conn>)>,
    chunks: VecDeque<(u64, Arrival)>,
    waiting_bytes: u64,
    storing: BTreeMap<Item, Stored>,
    storing_bytes: u64,
    writes: HashMap<Ticket, Item>,
    written: Vec<Item>,
    syncing: Option<(Ticket, Vec<Item>)>,
    cache: BTreeMap<Seq, Bytes>,
    cache_bytes: u64,
    cache_bytes_max: u64,
    /// Highest payload that was ever placed.
    highest: Seq,
    /// Lines about payloads whose order is not the journal's.
    pub(super) strange: Sparing,
}

/// How long after such a line there is no other, nanoseconds.
const STRANGE_PAUSE_NS: u64 = 1_000_000_000;

impl Intake {
    #[must_use]
    pub fn new(spool: Spool, nonce: u64, cache_bytes_max: u64, highest: Seq) -> Intake {
        Intake {
            nonce,
            spool,
            waiting: BTreeMap::new(),
            chunks: VecDeque::new(),
            waiting_bytes: 0,
            storing: BTreeMap::new(),
            storing_bytes: 0,
            writes: HashMap::new(),
            written: Vec::new(),
            syncing: None,
            cache: BTreeMap::new(),
            cache_bytes: 0,
            cache_bytes_max,
            highest,
            strange: Sparing::new(STRANGE_PAUSE_NS),
        }
    }

    /// Bytes of payload the writer may have unacknowledged.
    #[must_use]
    pub fn window_bytes(&self) -> u64 {
        DR_WINDOW_BYTES_MAX.min(self.spool.size() / 4)
    }

    /// Whether something waits for room or for its record.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty() || !self.chunks.is_empty()
    }

    /// Whether chunks of a batch wait for room.
    #[must_use]
    pub fn has_waiting_chunks(&self) -> bool {
        !self.chunks.is_empty()
    }

    /// Whether the sender has gone beyond its window, with what waits elsewhere (generously: what it resends after a reconnect counts twice, and one
    /// payload that is longer than the window comes alone).
    #[must_use]
    pub fn over_window(&self, besides: u64) -> bool {
        self.waiting_bytes + besides > 2 * self.window_bytes()
    }

    /// Whether what waits here leaves the sender no room in its window for a payload of `bytes`. It counts a head for each piece
    /// of a batch, too.
    #[must_use]
    pub fn shuts_out(&self, bytes: u64) -> bool {
        let heads = (self.chunks.len() * RECORD_BYTES) as u64;
        self.waiting_bytes > 0 && self.waiting_bytes + heads + bytes > self.window_bytes()
    }

    /// Bytes of payload on their way into the spool.
    #[must_use]
    pub fn storing_bytes(&self) -> u64 {
        self.storing_bytes
    }

    /// Nothing is being written or synced.
    #[must_use]
    pub fn idle(&self) -> bool {
        self.storing.is_empty() && self.syncing.is_none()
    }

    /// Highest payload that was ever placed.
    #[must_use]
    pub fn highest(&self) -> Seq {
        self.highest
    }

    /// Whether an item is on its way into the spool; `conn` is told when it is durable.
    pub fn also(&mut self, item: Item, conn: Conn) -> bool {
        let Some(stored) = self.storing.get_mut(&item) else { return false };
        if !stored.conns.contains(&conn) {
            stored.conns.push(conn);
        }
        true
    }

    /// Puts a payload into the waiting room. It takes the place of one with the same seq; who sent the same is told, too.
    pub fn wait(&mut self, arrival: Arrival) {
        let mut others = Vec::new();
        if let Some((old, before)) = self.waiting.remove(&arrival.record.seq) {
            self.waiting_bytes -= old.data.len() as u64;
            if old.record == arrival.record {
                others = before;
                others.push(old.conn);
                others.retain(|conn| *conn != arrival.conn);
            }
        }
        self.waiting_bytes += arrival.data.len() as u64;
        self.waiting.insert(arrival.record.seq, (arrival, others));
    }

    /// Puts a chunk into the waiting room.
    pub fn wait_chunk(&mut self, index: u64, arrival: Arrival) {
        self.waiting_bytes += arrival.data.len() as u64;
        self.chunks.push_back((index, arrival));
    }

    /// The lowest payload that waits: its record.
    #[must_use]
    pub fn first_waiting(&self) -> Option<OrderRecord> {
        self.waiting.first_key_value().map(|(_, (arrival, _))| arrival.record)
    }

    /// Takes the payload of `seq` out of the waiting room; and who else has sent it.
    pub fn take_waiting(&mut self, seq: Seq) -> Option<(Arrival, Vec<Conn>)> {
        let (arrival, others) = self.waiting.remove(&seq)?;
        self.waiting_bytes -= arrival.data.len() as u64;
        Some((arrival, others))
    }

    /// The chunk that has waited longest.
    #[must_use]
    pub fn first_chunk(&self) -> Option<(u64, OrderRecord)> {
        self.chunks.front().map(|(index, arrival)| (*index, arrival.record))
    }

    /// Who sent it.
    #[must_use]
    pub fn first_chunk_conn(&self) -> Option<Conn> {
        self.chunks.front().map(|(_, arrival)| arrival.conn)
    }

    pub fn take_chunk(&mut self) -> Option<(u64, Arrival)> {
        let (index, arrival) = self.chunks.pop_front()?;
        self.waiting_bytes -= arrival.data.len() as u64;
        Some((index, arrival))
    }

    /// Drops what waits from a connection (any, with `None`): it was never acknowledged and will be sent again.
    pub fn drop_waiting(&mut self, conn: Option<Conn>) {
        let keep = |arrival: &Arrival| conn.is_some_and(|conn| arrival.conn != conn);
        self.waiting.retain(|_, (arrival, others)| {
            others.retain(|other| Some(*other) != conn);
            if let Some(other) = others.pop_if(|_| conn == Some(arrival.conn)) {
                arrival.conn = other;
            }
            keep(arrival)
        });
        self.chunks.retain(|(_, arrival)| keep(arrival));
        self.waiting_bytes = self.waiting.values().map(|(arrival, _)| arrival.data.len() as u64).sum::<u64>()
            + self.chunks.iter().map(|(_, arrival)| arrival.data.len() as u64).sum::<u64>();
    }

    /// Writes an item into the spool; there has to be room.
    pub fn store(&mut self, item: Item, arrival: Arrival, desk: &mut Desk, fx: &mut Vec<Effect>) {
        let Arrival { conn, record, data } = arrival;
        let pos = self.spool.put(entry_bytes(record.payload_bytes()));
        let (kind, index) = match item {
            Item::Payload(seq) => {
                self.highest = self.highest.max(seq);
                self.remember(seq, &data);
                (Kind::Payload, 0)
            }
            Item::Chunk { index, .. } => (Kind::Chunk, index),
        };
        let mut parts = Vec::with_capacity(3);
        encode_entry(&EntryHeader { pos, kind, index, record, skipped: 0 }, self.nonce, data, &mut parts);
        let offset = self.spool.ring().offset(pos);
        let ticket = desk.disk(fx, File::Spool, DiskKind::Write { offset, parts, durable: false });
        self.writes.insert(ticket, item);
        self.storing_bytes += record.payload_bytes();
        self.storing.insert(item, Stored { item, pos, record, conns: vec![conn] });
    }

    /// Keeps data in memory while that is cheap; the highest seqs, needed last, give way.
    fn remember(&mut self, seq: Seq, data: &Bytes) {
        self.cache_bytes += kept_bytes(data);
        if let Some(old) = self.cache.insert(seq, data.clone()) {
            self.cache_bytes -= kept_bytes(&old);
        }
        while self.cache_bytes > self.cache_bytes_max {
            let Some((_, dropped)) = self.cache.pop_last() else { break };
            self.cache_bytes -= kept_bytes(&dropped);
        }
    }

    /// The data of a payload, if it is still in memory; it is not kept any longer.
    pub fn recall(&mut self, seq: Seq) -> Option<Bytes> {
        let data = self.cache.remove(&seq)?;
        self.cache_bytes -= kept_bytes(&data);
        Some(data)
    }

    /// A sync for everything written, if none is under way.
    pub fn sync(&mut self, desk: &mut Desk, fx: &mut Vec<Effect>) {
        if self.syncing.is_none() && !self.written.is_empty() {
            let ticket = desk.disk(fx, File::Spool, DiskKind::Sync);
            self.syncing = Some((ticket, std::mem::take(&mut self.written)));
        }
    }

    /// Takes what is durable off the list.
    fn stored(&mut self, items: impl IntoIterator<Item = Item>) -> Vec<Stored> {
        let stored: Vec<Stored> = items.into_iter().filter_map(|item| self.storing.remove(&item)).collect();
        self.storing_bytes -= stored.iter().map(|stored| stored.record.payload_bytes()).sum::<u64>();
        stored
    }

    /// A write or sync of the spool ended: what is durable now.
    pub fn done(&mut self, ticket: Ticket) -> Vec<Stored> {
        if let Some(item) = self.writes.remove(&ticket) {
            self.written.push(item);
            let early =
                planted(Bug::CopiedUnsynced) || planted(Bug::ChunkAckEarly) && matches!(item, Item::Chunk { .. });
            return if early { self.stored([item]) } else { Vec::new() };
        }
        match self.syncing.take() {
            Some((syncing, items)) if syncing == ticket => self.stored(items),
            other => {
                self.syncing = other;
                Vec::new()
            }
        }
    }
}

/// What is kept with a payload: whole pages, and who counts its owners.
fn kept_bytes(data: &Bytes) -> u64 {
    (data.len() as u64).next_multiple_of(BLOCK_BYTES as u64) + KEPT_OVERHEAD_BYTES
}

const KEPT_OVERHEAD_BYTES: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::op::Op;
    use crate::format::ring::Ring;
    use crate::limits::DR_CACHE_BYTES_MAX;

    #[test]
    fn small_payloads_are_charged_by_the_pages_that_they_keep() {
        let mut intake = Intake::new(Spool::new(Ring::plain(192 << 20), 0, 0), 1, DR_CACHE_BYTES_MAX, Seq(0));
        let (mut desk, mut fx) = (Desk::default(), Vec::new());
        for seq in 1..=8192 {
            let record = OrderRecord::sample(seq, Op::Write);
            let data = Bytes::from_static(&[7; 512]);
            intake.store(Item::Payload(Seq(seq)), Arrival { conn: Conn(1), record, data }, &mut desk, &mut fx);
        }
        let kept = intake.cache.len() as u64;
        assert_eq!(kept, DR_CACHE_BYTES_MAX / (BLOCK_BYTES as u64 + KEPT_OVERHEAD_BYTES));
        assert_eq!(intake.storing_bytes(), 8192 * 512);
        // The lowest seqs, which are needed first.
        assert!(intake.recall(Seq(1)).is_some() && intake.recall(Seq(kept + 1)).is_none());
    }
}
