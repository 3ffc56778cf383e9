//! A client that reconnects sends again what was not answered. What of it still waited on the old connection must not be
//! done after what it has written since; and a clean stop must answer nothing with an error, which would not be sent again.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use farshore::cli::demo::site::Role;
use farshore::core::address::Address;
use farshore::limits::CONNECTION_REQUESTS_MAX;
use farshore::nbd::protocol::{
    CMD_FLUSH, CMD_WRITE, EXPORT_NAME_REPLY_BYTES, GREETING_BYTES, REPLY_BYTES, RequestHead,
};

use crate::harness::{FAST, Group, LONG, MIB};

/// A connection past the handshake.
fn transmitting(address: &Address) -> Result<UnixStream> {
    let Address::Unix(path) = address else { bail!("{address} is no unix socket") };
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(LONG))?;
    stream.write_all(&[&3u32.to_be_bytes()[..], b"IHAVEOPT\0\0\0\x01\0\0\0\x02db"].concat())?;
    stream.read_exact(&mut [0; GREETING_BYTES + EXPORT_NAME_REPLY_BYTES])?;
    Ok(stream)
}

#[test]
fn what_waited_on_a_connection_that_was_left_is_not_done_later() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"\nrequire = \"both\"")?;
    group.site.freeze(Role::Dr)?;
    let mut old = transmitting(&group.site.export(Role::Primary))?;
    // As much as one client may have in flight, and one more, which is received and waits to begin.
    let mut asked = Vec::new();
    for cookie in 0..=CONNECTION_REQUESTS_MAX as u64 {
        let last = cookie == CONNECTION_REQUESTS_MAX as u64;
        let (offset, byte) = if last { (0, 0xaa) } else { (4 * MIB + cookie * 4096, 0x11) };
        asked.extend_from_slice(&RequestHead::encode(0, CMD_WRITE, cookie, offset, 4096));
        asked.extend_from_slice(&[byte; 4096]);
    }
    old.write_all(&asked)?;
    std::thread::sleep(Duration::from_millis(500));
    let before = group.site.primary()?.tail_seq;
    drop(old);
    std::thread::scope(|scope| {
        let again = scope.spawn(|| group.write(Role::Primary, "db", 0, 0xbb));
        std::thread::sleep(Duration::from_millis(500));
        ensure!(group.site.primary()?.tail_seq.0 == before.0 + 1, "the newer write has its place");
        group.site.thaw(Role::Dr)?;
        again.join().expect("no panic").context("the write on the new connection")
    })?;
    group.site.settle(LONG)?;
    std::thread::sleep(Duration::from_millis(200));
    let volume = std::fs::read(group.site.backing(Role::Primary, "db"))?;
    ensure!(volume[..4096] == [0xbb; 4096], "the older write was done after the newer one: {:#x}", volume[0]);
    group.site.settle(LONG)?;
    group.compare_files()
}

#[test]
fn what_waited_of_a_long_write_on_a_connection_that_was_left_is_not_done_later() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"\nrequire = \"both\"")?;
    group.site.freeze(Role::Dr)?;
    let mut old = transmitting(&group.site.export(Role::Primary))?;
    old.set_write_timeout(Some(Duration::from_millis(500)))?;
    old.write_all(&RequestHead::encode(0, CMD_WRITE, 1, 0, 16 << 20))?;
    // Pieces begin as long as there is room for them; the socket holds something of the next one.
    let cut_short = old.write_all(&vec![0xaa; 16 << 20]).is_err();
    ensure!(cut_short, "all of it was received while nothing of it could be acknowledged");
    let before = group.site.primary()?.tail_seq;
    ensure!(before.0 > 0, "its first pieces have begun");
    drop(old);
    std::thread::scope(|scope| {
        let again = scope.spawn(|| group.write(Role::Primary, "db", 12 * MIB, 0xbb));
        std::thread::sleep(Duration::from_millis(500));
        ensure!(group.site.primary()?.tail_seq.0 == before.0 + 1, "the newer write has its place");
        group.site.thaw(Role::Dr)?;
        again.join().expect("no panic").context("the write on the new connection")
    })?;
    group.site.settle(LONG)?;
    std::thread::sleep(Duration::from_millis(200));
    ensure!(group.site.primary()?.tail_seq.0 == before.0 + 1, "what waited was done after it");
    let volume = std::fs::read(group.site.backing(Role::Primary, "db"))?;
    ensure!(volume[..4 << 20] == [0xaa; 4 << 20], "what has begun is done");
    ensure!(volume[12 << 20] == 0xbb && volume[(12 << 20) + 4096..].iter().all(|byte| *byte == 0));
    group.compare_files()
}

/// Requests that one connection keeps in flight while its server stops.
const FLIGHT: u64 = 32;
const STOPS: u32 = 4;

/// Keeps `FLIGHT` requests in flight, every fourth a flush, until the server ends the connection; how many had no answer.
fn until_the_end(mut stream: UnixStream, lane: u64) -> Result<u64> {
    let (mut asked, mut answered) = (0, 0);
    loop {
        let mut more = Vec::new();
        while asked < answered + FLIGHT {
            if asked % 4 == 3 {
                more.extend_from_slice(&RequestHead::encode(0, CMD_FLUSH, asked, 0, 0));
            } else {
                let offset = lane * MIB + asked % 256 * 4096;
                more.extend_from_slice(&RequestHead::encode(0, CMD_WRITE, asked, offset, 4096));
                more.extend_from_slice(&[0x22; 4096]);
            }
            asked += 1;
        }
        let mut reply = [0; REPLY_BYTES];
        if stream.write_all(&more).and_then(|()| stream.read_exact(&mut reply)).is_err() {
            return Ok(asked - answered);
        }
        let error = u32::from_be_bytes(reply[4..8].try_into().expect("four bytes"));
        ensure!(error == 0, "request {answered} of lane {lane} was answered with the error {error}");
        answered += 1;
    }
}

#[test]
fn a_clean_stop_answers_nothing_with_an_error() -> Result<()> {
    let mut group = Group::started(FAST, "protect = \"order\"\nrequire = \"both\"")?;
    for round in 0..STOPS {
        let streams: Vec<UnixStream> =
            (0..4).map(|_| transmitting(&group.site.export(Role::Primary))).collect::<Result<_>>()?;
        let clients: Vec<_> = streams
            .into_iter()
            .zip(0..)
            .map(|(stream, lane)| std::thread::spawn(move || until_the_end(stream, lane)))
            .collect();
        std::thread::sleep(Duration::from_millis(100 + u64::from(round) * 37));
        let status = group.site.stop(Role::Primary)?;
        ensure!(status.success(), "the primary ends with {status}");
        let mut open = 0;
        for client in clients {
            open += client.join().expect("no panic")?;
        }
        ensure!(open > 0, "something was under way when it stopped");
        group.site.start(Role::Primary)?;
    }
    group.site.settle(LONG)?;
    group.compare_files()
}
