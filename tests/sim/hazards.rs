//! Owns what goes wrong beyond crashes and cuts, and what still has to hold while it does.
//!
//! | hazard | what has to hold |
//! |---|---|
//! | an operation fails (read, write, sync, no space) | the role ends and acknowledges nothing by it; started again it recovers, and everything holds |
//! | the primary's volumes have no space | what is refused is told to its client, the role goes on, and both sides become the same again |
//! | a disk stalls | everything; only later |
//! | a bit at rest: DR's journal, spool | what is vouched for is true; else the report is incomplete, or refused without force |
//! | a bit at rest: either slot of a superblock, any role | everything: the other slot holds |
//! | a bit at rest: the table | that record or payload may be lost if nobody else has it, and then the report says so |
//! | a bit at rest: the primary's map, log, FIFO | everything: its volumes have what is lost there |
//! | a write that lands elsewhere in its file | as a bit in that file; not in volumes, superblocks and the intent map, where a stale block that is valid cannot be told from a new one |
//! | a bit on the wire | everything: the connection ends |
//! | a wall clock that jumps | everything |

use bytes::Bytes;
use farshore::core::ids::Seq;
use farshore::core::machine::DiskResult;
use farshore::core::modes::Protect;
use farshore::format::record::OrderRecord;
use farshore::format::spool::EntryHeader;
use farshore::format::superblock;
use farshore::limits::{BLOCK_BYTES, ENTRY_ALIGN_BYTES, RECORD_BYTES};
use farshore::{auxiliary, dr, primary};

use crate::checkers::Verdict;
use crate::cluster::{Event, World};
use crate::disk::{Disk, SimFile};
use crate::network::Node;
use crate::rng::Rng;
use crate::setup::{Failing, Fault, MS};

impl World {
    /// Makes it happen.
    pub fn hazard(&mut self, fault: Fault) {
        match fault {
            Fault::KillAtSuperblock { node, power, down_ns } => {
                if self.host(node).up {
                    self.host_mut(node).doom_at_superblock = Some((power, down_ns));
                }
            }
            Fault::KillAtCommit { down_ns } => self.host_mut(Node::Dr).doom_at_commit = Some(down_ns),
            Fault::KillAtMending { down_ns } => self.host_mut(Node::Primary).doom_at_mending = Some(down_ns),
            Fault::DiskFails { node, how, for_ns } => self.disk_will_fail(node, how, self.now_ns + for_ns),
            Fault::FailsOnce { node, how } => {
                self.disk_will_fail(node, how, u64::MAX);
                match node {
                    Node::Primary => self.primary_disk.fails_once(),
                    Node::Aux => self.aux_disk.fails_once(),
                    Node::Dr => self.dr_disk.fails_once(),
                }
            }
            Fault::VolumesFull { percent, for_ns } => {
                let (until_ns, rng) = (self.now_ns + for_ns, self.rng.fork());
                let others = |file| !matches!(file, primary::machine::File::Volume(_));
                self.primary_disk.fail(Failing::Full, until_ns, others, false, rng);
                self.primary_disk.fails_at_times(percent);
            }
            Fault::DiskStalls { node, volumes_only, for_ns } => {
                let until_ns = self.now_ns + for_ns;
                let host = self.host_mut(node);
                let stalled =
                    if volumes_only { &mut host.volumes_stalled_until_ns } else { &mut host.disk_stalled_until_ns };
                *stalled = (*stalled).max(until_ns);
            }
            Fault::Rot { node, down_ns } => {
                if self.host(node).up {
                    let power = self.rng.chance(50);
                    self.crash(node, power);
                    self.host_mut(node).rots = true;
                    self.after(down_ns, Event::Start { node });
                }
            }
            Fault::Spoil { node, moment, kept, seed } => self.live_damage(node, moment, kept, seed),
            Fault::Misdirect { node } => self.misdirect(node),
            Fault::Garble { a, b } => {
                let rng = self.rng.fork();
                self.net.garble(a, b, rng);
            }
            Fault::Clock { node, by_ns } => {
                let host = self.host_mut(node);
                host.wall_offset_ns = host.wall_offset_ns.saturating_add_signed(by_ns);
            }
            other => unreachable!("not a hazard: {other:?}"),
        }
    }

    /// A read of a volume of the primary: whether it is one that takes until the primary dies.
    pub fn dies_mending(&mut self) -> bool {
        if !self.primary.as_ref().is_some_and(primary::machine::Machine::mends) {
            return false;
        }
        let Some(down_ns) = self.host_mut(Node::Primary).doom_at_mending.take() else { return false };
        let effects = self.rng.range(20, 400);
        self.host_mut(Node::Primary).doom = Some((effects, false, down_ns));
        true
    }

    fn disk_will_fail(&mut self, node: Node, how: Failing, until_ns: u64) {
        let rng = self.rng.fork();
        match node {
            Node::Primary => {
                let roomy = |file| matches!(file, primary::machine::File::Volume(_));
                let spared = if how == Failing::Full { roomy } else { |_| false };
                self.primary_disk.fail(how, until_ns, spared, false, rng);
            }
            Node::Aux => self.aux_disk.fail(how, until_ns, |_| false, true, rng),
            Node::Dr => self.dr_disk.fail(how, until_ns, |_| false, true, rng),
        }
        if self.setup.fresh {
            self.aux_disk.leaves_ghosts();
            self.dr_disk.leaves_ghosts();
        }
    }

    fn misdirect(&mut self, node: Node) {
        let rng = self.rng.fork();
        match node {
            Node::Primary => {
                use primary::machine::File;
                self.primary_disk.misdirect(|file| matches!(file, File::Fifo | File::IntentLog), rng);
            }
            Node::Aux => self.aux_disk.misdirect(|file| file == auxiliary::machine::File::Table, rng),
            Node::Dr => {
                use dr::machine::File;
                self.dr_disk.misdirect(|file| matches!(file, File::Journal | File::Spool), rng);
            }
        }
    }

    pub fn disk_fails(&self, node: Node) -> bool {
        match node {
            Node::Primary => self.primary_disk.fails(self.now_ns),
            Node::Aux => self.aux_disk.fails(self.now_ns),
            Node::Dr => self.dr_disk.fails(self.now_ns),
        }
    }

    /// The troubles of a host are over.
    pub fn calm(&mut self, node: Node) {
        match node {
            Node::Primary => self.primary_disk.mend(),
            Node::Aux => self.aux_disk.mend(),
            Node::Dr => self.dr_disk.mend(),
        }
        let host = self.host_mut(node);
        host.doom_at_superblock = None;
        host.doom_at_commit = None;
        host.doom_at_mending = None;
        // What was to complete later does; nothing new waits.
        host.disk_stalled_until_ns = 0;
        host.volumes_stalled_until_ns = 0;
    }

    /// A write may have landed elsewhere: what that costs is known from now on.
    pub fn went_astray(&mut self) {
        if let Some(file) = self.primary_disk.take_misdirected() {
            self.landmark(|| format!("a write to the primary's {file:?} lands elsewhere"));
        }
        if let Some(file) = self.aux_disk.take_misdirected() {
            self.landmark(|| format!("a write to the auxiliary's {file:?} lands elsewhere"));
            self.aux_astray = true;
            self.astray = true;
        }
        if let Some(file) = self.dr_disk.take_misdirected() {
            self.landmark(|| format!("a write to DR's {file:?} lands elsewhere"));
            self.damaged = true;
            self.dr_spool_astray |= file == dr::api::File::Spool;
            self.astray = true;
        }
    }

    /// Whether the table was damaged at all.
    pub fn aux_spoiled(&self) -> bool {
        self.aux_astray || !self.aux_rotten.is_empty()
    }

    pub fn rotten_at_aux(&self, seq: Seq) -> bool {
        self.aux_astray || self.aux_rotten.contains(&seq)
    }

    /// After a loss of power, or the end of a process: what is torn in one slot of a superblock and was damaged in the other is lost, and no start goes
    /// on. It is not the damage that this is about.
    pub fn spare_superblock(&mut self, node: Node) {
        match node {
            Node::Primary => spare(&mut self.primary_disk, primary::machine::File::Superblock),
            Node::Aux => spare(&mut self.aux_disk, auxiliary::machine::File::Superblock),
            Node::Dr => spare(&mut self.dr_disk, dr::api::File::Superblock),
        }
    }

    /// A superblock is on its way to the disk: whoever is doomed to die then, dies.
    pub fn writes_superblock(&mut self, node: Node, superblock: bool) {
        if superblock && let Some((power, down_ns)) = self.host_mut(node).doom_at_superblock.take() {
            self.crash(node, power);
            self.after(down_ns, Event::Start { node });
        }
    }

    /// Whether it matters when DR names a batch.
    pub fn awaits_commit(&self) -> bool {
        self.host(Node::Dr).doom_at_commit.is_some() || self.live_waits()
    }

    /// DR is about to name a batch in its superblock: its fate is sealed if that was waited for.
    pub fn names_batch(&mut self, parts: &[Bytes]) {
        if !self.awaits_commit() || parts.is_empty() {
            return;
        }
        let Ok(it) = superblock::Superblock::decode(&parts.concat()) else { return };
        if it.batch == Seq(0) || !it.has(superblock::SYNCED) {
            return;
        }
        self.live_named();
        let Some(down_ns) = self.host_mut(Node::Dr).doom_at_commit.take() else { return };
        self.crash(Node::Dr, true);
        self.host_mut(Node::Dr).rots = true;
        self.host_mut(Node::Dr).rots_before = it.batch;
        self.net.cut(self.now_ns, Node::Primary, Node::Dr);
        let until_ns = self.setup.horizon_ns.max(self.now_ns);
        self.net.stall(Node::Primary, Node::Dr, until_ns);
        self.net.stall(Node::Dr, Node::Primary, until_ns);
        self.after(down_ns, Event::Start { node: Node::Dr });
    }

    // ---- roles that end ---------------------------------------------------------------------------

    /// Whether an operation failed: from then on its role may end.
    pub fn failed(&mut self, node: Node, result: &DiskResult) -> bool {
        let Err(error) = result else { return false };
        self.host_mut(node).excused = true;
        let text = error.to_string();
        self.landmark(|| format!("an operation of {node:?} fails: {text}"));
        true
    }

    /// A role says that it cannot go on.
    pub fn ended(&mut self, node: Node, text: &str) -> Verdict {
        if !std::mem::take(&mut self.host_mut(node).excused) {
            return self.fail("fatal", format!("{node:?}: {text}"));
        }
        self.landmark(|| format!("{node:?} ends: {text}"));
        self.crash(node, false);
        let down_ns = self.rng.scale(10, 1000) * MS;
        self.after(down_ns, Event::Start { node });
        Ok(())
    }

    /// After a failed operation nothing more is trusted: the role has ended (core/machine.rs).
    pub fn check_ended(&mut self, node: Node, run: u64, failed: bool) -> Verdict {
        if failed && self.is_running(node, run) {
            return self.fail("I8", format!("{node:?} goes on after a failed operation"));
        }
        Ok(())
    }

    // ---- damage at rest ---------------------------------------------------------------------------

    /// A bit flips in something that the role wrote, before it is started.
    pub fn rot(&mut self, node: Node) {
        let mut rng = self.rng.fork();
        match node {
            Node::Dr => self.rot_dr(&mut rng),
            Node::Aux => self.rot_aux(&mut rng),
            Node::Primary => self.rot_primary(&mut rng),
        }
    }

    pub fn rot_primary(&mut self, rng: &mut Rng) {
        use primary::machine::File;
        let file = rng.pick(&[File::IntentMap, File::IntentLog, File::IntentLog, File::Fifo, File::Superblock]);
        let bytes = self.primary_disk.file(file).stable();
        let found = match file {
            File::Superblock => either_slot(self.primary_disk.file(file)),
            File::Fifo => written(bytes, ENTRY_ALIGN_BYTES as usize),
            File::IntentMap => written(bytes, BLOCK_BYTES),
            _ => written(bytes, RECORD_BYTES),
        };
        if let Some((at, bit)) = somewhere(&found, rng) {
            self.landmark(|| format!("bit {bit} of byte {at} of the primary's {file:?} flips"));
            self.primary_disk.flip(file, at, bit);
        }
    }

    fn rot_aux(&mut self, rng: &mut Rng) {
        use auxiliary::machine::File;
        if self.setup.plain_table || rng.chance(75) {
            return self.rot_table(rng);
        }
        let found = either_slot(self.aux_disk.file(File::Superblock));
        if let Some((at, bit)) = somewhere(&found, rng) {
            self.landmark(|| format!("bit {bit} of byte {at} of the auxiliary's superblock flips"));
            self.aux_disk.flip(File::Superblock, at, bit);
        }
    }

    /// A record of the table, or a payload in its ring: rather one that DR does not have.
    pub fn rot_table(&mut self, rng: &mut Rng) {
        use auxiliary::machine::File;
        let (records_end, payload_at) = self.table_reach;
        let stable = self.aux_disk.file(File::Table).stable();
        let slots = farshore::format::table::RECORDS_AT as usize..records_end as usize;
        let mut found: Vec<(Seq, u64, u64)> = slots
            .step_by(RECORD_BYTES)
            .filter_map(|at| Some((OrderRecord::decode(&stable[at..at + RECORD_BYTES]).ok()?.seq, at as u64, 64)))
            .collect();
        if self.setup.table_payload_bytes > 0 && rng.chance(50) {
            found = (payload_at as usize..stable.len())
                .step_by(ENTRY_ALIGN_BYTES as usize)
                .filter_map(|at| Some((at, EntryHeader::decode(stable.get(at..at + 128)?, self.group_id).ok()?)))
                .map(|(at, header)| (header.record.seq, at as u64, 128 + header.data_bytes()))
                .collect();
        }
        found.sort_unstable();
        let newest = found.len() - found.len().min(if rng.chance(70) { 8 } else { found.len() });
        if newest == found.len() {
            return;
        }
        let (seq, at, length) = found[newest + rng.below((found.len() - newest) as u64) as usize];
        let (at, bit) = (at + rng.below(length), rng.below(8) as u8);
        self.landmark(|| format!("bit {bit} of byte {at} of the table flips, in what it has of seq {seq}"));
        self.aux_disk.flip(File::Table, at, bit);
        self.aux_rotten.insert(seq);
    }

    fn rot_dr(&mut self, rng: &mut Rng) {
        use dr::machine::File;
        let before = std::mem::take(&mut self.host_mut(Node::Dr).rots_before);
        if before > Seq(0) {
            return self.rot_payload(before, rng);
        }
        if rng.chance(10) {
            let found = either_slot(self.dr_disk.file(File::Superblock));
            if let Some((at, bit)) = somewhere(&found, rng) {
                self.landmark(|| format!("bit {bit} of byte {at} of DR's superblock flips"));
                self.dr_disk.flip(File::Superblock, at, bit);
            }
            return;
        }
        self.rot_logs(rng);
    }

    // ---- bounds and overwriting -------------------------------------------------------------------

    /// I8: nothing in the journal is overwritten that was acknowledged and that a start would still look for.
    pub fn check_journal_write(&self, offset: u64, parts: &[Bytes]) -> Verdict {
        let Some(it) = self.dr_superblock.as_ref().filter(|_| !self.damaged) else { return Ok(()) };
        let stable = self.dr_disk.file(dr::machine::File::Journal).stable();
        let mut at = offset as usize;
        for part in parts {
            for new in part.chunks(RECORD_BYTES) {
                let old = &stable[at..at + new.len()];
                at += new.len();
                if old.len() < RECORD_BYTES || old[14] == 0 || old == new {
                    continue;
                }
                let seq = Seq(u64::from_le_bytes(old[..8].try_into().expect("eight bytes")));
                let needed =
                    seq > it.seq && seq <= self.journal_told && self.oracle.encoded(seq).is_some_and(|e| e == old);
                // What only a promotion found of it was told to nobody.
                let needed = needed && !self.passed_untold.contains(&seq);
                if needed && it.has(superblock::SYNCED) {
                    let text = format!("DR overwrites seq {seq} in its journal, its checkpoint is at {}", it.seq);
                    return self.fail("I8", text);
                }
            }
        }
        Ok(())
    }

    /// I4: a payload in the auxiliary's ring is overwritten when DR has it, unless nothing was promised of it.
    pub fn check_ring(&mut self, offset: u64, data: &Bytes) -> Verdict {
        let payload_at = self.table_reach.1;
        if self.setup.protect != Protect::Bunker || offset < payload_at || self.setup.table_payload_bytes == 0 {
            return Ok(());
        }
        let (cut, end) = (self.cut().max(self.spool_file.cut_given_up), offset + data.len() as u64);
        let spool = &self.spool;
        self.ring_places.retain(|(seq, ..)| *seq > cut && !spool.had(*seq));
        let hit = |(_, at, bytes): &&(Seq, u64, u64)| *at < end && offset < at + bytes;
        let promised = |(seq, ..): &&(Seq, u64, u64)| {
            self.oracle.request_of(*seq).is_some_and(|request| request.promise.is_some_and(|promise| promise.full))
        };
        // What was sent again after the table was out of reach has a later place since, and that is the one that counts.
        let later = |at: usize, seq: Seq| self.ring_places[at + 1..].iter().any(|it| it.0 == seq && !hit(&it));
        let mut places = self.ring_places.iter().enumerate().filter(|(_, it)| hit(it) && promised(it));
        if let Some((_, (seq, ..))) = places.find(|(at, (seq, ..))| !later(*at, *seq)) {
            let text = format!("the payload of seq {seq} in the ring is overwritten: no other place has it");
            return self.fail("I4", text);
        }
        self.ring_places.retain(|(_, at, bytes)| *at >= end || offset >= at + bytes);
        let mut at = 0;
        while let Some(head) = data.get(at..at + 128) {
            let Ok(header) = EntryHeader::decode(head, self.group_id) else { break };
            self.ring_places.push((header.record.seq, offset + at as u64, header.entry_bytes()));
            at += header.entry_bytes() as usize;
        }
        Ok(())
    }
}

/// Places of pieces of this size that hold anything, as offset and length.
fn written(bytes: &[u8], piece: usize) -> Vec<(u64, u64)> {
    let pieces = bytes.chunks_exact(piece).enumerate();
    let used = pieces.filter(|(_, piece)| piece.iter().any(|byte| *byte != 0));
    used.map(|(at, _)| ((at * piece) as u64, piece as u64)).collect()
}

/// Bits in the superblock flip back where no slot of it can be read.
fn spare<F: Copy + Eq + std::fmt::Debug>(disk: &mut Disk<F>, superblock: F) {
    let readable = |slot: &[u8]| superblock::Superblock::decode(slot).is_ok();
    if !disk.file(superblock).cache().chunks_exact(BLOCK_BYTES).take(2).any(readable) {
        disk.unflip(0, |file| file == superblock);
    }
}

/// The slots of a superblock, if both are whole: what is torn in one and damaged in the other is lost, and no start goes on.
fn either_slot(file: &SimFile) -> Vec<(u64, u64)> {
    let slots = [0, 1].map(|slot| slot * BLOCK_BYTES);
    let whole = |bytes: &[u8]| {
        slots
            .iter()
            .all(|at| bytes.get(*at..at + BLOCK_BYTES).is_some_and(|it| superblock::Superblock::decode(it).is_ok()))
    };
    let both = whole(file.stable()) && whole(file.cache());
    slots.iter().filter(|_| both).map(|at| (*at as u64, BLOCK_BYTES as u64)).collect()
}

/// A bit in one of the places, rather a late one.
fn somewhere(places: &[(u64, u64)], rng: &mut Rng) -> Option<(u64, u8)> {
    let count = places.len() as u64;
    let from = if rng.chance(50) { count.saturating_sub(8) } else { 0 };
    let (at, length) = *places.get((from + rng.below((count - from).max(1))) as usize)?;
    Some((at + rng.below(length), rng.below(8) as u8))
}
