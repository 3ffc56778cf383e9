//! Messages to bytes: small parts are gathered in one buffer, data goes out as it is, uncopied.
//!
//! Lists longer than one message may hold go out as several messages of the same kind, which mean the
//! same. Only the `have` of a welcome is cut short instead: it spares the primary resending what DR has,
//! and what is resent changes nothing.

use bytes::{BufMut, Bytes, BytesMut};

use super::orders::put_orders;
use super::{FRAME_HEADER_BYTES, Hello, Kind, MAGIC, Message, Purpose, Refuse, VERSION, Verdict, Welcome};
use crate::core::ids::SeqRange;
use crate::format::layout::put_u32;
use crate::limits::{
    COMMIT_RECORDS_MAX, COMPARE_PARTS_MAX, LIST_ITEMS_MAX, NAME_BYTES_MAX, PATCH_PARTS_MAX, REFUSE_TEXT_BYTES_MAX,
    VOLUMES_MAX,
};

/// Bytes allocated at a time for the small parts: hundreds of frames share one allocation.
const BLOCK_BYTES: usize = 64 << 10;

/// Turns messages into bytes for one or more connections; frames that follow one another without data
/// between them come out as one piece.
#[derive(Debug, Default)]
pub struct Encoder {
    small: BytesMut,
}

impl Encoder {
    #[must_use]
    pub fn new() -> Encoder {
        Encoder::default()
    }

    /// Encodes a message. What it needs may stay in the encoder until [`Encoder::flush`].
    ///
    /// # Panics
    /// When a bound that the configuration or the session guarantees does not hold.
    pub fn push(&mut self, message: &Message, out: &mut Vec<Bytes>) {
        if self.small.capacity() - self.small.len() < 256 {
            self.small.reserve(BLOCK_BYTES);
        }
        let kind = message.kind();
        match message {
            Message::Hello(hello) => self.frame(kind, 0, |body| put_hello(body, hello)),
            Message::Welcome(welcome) => self.frame(kind, 0, |body| put_welcome(body, welcome)),
            Message::Refuse(refuse) => self.frame(kind, 0, |body| put_refuse(body, refuse)),
            Message::Orders(records) => self.frames(kind, records, COMMIT_RECORDS_MAX, put_orders),
            Message::OrdersDurable { journal_seq } => self.frame(kind, 0, |body| body.put_u64_le(journal_seq.0)),
            Message::Payload { record, data } => {
                assert!(data.len() as u64 == record.payload_bytes(), "a payload is as long as its record says");
                self.frame(kind, data.len(), |body| body.put_slice(&record.encode()));
                self.data(data, out);
            }
            Message::Copied { ranges } | Message::Need { ranges } => {
                self.frames(kind, ranges, LIST_ITEMS_MAX, put_ranges);
            }
            Message::Chunk { index, record, data } => {
                assert!(data.len() as u64 == record.payload_bytes(), "a chunk is as long as its record says");
                self.frame(kind, data.len(), |body| {
                    body.put_u64_le(*index);
                    body.put_slice(&record.encode());
                });
                self.data(data, out);
            }
            Message::ChunksDurable { batch, indexes } => self.frames(kind, indexes, LIST_ITEMS_MAX, |body, part| {
                body.put_u64_le(batch.0);
                put_count(body, part.len());
                part.iter().for_each(|&index| body.put_u64_le(index));
            }),
            Message::Progress { cut, applied, synced, spool_bytes, window_bytes, room } => {
                self.frame(kind, 0, |body| {
                    [cut.0, applied.0, *spool_bytes, *window_bytes].iter().for_each(|&value| body.put_u64_le(value));
                    body.put_u64_le(u64::from(*synced));
                    [room.upto.0, room.records].iter().for_each(|&value| body.put_u64_le(value));
                })
            }
            Message::Ping { nonce } | Message::Pong { nonce } => self.frame(kind, 0, |body| body.put_u64_le(*nonce)),
            Message::RoomAsked { volume, size } => self.frame(kind, 0, |body| {
                body.put_u64_le(u64::from(volume.0));
                body.put_u64_le(*size);
            }),
            Message::StoreRoom(room) => self.frame(kind, 0, |body| {
                body.put_u64_le(u64::from(room.volume.0) | u64::from(room.holds) << 16);
                body.put_u64_le(room.size);
                body.put_u64_le(room.has);
                put_text(body, &room.text[..room.text.floor_char_boundary(REFUSE_TEXT_BYTES_MAX)]);
            }),
            Message::Compare(it) => self.frame(kind, 0, |body| {
                assert!(it.digests.len() <= COMPARE_PARTS_MAX, "a comparison has few parts");
                let volume = u64::from(it.extent.volume.0);
                let fields = [it.id, volume, it.extent.offset, it.extent.length, it.seq.0, it.grain];
                fields.iter().for_each(|&value| body.put_u64_le(value));
                put_count(body, it.digests.len());
                it.digests.iter().for_each(|&digest| body.put_u64_le(digest));
            }),
            Message::Patch(it) => {
                assert!(it.digests.len() <= PATCH_PARTS_MAX, "a piece has few parts");
                self.frame(kind, it.data.len(), |body| {
                    body.put_u64_le(it.index);
                    body.put_slice(&it.record.encode());
                    [it.grain, it.carried].iter().for_each(|&value| body.put_u64_le(value));
                    body.put_u64_le(u64::from(crc32fast::hash(&it.data)));
                    put_count(body, it.digests.len());
                    it.digests.iter().for_each(|&digest| body.put_u128_le(digest));
                });
                self.data(&it.data, out);
            }
            Message::Wanted { batch, index, parts } => self.frame(kind, 0, |body| {
                [batch.0, *index, *parts].iter().for_each(|&value| body.put_u64_le(value));
            }),
            Message::Compared { id, verdict } => self.frame(kind, 0, |body| {
                let (word, different, text) = match verdict {
                    Verdict::Found { different } => (0, *different, ""),
                    Verdict::Passed => (1, 0, ""),
                    Verdict::Unreadable { text } => (2, 0, text.as_str()),
                };
                [*id, word, different].iter().for_each(|&value| body.put_u64_le(value));
                put_text(body, &text[..text.floor_char_boundary(REFUSE_TEXT_BYTES_MAX)]);
            }),
        }
    }

    /// Appends to `out` what is still in the encoder.
    pub fn flush(&mut self, out: &mut Vec<Bytes>) {
        if !self.small.is_empty() {
            out.push(self.small.split().freeze());
        }
    }

    fn data(&mut self, data: &Bytes, out: &mut Vec<Bytes>) {
        if !data.is_empty() {
            self.flush(out);
            out.push(data.clone());
        }
    }

    /// One frame for every `max` items, and one for none.
    fn frames<I>(&mut self, kind: Kind, items: &[I], max: usize, body: impl Fn(&mut BytesMut, &[I])) {
        if items.is_empty() {
            self.frame(kind, 0, |out| body(out, items));
        }
        for part in items.chunks(max) {
            self.frame(kind, 0, |out| body(out, part));
        }
    }

    fn frame(&mut self, kind: Kind, data_len: usize, body: impl FnOnce(&mut BytesMut)) {
        frame(&mut self.small, kind, data_len, body);
    }
}

/// Appends header and body of a frame.
pub(super) fn frame(out: &mut BytesMut, kind: Kind, data_len: usize, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_bytes(0, FRAME_HEADER_BYTES);
    body(out);
    let (header, body) = out[start..].split_at_mut(FRAME_HEADER_BYTES);
    header[..4].copy_from_slice(&MAGIC);
    header[4] = VERSION;
    header[5] = kind as u8;
    put_u32(header, 8, u32::try_from(body.len()).expect("lists are bounded"));
    put_u32(header, 12, u32::try_from(data_len).expect("payloads are bounded"));
    put_u32(header, 16, crc32fast::hash(body));
    let crc = crc32fast::hash(&header[..28]);
    put_u32(header, 28, crc);
}

/// Appends one message to `out`: its small part, then its data uncopied.
///
/// # Panics
/// As [`Encoder::push`].
pub fn encode(message: &Message, out: &mut Vec<Bytes>) {
    let mut encoder = Encoder { small: BytesMut::with_capacity(256) };
    encoder.push(message, out);
    encoder.flush(out);
}

fn put_hello(body: &mut BytesMut, hello: &Hello) {
    assert!(hello.volumes.len() <= VOLUMES_MAX, "the configuration bounds the volumes");
    body.put_u32_le(match hello.purpose {
        Purpose::Order => 1,
        Purpose::Stream => 2,
    });
    body.put_u32_le(hello.epoch.0);
    [hello.group.0, hello.owner.0, hello.incarnation, hello.tail.0].iter().for_each(|&value| body.put_u64_le(value));
    put_name(body, &hello.group_name);
    body.put_u16_le(u16::try_from(hello.volumes.len()).expect("at most 64"));
    for (name, size) in &hello.volumes {
        put_name(body, name);
        body.put_u64_le(*size);
    }
}

fn put_welcome(body: &mut BytesMut, welcome: &Welcome) {
    body.put_u64_le(welcome.group.0);
    body.put_u32_le(welcome.epoch.0);
    let flags = [welcome.synced, welcome.blank, welcome.gaps, welcome.led_past];
    body.put_u32_le((0..).zip(flags).map(|(bit, flag)| u32::from(flag) << bit).sum());
    let fields = [
        welcome.owner.0,
        welcome.journal_seq.0,
        welcome.journal_chain.0,
        welcome.cut.0,
        welcome.applied.0,
        welcome.batch.0,
        welcome.window_bytes,
        welcome.spool_bytes,
        welcome.room.upto.0,
        welcome.room.records,
    ];
    fields.iter().for_each(|&value| body.put_u64_le(value));
    put_ranges(body, &welcome.have[..welcome.have.len().min(LIST_ITEMS_MAX)]);
}

fn put_refuse(body: &mut BytesMut, refuse: &Refuse) {
    body.put_u32_le(refuse.code as u32);
    body.put_u32_le(refuse.epoch.0);
    let text = &refuse.text[..refuse.text.floor_char_boundary(REFUSE_TEXT_BYTES_MAX)];
    put_text(body, text);
}

fn put_ranges(body: &mut BytesMut, ranges: &[SeqRange]) {
    put_count(body, ranges.len());
    for range in ranges {
        assert!(range.first <= range.last && range.first.0 > 0, "a range of seqs is not empty");
        body.put_u64_le(range.first.0);
        body.put_u64_le(range.last.0);
    }
}

fn put_count(body: &mut BytesMut, count: usize) {
    body.put_u32_le(u32::try_from(count).expect("lists are bounded"));
    body.put_u32_le(0);
}

fn put_name(body: &mut BytesMut, name: &str) {
    assert!(name.len() <= NAME_BYTES_MAX, "the configuration bounds names");
    put_text(body, name);
}

fn put_text(body: &mut BytesMut, text: &str) {
    body.put_u16_le(u16::try_from(text.len()).expect("texts are bounded"));
    body.put_slice(text.as_bytes());
}
