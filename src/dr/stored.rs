//! The loss report as the bytes of its file: JSON, for whoever has nothing else left, and a checksum over it (I8).
//!
//! ```text
//! {"crc32":"8 hex digits","report":
//! …
//! }
//! ```
//!
//! The checksum is over what stands between the first line and the last; those are exactly these. So each byte is
//! either covered or compared: a report that was changed in one digit is no report.
//!
//! A report may list very many writes: it is written and read as a stream, and the text is nowhere as a whole.

use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};

use crate::dr::promote::LossReport;

const BEFORE_CRC: &str = "{\"crc32\":\"";
const AFTER_CRC: &str = "\",\"report\":\n";
const END: &str = "\n}\n";
const CRC_DIGITS: usize = 8;
const HEAD_BYTES: usize = BEFORE_CRC.len() + CRC_DIGITS + AFTER_CRC.len();
/// What is read at once.
const PIECE_BYTES: usize = 64 << 10;

/// Why the bytes of a file are no loss report.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    #[error("not a loss report of this version, or not the whole of one")]
    Shape,
    #[error("checksum mismatch, the loss report is damaged")]
    Checksum,
    #[error("the loss report cannot be understood: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the loss report cannot be read: {0}")]
    Read(#[from] io::Error),
}

/// Writes the file from its beginning. The checksum stands first and is known last, so that it is gone back to.
///
/// # Errors
/// What `out` says.
pub fn write(report: &LossReport, out: &mut (impl Write + Seek)) -> io::Result<()> {
    out.write_all(head(0).as_bytes())?;
    let mut body = Summed { inner: &mut *out, crc: crc32fast::Hasher::new() };
    serde_json::to_writer_pretty(&mut body, report)?;
    let crc = body.crc.finalize();
    out.write_all(END.as_bytes())?;
    out.seek(SeekFrom::Start(0))?;
    out.write_all(head(crc).as_bytes())?;
    out.flush()
}

/// Reads a file of so many bytes from its beginning: first for its checksum, then for what it says.
///
/// # Errors
/// Everything that is not exactly what [`write`] writes.
pub fn read(file: &mut (impl Read + Seek), bytes: u64) -> Result<LossReport, StoredError> {
    let body_bytes = bytes.checked_sub((HEAD_BYTES + END.len()) as u64).ok_or(StoredError::Shape)?;
    let mut found = [0; HEAD_BYTES];
    file.read_exact(&mut found)?;
    let mut body = Summed { inner: file.by_ref().take(body_bytes), crc: crc32fast::Hasher::new() };
    let read = io::copy(&mut BufReader::with_capacity(PIECE_BYTES, &mut body), &mut io::sink())?;
    let expected = head(body.crc.finalize());
    let mut end = [0; END.len()];
    file.read_exact(&mut end)?;
    if read != body_bytes || end != END.as_bytes() {
        return Err(StoredError::Shape);
    }
    if found != expected.as_bytes() {
        let digits = BEFORE_CRC.len()..BEFORE_CRC.len() + CRC_DIGITS;
        let same = |range: std::ops::Range<usize>| found[range.clone()] == expected.as_bytes()[range];
        let framed = same(0..digits.start) && same(digits.end..HEAD_BYTES);
        return Err(if framed { StoredError::Checksum } else { StoredError::Shape });
    }
    file.seek(SeekFrom::Start(HEAD_BYTES as u64))?;
    let body = BufReader::with_capacity(PIECE_BYTES, file.by_ref().take(body_bytes));
    Ok(serde_json::from_reader(body)?)
}

/// The bytes of the file.
///
/// # Errors
/// None that memory has.
pub fn encode(report: &LossReport) -> io::Result<Vec<u8>> {
    let mut out = io::Cursor::new(Vec::new());
    write(report, &mut out)?;
    Ok(out.into_inner())
}

/// Reads them.
///
/// # Errors
/// As [`read`].
pub fn decode(bytes: &[u8]) -> Result<LossReport, StoredError> {
    read(&mut io::Cursor::new(bytes), bytes.len() as u64)
}

fn head(crc: u32) -> String {
    format!("{BEFORE_CRC}{crc:08x}{AFTER_CRC}")
}

/// Passes bytes on and keeps their checksum.
struct Summed<T> {
    inner: T,
    crc: crc32fast::Hasher,
}

impl<T: Write> Write for Summed<&mut T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.crc.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Summed<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.crc.update(&bytes[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::losses::{Entry, Missing, MissingWrites};
    use crate::cluster::status::PromoteReport;
    use crate::core::ids::{Chain, GroupId, Seq, Volume};
    use crate::core::op::Op;

    fn report(count: u64) -> LossReport {
        let entry = |seq| Entry {
            seq: Seq(seq),
            offset: seq << 9,
            length: 512,
            time_ns: seq * 1_000_003,
            volume: Volume(0),
            op: Op::Write,
            state: Missing::Queued,
        };
        let missing = MissingWrites::new(vec!["db".into()], (1..=count).map(entry).collect());
        LossReport {
            group_id: GroupId(5),
            tail_chain: Chain(6),
            report: PromoteReport { group: "orders".into(), missing, ..PromoteReport::default() },
        }
    }

    /// A file of an earlier version is one of this version, and the other way round.
    #[test]
    fn the_stream_is_the_file_that_was_written_as_a_whole() {
        for count in [0, 1, 1000] {
            let report = report(count);
            let body = serde_json::to_vec_pretty(&report).expect("plain data");
            let whole =
                [format!("{{\"crc32\":\"{:08x}\",\"report\":\n", crc32fast::hash(&body)).as_bytes(), &body, b"\n}\n"]
                    .concat();
            assert!(encode(&report).expect("memory") == whole, "{count}");
            assert_eq!(decode(&whole).expect("it was written so"), report);
        }
    }

    #[test]
    fn a_file_that_was_cut_or_grew_is_none() {
        let whole = encode(&report(20)).expect("memory");
        for bytes in (0..whole.len()).step_by(7).chain(whole.len() - 4..whole.len()) {
            assert!(decode(&whole[..bytes]).is_err(), "{bytes} bytes");
        }
        assert!(decode(&[&whole[..], b"\n"].concat()).is_err());
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        assert!(matches!(decode(&damaged), Err(StoredError::Checksum)));
    }
}
