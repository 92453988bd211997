//! The one word of a connection that changes by compare-and-swap: its phase, flags, state, protocol and timeout.

use crate::protocol::{self, tcp, udp};
use crate::{Direction, Timeouts};

/// Where in its life an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Not a connection.
    Free = 0,
    /// Its key is in the index, but another insertion may hold the same one: absent to lookups until that is settled.
    Tentative = 1,
    /// A connection.
    Live = 2,
    /// Out of the index, kept because it still controls connections.
    Detached = 3,
    /// Lost against another insertion of the same key; its maker takes it back.
    Aborted = 4,
}

/// Flags of a connection: bits 0 to 13 have the values IPVS gives them, on the wire of its synchronisation protocol too.
pub mod flags {
    /// The bits that hold the forwarding method: 0 NAT, 1 local, 2 tunnel, 3 direct routing, 4 bypass, and, as the patch that
    /// brought it has it, 5 full NAT.
    pub const FORWARD_MASK: u16 = 0x0007;
    /// The real server has still to be told the client's address, and by what: two bits that IPVS does not use, set when the
    /// connection is made and cleared once.
    pub const TELL: u16 = 0x0018;
    /// Of [`TELL`]: by a TCP option.
    pub const TELL_OPTION: u16 = 0x0008;
    /// Of [`TELL`]: by a header of the PROXY protocol, version 1.
    pub const TELL_HEADER_V1: u16 = 0x0010;
    /// Of [`TELL`]: by a header of the PROXY protocol, version 2.
    pub const TELL_HEADER_V2: u16 = 0x0018;
    /// Made by the synchronisation protocol.
    pub const SYNC: u16 = 0x0020;
    /// Replies do not pass the director, as far as it has seen.
    pub const NO_OUTPUT: u16 = 0x0080;
    /// Counted among the inactive connections of its destination.
    pub const INACTIVE: u16 = 0x0100;
    /// Replies need their sequence numbers shifted.
    pub const OUT_SEQUENCE: u16 = 0x0200;
    /// Requests need their sequence numbers shifted.
    pub const IN_SEQUENCE: u16 = 0x0400;
    /// The client's port is not known yet.
    pub const NO_CLIENT_PORT: u16 = 0x0800;
    /// Not a connection but what keeps a client with its real server.
    pub const TEMPLATE: u16 = 0x1000;
    /// Scheduled packet by packet.
    pub const ONE_PACKET: u16 = 0x2000;
    /// Its service has timeouts of its own: a bit that IPVS does not use.
    pub const OWN_TIMEOUTS: u16 = 0x4000;
}

const TIMEOUT: u64 = 0x00ff_ffff;
const PROTOCOL_AT: u32 = 24;
const STATE_AT: u32 = 32;
const FLAGS_AT: u32 = 40;
const PHASE_AT: u32 = 56;
const PHASE: u64 = 7 << PHASE_AT;
/// The client side of a wide entry is IPv4.
const CLIENT4: u64 = 1 << 59;
/// The real server's side of a wide entry is IPv4.
const REAL4: u64 = 1 << 60;
/// Replies are looked up: the real side is in the index.
const REPLIES: u64 = 1 << 61;
/// A connection was put under this one's control since expiry last looked.
const CONTROLS: u64 = 1 << 62;
/// No other connection may have the same reply flow.
const EXCLUSIVE: u64 = 1 << 63;

/// A reading of the word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Meta(pub(crate) u64);

impl std::fmt::Debug for Meta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meta")
            .field("phase", &self.phase())
            .field("flags", &self.flags())
            .field("state", &self.state())
            .field("protocol", &self.protocol())
            .field("timeout", &self.timeout())
            .finish_non_exhaustive()
    }
}

impl Meta {
    pub(crate) fn new(protocol: u8, flags: u16, state: u8, timeout: u32) -> Self {
        let word = u64::from(protocol) << PROTOCOL_AT
            | u64::from(state) << STATE_AT
            | u64::from(flags) << FLAGS_AT
            | u64::from(timeout.min(crate::MAX_TIMEOUT));
        Meta(word).with_phase(Phase::Tentative)
    }

    /// Flags, see [`flags`].
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "sixteen bits are meant")]
    pub fn flags(self) -> u16 {
        (self.0 >> FLAGS_AT) as u16
    }

    /// Whether all of `flags` are set.
    #[inline]
    #[must_use]
    pub fn has(self, flags: u16) -> bool {
        self.flags() & flags == flags
    }

    /// State by the protocol's number for it.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "eight bits are meant")]
    pub fn state(self) -> u8 {
        (self.0 >> STATE_AT) as u8
    }

    /// IP protocol number.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "eight bits are meant")]
    pub fn protocol(self) -> u8 {
        (self.0 >> PROTOCOL_AT) as u8
    }

    /// Seconds the connection lives after its last packet.
    #[inline]
    #[must_use]
    pub fn timeout(self) -> u32 {
        (self.0 & TIMEOUT) as u32
    }

    /// Whether it is a connection of this protocol.
    #[inline]
    pub(crate) fn is_live_of(self, protocol: u8) -> bool {
        const PROTOCOL: u64 = 0xff << PROTOCOL_AT;
        self.0 & (PHASE | PROTOCOL) == (Phase::Live as u64) << PHASE_AT | u64::from(protocol) << PROTOCOL_AT
    }

    /// Whether it has this state and this timeout.
    #[inline]
    pub(crate) fn is_at(self, state: u8, timeout: u32) -> bool {
        const STATE: u64 = 0xff << STATE_AT;
        self.0 & (STATE | TIMEOUT) == u64::from(state) << STATE_AT | u64::from(timeout)
    }

    /// Whether a packet with these TCP flags (of UDP: any) leaves state, flags and timeout as they are, told at a glance:
    /// true of the acknowledgements of an established connection, hence of nearly all packets. `false` says nothing.
    #[inline]
    #[must_use]
    pub fn rests(self, direction: Direction, tcp_flags: u8, timeouts: &Timeouts) -> bool {
        if self.protocol() != protocol::TCP {
            // A reply may have a template to assure.
            return direction == Direction::In && self.is_at(udp::NORMAL, timeouts.udp());
        }
        tcp_flags & (tcp::FIN | tcp::SYN | tcp::RST | tcp::ACK) == tcp::ACK
            && self.is_at(tcp::State::Established as u8, timeouts.tcp(tcp::State::Established))
            && (direction == Direction::In || !self.has(flags::NO_OUTPUT))
    }

    /// Whether it is a connection, not the remains of one.
    #[inline]
    #[must_use]
    pub fn is_live(self) -> bool {
        self.phase() == Phase::Live
    }

    #[inline]
    pub(crate) fn phase(self) -> Phase {
        match (self.0 & PHASE) >> PHASE_AT {
            1 => Phase::Tentative,
            2 => Phase::Live,
            3 => Phase::Detached,
            4 => Phase::Aborted,
            _ => Phase::Free,
        }
    }

    #[inline]
    pub(crate) fn with_phase(self, phase: Phase) -> Self {
        Meta(self.0 & !PHASE | (phase as u64) << PHASE_AT)
    }

    #[inline]
    pub(crate) fn with_state(self, state: u8) -> Self {
        Meta(self.0 & !(0xff << STATE_AT) | u64::from(state) << STATE_AT)
    }

    #[inline]
    pub(crate) fn with_timeout(self, seconds: u32) -> Self {
        Meta(self.0 & !TIMEOUT | u64::from(seconds.min(crate::MAX_TIMEOUT)))
    }

    #[inline]
    pub(crate) fn with(self, flags: u16) -> Self {
        Meta(self.0 | u64::from(flags) << FLAGS_AT)
    }

    #[inline]
    pub(crate) fn without(self, flags: u16) -> Self {
        Meta(self.0 & !(u64::from(flags) << FLAGS_AT))
    }

    pub(crate) fn with_families(self, client4: bool, real4: bool) -> Self {
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        Meta(self.0 | bit(client4, CLIENT4) | bit(real4, REAL4))
    }

    /// Whether the side that sends in `direction` is IPv4, in a wide entry.
    #[inline]
    pub(crate) fn is_ipv4(self, direction: Direction) -> bool {
        match direction {
            Direction::In => self.0 & CLIENT4 != 0,
            Direction::Out => self.0 & REAL4 != 0,
        }
    }

    pub(crate) fn with_replies(self) -> Self {
        Meta(self.0 | REPLIES)
    }

    pub(crate) fn without_replies(self) -> Self {
        Meta(self.0 & !REPLIES)
    }

    pub(crate) fn has_replies(self) -> bool {
        self.0 & REPLIES != 0
    }

    pub(crate) fn with_exclusive_reply(self) -> Self {
        Meta(self.0 | EXCLUSIVE | REPLIES)
    }

    pub(crate) fn has_exclusive_reply(self) -> bool {
        self.0 & EXCLUSIVE != 0
    }

    pub(crate) const CONTROLS: u64 = CONTROLS;

    pub(crate) fn controls(self) -> bool {
        self.0 & CONTROLS != 0
    }

    pub(crate) fn with_controls(self) -> Self {
        Meta(self.0 | CONTROLS)
    }

    pub(crate) fn without_controls(self) -> Self {
        Meta(self.0 & !CONTROLS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_touch_each_other() {
        let meta = Meta::new(6, 0x3fe7, 10, crate::MAX_TIMEOUT);
        let reading = |m: Meta| (m.protocol(), m.flags(), m.state(), m.timeout(), m.phase());
        assert_eq!(reading(meta), (6, 0x3fe7, 10, crate::MAX_TIMEOUT, Phase::Tentative));
        let meta = meta.with_phase(Phase::Live).with_state(1).with_timeout(9);
        assert_eq!(reading(meta), (6, 0x3fe7, 1, 9, Phase::Live));
        let meta = meta.without(flags::INACTIVE).with_controls().with_replies().with_families(false, true);
        assert_eq!(reading(meta), (6, 0x3ee7, 1, 9, Phase::Live));
        assert!(meta.controls() && meta.has_replies());
        assert!(meta.is_ipv4(Direction::Out) && !meta.is_ipv4(Direction::In));
        assert_eq!(reading(meta.with(flags::INACTIVE).without_controls()), (6, 0x3fe7, 1, 9, Phase::Live));
    }
}
