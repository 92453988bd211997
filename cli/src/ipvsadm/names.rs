//! Names for addresses and ports, where `-n` does not forbid them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::OnceLock;
use uvs_control::api::Protocol;

/// How a listing writes addresses and ports.
#[derive(Debug, Default)]
pub(super) struct Names {
    numeric: bool,
    hosts: HashMap<IpAddr, Option<String>>,
}

impl Names {
    /// Numbers when `numeric`, otherwise names where there are any.
    pub(super) fn new(numeric: bool) -> Self {
        Names { numeric, hosts: HashMap::new() }
    }

    /// `address:port`, an IPv6 address in brackets. `protocol` decides what the port is called.
    pub(super) fn write(&mut self, address: SocketAddr, protocol: Option<Protocol>) -> String {
        let (host, port) = if self.numeric {
            (numeric(address.ip()), None)
        } else {
            let port = protocol.and_then(|protocol| name_of(address.port(), protocol));
            (self.host(address.ip()), port)
        };
        let port = port.unwrap_or_else(|| address.port().to_string());
        if address.is_ipv6() { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    fn host(&mut self, address: IpAddr) -> String {
        let name = self.hosts.entry(address).or_insert_with(|| dns_lookup::lookup_addr(&address).ok());
        name.clone().unwrap_or_else(|| numeric(address))
    }
}

/// An address as `inet_ntop` writes it: an IPv4-compatible one ends in dots.
fn numeric(address: IpAddr) -> String {
    match address {
        IpAddr::V6(address) if address.to_bits() >> 32 == 0 && address.to_bits() >> 16 != 0 => {
            let low = u32::try_from(address.to_bits()).unwrap_or_default();
            format!("::{}", Ipv4Addr::from_bits(low))
        }
        address => address.to_string(),
    }
}

/// The port of a service of `/etc/services`.
pub(super) fn port_of(name: &str, protocol: Protocol) -> Option<u16> {
    services().ports.get(&(name.to_owned(), protocol)).copied()
}

fn name_of(port: u16, protocol: Protocol) -> Option<String> {
    services().names.get(&(port, protocol)).cloned()
}

#[derive(Debug, Default, PartialEq)]
struct Services {
    ports: HashMap<(String, Protocol), u16>,
    names: HashMap<(u16, Protocol), String>,
}

fn services() -> &'static Services {
    static SERVICES: OnceLock<Services> = OnceLock::new();
    SERVICES.get_or_init(|| {
        std::fs::read("/etc/services")
            .map(|text| parse_services(&String::from_utf8_lossy(&text)))
            .unwrap_or_default()
    })
}

/// Reads services(5): a name, a port with its protocol, and other names. The first line that says something stands.
fn parse_services(text: &str) -> Services {
    let mut services = Services::default();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let (Some(name), Some((port, protocol))) =
            (words.next(), words.next().and_then(|word| word.split_once('/')))
        else {
            continue;
        };
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => continue,
        };
        let Ok(port) = port.parse() else { continue };
        services.names.entry((port, protocol)).or_insert_with(|| name.to_owned());
        for name in [name].into_iter().chain(words) {
            services.ports.entry((name.to_owned(), protocol)).or_insert(port);
        }
    }
    services
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_the_c_library_writes_them() {
        for text in ["10.0.0.1", "fd00::1", "::1", "::", "::1.2.3.4", "::ffff:1.2.3.4", "1:0:0:2::3"] {
            assert_eq!(numeric(text.parse().unwrap()), text);
        }
    }

    #[test]
    fn services_have_names_by_protocol() {
        let services = parse_services(
            "# a comment\nhttp\t80/tcp\twww # WorldWideWeb\nhttp-again 80/tcp\ndomain 53/udp\nbad line\nx 1/ddp\n",
        );
        assert_eq!(services.ports.get(&("www".to_owned(), Protocol::Tcp)), Some(&80));
        assert_eq!(services.ports.get(&("http".to_owned(), Protocol::Udp)), None);
        assert_eq!(services.names.get(&(80, Protocol::Tcp)).map(String::as_str), Some("http"));
        assert_eq!(services.names.get(&(53, Protocol::Udp)).map(String::as_str), Some("domain"));
        assert_eq!(services.names.len(), 2);
    }
}
