//! Virtual services and their real servers.
//!
//! [`Services`] is the part of the snapshot that says which services there are. Each [`Service`] has a lock of its own,
//! which a command on it takes, and a worker for the moment of scheduling a new connection. Packets of known connections
//! take no lock: what they need of their real server is in [`Destinations`].

mod destinations;
mod error;
mod local;
mod orphans;
mod persistence;
mod turn;

pub use destinations::{Connections, Destinations};
pub use error::ServiceError;
pub use local::{LocalAddress, LocalPool, Locals, Ports};
pub use persistence::{Clients, Persistence};
pub(crate) use turn::Turn;

use crate::counters::Traffic;
use crate::forward::Method;
use crate::plan::{Plan, Tell};
use destinations::{Place, ServiceId};
use foldhash::fast::FixedState;
use rpds::HashTrieMapSync;
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uvs_conntrack::{DestinationId, Identity, OwnTimeouts, Tick};
use uvs_schedulers::{Balancer, Request, Scheduler, Slot};

/// What names a virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The virtual address.
    pub address: IpAddr,
    /// The virtual port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

impl ServiceKey {
    /// How the connection table names a destination of this service across restarts.
    fn identity(self, destination: SocketAddr) -> Identity {
        let service = SocketAddr::new(self.address, self.port);
        Identity { protocol: self.protocol, fwmark: 0, service, server: destination }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            uvs_conntrack::protocol::TCP => "TCP",
            uvs_conntrack::protocol::UDP => "UDP",
            other => return write!(f, "protocol {other} {}", SocketAddr::new(self.address, self.port)),
        };
        write!(f, "{protocol} {}", SocketAddr::new(self.address, self.port))
    }
}

/// All services, by key. Immutable: a change makes another map that shares what did not change.
#[derive(Clone, Debug)]
pub struct Services(HashTrieMapSync<ServiceKey, Arc<Service>, FixedState>);

impl Default for Services {
    fn default() -> Self {
        Services(HashTrieMapSync::new_with_hasher_and_ptr_kind(FixedState::default()))
    }
}

impl Services {
    /// The service for packets to this address, port and protocol.
    #[inline]
    pub fn find(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.0.get(key)
    }

    /// With another service.
    ///
    /// # Errors
    /// When one with its key is there.
    pub fn with(&self, service: Arc<Service>) -> Result<Self, ServiceError> {
        if self.0.contains_key(&service.key) {
            return Err(ServiceError::ServiceExists(service.key));
        }
        Ok(Services(self.0.insert(service.key, service)))
    }

    /// Without a service, and that service: to be [retired](Service::retire) once no worker uses the old map.
    ///
    /// # Errors
    /// When there is no such service.
    pub fn without(&self, key: &ServiceKey) -> Result<(Self, Arc<Service>), ServiceError> {
        let gone = self.0.get(key).ok_or(ServiceError::NoSuchService(*key))?.clone();
        Ok((Services(self.0.remove(key)), gone))
    }

    /// Every service, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.0.values()
    }

    /// How many services there are.
    pub fn len(&self) -> usize {
        self.0.size()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A real server as a command describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationConfig {
    /// Its address and port. Port 0: the packet's own.
    pub address: SocketAddr,
    /// How packets reach it.
    pub method: Method,
    /// Its weight; with 0 it takes no new connection.
    pub weight: u32,
    /// With this many connections it takes no more; 0: no limit.
    pub upper_threshold: u32,
    /// Below this many it takes them again; 0: three quarters of the upper one.
    pub lower_threshold: u32,
    /// What its forwarding method needs to know of it.
    pub plan: Plan,
}

impl DestinationConfig {
    /// A real server of weight 1 without thresholds or particulars.
    pub fn new(address: SocketAddr, method: Method) -> Self {
        let plan = Plan::default();
        DestinationConfig { address, method, weight: 1, upper_threshold: 0, lower_threshold: 0, plan }
    }

    fn check(&self, key: &ServiceKey) -> Result<(), ServiceError> {
        let (upper, lower) = (self.upper_threshold, self.lower_threshold);
        if i32::try_from(self.weight).is_err() {
            return Err(ServiceError::WeightOutOfRange(self.weight));
        }
        if lower > upper {
            return Err(ServiceError::ThresholdsOutOfRange { upper, lower });
        }
        let joins_families = matches!(self.method, Method::Tunnel | Method::FullNat);
        if self.address.is_ipv4() != key.address.is_ipv4() && !joins_families {
            return Err(ServiceError::FamilyMismatch(self.address));
        }
        if is_one_host(self.address.ip()) { Ok(()) } else { Err(ServiceError::NotUnicast(self.address)) }
    }
}

/// Whether a real server can have this address: it is unicast, and not bound to a link that nobody names.
pub fn is_one_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => !(ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast()),
        IpAddr::V6(ip) => {
            let mapped = ip.to_ipv4_mapped().is_some();
            !(ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local() || mapped)
        }
    }
}

/// A real server as a listing shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationView {
    /// Its place in the connection table and the counters.
    pub id: DestinationId,
    /// As it was configured.
    pub config: DestinationConfig,
    /// Its connections.
    pub connections: Connections,
    /// Persistence templates that lead to it.
    pub templates: u32,
    /// Whether its upper threshold keeps it from taking more.
    pub overloaded: bool,
    /// Its counters since it was added or zeroed.
    pub traffic: Traffic,
}

/// A service as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceView {
    /// Its name.
    pub key: ServiceKey,
    /// The name of its scheduler.
    pub scheduler: String,
    /// Scheduler flags (`ipvsadm -b`), by their values in `ip_vs.h`.
    pub flags: u32,
    /// Its counters since it was added or zeroed, those of deleted real servers included.
    pub traffic: Traffic,
    /// Its real servers in the kernel's list order, the newest first.
    pub destinations: Vec<DestinationView>,
}

/// What a service and its real servers have counted since they were added or zeroed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSums {
    /// The service.
    pub key: ServiceKey,
    /// Its own sums, those of deleted real servers included.
    pub traffic: Traffic,
    /// Its real servers' sums, in no order.
    pub servers: Vec<(SocketAddr, Traffic)>,
}

/// A new connection's real server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chosen<'a> {
    pub(crate) id: DestinationId,
    pub(crate) address: SocketAddr,
    pub(crate) method: Method,
    /// What its forwarding method needs to know of it.
    pub(crate) plan: Plan,
    /// The local addresses of full NAT.
    pub(crate) locals: &'a LocalPool,
}

/// What holds for all real servers of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// How they learn their clients' addresses, where they do not see them.
    pub tell: Tell,
    /// The longest TCP segment that client or real server may announce to take, in bytes; 0: whatever they say.
    pub segment_size: u16,
    /// Whether TCP clients are answered by a reset when there is no real server for them, and not by an ICMP error.
    pub resets: bool,
    /// Whether each UDP datagram is scheduled for itself.
    pub one_packet: bool,
    /// How long connections live without a packet, where not as long as others.
    pub timeouts: OwnTimeouts,
    /// How long clients keep to their real server, and who counts as one client.
    pub persistence: Option<Persistence>,
}

impl Terms {
    /// The particulars of one of them.
    fn apply(self, plan: Plan) -> Plan {
        let Terms { tell, segment_size, timeouts, .. } = self;
        Plan { tell, segment_size, timeouts, ..plan }
    }
}

/// One virtual service.
#[derive(Debug)]
pub struct Service {
    key: ServiceKey,
    id: ServiceId,
    destinations: Arc<Destinations>,
    resets: AtomicBool,
    one_packet: AtomicBool,
    persistent: AtomicBool,
    core: Mutex<Core>,
}

#[derive(Debug)]
struct Core {
    scheduler: String,
    balancer: Balancer,
    /// By the index of their slot.
    members: Vec<Option<Member>>,
    slots: HashMap<SocketAddr, Slot>,
    locals: Arc<LocalPool>,
    terms: Terms,
    /// What real servers counted that are not members now.
    departed: Traffic,
    /// What the service's counters start from.
    base: Traffic,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    place: Place,
    slot: Slot,
    address: SocketAddr,
    method: Method,
    plan: Plan,
    /// What the destination's counters held when it became a member.
    joined: Traffic,
}

impl Service {
    /// A service without real servers. `name` is what listings call its scheduler.
    ///
    /// # Errors
    /// When there are as many services as there may be.
    pub fn new(
        key: ServiceKey,
        name: &str,
        scheduler: Box<dyn Scheduler>,
        destinations: Arc<Destinations>,
    ) -> Result<Arc<Self>, ServiceError> {
        let core = Core {
            scheduler: name.to_owned(),
            balancer: Balancer::new(scheduler),
            members: Vec::new(),
            slots: HashMap::new(),
            locals: Arc::default(),
            terms: Terms::default(),
            departed: Traffic::default(),
            base: Traffic::default(),
        };
        let id = destinations.enter_service(key).ok_or(ServiceError::TooManyServices)?;
        Ok(Arc::new(Service {
            key,
            id,
            destinations,
            resets: AtomicBool::new(false),
            one_packet: AtomicBool::new(false),
            persistent: AtomicBool::new(false),
            core: Mutex::new(core),
        }))
    }

    /// The service's name.
    pub fn key(&self) -> ServiceKey {
        self.key
    }

    /// Adds a real server, at the head of the list. One that was deleted while it had connections comes back with them
    /// and its counters. Returns its place in the connection table.
    ///
    /// # Errors
    /// When it is there, when a value is out of range, or when there is no room.
    pub fn add(&self, config: &DestinationConfig) -> Result<DestinationId, ServiceError> {
        config.check(&self.key)?;
        let mut core = self.core();
        if core.slots.contains_key(&config.address) {
            return Err(ServiceError::DestinationExists(config.address));
        }
        let place =
            self.destinations.enter(self.key, config.address).ok_or(ServiceError::TooManyDestinations)?;
        let Connections { active, inactive } = self.destinations.connections(place.id);
        let destination = uvs_schedulers::Destination { active, inactive, ..scheduled(config) };
        let slot = core.balancer.add(destination).map_err(|_| ServiceError::TooManyDestinations)?;
        let joined = self.destinations.counters().traffic(place.id);
        let index = slot.index();
        if core.members.len() <= index {
            core.members.resize(index + 1, None);
        }
        let (address, method, plan) = (config.address, config.method, core.terms.apply(config.plan));
        core.members[index] = Some(Member { place, slot, address, method, plan, joined });
        core.slots.insert(config.address, slot);
        // Before the first packet can ask for it.
        self.destinations.set_plan(place.id, plan);
        self.tell_server(place.id, config);
        self.destinations.set_quiescent(place.id, config.weight == 0);
        self.destinations.open(place.id, index);
        Ok(place.id)
    }

    /// Sets a real server's forwarding method, weight, thresholds and particulars. The last apply to the connections it has,
    /// too, as in IPVS; the method does not.
    ///
    /// # Errors
    /// When it is not there, or when a value is out of range.
    pub fn edit(&self, config: &DestinationConfig) -> Result<(), ServiceError> {
        config.check(&self.key)?;
        let mut core = self.core();
        self.settle(&mut core);
        let slot = core.slot(config.address)?;
        core.balancer.edit(slot, config.weight, config.upper_threshold, config.lower_threshold);
        let plan = core.terms.apply(config.plan);
        if let Some(member) = core.members.get_mut(slot.index()).and_then(Option::as_mut) {
            member.method = config.method;
            member.plan = plan;
            self.destinations.set_plan(member.place.id, plan);
            self.tell_server(member.place.id, config);
            self.destinations.set_quiescent(member.place.id, config.weight == 0);
        }
        Ok(())
    }

    fn tell_server(&self, id: DestinationId, config: &DestinationConfig) {
        if !config.method.sees_replies() {
            self.destinations.set_server(id, config.address.ip());
        }
    }

    /// Sets the address that packets of our own to a real server come from, which follows this host's addresses and routes.
    /// Changes nothing when the real server is not there.
    pub fn set_source(&self, address: SocketAddr, source: Option<IpAddr>) {
        let mut core = self.core();
        let Ok(slot) = core.slot(address) else { return };
        if let Some(member) = core.members.get_mut(slot.index()).and_then(Option::as_mut)
            && member.plan.source != source
        {
            member.plan.source = source;
            self.destinations.set_plan(member.place.id, member.plan);
        }
    }

    /// Deletes a real server. What becomes of its connections from now on, [`Snapshot::on_remove`] says.
    ///
    /// [`Snapshot::on_remove`]: crate::snapshot::Snapshot::on_remove
    ///
    /// # Errors
    /// When it is not there.
    pub fn delete(&self, address: SocketAddr, now: Tick) -> Result<(), ServiceError> {
        let mut core = self.core();
        let slot = core.slot(address)?;
        core.slots.remove(&address);
        core.balancer.remove(slot);
        if let Some(member) = core.members.get_mut(slot.index()).and_then(Option::take) {
            self.depart(&mut core, &member, now);
        }
        Ok(())
    }

    /// The service was deleted: its real servers go as by [`Service::delete`].
    pub fn retire(&self, now: Tick) {
        let mut core = self.core();
        for member in std::mem::take(&mut core.members).into_iter().flatten() {
            core.balancer.remove(member.slot);
            self.depart(&mut core, &member, now);
        }
        core.slots.clear();
        drop(core);
        self.destinations.leave_service(self.key);
    }

    fn depart(&self, core: &mut Core, member: &Member, now: Tick) {
        core.departed += self.destinations.counters().traffic(member.place.id) - member.joined;
        self.destinations.close(self.key, member.address, member.place, now);
    }

    /// Puts another scheduler in place. Connections and counters stay, and so does a scheduler of the same name with all
    /// it remembers (`ip_vs_edit_service`).
    pub fn set_scheduler(&self, name: &str, scheduler: Box<dyn Scheduler>) {
        let mut core = self.core();
        if core.scheduler == name {
            return;
        }
        self.settle(&mut core);
        name.clone_into(&mut core.scheduler);
        core.balancer.set_scheduler(scheduler);
    }

    /// Sets what the scheduler is told beyond its flags.
    pub fn set_options(&self, options: uvs_schedulers::Options) {
        self.core().balancer.set_options(options);
    }

    /// Sets the scheduler flags (`ipvsadm -b`).
    pub fn set_flags(&self, flags: u32) {
        self.core().balancer.set_flags(flags);
    }

    /// Sets what holds for all real servers, those to come too.
    pub fn set_terms(&self, terms: Terms) {
        self.resets.store(terms.resets, Relaxed);
        self.one_packet.store(terms.one_packet, Relaxed);
        self.persistent.store(terms.persistence.is_some(), Relaxed);
        let mut core = self.core();
        core.terms = terms;
        for member in core.members.iter_mut().flatten() {
            member.plan = terms.apply(member.plan);
            self.destinations.set_plan(member.place.id, member.plan);
        }
    }

    /// [`Terms::resets`].
    pub(crate) fn resets(&self) -> bool {
        self.resets.load(Relaxed)
    }

    /// [`Terms::one_packet`].
    pub(crate) fn is_one_packet(&self) -> bool {
        self.one_packet.load(Relaxed)
    }

    /// Whether clients keep to their real servers.
    pub(crate) fn is_persistent(&self) -> bool {
        self.persistent.load(Relaxed)
    }

    /// Sets the local addresses that new connections by full NAT use.
    pub fn set_locals(&self, locals: Arc<LocalPool>) {
        self.core().locals = locals;
    }

    /// The service as a listing shows it.
    pub fn view(&self) -> ServiceView {
        let mut core = self.core();
        self.settle(&mut core);
        let pool = core.balancer.pool();
        let destinations =
            pool.iter().filter_map(|(slot, destination)| self.listed(&core, slot, destination));
        ServiceView {
            key: self.key,
            scheduler: core.scheduler.clone(),
            flags: core.balancer.pool().flags(),
            traffic: self.traffic(&core) - core.base,
            destinations: destinations.collect(),
        }
    }

    /// One real server as a listing shows it.
    pub fn destination(&self, address: SocketAddr) -> Option<DestinationView> {
        let mut core = self.core();
        self.settle(&mut core);
        let slot = core.slot(address).ok()?;
        self.listed(&core, slot, core.balancer.pool().get(slot)?)
    }

    /// The service's counters since it was added or zeroed, those of deleted real servers included.
    pub fn totals(&self) -> Traffic {
        let core = self.core();
        self.traffic(&core) - core.base
    }

    /// What it and its real servers have counted.
    pub fn sums(&self) -> ServiceSums {
        let core = self.core();
        let counters = self.destinations.counters();
        let mut traffic = core.departed;
        let members = core.members.iter().flatten().map(|member| {
            let counted = counters.traffic(member.place.id);
            traffic += counted - member.joined;
            (member.address, counted - member.place.base)
        });
        let servers = members.collect();
        ServiceSums { key: self.key, traffic: traffic - core.base, servers }
    }

    fn listed(
        &self,
        core: &Core,
        slot: Slot,
        destination: &uvs_schedulers::Destination,
    ) -> Option<DestinationView> {
        let member = core.members.get(slot.index())?.as_ref()?;
        Some(DestinationView {
            id: member.place.id,
            config: DestinationConfig {
                address: member.address,
                method: member.method,
                weight: destination.weight,
                upper_threshold: destination.upper_threshold,
                lower_threshold: destination.lower_threshold,
                plan: member.plan,
            },
            connections: Connections { active: destination.active, inactive: destination.inactive },
            templates: self.destinations.templates(member.place.id),
            overloaded: destination.overloaded,
            traffic: self.destinations.counters().traffic(member.place.id) - member.place.base,
        })
    }

    /// Starts the counters of the service and its real servers from zero (`ipvsadm -Z`).
    pub fn zero(&self) {
        let mut core = self.core();
        core.base = self.traffic(&core);
        for member in core.members.iter_mut().flatten() {
            member.place.base = self.destinations.counters().traffic(member.place.id);
        }
    }

    fn traffic(&self, core: &Core) -> Traffic {
        let counters = self.destinations.counters();
        let of = |member: &Member| counters.traffic(member.place.id) - member.joined;
        core.members.iter().flatten().fold(core.departed, |sum, member| sum + of(member))
    }

    /// Chooses a real server for a new connection and lets `bind` enter it into the connection table. `bind` returns
    /// whether the connection starts active, or `None` when it was not entered.
    ///
    /// # Errors
    /// [`NoDestination`] when no real server may take a connection.
    pub(crate) fn schedule(
        &self,
        request: &Request,
        bind: impl FnOnce(&Chosen<'_>) -> Option<bool>,
    ) -> Result<(), NoDestination> {
        let mut core = self.core();
        self.settle(&mut core);
        let slot = core.balancer.choose(request).ok_or(NoDestination)?;
        let member = core.members.get(slot.index()).and_then(Option::as_ref).ok_or(NoDestination)?;
        let id = member.place.id;
        let Member { address, method, plan, .. } = *member;
        if let Some(active) = bind(&Chosen { id, address, method, plan, locals: &core.locals }) {
            self.destinations.began(id, active);
            let Connections { active, inactive } = self.destinations.connections(id);
            core.balancer.settle(slot, active, inactive);
        }
        Ok(())
    }

    /// Tells the scheduler what connections did to its real servers since it was last asked.
    #[inline]
    fn settle(&self, core: &mut Core) {
        let Core { members, balancer, .. } = core;
        self.destinations.take_changed(self.id, |id, index| {
            let member = members.get(index).and_then(Option::as_ref).filter(|member| member.place.id == id);
            if let Some(member) = member {
                let Connections { active, inactive } = self.destinations.connections(id);
                balancer.settle(member.slot, active, inactive);
            }
        });
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// No real server of the service may take a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoDestination;

impl Core {
    fn slot(&self, address: SocketAddr) -> Result<Slot, ServiceError> {
        self.slots.get(&address).copied().ok_or(ServiceError::NoSuchDestination(address))
    }
}

fn scheduled(config: &DestinationConfig) -> uvs_schedulers::Destination {
    uvs_schedulers::Destination::new(config.address, config.weight)
        .with_thresholds(config.upper_threshold, config.lower_threshold)
}
