//! Packed frames: the same messages come out, whatever was packed and however it is cut; lies about what they hold end.

use bytes::Bytes;
use farshore::format::FormatError;
use farshore::format::wire::{Encoder, Message, Packer, Unpacker};
use farshore::limits::PACKED_BYTES_MAX;
use proptest::prelude::*;

use crate::hex;
use crate::wire::{LINK, any_message, bytes_of, forged, read_in_pieces, rope_of};

const PACKED: u8 = 20;

fn ping(nonce: u64) -> Message {
    Message::Ping { nonce }
}

/// All messages of these bytes.
fn read(bytes: &[u8]) -> Result<Vec<(Message, bool)>, FormatError> {
    let (mut rope, mut unpacker, mut read) = (rope_of(bytes), Unpacker::default(), Vec::new());
    while let Some(message) = unpacker.next(&mut rope)? {
        read.push(message);
    }
    Ok(read)
}

fn packed(frames: &[u8]) -> Vec<u8> {
    let frames = Bytes::copy_from_slice(frames);
    Packer::new().expect("memory").pack(&[frames]).expect("it is shorter").concat()
}

/// A frame around bytes of Zstandard that are said to hold `length`.
fn around(length: usize, data: &[u8]) -> Vec<u8> {
    let body = [(length as u32).to_le_bytes(), crc32fast::hash(data).to_le_bytes()].concat();
    let mut out = forged(LINK, PACKED, 8, data.len() as u32, &body);
    out.extend_from_slice(data);
    out
}

/// One raw block (RFC 8878, 3.1.1), of at most 255 bytes: nothing is compressed.
fn raw_block(bytes: &[u8]) -> Vec<u8> {
    let head = ((bytes.len() << 3) as u32 | 1).to_le_bytes();
    [&[0x28, 0xb5, 0x2f, 0xfd, 0x20, bytes.len() as u8][..], &head[..3], bytes].concat()
}

#[test]
fn a_packed_frame_has_its_golden_bytes() {
    let frames = [bytes_of(&ping(5)), bytes_of(&ping(6))].concat();
    let golden = around(frames.len(), &raw_block(&frames));
    let head = "4653484c081400000800000059000000";
    assert_eq!(golden[..16], hex(head)[..]);
    assert_eq!(golden[32..36], [80, 0, 0, 0], "bytes that are packed");
    assert_eq!(read(&golden), Ok(vec![(ping(5), true), (ping(6), true)]));
    let mut bytes = golden.clone();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(!matches!(read(&bytes), Ok(read) if !read.is_empty()), "a flip of bit {bit} was not detected");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    for length in 0..golden.len() {
        assert_eq!(read(&golden[..length]), Ok(Vec::new()), "the rest has yet to come");
    }
}

#[test]
fn what_a_packed_frame_does_not_hold_is_refused() {
    let frames = bytes_of(&ping(5));
    let (one, block) = (frames.len(), raw_block(&frames));
    assert!(read(&around(one, &block)).is_ok());
    for length in [0, one - 1, one + 1, PACKED_BYTES_MAX, PACKED_BYTES_MAX + 1, u32::MAX as usize] {
        let error = read(&around(length, &block)).expect_err("it holds another number of bytes").to_string();
        // What no frame may hold is refused before room is made for it.
        let at_once = error.contains(&format!("{length} bytes are said to be in it")) && !error.contains(", and ");
        assert_eq!(at_once, length == 0 || length > PACKED_BYTES_MAX, "{error}");
    }
    for cut in 0..block.len() {
        assert!(read(&around(one, &block[..cut])).is_err(), "cut to {cut}");
    }
    // A frame that goes on in the next one, rubbish, nothing, and one in another.
    assert!(read(&around(one - 1, &raw_block(&frames[..one - 1]))).is_err());
    assert!(read(&around(40, &raw_block(&[7; 40]))).is_err());
    assert!(read(&around(0, &raw_block(&[]))).is_err());
    let inner = around(one, &block);
    let error = read(&around(inner.len(), &raw_block(&inner))).expect_err("one is enough");
    assert!(error.to_string().contains("in another one"), "{error}");
    // Zeroes that are more than a frame may hold, in a few bytes.
    let mut bomb = Vec::new();
    while bomb.len() < PACKED_BYTES_MAX + 100 {
        bomb.extend_from_slice(&bytes_of(&ping(0)));
    }
    assert!(Packer::new().expect("memory").pack(&[bomb.into()]).is_none(), "more than one may hold");
    let zeroes = packed(&vec![0; PACKED_BYTES_MAX]);
    assert!(zeroes.len() < 4096 && read(&zeroes).is_err(), "no frames at all");
}

#[test]
fn what_hardly_becomes_shorter_is_not_packed() {
    let mut noise: Vec<u8> =
        (0u32..4096).flat_map(|at| at.wrapping_mul(0x9e37_79b1).rotate_left(at % 31).to_le_bytes()).collect();
    let mut packer = Packer::new().expect("memory");
    assert_eq!(packer.pack(&[noise.clone().into()]), None);
    assert_eq!(packer.pack(&[]), None);
    noise.resize(2 * noise.len(), 0);
    let frames = packer.pack(&[noise.clone().into()]).expect("half of it is nothing");
    assert!(frames.concat().len() < noise.len() * 9 / 16);
}

proptest! {
    #[test]
    fn messages_come_out_as_they_went_in_however_they_are_packed_and_cut(
        messages in prop::collection::vec((any_message(), any::<bool>()), 1..12),
        cuts in prop::collection::vec(1usize..700, 1..40),
    ) {
        let mut packer = Packer::new().expect("memory");
        let (mut bytes, mut sent) = (Vec::new(), Vec::new());
        for run in messages.chunk_by(|one, other| one.1 == other.1) {
            let (mut encoder, mut parts) = (Encoder::new(), Vec::new());
            run.iter().for_each(|(message, _)| encoder.push(message, &mut parts));
            encoder.flush(&mut parts);
            let packed = if run[0].1 { packer.pack(&parts) } else { None };
            sent.extend(run.iter().map(|(message, _)| (message.clone(), packed.is_some())));
            packed.unwrap_or(parts).iter().for_each(|part| bytes.extend_from_slice(part));
        }
        let mut unpacker = Unpacker::default();
        let (read, _) = read_in_pieces(&bytes, &cuts, |rope| unpacker.next(rope).expect("intact"));
        prop_assert_eq!(read, sent);
    }
}
