//! What only the machine can say: random numbers, and which boot this is.

use std::fs::File;
use std::io::{self, Read};

/// A number nobody else has; never 0.
pub fn random() -> io::Result<u64> {
    let mut raw = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut raw)?;
    Ok(u64::from_le_bytes(raw).max(1))
}

/// Identity of this boot of the machine: what was written and not synced before it may be gone.
pub fn boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id = u128::from_str_radix(&digits, 16).map_err(io::Error::other)?;
    Ok(id.to_be_bytes())
}
