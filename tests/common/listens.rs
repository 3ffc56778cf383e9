//! Whether somebody listens on a unix socket: its file is there from `bind` on, a connection is taken from `listen` on, and
//! one made between them is refused.

use std::path::Path;

/// `SO_ACCEPTCON`, the bit of a listening socket in the fourth column of `/proc/net/unix` (proc_net_unix(5)).
const ACCEPTS: u32 = 1 << 16;

/// Asks the kernel, without a connection: a server that serves one client would spend it.
pub fn listens(socket: &Path) -> bool {
    let Ok(all) = std::fs::read_to_string("/proc/net/unix") else { return false };
    all.lines().skip(1).any(|line| {
        let mut words = line.split_ascii_whitespace();
        let flags = words.nth(3).and_then(|word| u32::from_str_radix(word, 16).ok());
        flags.is_some_and(|flags| flags & ACCEPTS != 0) && words.nth(3).is_some_and(|path| Path::new(path) == socket)
    })
}

#[test]
fn a_bound_socket_does_not_listen_yet() {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    let path = std::env::temp_dir().join(format!("farshore-listens-{}", std::process::id()));
    let end = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).expect("a socket");
    bind(std::os::fd::AsRawFd::as_raw_fd(&end), &UnixAddr::new(&path).expect("an address")).expect("bound");
    assert!(path.exists() && !listens(&path));
    listen(&end, Backlog::new(1).expect("a number")).expect("it listens");
    assert!(listens(&path));
    std::fs::remove_file(&path).expect("removed");
}
