//! The missing writes of a loss report: every one of them exactly (I4), in [`ENTRY_BYTES`] each, and held once.
//!
//! Whoever keeps a report shares one list: the machine, its shell, and each answer that is under way. JSON is written
//! and read an entry at a time, so that nobody holds the text of all of them.

use std::fmt;
use std::sync::Arc;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::{Serialize, Serializer};

use crate::cluster::status::rfc3339;
use crate::core::ids::{Seq, Volume};
use crate::core::op::Op;

/// Memory that one missing write takes in a list.
pub const ENTRY_BYTES: usize = 40;

const _: () = assert!(size_of::<Entry>() == ENTRY_BYTES, "what is said of the memory of a report is so");

/// Why a write is not in the promoted image: the word of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Missing {
    Queued,
    Sent,
    Unknown,
    Held,
}

impl Missing {
    /// All of them.
    pub const ALL: [Missing; 4] = [Missing::Queued, Missing::Sent, Missing::Unknown, Missing::Held];

    /// The word of the CLI and its JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Missing::Queued => "queued",
            Missing::Sent => "sent",
            Missing::Unknown => "unknown",
            Missing::Held => "held",
        }
    }
}

/// One write that is not in the promoted image, as JSON has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct MissingWrite {
    pub seq: Seq,
    pub volume: String,
    /// `"write"`, `"write_zeroes"`, `"trim"`.
    pub op: String,
    pub offset: u64,
    pub length: u64,
    /// When the primary took it in, RFC 3339.
    pub time: String,
    /// `"queued"`: never left; `"sent"`: was in flight; `"unknown"`; `"held"`: its payload is here, but an
    /// earlier one is not, so that the order forbids it.
    pub state: String,
}

/// One write that is not in the promoted image, as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub seq: Seq,
    /// Bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// When the primary took it in, nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// Index among the names of the list.
    pub volume: Volume,
    pub op: Op,
    pub state: Missing,
}

/// What stands in a list of missing writes and cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("missing write {seq}: its {what} {text:?} is none")]
pub struct NoSuch {
    seq: Seq,
    what: &'static str,
    text: String,
}

/// All missing writes of one report. A copy of it shares the list.
#[derive(Clone, Default)]
pub struct MissingWrites {
    list: Arc<List>,
}

#[derive(Default)]
struct List {
    /// By index of the volume.
    names: Vec<String>,
    entries: Vec<Entry>,
}

impl MissingWrites {
    /// A list of writes to volumes with these names.
    #[must_use]
    pub fn new(names: Vec<String>, mut entries: Vec<Entry>) -> MissingWrites {
        entries.shrink_to_fit();
        MissingWrites { list: Arc::new(List { names, entries }) }
    }

    /// The same from what JSON has.
    ///
    /// # Errors
    /// The first one that says what none of ours says.
    pub fn of(writes: impl IntoIterator<Item = MissingWrite>) -> Result<MissingWrites, NoSuch> {
        let mut list = List::default();
        writes.into_iter().try_for_each(|write| list.take(&write))?;
        Ok(MissingWrites::new(list.names, list.entries))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.list.entries.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.entries.is_empty()
    }

    /// The write at this place of the list.
    #[must_use]
    pub fn get(&self, at: usize) -> Option<MissingWrite> {
        self.list.entries.get(at).map(|entry| self.list.write(entry))
    }

    #[must_use]
    pub fn first(&self) -> Option<MissingWrite> {
        self.get(0)
    }

    /// Every one, in the order of their seqs.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = MissingWrite> + '_ {
        self.list.entries.iter().map(|entry| self.list.write(entry))
    }
}

impl List {
    fn write(&self, entry: &Entry) -> MissingWrite {
        let name = self.names.get(usize::from(entry.volume.0)).cloned();
        MissingWrite {
            seq: entry.seq,
            volume: name.unwrap_or_else(|| format!("#{}", entry.volume)),
            op: entry.op.word().into(),
            offset: entry.offset,
            length: entry.length,
            time: rfc3339(entry.time_ns),
            state: entry.state.word().into(),
        }
    }

    /// Takes in what was read; a name that is new gets the next index.
    fn take(&mut self, write: &MissingWrite) -> Result<(), NoSuch> {
        let no = |what, text: &str| NoSuch { seq: write.seq, what, text: text.into() };
        let index = match self.names.iter().position(|name| *name == write.volume) {
            Some(index) => index,
            None => {
                self.names.push(write.volume.clone());
                self.names.len() - 1
            }
        };
        let ops = [Op::Write, Op::WriteZeroes, Op::Trim, Op::Resize];
        let state = Missing::ALL.into_iter().find(|state| state.word() == write.state);
        self.entries.push(Entry {
            seq: write.seq,
            offset: write.offset,
            length: write.length,
            time_ns: nanoseconds(&write.time).ok_or_else(|| no("time", &write.time))?,
            // One name a volume: more than there are indices is not a report.
            volume: Volume(u16::try_from(index).map_err(|_| no("volume", &write.volume))?),
            op: ops.into_iter().find(|op| op.word() == write.op).ok_or_else(|| no("op", &write.op))?,
            state: state.ok_or_else(|| no("state", &write.state))?,
        });
        Ok(())
    }
}

/// The instant that [`rfc3339`] writes this way.
fn nanoseconds(time: &str) -> Option<u64> {
    let ns = time.parse::<jiff::Timestamp>().ok()?.as_nanosecond();
    u64::try_from(ns).ok().filter(|ns| rfc3339(*ns) == time)
}

impl PartialEq for MissingWrites {
    /// The same writes, however their volumes are numbered.
    fn eq(&self, other: &MissingWrites) -> bool {
        Arc::ptr_eq(&self.list, &other.list) || self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl fmt::Debug for MissingWrites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Serialize for MissingWrites {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for MissingWrites {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MissingWrites, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = MissingWrites;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of missing writes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut writes: A) -> Result<MissingWrites, A::Error> {
                let mut list = List::default();
                while let Some(write) = writes.next_element()? {
                    list.take(&write).map_err(de::Error::custom)?;
                }
                Ok(MissingWrites::new(list.names, list.entries))
            }
        }
        deserializer.deserialize_seq(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: u64) -> Entry {
        Entry {
            seq: Seq(seq),
            offset: seq * 512,
            length: 512,
            time_ns: 1_795_341_600_000_000_000 + seq,
            volume: Volume((seq % 3) as u16),
            op: [Op::Write, Op::WriteZeroes, Op::Trim][seq as usize % 3],
            state: Missing::ALL[seq as usize % 4],
        }
    }

    #[test]
    fn every_write_is_said_and_read_back_exactly() {
        // The third volume has no name any more.
        let writes = MissingWrites::new(vec!["db".into(), "log".into()], (7..107).map(entry).collect());
        let text = serde_json::to_string(&writes).expect("plain data");
        let entry = r##"{"seq":8,"volume":"#2","op":"trim","offset":4096,"length":512,"time":"2026-11-22T10:00:00.000000008Z","state":"queued"}"##;
        assert!(text.contains(entry), "{text}");
        let again: MissingWrites = serde_json::from_str(&text).expect("it was written so");
        assert_eq!(again, writes);
        assert_eq!(serde_json::to_string(&again).expect("plain data"), text);
        assert_eq!((again.len(), again.first(), again.get(100)), (100, writes.iter().next(), None));
        assert_ne!(MissingWrites::of(writes.iter().skip(1)).expect("sound"), writes);
    }

    #[test]
    fn a_copy_shares_the_list() {
        let writes = MissingWrites::new(Vec::new(), (1..10).map(entry).collect());
        assert!(Arc::ptr_eq(&writes.list, &writes.clone().list));
    }

    #[test]
    fn what_no_report_says_is_refused_by_name() {
        let good = MissingWrites::new(vec!["db".into()], vec![entry(3)]).first().expect("one");
        let wrong = |change: fn(&mut MissingWrite)| {
            let mut write = good.clone();
            change(&mut write);
            MissingWrites::of([write]).expect_err("it is not one").to_string()
        };
        assert!(wrong(|it| it.op = "mark".into()).contains("op \"mark\""));
        assert!(wrong(|it| it.state = "gone".into()).contains("state \"gone\""));
        // The same instant in other words would not be written as it was read.
        assert!(wrong(|it| it.time = "2026-11-22T10:00:00Z".into()).contains("time"));
    }
}
