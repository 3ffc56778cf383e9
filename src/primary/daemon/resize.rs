//! `farshore resize`, and sizes in the configuration that are more than a volume has: room first, then the order.

use anyhow::Context;

use super::Shell;
use crate::cluster::control::Answer;
use crate::cluster::size::human_size;
use crate::cluster::status::Resized;
use crate::core::ids::{Conn, Seq, Volume};
use crate::format::intent::MapLayout;
use crate::io::Preallocate;
use crate::primary::intent::memory_bytes_max;
use crate::primary::machine::{File, Input, Machine, Unresized};

/// How long a server whose export is too small is asked again, and how often, nanoseconds.
const ROOM_NS: u64 = 10_000_000_000;
const ROOM_AGAIN_NS: u64 = 300_000_000;

/// Somebody waits for a volume to be resized.
pub(super) struct Resizing {
    /// Who is to be answered; nobody, where the configuration asks.
    conn: Option<Conn>,
    volume: Volume,
    old_size: u64,
    size: u64,
    /// Its store has yet to have room: when it is looked at next, and until when.
    room: Option<(u64, u64)>,
}

impl Shell {
    /// The configuration may ask for more than a volume has; never for less.
    pub(super) fn resize_as_configured(&mut self, volumes: &[(String, u64)]) -> anyhow::Result<()> {
        let has: Vec<u64> = self.machine.sizes_asked();
        for ((name, size), _) in volumes.iter().zip(has).filter(|((_, size), has)| size > has) {
            tracing::info!("volume {name} is resized to {size} bytes, as the configuration asks");
            if let Some(Answer::Error { error, .. }) = self.resize_asked(None, name, *size)? {
                tracing::error!("volume {name} is not resized to {size} bytes: {error}");
            }
        }
        Ok(())
    }

    /// Begins to resize a volume; the answer, if there is one already.
    pub(super) fn resize_asked(&mut self, conn: Option<Conn>, name: &str, size: u64) -> anyhow::Result<Option<Answer>> {
        let volumes = self.machine.volumes();
        let Some(index) = volumes.iter().position(|(known, _)| known == name) else {
            let names: Vec<&str> = volumes.iter().map(|(name, _)| name.as_str()).collect();
            let text = format!("there is no volume {name:?} here; there is {}", names.join(", "));
            return Ok(Some(Answer::usage(text)));
        };
        if let Err(text) = Machine::may_be_a_size(size) {
            return Ok(Some(Answer::usage(text)));
        }
        let old_size = volumes[index].1;
        let volume = Volume(u16::try_from(index).expect("at most VOLUMES_MAX volumes"));
        let waiting = Resizing { conn, volume, old_size, size, room: None };
        match self.machine.may_resize(volume, size) {
            Err(text) => Ok(Some(Answer::refused(text))),
            Ok(true) => Ok(Some(self.resized_answer(&waiting, None, None))),
            Ok(false) => self.make_room(waiting),
        }
    }

    /// Gives the map, and the store of a volume, room for its new size; then it is ordered.
    fn make_room(&mut self, mut waiting: Resizing) -> anyhow::Result<Option<Answer>> {
        let (volume, size) = (waiting.volume, waiting.size);
        let (name, has) = self.machine.volumes()[usize::from(volume.0)].clone();
        let refused = |why: String| Ok(Some(Answer::refused(format!("{why}; volume {name} stays at {has} bytes"))));
        if let Err(why) = self.map_room(volume, size) {
            return refused(why);
        }
        let file = self.opened.file(File::Volume(volume));
        if let Err(short) = self.opened.backings.enlarge(&mut self.reactor, file, size) {
            let now_ns = self.reactor.now().mono_ns;
            let until_ns = waiting.room.map_or(now_ns + ROOM_NS, |(_, until_ns)| until_ns);
            if short.asked && now_ns < until_ns {
                waiting.room = Some((now_ns + ROOM_AGAIN_NS, until_ns));
                self.resizes.push(waiting);
                return Ok(None);
            }
            return refused(short.text);
        }
        waiting.room = None;
        self.resizes.push(waiting);
        self.step(Input::Resize { volume, size }).context("resizing a volume")?;
        Ok(None)
    }

    /// Gives the intent map what it needs for a volume of this size: memory at the worst, when nothing in it is alike, and
    /// space on disk. Its new pages are written before anything relies on them.
    fn map_room(&mut self, volume: Volume, size: u64) -> Result<(), String> {
        let before = self.machine.sizes_asked();
        let mut sizes = before.clone();
        sizes[usize::from(volume.0)] = size.max(sizes[usize::from(volume.0)]);
        let more = memory_bytes_max(&sizes).saturating_sub(memory_bytes_max(&before));
        if let Some(free) = memory_available().filter(|free| more > *free) {
            let (more, free) = (human_size(more), human_size(free));
            return Err(format!(
                "the intent map of a volume of {size} bytes may take {more} more of memory here, and {free} are available: \
                 give this host more, or grow by less"
            ));
        }
        let map_bytes = MapLayout::new(&sizes).total_bytes();
        let enlarged = self.reactor.enlarge(self.opened.map, map_bytes, Preallocate::Reserve);
        enlarged.map(drop).map_err(|fail| {
            format!("the intent map grows with the volume, to {map_bytes} bytes, for which there is no room: {fail}")
        })
    }

    /// Looks again at stores that were too small.
    pub(super) fn look_for_room(&mut self) -> anyhow::Result<()> {
        let now_ns = self.reactor.now().mono_ns;
        let due = |it: &mut Resizing| it.room.is_some_and(|(at_ns, _)| at_ns <= now_ns);
        let due: Vec<Resizing> = self.resizes.extract_if(.., due).collect();
        for waiting in due {
            let conn = waiting.conn;
            if let Some(answer) = self.make_room(waiting)? {
                self.tell(conn, answer);
            }
        }
        Ok(())
    }

    pub(super) fn resize_due_ns(&self) -> Option<u64> {
        self.resizes.iter().filter_map(|it| it.room).map(|(at_ns, _)| at_ns).min()
    }

    /// What the machine says became of it.
    pub(super) fn resized(
        &mut self,
        (volume, size): (Volume, u64),
        result: Result<Option<Seq>, Unresized>,
        dr_asked: Option<bool>,
    ) {
        if result.is_ok() {
            let conns: Vec<Conn> =
                self.exports.iter().filter(|(_, on)| **on == volume).map(|(conn, _)| *conn).collect();
            self.nbd.resized(conns, self.machine.volumes()[usize::from(volume.0)].1);
        }
        let done = |it: &mut Resizing| it.volume == volume && it.size == size && it.room.is_none();
        let done: Vec<Resizing> = self.resizes.extract_if(.., done).collect();
        for waiting in done {
            let answer = match &result {
                Ok(seq) => self.resized_answer(&waiting, *seq, dr_asked),
                Err(Unresized { text, refused: true }) => Answer::refused(text.clone()),
                Err(Unresized { text, .. }) => Answer::failed(text.clone()),
            };
            self.tell(waiting.conn, answer);
        }
    }

    /// The primary stops: what was begun goes on at its next start.
    pub(super) fn give_up_resizes(&mut self) {
        for waiting in std::mem::take(&mut self.resizes) {
            let text =
                "the primary stops: ask again when it has been started, or look whether it has gone on by itself";
            self.tell(waiting.conn, Answer::failed(text));
        }
    }

    fn tell(&mut self, conn: Option<Conn>, answer: Answer) {
        match (conn, answer) {
            (Some(conn), answer) => self.controls.answer(&mut self.reactor, conn, answer.pieces()),
            (None, Answer::Error { error, .. }) => tracing::error!("a volume is not resized: {error}"),
            (None, _) => {}
        }
    }

    fn resized_answer(&self, waiting: &Resizing, seq: Option<Seq>, dr_asked: Option<bool>) -> Answer {
        let name = self.machine.volumes()[usize::from(waiting.volume.0)].0.clone();
        Answer::resized(&Resized {
            group: self.group.clone(),
            volume: name,
            old_size_bytes: waiting.old_size,
            size_bytes: waiting.size,
            seq,
            dr_asked,
        })
    }
}

/// Memory of this host that a process may have without anything being pushed out, bytes; where the kernel tells.
fn memory_available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
