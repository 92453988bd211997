//! The director as its own client and as a real server of its own: its kernel's packets come to us by a TAP device.
//!
//! Packets of this host's own sockets meet no XDP program on their way out. A classifier on the egress of a device sees them
//! ([`Diversion`]) and hands those for our services, and those of local real servers whose replies we translate, to a device of
//! ours ([`OwnDevice`]), whole and with their checksums complete, for the kernel cuts and completes them for it. What goes back to
//! the host's sockets enters the kernel by the same device. It accepts packets from addresses of this host and to loopback
//! addresses, which no other device should: only what the pipeline has judged comes by it.
//!
//! Frames that we send pass no classifier. When the process dies the device goes with it; the classifier stays for as long as
//! the guard would, and drops what it has nobody to hand to: a packet of a balanced connection never meets the kernel's own
//! sockets by accident.

use super::bpf::{Map, MapKind, Program, ProgramKind};
use super::error::SteerError;
use super::filter::{self, Duty};
use super::guard::deadline_after;
use super::way_back::{self, Injected, WayBack};
use super::{Steering, program};
use crate::link::tun::Reach;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// What the names of these devices begin with; a number follows.
pub const DEVICE_PREFIX: &str = "uvs-own";

/// The loopback device of every network namespace (`LOOPBACK_IFINDEX`).
pub const LOOPBACK: u32 = 1;

/// The diversion's filter.
pub(super) const DUTY: Duty = Duty {
    parent: filter::EGRESS,
    name: "uvs-own",
    name_with_qdisc: "uvs-own+clsact",
    install: "divert this host's own packets",
    remove: "stop diverting this host's own packets",
    lacking: ["clsact qdisc (CONFIG_NET_SCH_INGRESS)", "cls_bpf classifier (CONFIG_NET_CLS_BPF)"],
};

/// The device by which packets of this host's own sockets come and go, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct OwnDevice(WayBack);

impl OwnDevice {
    /// Makes the device and brings it up.
    ///
    /// # Errors
    /// As [`WayBack::open`].
    pub fn open() -> Result<Self, SteerError> {
        way_back::open(DEVICE_PREFIX, Reach::Own).map(OwnDevice)
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// The device's index.
    pub fn ifindex(&self) -> u32 {
        self.0.ifindex()
    }

    /// The device's link-layer address.
    pub fn mac(&self) -> [u8; 6] {
        self.0.mac()
    }

    /// Gives a frame, in one or more parts, to the kernel; as [`WayBack::inject`].
    pub fn inject(&self, parts: &[&[u8]]) -> Injected {
        self.0.inject(parts)
    }

    /// Takes the next frame that was diverted, addressed to the device whatever it was addressed to before. Returns its length.
    /// Never blocks. (What the kernel sends by the device itself is for groups of stations.)
    ///
    /// # Errors
    /// `WouldBlock` when there is none; anything else when the device is gone.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = self.0.read(buffer)?;
            if let Some([first, ..]) = buffer.first_chunk_mut::<6>()
                && *first & 1 == 0
            {
                buffer[..6].copy_from_slice(&self.mac());
                return Ok(length);
            }
        }
    }

    /// What becomes readable when a frame comes.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.descriptor()
    }
}

/// Hands this host's own packets to a device of ours.
///
/// Dropping this leaves it in place; [`Diversion::remove`] takes it away.
#[derive(Debug)]
pub struct Diversion {
    /// On the loopback device: to services, and from local real servers.
    loopback: Program,
    /// On others: from local real servers.
    other: Program,
    deadline: Map<u32, u64>,
    devices: Vec<u32>,
}

impl Diversion {
    /// A diversion, on no device yet, of what `steering` says now and later, to the device `to`. It lasts for `timeout` unless it
    /// is refreshed.
    ///
    /// # Errors
    /// The kernel does not take the program.
    pub fn new(steering: &Steering, to: u32, timeout: Duration) -> Result<Self, SteerError> {
        let deadline = Map::create(MapKind::Array, 1, "uvs_own_until", None)?;
        let load = |loopback| {
            let instructions = program::divert(steering.sets.descriptors(), deadline.as_fd(), to, loopback)?;
            Program::load(ProgramKind::Classifier, 0, &instructions, "uvs_own")
        };
        let (loopback, other) = (load(true)?, load(false)?);
        let diversion = Diversion { loopback, other, deadline, devices: Vec::new() };
        diversion.refresh(timeout)?;
        Ok(diversion)
    }

    /// Diverts what leaves by a device of this thread's network namespace; nothing new when it does so already.
    ///
    /// # Errors
    /// There is no such device, or the kernel refuses.
    pub fn install(&mut self, ifindex: u32) -> Result<(), SteerError> {
        if self.devices.contains(&ifindex) {
            return Ok(());
        }
        let program = if ifindex == LOOPBACK { &self.loopback } else { &self.other };
        filter::install(&DUTY, ifindex, program)?;
        self.devices.push(ifindex);
        Ok(())
    }

    /// Lets it last for `timeout` from now.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn refresh(&self, timeout: Duration) -> Result<(), SteerError> {
        self.deadline
            .insert(&0, &deadline_after(timeout))
            .map_err(|source| SteerError::os("go on diverting this host's own packets", source))
    }

    /// Ends it on every device: the kernel has all its packets again.
    ///
    /// # Errors
    /// What the kernel said; it diverts nothing all the same.
    pub fn remove(self) -> Result<(), SteerError> {
        self.refresh(Duration::ZERO)?;
        self.devices.iter().try_for_each(|&ifindex| filter::remove(&DUTY, ifindex))
    }

    /// Whether a frame that left now by the loopback device, or by another, would be diverted.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn diverts(&self, loopback: bool, frame: &[u8]) -> io::Result<bool> {
        let program = if loopback { &self.loopback } else { &self.other };
        Ok(program.test_run(frame)? == program::TC_REDIRECT)
    }
}

/// The names of the devices of this network namespace from which packets are diverted, by whatever process.
///
/// # Errors
/// What the kernel said.
pub fn devices() -> Result<Vec<String>, SteerError> {
    Ok(filter::standing(&DUTY)?.into_iter().map(|(_, device, _)| device).collect())
}

/// Ends every diversion of this network namespace, of whatever process, and returns the devices' names.
///
/// # Errors
/// What the kernel said.
pub fn remove_all() -> Result<Vec<String>, SteerError> {
    let standing = filter::standing(&DUTY)?;
    standing.iter().try_for_each(|(ifindex, ..)| filter::remove(&DUTY, *ifindex))?;
    Ok(standing.into_iter().map(|(_, device, _)| device).collect())
}
