//! How far the payload of each slot has come, as the table says it: what a loss report is told by.

use std::collections::HashMap;

use bytes::BytesMut;

use super::{AuxOp, StatesOut};
use crate::core::ids::Seq;
use crate::core::planted::{Bug, planted};
use crate::format::table::{NO_PAYLOAD, SlotState, State};
use crate::primary::machine::{Effect, Machine};
use crate::primary::window::Payload;

impl Machine {
    /// A payload has been given to a stream.
    pub(in crate::primary) fn note_sent(&mut self, seq: Seq) {
        self.aux.note_state(seq);
    }

    /// Writes the states that changed and still matter, in runs. Not waited for. A slot's state is another's before the record
    /// has arrived there, and after a later lap has taken the slot: it says where the ring has the payload of that (I4).
    pub(super) fn flush_states(&mut self, fx: &mut Vec<Effect>) {
        let Some(layout) = self.aux.layout else { return };
        if self.aux.states_out.left > 0 {
            return;
        }
        let floor = self.floor();
        let mut seqs = std::mem::take(&mut self.aux.states_dirty);
        let from = self.aux.states_tail.max(floor).next();
        seqs.extend(self.window.from(from).map(|entry| entry.record.seq).filter(|seq| *seq >= from));
        let taken = self.aux.next.0.saturating_sub(layout.slots);
        let early = planted(Bug::StateBeforeRecord);
        let last = if early { self.tail } else { self.aux.arrived() };
        self.aux.states_tail = self.tail.min(last);
        seqs.retain(|seq| *seq > floor && *seq <= last && (seq.0 >= taken || early));
        seqs.sort_unstable();
        seqs.dedup();
        let Some(&oldest) = seqs.first() else { return };
        let ring: HashMap<Seq, u64> = self.aux.ring_live.iter().copied().collect();
        let mut runs: Vec<(u64, BytesMut)> = Vec::new();
        for seq in seqs {
            let Some(entry) = self.window.get(seq) else { continue };
            let state = match entry.payload {
                Payload::Copied => State::Copied,
                Payload::Sent => State::Sent,
                _ => State::Queued,
            };
            let payload_pos = ring.get(&seq).copied().unwrap_or(NO_PAYLOAD);
            let raw = SlotState { seq, state, payload_pos }.encode();
            let offset = layout.state_offset(seq);
            match runs.last_mut() {
                Some((start, bytes)) if *start + bytes.len() as u64 == offset => bytes.extend_from_slice(&raw),
                _ => runs.push((offset, BytesMut::from(&raw[..]))),
            }
        }
        self.aux.states_out = StatesOut { left: runs.len(), oldest };
        for (offset, bytes) in runs {
            self.aux_write(AuxOp::States, offset, vec![bytes.freeze()], false, fx);
        }
    }
}
