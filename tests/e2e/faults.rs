//! Bad input and faults: one clear sentence and an exit code, or a named counter; nothing panics.

use crate::director::{
    Configuration, Director, LIMIT, PublicCopy, UVS, V4, V6, World, in_default_world, in_world, ipvsadm,
    load, output, unprivileged, uvs,
};
use crate::harness::{Outcome, Tests, check, topology};
use crate::traffic::{run, shares};
use libtest_mimic::Failed;
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use uvs::engine::steer::{Mode, Steering, WantedMode};
use uvs_lab::http::{Connection, Load, Server};
use uvs_lab::probe::{self, RawTcp, flags, segment};
use uvs_lab::{Plan, Topology, wait};

pub(crate) const TESTS: Tests = &[
    ("an_unknown_interface", an_unknown_interface),
    ("no_interface_at_all", no_interface_at_all),
    ("no_privilege", no_privilege),
    ("a_kernel_without_af_xdp", no_af_xdp),
    ("a_device_with_another_xdp_program", another_xdp_program),
    ("a_queue_with_another_socket", || in_default_world(a_queue_that_is_taken)),
    ("a_second_director_in_the_namespace", || in_default_world(a_second_director)),
    ("directors_of_two_namespaces_do_not_meet", directors_do_not_meet),
    ("nobody_else_may_command", || in_default_world(nobody_else_may_command)),
    ("mistakes_in_a_configuration", mistakes_in_a_configuration),
    ("a_service_that_is_there_already", || in_default_world(a_service_that_is_there)),
    ("vips_come_and_go_with_the_director", vips_come_and_go),
    ("a_vip_no_route_leads_to", a_vip_no_route_leads_to),
    ("a_real_server_no_route_leads_to", || in_default_world(a_server_without_route)),
    ("a_real_server_that_is_no_host", || in_default_world(a_server_that_is_no_host)),
    ("a_real_server_that_never_answers_arp", || in_default_world(a_silent_server)),
    ("malformed_and_truncated_packets", || in_default_world(malformed_packets)),
    ("a_full_connection_table", a_full_table),
    ("killed_under_load", || in_default_world(killed_under_load)),
    ("a_clean_end_leaves_the_kernel_in_charge", || in_default_world(a_clean_end)),
    ("an_interface_disappears", || in_default_world(an_interface_disappears)),
];

/// What a program said on stderr.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// It failed, said all of `words`, and did not panic.
fn refused(output: &Output, words: &[&str]) -> Outcome {
    let said = said(output);
    check(
        !output.status.success() && output.status.code().is_some(),
        format!("ended with {}", output.status),
    )?;
    check(!said.contains("panicked"), &said)?;
    let missing: Vec<_> = words.iter().filter(|word| !said.contains(**word)).collect();
    check(missing.is_empty(), format!("{missing:?} is missing from {said:?}"))
}

fn an_unknown_interface() -> Outcome {
    let topology = topology()?;
    refused(&uvs(&topology.director, ["run", "--interface", "eth9"])?, &["eth9"])
}

fn no_interface_at_all() -> Outcome {
    let topology = topology()?;
    let output = uvs(&topology.director, ["run"])?;
    refused(&output, &["eth0", "eth1", "eth2"])?;
    check(output.status.code() == Some(2), format!("ended with {}", output.status))
}

fn no_privilege() -> Outcome {
    let topology = topology()?;
    let copy = PublicCopy::make("run")?;
    let mut command = unprivileged(&copy, &["run", "--interface", "eth0"]);
    refused(&output(&topology.director, &mut command)?, &["CAP_NET_ADMIN", "CAP_BPF"])
}

/// A kernel built without AF_XDP, as far as the director can tell.
fn no_af_xdp() -> Outcome {
    let topology = topology()?;
    let output = topology.director.run(|| -> Result<Output, Failed> {
        // For this thread, which ends with the closure, and what it starts.
        seccompiler::apply_filter(&without_af_xdp()?)?;
        Ok(Command::new(UVS).args(["run", "--io", "xdp", "--interface", "eth0"]).output()?)
    })??;
    refused(&output, &["AF_XDP", "CONFIG_XDP_SOCKETS"])?;
    check(output.status.code() == Some(2), format!("ended with {}", output.status))
}

/// `socket(AF_XDP, …)` fails as it does where the family is not built in; every other call is let through.
pub(crate) fn without_af_xdp() -> Result<BpfProgram, Failed> {
    let family = u64::try_from(libc::AF_XDP)?;
    let is_xdp = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, family)?;
    let rules = [(libc::SYS_socket, vec![SeccompRule::new(vec![is_xdp])?])].into();
    let refusal = SeccompAction::Errno(u32::try_from(libc::EAFNOSUPPORT)?);
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, refusal, std::env::consts::ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}

fn nobody_else_may_command(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    let copy = PublicCopy::make("ipvsadm")?;
    let mut command = unprivileged(&copy, &["ipvsadm", "-C"]);
    refused(&output(&world.topology.director, &mut command)?, &["root"])?;
    run(world, &load(world.service(V4), 4, false)).map(drop)
}

/// Another program has put its XDP program on the device and holds it there.
fn another_xdp_program() -> Outcome {
    let topology = topology()?;
    let mut programs = Vec::new();
    for (index, mode) in [(0, Mode::Native), (1, Mode::Generic)] {
        let device = &topology.director_devices()[index];
        let attached = topology.director.run(|| -> Result<_, Failed> {
            let ifindex = nix::net::if_::if_nametoindex(device.as_str())?;
            Ok(Steering::new()?.attach(ifindex, WantedMode::Only(mode), &[])?)
        });
        programs.push(attached??);
        refused(&uvs(&topology.director, ["run", "--interface", device])?, &[device, "XDP program"])?;
    }
    drop(programs);
    Director::start(&topology, &[])?.terminate().map(drop)
}

/// Another program has an AF_XDP socket on the queue: here, a director that listens elsewhere.
fn a_queue_that_is_taken(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    let socket = std::env::temp_dir().join(format!("uvs-{}-second.sock", std::process::id()));
    let path = socket.display().to_string();
    let output = uvs(&world.topology.director, ["run", "--interface", "eth0", "--socket", &path])?;
    refused(&output, &["queue 0 of eth0", "AF_XDP socket"])?;
    run(world, &load(world.service(V4), 20, false)).map(drop)
}

fn a_second_director(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    refused(&uvs(&world.topology.director, ["run", "--interface", "eth0"])?, &["director"])?;
    run(world, &load(world.service(V4), 20, false)).map(drop)
}

fn directors_do_not_meet() -> Outcome {
    let (one, other) = (World::build(&Plan::default(), &[])?, World::build(&Plan::default(), &[])?);
    one.balance(V4, "rr", &[1, 1])?;
    check(other.ipvsadm("-Sn")?.is_empty(), "a service of one director is the other's too")?;
    run(&one, &load(one.service(V4), 10, false))?;
    other.balance(V4, "wrr", &[1, 0])?;
    check(one.ipvsadm("-Sn")?.contains("-s rr"), "the other director's command reached this one")?;
    let report = run(&other, &load(other.service(V4), 10, false))?;
    check(shares(&report).keys().eq(["rs1"]), format!("{:?}", shares(&report)))
}

fn mistakes_in_a_configuration() -> Outcome {
    let topology = topology()?;
    let service = "[[service]]\naddress = \"203.0.113.100:80\"\nprotocol = \"tcp\"\n";
    for (name, text, place, words) in [
        ("syntax", "[director\n".to_string(), ":1:", vec![]),
        ("unknown-key", "[director]\ninterfaces = [\"eth0\"]\ncolour = 3\n".into(), ":3:1", vec!["colour"]),
        ("wrong-type", "[director]\ninterfaces = 7\n".into(), ":2:14", vec!["7"]),
        ("scheduler", format!("{service}scheduler = \"fastest\"\n"), ":4:13", vec!["fastest", "wlc"]),
        (
            "address",
            "[[service]]\naddress = \"nowhere\"\nprotocol = \"tcp\"\n".into(),
            ":2:11",
            vec!["nowhere"],
        ),
        ("twice", format!("{service}{service}"), ":5:", vec!["203.0.113.100:80"]),
    ] {
        let file = Configuration::write(name, &text)?;
        let position = format!("{}{place}", file.path());
        let words: Vec<&str> = words.iter().copied().chain([position.as_str()]).collect();
        for command in [vec!["check"], vec!["run", "--interface", "eth0", "--config"]] {
            let output = uvs(&topology.director, command.iter().copied().chain([file.path().as_str()]))?;
            refused(&output, &words)
                .map_err(|failed| format!("{command:?} {name}: {}", failed.message().unwrap_or_default()))?;
        }
    }
    let right = format!("[director]\ninterfaces = [\"eth0\"]\n\n{service}");
    let output = uvs(&topology.director, ["check", &Configuration::write("right", &right)?.path()])?;
    check(output.status.success(), said(&output))?;
    refused(&uvs(&topology.director, ["check", "/nowhere/at/all.toml"])?, &["/nowhere/at/all.toml"])
}

fn a_service_that_is_there(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    let again = format!("-A -t {} -s wlc", world.service(V4));
    let output = ipvsadm(&world.topology.director, &again)?;
    refused(&output, &["Service already exists"])?;
    check(output.status.code() == Some(255), format!("ended with {}", output.status))?;
    run(world, &load(world.service(V4), 4, false)).map(drop)
}

/// `--assign-vips` puts the addresses of services on the interface and takes them off at the end.
fn vips_come_and_go() -> Outcome {
    let topology = Topology::build(&Plan::default())?;
    let mut director = Director::start(&topology, &["--assign-vips"])?;
    for (family, vip) in [(V4, topology.vip()), (V6, topology.vip6())] {
        let service = SocketAddr::new(vip, 80);
        let server = SocketAddr::new(topology.server_address(0, family), 80);
        let _server = Server::start(&topology.servers[0], server, "rs1")?;
        for line in [format!("-A -t {service} -s rr"), format!("-a -t {service} -r {server} -m")] {
            let output = ipvsadm(&topology.director, &line)?;
            check(output.status.success(), said(&output))?;
        }
        let report = load(service, 10, false).run(&topology.client)?;
        check(
            report.faults.is_empty() && report.samples.len() == 10,
            format!("{:?}", report.faults.first()),
        )?;
        check(probe::ping(&topology.client, vip, LIMIT)?, format!("{vip} does not answer pings"))?;
    }
    check(director.terminate()? == Some(0), "the director did not end cleanly")?;
    let left: Vec<_> = topology.director.run(|| {
        let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|interface| interface.address);
        Ok::<_, nix::Error>(addresses.map(|address| address.to_string()).collect())
    })??;
    for vip in [topology.vip(), topology.vip6()] {
        let is_there = left.iter().any(|address| address.contains(&vip.to_string()));
        check(!is_there, format!("{vip} is still there"))?;
    }
    Ok(())
}

/// No network of the interfaces holds it, so nothing says where it belongs: the first one gets it.
fn a_vip_no_route_leads_to() -> Outcome {
    let topology = Topology::build(&Plan::default())?;
    let mut director = Director::start(&topology, &["--assign-vips"])?;
    let output = ipvsadm(&topology.director, "-A -t 198.51.100.99:80 -s rr")?;
    check(output.status.success(), said(&output))?;
    let (log, sentence) = (director.log(), "198.51.100.99 is on eth0 now");
    check(log.contains(sentence), format!("{sentence:?} is missing from {log:?}"))?;
    check(probe::ping(&topology.client, "198.51.100.99".parse()?, LIMIT)?, "it does not answer pings")?;
    check(director.is_alive(), "the director ended")
}

/// Of two real servers in turn one cannot be reached: what goes to it is dropped for `reason`, and the other one answers.
fn every_other_is_answered(world: &World, reason: &str) -> Outcome {
    let raw = RawTcp::open(&world.topology.client)?;
    let (IpAddr::V4(client), SocketAddr::V4(service)) =
        (world.topology.client_address(V4), world.service(V4))
    else {
        return Err("the lab has no IPv4".into());
    };
    for port in [5001, 5002] {
        // The server that was added last comes first.
        let before = world.drops(reason)?;
        raw.send(SocketAddrV4::new(client, port), service, flags::SYN)?;
        world.wait_for_drops(reason, before + 1)?;
        let answer = Connection::open(&world.topology.client, service.into(), LIMIT)?.get("/")?;
        check(answer.server == "rs1", format!("{:?} answered", answer.server))?;
    }
    Ok(())
}

fn a_server_without_route(world: &mut World) -> Outcome {
    let service = world.service(V4);
    world.balance(V4, "rr", &[1])?;
    world.ipvsadm(&format!("-a -t {service} -r 198.51.100.7:80 -m"))?;
    every_other_is_answered(world, "no_route")?;
    is_told_at_once(world)
}

/// Where nothing leads to the only real server left, the client is told so: it does not wait for its own patience to end.
fn is_told_at_once(world: &World) -> Outcome {
    let service = world.service(V4);
    world.ipvsadm(&format!("-d -t {service} -r {}", world.server(0, V4, 80)))?;
    let patience = Duration::from_secs(60);
    let begin = Instant::now();
    let refused = Connection::open(&world.topology.client, service, patience).err();
    let refused = refused.ok_or("somebody answered")?;
    check(begin.elapsed() < patience / 2, format!("after {:?}: {refused}", begin.elapsed()))
}

/// The address of all hosts of a subnet is refused as the kernel does, which knows that it is not unicast.
fn a_server_that_is_no_host(world: &mut World) -> Outcome {
    let service = world.service(V4);
    world.balance(V4, "rr", &[1])?;
    let everybody = "192.168.4.255";
    let line = format!("-a -t {service} -r {everybody}:80 -m");
    let output = ipvsadm(&world.topology.director, &line)?;
    refused(&output, &["Invalid operation.  Possibly wrong module version, address not unicast, ..."])?;
    check(output.status.code() == Some(255), format!("ended with {}", output.status))?;
    world.ipvsadm(&format!("-a -t {service} -r 192.168.4.254:80 -m")).map(drop)
}

fn a_silent_server(world: &mut World) -> Outcome {
    let service = world.service(V4);
    world.balance(V4, "rr", &[1])?;
    world.ipvsadm(&format!("-a -t {service} -r 192.168.4.99:80 -m"))?;
    every_other_is_answered(world, "neighbour_unresolved")?;
    is_told_at_once(world)?;
    world.ipvsadm(&format!("-a -t {service} -r {} -m", world.server(0, V4, 80)))?;
    world.ipvsadm(&format!("-d -t {service} -r 192.168.4.99:80"))?;
    run(world, &load(service, 20, false)).map(drop)
}

fn malformed_packets(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    let (from, to) = ("203.0.113.200:4000".parse()?, "203.0.113.100:80".parse()?);
    let raw = RawTcp::open(&world.topology.client)?;
    let whole = segment(from, to, flags::SYN);
    let mut long_header = whole;
    long_header[12] = 15 << 4;
    let mut short_header = whole;
    short_header[12] = 4 << 4;
    let kinds = ["truncated", "malformed"];
    for (what, bytes, reason) in [
        ("ends within its ports' header", &whole[..4], "truncated"),
        ("ends before its flags", &whole[..13], "truncated"),
        ("has options beyond its end", &long_header[..], "malformed"),
        ("has less header than there is", &short_header[..], "malformed"),
    ] {
        let other = kinds[usize::from(reason == kinds[0])];
        let counts = || -> Result<_, Failed> { Ok((world.drops(reason)?, world.drops(other)?)) };
        let (before, others) = counts()?;
        raw.send_bytes(*to.ip(), bytes)?;
        world
            .wait_for_drops(reason, before + 1)
            .map_err(|failed| format!("a segment that {what}: {}", failed.message().unwrap_or_default()))?;
        check(counts()? == (before + 1, others), format!("a segment that {what} counts as {other}, too"))?;
    }
    run(world, &load(world.service(V4), 20, false)).map(drop)
}

/// The connections there are go on; one more is refused, and counted.
fn a_full_table() -> Outcome {
    let text = "[limits]\nconnections_ipv4 = 64\nconnections_ipv6 = 64\n";
    let file = Configuration::write("limits", text)?;
    in_world(&Plan::default(), &["--config", &file.path()], |world| {
        world.balance(V4, "rr", &[1, 1])?;
        let mut open = Vec::new();
        while world.status()?.table.connections < 64 {
            open.push(Connection::open(&world.topology.client, world.service(V4), LIMIT)?);
        }
        check(open.len() == 64, format!("{} connections are counted as 64", open.len()))?;
        let raw = RawTcp::open(&world.topology.client)?;
        for port in 4001..=4004 {
            raw.send(format!("203.0.113.200:{port}").parse()?, "203.0.113.100:80".parse()?, flags::SYN)?;
        }
        world.wait_for_drops("table_full", 4)?;
        for connection in &mut open {
            let fault = connection.get("/")?.fault("/");
            check(fault.is_none(), fault.unwrap_or_default())?;
        }
        Ok(())
    })
}

/// kill -9: all other traffic is the kernel's at once, no connection of ours gets a RST until the director is back.
pub(crate) fn killed_under_load(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    world.balance(V6, "rr", &[1, 1])?;
    let other = SocketAddr::new(world.vip(V4), 8080);
    let _local = Server::start(&world.topology.director, other, "director")?;
    let mut kept = Connection::open(&world.topology.client, world.service(V4), LIMIT)?;
    check(kept.get("/")?.fault("/").is_none(), "the first answer is wrong")?;
    let raw = RawTcp::open(&world.topology.client)?;
    let service = world.service(V4);
    let (vip, vip6) = (world.vip(V4), world.vip(V6));
    let flowing = Load { clients: 8, limit: Duration::from_secs(3), ..Load::new(service, usize::MAX) };
    let flowing = Load { keep_alive: true, path: "/bytes/20000".into(), ..flowing };
    let stop = AtomicBool::new(false);
    let (topology, director, http) = (&world.topology, &mut world.director, &world.http);
    std::thread::scope(|scope| {
        let clients = scope.spawn(|| flowing.run_until(&topology.client, &stop));
        let answered = || http.iter().map(Server::answered).sum::<u64>();
        let outcome = wait::until("traffic to flow", LIMIT, || answered() > 100).map_err(Failed::from);
        let outcome = outcome.and_then(|()| director.kill());
        stop.store(true, Relaxed);
        outcome?;
        for address in [vip, vip6, topology.director_address(V4)] {
            check(
                probe::ping(&topology.client, address, LIMIT)?,
                format!("{address} does not answer pings"),
            )?;
        }
        let answer = Connection::open(&topology.client, other, LIMIT)?.get("/")?;
        check(answer.server == "director", "another port of the VIP is not the kernel's")?;
        let reset =
            raw.receive(Duration::from_secs(2), |got| got.source == 80 && got.flags & flags::RST != 0)?;
        check(reset.is_none(), format!("a connection was reset: {reset:?}"))?;
        let _the_clients_give_up = clients.join();
        Ok::<(), Failed>(())
    })?;
    world.director = Director::start(&world.topology, &[])?;
    check(world.ipvsadm("-Sn")?.is_empty(), "a new director is not empty")?;
    world.balance(V4, "rr", &[1, 1])?;
    run(world, &load(service, 100, false)).map(drop)?;
    // The new director does not know the old one's connections: the kernel gets their packets, and resets them.
    let error = kept.get("/").err().map(|error| error.to_string()).unwrap_or_default();
    check(error.contains("reset"), format!("a connection of the director before: {error:?}"))
}

/// After SIGTERM nothing is left: the VIP's port refuses connections, as the kernel does.
fn a_clean_end(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    let service = world.service(V4);
    run(world, &load(service, 20, false))?;
    check(world.director.terminate()? == Some(0), "it did not end with 0")?;
    let raw = RawTcp::open(&world.topology.client)?;
    let refused = Connection::open(&world.topology.client, service, LIMIT);
    check(refused.is_err(), "somebody answered")?;
    let reset = raw.receive(LIMIT, |got| got.source == 80 && got.flags & flags::RST != 0)?;
    check(reset.is_some(), "the kernel did not refuse the connection")?;
    check(probe::ping(&world.topology.client, service.ip(), LIMIT)?, "the VIP does not answer pings")?;
    let left = ipvsadm(&world.topology.director, "-Ln")?;
    check(left.status.code() == Some(2), format!("without a director, ipvsadm ends with {}", left.status))
}

fn an_interface_disappears(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    run(world, &load(world.service(V4), 20, false))?;
    world.topology.director.net().delete("eth2")?;
    wait::until("the director to notice", LIMIT, || {
        world
            .status()
            .is_ok_and(|status| !status.devices.iter().any(|device| device.name == "eth2" && device.up))
    })?;
    world.ipvsadm(&format!("-d -t {} -r {}", world.service(V4), world.server(1, V4, 80)))?;
    let report = run(world, &load(world.service(V4), 40, false))?;
    check(shares(&report).keys().eq(["rs1"]), format!("{:?}", shares(&report)))?;
    check(world.director.log().contains("eth2 is gone: "), "the log does not say which device is gone")?;
    check(world.director.is_alive(), "the director ended")?;
    check(world.director.terminate()? == Some(0), "it did not end with 0")
}
