//! The auxiliary's machine with a disk that completes when the test says so, and dies when it says so.

use proptest::prelude::*;

use super::*;
use crate::auxiliary::recovery::recover;
use crate::core::ids::{Epoch, Owner};
use crate::format::superblock::SUPERBLOCK_BYTES;
use crate::limits::BLOCK_BYTES;

const TABLE: u64 = 1 << 16;

struct Bench {
    machine: Auxiliary,
    /// What is on stable storage.
    superblock: Vec<u8>,
    table: Vec<u8>,
    waiting: Vec<DiskOp<File>>,
    effects: Vec<Effect>,
}

impl Bench {
    fn new() -> Bench {
        Bench::on(vec![0; SUPERBLOCK_BYTES], vec![0; TABLE as usize])
    }

    fn on(mut superblock: Vec<u8>, table: Vec<u8>) -> Bench {
        let recovered = recover(&superblock, &table[..BLOCK_BYTES], "orders", Owner(1)).expect("its own files");
        for (offset, block) in recovered.creation() {
            superblock[offset as usize..][..BLOCK_BYTES].copy_from_slice(&block);
        }
        let machine = Auxiliary::new(recovered, TABLE);
        Bench { machine, superblock, table, waiting: Vec::new(), effects: Vec::new() }
    }

    /// Everything in memory is lost.
    fn restart(self) -> Bench {
        Bench::on(self.superblock, self.table)
    }

    fn input(&mut self, input: Input) {
        let mut fx = Vec::new();
        self.machine.step(Now::default(), input, &mut fx);
        for effect in fx {
            match effect {
                Effect::Disk(op) => self.waiting.push(op),
                Effect::Log { .. } => {}
                other => self.effects.push(other),
            }
        }
    }

    fn open(&mut self, conn: u64, export: &str) {
        self.input(Input::Open { conn: Conn(conn), export: export.into(), peer: "test".into() });
    }

    fn write(&mut self, conn: u64, cookie: u64, fua: bool) {
        let kind = Kind::Write { offset: 0, data: Bytes::from(vec![conn as u8; 8]), fua };
        self.input(Input::Request { conn: Conn(conn), cookie, kind });
    }

    /// Completes the oldest operation.
    fn complete(&mut self) {
        let op = self.waiting.remove(0);
        self.complete_op(op, Ok(()));
    }

    fn complete_op(&mut self, op: DiskOp<File>, outcome: Result<(), IoFail>) {
        let result = outcome.map(|()| match op.kind {
            DiskKind::Write { offset, parts, .. } => {
                let file = if op.file == File::Table { &mut self.table } else { &mut self.superblock };
                file[offset as usize..][..parts[0].len()].copy_from_slice(&parts[0]);
                Bytes::new()
            }
            DiskKind::Read { offset, length } => {
                Bytes::copy_from_slice(&self.table[offset as usize..][..length as usize])
            }
            DiskKind::Sync | DiskKind::Zero { .. } => Bytes::new(),
        });
        self.input(Input::Disk { ticket: op.ticket, result });
    }

    fn settle(&mut self) {
        while !self.waiting.is_empty() {
            self.complete();
        }
    }

    /// What happened since the last look, in short.
    fn seen(&mut self) -> Vec<String> {
        let short = |effect| match effect {
            Effect::Granted { conn, read_only: true, .. } => format!("view {conn}"),
            Effect::Granted { conn, .. } => format!("granted {conn}"),
            Effect::Refused { conn, text, fenced } => {
                format!("{} {conn}: {}", if fenced { "fenced" } else { "unknown" }, &text[..8])
            }
            Effect::Reply { conn, cookie, result } => format!("reply {conn} {cookie} {}", result.is_ok()),
            Effect::Close { conn, .. } => format!("close {conn}"),
            Effect::Fatal { .. } => "fatal".into(),
            Effect::Stopped => "stopped".into(),
            Effect::Disk(_) | Effect::Log { .. } => unreachable!("sorted out before"),
        };
        self.effects.drain(..).map(short).collect()
    }
}

const ONE: &str = "orders/1/0000000000000011";
const ONE_OTHER: &str = "orders/1/0000000000000022";
const TWO: &str = "orders/2/0000000000000022";

#[test]
fn an_epoch_is_durable_in_both_slots_before_it_is_granted() {
    let mut bench = Bench::new();
    bench.open(1, ONE);
    assert_eq!(bench.waiting.len(), 1);
    assert!(matches!(bench.waiting[0].kind, DiskKind::Write { durable: true, .. }));
    bench.complete();
    assert_eq!(bench.seen(), [""; 0]);
    bench.complete();
    assert_eq!(bench.seen(), ["granted 1"]);
    assert!(bench.waiting.is_empty());
    let writer = bench.restart().machine.writer();
    assert_eq!((writer.epoch, writer.owner), (Epoch(1), Owner(0x11)));
}

/// What an operator is told: who is connected since when, and how much went over each connection.
#[test]
fn status_and_the_list_of_exports_say_what_is_so() {
    let mut bench = Bench::new();
    bench.open(1, ONE);
    bench.settle();
    bench.open(2, "");
    bench.open(3, TWO);
    for cookie in 0..3 {
        let read = Kind::Read { offset: 0, length: 1000 };
        bench.input(Input::Request { conn: Conn(2), cookie, kind: read });
        bench.write(1, cookie, true);
    }
    let status = bench.machine.status(Now { mono_ns: 5_000_000_000, wall_ns: 0 });
    let told = (&*status.group, status.epoch, status.table_bytes, status.reads, status.writes, status.written_bytes);
    assert_eq!(told, ("orders", Epoch(2), TABLE, 3, 3, 24));
    let link = |peer: &str, state: &str, sent_bytes, received_bytes| LinkStatus {
        peer: peer.into(),
        address: "test".into(),
        state: state.into(),
        sent_bytes,
        received_bytes,
        seconds: seconds(5_000_000_000),
        ..LinkStatus::default()
    };
    let wanted = [link("primary", "up", 0, 24), link("reader", "up", 3000, 0), link("primary", "connecting", 0, 0)];
    assert_eq!(format!("{:?}", status.links), format!("{wanted:?}"));
    let [(name, text)] = &bench.machine.exports()[..] else { panic!("one table") };
    assert!(name == "orders" && text.contains("epoch 2"), "{name}: {text}");
    assert_eq!(bench.machine.deadline_ns(), None, "nothing here is a matter of time");
}

#[test]
fn a_writer_that_leaves_while_it_waits_takes_nobody_elses_turn() {
    let mut bench = Bench::new();
    bench.open(1, ONE);
    bench.open(2, TWO);
    bench.open(3, TWO);
    bench.input(Input::Closed { conn: Conn(2) });
    bench.settle();
    assert_eq!(bench.seen(), ["granted 1", "close 1", "granted 3"]);
}

#[test]
fn a_restart_at_any_moment_of_a_grant_never_lets_an_older_epoch_in() {
    for completed in 0..=2 {
        let mut bench = Bench::new();
        bench.open(1, ONE);
        bench.settle();
        bench.open(2, TWO);
        (0..completed).for_each(|_| bench.complete());
        let granted = bench.seen().contains(&"granted 2".to_owned());
        assert_eq!(granted, completed == 2);
        let mut bench = bench.restart();
        bench.open(3, ONE);
        bench.settle();
        let expected = if completed == 0 { "granted 3" } else { "fenced 3: fenced: " };
        assert_eq!(bench.seen(), [expected]);
    }
}

#[test]
fn an_unsettled_epoch_is_written_again_before_its_writer_is_let_in() {
    let mut bench = Bench::new();
    bench.open(1, TWO);
    bench.complete();
    let mut bench = bench.restart();
    bench.open(1, TWO);
    assert_eq!(bench.seen(), [""; 0]);
    bench.settle();
    assert_eq!(bench.seen(), ["granted 1"]);
    // Either slot may be lost now.
    for slot in 0..2 {
        let mut superblock = bench.superblock.clone();
        superblock[slot * BLOCK_BYTES + 100] ^= 4;
        assert_eq!(Bench::on(superblock, vec![1; TABLE as usize]).machine.writer().epoch, Epoch(2));
    }
}

#[test]
fn a_higher_epoch_cuts_the_old_writer_off_and_waits_for_its_writes() {
    let mut bench = Bench::new();
    bench.open(1, ONE);
    bench.settle();
    bench.write(1, 7, true);
    bench.open(2, TWO);
    bench.seen();
    // The superblock twice; the old write is still on its way to the disk.
    let write = bench.waiting.remove(0);
    bench.complete();
    bench.complete();
    assert_eq!(bench.seen(), ["close 1"]);
    bench.write(1, 8, true);
    assert!(bench.waiting.is_empty(), "what a cut-off writer still says is not heard");
    bench.complete_op(write, Ok(()));
    assert_eq!(bench.seen(), ["granted 2"], "and its write on the way is not answered");
    bench.open(3, ONE);
    assert_eq!(bench.seen(), ["fenced 3: fenced: "]);
    assert_eq!(bench.machine.status(Now::default()).fenced, 2);
}

#[test]
fn a_second_primary_of_the_same_epoch_is_refused() {
    let mut bench = Bench::new();
    bench.open(1, ONE);
    bench.open(2, ONE_OTHER);
    bench.settle();
    assert_eq!(bench.seen(), ["granted 1", "fenced 2: second p"]);
    bench.write(1, 1, false);
    bench.settle();
    assert_eq!(bench.seen(), ["reply 1 1 true"], "the first one is not disturbed");
}

#[test]
fn a_writer_that_comes_back_replaces_its_own_connection_without_a_write() {
    let mut bench = Bench::new();
    bench.open(1, ONE);
    bench.settle();
    bench.open(2, ONE);
    assert!(bench.waiting.is_empty());
    assert_eq!(bench.seen(), ["granted 1", "close 1", "granted 2"]);
    assert_eq!(bench.machine.status(Now::default()).fenced, 0);
}

#[test]
fn writers_that_come_together_are_judged_in_turn() {
    let mut bench = Bench::new();
    bench.open(1, TWO);
    bench.open(2, ONE);
    bench.open(3, "orders/3/0000000000000033");
    bench.settle();
    assert_eq!(bench.seen(), ["granted 1", "fenced 2: fenced: ", "close 1", "granted 3"]);
}

#[test]
fn a_writer_that_left_before_its_grant_is_in_force_all_the_same() {
    let mut bench = Bench::new();
    bench.open(1, TWO);
    bench.input(Input::Closed { conn: Conn(1) });
    bench.settle();
    assert_eq!(bench.seen(), [""; 0]);
    bench.open(2, ONE);
    assert_eq!(bench.seen(), ["fenced 2: fenced: "]);
}

#[test]
fn the_view_reads_and_never_writes() {
    let mut bench = Bench::new();
    bench.open(1, "orders");
    bench.open(2, "");
    assert_eq!(bench.seen(), ["view 1", "view 2"]);
    bench.write(1, 1, false);
    bench.input(Input::Request { conn: Conn(1), cookie: 2, kind: Kind::Read { offset: 4, length: 12 } });
    bench.settle();
    assert_eq!(bench.seen(), ["reply 1 1 false", "reply 1 2 true"]);
    // A new writer leaves it alone.
    bench.open(3, ONE);
    bench.settle();
    assert_eq!(bench.seen(), ["granted 3"]);
}

#[test]
fn names_of_others_are_unknown_and_a_probe_changes_nothing() {
    let mut bench = Bench::new();
    bench.open(1, "payroll/1/0000000000000001");
    bench.open(2, "orders/x/0000000000000001");
    assert_eq!(bench.seen(), ["unknown 1: this aux", "unknown 2: the epoc"]);
    bench.input(Input::Probe { conn: Conn(3), export: TWO.into() });
    bench.input(Input::Probe { conn: Conn(3), export: "orders".into() });
    assert_eq!(bench.seen(), ["granted 3", "view 3"]);
    assert_eq!(bench.machine.writer(), Writer::default());
    assert!(bench.waiting.is_empty());
}

#[test]
fn durable_writes_and_flushes_wait_for_the_disk() {
    let mut bench = Bench::new();
    bench.open(1, ONE);
    bench.settle();
    bench.seen();
    bench.write(1, 1, true);
    bench.input(Input::Request { conn: Conn(1), cookie: 2, kind: Kind::Flush });
    let kinds: Vec<_> = bench.waiting.iter().map(|op| (op.file, op.kind.clone())).collect();
    assert!(matches!(kinds[0], (File::Table, DiskKind::Write { durable: true, .. })));
    assert!(matches!(kinds[1], (File::Table, DiskKind::Sync)));
    assert_eq!(bench.seen(), [""; 0]);
    bench.settle();
    assert_eq!(bench.seen(), ["reply 1 1 true", "reply 1 2 true"]);
}

#[test]
fn after_a_failed_write_nothing_is_accepted() {
    let mut bench = Bench::new();
    bench.open(1, ONE);
    bench.settle();
    bench.write(1, 1, true);
    bench.write(1, 2, true);
    let op = bench.waiting.remove(0);
    bench.complete_op(op, Err(IoFail::Other("broken".into())));
    bench.settle();
    bench.write(1, 3, false);
    bench.open(2, TWO);
    let seen = bench.seen();
    let expected =
        ["granted 1", "fatal", "reply 1 1 false", "reply 1 2 false", "reply 1 3 false", "unknown 2: this aux"];
    assert_eq!(seen, expected);
}

#[test]
fn a_failed_grant_is_fatal_and_never_granted() {
    let mut bench = Bench::new();
    bench.open(1, ONE);
    let op = bench.waiting.remove(0);
    bench.complete_op(op, Err(IoFail::NoSpace("full".into())));
    assert_eq!(bench.seen(), ["fatal"]);
}

#[test]
fn stop_finishes_what_is_in_flight_and_syncs() {
    let mut bench = Bench::new();
    bench.open(1, ONE);
    bench.settle();
    bench.write(1, 1, false);
    bench.input(Input::Stop);
    bench.write(1, 2, false);
    assert_eq!(bench.seen(), ["granted 1", "reply 1 2 false"]);
    bench.complete();
    assert!(matches!(bench.waiting[0].kind, DiskKind::Sync));
    bench.settle();
    assert_eq!(bench.seen(), ["reply 1 1 true", "stopped"]);
}

#[derive(Clone, Debug)]
enum Step {
    Open(u32, u64),
    Write,
    Complete(usize),
    Closed(usize),
    Restart,
}

proptest! {
    /// I7 over any interleaving: epochs are granted in no falling order, across restarts; nobody is
    /// answered after a higher epoch, or another owner's connection, was granted.
    #[test]
    fn one_writer_at_a_time(steps in prop::collection::vec(
        prop_oneof![
            3 => (1u32..5, 1u64..3).prop_map(|(epoch, owner)| Step::Open(epoch, owner)),
            4 => Just(Step::Write),
            8 => (0usize..8).prop_map(Step::Complete),
            1 => (0usize..8).prop_map(Step::Closed),
            1 => Just(Step::Restart),
        ],
        1..60,
    )) {
        let mut bench = Bench::new();
        let mut conns: Vec<(u64, Writer)> = Vec::new();
        let mut next = 0;
        let mut in_force: Option<(u64, Writer)> = None;
        let mut last_granted: Option<Writer> = None;
        for step in steps {
            match step {
                Step::Open(epoch, owner) => {
                    next += 1;
                    let writer = Writer { epoch: Epoch(epoch), owner: Owner(owner) };
                    conns.push((next, writer));
                    bench.open(next, &TableExport { group: "orders".into(), writer: Some(writer) }.to_string());
                }
                // Only a granted connection gets requests past its session.
                Step::Write => {
                    if let Some((conn, _)) = in_force {
                        bench.write(conn, 1, true);
                    }
                }
                Step::Complete(index) if !bench.waiting.is_empty() => {
                    let op = bench.waiting.remove(index % bench.waiting.len());
                    bench.complete_op(op, Ok(()));
                }
                Step::Closed(index) if !conns.is_empty() => {
                    let (conn, _) = conns[index % conns.len()];
                    if in_force.is_some_and(|(current, _)| current == conn) {
                        in_force = None;
                    }
                    bench.input(Input::Closed { conn: Conn(conn) });
                }
                Step::Restart => {
                    bench.effects.clear();
                    bench = bench.restart();
                    conns.clear();
                    in_force = None;
                }
                Step::Complete(_) | Step::Closed(_) => {}
            }
            for effect in std::mem::take(&mut bench.effects) {
                match effect {
                    Effect::Granted { conn, .. } => {
                        let writer = conns.iter().find(|(known, _)| *known == conn.0).expect("it asked").1;
                        let before = last_granted.unwrap_or(writer);
                        prop_assert!(writer.epoch > before.epoch || writer == before, "I7: never back, never two");
                        last_granted = Some(writer);
                        prop_assert!(bench.waiting.iter().all(|op| op.file != File::Table), "I7: drained");
                        in_force = Some((conn.0, writer));
                    }
                    Effect::Reply { conn, .. } => {
                        prop_assert_eq!(in_force.map(|(current, _)| current), Some(conn.0), "I7: only the writer in force");
                    }
                    Effect::Close { conn, .. } if in_force.is_some_and(|(current, _)| current == conn.0) => {
                        in_force = None;
                    }
                    Effect::Fatal { text } => prop_assert!(false, "{}", text),
                    _ => {}
                }
            }
            let stored = recover(&bench.superblock, &[1], "orders", Owner(1)).expect("valid at every moment");
            if let Some((_, writer)) = in_force {
                prop_assert!(stored.superblock.epoch >= writer.epoch, "a granted epoch survives a crash now");
            }
        }
    }
}
