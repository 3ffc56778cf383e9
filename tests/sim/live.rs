//! Damage under a running role: bits that flip in what it has at rest, and reads that bring other bytes than were
//! written - for ever, or this once - in the files whose formats promise that it is seen (I8).
//!
//! | file | what has to hold |
//! |---|---|
//! | DR's spool | a payload or a piece of a batch is asked for again, or a batch or a full copy makes it good; else it is in the report |
//! | DR's journal | only a start reads it: as what flips while DR is down |
//! | the table | that record, state or payload may be lost if nobody else has it, and then the report says so |
//! | the primary's FIFO, intent log and map | everything: its volumes have what is lost there |
//!
//! When it happens matters more than where ([`Moment`]): what is read is damaged as it is read, so that little of it is
//! in vain, even if that read comes after the last fault. Volumes carry no checksums of ours and are left alone.

use farshore::core::ids::Seq;
use farshore::format::record::OrderRecord;
use farshore::format::spool::{EntryHeader, Kind, sized_nonce};
use farshore::format::table::{NO_PAYLOAD, STATE_BYTES, SlotState, TableLayout};
use farshore::limits::{ENTRY_ALIGN_BYTES, RECORD_BYTES};
use farshore::{auxiliary, dr, primary};

use crate::checkers::whole_entry;
use crate::cluster::{DR_NONCE, Event, World};
use crate::network::Node;
use crate::rng::Rng;
use crate::setup::{Moment, SECOND};

/// How long a read may hang until DR names a batch.
const HANGS_NS: u64 = 8 * SECOND;

/// What waits for its moment.
#[derive(Default)]
pub struct Live {
    armed: Vec<Armed>,
    /// A read of DR that takes long, and ends in damage.
    hangs: Option<Hanging>,
}

#[derive(Clone, Debug)]
struct Armed {
    node: Node,
    moment: Moment,
    /// For ever; else this once.
    kept: bool,
    /// As many reads are spared first.
    spares: u64,
    rng: Rng,
}

#[derive(Clone, Debug)]
struct Hanging {
    run: u64,
    operation: u64,
    armed: Armed,
}

/// A file of any role.
#[derive(Clone, Copy, Debug)]
enum Place {
    Primary(primary::machine::File),
    Aux(auxiliary::machine::File),
    Dr(dr::machine::File),
}

/// A bit that is to flip back: what was read was damaged, what is at rest is not.
#[derive(Clone, Copy, Debug)]
pub struct Once {
    place: Place,
    at: u64,
    bit: u8,
}

/// What becomes of a read that is about to end.
pub enum Read {
    Whole,
    Damaged(Option<Once>),
    Later,
}

impl World {
    /// Damage is on its way; at rest it happens at once.
    pub fn live_damage(&mut self, node: Node, moment: Moment, kept: bool, seed: u64) {
        let mut rng = Rng::new(seed);
        if moment == Moment::Rest {
            if self.host(node).up && self.promoted_at_ns.is_none() {
                self.rots_at_rest(node, &mut rng);
            }
            return;
        }
        let spares = if rng.chance(50) { 0 } else { rng.below(6) };
        self.live.armed.push(Armed { node, moment, kept, spares, rng });
    }

    /// From here on what waits for this moment hits the next read.
    pub fn live_moment(&mut self, moment: Moment) {
        self.live.armed.iter_mut().filter(|armed| armed.moment == moment).for_each(|armed| armed.moment = Moment::Read);
    }

    /// Whether anything waits for a batch to be named.
    pub fn live_waits(&self) -> bool {
        self.live.hangs.is_some() || self.live.armed.iter().any(|armed| armed.moment == Moment::Applying)
    }

    /// DR has named a batch in its superblock, which is on its way to the disk: what hangs ends, and what waits for the
    /// batch to be applied is due.
    pub fn live_named(&mut self) {
        self.live_moment(Moment::Applying);
        if let Some(Hanging { run, operation, .. }) = self.live.hangs {
            let soon_ns = self.setup.speed(Node::Dr).min_ns / 2;
            self.after(soon_ns, Event::Disk { node: Node::Dr, run, operation });
        }
    }

    /// Whether the coming start is to read damaged bytes that are whole again afterwards.
    pub fn live_start(&mut self, node: Node) -> Option<Rng> {
        let at = self.live.armed.iter().position(|it| it.node == node && it.moment == Moment::Start)?;
        Some(self.live.armed.swap_remove(at).rng)
    }

    /// A read is about to end: damages it if it is time for that.
    pub fn live_read(&mut self, node: Node, run: u64, operation: u64) -> Read {
        if self.live.armed.is_empty() && self.live.hangs.is_none() {
            return Read::Whole;
        }
        if let Some(hanging) =
            self.live.hangs.take_if(|it| it.run != run && node == Node::Dr || it.operation == operation)
            && hanging.run == run
        {
            return self.spoil_read(node, operation, hanging.armed);
        }
        let Some((place, offset, length)) = self.reading(node, operation) else { return Read::Whole };
        let due = |it: &Armed| it.node == node && matches!(it.moment, Moment::Read | Moment::Naming);
        let Some(index) = self.live.armed.iter().position(due) else { return Read::Whole };
        if self.targets(place, offset, length).is_empty() {
            return Read::Whole;
        }
        if self.live.armed[index].moment == Moment::Naming {
            let free = self.live.hangs.is_none() && self.reads_payload(place, offset);
            if !free {
                return Read::Whole;
            }
            let armed = self.live.armed.swap_remove(index);
            self.landmark(|| format!("a read of {length} bytes at {offset} of DR's spool hangs"));
            self.live.hangs = Some(Hanging { run, operation, armed });
            self.after(HANGS_NS, Event::Disk { node, run, operation });
            return Read::Later;
        }
        let armed = &mut self.live.armed[index];
        if armed.spares > 0 {
            armed.spares -= 1;
            return Read::Whole;
        }
        let armed = self.live.armed.swap_remove(index);
        self.spoil_read(node, operation, armed)
    }

    /// Damage that was read once is gone.
    pub fn live_over(&mut self, Once { place, at, bit }: Once) {
        self.flip_at(place, at, bit);
    }

    fn spoil_read(&mut self, node: Node, operation: u64, mut armed: Armed) -> Read {
        let Some((place, offset, length)) = self.reading(node, operation) else { return Read::Whole };
        let targets = self.targets(place, offset, length);
        if targets.is_empty() {
            return Read::Whole;
        }
        let (seq, at, length) = armed.rng.pick(&targets);
        let (at, bit) = (at + armed.rng.below(length), armed.rng.below(8) as u8);
        // What is still on its way to the disk is not at rest.
        let kept = armed.kept && self.at_rest(place, at);
        let how = if kept { "is damaged from now on" } else { "is read damaged, this once" };
        self.landmark(|| format!("bit {bit} of byte {at} of {place:?} {how} (seq {seq})"));
        self.flip_at(place, at, bit);
        self.mark_damage(place, seq);
        Read::Damaged((!kept).then_some(Once { place, at, bit }))
    }

    /// A bit flips in what a running role has at rest, rather in what it will need.
    pub fn rots_at_rest(&mut self, node: Node, rng: &mut Rng) {
        match node {
            Node::Dr => self.rot_logs(rng),
            Node::Aux => self.rot_table(rng),
            Node::Primary => self.rot_primary(rng),
        }
    }

    fn reading(&self, node: Node, operation: u64) -> Option<(Place, u64, u64)> {
        match node {
            Node::Primary => {
                use primary::machine::File;
                let (file, offset, length) = self.primary_disk.reading(operation)?;
                matches!(file, File::Fifo | File::IntentLog).then_some((Place::Primary(file), offset, length))
            }
            Node::Aux => {
                let (file, offset, length) = self.aux_disk.reading(operation)?;
                (file == auxiliary::machine::File::Table).then_some((Place::Aux(file), offset, length))
            }
            Node::Dr => {
                let (file, offset, length) = self.dr_disk.reading(operation)?;
                (file == dr::machine::File::Spool).then_some((Place::Dr(file), offset, length))
            }
        }
    }

    fn reads_payload(&self, place: Place, offset: u64) -> bool {
        let Place::Dr(file) = place else { return false };
        let nonce = sized_nonce(DR_NONCE, self.setup.spool_bytes);
        let head = self.dr_disk.file(file).cache().get(offset as usize..offset as usize + 128);
        head.and_then(|head| EntryHeader::decode(head, nonce).ok()).is_some_and(|it| it.kind == Kind::Payload)
    }

    /// What there is to be damaged in a range: the seq it concerns, where it stands, its length.
    fn targets(&self, place: Place, offset: u64, length: u64) -> Vec<(Seq, u64, u64)> {
        let entries = |bytes: &[u8], nonce: u64, from: u64, end: u64| -> Vec<(Seq, u64, u64)> {
            let heads = (from.next_multiple_of(ENTRY_ALIGN_BYTES)..end).step_by(ENTRY_ALIGN_BYTES as usize);
            let whole = heads.filter_map(|at| {
                let head = bytes.get(at as usize..at as usize + 128)?;
                let header = EntryHeader::decode(head, nonce).ok()?;
                Some((header.record.seq, at, (128 + header.data_bytes()).min(end - at)))
            });
            whole.collect()
        };
        let end = offset + length;
        match place {
            // One entry is read at a time.
            Place::Dr(file) => {
                let nonce = sized_nonce(DR_NONCE, self.setup.spool_bytes);
                let bytes = self.dr_disk.file(file).cache();
                entries(bytes, nonce, offset, end).into_iter().filter(|it| it.1 == offset).collect()
            }
            Place::Primary(file) => {
                let bytes = &self.primary_disk.file(file).cache()[offset as usize..end as usize];
                let pieces = bytes.chunks(RECORD_BYTES).enumerate().filter(|(_, it)| it.iter().any(|byte| *byte != 0));
                pieces.map(|(at, it)| (Seq(0), offset + (at * RECORD_BYTES) as u64, it.len() as u64)).collect()
            }
            Place::Aux(file) => {
                let bytes = self.aux_disk.file(file).cache();
                let (states_at, payload_at) = self.table_reach;
                let records_at = farshore::format::table::RECORDS_AT;
                let piece = |at: u64, size: usize| bytes.get(at as usize..at as usize + size);
                let records = (records_at.max(offset)..states_at.min(end)).step_by(RECORD_BYTES).filter_map(|at| {
                    Some((OrderRecord::decode(piece(at, RECORD_BYTES)?).ok()?.seq, at, RECORD_BYTES as u64))
                });
                let states = (states_at.max(offset)..payload_at.min(end)).step_by(STATE_BYTES).filter_map(|at| {
                    Some((SlotState::decode(piece(at, STATE_BYTES)?).ok()?.seq, at, STATE_BYTES as u64))
                });
                let ring = if self.setup.table_payload_bytes > 0 {
                    entries(bytes, self.group_id, payload_at.max(offset), end.max(payload_at))
                } else {
                    Vec::new()
                };
                records.chain(states).chain(ring).filter(|(_, at, length)| at + length <= end).collect()
            }
        }
    }

    /// Whether the ring of the auxiliary has the payload of a seq whole, and its slot says where.
    pub fn ring_holds(&self, seq: Seq) -> bool {
        let layout = TableLayout::new(self.setup.table_slots, self.setup.table_payload_bytes);
        let bytes = self.aux_disk.file(auxiliary::machine::File::Table).cache();
        let at = layout.state_offset(seq) as usize;
        let state = bytes.get(at..at + STATE_BYTES).and_then(|raw| SlotState::decode(raw).ok());
        let Some(state) = state.filter(|it| it.seq == seq && it.payload_pos != NO_PAYLOAD) else { return false };
        let at = layout.payload_offset(state.payload_pos) as usize;
        whole_entry(bytes, at, self.group_id).is_some_and(|header| header.record.seq == seq)
    }

    fn at_rest(&self, place: Place, at: u64) -> bool {
        match place {
            Place::Primary(file) => self.primary_disk.file(file).at_rest(at),
            Place::Aux(file) => self.aux_disk.file(file).at_rest(at),
            Place::Dr(file) => self.dr_disk.file(file).at_rest(at),
        }
    }

    fn flip_at(&mut self, place: Place, at: u64, bit: u8) {
        match place {
            Place::Primary(file) => self.primary_disk.flip(file, at, bit),
            Place::Aux(file) => self.aux_disk.flip(file, at, bit),
            Place::Dr(file) => self.dr_disk.flip(file, at, bit),
        }
    }

    /// What the checkers have to know of it.
    fn mark_damage(&mut self, place: Place, seq: Seq) {
        match place {
            Place::Primary(_) => {}
            Place::Aux(_) => {
                self.aux_rotten.insert(seq);
            }
            Place::Dr(_) => {
                self.damaged = true;
                self.dr_rotten_payloads.insert(seq, u64::MAX);
            }
        }
    }
}
