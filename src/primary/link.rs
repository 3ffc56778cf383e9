//! The primary's side of the link to DR: one connection for the order, N streams for payloads.
//!
//! After any cut it resumes where DR says it stands: records after DR's journal, payloads that DR does
//! not have. Records that DR cannot be given any more (the intent log no longer holds them) are left out
//! by a jump: the begin of a batch that covers everything.

mod backlog;
mod former;
mod need;
mod room;
mod stream;

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use self::backlog::Backlog;
use self::former::Former;
use self::room::Gap;
pub(super) use self::stream::Phase;
use self::stream::{OnStream, Stream};
use super::batch::Headway;
use super::fifo::Staged;
use super::machine::{Effect, Machine};
use super::paths::End;
use super::window::{Held, Local, Payload};
use crate::core::ids::{Chain, Conn, Seq, SeqRange};
use crate::core::machine::{Level, Now};
use crate::core::modes::Ack;
use crate::core::planted::{Bug, planted};
use crate::core::ranges::VolumeRanges;
use crate::format::record::OrderRecord;
use crate::format::spool;
use crate::format::wire::{
    FRAME_HEADER_BYTES, Hello, JournalRoom, Message, Purpose, Refuse, RefuseCode, StoreRoom, Welcome,
};
use crate::limits::{LINK_SILENCE_NS, PING_EVERY_NS, STREAM_IDLE_PING_NS};

/// Reasons that are not logged a second time while DR is away.
const PROBLEMS_TOLD_MAX: usize = 8;
/// Unacknowledged bytes up to which one stream is filled before the next is used.
const STREAM_FILL_BYTES: u64 = 128 << 10;
const RETRY_NS: u64 = 500_000_000;
pub(super) const RETRY_REFUSED_NS: u64 = 3_000_000_000;
/// Payloads fetched from disk and unacknowledged, bytes of the log: memory beside the configured FIFO.
pub(super) const DISK_UNACKED_BYTES_MAX: u64 = 8 << 20;
/// What streams may hold that has not left this host, bytes of memory, unless it is a single payload; each its share of it: the
/// first one that is up would take all that comes next, and DR's cut wait for that.
const BACKLOG_BYTES_MAX: u64 = 8 << 20;

/// What the primary knows of DR and of the connections to it.
#[derive(Clone, Debug)]
pub struct DrLink {
    pub(super) phase: Phase,
    pub(super) streams: Vec<Stream>,
    /// Next record to send.
    pub(super) next: Seq,
    /// Records durable in DR's journal, without a hole but the one that `skipped` tells of.
    pub journal: Seq,
    /// Of these it has told, or of a payload, which it acknowledges after its order and on another connection.
    told: Seq,
    /// Records up to here, after `held`, were left out by a jump of the journal, or may have been lost there.
    pub(super) skipped: Seq,
    /// Records durable in the journal before that.
    pub(super) held: Seq,
    /// Of records up to here it never gets those that it had not before the last jump.
    pub(super) never_gets: Seq,
    pub cut: Seq,
    pub applied: Seq,
    pub synced: bool,
    /// The directory that had the last recovery point, where another one has come in its place.
    pub(super) former: Option<Former>,
    pub(super) blank: bool,
    pub(super) commits: VecDeque<(Seq, u64)>,
    pub(super) backfill: VecDeque<OrderRecord>,
    pub(super) reading_log: bool,
    /// Chain that our record before `next` must have; checked before the first record is sent.
    pub(super) check: Option<Chain>,
    pub(super) caught_up: bool,
    pub(super) window_bytes: u64,
    pub(super) spool_bytes: u64,
    pub(super) spool_live_bytes: u64,
    pub(super) unfit_spool_bytes: u64,
    /// What DR's journal certainly takes.
    pub(super) room: JournalRoom,
    pub(super) gap: Gap,
    pub(super) headway: Headway,
    pub(super) disk_unacked: u64,
    pub(super) ship_next: Seq,
    pub(super) last_heard_ns: u64,
    pub(super) last_ping_ns: u64,
    /// DR has no copy: everything allocated has to be listed and sent.
    pub(super) wants_everything: bool,
    pub(super) listing: bool,
    pub(super) everything_listed: bool,
    /// Begin of the last batch that was a copy of everything.
    pub(super) everything_in: Seq,
    /// Ranges that DR must be told are zero.
    pub(super) holes: VolumeRanges,
    /// DR's journal cannot be continued: the next record it gets is the begin of a batch.
    pub(super) must_jump: bool,
    /// Seqs whose payload DR has asked for on this connection.
    asked: BTreeSet<Seq>,
    /// Among them are orders that it has lost.
    lacks_orders: bool,
    /// The last attempt to connect failed, and nothing was heard of it since.
    pub(super) gone: bool,
    /// A size for which its store has no room: what has been ordered waits there; and since when.
    pub(super) holds_back: Option<(StoreRoom, u64)>,
    pub problem: Option<String>,
    /// Those that were logged since it was up last.
    problems_told: Vec<String>,
    pub since_ns: u64,
    pub rtt_ns: u64,
    /// Bytes of order records and their acknowledgements: the synchronous path.
    pub order_bytes: u64,
}

impl DrLink {
    #[must_use]
    pub fn new(spool_bytes: u64) -> DrLink {
        DrLink {
            phase: Phase::Idle { retry_ns: 0 },
            streams: Vec::new(),
            next: Seq(0),
            journal: Seq(0),
            told: Seq(0),
            skipped: Seq(0),
            never_gets: Seq(0),
            held: Seq(0),
            cut: Seq(0),
            applied: Seq(0),
            synced: false,
            former: None,
            blank: false,
            commits: VecDeque::new(),
            backfill: VecDeque::new(),
            reading_log: false,
            check: None,
            caught_up: false,
            window_bytes: 0,
            spool_bytes,
            spool_live_bytes: 0,
            unfit_spool_bytes: 0,
            room: JournalRoom::default(),
            gap: Gap::default(),
            headway: Headway::default(),
            disk_unacked: 0,
            ship_next: Seq(0),
            last_heard_ns: 0,
            last_ping_ns: 0,
            wants_everything: false,
            listing: false,
            everything_listed: false,
            everything_in: Seq(0),
            holes: VolumeRanges::new(),
            must_jump: false,
            asked: BTreeSet::new(),
            lacks_orders: false,
            gone: false,
            holds_back: None,
            problem: None,
            problems_told: Vec::new(),
            since_ns: 0,
            rtt_ns: 0,
            order_bytes: 0,
        }
    }

    /// The order connection is up and DR has said where it stands.
    #[must_use]
    pub fn ready(&self) -> bool {
        matches!(self.phase, Phase::Up { .. })
    }

    /// DR has been sent every record up to about now: waiting for it makes sense.
    #[must_use]
    pub fn caught_up(&self) -> bool {
        self.ready() && self.caught_up
    }

    #[must_use]
    pub(super) fn any_stream(&self) -> bool {
        self.streams.iter().any(|stream| stream.up().is_some())
    }

    pub(super) fn unacked(&self) -> u64 {
        self.streams.iter().map(|stream| stream.unacked).sum()
    }

    /// The stream for a payload. While a batch is under way payloads leave half of the window to its pieces:
    /// DR may have to hold payloads back until the batch is complete.
    pub(super) fn stream_for_payload(&self, bytes: u64, batch: bool) -> Option<Conn> {
        let pieces: u64 = self.streams.iter().flat_map(|stream| stream.pieces.values()).map(|piece| piece.0).sum();
        let payloads = self.unacked() - pieces;
        if batch && payloads > 0 && payloads + bytes > self.window_bytes / 2 {
            return None;
        }
        self.stream_for(bytes)
    }

    /// Bytes that may still be given to streams.
    #[must_use]
    pub(super) fn window_left(&self) -> u64 {
        self.window_bytes.saturating_sub(self.unacked()).min(self.backlog_max().saturating_sub(self.backlog()))
    }

    fn backlog_max(&self) -> u64 {
        let up = self.streams.iter().filter(|stream| stream.up().is_some()).count();
        BACKLOG_BYTES_MAX * up as u64 / self.streams.len().max(1) as u64
    }

    /// Memory of what was given to streams and has not left this host, bytes.
    pub(super) fn backlog(&self) -> u64 {
        self.streams.iter().map(|stream| stream.backlog.memory()).sum()
    }

    /// The kernel has taken what was given to a stream, but for `left` bytes.
    pub(super) fn taken(&mut self, conn: Conn, left: u64) {
        if let Some(stream) = self.stream_mut(conn) {
            stream.backlog.left(left);
            stream.forgotten.retain(|_, number| stream.backlog.holds(*number));
        }
    }

    /// The stream for `bytes` more, if they may go out: one that has something to do but not much, so that what is
    /// little goes out together; else the one with the least to do.
    #[must_use]
    pub(super) fn stream_for(&self, bytes: u64) -> Option<Conn> {
        let unacked = self.unacked();
        if unacked > 0 && unacked + bytes > self.window_bytes {
            return None;
        }
        let backlog = self.backlog();
        if backlog > 0 && backlog + Held::memory_of(bytes) > self.backlog_max() {
            return None;
        }
        let up = || self.streams.iter().filter(|stream| stream.up().is_some());
        let light = up().filter(|stream| stream.unacked + bytes <= STREAM_FILL_BYTES);
        let stream = light.max_by_key(|stream| stream.unacked).or_else(|| up().min_by_key(|stream| stream.unacked))?;
        stream.up()
    }

    pub(super) fn stream_mut(&mut self, conn: Conn) -> Option<&mut Stream> {
        self.streams.iter_mut().find(|stream| stream.conn() == Some(conn))
    }

    pub(super) fn note_payload(&mut self, conn: Conn, seq: Seq, bytes: u64, staged: Option<Staged>) {
        if staged.is_some() {
            self.disk_unacked += spool::entry_bytes(bytes);
        }
        if let Some(stream) = self.stream_mut(conn) {
            stream.unacked += bytes;
            let number = stream.backlog.push(bytes);
            stream.sent.insert(seq, OnStream { bytes, number, staged });
        }
    }

    /// A piece was given to a stream: `bytes` that DR has to have in memory, of which so many do not cross.
    pub(super) fn note_piece(&mut self, conn: Conn, index: u64, bytes: u64, spared: u64) {
        if let Some(stream) = self.stream_mut(conn) {
            stream.unacked += bytes;
            let number = stream.backlog.push(bytes - spared);
            stream.pieces.insert(index, (bytes, number));
        }
    }

    pub(super) fn piece_done(&mut self, conn: Conn, index: u64) {
        if let Some(stream) = self.stream_mut(conn)
            && let Some((bytes, number)) = stream.pieces.remove(&index)
        {
            stream.unacked -= bytes;
            stream.backlog.reached(number);
        }
    }

    /// Payloads that moved to disk: what a stream still says of them does not matter any more.
    pub(super) fn forget_sent_seqs(&mut self, seqs: &[Seq]) {
        for stream in &mut self.streams {
            for seq in seqs {
                if let Some(sent) = stream.sent.remove(seq) {
                    stream.unacked -= sent.bytes;
                    stream.forgotten.insert(*seq, sent.number);
                }
            }
        }
    }

    /// Everything on the streams is left to a batch.
    pub(super) fn forget_sent(&mut self) {
        self.disk_unacked = 0;
        for stream in &mut self.streams {
            stream.forgotten.extend(std::mem::take(&mut stream.sent).into_iter().map(|(seq, sent)| (seq, sent.number)));
            stream.unacked = stream.pieces.values().map(|piece| piece.0).sum();
        }
    }

    pub(super) fn oldest_on_disk(&self) -> Option<u64> {
        let positions = self.streams.iter().flat_map(|stream| stream.sent.values());
        positions.filter_map(|sent| sent.staged.as_ref().map(|staged| staged.pos)).min()
    }

    /// Wall time since when the link is in its present state.
    #[must_use]
    pub fn since(&self, now: Now) -> u64 {
        if self.since_ns == 0 { now.wall_ns } else { self.since_ns }
    }

    #[must_use]
    pub fn streams_up(&self) -> usize {
        self.streams.iter().filter(|stream| stream.up().is_some()).count()
    }

    /// DR lacks orders, or its recovery point is gone or went back, and what took it may have taken orders, too. Beyond the
    /// cut its journal protects nothing until a batch has made good all that stands in it now (I3).
    fn distrust_journal(&mut self) {
        self.held = self.cut;
        self.skipped = self.journal;
    }

    /// The word of status.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self.phase {
            Phase::Idle { .. } => "down",
            Phase::Connecting { .. } => "connecting",
            Phase::Greeting { .. } => "greeting",
            Phase::Up { .. } if !self.caught_up => "catching up",
            Phase::Up { .. } => "up",
        }
    }
}

impl Default for DrLink {
    fn default() -> Self {
        DrLink::new(0)
    }
}

impl Machine {
    // ---- connections -------------------------------------------------------------------------

    pub(super) fn tick_dr(&mut self, fx: &mut Vec<Effect>) {
        if !self.may_connect() {
            return;
        }
        let now = self.now.mono_ns;
        match self.dr.phase {
            Phase::Idle { retry_ns } if now >= retry_ns => {
                let conn = self.conn();
                self.dr.phase = Phase::Connecting { conn, since_ns: now };
                fx.push(Effect::DrConnect { conn, records: true });
            }
            Phase::Connecting { conn, since_ns } | Phase::Greeting { conn, since_ns }
                if now > since_ns + LINK_SILENCE_NS =>
            {
                self.dr_reject(conn, End::Dead, "no answer", RETRY_NS, fx);
            }
            Phase::Up { conn } if now > self.dr.last_heard_ns + LINK_SILENCE_NS => {
                self.dr_reject(conn, End::Dead, "the link has been silent for too long", RETRY_NS, fx);
            }
            Phase::Up { conn } => {
                if now >= self.dr.last_ping_ns + PING_EVERY_NS {
                    self.dr.last_ping_ns = now;
                    fx.push(Effect::DrSend { conn, message: Message::Ping { nonce: now } });
                }
                self.connect_streams(fx);
                if self.dr.wants_everything && !self.dr.listing {
                    self.dr.listing = true;
                    fx.push(Effect::ListAllocated);
                }
            }
            _ => {}
        }
    }

    fn connect_streams(&mut self, fx: &mut Vec<Effect>) {
        let now = self.now.mono_ns;
        while self.dr.streams.len() < self.options.streams.max(1) {
            self.dr.streams.push(Stream::new());
        }
        for at in 0..self.dr.streams.len() {
            match self.dr.streams[at].phase {
                Phase::Idle { retry_ns } if now >= retry_ns => {
                    let conn = self.conn();
                    self.dr.streams[at].phase = Phase::Connecting { conn, since_ns: now };
                    fx.push(Effect::DrConnect { conn, records: false });
                }
                Phase::Connecting { conn, since_ns } | Phase::Greeting { conn, since_ns }
                    if now > since_ns + LINK_SILENCE_NS =>
                {
                    fx.push(Effect::DrClose { conn, end: End::Dead });
                    self.stream_lost(conn);
                }
                Phase::Up { conn } => self.watch_stream(at, conn, fx),
                _ => {}
            }
        }
    }

    /// A stream can die alone, half-open: what is on it is then sent again on a new one, and one that nothing is on is asked
    /// now and then, so that nothing is put on a dead one for long.
    fn watch_stream(&mut self, at: usize, conn: Conn, fx: &mut Vec<Effect>) {
        let now = self.now.mono_ns;
        let stream = &mut self.dr.streams[at];
        let idle = stream.unacked == 0;
        if now > stream.heard_ns + stream.patience_ns() {
            let level = if idle { Level::Info } else { Level::Warn };
            fx.push(Effect::Log { level, text: "a stream to DR has been silent for too long".into() });
            fx.push(Effect::DrClose { conn, end: End::Dead });
            self.stream_lost(conn);
        } else if now >= stream.pinged_ns + if idle { STREAM_IDLE_PING_NS } else { PING_EVERY_NS } {
            stream.pinged_ns = now;
            fx.push(Effect::DrSend { conn, message: Message::Ping { nonce: now } });
        }
    }

    pub(super) fn dr_up(&mut self, conn: Conn, fx: &mut Vec<Effect>) {
        let since_ns = self.now.mono_ns;
        let purpose = if self.dr.phase.conn() == Some(conn) {
            self.dr.phase = Phase::Greeting { conn, since_ns };
            Purpose::Order
        } else if let Some(stream) = self.dr.stream_mut(conn) {
            stream.phase = Phase::Greeting { conn, since_ns };
            Purpose::Stream
        } else {
            fx.push(Effect::DrClose { conn, end: End::Ours });
            return;
        };
        let hello = Hello {
            purpose,
            group: self.group(),
            group_name: self.options.group_name.clone(),
            epoch: self.superblock.epoch,
            owner: self.superblock.owner,
            incarnation: self.options.incarnation,
            volumes: self.volumes_ordered(),
            tail: self.tail,
        };
        fx.push(Effect::DrSend { conn, message: Message::Hello(hello) });
    }

    pub(super) fn dr_closed(&mut self, conn: Conn, reason: &str, fx: &mut Vec<Effect>) {
        if self.dr.phase.conn() == Some(conn) {
            self.dr_down(reason, RETRY_NS, fx);
        } else {
            self.stream_lost(conn);
        }
    }

    pub(super) fn dr_reject(&mut self, conn: Conn, end: End, reason: &str, retry_ns: u64, fx: &mut Vec<Effect>) {
        fx.push(Effect::DrClose { conn, end });
        self.dr_down(reason, retry_ns, fx);
    }

    /// The order connection is gone: so are the streams that belonged to it.
    fn dr_down(&mut self, reason: &str, retry_ns: u64, fx: &mut Vec<Effect>) {
        // Several ways have a reason each.
        if !self.dr.problems_told.iter().any(|told| told == reason) {
            fx.push(Effect::Log { level: Level::Warn, text: format!("DR out of reach: {reason}") });
            self.dr.problems_told.truncate(PROBLEMS_TOLD_MAX - 1);
            self.dr.problems_told.push(reason.to_string());
        }
        self.dr.problem = Some(reason.to_string());
        if self.dr.ready() || self.dr.since_ns == 0 {
            self.dr.since_ns = self.now.wall_ns;
        }
        self.dr.gone = matches!(self.dr.phase, Phase::Connecting { .. } | Phase::Greeting { .. });
        self.dr.phase = Phase::Idle { retry_ns: self.now.mono_ns + retry_ns };
        self.dr.caught_up = false;
        self.let_go();
        self.dr.commits.clear();
        self.dr.backfill.clear();
        let conns: Vec<Conn> = self.dr.streams.iter().filter_map(Stream::conn).collect();
        for conn in conns {
            fx.push(Effect::DrClose { conn, end: End::Ours });
            self.stream_lost(conn);
        }
    }

    /// What was on the stream and not acknowledged is sent again.
    fn stream_lost(&mut self, conn: Conn) {
        self.pieces_lost(conn);
        let retry_ns = self.now.mono_ns + RETRY_NS;
        let Some(stream) = self.dr.stream_mut(conn) else { return };
        stream.phase = Phase::Idle { retry_ns };
        stream.unacked = 0;
        stream.pieces.clear();
        stream.forgotten.clear();
        stream.backlog = Backlog::default();
        for (seq, sent) in std::mem::take(&mut stream.sent) {
            match sent.staged {
                Some(staged) => {
                    self.dr.disk_unacked -= spool::entry_bytes(sent.bytes);
                    self.fifo.unstage(staged);
                }
                None => self.requeue(seq),
            }
        }
    }

    /// Closes the streams that have anything on them: it is not wanted any more. They connect again.
    pub(super) fn cut_streams(&mut self, fx: &mut Vec<Effect>) {
        let busy = |stream: &&Stream| stream.unacked > 0 || !stream.pieces.is_empty();
        let conns: Vec<Conn> = self.dr.streams.iter().filter(busy).filter_map(Stream::conn).collect();
        for conn in conns {
            self.stream_lost(conn);
            fx.push(Effect::DrClose { conn, end: End::Ours });
        }
    }

    fn requeue(&mut self, seq: Seq) {
        if let Some(entry) = self.window.get_mut(seq)
            && entry.payload == Payload::Sent
            && !planted(Bug::RequeueForgotten)
        {
            entry.payload = Payload::Queued;
            self.dr.ship_next = self.dr.ship_next.min(seq);
        }
    }

    // ---- messages ----------------------------------------------------------------------------

    pub(super) fn dr_message(&mut self, conn: Conn, message: Message, fx: &mut Vec<Effect>) {
        let order = self.dr.phase.conn() == Some(conn);
        if !order && self.dr.stream_mut(conn).is_none() {
            return;
        }
        if order {
            self.dr.last_heard_ns = self.now.mono_ns;
        } else if let Some(stream) = self.dr.stream_mut(conn) {
            stream.heard_ns = self.now.mono_ns;
        }
        match message {
            Message::Welcome(welcome) if order => self.welcome(conn, &welcome, fx),
            Message::Welcome(_) => {
                if let Some(stream) = self.dr.stream_mut(conn) {
                    stream.phase = Phase::Up { conn };
                }
            }
            Message::Refuse(refuse) => self.refused(conn, &refuse, fx),
            Message::OrdersDurable { journal_seq } => self.orders_durable(journal_seq),
            Message::Copied { ranges } => self.payloads_durable(conn, &ranges),
            Message::ChunksDurable { batch, indexes } => self.pieces_durable(conn, batch, &indexes),
            Message::Need { ranges } => self.needed(&ranges, fx),
            Message::Progress { cut, applied, synced, window_bytes, room, spool_bytes } => {
                self.dr.cut = self.dr.cut.max(cut);
                self.dr.applied = applied;
                self.dr.synced = synced;
                self.dr.former = self.dr.former.filter(|_| !synced);
                (self.dr.window_bytes, self.dr.spool_live_bytes) = (window_bytes, spool_bytes);
                self.room_told(room);
                self.close_batch(fx);
            }
            Message::Ping { nonce } => fx.push(Effect::DrSend { conn, message: Message::Pong { nonce } }),
            Message::Pong { nonce } => {
                if order {
                    self.dr.rtt_ns = self.now.mono_ns.saturating_sub(nonce);
                }
                self.renew_lease(nonce.min(self.now.mono_ns));
            }
            Message::StoreRoom(room) => self.store_room(room, fx),
            Message::Wanted { batch, index, parts } => self.piece_wanted(conn, batch, index, parts),
            Message::Compared { id, verdict } if order => self.compared(id, verdict),
            Message::Compared { .. } => {}
            Message::Hello(_)
            | Message::Orders(_)
            | Message::Payload { .. }
            | Message::Chunk { .. }
            | Message::Patch(_)
            | Message::RoomAsked { .. }
            | Message::Compare(_) => {
                let text = format!("DR sent a message that only a primary sends ({})", message.kind_name());
                self.dr_closed(conn, &text, fx);
                fx.push(Effect::DrClose { conn, end: End::Closed });
            }
        }
    }

    fn refused(&mut self, conn: Conn, refuse: &Refuse, fx: &mut Vec<Effect>) {
        match refuse.code {
            RefuseCode::Fenced if refuse.epoch > self.superblock.epoch => self.fence(&refuse.text, fx),
            _ => {}
        }
        if self.dr.phase.conn() == Some(conn) {
            let retry = if refuse.code == RefuseCode::NotNow { RETRY_NS } else { RETRY_REFUSED_NS };
            self.dr_reject(conn, End::Closed, &format!("DR refuses: {}", refuse.text), retry, fx);
            self.dr.gone = false;
        } else {
            fx.push(Effect::DrClose { conn, end: End::Ours });
            self.stream_lost(conn);
        }
    }

    fn welcome(&mut self, conn: Conn, welcome: &Welcome, fx: &mut Vec<Effect>) {
        if let Err(text) = self.check_welcome(welcome) {
            // Its operator looks at its log, not at ours.
            let (code, epoch) = (RefuseCode::Protocol, self.superblock.epoch);
            let refuse = Refuse { code, epoch, text: text.clone() };
            fx.push(Effect::DrSend { conn, message: Message::Refuse(refuse) });
            self.dr_reject(conn, End::Closed, &text, RETRY_REFUSED_NS, fx);
            self.dr.gone = false;
            return;
        }
        self.dr.gone = false;
        self.dr.asked.clear();
        self.dr.lacks_orders = welcome.gaps;
        let back = self.note_directory(welcome, fx);
        if self.superblock.peer != welcome.owner {
            self.superblock.peer = welcome.owner;
            let reserved = self.superblock.seq;
            self.write_superblock(reserved, fx);
        }
        self.check_batch(welcome, fx);
        let dr = &mut self.dr;
        let told = std::mem::replace(&mut dr.told, welcome.journal_seq).max(dr.journal);
        // What went to the other directory meanwhile this one lacks.
        let regressed = back || welcome.cut < dr.cut;
        let lost = regressed || welcome.gaps || dr.synced && !welcome.synced;
        dr.phase = Phase::Up { conn };
        dr.problem = None;
        dr.problems_told.clear();
        dr.since_ns = self.now.wall_ns;
        dr.last_heard_ns = self.now.mono_ns;
        dr.last_ping_ns = 0;
        dr.journal = welcome.journal_seq;
        dr.cut = welcome.cut;
        self.cut_before = Seq(0);
        (dr.applied, dr.synced, dr.blank) = (welcome.applied, welcome.synced, welcome.blank);
        dr.holds_back = None;
        (dr.window_bytes, dr.spool_bytes) = (welcome.window_bytes, welcome.spool_bytes);
        (dr.room, dr.gap) = (welcome.room, Gap::new(welcome.room));
        dr.headway.applied = dr.headway.applied.min(welcome.applied);
        dr.next = welcome.journal_seq.next();
        dr.ship_next = Seq(0);
        if lost {
            dr.distrust_journal();
        }
        // An earlier life of this primary may have gone ahead of orders, which a batch has yet to make good.
        if welcome.led_past {
            dr.never_gets = dr.never_gets.max(welcome.journal_seq);
            // They may be of writes that no flush has covered yet: one that comes now would (I3).
            if self.options.ack == Ack::Flush {
                dr.distrust_journal();
            }
        }
        dr.check = (welcome.journal_seq > Seq(0)).then_some(welcome.journal_chain);
        let unlogged = dr.next < self.log_first;
        // An `EpochStart` may follow a gap in the seqs: after a loss of power nothing has to be left out.
        let continues = unlogged && self.first == self.log_first;
        if continues {
            dr.leap(self.first);
        }
        dr.must_jump = unlogged && !continues;
        if unlogged {
            dr.check = None;
            self.coalesce("DR's journal is too far behind to be continued", fx);
            self.lost.union(&self.intent.ranges());
        }
        // Of a DR without a copy, only a batch of everything makes one.
        let batches = self.mode.batch().into_iter().chain(self.closing.as_ref());
        let syncing =
            self.dr.everything_listed || batches.into_iter().any(|batch| batch.begin == self.dr.everything_in);
        if regressed || (!welcome.synced && !syncing) {
            self.dr.wants_everything = true;
            if !syncing && (self.mode.batch().is_some() || self.closing.is_some()) {
                self.coalesce("DR has no copy any more", fx);
            }
        }
        for range in &welcome.have {
            self.mark_copied(*range);
        }
        if welcome.synced {
            self.unsaid(welcome.journal_seq, told, fx);
        }
        self.close_batch(fx);
        self.look_behind();
        if self.orders_unfit() && (self.mode.batch().is_some() || self.closing.is_some()) {
            self.coalesce("DR's journal has no room for the orders it lacks", fx);
        }
        let text = format!(
            "DR connected: journal {}, cut {}, ours {}{}",
            welcome.journal_seq,
            welcome.cut,
            self.tail,
            if welcome.synced { "" } else { "; it has no complete copy yet" }
        );
        fx.push(Effect::Log { level: Level::Info, text });
        self.connect_streams(fx);
    }

    fn check_welcome(&self, welcome: &Welcome) -> Result<(), String> {
        if welcome.epoch > self.superblock.epoch {
            return Err(format!("DR is at epoch {}, this primary at {}", welcome.epoch, self.superblock.epoch));
        }
        if welcome.journal_seq > self.tail {
            return Err(format!(
                "DR's journal reaches seq {}, this primary knows only {}: its directory is older than DR's \
                 (restored from a backup?); start it as a new group or promote DR",
                welcome.journal_seq, self.tail
            ));
        }
        if !self.may_replace(welcome) {
            return Err(format!(
                "a second DR ({:016x}) answers, this group replicates to {:016x}; stop one of them, or empty directory and \
                 volumes of the one that should be filled anew",
                welcome.owner.0, self.superblock.peer.0
            ));
        }
        Ok(())
    }

    fn orders_durable(&mut self, journal: Seq) {
        if journal >= self.dr.next {
            return;
        }
        self.dr.journal = self.dr.journal.max(journal);
        self.dr.room = self.dr.room_now();
        self.dr.order_bytes += (FRAME_HEADER_BYTES + size_of::<Seq>()) as u64;
        while let Some((last, sent_ns)) = self.dr.commits.front().copied() {
            if last > journal {
                break;
            }
            self.dr.commits.pop_front();
            self.renew_lease(sent_ns);
        }
    }

    fn payloads_durable(&mut self, conn: Conn, ranges: &[SeqRange]) {
        if self.closing.is_some() {
            self.batch_moved();
        }
        for range in ranges {
            self.dr.told = self.dr.told.max(range.last);
            let Some(stream) = self.dr.stream_mut(conn) else { return };
            let forgotten: Vec<Seq> = stream.forgotten.range(range.first..=range.last).map(|(seq, _)| *seq).collect();
            for number in forgotten.iter().filter_map(|seq| stream.forgotten.remove(seq)) {
                stream.backlog.reached(number);
            }
            let done: Vec<Seq> = stream.sent.range(range.first..=range.last).map(|(seq, _)| *seq).collect();
            for seq in done {
                let Some(stream) = self.dr.stream_mut(conn) else { return };
                let sent = stream.sent.remove(&seq).expect("just listed");
                stream.unacked -= sent.bytes;
                stream.backlog.reached(sent.number);
                if sent.staged.is_some() {
                    self.dr.disk_unacked -= spool::entry_bytes(sent.bytes);
                    // While its client waits it is in the window, and the disk will have it no longer.
                    if let Some(entry) = self.window.get_mut(seq).filter(|entry| entry.payload == Payload::Spilled) {
                        entry.payload = Payload::Copied;
                    }
                } else if let Some(entry) = self.window.get_mut(seq)
                    && entry.payload == Payload::Sent
                {
                    self.held -= entry.held();
                    entry.payload = Payload::Copied;
                    // In `sync` a payload may be there before its turn on the local disk has come.
                    if !matches!(entry.local, Local::Waiting { .. }) {
                        entry.data = Bytes::new();
                    }
                }
            }
        }
        // Without anything on disk there is nothing to look for among all that is on its way.
        if !self.fifo.is_empty() {
            let oldest = self.dr.oldest_on_disk();
            self.fifo.release(oldest);
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
