//! What captures tell about the network of a director: its devices' link-layer addresses, and where hosts are.

use super::MAX_DEVICES;
use crate::api::{Method, ServerSpec, ServiceId, ServiceSpec, TunnelKind};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use uvs_engine::PortId;
use uvs_engine::packet::ethernet::{Ethernet, Mac};
use uvs_engine::packet::protocol;
use uvs_engine::packet::summary::Summary;

/// Senders of ARP that are remembered.
const ARP: usize = 1024;

/// The director's address where no capture shows it: one that no host has (RFC 7600).
const DUMMY: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// The same for IPv6 (RFC 9780, section 7.2).
const DUMMY_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 1, 0, 0, 0, 1);

/// A device of the director.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The capture that frames were captured to, and the interface there.
    pub source: (usize, usize),
    /// Its name.
    pub name: String,
    /// Its link-layer address.
    pub mac: Mac,
    /// Whether that was seen, not made up.
    pub seen: bool,
}

/// Where the director's packets around those to a real server behind a tunnel come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// The director's address.
    pub address: IpAddr,
    /// Whether that was seen, not made up.
    pub seen: bool,
}

/// What a director's routes and neighbours are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// The devices, by [`PortId`].
    pub devices: Vec<Device>,
    /// By which device, and with which link-layer address, a host is reached.
    pub hosts: BTreeMap<IpAddr, (PortId, Mac)>,
    /// Where tunnels begin, by the address of the real server that they end at.
    pub tunnels: BTreeMap<IpAddr, Beginning>,
}

impl Network {
    /// The device that frames of that interface of that capture come in by.
    pub fn port(&self, source: (usize, usize)) -> Option<PortId> {
        let place = self.devices.iter().position(|device| device.source == source)?;
        u16::try_from(place).ok().map(PortId)
    }
}

/// Looks at all frames of the captures, in the order of their times.
#[derive(Debug)]
pub struct Learner {
    services: HashSet<(SocketAddr, u8)>,
    servers: HashSet<SocketAddr>,
    /// Tunnels: the real server, what the packet around says it carries, and the UDP port, 0 but for GUE.
    tunnels: HashSet<(IpAddr, u8, u16)>,
    /// Where packets were seen to come from that went through a tunnel to a real server.
    beginnings: BTreeMap<IpAddr, IpAddr>,
    /// Who asked or answered by ARP, with which link-layer address, where.
    arp: Vec<(usize, Mac, IpAddr)>,
    /// Link-layer addresses that are said to be the director's.
    given: Vec<Mac>,
    devices: Vec<Seen>,
    /// On which device packets of a flow to a service were first seen: that is where they came in.
    flows: HashMap<(SocketAddr, SocketAddr, u8), usize>,
    /// Which host was seen as a sender, with which link-layer address, where.
    senders: BTreeMap<IpAddr, Vec<(usize, Mac)>>,
    /// Which host was sent to: with which link-layer addresses, from and to, where.
    receivers: BTreeMap<IpAddr, Vec<(usize, Mac, Mac)>>,
}

#[derive(Debug)]
struct Seen {
    source: (usize, usize),
    name: String,
    macs: HashSet<Mac>,
    /// Where clients' packets went in, or came out.
    by_clients: Option<Mac>,
    /// Where packets went into a tunnel.
    by_tunnels: Option<Mac>,
    /// Where real servers' replies went in.
    by_servers: Option<Mac>,
}

impl Learner {
    /// Learns about a director with these services. `given` are link-layer addresses that are its own.
    pub fn new(services: &[(ServiceSpec, Vec<ServerSpec>)], given: Vec<Mac>) -> Self {
        let ids = services.iter().filter_map(|(spec, _)| match spec.id {
            ServiceId::Address { protocol, address } => Some((address, protocol.number())),
            ServiceId::Mark { .. } => None,
        });
        let servers = services.iter().flat_map(|(_, servers)| servers.iter().map(|server| server.address));
        let tunnels = services
            .iter()
            .flat_map(|(spec, servers)| servers.iter().filter_map(|server| around(spec, server)));
        Learner {
            tunnels: tunnels.collect(),
            beginnings: BTreeMap::new(),
            arp: Vec::new(),
            services: ids.collect(),
            servers: servers.collect(),
            given,
            devices: Vec::new(),
            flows: HashMap::new(),
            senders: BTreeMap::new(),
            receivers: BTreeMap::new(),
        }
    }

    /// Looks at a frame. `name` names the interface when it is the first of it. `false` when there are too many interfaces.
    #[must_use]
    pub fn look(&mut self, source: (usize, usize), name: impl FnOnce() -> String, frame: &[u8]) -> bool {
        let device = match self.devices.iter().position(|device| device.source == source) {
            Some(device) => device,
            None if self.devices.len() < MAX_DEVICES => {
                let (name, macs) = (name(), HashSet::new());
                self.devices.push(Seen {
                    source,
                    name,
                    macs,
                    by_clients: None,
                    by_tunnels: None,
                    by_servers: None,
                });
                self.devices.len() - 1
            }
            None => return false,
        };
        let Ok(ethernet) = Ethernet::parse(frame) else { return true };
        let (from, to) = (ethernet.source(), ethernet.destination());
        self.devices[device].macs.extend([from, to]);
        if let Some(sender) = arp_sender(frame) {
            note(&mut self.senders, sender, (device, from));
            if !self.arp.contains(&(device, from, sender)) && self.arp.len() < ARP {
                self.arp.push((device, from, sender));
            }
        }
        let Some(summary) = Summary::of(frame) else { return true };
        self.learn_own(device, from, to, &summary);
        // The service's address is the director's, and by direct routing every real server's.
        let is_service = |address| self.services.iter().any(|(service, _)| service.ip() == address);
        if !is_service(summary.source) {
            note(&mut self.senders, summary.source, (device, from));
        }
        if !is_service(summary.destination) && to[0] & 1 == 0 {
            note(&mut self.receivers, summary.destination, (device, from, to));
        }
        true
    }

    /// A client's packet goes into the director where it is seen first, and out of it where it is seen again.
    fn learn_own(&mut self, device: usize, from: Mac, to: Mac, summary: &Summary) {
        let port = if summary.protocol == protocol::UDP { summary.ports.map_or(0, |[_, to]| to) } else { 0 };
        if self.tunnels.contains(&(summary.destination, summary.protocol, port)) {
            self.devices[device].by_tunnels.get_or_insert(from);
            self.beginnings.entry(summary.destination).or_insert(summary.source);
        }
        let Some((source, destination)) = summary.ends() else { return };
        if self.services.contains(&(destination, summary.protocol)) {
            let flow = (source, destination, summary.protocol);
            let came_in = *self.flows.entry(flow).or_insert(device) == device;
            self.devices[device].by_clients.get_or_insert(if came_in { to } else { from });
        } else if self.servers.contains(&source) && !self.services.contains(&(source, summary.protocol)) {
            self.devices[device].by_servers.get_or_insert(to);
        }
    }

    /// What there is to know.
    pub fn finish(self) -> Network {
        let devices: Vec<Device> =
            self.devices.iter().zip(0..).map(|(seen, n)| self.device(seen, n)).collect();
        let is_own = |device: usize, mac: Mac| devices[device].mac == mac;
        let mut hosts = BTreeMap::new();
        for (host, towards) in &self.receivers {
            let sent =
                towards.iter().find(|(device, from, to)| is_own(*device, *from) && !is_own(*device, *to));
            if let Some((device, _, to)) = sent {
                hosts.insert(*host, (port(*device), *to));
            }
        }
        for (host, seen) in &self.senders {
            if let Some((device, from)) = seen.iter().find(|(device, from)| !is_own(*device, *from)) {
                hosts.insert(*host, (port(*device), *from));
            }
        }
        let unseen: Vec<IpAddr> =
            self.servers.iter().map(SocketAddr::ip).filter(|server| !hosts.contains_key(server)).collect();
        for server in unseen {
            let near = hosts.iter().max_by_key(|(host, _)| common_bits(**host, server));
            let device = near.map_or(PortId(0), |(_, (device, _))| *device);
            hosts.insert(server, (device, made_up(server)));
        }
        let tunnels =
            self.tunnels.iter().map(|(server, ..)| (*server, self.beginning(*server, &devices, &hosts)));
        Network { tunnels: tunnels.collect(), devices, hosts }
    }

    /// As packets were seen to go to `server`, or as the director said by ARP towards it that it is called.
    fn beginning(
        &self,
        server: IpAddr,
        devices: &[Device],
        hosts: &BTreeMap<IpAddr, (PortId, Mac)>,
    ) -> Beginning {
        let towards = hosts.get(&server).map(|(device, _)| *device);
        let says = |(device, mac, _): &&(usize, Mac, IpAddr)| {
            Some(port(*device)) == towards && devices[*device].mac == *mac
        };
        let by_arp = self.arp.iter().filter(says).map(|(.., address)| *address);
        let by_arp = by_arp.filter(|address| address.is_ipv4() == server.is_ipv4());
        let nearest = by_arp.max_by_key(|address| common_bits(*address, server));
        match self.beginnings.get(&server).copied().or(nearest) {
            Some(address) => Beginning { address, seen: true },
            None if server.is_ipv4() => Beginning { address: DUMMY.into(), seen: false },
            None => Beginning { address: DUMMY_V6.into(), seen: false },
        }
    }

    fn device(&self, seen: &Seen, number: u8) -> Device {
        let given = self.given.iter().find(|mac| seen.macs.contains(*mac)).or(self.given.first());
        let learnt = given.copied().or(seen.by_clients).or(seen.by_tunnels).or(seen.by_servers);
        let mac = learnt.unwrap_or([2, 0, 0, 0, 0xff, number]);
        Device { source: seen.source, name: seen.name.clone(), mac, seen: learnt.is_some() }
    }
}

/// What the packets around those to `server` look like, if it is behind a tunnel.
fn around(service: &ServiceSpec, server: &ServerSpec) -> Option<(IpAddr, u8, u16)> {
    let Method::Tunnel(tunnel) = server.method else { return None };
    let ServiceId::Address { address, .. } = service.id else { return None };
    let (protocol, port) = match tunnel.kind {
        TunnelKind::Ipip if address.is_ipv4() => (protocol::IPV4, 0),
        TunnelKind::Ipip => (protocol::IPV6, 0),
        TunnelKind::Gre => (protocol::GRE, 0),
        TunnelKind::Gue => (protocol::UDP, tunnel.port),
    };
    Some((server.address.ip(), protocol, port))
}

fn port(device: usize) -> PortId {
    PortId(u16::try_from(device).unwrap_or(u16::MAX))
}

fn note<T: PartialEq>(of: &mut BTreeMap<IpAddr, Vec<T>>, host: IpAddr, what: T) {
    let known = of.entry(host).or_default();
    if !known.contains(&what) && known.len() < MAX_DEVICES {
        known.push(what);
    }
}

/// Who says by ARP (RFC 826) which address it has.
fn arp_sender(frame: &[u8]) -> Option<IpAddr> {
    let header = frame.get(12..22)?;
    let sender = Ipv4Addr::from(*frame.get(28..)?.first_chunk::<4>()?);
    let is_arp = header.starts_with(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4]);
    (is_arp && !sender.is_unspecified()).then_some(sender.into())
}

/// How many bits at their beginning two addresses of one version share, and one.
fn common_bits(a: IpAddr, b: IpAddr) -> u32 {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => 1 + (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => 1 + (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => 0,
    }
}

/// The link-layer address of a real server that no capture shows.
fn made_up(server: IpAddr) -> Mac {
    let [a, b, c, d] = match server {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => address.to_bits().to_be_bytes()[12..].try_into().unwrap_or_default(),
    };
    [2, 0, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Method, Protocol};
    use etherparse::PacketBuilder;

    const CLIENT: Mac = [2, 0, 0, 0, 0, 1];
    const CLIENTS_SIDE: Mac = [2, 0xd, 0, 0, 0, 0];
    const SERVERS_SIDE: Mac = [2, 0xd, 0, 0, 0, 1];
    const SERVER: Mac = [2, 0, 0, 0, 0, 9];

    fn services(method: Method) -> Vec<(ServiceSpec, Vec<ServerSpec>)> {
        let id = ServiceId::Address { protocol: Protocol::Tcp, address: "10.0.0.1:80".parse().unwrap() };
        let server = |address: &str| ServerSpec { method, ..ServerSpec::new(address.parse().unwrap()) };
        vec![(ServiceSpec::new(id, "rr"), vec![server("10.2.0.9:80"), server("10.2.0.10:80")])]
    }

    fn tcp(from_mac: Mac, to_mac: Mac, from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
        let mut bytes = Vec::new();
        let packet = PacketBuilder::ethernet2(from_mac, to_mac).ipv4(from.0, to.0, 64);
        packet.tcp(from.1, to.1, 1, 100).write(&mut bytes, &[]).unwrap();
        bytes
    }

    fn arp(from_mac: Mac, from: [u8; 4]) -> Vec<u8> {
        let head = [&[0xff; 6][..], &from_mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &from_mac, &from].concat();
        [&head[..], &[0; 10]].concat()
    }

    const CLIENT_END: ([u8; 4], u16) = ([10, 1, 0, 2], 40000);
    const SERVICE: ([u8; 4], u16) = ([10, 0, 0, 1], 80);

    fn learn(method: Method, given: Vec<Mac>, frames: &[(usize, Vec<u8>)]) -> Network {
        let mut learner = Learner::new(&services(method), given);
        for (file, frame) in frames {
            assert!(learner.look((*file, 0), || format!("device{file}"), frame));
        }
        learner.finish()
    }

    fn host(network: &Network, address: &str) -> Option<(u16, Mac)> {
        network.hosts.get(&address.parse::<IpAddr>().unwrap()).map(|(port, mac)| (port.0, *mac))
    }

    #[test]
    fn nat_is_learnt_from_what_goes_in() {
        let server = ([10, 2, 0, 9], 80);
        let network = learn(
            Method::Masquerading,
            vec![],
            &[
                (0, tcp(CLIENT, CLIENTS_SIDE, CLIENT_END, SERVICE)),
                (1, tcp(SERVERS_SIDE, SERVER, CLIENT_END, server)),
                (1, tcp(SERVER, SERVERS_SIDE, server, CLIENT_END)),
                (0, tcp(CLIENTS_SIDE, CLIENT, SERVICE, CLIENT_END)),
            ],
        );
        let macs: Vec<_> = network.devices.iter().map(|device| (device.mac, device.seen)).collect();
        assert_eq!(macs, [(CLIENTS_SIDE, true), (SERVERS_SIDE, true)]);
        assert_eq!(host(&network, "10.1.0.2"), Some((0, CLIENT)));
        assert_eq!(host(&network, "10.2.0.9"), Some((1, SERVER)));
        assert_eq!(host(&network, "10.2.0.10"), Some((1, [2, 0, 10, 2, 0, 10])), "near the other one");
        assert_eq!(host(&network, "10.0.0.1"), None);
        assert_eq!(network.port((1, 0)), Some(PortId(1)));
        assert_eq!(network.port((2, 0)), None);
    }

    #[test]
    fn direct_routing_is_learnt_from_what_comes_out() {
        let network = learn(
            Method::Direct,
            vec![],
            &[
                (1, arp(SERVER, [10, 2, 0, 9])),
                (0, tcp(CLIENT, CLIENTS_SIDE, CLIENT_END, SERVICE)),
                (1, tcp(SERVERS_SIDE, SERVER, CLIENT_END, SERVICE)),
            ],
        );
        let macs: Vec<_> = network.devices.iter().map(|device| device.mac).collect();
        assert_eq!(macs, [SERVERS_SIDE, CLIENTS_SIDE]);
        assert_eq!(host(&network, "10.2.0.9"), Some((0, SERVER)));
        assert_eq!(host(&network, "10.1.0.2"), Some((1, CLIENT)));
    }

    #[test]
    fn where_tunnels_begin_is_learnt_from_their_packets_or_arp_or_made_up() {
        let tunnel = Method::Tunnel(crate::api::Tunnel::default());
        let client = (0, tcp(CLIENT, CLIENTS_SIDE, CLIENT_END, SERVICE));
        let mut around = tcp(SERVERS_SIDE, SERVER, ([10, 2, 0, 1], 0), ([10, 2, 0, 9], 0));
        around[23] = protocol::IPV4;
        let begins = |network: &Network, address: &str, seen| {
            let beginning = network.tunnels[&"10.2.0.9".parse::<IpAddr>().unwrap()];
            assert_eq!((beginning.address.to_string().as_str(), beginning.seen), (address, seen));
        };
        let network = learn(tunnel, vec![], &[client.clone(), (1, around)]);
        begins(&network, "10.2.0.1", true);
        assert_eq!((network.devices[1].mac, network.devices[1].seen), (SERVERS_SIDE, true));
        let asks = (1, arp(SERVERS_SIDE, [10, 2, 0, 2]));
        let answers = (1, arp(SERVER, [10, 2, 0, 9]));
        let network = learn(tunnel, vec![SERVERS_SIDE], &[client.clone(), asks, answers]);
        begins(&network, "10.2.0.2", true);
        begins(&learn(tunnel, vec![], &[client]), "192.0.0.8", false);
        assert!(learn(Method::Direct, vec![], &[]).tunnels.is_empty());
    }

    #[test]
    fn what_is_given_wins_and_what_is_unknown_is_made_up() {
        let stray = tcp(CLIENT, SERVER, CLIENT_END, ([10, 9, 9, 9], 22));
        let network = learn(Method::Direct, vec![], &[(0, stray.clone()), (0, vec![1, 2, 3])]);
        assert_eq!((network.devices[0].mac, network.devices[0].seen), ([2, 0, 0, 0, 0xff, 0], false));
        let network = learn(Method::Direct, vec![SERVERS_SIDE, SERVER], &[(0, stray)]);
        assert_eq!((network.devices[0].mac, network.devices[0].seen), (SERVER, true));
    }

    #[test]
    fn more_devices_than_there_may_be_are_refused() {
        let mut learner = Learner::new(&[], vec![]);
        assert!((0..MAX_DEVICES).all(|file| learner.look((file, 0), String::new, &[])));
        assert!(!learner.look((MAX_DEVICES, 0), String::new, &[]));
        assert!(learner.look((3, 0), String::new, &[]));
    }
}
