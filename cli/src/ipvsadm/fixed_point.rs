//! `-S | -R` changes nothing: whatever a table holds, its saved commands make the same table, but for thresholds.

use super::parse::parse;
use super::{Deed, save, sort};
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use uvs_control::api::{
    AddressOption, ClientAddress, Family, MSS, Method, Netmask, Protocol, RefuseWith, Request, Response,
    SchedulerFlags, SchedulerOptions, ServerSpec, ServiceId, ServiceSpec, Terms, Timeouts, Tunnel,
    TunnelChecksum, TunnelKind,
};
use uvs_control::registry::{Features, NoPlane, Registry};

type Rules = Vec<(ServiceSpec, Vec<ServerSpec>, Vec<IpAddr>)>;

fn registry() -> Registry<NoPlane> {
    let plane = NoPlane {
        features: Features::ALL,
        schedulers: ["rr", "wlc", "sh", "mh", "p2c", "chbl"].map(str::to_owned).to_vec(),
        engines: vec!["sip".to_owned()],
    };
    Registry::new(plane, Timeouts::default())
}

fn saved(registry: &mut Registry<NoPlane>) -> String {
    let Response::Services { mut services, .. } =
        registry.handle(Request::Services { service: None, after: None })
    else {
        panic!("a listing")
    };
    sort::sort(&mut services);
    save::save(&services, true)
}

/// Lines without their order: the comparison that sorts a listing is not transitive, so the order depends on the history.
fn lines(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

/// A mark that prints as a positive number: ipvsadm prints the others negative and then refuses to read them.
fn id() -> impl Strategy<Value = ServiceId> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let family = prop::sample::select(vec![Family::Ipv4, Family::Ipv6]);
    prop_oneof![
        4 => (protocol, address(), any::<u16>()).prop_map(|(protocol, address, port)| {
            ServiceId::Address { protocol, address: SocketAddr::new(address, port) }
        }),
        1 => (1..=i32::MAX.unsigned_abs(), family).prop_map(|(mark, family)| ServiceId::Mark { mark, family }),
    ]
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
        any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
    ]
}

fn service() -> impl Strategy<Value = ServiceSpec> {
    let scheduler = prop::sample::select(vec!["rr", "wlc", "sh", "mh", "p2c", "chbl"]);
    let engine = prop::option::of(Just("sip".to_owned()));
    let persistent = prop::option::of(1..=2_678_400_u32);
    let rest = (any::<(bool, u32)>(), 1..=128_u8, any_terms());
    (id(), scheduler, 0..8_u8, persistent, engine, rest).prop_map(
        |(id, scheduler, flags, persistent, engine, ((one_packet, mask), bits, extras))| {
            let udp = !matches!(id, ServiceId::Address { protocol: Protocol::Tcp | Protocol::Sctp, .. });
            let any_port = matches!(id, ServiceId::Address { .. }) && id.port() == 0;
            // sh and mh have no name for the third flag, so ipvsadm does not save it.
            let some = |wanted: bool, value: u32| (wanted && bits % 2 == 0).then_some(value);
            let options = SchedulerOptions {
                table_size: some(matches!(scheduler, "mh" | "chbl"), 65521),
                half_life: some(scheduler == "p2c", 1 + u32::from(bits)),
                load_bound: some(scheduler == "chbl", 101 + u32::from(bits)),
            };
            let flags = if matches!(scheduler, "sh" | "mh") { flags & 3 } else { flags };
            ServiceSpec {
                id,
                scheduler: scheduler.to_owned(),
                flags: SchedulerFlags(flags),
                options,
                persistent: if any_port { persistent.or(Some(360)) } else { persistent },
                netmask: match id.family() {
                    Family::Ipv4 => Netmask::Ipv4(Ipv4Addr::from_bits(mask)),
                    Family::Ipv6 => Netmask::Ipv6(bits),
                },
                engine,
                one_packet: one_packet && udp,
                local_ports: None,
                terms: terms(extras, &id),
            }
        },
    )
}

/// Of what a table may hold, what makes sense for this service.
fn terms(all: Terms, id: &ServiceId) -> Terms {
    if all.fault(id).is_some() { Terms { toa: all.toa, ..Terms::default() } } else { all }
}

fn any_terms() -> impl Strategy<Value = Terms> {
    let ways = vec![ClientAddress::None, ClientAddress::Toa, ClientAddress::ProxyV1, ClientAddress::ProxyV2];
    let how = prop::option::of(prop::sample::select(ways));
    let refuse = prop::sample::select(vec![RefuseWith::Icmp, RefuseWith::Reset]);
    let timeouts = prop::sample::select(vec!["", "established=9", "close=1,syn_recv=2678400"]);
    let timeouts = timeouts.prop_map(|text| text.parse().unwrap_or_default());
    (how, 200..=u8::MAX, 200..=u8::MAX, any::<bool>(), prop::option::of(MSS), refuse, timeouts).prop_map(
        |(client_address, kind, kind_ipv6, on_syn, mss, refuse, timeouts)| Terms {
            timeouts,
            client_address,
            toa: AddressOption { kind, kind_ipv6, on_syn },
            mss,
            refuse,
        },
    )
}

fn server() -> impl Strategy<Value = ServerSpec> {
    let checksum =
        prop::sample::select(vec![TunnelChecksum::None, TunnelChecksum::Full, TunnelChecksum::Remote]);
    let plain = prop::sample::select(vec![TunnelChecksum::None, TunnelChecksum::Full]);
    let tunnel = prop_oneof![
        Just(Tunnel::default()),
        (1..=u16::MAX, checksum).prop_map(|(port, checksum)| Tunnel {
            kind: TunnelKind::Gue,
            port,
            checksum
        }),
        plain.prop_map(|checksum| Tunnel { kind: TunnelKind::Gre, port: 0, checksum }),
    ];
    let plain = prop::sample::select(vec![Method::Masquerading, Method::Direct, Method::FullNat]);
    let method = prop_oneof![2 => plain, 1 => tunnel.prop_map(Method::Tunnel)];
    (address(), any::<u16>(), method, 0..=i32::MAX.unsigned_abs()).prop_map(
        |(address, port, method, weight)| ServerSpec {
            method,
            weight,
            ..ServerSpec::new(SocketAddr::new(address, port))
        },
    )
}

fn rules() -> impl Strategy<Value = Rules> {
    let (servers, locals) = (prop::collection::vec(server(), 0..6), prop::collection::vec(address(), 0..3));
    prop::collection::vec((service(), servers, locals), 0..12)
}

proptest! {
    #[test]
    fn saving_and_restoring_changes_nothing(rules in rules()) {
        let mut first = registry();
        for (service, servers, locals) in rules {
            let id = service.id;
            first.handle(Request::AddService(service));
            for server in servers {
                // What the kernel would refuse is refused here, and is no part of the table.
                first.handle(Request::AddServer { service: id, server: server.reached_from(&id) });
            }
            for address in locals {
                first.handle(Request::AddLocal { service: id, address });
            }
        }
        let text = saved(&mut first);
        let mut second = registry();
        for line in text.lines() {
            let words: Vec<_> = line.split_ascii_whitespace().map(str::to_owned).collect();
            let command = parse(&words).map(Deed::from);
            let Ok(Deed::Ask(request)) = command else { panic!("{line} is not taken") };
            prop_assert_eq!(second.handle(request), Response::Done, "{}", line);
        }
        let again = saved(&mut second);
        prop_assert_eq!(lines(&again), lines(&text));
        prop_assert_eq!(second.size(), first.size());
    }

    /// Without the switches whose value a resolver may be asked about.
    #[test]
    fn no_command_line_makes_it_panic(
        words in prop::collection::vec("-{0,2}[ADELZacdeghilmnopswxyzMbCRSXPQG6f=]{0,6}|[0-9:.,=-]{0,12}", 0..8)
    ) {
        let _ = parse(&words);
    }
}
