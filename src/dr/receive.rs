//! Messages of the link: what comes in, what is promised back.
//!
//! | message | promised back | durable before |
//! |---|---|---|
//! | hello | `Welcome` | group, epoch and writer in the superblock |
//! | orders | `OrdersDurable` | these records and all before them in the journal (I3) |
//! | payload | `Copied` | its data in the spool, its record in the journal |
//! | chunk | `ChunksDurable` | its data in the spool (first sync: in the volume), the begin of its batch in the journal |
//!
//! What does not agree with the history here is never stored: it is named, and either asked for again or
//! ends the connection (I8).

use crate::core::ids::{Conn, Seq, SeqRange};
use crate::core::machine::{Level, Now};
use crate::core::op::Op;
use crate::core::planted::{Bug, planted};
use crate::core::sparing::Sparing;
use crate::dr::api::{Effect, Options};
use crate::dr::batch::Batch;
use crate::dr::history::{Divergence, Intake as Taken};
use crate::dr::intake::{Arrival, Stored};
use crate::dr::links::{Part, Peer, Standing, Writer, judge};
use crate::dr::machine::{After, Machine, Told, Trouble};
use crate::dr::replay::Item;
use crate::dr::spool::Spool;
use crate::format::record::OrderRecord;
use crate::format::spool::entry_bytes;
use crate::format::superblock::{BLANK, SYNCED};
use crate::format::wire::{Hello, Message, Purpose, Refuse, RefuseCode, Welcome};
use crate::limits::{
    COMMIT_RECORDS_MAX, COMMITS_INFLIGHT_MAX, CONNECTIONS_MAX, LIST_ITEMS_MAX, PAYLOAD_BYTES_MAX, PROGRESS_EVERY_NS,
    PROGRESS_SHORT_NS, VOLUME_BYTES_MAX,
};

impl Machine {
    pub(super) fn opened(&mut self, now: Now, conn: Conn, fx: &mut Vec<Effect>) {
        if self.links.peers.len() >= CONNECTIONS_MAX {
            fx.push(Effect::Close { conn, reason: "too many connections".into() });
            return;
        }
        let peer = Peer { part: Part::Stranger, heard_ns: now.mono_ns, since_ns: now.mono_ns };
        self.links.peers.insert(conn, peer);
    }

    /// A connection is gone, by whomever. Streams go with their order connection.
    pub(super) fn closed(&mut self, conn: Conn, fx: &mut Vec<Effect>) {
        let Some(peer) = self.links.remove(conn) else { return };
        self.intake.drop_waiting(Some(conn));
        self.comparisons.drop_of(conn);
        self.patches.drop_of(conn);
        self.fillings.drop_of(conn);
        self.held_orders.retain(|(of, _)| *of != conn);
        if peer.part == Part::Stream {
            self.asking.stream_gone(conn);
        }
        if peer.part == Part::Order {
            for stream in self.links.streams() {
                self.close(stream, "its order connection is gone", fx);
            }
        }
    }

    /// Closes a connection from this side.
    pub(super) fn close(&mut self, conn: Conn, reason: &str, fx: &mut Vec<Effect>) {
        if self.links.peers.contains_key(&conn) {
            fx.push(Effect::Close { conn, reason: reason.into() });
            self.closed(conn, fx);
        }
    }

    pub(super) fn close_all(&mut self, reason: &str, fx: &mut Vec<Effect>) {
        let conns: Vec<Conn> = self.links.peers.keys().copied().collect();
        for conn in conns {
            self.close(conn, reason, fx);
        }
    }

    pub(super) fn message(&mut self, now: Now, conn: Conn, message: Message, fx: &mut Vec<Effect>) {
        let Some(peer) = self.links.peers.get_mut(&conn) else { return };
        peer.heard_ns = now.mono_ns;
        match (peer.part, message) {
            (_, Message::Ping { nonce }) => fx.push(Effect::Send { conn, message: Message::Pong { nonce } }),
            (_, Message::Pong { nonce }) => self.sounded(now, conn, nonce, fx),
            (Part::Stranger, Message::Hello(hello)) => self.hello(now, conn, &hello, fx),
            (Part::Order, Message::Orders(records)) => self.orders(now, conn, &records, fx),
            (Part::Stream, Message::Payload { record, data }) => {
                self.asking.came(now, record.seq);
                self.payload(now, Arrival { conn, record, data }, fx);
            }
            (Part::Order, Message::RoomAsked { volume, size }) => self.room_asked(conn, volume, size, fx),
            (Part::Order, Message::Compare(it)) => self.compare(conn, it, fx),
            (Part::Order, Message::Refuse(refuse)) => self.turned_down(now, conn, &refuse.text, fx),
            (Part::Stream, Message::Chunk { index, record, data }) => {
                self.piece_came(now);
                self.chunk(index, Arrival { conn, record, data }, fx);
            }
            (Part::Stream, Message::Patch(patch)) => {
                self.piece_came(now);
                self.patch(conn, patch, fx);
            }
            (_, other) => {
                let text = format!("a {} message has no place here", word(&other));
                self.refuse(conn, RefuseCode::Protocol, text, fx);
            }
        }
    }

    /// The payloads of a first sync come once it is nearly done: until then its pieces show that the link feeds this site.
    fn piece_came(&mut self, now: Now) {
        if self.batch.as_ref().is_some_and(|batch| batch.direct) {
            self.asking.fed(now);
        }
    }

    /// The primary does not take this site for its DR, and will ask again every few seconds: it is said once.
    fn turned_down(&mut self, now: Now, conn: Conn, why: &str, fx: &mut Vec<Effect>) {
        let text = format!("the primary refuses this DR: {why}");
        self.close(conn, &text, fx);
        if self.links.turned_down.is_none() {
            fx.push(Effect::Log { level: Level::Warn, text: text.clone() });
            self.links.turned_down = Some((text, now.wall_ns));
        }
    }

    pub(super) fn refuse(&mut self, conn: Conn, code: RefuseCode, text: String, fx: &mut Vec<Effect>) {
        let epoch = self.keeper.get().epoch;
        fx.push(Effect::Log { level: Level::Warn, text: format!("connection refused: {text}") });
        fx.push(Effect::Send { conn, message: Message::Refuse(Refuse { code, epoch, text: text.clone() }) });
        self.close(conn, &text, fx);
    }

    fn hello(&mut self, now: Now, conn: Conn, hello: &Hello, fx: &mut Vec<Effect>) {
        let here = Standing {
            superblock: self.keeper.get(),
            options: &self.options,
            sizes: (!self.never_synced()).then_some(self.sizes.known()),
            tail: self.history.tail().max(self.keeper.get().promised_tail),
            writer: self.links.writer,
            ready: self.is_ready(),
        };
        if let Err(refuse) = judge(hello, &here) {
            return self.refuse(conn, refuse.code, refuse.text, fx);
        }
        let Some(peer) = self.links.peers.get_mut(&conn) else { return };
        match hello.purpose {
            Purpose::Stream => {
                peer.part = Part::Stream;
                let welcome = self.welcome_message();
                fx.push(Effect::Send { conn, message: Message::Welcome(welcome) });
            }
            Purpose::Order => {
                peer.part = Part::Pending(Writer::of(hello));
                peer.since_ns = now.mono_ns;
                if let Err(text) = self.writer_is_here(hello.tail, fx) {
                    return self.refuse(conn, RefuseCode::NotNow, text, fx);
                }
                self.adopt(hello);
                self.keeper.then(After::Welcome(conn));
            }
        }
    }

    /// Takes over what a hello says that this directory does not know yet.
    fn adopt(&mut self, hello: &Hello) {
        self.adopt_sizes(&hello.volumes);
        let it = self.keeper.get();
        if (it.group, it.epoch, it.peer) == (hello.group, hello.epoch, hello.owner) {
            return;
        }
        self.keeper.change(|it| {
            it.group = hello.group;
            it.epoch = hello.epoch;
            it.peer = hello.owner;
        });
        self.journal.adopt(hello.group);
    }

    /// What an order connection adopts is durable: it takes the place of an older one.
    pub(super) fn welcome(&mut self, now: Now, conn: Conn, fx: &mut Vec<Effect>) {
        let Some(Part::Pending(writer)) = self.links.part(conn) else { return };
        let it = self.keeper.get();
        if writer.epoch != it.epoch || writer.owner != it.peer || !self.is_ready() {
            return self.refuse(conn, RefuseCode::NotNow, "overtaken by another connection".into(), fx);
        }
        if let Some(old) = self.links.order {
            self.close(old, "replaced by a newer connection of the same writer", fx);
        }
        if let Some(peer) = self.links.peers.get_mut(&conn) {
            peer.part = Part::Order;
            peer.since_ns = now.mono_ns;
        }
        self.links.order = Some(conn);
        self.links.writer = Some(writer);
        // What is missing here comes again, but for a payload that this writer has not any more: it waits for its order.
        self.let_orphans_go();
        let welcome = self.welcome_message();
        self.told = Told {
            journal: welcome.journal_seq,
            cut: welcome.cut,
            applied: welcome.applied,
            synced: welcome.synced,
            room: welcome.room,
            at_ns: now.mono_ns,
            held_changes: 0,
        };
        let text = format!(
            "writer {:016x} of epoch {} connected: journal {}, cut {}, applied {}",
            writer.owner.0, writer.epoch, welcome.journal_seq, welcome.cut, welcome.applied
        );
        let level = if self.links.turned_down.is_some() { Level::Debug } else { Level::Info };
        fx.push(Effect::Log { level, text });
        fx.push(Effect::Send { conn, message: Message::Welcome(welcome) });
        // Most of what is missing the writer has yet to send. Of the rest it was told that it is here: it was given up, or found
        // damaged, or a start did not find it.
        let mut ranges = self.history.gaps(LIST_ITEMS_MAX);
        ranges.extend(self.history.missing_ranges_above(self.due_above(), LIST_ITEMS_MAX));
        ranges.truncate(LIST_ITEMS_MAX);
        if !ranges.is_empty() {
            fx.push(Effect::Send { conn, message: Message::Need { ranges } });
        }
        self.asking.begin(now);
    }

    fn welcome_message(&self) -> Welcome {
        let it = self.keeper.get();
        let journal_seq = self.journal.durable();
        let journal_chain = self.history.chain_at(journal_seq);
        Welcome {
            group: it.group,
            epoch: it.epoch,
            owner: it.owner,
            journal_seq,
            journal_chain,
            cut: self.told_cut(),
            applied: self.point(self.replay.applied()),
            synced: self.synced(),
            // What was blank at first is not since something was copied there, or is being.
            blank: it.has(BLANK) && !it.has(SYNCED) && !self.direct(),
            gaps: self.lacks_orders(),
            led_past: self.history.led_past(self.cut),
            batch: self.batch.as_ref().or(self.committing.as_ref()).map_or(Seq(0), Batch::kept),
            have: self.history.have_above(self.firm_cut(), LIST_ITEMS_MAX),
            window_bytes: self.intake.window_bytes(),
            spool_bytes: self.spool_to_be(),
            room: self.room(),
        }
    }

    fn orders(&mut self, now: Now, conn: Conn, records: &[OrderRecord], fx: &mut Vec<Effect>) {
        self.links.turned_down = None;
        if !self.held_orders.is_empty() {
            return self.hold_orders(conn, records, fx);
        }
        // What is due from now on has its time to come, however long there was nothing to send.
        if self.history.first_missing_above(self.due_above()).is_none() {
            self.asking.fed(now);
        }
        // The sender does not believe what it was told of orders that it had yet to send: it is told again.
        if let Some(first) = records.first() {
            self.told.journal = self.told.journal.min(first.seq.prev());
        }
        for (at, record) in records.iter().enumerate() {
            if record.op == Op::BatchBegin && record.seq > self.history.tail() && self.finishes_batch() {
                self.hold_orders(conn, &records[at..], fx);
                break;
            }
            if let Err(text) = self.acceptable(record).and_then(|()| self.learn_size(record)) {
                return self.refuse(conn, RefuseCode::Protocol, text, fx);
            }
            match self.history.take(*record) {
                Ok(Taken::Known) => {}
                Ok(Taken::New) => {
                    self.journal.push(*record);
                    self.taken(record, fx);
                }
                Err(divergence) => return self.diverged(now, conn, &divergence, fx),
            }
        }
        self.let_orphans_go();
        // The sender waits for acknowledgements long before this.
        if self.journal.waiting() > 2 * COMMITS_INFLIGHT_MAX * COMMIT_RECORDS_MAX {
            self.refuse(conn, RefuseCode::Protocol, "more orders than may be unacknowledged".into(), fx);
        }
    }

    /// Payloads that a start found without their orders, and in whose place there are others, or none.
    fn let_orphans_go(&mut self) {
        self.history.disown_passed().into_iter().for_each(|pos| self.intake.spool.free(pos));
    }

    /// Keeps orders until [`Machine::release_orders`]; they are those that may be unacknowledged, at the most (I9).
    fn hold_orders(&mut self, conn: Conn, records: &[OrderRecord], fx: &mut Vec<Effect>) {
        self.held_orders.push_back((conn, records.to_vec()));
        if self.held_orders.iter().map(|(_, held)| held.len()).sum::<usize>()
            > COMMITS_INFLIGHT_MAX * COMMIT_RECORDS_MAX
        {
            self.refuse(conn, RefuseCode::Protocol, "more orders than may be unacknowledged".into(), fx);
        }
    }

    /// Goes on with orders once the batch before them is on its way into the superblock, or cannot be. Whether there were any.
    pub(super) fn release_orders(&mut self, now: Now, fx: &mut Vec<Effect>) -> bool {
        if self.held_orders.is_empty() || self.finishes_batch() {
            return false;
        }
        for (conn, records) in std::mem::take(&mut self.held_orders) {
            if self.links.order == Some(conn) {
                self.orders(now, conn, &records, fx);
            }
        }
        true
    }

    /// Whether the batch that comes in lacks nothing but that its end is durable in the journal: what begins behind it would
    /// take its place, and it would be thrown away, with the recovery point that it brings.
    fn finishes_batch(&self) -> bool {
        let free = self.committing.is_none() && self.committed.is_none() && !self.journal.full() && self.synced();
        let batch = self.batch.as_ref().filter(|batch| free && batch.end.is_none());
        let completed = batch.and_then(|batch| self.completes(batch, &self.history));
        completed.is_some_and(|(end, lacking)| lacking.is_empty() && end.seq > self.journal.durable())
    }

    /// Two histories under one epoch: nothing of it is taken, and it is said loudly (I8).
    fn diverged(&mut self, now: Now, conn: Conn, why: &Divergence, fx: &mut Vec<Effect>) {
        let text = format!("the primary's history is not the one in the journal here: {why}; nothing of it was taken");
        fx.push(Effect::Log { level: Level::Error, text: text.clone() });
        self.trouble(now, Trouble::Diverged, text.clone(), fx);
        self.refuse(conn, RefuseCode::Protocol, text, fx);
    }

    /// Whether a record can come over a connection of the writer in force.
    pub(super) fn acceptable(&self, record: &OrderRecord) -> Result<(), String> {
        if record.epoch > self.keeper.get().epoch {
            return Err(format!("seq {} is of epoch {}, the connection of an earlier one", record.seq, record.epoch));
        }
        plausible(record, &self.options, &self.intake.spool)
    }

    /// It is asked for again, or left to a batch: also where the journal was led past its order while it was on its way.
    fn strange_payload(&mut self, now: Now, seq: Seq, fx: &mut Vec<Effect>) {
        let Some(more) = self.intake.strange.due(now.mono_ns) else { return };
        let (level, has) = match self.history.get(seq) {
            Some(_) => (Level::Error, "has another order of that seq"),
            None => (Level::Info, "was led past its order, and a batch covers it"),
        };
        let more = Sparing::and_more(more);
        fx.push(Effect::Log { level, text: format!("the payload of seq {seq} is not taken: the journal {has}{more}") });
    }

    fn payload(&mut self, now: Now, arrival: Arrival, fx: &mut Vec<Effect>) {
        let (conn, record) = (arrival.conn, arrival.record);
        let seq = record.seq;
        let sound = self.acceptable(&record).and_then(|()| {
            (record.op.has_payload() && arrival.data.len() as u64 == record.payload_bytes())
                .then_some(())
                .ok_or_else(|| format!("the payload of seq {seq} is not what its record says"))
        });
        if let Err(text) = sound {
            return self.refuse(conn, RefuseCode::Protocol, text, fx);
        }
        // Everything up to the cut is here; below the floor its record is forgotten.
        if seq <= self.history.floor() || self.history.get(seq).is_some_and(|it| it.record == record && it.complete()) {
            self.copied.entry(seq).or_default().push(conn);
            return;
        }
        if self.intake.also(Item::Payload(seq), conn) {
            return;
        }
        if seq <= self.history.tail() && self.history.get(seq).is_none_or(|it| it.record != record) {
            self.strange_payload(now, seq, fx);
            self.need(vec![SeqRange { first: seq, last: seq }], fx);
            return;
        }
        self.intake.wait(arrival);
        self.place_waiting(now, fx);
        if self.intake.over_window(0) {
            self.refuse(conn, RefuseCode::Protocol, "more payload than the window granted".into(), fx);
        }
    }

    /// Asks the writer for payloads again, or for a batch that covers them.
    pub(super) fn need(&mut self, ranges: Vec<SeqRange>, fx: &mut Vec<Effect>) {
        if let Some(conn) = self.links.order {
            fx.push(Effect::Send { conn, message: Message::Need { ranges } });
        }
    }

    /// Stores what waited for its record or for room, lowest seq first.
    pub(super) fn place_waiting(&mut self, now: Now, fx: &mut Vec<Effect>) {
        while let Some(record) = self.intake.first_waiting() {
            let seq = record.seq;
            if seq > self.history.tail() {
                break;
            }
            let known = self.history.get(seq).is_some_and(|entry| entry.record == record);
            if known && !self.may_place(record.payload_bytes(), Some(seq)) {
                break;
            }
            let Some((arrival, others)) = self.intake.take_waiting(seq) else { break };
            let again: Vec<Arrival> = others.into_iter().map(|conn| Arrival { conn, ..arrival.clone() }).collect();
            // What is no longer waited for, or never was, goes through the checks of a new arrival.
            if known && self.history.is_missing(seq) {
                self.intake.store(Item::Payload(seq), arrival, &mut self.desk, fx);
            } else {
                self.payload(now, arrival, fx);
            }
            again.into_iter().for_each(|arrival| self.payload(now, arrival, fx));
        }
        self.place_chunks(fx);
    }

    /// Whether an entry may be placed without taking the room of payloads that are due before (I9). What is
    /// due before one that was placed already has its room: it was counted then.
    pub(super) fn may_place(&self, data_bytes: u64, seq: Option<Seq>) -> bool {
        let bytes = entry_bytes(data_bytes);
        let spool = &self.intake.spool;
        let low = self.due_above();
        let high = self.intake.highest();
        if seq.is_some_and(|seq| seq > low && seq < high) {
            return spool.fits(bytes);
        }
        // With room for everything that is missing nothing has to be added up.
        if spool.admits(bytes, self.history.missing_total(), entry_bytes(u64::from(PAYLOAD_BYTES_MAX))) {
            return true;
        }
        let (owed, longest) = self.history.missing_bytes(low, high.max(seq.unwrap_or_default()), spool.bytes());
        spool.admits(bytes, owed, longest)
    }

    /// Payloads above this seq are waited for. Below the begin of a batch they are superseded: they may
    /// come, but nobody waits for them. Nor when it is complete, and the superblock is to name it before the cut jumps.
    pub(super) fn due_above(&self) -> Seq {
        let begin = self.batch.as_ref().map(|batch| batch.begin);
        let complete = self.committing.as_ref().and_then(|batch| batch.end).map(|end| end.seq);
        self.cut.max(begin.max(complete).unwrap_or_default())
    }

    /// A payload or chunk is durable in the spool.
    pub(super) fn stored(&mut self, stored: Stored) {
        match stored.item {
            Item::Payload(seq) => {
                let forgotten = planted(Bug::PayloadForgotten) && seq.0.is_multiple_of(7);
                if self.history.get(seq).is_some() && !forgotten {
                    self.history.hold(seq, stored.pos);
                } else {
                    self.intake.spool.free(stored.pos);
                }
                self.copied.entry(seq).or_default().extend(stored.conns);
            }
            Item::Chunk { batch, index } => {
                self.chunk_stored(batch, index, Some(stored.pos), stored.record, &stored.conns)
            }
        }
    }

    /// Tells the writer what has become durable.
    pub(super) fn acknowledge(&mut self, fx: &mut Vec<Effect>) {
        let early = planted(Bug::OrdersDurableEarly);
        let durable = if early { self.history.tail() } else { self.journal.durable() };
        if let Some(conn) = self.links.order
            && durable > self.told.journal
        {
            self.told.journal = durable;
            fx.push(Effect::Send { conn, message: Message::OrdersDurable { journal_seq: durable } });
        }
        let mut by_conn: std::collections::BTreeMap<Conn, Vec<SeqRange>> = std::collections::BTreeMap::new();
        while let Some(first) = self.copied.first_entry()
            && *first.key() <= durable
        {
            let (seq, conns) = first.remove_entry();
            for conn in conns {
                SeqRange::add_to(by_conn.entry(conn).or_default(), seq);
            }
        }
        for (conn, ranges) in by_conn {
            if self.links.part(conn) != Some(Part::Stream) {
                continue;
            }
            for ranges in ranges.chunks(LIST_ITEMS_MAX) {
                fx.push(Effect::Send { conn, message: Message::Copied { ranges: ranges.to_vec() } });
            }
        }
        self.acknowledge_chunks(durable, fx);
    }

    /// When the next progress message is due, if there is something to say.
    pub(super) fn progress_due_ns(&self) -> Option<u64> {
        self.links.order?;
        let changed = self.told.cut != self.told_cut()
            || self.told.applied != self.point(self.replay.applied())
            || self.told.synced != self.synced()
            || self.room_grew();
        let every = if self.is_short(self.told.room.upto) { PROGRESS_SHORT_NS } else { PROGRESS_EVERY_NS };
        changed.then_some(self.told.at_ns + every)
    }

    /// Whether the journal has room that the writer does not know of and may come to wait for.
    fn room_grew(&self) -> bool {
        let (known, room) = (self.told.room.upto, self.room().upto);
        known < room && (self.is_short(known) || known.0 + self.journal.records() / 8 <= room.0)
    }

    /// Tells the writer where this site stands, at changes, at most ten times a second, or sooner while the writer
    /// may wait for room in the journal.
    pub(super) fn progress(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let (Some(conn), Some(due)) = (self.links.order, self.progress_due_ns()) else { return };
        if now.mono_ns < due {
            return;
        }
        let (cut, applied, synced) = (self.told_cut(), self.point(self.replay.applied()), self.synced());
        let room = self.room();
        self.told = Told { cut, applied, synced, room, at_ns: now.mono_ns, ..self.told };
        let spool_bytes = self.intake.spool.live_bytes();
        let window_bytes = self.intake.window_bytes();
        let message = Message::Progress { cut, applied, synced, spool_bytes, window_bytes, room };
        fx.push(Effect::Send { conn, message });
    }

    /// The operator wants the process to end.
    pub(super) fn stop(&mut self, fx: &mut Vec<Effect>) {
        if !self.stopping {
            self.stopping = true;
            self.close_all("this site is stopping", fx);
            self.intake.drop_waiting(None);
        }
    }

    fn chunk(&mut self, index: u64, arrival: Arrival, fx: &mut Vec<Effect>) {
        let conn = arrival.conn;
        let record = arrival.record;
        let fits = matches!(record.op, Op::Write | Op::WriteZeroes)
            && arrival.data.len() as u64 == record.payload_bytes()
            && record.length > 0;
        if let Err(text) =
            self.acceptable(&record).and_then(|()| fits.then_some(()).ok_or_else(|| "a chunk is not whole".to_string()))
        {
            return self.refuse(conn, RefuseCode::Protocol, text, fx);
        }
        self.intake.wait_chunk(index, arrival);
        self.place_chunks(fx);
        if self.intake.over_window(0) {
            self.refuse(conn, RefuseCode::Protocol, "more chunks than the window granted".into(), fx);
        }
    }
}

/// Whether a record can belong to this group at all (I8): its volume exists. That its range is inside, the order up to it
/// decides.
pub(super) fn plausible(record: &OrderRecord, options: &Options, spool: &Spool) -> Result<(), String> {
    let seq = record.seq;
    if !record.op.concerns_volume() {
        return Ok(());
    }
    if options.volumes.get(usize::from(record.volume.0)).is_none() {
        return Err(format!("seq {seq} names volume {}, which this group does not have", record.volume));
    }
    if record.end().is_some_and(|end| end.is_none_or(|end| end > VOLUME_BYTES_MAX)) {
        return Err(format!("seq {seq} ends outside of any volume"));
    }
    if record.payload_bytes() > u64::from(PAYLOAD_BYTES_MAX) {
        return Err(format!("seq {seq} has a payload of {} bytes", record.length));
    }
    if entry_bytes(record.payload_bytes()) > spool.size() {
        return Err(format!("seq {seq} has {} bytes, too many for the spool here", record.length));
    }
    Ok(())
}

/// What a message is called.
fn word(message: &Message) -> &'static str {
    match message {
        Message::Hello(_) => "hello",
        Message::Welcome(_) => "welcome",
        Message::Refuse(_) => "refuse",
        Message::Orders(_) => "orders",
        Message::OrdersDurable { .. } => "orders-durable",
        Message::Payload { .. } => "payload",
        Message::Copied { .. } => "copied",
        Message::Chunk { .. } => "chunk",
        Message::ChunksDurable { .. } => "chunks-durable",
        Message::Need { .. } => "need",
        Message::Progress { .. } => "progress",
        Message::Ping { .. } => "ping",
        Message::Pong { .. } => "pong",
        Message::RoomAsked { .. } => "room-asked",
        Message::StoreRoom(_) => "store-room",
        Message::Compare(_) => "compare",
        Message::Compared { .. } => "compared",
        Message::Patch(_) => "patch",
        Message::Wanted { .. } => "wanted",
    }
}
