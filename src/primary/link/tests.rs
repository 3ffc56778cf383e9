//! What a primary believes of DR's journal after a welcome.

use super::*;
use crate::core::ids::{Epoch, Extent, GroupId, Owner, Volume};
use crate::core::machine::{DiskKind, DiskOp, IoFail, ReadAt};
use crate::core::modes::{Ack, Overflow, Protect, Require};
use crate::core::op::Op;
use crate::format::intent::Watermark;
use crate::limits::{CHUNK_BYTES_MAX, STREAM_BYTES_PER_SECOND_MIN, STREAM_STALL_NS};
use crate::primary::batch::pieces::{charge_of, room_of};
use crate::primary::batch::{Batch, Mode};
use crate::primary::machine::{Options, Req};
use crate::primary::recovery::{Expect, Files, recover};
use crate::primary::window::Window;

const CONN: Conn = Conn(7);
const STREAM: Conn = Conn(8);
const DR: Owner = Owner(3);
/// More of DR's journal than any test here fills.
pub(in crate::primary) const ROOM: JournalRoom = JournalRoom { upto: Seq(1 << 40), records: 1 << 20 };

struct Absent;

impl ReadAt for Absent {
    fn size(&self) -> u64 {
        0
    }

    fn read_at(&self, _offset: u64, length: usize) -> Result<Bytes, IoFail> {
        Ok(vec![0; length].into())
    }
}

/// A primary in a directory of its own that was empty, and what it does first.
pub(in crate::primary) fn fresh(protect: Protect, require: Require, isolated_continue: bool) -> (Machine, Vec<Effect>) {
    let volumes = vec![("v".to_string(), 1 << 20)];
    let expect = Expect {
        group_name: "g".into(),
        volumes: volumes.clone(),
        boot_id: [1; 16],
        fifo_disk_bytes: 0,
        log_slots: 1024,
        fresh_group: GroupId(1),
        fresh_owner: Owner(2),
        fresh_nonce: 1,
    };
    let files = Files { superblock: &Absent, map: &Absent, log: &Absent, fifo: &Absent };
    let options = Options {
        group_name: "g".into(),
        volumes,
        protect,
        ack: Ack::Write,
        require,
        isolated_continue,
        freeze_timeout_ns: 0,
        overflow: Overflow::Coalesce,
        lag_max: None,
        fifo_memory_bytes: 1 << 20,
        fifo_disk_bytes: 0,
        streams: 1,
        table_slots: 1024,
        spool_bytes: 1 << 30,
        standalone: false,
        table_payload_bytes: 0,
        intent_neighbours: 1,
        look_bytes: u64::MAX,
        asks: true,
        ask_room: false,
        scrub: None,
        incarnation: 1,
    };
    let recovered = recover(&expect, &files).expect("a new directory");
    let mut effects = Vec::new();
    let machine = Machine::new(options, recovered, Now::default(), &mut effects);
    (machine, effects)
}

/// A primary at seq 200 that DR has told of a recovery point at 50, and of payloads up to 90.
pub(in crate::primary) fn primary() -> Machine {
    let (mut machine, _) = fresh(Protect::Order, Require::Both, false);
    (machine.tail, machine.copied, machine.window) = (Seq(200), Seq(90), Window::new(Seq(201)));
    (machine.superblock.peer, machine.dr.synced, machine.dr.cut) = (DR, true, Seq(50));
    machine
}

fn welcome(cut: u64, synced: bool, gaps: bool) -> Message {
    Message::Welcome(welcoming(cut, synced, gaps))
}

/// DR has orders up to 100.
pub(in crate::primary) fn welcoming(cut: u64, synced: bool, gaps: bool) -> Welcome {
    Welcome {
        group: GroupId(1),
        epoch: Epoch(1),
        owner: DR,
        journal_seq: Seq(100),
        journal_chain: Chain(0),
        cut: Seq(cut),
        applied: Seq(cut),
        synced,
        blank: false,
        gaps,
        led_past: false,
        batch: Seq(0),
        have: Vec::new(),
        window_bytes: 1 << 20,
        spool_bytes: 1 << 30,
        room: ROOM,
    }
}

/// Found by seeds 130013 and 315596: DR had lost an order, and its recovery point or not; a write was acknowledged for its
/// journal.
#[test]
fn the_journal_of_a_dr_that_has_lost_orders_or_its_recovery_point_protects_nothing_until_a_batch_has_made_it_good() {
    for (cut, synced, gaps) in
        [(50, true, false), (60, true, false), (60, true, true), (49, true, false), (0, false, false)]
    {
        let kept = synced && !gaps && cut >= 50;
        let mut machine = primary();
        machine.dr.phase = Phase::Greeting { conn: CONN, since_ns: 0 };
        machine.dr_message(CONN, welcome(cut, synced, gaps), &mut Vec::new());
        assert!(machine.dr.ready(), "it is welcome: {:?}", machine.dr.problem);
        machine.dr.caught_up = true;
        assert_eq!(machine.standing().journal, kept.then_some(Seq(100)), "{cut} {synced} {gaps}");
        assert_eq!(
            (machine.journal_held(), machine.floor()),
            if kept { (Seq(100), Seq(90)) } else { (Seq(cut), Seq(cut)) }
        );
        let progress = |cut| Message::Progress {
            cut,
            applied: cut,
            synced: true,
            spool_bytes: 0,
            window_bytes: 1 << 20,
            room: ROOM,
        };
        machine.dr_message(CONN, progress(Seq(99)), &mut Vec::new());
        assert_eq!(machine.standing().journal.is_some(), kept, "not all of it is good");
        machine.dr_message(CONN, progress(Seq(100)), &mut Vec::new());
        assert_eq!((machine.standing().journal, machine.journal_held()), (Some(Seq(100)), Seq(100)));
    }
}

/// Found by seed 3625023: a mode was said to be in force, although an earlier life of the primary had led the journal past
/// orders.
#[test]
fn a_journal_that_was_led_past_orders_counts_once_the_cut_has_passed_them() {
    for led_past in [false, true] {
        let mut machine = primary();
        machine.dr.phase = Phase::Greeting { conn: CONN, since_ns: 0 };
        let welcome = Welcome { led_past, ..welcoming(50, true, false) };
        machine.dr_message(CONN, Message::Welcome(welcome), &mut Vec::new());
        machine.dr.caught_up = true;
        assert_eq!(machine.covering().journal.is_some(), !led_past);
        machine.dr.cut = Seq(100);
        assert!(machine.covering().journal.is_some());
    }
}

/// A primary with a stream, and a write on it that came from the disk FIFO and whose client still waits.
fn shipped_from_disk() -> (Machine, Seq) {
    let (mut machine, _) = fresh(Protect::Bunker, Require::Both, false);
    machine.dr.phase = Phase::Up { conn: CONN };
    machine.dr.streams.push(Stream { phase: Phase::Up { conn: STREAM }, ..Stream::new() });
    let data = Bytes::from(vec![1; 4096]);
    let record = machine.record(Op::Write, 0, Volume(0), 0, data.len() as u64, crc32fast::hash(&data));
    machine.append(record, data.clone(), Some(Req(1)));
    let entry = machine.window.get_mut(record.seq).expect("appended");
    (entry.payload, entry.local, entry.data) = (Payload::Spilled, Local::Done, Bytes::new());
    let bytes = data.len() as u64;
    machine.dr.note_payload(STREAM, record.seq, bytes, Some(Staged { record, data, pos: 0 }));
    (machine, record.seq)
}

/// Found by seed 634223: it was taken for one that the disk would bring, and nobody brought it.
#[test]
fn what_was_shipped_from_disk_and_is_asked_for_again_is_left_to_a_batch() {
    let (mut machine, seq) = shipped_from_disk();
    let ranges = vec![SeqRange { first: seq, last: seq }];
    machine.dr_message(CONN, Message::Need { ranges: ranges.clone() }, &mut Vec::new());
    assert!(!machine.catches_up(), "it is on its way");
    machine.dr.asked.clear();
    machine.dr_message(STREAM, Message::Copied { ranges: ranges.clone() }, &mut Vec::new());
    assert_eq!(machine.window.get(seq).expect("not answered").payload, Payload::Copied);
    machine.dr_message(CONN, Message::Need { ranges }, &mut Vec::new());
    assert!(machine.lost_any());
}

/// DR has orders up to 14 and payloads up to 12 but for 9, and has said so; of what has left the window, all up to `trimmed`.
fn copied_but_for_some(trimmed: u64) -> Machine {
    let (mut machine, _) = fresh(Protect::Sync, Require::Both, false);
    let data = Bytes::from(vec![1; 4096]);
    while machine.tail < Seq(14) {
        let record = machine.record(Op::Write, 0, Volume(0), 0, data.len() as u64, crc32fast::hash(&data));
        machine.append(record, data.clone(), None);
        let entry = machine.window.get_mut(record.seq).expect("appended");
        entry.local = Local::Done;
        let queued = record.seq == Seq(9) || record.seq > Seq(12);
        entry.payload = if queued { Payload::Queued } else { Payload::Copied };
    }
    machine.window.trim(Seq(trimmed));
    (machine.dr.journal, machine.dr.cut, machine.dr.synced) = (Seq(14), Seq(5), true);
    machine
}

/// Found by seed 7029181: a bit flipped in the last order that DR had, and with it went a payload that it had acknowledged; in
/// `sync` the primary went on acknowledging what came after it. And by a review: so it was where the payload alone was lost, and
/// its write had left the window; and where the payload was acknowledged, and not yet the order.
#[test]
fn what_dr_acknowledged_and_has_lost_is_left_to_a_batch() {
    for (what, journal, told, trimmed, lost) in [
        ("orders of which no payload was acknowledged", 12, 14, 0, false),
        ("the last one that was", 11, 14, 0, true),
        ("by its payload alone", 11, 12, 0, true),
        ("it has left the window", 5, 8, 8, true),
        ("nothing", 14, 14, 8, false),
    ] {
        let mut machine = copied_but_for_some(trimmed);
        assert_eq!(machine.window.first(), Seq(trimmed.max(machine.first.prev().0) + 1), "{what}");
        machine.unsaid(Seq(journal), Seq(told), &mut Vec::new());
        assert_eq!(machine.lost_any(), lost, "{what}");
    }
    for (missing, trimmed, lost) in [(9, 0, false), (13, 8, false), (8, 0, true), (8, 8, true), (12, 8, true)] {
        let mut machine = copied_but_for_some(trimmed);
        let only = SeqRange { first: Seq(missing), last: Seq(missing) };
        for _ in 0..3 {
            // What has yet to be sent is told at every welcome.
            machine.needed(&[only], &mut Vec::new());
        }
        assert_eq!(machine.lost_any(), lost, "{missing} {trimmed}");
    }
}

/// What a DR that knows nothing of a batch misses before its begin is the batch's, or was.
#[test]
fn what_dr_misses_before_a_batch_that_it_has_not_heard_of_is_no_reason_to_give_that_up() {
    for (journal, lost) in [(9, false), (10, true)] {
        let mut machine = copied_but_for_some(8);
        machine.mode = Mode::Batch(Box::new(Batch::under_way(Seq(10))));
        machine.dr.journal = Seq(journal);
        machine.needed(&[SeqRange { first: Seq(7), last: Seq(7) }], &mut Vec::new());
        assert_eq!(machine.lost_any(), lost, "{journal}");
    }
    let mut machine = copied_but_for_some(8);
    machine.coalesce("something else", &mut Vec::new());
    let before = machine.lost.bytes();
    machine.needed(&[SeqRange { first: Seq(7), last: Seq(7) }], &mut Vec::new());
    assert_eq!(machine.lost.bytes(), before);
}

/// Found by a review: after a start half-way through a batch, DR's spool was full of what had been written meanwhile. It gave that
/// up, batch after batch was given up for it, and none came to its end while something was written.
#[test]
fn what_dr_gives_up_of_what_the_batch_under_way_brings_is_no_reason_to_give_that_up() {
    for (at, whole, gaps, ends) in
        [(4, true, false, false), (5, true, false, true), (4, false, false, true), (4, true, true, true)]
    {
        for closing in [false, true] {
            let mut machine = primary();
            let mut batch = Box::new(Batch::under_way(Seq(5)));
            batch.whole = whole;
            (machine.mode, machine.closing) =
                if closing { (Mode::Stream, Some(*batch)) } else { (Mode::Batch(batch), None) };
            (machine.dr.lacks_orders, machine.dr.journal) = (gaps, Seq(5));
            let ranges = vec![SeqRange { first: Seq(3), last: Seq(at) }];
            machine.needed(&ranges, &mut Vec::new());
            assert_eq!(machine.lost_any(), ends, "{at} {whole} {gaps} {closing}");
            // DR asks for what it looks at last: whether the batch has brought it.
            machine.needed(&ranges, &mut Vec::new());
            assert!(machine.lost_any(), "{at} {whole} {gaps} {closing}");
        }
    }
}

#[test]
fn a_batch_brings_everything_if_nothing_else_may_differ_when_it_begins() {
    let extent = |offset| Extent { volume: Volume(0), offset, length: 4096 };
    for (differs, whole) in [(&[0][..], true), (&[0, 512 << 10], false)] {
        let (mut machine, _) = fresh(Protect::Order, Require::Any, false);
        machine.dr.phase = Phase::Up { conn: CONN };
        (machine.dr.caught_up, machine.dr.synced, machine.dr.room) = (true, true, ROOM);
        for offset in differs {
            machine.intent.want(extent(*offset));
        }
        machine.mode = Mode::Coalescing;
        machine.lost.insert(Extent { length: 256 << 10, ..extent(0) });
        machine.maybe_begin();
        assert_eq!(machine.mode.batch().map(|batch| batch.whole), Some(whole));
    }
}

#[test]
fn what_stood_on_disk_or_was_on_its_way_there_is_dropped_with_the_disk_fifo() {
    let (mut machine, seq) = shipped_from_disk();
    let data = Bytes::from(vec![2; 512]);
    let record = machine.record(Op::Write, 0, Volume(0), 8192, data.len() as u64, crc32fast::hash(&data));
    machine.append(record, data, Some(Req(2)));
    let entry = machine.window.get_mut(record.seq).expect("appended");
    (entry.payload, entry.local) = (Payload::Spilling, Local::Done);
    let held = entry.held();
    machine.spilling += held;
    machine.drop_on_disk();
    machine.spill_done(machine.fifo.head(), &[record.seq], held);
    for seq in [seq, record.seq] {
        assert_eq!(machine.window.get(seq).expect("not answered").payload, Payload::Dropped);
    }
}

/// Found by seed 2201942: one half-open stream after the other was given what had been on the one before, each found dead
/// only half a minute after that.
#[test]
fn a_stream_that_nothing_is_on_is_found_dead_too() {
    const SECOND: u64 = 1_000_000_000;
    let mut machine = primary();
    machine.dr.phase = Phase::Up { conn: CONN };
    machine.dr.streams.push(Stream { phase: Phase::Up { conn: STREAM }, ..Stream::new() });
    let mut asked = Vec::new();
    let mut closed_ns = None;
    for now_ns in (0..100).map(|half| half * SECOND / 2) {
        machine.now.mono_ns = now_ns;
        let mut fx = Vec::new();
        machine.watch_stream(0, STREAM, &mut fx);
        for effect in fx {
            match effect {
                Effect::DrSend { conn: STREAM, message: Message::Ping { nonce } } => {
                    asked.push(nonce / SECOND);
                    if now_ns < 12 * SECOND {
                        machine.dr_message(STREAM, Message::Pong { nonce }, &mut Vec::new());
                    }
                }
                Effect::DrClose { conn: STREAM, .. } => closed_ns = Some(now_ns),
                _ => {}
            }
        }
        if closed_ns.is_some() {
            break;
        }
    }
    assert_eq!(asked, [5, 10, 15, 20, 25, 30, 35, 40], "not more often than it has to be");
    let silence_ns = closed_ns.expect("it is closed") - 10 * SECOND;
    assert_eq!(silence_ns, STREAM_STALL_NS + SECOND / 2);
    assert!(matches!(machine.dr.streams[0].phase, Phase::Idle { .. }), "and opened anew");
}

/// A payload at the least speed that is put up with is not taken for silence, be it of a write or of a batch.
#[test]
fn a_stream_has_the_time_that_its_longest_payload_takes() {
    const SECOND: u64 = 1_000_000_000;
    let bytes = 3 * STREAM_BYTES_PER_SECOND_MIN;
    for (sent, piece, takes_s) in
        [(0, 0, 0), (bytes, 0, 3), (0, bytes, 3), (bytes, 2 * bytes, 6), (2 * bytes, bytes, 6)]
    {
        let mut machine = primary();
        machine.dr.phase = Phase::Up { conn: CONN };
        let mut stream = Stream { phase: Phase::Up { conn: STREAM }, ..Stream::new() };
        (1..3).for_each(|seq| {
            stream.sent.insert(Seq(seq), OnStream { bytes: sent / seq, number: seq, staged: None });
        });
        (1..3).for_each(|index| {
            stream.pieces.insert(index, (piece / index, 2 + index));
        });
        machine.dr.streams.push(stream);
        let silence_ns = STREAM_STALL_NS + takes_s * SECOND;
        for (now_ns, up) in [(silence_ns, true), (silence_ns + 1, false)] {
            machine.now.mono_ns = now_ns;
            machine.watch_stream(0, STREAM, &mut Vec::new());
            assert_eq!(machine.dr.streams[0].up().is_some(), up, "{sent} {piece} {now_ns}");
        }
    }
}

/// A piece that was read where there was room, and found none, was read again: with the page cache, for ever.
#[test]
fn what_there_is_room_to_read_for_there_is_room_to_send() {
    let mut machine = primary();
    machine.dr.window_bytes = 64 << 20;
    let piece = u64::from(CHUNK_BYTES_MAX);
    let mut edges = 0;
    for fill in (7 << 20) - (16 << 10)..=(7 << 20) + (16 << 10) {
        let mut stream = Stream { phase: Phase::Up { conn: STREAM }, ..Stream::new() };
        stream.backlog.push(fill);
        machine.dr.streams = vec![stream];
        let fits = machine.dr.window_left() >= room_of(piece);
        assert_eq!(fits, machine.dr.stream_for(charge_of(piece)).is_some(), "{fill}");
        edges += u64::from(fits);
    }
    assert!(edges > 0 && edges < 32 << 10, "both were seen");
}

/// After an outage the first stream that was up took the next 12 MiB, and DR's cut waited for them.
#[test]
fn a_stream_that_is_up_first_leaves_the_others_their_share_of_what_comes_next() {
    let mut machine = primary();
    machine.dr.window_bytes = 64 << 20;
    machine.dr.streams = vec![Stream::new(); 4];
    assert_eq!((machine.dr.window_left(), machine.dr.stream_for(4096)), (0, None), "none is up");
    let (one, mut given) = (64 << 10, 0);
    for up in 1..=4 {
        machine.dr.streams[up - 1].phase = Phase::Up { conn: Conn(up as u64) };
        while let Some(conn) = machine.dr.stream_for(one) {
            given += 1;
            machine.dr.note_payload(conn, Seq(given), one, None);
        }
        assert_eq!(given, ((up as u64) << 21) / Held::memory_of(one), "{up}");
        assert!(machine.dr.window_left() < Held::memory_of(one), "{up}");
        let shares = || machine.dr.streams[..up].iter().map(|stream| stream.unacked);
        assert!(shares().max() <= shares().min().map(|least| least + one), "{:?}", shares().collect::<Vec<_>>());
    }
    // What is alone may be as large as it likes.
    machine.dr.streams.iter_mut().for_each(|stream| *stream = Stream { phase: stream.phase, ..Stream::new() });
    assert!(machine.dr.stream_for(32 << 20).is_some());
}

/// Seed 3762081: a restarted primary did not know that the table had been led past orders that DR had not either.
#[test]
fn what_the_table_was_led_past_is_remembered_until_dr_has_it() {
    for (cut, remembered) in [(50, 95), (94, 95), (95, 0)] {
        let mut machine = primary();
        (machine.aux.skipped, machine.dr.cut) = (Seq(95), Seq(cut));
        let mut fx = Vec::new();
        machine.save_watermark(&mut fx);
        let Some(Effect::Disk(DiskOp { kind: DiskKind::Write { parts, .. }, .. })) = fx.pop() else {
            panic!("a write")
        };
        let found = Watermark::decode(&parts.concat()).expect("whole");
        assert_eq!(found.aux_skipped, Seq(remembered), "{cut}");
    }
}
