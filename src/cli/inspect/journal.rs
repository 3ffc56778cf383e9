//! The segments of a journal, oldest first.

use std::path::Path;

use serde_json::json;

use super::{Image, Printer, record_json, record_text};
use crate::cli::failure::Failure;
use crate::core::ids::{Chain, Seq};
use crate::format::is_zero;
use crate::format::journal::{SegmentHeader, SegmentRecords, segment_offset};
use crate::format::record::OrderRecord;
use crate::format::superblock::{Role, SUPERBLOCK_BYTES, newest};
use crate::limits::{BLOCK_BYTES, RECORD_BYTES, SEGMENT_BYTES};

/// Prints every segment that holds records.
pub fn print(file: &Image, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let segments = file.bytes / SEGMENT_BYTES;
    if segments < 2 || !file.bytes.is_multiple_of(SEGMENT_BYTES) {
        let text =
            format!("the file has {} bytes, no whole number of segments of {SEGMENT_BYTES}, two at least", file.bytes);
        printer.damage(file.bytes, &text)?;
    }
    let mut headers: Vec<SegmentHeader> = Vec::new();
    for place in 0..segments {
        let at = place * SEGMENT_BYTES;
        let block = file.read(at, BLOCK_BYTES as u64)?;
        match SegmentHeader::decode(&block) {
            Ok(header) if segment_offset(header.number, segments) == at => headers.push(header),
            Ok(header) => {
                printer.damage(
                    at,
                    &format!("segment {} does not belong here: misdirected, or the file was cut", header.number),
                )?;
            }
            Err(_) if is_zero(&block) => unused(file, at, printer)?,
            Err(error) => printer.damage(at, &error.to_string())?,
        }
    }
    if let (true, Some(seq)) = (headers.is_empty(), checkpoint(&file.path)) {
        let text = format!("no segment at all, but the superblock beside it speaks of seq {seq}: overwritten or cut");
        printer.damage(0, &text)?;
    }
    headers.sort_by_key(|header| header.number);
    for header in &headers {
        segment(file, header, segment_offset(header.number, segments), printer)?;
    }
    let text = format!("{} of {segments} segments in use", headers.len());
    printer.remark(file.bytes, &text)
}

fn segment(file: &Image, header: &SegmentHeader, at: u64, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let fields = json!({
        "number": header.number, "group_id": format!("{:016x}", header.group.0), "first_seq": header.first_seq,
        "previous_seq": header.previous_seq, "previous_chain": format!("{:016x}", header.previous_chain.0),
    });
    let text = format!("number {}, first seq {}, after seq {}", header.number, header.first_seq, header.previous_seq);
    printer.item(at, "segment", &text, fields)?;
    let bytes = file.read(at, SEGMENT_BYTES)?;
    // `None` behind a damaged record: its successor cannot be held against it.
    let mut previous: Option<Chain> = Some(header.previous_chain);
    let mut seq = header.previous_seq;
    let mut end = BLOCK_BYTES;
    for (offset, record) in SegmentRecords::new(&bytes) {
        let here = at + offset as u64;
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                previous = None;
                printer.damage(here, &error.to_string())?;
                continue;
            }
        };
        let continues = previous.is_none_or(|chain| record.chain_after(chain) == record.chain);
        if !(record.op.may_jump() || continues && record.seq > seq) {
            // What stood here before the segment was taken again, and is not part of the history any more.
            printer.remark(here, &format!("end; an older life of this segment follows (seq {})", record.seq))?;
            return rest(&bytes, offset, at, printer);
        }
        printer.item(here, "record", &record_text(&record), record_json(&record))?;
        (previous, seq) = (Some(record.chain), record.seq);
        end = offset + RECORD_BYTES;
    }
    rest(&bytes, end, at, printer)
}

/// Behind the end stand zeroes or records of an older life; the first slot that is neither is named.
fn rest(segment: &[u8], end: usize, at: u64, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let slots = segment.chunks_exact(RECORD_BYTES).enumerate().skip(end / RECORD_BYTES);
    for (slot, bytes) in slots {
        if !is_zero(bytes)
            && let Err(error) = OrderRecord::decode(bytes)
        {
            return printer.damage(at + (slot * RECORD_BYTES) as u64, &format!("behind the end: {error}"));
        }
    }
    Ok(())
}

/// A segment whose header is all zeroes has never been used, or was zeroed as a whole.
fn unused(file: &Image, at: u64, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let bytes = file.read(at, SEGMENT_BYTES)?;
    match bytes.iter().position(|byte| *byte != 0) {
        Some(offset) => printer.damage(at + offset as u64, "bytes in a segment that has no header"),
        None => Ok(()),
    }
}

/// The checkpoint of the superblock beside a journal, when there is one that speaks of any record.
fn checkpoint(path: &Path) -> Option<Seq> {
    let file = Image::open(&path.with_file_name("superblock")).ok()?;
    let found = newest(&file.read(0, SUPERBLOCK_BYTES as u64).ok()?).ok().flatten()?;
    (found.role == Role::Dr && found.seq > Seq(0)).then_some(found.seq)
}
