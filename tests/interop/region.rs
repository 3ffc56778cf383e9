//! Our client as the status table's region, against the servers of others and a file.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use farshore::core::machine::IoFail;
use farshore::nbd::region::{RegionEvent, TableTarget};

use super::harness::{Driver, MEMORY_BYTES, MemoryServer, Process, Scratch, noise, tool, wait_for};

fn uri(socket: &Path, export: &str) -> TableTarget {
    TableTarget::Nbd(format!("nbd+unix:///{export}?socket={}", socket.display()).parse().expect("a URI"))
}

/// What primary and DR do with a region, on one of at least 32 MiB.
pub fn exercise(target: &TableTarget) {
    let (mut driver, size) = Driver::opened(target, 1, 7);
    assert!(size >= 32 << 20);
    let ticket = driver.start_write(
        4097,
        vec![Bytes::from_static(b"head"), Bytes::from(noise(1, 5000)), Bytes::from_static(b"tail")],
        true,
    );
    assert_eq!(driver.event(), RegionEvent::Done { ticket, result: Ok(Bytes::new()) });
    let expected = [b"head".as_slice(), &noise(1, 5000), b"tail"].concat();
    assert!(driver.read(4097, 5008).expect("a read") == expected);
    driver.write(64, &[3; 64], true).expect("one order record");

    // Longer than any single request.
    let long = noise(2, 20 << 20);
    driver.write(8 << 20, &long, false).expect("a long write");
    driver.flush().expect("a flush");
    assert!(driver.read(8 << 20, 20 << 20).expect("a long read") == long);

    // Many at once, answered by their tickets in any order.
    let tickets: Vec<_> =
        (0..200u64).map(|n| driver.start_write(n * 512, vec![Bytes::from(vec![n as u8; 512])], true)).collect();
    let mut left: std::collections::BTreeSet<_> = tickets.into_iter().collect();
    while !left.is_empty() {
        let RegionEvent::Done { ticket, result } = driver.event() else { panic!("only answers are due") };
        result.expect("a write");
        assert!(left.remove(&ticket));
    }
    driver.close();

    let (mut view, _) = Driver::opened(target, 0, 0);
    let found = view.read(0, 200 * 512).expect("a read");
    assert!(found.chunks(512).zip(0u8..).all(|(block, fill)| block == [fill; 512]));
    view.close();
}

#[test]
fn nbdkit_memory_carries_the_table() {
    let Some(mut nbdkit) = tool("nbdkit") else { return };
    let scratch = Scratch::new();
    let socket = scratch.path("s");
    let _server = Process(nbdkit.arg("-f").arg("-U").arg(&socket).args(["memory", "32M"]).spawn().expect("nbdkit"));
    wait_for(&socket);
    exercise(&uri(&socket, ""));
}

#[test]
fn nbdkit_without_fua_is_flushed_instead() {
    let Some(mut nbdkit) = tool("nbdkit") else { return };
    let scratch = Scratch::new();
    let socket = scratch.path("s");
    nbdkit.arg("-f").arg("-U").arg(&socket).args(["--filter=fua", "memory", "32M"]);
    let _server = Process(nbdkit.spawn().expect("nbdkit"));
    wait_for(&socket);
    exercise(&uri(&socket, ""));
}

/// nbdkit with 32 MiB and a policy of block sizes.
fn nbdkit_with_blocks(scratch: &Scratch, policy: &[&str]) -> Option<(Process, TableTarget)> {
    let mut nbdkit = tool("nbdkit")?;
    let probe =
        tool("nbdkit")?.args(["--dump-plugin", "--filter=blocksize-policy", "memory"]).output().expect("nbdkit");
    if !probe.status.success() {
        eprintln!("skipped: nbdkit has no blocksize-policy filter");
        return None;
    }
    let socket = scratch.path("s");
    nbdkit.arg("-f").arg("-U").arg(&socket).args(["--filter=blocksize-policy", "memory", "32M"]).args(policy);
    let server = Process(nbdkit.stderr(Stdio::null()).spawn().expect("nbdkit"));
    wait_for(&socket);
    Some((server, uri(&socket, "")))
}

#[test]
fn a_server_that_insists_on_whole_blocks_is_named_before_it_is_used() {
    let scratch = Scratch::new();
    let policy = ["blocksize-minimum=4096", "blocksize-error-policy=error"];
    let Some((_server, target)) = nbdkit_with_blocks(&scratch, &policy) else { return };
    let mut driver = Driver::open(&target, 1, 7);
    let RegionEvent::Failed { text, fenced } = driver.event() else { panic!("a table writes less than a block") };
    assert!(!fenced && text.contains("whole blocks"), "{text}");
}

#[test]
fn a_server_that_names_whole_blocks_and_takes_less_carries_the_table() {
    let scratch = Scratch::new();
    let Some((_server, target)) = nbdkit_with_blocks(&scratch, &["blocksize-minimum=4096"]) else { return };
    exercise(&target);
}

#[test]
fn the_largest_payload_of_a_server_is_kept_to() {
    let scratch = Scratch::new();
    let policy = ["blocksize-maximum=65536", "blocksize-error-policy=error"];
    let Some((_server, target)) = nbdkit_with_blocks(&scratch, &policy) else { return };
    exercise(&target);
}

#[test]
fn nbdkit_that_speaks_only_the_oldest_newstyle_carries_the_table() {
    let Some(mut nbdkit) = tool("nbdkit") else { return };
    let scratch = Scratch::new();
    let socket = scratch.path("s");
    nbdkit.arg("-f").arg("-U").arg(&socket).args(["--mask-handshake=0", "memory", "32M"]);
    let _server = Process(nbdkit.spawn().expect("nbdkit"));
    wait_for(&socket);
    exercise(&uri(&socket, ""));
}

#[test]
fn qemu_nbd_on_a_raw_file_carries_the_table() {
    let Some(mut qemu) = tool("qemu-nbd") else { return };
    let scratch = Scratch::new();
    let (socket, image) = (scratch.path("s"), scratch.path("image"));
    std::fs::File::create(&image).and_then(|file| file.set_len(32 << 20)).expect("an image");
    qemu.arg("-k").arg(&socket).args(["-t", "-e", "8", "-f", "raw", "-x", "orders.table"]).arg(&image);
    let _server = Process(qemu.spawn().expect("qemu-nbd"));
    wait_for(&socket);
    exercise(&uri(&socket, "orders.table"));

    let mut wrong = Driver::open(&uri(&socket, "other"), 1, 7);
    let RegionEvent::Failed { text, fenced } = wrong.event() else { panic!("there is no such export") };
    assert!(!fenced && text.contains("other"), "{text}");
}

#[test]
fn our_own_server_carries_the_table() {
    let server = MemoryServer::start();
    exercise(&uri(&server.socket, "db"));
    exercise(&TableTarget::Nbd(format!("nbd://{}/db", server.tcp).parse().expect("a URI")));
    let mut read_only = Driver::open(&uri(&server.socket, "ro"), 1, 7);
    let RegionEvent::Failed { text, .. } = read_only.event() else { panic!("it is read-only") };
    assert!(text.contains("read-only"), "{text}");
    let (view, size) = Driver::opened(&uri(&server.socket, "ro"), 0, 0);
    assert_eq!(size, MEMORY_BYTES as u64);
    view.close();
}

#[test]
fn a_file_carries_the_table() {
    let scratch = Scratch::new();
    let path = scratch.path("table");
    let missing = TableTarget::File { path: path.clone(), create: None };
    let RegionEvent::Failed { text, .. } = Driver::open(&missing, 1, 7).event() else { panic!("it is not there") };
    assert!(text.contains("table"), "{text}");
    let view = TableTarget::File { path: path.clone(), create: Some(32 << 20) };
    assert!(matches!(Driver::open(&view, 0, 0).event(), RegionEvent::Failed { .. }), "a view makes nothing");
    exercise(&view);
    exercise(&missing);
}

#[test]
fn who_is_not_there_or_speaks_another_tongue_is_named() {
    let scratch = Scratch::new();
    let RegionEvent::Failed { text, fenced } = Driver::open(&uri(&scratch.path("none"), ""), 1, 7).event() else {
        panic!("nobody listens")
    };
    assert!(!fenced && text.contains("status table"), "{text}");

    let socket = scratch.path("http");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    let thread = std::thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = listener.accept().expect("a client");
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").expect("a client");
    });
    let RegionEvent::Failed { text, .. } = Driver::open(&uri(&socket, ""), 1, 7).event() else { panic!("no NBD") };
    assert!(text.contains("not an NBD server"), "{text}");
    thread.join().expect("the listener");
}

#[test]
fn a_server_that_dies_or_falls_silent_ends_every_operation() {
    let Some(mut nbdkit) = tool("nbdkit") else { return };
    let scratch = Scratch::new();
    let socket = scratch.path("s");
    nbdkit.arg("-f").arg("-U").arg(&socket).args(["--filter=delay", "memory", "32M", "wdelay=30"]);
    let mut server = Process(nbdkit.stderr(Stdio::null()).spawn().expect("nbdkit"));
    wait_for(&socket);

    // Silent: a write is not answered for longer than a link may be silent.
    let (mut driver, _) = Driver::opened(&uri(&socket, ""), 1, 7);
    let begun = Instant::now();
    let ticket = driver.start_write(0, vec![Bytes::from_static(b"x")], true);
    let RegionEvent::Done { ticket: ended, result: Err(IoFail::Other(text)) } = driver.event() else {
        panic!("it falls silent")
    };
    assert!(ended == ticket && text.contains("silent"), "{text}");
    assert!(matches!(driver.event(), RegionEvent::Closed { .. }));
    assert!(begun.elapsed() < Duration::from_secs(5));

    // Dead: the connection ends.
    let (mut driver, _) = Driver::opened(&uri(&socket, ""), 1, 7);
    let ticket = driver.start_write(0, vec![Bytes::from_static(b"x")], true);
    server.0.kill().expect("it runs");
    let RegionEvent::Done { ticket: ended, result: Err(_) } = driver.event() else { panic!("it died") };
    assert_eq!(ended, ticket);
    assert!(matches!(driver.event(), RegionEvent::Closed { .. }));
}
