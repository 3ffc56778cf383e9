//! Damage at rest: bits of DR's journal and spool that flip while its process is down (I8).
//!
//! From then on the site may refuse to vouch for what it has (a promotion refused for safety, a report that says
//! it is incomplete), and is not held to what it promised before; but what it claims to be whole has to be.

use farshore::core::ids::Seq;
use farshore::dr::machine::File;
use farshore::format::record::OrderRecord;
use farshore::format::spool::{EntryHeader, sized_nonce};
use farshore::limits::{ENTRY_ALIGN_BYTES, RECORD_BYTES};

use crate::cluster::{DR_NONCE, World};
use crate::rng::Rng;

/// A record or an entry: its seq, where it stands, its length.
type Piece = (Seq, u64, u64);

impl World {
    /// Flips a bit in something that DR wrote, now and then, before a start of it.
    pub fn damage_dr(&mut self) {
        let mut rng = Rng::new(self.setup.damage_seed ^ self.now_ns);
        if self.setup.damage_seed == 0 || self.promoted_at_ns.is_some() || !rng.chance(60) {
            return;
        }
        let file = rng.pick(&[File::Journal, File::Spool]);
        let found = self.pieces(file);
        if found.is_empty() {
            return;
        }
        // The newest matter most.
        let newest = found.len() - found.len().min(if rng.chance(50) { 8 } else { found.len() });
        let piece = found[newest + rng.below((found.len() - newest) as u64) as usize];
        self.flip_in(file, piece, &mut rng);
    }

    /// Flips a bit in what the next start of DR needs most: what is above its checkpoint, if there is any.
    pub fn rot_logs(&mut self, rng: &mut Rng) {
        if self.promoted_at_ns.is_some() {
            return;
        }
        let file = rng.pick(&[File::Journal, File::Spool, File::Spool]);
        let found = self.pieces(file);
        let file = if found.is_empty() { File::Journal } else { file };
        let found = if found.is_empty() { self.pieces(file) } else { found };
        let checkpoint = self.dr_superblock.as_ref().map_or(Seq(0), |it| it.seq);
        let needed: Vec<Piece> = found.iter().copied().filter(|(seq, ..)| *seq > checkpoint).collect();
        let found = if needed.is_empty() { found } else { needed };
        if !found.is_empty() {
            let piece = rng.pick(&found);
            self.flip_in(file, piece, rng);
        }
    }

    /// Flips a bit in a payload that waits for a batch: above the cut, and from before its begin.
    pub fn rot_payload(&mut self, batch: Seq, rng: &mut Rng) {
        let cut = self.cut_told;
        let waits: Vec<Piece> =
            self.pieces(File::Spool).into_iter().filter(|(seq, ..)| *seq > cut && *seq < batch).collect();
        if !waits.is_empty() {
            let piece = rng.pick(&waits);
            self.flip_in(File::Spool, piece, rng);
        }
    }

    /// Records of the journal, entries of the spool, in the order in which they stand.
    fn pieces(&self, file: File) -> Vec<Piece> {
        let bytes = self.dr_disk.file(file).stable();
        let nonce = sized_nonce(DR_NONCE, self.setup.spool_bytes);
        if file == File::Journal {
            let slots = bytes.chunks_exact(RECORD_BYTES).enumerate().filter(|(_, slot)| slot[14] != 0);
            let whole = slots.filter_map(|(at, slot)| Some((at, OrderRecord::decode(slot).ok()?)));
            whole.map(|(at, record)| (record.seq, (at * RECORD_BYTES) as u64, RECORD_BYTES as u64)).collect()
        } else {
            let step = ENTRY_ALIGN_BYTES as usize;
            let heads = (0..bytes.len()).step_by(step).filter_map(|at| Some((at, bytes.get(at..at + 128)?)));
            let whole = heads.filter_map(|(at, head)| Some((at, EntryHeader::decode(head, nonce).ok()?)));
            whole.map(|(at, header)| (header.record.seq, at as u64, 128 + header.data_bytes())).collect()
        }
    }

    fn flip_in(&mut self, file: File, (seq, at, length): Piece, rng: &mut Rng) {
        let at = at + rng.below(length);
        let bit = rng.below(8) as u8;
        self.landmark(|| format!("bit {bit} of byte {at} of DR's {file:?} flips"));
        self.dr_disk.flip(file, at, bit);
        self.damaged = true;
        if file == File::Journal {
            self.dr_rotten.insert(seq);
        } else {
            self.dr_rotten_payloads.insert(seq, self.now_ns);
        }
    }
}
