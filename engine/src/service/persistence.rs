//! Persistence: which clients keep to which real server, and for how long.

use crate::service::ServiceKey;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use uvs_conntrack::Flow;

/// The control port of FTP: what clients open to the ports that it names is kept with it.
const FTP: u16 = 21;

/// How a service keeps clients with their real servers (`ipvsadm -p`, `-M`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// Seconds that a client is remembered after its last new connection.
    pub timeout: u32,
    /// Who counts as one client.
    pub clients: Clients,
}

/// Which bits of an address tell clients from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Those of an IPv4 address, not necessarily the leading ones.
    Mask(Ipv4Addr),
    /// So many leading ones of an IPv6 address, 1 to 128.
    Prefix(u8),
}

impl Clients {
    /// What stands for all clients that count as one with this one. Addresses of the other family are left as they are.
    fn of(self, client: IpAddr) -> IpAddr {
        match (self, client) {
            (Clients::Mask(mask), IpAddr::V4(client)) => (client & mask).into(),
            (Clients::Prefix(bits), IpAddr::V6(client)) => {
                let host = u128::MAX.checked_shr(bits.into()).unwrap_or(0);
                Ipv6Addr::from_bits(client.to_bits() & !host).into()
            }
            (_, client) => client,
        }
    }
}

impl Persistence {
    /// What the template of a packet's client is found by (`ip_vs_sched_persist`): a service of one port has templates for that
    /// port; one of every port, and that of FTP, for the whole address.
    pub(crate) fn template(&self, service: ServiceKey, packet: &Flow) -> Flow {
        let port = if service.port == FTP { 0 } else { service.port };
        let client = self.clients.of(packet.source().ip());
        Flow::template(client, SocketAddr::new(packet.destination().ip(), port), packet.protocol())
    }

    /// The port that a template shows of a real server at `port`.
    pub(crate) fn shown_port(service: ServiceKey, port: u16) -> u16 {
        if service.port == 0 || service.port == FTP { 0 } else { port }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_grouped_by_the_bits_that_count() {
        let v4 = |mask: [u8; 4]| Clients::Mask(mask.into());
        for (clients, client, group) in [
            (v4([255; 4]), "192.0.2.77", "192.0.2.77"),
            (v4([255, 255, 255, 0]), "192.0.2.77", "192.0.2.0"),
            (v4([255, 0, 255, 0]), "192.0.2.77", "192.0.2.0"),
            (v4([0, 255, 0, 255]), "192.1.2.77", "0.1.0.77"),
            (v4([0; 4]), "192.0.2.77", "0.0.0.0"),
            (Clients::Prefix(128), "2001:db8::77", "2001:db8::77"),
            (Clients::Prefix(112), "2001:db8::1:77", "2001:db8::1:0"),
            (Clients::Prefix(33), "2001:db8:ffff::77", "2001:db8:8000::"),
            (Clients::Prefix(1), "ffff::77", "8000::"),
        ] {
            let parse = |text: &str| text.parse::<IpAddr>().expect("an address");
            assert_eq!(clients.of(parse(client)), parse(group), "{clients:?}");
        }
    }

    #[test]
    fn templates_are_for_a_port_or_for_the_address() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address and a port");
        let persistence = Persistence { timeout: 300, clients: Clients::Mask([255, 255, 0, 0].into()) };
        for (port, shown, seen) in [(80, 80, 8080), (0, 0, 0), (21, 0, 0)] {
            let service = ServiceKey { address: [10, 0, 0, 1].into(), port, protocol: 6 };
            let to = if port == 0 { 443 } else { port };
            let packet = Flow::new(address("10.1.2.3:1000"), (service.address, to).into(), 6);
            let template = persistence.template(service, &packet);
            assert_eq!(template.source(), address("10.1.0.0:0"));
            assert_eq!(template.destination(), SocketAddr::new(service.address, shown));
            assert_eq!(Persistence::shown_port(service, 8080), seen);
        }
    }
}
