//! What the interoperability tests stand on: scratch directories, tools that may be missing, a server of ours
//! with memory for a disk, and a region to drive.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use farshore::core::address::Address;
use farshore::core::allocation::Stretch;
use farshore::core::errno::Errno;
use farshore::core::ids::{Epoch, Owner, Ticket};
use farshore::core::machine::DiskResult;
use farshore::core::modes::TlsMode;
use farshore::core::peer::{PeerName, Role};
use farshore::io::tls::Acceptor;
use farshore::io::{Event, Reactor, ReactorOptions, Stopper};
use farshore::nbd::region::{Region, RegionEvent, TableTarget};
use farshore::nbd::server::NbdServer;
use farshore::nbd::session::{self, Export, Kind, Refusal};

use crate::listens::listens;

/// A directory of its own for each test, removed at the end.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // Socket paths are short: not under the build directory.
        let name = format!("farshore-nbd-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a scratch directory");
        Scratch(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A command, or `None` with a line that says why the test is skipped.
pub fn tool(name: &str) -> Option<Command> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|dir| dir.join(name)).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("skipped: {name} is not installed");
    }
    found.map(Command::new)
}

/// A Python that has libnbd's bindings: the system's own, whatever comes first on the path.
pub fn python_with_libnbd() -> Option<Command> {
    let system = Path::new("/usr/bin/python3");
    let python = || if system.is_file() { Some(Command::new(system)) } else { tool("python3") };
    let bindings = python()?.args(["-c", "import nbd"]).output().is_ok_and(|output| output.status.success());
    if !bindings {
        eprintln!("skipped: python3 has no nbd module (libnbd)");
        return None;
    }
    python()
}

/// Runs a tool to its end and shows what it said when it failed.
pub fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().expect("the tool was found a moment ago");
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A process that is killed at the end of its test.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until somebody listens on a unix socket.
pub fn wait_for(socket: &Path) {
    let until = Instant::now() + Duration::from_secs(10);
    while !listens(socket) {
        assert!(Instant::now() < until, "nobody listens on {}", socket.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn reactor() -> Reactor {
    Reactor::new(ReactorOptions { arena_bytes: 64 << 20, ..ReactorOptions::default() }).expect("a reactor")
}

/// Bytes that look like nothing in particular, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Our server over memory, on a unix socket and on TCP: export `db` writable, `ro` read-only, all else refused.
pub struct MemoryServer {
    pub socket: PathBuf,
    pub tcp: String,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
    _scratch: Scratch,
}

pub const MEMORY_BYTES: usize = 64 << 20;

impl MemoryServer {
    pub fn start() -> MemoryServer {
        MemoryServer::start_with(TlsMode::Off, None)
    }

    /// TLS has this part on TCP, and that of unix sockets there.
    pub fn start_with(mode: TlsMode, acceptor: Option<Acceptor>) -> MemoryServer {
        let scratch = Scratch::new();
        let socket = scratch.path("nbd.sock");
        let (give, take) = std::sync::mpsc::channel();
        let address = Address::Unix(socket.clone());
        let thread = std::thread::spawn(move || {
            let mut reactor = reactor();
            let unix = reactor.listen(&address).expect("a fresh socket");
            let tcp = reactor.listen(&Address::Tcp("127.0.0.1:0".into())).expect("a free port");
            let tcp = reactor.listen_address(tcp).expect("it listens").to_string();
            give.send((reactor.stopper(), tcp)).expect("the test waits");
            serve(reactor, |listener| if listener == unix { mode.on_unix() } else { mode }, acceptor.as_ref());
        });
        let (stopper, tcp) = take.recv().expect("the server starts");
        MemoryServer { socket, tcp, stopper, thread: Some(thread), _scratch: scratch }
    }

    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }
}

impl Drop for MemoryServer {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the server panicked");
        }
    }
}

fn serve(mut reactor: Reactor, mode: impl Fn(usize) -> TlsMode, acceptor: Option<&Acceptor>) {
    let mut server = NbdServer::new();
    let mut disk = vec![0u8; MEMORY_BYTES];
    let mut events = Vec::new();
    let mut asked = Vec::new();
    loop {
        reactor.turn(server.deadline_ns(), &mut events).expect("the ring works");
        for event in events.drain(..) {
            if server.on_event(&mut reactor, &event, &mut asked) {
                continue;
            }
            match event {
                Event::Accepted { listener, conn, peer } => {
                    server.add_with(&mut reactor, conn, &peer, mode(listener), acceptor);
                }
                Event::Stop => return,
                _ => {}
            }
        }
        server.tick(&mut reactor);
        loop {
            // Newest first: clients have to take answers in any order.
            for (conn, event) in std::mem::take(&mut asked).into_iter().rev() {
                match event {
                    session::Event::Resolve { name, .. } => server.resolved(conn, export(&name)),
                    session::Event::List => {
                        server.listed(conn, &[("db".into(), "memory".into()), ("ro".into(), String::new())]);
                    }
                    session::Event::Request(session::Request { cookie, kind: Kind::Status { offset, length, .. } }) => {
                        server.status(conn, cookie, &stretches(&disk, offset as usize, length as usize));
                    }
                    session::Event::Request(request) => {
                        let result = carry_out(&mut disk, request.kind);
                        server.reply(conn, request.cookie, result);
                    }
                    session::Event::Disconnect => {}
                    session::Event::Secure => unreachable!("the server begins TLS by itself"),
                }
            }
            server.flush(&mut reactor, &mut asked);
            if asked.is_empty() {
                break;
            }
        }
    }
}

pub fn export(name: &str) -> Result<Export, Refusal> {
    if !["db", "ro"].contains(&name) {
        let text = format!("no export is called {name:?}");
        return Err(Refusal { code: farshore::nbd::protocol::REP_ERR_UNKNOWN, text });
    }
    Ok(Export {
        name: name.into(),
        description: "memory".into(),
        size: MEMORY_BYTES as u64,
        read_only: name == "ro",
        block_min: 1,
        block_preferred: 4096,
        block_max: 32 << 20,
        multi_conn: true,
        trim: true,
        zeroes: true,
        fast_zero: true,
        cache: true,
        allocation: true,
        fua: true,
        flush: true,
    })
}

fn carry_out(disk: &mut [u8], kind: Kind) -> Result<Bytes, Errno> {
    match kind {
        Kind::Read { offset, length } => {
            return Ok(Bytes::copy_from_slice(&disk[offset as usize..][..length as usize]));
        }
        Kind::Write { offset, data, .. } => disk[offset as usize..][..data.len()].copy_from_slice(&data),
        Kind::Flush | Kind::Cache { .. } => {}
        Kind::Status { .. } => unreachable!("answered before"),
        Kind::Trim { offset, length, .. } | Kind::Zeroes { offset, length, .. } => {
            disk[offset as usize..][..length as usize].fill(0);
        }
    }
    Ok(Bytes::new())
}

/// Blocks of zeroes are taken for holes.
fn stretches(disk: &[u8], offset: usize, length: usize) -> Vec<Stretch> {
    let mut found: Vec<Stretch> = Vec::new();
    let mut at = offset;
    while at < offset + length {
        let end = ((at / 4096 + 1) * 4096).min(offset + length);
        let (hole, bytes) = (disk[at..end].iter().all(|byte| *byte == 0), (end - at) as u64);
        match found.last_mut() {
            Some(last) if last.hole == hole => last.length += bytes,
            _ => found.push(Stretch { length: bytes, hole }),
        }
        at = end;
    }
    found
}

/// A region and the reactor that carries it.
pub struct Driver {
    pub reactor: Reactor,
    region: Option<Region>,
    seen: Vec<RegionEvent>,
    next: u64,
}

impl Driver {
    /// Begins to open; epoch 0 is the view.
    pub fn open(target: &TableTarget, epoch: u32, owner: u64) -> Driver {
        let mut reactor = reactor();
        let own = PeerName::new("orders", Role::Primary);
        let connector = Region::connector(target, None, &own).expect("certificates");
        let region = Region::open(&mut reactor, target, connector.as_ref(), Epoch(epoch), Owner(owner));
        Driver { reactor, region: Some(region), seen: Vec::new(), next: 1 }
    }

    /// Opens it and returns its size.
    pub fn opened(target: &TableTarget, epoch: u32, owner: u64) -> (Driver, u64) {
        let mut driver = Driver::open(target, epoch, owner);
        match driver.event() {
            RegionEvent::Opened { size, .. } => (driver, size),
            other => panic!("{target}: {other:?}"),
        }
    }

    /// The next event, within ten seconds.
    pub fn event(&mut self) -> RegionEvent {
        let until_ns = self.reactor.now().mono_ns + 10_000_000_000;
        let mut events = Vec::new();
        while self.seen.is_empty() {
            assert!(self.reactor.now().mono_ns < until_ns, "nothing happens");
            let region = self.region.as_mut().expect("it is open");
            let deadline_ns = region.deadline_ns().unwrap_or(until_ns).min(until_ns);
            self.reactor.turn(Some(deadline_ns), &mut events).expect("the ring works");
            for event in events.drain(..) {
                region.on_event(&mut self.reactor, &event, &mut self.seen);
            }
            region.tick(&mut self.reactor, &mut self.seen);
        }
        self.seen.remove(0)
    }

    fn done(&mut self, ticket: Ticket) -> DiskResult {
        match self.event() {
            RegionEvent::Done { ticket: answered, result } if answered == ticket => result,
            other => panic!("expected the answer to {ticket}, got {other:?}"),
        }
    }

    fn parts(&mut self) -> (&mut Reactor, &mut Region, Ticket) {
        self.next += 1;
        (&mut self.reactor, self.region.as_mut().expect("it is open"), Ticket(self.next))
    }

    pub fn start_write(&mut self, offset: u64, parts: Vec<Bytes>, fua: bool) -> Ticket {
        let (reactor, region, ticket) = self.parts();
        region.write(reactor, ticket, offset, parts, fua);
        ticket
    }

    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> DiskResult {
        let ticket = self.start_write(offset, vec![Bytes::copy_from_slice(data)], fua);
        self.done(ticket)
    }

    pub fn read(&mut self, offset: u64, length: u64) -> DiskResult {
        let (reactor, region, ticket) = self.parts();
        region.read(reactor, ticket, offset, length);
        self.done(ticket)
    }

    pub fn flush(&mut self) -> DiskResult {
        let (reactor, region, ticket) = self.parts();
        region.flush(reactor, ticket);
        self.done(ticket)
    }

    pub fn close(mut self) {
        self.region.take().expect("it is open").close(&mut self.reactor);
        let mut events = Vec::new();
        let until_ns = self.reactor.now().mono_ns + 200_000_000;
        while events.is_empty() && self.reactor.now().mono_ns < until_ns {
            self.reactor.turn(Some(until_ns), &mut events).expect("the ring works");
        }
    }
}
