//! The few rtnetlink requests of this room: qdiscs and filters for the guard, an address for the way back.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A request being written: `struct nlmsghdr`, a fixed part, attributes.
#[derive(Debug)]
pub(crate) struct Request {
    bytes: Vec<u8>,
}

/// Flags of requests (`NLM_F_*`).
pub(crate) const CREATE: u16 = 0x400;
/// Fail if it is there.
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// Replace what is there.
pub(crate) const REPLACE: u16 = 0x100;
/// All objects.
const DUMP: u16 = 0x300;
const REQUEST: u16 = 0x001;
const ACKNOWLEDGE: u16 = 0x004;

const HEADER: usize = 16;

impl Request {
    /// A request of this type (`RTM_*`) and these flags beyond the usual, with the fixed part that its type wants.
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend(fixed);
        Request { bytes }
    }

    /// Adds an attribute.
    pub(crate) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        attribute(&mut self.bytes, kind, value);
        self
    }
}

/// Marks the type of an attribute that holds attributes.
pub(crate) const NESTED: u16 = 1 << 15;

/// Attributes as the value of another.
pub(crate) fn nested(attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, value) in attributes {
        attribute(&mut bytes, *kind, value);
    }
    bytes
}

fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The attributes of a message, as (type, value).
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & 0x3fff, value))
    })
}

/// The value of the first attribute of this type.
pub(crate) fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// A number in an attribute.
pub(crate) fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*value.first_chunk()?))
}

/// How an XDP program is attached to a device (`XDP_ATTACHED_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum XdpAttachment {
    Native,
    Generic,
    Offloaded,
}

/// A socket for requests, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Route {
    socket: OwnedFd,
    sequence: u32,
}

impl Route {
    pub(crate) fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the socket was just made for us.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Route { socket, sequence: 0 })
    }

    /// Sends a request that changes something and waits until it is done.
    pub(crate) fn change(&mut self, mut request: Request) -> io::Result<()> {
        add_flags(&mut request, ACKNOWLEDGE);
        self.exchange(request).map(drop)
    }

    /// Sends a request for all objects and returns their messages, without headers.
    pub(crate) fn dump(&mut self, mut request: Request) -> io::Result<Vec<Vec<u8>>> {
        add_flags(&mut request, DUMP);
        self.exchange(request)
    }

    /// How an XDP program is attached to the device, if one is.
    pub(crate) fn xdp_attachment(&mut self, ifindex: u32) -> io::Result<Option<XdpAttachment>> {
        const IFLA_XDP: u16 = 43;
        const IFLA_XDP_ATTACHED: u16 = 2;
        let mut request = Request::new(libc::RTM_GETLINK, 0, &link_message(ifindex, 0, 0));
        add_flags(&mut request, ACKNOWLEDGE);
        let messages = self.exchange(request)?;
        let attached = messages
            .iter()
            .filter_map(|message| find(message.get(16..)?, IFLA_XDP))
            .find_map(|xdp| find(xdp, IFLA_XDP_ATTACHED)?.first().copied());
        Ok(match attached {
            None | Some(0) => None,
            Some(2) => Some(XdpAttachment::Generic),
            Some(3) => Some(XdpAttachment::Offloaded),
            Some(_) => Some(XdpAttachment::Native),
        })
    }

    /// Link-layer address of the device of this name.
    pub(crate) fn mac(&mut self, name: &str) -> io::Result<[u8; 6]> {
        const IFLA_ADDRESS: u16 = 1;
        let read = |message: &Vec<u8>| find(message.get(16..)?, IFLA_ADDRESS)?.first_chunk().copied();
        self.link(name)?.iter().find_map(read).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Index of the device of this name, which need not have a link-layer address.
    pub(crate) fn index(&mut self, name: &str) -> io::Result<u32> {
        let read = |message: &Vec<u8>| number(message.get(4..)?);
        self.link(name)?.iter().find_map(read).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn link(&mut self, name: &str) -> io::Result<Vec<Vec<u8>>> {
        const IFLA_IFNAME: u16 = 3;
        let name = [name.as_bytes(), b"\0"].concat();
        let mut request = Request::new(libc::RTM_GETLINK, 0, &link_message(0, 0, 0)).with(IFLA_IFNAME, &name);
        add_flags(&mut request, ACKNOWLEDGE);
        self.exchange(request)
    }

    /// The indices of all devices.
    pub(crate) fn devices(&mut self) -> io::Result<Vec<u32>> {
        let messages = self.dump(Request::new(libc::RTM_GETLINK, 0, &link_message(0, 0, 0)))?;
        Ok(messages.iter().filter_map(|message| number(message.get(4..)?)).collect())
    }

    fn exchange(&mut self, request: Request) -> io::Result<Vec<Vec<u8>>> {
        self.sequence += 1;
        let mut bytes = request.bytes;
        let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        self.send(&bytes)?;
        let mut messages = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = self.receive(&mut buffer)?;
            if self.read(&buffer[..length], &mut messages)? {
                return Ok(messages);
            }
        }
    }

    /// Reads the messages of one datagram. Says whether they were the last.
    fn read(&self, mut bytes: &[u8], messages: &mut Vec<Vec<u8>>) -> io::Result<bool> {
        const ERROR: u16 = 2;
        const DONE: u16 = 3;
        while let Some(header) = bytes.first_chunk::<HEADER>() {
            let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
            let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
            let Some(body) = bytes.get(HEADER..length) else { return Err(io::ErrorKind::InvalidData.into()) };
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
            if u32::from_ne_bytes([s0, s1, s2, s3]) != self.sequence {
                continue;
            }
            match u16::from_ne_bytes([k0, k1]) {
                ERROR | DONE => {
                    return match number(body).unwrap_or(0).cast_signed() {
                        0 => Ok(true),
                        code => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
                    };
                }
                _ => messages.push(body.to_vec()),
            }
        }
        Ok(false)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: pointer and length are of one live slice, which the kernel reads.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let at = buffer.as_mut_ptr().cast();
        // SAFETY: pointer and length are of one live slice, which nobody else uses meanwhile.
        let length = unsafe { libc::recv(self.socket.as_raw_fd(), at, buffer.len(), 0) };
        usize::try_from(length).map_err(|_| io::Error::last_os_error())
    }
}

fn add_flags(request: &mut Request, flags: u16) {
    let [low, high] = [request.bytes[6], request.bytes[7]];
    let all = u16::from_ne_bytes([low, high]) | flags;
    request.bytes[6..8].copy_from_slice(&all.to_ne_bytes());
}

/// `struct ifinfomsg`: which device, and which of its flags (`IFF_*`) to set to what.
pub(crate) fn link_message(ifindex: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut message = [0; 16];
    message[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    message[8..12].copy_from_slice(&flags.to_ne_bytes());
    message[12..16].copy_from_slice(&change.to_ne_bytes());
    message
}

/// The name of a device, if it is there.
pub(crate) fn device_name(ifindex: u32) -> Option<String> {
    let mut name = [0_u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that the call asks for.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr().cast()) };
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    (!found.is_null()).then(|| String::from_utf8_lossy(&name[..end]).into_owned())
}
