//! Connections for the kernel: past the handshake, with nothing read beyond it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::socket::{setsockopt, sockopt};

use crate::core::address::{Address, NbdUri};
use crate::core::rope::Rope;
use crate::nbd::client::{ClientSession, Event, ExportInfo};
use crate::nbd::outbox::Outbox;

/// How long a server may take over one answer of the handshake.
const PATIENCE: Duration = Duration::from_secs(10);
/// A server whose host is gone is found out by then: quiet seconds, seconds between probes, probes.
const KEEPALIVE: (u32, u32, u32) = (10, 5, 3);

/// A socket that is blocking, as the kernel wants it.
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// Connects and negotiates. An error says what went wrong, without the address.
pub fn connect(uri: &NbdUri) -> Result<(OwnedFd, ExportInfo), String> {
    let mut stream = Stream::open(&uri.address)?;
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
            Some(Event::Ready(info)) => return Ok((stream.release()?, info)),
            Some(Event::Refused { text, .. }) => return Err(format!("the server refuses: {text}")),
            Some(Event::Secure) => unreachable!("TLS was not asked for"),
            Some(Event::Done { .. }) => unreachable!("nothing was requested"),
            None => {}
        }
        match stream.read(&mut byte) {
            Ok(0) => return Err(format!("the server ended the connection {}", session.stage())),
            Ok(_) => rx.push(Bytes::copy_from_slice(&byte)),
            Err(error) => return Err(format!("no answer {}: {error}", session.stage())),
        }
    }
}

impl Stream {
    fn open(address: &Address) -> Result<Stream, String> {
        let failed = |error: std::io::Error| format!("cannot connect: {error}");
        match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(failed)?;
                stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
                stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
                Ok(Stream::Unix(stream))
            }
            Address::Tcp(host) => {
                let stream = TcpStream::connect(host).map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
                stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
                let (quiet, between, probes) = KEEPALIVE;
                setsockopt(&stream, sockopt::KeepAlive, &true)
                    .and_then(|()| setsockopt(&stream, sockopt::TcpKeepIdle, &quiet))
                    .and_then(|()| setsockopt(&stream, sockopt::TcpKeepInterval, &between))
                    .and_then(|()| setsockopt(&stream, sockopt::TcpKeepCount, &probes))
                    .and_then(|()| setsockopt(&stream, sockopt::TcpUserTimeout, &((quiet + between * probes) * 1000)))
                    .map_err(|errno| format!("cannot set up the socket: {errno}"))?;
                Ok(Stream::Tcp(stream))
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(buffer),
            Stream::Tcp(stream) => stream.read(buffer),
        }
    }

    fn write_all(&mut self, buffer: &[u8]) -> std::io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.write_all(buffer),
            Stream::Tcp(stream) => stream.write_all(buffer),
        }
    }

    /// The descriptor, without our time-outs.
    fn release(self) -> Result<OwnedFd, String> {
        let failed = |error: std::io::Error| format!("cannot set up the socket: {error}");
        match self {
            Stream::Unix(stream) => {
                stream.set_read_timeout(None).and_then(|()| stream.set_write_timeout(None)).map_err(failed)?;
                Ok(stream.into())
            }
            Stream::Tcp(stream) => {
                stream.set_read_timeout(None).and_then(|()| stream.set_write_timeout(None)).map_err(failed)?;
                Ok(stream.into())
            }
        }
    }
}
