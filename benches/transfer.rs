//! How fast TCP flows through a director over plain veth, offloads left on.
//!
//! Prints Gbit/s of payload for each direction, through one and through four connections, for the steering program in native
//! and in generic mode, for packet sockets, and once more with the kernel alone routing the same way (by super-frames of up
//! to 64 KiB, which native XDP makes a veth peer cut, and which otherwise the director cuts). The whole chain shares this machine's
//! cores: client, server, the director and every copy between them. Needs root.

use nix::sys::signal::Signal;
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use uvs_lab::http::{Connection, Server};
use uvs_lab::{Plan, Prefix, Process, Topology, cleanup};

type Failure = Box<dyn Error + Send + Sync>;

const UVS: &str = env!("CARGO_BIN_EXE_uvs");
const LIMIT: Duration = Duration::from_secs(30);
const LENGTH: u64 = 1_000_000_000;
const V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

fn main() -> Result<(), Failure> {
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    cleanup::end_on_signals("interrupted; the namespaces are removed")?;
    for mtu in [1500, 9000] {
        measure("kernel-routing", mtu, None)?;
        measure("native", mtu, Some(&["--xdp-mode", "native"]))?;
        measure("generic", mtu, Some(&["--xdp-mode", "generic"]))?;
        measure("raw", mtu, Some(&["--io", "raw"]))?;
    }
    Ok(())
}

/// One topology, with a director that takes frames so, or none.
fn measure(name: &str, mtu: u32, taking: Option<&[&str]>) -> Result<(), Failure> {
    let topology = Topology::build(&Plan { mtu, servers: 1, ..Plan::default() })?;
    let server = SocketAddr::new(topology.server_address(0, V4), 80);
    let _server = Server::start(&topology.servers[0], server, "rs1")?;
    let director = taking.map(|taking| start(&topology, server, taking)).transpose()?;
    let target = if director.is_some() { service(&topology) } else { server };
    for connections in [1, 4] {
        for direction in ["down", "up"] {
            let rate = transfer(&topology, target, connections, direction == "down")?;
            println!("transfer/{name}/mtu-{mtu}/{direction}/{connections}: {rate:.2} Gbit/s");
        }
    }
    if let Some(mut director) = director {
        director.signal(Signal::SIGTERM)?;
        director.wait(LIMIT)?;
    }
    Ok(())
}

fn service(topology: &Topology) -> SocketAddr {
    SocketAddr::new(topology.vip(), 80)
}

/// A director with one unpinned worker and one service by NAT.
fn start(topology: &Topology, server: SocketAddr, taking: &[&str]) -> Result<Process, Failure> {
    topology.director.net().add_address("eth0", Prefix::host(topology.vip()))?;
    let mut command = Command::new(UVS);
    command.args(["run", "--unpinned", "--workers", "1"]).args(taking);
    command.args(["--interface", "eth0", "--interface", "eth1"]);
    let mut director = Process::start(&topology.director, &mut command)?;
    director.wait_for_line("ready", LIMIT)?;
    let service = service(topology).to_string();
    for arguments in
        [vec!["-A", "-t", &service, "-s", "rr"], vec!["-a", "-t", &service, "-r", &server.to_string(), "-m"]]
    {
        let mut command = Command::new(UVS);
        command.arg("ipvsadm").args(arguments).stdin(Stdio::null());
        let status = topology.director.start(&mut command)?.wait()?;
        if !status.success() {
            return Err(format!("ipvsadm: {status}").into());
        }
    }
    Ok(director)
}

/// Gbit/s of payload, `LENGTH` bytes spread over the connections.
fn transfer(topology: &Topology, target: SocketAddr, connections: u64, down: bool) -> Result<f64, Failure> {
    let opened = (0..connections).map(|_| Connection::open(&topology.client, target, LIMIT));
    let opened = opened.collect::<Result<Vec<_>, _>>()?;
    let part = LENGTH / connections;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let running: Vec<_> = opened
            .into_iter()
            .map(|mut connection| {
                scope.spawn(move || match down {
                    true => connection.skim(&format!("/bytes/{part}")).map(drop),
                    false => connection.put("/null", part).map(drop),
                })
            })
            .collect();
        running.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(Failure::from)
        })
    })?;
    Ok(LENGTH as f64 * 8.0 / 1e9 / begin.elapsed().as_secs_f64())
}
