//! Clients of one IP version, real servers of the other, by full NAT.

use crate::director::{LIMIT, V4, V6, World, in_default_world, in_world, load, local};
use crate::harness::{Outcome, Tests, check};
use crate::icmp::fails;
use crate::traffic::{expect_shares, run, transfer_on};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use uvs_lab::http::Connection;
use uvs_lab::{Plan, stream, udp};

pub(crate) const TESTS: Tests = &[
    ("requests_and_transfers", || in_default_world(requests_and_transfers)),
    ("datagrams_and_closed_ports", || in_default_world(datagrams_and_closed_ports)),
    ("a_path_that_becomes_narrow", || {
        in_world(&Plan { router: true, ..Plan::default() }, &[], a_path_that_becomes_narrow)
    }),
];

/// The client's family and the real servers'.
const PAIRS: [(IpAddr, IpAddr); 2] = [(V6, V4), (V4, V6)];

/// Makes the service on port 80 of a family's VIP, with both real servers' addresses of the other.
fn balance(world: &World, clients: IpAddr, servers: IpAddr) -> Outcome {
    let service = world.service(clients);
    world.ipvsadm(&format!("-A -t {service} -s rr"))?;
    for index in 0..2 {
        world.ipvsadm(&format!("-a -t {service} -r {} -b", world.server(index, servers, 80)))?;
    }
    world.ipvsadm(&format!("-P -t {service} -z {}", local(servers)))?;
    Ok(())
}

fn requests_and_transfers(world: &mut World) -> Outcome {
    for (clients, servers) in PAIRS {
        balance(world, clients, servers)?;
        let service = world.service(clients);
        expect_shares(&run(world, &load(service, 100, false))?, &[("rs1", 50), ("rs2", 50)])?;
        transfer_on(world, clients, 20_000_000)?;
    }
    check(world.drops("untranslatable")? == 0, "packets were not translated")
}

fn datagrams_and_closed_ports(world: &mut World) -> Outcome {
    for (clients, servers) in PAIRS {
        let service = SocketAddr::new(world.vip(clients), 53);
        let server = world.server(0, servers, 5353);
        world.ipvsadm(&format!("-A -u {service} -s rr"))?;
        world.ipvsadm(&format!("-a -u {service} -r {server} -b"))?;
        world.ipvsadm(&format!("-P -u {service} -z {}", local(servers)))?;
        // The real server's kernel says in its IP version that the port is closed; the client hears it in its own.
        fails(&udp::Client::connect(&world.topology.client, service)?, ErrorKind::ConnectionRefused)?;
        let _echo = udp::Echo::start(&world.topology.servers[0], server, "rs1")?;
        let client = udp::Client::connect(&world.topology.client, service)?;
        for question in [&b""[..], b"odd", &[0; 1000], &[0xff; 1400]] {
            let answer = client.ask(question, LIMIT)?;
            check(answer == "rs1", format!("answered by {answer}"))?;
        }
    }
    Ok(())
}

/// A router's word on the client's side reaches the real server as its own version says it.
fn a_path_that_becomes_narrow(world: &mut World) -> Outcome {
    for (clients, servers) in PAIRS {
        balance(world, clients, servers)?;
        let router = world.topology.router.as_ref().ok_or("the lab has no router")?;
        router.net().set_mtu("eth0", 1500)?;
        let mut connection = Connection::open(&world.topology.client, world.service(clients), LIMIT * 3)?;
        for length in [3_000_000, 10_000_000] {
            let down = connection.get(&format!("/bytes/{length}"))?;
            let same = down.length == length && down.sha256 == stream::sha256(length);
            check(same, format!("what came down is not what was sent: {length} bytes"))?;
            router.net().set_mtu("eth0", 1400)?;
        }
    }
    Ok(())
}
