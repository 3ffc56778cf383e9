//! Descriptors of sockets: making, binding, naming and tuning them.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, accept4, bind,
    getpeername, getsockname, getsockopt, listen, setsockopt, shutdown, socket, sockopt,
};

use super::lock;
use super::open::{is_absent, may_make_in, parent};
use super::patience::{Obstacle, has_ended, patiently};
use super::resolve;
use super::tls::Acceptor;
use crate::core::address::Address;
use crate::core::asker::Asker;

/// Connections that wait to be accepted, as far as the kernel allows (`net.core.somaxconn`): newcomers wait here while others
/// have their time, and of more the kernel turns some away, or has them try again a second later.
const BACKLOG: Backlog = Backlog::MAXALLOWABLE;
const EXISTS: &str = "exists and is not a socket; move it away, or choose another path";

/// A listening socket. The ring never sees it, for it would keep it open when its process is killed: whoever connected
/// until the kernel has taken the ring apart would be accepted by nobody and reset. What the ring watches only knows of it.
pub struct Listener {
    fd: OwnedFd,
    watch: Epoll,
    /// Where it really listens (the port chosen for port 0).
    pub address: Address,
    /// The file of a unix socket, with its inode: only our own is removed.
    file: Option<(PathBuf, u64)>,
    /// Who connects here begins with TLS.
    pub acceptor: Option<Acceptor>,
    pub accepting: bool,
    pub stopping: bool,
    /// After a failed accept: when to try again, monotonic.
    pub rest_until_ns: Option<u64>,
}

impl Listener {
    /// Binds and listens. A unix socket that a dead process left is replaced; one that answers is in use.
    pub fn open(address: &Address) -> io::Result<Listener> {
        let pid = || match address {
            Address::Unix(path) => listener_of(path),
            // The kernel says of a TCP port that it is taken, and not by whom.
            Address::Tcp(_) => None,
        };
        let what = || Obstacle {
            text: format!("the address {address} is in use by {}", process(pid())),
            ended: pid().is_some_and(has_ended),
        };
        patiently(io::ErrorKind::AddrInUse, what, || Listener::try_open(address)).map_err(|late| {
            let advice = match (late.error.kind(), address) {
                (io::ErrorKind::AddrInUse, Address::Tcp(_)) => {
                    "; stop that process (`ss -ltnp` says which it is), or name another address in the configuration"
                }
                (io::ErrorKind::AddrInUse, _) => "; stop that process, or name another address in the configuration",
                _ => "",
            };
            io::Error::new(late.error.kind(), format!("{late}{advice}"))
        })
    }

    fn try_open(address: &Address) -> io::Result<Listener> {
        let (fd, address, file) = match address {
            Address::Unix(path) => {
                let fd = listen_unix(path)?;
                let file = std::fs::symlink_metadata(path).map(|data| (path.clone(), data.ino())).ok();
                (fd, address.clone(), file)
            }
            Address::Tcp(host_port) => {
                let fd = listen_tcp(host_port)?;
                let address = local_address(&fd)?;
                (fd, address, None)
            }
        };
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?) | OFlag::O_NONBLOCK;
        fcntl(&fd, FcntlArg::F_SETFL(flags))?;
        let watch = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        watch.add(&fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        let (acceptor, rest_until_ns) = (None, None);
        Ok(Listener { fd, watch, address, file, acceptor, accepting: false, stopping: false, rest_until_ns })
    }

    /// What can be read from when somebody waits to be accepted.
    pub fn descriptor(&self) -> RawFd {
        self.watch.0.as_raw_fd()
    }

    /// The next of those who wait, if there is any.
    pub fn take(&self) -> io::Result<Option<OwnedFd>> {
        loop {
            match accept4(self.fd.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                Ok(raw) => return Ok(Some(own(raw))),
                Err(Errno::EAGAIN) => return Ok(None),
                // Who has gone meanwhile.
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Frees the address at once, however long the kernel keeps the descriptor: nobody is taken in any more, and the
    /// file of a unix socket is removed.
    pub fn retire(&mut self) {
        // A socket that does not listen any more has nothing to end.
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Both);
        if let Some((path, inode)) = self.file.take()
            && std::fs::symlink_metadata(&path).is_ok_and(|data| data.ino() == inode)
        {
            // Somebody else may have removed it in this very moment; then it is gone as it should be.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.retire();
    }
}

/// Takes over a descriptor that the kernel has just made for us.
fn own(raw: RawFd) -> OwnedFd {
    assert!(raw >= 0, "the caller has looked for an error");
    // SAFETY: the descriptor was returned by an accept that nobody else takes the result of.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// A stream socket of the family of an address; blocking, as the ring wants it: it waits by itself.
pub fn stream_socket(address: &SockaddrStorage) -> io::Result<OwnedFd> {
    let family = address.family().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)
}

/// An address as the kernel takes it. Valid as long as `address` is where it is.
pub fn raw_address(address: &SockaddrStorage) -> (*const libc::sockaddr, libc::socklen_t) {
    (address.as_ptr(), address.len())
}

/// The address of a unix socket in the shape that fits every family.
pub fn general_address(address: &UnixAddr) -> SockaddrStorage {
    // SAFETY: pointer and length describe an initialised unix address that lives through the call.
    let general = unsafe { SockaddrStorage::from_raw(address.as_ptr().cast(), Some(address.len())) };
    general.expect("the storage has room for every unix address")
}

/// Small messages go out at once, and a peer that vanished without a word is noticed some time.
pub fn tune(fd: &OwnedFd) {
    // On unix sockets these do not exist, and nothing depends on them.
    let _ = setsockopt(fd, sockopt::TcpNoDelay, &true);
    let _ = setsockopt(fd, sockopt::KeepAlive, &true);
    let _ = setsockopt(fd, sockopt::TcpKeepIdle, &30);
    let _ = setsockopt(fd, sockopt::TcpKeepInterval, &10);
    let _ = setsockopt(fd, sockopt::TcpKeepCount, &3);
}

/// Who is at the other end, in words for logs.
pub fn peer_name(fd: &OwnedFd) -> String {
    match getpeername::<SockaddrStorage>(fd.as_raw_fd()) {
        Ok(address) if address.family() == Some(AddressFamily::Unix) => {
            match getsockopt(fd, sockopt::PeerCredentials) {
                Ok(peer) => format!("unix pid {}", peer.pid()),
                Err(_) => "unix".into(),
            }
        }
        Ok(address) => address.to_string(),
        Err(_) => "unknown".into(),
    }
}

/// Who is at the other end of a unix socket: the user that it was when it connected.
pub fn asker(fd: Option<&OwnedFd>) -> Asker {
    let peer = fd.and_then(|fd| getsockopt(fd, sockopt::PeerCredentials).ok());
    Asker { user: peer.map(|peer| peer.uid()), role: nix::unistd::geteuid().as_raw() }
}

/// Lets the group connect to a unix socket beside its owner, and nobody else, whatever the umask was.
pub fn share(path: &Path) -> io::Result<()> {
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o660)).map_err(|error| named(path.display(), error))
}

fn listen_unix(path: &Path) -> io::Result<OwnedFd> {
    let address = UnixAddr::new(path)?;
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    if let Err(error) = bind(fd.as_raw_fd(), &address) {
        if error != Errno::EADDRINUSE {
            return Err(not_made(path, error.into()));
        }
        is_stale(path)?;
        std::fs::remove_file(path)?;
        bind(fd.as_raw_fd(), &address).map_err(|error| named(path.display(), error.into()))?;
    }
    // Nobody has connected yet, for it does not listen. Others than its user are let in by whoever says so.
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(|error| named(path.display(), error))?;
    listen(&fd, BACKLOG)?;
    Ok(fd)
}

/// What [`Listener::open`] would say of an address, without waiting for who has it; makes nothing. While what it returns is
/// open, nobody else gets a TCP port.
///
/// # Errors
/// Nobody could listen there now.
pub fn judge(address: &Address) -> io::Result<Option<OwnedFd>> {
    let path = match address {
        Address::Tcp(host_port) => return listen_tcp(host_port).map(Some),
        Address::Unix(path) => path,
    };
    UnixAddr::new(path)?;
    if !is_absent(path) {
        is_stale(path)?;
    }
    match may_make_in(parent(path)) {
        // It is made with all above it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        made => made.map(|()| None).map_err(|error| not_made(path, error)),
    }
}

fn not_made(path: &Path, error: io::Error) -> io::Error {
    named(format!("{}: the socket cannot be made", path.display()), error)
}

/// A socket that nobody listens on may be replaced; anything else at its place is an error.
fn is_stale(path: &Path) -> io::Result<()> {
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(named(path.display(), io::Error::new(io::ErrorKind::AlreadyExists, EXISTS)));
    }
    // Not blocking: who lets its queue of connections fill up is there all the same.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match nix::sys::socket::connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        // Waiting for oneself would never end.
        Ok(()) if getsockopt(&probe, sockopt::PeerCredentials).is_ok_and(|peer| own_pid(peer.pid())) => {
            let text = "address in use: this process listens there already";
            Err(named(path.display(), io::Error::new(io::ErrorKind::AlreadyExists, text)))
        }
        found @ (Ok(()) | Err(Errno::EAGAIN)) => {
            let text = format!("address in use by {}", process(peer_of(&probe, found.is_ok())));
            Err(named(path.display(), io::Error::new(io::ErrorKind::AddrInUse, text)))
        }
        Err(Errno::ECONNREFUSED) => Ok(()),
        Err(error) => Err(named(path.display(), error.into())),
    }
}

/// Who listens on a unix socket, as far as the kernel tells.
fn listener_of(path: &Path) -> Option<u32> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    let connected = nix::sys::socket::connect(probe.as_raw_fd(), &UnixAddr::new(path).ok()?).is_ok();
    peer_of(&probe, connected)
}

/// Who began to listen on what a socket is connected to: it need not have accepted for the kernel to know.
fn peer_of(probe: &OwnedFd, connected: bool) -> Option<u32> {
    let peer = getsockopt(probe, sockopt::PeerCredentials).ok().filter(|_| connected)?;
    // That of a process of another namespace of processes is 0.
    u32::try_from(peer.pid()).ok().filter(|pid| *pid > 0)
}

fn process(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".into(), |pid| format!("another process, {}", lock::named(pid)))
}

fn own_pid(pid: libc::pid_t) -> bool {
    u32::try_from(pid) == Ok(std::process::id())
}

fn listen_tcp(host_port: &str) -> io::Result<OwnedFd> {
    let addresses = resolve::lookup(host_port).map_err(io::Error::other)?;
    let (mut refused, mut tried) = (io::Error::from(io::ErrorKind::AddrNotAvailable), host_port.to_owned());
    for address in addresses {
        let attempt = || -> io::Result<OwnedFd> {
            let fd = stream_socket(&address)?;
            setsockopt(&fd, sockopt::ReuseAddr, &true)?;
            bind(fd.as_raw_fd(), &address)?;
            listen(&fd, BACKLOG)?;
            Ok(fd)
        };
        match attempt() {
            Ok(fd) => return Ok(fd),
            Err(error) => (refused, tried) = (error, address.to_string()),
        }
    }
    let kind = refused.kind();
    let text = match kind {
        io::ErrorKind::AddrInUse => "address in use by another process".to_owned(),
        io::ErrorKind::AddrNotAvailable => {
            let ip = tried.rsplit_once(':').map_or(&*tried, |(ip, _)| ip);
            format!("{ip} is not an address of this host")
        }
        io::ErrorKind::PermissionDenied => format!("{refused}: ports below 1024 are for root; choose a higher one"),
        _ => refused.to_string(),
    };
    Err(named(host_port, io::Error::new(kind, text)))
}

fn local_address(fd: &OwnedFd) -> io::Result<Address> {
    Ok(Address::Tcp(getsockname::<SockaddrStorage>(fd.as_raw_fd())?.to_string()))
}

fn named(what: impl std::fmt::Display, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_on_a_unix_socket_is_named() {
        let path = std::env::temp_dir().join(format!("farshore-listens-{}", std::process::id()));
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("free");
        let named = process(listener_of(&path));
        assert!(named.starts_with(&format!("another process, pid {} (", std::process::id())), "{named}");
        drop(listener);
        assert_eq!(
            process(listener_of(&path)),
            "another process",
            "of a socket that nobody listens on nothing is known"
        );
        std::fs::remove_file(path).expect("there");
    }
}
