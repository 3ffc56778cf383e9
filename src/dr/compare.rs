//! Comparisons of ranges with what the primary has there (`farshore verify`), each as of one seq on both sides.
//!
//! The primary asks on its order connection right behind the order of that seq. So nothing that comes later can have been
//! applied when the question is here, and the range is read between what comes before and what comes after: exactly what
//! the primary has hashed, while writes go on (nothing that is equal is called different).
//!
//! | the volume, once the order has been applied up to that seq | answered |
//! |---|---|
//! | shows it | the parts whose digests differ |
//! | goes past it in one step: a batch; or is past it already | `Passed` |
//! | cannot be read | `Unreadable`: nothing else is at stake, so the process goes on |

use bytes::Bytes;

use crate::core::ids::Conn;
use crate::core::machine::IoFail;
use crate::core::planted::{Bug, planted};
use crate::dr::api::Effect;
use crate::dr::machine::Machine;
use crate::dr::replay::{Action, Step};
use crate::format::wire::{Compare, Message, RefuseCode, Verdict};

/// Comparisons that one primary may have asked for and not been answered.
const WAITING_MAX: usize = 64;

fn answer(conn: Conn, id: u64, verdict: Verdict) -> Effect {
    Effect::Send { conn, message: Message::Compared { id, verdict } }
}

impl Machine {
    /// The primary asks what a range is.
    pub(super) fn compare(&mut self, conn: Conn, it: Compare, fx: &mut Vec<Effect>) {
        let volume = usize::from(it.extent.volume.0);
        let end = it.extent.offset + it.extent.length;
        if self.sizes.known().get(volume).is_none_or(|size| end > *size) {
            let text =
                format!("a comparison of {} bytes up to {end} of volume {volume} has no place here", it.extent.length);
            return self.refuse(conn, RefuseCode::Protocol, text, fx);
        }
        // Orders that come again after a connection was lost come before it, too.
        // A primary that lets go of what it has asked asks again.
        let shown = self.synced() && self.history.tail() <= it.seq && self.comparisons.all().count() < WAITING_MAX;
        if !shown {
            return fx.push(answer(conn, it.id, Verdict::Passed));
        }
        self.comparisons.waiting.push_back((conn, it));
    }

    /// The next range that is to be read now: everything up to its seq was given to the replay, and nothing after it.
    pub(super) fn next_probe(&mut self, fx: &mut Vec<Effect>) -> Option<Step> {
        let late = planted(Bug::ComparedLate);
        if late && self.history.next_after(self.fed).is_some_and(|entry| entry.record.seq <= self.cut) {
            return None;
        }
        while let Some((conn, it)) = self.comparisons.waiting.front() {
            if self.fed < it.seq {
                return None;
            }
            if !self.synced() || self.fed > it.seq && !late {
                fx.push(answer(*conn, it.id, Verdict::Passed));
                self.comparisons.waiting.pop_front();
                continue;
            }
            let asked = self.comparisons.waiting.pop_front()?;
            let probe = self.replay.new_probe();
            let (extent, reached) = (asked.1.extent, self.fed);
            self.comparisons.probing.insert(probe, asked);
            return Some(Step { action: Action::Probe { extent, probe }, reached, tag: None });
        }
        None
    }

    /// What the replay has read, or let go of.
    pub(super) fn probed(&mut self, fx: &mut Vec<Effect>) {
        for (probe, bytes) in self.replay.probed() {
            let Some((conn, it)) = self.comparisons.probing.remove(&probe) else {
                self.patch_probed(probe, bytes.as_ref(), fx);
                continue;
            };
            let verdict = match bytes {
                Some(bytes) => Verdict::Found { different: different(&it, &bytes) },
                None => Verdict::Passed,
            };
            fx.push(answer(conn, it.id, verdict));
        }
    }

    /// A range cannot be read.
    pub(super) fn probe_failed(&mut self, probe: u64, fail: &IoFail, fx: &mut Vec<Effect>) {
        self.patch_unread(probe, fx);
        if let Some((conn, it)) = self.comparisons.probing.remove(&probe) {
            let name = &self.options.volumes[usize::from(it.extent.volume.0)].0;
            let text = format!("volume {name} at DR: {fail}");
            fx.push(answer(conn, it.id, Verdict::Unreadable { text }));
        }
    }
}

/// The parts whose digests differ, the first in the lowest bit.
fn different(it: &Compare, bytes: &Bytes) -> u64 {
    let here = Compare::digests(bytes, it.grain);
    let bits = (0..).zip(here.iter().zip(&it.digests));
    bits.filter(|(_, (here, there))| here != there).map(|(bit, _)| 1 << bit).sum()
}
