//! Connections for the kernel: past the handshake, with nothing read beyond it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::cli::relay::line::connect;
use crate::core::address::{Address, NbdUri};
use crate::core::rope::Rope;
use crate::nbd::client::{ClientSession, Event, ExportInfo};
use crate::nbd::outbox::Outbox;

/// How long a server may take over one answer of the handshake.
const PATIENCE: Duration = Duration::from_secs(10);
/// A server whose host is gone is found out by then: quiet seconds, seconds between probes, probes.
const KEEPALIVE: (u32, u32, u32) = (10, 5, 3);

/// Connects and negotiates. An error says what went wrong, without the address.
pub fn attend(uri: &NbdUri) -> Result<(OwnedFd, ExportInfo), String> {
    let mut stream = connect(&uri.address).map_err(|error| format!("cannot connect: {error}"))?;
    let cannot = |errno: Errno| format!("cannot set up the socket: {errno}");
    set_up(&stream, &uri.address).map_err(cannot)?;
    let mut session = ClientSession::new(&uri.export);
    let (mut rx, mut out, mut events) = (Rope::new(), Outbox::new(), Vec::new());
    // Byte by byte of what the answer needs: whatever follows it is the kernel's.
    let mut byte = [0];
    loop {
        session.advance(&mut rx, &mut events, &mut out).map_err(|error| error.to_string())?;
        for part in out.drain() {
            stream.write_all(&part).map_err(|error| format!("the connection failed: {error}"))?;
        }
        match events.pop() {
            Some(Event::Ready(info)) => {
                // The time-outs are ours.
                time_out(&stream, Duration::ZERO).map_err(cannot)?;
                return Ok((stream.into(), info));
            }
            Some(Event::Refused { text, .. }) => return Err(format!("the server refuses: {text}")),
            Some(Event::Secure) => unreachable!("TLS was not asked for"),
            Some(Event::Done { .. } | Event::Status { .. }) => unreachable!("nothing was requested"),
            None => {}
        }
        match stream.read(&mut byte) {
            Ok(0) => return Err(format!("the server ended the connection {}", session.stage())),
            Ok(_) => rx.push(Bytes::copy_from_slice(&byte)),
            Err(error) => return Err(format!("no answer {}: {error}", session.stage())),
        }
    }
}

/// Time-outs for the handshake, and over TCP probes for as long as the socket lives.
fn set_up(stream: &File, address: &Address) -> nix::Result<()> {
    time_out(stream, PATIENCE)?;
    if let Address::Unix(_) = address {
        return Ok(());
    }
    let (quiet, between, probes) = KEEPALIVE;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &quiet)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &between)?;
    setsockopt(stream, sockopt::TcpKeepCount, &probes)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &((quiet + between * probes) * 1000))
}

/// How long a read or a write may take; zero: for ever.
fn time_out(stream: &File, time: Duration) -> nix::Result<()> {
    let time = TimeVal::seconds(time.as_secs().cast_signed());
    setsockopt(stream, sockopt::ReceiveTimeout, &time)?;
    setsockopt(stream, sockopt::SendTimeout, &time)
}
