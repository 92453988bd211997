//! The configuration file of a director, `uvs run --config FILE`, in TOML. `docs/configuration.md` describes every key.
//!
//! A file is read to its end whatever is wrong with it, so that [`Faults`] are all there are. Services and real servers pass
//! the same [`Registry`] as what `ipvsadm` says.

mod reader;

pub use reader::{Fault, Faults};

use crate::api::{
    Family, Method, Protocol, Refusal, Request, Response, ServerSpec, ServiceId, ServiceSpec, Timeouts,
    Tunnel, TunnelChecksum, TunnelKind,
};
use crate::options::{
    GuardTimeout, Interfaces, Io, Limits, OnCrash, RunOptions, SocketPlace, Workers, XdpMode,
};
use crate::registry::{Features, LONGEST_TIMEOUT, NoPlane, Registry};
use reader::{Found, Reader, Section, alternatives, did_you_mean};
use std::collections::HashMap;
use std::fmt::Write;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;
use uvs_engine::snapshot::{ForwardOptions, OnRemove};

/// As [`uvs_engine::worker::MAX_WORKERS`].
const MAX_WORKERS: u32 = 64;
const _: () = assert!(MAX_WORKERS as usize == uvs_engine::worker::MAX_WORKERS);

/// Bytes of the longest file that is read: a million services and their real servers.
const LONGEST: u64 = 256 << 20;

/// Bytes of the longest path of a socket: `sun_path` (unix(7)) less room for the name it has while it is made.
const LONGEST_SOCKET: usize = 99;

/// Reads a file.
///
/// # Errors
/// Everything wrong with it; one fault at its beginning when it cannot be read.
pub fn load(path: &Path) -> Result<RunOptions, Faults> {
    let file = path.display().to_string();
    let unreadable =
        |message| Faults { file: file.clone(), faults: vec![Fault { line: 1, column: 1, message }] };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes))
        .map_err(|error| unreadable(format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > LONGEST {
        return Err(unreadable(format!("found more than {} MiB, expected a configuration", LONGEST >> 20)));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|byte| *byte == b'\n').count();
        unreadable(format!("found a byte that is not UTF-8 in line {line}, expected a TOML file"))
    })?;
    parse(&file, &text)
}

/// Reads a text; `file` names it in faults.
///
/// # Errors
/// Everything wrong with it.
pub fn parse(file: &str, text: &str) -> Result<RunOptions, Faults> {
    let reader = Reader::new(text);
    let parsed = reader.parse();
    let mut options = RunOptions::default();
    if reader.is_clean() {
        options = document(&reader, Section::new(&reader, parsed.get_ref(), 0..0));
    }
    match reader.into_faults() {
        faults if faults.is_empty() => Ok(options),
        faults => Err(Faults { file: file.to_owned(), faults }),
    }
}

fn document(reader: &Reader<'_>, top: Section<'_, '_>) -> RunOptions {
    let options = top.table("director").map_or_else(RunOptions::default, |section| director(reader, section));
    let (services, locals) = services(reader, &top);
    let options = RunOptions {
        limits: top.table("limits").map_or(options.limits, limits),
        timeouts: top.table("timeouts").map_or(options.timeouts, timeouts),
        forward: top.table("forward").map_or(options.forward, forward),
        services,
        locals,
        ..options
    };
    top.finish();
    options
}

fn director(reader: &Reader<'_>, section: Section<'_, '_>) -> RunOptions {
    const IO: [(&str, Io); 3] = [("auto", Io::Auto), ("xdp", Io::Xdp), ("raw", Io::Raw)];
    const MODES: [(&str, XdpMode); 3] =
        [("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)];
    const ON_CRASH: [(&str, OnCrash); 2] = [("guard", OnCrash::Guard), ("kernel", OnCrash::Kernel)];
    const ON_REMOVE: [(&str, OnRemove); 2] = [("drop", OnRemove::Drop), ("keep", OnRemove::Keep)];
    let options = RunOptions {
        interfaces: interfaces(reader, &section),
        io: section.one_of("io", &IO).unwrap_or_default(),
        xdp_mode: section.one_of("xdp_mode", &MODES).unwrap_or_default(),
        workers: workers(reader, &section),
        socket: socket(reader, &section),
        assign_vips: section.boolean("assign_vips").is_some_and(|found| found.value),
        reserve_ports: section.boolean("reserve_ports").is_some_and(|found| found.value),
        on_crash: section.one_of("on_crash", &ON_CRASH).unwrap_or_default(),
        guard_timeout: section
            .number("guard_timeout", 1..=86_400)
            .map_or_else(GuardTimeout::default, |found| {
                GuardTimeout(Duration::from_secs(found.value.into()))
            }),
        on_remove: section.one_of("on_remove", &ON_REMOVE).unwrap_or_default(),
        ..RunOptions::default()
    };
    section.finish();
    options
}

fn socket(reader: &Reader<'_>, section: &Section<'_, '_>) -> SocketPlace {
    let Some(path) = section.text("socket", "the path of a socket") else { return SocketPlace::Namespace };
    let (length, expected) = (path.value.len(), format!("the path of a socket, 1 to {LONGEST_SOCKET} bytes"));
    if length == 0 || path.value.contains('\0') {
        reader.expected(path.at, format!("the text {:?}", path.value), expected);
    } else if length > LONGEST_SOCKET {
        reader.expected(path.at, format!("{length} bytes"), expected);
    }
    SocketPlace::Path(path.value.into())
}

fn interfaces(reader: &Reader<'_>, section: &Section<'_, '_>) -> Interfaces {
    const EXPECTED: &str = "a list of interface names, or [\"all\"]";
    let Some(list) = section.texts("interfaces", EXPECTED) else { return Interfaces::default() };
    if list.value.is_empty() {
        reader.expected(list.at, "an empty list", EXPECTED);
    }
    for (index, name) in list.value.iter().enumerate() {
        let impossible = |letter: char| letter == '/' || letter.is_whitespace() || letter.is_control();
        if name.value.is_empty() || name.value.len() > 15 || name.value.contains(impossible) {
            let found = format!("the text {:?}", name.value);
            reader.expected(name.at.clone(), found, "the name of an interface, at most 15 bytes");
        } else if list.value[..index].iter().any(|earlier| earlier.value == name.value) {
            reader.expected(name.at.clone(), format!("`{}` again", name.value), "each interface once");
        } else if name.value == "all" && list.value.len() > 1 {
            reader.expected(name.at.clone(), "`all` beside other names", EXPECTED);
        }
    }
    Interfaces::from_names(list.value.iter().map(|name| name.value.to_owned()).collect())
}

fn workers(reader: &Reader<'_>, section: &Section<'_, '_>) -> Workers {
    let count = section.number("workers", 1..=MAX_WORKERS);
    let pinned = section.boolean("pinned");
    let Some(cores) = section.numbers("cores", 4095) else {
        return Workers::Count {
            count: count.and_then(|found| usize::try_from(found.value).ok()),
            pinned: pinned.is_none_or(|found| found.value),
        };
    };
    if let Some(count) = count {
        reader.expected(
            count.at,
            "`workers` beside `cores`",
            "only one of them: `cores` has one worker on each",
        );
    }
    if let Some(Found { value: false, at }) = pinned {
        reader.expected(at, "`pinned = false` beside `cores`", "`workers`, which need not be pinned");
    }
    if cores.value.is_empty() {
        reader.expected(cores.at, "an empty list", "the numbers of the cores, one worker on each");
    } else if cores.value.len() > MAX_WORKERS as usize {
        reader.expected(cores.at, format!("{} cores", cores.value.len()), format!("at most {MAX_WORKERS}"));
    }
    for (index, core) in cores.value.iter().enumerate() {
        if cores.value[..index].iter().any(|earlier| earlier.value == core.value) {
            reader.expected(core.at.clone(), format!("core {} again", core.value), "each core once");
        }
    }
    Workers::Cores(cores.value.iter().filter_map(|core| usize::try_from(core.value).ok()).collect())
}

fn limits(section: Section<'_, '_>) -> Limits {
    let Limits { connections_ipv4, connections_ipv6, destinations } = Limits::default();
    let read = |key, most, default| section.number(key, 1..=most).map_or(default, |found| found.value);
    let limits = Limits {
        connections_ipv4: read("connections_ipv4", 1 << 28, connections_ipv4),
        connections_ipv6: read("connections_ipv6", 1 << 28, connections_ipv6),
        destinations: read("destinations", 1 << 24, destinations),
    };
    section.finish();
    limits
}

fn timeouts(section: Section<'_, '_>) -> Timeouts {
    let Timeouts { tcp, tcp_fin, udp } = Timeouts::default();
    let read = |key, default| section.number(key, 1..=LONGEST_TIMEOUT).map_or(default, |found| found.value);
    let timeouts =
        Timeouts { tcp: read("tcp", tcp), tcp_fin: read("tcp_fin", tcp_fin), udp: read("udp", udp) };
    section.finish();
    timeouts
}

const LOCAL_ADDRESSES: &str = "a list of IP addresses, such as [\"192.0.2.9\"]";

fn forward(section: Section<'_, '_>) -> ForwardOptions {
    let ForwardOptions { pmtu_disc, .. } = ForwardOptions::default();
    let options = ForwardOptions {
        pmtu_disc: section.boolean("pmtu_disc").map_or(pmtu_disc, |found| found.value),
        rfc6040: section.one_of("tunnel_ecn", &[("ipvs", false), ("rfc6040", true)]).unwrap_or_default(),
    };
    section.finish();
    options
}

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
type Read = (Vec<(ServiceSpec, Vec<ServerSpec>)>, Vec<(ServiceId, IpAddr)>);

fn services(reader: &Reader<'_>, top: &Section<'_, '_>) -> Read {
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
        let local_ports = self.local_ports(&section);
        let locals = section.texts("local_addresses", LOCAL_ADDRESSES);
        let servers = section.tables("server", "service.server");
        section.finish();
        let spec = address.and_then(|address| match address.value.parse::<SocketAddr>() {
            Ok(parsed) if parsed.port() != 0 => {
                let id = ServiceId::Address { protocol: protocol.unwrap_or(Protocol::Tcp), address: parsed };
                let spec = ServiceSpec { local_ports, ..ServiceSpec::new(id, &scheduler) };
                Some((spec, address.at))
            }
            _ => {
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

/// Writes options so that reading them gives the same again.
pub fn render(options: &RunOptions) -> String {
    let mut text = "[director]\n".to_owned();
    let list = |items: &[String]| items.join(", ");
    match &options.interfaces {
        Interfaces::All => text.push_str("interfaces = [\"all\"]\n"),
        Interfaces::Named(names) if names.is_empty() => {}
        Interfaces::Named(names) => {
            let quoted: Vec<_> = names.iter().map(|name| quote(name)).collect();
            let _ = writeln!(text, "interfaces = [{}]", list(&quoted));
        }
    }
    let io = match options.io {
        Io::Auto => "auto",
        Io::Xdp => "xdp",
        Io::Raw => "raw",
    };
    let mode = match options.xdp_mode {
        XdpMode::Auto => "auto",
        XdpMode::Native => "native",
        XdpMode::Generic => "generic",
    };
    let _ = writeln!(text, "io = \"{io}\"\nxdp_mode = \"{mode}\"");
    match &options.workers {
        Workers::Count { count, pinned } => {
            if let Some(count) = count {
                let _ = writeln!(text, "workers = {count}");
            }
            let _ = writeln!(text, "pinned = {pinned}");
        }
        Workers::Cores(cores) => {
            let cores: Vec<_> = cores.iter().map(usize::to_string).collect();
            let _ = writeln!(text, "cores = [{}]", list(&cores));
        }
    }
    if let SocketPlace::Path(path) = &options.socket {
        let _ = writeln!(text, "socket = {}", quote(&path.to_string_lossy()));
    }
    let on_crash = match options.on_crash {
        OnCrash::Guard => "guard",
        OnCrash::Kernel => "kernel",
    };
    let on_remove = match options.on_remove {
        OnRemove::Drop => "drop",
        OnRemove::Keep => "keep",
    };
    let (limits, timeouts) = (options.limits, options.timeouts);
    let _ = write!(
        text,
        "assign_vips = {}\nreserve_ports = {}\non_crash = \"{on_crash}\"\nguard_timeout = {}\n\
         on_remove = \"{on_remove}\"\n\n\
         [limits]\nconnections_ipv4 = {}\nconnections_ipv6 = {}\ndestinations = {}\n\n\
         [timeouts]\ntcp = {}\ntcp_fin = {}\nudp = {}\n\n\
         [forward]\npmtu_disc = {}\ntunnel_ecn = \"{}\"\n",
        options.assign_vips,
        options.reserve_ports,
        options.guard_timeout.0.as_secs(),
        limits.connections_ipv4,
        limits.connections_ipv6,
        limits.destinations,
        timeouts.tcp,
        timeouts.tcp_fin,
        timeouts.udp,
        options.forward.pmtu_disc,
        if options.forward.rfc6040 { "rfc6040" } else { "ipvs" },
    );
    for (service, servers) in &options.services {
        let locals = options.locals.iter().filter(|(id, _)| *id == service.id);
        let locals: Vec<_> = locals.map(|(_, address)| format!("\"{address}\"")).collect();
        render_service(&mut text, service, &locals, servers);
    }
    text
}

fn render_service(text: &mut String, service: &ServiceSpec, locals: &[String], servers: &[ServerSpec]) {
    let ServiceId::Address { protocol, address } = service.id else { return };
    let protocol = protocol.to_string().to_lowercase();
    let _ = writeln!(
        text,
        "\n[[service]]\naddress = \"{address}\"\nprotocol = \"{protocol}\"\nscheduler = {}",
        quote(&service.scheduler)
    );
    if !locals.is_empty() {
        let _ = writeln!(text, "local_addresses = [{}]", locals.join(", "));
    }
    if let Some((first, last)) = service.local_ports {
        let _ = writeln!(text, "local_ports = \"{first}-{last}\"");
    }
    for server in servers {
        let method = match server.method {
            Method::Masquerading => "nat",
            Method::FullNat => "fullnat",
            Method::Direct => "direct",
            Method::Tunnel(_) => "tunnel",
        };
        let ServerSpec { address, weight, upper_threshold, lower_threshold, .. } = server;
        let _ = writeln!(
            text,
            "\n[[service.server]]\naddress = \"{address}\"\nmethod = \"{method}\"\nweight = {weight}\n\
             upper_threshold = {upper_threshold}\nlower_threshold = {lower_threshold}"
        );
        if let Method::Tunnel(tunnel) = server.method {
            render_tunnel(text, tunnel);
        }
    }
}

fn render_tunnel(text: &mut String, tunnel: Tunnel) {
    let kind = match tunnel.kind {
        TunnelKind::Ipip => "ipip",
        TunnelKind::Gue => "gue",
        TunnelKind::Gre => "gre",
    };
    let checksum = match tunnel.checksum {
        TunnelChecksum::None => "none",
        TunnelChecksum::Full => "full",
        TunnelChecksum::Remote => "remote",
    };
    let _ = writeln!(text, "tunnel = \"{kind}\"\ntunnel_checksum = \"{checksum}\"");
    if tunnel.port != 0 {
        let _ = writeln!(text, "tunnel_port = {}", tunnel.port);
    }
}

fn quote(text: &str) -> String {
    toml::Value::from(text).to_string()
}
