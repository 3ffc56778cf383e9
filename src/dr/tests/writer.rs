//! A model of a primary: assigns seqs, ships orders and payloads in any order over flaky links, makes
//! batches, and knows every prefix of its history.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::disk::Rng;
use crate::core::ids::{Chain, Conn, Epoch, GroupId, Owner, Seq, Volume};
use crate::core::op::Op;
use crate::format::record::OrderRecord;
use crate::format::table::{Heartbeat, NO_PAYLOAD, SlotState, State, TableHeader, TableLayout};
use crate::format::wire::{Hello, Message, Patch, Purpose};

pub const VOLUME_BYTES: u64 = 96 << 10;
pub const GROUP: GroupId = GroupId(0xF00D);

/// Two volumes in memory.
pub type Image = Vec<Vec<u8>>;

pub fn volumes() -> Vec<(String, u64)> {
    vec![("db".into(), VOLUME_BYTES), ("log".into(), VOLUME_BYTES)]
}

/// A batch being sent.
#[derive(Clone, Debug, Default)]
pub struct Sending {
    pub begin: Seq,
    ranges: Vec<(usize, u64, u64)>,
    next: usize,
    acked: BTreeSet<u64>,
    /// Not all of it was found at DR.
    wanted: BTreeSet<u64>,
    bytes: u64,
    pub end: Option<Seq>,
}

#[derive(Clone)]
pub struct Writer {
    pub epoch: Epoch,
    pub records: Vec<OrderRecord>,
    pub data: BTreeMap<Seq, Bytes>,
    initial: Image,
    pub image: Image,
    /// Never sent as a stream: left to a batch.
    dropped: BTreeSet<Seq>,
    /// Blocks that a batch has to bring, until the cut has passed it.
    dirty: BTreeSet<(usize, u64)>,
    pub sending: Option<Sending>,
    pub copied: BTreeSet<Seq>,
    pub durable: Seq,
    pub cut: Seq,
    synced: bool,
    incarnation: u64,
    /// Connections: order, streams; what is on its way to DR.
    pub conns: BTreeMap<Conn, VecDeque<Message>>,
    pub order: Option<Conn>,
    pub streams: Vec<Conn>,
    welcomed: BTreeSet<Conn>,
    next_order: usize,
    unsent: VecDeque<Seq>,
    /// Whether payloads also stand in the auxiliary's ring.
    pub bunker: bool,
    /// How far out of order payloads are sent.
    pub reorder: usize,
    /// DR has said that it gave up payloads.
    pub forgiving: bool,
    /// Pings are not answered: its streams are slow.
    pub slow: bool,
    /// DR's files were damaged: it may come back with less than it promised.
    pub damaged: bool,
    /// What was written up to here is not remembered as owed; a restart does not bring it back.
    forgotten: Seq,
}

const BLOCK: u64 = 4096;

impl Writer {
    pub fn new(rng: &mut Rng, blank: bool) -> Writer {
        let fill = |rng: &mut Rng| (0..VOLUME_BYTES).map(|_| rng.next() as u8).collect::<Vec<u8>>();
        let initial: Image = if blank { vec![vec![0; VOLUME_BYTES as usize]; 2] } else { vec![fill(rng), fill(rng)] };
        Writer {
            epoch: Epoch(1),
            records: Vec::new(),
            data: BTreeMap::new(),
            image: initial.clone(),
            initial,
            dropped: BTreeSet::new(),
            dirty: BTreeSet::new(),
            sending: None,
            copied: BTreeSet::new(),
            durable: Seq(0),
            cut: Seq(0),
            synced: false,
            incarnation: 7,
            conns: BTreeMap::new(),
            order: None,
            streams: Vec::new(),
            welcomed: BTreeSet::new(),
            next_order: 0,
            unsent: VecDeque::new(),
            bunker: false,
            forgiving: false,
            slow: false,
            damaged: false,
            forgotten: Seq(0),
            reorder: if rng.chance(30) { 300 } else { 6 },
        }
    }

    pub fn tail(&self) -> Seq {
        self.records.last().map_or(Seq(0), |record| record.seq)
    }

    fn add(&mut self, op: Op, volume: u16, offset: u64, length: u64, payload_crc: u32) -> Seq {
        self.add_at(self.tail().next(), op, volume, offset, length, payload_crc)
    }

    fn add_at(&mut self, seq: Seq, op: Op, volume: u16, offset: u64, length: u64, payload_crc: u32) -> Seq {
        let previous = self.records.last().map_or(Chain(0), |record| record.chain);
        let record = OrderRecord {
            seq,
            epoch: self.epoch,
            volume: Volume(volume),
            op,
            flags: 0,
            offset,
            length,
            time_ns: 1_795_341_600_000_000_000 + seq.0,
            chain: Chain(0),
            payload_crc,
        };
        self.records.push(record.chained(previous));
        seq
    }

    /// An application writes, zeroes, trims, or nothing changes.
    pub fn write(&mut self, rng: &mut Rng) {
        let volume = rng.index(2);
        let offset = rng.below(VOLUME_BYTES / 512) * 512;
        let sectors = if rng.chance(10) { 60 } else { 8 };
        let length = (512 * (1 + rng.below(sectors))).min(VOLUME_BYTES - offset);
        let range = offset as usize..(offset + length) as usize;
        match rng.below(12) {
            0 => {
                self.add(Op::WriteZeroes, volume as u16, offset, length, 0);
                self.image[volume][range].fill(0);
            }
            1 => {
                self.add(Op::Trim, volume as u16, offset, length, 0);
                self.image[volume][range].fill(0);
            }
            2 => {
                self.add(Op::Mark, 0, 0, 0, 0);
            }
            _ => {
                let bytes: Vec<u8> = (0..length).map(|_| rng.next() as u8).collect();
                self.image[volume][range].copy_from_slice(&bytes);
                let seq = self.add(Op::Write, volume as u16, offset, length, crc32fast::hash(&bytes));
                self.data.insert(seq, bytes.into());
                self.unsent.push_back(seq);
            }
        }
    }

    /// One write of given bytes.
    pub fn write_at(&mut self, volume: u16, offset: u64, bytes: Bytes) {
        let range = offset as usize..offset as usize + bytes.len();
        self.image[usize::from(volume)][range].copy_from_slice(&bytes);
        let seq = self.add(Op::Write, volume, offset, bytes.len() as u64, crc32fast::hash(&bytes));
        self.data.insert(seq, bytes);
        self.unsent.push_back(seq);
    }

    /// The primary's process starts again and skips some seqs: they were reserved.
    pub fn restart(&mut self, rng: &mut Rng) {
        for conn in self.conns.keys().copied().collect::<Vec<_>>() {
            self.cut_off(conn);
        }
        self.incarnation += 1;
        if self.damaged {
            // A process that starts again does not know what DR told the one before it.
            self.cut = Seq(0);
        }
        let previous = self.tail();
        self.add_at(Seq(previous.0 + 1 + rng.below(9)), Op::EpochStart, 0, previous.0, 0, 0);
    }

    /// The primary's host loses its power, and starts again behind the seqs that it had reserved: it does not know the last one.
    pub fn lose_power(&mut self, skips: u64) {
        self.incarnation += 1;
        self.add_at(Seq(self.tail().0 + 1 + skips), Op::EpochStart, 0, 0, 1, 0);
    }

    /// The state after the seqs up to `cut`.
    pub fn prefix(&self, cut: Seq) -> Image {
        let mut image = self.initial.clone();
        for record in self.records.iter().take_while(|record| record.seq <= cut) {
            let volume = usize::from(record.volume.0);
            let range = record.offset as usize..(record.offset + record.length) as usize;
            match record.op {
                Op::Write => image[volume][range].copy_from_slice(&self.data[&record.seq]),
                Op::WriteZeroes | Op::Trim => image[volume][range].fill(0),
                _ => {}
            }
        }
        image
    }

    pub fn record(&self, seq: Seq) -> &OrderRecord {
        let index = self.records.partition_point(|record| record.seq < seq);
        &self.records[index]
    }

    fn mark_dirty(&mut self, seq: Seq) {
        let record = *self.record(seq);
        if !record.changes_volume() {
            return;
        }
        let first = record.offset / BLOCK;
        for block in first..=(record.offset + record.length - 1) / BLOCK {
            self.dirty.insert((usize::from(record.volume.0), block));
        }
    }

    /// The FIFO overflows: some payloads are left to a batch, which begins.
    pub fn overflow(&mut self, rng: &mut Rng) {
        if !self.synced && self.sending.is_none() {
            return;
        }
        let drop: Vec<Seq> = self.unsent.iter().copied().filter(|_| rng.chance(60)).collect();
        for seq in drop {
            self.unsent.retain(|&unsent| unsent != seq);
            self.dropped.insert(seq);
            self.mark_dirty(seq);
        }
        self.begin_batch();
    }

    /// Everything has to be copied.
    fn first_sync(&mut self) {
        for volume in 0..2 {
            self.dirty.extend((0..VOLUME_BYTES / BLOCK).map(|block| (volume, block)));
        }
        self.begin_batch();
    }

    fn begin_batch(&mut self) {
        let begin = self.add(Op::BatchBegin, 0, 0, 0, 0);
        let ranges = self.dirty.iter().map(|&(volume, block)| (volume, block * BLOCK, BLOCK)).collect();
        // What was to be streamed from before the begin and is not at DR never comes.
        self.unsent.clear();
        let superseded: Vec<Seq> =
            self.data.keys().copied().filter(|seq| !self.copied.contains(seq) && !self.dropped.contains(seq)).collect();
        for seq in superseded {
            self.dropped.insert(seq);
            self.mark_dirty(seq);
        }
        let mut sending = Sending { begin, ranges, ..Sending::default() };
        sending.ranges = self.dirty.iter().map(|&(volume, block)| (volume, block * BLOCK, BLOCK)).collect();
        self.sending = Some(sending);
    }

    pub fn hello(&self, purpose: Purpose) -> Message {
        Message::Hello(Hello {
            purpose,
            group: GROUP,
            group_name: "orders".into(),
            epoch: self.epoch,
            owner: Owner(42),
            incarnation: self.incarnation,
            volumes: volumes(),
            tail: self.tail(),
        })
    }

    /// The next payload is not sent: it is taken for one that DR has.
    pub fn withhold(&mut self) -> Seq {
        let seq = self.unsent.pop_front().expect("something was written");
        self.copied.insert(seq);
        self.forgiving = true;
        seq
    }

    /// Payloads that have not been sent.
    pub fn unsent(&self) -> usize {
        self.unsent.len()
    }

    /// Connections are gone; what was on its way is lost.
    pub fn cut_off(&mut self, conn: Conn) {
        self.conns.remove(&conn);
        self.welcomed.remove(&conn);
        self.streams.retain(|&stream| stream != conn);
        if self.order == Some(conn) {
            self.order = None;
        }
        if let Some(sending) = &mut self.sending {
            // Whatever was not acknowledged is sent again.
            sending.next = 0;
        }
        self.unsent = self.records.iter().filter(|it| it.op == Op::Write).map(|it| it.seq).collect();
        self.unsent.retain(|seq| !self.copied.contains(seq) && !self.dropped.contains(seq));
    }

    /// Puts something on its way, if there is something to send.
    pub fn send(&mut self, rng: &mut Rng) {
        let Some(order) = self.order.filter(|conn| self.welcomed.contains(conn)) else { return };
        if rng.chance(40) && self.next_order < self.records.len() {
            let count = (1 + rng.index(6)).min(self.records.len() - self.next_order);
            let records = self.records[self.next_order..self.next_order + count].to_vec();
            self.next_order += count;
            self.queue(order, Message::Orders(records));
        }
        let streams: Vec<Conn> = self.streams.iter().copied().filter(|conn| self.welcomed.contains(conn)).collect();
        if streams.is_empty() {
            return;
        }
        let stream = streams[rng.index(streams.len())];
        if !self.unsent.is_empty() && rng.chance(70) {
            // Out of order within a window, sometimes twice.
            let index = rng.index(self.unsent.len().min(self.reorder));
            let seq = self.unsent[index];
            if !rng.chance(10) {
                self.unsent.remove(index);
            }
            let message = Message::Payload { record: *self.record(seq), data: self.data[&seq].clone() };
            self.queue(stream, message);
        }
        self.send_chunk(rng, stream);
    }

    fn queue(&mut self, conn: Conn, message: Message) {
        self.conns.entry(conn).or_default().push_back(message);
    }

    fn send_chunk(&mut self, rng: &mut Rng, stream: Conn) {
        let Some(mut sending) = self.sending.take() else { return };
        while sending.acked.contains(&(sending.next as u64)) {
            sending.next += 1;
        }
        if sending.next < sending.ranges.len() {
            let index = sending.next as u64;
            sending.next += if rng.chance(5) { 0 } else { 1 };
            {
                let (volume, offset, length) = sending.ranges[index as usize];
                let data = self.image[volume][offset as usize..(offset + length) as usize].to_vec();
                let zero = data.iter().all(|&byte| byte == 0);
                let record = OrderRecord {
                    seq: sending.begin,
                    epoch: self.epoch,
                    volume: Volume(volume as u16),
                    op: if zero { Op::WriteZeroes } else { Op::Write },
                    flags: 0,
                    offset,
                    length,
                    time_ns: 1,
                    chain: Chain(0),
                    payload_crc: if zero { 0 } else { crc32fast::hash(&data) },
                };
                let data = if zero { Bytes::new() } else { Bytes::from(data) };
                let asks = !zero && !sending.wanted.contains(&index) && rng.chance(50);
                let message = if asks {
                    Message::Patch(Patch::new(index, record, &data, 0))
                } else {
                    Message::Chunk { index, record, data }
                };
                self.queue(stream, message);
            }
        } else if sending.end.is_none() && sending.acked.len() == sending.ranges.len() {
            let (count, bytes) = (sending.ranges.len() as u32, sending.bytes);
            sending.end = Some(self.add(Op::BatchEnd, 0, sending.begin.0, bytes, count));
        }
        self.sending = Some(sending);
    }

    /// A message from DR.
    pub fn receive(&mut self, conn: Conn, message: Message) {
        match message {
            Message::Welcome(welcome) => {
                self.welcomed.insert(conn);
                if self.order != Some(conn) {
                    return;
                }
                assert!(self.damaged || welcome.journal_seq >= self.durable, "an acknowledged order was lost");
                assert!(self.damaged || welcome.cut >= self.cut, "the recovery point went back");
                let regressed = welcome.cut < self.cut;
                for &seq in self.copied.iter().filter(|&&seq| seq > welcome.cut && welcome.synced) {
                    let here = welcome.have.iter().any(|range| range.first <= seq && seq <= range.last);
                    assert!(here || self.forgiving || self.damaged, "the acknowledged payload of {seq} was lost");
                }
                self.next_order = self.records.partition_point(|record| record.seq <= welcome.journal_seq);
                if regressed || self.synced && !welcome.synced {
                    // What was owed up to there may be forgotten: only a copy of everything will do.
                    self.cut = welcome.cut;
                    self.synced = welcome.synced;
                    self.progress(welcome.cut, welcome.synced);
                    return self.first_sync();
                }
                self.progress(welcome.cut, welcome.synced);
                let lost = self
                    .sending
                    .as_ref()
                    .is_some_and(|it| welcome.batch != it.begin && it.begin <= welcome.journal_seq);
                if lost && self.sending.is_some() {
                    self.begin_batch();
                } else if !welcome.synced && self.sending.is_none() {
                    self.first_sync();
                }
            }
            Message::OrdersDurable { journal_seq } => self.durable = self.durable.max(journal_seq),
            Message::Copied { ranges } => {
                for range in ranges {
                    let seqs = (range.first.0..=range.last.0).map(Seq);
                    self.copied.extend(seqs.filter(|seq| self.data.contains_key(seq)));
                }
                let copied = &self.copied;
                self.unsent.retain(|seq| !copied.contains(seq));
            }
            Message::ChunksDurable { batch, indexes } => {
                if let Some(sending) = self.sending.as_mut().filter(|sending| sending.begin == batch) {
                    for index in indexes {
                        if sending.acked.insert(index) {
                            sending.bytes += sending.ranges[index as usize].2;
                        }
                    }
                }
            }
            Message::Wanted { batch, index, parts } => {
                if let Some(sending) = self.sending.as_mut().filter(|sending| sending.begin == batch) {
                    assert!(parts != 0);
                    sending.wanted.insert(index);
                    sending.next = sending.next.min(index as usize);
                }
            }
            Message::Progress { cut, synced, .. } => self.progress(cut, synced),
            Message::Need { .. } if self.damaged => {
                // As the primary: everything above the cut goes into a batch, and nothing else is remembered.
                let open: Vec<Seq> =
                    self.records.iter().filter(|it| it.seq > self.forgotten).map(|it| it.seq).collect();
                for seq in open {
                    self.mark_dirty(seq);
                }
                self.begin_batch();
            }
            Message::Need { ranges } => {
                for range in ranges {
                    for seq in (range.first.0..=range.last.0).map(Seq).filter(|seq| self.data.contains_key(seq)) {
                        self.copied.remove(&seq);
                        self.unsent.push_front(seq);
                    }
                }
            }
            Message::Refuse(refuse) => panic!("refused: {}", refuse.text),
            Message::Pong { .. } => {}
            Message::Ping { .. } if self.slow => {}
            Message::Ping { nonce } => self.queue(conn, Message::Pong { nonce }),
            other => panic!("DR says {other:?}"),
        }
    }

    fn progress(&mut self, cut: Seq, synced: bool) {
        self.synced |= synced;
        self.cut = self.cut.max(cut);
        self.forgotten = self.forgotten.max(cut);
        if self.sending.as_ref().is_some_and(|it| it.end.is_some_and(|end| cut >= end)) {
            self.sending = None;
            self.dirty.clear();
        }
    }

    /// Payloads that DR does not have and that will never come by the stream.
    pub fn batch_is_open(&self) -> bool {
        self.sending.is_some()
    }

    /// The status table as this writer keeps it.
    pub fn table(&self, layout: &TableLayout, known: usize) -> Vec<u8> {
        let mut out = vec![0; layout.total_bytes() as usize];
        let mut put = |at: u64, bytes: &[u8]| out[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        put(0, &TableHeader::new(GROUP, layout).encode());
        let heartbeat = Heartbeat {
            epoch: self.epoch,
            owner: Owner(42),
            counter: 1,
            wall_ns: 1,
            floor: Seq(0),
            tail: self.records[..known].last().map_or(Seq(0), |record| record.seq),
        };
        put(8192, &heartbeat.encode());
        let mut pos = 0;
        for record in &self.records[..known] {
            put(layout.record_offset(record.seq), &record.encode());
            let mut payload_pos = NO_PAYLOAD;
            if self.bunker && record.op == Op::Write {
                let bytes = crate::format::spool::entry_bytes(record.length);
                payload_pos = crate::format::spool::place(pos, layout.payload_bytes, bytes);
                pos = payload_pos + bytes;
                let header = crate::format::spool::EntryHeader {
                    pos: payload_pos,
                    kind: crate::format::spool::Kind::Payload,
                    index: 0,
                    record: *record,
                    skipped: 0,
                };
                let mut parts = Vec::new();
                crate::format::spool::encode_entry(&header, GROUP.0, self.data[&record.seq].clone(), &mut parts);
                put(layout.payload_offset(payload_pos), &parts.concat());
            }
            let state = match () {
                () if self.copied.contains(&record.seq) => State::Copied,
                () if self.unsent.contains(&record.seq) || self.dropped.contains(&record.seq) => State::Queued,
                () => State::Sent,
            };
            put(layout.state_offset(record.seq), &SlotState { seq: record.seq, state, payload_pos }.encode());
        }
        out
    }
}
