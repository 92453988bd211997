//! The director as a real server of its own (LVS's local node).

use crate::director::{LIMIT, V4, V6, World, in_default_world};
use crate::harness::{Outcome, Tests, check};
use crate::icmp::fails;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use uvs_lab::http::{Connection, Server};
use uvs_lab::{Namespace, Prefix, stream, udp, wait};

pub(crate) const TESTS: Tests = &[
    ("same_port", || in_default_world(same_port)),
    ("other_port", || in_default_world(other_port)),
    ("beside_another_real_server", || in_default_world(beside_another)),
    ("udp", || in_default_world(datagrams)),
    ("vip_on_lo", || in_default_world(vip_on_lo)),
    ("loopback_refused", || in_default_world(loopback)),
];

/// Answers, short and long, down and up, by the server `name`.
fn expect(namespace: &Namespace, target: SocketAddr, name: &str) -> Outcome {
    let mut connection = Connection::open(namespace, target, LIMIT)?;
    let answer = connection.get("/")?;
    check(answer.server == name, format!("{target} was answered by {:?}, not {name}", answer.server))?;
    let down = connection.get("/bytes/2000000")?;
    check(down.sha256 == stream::sha256(2_000_000), "what came down is not what was sent")?;
    let up = connection.put("/", 2_000_000)?;
    check(
        up.body == format!("{}\n", stream::sha256(2_000_000)).as_bytes(),
        "what went up is not what was sent",
    )
}

/// By a client elsewhere, and by one on the director.
fn expect_both(world: &World, target: SocketAddr, name: &str) -> Outcome {
    expect(&world.topology.client, target, name)?;
    expect(&world.topology.director, target, name)
}

fn same_port(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        let service = world.service(family);
        let own = SocketAddr::new(world.topology.director_address(family), 80);
        let director = &world.topology.director;
        let servers = [(service, "at the vip"), (own, "elsewhere")];
        let servers = servers.map(|(address, name)| Server::start(director, address, name));
        let [_vip, _own] = servers;
        for (server, method, name) in [
            (own, "-g", "at the vip"),
            (own, "-i", "at the vip"),
            (service, "-g", "at the vip"),
            (service, "-m", "at the vip"),
            (own, "-m", "elsewhere"),
        ] {
            world.ipvsadm(&format!("-A -t {service} -s rr"))?;
            world.ipvsadm(&format!("-a -t {service} -r {server} {method}"))?;
            expect_both(world, service, name)
                .map_err(|failed| format!("{server} {method}: {}", failed.message().unwrap_or_default()))?;
            world.ipvsadm("-C")?;
        }
    }
    Ok(())
}

fn other_port(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        let service = world.service(family);
        for address in
            [world.topology.director_address(family), world.topology.gateway(0, family), service.ip()]
        {
            let server = SocketAddr::new(address, 8080);
            let _server = Server::start(&world.topology.director, server, "director")?;
            world.ipvsadm(&format!("-A -t {service} -s rr"))?;
            world.ipvsadm(&format!("-a -t {service} -r {server} -m"))?;
            expect_both(world, service, "director")?;
            // Past the service it answers as ever.
            expect_both(world, server, "director")?;
            let listing = world.ipvsadm("-Ln")?;
            check(listing.contains(&format!("{server}")) && listing.contains(" Masq "), listing)?;
            world.ipvsadm("-C")?;
        }
    }
    Ok(())
}

/// By full NAT, and beside a real server elsewhere.
fn beside_another(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        let service = world.service(family);
        let server = SocketAddr::new(world.topology.director_address(family), 8080);
        let _server = Server::start(&world.topology.director, server, "director")?;
        world.ipvsadm(&format!("-A -t {service} -s rr"))?;
        world.ipvsadm(&format!("-P -t {service} -z {}", world.topology.gateway(0, family)))?;
        for method in ["-b", "-m"] {
            world.ipvsadm(&format!("-a -t {service} -r {server} {method}"))?;
            world.ipvsadm(&format!("-a -t {service} -r {} {method}", world.server(0, family, 80)))?;
            for namespace in [&world.topology.client, &world.topology.director] {
                let mut names = Vec::new();
                for _ in 0..2 {
                    names.push(Connection::open(namespace, service, LIMIT)?.get("/bytes/100000")?.server);
                }
                names.sort();
                check(names == ["director", "rs1"], format!("{method}: answered by {names:?}"))?;
            }
            world.ipvsadm(&format!("-d -t {service} -r {server}"))?;
            world.ipvsadm(&format!("-d -t {service} -r {}", world.server(0, family, 80)))?;
        }
    }
    Ok(())
}

fn datagrams(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        let director = &world.topology.director;
        let service = SocketAddr::new(world.vip(family), 53);
        let server = SocketAddr::new(world.topology.director_address(family), 5353);
        world.ipvsadm(&format!("-A -u {service} -s rr"))?;
        world.ipvsadm(&format!("-a -u {service} -r {server} -m"))?;
        for client in [&world.topology.client, director] {
            fails(&udp::Client::connect(client, service)?, ErrorKind::ConnectionRefused)?;
        }
        let _echo = udp::Echo::start(director, server, "director")?;
        for client in [&world.topology.client, director] {
            let client = udp::Client::connect(client, service)?;
            for question in [&b""[..], b"odd", &[7; 1400], &[8; 4000]] {
                check(client.ask(question, LIMIT)? == "director", "another answer")?;
            }
        }
        world.ipvsadm("-C")?;
        // A socket on the virtual address answers by itself.
        let _echo = udp::Echo::start(director, service, "at the vip")?;
        world.ipvsadm(&format!("-A -u {service} -s rr"))?;
        world.ipvsadm(&format!("-a -u {service} -r {} -g", SocketAddr::new(server.ip(), 53)))?;
        for client in [&world.topology.client, director] {
            let client = udp::Client::connect(client, service)?;
            check(client.ask(&[9; 1000], LIMIT)? == "at the vip", "another answer")?;
        }
    }
    Ok(())
}

/// Waits until the host takes an address for its own: of IPv6, that is a moment after it got it.
fn is_routed(host: &Namespace, address: SocketAddr) -> Outcome {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    Ok(wait::until("the address to be the host's", LIMIT, || {
        let reached = host.run(|| {
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(address)?;
            socket.local_addr()
        });
        matches!(reached, Ok(Ok(from)) if from.ip() == address.ip())
    })?)
}

/// A virtual address on the loopback device, where the client's route leads.
fn vip_on_lo(world: &mut World) -> Outcome {
    let vips = [IpAddr::from([10, 99, 0, 1]), IpAddr::from([0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 1])];
    for vip in vips {
        world.topology.director.net().add_address("lo", Prefix::host(vip))?;
        let service = SocketAddr::new(vip, 80);
        let own = SocketAddr::new(world.topology.director_address(vip), 8080);
        let director = &world.topology.director;
        is_routed(director, service)?;
        let (_vip, _own) = (Server::start(director, service, "vip")?, Server::start(director, own, "own")?);
        for (server, method, name) in [
            (SocketAddr::new(own.ip(), 80), "-g", "vip"),
            (own, "-m", "own"),
            (world.server(0, vip, 80), "-m", "rs1"),
        ] {
            world.ipvsadm(&format!("-A -t {service} -s rr"))?;
            world.ipvsadm(&format!("-a -t {service} -r {server} {method}"))?;
            expect_both(world, service, name)?;
            world.ipvsadm("-C")?;
        }
    }
    Ok(())
}

/// By NAT a loopback server is the host's own clients' alone; otherwise such an address only says that the host serves itself.
fn loopback(world: &mut World) -> Outcome {
    for (family, address) in [(V4, IpAddr::V4(Ipv4Addr::LOCALHOST)), (V6, IpAddr::V6(Ipv6Addr::LOCALHOST))] {
        let service = world.service(family);
        let server = SocketAddr::new(address, 8080);
        let director = &world.topology.director;
        let _server = Server::start(director, server, "loopback")?;
        let _vip = Server::start(director, service, "vip")?;
        world.ipvsadm(&format!("-A -t {service} -s rr"))?;
        world.ipvsadm(&format!("-a -t {service} -r {server} -m"))?;
        let before = world.drops("loopback_server")?;
        let refused = Connection::open(&world.topology.client, service, LIMIT / 10);
        check(refused.is_err(), "a client elsewhere was served")?;
        world.wait_for_drops("loopback_server", before + 1)?;
        if family.is_ipv4() {
            expect(director, service, "loopback")?;
        } else {
            check(Connection::open(director, service, LIMIT / 10).is_err(), "Linux takes ::1 by lo alone")?;
        }
        world.ipvsadm("-C")?;
        world.ipvsadm(&format!("-A -t {service} -s rr"))?;
        world.ipvsadm(&format!("-a -t {service} -r {} -g", SocketAddr::new(address, 80)))?;
        expect_both(world, service, "vip")?;
        world.ipvsadm("-C")?;
    }
    Ok(())
}
