//! Single bits and lengths of the files of a directory, changed between a stop and a start: each change is refused by a
//! text that names the file, or said to be damage, or takes nothing away that was promised (I8).

use std::collections::BTreeMap;

use super::damage::beyond_its_checkpoint;
use super::run::Trial;
use super::scan::Memory;
use crate::core::ids::Seq;
use crate::dr::api::{File, Options};
use crate::dr::recovery::{Found, Recovered, recover};
use crate::format::record::OrderRecord;
use crate::format::superblock::{PROMOTED, PROMOTING, SYNCED, Superblock, read_slots};
use crate::limits::{BLOCK_BYTES, SEGMENT_BYTES};

/// What a loss of power leaves of a directory.
struct Directory {
    superblock: Vec<u8>,
    journal: Memory,
    spool: Memory,
    options: Options,
    /// Every record that may be found.
    written: BTreeMap<Seq, OrderRecord>,
    promised: Superblock,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Became {
    Refused,
    Doubted,
    Harmless,
}

impl Directory {
    fn of(trial: &Trial) -> Directory {
        let stable = |file| trial.disk.files[&file].stable.clone();
        let superblock = stable(File::Superblock);
        let promised = read_slots(&superblock).expect("valid").newest.expect("written");
        Directory {
            superblock,
            journal: Memory(stable(File::Journal)),
            spool: Memory(stable(File::Spool)),
            options: trial.options.clone(),
            written: trial.writer.records.iter().map(|record| (record.seq, *record)).collect(),
            promised,
        }
    }

    fn bytes(&mut self, file: File) -> &mut Vec<u8> {
        match file {
            File::Superblock => &mut self.superblock,
            File::Journal => &mut self.journal.0,
            _ => &mut self.spool.0,
        }
    }

    fn start(&self) -> Result<Recovered, String> {
        let found = Found {
            superblock: &self.superblock,
            journal: &self.journal,
            spool: &self.spool,
            blank: false,
            report: None,
        };
        recover(found, &self.options).map_err(|error| error.to_string())
    }

    /// A start, held against what was promised before.
    fn judge(&self, what: &str) -> Became {
        let found = match self.start() {
            Ok(found) => found,
            Err(text) => {
                let named = ["superblock", "journal", "spool"].iter().any(|file| text.contains(file));
                assert!(named, "{what}: {text}");
                return Became::Refused;
            }
        };
        for entry in found.history.above(Seq(0)) {
            let seq = entry.record.seq;
            assert_eq!(self.written.get(&seq), Some(&entry.record), "{what}: seq {seq} was never written");
        }
        if found.doubt.is_some() {
            return Became::Doubted;
        }
        let (it, was) = (&found.superblock, &self.promised);
        assert!(it.has(SYNCED) && it.epoch == was.epoch && it.group == was.group, "{what}: {it:?}");
        let after = found.committed.as_ref().map_or(it.seq, |committed| committed.end);
        let reached = found.history.unbroken_from(after, found.history.tail());
        assert!(reached >= was.promised_cut, "{what}: reaches {reached}, {} was promised", was.promised_cut);
        assert!(found.history.tail() >= was.promised_tail, "{what}: orders that were promised are gone");
        Became::Harmless
    }

    fn flip(&mut self, file: File, bit: usize) -> Became {
        self.bytes(file)[bit / 8] ^= 1 << (bit % 8);
        let became = self.judge(&format!("{file:?}, bit {bit}"));
        self.bytes(file)[bit / 8] ^= 1 << (bit % 8);
        became
    }

    fn flips(&mut self, file: File, bits: impl Iterator<Item = usize>) -> BTreeMap<Became, usize> {
        let mut sums = BTreeMap::new();
        for bit in bits {
            *sums.entry(self.flip(file, bit)).or_default() += 1;
        }
        sums
    }
}

/// Running, beyond its last checkpoint; and the same stopped cleanly.
fn directories() -> Vec<Directory> {
    let running = beyond_its_checkpoint(20, false);
    let mut stopped = beyond_its_checkpoint(20, false);
    stopped.stop_cleanly();
    vec![Directory::of(&running), Directory::of(&stopped)]
}

/// Every bit of the fields, and one of each 61 bytes of the rest.
fn bits_of_block(at: usize) -> impl Iterator<Item = usize> {
    (at * 8..(at + 128) * 8).chain((at + 128..at + BLOCK_BYTES).step_by(61).map(|byte| byte * 8 + byte % 8))
}

#[test]
fn a_flipped_bit_of_the_superblock_takes_nothing_away() {
    for mut directory in directories() {
        let sums = directory.flips(File::Superblock, bits_of_block(0).chain(bits_of_block(BLOCK_BYTES)));
        assert!(sums[&Became::Harmless] > 1000, "{sums:?}");
    }
}

#[test]
fn a_flipped_bit_of_the_journal_is_damage_or_takes_nothing_away() {
    for mut directory in directories() {
        let used: Vec<usize> = (0..directory.journal.0.len())
            .step_by(64)
            .filter(|&at| directory.journal.0[at..at + 64].iter().any(|&byte| byte != 0))
            .collect();
        let headers = used.iter().copied().filter(|at| at % SEGMENT_BYTES as usize == 0);
        let headers: Vec<usize> = headers.flat_map(|at| at * 8..(at + 64) * 8).collect();
        let records = used.iter().flat_map(|&at| [0, 8, 20, 44, 61].map(|byte| (at + byte) * 8 + at / 64 % 8));
        let zeroes = (0..directory.journal.0.len() * 8).step_by(300_007);
        let sums = directory.flips(File::Journal, headers.into_iter().chain(records).chain(zeroes));
        assert!(sums.values().sum::<usize>() > 1000, "{sums:?}");
    }
}

#[test]
fn a_flipped_bit_of_the_spool_is_damage_or_takes_nothing_away() {
    for mut directory in directories() {
        let bits = (0..directory.spool.0.len()).step_by(512).flat_map(|at| {
            let bytes = [0, 8, 9, 17, 24, 33, 70, 126, 130, 300];
            bytes.map(|byte| (at + byte) * 8 + at / 512 % 8)
        });
        let bits: Vec<usize> = bits.step_by(3).collect();
        let sums = directory.flips(File::Spool, bits.into_iter());
        assert!(sums[&Became::Harmless] > 1000, "{sums:?}");
    }
}

#[test]
fn a_truncated_file_is_refused_or_damage() {
    for mut directory in directories() {
        for length in (0..8192).step_by(512).chain([1, 511, 4095, 4097, 8191]) {
            let whole = directory.superblock.clone();
            directory.superblock.truncate(length);
            // Nothing at all is what a new directory has; the journal beside it says that it is none.
            assert_eq!(directory.judge(&format!("superblock of {length} bytes")), Became::Refused);
            directory.superblock = whole;
        }
        for file in [File::Journal, File::Spool] {
            let (whole, options) = (directory.bytes(file).clone(), directory.options.clone());
            for length in [0, 1, 512, 4096, 1 << 20, (1 << 20) + 512, whole.len() - 512, whole.len() - 1] {
                if length == whole.len() {
                    continue;
                }
                directory.bytes(file).truncate(length);
                // The shell gives the lengths that it finds.
                match file {
                    File::Journal => directory.options.journal_bytes = length as u64,
                    _ => directory.options.spool_bytes = length as u64,
                }
                assert_eq!(directory.judge(&format!("{file:?} of {length} bytes")), Became::Refused);
                directory.bytes(file).clone_from(&whole);
                directory.options = options.clone();
            }
        }
    }
}

/// The slot that says so is written last: without it the directory is being promoted, which no old writer gets past.
#[test]
fn a_promoted_directory_with_a_flipped_bit_lets_no_old_writer_in() {
    let mut trial = beyond_its_checkpoint(20, false);
    trial.promote(false, 0, Seq(0));
    trial.drain_disk();
    let mut directory = Directory::of(&trial);
    let target = directory.promised.epoch;
    for bit in bits_of_block(0).chain(bits_of_block(BLOCK_BYTES)) {
        directory.superblock[bit / 8] ^= 1 << (bit % 8);
        if let Ok(found) = directory.start() {
            let it = found.superblock();
            let fenced = it.has(PROMOTED) && it.epoch == target || it.has(PROMOTING) && it.target_epoch == target;
            assert!(fenced, "bit {bit}: {it:?}");
        }
        directory.superblock[bit / 8] ^= 1 << (bit % 8);
    }
}
