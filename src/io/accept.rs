//! Taking connections in: a listener is watched by the ring, and whoever waits there is accepted in the thread.
//!
//! Invariant: the ring has no hold on a listening socket, nor on anything that has ([`Listener`]): an address is free, and
//! nobody is accepted any more, in the moment in which the process is gone.
//!
//! Nobody is turned away for those that are on their way out: a connection that ends has its operations to end first, of
//! which the kernel completes few at a time, and a newcomer waits for that where it is, in the queue of its listener.

use std::io;

use io_uring::opcode;
use nix::libc;

use super::clock;
use super::listen::{self, Listener};
use super::net::{Net, mark};
use super::reactor::Event;
use super::ring::{Kernel, Kind, Token};
use super::secure::Announce;
use super::socket::{Phase, Socket};
use super::tls::Acceptor;
use crate::core::ids::Conn;
use crate::core::sparing::Sparing;

/// How long a listener rests after a failed accept (out of descriptors, mostly), nanoseconds.
const ACCEPT_REST_NS: u64 = 100_000_000;
/// Most that are accepted before anything else has its turn: no more than the kernel completes operations of others in a
/// turn (20, from Linux 6.13 on), so that those who give way to them are gone as fast as they come.
const ACCEPTS_MAX: usize = 16;
/// Connections that wait for their operations to end, beyond which nobody is accepted for a moment; and how long that is,
/// nanoseconds.
const ENDING_MAX: usize = 64;
const ENDING_REST_NS: u64 = 500_000;
/// Connections that say goodbye and wait for their peers to: of more, the ones that have waited for longest are ended.
const DRAINING_MAX: usize = 128;

impl Net {
    /// Has the ring say when somebody waits to be accepted.
    pub(super) fn accept(&mut self, index: usize, kernel: &mut Kernel) -> io::Result<()> {
        let Some(Some(listener)) = self.listeners.get_mut(index) else { return Ok(()) };
        listener.accepting = true;
        listener.rest_until_ns = None;
        let fd = io_uring::types::Fd(listener.descriptor());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
        // SAFETY: no memory is named, and the descriptor stays open until `accepting` is false.
        unsafe { kernel.push(entry, Token::new(Kind::Accept, index as u64)) }
    }

    pub(super) fn accepted(
        &mut self,
        index: usize,
        result: i32,
        kernel: &mut Kernel,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let listener = self.listeners[index].as_mut().expect("a listener stays until its accept has ended");
        listener.accepting = false;
        if listener.stopping {
            self.listeners[index] = None;
            return Ok(());
        }
        let now_ns = clock::mono_ns();
        if self.make_room() {
            listener_rests(&mut self.listeners[index], now_ns + ENDING_REST_NS);
        }
        if self.listeners[index].as_ref().and_then(|it| it.rest_until_ns).is_some_and(|until_ns| until_ns > now_ns) {
            return Ok(());
        }
        let mut failed = (result < 0).then(|| io::Error::from_raw_os_error(-result));
        for _ in 0..ACCEPTS_MAX {
            match self.listeners[index].as_ref().map_or(Ok(None), Listener::take) {
                Ok(Some(fd)) => self.take_in(index, fd, kernel, events),
                Ok(None) => break,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let Some(error) = failed else { return self.accept(index, kernel) };
        tracing::warn!(%error, "accept failed: resting");
        listener_rests(&mut self.listeners[index], clock::mono_ns() + ACCEPT_REST_NS);
        Ok(())
    }

    /// Nobody more is accepted where this connection came from until then.
    pub fn rest(&mut self, conn: Conn, until_ns: u64) {
        if let Some(index) = self.sockets.get(&conn).and_then(|socket| socket.listener) {
            listener_rests(&mut self.listeners[index], until_ns);
        }
    }

    /// Ends who has taken its time over its goodbye where these are many; whether so many are about to end that newcomers
    /// are to wait.
    fn make_room(&mut self) -> bool {
        let (mut ending, mut draining) = (0, Vec::new());
        for socket in self.sockets.values() {
            match socket.phase {
                Phase::Aborting => ending += 1,
                Phase::Draining if !socket.patient => draining.push((socket.deadline_ns, socket.conn)),
                _ => {}
            }
        }
        if draining.len() > DRAINING_MAX {
            draining.sort_unstable();
            for (_, conn) in &draining[..draining.len() - DRAINING_MAX] {
                self.abort(*conn, "");
            }
        }
        ending > ENDING_MAX
    }

    fn take_in(&mut self, index: usize, fd: std::os::fd::OwnedFd, kernel: &mut Kernel, events: &mut Vec<Event>) {
        let peer = listen::peer_name(&fd);
        if self.sockets.len() >= self.connections_max {
            if let Some(left_out) = self.turned_away.due(clock::mono_ns()) {
                let more = Sparing::and_more(left_out);
                tracing::warn!(most = self.connections_max, "too many connections: {peer} was turned away{more}");
            }
            return;
        }
        let begun = self.listeners[index].as_ref().and_then(|it| it.acceptor.as_ref()).map(Acceptor::begin);
        let conn = self.next_conn();
        let mut socket = Box::new(Socket::new(conn, peer.clone(), Phase::Open));
        socket.listener = Some(index);
        socket.adopt(fd, kernel);
        mark(&mut socket, &mut self.dirty);
        self.sockets.insert(conn, socket);
        match begun {
            Some(begun) => self.secure(conn, begun, Announce::Accepted(index)),
            None => events.push(Event::Accepted { listener: index, conn, peer }),
        }
    }
}

/// Nobody is accepted there before then, or later where that was said already.
fn listener_rests(listener: &mut Option<Listener>, until_ns: u64) {
    if let Some(listener) = listener {
        listener.rest_until_ns = Some(listener.rest_until_ns.map_or(until_ns, |before| before.max(until_ns)));
    }
}
