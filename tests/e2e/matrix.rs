//! Every forwarding method, in both IP versions, by every way to take frames: the same checks for all.

use crate::director::{LIMIT, V4, V6, in_world, load};
use crate::harness::{Outcome, Test, check};
use crate::icmp::fails;
use crate::methods::{CLOSED, ECHO, METHODS, Method, PROXIED, Scene};
use crate::tell::{SYN, option, toa};
use crate::traffic::{expect_shares, run, transfer_on};
use nix::libc;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use uvs_lab::Error;
use uvs_lab::http::{Connection, Server, proxy};
use uvs_lab::probe::Watch;

/// A way to take frames: its name, the director's arguments, and what its status calls it.
struct Io(&'static str, [&'static str; 2], &'static str);

const IOS: [Io; 3] = [
    Io("native", ["--xdp-mode", "native"], "native"),
    Io("generic", ["--xdp-mode", "generic"], "generic"),
    Io("raw", ["--io", "raw"], "raw"),
];

/// The TCP option that tells a client's address by full NAT, where nothing else is said.
const KIND: u8 = 254;

/// Something that holds for every combination, and its name.
type Check = (&'static str, fn(&Scene<'_>) -> Outcome);

/// All of it, in the order in which it is looked at.
const CHECKS: [Check; 7] = [
    ("requests", requests),
    ("the client's address", the_clients_address),
    ("transfers", transfers),
    ("datagrams", datagrams),
    ("fragments", fragments),
    ("errors", errors),
    ("losses", |scene| scene.lost_nothing()),
];

/// The IP versions of clients and real servers, and what that is called.
type Versions = (&'static str, [IpAddr; 2]);

const ONE_VERSION: [Versions; 2] = [("ipv4", [V4, V4]), ("ipv6", [V6, V6])];
const TWO_VERSIONS: [Versions; 2] = [("nat64", [V6, V4]), ("nat46", [V4, V6])];

/// A test for each combination: `matrix::tun_gue::ipv6::raw`.
pub(crate) fn tests() -> Vec<(String, Test)> {
    let mut tests = Vec::new();
    for method in &METHODS {
        let two = if method.is_full_nat() { &TWO_VERSIONS[..] } else { &[] };
        for (version, families) in ONE_VERSION.iter().chain(two) {
            for io in &IOS {
                let test: Test = Box::new(move || combination(method, *families, io));
                tests.push((format!("matrix::{}::{version}::{}", method.name, io.0), test));
            }
        }
    }
    tests
}

fn combination(method: &Method, families: [IpAddr; 2], Io(_, arguments, mode): &Io) -> Outcome {
    let plan = method.plan();
    in_world(&plan, arguments, |world| {
        let devices = world.status()?.devices;
        check(
            devices.iter().all(|device| device.mode.starts_with(mode)),
            format!("not {mode}: {devices:?}"),
        )?;
        all_holds(&Scene::set(world, method, families, plan.arms)?)
    })
}

/// Every check, one after the other.
pub(crate) fn all_holds(scene: &Scene<'_>) -> Outcome {
    CHECKS.iter().try_for_each(|(what, holds)| {
        holds(scene).map_err(|failed| format!("{what}: {}", failed.message().unwrap_or_default()).into())
    })
}

fn requests(scene: &Scene<'_>) -> Outcome {
    let report = run(scene.world, &load(scene.at(80), 40, false))?;
    expect_shares(&report, &[("rs1", 20), ("rs2", 20)])
}

/// By full NAT a real server sees the local address, and is told the client's: by a TCP option, or as the service says by the PROXY
/// protocol.
fn the_clients_address(scene: &Scene<'_>) -> Outcome {
    let servers = &scene.world.topology.servers;
    let watches = servers.iter().map(|server| Watch::open(server, scene.servers));
    let watches: Vec<_> = watches.collect::<Result<_, _>>()?;
    let mut connection = Connection::open(&scene.world.topology.client, scene.at(80), LIMIT)?;
    let seen = String::from_utf8_lossy(&connection.get("/client")?.body).trim().to_owned();
    let own = connection.local()?;
    let same = seen == own.to_string();
    check(same == scene.method.shows_clients(), format!("{own} is {seen} to the real server"))?;
    let segments: Vec<_> = watches.iter().flat_map(Watch::segments).collect();
    let told = toa(own, KIND);
    let mut syns = segments.iter().filter(|segment| segment[13] == SYN);
    let tells = |segment: &Vec<u8>| option(segment, KIND) == Some(&told[..]);
    check(syns.any(tells) == scene.method.is_full_nat(), format!("{own} is to be told by {segments:02x?}"))?;
    if scene.method.is_full_nat() { told_by_the_proxy_protocol(scene) } else { Ok(()) }
}

/// A connection's real server, and a datagram's.
fn told_by_the_proxy_protocol(scene: &Scene<'_>) -> Outcome {
    let server = &scene.world.topology.servers[0];
    let address = scene.world.server(0, scene.servers, PROXIED);
    for kind in ["-t", "-u"] {
        scene.serve(kind, PROXIED, 1, "--client-address proxy-v2")?;
    }
    let _http = Server::start_proxied(server, address, "rs1")?;
    let mut connection = Connection::open(&scene.world.topology.client, scene.at(PROXIED), LIMIT)?;
    let told = String::from_utf8_lossy(&connection.get("/client")?.body).trim().to_owned();
    let own = connection.local()?;
    check(told == own.to_string(), format!("a connection's real server is told {told}, not {own}"))?;
    let socket = server.run(|| UdpSocket::bind(address))??;
    socket.set_read_timeout(Some(LIMIT))?;
    let client = scene.datagrams(PROXIED)?;
    client.say(b"who is it?")?;
    let mut datagram = [0; 2048];
    let length = socket.recv(&mut datagram)?;
    let (told, rest) = proxy::of_datagram(&datagram[..length])?;
    let own = client.local()?;
    check(told == own, format!("a datagram's real server is told {told}, not {own}"))?;
    check(rest == b"who is it?", format!("a datagram became {}", rest.escape_ascii()))
}

fn transfers(scene: &Scene<'_>) -> Outcome {
    transfer_on(scene.world, scene.family, 50_000_000)
}

fn datagrams(scene: &Scene<'_>) -> Outcome {
    let client = scene.datagrams(ECHO)?;
    for question in [&b""[..], b"odd", &[0; 1000], &[0xff; 1400]] {
        let answer = client.ask(question, LIMIT)?;
        check(answer == "rs1", format!("{} bytes were answered by {answer}", question.len()))?;
    }
    let (own, seen) = (client.local()?, scene.echo.senders());
    check(
        seen.contains(&own) == scene.method.shows_clients(),
        format!("{own} is {seen:?} to the real server"),
    )
}

/// There and back again in fragments.
fn fragments(scene: &Scene<'_>) -> Outcome {
    let client = scene.datagrams(ECHO)?;
    let question: Vec<u8> = (0..8000).map(|at: usize| at.to_le_bytes()[0]).collect();
    if scene.method.is_tunnel() && scene.family.is_ipv6() {
        // Routers do not fragment IPv6: the client may have to be told first how little fits the tunnel.
        match client.ask(&question, LIMIT) {
            Err(Error::System { source, .. }) if source.raw_os_error() == Some(libc::EMSGSIZE) => {}
            other => drop(other?),
        }
    }
    (0..2).try_for_each(|_| client.ask(&question, LIMIT).map(drop)).map_err(Into::into)
}

/// Either side's word that a port is closed reaches the other.
fn errors(scene: &Scene<'_>) -> Outcome {
    fails(&scene.datagrams(CLOSED)?, ErrorKind::ConnectionRefused)?;
    scene.the_server_learns_that_a_client_is_gone()
}
