//! Owns the truth: every request and what became of it, every order record ever seen, and from both the bytes
//! that a volume has after seqs 1..P.
//!
//! The oracle learns records from the effects of the primary (whatever carries a record shows it), and matches
//! each with the request it orders. A restart of the primary opens a chapter: its base is the image the
//! primary came up with, because what a crash did to writes nobody was promised is for the crash to say. That
//! the image was one the crash could have left is checked by [`Oracle::check_restart`].

use bytes::Bytes;
use farshore::core::ids::{Seq, SeqRange, Volume};
use farshore::core::op::Op;
use farshore::format::record::OrderRecord;
use farshore::limits::RECORD_BYTES;

use crate::checkers::{Verdict, Violation};
use crate::disk::SECTOR;
use crate::seqs::Seqs;
use crate::verify::Comparing;
use crate::workload::Ask;

/// Contents of one sector that a crash may leave, beyond which the sector is not judged (partial overwrites
/// of one sector double them each time).
const POSSIBLE_MAX: usize = 128;

/// Images of all volumes of the group, in order.
pub type Images = Vec<Vec<u8>>;

/// Where the record, and where the payload of a write was durable when it was acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    pub aux: bool,
    pub dr: bool,
    pub aux_payload: bool,
    pub dr_payload: bool,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub volume: Volume,
    pub ask: Ask,
    pub submitted_ns: u64,
    pub seq: Option<Seq>,
    pub acked_ns: Option<u64>,
    /// Acknowledged and made durable on the local disk by FUA or by an acknowledged flush.
    pub settled: bool,
    /// It was refused for want of space on the volume: there in full, in part or not at all, until a later write.
    pub half: bool,
    /// What held it at the moment the promise was made (its reply, or the flush that covers it).
    pub promise: Option<Promise>,
}

/// What a client was promised about one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// When it was made: with `ack = flush`, later than the answer to the write.
    pub at_ns: u64,
    pub holders: Holders,
    /// The mode's full promise held; otherwise the group said that it was degraded.
    pub full: bool,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    record: OrderRecord,
    /// The same as bytes: compared with those on the disks again and again.
    encoded: [u8; RECORD_BYTES],
    request: Option<usize>,
}

/// The primary from one start to the next.
struct Chapter {
    /// First seq given in it, once seen.
    first: Option<Seq>,
    base: Images,
    /// The chapter that began with the power coming back: its base is stable, later ones' need not be.
    boot: usize,
}

pub struct Oracle {
    pub requests: Vec<Request>,
    by_seq: Seqs<Entry>,
    chapters: Vec<Chapter>,
    /// Requests of the current chapter that no record has been seen for, in order.
    unordered: Vec<usize>,
    /// Those that were refused before a record of theirs was seen.
    refused: Vec<usize>,
    /// Acknowledged in the boot under way, and not yet kept for ever by the local disk.
    unsettled: Vec<usize>,
    /// What each record said that says a size: few among many.
    sized: Vec<(Seq, Volume, u64)>,
    /// Sizes that an operator has asked for.
    resizes: Vec<(Volume, u64)>,
    /// Size of each volume after the last record that was seen.
    sizes: Vec<u64>,
    /// Those that somebody was told, and every start knows.
    told: Vec<u64>,
}

impl Oracle {
    pub fn new(base: Images) -> Oracle {
        let sizes: Vec<u64> = base.iter().map(|image| image.len() as u64).collect();
        let chapters = vec![Chapter { first: Some(Seq(0)), base, boot: 0 }];
        Oracle {
            requests: Vec::new(),
            by_seq: Seqs::default(),
            chapters,
            unordered: Vec::new(),
            refused: Vec::new(),
            unsettled: Vec::new(),
            sized: Vec::new(),
            resizes: Vec::new(),
            told: sizes.clone(),
            sizes,
        }
    }

    /// An operator asks for a size.
    pub fn resize_asked(&mut self, volume: Volume, size: u64) {
        self.resizes.push((volume, size));
    }

    /// He is told that the volume has it, from this seq on; the number of that request.
    pub fn resize_done(&mut self, now_ns: u64, volume: Volume, size: u64, seq: Seq) -> usize {
        self.told[volume.0 as usize] = size;
        self.requests.push(Request {
            volume,
            ask: Ask::Resize { size },
            submitted_ns: now_ns,
            seq: Some(seq),
            acked_ns: Some(now_ns),
            settled: true,
            half: false,
            promise: None,
        });
        self.requests.len() - 1
    }

    /// I1 over sizes: a record is about what its volume has by then, and a resize is one that was asked for.
    fn check_size(&mut self, record: &OrderRecord) -> Verdict {
        let Some(size) = self.sizes.get_mut(record.volume.0 as usize).filter(|_| record.op.concerns_volume()) else {
            return Ok(());
        };
        let wrong = |text: &str| Err(Violation::new("I1", format!("{text}: {record:?}, the volume has {size} bytes")));
        match record.new_size() {
            Some(new) if new == record.offset && new == *size => Ok(()),
            Some(new) if record.offset != *size || new <= *size => wrong("a resize from another size"),
            Some(new) if !self.resizes.contains(&(record.volume, new)) => wrong("a resize that nobody asked for"),
            Some(new) => {
                *size = new;
                Ok(())
            }
            None if record.offset + record.length > *size => wrong("a record beyond the end"),
            None => Ok(()),
        }
    }

    /// A write was acknowledged to its client.
    pub fn acknowledged(&mut self, number: usize, now_ns: u64) {
        self.requests[number].acked_ns = Some(now_ns);
        if self.requests[number].ask != Ask::Flush {
            self.unsettled.push(number);
        }
    }

    /// What a flush of a volume that was asked for at `submitted_ns` covers, in the order it was asked for.
    pub fn covered(&mut self, volume: Volume, submitted_ns: u64) -> Vec<usize> {
        let requests = &self.requests;
        let covers = |n: &mut usize| {
            let request = &requests[*n];
            request.volume == volume && request.acked_ns.is_some_and(|at| at < submitted_ns)
        };
        let mut covered: Vec<usize> = self.unsettled.extract_if(.., covers).collect();
        covered.retain(|n| !requests[*n].settled);
        covered.sort_unstable();
        covered
    }

    /// A client's request reaches the primary; its number.
    pub fn submit(&mut self, now_ns: u64, volume: Volume, ask: Ask) -> usize {
        if ask.range().is_some() {
            self.unordered.push(self.requests.len());
        }
        self.note(now_ns, volume, ask)
    }

    fn note(&mut self, now_ns: u64, volume: Volume, ask: Ask) -> usize {
        self.requests.push(Request {
            volume,
            ask,
            submitted_ns: now_ns,
            seq: None,
            acked_ns: None,
            settled: false,
            half: false,
            promise: None,
        });
        self.requests.len() - 1
    }

    /// A request was refused. It may have had its seq by then (a fence, a frozen group), so that its record may
    /// still be seen; but a record that fits a request that waits for its answer is that one's.
    pub fn failed(&mut self, number: usize) {
        if let Some(at) = self.unordered.iter().position(|&n| n == number) {
            self.unordered.remove(at);
            self.refused.push(number);
        }
    }

    /// Whether a seq of the range was given out, or may have been as far as anybody can tell: those that a loss of power
    /// skipped may be among them, and a start after one names no last seq.
    pub fn gave_out(&self, range: SeqRange) -> bool {
        self.by_seq.range(range.first, Seq(u64::MAX)).next().is_some_and(|(seq, entry)| {
            seq <= range.last || entry.record.op == Op::EpochStart && entry.record.offset == 0
        })
    }

    /// I1 over what the primary orders by itself: somebody was refused space there, or a comparison has found it damaged at DR
    /// (`comparing`: which blocks are), and this is what the volume holds
    /// as the record leaves, before any later write to it does.
    pub fn saw_mended(&mut self, now_ns: u64, record: &OrderRecord, data: Bytes, comparing: &Comparing) -> Verdict {
        let wrong = |text: &str| Err(Violation::new("I1", format!("{text}: {record:?}")));
        let (offset, end) = (record.offset, record.offset + record.length);
        let refused = |at: &u64| {
            let holds = |(offset, length): (u64, u64)| offset < *at + SECTOR as u64 && *at < offset + length;
            self.requests.iter().any(|it| it.half && it.volume == record.volume && it.ask.range().is_some_and(holds))
        };
        let damaged = |at: &u64| comparing.unread || comparing.blocks.contains(&(record.volume.0, at - at % 4096));
        if !(offset..end).step_by(SECTOR).all(|at| refused(&at) || damaged(&at)) {
            return wrong("an order of what nobody was refused");
        }
        let holds = match record.op {
            Op::Write => crc32fast::hash(&data) == record.payload_crc,
            op => op == Op::WriteZeroes && data.iter().all(|byte| *byte == 0),
        };
        if !holds {
            return wrong("the volume does not hold what is ordered");
        }
        self.check_order(record)?;
        let number = self.note(now_ns, record.volume, Ask::Write { offset, data, fua: false });
        self.give_out(record, Some(number));
        Ok(())
    }

    /// A record was seen in an effect of the primary.
    pub fn saw(&mut self, record: &OrderRecord) -> Verdict {
        if let Some(entry) = self.by_seq.get(record.seq) {
            if entry.record != *record {
                let text = format!("seq {} names two writes: {:?} and {record:?}", record.seq, entry.record);
                return Err(Violation::new("I1", text));
            }
            return Ok(());
        }
        self.check_order(record)?;
        let of_client = record.changes_volume() && record.op != Op::Resize;
        let request = if of_client { Some(self.match_request(record)?) } else { None };
        self.give_out(record, request);
        Ok(())
    }

    fn check_order(&mut self, record: &OrderRecord) -> Verdict {
        if let Some(last) = self.by_seq.last() {
            if record.seq < last {
                return Err(Violation::new("I1", format!("seq {} is given out after {last}: {record:?}", record.seq)));
            }
            if record.seq > last.next() && !record.op.may_jump() {
                return Err(Violation::new("I1", format!("a gap between seq {last} and {record:?}")));
            }
        }
        self.check_size(record)
    }

    fn give_out(&mut self, record: &OrderRecord, request: Option<usize>) {
        if let Some(number) = request {
            self.requests[number].seq = Some(record.seq);
        }
        self.by_seq.push(record.seq, Entry { record: *record, encoded: record.encode(), request });
        self.sized.extend(record.new_size().map(|size| (record.seq, record.volume, size)));
        let chapter = self.chapters.last_mut().expect("there is a first chapter");
        chapter.first.get_or_insert(record.seq);
    }

    fn match_request(&mut self, record: &OrderRecord) -> Result<usize, Violation> {
        let same_op = |r: &Request| match &r.ask {
            Ask::Write { data, .. } => record.op == Op::Write && crc32fast::hash(data) == record.payload_crc,
            Ask::Zeroes { .. } => record.op == Op::WriteZeroes,
            Ask::Trim { .. } => record.op == Op::Trim,
            Ask::Flush | Ask::Resize { .. } => false,
        };
        let fits = |r: &Request| {
            r.volume == record.volume && r.ask.range() == Some((record.offset, record.length)) && same_op(r)
        };
        for waiting in [&mut self.unordered, &mut self.refused] {
            if let Some(at) = waiting.iter().position(|&n| fits(&self.requests[n])) {
                return Ok(waiting.remove(at));
            }
        }
        Err(Violation::new("I1", format!("a record that no request asked for: {record:?}")))
    }

    /// The primary came up again with these images, which `power_lost` or a kill has left.
    pub fn restarted(&mut self, base: Images, power_lost: bool) -> Verdict {
        self.check_restart(&base, power_lost)?;
        self.unordered.clear();
        self.refused.clear();
        self.sizes = base.iter().map(|image| image.len() as u64).collect();
        let boot = if power_lost { self.chapters.len() } else { self.boot() };
        if power_lost {
            self.unsettled.clear();
        }
        self.chapters.push(Chapter { first: None, base, boot });
        Ok(())
    }

    /// The boot under way, by the chapter it began with.
    pub fn boot(&self) -> usize {
        self.chapters.last().expect("there is a first chapter").boot
    }

    pub fn record(&self, seq: Seq) -> Option<&OrderRecord> {
        self.by_seq.get(seq).map(|e| &e.record)
    }

    /// The bytes of a record that was seen.
    pub fn encoded(&self, seq: Seq) -> Option<&[u8; RECORD_BYTES]> {
        self.by_seq.get(seq).map(|e| &e.encoded)
    }

    /// The record that these bytes are, if it was seen and they are its own to the last bit: reading and checking them
    /// would say the same again.
    pub fn known(&self, bytes: &[u8]) -> Option<&OrderRecord> {
        let seq = Seq(u64::from_le_bytes(*bytes.first_chunk()?));
        self.by_seq.get(seq).filter(|entry| bytes == entry.encoded).map(|entry| &entry.record)
    }

    /// Records of writes to exactly this range, newest first.
    pub fn orders_of(&self, volume: Volume, offset: u64, length: u64) -> impl Iterator<Item = &OrderRecord> {
        let fits = move |r: &&OrderRecord| {
            r.changes_volume() && r.volume == volume && r.offset == offset && r.length == length
        };
        self.by_seq.all().rev().map(|(_, e)| &e.record).filter(fits)
    }

    /// Whether the request of this seq was acknowledged to its client.
    pub fn is_acked(&self, seq: Seq) -> bool {
        let request = self.by_seq.get(seq).and_then(|entry| entry.request);
        request.is_some_and(|number| self.requests[number].acked_ns.is_some())
    }

    /// The request that a seq was given to.
    pub fn request_of(&self, seq: Seq) -> Option<&Request> {
        self.by_seq.get(seq).and_then(|entry| entry.request).map(|number| &self.requests[number])
    }

    /// Records in (from, to], the last one first.
    pub fn back_from(&self, to: Seq, from: Seq) -> impl Iterator<Item = &OrderRecord> {
        self.by_seq.range(from.next(), to).rev().map(|(_, entry)| &entry.record)
    }

    pub fn tail(&self) -> Seq {
        self.by_seq.last().unwrap_or_default()
    }

    /// Volume-changing records in (from, to]: those since the last gap in the seqs, which every site that knows
    /// `to` knows too, and those before one, which a loss of the primary's power left and need not be known.
    pub fn changes(&self, from: Seq, to: Seq) -> (Vec<OrderRecord>, Vec<OrderRecord>) {
        let (mut known, mut old): (Vec<OrderRecord>, Vec<OrderRecord>) = (Vec::new(), Vec::new());
        if from >= to {
            return (known, old);
        }
        let mut previous = from;
        for (seq, entry) in self.by_seq.range(from.next(), to) {
            if seq > previous.next() {
                old.append(&mut known);
            }
            previous = seq;
            if entry.record.changes_volume() {
                known.push(entry.record);
            }
        }
        (known, old)
    }

    /// The bytes of all volumes after seqs 1..=`cut`.
    pub fn state_after(&self, cut: Seq) -> Images {
        let chapter = self.chapters.iter().rposition(|c| c.first.is_some_and(|f| f <= cut)).unwrap_or(0);
        let mut images = self.chapters[chapter].base.clone();
        let first = self.chapters[chapter].first.unwrap_or(Seq(0));
        for (_, entry) in self.by_seq.range(first, cut) {
            if let Some(number) = entry.request {
                apply(&self.requests[number], &mut images);
            }
            if let Some(size) = entry.record.new_size() {
                images[entry.record.volume.0 as usize].resize(size as usize, 0);
            }
        }
        images
    }

    /// Ranges of the state after `cut` that a refused write may have changed, or not: each byte says whether it is known.
    pub fn unsure_after(&self, cut: Seq) -> Option<Images> {
        let chapter = self.chapters.iter().rposition(|c| c.first.is_some_and(|f| f <= cut)).unwrap_or(0);
        let first = self.chapters[chapter].first.unwrap_or(Seq(0));
        let requests =
            || self.by_seq.range(first, cut).filter_map(|(_, entry)| entry.request).map(|n| &self.requests[n]);
        requests().any(|request| request.half).then(|| {
            let mut unsure: Images = self.sizes_after(cut).iter().map(|size| vec![0; *size as usize]).collect();
            for request in requests() {
                let (offset, length) = request.ask.range().expect("only requests that change a volume have records");
                let range = offset as usize..(offset + length) as usize;
                unsure[request.volume.0 as usize][range].fill(u8::from(request.half));
            }
            unsure
        })
    }

    /// What starts of the primary in (from, to] have found on its disk: a loss of power has taken some of what was before.
    pub fn bases_between(&self, from: Seq, to: Seq) -> impl Iterator<Item = &Images> {
        let within = move |first: Seq| from < first && first <= to;
        self.chapters.iter().filter(move |chapter| chapter.first.is_some_and(within)).map(|chapter| &chapter.base)
    }

    /// Size of each volume after seqs 1..=`cut`.
    pub fn sizes_after(&self, cut: Seq) -> Vec<u64> {
        let chapter = self.chapters.iter().rposition(|c| c.first.is_some_and(|f| f <= cut)).unwrap_or(0);
        let mut sizes: Vec<u64> = self.chapters[chapter].base.iter().map(|image| image.len() as u64).collect();
        let first = self.chapters[chapter].first.unwrap_or(Seq(0));
        for &(_, volume, size) in self.sized.iter().filter(|(seq, ..)| (first..=cut).contains(seq)) {
            sizes[volume.0 as usize] = size;
        }
        sizes
    }

    /// Which request last wrote this byte of the state after `cut` (for messages).
    pub fn writer_of(&self, cut: Seq, volume: Volume, at: u64) -> String {
        let hit = |e: &&Entry| {
            let r = &e.record;
            r.changes_volume() && r.volume == volume && r.offset <= at && at < r.offset + r.length
        };
        match self.by_seq.range(Seq(0), cut).map(|(_, e)| e).rfind(hit) {
            Some(e) => format!("seq {} ({})", e.record.seq, e.record.op.word()),
            None => "no write".into(),
        }
    }

    /// Seq whose payload the given bytes are from, by content (for messages).
    pub fn source_of(&self, volume: Volume, at: u64, bytes: &[u8]) -> String {
        for (number, request) in self.requests.iter().enumerate() {
            let (Ask::Write { offset, data, .. }, true) = (&request.ask, request.volume == volume) else { continue };
            if *offset <= at && at + bytes.len() as u64 <= offset + data.len() as u64 {
                let start = (at - offset) as usize;
                if data[start..start + bytes.len()] == *bytes {
                    return format!("request {number} (seq {:?})", request.seq.map(|s| s.0));
                }
            }
        }
        if bytes.iter().all(|&b| b == 0) { "zeroes".into() } else { "bytes of no single request".into() }
    }

    /// Whether a crash can have left these images, given what was promised to stay on the local disk: after
    /// a kill every acknowledged write, after a loss of power what FUA or a flush has settled.
    fn check_restart(&self, images: &Images, power_lost: bool) -> Verdict {
        let chapter = if power_lost { self.boot() } else { self.chapters.len() - 1 };
        let base = &self.chapters[chapter].base;
        let first = self.chapters[chapter..].iter().find_map(|c| c.first).unwrap_or(Seq(u64::MAX));
        let ops: Vec<&Request> =
            self.by_seq.range(first, Seq(u64::MAX)).filter_map(|(_, e)| e.request).map(|n| &self.requests[n]).collect();
        for (index, image) in images.iter().enumerate() {
            let volume = Volume(index as u16);
            if (image.len() as u64) < self.told[index] {
                let text = format!(
                    "the primary came up with {} bytes of volume {index}, it told {}",
                    image.len(),
                    self.told[index]
                );
                return Err(Violation::new("I3", text));
            }
            let reach = ops.iter().filter(|r| r.volume == volume && (r.acked_ns.is_some() && !power_lost || r.settled));
            let reach = reach.filter_map(|r| r.ask.range()).map(|(offset, length)| offset + length).max().unwrap_or(0);
            if (image.len() as u64) < reach {
                let text = format!(
                    "the primary came up with {} bytes of volume {index}, and was written up to {reach}",
                    image.len()
                );
                return Err(Violation::new("I3", text));
            }
            let longest = image
                .len()
                .max(ops.iter().filter_map(|r| r.ask.range()).map(|(o, l)| (o + l) as usize).max().unwrap_or(0));
            let mut touched = vec![Vec::new(); longest.div_ceil(SECTOR)];
            for (order, op) in ops.iter().enumerate().filter(|(_, r)| r.volume == volume) {
                let (offset, length) = op.ask.range().expect("ordered requests change a volume");
                let sectors = offset as usize / SECTOR..=(offset + length - 1) as usize / SECTOR;
                touched[sectors].iter_mut().for_each(|s| s.push(order));
            }
            touched.truncate(image.len().div_ceil(SECTOR));
            for (sector, orders) in touched.iter().enumerate() {
                let range = sector * SECTOR..((sector + 1) * SECTOR).min(image.len());
                // What was added since has zeroes, once anybody was told of it.
                let added = range.start >= base[index].len();
                if added && orders.is_empty() && range.start as u64 >= self.told[index] {
                    continue;
                }
                let before = if added { vec![0; range.len()] } else { base[index][range.clone()].to_vec() };
                if orders.is_empty() && before == image[range.clone()] {
                    continue;
                }
                let mut possible = vec![before];
                for &order in orders {
                    if possible.len() > POSSIBLE_MAX {
                        break;
                    }
                    let mut after = possible.clone();
                    after.iter_mut().for_each(|bytes| overlay(ops[order], range.start, bytes));
                    let stays = if power_lost { ops[order].settled } else { ops[order].acked_ns.is_some() };
                    if !stays {
                        after.append(&mut possible);
                    }
                    after.sort_unstable();
                    after.dedup();
                    possible = after;
                }
                if possible.len() <= POSSIBLE_MAX && !possible.iter().any(|p| *p == image[range.clone()]) {
                    let text = format!(
                        "the primary came up without what its disk had promised: volume {index} sector {sector} ({} \
                         possible contents) has {}; writes there: {:?}",
                        possible.len(),
                        self.source_of(volume, range.start as u64, &image[range.clone()]),
                        orders.iter().map(|&o| (ops[o].seq, ops[o].acked_ns, ops[o].settled)).collect::<Vec<_>>()
                    );
                    return Err(Violation::new("I3", text));
                }
            }
        }
        Ok(())
    }
}

fn apply(request: &Request, images: &mut Images) {
    overlay(request, 0, &mut images[request.volume.0 as usize]);
}

/// Applies a request to `bytes`, which start at `start` of the volume.
fn overlay(request: &Request, start: usize, bytes: &mut [u8]) {
    let (offset, length) = request.ask.range().expect("only requests that change a volume are applied");
    let from = (offset as usize).max(start);
    let to = ((offset + length) as usize).min(start + bytes.len());
    if from >= to {
        return;
    }
    let target = &mut bytes[from - start..to - start];
    match &request.ask {
        Ask::Write { data, .. } => {
            let at = from - offset as usize;
            target.copy_from_slice(&data[at..at + target.len()]);
        }
        _ => target.fill(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::content;
    use farshore::core::ids::{Chain, Epoch};

    fn order(oracle: &mut Oracle, seq: u64, ask: Ask) -> usize {
        let number = oracle.submit(seq, Volume(0), ask.clone());
        oracle.saw(&record(seq, &ask)).expect("a proper record");
        number
    }

    fn record(seq: u64, ask: &Ask) -> OrderRecord {
        let (offset, length) = ask.range().expect("changes a volume");
        let (op, payload_crc) = match ask {
            Ask::Write { data, .. } => (Op::Write, crc32fast::hash(data)),
            Ask::Zeroes { .. } => (Op::WriteZeroes, 0),
            _ => (Op::Trim, 0),
        };
        let (volume, epoch) = (Volume(0), Epoch(1));
        let (chain, flags, time_ns) = (Chain(0), 0, 0);
        OrderRecord { seq: Seq(seq), epoch, volume, op, flags, offset, length, time_ns, chain, payload_crc }
    }

    fn write(number: u64, offset: u64, length: usize) -> Ask {
        Ask::Write { offset, data: content(number, length), fua: false }
    }

    #[test]
    fn state_after_a_seq_is_the_prefix_and_nothing_more() {
        let mut oracle = Oracle::new(vec![vec![0; 4096]]);
        order(&mut oracle, 1, write(1, 0, 1024));
        order(&mut oracle, 2, Ask::Trim { offset: 512, length: 512, fua: false });
        order(&mut oracle, 3, write(3, 700, 100));
        assert_eq!(oracle.state_after(Seq(0))[0], vec![0; 4096]);
        let two = oracle.state_after(Seq(2));
        assert_eq!(two[0][..512], content(1, 1024)[..512]);
        assert!(two[0][512..].iter().all(|&b| b == 0));
        assert_eq!(oracle.state_after(Seq(3))[0][700..800], content(3, 100)[..]);
        assert_eq!(oracle.changes(Seq(1), Seq(3)).0.len(), 2);
        assert!(oracle.writer_of(Seq(2), Volume(0), 600).contains("trim"));
    }

    #[test]
    fn one_seq_for_two_writes_and_a_gap_are_found() {
        let mut oracle = Oracle::new(vec![vec![0; 4096]]);
        order(&mut oracle, 1, write(1, 0, 512));
        let other = write(2, 512, 512);
        oracle.submit(2, Volume(0), other.clone());
        assert_eq!(oracle.saw(&record(1, &other)).unwrap_err().invariant, "I1");
        assert_eq!(oracle.saw(&record(3, &other)).unwrap_err().invariant, "I1");
        assert!(oracle.saw(&record(2, &other)).is_ok());
        assert!(oracle.saw(&record(3, &other)).is_err(), "each request is ordered once");
    }

    #[test]
    fn restart_may_lose_or_tear_what_was_not_promised_but_nothing_else() {
        for (acked, settled, power_lost, survives) in [
            (false, false, false, false),
            (true, false, false, true),
            (true, false, true, false),
            (true, true, true, true),
        ] {
            let mut oracle = Oracle::new(vec![vec![0; 4096]]);
            let number = order(&mut oracle, 1, write(1, 0, 1024));
            oracle.requests[number].acked_ns = acked.then_some(5);
            oracle.requests[number].settled = settled;
            let mut torn = vec![0; 4096];
            torn[..512].copy_from_slice(&content(1, 1024)[..512]);
            assert_eq!(oracle.restarted(vec![torn], power_lost).is_err(), survives, "{acked} {settled} {power_lost}");
            let mut strange = vec![0; 4096];
            strange[0] = 77;
            let mut oracle = Oracle::new(vec![vec![0; 4096]]);
            order(&mut oracle, 1, write(1, 0, 1024));
            assert!(oracle.restarted(vec![strange], power_lost).is_err(), "bytes from nowhere");
        }
    }
}
