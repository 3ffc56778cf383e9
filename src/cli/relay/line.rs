//! The line: connections relayed with a delay, at a rate, cut and healed while running.
//!
//! ```text
//!   client ──► reader ──► shaper (shared by the direction) ──► delay line ──► writer ──► server
//! ```
//!
//! Each direction of each connection has two threads. The shaper hands out departure times: a reader has at most
//! a moment's worth of bytes waiting there, so that connections share the rate in turns and a busy one does not
//! stand before a quiet one. Every queue is bounded: the delay line by what the rate puts into the delay, so a
//! server that does not read holds its client back as TCP does.
//!
//! While cut nothing passes, not even the end of a connection: neither end can tell a cut line from a slow one.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};

use crate::core::address::Address;

/// Connections at a time; more are closed at once.
const CONNECTIONS_MAX: usize = 256;
/// How far ahead of its departure a reader may take bytes in: hides late wake-ups, keeps turns short.
const AHEAD: Duration = Duration::from_millis(1);
/// One turn of a reader, bytes.
const TURN_BYTES: std::ops::RangeInclusive<usize> = 1500..=(64 << 10);
const TURN: Duration = Duration::from_micros(200);
/// Least bound of a delay line, bytes.
const QUEUE_BYTES_MIN: usize = 128 << 10;
/// Kernel buffers of a relayed socket: what is in them has left its sender without being on the line.
const SOCKET_BYTES: usize = 128 << 10;

/// What the line is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// One way.
    pub delay: Duration,
    /// Of each direction; infinite for no limit.
    pub bytes_per_second: f64,
}

/// What has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Delivered from client to server, and back.
    pub bytes: [u64; 2],
    pub connections: usize,
    /// Worst lateness of a delivery against its due time, because the machine was busy.
    pub late_max_ns: u64,
}

/// A running line. Ends with everything on it when dropped.
pub struct Relay {
    shared: Arc<Shared>,
    address: Address,
    doorbell: Option<Listener>,
    acceptor: Option<thread::JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// When the line of each direction is free again.
    free_at: [Mutex<Instant>; 2],
    bytes: [AtomicU64; 2],
    late_max_ns: AtomicU64,
    ended: AtomicBool,
}

struct State {
    settings: Settings,
    cut: bool,
    next: u64,
    connections: HashMap<u64, [File; 2]>,
}

impl Relay {
    /// Listens at `listen` (TCP port 0: any free one) and relays to `to`.
    pub fn start(listen: &Address, to: &Address, settings: Settings) -> Result<Relay> {
        let listener = Listener::bind(listen)?;
        let address = listener.address(listen)?;
        let state = State { settings, cut: false, next: 0, connections: HashMap::new() };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            free_at: [Mutex::new(Instant::now()), Mutex::new(Instant::now())],
            bytes: [AtomicU64::new(0), AtomicU64::new(0)],
            late_max_ns: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let doorbell = listener.again()?;
        let (acceptor, to) = (Arc::clone(&shared), to.clone());
        let acceptor = thread::Builder::new().name("relay".into()).spawn(move || acceptor.accept(&listener, &to))?;
        Ok(Relay { shared, address, doorbell: Some(doorbell), acceptor: Some(acceptor) })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Nothing passes from now on.
    pub fn cut(&self) {
        self.shared.lock().cut = true;
        self.shared.changed.notify_all();
    }

    /// Everything passes again, beginning with what was held back.
    pub fn heal(&self) {
        self.shared.lock().cut = false;
        self.shared.changed.notify_all();
    }

    /// Ends every connection at once, both ways.
    pub fn reset(&self) {
        for (_, ends) in self.shared.lock().connections.drain() {
            ends.iter().for_each(hang_up);
        }
        self.shared.changed.notify_all();
    }

    /// Changes delay or rate for everything that has not departed yet.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.shared.lock().settings);
        for free_at in &self.shared.free_at {
            *lock(free_at) = Instant::now();
        }
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            bytes: [0, 1].map(|at| self.shared.bytes[at].load(Ordering::Relaxed)),
            connections: self.shared.lock().connections.len(),
            late_max_ns: self.shared.late_max_ns.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.heal();
        self.reset();
        if let Some(doorbell) = self.doorbell.take() {
            // Wakes the acceptor, which sees that it is over.
            let _ = shutdown(doorbell.as_fd().as_raw_fd(), Shutdown::Both);
        }
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        if let Address::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Waits while the line is cut; what it is like then.
    fn passing(&self) -> Settings {
        let mut state = self.lock();
        while state.cut {
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        state.settings
    }

    fn accept(self: Arc<Shared>, listener: &Listener, to: &Address) {
        while !self.ended.load(Ordering::SeqCst) {
            let Ok(client) = listener.accept() else {
                thread::sleep(Duration::from_millis(1));
                continue;
            };
            if self.ended.load(Ordering::SeqCst) || self.lock().connections.len() >= CONNECTIONS_MAX {
                hang_up(&client);
                continue;
            }
            let (shared, to) = (Arc::clone(&self), to.clone());
            thread::spawn(move || {
                shared.passing();
                match connect(&to) {
                    Ok(server) => shared.join(client, server),
                    Err(_) => hang_up(&client),
                }
            });
        }
    }

    /// Relays both ways between two sockets.
    fn join(self: Arc<Shared>, client: File, server: File) {
        for end in [&client, &server] {
            // Unix sockets and odd kernels may refuse; the line only becomes a little longer.
            let _ = setsockopt(end, sockopt::RcvBuf, &SOCKET_BYTES);
            let _ = setsockopt(end, sockopt::SndBuf, &SOCKET_BYTES);
        }
        let clones = || Ok::<_, Error>([client.try_clone()?, server.try_clone()?]);
        let (Ok(kept), Ok(forward), Ok(backward)) = (clones(), clones(), clones()) else {
            return;
        };
        let number = {
            let mut state = self.lock();
            state.next += 1;
            let number = state.next;
            state.connections.insert(number, kept);
            number
        };
        let [from, into] = forward;
        let back = {
            let shared = Arc::clone(&self);
            let [into, from] = backward;
            thread::spawn(move || shared.direction(1, from, into))
        };
        self.direction(0, from, into);
        let _ = back.join();
        self.lock().connections.remove(&number);
    }

    /// Relays one way until its end, and passes the end on.
    fn direction(&self, way: usize, from: File, mut into: File) {
        let queue = Queue::default();
        thread::scope(|scope| {
            scope.spawn(|| {
                while let Some((due, bytes)) = queue.pop() {
                    wait_until(due);
                    self.passing();
                    let late = Instant::now().saturating_duration_since(due);
                    self.late_max_ns.fetch_max(late.as_nanos() as u64, Ordering::Relaxed);
                    if bytes.is_empty() || into.write_all(&bytes).is_err() {
                        break;
                    }
                    self.bytes[way].fetch_add(bytes.len() as u64, Ordering::Relaxed);
                }
                queue.close();
                let _ = shutdown(into.as_raw_fd(), Shutdown::Write);
                let _ = shutdown(from.as_raw_fd(), Shutdown::Read);
            });
            self.read(way, &from, &queue);
        });
    }

    fn read(&self, way: usize, mut from: &File, queue: &Queue) {
        let mut buffer = vec![0; *TURN_BYTES.end()];
        loop {
            let settings = self.passing();
            let turn = (settings.bytes_per_second * TURN.as_secs_f64()) as usize;
            let turn = turn.clamp(*TURN_BYTES.start(), *TURN_BYTES.end());
            let n = match from.read(&mut buffer[..turn]) {
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // A connection that was reset ends here as one that was closed.
                Err(_) => 0,
            };
            let settings = self.passing();
            let departure = self.depart(way, n, settings.bytes_per_second);
            wait_until(departure.checked_sub(AHEAD).unwrap_or(departure));
            let held = settings.bytes_per_second.min(1e9) * (settings.delay.as_secs_f64() + 0.005);
            let bound = (held as usize).max(QUEUE_BYTES_MIN);
            if !queue.push(departure + settings.delay, buffer[..n].to_vec(), bound) || n == 0 {
                return;
            }
        }
    }

    /// When the last of `n` bytes has left, if they queue up now.
    fn depart(&self, way: usize, n: usize, bytes_per_second: f64) -> Instant {
        let mut free_at = lock(&self.free_at[way]);
        *free_at = (*free_at).max(Instant::now()) + Duration::from_secs_f64(n as f64 / bytes_per_second);
        *free_at
    }
}

/// The delay line of one direction of one connection: bytes and when they are due; empty bytes are the end.
#[derive(Default)]
struct Queue {
    inside: Mutex<Inside>,
    changed: Condvar,
}

#[derive(Default)]
struct Inside {
    due: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    closed: bool,
}

impl Queue {
    /// Waits for room; false once nobody takes any more.
    fn push(&self, due: Instant, bytes: Vec<u8>, bound: usize) -> bool {
        let mut inside = lock(&self.inside);
        while inside.bytes >= bound && !inside.closed {
            inside = self.changed.wait(inside).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        inside.bytes += bytes.len();
        inside.due.push_back((due, bytes));
        self.changed.notify_all();
        !inside.closed
    }

    fn pop(&self) -> Option<(Instant, Vec<u8>)> {
        let mut inside = lock(&self.inside);
        loop {
            if let Some(first) = inside.due.pop_front() {
                inside.bytes -= first.1.len();
                self.changed.notify_all();
                return Some(first);
            }
            if inside.closed {
                return None;
            }
            inside = self.changed.wait(inside).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    fn close(&self) {
        lock(&self.inside).closed = true;
        self.changed.notify_all();
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn bind(address: &Address) -> Result<Listener> {
        Ok(match address {
            Address::Tcp(text) => {
                let listener = TcpListener::bind(text)?;
                // Inherited by what is accepted, and in time for the window that the handshake announces.
                setsockopt(&listener, sockopt::RcvBuf, &SOCKET_BYTES)?;
                Listener::Tcp(listener)
            }
            Address::Unix(path) => Listener::Unix(UnixListener::bind(path)?),
        })
    }

    fn again(&self) -> Result<Listener> {
        Ok(match self {
            Listener::Tcp(listener) => Listener::Tcp(listener.try_clone()?),
            Listener::Unix(listener) => Listener::Unix(listener.try_clone()?),
        })
    }

    /// The address with the port that was really taken.
    fn address(&self, asked: &Address) -> Result<Address> {
        Ok(match self {
            Listener::Tcp(listener) => Address::Tcp(listener.local_addr()?.to_string()),
            Listener::Unix(_) => asked.clone(),
        })
    }

    fn accept(&self) -> Result<File> {
        Ok(File::from(match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                OwnedFd::from(stream)
            }
            Listener::Unix(listener) => OwnedFd::from(listener.accept()?.0),
        }))
    }

    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Unix(listener) => listener.as_fd(),
        }
    }
}

/// A blocking stream to an address; TCP holds no bytes back to fill a packet.
pub fn connect(to: &Address) -> Result<File> {
    Ok(File::from(match to {
        Address::Tcp(text) => {
            let stream = TcpStream::connect(text)?;
            stream.set_nodelay(true)?;
            OwnedFd::from(stream)
        }
        Address::Unix(path) => OwnedFd::from(UnixStream::connect(path)?),
    }))
}

fn hang_up(end: &File) {
    let _ = shutdown(end.as_raw_fd(), Shutdown::Both);
}

fn wait_until(due: Instant) {
    let rest = due.saturating_duration_since(Instant::now());
    if !rest.is_zero() {
        thread::sleep(rest);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half done while a lock is held.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line to a server that sends everything back.
    fn echo(settings: Settings) -> (Relay, TcpStream) {
        let server = TcpListener::bind("127.0.0.1:0").expect("a port");
        let to = Address::Tcp(server.local_addr().expect("bound").to_string());
        thread::spawn(move || {
            for stream in server.incoming().flatten() {
                thread::spawn(move || {
                    let (mut from, mut into) = (&stream, &stream);
                    let _ = std::io::copy(&mut from, &mut into);
                });
            }
        });
        let relay = Relay::start(&Address::Tcp("127.0.0.1:0".into()), &to, settings).expect("a relay");
        let Address::Tcp(address) = relay.address() else { panic!("asked for TCP") };
        let client = TcpStream::connect(address).expect("it listens");
        client.set_nodelay(true).expect("TCP");
        (relay, client)
    }

    fn round_trip(mut client: &TcpStream) -> Duration {
        let begin = Instant::now();
        client.write_all(b"x").expect("open");
        client.read_exact(&mut [0]).expect("open");
        begin.elapsed()
    }

    #[test]
    fn a_round_trip_takes_twice_the_delay() {
        let settings = Settings { delay: Duration::from_millis(10), bytes_per_second: 12.5e6 };
        let (relay, client) = echo(settings);
        round_trip(&client);
        let mut trips: Vec<Duration> = (0..9).map(|_| round_trip(&client)).collect();
        trips.sort();
        assert!(trips[0] >= Duration::from_millis(20), "{trips:?}");
        // The best of them, for a machine that does other things meanwhile.
        assert!(trips[0] < Duration::from_millis(40), "{trips:?}");
        relay.set(|settings| settings.delay = Duration::ZERO);
        round_trip(&client);
        let best = (0..9).map(|_| round_trip(&client)).min().expect("nine of them");
        assert!(best < Duration::from_millis(15), "{best:?}");
    }

    #[test]
    fn the_rate_holds_for_all_connections_together() {
        let (relay, client) = echo(Settings { delay: Duration::ZERO, bytes_per_second: 10e6 });
        let Address::Tcp(address) = relay.address() else { panic!("asked for TCP") };
        let other = TcpStream::connect(address).expect("it listens");
        let begin = Instant::now();
        thread::scope(|scope| {
            for stream in [&client, &other] {
                scope.spawn(move || (&mut { stream }).write_all(&vec![7; 1 << 20]).expect("open"));
                scope.spawn(move || (&mut { stream }).read_exact(&mut vec![0; 1 << 20]).expect("open"));
            }
        });
        let took = begin.elapsed().as_secs_f64();
        assert!((0.2..4.0).contains(&took), "2 MiB at 10 MB/s took {took} s");
        // Counted just after they were delivered.
        let counted = (0..500).any(|_| {
            thread::sleep(Duration::from_millis(10));
            relay.stats().bytes == [2 << 20; 2]
        });
        assert!(counted, "{:?}", relay.stats().bytes);
    }

    #[test]
    fn a_cut_line_delivers_nothing_and_a_healed_one_everything() {
        let (relay, mut client) = echo(Settings { delay: Duration::ZERO, bytes_per_second: f64::INFINITY });
        round_trip(&client);
        relay.cut();
        client.write_all(b"held back").expect("the socket takes it");
        client.set_read_timeout(Some(Duration::from_millis(100))).expect("not zero");
        let mut answer = [0; 9];
        assert!(client.read(&mut answer).is_err(), "nothing comes");
        relay.heal();
        client.set_read_timeout(Some(Duration::from_secs(5))).expect("not zero");
        client.read_exact(&mut answer).expect("it arrives");
        assert_eq!(&answer, b"held back");
        relay.reset();
        assert_eq!(client.read(&mut answer).unwrap_or(0), 0, "the connection is over");
    }
}
