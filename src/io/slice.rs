//! How long this thread wants to run at a time, for the scheduler.
//!
//! A thread that asks for short slices runs sooner after a wake-up, also where another one is in the middle of its own
//! (Linux 6.12 and later; earlier kernels take the wish and do nothing). It gets no larger share of the processor.

use nix::libc;

/// The shortest slice that the kernel grants, nanoseconds.
const SLICE_NS: u64 = 100_000;

/// What sched_setattr(2) takes, as far as its first version goes.
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Asks for short slices. Whoever runs this under another policy than the ordinary one knows better: it stays.
pub fn shorten() {
    // SAFETY: neither call names memory.
    let (policy, nice) = unsafe { (libc::sched_getscheduler(0), libc::getpriority(libc::PRIO_PROCESS, 0)) };
    if policy != libc::SCHED_OTHER {
        return;
    }
    let wish = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: 0,
        nice,
        priority: 0,
        runtime: SLICE_NS,
        deadline: 0,
        period: 0,
    };
    // SAFETY: `wish` is valid for the call, which reads the bytes that its first field counts.
    let granted = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wish, 0) };
    if granted != 0 {
        tracing::debug!("the scheduler grants no short slices: {}", std::io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_leaves_policy_and_priority_as_they_are() {
        std::thread::spawn(|| {
            // SAFETY: no memory is named.
            let before = unsafe { (libc::sched_getscheduler(0), libc::getpriority(libc::PRIO_PROCESS, 0)) };
            shorten();
            // SAFETY: no memory is named.
            let after = unsafe { (libc::sched_getscheduler(0), libc::getpriority(libc::PRIO_PROCESS, 0)) };
            assert_eq!(before, after);
        })
        .join()
        .expect("the scheduler is asked for nothing that can fail here");
    }
}
