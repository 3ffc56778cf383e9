//! Reads the answer that a loss report is, as it comes: no more of it is held than one missing write and what stands
//! around the list.
//!
//! What is printed as JSON is what the role said, byte for byte. An answer that does not come to its end is a failure,
//! also if most of it has been printed.
//!
//! Bounded (I9): one entry of the list by [`REPORT_ENTRY_BYTES_MAX`], everything else together by
//! [`REPORT_REST_BYTES_MAX`]; the list itself is as long as it is.

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::cluster::control::EXIT_FAILED;
use crate::cluster::losses::MissingWrite;
use crate::cluster::status::PromoteReport;
use crate::limits::{CONTROL_PIECE_BYTES, REPORT_ENTRY_BYTES_MAX, REPORT_REST_BYTES_MAX};

/// How an answer with a report begins, and what stands behind the report: what is printed stands between the two.
const BEGIN: &[u8] = b"{\"ok\":";
const END: &[u8] = b"}\n";

/// What the role answered.
pub enum Reply {
    /// A report, whose missing writes have been given away.
    Report(Box<PromoteReport>),
    Error {
        error: String,
        exit: u8,
    },
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoReply {
    #[error("the role closed the connection without an answer; its log says why")]
    Nothing,
    #[error("the connection ended in the middle of the answer: what has been read of the report is not all of it")]
    Cut,
    /// It had not looked at the question.
    #[error("the role ended before it answered")]
    Reset,
    #[error("the role stopped answering: {0}")]
    Read(io::Error),
    #[error("the answer is not one of farshore's: {0}")]
    Strange(String),
    /// Of who prints it.
    #[error("cannot write the output: {0}")]
    Print(io::Error),
}

impl NoReply {
    /// What a failure says before the first byte of an answer, or while the question was written.
    pub fn unread(error: io::Error) -> NoReply {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => NoReply::Reset,
            _ => NoReply::Read(plain(error)),
        }
    }
}

/// Reads one answer; `each` is given every missing write, and `print` the report as the role said it.
///
/// # Errors
/// Why there is none, or not the whole of one.
pub fn read(
    stream: impl Read,
    each: &mut dyn FnMut(MissingWrite),
    print: Option<&mut dyn Write>,
) -> Result<Reply, NoReply> {
    let left = Cell::new(REPORT_REST_BYTES_MAX);
    let mut source = Source {
        inner: BufReader::with_capacity(CONTROL_PIECE_BYTES, stream),
        left: &left,
        seen: 0,
        copy: Copy { out: print, held: Vec::new(), begun: false },
        print_failed: None,
    };
    let mut json = serde_json::Deserializer::from_reader(&mut source);
    let parsed = Whole { each, left: &left }.deserialize(&mut json);
    drop(json);
    if let Some(error) = source.print_failed.take() {
        return Err(NoReply::Print(error));
    }
    let seen = source.seen;
    let reply = parsed.map_err(|error| match error.classify() {
        serde_json::error::Category::Io if seen == 0 => NoReply::unread(error.into()),
        serde_json::error::Category::Io => NoReply::Read(plain(error.into())),
        serde_json::error::Category::Eof if seen == 0 => NoReply::Nothing,
        serde_json::error::Category::Eof => NoReply::Cut,
        _ => NoReply::Strange(error.to_string()),
    })?;
    source.newline()?;
    if matches!(reply, Reply::Report(_)) {
        source.copy.finish()?;
    }
    Ok(reply)
}

/// The words of a read that failed, for people.
pub fn plain(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => io::Error::other("no answer in time"),
        _ => error,
    }
}

/// The bytes of an answer, counted, and copied to where they are printed.
struct Source<'a, 'p, R> {
    inner: BufReader<R>,
    /// How many bytes may still come of what is being read.
    left: &'a Cell<u64>,
    seen: u64,
    copy: Copy<'p>,
    print_failed: Option<io::Error>,
}

impl<R: Read> Source<'_, '_, R> {
    /// The end of the line, without which the answer is not whole.
    fn newline(&mut self) -> Result<(), NoReply> {
        let mut byte = [0];
        match self.read(&mut byte).map_err(|error| NoReply::Read(plain(error)))? {
            0 => Err(NoReply::Cut),
            _ if byte == *b"\n" => Ok(()),
            _ => Err(NoReply::Strange("it goes on behind its end".into())),
        }
    }
}

impl<R: Read> Read for Source<'_, '_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let found = self.inner.fill_buf()?;
        let count = found.len().min(out.len());
        out[..count].copy_from_slice(&found[..count]);
        self.inner.consume(count);
        self.seen += count as u64;
        let Some(left) = self.left.get().checked_sub(count as u64) else {
            return Err(io::Error::other("a part of the answer is longer than any that farshore gives"));
        };
        self.left.set(left);
        if let Err(error) = self.copy.push(&out[..count]) {
            self.print_failed = Some(error);
            return Err(io::Error::other("it cannot be printed"));
        }
        Ok(count)
    }
}

/// Prints what stands between [`BEGIN`] and [`END`].
struct Copy<'a> {
    out: Option<&'a mut dyn Write>,
    held: Vec<u8>,
    /// It begins as a report does, which has been taken off.
    begun: bool,
}

impl Copy<'_> {
    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(out) = &mut self.out else { return Ok(()) };
        self.held.extend_from_slice(bytes);
        if !self.begun && self.held.starts_with(BEGIN) {
            self.held.drain(..BEGIN.len());
            self.begun = true;
        }
        if self.begun && self.held.len() >= CONTROL_PIECE_BYTES {
            let ready = self.held.len() - END.len();
            out.write_all(&self.held[..ready])?;
            self.held.drain(..ready);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), NoReply> {
        let Some(out) = &mut self.out else { return Ok(()) };
        let rest = self.held.strip_suffix(END).filter(|_| self.begun);
        let rest = rest.ok_or_else(|| NoReply::Strange("it is not written as farshore does".into()))?;
        out.write_all(rest).and_then(|()| out.write_all(b"\n")).map_err(NoReply::Print)
    }
}

/// The object that an answer is.
struct Whole<'a> {
    each: &'a mut dyn FnMut(MissingWrite),
    left: &'a Cell<u64>,
}

impl<'de> DeserializeSeed<'de> for Whole<'_> {
    type Value = Reply;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Reply, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = Reply;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an answer")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Reply, A::Error> {
        let (mut report, mut error, mut exit) = (None, None, EXIT_FAILED);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "ok" => report = Some(map.next_value_seed(Report { each: &mut *self.each, left: self.left })?),
                "error" => error = Some(map.next_value()?),
                "exit" => exit = map.next_value()?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        match (report, error) {
            (_, Some(error)) => Ok(Reply::Error { error, exit }),
            (Some(report), None) => Ok(Reply::Report(Box::new(report))),
            (None, None) => Err(serde::de::Error::custom("neither done nor an error")),
        }
    }
}

/// The report in it.
struct Report<'a> {
    each: &'a mut dyn FnMut(MissingWrite),
    left: &'a Cell<u64>,
}

impl<'de> DeserializeSeed<'de> for Report<'_> {
    type Value = PromoteReport;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<PromoteReport, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Report<'_> {
    type Value = PromoteReport;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a report")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PromoteReport, A::Error> {
        let (mut rest, mut unknown) = (Map::new(), Vec::new());
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "missing" => {
                    let none = map.next_value_seed(List { each: &mut *self.each, left: self.left })?;
                    rest.insert(key, none);
                }
                // Of these there may be many, too.
                "unknown" => unknown = map.next_value()?,
                _ => drop(rest.insert(key, map.next_value()?)),
            }
        }
        let rest = serde_json::from_value(Value::Object(rest));
        let report: PromoteReport = rest.map_err(|error| serde::de::Error::custom(format!("not a report: {error}")))?;
        Ok(PromoteReport { unknown, ..report })
    }
}

/// Its list, of which nothing is kept.
struct List<'a> {
    each: &'a mut dyn FnMut(MissingWrite),
    left: &'a Cell<u64>,
}

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of missing writes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let others = self.left.replace(REPORT_ENTRY_BYTES_MAX);
        while let Some(write) = list.next_element()? {
            (self.each)(write);
            self.left.set(REPORT_ENTRY_BYTES_MAX);
        }
        self.left.set(others);
        Ok(Value::Array(Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::control::Answer;
    use crate::cluster::losses::{Entry, Missing, MissingWrites};
    use crate::core::ids::{Seq, SeqRange, Volume};
    use crate::core::op::Op;

    fn report(count: u64) -> PromoteReport {
        let entry = |seq| Entry {
            seq: Seq(seq),
            offset: seq << 9,
            length: 512,
            time_ns: seq,
            volume: Volume(0),
            op: Op::Write,
            state: Missing::Queued,
        };
        let missing = MissingWrites::new(vec!["db".into()], (1..=count).map(entry).collect());
        PromoteReport {
            group: "orders".into(),
            missing,
            missing_bytes: count << 9,
            unknown: (0..count).map(|at| SeqRange { first: Seq(at), last: Seq(at) }).collect(),
            ..PromoteReport::default()
        }
    }

    fn answer(report: &PromoteReport) -> Vec<u8> {
        Answer::promoted(report).pieces().flatten().collect()
    }

    /// Gives a few bytes at a time, as a socket does.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = out.len().min(1 + self.0.len() % 1009);
            self.0.read(&mut out[..count])
        }
    }

    #[test]
    fn a_report_is_read_as_it_comes_and_printed_as_it_was_said() {
        for count in [0, 1, 3000] {
            let said = report(count);
            let (mut got, mut out) = (Vec::new(), Vec::new());
            let reply = read(Slow(&answer(&said)), &mut |write| got.push(write), Some(&mut out)).expect("an answer");
            let Reply::Report(rest) = reply else { panic!("an error") };
            assert_eq!(MissingWrites::of(got).expect("sound"), said.missing);
            assert_eq!(*rest, PromoteReport { missing: MissingWrites::default(), ..said.clone() });
            let text = String::from_utf8(out).expect("text");
            assert_eq!(text, serde_json::to_string(&said).expect("plain data") + "\n");
        }
    }

    #[test]
    fn an_answer_that_is_cut_anywhere_is_no_answer() {
        let whole = answer(&report(3));
        for bytes in 0..whole.len() {
            let ended = read(&whole[..bytes], &mut |_| {}, Some(&mut Vec::new()));
            match ended {
                Err(NoReply::Nothing) if bytes == 0 => {}
                Err(NoReply::Cut) if bytes > 0 => {}
                _ => panic!("{bytes} bytes"),
            }
        }
        let refused: Vec<u8> = Answer::refused("use --force when").pieces().flatten().collect();
        let mut out = Vec::new();
        let reply = read(&refused[..], &mut |_| {}, Some(&mut out)).expect("an answer");
        assert!(matches!(reply, Reply::Error { exit: 3, .. }) && out.is_empty());
    }

    #[test]
    fn nothing_that_has_no_end_is_kept() {
        let head = br#"{"ok":{"group":"g","missing":["#;
        for (begin, filler) in [
            (&b"{\"ok\":{\"group\":\""[..], b'x'),
            (b"{\"ok\":{\"missing\":[{\"volume\":\"", b'x'),
            (&head[..], b' '),
            (b"", b' '),
        ] {
            let endless = begin.chain(io::repeat(filler));
            let ended = read(endless, &mut |_| {}, None);
            assert!(matches!(ended, Err(NoReply::Read(error)) if error.to_string().contains("longer than any")));
        }
    }

    #[test]
    fn what_is_no_answer_is_said_to_be_none() {
        for text in [
            "\n",
            "garbage\n",
            "{\"fine\":1}\n",
            "{\"ok\":true}\n",
            "{\"ok\":{\"group\":\"g\"}}\n",
            "{\"error\":\"no\"} x",
        ] {
            let ended = read(text.as_bytes(), &mut |_| {}, None);
            assert!(matches!(ended, Err(NoReply::Strange(_) | NoReply::Cut)), "{text}");
        }
    }
}
