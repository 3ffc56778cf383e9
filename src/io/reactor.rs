//! The reactor: skeleton of the API while it is being written.
#![allow(unused_variables, clippy::unimplemented)]

use std::io;
use std::path::Path;

use bytes::Bytes;

use super::open::OpenOptions;
use crate::core::address::Address;
use crate::core::ids::{Conn, Ticket};
use crate::core::machine::{DiskKind, DiskResult, IoFail, Now, ReadAt};
use crate::core::rope::Rope;

/// Names an open file of a reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub usize);

/// What happened.
#[derive(Debug)]
pub enum Event {
    Accepted {
        listener: usize,
        conn: Conn,
        peer: String,
    },
    Connected {
        conn: Conn,
    },
    /// There are new bytes in `reactor.rx(conn)`.
    Received {
        conn: Conn,
    },
    /// The send queue became empty.
    Sent {
        conn: Conn,
    },
    /// Exactly once for every connection that was accepted or connected, also after `close`.
    /// What was received and not taken can be read until the next turn.
    Closed {
        conn: Conn,
        reason: String,
    },
    Disk {
        file: FileId,
        ticket: Ticket,
        result: DiskResult,
    },
    /// SIGTERM, SIGINT or a [`Stopper`].
    Stop,
}

#[derive(Clone, Debug)]
pub struct ReactorOptions {
    /// Most registered memory, bytes.
    pub arena_bytes: usize,
    /// Turn SIGTERM and SIGINT into `Event::Stop` (blocks them for this thread and those it starts).
    pub signals: bool,
    /// Most connections at a time; more are closed as they come.
    pub connections_max: usize,
}

impl Default for ReactorOptions {
    fn default() -> ReactorOptions {
        ReactorOptions { arena_bytes: 256 << 20, signals: false, connections_max: 1024 }
    }
}

/// Makes a reactor give `Event::Stop`, from any thread.
#[derive(Clone, Debug)]
pub struct Stopper;
impl Stopper {
    pub fn stop(&self) {
        unimplemented!()
    }
}

/// Reads an open file without the reactor (recovery, start-up only).
pub struct FileReader;
impl ReadAt for FileReader {
    fn size(&self) -> u64 {
        unimplemented!()
    }
    fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, IoFail> {
        unimplemented!()
    }
}

pub struct Reactor;

impl Reactor {
    pub fn new(options: ReactorOptions) -> io::Result<Reactor> {
        unimplemented!()
    }
    pub fn now(&self) -> Now {
        super::clock::now()
    }
    pub fn stopper(&self) -> Stopper {
        unimplemented!()
    }
    /// A unix socket left by a dead process is replaced; one that answers is "in use".
    pub fn listen(&mut self, address: &Address) -> io::Result<usize> {
        unimplemented!()
    }
    pub fn stop_listening(&mut self, listener: usize) {
        unimplemented!()
    }
    /// Where a listener really is (the port that was chosen for port 0).
    pub fn listen_address(&self, listener: usize) -> Address {
        unimplemented!()
    }
    pub fn next_conn(&mut self) -> Conn {
        unimplemented!()
    }
    /// The result comes as `Connected` or `Closed`.
    pub fn connect(&mut self, conn: Conn, address: &Address) {
        unimplemented!()
    }
    /// Received bytes not yet taken. Empty for an unknown connection.
    pub fn rx(&mut self, conn: Conn) -> &mut Rope {
        unimplemented!()
    }
    /// Expects messages of `head` bytes followed by `body` bytes, so that bodies land page-aligned; body 0 = no expectation.
    pub fn hint(&mut self, conn: Conn, head: usize, body: usize) {
        unimplemented!()
    }
    /// No receive while paused.
    pub fn pause(&mut self, conn: Conn, paused: bool) {
        unimplemented!()
    }
    /// Queues bytes; they go out at the next turn.
    pub fn send(&mut self, conn: Conn, bytes: Bytes) {
        unimplemented!()
    }
    pub fn queued_bytes(&self, conn: Conn) -> usize {
        unimplemented!()
    }
    /// Closes after what is queued has been sent (bounded time).
    pub fn close(&mut self, conn: Conn, reason: &str) {
        unimplemented!()
    }
    /// Closes at once.
    pub fn abort(&mut self, conn: Conn, reason: &str) {
        unimplemented!()
    }
    pub fn open(&mut self, options: &OpenOptions) -> Result<FileId, IoFail> {
        unimplemented!()
    }
    /// Closes a file once its operations are done.
    pub fn close_file(&mut self, file: FileId) {
        unimplemented!()
    }
    pub fn file_size(&self, file: FileId) -> u64 {
        unimplemented!()
    }
    pub fn file_path(&self, file: FileId) -> &Path {
        unimplemented!()
    }
    pub fn file_is_direct(&self, file: FileId) -> bool {
        unimplemented!()
    }
    /// `(offset, length)` of what is not a hole; the whole of a block device.
    pub fn allocated_ranges(&self, file: FileId) -> Result<Vec<(u64, u64)>, IoFail> {
        unimplemented!()
    }
    /// Blocks; start-up only.
    pub fn read_sync(&self, file: FileId, offset: u64, length: usize) -> Result<Bytes, IoFail> {
        unimplemented!()
    }
    /// Blocks until durable; start-up only. Offset and length are multiples of 4096 on a direct file.
    pub fn write_sync(&self, file: FileId, offset: u64, bytes: &[u8]) -> Result<(), IoFail> {
        unimplemented!()
    }
    /// A reader for recovery code, independent of the reactor.
    pub fn reader(&self, file: FileId) -> Result<FileReader, IoFail> {
        unimplemented!()
    }
    pub fn disk(&mut self, file: FileId, ticket: Ticket, kind: DiskKind) {
        unimplemented!()
    }
    /// Submits, waits until something happened or the deadline (monotonic ns; `None`: forever), collects.
    pub fn turn(&mut self, deadline_ns: Option<u64>, events: &mut Vec<Event>) -> io::Result<()> {
        unimplemented!()
    }
}
