//! How packets reach a real server: one file per method.

pub(crate) mod direct;
pub(crate) mod families;
pub(crate) mod fullnat;
pub(crate) mod icmp;
pub(crate) mod nat;
pub(crate) mod partial;
pub(crate) mod quoted;
pub(crate) mod reset;
pub(crate) mod tell;
pub(crate) mod tunnel;

use crate::batch::{Packet, PortId};
use crate::nexthop::HopWord;
use crate::packet::ethernet::{self, Ethernet};
use crate::pipeline::Parsed;
use crate::snapshot::Port;
use crate::verdict::Reason;
use uvs_conntrack::flags;

/// A forwarding method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Method {
    /// Masquerading (`-m`): addresses and ports are rewritten, the replies come back through the director.
    Nat,
    /// Direct routing (`-g`): the packet goes to the real server's link-layer address, otherwise as it came; the replies
    /// go around the director.
    #[default]
    Direct,
    /// Full NAT (`-b`): as masquerading, and the client's address gives way to a local one, so that replies come back
    /// from wherever the real server is.
    FullNat,
    /// Tunnelling (`-i`): the packet travels inside another one; the replies go around the director.
    Tunnel,
}

/// IPVS's number of masquerading among a connection's flags.
pub(crate) const MASQUERADE: u16 = 0;
/// IPVS's number of tunnelling.
const TUNNEL: u16 = 2;
/// IPVS's number of direct routing.
const DIRECT_ROUTE: u16 = 3;
/// The number of full NAT in the patch that brought it to IPVS.
pub(crate) const FULL_NAT: u16 = 5;

/// Our number, free in IPVS's mask, of the connections of this host's own sockets to real servers by direct routing and
/// tunnels: these see the service's address as they do for others, and a local one of ours in place of the client's.
pub(crate) const OWN: u16 = 6;

/// Whether a connection with these flags is one of this host's own sockets by direct routing or a tunnel: its real side, where the
/// replies come from, shows the service's address in place of the real server's.
pub fn is_own(flags: u16) -> bool {
    flags & flags::FORWARD_MASK == OWN
}

/// Whether a real server sees a local address in place of the client's in a connection with these flags.
pub(crate) fn has_local_address(flags: u16) -> bool {
    matches!(flags & flags::FORWARD_MASK, FULL_NAT | OWN)
}

impl Method {
    /// Every method.
    pub const ALL: &'static [Method] = &[Method::Nat, Method::Direct, Method::FullNat, Method::Tunnel];

    /// The flags that a connection begins with, by their values in IPVS: the method, and whether no reply will
    /// be seen.
    pub(crate) fn connection_flags(self) -> u16 {
        match self {
            Method::Nat => MASQUERADE,
            Method::Direct => DIRECT_ROUTE | flags::NO_OUTPUT,
            Method::FullNat => FULL_NAT,
            Method::Tunnel => TUNNEL | flags::NO_OUTPUT,
        }
    }

    /// The method of a connection with these flags.
    #[inline]
    pub(crate) fn of_flags(flags: u16) -> Option<Self> {
        match flags & flags::FORWARD_MASK {
            MASQUERADE => Some(Method::Nat),
            DIRECT_ROUTE => Some(Method::Direct),
            FULL_NAT => Some(Method::FullNat),
            TUNNEL => Some(Method::Tunnel),
            _ => None,
        }
    }

    /// Whether replies come back through the director and must be found by the real server's side of the connection.
    #[inline]
    pub(crate) fn sees_replies(self) -> bool {
        matches!(self, Method::Nat | Method::FullNat)
    }
}

/// Addresses the frame to its next hop and says where it leaves. Tags stay on a frame that leaves by the device it came
/// from, and are taken off otherwise: the VLAN is the ingress link's business.
#[inline(always)]
pub(crate) fn send(
    packet: &mut Packet<'_>,
    parsed: &Parsed,
    hop: HopWord,
    egress: &Port,
) -> Result<PortId, Reason> {
    if parsed.is_tagged() && packet.port() != hop.port() {
        strip_tags(packet, parsed);
    }
    Ethernet::parse_mut(packet.frame_mut())?.set_addresses(hop.mac(), egress.mac);
    Ok(hop.port())
}

/// Takes the tags off; both addresses are to be written anew.
fn strip_tags(packet: &mut Packet<'_>, parsed: &Parsed) {
    // The EtherType behind the tags comes to lie where the first tag's was.
    let _there_are_tags = packet.shrink_front(parsed.network() - ethernet::HEADER_LEN);
}
