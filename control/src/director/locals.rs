//! The local addresses of full NAT: which services have which, the ports to use there, and those that are leaving.
//!
//! An address that is taken from a service leaves: new connections do not use it, the ones it has go on, and what brings their
//! replies in stays in place until they are gone.

use super::reserve;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use uvs_engine::service::{Destinations, LocalPool, Ports, ServiceKey};

/// The local addresses of all services.
pub(super) struct Locals {
    destinations: Arc<Destinations>,
    services: HashMap<ServiceKey, Pool>,
    leaving: Vec<(ServiceKey, IpAddr)>,
    /// The addresses of this host, where its own sockets have ports, too.
    own: BTreeSet<IpAddr>,
    host: HostPorts,
    /// Whether ports are reserved for use at addresses of this host, and whether that failed, which is said once.
    reserving: bool,
    failing: bool,
    /// Connections that found no port, as far as that was said.
    told: HashMap<IpAddr, u64>,
}

#[derive(Default)]
struct Pool {
    ports: Ports,
    addresses: Vec<IpAddr>,
}

impl Locals {
    pub(super) fn new(destinations: Arc<Destinations>, reserving: bool) -> Self {
        Locals {
            destinations,
            services: HashMap::new(),
            leaving: Vec::new(),
            own: BTreeSet::new(),
            host: HostPorts::read(),
            reserving,
            failing: false,
            told: HashMap::new(),
        }
    }

    /// A service uses these ports at its local addresses: the configured ones, or all that full NAT uses.
    pub(super) fn set_ports(&mut self, service: ServiceKey, ports: Option<(u16, u16)>) {
        let ports = ports.map_or_else(Ports::default, |(first, last)| Ports::new([first..=last]));
        self.services.entry(service).or_default().ports = ports;
    }

    /// A service gets a local address. Says whether it is new; otherwise it was about to leave.
    pub(super) fn add(&mut self, service: ServiceKey, address: IpAddr) -> bool {
        self.services.entry(service).or_default().addresses.push(address);
        let before = self.leaving.len();
        self.leaving.retain(|leaving| *leaving != (service, address));
        self.leaving.len() == before
    }

    /// A local address leaves a service.
    pub(super) fn remove(&mut self, service: ServiceKey, address: IpAddr) {
        if let Some(pool) = self.services.get_mut(&service) {
            pool.addresses.retain(|own| *own != address);
            self.leaving.push((service, address));
        }
    }

    /// A service is gone, and its local addresses leave.
    pub(super) fn remove_service(&mut self, service: ServiceKey) {
        let pool = self.services.remove(&service).unwrap_or_default();
        self.leaving.extend(pool.addresses.into_iter().map(|address| (service, address)));
    }

    /// What a service's new connections choose from.
    pub(super) fn pool(&self, service: ServiceKey) -> Arc<LocalPool> {
        let Some(Pool { ports, addresses }) = self.services.get(&service) else { return Arc::default() };
        let usable = |address: &IpAddr| {
            let ports = if self.own.contains(address) { self.host.without(ports) } else { ports.clone() };
            (self.destinations.locals().enter(*address), ports)
        };
        LocalPool::new(addresses.iter().map(usable).collect())
    }

    /// What connections of this host's own to services choose from at one of its addresses.
    pub(super) fn own_pool(&self, address: IpAddr) -> Arc<LocalPool> {
        let local = self.destinations.locals().enter(address);
        LocalPool::new(vec![(local, self.host.without(&Ports::default()))])
    }

    /// The services that have local addresses.
    pub(super) fn services(&self) -> impl Iterator<Item = ServiceKey> {
        self.services.iter().filter(|(_, pool)| !pool.addresses.is_empty()).map(|(key, _)| *key)
    }

    /// Whether a service has a local address of this family.
    pub(super) fn has(&self, service: ServiceKey, ipv4: bool) -> bool {
        self.services
            .get(&service)
            .is_some_and(|pool| pool.addresses.iter().any(|address| address.is_ipv4() == ipv4))
    }

    /// The addresses that are leaving a service.
    pub(super) fn leaving(&self, service: ServiceKey) -> impl Iterator<Item = IpAddr> {
        self.leaving.iter().filter(move |(key, _)| *key == service).map(|(_, address)| *address)
    }

    /// Forgets the addresses that have left, and returns them: once for each service they left.
    pub(super) fn take_idle(&mut self) -> Vec<IpAddr> {
        let Locals { destinations, services, leaving, told, .. } = self;
        let used = |address: &IpAddr| services.values().any(|pool| pool.addresses.contains(address));
        let busy = |address: &IpAddr| {
            destinations.locals().get(address).is_some_and(|local| local.connections() > 0)
        };
        let gone: Vec<IpAddr> = leaving
            .extract_if(.., |(_, address)| used(address) || !busy(address))
            .map(|(_, address)| address)
            .collect();
        for address in gone.iter().filter(|address| !used(address)) {
            destinations.locals().forget(address);
            told.remove(address);
        }
        gone
    }

    /// This host has other addresses.
    pub(super) fn set_own(&mut self, own: BTreeSet<IpAddr>) {
        self.own = own;
    }

    /// Reserves the ports that are needed, and looks whether the kernel gives its own sockets other ports than it did. Says
    /// whether.
    pub(super) fn look_at_host(&mut self) -> bool {
        if self.reserving {
            self.reserve();
        }
        let host = HostPorts::read();
        let changed = self.host != host;
        self.host = host;
        changed
    }

    /// Keeps the ports that services use at addresses of this host from its own sockets.
    fn reserve(&mut self) {
        let here =
            self.services.values().filter(|pool| pool.addresses.iter().any(|own| self.own.contains(own)));
        let Some(range) = HostPorts::range() else { return };
        let within =
            |ports: &RangeInclusive<u16>| *ports.start().max(range.start())..=*ports.end().min(range.end());
        let wanted = Ports::new(here.flat_map(|pool| pool.ports.ranges().iter().map(within)));
        let reserved = reserve::reserve(wanted.ranges());
        if let Err(error) = &reserved
            && !self.failing
        {
            tracing::warn!(
                "no ports were reserved for full NAT, which leaves the host's own alone instead: {error}"
            );
        }
        self.failing = reserved.is_err();
    }

    /// The ports that the kernel gives its own sockets.
    pub(super) fn host_ports(&self) -> &[RangeInclusive<u16>] {
        self.host.0.ranges()
    }

    /// Says of every address where connections found no port since this was last called.
    pub(super) fn tell_exhausted(&mut self) {
        let addresses: BTreeSet<_> =
            self.services.values().flat_map(|pool| pool.addresses.iter().copied()).collect();
        for address in addresses {
            let Some(local) = self.destinations.locals().get(&address) else { continue };
            let told = self.told.entry(address).or_default();
            if local.exhausted() > *told {
                *told = local.exhausted();
                tracing::warn!(
                    "{address} has no free port towards a real server ({} connections use it): add a local address \
                     with `ipvsadm -P -t SERVICE -z ADDRESS`",
                    local.connections()
                );
            }
        }
    }
}

/// The ports that the kernel may give to sockets of this host that ask for any.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostPorts(Ports);

impl HostPorts {
    /// As the kernel says. Its own default, when it does not.
    fn read() -> Self {
        let reserved = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports");
        HostPorts::of(HostPorts::range().unwrap_or(32768..=60999), &reserved.unwrap_or_default())
    }

    /// The kernel's range, reserved ports included.
    fn range() -> Option<RangeInclusive<u16>> {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
        let mut words = text.split_whitespace().map(str::parse);
        Some(words.next()?.ok()?..=words.next()?.ok()?)
    }

    /// `range` but for the ports `reserved`, in the kernel's notation.
    fn of(range: RangeInclusive<u16>, reserved: &str) -> Self {
        HostPorts(reserve::ranges(reserved).fold(Ports::new([range]), |left, taken| left.without(&taken)))
    }

    /// Those that are left of `ports` at an address of this host.
    fn without(&self, ports: &Ports) -> Ports {
        self.0.ranges().iter().fold(ports.clone(), |left, taken| left.without(taken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_the_hosts_own_sockets_are_left_out_unless_reserved() {
        let all = Ports::new([5000..=65535]);
        for (reserved, expected) in [
            ("\n", vec![5000..=32767, 61000..=65535]),
            ("40000-40009,50000\n", vec![5000..=32767, 40000..=40009, 50000..=50000, 61000..=65535]),
            ("1-65535", vec![5000..=65535]),
        ] {
            assert_eq!(HostPorts::of(32768..=60999, reserved).without(&all).ranges(), expected, "{reserved}");
        }
    }
}
