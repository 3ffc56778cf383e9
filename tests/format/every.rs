//! One table of every format there is: each single-bit flip and each truncation of each is detected, or the row says
//! which bits are harmless and why. A format that is added without a row fails here.

use bytes::Bytes;
use farshore::cluster::losses::{Entry, Missing, MissingWrites};
use farshore::cluster::status::PromoteReport;
use farshore::core::ids::{Chain, Epoch, GroupId, Owner, Seq, Volume};
use farshore::core::op::Op;
use farshore::dr::promote::LossReport;
use farshore::dr::stored;
use farshore::format::intent::{LogHeader, MapHeader, Page, Watermark};
use farshore::format::journal::SegmentHeader;
use farshore::format::record::OrderRecord;
use farshore::format::spool::{EntryHeader, Kind, decode_entry, encode_entry};
use farshore::format::superblock::{Role, Superblock, read_slots};
use farshore::format::table::{Fence, Heartbeat, NO_PAYLOAD, SlotState, State, TableHeader, TableLayout};
use farshore::format::wire;

use crate::wire::{golden, rope_of};
use crate::{DATA, hex, write_record};

const NONCE: u64 = 0x0123_4567_89ab_cdef;

/// What became of damaged bytes.
enum Read {
    Refused,
    /// More bytes are waited for: nothing is believed.
    Incomplete,
    Accepted,
}

type Reader = Box<dyn Fn(&[u8]) -> Read>;

struct Format {
    name: String,
    /// File of `src` whose reader it is, and how many readers (`fn decode…`) of that file this row stands for.
    source: (&'static str, usize),
    bytes: Vec<u8>,
    read: Reader,
}

fn format(
    name: &str,
    source: &'static str,
    bytes: impl Into<Vec<u8>>,
    read: impl Fn(&[u8]) -> bool + 'static,
) -> Format {
    let read = move |bytes: &[u8]| if read(bytes) { Read::Accepted } else { Read::Refused };
    Format { name: name.to_owned(), source: (source, 1), bytes: bytes.into(), read: Box::new(read) }
}

fn formats() -> Vec<Format> {
    let (group, owner, epoch) = (GroupId(0x2002), Owner(0x3003), Epoch(7));
    let layout = TableLayout::new(1024, 1 << 20);
    let mut page = Page::new(Volume(1), 2);
    page.set(77);
    let volumes = vec![(11, 1 << 30), (12, 1 << 20)];
    let superblock =
        Superblock { group_name: "orders".into(), group, owner, epoch, volumes, ..Superblock::new(Role::Dr) };
    let state = SlotState { seq: Seq(9), state: State::Sent, payload_pos: NO_PAYLOAD };
    let segment = SegmentHeader { group, number: 3, first_seq: Seq(5), previous_seq: Seq(4), previous_chain: Chain(6) };
    let heartbeat = Heartbeat { epoch, owner, counter: 1, wall_ns: 2, floor: Seq(3), tail: Seq(4) };
    let log = LogHeader { group, owner, boot_id: [9; 16], slots: 1024 };
    let watermark = Watermark { local_done: Seq(5), cut: Seq(4), coalescing: false, aux_skipped: Seq(0) };
    let mut rows = vec![
        format("order record", "format/record.rs", write_record().encode(), |b| OrderRecord::decode(b).is_ok()),
        format("superblock", "format/superblock.rs", superblock.encode(), |b| Superblock::decode(b).is_ok()),
        format("segment header", "format/journal.rs", segment.encode(), |b| SegmentHeader::decode(b).is_ok()),
        format("table header", "format/table.rs", TableHeader::new(group, &layout).encode(), |b| {
            TableHeader::decode(b).is_ok()
        }),
        format("fence", "format/table.rs", Fence { epoch, owner }.encode(), |b| Fence::decode(b).is_ok()),
        format("heartbeat", "format/table.rs", heartbeat.encode(), |b| Heartbeat::decode(b).is_ok()),
        format("slot state", "format/table.rs", state.encode(), |b| SlotState::decode(b).is_ok()),
        format("intent map header", "format/intent.rs", MapHeader { group, sizes_digest: 5 }.encode(), |b| {
            MapHeader::decode(b).is_ok()
        }),
        format("intent map page", "format/intent.rs", page.encode(), |b| Page::decode(b).is_ok()),
        format("intent log header", "format/intent.rs", log.encode(), |b| LogHeader::decode(b).is_ok()),
        format("intent log watermark", "format/intent.rs", watermark.encode(), |b| Watermark::decode(b).is_ok()),
        entry(),
        loss_report(),
        packed_orders(),
    ];
    rows.extend(golden().into_iter().map(|(message, bytes)| frame(message.kind_name(), hex(bytes))));
    rows
}

/// By its first bytes a file is known that a role keeps, so that it is not taken for a volume.
#[test]
fn each_file_of_a_role_is_known_by_how_it_begins() {
    let known = |bytes: &[u8]| bytes.first_chunk().and_then(farshore::core::identity::kept).is_some();
    let named: Vec<String> = formats().iter().filter(|it| known(&it.bytes)).map(|it| it.name.clone()).collect();
    let files = ["superblock", "segment header", "table header", "intent map header", "intent log header", "log entry"];
    assert_eq!(named, files);
}

fn entry() -> Format {
    let header = EntryHeader { pos: 512, kind: Kind::Payload, index: 0, record: write_record(), skipped: 0 };
    let mut parts = Vec::new();
    encode_entry(&header, NONCE, Bytes::from_static(DATA), &mut parts);
    let read = |b: &[u8]| decode_entry(&Bytes::copy_from_slice(b), NONCE).is_ok();
    // Two readers: the one of its header alone, which the whole one calls first.
    Format { source: ("format/spool.rs", 2), ..format("log entry", "", parts.concat(), read) }
}

fn loss_report() -> Format {
    let missing = Entry {
        seq: Seq(8),
        offset: 0,
        length: 4096,
        time_ns: 1,
        volume: Volume(0),
        op: Op::Write,
        state: Missing::Sent,
    };
    let missing = MissingWrites::new(vec!["db".into()], vec![missing]);
    let report = PromoteReport { group: "orders".into(), missing, ..PromoteReport::default() };
    let report = LossReport { group_id: GroupId(5), tail_chain: Chain(6), report };
    format("loss report", "dr/stored.rs", stored::encode(&report).expect("plain data"), |b| stored::decode(b).is_ok())
}

/// One row for each message; all of them are read by one reader, in two steps.
fn frame(name: &str, bytes: Vec<u8>) -> Format {
    let read = |bytes: &[u8]| match wire::decode(&mut rope_of(bytes)) {
        Ok(Some(_)) => Read::Accepted,
        Ok(None) => Read::Incomplete,
        Err(_) => Read::Refused,
    };
    Format { name: format!("frame: {name}"), source: ("format/wire/decode.rs", 0), bytes, read: Box::new(read) }
}

/// Records as the link packs them; the reader has no name that begins with `decode`.
fn packed_orders() -> Format {
    let mut previous = write_record();
    let mut records = vec![previous];
    for step in 0..5 {
        let next = OrderRecord { seq: previous.seq.next(), offset: step << 12, ..previous };
        previous = next.chained(previous.chain);
        records.push(previous);
    }
    let message = wire::Message::Orders(records);
    Format { source: ("format/wire/decode.rs", 2), ..frame("orders, packed", crate::wire::bytes_of(&message)) }
}

#[test]
fn every_flip_of_every_format_is_detected() {
    for Format { name, mut bytes, read, .. } in formats() {
        assert!(matches!(read(&bytes), Read::Accepted), "{name}: undamaged");
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            // No bit is harmless: what is not checksummed is compared, reserved bytes and padding included. A longer
            // frame that is waited for would be harmless; the checksum of its header does not let it come to that.
            assert!(matches!(read(&bytes), Read::Refused), "{name}: a flip of bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn every_truncation_of_every_format_is_detected() {
    for Format { name, bytes, read, .. } in formats() {
        for length in 0..bytes.len() {
            assert!(!matches!(read(&bytes[..length]), Read::Accepted), "{name}: cut to {length} bytes");
        }
        let stream = name.starts_with("frame");
        let longer = [&bytes[..], &[0]].concat();
        assert!(stream || matches!(read(&longer), Read::Refused), "{name}: a byte too many");
    }
}

/// Zeroes mean "never written" to whoever reads a slot: no reader takes them for something.
#[test]
fn zeroes_are_no_format() {
    for Format { name, bytes, read, .. } in formats() {
        assert!(!matches!(read(&vec![0; bytes.len()]), Read::Accepted), "{name}");
    }
}

/// Two generations of a superblock: no flip anywhere makes up a third, and what was damaged is told.
#[test]
fn every_flip_of_two_superblocks_leaves_one_of_them() {
    let of = |generation| Superblock { generation, seq: Seq(generation), ..Superblock::new(Role::Primary) };
    let mut bytes = [of(4).encode(), of(5).encode()].concat();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let slots = read_slots(&bytes);
        bytes[bit / 8] ^= 1 << (bit % 8);
        // A version is told from damage only under a valid checksum, so every flip is damage.
        let slots = slots.unwrap_or_else(|error| panic!("bit {bit}: {error}"));
        assert_eq!(slots.newest, Some(of(if bit / 8 < 4096 { 5 } else { 4 })), "bit {bit}");
        assert!(slots.damaged.is_some(), "bit {bit} is not told");
    }
}

/// Every file of `src` that reads stored or sent bytes has its rows: as many as it has functions called `decode…`.
#[test]
fn no_format_is_forgotten() {
    fn walk(directory: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
        for path in std::fs::read_dir(directory).expect("src").flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                walk(&path, found);
            } else {
                found.push(path);
            }
        }
    }
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&source, &mut files);
    let rows = formats();
    for path in files {
        let text = std::fs::read_to_string(&path).expect("text");
        let name = path.strip_prefix(&source).expect("found there").to_string_lossy().into_owned();
        // NBD has no checksums: TCP and the replication of what it carries are its protection (tests/interop, tests/fuzz).
        if name.starts_with("nbd/") {
            continue;
        }
        let readers = text.lines().filter(|line| line.contains("fn decode")).count();
        let covered: usize = rows.iter().filter(|row| row.source.0 == name).map(|row| row.source.1).sum();
        assert_eq!(covered, readers, "{name}: readers of bytes without a row in tests/format/every.rs");
    }
    let kinds = golden().iter().map(|(message, _)| message.kind_name()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(kinds.len(), 19, "every kind of message has its row");
}
