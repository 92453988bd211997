//! What packets begin connections, and how those begin.

use super::parse::{Kind, Parsed};
use crate::snapshot::{ForwardOptions, Reuse, Snapshot};
use uvs_conntrack::protocol::{self, tcp, udp};
use uvs_conntrack::{Connection, Meta, NEW_CONNECTION_SECONDS, OwnTimeouts, Timeouts, flags};

/// Whether the client opens a new connection from the port of this one: because it is over (`is_new_conn_expected`), or because
/// it shall leave its real server, which is `quiescent` (`expire_nodest_conn`).
#[inline]
pub(super) fn begins_anew(
    parsed: &Parsed,
    connection: &Connection<'_>,
    meta: Meta,
    options: &ForwardOptions,
    quiescent: impl Fn() -> bool,
) -> bool {
    parsed.tcp_flags & tcp::SYN != 0
        && (gives_way(connection, meta, options.reuse) || options.expire_nodest_conn && quiescent())
}

#[cold]
fn gives_way(connection: &Connection<'_>, meta: Meta, reuse: Reuse) -> bool {
    const FIN_WAIT: u8 = tcp::State::FinWait as u8;
    const TIME_WAIT: u8 = tcp::State::TimeWait as u8;
    const CLOSE: u8 = tcp::State::Close as u8;
    let is_over = match meta.state() {
        TIME_WAIT | CLOSE => reuse != Reuse::Never,
        FIN_WAIT => reuse == Reuse::OverOrHalfClosed && meta.has(flags::NO_OUTPUT),
        _ => false,
    };
    is_over && connection.template().is_none()
}

/// Whether a packet may begin a connection: every UDP datagram, and a TCP segment with SYN and without RST; where that is not
/// taken strictly, one without SYN, too (`tcp_conn_schedule`).
#[inline]
pub(super) fn may_begin(parsed: &Parsed, options: &ForwardOptions) -> bool {
    parsed.flow.protocol() != protocol::TCP
        || parsed.tcp_flags & tcp::RST == 0 && (parsed.tcp_flags & tcp::SYN != 0 || options.sloppy_tcp)
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

/// A connection that has no state, with `method_flags`, after its first packet. An ICMP error gives it none, and it ends soon if
/// no packet comes.
pub(super) fn beginning(
    parsed: &Parsed,
    method_flags: u16,
    snapshot: &Snapshot,
    own: &OwnTimeouts,
) -> Beginning {
    if own.is_empty() {
        return beginning_with(parsed, method_flags, snapshot.options.tcp_mode, &snapshot.timeouts);
    }
    let timeouts = snapshot.timeouts.with(own);
    beginning_with(parsed, method_flags | flags::OWN_TIMEOUTS, snapshot.options.tcp_mode, &timeouts)
}

fn beginning_with(parsed: &Parsed, method_flags: u16, mode: tcp::Mode, timeouts: &Timeouts) -> Beginning {
    if parsed.kind == Kind::Error {
        let flags = method_flags | flags::INACTIVE;
        return Beginning { state: tcp::State::None as u8, timeout: NEW_CONNECTION_SECONDS, flags };
    }
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
    let state = tcp::next(mode, view, event, tcp::State::None);
    let inactive = if state.is_active() { 0 } else { flags::INACTIVE };
    Beginning { state: state as u8, timeout: timeouts.tcp(state), flags: method_flags | inactive }
}
