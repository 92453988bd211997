//! What the kernel has counted in a namespace.

use crate::{Error, Namespace, Result};
use std::fs;

/// A counter of a namespace by its names in /proc/net/snmp and /proc/net/netstat: `Tcp` and `OutRsts`, `TcpExt` and
/// `TCPSynRetrans`.
pub fn counter(namespace: &Namespace, protocol: &str, name: &str) -> Result<u64> {
    let read = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
    let both = namespace.run(|| std::io::Result::Ok([read("snmp")?, read("netstat")?]))?;
    let both = both.map_err(Error::when("read the kernel's counters"))?;
    let found = both.iter().find_map(|text| find(text, protocol, name));
    found.ok_or_else(|| Error::Protocol(format!("the kernel counts no {protocol} {name}")))
}

/// A protocol has two lines: names, then values.
fn find(text: &str, protocol: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol)?.strip_prefix(": "));
    let (names, values) = (lines.next()?.split_whitespace(), lines.next()?.split_whitespace());
    names.zip(values).find(|(field, _)| *field == name)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_under_their_names() {
        let text = "Tcp: RtoMin OutRsts\nTcp: 200 7\nTcpExt: OutRsts\nTcpExt: 9\n";
        for (protocol, name, expected) in [
            ("Tcp", "RtoMin", Some(200)),
            ("Tcp", "OutRsts", Some(7)),
            ("TcpExt", "OutRsts", Some(9)),
            ("TcpExt", "RtoMin", None),
            ("Udp", "OutRsts", None),
        ] {
            assert_eq!(find(text, protocol, name), expected, "{protocol} {name}");
        }
    }
}
