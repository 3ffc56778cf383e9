//! Shared keys as a file: lines `name:key in hexadecimal`, as psktool writes them and QEMU, nbdkit and libnbd read them.
//!
//! Names are told, keys never: no text and no `Debug` made here holds a part of one, and memory that held one is wiped.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use zeroize::Zeroizing;

use super::TlsError;
use super::files::{FILE_BYTES_MAX, wrong};
use crate::io::open::{denied, to_read};

/// Longest name, bytes: what OpenSSL takes (RFC 4279, section 5.3, asks for no less).
const NAME_BYTES_MAX: usize = 128;
/// Shortest and longest key, bytes. Who answers a client can try every key that it may have, at leisure, on what it sends:
/// one that could be guessed is none.
const KEY_BYTES_MIN: usize = 16;
const KEY_BYTES_MAX: usize = 256;
/// A key that nobody has, as long as those that psktool makes.
const NOBODY_BYTES: usize = 32;

const HOW: &str = "`psktool -u NAME -p FILE` makes one";

type Key = Zeroizing<Vec<u8>>;

/// What a file holds.
pub struct Keys {
    by_name: BTreeMap<Vec<u8>, Key>,
    /// Stands for the key of every name that there is not, so that a client cannot ask which there are.
    nobody: Key,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({} names)", self.len())
    }
}

impl Keys {
    /// Reads a file.
    ///
    /// # Errors
    /// Which line cannot be used, and why; or that others can read the file.
    pub fn load(path: &Path) -> Result<Keys, TlsError> {
        let bytes = read(path)?;
        let mut nobody = Zeroizing::new(vec![0; NOBODY_BYTES]);
        openssl::rand::rand_bytes(&mut nobody).map_err(|error| wrong(path, &format!("no random numbers: {error}")))?;
        let mut keys = Keys { by_name: BTreeMap::new(), nobody };
        for (at, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            if !line.is_empty() && !line.starts_with(b"#") {
                keys.add(line).map_err(|text| TlsError(format!("{}:{}: {text}", path.display(), at + 1)))?;
            }
        }
        if keys.by_name.is_empty() {
            return Err(wrong(path, &format!("holds no key (name:key in hexadecimal): {HOW}")));
        }
        Ok(keys)
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// The key of a name, or one that nobody has; and whether there is such a name.
    pub fn of(&self, name: &[u8]) -> (&[u8], bool) {
        match self.by_name.get(name) {
            Some(key) => (key, true),
            None => (&self.nobody, false),
        }
    }

    fn add(&mut self, line: &[u8]) -> Result<(), String> {
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, hex) = line.split_at(colon.ok_or("is no line of the form name:key")?);
        let shown = shown(name);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(&0) {
            return Err(format!(
                "a name has 1 to {NAME_BYTES_MAX} bytes, none of them zero; this one has {}",
                name.len()
            ));
        }
        let hex = hex[1..].trim_ascii();
        let digit = |digit: u8| char::from(digit).to_digit(16).map(|digit| digit as u8);
        let mut key = Zeroizing::new(Vec::with_capacity(hex.len() / 2));
        for pair in hex.chunks(2) {
            let (Some(high), Some(low)) = (digit(pair[0]), pair.get(1).copied().and_then(digit)) else {
                return Err(format!("the key of {shown} is no even number of hexadecimal digits: {HOW}"));
            };
            key.push(high << 4 | low);
        }
        if !(KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&key.len()) {
            return Err(format!(
                "the key of {shown} has {} bytes: from {KEY_BYTES_MIN} to {KEY_BYTES_MAX} are possible, at random ({HOW})",
                key.len()
            ));
        }
        match self.by_name.insert(name.to_vec(), key) {
            Some(_) => Err(format!("{shown} has a key on an earlier line already: remove one of them")),
            None => Ok(()),
        }
    }
}

/// A name in words, whatever a stranger has put into it.
pub fn shown(name: &[u8]) -> String {
    format!("\"{}\"", name[..name.len().min(NAME_BYTES_MAX)].escape_ascii())
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let unreadable = |error: std::io::Error| {
        let advice = match error.kind() {
            std::io::ErrorKind::PermissionDenied => format!("; {}", denied()),
            std::io::ErrorKind::NotFound => format!("; {HOW}"),
            _ => String::new(),
        };
        wrong(path, &format!("the shared keys cannot be read: {error}{advice}"))
    };
    let file = to_read(path).map_err(unreadable)?;
    let data = file.metadata().map_err(unreadable)?;
    let mode = data.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        let text = format!(
            "these shared keys are open to others (mode {mode:04o}): chmod 600, and make new ones if others may have \
             read them"
        );
        return Err(wrong(path, &text));
    }
    if !data.is_file() {
        return Err(wrong(path, &format!("is no file with shared keys: {HOW}")));
    }
    // Room for all of it: memory that is moved while it grows would leave keys behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(data.len().min(FILE_BYTES_MAX) as usize + 64));
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(wrong(path, &format!("is too long for shared keys: at most {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}
