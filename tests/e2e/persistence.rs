//! Persistence: clients keep to their real servers, and listings say so as IPVS's do.

use crate::director::{Configuration, LIMIT, V4, V6, World, in_default_world, in_world, load};
use crate::harness::{Outcome, Tests, check};
use crate::traffic::{run, shares};
use libtest_mimic::Failed;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use uvs_lab::http::{Connection, Server};
use uvs_lab::{Plan, Prefix, udp};

pub(crate) const TESTS: Tests = &[
    ("a_client_keeps_to_its_server_over_two_workers", || {
        let plan = Plan { client_queues: 2, ..Plan::default() };
        in_world(&plan, &["--workers", "2"], |world| {
            keeps_to_its_server(world, V4).and_then(|()| keeps_to_its_server(world, V6))
        })
    }),
    ("a_netmask_groups_clients", || in_default_world(a_netmask)),
    ("a_service_of_every_port", || in_default_world(every_port)),
    ("a_template_of_weight_0_expires_if_asked_to", || {
        let file = Configuration::write("quiescent", "[settings]\nexpire_quiescent_template = 1\n")?;
        in_world(&Plan::default(), &["--config", &file.path()], weight_0)
    }),
    ("connections_of_removed_servers_expire_if_asked_to", || {
        let file = Configuration::write("nodest", "[settings]\nexpire_nodest_conn = 1\n")?;
        in_world(&Plan::default(), &["--config", &file.path()], removed)
    }),
];

/// The columns of the listing's line that begins with these words.
fn columns(listing: &str, beginning: &[&str]) -> Result<Vec<String>, Failed> {
    let lines = listing.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let found = lines.into_iter().find(|line| line.starts_with(beginning));
    let owned = |line: Vec<&str>| line.into_iter().map(str::to_owned).collect();
    found.map(owned).ok_or_else(|| format!("no line begins with {beginning:?}:\n{listing}").into())
}

fn keeps_to_its_server(world: &mut World, family: IpAddr) -> Outcome {
    world.balance(family, "rr", &[1, 1])?;
    let service = world.service(family);
    world.ipvsadm(&format!("-E -t {service} -s rr -p 300"))?;
    let report = run(world, &load(service, 200, false))?;
    let shares = shares(&report);
    check(shares.len() == 1, format!("one client's connections went to {shares:?}"))?;
    let index = usize::from(shares.contains_key("rs2"));
    let listing = world.ipvsadm(&format!("-Ln -t {service}"))?;
    check(listing.contains(&format!("TCP  {service} rr persistent 300\n")), &listing)?;
    let kept = world.server(index, family, 80).to_string();
    let listing = world.ipvsadm(&format!("-Ln --persistent-conn -t {service}"))?;
    check(columns(&listing, &["->", &kept])?[3] == "1", format!("not one template:\n{listing}"))?;
    let client = SocketAddr::new(world.topology.client_address(family), 0).to_string();
    let connections = world.ipvsadm("-Lnc")?;
    let template = connections.lines().find(|line| line.split_whitespace().nth(3) == Some(&client));
    let words: Vec<_> = template.into_iter().flat_map(str::split_whitespace).collect();
    let shown: Vec<_> = [0, 2, 4, 5].iter().filter_map(|column| words.get(*column).copied()).collect();
    let expected = format!("TCP ASSURED {service} {kept}");
    check(shown.join(" ") == expected, format!("the template is {template:?} in\n{connections}"))
}

/// What a client with this address is answered by, asking port 53 of the virtual address.
fn asked_by(world: &World, client: IpAddr) -> Result<String, Failed> {
    let vip = SocketAddr::new(world.vip(client), 53);
    let asked = world.topology.client.run(|| {
        let socket = UdpSocket::bind(SocketAddr::new(client, 0))?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.send_to(b"who?", vip)?;
        let mut answer = [0; 512];
        let (length, from) = socket.recv_from(&mut answer)?;
        std::io::Result::Ok((String::from_utf8_lossy(&answer[..length]).into_owned(), from))
    })?;
    let (answer, from) = asked.map_err(|error| format!("{client} asked {vip}: {error}"))?;
    check(from == vip, format!("{from} answered in place of {vip}"))?;
    Ok(answer)
}

fn a_netmask(world: &mut World) -> Outcome {
    for (family, mask, outside) in [(V4, "255.255.255.248", 208), (V6, "125", 0x208)] {
        let service = SocketAddr::new(world.vip(family), 53);
        let mut echoes = Vec::new();
        world.ipvsadm(&format!("-A -u {service} -s rr -p 300 -M {mask}"))?;
        for index in 0..2 {
            let server = world.server(index, family, 53);
            let name = format!("rs{}", index + 1);
            echoes.push(udp::Echo::start(&world.topology.servers[index], server, &name)?);
            world.ipvsadm(&format!("-a -u {service} -r {server} -m"))?;
        }
        let client = |last: u16| match world.topology.client_address(family) {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                IpAddr::from([a, b, c, u8::try_from(last & 0xff).unwrap_or(0)])
            }
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, _] = address.segments();
                IpAddr::from([a, b, c, d, e, f, g, last])
            }
        };
        // The client's own address and three more of its network, then two of the next one.
        let base = outside - 8;
        let mut answers = Vec::new();
        for last in [base, base + 1, base + 2, base + 7, outside, outside + 1] {
            if last != base {
                world.topology.client.net().add_address("eth0", Prefix::host(client(last)))?;
            }
            let answer = asked_by(world, client(last))?;
            answers.push(if answer.contains("rs1") { 1 } else { 2 });
        }
        let [one, .., other] = answers[..] else { return Err("six answers".into()) };
        check(one != other && answers == [one, one, one, one, other, other], format!("{answers:?}"))?;
        let saved = world.ipvsadm("-Sn")?;
        let line = format!("-A -u {service} -s rr -p 300 -M {mask}\n");
        check(saved.contains(&line), format!("saved:\n{saved}"))?;
    }
    Ok(())
}

fn every_port(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        let vip = SocketAddr::new(world.vip(family), 0);
        let mut more = Vec::new();
        world.ipvsadm(&format!("-A -t {vip} -s rr -p 300"))?;
        for index in 0..2 {
            let other = world.server(index, family, 8080);
            more.push(Server::start(&world.topology.servers[index], other, &format!("rs{}", index + 1))?);
            world.ipvsadm(&format!("-a -t {vip} -r {} -m", world.server(index, family, 0)))?;
        }
        let mut answered = Vec::new();
        for port in [80, 8080, 80, 8080] {
            let service = SocketAddr::new(vip.ip(), port);
            answered.push(Connection::open(&world.topology.client, service, LIMIT)?.get("/")?.server);
        }
        check(answered.iter().all(|server| *server == answered[0]), format!("{answered:?} answered"))?;
        let listing = world.ipvsadm("-Ln")?;
        check(listing.contains(&format!("TCP  {vip} rr persistent 300\n")), &listing)?;
    }
    Ok(())
}

fn weight_0(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    let service = world.service(V4);
    world.ipvsadm(&format!("-E -t {service} -s rr -p 300"))?;
    let ask = || Ok::<_, Failed>(Connection::open(&world.topology.client, service, LIMIT)?.get("/")?.server);
    let first = ask()?;
    check(ask()? == first, "the second connection went elsewhere")?;
    let index = usize::from(first == "rs2");
    world.ipvsadm(&format!("-e -t {service} -r {} -m -w 0", world.server(index, V4, 80)))?;
    let then = ask()?;
    check(then != first && ask()? == then, format!("with {first} at weight 0 {then} answered"))
}

fn removed(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1])?;
    let service = world.service(V4);
    let mut open = Connection::open(&world.topology.client, service, LIMIT)?;
    open.get("/")?;
    let listing = world.ipvsadm("-Lnc")?;
    check(listing.contains("ESTABLISHED"), &listing)?;
    world.ipvsadm(&format!("-d -t {service} -r {}", world.server(0, V4, 80)))?;
    let listing = world.ipvsadm("-Lnc")?;
    check(listing.lines().count() == 2, format!("connections are left:\n{listing}"))
}
