//! A region that holds no table: whether it may be formatted, and when.
//!
//! | header | whose region | DR's copy | does |
//! |---|---|---|---|
//! | all zeroes | | | formats it: nothing was ever there, or an operator handed it over |
//! | damaged | ours | has everything up to the tail at first sight | wipes the slots, formats it |
//! | damaged | ours | has not | waits: a record may be known only by what is left of the table (I2, I4) |
//! | damaged | unknown | | refuses, and says how to hand it over |
//!
//! Ours is what our own auxiliary granted to this epoch, or what has this primary in its fence block. The tail at
//! first sight bounds every record that can be in the table: none is written to it before it is formatted.
//!
//! On storage that cannot fence, a table is claimed, here and where it is whole, only while a promotion that has taken it since
//! the fence was read still waits for our lease: it looks at what we did after that (I7). A claim that comes later than that goes
//! beside its fence, not over it.

use bytes::Bytes;

use super::AuxOp;
use crate::core::ids::Seq;
use crate::core::machine::Level;
use crate::core::modes::Protect;
use crate::core::planted::{Bug, planted};
use crate::format::FormatError;
use crate::format::table::{Fence, HEADER_AT, HEARTBEAT_AT, RECORDS_AT, TableHeader, TableLayout};
use crate::limits::LEASE_NS;
use crate::primary::machine::{Effect, Machine};

/// Bytes of slots zeroed by one write.
const WIPE_BYTES: u64 = 1 << 20;

impl Machine {
    /// The head is all zeroes.
    pub(super) fn format_blank(&mut self, fx: &mut Vec<Effect>) {
        if self.choose_layout(fx) {
            self.format(fx);
        }
    }

    /// The header cannot be read.
    pub(super) fn judge_unreadable(&mut self, head: &[u8], why: &FormatError, fx: &mut Vec<Effect>) {
        let fence = Fence::in_force(head).ok();
        if let Some(fence) = &fence
            && !self.may_hold(fence, fx)
        {
            return;
        }
        if !self.aux.fencing && fence != Some(self.own_fence()) {
            let text = format!(
                "the region holds no status table of this group ({why}), and nothing in it shows that it is ours; name \
                 another region, or hand this one over: fill its first 16 KiB with zeroes, and it is formatted anew"
            );
            return self.aux_reject(&text, fx);
        }
        let tail = self.tail;
        let known = *self.aux.unreadable.get_or_insert(tail);
        if self.floor() < known {
            let text = format!(
                "the status table is damaged ({why}); it is formatted anew by itself once DR holds every write up to \
                 seq {known}, so that nothing known only there is thrown away"
            );
            return self.aux_reject(&text, fx);
        }
        if self.choose_layout(fx) {
            let text = format!(
                "the status table is damaged ({why}): formatting it anew; DR holds every write up to seq {known}"
            );
            fx.push(Effect::Log { level: Level::Warn, text });
            self.wipe(RECORDS_AT, fx);
        }
    }

    /// Zeroes the slots from an offset on, then formats: nothing of what stands there may be taken for a record.
    pub(super) fn wipe(&mut self, offset: u64, fx: &mut Vec<Effect>) {
        let layout = self.aux.layout.expect("chosen before anything is wiped");
        if offset >= layout.payload_at {
            if self.aux.fencing {
                return self.format(fx);
            }
            // Wiping takes a while, and storage that cannot fence would let the head of a taker be overwritten (I7).
            return self.read_fence_before_format(fx);
        }
        let length = WIPE_BYTES.min(layout.payload_at - offset);
        let zeroes = Bytes::from(vec![0; usize::try_from(length).expect("at most a MiB")]);
        self.aux_write(AuxOp::Wipe { next: offset + length }, offset, vec![zeroes], true, fx);
    }

    pub(super) fn read_fence_before_format(&mut self, fx: &mut Vec<Effect>) {
        let sent_ns = self.now.mono_ns;
        self.aux_read(AuxOp::FenceBeforeFormat { sent_ns }, 0, RECORDS_AT, fx);
    }

    /// Everything is wiped: formats, unless somebody has taken the table meanwhile.
    pub(super) fn fence_before_format(&mut self, head: &[u8], fx: &mut Vec<Effect>) {
        match Fence::in_force(head) {
            Ok(fence) if !self.may_hold(&fence, fx) => {}
            _ => self.format(fx),
        }
    }

    /// Whether an answer is too old to put our fence block up by (I7): on storage that cannot fence, a promotion may have
    /// taken the table after it was read, and looked for the last time whether its own block still stands.
    pub(super) fn may_be_taken_since(&self, sent_ns: u64) -> bool {
        !self.aux.fencing && self.now.mono_ns > sent_ns + LEASE_NS
    }

    /// The layout of a new table. False after refusing a region that is too small.
    fn choose_layout(&mut self, fx: &mut Vec<Effect>) -> bool {
        let ring = if self.options.protect == Protect::Bunker { self.options.table_payload_bytes } else { 0 };
        let wanted = TableLayout::new(self.options.table_slots, ring);
        let fits = wanted.total_bytes() <= self.aux.region_bytes;
        let layout = if fits { Some(wanted) } else { TableLayout::fitting(self.aux.region_bytes, ring) };
        if layout.is_none() {
            let (size, wanted) = (self.aux.region_bytes, wanted.total_bytes());
            let text = format!(
                "the region of {size} bytes is too small for a status table: {wanted} are needed with aux.slots and \
                 aux.payload as they are; enlarge it, or lower them"
            );
            self.aux_reject(&text, fx);
            return false;
        }
        self.aux.layout = layout;
        true
    }

    /// Writes the head of an empty table: fence, heartbeat, header, one after another. What an earlier table held is not here:
    /// the records that DR does not have are written again, and payloads of a ring that is gone count for nothing.
    fn format(&mut self, fx: &mut Vec<Effect>) {
        let floor = self.floor();
        self.aux.durable = self.aux.durable.min(floor);
        self.aux.written = self.aux.written.min(floor);
        self.aux.found_floor = Seq(0);
        self.aux.ring_live.clear();
        self.aux.ring_found = None;
        (self.aux.ring_full, self.aux.ring_waits) = (false, false);
        if planted(Bug::TableUnclaimed) {
            return self.write_first_heartbeat(fx);
        }
        self.claim(true, fx);
    }

    /// Writes our fence block.
    pub(super) fn claim(&mut self, anew: bool, fx: &mut Vec<Effect>) {
        let fence = self.own_fence();
        let block = Bytes::copy_from_slice(&fence.encode());
        self.aux_write(AuxOp::Claim { anew }, Fence::place(fence.epoch), vec![block], true, fx);
    }

    /// The region is claimed: whatever of the rest is torn by a loss of power, our fence block says whose it is.
    pub(super) fn write_first_heartbeat(&mut self, fx: &mut Vec<Effect>) {
        self.aux_write(AuxOp::FirstHeartbeat, HEARTBEAT_AT, vec![self.heartbeat_block()], true, fx);
    }

    /// The header makes the table: it is the last of its head. One that was found is written again as it is: of a header whose
    /// write has failed the server may show what is in its cache alone, and after a loss of power the table would be blank.
    pub(super) fn write_header(&mut self, fx: &mut Vec<Effect>) {
        let layout = self.aux.layout.expect("known before the head is written");
        let header = Bytes::copy_from_slice(&TableHeader::new(self.group(), &layout).encode());
        self.aux_write(AuxOp::WriteHead, HEADER_AT, vec![header], true, fx);
    }

    pub(super) fn own_fence(&self) -> Fence {
        Fence { epoch: self.superblock.epoch, owner: self.superblock.owner }
    }

    pub(super) fn heartbeat_block(&self) -> Bytes {
        Bytes::copy_from_slice(&self.heartbeat().encode())
    }
}
