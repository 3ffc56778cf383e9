//! A DR that comes back without the recovery point it had: its directory is another one.
//!
//! Most often the file system that the directory stands on is not mounted. The new one is filled, for a DR that was lost
//! for good is replaced like that; but status and log say loudly what is missing, and until the new copy is complete the
//! directory that was known before is welcome again, with the recovery point that it has (I6), by a primary that was not
//! restarted meanwhile.

use crate::core::ids::{Owner, Seq};
use crate::core::machine::Level;
use crate::format::wire::Welcome;
use crate::primary::machine::{Effect, Machine};

/// The directory with the last recovery point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::primary) struct Former {
    pub owner: Owner,
    cut: Seq,
    /// When another one came in its place, wall clock.
    pub since_ns: u64,
}

impl Former {
    pub fn text(&self) -> String {
        format!(
            "DR came back without the recovery point it had (up to seq {}), in a new directory: is the file system that it \
             stands on mounted? If not, stop DR, mount it and start DR again: it goes on from there. Until the new copy is \
             complete, DR cannot be promoted",
            self.cut
        )
    }
}

impl Machine {
    /// Notes which directory answers, before anything is taken over of what it says; whether it is the one that was missed.
    pub(super) fn note_directory(&mut self, welcome: &Welcome, fx: &mut Vec<Effect>) -> bool {
        let known = self.superblock.peer;
        if welcome.synced {
            let former = self.dr.former.take();
            let back = known != welcome.owner && former.is_some();
            if back {
                let text = format!("DR is back with the recovery point it had, seq {}", welcome.cut);
                fx.push(Effect::Log { level: Level::Info, text });
            }
            return back;
        }
        let had = if self.dr.synced { self.cut_known() } else { self.cut_before };
        let another = known != Owner(0) && known != welcome.owner;
        if another && had > Seq(0) && self.dr.former.is_none() {
            self.dr.former = Some(Former { owner: known, cut: had, since_ns: self.now.wall_ns });
        }
        if let Some(former) = self.dr.former {
            fx.push(Effect::Log { level: Level::Error, text: former.text() });
        }
        false
    }

    /// Whether this directory may come in the place of the one that is known.
    pub(super) fn may_replace(&self, welcome: &Welcome) -> bool {
        let known = self.superblock.peer;
        let missed = self.dr.former.is_some_and(|former| former.owner == welcome.owner);
        known == Owner(0) || known == welcome.owner || !welcome.synced || missed
    }
}
