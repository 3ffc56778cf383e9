//! Taking connections in: a listener is watched by the ring, and whoever waits there is accepted in the thread.
//!
//! Invariant: the ring has no hold on a listening socket, nor on anything that has ([`Listener`]): an address is free, and
//! nobody is accepted any more, in the moment in which the process is gone.

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
use crate::core::sparing::Sparing;

/// How long a listener rests after a failed accept (out of descriptors, mostly), nanoseconds.
const ACCEPT_REST_NS: u64 = 100_000_000;
/// Most that are accepted before anything else has its turn.
const ACCEPTS_MAX: usize = 64;

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
        let listener = self.listeners[index].as_mut().expect("looked at above");
        listener.rest_until_ns = Some(clock::mono_ns() + ACCEPT_REST_NS);
        Ok(())
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
        socket.adopt(fd, kernel);
        mark(&mut socket, &mut self.dirty);
        self.sockets.insert(conn, socket);
        match begun {
            Some(begun) => self.secure(conn, begun, Announce::Accepted(index)),
            None => events.push(Event::Accepted { listener: index, conn, peer }),
        }
    }
}
