//! What a service asks for besides a real server: its client's address told, shorter segments, resets, a real server for each
//! datagram.

use crate::director::{LIMIT, V4, V6, World, in_default_world, in_world, load, one_arm};
use crate::harness::{Outcome, Tests, check};
use crate::real_server::Started;
use crate::traffic::{run, transfer_on};
use libtest_mimic::Failed;
use std::net::{IpAddr, SocketAddr};
use uvs_lab::http::Connection;
use uvs_lab::probe::Watch;
use uvs_lab::udp;

pub(crate) const TESTS: Tests = &[
    ("by_a_tcp_option", || in_default_world(by_a_tcp_option)),
    ("by_a_tcp_option_of_another_kind_or_not_at_all", || in_default_world(kinds)),
    ("shorter_segments", || in_default_world(shorter_segments)),
    ("a_reset_where_nobody_is", || in_default_world(a_reset)),
    ("each_datagram_for_itself", || in_world(&one_arm(), &[], each_datagram)),
    ("saved_and_restored", || in_default_world(saved_and_restored)),
];

const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A local address that no host has: the real servers send what is for it to their gateway.
fn local(like: IpAddr) -> IpAddr {
    if like.is_ipv4() {
        IpAddr::from([10, 9, 8, 7])
    } else {
        IpAddr::from([0x2001, 0xdb8, 0x999, 0, 0, 0, 0, 7])
    }
}

/// The service on port 80 of one family's VIP with the first real server's address of another, by full NAT.
fn balance(world: &World, clients: IpAddr, servers: IpAddr, terms: &str) -> Outcome {
    let service = world.service(clients);
    world.ipvsadm(&format!("-A -t {service} -s rr {terms}"))?;
    world.ipvsadm(&format!("-a -t {service} -r {} -b", world.server(0, servers, 80)))?;
    world.ipvsadm(&format!("-P -t {service} -z {}", local(servers)))?;
    Ok(())
}

/// The option of this kind among a segment's.
pub(crate) fn option(segment: &[u8], kind: u8) -> Option<&[u8]> {
    let mut options = segment.get(20..usize::from(segment[12] >> 4) * 4)?;
    loop {
        match options {
            [] | [0, ..] => return None,
            [1, rest @ ..] => options = rest,
            [found, length, ..] if *found == kind => return options.get(..usize::from(*length)),
            [_, length, ..] => options = options.get(usize::from(*length).max(2)..)?,
            [_] => return None,
        }
    }
}

/// What the original patch writes.
pub(crate) fn toa(client: SocketAddr, kind: u8) -> Vec<u8> {
    let port = client.port().to_be_bytes();
    match client.ip() {
        IpAddr::V4(ip) => [&[kind, 8], &port[..], &ip.octets()[..]].concat(),
        IpAddr::V6(ip) => [&[kind, 20], &port[..], &ip.octets()[..]].concat(),
    }
}

/// One request; the segments to port 80 that the first real server got for it, and the client's address.
fn request(world: &World, clients: IpAddr, servers: IpAddr) -> Result<(Vec<Vec<u8>>, SocketAddr), Failed> {
    let watch = Watch::open(&world.topology.servers[0], servers)?;
    let mut connection = Connection::open(&world.topology.client, world.service(clients), LIMIT)?;
    let answer = connection.get("/")?;
    check(answer.server == "rs1", format!("{} answered", answer.server))?;
    let segments = watch.segments();
    let to_us = segments.into_iter().filter(|segment| segment[2..4] == 80_u16.to_be_bytes()).collect();
    Ok((to_us, connection.local()?))
}

fn by_a_tcp_option(world: &mut World) -> Outcome {
    for (clients, servers) in [(V4, V4), (V6, V6), (V6, V4), (V4, V6)] {
        balance(world, clients, servers, "")?;
        let (segments, client) = request(world, clients, servers)?;
        let expected = toa(client, 254);
        let told = |segment: &Vec<u8>| option(segment, 254) == Some(&expected[..]);
        let syns = segments.iter().filter(|segment| segment[13] == SYN).collect::<Vec<_>>();
        check(!syns.is_empty() && syns.iter().all(|syn| told(syn)), format!("SYNs without: {syns:02x?}"))?;
        let first = segments.iter().find(|segment| segment[13] & (SYN | ACK) == ACK).ok_or("no ACK")?;
        check(told(first), format!("the handshake's end is without: {first:02x?}"))?;
        let asked = segments.iter().find(|segment| segment.ends_with(b"\r\n\r\n")).ok_or("no request")?;
        check(told(asked), format!("the request is without: {asked:02x?}"))?;
        transfer_on(world, clients, 5_000_000)?;
        run(world, &load(world.service(clients), 50, true))?;
        world.ipvsadm(&format!("-D -t {}", world.service(clients)))?;
    }
    let events = world.status()?.events;
    let count = |name| events.iter().find(|event| event.event == name).map_or(0, |event| event.count);
    check(count("client_told") > 0, format!("{events:?}"))
}

fn kinds(world: &mut World) -> Outcome {
    for (terms, kind, on_syn) in [
        ("--toa-kind 200", Some(200), true),
        ("--toa-kind 201 --toa-not-on-syn", Some(201), false),
        ("--client-address none", None, false),
    ] {
        balance(world, V4, V4, terms)?;
        let (segments, client) = request(world, V4, V4)?;
        for segment in segments.iter().filter(|segment| segment[13] & (RST | FIN) == 0) {
            let expected = kind.filter(|_| on_syn || segment[13] & SYN == 0).map(|kind| toa(client, kind));
            let found = kind.and_then(|kind| option(segment, kind));
            // Behind the real server's first data there is none.
            let silent = segment[13] == ACK && segment.len() == usize::from(segment[12] >> 4) * 4;
            check(found == expected.as_deref() || silent, format!("{terms}: {segment:02x?}"))?;
            check(option(segment, 254).is_none(), format!("{terms}: {segment:02x?}"))?;
        }
        world.ipvsadm(&format!("-D -t {}", world.service(V4)))?;
    }
    Ok(())
}

fn shorter_segments(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        let service = world.service(family);
        for method in ["-m", "-b"] {
            world.ipvsadm(&format!("-A -t {service} -s rr --mss 1200"))?;
            world.ipvsadm(&format!("-a -t {service} -r {} {method}", world.server(0, family, 80)))?;
            world.ipvsadm(&format!("-P -t {service} -z {}", local(family)))?;
            let at_client = Watch::open(&world.topology.client, family)?;
            let (segments, _) = request(world, family, family)?;
            let syn = segments.iter().find(|segment| segment[13] == SYN).ok_or("no SYN")?;
            check(option(syn, 2) == Some(&[2, 4, 4, 0xb0]), format!("{method} {syn:02x?}"))?;
            let room = match (method, family) {
                ("-b", IpAddr::V4(_)) => 8,
                ("-b", IpAddr::V6(_)) => 20,
                _ => 0,
            };
            let answers = at_client.segments();
            let answer = answers.iter().find(|segment| segment[13] == SYN | ACK).ok_or("no SYN|ACK")?;
            let [high, low] = (1200_u16 - room).to_be_bytes();
            check(option(answer, 2) == Some(&[2, 4, high, low]), format!("{method} {answer:02x?}"))?;
            transfer_on(world, family, 2_000_000)?;
            world.ipvsadm(&format!("-D -t {service}"))?;
        }
    }
    Ok(())
}

fn a_reset(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        let service = world.service(family);
        world.ipvsadm(&format!("-A -t {service} -s rr --refuse reset"))?;
        let watch = Watch::open(&world.topology.client, family)?;
        let refused = Connection::open(&world.topology.client, service, LIMIT);
        check(refused.is_err_and(|error| error.to_string().contains("refused")), "not refused")?;
        let segments = watch.segments();
        check(segments.iter().any(|segment| segment[13] == RST | ACK), format!("{segments:02x?}"))?;
    }
    let events = world.status()?.events;
    let count = |name| events.iter().find(|event| event.event == name).map_or(0, |event| event.count);
    check((count("reset_sent"), count("icmp_sent")) == (2, 0), format!("{events:?}"))
}

/// One socket's datagrams go to both real servers in turn, by direct routing: their answers go around the director.
fn each_datagram(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        let vip = world.vip(family);
        let servers = world.topology.servers.iter().map(|server| Started::start(server, vip, "dr"));
        let _started = servers.collect::<Result<Vec<_>, _>>()?;
        let service = SocketAddr::new(world.vip(family), 53);
        world.ipvsadm(&format!("-A -u {service} -s rr -o"))?;
        let mut echoes = Vec::new();
        for index in 0..2 {
            let server = &world.topology.servers[index];
            echoes.push(udp::Echo::start(server, service, &format!("rs{}", index + 1))?);
            let address = world.server(index, family, 53).ip();
            world.ipvsadm(&format!("-a -u {service} -r {address} -g"))?;
        }
        let client = udp::Client::connect(&world.topology.client, service)?;
        let answers = (0..10).map(|_| client.ask(b"?", LIMIT)).collect::<Result<Vec<_>, _>>()?;
        check(answers.windows(2).all(|pair| pair[0] != pair[1]), format!("{answers:?}"))?;
        let listing = world.ipvsadm(&format!("-Ln -u {service} --stats --exact"))?;
        let first = listing.lines().nth(2).unwrap_or_default();
        check(first.contains(" 10       10 "), &listing)?;
        let listing = world.ipvsadm(&format!("-Ln -u {service}"))?;
        check(listing.contains("rr ops\n"), &listing)?;
        check(world.ipvsadm("-Lnc")?.lines().count() == 2, "connections are left")?;
    }
    Ok(())
}

fn saved_and_restored(world: &mut World) -> Outcome {
    balance(world, V4, V4, "--client-address toa --toa-kind 200 --mss 1400 --refuse reset")?;
    world.ipvsadm(&format!("-A -u {} -s rr -o", world.service(V4)))?;
    let saved = world.ipvsadm("-Sn")?;
    for expected in [" -s rr --client-address toa --toa-kind 200 --mss 1400 --refuse reset\n", " -s rr -o\n"]
    {
        check(saved.contains(expected), &saved)?;
    }
    world.ipvsadm("-C")?;
    for line in saved.lines() {
        world.ipvsadm(line)?;
    }
    check(world.ipvsadm("-Sn")? == saved, "what was restored is not what was saved")?;
    // What is not said again is what it was at first.
    world.ipvsadm(&format!("-E -t {} -s rr", world.service(V4)))?;
    check(!world.ipvsadm("-Sn")?.contains("--"), world.ipvsadm("-Sn")?)?;
    run(world, &load(world.service(V4), 20, false)).map(drop)
}
