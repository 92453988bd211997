//! The registry's changes carried into the data plane: services into the snapshot, their keys into the steering program,
//! their real servers' next hops into view.

use super::defence::{self, Defence};
use super::kernel::{Kernel, source_towards};
use super::locals::Locals;
use super::own::Own;
use super::rates::Averages;
use super::report::Report;
use super::services;
use crate::api::{
    self, LocalActivity, Refusal, Request, Response, ServerActivity, ServerSpec, ServiceActivity, ServiceId,
    ServiceSpec, Statistics, Timeouts,
};
use crate::registry::{Apply, Features};
use crate::settings::{Setting, Settings};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use uvs_conntrack::{DestinationId, Tick};
use uvs_engine::forward::Method;
use uvs_engine::packet::protocol;
use uvs_engine::plan::{Plan, Tunnel, TunnelChecksum, TunnelKind};
use uvs_engine::service::{Connections, DestinationConfig, Destinations, Service, ServiceError, ServiceKey};
use uvs_engine::snapshot::OnRemove;
use uvs_engine::steer::{Guard, SteerError, Steering};
use uvs_engine::{Config, Reason};

/// How long workers may take to follow a change. They do so with their next batch.
const PATIENCE: Duration = Duration::from_secs(5);

/// What IPVS has by default, and scripts compare.
const TABLE_SIZE: u32 = 4096;

/// What the data plane is changed through.
pub(super) struct Plane {
    config: Arc<Config>,
    destinations: Arc<Destinations>,
    pub(super) steering: Steering,
    kernel: Kernel,
    pub(super) report: Report,
    /// The guard, and how long it may outlive this process.
    pub(super) guard: Option<(Guard, Duration)>,
    /// This host's own traffic, unless the kernel does not divert it.
    pub(super) own: Option<Own>,
    members: HashMap<ServiceKey, HashMap<SocketAddr, Member>>,
    lingering: HashSet<Claim>,
    locals: Locals,
    /// Connections that were dropped for want of a local address, as far as that was said.
    without_local: u64,
    averages: Averages,
    settings: Settings,
    defence: Defence,
    schedulers: uvs_schedulers::Registry,
    generation: u64,
    /// Services taken out of the snapshot that workers may still use.
    leaving: Vec<Arc<Service>>,
    /// Whether real servers were removed since workers were last waited for.
    removed: bool,
}

/// A real server that is configured.
#[derive(Clone, Copy)]
struct Member {
    id: DestinationId,
    method: Method,
    tunnel: Option<Tunnel>,
}

/// What is claimed of the steering program for a real server: its service's packets, its replies where they come through here,
/// and errors about its packets' tunnel.
///
/// The claim of a real server that was removed lingers for the connections it still has: were its keys taken away, the
/// kernel would answer the connections' packets with a RST. One that comes back meanwhile takes its claim back, so that
/// there is one for each way its packets took, however often it comes and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Claim {
    id: DestinationId,
    pub(super) service: ServiceKey,
    pub(super) method: Method,
    pub(super) reply: Option<SocketAddr>,
    /// The tunnel's far end, its port (0 but for GUE) and what its IP header says it carries.
    tunnel: Option<(IpAddr, u16, u8)>,
}

impl Claim {
    fn of(service: ServiceKey, address: SocketAddr, member: Member) -> Self {
        let replies = matches!(member.method, Method::Nat | Method::FullNat);
        let tunnel = member.tunnel.map(|tunnel| match tunnel.kind {
            TunnelKind::Ipip if service.address.is_ipv4() => (address.ip(), 0, protocol::IPV4),
            TunnelKind::Ipip => (address.ip(), 0, protocol::IPV6),
            TunnelKind::Gre => (address.ip(), 0, protocol::GRE),
            TunnelKind::Gue => (address.ip(), tunnel.port, protocol::UDP),
        });
        // A service of every port leaves packets the port that they had.
        let port = if service.port == 0 { 0 } else { address.port() };
        let reply = replies.then_some(SocketAddr::new(address.ip(), port));
        Claim { id: member.id, service, method: member.method, reply, tunnel }
    }
}

impl Plane {
    pub(super) fn new(
        config: Arc<Config>,
        destinations: Arc<Destinations>,
        steering: Steering,
        kernel: Kernel,
        report: Report,
        reserve_ports: bool,
    ) -> Self {
        Plane {
            locals: Locals::new(destinations.clone(), reserve_ports),
            without_local: 0,
            config,
            destinations,
            steering,
            kernel,
            report,
            guard: None,
            own: None,
            members: HashMap::new(),
            lingering: HashSet::new(),
            averages: Averages::default(),
            settings: Settings::default(),
            defence: Defence::default(),
            schedulers: uvs_schedulers::Registry::default(),
            generation: 0,
            leaving: Vec::new(),
            removed: false,
        }
    }

    /// Called every two seconds: takes the sums into the averages, and forgets what no connection needs any more.
    pub(super) fn look_after(&mut self, now: Tick) {
        let snapshot = self.config.load();
        if self.settings.get(Setting::RunEstimation) != 0 {
            let total = self.destinations.counters().total();
            self.averages.update(total, snapshot.services.iter().map(|service| service.sums()));
        }
        self.report.load.sample();
        self.release_idle();
        self.destinations.collect(now);
        self.look_after_locals();
    }

    /// Called every second: the defence under load looks around.
    pub(super) fn defend(&mut self, now: Tick) {
        if self.defence.watches(&self.settings) {
            self.defence.update(&mut self.settings, defence::free_pages());
            self.publish_options();
            self.defence.drop_entries(&mut self.report.handle, &self.destinations, now);
        }
    }

    /// The workers go by the settings from now on.
    fn publish_options(&mut self) {
        let old = self.config.load().options;
        let new = self.defence.apply(self.settings.forward(old.rfc6040));
        if new != old {
            self.generation = self.config.publish(|snapshot| snapshot.options = new);
        }
    }

    /// Lets go of local addresses that no connection needs any more, and says what new connections did not find.
    fn look_after_locals(&mut self) {
        for address in self.locals.take_idle() {
            complain(self.steering.remove_source(address));
            self.kernel.service_removed(address);
        }
        if self.locals.look_at_host() {
            self.set_host_ports();
        }
        self.locals.tell_exhausted();
        let dropped = self.destinations.counters().drops(Reason::NoLocalAddress);
        if std::mem::replace(&mut self.without_local, dropped) >= dropped {
            return;
        }
        for (key, members) in &self.members {
            let lacks = |(address, member): (&SocketAddr, &Member)| {
                member.method == Method::FullNat && !self.locals.has(*key, address.is_ipv4())
            };
            if members.iter().any(lacks) {
                tracing::warn!(
                    "the real servers of {key} by full NAT get no connections: give it a local address of theirs with \
                     `ipvsadm -P -t {} -z ADDRESS`",
                    SocketAddr::new(key.address, key.port)
                );
            }
        }
    }

    /// The kernel gives its own sockets other ports, or this host has other addresses: local ports keep out of their way.
    fn set_host_ports(&mut self) {
        complain(self.steering.set_host_ports(self.locals.host_ports()));
        if let Some(own) = &self.own {
            own.publish(&self.config, |address| self.locals.own_pool(address));
        }
        let snapshot = self.config.load();
        for key in self.locals.services() {
            if let Some(service) = snapshot.services.find(&key) {
                service.set_locals(self.locals.pool(key));
            }
        }
    }

    /// Takes the steering keys away that were kept for connections which are gone.
    fn release_idle(&mut self) {
        let idle = |claim: &Claim| self.destinations.connections(claim.id) == Connections::default();
        for claim in self.lingering.extract_if(idle) {
            let Claim { service, reply, tunnel, .. } = claim;
            if let Some(own) = &mut self.own {
                own.release(&mut self.steering, &claim);
            }
            complain(self.steering.remove_service(service.address, service.port, service.protocol));
            if let Some(reply) = reply {
                complain(self.steering.remove_reply(reply.ip(), reply.port(), service.protocol));
            }
            if let Some((address, port, protocol)) = tunnel {
                complain(self.steering.remove_tunnel(address, port, protocol));
            }
        }
    }

    /// Forgets real servers that were removed and have no connection.
    fn make_room(&mut self) -> Result<(), Refusal> {
        self.settle()?;
        self.release_idle();
        self.destinations.make_room();
        Ok(())
    }

    /// Lets the guard stand for another while.
    pub(super) fn keep_guard(&self) {
        if let Some((guard, timeout)) = &self.guard {
            complain(guard.refresh(*timeout));
        }
        if let Some(own) = &self.own {
            own.keep();
        }
    }

    /// Takes the guard away until this director starts again.
    pub(super) fn take_guard_down(&mut self) -> Result<(), SteerError> {
        self.guard.take().map_or(Ok(()), |(guard, _)| guard.remove())
    }

    /// Addresses or routes of this host have changed: so may have those that tunnels begin at, and what is this host itself.
    pub(super) fn refresh_sources(&mut self) {
        self.follow_own();
        for (key, members) in &self.members {
            let tunnels = members.iter().filter(|(_, member)| member.method == Method::Tunnel);
            for (address, _) in tunnels {
                let Some(service) = self.config.load().services.find(key).cloned() else { continue };
                service.set_source(*address, source_towards(address.ip()));
            }
        }
    }

    /// The addresses of this host have changed.
    pub(super) fn set_local(&mut self, addresses: BTreeSet<IpAddr>) {
        complain(self.steering.set_local(addresses.iter().copied()));
        self.locals.set_own(addresses);
        self.locals.look_at_host();
        self.follow_own();
        self.set_host_ports();
    }

    fn follow_own(&mut self) {
        if let Some(own) = &mut self.own {
            own.follow(&mut self.steering, &self.config.load());
        }
    }

    fn service(&self, id: &ServiceId) -> Result<Arc<Service>, Refusal> {
        let snapshot = self.config.load();
        let service = key(id).and_then(|key| snapshot.services.find(&key).cloned());
        service.ok_or(Refusal::ServiceNotDefined)
    }

    /// Leaves a removed real server's steering keys in place until its connections are gone.
    fn linger(&mut self, service: ServiceKey, address: SocketAddr, member: Member) {
        self.lingering.insert(Claim::of(service, address, member));
        self.kernel.server_removed(address.ip());
    }

    fn steer_server(&mut self, claim: Claim) -> Result<(), SteerError> {
        if self.lingering.remove(&claim) {
            return Ok(());
        }
        let Claim { service, reply, tunnel, .. } = claim;
        self.steering.add_service(service.address, service.port, service.protocol)?;
        // By no method both.
        let more = match (reply, tunnel) {
            (Some(reply), _) => self.steering.add_reply(reply.ip(), reply.port(), service.protocol),
            (None, Some((address, port, protocol))) => self.steering.add_tunnel(address, port, protocol),
            (None, None) => Ok(()),
        };
        if let Err(error) = more {
            self.steering.remove_service(service.address, service.port, service.protocol)?;
            return Err(error);
        }
        if let Some(own) = &mut self.own {
            own.claim(&mut self.steering, &self.config.load().routes, claim);
        }
        Ok(())
    }
}

impl Apply for Plane {
    fn features(&self) -> Features {
        Features::HONOURED
    }

    fn knows_scheduler(&self, name: &str) -> bool {
        self.schedulers.names().any(|known| known == name)
    }

    fn knows_engine(&self, _name: &str) -> bool {
        false
    }

    fn table_size(&self) -> u32 {
        TABLE_SIZE
    }

    fn add_service(&mut self, spec: &ServiceSpec) -> Result<(), Refusal> {
        let key = key(&spec.id).ok_or(Refusal::Invalid)?;
        if self.leaving.iter().any(|service| service.key() == key) {
            // Else the old one would take the new one's real servers with it.
            self.settle()?;
        }
        let scheduler = self.schedulers.make(&spec.scheduler).map_err(|_| Refusal::SchedulerNotFound)?;
        let service =
            Service::new(key, &spec.scheduler, scheduler, self.destinations.clone()).map_err(refusal)?;
        services::describe(&service, spec);
        let mut added = Ok(());
        self.generation = self.config.publish(|snapshot| match snapshot.services.with(service) {
            Ok(services) => snapshot.services = services,
            Err(error) => added = Err(error),
        });
        added.map_err(refusal)?;
        if let Err(error) = self.steering.add_service(key.address, key.port, key.protocol) {
            self.take_out(key);
            return Err(failed(&error));
        }
        self.kernel.service_added(key.address);
        if let Some(own) = &mut self.own {
            own.service_added();
        }
        self.locals.set_ports(key, spec.local_ports);
        Ok(())
    }

    fn edit_service(&mut self, spec: &ServiceSpec) -> Result<(), Refusal> {
        let service = self.service(&spec.id)?;
        let scheduler = self.schedulers.make(&spec.scheduler).map_err(|_| Refusal::SchedulerNotFound)?;
        service.set_scheduler(&spec.scheduler, scheduler);
        services::describe(&service, spec);
        self.locals.set_ports(service.key(), spec.local_ports);
        service.set_locals(self.locals.pool(service.key()));
        Ok(())
    }

    fn delete_service(&mut self, id: &ServiceId) {
        let Some(key) = key(id) else { return };
        self.removed = true;
        for (address, member) in self.members.remove(&key).unwrap_or_default() {
            self.linger(key, address, member);
        }
        self.locals.remove_service(key);
        self.take_out(key);
        complain(self.steering.remove_service(key.address, key.port, key.protocol));
        self.kernel.service_removed(key.address);
    }

    fn add_server(&mut self, id: &ServiceId, server: &ServerSpec) -> Result<(), Refusal> {
        let service = self.service(id)?;
        let config = destination(server, source_towards)?;
        if self.kernel.is_broadcast(server.address.ip()) {
            return Err(Refusal::Invalid);
        }
        let destination = match service.add(&config) {
            Err(ServiceError::TooManyDestinations) => {
                self.make_room()?;
                service.add(&config)
            }
            added => added,
        };
        let destination = destination.map_err(refusal)?;
        let member = Member { id: destination, method: config.method, tunnel: config.plan.tunnel };
        if let Err(error) = self.steer_server(Claim::of(service.key(), server.address, member)) {
            service.delete(server.address, super::now()).map_err(refusal)?;
            return Err(failed(&error));
        }
        self.members.entry(service.key()).or_default().insert(server.address, member);
        self.kernel.server_added(server.address.ip());
        Ok(())
    }

    fn edit_server(&mut self, id: &ServiceId, server: &ServerSpec) -> Result<(), Refusal> {
        let service = self.service(id)?;
        let config = destination(server, source_towards)?;
        let (key, address) = (service.key(), server.address);
        let member = self.members.get(&key).and_then(|members| members.get(&address)).copied();
        let member = member.ok_or(Refusal::NoSuchServer)?;
        let edited = Member { method: config.method, tunnel: config.plan.tunnel, ..member };
        let claim = Claim::of(key, address, edited);
        if Claim::of(key, address, member) != claim {
            self.steer_server(claim).map_err(|error| failed(&error))?;
            self.kernel.server_added(address.ip());
            self.linger(key, address, member);
        }
        self.members.entry(key).or_default().insert(address, edited);
        service.edit(&config).map_err(refusal)
    }

    fn delete_server(&mut self, id: &ServiceId, server: SocketAddr) {
        let Ok(service) = self.service(id) else { return };
        self.removed = true;
        if let Some(member) = self.members.get_mut(&service.key()).and_then(|members| members.remove(&server))
        {
            self.linger(service.key(), server, member);
        }
        if let Err(error) = service.delete(server, super::now()) {
            tracing::error!("the workers did not know real server {server} of {}: {error}", service.key());
        }
    }

    fn add_local(&mut self, id: &ServiceId, address: IpAddr) -> Result<(), Refusal> {
        let service = self.service(id)?;
        if self.kernel.is_broadcast(address) {
            return Err(Refusal::Invalid);
        }
        if self.locals.add(service.key(), address) {
            if let Err(error) = self.steering.add_source(address) {
                self.locals.remove(service.key(), address);
                return Err(failed(&error));
            }
            self.kernel.service_added(address);
        }
        if self.locals.look_at_host() {
            self.set_host_ports();
        }
        service.set_locals(self.locals.pool(service.key()));
        Ok(())
    }

    fn delete_local(&mut self, id: &ServiceId, address: IpAddr) {
        let Ok(service) = self.service(id) else { return };
        self.locals.remove(service.key(), address);
        service.set_locals(self.locals.pool(service.key()));
    }

    fn leaving_locals(&self, id: &ServiceId) -> Vec<IpAddr> {
        key(id).map_or_else(Vec::new, |key| self.locals.leaving(key).collect())
    }

    fn local_activity(&self, address: IpAddr) -> LocalActivity {
        let local = self.destinations.locals().get(&address);
        local.map_or_else(LocalActivity::default, |local| LocalActivity {
            conflicts: local.conflicts(),
            connections: local.connections(),
        })
    }

    fn zero(&mut self, id: Option<&ServiceId>) {
        let snapshot = self.config.load();
        match id {
            Some(id) => {
                if let Some(service) = key(id).and_then(|key| snapshot.services.find(&key)) {
                    service.zero();
                    self.averages.zero(&service.key());
                }
            }
            None => {
                snapshot.services.iter().for_each(|service| service.zero());
                self.destinations.counters().zero_total();
                self.averages = Averages::default();
            }
        }
    }

    fn set_timeouts(&mut self, timeouts: Timeouts) {
        self.generation = self.config.publish(|snapshot| {
            let mut changed = uvs_conntrack::Timeouts::clone(&snapshot.timeouts);
            changed.set(timeouts.tcp, timeouts.tcp_fin, timeouts.udp);
            snapshot.timeouts = Arc::new(changed);
        });
    }

    fn settings(&self) -> Settings {
        self.settings.clone()
    }

    fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
        self.defence.update(&mut self.settings, defence::free_pages());
        self.publish_options();
    }

    fn settle(&mut self) -> Result<(), Refusal> {
        if self.config.settle(self.generation, PATIENCE) {
            self.leaving.drain(..).for_each(|service| service.retire(super::now()));
            self.end_orphans();
            return Ok(());
        }
        Err(Refusal::Failed(
            "a worker did not follow the change within five seconds: see `uvs status`".into(),
        ))
    }

    fn service_activity(&self, id: &ServiceId) -> ServiceActivity {
        let Ok(service) = self.service(id) else { return ServiceActivity::default() };
        ServiceActivity { counters: service.totals().into(), rates: self.averages.of_service(&service.key()) }
    }

    fn server_activity(&self, id: &ServiceId, server: SocketAddr) -> ServerActivity {
        let Ok(service) = self.service(id) else { return ServerActivity::default() };
        let Some(view) = service.destination(server) else { return ServerActivity::default() };
        ServerActivity {
            active: view.connections.active,
            inactive: view.connections.inactive,
            persistent: view.templates,
            counters: view.traffic.into(),
            rates: self.averages.of_server(&service.key(), server),
        }
    }

    fn answer(&mut self, request: Request) -> Response {
        if request == Request::GuardOff && self.report.takes_copies() {
            return Response::Refused(Refusal::Failed(
                "this director takes frames by packet sockets, and without its guard the kernel would answer them too: \
                 stop it first"
                    .into(),
            ));
        }
        if request == Request::GuardOff {
            return self.take_guard_down().map_err(|error| failed(&error)).into();
        }
        if request == Request::Statistics {
            let counters = self.destinations.counters().total().into();
            let total = ServiceActivity { counters, rates: self.averages.of_all() };
            let workers = self.report.drops.iter().map(|worker| worker.traffic().into()).collect();
            return Response::Statistics(Statistics { total, workers });
        }
        let guarded = self.guard.is_some();
        let servers = self.members.values().map(HashMap::len).sum();
        let (snapshot, counters) = (self.config.load(), self.destinations.counters());
        self.report.answer(&request, &snapshot, counters, servers, guarded)
    }
}

impl Plane {
    /// Ends what is left of removed real servers, where that is wanted.
    fn end_orphans(&mut self) {
        let snapshot = self.config.load();
        if std::mem::take(&mut self.removed)
            && snapshot.options.expire_nodest_conn
            && snapshot.on_remove == OnRemove::Drop
        {
            self.destinations.end_orphans(&mut self.report.handle);
        }
    }

    /// Takes a service out of the snapshot. It lets its real servers go when no worker uses it.
    fn take_out(&mut self, key: ServiceKey) {
        let leaving = &mut self.leaving;
        self.generation = self.config.publish(|snapshot| {
            if let Ok((services, service)) = snapshot.services.without(&key) {
                snapshot.services = services;
                leaving.push(service);
            }
        });
    }
}

/// The data plane's key of a service by address; `None` for one by mark or of SCTP.
pub(super) fn key(id: &ServiceId) -> Option<ServiceKey> {
    match id {
        ServiceId::Address { protocol: api::Protocol::Sctp, .. } | ServiceId::Mark { .. } => None,
        ServiceId::Address { protocol, address } => {
            Some(ServiceKey { address: address.ip(), port: address.port(), protocol: protocol.number() })
        }
    }
}

/// `source` says where packets around those to an address begin.
pub(super) fn destination(
    server: &ServerSpec,
    source: impl FnOnce(IpAddr) -> Option<IpAddr>,
) -> Result<DestinationConfig, Refusal> {
    let method = match server.method {
        api::Method::Masquerading => Method::Nat,
        api::Method::Direct => Method::Direct,
        api::Method::FullNat => Method::FullNat,
        api::Method::Tunnel(_) => Method::Tunnel,
    };
    let tunnel = match server.method {
        api::Method::Tunnel(tunnel) => Some(wrapping(tunnel)),
        api::Method::Masquerading | api::Method::Direct | api::Method::FullNat => None,
    };
    let source = tunnel.and_then(|_| source(server.address.ip()));
    Ok(DestinationConfig {
        address: server.address,
        method,
        weight: server.weight,
        upper_threshold: server.upper_threshold,
        lower_threshold: server.lower_threshold,
        plan: Plan { tunnel, source, ..Plan::default() },
    })
}

fn wrapping(tunnel: api::Tunnel) -> Tunnel {
    Tunnel {
        kind: match tunnel.kind {
            api::TunnelKind::Ipip => TunnelKind::Ipip,
            api::TunnelKind::Gue => TunnelKind::Gue,
            api::TunnelKind::Gre => TunnelKind::Gre,
        },
        port: tunnel.port,
        checksum: match tunnel.checksum {
            api::TunnelChecksum::None => TunnelChecksum::None,
            api::TunnelChecksum::Full => TunnelChecksum::Full,
            api::TunnelChecksum::Remote => TunnelChecksum::Remote,
        },
    }
}

pub(super) fn refusal(error: ServiceError) -> Refusal {
    match error {
        ServiceError::ServiceExists(_) => Refusal::ServiceExists,
        ServiceError::NoSuchService(_) => Refusal::NoSuchService,
        ServiceError::DestinationExists(_) => Refusal::ServerExists,
        ServiceError::NoSuchDestination(_) => Refusal::NoSuchServer,
        ServiceError::WeightOutOfRange(_) | ServiceError::ThresholdsOutOfRange { .. } => Refusal::OutOfRange,
        ServiceError::NotUnicast(_) | ServiceError::FamilyMismatch(_) => Refusal::Invalid,
        other @ (ServiceError::TooManyServices | ServiceError::TooManyDestinations) => {
            Refusal::Failed(other.to_string())
        }
    }
}

fn failed(error: &SteerError) -> Refusal {
    Refusal::Failed(error.to_string())
}

/// The kernel refused what no command waits for.
pub(super) fn complain<T>(result: Result<T, SteerError>) {
    if let Err(error) = result {
        tracing::error!("the steering program could not be told: {error}");
    }
}

#[cfg(test)]
mod tests;
