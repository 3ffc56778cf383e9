//! Files as a crash, a failing disk or another program may leave them, read by the scans that a start makes.

use bytes::Bytes;
use farshore::core::ids::{Chain, Epoch, GroupId, Owner, Seq, Volume};
use farshore::core::op::Op;
use farshore::dr::history::History;
use farshore::dr::scan::{scan_journal, scan_spool};
use farshore::format::intent::{LogHeader, LogLayout, MapHeader, Page, Watermark, sizes_digest};
use farshore::format::journal::{SegmentHeader, segment_offset};
use farshore::format::record::OrderRecord;
use farshore::format::ring::{Extension, Ring};
use farshore::format::spool::{EntryHeader, Kind, decode_entry, encode_entry, entry_bytes};
use farshore::format::superblock::{Role, Superblock, name_digest};
use farshore::limits::{BLOCK_BYTES, RECORD_BYTES, SEGMENT_BYTES};
use farshore::primary::{fifo, recovery};

use super::{Input, Memory, Reached, Wanted};

pub const JOURNAL_WANTED: Wanted = &[("record", 100), ("repair", 30), ("second segment", 8), ("gap", 20)];
pub const SPOOL_WANTED: Wanted =
    &[("entry", 1300), ("entry of an extension", 600), ("torn", 8), ("queue", 60), ("queue that went round", 2)];
pub const INTENT_WANTED: Wanted = &[("tail", 50), ("exact", 7), ("map", 80), ("note", 150)];

const GROUP: GroupId = GroupId(5);
const NONCE: u64 = 7;

/// What a scan of a journal makes of it.
fn history_of(
    file: &Memory,
    segments: u64,
    first: u64,
    floor: (Seq, Chain),
) -> Option<(Vec<(OrderRecord, bool)>, farshore::dr::journal::Start)> {
    let mut history = History::after(floor.0, floor.1);
    let mut news = Vec::new();
    let found = scan_journal(file, GROUP, segments, first, &mut history, &mut news).ok()?;
    let records = history.above(floor.0).map(|entry| (entry.record, entry.unbroken)).collect();
    Some((records, found.start))
}

/// Every record found stands in the file, whole; they ascend; none is called unbroken whose chain is not; and what a
/// start mends loses none of them.
pub fn journal(input: &[u8], reached: &mut Reached) {
    let mut input = Input::new(input);
    let shape = input.u8();
    let segments = 2 + u64::from(shape & 1);
    let first = 1 + u64::from(shape >> 1 & 3);
    let floor = (Seq(u64::from(shape >> 3 & 3)), Chain(0));
    let mut file = Memory(vec![0; (segments * SEGMENT_BYTES) as usize]);
    let (mut number, mut at) = (first, BLOCK_BYTES);
    let mut last = floor;
    let mut begin = true;
    while !input.is_empty() {
        let base = segment_offset(number, segments) as usize;
        if begin {
            let header = SegmentHeader {
                group: GROUP,
                number,
                first_seq: last.0.next(),
                previous_seq: last.0,
                previous_chain: last.1,
            };
            file.put(base, &header.encode());
            begin = false;
        }
        match input.u8() % 16 {
            0..=6 => {
                let record = input.record(last);
                // A writer's seqs ascend.
                if record.seq > last.0 && record.seq.0 < 1 << 62 {
                    file.put(base + at, &record.encode());
                    at += RECORD_BYTES;
                    last = (record.seq, record.chain);
                }
            }
            7 => at = at.next_multiple_of(BLOCK_BYTES),
            8 => file.flip(base * 8 + usize::from(input.u16())),
            9 => file.flip((base + at.saturating_sub(1 + usize::from(input.u8()))) * 8),
            10 => file.zero(base + at.saturating_sub(RECORD_BYTES), RECORD_BYTES),
            11 => file.zero(base, BLOCK_BYTES),
            12 => at += RECORD_BYTES * usize::from(input.u8()),
            13 => at += BLOCK_BYTES * usize::from(input.u8()),
            // A writer never takes the place of a segment that is still needed.
            14 if number + 1 < first + segments => {
                (number, at, begin) = (number + 1, BLOCK_BYTES, true);
            }
            _ => {
                let bytes = input.bytes(8);
                file.put(base + at, bytes);
            }
        }
        at = at.min(SEGMENT_BYTES as usize - RECORD_BYTES);
    }
    let Some((records, start)) = history_of(&file, segments, first, floor) else { return };
    let mut previous = floor;
    for (record, unbroken) in &records {
        let bytes = record.encode();
        assert!(file.0.chunks_exact(RECORD_BYTES).any(|slot| slot == bytes), "{record:?} stands nowhere");
        assert!(record.seq > previous.0, "{record:?} after {previous:?}");
        assert!(!unbroken || record.chain == record.chain_after(previous.1), "{record:?} continues nothing");
        assert!(!unbroken || record.op == Op::EpochStart || record.seq == previous.0.next());
        previous = (record.seq, record.chain);
    }
    assert_eq!(start.durable, previous.0);
    reached.many("record", records.len());
    reached.many("repair", start.repairs.len());
    reached.when("second segment", number > first && records.iter().any(|it| it.0.seq == last.0));
    reached.when("gap", records.iter().any(|it| !it.1));
    for repair in &start.repairs {
        let mut at = repair.offset as usize;
        for part in &repair.parts {
            assert!(at + part.len() <= (segments * SEGMENT_BYTES) as usize, "a repair outside the file");
            file.put(at, part);
            at += part.len();
        }
    }
    let (again, _) = history_of(&file, segments, first, floor).expect("a mended journal is readable");
    assert!(again == records, "mending lost or made up records: {records:?} became {again:?}");
}

/// Every entry found stands there whole under this nonce, at its own position; the disk FIFO's reader goes no further
/// than such entries reach.
pub fn spool(input: &[u8], reached: &mut Reached) {
    let mut input = Input::new(input);
    let shape = input.u8();
    let size = 16384 << (shape & 1);
    let floor = u64::from(shape >> 1 & 15) * 4096;
    // Some have grown, once or twice.
    let mut ring = Ring::plain(size);
    for (at, extension) in ring.extensions.iter_mut().enumerate().take(usize::from(shape >> 5) % 3) {
        *extension = Extension { from: floor + 4096 + at as u64 * (size + 8192), bytes: size };
    }
    let mut file = Memory(vec![0; ring.bytes() as usize]);
    let (mut pos, mut last) = (floor, (Seq(0), Chain(0)));
    while !input.is_empty() {
        match input.u8() % 10 {
            0..=5 => {
                let mut record = input.record(last);
                let how = input.u8();
                record.op = if how & 1 == 0 { Op::Write } else { record.op };
                let data = vec![how; if record.op == Op::Write { record.length as usize % 5000 } else { 0 }];
                if record.op == Op::Write {
                    record.length = data.len() as u64;
                    record.payload_crc = crc32fast::hash(&data);
                }
                let kind = if how & 2 == 0 { Kind::Payload } else { Kind::Chunk };
                let nonce = if how & 0x1c == 0x1c { NONCE + 1 } else { NONCE };
                let before = pos;
                pos = ring.place(pos, entry_bytes(data.len() as u64));
                let mut parts = Vec::new();
                let header = EntryHeader { pos, kind, index: u64::from(how >> 5), record, skipped: pos - before };
                encode_entry(&header, nonce, data.into(), &mut parts);
                file.put(ring.offset(pos) as usize, &parts.concat());
                pos += header.entry_bytes();
                last = (record.seq, record.chain);
            }
            6 => file.flip(usize::from(input.u16()) * 8 + 3),
            7 => file.zero(usize::from(input.u16()) & !511, 512),
            8 => pos += 512 * u64::from(input.u8()),
            _ => pos = pos.saturating_sub(512 * u64::from(input.u8() & 15)).max(floor),
        }
    }
    let mut news = Vec::new();
    let (found, torn) = scan_spool(&file, ring, floor, NONCE, &mut news).expect("memory does not fail");
    assert!(news.len() >= torn.len(), "what is not whole is named");
    let mut end = floor;
    for entry in &found {
        let header = &entry.header;
        assert!(header.pos >= end && header.pos < floor + ring.bytes(), "entries neither overlap nor leave the log");
        let at = ring.offset(header.pos) as usize;
        let bytes = Bytes::copy_from_slice(&file.0[at..at + entry.bytes as usize]);
        let (again, data) = decode_entry(&bytes, NONCE).expect("an entry that was found is whole");
        assert_eq!(again, *header);
        assert!(data.is_empty() || crc32fast::hash(&data) == header.record.payload_crc, "damaged data was found");
        end = header.pos + entry.bytes;
        reached.one("entry");
        reached.when("entry of an extension", ring.offset(header.pos) >= ring.size);
    }
    reached.many("torn", torn.len());
    // A disk FIFO does not grow.
    if ring.is_extended() {
        return;
    }
    let mut read = |offset: u64, length: usize| farshore::core::machine::ReadAt::read_at(&file, offset, length);
    let fifo::Scanned { end: until, last: seq, turn, damage } =
        fifo::scan(size, NONCE, floor, &mut read).expect("memory does not fail");
    assert!(until >= floor && until <= floor + 2 * size);
    assert!(turn.is_none_or(|turn| floor <= turn.from && turn.from < turn.to && turn.to <= until));
    assert_eq!(damage, None, "the log is shorter than what a crash may leave");
    if seq.0 > 0 {
        // The FIFO does not look at the padding, which it never reads.
        let holds = |at: usize| {
            let header = EntryHeader::decode(&file.0[at..at + 128], NONCE).ok();
            header.is_some_and(|header| {
                let data = at + 128..at + 128 + header.data_bytes() as usize;
                header.record.seq == seq && file.0.get(data).is_some_and(|data| header.verify_data(data).is_ok())
            })
        };
        assert!((0..file.0.len()).step_by(512).any(holds), "seq {seq} stands nowhere");
        reached.one("queue");
        reached.when("queue that went round", turn.is_some());
    }
}

/// The primary's directory after any crash: what it goes on from is in its files, or said to be lost.
pub fn intent(input: &[u8], reached: &mut Reached) {
    let mut input = Input::new(input);
    let shape = input.u8();
    let sizes = [4 << 20, 1 << 20];
    let volumes = vec![("a".to_owned(), sizes[0]), ("b".to_owned(), sizes[1])];
    let layout = LogLayout { slots: 1024 };
    let mut superblock = Superblock::new(Role::Primary);
    superblock.group = GROUP;
    superblock.group_name = "g".into();
    superblock.epoch = Epoch(1);
    superblock.volumes = volumes.iter().map(|(name, size)| (name_digest(name), *size)).collect();
    superblock.seq = Seq(1 << 20);
    superblock.boot_id = [1; 16];
    superblock.set(farshore::format::superblock::CLEAN, shape & 1 != 0);
    let mut slots = Memory(vec![0; 8192]);
    slots.put(superblock.offset() as usize, &superblock.encode());
    let mut map = Memory(vec![0; 3 * BLOCK_BYTES]);
    map.put(0, &MapHeader { group: GROUP, sizes_digest: sizes_digest(&sizes) }.encode());
    let mut log = Memory(vec![0; layout.total_bytes() as usize]);
    let boot_id = [if shape & 2 != 0 { 1 } else { 2 }; 16];
    log.put(0, &LogHeader { group: GROUP, owner: Owner(3), boot_id, slots: layout.slots }.encode());
    let (done, cut) = (u64::from(input.u8()), u64::from(input.u8()));
    let watermark = Watermark { local_done: Seq(done), cut: Seq(cut), coalescing: shape & 4 != 0, aux_skipped: Seq(0) };
    log.put(BLOCK_BYTES, &watermark.encode());
    let mut last = (Seq(u64::from(shape >> 3)), Chain(0));
    let mut pages = [Page::new(Volume(0), 0), Page::new(Volume(1), 0)];
    let (mut damaged, mut bits) = (false, false);
    while !input.is_empty() {
        match input.u8() % 8 {
            0..=3 => {
                let record = input.record(last);
                if record.seq.0 < 1 << 62 {
                    log.put(layout.record_offset(record.seq) as usize, &record.encode());
                    last = (record.seq, record.chain);
                }
            }
            4 => {
                let (volume, bit) = (usize::from(input.u8() & 1), u64::from(input.u8() & 15));
                pages[volume].set(bit);
                map.put((1 + volume) * BLOCK_BYTES, &pages[volume].encode());
                bits = true;
            }
            5 => log.flip(usize::from(input.u16()) * 8 + 5),
            6 => {
                map.flip(usize::from(input.u16()) * 8 + 5);
                damaged = true;
            }
            _ => log.zero(8192 + RECORD_BYTES * usize::from(input.u8()), RECORD_BYTES),
        }
    }
    let expect = recovery::Expect {
        group_name: "g".into(),
        volumes,
        boot_id: [1; 16],
        fifo_disk_bytes: 0,
        log_slots: 1024,
        fresh_group: GroupId(1),
        fresh_owner: Owner(1),
        fresh_nonce: 1,
    };
    let fifo = Memory(Vec::new());
    let files = recovery::Files { superblock: &slots, map: &map, log: &log, fifo: &fifo };
    let found = recovery::recover(&expect, &files).expect("a whole superblock is always gone on from");
    let holds = |seq: Seq| {
        log.0[8192..].chunks_exact(RECORD_BYTES).any(|slot| OrderRecord::decode(slot).is_ok_and(|it| it.seq == seq))
    };
    assert!(found.tail == superblock.seq || holds(found.tail), "seq {} stands nowhere", found.tail);
    let exact = shape & 3 != 0 && found.chain != Chain(0) || found.tail != superblock.seq;
    reached.when("tail", found.tail != superblock.seq);
    reached.when("exact", exact && !found.lost_any);
    reached.when("map", found.lost.bytes() > 0);
    reached.when("note", !found.notes.is_empty());
    if !exact {
        assert!(found.lost_any, "after a loss of power something is always copied");
        assert!(!bits || found.lost.bytes() > 0, "the map is not forgotten");
        assert!(!damaged || !found.notes.is_empty());
    }
    for (index, size) in sizes.iter().enumerate() {
        let ranges = found.lost.volume(Volume(index as u16));
        assert!(exact || ranges.into_iter().flat_map(|ranges| ranges.iter()).all(|(at, length)| at + length <= *size));
    }
}
