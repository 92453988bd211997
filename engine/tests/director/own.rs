//! A director that is its own client, and a real server of its own.

use super::*;
use uvs_engine::nexthop::Target;
use uvs_engine::snapshot::OwnTraffic;

/// The device by which this host's own packets come and go.
pub const OWN: PortId = PortId(2);
pub const OWN_MAC: [u8; 6] = [2, 0xd, 0, 0, 0, 2];

/// The ports that real servers see this host's own connections come from.
pub const PORTS: std::ops::RangeInclusive<u16> = 6000..=6003;

impl Director {
    /// It has the virtual addresses itself, and sees what its own sockets send.
    pub fn with_own_traffic(mut self) -> Self {
        let route = |text: &str, target| {
            let (network, length) = text.split_once('/').unwrap();
            Route { network: network.parse().unwrap(), length: length.parse().unwrap(), target }
        };
        let gateway = Neighbour { port: CLIENTS, address: "10.0.0.2".parse().unwrap() };
        let local = ["10.0.0.100/32", "172.16.0.9/32", "172.16.0.254/32", "127.0.0.0/8", "::1/128"];
        let local6 = ["fd00:1::100/128", "fd00:2::9/128", "fd00:2::254/128"];
        let routes = [
            route("10.0.0.0/24", Target::OnLink(CLIENTS)),
            route("172.16.0.0/24", Target::OnLink(SERVERS)),
            route("0.0.0.0/0", Target::Via(gateway)),
            route("fd00:1::/64", Target::OnLink(CLIENTS)),
            route("fd00:2::/64", Target::OnLink(SERVERS)),
        ];
        let here = local.into_iter().chain(local6).map(|text| route(text, Target::Local));
        let routes = self.snapshot.routes.with_routes(routes.into_iter().chain(here));
        self.snapshot.routes = Arc::new(routes);
        let own = Port {
            ifindex: 9,
            name: "own".into(),
            mac: OWN_MAC,
            mtu: 65_521,
            up: true,
            addresses: [None; 2],
            merged: false,
        };
        self.snapshot.ports = self.snapshot.ports.iter().cloned().chain([own]).collect();
        let mut addresses: Vec<IpAddr> =
            ["10.0.0.100", "172.16.0.9", "fd00:1::100", "fd00:2::9"].map(|it| it.parse().unwrap()).into();
        addresses.sort();
        self.snapshot.own = addresses.into();
        let sources = [DIRECTOR4, DIRECTOR6].concat();
        self.set_sources(&sources);
        self
    }

    /// The addresses that this host's own connections may come from.
    pub fn set_sources(&mut self, addresses: &[&str]) {
        let source = |text: &&str| {
            let address: IpAddr = text.parse().unwrap();
            let local = self.destinations.locals().enter(address);
            (address, LocalPool::new(vec![(local, Ports::new([PORTS]))]))
        };
        let sources = addresses.iter().map(source).collect();
        self.snapshot.own_traffic = Some(OwnTraffic { port: OWN, sources });
    }
}

/// The plans, with the client at the virtual address itself.
pub fn own_plans() -> [Plan; 2] {
    plans().map(|plan| Plan { client: SocketAddr::new(plan.service.ip(), 40000), ..plan })
}

/// From a socket of this host.
pub fn from_own(plan: &Plan, protocol: u8, flags: u8) -> Frame {
    Frame { to_mac: OWN_MAC, from_mac: [0; 6], ..Frame::from_client(plan, protocol, flags) }
}

/// To a socket of this host.
pub fn to_own(frame: Frame) -> Frame {
    Frame { to_mac: OWN_MAC, from_mac: OWN_MAC, ttl: frame.ttl - 1, ..frame }
}
