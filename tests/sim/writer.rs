//! The primary's effects and its clients' acknowledgements, shown to the checkers.

use std::collections::BTreeMap;

use bytes::Bytes;
use farshore::core::errno::Errno;
use farshore::core::ids::{Seq, Volume};
use farshore::core::machine::{DiskKind, DiskOp, Now};
use farshore::core::modes::{Ack, Overflow, Protect, Require};
use farshore::format::intent::{MapHeader, MapLayout, Page};
use farshore::format::record::OrderRecord;
use farshore::format::superblock;
use farshore::format::table::RECORDS_AT;
use farshore::format::wire::{Message, RefuseCode};
use farshore::limits::{BLOCK_BYTES, INTENT_EXTENT_BYTES, RECORD_BYTES};
use farshore::{auxiliary, dr, primary};

use crate::checkers::{self, Verdict, Violation};
use crate::cluster::{Asked, Event, TableTalk, World};
use crate::describe;
use crate::disk::SimFile;
use crate::network::Node;
use crate::oracle::Promise;
use crate::roles::range_of;
use crate::setup::SECOND;
use crate::workload::Ask;

/// The primary's intent map by its stable bytes. What was read of them holds until they change: to read and verify pages for
/// every write of a volume, though they rarely do, is much of a run.
#[derive(Default)]
pub struct IntentSeen {
    /// As [`SimFile::changes`] counts them.
    changes: u64,
    layout: Option<MapLayout>,
    header: Option<bool>,
    /// By their place in the file.
    pages: BTreeMap<u64, Marks>,
}

/// What a start would take a page for.
enum Marks {
    Whole(Page),
    /// It cannot be read, and counts as full at every start, until it is written again; blank, it counts as empty.
    Unreadable {
        full: bool,
    },
}

impl IntentSeen {
    fn marked(&mut self, map: &SimFile, sizes: &[u64], volume: Volume, (offset, length): (u64, u64)) -> bool {
        let stable = map.stable();
        if self.changes != map.changes() {
            *self = IntentSeen { changes: map.changes(), layout: self.layout.take(), ..IntentSeen::default() };
        }
        if !*self.header.get_or_insert_with(|| MapHeader::decode(&stable[..BLOCK_BYTES]).is_ok()) {
            // Every start takes the whole map for full, and says so.
            return true;
        }
        let layout = self.layout.get_or_insert_with(|| MapLayout::new(sizes));
        (offset / INTENT_EXTENT_BYTES..=(offset + length - 1) / INTENT_EXTENT_BYTES).all(|extent| {
            let (page, bit) = MapLayout::locate(extent * INTENT_EXTENT_BYTES);
            let at = layout.page_offset(volume, page);
            let block = &stable[at as usize..at as usize + BLOCK_BYTES];
            let read = || match Page::decode(block) {
                Ok(page) => Marks::Whole(page),
                Err(_) => Marks::Unreadable { full: block.iter().any(|byte| *byte != 0) },
            };
            match self.pages.entry(at).or_insert_with(read) {
                Marks::Whole(page) => page.get(bit),
                Marks::Unreadable { full } => *full,
            }
        })
    }
}

impl World {
    pub fn primary_step(&mut self, input: primary::machine::Input) -> Verdict {
        let now = self.clock(Node::Primary);
        let quiet = describe::primary_is_quiet(&input);
        let words = self.recording.then(|| describe::primary_input(&input));
        let turn_ends = matches!(input, primary::machine::Input::EndOfTurn | primary::machine::Input::Tick);
        if let primary::machine::Input::DrMessage { message: Message::Welcome(welcome), .. } = &input
            && welcome.gaps
        {
            self.dr_rotten_heard.clone_from(&self.dr_rotten);
        }
        self.fence_heard |= match &input {
            primary::machine::Input::AuxFailed { fenced, .. } => *fenced,
            primary::machine::Input::DrMessage { message: Message::Refuse(refuse), .. } => {
                refuse.code == RefuseCode::Fenced
            }
            _ => false,
        };
        let Some(machine) = self.primary.as_mut() else { return Ok(()) };
        let full_before = machine.in_full();
        let mut effects = Vec::new();
        machine.step(now, input, &mut effects);
        // What is answered within a turn was decided at the end of the one before.
        self.promise_full = self.full_at_turn && full_before && machine.in_full();
        let back_in_force = turn_ends && !self.full_at_turn && machine.in_full();
        if turn_ends {
            self.full_at_turn = machine.in_full();
            self.ring_excused = !self.full_at_turn && (self.ring_excused || ring_is_away(machine, now));
            let most = self.setup.lag_max.unwrap_or_default();
            self.lag_bound =
                machine.lag_writes().is_some_and(|lag| self.lag_bound || checkers::within(&self.oracle, lag, most));
        }
        self.note_input("primary", words, quiet && effects.is_empty());
        if !turn_ends && !self.end_of_turn_due {
            self.end_of_turn_due = true;
            let run = self.host(Node::Primary).run;
            let delay_ns = self.rng.below(20_000);
            self.after(delay_ns, Event::EndOfTurn { run });
        }
        if back_in_force {
            self.check_in_force()?;
        }
        self.primary_effects(effects)
    }

    pub fn primary_effects(&mut self, effects: Vec<primary::machine::Effect>) -> Verdict {
        let run = self.host(Node::Primary).run;
        // The shell carries effects out in their order, so a record is seen where it first leaves.
        for effect in effects {
            if !self.still_alive(Node::Primary, run) {
                return Ok(());
            }
            self.note(|| format!("primary -> {}", describe::primary_effect(&effect)));
            self.primary_effect(effect)?;
        }
        let deadline = self.primary.as_ref().and_then(|m| m.deadline_ns());
        self.set_tick(Node::Primary, deadline);
        Ok(())
    }

    pub fn primary_effect(&mut self, effect: primary::machine::Effect) -> Verdict {
        use primary::machine::Effect;
        match effect {
            Effect::Reply { req, result } => {
                let Some(asked) = self.asked.remove(&req.0) else {
                    return self.fail("I3", format!("request {} is answered twice", req.0));
                };
                self.replied(asked, result)?;
            }
            Effect::Disk(op) => {
                self.saw_primary_write(&op)?;
                let superblock = op.file == primary::machine::File::Superblock;
                let volume = matches!(op.file, primary::machine::File::Volume(_));
                let dies = volume && matches!(op.kind, DiskKind::Read { .. }) && self.dies_mending();
                let operation = self.primary_disk.submit(op, &mut self.rng);
                if dies {
                    let run = self.host(Node::Primary).run;
                    self.after(2 * SECOND, Event::Disk { node: Node::Primary, run, operation });
                } else {
                    self.schedule_disk(Node::Primary, operation, volume);
                }
                self.went_astray();
                self.writes_superblock(Node::Primary, superblock);
            }
            Effect::AuxOpen { epoch, owner } => self.open_table(Node::Primary, epoch, owner),
            Effect::AuxRead { ticket, offset, length } => {
                self.ask_table(Node::Primary, TableTalk::Read { cookie: ticket.0, offset, length });
            }
            Effect::AuxWrite { ticket, offset, parts, fua } => {
                let data: Bytes = parts.concat().into();
                if offset < self.table_reach.0 {
                    self.saw_records(&data)?;
                    self.check_slots(offset, &data)?;
                }
                self.check_ring(offset, &data)?;
                self.ask_table(Node::Primary, TableTalk::Write { cookie: ticket.0, offset, data, fua });
            }
            Effect::AuxClose => self.close_table(Node::Primary),
            Effect::DrConnect { conn, .. } => {
                let listening = self.host(Node::Dr).up;
                self.net.connect(self.now_ns, (Node::Primary, conn), Node::Dr, listening);
            }
            Effect::DrSend { conn, message } => {
                match &message {
                    Message::Orders(records) => records.iter().try_for_each(|r| self.saw(r))?,
                    Message::Payload { record, .. } => self.saw(record)?,
                    _ => {}
                }
                self.send_message(Node::Primary, conn, &message);
            }
            Effect::DrClose { conn, .. } => self.close_link(Node::Primary, conn)?,
            Effect::ListAllocated => {
                let at = self.disk_time(Node::Primary);
                let run = self.host(Node::Primary).run;
                self.at(at, Event::Allocated { run });
            }
            Effect::LookForHoles { batch, extent } => {
                let at = self.disk_time(Node::Primary);
                let run = self.host(Node::Primary).run;
                self.at(at, Event::Holes { run, batch, extent });
            }
            Effect::Resized { volume, size, result, .. } => self.resized(volume, size, result.ok().flatten())?,
            Effect::Verified { result } => self.verified(result)?,
            Effect::Log { level, text } => self.log(Node::Primary, level, &text),
            Effect::Fatal { text, marks } => {
                // What the next start has to know, unless the disk that failed takes that no more either.
                let taken = if self.disk_fails(Node::Primary) { &[][..] } else { &marks };
                for (offset, block) in taken {
                    self.primary_disk.plant(primary::machine::File::Superblock, *offset, block);
                }
                return self.ended(Node::Primary, &text);
            }
            Effect::Stopped => self.stopped(Node::Primary),
        }
        Ok(())
    }

    /// An operator is told that a volume has its new size: every start knows it, and the order is where the mode wants it.
    fn resized(&mut self, volume: Volume, size: u64, seq: Option<Seq>) -> Verdict {
        let Some(seq) = seq else { return Ok(()) };
        if self.promoted_at_ns.is_some() {
            if self.setup.require == Require::None || self.setup.isolated_continue || self.forced_past_a_live_aux() {
                return Ok(());
            }
            return self.fail("I7", format!("the resize of seq {seq} is acknowledged after the promotion"));
        }
        let known = self.primary_knows(volume);
        if known != Some(size) {
            let text = format!("volume {volume} is said to have {size} bytes, a start would find {known:?}");
            return self.fail("I3", text);
        }
        for client in 0..self.clients.len() {
            self.hears_of(client, volume, size);
        }
        let number = self.oracle.resize_done(self.now_ns, volume, size, seq);
        self.promise(number)
    }

    /// The size that a start of the primary would find, bytes.
    fn primary_knows(&self, volume: Volume) -> Option<u64> {
        let stable = self.primary_disk.file(primary::machine::File::Superblock).stable();
        superblock::newest(stable).ok().flatten().map(|it| it.volumes[volume.0 as usize].1)
    }

    /// Records in a piece of the table or of the intent log.
    pub fn saw_records(&mut self, bytes: &[u8]) -> Verdict {
        for slot in bytes.chunks_exact(RECORD_BYTES) {
            if self.oracle.known(slot).is_some() {
                continue;
            }
            if let Ok(record) = OrderRecord::decode(slot) {
                self.saw(&record)?;
            }
        }
        Ok(())
    }

    /// A record in an effect of the primary: of a client, or about what its volume holds where it has refused a write.
    fn saw(&mut self, record: &OrderRecord) -> Verdict {
        let own = self.primary.as_ref().is_some_and(|machine| machine.mended() == record.seq);
        if !own || self.oracle.record(record.seq).is_some() {
            return self.oracle.saw(record);
        }
        let range = record.offset as usize..(record.offset + record.length) as usize;
        let image = self.primary_disk.file(primary::machine::File::Volume(record.volume)).cache();
        let data = Bytes::copy_from_slice(&image[range]);
        self.oracle.saw_mended(self.now_ns, record, data, &self.comparing)
    }

    /// I4: a slot of the table is used again when what it tells of is at DR, or the policy is to give it up.
    ///
    /// What DR had called durable in its journal, and has rotted there since, is at DR as far as anybody can know before DR has
    /// read its journal again and said so. The table keeps no second copy of it until then: that it is lost, if the payload
    /// in the spool does not tell it, is found and named at DR's start (I8).
    fn check_slots(&self, offset: u64, data: &[u8]) -> Verdict {
        if self.setup.overflow == Overflow::Coalesce || offset < RECORDS_AT || !self.synced_told {
            return Ok(());
        }
        let cut = self.cut();
        let read = |slot| self.oracle.known(slot).copied().or_else(|| OrderRecord::decode(slot).ok());
        for record in data.chunks_exact(RECORD_BYTES).filter_map(read) {
            let older = Seq(record.seq.0.saturating_sub(self.setup.table_slots));
            let Some(older) = self.oracle.record(older).filter(|it| it.changes_volume()) else { continue };
            let unheard = self.dr_rotten.contains(&older.seq) && !self.dr_rotten_heard.contains(&older.seq);
            let told = older.seq <= self.journal_told && unheard;
            let known = older.seq <= cut || told || self.holds_at_dr(older);
            if !known && record.changes_volume() && self.holds_at_aux(older) {
                let text =
                    format!("the slot of seq {} is used again for {}: no other place has it", older.seq, record.seq);
                return self.fail("I4", text);
            }
        }
        Ok(())
    }

    /// I2: a bit of the intent map is cleared only when DR has everything that was written under it.
    fn check_intent_pages(&self, bytes: &[u8]) -> Verdict {
        bytes.chunks(farshore::limits::BLOCK_BYTES).try_for_each(|block| self.check_intent_page(block))
    }

    fn check_intent_page(&self, bytes: &[u8]) -> Verdict {
        let Ok(page) = Page::decode(bytes) else { return Ok(()) };
        // What DR once had is not remembered any more, though it was given up: everything is copied anew.
        let had = self.cut().max(self.spool_file.cut_given_up);
        for record in self.oracle.back_from(self.oracle.tail(), had) {
            let Some(extent) = record.extent().filter(|it| it.volume == page.volume) else { continue };
            let (at, bit) = MapLayout::locate(extent.offset);
            if at == page.index && !page.get(bit) && self.oracle.is_acked(record.seq) {
                let text = format!("the bit of seq {} is cleared, and DR's cut is {}", record.seq, self.cut());
                return self.fail("I2", text);
            }
        }
        Ok(())
    }

    /// I1 and I2 on the primary's own disk, before a block changes.
    pub fn saw_primary_write(&mut self, op: &DiskOp<primary::machine::File>) -> Verdict {
        use primary::machine::File;
        if let (File::IntentLog, DiskKind::Write { parts, .. }) = (op.file, &op.kind) {
            return self.saw_records(&parts.concat());
        }
        if let (File::IntentMap, DiskKind::Write { parts, .. }) = (op.file, &op.kind) {
            return self.check_intent_pages(&parts.concat());
        }
        let (File::Volume(volume), Some((offset, length))) = (op.file, range_of(&op.kind)) else { return Ok(()) };
        let beyond =
            matches!(op.kind, DiskKind::Write { .. }) && offset + length > self.setup.volume_bytes[volume.0 as usize];
        if beyond && self.primary_knows(volume).is_none_or(|known| offset + length > known) {
            let text = format!(
                "{length} bytes at {offset} of volume {volume} are written, and no start would know of that size"
            );
            return self.fail("I3", text);
        }
        if self.primary_disk.write_in_flight(op.file, offset, length) {
            let text = format!("local write of {length} bytes at {offset} of volume {volume} over a write in flight");
            return self.fail("I1", text);
        }
        if self.astray || self.intent_is_durable(volume, offset, length) {
            return Ok(());
        }
        let held = self.oracle.orders_of(volume, offset, length).any(|r| self.holds_at_aux(r) || self.holds_at_dr(r));
        if held {
            return Ok(());
        }
        let text = format!("{length} bytes at {offset} of volume {volume} change and no durable place knows of it");
        self.fail("I2", text)
    }

    /// Whether every extent of the range is marked in the stable bytes of the intent map.
    pub fn intent_is_durable(&mut self, volume: Volume, offset: u64, length: u64) -> bool {
        let map = self.primary_disk.file(primary::machine::File::IntentMap);
        self.intent_seen.marked(map, &self.setup.volume_bytes, volume, (offset, length))
    }

    pub fn holds_at_aux(&self, record: &OrderRecord) -> bool {
        self.had_at_aux(self.aux_disk.file(auxiliary::machine::File::Table).stable(), record)
    }

    /// Whether these bytes, once those of the status table, hold a record.
    pub fn had_at_aux(&self, table: &[u8], record: &OrderRecord) -> bool {
        self.oracle.encoded(record.seq).is_some_and(|encoded| self.table.holds(table, record.seq, encoded))
    }

    pub fn holds_at_dr(&self, record: &OrderRecord) -> bool {
        let Some(encoded) = self.oracle.encoded(record.seq) else { return false };
        self.journal.holds(self.dr_disk.file(dr::machine::File::Journal).stable(), record.seq, encoded)
    }

    // ---- clients ---------------------------------------------------------------------------------

    pub fn client_asks(&mut self, index: usize) -> Verdict {
        let state = &mut self.clients[index];
        if self.requests_left == 0 || state.in_flight >= state.client.depth {
            return Ok(());
        }
        self.requests_left -= 1;
        state.in_flight += 1;
        let volume = state.client.volume;
        let ask = state.client.ask(self.oracle.requests.len() as u64);
        let kind = match ask.clone() {
            Ask::Write { offset, data, fua } => primary::machine::Kind::Write { offset, data, fua },
            Ask::Zeroes { offset, length, fua, no_hole } => {
                primary::machine::Kind::Zeroes { offset, length, fua, no_hole }
            }
            Ask::Trim { offset, length, fua } => primary::machine::Kind::Trim { offset, length, fua },
            Ask::Flush => primary::machine::Kind::Flush,
            Ask::Resize { .. } => unreachable!("no client asks for that"),
        };
        let number = self.oracle.submit(self.now_ns, volume, ask);
        self.asked.insert(number as u64, Asked { client: index, number });
        let req = primary::machine::Req(number as u64);
        self.primary_step(primary::machine::Input::Request { req, volume, kind })
    }

    /// The primary answered: the client thinks and asks again, and the checkers look at what was promised.
    pub fn replied(&mut self, asked: Asked, result: Result<(), Errno>) -> Verdict {
        let state = &mut self.clients[asked.client];
        state.in_flight -= 1;
        let think_ns = state.client.think_ns();
        let run = self.host(Node::Primary).run;
        self.after(think_ns, Event::Ask { client: asked.client, run });
        if let Err(errno) = result {
            self.oracle.failed(asked.number);
            self.oracle.requests[asked.number].half |= self.volume_refused;
            return self.check_refused(asked.number, errno);
        }
        if self.promoted_at_ns.is_some() {
            // Who chose to go on alone gave I7 up (design: `require = none`, `on_isolated = continue`).
            // And who forces a promotion past an auxiliary that the old primary still reaches.
            // Only until it hears of it.
            let alone =
                self.setup.require == Require::None || self.setup.isolated_continue || self.forced_past_a_live_aux();
            if alone && !self.fence_heard {
                return Ok(());
            }
            let text = format!(
                "request {} (seq {:?}) is acknowledged by the old primary after the promotion",
                asked.number, self.oracle.requests[asked.number].seq
            );
            return self.fail("I7", text);
        }
        self.acknowledged(asked.number)
    }

    /// Liveness: a request is refused only by a primary that is fenced or stopping, for lack of room, by its volume, or when
    /// it has waited for as long as the group allows.
    fn check_refused(&self, number: usize, errno: Errno) -> Verdict {
        let over = self.host(Node::Primary).stopping.is_some() || self.primary.as_ref().is_none_or(|it| !it.readable());
        let request = &self.oracle.requests[number];
        let first_end = self.setup.volume_bytes[usize::from(request.volume.0)];
        // Clients know of a new size before the primary has it.
        let beyond = request.ask.range().is_some_and(|(offset, length)| offset + length > first_end);
        let legal = match errno {
            Errno::Shutdown => over,
            Errno::NoSpc => beyond || self.volume_refused || self.setup.overflow == Overflow::Refuse,
            Errno::Io => self.setup.freeze_timeout_ns > 0 || self.volume_failed,
            _ => false,
        };
        if legal {
            return Ok(());
        }
        self.fail("liveness", format!("request {number} is refused ({errno:?}), and nothing is in its way"))
    }

    pub fn acknowledged(&mut self, number: usize) -> Verdict {
        self.oracle.acknowledged(number, self.now_ns);
        let request = &self.oracle.requests[number];
        let (volume, submitted_ns) = (request.volume, request.submitted_ns);
        let fua = request.ask.fua();
        let by_write = self.setup.ack == Ack::Write;
        if request.ask == Ask::Flush {
            self.check_flushed(volume, submitted_ns)?;
            for n in self.oracle.covered(volume, submitted_ns) {
                self.settled(n, !by_write)?;
            }
            return Ok(());
        }
        let image = self.primary_disk.file(primary::machine::File::Volume(volume)).cache();
        checkers::check_local(&self.oracle, number, image)?;
        if fua {
            let image = self.primary_disk.file(primary::machine::File::Volume(volume)).stable();
            checkers::check_local(&self.oracle, number, image)
                .map_err(|v| Violation::new("I3", format!("FUA: {} in stable bytes", v.text)))?;
        }
        if by_write {
            self.promise(number)?;
        }
        if fua {
            self.settled(number, !by_write)?;
        }
        Ok(())
    }

    /// An acknowledged flush: what was complete on the local disk before it was asked for is durable there.
    pub fn check_flushed(&self, volume: Volume, submitted_ns: u64) -> Verdict {
        let file = self.primary_disk.file(primary::machine::File::Volume(volume));
        let left = file.unsynced().iter().find(|w| w.completed_ns.is_some_and(|at| at < submitted_ns));
        match left {
            Some(w) => {
                let text = format!("a flush is acknowledged, {} bytes at {} are not durable", w.length, w.offset);
                self.fail("I3", text)
            }
            None => Ok(()),
        }
    }

    /// The local disk keeps it for ever; with `ack = flush` this is the moment of the promise too.
    pub fn settled(&mut self, number: usize, promise: bool) -> Verdict {
        self.oracle.requests[number].settled = true;
        if promise { self.promise(number) } else { Ok(()) }
    }

    /// I3 at the moment of an acknowledgement.
    pub fn promise(&mut self, number: usize) -> Verdict {
        let Some(seq) = self.oracle.requests[number].seq else {
            return self.fail("I2", format!("request {number} is acknowledged and no record of it was ever seen"));
        };
        let record = *self.oracle.record(seq).expect("an ordered request has its record");
        // Before the first sync is complete there is nothing to promote, and so nothing is promised of it (I6).
        if !self.synced_told {
            return Ok(());
        }
        // What DR's cut has passed is in every image from now on: there is nothing to report of it any more.
        let crossed = seq <= self.cut();
        let holders = checkers::holders(
            // What was durable there and has rotted since was promised all the same: nobody can know before it is read
            // back. A report that leaves it out has to say so (I8, I4).
            crossed || self.holds_at_aux(&record) || self.aux_rotten.contains(&seq) && self.table.had(seq),
            // What a crash happens to leave behind a hole in the journal was never promised.
            crossed || seq <= self.journal_told && self.holds_at_dr(&record),
            self.ring.had(seq),
            crossed || self.spool.had(seq),
        );
        let promise = Promise { at_ns: self.now_ns, holders, full: self.promise_full };
        self.oracle.requests[number].promise = Some(promise);
        if self.astray {
            // What a disk says it has done, and has not, nobody can know before it is read back.
            return Ok(());
        }
        let given_up =
            self.setup.overflow == Overflow::Coalesce && seq.0 + self.setup.table_slots <= self.oracle.tail().0;
        if given_up && !promise.full {
            // An answer that comes so late, or a flush that covers so much, finds its record given up by the policy
            // as it would be a moment later: the report will say so (I4).
            return Ok(());
        }
        if !promise.full && self.before_gap(seq) {
            // A flush behind a start that could not rely on its log covers what came before that as its batch does: a degraded
            // group says so, and waits for no batch.
            return Ok(());
        }
        // The reply relies on what was called durable before: a bit that has flipped since, in a site that was down or in
        // one that nobody has heard of since, makes it no broken promise. What it costs, the report has to say (I4, I8).
        let mut promise = promise;
        promise.holders.aux |= self.aux_rotten.contains(&seq);
        promise.holders.dr |= seq <= self.journal_told && self.dr_rotten.contains(&seq);
        let in_ring = promise.holders.aux_payload || promise.holders.dr_payload || record.payload_bytes() == 0;
        if self.setup.protect == Protect::Bunker && !in_ring && !self.ring_excused {
            let text = format!("seq {seq} is acknowledged without its payload, and the ring was never away");
            return self.fail("I3", text);
        }
        checkers::check_promise(self.setup.protect, self.setup.require, &record, promise)
    }

    // ---- the shells' common parts ----------------------------------------------------------------
}

/// Whether data may be acknowledged without the ring that it is to be in: the auxiliary is away or was left behind, or the
/// first batch after a start is not complete. A ring that is full is no reason.
fn ring_is_away(machine: &primary::machine::Machine, now: Now) -> bool {
    let status = machine.status(now);
    let away =
        |text: &str| text.starts_with("auxiliary:") || text.contains("first batch") || text.contains("lacks records");
    status.protect == "bunker" && status.degraded.iter().any(|it| away(&it.what))
}
