//! The parts of a director that follow the kernel, driven as the control thread drives them.

use crate::support::{LIMIT, index};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uvs_control::neighbours::Neighbours;
use uvs_control::netlink::{Client, Event, Monitor, PortChange, Routing, follow_ports};
use uvs_engine::PortId;
use uvs_engine::nexthop::{NextHops, Resolved};
use uvs_engine::snapshot::{Config, Port, Snapshot};
use uvs_engine::verdict::Neighbour;

pub(crate) struct Director {
    pub(crate) config: Arc<Config>,
    pub(crate) monitor: Monitor,
    pub(crate) routing: Routing,
    pub(crate) neighbours: Neighbours,
    pub(crate) port_changes: Vec<PortChange>,
    skipped: Duration,
}

impl Director {
    /// Holds `devices` of the calling thread's namespace, in this order, with room for `hops` next hops.
    pub(crate) fn holding(devices: &[&str], hops: u16) -> Self {
        let mut monitor = Monitor::open().unwrap();
        monitor.read().unwrap();
        let port = |name: &&str| Port::from(monitor.link(index(name)).unwrap());
        let mut snapshot = Snapshot::empty(NextHops::new(hops));
        snapshot.ports = devices.iter().map(port).collect();
        let config = Config::new(snapshot);
        let now = Instant::now();
        let mut director = Director {
            monitor,
            routing: Routing::open(config.clone(), now).unwrap(),
            neighbours: Neighbours::new(config.clone(), Client::open().unwrap(), now),
            config,
            port_changes: Vec::new(),
            skipped: Duration::ZERO,
        };
        director.neighbours.ports_changed(&director.monitor);
        director.turn(Duration::ZERO);
        director
    }

    /// One turn of the control thread, waiting for news `wait` at most. What it learnt.
    pub(crate) fn turn(&mut self, wait: Duration) -> Vec<Event> {
        let mut fds = [PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(wait).unwrap()).unwrap();
        let events = self.monitor.read().unwrap();
        let now = self.now();
        self.port_changes.extend(follow_ports(&self.config, &events));
        self.neighbours.apply(&events);
        if events.contains(&Event::RoutesChanged) {
            self.routing.changed(now);
        }
        if self.routing.update(now).unwrap() {
            self.neighbours.routes_changed(self.routing.current().gateways());
        }
        self.neighbours.tick(now);
        events
    }

    /// Lets the director believe that time has passed.
    pub(crate) fn skip(&mut self, time: Duration) {
        self.skipped += time;
    }

    fn now(&self) -> Instant {
        Instant::now() + self.skipped
    }

    /// Turns until `done`.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + LIMIT;
        while !done(self) {
            assert!(Instant::now() < end, "waited in vain: {what}");
            self.turn(Duration::from_millis(5));
        }
    }

    /// Where a worker would send a packet to `destination`.
    pub(crate) fn resolve(&self, destination: &str) -> Resolved {
        self.config.load().routes.resolve(destination.parse().unwrap())
    }

    /// Port and link-layer address for a packet to `destination`; marks the next hop used, as a worker does.
    pub(crate) fn hop(&self, destination: &str) -> Option<(u16, [u8; 6])> {
        match self.resolve(destination) {
            Resolved::Hop(id) => self.config.load().hops.get(id).map(|hop| (hop.port.0, hop.mac)),
            _ => None,
        }
    }

    /// A worker holds a frame to `destination` and says so.
    pub(crate) fn request(&mut self, destination: &str) {
        let neighbour = self.config.load().routes.neighbour(destination.parse().unwrap()).unwrap();
        self.neighbours.request(neighbour, self.now());
    }
}

pub(crate) fn neighbour(port: u16, address: &str) -> Neighbour {
    let address: IpAddr = address.parse().unwrap();
    Neighbour { port: PortId(port), address }
}
