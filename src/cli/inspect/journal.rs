//! The segments of a journal, oldest first.

use serde_json::json;

use super::{Image, Printer, record_json, record_text};
use crate::cli::failure::Failure;
use crate::core::ids::Chain;
use crate::format::is_zero;
use crate::format::journal::{SegmentHeader, SegmentRecords, segment_offset};
use crate::limits::{BLOCK_BYTES, SEGMENT_BYTES};

/// Prints every segment that holds records.
pub fn print(file: &Image, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let segments = file.bytes / SEGMENT_BYTES;
    if segments == 0 || !file.bytes.is_multiple_of(SEGMENT_BYTES) {
        let text = format!("the file has {} bytes, no whole number of segments of {SEGMENT_BYTES}", file.bytes);
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
            Err(_) if is_zero(&block) => {}
            Err(error) => printer.damage(at, &error.to_string())?,
        }
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
            return printer.remark(here, &format!("end; an older life of this segment follows (seq {})", record.seq));
        }
        printer.item(here, "record", &record_text(&record), record_json(&record))?;
        (previous, seq) = (Some(record.chain), record.seq);
    }
    Ok(())
}
