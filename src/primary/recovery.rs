//! What a primary's directory says after a restart, and what has to be copied because of it.
//!
//! | stopped cleanly, or same boot | intent log reaches back to the cut | payloads were being dropped | lost ranges |
//! |---|---|---|---|
//! | yes | yes | no  | records after min(local done, cut) that the disk FIFO does not hold |
//! | yes | no  | no  | the intent map |
//! | yes | any | yes | the intent map and the records |
//! | no  | any | any | the intent map; seqs go on after the reservation |
//!
//! Payloads count as dropped, too, until DR's cut has passed what a full volume has left of a write that it refused.
//!
//! A log that ends before what its watermark says was done, or with a damaged record, counts for nothing.
//!
//! A slot of the superblock that is damaged takes nothing along: whatever counts stands in both.
//!
//! What sizes the volumes have the superblock says, not the configuration, which may lag or lead. While one of them is being
//! resized the intent map is laid out for the size before or the one after; its header tells which. A record may be about
//! the one after. A superblock that names a resize has a start go on with it (see `resize`): clients have written nothing
//! beyond the old end.
//!
//! What is damaged of the intent map counts as full, and is written so before the machine starts: what was read damaged
//! may be read whole the next time, and would say then that nothing was written since (I2).
//!
//! In the same boot the page cache is whole, so the unsynced intent log is exact; unless a disk failed, which the
//! process notes in the superblock before it ends ([`superblock::NO_BOOT`]): then, as after a loss of power, only what
//! was made durable counts: the map (I2), and the reservation of seqs, which no write has passed.

use bytes::{Bytes, BytesMut};

use super::fifo::{self, DiskFifo, Scanned};
use super::intent::IntentMap;
use crate::core::ids::{Chain, Epoch, Extent, GroupId, Owner, Seq, Volume};
use crate::core::machine::{IoFail, ReadAt};
use crate::core::op::Op;
use crate::core::planted::{Bug, planted};
use crate::core::ranges::Cover;
use crate::format::intent::{LogHeader, LogLayout, MapHeader, MapLayout, Page, Watermark, sizes_digest};
use crate::format::record::OrderRecord;
use crate::format::superblock::{self, Role, SUPERBLOCK_BYTES, Superblock};
use crate::format::{FormatError, is_zero};
use crate::limits::{BLOCK_BYTES, RECORD_BYTES, SEQ_RESERVE_MAX};

/// What the directory has to match, and what the shell draws for a new one.
#[derive(Clone, Debug)]
pub struct Expect {
    pub group_name: String,
    /// Name and size in bytes of each volume.
    pub volumes: Vec<(String, u64)>,
    pub boot_id: [u8; 16],
    pub fifo_disk_bytes: u64,
    pub log_slots: u64,
    /// Random, used only for a new directory.
    pub fresh_group: GroupId,
    pub fresh_owner: Owner,
    pub fresh_nonce: u64,
}

/// The files, as they are; an absent file has size 0.
pub struct Files<'a> {
    pub superblock: &'a dyn ReadAt,
    pub map: &'a dyn ReadAt,
    pub log: &'a dyn ReadAt,
    pub fifo: &'a dyn ReadAt,
}

/// What the machine goes on from.
#[derive(Debug)]
pub struct Recovered {
    pub superblock: Superblock,
    /// Last seq not to be assigned again; the next one is the `EpochStart`.
    pub tail: Seq,
    pub chain: Chain,
    /// Last seq known of this history (`tail`, unless seqs were skipped).
    pub previous: Seq,
    pub intent: IntentMap,
    pub log: LogLayout,
    pub log_first: Seq,
    /// What orders in the log change and the intent map does not tell of: they had not begun. DR is not told of those orders
    /// before it does, which a loss of power would make forgotten here.
    pub unmarked: Vec<Extent>,
    /// The first of the last orders each of which may follow a gap; behind the tail if that is another one.
    pub own_from: Seq,
    pub fifo: DiskFifo,
    pub lost: Cover,
    pub lost_any: bool,
    /// DR's cut as far as the watermark knows it, and seq and wall time of the first record after it that the log has.
    pub cut: Seq,
    /// Orders up to here are neither in the auxiliary's table nor in the log, unless DR has them.
    pub aux_skipped: Seq,
    pub oldest: Option<(Seq, u64)>,
    /// To be made durable before the machine starts, one after the other.
    pub format: Vec<Piece>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// A file to be written by [`Recovered::format`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Map,
    Log,
}

/// Whole blocks to be written: which file, offset, bytes.
pub type Piece = (Place, u64, Bytes);

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error("cannot read {file}: {source}")]
    Io { file: &'static str, source: IoFail },
    #[error("{file} is damaged: {source}; restore the directory, or empty it and let everything be copied anew")]
    Damaged { file: &'static str, source: FormatError },
    #[error("the directory belongs to {what} {found}, the configuration says {expected}; {advice}")]
    Mismatch { what: &'static str, found: String, expected: String, advice: &'static str },
}

/// Reads the directory and decides where to go on.
pub fn recover(expect: &Expect, files: &Files<'_>) -> Result<Recovered, RecoveryError> {
    let sizes: Vec<u64> = expect.volumes.iter().map(|(_, size)| *size).collect();
    let mut notes = Vec::new();
    let judged = judge(&expect.group_name, &expect.volumes, files.superblock, files.log, &mut notes)?;
    let Some(superblock) = judged else {
        return Ok(Recovered { notes, ..fresh(expect, &sizes) });
    };
    note_sizes(expect, &superblock, &mut notes);
    let (intent, mended) = read_map(files.map, &superblock, &mut notes)?;
    let log = read_log(files.log, &superblock, &mut notes)?;
    let failed = superblock.boot_id == superblock::NO_BOOT;
    let same_boot = log.as_ref().is_some_and(|log| log.boot_id == expect.boot_id);
    let exact = !failed && (superblock.has(superblock::CLEAN) || same_boot);
    let found = scan_fifo(expect, &superblock, files.fifo)?;
    let fifo = DiskFifo::resume(expect.fifo_disk_bytes, superblock.nonce, superblock.spool_pos, &found);
    if let Some(why) = found.damage.filter(|_| exact) {
        notes.push(format!("the disk FIFO is damaged {why}: what it held from there on is copied as a batch (I8)"));
    }
    let last = found.last;
    let (whole, boots) = (log.is_some(), [Some(expect.boot_id), log.as_ref().map(|log| log.boot_id)]);
    let mut recovered = match log.filter(|_| exact) {
        Some(log) => resume_exact(superblock, log, intent, fifo, last),
        None => {
            match (failed, whole) {
                (true, _) => {
                    notes.push("a disk failed this primary: what its intent log says is not relied upon".into());
                }
                (false, true) => {
                    let why = not_the_same(boots.iter().flatten().any(superblock::is_drawn));
                    notes.push(format!("{why}: what the intent log says is not relied upon"));
                }
                // It has been said what is wrong with the log.
                (false, false) => {}
            }
            resume_after_power_loss(expect, superblock, intent, fifo, &mut notes)
        }
    };
    recovered.superblock.boot_id = expect.boot_id;
    recovered.format.extend(mended);
    recovered.format.extend(log_header(expect, &recovered));
    if recovered.lost_any {
        notes.push(format!("{} bytes of volume are copied to DR as a batch", recovered.lost.bytes()));
    }
    recovered.notes = notes;
    Ok(recovered)
}

/// Why a log that is whole, and of no clean stop, is not relied upon: whether this start or the one that wrote it has a boot id
/// of its own, for the sake of a volume on an NBD server.
fn not_the_same(drawn: bool) -> &'static str {
    if drawn {
        "this primary was not stopped cleanly, and the NBD server of a volume may have been started again since, without what \
         no flush covers"
    } else {
        "the machine lost power or was restarted"
    }
}

/// Whether a start may go on from the directory, as `farshore check` asks beforehand: the superblock in force, or `None` for a
/// directory that has never been used. All that keeps [`recover`] from succeeding, but for disks that fail.
pub fn judge(
    group_name: &str,
    volumes: &[(String, u64)],
    superblock: &dyn ReadAt,
    log: &dyn ReadAt,
    notes: &mut Vec<String>,
) -> Result<Option<Superblock>, RecoveryError> {
    match read_superblock(superblock, notes) {
        Ok(Some(found)) => {
            check_superblock(group_name, volumes, &found)?;
            Ok(Some(found))
        }
        Ok(None) => Ok(None),
        // No record leaves, and no block changes, before the first superblock is durable.
        Err(_) if never_written(superblock, log)? => {
            notes.push("the first superblock was never completed: starting afresh".into());
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A directory that has never been used.
fn fresh(expect: &Expect, sizes: &[u64]) -> Recovered {
    let mut superblock = Superblock::new(Role::Primary);
    superblock.group = expect.fresh_group;
    superblock.group_name.clone_from(&expect.group_name);
    superblock.owner = expect.fresh_owner;
    superblock.epoch = Epoch(1);
    superblock.nonce = expect.fresh_nonce;
    superblock.boot_id = expect.boot_id;
    superblock.volumes = digests(&expect.volumes);
    let header = MapHeader { group: superblock.group, sizes_digest: sizes_digest(sizes) };
    let mut recovered = Recovered {
        fifo: DiskFifo::new(expect.fifo_disk_bytes, superblock.nonce, 0),
        superblock,
        tail: Seq(0),
        chain: Chain(0),
        previous: Seq(0),
        intent: IntentMap::new(sizes),
        log: LogLayout { slots: expect.log_slots },
        log_first: Seq(1),
        own_from: Seq(1),
        lost: Cover::new(),
        unmarked: Vec::new(),
        lost_any: false,
        cut: Seq(0),
        aux_skipped: Seq(0),
        oldest: None,
        format: vec![(Place::Map, 0, Bytes::copy_from_slice(&header.encode()))],
        notes: Vec::new(),
    };
    recovered.format.extend(log_header(expect, &recovered));
    recovered
}

/// A promoted DR goes on as primary of the new epoch, alone: everything written from now on is remembered
/// in its intent map.
#[must_use]
pub fn promoted(expect: &Expect, group: GroupId, owner: Owner, epoch: Epoch, tail: Seq, chain: Chain) -> Recovered {
    let sizes: Vec<u64> = expect.volumes.iter().map(|(_, size)| *size).collect();
    let mut recovered = fresh(expect, &sizes);
    recovered.superblock.group = group;
    recovered.superblock.owner = owner;
    recovered.superblock.epoch = epoch;
    recovered.tail = tail;
    recovered.previous = tail;
    recovered.chain = chain;
    (recovered.log_first, recovered.own_from) = (tail.next(), tail.next());
    let header = MapHeader { group, sizes_digest: sizes_digest(&sizes) };
    recovered.format = vec![(Place::Map, 0, Bytes::copy_from_slice(&header.encode()))];
    recovered.format.extend(log_header(expect, &recovered));
    recovered
}

struct Log {
    layout: LogLayout,
    boot_id: [u8; 16],
    watermark: Watermark,
    /// Contiguous records up to the newest, oldest first.
    records: Vec<OrderRecord>,
}

fn resume_exact(superblock: Superblock, log: Log, intent: IntentMap, fifo: DiskFifo, on_disk: Seq) -> Recovered {
    let Log { layout, watermark, records, .. } = log;
    let newest = records.last().map_or((Seq(0), Chain(0)), |record| (record.seq, record.chain));
    let log_first = records.first().map_or(newest.0.next(), |record| record.seq);
    let own = records.iter().rev().take_while(|record| record.op.may_jump()).last();
    let own_from = own.map_or(newest.0.next(), |record| record.seq);
    let settled = watermark.local_done.min(watermark.cut);
    let (mut lost, mut unmarked) = (Cover::new(), Vec::new());
    let mut lost_any = watermark.coalescing;
    for record in records.iter().filter(|record| record.seq > settled) {
        let held = record.seq <= on_disk && record.seq <= watermark.local_done;
        unmarked.extend(record.extent().filter(|extent| intent.lacks(*extent)));
        if let Some(extent) = record.extent().filter(|_| !held) {
            lost_any = true;
            lost.insert(extent);
        }
    }
    if watermark.coalescing || log_first > settled.next() {
        lost.union(&intent.ranges());
        lost_any |= !lost.is_empty();
    }
    Recovered {
        superblock,
        tail: newest.0,
        chain: newest.1,
        previous: newest.0,
        intent,
        log: layout,
        log_first,
        own_from,
        fifo,
        lost,
        unmarked,
        lost_any,
        cut: watermark.cut.min(newest.0),
        aux_skipped: watermark.aux_skipped.min(newest.0),
        oldest: records.iter().find(|record| record.seq > watermark.cut).map(|record| (record.seq, record.time_ns)),
        format: Vec::new(),
        notes: Vec::new(),
    }
}

fn resume_after_power_loss(
    expect: &Expect,
    superblock: Superblock,
    intent: IntentMap,
    fifo: DiskFifo,
    notes: &mut Vec<String>,
) -> Recovered {
    let reserved = superblock.seq;
    let tail = if planted(Bug::SeqReused) { Seq(reserved.0.saturating_sub(SEQ_RESERVE_MAX)) } else { reserved };
    // A stop that was clean has flushed everything.
    let gone = match superblock.has(superblock::CLEAN) {
        true => "",
        false => {
            ": what was acknowledged and not flushed before may be gone, if the machine or the NBD server of a volume lost power, \
             and then is gone at DR as well"
        }
    };
    notes.push(format!(
        "seqs go on after {tail}, and every extent of the intent map is copied as the volumes have it now{gone}"
    ));
    let lost = intent.ranges();
    Recovered {
        superblock,
        tail,
        chain: Chain(0),
        previous: Seq(0),
        intent,
        log: LogLayout { slots: expect.log_slots },
        log_first: tail.next(),
        own_from: tail.next(),
        fifo,
        lost,
        unmarked: Vec::new(),
        lost_any: true,
        cut: Seq(0),
        aux_skipped: Seq(0),
        oldest: None,
        format: Vec::new(),
        notes: Vec::new(),
    }
}

fn log_header(expect: &Expect, recovered: &Recovered) -> [Piece; 2] {
    let header = LogHeader {
        group: recovered.superblock.group,
        owner: recovered.superblock.owner,
        boot_id: expect.boot_id,
        slots: recovered.log.slots,
    };
    // Until the first tick says more: nothing before this incarnation is known to be at DR.
    let watermark = Watermark {
        local_done: recovered.log_first.prev(),
        cut: recovered.log_first.prev(),
        coalescing: recovered.lost_any,
        aux_skipped: recovered.aux_skipped,
    };
    [
        (Place::Log, LogLayout::HEADER_AT, Bytes::copy_from_slice(&header.encode())),
        (Place::Log, LogLayout::WATERMARK_AT, Bytes::copy_from_slice(&watermark.encode())),
    ]
}

/// At most so many bytes of the map are mended by one write.
const MEND_BYTES: usize = 1 << 20;

// ---- reading ---------------------------------------------------------------------------------

/// The superblock in force. A slot that is not readable may have been newer, torn or damaged: what it promised, the other one
/// promises as well.
fn read_superblock(file: &dyn ReadAt, notes: &mut Vec<String>) -> Result<Option<Superblock>, RecoveryError> {
    if file.size() == 0 {
        return Ok(None);
    }
    let bytes = file.read_at(0, SUPERBLOCK_BYTES).map_err(|source| RecoveryError::Io { file: "superblock", source })?;
    let slots =
        superblock::read_slots(&bytes).map_err(|source| RecoveryError::Damaged { file: "superblock", source })?;
    if let Some(why) = slots.damaged {
        notes.push(format!("one slot of the superblock is damaged ({why}): the other one counts"));
    }
    Ok(slots.newest)
}

/// Whether the intent log has no record and one slot of the superblock is still blank: the directory of a primary
/// that died when it was made.
fn never_written(superblock: &dyn ReadAt, log: &dyn ReadAt) -> Result<bool, RecoveryError> {
    let io = |file| move |source| RecoveryError::Io { file, source };
    let slots = superblock.read_at(0, SUPERBLOCK_BYTES).map_err(io("superblock"))?;
    if !slots.chunks(BLOCK_BYTES).any(is_zero) {
        return Ok(false);
    }
    let piece = 1 << 20;
    for offset in (LogLayout::RECORDS_AT..log.size()).step_by(piece) {
        let length = usize::try_from((log.size() - offset).min(piece as u64)).expect("at most a MiB");
        if !is_zero(&log.read_at(offset, length).map_err(io("intent log"))?) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn check_superblock(group_name: &str, volumes: &[(String, u64)], superblock: &Superblock) -> Result<(), RecoveryError> {
    let mismatch =
        |what, found: String, expected: String, advice| Err(RecoveryError::Mismatch { what, found, expected, advice });
    if superblock.role != Role::Primary {
        let advice = "give each role a directory of its own";
        return mismatch("the role", superblock.role.word().into(), "primary".into(), advice);
    }
    if superblock.group_name != group_name {
        let advice = "give each group a directory of its own";
        return mismatch("group", superblock.group_name.clone(), group_name.into(), advice);
    }
    let names = |volumes: &[(u64, u64)]| volumes.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    if names(&superblock.volumes) != names(&digests(volumes)) {
        let found = describe_sizes(superblock.volumes.iter().map(|(_, size)| *size));
        let wanted = describe_sizes(volumes.iter().map(|(_, size)| *size));
        let advice = "names and order of volumes cannot change; put the configuration back";
        return mismatch("other volumes, of", found, wanted, advice);
    }
    Ok(())
}

/// A configuration that lags behind a resize is no reason not to start; nor does it make anything smaller.
fn note_sizes(expect: &Expect, superblock: &Superblock, notes: &mut Vec<String>) {
    for ((name, says), (_, has)) in expect.volumes.iter().zip(&superblock.volumes) {
        if says < has {
            notes.push(format!(
                "volume {name} has {has} bytes, the configuration says {says}: it was resized, or you want it smaller, \
                 which it never gets; say {has} there, on each host"
            ));
        }
    }
}

fn describe_sizes(sizes: impl Iterator<Item = u64>) -> String {
    let sizes: Vec<String> = sizes.map(|size| size.to_string()).collect();
    format!("[{}] bytes", sizes.join(", "))
}

/// The map, and what is to be written of it: pages that were damaged, as the full ones they count for, and after them a
/// header that was.
fn read_map(
    file: &dyn ReadAt,
    superblock: &Superblock,
    notes: &mut Vec<String>,
) -> Result<(IntentMap, Vec<Piece>), RecoveryError> {
    let io = |source| RecoveryError::Io { file: "intent map", source };
    let header = file.read_at(0, BLOCK_BYTES).map_err(io)?;
    let found = MapHeader::decode(&header);
    let of = |sizes: &[u64]| MapHeader { group: superblock.group, sizes_digest: sizes_digest(sizes) };
    let made: Vec<u64> = superblock.volumes.iter().map(|(_, size)| *size).collect();
    let to_be = superblock.sizes_to_be();
    let sizes = if found.as_ref().is_ok_and(|found| *found == of(&to_be)) { &to_be } else { &made };
    let mut map = IntentMap::new(sizes);
    let layout = MapLayout::new(sizes);
    let wanted = of(sizes);
    let whole = found.is_ok_and(|found| found == wanted);
    if !whole {
        notes.push("the intent map is missing or damaged: whole volumes are copied (I8)".into());
    }
    let mut runs: Vec<(u64, BytesMut)> = Vec::new();
    for index in 0..sizes.len() {
        let volume = volume_at(index);
        for page in 0..layout.volume_pages(volume) {
            let offset = layout.page_offset(volume, page);
            let bytes = file.read_at(offset, BLOCK_BYTES).map_err(io)?;
            if whole && is_zero(&bytes) {
                continue;
            }
            match Page::decode(&bytes) {
                Ok(found) if whole && found.volume == volume && found.index == page => map.load(found),
                _ => {
                    notes.push(format!("page {page} of volume {index} of the intent map is damaged: all of it counts"));
                    let full = Page::full(volume, page);
                    match runs.last_mut() {
                        Some((at, run)) if run.len() < MEND_BYTES && *at + run.len() as u64 == offset => {
                            run.extend_from_slice(&full.encode());
                        }
                        _ => runs.push((offset, BytesMut::from(&full.encode()[..]))),
                    }
                    map.load(full);
                }
            }
        }
    }
    let mut mended: Vec<Piece> = runs.into_iter().map(|(at, run)| (Place::Map, at, run.freeze())).collect();
    if !whole {
        mended.push((Place::Map, 0, Bytes::copy_from_slice(&wanted.encode())));
    }
    Ok((map, mended))
}

fn read_log(file: &dyn ReadAt, superblock: &Superblock, notes: &mut Vec<String>) -> Result<Option<Log>, RecoveryError> {
    let io = |source| RecoveryError::Io { file: "intent log", source };
    let mut no_use = |what: &str, at: u64| {
        notes.push(format!(
            "the intent log (intent.log) {what}, at offset {at}: it counts for nothing, the intent map decides"
        ));
        Ok(None)
    };
    let block = file.read_at(LogLayout::HEADER_AT, BLOCK_BYTES).map_err(io)?;
    let header = match LogHeader::decode(&block) {
        Ok(header) if header.group == superblock.group => header,
        _ if is_zero(&block) => return no_use("has no header: it is missing, or was emptied", LogLayout::HEADER_AT),
        Ok(_) => return no_use("has the header of another one", LogLayout::HEADER_AT),
        Err(error) => return no_use(&format!("has a damaged header ({error})"), LogLayout::HEADER_AT),
    };
    let watermark = match Watermark::decode(&file.read_at(LogLayout::WATERMARK_AT, BLOCK_BYTES).map_err(io)?) {
        Ok(watermark) => watermark,
        Err(error) => return no_use(&format!("has a damaged watermark ({error})"), LogLayout::WATERMARK_AT),
    };
    let layout = LogLayout { slots: header.slots };
    let (records, damaged) = read_records(file, layout, &superblock.sizes_to_be())?;
    let Some(records) = newest_run(records) else {
        return no_use("holds no record that can be read", LogLayout::RECORDS_AT);
    };
    let newest = records.last().map_or(Seq(0), |record| record.seq);
    let at = layout.record_offset(newest.next());
    let next = file.read_at(at, RECORD_BYTES).map_err(io)?;
    if watermark.local_done > newest || !is_zero(&next) && OrderRecord::decode(&next).is_err() {
        // Seqs that were given out are never given out again: what the log forgot is not to be guessed.
        return no_use(&format!("is damaged, or was cut off, behind seq {newest}"), at);
    }
    let log = Log { layout, boot_id: header.boot_id, watermark, records };
    notes.extend(log.gap(damaged));
    Ok(Some(log))
}

/// Every record that can be read, and where the first one stands that cannot.
fn read_records(
    file: &dyn ReadAt,
    layout: LogLayout,
    sizes: &[u64],
) -> Result<(Vec<OrderRecord>, Option<u64>), RecoveryError> {
    let (mut records, mut damaged) = (Vec::new(), None);
    let piece = 1 << 20;
    let mut offset = LogLayout::RECORDS_AT;
    let end = (LogLayout::RECORDS_AT + layout.slots * RECORD_BYTES as u64).min(file.size());
    while offset < end {
        let length = usize::try_from((end - offset).min(piece)).expect("at most a MiB");
        let bytes = file.read_at(offset, length).map_err(|source| RecoveryError::Io { file: "intent log", source })?;
        for (raw, at) in bytes.chunks_exact(RECORD_BYTES).zip((offset..).step_by(RECORD_BYTES)) {
            match OrderRecord::decode(raw) {
                Ok(record) if inside(&record, sizes) => records.push(record),
                Err(_) if is_zero(raw) => {}
                Ok(_) | Err(_) => damaged = damaged.or(Some(at)),
            }
        }
        offset += length as u64;
    }
    Ok((records, damaged))
}

impl Log {
    /// What to say of records that are not there any more (I8); `damaged`: where the first one is that cannot be read.
    fn gap(&self, damaged: Option<u64>) -> Option<String> {
        let first = self.records.first()?;
        // So a start after a loss of power begins; and in a full ring the one before it has been written over.
        let begins = first.op == Op::EpochStart || first.seq == Seq(1);
        let full = self.records.len() as u64 >= self.layout.slots;
        let at = match damaged {
            Some(at) => at,
            None if begins || full => return None,
            None => self.layout.record_offset(first.seq.prev()),
        };
        let settled = self.watermark.local_done.min(self.watermark.cut);
        Some(if first.seq > settled.next() {
            format!(
                "the intent log (intent.log) is damaged, or was cut off, at offset {at}: of seqs {} to {} it does not say any \
                 more what they changed, and every extent of the intent map is copied",
                settled.next(),
                first.seq.prev()
            )
        } else {
            format!(
                "the intent log (intent.log) is damaged, or was cut off, at offset {at}, among records that are needed no \
                 more: they are written over in time"
            )
        })
    }
}

/// Whether what a record changes is there: one that leaves its volume was never written here.
fn inside(record: &OrderRecord, sizes: &[u64]) -> bool {
    record.extent().is_none_or(|it| {
        let size = sizes.get(usize::from(it.volume.0)).copied();
        it.offset.checked_add(it.length).zip(size).is_some_and(|(end, size)| end <= size)
    })
}

/// The contiguous run of records that ends in the newest one; `None` when there is none.
fn newest_run(mut records: Vec<OrderRecord>) -> Option<Vec<OrderRecord>> {
    records.sort_unstable_by_key(|record| record.seq);
    records.dedup_by_key(|record| record.seq);
    let mut first = records.len().checked_sub(1)?;
    while first > 0
        && records[first - 1].seq.next() == records[first].seq
        && records[first].chain == records[first].chain_after(records[first - 1].chain)
    {
        first -= 1;
    }
    Some(records.split_off(first))
}

fn scan_fifo(expect: &Expect, superblock: &Superblock, file: &dyn ReadAt) -> Result<Scanned, RecoveryError> {
    let size = if file.size() == 0 { 0 } else { expect.fifo_disk_bytes };
    let mut read = |offset, length| file.read_at(offset, length);
    fifo::scan(size, superblock.nonce, superblock.spool_pos, &mut read)
        .map_err(|source| RecoveryError::Io { file: "disk FIFO", source })
}

fn digests(volumes: &[(String, u64)]) -> Vec<(u64, u64)> {
    volumes.iter().map(|(name, size)| (superblock::name_digest(name), *size)).collect()
}

fn volume_at(index: usize) -> Volume {
    Volume(u16::try_from(index).expect("at most VOLUMES_MAX volumes"))
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
