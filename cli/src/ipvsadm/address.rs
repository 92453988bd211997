//! Addresses, ports and numbers as ipvsadm takes them from the command line, the C library's liberties included.

use super::names;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs};
use uvs_control::api::Protocol;

/// An address and the port given with it, if one was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HostPort {
    pub(super) address: IpAddr,
    pub(super) port: Option<u16>,
}

/// Reads `host`, `host:port`, `[v6]:port` or a bare IPv6 address. A number alone is not a host.
pub(super) fn host_port(text: &str, protocol: Protocol) -> Option<HostPort> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, Some(after.strip_prefix(':')?))
        }
        None => (text, None),
    };
    if let Ok(address) = host.parse::<Ipv6Addr>() {
        let port = match port {
            Some(port) => Some(port_number(port, protocol)?),
            None => None,
        };
        return Some(HostPort { address: address.into(), port });
    }
    // An IPv4 address in brackets loses its port: the brackets have been looked for it already.
    let (host, port) = match host.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (host, None),
    };
    let address = inet_aton(host).or_else(|| resolve(host))?;
    let port = match port {
        Some(port) => Some(port_number(port, protocol)?),
        None => None,
    };
    Some(HostPort { address: address.into(), port })
}

/// The IPv4 address of a name.
fn resolve(host: &str) -> Option<Ipv4Addr> {
    if host.is_empty() || host.contains('\0') {
        return None;
    }
    (host, 0).to_socket_addrs().ok()?.find_map(|address| match address.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    })
}

fn port_number(text: &str, protocol: Protocol) -> Option<u16> {
    number(text, 0, 65535)
        .and_then(|port| u16::try_from(port).ok())
        .or_else(|| names::port_of(text, protocol))
}

/// A decimal number between two bounds, as `strtol` reads it: blanks and one sign before it, nothing after it.
pub(super) fn number(text: &str, least: i64, most: i64) -> Option<i64> {
    let digits = text.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']);
    let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(digits);
    if !unsigned.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|number| (least..=most).contains(number))
}

/// The number that a text begins with, as `atoi` reads it; 0 when it begins with none.
pub(super) fn leading_number(text: &str) -> i64 {
    let text = text.trim_start();
    let sign = usize::from(text.starts_with(['+', '-']));
    let end = text[sign..].find(|other: char| !other.is_ascii_digit()).map_or(text.len(), |end| end + sign);
    text[..end].parse().unwrap_or(0)
}

/// An IPv4 address of one to four parts, each decimal, octal or hexadecimal, the last filling what is left; whatever follows
/// a blank does not count.
pub(super) fn inet_aton(text: &str) -> Option<Ipv4Addr> {
    let end = text.find(|other: char| other.is_ascii_whitespace() || other == '\u{b}').unwrap_or(text.len());
    let parts: Vec<_> = text[..end].split('.').map(part).collect::<Option<_>>()?;
    let (last, leading) = parts.split_last()?;
    if leading.len() > 3 || leading.iter().any(|part| *part > 0xff) {
        return None;
    }
    let free_bits = 32 - 8 * u32::try_from(leading.len()).ok()?;
    if u64::from(*last) >> free_bits != 0 {
        return None;
    }
    let high = leading.iter().fold(0_u32, |high, part| high << 8 | part);
    let high = u32::try_from(u64::from(high) << free_bits).ok()?;
    Some(Ipv4Addr::from_bits(high | last))
}

fn part(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hexadecimal) => (hexadecimal, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_the_c_library_reads_them() {
        for (text, address) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("10", Some("0.0.0.10")),
            ("10.1", Some("10.0.0.1")),
            ("1.2.3", Some("1.2.0.3")),
            ("0x0a000001", Some("10.0.0.1")),
            ("012.0.0.1", Some("10.0.0.1")),
            ("4294967295", Some("255.255.255.255")),
            ("255.255", Some("255.0.0.255")),
            ("10.0.0.1 anything", Some("10.0.0.1")),
            ("4294967296", None),
            ("10.0.0.256", None),
            ("256.0.0.1", None),
            ("1.2.3.4.5", None),
            ("08.1.1.1", None),
            ("0x", None),
            ("1..2", None),
            ("+1.2.3.4", None),
            (" 10.0.0.1", None),
            ("", None),
        ] {
            assert_eq!(inet_aton(text), address.map(|address| address.parse().unwrap()), "{text:?}");
        }
    }

    #[test]
    fn hosts_and_ports() {
        for (text, expected) in [
            ("10.0.0.1:80", Some(("10.0.0.1", Some(80)))),
            ("10.0.0.1", Some(("10.0.0.1", None))),
            ("10.0.0.1:+83", Some(("10.0.0.1", Some(83)))),
            ("[fd00::1]:80", Some(("fd00::1", Some(80)))),
            ("fd00::1:80", Some(("fd00::1:80", None))),
            ("[10.0.0.1]:80", Some(("10.0.0.1", None))),
            ("[fd00::1]", None),
            ("[fd00::1]80", None),
            ("[fd00::1", None),
            ("[fd00::1]:", None),
            ("10.0.0.1:", None),
            ("10.0.0.1:65536", None),
            ("10.0.0.1:-1", None),
            ("12345", None),
            ("12345:80", Some(("0.0.48.57", Some(80)))),
            ("", None),
            (":80", None),
            ("[fe80::1%lo]:80", None),
        ] {
            let expected =
                expected.map(|(address, port)| HostPort { address: address.parse().unwrap(), port });
            assert_eq!(host_port(text, Protocol::Tcp), expected, "{text:?}");
        }
    }

    #[test]
    fn numbers_as_the_c_library_reads_them() {
        for (text, expected) in [
            ("5", Some(5)),
            (" +5", Some(5)),
            ("-0", Some(0)),
            ("-1", None),
            ("5 ", None),
            ("", None),
            ("0x5", None),
            ("65536", None),
            ("99999999999999999999", None),
            ("+-5", None),
        ] {
            assert_eq!(number(text, 0, 65535), expected, "{text:?}");
        }
        for (text, expected) in [("64x", 64), ("x", 0), ("-5", -5), ("", 0), ("+5", 5), ("255.0", 255)] {
            assert_eq!(leading_number(text), expected, "{text:?}");
        }
    }
}
