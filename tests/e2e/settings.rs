//! `uvs sysctl`: what IPVS has under `net.ipv4.vs`, shown, set and in effect at once.

use crate::director::{Configuration, LIMIT, V4, World, in_default_world, in_world, load, uvs};
use crate::harness::{Outcome, Tests, check};
use crate::traffic::run;
use libtest_mimic::Failed;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use uvs_lab::probe::{RawTcp, flags};
use uvs_lab::{Plan, wait};

pub(crate) const TESTS: Tests = &[
    ("shown_and_set_as_by_sysctl", || in_default_world(shown_and_set)),
    ("in_the_configuration", in_the_configuration),
    ("packets_that_begin_connections_are_dropped_on_request", || in_default_world(drop_packet)),
    ("half_open_connections_are_dropped_on_request", || in_default_world(drop_entry)),
    ("real_servers_are_told_on_request", || in_default_world(nat_icmp_send)),
];

/// Runs `uvs sysctl` with the words of `line`: exit code, output, errors.
fn sysctl(world: &World, line: &str) -> Result<(i32, String, String), Failed> {
    let words = std::iter::once("sysctl").chain(line.split_whitespace());
    let output = uvs(&world.topology.director, words)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
}

fn set(world: &World, key: &str, value: i32) -> Outcome {
    let (code, out, errors) = sysctl(world, &format!("{key}={value}"))?;
    check(code == 0 && out == format!("net.ipv4.vs.{key} = {value}\n"), format!("{code} {out}{errors}"))
}

fn shown_and_set(world: &mut World) -> Outcome {
    let all = "net.ipv4.vs.am_droprate = 10
net.ipv4.vs.amemthresh = 1024
net.ipv4.vs.backup_only = 0
net.ipv4.vs.conn_reuse_mode = 1
net.ipv4.vs.conntrack = 0
net.ipv4.vs.debug_level = 0
net.ipv4.vs.drop_entry = 0
net.ipv4.vs.drop_packet = 0
net.ipv4.vs.expire_nodest_conn = 0
net.ipv4.vs.expire_quiescent_template = 0
net.ipv4.vs.ignore_tunneled = 1
net.ipv4.vs.nat_icmp_send = 0
net.ipv4.vs.pmtu_disc = 1
net.ipv4.vs.run_estimation = 1
net.ipv4.vs.schedule_icmp = 0
net.ipv4.vs.secure_tcp = 0
net.ipv4.vs.sloppy_tcp = 0
net.ipv4.vs.snat_reroute = 1
";
    let invalid = |name: &str, why: &str| {
        format!(
            "uvs sysctl: setting key \"net.ipv4.vs.{name}\": Invalid argument: net.ipv4.vs.{name} {why}\n"
        )
    };
    let no_fourth = invalid("drop_entry", "is a whole number from 0 to 3");
    let no_tracking = "is always 0 here: packets of services do not pass netfilter, which would track them";
    for (line, code, out, errors) in [
        ("-a", 0, all, String::new()),
        ("drop_entry", 0, "net.ipv4.vs.drop_entry = 0\n", String::new()),
        ("-n net.ipv4.vs.drop_entry", 0, "0\n", String::new()),
        ("-w net.ipv4.vs.conn_reuse_mode=0x3", 0, "net.ipv4.vs.conn_reuse_mode = 0x3\n", String::new()),
        ("net/ipv4/vs/conn_reuse_mode", 0, "net.ipv4.vs.conn_reuse_mode = 3\n", String::new()),
        ("-q sloppy_tcp=-1", 0, "", String::new()),
        ("-n sloppy_tcp", 0, "-1\n", String::new()),
        ("drop_entry=4 drop_packet=3", 1, "net.ipv4.vs.drop_packet = 3\n", no_fourth),
        // Memory is not short: what would be at work then is at rest.
        ("drop_packet=2", 0, "net.ipv4.vs.drop_packet = 2\n", String::new()),
        ("-n drop_packet", 0, "1\n", String::new()),
        ("conntrack=0", 0, "net.ipv4.vs.conntrack = 0\n", String::new()),
        ("conntrack=1", 1, "", invalid("conntrack", no_tracking)),
        ("nothing", 1, "", "uvs sysctl: there is no setting nothing: `uvs sysctl -a` lists them\n".into()),
    ] {
        let seen = sysctl(world, line)?;
        check(seen == (code, out.to_owned(), errors), format!("{line}: {seen:?}"))?;
    }
    let (code, _, errors) = sysctl(world, "amemthresh=many")?;
    check(code == 1 && errors.contains("\"many\" is no whole number of 32 bits"), errors)?;
    world.director.terminate()?;
    let (code, out, errors) = sysctl(world, "-a")?;
    check(code == 2 && out.is_empty() && errors.lines().count() == 1, errors)
}

fn in_the_configuration() -> Outcome {
    let file = Configuration::write("settings", "[settings]\nsecure_tcp = 3\nnat_icmp_send = 1\n")?;
    in_world(&Plan::default(), &["--config", &file.path()], |world| {
        let seen = sysctl(world, "-n secure_tcp nat_icmp_send")?;
        check(seen == (0, "3\n1\n".into(), String::new()), format!("{seen:?}"))?;
        // By the other table a connection is made, too.
        world.balance(V4, "rr", &[1, 1])?;
        run(world, &load(world.service(V4), 8, false)).map(drop)
    })
}

fn v4(address: IpAddr) -> Result<Ipv4Addr, Failed> {
    match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => Err(format!("{address} is IPv6").into()),
    }
}

/// Sends a SYN for the service from a neighbour of the client that nobody is.
fn half_open(world: &World, port: u16) -> Outcome {
    let service = SocketAddrV4::new(v4(world.vip(V4))?, 80);
    let [a, b, c, _] = v4(world.topology.client_address(V4))?.octets();
    let nobody = SocketAddrV4::new([a, b, c, 250].into(), port);
    Ok(RawTcp::open(&world.topology.client)?.send(nobody, service, flags::SYN)?)
}

fn drop_packet(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    set(world, "am_droprate", 1)?;
    set(world, "drop_packet", 3)?;
    half_open(world, 2000)?;
    world.wait_for_drops("defence", 1)?;
    set(world, "drop_packet", 0)?;
    let report = run(world, &load(world.service(V4), 20, false))?;
    check(report.faults.is_empty(), format!("{:?}", report.faults.first()))?;
    check(world.drops("defence")? == 1, "packets are dropped still")
}

fn drop_entry(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    half_open(world, 2000)?;
    let is_listed = || world.ipvsadm("-Lnc").is_ok_and(|listing| listing.contains("SYN_RECV"));
    wait::until("the connection to be listed", LIMIT, is_listed)?;
    set(world, "drop_entry", 3)?;
    wait::until("the connection to be dropped", LIMIT, || !is_listed())?;
    let counts = world.ipvsadm("-Ln")?;
    let counted =
        counts.lines().filter(|line| line.contains("Masq") && !line.trim_end().ends_with("0          0"));
    check(counted.count() == 0, counts)
}

fn nat_icmp_send(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    set(world, "nat_icmp_send", 1)?;
    let server = SocketAddrV4::new(v4(world.topology.server_address(0, V4))?, 80);
    let client = SocketAddrV4::new(v4(world.topology.client_address(V4))?, 4000);
    RawTcp::open(&world.topology.servers[0])?.send(server, client, flags::ACK)?;
    world.wait_for_drops("no_connection", 1)?;
    check(world.events("icmp_sent")? == 1, "the real server was not told")
}
