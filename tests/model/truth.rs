//! What is right in the model: I1 to I5 and I7, checked at the moment at which each can break. A breach panics; the
//! explorer adds how it came to it.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use farshore::cluster::status::PromoteReport;
use farshore::core::ids::{Seq, Volume};
use farshore::core::machine::DiskKind;
use farshore::core::modes::{Protect, Require};
use farshore::format::intent::{MapLayout, Page};
use farshore::format::record::OrderRecord;
use farshore::format::wire::Message;
use farshore::limits::{BLOCK_BYTES, RECORD_BYTES};
use farshore::{auxiliary, dr, primary};

use crate::reach::Survivors;
use crate::store::{Image, range};
use crate::world::{File, SIZE, World};

/// One write of the client; each has its own length, so that a record is known by it.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    pub offset: u64,
    pub length: u64,
    pub fua: bool,
}

impl Write {
    pub fn data(&self) -> Bytes {
        vec![(self.length % 251) as u8; self.length as usize].into()
    }
}

/// The second overlaps the first; the third is elsewhere, and durable.
const WRITES: [Write; 3] = [
    Write { offset: 0, length: 48, fua: false },
    Write { offset: 32, length: 40, fua: false },
    Write { offset: 1 << 17, length: 24, fua: true },
];

/// The primary from one start to the next: the first seq seen of it, and the image it came up with.
#[derive(Clone)]
struct Chapter {
    first: Option<Seq>,
    base: Arc<[u8]>,
}

#[derive(Clone)]
pub struct Truth {
    pub require: Require,
    pub protect: Protect,
    pub writes: Vec<Write>,
    records: BTreeMap<Seq, OrderRecord>,
    chapters: Vec<Chapter>,
    pub acked: Vec<usize>,
    /// Writes that the promotion reported as lost.
    pub lost: usize,
}

impl Hash for Truth {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.acked, self.records.keys().last(), self.chapters.len()).hash(state);
    }
}

impl Truth {
    pub fn new(require: Require, protect: Protect) -> Truth {
        let (records, chapters) = (BTreeMap::new(), Vec::new());
        let acked = Vec::new();
        Truth { require, protect, writes: WRITES.to_vec(), records, chapters, acked, lost: 0 }
    }

    pub fn submit(&mut self, number: usize) -> Write {
        self.writes[number]
    }

    pub fn restarted(&mut self, base: Vec<u8>) {
        self.chapters.push(Chapter { first: None, base: base.into() });
    }

    pub fn tail(&self) -> Seq {
        self.records.keys().last().copied().unwrap_or_default()
    }

    fn saw(&mut self, record: &OrderRecord) {
        if let Some(known) = self.records.get(&record.seq) {
            assert_eq!(known, record, "I1: one seq names two writes");
            return;
        }
        let last = self.tail();
        assert!(record.seq > last, "I1: {record:?} is given out after seq {last}");
        assert!(record.seq == last.next() || record.op.may_jump(), "I1: a gap between seq {last} and {record:?}");
        let chapter = self.chapters.last_mut().expect("a primary has started");
        chapter.first.get_or_insert(record.seq);
        self.records.insert(record.seq, *record);
    }

    pub fn saw_bytes(&mut self, bytes: &[u8]) {
        let records = bytes.chunks_exact(RECORD_BYTES).filter_map(|slot| OrderRecord::decode(slot).ok());
        records.for_each(|record| self.saw(&record));
    }

    pub fn saw_intent(&mut self, file: primary::machine::File, kind: &DiskKind) {
        if let (primary::machine::File::IntentLog, DiskKind::Write { parts, .. }) = (file, kind) {
            self.saw_bytes(&parts.concat());
        }
    }

    pub fn saw_message(&mut self, message: &Message) {
        match message {
            Message::Orders(records) => records.iter().for_each(|record| self.saw(record)),
            Message::Payload { record, .. } => self.saw(record),
            _ => {}
        }
    }

    /// Every order that was given out, ascending.
    pub fn records(&self) -> impl Iterator<Item = &OrderRecord> {
        self.records.values()
    }

    /// Record of a write of the client.
    fn record_of(&self, number: usize) -> Option<OrderRecord> {
        let Write { offset, length, .. } = self.writes[number];
        self.records.values().find(|it| it.op.has_payload() && (it.offset, it.length) == (offset, length)).copied()
    }

    /// I2: before a block of the primary changes, something that survives knows of it.
    pub fn local_write(world: &World, file: primary::machine::File, kind: &DiskKind) {
        let (primary::machine::File::Volume(_), Some((offset, length))) = (file, range(kind)) else { return };
        let map = &world.store(File::Primary(primary::machine::File::IntentMap)).stable;
        let layout = MapLayout::new(&[SIZE]);
        let marked = (offset >> 16..=(offset + length - 1) >> 16).all(|extent| {
            let (page, bit) = MapLayout::locate(extent << 16);
            let bytes = map.read(layout.page_offset(Volume(0), page), BLOCK_BYTES as u64);
            Page::decode(&bytes).is_ok_and(|page| page.get(bit))
        });
        let held = world.truth.records.values().any(|record| {
            (record.offset, record.length) == (offset, length) && (world.in_table(record) || world.in_journal(record))
        });
        assert!(marked || held, "I2: {length} bytes at {offset} change and no durable place knows of it");
    }

    /// I3 and I7 at an acknowledgement.
    pub fn acknowledged(world: &mut World, number: usize, full: bool) {
        assert!(!world.promoted, "I7: write {number} is acknowledged after the promotion");
        let Write { offset, length, fua } = world.truth.writes[number];
        let record = world.truth.record_of(number).expect("I2: an acknowledged write has its record");
        let volume = world.store(File::Primary(primary::machine::File::Volume(Volume(0))));
        let newer = world
            .truth
            .records
            .range(record.seq.next()..)
            .any(|(_, it)| it.changes_volume() && it.offset < offset + length && offset < it.offset + it.length);
        let here = |image: &Image| newer || image.read(offset, length) == world.truth.writes[number].data();
        assert!(here(&volume.cache), "I3: write {number} is acknowledged and not on the local disk");
        assert!(!fua || here(&volume.stable), "I3: FUA write {number} is acknowledged and not durable");
        // What the cut has passed is in every image from now on.
        let crossed = record.seq <= world.cut();
        let (table, journal) = (crossed || world.in_table(&record), crossed || world.in_journal(&record));
        let enough = match world.truth.protect {
            Protect::Async => true,
            Protect::Near => table || !full && journal,
            Protect::Bunker => table && (crossed || world.in_ring(&record)) || !full && (table || journal),
            Protect::Order => table && journal || !full && (table || journal),
            Protect::Sync => table && journal && (crossed || world.in_spool(&record)) || !full && (table || journal),
        };
        assert!(enough, "I3: write {number} is acknowledged, table {table} journal {journal} full {full}");
        world.truth.acked.push(number);
    }

    /// I3: what DR calls durable is.
    pub fn dr_said(world: &World, message: &Message) {
        let Message::OrdersDurable { journal_seq } = message else { return };
        if let Some(record) = world.truth.records.get(journal_seq) {
            let passed = *journal_seq <= world.cut();
            assert!(passed || world.in_journal(record), "I3: DR calls seq {journal_seq} durable");
        }
    }

    /// I4 and I5 at the end of a promotion.
    pub fn promoted(world: &mut World, report: &PromoteReport) {
        let cut = report.cut_seq;
        world.truth.lost = report.missing.len();
        let image = world.store(File::Dr(dr::machine::File::Volume(Volume(0)))).cache.read(0, SIZE);
        let expected = world.truth.state_after(cut);
        let differs = (0..image.len()).find(|&at| image[at] != expected[at]);
        assert_eq!(
            differs, None,
            "I5: the image is not the state after seq {cut}; acknowledged {:?}",
            world.truth.acked
        );
        let reached = Survivors::of(world, report.aux == "read").highest(cut);
        assert_eq!(cut, reached, "{STOPS_EARLY}");
        for &number in &world.truth.acked {
            let record = world.truth.record_of(number).expect("it was acknowledged");
            let told = report.missing.iter().any(|missing| missing.seq == record.seq);
            // What only the primary knew is known to nobody: that is what the mode promises.
            let hidden = world.truth.protect == Protect::Async;
            let known = !hidden || world.in_table(&record) || world.in_journal(&record);
            assert!(
                record.seq <= cut || told || !known,
                "I4: write {number}, seq {}, is acknowledged, lost and not told",
                record.seq
            );
            assert!(record.seq > cut || !told, "I4: write {number} is in the image and told lost");
        }
    }

    fn state_after(&self, cut: Seq) -> Vec<u8> {
        let chapter = self.chapters.iter().rposition(|it| it.first.is_some_and(|first| first <= cut)).unwrap_or(0);
        let mut image = self.chapters[chapter].base.to_vec();
        let first = self.chapters[chapter].first.unwrap_or_default();
        if first > cut {
            return image;
        }
        for record in self.records.range(first..=cut).map(|it| it.1).filter(|record| record.op.has_payload()) {
            let write = self.writes.iter().find(|it| (it.offset, it.length) == (record.offset, record.length));
            let data = write.expect("only the client's writes have payloads").data();
            image[record.offset as usize..][..data.len()].copy_from_slice(&data);
        }
        image
    }
}

/// What is said of a promotion that left out what it could have had.
pub const STOPS_EARLY: &str = "I5: the promotion stops before what it could have come to";

const TABLE: File = File::Aux(auxiliary::machine::File::Table);
const JOURNAL: File = File::Dr(dr::machine::File::Journal);

impl World {
    pub fn in_table(&self, record: &OrderRecord) -> bool {
        self.holds(TABLE, record)
    }

    pub fn in_journal(&self, record: &OrderRecord) -> bool {
        self.holds(JOURNAL, record)
    }

    /// Whether the stable bytes of a file hold a record.
    fn holds(&self, file: File, record: &OrderRecord) -> bool {
        let bytes = record.encode();
        let stable = &self.store(file).stable;
        stable.pages_with(|page| page.chunks_exact(RECORD_BYTES).any(|slot| slot == bytes))
    }
}
