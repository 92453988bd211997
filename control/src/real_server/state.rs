//! What a real server needs, whether it is so, and how to make it so.

use super::journal::{self, Journal, Journals, Step};
use super::{Encapsulation, Error, Method, decapsulate, sysctl};
use crate::netlink::{AddressChange, Client};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use nix::sys::socket::SockaddrStorage;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// The device that virtual addresses are put on: nobody asks for its addresses by ARP or neighbour discovery.
pub(super) const LOOPBACK: &str = "lo";

/// How long the kernel may take to see to an address, and how often it is asked.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(1);

/// A port for a socket that sends nothing (RFC 863).
const DISCARD: u16 = 9;

/// Something that has to be so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// A kernel setting has this value or a greater one.
    AtLeast { key: String, value: u32 },
    /// A kernel setting is zero.
    Zero { key: String },
    /// A device is up.
    Up { device: &'static str },
    /// A process takes packets out of tunnels of this kind.
    Decapsulator(Encapsulation),
    /// The virtual address is on [`LOOPBACK`].
    Address(IpAddr),
}

/// What a real server of `vip` needs, in the order in which it is put in place: the address last, so that it is not answered
/// for before.
pub(super) fn wants(vip: IpAddr, method: Method) -> Vec<Want> {
    let mut wants = Vec::new();
    if vip.is_ipv4() {
        // Answer ARP only for addresses of the device asked on, and never ask from an address of another device. The kernel
        // takes the greater of the value for all devices and the device's own. IPv6 addresses on lo are never answered for.
        for (setting, value) in [("arp_ignore", 1), ("arp_announce", 2)] {
            wants.push(Want::AtLeast { key: format!("net/ipv4/conf/all/{setting}"), value });
        }
    }
    if let Method::Tunnel(kind) = method {
        for device in decapsulate::kernel_devices(kind) {
            wants.push(Want::Up { device });
            if vip.is_ipv4() {
                // What the tunnel carries comes from anywhere.
                for scope in ["all", device] {
                    wants.push(Want::Zero { key: format!("net/ipv4/conf/{scope}/rp_filter") });
                }
            }
        }
        if decapsulate::is_needed(kind) {
            wants.push(Want::Decapsulator(kind));
        }
    }
    wants.push(Want::Address(vip));
    wants
}

impl fmt::Display for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Want::AtLeast { key, value } => write!(f, "{} at least {value}", sysctl::dotted(key)),
            Want::Zero { key } => write!(f, "{} 0", sysctl::dotted(key)),
            Want::Up { device } => write!(f, "{device} up"),
            Want::Decapsulator(kind) => write!(f, "a decapsulator for {kind}"),
            Want::Address(vip) => write!(f, "{vip} on {LOOPBACK}"),
        }
    }
}

impl Want {
    /// Whether the step is what makes it so.
    pub(super) fn is_met_by(&self, step: &Step) -> bool {
        match (self, step) {
            (Want::AtLeast { key, .. } | Want::Zero { key }, Step::Sysctl { key: changed, .. }) => {
                key == changed
            }
            (Want::Up { device }, Step::Up { device: taken }) => device == taken,
            (Want::Decapsulator(kind), Step::Decapsulator { kind: started, .. }) => kind == started,
            (Want::Address(vip), Step::Address { address, .. }) => vip == address,
            _ => false,
        }
    }

    /// Whether it is so. `journals` know of decapsulators.
    pub(super) fn is_met(&self, journals: &[Journal]) -> Result<bool, Error> {
        Ok(match self {
            Want::AtLeast { key, value } => {
                sysctl::read(key)?.is_none_or(|now| now.parse().is_ok_and(|now: u32| now >= *value))
            }
            Want::Zero { key } => sysctl::read(key)?.is_none_or(|now| now == "0"),
            Want::Up { device } => is_up(device)?,
            Want::Decapsulator(kind) => journal::decapsulator(journals, *kind).is_some(),
            Want::Address(vip) => device_with(*vip)?.contains(LOOPBACK),
        })
    }

    /// Makes it so, with a step in the journal first. Says what was changed; nothing when it was so before.
    pub(super) fn establish(
        &self,
        journals: &Journals,
        journal: &mut Journal,
    ) -> Result<Option<String>, Error> {
        if self.is_met(&journals.all()?)? {
            return Ok(None);
        }
        match self {
            Want::AtLeast { key, value } => set(journals, journal, key, &value.to_string()),
            Want::Zero { key } => set(journals, journal, key, "0"),
            Want::Up { device } => {
                journal.add(Step::Up { device: (*device).to_owned() });
                journals.save(journal)?;
                Client::open()?.set_up(index(device)?, true)?;
                Ok(Some(format!("{device} is up")))
            }
            Want::Decapsulator(kind) => {
                journal.steps.retain(|step| !self.is_met_by(step));
                let starting = decapsulate::Starting::begin(*kind)?;
                journal.add(Step::Decapsulator { kind: *kind, process: Some(starting.process()) });
                journals.save(journal)?;
                let pid = starting.process().pid;
                starting.go()?;
                Ok(Some(format!("process {pid} takes packets out of {kind}")))
            }
            Want::Address(vip) => {
                journal.add(Step::Address { device: LOOPBACK.to_owned(), address: *vip });
                journals.save(journal)?;
                Client::open()?.add_address(index(LOOPBACK)?, *vip)?;
                wait_until_taken(*vip)?;
                Ok(Some(format!("{vip} is on {LOOPBACK}")))
            }
        }
    }
}

/// Waits until the kernel takes packets for an address it has been given. That of IPv6 is ready when a work queue has seen to it;
/// till then packets for it go the way of its network, be it none: their senders would be told that it cannot be reached.
fn wait_until_taken(address: IpAddr) -> Result<(), Error> {
    let failed = || Error::os(format!("reach {address} on this host, where it was put on {LOOPBACK}"));
    let begin = Instant::now();
    loop {
        // Nothing is sent: a socket that is connected to the address has it on its own side, too, once it is the host's.
        let any = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).map_err(failed())?;
        let connected = socket.connect(SocketAddr::new(address, DISCARD)).and_then(|()| socket.local_addr());
        match connected {
            Ok(own) if own.ip() == address => return Ok(()),
            Err(error) if begin.elapsed() > PATIENCE => return Err(failed()(error)),
            _ if begin.elapsed() > PATIENCE => return Err(failed()(io::ErrorKind::TimedOut.into())),
            _ => std::thread::sleep(PAUSE),
        }
    }
}

fn set(journals: &Journals, journal: &mut Journal, key: &str, new: &str) -> Result<Option<String>, Error> {
    let Some(old) = sysctl::read(key)? else { return Ok(None) };
    journal.add(Step::Sysctl { key: key.to_owned(), old, new: new.to_owned() });
    journals.save(journal)?;
    sysctl::write(key, new)?;
    Ok(Some(format!("{} is {new}", sysctl::dotted(key))))
}

/// Takes an address off a device.
pub(super) fn remove_address(device: &str, address: IpAddr) -> Result<Option<String>, Error> {
    let change = Client::open()?.remove_address(index(device)?, address)?;
    Ok((change == AddressChange::Done).then(|| format!("{address} is off {device}")))
}

/// Takes a device down.
pub(super) fn take_down(device: &str) -> Result<Option<String>, Error> {
    if !exists(device) || !is_up(device)? {
        return Ok(None);
    }
    Client::open()?.set_up(index(device)?, false)?;
    Ok(Some(format!("{device} is down again")))
}

/// The devices that have an address.
pub(super) fn device_with(address: IpAddr) -> Result<BTreeSet<String>, Error> {
    let all = getifaddrs().map_err(|error| Error::os("list the addresses of this host")(error.into()))?;
    let with = all.filter(|entry| {
        let Some(found) = &entry.address else { return false };
        let v4 = found.as_sockaddr_in().map(|found| IpAddr::V4(found.ip()));
        let v6 = found.as_sockaddr_in6().map(|found| IpAddr::V6(found.ip()));
        v4.or(v6) == Some(address)
    });
    Ok(with.map(|entry| entry.interface_name).collect())
}

/// Whether an address is that of all hosts of a subnet of this host.
pub(super) fn is_broadcast(address: IpAddr) -> Result<bool, Error> {
    let mut all = getifaddrs().map_err(|error| Error::os("list the addresses of this host")(error.into()))?;
    Ok(all.any(|entry| {
        let v4 = |address: &Option<SockaddrStorage>| Some(address.as_ref()?.as_sockaddr_in()?.ip().to_bits());
        let (Some(own), Some(mask)) = (v4(&entry.address), v4(&entry.netmask)) else { return false };
        // Two hosts have a subnet without such an address (RFC 3021).
        mask.count_ones() <= 30 && IpAddr::from(Ipv4Addr::from_bits(own | !mask)) == address
    }))
}

/// Whether there is a device of this name.
pub(super) fn exists(device: &str) -> bool {
    if_nametoindex(device).is_ok()
}

fn is_up(device: &str) -> Result<bool, Error> {
    let all = getifaddrs().map_err(|error| Error::os("list the devices of this host")(error.into()))?;
    let mut named = all.filter(|entry| entry.interface_name == device);
    Ok(named.any(|entry| entry.flags.contains(InterfaceFlags::IFF_UP)))
}

fn index(device: &str) -> Result<u32, Error> {
    if_nametoindex(device)
        .map_err(|error| Error::os(format!("find the device {device}"))(io::Error::from(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed() {
        let (v4, v6): (IpAddr, IpAddr) = ([192, 0, 2, 80].into(), "2001:db8::80".parse().unwrap());
        let words = |vip, method| wants(vip, method).iter().map(Want::to_string).collect::<Vec<_>>();
        let arp = ["net.ipv4.conf.all.arp_ignore at least 1", "net.ipv4.conf.all.arp_announce at least 2"];
        assert_eq!(words(v4, Method::Direct), [arp[0], arp[1], "192.0.2.80 on lo"]);
        assert_eq!(words(v6, Method::Direct), ["2001:db8::80 on lo"]);
        let gue = Method::Tunnel(Encapsulation::Gue { port: 6080 });
        let decapsulator = "a decapsulator for gue at UDP port 6080";
        assert_eq!(words(v4, gue), [arp[0], arp[1], decapsulator, "192.0.2.80 on lo"]);
        assert_eq!(words(v6, gue), [decapsulator, "2001:db8::80 on lo"]);
    }

    #[test]
    fn what_two_addresses_need_together() {
        let other = |address: [u8; 4], method| wants(address.into(), method);
        let step =
            Step::Sysctl { key: "net/ipv4/conf/all/arp_ignore".into(), old: "0".into(), new: "1".into() };
        assert!(other([192, 0, 2, 81], Method::Direct).iter().any(|want| want.is_met_by(&step)));
        let own = Step::Address { device: LOOPBACK.into(), address: [192, 0, 2, 80].into() };
        assert!(!other([192, 0, 2, 81], Method::Direct).iter().any(|want| want.is_met_by(&own)));
    }
}
