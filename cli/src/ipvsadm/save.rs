//! What `-S` prints: the commands that make the table what it is, but for thresholds, which ipvsadm does not save.

use super::listing::{flag_names, granularity, port_names};
use super::names::Names;
use std::fmt::Write;
use uvs_control::api::{
    AddressOption, ClientAddress, Family, Method, Protocol, RefuseWith, SchedulerOptions, ServerEntry,
    ServiceEntry, ServiceId, Terms, TunnelChecksum, TunnelKind,
};

/// The commands, one a line, without a program's name.
pub(super) fn save(services: &[ServiceEntry], numeric: bool) -> String {
    let mut names = Names::new(numeric);
    let mut text = String::new();
    for entry in services {
        let service = service_option(&entry.service.id, &mut names);
        service_line(&mut text, entry, &service);
        for server in &entry.servers {
            server_line(&mut text, entry, server, &service, &mut names);
        }
        for local in entry.locals.iter().filter(|local| !local.leaving) {
            let _ = writeln!(text, "-P {service} -z {}", local.address);
        }
    }
    text
}

fn service_option(id: &ServiceId, names: &mut Names) -> String {
    match id {
        ServiceId::Address { protocol, address } => {
            let option = match protocol {
                Protocol::Tcp => "-t",
                Protocol::Udp => "-u",
                Protocol::Sctp => "--sctp-service",
            };
            format!("{option} {}", names.write(*address, Some(*protocol)))
        }
        ServiceId::Mark { mark, family } => {
            let family = if *family == Family::Ipv6 { " -6" } else { "" };
            format!("-f {}{family}", mark.cast_signed())
        }
    }
}

fn service_line(text: &mut String, entry: &ServiceEntry, service: &str) {
    let spec = &entry.service;
    let _ = write!(text, "-A {service} -s {}", spec.scheduler);
    if let Some(seconds) = spec.persistent {
        let _ = write!(text, " -p {seconds}");
        if let Some(mask) = granularity(spec) {
            let _ = write!(text, " -M {mask}");
        }
    }
    if let Some(engine) = &spec.engine {
        let _ = write!(text, " --pe {engine}");
    }
    if spec.one_packet {
        text.push_str(" -o");
    }
    if let Some(flags) = flag_names(spec) {
        let _ = write!(text, " -b {flags}");
    }
    let SchedulerOptions { table_size, half_life, load_bound } = spec.options;
    for (name, value) in [("table-size", table_size), ("half-life", half_life), ("load-bound", load_bound)] {
        if let Some(value) = value {
            let _ = write!(text, " --{name} {value}");
        }
    }
    save_terms(text, &spec.terms);
    text.push('\n');
}

/// What is uvs's own, where it is not as it would be anyway.
fn save_terms(text: &mut String, terms: &Terms) {
    if let Some(how) = terms.client_address {
        let word = match how {
            ClientAddress::None => "none",
            ClientAddress::Toa => "toa",
            ClientAddress::ProxyV1 => "proxy-v1",
            ClientAddress::ProxyV2 => "proxy-v2",
        };
        let _ = write!(text, " --client-address {word}");
    }
    let usual = AddressOption::default();
    for (name, kind, usual) in
        [("toa-kind", terms.toa.kind, usual.kind), ("toa-kind-ipv6", terms.toa.kind_ipv6, usual.kind_ipv6)]
    {
        if kind != usual {
            let _ = write!(text, " --{name} {kind}");
        }
    }
    if !terms.toa.on_syn {
        text.push_str(" --toa-not-on-syn");
    }
    if let Some(mss) = terms.mss {
        let _ = write!(text, " --mss {mss}");
    }
    if terms.refuse == RefuseWith::Reset {
        text.push_str(" --refuse reset");
    }
    if !terms.timeouts.0.is_empty() {
        let _ = write!(text, " --state-timeouts {}", terms.timeouts);
    }
}

fn server_line(
    text: &mut String,
    entry: &ServiceEntry,
    server: &ServerEntry,
    service: &str,
    names: &mut Names,
) {
    let server = &server.server;
    let name = names.write(server.address, port_names(&entry.service.id));
    let method = match server.method {
        Method::Masquerading => "-m",
        Method::Direct => "-g",
        Method::Tunnel(_) => "-i",
        Method::FullNat => "-b",
    };
    let _ = write!(text, "-a {service} -r {name} {method} -w {}", server.weight);
    if let Method::Tunnel(tunnel) = server.method {
        text.push_str(match tunnel.kind {
            TunnelKind::Ipip => " --tun-type ipip",
            TunnelKind::Gue => " --tun-type gue",
            TunnelKind::Gre => " --tun-type gre",
        });
        if tunnel.kind == TunnelKind::Gue {
            let _ = write!(text, " --tun-port {}", tunnel.port);
        }
        if tunnel.kind != TunnelKind::Ipip {
            text.push_str(match tunnel.checksum {
                TunnelChecksum::None => " --tun-nocsum",
                TunnelChecksum::Full => " --tun-csum",
                TunnelChecksum::Remote => " --tun-remcsum",
            });
        }
    }
    text.push('\n');
}
