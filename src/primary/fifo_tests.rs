//! The disk FIFO as a log alone, over bytes in memory: what goes in comes out once and in order, at the reader and at the
//! scan of a restart, whatever it wraps over (I9), and damage ends it (I8).

use proptest::prelude::*;

use super::*;
use crate::core::ids::{Chain, Epoch, Volume};
use crate::core::op::Op;

const SIZE: u64 = 256 << 10;
const NONCE: u64 = 9;

fn record(seq: u64, data: &[u8]) -> OrderRecord {
    OrderRecord {
        seq: Seq(seq),
        epoch: Epoch(1),
        volume: Volume(0),
        op: Op::Write,
        flags: 0,
        offset: 0,
        length: data.len() as u64,
        time_ns: 1,
        chain: Chain(0),
        payload_crc: crc32fast::hash(data),
    }
    .chained(Chain(seq))
}

fn scan_file(file: &[u8], head: u64) -> Scanned {
    let mut read = |offset: u64, length: usize| {
        let from = offset as usize;
        let mut out = file[from..(from + length).min(file.len())].to_vec();
        out.resize(length, 0);
        Ok(out.into())
    };
    scan(file.len() as u64, NONCE, head, &mut read).expect("memory does not fail")
}

/// A log and its file; `seqs` have been written and not been taken out.
struct Log {
    fifo: DiskFifo,
    file: Vec<u8>,
    seq: u64,
    seqs: VecDeque<u64>,
}

impl Log {
    fn new(pos: u64) -> Log {
        Log { fifo: DiskFifo::new(SIZE, NONCE, pos), file: vec![0; SIZE as usize], seq: 0, seqs: VecDeque::new() }
    }

    /// Appends a payload; false where there is no place for it.
    fn append(&mut self, bytes: u64) -> bool {
        let entry_bytes = spool::entry_bytes(bytes);
        if !self.fifo.fits(entry_bytes) {
            assert!(!self.fifo.has_room(bytes), "{bytes} bytes were said to fit");
            return false;
        }
        self.seq += 1;
        let data = vec![self.seq as u8; bytes as usize];
        let header = self.fifo.place(record(self.seq, &data));
        let mut parts = Vec::new();
        spool::encode_entry(&header, NONCE, data.into(), &mut parts);
        let at = (header.pos % SIZE) as usize;
        self.file[at..at + entry_bytes as usize].copy_from_slice(&parts.concat());
        let end = self.fifo.tail;
        self.fifo.appends.push_back((end, false));
        self.fifo.append_done(end);
        self.seqs.push_back(self.seq);
        true
    }

    /// Reads up to `bytes` of what has not been read, as the machine does.
    fn read(&mut self, bytes: u64) {
        let fifo = &self.fifo;
        if fifo.read < fifo.written {
            let to_end = SIZE - fifo.read % SIZE;
            let length = bytes.max(fifo.need).min(to_end).min(fifo.written - fifo.read) as usize;
            let (pos, at) = (fifo.read, (fifo.read % SIZE) as usize);
            let found = Bytes::copy_from_slice(&self.file[at..at + length]);
            self.fifo.parse(pos, &found).expect("nothing is damaged");
        }
    }

    fn scan(&self, head: u64) -> (u64, Seq) {
        let found = scan_file(&self.file, head);
        assert_eq!(found.damage, None, "the log is shorter than what a crash may leave");
        (found.end, found.last)
    }

    fn check(&self) {
        let fifo = &self.fifo;
        assert!(fifo.saved <= fifo.head && fifo.head <= fifo.read && fifo.read <= fifo.written);
        assert!(fifo.written == fifo.tail && fifo.tail - fifo.saved <= SIZE);
        assert_eq!(fifo.bytes(), fifo.tail - fifo.head);
        assert_eq!(fifo.all_sent(), self.seqs.is_empty(), "{:?}", self.seqs);
        let staged: u64 = fifo.staged.iter().map(|it| spool::entry_bytes(it.data.len() as u64)).sum();
        assert_eq!(fifo.staged_bytes, staged);
        // A start finds everything from the head that the superblock names on.
        let (end, last) = self.scan(fifo.saved);
        assert_eq!((end, last), (fifo.tail, Seq(if fifo.tail > fifo.saved { self.seq } else { 0 })));
    }
}

proptest! {
    #[test]
    fn what_goes_into_the_disk_fifo_comes_out_once_and_in_order(
        steps in prop::collection::vec((0..6u8, 1..64u64), 1..200),
        begin in 0..2 * SIZE / 512,
    ) {
        let mut log = Log::new(begin * 512);
        let mut taken: Option<Staged> = None;
        for (what, number) in steps {
            match what {
                0..=2 => drop(log.append(number * number * 16)),
                3 => log.read(512 * number),
                4 => {
                    let peeked = log.fifo.peek_staged().map(|staged| staged.record.seq);
                    let staged = log.fifo.pop_staged();
                    prop_assert_eq!(peeked, staged.as_ref().map(|staged| staged.record.seq));
                    if let Some(staged) = staged {
                        prop_assert_eq!(Some(staged.record.seq.0), log.seqs.pop_front());
                        prop_assert!(staged.data.iter().all(|byte| *byte == staged.record.seq.0 as u8));
                        prop_assert_eq!(staged.data.len() as u64, staged.record.length);
                        taken = Some(staged);
                    }
                    log.fifo.release(taken.as_ref().map(|staged| staged.pos));
                    prop_assert!(taken.as_ref().is_none_or(|it| log.fifo.head <= it.pos), "it may be lost on its way");
                }
                _ => {
                    // DR has all that was taken, or its stream was lost and the last one is sent again.
                    if let Some(staged) = taken.take().filter(|_| number % 2 == 0) {
                        log.seqs.push_front(staged.record.seq.0);
                        log.fifo.unstage(staged);
                    }
                    log.fifo.release(None);
                    if number % 3 == 0 || log.fifo.wants_saving() {
                        log.fifo.saved(log.fifo.head());
                    }
                }
            }
            log.check();
        }
        while !log.fifo.all_sent() {
            log.read(SIZE);
            while let Some(staged) = log.fifo.pop_staged() {
                prop_assert_eq!(Some(staged.record.seq.0), log.seqs.pop_front());
            }
        }
        log.fifo.release(None);
        prop_assert!(log.fifo.is_empty() && log.seqs.is_empty());
    }

    /// An entry that cannot be told from garbage ends what a start takes for the content; so does one of an older lap.
    #[test]
    fn a_scan_ends_at_the_first_damaged_byte(lengths in prop::collection::vec(1..4096u64, 2..12), at in 0..1u64 << 20) {
        let mut log = Log::new(0);
        let mut ends = vec![0];
        for length in lengths {
            prop_assert!(log.append(length));
            ends.push(log.fifo.tail);
        }
        let at = at % log.fifo.tail;
        let whole = ends.iter().rposition(|end| *end <= at).expect("0 is one of them");
        let entry_at = at - ends[whole];
        let data = spool::ENTRY_HEADER_BYTES as u64 + record_length(&log, ends[whole]);
        log.file[at as usize] ^= 0x10;
        let reached = log.scan(0);
        // Nobody reads the padding.
        let harmless = entry_at >= data;
        let wanted = if harmless { (log.fifo.tail, Seq(log.seq)) } else { (ends[whole], Seq(whole as u64)) };
        prop_assert_eq!(reached, wanted, "byte {} of an entry", entry_at);
        let found = Bytes::copy_from_slice(&log.file[..log.fifo.tail as usize]);
        prop_assert_eq!(log.fifo.parse(0, &found).is_ok(), harmless);
        prop_assert_eq!(log.fifo.read, wanted.0);
    }
}

fn record_length(log: &Log, pos: u64) -> u64 {
    let header = &log.file[pos as usize..][..ENTRY_HEADER_BYTES];
    EntryHeader::decode(header, NONCE).expect("whole").data_bytes()
}

#[test]
fn without_a_disk_fifo_nothing_fits_and_one_that_is_empty_takes_half_of_itself() {
    let none = DiskFifo::new(0, NONCE, 0);
    assert!(!none.has_room(0) && !none.has_room(512) && none.is_empty());
    let empty = DiskFifo::new(1 << 20, NONCE, 7 << 20);
    assert!(empty.has_room(512 << 10) && !empty.has_room(1 << 20));
    assert!(empty.fits(1 << 20) && !empty.fits((1 << 20) + 512), "all of it, by itself");
}

/// What is given up while it is on disk is not sent, and what is appended after it is.
#[test]
fn what_is_cleared_is_gone_and_the_log_goes_on_behind_it() {
    let mut log = Log::new(0);
    (0..4).for_each(|_| assert!(log.append(3000)));
    log.read(5000);
    let old = log.fifo.pop_staged().expect("read");
    log.fifo.clear();
    assert!(log.fifo.is_empty() && log.fifo.all_sent() && log.fifo.bytes() == 0);
    log.fifo.unstage(old);
    assert!(log.fifo.pop_staged().is_none(), "a batch has it");
    assert!(log.append(2000));
    log.read(SIZE);
    assert_eq!(log.fifo.pop_staged().map(|staged| staged.record.seq), Some(Seq(5)));
    assert!(log.fifo.pop_staged().is_none());
}

/// A crash may leave the head of an entry at the start of the file and not its data: what was passed over before it is no part
/// of the log then, for nothing that is taken out would free it.
#[test]
fn a_start_passes_over_nothing_before_an_entry_that_is_not_whole() {
    for before in [0, 2] {
        let from = SIZE - 2048 - before * spool::entry_bytes(512);
        let mut log = Log::new(from);
        (0..before).for_each(|_| assert!(log.append(512)));
        assert!(log.append(3000) && log.fifo.tail == SIZE + spool::entry_bytes(3000), "it did not fit before the end");
        log.file[spool::ENTRY_HEADER_BYTES + 7] ^= 1;
        let found = scan_file(&log.file, from);
        assert_eq!((found.end, found.last, found.turn), (SIZE - 2048, Seq(before), None));
        log.fifo = DiskFifo::resume(SIZE, NONCE, from, &found);
        log.read(SIZE);
        while log.fifo.pop_staged().is_some() {}
        log.fifo.release(None);
        assert!(log.fifo.is_empty() && log.fifo.all_sent());
    }
}

/// Appends end in any order: what is readable has no hole.
#[test]
fn only_what_is_written_without_a_hole_is_read() {
    let mut fifo = DiskFifo::new(SIZE, NONCE, 0);
    let ends: Vec<u64> = (0..3)
        .map(|_| {
            fifo.place(record(1, &[0; 512]));
            fifo.appends.push_back((fifo.tail, false));
            fifo.tail
        })
        .collect();
    for (done, written) in [(1, 0), (0, ends[1]), (2, ends[2])] {
        fifo.append_done(ends[done]);
        assert_eq!(fifo.written, written);
    }
}

/// The superblock is written for its sake when an eighth of it has become free, and never says less than it did.
#[test]
fn space_is_given_back_in_eighths() {
    let mut log = Log::new(0);
    while log.append(1024) {}
    log.read(SIZE);
    let mut saved = 0;
    while log.fifo.pop_staged().is_some() {
        log.fifo.release(None);
        assert_eq!(log.fifo.wants_saving(), log.fifo.head() - saved > SIZE / 8);
        if log.fifo.wants_saving() {
            saved = log.fifo.head();
            log.fifo.saved(saved);
            log.fifo.saved(0);
            assert!(log.append(1024));
            log.read(512);
        }
        if log.fifo.tail > 3 * SIZE {
            break;
        }
    }
    assert!(saved > SIZE / 8);
}

/// A damaged header is not taken for the place where the writer went on at the start: what stands between is not passed
/// over, at the scan of a start nor at the reader.
#[test]
fn damage_in_a_round_that_another_follows_ends_the_log_there() {
    let mut log = Log::new(0);
    while log.fifo.tail + 4096 <= SIZE {
        assert!(log.append(3000));
    }
    log.read(SIZE);
    while log.seqs.len() > 3 {
        log.fifo.pop_staged().expect("read");
        log.seqs.pop_front();
    }
    log.fifo.release(None);
    log.fifo.saved(log.fifo.head());
    (0..3).for_each(|_| assert!(log.append(3500), "goes on at the start"));
    let (head, tail) = (log.fifo.head, log.fifo.tail);
    let turn = log.fifo.turn.expect("what is left at the end is too short");
    assert!(head < turn.from && turn.from < turn.to && turn.to < tail);
    assert_eq!(log.scan(head), (tail, Seq(log.seq)));
    let seq = |file: &[u8]| scan_file(file, head).last;
    assert_eq!(scan_file(&log.file, head).turn, Some(turn));
    let second = (head + spool::entry_bytes(3000)) as usize;
    let mut damaged = log.file.clone();
    damaged[second + 20] ^= 1;
    assert_eq!(seq(&damaged), Seq(log.seq - 5), "only the first is whole");
    let mut fifo = DiskFifo::resume(SIZE, NONCE, head, &scan_file(&log.file, head));
    let bytes = |file: &[u8], from: u64| Bytes::copy_from_slice(&file[(from % SIZE) as usize..SIZE as usize]);
    let told = fifo.parse(head, &bytes(&damaged, head)).expect_err("damaged");
    assert!(told.contains("checksum") && fifo.staged.len() == 1, "{told}");
    let mut fifo = DiskFifo::resume(SIZE, NONCE, head, &scan_file(&log.file, head));
    fifo.parse(head, &bytes(&log.file, head)).expect("whole");
    assert_eq!((fifo.staged.len(), fifo.read), (3, turn.to));
}

/// Behind the end that a crash leaves there may be entries that were completed out of order; further behind there is none
/// unless what stands before it was whole once.
#[test]
fn damage_is_told_from_what_a_crash_left() {
    let size = 2 * TORN_BYTES_MAX;
    let mut fifo = DiskFifo::new(size, NONCE, 0);
    let mut file = vec![0; size as usize];
    let data = vec![7; 1 << 20];
    let mut heads = Vec::new();
    for seq in 1.. {
        if fifo.tail + (2 << 20) > size {
            break;
        }
        let header = fifo.place(record(seq, &data));
        let mut parts = Vec::new();
        spool::encode_entry(&header, NONCE, data.clone().into(), &mut parts);
        let bytes = parts.concat();
        file[header.pos as usize..][..bytes.len()].copy_from_slice(&bytes);
        heads.push(header.pos);
    }
    assert_eq!(scan_file(&file, 0).damage, None);
    let entry = heads[1];
    for (index, named) in
        [(2, true), (heads.len() - (TORN_BYTES_MAX / entry) as usize, false), (heads.len() - 1, false)]
    {
        for at in [40, 4096] {
            file[heads[index] as usize + at] ^= 1;
            let found = scan_file(&file, 0);
            assert_eq!((found.end, found.last), (heads[index], Seq(index as u64)));
            assert_eq!(found.damage.is_some(), named, "{:?}", found.damage);
            if let Some(text) = found.damage {
                assert!(text.contains(&format!("at offset {}", heads[index])) && text.contains("checksum"), "{text}");
            }
            file[heads[index] as usize + at] ^= 1;
        }
    }
}
