//! A volume grows: one order among the others, and what has to be durable around it.
//!
//! ```text
//!   asked ─► fits ─► announced ─► remembered ─► ordered ─► zeroed ─► laid out ─► marked ─► protected: answered
//!            DR has  superblock   pages of      record     volume    header of   superblock
//!            room    names it     the map       in the               the map     has the size
//!                                               order
//! ```
//!
//! | a crash after | a start finds | and |
//! |---|---|---|
//! | asked, fits | the old size | the volume is as it was |
//! | announced | the old size, and that a resize is under way | goes on with it: a record of it may have left |
//! | marked | the new size | both sides have it, or get it with the order |
//!
//! The pages of the map come before the record: whatever is behind that in the order would wait for them.
//!
//! Clients write beyond the old end from *marked* on, never before: so the order of the same resize may come twice, and
//! what it adds be zeroed twice, and nothing of theirs is lost by it. Whoever was left out of the order (a jump of DR's
//! journal) is told the sizes behind the begin of the next batch.

use bytes::Bytes;

use super::intake::Room;
use super::link::Phase;
use super::machine::{Effect, File, Machine, Pending, Says, Stopping, Unresized, disk_write};
use crate::cluster::status::{Degraded, HoldsBack};
use crate::core::ids::{Extent, Seq, Volume};
use crate::core::machine::{Level, Now};
use crate::core::op::Op;
use crate::core::planted::{Bug, planted};
use crate::format::intent::{MapHeader, sizes_digest};
use crate::format::record::FLAG_FUA;
use crate::format::wire::{Message, StoreRoom};
use crate::limits::{LINK_SILENCE_NS, SECTOR_BYTES, VOLUME_BYTES_MAX};

/// One resize, and how far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resize {
    pub volume: Volume,
    pub size: u64,
    stage: Stage,
    asked_ns: u64,
    /// Whether DR was asked for room; nothing where there is none to ask.
    dr_asked: Option<bool>,
}

/// How long a DR that is not there yet is waited for, and its answer whether it has room, nanoseconds.
const DR_WAIT_NS: u64 = LINK_SILENCE_NS;
const DR_ANSWER_NS: u64 = 15_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Asked,
    /// DR tries whether its store gets room, until then.
    AskingDr(u64),
    Fits,
    /// The superblock that names it is being written.
    Announcing,
    Announced,
    /// The map is being laid out for it, and what it adds marked there.
    Remembering,
    Ordered(Seq),
    /// The header of the intent map is being written.
    LayingOut(Seq),
    LaidOut(Seq),
    /// The superblock with the size is being written.
    Marking(Seq),
    Marked(Seq),
}

impl Machine {
    /// Somebody wants a volume to be larger.
    pub(super) fn resize(&mut self, volume: Volume, size: u64, fx: &mut Vec<Effect>) {
        match self.may_resize(volume, size) {
            // Who asks for what is under way hears of it when that is done: a second one would have nothing to add.
            Ok(false) if self.resizes.iter().any(|it| (it.volume, it.size) == (volume, size)) => {}
            Ok(false) => {
                self.resizes.push_back(self.resize_at(volume, size, Stage::Asked));
            }
            Ok(true) => {
                let result = Ok(None);
                fx.push(Effect::Resized { volume, size, result, dr_asked: None });
            }
            Err(text) => {
                let result = Err(Unresized { text, refused: true });
                fx.push(Effect::Resized { volume, size, result, dr_asked: None });
            }
        }
    }

    fn resize_at(&self, volume: Volume, size: u64, stage: Stage) -> Resize {
        Resize { volume, size, stage, asked_ns: self.now.mono_ns, dr_asked: None }
    }

    /// Whether a volume may get this size; `true`: it has it.
    pub fn may_resize(&self, volume: Volume, size: u64) -> Result<bool, String> {
        let Some((name, has)) = self.options.volumes.get(usize::from(volume.0)) else {
            return Err(format!("there is no volume {volume}"));
        };
        let asked = self.resizes.iter().filter(|it| it.volume == volume).map(|it| it.size).max();
        let least = asked.unwrap_or(*has);
        if let Some(why) = &self.fenced {
            Err(format!("this primary has been fenced, and changes nothing any more: {why}"))
        } else if self.stopping != Stopping::No {
            Err("this primary is stopping; ask again when it has been started".into())
        } else if size < least {
            Err(format!(
                "volume {name} has {least} bytes, {size} are fewer: a volume is never made smaller, for DR would lose what \
                 stands behind the new end. Copy what is needed to a new, smaller volume"
            ))
        } else {
            Machine::may_be_a_size(size).map(|()| size == *has && asked.is_none())
        }
    }

    /// Whether any volume can have that many bytes.
    pub fn may_be_a_size(size: u64) -> Result<(), String> {
        if !size.is_multiple_of(SECTOR_BYTES) {
            Err(format!("{size} bytes are not a whole number of {SECTOR_BYTES}-byte sectors"))
        } else if size > VOLUME_BYTES_MAX {
            Err(format!("{size} bytes are more than the {VOLUME_BYTES_MAX} that a volume can have"))
        } else {
            Ok(())
        }
    }

    /// Name and size in bytes of each volume, as clients see them.
    #[must_use]
    pub fn volumes(&self) -> &[(String, u64)] {
        &self.options.volumes
    }

    /// The same once all that was asked for is done.
    #[must_use]
    pub fn sizes_asked(&self) -> Vec<u64> {
        let mut sizes: Vec<u64> = self.options.volumes.iter().map(|(_, size)| *size).collect();
        for it in &self.resizes {
            let size = &mut sizes[usize::from(it.volume.0)];
            *size = it.size.max(*size);
        }
        sizes
    }

    /// Name and size in bytes of each volume after the last record of the order: what a peer is told that knows the tail.
    pub(super) fn volumes_ordered(&self) -> Vec<(String, u64)> {
        let mut volumes = self.options.volumes.clone();
        if let Some((it, _)) = self.ordered() {
            volumes[usize::from(it.volume.0)].1 = it.size;
        }
        volumes
    }

    /// The resize whose record is in the order and that no start knows to be done yet, and the seq of that.
    fn ordered(&self) -> Option<(Resize, Seq)> {
        self.resizes.front().and_then(|it| match it.stage {
            Stage::Ordered(seq) | Stage::LayingOut(seq) | Stage::LaidOut(seq) | Stage::Marking(seq) => Some((*it, seq)),
            _ => None,
        })
    }

    /// At a start: the directory says what sizes there are, and what an earlier process was about to change.
    pub(super) fn go_on_resizing(&mut self) {
        for ((_, size), (_, known)) in self.options.volumes.iter_mut().zip(&self.superblock.volumes) {
            *size = *known;
        }
        // Where it has that size already nothing is left of it to do.
        let has = |volume: Volume| self.options.volumes[usize::from(volume.0)].1;
        self.superblock.resizing = self.superblock.resizing.filter(|(volume, size)| *size > has(*volume));
        if let Some((volume, size)) = self.superblock.resizing {
            self.resizes.push_back(self.resize_at(volume, size, Stage::Announced));
        }
    }

    /// Next to the record of this start, before any other: so what an earlier one did there is in the order either way.
    pub(super) fn order_again(&mut self) {
        if let Some(Resize { volume, size, .. }) = self.resizes.front().copied() {
            self.remember(volume, size);
            self.order_resize(volume, size);
        }
    }

    /// Goes on with the first of them, as far as it can.
    pub(super) fn advance_resize(&mut self, fx: &mut Vec<Effect>) {
        if self.fenced.is_some() || self.stopping != Stopping::No {
            return;
        }
        let Some(Resize { volume, size, stage, .. }) = self.resizes.front().copied() else { return };
        match stage {
            Stage::Asked => self.ask_room(fx),
            Stage::AskingDr(_) if !self.dr.ready() => self.resize_is(Stage::Asked),
            Stage::AskingDr(until_ns) if self.now.mono_ns >= until_ns => self.resize_fits(Some(false)),
            Stage::Fits if !self.superblock_busy => {
                self.superblock.resizing = Some((volume, size));
                self.write_superblock(self.superblock.seq, fx);
                self.resize_is(Stage::Announcing);
            }
            Stage::Announced if !self.intent.busy() => {
                self.remember(volume, size);
                self.resize_is(Stage::Remembering);
            }
            Stage::Remembering if self.remembered(volume, size) => match self.room(0) {
                Room::Wait | Room::No => {}
                Room::Yes => self.order_resize(volume, size),
                Room::Coalesce => {
                    self.fifo_overflows(fx);
                    self.order_resize(volume, size);
                }
            },
            Stage::Ordered(seq) if self.is_local(seq) && !self.intent.relaying() => {
                let sizes_digest = sizes_digest(self.intent.sizes());
                let header = MapHeader { group: self.group(), sizes_digest };
                let ticket = self.ticket(Pending::MapHeader);
                let parts = vec![Bytes::copy_from_slice(&header.encode())];
                fx.push(disk_write(ticket, File::IntentMap, 0, parts, true));
                self.resize_is(Stage::LayingOut(seq));
            }
            Stage::LaidOut(seq) if !self.superblock_busy => {
                self.superblock.volumes[usize::from(volume.0)].1 = size;
                self.superblock.resizing = None;
                self.superblock.resized = seq;
                self.write_superblock(self.superblock.seq, fx);
                self.resize_is(Stage::Marking(seq));
            }
            _ => {}
        }
    }

    /// What a resize adds.
    fn added(&self, volume: Volume, size: u64) -> Extent {
        let has = self.options.volumes[usize::from(volume.0)].1;
        assert!(size > has, "what a volume has is not asked for again");
        Extent { volume, offset: has, length: size - has }
    }

    /// Lays the map out for it, and marks what it adds there.
    fn remember(&mut self, volume: Volume, size: u64) {
        self.intent.grow(volume, size.max(self.intent.sizes()[usize::from(volume.0)]));
        self.intent.want(self.added(volume, size));
    }

    /// Whether that is durable. Where it is not any more, since bits were cleared while there was no room, it is asked for again.
    fn remembered(&mut self, volume: Volume, size: u64) -> bool {
        !self.intent.busy() && self.intent.want(self.added(volume, size))
    }

    /// Asks DR whether its store gets room, where it is in reach; one that may be so in a moment is waited for.
    fn ask_room(&mut self, fx: &mut Vec<Effect>) {
        let Some(Resize { volume, size, asked_ns, .. }) = self.resizes.front().copied() else { return };
        if self.options.standalone || !self.options.ask_room {
            return self.resize_fits(None);
        }
        if let Phase::Up { conn } = self.dr.phase {
            self.resize_is(Stage::AskingDr(self.now.mono_ns + DR_ANSWER_NS));
            fx.push(Effect::DrSend { conn, message: Message::RoomAsked { volume, size } });
        } else if self.dr.gone || self.now.mono_ns >= asked_ns + DR_WAIT_NS {
            self.resize_fits(Some(false));
        }
    }

    fn resize_fits(&mut self, dr_asked: Option<bool>) {
        self.resize_is(Stage::Fits);
        if let Some(first) = self.resizes.front_mut() {
            first.dr_asked = dr_asked;
        }
    }

    /// DR says what room there is.
    pub(super) fn store_room(&mut self, room: StoreRoom, fx: &mut Vec<Effect>) {
        if room.holds {
            let since_ns = self.dr.holds_back.as_ref().map_or(self.now.wall_ns, |(_, since_ns)| *since_ns);
            self.dr.holds_back = Some((room, since_ns)).filter(|(room, _)| !room.text.is_empty());
            let text = match &self.dr.holds_back {
                Some((room, _)) => format!("DR holds back what comes after a resize: {}", room.text),
                None => "DR has room now, and goes on".into(),
            };
            return fx.push(Effect::Log { level: Level::Warn, text });
        }
        let Some(Resize { volume, size, stage: Stage::AskingDr(_), .. }) = self.resizes.front().copied() else {
            return;
        };
        if (room.volume, room.size) != (volume, size) {
            return;
        }
        if room.text.is_empty() {
            return self.resize_fits(Some(true));
        }
        self.resizes.pop_front();
        let text = format!("DR has no room for that: {}. Make room there first, or resize to less", room.text);
        let result = Err(Unresized { text, refused: true });
        fx.push(Effect::Resized { volume, size, result, dr_asked: Some(true) });
    }

    /// What the first of them waits for, for the status.
    pub(super) fn resize_waits_for(&self) -> Option<String> {
        let first = self.resizes.front()?;
        let what = match first.stage {
            Stage::Asked | Stage::AskingDr(_) => "DR to say whether its store has room",
            Stage::Fits | Stage::Announcing | Stage::LaidOut(_) | Stage::Marking(_) => "the superblock",
            Stage::Announced | Stage::Remembering => "the intent map, and for room in the queue",
            Stage::Ordered(_) | Stage::LayingOut(_) => "the local disk",
            Stage::Marked(_) => "its order to be where `protect` wants it",
        };
        let (name, _) = &self.options.volumes[usize::from(first.volume.0)];
        Some(format!("the resize of volume {name} to {} bytes waits for {what}", first.size))
    }

    /// What DR holds back for lack of room, as the status tells it.
    pub(super) fn dr_holds_back(&self) -> Option<HoldsBack> {
        let (room, _) = self.dr.holds_back.as_ref().filter(|_| self.dr.ready())?;
        let volume = self.options.volumes.get(usize::from(room.volume.0)).map(|(name, _)| name.clone());
        Some(HoldsBack {
            volume: volume.unwrap_or_default(),
            size_bytes: room.size,
            has_bytes: room.has,
            lacking_bytes: room.size.saturating_sub(room.has),
            what: room.text.clone(),
        })
    }

    pub(super) fn held_back(&self, now: Now) -> Option<Degraded> {
        let held = self.dr_holds_back()?;
        let since_ns = self.dr.holds_back.as_ref().map_or(now.wall_ns, |(_, since_ns)| *since_ns);
        let text = format!(
            "DR applies nothing from a resize of volume {} to {} bytes on, it lacks {} bytes: {}",
            held.volume, held.size_bytes, held.lacking_bytes, held.what
        );
        Some(Degraded::new(text, since_ns, now.wall_ns))
    }

    /// The order itself. What it adds is written as zeroes here, as at DR; what stood there before is no part of the volume.
    fn order_resize(&mut self, volume: Volume, size: u64) {
        let has = self.options.volumes[usize::from(volume.0)].1;
        // What is zeroed is durable before a start would know of the size.
        let record = self.record(Op::Resize, FLAG_FUA, volume, has, size, 0);
        let seq = record.seq;
        self.append(record, Bytes::new(), None);
        self.resize_is(Stage::Ordered(seq));
        if planted(Bug::ResizeUnmarked) {
            self.options.volumes[usize::from(volume.0)].1 = size;
        }
    }

    fn resize_is(&mut self, stage: Stage) {
        if let Some(first) = self.resizes.front_mut() {
            first.stage = stage;
        }
    }

    /// Whether what a record changes is on the local disk.
    fn is_local(&self, seq: Seq) -> bool {
        self.window.get(seq).is_none_or(|entry| entry.local.ended())
    }

    /// The header of the intent map tells of the new layout.
    pub(super) fn map_laid_out(&mut self) {
        if let Some(Resize { stage: Stage::LayingOut(seq), .. }) = self.resizes.front().copied() {
            self.resize_is(Stage::LaidOut(seq));
        }
    }

    /// A superblock is durable.
    pub(super) fn resize_saved(&mut self, says: Says) {
        let Some(Resize { volume, size, stage, .. }) = self.resizes.front().copied() else { return };
        match stage {
            Stage::Announcing if says.resizing == Some((volume, size)) => self.resize_is(Stage::Announced),
            Stage::Marking(seq) if says.resized == seq => {
                self.options.volumes[usize::from(volume.0)].1 = size;
                self.resize_is(Stage::Marked(seq));
            }
            _ => {}
        }
    }

    /// Answers for what has become protected, while that may be told.
    pub(super) fn settle_resize(&mut self, fx: &mut Vec<Effect>) {
        if let Some(Resize { volume, size, stage: Stage::Marked(seq), dr_asked, .. }) = self.resizes.front().copied()
            && seq <= self.protected
        {
            self.resizes.pop_front();
            let (name, _) = &self.options.volumes[usize::from(volume.0)];
            let text = format!("volume {name} has {size} bytes from seq {seq} on");
            fx.push(Effect::Log { level: Level::Info, text });
            fx.push(Effect::Resized { volume, size, result: Ok(Some(seq)), dr_asked });
        }
    }

    pub(super) fn fail_resizes(&mut self, why: &str, fx: &mut Vec<Effect>) {
        for Resize { volume, size, .. } in &self.resizes {
            let result = Err(Unresized { text: why.into(), refused: false });
            fx.push(Effect::Resized { volume: *volume, size: *size, result, dr_asked: None });
        }
        // What is in the order stays there.
        let ordered = |stage| {
            use Stage::{LaidOut, LayingOut, Marked, Marking, Ordered};
            matches!(stage, Ordered(_) | LayingOut(_) | LaidOut(_) | Marking(_) | Marked(_))
        };
        self.resizes.retain(|it| ordered(it.stage));
    }

    /// Behind the begin of a batch: whoever has not passed the last resize may never get its order.
    pub(super) fn say_sizes(&mut self) {
        let last = self.ordered().map_or(Seq(0), |(_, seq)| seq).max(self.superblock.resized);
        if self.dr.cut >= last || planted(Bug::SizesUnsaid) {
            return;
        }
        for ((_, size), at) in self.volumes_ordered().into_iter().zip(0..) {
            self.append_of(Volume(at), Op::Resize, size, size, 0);
        }
    }
}
