//! Records, headers, entries and states.

use bytes::Bytes;
use farshore::core::ids::{Chain, Epoch, Extent, GroupId, Owner, Seq, Volume};
use farshore::core::op::Op;
use farshore::format::intent::{LogHeader, LogLayout, MapHeader, MapLayout, PAGE_BITS, Page, Watermark};
use farshore::format::journal::{SEGMENT_RECORDS, SegmentHeader, SegmentRecords, segment_offset};
use farshore::format::record::OrderRecord;
use farshore::format::ring::{Extension, Extensions};
use farshore::format::spool::{self, EntryHeader, Kind, decode_entry, encode_entry, entry_bytes};
use farshore::format::superblock::{
    self, BLANK, CLEAN, DAMAGED, DIRECT, FORCED, MARKED, PROMOTED, PROMOTING, Role, SETTLED, SYNCED, Superblock,
};
use farshore::format::table::{Fence, Heartbeat, NO_PAYLOAD, SlotState, State, TableHeader, TableLayout};
use farshore::format::{FormatError, is_zero};
use farshore::limits::{
    BLOCK_BYTES, INTENT_EXTENT_BYTES, NAME_BYTES_MAX, TABLE_SLOTS_DEFAULT, TABLE_SLOTS_MAX, TABLE_SLOTS_MIN,
};

use crate::{DATA, check, hex, sparse, write_record, zeroes_record};

const NONCE: u64 = 0xabcd_ef01_2345_6789;

#[test]
fn order_record() {
    let golden = hex(
        "08070605040302011413121122210101383736353433323108000000000000005857565554535251686766656463626183da373b0000\
         0000000000006d0f3be2",
    );
    check(&write_record(), &write_record().encode(), &golden, OrderRecord::decode);
}

/// 1 GiB becomes 3 GiB.
#[test]
fn order_record_of_a_resize() {
    let value = OrderRecord { op: Op::Resize, offset: 1 << 30, length: 3 << 30, payload_crc: 0, ..write_record() };
    let golden =
        hex("080706050403020114131211222108010000004000000000000000c0000000005857565554535251686766656463626100000000\
         0000000000000000b64ad66d");
    check(&value, &value.encode(), &golden, OrderRecord::decode);
    assert_eq!((value.new_size(), value.end()), (Some(3 << 30), Some(Some(3 << 30))));
    let added = Extent { volume: value.volume, offset: 1 << 30, length: 2 << 30 };
    assert_eq!((value.extent(), value.changes_volume(), value.payload_bytes()), (Some(added), true, 0));
    let says = OrderRecord { offset: value.length, ..value };
    assert_eq!((says.extent(), says.changes_volume(), says.new_size()), (None, false, Some(3 << 30)));
}

#[test]
fn a_superblock_resizes_a_volume_that_there_is() {
    let whole = Superblock { volumes: vec![(1, 512); 2], ..Superblock::new(Role::Primary) };
    let resizing = |volume, size| {
        let mut block = Superblock { resizing: Some((Volume(1), 1024)), ..whole.clone() }.encode();
        block[1256..1264].copy_from_slice(&u64::to_le_bytes(size));
        block[1264..1266].copy_from_slice(&u16::to_le_bytes(volume));
        let crc = crc32fast::hash(&block[..4092]);
        block[4092..].copy_from_slice(&crc.to_le_bytes());
        Superblock::decode(&block).map(|it| (it.resizing, it.sizes_to_be()))
    };
    assert_eq!(resizing(1, 1024), Ok((Some((Volume(1), 1024)), vec![512, 1024])));
    assert_eq!(resizing(0, 0), Ok((None, vec![512, 512])));
    assert!(matches!(resizing(2, 1024), Err(FormatError::Field { .. })), "there is no third volume");
    assert!(matches!(resizing(1, 0), Err(FormatError::Field { .. })), "to nothing");
}

/// Of what the spool has grown by: where each is entered, and its bytes.
fn extensions(of: &[(u64, u64)]) -> Extensions {
    let mut extensions = Extensions::default();
    for (at, &(from, bytes)) in of.iter().enumerate() {
        extensions[at] = Extension { from, bytes };
    }
    extensions
}

#[test]
fn a_spool_has_grown_by_itself_some_whole_times() {
    let size = 4 << 20;
    let whole = Superblock { nonce: spool::sized_nonce(7, size), ..Superblock::new(Role::Dr) };
    let extended = |from: u64, bytes: u64| {
        let mut block = whole.clone().encode();
        block[1272..1280].copy_from_slice(&from.to_le_bytes());
        block[1280..1288].copy_from_slice(&bytes.to_le_bytes());
        let crc = crc32fast::hash(&block[..4092]);
        block[4092..].copy_from_slice(&crc.to_le_bytes());
        Superblock::decode(&block).map(|it| it.extensions)
    };
    assert_eq!(extended(0, 0), Ok(Extensions::default()));
    for (from, times) in [(0, 1), (512, 3)] {
        assert_eq!(extended(from, times * size), Ok(extensions(&[(from, times * size)])));
    }
    for (from, bytes) in [(512, 0), (511, size), (0, size + 512), (0, size / 2), (0, 1 << 44)] {
        assert!(matches!(extended(from, bytes), Err(FormatError::Field { .. })), "{bytes} bytes at {from}");
    }
}

#[test]
fn chain_of_a_record_depends_on_all_of_it_and_on_the_one_before() {
    let record = write_record().chained(Chain(1));
    assert_eq!(record.chain, record.chain_after(Chain(1)), "the chain of a record does not depend on itself");
    assert_ne!(record.chain, record.chain_after(Chain(2)));
    for other in [
        OrderRecord { seq: Seq(1), ..record },
        OrderRecord { epoch: Epoch(1), ..record },
        OrderRecord { volume: Volume(1), ..record },
        OrderRecord { op: Op::Trim, ..record },
        OrderRecord { op: Op::Resize, ..record },
        OrderRecord { flags: 0, ..record },
        OrderRecord { offset: 0, ..record },
        OrderRecord { length: 1, ..record },
        OrderRecord { time_ns: 0, ..record },
        OrderRecord { payload_crc: 0, ..record },
    ] {
        assert_ne!(other.chain_after(Chain(1)), record.chain, "{other:?}");
    }
    assert_eq!(write_record().chain_after(Chain(7)), Chain(0x18a8_f408_8fa8_457a), "the chain is a format too");
}

#[test]
fn superblock() {
    let value = Superblock {
        generation: 0x1001,
        role: Role::Dr,
        group: GroupId(0x2002),
        group_name: "group".into(),
        owner: Owner(0x3003),
        peer: Owner(0x4004),
        epoch: Epoch(0x55),
        flags: superblock::SYNCED | superblock::PROMOTED | superblock::BLANK | superblock::DAMAGED,
        boot_id: std::array::from_fn(|i| i as u8 + 1),
        seq: Seq(0x7007),
        chain: Chain(0x8008),
        batch: Seq(0x9009),
        spool_pos: 0xa00a,
        nonce: 0xb00b,
        journal_segment: 0xc00c,
        target_epoch: Epoch(0x66),
        volumes: vec![(0xd00d, 0xe00e), (0xf00f, 0x1111)],
        promised_cut: Seq(0x1212),
        promised_tail: Seq(0x1313),
        suspect_until: Seq(0x1414),
        journal_bytes: 0x1515,
        resized: Seq(0x1616),
        resizing: Some((Volume(1), 0x1717)),
        extensions: extensions(&[(0x1800, 0xb00b << 20), (0x1c_0000_0000, 0xb00b << 21)]),
    };
    let golden = sparse(
        4096,
        &[
            (
                0,
                "46534853555045520400030565000000011000000000000002200000000000000330000000000000044000000000000055000000\
                 660000000102030405060708090a0b0c0d0e0f100770000000000000088000000000000009900000000000000aa0000000000000\
                 0bb00000000000000cc0000000000000020000000000000067726f7570",
            ),
            (192, "0dd00000000000000ee00000000000000ff00000000000001111"),
            (
                1216,
                "1212000000000000131300000000000014140000000000001515000000000000161600000000000017170000000000000100000000000000\
                 00180000000000000000b0000b000000000000001c0000000000600116000000",
            ),
            (4092, "20eb315b"),
        ],
    );
    check(&value, &value.encode(), &golden, Superblock::decode);
    assert_eq!(superblock::name_digest(""), 0x2d06_8005_38d3_94c2, "XXH3 of nothing");
}

#[test]
fn a_superblock_holds_the_longest_name_and_refuses_a_longer_one() {
    let value = Superblock { generation: 1, group_name: "n".repeat(NAME_BYTES_MAX), ..Superblock::new(Role::Dr) };
    let mut block = value.encode();
    assert_eq!(Superblock::decode(&block), Ok(value));
    for length in NAME_BYTES_MAX as u8 + 1..=u8::MAX {
        block[11] = length;
        let crc = crc32fast::hash(&block[..4092]);
        block[4092..].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(Superblock::decode(&block), Err(FormatError::Field { .. })), "{length} bytes");
    }
}

#[test]
fn a_flag_of_a_superblock_is_set_and_cleared_without_the_others() {
    let flags = [superblock::SYNCED, superblock::PROMOTED, superblock::BLANK];
    for one in flags {
        let mut block = Superblock::new(Role::Dr);
        for _ in 0..2 {
            block.set(one, true);
            assert_eq!(flags.map(|flag| block.has(flag)), flags.map(|flag| flag == one));
        }
        for other in flags.into_iter().filter(|other| *other != one) {
            block.set(other, true);
            assert!(block.has(one) && block.has(one | other));
            block.set(other, false);
            block.set(other, false);
            assert!(block.has(one) && !block.has(one | other));
        }
    }
}

#[test]
fn journal_segment_header() {
    let value = SegmentHeader {
        group: GroupId(0x2002),
        number: 3,
        first_seq: Seq(0x4004),
        previous_seq: Seq(0x5005),
        previous_chain: Chain(0x6006),
    };
    let golden = sparse(
        4096,
        &[
            (0, "4653484a4f55524e010000000000000002200000000000000300000000000000044000000000000005500000000000000660"),
            (508, "3bcb39bb"),
        ],
    );
    check(&value, &value.encode(), &golden, SegmentHeader::decode);
    assert_eq!((segment_offset(7, 4), SEGMENT_RECORDS), (3 << 20, 16320));
}

#[test]
fn records_of_a_segment_skip_to_the_next_block_and_end_at_a_zero_one() {
    let mut segment = vec![0; 4 * BLOCK_BYTES];
    let mut put = |at: usize, seq: u64| {
        let record = OrderRecord { seq: Seq(seq), ..zeroes_record() };
        segment[at..at + 64].copy_from_slice(&record.encode());
    };
    put(4096, 1);
    put(4096 + 64, 2);
    put(4096 + 192, 99);
    put(8192, 3);
    put(3 * 4096 + 64, 98);
    segment[8192 + 64] = 1;
    let found: Vec<_> = SegmentRecords::new(&segment).map(|(at, read)| (at, read.map(|r| r.seq.0).ok())).collect();
    assert_eq!(found, [(4096, Some(1)), (4160, Some(2)), (8192, Some(3)), (8256, None)]);
    assert_eq!(SegmentRecords::new(&segment[..4096 + 100]).count(), 1, "a segment cut short ends there");
    assert_eq!(SegmentRecords::new(&[]).count(), 0);
}

#[test]
fn spool_entry_with_data() {
    let header = EntryHeader { pos: 0x10200, kind: Kind::Payload, index: 0, record: write_record(), skipped: 0 };
    let golden = sparse(
        512,
        &[
            (
                0,
                "465348454e545259010001000000000000020100000000000000000000000000080706050403020114131211222101013837363534\
                 33323108000000000000005857565554535251686766656463626183da373b00000000000000006d0f3be2",
            ),
            (124, "86e93a7766617273686f7265"),
        ],
    );
    check_entry(&header, DATA, &golden);
}

#[test]
fn spool_entry_without_data() {
    let header = EntryHeader { pos: 0x200, kind: Kind::Chunk, index: 7, record: zeroes_record(), skipped: 0 };
    let golden = sparse(
        512,
        &[
            (
                0,
                "465348454e5452590100020000000000000200000000000007000000000000000900000000000000020000000100020200100000000000\
                 0000200000000000000700000000000000\
                 05",
            ),
            (92, "6fc860b9"),
            (124, "03802916"),
        ],
    );
    check_entry(&header, b"", &golden);
}

fn check_entry(header: &EntryHeader, data: &'static [u8], golden: &[u8]) {
    let mut parts = Vec::new();
    encode_entry(header, NONCE, Bytes::from_static(data), &mut parts);
    let value = (*header, Bytes::from_static(data));
    check(&value, &parts.concat(), golden, |bytes| decode_entry(&Bytes::copy_from_slice(bytes), NONCE));
    for foreign in [0, NONCE ^ 1, NONCE ^ (1 << 63), NONCE.swap_bytes()] {
        let read = EntryHeader::decode(&golden[..spool::ENTRY_HEADER_BYTES], foreign);
        assert_eq!(read, Err(FormatError::Checksum { what: "log entry" }), "an entry of another log");
    }
    assert!(header.verify_data(b"farshorf").is_err() && header.verify_data(b"farshor").is_err());
}

#[test]
fn an_entry_holds_only_what_can_be_in_it() {
    let decode = |kind, record| {
        EntryHeader::decode(&EntryHeader { pos: 0, kind, index: 0, record, skipped: 0 }.encode(NONCE), NONCE).is_ok()
    };
    let sized = |length| OrderRecord { length, ..write_record() };
    assert!(decode(Kind::Payload, sized(32 << 20)) && decode(Kind::Chunk, sized(1)));
    assert!(!decode(Kind::Payload, sized((32 << 20) + 1)), "no data longer than a payload is believed");
    assert!(!decode(Kind::Payload, zeroes_record()));
    assert!(decode(Kind::Chunk, zeroes_record()));
    assert!(!decode(Kind::Chunk, OrderRecord { op: Op::Trim, ..zeroes_record() }));
    let askew = EntryHeader { pos: 511, kind: Kind::Payload, index: 0, record: write_record(), skipped: 0 };
    assert!(EntryHeader::decode(&askew.encode(NONCE), NONCE).is_err());
    for (skipped, fits) in [(0, true), (512, true), (4096, true), (4608, false), (511, false)] {
        let turned = EntryHeader { pos: 4096, skipped, ..askew };
        assert_eq!(
            EntryHeader::decode(&turned.encode(NONCE), NONCE).is_ok(),
            fits,
            "{skipped} bytes before position 4096"
        );
    }
}

#[test]
fn spool_entry_behind_bytes_that_were_passed_over() {
    let header = EntryHeader { pos: 0x10200, kind: Kind::Payload, index: 0, record: write_record(), skipped: 0x0200 };
    let encoded = header.encode(NONCE);
    let plain = EntryHeader { skipped: 0, ..header }.encode(NONCE);
    let differs: Vec<usize> = (0..124).filter(|at| encoded[*at] != plain[*at]).collect();
    assert_eq!((differs, encoded[97], EntryHeader::decode(&encoded, NONCE)), (vec![97], 2, Ok(header)));
}

#[test]
fn entries_never_wrap() {
    assert_eq!((entry_bytes(0), entry_bytes(384), entry_bytes(385)), (512, 512, 1024));
    assert_eq!(spool::place(0, 4096, 4096), 0);
    assert_eq!(spool::place(512, 4096, 4096), 4096);
    assert_eq!(spool::place(4096 + 3584, 4096, 512), 4096 + 3584);
    assert_eq!(spool::place(4096 + 3584, 4096, 1024), 8192);
}

#[test]
fn status_table_header() {
    let layout = TableLayout::new(1000, 10_000);
    let value = TableHeader::new(GroupId(0x2002), &layout);
    let golden = sparse(
        4096,
        &[
            (
                0,
                "4653485441424c450100000000000000022000000000000000040000000000000040000000000000004001000000000000c0010000\
                 0000000020",
            ),
            (508, "1fed02ca"),
        ],
    );
    check(&value, &value.encode(), &golden, TableHeader::decode);
    assert_eq!(value.layout(), layout);
    for wrong in [
        TableHeader { slots: 1025, ..value },
        TableHeader { slots: 0, ..value },
        TableHeader { slots: u64::MAX, ..value },
        TableHeader { states_at: value.states_at + 64, ..value },
        TableHeader { records_at: u64::MAX, ..value },
        TableHeader { payload_bytes: u64::MAX, ..value },
    ] {
        assert!(TableHeader::decode(&wrong.encode()).is_err(), "{wrong:?}");
    }
}

#[test]
fn status_table_layout_has_no_overlaps() {
    for (slots, payload) in [(0, 0), (TABLE_SLOTS_DEFAULT, 1 << 30), (TABLE_SLOTS_MIN + 1, 4097), (u64::MAX, u64::MAX)]
    {
        let layout = TableLayout::new(slots, payload);
        assert!((TABLE_SLOTS_MIN..=TABLE_SLOTS_MAX).contains(&layout.slots));
        let last = Seq(layout.slots - 1);
        assert_eq!(layout.record_offset(last) + 64, layout.states_at);
        assert_eq!(layout.state_offset(last) + 32, layout.payload_at);
        assert_eq!(layout.record_offset(Seq(layout.slots)), layout.records_at);
        assert_eq!(layout.total_bytes(), layout.payload_at + layout.payload_bytes);
        assert!(layout.total_bytes().is_multiple_of(BLOCK_BYTES as u64));
        if payload > 0 {
            assert_eq!(layout.payload_offset(layout.payload_bytes + 512), layout.payload_at + 512);
        }
        assert_eq!(TableLayout::fitting(layout.total_bytes(), layout.payload_bytes), Some(layout));
    }
    assert_eq!(TableLayout::fitting(TableLayout::new(0, 0).total_bytes() - 1, 0), None);
    assert_eq!(TableLayout::fitting(0, u64::MAX), None);
}

#[test]
fn status_table_fence() {
    let value = Fence { epoch: Epoch(9), owner: Owner(0x3003) };
    let golden = sparse(4096, &[(0, "46534846454e43450100000000000000033000000000000009"), (508, "7e01f639")]);
    check(&value, &value.encode(), &golden, Fence::decode);
}

#[test]
fn status_table_heartbeat() {
    let value =
        Heartbeat { epoch: Epoch(9), owner: Owner(0x3003), counter: 4, wall_ns: 0x5005, floor: Seq(6), tail: Seq(7) };
    let golden = sparse(
        4096,
        &[
            (
                0,
                "465348484541525401000000000000000330000000000000040000000000000005500000000000000600000000000000070000000000\
                 000009",
            ),
            (508, "8035b88a"),
        ],
    );
    check(&value, &value.encode(), &golden, Heartbeat::decode);
    assert!(Heartbeat::decode(&Heartbeat { floor: Seq(8), ..value }.encode()).is_err(), "floor ≤ tail");
    assert!(Heartbeat::decode(&Heartbeat { floor: Seq(7), ..value }.encode()).is_ok(), "nothing waits");
}

#[test]
fn status_table_slot_state() {
    let value = SlotState { seq: Seq(0x1234), state: State::Sent, payload_pos: 0x10200 };
    let golden = hex("34120000000000000002010000000000020000000000000000000000b542f65f");
    check(&value, &value.encode(), &golden, SlotState::decode);
    for state in [State::Queued, State::Sent, State::Copied] {
        let value = SlotState { state, payload_pos: NO_PAYLOAD, ..value };
        assert_eq!(SlotState::decode(&value.encode()), Ok(value));
    }
    assert!(is_zero(&[0; 32]) && SlotState::decode(&[0; 32]).is_err(), "an unused slot has no state");
}

#[test]
fn intent_map_header() {
    let value = MapHeader { group: GroupId(0x2002), sizes_digest: 0x1234 };
    let golden = sparse(4096, &[(0, "465348494d415048010000000000000002200000000000003412"), (508, "49d2c8c1")]);
    check(&value, &value.encode(), &golden, MapHeader::decode);
}

#[test]
fn intent_map_page() {
    let mut value = Page::new(Volume(3), 5);
    assert!(value.is_empty());
    assert!(value.set(0) && value.set(3) && value.set(PAGE_BITS - 1) && value.set(9) && !value.set(9));
    assert!(value.clear(9) && !value.clear(9));
    let golden = sparse(4096, &[(0, "4653494d0100030005"), (28, "f5b11d9a09"), (4095, "80")]);
    check(&value, &value.encode(), &golden, Page::decode);
    assert_eq!(value.iter().collect::<Vec<_>>(), [0, 3, PAGE_BITS - 1]);
    assert!(value.get(3) && !value.get(9) && !value.is_empty());
    assert_eq!(Page::full(Volume(0), 0).iter().count() as u64, PAGE_BITS);
}

#[test]
fn intent_map_layout_gives_each_extent_its_bit() {
    let sizes = [1, INTENT_EXTENT_BYTES * (PAGE_BITS + 1), 0, 1 << 40];
    let layout = MapLayout::new(&sizes);
    assert_eq!((0..4).map(|v| layout.volume_pages(Volume(v))).collect::<Vec<_>>(), [1, 2, 0, 517]);
    assert_eq!(layout.page_offset(Volume(1), 0), 2 * 4096);
    assert_eq!(layout.page_offset(Volume(3), 516) + 4096, layout.total_bytes());
    assert_eq!(MapLayout::locate(INTENT_EXTENT_BYTES * PAGE_BITS + 5), (1, 0));
    assert_eq!(MapLayout::locate(INTENT_EXTENT_BYTES * 7), (0, 7));
    assert_eq!(MapLayout::offset_of(1, 0), INTENT_EXTENT_BYTES * PAGE_BITS);
    assert_eq!(MapLayout::locate(MapLayout::offset_of(2, 9)), (2, 9));
}

#[test]
fn intent_log_header() {
    let value = LogHeader {
        group: GroupId(0x2002),
        owner: Owner(0x3003),
        boot_id: std::array::from_fn(|i| i as u8 + 1),
        slots: 1024,
    };
    let golden = sparse(
        4096,
        &[
            (
                0,
                "465348494c4f474801000000000000000220000000000000033000000000000000040000000000000102030405060708090a0b0c0d0e\
                 0f10",
            ),
            (508, "7306d7f9"),
        ],
    );
    check(&value, &value.encode(), &golden, LogHeader::decode);
    assert!(LogHeader::decode(&LogHeader { slots: 0, ..value }.encode()).is_err());
    assert!(LogHeader::decode(&LogHeader { slots: TABLE_SLOTS_MAX, ..value }.encode()).is_ok());
    assert!(LogHeader::decode(&LogHeader { slots: TABLE_SLOTS_MAX + 1, ..value }.encode()).is_err());
    let layout = LogLayout { slots: 100 };
    assert_eq!((layout.record_offset(Seq(101)), layout.total_bytes()), (8192 + 64, 16384));
}

#[test]
fn intent_log_watermark() {
    let value = Watermark { local_done: Seq(5), cut: Seq(9), coalescing: true, aux_skipped: Seq(7) };
    let golden = sparse(
        4096,
        &[(0, "465348494c4f4757010000000000000005000000000000000900000000000000010000000000000007"), (508, "d89b1b35")],
    );
    check(&value, &value.encode(), &golden, Watermark::decode);
}

/// The tables in the docs of both, over all their inputs.
#[test]
fn a_superblock_says_whether_its_volumes_hold_something_and_from_when_on_their_length_counts() {
    let flags = [SYNCED, PROMOTING, PROMOTED, CLEAN, DIRECT, BLANK, DAMAGED, SETTLED, MARKED, FORCED];
    for role in [Role::Primary, Role::Auxiliary, Role::Dr] {
        for (group, seq, flags) in [0, 1].into_iter().flat_map(|group| {
            [0, 1].into_iter().flat_map(move |seq| flags.into_iter().chain([0]).map(move |it| (group, seq, it)))
        }) {
            let it = Superblock { group: GroupId(group), seq: Seq(seq), flags, ..Superblock::new(role) };
            let it = Superblock { volumes: vec![(1, 512), (2, 1024)], ..it };
            let holds = [SYNCED, PROMOTING, PROMOTED, DIRECT].contains(&flags);
            assert_eq!(it.has_begun(), role != Role::Dr || group + seq > 0 || holds, "{it:?}");
            let counts = role != Role::Dr || [SYNCED, PROMOTING, PROMOTED].contains(&flags);
            assert_eq!(it.least_bytes(), if counts { [512, 1024] } else { [0, 0] }, "{it:?}");
        }
    }
    assert_eq!([Role::Primary, Role::Auxiliary, Role::Dr].map(Role::word), ["primary", "aux", "dr"]);
}

#[test]
fn pages_of_an_intent_map_are_the_same_where_place_and_bits_are() {
    let page = |volume, index, bit| {
        let mut page = Page::new(Volume(volume), index);
        page.set(bit);
        page
    };
    let one = page(1, 2, 3);
    assert!(one == page(1, 2, 3));
    assert!([page(0, 2, 3), page(1, 0, 3), page(1, 2, 4)].iter().all(|other| *other != one));
    let (mut none, mut all) = (page(1, 2, 3), Page::new(Volume(1), 2));
    none.clear(3);
    all.set_range(0, PAGE_BITS - 1);
    assert!(none == Page::new(Volume(1), 2) && all == Page::full(Volume(1), 2), "however they came to be");
}
