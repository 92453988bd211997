//! What uvs does for a virtual service beyond what IPVS can.

use super::{Protocol, ServiceId, StateTimeouts, is_default};
use serde::{Deserialize, Serialize};

/// Kinds that TCP has given to options of other meanings, and the last of those that every TCP knows.
const TAKEN_KINDS: [u8; 3] = [29, 30, 34];
const LAST_KNOWN_KIND: u8 = 8;

/// The bounds of [`Terms::mss`] in bytes: below, Linux takes none; above, no packet is that long.
pub const MSS: std::ops::RangeInclusive<u16> = 88..=65_495;

/// What uvs does for a virtual service beyond what IPVS can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// How real servers of full NAT learn their clients' addresses; over TCP by the option when it is not said.
    #[serde(default, skip_serializing_if = "is_default")]
    pub client_address: Option<ClientAddress>,
    /// The option that tells them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub toa: AddressOption,
    /// The longest TCP segment that client or real server may announce to take, in bytes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mss: Option<u16>,
    /// What clients are answered when there is no real server for them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub refuse: RefuseWith,
    /// How long connections live without a packet, where not as long as others.
    #[serde(default, skip_serializing_if = "is_default")]
    pub timeouts: StateTimeouts,
}

/// How a real server of full NAT learns its clients' addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientAddress {
    /// Not at all.
    None,
    /// By a TCP option that a kernel module of its reads (TOA).
    Toa,
    /// By a line of the PROXY protocol before the client's first byte.
    ProxyV1,
    /// By a binary header of the PROXY protocol before the client's first byte, or in its first datagram.
    ProxyV2,
}

/// The TCP option that tells a real server a client's port and address (TOA).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressOption {
    /// Its kind for clients of IPv4.
    pub kind: u8,
    /// Its kind for clients of IPv6.
    pub kind_ipv6: u8,
    /// Whether the SYN has it, too.
    pub on_syn: bool,
}

impl Default for AddressOption {
    fn default() -> Self {
        AddressOption { kind: 254, kind_ipv6: 254, on_syn: true }
    }
}

impl AddressOption {
    /// Whether an option may be of that kind: TCP uses it for nothing else.
    pub fn may_be(kind: u8) -> bool {
        kind > LAST_KNOWN_KIND && !TAKEN_KINDS.contains(&kind)
    }
}

/// What a client of a service without real servers is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RefuseWith {
    /// ICMP port unreachable, as IPVS does.
    #[default]
    Icmp,
    /// A TCP reset.
    Reset,
}

impl Terms {
    /// What is wrong with these terms for the service, in a sentence.
    pub fn fault(&self, service: &ServiceId) -> Option<String> {
        let protocol = match service {
            ServiceId::Address { protocol, .. } => Some(*protocol),
            ServiceId::Mark { .. } => None,
        };
        let other_than_tcp = protocol.is_some_and(|protocol| protocol != Protocol::Tcp);
        let kinds = [self.toa.kind, self.toa.kind_ipv6];
        if let Some(kind) = kinds.into_iter().find(|kind| !AddressOption::may_be(*kind)) {
            return Some(format!("TCP uses options of kind {kind} for something else: use 254, or 200"));
        }
        if self.mss.is_some_and(|mss| !MSS.contains(&mss)) {
            let (least, most) = (MSS.start(), MSS.end());
            return Some(format!("a maximum segment size has {least} to {most} bytes"));
        }
        if self.timeouts.has_udp() && protocol.is_some_and(|protocol| protocol != Protocol::Udp) {
            return Some("only a UDP service has a timeout of the state udp".into());
        }
        if !other_than_tcp {
            return None;
        }
        if self.client_address == Some(ClientAddress::ProxyV1) {
            return Some("version 1 of the PROXY protocol is for TCP only: use proxy-v2".into());
        }
        let faults = [
            (self.client_address == Some(ClientAddress::Toa), "tells client addresses by a TCP option"),
            (self.mss.is_some(), "has a maximum segment size"),
            (self.refuse == RefuseWith::Reset, "resets connections"),
            (self.timeouts.has_tcp(), "has timeouts of TCP's states"),
        ];
        let (_, what) = faults.into_iter().find(|(wanted, _)| *wanted)?;
        Some(format!("only a TCP service {what}"))
    }
}
