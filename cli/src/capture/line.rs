//! One captured frame as a line, as tcpdump would write it.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;
use uvs_engine::link::pcap::Record;
use uvs_engine::packet::summary::{Summary, describe, letters};
use uvs_engine::packet::{ethernet, protocol};

/// Packets around packets that are told of.
const DEPTH: usize = 2;

/// The line of `record`, which is of `interface`: `eth0 in` and the like.
pub(super) fn line(record: &Record, interface: &str) -> String {
    let (device, way) = interface.rsplit_once(' ').unwrap_or((interface, ""));
    let mut text = format!("{} {device} {way:<4} ", time(record.time));
    match Summary::of(&record.bytes) {
        Some(summary) => packet(&mut text, &record.bytes, &summary, DEPTH),
        None => text.push_str(&describe(&record.bytes)),
    }
    if let Some(comment) = &record.comment {
        let _ = write!(text, " ({comment})");
    }
    text.push('\n');
    text
}

/// The time of day, UTC.
fn time(time: Duration) -> String {
    let seconds = time.as_secs() % 86_400;
    let (hours, minutes, rest) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{hours:02}:{minutes:02}:{rest:02}.{:06}", time.subsec_micros())
}

fn packet(text: &mut String, frame: &[u8], summary: &Summary, depth: usize) {
    let Summary { source, destination, ports, transport, end, .. } = *summary;
    let version = if source.is_ipv4() { "IP" } else { "IP6" };
    let [from, to] = match ports {
        Some([from, to]) => [end_of(source, from), end_of(destination, to)],
        None => [source.to_string(), destination.to_string()],
    };
    let _ = write!(text, "{version} {from} > {to}: ");
    let Some(at) = transport else {
        text.push_str("later fragment");
        return;
    };
    let (bytes, length) = (frame.get(at..).unwrap_or_default(), end.saturating_sub(at));
    let inside = match summary.protocol {
        protocol::IPV4 => Some(ethernet::IPV4),
        protocol::IPV6 => Some(ethernet::IPV6),
        _ => None,
    };
    let inside = inside.filter(|_| depth > 0).and_then(|version| Summary::at(frame, version, at));
    match summary.protocol {
        _ if inside.is_some() => inside.iter().for_each(|inside| packet(text, frame, inside, depth - 1)),
        protocol::TCP => tcp(text, summary.flags, bytes, length),
        protocol::UDP => {
            let _ = write!(text, "UDP, length {}", length.saturating_sub(8));
        }
        protocol::ICMP | protocol::ICMPV6 => icmp(text, summary.protocol, bytes, length),
        protocol::GRE => {
            let _ = write!(text, "GRE, length {length}");
        }
        other => {
            let _ = write!(text, "ip-proto-{other}, length {length}");
        }
    }
}

fn end_of(address: IpAddr, port: u16) -> String {
    format!("{address}.{port}")
}

/// Of a segment of `length` bytes, header included.
fn tcp(text: &mut String, flags: u8, bytes: &[u8], length: usize) {
    const ACK: u8 = 0x10;
    let Some(header) = bytes.first_chunk::<20>() else {
        text.push_str("tcp, cut short");
        return;
    };
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (sequence, window) = (word(4), u16::from_be_bytes([header[14], header[15]]));
    let length = length.saturating_sub(usize::from(header[12] >> 4) * 4);
    let _ = write!(text, "Flags [{}], seq {sequence}", letters(flags));
    if length > 0 {
        let end = sequence.wrapping_add(u32::try_from(length).unwrap_or(0));
        let _ = write!(text, ":{end}");
    }
    if flags & ACK != 0 {
        let _ = write!(text, ", ack {}", word(8));
    }
    let _ = write!(text, ", win {window}, length {length}");
}

fn icmp(text: &mut String, protocol: u8, bytes: &[u8], length: usize) {
    let (kind, code) = match bytes {
        [kind, code, ..] => (*kind, *code),
        _ => {
            text.push_str("icmp, cut short");
            return;
        }
    };
    let (name, words) = match (protocol, kind) {
        (protocol::ICMP, 0) => ("ICMP", "echo reply"),
        (protocol::ICMP, 3) => ("ICMP", "unreachable"),
        (protocol::ICMP, 8) => ("ICMP", "echo request"),
        (protocol::ICMP, 11) => ("ICMP", "time exceeded"),
        (protocol::ICMP, _) => ("ICMP", ""),
        (_, 1) => ("ICMP6", "unreachable"),
        (_, 2) => ("ICMP6", "packet too big"),
        (_, 3) => ("ICMP6", "time exceeded"),
        (_, 128) => ("ICMP6", "echo request"),
        (_, 129) => ("ICMP6", "echo reply"),
        (_, _) => ("ICMP6", ""),
    };
    let _ = match words {
        "" => write!(text, "{name}, type {kind}, code {code}, length {length}"),
        _ => write!(text, "{name}, {words}, code {code}, length {length}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn record(bytes: &[u8], comment: Option<&str>) -> Record {
        Record {
            interface: 0,
            time: Duration::new(86_400 * 3 + 3_723, 4_005_999),
            wire_len: 0,
            direction: None,
            comment: comment.map(Into::into),
            bytes: bytes.to_vec(),
        }
    }

    #[test]
    fn frames_read_as_tcpdump_has_them() {
        let ethernet = || PacketBuilder::ethernet2([2; 6], [4; 6]);
        let four = || ethernet().ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64);
        let six = || ethernet().ipv6([1; 16], [2; 16], 64);
        let tcp = |builder: etherparse::PacketBuilderStep<etherparse::TcpHeader>, payload: &[u8]| {
            let mut bytes = Vec::new();
            builder.write(&mut bytes, payload).unwrap();
            bytes
        };
        let mut udp = Vec::new();
        six().udp(53, 1000).write(&mut udp, b"payload").unwrap();
        let mut icmp = Vec::new();
        four().icmpv4_echo_request(1, 2).write(&mut icmp, b"payload").unwrap();
        let syn = tcp(four().tcp(40000, 80, 1, 512).syn(), b"");
        let mut tunnel = syn[..14].to_vec();
        tunnel.extend(&syn[14..34]);
        tunnel[23] = 4;
        tunnel.extend(&syn[14..]);
        let mut later = udp.clone();
        later[20] = 44;
        later.splice(54.., [17, 0, 0, 8, 0, 0, 0, 1, 9]);
        for (frame, expected) in [
            (&syn[..], "IP 10.0.0.2.40000 > 10.0.0.1.80: Flags [S], seq 1, win 512, length 0"),
            (&syn[..36], "IP 10.0.0.2 > 10.0.0.1: tcp, cut short"),
            (
                &tcp(four().tcp(1, 2, u32::MAX, 5).ack(9).psh(), b"1234"),
                "IP 10.0.0.2.1 > 10.0.0.1.2: Flags [P.], seq 4294967295:3, ack 9, win 5, length 4",
            ),
            (
                &udp,
                "IP6 101:101:101:101:101:101:101:101.53 > 202:202:202:202:202:202:202:202.1000: UDP, length 7",
            ),
            (&later, "IP6 101:101:101:101:101:101:101:101 > 202:202:202:202:202:202:202:202: later fragment"),
            (&icmp, "IP 10.0.0.2 > 10.0.0.1: ICMP, echo request, code 0, length 15"),
            (
                &tunnel,
                "IP 10.0.0.2 > 10.0.0.1: IP 10.0.0.2.40000 > 10.0.0.1.80: Flags [S], seq 1, win 512, length 0",
            ),
            (b"odd", "3 bytes"),
        ] {
            let expected = format!("01:02:03.004005 eth0 in   {expected}\n");
            assert_eq!(line(&record(frame, None), "eth0 in"), expected);
        }
        assert_eq!(
            line(&record(b"", Some("why: because.")), "eth0 drop"),
            "01:02:03.004005 eth0 drop 0 bytes (why: because.)\n"
        );
    }
}
