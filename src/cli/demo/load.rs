//! A random workload over NBD that remembers everything it asked and what was answered.
//!
//! Every write has bytes of its own, made from its number; every TRIM and WRITE_ZEROES has a range of its own. So an
//! order record belongs to exactly one request, however many were in flight at once.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::nbd::{Ask, Client};
use crate::core::address::Address;
use crate::core::op::Op;

const BLOCK: u64 = 4096;
const SECTOR: u64 = 512;
/// Half of the requests fall here, so that they overlap.
const HOT_BYTES: u64 = 1 << 20;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub address: Address,
    /// Export, index in the group, bytes.
    pub volumes: Vec<(String, u16, u64)>,
    /// Connections to each volume.
    pub connections: usize,
    /// Requests in flight on each connection.
    pub depth: usize,
    /// Longest write, bytes.
    pub bytes_max: u64,
    /// Rest before each request: 0 to go as fast as answers come.
    pub pause: Duration,
}

/// One request that changes a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// Makes the bytes.
    pub id: u64,
    pub volume: u16,
    pub op: Op,
    pub offset: u64,
    pub length: u64,
    pub fua: bool,
    /// CRC-32 of the bytes, 0 without any.
    pub crc: u32,
    /// Since the beginning of the log.
    pub submitted: Duration,
    /// When success was reported, if it was.
    pub acked: Option<Duration>,
    /// The error number that was reported, if one was.
    pub failed: Option<u32>,
    /// The primary was killed before it answered, and started again: its disk may hold all, part or nothing of it.
    pub torn: bool,
}

/// Everything that was asked.
#[derive(Clone, Debug, Default)]
pub struct Log {
    pub submissions: Vec<Submission>,
    /// Submission and answer of every successful FLUSH.
    pub flushes: Vec<(Duration, Duration)>,
    /// Why connections ended before they were told to.
    pub ends: Vec<String>,
}

/// A workload under way.
pub struct Load {
    stop: Arc<AtomicBool>,
    acked: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Log>>,
}

/// What threads of one load share, and loads of one history.
#[derive(Clone)]
pub struct Origin {
    begin: Instant,
    next: Arc<AtomicU64>,
    ranges: Arc<Mutex<HashSet<(u16, u64, u64)>>>,
}

impl Default for Origin {
    fn default() -> Origin {
        Origin { begin: Instant::now(), next: Arc::new(AtomicU64::new(1)), ranges: Arc::default() }
    }
}

impl Load {
    /// Connects and begins.
    pub fn start(plan: &Plan, origin: &Origin) -> std::io::Result<Load> {
        let (stop, acked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut threads = Vec::new();
        for (export, volume, bytes) in &plan.volumes {
            for number in 0..plan.connections {
                let client = Client::connect(&plan.address, export)?;
                let mut worker = Worker {
                    client,
                    origin: origin.clone(),
                    stop: Arc::clone(&stop),
                    acked: Arc::clone(&acked),
                    random: Random::new(plan.seed ^ (u64::from(*volume) << 32) ^ (number as u64) << 40),
                    volume: *volume,
                    bytes: *bytes,
                    plan: plan.clone(),
                    log: Log::default(),
                    open: HashMap::new(),
                };
                threads.push(std::thread::spawn(move || {
                    if let Err(error) = worker.run() {
                        worker.log.ends.push(error.to_string());
                    }
                    worker.log
                }));
            }
        }
        Ok(Load { stop, acked, threads })
    }

    /// Requests answered with success so far.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    /// Asks nothing more, and waits until everything asked is answered or the connections are gone.
    #[must_use]
    pub fn finish(self) -> Log {
        self.stop.store(true, Ordering::Relaxed);
        let mut whole = Log::default();
        for thread in self.threads {
            whole.merge(thread.join().expect("a thread of the workload panicked"));
        }
        whole
    }
}

impl Log {
    pub fn merge(&mut self, other: Log) {
        self.submissions.extend(other.submissions);
        self.flushes.extend(other.flushes);
        self.ends.extend(other.ends);
    }

    /// The primary was killed after all this, and started again on the same disk.
    pub fn interrupted(&mut self) {
        self.submissions.iter_mut().for_each(|one| one.torn |= one.acked.is_none());
    }

    /// Requests answered with success.
    #[must_use]
    pub fn acked(&self) -> usize {
        self.submissions.iter().filter(|one| one.acked.is_some()).count()
    }
}

/// The bytes of the write with this number.
#[must_use]
pub fn content(id: u64, length: u64) -> Vec<u8> {
    let length = length as usize;
    let mut random = Random::new(id);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.draw().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// SplitMix64: small, seeded, the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1))
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }
}

struct Worker {
    client: Client,
    origin: Origin,
    stop: Arc<AtomicBool>,
    acked: Arc<AtomicU64>,
    random: Random,
    volume: u16,
    bytes: u64,
    plan: Plan,
    /// Place in the log of what is not answered yet; of a flush, when it was asked.
    open: HashMap<u64, Open>,
    log: Log,
}

enum Open {
    Change(usize),
    Flush(Duration),
}

impl Worker {
    fn run(&mut self) -> std::io::Result<()> {
        loop {
            while self.open.len() < self.plan.depth && !self.stop.load(Ordering::Relaxed) {
                self.ask()?;
                if !self.plan.pause.is_zero() {
                    std::thread::sleep(self.plan.pause);
                }
            }
            if self.open.is_empty() {
                return Ok(());
            }
            self.answer()?;
        }
    }

    fn ask(&mut self) -> std::io::Result<()> {
        let id = self.origin.next.fetch_add(1, Ordering::Relaxed);
        let submitted = self.origin.begin.elapsed();
        if self.random.below(100) < 3 {
            self.open.insert(id, Open::Flush(submitted));
            return self.client.send(id, Ask::Flush);
        }
        let (op, offset, length) = self.draw();
        let fua = self.random.below(100) < 5;
        let data = if op == Op::Write { content(id, length) } else { Vec::new() };
        let crc = if op == Op::Write { crc32fast::hash(&data) } else { 0 };
        let one = Submission {
            id,
            volume: self.volume,
            op,
            offset,
            length,
            fua,
            crc,
            submitted,
            acked: None,
            failed: None,
            torn: false,
        };
        self.open.insert(id, Open::Change(self.log.submissions.len()));
        self.log.submissions.push(one);
        let short = length as u32;
        let ask = match op {
            Op::Trim => Ask::Trim { offset, length: short, fua },
            Op::WriteZeroes => Ask::Zeroes { offset, length: short, fua, no_hole: id & 1 == 0 },
            _ => Ask::Write { offset, data: &data, fua },
        };
        self.client.send(id, ask)
    }

    fn answer(&mut self) -> std::io::Result<()> {
        let answer = self.client.receive()?;
        let now = self.origin.begin.elapsed();
        let open = self.open.remove(&answer.cookie);
        let open = open.ok_or_else(|| std::io::Error::other(format!("an answer to nothing: {}", answer.cookie)))?;
        match (open, answer.result) {
            (Open::Change(at), Ok(_)) => {
                self.log.submissions[at].acked = Some(now);
                self.acked.fetch_add(1, Ordering::Relaxed);
            }
            (Open::Change(at), Err(number)) => self.log.submissions[at].failed = Some(number),
            (Open::Flush(submitted), Ok(_)) => self.log.flushes.push((submitted, now)),
            (Open::Flush(_), Err(_)) => {}
        }
        Ok(())
    }

    /// Operation and range: mostly blocks, also sectors and odd bytes; half of them in a hot place.
    fn draw(&mut self) -> (Op, u64, u64) {
        loop {
            let op = match self.random.below(100) {
                0..5 => Op::Trim,
                5..10 => Op::WriteZeroes,
                _ => Op::Write,
            };
            let most = self.plan.bytes_max.min(self.bytes / 2);
            let (grain, length) = match self.random.below(100) {
                0..60 => (BLOCK, BLOCK),
                60..75 => (BLOCK, BLOCK * (1 + self.random.below(most / BLOCK))),
                75..92 => (SECTOR, SECTOR * (1 + self.random.below(most / SECTOR))),
                // At least as many bytes as make a write unlike any other.
                _ => (1, 16 + self.random.below(most - 16)),
            };
            let room = if self.random.below(2) == 0 { HOT_BYTES.min(self.bytes) } else { self.bytes };
            let room = room.max(length) - length;
            let offset = self.random.below(room / grain + 1) * grain;
            let fresh = op == Op::Write || {
                let mut ranges = self.origin.ranges.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                ranges.insert((self.volume << 1 | u16::from(op == Op::Trim), offset, length))
            };
            if fresh {
                return (op, offset, length);
            }
        }
    }
}
