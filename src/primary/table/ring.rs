//! The payload ring of `bunker`: data goes there with its record, in the same commit, and stays until DR has it.
//!
//! What DR gets by a batch, because the FIFO was full, goes into the ring all the same: its data is kept for that alone, and
//! charged to nobody but the bound here (I9).

use bytes::{Bytes, BytesMut};

use crate::core::ids::Seq;
use crate::core::modes::{Overflow, Protect};
use crate::core::planted::{Bug, planted};
use crate::format::record::OrderRecord;
use crate::format::spool::{self, EntryHeader, Kind};
use crate::format::table::{NO_PAYLOAD, STATE_BYTES, SlotState, State, TableLayout};
use crate::limits::PAYLOAD_BYTES_MAX;
use crate::primary::machine::Machine;
use crate::primary::window::Payload;

impl Machine {
    /// Payloads and states of these records, up to one whose payload the ring is to protect and has no room for yet: it came
    /// before the ring protected anything. How many it took.
    pub(super) fn commit_payloads(
        &mut self,
        records: &[OrderRecord],
        layout: TableLayout,
        writes: &mut Vec<(u64, Vec<Bytes>)>,
    ) -> usize {
        let mut states = BytesMut::with_capacity(records.len() * STATE_BYTES);
        let protects = self.ring_takes() && self.ring_passable() && !planted(Bug::RingOverflows);
        let mut taken = records.len();
        for (at, record) in records.iter().enumerate() {
            if protects && self.lacks_ring_room(record, layout) {
                (self.aux.ring_waits, taken) = (true, at);
                break;
            }
            let mut payload_pos = NO_PAYLOAD;
            if record.op.has_payload() {
                match self.place_payload(record, layout, writes) {
                    Some(pos) => payload_pos = pos,
                    None => {
                        // What an earlier incarnation put there stays known. Whether it is whole, nobody has looked.
                        payload_pos = self.ring_found_at(record.seq).unwrap_or(NO_PAYLOAD);
                        if self.window.get(record.seq).is_none_or(|entry| entry.payload != Payload::Copied) {
                            self.aux.hole = record.seq;
                        }
                    }
                }
            }
            states.extend_from_slice(&SlotState { seq: record.seq, state: State::Queued, payload_pos }.encode());
        }
        writes.push((layout.state_offset(records[0].seq), vec![states.freeze()]));
        taken
    }

    /// Whether a record that is not acknowledged yet waits for what stands in the ring to go, or for DR to have its payload
    /// where only the disk queue has it. What was acknowledged without the ring does not wait for it.
    fn lacks_ring_room(&self, record: &OrderRecord, layout: TableLayout) -> bool {
        let bytes = spool::entry_bytes(record.payload_bytes());
        let Some(entry) = self.window.get(record.seq).filter(|entry| entry.record.op.has_payload()) else {
            return false;
        };
        if bytes > layout.payload_bytes || record.seq <= self.owed().max(self.floor()) {
            return false;
        }
        if entry.data.is_empty() {
            return matches!(entry.payload, Payload::Queued | Payload::Sent | Payload::Spilling | Payload::Spilled);
        }
        !self.aux.ring_live.is_empty() && !self.ring_place(bytes, layout).1
    }

    /// Where the next entry of the ring goes, and whether there is room for its `bytes`.
    fn ring_place(&self, bytes: u64, layout: TableLayout) -> (u64, bool) {
        let pos = spool::place(self.aux.ring_pos, layout.payload_bytes, bytes);
        let oldest = self.aux.ring_live.front().map_or(pos, |(_, pos)| *pos);
        (pos, pos + bytes - oldest <= self.ring_bound(layout))
    }

    /// Where the ring holds the payload of a seq, as far as this incarnation put it there or found it.
    fn ring_found_at(&self, seq: Seq) -> Option<u64> {
        let at = self.aux.ring_live.binary_search_by_key(&seq, |(seq, _)| *seq).ok()?;
        Some(self.aux.ring_live[at].1)
    }

    /// Puts a payload into the ring; `None` when there is no room or it is not in memory any more.
    fn place_payload(
        &mut self,
        record: &OrderRecord,
        layout: TableLayout,
        writes: &mut Vec<(u64, Vec<Bytes>)>,
    ) -> Option<u64> {
        let data = self.window.get(record.seq).map(|entry| entry.data.clone()).filter(|data| !data.is_empty())?;
        let bytes = spool::entry_bytes(data.len() as u64);
        if bytes > layout.payload_bytes {
            return None;
        }
        let (pos, fits) = self.ring_place(bytes, layout);
        self.aux.ring_full = !fits && !planted(Bug::RingReusedEarly);
        if self.aux.ring_full {
            return None;
        }
        let header = EntryHeader { pos, kind: Kind::Payload, index: 0, record: *record, skipped: 0 };
        let mut parts = Vec::with_capacity(3);
        spool::encode_entry(&header, self.group().0, data, &mut parts);
        let offset = layout.payload_offset(pos);
        match writes.last_mut() {
            Some((start, run)) if *start + run.iter().map(|part| part.len() as u64).sum::<u64>() == offset => {
                run.append(&mut parts);
            }
            _ => writes.push((offset, parts)),
        }
        self.aux.ring_pos = pos + bytes;
        self.aux.ring_live.push_back((record.seq, pos));
        Some(pos)
    }

    /// The slots of what is not copied are what a promotion finds the payloads in the ring by: they are not given up,
    /// whatever the policy, and whether or not the ring has room for more.
    pub(in crate::primary) fn ring_needs_slots(&self) -> bool {
        self.ring_takes() || self.aux.in_reach() && self.ring_holds_data()
    }

    /// Whether what is written now is protected by the ring.
    pub(super) fn ring_takes(&self) -> bool {
        self.options.protect == Protect::Bunker && self.aux.keeps_payloads()
    }

    /// Whether the ring has a payload that DR has not, of this history: what came before a gap in the seqs a promotion can
    /// make no use of.
    pub(super) fn ring_holds_data(&self) -> bool {
        self.aux.ring_live.back().is_some_and(|&(seq, _)| seq > self.floor() && seq >= self.log_began)
    }

    /// Whether a payload of `bytes` waits for room in the ring: whatever the policy, as nothing else keeps what `bunker`
    /// promises. With `coalesce` not before the first batch after a start is complete: until then the ring protects nothing.
    pub(in crate::primary) fn ring_wait(&self, bytes: u64) -> bool {
        let coalesces = self.options.overflow == Overflow::Coalesce;
        let protects = self.ring_passable() && !planted(Bug::RingOverflows);
        (protects || !coalesces) && !self.payload_ring_has_room(bytes)
    }

    /// Whether the payload ring takes `bytes` more once everything that waits for it is in it. True where there is
    /// no ring in use: that is what `require` is for.
    fn payload_ring_has_room(&self, bytes: u64) -> bool {
        let Some(layout) = self.aux.layout.filter(|layout| layout.payload_bytes > 0) else { return true };
        if self.options.protect != Protect::Bunker || bytes == 0 || !self.aux.in_reach() {
            return true;
        }
        let entry = spool::entry_bytes(bytes);
        if entry > layout.payload_bytes {
            return true;
        }
        let waiting: u64 = self
            .window
            .from(self.aux.next)
            .filter(|entry| entry.record.op.has_payload())
            .map(|entry| spool::entry_bytes(entry.record.payload_bytes()))
            .sum();
        let oldest = self.aux.ring_live.front().map_or(self.aux.ring_pos, |(_, pos)| *pos);
        // An entry never wraps: up to one of them may be skipped at the end of the ring.
        let skipped = spool::entry_bytes(u64::from(PAYLOAD_BYTES_MAX)).min(layout.payload_bytes / 4);
        let skipped = if self.aux.ring_live.is_empty() && waiting == 0 { 0 } else { skipped };
        self.aux.ring_pos + waiting + entry + skipped - oldest <= self.ring_bound(layout)
    }

    /// What of the ring is used: a promotion brings it into DR's spool before it replays anything, beside what is there of
    /// a batch. What does not fit would protect nothing.
    pub(super) fn ring_bound(&self, layout: TableLayout) -> u64 {
        self.spool_left().map_or(layout.payload_bytes, |left| left.min(layout.payload_bytes))
    }

    /// From which seq on the payload ring has yet to get what is written; `None` where it takes nothing.
    pub(in crate::primary) fn ring_from(&self) -> Option<Seq> {
        let ring = self.aux.layout.is_some_and(|layout| layout.payload_bytes > 0);
        let takes = self.options.protect == Protect::Bunker && ring && self.aux.in_reach();
        takes.then(|| self.aux.durable.next())
    }

    /// Whether a payload that DR does not get by the stream is kept for the ring.
    pub(in crate::primary) fn owes_ring(&self, seq: Seq) -> bool {
        self.ring_from().is_some_and(|from| seq >= from)
    }

    /// Bytes in memory for the ring alone (I9): what DR gets is charged to the FIFO.
    pub(in crate::primary) fn ring_owed_bytes(&self) -> u64 {
        let Some(from) = self.ring_from().filter(|_| self.mode.drops_payloads()) else { return 0 };
        self.window.from(from).filter(|entry| entry.owed_to_ring()).map(|entry| entry.data.len() as u64).sum()
    }

    /// The ring has them, or takes nothing any more: what was kept of these for it alone goes.
    pub(super) fn forget_ring_data(&mut self, from: Seq, upto: Seq) {
        let kept = self.window.from_mut(from).take_while(|entry| entry.record.seq <= upto);
        kept.filter(|entry| entry.owed_to_ring() && entry.local_begun()).for_each(|entry| entry.data = Bytes::new());
    }

    pub(super) fn release_ring(&mut self) {
        let floor = self.floor();
        // Of what is still on its way to the ring the room is not used again: it would come over what is written there next.
        let over = floor.min(self.aux.arrived());
        while self.aux.ring_live.front().is_some_and(|(seq, _)| *seq <= over) {
            self.aux.ring_live.pop_front();
            self.aux.ring_full = false;
        }
        if self.aux.hole <= floor {
            self.aux.hole = Seq(0);
        }
    }
}
