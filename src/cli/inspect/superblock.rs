//! Both slots of a superblock.

use serde_json::json;

use super::{Image, Printer};
use crate::cli::failure::Failure;
use crate::format::is_zero;
use crate::format::superblock::{
    BLANK, CLEAN, DAMAGED, DIRECT, FORCED, MARKED, PROMOTED, PROMOTING, SETTLED, SUPERBLOCK_BYTES, SYNCED, Superblock,
};
use crate::limits::BLOCK_BYTES;

const FLAGS: [(u32, &str); 10] = [
    (SYNCED, "synced"),
    (PROMOTING, "promoting"),
    (PROMOTED, "promoted"),
    (CLEAN, "clean"),
    (DIRECT, "direct"),
    (BLANK, "blank"),
    (DAMAGED, "damaged"),
    (SETTLED, "settled"),
    (MARKED, "marked"),
    (FORCED, "forced"),
];

/// Prints each slot and which one is in force.
pub fn print(file: &Image, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let bytes = file.read(0, SUPERBLOCK_BYTES as u64)?;
    if bytes.len() < SUPERBLOCK_BYTES {
        let text = format!("the file has {} bytes, a superblock has {SUPERBLOCK_BYTES}", bytes.len());
        return printer.damage(bytes.len() as u64, &text);
    }
    if file.bytes > SUPERBLOCK_BYTES as u64 {
        let found = file.bytes;
        let text = format!(
            "the file has {found} bytes, a superblock has {SUPERBLOCK_BYTES}: another file, or something was appended to it"
        );
        printer.damage(SUPERBLOCK_BYTES as u64, &text)?;
        if is_zero(&bytes) {
            return printer.damage(0, "no superblock: nothing but zeroes where its two slots would stand");
        }
    }
    let slots: Vec<_> = bytes.chunks(BLOCK_BYTES).map(|slot| (is_zero(slot), Superblock::decode(slot))).collect();
    let newest = slots.iter().filter_map(|(_, slot)| slot.as_ref().ok()).map(|slot| slot.generation).max();
    for (index, (zero, slot)) in slots.iter().enumerate() {
        let at = (index * BLOCK_BYTES) as u64;
        match slot {
            Ok(slot) => one(at, slot, newest == Some(slot.generation), printer)?,
            Err(_) if *zero => printer.remark(at, "never written")?,
            Err(error) => printer.damage(at, &error.to_string())?,
        }
    }
    Ok(())
}

fn one(at: u64, slot: &Superblock, in_force: bool, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let flags: Vec<&str> = FLAGS.iter().filter(|(bit, _)| slot.has(*bit)).map(|(_, word)| *word).collect();
    let volumes: Vec<_> = slot
        .volumes
        .iter()
        .map(|(name, bytes)| json!({ "name_digest": format!("{name:016x}"), "size_bytes": bytes }))
        .collect();
    let boot: String = slot.boot_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let fields = json!({
        "in_force": in_force, "generation": slot.generation, "role": slot.role.word(), "group": slot.group_name,
        "group_id": format!("{:016x}", slot.group.0), "owner": format!("{:016x}", slot.owner.0),
        "peer": format!("{:016x}", slot.peer.0), "epoch": slot.epoch, "target_epoch": slot.target_epoch,
        "flags": flags, "seq": slot.seq, "chain": format!("{:016x}", slot.chain.0), "batch": slot.batch,
        "spool_pos": slot.spool_pos, "nonce": format!("{:016x}", slot.nonce),
        "journal_segment": slot.journal_segment, "boot_id": boot, "volumes": volumes,
        "promised_cut": slot.promised_cut, "promised_tail": slot.promised_tail,
        "suspect_until": slot.suspect_until, "journal_bytes": slot.journal_bytes,
        "spool_grown_bytes": slot.spool().grown_bytes(),
    });
    let mut text = format!("generation {}{}", slot.generation, if in_force { ", in force" } else { "" });
    for (key, value) in fields.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "in_force" | "generation") {
            text.push_str(&format!("\n                {key} = {value}"));
        }
    }
    printer.item(at, "superblock", &text, fields)
}
