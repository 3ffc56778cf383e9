//! Every format: its golden bytes, every single-bit flip, every truncation.
//!
//! Owns what the formats' tests share. The golden bytes were made by a second, independent
//! implementation from the tables in the files' headers: a layout that changes without its version fails
//! here.

mod blocks;
mod every;
mod orders;
mod packed;
mod slots;
mod wire;

use farshore::core::ids::{Chain, Epoch, Seq, Volume};
use farshore::core::op::Op;
use farshore::format::FormatError;
use farshore::format::record::{FLAG_FUA, FLAG_NO_HOLE, OrderRecord};

/// Payload of [`write_record`].
const DATA: &[u8] = b"farshore";

/// The bytes of hexadecimal text.
fn hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "two digits a byte");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex digits")).collect()
}

/// `length` bytes, zero but for the pieces given by offset and hexadecimal text.
fn sparse(length: usize, pieces: &[(usize, &str)]) -> Vec<u8> {
    let mut out = vec![0; length];
    for (at, text) in pieces {
        let bytes = hex(text);
        out[*at..at + bytes.len()].copy_from_slice(&bytes);
    }
    out
}

/// `value` has exactly these bytes, they read back as it, and nothing that differs from them in one bit
/// or in length is accepted.
fn check<T: PartialEq + std::fmt::Debug>(
    value: &T,
    encoded: &[u8],
    golden: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, FormatError>,
) {
    assert!(encoded == golden, "bytes differ from the golden ones:\n{encoded:02x?}");
    assert_eq!(&decode(golden).expect("golden bytes are accepted"), value);
    let mut bytes = golden.to_vec();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&bytes).is_err(), "a flip of bit {bit} was not detected");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    for length in 0..bytes.len() {
        assert!(decode(&bytes[..length]).is_err(), "a truncation to {length} bytes was not detected");
    }
    bytes.push(0);
    assert!(decode(&bytes).is_err(), "a byte too many was not detected");
}

fn write_record() -> OrderRecord {
    OrderRecord {
        seq: Seq(0x0102_0304_0506_0708),
        epoch: Epoch(0x1112_1314),
        volume: Volume(0x2122),
        op: Op::Write,
        flags: FLAG_FUA,
        offset: 0x3132_3334_3536_3738,
        length: DATA.len() as u64,
        time_ns: 0x5152_5354_5556_5758,
        chain: Chain(0x6162_6364_6566_6768),
        payload_crc: 0x3b37_da83,
    }
}

fn zeroes_record() -> OrderRecord {
    OrderRecord {
        seq: Seq(9),
        epoch: Epoch(2),
        volume: Volume(1),
        op: Op::WriteZeroes,
        flags: FLAG_NO_HOLE,
        offset: 4096,
        length: 8192,
        time_ns: 7,
        chain: Chain(5),
        payload_crc: 0,
    }
}
