//! ICMP errors through the director: closed ports, short links, packets that travelled too far.

use crate::director::{LIMIT, V4, V6, World, in_default_world, local};
use crate::harness::{Outcome, Tests, check};
use libtest_mimic::Failed;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use uvs_lab::{Error, udp};

pub(crate) const TESTS: Tests =
    &[("packets_that_travelled_too_far", || in_default_world(packets_that_travelled_too_far))];

/// Makes a service, `-t` or `-u`, with one real server.
fn serve(world: &World, kind: &str, service: SocketAddr, server: SocketAddr, method: &str) -> Outcome {
    world.ipvsadm(&format!("-A {kind} {service} -s rr"))?;
    world.ipvsadm(&format!("-a {kind} {service} -r {server} {method}"))?;
    if method == "-b" {
        world.ipvsadm(&format!("-P {kind} {service} -z {}", local(server.ip())))?;
    }
    Ok(())
}

/// Makes a UDP service on port 53 of a family's VIP with one real server, on port 5353.
fn serve_datagrams(world: &World, family: IpAddr, method: &str) -> Result<(SocketAddr, SocketAddr), Failed> {
    let (service, server) = (SocketAddr::new(world.vip(family), 53), world.server(0, family, 5353));
    serve(world, "-u", service, server, method)?;
    Ok((service, server))
}

/// Asks once, and demands that the client's socket fails in this way.
pub(crate) fn fails(client: &udp::Client, kind: ErrorKind) -> Outcome {
    match client.ask(b"anybody there?", LIMIT) {
        Err(Error::System { source, .. }) if source.kind() == kind => Ok(()),
        other => Err(format!("{other:?}, not {kind:?}").into()),
    }
}

/// As traceroute sees it, the first hop is the virtual address and the second the service.
fn packets_that_travelled_too_far(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        let (service, server) = serve_datagrams(world, family, "-m")?;
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
