//! What a state is known by, and what an event is called in the trace.

use std::fmt::Write as _;
use std::hash::{Hash, Hasher};

use farshore::core::machine::DiskKind;
use xxhash_rust::xxh3::Xxh3Default;

use super::{Event, Host, Packet, World};
use crate::trace::Printed;

impl World {
    /// A digest of everything that decides what can happen from here.
    pub fn digest(&self) -> u64 {
        let mut hasher = Xxh3Default::new();
        let (primary, aux, dr) = (&self.primary, &self.aux, &self.dr);
        let under_way: Vec<Vec<u64>> = self.files.iter().map(|file| file.1.under_way().collect()).collect();
        let mut printed = Printed::default();
        write!(printed, "{primary:?}{aux:?}{dr:?}{:?}{:?}{:?}{under_way:?}", self.events, self.lines, self.dues)
            .expect("it is kept");
        hasher.update(&printed.text);
        self.now_ns.hash(&mut hasher);
        self.files.hash(&mut hasher);
        (self.starts, self.boots[Host::Primary as usize]).hash(&mut hasher);
        (self.promoted, self.asked, self.lost, self.answer).hash(&mut hasher);
        self.truth.hash(&mut hasher);
        hasher.finish()
    }
}

/// One line for the trace.
pub fn brief(event: &Event) -> String {
    match event {
        Event::Disk { file, kind, .. } => match kind {
            DiskKind::Write { offset, durable, .. } => format!("done: write {file:?} at {offset} durable={durable}"),
            DiskKind::Read { offset, .. } => format!("done: read {file:?} at {offset}"),
            DiskKind::Zero { offset, .. } => format!("done: zero {file:?} at {offset}"),
            DiskKind::Sync => format!("done: sync {file:?}"),
        },
        Event::Deliver { line, side, packet } => match packet {
            Packet::Link(message) => format!("line {line} to side {side}: {}", message.kind_name()),
            Packet::Write(_, offset, data, _) => format!("line {line}: table write of {} at {offset}", data.len()),
            Packet::Reply(ticket, Ok(bytes)) => {
                format!("line {line} to side {side}: answer {ticket} of {}", bytes.len())
            }
            other => format!("line {line} to side {side}: {other:?}"),
        },
        Event::Stored(..) => "the report is stored".into(),
        other => format!("{other:?}").chars().take(100).collect(),
    }
}
