//! Directories of a primary as a restart finds them, one damage or one bound at a time; the table of the restart is in
//! `tests/model`.

use super::*;
use crate::core::ids::Extent;
use crate::core::op::Op;
use crate::format::intent::PAGE_COVERS_BYTES;
use crate::format::record::OrderRecord;
use crate::format::spool::{EntryHeader, Kind, encode_entry};

const GROUP: GroupId = GroupId(5);
const BOOT: [u8; 16] = [1; 16];
const NONCE: u64 = 77;
const FIFO_BYTES: u64 = 1 << 20;
/// Two reads of a MiB and a little.
const SLOTS: u64 = (2 << 20) / RECORD_BYTES as u64 + 100;
const EXTENT: u64 = crate::limits::INTENT_EXTENT_BYTES;

struct Memory(Vec<u8>);

impl Memory {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let (from, upto) = (offset as usize, offset as usize + bytes.len());
        self.0.resize(self.0.len().max(upto), 0);
        self.0[from..upto].copy_from_slice(bytes);
    }
}

impl ReadAt for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, IoFail> {
        let from = (offset as usize).min(self.0.len());
        let mut out = self.0[from..(from + length).min(self.0.len())].to_vec();
        out.resize(length, 0);
        Ok(out.into())
    }
}

/// A directory in which everything is whole, of a primary that was killed in this boot.
struct Directory {
    expect: Expect,
    superblock: Superblock,
    slots: Memory,
    map: Memory,
    log: Memory,
    fifo: Memory,
}

impl Directory {
    fn new(sizes: &[u64]) -> Directory {
        let volumes: Vec<(String, u64)> =
            (0..).zip(sizes).map(|(at, size): (u32, _)| (format!("v{at}"), *size)).collect();
        let mut superblock = Superblock { group: GROUP, group_name: "g".into(), ..Superblock::new(Role::Primary) };
        superblock.volumes = digests(&volumes);
        superblock.boot_id = BOOT;
        superblock.nonce = NONCE;
        superblock.seq = Seq(1 << 40);
        let expect = Expect {
            group_name: "g".into(),
            volumes,
            boot_id: BOOT,
            fifo_disk_bytes: FIFO_BYTES,
            log_slots: SLOTS,
            fresh_group: GroupId(1),
            fresh_owner: Owner(1),
            fresh_nonce: 1,
        };
        let none = || Memory(Vec::new());
        let (slots, map, log, fifo) = (none(), none(), none(), none());
        let mut directory = Directory { expect, superblock, slots, map, log, fifo };
        let header = LogHeader { group: GROUP, owner: Owner(3), boot_id: BOOT, slots: SLOTS };
        directory.log.put(LogLayout::HEADER_AT, &header.encode());
        directory.watermark(0, 0);
        directory.map_of(sizes);
        directory
    }

    /// A map without a bit set, laid out for volumes of these sizes.
    fn map_of(&mut self, sizes: &[u64]) {
        self.map = Memory(vec![0; MapLayout::new(sizes).total_bytes() as usize]);
        self.map.put(0, &MapHeader { group: GROUP, sizes_digest: sizes_digest(sizes) }.encode());
    }

    fn watermark(&mut self, local_done: u64, cut: u64) {
        let watermark =
            Watermark { local_done: Seq(local_done), cut: Seq(cut), coalescing: false, aux_skipped: Seq(0) };
        self.log.put(LogLayout::WATERMARK_AT, &watermark.encode());
    }

    fn record(&mut self, record: &OrderRecord) {
        self.log.put(LogLayout { slots: SLOTS }.record_offset(record.seq), &record.encode());
    }

    fn start(&mut self) -> Recovered {
        let block = self.superblock.encode();
        self.slots.put(self.superblock.offset(), &block);
        let files = Files { superblock: &self.slots, map: &self.map, log: &self.log, fifo: &self.fifo };
        recover(&self.expect, &files).expect("a directory that can be used")
    }
}

/// Writes of a sector, each in an extent of its own as long as there are any, seqs from `first`.
fn writes(first: u64, count: u64, size: u64) -> Vec<OrderRecord> {
    let mut chain = Chain(first);
    let one = |seq: u64| {
        let record = OrderRecord {
            seq: Seq(seq),
            epoch: Epoch(1),
            volume: Volume(0),
            op: Op::Write,
            flags: 0,
            offset: (seq - 1) * EXTENT % size,
            length: 512,
            time_ns: 1000 + seq,
            chain: Chain(0),
            payload_crc: 0,
        }
        .chained(chain);
        chain = record.chain;
        record
    };
    (first..first + count).map(one).collect()
}

fn offsets(lost: &Cover) -> Vec<u64> {
    lost.iter().map(|extent| extent.offset).collect()
}

/// Where in a ring of several reads the newest record stands, and whether the ring has gone round, changes nothing.
#[test]
fn every_record_of_a_long_log_is_found_wherever_it_stands() {
    let size = 1 << 40;
    for first in [1, SLOTS / 2, SLOTS - 1, SLOTS, SLOTS + 1] {
        for count in [1, 3, SLOTS / 2, SLOTS] {
            let mut directory = Directory::new(&[size]);
            let records = writes(first, count, size);
            records.iter().for_each(|record| directory.record(record));
            let last = records.last().expect("at least one");
            directory.watermark(last.seq.0, last.seq.0);
            let log =
                read_log(&directory.log, &directory.superblock, &mut Vec::new()).expect("readable").expect("whole");
            assert_eq!(log.records, records, "{count} from {first}");
        }
    }
}

/// A batch that goes ahead of writes that this life of the primary did not see leaves out no start or begin of before.
#[test]
fn what_ends_the_log_and_may_follow_a_gap_is_known_after_a_start() {
    for (ops, own_from) in [
        ([Op::Write, Op::EpochStart, Op::BatchBegin], 2),
        ([Op::EpochStart, Op::Write, Op::BatchBegin], 3),
        ([Op::EpochStart, Op::BatchBegin, Op::BatchEnd], 4),
        ([Op::EpochStart, Op::EpochStart, Op::BatchBegin], 1),
    ] {
        let mut directory = Directory::new(&[1 << 20]);
        let mut chain = Chain(7);
        for (mut record, op) in writes(1, 3, 1 << 20).into_iter().zip(ops) {
            if op != Op::Write {
                (record.op, record.offset, record.length) = (op, 0, 0);
            }
            record = record.chained(chain);
            chain = record.chain;
            directory.record(&record);
        }
        directory.watermark(3, 3);
        assert_eq!(directory.start().own_from, Seq(own_from), "{ops:?}");
    }
}

#[test]
fn a_log_is_believed_as_far_as_its_records_follow_one_another() {
    let size = 4 << 20;
    let records = writes(1, 9, size);
    let other = writes(5, 1, size);
    // What stands in the place of seq 5, and which seqs count then.
    for (fifth, from) in [(Some(&records[4]), 1), (Some(&other[0]), 6), (None, 6)] {
        let mut directory = Directory::new(&[size]);
        for record in &records {
            match fifth {
                _ if record.seq != Seq(5) => directory.record(record),
                Some(fifth) => directory.record(fifth),
                None => {}
            }
        }
        directory.watermark(9, 9);
        let found = directory.start();
        assert_eq!((found.log_first, found.tail, found.previous), (Seq(from), Seq(9), Seq(9)));
        assert_eq!(found.chain, records[8].chain);
        assert!(!found.lost_any, "DR has it all");
        assert_eq!((found.cut, found.oldest), (Seq(9), None));
    }
}

/// What the log says of the lag before the start: DR's cut, and the first write after it.
#[test]
fn the_lag_before_a_start_begins_with_the_first_write_that_dr_lacks() {
    let size = 4 << 20;
    for cut in 0..=9 {
        let mut directory = Directory::new(&[size]);
        writes(1, 9, size).iter().for_each(|record| directory.record(record));
        directory.watermark(9, cut);
        let found = directory.start();
        let oldest = (cut < 9).then_some((Seq(cut + 1), 1000 + cut + 1));
        assert_eq!((found.cut, found.oldest), (Seq(cut), oldest));
        assert_eq!(offsets(&found.lost), (cut..9).map(|at| at * EXTENT).collect::<Vec<_>>());
    }
}

/// A payload that the disk FIFO holds need not be copied; where the local disk may not hold what was written, it is all the
/// same, for DR has to get what this disk has.
#[test]
fn what_the_disk_fifo_holds_is_copied_only_where_the_local_disk_may_differ() {
    let size = 4 << 20;
    for (local_done, copied_from) in [(9, 7), (7, 7), (6, 7), (5, 6), (3, 4), (2, 3)] {
        let mut directory = Directory::new(&[size]);
        let (mut pos, mut chain) = (0, Chain(0));
        for record in writes(1, 9, size) {
            let record = OrderRecord { payload_crc: crc32fast::hash(&[7; 512]), ..record }.chained(chain);
            chain = record.chain;
            directory.record(&record);
            if (3..=6).contains(&record.seq.0) {
                let header = EntryHeader { pos, kind: Kind::Payload, index: 0, record, skipped: 0 };
                let mut parts = Vec::new();
                encode_entry(&header, NONCE, vec![7; 512].into(), &mut parts);
                let bytes = parts.concat();
                directory.fifo.put(pos, &bytes);
                pos += bytes.len() as u64;
            }
        }
        directory.fifo.0.resize(FIFO_BYTES as usize, 0);
        directory.watermark(local_done, 2);
        let found = directory.start();
        assert_eq!(found.fifo.bytes(), pos);
        let first = found.lost.iter().next().expect("seqs 7 to 9 are in no FIFO").offset;
        assert_eq!(first, (copied_from - 1) * EXTENT, "done up to {local_done}");
    }
}

/// The last sector of a volume is part of it.
#[test]
fn a_record_counts_up_to_the_end_of_its_volume_and_no_byte_further() {
    let sizes = [4 << 20, 1 << 20];
    let record = |volume: u16, offset: u64, length: u64| {
        let [record] = writes(1, 1, 4 << 20)[..] else { panic!("it is one") };
        OrderRecord { volume: Volume(volume), offset, length, ..record }
    };
    assert!(inside(&record(0, (4 << 20) - 512, 512), &sizes));
    assert!(!inside(&record(0, (4 << 20) - 512, 513), &sizes));
    assert!(inside(&record(1, 0, 1 << 20), &sizes));
    assert!(!inside(&record(1, 512, 1 << 20), &sizes));
    assert!(!inside(&record(2, 0, 512), &sizes));
    assert!(!inside(&record(0, u64::MAX - 100, 512), &sizes));
}

/// Pages of two volumes: damaged ones count as full and are written so, each in its place; all others are as they were.
#[test]
fn of_a_map_exactly_the_damaged_pages_are_mended() {
    let sizes = [5 * PAGE_COVERS_BYTES, 2 * PAGE_COVERS_BYTES];
    let layout = MapLayout::new(&sizes);
    let at = |page: u64| if page < 5 { (Volume(0), page) } else { (Volume(1), page - 5) };
    for damaged in 0..1u64 << 7 {
        let mut directory = Directory::new(&sizes);
        for page in 0..7 {
            let (volume, index) = at(page);
            let mut bits = Page::new(volume, index);
            bits.set(page);
            let mut bytes = bits.encode();
            bytes[100] ^= u8::from(damaged & 1 << page != 0);
            directory.map.put(layout.page_offset(volume, index), &bytes);
        }
        let found = directory.start();
        assert!(found.lost_any, "its log has no record");
        let mut mended = Memory(vec![0; layout.total_bytes() as usize]);
        for (_, offset, bytes) in found.format.iter().filter(|(place, ..)| *place == Place::Map) {
            mended.put(*offset, bytes);
        }
        let ranges = found.intent.ranges();
        for page in 0..7 {
            let ((volume, index), full) = (at(page), damaged & 1 << page != 0);
            let offset = layout.page_offset(volume, index);
            let written = &mended.0[offset as usize..][..BLOCK_BYTES];
            if full {
                assert_eq!(Page::decode(written), Ok(Page::full(volume, index)), "{damaged:b} {page}");
            } else {
                assert!(is_zero(written), "{damaged:b} {page}");
            }
            let extent = |bit: u64| Extent { volume, offset: MapLayout::offset_of(index, bit), length: EXTENT };
            assert!(ranges.contains(extent(page)));
            assert_eq!(ranges.contains(extent(page + 1)), full, "{damaged:b} {page}");
        }
        let notes = found.notes.iter().filter(|note| note.contains("of the intent map is damaged")).count();
        assert_eq!(notes, damaged.count_ones() as usize, "{:?}", found.notes);
    }
}

/// Without its header a map says nothing: all of it is written anew, in pieces that are bounded (I9), the header last.
#[test]
fn a_map_without_a_header_is_mended_in_bounded_pieces() {
    let pages = 2 * (MEND_BYTES / BLOCK_BYTES) as u64 + 3;
    let mut directory = Directory::new(&[pages * PAGE_COVERS_BYTES]);
    directory.map.0[20] ^= 1;
    let found = directory.start();
    let mut next = BLOCK_BYTES as u64;
    let pieces: Vec<&Piece> = found.format.iter().filter(|(place, ..)| *place == Place::Map).collect();
    let (header, pieces) = pieces.split_last().expect("it is mended");
    for (_, offset, bytes) in pieces {
        assert!(*offset == next && bytes.len() <= MEND_BYTES, "{} bytes at {offset}", bytes.len());
        next += bytes.len() as u64;
    }
    assert_eq!((pieces.len(), next), (3, (1 + pages) * BLOCK_BYTES as u64));
    assert_eq!((header.1, MapHeader::decode(&header.2).is_ok()), (0, true));
}

/// A page that was written to the place of another says nothing of either (I8).
#[test]
fn a_page_in_the_place_of_another_counts_as_damaged() {
    let sizes = [2 * PAGE_COVERS_BYTES, 2 * PAGE_COVERS_BYTES];
    let layout = MapLayout::new(&sizes);
    for (volume, index) in [(Volume(0), 0), (Volume(1), 1), (Volume(0), 1), (Volume(1), 0)] {
        let mut directory = Directory::new(&sizes);
        let mut page = Page::new(volume, index);
        page.set(3);
        directory.map.put(layout.page_offset(Volume(0), 1), &page.encode());
        let ranges = directory.start().intent.ranges();
        let second = Extent { volume: Volume(0), offset: PAGE_COVERS_BYTES, length: PAGE_COVERS_BYTES };
        assert_eq!(ranges.contains(second), (volume, index) != (Volume(0), 1), "{volume} {index}");
    }
}

#[test]
fn a_configuration_is_told_only_when_it_says_less_than_a_volume_has() {
    for (says, told) in [(1 << 20, true), (4 << 20, false), (8 << 20, false)] {
        let mut directory = Directory::new(&[4 << 20, 4 << 20]);
        directory.expect.volumes[1].1 = says;
        let found = directory.start();
        assert_eq!(found.notes.iter().any(|note| note.contains("volume v1 has 4194304")), told, "{:?}", found.notes);
        assert!(!found.notes.iter().any(|note| note.contains("volume v0")), "{:?}", found.notes);
        assert_eq!(found.superblock.volumes[1].1, 4 << 20, "the directory knows");
    }
}

/// Whatever counts stands in both slots: a damaged one takes neither a clean stop nor a resize along.
#[test]
fn a_slot_of_the_superblock_that_is_damaged_changes_nothing() {
    let (old, new) = (4 << 20, 7 << 20);
    for damaged in [false, true] {
        let mut directory = Directory::new(&[1 << 20, old]);
        writes(1, 3, 1 << 20).iter().for_each(|record| directory.record(record));
        directory.watermark(3, 3);
        // No client writes behind the old end before the map is laid out for that.
        directory.map_of(&[1 << 20, new]);
        directory.superblock.set(superblock::CLEAN, true);
        directory.superblock.resizing = Some((Volume(1), new));
        let older = Superblock { generation: 4, ..directory.superblock.clone() };
        directory.superblock.generation = 5;
        let mut bytes = older.encode();
        bytes[200] ^= u8::from(damaged);
        directory.slots.put(older.offset(), &bytes);
        let found = directory.start();
        assert_eq!((found.lost.iter().count(), found.lost_any, found.tail), (0, false, Seq(3)));
        let says = &found.superblock;
        assert_eq!((says.volumes[1].1, says.resizing), (old, Some((Volume(1), new))));
        assert_eq!((says.resized, says.seq), (Seq(0), Seq(1 << 40)));
        assert_eq!(found.notes.iter().any(|note| note.contains("superblock is damaged")), damaged);
    }
}

/// While a volume is resized the map has the layout of before or of after: both are read as what they are.
#[test]
fn a_map_is_read_as_it_is_laid_out_while_a_volume_is_resized() {
    let (old, new) = ([1 << 20, 1 << 20], [3 * PAGE_COVERS_BYTES, 1 << 20]);
    for sizes in [old, new] {
        let mut directory = Directory::new(&old);
        directory.superblock.resizing = Some((Volume(0), new[0]));
        directory.map_of(&sizes);
        let mut page = Page::new(Volume(1), 0);
        page.set(7);
        directory.map.put(MapLayout::new(&sizes).page_offset(Volume(1), 0), &page.encode());
        let found = directory.start();
        assert_eq!(found.intent.sizes(), sizes);
        let wanted = Extent { volume: Volume(1), offset: 7 * EXTENT, length: EXTENT };
        assert_eq!(found.intent.ranges().iter().collect::<Vec<_>>(), [wanted]);
    }
}

/// Of a first superblock that tore: one record anywhere in the log, and something had left this primary.
#[test]
fn a_record_anywhere_in_the_log_keeps_a_directory_from_being_taken_for_new() {
    let directory = Directory::new(&[4 << 20]);
    let block = directory.superblock.encode();
    let end = LogLayout { slots: SLOTS }.total_bytes();
    let places = [LogLayout::RECORDS_AT, (1 << 20) + LogLayout::RECORDS_AT, (1 << 20) + 5, (2 << 20) - 1, end - 1];
    for place in places.map(Some).into_iter().chain([None]) {
        let (mut slots, mut log) = (Memory(vec![0; 2 * BLOCK_BYTES]), Memory(vec![0; end as usize]));
        slots.put(BLOCK_BYTES as u64, &block[..512]);
        if let Some(place) = place {
            log.put(place, &[1]);
        }
        let none = Memory(Vec::new());
        let found = recover(&directory.expect, &Files { superblock: &slots, map: &none, log: &log, fifo: &none });
        assert_eq!(found.is_ok(), place.is_none(), "at {place:?}");
    }
}

/// The ring has gone round before DR had it all: then the map says what may differ, and it is copied if it is anything.
#[test]
fn where_the_log_does_not_reach_back_to_the_cut_the_map_is_copied() {
    let size = 4 << 20;
    for (first, cut, marked) in [(5, 2, true), (5, 2, false), (5, 4, true), (5, 3, true)] {
        let mut directory = Directory::new(&[size]);
        let mut page = Page::new(Volume(0), 0);
        page.set(60);
        if marked {
            directory.map.put(MapLayout::new(&[size]).page_offset(Volume(0), 0), &page.encode());
        }
        // Marks change nothing, so no record by itself makes anything differ.
        let mut chain = Chain(0);
        for record in writes(first, 3, size) {
            let record = OrderRecord { op: Op::Mark, offset: 0, length: 0, ..record }.chained(chain);
            chain = record.chain;
            directory.record(&record);
        }
        directory.watermark(7, cut);
        let found = directory.start();
        let copied = marked && first > cut + 1;
        assert_eq!(offsets(&found.lost), if copied { vec![60 * EXTENT] } else { vec![] }, "from {first}, cut {cut}");
        assert_eq!(found.lost_any, copied, "from {first}, cut {cut}");
        let told = found.notes.iter().any(|note| note.contains("every extent of the intent map is copied"));
        assert_eq!(told, first > cut + 1, "{:?}", found.notes);
    }
}

#[test]
fn a_log_of_another_group_or_with_an_end_that_is_lost_decides_nothing() {
    let size = 4 << 20;
    for (group, local_done, behind, believed) in [
        (GROUP, 3, 0, true),
        (GroupId(6), 3, 0, false),
        (GROUP, 4, 0, false),
        (GROUP, 3, 1, false),
        (GROUP, 4, 1, false),
    ] {
        let mut directory = Directory::new(&[size]);
        writes(1, 3, size).iter().for_each(|record| directory.record(record));
        let header = LogHeader { group, owner: Owner(3), boot_id: BOOT, slots: SLOTS };
        directory.log.put(LogLayout::HEADER_AT, &header.encode());
        directory.watermark(local_done, 3);
        directory.log.put(LogLayout { slots: SLOTS }.record_offset(Seq(4)), &[behind]);
        let found = directory.start();
        let tail = if believed { Seq(3) } else { directory.superblock.seq };
        assert_eq!(found.tail, tail, "group {group:?}, done {local_done}, {behind} behind the end");
        assert_eq!(found.notes.iter().any(|note| note.contains("the intent map decides")), !believed);
    }
}

/// Nothing is read, let alone written, of a directory that is another's.
#[test]
fn a_directory_of_another_role_group_or_set_of_volumes_is_refused_with_words() {
    let refused = |change: &dyn Fn(&mut Superblock)| {
        let mut directory = Directory::new(&[4 << 20, 1 << 20]);
        change(&mut directory.superblock);
        directory.slots.put(directory.superblock.offset(), &directory.superblock.encode());
        let Directory { expect, slots, map, log, fifo, .. } = &directory;
        recover(expect, &Files { superblock: slots, map, log, fifo }).err().map(|error| error.to_string())
    };
    assert_eq!(refused(&|_| ()), None);
    for (change, words) in [
        (&(|it: &mut Superblock| it.role = Role::Dr) as &dyn Fn(&mut Superblock), "the role dr"),
        (&|it| it.group_name = "other".into(), "group other"),
        (&|it| it.volumes.swap(0, 1), "other volumes, of [1048576, 4194304] bytes"),
        (&|it| it.volumes.truncate(1), "other volumes, of [4194304] bytes"),
    ] {
        let text = refused(change).expect("refused");
        assert!(text.contains(words), "{text}");
    }
    assert_eq!(refused(&|it| it.volumes[0].1 = 8 << 20), None, "its sizes the directory knows better");
}

/// A promoted DR: everything goes on from what it was promoted with, and nothing is to be copied yet.
#[test]
fn a_promoted_directory_begins_after_its_tail() {
    let directory = Directory::new(&[4 << 20]);
    let found = promoted(&directory.expect, GROUP, Owner(8), Epoch(6), Seq(40), Chain(9));
    let says = &found.superblock;
    assert_eq!((says.group, says.owner, says.epoch), (GROUP, Owner(8), Epoch(6)));
    assert_eq!((found.tail, found.previous, found.chain, found.log_first), (Seq(40), Seq(40), Chain(9), Seq(41)));
    assert!(!found.lost_any && found.intent.ranges().is_empty() && found.fifo.is_empty());
    let at = |place: Place, offset: u64| {
        let piece = found.format.iter().find(|(of, at, _)| (*of, *at) == (place, offset));
        piece.map(|(.., bytes)| bytes.clone()).expect("it is written")
    };
    let map = MapHeader::decode(&at(Place::Map, 0)).expect("whole");
    assert_eq!(map, MapHeader { group: GROUP, sizes_digest: sizes_digest(&[4 << 20]) });
    let log = LogHeader::decode(&at(Place::Log, LogLayout::HEADER_AT)).expect("whole");
    assert_eq!((log.group, log.owner, log.boot_id, log.slots), (GROUP, Owner(8), BOOT, SLOTS));
    let watermark = Watermark::decode(&at(Place::Log, LogLayout::WATERMARK_AT)).expect("whole");
    assert_eq!((watermark.local_done, watermark.cut, watermark.coalescing), (Seq(40), Seq(40), false));
}

/// A primary on an NBD server was told of a loss of power that nobody had seen, at each start after a kill.
#[test]
fn what_is_said_of_a_log_that_is_not_relied_upon_is_so() {
    let drawn = [superblock::drawn_boot(7), superblock::drawn_boot(u128::MAX)];
    for (before, now, words) in [
        (BOOT, BOOT, None),
        (BOOT, [2; 16], Some("the machine lost power or was restarted")),
        (drawn[0], drawn[1], Some("the NBD server of a volume may")),
        (BOOT, drawn[0], Some("the NBD server of a volume may")),
        (drawn[0], BOOT, Some("the NBD server of a volume may")),
    ] {
        for clean in [false, true] {
            let mut directory = Directory::new(&[1 << 30]);
            let header = LogHeader { group: GROUP, owner: Owner(3), boot_id: before, slots: SLOTS };
            directory.log.put(LogLayout::HEADER_AT, &header.encode());
            writes(1, 1, 1 << 30).iter().for_each(|record| directory.record(record));
            directory.superblock.boot_id = before;
            directory.superblock.set(superblock::CLEAN, clean);
            directory.expect.boot_id = now;
            let said = directory.start().notes.join("\n");
            let wanted = words.filter(|_| !clean);
            assert_eq!(said.contains("is not relied upon"), wanted.is_some(), "{said}");
            assert!(wanted.is_none_or(|words| said.contains(words)), "{words:?}: {said}");
            let power = said.contains("the machine lost power or was restarted");
            assert_eq!(power, wanted.is_some_and(|words| words.starts_with("the machine")), "{said}");
        }
    }
}
