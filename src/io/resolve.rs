//! From an address to the socket addresses to try, without ever making the reactor wait for a name server.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::sys::socket::{SockaddrStorage, UnixAddr};

use super::listen;
use super::signal::Waker;
use crate::core::address::Address;
use crate::core::ids::Conn;

/// The socket addresses of a connection, in the order to try them, or why there are none.
pub type Resolved = Result<Vec<SockaddrStorage>, String>;

/// Looks names up on helper threads.
pub struct Resolver {
    waker: Waker,
    answers: Receiver<(Conn, Resolved)>,
    answer: Sender<(Conn, Resolved)>,
}

impl Resolver {
    pub fn new(waker: Waker) -> Resolver {
        let (answer, answers) = channel();
        Resolver { waker, answers, answer }
    }

    /// The answer at once where no name has to be looked up; otherwise `None`, and it comes by `answered`.
    pub fn resolve(&self, conn: Conn, address: &Address) -> Option<Resolved> {
        let host_port = match address {
            Address::Unix(path) => {
                let found = UnixAddr::new(path.as_path()).map(|unix| vec![listen::general_address(&unix)]);
                return Some(found.map_err(|error| format!("{}: {error}", path.display())));
            }
            Address::Tcp(host_port) => host_port.clone(),
        };
        if let Ok(literal) = host_port.parse::<SocketAddr>() {
            return Some(Ok(vec![SockaddrStorage::from(literal)]));
        }
        let (answer, waker) = (self.answer.clone(), self.waker.clone());
        let lookup = move || {
            // A reactor that is gone wants no answer.
            let _ = answer.send((conn, lookup(&host_port)));
            waker.wake();
        };
        match std::thread::Builder::new().name("resolve".into()).spawn(lookup) {
            Ok(_) => None,
            Err(error) => Some(Err(format!("cannot start a thread to resolve {address}: {error}"))),
        }
    }

    /// An answer that has come since.
    pub fn answered(&self) -> Option<(Conn, Resolved)> {
        self.answers.try_recv().ok()
    }
}

/// Looks a name up, in this thread.
pub fn lookup(host_port: &str) -> Resolved {
    let found = host_port.to_socket_addrs().map_err(|error| format!("cannot resolve {host_port}: {error}"))?;
    let found: Vec<SockaddrStorage> = found.map(SockaddrStorage::from).collect();
    if found.is_empty() { Err(format!("cannot resolve {host_port}: no address")) } else { Ok(found) }
}
