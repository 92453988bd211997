//! What `-L` prints, column by column as ipvsadm prints it.

use super::IPVS_VERSION;
use super::names::Names;
use super::parse::{Columns, Listing};
use std::fmt::Write;
use uvs_control::api::{
    ConnectionEntry, Counters, Daemon, DaemonState, Family, Method, Netmask, Protocol, Rates, ServerEntry,
    ServiceEntry, ServiceId, ServiceSpec, Timeouts, Tunnel, TunnelChecksum, TunnelKind,
};

/// The table of services. `table_size` titles the listing of all of them.
pub(super) fn services(listing: &Listing, services: &[ServiceEntry], table_size: Option<u32>) -> String {
    let mut names = Names::new(listing.numeric);
    let mut text = String::new();
    if let Some(size) = table_size {
        let _ = writeln!(text, "IP Virtual Server version {IPVS_VERSION} (size={size})");
    }
    text.push_str(heading(listing.columns));
    for entry in services {
        service_line(&mut text, listing, entry, &mut names);
        for server in &entry.servers {
            server_line(&mut text, listing, entry, server, &mut names);
        }
    }
    text
}

fn heading(columns: Columns) -> &'static str {
    match columns {
        Columns::Usual => {
            "Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
        }
        Columns::Stats => {
            "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes\n  -> RemoteAddress:Port\n"
        }
        Columns::Rate => {
            "Prot LocalAddress:Port                 CPS    InPPS   OutPPS    InBPS   OutBPS\n  -> RemoteAddress:Port\n"
        }
        Columns::Thresholds => {
            "Prot LocalAddress:Port            Uthreshold Lthreshold ActiveConn InActConn \n  -> RemoteAddress:Port\n"
        }
        Columns::PersistentConnections => {
            "Prot LocalAddress:Port            Weight    PersistConn ActiveConn InActConn \n  -> RemoteAddress:Port\n"
        }
        Columns::Tunnels => {
            "Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward TunnelInfo    Weight ActiveConn InActConn\n"
        }
    }
}

fn service_line(text: &mut String, listing: &Listing, entry: &ServiceEntry, names: &mut Names) {
    let spec = &entry.service;
    let mut name = match spec.id {
        ServiceId::Address { protocol, address } => {
            format!("{protocol:<4} {}", names.write(address, Some(protocol)))
        }
        ServiceId::Mark { mark, family } => {
            let family = if family == Family::Ipv6 { " IPv6" } else { "" };
            format!("FWM  {}{family}", mark.cast_signed())
        }
    };
    if spec.id.family() == Family::Ipv4 {
        cut(&mut name, 33);
    }
    let _ = match listing.columns {
        Columns::Stats => {
            writeln!(text, "{name:<33}{}", counters(&entry.activity.counters, listing.exact))
        }
        Columns::Rate => writeln!(text, "{name:<33}{}", rates(&entry.activity.rates, listing.exact, true)),
        _ => writeln!(text, "{name} {}", attributes(spec)),
    };
}

/// The scheduler and what else a service has, as the default listing shows it.
fn attributes(spec: &ServiceSpec) -> String {
    let mut text = spec.scheduler.clone();
    if let Some(flags) = flag_names(spec) {
        let _ = write!(text, " ({flags})");
    }
    if let Some(seconds) = spec.persistent {
        let _ = write!(text, " persistent {seconds}");
        if let Some(mask) = granularity(spec) {
            let _ = write!(text, " mask {mask}");
        }
        if let Some(engine) = &spec.engine {
            let _ = write!(text, " pe {engine}");
        }
    }
    if spec.one_packet {
        text.push_str(" ops");
    }
    text
}

/// The names of the scheduler flags, which the scheduler decides.
pub(super) fn flag_names(spec: &ServiceSpec) -> Option<String> {
    let set: Vec<_> = spec.flags.names(&spec.scheduler).collect();
    (!set.is_empty()).then(|| set.join(","))
}

/// The netmask, when it is not one client alone.
pub(super) fn granularity(spec: &ServiceSpec) -> Option<String> {
    if spec.netmask == Netmask::host(spec.id.family()) {
        return None;
    }
    Some(match spec.netmask {
        Netmask::Ipv4(mask) => mask.to_string(),
        Netmask::Ipv6(bits) => bits.to_string(),
    })
}

fn server_line(
    text: &mut String,
    listing: &Listing,
    service: &ServiceEntry,
    entry: &ServerEntry,
    names: &mut Names,
) {
    let (server, activity) = (&entry.server, &entry.activity);
    let mut name = names.write(server.address, port_names(&service.service.id));
    if server.address.is_ipv4() {
        cut(&mut name, 28);
    }
    let (active, inactive) = (activity.active, activity.inactive);
    let (weight, method) = (server.weight, method_name(&server.method));
    let _ = match listing.columns {
        Columns::Usual => {
            writeln!(text, "  -> {name:<28} {method:<7} {weight:<6} {active:<10} {inactive:<10}")
        }
        Columns::Stats => writeln!(text, "  -> {name:<28}{}", counters(&activity.counters, listing.exact)),
        Columns::Rate => writeln!(text, "  -> {name:<28}{}", rates(&activity.rates, listing.exact, false)),
        Columns::Thresholds => {
            let (upper, lower) = (server.upper_threshold, server.lower_threshold);
            writeln!(text, "  -> {name:<28} {upper:<10} {lower:<10} {active:<10} {inactive:<10}")
        }
        Columns::PersistentConnections => {
            let persistent = activity.persistent;
            writeln!(text, "  -> {name:<28} {weight:<9} {persistent:<11} {active:<10} {inactive:<10}")
        }
        Columns::Tunnels => {
            let tunnel = tunnel_info(&server.method);
            writeln!(text, "  -> {name:<28} {method:<7} {tunnel:<13} {weight:<6} {active:<10} {inactive:<10}")
        }
    };
}

/// The local addresses of services, as the original patch's `-G` shows them.
pub(super) fn locals(services: &[ServiceEntry], numeric: bool) -> String {
    let mut names = Names::new(numeric);
    let mut text = String::new();
    let mut line = |service: &str, total: &str, address: &str, conflicts: &str, connections: &str| {
        let _ = writeln!(text, "{service:<20} {total:<8} {address:<20} {conflicts:<10} {connections:<10}");
    };
    line("VIP:VPORT", "TOTAL", "SNAT_IP", "CONFLICTS", "CONNS");
    for entry in services {
        let name = match entry.service.id {
            ServiceId::Address { protocol, address } => names.write(address, Some(protocol)),
            ServiceId::Mark { mark, .. } => mark.cast_signed().to_string(),
        };
        line(&name, &entry.locals.len().to_string(), "", "", "");
        for local in &entry.locals {
            let activity = local.activity;
            let (conflicts, connections) = (activity.conflicts.to_string(), activity.connections.to_string());
            line("", "", &local.address.to_string(), &conflicts, &connections);
        }
    }
    text
}

/// Whose names a service's ports have; those of a service by mark have none.
pub(super) fn port_names(id: &ServiceId) -> Option<Protocol> {
    match id {
        ServiceId::Address { protocol, .. } => Some(*protocol),
        ServiceId::Mark { .. } => None,
    }
}

fn method_name(method: &Method) -> &'static str {
    match method {
        Method::Masquerading => "Masq",
        Method::Direct => "Route",
        Method::Tunnel(_) => "Tunnel",
        Method::FullNat => "FullNat",
    }
}

fn tunnel_info(method: &Method) -> String {
    let Method::Tunnel(Tunnel { kind, port, checksum }) = method else { return "n/a".to_owned() };
    let checksum = match checksum {
        TunnelChecksum::None => "-c",
        TunnelChecksum::Full => "+c",
        TunnelChecksum::Remote => "r+c",
    };
    match kind {
        TunnelKind::Ipip => "ipip".to_owned(),
        TunnelKind::Gue => format!("gue:{port}:{checksum}"),
        TunnelKind::Gre => format!("gre:{checksum}"),
    }
}

fn counters(counters: &Counters, exact: bool) -> String {
    [counters.connections, counters.in_packets, counters.out_packets, counters.in_bytes, counters.out_bytes]
        .map(|number| cell(number, exact))
        .concat()
}

/// Rates; only bytes are scaled in a server's line.
fn rates(rates: &Rates, exact: bool, of_service: bool) -> String {
    let packets = [rates.connections, rates.in_packets, rates.out_packets];
    let bytes = [rates.in_bytes, rates.out_bytes];
    packets.map(|number| cell(number, exact || !of_service)).concat()
        + &bytes.map(|number| cell(number, exact)).concat()
}

/// A number in nine columns, scaled when it would not fit, or as wide as it is when it must be exact.
fn cell(number: u64, exact: bool) -> String {
    const THOUSAND: u64 = 1_000;
    match number {
        _ if exact && number > 99_999_999 => format!(" {number}"),
        _ if exact || number < 100_000_000 => format!("{number:>9}"),
        100_000_000..1_000_000_000 => format!("{:>8}K", number / THOUSAND),
        1_000_000_000..100_000_000_000 => format!("{:>8}M", number / THOUSAND.pow(2)),
        100_000_000_000..100_000_000_000_000 => format!("{:>8}G", number / THOUSAND.pow(3)),
        _ => format!("{:>8}T", number / THOUSAND.pow(4)),
    }
}

/// Cuts a text after so many bytes, as C cuts it, but never inside a character.
fn cut(text: &mut String, longest: usize) {
    if text.len() > longest {
        let end = (0..=longest).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
}

/// The head of a listing of connections.
pub(super) fn connections_heading(persistent: bool) -> String {
    let engines = if persistent { "        pe name          pe_data" } else { "" };
    format!(
        "IPVS connection entries\npro expire state       source             virtual            destination{engines}\n"
    )
}

/// One connection.
pub(super) fn connection(entry: &ConnectionEntry, persistent: bool, names: &mut Names) -> String {
    let (protocol, ports) = match entry.protocol {
        6 => ("TCP", Some(Protocol::Tcp)),
        17 => ("UDP", Some(Protocol::Udp)),
        132 => ("SCTP", Some(Protocol::Sctp)),
        _ => ("IP", None),
    };
    let expires = format!("{:02}:{:02}", entry.expires / 60, entry.expires % 60);
    let state = &entry.state;
    let client = names.write(entry.client, ports);
    let virtual_address = names.write(entry.virtual_address, ports);
    let server = names.write(entry.server, ports);
    let start = format!("{protocol:<3} {expires:<6} {state:<11} {client:<18} {virtual_address:<18}");
    match &entry.engine {
        Some((engine, data)) if persistent => format!("{start} {server:<16} {engine:<18} {data}\n"),
        _ => format!("{start} {server}\n"),
    }
}

/// The state timeouts.
pub(super) fn timeouts(timeouts: &Timeouts) -> String {
    let Timeouts { tcp, tcp_fin, udp } = timeouts;
    format!("Timeout (tcp tcpfin udp): {tcp} {tcp_fin} {udp}\n")
}

/// One synchronisation daemon.
pub(super) fn daemon(daemon: &Daemon) -> String {
    let state = match daemon.state {
        DaemonState::Master => "master",
        DaemonState::Backup => "backup",
    };
    let group = daemon.group.map_or_else(|| "224.0.0.81".to_owned(), |group| group.to_string());
    format!(
        "{state} sync daemon (mcast={}, syncid={}, maxlen={}, group={group}, port={}, ttl={})\n",
        daemon.interface, daemon.sync_id, daemon.max_length, daemon.port, daemon.ttl
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_scaled_to_nine_columns() {
        for (number, scaled, exact) in [
            (0, "        0", "        0"),
            (99_999_999, " 99999999", " 99999999"),
            (123_456_789, "  123456K", " 123456789"),
            (1_234_567_890, "    1234M", " 1234567890"),
            (123_456_789_012, "     123G", " 123456789012"),
            (123_456_789_012_345, "     123T", " 123456789012345"),
        ] {
            assert_eq!(cell(number, false), scaled);
            assert_eq!(cell(number, true), exact);
        }
    }

    #[test]
    fn connections_line_up() {
        let entry = ConnectionEntry {
            protocol: 17,
            client: "10.0.0.2:0".parse().unwrap(),
            virtual_address: "10.0.0.1:5060".parse().unwrap(),
            server: "172.16.0.2:5060".parse().unwrap(),
            state: "UDP".into(),
            expires: 120,
            engine: Some(("sip".into(), "2143dsfds@example.com".into())),
        };
        let mut names = Names::new(true);
        let plain = "UDP 02:00  UDP         10.0.0.2:0         10.0.0.1:5060      172.16.0.2:5060";
        assert_eq!(connection(&entry, false, &mut names), format!("{plain}\n"));
        assert_eq!(
            connection(&entry, true, &mut names),
            format!("{plain}  sip                2143dsfds@example.com\n")
        );
    }
}
