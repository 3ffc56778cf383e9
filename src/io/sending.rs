//! How the queue of a connection goes out: at once as far as there is room, the rest through the ring; under a lease only
//! at once, and waiting for room in between.

use std::io;

use io_uring::opcode;
use nix::libc;

use super::lease::{Lease, Sent};
use super::ring::{Kernel, Kind, Token, on};
use super::socket::Socket;

/// Parts of one send.
const SEND_PARTS_MAX: usize = 256;

/// What became of a queue that was to be sent under a lease.
pub enum Outcome {
    Going,
    Held,
    Failed(io::Error),
}

/// Sends the front of the queue unless a send is in flight: in the thread, for the completion of a send through the ring
/// would cost the turn a second system call. What could not be sent so, and why, is for the ring to find out.
pub fn send(socket: &mut Socket, kernel: &mut Kernel) -> io::Result<()> {
    if socket.sending || socket.queue.is_empty() {
        return Ok(());
    }
    if socket.send_now(SEND_PARTS_MAX) {
        return Ok(());
    }
    let target = socket.target.expect("an open socket has a descriptor");
    // One completion for all of it, or one each time that the peer has made room.
    let flags = libc::MSG_NOSIGNAL | if socket.counted { 0 } else { libc::MSG_WAITALL };
    let entry = if socket.queue.len() == 1 {
        let part = &socket.queue[0];
        let length = u32::try_from(part.len()).unwrap_or(1 << 30);
        on!(target, |fd| opcode::Send::new(fd, part.as_ptr(), length).flags(flags).build())
    } else {
        let message = socket.describe_send(SEND_PARTS_MAX);
        on!(target, |fd| opcode::SendMsg::new(fd, message).flags(flags as u32).build())
    };
    (socket.sending, socket.delayed) = (true, true);
    // SAFETY: the parts stay in the queue, and the header and vectors in the socket, until `sending` is
    // false; `Bytes` are never written.
    unsafe { kernel.push(entry, Token::new(Kind::Send, socket.conn.0)) }
}

/// Sends a queue with leased bytes in it from this thread: what the ring was given it would send whenever there is
/// room for it, however late. Where there is none, room is waited for.
pub fn send_leased(socket: &mut Socket, lease: &Lease, kernel: &mut Kernel) -> io::Result<Outcome> {
    while !socket.sending && !socket.queue.is_empty() {
        match socket.send_leased(SEND_PARTS_MAX, lease) {
            Sent::Bytes(_) | Sent::Failed(libc::EINTR) => {}
            Sent::Shut => {
                socket.delayed = true;
                return Ok(Outcome::Held);
            }
            Sent::Failed(libc::EAGAIN) => wait_for_room(socket, kernel)?,
            Sent::Failed(errno) => return Ok(Outcome::Failed(io::Error::from_raw_os_error(errno))),
        }
    }
    Ok(Outcome::Going)
}

/// Waits until the peer's buffer has room for more.
pub fn wait_for_room(socket: &mut Socket, kernel: &mut Kernel) -> io::Result<()> {
    (socket.delayed, socket.sending, socket.polling) = (true, true, true);
    let target = socket.target.expect("an open socket has a descriptor");
    let entry = on!(target, |fd| opcode::PollAdd::new(fd, libc::POLLOUT as u32).build());
    // SAFETY: no memory is named, and the descriptor stays open while `sending`.
    unsafe { kernel.push(entry, Token::new(Kind::Send, socket.conn.0)) }
}
