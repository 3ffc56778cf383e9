//! Reads journal and spool at a start, and tells torn from damaged (I8).
//!
//! The journal's end after a crash: appends in flight may have reached the disk in any order, by sectors.
//!
//! | found after the last record that continues the history | means | done |
//! |---|---|---|
//! | nothing | a clean end | |
//! | zeroes, then records, within what can have been in flight | torn: never acknowledged | zeroed, sent again |
//! | a slot that is neither record nor zero, then records | damage | named; records behind it are kept, the cut stops before them |
//! | zeroes, then records far behind | a lost write: damage | the same |
//! | zeroes, then older records that do not fill a gap, within what can have been in flight | torn: a promotion appended them | left out |
//!
//! How far the journal reached is what tells a lost write from a torn one, and zeroing what is torn takes that away.
//! So behind a lost write nothing is called torn: the next start finds what this one found.
//!
//! The spool is scanned whole: entries are found by their header, each at its own position and with its
//! data verified. One that is not whole is named: torn if it was never acknowledged, damaged otherwise, which
//! the records without payload then show.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};

use crate::core::ids::{Chain, GroupId, Seq};
use crate::core::machine::{IoFail, Level, ReadAt};
use crate::core::op::Op;
use crate::core::planted::{Bug, planted, segment_bytes};
use crate::dr::history::{History, Intake};
use crate::dr::journal::{Start, Write, append_blocks_max, segment_blocks};
use crate::format::is_zero;
use crate::format::journal::{SegmentHeader, segment_offset};
use crate::format::record::OrderRecord;
use crate::format::ring::Ring;
use crate::format::spool::{ENTRY_HEADER_BYTES, EntryHeader, Kind, decode_entry};
use crate::limits::{BLOCK_BYTES, DR_APPENDS_INFLIGHT_MAX, ENTRY_ALIGN_BYTES, RECORD_BYTES, RECORDS_PER_BLOCK};

/// Blocks behind the acknowledged end that a crash may leave written or not.
fn torn_blocks() -> u64 {
    (DR_APPENDS_INFLIGHT_MAX * append_blocks_max()) as u64 + 2
}

/// Lines for the log.
pub type News = Vec<(Level, String)>;

/// Why a file could not be read or understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    #[error("{what} cannot be read: {fail}")]
    Io { what: &'static str, fail: IoFail },
    #[error(
        "the journal is {found} bytes long, [dr] journal says {bytes}: it cannot shrink; set it back to what it was"
    )]
    Shrunk { found: u64, bytes: u64 },
    #[error(
        "the journal was written with another size than {bytes} bytes (segment {number} stands in place {slot}): set \
         [dr] journal back to what it was"
    )]
    Resized { bytes: u64, number: u64, slot: u64 },
}

/// One slot of the journal that is not zero.
#[derive(Clone, Copy, Debug)]
enum Slot {
    /// `hole`: zeroes stand before it where a writer leaves none.
    Record { record: OrderRecord, hole: bool },
    /// What is left of an order, if it was one: the seq it bears, and whether it has the form of one.
    Damaged { seq: Seq, shaped: bool },
}

/// Where a slot stands: block counted over all segments, slot in the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    block: u64,
    slot: usize,
}

impl Place {
    /// Where a writer that leaves no room puts the next one: behind the header, in the next segment.
    fn next(self) -> Self {
        if self.slot + 1 < RECORDS_PER_BLOCK {
            return Self { slot: self.slot + 1, ..self };
        }
        let block = self.block + 1;
        Self { block: block + u64::from(block.is_multiple_of(segment_blocks())), slot: 0 }
    }
}

/// Records that a promotion appended of those that are missing before later ones, until they are filled in together.
#[derive(Default)]
struct Mended(Vec<OrderRecord>);

impl Mended {
    /// Whether a record that the history did not take is one of them, or was before.
    fn takes(&mut self, record: OrderRecord, history: &mut History) -> bool {
        let follows = |last: Option<&OrderRecord>| last.is_none_or(|last| last.seq < record.seq);
        if !follows(self.0.last()) || !history.could_fill(&record, self.0.last()) {
            if self.0.is_empty() {
                return false;
            }
            self.settle(history);
            if history.take(record).is_ok() {
                return true;
            }
            if !history.could_fill(&record, None) {
                return false;
            }
        }
        self.0.push(record);
        true
    }

    fn settle(&mut self, history: &mut History) {
        history.fill(&std::mem::take(&mut self.0));
    }
}

/// The journal as found.
pub struct FoundJournal {
    pub start: Start,
    /// What an operator has to know, if something is damaged.
    pub damage: Option<String>,
    /// The record of the checkpoint, or a header that names it, is here.
    pub anchored: bool,
    /// Slots behind the last record that hold what is left of an order: as many that were here, at the least.
    pub spoiled: u64,
    /// Records that may follow a gap, and before which orders are damaged.
    pub gaps: BTreeSet<Seq>,
    /// What stood behind the last record is damaged.
    pub open: bool,
}

/// Reads the journal into `history`, which stands at the checkpoint.
pub fn scan_journal(
    file: &dyn ReadAt,
    group: GroupId,
    segments: u64,
    first: u64,
    history: &mut History,
    news: &mut News,
) -> Result<FoundJournal, ScanError> {
    let (found, bytes) = (file.size(), segments * segment_bytes());
    if found > bytes {
        return Err(ScanError::Shrunk { found, bytes });
    }
    let mut scan = Scan {
        file,
        segments,
        used: Vec::new(),
        slots: Vec::new(),
        damage: None,
        base: None,
        anchored: false,
        floor: None,
        harmless: 0,
        spoiled: 0,
        garbage: Vec::new(),
        headless: Vec::new(),
        lost_write: false,
        gaps: BTreeSet::new(),
        open: false,
        astray: false,
        stray: 0,
    };
    let checkpoint = (history.floor(), history.chain_at(history.floor()));
    scan.segments(group, first, checkpoint)?;
    scan.floor.iter().for_each(|record| history.found_floor(record));
    for number in &scan.headless {
        news.push((Level::Error, format!("the header of segment {number} of the journal is damaged")));
    }
    if scan.harmless > 0 {
        let text =
            format!("the journal is damaged in {} records before the checkpoint: not needed any more", scan.harmless);
        news.push((Level::Error, text));
    }
    let end = scan.accept(history, news);
    if scan.stray > 0 {
        let text = format!(
            "{} orders that a promotion was appending when it was interrupted are left out: orders before them are missing",
            scan.stray
        );
        news.push((Level::Info, text));
    }
    let start = scan.start(first, end, history)?;
    if let Some(text) = &scan.damage {
        news.push((Level::Error, text.clone()));
    }
    let continued =
        history.next_after(checkpoint.0).is_some_and(|it| it.record.chain_after(checkpoint.1) == it.record.chain);
    let anchored = scan.anchored || continued;
    let Scan { damage, spoiled, gaps, open, .. } = scan;
    Ok(FoundJournal { start, damage, anchored, spoiled, gaps, open })
}

struct Scan<'a> {
    file: &'a dyn ReadAt,
    segments: u64,
    used: Vec<(u64, Seq)>,
    slots: Vec<(Place, Slot)>,
    damage: Option<String>,
    /// Place of the last record that is not above the checkpoint: what follows goes behind it.
    base: Option<Place>,
    anchored: bool,
    /// The record of the checkpoint itself.
    floor: Option<OrderRecord>,
    /// Damaged slots among records that are not needed any more.
    harmless: usize,
    /// Damaged slots behind the last record that was accepted, garbage not among them.
    spoiled: u64,
    /// Places of segments that begin with neither a header nor zeroes.
    garbage: Vec<u64>,
    /// Segments in use whose header is not readable.
    headless: Vec<u64>,
    /// A gap was called damage by what stands far behind it.
    lost_write: bool,
    gaps: BTreeSet<Seq>,
    open: bool,
    /// The records before this one were in flight when a promotion that appended them was interrupted.
    astray: bool,
    /// As many as those are.
    stray: usize,
}

impl Scan<'_> {
    fn read(&self, offset: u64, length: usize) -> Result<Bytes, ScanError> {
        self.file.read_at(offset, length).map_err(|fail| ScanError::Io { what: "the journal", fail })
    }

    fn name(&mut self, text: String) {
        self.damage.get_or_insert(text);
    }

    /// Finds the segments from `first` on and collects their slots.
    fn segments(&mut self, group: GroupId, first: u64, checkpoint: (Seq, Chain)) -> Result<(), ScanError> {
        let floor = checkpoint.0;
        let mut headers = Vec::new();
        for slot in 0..self.segments {
            let block = self.read(slot * segment_bytes(), BLOCK_BYTES)?;
            let header = SegmentHeader::decode(&block);
            if let Ok(header) = &header
                && header.group == group
                && header.number % self.segments != slot
            {
                let bytes = self.segments * segment_bytes();
                return Err(ScanError::Resized { bytes, number: header.number, slot });
            }
            if header.is_err() && !is_zero(&block) {
                self.garbage.push(slot);
            }
            headers.push((header.ok().filter(|header| header.group == group), is_zero(&block)));
        }
        let highest = headers.iter().flat_map(|(header, _)| header).map(|header| header.number).max().unwrap_or(0);
        for number in first..first + self.segments {
            let slot = usize::try_from(number % self.segments).expect("a journal fits memory");
            let (header, zero) = headers[slot];
            let header = header.filter(|header| header.number == number);
            if header.is_none() && (number > highest + 1 || number > highest && zero) {
                break;
            }
            let (before, base) = (self.slots.len(), self.base);
            self.slots_of(number, checkpoint)?;
            let records = self.slots.len() > before;
            self.anchored |= header.is_some_and(|it| (it.previous_seq, it.previous_chain) == checkpoint);
            if let Some(header) = header {
                self.used.push((number, header.previous_seq));
                continue;
            }
            // What is older may be of the segment that stood here before: nothing goes on behind it.
            self.base = base;
            // Only a block that is neither of this segment nor of an older one is damage.
            if number >= highest && (zero || !records) {
                break;
            }
            // It tells where records are looked for; whether any is missing, they say themselves.
            self.headless.push(number);
            self.used.push((number, floor));
        }
        Ok(())
    }

    /// Collects what is above the checkpoint in one segment.
    fn slots_of(&mut self, number: u64, checkpoint: (Seq, Chain)) -> Result<(), ScanError> {
        let segment = self.read(segment_offset(number, self.segments), segment_bytes() as usize)?;
        let mut hole = false;
        for (block, bytes) in segment.chunks_exact(BLOCK_BYTES).enumerate().skip(1) {
            let mut zero = false;
            for (slot, bytes) in bytes.chunks_exact(RECORD_BYTES).enumerate() {
                if is_zero(bytes) {
                    zero = true;
                    // Every block that was written begins with a record.
                    hole |= slot == 0;
                    continue;
                }
                hole |= std::mem::take(&mut zero);
                let place = Place { block: number * segment_blocks() + block as u64, slot };
                match OrderRecord::decode(bytes) {
                    Ok(record) if record.seq <= checkpoint.0 => {
                        if (record.seq, record.chain) == checkpoint {
                            self.anchored = true;
                            self.floor = Some(record);
                        }
                        self.base = Some(place);
                        // What is not needed any more may be damaged.
                        let here = |it: &mut (Place, Slot)| {
                            it.0.block / segment_blocks() == number && matches!(it.1, Slot::Damaged { .. })
                        };
                        while self.slots.pop_if(here).is_some() {
                            self.harmless += 1;
                        }
                    }
                    Ok(record) => {
                        self.slots.push((place, Slot::Record { record, hole: std::mem::take(&mut hole) }));
                    }
                    Err(_) => {
                        let bytes = bytes.try_into().expect("a slot is a record long");
                        let (seq, shaped) = OrderRecord::remains(bytes);
                        self.slots.push((place, Slot::Damaged { seq, shaped }));
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives the history every record that belongs to it; the place of the last one.
    fn accept(&mut self, history: &mut History, news: &mut News) -> Option<Place> {
        let mut end: Option<Place> = None;
        let mut damaged: Option<Place> = None;
        let mut mended = Mended::default();
        let slots = std::mem::take(&mut self.slots);
        let last = last_ascending(&slots, history.floor());
        let read = slots.len() - usize::from(planted(Bug::JournalLosesLast) && !slots.is_empty());
        for (index, &(place, slot)) in slots[..read].iter().enumerate() {
            let (record, hole) = match slot {
                Slot::Record { record, hole } => (record, hole),
                Slot::Damaged { seq, shaped } => {
                    damaged.get_or_insert(place);
                    let next = Seq(history.tail().0 + self.spoiled + 1);
                    self.spoiled += u64::from(shaped || seq == next);
                    // The checkpoint itself: what is counted stands behind it.
                    if self.base.is_none() && shaped && seq == history.floor() {
                        self.spoiled = 0;
                    }
                    continue;
                }
            };
            let tail = history.tail();
            // A promotion appends what it found elsewhere of records that are damaged here.
            let taken = history.take(record);
            let taken = taken.or_else(|why| if mended.takes(record, history) { Ok(Intake::Known) } else { Err(why) });
            match taken {
                // Whoever may follow a gap was written when all before it was durable: what is missing there was here.
                Ok(Intake::New) if (damaged.is_some() || hole || self.enters_after(place, end, tail)) => {
                    if record.op.may_jump() && self.jumps(&record, tail) {
                        self.name_gap(tail, record.seq);
                        self.gaps.insert(record.seq);
                    }
                }
                Ok(Intake::New | Intake::Known) => {}
                Err(_) if record.seq <= tail && damaged.is_none() && self.in_flight(place, end) => {
                    self.stray += 1;
                    continue;
                }
                Err(_) if record.seq <= history.tail() => {
                    self.name(format!("seq {} stands in the journal where it does not belong: left out", record.seq));
                    continue;
                }
                Err(_) => {
                    let from = end.map_or(slots[0].0.block, |end| end.block);
                    let reach = last.map_or(0, |last| last.block.saturating_sub(from));
                    if damaged.is_none() && reach <= torn_blocks() && !self.lost_write {
                        let count = slots.len() - index;
                        let text = format!(
                            "the journal ends at seq {}: {count} records behind it were never acknowledged",
                            history.tail()
                        );
                        news.push((Level::Info, text));
                        break;
                    }
                    self.lost_write |= damaged.is_none();
                    self.name_gap(history.tail(), record.seq);
                    history.take_after_gap(record);
                }
            }
            damaged = None;
            self.spoiled = 0;
            self.astray = false;
            end = Some(place);
        }
        mended.settle(history);
        self.open = damaged.is_some();
        if self.open {
            self.name(format!("the journal is damaged behind seq {}: what stood there is lost here", history.tail()));
        }
        self.slots = slots;
        end
    }

    /// Whether a record that is older than the last one was in flight with what is missing before it. What a promotion finds
    /// elsewhere of the orders before a gap goes behind later ones.
    fn in_flight(&mut self, place: Place, end: Option<Place>) -> bool {
        let Some(end) = end else { return false };
        self.astray |= place != end.next();
        self.astray &= place.block - end.block <= torn_blocks();
        self.astray
    }

    fn name_gap(&mut self, tail: Seq, next: Seq) {
        self.name(format!(
            "the journal is damaged between seq {tail} and {next}: the orders between are lost here, and the recovery \
             point stays before them until a batch covers them"
        ));
    }

    /// Whether a record that may follow a gap does.
    fn jumps(&self, record: &OrderRecord, tail: Seq) -> bool {
        match record.op {
            Op::EpochStart => Seq(record.offset) != tail,
            _ => record.seq != tail.next(),
        }
    }

    /// Whether the segment of `place`, of which it is the first record, was begun after a later record than `tail`.
    fn enters_after(&self, place: Place, end: Option<Place>, tail: Seq) -> bool {
        let segment = place.block / segment_blocks();
        let enters = end.is_none_or(|end| end.block / segment_blocks() < segment);
        enters && self.used.iter().any(|&(number, previous)| number == segment && previous > tail)
    }

    /// Where appending goes on, and what has to be zeroed before.
    fn start(&self, first: u64, end: Option<Place>, history: &History) -> Result<Start, ScanError> {
        let mut start = Start { segments: self.segments, first, durable: history.tail(), ..Start::default() };
        let Some(&(lowest, previous)) = self.used.first() else { return Ok(start) };
        // Without newer ones, behind the last record of the checkpoint: it is what the next start looks for.
        let base = self.base.filter(|base| self.used.iter().any(|used| used.0 == base.block / segment_blocks()));
        let last = end.or(base);
        if last.is_none() && self.headless.contains(&lowest) {
            // Nothing of it can be read: it is begun anew.
            start.repairs.extend(self.used.iter().map(|used| Write::zeroes(self.segment_at(used.0), segment_bytes())));
            self.clear_garbage(&mut start);
            return Ok(start);
        }
        let current = last.map_or(lowest, |last| last.block / segment_blocks());
        start.used = self.used.iter().copied().filter(|&(number, _)| number <= current).collect();
        if start.used.is_empty() {
            start.used.push((lowest, previous));
        }
        start.block = last.map_or(1, |last| last.block % segment_blocks() + 1);
        if let Some(end) = end {
            self.reuse_block(end, &mut start);
        }
        if let Some(last) = last {
            start.repairs.extend(self.end_of_block(last)?);
        }
        let base = self.segment_at(current);
        let behind = |place: &Place| end.is_none_or(|end| *place > end);
        if self.slots.iter().any(|(place, _)| place.block / segment_blocks() == current && behind(place)) {
            let from = start.block + u64::from(!start.partial.is_empty());
            if from < segment_blocks() {
                let length = (segment_blocks() - from) * BLOCK_BYTES as u64;
                start.repairs.push(Write::zeroes(base + from * BLOCK_BYTES as u64, length));
            }
        }
        for &(number, _) in self.used.iter().filter(|&&(number, _)| number > current) {
            // A segment without header is found by the header of a later one: the next start needs it too.
            let keep = self.headless.iter().any(|&it| it <= current) && !self.headless.contains(&number);
            let kept = if keep { BLOCK_BYTES as u64 } else { 0 };
            start.repairs.push(Write::zeroes(self.segment_at(number) + kept, segment_bytes() - kept));
        }
        self.clear_garbage(&mut start);
        Ok(start)
    }

    fn segment_at(&self, number: u64) -> u64 {
        segment_offset(number, self.segments)
    }

    /// What cannot be read is in nobody's way, but the next start would take it for damage of its own time.
    fn clear_garbage(&self, start: &mut Start) {
        for &slot in &self.garbage {
            let offset = slot * segment_bytes();
            let used = start.used.iter().any(|used| self.segment_at(used.0) == offset);
            if !used && !start.repairs.iter().any(|repair| repair.offset == offset) {
                start.repairs.push(Write::zeroes(offset, segment_bytes()));
            }
        }
    }

    /// The block of the last record, without the torn records behind it there: the next start would take them for the end
    /// if no append writes the block again. The sectors before them get the bytes that they have.
    fn end_of_block(&self, last: Place) -> Result<Option<Write>, ScanError> {
        let torn = |(place, slot): &(Place, Slot)| {
            place.block == last.block && *place > last && matches!(slot, Slot::Record { .. })
        };
        if !self.slots.iter().any(torn) {
            return Ok(None);
        }
        let offset =
            self.segment_at(last.block / segment_blocks()) + last.block % segment_blocks() * BLOCK_BYTES as u64;
        let mut block = BytesMut::from(&self.read(offset, BLOCK_BYTES)?[..]);
        block[(last.slot + 1) * RECORD_BYTES..].fill(0);
        Ok(Some(Write { offset, parts: vec![block.freeze()] }))
    }

    /// The block of the last record is written again with what follows, if nothing in it is damaged.
    fn reuse_block(&self, end: Place, start: &mut Start) {
        let before = self.slots.iter().filter(|(place, _)| place.block == end.block && *place <= end);
        let records: Vec<OrderRecord> = before
            .filter_map(|(_, slot)| match slot {
                Slot::Record { record, .. } => Some(*record),
                Slot::Damaged { .. } => None,
            })
            .collect();
        // Slots of records below the checkpoint are missing in `records`: they need not be kept, but then the
        // block has no hole before the rest only because they stand first.
        if end.slot + 1 < RECORDS_PER_BLOCK && records.len() <= end.slot + 1 {
            let damaged =
                self.slots.iter().any(|(place, slot)| place.block == end.block && matches!(slot, Slot::Damaged { .. }));
            if !damaged && records.len() == end.slot + 1 {
                start.block -= 1;
                start.partial = records;
            }
        }
    }
}

/// Place of the last record that goes on in the order of seqs: one that does not is left out, and may be zeroed.
fn last_ascending(slots: &[(Place, Slot)], floor: Seq) -> Option<Place> {
    let (mut last, mut highest) = (None, floor);
    for &(place, slot) in slots {
        if let Slot::Record { record, .. } = slot
            && record.seq > highest
        {
            (last, highest) = (Some(place), record.seq);
        }
    }
    last
}

/// An entry of the spool, whole and verified.
#[derive(Clone, Copy, Debug)]
pub struct FoundEntry {
    pub header: EntryHeader,
    pub bytes: u64,
}

/// Every whole entry of the spool from `floor` on, in the order of positions; and the seqs of payloads that are
/// not whole.
pub fn scan_spool(
    file: &dyn ReadAt,
    ring: Ring,
    floor: u64,
    nonce: u64,
    news: &mut News,
) -> Result<(Vec<FoundEntry>, Vec<Seq>), ScanError> {
    let mut window = Window { file, size: ring.bytes(), at: 0, bytes: Bytes::new() };
    let mut found = Vec::new();
    let mut torn = Vec::new();
    let mut pos = floor;
    while pos < floor + ring.bytes() {
        let offset = ring.offset(pos);
        let head = window.get(offset, ENTRY_HEADER_BYTES as u64)?;
        let header = EntryHeader::decode(&head, nonce);
        let Some(header) = header.ok().filter(|header| header.pos == pos) else {
            pos += ENTRY_ALIGN_BYTES;
            continue;
        };
        let bytes = header.entry_bytes();
        let whole = if pos + bytes <= ring.piece_end(pos) {
            let entry = window.get(offset, bytes)?;
            decode_entry(&entry, nonce).map(|_| ()).map_err(|err| err.to_string())
        } else {
            Err("it would wrap around the end".into())
        };
        match whole {
            Ok(()) => {
                found.push(FoundEntry { header, bytes });
                pos += bytes;
            }
            Err(why) => {
                let text = format!(
                    "the {} of seq {} in the spool is not whole ({why}): left out, asked for again if it is needed",
                    if header.kind == Kind::Payload { "payload" } else { "chunk" },
                    header.record.seq
                );
                news.push((Level::Warn, text));
                if header.kind == Kind::Payload {
                    torn.push(header.record.seq);
                }
                pos += ENTRY_ALIGN_BYTES;
            }
        }
    }
    Ok((found, torn))
}

/// Reads a file in long pieces.
struct Window<'a> {
    file: &'a dyn ReadAt,
    size: u64,
    at: u64,
    bytes: Bytes,
}

impl Window<'_> {
    fn get(&mut self, offset: u64, length: u64) -> Result<Bytes, ScanError> {
        const PIECE: u64 = 4 << 20;
        let here = offset >= self.at && offset + length <= self.at + self.bytes.len() as u64;
        if !here {
            let piece = length.max(PIECE).min(self.size - offset);
            let piece = usize::try_from(piece).expect("at most the longest entry");
            self.bytes = self.file.read_at(offset, piece).map_err(|fail| ScanError::Io { what: "the spool", fail })?;
            self.at = offset;
        }
        let from = usize::try_from(offset - self.at).expect("inside the window");
        Ok(self.bytes.slice(from..from + usize::try_from(length).expect("inside the window")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_that_leaves_no_room_comes_by_every_slot_but_those_of_headers() {
        let (mut place, mut walked) = (Place { block: segment_blocks() + 1, slot: 0 }, Vec::new());
        while place.block < 3 * segment_blocks() {
            walked.push((place.block, place.slot));
            place = place.next();
        }
        let blocks = (segment_blocks()..3 * segment_blocks()).filter(|block| !block.is_multiple_of(segment_blocks()));
        let slots = blocks.flat_map(|block| (0..RECORDS_PER_BLOCK).map(move |slot| (block, slot)));
        assert!(slots.eq(walked));
    }
}
