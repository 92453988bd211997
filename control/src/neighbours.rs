//! Keeps the workers' next hops in step with the kernel's neighbour table, and the kernel at asking for those needed.
//!
//! - Every neighbour that the kernel has resolved on a device of ours gets a place among the snapshot's next hops; its
//!   link-layer address changes in place. One that fails, or that the kernel forgets, keeps its place, empty: frames to
//!   it are held and it is asked for again. Places of the silent and the unused are given up when room is needed.
//! - Gateways and watched addresses (real servers) are resolved ahead, and asked for again while they do not answer.
//! - The kernel does not see the frames that workers send, so it would let neighbours in use grow stale and never notice
//!   that a server was replaced. Those in use are confirmed whenever the kernel calls them stale.

use crate::api::NextHopStatus;
use crate::netlink::{Client, Event, Monitor, NeighbourEntry, NeighbourState};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uvs_engine::PortId;
use uvs_engine::nexthop::{Hop, Routes};
use uvs_engine::snapshot::{Config, Snapshot};
use uvs_engine::verdict::Neighbour;

/// How often neighbours are looked after.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two looks for stale neighbours in use. The kernel's own patience with one in use is five seconds.
const FRESHEN_TICKS: u32 = 5;
/// Ticks between two questions for a neighbour that does not answer: doubled each time up to this. Each question is
/// three packets of the kernel's, a second apart.
const PATIENCE_TICKS: u32 = 8;
/// How many neighbours workers may have asked for within a tick. More than that is a scan.
const ASKS_PER_TICK: usize = 1024;

/// Questions for a neighbour that is to be known ahead of the first packet.
#[derive(Clone, Copy, Debug)]
struct Asking {
    /// Ticks till the next question.
    wait: u32,
    /// Ticks from that one to the one after.
    patience: u32,
}

impl Asking {
    const NEW: Asking = Asking { wait: 1, patience: 1 };
}

/// See the module.
#[derive(Debug)]
pub struct Neighbours {
    config: Arc<Config>,
    client: Client,
    known: HashMap<Neighbour, NeighbourEntry>,
    watched: HashMap<IpAddr, usize>,
    gateways: BTreeSet<Neighbour>,
    ahead: BTreeMap<Neighbour, Asking>,
    asked: HashMap<Neighbour, Instant>,
    next_tick: Instant,
    ticks: u32,
    stats: NextHopStatus,
}

impl Neighbours {
    /// Knows nothing yet: the monitor's first events tell.
    pub fn new(config: Arc<Config>, client: Client, now: Instant) -> Self {
        Neighbours {
            config,
            client,
            known: HashMap::new(),
            watched: HashMap::new(),
            gateways: BTreeSet::new(),
            ahead: BTreeMap::new(),
            asked: HashMap::new(),
            next_tick: now + TICK,
            ticks: 0,
            stats: NextHopStatus::default(),
        }
    }

    /// Takes over what the kernel says of neighbours on the snapshot's ports. Publishes at most one snapshot: when a
    /// neighbour was resolved, so that workers look at the frames they hold; `true` then.
    pub fn apply(&mut self, events: &[Event]) -> bool {
        let ports = ports(&self.config.load());
        let mut changed = BTreeMap::new();
        for event in events {
            let (ifindex, address, entry) = match event {
                Event::NeighbourChanged(entry) => (entry.ifindex, entry.address, Some(*entry)),
                Event::NeighbourGone { ifindex, address } => (*ifindex, *address, None),
                _ => continue,
            };
            let Some(port) = ports.get(&ifindex).filter(|_| is_unicast(address)) else { continue };
            let neighbour = Neighbour { port: *port, address };
            changed.entry(neighbour).or_insert_with(|| self.is_resolved(&neighbour));
            match entry {
                Some(entry) => self.known.insert(neighbour, entry),
                None => self.known.remove(&neighbour),
            };
        }
        self.publish(&changed)
    }

    /// The snapshot's ports have changed: takes over what the monitor knows of neighbours on them.
    pub fn ports_changed(&mut self, monitor: &Monitor) {
        let entries: Vec<Event> = monitor.neighbours().copied().map(Event::NeighbourChanged).collect();
        self.known.clear();
        self.apply(&entries);
    }

    /// Resolves the next hop of `address`, a real server's, ahead of its first packet and keeps it resolved. Counted:
    /// the same address may be watched for several services.
    pub fn watch(&mut self, address: IpAddr) {
        let watchers = self.watched.entry(address).or_default();
        *watchers += 1;
        if *watchers == 1 {
            let neighbour = self.config.load().routes.neighbour(address);
            self.look_ahead(neighbour.into_iter().collect());
        }
    }

    /// Ends one [`Neighbours::watch`].
    pub fn unwatch(&mut self, address: IpAddr) {
        match self.watched.get_mut(&address) {
            Some(watchers) if *watchers > 1 => *watchers -= 1,
            Some(_) => {
                self.watched.remove(&address);
                // Its gateway may serve others; who is needed still is found anew with the next change of routes.
                let direct = self.config.load().routes.neighbour(address).filter(|n| n.address == address);
                if let Some(neighbour) = direct.filter(|neighbour| !self.gateways.contains(neighbour)) {
                    self.ahead.remove(&neighbour);
                }
            }
            None => {}
        }
    }

    /// The snapshot's routes have changed; `gateways` are those on links of ours.
    pub fn routes_changed(&mut self, gateways: BTreeSet<Neighbour>) {
        let routes = self.config.load().routes.clone();
        let mut needed = gateways.clone();
        needed.extend(self.watched.keys().filter_map(|address| routes.neighbour(*address)));
        self.gateways = gateways;
        self.ahead.retain(|neighbour, _| needed.contains(neighbour));
        self.look_ahead(needed);
    }

    /// A worker holds a frame for `neighbour`. The kernel is asked at most once a second for the same one.
    pub fn request(&mut self, neighbour: Neighbour, now: Instant) {
        if self.is_resolved(&neighbour) {
            // It may have had to give up its place.
            self.publish(&BTreeMap::from([(neighbour, true)]));
            return;
        }
        if self.asked.get(&neighbour).is_some_and(|asked| now < *asked + TICK) {
            return;
        }
        if self.asked.len() >= ASKS_PER_TICK {
            self.stats.passed_over += 1;
            return;
        }
        self.asked.insert(neighbour, now);
        self.ask(neighbour);
    }

    /// When [`Neighbours::tick`] wants to be called.
    pub fn due(&self) -> Instant {
        self.next_tick
    }

    /// Looks after neighbours, once a second whatever `now` says.
    pub fn tick(&mut self, now: Instant) {
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        self.asked.retain(|_, asked| now < *asked + TICK);
        self.ask_again();
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(FRESHEN_TICKS) {
            self.freshen();
        }
    }

    /// What was done so far.
    pub fn stats(&self) -> NextHopStatus {
        self.stats
    }

    fn look_ahead(&mut self, needed: BTreeSet<Neighbour>) {
        for neighbour in needed {
            let new = match self.ahead.entry(neighbour) {
                Entry::Vacant(place) => {
                    place.insert(Asking::NEW);
                    true
                }
                Entry::Occupied(_) => false,
            };
            if new && !self.is_resolved(&neighbour) {
                self.ask(neighbour);
            }
        }
    }

    fn ask_again(&mut self) {
        let mut silent = Vec::new();
        for (neighbour, asking) in &mut self.ahead {
            if self.known.get(neighbour).is_some_and(|entry| entry.resolved().is_some()) {
                *asking = Asking::NEW;
                continue;
            }
            asking.wait = asking.wait.saturating_sub(1);
            if asking.wait == 0 {
                asking.patience = (asking.patience * 2).min(PATIENCE_TICKS);
                asking.wait = asking.patience;
                silent.push(*neighbour);
            }
        }
        silent.into_iter().for_each(|neighbour| self.ask(neighbour));
    }

    /// Has the stale neighbours that are in use confirmed.
    fn freshen(&mut self) {
        let snapshot = self.config.load();
        let stale = self.known.iter().filter(|(_, entry)| entry.state == NeighbourState::Stale);
        let in_use = stale.filter(|(neighbour, _)| {
            let used = snapshot.routes.hop_of(neighbour).is_some_and(|hop| snapshot.hops.take_used(hop));
            used || self.ahead.contains_key(neighbour)
        });
        let confirm: Vec<Neighbour> = in_use.map(|(neighbour, _)| *neighbour).collect();
        confirm.into_iter().for_each(|neighbour| self.ask(neighbour));
    }

    fn ask(&mut self, neighbour: Neighbour) {
        let snapshot = self.config.load();
        let Some(port) = snapshot.ports.get(usize::from(neighbour.port.0)) else { return };
        self.stats.asked += 1;
        if let Err(error) = self.client.resolve(port.ifindex, neighbour.address) {
            tracing::debug!(device = port.name, address = %neighbour.address, %error, "neighbour not asked for");
        }
    }

    fn is_resolved(&self, neighbour: &Neighbour) -> bool {
        self.known.get(neighbour).is_some_and(|entry| entry.resolved().is_some())
    }

    /// Gives workers what is known of the `changed` neighbours, of which it is said whether they were resolved before.
    fn publish(&mut self, changed: &BTreeMap<Neighbour, bool>) -> bool {
        let snapshot = self.config.load();
        let mut awaited = false;
        let mut new = Vec::new();
        for (neighbour, resolved_before) in changed {
            let mac = self.known.get(neighbour).and_then(NeighbourEntry::resolved);
            match (snapshot.routes.hop_of(neighbour), mac) {
                (Some(hop), Some(mac)) => {
                    snapshot.hops.set(hop, Hop { port: neighbour.port, mac });
                    awaited |= !resolved_before;
                }
                (Some(hop), None) => snapshot.hops.clear(hop),
                (None, Some(mac)) => new.push((*neighbour, mac)),
                (None, None) => {}
            }
        }
        awaited |= !new.is_empty();
        if awaited {
            self.config.clone().publish(|snapshot| self.place(snapshot, &new));
        }
        awaited
    }

    fn place(&mut self, snapshot: &mut Snapshot, new: &[(Neighbour, [u8; 6])]) {
        if new.is_empty() {
            return;
        }
        let hops = snapshot.hops.clone();
        let mut routes = Routes::clone(&snapshot.routes);
        let mut room_made = false;
        for (neighbour, mac) in new {
            let mut placed = routes.with_neighbour(&hops, *neighbour, *mac);
            if placed.is_err() && !room_made {
                room_made = true;
                self.make_room(&mut routes, snapshot);
                placed = routes.with_neighbour(&hops, *neighbour, *mac);
            }
            match placed {
                Ok(more) => routes = more,
                Err(error) => {
                    if self.stats.no_room == 0 {
                        tracing::warn!("{error}");
                    }
                    self.stats.no_room += 1;
                }
            }
        }
        snapshot.routes = Arc::new(routes);
    }

    /// Gives up the places of neighbours that are silent, or stale and not used since the last look.
    fn make_room(&self, routes: &mut Routes, snapshot: &Snapshot) {
        let idle = |(neighbour, hop): (&Neighbour, _)| {
            let silent = !self.is_resolved(neighbour);
            let stale = self.known.get(neighbour).is_some_and(|entry| entry.state == NeighbourState::Stale);
            let unused = silent || (stale && !snapshot.hops.take_used(hop));
            (unused && !self.ahead.contains_key(neighbour)).then_some(*neighbour)
        };
        let idle: Vec<Neighbour> = routes.neighbours().filter_map(idle).collect();
        for neighbour in idle {
            *routes = routes.without_neighbour(&snapshot.hops, &neighbour);
        }
    }
}

fn ports(snapshot: &Snapshot) -> HashMap<u32, PortId> {
    snapshot.ports.iter().zip(0_u16..).map(|(port, id)| (port.ifindex, PortId(id))).collect()
}

/// The kernel lists mapped multicast and broadcast addresses among the neighbours; nobody connects to them.
fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_unspecified(),
    }
}
