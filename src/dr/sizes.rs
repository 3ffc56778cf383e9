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
//!
//! A batch is all or nothing. So it is not complete before every store has the size that it ends with: until then nothing of
//! it is applied, and the recovery point before it stays what can be promoted, by force (I6).

use crate::cluster::status::HoldsBack;
use crate::core::ids::{Conn, Seq, Volume};
use crate::core::machine::{Level, Now};
use crate::core::planted::{Bug, planted};
use crate::dr::api::{Effect, Lacking, PromoteError};
use crate::dr::history::History;
use crate::dr::machine::{Machine, Trouble};
use crate::dr::promote::{LossReport, unsafe_because};
use crate::dr::replay::{Action, Step};
use crate::format::record::OrderRecord;
use crate::format::superblock::{PROMOTING, Superblock};
use crate::format::wire::{Message, StoreRoom};

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
    /// The writer asks whether there would be room: who is to be told, and for what.
    asked: Option<(Conn, Volume, u64)>,
    /// What is held back for lack of room, and how often that has changed: the writer is told.
    pub(super) held: Option<StoreRoom>,
    /// A promotion by force stops here, before a resize for which a store has no room.
    pub(super) stops_at: Option<Seq>,
    pub(super) held_changes: u64,
}

impl Sizes {
    /// As a start finds them: stores are as large as the superblock says, at least.
    pub fn found(superblock: &Superblock, history: &History) -> Sizes {
        let room: Vec<u64> = superblock.volumes.iter().map(|(_, size)| *size).collect();
        let mut sizes = Sizes {
            known: room.clone(),
            room,
            wanted: None,
            growing: None,
            again_ns: 0,
            asked: None,
            held: None,
            stops_at: None,
            held_changes: 0,
        };
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

    fn holds(&mut self, held: Option<StoreRoom>) {
        if self.held != held {
            self.held = held;
            self.held_changes += 1;
        }
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
        if let (Some((_, volume, size)), None, false) = (self.sizes.asked, self.sizes.growing, self.stopping) {
            self.sizes.growing = Some((volume, size));
            fx.push(Effect::Grow { volume, size });
        }
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
    pub(super) fn grown(&mut self, now: Now, volume: Volume, result: Result<u64, Lacking>, fx: &mut Vec<Effect>) {
        let Some((_, size)) = self.sizes.growing.take_if(|(of, _)| *of == volume) else { return };
        let of_asked = |it: &mut (Conn, Volume, u64)| (it.1, it.2) == (volume, size);
        if let Some((conn, ..)) = self.sizes.asked.take_if(of_asked) {
            let (has, text) = match &result {
                Ok(bytes) => (*bytes, String::new()),
                Err(lacking) => (lacking.has, lacking.text.clone()),
            };
            self.tell_room(conn, StoreRoom { volume, size, has, holds: false, text }, fx);
            // What is to be applied says itself when it does not fit.
            if result.is_err() {
                return;
            }
        }
        match result {
            Ok(bytes) => {
                let room = &mut self.sizes.room[usize::from(volume.0)];
                *room = bytes.max(*room).max(size);
                if self.sizes.held.as_ref().is_none_or(|held| held.volume != volume) {
                    return;
                }
                self.sizes.holds(None);
                self.relieved(Trouble::TooSmall, "the volume has room now for its new size: going on", fx);
            }
            Err(Lacking { has, text }) => {
                let held = StoreRoom { volume, size, has, holds: true, text: text.clone() };
                self.sizes.holds(Some(held));
                self.sizes.wanted = Some(volume);
                self.sizes.again_ns = now.mono_ns + GROW_AGAIN_NS;
                let text = format!(
                    "{text}; until then nothing from the resize on is applied here. Nothing is lost, and it goes on by itself"
                );
                self.trouble(now, Trouble::TooSmall, text, fx);
            }
        }
    }

    /// The writer asks whether a volume could have so many bytes.
    pub(super) fn room_asked(&mut self, conn: Conn, volume: Volume, size: u64, fx: &mut Vec<Effect>) {
        let Some(has) = self.sizes.room.get(usize::from(volume.0)).copied() else {
            let text = format!("there is no volume {volume} here");
            return self.tell_room(conn, StoreRoom { volume, size, has: 0, holds: false, text }, fx);
        };
        if has >= size {
            let room = StoreRoom { volume, size, has, holds: false, text: String::new() };
            return self.tell_room(conn, room, fx);
        }
        self.sizes.asked = Some((conn, volume, size));
    }

    fn tell_room(&mut self, conn: Conn, room: StoreRoom, fx: &mut Vec<Effect>) {
        if self.links.order == Some(conn) {
            fx.push(Effect::Send { conn, message: Message::StoreRoom(room) });
        }
    }

    /// Tells the writer what is held back for lack of room, when that has changed.
    pub(super) fn tell_held(&mut self, fx: &mut Vec<Effect>) {
        let Some(conn) = self.links.order.filter(|_| self.told.held_changes != self.sizes.held_changes) else { return };
        self.told.held_changes = self.sizes.held_changes;
        let nothing = StoreRoom { volume: Volume(0), size: 0, has: 0, holds: true, text: String::new() };
        let room = self.sizes.held.clone().unwrap_or(nothing);
        self.tell_room(conn, room, fx);
    }

    /// A size for which a store has no room, for the status.
    pub(super) fn holds_back(&self) -> Option<HoldsBack> {
        let held = self.sizes.held.as_ref()?;
        Some(HoldsBack {
            volume: self.options.volumes[usize::from(held.volume.0)].0.clone(),
            size_bytes: held.size,
            has_bytes: held.has,
            lacking_bytes: held.size.saturating_sub(held.has),
            what: held.text.clone(),
        })
    }

    /// What keeps the recovery point from being reached, if a store is too small for it.
    pub(super) fn too_small(&self) -> Option<&str> {
        self.troubles.get(&Trouble::TooSmall).map(|(text, _)| text.as_str())
    }

    /// Why a promotion cannot succeed, known before anybody is fenced: the site that serves goes on.
    pub(super) fn does_not_fit(&self, force: bool) -> Option<PromoteError> {
        let text = self.too_small().filter(|_| !self.keeper.get().has(PROMOTING))?;
        if self.forced_before(force).is_some() {
            return None;
        }
        let text = format!(
            "what is to be replayed does not fit, and nothing was changed: {}{text}. Then call promote again{}",
            self.lacks(),
            self.by_force()
        );
        Some(unsafe_because(text))
    }

    /// Why a promotion that has begun cannot go on.
    pub(super) fn not_reached(&self) -> PromoteError {
        let damage = self.troubles.get(&Trouble::Damage).map(|(text, _)| text.as_str());
        unsafe_because(match (self.too_small(), damage) {
            (Some(text), _) => format!(
                "the recovery point cannot be reached: {}{text}. Then call promote again: it goes on from there{}",
                self.lacks(),
                self.by_force()
            ),
            (None, Some(text)) => format!("the recovery point cannot be reached: {text}"),
            (None, None) => "the recovery point cannot be reached".into(),
        })
    }

    /// How much a store lacks, to be said before why.
    fn lacks(&self) -> String {
        let Some(held) = self.holds_back() else { return String::new() };
        let HoldsBack { volume, size_bytes, lacking_bytes, .. } = held;
        format!("volume {volume} lacks {lacking_bytes} bytes of the {size_bytes} of its resize: ")
    }

    /// What `--force` would do instead, where it can.
    fn by_force(&self) -> String {
        self.forced_before(true).map_or_else(String::new, |before| {
            let cut = self.cut.min(before);
            let ring = if cut < before { " or what the auxiliary's ring has behind it" } else { "" };
            format!(
                "; --force promotes seq {cut}{ring}, before the resize, and reports all that comes after it as missing"
            )
        })
    }

    /// No recovery point behind this is promoted by force, if a store has no room for what comes next. Not in the middle of a
    /// batch that is applied, for which there was room once: there the volumes are between two recovery points.
    pub(super) fn forced_before(&self, force: bool) -> Option<Seq> {
        let stuck = force && self.too_small().is_some() && self.committed.is_none() && self.committing.is_none();
        (stuck && self.synced()).then(|| self.fits_until())
    }

    /// How far the order can be applied to the stores as they are, if all of it were here.
    fn fits_until(&self) -> Seq {
        let lacks = |(_, volume, size): &(Seq, Volume, u64)| {
            self.sizes.room.get(usize::from(volume.0)).is_some_and(|room| room < size)
        };
        let mut resizes = self.history.resizes_after(self.replay.applied());
        resizes.find(lacks).map_or(self.cut, |(seq, ..)| seq.prev())
    }

    /// Whether a batch is here as a whole, and a store has no room for a size that it ends with.
    pub(super) fn batch_waits_for_room(&self) -> bool {
        self.batch.as_ref().is_some_and(|batch| batch.end.is_some())
    }

    /// Whether it is about to be known that a store has room for what is to be applied.
    pub(super) fn tries_room(&self) -> bool {
        self.is_growing() && self.too_small().is_none() && !self.keeper.get().has(PROMOTING)
    }

    /// By force a promotion stops before the resize that does not fit. Whether it does.
    pub(super) fn stop_before_resize(&mut self, fx: &mut Vec<Effect>) -> bool {
        let force = self.promotion.as_ref().is_some_and(|promotion| promotion.force && !promotion.plan);
        let Some(stop) = self.forced_before(force) else { return false };
        let before = self.replay.applied();
        // What is here and cannot be read back keeps what is behind it away, too.
        let stop = if before < self.cut { before } else { stop };
        let text = format!(
            "by force: promoted at seq {stop} or before, with {} known, before a resize for which there is no room here",
            self.history.tail()
        );
        fx.push(Effect::Log { level: Level::Error, text });
        // Of what follows the resize alone was given to the replay, and waits.
        self.fed_writes -=
            self.pieces.iter().filter(|step| matches!(step.action, Action::Resize { .. })).count() as u64;
        if let Some(promotion) = &mut self.promotion {
            promotion.fed_before = promotion.fed_before.min(self.fed_writes);
        }
        self.pieces.clear();
        self.cut = before;
        self.fed = before;
        self.sizes.stops_at = Some(stop);
        self.sizes.wanted = None;
        self.sizes.holds(None);
        self.troubles.remove(&Trouble::TooSmall);
        true
    }

    /// Nothing beyond this is applied: the recovery point of a promotion whose report is stored, or is to be made.
    pub(super) fn ceiling(&self) -> Seq {
        let it = self.keeper.get();
        let of_target = |stored: &&LossReport| it.has(PROMOTING) && stored.report.epoch == it.target_epoch;
        let stored = self.report.as_ref().filter(of_target).map(|stored| stored.report.cut_seq);
        stored.or(self.sizes.stops_at).unwrap_or(Seq(u64::MAX))
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
