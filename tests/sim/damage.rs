//! Damage at rest: bits of DR's journal and spool that flip while its process is down (I8).
//!
//! From then on the site may refuse to vouch for what it has (a promotion refused for safety, a report that says
//! it is incomplete), and is not held to what it promised before; but what it claims to be whole has to be.

use farshore::dr::machine::File;
use farshore::format::record::OrderRecord;
use farshore::format::spool::{EntryHeader, sized_nonce};
use farshore::limits::{ENTRY_ALIGN_BYTES, RECORD_BYTES};

use crate::cluster::{DR_NONCE, World};
use crate::rng::Rng;

impl World {
    /// Flips a bit in something that DR wrote, now and then, before a start of it.
    pub fn damage_dr(&mut self) {
        let mut rng = Rng::new(self.setup.damage_seed ^ self.now_ns);
        if self.setup.damage_seed == 0 || self.promoted_at_ns.is_some() || !rng.chance(60) {
            return;
        }
        let file = rng.pick(&[File::Journal, File::Spool]);
        let bytes = self.dr_disk.file(file).stable();
        let nonce = sized_nonce(DR_NONCE, self.setup.spool_bytes);
        let found: Vec<(usize, u64)> = if file == File::Journal {
            let slots = bytes.chunks_exact(RECORD_BYTES).enumerate().filter(|(_, slot)| slot[14] != 0);
            let whole = slots.filter(|(_, slot)| OrderRecord::decode(slot).is_ok());
            whole.map(|(at, _)| (at * RECORD_BYTES, RECORD_BYTES as u64)).collect()
        } else {
            let step = ENTRY_ALIGN_BYTES as usize;
            let heads = (0..bytes.len()).step_by(step).filter_map(|at| Some((at, bytes.get(at..at + 128)?)));
            let whole = heads.filter_map(|(at, head)| Some((at, EntryHeader::decode(head, nonce).ok()?)));
            whole.map(|(at, header)| (at, 128 + header.data_bytes())).collect()
        };
        if found.is_empty() {
            return;
        }
        // The newest matter most.
        let newest = found.len() - found.len().min(if rng.chance(50) { 8 } else { found.len() });
        let (at, length) = found[newest + rng.below((found.len() - newest) as u64) as usize];
        let at = at as u64 + rng.below(length);
        let bit = rng.below(8) as u8;
        self.landmark(|| format!("bit {bit} of byte {at} of DR's {file:?} flips"));
        self.dr_disk.flip(file, at, bit);
        self.damaged = true;
    }
}
