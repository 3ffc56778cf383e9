//! Our server, driven by the clients of others.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use farshore::core::address::Address;
use farshore::io::Event;
use farshore::nbd::protocol::{CMD_DISC, CMD_READ, CMD_WRITE, MAGIC_REPLY, REPLY_BYTES, ReplyHead, RequestHead};
use farshore::nbd::server::NbdServer;
use farshore::nbd::session::{self, Kind};

use super::harness::{MEMORY_BYTES, MemoryServer, Scratch, export, noise, python_with_libnbd, reactor, run, tool};

#[test]
fn nbdinfo_reads_what_we_say_of_an_export() {
    let Some(mut nbdinfo) = tool("nbdinfo") else { return };
    let server = MemoryServer::start();
    let output = run(nbdinfo.arg("--json").arg(server.uri("db")));
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let export = &info["exports"][0];
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(export["export-size"], MEMORY_BYTES);
    assert_eq!(export["description"], "memory");
    for flag in ["can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"] {
        assert_eq!(export[flag], true, "{flag}");
    }
    assert_eq!(export["is_read_only"], false);
    assert_eq!((&export["block_size_minimum"], &export["block_size_maximum"]), (&1.into(), &(32 << 20).into()));

    let listed = run(tool("nbdinfo").expect("found above").args(["--list", "--json"]).arg(server.uri("")));
    let info: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    let names: Vec<_> =
        info["exports"].as_array().expect("a list").iter().map(|export| &export["export-name"]).collect();
    assert_eq!(names, ["db", "ro"]);
}

#[test]
fn qemu_img_copies_in_and_compares() {
    let Some(mut convert) = tool("qemu-img") else { return };
    let (server, scratch) = (MemoryServer::start(), Scratch::new());
    let image = scratch.path("image");
    let mut bytes = noise(1, MEMORY_BYTES);
    bytes[8 << 20..40 << 20].fill(0);
    std::fs::write(&image, &bytes).expect("room for the image");
    run(convert.args(["convert", "-n", "-W", "-f", "raw", "-O", "raw"]).arg(&image).arg(server.uri("db")));
    let mut compare = tool("qemu-img").expect("found above");
    run(compare.args(["compare", "-f", "raw", "-F", "raw"]).arg(&image).arg(server.uri("db")));
}

#[test]
fn qemu_io_writes_zeroes_discards_and_reads_back() {
    let Some(mut io) = tool("qemu-io") else { return };
    let server = MemoryServer::start();
    let commands = [
        "write -P 0x5a 0 1M",
        "write -f -P 0xa5 4k 512",
        "write -z 64k 64k",
        "write -z -u 128k 64k",
        "discard 512k 128k",
        "aio_write -P 7 2M 4M",
        "aio_write -P 8 6M 32M",
        "aio_flush",
        "flush",
        "read -P 0x5a 0 4k",
        "read -P 0xa5 4k 512",
        "read -P 0x5a 4608 1k",
        "read -P 0 64k 128k",
        "read -P 0 512k 128k",
        "read -P 7 2M 4M",
        "read -P 8 6M 32M",
        "read -P 0 38M 26M",
    ];
    for command in commands {
        io.args(["-c", command]);
    }
    let output = run(io.args(["-f", "raw"]).arg(server.uri("db")));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!said.contains("fail") && !said.contains("error"), "{said}");
}

#[test]
fn a_read_only_export_refuses_qemu_io() {
    let Some(mut io) = tool("qemu-io") else { return };
    let server = MemoryServer::start();
    run(io.args(["-r", "-f", "raw", "-c", "read -P 0 0 1M"]).arg(server.uri("ro")));
    let mut io = tool("qemu-io").expect("found above");
    let output = io.args(["-f", "raw", "-c", "write 0 1M"]).arg(server.uri("ro")).output().expect("it runs");
    assert!(!output.status.success());
}

#[test]
fn nbdcopy_over_many_connections_there_and_back() {
    let Some(mut there) = tool("nbdcopy") else { return };
    let (server, scratch) = (MemoryServer::start(), Scratch::new());
    let (image, back) = (scratch.path("image"), scratch.path("back"));
    std::fs::write(&image, noise(2, MEMORY_BYTES)).expect("room for the image");
    run(there.args(["--connections=4", "--requests=64", "--flush"]).arg(&image).arg(server.uri("db")));
    let mut return_trip = tool("nbdcopy").expect("found above");
    run(return_trip
        .args(["--connections=4", "--requests=64", "--request-size=1048576"])
        .arg(server.uri("db"))
        .arg(&back));
    assert!(std::fs::read(&image).expect("it is there") == std::fs::read(&back).expect("it is there"));
}

#[test]
fn nbdcopy_over_tcp() {
    let Some(mut nbdcopy) = tool("nbdcopy") else { return };
    let (server, scratch) = (MemoryServer::start(), Scratch::new());
    let image = scratch.path("image");
    std::fs::write(&image, noise(3, 16 << 20)).expect("room for the image");
    let uri = format!("nbd://{}/db", server.tcp);
    run(nbdcopy.args(["--connections=2", "--allocated"]).arg(&image).arg(&uri));
    let back = run(tool("nbdcopy").expect("found above").arg(&uri).arg("-")).stdout;
    assert!(back[..16 << 20] == noise(3, 16 << 20));
}

/// A client on a plain socket, past its handshake.
fn plain_client(server: &MemoryServer) -> UnixStream {
    handshaken(&server.socket)
}

fn handshaken(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(15))).expect("a plain socket");
    stream.write_all(&[&3u32.to_be_bytes()[..], b"IHAVEOPT\0\0\0\x01\0\0\0\x02db"].concat()).expect("a handshake");
    stream.read_exact(&mut [0; 18 + 10]).expect("size and flags");
    stream
}

#[test]
fn a_client_that_does_not_take_its_answers_holds_up_nobody_and_gets_them_all() {
    // As many requests as a unix socket holds whose other end does not receive any more.
    const READS: u64 = 200;
    let server = MemoryServer::start();
    let mut lazy = plain_client(&server);
    for cookie in 0..READS {
        lazy.write_all(&RequestHead::encode(0, CMD_READ, cookie, cookie * 4096, 1 << 20)).expect("a request");
    }
    std::thread::sleep(Duration::from_millis(300));
    let mut other = plain_client(&server);
    other.write_all(&RequestHead::encode(0, CMD_READ, 7, 0, 4096)).expect("a request");
    other.read_exact(&mut [0; 16 + 4096]).expect("an answer, meanwhile");

    let mut seen = std::collections::BTreeSet::new();
    let mut data = vec![0; 1 << 20];
    for _ in 0..READS {
        let mut head = [0; REPLY_BYTES];
        lazy.read_exact(&mut head).expect("an answer");
        lazy.read_exact(&mut data).expect("its bytes");
        let head = ReplyHead::decode(&head);
        assert_eq!((head.magic, head.error), (MAGIC_REPLY, 0));
        assert!(seen.insert(head.cookie));
    }
    lazy.write_all(&RequestHead::encode(0, CMD_DISC, 0, 0, 0)).expect("a goodbye");
    assert_eq!(lazy.read(&mut data).expect("a clean end"), 0);
}

#[test]
fn long_reads_of_a_client_that_takes_nothing_hold_up_no_ordinary_ones_and_come_whole() {
    let server = MemoryServer::start();
    let mut lazy = plain_client(&server);
    for cookie in 0..3 {
        lazy.write_all(&RequestHead::encode(0, CMD_READ, cookie, cookie * 512, 32 << 20)).expect("a request");
        lazy.write_all(&RequestHead::encode(0, CMD_READ, 100 + cookie, 0, 4096)).expect("a request");
    }
    std::thread::sleep(Duration::from_millis(300));
    let mut other = plain_client(&server);
    other.write_all(&RequestHead::encode(0, CMD_READ, 7, 0, 4096)).expect("a request");
    other.read_exact(&mut [0; 16 + 4096]).expect("an answer, meanwhile");
    let mut seen = std::collections::BTreeSet::new();
    let mut data = vec![0; 32 << 20];
    for _ in 0..6 {
        let mut head = [0; REPLY_BYTES];
        lazy.read_exact(&mut head).expect("an answer");
        let head = ReplyHead::decode(&head);
        assert_eq!((head.magic, head.error), (MAGIC_REPLY, 0), "nothing comes between a head and its data");
        lazy.read_exact(&mut data[..if head.cookie < 100 { 32 << 20 } else { 4096 }]).expect("its bytes");
        assert!(seen.insert(head.cookie));
    }
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_long_write_gives_its_room_back() {
    let server = MemoryServer::start();
    for _ in 0..6 {
        let mut client = plain_client(&server);
        client.write_all(&RequestHead::encode(0, CMD_WRITE, 7, 0, 32 << 20)).expect("a request");
        client.write_all(&vec![7; 9 << 20]).expect("a part of its data");
    }
    let mut other = plain_client(&server);
    other.write_all(&RequestHead::encode(0, CMD_WRITE, 8, 0, 32 << 20)).expect("a request");
    other.write_all(&noise(5, 32 << 20)).expect("its data");
    other.read_exact(&mut [0; REPLY_BYTES]).expect("an answer");
    other.write_all(&RequestHead::encode(0, CMD_READ, 9, 0, 32 << 20)).expect("a request");
    let mut data = vec![0; REPLY_BYTES + (32 << 20)];
    other.read_exact(&mut data).expect("an answer");
    assert!(data[REPLY_BYTES..] == noise(5, 32 << 20));
}

#[test]
fn the_pieces_of_a_long_write_lie_where_direct_io_can_take_them() {
    let (mut reactor, scratch) = (reactor(), Scratch::new());
    let socket = scratch.path("nbd.sock");
    reactor.listen(&Address::Unix(socket.clone())).expect("a fresh socket");
    let client = std::thread::spawn(move || {
        let mut stream = handshaken(&socket);
        for cookie in 0..3 {
            stream.write_all(&RequestHead::encode(0, CMD_WRITE, cookie, 8192, 32 << 20)).expect("a request");
            stream.write_all(&vec![9; 32 << 20]).expect("its data");
            stream.read_exact(&mut [0; REPLY_BYTES]).expect("an answer");
        }
    });
    let mut server = NbdServer::new();
    let (mut events, mut asked, mut aligned) = (Vec::new(), Vec::new(), Vec::new());
    while !client.is_finished() {
        reactor.turn(Some(reactor.now().mono_ns + 50_000_000), &mut events).expect("the ring works");
        for event in events.drain(..) {
            match event {
                Event::Accepted { conn, peer, .. } => server.add(&mut reactor, conn, &peer),
                other => assert!(server.on_event(&mut reactor, &other, &mut asked)),
            }
        }
        for (conn, event) in std::mem::take(&mut asked) {
            match event {
                session::Event::Resolve { name, .. } => server.resolved(conn, export(&name)),
                session::Event::Request(session::Request { cookie, kind: Kind::Write { offset, data, .. } }) => {
                    aligned.push(offset.is_multiple_of(4096) && (data.as_ptr() as usize).is_multiple_of(4096));
                    server.reply(conn, cookie, Ok(Bytes::new()));
                }
                _ => {}
            }
        }
        server.flush(&mut reactor, &mut asked);
    }
    client.join().expect("the client is content");
    // The beginning of the first came before anybody knew that it would be long.
    assert!(aligned.len() == 48 && aligned[1..].iter().all(|aligned| *aligned), "{aligned:?}");
}

#[test]
fn a_silent_handshake_is_ended() {
    let server = MemoryServer::start();
    let idle = plain_client(&server);
    let mut silent = UnixStream::connect(&server.socket).expect("the server listens");
    silent.set_read_timeout(Some(Duration::from_secs(15))).expect("a plain socket");
    silent.read_exact(&mut [0; 18]).expect("a greeting");
    let ended = silent.read(&mut [0; 1]);
    assert!(matches!(ended, Ok(0)) || ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    // Who is past the handshake may be silent for as long as it likes.
    idle.set_nonblocking(true).expect("a plain socket");
    let mut idle = idle;
    assert_eq!(idle.read(&mut [0; 1]).expect_err("nothing to read").kind(), ErrorKind::WouldBlock);
}

#[test]
fn fio_verifies_random_writes_at_depth() {
    let Some(mut fio) = tool("fio") else { return };
    let engines = run(tool("fio").expect("found above").arg("--enghelp")).stdout;
    if !String::from_utf8_lossy(&engines).contains("nbd") {
        return eprintln!("skipped: this fio has no nbd engine");
    }
    let (server, scratch) = (MemoryServer::start(), Scratch::new());
    let args = [
        "--name=verify",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bs=512-64k",
        "--iodepth=64",
        "--size=32m",
        "--verify=crc32c",
        "--fsync=100",
        "--randseed=7",
    ];
    let output = run(fio.current_dir(scratch.path("")).args(args).arg(format!("--uri={}", server.uri("db"))));
    assert!(String::from_utf8_lossy(&output.stdout).contains("err= 0"));
}

/// libnbd with its own checks switched off sends what no honest client would.
const HOSTILE: &str = r#"
import nbd, sys
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
size = h.get_size()

def refused(errno, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum == errno, (call, args, error.errno)
    else:
        raise AssertionError((call, args))

import errno
h.pwrite(b"x" * 4096, 0)
refused(errno.ENOSPC, h.pwrite, b"y" * 4096, size - 1)
refused(errno.ENOSPC, h.zero, 4096, size)
refused(errno.EINVAL, h.pread, 4096, size - 4095)
refused(errno.EINVAL, h.pread, 512, 1 << 62)
refused(errno.EINVAL, h.trim, 4096, size)
refused(errno.EINVAL, h.cache, 4096, size)
refused(errno.EINVAL, h.trim, 4096, 0, nbd.CMD_FLAG_FAST_ZERO)
refused(errno.EINVAL, h.pread, 4096, 0, 1 << 14)
refused(errno.EINVAL, h.pwrite, b"z" * 4096, 0, 1 << 14)
h.flush(nbd.CMD_FLAG_FUA)
h.trim(4096, 8192, nbd.CMD_FLAG_FUA)
h.zero(4096, 8192, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
assert h.pread(4096, 0) == b"x" * 4096
h.shutdown()

h = nbd.NBD()
h.set_opt_mode(True)
h.set_full_info(True)
h.connect_uri(sys.argv[1])
assert h.get_protocol() == "newstyle-fixed"
# Structured replies libnbd has asked for by itself, before TLS is refused.
assert h.get_structured_replies_negotiated()
assert not (hasattr(h, "opt_starttls") and h.opt_starttls())
h.set_export_name("nothing")
refused(errno.ENOENT, h.opt_info)
h.set_export_name("ro")
h.opt_info()
assert h.is_read_only() and h.get_export_description() == "memory"
h.set_export_name("db")
h.opt_go()
assert h.pread(4096, 0) == b"x" * 4096
h.shutdown()
print("held")
"#;

#[test]
fn a_hostile_libnbd_client_is_answered_and_stays_in_step() {
    let Some(mut python) = python_with_libnbd() else { return };
    let server = MemoryServer::start();
    let output = run(python.args(["-c", HOSTILE]).arg(server.uri("db")));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "held");
}

#[test]
fn garbage_ends_its_own_connection_and_no_other() {
    let server = MemoryServer::start();
    let connect = || {
        let stream = UnixStream::connect(&server.socket).expect("the server listens");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a plain socket");
        stream
    };
    let mut good = connect();
    let mut greeting = [0; 18];
    good.read_exact(&mut greeting).expect("a greeting");
    for seed in 0..20 {
        let mut bad = connect();
        let _ = bad.write_all(&noise(seed, 70_000));
        let mut rest = Vec::new();
        let _ = bad.read_to_end(&mut rest);
        assert!(rest.len() <= 18 + 4096, "garbage is not answered at length");
    }
    good.write_all(&3u32.to_be_bytes()).expect("still connected");
    good.write_all(b"IHAVEOPT\0\0\0\x02\0\0\0\0").expect("still connected");
    let mut ack = [0; 20];
    good.read_exact(&mut ack).expect("an answer to ABORT");
    assert_eq!(ack[12..16], [0, 0, 0, 1]);
    assert_eq!(good.read(&mut ack).expect("a clean end"), 0);
}
