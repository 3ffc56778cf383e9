//! The primary's machine with a disk that completes when the test says so.

use super::*;
use crate::core::ids::SeqRange;
use crate::core::machine::IoFail;
use crate::format::intent::Watermark;
use crate::format::wire::Welcome;
use crate::limits::PAYLOAD_PIECE_BYTES_MAX;
use crate::primary::link::tests::{fresh, welcoming};
use crate::primary::window::Payload;

struct Bench {
    machine: Machine,
    now: Now,
    waiting: Vec<DiskOp<File>>,
    effects: Vec<Effect>,
}

impl Bench {
    /// A new directory, its first superblock durable.
    fn new() -> Bench {
        let (machine, effects) = fresh(Protect::Async, Require::None, true);
        let mut bench = Bench { machine, now: Now::default(), waiting: Vec::new(), effects: Vec::new() };
        bench.sort(effects);
        bench.complete(|_| true);
        bench.complete(|op| op.file == File::Superblock);
        bench
    }

    fn input(&mut self, input: Input) {
        let mut fx = Vec::new();
        self.machine.step(self.now, input, &mut fx);
        self.sort(fx);
    }

    fn sort(&mut self, fx: Vec<Effect>) {
        for effect in fx {
            match effect {
                Effect::Disk(op) => self.waiting.push(op),
                other => self.effects.push(other),
            }
        }
    }

    /// Completes the operations under way that are `chosen`, then a period ends.
    fn complete(&mut self, chosen: impl Fn(&DiskOp<File>) -> bool) {
        let (done, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|op| chosen(op));
        self.waiting = waiting;
        for op in Vec::<DiskOp<File>>::into_iter(done) {
            self.input(Input::Disk { ticket: op.ticket, result: Ok(Bytes::new()) });
        }
        self.now.mono_ns += PERIOD_NS;
        self.input(Input::EndOfTurn);
    }

    /// The connection that it has opened to DR.
    fn connects(&self) -> Conn {
        let connects = |effect: &Effect| if let Effect::DrConnect { conn, .. } = effect { Some(*conn) } else { None };
        self.effects.iter().find_map(connects).expect("it connects")
    }

    /// DR has orders up to here, and everything of the first.
    fn welcomed(&mut self, conn: Conn, journal_seq: Seq) {
        self.input(Input::DrUp { conn });
        let (owner, journal_chain) = (Owner(2), self.machine.chain);
        let welcome = Welcome { owner, journal_seq, journal_chain, blank: true, ..welcoming(1, true, false) };
        self.input(Input::DrMessage { conn, message: Message::Welcome(welcome) });
    }

    /// Whether a sync of the intent log is under way.
    fn log_syncs(&self) -> bool {
        self.waiting.iter().any(|op| op.file == File::IntentLog && matches!(op.kind, DiskKind::Sync))
    }
}

/// The one superblock that is being written: where, and what.
fn superblock_written(bench: &Bench) -> (u64, Superblock) {
    let of = |op: &DiskOp<File>| match &op.kind {
        DiskKind::Write { offset, parts, durable: true } if op.file == File::Superblock => {
            Some((*offset, Superblock::decode(&parts.concat()).expect("valid")))
        }
        _ => None,
    };
    let mut all: Vec<_> = bench.waiting.iter().filter_map(of).collect();
    assert_eq!(all.len(), 1, "one at a time");
    all.remove(0)
}

/// A slot that is damaged at rest cannot be told from one that is torn: so nothing counts that is in one of them only.
#[test]
fn a_superblock_counts_when_both_slots_have_it() {
    let (machine, effects) = fresh(Protect::Async, Require::None, true);
    let mut bench = Bench { machine, now: Now::default(), waiting: Vec::new(), effects: Vec::new() };
    bench.sort(effects);
    let both = |bench: &mut Bench| {
        let (first_at, first) = superblock_written(bench);
        bench.complete(|_| true);
        let begun = bench.waiting.iter().any(log_append) || bench.machine.marked;
        let (second_at, second) = superblock_written(bench);
        assert_eq!(first_at + second_at, BLOCK_BYTES as u64, "one after the other");
        assert_eq!(Superblock { generation: first.generation + 1, ..first }, second);
        (begun, second)
    };
    let (begun, _) = both(&mut bench);
    assert!(!begun, "a start that finds the slot damaged would give the same seqs out again");
    // What changes meanwhile is written after, to both again.
    bench.machine.superblock.peer = Owner(9);
    bench.machine.write_superblock(Seq(5000), &mut Vec::new());
    bench.complete(|_| true);
    assert!(bench.machine.marked);
    assert_eq!(both(&mut bench).1.peer, Owner(9));
    bench.complete(|_| true);
    bench.input(Input::Stop);
    while !bench.waiting.iter().any(|op| op.file == File::Superblock) {
        bench.complete(|_| true);
    }
    assert!(both(&mut bench).1.has(superblock::CLEAN));
    let stopped = |bench: &Bench| bench.effects.iter().any(|effect| matches!(effect, Effect::Stopped));
    assert!(!stopped(&bench));
    bench.complete(|_| true);
    assert!(stopped(&bench));
}

fn log_append(op: &DiskOp<File>) -> bool {
    let at = |offset: u64| offset >= LogLayout::RECORDS_AT;
    op.file == File::IntentLog && matches!(op.kind, DiskKind::Write { offset, .. } if at(offset))
}

/// Seeds 126115 and 136699: the sync did not cover the last record, the directory was clean, and a start after a loss of
/// power gave its seq out again.
#[test]
fn a_clean_stop_syncs_the_log_when_its_last_record_is_written() {
    let mut bench = Bench::new();
    assert!(bench.waiting.iter().any(log_append), "the first record is on its way");
    bench.input(Input::Stop);
    bench.complete(|op| !log_append(op));
    assert!(!bench.log_syncs(), "a sync would not cover the append under way");
    bench.complete(log_append);
    assert!(bench.log_syncs());
    (0..3).for_each(|_| bench.complete(|_| true));
    assert!(bench.effects.iter().any(|effect| matches!(effect, Effect::Stopped)));
}

/// Seeds 115093 and 123870: DR asked for the trim again and again, and nothing brought it.
#[test]
fn an_order_without_payload_that_dr_has_lost_is_left_to_a_batch() {
    let mut bench = Bench::new();
    bench.complete(|_| true);
    let conn = bench.connects();
    let kind = Kind::Trim { offset: 4096, length: 4096, fua: false };
    bench.input(Input::Request { req: Req(1), volume: Volume(0), kind });
    bench.complete(|_| true);
    bench.welcomed(conn, Seq(2));
    assert!(!bench.machine.lost_any());
    let ranges = vec![SeqRange { first: Seq(2), last: Seq(2) }];
    bench.input(Input::DrMessage { conn, message: Message::Need { ranges } });
    assert!(bench.machine.catches_up());
    let covers = |extent: Extent| extent.offset <= 4096 && 8192 <= extent.offset + extent.length;
    assert!(bench.machine.lost.iter().any(covers), "{:?}", bench.machine.lost);
}

fn of_volume(op: &DiskOp<File>) -> bool {
    matches!(op.file, File::Volume(_))
}

impl Bench {
    /// A write of one block is refused for want of space.
    fn refused(&mut self, req: u64) {
        self.write(req, 4096);
        self.refuses(req);
    }

    fn refuses(&mut self, req: u64) {
        (0..2).for_each(|_| self.complete(|op| !of_volume(op)));
        self.end_volume_op(|kind| matches!(kind, DiskKind::Write { .. }), Err(IoFail::NoSpace("full".into())));
        let told =
            |effect: &Effect| matches!(effect, Effect::Reply { req: of, result: Err(Errno::NoSpc) } if *of == Req(req));
        assert!(self.effects.iter().any(told));
    }

    fn end_volume_op(&mut self, wanted: impl Fn(&DiskKind) -> bool, result: DiskResult) {
        let at = self.waiting.iter().position(|op| of_volume(op) && wanted(&op.kind)).expect("it is under way");
        let ticket = self.waiting.remove(at).ticket;
        self.input(Input::Disk { ticket, result });
        self.input(Input::EndOfTurn);
    }

    /// The first of two writes to one block is refused while the second waits behind it.
    fn refused_behind(&mut self, req: u64) {
        self.write(req, 4096);
        (0..2).for_each(|_| self.complete(|op| !of_volume(op)));
        self.end_volume_op(|kind| matches!(kind, DiskKind::Write { .. }), Err(IoFail::NoSpace("full".into())));
    }

    /// What the watermark says of ranges that a start has to copy.
    fn watermark(&mut self) -> bool {
        let mut fx = Vec::new();
        self.machine.save_watermark(&mut fx);
        let Some(Effect::Disk(DiskOp { kind: DiskKind::Write { parts, .. }, .. })) = fx.first() else {
            panic!("{fx:?}")
        };
        Watermark::decode(&parts[0]).expect("whole").coalescing
    }
}

/// The batch under way was given up, and each refusal did so again: with one a second the recovery point stood still for ever.
/// The payload stays queued, too, unless a stream takes what the disk has refused.
#[test]
fn a_write_without_space_gives_no_batch_up_and_crosses_with_what_its_volume_holds_behind_it() {
    for under_way in [false, true] {
        let mut bench = Bench::new();
        bench.complete(|_| true);
        if under_way {
            bench.machine.mode = Mode::Batch(Box::new(Batch::under_way(Seq(1))));
        }
        bench.refused(0);
        let machine = &bench.machine;
        assert!(machine.mode.batch().is_some() == under_way && !machine.lost_any() && machine.batches_given_up == 0);
        let refused = machine.window.get(Seq(2)).expect("its payload has yet to cross");
        assert!(refused.payload == Payload::Queued && refused.may_leave());
        // Until it is known what follows it, whoever writes there waits, and a start is told.
        let holds = Bytes::from(vec![7; 4096]);
        let again = Kind::Trim { offset: 4095, length: 1, fua: false };
        bench.input(Input::Request { req: Req(8), volume: Volume(0), kind: again });
        bench.input(Input::EndOfTurn);
        assert!(!bench.has_begun(8) && bench.machine.mends() && bench.watermark());
        bench.end_volume_op(|kind| matches!(kind, DiskKind::Read { .. }), Ok(holds.clone()));
        let follows = bench.machine.window.get(Seq(3)).expect("it has its order");
        assert_eq!((follows.record.op, follows.record.offset, &follows.data), (Op::Write, 0, &holds));
        assert!(follows.record.payload_crc == crc32fast::hash(&holds) && follows.payload == Payload::Queued);
        assert!(bench.has_begun(8) && !bench.machine.mends() && bench.watermark(), "DR has yet to get it");
        bench.machine.dr.cut = Seq(3);
        assert_eq!(bench.watermark(), under_way);
    }
}

#[test]
fn what_a_refused_write_has_left_waits_for_those_under_way_there_and_for_room_and_keeps_its_bits() {
    let mut bench = Bench::new();
    bench.complete(|_| true);
    bench.write(0, 4096);
    bench.refused_behind(0);
    let reads =
        |bench: &Bench| bench.waiting.iter().any(|op| of_volume(op) && matches!(op.kind, DiskKind::Read { .. }));
    assert!(bench.machine.mends() && !reads(&bench), "the one behind it is under way");
    bench.machine.options.overflow = Overflow::Pace;
    bench.end_volume_op(|kind| matches!(kind, DiskKind::Write { .. }), Ok(Bytes::new()));
    assert!(reads(&bench));
    let memory = std::mem::replace(&mut bench.machine.options.fifo_memory_bytes, 0);
    bench.end_volume_op(|kind| matches!(kind, DiskKind::Read { .. }), Ok(vec![0; 4096].into()));
    assert!(bench.machine.mends() && !reads(&bench), "no room");
    let elsewhere = Kind::Trim { offset: 8192, length: 512, fua: false };
    bench.input(Input::Request { req: Req(9), volume: Volume(0), kind: elsewhere });
    bench.input(Input::EndOfTurn);
    assert!(!bench.has_begun(9), "it would take what becomes free");
    bench.machine.intent.abandon_cycle();
    bench.now.mono_ns += 10 * CYCLE_NS;
    bench.input(Input::EndOfTurn);
    assert_eq!(bench.machine.intent.cycle(), None, "no bit goes before it is ordered");
    bench.machine.options.fifo_memory_bytes = memory;
    bench.input(Input::EndOfTurn);
    bench.end_volume_op(|kind| matches!(kind, DiskKind::Read { .. }), Ok(vec![0; 4096].into()));
    let follows = bench.machine.window.get(bench.machine.mended()).expect("it has its order").record;
    assert_eq!((follows.op, follows.offset, follows.length), (Op::WriteZeroes, 0, 4096), "a hole has no payload");
    bench.complete(|_| true);
    assert!(bench.machine.intent.cycle().is_some_and(|(upto, _)| upto >= bench.machine.mended()));
}

/// A machine whose FIFO has so much memory; what waits for room waits until the link has taken something.
fn paced(fifo_memory_bytes: u64) -> Bench {
    let mut bench = Bench::new();
    bench.complete(|_| true);
    bench.machine.options.overflow = Overflow::Pace;
    bench.machine.options.fifo_memory_bytes = fifo_memory_bytes;
    bench.machine.options.volumes[0].1 = 1 << 30;
    bench
}

impl Bench {
    fn write(&mut self, req: u64, bytes: u64) {
        let data = Bytes::from(vec![0; bytes as usize]);
        let kind = Kind::Write { offset: req * (4 << 20), data, fua: false };
        self.input(Input::Request { req: Req(req), volume: Volume(0), kind });
    }

    /// Whether a write has its seq.
    fn has_begun(&self, req: u64) -> bool {
        self.machine.window.from(Seq(1)).any(|entry| entry.req == Some(Req(req)))
    }
}

/// Whoever overlaps a block that is read would not be in what is ordered behind it (I1); others have no reason to wait.
#[test]
fn only_who_writes_to_a_block_that_is_read_back_waits_for_its_order() {
    let (at, block) = (64 << 10, 4096);
    for (offset, length, waits) in [
        (at - block, block, false),
        (at - 1, 1, false),
        (at - 1, 2, true),
        (at, 1, true),
        (at + 512, 512, true),
        (at + block - 1, 1, true),
        (at - block, 3 * block, true),
        (at + block - 1, 2, true),
        (at + block, 1, false),
        (at + 2 * block, block, false),
    ] {
        let mut bench = paced(1 << 30);
        bench.machine.options.overflow = Overflow::Coalesce;
        let data = Bytes::from(vec![1; block as usize]);
        let kind = Kind::Write { offset: at, data, fua: false };
        bench.input(Input::Request { req: Req(1), volume: Volume(0), kind });
        bench.refuses(1);
        let data = Bytes::from(vec![1; length as usize]);
        let kinds = [
            Kind::Write { offset, data, fua: false },
            Kind::Zeroes { offset, length, no_hole: false, fua: false },
            Kind::Trim { offset, length, fua: false },
        ];
        for (kind, req) in kinds.into_iter().zip(8..) {
            bench.input(Input::Request { req: Req(req), volume: Volume(0), kind });
        }
        bench.input(Input::Request { req: Req(11), volume: Volume(0), kind: Kind::Flush });
        bench.input(Input::EndOfTurn);
        assert!((8..11).all(|req| bench.has_begun(req) != waits), "{offset} {length}");
        bench.end_volume_op(|kind| matches!(kind, DiskKind::Read { .. }), Ok(vec![0; 4096].into()));
        assert!((8..11).all(|req| bench.has_begun(req)), "{offset} {length}");
    }
}

/// Newcomers would take every room that becomes free for it, also those that write elsewhere.
#[test]
fn where_writes_are_paced_newcomers_wait_while_a_block_is_read_back() {
    for overflow in [Overflow::Pace, Overflow::Coalesce] {
        let mut bench = paced(1 << 30);
        bench.machine.options.overflow = overflow;
        bench.refused(0);
        bench.write(8, 4096);
        bench.input(Input::EndOfTurn);
        assert_eq!(bench.has_begun(8), overflow != Overflow::Pace);
        bench.end_volume_op(|kind| matches!(kind, DiskKind::Read { .. }), Ok(vec![0; 4096].into()));
        assert!(bench.has_begun(8));
    }
}

#[test]
fn nothing_is_read_back_where_nobody_is_to_be_told_or_for_a_machine_that_stops() {
    for (standalone, stops) in [(false, false), (true, false), (false, true)] {
        let mut bench = paced(1 << 30);
        bench.machine.options.standalone = standalone;
        bench.write(0, 4096);
        bench.refused_behind(0);
        if stops {
            bench.input(Input::Stop);
        }
        let ends = |op: &DiskOp<File>| of_volume(op) && matches!(op.kind, DiskKind::Write { .. });
        while bench.waiting.iter().any(ends) {
            bench.end_volume_op(|kind| matches!(kind, DiskKind::Write { .. }), Ok(Bytes::new()));
        }
        let reads = bench.waiting.iter().any(|op| of_volume(op) && matches!(op.kind, DiskKind::Read { .. }));
        assert_eq!((bench.machine.mends(), reads), (!standalone, !standalone && !stops), "{standalone} {stops}");
    }
}

/// One piece after the other, none of them longer than what is kept of it in memory or than a small part of the bound on the
/// lag, and not so short that there is no end of them (I9).
#[test]
fn what_a_long_refused_write_has_left_is_read_back_in_bounded_pieces() {
    let long = 1 << 20;
    for (lag_bytes, memory, piece) in [
        (None, 1 << 30, 1 << 20),
        (Some(8 << 20), 1 << 30, 1 << 20),
        (Some(2 << 20), 1 << 30, 512 << 10),
        (Some(64 << 10), 1 << 30, 64 << 10),
        (None, 256 << 10, 256 << 10),
        (None, 1, 64 << 10),
    ] {
        let mut bench = paced(1 << 30);
        bench.write(0, long);
        (0..2).for_each(|_| bench.complete(|op| !of_volume(op)));
        // Its payload has crossed.
        let machine = &mut bench.machine;
        let entry =
            machine.window.from_mut(Seq(1)).find(|entry| entry.payload == Payload::Queued).expect("it is queued");
        entry.payload = Payload::Copied;
        machine.held -= Held::one(entry.record.length);
        machine.options.fifo_memory_bytes = memory;
        let bytes = lag_bytes;
        machine.options.lag_max = Some(LagMax { bytes, ..LagMax::default() });
        bench.end_volume_op(|kind| matches!(kind, DiskKind::Write { .. }), Err(IoFail::NoSpace("full".into())));
        let mut at = 0;
        while at < long {
            assert_eq!(bench.machine.mending.bytes(), long - at);
            bench.input(Input::EndOfTurn);
            let reads = bench.waiting.iter().filter_map(|op| match op.kind {
                DiskKind::Read { offset, length } if of_volume(op) => Some((offset, length)),
                _ => None,
            });
            assert_eq!(reads.collect::<Vec<_>>(), [(at, piece)], "{lag_bytes:?} {memory}");
            at += piece;
            let before = bench.machine.mended();
            bench.end_volume_op(|kind| matches!(kind, DiskKind::Read { .. }), Ok(vec![0; piece as usize].into()));
            assert!(bench.machine.mended() > before, "{lag_bytes:?} {memory}: it has its order");
        }
        assert!(!bench.machine.mends());
    }
}

/// With a queue full of long writes, a small one waited until the link had taken those before it: at 1 MiB/s, 12 s.
#[test]
fn a_small_write_does_not_wait_for_the_long_ones_that_wait_for_the_link() {
    let piece = PAYLOAD_PIECE_BYTES_MAX;
    let mut bench = paced(4 * piece);
    for req in 1..=24 {
        bench.write(req, piece);
    }
    bench.input(Input::EndOfTurn);
    assert!(bench.has_begun(2) && !bench.has_begun(6), "the FIFO is full");
    for req in 100..104 {
        bench.write(req, 64 << 10);
    }
    bench.input(Input::EndOfTurn);
    assert!((100..104).all(|req| bench.has_begun(req)));
    assert!(bench.machine.held.memory <= bench.machine.options.fifo_memory_bytes, "within the bound");
}

/// However many small ones come: a long one has its turn, and is in order with the other long ones.
#[test]
fn small_writes_do_not_keep_a_long_one_waiting_for_ever() {
    let piece = PAYLOAD_PIECE_BYTES_MAX;
    let mut bench = paced(2 * piece);
    for req in 1..=4 {
        bench.write(req, piece);
    }
    bench.input(Input::EndOfTurn);
    assert!(bench.has_begun(1) && !bench.has_begun(2));
    let mut passed = 0;
    for req in 100.. {
        if bench.has_begun(2) {
            break;
        }
        bench.write(req, 64 << 10);
        bench.input(Input::EndOfTurn);
        passed += u64::from(bench.has_begun(req));
        // The link takes what is in the FIFO, one payload after another.
        let machine = &mut bench.machine;
        if let Some(entry) = machine.window.from_mut(Seq(1)).find(|entry| entry.payload == Payload::Queued) {
            entry.payload = Payload::Copied;
            machine.held -= Held::one(entry.record.length);
        }
        assert!(req < 300, "it waits for ever");
    }
    assert!(passed * (64 << 10) <= piece + (64 << 10), "{passed} small ones passed it");
    assert!(!bench.has_begun(3));
}

/// What is durable before what, and that clients wait for all of it.
#[test]
fn a_volume_is_written_beyond_its_old_end_only_when_a_start_would_know_the_new_one() {
    let mut bench = Bench::new();
    bench.complete(|_| true);
    let (volume, size) = (Volume(0), 2 << 20);
    let answered = |bench: &Bench| bench.effects.iter().any(|effect| matches!(effect, Effect::Resized { .. }));
    let refused = |bench: &mut Bench, number: u64| {
        let kind = Kind::Write { offset: 1 << 20, data: Bytes::from_static(&[1; 512]), fua: false };
        bench.input(Input::Request { req: Req(number), volume, kind });
        let no =
            |effect: &Effect| matches!(effect, Effect::Reply { req, result: Err(Errno::NoSpc) } if *req == Req(number));
        bench.effects.iter().any(no)
    };
    assert_eq!(bench.machine.may_resize(volume, 1 << 20), Ok(true), "it has that");
    assert!(bench.machine.may_resize(volume, 512).is_err_and(|why| why.contains("never made smaller")));
    assert!(bench.machine.may_resize(volume, size + 1).is_err_and(|why| why.contains("sectors")));
    bench.input(Input::Resize { volume, size });
    bench.input(Input::EndOfTurn);
    let mut steps = Vec::new();
    for number in 0.. {
        if answered(&bench) {
            break;
        }
        assert!(number < 20 && refused(&mut bench, number), "after {steps:?}");
        steps.extend(bench.waiting.iter().map(|op| op.file).filter(|file| *file != File::IntentLog));
        bench.complete(|_| true);
    }
    let (map, both) = (File::IntentMap, [File::Superblock; 2]);
    let wanted = [&both[..], &[map, File::Volume(volume), map], &both[..]].concat();
    assert_eq!(steps, wanted);
    assert!(!refused(&mut bench, 99));
    assert_eq!((bench.machine.superblock.resizing, bench.machine.superblock.volumes[0].1), (None, size));
    let written = bench.machine.superblock.resized;
    let kept =
        bench.machine.window.get(written).map(|entry| (entry.record.op, entry.record.offset, entry.record.length));
    assert!(kept.is_none_or(|kept| kept == (Op::Resize, 1 << 20, size)), "{kept:?}");
}

/// A second one had nothing to add, and stood before all others until the next start.
#[test]
fn who_asks_again_for_a_resize_that_is_under_way_is_answered_with_it() {
    let mut bench = Bench::new();
    bench.complete(|_| true);
    let (volume, size) = (Volume(0), 2 << 20);
    let answers = |bench: &Bench, size: u64| {
        let of =
            |effect: &&Effect| matches!(effect, Effect::Resized { size: of, result: Ok(Some(_)), .. } if *of == size);
        bench.effects.iter().filter(of).count()
    };
    for _ in 0..3 {
        bench.input(Input::Resize { volume, size });
        assert_eq!(bench.machine.resizes.len(), 1);
        bench.complete(|_| true);
    }
    bench.input(Input::Resize { volume, size: 2 * size });
    bench.input(Input::Resize { volume, size: 2 * size });
    assert!(bench.machine.resize_waits_for().is_some_and(|what| what.contains("of volume")));
    for _ in 0..20 {
        bench.complete(|_| true);
    }
    assert_eq!((answers(&bench, size), answers(&bench, 2 * size)), (1, 1), "whoever waits is told by the shell");
    assert_eq!((bench.machine.resizes.len(), bench.machine.resize_waits_for()), (0, None));
    bench.input(Input::Resize { volume, size: 2 * size });
    let told = bench.effects.last().map(|effect| matches!(effect, Effect::Resized { result: Ok(None), .. }));
    assert_eq!(told, Some(true), "it has that");
}

/// A primary whose DR is connected and has everything; the connection that carries orders.
fn connected() -> (Bench, Conn) {
    let mut bench = Bench::new();
    bench.complete(|_| true);
    let conn = bench.connects();
    bench.welcomed(conn, Seq(1));
    bench.input(Input::EndOfTurn);
    (bench, conn)
}

#[test]
fn a_range_is_compared_as_of_the_order_right_before_it_and_holds_up_only_who_writes_there_while_it_is_read() {
    let (mut bench, conn) = connected();
    let bytes = bench.machine.options.volumes[0].1;
    bench.input(Input::Verify(verify::Asked::default()));
    bench.input(Input::EndOfTurn);
    let reads = |bench: &Bench| bench.waiting.iter().filter(|op| matches!(op.kind, DiskKind::Read { .. })).count();
    let under_way = reads(&bench);
    assert!(under_way > 0 && bytes > 0);
    let zeroes = |offset: u64| Kind::Zeroes { offset, length: 4096, fua: false, no_hole: false };
    bench.input(Input::Request { req: Req(1), volume: Volume(0), kind: zeroes(0) });
    bench.input(Input::EndOfTurn);
    assert_eq!(bench.machine.tail, Seq(1), "its turn comes when the range has been read");
    bench.effects.clear();
    for op in std::mem::take(&mut bench.waiting) {
        let DiskKind::Read { length, .. } = op.kind else {
            bench.waiting.push(op);
            continue;
        };
        let result = Ok(vec![0; usize::try_from(length).expect("small")].into());
        bench.input(Input::Disk { ticket: op.ticket, result });
    }
    (0..4).for_each(|_| bench.complete(|op| !of_volume(op)));
    assert_eq!(bench.machine.tail, Seq(2));
    let sent: Vec<&Message> = bench
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::DrSend { conn: to, message } if *to == conn => Some(message),
            _ => None,
        })
        .collect();
    let at = |wanted: &dyn Fn(&Message) -> bool| sent.iter().position(|message| wanted(message));
    let compared = at(&|it| matches!(it, Message::Compare(it) if it.seq == Seq(1))).expect("it is asked");
    let behind = at(&|it| matches!(it, Message::Orders(records) if records[0].seq == Seq(2))).expect("it is ordered");
    assert!(compared < behind, "{sent:?}");
}

#[test]
fn what_was_asked_on_a_lost_connection_is_read_and_asked_once_more() {
    let (mut bench, conn) = connected();
    bench.input(Input::Verify(verify::Asked::default()));
    bench.input(Input::EndOfTurn);
    bench.input(Input::DrClosed { conn, reason: "gone".into() });
    bench.input(Input::EndOfTurn);
    let status = bench.machine.verify_status(bench.now).and_then(|status| status.running).expect("it goes on");
    assert_eq!((status.checked_bytes, status.waits_for.as_deref()), (0, Some("DR is out of reach")));
    // A read that ends now is nobody's.
    bench.complete(|_| true);
    bench.input(Input::Stop);
    bench.complete(|_| true);
    let ended = |effect: &Effect| matches!(effect, Effect::Verified { result: Err(_) });
    assert!(bench.effects.iter().any(ended), "who waits is told");
}
