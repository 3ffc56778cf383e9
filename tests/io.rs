//! The reactor against the real kernel: sockets, files, signals. Loopback and temporary directories only.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use farshore::core::address::Address;
use farshore::core::ids::{Conn, Ticket};
use farshore::core::machine::{DiskKind, DiskResult, IoFail, Lease};
use farshore::io::{Direct, Event, FileId, OpenOptions, Preallocate, Range, Reactor, ReactorOptions};

/// A directory of its own for each test, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(base: &Path) -> Scratch {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("farshore-io-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = base.join(name);
        std::fs::create_dir_all(&path).expect("a scratch directory");
        Scratch(path)
    }

    /// On the file system of the build directory, which is a real one.
    fn on_disk() -> Scratch {
        Scratch::new(Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    fn in_memory() -> Scratch {
        Scratch::new(Path::new("/dev/shm"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn reactor() -> Reactor {
    Reactor::new(ReactorOptions { arena_bytes: 32 << 20, ..ReactorOptions::default() }).expect("a reactor")
}

/// Turns until `done` says so, at most ten seconds.
fn turn_until(reactor: &mut Reactor, mut done: impl FnMut(&mut Reactor, &Event) -> bool) {
    let limit = reactor.now().mono_ns + 10_000_000_000;
    loop {
        let mut events = Vec::new();
        reactor.turn(Some(limit), &mut events).expect("the ring works");
        assert!(reactor.now().mono_ns < limit, "nothing happened in time");
        let mut finished = false;
        for event in &events {
            finished |= done(reactor, event);
        }
        if finished {
            return;
        }
    }
}

/// Bytes that differ at every position of a stream.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

/// One reactor that echoes everything in messages of its own choice, and a blocking client in a thread.
fn echo(address: &Address, hint: (usize, usize), chunks: &[usize]) {
    let mut reactor = reactor();
    let listener = reactor.listen(address).expect("listens");
    let real = reactor.listen_address(listener).expect("listening").clone();
    let chunks = chunks.to_vec();
    let mut left: usize = chunks.iter().sum();
    let client = std::thread::spawn(move || {
        let mut stream = dial(&real);
        let mut reader = stream.try_clone();
        let total: usize = chunks.iter().sum();
        let expected = pattern(7, total);
        let sent = expected.clone();
        let writer = std::thread::spawn(move || {
            let mut at = 0;
            for chunk in chunks {
                stream.write_all(&sent[at..at + chunk]);
                at += chunk;
            }
            stream
        });
        let mut got = vec![0; total];
        reader.read_exact(&mut got);
        assert!(got == expected, "the echo differs");
        drop(writer.join().expect("the writer"));
    });
    let mut open = Vec::new();
    let mut closed = 0;
    turn_until(&mut reactor, |reactor, event| match event {
        Event::Accepted { conn, .. } => {
            reactor.hint(*conn, hint.0, hint.1);
            open.push(*conn);
            false
        }
        Event::Received { conn } => {
            // Take whole messages only, as a codec does, and the odd rest.
            let message = hint.0 + hint.1;
            while hint.1 > 0 && reactor.rx(*conn).len() >= message {
                let head = reactor.rx(*conn).take(hint.0);
                let body = reactor.rx(*conn).take(hint.1);
                reactor.send(*conn, head);
                reactor.send(*conn, body);
                left -= message;
            }
            let rest = reactor.rx(*conn).len();
            if hint.1 == 0 || rest % 7 == 3 || rest == left {
                left -= rest;
                let bytes = reactor.rx(*conn).take(rest);
                reactor.send(*conn, bytes);
            }
            false
        }
        Event::Closed { conn, .. } => {
            assert!(open.contains(conn));
            closed += 1;
            true
        }
        _ => false,
    });
    assert_eq!(closed, 1);
    client.join().expect("the client saw its bytes");
}

/// A blocking stream of either family.
enum Dialled {
    Unix(UnixStream),
    Tcp(std::net::TcpStream),
}

impl Dialled {
    fn try_clone(&self) -> Dialled {
        match self {
            Dialled::Unix(stream) => Dialled::Unix(stream.try_clone().expect("clones")),
            Dialled::Tcp(stream) => Dialled::Tcp(stream.try_clone().expect("clones")),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) {
        match self {
            Dialled::Unix(stream) => stream.write_all(bytes),
            Dialled::Tcp(stream) => stream.write_all(bytes),
        }
        .expect("writes");
    }

    fn read_exact(&mut self, bytes: &mut [u8]) {
        match self {
            Dialled::Unix(stream) => stream.read_exact(bytes),
            Dialled::Tcp(stream) => stream.read_exact(bytes),
        }
        .expect("reads");
    }
}

fn dial(address: &Address) -> Dialled {
    match address {
        Address::Unix(path) => Dialled::Unix(UnixStream::connect(path).expect("connects")),
        Address::Tcp(host_port) => Dialled::Tcp(std::net::TcpStream::connect(host_port).expect("connects")),
    }
}

#[test]
fn bytes_come_back_as_they_went_over_unix_and_tcp_with_every_kind_of_hint() {
    let scratch = Scratch::on_disk();
    let whole = |message: usize, count: usize| vec![message; count];
    let cases: Vec<((usize, usize), Vec<usize>)> = vec![
        ((0, 0), vec![1, 2, 3, 5000, 1, 70_000, 300_000, 12]),
        ((28, 4096), whole(28 + 4096, 200)),
        ((28, 4096), [whole(100, 50), vec![(28 + 4096) * 40 - 5000]].concat()),
        ((96, 131_072), whole((96 + 131_072) / 4, 4 * 11)),
        ((28, 512), [vec![1; 540], whole(540, 300)].concat()),
        ((32, 2 << 20), whole(32 + (2 << 20), 6)),
        ((28, 3000), vec![3028 * 50 + 3; 1]),
        ((0, 2 << 20), whole(300_000, 30)),
    ];
    for (number, (hint, chunks)) in cases.into_iter().enumerate() {
        let path = scratch.path(&format!("{number}.sock"));
        echo(&Address::Unix(path), hint, &chunks);
        echo(&Address::Tcp("127.0.0.1:0".into()), hint, &chunks);
    }
}

#[test]
fn bodies_that_were_hinted_land_aligned_and_in_one_piece() {
    let scratch = Scratch::on_disk();
    let path = scratch.path("s");
    let mut reactor = reactor();
    reactor.listen(&Address::Unix(path.clone())).expect("listens");
    let mut client = UnixStream::connect(&path).expect("connects");
    let data = pattern(3, (28 + 8192) * 64);
    let sent = data.clone();
    let writer = std::thread::spawn(move || {
        client.write_all(&sent).expect("writes");
        client
    });
    let (mut at, mut aligned, mut messages) = (0, 0, 0);
    turn_until(&mut reactor, |reactor, event| {
        match event {
            Event::Accepted { conn, .. } => reactor.hint(*conn, 28, 8192),
            Event::Received { conn } => {
                while reactor.rx(*conn).len() >= 28 + 8192 {
                    let head = reactor.rx(*conn).take(28);
                    let body = reactor.rx(*conn).take(8192);
                    assert_eq!(head, data[at..at + 28]);
                    assert_eq!(body, data[at + 28..at + 28 + 8192]);
                    at += 28 + 8192;
                    messages += 1;
                    aligned += usize::from((body.as_ptr() as usize).is_multiple_of(4096));
                }
            }
            _ => {}
        }
        messages == 64
    });
    assert_eq!(aligned, 64, "every body can be written without a copy");
    drop(writer.join());
}

/// A reactor with one accepted connection, and its client.
fn accepted(scratch: &Scratch) -> (Reactor, Conn, UnixStream) {
    let path = scratch.path("s");
    let mut reactor = reactor();
    reactor.listen(&Address::Unix(path.clone())).expect("listens");
    let client = UnixStream::connect(&path).expect("connects");
    let mut conn = None;
    turn_until(&mut reactor, |_, event| {
        if let Event::Accepted { conn: accepted, .. } = event {
            conn = Some(*accepted);
        }
        conn.is_some()
    });
    (reactor, conn.expect("accepted"), client)
}

/// Turns for a while and counts what `of` recognises.
fn count_for(reactor: &mut Reactor, ns: u64, of: impl Fn(&Event) -> bool) -> usize {
    let until = reactor.now().mono_ns + ns;
    let mut seen = 0;
    while reactor.now().mono_ns < until {
        let mut events = Vec::new();
        reactor.turn(Some(until), &mut events).expect("the ring works");
        seen += events.iter().filter(|event| of(event)).count();
    }
    seen
}

#[test]
fn close_delivers_what_is_queued_although_the_peer_still_sends() {
    let scratch = Scratch::on_disk();
    let (mut reactor, conn, mut client) = accepted(&scratch);
    let answer = pattern(9, 3 << 20);
    let expected = answer.clone();
    let peer = std::thread::spawn(move || {
        client.write_all(&pattern(1, 100_000)).expect("writes");
        let mut got = Vec::new();
        client.read_to_end(&mut got).expect("reads to a clean end");
        assert!(got == expected);
    });
    reactor.send(conn, Bytes::from(answer));
    reactor.close(conn, "done with you");
    reactor.send(conn, Bytes::from_static(b"too late"));
    reactor.close(conn, "again");
    let mut reasons = Vec::new();
    turn_until(&mut reactor, |_, event| {
        if let Event::Closed { reason, .. } = event {
            reasons.push(reason.clone());
        }
        !reasons.is_empty()
    });
    assert_eq!(reasons, ["done with you"]);
    peer.join().expect("the peer got everything");
    assert_eq!(count_for(&mut reactor, 50_000_000, |event| matches!(event, Event::Closed { .. })), 0, "once only");
    assert!(reactor.rx(conn).is_empty());
}

#[test]
fn close_takes_bounded_time_when_the_peer_reads_nothing_and_abort_none() {
    let scratch = Scratch::on_disk();
    for (abort, most_ns) in [(false, 3_000_000_000), (true, 200_000_000)] {
        let (mut reactor, conn, client) = accepted(&scratch);
        reactor.send(conn, Bytes::from(vec![1; 8 << 20]));
        assert_eq!(count_for(&mut reactor, 20_000_000, |event| matches!(event, Event::Sent { .. })), 0);
        assert!(reactor.queued_bytes(conn) > 0);
        let start = reactor.now().mono_ns;
        if abort {
            reactor.abort(conn, "enough")
        } else {
            reactor.close(conn, "enough")
        }
        turn_until(&mut reactor, |_, event| matches!(event, Event::Closed { reason, .. } if reason == "enough"));
        assert!(reactor.now().mono_ns - start < most_ns);
        assert_eq!(count_for(&mut reactor, 20_000_000, |event| matches!(event, Event::Closed { .. })), 0);
        drop(client);
    }
}

#[test]
fn partial_sends_go_on_where_they_stopped() {
    let scratch = Scratch::on_disk();
    let (mut reactor, conn, mut client) = accepted(&scratch);
    let data = pattern(4, 5 << 20);
    for part in data.chunks(777) {
        reactor.send(conn, Bytes::copy_from_slice(part));
    }
    let peer = std::thread::spawn(move || {
        let mut got = vec![0; 5 << 20];
        for piece in got.chunks_mut(100_001) {
            client.read_exact(piece).expect("reads");
        }
        got
    });
    turn_until(&mut reactor, |_, event| matches!(event, Event::Sent { .. }));
    assert_eq!(reactor.queued_bytes(conn), 0);
    assert!(peer.join().expect("the peer") == data);
}

#[test]
fn leased_bytes_wait_for_the_lease_and_for_room_and_go_out_in_order() {
    let scratch = Scratch::on_disk();
    let (mut reactor, conn, mut client) = accepted(&scratch);
    let until = |reactor: &Reactor, ns| Lease::Until(reactor.now().mono_ns + ns);
    let data = pattern(5, 3 << 20);
    let lease = until(&reactor, 10_000_000_000);
    reactor.lease(lease).expect("a timer");
    for (at, part) in data.chunks(7777).enumerate() {
        let part = Bytes::copy_from_slice(part);
        if at % 3 == 0 { reactor.send_leased(conn, part) } else { reactor.send(conn, part) }
    }
    // Nobody reads yet: there is no room for all of it, so it is sent later and that is told.
    assert_eq!(count_for(&mut reactor, 5_000_000, |event| matches!(event, Event::Sent { .. })), 0);
    let mut peer = client.try_clone().expect("cloned");
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; 3 << 20];
        peer.read_exact(&mut got).expect("reads");
        got
    });
    turn_until(&mut reactor, |_, event| matches!(event, Event::Sent { .. }));
    assert_eq!(reactor.queued_bytes(conn), 0);
    assert!(reader.join().expect("the peer") == data);

    // A reactor of its own, so that its lease is short.
    drop(reactor);
    let (mut reactor, conn, again) = accepted(&scratch);
    client = again;
    let lease = until(&reactor, 30_000_000);
    reactor.lease(lease).expect("a timer");
    reactor.send_leased(conn, Bytes::from_static(b"in time "));
    count_for(&mut reactor, 60_000_000, |_| false);
    reactor.send_leased(conn, Bytes::from_static(b"held "));
    reactor.send(conn, Bytes::from_static(b"and behind "));
    assert_eq!(count_for(&mut reactor, 30_000_000, |event| matches!(event, Event::Sent { .. })), 0);
    assert_eq!(reactor.queued_bytes(conn), 16);
    let lease = until(&reactor, 1_000_000_000);
    reactor.lease(lease).expect("a timer");
    turn_until(&mut reactor, |_, event| matches!(event, Event::Sent { .. }));
    reactor.lease(Lease::Over).expect("no timer needed");
    reactor.send(conn, Bytes::from_static(b"free "));
    count_for(&mut reactor, 10_000_000, |_| false);
    reactor.send_leased(conn, Bytes::from_static(b"never"));
    turn_until(&mut reactor, |_, event| matches!(event, Event::Closed { .. }));
    let mut got = String::new();
    client.read_to_string(&mut got).expect("the end of the stream");
    assert_eq!(got, "in time held and behind free ");
}

#[test]
fn a_paused_connection_is_not_received_from() {
    let scratch = Scratch::on_disk();
    let (mut reactor, conn, mut client) = accepted(&scratch);
    reactor.pause(conn, true);
    client.write_all(&[1; 1000]).expect("writes");
    count_for(&mut reactor, 20_000_000, |_| true);
    client.set_write_timeout(Some(std::time::Duration::from_millis(200))).expect("sets");
    let filler = vec![2; 4 << 20];
    assert!(client.write_all(&filler).is_err(), "the peer is held back");
    let held = reactor.rx(conn).len();
    assert!(held <= 4096, "{held} bytes were received while paused");
    reactor.pause(conn, false);
    turn_until(&mut reactor, |reactor, _| reactor.rx(conn).len() > 4096);
}

#[test]
fn connecting_works_by_name_and_fails_with_a_reason() {
    let mut server = reactor();
    let listener = server.listen(&Address::Tcp("127.0.0.1:0".into())).expect("listens");
    let Some(Address::Tcp(real)) = server.listen_address(listener).cloned() else { panic!("a TCP address") };
    let port = real.rsplit(':').next().expect("a port").to_owned();
    let mut reactor = reactor();
    let conn = reactor.next_conn();
    reactor.connect(conn, &Address::Tcp(format!("localhost:{port}")));
    reactor.send(conn, Bytes::from_static(b"early"));
    turn_until(&mut reactor, |_, event| matches!(event, Event::Connected { conn: up } if *up == conn));
    count_for(&mut reactor, 10_000_000, |_| true);
    assert_eq!(reactor.queued_bytes(conn), 0);
    turn_until(&mut server, |server, event| match event {
        Event::Received { conn } => server.rx(*conn).len() == 5,
        _ => false,
    });
    drop(server);
    turn_until(&mut reactor, |_, event| matches!(event, Event::Closed { conn: down, .. } if *down == conn));
    for wrong in [format!("127.0.0.1:{port}"), "no-such-host.invalid:1".into()] {
        let conn = reactor.next_conn();
        reactor.connect(conn, &Address::Tcp(wrong.clone()));
        turn_until(&mut reactor, |_, event| match event {
            Event::Closed { conn: down, reason } => {
                assert_eq!(*down, conn);
                assert!(reason.contains("connect") || reason.contains("resolve"), "{wrong}: {reason}");
                true
            }
            _ => false,
        });
    }
    let missing = reactor.next_conn();
    reactor.connect(missing, &Address::Unix("/nonexistent/socket".into()));
    turn_until(&mut reactor, |_, event| matches!(event, Event::Closed { conn, .. } if *conn == missing));
}

#[test]
fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not() {
    let scratch = Scratch::on_disk();
    let path = scratch.path("s");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
    assert!(path.exists(), "the standard library leaves the file of a closed listener");
    let mut first = reactor();
    let listener = first.listen(&Address::Unix(path.clone())).expect("replaces the stale socket");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).expect("it is there").permissions());
    assert_eq!(mode & 0o777, 0o600, "its user's alone, whatever the umask is");
    let refused = reactor().listen(&Address::Unix(path.clone())).expect_err("in use");
    assert!(refused.to_string().contains("in use"), "{refused}");
    first.stop_listening(listener);
    assert!(!path.exists(), "the name is free at once");
    std::fs::write(&path, b"a file").expect("writes");
    assert!(first.listen(&Address::Unix(path.clone())).is_err(), "a file is never replaced");
}

#[test]
fn an_idle_reactor_sleeps_until_its_deadline_and_stops_when_told() {
    let mut reactor = reactor();
    let start = reactor.now().mono_ns;
    let mut events = Vec::new();
    reactor.turn(Some(start + 50_000_000), &mut events).expect("turns");
    assert!(events.is_empty());
    assert!(reactor.now().mono_ns >= start + 50_000_000);
    let stopper = reactor.stopper();
    let other = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        stopper.stop();
    });
    reactor.turn(None, &mut events).expect("turns");
    assert!(matches!(events[..], [Event::Stop]));
    other.join().expect("joins");
}

#[test]
fn sigterm_becomes_a_stop() {
    let options = ReactorOptions { signals: true, arena_bytes: 1 << 20, ..ReactorOptions::default() };
    let mut reactor = Reactor::new(options).expect("a reactor");
    // To this thread only: the other tests' threads have not blocked it.
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).expect("signals itself");
    turn_until(&mut reactor, |_, event| matches!(event, Event::Stop));
}

/// A file with its reactor, and disk operations that wait for their results.
struct Disk {
    reactor: Reactor,
    file: FileId,
    next: u64,
}

impl Disk {
    fn open(options: OpenOptions) -> Disk {
        let mut reactor = reactor();
        let file = reactor.open(&options).expect("opens");
        Disk { reactor, file, next: 0 }
    }

    fn submit(&mut self, kind: DiskKind) -> Ticket {
        self.next += 1;
        self.reactor.disk(self.file, Ticket(self.next), kind);
        Ticket(self.next)
    }

    fn run(&mut self, kind: DiskKind) -> DiskResult {
        let ticket = self.submit(kind);
        let mut found = None;
        turn_until(&mut self.reactor, |_, event| match event {
            Event::Disk { ticket: done, result, .. } if *done == ticket => {
                assert!(found.is_none(), "completed once");
                found = Some(result.clone());
                true
            }
            _ => false,
        });
        found.expect("completed")
    }

    /// What has storage: (length, whether it is a hole).
    fn extents(&mut self, offset: u64, length: u64) -> Vec<(u64, bool)> {
        self.next += 1;
        let ticket = Ticket(self.next);
        self.reactor.extents(self.file, ticket, Range { offset, length, most: 100 });
        let mut found = Vec::new();
        turn_until(&mut self.reactor, |_, event| match event {
            Event::Extents { ticket: done, result } if *done == ticket => {
                found = result.clone().expect("a file that is there");
                true
            }
            _ => false,
        });
        assert_eq!(found.iter().map(|stretch| stretch.length).sum::<u64>(), length, "few stretches, all of them");
        found.iter().map(|stretch| (stretch.length, stretch.hole)).collect()
    }

    fn read(&mut self, offset: u64, length: u64) -> Bytes {
        self.run(DiskKind::Read { offset, length }).expect("reads")
    }

    fn write(&mut self, offset: u64, parts: &[&[u8]], durable: bool) {
        let parts = parts.iter().map(|part| Bytes::copy_from_slice(part)).collect();
        self.run(DiskKind::Write { offset, parts, durable }).expect("writes");
    }
}

const FILE_BYTES: usize = 4 << 20;

fn each_kind_of_file(check: impl Fn(&mut Disk, &mut Vec<u8>)) {
    for (scratch, direct, is_direct) in [
        (Scratch::on_disk(), Direct::Auto, None),
        (Scratch::on_disk(), Direct::Never, Some(false)),
        (Scratch::in_memory(), Direct::Auto, None),
    ] {
        let options = OpenOptions {
            path: scratch.path("file"),
            create: true,
            size: Some(FILE_BYTES as u64),
            direct,
            random: true,
            ..OpenOptions::default()
        };
        let mut disk = Disk::open(options);
        if let Some(expected) = is_direct {
            assert_eq!(disk.reactor.file_is_direct(disk.file), expected);
        }
        let mut model = vec![0; FILE_BYTES];
        check(&mut disk, &mut model);
        assert!(disk.read(0, FILE_BYTES as u64) == model, "the file differs from the model");
        assert_eq!(disk.reactor.file_size(disk.file), FILE_BYTES as u64);
        assert!(std::fs::read(scratch.path("file")).expect("reads") == model);
    }
}

#[test]
fn reads_and_writes_of_every_alignment_agree_with_a_model() {
    each_kind_of_file(|disk, model| {
        let sizes = [1, 63, 511, 512, 513, 4095, 4096, 4097, 8192, 70_000, 131_072, 1 << 20, (1 << 20) + 4096];
        for (number, length) in sizes.into_iter().enumerate() {
            for offset in [0, 1, 512, 700, 4096, 65_536 + 17, FILE_BYTES - length] {
                let data = pattern(number as u64 * 31 + offset as u64, length);
                model[offset..offset + length].copy_from_slice(&data);
                let cut = length / 3;
                disk.write(offset as u64, &[&data[..cut], &data[cut..]], offset % 3 == 0);
                let from = offset.saturating_sub(5);
                let upto = (offset + length + 5).min(FILE_BYTES);
                let read = disk.read(from as u64, (upto - from) as u64);
                assert!(read == model[from..upto], "offset {offset} length {length}");
            }
        }
    });
}

#[test]
fn aligned_parts_go_out_in_one_write_and_reads_land_aligned() {
    each_kind_of_file(|disk, model| {
        // What was read lies aligned in the arena, so writing it back needs no copy.
        let data = pattern(5, 256 << 10);
        disk.write(0, &[&data], false);
        model[..data.len()].copy_from_slice(&data);
        let parts: Vec<Bytes> = (0..64).map(|part| disk.read(part * 4096, 4096)).collect();
        assert!(parts.iter().all(|part| (part.as_ptr() as usize).is_multiple_of(4096)));
        disk.run(DiskKind::Write { offset: 1 << 20, parts, durable: true }).expect("writes");
        model[1 << 20..(1 << 20) + data.len()].copy_from_slice(&data);
    });
}

#[test]
fn what_was_written_is_no_hole_and_fast_zeroes_are_one() {
    each_kind_of_file(|disk, model| {
        let data = pattern(17, 256 << 10);
        disk.write(1 << 20, &[&data], false);
        model[1 << 20..(1 << 20) + data.len()].copy_from_slice(&data);
        assert_eq!(disk.extents((1 << 20) + 100, 1000), [(1000, false)]);
        disk.extents(0, FILE_BYTES as u64);
        let (offset, length) = ((1 << 20) + (64 << 10), 64 << 10);
        let fast = disk.reactor.zeroes_fast(disk.file, offset, length, true);
        disk.run(DiskKind::Zero { offset, length, unmap: true, durable: false }).expect("zeroes");
        model[offset as usize..(offset + length) as usize].fill(0);
        let found = disk.extents(offset, length);
        assert!(!fast || found == [(length, true)], "what is called fast is punched: {found:?}");
        // The way that keeps the space is known once it has worked.
        disk.run(DiskKind::Zero { offset, length, unmap: false, durable: false }).expect("zeroes");
        let slow = disk.reactor.zeroes_fast(disk.file, offset, length, false);
        assert!(fast || !slow, "a file system that keeps space can give it back");
    });
}

#[test]
fn reading_ahead_changes_nothing_and_is_answered() {
    each_kind_of_file(|disk, _| {
        disk.next += 1;
        let ticket = Ticket(disk.next);
        disk.reactor.read_ahead(disk.file, ticket, 4096, u64::from(u32::MAX));
        turn_until(
            &mut disk.reactor,
            |_, event| matches!(event, Event::Disk { ticket: done, result, .. } if *done == ticket && result.is_ok()),
        );
    });
}

#[test]
fn zeroed_ranges_read_as_zeroes_and_their_neighbours_stay() {
    each_kind_of_file(|disk, model| {
        model.copy_from_slice(&pattern(11, FILE_BYTES));
        let all = model.clone();
        disk.write(0, &[&all], false);
        for (offset, length, unmap) in [
            (0u64, 4096u64, true),
            (8192, 8192, false),
            (20_001, 333, false),
            (30_000, 70_001, true),
            (200_000, 2 << 20, false),
        ] {
            disk.run(DiskKind::Zero { offset, length, unmap, durable: unmap }).expect("zeroes");
            model[offset as usize..(offset + length) as usize].fill(0);
        }
    });
}

#[test]
fn many_operations_at_once_complete_once_each() {
    each_kind_of_file(|disk, model| {
        let mut open = std::collections::BTreeSet::new();
        for block in 0..FILE_BYTES / 4096 {
            let data = pattern(block as u64, 4096);
            model[block * 4096..(block + 1) * 4096].copy_from_slice(&data);
            let (offset, durable) = ((block * 4096) as u64, block % 5 == 0);
            open.insert(disk.submit(DiskKind::Write { offset, parts: vec![Bytes::from(data)], durable }));
            if block % 100 == 0 {
                open.insert(disk.submit(DiskKind::Sync));
            }
        }
        turn_until(&mut disk.reactor, |_, event| {
            if let Event::Disk { ticket, result, .. } = event {
                assert_eq!(*result, Ok(Bytes::new()));
                assert!(open.remove(ticket), "completed once");
            }
            open.is_empty()
        });
    });
}

#[test]
fn reads_past_the_end_are_zeroes() {
    each_kind_of_file(|disk, model| {
        let data = pattern(2, 100);
        disk.write((FILE_BYTES - 100) as u64, &[&data], false);
        model[FILE_BYTES - 100..].copy_from_slice(&data);
        let read = disk.read((FILE_BYTES - 100) as u64, 10_000);
        assert_eq!(&read[..100], &data[..]);
        assert!(read[100..].iter().all(|byte| *byte == 0) && read.len() == 10_000);
        assert!(disk.read(FILE_BYTES as u64 * 2, 5000).iter().all(|byte| *byte == 0));
        assert_eq!(disk.read(5, 0).len(), 0);
    });
}

#[test]
fn a_full_disk_is_no_space() {
    // A limit on the size of files stands in for a full disk: the kernel gives EFBIG, which means the same
    // to a caller. A process of its own, because the limit is the process's.
    let scratch = Scratch::on_disk();
    let path = scratch.path("small");
    if let Some(child) = std::env::var_os("FARSHORE_IO_FULL_DISK") {
        let limit = 1 << 20;
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_FSIZE, limit, limit).expect("limits");
        // SIGXFSZ would end the process before the error is seen.
        let mut set = nix::sys::signal::SigSet::empty();
        set.add(nix::sys::signal::Signal::SIGXFSZ);
        set.thread_block().expect("blocks");
        for direct in [Direct::Auto, Direct::Never] {
            let options = OpenOptions { path: child.clone().into(), create: true, direct, ..OpenOptions::default() };
            let mut disk = Disk::open(options);
            let parts = vec![Bytes::from(vec![1; 8192])];
            let result = disk.run(DiskKind::Write { offset: 2 << 20, parts, durable: false });
            assert!(matches!(result, Err(IoFail::NoSpace(_))), "{result:?}");
        }
        return;
    }
    let status = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "a_full_disk_is_no_space", "--nocapture"])
        .env("FARSHORE_IO_FULL_DISK", &path)
        .status()
        .expect("runs");
    assert!(status.success());
}

#[test]
fn files_are_made_grown_locked_and_listed_as_asked() {
    let scratch = Scratch::on_disk();
    let path = scratch.path("file");
    let mut reactor = reactor();
    let missing = OpenOptions { path: path.clone(), ..OpenOptions::default() };
    assert!(reactor.open(&missing).is_err());
    let options = OpenOptions {
        path: path.clone(),
        create: true,
        size: Some(1 << 20),
        exclusive_lock: true,
        ..OpenOptions::default()
    };
    let file = reactor.open(&options).expect("makes");
    assert!(reactor.file_was_created(file));
    assert_eq!(reactor.has_storage(file), Ok(false));
    let second = reactor.open(&options).expect_err("locked");
    assert!(second.to_string().contains("in use"), "{second}");
    reactor.write_sync(file, 65_536, &[7; 4096]).expect("writes");
    assert_eq!(reactor.has_storage(file), Ok(true));
    assert_eq!(reactor.read_sync(file, 65_530, 10).expect("reads"), [0, 0, 0, 0, 0, 0, 7, 7, 7, 7][..]);
    reactor.close_file(file);
    let larger = OpenOptions { size: Some(2 << 20), preallocate: Preallocate::Written, ..options };
    let file = reactor.open(&larger).expect("grows");
    assert!(!reactor.file_was_created(file));
    assert_eq!(reactor.file_size(file), 2 << 20);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).expect("there"));
    assert!(blocks * 512 > 1 << 20, "{blocks}");
}

#[test]
fn an_arena_that_is_exhausted_slows_nothing_down_but_copies() {
    let scratch = Scratch::on_disk();
    let mut reactor =
        Reactor::new(ReactorOptions { arena_bytes: 1 << 20, ..ReactorOptions::default() }).expect("a reactor");
    let options = OpenOptions { path: scratch.path("f"), create: true, size: Some(8 << 20), ..OpenOptions::default() };
    let file = reactor.open(&options).expect("makes");
    let mut held = Vec::new();
    for block in 0..1024u64 {
        reactor.disk(file, Ticket(block), DiskKind::Read { offset: block * 4096, length: 4096 });
    }
    turn_until(&mut reactor, |_, event| {
        if let Event::Disk { result, .. } = event {
            held.push(result.clone().expect("reads"));
        }
        held.len() == 1024
    });
    assert!(reactor.arena_status().heap_fallbacks > 0);
    drop(held);
    assert_eq!(reactor.arena_status().pages_used, 0, "everything is given back");
}

#[test]
fn memory_of_a_burst_goes_back_to_the_system_while_there_is_nothing_to_do() {
    let scratch = Scratch::on_disk();
    let mut disk = Disk::open(OpenOptions {
        path: scratch.path("f"),
        create: true,
        size: Some(FILE_BYTES as u64),
        ..OpenOptions::default()
    });
    let mut held: Vec<Bytes> = (0..28).map(|_| disk.read(0, 1 << 20)).collect();
    assert_eq!(disk.reactor.arena_status().chunks_used, 28);
    held.clear();
    count_for(&mut disk.reactor, 5_000_000, |_| true);
    count_for(&mut disk.reactor, 5_000_000, |_| true);
    assert!(disk.reactor.arena_status().chunks_used <= 20, "{:?}", disk.reactor.arena_status());
    held.extend((0..28).map(|_| disk.read(0, 1 << 20)));
    let status = disk.reactor.arena_status();
    assert_eq!((status.chunks_used, status.heap_fallbacks), (28, 0));
}
