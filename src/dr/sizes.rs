//! What sizes the volumes have, and whether their stores have room for that.
//!
//! | size of a volume | is |
//! |---|---|
//! | as of a seq | that of the superblock, which is as of the checkpoint, or of the last resize in the order up to there (I5) |
//! | known | the largest that the order here or the writer's hello names: nothing in the order goes beyond it |
//! | room | what its store is known to hold; may be more than any of these |
//!
//! A store grows when the first step that needs it is about to be applied. One that does not (a device that is smaller) holds
//! that step back and everything after it: named, asked again every [`GROW_AGAIN_NS`], and nothing is lost meanwhile.

use crate::core::ids::{Seq, Volume};
use crate::core::machine::Now;
use crate::core::planted::{Bug, planted};
use crate::dr::api::{Effect, PromoteError};
use crate::dr::history::History;
use crate::dr::machine::{Machine, Trouble};
use crate::dr::promote::unsafe_because;
use crate::dr::replay::Step;
use crate::format::record::OrderRecord;
use crate::format::superblock::{PROMOTING, Superblock};

/// How often a store that is too small is looked at again, nanoseconds.
const GROW_AGAIN_NS: u64 = 2_000_000_000;

/// What is known of sizes beside the superblock.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    known: Vec<u64>,
    room: Vec<u64>,
    /// A volume whose store is too small for what is to be done next.
    wanted: Option<Volume>,
    /// Its store has been asked to grow, and to what.
    growing: Option<(Volume, u64)>,
    again_ns: u64,
}

impl Sizes {
    /// As a start finds them: stores are as large as the superblock says, at least.
    pub fn found(superblock: &Superblock, history: &History) -> Sizes {
        let room: Vec<u64> = superblock.volumes.iter().map(|(_, size)| *size).collect();
        let mut sizes = Sizes { known: room.clone(), room, wanted: None, growing: None, again_ns: 0 };
        history.resizes_after(Seq(0)).for_each(|(_, volume, size)| sizes.learn(volume, size));
        sizes
    }

    /// The order, or the writer, names a size.
    pub fn learn(&mut self, volume: Volume, size: u64) {
        if let Some(known) = self.known.get_mut(usize::from(volume.0)) {
            *known = size.max(*known);
        }
    }

    pub fn known(&self) -> &[u64] {
        &self.known
    }

    /// Whether a record ends outside of its volume, as far as is known.
    pub fn outside(&self, record: &OrderRecord) -> bool {
        let known = self.known.get(usize::from(record.volume.0)).copied().unwrap_or(0);
        record.end().is_some_and(|end| end.is_none_or(|end| end > known))
    }

    /// Whether the store of a volume has room for so many bytes; if not, it will be asked to grow.
    pub fn has_room(&mut self, volume: Volume, bytes: u64) -> bool {
        let has = self.room[usize::from(volume.0)] >= bytes;
        if !has {
            self.wanted = Some(volume);
        }
        has
    }
}

impl Machine {
    /// Size of each volume as of a seq that is not below the checkpoint, bytes.
    pub(super) fn sizes_at(&self, seq: Seq) -> Vec<u64> {
        let mut sizes: Vec<u64> = self.keeper.get().volumes.iter().map(|(_, size)| *size).collect();
        if planted(Bug::ResizeEarly) {
            return self.sizes.known().to_vec();
        }
        let upto = self.history.resizes_after(Seq(0)).take_while(|(at, ..)| *at <= seq);
        for (_, volume, size) in upto.filter(|_| !planted(Bug::ResizeForgotten)) {
            if let Some(known) = sizes.get_mut(usize::from(volume.0)) {
                *known = size.max(*known);
            }
        }
        sizes
    }

    /// Name and size in bytes of each volume as of the last checkpoint: what a site that has been promoted serves.
    #[must_use]
    pub fn volumes(&self) -> Vec<(String, u64)> {
        let names = self.options.volumes.iter().map(|(name, _)| name.clone());
        names.zip(self.keeper.get().volumes.iter().map(|(_, size)| *size)).collect()
    }

    /// A record is to be in the order from now on; an error when it is about what is not there by then (I8).
    pub(super) fn learn_size(&mut self, record: &OrderRecord) -> Result<(), String> {
        if let Some(size) = record.new_size() {
            self.sizes.learn(record.volume, size);
        }
        let outside = self.sizes.outside(record);
        (!outside).then_some(()).ok_or_else(|| format!("seq {} ends outside volume {}", record.seq, record.volume))
    }

    /// Whether a step can be carried out on the stores as they are.
    pub(super) fn fits(&mut self, step: &Step) -> bool {
        step.action.needs().is_none_or(|(volume, bytes)| self.sizes.has_room(volume, bytes))
    }

    /// Whether every store has the size that its volume has as of a seq; one that does not is asked to grow.
    pub(super) fn have_room(&mut self, seq: Seq) -> bool {
        let sizes = self.sizes_at(seq);
        (0..).zip(sizes).all(|(volume, size)| self.sizes.has_room(Volume(volume), size))
    }

    /// Has a store grow that something waits for.
    pub(super) fn grow(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let Some(volume) = self.sizes.wanted else { return };
        if self.sizes.growing.is_some() || now.mono_ns < self.sizes.again_ns || self.stopping {
            return;
        }
        let size = self.sizes.known[usize::from(volume.0)];
        self.sizes.wanted = None;
        self.sizes.growing = Some((volume, size));
        fx.push(Effect::Grow { volume, size });
    }

    /// When a store that was too small is to be asked again.
    pub(super) fn grow_due_ns(&self) -> Option<u64> {
        let due = self.sizes.wanted.is_some() && self.sizes.growing.is_none() && !self.stopping;
        due.then_some(self.sizes.again_ns)
    }

    /// A store was asked to grow.
    pub(super) fn grown(&mut self, now: Now, volume: Volume, result: Result<u64, String>, fx: &mut Vec<Effect>) {
        let Some((_, size)) = self.sizes.growing.take_if(|(of, _)| *of == volume) else { return };
        match result {
            Ok(bytes) => {
                let room = &mut self.sizes.room[usize::from(volume.0)];
                *room = bytes.max(*room).max(size);
                self.relieved(Trouble::TooSmall, "the volume has room now for its new size: going on", fx);
            }
            Err(text) => {
                self.sizes.wanted = Some(volume);
                self.sizes.again_ns = now.mono_ns + GROW_AGAIN_NS;
                let text = format!(
                    "{text}; until then nothing from the resize on is applied here. Nothing is lost, and it goes on by itself"
                );
                self.trouble(now, Trouble::TooSmall, text, fx);
            }
        }
    }

    /// What keeps the recovery point from being reached, if a store is too small for it.
    pub(super) fn too_small(&self) -> Option<&str> {
        self.troubles.get(&Trouble::TooSmall).map(|(text, _)| text.as_str())
    }

    /// Why a promotion cannot succeed, known before anybody is fenced: the site that serves goes on.
    pub(super) fn does_not_fit(&self) -> Option<PromoteError> {
        let text = self.too_small().filter(|_| !self.keeper.get().has(PROMOTING))?;
        let text =
            format!("what is to be replayed does not fit, and nothing was changed: {text}. Then call promote again");
        Some(unsafe_because(text))
    }

    /// A store is being asked whether it is large enough.
    pub(super) fn is_growing(&self) -> bool {
        self.sizes.growing.is_some() || self.sizes.wanted.is_some() && self.too_small().is_none()
    }

    /// What a writer says of its sizes. A new directory is nobody's copy yet: its volumes become as large, whatever the
    /// configuration here says. In any other the order does that, or the sizes behind the begin of a batch.
    pub(super) fn adopt_sizes(&mut self, volumes: &[(String, u64)]) {
        let it = self.keeper.get();
        let same = it.volumes.iter().map(|it| it.1).eq(volumes.iter().map(|it| it.1));
        if it.group.0 == 0 && !same {
            let sizes: Vec<u64> = volumes.iter().map(|(_, size)| *size).collect();
            self.keeper.change(|it| it.volumes.iter_mut().zip(&sizes).for_each(|(volume, size)| volume.1 = *size));
            self.sizes.known = sizes;
        }
        for (at, (_, size)) in (0..).zip(volumes) {
            self.sizes.learn(Volume(at), *size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::Chain;
    use crate::core::op::Op;
    use crate::format::superblock::Role;

    #[test]
    fn what_the_order_names_may_be_used_and_what_a_store_lacks_is_wanted() {
        let superblock = Superblock { volumes: vec![(1, 1024), (2, 4096)], ..Superblock::new(Role::Dr) };
        let mut sizes = Sizes::found(&superblock, &History::after(Seq(0), Chain(0)));
        let write = OrderRecord { offset: 1024, ..OrderRecord::sample(1, Op::Write) };
        assert!(sizes.outside(&write) && !sizes.outside(&OrderRecord { volume: Volume(1), ..write }));
        assert!(sizes.outside(&OrderRecord { offset: u64::MAX, ..write }), "there is no such end");
        assert!(sizes.outside(&OrderRecord { volume: Volume(2), ..write }), "nor such a volume");
        assert!(!sizes.outside(&OrderRecord::sample(1, Op::Mark)), "which is about no volume");
        sizes.learn(Volume(0), 2048);
        sizes.learn(Volume(0), 512);
        assert_eq!(sizes.known(), [2048, 4096]);
        assert!(!sizes.outside(&write));
        assert!(sizes.has_room(Volume(0), 1024) && sizes.wanted.is_none());
        assert!(!sizes.has_room(Volume(0), 1536));
        assert_eq!(sizes.wanted, Some(Volume(0)));
    }
}
