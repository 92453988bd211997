//! The way back: frames that were taken and turn out to be the kernel's enter its stack through a TAP device of ours.
//!
//! To the kernel such a frame arrives on that device instead of the one it came on. The device is made so that this
//! makes no difference: loose reverse-path filtering, an MTU that nothing exceeds, forwarding as for any new device.
//! It has no link-local address and so solicits nothing; it disappears with the process. Firewall rules that name the
//! device a frame came on do not match it.
//!
//! All workers write to one descriptor: the kernel runs a written frame through its stack on the writer's own time and
//! takes no lock for it, so that several queues of the device would add descriptors and nothing else.

use super::error::SteerError;
use super::netlink::{self, CREATE, Request, Route, nested};
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// What the names of these devices begin with; a number follows.
pub const DEVICE_PREFIX: &str = "uvs-back";

/// How many parts a frame may have: the kernel's own frames have at most 18.
const PARTS: usize = 20;
/// The greatest MTU of a TAP device: 65,535 without the Ethernet header.
const MTU: u32 = 65_521;

/// The IPv4 dummy address (RFC 7600 §4.8). Reverse-path filtering drops whatever arrives on a device without an IPv4
/// address, loose mode included (`__fib_validate_source`). With scope host it is never chosen as a source.
const DUMMY: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// A device through which frames enter the kernel's stack, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct WayBack {
    tap: File,
    name: String,
    ifindex: u32,
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
        let tap = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(no_tun)?;
        let name = make_device(&tap)?;
        let mut route = Route::open().map_err(|e| SteerError::from_network("open a netlink socket", e))?;
        let (ifindex, mac) = route
            .device(&name)
            .map_err(|e| SteerError::from_network("find the device of the way back", e))?;
        allow_ipv6(&name)?;
        set_up(&mut route, ifindex)
            .map_err(|e| SteerError::from_network("set up the device of the way back", e))?;
        Ok(WayBack { tap, name, ifindex, mac })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's index.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Gives a frame, in one or more parts, to the kernel. Its first part holds the headers up to the ethertype.
    ///
    /// The frame is addressed to this host by its MAC, whatever its own; VLAN tags are left out (the kernel would look
    /// for a VLAN device on top of this one). Never blocks. The kernel's work on the frame, up to sending an answer, is
    /// done before this returns.
    #[expect(clippy::unused_io_amount, reason = "the device takes a whole frame or none of it")]
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
        match (&self.tap).write_vectored(&slices[..3 + rest.len()]) {
            Ok(_) => Injected::Taken,
            Err(error) => match (error.kind(), error.raw_os_error()) {
                (ErrorKind::WouldBlock | ErrorKind::OutOfMemory, _) | (_, Some(libc::ENOBUFS)) => {
                    Injected::Full
                }
                _ => Injected::Refused,
            },
        }
    }
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
        _ => SteerError::from_network(doing, source),
    }
}

/// Makes a TAP device of the next free name and ties it to the descriptor.
fn make_device(tap: &File) -> Result<String, SteerError> {
    /// `struct ifreq` as `TUNSETIFF` reads and writes it.
    #[repr(C)]
    struct Interface {
        name: [u8; libc::IF_NAMESIZE],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    const TAP: libc::c_short = 0x0002;
    const NO_PACKET_INFORMATION: libc::c_short = 0x1000;
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;

    let mut interface =
        Interface { name: [0; libc::IF_NAMESIZE], flags: TAP | NO_PACKET_INFORMATION, rest: [0; 22] };
    for (to, from) in interface.name.iter_mut().zip(format!("{DEVICE_PREFIX}%d").bytes()) {
        *to = from;
    }
    // SAFETY: the request reads and writes one `struct ifreq`, of which this has the size (40 bytes) and the layout.
    let made = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw mut interface) };
    if made < 0 {
        return Err(no_tun(io::Error::last_os_error()));
    }
    let name: Vec<u8> = interface.name.iter().copied().take_while(|&byte| byte != 0).collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}

/// A kernel that disables IPv6 on new devices would drop every IPv6 packet that comes back.
fn allow_ipv6(name: &str) -> Result<(), SteerError> {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    match std::fs::read_to_string(&path) {
        Ok(disabled) if disabled.trim() != "0" => std::fs::write(&path, "0")
            .map_err(|source| SteerError::os(format!("allow IPv6 on {name} (write 0 to {path})"), source)),
        // Without the file there is no IPv6 here at all.
        _ => Ok(()),
    }
}

fn set_up(route: &mut Route, ifindex: u32) -> io::Result<()> {
    const IFLA_MTU: u16 = 4;
    const IFLA_AF_SPEC: u16 = 26;
    const IFLA_INET_CONF: u16 = 1;
    const IPV4_DEVCONF_RP_FILTER: u16 = 8;
    const LOOSE: u32 = 2;
    const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
    const NONE: u8 = 1;
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const UP: u32 = libc::IFF_UP.cast_unsigned();

    let ipv4 = nested(&[(IPV4_DEVCONF_RP_FILTER, &LOOSE.to_ne_bytes())]);
    let ipv4 = nested(&[(IFLA_INET_CONF | netlink::NESTED, &ipv4)]);
    let ipv6 = nested(&[(IFLA_INET6_ADDR_GEN_MODE, &[NONE])]);
    let mut families = vec![(address_family(libc::AF_INET) | netlink::NESTED, &ipv4[..])];
    if std::path::Path::new("/proc/sys/net/ipv6").exists() {
        families.push((address_family(libc::AF_INET6) | netlink::NESTED, &ipv6[..]));
    }
    route.change(
        Request::new(libc::RTM_NEWLINK, 0, &netlink::link_message(ifindex, 0, 0))
            .with(IFLA_MTU, &MTU.to_ne_bytes())
            .with(IFLA_AF_SPEC | netlink::NESTED, &nested(&families)),
    )?;
    let [i0, i1, i2, i3] = ifindex.to_ne_bytes();
    let family = address_family(libc::AF_INET).to_le_bytes()[0];
    // `struct ifaddrmsg`: family, prefix length, flags, scope, index.
    let address = [family, 32, 0, libc::RT_SCOPE_HOST, i0, i1, i2, i3];
    route.change(
        Request::new(libc::RTM_NEWADDR, CREATE, &address)
            .with(IFA_LOCAL, &DUMMY.octets())
            .with(IFA_ADDRESS, &DUMMY.octets()),
    )?;
    route.change(Request::new(libc::RTM_NEWLINK, 0, &netlink::link_message(ifindex, UP, UP)))
}

fn address_family(family: libc::c_int) -> u16 {
    u16::try_from(family).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

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
