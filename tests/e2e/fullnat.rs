//! Full NAT: real servers that are no one's gateway's, few ports for many connections, addresses that come and go.

use crate::director::{
    Configuration, Director, LIMIT, V4, V6, World, in_default_world, in_world, load, local, uvs,
};
use crate::harness::{Outcome, Tests, check};
use crate::traffic::{expect_shares, run, transfer_on};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use uvs_lab::burst::{Burst, Closer};
use uvs_lab::http::Connection;
use uvs_lab::{Plan, counter, udp, wait};

pub(crate) const TESTS: Tests = &[
    ("both_families", || in_default_world(both_families)),
    ("two_hundred_ports", || {
        let file = few_ports("6000-6199")?;
        in_world(&Plan::default(), &["--config", &file.path()], two_hundred_ports)
    }),
    ("a_burst_of_connections", || {
        let file = few_ports("6000-6999")?;
        in_world(&Plan { burst: true, ..Plan::default() }, &["--config", &file.path()], a_burst)
    }),
    ("no_port_left", || {
        let file = few_ports("6000-6001")?;
        in_world(&Plan::default(), &["--config", &file.path()], no_port_left)
    }),
    ("ports_are_reserved_and_restored", || in_default_world(reserved_ports)),
    ("an_address_leaves", || in_default_world(an_address_leaves)),
    ("saved_and_restored", || in_default_world(saved_and_restored)),
];

/// The service on port 80 by full NAT to both real servers, from these local addresses.
fn balance(world: &World, family: IpAddr, locals: &[IpAddr]) -> Outcome {
    let service = world.service(family);
    world.ipvsadm(&format!("-A -t {service} -s rr"))?;
    for index in 0..2 {
        world.ipvsadm(&format!("-a -t {service} -r {} -b", world.server(index, family, 80)))?;
    }
    for local in locals {
        world.ipvsadm(&format!("-P -t {service} -z {local}"))?;
    }
    Ok(())
}

/// A configuration with the service at one real server, by full NAT from the director's own address and these ports.
fn few_ports(ports: &str) -> Result<Configuration, libtest_mimic::Failed> {
    let text = format!(
        "[[service]]\naddress = \"203.0.113.100:80\"\nlocal_addresses = [\"192.168.4.100\"]\nlocal_ports = \"{ports}\"\n\n\
         [[service.server]]\naddress = \"192.168.4.11:80\"\nmethod = \"fullnat\"\n"
    );
    Configuration::write(&format!("fullnat-{ports}"), &text)
}

/// What `-G` shows of each local address: conflicts and connections.
fn locals(world: &World) -> Result<Vec<(IpAddr, u64, u64)>, libtest_mimic::Failed> {
    let listing = world.ipvsadm("-Gn")?;
    let rows = listing.lines().filter(|line| line.starts_with(' ')).filter_map(|line| {
        let mut words = line.split_whitespace();
        let mut word = || words.next();
        Some((word()?.parse().ok()?, word()?.parse().ok()?, word()?.parse().ok()?))
    });
    Ok(rows.collect())
}

fn both_families(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        balance(world, family, &[local(family)])?;
        let service = world.service(family);
        expect_shares(&run(world, &load(service, 200, false))?, &[("rs1", 100), ("rs2", 100)])?;
        run(world, &load(service, 200, true))?;
        transfer_on(world, family, 20_000_000)?;
        let listing = world.ipvsadm(&format!("-Ln -t {service}"))?;
        check(listing.matches(" FullNat ").count() == 2, listing)?;
        let rows = locals(world)?;
        let used = rows.iter().find(|(address, ..)| *address == local(family)).map(|row| row.2);
        check(used.is_some_and(|connections| connections >= 208), format!("{used:?} connections: {rows:?}"))?;
    }
    Ok(())
}

/// Twenty-five connections to a port: each port is used again while its real server has it in TIME_WAIT, and no SYN is lost.
fn two_hundred_ports(world: &mut World) -> Outcome {
    const CONNECTIONS: usize = 5000;
    let sent_again = || counter(&world.topology.client, "TcpExt", "TCPSynRetrans");
    let before = sent_again()?;
    run(world, &load(world.service(V4), CONNECTIONS, false))?;
    let lost = sent_again()? - before;
    check(lost == 0, format!("{lost} SYNs were sent again"))?;
    check(world.drops("ports_exhausted")? == 0, "a connection found no port")?;
    let reused = world.events("local_port_reused")?;
    check(reused >= 4800, format!("{reused} ports were used again"))?;
    let rows = locals(world)?;
    check(rows.iter().all(|(_, _, connections)| *connections <= 200), format!("{rows:?}"))
}

/// The same with a client of raw frames, as many connections in progress as there are clients at a busy service: every frame of
/// theirs and of the server's comes in and goes out again, and none is refused by the server.
fn a_burst(world: &mut World) -> Outcome {
    let SocketAddr::V4(service) = world.service(V4) else { return Err("no IPv4".into()) };
    let closer = Closer::start(&world.topology.servers[1], world.server(1, V4, 8080))?;
    world.ipvsadm(&format!("-a -t {service} -r {} -b", world.server(1, V4, 8080)))?;
    world.ipvsadm(&format!("-d -t {service} -r {}", world.server(0, V4, 80)))?;
    let before = Passed::so_far(world)?;
    let tally = Burst { connections: 10_000, window: 64, ..Burst::new(service) }.run(&world.topology)?;
    check(tally.completed == 10_000 && tally.failed == 0 && tally.lost == 0, format!("{tally:?}"))?;
    check(closer.accepted() >= 10_000, format!("{} were accepted", closer.accepted()))?;
    let mut passed = before;
    let all_passed = wait::until("every frame to be where it was sent", LIMIT, || {
        passed = Passed::so_far(world).unwrap_or(before);
        let since = |count: fn(&Passed) -> u64| count(&passed) - count(&before);
        let received = since(|passed| passed.received);
        received == tally.sent + since(|passed| passed.by_server)
            && received == since(|passed| passed.transmitted)
            && received == tally.received + since(|passed| passed.to_server)
    });
    check(all_passed.is_ok(), format!("{tally:?}; frames before it {before:?}, behind it {passed:?}"))?;
    let dropped: Vec<_> = world.status()?.drops.into_iter().filter(|drop| drop.count > 0).collect();
    check(dropped.is_empty(), format!("frames were dropped: {dropped:?}"))?;
    let reused = world.events("local_port_reused")?;
    check(reused >= 9000, format!("{reused} ports were used again"))
}

/// The frames that the director has taken and sent, and the packets that the second real server has received and sent.
#[derive(Clone, Copy, Debug)]
struct Passed {
    received: u64,
    transmitted: u64,
    to_server: u64,
    by_server: u64,
}

impl Passed {
    fn so_far(world: &World) -> Result<Self, libtest_mimic::Failed> {
        let server = |name| counter(&world.topology.servers[1], "Ip", name);
        let workers = world.status()?.workers;
        Ok(Passed {
            received: workers.iter().map(|worker| worker.received).sum(),
            transmitted: workers.iter().map(|worker| worker.transmitted).sum(),
            to_server: server("InReceives")?,
            by_server: server("OutRequests")?,
        })
    }
}

fn no_port_left(world: &mut World) -> Outcome {
    let open = || Connection::open(&world.topology.client, world.service(V4), Duration::from_secs(2));
    let mut kept = [open()?, open()?];
    check(open().is_err(), "a third connection by two ports")?;
    world.wait_for_drops("ports_exhausted", 1)?;
    let said = "192.168.4.100 has no free port towards a real server (2 connections use it)";
    wait::until("what the director says of it", LIMIT, || world.director.log().contains(said))?;
    for connection in &mut kept {
        connection.get("/")?;
    }
    // Another address has other ports.
    let another = local(V4);
    world.ipvsadm(&format!("-P -t {} -z {another}", world.service(V4)))?;
    open()?.get("/").map(drop).map_err(Into::into)
}

fn an_address_leaves(world: &mut World) -> Outcome {
    let family = V4;
    let (first, second) = (local(family), IpAddr::from([10, 9, 8, 8]));
    let service = SocketAddr::new(world.vip(family), 53);
    let server = world.server(0, family, 53);
    let _echo = udp::Echo::start(&world.topology.servers[0], server, "rs1")?;
    for command in
        ["--set 0 0 5".into(), format!("-A -u {service} -s rr"), format!("-a -u {service} -r {server} -b")]
    {
        world.ipvsadm(&command)?;
    }
    world.ipvsadm(&format!("-P -u {service} -z {first}"))?;
    let old = udp::Client::connect(&world.topology.client, service)?;
    old.ask(b"?", LIMIT)?;
    world.ipvsadm(&format!("-P -u {service} -z {second}"))?;
    world.ipvsadm(&format!("-Q -u {service} -z {first}"))?;
    for _ in 0..4 {
        udp::Client::connect(&world.topology.client, service)?.ask(b"?", LIMIT)?;
    }
    old.ask(b"still there?", LIMIT)?;
    check(locals(world)? == [(second, 0, 4), (first, 0, 1)], format!("{:?}", locals(world)?))?;
    wait::until("the address to be gone", LIMIT * 3, || {
        locals(world).is_ok_and(|rows| rows.iter().all(|(address, ..)| *address != first))
    })?;
    let client = udp::Client::connect(&world.topology.client, service)?;
    client.ask(b"?", LIMIT).map(drop).map_err(Into::into)
}

fn saved_and_restored(world: &mut World) -> Outcome {
    balance(world, V4, &[local(V4)])?;
    let saved = world.ipvsadm("-Sn")?;
    let service = world.service(V4);
    check(saved.contains(&format!("-P -t {service} -z 10.9.8.7\n")), saved.clone())?;
    check(saved.matches(" -b -w 1\n").count() == 2, saved.clone())?;
    world.ipvsadm("-C")?;
    check(locals(world)?.is_empty(), "local addresses of no service")?;
    for line in saved.lines() {
        world.ipvsadm(line)?;
    }
    check(world.ipvsadm("-Sn")? == saved, "what was restored is not what was saved")?;
    run(world, &load(service, 20, false)).map(drop)
}

/// The reserved ports of the director's namespace.
fn reserved(world: &World) -> Result<String, libtest_mimic::Failed> {
    let read = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports");
    Ok(world.topology.director.run(read)??.trim().to_owned())
}

fn reserved_ports(world: &mut World) -> Outcome {
    const BEFORE: &str = "1234,50000-50001";
    const OURS: &str = "1234,40000-40009,50000-50001";
    let local = world.topology.gateway(0, V4);
    let file = Configuration::write(
        "reserve",
        &format!(
            "[director]\nreserve_ports = true\n[[service]]\naddress = \"{}\"\nlocal_addresses = [\"{local}\"]\n\
             local_ports = \"30000-40009\"\n[[service.server]]\naddress = \"{}\"\nmethod = \"fullnat\"\n",
            world.service(V4),
            world.server(0, V4, 80)
        ),
    )?;
    world.director.terminate()?;
    world.topology.director.sysctl("net/ipv4/ip_local_port_range", "40000 60999")?;
    world.topology.director.sysctl("net/ipv4/ip_local_reserved_ports", BEFORE)?;
    for killed in [false, true] {
        world.director = Director::start(&world.topology, &["--config", &file.path()])?;
        check(reserved(world)? == OURS, reserved(world)?)?;
        run(world, &load(world.service(V4), 50, false))?;
        if killed {
            world.director.kill()?;
            check(reserved(world)? == OURS, reserved(world)?)?;
            uvs(&world.topology.director, ["guard", "off"])?;
        } else {
            world.director.terminate()?;
        }
        check(reserved(world)? == BEFORE, reserved(world)?)?;
    }
    Ok(())
}
