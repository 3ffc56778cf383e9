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

use crate::dr::promote::LossReport;

const BEFORE_CRC: &str = "{\"crc32\":\"";
const AFTER_CRC: &str = "\",\"report\":\n";
const END: &str = "\n}\n";

/// Why the bytes of a file are no loss report.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    #[error("not a loss report of this version, or not the whole of one")]
    Shape,
    #[error("checksum mismatch, the loss report is damaged")]
    Checksum,
    #[error("the loss report cannot be understood: {0}")]
    Json(#[from] serde_json::Error),
}

/// The bytes of the file.
///
/// # Errors
/// When JSON cannot say it, which plain data never is.
pub fn encode(report: &LossReport) -> Result<Vec<u8>, serde_json::Error> {
    let body = serde_json::to_vec_pretty(report)?;
    let mut out = format!("{BEFORE_CRC}{:08x}{AFTER_CRC}", crc32fast::hash(&body)).into_bytes();
    out.extend_from_slice(&body);
    out.extend_from_slice(END.as_bytes());
    Ok(out)
}

/// Reads them.
///
/// # Errors
/// Everything that is not exactly what [`encode`] writes.
pub fn decode(bytes: &[u8]) -> Result<LossReport, StoredError> {
    let rest = bytes.strip_prefix(BEFORE_CRC.as_bytes()).ok_or(StoredError::Shape)?;
    let (crc, rest) = rest.split_at_checked(8).ok_or(StoredError::Shape)?;
    let rest = rest.strip_prefix(AFTER_CRC.as_bytes()).ok_or(StoredError::Shape)?;
    let body = rest.strip_suffix(END.as_bytes()).ok_or(StoredError::Shape)?;
    if crc != format!("{:08x}", crc32fast::hash(body)).as_bytes() {
        return Err(StoredError::Checksum);
    }
    Ok(serde_json::from_slice(body)?)
}
