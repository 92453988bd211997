//! What packets begin connections, and how those begin.

use super::parse::Parsed;
use uvs_conntrack::protocol::{self, tcp, udp};
use uvs_conntrack::{Meta, Timeouts, flags};

/// Whether the client opens a new connection from the port of this one, which is over (`conn_reuse_mode` 1: in TIME_WAIT
/// or CLOSE).
#[inline]
pub(super) fn begins_anew(parsed: &Parsed, meta: Meta) -> bool {
    const TIME_WAIT: u8 = tcp::State::TimeWait as u8;
    const CLOSE: u8 = tcp::State::Close as u8;
    parsed.tcp_flags & tcp::SYN != 0 && matches!(meta.state(), TIME_WAIT | CLOSE)
}

/// Whether a packet may begin a connection: every UDP datagram, and a TCP segment with SYN and without RST.
#[inline]
pub(super) fn may_begin(parsed: &Parsed) -> bool {
    parsed.flow.protocol() != protocol::TCP || parsed.tcp_flags & (tcp::SYN | tcp::RST) == tcp::SYN
}

/// How a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beginning {
    /// The protocol's state.
    pub(super) state: u8,
    /// Seconds until it ends if no packet comes.
    pub(super) timeout: u32,
    /// All its flags.
    pub(super) flags: u16,
}

/// A connection that has no state, with `method_flags`, after its first packet.
pub(super) fn beginning(parsed: &Parsed, method_flags: u16, timeouts: &Timeouts) -> Beginning {
    if parsed.flow.protocol() != protocol::TCP {
        return Beginning {
            state: udp::NORMAL,
            timeout: timeouts.udp(),
            flags: method_flags | flags::INACTIVE,
        };
    }
    let one_way = method_flags & flags::NO_OUTPUT != 0;
    let view = if one_way { tcp::View::InOnly } else { tcp::View::In };
    let event = tcp::Event::of(parsed.tcp_flags);
    let state = tcp::next(tcp::Mode::Normal, view, event, tcp::State::None);
    let inactive = if state.is_active() { 0 } else { flags::INACTIVE };
    Beginning { state: state as u8, timeout: timeouts.tcp(state), flags: method_flags | inactive }
}
