//! The real server's side: tunnels taken off, virtual addresses nobody asks for by ARP, and everything restored afterwards.

use crate::director::{LIMIT, UVS, V4, V6, World, in_world, load, one_arm, uvs};
use crate::harness::{Outcome, Tests, check};
use crate::traffic::{run, shares};
use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;
use uvs::engine::link::namespace::cookie;
use uvs_lab::http::{Connection, Server};
use uvs_lab::{Namespace, stream, udp, wait};

pub(crate) const TESTS: Tests = &[
    ("checksums_of_tunnels", || in_world(&one_arm(), &[], checksums_of_tunnels)),
    ("the_other_ip_version", || in_world(&one_arm(), &[], the_other_ip_version)),
    ("stop_restores_what_was_there", || in_world(&one_arm(), &[], stop_restores)),
    ("a_killed_decapsulator", || in_world(&one_arm(), &[], a_killed_decapsulator)),
    ("a_start_killed_anywhere", || in_world(&one_arm(), &[], a_start_killed_anywhere)),
    ("what_two_addresses_share", || in_world(&one_arm(), &[], what_two_addresses_share)),
    ("a_namespace_that_is_gone", a_namespace_that_is_gone),
    ("what_cannot_be", || in_world(&one_arm(), &[], what_cannot_be)),
];

/// A real server that was started; dropping it stops it.
pub(crate) struct Started<'a> {
    namespace: &'a Namespace,
    vip: IpAddr,
}

impl<'a> Started<'a> {
    /// Starts one by this method.
    pub(crate) fn start(namespace: &'a Namespace, vip: IpAddr, method: &str) -> Result<Self, Failed> {
        let started = Started { namespace, vip };
        real_server(namespace, &format!("start --vip {vip} --method {method}"))?;
        Ok(started)
    }

    fn stop(self) -> Outcome {
        real_server(self.namespace, &format!("stop --vip {}", self.vip)).map(drop)
    }
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        let _stopped_before = real_server(self.namespace, &format!("stop --vip {}", self.vip));
    }
}

/// Runs `uvs real-server`, which must succeed; what it prints.
fn real_server(namespace: &Namespace, line: &str) -> Result<String, Failed> {
    let (code, said) = try_real_server(namespace, line)?;
    check(code == Some(0), format!("real-server {line}: {code:?}, {said}"))?;
    Ok(said)
}

fn try_real_server(namespace: &Namespace, line: &str) -> Result<(Option<i32>, String), Failed> {
    let words = std::iter::once("real-server").chain(line.split_whitespace());
    let output = uvs(namespace, words)?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
}

/// An HTTP server on the virtual address of each real server.
pub(crate) fn on_the_vip(world: &World, family: IpAddr) -> Result<Vec<Server>, Failed> {
    let servers = world.topology.servers.iter().enumerate();
    let servers =
        servers.map(|(n, server)| Server::start(server, world.service(family), &format!("vip{}", n + 1)));
    Ok(servers.collect::<Result<_, _>>()?)
}

/// Requests and uploads of more than a packet are answered by both servers.
fn served(world: &World, family: IpAddr, what: &str) -> Outcome {
    let service = world.service(family);
    let report = run(world, &load(service, 40, false))?;
    let expected: BTreeMap<String, usize> = [("vip1".into(), 20), ("vip2".into(), 20)].into();
    check(shares(&report) == expected, format!("{what}: shares are {:?}", shares(&report)))?;
    let mut connection = Connection::open(&world.topology.client, service, LIMIT)?;
    let up = connection.put("/", 2_000_000)?;
    let expected = format!("{}\n", stream::sha256(2_000_000));
    check(up.body == expected.as_bytes(), format!("{what}: what went up is not what was sent"))
}

/// What the director is told of checksums changes nothing for real servers.
fn checksums_of_tunnels(world: &mut World) -> Outcome {
    let port = "--tun-port 6080";
    let kinds = [("gre", "", "--tun-csum"), ("gue", port, "--tun-csum"), ("gue", port, "--tun-remcsum")];
    for family in [V4, V6] {
        for (kind, port, checksum) in kinds {
            let what = format!("{kind} {checksum} {family}");
            let vip = world.vip(family);
            let method = format!("tun --tun-type {kind} {port}");
            let started = world.topology.servers.iter().map(|server| Started::start(server, vip, &method));
            let started: Vec<_> = started.collect::<Result<_, _>>()?;
            let servers = on_the_vip(world, family)?;
            let service = world.service(family);
            let dns = SocketAddr::new(vip, 53);
            world.ipvsadm(&format!("-A -t {service} -s rr"))?;
            world.ipvsadm(&format!("-A -u {dns} -s rr"))?;
            for index in 0..2 {
                let address = world.topology.server_address(index, family);
                let address = if family.is_ipv4() { address.to_string() } else { format!("[{address}]") };
                let tunnel = format!("-i --tun-type {kind} {port} {checksum}");
                world.ipvsadm(&format!("-a -t {service} -r {address}:80 {tunnel}"))?;
                world.ipvsadm(&format!("-a -u {dns} -r {address}:53 {tunnel}"))?;
            }
            served(world, family, &what)?;
            let echoes = world.topology.servers.iter().map(|server| udp::Echo::start(server, dns, "echo"));
            let _echoes: Vec<_> = echoes.collect::<Result<_, _>>()?;
            let client = udp::Client::connect(&world.topology.client, dns)?;
            check(client.ask(&[7; 1200], LIMIT)? == "echo", format!("{what}: no answer to a datagram"))?;
            world.ipvsadm("-C")?;
            drop(servers);
            started.into_iter().try_for_each(Started::stop)?;
        }
    }
    Ok(())
}

/// A tunnel over IPv4 to the real servers of an IPv6 service, and the other way round.
fn the_other_ip_version(world: &mut World) -> Outcome {
    for (family, other) in [(V4, V6), (V6, V4)] {
        let vip = world.vip(family);
        let started = world.topology.servers.iter().map(|server| Started::start(server, vip, "tun"));
        let _started: Vec<_> = started.collect::<Result<_, _>>()?;
        let _servers = on_the_vip(world, family)?;
        let service = world.service(family);
        world.ipvsadm(&format!("-A -t {service} -s rr"))?;
        for index in 0..2 {
            world.ipvsadm(&format!("-a -t {service} -r {} -i", world.server(index, other, 80)))?;
        }
        served(world, family, &format!("{family} inside, {other} outside"))?;
        let listing = world.ipvsadm("-Lnc")?;
        let server = world.server(0, other, 80).to_string();
        check(listing.contains(&server), format!("{server} is not among the connections:\n{listing}"))?;
    }
    Ok(())
}

/// Every kernel setting of a namespace's devices, and every address.
pub(crate) fn everything(namespace: &Namespace) -> Result<Vec<String>, Failed> {
    fn read(path: &Path, all: &mut Vec<String>) {
        let Ok(entries) = std::fs::read_dir(path) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                read(&path, all);
            } else if let Ok(value) = std::fs::read_to_string(&path) {
                all.push(format!("{} = {}", path.display(), value.trim()));
            }
        }
    }
    let all = namespace.run(|| {
        let mut all = Vec::new();
        for family in ["ipv4", "ipv6"] {
            read(&Path::new("/proc/sys/net").join(family).join("conf"), &mut all);
        }
        for entry in nix::ifaddrs::getifaddrs().into_iter().flatten() {
            let address = entry.address.and_then(|address| {
                let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
                v4.or(address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
            });
            all.push(format!("{} {:?} {address:?}", entry.interface_name, entry.flags));
        }
        all.sort();
        all
    })?;
    check(all.len() > 50, "the settings of a namespace could not be read")?;
    Ok(all)
}

/// Whether a namespace is as it was; what is different otherwise.
pub(crate) fn same(namespace: &Namespace, before: &[String], what: &str) -> Outcome {
    let after = everything(namespace)?;
    let gone: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
    let new: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
    check(gone.is_empty() && new.is_empty(), format!("{what}: was {gone:#?}, is {new:#?}"))
}

const METHODS: [&str; 4] = ["dr", "tun", "tun --tun-type gre", "tun --tun-type gue --tun-port 6080"];

fn stop_restores(world: &mut World) -> Outcome {
    let server = &world.topology.servers[0];
    for family in [V4, V6] {
        let vip = world.vip(family);
        for method in METHODS {
            let before = everything(server)?;
            let started = Started::start(server, vip, method)?;
            check(everything(server)? != before, "nothing was changed")?;
            let status = real_server(server, "status")?;
            check(status.contains(&format!("{vip} on lo")), format!("the status is\n{status}"))?;
            let again = real_server(server, &format!("start --vip {vip} --method {method}"))?;
            check(again == "nothing was missing\n", format!("started again: {again}"))?;
            started.stop()?;
            same(server, &before, method)?;
            let again = real_server(server, &format!("stop --vip {vip}"))?;
            check(again == "nothing was to be restored\n", format!("stopped again: {again}"))?;
        }
    }
    // What somebody else has changed since stays as it is, and so does what was there before.
    server.sysctl("net/ipv4/conf/all/arp_announce", "2")?;
    let before = everything(server)?;
    let started = Started::start(server, world.vip(V4), "dr")?;
    server.sysctl("net/ipv4/conf/all/arp_ignore", "8")?;
    started.stop()?;
    let after = everything(server)?;
    let changed: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
    let expected = "/proc/sys/net/ipv4/conf/all/arp_ignore = 8";
    check(changed == [expected], format!("changed: {changed:#?}"))
}

/// The process id that the status tells.
fn decapsulator(namespace: &Namespace) -> Result<Pid, Failed> {
    let status = try_real_server(namespace, "status")?.1;
    let pid =
        status.lines().find_map(|line| line.trim().strip_prefix("decapsulator: process ")?.parse().ok());
    pid.map(Pid::from_raw).ok_or_else(|| format!("no decapsulator in\n{status}").into())
}

fn a_killed_decapsulator(world: &mut World) -> Outcome {
    let vip = world.vip(V4);
    let before = everything(&world.topology.servers[0])?;
    let started = world.topology.servers.iter().map(|server| Started::start(server, vip, "tun"));
    let mut started: Vec<_> = started.collect::<Result<_, _>>()?;
    let servers = on_the_vip(world, V4)?;
    let service = world.service(V4);
    world.ipvsadm(&format!("-A -t {service} -s rr"))?;
    for index in 0..2 {
        world.ipvsadm(&format!("-a -t {service} -r {} -i", world.server(index, V4, 80).ip()))?;
    }
    served(world, V4, "before")?;
    let server = &world.topology.servers[0];
    let killed = decapsulator(server)?;
    kill(killed, Signal::SIGKILL)?;
    wait::until("the status to tell", LIMIT, || {
        try_real_server(server, "status")
            .is_ok_and(|(code, said)| code == Some(1) && said.contains("MISSING: a decapsulator for ipip"))
    })?;
    let said = real_server(server, &format!("start --vip {vip} --method tun"))?;
    check(said.contains("takes packets out of ipip"), format!("started again: {said}"))?;
    check(decapsulator(server)? != killed, "it is the same process")?;
    served(world, V4, "after")?;
    // Killed once more, and nobody starts it again.
    kill(decapsulator(server)?, Signal::SIGKILL)?;
    drop(servers);
    started.remove(0).stop()?;
    wait::until("the device to go", LIMIT, || same(server, &before, "killed").is_ok())?;
    same(server, &before, "killed")
}

/// `start` and `stop` are killed as they go, ever later; `stop` restores everything all the same.
fn a_start_killed_anywhere(world: &mut World) -> Outcome {
    let server = &world.topology.servers[0];
    let vip = world.vip(V4);
    let before = everything(server)?;
    // How long one takes here and now, on its way through every place that it may be killed at.
    let begin = Instant::now();
    real_server(server, &format!("start --vip {vip} --method tun"))?;
    let whole = begin.elapsed();
    real_server(server, &format!("stop --vip {vip}"))?;
    let mut halfway = 0;
    for round in 0..40 {
        for action in ["start", "stop"] {
            let words = format!("real-server {action} --vip {vip}");
            let mut command = Command::new(UVS);
            command.args(words.split(' ')).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            if action == "start" {
                command.args(["--method", "tun"]);
            }
            let mut child = server.start(&mut command)?;
            std::thread::sleep(whole * round / 40);
            child.kill()?;
            halfway += usize::from(!child.wait()?.success() && everything(server)? != before);
        }
        real_server(server, &format!("stop --vip {vip}"))?;
        // A decapsulator that was not told to go on ends by itself.
        wait::until("everything to be as before", LIMIT, || same(server, &before, "").is_ok())
            .or_else(|_| same(server, &before, &format!("after round {round}")))?;
    }
    check(halfway > 0, "nothing was ever killed halfway")
}

fn what_two_addresses_share(world: &mut World) -> Outcome {
    let server = &world.topology.servers[0];
    let before = everything(server)?;
    let (one, other) = (world.vip(V4), IpAddr::from([203, 0, 113, 101]));
    let first = Started::start(server, one, "tun")?;
    let process = decapsulator(server)?;
    let both = everything(server)?;
    let second = Started::start(server, other, "tun")?;
    check(decapsulator(server)? == process, "each address has a decapsulator of its own")?;
    first.stop()?;
    check(decapsulator(server)? == process, "the decapsulator went with the first address")?;
    let status = real_server(server, "status")?;
    check(!status.contains(&one.to_string()), format!("the status is\n{status}"))?;
    let alone: Vec<_> =
        everything(server)?.into_iter().filter(|line| !line.contains("203.0.113.10")).collect();
    let expected: Vec<_> = both.into_iter().filter(|line| !line.contains("203.0.113.10")).collect();
    check(alone == expected, "settings went with the first address")?;
    second.stop()?;
    same(server, &before, "after both")
}

/// The kernel may give a new namespace the inode of one that is gone, but not its cookie: notes go by that, and what was noted of
/// the one says nothing in the other.
fn a_namespace_that_is_gone() -> Outcome {
    let vip = IpAddr::from([203, 0, 113, 100]);
    let namespace = |name: &str| Namespace::create(format!("uvs-{}-{name}", std::process::id()));
    let gone = namespace("gone")?;
    real_server(&gone, &format!("start --vip {vip} --method dr"))?;
    let note = format!("/run/uvs/real-server/{}-{vip}.json", gone.run(cookie)??);
    drop(gone);
    let new = namespace("new")?;
    let before = everything(&new)?;
    Started::start(&new, vip, "tun")?.stop()?;
    let outcome = same(&new, &before, "in the new namespace");
    // Nobody else can: what it tells of is gone.
    std::fs::remove_file(note)?;
    outcome
}

fn what_cannot_be(world: &mut World) -> Outcome {
    let server = &world.topology.servers[0];
    let before = everything(server)?;
    let own = world.topology.server_address(0, V4);
    let vip = world.vip(V4);
    let _taken = server.run(|| std::net::UdpSocket::bind("0.0.0.0:6080"))??;
    for (line, sentence) in [
        (format!("start --vip {own} --method dr"), "is an address of eth0"),
        ("start --vip 224.0.0.1 --method dr".into(), "cannot be a virtual address"),
        ("start --vip 203.0.113.255 --method dr".into(), "cannot be a virtual address"),
        ("start --vip ::ffff:192.0.2.1 --method dr".into(), "cannot be a virtual address"),
        (format!("start --vip {vip} --method tun --tun-type gue"), "needs --tun-port"),
        (format!("start --vip {vip} --method dr --tun-port 5"), "are for --method tun only"),
        (
            format!("start --vip {vip} --method tun --tun-type gue --tun-port 6080"),
            "the decapsulator did not start: cannot take UDP port 6080: Address already in use",
        ),
    ] {
        let (code, said) = try_real_server(server, &line)?;
        check(code == Some(2) && said.contains(sentence), format!("{line}: {code:?}, {said}"))?;
        same(server, &before, &line)?;
    }
    let started = Started::start(server, vip, "dr")?;
    let (code, said) = try_real_server(server, &format!("start --vip {vip} --method tun"))?;
    check(code == Some(2) && said.contains("is set up here by dr"), format!("another method: {said}"))?;
    started.stop()
}
