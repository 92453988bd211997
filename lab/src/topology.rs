//! Client, director and real servers, each in a namespace of its own, wired and addressed.
//!
//! ```text
//! two arms                                         one arm
//!   client ── eth0  director  eth1 ── rs1            client ──┐            ┌── rs1
//!                             eth2 ── rs2                     switch (bridge)
//!                                                    director ┘            └── rs2
//! ```
//!
//! There may be a router between the client and the director or the switch: client ── eth0 router eth1 ── … Beyond a
//! router the real servers are when that is their gateway, and the director only a host on the client's network:
//!
//! ```text
//!   client ──┐
//!          switch (bridge) ── eth0  router  eth1 ── rs1
//! director ──┘                              eth2 ── rs2
//! ```

use crate::{Namespace, Prefix, Result, Veth, burst, has_ipv6};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// How the director is wired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arms {
    /// One device towards the client, one towards each real server: it is the servers' gateway.
    Two,
    /// One device on a switch where client and servers are too, all in one network.
    One,
    /// One device on a switch where client and a router are too; the real servers are behind the router, which is their
    /// gateway.
    Beyond,
}

/// What a topology should look like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How the director is wired.
    pub arms: Arms,
    /// Whether a router stands between the client and everybody else.
    pub router: bool,
    /// Whether the director, of two arms, has a route by the client to the clients of a [`burst`].
    pub burst: bool,
    /// How many real servers there are: rs1, rs2, …
    pub servers: usize,
    /// Queues of the pair between client and director; with one arm, of the director's pair alone: a switch sends by the queue that
    /// a flow's hash says what came by a pair of one queue, and by the first what came by one of two.
    pub client_queues: u32,
    /// Queues of the pairs between director and real servers.
    pub server_queues: u32,
    /// MTU of every device.
    pub mtu: u32,
    /// Beginning of the namespaces' names; chosen uniquely when absent.
    pub names: Option<String>,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            arms: Arms::Two,
            router: false,
            burst: false,
            servers: 2,
            client_queues: 1,
            server_queues: 1,
            mtu: 1500,
            names: None,
        }
    }
}

/// A standing topology. Dropping it removes it.
#[derive(Debug)]
pub struct Topology {
    /// Where requests come from. Its device is eth0.
    pub client: Namespace,
    /// Where the director runs. Its devices are eth0 (client side) and, with two arms, eth1, eth2, … (one per server).
    pub director: Namespace,
    /// The router, if there is one. Its devices are eth0 (client side) and eth1; with servers beyond it, eth1, eth2, … (one per
    /// server).
    pub router: Option<Namespace>,
    /// The real servers. Each one's device is eth0.
    pub servers: Vec<Namespace>,
    switch: Option<Namespace>,
    arms: Arms,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Topology {
    /// Makes and wires everything; returns when every device can be used.
    pub fn build(plan: &Plan) -> Result<Self> {
        let names = plan
            .names
            .clone()
            .unwrap_or_else(|| format!("uvs-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed)));
        let namespace = |role: &str| Namespace::create(format!("{names}-{role}"));
        let topology = Topology {
            client: namespace("client")?,
            director: namespace("director")?,
            router: (plan.router || plan.arms == Arms::Beyond).then(|| namespace("router")).transpose()?,
            servers: (1..=plan.servers).map(|n| namespace(&format!("rs{n}"))).collect::<Result<_>>()?,
            switch: (plan.arms != Arms::Two).then(|| namespace("switch")).transpose()?,
            arms: plan.arms,
        };
        forward(&topology.director)?;
        match &topology.switch {
            None => topology.wire_two_arms(plan)?,
            Some(switch) => topology.wire_one_arm(switch, plan)?,
        }
        topology.wait_ready()?;
        Ok(topology)
    }

    /// The client's address.
    pub fn client_address(&self, like: IpAddr) -> IpAddr {
        if self.router.is_some() && self.arms != Arms::Beyond {
            return beyond_router(like, 200, 0x200);
        }
        of_family(like, Ipv4Addr::new(203, 0, 113, 200), v6(0x113, 0x200))
    }

    /// The director's own address on the client's network.
    pub fn director_address(&self, like: IpAddr) -> IpAddr {
        of_family(like, Ipv4Addr::new(203, 0, 113, 1), v6(0x113, 1))
    }

    /// A virtual address: on the client's network, on no device until somebody puts it there.
    pub fn vip(&self) -> IpAddr {
        Ipv4Addr::new(203, 0, 113, 100).into()
    }

    /// The same for IPv6.
    pub fn vip6(&self) -> IpAddr {
        v6(0x113, 0x100).into()
    }

    /// The address of real server `index` (from 0).
    pub fn server_address(&self, index: usize, like: IpAddr) -> IpAddr {
        let number = small(index);
        match self.arms {
            Arms::Two | Arms::Beyond => in_server_network(index, like, 11 + number, 0x11 + u16::from(number)),
            Arms::One => {
                of_family(like, Ipv4Addr::new(203, 0, 113, 11 + number), v6(0x113, 0x11 + u16::from(number)))
            }
        }
    }

    /// The address of real server `index`'s gateway on its network: the director's, or the router's with servers beyond it.
    pub fn gateway(&self, index: usize, like: IpAddr) -> IpAddr {
        match self.arms {
            Arms::Two | Arms::Beyond => in_server_network(index, like, 100, 0x100),
            Arms::One => self.director_address(like),
        }
    }

    /// The director's devices.
    pub fn director_devices(&self) -> Vec<String> {
        let servers = if self.arms == Arms::Two { self.servers.len() } else { 0 };
        (0..=servers).map(|n| format!("eth{n}")).collect()
    }

    /// Leaves all of it standing, names included, when this process is gone.
    pub fn keep(self) {
        self.client.keep();
        self.director.keep();
        self.router.into_iter().for_each(Namespace::keep);
        self.servers.into_iter().for_each(Namespace::keep);
        self.switch.into_iter().for_each(Namespace::keep);
    }

    fn wire_two_arms(&self, plan: &Plan) -> Result<()> {
        match &self.router {
            Some(router) => self.wire_router(router, plan)?,
            None => wire(&self.director, "eth0", &self.client, "eth0", plan.client_queues, plan.mtu)?,
        }
        for family in families() {
            self.address(&self.client, "eth0", self.client_address(family))?;
            self.address(&self.director, "eth0", self.director_address(family))?;
            match &self.router {
                Some(router) => self.route(router, family, [&self.director])?,
                None => {
                    let gateway = self.director_address(family);
                    self.client.net().add_route(Prefix::everything(family), gateway)?;
                }
            }
        }
        if plan.burst {
            let client = self.client_address(Ipv4Addr::UNSPECIFIED.into());
            self.director.net().add_route(Prefix::new(burst::CLIENTS, 16), client)?;
        }
        self.wire_servers(&self.director, plan)
    }

    /// Each real server on a device of its gateway.
    fn wire_servers(&self, gateway: &Namespace, plan: &Plan) -> Result<()> {
        for (index, server) in self.servers.iter().enumerate() {
            let device = format!("eth{}", index + 1);
            wire(gateway, &device, server, "eth0", plan.server_queues, plan.mtu)?;
            for family in families() {
                self.address(gateway, &device, self.gateway(index, family))?;
                self.address(server, "eth0", self.server_address(index, family))?;
                server.net().add_route(Prefix::everything(family), self.gateway(index, family))?;
            }
        }
        Ok(())
    }

    fn wire_router(&self, router: &Namespace, plan: &Plan) -> Result<()> {
        self.wire_client(router, plan)?;
        wire(&self.director, "eth0", router, "eth1", plan.client_queues, plan.mtu)
    }

    fn wire_client(&self, router: &Namespace, plan: &Plan) -> Result<()> {
        forward(router)?;
        wire(router, "eth0", &self.client, "eth0", plan.client_queues, plan.mtu)
    }

    /// Gives the router its addresses of a family, and the client and `others` routes to each other through it.
    fn route<'a>(
        &self,
        router: &Namespace,
        family: IpAddr,
        others: impl IntoIterator<Item = &'a Namespace>,
    ) -> Result<()> {
        let client_side = beyond_router(family, 1, 1);
        let other_side = routers_address(family);
        self.address(router, "eth0", client_side)?;
        self.address(router, "eth1", other_side)?;
        let clients = Prefix::new(beyond_router(family, 0, 0), if family.is_ipv4() { 24 } else { 64 });
        for other in others {
            other.net().add_route(clients, other_side)?;
        }
        self.client.net().add_route(Prefix::everything(family), client_side)
    }

    fn wire_one_arm(&self, switch: &Namespace, plan: &Plan) -> Result<()> {
        switch.net().add_bridge("br0")?;
        switch.net().up("br0")?;
        let client = match &self.router {
            Some(router) if self.arms == Arms::One => {
                self.wire_client(router, plan)?;
                (router, "eth1", 1)
            }
            _ => (&self.client, "eth0", 1),
        };
        let others: Vec<&Namespace> = match &self.router {
            Some(router) if self.arms == Arms::Beyond => vec![router],
            _ => self.servers.iter().collect(),
        };
        let others = others.into_iter().map(|other| (other, "eth0", plan.server_queues));
        let hosts = [client, (&self.director, "eth0", plan.client_queues)].into_iter().chain(others);
        for (number, (host, device, queues)) in hosts.enumerate() {
            let port = port(number);
            wire(switch, &port, host, device, queues, plan.mtu)?;
            switch.net().join_bridge(&port, "br0")?;
        }
        for family in families() {
            self.address(&self.client, "eth0", self.client_address(family))?;
            self.address(&self.director, "eth0", self.director_address(family))?;
        }
        match &self.router {
            Some(router) if self.arms == Arms::Beyond => return self.wire_beyond(router, plan),
            _ => {}
        }
        for family in families() {
            for (index, server) in self.servers.iter().enumerate() {
                self.address(server, "eth0", self.server_address(index, family))?;
            }
            if let Some(router) = &self.router {
                self.route(router, family, self.servers.iter().chain([&self.director]))?;
            }
        }
        Ok(())
    }

    fn wire_beyond(&self, router: &Namespace, plan: &Plan) -> Result<()> {
        forward(router)?;
        for family in families() {
            let here = routers_address(family);
            self.address(router, "eth0", here)?;
            for index in 0..self.servers.len() {
                let length = if family.is_ipv4() { 24 } else { 64 };
                let network = Prefix::new(in_server_network(index, family, 0, 0), length);
                self.director.net().add_route(network, here)?;
            }
        }
        self.wire_servers(router, plan)
    }

    fn address(&self, namespace: &Namespace, device: &str, address: IpAddr) -> Result<()> {
        namespace.net().add_address(device, Prefix::new(address, if address.is_ipv4() { 24 } else { 64 }))
    }

    fn wait_ready(&self) -> Result<()> {
        let devices = self.director_devices();
        self.director.wait_ready(&devices.iter().map(String::as_str).collect::<Vec<_>>())?;
        self.client.wait_ready(&["eth0"])?;
        if let Some(router) = &self.router {
            let servers = if self.arms == Arms::Beyond { self.servers.len() } else { 1 };
            let devices: Vec<_> = (0..=servers).map(|number| format!("eth{number}")).collect();
            router.wait_ready(&devices.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        if let Some(switch) = &self.switch {
            let others = if self.arms == Arms::Beyond { 1 } else { self.servers.len() };
            let ports: Vec<_> = (0..2 + others).map(port).collect();
            switch.wait_ready(&ports.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        self.servers.iter().try_for_each(|server| server.wait_ready(&["eth0"]))
    }
}

/// An address of every family this kernel has.
fn families() -> impl Iterator<Item = IpAddr> {
    let v6 = has_ipv6().then_some(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    std::iter::once(IpAddr::V4(Ipv4Addr::UNSPECIFIED)).chain(v6)
}

/// A device of the switch.
fn port(number: usize) -> String {
    format!("port{number}")
}

/// Makes a pair between two namespaces and takes both ends up.
fn wire(
    here: &Namespace,
    device: &str,
    there: &Namespace,
    their_device: &str,
    queues: u32,
    mtu: u32,
) -> Result<()> {
    let (near, far) = (Veth { name: device, queues, mtu }, Veth { name: their_device, queues, mtu });
    here.net().add_veth(near, far, there.fd())?;
    here.net().up(device)?;
    there.net().up(their_device)
}

/// What every director, gateway and router sets: it forwards, and accepts that packets come and go by different devices.
fn forward(host: &Namespace) -> Result<()> {
    host.sysctl("net/ipv4/ip_forward", "1")?;
    if has_ipv6() {
        host.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    }
    for scope in ["all", "default"] {
        host.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        host.sysctl(&format!("net/ipv4/conf/{scope}/send_redirects"), "0")?;
    }
    Ok(())
}

/// A router's address on the director's network.
fn routers_address(like: IpAddr) -> IpAddr {
    of_family(like, Ipv4Addr::new(203, 0, 113, 2), v6(0x113, 2))
}

/// Behind a router the client's network is 198.51.100.0/24 and 2001:db8:51::/64.
fn beyond_router(like: IpAddr, host4: u8, host6: u16) -> IpAddr {
    of_family(like, Ipv4Addr::new(198, 51, 100, host4), v6(0x51, host6))
}

/// Real server `index` has a network of its own: 192.168.4.0/24, 192.168.5.0/24, … and 2001:db8:4::/64, …
fn in_server_network(index: usize, like: IpAddr, host4: u8, host6: u16) -> IpAddr {
    let network = 4 + small(index);
    of_family(like, Ipv4Addr::new(192, 168, network, host4), v6(network.into(), host6))
}

fn small(index: usize) -> u8 {
    u8::try_from(index).unwrap_or(u8::MAX).min(80)
}

fn v6(network: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, host)
}

fn of_family(like: IpAddr, v4: Ipv4Addr, v6: Ipv6Addr) -> IpAddr {
    if like.is_ipv4() { v4.into() } else { v6.into() }
}
