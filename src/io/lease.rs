//! Sending only while a lease lasts, exactly: no byte is handed to the kernel after its end (I7).
//!
//! A look at the clock before a send is not enough. A process may be stopped between the look and the system call,
//! for as long as anybody likes, and go on with the send when another writer has taken over. So the kernel is asked to
//! stand between the two: a timer of the lease's end raises a signal in this very thread, and a thread that goes on
//! runs the handlers of pending signals before any instruction of its own. The handler spoils the message header that
//! leased sends go through:
//!
//! ```text
//!   fill the header ──► shut? ──► sendmsg(header)
//!          ▲              ▲           ▲
//!          └──────────────┴───────────┴── the handler, wherever: shut = true, header = nowhere (EFAULT)
//! ```
//!
//! What remains: a system call that was entered in time and is held up inside the kernel for longer than
//! `LEASE_MARGIN_NS`, and a machine whose clocks stand still with it (a virtual machine paused by its host).
//!
//! Invariants: the gate is open only while the timer is armed for a time not after the end of the lease, or while no
//! lease was ever asked for; one thread arms, sends and is interrupted.

use std::cell::UnsafeCell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::RawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use nix::libc;

use super::clock;

/// How much later an end has to be for the timer to be set anew: a lease that is renewed with every answer costs a
/// system call ten times a second.
const REARM_NS: u64 = 100_000_000;

/// What a leased send came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    Bytes(usize),
    /// The lease has ended: nothing was sent.
    Shut,
    /// An errno.
    Failed(i32),
}

/// The lease of one reactor.
pub struct Lease {
    gate: &'static Gate,
    timer: libc::timer_t,
    /// What the timer is armed for; 0 while it is not.
    armed_ns: u64,
    _one_thread: PhantomData<*const ()>,
}

/// What the handler of the signal touches.
struct Gate {
    shut: AtomicBool,
    header: UnsafeCell<libc::msghdr>,
}

// SAFETY: `shut` and the one field of the header that the handler writes are atomics; the rest of the header is
// touched by the thread that owns the `Lease` only.
unsafe impl Sync for Gate {}

impl Gate {
    /// Where the header says that the vectors are.
    fn vectors(&self) -> &AtomicPtr<libc::iovec> {
        // SAFETY: the field is aligned, lives as long as the gate, and is accessed as an atomic here only; the kernel
        // reads it during a system call of the same thread.
        unsafe { AtomicPtr::from_ptr(&raw mut (*self.header.get()).msg_iov) }
    }

    fn shut(&self) {
        self.shut.store(true, Ordering::SeqCst);
        self.vectors().store(std::ptr::null_mut(), Ordering::SeqCst);
    }
}

impl Lease {
    /// A lease that has not begun: nothing is sent.
    pub fn new() -> io::Result<Lease> {
        listen_to_timers()?;
        // SAFETY: a header of zeroes is valid: no name, no vectors, no control data.
        let header = UnsafeCell::new(unsafe { std::mem::zeroed() });
        // Never freed: a signal of the timer may still be on its way when the timer is deleted.
        let gate: &'static Gate = Box::leak(Box::new(Gate { shut: AtomicBool::new(true), header }));
        // SAFETY: zeroes are a valid event; it names this thread, and the gate, which is never freed.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal();
        event.sigev_value = libc::sigval { sival_ptr: std::ptr::from_ref(gate).cast_mut().cast() };
        event.sigev_notify_thread_id = nix::unistd::gettid().as_raw();
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: both pointers are valid for the call.
        if unsafe { libc::timer_create(libc::CLOCK_BOOTTIME, &raw mut event, &raw mut timer) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Lease { gate, timer, armed_ns: 0, _one_thread: PhantomData })
    }

    /// The lease lasts until `until_ns` of the monotonic clock, as far as is known. Whether the gate was opened by it.
    pub fn extend(&mut self, until_ns: u64) -> io::Result<bool> {
        let shut = self.gate.shut.load(Ordering::SeqCst);
        if until_ns <= self.armed_ns || (!shut && until_ns < self.armed_ns + REARM_NS) || until_ns <= clock::mono_ns() {
            return Ok(false);
        }
        // Open before it is armed: an end that has passed by then shuts it again before this returns, and nothing is
        // sent in between.
        self.gate.shut.store(false, Ordering::SeqCst);
        self.armed_ns = until_ns;
        let time = libc::timespec {
            tv_sec: (until_ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (until_ns % 1_000_000_000) as libc::c_long,
        };
        let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = libc::itimerspec { it_interval: never, it_value: time };
        // SAFETY: the timer exists as long as `self`, and the setting is valid for the call.
        let set =
            unsafe { libc::timer_settime(self.timer, libc::TIMER_ABSTIME, &raw const setting, std::ptr::null_mut()) };
        if set != 0 {
            self.gate.shut();
            return Err(io::Error::last_os_error());
        }
        Ok(shut)
    }

    /// Whether nothing may be sent now.
    pub fn is_shut(&self) -> bool {
        self.gate.shut.load(Ordering::SeqCst) || clock::mono_ns() >= self.armed_ns
    }

    /// Sends what the vectors name, as far as the peer has room, unless the lease has ended.
    pub fn send(&self, descriptor: RawFd, vectors: &mut [libc::iovec]) -> Sent {
        let header = self.gate.header.get();
        // SAFETY: this field is of this thread alone; the handler does not touch it.
        unsafe { (*header).msg_iovlen = vectors.len() as _ };
        self.gate.vectors().store(vectors.as_mut_ptr(), Ordering::SeqCst);
        // The clock as well: who was held up for long has the signal still to come only if timers are late.
        if self.is_shut() {
            return Sent::Shut;
        }
        self.send_prepared(descriptor)
    }

    fn send_prepared(&self, descriptor: RawFd) -> Sent {
        // SAFETY: the header is valid for the call; its vectors name live memory, or nothing once the handler has run,
        // which the kernel answers with EFAULT.
        let sent =
            unsafe { libc::sendmsg(descriptor, self.gate.header.get(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        match usize::try_from(sent) {
            Ok(bytes) => Sent::Bytes(bytes),
            Err(_) if self.gate.shut.load(Ordering::SeqCst) => Sent::Shut,
            Err(_) => Sent::Failed(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.gate.shut();
        // SAFETY: the timer was made by `new` and is deleted once.
        unsafe { libc::timer_delete(self.timer) };
    }
}

/// A signal that nothing else here uses.
fn signal() -> i32 {
    libc::SIGRTMIN() + 5
}

/// Installs the handler, once in a process, and lets its signal through to this thread.
fn listen_to_timers() -> io::Result<()> {
    static INSTALLED: OnceLock<i32> = OnceLock::new();
    let errno = *INSTALLED.get_or_init(|| {
        // SAFETY: zeroes are a valid action, completed below.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = ended as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        // SAFETY: the handler keeps to what is allowed in one: it stores to two atomics.
        let done = unsafe { libc::sigaction(signal(), &raw const action, std::ptr::null_mut()) };
        if done == 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL) }
    });
    if errno != 0 {
        return Err(io::Error::from_raw_os_error(errno));
    }
    // SAFETY: the set is initialised by sigemptyset, and all pointers are valid for their calls.
    let unblocked = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut())
    };
    if unblocked == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(unblocked)) }
}

/// The lease of a gate has ended. Runs in the thread that sends, between any two of its instructions.
extern "C" fn ended(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes what `timer_create` was given: a gate, which is never freed. Anybody else who raises
    // this signal by sigqueue(3) has a debugger's rights over this process.
    unsafe {
        if (*info).si_code == libc::SI_TIMER {
            let gate: *const Gate = (*info).si_value().sival_ptr.cast();
            (*gate).shut();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    fn vectors(bytes: &[u8]) -> [libc::iovec; 1] {
        [libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }]
    }

    #[test]
    fn nothing_is_sent_before_a_lease_begins_and_after_it_has_ended() {
        let (mut here, there) = UnixStream::pair().expect("a pair of sockets");
        let mut lease = Lease::new().expect("a timer");
        assert_eq!(lease.send(there.as_raw_fd(), &mut vectors(b"a")), Sent::Shut);
        assert!(lease.extend(clock::mono_ns() + 50_000_000).expect("armed"), "it opens");
        assert_eq!(lease.send(there.as_raw_fd(), &mut vectors(b"b")), Sent::Bytes(1));
        std::thread::sleep(Duration::from_millis(70));
        assert_eq!(lease.send(there.as_raw_fd(), &mut vectors(b"c")), Sent::Shut);
        assert!(!lease.extend(clock::mono_ns() - 1).expect("nothing to arm"), "an end that has passed opens nothing");
        assert_eq!(lease.send(there.as_raw_fd(), &mut vectors(b"d")), Sent::Shut);
        assert!(lease.extend(clock::mono_ns() + 1_000_000_000).expect("armed"));
        assert_eq!(lease.send(there.as_raw_fd(), &mut vectors(b"e")), Sent::Bytes(1));
        drop((lease, there));
        let mut got = Vec::new();
        here.read_to_end(&mut got).expect("the end of the stream");
        assert_eq!(got, b"be");
    }

    #[test]
    fn a_thread_held_up_between_the_check_and_the_call_sends_nothing() {
        let (mut here, there) = UnixStream::pair().expect("a pair of sockets");
        let mut lease = Lease::new().expect("a timer");
        lease.extend(clock::mono_ns() + 20_000_000).expect("armed");
        // Everything that `send` does but for the call; then the lease ends.
        let mut message = vectors(b"late");
        // SAFETY: as in `send`.
        unsafe { (*lease.gate.header.get()).msg_iovlen = message.len() as _ };
        lease.gate.vectors().store(message.as_mut_ptr(), Ordering::SeqCst);
        assert!(!lease.gate.shut.load(Ordering::SeqCst));
        std::thread::sleep(Duration::from_millis(40));
        assert_eq!(lease.send_prepared(there.as_raw_fd()), Sent::Shut);
        drop((lease, there));
        let mut got = Vec::new();
        here.read_to_end(&mut got).expect("the end of the stream");
        assert_eq!(got, b"");
    }

    #[test]
    fn a_lease_renewed_in_time_stays_open() {
        let (_here, there) = UnixStream::pair().expect("a pair of sockets");
        let mut lease = Lease::new().expect("a timer");
        for round in 0..4 {
            let opened = lease.extend(clock::mono_ns() + 250_000_000).expect("armed");
            assert_eq!(opened, round == 0);
            std::thread::sleep(Duration::from_millis(120));
            assert_eq!(lease.send(there.as_raw_fd(), &mut vectors(b"x")), Sent::Bytes(1), "round {round}");
        }
    }
}
