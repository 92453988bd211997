//! Options as the text of a configuration file.

use super::{persistence, terms};
use crate::api::{
    Method, SchedulerOptions, ServerSpec, ServiceId, ServiceSpec, Tunnel, TunnelChecksum, TunnelKind,
};
use crate::options::{Interfaces, Io, OnCrash, RunOptions, SocketPlace, Workers, XdpMode};
use std::fmt::Write;
use uvs_engine::snapshot::OnRemove;

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
         [forward]\ntunnel_ecn = \"{}\"\n\n[settings]\n",
        options.assign_vips,
        options.reserve_ports,
        options.guard_timeout.0.as_secs(),
        limits.connections_ipv4,
        limits.connections_ipv6,
        limits.destinations,
        timeouts.tcp,
        timeouts.tcp_fin,
        timeouts.udp,
        if options.rfc6040 { "rfc6040" } else { "ipvs" },
    );
    for (setting, value) in options.settings.iter() {
        let _ = writeln!(text, "{} = {value}", setting.name());
    }
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
    let flags: Vec<_> = service.flags.names(&service.scheduler).map(quote).collect();
    if !flags.is_empty() {
        let _ = writeln!(text, "flags = [{}]", flags.join(", "));
    }
    let SchedulerOptions { table_size, half_life, load_bound } = service.options;
    for (key, value) in [("table_size", table_size), ("half_life", half_life), ("load_bound", load_bound)] {
        if let Some(value) = value {
            let _ = writeln!(text, "{key} = {value}");
        }
    }
    if !locals.is_empty() {
        let _ = writeln!(text, "local_addresses = [{}]", locals.join(", "));
    }
    if let Some((first, last)) = service.local_ports {
        let _ = writeln!(text, "local_ports = \"{first}-{last}\"");
    }
    if service.one_packet {
        text.push_str("one_packet = true\n");
    }
    persistence::render(text, service);
    terms::render(text, &service.terms);
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
