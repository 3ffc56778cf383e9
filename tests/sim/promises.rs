//! What DR promises, in its messages, by its superblock and by what it writes, held against the bytes that are
//! durable at that moment.

use bytes::Bytes;
use farshore::core::ids::Seq;
use farshore::core::machine::{DiskKind, DiskOp};
use farshore::core::modes::Require;
use farshore::core::op::Op;
use farshore::format::record::OrderRecord;
use farshore::format::spool::{EntryHeader, sized_nonce};
use farshore::format::superblock;
use farshore::format::wire::Message;
use farshore::{dr, primary};

use crate::checkers::{self, Verdict, Violation};
use crate::cluster::{DR_NONCE, World};
use crate::disk::Settled;
use crate::oracle::Promise;
use crate::roles::range_of;

impl World {
    /// What DR promises in its messages: told cuts never go back, and what it calls durable is.
    pub fn saw_dr_message(&mut self, message: &Message) -> Verdict {
        match message {
            Message::Welcome(welcome) => {
                // What was damaged is copied anew: until that is done nothing can be promoted, as before the first copy.
                self.synced_told = welcome.synced || self.synced_told && !self.damaged && !self.spool_file.given_up;
                self.cut_told = self.cut_told.max(welcome.cut);
                self.check_promised(welcome.cut)?;
                if welcome.journal_seq < self.journal_told && !self.damaged {
                    let text = format!("DR's journal ends at {}, it told {}", welcome.journal_seq, self.journal_told);
                    return self.fail("I3", text);
                }
                self.check_journal_durable(welcome.journal_seq)
            }
            Message::Progress { cut, synced, .. } => {
                self.synced_told |= *synced;
                self.cut_told = self.cut_told.max(*cut);
                self.check_promised(*cut)
            }
            Message::ChunksDurable { batch, indexes } if self.synced_told && *batch > self.cut() && !self.damaged => {
                match indexes.iter().find(|index| !self.spool.had_chunk(*batch, **index)) {
                    Some(index) => {
                        self.fail("I3", format!("DR calls chunk {index} of batch {batch} durable, which it is not"))
                    }
                    None => Ok(()),
                }
            }
            Message::OrdersDurable { journal_seq } => self.check_journal_durable(*journal_seq),
            // A first sync supersedes what came before it: that is acknowledged and not kept.
            Message::Copied { .. } if !self.synced_told => Ok(()),
            Message::Copied { ranges } => {
                let cut = self.cut();
                for range in ranges {
                    for seq in range.first.0..=range.last.0 {
                        let carried = self.oracle.record(Seq(seq)).is_some_and(|r| r.payload_bytes() > 0);
                        // Before the first sync is complete nothing can be promoted: what it will bring is not kept.
                        if carried && self.synced_told && !self.damaged && Seq(seq) > cut && !self.spool.had(Seq(seq)) {
                            let text = format!("DR calls the payload of seq {seq} copied, and it is not durable");
                            return self.fail("I3", text);
                        }
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The records above a seq, the newest first, as far as the seqs have no gap: what stands before one is from before a start
    /// that could not rely on its log, and left to a batch.
    fn since_gap(&self, above: Seq) -> impl Iterator<Item = &OrderRecord> {
        let mut next = self.oracle.tail().next();
        let whole = move |record: &&OrderRecord| record.seq.next() >= std::mem::replace(&mut next, record.seq);
        self.oracle.back_from(self.oracle.tail(), above).take_while(whole)
    }

    /// What was promised of those above the cut.
    fn promised(&self) -> impl Iterator<Item = (&OrderRecord, Promise)> {
        let above = self.since_gap(self.cut());
        above.filter_map(|record| Some((record, self.oracle.request_of(record.seq)?.promise?)))
    }

    /// Whether an order stands before such a gap.
    pub fn before_gap(&self, seq: Seq) -> bool {
        self.since_gap(seq.prev()).all(|record| record.seq != seq)
    }

    /// I3: a mode is in force again only when it holds of everything that was acknowledged below it.
    pub fn check_in_force(&self) -> Verdict {
        let known = self.synced_told && !self.damaged && !self.astray && !self.aux_spoiled();
        if !known || self.promoted_at_ns.is_some() {
            return Ok(());
        }
        for (record, promise) in self.promised() {
            let seq = record.seq;
            let (aux, dr) = (self.holds_at_aux(record), seq <= self.journal_told && self.holds_at_dr(record));
            let holders = checkers::holders(aux, dr, self.ring.had(seq), self.spool.had(seq));
            let promise = Promise { holders, full: true, ..promise };
            checkers::check_promise(self.setup.protect, Require::Both, record, promise)
                .map_err(|v| Violation::new("I3", format!("the mode is said to be in force again: {}", v.text)))?;
        }
        Ok(())
    }

    /// I3 over what an operator is told: while a mode is said to be in force by which orders are known, some place has each
    /// that one had when it was acknowledged.
    pub fn check_mode_word(&self) -> Verdict {
        let says = self.primary.as_ref().map_or("", primary::machine::Machine::mode_in_force);
        let known = self.synced_told && !self.damaged && !self.astray && !self.aux_spoiled();
        let rotten = !self.aux_rotten.is_empty() || !self.dr_rotten.is_empty();
        let orders = matches!(says, "near" | "order" | "sync" | "journal only");
        if !known || rotten || !orders || self.promoted_at_ns.is_some() {
            return Ok(());
        }
        for (record, promise) in self.promised() {
            let held = promise.holders.aux || promise.holders.dr;
            if held && !self.holds_at_aux(record) && !self.holds_at_dr(record) {
                let text = format!("{says} is said to be in force, and nobody has the order of seq {}", record.seq);
                return self.fail("I3", text);
            }
        }
        Ok(())
    }

    /// DR's cut: what it has told, or says now; what its checkpoint has passed is below it, whether it came to say so or not.
    pub fn cut(&self) -> Seq {
        let checkpoint =
            self.dr_superblock.as_ref().filter(|it| it.has(superblock::SYNCED)).map_or(Seq(0), |it| it.seq);
        let says = self.dr.as_ref().map_or(Seq(0), dr::machine::Machine::recovery_point);
        says.max(self.cut_told).max(checkpoint)
    }

    /// Every record since the last one that was told, or since DR's history jumped; what the cut has passed may
    /// have left the journal.
    fn check_journal_durable(&mut self, upto: Seq) -> Verdict {
        let from = if self.damaged { upto } else { self.journal_told.max(self.cut()) };
        for record in self.oracle.back_from(upto, from) {
            if !self.holds_at_dr(record) {
                let text = format!("DR calls its journal durable up to seq {upto}, seq {} is not", record.seq);
                return self.fail("I3", text);
            }
            if record.op.may_jump() {
                let passed = self.oracle.back_from(Seq(record.seq.0 - 1), from).map(|record| record.seq);
                let passed: Vec<Seq> = passed.collect();
                self.passed_untold.extend(passed);
                break;
            }
        }
        self.journal_told = self.journal_told.max(upto);
        Ok(())
    }

    /// A recovery point is told only when the superblock has promised it durably.
    fn check_promised(&self, cut: Seq) -> Verdict {
        let promised = self.dr_superblock.as_ref().map_or(Seq(0), |it| it.promised_cut);
        if cut > promised {
            return self.fail("I5", format!("DR tells recovery point {cut}, its superblock has promised {promised}"));
        }
        Ok(())
    }

    /// What DR's superblock promises is durable when the superblock is: orders up to both promises. What an earlier
    /// one of the same process promised was looked at then, and [`World::check_journal_write`] watches over it.
    pub fn check_dr_superblock(&mut self, settled: &[Settled<dr::machine::File>]) -> Verdict {
        if !settled.iter().any(|s| s.file == dr::machine::File::Superblock) {
            return Ok(());
        }
        let found = self.dr_superblock.as_ref().filter(|it| !self.damaged && it.has(superblock::SYNCED));
        let Some(it) = found else { return Ok(()) };
        let sizes: Vec<u64> = it.volumes.iter().map(|(_, size)| *size).collect();
        let start = self.oracle.record(it.seq).filter(|record| record.op == Op::EpochStart);
        let before = start.and_then(|_| self.oracle.back_from(it.seq, Seq(0)).nth(1)).map(|record| record.seq);
        if sizes != self.oracle.sizes_after(it.seq) && before.is_none_or(|seq| sizes != self.oracle.sizes_after(seq)) {
            let text = format!("DR's checkpoint at {} has volumes of {sizes:?} bytes", it.seq);
            return self.fail("I5", format!("{text}, there should be {:?}", self.oracle.sizes_after(it.seq)));
        }
        for (what, upto) in [("cut", it.promised_cut), ("tail", it.promised_tail)] {
            for record in self.oracle.back_from(upto, it.seq.max(self.promise_checked)) {
                if !self.holds_at_dr(record) {
                    let text = format!("DR's superblock promises {what} {upto}, seq {} is not durable", record.seq);
                    return self.fail("I3", text);
                }
                if record.op.may_jump() {
                    break;
                }
            }
        }
        self.promise_checked = it.promised_cut.max(it.promised_tail);
        Ok(())
    }

    /// I1 on DR: writes to the same blocks of a volume are never in flight together.
    pub fn check_dr_write(&self, op: &DiskOp<dr::machine::File>) -> Verdict {
        if let (dr::machine::File::Spool, DiskKind::Write { parts, .. }) = (op.file, &op.kind) {
            return self.check_spool_write(parts);
        }
        if let (dr::machine::File::Journal, DiskKind::Write { offset, parts, .. }) = (op.file, &op.kind) {
            return self.check_journal_write(*offset, parts);
        }
        let (dr::machine::File::Volume(volume), Some((offset, length))) = (op.file, range_of(&op.kind)) else {
            return Ok(());
        };
        if self.dr_disk.write_in_flight(op.file, offset, length) {
            let text = format!("DR writes {length} bytes at {offset} of volume {volume} over a write in flight");
            return self.fail("I1", text);
        }
        Ok(())
    }

    /// I8: nothing in the spool is overwritten that a start would still look for.
    fn check_spool_write(&self, parts: &[Bytes]) -> Verdict {
        let nonce = sized_nonce(DR_NONCE, self.setup.spool_bytes);
        let Ok(header) = EntryHeader::decode(&parts[0], nonce) else { return Ok(()) };
        let floor = self.dr_superblock.as_ref().map_or(0, |it| it.spool_pos);
        let grown = self.dr_superblock.as_ref().map_or(0, |it| it.spool().grown_bytes());
        if header.pos + header.entry_bytes() > floor + self.setup.spool_bytes + grown {
            let text = format!("DR writes seq {} over what its superblock still needs of the spool", header.record.seq);
            return self.fail("I8", text);
        }
        Ok(())
    }
}
