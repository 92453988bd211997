//! The way back: frames that were taken and turn out to be the kernel's enter its stack through a TAP device of ours.
//!
//! To the kernel such a frame arrives on that device instead of the one it came on; [`tun`](crate::link::tun) says what is
//! done so that this makes no difference.
//!
//! All workers write to one descriptor: the kernel runs a written frame through its stack on the writer's own time and
//! takes no lock for it, so that several queues of the device would add descriptors and nothing else.

use super::error::SteerError;
use super::netlink::Route;
use crate::link::MAX_PARTS;
use crate::link::tun::{Layer, Reach, Tun};
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::BorrowedFd;

/// What the names of these devices begin with; a number follows.
pub const DEVICE_PREFIX: &str = "uvs-back";

/// How many parts a frame may have.
const PARTS: usize = MAX_PARTS;

/// A device through which frames enter the kernel's stack, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct WayBack {
    tap: Tun,
    mac: [u8; 6],
}

/// What became of a frame for the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injected {
    /// The kernel has it.
    Taken,
    /// The kernel has no memory for it now.
    Full,
    /// It is shorter than an Ethernet header, in too many parts, or the device is gone or down.
    Refused,
}

impl WayBack {
    /// Makes the device and brings it up.
    pub fn open() -> Result<Self, SteerError> {
        open(DEVICE_PREFIX, Reach::Others)
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        self.tap.name()
    }

    /// The device's index.
    pub fn ifindex(&self) -> u32 {
        self.tap.ifindex()
    }

    pub(super) fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Takes the next frame that the kernel sent by the device.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tap.read(buffer)
    }

    /// What becomes readable when the kernel sends a frame by the device.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.tap.descriptor()
    }

    /// Gives a frame, in one or more parts, to the kernel. Its first part holds the headers up to the ethertype.
    ///
    /// The frame is addressed to this host by its MAC, whatever its own; VLAN tags are left out (the kernel would look
    /// for a VLAN device on top of this one). Never blocks. The kernel's work on the frame, up to sending an answer, is
    /// done before this returns.
    pub fn inject(&self, parts: &[&[u8]]) -> Injected {
        let Some((first, rest)) = parts.split_first() else { return Injected::Refused };
        let Some(payload) = ethertype_offset(first) else { return Injected::Refused };
        let mut slices = [IoSlice::new(&[]); PARTS + 2];
        let (headers, tail) = slices.split_at_mut(3);
        let Some(tail) = tail.get_mut(..rest.len()) else { return Injected::Refused };
        headers[0] = IoSlice::new(&self.mac);
        headers[1] = IoSlice::new(&first[6..12]);
        headers[2] = IoSlice::new(&first[payload..]);
        for (slice, part) in tail.iter_mut().zip(rest) {
            *slice = IoSlice::new(part);
        }
        match self.tap.write(&slices[..3 + rest.len()]) {
            Ok(()) => Injected::Taken,
            Err(error) => match (error.kind(), error.raw_os_error()) {
                (ErrorKind::WouldBlock | ErrorKind::OutOfMemory, _) | (_, Some(libc::ENOBUFS)) => {
                    Injected::Full
                }
                _ => Injected::Refused,
            },
        }
    }
}

/// Makes a device of this name and a number.
pub(super) fn open(prefix: &str, reach: Reach) -> Result<WayBack, SteerError> {
    let tap = Tun::open(prefix, Layer::Frames, reach).map_err(no_tun)?;
    let mac = Route::open()
        .and_then(|mut route| route.mac(tap.name()))
        .map_err(|e| SteerError::from_network("find the device of the way back", e))?;
    Ok(WayBack { tap, mac })
}

/// Where the ethertype is that no VLAN tag precedes, at most two tags in.
fn ethertype_offset(frame: &[u8]) -> Option<usize> {
    for offset in [12, 16, 20] {
        match *frame.get(offset..)?.first_chunk()? {
            [0x81, 0x00] | [0x88, 0xa8] if offset < 20 => {}
            _ => return Some(offset),
        }
    }
    None
}

fn no_tun(source: io::Error) -> SteerError {
    let doing = "make the device of the way back";
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            SteerError::NoSupport { doing, lacking: "/dev/net/tun (CONFIG_TUN; `modprobe tun`)" }
        }
        // What the kernel says of devices and capabilities is EPERM.
        Some(libc::EACCES) => SteerError::NoAccess { doing, file: "/dev/net/tun" },
        _ => SteerError::from_network(doing, source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_others_may_not_open_is_named() {
        let said = no_tun(io::Error::from_raw_os_error(libc::EACCES)).to_string();
        assert!(said.contains("user may not read and write /dev/net/tun"), "{said}");
    }

    #[test]
    fn finds_the_ethertype_behind_tags() {
        let frame = |types: &[[u8; 4]], rest: &[u8]| [&[0; 12], types.as_flattened(), rest].concat();
        let tag = [0x81, 0, 0, 1];
        let outer = [0x88, 0xa8, 0, 1];
        for (what, frame, expected) in [
            ("no tag", frame(&[], &[8, 0]), Some(12)),
            ("a tag", frame(&[tag], &[8, 0]), Some(16)),
            ("two tags", frame(&[outer, tag], &[8, 0]), Some(20)),
            ("a third tag is not ours to take", frame(&[outer, tag, tag], &[8, 0]), Some(20)),
            ("no ethertype", frame(&[], &[8]), None),
            ("a tag and nothing", frame(&[tag], &[]), None),
            ("nothing", Vec::new(), None),
        ] {
            assert_eq!(ethertype_offset(&frame), expected, "{what}");
        }
    }
}
