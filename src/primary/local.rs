//! What the local disk answers: writes, intent pages, syncs.

use bytes::Bytes;

use super::machine::{Effect, FlushStage, Machine, Pending, PendingFlush, Stopping};
use super::window::Local;
use crate::core::errno::Errno;
use crate::core::ids::{Extent, Seq, Ticket, Volume};
use crate::core::machine::{DiskResult, IoFail, Level};
use crate::core::op::Op;
use crate::core::planted::{Bug, planted};
use crate::core::sparing::Sparing;

impl Machine {
    pub(super) fn disk_done(&mut self, ticket: Ticket, result: DiskResult, fx: &mut Vec<Effect>) {
        let pending = self.pending.remove(&ticket).expect("the shell completes each operation once");
        match (pending, result) {
            (Pending::Compare(id), result) => self.compare_read(id, result),
            (Pending::Local(seq), result) => self.local_done(seq, result, fx),
            (Pending::IntentPage, Ok(_)) => self.intent_done(),
            (Pending::Unwatched(_), Ok(_)) => {}
            (Pending::MapHeader, Ok(_)) => self.map_laid_out(),
            (Pending::Superblock { reserved, fifo_head, says, again: Some(mut block) }, Ok(_)) => {
                self.superblock.generation += 1;
                block.generation = self.superblock.generation;
                self.put_superblock(&block, Pending::Superblock { reserved, fifo_head, says, again: None }, fx);
            }
            (Pending::Superblock { reserved, fifo_head, says, again: None }, Ok(_)) => {
                self.resize_saved(says);
                self.fifo.saved(fifo_head);
                self.superblock_busy = false;
                self.marked = true;
                self.reserved = self.reserved.max(reserved);
                if let Some(reserved) = self.superblock_waits.take() {
                    self.write_superblock(reserved, fx);
                } else if self.stopping == Stopping::Syncing && self.stop_syncs_left == 0 {
                    self.stopping = Stopping::Stopped;
                    fx.push(Effect::Stopped);
                }
            }
            (Pending::Flush { volume, upto }, result) => self.flush_done(volume, upto, result, fx),
            (Pending::CycleSync, Ok(_)) => self.cycle_syncs_left -= 1,
            (Pending::StopSync, Ok(_)) => self.stop_sync_done(fx),
            (Pending::Spill { upto, seqs, held }, Ok(_)) => self.spill_done(upto, &seqs, held),
            (Pending::FifoRead { pos }, Ok(bytes)) => self.fifo_read(pos, bytes, fx),
            (Pending::LogRead { peer, first, count }, Ok(bytes)) => self.log_read(peer, first, count, &bytes, fx),
            (Pending::Chunk { batch, read }, Ok(bytes)) => self.chunk_read(batch, read, bytes, fx),
            (Pending::Mending, Ok(bytes)) => self.mending_read(&bytes),
            (Pending::Spill { .. }, Err(fail @ IoFail::NoSpace(_))) => {
                let text = format!(
                    "disk FIFO, writing: {fail}. The file system has less room than it has promised to the FIFO: make \
                     room there, or set disk of [primary] fifo to less (0: none), and start again; what the FIFO held \
                     is copied from the volumes then"
                );
                self.disk_failed(text, fx);
            }
            (Pending::Mending, Err(_)) if self.repairs() => self.repair_unread(),
            (pending, Err(fail)) => self.disk_failed(format!("{}: {fail}", pending.what()), fx),
        }
    }

    pub(super) fn local_done(&mut self, seq: Seq, result: DiskResult, fx: &mut Vec<Effect>) {
        let ring = self.owes_ring(seq);
        let entry = self.window.get_mut(seq).expect("a write stays in the window until its local write is done");
        let extent = entry.record.extent().expect("only ranges are written");
        entry.local = Local::Done;
        if entry.owed_to_ring() && !ring {
            // Left to a batch while it was being written.
            entry.data = Bytes::new();
        }
        if let Err(fail) = result {
            entry.local = Local::Failed;
            let errno = if matches!(fail, IoFail::NoSpace(_)) { Errno::NoSpc } else { Errno::Io };
            if let Some(req) = entry.req.take() {
                fx.push(Effect::Reply { req, result: Err(errno) });
            }
            self.local_failed(seq, extent, &fail, fx);
        }
        let mut started = Vec::new();
        self.inflight[usize::from(extent.volume.0)].finish(seq, &mut started);
        for next in started.into_iter().filter(|_| !planted(Bug::LocalOverlapped)) {
            self.unblock(next, |admitted, _| *admitted = true);
        }
        self.advance_local_done();
        if self.may_acknowledge() {
            self.reply_if_ready(seq, fx);
        } else {
            self.withheld = true;
        }
    }

    /// What has left the window is on the disk: records of our own do not wait there for the ones before them.
    pub(super) fn advance_local_done(&mut self) {
        self.local_done = self.local_done.max(self.window.first().prev());
        while self.window.get(self.local_done.next()).is_some_and(|e| e.local.ended()) {
            self.local_done = self.local_done.next();
        }
    }

    /// The block's content is unknown now: what the disk holds is read back, and follows the write.
    fn local_failed(&mut self, seq: Seq, extent: Extent, fail: &IoFail, fx: &mut Vec<Effect>) {
        let name = self.options.volumes[usize::from(extent.volume.0)].0.clone();
        let text = format!("volume {name}: write of {} bytes at {} failed: {fail}", extent.length, extent.offset);
        let resizes = self.window.get(seq).is_some_and(|entry| entry.record.op == Op::Resize);
        if matches!(fail, IoFail::NoSpace(_)) && resizes {
            // Whatever stood there before would be part of the volume.
            self.disk_failed(format!("{text}; make room in its store and start again: the resize goes on then"), fx);
        } else if matches!(fail, IoFail::NoSpace(_)) {
            if let Some(left_out) = self.mending.lines.due(self.now.mono_ns) {
                let text = format!("{text}{}", Sparing::and_more(left_out));
                fx.push(Effect::Log { level: Level::Error, text });
            }
            self.mend(extent, fx);
        } else {
            self.disk_failed(format!("{text}; mend the backing store and start again"), fx);
        }
    }

    pub(super) fn unblock(&mut self, seq: Seq, mend: impl FnOnce(&mut bool, &mut bool)) {
        let entry = self.window.get_mut(seq).expect("a waiting write stays in the window");
        let Local::Waiting { admitted, intended } = &mut entry.local else {
            unreachable!("only waiting writes are unblocked");
        };
        mend(admitted, intended);
        if *admitted && *intended {
            self.startable.push(seq);
        }
    }

    pub(super) fn intent_done(&mut self) {
        if !self.intent.page_done() {
            return;
        }
        self.unmarked.retain(|extent| !self.intent.is_durable(*extent));
        for seq in std::mem::take(&mut self.unintended) {
            let extent = self.window.get(seq).and_then(|entry| entry.record.extent()).expect("waits with a range");
            if self.intent.is_durable(extent) {
                self.unblock(seq, |_, intended| *intended = true);
            } else {
                self.unintended.push_back(seq);
            }
        }
    }

    pub(super) fn flush_done(&mut self, volume: Volume, upto: usize, result: DiskResult, fx: &mut Vec<Effect>) {
        let syncing = |flush: &PendingFlush| flush.volume == volume && flush.stage == FlushStage::Syncing;
        match result {
            Ok(_) => {
                let mut count = 0;
                for flush in self.flushes.iter_mut().filter(|flush| syncing(flush)) {
                    flush.stage = FlushStage::Synced;
                    count += 1;
                }
                debug_assert!(count <= upto, "flushes may have been failed meanwhile, never added");
                if self.may_acknowledge() {
                    self.settle_flushes(fx);
                }
            }
            Err(fail) => {
                self.flushes.retain(|flush| {
                    let failed = syncing(flush);
                    if failed {
                        fx.push(Effect::Reply { req: flush.req, result: Err(Errno::Io) });
                    }
                    !failed
                });
                self.disk_failed(format!("flush failed: {fail}; mend the backing store and start again"), fx);
            }
        }
    }
}
