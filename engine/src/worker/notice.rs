//! What workers tell the control plane.

use crate::batch::PortId;
use crate::verdict::Neighbour;
use crossbeam_queue::ArrayQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// Notices that may wait to be read; the oldest give way.
const CAPACITY: usize = 1024;

/// Something a worker cannot do by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Frames wait for this neighbour's link-layer address. Repeated every second while they do.
    Unresolved(Neighbour),
    /// A queue of this device stopped working because the device vanished.
    DeviceGone(PortId),
}

/// The queue of notices. Its descriptor is readable while some wait.
#[derive(Debug)]
pub struct Notices {
    queue: ArrayQueue<Notice>,
    event: EventFd,
}

impl Notices {
    /// An empty queue.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Arc<Self>> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Arc::new(Notices { queue: ArrayQueue::new(CAPACITY), event }))
    }

    /// The oldest notice. After `None` the descriptor is readable again only when there is a new one.
    pub fn next(&self) -> Option<Notice> {
        self.queue.pop().or_else(|| {
            let _was_not_readable = self.event.read();
            self.queue.pop()
        })
    }

    pub(super) fn tell(&self, notice: Notice) {
        self.queue.force_push(notice);
        // It can fail only when the counter is full, and then the descriptor is readable already.
        let _readable_anyway = self.event.write(1);
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
