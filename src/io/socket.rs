//! One connection: its queues, and the memory that the kernel sees of it.
//!
//! The vectors and headers of a receive or send in flight live here, boxed, so that they stay where the
//! kernel was told they are until the operation has ended.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};

use bytes::{Buf, Bytes};
use nix::libc;
use nix::sys::socket::SockaddrStorage;

use super::lease::{Lease, Sent};
use super::listen;
use super::plan::{AHEAD_BYTES_MAX, Hint, Plan, SEGMENTS_MAX};
use super::ring::{Kernel, Target};
use super::secure::Secure;
use super::tls::Connector;
use crate::core::asker::Asker;
use crate::core::ids::Conn;
use crate::core::rope::Rope;

/// Where a connection is in its life; only ever moves down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Connecting,
    Open,
    /// Sends what is queued, ends its side, throws away what still comes until the peer ends its own.
    Draining,
    /// Waits for its operations to end.
    Aborting,
    /// `Closed` was given.
    Gone,
}

pub struct Socket {
    pub conn: Conn,
    pub peer: String,
    /// Where it came from, by the listener's place in the list.
    pub listener: Option<usize>,
    pub phase: Phase,
    /// Why the connection ends.
    pub reason: String,
    /// When connecting or closing is given up, monotonic.
    pub deadline_ns: u64,
    /// A close waits for the peer to end its side, however long that takes.
    pub patient: bool,
    fd: Option<OwnedFd>,
    /// Bytes a second that it may send; a descriptor that comes later is told, too.
    rate: Option<u64>,
    pub target: Option<Target>,
    /// Addresses still to try, the next one last.
    pub addresses: Vec<SockaddrStorage>,
    /// The address that is being connected to.
    pub address: Option<Box<SockaddrStorage>>,
    pub connecting: bool,
    /// TLS begins with this as soon as it is connected.
    pub connector: Option<Box<Connector>>,
    /// Its TLS, from the beginning of the handshake on.
    pub secure: Option<Box<Secure>>,

    pub rx: Rope,
    pub hint: Hint,
    /// Bytes that may be received of what nobody has seen the head of, about.
    pub ahead: usize,
    pub plan: Plan,
    pub paused: bool,
    pub receiving: bool,
    /// The peer has ended its stream.
    pub ended: bool,
    receive_message: Box<Message>,

    /// The first parts are in flight while `sending`.
    pub queue: VecDeque<Bytes>,
    pub queued_bytes: usize,
    /// So many bytes of the queue, up to the last that may only be told under the lease.
    pub leased_bytes: usize,
    pub sending: bool,
    /// What is in flight as `sending` waits for room only.
    pub polling: bool,
    /// The queue could not be sent at once.
    pub delayed: bool,
    /// We have ended our stream.
    pub shut: bool,
    /// The peer has taken all of it, and is not waited for much longer.
    pub hurried: bool,
    send_message: Box<Message>,

    pub cancelled: bool,
    /// What it sends is in no hurry.
    pub bulk: bool,
    /// What has gone out of a long send is known before all of it has.
    pub counted: bool,
    pub dirty: bool,
}

/// Vectors of one send.
const VECTORS_MAX: usize = 256;
/// `SIOCOUTQNSD` of Linux (linux/sockios.h).
const SIOCOUTQNSD: libc::Ioctl = 0x894b;

/// A message header and the vectors that it points to.
struct Message {
    header: libc::msghdr,
    vectors: Vec<libc::iovec>,
}

impl Socket {
    pub fn new(conn: Conn, peer: String, phase: Phase) -> Socket {
        Socket {
            conn,
            peer,
            listener: None,
            phase,
            reason: String::new(),
            deadline_ns: u64::MAX,
            patient: false,
            fd: None,
            rate: None,
            target: None,
            addresses: Vec::new(),
            address: None,
            connecting: false,
            connector: None,
            secure: None,
            rx: Rope::new(),
            hint: Hint::default(),
            ahead: AHEAD_BYTES_MAX,
            plan: Plan::default(),
            paused: false,
            receiving: false,
            ended: false,
            receive_message: Box::new(Message::empty()),
            queue: VecDeque::new(),
            queued_bytes: 0,
            leased_bytes: 0,
            sending: false,
            polling: false,
            delayed: false,
            shut: false,
            hurried: false,
            send_message: Box::new(Message::empty()),
            cancelled: false,
            bulk: false,
            counted: false,
            dirty: false,
        }
    }

    /// Takes a descriptor and enters it with the ring.
    pub fn adopt(&mut self, fd: OwnedFd, kernel: &mut Kernel) {
        assert!(self.fd.is_none(), "a socket has one descriptor at a time");
        super::listen::tune(&fd);
        self.target = Some(kernel.register_file(fd.as_raw_fd()));
        self.fd = Some(fd);
        if self.rate.is_some() {
            self.limit_rate(self.rate);
        }
    }

    /// Closes the descriptor, if there is one. Nothing may be in flight on it.
    pub fn release(&mut self, kernel: &mut Kernel) {
        assert!(self.is_quiet(), "a descriptor is closed after its operations");
        if let Some(target) = self.target.take() {
            kernel.unregister_file(target);
        }
        self.fd = None;
    }

    /// Whether nothing is in flight.
    pub fn is_quiet(&self) -> bool {
        !self.receiving && !self.sending && !self.connecting
    }

    /// Whether the other end is closed, or is not going to send any more.
    pub fn peer_left(&self) -> bool {
        let Some(fd) = &self.fd else { return true };
        let mut asked = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
        // SAFETY: one entry, valid for the call, whose descriptor is open.
        let found = unsafe { libc::poll(&raw mut asked, 1, 0) };
        found > 0 && asked.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0
    }

    /// Bytes that wait in the kernel to be received; of TLS, of its records.
    pub fn waiting_bytes(&self) -> usize {
        let Some(fd) = &self.fd else { return 0 };
        let mut bytes: libc::c_int = 0;
        // SAFETY: the descriptor is open, and the kernel writes one integer, which lives through the call.
        let asked = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
        if asked == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
    }

    /// Whether everything that was sent has left this host's memory: a unix socket's peer has read it, another host's
    /// kernel has it, and the end of the stream too.
    pub fn has_arrived(&self) -> bool {
        self.fd.is_none() || self.ask(libc::TIOCOUTQ) == Some(0)
    }

    /// Bytes that the kernel has taken and not sent, as far as it says.
    pub fn unsent_bytes(&self) -> usize {
        self.ask(SIOCOUTQNSD).and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0)
    }

    /// What the kernel says of the socket.
    fn ask(&self, what: libc::Ioctl) -> Option<libc::c_int> {
        let fd = self.fd.as_ref()?;
        let mut answer: libc::c_int = 0;
        // SAFETY: the descriptor is open, and the kernel writes one integer, which lives through the call.
        let status = unsafe { libc::ioctl(fd.as_raw_fd(), what, &raw mut answer) };
        (status == 0).then_some(answer)
    }

    /// Has the kernel send at most so many bytes a second over TCP, from now on.
    pub fn limit_rate(&mut self, limit: Option<u64>) {
        self.rate = limit;
        self.set(libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, limit.unwrap_or(u64::MAX));
    }

    /// Has the kernel take nothing more for TCP while it has so many bytes that it could not send yet, about. Without it the
    /// kernel takes what its buffer has room for.
    pub fn keep_unsent_below(&self, bytes: u32) {
        self.set(libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, bytes);
    }

    /// Sets an option without which all goes on, less well. `T` is an integer of the width that the option has.
    fn set<T: Copy>(&self, level: libc::c_int, option: libc::c_int, value: T) {
        let Some(fd) = &self.fd else { return };
        let length = size_of_val(&value) as libc::socklen_t;
        // SAFETY: the descriptor is open, and the value lives through the call, which only reads it.
        let _ = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    }

    /// Who is at the other end of a unix socket.
    pub fn asker(&self) -> Asker {
        listen::asker(self.fd.as_ref())
    }

    /// Ends one or both directions of the stream.
    pub fn shutdown(&self, how: i32) {
        if let Some(fd) = &self.fd {
            // SAFETY: the descriptor is open, and no memory is named. A stream that has ended already is
            // no error here.
            unsafe { libc::shutdown(fd.as_raw_fd(), how) };
        }
    }

    /// Drops what was to be sent, but for what is in flight.
    pub fn drop_queue(&mut self) {
        if !self.sending {
            self.queue.clear();
            (self.queued_bytes, self.leased_bytes) = (0, 0);
        }
    }

    /// Takes `bytes` that have gone out off the queue.
    pub fn sent(&mut self, bytes: usize) {
        self.queued_bytes -= bytes;
        self.leased_bytes = self.leased_bytes.saturating_sub(bytes);
        if let Some(secure) = &mut self.secure {
            secure.plain_bytes = secure.plain_bytes.saturating_sub(bytes);
        }
        let mut left = bytes;
        while left > 0 {
            let front = self.queue.front_mut().expect("no more goes out than was queued");
            if front.len() > left {
                front.advance(left);
                break;
            }
            left -= front.len();
            self.queue.pop_front();
        }
    }

    /// Sends what the peer's buffer has room for, without waiting; whether that was everything.
    pub fn send_now(&mut self, parts_max: usize) -> bool {
        let message = self.describe_send(parts_max);
        let Some(fd) = &self.fd else { return false };
        // SAFETY: the descriptor is open; header and vectors live through the call, and so do the parts.
        let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        if let Ok(sent) = usize::try_from(sent) {
            self.sent(sent);
        }
        self.queue.is_empty()
    }

    /// As [`Socket::send_now`], unless the lease has ended.
    pub fn send_leased(&mut self, parts_max: usize, lease: &Lease) -> Sent {
        self.describe_send(parts_max);
        let Some(fd) = &self.fd else { return Sent::Failed(libc::EBADF) };
        // The vectors name parts of the queue, which stay through the call.
        let sent = lease.send(fd.as_raw_fd(), &mut self.send_message.vectors);
        if let Sent::Bytes(bytes) = sent {
            self.sent(bytes);
        }
        sent
    }

    /// Whether nothing of what was given to it, or of TLS, is left to be sent.
    pub fn is_drained(&self) -> bool {
        self.queue.is_empty() && self.secure.as_ref().is_none_or(|secure| secure.tls.pending().is_empty())
    }

    /// Sends the first `most` bytes of the queue, or as far as there is room, under the lease if there is one.
    pub fn send_plain(&mut self, most: usize, lease: Option<&Lease>) -> Sent {
        let mut left = most;
        let vectors = &mut self.send_message.vectors;
        vectors.clear();
        for part in self.queue.iter().take(VECTORS_MAX) {
            let bytes = part.len().min(left);
            vectors.push(libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: bytes });
            left -= bytes;
            if left == 0 {
                break;
            }
        }
        let sent = self.send_described(lease);
        if let Sent::Bytes(bytes) = sent {
            self.sent(bytes);
        }
        sent
    }

    /// Sends pending records of TLS, likewise.
    pub fn send_records(&mut self, lease: Option<&Lease>) -> Sent {
        let Some(secure) = &mut self.secure else { return Sent::Bytes(0) };
        let pending = secure.tls.pending();
        let vector = libc::iovec { iov_base: pending.as_ptr().cast_mut().cast(), iov_len: pending.len() };
        self.send_message.vectors.clear();
        self.send_message.vectors.push(vector);
        let sent = self.send_described(lease);
        if let (Sent::Bytes(bytes), Some(secure)) = (sent, &mut self.secure) {
            secure.tls.advance(bytes);
        }
        sent
    }

    /// Sends what the vectors name, which lives through the call, without waiting.
    fn send_described(&mut self, lease: Option<&Lease>) -> Sent {
        assert!(!self.sending, "the header of a send in flight is not touched");
        let Some(fd) = &self.fd else { return Sent::Failed(libc::EBADF) };
        if let Some(lease) = lease {
            return lease.send(fd.as_raw_fd(), &mut self.send_message.vectors);
        }
        let message = self.send_message.seal();
        // SAFETY: the descriptor is open; header, vectors and what they name live through the call.
        let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        match usize::try_from(sent) {
            Ok(bytes) => Sent::Bytes(bytes),
            Err(_) => Sent::Failed(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)),
        }
    }

    /// The header of a receive into the plan, or into the memory of TLS.
    pub fn describe_receive(&mut self) -> *mut libc::msghdr {
        assert!(!self.receiving, "the header of a receive in flight is not touched");
        if let Some(secure) = &mut self.secure {
            let (start, length) = secure.tls.room(self.ahead);
            self.receive_message.vectors.clear();
            self.receive_message.vectors.push(libc::iovec { iov_base: start.cast(), iov_len: length });
            return self.receive_message.seal();
        }
        self.plan.describe(&mut self.receive_message.vectors);
        debug_assert!(self.receive_message.vectors.len() <= SEGMENTS_MAX);
        self.receive_message.seal()
    }

    /// The header of a send of the first parts of the queue.
    pub fn describe_send(&mut self, parts_max: usize) -> *const libc::msghdr {
        assert!(!self.sending, "the header of a send in flight is not touched");
        let vectors = &mut self.send_message.vectors;
        vectors.clear();
        vectors.extend(
            self.queue
                .iter()
                .take(parts_max)
                .map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() }),
        );
        self.send_message.seal()
    }
}

impl Message {
    fn empty() -> Message {
        // SAFETY: a message header of zeroes is valid: no name, no vectors, no control data.
        Message { header: unsafe { std::mem::zeroed() }, vectors: Vec::new() }
    }

    /// Points the header at the vectors.
    fn seal(&mut self) -> *mut libc::msghdr {
        self.header.msg_iov = self.vectors.as_mut_ptr();
        self.header.msg_iovlen = self.vectors.len();
        &raw mut self.header
    }
}
