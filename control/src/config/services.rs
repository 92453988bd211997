//! The services of a configuration file.

use super::reader::{Found, Reader, Section, alternatives, did_you_mean};
use super::{persistence, terms};
use crate::api::{
    Family, Method, Protocol, Refusal, Request, Response, SchedulerFlags, SchedulerOptions, ServerSpec,
    ServiceId, ServiceSpec, Timeouts, Tunnel, TunnelChecksum, TunnelKind,
};
use crate::registry::{Features, NoPlane, Registry};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

const LOCAL_ADDRESSES: &str = "a list of IP addresses, such as [\"192.0.2.9\"]";

/// Services as they are read, and the registry that judges them.
struct Services<'r, 'i> {
    reader: &'r Reader<'i>,
    schedulers: Vec<String>,
    registry: Registry<NoPlane>,
    lines: HashMap<ServiceId, usize>,
    read: Vec<(ServiceSpec, Vec<ServerSpec>)>,
    locals: Vec<(ServiceId, IpAddr)>,
}

/// The services with their real servers, and the services' local addresses.
pub(super) type Read = (Vec<(ServiceSpec, Vec<ServerSpec>)>, Vec<(ServiceId, IpAddr)>);

/// Reads them all.
pub(super) fn read(reader: &Reader<'_>, top: &Section<'_, '_>) -> Read {
    let schedulers: Vec<_> = uvs_schedulers::Registry::default().names().map(str::to_owned).collect();
    let plane = NoPlane { features: Features::HONOURED, schedulers: schedulers.clone(), engines: Vec::new() };
    let registry = Registry::new(plane, Timeouts::default());
    let mut services = Services {
        reader,
        schedulers,
        registry,
        lines: HashMap::new(),
        read: Vec::new(),
        locals: Vec::new(),
    };
    for section in top.tables("service", "service") {
        services.service(section);
    }
    (services.read, services.locals)
}

impl Services<'_, '_> {
    fn service(&mut self, section: Section<'_, '_>) {
        const ADDRESS: &str = "an IP address and a port, such as \"192.0.2.1:80\" or \"[2001:db8::1]:80\"";
        let at = section.at.clone();
        let address = section.required_text("address", ADDRESS);
        let protocol = section.one_of("protocol", &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)]);
        let scheduler = self.scheduler(&section);
        let flags = self.flags(&section, &scheduler);
        let options = self.options(&section, &scheduler);
        let local_ports = self.local_ports(&section);
        let one_packet = section.boolean("one_packet").is_some_and(|found| found.value);
        let persistence = persistence::read(&section);
        let terms = terms::read(&section);
        let locals = section.texts("local_addresses", LOCAL_ADDRESSES);
        let servers = section.tables("server", "service.server");
        section.finish();
        let spec = address.and_then(|address| match address.value.parse::<SocketAddr>() {
            Ok(parsed) if parsed.port() != 0 || persistence.persistent.is_some() => {
                let id = ServiceId::Address { protocol: protocol.unwrap_or(Protocol::Tcp), address: parsed };
                let netmask = persistence.netmask(self.reader, id.family());
                let plain = ServiceSpec::new(id, &scheduler);
                let persistent = persistence.persistent;
                let spec = ServiceSpec {
                    flags,
                    options,
                    persistent,
                    netmask,
                    local_ports,
                    one_packet,
                    terms,
                    ..plain
                };
                Some((spec, address.at))
            }
            Ok(_) => {
                let expected =
                    "`persistent` beside it: only a service that keeps clients may have every port";
                self.reader.expected(address.at, "port 0", expected);
                None
            }
            Err(_) => {
                self.reader.expected(address.at, format!("the text \"{}\"", address.value), ADDRESS);
                None
            }
        });
        let id = spec.as_ref().map(|(spec, _)| spec.id);
        let known = spec.is_some_and(|(spec, address_at)| self.add_service(spec, &at, address_at));
        if let Some(id) = id.filter(|_| known) {
            locals.into_iter().flat_map(|list| list.value).for_each(|local| self.local(id, &local));
        }
        let mut read = Vec::new();
        let mut lines = HashMap::new();
        for section in servers {
            let at = section.at.clone();
            let Some((server, address_at)) = self.server(section, id) else { continue };
            let Some(id) = id.filter(|_| known) else { continue };
            let request = Request::AddServer { service: id, server };
            let earlier = lines.insert(server.address, self.reader.line(&at));
            if self.accepted(request, address_at, &server.address.to_string(), earlier) {
                read.push(server);
            }
        }
        if let Some((_, servers)) = self.read.last_mut().filter(|_| known) {
            *servers = read;
        }
    }

    fn local_ports(&self, section: &Section<'_, '_>) -> Option<(u16, u16)> {
        const PORTS: &str = "the first and the last port, such as \"5000-65535\"";
        let found = section.text("local_ports", PORTS)?;
        let ends = found.value.split_once('-').and_then(|(first, last)| {
            let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0);
            port(first).zip(port(last)).filter(|(first, last)| first <= last)
        });
        if ends.is_none() {
            self.reader.expected(found.at, format!("the text \"{}\"", found.value), PORTS);
        }
        ends
    }

    fn local(&mut self, service: ServiceId, text: &Found<&str>) {
        let Ok(address) = text.value.parse::<IpAddr>() else {
            let found = format!("the text \"{}\"", text.value);
            self.reader.expected(text.at.clone(), found, LOCAL_ADDRESSES);
            return;
        };
        let request = Request::AddLocal { service, address };
        if self.accepted(request, text.at.clone(), &address.to_string(), None) {
            self.locals.push((service, address));
        }
    }

    fn scheduler(&self, section: &Section<'_, '_>) -> String {
        let names: Vec<_> = self.schedulers.iter().map(String::as_str).collect();
        let expected = alternatives(&names);
        match section.text("scheduler", &expected) {
            Some(Found { value, .. }) if names.contains(&value) => value.to_owned(),
            Some(Found { value, at }) => {
                let hint = did_you_mean(value, &names);
                self.reader.expected(at, format!("the scheduler `{value}`"), format!("{expected}{hint}"));
                "wlc".to_owned()
            }
            None => "wlc".to_owned(),
        }
    }

    fn flags(&self, section: &Section<'_, '_>, scheduler: &str) -> SchedulerFlags {
        let known = SchedulerFlags::NAMES.iter().filter(|(of, ..)| of.is_none_or(|of| of == scheduler));
        let names: Vec<_> = known.clone().map(|(_, name, _)| *name).collect();
        let expected = format!("a list of {}", alternatives(&names));
        let mut flags = SchedulerFlags::default();
        for found in section.texts("flags", &expected).into_iter().flat_map(|list| list.value) {
            match known.clone().find(|(_, name, _)| *name == found.value) {
                Some((.., flag)) => flags = flags | *flag,
                None => self.reader.expected(
                    found.at,
                    format!("the flag `{}`", found.value),
                    format!("of the scheduler {scheduler} {}", alternatives(&names)),
                ),
            }
        }
        flags
    }

    fn options(&self, section: &Section<'_, '_>, scheduler: &str) -> SchedulerOptions {
        let number = |key| section.number(key, 1..=u32::MAX).map(|found| found.value);
        let options = SchedulerOptions {
            table_size: number("table_size"),
            half_life: number("half_life"),
            load_bound: number("load_bound"),
        };
        let Some((key, fault)) = options.fault(scheduler) else { return options };
        if let Some(at) = section.place(key) {
            self.reader.fault(at, format!("found `{key}`: {fault}"));
        }
        SchedulerOptions::default()
    }

    fn add_service(&mut self, spec: ServiceSpec, at: &Range<usize>, address_at: Range<usize>) -> bool {
        let (id, name) = (spec.id, spec.id.to_string());
        let earlier = self.lines.get(&id).copied();
        let accepted = self.accepted(Request::AddService(spec.clone()), address_at, &name, earlier);
        if accepted {
            self.lines.insert(id, self.reader.line(at));
            self.read.push((spec, Vec::new()));
        }
        accepted
    }

    /// A real server and where its address stands; `None` when too much of it is wrong.
    fn server(
        &self,
        section: Section<'_, '_>,
        service: Option<ServiceId>,
    ) -> Option<(ServerSpec, Range<usize>)> {
        const ADDRESS: &str = "an IP address, with a port unless it is the service's";
        let address = section.required_text("address", ADDRESS);
        let (method, mut sensible) = self.method(&section);
        let weight = section.number("weight", 0..=i32::MAX.unsigned_abs());
        let upper = section.number("upper_threshold", 0..=i32::MAX.unsigned_abs());
        let lower = section.number("lower_threshold", 0..=i32::MAX.unsigned_abs());
        section.finish();
        let port = service.map_or(0, |id| id.port());
        let address = address?;
        let parsed = address.value.parse::<SocketAddr>();
        let alone = address.value.parse::<IpAddr>().map(|address| SocketAddr::new(address, port));
        let Ok(parsed) = parsed.or(alone) else {
            self.reader.expected(address.at, format!("the text \"{}\"", address.value), ADDRESS);
            return None;
        };
        let server = ServerSpec {
            address: parsed,
            method,
            weight: weight.map_or(1, |found| found.value),
            upper_threshold: upper.as_ref().map_or(0, |found| found.value),
            lower_threshold: lower.as_ref().map_or(0, |found| found.value),
        };
        if let Some(lower) = lower.filter(|lower| lower.value > server.upper_threshold) {
            let most = format!("at most the upper threshold, {}", server.upper_threshold);
            self.reader.expected(lower.at, format!("the lower threshold {}", lower.value), most);
            sensible = false;
        }
        if let Some(id) = service {
            sensible &= self.reachable(&server, &id, &address.at);
        }
        sensible.then_some((server, address.at))
    }

    /// How packets reach a real server, and whether that makes sense. What is wrong with it is noted.
    fn method(&self, section: &Section<'_, '_>) -> (Method, bool) {
        const KINDS: [(&str, TunnelKind); 3] =
            [("ipip", TunnelKind::Ipip), ("gue", TunnelKind::Gue), ("gre", TunnelKind::Gre)];
        const CHECKSUMS: [(&str, TunnelChecksum); 3] = [
            ("none", TunnelChecksum::None),
            ("full", TunnelChecksum::Full),
            ("remote", TunnelChecksum::Remote),
        ];
        let tunnel = Method::Tunnel(Tunnel::default());
        let methods = [
            ("nat", Method::Masquerading),
            ("direct", Method::Direct),
            ("tunnel", tunnel),
            ("fullnat", Method::FullNat),
        ];
        let method = section.one_of("method", &methods).unwrap_or_default();
        let kind_at = section.place("tunnel");
        let kind = section.one_of("tunnel", &KINDS);
        let port = section.number("tunnel_port", 1..=65535);
        let checksum_at = section.place("tunnel_checksum");
        let checksum = section.one_of("tunnel_checksum", &CHECKSUMS);
        let Method::Tunnel(_) = method else {
            let keys = [
                (kind_at, "tunnel"),
                (port.map(|port| port.at), "tunnel_port"),
                (checksum_at, "tunnel_checksum"),
            ];
            for (at, key) in keys {
                if let Some(at) = at {
                    self.reader.expected(at, format!("`{key}`"), "it only beside `method = \"tunnel\"`");
                }
            }
            return (method, true);
        };
        let kind = kind.unwrap_or_default();
        let mut sensible = true;
        let mut wrong = |at, found: &str, expected: &str| {
            self.reader.expected(at, found, expected);
            sensible = false;
        };
        match (&port, kind) {
            (None, TunnelKind::Gue) => {
                let at = kind_at.unwrap_or_else(|| section.at.clone());
                wrong(
                    at,
                    "a GUE tunnel without `tunnel_port`",
                    "the UDP port that the real server takes it at",
                );
            }
            (Some(port), TunnelKind::Ipip | TunnelKind::Gre) => {
                wrong(port.at.clone(), "`tunnel_port`", "it only beside `tunnel = \"gue\"`");
            }
            _ => {}
        }
        let checksum = checksum.unwrap_or_default();
        if let Some(at) = checksum_at {
            let expected = match (kind, checksum) {
                (TunnelKind::Ipip, TunnelChecksum::Full | TunnelChecksum::Remote) => {
                    Some("`none`: IP in IP has no checksum of its own")
                }
                (TunnelKind::Gre, TunnelChecksum::Remote) => {
                    Some("`none` or `full`: only GUE has remote checksums")
                }
                _ => None,
            };
            if let Some(expected) = expected {
                wrong(at, "this `tunnel_checksum`", expected);
            }
        }
        let port = port.and_then(|port| u16::try_from(port.value).ok()).unwrap_or(0);
        (Method::Tunnel(Tunnel { kind, port, checksum }), sensible)
    }

    fn reachable(&self, server: &ServerSpec, service: &ServiceId, at: &Range<usize>) -> bool {
        let tunnel = matches!(server.method, Method::Tunnel(_));
        if Family::of(server.address.ip()) != service.family() && !server.method.joins_families() {
            let family = if service.family() == Family::Ipv4 { "an IPv4" } else { "an IPv6" };
            self.reader.expected(at.clone(), server.address, format!("{family} address, as the service has"));
            return false;
        }
        if server.reached_from(service) != *server {
            let port = service.port();
            let how = if tunnel { "a tunnel" } else { "direct routing" };
            let expected = format!("port {port} or none: {how} leaves the service's port as it is");
            self.reader.expected(at.clone(), format!("port {}", server.address.port()), expected);
            return false;
        }
        true
    }

    /// Whether the registry takes it; otherwise the reason is noted.
    fn accepted(&mut self, request: Request, at: Range<usize>, what: &str, earlier: Option<usize>) -> bool {
        let Response::Refused(refusal) = self.registry.handle(request) else { return true };
        match (refusal, earlier) {
            (Refusal::ServiceExists | Refusal::ServerExists, Some(line)) => {
                self.reader.expected(
                    at,
                    format!("{what} again"),
                    format!("it once: line {line} has it already"),
                );
            }
            (Refusal::LocalExists, _) => {
                self.reader.expected(at, format!("{what} again"), "each local address of a service once");
            }
            (Refusal::Invalid, _) => {
                self.reader.expected(at, what, "the unicast address of one host, not link-local");
            }
            (refusal, _) => self.reader.fault(at, format!("found {what}: {refusal}")),
        }
        false
    }
}
