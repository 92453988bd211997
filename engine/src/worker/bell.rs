//! What wakes a sleeping worker besides frames: another worker's hand-off, a changed configuration, the end.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

/// Wakes one worker. Ringing costs a store and a swap while the worker is awake, a system call when it sleeps.
///
/// No ring is lost: the worker says that it sleeps before it looks for the last time, and who rings leaves the mark before he
/// looks whether it sleeps, all of it sequentially consistent, so one of the two sees the other.
#[derive(Debug)]
pub struct Bell {
    event: EventFd,
    rung: AtomicBool,
    asleep: AtomicBool,
    stopped: AtomicBool,
}

impl Bell {
    /// A bell for one worker.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Arc<Self>> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let (rung, asleep, stopped) = Default::default();
        Ok(Arc::new(Bell { event, rung, asleep, stopped }))
    }

    /// Wakes the worker if it sleeps, and keeps it from falling asleep before it has looked around once more.
    pub fn ring(&self) {
        self.rung.store(true, SeqCst);
        if self.asleep.swap(false, SeqCst) {
            // It can fail only when the counter is full, and then the worker wakes all the same.
            let _already_ringing = self.event.write(1);
        }
    }

    /// Ends the worker's thread.
    pub fn stop(&self) {
        self.stopped.store(true, SeqCst);
        self.ring();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(SeqCst)
    }

    /// Sleeps until the bell rings, one of `descriptors` becomes readable or `limit` is over. Whether one of `descriptors` is
    /// in error.
    pub(super) fn sleep<'a>(&'a self, mut descriptors: Vec<PollFd<'a>>, limit: Duration) -> bool {
        descriptors.push(PollFd::new(self.event.as_fd(), PollFlags::POLLIN));
        self.asleep.store(true, SeqCst);
        let woken = if self.rung.swap(false, SeqCst) {
            Ok(0)
        } else {
            ppoll(&mut descriptors, Some(TimeSpec::from_duration(limit)), None)
        };
        self.asleep.store(false, SeqCst);
        self.rung.store(false, SeqCst);
        if woken.is_ok_and(|count| count == 0) || woken == Err(Errno::EINTR) {
            return false;
        }
        let _nothing_rang = self.event.read();
        let broken = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
        descriptors.iter().any(|fd| fd.revents().is_some_and(|events| events.intersects(broken)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_ring_before_sleep_prevents_it() {
        let bell = Bell::new().unwrap();
        bell.ring();
        let start = Instant::now();
        bell.sleep(vec![], LONG);
        assert!(start.elapsed() < LONG / 2);
    }

    #[test]
    fn every_ring_is_heard() {
        let bell = Bell::new().unwrap();
        let ringer = bell.clone();
        let (heard, hear) = std::sync::mpsc::sync_channel(0);
        let sleeper = std::thread::spawn(move || {
            for _ in 0..2000 {
                bell.sleep(vec![], LONG);
                heard.send(()).unwrap();
            }
        });
        let start = Instant::now();
        for _ in 0..2000 {
            ringer.ring();
            hear.recv().unwrap();
        }
        sleeper.join().unwrap();
        assert!(start.elapsed() < LONG, "a ring was lost and the sleeper woke by its limit");
    }
}
