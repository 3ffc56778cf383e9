//! The status table's region on an NBD server: one connection, its operations cut into what the server takes,
//! FUA by FLUSH where the server has nothing better. Pure: `region` carries its bytes and decides what becomes of it.

use bytes::{Bytes, BytesMut};

use crate::core::errno::Errno;
use crate::core::ids::{Conn, Ticket};
use crate::core::machine::IoFail;
use crate::limits::{LINK_SILENCE_NS, REGION_PIECE_BYTES};
use crate::nbd::client::{ClientSession, Event, ExportInfo};
use crate::nbd::outbox::Outbox;
use crate::nbd::protocol::{READ_ONLY, SEND_FLUSH, SEND_FUA};
use crate::nbd::region::RegionEvent;
use crate::nbd::slots::Slots;

#[derive(Debug)]
pub struct Remote {
    pub conn: Conn,
    pub session: ClientSession,
    pub rx_events: Vec<Event>,
    pub out: Outbox,
    pub fencing: bool,
    pub info: Option<ExportInfo>,
    pub ops: Slots<Op>,
    /// Requests on the wire: which operation, and which piece of it.
    pub pieces: Slots<(u64, usize)>,
    /// When the server last said something, or was asked something after a silence.
    pub heard_ns: u64,
}

/// An operation, cut into pieces.
#[derive(Debug)]
pub struct Op {
    pub ticket: Ticket,
    left: usize,
    /// The bytes of a read, by piece.
    data: Vec<Bytes>,
    failed: Option<Errno>,
    /// FUA by other means: flush when every piece is written.
    flush_after: bool,
}

impl Remote {
    /// A connection that is being made. `fencing`: the server is our own auxiliary; `tls`: it has to become secure.
    pub fn new(conn: Conn, export: &str, fencing: bool, tls: bool, now_ns: u64) -> Remote {
        Remote {
            conn,
            session: if tls { ClientSession::with_tls(export) } else { ClientSession::new(export) },
            rx_events: Vec::new(),
            out: Outbox::new(),
            fencing,
            info: None,
            ops: Slots::default(),
            pieces: Slots::default(),
            heard_ns: now_ns,
        }
    }

    /// Why an export cannot be the status table, if it cannot.
    pub fn unusable(&self, info: &ExportInfo, view: bool) -> Option<&'static str> {
        if !view && info.flags & READ_ONLY != 0 {
            Some("the export is read-only; a status table has to be writable")
        } else if !view && info.flags & SEND_FLUSH == 0 {
            Some("the server offers no FLUSH, so that nothing written there could be called durable")
        } else if info.block_min > 1 {
            Some("the server insists on whole blocks, the status table writes less; allow any length there")
        } else {
            None
        }
    }

    pub fn read(&mut self, now_ns: u64, ticket: Ticket, offset: u64, length: u64) {
        let pieces = pieces(offset, length, self.piece_bytes());
        let data = vec![Bytes::new(); pieces.len()];
        let op = self.begin(now_ns, Op { ticket, left: pieces.len(), data, failed: None, flush_after: false });
        for (index, (offset, length)) in pieces.into_iter().enumerate() {
            let piece = self.pieces.insert((op, index));
            self.session.read(piece, offset, length, &mut self.out);
        }
    }

    pub fn write(&mut self, now_ns: u64, ticket: Ticket, offset: u64, parts: Vec<Bytes>, fua: bool) {
        let flags = self.flags();
        let length: usize = parts.iter().map(Bytes::len).sum();
        let pieces = pieces(offset, length as u64, self.piece_bytes());
        let flush_after = fua && flags & SEND_FUA == 0 && flags & SEND_FLUSH != 0;
        let op = Op { ticket, left: pieces.len(), data: Vec::new(), failed: None, flush_after };
        let op = self.begin(now_ns, op);
        let mut parts = parts.into_iter();
        let mut rest = Bytes::new();
        for (index, (offset, length)) in pieces.into_iter().enumerate() {
            let piece = self.pieces.insert((op, index));
            let parts = cut(&mut parts, &mut rest, length as usize);
            self.session.write(piece, offset, parts, fua && flags & SEND_FUA != 0, &mut self.out);
        }
    }

    pub fn flush(&mut self, now_ns: u64, ticket: Ticket) {
        let op = self.begin(now_ns, Op { ticket, left: 1, data: Vec::new(), failed: None, flush_after: false });
        self.send_flush(op);
    }

    fn send_flush(&mut self, op: u64) {
        let piece = self.pieces.insert((op, 0));
        self.session.flush(piece, &mut self.out);
    }

    pub fn piece_done(&mut self, piece: u64, result: DataResult, out: &mut Vec<RegionEvent>) {
        let (number, index) = self.pieces.remove(piece).expect("the session answers what it was given, once");
        let op = self.ops.get_mut(number).expect("an operation lives until its last piece");
        op.left -= 1;
        match result {
            Ok(data) if !op.data.is_empty() => op.data[index] = data,
            Ok(_) => {}
            Err(errno) => op.failed = Some(errno),
        }
        if op.left > 0 {
            return;
        }
        if op.flush_after && op.failed.is_none() {
            (op.left, op.flush_after) = (1, false);
            self.send_flush(number);
            return;
        }
        let op = self.ops.remove(number).expect("it was found a moment ago");
        let result = op.failed.map_or_else(|| Ok(join(op.data)), |errno| Err(io_fail(errno)));
        out.push(RegionEvent::Done { ticket: op.ticket, result });
    }

    fn begin(&mut self, now_ns: u64, op: Op) -> u64 {
        assert!(op.left > 0, "an operation covers at least one byte");
        if self.ops.is_empty() {
            self.heard_ns = now_ns;
        }
        self.ops.insert(op)
    }

    /// When the silence of a server that owes an answer has lasted too long.
    pub fn silence_ends_ns(&self) -> Option<u64> {
        (self.info.is_none() || !self.ops.is_empty()).then(|| self.heard_ns.saturating_add(LINK_SILENCE_NS))
    }

    fn flags(&self) -> u16 {
        self.info.map_or(0, |info| info.flags)
    }

    fn piece_bytes(&self) -> u32 {
        self.info.map_or(REGION_PIECE_BYTES, |info| info.block_max.min(REGION_PIECE_BYTES))
    }
}

type DataResult = Result<Bytes, Errno>;

/// (offset, length) of the pieces of a range.
fn pieces(offset: u64, length: u64, piece: u32) -> Vec<(u64, u32)> {
    let count = length.div_ceil(u64::from(piece));
    let cut = |index: u64| {
        let at = index * u64::from(piece);
        (offset + at, u32::try_from(length - at).unwrap_or(u32::MAX).min(piece))
    };
    (0..count).map(cut).collect()
}

/// The next `length` bytes of a run of parts; `rest` keeps what is left of a part.
fn cut(parts: &mut impl Iterator<Item = Bytes>, rest: &mut Bytes, length: usize) -> Vec<Bytes> {
    let mut taken = Vec::new();
    let mut left = length;
    while left > 0 {
        while rest.is_empty() {
            *rest = parts.next().expect("the pieces cover the parts exactly");
        }
        let part = rest.split_to(left.min(rest.len()));
        left -= part.len();
        taken.push(part);
    }
    taken
}

fn join(mut data: Vec<Bytes>) -> Bytes {
    if data.len() == 1 {
        return data.remove(0);
    }
    let mut joined = BytesMut::with_capacity(data.iter().map(Bytes::len).sum());
    data.iter().for_each(|part| joined.extend_from_slice(part));
    joined.freeze()
}

fn io_fail(errno: Errno) -> IoFail {
    match errno {
        Errno::NoSpc => IoFail::NoSpace("the server of the status table says so".to_owned()),
        Errno::Inval => IoFail::Other(
            "the server of the status table refuses the request as invalid; one that insists on whole blocks does so"
                .to_owned(),
        ),
        other => IoFail::Other(format!("the server of the status table answers {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_range_exactly() {
        assert_eq!(pieces(100, 10, 4), [(100, 4), (104, 4), (108, 2)]);
        assert_eq!(pieces(7, 4, 4), [(7, 4)]);
        assert_eq!(pieces(0, 1 << 33, 1 << 31).len(), 4);
    }

    #[test]
    fn an_export_that_cannot_carry_the_table_is_refused() {
        let remote = Remote::new(Conn(1), "x", false, false, 0);
        let info = |flags, block_min| ExportInfo { size: 1 << 20, flags, block_min, block_max: 1 << 20 };
        for (flags, block_min, view, usable) in [
            (SEND_FLUSH, 1, false, true),
            (SEND_FLUSH | SEND_FUA, 1, false, true),
            (SEND_FUA, 1, false, false),
            (SEND_FLUSH | READ_ONLY, 1, false, false),
            (SEND_FLUSH, 512, false, false),
            (READ_ONLY, 1, true, true),
            (0, 1, true, true),
            (READ_ONLY, 512, true, false),
        ] {
            assert_eq!(remote.unusable(&info(flags, block_min), view).is_none(), usable, "{flags:#x} {block_min}");
        }
    }

    #[test]
    fn parts_are_cut_without_loss() {
        let mut parts = [&b"abc"[..], b"", b"defgh"].into_iter().map(Bytes::from_static);
        let mut rest = Bytes::new();
        let taken: Vec<Vec<Bytes>> = (0..2).map(|_| cut(&mut parts, &mut rest, 4)).collect();
        assert_eq!(taken, [vec!["abc", "d"], vec!["efgh"]]);
        assert_eq!(join(taken.concat()), "abcdefgh");
    }
}
