//! What of a piece crosses: nothing, a digest of each part, what DR wants of it, or all.
//!
//! | the piece | crosses as |
//! |---|---|
//! | holds nothing | a record |
//! | may be at DR already, in an older copy | digests of its parts; then what DR wants as data, beside digests of the rest |
//! | any other, or one that changes while DR is asked | data |
//!
//! Whether DR may have a piece is learnt from those before it: as long as half of what is asked about is there, all is
//! asked about; else one of many. To ask costs a round trip and a read at DR, but no bytes that matter.

use bytes::Bytes;

use super::{Batch, Piece};
use crate::core::ids::{Conn, Seq};
use crate::format::record::OrderRecord;
use crate::format::wire::{Message, Patch};
use crate::limits::BLOCK_BYTES;
use crate::primary::machine::Machine;

/// How a piece crosses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As zeroes, without reading.
    Hole,
    Data,
    /// As digests, but for these parts; asked so many times.
    Patch {
        carried: u64,
        asked: u8,
    },
}

/// Pieces shorter than this cross as data, bytes: to ask costs more than it can spare.
const ASK_BYTES_MIN: u64 = 2 * BLOCK_BYTES as u64;
/// DR is asked about one piece this often; what keeps changing crosses as data then.
const ASKED_MAX: u8 = 3;
/// While DR seems to have nothing, it is asked about one piece of so many.
const ONE_OF: u64 = 32;
/// The most that what DR had counts for what it may have.
const HOPE_MAX: u32 = 16;
/// For how many pieces in a row it is asked before it is known to have any.
const HOPE_FIRST: u32 = 8;

/// What asking DR has spared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sparing {
    /// Whether it is asked at all.
    asks: bool,
    hope: u32,
    pieces: u64,
    /// Bytes that did not cross, as DR had them.
    pub(super) bytes: u64,
}

impl Sparing {
    pub(super) fn new(asks: bool) -> Sparing {
        Sparing { asks, hope: HOPE_FIRST, pieces: 0, bytes: 0 }
    }

    /// How the next piece is to cross, of `length` bytes.
    pub(super) fn form(&mut self, length: u64) -> Form {
        if length < ASK_BYTES_MIN || !self.asks {
            return Form::Data;
        }
        self.pieces += 1;
        let asks = self.hope > 0 || self.pieces.is_multiple_of(ONE_OF);
        if asks { Form::Patch { carried: 0, asked: 0 } } else { Form::Data }
    }

    /// DR has a piece, as far as it was said to.
    pub(super) fn acked(&mut self, piece: &Piece) {
        let Form::Patch { carried, .. } = piece.form else { return };
        self.bytes += spared(piece.extent.length, carried);
        if carried == 0 {
            self.hope = (self.hope + 2).min(HOPE_MAX);
        }
    }

    /// It lacks so many of the parts that it was asked about.
    fn wanted(&mut self, lacks: u32, of: u32) {
        self.hope = if 2 * lacks <= of { (self.hope + 1).min(HOPE_MAX) } else { self.hope.saturating_sub(1) };
    }
}

/// Bytes of a piece that do not cross when those parts do, about: the last part may be shorter.
fn spared(length: u64, carried: u64) -> u64 {
    let parts = Patch::parts_of(length);
    let left_out = u64::from((parts & !carried).count_ones());
    length * left_out / u64::from(parts.count_ones())
}

/// Bytes that a message spares the link.
pub(super) fn spared_by(message: &Message) -> u64 {
    let Message::Patch(patch) = message else { return 0 };
    let digests = (patch.digests.len() * size_of::<u128>()) as u64;
    patch.spared().saturating_sub(digests)
}

impl Piece {
    /// What DR is sent of it.
    pub(super) fn message(&self, index: u64, record: OrderRecord, data: Bytes) -> Message {
        match self.form {
            Form::Patch { carried, .. } => Message::Patch(Patch::new(index, record, &data, carried)),
            Form::Hole | Form::Data => Message::Chunk { index, record, data },
        }
    }
}

impl Batch {
    /// Bytes that did not have to cross, as DR had them.
    #[must_use]
    pub fn spared_bytes(&self) -> u64 {
        self.sparing.bytes
    }
}

impl Machine {
    /// DR does not have these parts of a piece: it is read once more, and sent with them.
    pub(in crate::primary) fn piece_wanted(&mut self, conn: Conn, begin: Seq, index: u64, parts: u64) {
        let Some(batch) = self.mode.batch_mut().filter(|batch| batch.begin == begin) else { return };
        // Of a stream that is gone: it has been asked about again.
        let asked_about = batch.unacked.get(&index).filter(|(_, of)| *of == conn).map(|(piece, _)| *piece);
        let Some((mut piece, Form::Patch { carried, asked })) = asked_about.map(|piece| (piece, piece.form)) else {
            return;
        };
        batch.unacked.remove(&index);
        self.dr.piece_done(conn, index);
        let all = Patch::parts_of(piece.extent.length);
        let (asked, carried, before) = (asked + 1, (carried | parts) & all, carried);
        batch.sparing.wanted((carried & !before).count_ones(), (all & !before).count_ones());
        piece.form = if carried == all || asked >= ASKED_MAX { Form::Data } else { Form::Patch { carried, asked } };
        batch.again.push_back(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Mode;
    use super::*;
    use crate::core::ids::{Extent, Volume};
    use crate::core::machine::Now;
    use crate::core::modes::{Protect, Require};
    use crate::core::ranges::{Cover, VolumeRanges};
    use crate::limits::CHUNK_BYTES_MAX;
    use crate::primary::link::tests::fresh;

    const CHUNK: u64 = CHUNK_BYTES_MAX as u64;
    const ASK: Form = Form::Patch { carried: 0, asked: 0 };

    fn piece(form: Form) -> Piece {
        Piece { index: Some(0), extent: Extent { volume: Volume(0), offset: 0, length: CHUNK }, form }
    }

    #[test]
    fn dr_is_asked_about_every_piece_as_long_as_it_has_half_of_what_it_is_asked_about() {
        let mut sparing = Sparing::new(true);
        assert_eq!(sparing.form(ASK_BYTES_MIN - 1), Form::Data);
        for _ in 0..HOPE_FIRST {
            assert_eq!(sparing.form(CHUNK), ASK);
            sparing.wanted(33, 64);
        }
        let asked = (0..10 * ONE_OF).filter(|_| sparing.form(CHUNK) == ASK).count();
        assert_eq!(asked, 10, "it has nothing");
        sparing.wanted(32, 64);
        assert_eq!([(); 2].map(|()| sparing.form(CHUNK)), [ASK, ASK], "it has something");
        sparing.acked(&piece(ASK));
        assert_eq!(sparing.bytes, CHUNK);
        sparing.acked(&piece(Form::Patch { carried: 1, asked: 1 }));
        assert_eq!(sparing.bytes, 2 * CHUNK - CHUNK / 64);
        sparing.acked(&piece(Form::Data));
        assert_eq!(sparing.bytes, 2 * CHUNK - CHUNK / 64);
    }

    /// A primary whose one piece stands on a stream, asked about.
    fn asked(form: Form) -> Machine {
        let (mut machine, _) = fresh(Protect::Near, Require::Any, false);
        let mut batch = Batch::new(Seq(7), Cover::new(), VolumeRanges::new(), Now::default());
        batch.unacked.insert(0, (piece(form), Conn(4)));
        machine.mode = Mode::Batch(Box::new(batch));
        machine
    }

    fn again(machine: &Machine) -> Vec<Form> {
        machine.mode.batch().expect("under way").again.iter().map(|piece| piece.form).collect()
    }

    #[test]
    fn what_dr_wants_comes_as_data_and_all_of_it_at_the_latest_the_third_time() {
        for (form, parts, next) in [
            (ASK, 5, Form::Patch { carried: 5, asked: 1 }),
            (ASK, u64::MAX, Form::Data),
            (Form::Patch { carried: 5, asked: 1 }, 2, Form::Patch { carried: 7, asked: 2 }),
            (Form::Patch { carried: 1, asked: 1 }, !1, Form::Data),
            (Form::Patch { carried: 7, asked: 2 }, 8, Form::Data),
        ] {
            let mut machine = asked(form);
            machine.piece_wanted(Conn(4), Seq(7), 0, parts);
            assert_eq!(again(&machine), [next], "{form:?} {parts:#x}");
            machine.piece_wanted(Conn(4), Seq(7), 0, parts);
            assert_eq!(again(&machine).len(), 1, "said twice");
        }
        for (conn, begin, index) in [(5, 7, 0), (4, 6, 0), (4, 7, 1)] {
            let mut machine = asked(ASK);
            machine.piece_wanted(Conn(conn), Seq(begin), index, 1);
            assert!(again(&machine).is_empty(), "of another stream, batch or piece");
        }
        let mut machine = asked(Form::Data);
        machine.piece_wanted(Conn(4), Seq(7), 0, 1);
        assert!(again(&machine).is_empty(), "it has come as data");
    }
}
