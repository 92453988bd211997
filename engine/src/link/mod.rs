//! Where frames come from and go to: one [`Queue`] per receive queue of a device, and the memory its frames lie in.
//!
//! A worker owns one [`memory::Region`] and lends its frames to the kernel through every queue it holds, so a frame that
//! came in by one device leaves by another without a copy. [`xdp`] is the AF_XDP link, [`raw`] the one by packet sockets,
//! [`own`] the one to this host's own sockets; another kind of link stands beside them by implementing [`Queue`].

pub(crate) mod cut;
pub mod device;
pub mod memory;
pub mod namespace;
pub mod own;
pub mod pcap;
pub mod raw;
pub mod tun;
pub mod xdp;

pub use device::Device;
pub use memory::{Batch, Frame, Part, Parts, Pool, Region};
pub use xdp::Statistics;

use crate::batch::PortId;
use crate::verdict::Reason;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Parts a frame may have: room for a frame of 64 KiB in chunks of 2048 bytes.
pub const MAX_PARTS: usize = 37;

/// Parts a frame may have that is sent: one linear part and the kernel's `MAX_SKB_FRAGS` more. In chunks of 4096 bytes this is
/// room for a frame of 64 KiB; in smaller ones the longest frames can be received, and sent after they were cut.
pub const MAX_SENT_PARTS: usize = 18;

/// One receive queue of one device with the transmit side that belongs to it, owned by one worker.
pub trait Queue: Send {
    /// The device this is a queue of.
    fn port(&self) -> PortId;

    /// Moves whole received frames into `batch`, as many as fit. Frames of more than [`MAX_PARTS`] parts go straight
    /// back to `pool`; their number is returned.
    fn receive(&mut self, pool: &mut Pool, batch: &mut Batch) -> u64;

    /// Takes `frame` to send it; leaves it where it is and says why when it cannot.
    ///
    /// # Errors
    /// [`Reason::TxFull`] when there is no room, [`Reason::TooManyParts`] when this device takes frames of fewer parts only.
    fn transmit(&mut self, frame: &mut Parts) -> Result<(), Reason>;

    /// Shows the kernel what was given to [`Queue::transmit`], takes back frames that were sent, offers new ones to
    /// receive into. Called once per turn of the worker.
    ///
    /// # Errors
    /// [`Gone`] when the device no longer exists.
    fn tend(&mut self, pool: &mut Pool) -> Result<Sending, Gone>;

    /// Whether the device still exists, asked of the kernel. For idle moments: a device may vanish while nothing is sent.
    ///
    /// # Errors
    /// [`Gone`] when it does not.
    fn check(&self) -> Result<(), Gone>;

    /// What becomes readable when a frame arrives.
    fn descriptor(&self) -> BorrowedFd<'_>;
}

/// How far transmission has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// Everything given was taken by the kernel.
    Done,
    /// Frames wait and the last call sent some.
    Moving,
    /// Frames wait and the last call sent none (the device is down, or its own queue is full).
    Stuck,
}

/// A view of a queue for those who only watch it.
#[derive(Debug)]
pub enum Probe {
    /// Of an AF_XDP socket.
    Xdp(xdp::Probe),
    /// Of a packet socket.
    Raw(raw::Probe),
}

impl Probe {
    /// What was counted for this queue since it was bound.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn statistics(&self) -> io::Result<Statistics> {
        match self {
            Probe::Xdp(probe) => probe.statistics(),
            Probe::Raw(probe) => probe.statistics(),
        }
    }

    /// The socket for the XDP program's map, if it is one for that.
    pub fn xdp_socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Probe::Xdp(probe) => Some(probe.as_fd()),
            Probe::Raw(_) => None,
        }
    }
}

/// The device vanished while it was in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device is gone")]
pub struct Gone;

/// Why a link could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such device in the namespace of the calling thread.
    #[error("there is no network device {0:?} in this network namespace: `ip link` lists those there are")]
    NoDevice(String),
    /// A device without Ethernet framing (loopback, tun, ipip …).
    #[error("{0} is not an Ethernet device: frames can be taken from Ethernet devices only")]
    NotEthernet(String),
    /// Kernel without `CONFIG_XDP_SOCKETS`.
    #[error("this kernel has no AF_XDP sockets: it must be built with CONFIG_XDP_SOCKETS=y")]
    NoAfXdp,
    /// Kernel without `CONFIG_PACKET`.
    #[error("this kernel has no packet sockets: it must be built with CONFIG_PACKET=y")]
    NoPacketSockets,
    /// A privilege is missing.
    #[error("{action} needs the capability {capability}: run as root or grant it")]
    Capability {
        /// What was attempted.
        action: &'static str,
        /// The capability's name as in capabilities(7).
        capability: &'static str,
    },
    /// `RLIMIT_MEMLOCK` is below what frames need.
    #[error(
        "frames need {mebibytes} MiB of locked memory, more than the limit allows: grant CAP_IPC_LOCK, or raise the \
             limit (`ulimit -l`, LimitMEMLOCK= in a systemd unit)"
    )]
    LockedMemory {
        /// The size of the region asked for, in MiB.
        mebibytes: usize,
    },
    /// No memory for the region.
    #[error("no memory for {mebibytes} MiB of frames: {source}")]
    Memory {
        /// The size of the region asked for, in MiB.
        mebibytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The queue is held by another AF_XDP socket.
    #[error("queue {queue} of {device} is in use by another AF_XDP socket: stop the program that holds it")]
    Busy {
        /// The device.
        device: String,
        /// The queue.
        queue: u32,
    },
    /// Frames of the device do not fit a buffer and the kernel has no multi-buffer AF_XDP.
    #[error(
        "frames of {device} (MTU {mtu}) need multi-buffer AF_XDP, which this kernel lacks: lower its MTU to \
             {limit}"
    )]
    Mtu {
        /// The device.
        device: String,
        /// Its MTU in bytes.
        mtu: u32,
        /// The largest MTU that would do.
        limit: u32,
    },
    /// Anything else the kernel refused.
    #[error("{action} on {device} failed: {source}")]
    Kernel {
        /// What was attempted.
        action: &'static str,
        /// The device it was attempted on.
        device: String,
        /// What the kernel said.
        source: io::Error,
    },
}
