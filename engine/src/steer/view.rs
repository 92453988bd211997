//! The sets as user space sees them, for links that get every frame and have to leave alone what is not ours.
//!
//! [`Known::takes`] decides as the programs in the kernel do, on the same bytes: a frame is taken here if and only if the
//! guard of such a link ([`super::Guarded::AllTaken`]) drops it.

use super::key::Key;
use super::maps::{Set, WORDS};
use super::parse::{ERRORS4, ERRORS6, EXTENSION_HEADERS, QUOTED_EXTENSION_HEADERS, TAGS};
use arc_swap::{ArcSwap, Guard};
use foldhash::fast::FixedState;
use rpds::HashTrieSetSync;
use std::net::IpAddr;
use std::sync::Arc;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const IPV4_IN_IP: u8 = 4;
const IPV6_IN_IP: u8 = 41;
const GRE: u8 = 47;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Where the newest state of the sets is found.
#[derive(Clone, Debug)]
pub struct View(Arc<ArcSwap<Known>>);

/// The sets at one time.
#[derive(Clone, Debug)]
pub struct Known {
    pub(super) sets: [HashTrieSetSync<Key, FixedState>; Set::COUNT],
    pub(super) host_ports: Arc<[u64; WORDS as usize]>,
}

impl View {
    pub(super) fn of(known: Known) -> Self {
        View(Arc::new(ArcSwap::from_pointee(known)))
    }

    /// The sets as they are now: to be let go of with the frames at hand.
    #[inline]
    pub fn look(&self) -> Guard<Arc<Known>> {
        self.0.load()
    }

    /// Whoever looks from now on sees these.
    pub(super) fn show(&self, known: &Known) {
        self.0.store(Arc::new(known.clone()));
    }
}

impl Default for View {
    /// Empty sets.
    fn default() -> Self {
        View::of(Known::default())
    }
}

impl FromIterator<(IpAddr, u16, u8)> for View {
    /// Replies alone: whose come through here, by address, port and IP protocol number.
    fn from_iter<I: IntoIterator<Item = (IpAddr, u16, u8)>>(replies: I) -> Self {
        let mut known = Known::default();
        for (address, port, protocol) in replies {
            known.sets[Set::Replies as usize].insert_mut(Key::new(address, port, protocol));
        }
        View::of(known)
    }
}

impl Default for Known {
    /// Empty sets.
    fn default() -> Self {
        let empty = |_| HashTrieSetSync::new_with_hasher_with_ptr_kind(FixedState::default());
        Known { sets: std::array::from_fn(empty), host_ports: Arc::new([0; WORDS as usize]) }
    }
}

/// What a frame, or the packet that an ICMP error quotes, is about.
struct Flow {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ports: [u16; 2],
}

/// What an IP header says.
struct Network<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    payload: &'a [u8],
    fragment: Piece,
}

/// How much of its packet there is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    Whole,
    First,
    Later,
}

impl Known {
    /// Whether a frame is ours.
    pub fn takes(&self, frame: &[u8]) -> bool {
        self.decide(frame).unwrap_or(false)
    }

    /// Whether the replies of who has this address, port and IP protocol number come through here.
    pub fn is_replier(&self, address: IpAddr, port: u16, protocol: u8) -> bool {
        self.has(Set::Replies, Key::new(address, port, protocol))
            || self.has(Set::Replies, Key::new(address, 0, protocol))
    }

    /// `None`: the frame ends too early, or is of a kind that is never ours.
    fn decide(&self, frame: &[u8]) -> Option<bool> {
        let (mut ethertype, mut packet) = (u16_at(frame, 12)?, frame.get(14..)?);
        if frame[0] & 1 == 1 {
            return None;
        }
        for _ in 0..TAGS {
            if !matches!(ethertype, 0x8100 | 0x88a8) {
                break;
            }
            (ethertype, packet) = (u16_at(packet, 2)?, packet.get(4..)?);
        }
        let (network, icmp) = match ethertype {
            0x0800 => (network4(packet)?, ICMP),
            0x86dd => (network6(packet, EXTENSION_HEADERS)?, ICMPV6),
            _ => return None,
        };
        let host = network.destination;
        if network.fragment != Piece::Whole {
            let is_ours = matches!(network.protocol, TCP | UDP)
                || ethertype == 0x86dd && network.protocol == DESTINATION_OPTIONS;
            return is_ours.then(|| self.has_fragment(&network));
        }
        match network.protocol {
            TCP | UDP => Some(self.has_flow(&flow(&network)?, host)),
            protocol if protocol == icmp => self.has_error(network.payload, icmp, host),
            _ => None,
        }
    }

    fn has_flow(&self, flow: &Flow, host: IpAddr) -> bool {
        let Flow { source, destination, protocol, ports: [from, to] } = *flow;
        let either = |set, address, port| {
            self.has(set, Key::new(address, port, protocol)) || self.has(set, Key::new(address, 0, protocol))
        };
        either(Set::Services, destination, to)
            || either(Set::Replies, source, from)
                && (!self.has(Set::Locals, Key::address(host))
                    || self.has(Set::Sources, Key::address(host)) && !self.is_host_port(to))
    }

    fn has_fragment(&self, network: &Network<'_>) -> bool {
        let host = Key::address(network.destination);
        self.has(Set::Services, host)
            || self.has(Set::Replies, Key::address(network.source))
                && (!self.has(Set::Locals, host) || self.has(Set::Sources, host))
    }

    /// `message` is that of an ICMP packet to `host`. What it quotes travelled the other way.
    fn has_error(&self, message: &[u8], icmp: u8, host: IpAddr) -> Option<bool> {
        let (kind, quoted) = (*message.first()?, message.get(8..)?);
        let network = if icmp == ICMP && ERRORS4.contains(&i32::from(kind)) {
            network4(quoted)?
        } else if icmp == ICMPV6 && ERRORS6.contains(&i32::from(kind)) {
            network6(quoted, QUOTED_EXTENSION_HEADERS)?
        } else {
            return None;
        };
        if network.fragment == Piece::Later {
            return None;
        }
        let tunnel = |port| {
            self.has(Set::Locals, Key::address(host))
                && self.has(Set::Tunnels, Key::new(network.destination, port, network.protocol))
        };
        match network.protocol {
            IPV4_IN_IP | IPV6_IN_IP | GRE => Some(tunnel(0)),
            TCP | UDP => {
                let quoted = flow(&network)?;
                let Flow { source, destination, protocol, ports: [from, to] } = quoted;
                let flow = Flow { source: destination, destination: source, protocol, ports: [to, from] };
                Some(protocol == UDP && tunnel(to) || self.has_flow(&flow, host))
            }
            _ => None,
        }
    }

    fn has(&self, set: Set, key: Key) -> bool {
        self.sets[set as usize].contains(&key)
    }

    fn is_host_port(&self, port: u16) -> bool {
        self.host_ports[usize::from(port >> 6)] >> (port & 63) & 1 == 1
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

fn flow(network: &Network<'_>) -> Option<Flow> {
    let Network { source, destination, protocol, payload, .. } = *network;
    Some(Flow { source, destination, protocol, ports: [u16_at(payload, 0)?, u16_at(payload, 2)?] })
}

fn network4(packet: &[u8]) -> Option<Network<'_>> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let length = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || length < 20 {
        return None;
    }
    let address = |at| packet.get(at..)?.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes));
    Some(Network {
        source: address(12)?,
        destination: address(16)?,
        protocol: header[9],
        payload: packet.get(length..).unwrap_or_default(),
        fragment: piece(u16_at(header, 6)? & 0x3fff, 0x1fff),
    })
}

/// Of the bits that say that a packet is a fragment, those of `offset` say which.
fn piece(bits: u16, offset: u16) -> Piece {
    match bits {
        0 => Piece::Whole,
        bits if bits & offset == 0 => Piece::First,
        _ => Piece::Later,
    }
}

/// Follows at most `extensions` extension headers. What is behind the header of a fragment is not looked at, except
/// that of the first one an ICMP error quotes.
fn network6(packet: &[u8], extensions: usize) -> Option<Network<'_>> {
    let header: &[u8; 40] = packet.first_chunk()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let address = |at| packet.get(at..)?.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes));
    let (mut protocol, mut payload) = (header[6], packet.get(40..)?);
    let mut fragment = Piece::Whole;
    for _ in 0..extensions {
        match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let header: &[u8; 8] = payload.first_chunk()?;
                let length = (usize::from(header[1]) + 1) * 8;
                (protocol, payload) = (header[0], payload.get(length..).unwrap_or_default());
            }
            FRAGMENT => {
                let header: &[u8; 8] = payload.first_chunk()?;
                fragment = piece(u16_at(header, 2)? & 0xfff9, 0xfff8);
                (protocol, payload) = (header[0], payload.get(8..)?);
                let outer = extensions == EXTENSION_HEADERS;
                if fragment == Piece::Later || outer && fragment == Piece::First {
                    break;
                }
            }
            _ => break,
        }
    }
    Some(Network { source: address(8)?, destination: address(24)?, protocol, payload, fragment })
}
