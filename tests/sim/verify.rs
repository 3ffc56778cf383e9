//! Owns comparisons of both sides: asked for at any moment, when nothing differs; and at the end of healing, when something of
//! DR's volumes does.

use std::collections::BTreeSet;

use farshore::cluster::status::{VerifyRange, VerifyReport};
use farshore::core::ids::{Seq, Volume};
use farshore::core::op::Op;
use farshore::dr;
use farshore::primary::machine::Input;
use farshore::primary::verify::Asked;

use crate::checkers::Verdict;
use crate::cluster::World;
use crate::network::Node;

const BLOCK: u64 = 4096;

/// What has been damaged for a comparison to find, and how far that is.
#[derive(Default)]
pub struct Comparing {
    /// Volume and offset of each block.
    pub blocks: BTreeSet<(u16, u64)>,
    /// The last order before that.
    since: Seq,
    repair: bool,
    asked: bool,
    /// DR could not read something to compare it: it may be sent once more, whatever it is.
    pub unread: bool,
    pub over: bool,
}

/// Volume and offset of each block of a range.
fn blocks_of(range: &VerifyRange) -> Vec<(u16, u64)> {
    let volume = range.volume.strip_prefix('v').and_then(|number| number.parse().ok()).unwrap_or(u16::MAX);
    let first = range.offset / BLOCK * BLOCK;
    (first..range.offset + range.length).step_by(BLOCK as usize).map(|at| (volume, at)).collect()
}

impl World {
    /// An operator asks; nobody has damaged a volume.
    pub fn ask_verify(&mut self, repair: bool) -> Verdict {
        let host = self.host(Node::Primary);
        if !host.up || host.paused.is_some() || self.verify_runs() {
            return Ok(());
        }
        self.primary_step(Input::Verify(Asked { repair, rate: 0 }))
    }

    /// Bits of DR's volumes flip that nothing but a comparison can find.
    pub fn damage_volumes(&mut self) {
        let sizes = self.primary_sizes();
        for _ in 0..self.rng.range(1, 6) {
            let volume = self.rng.below(sizes.len() as u64);
            let at = self.rng.below(sizes[volume as usize]);
            let volume = volume as u16;
            if self.comparing.blocks.insert((volume, at / BLOCK * BLOCK)) {
                let bit = self.rng.below(8) as u8;
                self.dr_disk.flip(dr::machine::File::Volume(Volume(volume)), at, bit);
            }
        }
        self.comparing.since = self.oracle.tail();
        self.comparing.repair = self.rng.chance(50);
        self.landmark(|| "some of DR's volumes is damaged, and both sides are compared".into());
    }

    /// Asks until what was damaged is found.
    pub fn look_compared(&mut self) -> Verdict {
        let host = self.host(Node::Primary);
        if !host.up || host.paused.is_some() || self.comparing.asked || self.comparing.over {
            return Ok(());
        }
        self.comparing.asked = true;
        if self.setup.scrub.is_some() {
            // One that has begun by itself gives way.
            let asked = Asked { repair: self.comparing.repair, rate: 0 };
            return self.primary_step(Input::Verify(asked));
        }
        self.ask_verify(self.comparing.repair)
    }

    /// The process died: it is to be asked again.
    pub fn forget_comparison(&mut self) {
        self.comparing.asked = false;
    }

    pub fn verified(&mut self, result: Result<VerifyReport, String>) -> Verdict {
        self.landmark(|| format!("verify: {result:?}"));
        let Ok(report) = result else {
            self.comparing.asked = false;
            return Ok(());
        };
        if self.comparing.over {
            return Ok(());
        }
        let unreadable = report.ranges.iter().any(|range| range.unreadable.is_some());
        if unreadable || self.damaged || self.astray {
            if self.comparing.asked {
                (self.comparing.over, self.comparing.asked, self.comparing.repair) = (report.equal, false, true);
            }
            return Ok(());
        }
        // The last one may have been the end of its volume, and be no more.
        let found: BTreeSet<(u16, u64)> = report.ranges.iter().flat_map(blocks_of).collect();
        let listed: u64 = report.ranges.iter().map(|range| range.length).sum();
        // A batch since then, after a restart of the primary, has brought some of it.
        let mut since = self.oracle.back_from(self.oracle.tail(), self.comparing.since);
        if since.any(|record| record.op == Op::BatchBegin) && found.is_subset(&self.comparing.blocks) {
            self.comparing.blocks.clone_from(&found);
        }
        let count = self.comparing.blocks.len() as u64;
        let bytes = report.different_bytes == listed && listed <= count * BLOCK;
        if found != self.comparing.blocks || !bytes || report.checked_bytes == 0 {
            let text = format!("of DR's volumes {:?} are damaged, and verify says: {report:?}", self.comparing.blocks);
            return self.fail("verify", text);
        }
        let repaired = self.comparing.asked && self.comparing.repair;
        if report.equal != (count == 0 || repaired) {
            return self.fail("verify", format!("{count} blocks were damaged, and verify says: {report:?}"));
        }
        if self.comparing.asked {
            (self.comparing.over, self.comparing.asked) = (repaired, false);
            self.comparing.repair = true;
        }
        Ok(())
    }

    /// Whether one that was asked for before is under way.
    pub fn verify_runs(&self) -> bool {
        let status = self.primary.as_ref().map(|machine| machine.status(self.clock(Node::Primary)));
        status.and_then(|status| status.verify).is_some_and(|verify| verify.running.is_some())
    }

    /// Whether this seed compares both sides at its end.
    pub fn compares(&self) -> bool {
        let known = !self.damaged && !self.astray && !self.aux_astray && !self.dr_spool_astray;
        self.setup.compares && known && self.comparing.blocks.is_empty()
    }
}
