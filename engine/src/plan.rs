//! What a forwarding method needs to know of a real server beyond its address: set by commands, read by few packets.

use crate::packet::proxy::Version;
use std::net::IpAddr;
use uvs_conntrack::OwnTimeouts;

/// A real server's particulars. The default is a server that needs none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// How packets are wrapped for it, if they are.
    pub tunnel: Option<Tunnel>,
    /// The address that packets of our own making to it come from.
    pub source: Option<IpAddr>,
    /// How it learns its clients' addresses, where it does not see them.
    pub tell: Tell,
    /// The longest TCP segment that either side may announce to take, in bytes; 0: whatever it says.
    pub segment_size: u16,
    /// How long its connections live without a packet, where not as long as others.
    pub timeouts: OwnTimeouts,
}

/// How a real server that sees a local address in place of a client's is told that (full NAT).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tell {
    /// Not at all.
    #[default]
    Nothing,
    /// By a TCP option; over UDP not at all.
    Option(AddressOption),
    /// By a header of the PROXY protocol before the client's first byte, or in its first datagram, which version 1 cannot.
    Header(Version),
}

/// The TCP option that holds a client's port and address ("TOA", of the patch that brought full NAT to IPVS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressOption {
    /// Its kind for clients of IPv4.
    pub kind: u8,
    /// Its kind for clients of IPv6.
    pub kind_ipv6: u8,
    /// Whether the SYN has it, too, and not only what the client sends until the real server's first data are acknowledged.
    pub on_syn: bool,
}

impl Default for AddressOption {
    /// Kind 254 for both, which the length tells apart, as the modules of today's real servers have it.
    fn default() -> Self {
        AddressOption { kind: 254, kind_ipv6: 254, on_syn: true }
    }
}

/// A tunnel to a real server (`ipvsadm -i`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// What is put around the packet.
    pub kind: TunnelKind,
    /// The UDP port that the real server takes GUE at; 0 for the others.
    pub port: u16,
    /// What protects the wrapped packet.
    pub checksum: TunnelChecksum,
}

/// What is put around a tunnelled packet (`ipvsadm --tun-type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TunnelKind {
    /// An IP header (RFC 2003, RFC 2473).
    #[default]
    Ipip,
    /// An IP, a UDP and a GUE header (draft-ietf-intarea-gue).
    Gue,
    /// An IP and a GRE header (RFC 2784).
    Gre,
}

/// What protects a tunnelled packet (`ipvsadm --tun-nocsum`, `--tun-csum`, `--tun-remcsum`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TunnelChecksum {
    /// Nothing but its own checksums.
    #[default]
    None,
    /// A checksum over all of it in the header around it.
    Full,
    /// The same, in the form that lets its receiver reuse the inner one where that is left to be done.
    Remote,
}
