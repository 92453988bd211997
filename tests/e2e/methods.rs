//! The forwarding methods as tests set them up: what `ipvsadm` is told, and what real servers need for it.

use crate::director::{LIMIT, World, local};
use crate::harness::{Outcome, check};
use crate::real_server::Started;
use libtest_mimic::Failed;
use std::net::{IpAddr, SocketAddr};
use uvs_lab::http::Server;
use uvs_lab::{Arms, Plan, Prefix, udp, wait};

/// A forwarding method.
#[derive(Debug)]
pub(crate) struct Method {
    /// Its name in tests.
    pub(crate) name: &'static str,
    /// What `ipvsadm -a` is told.
    pub(crate) server: &'static str,
    /// What `uvs real-server start --method` is told, where packets come to real servers as they are for the virtual address.
    pub(crate) real_server: Option<&'static str>,
}

/// All of them.
pub(crate) static METHODS: [Method; 6] = [
    Method { name: "nat", server: "-m", real_server: None },
    Method { name: "fullnat", server: "-b", real_server: None },
    Method { name: "dr", server: "-g", real_server: Some("dr") },
    Method { name: "tun_ipip", server: "-i", real_server: Some("tun") },
    Method {
        name: "tun_gue",
        server: "-i --tun-type gue --tun-port 6080",
        real_server: Some("tun --tun-type gue --tun-port 6080"),
    },
    Method { name: "tun_gre", server: "-i --tun-type gre", real_server: Some("tun --tun-type gre") },
];

impl Method {
    /// Whether it is full NAT.
    pub(crate) fn is_full_nat(&self) -> bool {
        self.server == "-b"
    }

    /// The method of this name.
    pub(crate) fn named(name: &str) -> &'static Method {
        METHODS.iter().find(|method| method.name == name).unwrap_or(&METHODS[0])
    }

    /// Whether real servers see clients' own addresses.
    pub(crate) fn shows_clients(&self) -> bool {
        !self.is_full_nat()
    }

    /// Whether packets to real servers are carried in others.
    pub(crate) fn is_tunnel(&self) -> bool {
        self.server.starts_with("-i")
    }

    /// Two arms where replies come through the director, one where they go past it.
    pub(crate) fn plan(&self) -> Plan {
        let arms = if self.real_server.is_some() { Arms::One } else { Arms::Two };
        Plan { arms, ..Plan::default() }
    }
}

/// The port of a UDP service that answers.
pub(crate) const ECHO: u16 = 53;
/// The port of a UDP service at whose real server nothing listens.
pub(crate) const CLOSED: u16 = 54;
/// The port of services by full NAT whose real servers are told their clients' addresses by the PROXY protocol.
pub(crate) const PROXIED: u16 = 81;

/// Services of one virtual address by one method: HTTP on port 80 at all real servers, and UDP at the first.
pub(crate) struct Scene<'a> {
    pub(crate) world: &'a World,
    pub(crate) method: &'a Method,
    /// The clients' IP version.
    pub(crate) family: IpAddr,
    /// The real servers'.
    pub(crate) servers: IpAddr,
    arms: Arms,
    pub(crate) echo: udp::Echo,
    _http: Vec<Server>,
    _started: Vec<Started<'a>>,
}

impl<'a> Scene<'a> {
    /// Sets everything up for clients and real servers of these IP versions.
    pub(crate) fn set(
        world: &'a World,
        method: &'a Method,
        [family, of_servers]: [IpAddr; 2],
        arms: Arms,
    ) -> Result<Self, Failed> {
        let vip = world.vip(family);
        let servers = &world.topology.servers;
        let started = match method.real_server {
            Some(words) => servers.iter().map(|server| Started::start(server, vip, words)).collect(),
            None => Ok(Vec::new()),
        };
        let http =
            servers.iter().enumerate().filter(|_| method.real_server.is_some()).map(|(index, server)| {
                Server::start(server, world.service(family), &format!("rs{}", index + 1))
            });
        let scene = Scene {
            echo: udp::Echo::start(&servers[0], listens(world, method, [family, of_servers], ECHO), "rs1")?,
            _http: http.collect::<Result<_, _>>()?,
            _started: started?,
            world,
            method,
            family,
            servers: of_servers,
            arms,
        };
        if method.name == "nat" && arms == Arms::One {
            scene.come_back_through_the_director()?;
        }
        scene.serve("-t", 80, servers.len(), "")?;
        scene.serve("-u", ECHO, 1, "")?;
        scene.serve("-u", CLOSED, 1, "")?;
        Ok(scene)
    }

    /// A port of the virtual address.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.world.vip(self.family), port)
    }

    /// The address that real servers see clients at by full NAT: one that no host has, but on one segment the director's own,
    /// which they find there; beyond a router, too.
    pub(crate) fn local(&self) -> IpAddr {
        match self.arms {
            Arms::Two => local(self.servers),
            Arms::One | Arms::Beyond => self.world.topology.director_address(self.servers),
        }
    }

    /// A service of this port at so many real servers.
    pub(crate) fn serve(&self, kind: &str, port: u16, servers: usize, terms: &str) -> Outcome {
        let service = self.at(port);
        self.world.ipvsadm(&format!("-A {kind} {service} -s rr {terms}"))?;
        for index in 0..servers {
            let server = self.world.server(index, self.servers, port);
            self.world.ipvsadm(&format!("-a {kind} {service} -r {server} {}", self.method.server))?;
        }
        if self.method.is_full_nat() {
            self.world.ipvsadm(&format!("-P {kind} {service} -z {}", self.local()))?;
        }
        Ok(())
    }

    /// On one segment a real server would answer the client past the director, which by NAT nobody understands.
    fn come_back_through_the_director(&self) -> Outcome {
        let topology = &self.world.topology;
        let client = Prefix::host(topology.client_address(self.family));
        for server in &topology.servers {
            server.net().add_route(client, topology.director_address(self.family))?;
        }
        Ok(())
    }

    /// A client of the UDP service.
    pub(crate) fn datagrams(&self, port: u16) -> Result<udp::Client, Failed> {
        Ok(udp::Client::connect(&self.world.topology.client, self.at(port))?)
    }

    /// A client that is gone when its answer comes: its kernel says so to the virtual address, and the real server is told.
    pub(crate) fn the_server_learns_that_a_client_is_gone(&self) -> Outcome {
        let before = self.echo.refusals();
        let mut failed = None;
        wait::until("the real server to learn that a client is gone", LIMIT, || {
            failed = self.datagrams(ECHO).and_then(|client| Ok(client.say(b"bye")?)).err();
            failed.is_some() || self.echo.refusals() > before
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// Nothing was dropped; but packets that do not fit a tunnel or, longer, the other IP version, of which their sender is told.
    pub(crate) fn lost_nothing(&self) -> Outcome {
        let grows = self.method.is_tunnel() || self.family.is_ipv4() != self.servers.is_ipv4();
        let reasons: &[&str] = if grows { &["too_big"] } else { &[] };
        let drops = self.world.status()?.drops;
        let lost: Vec<_> =
            drops.iter().filter(|drop| drop.count > 0 && !reasons.contains(&&*drop.reason)).collect();
        check(lost.is_empty(), format!("frames were dropped: {lost:?}"))
    }
}

/// Where the first real server listens for a service's packets.
fn listens(world: &World, method: &Method, [clients, servers]: [IpAddr; 2], port: u16) -> SocketAddr {
    match method.real_server {
        Some(_) => SocketAddr::new(world.vip(clients), port),
        None => world.server(0, servers, port),
    }
}
