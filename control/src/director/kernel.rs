//! What a director knows of the kernel and asks of it: devices, addresses, routes, neighbours, and the virtual addresses
//! it puts on devices.

use crate::api::NextHopStatus;
use crate::neighbours::Neighbours;
use crate::netlink::{
    Client, Event, Monitor, NetlinkError, PortChange, Routing, follow_addresses, follow_ports,
};
use crate::vips::{Assigned, Host, Reach, Vips};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use uvs_engine::Config;
use uvs_engine::verdict::Neighbour;

/// What a look found changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changes {
    /// Addresses of this host.
    pub(super) addresses: bool,
    /// Routes.
    pub(super) routes: bool,
    /// Routes or neighbours: frames may wait for one.
    pub(super) next_hops: bool,
}

/// The kernel as the control thread and the commands share it.
#[derive(Clone)]
pub(super) struct Kernel(Arc<Mutex<State>>);

struct State {
    config: Arc<Config>,
    monitor: Monitor,
    routing: Routing,
    neighbours: Neighbours,
    vips: Option<Vips>,
    reach: Reach,
    held: Vec<u32>,
    /// Whether the last look failed, which is said once.
    failing: bool,
}

impl Kernel {
    /// Follows the kernel for the devices of `config`'s snapshot. With `vips`, virtual addresses are put on devices.
    pub(super) fn open(config: Arc<Config>, vips: Option<Vips>) -> Result<Self, NetlinkError> {
        let now = Instant::now();
        let state = State {
            monitor: Monitor::open()?,
            routing: Routing::open(config.clone(), now)?,
            neighbours: Neighbours::new(config.clone(), Client::open()?, now),
            vips,
            reach: Reach::default(),
            failing: false,
            held: held(&config),
            config,
        };
        state.follow_addresses();
        Ok(Kernel(Arc::new(Mutex::new(state))))
    }

    /// Becomes readable when the kernel has news.
    pub(super) fn descriptor(&self) -> std::io::Result<OwnedFd> {
        self.state().monitor.as_fd().try_clone_to_owned()
    }

    /// The addresses this host has.
    pub(super) fn local_addresses(&self) -> BTreeSet<IpAddr> {
        self.state().monitor.addresses().map(|address| address.address).collect()
    }

    /// Whether `address` is that of all hosts of a subnet of this host.
    pub(super) fn is_broadcast(&self, address: IpAddr) -> bool {
        let state = self.state();
        state.monitor.addresses().any(|host| host.broadcast().is_some_and(|broadcast| broadcast == address))
    }

    /// Whether one of the devices held is still there.
    pub(super) fn has_devices(&self) -> bool {
        let state = self.state();
        state.held.iter().any(|ifindex| state.monitor.link(*ifindex).is_some())
    }

    /// When the next [`Kernel::look`] is due though the kernel has no news.
    pub(super) fn due(&self) -> Instant {
        let state = self.state();
        let vips = state.vips.as_ref().and_then(Vips::due);
        let others = [state.routing.due(), state.reach.due(), vips];
        others.into_iter().flatten().fold(state.neighbours.due(), Instant::min)
    }

    /// The first look, which takes over all there is.
    ///
    /// # Errors
    /// What the kernel does not tell.
    pub(super) fn survey(&self) -> Result<(), NetlinkError> {
        let mut failures = Vec::new();
        self.state().look(Instant::now(), &mut failures);
        failures.into_iter().next().map_or(Ok(()), Err)
    }

    /// Takes over what the kernel changed since the last look, and does what is due. What cannot be learnt now is said, and
    /// asked for again: what is known goes on being used.
    pub(super) fn look(&self) -> Changes {
        let mut state = self.state();
        let mut failures = Vec::new();
        let changes = state.look(Instant::now(), &mut failures);
        let failing = !failures.is_empty() || state.failing && state.routing.due().is_some();
        match (state.failing, failing) {
            (false, true) => failures.iter().for_each(|failure| {
                tracing::warn!("{failure}; until the kernel answers, what it said last goes on being used");
            }),
            (true, false) => tracing::info!("the kernel answers again"),
            _ => {}
        }
        state.failing = failing;
        changes
    }

    /// What was done about next hops so far.
    pub(super) fn next_hops(&self) -> NextHopStatus {
        self.state().neighbours.stats()
    }

    /// A worker holds frames for this neighbour.
    pub(super) fn resolve(&self, neighbour: Neighbour) {
        self.state().neighbours.request(neighbour, Instant::now());
    }

    /// A virtual service has a real server at this address: its next hop is resolved ahead.
    pub(super) fn server_added(&self, server: IpAddr) {
        self.state().neighbours.watch(server);
    }

    /// Ends one [`Kernel::server_added`].
    pub(super) fn server_removed(&self, server: IpAddr) {
        self.state().neighbours.unwatch(server);
    }

    /// There is a virtual service at this address.
    pub(super) fn service_added(&self, vip: IpAddr) {
        let mut state = self.state();
        let State { monitor, vips, reach, held, .. } = &mut *state;
        let now = Instant::now();
        reach.watch(vip, now);
        let Some(vips) = vips else { return };
        match vips.assign(vip, &Host::of(monitor, held), now) {
            Ok(Assigned::Added(ifindex)) => {
                let device = monitor.link(ifindex).map_or("a device", |link| &link.name);
                tracing::info!("{vip} is on {device} now");
            }
            Ok(Assigned::Found(_) | Assigned::Kept(_)) => {}
            Err(error) => tracing::warn!("{vip} was not assigned: {error}"),
        }
    }

    /// Ends one [`Kernel::service_added`].
    pub(super) fn service_removed(&self, vip: IpAddr) {
        let mut state = self.state();
        state.reach.unwatch(vip);
        if let Some(Err(error)) = state.vips.as_mut().map(|vips| vips.withdraw(vip)) {
            tracing::warn!("{vip} was not taken off: {error}");
        }
    }

    /// Takes the virtual addresses off the devices.
    pub(super) fn withdraw_all(&self) {
        self.state().vips.take();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn follow_addresses(&self) {
        let addresses: Vec<_> = self.monitor.addresses().copied().collect();
        follow_addresses(&self.config, &addresses);
    }

    fn look(&mut self, now: Instant, failures: &mut Vec<NetlinkError>) -> Changes {
        let events = self.monitor.read().unwrap_or_else(|failure| {
            failures.push(failure);
            Vec::new()
        });
        tell(&self.config, &follow_ports(&self.config, &events));
        let resolved = self.neighbours.apply(&events);
        if events.contains(&Event::RoutesChanged) {
            self.routing.changed(now);
        }
        let rerouted = self.routing.update(now).unwrap_or_else(|failure| {
            failures.push(failure);
            false
        });
        if rerouted {
            self.neighbours.routes_changed(self.routing.current().gateways());
        }
        self.neighbours.tick(now);
        let moved = |event: &Event| matches!(event, Event::AddressAdded(_) | Event::AddressRemoved(_));
        let rewired = |event: &Event| matches!(event, Event::LinkChanged(_) | Event::LinkGone { .. });
        let addresses = events.iter().any(moved);
        if addresses {
            self.follow_addresses();
        }
        if let Some(vips) = &mut self.vips {
            let changed = addresses || events.iter().any(rewired);
            if changed || vips.due().is_some_and(|due| now >= due) {
                let host = Host::of(&self.monitor, &self.held);
                vips.follow(&events, &host, now);
                vips.tick(&host, now);
            }
        }
        if addresses || events.iter().any(rewired) || self.reach.due().is_some_and(|due| now >= due) {
            for objection in self.reach.objections(&Host::of(&self.monitor, &self.held), now) {
                tracing::warn!("{objection}");
            }
        }
        Changes { addresses, routes: rerouted, next_hops: rerouted || resolved }
    }
}

/// The devices that are held: all of the snapshot's but the one that this host's own packets come by.
fn held(config: &Config) -> Vec<u32> {
    let snapshot = config.load();
    let own = snapshot.own_traffic.as_ref().map(|own| usize::from(own.port.0));
    let ports = snapshot.ports.iter().enumerate().filter(|(number, _)| Some(*number) != own);
    ports.map(|(_, port)| port.ifindex).collect()
}

/// The address of this host that the kernel sends packets of its own to `destination` from. None: it has no way there, or no
/// address of the family.
pub(super) fn source_towards(destination: IpAddr) -> Option<IpAddr> {
    /// Any will do: nothing is sent.
    const PORT: u16 = 9;
    let any: IpAddr = match destination {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((destination, PORT)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_unspecified())
}

/// Says what became of devices.
fn tell(config: &Config, changes: &[PortChange]) {
    let snapshot = config.load();
    for change in changes {
        match change {
            PortChange::Changed(id) => {
                if let Some(port) = snapshot.ports.get(usize::from(id.0)) {
                    let state = if port.up { "up" } else { "down" };
                    tracing::info!("{} is {state}, MTU {}", port.name, port.mtu);
                }
            }
            PortChange::Gone(id) => {
                if let Some(port) = snapshot.ports.get(usize::from(id.0)) {
                    tracing::error!(
                        "{} is gone: start this director again when the device is back",
                        port.name
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use uvs_engine::nexthop::NextHops;
    use uvs_engine::snapshot::Snapshot;

    #[test]
    fn what_cannot_be_learnt_now_is_learnt_later() {
        let config = Config::new(Snapshot::empty(NextHops::new(8)));
        let kernel = Kernel::open(config, None).unwrap();
        kernel.survey().unwrap();
        let devices = kernel.state().monitor.links().count();
        assert!(devices > 0, "there is no device, not even lo");
        {
            let mut state = kernel.state();
            state.monitor.deafen(true);
            state.routing.deafen(true, Instant::now());
        }
        for _ in 0..2 {
            let changes = kernel.look();
            assert!(!changes.addresses && !changes.next_hops);
            assert!(kernel.state().failing);
            assert_eq!(kernel.state().monitor.links().count(), devices, "what was known is forgotten");
        }
        assert!(kernel.due() <= Instant::now() + Duration::from_secs(2), "nothing is tried again");
        kernel.survey().unwrap_err();
        {
            let mut state = kernel.state();
            state.monitor.deafen(false);
            state.routing.deafen(false, Instant::now());
        }
        kernel.look();
        assert!(!kernel.state().failing);
    }
}
