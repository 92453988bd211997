//! Where client, director and real servers stand: all on one segment, a director with one address only, paths that become
//! narrow.

use crate::director::{LIMIT, V4, V6, World, in_world, in_world_without_vips, load, one_arm};
use crate::harness::{Outcome, Test, Tests, check};
use crate::matrix::all_holds;
use crate::methods::{METHODS, Method, Scene};
use crate::real_server::Started;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use uvs::control::api::WorkerStatus;
use uvs_lab::http::{Connection, Server};
use uvs_lab::{Arms, Namespace, Plan, stream};

pub(crate) const TESTS: Tests = &[("own_local_address", || {
    in_world(&one_arm(), &[], |world| own_traffic_goes_on(world, Method::named("fullnat")))
})];

/// For each method: one arm in either IP version, a director with one address only, and paths that become narrow.
pub(crate) fn tests() -> Vec<(String, Test)> {
    let mut tests: Vec<(String, Test)> = Vec::new();
    for method in &METHODS {
        let name = method.name;
        for (version, family) in [("ipv4", V4), ("ipv6", V6)] {
            let test = Box::new(move || on_one_segment(method, family));
            tests.push((format!("topologies::one_arm::{name}::{version}"), test));
        }
        let only = || in_world_without_vips(&one_arm(), |world| own_traffic_goes_on(world, method));
        tests.push((format!("topologies::only_address::{name}"), Box::new(only)));
        let test = Box::new(|| a_narrow_path(method, [[V4, V4], [V6, V6]]));
        tests.push((format!("topologies::narrow_path::{name}"), test));
        if method.is_full_nat() {
            let test = Box::new(|| a_narrow_path(method, [[V6, V4], [V4, V6]]));
            tests.push(("topologies::narrow_path::nat64_and_nat46".into(), test));
        }
        if method.is_tunnel() {
            let test = Box::new(|| a_narrow_path_of_a_tunnel(method));
            tests.push((format!("topologies::narrow_path_of_a_tunnel::{name}"), test));
        }
    }
    tests
}

/// Everybody is on one segment, and the director has one device of two queues, by either of which flows come: a frame leaves by
/// the queue it came by, so that no worker needs another.
fn on_one_segment(method: &Method, family: IpAddr) -> Outcome {
    let plan = Plan { client_queues: 2, ..one_arm() };
    in_world(&plan, &["--workers", "2"], |world| {
        all_holds(&Scene::set(world, method, [family; 2], Arms::One)?)?;
        let workers = world.status()?.workers;
        let alone = |it: &WorkerStatus| it.received > 0 && it.transmitted > 0 && it.handed_off == 0;
        check(workers.len() == 2 && workers.iter().all(alone), format!("{workers:?}"))
    })
}

/// What the director does as a host goes on beside its services: a session at its own address, as of ssh, and a connection of its
/// own to a real server of theirs, from the same address and a port of the ephemeral range. Where that address is the real
/// servers' own, too (direct routing, tunnels), they could not answer it: there the connection is to the client, and their kernels
/// have to be told that what comes from that address by IPv4, ARP requests included, is not forged.
fn own_traffic_goes_on(world: &mut World, method: &Method) -> Outcome {
    for family in [V4, V6] {
        if method.real_server.is_some() {
            for server in &world.topology.servers {
                server.sysctl("net/ipv4/conf/all/accept_local", "1")?;
            }
        }
        let scene = Scene::set(world, method, [family; 2], Arms::One)?;
        let director = &world.topology.director;
        let at_client = SocketAddr::new(world.topology.client_address(family), 80);
        let _client = Server::start(&world.topology.client, at_client, "client")?;
        let (other, name) = match method.real_server {
            Some(_) => (at_client, "client"),
            None => (world.server(0, family, 80), "rs1"),
        };
        let own = SocketAddr::new(world.topology.director_address(family), 22);
        let _daemon = Server::start(director, own, "director")?;
        let mut sessions = [
            (Connection::open(&world.topology.client, own, LIMIT)?, "director"),
            (Connection::open(director, other, LIMIT)?, name),
        ];
        let port = sessions[1].0.local()?.port();
        check(ephemeral_ports(director)?.contains(&port), format!("{port} is no ephemeral port"))?;
        let stop = AtomicBool::new(false);
        let balanced = load(scene.at(80), usize::MAX, false);
        let (report, kept) = std::thread::scope(|scope| {
            let report = scope.spawn(|| balanced.run_until(&world.topology.client, &stop));
            let kept = [&["/"; 100][..], &["/bytes/3000000"; 3], &["/"; 100]].concat();
            let kept =
                kept.iter().try_for_each(|path| sessions.iter_mut().try_for_each(|kept| ask(kept, path)));
            stop.store(true, Relaxed);
            (report.join(), kept)
        });
        kept?;
        let report = report.map_err(|_| "the load panicked")??;
        check(
            report.faults.is_empty(),
            format!("{} faults: {:?}", report.faults.len(), report.faults.first()),
        )?;
        check(report.shares().len() == 2, format!("shares are {:?}", report.shares()))?;
        world.ipvsadm("-C")?;
    }
    Ok(())
}

/// One right answer by the server of that name.
fn ask((connection, name): &mut (Connection, &str), path: &str) -> Outcome {
    let answer = connection.get(path)?;
    let fault = answer.fault(path);
    check(fault.is_none() && answer.server == *name, format!("{:?} answered: {fault:?}", answer.server))
}

fn ephemeral_ports(host: &Namespace) -> Result<std::ops::RangeInclusive<u16>, libtest_mimic::Failed> {
    let text = host.run(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range"))??;
    let mut ports = text.split_whitespace().map(str::parse);
    match (ports.next(), ports.next()) {
        (Some(first), Some(last)) => Ok(first?..=last?),
        _ => Err(format!("{text:?} is no range").into()),
    }
}

/// The MTU that a link of the path is given in the middle of a transfer.
fn narrow(family: IpAddr) -> u32 {
    if family.is_ipv4() { 1400 } else { 1300 }
}

/// A link between client and director becomes shorter in the middle of a connection: its router says so to the virtual address,
/// and the real server, which learns it from there, sends smaller segments.
fn a_narrow_path(method: &Method, versions: [[IpAddr; 2]; 2]) -> Outcome {
    let plan = Plan { router: true, ..method.plan() };
    in_world(&plan, &[], |world| {
        let router = world.topology.router.as_ref().ok_or("the lab has no router")?;
        for [clients, servers] in versions {
            router.net().set_mtu("eth0", 1500)?;
            let scene = Scene::set(world, method, [clients, servers], plan.arms)?;
            let mut connection = Connection::open(&world.topology.client, scene.at(80), LIMIT * 3)?;
            for length in [3_000_000, 20_000_000] {
                let path = format!("/bytes/{length}");
                let fault = connection.get(&path)?.fault(&path);
                check(fault.is_none(), fault.unwrap_or_default())?;
                router.net().set_mtu("eth0", narrow(clients))?;
            }
        }
        Ok(())
    })
}

/// A path that leaves a tunnel room for packets of 1280 bytes, which IPv6 needs.
const TUNNELS_PATH: u32 = 1400;

/// A link between director and real server becomes shorter: the director learns it of its own packets, and the client of what fits
/// into them. The real server is where clients are otherwise, behind the router, and the client where real servers are.
fn a_narrow_path_of_a_tunnel(method: &Method) -> Outcome {
    let plan = Plan { router: true, servers: 1, ..one_arm() };
    in_world(&plan, &[], |world| {
        let (server, client) = (&world.topology.client, &world.topology.servers[0]);
        let router = world.topology.router.as_ref().ok_or("the lab has no router")?;
        for family in [V4, V6] {
            router.net().set_mtu("eth0", 1500)?;
            let service = world.service(family);
            let _started = Started::start(server, world.vip(family), method.real_server.unwrap_or("tun"))?;
            let _http = Server::start(server, service, "far")?;
            let address = SocketAddr::new(world.topology.client_address(family), 80);
            world.ipvsadm(&format!("-A -t {service} -s rr"))?;
            world.ipvsadm(&format!("-a -t {service} -r {address} {}", method.server))?;
            let learnt = world.events("path_mtu_learnt")?;
            let mut connection = Connection::open(client, service, LIMIT * 3)?;
            for length in [3_000_000, 20_000_000] {
                let up = connection.put("/", length)?;
                let same = up.body == format!("{}\n", stream::sha256(length)).as_bytes();
                check(same, format!("what went up is not what was sent: {length} bytes"))?;
                router.net().set_mtu("eth0", TUNNELS_PATH)?;
            }
            check(world.events("path_mtu_learnt")? > learnt, "no path MTU was learnt")?;
        }
        Ok(())
    })
}
