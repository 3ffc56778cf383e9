//! A listener whose clients ask in lines and are answered in pieces: the control socket of a role.
//!
//! Owns the sockets, what has come of each line, and the answers under way; what is asked and answered is its caller's.
//!
//! Bounded (I9): while an answer is on its way to a client, nothing more is received from it or looked at, and of the
//! answer no more is made than its queue has room for. So who reads slowly, or not at all, holds up nobody but himself.
//! Who takes longer than [`CONTROL_REQUEST_NS`] over a request is ended, and of more than [`CONTROL_CONNECTIONS_MAX`]
//! connections the oldest that has not asked for anything, else the one that has taken nothing of its answer for longest:
//! never one whose question is being worked on.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::path::Path;

use bytes::Bytes;

use super::{Event, Reactor};
use crate::core::ids::Conn;
use crate::limits::{CONTROL_CONNECTIONS_MAX, CONTROL_PIECE_BYTES, CONTROL_REQUEST_BYTES_MAX, CONTROL_REQUEST_NS};

/// An answer, made piece by piece.
type Pieces = Box<dyn Iterator<Item = Bytes> + Send>;

/// The listener and its connections; before [`Controls::start`] it is nobody's.
#[derive(Default)]
pub struct Controls {
    listener: Option<usize>,
    sessions: HashMap<Conn, Session>,
    /// Who may have a request to take.
    ready: VecDeque<Conn>,
}

/// One connection.
#[derive(Default)]
struct Session {
    lines: Lines,
    /// What it has been asked to be told and has not been yet, in order.
    answers: VecDeque<Pieces>,
    /// An answer is on its way.
    busy: bool,
    /// Questions that were taken and not answered.
    asked: usize,
    /// When it was accepted, or something of an answer was last sent, monotonic.
    moved_ns: u64,
    /// It has a deadline: it owes us a request.
    owes: bool,
    /// Why it is closed after the last answer.
    ending: Option<String>,
}

impl Controls {
    /// Listens.
    ///
    /// # Errors
    /// Why that is not possible.
    pub fn start(reactor: &mut Reactor, path: &Path) -> io::Result<Controls> {
        Ok(Controls { listener: Some(reactor.listen_control(path)?), ..Controls::default() })
    }

    /// Takes an event of the reactor; false when it is about somebody else. [`Controls::next`] says what was asked.
    pub fn on_event(&mut self, reactor: &mut Reactor, event: &Event) -> bool {
        match event {
            Event::Accepted { listener, conn, .. } if Some(*listener) == self.listener => {
                self.make_place(reactor);
                let moved_ns = reactor.now().mono_ns;
                self.sessions.insert(*conn, Session { moved_ns, ..Session::default() });
                self.watch(reactor, *conn);
                true
            }
            Event::Received { conn } if self.sessions.contains_key(conn) => {
                self.ready.push_back(*conn);
                true
            }
            Event::Sent { conn } if self.sessions.contains_key(conn) => {
                self.pump(reactor, *conn);
                true
            }
            Event::Closed { conn, .. } => self.sessions.remove(conn).is_some(),
            _ => false,
        }
    }

    /// The next request of anybody who is not being answered: a line without its newline. One that does not end is to
    /// be answered with [`Controls::refuse`].
    pub fn next(&mut self, reactor: &mut Reactor) -> Option<(Conn, Result<Vec<u8>, LineTooLong>)> {
        while let Some(conn) = self.ready.pop_front() {
            let Some(session) = self.sessions.get_mut(&conn) else { continue };
            if session.busy || session.ending.is_some() {
                continue;
            }
            let rx = reactor.rx(conn);
            session.lines.push(&rx.take(rx.len()));
            let line = session.lines.next_line().transpose();
            session.asked += usize::from(line.is_some());
            self.watch(reactor, conn);
            if let Some(line) = line {
                self.ready.push_back(conn);
                return Some((conn, line));
            }
        }
        None
    }

    /// Ends the one that gives way to another, when there are as many as there may be.
    fn make_place(&mut self, reactor: &mut Reactor) {
        let open = self.sessions.iter().filter(|(_, session)| session.ending.is_none());
        if open.clone().count() < CONTROL_CONNECTIONS_MAX {
            return;
        }
        let idle = open.filter(|(_, session)| session.asked == 0);
        let first = |(conn, session): &(&Conn, &Session)| (session.busy, session.moved_ns, **conn);
        if let Some(conn) = idle.min_by_key(first).map(|(conn, _)| *conn) {
            self.sessions.entry(conn).and_modify(|it| it.ending = Some(String::new()));
            reactor.abort(conn, "a newer connection needs its place");
        }
    }

    /// Sees to it that a request comes in time, where nothing else is waited for.
    fn watch(&mut self, reactor: &mut Reactor, conn: Conn) {
        let Some(session) = self.sessions.get_mut(&conn) else { return };
        let owes = session.asked == 0 && !session.busy && session.ending.is_none();
        if owes != session.owes {
            session.owes = owes;
            reactor.expire(conn, owes.then(|| reactor.now().mono_ns + CONTROL_REQUEST_NS));
        }
    }

    /// Begins to send an answer, as soon as those before it have been sent. Whoever is gone is told nothing.
    pub fn answer(&mut self, reactor: &mut Reactor, conn: Conn, pieces: impl Iterator<Item = Bytes> + Send + 'static) {
        if let Some(session) = self.sessions.get_mut(&conn) {
            session.asked = session.asked.saturating_sub(1);
            session.answers.push_back(Box::new(pieces));
            self.pump(reactor, conn);
        }
    }

    /// Sends a last answer and ends the connection.
    pub fn refuse(&mut self, reactor: &mut Reactor, conn: Conn, pieces: impl Iterator<Item = Bytes> + Send + 'static) {
        self.answer(reactor, conn, pieces);
        self.end(reactor, conn, "not a control request");
    }

    /// Takes no more connections, and ends those that there are once they have their answers.
    pub fn stop(&mut self, reactor: &mut Reactor, reason: &str) {
        if let Some(listener) = self.listener.take() {
            reactor.stop_listening(listener);
        }
        for conn in self.sessions.keys().copied().collect::<Vec<Conn>>() {
            self.end(reactor, conn, reason);
        }
    }

    /// Whether who has asked is still there.
    #[must_use]
    pub fn holds(&self, conn: Conn) -> bool {
        self.sessions.contains_key(&conn)
    }

    /// Nobody is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    fn end(&mut self, reactor: &mut Reactor, conn: Conn, reason: &str) {
        if let Some(session) = self.sessions.get_mut(&conn) {
            session.ending.get_or_insert_with(|| reason.into());
            self.pump(reactor, conn);
        }
    }

    /// Sends as much as there is room for.
    fn pump(&mut self, reactor: &mut Reactor, conn: Conn) {
        let Some(session) = self.sessions.get_mut(&conn) else { return };
        while reactor.queued_bytes(conn) < CONTROL_PIECE_BYTES
            && let Some(answer) = session.answers.front_mut()
        {
            match answer.next() {
                Some(piece) => {
                    session.moved_ns = reactor.now().mono_ns;
                    reactor.send(conn, piece);
                }
                None => drop(session.answers.pop_front()),
            }
        }
        if session.answers.is_empty()
            && let Some(reason) = &session.ending
        {
            let reason = reason.clone();
            reactor.expire(conn, None);
            return reactor.close(conn, &reason);
        }
        let busy = reactor.queued_bytes(conn) > 0;
        if busy {
            reactor.tell_sent(conn);
        }
        if std::mem::replace(&mut session.busy, busy) != busy {
            reactor.pause(conn, busy);
            if !busy {
                self.ready.push_back(conn);
            }
        }
        self.watch(reactor, conn);
    }
}

impl fmt::Debug for Controls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Controls({} connections)", self.sessions.len())
    }
}

/// Cuts request lines out of the bytes of one connection.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
}

/// A client sent more than [`CONTROL_REQUEST_BYTES_MAX`] without a newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a control request is one line of at most {CONTROL_REQUEST_BYTES_MAX} bytes")]
pub struct LineTooLong;

impl Lines {
    /// Takes received bytes; at most one line and what follows it are kept.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete line without its newline, `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`LineTooLong`]: answer and close.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, LineTooLong> {
        match self.buffer.iter().position(|byte| *byte == b'\n') {
            Some(at) if at < CONTROL_REQUEST_BYTES_MAX => {
                let mut line: Vec<u8> = self.buffer.drain(..=at).collect();
                line.pop();
                Ok(Some(line))
            }
            None if self.buffer.len() < CONTROL_REQUEST_BYTES_MAX => Ok(None),
            _ => Err(LineTooLong),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::io::ReactorOptions;

    const PIECES: usize = 200;

    /// A control socket whose every request is answered by its first letter, [`PIECES`] times a whole piece.
    struct Served {
        reactor: Reactor,
        controls: Controls,
        asked: usize,
        made: Arc<AtomicUsize>,
    }

    impl Served {
        fn turn(&mut self) {
            let mut events = Vec::new();
            let soon = self.reactor.now().mono_ns + 2_000_000;
            self.reactor.turn(Some(soon), &mut events).expect("the ring works");
            events.iter().for_each(|event| assert!(self.controls.on_event(&mut self.reactor, event), "{event:?}"));
            while let Some((conn, line)) = self.controls.next(&mut self.reactor) {
                let (letter, made) = (line.expect("it is short")[0], self.made.clone());
                self.asked += 1;
                let piece = move |_| {
                    made.fetch_add(1, Ordering::Relaxed);
                    Bytes::from(vec![letter; CONTROL_PIECE_BYTES])
                };
                self.controls.answer(&mut self.reactor, conn, (0..PIECES).map(piece));
            }
        }
    }

    #[test]
    fn of_an_answer_no_more_is_made_than_there_is_room_for() {
        let path = std::env::temp_dir().join(format!("farshore-control-{}", std::process::id()));
        let options = ReactorOptions { arena_bytes: 32 << 20, ..ReactorOptions::default() };
        let mut reactor = Reactor::new(options).expect("a reactor");
        let controls = Controls::start(&mut reactor, &path).expect("a path of its own");
        let mut served = Served { reactor, controls, asked: 0, made: Arc::default() };
        let made = |served: &Served| served.made.load(Ordering::Relaxed);
        let mut dies = UnixStream::connect(&path).expect("it listens");
        dies.write_all(b"x\n").expect("there is room");
        let mut slow = UnixStream::connect(&path).expect("it listens");
        // The second request waits until the first one is answered; so does whatever else is said.
        slow.write_all(&[&b"a\nb\n"[..], &[b'c'; 100]].concat()).expect("there is room");
        (0..50).for_each(|_| served.turn());
        let before = made(&served);
        (0..50).for_each(|_| served.turn());
        assert_eq!((served.asked, made(&served)), (2, before), "nobody reads");
        // What sockets of the kernel hold is less than a MiB.
        assert!(before < 40, "{before} pieces");
        drop(dies);
        slow.set_nonblocking(true).expect("a socket");
        let (mut got, mut piece) = (Vec::new(), vec![0; 48 << 10]);
        while got.len() < 2 * PIECES * CONTROL_PIECE_BYTES {
            served.turn();
            if let Ok(count) = slow.read(&mut piece) {
                assert!(count > 0, "it ended after {} bytes", got.len());
                got.extend_from_slice(&piece[..count]);
            }
        }
        let half = PIECES * CONTROL_PIECE_BYTES;
        assert!(got[..half].iter().all(|byte| *byte == b'a') && got[half..].iter().all(|byte| *byte == b'b'));
        drop(slow);
        (0..50).for_each(|_| served.turn());
        assert!(served.controls.is_empty(), "nobody is connected any more");
        let _ = std::fs::remove_file(path);
    }

    /// However many say half of something, who asks is answered; whose answer is being made keeps its place.
    #[test]
    fn halves_of_requests_stop_nobody() {
        let path = std::env::temp_dir().join(format!("farshore-halves-{}", std::process::id()));
        let options = ReactorOptions { arena_bytes: 32 << 20, ..ReactorOptions::default() };
        let mut reactor = Reactor::new(options).expect("a reactor");
        let controls = Controls::start(&mut reactor, &path).expect("a path of its own");
        let mut served = Served { reactor, controls, asked: 0, made: Arc::default() };
        let mut slow = UnixStream::connect(&path).expect("it listens");
        slow.write_all(b"s\n").expect("there is room");
        (0..3).for_each(|_| served.turn());
        served.controls.sessions.values_mut().for_each(|it| it.asked += 1);
        let mut halves = Vec::new();
        for _ in 0..5 * CONTROL_CONNECTIONS_MAX {
            let mut half = UnixStream::connect(&path).expect("it listens");
            half.write_all(b"{\"").expect("there is room");
            halves.push(half);
            served.turn();
        }
        let mut asks = UnixStream::connect(&path).expect("it listens");
        asks.write_all(b"a\n").expect("there is room");
        (0..20).for_each(|_| served.turn());
        assert_eq!(served.asked, 2);
        asks.set_nonblocking(true).expect("a socket");
        assert!(asks.read(&mut [0; 9]).is_ok_and(|count| count == 9));
        (0..50).for_each(|_| served.turn());
        let open = served.controls.sessions.len();
        assert!(open <= CONTROL_CONNECTIONS_MAX && served.controls.sessions.values().any(|it| it.asked > 0), "{open}");
        let _ = std::fs::remove_file(path);
    }

    #[test]
    fn lines_are_cut_however_they_arrive() {
        let mut lines = Lines::default();
        for byte in b"{\"verb\":\"status\"}" {
            lines.push(&[*byte]);
            assert_eq!(lines.next_line(), Ok(None));
        }
        lines.push(b"\nnext\n");
        assert_eq!(lines.next_line(), Ok(Some(b"{\"verb\":\"status\"}".to_vec())));
        assert_eq!(lines.next_line(), Ok(Some(b"next".to_vec())));
        assert_eq!(lines.next_line(), Ok(None));
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut lines = Lines::default();
        lines.push(&[b'x'; CONTROL_REQUEST_BYTES_MAX]);
        assert_eq!(lines.next_line(), Err(LineTooLong));
    }
}
