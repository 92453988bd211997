//! The main job: every answer right, every byte in its place, shares as the scheduler says.

use crate::director::{LIMIT, V4, V6, World, in_default_world, in_world, load};
use crate::harness::{Outcome, Tests, check};
use libtest_mimic::Failed;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use uvs_lab::http::{Connection, Load, Report, Server};
use uvs_lab::probe::{RawTcp, flags};
use uvs_lab::{Plan, stream, udp, wait};

pub(crate) const TESTS: Tests = &[
    ("new_connections", || in_default_world(|world| both_families(world, false))),
    ("keep_alive", || in_default_world(|world| both_families(world, true))),
    ("a_thousand_at_once", || in_default_world(a_thousand_at_once)),
    ("shares_follow_the_weights", || in_default_world(shares_follow_the_weights)),
    ("lc_balances_open_connections", || {
        in_default_world(|world| open_connections(world, "lc", [1, 1], [10, 10]))
    }),
    ("wlc_balances_open_connections", || {
        in_default_world(|world| open_connections(world, "wlc", [3, 1], [15, 5]))
    }),
    ("two_hundred_megabytes_each_way", || in_default_world(|world| transfer(world, V4, 200_000_000))),
    ("jumbo_frames", || in_world(&Plan { mtu: 9000, ..Plan::default() }, &[], jumbo_frames)),
    ("real_servers_on_another_port", || in_default_world(real_servers_on_another_port)),
    ("datagrams", || in_default_world(datagrams)),
    ("fragmented_datagrams", || in_default_world(fragmented_datagrams)),
    ("a_table_that_grows", || in_default_world(a_table_that_grows)),
    ("two_workers_and_uneven_queues", || {
        let plan = Plan { client_queues: 2, server_queues: 1, ..Plan::default() };
        in_world(&plan, &["--workers", "2"], two_workers)
    }),
    ("counters_are_zeroed_while_it_runs", || in_default_world(zeroed)),
    ("an_odd_number_of_real_servers", || {
        in_world(&Plan { servers: 3, ..Plan::default() }, &[], three_servers)
    }),
];

/// Runs a load and demands an answer to every request, all of them right.
pub(crate) fn run(world: &World, load: &Load) -> Result<Report, Failed> {
    let report = load.run(&world.topology.client)?;
    check(report.faults.is_empty(), format!("{} faults: {:?}", report.faults.len(), report.faults.first()))?;
    check(report.samples.len() == load.requests, format!("{} answers", report.samples.len()))?;
    Ok(report)
}

pub(crate) fn shares(report: &Report) -> BTreeMap<String, usize> {
    report.shares().into_iter().map(|(name, count)| (name.into(), count)).collect()
}

pub(crate) fn expect_shares(report: &Report, expected: &[(&str, usize)]) -> Outcome {
    let expected: BTreeMap<String, usize> =
        expected.iter().map(|(name, count)| ((*name).into(), *count)).collect();
    check(shares(report) == expected, format!("shares are {:?}, not {expected:?}", shares(report)))
}

pub(crate) fn both_families(world: &mut World, keep_alive: bool) -> Outcome {
    for family in [V4, V6] {
        world.balance(family, "rr", &[1, 1])?;
        // By keep-alive each of the eight clients has one connection, and every other one went to either server.
        let connections = if keep_alive { 8 } else { 200 };
        let load = Load { together: keep_alive, ..load(world.service(family), 200, keep_alive) };
        expect_shares(&run(world, &load)?, &[("rs1", 100), ("rs2", 100)])?;
        let listing = world.ipvsadm(&format!("-Ln --stats -t {}", world.service(family)))?;
        let counted = listing
            .lines()
            .find(|line| line.starts_with("TCP"))
            .and_then(|line| line.split_whitespace().nth(2)?.parse().ok());
        check(counted == Some(connections), format!("{connections} connections are listed as\n{listing}"))?;
    }
    Ok(())
}

pub(crate) fn a_thousand_at_once(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        world.balance(family, "rr", &[1, 1])?;
        let load = Load {
            clients: 1000,
            together: true,
            limit: LIMIT * 3,
            ..Load::new(world.service(family), 1000)
        };
        expect_shares(&run(world, &load)?, &[("rs1", 500), ("rs2", 500)])?;
    }
    Ok(())
}

fn shares_follow_the_weights(world: &mut World) -> Outcome {
    for (scheduler, weights, expected) in [
        ("rr", [1, 1], [("rs1", 60), ("rs2", 60)]),
        ("rr", [5, 1], [("rs1", 60), ("rs2", 60)]),
        ("wrr", [1, 1], [("rs1", 60), ("rs2", 60)]),
        ("wrr", [3, 1], [("rs1", 90), ("rs2", 30)]),
        ("wrr", [1, 5], [("rs1", 20), ("rs2", 100)]),
    ] {
        world.balance(V4, scheduler, &weights)?;
        let report = run(world, &load(world.service(V4), 120, false))?;
        expect_shares(&report, &expected)
            .map_err(|failed| format!("{scheduler} {weights:?}: {}", failed.message().unwrap_or_default()))?;
        world.ipvsadm("-C")?;
    }
    Ok(())
}

/// Twenty connections opened one after the other: each goes where the fewest are, in proportion to the weights.
fn open_connections(world: &mut World, scheduler: &str, weights: [u32; 2], expected: [usize; 2]) -> Outcome {
    world.balance(V4, scheduler, &weights)?;
    let mut open = Vec::new();
    let mut counts = [0; 2];
    for _ in 0..20 {
        let mut connection = Connection::open(&world.topology.client, world.service(V4), LIMIT)?;
        counts[usize::from(connection.get("/")?.server == "rs2")] += 1;
        open.push(connection);
    }
    check(counts == expected, format!("{scheduler} {weights:?}: {counts:?}, not {expected:?}"))
}

/// Makes the service, and the same length goes down and up through one connection.
pub(crate) fn transfer(world: &mut World, family: IpAddr, length: u64) -> Outcome {
    world.balance(family, "rr", &[1, 1])?;
    transfer_on(world, family, length)
}

pub(crate) fn transfer_on(world: &World, family: IpAddr, length: u64) -> Outcome {
    let expected = stream::sha256(length);
    let mut connection = Connection::open(&world.topology.client, world.service(family), LIMIT * 3)?;
    let down = connection.get(&format!("/bytes/{length}"))?;
    check(down.length == length && down.sha256 == expected, "what came down is not what was sent")?;
    let up = connection.put("/", length)?;
    check(up.body == format!("{expected}\n").as_bytes(), "what went up is not what was sent")
}

pub(crate) fn jumbo_frames(world: &mut World) -> Outcome {
    transfer(world, V4, 50_000_000)?;
    transfer(world, V6, 20_000_000)?;
    for family in [V4, V6] {
        let service = SocketAddr::new(world.vip(family), 53);
        let server = world.server(0, family, 53);
        world.ipvsadm(&format!("-A -u {service} -s rr"))?;
        world.ipvsadm(&format!("-a -u {service} -r {server} -m"))?;
        let _echo = udp::Echo::start(&world.topology.servers[0], server, "rs1")?;
        let client = udp::Client::connect(&world.topology.client, service)?;
        // 8,900 bytes are one frame of several buffers, and none is a fragment.
        for length in [1, 1472, 1800, 1801, 3584, 4096, 8900] {
            let answer = client.ask(&vec![7; length], LIMIT)?;
            check(answer == "rs1", format!("{length} bytes to {service} were answered by {answer:?}"))?;
        }
    }
    Ok(())
}

fn real_servers_on_another_port(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        let service = world.service(family);
        world.ipvsadm(&format!("-A -t {service} -s rr"))?;
        let mut servers = Vec::new();
        for index in 0..2 {
            let address = world.server(index, family, 8080);
            servers.push(Server::start(
                &world.topology.servers[index],
                address,
                &format!("other{}", index + 1),
            )?);
            world.ipvsadm(&format!("-a -t {service} -r {address} -m"))?;
        }
        let report = run(world, &load(service, 40, false))?;
        expect_shares(&report, &[("other1", 20), ("other2", 20)])?;
    }
    Ok(())
}

fn datagrams(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        let service = SocketAddr::new(world.vip(family), 53);
        world.ipvsadm(&format!("-A -u {service} -s rr"))?;
        let mut echoes = Vec::new();
        for index in 0..2 {
            let address = world.server(index, family, 5353);
            echoes.push(udp::Echo::start(
                &world.topology.servers[index],
                address,
                &format!("rs{}", index + 1),
            )?);
            world.ipvsadm(&format!("-a -u {service} -r {address} -m"))?;
        }
        let mut answers = BTreeMap::<String, usize>::new();
        for _ in 0..20 {
            let client = udp::Client::connect(&world.topology.client, service)?;
            let first = client.ask(b"first", LIMIT)?;
            for question in [&b""[..], b"odd", &[0; 1000], &[0xff; 1400]] {
                let again = client.ask(question, LIMIT)?;
                check(again == first, format!("one client was answered by {first} and {again}"))?;
            }
            *answers.entry(first).or_default() += 1;
        }
        check(answers.values().eq(&[10, 10]), format!("{family}: clients by server: {answers:?}"))?;
    }
    Ok(())
}

/// Datagrams of many fragments there and back again, translated.
fn fragmented_datagrams(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        let service = SocketAddr::new(world.vip(family), 53);
        world.ipvsadm(&format!("-A -u {service} -s rr"))?;
        let server = world.server(0, family, 5353);
        let _echo = udp::Echo::start(&world.topology.servers[0], server, "rs1")?;
        world.ipvsadm(&format!("-a -u {service} -r {server} -m"))?;
        ask_at_length(world, service)?;
        let listing = world.ipvsadm(&format!("-Ln --stats -u {service}"))?;
        let counted: Option<Vec<u64>> = (listing.lines().find(|line| line.starts_with("UDP")))
            .map(|line| line.split_whitespace().skip(2).filter_map(|field| field.parse().ok()).collect());
        let counted = counted.unwrap_or_default();
        check(
            counted.get(..3) == Some(&[3, 6, 6]),
            format!("three clients and six datagrams each way are listed as\n{listing}"),
        )?;
    }
    Ok(())
}

/// Two datagrams each of several lengths, each answered by one of its length.
fn ask_at_length(world: &World, service: SocketAddr) -> Outcome {
    for length in [1500, 8000, 60_000] {
        let client = udp::Client::connect(&world.topology.client, service)?;
        for _ in 0..2 {
            let question: Vec<u8> = (0..length).map(|at: usize| at.to_le_bytes()[0]).collect();
            client.ask(&question, LIMIT)?;
        }
    }
    let drops = world.status()?.drops;
    let dropped: Vec<_> = drops.iter().filter(|drop| drop.count > 0).collect();
    check(dropped.is_empty(), format!("frames were dropped: {dropped:?}"))
}

/// Every frame gets out though only one worker has the ring of the servers' queue, and a reply that lands on the other
/// worker finds its connection.
fn two_workers(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        world.balance(family, "rr", &[1, 1])?;
        let load = Load { clients: 32, ..load(world.service(family), 2000, false) };
        let report = run(world, &load)?;
        expect_shares(&report, &[("rs1", 1000), ("rs2", 1000)])?;
    }
    let status = world.status()?;
    check(status.workers.len() == 2, format!("{} workers", status.workers.len()))?;
    check(status.workers.iter().all(|worker| worker.received > 0), "one worker received nothing")?;
    check(
        status.workers.iter().any(|worker| worker.handed_off > 0),
        "no frame was handed to the other worker",
    )?;
    let dropped: Vec<_> = status.drops.iter().filter(|drop| drop.count > 0).collect();
    check(dropped.is_empty(), format!("frames were dropped: {dropped:?}"))?;
    [V4, V6].into_iter().try_for_each(|family| transfer_on(world, family, 20_000_000))
}

/// `-Z` of one service, and of all: what is listed from then on is what came after.
fn zeroed(world: &mut World) -> Outcome {
    let counted = |world: &World, family| -> Result<Vec<u64>, Failed> {
        let listing = world.ipvsadm(&format!("-Ln --stats --exact -t {}", world.service(family)))?;
        let line = listing.lines().find(|line| line.starts_with("TCP")).unwrap_or_default();
        Ok(line.split_whitespace().skip(2).filter_map(|field| field.parse().ok()).collect())
    };
    for family in [V4, V6] {
        world.balance(family, "rr", &[1, 1])?;
        run(world, &load(world.service(family), 20, false))?;
        check(counted(world, family)?[0] == 20, format!("{family}: {:?}", counted(world, family)?))?;
    }
    world.ipvsadm(&format!("-Z -t {}", world.service(V4)))?;
    check(counted(world, V4)?[0] == 0, format!("after -Z: {:?}", counted(world, V4)?))?;
    check(counted(world, V6)?[0] == 20, format!("another service: {:?}", counted(world, V6)?))?;
    run(world, &load(world.service(V4), 10, false))?;
    check(counted(world, V4)?[0] == 10, format!("after ten more: {:?}", counted(world, V4)?))?;
    world.ipvsadm("-Z")?;
    check(counted(world, V6)? == [0; 5], format!("after -Z of all: {:?}", counted(world, V6)?))
}

fn three_servers(world: &mut World) -> Outcome {
    world.balance(V4, "wrr", &[1, 2, 3])?;
    let report = run(world, &load(world.service(V4), 60, false))?;
    expect_shares(&report, &[("rs1", 10), ("rs2", 20), ("rs3", 30)])
}

/// The connection table's index doubles several times while connections come, and refuses none.
fn a_table_that_grows(world: &mut World) -> Outcome {
    const CONNECTIONS: u16 = 60_000;
    const BURST: u16 = 500;
    world.balance(V4, "rr", &[1, 1])?;
    let raw = RawTcp::open(&world.topology.client)?;
    let (IpAddr::V4(client), SocketAddr::V4(service)) =
        (world.topology.client_address(V4), world.service(V4))
    else {
        return Err("the lab has no IPv4".into());
    };
    // As many at a time as no ring loses; one that is lost all the same comes again, as a client's would.
    for first in (0..CONNECTIONS).step_by(usize::from(BURST)) {
        let expected = u64::from(first + BURST);
        wait::until("the connections of a burst", LIMIT, || {
            let mut ports = 1024 + first..1024 + first + BURST;
            ports.all(|port| raw.send(SocketAddrV4::new(client, port), service, flags::SYN).is_ok())
                && world.status().is_ok_and(|status| status.table.inserted >= expected)
        })?;
    }
    let table = world.status()?.table;
    check(table.full == 0, format!("{} connections were refused", table.full))?;
    check(
        table.inserted >= u64::from(CONNECTIONS),
        format!("only {} connections were made", table.inserted),
    )?;
    run(world, &load(world.service(V4), 20, false)).map(drop)
}
