//! The director as its own client: whoever sets it up asks the virtual address there first.

use crate::director::{Director, LIMIT, V4, V6, World, in_default_world, in_world, load, one_arm, uvs};
use crate::harness::{Outcome, Tests, check};
use crate::icmp::fails;
use crate::real_server::{Started, everything, on_the_vip, same};
use libtest_mimic::Failed;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use uvs_lab::http::{Connection, Load};
use uvs_lab::{Plan, stream, udp, wait};

pub(crate) const TESTS: Tests = &[
    ("nat::v4", || in_default_world(|world| nat(world, V4))),
    ("nat::v6", || in_default_world(|world| nat(world, V6))),
    ("fullnat::v4", || in_default_world(|world| full_nat(world, V4))),
    ("fullnat::v6", || in_default_world(|world| full_nat(world, V6))),
    ("dr::v4", || in_world(&one_arm(), &[], |world| around(world, V4, "dr", "-g"))),
    ("dr::v6", || in_world(&one_arm(), &[], |world| around(world, V6, "dr", "-g"))),
    ("tun::v4", || in_world(&one_arm(), &[], |world| around(world, V4, "tun", "-i"))),
    ("tun::v6", || in_world(&one_arm(), &[], |world| around(world, V6, "tun", "-i"))),
    ("generic_mode", || in_world(&Plan::default(), &["--xdp-mode", "generic"], |world| nat(world, V4))),
    ("by_packet_sockets", || in_world(&Plan::default(), &["--io", "raw"], |world| nat(world, V4))),
    ("by_two_workers", || in_world(&Plan::default(), &["--workers", "2"], |world| nat(world, V4))),
    ("the_only_address_is_the_virtual_one", || in_world(&one_arm(), &[], only_address)),
    ("what_else_the_host_does", || in_default_world(what_else)),
    ("nothing_is_left_by_a_clean_end", || in_default_world(clean_end)),
    ("nothing_is_left_after_a_kill", || in_default_world(killed)),
];

/// Requests and transfers of the director's own, answered by both `servers` in turn.
fn served(world: &World, family: IpAddr, servers: [&str; 2]) -> Outcome {
    let service = world.service(family);
    let load = Load { clients: 4, ..load(service, 40, false) };
    let report = load.run(&world.topology.director)?;
    check(report.faults.is_empty(), format!("{} faults: {:?}", report.faults.len(), report.faults.first()))?;
    let shares = report.shares();
    let expected: BTreeMap<&str, usize> = servers.into_iter().map(|name| (name, 20)).collect();
    check(shares == expected, format!("shares are {shares:?}, not {expected:?}"))?;
    let mut connection = Connection::open(&world.topology.director, service, LIMIT * 3)?;
    let down = connection.get("/bytes/5000000")?;
    check(down.sha256 == stream::sha256(5_000_000), "what came down is not what was sent")?;
    let up = connection.put("/", 5_000_000)?;
    let expected = format!("{}\n", stream::sha256(5_000_000));
    check(up.body == expected.as_bytes(), "what went up is not what was sent")
}

/// Datagrams of the director's own, short ones and such as the link takes only in fragments.
fn asked(world: &World, service: SocketAddr) -> Outcome {
    let client = udp::Client::connect(&world.topology.director, service)?;
    let first = client.ask(b"first", LIMIT)?;
    for question in [&b""[..], b"odd", &[0; 1000], &[0xff; 1400]] {
        let again = client.ask(question, LIMIT)?;
        check(again == first, format!("one client was answered by {first} and {again}"))?;
    }
    Ok(())
}

/// Datagrams that are longer than the link to the real servers takes, which the loopback device does not say. Over IPv6 only their
/// sender can do something about that, and Linux does not for its own addresses.
fn asked_at_length(world: &World, service: SocketAddr) -> Outcome {
    if service.is_ipv4() {
        udp::Client::connect(&world.topology.director, service)?.ask(&[8; 4000], LIMIT)?;
    }
    Ok(())
}

/// Those from outside are served as ever.
fn served_outside(world: &World, family: IpAddr) -> Outcome {
    crate::traffic::run(world, &load(world.service(family), 40, false)).map(drop)
}

fn nat(world: &mut World, family: IpAddr) -> Outcome {
    world.balance(family, "rr", &[1, 1])?;
    served(world, family, ["rs1", "rs2"])?;
    served_outside(world, family)?;
    let listing = world.ipvsadm("-Lnc")?;
    let from = format!("{}:", world.vip(family));
    check(family.is_ipv6() || listing.contains(&from), format!("none comes from {from}\n{listing}"))?;
    datagrams(world, family, "-m", 5353)
}

/// A UDP service at real servers on another port, first closed, then open.
fn datagrams(world: &World, family: IpAddr, method: &str, port: u16) -> Outcome {
    let service = SocketAddr::new(world.vip(family), 53);
    world.ipvsadm(&format!("-A -u {service} -s rr"))?;
    for index in 0..2 {
        world.ipvsadm(&format!("-a -u {service} -r {} {method}", world.server(index, family, port)))?;
    }
    if method == "-b" {
        world.ipvsadm(&format!("-P -u {service} -z {}", world.topology.gateway(0, family)))?;
    }
    fails(&udp::Client::connect(&world.topology.director, service)?, ErrorKind::ConnectionRefused)?;
    let mut echoes = Vec::new();
    for index in 0..2 {
        let server = &world.topology.servers[index];
        echoes.push(udp::Echo::start(server, world.server(index, family, port), "echo")?);
    }
    asked(world, service)?;
    asked_at_length(world, service)
}

fn full_nat(world: &mut World, family: IpAddr) -> Outcome {
    let service = world.service(family);
    world.ipvsadm(&format!("-A -t {service} -s rr"))?;
    for index in 0..2 {
        world.ipvsadm(&format!("-a -t {service} -r {} -b", world.server(index, family, 80)))?;
        world.ipvsadm(&format!("-P -t {service} -z {}", world.topology.gateway(index, family)))?;
    }
    served(world, family, ["rs1", "rs2"])?;
    served_outside(world, family)?;
    datagrams(world, family, "-b", 5353)
}

/// Real servers have the virtual address, and answer it: the director cannot be at that address for them.
fn around(world: &mut World, family: IpAddr, method: &str, option: &str) -> Outcome {
    let vip = world.vip(family);
    let started = world.topology.servers.iter().map(|server| Started::start(server, vip, method));
    let _started: Vec<_> = started.collect::<Result<_, _>>()?;
    let _servers = on_the_vip(world, family)?;
    let (service, dns) = (world.service(family), SocketAddr::new(vip, 53));
    world.ipvsadm(&format!("-A -t {service} -s rr"))?;
    world.ipvsadm(&format!("-A -u {dns} -s rr"))?;
    for index in 0..2 {
        world.ipvsadm(&format!("-a -t {service} -r {} {option}", world.server(index, family, 80)))?;
        world.ipvsadm(&format!("-a -u {dns} -r {} {option}", world.server(index, family, 53)))?;
    }
    served(world, family, ["vip1", "vip2"])?;
    served_outside(world, family)?;
    fails(&udp::Client::connect(&world.topology.director, dns)?, ErrorKind::ConnectionRefused)?;
    let echoes = world.topology.servers.iter().map(|server| udp::Echo::start(server, dns, "echo"));
    let _echoes: Vec<_> = echoes.collect::<Result<_, _>>()?;
    asked(world, dns)?;
    let listing = world.ipvsadm("-Lnc")?;
    let server = world.server(0, family, 80).to_string();
    check(listing.contains(&server), format!("{server} is not among the connections:\n{listing}"))?;
    asked_at_length(world, dns)
}

/// A virtual address that is all the director has, on one segment with its real servers: by NAT it will do.
fn only_address(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        let service = SocketAddr::new(world.topology.director_address(family), 80);
        world.ipvsadm(&format!("-A -t {service} -s rr"))?;
        for index in 0..2 {
            world.ipvsadm(&format!("-a -t {service} -r {} -m", world.server(index, family, 80)))?;
        }
        let report = load(service, 20, false).run(&world.topology.director)?;
        check(
            report.faults.is_empty() && report.samples.len() == 20,
            format!("{:?}", report.faults.first()),
        )?;
        world.ipvsadm("-C")?;
    }
    Ok(())
}

/// Its other connections: to real servers themselves, to sockets of its own on the virtual address and elsewhere.
fn what_else(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        world.balance(family, "rr", &[1, 1])?;
        let director = &world.topology.director;
        let own = [
            SocketAddr::new(world.vip(family), 8080),
            SocketAddr::new(world.topology.director_address(family), 80),
            SocketAddr::new(
                if family.is_ipv4() { [127, 0, 0, 1].into() } else { IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]) },
                80,
            ),
        ];
        let mut servers = Vec::new();
        for address in own {
            servers.push(uvs_lab::http::Server::start(director, address, "director")?);
        }
        let real = (world.server(0, family, 80), "rs1");
        for (address, name) in own.map(|address| (address, "director")).into_iter().chain([real]) {
            let mut connection = Connection::open(director, address, LIMIT)?;
            let answer = connection.get("/bytes/3000000")?;
            check(answer.server == name, format!("{address} was answered by {}", answer.server))?;
            check(answer.sha256 == stream::sha256(3_000_000), format!("{address}: not what was sent"))?;
        }
        served(world, family, ["rs1", "rs2"])?;
    }
    Ok(())
}

fn guards(world: &World) -> Result<String, Failed> {
    let output = uvs(&world.topology.director, ["guard", "status"])?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

const NOTHING: &str = "no guard stands in this network namespace\n";

fn clean_end(world: &mut World) -> Outcome {
    world.director.terminate()?;
    let before = everything(&world.topology.director)?;
    world.director = Director::start(&world.topology, &[])?;
    world.balance(V4, "rr", &[1, 1])?;
    served(world, V4, ["rs1", "rs2"])?;
    let diverted = "lo: this host's own packets of balanced connections go to a director";
    check(guards(world)?.contains(diverted), guards(world)?)?;
    world.director.terminate()?;
    check(guards(world)? == NOTHING, guards(world)?)?;
    same(&world.topology.director, &before, "after a clean end")
}

fn killed(world: &mut World) -> Outcome {
    world.director.terminate()?;
    let before = everything(&world.topology.director)?;
    for by_command in [true, false] {
        world.director = Director::start(&world.topology, &[])?;
        world.balance(V4, "rr", &[1, 1])?;
        served(world, V4, ["rs1", "rs2"])?;
        world.director.kill()?;
        // Until the guard's time is over nobody answers in the real servers' place.
        let refused = Connection::open(&world.topology.director, world.service(V4), LIMIT / 10);
        check(refused.is_err_and(|error| !error.to_string().contains("refused")), "the kernel answered")?;
        if by_command {
            uvs(&world.topology.director, ["guard", "off"])?;
        } else {
            world.director = Director::start(&world.topology, &[])?;
            world.balance(V4, "rr", &[1, 1])?;
            served(world, V4, ["rs1", "rs2"])?;
            world.director.terminate()?;
        }
        check(guards(world)? == NOTHING, guards(world)?)?;
        wait::until("the devices to go", LIMIT, || same(&world.topology.director, &before, "").is_ok())?;
        let closed = Connection::open(&world.topology.director, world.service(V4), LIMIT);
        check(closed.is_err_and(|error| error.to_string().contains("refused")), "somebody answered")?;
    }
    Ok(())
}
