//! What is fuzzed: one function for each reader of bytes that come from a peer, a disk or an operator.
//!
//! A target turns its input into what the reader could meet, and asserts more than that it does not panic: what is
//! read is written to the same bytes; a session answers what was asked, once, and keeps little; a scan finds nothing
//! whose checksum is wrong. And it tells what it came to ([`Reached`]): a target whose inputs are all refused at the
//! first byte checks nothing, and nothing else would show it.

mod blocks;
mod files;
mod link;
mod nbd;
mod nbd_client;
mod table;
mod text;

use bytes::Bytes;
use farshore::core::ids::{Chain, Epoch, Seq, Volume};
use farshore::core::machine::{IoFail, ReadAt};
use farshore::core::op::Op;
use farshore::format::record::OrderRecord;

/// What the kept inputs of a target have to reach together, and how often at the least.
pub type Wanted = &'static [(&'static str, u64)];

/// A name, what is run on each input, and what the kept ones have to reach.
pub type Target = (&'static str, fn(&[u8], &mut Reached), Wanted);

/// All of them.
pub const TARGETS: [Target; 12] = [
    ("nbd_server", nbd::server, nbd::WANTED),
    ("nbd_client", nbd_client::client, nbd_client::WANTED),
    ("link", link::frames, link::FRAMES_WANTED),
    ("orders", link::orders, link::ORDERS_WANTED),
    ("journal", files::journal, files::JOURNAL_WANTED),
    ("spool", files::spool, files::SPOOL_WANTED),
    ("intent", files::intent, files::INTENT_WANTED),
    ("table", table::table, table::WANTED),
    ("blocks", blocks::blocks, blocks::WANTED),
    ("config", text::config, text::CONFIG_WANTED),
    ("control", text::control, text::CONTROL_WANTED),
    ("http", text::http, text::HTTP_WANTED),
];

/// What inputs came to: things that were accepted, by name, and how many.
#[derive(Debug, Default)]
pub struct Reached(Vec<(&'static str, u64)>);

impl Reached {
    pub fn one(&mut self, what: &'static str) {
        self.many(what, 1);
    }

    pub fn many(&mut self, what: &'static str, count: usize) {
        match self.0.iter_mut().find(|known| known.0 == what) {
            Some(known) => known.1 += count as u64,
            None => self.0.push((what, count as u64)),
        }
    }

    pub fn when(&mut self, what: &'static str, reached: bool) {
        self.many(what, usize::from(reached));
    }

    /// What is wanted and was not reached so often.
    #[cfg(test)]
    pub fn lacks(&self, wanted: Wanted) -> Vec<String> {
        let of = |what: &str| self.0.iter().find(|known| known.0 == what).map_or(0, |known| known.1);
        let lacking = wanted.iter().filter(|(what, least)| of(what) < *least);
        lacking.map(|(what, least)| format!("{what}: {}, at least {least} are wanted", of(what))).collect()
    }
}

/// Reads an input from front to back; zeroes follow its end.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    pub fn u64(&mut self) -> u64 {
        u64::from(self.u16()) | u64::from(self.u16()) << 16 | u64::from(self.u16()) << 32 | u64::from(self.u16()) << 48
    }

    /// A number that is often small, and often near the end of its range.
    pub fn number(&mut self) -> u64 {
        match self.u8() {
            small @ 0..0xc0 => u64::from(small),
            0xc0..0xe0 => u64::from(self.u16()),
            0xe0..0xf0 => u64::MAX - u64::from(self.u8()),
            _ => self.u64(),
        }
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        u64::from(self.u16()) % bound.max(1)
    }

    /// At most `length` bytes.
    pub fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (front, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        front
    }

    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// The record that follows one with this seq and chain, unless the input wants another.
    pub fn record(&mut self, previous: (Seq, Chain)) -> OrderRecord {
        let op =
            [Op::Write, Op::WriteZeroes, Op::Trim, Op::Mark, Op::BatchBegin, Op::BatchEnd, Op::EpochStart, Op::Resize];
        let shape = self.u8();
        let op = op[usize::from(shape & 7) % op.len()];
        let seq = if shape & 0x40 != 0 { Seq(self.number().max(1)) } else { Seq(previous.0.0.saturating_add(1)) };
        let offset = match op {
            Op::EpochStart if shape & 0x20 == 0 => previous.0.0,
            _ => self.number() << 9,
        };
        let record = OrderRecord {
            seq,
            epoch: Epoch(u32::from(shape >> 3 & 3)),
            volume: Volume(0),
            op,
            flags: 0,
            offset,
            length: if op == Op::Write { self.below(2000) } else { self.number() },
            time_ns: 1,
            chain: Chain(0),
            payload_crc: 0,
        };
        if shape & 0x80 != 0 {
            OrderRecord { chain: Chain(self.number()), ..record }
        } else {
            record.chained(previous.1)
        }
    }
}

/// A file in memory; zeroes follow its end.
pub struct Memory(pub Vec<u8>);

impl Memory {
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(room) = self.0.get_mut(at..) {
            let length = bytes.len().min(room.len());
            room[..length].copy_from_slice(&bytes[..length]);
        }
    }

    pub fn flip(&mut self, bit: usize) {
        let length = self.0.len();
        self.0[bit / 8 % length] ^= 1 << (bit % 8);
    }

    pub fn zero(&mut self, at: usize, length: usize) {
        let (from, to) = (at.min(self.0.len()), (at + length).min(self.0.len()));
        self.0[from..to].fill(0);
    }
}

impl ReadAt for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, IoFail> {
        assert!(length <= 64 << 20, "nothing read at once is longer than an entry");
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let mut out = self.0[from..(from + length).min(self.0.len())].to_vec();
        out.resize(length, 0);
        Ok(out.into())
    }
}
