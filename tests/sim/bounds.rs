//! Owns the bounds of the queues: that none is passed (I9), and which of them the seeds have come to.

use std::collections::{BTreeMap, BTreeSet};

use farshore::cluster::status::{Degraded, DrStatus, PrimaryStatus};

use crate::checkers::Verdict;
use crate::cluster::World;
use crate::network::Node;

/// Bounds that were come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Met(BTreeSet<&'static str>);

/// What status says of the primary, or of DR, at a bound.
const PRIMARY: [(&str, &str); 9] = [
    ("queue", "the FIFO is full"),
    ("lag", "is at primary.lag_max"),
    ("DR's journal", "DR's journal"),
    ("DR's spool", "DR's spool has to hold"),
    ("table", "the status table is full"),
    ("table, overwritten", "are overwritten"),
    ("ring", "payload ring is full"),
    ("dropped", "payloads are dropped"),
    ("refused", "writes are refused"),
];
const DR: [(&str, &str); 2] = [("batch without room", "needs more spool"), ("resize without room", "to a resize")];

/// Those that the seeds of the default run come to.
pub fn to_be_met() -> impl Iterator<Item = &'static str> {
    PRIMARY.iter().map(|(name, _)| *name).chain([SPILL, GROWN])
}

/// Bounds that figures show.
const SPILL: &str = "spill";
const GROWN: &str = "spool, grown";

impl Met {
    fn note(&mut self, degraded: &[Degraded], bounds: &[(&'static str, &str)]) {
        let says = |what: &str| degraded.iter().any(|it| it.what.contains(what));
        self.0.extend(bounds.iter().filter(|(_, what)| says(what)).map(|(name, _)| *name));
    }

    fn primary(&mut self, it: &PrimaryStatus) {
        self.note(&it.degraded, &PRIMARY);
        if it.fifo_disk_bytes > 0 {
            self.0.insert(SPILL);
        }
    }

    fn dr(&mut self, it: &DrStatus, made_with: u64) {
        self.note(&it.degraded, &DR);
        if it.spool_limit_bytes > made_with {
            self.0.insert(GROWN);
        }
    }

    /// One seed more, in a count by bound.
    pub fn count(&self, counts: &mut BTreeMap<&'static str, u64>) {
        self.0.iter().for_each(|name| *counts.entry(name).or_default() += 1);
    }
}

impl World {
    /// I9: what status says is in use is never more than it says there is.
    pub fn check_bounds(&mut self) -> Verdict {
        let one_more = self.setup.request_bytes_max;
        if let Some(machine) = &self.primary {
            let it = machine.status(self.clock(Node::Primary));
            self.met.primary(&it);
            if it.fifo_memory_bytes > it.fifo_memory_limit_bytes + one_more {
                let (used, limit) = (it.fifo_memory_bytes, it.fifo_memory_limit_bytes);
                return self.fail("I9", format!("the FIFO holds {used} bytes in memory, {limit} are allowed"));
            }
            if it.fifo_disk_bytes > it.fifo_disk_limit_bytes {
                let (used, limit) = (it.fifo_disk_bytes, it.fifo_disk_limit_bytes);
                return self.fail("I9", format!("the FIFO holds {used} bytes on disk, {limit} are allowed"));
            }
        }
        if let Some(machine) = &self.dr {
            let it = machine.status(self.clock(Node::Dr));
            self.met.dr(&it, self.setup.spool_bytes);
            for (what, used, limit) in
                [("spool", it.spool_bytes, it.spool_limit_bytes), ("journal", it.journal_bytes, it.journal_limit_bytes)]
            {
                if used > limit {
                    return self.fail("I9", format!("DR's {what} holds {used} bytes, it has {limit}"));
                }
            }
        }
        Ok(())
    }
}
