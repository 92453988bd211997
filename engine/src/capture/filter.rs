//! Which frames a capture is of.

use super::parse::{self, FilterError};
use crate::packet::protocol;
use crate::packet::summary::Summary;
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// A condition on frames. The default one lets every frame through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter(pub(super) Option<Node>);

/// What is known of a frame: what it says of itself as it came, what it says as it leaves.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    forms: [Option<Summary>; 2],
    dropped: bool,
}

impl Seen {
    /// A frame that came in as `before` and, when it is to be sent, leaves as `after`.
    pub fn of(before: &[u8], after: Option<&[u8]>, dropped: bool) -> Self {
        Seen { forms: [Summary::of(before), after.and_then(Summary::of)], dropped }
    }

    /// Whether it is so of the frame before or after.
    fn either(&self, is: impl Fn(&Summary) -> bool) -> bool {
        self.forms.iter().flatten().any(is)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    All(Vec<Node>),
    Any(Vec<Node>),
    Not(Box<Node>),
    Is(Test),
}

/// What one word, or a few, ask of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test {
    Dropped,
    Ipv4,
    Ipv6,
    Protocol(u8),
    /// An address of a network; a host is one of the full length.
    Net(Side, IpAddr, u8),
    Ports(Side, RangeInclusive<u16>),
}

/// Of the sender, of the addressee, or of either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Either,
    Source,
    Destination,
}

impl Side {
    fn has<T>(self, source: T, destination: T, is: impl Fn(T) -> bool) -> bool {
        match self {
            Side::Either => is(source) || is(destination),
            Side::Source => is(source),
            Side::Destination => is(destination),
        }
    }
}

impl Filter {
    /// Reads a filter as people write it: `host`, `net`, `port` and `portrange` with a value, `src` or `dst` before them or
    /// alone before an address, the protocols `tcp`, `udp`, `icmp`, `icmp6`, `ip` and `ip6` alone or before all that, and
    /// `drop`; joined by `and`, `or`, `not` and parentheses, as in pcap-filter(7). The empty one lets every frame through.
    ///
    /// # Errors
    /// What cannot be read, and where.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        parse::filter(text)
    }

    /// Whether the frame is one of those wanted. Each condition holds when it does of the frame as it came or as it leaves.
    pub fn matches(&self, seen: &Seen) -> bool {
        self.0.as_ref().is_none_or(|node| node.matches(seen))
    }
}

impl Node {
    fn matches(&self, seen: &Seen) -> bool {
        match self {
            Node::All(nodes) => nodes.iter().all(|node| node.matches(seen)),
            Node::Any(nodes) => nodes.iter().any(|node| node.matches(seen)),
            Node::Not(node) => !node.matches(seen),
            Node::Is(test) => test.matches(seen),
        }
    }
}

impl Test {
    fn matches(&self, seen: &Seen) -> bool {
        match self {
            Test::Dropped => seen.dropped,
            Test::Ipv4 => seen.either(|form| form.source.is_ipv4()),
            Test::Ipv6 => seen.either(|form| form.source.is_ipv6()),
            Test::Protocol(number) => seen.either(|form| form.protocol == *number),
            Test::Net(side, network, length) => seen.either(|form| {
                side.has(form.source, form.destination, |address| prefix(address, *length) == Some(*network))
            }),
            Test::Ports(side, ports) => seen.either(|form| {
                let [source, destination] = form.ports.unwrap_or_default();
                form.ports.is_some() && side.has(source, destination, |port| ports.contains(&port))
            }),
        }
    }

    /// The test for a protocol's word.
    pub(super) fn of_protocol(word: &str) -> Option<Test> {
        Some(match word {
            "tcp" => Test::Protocol(protocol::TCP),
            "udp" => Test::Protocol(protocol::UDP),
            "icmp" => Test::Protocol(protocol::ICMP),
            "icmp6" => Test::Protocol(protocol::ICMPV6),
            "ip" => Test::Ipv4,
            "ip6" => Test::Ipv6,
            _ => return None,
        })
    }
}

/// The network of `length` bits that an address lies in; `None` when addresses of its version are shorter.
pub(super) fn prefix(address: IpAddr, length: u8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            let rest = 32_u32.checked_sub(length.into())?;
            let mask = u32::MAX.checked_shl(rest).unwrap_or(0);
            Some(IpAddr::V4((address.to_bits() & mask).into()))
        }
        IpAddr::V6(address) => {
            let rest = 128_u32.checked_sub(length.into())?;
            let mask = u128::MAX.checked_shl(rest).unwrap_or(0);
            Some(IpAddr::V6((address.to_bits() & mask).into()))
        }
    }
}
