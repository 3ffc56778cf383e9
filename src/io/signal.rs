//! What wakes a reactor from outside: the signals that ask it to stop, and other threads.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// SIGTERM and SIGINT as a descriptor. The signals stay blocked for the thread that made it.
pub struct Signals(SignalFd);

impl Signals {
    pub fn new() -> io::Result<Signals> {
        // A file that may not become longer (RLIMIT_FSIZE) is an error of the write, and not the end of the process.
        // SAFETY: a signal that is ignored runs no handler, so none of ours has to be safe to run in one.
        unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }?;
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGINT);
        set.thread_block()?;
        Ok(Signals(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    pub fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Takes what has come; whether something had.
    pub fn drain(&mut self) -> bool {
        let mut any = false;
        while let Ok(Some(_)) = self.0.read_signal() {
            any = true;
        }
        any
    }
}

/// Lets other threads wake the reactor.
#[derive(Clone)]
pub struct Waker {
    event: Arc<EventFd>,
    stop: Arc<AtomicBool>,
}

impl Waker {
    pub fn new() -> io::Result<Waker> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Waker { event: Arc::new(event), stop: Arc::new(AtomicBool::new(false)) })
    }

    pub fn descriptor(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    pub fn wake(&self) {
        // The counter can only refuse when it is full, and then the reactor is awake already.
        let _ = self.event.write(1);
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    /// Takes the wake-ups; whether a stop was asked for since the last time.
    pub fn drain(&self) -> bool {
        while matches!(self.event.read(), Ok(_) | Err(Errno::EINTR)) {}
        self.stop.swap(false, Ordering::AcqRel)
    }
}
