//! Bytes to messages. Nothing is believed before it is checked: lengths against their bounds before
//! anything waits for them or is allocated by them, every checksum before a field is used.

use bytes::Bytes;

use super::orders::{self, orders};
use super::{
    Compare, FRAME_HEADER_BYTES, Hello, JournalRoom, Kind, MAGIC, Message, Patch, Purpose, Refuse, RefuseCode,
    StoreRoom, VERSION, Verdict, WHAT, Welcome,
};
use crate::core::ids::{Chain, Epoch, Extent, GroupId, Owner, Seq, SeqRange, Volume};
use crate::core::op::Op;
use crate::core::rope::Rope;
use crate::format::FormatError;
use crate::format::layout::{u16_at, u32_at, u64_at};
use crate::format::record::OrderRecord;
use crate::limits::{
    CHUNK_BYTES_MAX, COMPARE_BYTES_MAX, COMPARE_PARTS_MAX, LIST_ITEMS_MAX, NAME_BYTES_MAX, PACKED_BYTES_MAX,
    PATCH_PARTS_MAX, PAYLOAD_BYTES_MAX, RECORD_BYTES, REFUSE_TEXT_BYTES_MAX, VOLUME_BYTES_MAX, VOLUMES_MAX,
};

/// Takes the next message off the rope; `None` while it is not complete.
///
/// Data is a slice of what was pushed when it came in one piece. After an error the stream is of no use
/// any more: the connection has to be closed.
pub fn decode(rope: &mut Rope) -> Result<Option<Message>, FormatError> {
    let Some(head) = head_of(rope)? else { return Ok(None) };
    let Some((body, data)) = taken(rope, &head)? else { return Ok(None) };
    message(head.kind, &body, data).map(Some)
}

/// The header of the next frame, which stays; `None` while that is not complete.
pub(super) fn head_of(rope: &Rope) -> Result<Option<Head>, FormatError> {
    let mut raw = [0; FRAME_HEADER_BYTES];
    if rope.peek(&mut raw) { Head::decode(&raw).map(Some) } else { Ok(None) }
}

/// Takes the frame with this header off the rope: body, which is verified, and data; `None` while it is not complete.
pub(super) fn taken(rope: &mut Rope, head: &Head) -> Result<Option<(Bytes, Bytes)>, FormatError> {
    if rope.len() < FRAME_HEADER_BYTES + head.body_len + head.data_len {
        return Ok(None);
    }
    rope.skip(FRAME_HEADER_BYTES);
    let body = rope.take(head.body_len);
    if crc32fast::hash(&body) != head.body_crc {
        return Err(FormatError::Checksum { what: head.kind.name() });
    }
    Ok(Some((body, rope.take(head.data_len))))
}

/// The header of a frame, with lengths that its kind allows.
pub(super) struct Head {
    pub(super) kind: Kind,
    body_len: usize,
    data_len: usize,
    body_crc: u32,
}

impl Head {
    fn decode(raw: &[u8; FRAME_HEADER_BYTES]) -> Result<Head, FormatError> {
        if raw[..4] != MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        if crc32fast::hash(&raw[..28]) != u32_at(raw, 28) {
            return Err(FormatError::Checksum { what: WHAT });
        }
        if raw[4] != VERSION {
            return Err(FormatError::Version { what: WHAT, got: raw[4].into(), want: VERSION.into() });
        }
        let field = |why: String| FormatError::Field { what: WHAT, why };
        let kind = Kind::from_u8(raw[5]).ok_or_else(|| field(format!("unknown kind {}", raw[5])))?;
        if u16_at(raw, 6) != 0 || u64_at(raw, 20) != 0 {
            return Err(field("flags or reserved bytes are not zero".into()));
        }
        let (body_len, data_len) = (u32_at(raw, 8), u32_at(raw, 12));
        let bounds = Bounds::of(kind);
        if (body_len as usize) < bounds.body_min || body_len as usize > bounds.body_max || data_len > bounds.data_max {
            return Err(field(format!("{} with {body_len} bytes of body, {data_len} of data", kind.name())));
        }
        Ok(Head { kind, body_len: body_len as usize, data_len: data_len as usize, body_crc: u32_at(raw, 16) })
    }
}

/// Lengths in bytes that a kind of message can have.
struct Bounds {
    body_min: usize,
    body_max: usize,
    data_max: u32,
}

impl Bounds {
    fn of(kind: Kind) -> Bounds {
        const NAME_MAX: usize = 2 + NAME_BYTES_MAX;
        const RANGES_MAX: usize = 8 + LIST_ITEMS_MAX * 16;
        let (body_min, body_max, data_max) = match kind {
            Kind::Hello => (44, 40 + NAME_MAX + 2 + VOLUMES_MAX * (NAME_MAX + 8), 0),
            Kind::Welcome => (104, 96 + RANGES_MAX, 0),
            Kind::Refuse => (10, 10 + REFUSE_TEXT_BYTES_MAX, 0),
            Kind::Orders => (0, orders::BODY_BYTES_MAX, 0),
            Kind::OrdersDurable | Kind::Ping | Kind::Pong => (8, 8, 0),
            Kind::Payload => (RECORD_BYTES, RECORD_BYTES, PAYLOAD_BYTES_MAX),
            Kind::Copied | Kind::Need => (8, RANGES_MAX, 0),
            Kind::Chunk => (8 + RECORD_BYTES, 8 + RECORD_BYTES, CHUNK_BYTES_MAX),
            Kind::ChunksDurable => (16, 16 + LIST_ITEMS_MAX * 8, 0),
            Kind::Progress => (56, 56, 0),
            Kind::RoomAsked => (16, 16, 0),
            Kind::StoreRoom => (26, 26 + REFUSE_TEXT_BYTES_MAX, 0),
            Kind::Compare => (64, 56 + COMPARE_PARTS_MAX * 8, 0),
            Kind::Compared => (26, 26 + REFUSE_TEXT_BYTES_MAX, 0),
            Kind::Patch => (40 + RECORD_BYTES, 40 + RECORD_BYTES + PATCH_PARTS_MAX * 16, CHUNK_BYTES_MAX),
            Kind::Wanted => (24, 24, 0),
            Kind::Packed => (8, 8, PACKED_BYTES_MAX as u32),
        };
        Bounds { body_min, body_max, data_max }
    }
}

fn message(kind: Kind, body: &Bytes, data: Bytes) -> Result<Message, FormatError> {
    let mut body = Reader { what: kind.name(), rest: body };
    let message = match kind {
        Kind::Hello => Message::Hello(hello(&mut body)?),
        Kind::Welcome => Message::Welcome(welcome(&mut body)?),
        Kind::Refuse => Message::Refuse(refuse(&mut body)?),
        Kind::Orders => Message::Orders(orders(&mut body)?),
        Kind::OrdersDurable => Message::OrdersDurable { journal_seq: Seq(body.u64()?) },
        Kind::Payload => {
            let record = body.record()?;
            if record.op != Op::Write {
                return Err(body.wrong(format!("{} has no payload", record.op.word())));
            }
            verify(body.what, &record, &data)?;
            Message::Payload { record, data }
        }
        Kind::Copied => Message::Copied { ranges: body.ranges()? },
        Kind::Chunk => {
            let (index, record) = (body.u64()?, body.record()?);
            if !matches!(record.op, Op::Write | Op::WriteZeroes) {
                return Err(body.wrong(format!("{} is no piece of a batch", record.op.word())));
            }
            verify(body.what, &record, &data)?;
            Message::Chunk { index, record, data }
        }
        Kind::ChunksDurable => {
            let batch = Seq(body.u64()?);
            let count = body.count(8)?;
            let indexes = (0..count).map(|_| body.u64()).collect::<Result<_, _>>()?;
            Message::ChunksDurable { batch, indexes }
        }
        Kind::Need => Message::Need { ranges: body.ranges()? },
        Kind::Progress => Message::Progress {
            cut: Seq(body.u64()?),
            applied: Seq(body.u64()?),
            spool_bytes: body.u64()?,
            window_bytes: body.u64()?,
            synced: match body.u64()? {
                0 => false,
                1 => true,
                other => return Err(body.wrong(format!("unknown flags {other:#x}"))),
            },
            room: body.room()?,
        },
        Kind::Ping => Message::Ping { nonce: body.u64()? },
        Kind::Pong => Message::Pong { nonce: body.u64()? },
        Kind::RoomAsked => {
            let (volume, flags) = body.volume()?;
            if flags != 0 {
                return Err(body.wrong(format!("unknown flags {flags:#x}")));
            }
            Message::RoomAsked { volume, size: body.u64()? }
        }
        Kind::StoreRoom => {
            let (volume, flags) = body.volume()?;
            if flags > 1 {
                return Err(body.wrong(format!("unknown flags {flags:#x}")));
            }
            let (size, has, text) = (body.u64()?, body.u64()?, body.text(REFUSE_TEXT_BYTES_MAX)?);
            Message::StoreRoom(StoreRoom { volume, size, has, holds: flags == 1, text })
        }
        Kind::Compare => Message::Compare(compare(&mut body)?),
        Kind::Compared => {
            let (id, word, different) = (body.u64()?, body.u64()?, body.u64()?);
            let text = body.text(REFUSE_TEXT_BYTES_MAX)?;
            let verdict = match (word, different, text.is_empty()) {
                (0, different, true) => Verdict::Found { different },
                (1, 0, true) => Verdict::Passed,
                (2, 0, _) => Verdict::Unreadable { text },
                _ => return Err(body.wrong(format!("no such verdict: {word}, different {different:#x}, {text:?}"))),
            };
            Message::Compared { id, verdict }
        }
        Kind::Patch => Message::Patch(Patch::of_body(&mut body, data)?),
        Kind::Packed => return Err(body.wrong("comes where none is expected, or in another one".into())),
        Kind::Wanted => {
            let (batch, index, parts) = (Seq(body.u64()?), body.u64()?, body.u64()?);
            if parts == 0 {
                return Err(body.wrong("nothing is wanted".into()));
            }
            Message::Wanted { batch, index, parts }
        }
    };
    body.end()?;
    Ok(message)
}

fn hello(body: &mut Reader<'_>) -> Result<Hello, FormatError> {
    let purpose = match body.u32()? {
        1 => Purpose::Order,
        2 => Purpose::Stream,
        other => return Err(body.wrong(format!("unknown purpose {other}"))),
    };
    let epoch = Epoch(body.u32()?);
    let (group, owner) = (GroupId(body.u64()?), Owner(body.u64()?));
    let (incarnation, tail) = (body.u64()?, Seq(body.u64()?));
    let group_name = body.text(NAME_BYTES_MAX)?;
    let count = usize::from(body.u16()?);
    if count > VOLUMES_MAX {
        return Err(body.wrong(format!("{count} volumes, at most {VOLUMES_MAX} are possible")));
    }
    let mut volumes = Vec::with_capacity(count);
    for _ in 0..count {
        let (name, size) = (body.text(NAME_BYTES_MAX)?, body.u64()?);
        if size > VOLUME_BYTES_MAX {
            return Err(body.wrong(format!("a volume of {size} bytes")));
        }
        volumes.push((name, size));
    }
    Ok(Hello { purpose, group, group_name, epoch, owner, incarnation, volumes, tail })
}

fn welcome(body: &mut Reader<'_>) -> Result<Welcome, FormatError> {
    let (group, epoch, flags) = (GroupId(body.u64()?), Epoch(body.u32()?), body.u32()?);
    if flags > 15 {
        return Err(body.wrong(format!("unknown flags {flags:#x}")));
    }
    Ok(Welcome {
        group,
        epoch,
        synced: flags & 1 != 0,
        blank: flags & 2 != 0,
        gaps: flags & 4 != 0,
        led_past: flags & 8 != 0,
        owner: Owner(body.u64()?),
        journal_seq: Seq(body.u64()?),
        journal_chain: Chain(body.u64()?),
        cut: Seq(body.u64()?),
        applied: Seq(body.u64()?),
        batch: Seq(body.u64()?),
        window_bytes: body.u64()?,
        spool_bytes: body.u64()?,
        room: body.room()?,
        have: body.ranges()?,
    })
}

/// A range that is none, or that the digests are not over, is nobody's to read.
fn compare(body: &mut Reader<'_>) -> Result<Compare, FormatError> {
    let id = body.u64()?;
    let (volume, flags) = body.volume()?;
    if flags != 0 {
        return Err(body.wrong(format!("unknown flags {flags:#x}")));
    }
    let (offset, length, seq, grain) = (body.u64()?, body.u64()?, Seq(body.u64()?), body.u64()?);
    let count = body.count(8)?;
    let digests = (0..count).map(|_| body.u64()).collect::<Result<Vec<_>, _>>()?;
    let parts = if grain == 0 { 0 } else { length.div_ceil(grain) };
    if length == 0 || length > COMPARE_BYTES_MAX || parts != count as u64 || offset > VOLUME_BYTES_MAX - length {
        let text = format!("{count} digests over {grain} bytes each are none of {length} bytes at {offset}");
        return Err(body.wrong(text));
    }
    Ok(Compare { id, extent: Extent { volume, offset, length }, seq, grain, digests })
}

fn refuse(body: &mut Reader<'_>) -> Result<Refuse, FormatError> {
    let code = match body.u32()? {
        1 => RefuseCode::Version,
        2 => RefuseCode::WrongGroup,
        3 => RefuseCode::Fenced,
        4 => RefuseCode::SecondPrimary,
        5 => RefuseCode::Volumes,
        6 => RefuseCode::NotNow,
        7 => RefuseCode::Protocol,
        other => return Err(body.wrong(format!("unknown code {other}"))),
    };
    Ok(Refuse { code, epoch: Epoch(body.u32()?), text: body.text(REFUSE_TEXT_BYTES_MAX)? })
}

/// Whether `data` is what its record says (I8).
fn verify(what: &'static str, record: &OrderRecord, data: &Bytes) -> Result<(), FormatError> {
    if data.len() as u64 != record.payload_bytes() {
        let want = usize::try_from(record.payload_bytes()).unwrap_or(usize::MAX);
        return Err(FormatError::Length { what, got: data.len(), want });
    }
    if !data.is_empty() && crc32fast::hash(data) != record.payload_crc {
        return Err(FormatError::Checksum { what });
    }
    Ok(())
}

/// Reads a body from front to back.
pub(super) struct Reader<'a> {
    what: &'static str,
    pub(super) rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], FormatError> {
        let (front, rest) = self.rest.split_at_checked(n).ok_or_else(|| self.wrong("it ends too early".into()))?;
        self.rest = rest;
        Ok(front)
    }

    /// The number at the end of what is left.
    pub(super) fn last_u64(&mut self) -> Result<u64, FormatError> {
        let (rest, last) = self.rest.split_last_chunk().ok_or_else(|| self.wrong("it ends too early".into()))?;
        self.rest = rest;
        Ok(u64::from_le_bytes(*last))
    }

    pub(super) fn u8(&mut self) -> Result<u8, FormatError> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, FormatError> {
        self.take(2).map(|bytes| u16_at(bytes, 0))
    }

    pub(super) fn u32(&mut self) -> Result<u32, FormatError> {
        self.take(4).map(|bytes| u32_at(bytes, 0))
    }

    pub(super) fn u128(&mut self) -> Result<u128, FormatError> {
        let bytes = self.take(16)?;
        Ok(u128::from_le_bytes(bytes.try_into().expect("just taken")))
    }

    pub(super) fn u64(&mut self) -> Result<u64, FormatError> {
        self.take(8).map(|bytes| u64_at(bytes, 0))
    }

    /// A volume, and the flags in the eight bytes with it.
    fn volume(&mut self) -> Result<(Volume, u64), FormatError> {
        let word = self.u64()?;
        Ok((Volume((word & 0xffff) as u16), word >> 16))
    }

    fn room(&mut self) -> Result<JournalRoom, FormatError> {
        Ok(JournalRoom { upto: Seq(self.u64()?), records: self.u64()? })
    }

    pub(super) fn record(&mut self) -> Result<OrderRecord, FormatError> {
        self.take(RECORD_BYTES).and_then(OrderRecord::decode)
    }

    fn text(&mut self, bytes_max: usize) -> Result<String, FormatError> {
        let length = usize::from(self.u16()?);
        if length > bytes_max {
            return Err(self.wrong(format!("a text of {length} bytes, at most {bytes_max} are possible")));
        }
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.wrong("a text is not UTF-8".into()))
    }

    /// A number of items of `item_bytes` each, which are there.
    pub(super) fn count(&mut self, item_bytes: usize) -> Result<usize, FormatError> {
        let (count, reserved) = (self.u32()? as usize, self.u32()?);
        if reserved != 0 {
            return Err(self.wrong("reserved bytes are not zero".into()));
        }
        if self.rest.len() / item_bytes < count {
            return Err(self.wrong(format!("{count} items are announced, {} bytes are left", self.rest.len())));
        }
        Ok(count)
    }

    fn ranges(&mut self) -> Result<Vec<SeqRange>, FormatError> {
        let count = self.count(16)?;
        let mut ranges = Vec::with_capacity(count);
        for _ in 0..count {
            let range = SeqRange { first: Seq(self.u64()?), last: Seq(self.u64()?) };
            if range.first.0 == 0 || range.first > range.last {
                return Err(self.wrong(format!("{} to {} is no range of seqs", range.first, range.last)));
            }
            ranges.push(range);
        }
        Ok(ranges)
    }

    fn end(&self) -> Result<(), FormatError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(self.wrong(format!("{} bytes too many", self.rest.len())))
    }

    pub(super) fn wrong(&self, why: String) -> FormatError {
        FormatError::Field { what: self.what, why }
    }
}
