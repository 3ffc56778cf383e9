//! The batch: ranges as of a later seq, all or nothing; how both sides become equal again after payloads
//! were lost to a full FIFO or a restart, or never existed (the first sync).
//!
//! ```text
//!   Stream ──payload lost──► Coalescing ──DR in reach, FIFO drained──► Batch(b) ──all pieces durable──► Stream
//!     ▲                         ▲   payloads dropped, ranges kept        │ payloads after b are queued again
//!     └─────────────────────────┴────────── FIFO full again ─────────────┘
//! ```
//!
//! A batch that follows one given up to a full FIFO is closed first: writes wait for room meanwhile, as long as it gets
//! on, so that a load faster than the link does not keep both sides apart for ever.
//!
//! DR's journal keeps every order from the begin on until the batch is complete. A first sync whose writes take half of
//! its room is carried on by another batch, of what is to go and of what was written meanwhile: DR forgets the orders
//! before that one, as it has no recovery point that they lead away from. Any other batch has writes wait so that the
//! journal lasts until it is complete: three quarters of its room are theirs from the first, the rest as pieces arrive.
//!
//! Pieces are read while writes go on. A piece may hold bytes of writes after `b`; those follow in the
//! stream and are applied over it. Writes up to `b` must be on the local disk before the first read.
//!
//! What holds nothing is not read piece by piece: in long ranges holes are looked for first, and a hole, or zeroes that
//! were read one after the other, are one piece without data, which takes of DR's spool what its record takes.

mod behind;
mod carry;
mod pace;
mod patch;
pub(super) mod pieces;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

pub(super) use self::behind::Headway;
use self::pace::Pace;
use self::patch::{Form, Sparing, spared_by};
use self::pieces::{Next, charge_of, room_of};
use super::link::Phase;
use super::machine::{Effect, File, Machine, Pending, Stopping};
use super::window::Payload;
use crate::core::allocation::Stretch;
use crate::core::ids::{Chain, Conn, Extent, Seq, Volume};
use crate::core::machine::{DiskKind, DiskOp, Level, Now};
use crate::core::modes::Ack;
use crate::core::op::Op;
use crate::core::planted::{Bug, planted};
use crate::core::ranges::{Cover, VolumeRanges};
use crate::format::is_zero;
use crate::format::record::OrderRecord;
use crate::format::spool::entry_bytes;
use crate::format::wire::Welcome;
use crate::limits::CHUNK_BYTES_MAX;

/// How payloads cross at present.
#[derive(Clone, Debug)]
pub enum Mode {
    /// Every payload goes through the FIFO.
    Stream,
    /// Payloads are dropped, their ranges remembered.
    Coalescing,
    /// A batch is under way; payloads after its begin go through the FIFO.
    Batch(Box<Batch>),
}

impl Mode {
    #[must_use]
    pub fn drops_payloads(&self) -> bool {
        match self {
            Mode::Stream => false,
            Mode::Coalescing => true,
            Mode::Batch(batch) => batch.ahead,
        }
    }

    #[must_use]
    pub fn batch(&self) -> Option<&Batch> {
        if let Mode::Batch(batch) = self { Some(batch.as_ref()) } else { None }
    }

    fn batch_mut(&mut self) -> Option<&mut Batch> {
        if let Mode::Batch(batch) = self { Some(batch) } else { None }
    }

    fn into_batch(self) -> Option<Batch> {
        if let Mode::Batch(batch) = self { Some(*batch) } else { None }
    }
}

/// One piece.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Its index in the batch, once it has been sent.
    pub index: Option<u64>,
    pub extent: Extent,
    pub form: Form,
}

/// A batch under way.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Seq of its begin record: its id.
    pub begin: Seq,
    /// Where it goes ahead: the first record that DR gets, which is this begin, or the first of those before it that are no writes.
    led_from: Seq,
    /// Everything it covers, for starting again.
    pub all: Cover,
    todo: VolumeRanges,
    holes: VolumeRanges,
    /// Read as zeroes, and sent as one piece with what follows.
    zeroes: VolumeRanges,
    /// What of `todo` is looked at for holes, and how far that has come.
    looking: Option<Extent>,
    looked: Option<(Volume, u64)>,
    /// The longest range that is one piece when it holds nothing, bytes.
    hole_bytes_max: u64,
    /// Pieces to be sent again with their index: their stream was lost.
    again: VecDeque<Piece>,
    /// By the number of the read.
    reading: BTreeMap<u64, Piece>,
    reads: u64,
    unacked: BTreeMap<u64, (Piece, Conn)>,
    next_index: u64,
    pub bytes: u64,
    pub bytes_acked: u64,
    /// Seq of its end record, once written.
    pub end: Option<Seq>,
    pace: Pace,
    /// Bytes that were to go when it began.
    total: u64,
    /// What was written since it began; of a first sync only.
    since: Option<Cover>,
    /// It leaves out what pieces of this earlier one have brought, and those before that.
    carried: Seq,
    /// It brings everything that DR could come to lack of writes before it.
    pub(super) whole: bool,
    /// Of a first sync that is far from done: what is written meanwhile is left to the batch that carries it on.
    pub(super) ahead: bool,
    /// What of it was sent takes so much of DR's spool, unless it is a first sync.
    staged: u64,
    /// What stood in DR's spool when it began.
    held_back: u64,
    /// Room that the payloads of writes since it began take in DR's spool.
    spooled: u64,
    /// The most orders for which DR's journal had room since it began.
    room: u64,
    sparing: Sparing,
}

/// The longest hole that is one piece of a first sync, bytes.
const FIRST_HOLE_BYTES_MAX: u64 = 1 << 30;
/// Pieces being read from the local disk at once.
const READS_MAX: usize = 4;
/// Bytes of pieces on their way and not acknowledged.
const PIECES_BYTES_MAX: u64 = 16 << 20;
/// How long to wait before the next batch when one was given up: doubles each time, until one is complete.
const BATCH_PAUSE_NS_MIN: u64 = 500_000_000;
const BATCH_PAUSE_NS_MAX: u64 = 15_000_000_000;

impl Batch {
    /// Bytes on streams and not acknowledged, holes left out.
    fn unacked_bytes(&self) -> u64 {
        self.unacked.values().filter(|(piece, _)| piece.form != Form::Hole).map(|(piece, _)| piece.extent.length).sum()
    }

    fn new(begin: Seq, ranges: Cover, holes: VolumeRanges, now: Now) -> Batch {
        let mut all = ranges.clone();
        all.union(&holes);
        let total = ranges.bytes() + holes.bytes();
        Batch {
            begin,
            led_from: begin,
            all,
            todo: ranges.into_ranges(),
            holes,
            zeroes: VolumeRanges::new(),
            looking: None,
            looked: None,
            hole_bytes_max: u64::MAX,
            again: VecDeque::new(),
            reading: BTreeMap::new(),
            reads: 0,
            unacked: BTreeMap::new(),
            next_index: 0,
            bytes: 0,
            bytes_acked: 0,
            end: None,
            pace: Pace::from(now.mono_ns),
            total,
            since: None,
            carried: Seq(0),
            whole: false,
            ahead: false,
            staged: 0,
            held_back: 0,
            spooled: 0,
            room: 0,
            sparing: Sparing::new(true),
        }
    }

    /// How long the rest takes at the rate of what crosses, while some does.
    #[must_use]
    pub fn seconds_left(&self, now: Now) -> Option<f64> {
        self.pace.seconds_for(now.mono_ns, self.bytes_left())
    }

    /// Bytes that DR has not acknowledged yet.
    #[must_use]
    pub fn bytes_left(&self) -> u64 {
        self.todo.bytes() + self.holes.bytes() + self.zeroes.bytes() + (self.bytes - self.bytes_acked)
    }

    /// Bytes that it has got through: acknowledged by DR, or found to be zeroes.
    fn brought(&self) -> u64 {
        self.bytes_acked + self.zeroes.bytes()
    }

    #[cfg(test)]
    pub(super) fn under_way(begin: Seq) -> Batch {
        let mut ranges = Cover::new();
        ranges.insert(Extent { volume: Volume(0), offset: 0, length: 4096 });
        Batch::new(begin, ranges, VolumeRanges::new(), Now::default())
    }

    fn complete(&self) -> bool {
        self.todo.is_empty()
            && self.holes.is_empty()
            && self.zeroes.is_empty()
            && self.again.is_empty()
            && self.reading.is_empty()
            && (self.unacked.is_empty() || planted(Bug::BatchIncomplete))
    }
}

/// `part` of `whole` as the same share of `sum`.
fn share(sum: u64, part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(sum) * u128::from(part) / u128::from(whole)).unwrap_or(sum)
}

impl Machine {
    /// From now on payloads are dropped and their ranges remembered, until a batch begins.
    pub(super) fn coalesce(&mut self, why: &str, fx: &mut Vec<Effect>) {
        if self.lost_any() || self.options.standalone {
            return;
        }
        let text = format!("{why}: payloads are dropped from here on and their ranges remembered; a batch follows");
        fx.push(Effect::Log { level: Level::Warn, text });
        let under_way = std::mem::replace(&mut self.mode, Mode::Coalescing);
        let given_up: Vec<Batch> = under_way.into_batch().into_iter().chain(self.closing.take()).collect();
        for batch in &given_up {
            if self.outgrows_spool(batch) {
                self.dr.unfit_spool_bytes = self.dr.spool_bytes;
            }
            self.lost.union(&batch.all);
            batch.since.iter().for_each(|since| self.lost.union(since));
            self.dr.everything_listed |= batch.begin == self.dr.everything_in;
            if !self.dr.synced {
                // Pieces of a first sync go straight into DR's volume, so payloads that followed the one given
                // up cannot be applied under those of the next: their ranges go with it.
                self.lost.union(&self.intent.ranges());
            }
        }
        if !given_up.is_empty() {
            // Pieces that were given to the streams would go out before those of the next batch, and be kept in
            // memory until then (I9).
            self.cut_streams(fx);
            // What is queued comes after the hole that the batch was to fill: DR could only keep it.
            self.drop_queued();
            self.batches_given_up += 1;
            self.gave_up_why = why.into();
            self.batch_pause_ns = (2 * self.batch_pause_ns).clamp(BATCH_PAUSE_NS_MIN, BATCH_PAUSE_NS_MAX);
            self.batch_from_ns = self.now.mono_ns + self.batch_pause_ns;
        }
        self.intent.abandon_cycle();
        self.save_watermark(fx);
    }

    /// Whether something has yet to cross by a batch.
    pub(super) fn catches_up(&self) -> bool {
        self.lost_any() || self.mode.batch().is_some() || self.closing.is_some()
    }

    /// Whether writes wait for room rather than have the batch under way given up: one was before, and this one gets on.
    pub(super) fn closes_batch(&self) -> bool {
        let under_way = self.mode.batch().is_some() || self.closing.is_some();
        under_way && self.batches_given_up > 0 && self.dr.ready() && !self.dr_stalls()
    }

    /// Remembers a range whose payload will not cross by itself.
    pub(super) fn lose(&mut self, extent: Extent) {
        if self.options.standalone {
            return;
        }
        self.dropped_writes += 1;
        if planted(Bug::BatchLeavesOutRange) && self.dropped_writes.is_multiple_of(5) {
            return;
        }
        self.lost.insert(extent);
    }

    /// DR has no recovery point, or lost what it had: everything that is allocated has to cross.
    pub(super) fn allocated(&mut self, ranges: Cover, fx: &mut Vec<Effect>) {
        self.dr.listing = false;
        if !self.dr.wants_everything {
            return;
        }
        self.coalesce("DR has no copy yet", fx);
        self.drop_queued();
        self.lost.union(&ranges);
        self.lost.union(&self.intent.ranges());
        let mut holes = VolumeRanges::new();
        if !self.dr.blank {
            for (index, (_, size)) in self.options.volumes.iter().enumerate() {
                let volume = Volume(u16::try_from(index).expect("at most VOLUMES_MAX volumes"));
                holes.insert(Extent { volume, offset: 0, length: *size });
            }
            for extent in self.lost.iter() {
                holes.remove(extent);
            }
        }
        self.dr.holes = holes;
        self.dr.wants_everything = false;
        self.dr.everything_listed = true;
    }

    /// Payloads in memory and on disk that a batch will cover anyway.
    pub(super) fn drop_queued(&mut self) {
        self.drop_in_memory();
        self.dr.forget_sent();
        if !self.fifo.is_empty() {
            self.drop_on_disk();
        }
    }

    /// Leaves what stands on disk to a batch. It is older than anything in memory; the map has every extent of it.
    pub(super) fn drop_on_disk(&mut self) {
        if self.lost_any() {
            self.lost.union(&self.intent.ranges());
        }
        self.fifo.clear();
        let spilled = self.window.iter_mut().filter(|entry| entry.payload == Payload::Spilled);
        spilled.for_each(|entry| entry.payload = Payload::Dropped);
    }

    /// While payloads are dropped, those in memory that wait before them would keep a record of every later write:
    /// when that has become much they are left to the batch, too (I9).
    pub(super) fn shorten_window(&mut self) {
        if !self.mode.drops_payloads() || self.window.overhead() == 0 {
            return;
        }
        let seqs = self.drop_in_memory();
        self.dr.forget_sent_seqs(&seqs);
    }

    /// Leaves every payload in memory to a batch; their seqs. What the auxiliary's ring has yet to get stays for it.
    fn drop_in_memory(&mut self) -> Vec<Seq> {
        let ring = self.ring_from();
        let (mut seqs, mut extents) = (Vec::new(), Vec::new());
        for entry in self.window.iter_mut() {
            if matches!(entry.payload, Payload::Queued | Payload::Sent) {
                self.held -= entry.held();
                entry.payload = Payload::Dropped;
                if entry.local.ended() && ring.is_none_or(|from| entry.record.seq < from) {
                    entry.data = Bytes::new();
                }
                seqs.push(entry.record.seq);
                extents.extend(entry.record.extent());
            }
        }
        // Of a first sync under way, what was written meanwhile is remembered in any case.
        if self.lost_any() {
            extents.into_iter().for_each(|extent| self.lose(extent));
        }
        seqs
    }

    /// Begins a batch when it can, sends its pieces, ends it.
    pub(super) fn pump_batch(&mut self, fx: &mut Vec<Effect>) {
        // The log is being synced for a clean stop: it takes no record any more.
        if matches!(self.stopping, Stopping::Syncing | Stopping::Stopped) {
            return;
        }
        if self.lost_any()
            && let Phase::Up { conn } = self.dr.phase
            && !self.chain_checked(conn, fx)
        {
            // A batch that goes ahead of orders would hide that DR's history is another (I8).
            return;
        }
        self.maybe_begin();
        match self.carry_wanted() {
            Some(ahead) => self.carry_on(ahead, fx),
            None => self.issue_pieces(fx),
        }
        let done =
            self.mode.batch().is_some_and(|batch| batch.complete() && !batch.ahead) && self.copied_before_batch();
        if done && let Mode::Batch(mut batch) = std::mem::replace(&mut self.mode, Mode::Stream) {
            let (high, low) = OrderRecord::pieces_as(batch.next_index);
            let end = self.append_of(high, Op::BatchEnd, batch.begin.0, batch.bytes, low);
            batch.end = Some(end);
            let (bytes, spared) = (batch.bytes, batch.spared_bytes());
            let spared = if spared == 0 { String::new() } else { format!(", {spared} of which DR had") };
            let text = format!("batch {} sent: {bytes} bytes{spared}; consistent again at seq {end}", batch.begin);
            fx.push(Effect::Log { level: Level::Info, text });
            self.closing = Some(*batch);
        }
    }

    /// Whether every payload before the batch has either crossed or been dropped. What stands in the disk FIFO is from after
    /// its begin, or is brought by it.
    fn copied_before_batch(&self) -> bool {
        let begin = self.mode.batch().map_or(Seq(0), |batch| batch.begin);
        !self
            .window
            .from(self.window.first())
            .take_while(|entry| entry.record.seq < begin)
            .any(|entry| matches!(entry.payload, Payload::Queued | Payload::Sent | Payload::Spilling))
    }

    /// The next batch goes ahead of the orders that DR lacks: what would have crossed by its order alone, zeroes and trims, is
    /// among what it has to bring.
    pub(super) fn jump_over_orders(&mut self) {
        self.dr.must_jump = true;
        self.lost.union(&self.intent.ranges());
    }

    pub(super) fn maybe_begin(&mut self) {
        // A load that fills the FIFO during each batch would make this one of beginnings.
        if self.now.mono_ns < self.batch_from_ns {
            return;
        }
        if !self.lost_any() || self.options.standalone || !self.dr.ready() || self.dr.wants_everything {
            return;
        }
        // Where DR has a recovery point, another batch makes no room in its journal at once.
        if self.dr.headway.left_behind && self.dr.synced && !self.dr_rests() {
            return;
        }
        if !self.dr.must_jump && self.orders_unfit() {
            self.jump_over_orders();
        }
        if self.dr.must_jump {
            self.drop_queued();
        }
        if self.held.bytes > 0 || !self.fifo.is_empty() {
            return;
        }
        if self.unfit().is_some() {
            return;
        }
        let begin = self.append_control(Op::BatchBegin, 0, 0, 0);
        let led_from = self.own_from;
        self.say_sizes();
        let mut ranges = std::mem::take(&mut self.lost);
        // What a resize is about to add is marked before its order: that brings it, and nothing of it before.
        for ((_, size), at) in self.volumes_ordered().into_iter().zip(0..) {
            ranges.end_at(Volume(at), size);
        }
        let mut holes = std::mem::take(&mut self.dr.holes);
        // What was written since the holes were listed is none any more.
        for extent in ranges.iter() {
            holes.remove(extent);
        }
        if std::mem::take(&mut self.dr.everything_listed) {
            self.dr.everything_in = begin;
        }
        let jumps = std::mem::take(&mut self.dr.must_jump);
        self.batch_begins(jumps);
        if jumps {
            // The journal never gets what this jump leaves out: it protects none of that before the batch has (I3).
            // Orders from before the start were acknowledged as they had to be, but for writes that a flush has yet to cover.
            let owed = self.options.ack == Ack::Flush && !planted(Bug::LeapForgotten);
            let before = if owed { Seq(0) } else { self.first };
            if begin.prev() > self.dr.journal.max(before) {
                self.dr.held = if self.dr.skipped <= self.dr.cut { self.dr.journal } else { self.dr.held };
                self.dr.skipped = begin.prev();
            }
            // What is no write right before it is told: a full table may have no slots for that, and a promotion would not know
            // that what it misses is none.
            self.dr.leap(if self.dr.next <= led_from { led_from } else { begin });
        }
        let mut batch = Batch::new(begin, ranges, holes, self.now);
        batch.led_from = if jumps { self.dr.next } else { begin };
        batch.held_back = self.dr.spool_live_bytes;
        batch.whole = self.intent.ranges().iter().all(|extent| batch.all.contains(extent));
        batch.sparing = Sparing::new(self.options.asks);
        if !self.dr.synced {
            batch.since = Some(Cover::new());
            batch.ahead = self.goes_ahead(&batch);
            // They are made in place, however long that takes there: it is seen that it gets on.
            batch.hole_bytes_max = FIRST_HOLE_BYTES_MAX;
        }
        self.mode = Mode::Batch(Box::new(batch));
        if jumps && self.sends_upto() < begin {
            self.dr.leap(begin);
        }
    }

    /// Whether DR lacks orders for which its journal has no room.
    pub(super) fn orders_unfit(&self) -> bool {
        let unfit = self.dr.headway.left_behind || self.tail.0 + 2 > self.sends_upto().0;
        self.dr.ready() && self.dr.next <= self.tail && unfit
    }

    /// Whether a write has to wait for room in DR's journal, where one waits for it at all; if so, whether it is full.
    pub(super) fn journal_wait(&self) -> Option<bool> {
        // Orders that have no room stand before the end of a batch under way.
        if !self.dr.caught_up() && (!self.dr.ready() || self.mode.batch().is_none()) {
            return None;
        }
        let room = self.journal_room();
        let early = self.mode.batch().is_some_and(|batch| {
            let (kept, total) = (batch.room / 4, batch.bytes_acked + batch.bytes_left());
            let freed = if total == 0 { kept } else { share(kept, batch.bytes_acked, total) };
            batch.room - room.min(batch.room) > batch.room - kept + freed
        });
        (room == 0 || early).then_some(room == 0)
    }

    fn issue_pieces(&mut self, fx: &mut Vec<Effect>) {
        // Pieces on their way are memory beside the configured FIFO (I9). What is read here joins them later.
        let allowed = PIECES_BYTES_MAX.saturating_sub(self.mode.batch().map_or(0, Batch::unacked_bytes));
        let look_bytes = self.options.look_bytes;
        loop {
            // What nobody waits for any more may still fill the streams: a piece that is read then cannot be sent.
            let (window_left, under_way) = (self.dr.window_left(), self.dr.unacked() + self.dr.backlog());
            let ready = self.dr.any_stream();
            let Mode::Batch(batch) = &mut self.mode else { return };
            let waiting: u64 = batch.reading.values().map(|piece| room_of(piece.extent.length)).sum();
            let window_left = window_left.min(allowed);
            if !ready
                || self.local_done < batch.begin && !planted(Bug::BatchReadsEarly)
                || self.dr.journal < batch.begin
                || batch.reading.len() >= READS_MAX
                || (window_left < waiting + room_of(CHUNK_BYTES_MAX as u64) && under_way + waiting > 0)
            {
                return;
            }
            match batch.next(look_bytes) {
                Next::Wait => return,
                Next::Send(piece) => self.send_piece(piece, Bytes::new(), fx),
                Next::Look(extent) => fx.push(Effect::LookForHoles { batch: batch.begin, extent }),
                Next::Read(piece) => {
                    let (read, batch_begin, extent) = (batch.reads, batch.begin, piece.extent);
                    batch.reads += 1;
                    batch.reading.insert(read, piece);
                    let ticket = self.ticket(Pending::Chunk { batch: batch_begin, read });
                    let kind = DiskKind::Read { offset: extent.offset, length: extent.length };
                    fx.push(Effect::Disk(DiskOp { ticket, file: File::Volume(extent.volume), kind }));
                }
            }
        }
    }

    /// The answer to [`Effect::LookForHoles`].
    pub(super) fn holes_found(&mut self, of: Seq, extent: Extent, stretches: &[Stretch]) {
        if let Some(batch) = self.mode.batch_mut().filter(|batch| batch.begin == of) {
            batch.looked_at(extent, stretches);
        }
    }

    pub(super) fn chunk_read(&mut self, of: Seq, read: u64, bytes: Bytes, fx: &mut Vec<Effect>) {
        // A read of an earlier batch: its piece is in the ranges of the present one, and may lack what was written since.
        let Some(batch) = self.mode.batch_mut().filter(|batch| batch.begin == of) else { return };
        let Some(mut piece) = batch.reading.remove(&read) else { return };
        if !is_zero(&bytes) {
            return self.send_piece(piece, bytes, fx);
        }
        piece.form = Form::Hole;
        if batch.holds_back(&piece) {
            return self.batch_moved();
        }
        self.send_piece(piece, Bytes::new(), fx);
    }

    /// Sends a piece; one that is a hole without data.
    fn send_piece(&mut self, mut piece: Piece, data: Bytes, fx: &mut Vec<Effect>) {
        let zero = piece.form == Form::Hole;
        let Mode::Batch(batch) = &mut self.mode else { return };
        // What is spared counts as well: DR has it in memory, too.
        let charge = charge_of(data.len() as u64);
        let Some(conn) = self.dr.stream_for(charge) else {
            batch.again.push_back(piece);
            return;
        };
        batch.staged += if piece.index.is_none() { entry_bytes(data.len() as u64) } else { 0 };
        let index = piece.index.unwrap_or(batch.next_index);
        batch.next_index = batch.next_index.max(index + 1);
        piece.index = Some(index);
        let record = OrderRecord {
            seq: batch.begin,
            epoch: self.superblock.epoch,
            volume: piece.extent.volume,
            op: if zero { Op::WriteZeroes } else { Op::Write },
            flags: 0,
            offset: piece.extent.offset,
            length: piece.extent.length,
            time_ns: self.now.wall_ns,
            chain: Chain(0),
            payload_crc: if zero { 0 } else { crc32fast::hash(&data) },
        };
        batch.unacked.insert(index, (piece, conn));
        let message = piece.message(index, record, data);
        self.dr.note_piece(conn, index, charge, spared_by(&message));
        fx.push(Effect::DrSend { conn, message });
    }

    pub(super) fn pieces_durable(&mut self, conn: Conn, begin: Seq, indexes: &[u64]) {
        // Pieces of a batch that was given up do not count against the window any more.
        let Some(batch) = self.mode.batch_mut().filter(|batch| batch.begin == begin) else { return };
        for index in indexes {
            self.dr.piece_done(conn, *index);
            if let Some((piece, _)) = batch.unacked.remove(index) {
                batch.bytes_acked += piece.extent.length;
                batch.sparing.acked(&piece);
                batch.pace.crossed(self.now.mono_ns, batch.bytes_acked);
            }
        }
        self.batch_moved();
    }

    /// A stream is gone: its pieces are sent again.
    pub(super) fn pieces_lost(&mut self, conn: Conn) {
        if let Mode::Batch(batch) = &mut self.mode {
            let lost: Vec<u64> =
                batch.unacked.iter().filter(|(_, (_, on))| *on == conn).map(|(index, _)| *index).collect();
            for index in lost {
                let (piece, _) = batch.unacked.remove(&index).expect("just listed");
                batch.again.push_back(piece);
            }
        }
    }

    /// After a reconnect: whether DR still keeps what it acknowledged of the batch. Where it has lost orders, one that began
    /// before that may not bring what they changed, and the next one brings all that they may have.
    pub(super) fn check_batch(&mut self, welcome: &Welcome, fx: &mut Vec<Effect>) {
        let (kept, cut, gaps) = (welcome.batch, welcome.cut, welcome.gaps && welcome.synced);
        let lost = match (&self.mode, &self.closing) {
            (Mode::Batch(batch), _) => {
                // What the one before it has brought stays where DR has yet to hear of this one.
                let unheard = batch.carried > Seq(0) && kept == batch.carried && batch.bytes_acked == 0;
                let brought = gaps || batch.bytes_acked > 0 || batch.carried > Seq(0);
                (brought && kept != batch.begin && !unheard).then_some(batch.begin)
            }
            (_, Some(batch)) => (batch.end.is_some_and(|end| cut < end) && kept != batch.begin).then_some(batch.begin),
            _ => None,
        };
        if let Some(begin) = lost {
            self.coalesce(&format!("DR no longer keeps batch {begin}"), fx);
        }
        if gaps && self.lost_any() {
            self.lost.union(&self.intent.ranges());
        }
    }

    /// DR's cut has passed a batch: its ranges need not be remembered any more.
    pub(super) fn close_batch(&mut self, fx: &mut Vec<Effect>) {
        let cut = self.dr.cut;
        if self.closing.as_ref().is_some_and(|batch| batch.end.is_some_and(|end| cut >= end)) {
            let batch = self.closing.take().expect("just seen");
            self.batch_pause_ns = 0;
            (self.batches_given_up, self.dr.unfit_spool_bytes) = (0, 0);
            self.settled_start = true;
            self.batch_moved();
            let text = format!("DR is consistent at seq {cut}: batch {} has been taken over", batch.begin);
            fx.push(Effect::Log { level: Level::Info, text });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::modes::{Protect, Require};
    use crate::format::wire::JournalRoom;
    use crate::primary::link::tests::fresh;

    fn extent(offset: u64, length: u64) -> Extent {
        Extent { volume: Volume(0), offset, length }
    }

    fn ranges<T: Default>(mut insert: impl FnMut(&mut T, Extent), extents: &[(u64, u64)]) -> T {
        let mut out = T::default();
        extents.iter().for_each(|&(offset, length)| insert(&mut out, extent(offset, length)));
        out
    }

    fn listed<'a>(ranges: impl IntoIterator<Item = Extent> + 'a) -> Vec<(u64, u64)> {
        ranges.into_iter().map(|it| (it.offset, it.length)).collect()
    }

    #[test]
    fn a_first_sync_is_carried_on_with_what_is_to_go_and_what_was_written_and_nothing_else() {
        let todo = ranges(Cover::insert, &[(0, 8192), (65536, 4096)]);
        let holes = ranges(VolumeRanges::insert, &[(16384, 16384), (131072, 4096)]);
        let mut batch = Batch::new(Seq(2), todo, holes, Now::default());
        let sent = [(); 3].map(|()| match batch.next(u64::MAX) {
            Next::Send(piece) | Next::Read(piece) => piece,
            Next::Look(_) | Next::Wait => panic!("two holes and a range"),
        });
        assert_eq!(sent.map(|piece| piece.form == Form::Hole), [true, true, false]);
        // The first hole has arrived; the second and the range come back from a stream that was lost.
        batch.bytes_acked = sent[0].extent.length;
        batch.again.extend([sent[1], sent[2]]);
        batch.since = Some(ranges(Cover::insert, &[(20480, 512), (131072, 512), (1 << 19, 512)]));
        let next = batch.carry_on(Seq(9), Now::default());
        assert_eq!(listed(next.todo.iter()), [(0, 8192), (20480, 512), (65536, 4096), (131072, 512), (1 << 19, 512)]);
        assert_eq!(listed(next.holes.iter()), [(131584, 3584)]);
        assert_eq!((next.begin, next.carried, next.total), (Seq(9), Seq(2), next.bytes_left()));
        let all = [(0, 8192), (16384, 16384), (65536, 4096), (131072, 4096), (1 << 19, 512)];
        assert_eq!(listed(next.all.iter()), all, "to begin with everything again");
    }

    #[test]
    fn orders_leave_the_journal_room_for_a_whole_status_table_and_writes_some_for_batches() {
        let (mut machine, _) = fresh(Protect::Near, Require::Any, false);
        machine.dr.room = JournalRoom { upto: Seq(5000), records: 4096 };
        let slots = machine.table_slots();
        assert_eq!((slots, machine.sends_upto()), (1024, Seq(5000 - 1024 - 64)));
        machine.tail = Seq(5000 - 1024 - 128);
        assert_eq!(machine.journal_room(), 0, "what begins and ends batches has room beyond");
        machine.dr.next = Seq(3000);
        machine.dr.headway.left_behind = true;
        assert_eq!(machine.sends_upto(), Seq(2999));
    }

    /// Seeds 1080985, 1083432 and 1076327: zeroes and trims have no payload that could be dropped and remembered.
    #[test]
    fn a_batch_that_goes_ahead_of_orders_brings_what_they_alone_would_have_brought() {
        for room in [Seq(4000), Seq(0)] {
            let (mut machine, _) = fresh(Protect::Near, Require::Any, false);
            machine.dr.phase = Phase::Up { conn: Conn(1) };
            machine.dr.room = JournalRoom { upto: room, records: 4096 };
            (machine.dr.synced, machine.dr.next) = (true, machine.tail.next());
            (machine.reserved, machine.mode) = (Seq(4000), Mode::Coalescing);
            let record = machine.record(Op::WriteZeroes, 0, Volume(0), 1 << 16, 512, 0);
            machine.intent.want(extent(1 << 16, 512));
            machine.append(record, Bytes::new(), None);
            machine.lost = Cover::new();
            machine.maybe_begin();
            let batch = machine.mode.batch().expect("it begins");
            let jumps = room == Seq(0);
            assert_eq!(batch.todo.iter().any(|it| it.offset == 1 << 16), jumps, "without room for the order: {jumps}");
            assert_eq!(machine.dr.next > record.seq, jumps);
        }
    }

    /// Seeds 610334 and 809047: orders that had waited for DR filled its journal as far as they may, and there was no room for
    /// the begin of the batch behind which it would have let go of them.
    #[test]
    fn what_begins_and_ends_batches_has_room_behind_orders_that_filled_the_journal() {
        let (mut machine, _) = fresh(Protect::Near, Require::Any, false);
        machine.dr.room = JournalRoom { upto: Seq(5000), records: 4096 };
        let orders = Seq(5000 - 1024 - 64);
        for (synced, begin, next, upto) in [
            (false, 3977, 3977, Seq(3977)),
            (false, 5000, 5000, Seq(5000)),
            (false, 5001, 5001, Seq(5000)),
            (false, 100, 100, orders),
            // It comes behind what has no room, and would not be reached; or it has been sent.
            (false, 3999, 3977, orders),
            (false, 3977, 3978, orders),
            (true, 3970, 3970, Seq(3970)),
            (true, 3977, 3977, Seq(5000 - 1024)),
            (true, 3970, 3971, orders),
        ] {
            let batch = Batch::new(Seq(begin), Cover::new(), VolumeRanges::new(), Now::default());
            machine.mode = Mode::Batch(Box::new(batch));
            (machine.dr.synced, machine.dr.next) = (synced, Seq(next));
            assert_eq!(machine.sends_upto(), upto, "synced {synced}, begin {begin}, next {next}");
        }
        let mut batch = Batch::new(Seq(3900), Cover::new(), VolumeRanges::new(), Now::default());
        batch.end = Some(Seq(3970));
        (machine.mode, machine.closing, machine.dr.next) = (Mode::Stream, Some(batch), Seq(3970));
        assert_eq!(machine.sends_upto(), Seq(3970), "its end");
    }

    #[test]
    fn writes_have_three_quarters_of_the_journal_beside_a_batch_and_the_rest_as_it_arrives() {
        let (mut machine, _) = fresh(Protect::Near, Require::Any, false);
        let mut at = |tail: u64, acked: u64, batch: bool, connected: bool| {
            (machine.tail, machine.dr.caught_up) = (Seq(tail), true);
            machine.dr.phase = if connected { Phase::Up { conn: Conn(1) } } else { Phase::Idle { retry_ns: 0 } };
            // Beside a batch there is room for a few more.
            let kept = 1024 + 128 - if batch { 48 } else { 0 };
            machine.dr.room = JournalRoom { upto: Seq(1400 + kept), records: 4096 };
            let todo = ranges(Cover::insert, &[(0, 1000 - acked)]);
            let fresh = Batch::new(Seq(1), todo, VolumeRanges::new(), Now::default());
            let under_way = Batch { room: 400, bytes: acked, bytes_acked: acked, ..fresh };
            machine.mode = if batch { Mode::Batch(Box::new(under_way)) } else { Mode::Stream };
            machine.journal_wait()
        };
        assert_eq!([at(1300, 0, true, true), at(1301, 0, true, true)], [None, Some(false)]);
        assert_eq!([at(1350, 500, true, true), at(1351, 500, true, true)], [None, Some(false)]);
        assert_eq!([at(1399, 999, true, true), at(1400, 1000, true, true)], [None, Some(true)]);
        assert_eq!([at(1399, 0, false, true), at(1400, 0, false, true)], [None, Some(true)]);
        assert_eq!(at(5000, 0, true, false), None, "nobody waits for a DR that is not there");
    }
}
