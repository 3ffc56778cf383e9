//! What goes to DR next: order records first, payloads after them, oldest first.
//!
//! Nothing is sent before both histories are known to agree where they meet (I8).

use std::collections::VecDeque;

use super::batch::Mode;
use super::link::{DISK_UNACKED_BYTES_MAX, Phase, RETRY_REFUSED_NS};
use super::machine::{Effect, Machine, Peer};
use super::paths::End;
use super::window::Payload;
use crate::core::ids::{Conn, Seq};
use crate::core::machine::Level;
use crate::core::modes::Protect;
use crate::format::record::OrderRecord;
use crate::format::spool;
use crate::format::wire::{Message, orders_frame_bytes};
use crate::limits::COMMITS_INFLIGHT_MAX;

impl Machine {
    // ---- order -------------------------------------------------------------------------------

    pub(super) fn pump_orders(&mut self, fx: &mut Vec<Effect>) {
        let Phase::Up { conn } = self.dr.phase else { return };
        if self.dr.must_jump || self.fenced.is_some() || !self.chain_checked(conn, fx) {
            return;
        }
        loop {
            while let Some(compare) = self.next_compare() {
                fx.push(Effect::DrSend { conn, message: Message::Compare(compare) });
            }
            // What DR's journal has no room for waits here, and what comes behind a comparison.
            let room = self.sends_upto().min(self.compared_upto());
            if self.dr.commits.len() >= COMMITS_INFLIGHT_MAX || self.dr.next > self.tail.min(room) {
                break;
            }
            let mut records = self.next_records(Peer::Dr, fx);
            records.truncate(records.partition_point(|record| record.seq <= room));
            let Some(last) = records.last().map(|record| record.seq) else { return };
            self.dr.next = last.next();
            self.dr.commits.push_back((last, self.now.mono_ns));
            self.dr.order_bytes += orders_frame_bytes(&records) as u64;
            fx.push(Effect::DrSend { conn, message: Message::Orders(records) });
        }
        if self.dr.next > self.tail {
            self.dr.caught_up = true;
        }
    }

    /// Whether our history and DR's agree where they meet; reads the record from the log when it must.
    pub(super) fn chain_checked(&mut self, conn: Conn, fx: &mut Vec<Effect>) -> bool {
        let Some(chain) = self.dr.check else { return true };
        let seq = self.dr.next.prev();
        let ours = if seq == self.tail {
            self.chain
        } else if let Some(entry) = self.window.get(seq) {
            entry.record.chain
        } else if seq < self.log_first {
            // The record itself has left the log; DR checks the chain of the next one against it.
            self.dr.check = None;
            return true;
        } else {
            self.read_log(Peer::Dr, seq, fx);
            return false;
        };
        self.dr.check = None;
        if ours != chain {
            self.diverged(conn, seq, fx);
            return false;
        }
        true
    }

    fn diverged(&mut self, conn: Conn, seq: Seq, fx: &mut Vec<Effect>) {
        let text = format!(
            "DR's history differs from this primary's at seq {seq} (I8): nothing is sent; find out which side is \
             right, then empty the directory of the other one"
        );
        fx.push(Effect::Log { level: Level::Error, text: text.clone() });
        self.dr_reject(conn, End::Ours, &text, RETRY_REFUSED_NS, fx);
    }

    pub(super) fn dr_log_read(&mut self, first: Seq, mut records: VecDeque<OrderRecord>, fx: &mut Vec<Effect>) {
        let Phase::Up { conn } = self.dr.phase else { return };
        if let Some(chain) = self.dr.check
            && first == self.dr.next.prev()
        {
            match records.pop_front() {
                Some(record) if record.chain == chain => self.dr.check = None,
                Some(record) => return self.diverged(conn, record.seq, fx),
                None => self.lost_log(fx),
            }
        } else if records.is_empty() && first == self.dr.next {
            self.lost_log(fx);
        }
        self.dr.backfill = records;
    }

    /// The intent log cannot give what DR needs next.
    fn lost_log(&mut self, fx: &mut Vec<Effect>) {
        self.dr.check = None;
        self.coalesce("the intent log no longer holds the records DR needs", fx);
        // What cannot be read cannot be told either, the next time as well.
        self.own_from = self.own_from.max(self.dr.next.next());
        self.jump_over_orders();
    }

    // ---- payloads ----------------------------------------------------------------------------

    /// Moves `copied` over everything durable at DR or without payload.
    pub(super) fn advance_copied(&mut self) {
        self.copied = self.copied.max(self.dr.cut);
        if !self.fifo.is_empty() {
            return;
        }
        let whole = matches!(self.mode, Mode::Stream) && self.closing.is_none();
        if whole && self.dr.cut > Seq(0) && self.copied.next() < self.window.first() {
            self.copied = self.window.first().prev();
        }
        while let Some(entry) = self.window.get(self.copied.next()) {
            if !matches!(entry.payload, Payload::None | Payload::Copied) {
                break;
            }
            self.copied = self.copied.next();
        }
    }

    /// Whether records wait that could be sent to DR now.
    pub(super) fn orders_can_go(&self) -> bool {
        self.dr.ready()
            && self.fenced.is_none()
            && self.unmarked.is_empty()
            && !self.dr.must_jump
            && !self.dr.reading_log
            && self.dr.next <= self.tail.min(self.sends_upto())
            && self.dr.commits.len() < COMMITS_INFLIGHT_MAX
    }

    /// Whether a payload in memory waits for a stream that could take it now.
    pub(super) fn payloads_can_go(&self) -> bool {
        let early = self.options.protect == Protect::Sync;
        let at = self.dr.ship_next.max(self.window.first());
        let open = self.dr.ready() && self.dr.any_stream() && !self.dr.must_jump && self.fenced.is_none();
        open && at < self.dr.next
            && self.fifo.all_sent()
            && self.window.get(at).is_some_and(|entry| match entry.payload {
                Payload::Queued => {
                    let batch = self.mode.batch().is_some();
                    (entry.may_leave() || early && entry.remembered())
                        && self.dr.stream_for_payload(entry.data.len() as u64, batch).is_some()
                }
                _ => true,
            })
    }

    /// Gives payloads to streams: the disk's first, then memory's, oldest first.
    pub(super) fn pump_payloads(&mut self, fx: &mut Vec<Effect>) {
        if !self.dr.ready() || !self.dr.any_stream() || self.dr.must_jump || self.fenced.is_some() {
            return;
        }
        while let Some(staged) = self.fifo.peek_staged() {
            let bytes = staged.data.len() as u64;
            let fetched = spool::entry_bytes(bytes);
            if self.dr.disk_unacked > 0 && self.dr.disk_unacked + fetched > DISK_UNACKED_BYTES_MAX {
                return;
            }
            let Some(conn) = self.dr.stream_for_payload(bytes, self.mode.batch().is_some()) else { return };
            let staged = self.fifo.pop_staged().expect("just seen");
            let message = Message::Payload { record: staged.record, data: staged.data.clone() };
            self.dr.note_payload(conn, staged.record.seq, bytes, Some(staged));
            fx.push(Effect::DrSend { conn, message });
        }
        if self.fifo.all_sent() {
            self.pump_memory(fx);
        }
    }

    fn pump_memory(&mut self, fx: &mut Vec<Effect>) {
        self.dr.ship_next = self.dr.ship_next.max(self.window.first());
        // A payload that is ahead of its local write could reach DR and not the disk of a primary that
        // dies in between; only `sync` needs the overlap, and the intent map covers it there, once it is durable.
        let early = self.options.protect == Protect::Sync;
        while let Some(entry) = self.window.get(self.dr.ship_next) {
            let seq = entry.record.seq;
            // An order that waits for the map is not overtaken by its payload: DR keeps few that it has no order of.
            if seq >= self.dr.next {
                return;
            }
            if entry.payload == Payload::Queued {
                if !(entry.may_leave() || early && entry.remembered()) {
                    return;
                }
                let bytes = entry.data.len() as u64;
                let message = Message::Payload { record: entry.record, data: entry.data.clone() };
                let batch = self.mode.batch().is_some();
                let Some(conn) = self.dr.stream_for_payload(bytes, batch) else { return };
                self.dr.note_payload(conn, seq, bytes, None);
                self.window.get_mut(seq).expect("just seen").payload = Payload::Sent;
                self.note_sent(seq);
                fx.push(Effect::DrSend { conn, message });
            }
            self.dr.ship_next = seq.next();
        }
    }
}
