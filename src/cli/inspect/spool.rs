//! The entries of a spool (or of a primary's disk FIFO, which has the same format), oldest first.

use std::path::Path;

use serde_json::json;

use super::{Image, Printer, record_json, record_text};
use crate::cli::failure::Failure;
use crate::format::spool::{ENTRY_HEADER_BYTES, EntryHeader, Kind};
use crate::format::superblock::{SUPERBLOCK_BYTES, newest};
use crate::limits::ENTRY_ALIGN_BYTES;

/// Bytes read at a time while looking for entries.
const WINDOW_BYTES: u64 = 1 << 20;

/// Prints every live entry. The log's nonce and first position are in the superblock beside the file; `nonce`
/// stands in when that is lost, and then everything readable is printed.
pub fn print(file: &Image, nonce: Option<u64>, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let (nonce, from) = match nonce {
        Some(nonce) => (nonce, 0),
        None => beside(&file.path)?,
    };
    if file.bytes == 0 {
        return printer.remark(0, "the file is empty");
    }
    let start = from % file.bytes;
    let mut entries = 0;
    // In the order of positions: from the first live one to the end of the file, then from its beginning.
    for (mut at, end) in [(start, file.bytes), (0, start)] {
        while at < end {
            let window = file.read(at, WINDOW_BYTES.min(file.bytes - at))?;
            at = scan(file, &window, at, end, nonce, from, &mut entries, printer)?;
        }
    }
    printer.remark(file.bytes, &format!("{entries} entries from position {from}"))
}

/// Looks for entries in one window; returns where to go on.
#[expect(clippy::too_many_arguments, reason = "one loop of `print`, taken out of it to be read alone")]
fn scan(
    file: &Image,
    window: &[u8],
    base: u64,
    end: u64,
    nonce: u64,
    from: u64,
    entries: &mut u64,
    printer: &mut Printer<'_>,
) -> Result<u64, Failure> {
    let mut offset = 0;
    while let Some(bytes) = window.get(offset..offset + ENTRY_HEADER_BYTES) {
        let at = base + offset as u64;
        if at >= end {
            return Ok(at);
        }
        match EntryHeader::decode(bytes, nonce) {
            Ok(header) if header.pos >= from && header.pos % file.bytes == at => {
                *entries += 1;
                entry(file, at, &header, printer)?;
                return Ok(at + header.entry_bytes());
            }
            Ok(header) if header.pos >= from => {
                printer.damage(at, &format!("entry of position {} does not belong here", header.pos))?;
            }
            // Of an earlier round, of another log, payload bytes, or never written.
            _ => {}
        }
        offset += ENTRY_ALIGN_BYTES as usize;
    }
    Ok(base + offset.max(ENTRY_ALIGN_BYTES as usize) as u64)
}

fn entry(file: &Image, at: u64, header: &EntryHeader, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let kind = match header.kind {
        Kind::Payload => "payload",
        Kind::Chunk => "chunk",
    };
    let data = file.read(at + ENTRY_HEADER_BYTES as u64, header.data_bytes())?;
    if let Err(error) = header.verify_data(&data) {
        return printer.damage(at, &format!("data of seq {}: {error}", header.record.seq));
    }
    let mut fields = record_json(&header.record);
    if let Some(fields) = fields.as_object_mut() {
        fields.extend([("pos".into(), json!(header.pos)), ("index".into(), json!(header.index))]);
    }
    let text = format!("pos {} index {} {}", header.pos, header.index, record_text(&header.record));
    printer.item(at, kind, &text, fields)
}

/// Nonce and first live position from the superblock in the same directory.
fn beside(path: &Path) -> Result<(u64, u64), Failure> {
    let superblock = path.with_file_name("superblock");
    let help = "it says where the log begins; name the log's number with --nonce to go on without";
    let bytes = Image::open(&superblock)
        .and_then(|file| file.read(0, SUPERBLOCK_BYTES as u64))
        .map_err(|failure| Failure::failed(format!("{}; {help}", failure.text)))?;
    match newest(&bytes) {
        Ok(Some(found)) => Ok((found.nonce, found.spool_pos)),
        Ok(None) => Err(Failure::failed(format!("{}: was never written; {help}", superblock.display()))),
        Err(error) => Err(Failure::failed(format!("{}: {error}; {help}", superblock.display()))),
    }
}
