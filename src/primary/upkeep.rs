//! Periodic work and the clean stop.

use bytes::Bytes;

use super::batch::Mode;
use super::machine::{CYCLE_NS, Effect, File, Machine, Paced, Pending, Stopping, disk_write};
use super::window::Held;
use crate::core::errno::Errno;
use crate::core::ids::{Seq, Volume};
use crate::core::machine::{DiskKind, DiskOp, Level};
use crate::core::modes::Overflow;
use crate::core::planted::{Bug, planted};
use crate::format::intent::{LogLayout, Watermark};
use crate::format::superblock;

/// Pauses between waits for room up to here belong to one wait, nanoseconds.
const PACED_PAUSE_NS: u64 = 2_000_000_000;

impl Machine {
    pub(super) fn periodic(&mut self, fx: &mut Vec<Effect>) {
        self.expire_frozen(fx);
        self.note_paced(fx);
        self.tick_aux(fx);
        self.tick_dr(fx);
        self.tick_cycle(fx);
        let watermark = (self.local_done, self.dr.cut, self.aux.skipped);
        if watermark != self.watermark_saved {
            self.watermark_saved = watermark;
            self.save_watermark(fx);
        }
        self.ages.forget(self.dr.cut.next());
        self.note_outlook();
    }

    /// Keeps since when writes wait for room. At the pace of a link they come and go all the time: that is one wait
    /// as long as the pauses are short.
    fn note_paced(&mut self, fx: &mut Vec<Effect>) {
        let now = self.now;
        self.refused_since_ns = self.refuses().then(|| self.refused_since_ns.unwrap_or(now.wall_ns));
        self.dropped_since_ns = self.lost_any().then(|| self.dropped_since_ns.unwrap_or(now.wall_ns));
        let Some(why) = self.paced_by() else {
            self.paced = self.paced.filter(|paced| now.mono_ns < paced.seen_ns + PACED_PAUSE_NS);
            return;
        };
        if self.paced.is_none() {
            let text = format!("writes are paced: {why}; they wait until something has left");
            fx.push(Effect::Log { level: Level::Warn, text });
        }
        let since_wall_ns = self.paced.map_or(now.wall_ns, |paced| paced.since_wall_ns);
        self.paced = Some(Paced { since_wall_ns, seen_ns: now.mono_ns, why });
    }

    /// What writes wait for now, with `overflow = "pace"`, or in `bunker`.
    fn paced_by(&self) -> Option<&'static str> {
        if !self.held_requests.is_empty() && self.journal_wait().is_some() {
            return Some(if self.mode.batch().is_some() || self.closing.is_some() {
                "DR's journal has to hold all orders until the batch is complete (a larger [dr] journal holds more)"
            } else {
                "DR's journal is full"
            });
        }
        if self.held_requests.next_bytes().is_some_and(|bytes| self.spool_wait(bytes)) {
            return Some(
                "DR's spool has to hold everything written until the batch is complete (a larger [dr] spool holds more)",
            );
        }
        if !self.held_requests.is_empty() && self.options.overflow == Overflow::Coalesce && self.closes_batch() {
            return Some("the FIFO is full, and the batch under way is completed first");
        }
        if let Some(why) = self.lag_waits.filter(|_| !self.held_requests.is_empty()) {
            return Some(why);
        }
        let paces = self.options.overflow == Overflow::Pace;
        let bytes = self.held_requests.next_bytes()?;
        if (paces || self.ring_needs_slots()) && self.table_full() {
            return Some("the status table is full");
        }
        if self.ring_wait(bytes) {
            return Some("the auxiliary's payload ring is full");
        }
        if !paces {
            return None;
        }
        let spills = self.may_spill() && self.fifo.has_room(self.held.bytes + bytes);
        let charge = Held::memory_of(bytes) + self.window.overhead();
        let full = self.held.memory + charge > self.memory_for(bytes);
        (full && !spills).then_some("the FIFO is full")
    }

    /// Peers are met only once the superblock is durable: they must never know an identity, or a seq, that a
    /// crash could make this primary forget.
    pub(super) fn may_connect(&self) -> bool {
        !self.options.standalone && self.fenced.is_none() && self.reserved >= self.tail && self.reserved > Seq(0)
    }

    pub(super) fn save_watermark(&mut self, fx: &mut Vec<Effect>) {
        let coalescing = !matches!(self.mode, Mode::Stream) || self.closing.is_some() || self.mending_open();
        let cut = self.cut_known();
        let aux_skipped = if self.aux.skipped <= cut { Seq(0) } else { self.aux.skipped };
        let watermark = Watermark { local_done: self.local_done, cut, coalescing, aux_skipped };
        let bytes = Bytes::copy_from_slice(&watermark.encode());
        let ticket = self.ticket(Pending::Unwatched("intent log"));
        fx.push(disk_write(ticket, File::IntentLog, LogLayout::WATERMARK_AT, vec![bytes], false));
    }

    /// Clears bits of the intent map that no longer say anything.
    pub(super) fn tick_cycle(&mut self, fx: &mut Vec<Effect>) {
        if self.options.standalone || self.mode.drops_payloads() || self.lost_any() {
            self.intent.abandon_cycle();
            return;
        }
        match self.intent.cycle() {
            None if self.intent.may_begin_cycle() && !self.mends() => {
                self.cycle_syncing = false;
                self.intent.begin_cycle(self.tail, self.now.mono_ns);
            }
            Some((upto, began))
                if self.now.mono_ns >= began + CYCLE_NS
                    && (self.dr.cut >= upto || planted(Bug::IntentClearedEarly)) =>
            {
                if !self.cycle_syncing && self.local_done >= upto {
                    self.cycle_syncing = true;
                    self.cycle_syncs_left = self.options.volumes.len();
                    for file in self.volume_files() {
                        let ticket = self.ticket(Pending::CycleSync);
                        fx.push(Effect::Disk(DiskOp { ticket, file, kind: DiskKind::Sync }));
                    }
                } else if self.cycle_syncing && self.cycle_syncs_left == 0 && !self.intent.busy() {
                    self.intent.end_cycle();
                    self.write_intent(fx);
                }
            }
            _ => {}
        }
    }

    /// Answers what can be answered, puts memory's payloads on disk, and marks the directory clean.
    ///
    /// A sync covers what was complete when it began: so the log has every record by then, and gets none afterwards.
    /// A record that a peer has and a log that is called clean has not would give its seq out again (I1).
    pub(super) fn go_on_stopping(&mut self, fx: &mut Vec<Effect>) {
        if self.stopping != Stopping::Draining {
            return;
        }
        self.write_log(fx);
        if self.local_done < self.tail || self.spill_everything(fx) || !self.pending.is_empty() {
            return;
        }
        self.stopping = Stopping::Syncing;
        for (req, ..) in self.held_requests.drain() {
            fx.push(Effect::Reply { req, result: Err(Errno::Shutdown) });
        }
        self.save_watermark(fx);
        let files: Vec<File> = self.volume_files().into_iter().chain([File::Fifo, File::IntentLog]).collect();
        self.stop_syncs_left = files.len();
        for file in files {
            let ticket = self.ticket(Pending::StopSync);
            fx.push(Effect::Disk(DiskOp { ticket, file, kind: DiskKind::Sync }));
        }
    }

    /// Everything is durable: only now may the superblock say so.
    pub(super) fn stop_sync_done(&mut self, fx: &mut Vec<Effect>) {
        self.stop_syncs_left -= 1;
        if self.stop_syncs_left > 0 {
            return;
        }
        let unsaved = self.held.bytes > 0 || self.mode.drops_payloads() || self.mends();
        self.superblock.flags |= if unsaved { 0 } else { superblock::CLEAN };
        self.write_superblock(self.reserved, fx);
    }

    pub(super) fn volume_files(&self) -> Vec<File> {
        let count = u16::try_from(self.options.volumes.len()).expect("at most VOLUMES_MAX volumes");
        (0..count).map(|index| File::Volume(Volume(index))).collect()
    }
}
