//! The entries of a spool (or of a primary's disk FIFO, which has the same format), in the order of positions.
//!
//! An entry follows the one before without a gap, or at the next start of the log: a gap with live entries behind
//! it has lost one. Behind the newest entry stands what an earlier round left, which nobody can judge; in the
//! first round nothing stands there but zeroes.

use std::path::Path;

use serde_json::json;

use super::{Image, Printer, record_json, record_text};
use crate::cli::failure::Failure;
use crate::format::ring::Ring;
use crate::format::spool::{ENTRY_HEADER_BYTES, EntryHeader, Kind};
use crate::format::superblock::{Role, SUPERBLOCK_BYTES, newest};
use crate::limits::ENTRY_ALIGN_BYTES;

/// Bytes read at a time while looking for entries.
const WINDOW_BYTES: u64 = 1 << 20;

/// What the superblock beside the file says about the log.
struct Log {
    nonce: u64,
    /// Position of the first entry that is needed.
    from: u64,
    /// The shape of a spool; of a disk FIFO, whose entries say what was passed over, nothing is known.
    ring: Option<Ring>,
    /// Whether `from` is known: without it everything readable is printed, and gaps mean nothing.
    whole: bool,
}

/// Prints every live entry. The log's nonce and first position are in the superblock beside the file; `nonce`
/// stands in when that is lost, and then everything readable is printed.
pub fn print(file: &Image, nonce: Option<u64>, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let log = match nonce {
        Some(nonce) => Log { nonce, from: 0, ring: None, whole: false },
        None => beside(&file.path)?,
    };
    if let Some(ring) = log.ring.filter(|ring| file.bytes > ring.bytes() && file.bytes.is_multiple_of(ring.size)) {
        let text =
            format!("longer than its superblock says ({}): being made longer, or a crash left it so", ring.bytes());
        printer.remark(ring.bytes(), &text)?;
    } else if let Some(made) = log.ring.map(|ring| ring.bytes()).filter(|made| *made != file.bytes) {
        let verdict = if file.bytes < made { "it was cut short" } else { "something was appended" };
        let text = format!("the file has {} bytes, the log was made with {made}: {verdict}", file.bytes);
        printer.damage(file.bytes.min(made), &text)?;
    }
    let ring = log.ring.unwrap_or(Ring::plain(file.bytes));
    if ring.bytes() == 0 {
        return printer.remark(0, "the file is empty");
    }
    let from = log.from;
    let mut scan = Scan { file, printer, ring, expected: from, entries: 0, stale: 0, other: None, log };
    // In the order of positions, piece by piece of the file.
    let mut pos = from;
    while pos < from + ring.bytes() {
        let (mut at, next) = (ring.offset(pos), ring.piece_end(pos).min(from + ring.bytes()));
        let end = (at + (next - pos)).min(file.bytes);
        while at < end {
            at = scan.window(at, end)?;
        }
        pos = next;
    }
    scan.finish()
}

struct Scan<'a, 'p> {
    file: &'a Image,
    printer: &'a mut Printer<'p>,
    log: Log,
    ring: Ring,
    /// Position behind the last entry.
    expected: u64,
    entries: u64,
    /// Entries of this log that are needed no more.
    stale: u64,
    /// First place behind the last entry that holds neither an entry nor zeroes.
    other: Option<u64>,
}

impl Scan<'_, '_> {
    /// Looks for entries in one window; returns where to go on.
    fn window(&mut self, base: u64, end: u64) -> Result<u64, Failure> {
        let window = self.file.read(base, WINDOW_BYTES.min(self.file.bytes - base))?;
        let mut offset = 0;
        while offset < window.len() {
            let at = base + offset as u64;
            if at >= end {
                return Ok(at);
            }
            let sector = &window[offset..window.len().min(offset + ENTRY_ALIGN_BYTES as usize)];
            let header =
                sector.get(..ENTRY_HEADER_BYTES).and_then(|bytes| EntryHeader::decode(bytes, self.log.nonce).ok());
            match header {
                Some(header) if self.ring.offset(header.pos) != at => {
                    let text = format!("entry of position {} does not belong here", header.pos);
                    self.printer.damage(at, &text)?;
                }
                Some(header) if header.pos >= self.log.from => {
                    self.gap(at, &header)?;
                    self.entry(at, &header)?;
                    return Ok(at + header.entry_bytes());
                }
                Some(_) => self.stale += 1,
                // Of another log, payload bytes of an earlier round, or damaged.
                None if sector.iter().any(|byte| *byte != 0) => {
                    self.other.get_or_insert(at);
                }
                None => {}
            }
            offset += ENTRY_ALIGN_BYTES as usize;
        }
        Ok(base + offset.max(ENTRY_ALIGN_BYTES as usize) as u64)
    }

    /// Holds an entry against the one before it.
    fn gap(&mut self, at: u64, header: &EntryHeader) -> Result<(), Failure> {
        let expected = std::mem::replace(&mut self.expected, header.pos + header.entry_bytes());
        self.entries += 1;
        self.other = None;
        // Whoever would straddle the end of a piece goes on behind it; in a disk FIFO the entry tells so.
        let turned = match self.log.ring {
            Some(ring) => {
                let placed = ring.place(expected, header.entry_bytes().min(ring.size));
                header.pos == placed || header.pos == ring.piece_end(expected)
            }
            None => header.pos - header.skipped == expected,
        };
        if !self.log.whole || header.pos == expected || turned {
            return Ok(());
        }
        let bytes = header.pos.saturating_sub(expected);
        let text = format!(
            "{bytes} bytes from position {expected} on hold no entry, but one of position {} follows at {at}: \
             damaged, or torn by a crash",
            header.pos
        );
        self.printer.damage(self.ring.offset(expected), &text)
    }

    fn entry(&mut self, at: u64, header: &EntryHeader) -> Result<(), Failure> {
        let kind = match header.kind {
            Kind::Payload => "payload",
            Kind::Chunk => "chunk",
        };
        let data = self.file.read(at + ENTRY_HEADER_BYTES as u64, header.data_bytes())?;
        if let Err(error) = header.verify_data(&data) {
            return self.printer.damage(at, &format!("data of seq {}: {error}", header.record.seq));
        }
        let mut fields = record_json(&header.record);
        if let Some(fields) = fields.as_object_mut() {
            fields.extend([("pos".into(), json!(header.pos)), ("index".into(), json!(header.index))]);
        }
        let text = format!("pos {} index {} {}", header.pos, header.index, record_text(&header.record));
        self.printer.item(at, kind, &text, fields)
    }

    fn finish(self) -> Result<(), Failure> {
        let Scan { file, printer, log, ring, expected, entries, stale, other } = self;
        match other {
            Some(at) if entries == 0 && stale == 0 => {
                printer
                    .damage(at, "not one entry of this log is in the file: overwritten, or the file of another log")?;
            }
            Some(at) if log.whole && expected <= ring.size && at >= expected => {
                let text = format!(
                    "bytes that are no entry behind the end of the log at position {expected}: damaged, or left by a \
                     crash and not overwritten yet"
                );
                printer.damage(at, &text)?;
            }
            _ => {}
        }
        let text = match entries {
            0 => format!("no entries from position {} on", log.from),
            n => format!("{n} entries from position {} to {expected}", log.from),
        };
        printer.remark(file.bytes, &text)
    }
}

/// Nonce and first live position from the superblock in the same directory.
fn beside(path: &Path) -> Result<Log, Failure> {
    // A promoted DR keeps the files of its life as a primary beside its own, with a prefix.
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let prefix = name.strip_suffix("fifo").unwrap_or_default();
    let superblock = path.with_file_name(format!("{prefix}superblock"));
    let help = "it says where the log begins; name the log's number with --nonce to go on without";
    let bytes = Image::open(&superblock)
        .and_then(|file| file.read(0, SUPERBLOCK_BYTES as u64))
        .map_err(|failure| Failure::failed(format!("{}; {help}", failure.text)))?;
    match newest(&bytes) {
        Ok(Some(found)) => {
            let ring = (found.role == Role::Dr).then(|| found.spool());
            Ok(Log { nonce: found.nonce, from: found.spool_pos, ring, whole: true })
        }
        Ok(None) => Err(Failure::failed(format!("{}: was never written; {help}", superblock.display()))),
        Err(error) => Err(Failure::failed(format!("{}: {error}; {help}", superblock.display()))),
    }
}
