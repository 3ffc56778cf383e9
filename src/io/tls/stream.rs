//! One connection's TLS: received records in, plaintext out; plaintext in, records to be sent out.
//!
//! ```text
//!   room ─► received ─► drive ─► held plaintext ─► front, consume
//!                         │
//!   encrypt, close ───────┴────► outgoing records ─► pending, advance
//! ```
//!
//! Knows no socket, and leaves what records are to an [`Engine`]: that of certificates, or that of shared keys.
//!
//! Invariants: I9 - before the handshake is done no more than [`TLS_HANDSHAKE_BYTES_MAX`] is kept, afterwards no more than
//! one receive and one unfinished record; a record that was made is sent before any that is made later.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use crate::limits::TLS_HANDSHAKE_BYTES_MAX;

/// Plaintext of the longest record (RFC 8446, section 5.1).
pub const RECORD_BYTES_MAX: usize = 16 << 10;
/// Plaintext that is made records at a time: what a socket takes at once, about.
pub const BATCH_BYTES: usize = 64 << 10;
/// What a record has beside its plaintext, at the most: head, number, type, tag (RFC 8446, 5.2; RFC 5288, 3).
pub const OVERHEAD_BYTES: usize = 64;
/// Smallest and largest piece of memory to receive records in.
const ROOM_BYTES_MIN: usize = 4 << 10;
const ROOM_BYTES_MAX: usize = 128 << 10;
/// Unfinished messages of an established connection, bytes: a record, or a message of the protocol itself in pieces.
const UNFINISHED_BYTES_MAX: usize = 80 << 10;

/// See the module.
pub struct Tls {
    engine: Box<dyn Engine>,
    flow: Flow,
    /// Where the room begins that the kernel was shown.
    room_at: usize,
    /// Bytes of the last receive: what the next is sized by.
    last_bytes: usize,
    /// Of the first of the held plaintext so many bytes are gone already.
    taken: usize,
    /// So many bytes of the records to be sent are.
    sent: usize,
    closed: bool,
}

/// What makes records, and reads them.
pub trait Engine: Send {
    /// Processes what was received, as far as it goes. After an error, what tells the peer of it is outgoing.
    ///
    /// # Errors
    /// Why the connection is of no more use, in words.
    fn read(&mut self, flow: &mut Flow) -> Result<(), String>;

    /// Appends a record of this plaintext, of at most [`RECORD_BYTES_MAX`] bytes. What was received stays where it is.
    ///
    /// # Errors
    /// Why nothing can be encrypted any more.
    fn write(&mut self, flow: &mut Flow, bytes: &[u8]) -> Result<(), String>;

    /// Appends what ends our side of the stream.
    fn close(&mut self, flow: &mut Flow);

    fn is_handshaking(&self) -> bool;

    /// Who the peer has shown to be, for logs.
    fn peer(&self) -> Option<String>;

    /// Why an end during the handshake is one.
    fn cut_off(&self) -> &'static str {
        "closed by the peer during the TLS handshake"
    }
}

/// What goes through an engine.
#[derive(Default)]
pub struct Flow {
    /// Received and not processed. The kernel is shown what lies behind it.
    pub incoming: Vec<u8>,
    /// Records to be sent, and some that were.
    pub outgoing: Vec<u8>,
    /// Plaintext nobody has taken yet.
    held: VecDeque<Vec<u8>>,
    held_bytes: usize,
    /// The handshake is done, and was so before what is received now.
    pub established: bool,
    pub peer_closed: bool,
}

impl Flow {
    /// Keeps plaintext until it is taken.
    pub fn hold(&mut self, plain: Vec<u8>) {
        self.held_bytes += plain.len();
        self.held.push_back(plain);
    }
}

impl Tls {
    pub(super) fn new(engine: impl Engine + 'static) -> Tls {
        let engine = Box::new(engine);
        Tls { engine, flow: Flow::default(), room_at: 0, last_bytes: 0, taken: 0, sent: 0, closed: false }
    }

    /// Memory to receive into: it stays where it is until [`Tls::received`] is called, or the connection is dropped.
    /// `ahead`: bytes that may be received of what nobody has seen, about.
    pub fn room(&mut self, ahead: usize) -> (*mut u8, usize) {
        let most = if self.flow.established { ahead.clamp(ROOM_BYTES_MIN, ROOM_BYTES_MAX) } else { ROOM_BYTES_MIN };
        let wanted = (self.last_bytes * 2).next_power_of_two().clamp(ROOM_BYTES_MIN, most);
        if self.flow.incoming.is_empty() && self.flow.incoming.capacity() > 4 * wanted {
            self.flow.incoming = Vec::new();
        }
        if self.flow.incoming.capacity() - self.flow.incoming.len() < wanted {
            self.flow.incoming.reserve_exact(wanted);
        }
        self.room_at = self.flow.incoming.len();
        let room = self.flow.incoming.spare_capacity_mut();
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
        let (at, length) = (self.room_at, self.flow.incoming.len());
        assert!(
            length <= at && at + bytes <= self.flow.incoming.capacity(),
            "the kernel keeps to the room it was given"
        );
        // SAFETY: both places are within the capacity, and the caller vouches that these bytes are written. What was
        // before them may have been processed meanwhile, and then they move up.
        unsafe {
            let base = self.flow.incoming.as_mut_ptr();
            if length < at {
                std::ptr::copy(base.add(at), base.add(length), bytes);
            }
            self.flow.incoming.set_len(length + bytes);
        }
    }

    /// Bytes that arrived elsewhere. Not while the room is shown to the kernel.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.flow.incoming.extend_from_slice(bytes);
    }

    /// Processes what was received, and begins the handshake. An error is told to the peer by what is then pending.
    ///
    /// # Errors
    /// Why the connection is of no more use, in words.
    pub fn drive(&mut self) -> Result<(), String> {
        self.engine.read(&mut self.flow)?;
        self.flow.established |= !self.engine.is_handshaking();
        let most = if self.flow.established { UNFINISHED_BYTES_MAX } else { TLS_HANDSHAKE_BYTES_MAX };
        if self.flow.incoming.len() > most {
            return Err("TLS: a message of the handshake that is too long".into());
        }
        Ok(())
    }

    /// Makes records of the front of a queue; how many bytes of it. `staging` is memory to join short parts in.
    ///
    /// # Errors
    /// Why nothing can be encrypted any more.
    pub fn encrypt(&mut self, queue: &mut VecDeque<Bytes>, staging: &mut Vec<u8>) -> Result<usize, String> {
        assert!(self.flow.established && !self.closed, "plaintext is taken between the handshake and the end");
        let mut done = 0;
        while done < BATCH_BYTES {
            let (left, only) = (BATCH_BYTES - done, queue.len() == 1);
            let Some(front) = queue.front_mut() else { break };
            if front.len() >= RECORD_BYTES_MAX || only {
                let bytes = front.split_to(front.len().min(RECORD_BYTES_MAX).min(left));
                if front.is_empty() {
                    queue.pop_front();
                }
                self.engine.write(&mut self.flow, &bytes)?;
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
            self.engine.write(&mut self.flow, staging)?;
            done += staging.len();
        }
        Ok(done)
    }

    /// Ends our side of the stream: the peer is told that nothing was cut off. Once.
    pub fn close(&mut self) {
        if self.flow.established && !std::mem::replace(&mut self.closed, true) {
            self.engine.close(&mut self.flow);
        }
    }

    /// Records to be sent.
    pub fn pending(&self) -> &[u8] {
        &self.flow.outgoing[self.sent..]
    }

    /// So many bytes of the records have gone out.
    pub fn advance(&mut self, bytes: usize) {
        self.sent += bytes;
        assert!(self.sent <= self.flow.outgoing.len(), "no more goes out than there is");
        if self.sent == self.flow.outgoing.len() {
            self.sent = 0;
            self.flow.outgoing.clear();
        }
    }

    /// Lends memory for records while nothing is pending: connections share it, so that an idle one has none.
    pub fn lend(&mut self, memory: Vec<u8>) {
        if self.flow.outgoing.is_empty() && memory.capacity() > self.flow.outgoing.capacity() {
            self.flow.outgoing = memory;
            self.flow.outgoing.clear();
        }
    }

    /// Gives the memory back, once everything has gone out.
    pub fn give_back(&mut self) -> Option<Vec<u8>> {
        self.pending()
            .is_empty()
            .then(|| std::mem::take(&mut self.flow.outgoing))
            .filter(|memory| memory.capacity() > 0)
    }

    /// Keeps no more memory than what is pending needs, and gives the rest back: it may wait for long.
    pub fn settle(&mut self) -> Option<Vec<u8>> {
        if self.flow.outgoing.capacity() < 2 * self.pending().len() + ROOM_BYTES_MIN {
            return None;
        }
        let fitting = self.pending().to_vec();
        self.sent = 0;
        Some(std::mem::replace(&mut self.flow.outgoing, fitting))
    }

    /// Whether it is past the handshake.
    pub fn established(&self) -> bool {
        self.flow.established
    }

    /// Whether our side of the stream was ended.
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// Whether the peer said that its stream ends here.
    pub fn peer_closed(&self) -> bool {
        self.flow.peer_closed
    }

    /// Plaintext that waits, bytes.
    pub fn held_bytes(&self) -> usize {
        self.flow.held_bytes
    }

    /// The first of the plaintext that waits.
    pub fn front(&self) -> Option<&[u8]> {
        self.flow.held.front().map(|front| &front[self.taken..])
    }

    /// The first bytes of the front were taken.
    pub fn consume(&mut self, bytes: usize) {
        self.taken += bytes;
        self.flow.held_bytes -= bytes;
        if self.flow.held.front().is_some_and(|front| front.len() == self.taken) {
            self.flow.held.pop_front();
            self.taken = 0;
        }
    }

    /// Drops the plaintext that waits.
    pub fn discard(&mut self) {
        self.flow.held.clear();
        (self.taken, self.flow.held_bytes) = (0, 0);
    }

    /// Who the peer has shown to be, for logs.
    pub fn peer(&self) -> Option<String> {
        self.engine.peer()
    }

    /// Why an end without a `close_notify` is one.
    pub fn cut_off(&self) -> &'static str {
        if self.flow.established {
            "closed by the peer without a TLS close_notify: what it sent may have been cut off"
        } else {
            self.engine.cut_off()
        }
    }
}
