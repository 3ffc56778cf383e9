//! Owns a stand-in for any other NBD server or shared file under the status table: it grants everybody, fences
//! nobody, and completes what it has begun, in any order. What keeps the old writer out there is the lease (I7).

use std::collections::BTreeMap;

use bytes::Bytes;
use farshore::auxiliary::machine::{Effect, File, Input, Kind};
use farshore::core::errno::Errno;
use farshore::core::ids::{Conn, Ticket};
use farshore::core::machine::{DiskKind, DiskOp};

pub struct Server {
    size: u64,
    next_ticket: u64,
    pending: BTreeMap<Ticket, (Conn, u64)>,
    /// Requests that have come and were not begun yet.
    held: BTreeMap<u64, (Conn, Input)>,
}

impl Server {
    pub fn new(size: u64) -> Server {
        Server { size, next_ticket: 1, pending: BTreeMap::new(), held: BTreeMap::new() }
    }

    /// Leaves a request for later; the number that names it.
    pub fn hold(&mut self, conn: Conn, input: Input) -> u64 {
        let number = self.held.last_key_value().map_or(1, |(last, _)| last + 1);
        self.held.insert(number, (conn, input));
        number
    }

    pub fn take_held(&mut self, number: u64) -> Option<Input> {
        self.held.remove(&number).map(|it| it.1)
    }

    /// Everything that was left for later.
    pub fn take_all_held(&mut self) -> Vec<Input> {
        std::mem::take(&mut self.held).into_values().map(|it| it.1).collect()
    }

    /// A connection ends: what was asked on it is done before.
    pub fn take_held_of(&mut self, conn: Conn) -> Vec<Input> {
        let (of, others) = std::mem::take(&mut self.held).into_iter().partition(|(_, it)| it.0 == conn);
        self.held = others;
        let of: BTreeMap<u64, (Conn, Input)> = of;
        of.into_values().map(|it| it.1).collect()
    }

    pub fn step(&mut self, input: Input, fx: &mut Vec<Effect>) {
        match input {
            Input::Open { conn, export, .. } => {
                fx.push(Effect::Granted { conn, export, size: self.size, read_only: false });
            }
            Input::Request { conn, cookie, kind } => {
                let ticket = Ticket(self.next_ticket);
                self.next_ticket += 1;
                self.pending.insert(ticket, (conn, cookie));
                let kind = match kind {
                    Kind::Read { offset, length } => DiskKind::Read { offset, length },
                    Kind::Write { offset, data, fua } => DiskKind::Write { offset, parts: vec![data], durable: fua },
                    Kind::Flush => DiskKind::Sync,
                };
                fx.push(Effect::Disk(DiskOp { ticket, file: File::Table, kind }));
            }
            Input::Disk { ticket, result } => {
                let (conn, cookie) = self.pending.remove(&ticket).expect("completed once");
                let result: Result<Bytes, Errno> = result.map_err(|_| Errno::Io);
                fx.push(Effect::Reply { conn, cookie, result });
            }
            Input::Stop => fx.push(Effect::Stopped),
            Input::Probe { .. } | Input::Closed { .. } | Input::Tick => {}
        }
    }
}
