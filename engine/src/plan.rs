//! What a forwarding method needs to know of a real server beyond its address: set by commands, read by few packets.

use std::net::IpAddr;

/// A real server's particulars. The default is a server that needs none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// How packets are wrapped for it, if they are.
    pub tunnel: Option<Tunnel>,
    /// The address that packets of our own making to it come from.
    pub source: Option<IpAddr>,
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
