//! What NBD clients ask of a primary: exports, reads past the machine, writes through it.
//!
//! Reads, block status and advice look at the backing store alone and never wait for an order; everything that changes
//! a volume is the machine's.

use super::{Asked, READ_TICKET, Shell};
use crate::core::allocation::Stretch;
use crate::core::errno::Errno;
use crate::core::ids::{Conn, Ticket, Volume};
use crate::core::machine::{DiskKind, IoFail};
use crate::io::Range;
use crate::limits::{BLOCK_BYTES, PAYLOAD_BYTES_MAX, STATUS_STRETCHES_MAX};
use crate::nbd::protocol::{REP_ERR_SHUTDOWN, REP_ERR_UNKNOWN};
use crate::nbd::session::{self, Export, Purpose, Refusal};
use crate::primary::machine::{File, Input, Kind, Req};

impl Shell {
    pub(super) fn on_asked(&mut self, conn: Conn, event: session::Event) -> anyhow::Result<()> {
        match event {
            session::Event::Resolve { name, purpose } => self.resolve(conn, &name, purpose),
            session::Event::List => {
                let description = self.description();
                let list: Vec<(String, String)> =
                    self.machine.volumes().iter().map(|(name, _)| (name.clone(), description.clone())).collect();
                self.nbd.listed(conn, &list);
            }
            session::Event::Request(request) => return self.request(conn, request),
            session::Event::Secure => unreachable!("the server begins TLS by itself"),
            session::Event::Disconnect => {
                self.exports.remove(&conn);
            }
        }
        Ok(())
    }

    fn resolve(&mut self, conn: Conn, name: &str, purpose: Purpose) {
        let volumes = self.machine.volumes();
        // The empty name is the default export: the only volume of a group that has one.
        let index = match name {
            "" if volumes.len() == 1 => Some(0),
            _ => volumes.iter().position(|(known, _)| known == name),
        };
        let Some(index) = index else {
            let names: Vec<&str> = volumes.iter().map(|(name, _)| name.as_str()).collect();
            let text = format!("there is no volume {name:?} here; there is {}", names.join(", "));
            return self.nbd.resolved(conn, Err(Refusal { code: REP_ERR_UNKNOWN, text }));
        };
        if !self.machine.readable() {
            let text = "this primary has been fenced: a newer epoch serves the group".to_string();
            return self.nbd.resolved(conn, Err(Refusal { code: REP_ERR_SHUTDOWN, text }));
        }
        if purpose != Purpose::Info {
            self.exports.insert(conn, Volume(u16::try_from(index).expect("at most VOLUMES_MAX volumes")));
        }
        let (name, size) = self.machine.volumes()[index].clone();
        let export = Export {
            name,
            description: self.description(),
            size,
            read_only: false,
            block_min: 1,
            block_preferred: u32::try_from(BLOCK_BYTES).expect("4096"),
            block_max: PAYLOAD_BYTES_MAX,
            multi_conn: true,
            trim: true,
            zeroes: true,
            fast_zero: true,
            cache: true,
            allocation: true,
            fua: true,
            flush: true,
        };
        self.nbd.resolved(conn, Ok(export));
    }

    fn request(&mut self, conn: Conn, request: session::Request) -> anyhow::Result<()> {
        let session::Request { cookie, kind } = request;
        let Some(volume) = self.exports.get(&conn).copied() else {
            self.nbd.reply(conn, cookie, Err(Errno::Inval));
            return Ok(());
        };
        let bytes = if let session::Kind::Write { data, .. } = &kind { data.len() as u64 } else { 0 };
        let number = self.requests.insert(Asked { conn, cookie, bytes });
        let kind = match kind {
            session::Kind::Read { offset, length } => {
                self.read(volume, number, offset, u64::from(length));
                return Ok(());
            }
            session::Kind::Write { offset, data, fua } => Kind::Write { offset, data, fua },
            session::Kind::Flush => Kind::Flush,
            session::Kind::Trim { offset, length, fua } => Kind::Trim { offset, length, fua },
            session::Kind::Zeroes { offset, length, fua, no_hole, fast } => {
                let file = self.opened.file(File::Volume(volume));
                if fast && !self.opened.backings.zeroes_fast(&self.reactor, file, offset, length, !no_hole) {
                    self.reply(Req(number), Err(Errno::NotSup));
                    return Ok(());
                }
                Kind::Zeroes { offset, length, fua, no_hole }
            }
            session::Kind::Cache { offset, length } => {
                let file = self.opened.file(File::Volume(volume));
                let ticket = Ticket(number | READ_TICKET);
                self.opened.backings.read_ahead(&mut self.reactor, file, ticket, offset, length);
                return Ok(());
            }
            session::Kind::Status { offset, length, one } => {
                let file = self.opened.file(File::Volume(volume));
                let most = if one { 1 } else { STATUS_STRETCHES_MAX };
                let ticket = Ticket(number | READ_TICKET);
                self.opened.backings.extents(&mut self.reactor, file, ticket, Range { offset, length, most });
                return Ok(());
            }
        };
        self.step(Input::Request { req: Req(number), volume, kind })
    }

    fn read(&mut self, volume: Volume, number: u64, offset: u64, length: u64) {
        if !self.machine.readable() {
            return self.reply_read(number, Err(Errno::Shutdown));
        }
        let file = self.opened.file(File::Volume(volume));
        let ticket = Ticket(number | READ_TICKET);
        self.opened.backings.disk(&mut self.reactor, file, ticket, DiskKind::Read { offset, length });
    }

    pub(super) fn read_done(&mut self, ticket: Ticket, result: Result<bytes::Bytes, IoFail>) {
        let number = ticket.0 & !READ_TICKET;
        let result = if self.machine.readable() {
            result.map_err(|fail| {
                tracing::error!("a read failed: {fail}");
                Errno::Io
            })
        } else {
            Err(Errno::Shutdown)
        };
        self.reply_read(number, result);
    }

    /// A write that was answered is never called a hole; one that is under way may still be seen as what was there
    /// before, as a read would see it.
    pub(super) fn status_done(&mut self, ticket: Ticket, result: Result<Vec<Stretch>, IoFail>) {
        let number = ticket.0 & !READ_TICKET;
        match result {
            Ok(stretches) if self.machine.readable() => {
                if let Some(asked) = self.requests.remove(number) {
                    self.nbd.status(asked.conn, asked.cookie, &stretches);
                }
            }
            Ok(_) => self.reply_read(number, Err(Errno::Shutdown)),
            Err(fail) => {
                tracing::error!("a block status failed: {fail}");
                self.reply_read(number, Err(Errno::Io));
            }
        }
    }

    fn description(&self) -> String {
        format!("volume of the farshore group {}", self.group)
    }

    fn reply_read(&mut self, number: u64, result: Result<bytes::Bytes, Errno>) {
        if let Some(asked) = self.requests.remove(number) {
            self.nbd.reply(asked.conn, asked.cookie, result);
        }
    }

    pub(super) fn reply(&mut self, req: Req, result: Result<(), Errno>) {
        let Some(asked) = self.requests.remove(req.0) else { return };
        // A stop is no verdict on a request: its connection ends without an answer, and a client that reconnects (the
        // kernel, QEMU) sends it again, where an error would go up to the filesystem. A fence is one.
        if result == Err(Errno::Shutdown) && self.machine.readable() {
            return;
        }
        if result.is_ok() && asked.bytes > 0 {
            self.acknowledged.0 += 1;
            self.acknowledged.1 += asked.bytes;
        }
        self.nbd.reply(asked.conn, asked.cookie, result.map(|()| bytes::Bytes::new()));
    }
}
