//! The lab itself, with the kernel as director: what the end-to-end tests find wrong is then not the lab's doing.

mod harness;

use harness::{Outcome, Tests, check, topology};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::{Command, ExitCode};
use std::time::Duration;
use uvs_lab::http::{Connection, Load, Server};
use uvs_lab::probe::{self, RawTcp, flags};
use uvs_lab::{Arms, Namespace, Plan, Process, Topology, cleanup, stream, udp};

const TESTS: Tests = &[
    ("http_through_a_routing_director", http_through_a_routing_director),
    ("a_thousand_connections_at_once", a_thousand_connections_at_once),
    ("transfers_are_hashed_both_ways", transfers_are_hashed_both_ways),
    ("datagrams_are_repeated", datagrams_are_repeated),
    ("pings_are_answered_or_not", pings_are_answered_or_not),
    ("a_stray_segment_gets_a_reset", a_stray_segment_gets_a_reset),
    ("one_arm_queues_and_jumbo_frames", one_arm_queues_and_jumbo_frames),
    ("servers_beyond_a_router", servers_beyond_a_router),
    ("what_is_to_be_undone_is", what_is_to_be_undone_is),
    ("processes_live_inside_and_end", processes_live_inside_and_end),
    ("nothing_stays_behind", nothing_stays_behind),
];

fn main() -> ExitCode {
    harness::run(&[("lab", TESTS)], Vec::new())
}

const LIMIT: Duration = Duration::from_secs(10);
const V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

fn server(topology: &Topology, index: usize, family: IpAddr) -> Result<(Server, SocketAddr), uvs_lab::Error> {
    let address = SocketAddr::new(topology.server_address(index, family), 80);
    let server = Server::start(&topology.servers[index], address, &format!("rs{}", index + 1))?;
    Ok((server, address))
}

fn http_through_a_routing_director() -> Outcome {
    let topology = topology()?;
    for family in [V4, V6] {
        for index in 0..2 {
            let (server, address) = server(&topology, index, family)?;
            for keep_alive in [false, true] {
                let load = Load { clients: 4, keep_alive, ..Load::new(address, 40) };
                let report = load.run(&topology.client)?;
                check(report.faults.is_empty(), format!("{:?}", report.faults))?;
                check(report.samples.len() == 40, format!("{} answers", report.samples.len()))?;
                let name = format!("rs{}", index + 1);
                check(report.shares().keys().eq([&name.as_str()]), format!("{:?}", report.shares()))?;
            }
            check(server.answered() == 80, format!("{} answered", server.answered()))?;
        }
    }
    Ok(())
}

fn a_thousand_connections_at_once() -> Outcome {
    let topology = topology()?;
    let (_server, address) = server(&topology, 0, V4)?;
    let load = Load { clients: 1000, together: true, ..Load::new(address, 1000) };
    let report = load.run(&topology.client)?;
    check(report.faults.is_empty(), format!("{:?}", report.faults))?;
    check(report.samples.len() == 1000, format!("{} answers", report.samples.len()))
}

fn transfers_are_hashed_both_ways() -> Outcome {
    let topology = topology()?;
    let (_server, address) = server(&topology, 0, V4)?;
    let mut connection = Connection::open(&topology.client, address, LIMIT)?;
    const LENGTH: u64 = 10_000_001;
    let down = connection.get(&format!("/bytes/{LENGTH}"))?;
    check(down.sha256 == stream::sha256(LENGTH), "what was got differs from what was sent")?;
    let up = connection.put("/", LENGTH)?;
    check(up.body == format!("{}\n", stream::sha256(LENGTH)).as_bytes(), "what was put differs")?;
    let missing = connection.get("/nothing/here")?;
    check(missing.status == 404 && missing.fault("/nothing/here").is_some(), format!("{missing:?}"))
}

fn datagrams_are_repeated() -> Outcome {
    let topology = topology()?;
    for family in [V4, V6] {
        let address = SocketAddr::new(topology.server_address(1, family), 53);
        let _server = udp::Echo::start(&topology.servers[1], address, "rs2")?;
        let client = udp::Client::connect(&topology.client, address)?;
        for question in [&b"?"[..], &[7; 8000]] {
            check(client.ask(question, LIMIT)? == "rs2", "somebody else answered")?;
        }
    }
    Ok(())
}

fn pings_are_answered_or_not() -> Outcome {
    let topology = topology()?;
    for (address, expected) in [
        (topology.server_address(0, V4), true),
        (topology.server_address(0, V6), true),
        (topology.director_address(V4), true),
        (topology.vip(), false),
        (topology.vip6(), false),
    ] {
        let limit = if expected { LIMIT } else { Duration::from_millis(200) };
        let answered = probe::ping(&topology.client, address, limit)?;
        check(answered == expected, format!("ping of {address}: answered = {answered}"))?;
    }
    Ok(())
}

fn a_stray_segment_gets_a_reset() -> Outcome {
    let topology = topology()?;
    let raw = RawTcp::open(&topology.client)?;
    let from = "203.0.113.200:4000".parse()?;
    let to = "192.168.4.11:80".parse()?;
    raw.send(from, to, flags::ACK)?;
    let answer = raw.receive(LIMIT, |segment| segment.destination == 4000)?;
    check(answer.is_some_and(|segment| segment.flags & flags::RST != 0), format!("{answer:?}"))
}

fn one_arm_queues_and_jumbo_frames() -> Outcome {
    for plan in [
        Plan { arms: Arms::One, ..Plan::default() },
        Plan { client_queues: 2, servers: 3, mtu: 9000, ..Plan::default() },
    ] {
        let topology = Topology::build(&plan)?;
        let (_server, address) = server(&topology, 1, V4)?;
        let mut connection = Connection::open(&topology.client, address, LIMIT)?;
        let fault = connection.get("/bytes/100000")?.fault("/bytes/100000");
        check(fault.is_none(), fault.unwrap_or_default())?;
    }
    Ok(())
}

/// The director reaches the servers through the router, and they the client.
fn servers_beyond_a_router() -> Outcome {
    let topology = Topology::build(&Plan { arms: Arms::Beyond, ..Plan::default() })?;
    check(topology.director_devices() == ["eth0"], "the director has one device")?;
    let (_server, address) = server(&topology, 1, V4)?;
    let mut connection = Connection::open(&topology.director, address, LIMIT)?;
    let fault = connection.get("/bytes/100000")?.fault("/bytes/100000");
    check(fault.is_none(), fault.unwrap_or_default())?;
    for family in [V4, V6] {
        let client = topology.client_address(family);
        check(probe::ping(&topology.director, client, LIMIT)?, format!("{client} does not answer"))?;
    }
    check(!probe::ping(&topology.servers[0], topology.vip(), Duration::from_millis(200))?, "the VIP answers")
}

fn what_is_to_be_undone_is() -> Outcome {
    let file = std::env::temp_dir().join(format!("uvs-{}-undone", std::process::id()));
    let topology = topology()?;
    let undo = |name: &str| {
        let line = format!("readlink /proc/self/ns/net > {}", file.display());
        cleanup::Undo::new(name, ["sh", "-c", &line].map(Into::into).to_vec())
    };
    undo(topology.client.name()).keep();
    check(!file.exists(), "what was kept was undone")?;
    drop(undo(topology.client.name()));
    let said = std::fs::read_to_string(&file)?;
    std::fs::remove_file(&file)?;
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(topology.client.path())?);
    check(said.contains(&inode.to_string()), format!("{said:?} and not {inode}"))
}

fn processes_live_inside_and_end() -> Outcome {
    let topology = topology()?;
    let script = "echo started; echo to stderr >&2; exec sleep 1000";
    let mut process = Process::start(&topology.director, Command::new("sh").args(["-c", script]))?;
    process.wait_for_line("started", LIMIT)?;
    let link = |path: String| std::fs::metadata(path).map(|file| std::os::unix::fs::MetadataExt::ino(&file));
    let (theirs, director) = (
        link(format!("/proc/{}/ns/net", process.id()))?,
        link(format!("/run/netns/{}", topology.director.name()))?,
    );
    check(theirs == director, "the process runs in another namespace")?;
    let status = process.terminate()?;
    check(!status.success(), format!("{status}"))?;
    check(process.stderr() == "to stderr\n", process.stderr())?;
    let mut silent =
        Process::start(&topology.director, Command::new("sh").args(["-c", "echo sorry; exit 3"]))?;
    let error = silent.wait_for_line("ready", LIMIT).err().map(|error| error.to_string()).unwrap_or_default();
    check(error.contains("sorry") && error.contains('3'), format!("{error:?} does not say what happened"))
}

fn nothing_stays_behind() -> Outcome {
    let name = format!("uvs-{}-behind", std::process::id());
    let namespace = Namespace::create(&name)?;
    check(cleanup::names().contains(&name), "the namespace has no name")?;
    check(Namespace::create(&name).is_err(), "a second namespace of the same name was made")?;
    drop(namespace);
    check(!cleanup::names().contains(&name), "the name stayed")?;
    // A maker that is dead: no process has such an id. Another run of these tests may be the one that finds it stale.
    let stale = format!("uvs-{}-{}-client", i32::MAX, std::process::id());
    let namespace = Namespace::create(&stale)?;
    let mut inside = namespace.start(Command::new("sleep").arg("20"))?;
    namespace.keep();
    cleanup::remove_stale();
    check(!cleanup::names().contains(&stale), "the stale name stayed")?;
    check(!inside.wait()?.success(), "what ran inside was not ended")
}
