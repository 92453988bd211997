//! Persistence: clients keep to their real servers, as Linux IPVS has them do (asked of Linux 6.1.192 where a test has no trace).

#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

mod director;

use director::*;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Barrier};
use uvs_conntrack::SharedTable;
use uvs_engine::counters::Event;
use uvs_engine::forward::Method;
use uvs_engine::pipeline::View;
use uvs_engine::service::{Clients, DestinationConfig, Persistence, Ports, Service, Terms};
use uvs_engine::{Packet, Reason, Verdict};

const TO_SERVERS: Verdict = Verdict::Transmit(SERVERS);
/// Two addresses' clients, in one /24 or /64.
const MASK: [Clients; 2] = [Clients::Mask(std::net::Ipv4Addr::new(255, 255, 255, 0)), Clients::Prefix(64)];
const EACH: [Clients; 2] = [Clients::Mask(std::net::Ipv4Addr::BROADCAST), Clients::Prefix(128)];

fn kept(timeout: u32, clients: [Clients; 2], plan: &Plan) -> Terms {
    let clients = clients[usize::from(plan.client.is_ipv6())];
    Terms { persistence: Some(Persistence { timeout, clients }), ..Terms::default() }
}

/// A director with two real servers, whose service keeps clients for so many seconds.
fn persistent(plan: &Plan, method: Method, timeout: u32) -> (Director, [Arc<Service>; 2]) {
    let (director, services) = Director::with_server(plan, method);
    for service in &services {
        service.add(&destination(plan.second, method, plan)).unwrap();
        service.set_terms(kept(timeout, EACH, plan));
    }
    (director, services)
}

fn from(plan: &Plan, port: u16, protocol: u8, flags: u8) -> Frame {
    let from = SocketAddr::new(plan.client.ip(), port);
    Frame { from, ..Frame::from_client(plan, protocol, flags) }
}

/// Which of the two real servers a frame goes to.
fn server_of(director: &mut Director, frame: &Frame) -> usize {
    let (verdict, out) = director.run(CLIENTS, &frame.bytes());
    assert_eq!(verdict, TO_SERVERS, "{frame:?}");
    usize::from(out[..6] == SECOND_SERVER_MAC)
}

/// What `ipvsadm -Lnc` shows: protocol, state, seconds left, client, virtual and real address.
fn listed(director: &Director) -> Vec<(u8, &'static str, u32, SocketAddr, SocketAddr, SocketAddr)> {
    let mut handle = director.table.handle().unwrap();
    handle.quiescent();
    let mut all: Vec<_> = handle
        .connections()
        .map(|it| {
            let (client, real) = (it.client(), it.real());
            let left = it.seconds_left(director.now);
            (it.protocol(), it.state_name(), left, client.source(), client.destination(), real.source())
        })
        .collect();
    all.sort_unstable();
    handle.sleep();
    all
}

fn templates(director: &Director, plan: &Plan) -> Vec<(&'static str, u32, SocketAddr)> {
    let of_template = |it: &(u8, &'static str, u32, SocketAddr, SocketAddr, SocketAddr)| it.3.port() == 0;
    let shown = listed(director).into_iter().filter(of_template);
    shown.inspect(|it| assert_eq!(it.3.ip(), plan.client.ip())).map(|it| (it.1, it.2, it.5)).collect()
}

#[test]
fn a_client_keeps_to_its_real_server_and_others_do_not() {
    for plan in plans() {
        for method in [Method::Nat, Method::Direct, Method::Tunnel] {
            for protocol in [TCP, UDP] {
                let (mut director, services) = persistent(&plan, method, 300);
                let service = &services[usize::from(protocol == UDP)];
                let first = server_of(&mut director, &from(&plan, 1000, protocol, SYN));
                for port in 1001..1010 {
                    assert_eq!(server_of(&mut director, &from(&plan, port, protocol, SYN)), first);
                }
                let other = Plan {
                    client: at(if plan.client.is_ipv4() { "10.9.9.9:1000" } else { "[fd00:1::9]:1000" }),
                    ..plan
                };
                assert_ne!(server_of(&mut director, &from(&other, 1000, protocol, SYN)), first);
                let views = service.view().destinations;
                let counted = |at: SocketAddr| {
                    let view = views.iter().find(|view| view.config.address.ip() == at.ip()).unwrap();
                    (
                        view.templates,
                        view.connections.active + view.connections.inactive,
                        view.traffic.connections,
                    )
                };
                let (kept, less) =
                    if first == 0 { (plan.server, plan.second) } else { (plan.second, plan.server) };
                assert_eq!((counted(kept), counted(less)), ((1, 10, 10), (1, 1, 1)), "{method:?} {protocol}");
            }
        }
    }
}

#[test]
fn a_template_is_listed_as_ipvs_does_and_assured_by_what_came_to_life() {
    for plan in plans() {
        let (mut director, _) = persistent(&plan, Method::Nat, 300);
        let client = |port| SocketAddr::new(plan.client.ip(), port);
        let at = server_of(&mut director, &from(&plan, 1000, TCP, SYN));
        let server = [plan.server, plan.second][at];
        assert_eq!(
            listed(&director),
            [
                (TCP, "NONE", 300, client(0), plan.service, server),
                (TCP, "SYN_RECV", 60, client(1000), plan.service, server),
            ]
        );
        assert_eq!(server_of(&mut director, &from(&plan, 1000, TCP, ACK)), at);
        assert_eq!(templates(&director, &plan), [("ASSURED", 300, server)]);
        // UDP: by a reply.
        let at = server_of(&mut director, &from(&plan, 1000, UDP, 0));
        let server = [plan.server, plan.second][at];
        assert_eq!(templates(&director, &plan)[1], ("NONE", 300, server));
        let reply = Frame { from: server, to: client(1000), ..Frame::from_server(&plan, UDP, 0) };
        assert_eq!(director.run(SERVERS, &reply.bytes()).0, Verdict::Transmit(CLIENTS));
        assert_eq!(templates(&director, &plan)[1], ("ASSURED", 300, server));
    }
}

#[test]
fn a_template_starts_anew_with_each_connection_and_lives_while_it_controls_some() {
    let [plan, _] = plans();
    let (mut director, services) = persistent(&plan, Method::Direct, 3);
    let server = SocketAddr::new(
        [plan.server, plan.second][server_of(&mut director, &from(&plan, 1000, TCP, SYN))].ip(),
        80,
    );
    server_of(&mut director, &from(&plan, 1000, TCP, ACK));
    director.wait(2);
    assert_eq!(templates(&director, &plan), [("ASSURED", 1, server)]);
    server_of(&mut director, &from(&plan, 1001, TCP, SYN));
    assert_eq!(templates(&director, &plan), [("ASSURED", 3, server)]);
    // What it controls keeps it, a minute at a time from now on, also when it is used and the service edited.
    director.wait(4);
    assert_eq!(templates(&director, &plan), [("ASSURED", 60, server)]);
    services[0].set_terms(kept(20, EACH, &plan));
    director.wait(10);
    server_of(&mut director, &from(&plan, 1002, TCP, SYN));
    assert_eq!(templates(&director, &plan), [("ASSURED", 60, server)]);
    for port in 1000..1003 {
        server_of(&mut director, &from(&plan, port, TCP, RST));
    }
    assert_eq!(services[0].view().destinations.iter().map(|it| it.templates).sum::<u32>(), 1);
    director.wait(61);
    director.wait(61);
    assert_eq!(listed(&director), []);
    assert!(services[0].view().destinations.iter().all(|it| it.templates == 0));
}

#[test]
fn clients_of_one_network_go_together() {
    for plan in plans() {
        let (mut director, services) = persistent(&plan, Method::Direct, 300);
        services[0].set_terms(kept(300, MASK, &plan));
        let client = |net: u8, host: u8| -> IpAddr {
            if plan.client.is_ipv4() {
                [10, 7, net, host].into()
            } else {
                format!("fd00:1:0:{net}::{host}").parse().unwrap()
            }
        };
        let mut at = |net, host| {
            let frame = Frame { from: SocketAddr::new(client(net, host), 1000), ..from(&plan, 1, TCP, SYN) };
            server_of(&mut director, &frame)
        };
        let first = at(1, 1);
        assert_ne!(at(2, 1), first);
        assert!((2..20).all(|host| at(1, host) == first && at(2, host) != first));
        let shown = listed(&director);
        let masked = shown.iter().filter(|it| it.3.port() == 0).map(|it| it.3.ip());
        assert_eq!(masked.collect::<Vec<_>>(), [client(1, 0), client(2, 0)]);
    }
}

/// With `expire_quiescent_template`, and when its real server is gone, a template keeps nobody; overload does not matter to it.
#[test]
fn a_template_keeps_no_client_with_a_server_that_takes_none() {
    for plan in plans() {
        for expires in [false, true] {
            let (mut director, services) = persistent(&plan, Method::Nat, 300);
            director.snapshot.options.expire_quiescent_template = expires;
            let first = server_of(&mut director, &from(&plan, 1000, TCP, SYN));
            let server = [plan.server, plan.second][first];
            let config = DestinationConfig::new(server, Method::Nat);
            services[0].edit(&DestinationConfig { upper_threshold: 1, ..config }).unwrap();
            assert_eq!(server_of(&mut director, &from(&plan, 1001, TCP, SYN)), first, "overloaded");
            services[0].edit(&DestinationConfig { weight: 0, ..config }).unwrap();
            let then = server_of(&mut director, &from(&plan, 1002, TCP, SYN));
            assert_eq!(then == first, !expires, "of weight 0");
            // Connections stay where they are.
            assert_eq!(server_of(&mut director, &from(&plan, 1000, TCP, ACK)), first);
            services[0].edit(&config).unwrap();
            let server = [plan.server, plan.second][then];
            services[0].delete(server, director.now).unwrap();
            assert_ne!(server_of(&mut director, &from(&plan, 1003, TCP, SYN)), then, "gone");
            let of_no_use = templates(&director, &plan).into_iter().filter(|it| it.2.port() == u16::MAX);
            assert_eq!(of_no_use.count(), 1, "a client has one at most");
            assert_eq!(templates(&director, &plan).len(), 2);
            // Whom nobody can take is told so.
            services[0].delete([plan.server, plan.second][1 - then], director.now).unwrap();
            director.run(CLIENTS, &from(&plan, 1004, TCP, SYN).bytes());
            assert_eq!(director.counters.drops(Reason::NoDestination), 1);
        }
    }
}

#[test]
fn a_server_that_comes_back_finds_its_clients() {
    let [plan, _] = plans();
    let (mut director, services) = persistent(&plan, Method::Nat, 3000);
    let first = server_of(&mut director, &from(&plan, 1000, TCP, SYN));
    let server = [plan.server, plan.second][first];
    services[0].delete(server, director.now).unwrap();
    director.wait(500);
    director.destinations.collect(director.now);
    assert_eq!(templates(&director, &plan).len(), 1, "and no connection");
    services[0].add(&DestinationConfig::new(server, Method::Nat)).unwrap();
    assert_eq!(server_of(&mut director, &from(&plan, 1001, TCP, SYN)), first);
    // Without template it is forgotten.
    services[0].delete(server, director.now).unwrap();
    for _ in 0..3 {
        director.wait(3001);
        director.destinations.collect(director.now);
    }
    assert_eq!(director.destinations.trashed(), 0);
}

#[test]
fn a_service_of_every_port_keeps_a_client_on_all_of_them() {
    for plan in plans() {
        let mut director = Director::new();
        let any = director.serve(SocketAddr::new(plan.service.ip(), 0));
        let [exact, _] = director.serve(plan.service);
        exact.add(&destination(plan.second, Method::Nat, &plan)).unwrap();
        for service in &any {
            // The real server's port is of no account.
            for server in [plan.server, plan.second] {
                service.add(&DestinationConfig::new(server, Method::Nat)).unwrap();
            }
            service.set_terms(kept(300, EACH, &plan));
        }
        let to = |port: u16, source: u16, protocol| Frame {
            to: SocketAddr::new(plan.service.ip(), port),
            ..from(&plan, source, protocol, SYN)
        };
        assert_eq!(server_of(&mut director, &to(80, 1000, TCP)), 1, "the service of the port goes first");
        let first = server_of(&mut director, &to(443, 1000, TCP));
        for port in [1, 8080, 65535] {
            assert_eq!(server_of(&mut director, &to(port, 1000, TCP)), first);
        }
        let server = [plan.server, plan.second][first].ip();
        let real = listed(&director).into_iter().filter(|it| it.4.port() != 80).map(|it| (it.4.port(), it.5));
        let expected = [0, 1, 443, 8080, 65535].map(|port| (port, SocketAddr::new(server, port)));
        assert_eq!(real.collect::<BTreeMap<_, _>>(), BTreeMap::from(expected));
        // Each protocol for itself.
        let udp = [443, 53].map(|port| server_of(&mut director, &to(port, 2000, UDP)));
        assert_eq!(udp[0], udp[1]);
    }
}

#[test]
fn a_datagram_from_port_0_is_no_template() {
    let [plan, _] = plans();
    let (mut director, services) = persistent(&plan, Method::Nat, 300);
    services[1].set_terms(kept(300, EACH, &plan));
    let first = server_of(&mut director, &from(&plan, 0, UDP, 0));
    assert_eq!(server_of(&mut director, &from(&plan, 0, UDP, 0)), first);
    let shown: Vec<_> = listed(&director).into_iter().map(|it| (it.0, it.1, it.3.port())).collect();
    assert_eq!(shown, [(UDP, "NONE", 0), (UDP, "UDP", 0)]);
}

/// `is_new_conn_expected` in IPVS: a connection under control goes on with a SYN after its end.
#[test]
fn a_controlled_connection_that_is_over_begins_again_where_it_was() {
    let [plan, _] = plans();
    for method in [Method::Nat, Method::Direct] {
        let (mut director, _) = persistent(&plan, method, 300);
        let first = server_of(&mut director, &from(&plan, 1000, TCP, SYN));
        for flags in [ACK, RST, SYN] {
            assert_eq!(server_of(&mut director, &from(&plan, 1000, TCP, flags)), first);
        }
        assert_eq!(director.counters.events(Event::ConnectionReused), 0);
        assert_eq!(listed(&director).len(), 2);
    }
}

#[test]
fn connections_without_real_server_end_where_that_is_wanted() {
    for plan in plans() {
        let (mut director, services) = Director::with_server(&plan, Method::Nat);
        for service in &services {
            service.add(&destination(plan.second, Method::Nat, &plan)).unwrap();
        }
        let open = |director: &mut Director, port| {
            let at = server_of(director, &from(&plan, port, TCP, SYN));
            assert_eq!(server_of(director, &from(&plan, port, TCP, ACK)), at);
            at
        };
        let servers = [plan.server, plan.second];
        let one = open(&mut director, 1000);
        let config = DestinationConfig::new(servers[one], Method::Nat);
        services[0].edit(&DestinationConfig { weight: 0, ..config }).unwrap();
        // Only with `expire_nodest_conn` a SYN leaves a real server of weight 0.
        assert_eq!(server_of(&mut director, &from(&plan, 1000, TCP, SYN)), one);
        director.snapshot.options.expire_nodest_conn = true;
        assert_eq!(server_of(&mut director, &from(&plan, 1000, TCP, ACK)), one);
        assert_eq!(server_of(&mut director, &from(&plan, 1000, TCP, SYN)), 1 - one);
        services[0].edit(&config).unwrap();
        // What comes after the real server was removed begins anew if it can, and else is the host's.
        let ports: Vec<u16> = (2000..2010).filter(|port| open(&mut director, *port) == one).collect();
        let udp = server_of(&mut director, &from(&plan, 3000, UDP, 0));
        services[0].delete(servers[one], director.now).unwrap();
        services[1].delete(servers[udp], director.now).unwrap();
        assert_eq!(server_of(&mut director, &from(&plan, 3000, UDP, 0)), 1 - udp);
        assert_eq!(director.run(CLIENTS, &from(&plan, ports[0], TCP, ACK).bytes()).0, Verdict::ToKernel);
        assert_eq!(server_of(&mut director, &from(&plan, ports[1], TCP, SYN)), 1 - one);
        let orphans = |director: &Director| {
            listed(director).iter().filter(|it| it.0 == TCP && it.5 == servers[one]).count()
        };
        assert_eq!(orphans(&director), ports.len() - 2);
        let mut handle = director.table.handle().unwrap();
        director.destinations.end_orphans(&mut handle);
        assert_eq!(orphans(&director), 0);
        assert_eq!(listed(&director).len(), 1 + 1 + 1 + 10 - ports.len());
        director.wait(130);
        director.destinations.collect(director.now);
        assert_eq!(director.destinations.trashed(), 0);
    }
}

/// Children first, then what controlled them.
#[test]
fn templates_without_real_server_end_with_their_connections() {
    let [plan, _] = plans();
    let (mut director, services) = persistent(&plan, Method::Nat, 300);
    let first = server_of(&mut director, &from(&plan, 1000, TCP, SYN));
    services[0].delete([plan.server, plan.second][first], director.now).unwrap();
    let mut handle = director.table.handle().unwrap();
    director.destinations.end_orphans(&mut handle);
    assert_eq!(listed(&director), []);
}

#[test]
fn each_datagram_of_a_client_goes_to_its_server() {
    for plan in plans() {
        let (mut director, services) = persistent(&plan, Method::Nat, 300);
        services[1].set_terms(Terms { one_packet: true, ..kept(300, EACH, &plan) });
        let first = server_of(&mut director, &from(&plan, 1000, UDP, 0));
        assert!((1000..1010).all(|port| server_of(&mut director, &from(&plan, port, UDP, 0)) == first));
        assert_eq!(templates(&director, &plan).len(), listed(&director).len(), "nothing else is remembered");
        director.wait(301);
        assert_eq!(listed(&director), [], "and nothing is controlled");
    }
}

#[test]
fn full_nat_keeps_clients_too() {
    for plan in plans() {
        let mut lab = full_nat::Lab::new(&plan, &Ports::default());
        lab.services[0].add(&destination(plan.second, Method::FullNat, &plan)).unwrap();
        lab.services[0].set_terms(kept(300, EACH, &plan));
        let servers: Vec<_> = (1..10)
            .map(|number| server_of(&mut lab.director, &from(&plan, 1000 + number, TCP, SYN)))
            .collect();
        assert!(servers.iter().all(|server| *server == servers[0]), "{servers:?}");
        assert_eq!(lab.local.connections(), 9, "the template has no local port");
        lab.director.wait(1000);
        lab.director.wait(1000);
        assert_eq!((lab.local.connections(), listed(&lab.director).len()), (0, 0));
    }
}

/// Of a client's first packets, that two workers have at once.
#[test]
fn two_workers_give_a_client_one_server() {
    let [plan, _] = plans();
    let limits = uvs_conntrack::Limits { connections4: 8000, ..uvs_conntrack::Limits::default() };
    let mut director = Director::with_limits(limits);
    let [service, _] = director.serve(plan.service);
    for server in [plan.server, plan.second] {
        service.add(&destination(server, Method::Direct, &plan)).unwrap();
    }
    service.set_terms(kept(300, EACH, &plan));
    const CLIENTS_OF_BOTH: u16 = 1000;
    let together = Barrier::new(2);
    let work = |mut pipeline: uvs_engine::pipeline::Pipeline, port: u16| {
        let (snapshot, now, together, plan) = (director.snapshot.clone(), director.now, &together, &plan);
        move || -> Vec<bool> {
            let view = View { snapshot: &snapshot, now };
            let servers = (0..CLIENTS_OF_BOTH).map(|number| {
                let [a, b] = number.to_be_bytes();
                let frame =
                    Frame { from: SocketAddr::from(([10, 77, a, b], port)), ..from(plan, 1, TCP, SYN) };
                let mut bytes = frame.bytes();
                let length = bytes.len();
                let mut packets = [Packet::new(&mut bytes, 0, length, CLIENTS)];
                let mut verdicts = [Verdict::ToKernel];
                together.wait();
                pipeline.process(&view, &mut packets, &mut verdicts);
                assert_eq!(verdicts, [TO_SERVERS]);
                let second = packets[0].frame()[..6] == SECOND_SERVER_MAC;
                pipeline.between(now);
                second
            });
            let servers = servers.collect();
            pipeline.sleep(now);
            servers
        }
    };
    let pipelines = [director.another_pipeline(), director.another_pipeline()];
    let [one, other] = std::thread::scope(|scope| {
        let [a, b] = pipelines;
        let workers = [scope.spawn(work(a, 1000)), scope.spawn(work(b, 2000))];
        workers.map(|worker| worker.join().unwrap())
    });
    assert_eq!(one, other);
    let views = service.view().destinations;
    assert_eq!(views.iter().map(|it| it.templates).sum::<u32>(), u32::from(CLIENTS_OF_BOTH));
    assert_eq!(views.iter().map(|it| it.connections.active).sum::<u32>(), 2 * u32::from(CLIENTS_OF_BOTH));
}

/// The table of a director that is gone, as the next one maps it.
#[test]
fn a_client_keeps_to_its_server_through_another_process() {
    for plan in plans() {
        let (mut director, _) = persistent(&plan, Method::Nat, 300);
        let servers: Vec<_> =
            (1000..1004).map(|port| server_of(&mut director, &from(&plan, port, TCP, SYN))).collect();
        let (table, now) = (director.table.descriptor().try_clone_to_owned().unwrap(), director.now);
        // Its handles are not given back: it was killed.
        std::mem::forget(director);
        let mut director = Director::in_table(SharedTable::open(table).unwrap());
        director.now = now;
        for service in director.serve(plan.service) {
            for server in [plan.server, plan.second] {
                service.add(&destination(server, Method::Nat, &plan)).unwrap();
            }
            service.set_terms(kept(300, EACH, &plan));
        }
        for port in [1000, 1004, 1005] {
            assert_eq!(server_of(&mut director, &from(&plan, port, TCP, SYN)), servers[0], "{port}");
        }
    }
}
