//! Telling systemd where a daemon stands (`Type=notify`); does nothing when nobody asked.
//!
//! Implements the datagram of sd_notify(3): `KEY=value` lines to the socket named by `NOTIFY_SOCKET`.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Listening sockets are open and recovery is done: units that come after this one may start.
pub fn ready(status: &str) {
    send(&format!("READY=1\nSTATUS={}", one_line(status)));
}

/// What `systemctl status` shows.
pub fn status(text: &str) {
    send(&format!("STATUS={}", one_line(text)));
}

/// A clean stop has begun.
pub fn stopping() {
    send("STOPPING=1\nSTATUS=stopping");
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}

/// Best effort: a supervisor that has gone away is no reason to fail.
fn send(message: &str) {
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET") {
        let _ = send_to(&socket, message);
    }
}

fn send_to(socket: &OsStr, message: &str) -> std::io::Result<()> {
    let address = match socket.as_bytes() {
        // A name in the abstract namespace is written with an @ in place of the zero.
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_receives_the_lines_by_path_and_by_abstract_name() {
        let name = format!("farshore-notify-test-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let by_path = UnixDatagram::bind(&path).expect("a socket in the temporary directory");
        let abstract_name = SocketAddr::from_abstract_name(&name).expect("a short name");
        let by_name = UnixDatagram::bind_addr(&abstract_name).expect("a free abstract name");
        for (receiver, address) in [(by_path, path.clone().into_os_string()), (by_name, format!("@{name}").into())] {
            send_to(&address, "READY=1\nSTATUS=serving").expect("somebody listens");
            let mut buffer = [0; 64];
            let bytes = receiver.recv(&mut buffer).expect("the datagram");
            assert_eq!(&buffer[..bytes], b"READY=1\nSTATUS=serving");
        }
        let _ = std::fs::remove_file(path);
    }

    #[test]
    fn nobody_listening_is_an_error_and_no_panic() {
        assert!(send_to(OsStr::new("/nonexistent/socket"), "READY=1").is_err());
    }
}
