//! Tells the neighbours on a link where an address is now: gratuitous ARP for IPv4 (RFC 5227 §3), an unsolicited
//! neighbour advertisement for IPv6 (RFC 4861 §7.2.6).

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

const BROADCAST: [u8; 6] = [0xff; 6];
/// The link-layer address of `ff02::1`, all nodes.
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ICMPV6: u8 = 58;

/// Why an announcement was not sent.
#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    /// No packet socket.
    #[error("cannot open a packet socket to announce addresses with: {0}; it needs CAP_NET_RAW")]
    Open(#[source] io::Error),
    /// The device cannot be addressed.
    #[error("device {ifindex} has no Ethernet address to announce {address} with")]
    NoDevice {
        /// Its index.
        ifindex: u32,
        /// What was to be announced.
        address: IpAddr,
    },
    /// The device did not take the frame.
    #[error("device {device} did not take the announcement of {address}: {source}")]
    Send {
        /// Its name.
        device: String,
        /// What was to be announced.
        address: IpAddr,
        /// The system's reason.
        source: io::Error,
    },
}

/// Sends announcements in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Announcer {
    socket: OwnedFd,
}

impl Announcer {
    /// Opens a packet socket that receives nothing.
    pub fn open() -> Result<Self, AnnounceError> {
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
            .map(|socket| Announcer { socket })
            .map_err(|errno| AnnounceError::Open(errno.into()))
    }

    /// Announces that `address` is at the device `ifindex`, once. To be called in the namespace of the socket.
    pub fn announce(&self, ifindex: u32, address: IpAddr) -> Result<(), AnnounceError> {
        let (device, link) = device(ifindex).ok_or(AnnounceError::NoDevice { ifindex, address })?;
        let mac = link.addr().ok_or(AnnounceError::NoDevice { ifindex, address })?;
        let frame = match address {
            IpAddr::V4(address) => gratuitous_arp(mac, address),
            IpAddr::V6(address) => unsolicited_advertisement(mac, address),
        };
        loop {
            match sendto(self.socket.as_raw_fd(), &frame, &link, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(AnnounceError::Send { device, address, source: errno.into() }),
            }
        }
    }
}

/// The name and packet-socket address of a device with an Ethernet address.
fn device(ifindex: u32) -> Option<(String, LinkAddr)> {
    getifaddrs().ok()?.find_map(|entry| {
        let link = *entry.address.as_ref()?.as_link_addr()?;
        let same = u32::try_from(link.ifindex()).ok()? == ifindex && link.halen() == 6;
        same.then_some((entry.interface_name, link))
    })
}

/// An ARP request in which sender and target are the address itself, to all.
fn gratuitous_arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let ethernet_ipv4_request = [0, 1, 8, 0, 6, 4, 0, 1];
    let (address, nobody) = (address.octets(), [0; 6]);
    let parts: [&[u8]; 8] =
        [&BROADCAST, &mac, &[8, 6], &ethernet_ipv4_request, &mac, &address, &nobody, &address];
    parts.concat()
}

/// A neighbour advertisement to all nodes: not solicited, overrides what they know, and comes from no router.
fn unsolicited_advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    const OVERRIDE: u8 = 0x20;
    let target = address.octets();
    let link_layer_option = [2, 1];
    let mut icmp = [&[136, 0, 0, 0, OVERRIDE, 0, 0, 0][..], &target, &link_layer_option, &mac].concat();
    let checksum = icmpv6_checksum(&target, &icmp);
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
    let length = [0, 32];
    let hop_limit = 255;
    let version = [0x60, 0, 0, 0];
    let parts: [&[u8]; 9] = [
        &ALL_NODES_MAC,
        &mac,
        &[0x86, 0xdd],
        &version,
        &length,
        &[ICMPV6, hop_limit],
        &target,
        &ALL_NODES.octets(),
        &icmp,
    ];
    parts.concat()
}

/// RFC 4443 §2.3, for a message from `source` to all nodes. The length of `message` is even and below 64 KiB.
fn icmpv6_checksum(source: &[u8; 16], message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    let parts: [&[u8]; 5] = [source, &ALL_NODES.octets(), &length, &[0, 0, 0, ICMPV6], message];
    let mut sum: u64 = parts
        .concat()
        .chunks(2)
        .map(|pair| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Icmpv6Slice, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice, icmpv6};

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn gratuitous_arp_names_the_address_twice() {
        let address = Ipv4Addr::new(192, 0, 2, 1);
        let frame = gratuitous_arp(MAC, address);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Arp(arp)) = packet.net else { panic!("{packet:?}") };
        assert_eq!(arp.operation(), etherparse::ArpOperation::REQUEST);
        assert_eq!((arp.sender_hw_addr(), arp.target_hw_addr()), (&MAC[..], &[0; 6][..]));
        assert_eq!(
            (arp.sender_protocol_addr(), arp.target_protocol_addr()),
            (&address.octets()[..], &address.octets()[..])
        );
        assert_eq!(frame[..6], BROADCAST);
    }

    #[test]
    fn advertisements_are_whole() {
        let address: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let frame = unsolicited_advertisement(MAC, address);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) = (packet.net, packet.transport)
        else {
            panic!("not ICMPv6");
        };
        let header = ip.header();
        assert_eq!((header.source_addr(), header.destination_addr()), (address, ALL_NODES));
        assert_eq!(header.hop_limit(), 255, "RFC 4861 §7.1.2: or it is ignored");
        assert!(icmp.is_checksum_valid(header.source(), header.destination()));
        assert!(is_override(&icmp), "{:?}", icmp.icmp_type());
        assert_eq!(&frame[62..78], &address.octets());
        assert_eq!(&frame[78..], [2, 1, 2, 0, 0, 0, 0, 7]);
    }

    fn is_override(icmp: &Icmpv6Slice<'_>) -> bool {
        match icmp.icmp_type() {
            Icmpv6Type::NeighborAdvertisement(flags) => {
                flags
                    == icmpv6::NeighborAdvertisementHeader {
                        router: false,
                        solicited: false,
                        r#override: true,
                    }
            }
            _ => false,
        }
    }
}
