//! The listings as JSON. Every key is always there; `docs/json.md` describes them.

use serde::Serialize;
use uvs_control::api::{
    AddressOption, ClientAddress, ConnectionEntry, Counters, Daemon, Family, LocalEntry, Method, Netmask,
    Protocol, Rates, RefuseWith, ServerEntry, ServiceEntry, ServiceId, StateTimeouts, Timeouts, Tunnel,
    TunnelChecksum, TunnelKind,
};

#[derive(Serialize)]
struct Table<'a> {
    services: Vec<Service<'a>>,
}

#[derive(Serialize)]
struct Service<'a> {
    protocol: Option<Protocol>,
    address: Option<String>,
    port: Option<u16>,
    fwmark: Option<u32>,
    family: Family,
    scheduler: &'a str,
    flags: Vec<String>,
    table_size: Option<u32>,
    half_life: Option<u32>,
    load_bound: Option<u32>,
    persistent: Option<u32>,
    netmask: String,
    persistence_engine: Option<&'a str>,
    one_packet: bool,
    client_address: Option<ClientAddress>,
    toa: AddressOption,
    mss: Option<u16>,
    refuse: RefuseWith,
    timeouts: StateTimeouts,
    counters: Numbers,
    rates: Numbers,
    servers: Vec<Server>,
    local_addresses: Vec<Local>,
}

#[derive(Serialize)]
struct Local {
    address: String,
    leaving: bool,
    port_conflicts: u64,
    connections: u64,
}

#[derive(Serialize)]
struct Server {
    address: String,
    port: u16,
    method: &'static str,
    tunnel: Option<TunnelView>,
    weight: u32,
    upper_threshold: u32,
    lower_threshold: u32,
    active_connections: u32,
    inactive_connections: u32,
    persistent_connections: u32,
    counters: Numbers,
    rates: Numbers,
}

#[derive(Serialize)]
struct TunnelView {
    r#type: TunnelKind,
    port: u16,
    checksum: TunnelChecksum,
}

#[derive(Serialize)]
struct Numbers {
    connections: u64,
    in_packets: u64,
    out_packets: u64,
    in_bytes: u64,
    out_bytes: u64,
}

#[derive(Serialize)]
struct Connections<'a> {
    connections: Vec<Connection<'a>>,
}

#[derive(Serialize)]
struct Connection<'a> {
    protocol: u8,
    client: String,
    r#virtual: String,
    server: String,
    state: &'a str,
    expires: u32,
    persistence_engine: Option<&'a str>,
    persistence_data: Option<&'a str>,
}

/// The table of services.
pub(super) fn services(entries: &[ServiceEntry]) -> String {
    print(&Table { services: entries.iter().map(service).collect() })
}

/// The connections.
pub(super) fn connections(entries: &[ConnectionEntry]) -> String {
    let connections = entries.iter().map(|entry| Connection {
        protocol: entry.protocol,
        client: entry.client.to_string(),
        r#virtual: entry.virtual_address.to_string(),
        server: entry.server.to_string(),
        state: &entry.state,
        expires: entry.expires,
        persistence_engine: entry.engine.as_ref().map(|(name, _)| name.as_str()),
        persistence_data: entry.engine.as_ref().map(|(_, data)| data.as_str()),
    });
    print(&Connections { connections: connections.collect() })
}

/// The state timeouts.
pub(super) fn timeouts(timeouts: &Timeouts) -> String {
    print(timeouts)
}

/// The synchronisation daemons.
pub(super) fn daemons(daemons: &[Daemon]) -> String {
    print(&daemons)
}

fn service(entry: &ServiceEntry) -> Service<'_> {
    let spec = &entry.service;
    let (protocol, address, fwmark) = match spec.id {
        ServiceId::Address { protocol, address } => (Some(protocol), Some(address), None),
        ServiceId::Mark { mark, .. } => (None, None, Some(mark)),
    };
    let flags = super::listing::flag_names(spec).unwrap_or_default();
    Service {
        protocol,
        address: address.map(|address| address.ip().to_string()),
        port: address.map(|address| address.port()),
        fwmark,
        family: spec.id.family(),
        scheduler: &spec.scheduler,
        flags: flags.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        table_size: spec.options.table_size,
        half_life: spec.options.half_life,
        load_bound: spec.options.load_bound,
        persistent: spec.persistent,
        netmask: match spec.netmask {
            Netmask::Ipv4(mask) => mask.to_string(),
            Netmask::Ipv6(bits) => bits.to_string(),
        },
        persistence_engine: spec.engine.as_deref(),
        one_packet: spec.one_packet,
        client_address: spec.terms.client_address,
        toa: spec.terms.toa,
        mss: spec.terms.mss,
        timeouts: spec.terms.timeouts,
        refuse: spec.terms.refuse,
        counters: entry.activity.counters.into(),
        rates: entry.activity.rates.into(),
        servers: entry.servers.iter().map(server).collect(),
        local_addresses: entry.locals.iter().map(local).collect(),
    }
}

fn local(entry: &LocalEntry) -> Local {
    Local {
        address: entry.address.to_string(),
        leaving: entry.leaving,
        port_conflicts: entry.activity.conflicts,
        connections: entry.activity.connections,
    }
}

fn server(entry: &ServerEntry) -> Server {
    let (server, activity) = (&entry.server, &entry.activity);
    let (method, tunnel) = match server.method {
        Method::Masquerading => ("masquerading", None),
        Method::Direct => ("direct", None),
        Method::FullNat => ("fullnat", None),
        Method::Tunnel(Tunnel { kind, port, checksum }) => {
            ("tunnel", Some(TunnelView { r#type: kind, port, checksum }))
        }
    };
    Server {
        address: server.address.ip().to_string(),
        port: server.address.port(),
        method,
        tunnel,
        weight: server.weight,
        upper_threshold: server.upper_threshold,
        lower_threshold: server.lower_threshold,
        active_connections: activity.active,
        inactive_connections: activity.inactive,
        persistent_connections: activity.persistent,
        counters: activity.counters.into(),
        rates: activity.rates.into(),
    }
}

impl From<Counters> for Numbers {
    fn from(counters: Counters) -> Self {
        let Counters { connections, in_packets, out_packets, in_bytes, out_bytes } = counters;
        Numbers { connections, in_packets, out_packets, in_bytes, out_bytes }
    }
}

impl From<Rates> for Numbers {
    fn from(rates: Rates) -> Self {
        let Rates { connections, in_packets, out_packets, in_bytes, out_bytes } = rates;
        Numbers { connections, in_packets, out_packets, in_bytes, out_bytes }
    }
}

fn print(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).map(|text| text + "\n").unwrap_or_default()
}
