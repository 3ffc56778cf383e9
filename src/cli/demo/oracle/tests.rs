//! The oracle is held against itself: a sound story passes, and each way of being wrong is found.

use super::*;
use crate::cluster::losses::MissingWrites;
use crate::core::ids::Epoch;

const BYTES: usize = 16384;

/// Four writes one after another, overlapping; the last was not answered.
fn log() -> Log {
    let one = |id: u64, op: Op, offset: u64, length: u64| Submission {
        id,
        volume: 0,
        op,
        offset,
        length,
        fua: id == 2,
        crc: if op == Op::Write { crc32fast::hash(&content(id, length)) } else { 0 },
        submitted: Duration::from_millis(10 * id),
        acked: (id < 4).then(|| Duration::from_millis(10 * id + 5)),
        failed: None,
        torn: false,
    };
    let submissions = vec![
        one(1, Op::Write, 0, 8192),
        one(2, Op::Write, 4096, 8192),
        one(3, Op::WriteZeroes, 6000, 100),
        one(4, Op::Write, 0, 512),
    ];
    Log { submissions, flushes: vec![(Duration::from_millis(16), Duration::from_millis(17))], ends: Vec::new() }
}

fn volumes() -> Vec<(String, u64)> {
    vec![("db".into(), BYTES as u64)]
}

/// Their records, behind that of the epoch.
fn history(log: &Log) -> History {
    let record = |seq: u64, op: Op| OrderRecord {
        seq: Seq(seq),
        epoch: Epoch(1),
        volume: Volume(0),
        op,
        flags: 0,
        offset: 0,
        length: 0,
        time_ns: seq * 1_000_000,
        chain: Chain(0),
        payload_crc: 0,
    };
    let mut history = History::from([(Seq(1), record(1, Op::EpochStart))]);
    for (one, seq) in log.submissions.iter().zip(2..) {
        let found = OrderRecord {
            volume: Volume(one.volume),
            offset: one.offset,
            length: one.length,
            payload_crc: one.crc,
            ..record(seq, one.op)
        };
        history.insert(Seq(seq), found);
    }
    history
}

/// The exact report of a promotion at `cut`.
fn report(history: &History, cut: u64) -> PromoteReport {
    let missing = history.values().filter(|record| record.seq > Seq(cut)).map(|record| MissingWrite {
        seq: record.seq,
        volume: "db".into(),
        op: record.op.word().into(),
        offset: record.offset,
        length: record.length,
        time: rfc3339(record.time_ns),
        state: "sent".into(),
    });
    let missing = MissingWrites::of(missing).expect("sound");
    let missing_bytes = missing.iter().map(|one| one.length).sum();
    PromoteReport { epoch: Epoch(2), cut_seq: Seq(cut), tail_seq: Seq(5), missing, missing_bytes, ..Default::default() }
}

fn problem<T>(result: Result<T>) -> String {
    result.err().map_or_else(|| "nothing is found wrong".into(), |error| format!("{error:#}"))
}

#[test]
fn a_sound_promotion_passes() {
    let (log, volumes) = (log(), volumes());
    let history = history(&log);
    let oracle = Oracle::new(&log, &history, &volumes, &[], Promise::Acknowledged).expect("sound");
    let found = oracle.report(&report(&history, 2), Promise::Acknowledged).expect("exact");
    assert_eq!(found, Found { acked: 3, kept: 1, reported: 2, unknown: 0, unacked_kept: 0 });
    let image = oracle.image(Volume(0), Seq(4), vec![0; BYTES]);
    assert_eq!(image[..4096], content(1, 8192)[..4096]);
    assert_eq!(image[4096..6000], content(2, 8192)[..1904]);
    assert!(image[6000..6100].iter().all(|byte| *byte == 0));
    oracle.compare(Volume(0), Seq(4), &image, &image).expect("equal");
}

#[test]
fn one_wrong_byte_is_found_and_its_writes_are_named() {
    let (log, volumes) = (log(), volumes());
    let history = history(&log);
    let oracle = Oracle::new(&log, &history, &volumes, &[], Promise::Acknowledged).expect("sound");
    let want = oracle.image(Volume(0), Seq(3), vec![0; BYTES]);
    let mut got = want.clone();
    got[5000] ^= 1;
    let text = problem(oracle.compare(Volume(0), Seq(3), &want, &got));
    assert!(text.contains("1 bytes differ, the first at 5000") && text.contains("seq Some(Seq(3))"), "{text}");
}

#[test]
fn a_torn_write_excuses_its_own_bytes_only() {
    let (mut log, volumes) = (log(), volumes());
    log.interrupted();
    let history = history(&log);
    let oracle = Oracle::new(&log, &history, &volumes, &[], Promise::Acknowledged).expect("sound");
    let want = oracle.image(Volume(0), Seq(5), vec![0; BYTES]);
    let mut got = want.clone();
    got[511] ^= 1;
    oracle.compare(Volume(0), Seq(5), &want, &got).expect("the write of it was never answered");
    got[512] ^= 1;
    assert!(problem(oracle.compare(Volume(0), Seq(5), &want, &got)).contains("first at 512"));
}

#[test]
fn histories_that_are_wrong_are_found() {
    let (log, volumes) = (log(), volumes());
    type Change = fn(&mut History);
    let changes: [(&str, Change); 5] = [
        ("I4: 1 acknowledged writes have no record", |h| h.retain(|seq, _| *seq < Seq(4))),
        ("does not follow", |h| h.retain(|seq, _| *seq != Seq(3))),
        ("nobody asked for", |h| h.get_mut(&Seq(3)).expect("there").payload_crc ^= 1),
        ("nobody asked for", |h| {
            // The same write with two seqs.
            let twice = OrderRecord { seq: Seq(6), ..h[&Seq(3)] };
            h.insert(Seq(6), twice);
        }),
        ("I1: seq", |h| {
            // The second before the first, although the first was answered before the second was asked.
            let (first, second) = (h[&Seq(2)], h[&Seq(3)]);
            h.insert(Seq(2), OrderRecord { seq: Seq(2), ..second });
            h.insert(Seq(3), OrderRecord { seq: Seq(3), ..first });
        }),
    ];
    for (expected, change) in changes {
        let mut history = history(&log);
        change(&mut history);
        let text = problem(Oracle::new(&log, &history, &volumes, &[], Promise::Acknowledged));
        assert!(text.contains(expected), "{expected}: {text}");
    }
    // What a FLUSH covers is all that `ack = "flush"` promises, and FUA writes.
    let mut short = history(&log);
    short.retain(|seq, _| *seq <= Seq(3));
    assert!(Oracle::new(&log, &short, &volumes, &[], Promise::Flushed).is_ok());
    short.retain(|seq, _| *seq <= Seq(2));
    assert!(problem(Oracle::new(&log, &short, &volumes, &[], Promise::Flushed)).contains("I4"));
    assert!(Oracle::new(&log, &short, &volumes, &[], Promise::Prefix).is_ok());
}

/// Changes the list of a report.
fn relisted(report: &mut PromoteReport, change: fn(&mut Vec<MissingWrite>)) {
    let mut list: Vec<MissingWrite> = report.missing.iter().collect();
    change(&mut list);
    report.missing = MissingWrites::of(list).expect("sound");
}

#[test]
fn loss_reports_that_are_wrong_are_found() {
    let (log, volumes) = (log(), volumes());
    let history = history(&log);
    let oracle = Oracle::new(&log, &history, &volumes, &[], Promise::Acknowledged).expect("sound");
    type Change = fn(&mut PromoteReport);
    let changes: [(&str, Change); 6] = [
        ("the report lists", |r| relisted(r, |list| drop(list.pop()))),
        ("the report lists", |r| relisted(r, |list| list.push(list[0].clone()))),
        ("belongs", |r| relisted(r, |list| list[1].offset += 1)),
        ("bytes are missing", |r| r.missing_bytes += 1),
        ("the report ends at", |r| r.tail_seq = Seq(4)),
        ("I5: the cut stops", |r| relisted(r, |list| list[0].state = "held".into())),
    ];
    for (expected, change) in changes {
        let mut wrong = report(&history, 2);
        change(&mut wrong);
        let text = problem(oracle.report(&wrong, Promise::Acknowledged));
        assert!(text.contains(expected), "{expected}: {text}");
    }
}
