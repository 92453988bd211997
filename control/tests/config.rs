//! Configuration files: what they mean, and everything that can be wrong with them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use uvs_control::api::{
    AddressOption, ClientAddress, MSS, Method, Netmask, Protocol, RefuseWith, SchedulerFlags,
    SchedulerOptions, ServerSpec, ServiceId, ServiceSpec, Terms, Timeouts, Tunnel, TunnelChecksum,
    TunnelKind,
};
use uvs_control::config::{parse, render};
use uvs_control::options::{
    GuardTimeout, Interfaces, Io, Limits, OnCrash, RunOptions, SocketPlace, Workers, XdpMode,
};
use uvs_control::settings::{Setting, Settings};
use uvs_engine::snapshot::OnRemove;

/// The faults of a text, as `line:column: message`.
fn faults(text: &str) -> Vec<String> {
    match parse("f", text) {
        Ok(_) => Vec::new(),
        Err(faults) => {
            faults.to_string().lines().map(|line| line.strip_prefix("f:").unwrap().to_owned()).collect()
        }
    }
}

#[test]
fn the_example_is_right_and_says_what_it_says() {
    let text = include_str!("../../examples/uvs.toml");
    let options = parse("uvs.toml", text).unwrap();
    assert_eq!(options.interfaces, Interfaces::Named(vec!["eth0".into(), "eth1".into()]));
    assert_eq!(options.workers, Workers::Cores(vec![0, 1]));
    assert!(options.assign_vips);
    assert_eq!(options.services.len(), 6);
    let (service, servers) = &options.services[1];
    let id = ServiceId::Address { protocol: Protocol::Udp, address: "[2001:db8::53]:53".parse().unwrap() };
    assert_eq!(*service, ServiceSpec::new(id, "rr"));
    assert_eq!(*servers, [ServerSpec::new("[2001:db8:1::11]:53".parse().unwrap())]);
    let (service, _) = &options.services[2];
    let terms = service.terms;
    assert_eq!((terms.client_address, terms.toa), (Some(ClientAddress::Toa), AddressOption::default()));
    assert_eq!((terms.mss, terms.refuse), (Some(1400), RefuseWith::Reset));
    assert_eq!(terms.timeouts.to_string(), "established=3600,syn_recv=10");
    let (service, _) = &options.services[3];
    assert_eq!((service.id.port(), service.persistent), (0, Some(600)));
    assert_eq!(service.netmask, Netmask::Ipv4([255, 255, 255, 0].into()));
    assert!(options.services[4].0.one_packet);
}

#[test]
fn an_empty_file_is_the_defaults() {
    assert_eq!(parse("f", ""), Ok(RunOptions::default()));
}

#[test]
fn every_fault_is_told_with_its_place() {
    let service = "[[service]]\naddress = \"192.0.2.1:80\"\n";
    let long_socket = &format!("[director]\nsocket = \"{}\"", "s".repeat(100));
    for (text, expected) in [
        ("[director]\ninterfaces = [", &["2:15:"][..]),
        (
            "[director]\ninterface = [\"eth0\"]",
            &["2:1: found the unknown key `interface`, expected a known key: did you mean `interfaces`?"],
        ),
        (
            "[director]\ninterfaces = \"eth0\"",
            &["2:14: found the text \"eth0\", expected a list of interface names, or [\"all\"]"],
        ),
        (
            &format!("{service}client_address = \"tao\"\nmss = 87\n"),
            &[
                "3:18: found `tao`, expected `toa`, `proxy-v1`, `proxy-v2` or `none`: did you mean `toa`?",
                "4:7: found the number 87, expected a whole number from 88 to 65495",
            ],
        ),
        (
            &format!("{service}toa_kind = 8\n"),
            &["2:11: found TCP 192.0.2.1:80: TCP uses options of kind 8 for something else: use 254, or 200"],
        ),
        (
            &format!("{service}timeouts = {{ established = 0, udb = 5 }}\n"),
            &[
                "3:28: found the number 0, expected a whole number from 1 to 2678400",
                "3:31: found the unknown key `udb`, expected a known key: did you mean `udp`?",
            ],
        ),
        (
            "[[service]]\naddress = \"192.0.2.1:0\"",
            &["2:11: found port 0, expected `persistent` beside it: only a service that keeps clients"],
        ),
        (
            &format!("{service}persistent = 0\nnetmask = \"24\"\n"),
            &[
                "3:14: found the number 0, expected a whole number from 1 to 2678400",
                "4:11: found `netmask`, expected it only beside `persistent`",
            ],
        ),
        (
            &format!("{service}persistent = 60\nnetmask = \"64\"\n"),
            &["4:11: found the text \"64\", expected the bits of an IPv4 address that tell clients apart"],
        ),
        (
            "[[service]]\naddress = \"[2001:db8::1]:80\"\npersistent = 60\nnetmask = \"129\"\n",
            &["4:11: found the text \"129\", expected how many leading bits of an IPv6 address tell"],
        ),
        (
            &format!("{service}protocol = \"udp\"\nmss = 1400\n"),
            &["2:11: found UDP 192.0.2.1:80: only a TCP service has a maximum segment size"],
        ),
        (
            &format!("{service}protocol = \"udp\"\nclient_address = \"proxy-v1\"\n"),
            &["2:11: found UDP 192.0.2.1:80: version 1 of the PROXY protocol is for TCP only: use proxy-v2"],
        ),
        (
            &format!(
                "{service}client_address = \"proxy-v2\"\n[[service.server]]\naddress = \"10.0.0.2:80\"\nmethod = \"nat\"\n"
            ),
            &[
                "5:11: found 10.0.0.2:80: the service's client address is told by the PROXY protocol, which only full NAT speaks: \
               add this real server by it, or to a service of its own",
            ],
        ),
        (
            &format!("{service}one_packet = true\n"),
            &["2:11: found TCP 192.0.2.1:80: one-packet scheduling is for UDP services only"],
        ),
        (
            "[director]\ninterfaces = [\"all\", \"eth0\"]",
            &["2:15: found `all` beside other names, expected a list of interface names, or [\"all\"]"],
        ),
        (
            "[director]\ninterfaces = [\"d\\u00000\"]",
            &["2:15: found the text \"d\\00\", expected the name of an interface, at most 15 bytes"],
        ),
        (
            "[director]\nsocket = \"\"",
            &["2:10: found the text \"\", expected the path of a socket, 1 to 99 bytes"],
        ),
        (long_socket, &["2:10: found 100 bytes, expected the path of a socket, 1 to 99 bytes"]),
        ("[director]\ninterfaces = []", &["2:14: found an empty list, expected a list of interface names"]),
        (
            "[director]\ninterfaces = [\"eth0\", \"eth0\"]",
            &["2:23: found `eth0` again, expected each interface once"],
        ),
        (
            "[director]\nio = \"xpd\"",
            &["2:6: found `xpd`, expected `auto`, `xdp` or `raw`: did you mean `xdp`?"],
        ),
        ("[director]\nworkers = 0", &["2:11: found the number 0, expected a whole number from 1 to 64"]),
        (
            "[director]\nworkers = 2\ncores = [0]",
            &["2:11: found `workers` beside `cores`, expected only one of them"],
        ),
        ("[director]\nworkers = 65", &["2:11: found the number 65, expected a whole number from 1 to 64"]),
        ("[director]\ncores = [0, 0]", &["2:13: found core 0 again, expected each core once"]),
        (
            "[director]\ncores = [0]\npinned = false",
            &["3:10: found `pinned = false` beside `cores`, expected `workers`"],
        ),
        ("[director]\nassign_vips = 1", &["2:15: found the number 1, expected true or false"]),
        ("[director]\non_crash = \"panic\"", &["2:12: found `panic`, expected `guard` or `kernel`"]),
        (
            "[director]\non_remove = \"kept\"",
            &["2:13: found `kept`, expected `drop` or `keep`: did you mean `keep`?"],
        ),
        ("[director]\nio = \"auto\"\nio = \"xdp\"", &["3:1:"]),
        ("limits = 5", &["1:10: found the number 5, expected a table, written [limits]"]),
        (
            "[limits]\ndestinations = -1",
            &["2:16: found the number -1, expected a whole number from 1 to 16777216"],
        ),
        (
            "[timeouts]\ntcp = 2678401\nudq = 5",
            &[
                "2:7: found the number 2678401, expected a whole number from 1 to 2678400",
                "3:1: found the unknown key `udq`, expected a known key: did you mean `udp`?",
            ],
        ),
        ("service = 5", &["1:11: found the number 5, expected tables, each written [[service]]"]),
        ("[[service]]\nscheduler = \"rr\"", &["1:1: found no `address`, expected an IP address and a port"]),
        (
            "[[service]]\naddress = \"192.0.2.1\"",
            &["2:11: found the text \"192.0.2.1\", expected an IP address and a port"],
        ),
        (
            "[[service]]\naddress = \"192.0.2.1:80\"\nscheduler = \"sh\"\nflags = [\"mh-port\"]\ntable_size = 251",
            &[
                "4:10: found the flag `mh-port`, expected of the scheduler sh `sh-fallback`, `sh-port`, `flag-1`, `flag-2` or `flag-3`",
                "5:14: found `table_size`: only the scheduler mh or chbl has a table size",
            ],
        ),
        (
            "[[service]]\naddress = \"192.0.2.1:80\"\nscheduler = \"mh\"\ntable_size = 4096",
            &[
                "4:14: found `table_size`: the table size of mh is one of 251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071 slots",
            ],
        ),
        (
            "[[service]]\naddress = \"192.0.2.1:80\"\nscheduler = \"wlcc\"",
            &[
                "3:13: found the scheduler `wlcc`, expected `chbl`, `dh`, `fo`, `lblc`, `lblcr`, `lc`, `mh`, `none`, `nq`, `ovf`, `p2c`, `rr`, `sed`, `sh`, `twos`, `wlc` or `wrr`: did you mean `wlc`?",
            ],
        ),
        (
            "[[service]]\naddress = \"192.0.2.1:80\"\n[[service]]\naddress = \"192.0.2.1:80\"\nprotocol = \"tcp\"",
            &["4:11: found TCP 192.0.2.1:80 again, expected it once: line 1 has it already"],
        ),
        (
            &format!("{service}[[service.server]]\nweight = 1"),
            &["3:1: found no `address`, expected an IP address, with a port unless it is the service's"],
        ),
        (
            &format!("{service}[[service.server]]\naddress = \"10.0.0.1:81\""),
            &[
                "4:11: found port 81, expected port 80 or none: direct routing leaves the service's port as it is",
            ],
        ),
        (
            &format!("{service}[[service.server]]\naddress = \"fd00::1\"\nmethod = \"nat\""),
            &["4:11: found [fd00::1]:80, expected an IPv4 address, as the service has"],
        ),
        (
            &format!("{service}[[service.server]]\naddress = \"224.0.0.1\""),
            &["4:11: found 224.0.0.1:80, expected the unicast address of one host, not link-local"],
        ),
        (
            &format!(
                "{service}[[service.server]]\naddress = \"10.0.0.1\"\n[[service.server]]\naddress = \"10.0.0.1:80\""
            ),
            &["6:11: found 10.0.0.1:80 again, expected it once: line 3 has it already"],
        ),
        (
            &format!(
                "{service}[[service.server]]\naddress = \"10.0.0.1\"\nupper_threshold = 5\nlower_threshold = 6\nmethod = \"tun\""
            ),
            &[
                "6:19: found the lower threshold 6, expected at most the upper threshold, 5",
                "7:10: found `tun`, expected `nat`, `direct`, `tunnel` or `fullnat`",
            ],
        ),
        (
            &format!(
                "{service}[[service.server]]\naddress = \"fd00::1\"\nmethod = \"tunnel\"\ntunnel = \"gue\"\n\
                 [[service.server]]\naddress = \"10.0.0.1:81\"\nmethod = \"tunnel\"\ntunnel_port = 6080\n\
                 tunnel_checksum = \"full\"\n\
                 [[service.server]]\naddress = \"10.0.0.2\"\nmethod = \"tunnel\"\ntunnel = \"gre\"\n\
                 tunnel_checksum = \"remote\"\n\
                 [[service.server]]\naddress = \"10.0.0.3\"\ntunnel = \"gre\"\n[forward]\ntunnel_ecn = \"rfc6041\""
            ),
            &[
                "6:10: found a GUE tunnel without `tunnel_port`, expected the UDP port",
                "8:11: found port 81, expected port 80 or none: a tunnel leaves the service's port as it is",
                "10:15: found `tunnel_port`, expected it only beside `tunnel = \"gue\"`",
                "11:19: found this `tunnel_checksum`, expected `none`: IP in IP has no checksum of its own",
                "16:19: found this `tunnel_checksum`, expected `none` or `full`: only GUE has remote checksums",
                "19:10: found `tunnel`, expected it only beside `method = \"tunnel\"`",
                "21:14: found `rfc6041`, expected `ipvs` or `rfc6040`: did you mean `rfc6040`?",
            ],
        ),
        (
            "[settings]\ndrop_entry = 4\nconntrack = 1\nsync_ports = 1\namemthresh = -1\nsecure_tcp = 2147483648\n\
             pmtu_disc = true",
            &[
                "2:14: found 4: net.ipv4.vs.drop_entry is a whole number from 0 to 3",
                "3:13: found 1: net.ipv4.vs.conntrack is always 0 here: packets of services do not pass netfilter, which would \
                 track them",
                "4:1: found the unknown key `sync_ports`, expected one of: am_droprate, amemthresh, backup_only, \
                 conn_reuse_mode, conntrack, debug_level, drop_entry, drop_packet, \
                 expire_nodest_conn, expire_quiescent_template, ignore_tunneled, nat_icmp_send, pmtu_disc, \
                 run_estimation, schedule_icmp, secure_tcp, sloppy_tcp, snat_reroute",
                "6:14: found the number 2147483648, expected a whole number from -2147483648 to 2147483647",
                "7:13: found true, expected a whole number from -2147483648 to 2147483647",
            ],
        ),
        (
            "# ä\n[director]\nsocket = 5\nio = 5\nx = 1",
            &[
                "3:10: found the number 5, expected the path of a socket",
                "4:6: found the number 5, expected `auto`, `xdp` or `raw`",
                "5:1: found the unknown key `x`, expected one of: interfaces, ",
            ],
        ),
    ] {
        let found = faults(text);
        let same = found.len() == expected.len()
            && found.iter().zip(expected).all(|(found, expected)| found.starts_with(expected));
        assert!(same, "{text}\nfound    {found:#?}\nexpected {expected:#?}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault() {
    let directory = std::env::temp_dir().join(format!("uvs-config-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("bad.toml");
    std::fs::write(&file, b"io = \"auto\"\n# \xff").unwrap();
    let told = [uvs_control::config::load(&file), uvs_control::config::load(&directory.join("none"))]
        .map(|result| result.unwrap_err().to_string());
    std::fs::remove_dir_all(&directory).unwrap();
    assert!(
        told[0].ends_with("bad.toml:1:1: found a byte that is not UTF-8 in line 2, expected a TOML file\n")
    );
    assert!(told[1].contains("none:1:1: cannot be read: No such file"), "{}", told[1]);
}

fn method() -> impl Strategy<Value = Method> {
    use TunnelChecksum::{Full, None, Remote};
    let tunnel = |kind, port, checksum| Method::Tunnel(Tunnel { kind, port, checksum });
    prop_oneof![
        Just(Method::Masquerading),
        Just(Method::Direct),
        Just(tunnel(TunnelKind::Ipip, 0, None)),
        prop::sample::select(vec![None, Full]).prop_map(move |checksum| tunnel(TunnelKind::Gre, 0, checksum)),
        (1..=u16::MAX, prop::sample::select(vec![None, Full, Remote]))
            .prop_map(move |(port, checksum)| tunnel(TunnelKind::Gue, port, checksum)),
    ]
}

fn server(v6: bool, port: u16) -> impl Strategy<Value = ServerSpec> {
    (any::<u32>(), any::<u16>(), method(), 0..=2_147_483_647_u32, any::<u16>(), any::<u16>()).prop_map(
        move |(host, own_port, method, weight, one, other)| {
            let host = host | 1;
            let address: IpAddr = if v6 {
                std::net::Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(host)).into()
            } else {
                std::net::Ipv4Addr::from_bits(10 << 24 | host & 0x00ff_ffff).into()
            };
            ServerSpec {
                address: SocketAddr::new(
                    address,
                    if method == Method::Masquerading { own_port } else { port },
                ),
                method,
                weight,
                upper_threshold: one.max(other).into(),
                lower_threshold: one.min(other).into(),
            }
        },
    )
}

fn service() -> impl Strategy<Value = (ServiceSpec, Vec<ServerSpec>)> {
    let scheduler = prop::sample::select(vec!["rr", "wrr", "wlc", "sh", "mh", "lblcr", "p2c", "chbl"]);
    (any::<bool>(), any::<bool>(), any::<u32>(), any::<u16>(), scheduler).prop_flat_map(
        |(v6, udp, host, port, scheduler)| {
            let address: IpAddr = if v6 {
                std::net::Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(host)).into()
            } else {
                std::net::Ipv4Addr::from_bits(host).into()
            };
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            let id = ServiceId::Address { protocol, address: SocketAddr::new(address, port) };
            let servers = prop::collection::btree_map(any::<u8>(), server(v6, port), 0..5);
            let kept = (any::<bool>(), 1..=2_678_400_u32, any::<u32>());
            let spec = (terms(), any::<bool>(), kept).prop_map(move |(terms, one_packet, kept)| {
                let terms = if terms.fault(&id).is_some() { Terms::default() } else { terms };
                let some = |wanted: bool| (wanted && host % 2 == 0).then_some(251);
                let plain = ServiceSpec::new(id, scheduler);
                let (is_kept, seconds, mask) = kept;
                let persistent = (is_kept || port == 0).then_some(seconds);
                let netmask = match (persistent, v6) {
                    (None, _) => plain.netmask,
                    (Some(_), false) => Netmask::Ipv4(mask.into()),
                    (Some(_), true) => Netmask::Ipv6(u8::try_from(mask % 128 + 1).unwrap()),
                };
                ServiceSpec {
                    flags: SchedulerFlags(u8::try_from(host % 4).unwrap()),
                    options: SchedulerOptions {
                        table_size: some(matches!(scheduler, "mh" | "chbl")),
                        half_life: some(scheduler == "p2c"),
                        load_bound: some(scheduler == "chbl"),
                    },
                    terms,
                    one_packet: one_packet && udp,
                    persistent,
                    netmask,
                    ..plain
                }
            });
            (spec, servers).prop_map(|(service, servers)| {
                let mut servers: Vec<_> = servers.into_values().collect();
                servers.sort_by_key(|server| server.address);
                servers.dedup_by_key(|server| server.address);
                if let Some(ClientAddress::ProxyV1 | ClientAddress::ProxyV2) = service.terms.client_address {
                    servers.clear();
                }
                (service, servers)
            })
        },
    )
}

fn terms() -> impl Strategy<Value = Terms> {
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

fn options() -> impl Strategy<Value = RunOptions> {
    let names = prop::collection::btree_set("[a-z]{1,8}[0-9]", 1..4);
    let interfaces = prop_oneof![
        Just(Interfaces::All),
        Just(Interfaces::default()),
        names.prop_map(|names| Interfaces::Named(names.into_iter().collect())),
    ];
    let workers = prop_oneof![
        (prop::option::of(1..=64_usize), any::<bool>())
            .prop_map(|(count, pinned)| Workers::Count { count, pinned }),
        prop::collection::btree_set(0..4096_usize, 1..5)
            .prop_map(|cores| Workers::Cores(cores.into_iter().collect())),
    ];
    let socket = prop_oneof![
        Just(SocketPlace::Namespace),
        "\\PC{1,30}".prop_map(|path| SocketPlace::Path(path.into()))
    ];
    let numbers = (1..=1_u32 << 28, 1..=1_u32 << 28, 1..=1_u32 << 24, 1..=86_400_u64);
    let timeouts = (1..=2_678_400_u32, 1..=2_678_400_u32, 1..=2_678_400_u32);
    let services = prop::collection::vec(service(), 0..5);
    let free = (any::<i32>(), 0..=3, any::<bool>());
    (interfaces, workers, socket, any::<[bool; 4]>(), numbers, timeouts, services, free).prop_map(
        |(interfaces, workers, socket, flags, numbers, timeouts, mut services, free)| {
            let [assign_vips, xdp, kernel, keep] = flags;
            let mut settings = Settings::default();
            settings.set(Setting::Amemthresh, free.0).unwrap();
            settings.set(Setting::DropEntry, free.1).unwrap();
            services.sort_by_key(|(service, _)| service.id);
            services.dedup_by_key(|(service, _)| service.id);
            let local = IpAddr::from([203, 0, 113, 7]);
            let locals = services.iter().filter(|_| keep).map(|(service, _)| (service.id, local)).collect();
            RunOptions {
                interfaces,
                io: if xdp { Io::Xdp } else { Io::Auto },
                xdp_mode: if xdp { XdpMode::Native } else { XdpMode::Generic },
                workers,
                socket,
                assign_vips,
                reserve_ports: keep,
                on_crash: if kernel { OnCrash::Kernel } else { OnCrash::Guard },
                on_remove: if keep { OnRemove::Keep } else { OnRemove::Drop },
                guard_timeout: GuardTimeout(Duration::from_secs(numbers.3)),
                limits: Limits {
                    connections_ipv4: numbers.0,
                    connections_ipv6: numbers.1,
                    destinations: numbers.2,
                },
                timeouts: Timeouts { tcp: timeouts.0, tcp_fin: timeouts.1, udp: timeouts.2 },
                locals,
                settings,
                rfc6040: free.2,
                services,
            }
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(options in options()) {
        let text = render(&options);
        prop_assert_eq!(parse("f", &text), Ok(options), "{}", text);
    }

    #[test]
    fn no_text_makes_it_panic(text in "(\\PC|\n|\\[|\\]|=|\"){0,200}") {
        let _ = parse("f", &text);
    }
}
