//! What becomes of a frame, and the names of the reasons it may be dropped for.

use crate::batch::PortId;
use std::net::IpAddr;

/// What the pipeline decided for one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it, as rewritten, out of this device.
    Transmit(PortId),
    /// Send it, as rewritten, out of this device, in fragments whose IP packets have at most that many bytes.
    Fragment(PortId, u16),
    /// A TCP super-frame, unchanged: the worker cuts it into segments whose IP packets have at most that many bytes, and runs
    /// those through the pipeline.
    Segment(u16),
    /// Not ours after all: the host's own stack gets it, unchanged but for completed checksums.
    ToKernel,
    /// Its next hop has no link-layer address yet. The frame is unchanged; the worker keeps it, has the neighbour
    /// resolved and runs it through the pipeline again.
    Hold(Neighbour),
    /// A fragment whose datagram's first one has not been seen yet. It is unchanged; the worker keeps it and runs it through the
    /// pipeline again.
    Await,
    /// Dropped, for a reason with a name and a counter.
    Drop(Reason),
}

/// A neighbour on a link of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Neighbour {
    /// The device it is reached through.
    pub port: PortId,
    /// Its address on that link.
    pub address: IpAddr,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a frame was dropped. Each has a counter that `uvs status` shows under [`Reason::name`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $($(#[doc = $doc])+ $variant,)+ }

        impl Reason {
            /// Every reason, in the order of their discriminants.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)+];

            /// The name the counter is shown under.
            pub fn name(self) -> &'static str {
                match self { $(Reason::$variant => $name,)+ }
            }

            /// One sentence for the operator.
            pub fn explanation(self) -> &'static str {
                match self { $(Reason::$variant => concat!($($doc,)+).trim_ascii(),)+ }
            }
        }
    };
}

reasons! {
    /// The frame ends before its headers do.
    Truncated = "truncated",
    /// A header contradicts itself (version, header length, total length, data offset).
    Malformed = "malformed",
    /// The checksum of the IPv4 header, or of an ICMP error, is wrong.
    BadChecksum = "bad_checksum",
    /// A packet between a client and a real server of different IP versions that says what the other version cannot.
    Untranslatable = "untranslatable",
    /// An ICMP error about a packet that went through a tunnel of ours, of which there is nothing to tell the client.
    TunnelError = "tunnel_error",
    /// The link-layer address is another host's.
    OtherHost = "other_host",
    /// The source address cannot be a client's (multicast, loopback, this host's own).
    Martian = "martian",
    /// The packet's options have it travel the way its sender chose, which Linux takes from nobody by default.
    SourceRouted = "source_routed",
    /// TTL or hop limit would reach zero here.
    TtlExpired = "ttl_expired",
    /// A fragment of a datagram whose first one was dropped or answered with an error.
    Fragment = "fragment",
    /// A fragment that says something else than, or the same again as, others of its datagram.
    FragmentOverlap = "fragment_overlap",
    /// A fragment whose datagram's first one did not come, or did not find its next hop.
    FragmentTimeout = "fragment_timeout",
    /// A fragment that had to wait for the first one of its datagram where too many waited already.
    FragmentFlood = "fragment_flood",
    /// The service has no real server that may take a new connection.
    NoDestination = "no_destination",
    /// The packet would have begun a connection while one of so many is dropped (`drop_packet`).
    Defence = "defence",
    /// A real server's packet belongs to no connection (`nat_icmp_send`).
    NoConnection = "no_connection",
    /// The connection's real server was removed from its service.
    DestinationGone = "destination_gone",
    /// The connection table is full.
    TableFull = "table_full",
    /// A connection by full NAT found no local address of the real server's IP version.
    NoLocalAddress = "no_local_address",
    /// No local address of the service has a free port towards the real server.
    PortsExhausted = "ports_exhausted",
    /// A packet has no room for the PROXY header that has to go before it.
    NoRoom = "no_room",
    /// A client began its connection anew before its real server had the PROXY header. The next try begins another one.
    BeganAgain = "began_again",
    /// No route leads to the next hop.
    NoRoute = "no_route",
    /// The route leads out of a device this director does not hold.
    EgressNotOurs = "egress_not_ours",
    /// The device the route leads out of is down, or has no carrier.
    PortDown = "port_down",
    /// The next hop did not answer ARP or neighbour discovery.
    NeighbourUnresolved = "neighbour_unresolved",
    /// Too many frames were already waiting for a next hop.
    HoldFull = "hold_full",
    /// The connection is of a socket of this host, whose packets do not come here to be translated.
    LocalServer = "local_server",
    /// The real server's address is a loopback one, and the client is not this host, or the address is ::1.
    LoopbackServer = "loopback_server",
    /// The frame is longer than the egress device takes.
    TooBig = "too_big",
    /// No frame was free to cut a longer one into.
    NoFrames = "no_frames",
    /// The link to the real server leaves a tunnel less room than a packet needs (68 bytes over IPv4, 1280 over IPv6).
    TunnelMtu = "tunnel_mtu",
    /// A tunnel would lead to the address that the packet inside is for.
    TunnelLoop = "tunnel_loop",
    /// This host has no address of the real server's family that a tunnel could begin at.
    NoTunnelSource = "no_tunnel_source",
    /// The egress device's transmit ring was full.
    TxFull = "tx_full",
    /// The other worker's hand-off ring was full.
    HandOffFull = "hand_off_full",
    /// The device that gives frames back to the kernel did not take it.
    WayBackFull = "way_back_full",
    /// The frame lies in more parts than a frame may have, or than the egress device takes.
    TooManyParts = "too_many_parts",
}
