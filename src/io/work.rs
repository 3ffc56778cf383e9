//! A helper thread for what takes the processor long: the reactor goes on meanwhile, and is woken with what came out.
//!
//! Jobs are done one after another, in the order in which they were given. The thread steps back behind whoever else wants
//! a core, so that no write waits for it.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};

use bytes::Bytes;
use nix::libc;

use super::signal::Waker;
use crate::core::ids::Ticket;

/// What is done, and gives bytes.
pub type Job = Box<dyn FnOnce() -> Vec<Bytes> + Send>;

/// How far the thread steps back (nice).
const NICE: i32 = 10;

pub struct Work {
    waker: Waker,
    answers: Receiver<(Ticket, Vec<Bytes>)>,
    answer: Sender<(Ticket, Vec<Bytes>)>,
    /// The thread, once there was something to do.
    jobs: Option<Sender<(Ticket, Job)>>,
}

impl Work {
    pub fn new(waker: Waker) -> Work {
        let (answer, answers) = channel();
        Work { waker, answers, answer, jobs: None }
    }

    /// Begins a job; its answer comes by `answered`, after the reactor was woken.
    ///
    /// # Errors
    /// The thread cannot be started, or has ended.
    pub fn begin(&mut self, ticket: Ticket, job: Job) -> io::Result<()> {
        if self.jobs.is_none() {
            let (jobs, todo) = channel::<(Ticket, Job)>();
            let (answer, waker) = (self.answer.clone(), self.waker.clone());
            let work = move || {
                // SAFETY: names no memory. Of this thread only: to Linux it is a process of its own here.
                let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
                for (ticket, job) in todo {
                    // A reactor that is gone wants no answer.
                    let _ = answer.send((ticket, job()));
                    waker.wake();
                }
            };
            std::thread::Builder::new().name("work".into()).spawn(work)?;
            self.jobs = Some(jobs);
        }
        let jobs = self.jobs.as_ref().expect("made above");
        jobs.send((ticket, job)).map_err(|_| io::Error::other("the helper thread has ended"))
    }

    /// An answer that has come since.
    pub fn answered(&self) -> Option<(Ticket, Vec<Bytes>)> {
        self.answers.try_recv().ok()
    }
}
