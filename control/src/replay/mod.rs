//! `uvs replay`: captures through the same worker and pipeline that a director has, without devices, clock or kernel.
//!
//! The same captures and the same configuration give the same frames and verdicts each time: the connection table's hash has
//! a fixed seed, and the time is the captures'. What the kernel would say (devices, addresses, routes, neighbours) is learnt
//! from the captures.

mod learn;
mod merge;

pub use learn::{Beginning, Device, Learner, Network};
pub use merge::{Arrival, InputError, Merged};

use crate::api::Refusal;
use crate::director::{defence, services};
use crate::options::RunOptions;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use uvs_conntrack::{Limits, SharedTable, TableError, TooManyHandles};
use uvs_engine::PortId;
use uvs_engine::counters::Counters;
use uvs_engine::link;
use uvs_engine::nexthop::{HopsFull, NextHops, Route, Routes, Target};
use uvs_engine::packet::ethernet::Mac;
use uvs_engine::pipeline::Pipeline;
use uvs_engine::service::Destinations;
use uvs_engine::snapshot::{Config, Port, Snapshot};
use uvs_engine::verdict::Neighbour;
use uvs_engine::worker::{Offline, Outcome};

/// The hash seed of each replay's connection table.
const SEED: [u64; 4] = [0x7576_7320, 0x7265_706c, 0x6179_2031, 0x3937_3033];

/// Devices that the captures of one replay may be of.
pub const MAX_DEVICES: usize = 64;

/// Why captures cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The connection table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The table has no handle left.
    #[error(transparent)]
    Handles(#[from] TooManyHandles),
    /// Memory or descriptors.
    #[error(transparent)]
    Link(#[from] link::Error),
    /// Too many link-layer addresses in the captures.
    #[error(transparent)]
    Hops(#[from] HopsFull),
    /// A service of the configuration was refused.
    #[error("the configuration cannot be applied")]
    Configuration(#[from] Refusal),
}

/// A director made of a configuration and of what captures tell about its network.
pub struct Replay {
    worker: Offline<Pipeline>,
}

impl Replay {
    /// A director without connections.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(options: &RunOptions, network: &Network, mtu: u32) -> Result<Self, ReplayError> {
        let limits = Limits {
            connections4: options.limits.connections_ipv4,
            connections6: options.limits.connections_ipv6,
            destinations: options.limits.destinations,
            ..Limits::default()
        };
        let table = SharedTable::create_seeded(limits, SEED)?;
        let counters = Counters::new(options.limits.destinations);
        let destinations = Destinations::new(table.clone(), counters.clone());
        let mut snapshot = Snapshot::empty(NextHops::new(u16::MAX));
        snapshot.on_remove = options.on_remove;
        snapshot.options = defence::with_memory_to_spare(&options.settings, options.rfc6040);
        snapshot.ports =
            network.devices.iter().zip(1..).map(|(device, index)| port(device, index, mtu)).collect();
        snapshot.routes = Arc::new(routes(network, &snapshot.hops)?);
        let mut timeouts = uvs_conntrack::Timeouts::clone(&snapshot.timeouts);
        timeouts.set(options.timeouts.tcp, options.timeouts.tcp_fin, options.timeouts.udp);
        snapshot.timeouts = Arc::new(timeouts);
        let source = |server| network.tunnels.get(&server).map(|beginning| beginning.address);
        services::offer(&mut snapshot, &destinations, options, source)?;
        let config = Config::new(snapshot);
        let pipeline = Pipeline::new(table.handle()?, destinations, counters.worker());
        let ports = u16::try_from(network.devices.len()).unwrap_or(u16::MAX);
        Ok(Replay { worker: Offline::new(&config, ports, pipeline)? })
    }

    /// Lets the captures' time become `now`. What became of frames that were held meanwhile.
    pub fn wait_until(&mut self, now: Duration) -> Outcome {
        self.worker.wait_until(now)
    }

    /// What becomes of a frame that comes in by device `port` now. A frame that the capture cut short is taken for one whose
    /// rest is zeroes, and what is sent of it is as long as that.
    pub fn receive(&mut self, port: PortId, mut bytes: Vec<u8>, wire_len: u32) -> Outcome {
        bytes.resize(bytes.len().max(wire_len.min(link::pcap::MAX_FRAME) as usize), 0);
        self.worker.receive(port, bytes)
    }
}

fn port(device: &Device, ifindex: u32, mtu: u32) -> Port {
    Port {
        ifindex,
        name: device.name.clone(),
        mac: device.mac,
        mtu,
        up: true,
        merged: true,
        addresses: [None; 2],
    }
}

/// Each address by the link-layer address it was seen with, as by a gateway: there are many hosts, but few gateways.
fn routes(network: &Network, hops: &NextHops) -> Result<Routes, HopsFull> {
    let gateway = |port: PortId, mac: Mac| {
        let [a, b, c, d, e, f] = mac.map(u16::from);
        let address =
            std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, a << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f);
        Neighbour { port, address: address.into() }
    };
    let hosts = network.hosts.iter();
    let mut routes = Routes::build(hosts.map(|(address, (port, mac))| Route {
        network: *address,
        length: if address.is_ipv4() { 32 } else { 128 },
        target: Target::Via(gateway(*port, *mac)),
    }));
    let gateways: BTreeSet<(PortId, Mac)> = network.hosts.values().copied().collect();
    for (port, mac) in gateways {
        routes = routes.with_neighbour(hops, gateway(port, mac), mac)?;
    }
    Ok(routes)
}
