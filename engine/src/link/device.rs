//! Network devices of the calling thread's namespace, asked of the kernel by `ioctl`: `/sys` may belong to another one.
#![expect(unsafe_code, reason = "ioctl; see the SAFETY lines")]

use super::Error;
use std::ffi::c_char;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `ETHTOOL_GCHANNELS`: how many queues are in use.
const GET_CHANNELS: u32 = 0x3c;

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// An Ethernet device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The kernel's name of it.
    pub name: String,
    /// The kernel's index of it.
    pub index: u32,
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// Its MTU in bytes, link-layer header not counted.
    pub mtu: u32,
    /// Receive queues in use.
    pub queues: u32,
    /// Whether it is up.
    pub up: bool,
}

impl Device {
    /// Looks a device up by name.
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::NotEthernet`], or [`Error::Kernel`] when the kernel refused to answer.
    pub fn open(name: &str) -> Result<Self, Error> {
        let asking = Asking::new(name)?;
        let index = asking.index()?;
        let (mac, ethernet) = asking.hardware_address()?;
        if !ethernet {
            return Err(Error::NotEthernet(name.to_owned()));
        }
        let (mtu, up, queues) = (asking.mtu()?, asking.is_up()?, asking.queues());
        Ok(Device { name: name.to_owned(), index, mac, mtu, queues, up })
    }

    /// Every Ethernet device there is, in the kernel's order: what a director could be given.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel does not list its devices.
    pub fn all() -> Result<Vec<Self>, Error> {
        let names = nix::net::if_::if_nameindex().map_err(|error| Error::Kernel {
            action: "listing devices",
            device: "this host".into(),
            source: error.into(),
        })?;
        // A device may vanish between being listed and being asked.
        Ok(names.iter().filter_map(|entry| Device::open(entry.name().to_str().ok()?).ok()).collect())
    }
}

/// A socket to ask through, and the name to ask about.
struct Asking<'a> {
    socket: OwnedFd,
    name: &'a str,
    padded: [c_char; libc::IFNAMSIZ],
}

impl<'a> Asking<'a> {
    fn new(name: &'a str) -> Result<Self, Error> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
            return Err(Error::NoDevice(name.to_owned()));
        }
        let mut padded = [0; libc::IFNAMSIZ];
        for (to, from) in padded.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            let source = io::Error::last_os_error();
            return Err(Error::Kernel { action: "opening a socket", device: name.to_owned(), source });
        }
        // SAFETY: the descriptor is new and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Asking { socket, name, padded })
    }

    fn request(&self) -> libc::ifreq {
        libc::ifreq { ifr_name: self.padded, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 } }
    }

    /// # Safety
    /// `number` is a request that takes a `struct ifreq` whose pointers, if it uses any, are valid.
    unsafe fn ioctl(&self, number: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: the caller's promise.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), number, &raw mut *request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn ask(&self, number: libc::Ioctl, action: &'static str) -> Result<libc::ifreq, Error> {
        let mut request = self.request();
        // SAFETY: callers pass only requests that fill in a `struct ifreq` without following pointers.
        unsafe { self.ioctl(number, &mut request) }.map_err(|source| match source.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO) => Error::NoDevice(self.name.to_owned()),
            _ => Error::Kernel { action, device: self.name.to_owned(), source },
        })?;
        Ok(request)
    }

    fn index(&self) -> Result<u32, Error> {
        let request = self.ask(libc::SIOCGIFINDEX, "asking for the index")?;
        // SAFETY: the member this request fills in.
        Ok(unsafe { request.ifr_ifru.ifru_ifindex }.unsigned_abs())
    }

    /// The address, and whether the device is Ethernet.
    fn hardware_address(&self) -> Result<([u8; 6], bool), Error> {
        let request = self.ask(libc::SIOCGIFHWADDR, "asking for the link-layer address")?;
        // SAFETY: the member this request fills in.
        let address = unsafe { request.ifr_ifru.ifru_hwaddr };
        let mut mac = [0; 6];
        for (to, from) in mac.iter_mut().zip(address.sa_data) {
            *to = from.cast_unsigned();
        }
        Ok((mac, address.sa_family == libc::ARPHRD_ETHER))
    }

    fn mtu(&self) -> Result<u32, Error> {
        let request = self.ask(libc::SIOCGIFMTU, "asking for the MTU")?;
        // SAFETY: the member this request fills in.
        Ok(unsafe { request.ifr_ifru.ifru_mtu }.unsigned_abs())
    }

    fn is_up(&self) -> Result<bool, Error> {
        let request = self.ask(libc::SIOCGIFFLAGS, "asking for the flags")?;
        // SAFETY: the member this request fills in.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        Ok(flags & libc::IFF_UP != 0)
    }

    /// Queues in use. A driver that does not say has one.
    fn queues(&self) -> u32 {
        let mut channels = Channels { command: GET_CHANNELS, ..Channels::default() };
        let mut request = self.request();
        request.ifr_ifru.ifru_data = (&raw mut channels).cast();
        // SAFETY: SIOCETHTOOL with ETHTOOL_GCHANNELS writes a `struct ethtool_channels` where `ifr_data` points, which is what
        // `channels` is and outlives the call.
        match unsafe { self.ioctl(libc::SIOCETHTOOL, &mut request) } {
            Ok(()) => (channels.rx + channels.combined).max(1),
            Err(_) => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_devices() {
        for name in ["", "no-such-device", "a-name-that-is-far-too-long", "nul\0byte"] {
            assert!(matches!(Device::open(name), Err(Error::NoDevice(_))), "{name:?}");
        }
    }

    #[test]
    fn the_loopback_is_not_ethernet() {
        let error = Device::open("lo").unwrap_err();
        assert_eq!(
            error.to_string(),
            "lo is not an Ethernet device: frames can be taken from Ethernet devices only"
        );
    }
}
