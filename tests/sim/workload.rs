//! Owns what the clients of the primary ask for: requests drawn from a few patterns, each with content that
//! no other request has.

use bytes::Bytes;
use farshore::core::ids::Volume;

use crate::rng::Rng;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    Write {
        offset: u64,
        data: Bytes,
        fua: bool,
    },
    Zeroes {
        offset: u64,
        length: u64,
        fua: bool,
        no_hole: bool,
    },
    Trim {
        offset: u64,
        length: u64,
        fua: bool,
    },
    Flush,
    /// Not of a client: the operator's.
    Resize {
        size: u64,
    },
}

impl Ask {
    /// The range it changes; `None` for a flush.
    pub fn range(&self) -> Option<(u64, u64)> {
        match self {
            Ask::Write { offset, data, .. } => Some((*offset, data.len() as u64)),
            Ask::Zeroes { offset, length, .. } | Ask::Trim { offset, length, .. } => Some((*offset, *length)),
            Ask::Flush | Ask::Resize { .. } => None,
        }
    }

    pub fn fua(&self) -> bool {
        match self {
            Ask::Write { fua, .. } | Ask::Zeroes { fua, .. } | Ask::Trim { fua, .. } => *fua,
            Ask::Flush | Ask::Resize { .. } => false,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Pattern {
    /// Anywhere on the volume.
    Uniform,
    /// Few blocks, over and over: overlaps in flight.
    HotSpot { at: u64, span: u64 },
    /// One after another, wrapping around.
    Sequential { next: u64 },
}

/// One client: it keeps up to `depth` requests in flight and waits a while after each answer.
#[derive(Clone, Debug)]
pub struct Client {
    rng: Rng,
    pub volume: Volume,
    pub depth: u64,
    pub think_ns_max: u64,
    volume_bytes: u64,
    pattern: Pattern,
    size_max: u64,
    /// Offsets and lengths are multiples of this.
    grain: u64,
    fua_percent: u64,
    flush_percent: u64,
    discard_percent: u64,
    /// A trim may be as long as the volume.
    long_ranges: bool,
}

impl Client {
    /// `max`: the longest request in bytes, the longest wait in nanoseconds.
    pub fn draw(rng: &mut Rng, volume: Volume, volume_bytes: u64, max: (u64, u64)) -> Client {
        let pattern = match rng.below(3) {
            0 => Pattern::Uniform,
            1 => Pattern::HotSpot { at: rng.below(volume_bytes / 2) / 512 * 512, span: rng.scale(4096, 65536) },
            _ => Pattern::Sequential { next: 0 },
        };
        Client {
            volume,
            depth: rng.scale(1, 48),
            think_ns_max: rng.scale(10_000, max.1),
            volume_bytes,
            pattern,
            size_max: rng.scale(512, max.0).min(volume_bytes / 2),
            grain: rng.pick(&[1, 512, 512, 4096]),
            fua_percent: rng.pick(&[0, 0, 5, 30]),
            flush_percent: rng.pick(&[0, 2, 10, 30]),
            discard_percent: rng.pick(&[0, 5, 25]),
            long_ranges: false,
            rng: rng.fork(),
        }
    }

    /// Small requests, and more or fewer that carry nothing; 0 leaves it as it is.
    pub fn restrain(&mut self, tiny_bytes: u64, discard_percent: u64, long_ranges: bool) {
        self.long_ranges = long_ranges;
        if tiny_bytes > 0 {
            self.size_max = self.size_max.min(tiny_bytes);
            self.grain = self.grain.min(512);
            self.depth = self.depth.max(8);
            self.flush_percent = self.flush_percent.min(2);
        }
        if discard_percent > 0 {
            self.discard_percent = discard_percent;
        }
    }

    /// The next request of this client; `number` is unique in the run and marks the content.
    pub fn ask(&mut self, number: u64) -> Ask {
        if self.rng.chance(self.flush_percent) {
            return Ask::Flush;
        }
        let mut length = round(self.rng.scale(512, self.size_max), self.grain);
        length = length.clamp(self.grain, round(self.volume_bytes / 2, self.grain));
        let room = self.volume_bytes - length;
        let offset = match &mut self.pattern {
            Pattern::Uniform => self.rng.below(room + 1),
            Pattern::HotSpot { at, span } => (*at + self.rng.below(*span)).min(room),
            Pattern::Sequential { next } => {
                let at = if *next > room { 0 } else { *next };
                *next = at + length;
                at
            }
        };
        let offset = round(offset, self.grain);
        let fua = self.rng.chance(self.fua_percent);
        if self.rng.chance(self.discard_percent) {
            let long = self.long_ranges && self.rng.chance(15);
            let (offset, length) = if long { self.long_range() } else { (offset, length) };
            return if self.rng.chance(50) {
                Ask::Trim { offset, length, fua }
            } else {
                Ask::Zeroes { offset, length, fua, no_hole: self.rng.chance(30) }
            };
        }
        Ask::Write { offset, data: content(number, length as usize), fua }
    }

    /// Half of the volume or more of it.
    fn long_range(&mut self) -> (u64, u64) {
        let offset = round(self.rng.below(self.volume_bytes / 2), self.grain);
        let length = if self.rng.chance(50) { self.volume_bytes / 2 } else { self.volume_bytes - offset };
        (offset, round(length, self.grain).max(self.grain))
    }

    /// The volume is said to be larger: it uses all of it from now on.
    pub fn hears_of(&mut self, volume_bytes: u64) {
        self.volume_bytes = self.volume_bytes.max(volume_bytes);
        if let Pattern::HotSpot { at, span } = &mut self.pattern {
            *at = volume_bytes.saturating_sub(*span) / 512 * 512;
        }
    }

    pub fn think_ns(&mut self) -> u64 {
        self.rng.scale(1000, self.think_ns_max)
    }
}

/// Content of request `number`: never zero, different from every other request's in every 8 bytes.
pub fn content(number: u64, length: usize) -> Bytes {
    let mut rng = Rng::new(number ^ 0x00c0_ffee_0000_0000);
    let mut out = vec![0; length.next_multiple_of(8)];
    let (words, _) = out.as_chunks_mut::<8>();
    words.iter_mut().for_each(|word| *word = (rng.u64() | 0x0101_0101_0101_0101).to_le_bytes());
    out.truncate(length);
    out.into()
}

fn round(value: u64, grain: u64) -> u64 {
    value / grain * grain
}

#[test]
fn requests_stay_inside_the_volume() {
    for seed in 0..200 {
        let mut rng = Rng::new(seed);
        let bytes = rng.range(64, 512) * 4096;
        let mut client = Client::draw(&mut rng, Volume(0), bytes, (256 << 10, 200_000_000));
        for number in 0..50 {
            if let Some((offset, length)) = client.ask(number).range() {
                assert!(length > 0 && offset + length <= bytes);
            }
        }
    }
}
