//! The reactor: what a daemon sees of the kernel.
//!
//! A turn submits everything that was asked for since the last one, waits until something has happened
//! or the deadline has passed, and hands over what happened. Between turns nothing goes on behind the
//! daemon's back but what the kernel does by itself.
//!
//! Invariants:
//! - One system call a turn while there is work; none at all while there is none and no deadline.
//! - `turn` returns without events only when the deadline has passed.
//! - When the reactor is dropped the kernel holds no memory of it any more.

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use bytes::Bytes;
use io_uring::{opcode, types};
use nix::libc;

use super::arena::{Arena, ArenaStatus};
use super::clock;
use super::disk::Disk;
use super::extents::{Extents, Range};
use super::listen;
use super::net::Net;
use super::open::{self, OpenOptions, Preallocate};
use super::reader::{self, FileReader};
use super::resolve::Resolver;
use super::ring::{Completion, Kernel, Kind, Token, Wait};
use super::secure::Announce;
use super::signal::{Signals, Waker};
use super::tls::{Acceptor, Connector};
use super::work::{Job, Work};
use crate::core::address::Address;
use crate::core::allocation::Stretch;
use crate::core::asker::Asker;
use crate::core::ids::{Conn, Ticket};
use crate::core::machine::{DiskKind, DiskResult, IoFail, Lease, Now, ReadAt};
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
    /// The TLS that was begun in the middle of a connection is established.
    Secured {
        conn: Conn,
    },
    /// There are new bytes in `reactor.rx(conn)`.
    Received {
        conn: Conn,
    },
    /// The send queue became empty. Not given for what went out at once.
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
    /// What has storage of a range that was asked about.
    Extents {
        ticket: Ticket,
        result: Result<Vec<Stretch>, IoFail>,
    },
    /// A job is done.
    Worked {
        ticket: Ticket,
        bytes: Vec<Bytes>,
    },
    /// SIGTERM, SIGINT or a [`Stopper`].
    Stop,
}

/// Longest wait without sleeping, nanoseconds.
const SPIN_NS: u64 = 100_000;

#[derive(Clone, Debug)]
pub struct ReactorOptions {
    /// Most registered memory, bytes.
    pub arena_bytes: usize,
    /// Turn SIGTERM and SIGINT into `Event::Stop` (blocks them for this thread and those it starts).
    pub signals: bool,
    /// Wait for events without sleeping, for at most a tenth of a millisecond, while they follow one another more
    /// closely than that. Never when idle; with one core only, whoever else wants it has it in between.
    pub spin: bool,
    /// Run soon after a wake-up, for short moments: for who does little for each request, and is waited for.
    pub prompt: bool,
    /// Most connections at a time; more are closed as they come.
    pub connections_max: usize,
}

impl Default for ReactorOptions {
    fn default() -> ReactorOptions {
        ReactorOptions { arena_bytes: 256 << 20, signals: false, spin: false, prompt: false, connections_max: 1024 }
    }
}

/// Makes a reactor give `Event::Stop`, from any thread.
#[derive(Clone)]
pub struct Stopper(Waker);

impl Stopper {
    pub fn stop(&self) {
        self.0.stop();
    }
}

pub struct Reactor {
    net: Net,
    disk: Disk,
    extents: Extents,
    work: Work,
    waker: Waker,
    signals: Option<Signals>,
    /// Events of errors that a call could not return.
    failures: VecDeque<io::Error>,
    completions: Vec<Completion>,
    /// Whether to wait without sleeping while events follow one another closely.
    spin: bool,
    /// Who is waited for may need the core on which this one waits.
    one_core: bool,
    last_event_ns: u64,
    /// Time between events, a moving average, nanoseconds.
    gap_ns: u64,
    /// Last, so that it is dropped after what its operations name.
    kernel: std::mem::ManuallyDrop<Kernel>,
}

impl Reactor {
    pub fn new(options: ReactorOptions) -> io::Result<Reactor> {
        let kernel = Kernel::new(Arena::new(options.arena_bytes)?)?;
        let waker = Waker::new()?;
        if options.prompt {
            super::slice::shorten();
        }
        let signals = if options.signals { Some(Signals::new()?) } else { None };
        let mut reactor = Reactor {
            net: Net::new(Resolver::new(waker.clone()), options.connections_max),
            disk: Disk::new(),
            extents: Extents::new(waker.clone()),
            work: Work::new(waker.clone()),
            waker,
            signals,
            failures: VecDeque::new(),
            completions: Vec::new(),
            spin: options.spin,
            one_core: std::thread::available_parallelism().is_ok_and(|cores| cores.get() == 1),
            last_event_ns: 0,
            gap_ns: 8 * SPIN_NS,
            kernel: std::mem::ManuallyDrop::new(kernel),
        };
        reactor.watch(Kind::Wake)?;
        if reactor.signals.is_some() {
            reactor.watch(Kind::Signal)?;
        }
        Ok(reactor)
    }

    /// Both clocks now.
    #[must_use]
    pub fn now(&self) -> Now {
        clock::now()
    }

    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(self.waker.clone())
    }

    /// What the registered memory is used for.
    #[must_use]
    pub fn arena_status(&self) -> ArenaStatus {
        self.kernel.arena.status()
    }

    /// A unix socket left by a dead process is replaced; one that answers is "in use".
    pub fn listen(&mut self, address: &Address) -> io::Result<usize> {
        self.net.listen(address, None, &mut self.kernel)
    }

    /// As `listen`, or with TLS from the first byte on: a connection is told of once its handshake is done.
    pub fn listen_with(&mut self, address: &Address, acceptor: Option<&Acceptor>) -> io::Result<usize> {
        self.net.listen(address, acceptor.cloned(), &mut self.kernel)
    }

    /// Listens on a control socket: owner and group may connect to it. What each of them may ask: `asker`.
    pub fn listen_control(&mut self, path: &Path) -> io::Result<usize> {
        let listener = self.listen(&Address::Unix(path.into()))?;
        listen::share(path)?;
        Ok(listener)
    }

    /// Connections that were accepted go on.
    pub fn stop_listening(&mut self, listener: usize) {
        let done = self.net.stop_listening(listener, &mut self.kernel);
        self.keep(done);
    }

    /// Nobody more is accepted where this connection came from until then, monotonic: newcomers wait to be.
    pub fn rest(&mut self, conn: Conn, until_ns: u64) {
        self.net.rest(conn, until_ns);
    }

    /// Where a listener really is (the port that was chosen for port 0).
    #[must_use]
    pub fn listen_address(&self, listener: usize) -> Option<&Address> {
        self.net.listen_address(listener)
    }

    pub fn next_conn(&mut self) -> Conn {
        self.net.next_conn()
    }

    /// The result comes as `Connected` or `Closed`. What is sent before goes out once connected.
    pub fn connect(&mut self, conn: Conn, address: &Address) {
        self.connect_with(conn, address, None);
    }

    /// As `connect`, or with TLS from the first byte on: it is `Connected` once the handshake is done.
    pub fn connect_with(&mut self, conn: Conn, address: &Address, connector: Option<&Connector>) {
        let done = self.net.connect(conn, address, connector, &mut self.kernel);
        self.keep(done);
    }

    /// Begins TLS as the server of a connection. What is queued goes out before, as it is; what was received and not
    /// taken is thrown away. The result comes as `Secured` or `Closed`; nothing is to be sent until then.
    pub fn secure_server(&mut self, conn: Conn, acceptor: &Acceptor) {
        self.net.secure(conn, acceptor.begin(), Announce::Secured);
    }

    /// As `secure_server`, as its client.
    pub fn secure_client(&mut self, conn: Conn, connector: &Connector) {
        self.net.secure(conn, connector.begin(), Announce::Secured);
    }

    /// Received bytes not yet taken. Empty for an unknown connection.
    pub fn rx(&mut self, conn: Conn) -> &mut Rope {
        self.net.rx(conn)
    }

    /// Expects messages of `head` bytes (at most 256; 0 in the middle of a message) followed by `body` bytes, so that bodies
    /// land page-aligned; body 0 is no expectation. A wrong guess costs a copy, never a byte.
    pub fn hint(&mut self, conn: Conn, head: usize, body: usize) {
        self.net.hint(conn, head, body);
    }

    /// At most about so many bytes are received of what nobody has seen the head of, as far as hints tell.
    pub fn receive_ahead(&mut self, conn: Conn, bytes: usize) {
        self.net.receive_ahead(conn, bytes);
    }

    /// No receive while paused. One that is in flight may still bring what its plan has room for.
    pub fn pause(&mut self, conn: Conn, paused: bool) {
        self.net.pause(conn, paused);
    }

    /// `Sent` will tell when what is queued now has gone out, also if there is room for all of it at once.
    pub fn tell_sent(&mut self, conn: Conn) {
        self.net.tell_sent(conn);
    }

    /// [`Reactor::queued_bytes`] is exact for this connection also in the middle of a long send.
    pub fn count_sent(&mut self, conn: Conn) {
        self.net.count_sent(conn);
    }

    /// Queues bytes; they go out at the next turn, in order, with what else is queued.
    pub fn send(&mut self, conn: Conn, bytes: Bytes) {
        self.net.send(conn, bytes, false);
    }

    /// As `send`, for what may only be told under the lease: beyond its end it waits, and what is queued behind it too;
    /// once the lease is over the connection ends instead.
    pub fn send_leased(&mut self, conn: Conn, bytes: Bytes) {
        self.net.send(conn, bytes, true);
    }

    /// Until when leased bytes are sent; without a call at any time. An error means that the kernel gives no timer.
    pub fn lease(&mut self, lease: Lease) -> io::Result<()> {
        self.net.lease(lease)
    }

    /// What this connection sends is in no hurry: it goes out once replies and disk operations of the turn have.
    pub fn bulk(&mut self, conn: Conn, bulk: bool) {
        self.net.bulk(conn, bulk);
    }

    /// Whether the peer has ended its side, or the connection: asked of the kernel, for the reactor does not hear of it
    /// while it does not receive.
    #[must_use]
    pub fn peer_left(&self, conn: Conn) -> bool {
        self.net.peer_left(conn)
    }

    /// Bytes that the kernel has received and nobody has taken yet.
    #[must_use]
    pub fn waiting_bytes(&self, conn: Conn) -> usize {
        self.net.waiting_bytes(conn)
    }

    /// Bytes that have arrived and were not taken from `rx` yet, also of those that the kernel has.
    #[must_use]
    pub fn arrived_bytes(&self, conn: Conn) -> usize {
        self.net.arrived_bytes(conn)
    }

    /// Who is at the other end of a unix socket.
    #[must_use]
    pub fn asker(&self, conn: Conn) -> Asker {
        self.net.asker(conn)
    }

    /// The kernel takes nothing more to send over TCP while it has so many bytes that the network has not taken, about: what
    /// it takes is not for us to divide among connections any more.
    pub fn keep_unsent_below(&self, conn: Conn, bytes: u32) {
        self.net.keep_unsent_below(conn, bytes);
    }

    /// The kernel sends at most so many bytes a second on a connection over TCP, from now on.
    pub fn limit_rate(&mut self, conn: Conn, limit: Option<u64>) {
        self.net.limit_rate(conn, limit);
    }

    /// Whether all that was sent has been acknowledged by the peer's kernel.
    #[must_use]
    pub fn has_arrived(&self, conn: Conn) -> bool {
        self.net.has_arrived(conn)
    }

    /// Bytes that are queued, or that the kernel has taken and could not send yet.
    #[must_use]
    pub fn unsent_bytes(&self, conn: Conn) -> u64 {
        self.net.unsent_bytes(conn)
    }

    /// Bytes queued and not yet taken by the kernel.
    #[must_use]
    pub fn queued_bytes(&self, conn: Conn) -> usize {
        self.net.queued_bytes(conn)
    }

    /// Closes after what is queued has been sent (bounded time, but see `wait_for_peer`).
    pub fn close(&mut self, conn: Conn, reason: &str) {
        self.net.close(conn, reason);
    }

    /// Whether the end of this connection by us waits until the peer has ended its side too, however long that takes: for
    /// who must know that nothing is done any more of what it was asked there. Otherwise that takes bounded time.
    pub fn wait_for_peer(&mut self, conn: Conn, waits: bool) {
        self.net.wait_for_peer(conn, waits);
    }

    /// Waits only a moment longer for the peers of connections that are being closed, where they have taken everything that
    /// was sent to them. To be called again: what they take is not announced.
    pub fn hurry(&mut self) {
        self.net.hurry();
    }

    /// Closes at once.
    pub fn abort(&mut self, conn: Conn, reason: &str) {
        self.net.abort(conn, reason);
    }

    /// Ends an open connection without TLS at that time (monotonic), unless something else is said before; `None`: never.
    pub fn expire(&mut self, conn: Conn, until_ns: Option<u64>) {
        self.net.expire(conn, until_ns);
    }

    /// Opens a file, as the options say. Blocks; start-up only.
    pub fn open(&mut self, options: &OpenOptions) -> Result<FileId, IoFail> {
        let opened = open::open(options)?;
        Ok(self.disk.add(opened, &mut self.kernel))
    }

    /// Closes a file once its operations are done. Its name is not used any more.
    pub fn close_file(&mut self, file: FileId) {
        self.disk.close(file, &mut self.kernel);
    }

    #[must_use]
    pub fn file_size(&self, file: FileId) -> u64 {
        self.disk.opened(file).size
    }

    /// Gives an open file at least so many bytes, durably; of a block device its size is looked at again. How many it has
    /// now. Blocks, but not for long where nothing is written (`preallocate`).
    pub fn enlarge(&mut self, file: FileId, wanted: u64, preallocate: Preallocate) -> Result<u64, IoFail> {
        self.disk.enlarge(file, wanted, preallocate)
    }

    /// Gives a file at least so many bytes, with space reserved; the next sync of it makes that durable.
    ///
    /// # Errors
    /// There is no space.
    pub fn extend(&mut self, file: FileId, wanted: u64) -> Result<(), IoFail> {
        self.disk.extend(file, wanted)
    }

    /// Cuts a file to so many bytes, if it is longer.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn shorten(&mut self, file: FileId, bytes: u64) -> Result<(), IoFail> {
        self.disk.shorten(file, bytes)
    }

    #[must_use]
    pub fn file_path(&self, file: FileId) -> &Path {
        &self.disk.opened(file).path
    }

    #[must_use]
    pub fn file_is_direct(&self, file: FileId) -> bool {
        self.disk.opened(file).direct_align.is_some()
    }

    /// Whether `open` made the file.
    #[must_use]
    pub fn file_was_created(&self, file: FileId) -> bool {
        self.disk.opened(file).created
    }

    /// Whether any part of it is not a hole, as far as anybody knows.
    pub fn has_storage(&self, file: FileId) -> Result<bool, IoFail> {
        let opened = self.disk.opened(file);
        open::has_storage(opened).map_err(|error| open::failed(&opened.path, "cannot look for its data", &error))
    }

    /// Blocks; start-up only.
    pub fn read_sync(&self, file: FileId, offset: u64, length: usize) -> Result<Bytes, IoFail> {
        self.reader(file)?.read_at(offset, length)
    }

    /// Blocks until durable; start-up only. On a direct file offset and length are multiples of 4096.
    pub fn write_sync(&self, file: FileId, offset: u64, bytes: &[u8]) -> Result<(), IoFail> {
        reader::write_durably(self.disk.opened(file), &self.kernel.arena, offset, bytes)
    }

    /// A reader for recovery code, independent of the reactor.
    pub fn reader(&self, file: FileId) -> Result<FileReader, IoFail> {
        FileReader::new(self.disk.opened(file), &self.kernel.arena)
    }

    /// Begins a disk operation; its result comes as `Event::Disk`.
    pub fn disk(&mut self, file: FileId, ticket: Ticket, kind: DiskKind) {
        let done = self.disk.submit(file, ticket, kind, &mut self.kernel);
        self.keep(done);
    }

    /// Begins to look which parts of a range have storage; the answer comes as `Event::Extents`.
    pub fn extents(&mut self, file: FileId, ticket: Ticket, range: Range) {
        self.extents.look(self.disk.opened(file), ticket, range);
    }

    /// Begins a job on a helper thread; what comes out comes as `Event::Worked`. Jobs are done in the order in which they began.
    ///
    /// # Errors
    /// There is no such thread.
    pub fn work(&mut self, ticket: Ticket, job: Job) -> io::Result<()> {
        self.work.begin(ticket, job)
    }

    /// Begins to bring a range into the page cache, where the file is read through it; comes as `Event::Disk`.
    pub fn read_ahead(&mut self, file: FileId, ticket: Ticket, offset: u64, length: u64) {
        let done = self.disk.read_ahead(file, ticket, offset, length, &mut self.kernel);
        self.keep(done);
    }

    /// Whether a `DiskKind::Zero` of this range is known to be made without writing zeroes.
    #[must_use]
    pub fn zeroes_fast(&self, file: FileId, offset: u64, length: u64, unmap: bool) -> bool {
        self.disk.zeroes_fast(file, offset, length, unmap)
    }

    /// What has completed already without the ring (writes into the page cache): saves a turn.
    pub fn completed(&mut self, events: &mut Vec<Event>) {
        self.disk.write_held();
        self.disk.collect(events);
    }

    /// Submits, waits until something happened or the deadline (monotonic ns; `None`: forever) has
    /// passed, and appends what happened. An error means that the ring itself is unusable.
    pub fn turn(&mut self, deadline_ns: Option<u64>, events: &mut Vec<Event>) -> io::Result<()> {
        let before = events.len();
        loop {
            if let Some(error) = self.failures.pop_front() {
                return Err(error);
            }
            self.net.flush(&mut self.kernel, events)?;
            self.disk.flush(&mut self.kernel)?;
            self.disk.collect(events);
            if self.net.has_bulk() {
                // The disk works while these are sent.
                if self.kernel.queued() {
                    self.kernel.enter(Wait::No)?;
                }
                self.net.flush_bulk(&mut self.kernel, events)?;
            }
            let (wait, due) = self.wait(deadline_ns, events.len() > before);
            if wait != Wait::No {
                let closely = self.spin && self.gap_ns < SPIN_NS;
                if closely && self.spun(deadline_ns, events, before)? {
                    self.pace();
                    return Ok(());
                }
                self.kernel.trim();
            }
            self.kernel.enter(wait)?;
            self.complete(events)?;
            if events.len() > before || due {
                self.pace();
                return Ok(());
            }
        }
    }

    /// Looks for something to happen without sleeping, for a moment and only while events follow one another
    /// closely: going to sleep and being woken costs more than the wait for a disk. True when there is something.
    fn spun(&mut self, deadline_ns: Option<u64>, events: &mut Vec<Event>, before: usize) -> io::Result<bool> {
        let start = clock::mono_ns();
        let until = deadline_ns.unwrap_or(u64::MAX).min(start + SPIN_NS);
        while clock::mono_ns() < until {
            self.kernel.enter(Wait::No)?;
            self.complete(events)?;
            if events.len() > before {
                return Ok(true);
            }
            if self.one_core {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        Ok(false)
    }

    /// Something happened: how closely does it follow what happened before?
    fn pace(&mut self) {
        let now = clock::mono_ns();
        let gap = (now - self.last_event_ns).min(8 * SPIN_NS);
        self.gap_ns = (7 * self.gap_ns + gap) / 8;
        self.last_event_ns = now;
    }

    /// How long the turn may sleep, and whether the caller's deadline has passed already.
    fn wait(&self, deadline_ns: Option<u64>, something_happened: bool) -> (Wait, bool) {
        let own = self.net.deadline_ns();
        let nearest = match (deadline_ns, own) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let Some(nearest) = nearest else {
            return (if something_happened { Wait::No } else { Wait::Forever }, false);
        };
        let now = clock::mono_ns();
        let due = deadline_ns.is_some_and(|deadline| deadline <= now);
        if something_happened || nearest <= now { (Wait::No, due) } else { (Wait::ForNs(nearest - now), due) }
    }

    fn complete(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        self.kernel.completions(&mut completions);
        for completion in completions.drain(..) {
            let Completion { token, result, .. } = completion;
            match token.kind {
                Kind::Cancel => {}
                Kind::Disk => self.disk.completed(token.id as usize, result, &mut self.kernel)?,
                Kind::Sync => self.disk.sync_completed(token.id as usize, result, &mut self.kernel),
                Kind::Wake => {
                    if self.waker.drain() {
                        events.push(Event::Stop);
                    }
                    self.net.take_resolved(&mut self.kernel)?;
                    while let Some((ticket, result)) = self.extents.answered() {
                        events.push(Event::Extents { ticket, result });
                    }
                    while let Some((ticket, bytes)) = self.work.answered() {
                        events.push(Event::Worked { ticket, bytes });
                    }
                    self.watch(Kind::Wake)?;
                }
                Kind::Signal => {
                    if self.signals.as_mut().is_some_and(Signals::drain) {
                        events.push(Event::Stop);
                    }
                    self.watch(Kind::Signal)?;
                }
                Kind::Accept | Kind::Connect | Kind::Receive | Kind::Send => {
                    self.net.completed(completion, &mut self.kernel, events)?;
                }
            }
        }
        self.completions = completions;
        self.disk.collect(events);
        Ok(())
    }

    /// Waits for the waker or the signals to become readable.
    fn watch(&mut self, kind: Kind) -> io::Result<()> {
        let descriptor = match (kind, &self.signals) {
            (Kind::Signal, Some(signals)) => signals.descriptor(),
            _ => self.waker.descriptor(),
        };
        let entry = opcode::PollAdd::new(types::Fd(descriptor), libc::POLLIN as u32).build();
        // SAFETY: no memory is named, and both descriptors stay open as long as the reactor.
        unsafe { self.kernel.push(entry, Token::new(kind, 0)) }
    }

    /// Keeps an error of the ring for the next turn, which is where the daemon looks.
    fn keep(&mut self, done: io::Result<()>) {
        if let Err(error) = done {
            self.failures.push_back(error);
        }
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        if self.kernel.cancel_all() {
            // SAFETY: dropped here and nowhere else; nothing uses it afterwards.
            unsafe { std::mem::ManuallyDrop::drop(&mut self.kernel) };
        } else {
            // Memory that the kernel may still write must not be freed: it is left to the end of the process.
            std::mem::forget(std::mem::replace(&mut self.net, Net::new(Resolver::new(self.waker.clone()), 0)));
            std::mem::forget(std::mem::replace(&mut self.disk, Disk::new()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Direct;

    /// The memory of this process as a file, which has nothing where it begins: to read there fails.
    #[test]
    fn a_read_that_fails_names_file_offset_and_length() {
        let options = ReactorOptions { arena_bytes: 8 << 20, ..ReactorOptions::default() };
        let mut reactor = Reactor::new(options).expect("a reactor");
        let scratch = std::env::temp_dir().join(format!("farshore-reader-{}", std::process::id()));
        std::fs::write(&scratch, [0; 4096]).expect("room");
        let mut opened =
            open::open(&OpenOptions { path: scratch.clone(), direct: Direct::Never, ..OpenOptions::default() })
                .expect("it is there");
        opened.file = std::fs::File::open("/proc/self/mem").expect("a process has memory");
        let reader = FileReader::new(&opened, &reactor.kernel.arena).expect("it is open");
        let said = reader.read_at(512, 1024).expect_err("nothing is there").to_string();
        let wanted = format!("{}: cannot read, 1024 bytes at offset 512: ", scratch.display());
        assert!(said.starts_with(&wanted), "{said}");
        let file = reactor.disk.add(opened, &mut reactor.kernel);
        reactor.disk(file, Ticket(1), DiskKind::Read { offset: 4096, length: 2048 });
        let mut events = Vec::new();
        while events.is_empty() {
            reactor.turn(None, &mut events).expect("the ring works");
        }
        let Some(Event::Disk { result: Err(fail), .. }) = events.first() else { panic!("it was read: {events:?}") };
        let wanted = format!("{}: read failed, 2048 bytes at offset 4096: ", scratch.display());
        assert!(fail.to_string().starts_with(&wanted), "{fail}");
        std::fs::remove_file(scratch).expect("there");
    }
}
