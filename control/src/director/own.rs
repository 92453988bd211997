//! The director as its own client, and as a real server of its own: what of this host's own packets comes to the workers.
//!
//! Connections of this host to a virtual address that it has itself leave by the loopback device, and the replies of a real server
//! that is this host by whichever leads to the client. From there a diversion ([`uvs_engine::steer::diversion`]) takes them. It
//! stands on the loopback device while there is a service, and on those held from the first real server that needs it.

use super::plane::{Claim, complain};
use crate::options::{OnCrash, RunOptions};
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use uvs_engine::forward::Method;
use uvs_engine::link::Device;
use uvs_engine::nexthop::{Routes, Target};
use uvs_engine::service::LocalPool;
use uvs_engine::snapshot::{OwnTraffic, Port, Snapshot};
use uvs_engine::steer::diversion::LOOPBACK;
use uvs_engine::steer::{Diversion, OwnDevice, Steering};
use uvs_engine::{Config, PortId};

/// The longest packet that the device takes: that of a TAP device.
const MTU: u32 = 65_521;

/// The device by which this host's own packets come, as the snapshot knows it.
pub(super) fn port(device: &OwnDevice) -> Port {
    Port {
        ifindex: device.ifindex(),
        name: device.name().to_owned(),
        mac: device.mac(),
        mtu: MTU,
        up: true,
        addresses: [None; 2],
        merged: false,
    }
}

/// What is to be taken for one claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// What a real server sends that is this host itself.
    Server(SocketAddr),
    /// What real servers by direct routing and tunnels send to this host itself.
    Replies,
}

/// This host's own traffic.
pub(super) struct Own {
    diversion: Diversion,
    timeout: Duration,
    /// The devices that are held.
    devices: Vec<u32>,
    claims: HashMap<Claim, Option<Taken>>,
    sources: BTreeSet<IpAddr>,
    failing: bool,
}

impl Own {
    /// Diverts nothing yet. What it diverts goes to the device `to`, and after this process's death nowhere for a while. A kernel that
    /// cannot divert does not keep the director from starting.
    pub(super) fn begin(
        steering: &Steering,
        to: &OwnDevice,
        options: &RunOptions,
        held: &[Device],
    ) -> Option<Self> {
        let timeout = match options.on_crash {
            OnCrash::Guard => options.guard_timeout.0.max(super::LEAST),
            OnCrash::Kernel => super::LEAST,
        };
        let devices = held.iter().map(|device| device.index).collect();
        let diversion = Diversion::new(steering, to.ifindex(), timeout);
        let refused = |error| {
            tracing::warn!("connections of this host's own to its services are not balanced: {error}");
        };
        let (claims, sources) = (HashMap::new(), BTreeSet::new());
        let diversion = diversion.map_err(refused).ok()?;
        Some(Own { diversion, timeout, devices, claims, sources, failing: false })
    }

    /// There is a service.
    pub(super) fn service_added(&mut self) {
        self.divert(&[LOOPBACK]);
    }

    /// A real server's packets are steered.
    pub(super) fn claim(&mut self, steering: &mut Steering, routes: &Routes, claim: Claim) {
        if self.claims.insert(claim, None).is_none() {
            self.update(steering, routes, claim);
        }
    }

    /// They are steered no more.
    pub(super) fn release(&mut self, steering: &mut Steering, claim: &Claim) {
        if let Some(Some(taken)) = self.claims.remove(claim) {
            give_up(steering, claim, taken);
        }
    }

    /// This host has other routes or addresses.
    pub(super) fn follow(&mut self, steering: &mut Steering, snapshot: &Snapshot) {
        let claims: Vec<Claim> = self.claims.keys().copied().collect();
        claims.into_iter().for_each(|claim| self.update(steering, &snapshot.routes, claim));
        let sources: BTreeSet<IpAddr> =
            snapshot.ports.iter().flat_map(|port| port.addresses).flatten().collect();
        for &gone in self.sources.difference(&sources) {
            complain(steering.remove_source(gone));
        }
        for &new in sources.difference(&self.sources) {
            complain(steering.add_source(new));
        }
        self.sources = sources;
    }

    /// Has workers use the ports of `pool` at the addresses that this host's own connections come from.
    pub(super) fn publish(&self, config: &Config, pool: impl Fn(IpAddr) -> Arc<LocalPool>) {
        let sources: Arc<[_]> = self.sources.iter().map(|address| (*address, pool(*address))).collect();
        config.publish(|snapshot| {
            if let Some(OwnTraffic { sources: used, .. }) = &mut snapshot.own_traffic {
                *used = sources;
            }
        });
    }

    /// Lets the diversion last for another while.
    pub(super) fn keep(&self) {
        complain(self.diversion.refresh(self.timeout));
    }

    /// Ends the diversion.
    pub(super) fn end(self) {
        complain(self.diversion.remove());
    }

    fn update(&mut self, steering: &mut Steering, routes: &Routes, claim: Claim) {
        let wanted = wanted(routes, &claim);
        let Some(taken) = self.claims.get_mut(&claim) else { return };
        let before = std::mem::replace(taken, wanted);
        if before == wanted {
            return;
        }
        if let Some(before) = before {
            give_up(steering, &claim, before);
        }
        let protocol = claim.service.protocol;
        match wanted {
            Some(Taken::Server(server)) => {
                complain(steering.add_own_server(server.ip(), server.port(), protocol));
                let devices = self.devices.clone();
                self.divert(&devices);
            }
            Some(Taken::Replies) => {
                complain(steering.add_reply(claim.service.address, claim.service.port, protocol));
            }
            None => {}
        }
    }

    /// Diverts what leaves by these devices, too.
    fn divert(&mut self, devices: &[u32]) {
        let diverted = devices.iter().try_for_each(|&ifindex| self.diversion.install(ifindex));
        if let Err(error) = &diverted
            && !self.failing
        {
            tracing::warn!("connections of this host's own to its services are not all balanced: {error}");
        }
        self.failing = diverted.is_err();
    }
}

/// What is to be taken for a claim as routes are now. Virtual addresses that this host does not have are none of its own
/// connections' concern; those go where its routes lead.
fn wanted(routes: &Routes, claim: &Claim) -> Option<Taken> {
    let is_here = |address| routes.target(address) == Target::Local;
    let service = SocketAddr::new(claim.service.address, claim.service.port);
    match claim.reply {
        // A socket on the virtual address itself answers its clients by itself.
        Some(server) if claim.method == Method::Nat && server == service => None,
        Some(server) => is_here(server.ip()).then_some(Taken::Server(server)),
        None => is_here(service.ip()).then_some(Taken::Replies),
    }
}

fn give_up(steering: &mut Steering, claim: &Claim, taken: Taken) {
    let protocol = claim.service.protocol;
    match taken {
        Taken::Server(server) => complain(steering.remove_own_server(server.ip(), server.port(), protocol)),
        Taken::Replies => {
            complain(steering.remove_reply(claim.service.address, claim.service.port, protocol));
        }
    }
}

/// The number of the device by which this host's own packets come: after those that are held.
pub(super) fn port_id(devices: usize) -> PortId {
    PortId(u16::try_from(devices).unwrap_or(u16::MAX))
}
