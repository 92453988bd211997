//! What is not ours is the kernel's, as if no director ran.

use crate::director::{LIMIT, V4, V6, World, in_default_world, load};
use crate::harness::{Outcome, Tests, check};
use crate::traffic::run;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use uvs_lab::http::{Connection, Server};
use uvs_lab::probe::{self, RawTcp, flags};
use uvs_lab::{Namespace, udp};

pub(crate) const TESTS: Tests = &[
    ("other_ports_and_addresses", || in_default_world(other_ports_and_addresses)),
    ("pings", || in_default_world(pings)),
    ("a_real_server_from_the_director", || in_default_world(a_real_server_from_the_director)),
    ("a_real_server_routed_through_the_director", || in_default_world(a_real_server_routed)),
    ("real_servers_use_their_gateway", || in_default_world(real_servers_use_their_gateway)),
    ("a_reset_for_a_packet_of_no_connection", || in_default_world(a_reset)),
    ("a_fragmented_datagram_to_a_local_socket", || in_default_world(a_fragmented_datagram)),
];

/// One right answer by the server `name`.
fn expect(namespace: &Namespace, target: SocketAddr, name: &str) -> Outcome {
    let mut connection = Connection::open(namespace, target, LIMIT)?;
    for path in ["/", "/bytes/300000"] {
        let answer = connection.get(path)?;
        let fault = answer.fault(path);
        check(fault.is_none(), fault.unwrap_or_default())?;
        check(answer.server == name, format!("{target} was answered by {:?}, not {name}", answer.server))?;
    }
    Ok(())
}

fn balance_both(world: &World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    world.balance(V6, "rr", &[1, 1])
}

pub(crate) fn other_ports_and_addresses(world: &mut World) -> Outcome {
    balance_both(world)?;
    for family in [V4, V6] {
        let own = world.topology.director_address(family);
        let addresses = [SocketAddr::new(world.vip(family), 8080), SocketAddr::new(own, 80)];
        let mut servers = Vec::new();
        for address in addresses {
            servers.push(Server::start(&world.topology.director, address, "director")?);
        }
        for address in addresses {
            expect(&world.topology.client, address, "director")?;
        }
        run(world, &load(world.service(family), 20, false))?;
    }
    Ok(())
}

pub(crate) fn pings(world: &mut World) -> Outcome {
    balance_both(world)?;
    for family in [V4, V6] {
        for address in [
            world.vip(family),
            world.topology.director_address(family),
            world.topology.server_address(0, family),
        ] {
            check(
                probe::ping(&world.topology.client, address, LIMIT)?,
                format!("{address} does not answer pings"),
            )?;
        }
    }
    Ok(())
}

pub(crate) fn a_real_server_from_the_director(world: &mut World) -> Outcome {
    balance_both(world)?;
    [V4, V6]
        .iter()
        .try_for_each(|family| expect(&world.topology.director, world.server(0, *family, 80), "rs1"))
}

/// The replies look like those of balanced connections: from the real server's address and port.
pub(crate) fn a_real_server_routed(world: &mut World) -> Outcome {
    balance_both(world)?;
    for family in [V4, V6] {
        expect(&world.topology.client, world.server(1, family, 80), "rs2")?;
        run(world, &load(world.server(0, family, 80), 50, false))?;
        run(world, &load(world.service(family), 50, false))?;
    }
    Ok(())
}

pub(crate) fn real_servers_use_their_gateway(world: &mut World) -> Outcome {
    balance_both(world)?;
    for family in [V4, V6] {
        let address = SocketAddr::new(world.topology.client_address(family), 80);
        let _server = Server::start(&world.topology.client, address, "client")?;
        for server in &world.topology.servers {
            expect(server, address, "client")?;
        }
    }
    Ok(())
}

fn v4(address: IpAddr, port: u16) -> Result<SocketAddrV4, String> {
    match SocketAddr::new(address, port) {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(address) => Err(format!("{address} is not IPv4")),
    }
}

pub(crate) fn a_reset(world: &mut World) -> Outcome {
    balance_both(world)?;
    let from = v4(world.topology.client_address(V4), 4000)?;
    let to = v4(world.vip(V4), 80)?;
    let raw = RawTcp::open(&world.topology.client)?;
    raw.send(from, to, flags::ACK)?;
    let answer = raw.receive(LIMIT, |segment| (segment.source, segment.destination) == (80, 4000))?;
    check(answer.is_some_and(|segment| segment.flags & flags::RST != 0), format!("the answer was {answer:?}"))
}

pub(crate) fn a_fragmented_datagram(world: &mut World) -> Outcome {
    balance_both(world)?;
    for family in [V4, V6] {
        let address = SocketAddr::new(world.vip(family), 5353);
        let _echo = udp::Echo::start(&world.topology.director, address, "director")?;
        let client = udp::Client::connect(&world.topology.client, address)?;
        for length in [10, 8000] {
            let answer = client.ask(&vec![3; length], LIMIT)?;
            check(answer == "director", format!("{length} bytes were answered by {answer:?}"))?;
        }
    }
    Ok(())
}
