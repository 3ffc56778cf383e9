//! `farshore inspect`: what is on disk. Opens read-only, decodes with `format`, prints damage with its offset and
//! goes on behind it.

mod journal;
mod spool;
mod superblock;
mod table;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::arguments::{Inspect, What};
use super::failure::Failure;
use crate::cluster::status::rfc3339;
use crate::format::record::OrderRecord;
use crate::io::open::to_read;

/// Prints one file; exit status 1 when something in it is damaged.
pub fn run(options: &Inspect, out: &mut dyn Write) -> Result<(), Failure> {
    let path = located(&options.path, options.what);
    let file = Image::open(&path)?;
    let mut printer = Printer { out, json: options.json, damages: 0 };
    match options.what {
        What::Journal => journal::print(&file, &mut printer)?,
        What::Table => table::print(&file, &mut printer)?,
        What::Spool => spool::print(&file, options.nonce, &mut printer)?,
        What::Superblock => superblock::print(&file, &mut printer)?,
    }
    match printer.damages {
        0 => Ok(()),
        1 => Err(Failure::failed(format!("{}: one damaged place", path.display()))),
        n => Err(Failure::failed(format!("{}: {n} damaged places", path.display()))),
    }
}

/// The file itself, or the one of that kind in a role's directory.
fn located(path: &Path, what: What) -> PathBuf {
    if !path.is_dir() {
        return path.into();
    }
    let name = match what {
        What::Journal => "journal",
        What::Table => "table",
        // A primary has its disk FIFO instead.
        What::Spool if !path.join("spool").exists() && path.join("fifo").exists() => "fifo",
        What::Spool => "spool",
        What::Superblock => "superblock",
    };
    path.join(name)
}

/// A file opened for reading.
pub struct Image {
    pub path: PathBuf,
    file: File,
    pub bytes: u64,
}

impl Image {
    /// Opens a file or block device read-only.
    pub fn open(path: &Path) -> Result<Image, Failure> {
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound => Failure::failed(format!("{}: there is no such file", path.display())),
            ErrorKind::PermissionDenied => {
                Failure::failed(format!("{}: cannot be read: {error}; {}", path.display(), crate::io::open::denied()))
            }
            _ => Failure::failed(format!("{}: cannot be read: {error}", path.display())),
        };
        let mut file = to_read(path).map_err(failed)?;
        // Seeking knows the size of a block device too; metadata does not.
        let bytes = std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).map_err(failed)?;
        Ok(Image { path: path.into(), file, bytes })
    }

    /// `length` bytes from `offset`, fewer at the end of the file.
    pub fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, Failure> {
        let length = length.min(self.bytes.saturating_sub(offset));
        let mut buffer = vec![0; usize::try_from(length).unwrap_or(0)];
        self.file.read_exact_at(&mut buffer, offset).map_err(|error| {
            Failure::failed(format!("{}: cannot read {length} bytes at {offset}: {error}", self.path.display()))
        })?;
        Ok(buffer)
    }
}

/// Prints things with the offset where they stand, for people or as JSON lines.
pub struct Printer<'a> {
    out: &'a mut dyn Write,
    json: bool,
    damages: u64,
}

impl Printer<'_> {
    /// One thing: `kind` and `fields` (an object) as JSON, `text` for people.
    pub fn item(&mut self, at: u64, kind: &str, text: &str, fields: Value) -> Result<(), Failure> {
        if !self.json {
            return Ok(writeln!(self.out, "{at:>12}  {kind:<10} {text}")?);
        }
        let mut object = json!({ "at": at, "kind": kind });
        if let (Some(object), Value::Object(fields)) = (object.as_object_mut(), fields) {
            object.extend(fields);
        }
        Ok(writeln!(self.out, "{object}")?)
    }

    /// Something that cannot be what it should be.
    pub fn damage(&mut self, at: u64, text: &str) -> Result<(), Failure> {
        self.damages += 1;
        self.item(at, "DAMAGE", text, json!({ "text": text }))
    }

    /// Something worth a word that is no damage.
    pub fn remark(&mut self, at: u64, text: &str) -> Result<(), Failure> {
        self.item(at, "note", text, json!({ "text": text }))
    }
}

/// A record in words.
fn record_text(record: &OrderRecord) -> String {
    format!(
        "seq {} epoch {} volume {} {} {}+{}{} {} chain {:016x}",
        record.seq,
        record.epoch,
        record.volume,
        record.op.word(),
        record.offset,
        record.length,
        if record.flags == 0 { String::new() } else { format!(" flags {}", record.flags) },
        rfc3339(record.time_ns),
        record.chain.0
    )
}

/// A record as JSON.
fn record_json(record: &OrderRecord) -> Value {
    json!({
        "seq": record.seq, "epoch": record.epoch, "volume": record.volume, "op": record.op.word(),
        "flags": record.flags, "offset": record.offset, "length": record.length, "time": rfc3339(record.time_ns),
        "chain": format!("{:016x}", record.chain.0), "payload_crc": record.payload_crc,
    })
}
