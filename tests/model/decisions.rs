//! Decisions over all their inputs: who may write (I7), and what a restart of the primary goes on from (I2).
//!
//! The expected answers are written down a second time, as a list of rules of which the first that applies counts.

use bytes::Bytes;
use farshore::core::fence::{Verdict, Writer, verdict};
use farshore::core::ids::{Chain, Epoch, GroupId, Owner, Seq, Volume};
use farshore::core::machine::{IoFail, ReadAt};
use farshore::core::modes::{Ack, Protect, Require};
use farshore::core::op::Op;
use farshore::dr::api::Options;
use farshore::dr::links::{self, Standing, judge};
use farshore::format::intent::{LogHeader, LogLayout, MapHeader, Page, Watermark, sizes_digest};
use farshore::format::record::OrderRecord;
use farshore::format::superblock::{CLEAN, NO_BOOT, PROMOTED, PROMOTING, Role, Superblock, name_digest};
use farshore::format::wire::{Hello, Purpose, RefuseCode};
use farshore::limits::{BLOCK_BYTES, SEQ_RESERVE_MAX};
use farshore::primary::recovery::{Expect, Files, Place, Recovered, recover};

#[test]
fn the_auxiliary_lets_one_writer_in_whoever_asks() {
    let epochs = [0, 1, 2, 3, u32::MAX - 1, u32::MAX];
    let writers = || {
        epochs.into_iter().flat_map(|epoch| [0, 1, 2].map(|owner| Writer { epoch: Epoch(epoch), owner: Owner(owner) }))
    };
    for stored in writers() {
        for asked in writers() {
            let let_in = matches!(verdict(stored, asked), Verdict::Advance | Verdict::Resume);
            assert_eq!(let_in, asked.epoch > stored.epoch || asked == stored, "{stored:?} {asked:?}");
            if !let_in {
                continue;
            }
            // Whoever was in force is out as soon as another one is in, and nobody of its epoch comes back.
            let back = verdict(asked, stored);
            assert!(
                stored == asked || matches!(back, Verdict::Fenced | Verdict::SecondPrimary),
                "{stored:?} {asked:?}"
            );
            for third in writers().filter(|third| third.epoch <= asked.epoch && *third != asked) {
                let verdict = verdict(asked, third);
                assert!(matches!(verdict, Verdict::Fenced | Verdict::SecondPrimary), "{third:?} beside {asked:?}");
            }
        }
    }
}

const SIZE: u64 = 4 << 20;

/// Every hello against every standing: 3 × 2 × 4 × 4 × 3 × 3 × 2 × 2 × 3 × 3 × 2 of them.
#[test]
fn dr_judges_every_hello_by_the_first_rule_that_applies() {
    let volumes = vec![("db".to_owned(), SIZE)];
    let options = Options {
        group_name: "g".into(),
        volumes: volumes.clone(),
        journal_bytes: 4 << 20,
        table_slots: 1024,
        spool_bytes: 1 << 20,
        spool_bytes_max: 1 << 20,
        cache_bytes: farshore::limits::DR_CACHE_BYTES_MAX,
        protect: Protect::Order,
        ack: Ack::Write,
        require: Require::Any,
        auxiliary: true,
        owner: Owner(9),
        nonce: 1,
    };
    let mut judged = 0;
    for case in 0..3 * 2 * 4 * 4 * 3 * 3 * 2 * 2 * 3 * 3 * 2 {
        let mut rest = case;
        let mut pick = |bound: usize| {
            let choice = rest % bound;
            rest /= bound;
            choice
        };
        let (group, name, volume, flags, epoch) = (pick(3), pick(2), pick(4), pick(4), pick(3));
        let (peer, ready, purpose, writer, tail) = (pick(3), pick(2) == 1, pick(2), pick(3), pick(3));
        let copied = pick(2) == 1;
        let mut superblock = Superblock { epoch: Epoch(5), ..Superblock::new(Role::Dr) };
        superblock.group = GroupId([0, 7, 8][group]);
        superblock.peer = Owner([0, 3, 4][peer]);
        superblock.set(PROMOTED, flags & 1 != 0);
        superblock.set(PROMOTING, flags & 2 != 0);
        let hello = Hello {
            purpose: [Purpose::Order, Purpose::Stream][purpose],
            group: GroupId(7),
            group_name: ["g", "h"][name].into(),
            epoch: Epoch([4, 5, 6][epoch]),
            owner: Owner(3),
            incarnation: 1,
            volumes: vec![(["db", "db", "db", "log"][volume].to_owned(), [SIZE, SIZE * 2, SIZE / 2, SIZE][volume])],
            tail: Seq([9, 10, 11][tail]),
        };
        let ours = links::Writer::of(&hello);
        let writer = [None, Some(ours), Some(links::Writer { incarnation: 2, ..ours })][writer];
        let sizes = copied.then_some(&[SIZE][..]);
        let here = Standing { superblock: &superblock, options: &options, sizes, tail: Seq(10), writer, ready };
        let rules = [
            (name == 1, RefuseCode::WrongGroup),
            (group == 2, RefuseCode::WrongGroup),
            (volume == 3 || volume == 2 && copied, RefuseCode::Volumes),
            (flags & 1 != 0, RefuseCode::Fenced),
            (flags & 2 != 0, RefuseCode::NotNow),
            (epoch == 0, RefuseCode::Fenced),
            (epoch == 1 && peer == 2, RefuseCode::SecondPrimary),
            (!ready, RefuseCode::NotNow),
            (purpose == 1 && writer != Some(ours), RefuseCode::NotNow),
            (purpose == 0 && tail == 0, RefuseCode::Protocol),
        ];
        let expected = rules.iter().find(|rule| rule.0).map(|rule| rule.1);
        let got = judge(&hello, &here).err();
        assert_eq!(got.as_ref().map(|refuse| refuse.code), expected, "{hello:?} at {superblock:?}");
        assert!(got.is_none_or(|refuse| refuse.epoch == Epoch(5) && !refuse.text.is_empty()));
        judged += 1;
    }
    assert_eq!(judged, 62208);
}

struct Memory(Vec<u8>);

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

/// A history of three writes, 64 KiB each in an extent of its own.
fn history() -> Vec<OrderRecord> {
    let mut chain = Chain(0);
    (0..3u64)
        .map(|index| {
            let record = OrderRecord {
                seq: Seq(index + 1),
                epoch: Epoch(1),
                volume: Volume(0),
                op: Op::Write,
                flags: 0,
                offset: index << 16,
                length: 4096,
                time_ns: 1,
                chain: Chain(0),
                payload_crc: 0,
            }
            .chained(chain);
            chain = record.chain;
            record
        })
        .collect()
}

/// Files of a directory, each whole or damaged in one way.
#[derive(Clone, Copy, Debug)]
struct Case {
    clean: bool,
    same_boot: bool,
    /// A disk failed the process that ran last.
    failed: bool,
    /// 0 whole, 1 header damaged, 2 watermark damaged, 3 no record is whole, 4 the oldest record is not, 5 the newest
    /// is not, 6 the newest is gone.
    log: usize,
    /// 0 whole, 1 header damaged, 2 its page damaged, 3 never written.
    map: usize,
    coalescing: bool,
    /// How far DR's cut and the local disk had come.
    settled: u64,
}

/// Died while its first superblock was written: nothing had left it. With a record in its log, something had.
#[test]
fn a_primary_whose_first_superblock_tore_starts_afresh() {
    let layout = LogLayout { slots: 1024 };
    let expect = Expect {
        group_name: "g".into(),
        volumes: vec![("db".to_owned(), SIZE)],
        boot_id: [1; 16],
        fifo_disk_bytes: 0,
        log_slots: 1024,
        fresh_group: GroupId(1),
        fresh_owner: Owner(1),
        fresh_nonce: 1,
    };
    for (written, second_slot) in [(false, false), (true, false), (false, true), (true, true)] {
        let block = Superblock { group_name: "g".into(), ..Superblock::new(Role::Primary) }.encode();
        let mut slots = vec![0; 2 * BLOCK_BYTES];
        slots[..512].copy_from_slice(&block[..512]);
        if second_slot {
            slots[BLOCK_BYTES..BLOCK_BYTES + 512].copy_from_slice(&block[..512]);
        }
        let mut log = vec![0; layout.total_bytes() as usize];
        if written {
            let first = history()[0];
            log[layout.record_offset(first.seq) as usize..][..64].copy_from_slice(&first.encode());
        }
        let (slots, log, none) = (Memory(slots), Memory(log), Memory(Vec::new()));
        let files = Files { superblock: &slots, map: &none, log: &log, fifo: &none };
        let afresh = recover(&expect, &files).is_ok_and(|found| found.tail == Seq(0) && !found.notes.is_empty());
        assert_eq!(afresh, !written && !second_slot, "written {written}, both slots damaged {second_slot}");
    }
}

/// The table in the doc of `primary::recovery`, over all its inputs.
#[test]
fn a_primary_goes_on_from_what_is_whole_and_copies_the_rest() {
    let mut cases = 0;
    for (log, map) in (0..7).flat_map(|log| (0..4).map(move |map| (log, map))) {
        for bits in 0..16 {
            for settled in 0..=3 {
                let (clean, same_boot, coalescing) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
                let failed = bits & 8 != 0;
                restart(Case { clean, same_boot, failed, log, map, coalescing, settled });
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 7 * 4 * 16 * 4);
}

fn restart(case: Case) {
    let group = GroupId(5);
    let volumes = vec![("db".to_owned(), SIZE)];
    let mut superblock =
        Superblock { group, group_name: "g".into(), epoch: Epoch(1), ..Superblock::new(Role::Primary) };
    superblock.volumes = vec![(name_digest("db"), SIZE)];
    superblock.seq = Seq(1 << 20);
    superblock.set(CLEAN, case.clean);
    superblock.boot_id = if case.failed { NO_BOOT } else { [1; 16] };
    let mut slots = vec![0; 8192];
    slots[superblock.offset() as usize..][..BLOCK_BYTES].copy_from_slice(&superblock.encode());

    let layout = LogLayout { slots: 1024 };
    let mut log = vec![0; layout.total_bytes() as usize];
    let boot_id = [if case.same_boot { 1 } else { 2 }; 16];
    log[..BLOCK_BYTES].copy_from_slice(&LogHeader { group, owner: Owner(3), boot_id, slots: 1024 }.encode());
    let settled = Seq(case.settled);
    let watermark = Watermark { local_done: settled, cut: settled, coalescing: case.coalescing, aux_skipped: Seq(0) };
    log[BLOCK_BYTES..2 * BLOCK_BYTES].copy_from_slice(&watermark.encode());
    for record in history() {
        log[layout.record_offset(record.seq) as usize..][..64].copy_from_slice(&record.encode());
    }
    match case.log {
        1 => log[20] ^= 1,
        2 => log[BLOCK_BYTES + 20] ^= 1,
        3 => (1..=3).for_each(|seq| log[layout.record_offset(Seq(seq)) as usize] ^= 1),
        4 => log[layout.record_offset(Seq(1)) as usize] ^= 1,
        5 => log[layout.record_offset(Seq(3)) as usize] ^= 1,
        6 => log[layout.record_offset(Seq(3)) as usize..][..64].fill(0),
        _ => {}
    }

    // The map knows of everything above the cut, and of one extent that is in no record of the log.
    let mut page = Page::new(Volume(0), 0);
    history().iter().filter(|record| record.seq > settled).for_each(|record| {
        page.set(record.offset >> 16);
    });
    page.set(10);
    let mut map = vec![0; 2 * BLOCK_BYTES];
    map[..BLOCK_BYTES].copy_from_slice(&MapHeader { group, sizes_digest: sizes_digest(&[SIZE]) }.encode());
    if case.map != 3 {
        map[BLOCK_BYTES..].copy_from_slice(&page.encode());
    }
    match case.map {
        1 => map[20] ^= 1,
        2 => map[BLOCK_BYTES + 100] ^= 1,
        _ => {}
    }

    let expect = Expect {
        group_name: "g".into(),
        volumes,
        boot_id: [1; 16],
        fifo_disk_bytes: 0,
        log_slots: 1024,
        fresh_group: GroupId(1),
        fresh_owner: Owner(1),
        fresh_nonce: 1,
    };
    let (slots, map, log, fifo) = (Memory(slots), Memory(map), Memory(log), Memory(Vec::new()));
    let files = Files { superblock: &slots, map: &map, log: &log, fifo: &fifo };
    let found = recover(&expect, &files).unwrap_or_else(|error| panic!("{case:?}: {error}"));

    let lost =
        |extent: u64| found.lost.iter().any(|it| it.offset <= extent << 16 && it.offset + it.length > extent << 16);
    // Only a watermark that says more tells a record that is gone from one that was never written.
    let shorter = case.log == 6 && case.settled < 3;
    let whole_log = matches!(case.log, 0 | 4) || shorter;
    let exact = !case.failed && (case.clean || case.same_boot) && whole_log;
    let last = if shorter { Seq(2) } else { Seq(3) };
    assert_eq!(found.tail, if exact { last } else { superblock.seq }, "{case:?}: where the seqs go on");
    let damaged_map = matches!(case.map, 1 | 2);
    // Whatever the local disk may hold and DR may not is copied, whatever else is damaged (I2) ...
    for record in history().iter().filter(|record| record.seq > settled) {
        // ... of which only a map that was never written and a log that says nothing know nothing: then no block changed.
        let known = case.map != 3 || exact && !(case.log == 4 && record.seq == Seq(1));
        let known = known && !(exact && record.seq > last);
        assert!(!known || lost(record.offset >> 16), "{case:?}: seq {} is forgotten", record.seq);
    }
    let whole_map = !exact || case.coalescing || case.log == 4 && case.settled == 0;
    assert_eq!(lost(10), whole_map && case.map != 3, "{case:?}: the map is used when the log does not reach back");
    assert_eq!(lost(60), whole_map && damaged_map, "{case:?}: a damaged map says that everything may differ");
    map_is_mended(case, &found, &expect, &files);
    assert!(
        !damaged_map && matches!(case.log, 0 | 4 | 6) || !found.notes.is_empty() || case.log == 3,
        "{case:?}: damage is told"
    );
}

/// What is written before the machine starts makes the map on disk say what the machine takes for durable, however the
/// next start reads what was damaged; of what is whole, nothing is written. A header vouches for pages before it is there.
fn map_is_mended(case: Case, found: &Recovered, expect: &Expect, files: &Files<'_>) {
    let mut whole = vec![0; 2 * BLOCK_BYTES];
    let header = MapHeader { group: GroupId(5), sizes_digest: sizes_digest(&[SIZE]) };
    whole[..BLOCK_BYTES].copy_from_slice(&header.encode());
    let written: Vec<u64> =
        found.format.iter().filter(|(place, ..)| *place == Place::Map).map(|(_, offset, _)| *offset).collect();
    let wanted = [vec![], vec![BLOCK_BYTES as u64, 0], vec![BLOCK_BYTES as u64], vec![]];
    assert_eq!(written, wanted[case.map], "{case:?}");
    for (_, offset, bytes) in found.format.iter().filter(|(place, ..)| *place == Place::Map) {
        whole[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }
    if matches!(case.map, 1 | 2) {
        let whole = Memory(whole);
        let again = recover(expect, &Files { map: &whole, ..*files }).expect("goes on");
        assert_eq!(again.intent.ranges(), found.intent.ranges(), "{case:?}");
    }
}

/// A flipped bit in either slot: both have the same, so that a start goes on as if nothing were damaged.
#[test]
fn a_primary_with_one_slot_of_its_superblock_goes_on_as_with_both() {
    let start = |clean: bool, same_boot: bool, damaged: Option<usize>| {
        let mut older =
            Superblock { group: GroupId(5), group_name: "g".into(), epoch: Epoch(1), ..Superblock::new(Role::Primary) };
        older.volumes = vec![(name_digest("db"), SIZE)];
        older.boot_id = [1; 16];
        older.seq = Seq(SEQ_RESERVE_MAX);
        older.set(CLEAN, clean);
        let newer = Superblock { generation: 2, ..older.clone() };
        let mut slots = vec![0; 8192];
        for slot in [&older, &newer] {
            slots[slot.offset() as usize..][..BLOCK_BYTES].copy_from_slice(&slot.encode());
        }
        damaged.iter().for_each(|slot| slots[slot * BLOCK_BYTES + 72] ^= 4);
        let layout = LogLayout { slots: 1024 };
        let mut log = vec![0; layout.total_bytes() as usize];
        let boot_id = [if same_boot { 1 } else { 2 }; 16];
        log[..BLOCK_BYTES]
            .copy_from_slice(&LogHeader { group: GroupId(5), owner: Owner(3), boot_id, slots: 1024 }.encode());
        let watermark = Watermark { local_done: Seq(3), cut: Seq(3), coalescing: false, aux_skipped: Seq(0) };
        log[BLOCK_BYTES..2 * BLOCK_BYTES].copy_from_slice(&watermark.encode());
        for record in history() {
            log[layout.record_offset(record.seq) as usize..][..64].copy_from_slice(&record.encode());
        }
        let expect = Expect {
            group_name: "g".into(),
            volumes: vec![("db".to_owned(), SIZE)],
            boot_id: [1; 16],
            fifo_disk_bytes: 0,
            log_slots: 1024,
            fresh_group: GroupId(1),
            fresh_owner: Owner(1),
            fresh_nonce: 1,
        };
        let (slots, log, none) = (Memory(slots), Memory(log), Memory(Vec::new()));
        recover(&expect, &Files { superblock: &slots, map: &none, log: &log, fifo: &none }).expect("goes on")
    };
    for (clean, same_boot) in [(true, false), (false, false), (false, true)] {
        let whole = start(clean, same_boot, None);
        for slot in [0, 1] {
            let found = start(clean, same_boot, Some(slot));
            assert_eq!((found.tail, found.lost_any), (whole.tail, whole.lost_any), "slot {slot}");
            assert_eq!(found.lost.iter().collect::<Vec<_>>(), whole.lost.iter().collect::<Vec<_>>());
            assert!(found.notes.iter().any(|note| note.contains("superblock")), "{:?}", found.notes);
        }
    }
}
