//! Each kind of file, sound and with a flipped bit.

use bytes::Bytes;

use super::*;
use crate::core::ids::{Chain, Epoch, GroupId, Owner, Seq, Volume};
use crate::core::op::Op;
use crate::format::journal::SegmentHeader;
use crate::format::spool::{EntryHeader, Kind, encode_entry, entry_bytes};
use crate::format::superblock::{Role, SUPERBLOCK_BYTES, Superblock};
use crate::format::table::{Heartbeat, SlotState, State, TableHeader, TableLayout};
use crate::limits::{BLOCK_BYTES, RECORD_BYTES, SEGMENT_BYTES};

const NONCE: u64 = crate::format::spool::sized_nonce(0x1234, 1 << 20);

/// A directory that is removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("farshore-inspect-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the temporary directory is writable");
        Directory(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).expect("the temporary directory is writable");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What is printed as JSON lines, and whether it was all sound.
fn inspect(what: What, path: &Path) -> (Vec<Value>, bool) {
    let mut out = Vec::new();
    let sound = run(&Inspect { what, path: path.into(), nonce: None, json: true }, &mut out).is_ok();
    let text = String::from_utf8(out).expect("text");
    (text.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect(), sound)
}

fn kinds(lines: &[Value]) -> Vec<&str> {
    lines.iter().filter_map(|line| line["kind"].as_str()).collect()
}

fn history(count: u64) -> Vec<OrderRecord> {
    let mut chain = Chain(0);
    (1..=count)
        .map(|seq| {
            let record = OrderRecord {
                seq: Seq(seq),
                epoch: Epoch(1),
                volume: Volume(0),
                op: Op::Write,
                flags: 0,
                offset: seq * 4096,
                length: 100,
                time_ns: 1_000_000_000,
                chain: Chain(0),
                payload_crc: crc32fast::hash(&payload(seq)),
            }
            .chained(chain);
            chain = record.chain;
            record
        })
        .collect()
}

fn payload(seq: u64) -> Bytes {
    Bytes::from(vec![seq as u8; 100])
}

fn superblock() -> Vec<u8> {
    let mut bytes = vec![0; SUPERBLOCK_BYTES];
    let block = Superblock { generation: 4, nonce: NONCE, group_name: "orders".into(), ..Superblock::new(Role::Dr) };
    let at = usize::try_from(block.offset()).expect("one of two slots");
    bytes[at..at + BLOCK_BYTES].copy_from_slice(&block.encode()[..]);
    bytes
}

fn journal() -> Vec<u8> {
    let mut bytes = vec![0; 2 * SEGMENT_BYTES as usize];
    let header = SegmentHeader {
        group: GroupId(7),
        number: 2,
        first_seq: Seq(1),
        previous_seq: Seq(0),
        previous_chain: Chain(0),
    };
    bytes[..BLOCK_BYTES].copy_from_slice(&header.encode()[..]);
    for (index, record) in history(5).iter().enumerate() {
        let at = BLOCK_BYTES + index * RECORD_BYTES;
        bytes[at..at + RECORD_BYTES].copy_from_slice(&record.encode());
    }
    bytes
}

#[test]
fn a_superblock_shows_what_is_in_force_and_what_is_damaged() {
    let dir = Directory::new("superblock");
    let mut bytes = superblock();
    let (lines, sound) = inspect(What::Superblock, &dir.write("superblock", &bytes));
    assert!(sound);
    assert_eq!((&lines[0]["group"], &lines[0]["in_force"]), (&json!("orders"), &json!(true)));
    bytes[100] ^= 1;
    let (lines, sound) = inspect(What::Superblock, &dir.write("superblock", &bytes));
    assert!(!sound);
    assert_eq!((&lines[0]["kind"], &lines[0]["at"]), (&json!("DAMAGE"), &json!(0)));
    let (lines, sound) = inspect(What::Superblock, &dir.write("short", &bytes[..5000]));
    assert!(!sound && lines[0]["text"].as_str().is_some_and(|text| text.contains("5000 bytes")));
}

#[test]
fn a_file_that_is_no_superblock_is_not_called_one_that_was_never_written() {
    let dir = Directory::new("no-superblock");
    let (lines, sound) = inspect(What::Superblock, &dir.write("fresh", &[0; 8192]));
    assert!(sound && lines[0]["text"] == json!("never written"));
    // As a journal begins.
    let (lines, sound) = inspect(What::Superblock, &dir.write("journal", &vec![0; 1 << 20]));
    assert!(!sound);
    assert_eq!(kinds(&lines), ["DAMAGE", "DAMAGE"]);
    assert!(damages(&lines)[1].1.contains("no superblock"), "{lines:?}");
    let appended = [superblock(), vec![7; 5000]].concat();
    let (lines, sound) = inspect(What::Superblock, &dir.write("superblock", &appended));
    assert!(!sound && damages(&lines)[0].1.contains("13192 bytes"), "{lines:?}");
    assert!(lines.iter().any(|line| line["in_force"] == json!(true)), "{lines:?}");
}

#[test]
fn in_the_directory_of_a_primary_the_spool_is_its_disk_fifo() {
    let dir = Directory::new("fifo");
    dir.write("superblock", &superblock());
    let (header, mut parts) =
        (EntryHeader { pos: 0, kind: Kind::Payload, index: 0, record: history(1)[0], skipped: 0 }, Vec::new());
    encode_entry(&header, NONCE, payload(header.record.seq.0), &mut parts);
    let mut bytes = parts.concat();
    bytes.resize(1 << 20, 0);
    dir.write("fifo", &bytes);
    let (lines, sound) = inspect(What::Spool, &dir.0);
    assert!(sound, "{lines:?}");
    assert_eq!(kinds(&lines), ["payload", "note"]);
}

#[test]
fn a_journal_goes_on_behind_damage_and_ends_where_an_older_life_begins() {
    let dir = Directory::new("journal");
    let mut bytes = journal();
    let (lines, sound) = inspect(What::Journal, &dir.write("journal", &bytes));
    assert!(sound);
    assert_eq!(kinds(&lines), ["segment", "record", "record", "record", "record", "record", "note"]);
    // A record of an older life behind the fifth.
    let stale = OrderRecord { seq: Seq(3), ..history(3)[2] }.encode();
    let at = BLOCK_BYTES + 5 * RECORD_BYTES;
    bytes[at..at + RECORD_BYTES].copy_from_slice(&stale);
    let (lines, sound) = inspect(What::Journal, &dir.write("journal", &bytes));
    assert!(sound);
    assert_eq!(kinds(&lines)[6..], ["note", "note"]);
    bytes[BLOCK_BYTES + RECORD_BYTES + 20] ^= 4;
    let (lines, sound) = inspect(What::Journal, &dir.write("journal", &bytes));
    assert!(!sound);
    assert_eq!(kinds(&lines)[..6], ["segment", "record", "DAMAGE", "record", "record", "record"]);
    assert_eq!(lines[2]["at"], json!(BLOCK_BYTES + RECORD_BYTES));
}

#[test]
fn a_spool_is_read_with_the_superblock_beside_it_and_its_data_verified() {
    let dir = Directory::new("spool");
    let mut parts = Vec::new();
    let mut pos = 0;
    for record in history(3) {
        encode_entry(
            &EntryHeader { pos, kind: Kind::Payload, index: 0, record, skipped: 0 },
            NONCE,
            payload(record.seq.0),
            &mut parts,
        );
        pos += entry_bytes(100);
    }
    let mut bytes = parts.concat();
    bytes.resize(1 << 20, 0);
    let path = dir.write("spool", &bytes);
    assert!(!inspect(What::Spool, &path).1, "without a superblock nothing can be told");
    dir.write("superblock", &superblock());
    let (lines, sound) = inspect(What::Spool, &dir.0);
    assert!(sound);
    assert_eq!(kinds(&lines), ["payload", "payload", "payload", "note"]);
    bytes[usize::try_from(entry_bytes(100)).expect("small") + 130] ^= 1;
    let (lines, sound) = inspect(What::Spool, &dir.write("spool", &bytes));
    assert!(!sound);
    assert_eq!(kinds(&lines), ["payload", "DAMAGE", "payload", "note"]);
    assert_eq!(lines[1]["at"], json!(entry_bytes(100)));
}

/// A superblock that says the spool beside it was made with a MiB, and stands at `from`.
fn sized(from: u64) -> (Vec<u8>, u64) {
    let nonce = crate::format::spool::sized_nonce(77, 1 << 20);
    let mut bytes = vec![0; SUPERBLOCK_BYTES];
    let block = Superblock { generation: 4, nonce, spool_pos: from, ..Superblock::new(Role::Dr) };
    let at = usize::try_from(block.offset()).expect("one of two slots");
    bytes[at..at + BLOCK_BYTES].copy_from_slice(&block.encode()[..]);
    (bytes, nonce)
}

fn damages(lines: &[Value]) -> Vec<(u64, String)> {
    let damaged = lines.iter().filter(|line| line["kind"] == "DAMAGE");
    damaged.map(|line| (line["at"].as_u64().unwrap_or(0), line["text"].to_string())).collect()
}

#[test]
fn a_spool_that_was_cut_or_overwritten_is_damaged_and_one_that_was_never_filled_is_not() {
    let dir = Directory::new("spool-cut");
    let (superblock, nonce) = sized(0);
    dir.write("superblock", &superblock);
    let empty = vec![0; 1 << 20];
    assert!(inspect(What::Spool, &dir.write("spool", &empty)).1, "never filled");
    let mut whole = empty.clone();
    let entry = usize::try_from(entry_bytes(100)).expect("small");
    for record in history(4) {
        let mut parts = Vec::new();
        let at = (record.seq.0 as usize - 1) * entry;
        let header = EntryHeader { pos: at as u64, kind: Kind::Payload, index: 0, record, skipped: 0 };
        encode_entry(&header, nonce, payload(record.seq.0), &mut parts);
        whole[at..at + entry].copy_from_slice(&parts.concat());
    }
    assert!(inspect(What::Spool, &dir.write("spool", &whole)).1);
    for cut in [0, 700, whole.len() / 2] {
        let (lines, sound) = inspect(What::Spool, &dir.write("spool", &whole[..cut]));
        let found = damages(&lines);
        assert!(!sound && found[0].0 == cut as u64 && found[0].1.contains("was made with 1048576"), "{found:?}");
    }
    let garbled: Vec<u8> = (0..1u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8 | 1).collect();
    let (lines, sound) = inspect(What::Spool, &dir.write("spool", &garbled));
    assert!(!sound && damages(&lines)[0].1.contains("not one entry"), "{lines:?}");
    // The header of the second entry: what follows proves that it was there.
    let mut torn = whole.clone();
    torn[entry + 20] ^= 1;
    let found = damages(&inspect(What::Spool, &dir.write("spool", &torn)).0);
    assert_eq!((found.len(), found[0].0), (1, entry as u64), "{found:?}");
    assert!(found[0].1.contains(&format!("{entry} bytes from position {entry} on hold no entry")), "{found:?}");
    // That of the last.
    let mut torn = whole;
    torn[3 * entry + 20] ^= 1;
    let found = damages(&inspect(What::Spool, &dir.write("spool", &torn)).0);
    assert_eq!((found.len(), found[0].0), (1, 3 * entry as u64), "{found:?}");
}

#[test]
fn a_spool_of_a_later_round_is_sound_with_what_earlier_rounds_left() {
    let dir = Directory::new("spool-round");
    let (superblock, nonce) = sized((1 << 20) + 1024);
    dir.write("superblock", &superblock);
    // Payload bytes of an earlier round everywhere, one entry of it, and one live entry.
    let mut bytes = vec![9; 1 << 20];
    for (pos, record) in [(2048, history(1)[0]), ((1 << 20) + 1024, history(2)[1])] {
        let mut parts = Vec::new();
        encode_entry(
            &EntryHeader { pos, kind: Kind::Payload, index: 0, record, skipped: 0 },
            nonce,
            payload(record.seq.0),
            &mut parts,
        );
        let at = usize::try_from(pos % (1 << 20)).expect("small");
        bytes[at..at + parts.concat().len()].copy_from_slice(&parts.concat());
    }
    let (lines, sound) = inspect(What::Spool, &dir.write("spool", &bytes));
    assert!(sound, "{lines:?}");
    assert_eq!(kinds(&lines), ["payload", "note"]);
}

#[test]
fn a_journal_that_was_cut_overwritten_or_emptied_is_damaged() {
    let dir = Directory::new("journal-cut");
    let whole = journal();
    for cut in [0, 1, 1 << 20, (1 << 20) + 5000] {
        let (lines, sound) = inspect(What::Journal, &dir.write("journal", &whole[..cut]));
        assert!(!sound && damages(&lines)[0].0 == cut as u64, "{cut}: {lines:?}");
    }
    assert!(inspect(What::Journal, &dir.write("journal", &vec![0; 2 << 20])).1, "never used");
    for at in [BLOCK_BYTES + 6 * RECORD_BYTES, SEGMENT_BYTES as usize + 9000] {
        let mut bytes = whole.clone();
        bytes[at] = 1;
        let (lines, sound) = inspect(What::Journal, &dir.write("journal", &bytes));
        assert!(!sound && damages(&lines)[0].0 == at as u64, "{at}: {lines:?}");
    }
    let mut block = Superblock { generation: 1, seq: Seq(5), ..Superblock::new(Role::Dr) }.encode()[..].to_vec();
    block.splice(..0, [0; BLOCK_BYTES]);
    dir.write("superblock", &block);
    assert!(inspect(What::Journal, &dir.write("journal", &whole)).1);
    let (lines, sound) = inspect(What::Journal, &dir.write("journal", &vec![0; 2 << 20]));
    assert!(!sound && damages(&lines)[0].1.contains("speaks of seq 5"), "{lines:?}");
}

#[test]
fn a_table_that_was_cut_before_its_slots_is_damaged() {
    let dir = Directory::new("table-cut");
    let bytes = table(&TableLayout::new(1024, 1 << 20));
    for cut in [0, 100, 5000, 40_000] {
        let (lines, sound) = inspect(What::Table, &dir.write("table", &bytes[..cut]));
        assert!(!sound && damages(&lines)[0].0 == cut as u64, "{cut}: {lines:?}");
    }
    assert!(inspect(What::Table, &dir.write("table", &vec![0; bytes.len()])).1, "never formatted");
    let mut bad = bytes;
    bad[30] ^= 1;
    let (lines, sound) = inspect(What::Table, &dir.write("table", &bad));
    assert!(!sound && lines.last().is_some_and(|line| line["text"].to_string().contains("16 KiB")), "{lines:?}");
}

fn table(layout: &TableLayout) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(layout.total_bytes()).expect("small")];
    let mut put = |at: u64, part: &[u8]| {
        let at = usize::try_from(at).expect("small");
        bytes[at..at + part.len()].copy_from_slice(part);
    };
    put(0, &TableHeader::new(GroupId(7), layout).encode()[..]);
    let beat = Heartbeat { epoch: Epoch(1), owner: Owner(1), counter: 1, wall_ns: 1, floor: Seq(1), tail: Seq(3) };
    put(8192, &beat.encode()[..]);
    for (record, pos) in history(3).iter().zip([0, 512, 1024]) {
        put(layout.record_offset(record.seq), &record.encode());
        let state = SlotState { seq: record.seq, state: State::Queued, payload_pos: pos };
        put(layout.state_offset(record.seq), &state.encode());
        let mut parts = Vec::new();
        let header = EntryHeader { pos, kind: Kind::Payload, index: 0, record: *record, skipped: 0 };
        encode_entry(&header, 7, payload(record.seq.0), &mut parts);
        put(layout.payload_offset(pos), &parts.concat());
    }
    bytes
}

#[test]
fn a_table_shows_slots_from_the_floor_on_and_verifies_payloads() {
    let dir = Directory::new("table");
    let layout = TableLayout::new(1024, 1 << 20);
    let mut bytes = table(&layout);
    let (lines, sound) = inspect(What::Table, &dir.write("table", &bytes));
    assert!(sound, "{lines:?}");
    assert_eq!(kinds(&lines), ["header", "note", "heartbeat", "slot", "slot", "slot"]);
    assert_eq!((&lines[3]["seq"], &lines[3]["state"]), (&json!(2), &json!("queued")));
    bytes[usize::try_from(layout.payload_offset(1024)).expect("small") + 200] ^= 1;
    bytes[usize::try_from(layout.state_offset(Seq(1))).expect("small")] ^= 1;
    let (lines, sound) = inspect(What::Table, &dir.write("table", &bytes));
    assert!(!sound);
    assert_eq!(kinds(&lines).iter().filter(|kind| **kind == "DAMAGE").count(), 2, "{lines:?}");
}

#[test]
fn any_bytes_at_all_are_inspected_without_a_panic() {
    let dir = Directory::new("garbage");
    dir.write("superblock", &superblock());
    let mut garbage = vec![0; 3 << 20];
    let mut state = 1u64;
    for byte in &mut garbage {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 56) as u8;
    }
    for bytes in [&garbage[..], &garbage[..777], &[], &b"FSHTABLE"[..]] {
        for what in [What::Journal, What::Table, What::Spool, What::Superblock] {
            let _ = inspect(what, &dir.write("garbage", bytes));
        }
    }
}

#[test]
fn nothing_is_modified_and_a_missing_file_is_named() {
    let dir = Directory::new("readonly");
    let path = dir.write("journal", &journal());
    let before = std::fs::metadata(&path).and_then(|metadata| metadata.modified()).expect("a time");
    inspect(What::Journal, &path);
    assert_eq!(std::fs::read(&path).expect("still there"), journal());
    assert_eq!(std::fs::metadata(&path).and_then(|metadata| metadata.modified()).expect("a time"), before);
    let missing = Inspect { what: What::Spool, path: dir.0.join("none"), nonce: None, json: false };
    let failure = run(&missing, &mut Vec::new()).expect_err("no file");
    assert!(failure.text.contains("none: there is no such file"), "{}", failure.text);
}
