//! The virtual services and real servers as they should be: IPVS's rules about them, without packets.
//!
//! A [`Registry`] checks every request as the kernel checks it, in the kernel's order, so that the same mistake gets the same
//! refusal; what passes is handed to the data plane through [`Apply`]. It also keeps the kernel's order of services, which
//! `ipvsadm -L --nosort` shows and which decides between services that ipvsadm's comparison cannot tell apart.

use crate::api::{
    ClientAddress, Family, LocalActivity, LocalEntry, Method, Netmask, Protocol, Refusal, Request, Response,
    ServerActivity, ServerEntry, ServerSpec, ServiceActivity, ServiceEntry, ServiceId, ServiceSpec,
    Statistics, Timeouts, TunnelKind,
};
use crate::settings::{Setting, Settings};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use uvs_engine::service::is_one_host;

/// The longest state timeout in seconds, 31 days.
pub const LONGEST_TIMEOUT: u32 = 31 * 24 * 3600;

/// How many services and servers a page of a listing has, at least, when there are more.
const PAGE: usize = 4096;

/// The data plane, as the registry drives it. Everything it is told has passed the rules of IPVS.
pub trait Apply {
    /// What the data plane honours of what IPVS can do.
    fn features(&self) -> Features;
    /// Whether a scheduler of that name exists.
    fn knows_scheduler(&self, name: &str) -> bool;
    /// Whether a persistence engine of that name exists.
    fn knows_engine(&self, name: &str) -> bool;
    /// Buckets of the connection table, as the title of a listing shows them.
    fn table_size(&self) -> u32;

    /// A virtual service is added.
    ///
    /// # Errors
    /// The data plane has no room for it, or cannot bring its packets in.
    fn add_service(&mut self, service: &ServiceSpec) -> Result<(), Refusal>;
    /// A virtual service gets other attributes.
    ///
    /// # Errors
    /// The data plane cannot make the change.
    fn edit_service(&mut self, service: &ServiceSpec) -> Result<(), Refusal>;
    /// A virtual service and its real servers are removed.
    fn delete_service(&mut self, service: &ServiceId);
    /// A real server is added at the head of its service's list.
    ///
    /// # Errors
    /// The data plane has no room for it.
    fn add_server(&mut self, service: &ServiceId, server: &ServerSpec) -> Result<(), Refusal>;
    /// A real server gets other attributes.
    ///
    /// # Errors
    /// The data plane cannot make the change.
    fn edit_server(&mut self, service: &ServiceId, server: &ServerSpec) -> Result<(), Refusal>;
    /// A real server is removed.
    fn delete_server(&mut self, service: &ServiceId, server: SocketAddr);
    /// A service gets a local address for full NAT.
    ///
    /// # Errors
    /// The data plane cannot bring its packets in.
    fn add_local(&mut self, service: &ServiceId, address: IpAddr) -> Result<(), Refusal>;
    /// A local address leaves a service.
    fn delete_local(&mut self, service: &ServiceId, address: IpAddr);
    /// The local addresses that left a service and still have connections.
    fn leaving_locals(&self, service: &ServiceId) -> Vec<IpAddr>;
    /// What a local address has done and does.
    fn local_activity(&self, address: IpAddr) -> LocalActivity;
    /// Counters are set to zero: one service's, or all.
    fn zero(&mut self, service: Option<&ServiceId>);
    /// State timeouts change.
    fn set_timeouts(&mut self, timeouts: Timeouts);
    /// The settings in force.
    fn settings(&self) -> Settings;
    /// Settings change.
    fn set_settings(&mut self, settings: Settings);
    /// Returns when every worker works by all that was applied since the last time.
    ///
    /// # Errors
    /// A worker does not.
    fn settle(&mut self) -> Result<(), Refusal>;

    /// What a service has done.
    fn service_activity(&self, service: &ServiceId) -> ServiceActivity;
    /// What a real server has done and does.
    fn server_activity(&self, service: &ServiceId, server: SocketAddr) -> ServerActivity;
    /// Answers what is no matter of services and servers: connections, status, guard, daemons.
    fn answer(&mut self, request: Request) -> Response;
}

/// What a data plane honours of what IPVS can do. The rest is refused in a sentence, never accepted and ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// `-p`, `-M`, services of port 0, `--pe`.
    pub persistence: bool,
    /// `-o`.
    pub one_packet: bool,
    /// `-f`.
    pub marks: bool,
    /// `-i`.
    pub tunnels: bool,
    /// `--sctp-service`.
    pub sctp: bool,
}

impl Features {
    /// What the data plane of this director honours.
    pub const HONOURED: Features =
        Features { persistence: true, one_packet: true, marks: false, tunnels: true, sctp: false };
    /// All that IPVS can do.
    pub const ALL: Features =
        Features { persistence: true, one_packet: true, marks: true, tunnels: true, sctp: true };
}

/// The virtual services of a director.
#[derive(Debug)]
pub struct Registry<A> {
    plane: A,
    services: HashMap<ServiceId, Service>,
    order: BTreeMap<u64, ServiceId>,
    added: u64,
    timeouts: Timeouts,
}

#[derive(Debug)]
struct Service {
    spec: ServiceSpec,
    order: u64,
    servers: Servers,
    locals: Vec<IpAddr>,
}

/// The real servers of one service, each by address and all in the order they were added.
#[derive(Debug, Default)]
struct Servers {
    by_address: HashMap<SocketAddr, u64>,
    in_order: BTreeMap<u64, ServerSpec>,
    added: u64,
}

impl<A: Apply> Registry<A> {
    /// Without services. `timeouts` are those the data plane starts with.
    pub fn new(plane: A, timeouts: Timeouts) -> Self {
        Registry { plane, services: HashMap::new(), order: BTreeMap::new(), added: 0, timeouts }
    }

    /// The data plane.
    pub fn plane(&self) -> &A {
        &self.plane
    }

    /// The data plane, to be changed behind the registry's back.
    pub fn plane_mut(&mut self) -> &mut A {
        &mut self.plane
    }

    /// How many services and real servers there are.
    pub fn size(&self) -> (usize, usize) {
        (self.services.len(), self.services.values().map(|service| service.servers.in_order.len()).sum())
    }

    /// Every service with its real servers in the order they were added, services in the kernel's order.
    pub fn services(
        &self,
    ) -> impl Iterator<Item = (&ServiceSpec, impl DoubleEndedIterator<Item = &ServerSpec>)> {
        self.order.values().map(|id| {
            let service = &self.services[id];
            (&service.spec, service.servers.in_order.values())
        })
    }

    /// Answers one request; what it changed is live when this returns.
    pub fn handle(&mut self, request: Request) -> Response {
        match request {
            Request::Batch(requests) => {
                let mut answers: Vec<_> = requests.into_iter().map(|one| self.carry_out(one)).collect();
                if let Err(refusal) = self.plane.settle() {
                    let unsettled = Response::Refused(refusal);
                    answers.iter_mut().filter(|answer| **answer == Response::Done).for_each(|answer| {
                        answer.clone_from(&unsettled);
                    });
                }
                Response::Batch(answers)
            }
            one => match self.carry_out(one) {
                Response::Done => self.plane.settle().into(),
                answer => answer,
            },
        }
    }

    fn carry_out(&mut self, request: Request) -> Response {
        match request {
            Request::AddService(spec) => self.add_service(spec).into(),
            Request::EditService(spec) => self.edit_service(spec).into(),
            Request::DeleteService(id) => self.delete_service(&id).into(),
            Request::AddServer { service, server } => self.add_server(&service, server).into(),
            Request::EditServer { service, server } => self.edit_server(&service, server).into(),
            Request::DeleteServer { service, server } => self.delete_server(&service, server).into(),
            Request::AddLocal { service, address } => self.add_local(&service, address).into(),
            Request::DeleteLocal { service, address } => self.delete_local(&service, address).into(),
            Request::Flush => {
                self.flush();
                Response::Done
            }
            Request::Zero(service) => self.zero(service.as_ref()).into(),
            Request::Services { service: Some(id), .. } => self.one(&id),
            Request::Services { service: None, after } => self.page(after),
            Request::Timeouts => Response::Timeouts(self.timeouts),
            Request::SetTimeouts(timeouts) => self.set_timeouts(timeouts).into(),
            Request::Settings => {
                let named = |(setting, value): (Setting, i32)| (setting.name().to_owned(), value);
                Response::Settings(self.plane.settings().iter().map(named).collect())
            }
            Request::SetSetting { name, value } => self.set_setting(&name, value).into(),
            other @ (Request::Connections { .. }
            | Request::Statistics
            | Request::Daemons
            | Request::StartDaemon(_)
            | Request::StopDaemon { .. }
            | Request::Status
            | Request::GuardOff) => self.plane.answer(other),
            Request::Capture(_) => Response::Refused(Refusal::Malformed("a capture inside a batch".into())),
            Request::Batch(_) => Response::Refused(Refusal::Malformed("a batch inside a batch".into())),
        }
    }

    fn add_service(&mut self, spec: ServiceSpec) -> Result<(), Refusal> {
        if self.services.contains_key(&spec.id) {
            return Err(Refusal::ServiceExists);
        }
        self.check_service(&spec)?;
        self.plane.add_service(&spec)?;
        self.added += 1;
        let order = kernel_order(&spec.id, self.added);
        self.order.insert(order, spec.id);
        self.services
            .insert(spec.id, Service { spec, order, servers: Servers::default(), locals: Vec::new() });
        Ok(())
    }

    fn edit_service(&mut self, spec: ServiceSpec) -> Result<(), Refusal> {
        if !self.services.contains_key(&spec.id) {
            return Err(Refusal::NoSuchService);
        }
        self.check_service(&spec)?;
        let mut servers =
            self.services.get(&spec.id).into_iter().flat_map(|service| service.servers.in_order.values());
        servers.try_for_each(|server| check_told(&spec, server))?;
        self.plane.edit_service(&spec)?;
        if let Some(service) = self.services.get_mut(&spec.id) {
            service.spec = spec;
        }
        Ok(())
    }

    fn delete_service(&mut self, id: &ServiceId) -> Result<(), Refusal> {
        let service = self.services.remove(id).ok_or(Refusal::NoSuchService)?;
        self.order.remove(&service.order);
        self.plane.delete_service(id);
        Ok(())
    }

    fn add_server(&mut self, id: &ServiceId, server: ServerSpec) -> Result<(), Refusal> {
        let service = self.services.get(id).ok_or(Refusal::ServiceNotDefined)?;
        check_server(id, &server)?;
        if service.servers.by_address.contains_key(&server.address) {
            return Err(Refusal::ServerExists);
        }
        if !is_one_host(server.address.ip()) {
            return Err(Refusal::Invalid);
        }
        self.check_method(&server)?;
        check_told(&service.spec, &server)?;
        self.plane.add_server(id, &server)?;
        if let Some(service) = self.services.get_mut(id) {
            service.servers.add(server);
        }
        Ok(())
    }

    fn edit_server(&mut self, id: &ServiceId, server: ServerSpec) -> Result<(), Refusal> {
        let service = self.services.get(id).ok_or(Refusal::ServiceNotDefined)?;
        check_server(id, &server)?;
        if !service.servers.by_address.contains_key(&server.address) {
            return Err(Refusal::NoSuchServer);
        }
        self.check_method(&server)?;
        check_told(&service.spec, &server)?;
        self.plane.edit_server(id, &server)?;
        if let Some(service) = self.services.get_mut(id) {
            service.servers.replace(server);
        }
        Ok(())
    }

    fn delete_server(&mut self, id: &ServiceId, server: SocketAddr) -> Result<(), Refusal> {
        let service = self.services.get_mut(id).ok_or(Refusal::ServiceNotDefined)?;
        if !service.servers.remove(server) {
            return Err(Refusal::NoSuchServer);
        }
        self.plane.delete_server(id, server);
        Ok(())
    }

    fn add_local(&mut self, id: &ServiceId, address: IpAddr) -> Result<(), Refusal> {
        let service = self.services.get(id).ok_or(Refusal::ServiceNotDefined)?;
        if service.locals.contains(&address) {
            return Err(Refusal::LocalExists);
        }
        if !is_one_host(address) || address.is_loopback() {
            return Err(Refusal::Invalid);
        }
        self.plane.add_local(id, address)?;
        if let Some(service) = self.services.get_mut(id) {
            service.locals.push(address);
        }
        Ok(())
    }

    fn delete_local(&mut self, id: &ServiceId, address: IpAddr) -> Result<(), Refusal> {
        let service = self.services.get_mut(id).ok_or(Refusal::ServiceNotDefined)?;
        let place = service.locals.iter().position(|local| *local == address).ok_or(Refusal::NoSuchLocal)?;
        service.locals.remove(place);
        self.plane.delete_local(id, address);
        Ok(())
    }

    fn flush(&mut self) {
        for id in std::mem::take(&mut self.order).into_values() {
            self.plane.delete_service(&id);
        }
        self.services.clear();
    }

    fn zero(&mut self, service: Option<&ServiceId>) -> Result<(), Refusal> {
        if service.is_some_and(|id| !self.services.contains_key(id)) {
            return Err(Refusal::NoSuchService);
        }
        self.plane.zero(service);
        Ok(())
    }

    fn set_timeouts(&mut self, new: Timeouts) -> Result<(), Refusal> {
        if [new.tcp, new.tcp_fin, new.udp].iter().any(|seconds| *seconds > LONGEST_TIMEOUT) {
            return Err(Refusal::Invalid);
        }
        let keep = |new: u32, old: u32| if new == 0 { old } else { new };
        self.timeouts = Timeouts {
            tcp: keep(new.tcp, self.timeouts.tcp),
            tcp_fin: keep(new.tcp_fin, self.timeouts.tcp_fin),
            udp: keep(new.udp, self.timeouts.udp),
        };
        self.plane.set_timeouts(self.timeouts);
        Ok(())
    }

    fn set_setting(&mut self, name: &str, value: i32) -> Result<(), Refusal> {
        let setting = Setting::find(name)
            .ok_or_else(|| Refusal::Unsupported(format!("this director has no setting {name:?}")))?;
        let mut settings = self.plane.settings();
        settings.set(setting, value).map_err(Refusal::Unsupported)?;
        self.plane.set_settings(settings);
        Ok(())
    }

    fn one(&self, id: &ServiceId) -> Response {
        match self.services.get(id) {
            Some(service) => Response::Services {
                services: vec![self.entry(service)],
                next: None,
                table_size: self.plane.table_size(),
            },
            None => Response::Refused(Refusal::NoSuchService),
        }
    }

    fn page(&self, after: Option<u64>) -> Response {
        let mut services = Vec::new();
        let mut length = 0;
        let mut next = None;
        for (order, id) in self.order.range(after.map_or(0, |after| after.saturating_add(1))..) {
            let service = &self.services[id];
            services.push(self.entry(service));
            length += 1 + service.servers.in_order.len();
            if length >= PAGE {
                next = Some(*order);
                break;
            }
        }
        Response::Services { services, next, table_size: self.plane.table_size() }
    }

    fn entry(&self, service: &Service) -> ServiceEntry {
        let id = &service.spec.id;
        ServiceEntry {
            service: service.spec.clone(),
            activity: self.plane.service_activity(id),
            servers: (service.servers.in_order.values().rev())
                .map(|server| ServerEntry {
                    server: *server,
                    activity: self.plane.server_activity(id, server.address),
                })
                .collect(),
            locals: (service.locals.iter().map(|address| (*address, false)))
                .chain(self.plane.leaving_locals(id).into_iter().map(|address| (address, true)))
                .map(|(address, leaving)| LocalEntry {
                    address,
                    leaving,
                    activity: self.plane.local_activity(address),
                })
                .collect(),
        }
    }

    fn check_service(&self, spec: &ServiceSpec) -> Result<(), Refusal> {
        let unknown_engine = |name: &String| !self.plane.knows_engine(name);
        if !self.plane.knows_scheduler(&spec.scheduler) || spec.engine.as_ref().is_some_and(unknown_engine) {
            return Err(Refusal::SchedulerNotFound);
        }
        match (spec.id.family(), spec.netmask) {
            (Family::Ipv4, Netmask::Ipv4(_)) | (Family::Ipv6, Netmask::Ipv6(1..=128)) => {}
            _ => return Err(Refusal::Invalid),
        }
        if matches!(spec.id, ServiceId::Mark { mark: 0, .. }) {
            return Err(Refusal::Invalid);
        }
        if spec.local_ports.is_some_and(|(first, last)| first == 0 || first > last) {
            return Err(Refusal::Invalid);
        }
        if spec.persistent.is_some_and(|seconds| seconds == 0 || seconds > LONGEST_TIMEOUT) {
            return Err(Refusal::Invalid);
        }
        let features = self.plane.features();
        let sctp = matches!(spec.id, ServiceId::Address { protocol: Protocol::Sctp, .. });
        let mark = matches!(spec.id, ServiceId::Mark { .. });
        let any_port = !mark && spec.id.port() == 0;
        for (asked, can, what) in [
            (mark, features.marks, "services by firewall mark (-f)"),
            (sctp, features.sctp, "SCTP services"),
            (spec.persistent.is_some(), features.persistence, "persistence (-p)"),
            (spec.engine.is_some(), features.persistence, "persistence engines (--pe)"),
            (spec.one_packet, features.one_packet, "one-packet scheduling (-o)"),
            (any_port, features.persistence, "services of every port (port 0)"),
        ] {
            if asked && !can {
                return Err(Refusal::Unsupported(format!("this uvs does not support {what}")));
            }
        }
        if spec.one_packet && !mark && !matches!(spec.id, ServiceId::Address { protocol: Protocol::Udp, .. })
        {
            return Err(Refusal::Unsupported("one-packet scheduling is for UDP services only".into()));
        }
        if any_port && spec.persistent.is_none() {
            return Err(Refusal::Unsupported(
                "a service of every port (port 0) has to be persistent (-p)".into(),
            ));
        }
        if let Some((_, fault)) = spec.options.fault(&spec.scheduler) {
            return Err(Refusal::Unsupported(fault));
        }
        spec.terms.fault(&spec.id).map_or(Ok(()), |fault| Err(Refusal::Unsupported(fault)))
    }

    fn check_method(&self, server: &ServerSpec) -> Result<(), Refusal> {
        if matches!(server.method, Method::Tunnel(_)) && !self.plane.features().tunnels {
            return Err(Refusal::Unsupported("this uvs does not support tunnels (-i)".into()));
        }
        Ok(())
    }
}

/// What the kernel looks at before it looks for the server.
fn check_server(service: &ServiceId, server: &ServerSpec) -> Result<(), Refusal> {
    if Family::of(server.address.ip()) != service.family() && !server.method.joins_families() {
        return Err(Refusal::Invalid);
    }
    if server.weight > i32::MAX.unsigned_abs() || server.lower_threshold > server.upper_threshold {
        return Err(Refusal::OutOfRange);
    }
    match server.method {
        Method::Tunnel(tunnel) if tunnel.kind == TunnelKind::Gue && tunnel.port == 0 => Err(Refusal::Invalid),
        _ => Ok(()),
    }
}

/// A real server that expects a header of the PROXY protocol takes nothing without one.
fn check_told(service: &ServiceSpec, server: &ServerSpec) -> Result<(), Refusal> {
    let by_header =
        matches!(service.terms.client_address, Some(ClientAddress::ProxyV1 | ClientAddress::ProxyV2));
    if by_header && server.method != Method::FullNat {
        return Err(Refusal::Unsupported(
            "the service's client address is told by the PROXY protocol, which only full NAT speaks: add this real server by it, \
             or to a service of its own"
                .into(),
        ));
    }
    Ok(())
}

impl Servers {
    fn add(&mut self, server: ServerSpec) {
        self.added += 1;
        self.by_address.insert(server.address, self.added);
        self.in_order.insert(self.added, server);
    }

    fn replace(&mut self, server: ServerSpec) {
        if let Some(place) = self.by_address.get(&server.address) {
            self.in_order.insert(*place, server);
        }
    }

    fn remove(&mut self, address: SocketAddr) -> bool {
        self.by_address.remove(&address).is_some_and(|place| self.in_order.remove(&place).is_some())
    }
}

/// Where a service stands in the kernel's listing: services by address before those by mark, in each table by row, in each
/// row the newest first. The rows are `ip_vs_svc_hashkey`'s; the salt is the one seen on a kernel with one namespace.
fn kernel_order(id: &ServiceId, added: u64) -> u64 {
    const SALT: u32 = 0xf0;
    const NEWEST: u64 = (1 << 55) - 1;
    let (table, row) = match id {
        ServiceId::Address { protocol, address } => {
            let folded = match address.ip() {
                IpAddr::V4(address) => address.to_bits(),
                IpAddr::V6(address) => fold(address),
            };
            let port = u32::from(address.port());
            (0, u32::from(protocol.number()) ^ folded ^ (port >> 8) ^ port)
        }
        ServiceId::Mark { mark, .. } => (1, *mark),
    };
    table << 63 | u64::from((row ^ SALT) & 0xff) << 55 | (NEWEST - added)
}

fn fold(address: Ipv6Addr) -> u32 {
    let bits = address.to_bits();
    (0..4).fold(0, |folded, word| folded ^ u32::try_from(bits >> (word * 32) & 0xffff_ffff).unwrap_or(0))
}

/// A data plane of which nothing is asked: services without packets. The registry's rules can be tried with it.
#[derive(Clone, Debug)]
pub struct NoPlane {
    /// What it pretends to honour.
    pub features: Features,
    /// The schedulers it pretends to have.
    pub schedulers: Vec<String>,
    /// The persistence engines it pretends to have.
    pub engines: Vec<String>,
}

impl Apply for NoPlane {
    fn features(&self) -> Features {
        self.features
    }

    fn knows_scheduler(&self, name: &str) -> bool {
        self.schedulers.iter().any(|known| known == name)
    }

    fn knows_engine(&self, name: &str) -> bool {
        self.engines.iter().any(|known| known == name)
    }

    fn table_size(&self) -> u32 {
        4096
    }

    fn add_service(&mut self, _: &ServiceSpec) -> Result<(), Refusal> {
        Ok(())
    }

    fn edit_service(&mut self, _: &ServiceSpec) -> Result<(), Refusal> {
        Ok(())
    }

    fn delete_service(&mut self, _: &ServiceId) {}

    fn add_server(&mut self, _: &ServiceId, _: &ServerSpec) -> Result<(), Refusal> {
        Ok(())
    }

    fn edit_server(&mut self, _: &ServiceId, _: &ServerSpec) -> Result<(), Refusal> {
        Ok(())
    }

    fn delete_server(&mut self, _: &ServiceId, _: SocketAddr) {}

    fn add_local(&mut self, _: &ServiceId, _: IpAddr) -> Result<(), Refusal> {
        Ok(())
    }

    fn delete_local(&mut self, _: &ServiceId, _: IpAddr) {}

    fn leaving_locals(&self, _: &ServiceId) -> Vec<IpAddr> {
        Vec::new()
    }

    fn local_activity(&self, _: IpAddr) -> LocalActivity {
        LocalActivity::default()
    }

    fn zero(&mut self, _: Option<&ServiceId>) {}

    fn set_timeouts(&mut self, _: Timeouts) {}

    fn settings(&self) -> Settings {
        Settings::default()
    }

    fn set_settings(&mut self, _: Settings) {}

    fn settle(&mut self) -> Result<(), Refusal> {
        Ok(())
    }

    fn service_activity(&self, _: &ServiceId) -> ServiceActivity {
        ServiceActivity::default()
    }

    fn server_activity(&self, _: &ServiceId, _: SocketAddr) -> ServerActivity {
        ServerActivity::default()
    }

    fn answer(&mut self, request: Request) -> Response {
        match request {
            Request::Connections { .. } => Response::Connections { connections: Vec::new(), next: None },
            Request::Statistics => Response::Statistics(Statistics::default()),
            Request::Daemons => Response::Daemons(Vec::new()),
            Request::StopDaemon { .. } => Response::Refused(Refusal::NoDaemon),
            Request::Status => Response::Status(Box::default()),
            Request::GuardOff => Response::Done,
            _ => Response::Refused(Refusal::Unsupported("there is no data plane".into())),
        }
    }
}
