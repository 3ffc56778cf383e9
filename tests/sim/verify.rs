//! Owns comparisons of both sides: asked for at any moment, when nothing differs; and at the end of healing, when something of
//! DR's volumes does.

use std::collections::BTreeSet;

use farshore::cluster::status::VerifyReport;
use farshore::core::ids::Volume;
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
    repair: bool,
    asked: bool,
    /// DR could not read something to compare it: it may be sent once more, whatever it is.
    pub unread: bool,
    pub over: bool,
}

impl World {
    /// An operator asks; nobody has damaged a volume.
    pub fn ask_verify(&mut self, repair: bool) -> Verdict {
        let host = self.host(Node::Primary);
        if !host.up || host.paused.is_some() {
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
        self.comparing.repair = self.rng.chance(50);
        self.landmark(|| "some of DR's volumes is damaged, and both sides are compared".into());
    }

    /// Asks until what was damaged is found.
    pub fn look_compared(&mut self) -> Verdict {
        if self.comparing.asked || self.comparing.over {
            return Ok(());
        }
        self.comparing.asked = true;
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
        let sizes = self.primary_sizes();
        let length = |(volume, at): &(u16, u64)| BLOCK.min(sizes[usize::from(*volume)] - at);
        let damaged: u64 = self.comparing.blocks.iter().map(length).sum();
        let listed: u64 = report.ranges.iter().map(|range| range.length).sum();
        let unreadable = report.ranges.iter().any(|range| range.unreadable.is_some());
        if self.comparing.over {
            return Ok(());
        }
        if unreadable || self.damaged || self.astray {
            (self.comparing.over, self.comparing.asked, self.comparing.repair) = (report.equal, false, true);
            return Ok(());
        }
        if (report.different_bytes, listed) != (damaged, damaged) {
            let text = format!("of DR's volumes {damaged} bytes are damaged, and verify says: {report:?}");
            return self.fail("verify", text);
        }
        let found = |(volume, at): &(u16, u64)| {
            let name = format!("v{volume}");
            report.ranges.iter().any(|it| it.volume == name && it.offset <= *at && *at < it.offset + it.length)
        };
        if !self.comparing.blocks.iter().all(found) {
            return self
                .fail("verify", format!("{:?} are damaged, and verify says: {report:?}", self.comparing.blocks));
        }
        let repaired = self.comparing.asked && self.comparing.repair;
        if report.equal != (damaged == 0 || repaired) {
            return self.fail("verify", format!("{damaged} bytes were damaged, and verify says: {report:?}"));
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
