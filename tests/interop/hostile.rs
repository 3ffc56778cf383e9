//! Clients that mean harm, against a primary as a process: they stop nobody else, and its memory stays bounded (I9).

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use farshore::cli::demo::site::Role;
use farshore::nbd::protocol::*;

use super::clients::Group;
use super::harness::{noise, python_with_libnbd};
use super::raw::Raw;
use super::tls::grant;

const MIB: u64 = 1 << 20;

/// Memory of the primary, bytes.
fn resident(group: &Group) -> u64 {
    let pid = group.site.pid(Role::Primary).expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process of ours");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its memory");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}

/// A connection past the handshake, by the shortest way there is.
fn transmitting(group: &Group) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(group.socket())?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    // Whom the server does not receive from any more is held up for no longer.
    stream.set_write_timeout(Some(Duration::from_millis(100)))?;
    stream.write_all(&[&3u32.to_be_bytes()[..], b"IHAVEOPT\0\0\0\x01\0\0\0\x02db"].concat())?;
    stream.read_exact(&mut [0; GREETING_BYTES + EXPORT_NAME_REPLY_BYTES])?;
    Ok(stream)
}

/// An honest client is served, and soon.
fn somebody_is_served(group: &Group, data: &[u8], patience: Duration) {
    let begun = Instant::now();
    let mut raw = Raw::extended(&group.socket(), "db")
        .unwrap_or_else(|error| panic!("no place for an honest client: {error}\n{}", group.site.log(Role::Primary)));
    raw.done(CMD_FLAG_PAYLOAD_LEN, CMD_WRITE, 8192, data.len() as u64, data).expect("a write");
    assert!(raw.read(8192, data.len() as u64).expect("a read") == data);
    assert!(begun.elapsed() < patience, "served after {:?}", begun.elapsed());
}

/// Sockets that this process may have open.
fn raise_the_limit() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("up to the hard limit");
    most
}

/// Long requests beside many clients that are stuck with one of their own, which never take the data or never send it.
#[test]
fn who_is_stuck_with_a_long_request_keeps_no_other_one_waiting() {
    let group = Group::start().expect("a group starts");
    let data = noise(2, 8 << 20);
    for command in [CMD_READ, CMD_WRITE] {
        let stuck: Vec<UnixStream> = (0..40)
            .filter_map(|_| {
                let mut stream = transmitting(&group).ok()?;
                stream.write_all(&RequestHead::encode(0, command, 1, 0, 32 << 20)).ok()?;
                let begun = if command == CMD_WRITE { &data[..70_000] } else { &[] };
                stream.write_all(begun).is_ok().then_some(stream)
            })
            .collect();
        assert_eq!(stuck.len(), 40);
        std::thread::sleep(Duration::from_millis(300));
        for _ in 0..3 {
            somebody_is_served(&group, &data, Duration::from_secs(3));
        }
    }
}

#[test]
fn hostile_clients_stop_nobody_and_hold_little() {
    let group = Group::start().expect("a group starts");
    let data = noise(1, 64 << 10);
    somebody_is_served(&group, &data, Duration::from_secs(10));
    let quiet = resident(&group);
    let print = |what: &str| println!("{what}: {} MiB (at rest {})", resident(&group) / MIB, quiet / MIB);

    // Ten thousand that say nothing: the oldest of them gives way to the newest, one that has begun to neither, and memory
    // to none.
    let count = 10_000.min(raise_the_limit() - 200);
    let mut idle = Vec::new();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| {
            let mut served = 0;
            while !over.load(Ordering::Relaxed) {
                somebody_is_served(&group, &data, Duration::from_secs(10));
                served += 1;
            }
            served
        });
        for _ in 0..count {
            idle.push(UnixStream::connect(group.socket()).expect("the listener is never full for long"));
        }
        over.store(true, Ordering::Relaxed);
        let served = beside.join().expect("honest clients are served while others come in crowds");
        println!("{served} were served meanwhile");
    });
    somebody_is_served(&group, &data, Duration::from_secs(10));
    print(&format!("{count} idle connections"));
    assert!(resident(&group) < quiet + 32 * MIB);
    drop(idle);

    // Half a write of 32 MiB each, and then nothing: more than the budget is not kept.
    let mut halves = Vec::new();
    let half = vec![0x5a; 16 << 20];
    for _ in 0..48 {
        let Ok(mut stream) = transmitting(&group) else { continue };
        let begun = stream.write_all(&RequestHead::encode(0, CMD_WRITE, 1, 0, 32 << 20));
        let _ = begun.and_then(|()| stream.write_all(&half));
        halves.push(stream);
    }
    somebody_is_served(&group, &data, Duration::from_secs(10));
    print("48 halves of 32 MiB");
    assert!(resident(&group) < quiet + 64 * MIB);
    drop(halves);

    // Sixty reads of a megabyte each, and none taken: who holds up the others is cut off.
    let mut greedy = Vec::new();
    for _ in 0..24 {
        let Ok(mut stream) = transmitting(&group) else { continue };
        for cookie in 0..60u64 {
            let head = RequestHead::encode(0, CMD_READ, cookie, cookie % 32 * MIB, MIB as u32);
            let _ = stream.write_all(&head);
        }
        greedy.push(stream);
    }
    somebody_is_served(&group, &data, Duration::from_secs(20));
    print("24 connections that take nothing of 60 MiB each");
    assert!(resident(&group) < quiet + 64 * MIB);
    drop(greedy);

    // Gone in the middle of anything.
    for length in 0..400usize {
        let Ok(mut stream) = transmitting(&group) else { continue };
        let head = RequestHead::encode(0, CMD_WRITE, 1, MIB, 300);
        let bytes = [&head[..], &[7; 300], &RequestHead::encode(0, CMD_READ, 2, 0, MIB as u32)].concat();
        let _ = stream.write_all(&bytes[..length.min(bytes.len())]);
    }
    somebody_is_served(&group, &data, Duration::from_secs(10));
    print("400 that left in the middle of a request");
    nothing_is_degraded(&group);
}

/// That places ran out is told for ten seconds more.
fn nothing_is_degraded(group: &Group) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let degraded = group.site.primary().expect("it answers").degraded;
        if degraded.is_empty() {
            return;
        }
        assert!(Instant::now() < end && degraded[0].what.contains("places for NBD clients"), "{degraded:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Connections to which TLS was granted, and which then say no more than these bytes.
fn granted(group: &Group, said: &[u8]) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(group.socket())?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.read_exact(&mut [0; GREETING_BYTES])?;
    stream.write_all(&3u32.to_be_bytes())?;
    grant(&mut stream)?;
    stream.write_all(said)?;
    Ok(stream)
}

/// Argument: a URI. Prints a line when all connections are in transmission and have asked for what they never take, then
/// waits for the end of its input.
const GREEDY: &str = r"
import sys
import nbd
handles = []
for _ in range(100):
    h = nbd.NBD()
    h.set_uri_allow_local_file(True)
    h.set_tls_verify_peer(False)
    h.connect_uri(sys.argv[1])
    for number in range(60):
        h.aio_pread(nbd.Buffer(1 << 20), number % 32 << 20)
    handles.append(h)
print('asked', flush=True)
sys.stdin.read()
";

#[test]
fn over_tls_hostile_clients_stop_nobody_and_hold_little() {
    let group = Group::secured().expect("a group starts");
    let data = noise(1, 64 << 10);
    somebody_is_served(&group, &data, Duration::from_secs(10));
    let quiet = resident(&group);
    let print = |what: &str| println!("{what}: {} MiB (at rest {})", resident(&group) / MIB, quiet / MIB);

    // Ten thousand handshakes that nobody goes on with: nothing said, the beginning of a ClientHello of 16 KiB, garbage.
    let hello = [&[22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3][..], &[7; 8000]].concat();
    let count = 10_000.min(raise_the_limit() - 200);
    let mut idle = Vec::new();
    for number in 0..count {
        let said = [&[][..], &hello, &data[..4000]][(number % 3) as usize];
        // The oldest gives way to the newest, at any moment.
        idle.extend(granted(&group, said));
    }
    print(&format!("{count} handshakes of TLS, {} of them granted", idle.len()));
    assert!(idle.len() as u64 > count / 2);
    assert!(resident(&group) < quiet + 32 * MIB);
    somebody_is_served(&group, &data, Duration::from_secs(10));
    drop(idle);

    let Some(mut python) = python_with_libnbd() else { return println!("skipped: no python3-libnbd") };
    let ca = group.ca_only().expect("a directory");
    let uri = format!("nbds+unix:///db?socket={}&tls-certificates={}", group.socket().display(), ca.display());
    let (input, output) = (Stdio::piped(), Stdio::piped());
    let mut greedy = python.args(["-c", GREEDY, &uri]).stdin(input).stdout(output).spawn().expect("python runs");
    let mut said = [0; 6];
    greedy.stdout.as_mut().expect("piped").read_exact(&mut said).expect("they all are connected");
    std::thread::sleep(Duration::from_secs(2));
    print("100 connections that take nothing of 60 MiB each over TLS");
    assert!(resident(&group) < quiet + 64 * MIB);
    somebody_is_served(&group, &data, Duration::from_secs(20));
    greedy.kill().and_then(|()| greedy.wait()).expect("it ends");
    nothing_is_degraded(&group);
}

/// How a flood begins, and what it says again and again.
type Flood = (fn(&Group) -> std::io::Result<UnixStream>, Vec<u8>);

fn handshaking(group: &Group) -> std::io::Result<UnixStream> {
    Ok(Raw::connect(&group.socket())?.into_stream())
}

fn structured(group: &Group) -> std::io::Result<UnixStream> {
    Ok(Raw::extended(&group.socket(), "db")?.into_stream())
}

/// Says it again and again, on each as much as is received; whoever was cut off is left alone.
fn pour(streams: &mut [UnixStream], bytes: &[u8], duration: Duration) {
    let end = Instant::now() + duration;
    let mut said = vec![0; streams.len()];
    while Instant::now() < end {
        for (stream, said) in streams.iter_mut().zip(&mut said) {
            while let Ok(now) = stream.write(&bytes[*said..])
                && Instant::now() < end
            {
                *said = (*said + now) % bytes.len();
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whoever asks for what is answered without data, and takes none of it, holds little, and keeps no read waiting.
#[test]
fn floods_without_data_hold_little_and_keep_nobody_waiting() {
    let group = Group::start().expect("a group starts");
    let data = noise(1, 64 << 10);
    somebody_is_served(&group, &data, Duration::from_secs(10));
    let quiet = resident(&group);
    raise_the_limit();
    let ask = |command, length| RequestHead::encode(0, command, 5, 0, length).to_vec();
    let floods: [(&str, Flood); 5] = [
        ("options that nobody knows", (handshaking, OptionHead::encode(77, 0).to_vec())),
        ("lists", (handshaking, OptionHead::encode(OPT_LIST, 0).to_vec())),
        ("requests that are refused", (transmitting, ask(77, 512))),
        ("reads of nothing", (transmitting, ask(CMD_READ, 0))),
        ("block status", (structured, RequestHead::encode_extended(0, CMD_BLOCK_STATUS, 5, 0, 4096).to_vec())),
    ];
    for (what, (begin, one)) in floods {
        let mut streams = Vec::new();
        for _ in 0..150 {
            let stream = begin(&group).expect("there are places for so many");
            stream.set_nonblocking(true).expect("a socket");
            streams.push(stream);
        }
        let over = AtomicBool::new(false);
        let (served, most) = std::thread::scope(|scope| {
            let beside = scope.spawn(|| {
                let (mut served, mut most) = (0, 0);
                while !over.load(Ordering::Relaxed) {
                    somebody_is_served(&group, &data, Duration::from_secs(5));
                    (served, most) = (served + 1, resident(&group).max(most));
                }
                (served, most)
            });
            pour(&mut streams, &one.repeat(4000), Duration::from_secs(4));
            over.store(true, Ordering::Relaxed);
            beside.join().expect("honest clients are served meanwhile")
        });
        println!("{what}: {} MiB (at rest {}), {served} were served meanwhile", most / MIB, quiet / MIB);
        assert!(served > 4 && most < quiet + 32 * MIB);
    }
    somebody_is_served(&group, &data, Duration::from_secs(10));
}

/// Whoever takes its answers late gets each of them, in order.
#[test]
fn answers_that_are_taken_late_all_come_in_order() {
    const COUNT: u64 = 100_000;
    let group = Group::start().expect("a group starts");
    let mut stream = transmitting(&group).expect("a connection");
    stream.set_write_timeout(Some(Duration::from_secs(20))).expect("a socket");
    let mut asks = stream.try_clone().expect("a descriptor");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let heads = (0..COUNT).flat_map(|cookie| RequestHead::encode(0, CMD_READ, cookie, 0, 0));
            asks.write_all(&heads.collect::<Vec<u8>>()).expect("all of it is received in the end");
        });
        std::thread::sleep(Duration::from_secs(1));
        for cookie in 0..COUNT {
            let mut head = [0; REPLY_BYTES];
            stream.read_exact(&mut head).expect("an answer to each");
            assert_eq!((be32(&head, 4), be64(&head, 8)), (0, cookie));
        }
    });
}
