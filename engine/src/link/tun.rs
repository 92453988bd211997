//! Devices of our own that frames (TAP) or packets (TUN) enter the kernel's stack through.
//!
//! To the kernel what is written arrives on that device. The device is made so that this makes no difference: loose
//! reverse-path filtering, an MTU that nothing exceeds, forwarding as for any new device. It has no link-local address and
//! so solicits nothing; it disappears with the process. Firewall rules that name the device a packet came on see this one.

#![allow(unsafe_code)] // ioctl and setsockopt; see the SAFETY lines

use crate::steer::netlink::{self, CREATE, Request, Route, nested};
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

/// The greatest MTU of a TAP device: 65,535 without the Ethernet header.
const MTU: u32 = 65_521;

/// The IPv4 dummy address (RFC 7600 §4.8). Reverse-path filtering drops whatever arrives on a device without an IPv4
/// address, loose mode included (`__fib_validate_source`). With scope host it is never chosen as a source.
const DUMMY: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// What is written to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Ethernet frames: a TAP device.
    Frames,
    /// IP packets: a TUN device.
    Packets,
}

/// Whose packets the kernel takes from a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Those of other hosts.
    Others,
    /// Those of this host, too (`accept_local`), and those to and from its loopback addresses (`route_localnet`).
    Own,
}

/// A device in the network namespace of the thread that opened it. It goes with this value.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
    ifindex: u32,
}

impl Tun {
    /// Makes a device whose name is `prefix` and the next free number, and takes it up.
    ///
    /// # Errors
    /// What the kernel said; `ENOENT`, `ENODEV` or `ENXIO` when it has no such devices.
    pub fn open(prefix: &str, layer: Layer, reach: Reach) -> io::Result<Self> {
        let file =
            File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        let name = make_device(&file, prefix, layer)?;
        let mut route = Route::open()?;
        let ifindex = route.index(&name)?;
        allow_ipv6(&name)?;
        set_up(&mut route, ifindex, reach)?;
        Ok(Tun { file, name, ifindex })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's index.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Gives one frame or packet, in one or more parts, to the kernel. Never blocks. The kernel's work on it, up to sending
    /// an answer, is done before this returns.
    ///
    /// # Errors
    /// The kernel has no memory for it now (`WouldBlock`, `OutOfMemory`, `ENOBUFS`), or refuses it.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        // The device takes the whole of it or nothing.
        (&self.file).write_vectored(parts).map(drop)
    }

    /// Takes the next frame or packet that the kernel sends by the device, as much of it as fits. Never blocks.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; anything else when the device is gone.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// What becomes readable when the kernel sends by the device.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Makes a device of the next free name and ties it to the descriptor.
fn make_device(file: &File, prefix: &str, layer: Layer) -> io::Result<String> {
    /// `struct ifreq` as `TUNSETIFF` reads and writes it.
    #[repr(C)]
    struct Interface {
        name: [u8; libc::IF_NAMESIZE],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    const TUN: libc::c_short = 0x0001;
    const TAP: libc::c_short = 0x0002;
    const NO_PACKET_INFORMATION: libc::c_short = 0x1000;
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;

    let kind = match layer {
        Layer::Frames => TAP,
        Layer::Packets => TUN,
    };
    let mut interface =
        Interface { name: [0; libc::IF_NAMESIZE], flags: kind | NO_PACKET_INFORMATION, rest: [0; 22] };
    for (to, from) in interface.name.iter_mut().zip(format!("{prefix}%d").bytes()) {
        *to = from;
    }
    // SAFETY: the request reads and writes one `struct ifreq`, of which this has the size (40 bytes) and the layout.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut interface) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    let name: Vec<u8> = interface.name.iter().copied().take_while(|&byte| byte != 0).collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}

/// A kernel that disables IPv6 on new devices would drop every IPv6 packet that comes by them.
fn allow_ipv6(name: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    match std::fs::read_to_string(&path) {
        Ok(disabled) if disabled.trim() != "0" => std::fs::write(&path, "0"),
        // Without the file there is no IPv6 here at all.
        _ => Ok(()),
    }
}

fn set_up(route: &mut Route, ifindex: u32, reach: Reach) -> io::Result<()> {
    const IFLA_MTU: u16 = 4;
    const IFLA_AF_SPEC: u16 = 26;
    const IFLA_INET_CONF: u16 = 1;
    const IPV4_DEVCONF_RP_FILTER: u16 = 8;
    const IPV4_DEVCONF_ACCEPT_LOCAL: u16 = 23;
    const IPV4_DEVCONF_ROUTE_LOCALNET: u16 = 26;
    const LOOSE: u32 = 2;
    const YES: u32 = 1;
    const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
    const NONE: u8 = 1;
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const UP: u32 = libc::IFF_UP.cast_unsigned();

    let (loose, yes) = (LOOSE.to_ne_bytes(), YES.to_ne_bytes());
    let mut settings = vec![(IPV4_DEVCONF_RP_FILTER, &loose[..])];
    if reach == Reach::Own {
        settings
            .extend([IPV4_DEVCONF_ACCEPT_LOCAL, IPV4_DEVCONF_ROUTE_LOCALNET].map(|what| (what, &yes[..])));
    }
    let ipv4 = nested(&settings);
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

/// Lets a UDP socket over IPv6 receive datagrams without a checksum, as tunnels send them (RFC 6935).
///
/// # Errors
/// What the kernel said.
pub fn accept_udp6_without_checksum(socket: BorrowedFd<'_>) -> io::Result<()> {
    const UDP_NO_CHECK6_RX: libc::c_int = 102;
    let yes: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&yes)).unwrap_or(0);
    // SAFETY: pointer and length are of one live integer, which the kernel reads.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_UDP,
            UDP_NO_CHECK6_RX,
            (&raw const yes).cast(),
            length,
        )
    };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
