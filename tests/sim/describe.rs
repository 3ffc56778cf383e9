//! Owns the words of the history that a failing seed prints: inputs and effects without their payloads.

use std::fmt::Debug;

use bytes::Bytes;
use farshore::core::machine::{DiskKind, DiskOp, DiskResult};
use farshore::format::record::OrderRecord;
use farshore::format::wire::Message;
use farshore::{auxiliary, dr, primary};

fn bytes(data: &Bytes) -> String {
    format!("{} bytes", data.len())
}

fn result(result: &DiskResult) -> String {
    match result {
        Ok(data) => format!("ok, {}", bytes(data)),
        Err(error) => format!("failed: {error}"),
    }
}

pub fn record(r: &OrderRecord) -> String {
    format!("{}:{}@{}/{}+{}", r.seq, r.op.word(), r.volume, r.offset, r.length)
}

fn disk<F: Debug>(op: &DiskOp<F>) -> String {
    let what = match &op.kind {
        DiskKind::Read { offset, length } => format!("read {offset}+{length}"),
        DiskKind::Write { offset, parts, durable } => {
            let length: usize = parts.iter().map(Bytes::len).sum();
            format!("write {offset}+{length}{}", if *durable { " durable" } else { "" })
        }
        DiskKind::Zero { offset, length, durable, .. } => {
            format!("zero {offset}+{length}{}", if *durable { " durable" } else { "" })
        }
        DiskKind::Sync => "sync".into(),
    };
    format!("disk #{} {:?} {what}", op.ticket, op.file)
}

fn message(message: &Message) -> String {
    match message {
        Message::Orders(records) => {
            format!("Orders [{}]", records.iter().map(record).collect::<Vec<_>>().join(" "))
        }
        Message::Payload { record: r, .. } => format!("Payload {}", record(r)),
        Message::Chunk { index, record: r, .. } => format!("Chunk {index} of {}", record(r)),
        other => format!("{other:?}"),
    }
}

pub fn primary_input(input: &primary::machine::Input) -> String {
    use primary::machine::{Input, Kind};
    match input {
        Input::Request { req, volume, kind } => {
            let what = match kind {
                Kind::Write { offset, data, fua } => format!("write {offset}+{} fua {fua}", data.len()),
                other => format!("{other:?}"),
            };
            format!("request {} volume {volume}: {what}", req.0)
        }
        Input::Disk { ticket, result: r } => format!("disk #{ticket} {}", result(r)),
        Input::AuxDone { ticket, result: r } => format!("table #{ticket} {}", result(r)),
        Input::DrMessage { conn, message: m } => format!("conn {conn}: {}", message(m)),
        other => format!("{other:?}"),
    }
}

pub fn primary_effect(effect: &primary::machine::Effect) -> String {
    use primary::machine::Effect;
    match effect {
        Effect::Disk(op) => disk(op),
        Effect::AuxWrite { ticket, offset, parts, fua } => {
            let length: usize = parts.iter().map(Bytes::len).sum();
            format!("table #{ticket} write {offset}+{length} fua {fua}")
        }
        Effect::DrSend { conn, message: m } => format!("conn {conn}: {}", message(m)),
        other => format!("{other:?}"),
    }
}

pub fn dr_input(input: &dr::machine::Input) -> String {
    use dr::machine::Input;
    match input {
        Input::Message { conn, message: m } => format!("conn {conn}: {}", message(m)),
        Input::Disk { ticket, result: r } => format!("disk #{ticket} {}", result(r)),
        Input::AuxDone { ticket, result: r } => format!("table #{ticket} {}", result(r)),
        other => format!("{other:?}"),
    }
}

pub fn dr_effect(effect: &dr::machine::Effect) -> String {
    use dr::machine::Effect;
    match effect {
        Effect::Send { conn, message: m } => format!("conn {conn}: {}", message(m)),
        Effect::Disk(op) => disk(op),
        other => format!("{other:?}"),
    }
}

pub fn aux_input(input: &auxiliary::machine::Input) -> String {
    use auxiliary::machine::{Input, Kind};
    match input {
        Input::Request { conn, cookie, kind: Kind::Write { offset, data, fua } } => {
            format!("conn {conn} #{cookie}: write {offset}+{} fua {fua}", data.len())
        }
        Input::Disk { ticket, result: r } => format!("disk #{ticket} {}", result(r)),
        other => format!("{other:?}"),
    }
}

pub fn aux_effect(effect: &auxiliary::machine::Effect) -> String {
    use auxiliary::machine::Effect;
    match effect {
        Effect::Disk(op) => disk(op),
        Effect::Reply { conn, cookie, result } => {
            format!("conn {conn} #{cookie} {:?}", result.as_ref().map(Bytes::len))
        }
        other => format!("{other:?}"),
    }
}

pub fn primary_is_quiet(input: &primary::machine::Input) -> bool {
    use primary::machine::Input;
    matches!(input, Input::Tick | Input::EndOfTurn)
}

pub fn dr_is_quiet(input: &dr::machine::Input) -> bool {
    matches!(input, dr::machine::Input::Tick)
}

pub fn aux_is_quiet(input: &auxiliary::machine::Input) -> bool {
    matches!(input, auxiliary::machine::Input::Tick)
}
