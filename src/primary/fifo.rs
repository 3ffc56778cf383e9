//! The disk part of the FIFO: a circular log of payloads, oldest first, in seq order (I9).
//!
//! What stands on disk is always older than what is in memory. Positions grow for ever:
//! `head ≤ read ≤ written ≤ tail`; `head` moves when payloads are durable at DR, `read` when they are
//! fetched for shipping, `written` when an append has completed, `tail` when it is issued.

use std::collections::VecDeque;

use bytes::Bytes;

use super::machine::{Effect, File, Machine, Pending, Stopping, disk_write};
use super::window::{Held, Payload};
use crate::core::ids::Seq;
use crate::core::machine::{DiskKind, DiskOp, IoFail, Level};
use crate::core::planted::{Bug, planted};
use crate::format::record::OrderRecord;
use crate::format::spool::{self, ENTRY_HEADER_BYTES, EntryHeader, Kind};
use crate::limits::{ENTRY_ALIGN_BYTES, PAYLOAD_BYTES_MAX};

/// Bytes of the log that one spill writes, and that spills in flight write: as many, and one entry more.
const SPILL_BYTES: u64 = 1 << 20;
const SPILLS_BYTES_MAX: u64 = 8 << 20;
/// Bytes of the log fetched ahead of shipping.
const STAGED_BYTES_MAX: u64 = 4 << 20;
const READ_BYTES: u64 = 1 << 20;

/// A payload fetched back for shipping.
#[derive(Clone, Debug)]
pub struct Staged {
    pub record: OrderRecord,
    pub data: Bytes,
    pub pos: u64,
}

/// Positions and counters of the log; the bytes are in the file.
#[derive(Clone, Debug)]
pub struct DiskFifo {
    size: u64,
    nonce: u64,
    head: u64,
    read: u64,
    written: u64,
    tail: u64,
    /// Head that the superblock names: nothing after it is overwritten.
    saved: u64,
    /// Appends under way: the position after each, and whether it has completed.
    appends: VecDeque<(u64, bool)>,
    /// Where the writer last went on at the start of the file, and from where: there is only one between `head` and `tail`.
    turn: Option<Turn>,
    /// Seq of the last payload appended.
    pub last: Seq,
    /// And of the last one fetched for shipping, 0 before the first.
    fetched: Seq,
    reading: bool,
    /// Bytes the next read has to fetch to hold one whole entry.
    need: u64,
    staged: VecDeque<Staged>,
    staged_bytes: u64,
    /// A clear happened while operations were in flight: their results are ignored.
    generation_pos: u64,
}

impl DiskFifo {
    /// An empty log of `size` bytes (0: none) that goes on at `pos`.
    #[must_use]
    pub fn new(size: u64, nonce: u64, pos: u64) -> DiskFifo {
        DiskFifo::resume(size, nonce, pos, &Scanned::empty(pos))
    }

    /// A log that holds the entries from `head` on that were found.
    #[must_use]
    pub fn resume(size: u64, nonce: u64, head: u64, found: &Scanned) -> DiskFifo {
        let Scanned { end: tail, last, turn, .. } = *found;
        DiskFifo {
            size,
            nonce,
            head,
            read: head,
            written: tail,
            tail,
            saved: head,
            appends: VecDeque::new(),
            turn,
            last,
            fetched: Seq(0),
            reading: false,
            need: 0,
            staged: VecDeque::new(),
            staged_bytes: 0,
            generation_pos: head,
        }
    }

    /// Oldest position still needed.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.head
    }

    /// Nothing on disk is waiting to become durable at DR.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Nothing on disk is waiting to be sent.
    #[must_use]
    pub fn all_sent(&self) -> bool {
        self.read == self.tail && self.staged.is_empty()
    }

    /// Whether a payload is here, or may be, and is not on its way.
    #[must_use]
    pub fn may_send(&self, seq: Seq) -> bool {
        let unread = self.read < self.tail && seq > self.fetched && seq <= self.last;
        unread || self.staged.iter().any(|staged| staged.record.seq == seq)
    }

    /// Bytes of the file in use.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tail - self.head
    }

    /// Whether about `bytes` of payload would fit (a third is allowed for headers and wrapping).
    #[must_use]
    pub fn has_room(&self, bytes: u64) -> bool {
        self.size > 0 && self.tail - self.saved + bytes + bytes / 3 + (64 << 10) <= self.size
    }

    /// Whether the superblock should name a newer head, to give space back.
    #[must_use]
    pub fn wants_saving(&self) -> bool {
        self.head - self.saved > self.size / 8
    }

    /// The superblock names this head now.
    pub fn saved(&mut self, head: u64) {
        self.saved = self.saved.max(head);
    }

    fn fits(&self, entry_bytes: u64) -> bool {
        entry_bytes <= self.size
            && spool::place(self.tail, self.size, entry_bytes) + entry_bytes - self.saved <= self.size
    }

    /// Places the payload of a record; returns its header, which says where it goes in the file.
    fn place(&mut self, record: OrderRecord) -> EntryHeader {
        let entry_bytes = spool::entry_bytes(record.payload_bytes());
        let pos = spool::place(self.tail, self.size, entry_bytes);
        let skipped = pos - self.tail;
        if skipped > 0 {
            self.turn = Some(Turn { from: self.tail, to: pos });
        }
        self.tail = pos + entry_bytes;
        EntryHeader { pos, kind: Kind::Payload, index: 0, record, skipped }
    }

    /// Forgets everything that is on disk: a batch covers it.
    pub fn clear(&mut self) {
        self.head = self.tail;
        self.read = self.tail;
        self.written = self.tail;
        self.appends.clear();
        self.generation_pos = self.tail;
        self.fetched = self.last;
        self.staged.clear();
        self.staged_bytes = 0;
        self.need = 0;
    }

    pub fn pop_staged(&mut self) -> Option<Staged> {
        let staged = self.staged.pop_front()?;
        self.staged_bytes -= spool::entry_bytes(staged.data.len() as u64);
        Some(staged)
    }

    #[must_use]
    pub fn peek_staged(&self) -> Option<&Staged> {
        self.staged.front()
    }

    /// A payload whose stream was lost goes back to the front.
    pub fn unstage(&mut self, staged: Staged) {
        if staged.pos >= self.head {
            self.staged_bytes += spool::entry_bytes(staged.data.len() as u64);
            let at = self.staged.partition_point(|other| other.pos < staged.pos);
            self.staged.insert(at, staged);
        }
    }

    /// Everything before `pos` is durable at DR.
    pub fn release(&mut self, oldest_in_flight: Option<u64>) {
        let staged = self.staged.front().map(|staged| staged.pos);
        if planted(Bug::FifoFreedEarly) {
            self.head = self.read;
            return;
        }
        let oldest = [oldest_in_flight, staged].into_iter().flatten().min().unwrap_or(self.read);
        self.head = self.head.max(oldest.min(self.read));
    }

    /// One append completed; what is readable grows in order.
    fn append_done(&mut self, upto: u64) {
        self.appends.iter_mut().filter(|(end, _)| *end == upto).for_each(|(_, done)| *done = true);
        while let Some((end, true)) = self.appends.front().copied() {
            self.written = end;
            self.appends.pop_front();
        }
    }

    /// Takes complete entries off the front of what was read; asks for more when one is cut off.
    fn parse(&mut self, mut pos: u64, bytes: &Bytes) -> Result<(), String> {
        let start = pos;
        self.need = 0;
        while pos < start + bytes.len() as u64 {
            // The next entry would have wrapped. What stands here is of an earlier round.
            if let Some(turn) = self.turn.filter(|turn| turn.from == pos) {
                self.read = turn.to;
                return Ok(());
            }
            let rest = bytes.slice(usize::try_from(pos - start).expect("inside the buffer")..);
            if rest.len() < ENTRY_HEADER_BYTES {
                break;
            }
            let header = match EntryHeader::decode(&rest[..ENTRY_HEADER_BYTES], self.nonce) {
                Ok(header) if header.pos == pos => header,
                Ok(header) => return Err(format!("entry of position {} found at {pos}", header.pos)),
                Err(why) => return Err(format!("at position {pos}: {why}")),
            };
            let entry = header.entry_bytes();
            if (rest.len() as u64) < entry {
                self.need = entry;
                break;
            }
            let end = ENTRY_HEADER_BYTES + usize::try_from(header.data_bytes()).expect("bounded by the format");
            let data = rest.slice(ENTRY_HEADER_BYTES..end);
            header.verify_data(&data).map_err(|why| format!("seq {}: {why}", header.record.seq))?;
            self.staged_bytes += entry;
            self.fetched = header.record.seq;
            self.staged.push_back(Staged { record: header.record, data, pos });
            pos += entry;
            self.read = pos;
        }
        Ok(())
    }
}

impl Machine {
    /// Whether the oldest payloads in memory may go to disk.
    pub(super) fn may_spill(&self) -> bool {
        self.options.fifo_disk_bytes > 0 && !self.options.standalone
    }

    /// Spills from the front when memory is three quarters full; fetches back what is to be sent.
    pub(super) fn pump_spill(&mut self, fx: &mut Vec<Effect>) {
        // Whoever waits for memory may be waiting for this alone: no part of it is worth keeping then.
        let high = if self.held_requests.is_empty() { self.options.fifo_memory_bytes / 4 * 3 } else { 0 };
        let overhead = self.window.overhead();
        while self.may_spill() && self.held.memory - self.spilling.memory + overhead > high {
            if !self.spill_one(fx) {
                break;
            }
        }
        self.read_fifo(fx);
    }

    /// At a stop: everything in memory goes to disk. True while that is under way.
    pub(super) fn spill_everything(&mut self, fx: &mut Vec<Effect>) -> bool {
        while self.may_spill() && self.held.bytes > self.spilling.bytes && self.spill_one(fx) {}
        self.spilling.bytes > 0
    }

    /// One write of the oldest payloads in memory to the disk FIFO. False when nothing can be spilled now.
    fn spill_one(&mut self, fx: &mut Vec<Effect>) -> bool {
        if self.fifo.tail - self.fifo.written >= SPILLS_BYTES_MAX {
            return false;
        }
        let (mut parts, mut seqs, mut held, mut start) = (Vec::new(), Vec::new(), Held::default(), None);
        // Nothing before it is in memory: the search does not begin at the front each time.
        let skipped = u64::from(planted(Bug::SpillUnordered));
        let from = Seq(self.spill_next.max(self.window.first()).0 + skipped);
        // What the auxiliary's ring has yet to get stays in memory for it, unless everything is put away at a stop.
        let ring = self.ring_from().filter(|_| self.stopping == Stopping::No);
        for entry in self.window.from_mut(from) {
            if !matches!(entry.payload, Payload::Queued | Payload::Sent) {
                continue;
            }
            let length = entry.data.len() as u64;
            let entry_bytes = spool::entry_bytes(length);
            if !entry.may_leave()
                || ring.is_some_and(|from| entry.record.seq >= from)
                || !self.fifo.fits(entry_bytes)
                || start.is_some_and(|start| self.fifo.tail - start >= SPILL_BYTES)
            {
                break;
            }
            // An entry that ended exactly at the end of the log leaves the next one at its start, too.
            let at_start = self.fifo.tail.is_multiple_of(self.fifo.size);
            let wraps = at_start || spool::place(self.fifo.tail, self.fifo.size, entry_bytes) != self.fifo.tail;
            if wraps && start.is_some() {
                break;
            }
            let header = self.fifo.place(entry.record);
            start.get_or_insert(header.pos);
            spool::encode_entry(&header, self.fifo.nonce, entry.data.clone(), &mut parts);
            entry.payload = Payload::Spilling;
            seqs.push(entry.record.seq);
            held += Held::one(length);
        }
        let Some(start) = start else { return false };
        self.fifo.last = *seqs.last().expect("something was placed");
        self.spill_next = self.fifo.last.next();
        self.spilling += held;
        self.fifo.appends.push_back((self.fifo.tail, false));
        self.dr.forget_sent_seqs(&seqs);
        let ticket = self.ticket(Pending::Spill { upto: self.fifo.tail, seqs, held });
        fx.push(disk_write(ticket, File::Fifo, start % self.fifo.size, parts, false));
        true
    }

    pub(super) fn spill_done(&mut self, upto: u64, seqs: &[Seq], held: Held) {
        self.spilling -= held;
        self.fifo.append_done(upto);
        // It was left to a batch while it was being written.
        let cleared = upto <= self.fifo.generation_pos;
        for seq in seqs {
            if let Some(entry) = self.window.get_mut(*seq)
                && entry.payload == Payload::Spilling
            {
                entry.payload = if cleared { Payload::Dropped } else { Payload::Spilled };
                self.held -= entry.held();
                entry.data = Bytes::new();
            }
        }
    }

    fn read_fifo(&mut self, fx: &mut Vec<Effect>) {
        let fifo = &self.fifo;
        if fifo.reading || fifo.read >= fifo.written || fifo.staged_bytes >= STAGED_BYTES_MAX || !self.dr.ready() {
            return;
        }
        let to_end = fifo.size - fifo.read % fifo.size;
        let length = READ_BYTES.max(fifo.need).min(to_end).min(fifo.written - fifo.read);
        let (pos, offset) = (fifo.read, fifo.read % fifo.size);
        self.fifo.reading = true;
        let ticket = self.ticket(Pending::FifoRead { pos });
        fx.push(Effect::Disk(DiskOp { ticket, file: File::Fifo, kind: DiskKind::Read { offset, length } }));
    }

    pub(super) fn fifo_read(&mut self, pos: u64, bytes: Bytes, fx: &mut Vec<Effect>) {
        self.fifo.reading = false;
        if pos < self.fifo.generation_pos {
            return;
        }
        if let Err(why) = self.fifo.parse(pos, &bytes) {
            let text = format!("disk FIFO damaged, {why}; its ranges are copied as a batch (I8)");
            fx.push(Effect::Log { level: Level::Error, text });
            self.coalesce("the disk FIFO is damaged", fx);
            // What is on its way to DR from memory comes after it: the batch has that, too.
            self.drop_queued();
        }
    }
}

/// A place where the writer went on at the start of the file: positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    pub from: u64,
    pub to: u64,
}

/// What a disk FIFO holds, as a start finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Position after the last entry.
    pub end: u64,
    /// Its seq, 0 without one.
    pub last: Seq,
    pub turn: Option<Turn>,
    /// What is wrong at `end`, where something damaged ended the scan and not the end of the log.
    pub damage: Option<String>,
}

impl Scanned {
    /// A log without entries.
    #[must_use]
    pub fn empty(pos: u64) -> Scanned {
        Scanned { end: pos, last: Seq(0), turn: None, damage: None }
    }
}

/// Reads bytes of the file: offset, length.
pub type Read<'a> = dyn FnMut(u64, usize) -> Result<Bytes, IoFail> + 'a;

/// How far behind the last whole entry a crash may leave others: several spills are under way at once, and the disk
/// completes them in any order. They stay there until they are written over, also beyond a clean stop that comes first.
/// What a spill passes over at the end of the file is shorter than an entry.
const TORN_BYTES_MAX: u64 = SPILLS_BYTES_MAX + SPILL_BYTES + 2 * ENTRY_BYTES_MAX;
const ENTRY_BYTES_MAX: u64 = spool::entry_bytes(PAYLOAD_BYTES_MAX as u64);

/// Scans a disk FIFO at a restart: the entries from `head` on that are whole and in seq order.
pub fn scan(size: u64, nonce: u64, head: u64, read: &mut Read<'_>) -> Result<Scanned, IoFail> {
    let mut found = Scanned::empty(head);
    while size > 0 && found.end - head < size {
        let pos = found.end;
        let Err(why) = next(size, nonce, &mut found, read)? else { continue };
        let lap = pos.next_multiple_of(size);
        if pos != lap && lap - head < size && turns(size, nonce, Turn { from: pos, to: lap }, found.last, read)? {
            found.turn = Some(Turn { from: pos, to: lap });
            found.end = lap;
            continue;
        }
        let from = pos + TORN_BYTES_MAX;
        let upto = (from + 2 * ENTRY_BYTES_MAX).min(head + size);
        if let Some(behind) = first_entry(size, nonce, from, upto, found.last, read)? {
            found.damage = Some(format!("{why}; an entry stands at position {behind}, behind it"));
        }
        break;
    }
    // Of what the writer went on with at the start of the file only the head is there: nothing would ever free what was passed
    // over before it.
    if let Some(turn) = found.turn.take_if(|turn| turn.to == found.end) {
        found.end = turn.from;
    }
    Ok(found)
}

/// Takes the entry at `found.end`, or says why there is none.
fn next(size: u64, nonce: u64, found: &mut Scanned, read: &mut Read<'_>) -> Result<Result<(), String>, IoFail> {
    let (pos, at) = (found.end, found.end % size);
    let header = match EntryHeader::decode(&read(at, ENTRY_HEADER_BYTES)?, nonce) {
        Ok(header) if header.pos == pos && header.record.seq > found.last && at + header.entry_bytes() <= size => {
            header
        }
        Ok(header) => return Ok(Err(format!("at offset {at} stands the entry of position {}", header.pos))),
        Err(why) => return Ok(Err(format!("at offset {at}: {why}"))),
    };
    let length = usize::try_from(header.data_bytes()).unwrap_or(usize::MAX);
    let data = read(at + ENTRY_HEADER_BYTES as u64, length)?;
    if let Err(why) = header.verify_data(&data) {
        return Ok(Err(format!("at offset {at}, seq {}: {why}", header.record.seq)));
    }
    found.last = header.record.seq;
    found.end = pos + header.entry_bytes();
    Ok(Ok(()))
}

/// Whether the entry at the start of a lap goes on exactly where the scan stands.
fn turns(size: u64, nonce: u64, turn: Turn, last: Seq, read: &mut Read<'_>) -> Result<bool, IoFail> {
    let bytes = read(turn.to % size, ENTRY_HEADER_BYTES)?;
    Ok(EntryHeader::decode(&bytes, nonce)
        .is_ok_and(|header| header.pos == turn.to && header.record.seq > last && header.skipped == turn.to - turn.from))
}

/// Position of the first entry of this log between two positions that is newer than `last`.
fn first_entry(
    size: u64,
    nonce: u64,
    from: u64,
    upto: u64,
    last: Seq,
    read: &mut Read<'_>,
) -> Result<Option<u64>, IoFail> {
    let mut pos = from;
    while pos < upto {
        let piece = READ_BYTES.min(upto - pos).min(size - pos % size);
        let bytes = read(pos % size, usize::try_from(piece).expect("a read is short"))?;
        for sector in bytes.chunks(ENTRY_ALIGN_BYTES as usize) {
            let header = sector.get(..ENTRY_HEADER_BYTES).and_then(|head| EntryHeader::decode(head, nonce).ok());
            if header.is_some_and(|header| header.pos == pos && header.record.seq > last) {
                return Ok(Some(pos));
            }
            pos += ENTRY_ALIGN_BYTES;
        }
    }
    Ok(None)
}

#[cfg(test)]
#[path = "fifo_tests.rs"]
mod tests;
