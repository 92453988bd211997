//! Replays what Linux IPVS did, connection by connection, through our schedulers, connection table and state machine.
//!
//! The traces (`golden/sched/`, see `golden/README.md`) were recorded with direct routing: the director saw the clients'
//! packets only, so the one-way rows of the state machine apply.

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use uvs_conntrack::protocol::tcp::{self, ACK, FIN, RST, SYN};
use uvs_conntrack::{
    ConnId, DestinationId, Direction, Flow, Handle, Heap, Limits, Load, NewConnection, Table, Tick, Timeouts,
    flags, protocol,
};
use uvs_schedulers::flags::{SCHED1, SCHED2};
use uvs_schedulers::{Balancer, Destination, Request, Slot, by_name};

const TRACES: [&str; 2] =
    [include_str!("golden/sched/traces-6.1.192.json"), include_str!("golden/sched/edits-6.1.176.json")];
/// What the files hold, so that none can go missing unnoticed.
const EXPECTED: (usize, usize) = (306, 20_812);
/// Forwarding method of every connection here (IPVS: `IP_VS_CONN_F_DROUTE`).
const DIRECT: u16 = 3;

#[derive(Deserialize)]
struct Recording {
    traces: Vec<Trace>,
}

#[derive(Deserialize)]
struct Trace {
    name: String,
    scheduler: String,
    proto: Proto,
    service: Option<String>,
    service_options: String,
    servers: Vec<Server>,
    /// The commands that made the service; thresholds stand only here.
    #[serde(default)]
    setup: Vec<String>,
    steps: Vec<Step>,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Proto {
    Tcp,
    Udp,
}

#[derive(Deserialize)]
struct Server {
    addr: SocketAddr,
    weight: u32,
}

/// One step, and what the kernel showed after it.
#[derive(Deserialize)]
struct Step {
    #[serde(flatten)]
    op: Op,
    /// The connection's real server; none when it was not scheduled.
    #[serde(default, deserialize_with = "selected")]
    sel: Option<SocketAddr>,
    state: Option<String>,
    conns: Option<InListOrder>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Op {
    /// SYN, then ACK (UDP: one datagram).
    Open(Client),
    /// SYN only.
    Syn(Client),
    Fin(Client),
    Rst(Client),
    /// A datagram of a one-packet service.
    Datagram(Client),
    Weight {
        server: SocketAddr,
        weight: u32,
    },
    Add {
        server: SocketAddr,
        weight: u32,
    },
    Del {
        server: SocketAddr,
    },
}

#[derive(Clone, Copy, Deserialize)]
struct Client {
    cip: IpAddr,
    cport: u16,
    /// Where its packets go, when the service is a firewall mark.
    vip: Option<IpAddr>,
    #[serde(default = "http")]
    dport: u16,
}

fn http() -> u16 {
    80
}

/// `{server: [weight, active, inactive]}`, whose order is the list's.
#[derive(Debug, PartialEq)]
struct InListOrder(Vec<(SocketAddr, [u32; 3])>);

impl<'de> Deserialize<'de> for InListOrder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = InListOrder;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of real servers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<InListOrder, A::Error> {
                let pairs = std::iter::from_fn(|| map.next_entry().transpose());
                pairs.collect::<Result<_, _>>().map(InListOrder)
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// `address:port`, without brackets for IPv6 too.
fn selected<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let parse = |text: String| {
        let (address, port) = text.rsplit_once(':')?;
        Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
    };
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| parse(text).ok_or_else(|| D::Error::custom("no address:port"))).transpose()
}

/// A director of one service, in memory: its scheduler and a connection table.
struct Director {
    protocol: u8,
    one_packet: bool,
    vip: SocketAddr,
    thresholds: (u32, u32),
    service: Balancer,
    connections: Handle<Heap>,
    /// Every real server there ever was; a connection's [`DestinationId`] is its place here.
    servers: Vec<Real>,
}

/// A real server and its connections, which it keeps while it is not one of the service's.
#[derive(Clone, Copy)]
struct Real {
    address: SocketAddr,
    slot: Slot,
    active: u32,
    inactive: u32,
}

/// A connection's real server and the name of its state.
type Outcome = Option<(SocketAddr, &'static str)>;

const NOW: Tick = Tick(0);

impl Director {
    fn new(trace: &Trace) -> Self {
        let limits = Limits { connections4: 1024, connections6: 1024, ..Limits::default() };
        let table = Table::on_heap(limits).expect("a table");
        // The flow's own address counts with a firewall mark.
        let vip = trace.service.as_deref().and_then(|service| service[3..].parse().ok());
        let mut service = Balancer::new(by_name(&trace.scheduler).expect("a scheduler of ours"));
        let flag = |name, bit| if trace.service_options.contains(name) { bit } else { 0 };
        service.set_flags(flag("h-fallback", SCHED1) | flag("h-port", SCHED2));
        let mut director = Director {
            protocol: if trace.proto == Proto::Tcp { protocol::TCP } else { protocol::UDP },
            one_packet: trace.service_options == "-o",
            vip: vip.unwrap_or_else(|| SocketAddr::from(([10, 0, 0, 1], 80))),
            thresholds: thresholds(&trace.setup),
            service,
            connections: table.handle().expect("a handle"),
            servers: Vec::new(),
        };
        for server in &trace.servers {
            director.add(server.addr, server.weight);
        }
        director
    }

    fn add(&mut self, server: SocketAddr, weight: u32) {
        let (upper, lower) = self.thresholds;
        let known = self.servers.iter().position(|it| it.address == server);
        let (active, inactive) = known.map_or((0, 0), |place| {
            let it = self.servers[place];
            (it.active, it.inactive)
        });
        let new = Destination::new(server, weight).with_thresholds(upper, lower);
        let slot = self.service.add(Destination { active, inactive, ..new }).expect("room for a real server");
        match known {
            Some(place) => self.servers[place].slot = slot,
            None => self.servers.push(Real { address: server, slot, active, inactive }),
        }
    }

    fn slot(&self, server: SocketAddr) -> Slot {
        self.service.pool().find(server).expect("a server of the service")
    }

    /// Does one step; says what the step's connection came to.
    fn step(&mut self, op: Op) -> Outcome {
        match op {
            Op::Open(client) if self.protocol == protocol::TCP => {
                self.packet(client, SYN);
                self.packet(client, ACK)
            }
            Op::Open(client) | Op::Datagram(client) => self.packet(client, 0),
            Op::Syn(client) => self.packet(client, SYN),
            Op::Fin(client) => self.packet(client, FIN | ACK),
            Op::Rst(client) => self.packet(client, RST),
            Op::Weight { server, weight } => {
                let (upper, lower) = self.thresholds;
                assert!(self.service.edit(self.slot(server), weight, upper, lower));
                None
            }
            Op::Add { server, weight } => {
                self.add(server, weight);
                None
            }
            Op::Del { server } => {
                assert!(self.service.remove(self.slot(server)).is_some());
                None
            }
        }
    }

    /// A client's packet: finds its connection or schedules a new one, moves its state, counts.
    fn packet(&mut self, client: Client, tcp_flags: u8) -> Outcome {
        let vip = SocketAddr::new(client.vip.unwrap_or(self.vip.ip()), client.dport);
        let flow = Flow::new(SocketAddr::new(client.cip, client.cport), vip, self.protocol);
        let begins = self.protocol == protocol::UDP || tcp_flags & SYN != 0;
        let id = match self.connections.find(&flow) {
            Some(hit) => hit.id,
            None if begins => self.schedule(flow)?,
            None => return None,
        };
        let timeouts = Timeouts::default();
        let transition = match self.protocol {
            protocol::TCP => {
                let event = tcp::Event::of(tcp_flags);
                self.connections.tcp(id, Direction::In, event, tcp::Mode::Normal, &timeouts, NOW)
            }
            _ => self.connections.udp(id, Direction::In, &timeouts, NOW),
        };
        let connection = self.connections.connection(id)?;
        let (state, place) = (connection.state_name(), connection.destination().0 as usize);
        let mut server = self.servers[place].address;
        if server.port() == 0 {
            server.set_port(client.dport);
        }
        match transition.load {
            Load::BecameActive => self.recount(place, 1, -1),
            Load::BecameInactive => self.recount(place, -1, 1),
            Load::Same => {}
        }
        if self.one_packet {
            assert!(self.connections.remove(id).is_some());
            self.recount(place, 0, -1);
        }
        self.connections.quiescent();
        Some((server, state))
    }

    fn schedule(&mut self, client: Flow) -> Option<ConnId> {
        let slot = self.service.choose(&Request::new(client.source(), client.destination()))?;
        let place = self.servers.iter().position(|it| it.slot == slot)?;
        let real = Flow::new(self.servers[place].address, client.source(), self.protocol);
        let destination = DestinationId(u32::try_from(place).expect("few servers"));
        let new = NewConnection::new(client, real, destination);
        let direct =
            NewConnection { index_reply: false, flags: new.flags | flags::NO_OUTPUT | DIRECT, ..new };
        let inserted = self.connections.insert(&direct, NOW).expect("room for a connection");
        self.recount(place, 0, 1);
        Some(inserted.id)
    }

    /// Changes a real server's counters.
    fn recount(&mut self, place: usize, active: i32, inactive: i32) {
        let real = &mut self.servers[place];
        real.active = real.active.strict_add_signed(active);
        real.inactive = real.inactive.strict_add_signed(inactive);
        self.service.settle(real.slot, real.active, real.inactive);
    }

    fn list(&self) -> InListOrder {
        let show = |it: &Destination| (it.address, [it.weight, it.active, it.inactive]);
        InListOrder(self.service.pool().iter().map(|(_, destination)| show(destination)).collect())
    }
}

/// `-x` and `-y`, which are the same for all servers of a trace.
fn thresholds(setup: &[String]) -> (u32, u32) {
    let words: Vec<&str> = setup.first().map_or(Vec::new(), |line| line.split(' ').collect());
    let value = |option| {
        let at = words.iter().position(|word| *word == option)?;
        words.get(at + 1)?.parse().ok()
    };
    (value("-x").unwrap_or(0), value("-y").unwrap_or(0))
}

#[test]
fn every_step_is_the_kernels() {
    let read = |text| serde_json::from_str::<Recording>(text).expect("the recording is JSON").traces;
    let traces: Vec<Trace> = TRACES.into_iter().flat_map(read).collect();
    let mut mismatches = Vec::new();
    let mut steps = 0;
    for trace in &traces {
        let mut director = Director::new(trace);
        for (n, step) in trace.steps.iter().enumerate() {
            steps += 1;
            let (server, state) = director.step(step.op).unzip();
            let list = director.list();
            // One-packet steps show the real server only.
            let same = step
                .conns
                .as_ref()
                .is_none_or(|recorded| *recorded == list && step.state.as_deref() == state);
            if step.sel != server || !same {
                mismatches.push(format!(
                    "{} step {n}: kernel {:?} {:?} {:?}, we {server:?} {state:?} {list:?}",
                    trace.name, step.sel, step.state, step.conns
                ));
            }
        }
    }
    let traces = traces.len();
    println!("replayed {traces} traces, {steps} steps, {} mismatches", mismatches.len());
    assert!(mismatches.is_empty(), "{}", mismatches.join("\n"));
    assert_eq!((traces, steps), EXPECTED);
}
