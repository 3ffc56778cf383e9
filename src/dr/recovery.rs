//! From the bytes of a DR directory to a machine that can start.
//!
//! Owns the order of recovery: superblock, journal, spool, batch. Writes nothing; what has to be mended on
//! disk is done by the machine before it accepts anything. A directory that is not this group's, or whose
//! files were changed in size, is refused with a text that says what to do (I8).
//!
//! | superblock | batch | found | starts as |
//! |---|---|---|---|
//! | none | | journal empty | fresh |
//! | not synced | | | no recovery point; a first sync begins again |
//! | synced | none | | cut from the checkpoint as far as journal and spool allow |
//! | synced | b | all of b | cut at the end of b, which is applied again (I6) |
//! | synced | b | not all of b | the volume is half overwritten: no recovery point, a first sync is needed |

use std::collections::{BTreeMap, BTreeSet};

use crate::core::ids::{Chain, Seq};
use crate::core::machine::{Level, ReadAt};
use crate::core::op::Op;
use crate::core::planted::{Bug, planted, segment_bytes};
use crate::core::ranges::VolumeRanges;
use crate::dr::api::Options;
use crate::dr::batch::{Batch, Chunk, Committed, Stage, covered};
use crate::dr::doubt::{Doubt, Seen};
use crate::dr::history::History;
use crate::dr::journal::Start;
use crate::dr::promote::LossReport;
use crate::dr::scan::{FoundEntry, FoundJournal, News, ScanError, scan_journal, scan_spool};
use crate::dr::spool::Spool;
use crate::format::is_zero;
use crate::format::record::OrderRecord;
use crate::format::ring::Ring;
use crate::format::spool::{Kind, SIZED_BYTES_MAX, nonce_bytes, sized_nonce};
use crate::format::superblock::{
    BLANK, DAMAGED, DIRECT, PROMOTING, Role, SETTLED, SUPERBLOCK_BYTES, SYNCED, Superblock, name_digest, read_slots,
};
use crate::limits::BLOCK_BYTES;

/// What the shell found in the directory.
pub struct Found<'a> {
    /// The first 8192 bytes of the superblock file; shorter or all zeroes in a fresh directory.
    pub superblock: &'a [u8],
    pub journal: &'a dyn ReadAt,
    pub spool: &'a dyn ReadAt,
    /// Whether every volume file was just created or has no allocated range.
    pub blank: bool,
    /// The stored loss report of a promotion, if there is one.
    pub report: Option<LossReport>,
}

/// Why a directory cannot be used. The text says what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RecoverError(pub String);

impl From<ScanError> for RecoverError {
    fn from(err: ScanError) -> RecoverError {
        RecoverError(err.to_string())
    }
}

/// Everything a machine starts from. Only [`recover`] makes one.
pub struct Recovered {
    pub(super) superblock: Superblock,
    pub(super) fresh: bool,
    /// Only one slot of the superblock has it: damage to that one would take it.
    pub(super) half: bool,
    pub(super) history: History,
    pub(super) journal: Start,
    pub(super) spool: Spool,
    pub(super) batch: Option<Batch>,
    pub(super) committed: Option<Committed>,
    pub(super) report: Option<LossReport>,
    pub(super) news: News,
    pub(super) damage: Option<String>,
    pub(super) doubt: Option<Doubt>,
    /// The file of the spool is longer than the superblock names.
    pub(super) spool_is_longer: bool,
}

impl Recovered {
    /// The superblock in force.
    #[must_use]
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }
}

impl Recovered {
    /// What a start writes to the volumes by itself, before anybody sends anything: payloads as far as they are whole, and a
    /// batch that was being applied. Of a directory that is not whole nothing is said.
    #[must_use]
    pub fn to_apply(&self) -> VolumeRanges {
        let mut ranges = VolumeRanges::new();
        if self.damage.is_some() || self.doubt.is_some() || !self.superblock.has(SYNCED) {
            return ranges;
        }
        let after = self.committed.as_ref().map_or(self.superblock.seq, |it| it.end);
        let cut = self.history.unbroken_from(after, self.history.tail());
        let staged = self.committed.iter().flat_map(|it| it.chunks.values()).map(|chunk| chunk.record);
        let payloads = self.history.above(self.superblock.seq).take_while(|entry| entry.record.seq <= cut);
        let payloads = payloads.filter(|entry| entry.payload.is_some()).map(|entry| entry.record);
        staged.chain(payloads).filter_map(|record| record.extent()).for_each(|extent| ranges.insert(extent));
        ranges
    }
}

/// Reads superblock, journal and spool; writes nothing.
pub fn recover(found: Found<'_>, options: &Options) -> Result<Recovered, RecoverError> {
    let segments = options.journal_bytes / segment_bytes();
    let (judged, mut news) = judge(found.superblock, found.journal, options)?;
    let Some(Judged { mut superblock, half, mut history, journal, news_before }) = judged else {
        return Ok(fresh(&found, options, segments, news));
    };
    let ring = superblock.spool();
    let (entries, _) = scan_spool(found.spool, ring, superblock.spool_pos, superblock.nonce, &mut news)?;
    let lacks_orders = journal.damage.is_some() || superblock.has(DAMAGED);
    if lacks_orders {
        orders_of_payloads(&entries, &mut history, &mut news);
    }
    let (mut spool, chunks) = place(&entries, &superblock, lacks_orders, ring, &mut history, &mut news);
    let mut damage = journal.damage.clone();
    let named = superblock.batch;
    let (mut batch, committed) = batches(&mut superblock, &history, &chunks, (&journal.gaps, &mut damage), &mut news);
    for ((begin, _), chunk) in &chunks {
        let kept = batch.as_ref().is_some_and(|it| !it.direct && it.begin == *begin);
        if !kept && committed.as_ref().is_none_or(|it| it.begin != *begin) {
            spool.free(chunk.pos);
        }
    }
    // What it brings was chosen while those orders were here.
    if let Some(batch) = batch.as_mut().filter(|it| lacks_orders && !it.direct) {
        if batch.begin == named {
            batch.wait_for_orders(journal.gaps.clone());
        } else {
            batch.lacking = true;
            batch.forgo().values().for_each(|chunk| spool.free(chunk.pos));
            let text = format!("batch {} may leave out what lost orders changed: it is begun anew", batch.begin);
            news.push((Level::Warn, text));
        }
    }
    let after = committed.as_ref().map_or(superblock.seq, |it| it.end);
    let behind = history.unbroken_from(after, history.tail()) < superblock.promised_cut;
    if superblock.has(PROMOTING) && superblock.batch == Seq(0) && behind {
        // The promotion that was under way had passed it, and may have applied what follows.
        history.pass_batches(superblock.promised_cut);
    }
    let seen = Seen {
        anchored: journal.anchored,
        damage: journal.damage.clone(),
        segments,
        reached: history.unbroken_from(after, history.tail()),
        tail: history.tail(),
        spoiled: journal.spoiled,
        gaps: journal.gaps,
        open: journal.open,
        highest: entries.iter().map(|it| it.header.record.seq).max().unwrap_or_default(),
        named: news[news_before..].iter().filter(|it| it.0 == Level::Warn).map(|it| it.1.clone()).collect(),
    };
    let doubt = Doubt::of(&superblock, &seen);
    if let Some(doubt) = &doubt {
        news.push((Level::Error, doubt.text.clone()));
    }
    if superblock.journal_bytes == 0 {
        superblock.journal_bytes = options.journal_bytes;
    }
    Ok(Recovered {
        doubt,
        fresh: false,
        half,
        history,
        journal: journal.start,
        spool,
        batch,
        committed,
        report: found.report,
        news,
        damage,
        superblock,
        spool_is_longer: found.spool.size() > ring.bytes(),
    })
}

/// A directory that a start may go on from: its superblock in force, and what its journal holds.
pub struct Judged {
    superblock: Superblock,
    half: bool,
    history: History,
    journal: FoundJournal,
    /// How many of the news are about the superblock.
    news_before: usize,
}

/// Whether a start may go on from a directory, as `farshore check` asks beforehand; `None` for a new one. All that keeps
/// [`recover`] from succeeding, but for disks that fail.
pub fn judge(
    superblock: &[u8],
    journal: &dyn ReadAt,
    options: &Options,
) -> Result<(Option<Judged>, News), RecoverError> {
    check_options(options)?;
    let mut news = News::new();
    let Some((superblock, half)) = read_superblock(superblock, journal, &mut news)? else {
        if journal_is_empty(journal)? {
            return Ok((None, news));
        }
        let text = "the superblock is empty but the journal is not: the superblock was lost; restore it, or give DR a \
                    new directory";
        return Err(RecoverError(text.into()));
    };
    check_identity(&superblock, options)?;
    let news_before = news.len();
    let mut history = History::after(superblock.seq, superblock.chain).settled(superblock.has(SETTLED));
    let (segments, first) = (options.journal_bytes / segment_bytes(), superblock.journal_segment.max(1));
    let journal = scan_journal(journal, superblock.group, segments, first, &mut history, &mut news)?;
    Ok((Some(Judged { superblock, half, history, journal, news_before }), news))
}

fn check_options(options: &Options) -> Result<(), RecoverError> {
    let (journal, spool) = (options.journal_bytes, options.spool_bytes);
    if !journal.is_multiple_of(segment_bytes()) || journal < 2 * segment_bytes() {
        return Err(RecoverError(format!(
            "[dr] journal is {journal} bytes: it has to be a multiple of 1 MiB, at least 2"
        )));
    }
    if !spool.is_multiple_of(1 << 20) || spool == 0 || spool >= SIZED_BYTES_MAX {
        return Err(RecoverError(format!(
            "[dr] spool is {spool} bytes: it has to be a multiple of 1 MiB, at most 16 TiB"
        )));
    }
    Ok(())
}

/// The superblock in force and whether only one slot has it, or none in a directory to which nothing was ever promised.
fn read_superblock(
    slots: &[u8],
    journal: &dyn ReadAt,
    news: &mut News,
) -> Result<Option<(Superblock, bool)>, RecoverError> {
    if is_zero(slots) {
        return Ok(None);
    }
    let Some(bytes) = slots.get(..SUPERBLOCK_BYTES) else {
        let got = slots.len();
        return Err(RecoverError(format!(
            "the superblock is {got} bytes long, expected {SUPERBLOCK_BYTES}: truncated"
        )));
    };
    match read_slots(bytes) {
        Ok(slots) => {
            let half = !slots.twice;
            if let Some(err) = slots.damaged {
                let text = format!("one slot of the superblock is not readable ({err}): the other one counts");
                news.push((Level::Warn, text));
            }
            Ok(slots.newest.map(|newest| (newest, half)))
        }
        // Generation 1 goes to the second slot, and promises nothing: hellos are accepted after it.
        Err(_) if is_zero(&bytes[..BLOCK_BYTES]) && journal_is_empty(journal)? => {
            news.push((Level::Warn, "the first superblock was never completed: starting afresh".into()));
            Ok(None)
        }
        Err(err) => {
            Err(RecoverError(format!("{err}: this directory cannot be trusted; restore it or give DR a new one")))
        }
    }
}

fn journal_is_empty(journal: &dyn ReadAt) -> Result<bool, RecoverError> {
    let length = BLOCK_BYTES.min(usize::try_from(journal.size()).unwrap_or(BLOCK_BYTES));
    // The first segment stands at 1 MiB.
    for at in [0, segment_bytes()] {
        let read = journal.read_at(at, length);
        let block = read.map_err(|fail| RecoverError::from(ScanError::Io { what: "the journal", fail }))?;
        if !is_zero(&block) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn fresh(found: &Found<'_>, options: &Options, segments: u64, mut news: News) -> Recovered {
    let mut superblock = Superblock::new(Role::Dr);
    superblock.group_name.clone_from(&options.group_name);
    superblock.owner = options.owner;
    superblock.nonce = sized_nonce(options.nonce, options.spool_bytes);
    superblock.journal_segment = 1;
    superblock.volumes = volumes(options);
    superblock.set(BLANK, found.blank);
    superblock.journal_bytes = options.journal_bytes;
    news.push((Level::Info, format!("new directory for group {:?}", options.group_name)));
    Recovered {
        superblock,
        fresh: true,
        half: false,
        history: History::after(Seq(0), Chain(0)),
        journal: Start { segments, first: 1, ..Start::default() },
        spool: Spool::new(Ring::plain(options.spool_bytes), 0, 0),
        batch: None,
        committed: None,
        report: None,
        news,
        damage: None,
        spool_is_longer: false,
        doubt: None,
    }
}

fn volumes(options: &Options) -> Vec<(u64, u64)> {
    options.volumes.iter().map(|(name, size)| (name_digest(name), *size)).collect()
}

fn check_identity(superblock: &Superblock, options: &Options) -> Result<(), RecoverError> {
    if superblock.role != Role::Dr {
        return Err(RecoverError(format!("this is the directory of a {}, not of a dr", superblock.role.word())));
    }
    if superblock.group_name != options.group_name {
        return Err(RecoverError(format!(
            "this directory belongs to group {:?}, the configuration says {:?}",
            superblock.group_name, options.group_name
        )));
    }
    let names = |volumes: &[(u64, u64)]| volumes.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    if names(&superblock.volumes) != names(&volumes(options)) {
        let sizes: Vec<u64> = superblock.volumes.iter().map(|volume| volume.1).collect();
        return Err(RecoverError(format!(
            "the volumes in the configuration are not the ones this directory was made for ({} with sizes {sizes:?}): \
             names and order have to stay",
            sizes.len()
        )));
    }
    if superblock.journal_bytes != 0 && superblock.journal_bytes != options.journal_bytes {
        return Err(RecoverError(format!(
            "the journal ([dr] journal) is {} bytes long, it was made with {}: it was truncated or replaced; put it back, or \
             give DR a new directory",
            options.journal_bytes, superblock.journal_bytes
        )));
    }
    let written = nonce_bytes(superblock.nonce);
    if written != options.spool_bytes {
        return Err(RecoverError(format!(
            "[dr] spool is {} bytes, the spool here was made with {written}: set it back; another size needs a new directory",
            options.spool_bytes
        )));
    }
    Ok(())
}

/// Whether everything is here of a batch that begins after the recovery point `after`.
fn is_whole(history: &History, after: Seq, begin: Seq, end: &OrderRecord, staged: &BTreeMap<u64, Chunk>) -> bool {
    staged.len() as u64 == end.pieces()
        && history.unbroken_from(begin, end.seq) == end.seq
        && !leaves_out(history, after, begin, staged)
}

/// Whether a payload from before a batch that was being applied is not here any more, and no chunk covers its range:
/// what the volumes would hold then is no state that ever was (I5).
fn leaves_out(history: &History, after: Seq, begin: Seq, staged: &BTreeMap<u64, Chunk>) -> bool {
    let covered = covered(staged);
    history
        .missing_before(begin, after)
        .filter_map(|entry| entry.record.extent())
        .any(|extent| !covered.contains(extent))
}

/// A payload in the spool bears its order: one that is damaged in the journal is known from there, as long as it is kept.
///
/// In a directory that is whole nothing is missing. Where a writer jumped, the spool may have the payload of an order that a
/// crash tore before it was durable. The process that took the jump went on without it, and a checkpoint at it is none that
/// the next start finds in the journal.
fn orders_of_payloads(entries: &[FoundEntry], history: &mut History, news: &mut News) {
    let payloads = entries.iter().filter(|entry| entry.header.kind == Kind::Payload);
    let records: BTreeMap<Seq, OrderRecord> = payloads.map(|it| (it.header.record.seq, it.header.record)).collect();
    let records: Vec<OrderRecord> = records.into_values().collect();
    let taken = history.fill(&records);
    for record in records.iter().zip(taken).filter_map(|(record, taken)| taken.then_some(record)) {
        let seq = record.seq;
        let text = format!("the order of seq {seq}, damaged in the journal, is known from its payload in the spool");
        news.push((Level::Info, text));
    }
}

type Chunks = BTreeMap<(Seq, u64), Chunk>;

/// Keeps the entries that are still needed and tells the history which payloads are here.
fn place(
    entries: &[FoundEntry],
    superblock: &Superblock,
    lacks_orders: bool,
    ring: Ring,
    history: &mut History,
    news: &mut News,
) -> (Spool, Chunks) {
    let floor = superblock.spool_pos;
    let head = entries.last().map_or(floor, |last| last.header.pos + last.bytes);
    let forgets = planted(Bug::OrphansForgotten) || planted(Bug::UnsaidBelieved);
    let mut spool = Spool::new(ring, floor, head);
    let mut chunks = Chunks::new();
    // Of a first sync nothing is staged.
    let open = history.open_batch(superblock.seq).map(|(begin, _)| begin).filter(|_| superblock.has(SYNCED));
    for entry in entries {
        let header = &entry.header;
        let seq = header.record.seq;
        let needed = match header.kind {
            Kind::Payload => match history.get(seq) {
                Some(known) if known.record == header.record => known.payload.is_none(),
                Some(_) => {
                    let text = format!("the payload of seq {seq} in the spool belongs to another history: left out");
                    news.push((Level::Warn, text));
                    false
                }
                // Its order was damaged here, or lost before it was durable: others may know it.
                None if seq > superblock.seq && (lacks_orders || seq > history.tail()) && !forgets => {
                    if history.adopt(header.record, header.pos) {
                        spool.found(header.pos, entry.bytes);
                    }
                    continue;
                }
                // Applied, or the writer has gone on without it.
                None => false,
            },
            // Of one that was complete, and another has begun behind it, too.
            Kind::Chunk => {
                let ended = superblock.has(SYNCED) && seq > superblock.seq && history.end_of(seq).is_some();
                let needed = Some(seq) == open || seq == superblock.batch || ended;
                needed && !chunks.contains_key(&(seq, header.index))
            }
        };
        if !needed {
            continue;
        }
        spool.found(header.pos, entry.bytes);
        match header.kind {
            Kind::Payload => history.hold(seq, header.pos),
            Kind::Chunk => {
                chunks.insert((seq, header.index), Chunk { pos: header.pos, record: header.record });
            }
        }
    }
    (spool, chunks)
}

/// The batch that comes in and the one that is being applied.
fn batches(
    superblock: &mut Superblock,
    history: &History,
    chunks: &Chunks,
    (gaps, damage): (&BTreeSet<Seq>, &mut Option<String>),
    news: &mut News,
) -> (Option<Batch>, Option<Committed>) {
    let of = |begin: Seq| -> BTreeMap<u64, Chunk> {
        let staged = chunks.range((begin, 0)..=(begin, u64::MAX));
        staged.map(|(&(_, index), &chunk)| (index, chunk)).collect()
    };
    let mut committed = None;
    if superblock.batch.0 != 0 {
        let begin = superblock.batch;
        let staged = of(begin);
        let end = history
            .above(begin)
            .find(|entry| entry.record.op == Op::BatchEnd && Seq(entry.record.offset) == begin)
            .map(|entry| entry.record)
            .filter(|end| is_whole(history, superblock.seq, begin, end, &staged));
        match end {
            // They may have changed what it does not bring, and come before what it does.
            Some(_) if !history.known_between(superblock.seq, begin, gaps) => {
                let text = format!(
                    "batch {begin} was being applied, and orders from before it are lost here: it waits for them, and the \
                     volumes are no recovery point until then"
                );
                news.push((Level::Error, text));
                superblock.batch = Seq(0);
            }
            Some(end) => {
                committed = Some(Committed {
                    base: superblock.seq,
                    begin,
                    end: end.seq,
                    direct: None,
                    chunks: staged,
                    stage: Stage::Before,
                });
            }
            None => {
                let text = format!(
                    "batch {begin} was being applied and is not whole any more: the volumes are no recovery point; \
                     a full copy is needed"
                );
                news.push((Level::Error, text.clone()));
                damage.get_or_insert(text);
                superblock.set(SYNCED, false);
                superblock.set(DIRECT, true);
                superblock.batch = Seq(0);
            }
        }
    }
    let after = committed.as_ref().map_or(superblock.seq, |committed| committed.end);
    let complete = |(begin, end): &(Seq, OrderRecord)| {
        let carries_on = history.get(*begin).is_none_or(|entry| entry.record.offset != 0);
        !carries_on && is_whole(history, after, *begin, end, &of(*begin))
    };
    // Of a first sync nothing is staged: one that brought nothing is no copy, and another may have begun behind it.
    let ended = history.ended_after(after).find(complete).map(|(begin, _)| begin);
    let first = ended.filter(|_| superblock.has(SYNCED));
    let batch = first.or(history.open_batch(after).map(|(begin, _)| begin)).map(|begin| {
        if !superblock.has(SYNCED) {
            return Batch::forgotten(begin);
        }
        let mut batch = Batch::new(begin, false);
        for (index, chunk) in of(begin) {
            batch.have(index, chunk.record.length);
            batch.chunks.insert(index, chunk);
        }
        // What it carried on was staged here, and given up for it.
        if history.get(begin).is_some_and(|entry| entry.record.offset != 0) {
            batch.orphan(true);
        }
        batch
    });
    (batch, committed)
}
