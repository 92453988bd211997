//! Full NAT: the real server sees a local address of the director in place of the client's, so that its replies come back from
//! wherever it is (the original patch's `ip_vs_fnat_xmit`).
//!
//! All that tells two connections apart for a real server is the local port, and a server remembers ports for a while
//! (TIME_WAIT). So the initial sequence number that the client chose is replaced by one of our choosing, and timestamps are
//! not negotiated: a port may be used again as soon as its last connection is over, if the new sequence numbers begin behind the
//! end of the old ones (RFC 6191, without timestamps).

use super::families::{self, Translated};
use super::nat;
use super::tell::{self, Telling};
use crate::batch::Packet;
use crate::packet::checksum::Delta;
use crate::packet::tcp::{self, Tcp, flag};
use crate::packet::tcp_options::{self, TIMESTAMPS};
use crate::pipeline::{Kind, Parsed, Passage, Refused};
use crate::service::{LocalAddress, LocalPool, Ports};
use crate::verdict::Reason;
use std::net::SocketAddr;
use std::sync::Arc;
use uvs_conntrack::protocol::{self, tcp::State};
use uvs_conntrack::{ConnId, Connection, Direction, Flow, Found, Hit, Sequence, SharedHandle, Tick, flags};

/// Ports of one local address that are tried for a new connection.
const TRIES: u32 = 4096;

/// What a clock of 64 nanoseconds counts in a tick: initial sequence numbers follow it (RFC 6528 §3 asks for 4 microseconds or
/// less; this is Linux's).
const SEQUENCE_PER_TICK: u32 = 156_250;

/// Ticks after which no packet of a connection that is over is expected on its way any more.
const QUIET_TICKS: i32 = 20;

/// Ports of connections that were not quiet for so long yet, from among which the longest quiet one is taken.
const CHOICE: u32 = 32;

/// What a new connection asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// The real server.
    pub(crate) server: SocketAddr,
    /// IP protocol number.
    pub(crate) protocol: u8,
    /// The client's initial sequence number; of UDP any.
    pub(crate) initial: u32,
    /// What its delta is to be a multiple of: a power of two.
    pub(crate) step: u32,
    /// The time.
    pub(crate) now: Tick,
}

/// What it gets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim<'p> {
    /// Its real side: real server → local address and port.
    pub(crate) real: Flow,
    /// How its sequence numbers are translated.
    pub(crate) sequence: Sequence,
    /// The local address.
    pub(crate) local: &'p LocalAddress,
}

/// Finds a local address and port for a new connection. A connection that is over and has to make room is shown to `ended`
/// after its end.
pub(crate) fn allocate<'p>(
    handle: &mut SharedHandle,
    pool: &'p LocalPool,
    wanted: &Wanted,
    mut ended: impl FnMut(&Connection<'_>),
) -> Result<Claim<'p>, Reason> {
    let mut reason = Reason::NoLocalAddress;
    for (local, ports) in pool.turn(wanted.server) {
        reason = Reason::PortsExhausted;
        let server = handle.hash(&Flow::new(wanted.server, wanted.server, wanted.protocol));
        if local.is_exhausted_towards(server, wanted.now) {
            continue;
        }
        let Some((real, over)) = search(handle, local, ports, wanted) else {
            local.exhausted_towards(server, wanted.now);
            continue;
        };
        let mut after = None;
        if let Some(id) = over {
            after = handle.connection(id).and_then(|connection| end_of(&connection));
            if let Some(connection) = handle.remove(id) {
                ended(&connection);
            }
        }
        let initial = initial_sequence(handle.hash(&real.reversed()), wanted.now, after);
        let delta = initial.wrapping_sub(wanted.initial).wrapping_add(wanted.step - 1) & !(wanted.step - 1);
        let sequence = Sequence { delta, mark: 0 };
        return Ok(Claim { real, sequence, local });
    }
    Err(reason)
}

/// A free port of one address, or one whose connection is over, best one of which nothing has been heard for a moment.
fn search(
    handle: &SharedHandle,
    local: &Arc<LocalAddress>,
    ports: &Ports,
    wanted: &Wanted,
) -> Option<(Flow, Option<ConnId>)> {
    let mut choice: Option<(i32, Flow, ConnId)> = None;
    let mut left = CHOICE;
    for _ in 0..ports.count().min(TRIES) {
        let port = local.next_port(ports, wanted.protocol)?;
        let real = Flow::new(wanted.server, SocketAddr::new(local.address(), port), wanted.protocol);
        let Some(hit) = handle.find(&real) else { return Some((real, None)) };
        match rest(handle, hit, wanted.now) {
            Some(ticks) if ticks >= QUIET_TICKS => return Some((real, Some(hit.id))),
            Some(ticks) => {
                if choice.is_none_or(|(longest, ..)| ticks > longest) {
                    choice = Some((ticks, real, hit.id));
                }
                left -= 1;
                if left == 0 {
                    break;
                }
            }
            None => local.conflicted(),
        }
    }
    choice.map(|(_, real, id)| (real, Some(id)))
}

/// Ticks since a connection that is over had its last packet; `None` while its port cannot be used again: in TIME_WAIT it
/// can when the end of the client's sequence numbers is known, after a reset always.
fn rest(handle: &SharedHandle, hit: Hit, now: Tick) -> Option<i32> {
    const TIME_WAIT: u8 = State::TimeWait as u8;
    const CLOSE: u8 = State::Close as u8;
    let connection = handle.connection(hit.id).filter(|_| hit.direction == Direction::Out)?;
    let meta = connection.meta();
    let is_over = meta.protocol() == protocol::TCP
        && match meta.state() {
            TIME_WAIT => end_of(&connection).is_some(),
            CLOSE => true,
            _ => false,
        };
    is_over.then(|| now.since(connection.seen()))
}

/// Where the client's sequence numbers end for the real server, if that is known.
fn end_of(connection: &Connection<'_>) -> Option<u32> {
    let told = !connection.meta().has(flags::TELL_HEADER_V1);
    Some(connection.sequence().mark).filter(|mark| told && *mark != 0)
}

/// The sequence number that a connection begins with for its real server: nobody guesses it, it grows with time (RFC 6528), and
/// it comes after `after`.
fn initial_sequence(hash: u64, now: Tick, after: Option<u32>) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "half of the hash will do")]
    let secret = (hash >> 16) as u32;
    let initial = secret.wrapping_add(now.0.wrapping_mul(SEQUENCE_PER_TICK));
    match after {
        Some(end) if !is_after(initial, end) => end.wrapping_add(0x1_0000 + (secret & 0xffff)),
        _ => initial,
    }
}

/// Whether sequence number `a` comes after `b` (RFC 9293 §3.4).
fn is_after(a: u32, b: u32) -> bool {
    b.wrapping_sub(a).cast_signed() < 0
}

/// Makes a packet the other side's, of the same IP version. Returns whether its checksum was unfinished and is complete now.
#[inline]
pub(crate) fn translate(
    packet: &mut Packet<'_>,
    passage: &Passage<'_>,
    telling: &Telling<'_>,
) -> Result<bool, Refused> {
    let parsed = passage.parsed;
    let completed = nat::translate(packet, parsed, passage.found)?;
    finish(packet, parsed, passage, telling)?;
    Ok(completed)
}

/// What there is to do behind the addresses; the headers lie where `parsed` says.
#[inline]
fn finish(
    packet: &mut Packet<'_>,
    parsed: &Parsed,
    passage: &Passage<'_>,
    telling: &Telling<'_>,
) -> Result<(), Reason> {
    let Found { connection, meta, direction } = *passage.found;
    if meta.flags() & flags::TELL != 0 {
        return tell::tell(packet, parsed, passage, telling);
    }
    if meta.protocol() == protocol::TCP && parsed.kind != Kind::Later {
        renumber(packet, parsed, &connection, direction)?;
    }
    Ok(())
}

/// As [`translate`], where client and real server speak different IP versions. `next_id`: see [`families::translate`].
#[cold]
pub(crate) fn translate_family(
    packet: &mut Packet<'_>,
    passage: &Passage<'_>,
    telling: &Telling<'_>,
    next_id: impl FnOnce() -> u32,
) -> Result<Translated, Reason> {
    let Found { connection, direction, .. } = *passage.found;
    let to = connection.flow(direction.reversed()).reversed();
    let translated = families::translate(packet, passage.parsed, &to, passage.egress.mtu, next_id)?;
    finish(packet, &translated.parsed, passage, telling)?;
    Ok(translated)
}

/// Translates sequence numbers by the connection's delta: of a client's packets to what the real server knows, of the server's
/// acknowledgements back.
pub(super) fn renumber(
    packet: &mut Packet<'_>,
    parsed: &Parsed,
    connection: &Connection<'_>,
    direction: Direction,
) -> Result<(), Reason> {
    const ENDS: u8 = flag::FIN | flag::SYN | flag::RST;
    let delta = connection.sequence().delta;
    if direction == Direction::In && parsed.tcp_flags & ENDS == flag::FIN {
        note_end(packet, parsed, connection)?;
    }
    shift(packet.frame_mut(), parsed, direction, delta, |number| number.wrapping_sub(delta))
}

/// Adds `delta` to the sequence number of a client's packet, or makes a real server's acknowledgements what `map` makes of
/// them. `frame` is the packet's first part.
#[inline]
pub(crate) fn shift(
    frame: &mut [u8],
    parsed: &Parsed,
    direction: Direction,
    delta: u32,
    map: impl Fn(u32) -> u32,
) -> Result<(), Reason> {
    let (flags, at) = (parsed.tcp_flags, parsed.transport());
    let mut tcp = Tcp::parse_mut(frame, at)?;
    let (changed, has_numbers) = match direction {
        Direction::In => (tcp.add_to_sequence(delta), flags & flag::SYN != 0),
        Direction::Out if flags & flag::ACK != 0 => {
            let number = tcp.acknowledgement();
            (tcp.add_to_acknowledgement(map(number).wrapping_sub(number)), true)
        }
        Direction::Out => (Delta::default(), false),
    };
    tcp.adjust(changed);
    if has_numbers && tcp.header_len() > tcp::HEADER_LEN {
        return shift_options(frame, at, direction, map);
    }
    Ok(())
}

/// The same of its options: those that acknowledge go along, and a client's timestamps are not negotiated.
#[inline(never)]
fn shift_options(
    frame: &mut [u8],
    at: usize,
    direction: Direction,
    map: impl Fn(u32) -> u32,
) -> Result<(), Reason> {
    let end = at + Tcp::parse_mut(frame, at)?.header_len();
    let options = frame.get_mut(at + tcp::HEADER_LEN..end).ok_or(Reason::Truncated)?;
    let changed = match direction {
        Direction::In => tcp_options::blank(options, TIMESTAMPS),
        Direction::Out => tcp_options::map_sack(options, map),
    };
    Tcp::parse_mut(frame, at)?.adjust(changed);
    Ok(())
}

/// The client sends nothing behind this segment: remembers where its sequence numbers end for the real server.
#[cold]
fn note_end(packet: &Packet<'_>, parsed: &Parsed, connection: &Connection<'_>) -> Result<(), Reason> {
    let tcp = Tcp::parse(packet.frame(), parsed.transport(), parsed.transport_len())?;
    let (sequence, payload) = (tcp.sequence(), parsed.transport_len() - tcp.header_len());
    #[expect(clippy::cast_possible_truncation, reason = "a segment is shorter than 64 KiB")]
    let length = payload as u32 + 1;
    loop {
        let old = connection.sequence();
        let end = sequence.wrapping_add(old.delta).wrapping_add(length).max(1);
        let new = Sequence { mark: end, ..old };
        if new == old || connection.swap_sequence(old, new) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_begin_behind_those_before() {
        let now = Tick(1000);
        let fresh = initial_sequence(7 << 40, now, None);
        assert_eq!(initial_sequence(7 << 40, Tick(1001), None).wrapping_sub(fresh), SEQUENCE_PER_TICK);
        for (what, end, expected) in [
            ("the clock is ahead", fresh.wrapping_sub(1), fresh),
            ("by half the space", fresh.wrapping_sub(0x7fff_ffff), fresh),
            ("the end itself is not behind it", fresh, fresh.wrapping_add(0x1_0000)),
            ("the clock is behind", fresh.wrapping_add(5), fresh.wrapping_add(0x1_0005)),
        ] {
            let initial = initial_sequence(7 << 40, now, Some(end));
            assert!(is_after(initial, end), "{what}");
            assert_eq!(initial & !0xffff, expected & !0xffff, "{what}");
        }
        for hash in [0, 0xffff_ffff_0000, u64::MAX] {
            for end in [0, 1, u32::MAX, 0x8000_0000] {
                assert!(is_after(initial_sequence(hash, now, Some(end)), end), "{hash:x} {end:x}");
            }
        }
    }
}
