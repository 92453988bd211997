//! ICMP errors through the director: closed ports, short links, packets that travelled too far.

use crate::director::{LIMIT, V4, V6, World, in_default_world, in_world};
use crate::harness::{Outcome, Tests, check};
use libtest_mimic::Failed;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use uvs_lab::http::Connection;
use uvs_lab::{Error, Plan, stream, udp};

pub(crate) const TESTS: Tests = &[
    ("a_closed_port_of_a_real_server", || in_default_world(a_closed_port)),
    ("packets_that_travelled_too_far", || in_default_world(packets_that_travelled_too_far)),
    ("a_path_that_becomes_narrow", || {
        in_world(&Plan { router: true, ..Plan::default() }, &[], a_path_that_becomes_narrow)
    }),
];

/// Makes a UDP service on port 53 of a family's VIP with one real server, on port 5353.
fn serve_datagrams(world: &World, family: IpAddr) -> Result<(SocketAddr, SocketAddr), Failed> {
    let (service, server) = (SocketAddr::new(world.vip(family), 53), world.server(0, family, 5353));
    world.ipvsadm(&format!("-A -u {service} -s rr"))?;
    world.ipvsadm(&format!("-a -u {service} -r {server} -m"))?;
    Ok((service, server))
}

/// Asks once, and demands that the client's socket fails in this way.
fn fails(client: &udp::Client, kind: ErrorKind) -> Outcome {
    match client.ask(b"anybody there?", LIMIT) {
        Err(Error::System { source, .. }) if source.kind() == kind => Ok(()),
        other => Err(format!("{other:?}, not {kind:?}").into()),
    }
}

/// The real server's kernel says that its port is closed; the client's socket learns it.
fn a_closed_port(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        let (service, server) = serve_datagrams(world, family)?;
        fails(&udp::Client::connect(&world.topology.client, service)?, ErrorKind::ConnectionRefused)?;
        // The port is opened, and the service goes on as if nothing had been.
        let _echo = udp::Echo::start(&world.topology.servers[0], server, "rs1")?;
        let answer = udp::Client::connect(&world.topology.client, service)?.ask(b"now?", LIMIT)?;
        check(answer == "rs1", format!("answered by {answer}"))?;
    }
    world.wait_for_drops("bad_checksum", 0)
}

/// As traceroute sees it, the first hop is the virtual address and the second the service.
fn packets_that_travelled_too_far(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        let (service, server) = serve_datagrams(world, family)?;
        let _echo = udp::Echo::start(&world.topology.servers[0], server, "rs1")?;
        let client = udp::Client::connect(&world.topology.client, service)?;
        client.travel(1)?;
        fails(&client, ErrorKind::HostUnreachable)?;
        client.travel(2)?;
        let answer = client.ask(b"two hops", LIMIT)?;
        check(answer == "rs1", format!("answered by {answer}"))?;
    }
    let expired = world.drops("ttl_expired")?;
    check(expired == 2, format!("{expired} packets expired"))
}

/// A link between director and client becomes shorter in the middle of a connection: its router says so to the virtual
/// address, and the real server, which learns it from there, sends smaller segments.
fn a_path_that_becomes_narrow(world: &mut World) -> Outcome {
    const BEFORE: u64 = 3_000_000;
    const AFTER: u64 = 20_000_000;
    for (family, mtu) in [(V4, 1400), (V6, 1300)] {
        world.balance(family, "rr", &[1, 1])?;
        let router = world.topology.router.as_ref().ok_or("the lab has no router")?;
        router.net().set_mtu("eth0", 1500)?;
        let mut connection = Connection::open(&world.topology.client, world.service(family), LIMIT * 3)?;
        for length in [BEFORE, AFTER] {
            let down = connection.get(&format!("/bytes/{length}"))?;
            let same = down.length == length && down.sha256 == stream::sha256(length);
            check(same, format!("what came down is not what was sent: {length} bytes over {mtu}"))?;
            router.net().set_mtu("eth0", mtu)?;
        }
    }
    Ok(())
}
