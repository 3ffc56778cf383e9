//! One connection's TLS: received records in, plaintext out; plaintext in, records to be sent out.
//!
//! ```text
//!   room ─► received ─► drive ─► held plaintext ─► front, consume
//!                         │
//!   encrypt, close ───────┴────► outgoing records ─► pending, advance
//! ```
//!
//! Knows no socket. The unbuffered interface of rustls is used, so that records stand in memory of ours, sized by what
//! the connection does, and are encrypted when they can be sent and not before.
//!
//! Invariants: I9 - before the handshake is done no more than [`TLS_HANDSHAKE_BYTES_MAX`] is kept, afterwards no more than
//! one receive and one unfinished record; a record that was made is sent before any that is made later.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use bytes::{Buf, Bytes};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, Error, ServerConfig};

use super::verify::{listed, names};
use super::{Paths, Said, TlsError, words};
use crate::limits::TLS_HANDSHAKE_BYTES_MAX;

/// Plaintext of the longest record (RFC 8446, section 5.1).
const RECORD_BYTES_MAX: usize = 16 << 10;
/// Plaintext that is made records at a time: what a socket takes at once, about.
const BATCH_BYTES: usize = 64 << 10;
/// What a record has beside its plaintext, at the most: head, number, type, tag (RFC 8446, 5.2; RFC 5288, 3).
const OVERHEAD_BYTES: usize = 64;
/// Types of records (RFC 8446, section 5.1).
const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
/// Smallest and largest piece of memory to receive records in.
const ROOM_BYTES_MIN: usize = 4 << 10;
const ROOM_BYTES_MAX: usize = 128 << 10;
/// Unfinished messages of an established connection, bytes: a record, or a message of the protocol itself in pieces.
const UNFINISHED_BYTES_MAX: usize = 80 << 10;

/// See the module.
pub struct Tls {
    side: Side,
    said: Said,
    paths: Paths,
    /// Received and not processed. The kernel is shown what lies behind it.
    incoming: Vec<u8>,
    /// Where the room begins that the kernel was shown.
    room_at: usize,
    /// Bytes of the last receive: what the next is sized by.
    last_bytes: usize,
    /// Plaintext nobody has taken yet, `taken` bytes of the first already gone.
    held: VecDeque<Vec<u8>>,
    taken: usize,
    held_bytes: usize,
    /// Records to be sent; `sent` of them are.
    outgoing: Vec<u8>,
    sent: usize,
    established: bool,
    peer_closed: bool,
    closed: bool,
}

enum Side {
    Server(Box<UnbufferedServerConnection>),
    Client(Box<UnbufferedClientConnection>),
}

/// What to do once writing is possible.
enum Write<'a> {
    Nothing,
    Bytes(&'a [u8]),
    CloseNotify,
}

/// What a step works on beside the connection itself.
struct Job<'a, 'w> {
    held: &'a mut VecDeque<Vec<u8>>,
    held_bytes: &'a mut usize,
    outgoing: &'a mut Vec<u8>,
    peer_closed: &'a mut bool,
    write: Write<'w>,
}

impl Tls {
    pub(super) fn server(config: Arc<ServerConfig>, said: Said, paths: Paths) -> Result<Tls, TlsError> {
        let made = UnbufferedServerConnection::new(config);
        let side = made.map(|made| Side::Server(Box::new(made))).map_err(|error| TlsError(error.to_string()))?;
        Ok(Tls::new(side, said, paths))
    }

    pub(super) fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        said: Said,
        paths: Paths,
    ) -> Result<Tls, TlsError> {
        let made = UnbufferedClientConnection::new(config, name);
        let side = made.map(|made| Side::Client(Box::new(made))).map_err(|error| TlsError(error.to_string()))?;
        Ok(Tls::new(side, said, paths))
    }

    fn new(side: Side, said: Said, paths: Paths) -> Tls {
        Tls {
            side,
            said,
            paths,
            incoming: Vec::new(),
            room_at: 0,
            last_bytes: 0,
            held: VecDeque::new(),
            taken: 0,
            held_bytes: 0,
            outgoing: Vec::new(),
            sent: 0,
            established: false,
            peer_closed: false,
            closed: false,
        }
    }

    /// Memory to receive into: it stays where it is until [`Tls::received`] is called, or the connection is dropped.
    /// `ahead`: bytes that may be received of what nobody has seen, about.
    pub fn room(&mut self, ahead: usize) -> (*mut u8, usize) {
        let most = if self.established { ahead.clamp(ROOM_BYTES_MIN, ROOM_BYTES_MAX) } else { ROOM_BYTES_MIN };
        let wanted = (self.last_bytes * 2).next_power_of_two().clamp(ROOM_BYTES_MIN, most);
        if self.incoming.is_empty() && self.incoming.capacity() > 4 * wanted {
            self.incoming = Vec::new();
        }
        if self.incoming.capacity() - self.incoming.len() < wanted {
            self.incoming.reserve_exact(wanted);
        }
        self.room_at = self.incoming.len();
        let room = self.incoming.spare_capacity_mut();
        let length = room.len().min(ROOM_BYTES_MAX);
        (room.as_mut_ptr().cast(), length)
    }

    /// The kernel has written `bytes` into the room.
    ///
    /// # Safety
    /// They were written into what the last [`Tls::room`] gave, and since then neither `room` nor `feed` was called,
    /// which alone may move it.
    pub unsafe fn received(&mut self, bytes: usize) {
        self.last_bytes = bytes;
        let (at, length) = (self.room_at, self.incoming.len());
        assert!(length <= at && at + bytes <= self.incoming.capacity(), "the kernel keeps to the room it was given");
        // SAFETY: both places are within the capacity, and the caller vouches that these bytes are written. What was
        // before them may have been processed meanwhile, and then they move up.
        unsafe {
            let base = self.incoming.as_mut_ptr();
            if length < at {
                std::ptr::copy(base.add(at), base.add(length), bytes);
            }
            self.incoming.set_len(length + bytes);
        }
    }

    /// Bytes that arrived elsewhere. Not while the room is shown to the kernel.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.incoming.extend_from_slice(bytes);
    }

    /// Processes what was received, and begins the handshake. An error is told to the peer by what is then pending.
    ///
    /// # Errors
    /// Why the connection is of no more use, in words.
    pub fn drive(&mut self) -> Result<(), String> {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Err(error) = self.run(Write::Nothing) {
            let said = self.said.lock().unwrap_or_else(PoisonError::into_inner).take();
            let text = words::failure(&error, said, &self.paths, self.established);
            self.gather_alert();
            return Err(text);
        }
        self.established |= !self.state().is_handshaking();
        let most = if self.established { UNFINISHED_BYTES_MAX } else { TLS_HANDSHAKE_BYTES_MAX };
        if self.incoming.len() > most {
            return Err("TLS: a message of the handshake that is too long".into());
        }
        Ok(())
    }

    /// Makes records of the front of a queue; how many bytes of it. `staging` is memory to join short parts in.
    ///
    /// # Errors
    /// Why nothing can be encrypted any more.
    pub fn encrypt(&mut self, queue: &mut VecDeque<Bytes>, staging: &mut Vec<u8>) -> Result<usize, String> {
        assert!(self.established && !self.closed, "plaintext is taken between the handshake and the end");
        let mut done = 0;
        while done < BATCH_BYTES {
            let (left, only) = (BATCH_BYTES - done, queue.len() == 1);
            let Some(front) = queue.front_mut() else { break };
            if front.len() >= RECORD_BYTES_MAX || only {
                let bytes = front.split_to(front.len().min(RECORD_BYTES_MAX).min(left));
                if front.is_empty() {
                    queue.pop_front();
                }
                self.write(&bytes)?;
                done += bytes.len();
                continue;
            }
            staging.clear();
            let whole = RECORD_BYTES_MAX.min(left);
            while staging.len() < whole
                && let Some(front) = queue.front_mut()
            {
                let bytes = front.len().min(whole - staging.len());
                staging.extend_from_slice(&front[..bytes]);
                front.advance(bytes);
                if front.is_empty() {
                    queue.pop_front();
                }
            }
            self.write(staging)?;
            done += staging.len();
        }
        Ok(done)
    }

    /// Ends our side of the stream: the peer is told that nothing was cut off. Once.
    pub fn close(&mut self) {
        if self.established && !std::mem::replace(&mut self.closed, true) {
            // Who cannot be told so any more will see a stream that was cut off, which is then true.
            let _ = self.run(Write::CloseNotify);
        }
    }

    /// Records to be sent.
    pub fn pending(&self) -> &[u8] {
        &self.outgoing[self.sent..]
    }

    /// So many bytes of the records have gone out.
    pub fn advance(&mut self, bytes: usize) {
        self.sent += bytes;
        assert!(self.sent <= self.outgoing.len(), "no more goes out than there is");
        if self.sent == self.outgoing.len() {
            self.sent = 0;
            self.outgoing.clear();
        }
    }

    /// Lends memory for records while nothing is pending: connections share it, so that an idle one has none.
    pub fn lend(&mut self, memory: Vec<u8>) {
        if self.outgoing.is_empty() && memory.capacity() > self.outgoing.capacity() {
            self.outgoing = memory;
            self.outgoing.clear();
        }
    }

    /// Gives the memory back, once everything has gone out.
    pub fn give_back(&mut self) -> Option<Vec<u8>> {
        self.pending().is_empty().then(|| std::mem::take(&mut self.outgoing)).filter(|memory| memory.capacity() > 0)
    }

    /// Keeps no more memory than what is pending needs, and gives the rest back: it may wait for long.
    pub fn settle(&mut self) -> Option<Vec<u8>> {
        if self.outgoing.capacity() < 2 * self.pending().len() + ROOM_BYTES_MIN {
            return None;
        }
        let fitting = self.pending().to_vec();
        self.sent = 0;
        Some(std::mem::replace(&mut self.outgoing, fitting))
    }

    /// Whether it is past the handshake.
    pub fn established(&self) -> bool {
        self.established
    }

    /// Whether our side of the stream was ended.
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// Whether the peer said that its stream ends here.
    pub fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Plaintext that waits, bytes.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// The first of the plaintext that waits.
    pub fn front(&self) -> Option<&[u8]> {
        self.held.front().map(|front| &front[self.taken..])
    }

    /// The first bytes of the front were taken.
    pub fn consume(&mut self, bytes: usize) {
        self.taken += bytes;
        self.held_bytes -= bytes;
        if self.held.front().is_some_and(|front| front.len() == self.taken) {
            self.held.pop_front();
            self.taken = 0;
        }
    }

    /// Drops the plaintext that waits.
    pub fn discard(&mut self) {
        self.held.clear();
        (self.taken, self.held_bytes) = (0, 0);
    }

    /// Whose certificate the peer has shown, for logs.
    pub fn peer(&self) -> Option<String> {
        let certificates = self.state().peer_certificates()?;
        Some(listed(&names(certificates.first()?)))
    }

    /// Why an end without a `close_notify` is one.
    pub fn cut_off(&self) -> &'static str {
        if self.established {
            "closed by the peer without a TLS close_notify: what it sent may have been cut off"
        } else {
            "closed by the peer during the TLS handshake"
        }
    }

    fn state(&self) -> &CommonState {
        match &self.side {
            Side::Server(connection) => connection,
            Side::Client(connection) => connection,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.run(Write::Bytes(bytes)).map_err(|error| words::failure(&error, None, &self.paths, self.established))
    }

    /// Goes on until more is needed from the peer; what is to be written is written on the way.
    fn run(&mut self, mut write: Write<'_>) -> Result<(), Error> {
        loop {
            let mut job = Job {
                held: &mut self.held,
                held_bytes: &mut self.held_bytes,
                outgoing: &mut self.outgoing,
                peer_closed: &mut self.peer_closed,
                write: std::mem::replace(&mut write, Write::Nothing),
            };
            let (discard, again) = match &mut self.side {
                Side::Server(connection) => job.step(connection.process_tls_records(&mut self.incoming)),
                Side::Client(connection) => job.step(connection.process_tls_records(&mut self.incoming)),
            };
            write = job.write;
            self.incoming.drain(..discard);
            if !again? {
                // A byte that was neither encrypted nor refused would be missing in the stream.
                return if matches!(write, Write::Bytes(_)) { Err(Error::EncryptError) } else { Ok(()) };
            }
        }
    }

    /// The alert that tells the peer what is wrong with it, if there is one, and what of the handshake precedes it.
    fn gather_alert(&mut self) {
        fn take<D>(status: UnbufferedStatus<'_, '_, D>, outgoing: &mut Vec<u8>) -> Option<u8> {
            let Ok(ConnectionState::EncodeTlsData(mut data)) = status.state else { return None };
            let start = outgoing.len();
            append(outgoing, 0, |room| encoded(data.encode(room)));
            outgoing.get(start).copied()
        }
        loop {
            let (incoming, outgoing) = (&mut self.incoming, &mut self.outgoing);
            let kind = match &mut self.side {
                Side::Server(connection) => take(connection.process_tls_records(incoming), outgoing),
                Side::Client(connection) => take(connection.process_tls_records(incoming), outgoing),
            };
            // After an alert the library must not be asked again; encrypted it cannot be told from anything else.
            if !kind.is_some_and(|kind| [CHANGE_CIPHER_SPEC, HANDSHAKE].contains(&kind)) {
                return;
            }
        }
    }
}

impl Job<'_, '_> {
    /// Takes one state; how much was read, and whether there is more to do.
    fn step<D>(&mut self, status: UnbufferedStatus<'_, '_, D>) -> (usize, Result<bool, Error>) {
        let discard = status.discard;
        let state = match status.state {
            Ok(state) => state,
            Err(error) => return (discard, Err(error)),
        };
        let again = match state {
            ConnectionState::EncodeTlsData(mut data) => {
                append(self.outgoing, 0, |room| encoded(data.encode(room)));
                Ok(true)
            }
            // What is to be transmitted stands in order in `outgoing`.
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                Ok(true)
            }
            ConnectionState::ReadTraffic(mut traffic) => self.read(&mut traffic),
            ConnectionState::PeerClosed => {
                *self.peer_closed = true;
                Ok(true)
            }
            ConnectionState::WriteTraffic(mut traffic) => {
                match std::mem::replace(&mut self.write, Write::Nothing) {
                    Write::Nothing => {}
                    Write::Bytes(bytes) => {
                        let room = bytes.len() + OVERHEAD_BYTES;
                        if !append(self.outgoing, room, |room| needs(traffic.encrypt(bytes, room))) {
                            return (discard, Err(Error::EncryptError));
                        }
                    }
                    Write::CloseNotify => {
                        append(self.outgoing, OVERHEAD_BYTES, |room| needs(traffic.queue_close_notify(room)));
                    }
                }
                Ok(false)
            }
            // Early data is never offered, so none is read.
            _ => Ok(false),
        };
        (discard, again)
    }

    fn read<D>(&mut self, traffic: &mut rustls::unbuffered::ReadTraffic<'_, '_, D>) -> Result<bool, Error> {
        while let Some(record) = traffic.next_record() {
            let payload = record?.payload;
            if !payload.is_empty() {
                *self.held_bytes += payload.len();
                self.held.push_back(payload.to_vec());
            }
        }
        Ok(true)
    }
}

/// Appends what `make` writes, which says how much room it needs if there is too little; false when it makes nothing,
/// as a connection whose keys are used up.
fn append(out: &mut Vec<u8>, room: usize, mut make: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>) -> bool {
    let start = out.len();
    out.resize(start + room, 0);
    let made = match make(&mut out[start..]) {
        Err(Some(required)) => {
            out.resize(start + required, 0);
            make(&mut out[start..])
        }
        other => other,
    };
    out.truncate(start + made.unwrap_or(0));
    made.is_ok()
}

fn encoded(made: Result<usize, EncodeError>) -> Result<usize, Option<usize>> {
    match made {
        Err(EncodeError::InsufficientSize(size)) => Err(Some(size.required_size)),
        other => other.map_err(|_| None),
    }
}

fn needs(made: Result<usize, EncryptError>) -> Result<usize, Option<usize>> {
    match made {
        Err(EncryptError::InsufficientSize(size)) => Err(Some(size.required_size)),
        other => other.map_err(|_| None),
    }
}
