//! What of a batch goes next: holes are looked for in what is long, and what holds nothing is one piece, however long.

use super::patch::Form;
use super::{Batch, Piece};
use crate::core::allocation::Stretch;
use crate::core::ids::Extent;
use crate::limits::CHUNK_BYTES_MAX;
use crate::primary::window::Held;

/// What is to be done for a batch next.
pub(super) enum Next {
    Send(Piece),
    Read(Piece),
    /// A long range is looked at for holes before it is read.
    Look(Extent),
    Wait,
}

impl Batch {
    /// The next thing to do; `look_bytes`: how long a range has to be for holes to be looked for in it.
    pub(super) fn next(&mut self, look_bytes: u64) -> Next {
        if let Some(piece) = self.again.pop_front() {
            return if piece.form == Form::Hole { Next::Send(piece) } else { Next::Read(piece) };
        }
        let over = self.todo.is_empty() && self.reading.is_empty();
        if over || self.zeroes.bytes() >= ZEROES_BYTES_MAX || self.zeroes.len() >= ZEROES_RANGES_MAX {
            self.holes.union(&std::mem::take(&mut self.zeroes));
        }
        if let Some(extent) = self.holes.pop_front(self.hole_bytes_max) {
            self.bytes += extent.length;
            return Next::Send(Piece { index: None, extent, form: Form::Hole });
        }
        let Some(front) = self.todo.iter().next() else { return Next::Wait };
        let looked = self.looked.is_some_and(|(volume, end)| volume == front.volume && front.offset < end);
        if front.length >= look_bytes && !looked {
            return if self.looking.is_some() { Next::Wait } else { Next::Look(*self.looking.insert(front)) };
        }
        let Some(extent) = self.todo.pop_front(u64::from(CHUNK_BYTES_MAX)) else { return Next::Wait };
        self.bytes += extent.length;
        let form = self.sparing.form(extent.length);
        Next::Read(Piece { index: None, extent, form })
    }

    /// Which parts of what was looked at are holes. They are as of a moment after the begin, as what is read is.
    pub(super) fn looked_at(&mut self, extent: Extent, stretches: &[Stretch]) {
        if self.looking.take_if(|it| *it == extent).is_none() {
            return;
        }
        let (mut at, end) = (extent.offset, extent.offset + extent.length);
        for stretch in stretches {
            let part = Extent { offset: at, length: stretch.length.min(end - at), ..extent };
            if stretch.hole {
                self.todo.remove(part);
                self.holes.insert(part);
            }
            at += part.length;
        }
        // Of what nobody tells anything about the front is read at least.
        self.looked = Some((extent.volume, at.max(extent.offset + 1)));
    }

    /// A piece was read as zeroes: whether it is held back to be one with those beside it.
    pub(super) fn holds_back(&mut self, piece: &Piece) -> bool {
        let Extent { volume, offset, length } = piece.extent;
        let before = Extent { volume, offset: offset.saturating_sub(1), length: 1 };
        let long = length == u64::from(CHUNK_BYTES_MAX) || offset > 0 && self.zeroes.contains(before);
        let held = piece.index.is_none() && long;
        if held {
            self.bytes -= length;
            self.zeroes.insert(piece.extent);
        }
        held
    }
}

/// What a piece of so many bytes counts on a stream: its data and its head.
pub(in crate::primary) const fn charge_of(bytes: u64) -> u64 {
    bytes + 64
}

/// What a piece of so many bytes takes of the window and of memory at the most: it is read only when it can be sent.
pub(in crate::primary) const fn room_of(bytes: u64) -> u64 {
    Held::memory_of(charge_of(bytes))
}

/// Zeroes that were read are held back to be one piece with those behind them, up to so many bytes and ranges.
const ZEROES_BYTES_MAX: u64 = 4 << 30;
const ZEROES_RANGES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::{Seq, Volume};
    use crate::core::machine::Now;
    use crate::core::ranges::{Cover, VolumeRanges};

    const CHUNK: u64 = CHUNK_BYTES_MAX as u64;

    fn extent(offset: u64, length: u64) -> Extent {
        Extent { volume: Volume(0), offset, length }
    }

    fn batch(extents: &[Extent]) -> Batch {
        let mut todo = Cover::new();
        extents.iter().for_each(|it| todo.insert(*it));
        Batch::new(Seq(2), todo, VolumeRanges::new(), Now::default())
    }

    fn read(batch: &mut Batch) -> Piece {
        let Next::Read(piece) = batch.next(u64::MAX) else { panic!("something is read") };
        piece
    }

    #[test]
    fn a_hole_is_one_piece_however_long_and_is_never_read() {
        let (tib, data) = (1 << 40, extent((1 << 39) + 4096, 8192));
        let mut batch = batch(&[extent(4096, 100 * tib)]);
        let Next::Look(asked) = batch.next(4 << 20) else { panic!("a long range is looked at") };
        assert!(asked == extent(4096, 100 * tib) && matches!(batch.next(4 << 20), Next::Wait));
        let told = [(data.offset - 4096, true), (8192, false), (5 << 20, true)];
        let told = told.map(|(length, hole)| Stretch { length, hole });
        batch.looked_at(extent(0, 1), &told);
        assert!(matches!(batch.next(4 << 20), Next::Wait), "that was about something else");
        batch.looked_at(asked, &told);
        let rest = data.offset + data.length;
        for hole in [extent(4096, data.offset - 4096), extent(rest, 5 << 20)] {
            let Next::Send(piece) = batch.next(4 << 20) else { panic!("a hole is not read") };
            assert!(piece.form == Form::Hole && piece.extent == hole && piece.index.is_none());
        }
        assert!(matches!(batch.next(4 << 20), Next::Read(piece) if piece.extent == data));
        let left = extent(rest + (5 << 20), 4096 + 100 * tib - rest - (5 << 20));
        assert!(matches!(batch.next(4 << 20), Next::Look(asked) if asked == left));
        batch.looked_at(left, &[]);
        assert!(matches!(batch.next(4 << 20), Next::Read(_)), "nobody tells: the front is read");
        assert_eq!(batch.bytes_left(), 100 * tib);
    }

    #[test]
    fn zeroes_that_were_read_are_one_piece_with_those_beside_them() {
        let mut batch = batch(&[extent(0, 4 * CHUNK + 512), extent(8 * CHUNK, 512)]);
        let total = batch.bytes_left();
        for at in 0..6 {
            let piece = read(&mut batch);
            let held = at != 1 && batch.holds_back(&piece);
            assert_eq!(held, at != 1 && at != 5, "data, and a short piece that stands alone, go by themselves");
        }
        for zeroes in [extent(0, CHUNK), extent(2 * CHUNK, 2 * CHUNK + 512)] {
            let Next::Send(piece) = batch.next(u64::MAX) else {
                panic!("zeroes are sent when nothing is left to read")
            };
            assert!(piece.form == Form::Hole && piece.extent == zeroes);
        }
        assert!(matches!(batch.next(u64::MAX), Next::Wait) && batch.bytes == total);
    }
}
