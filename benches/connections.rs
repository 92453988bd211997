//! How many new TCP connections a second go through a director to one real server, and whether any SYN is lost.
//!
//! A client of raw frames, in this process, makes 400,000 connections, 256 at a time; the real server is a kernel that accepts and
//! closes them. By full NAT there is one local address: one pair of addresses carries them all, so each of its ports is
//! used again several times while the real server has it in TIME_WAIT. By NAT the same, to compare. The whole chain shares this
//! machine's cores. Needs root.

use nix::sys::signal::Signal;
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;
use uvs_lab::burst::{Burst, Closer};
use uvs_lab::{Plan, Prefix, Process, Topology, cleanup, counter};

type Failure = Box<dyn Error + Send + Sync>;

const UVS: &str = env!("CARGO_BIN_EXE_uvs");
const LIMIT: Duration = Duration::from_secs(30);
const CONNECTIONS: u32 = 400_000;
const V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// A local address that no host has: the real server sends what is for it to its gateway.
const LOCAL: &str = "10.9.8.7";

fn main() -> Result<(), Failure> {
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    cleanup::end_on_signals("interrupted; the namespaces are removed")?;
    for (name, method) in [("nat", "-m"), ("fullnat", "-b")] {
        measure(name, method)?;
    }
    Ok(())
}

fn measure(name: &str, method: &str) -> Result<(), Failure> {
    let topology = Topology::build(&Plan { servers: 1, burst: true, ..Plan::default() })?;
    let server = SocketAddr::new(topology.server_address(0, V4), 80);
    let _closer = Closer::start(&topology.servers[0], server)?;
    let SocketAddr::V4(service) = SocketAddr::new(topology.vip(), 80) else { return Err("no IPv4".into()) };
    let mut director = start(&topology)?;
    ipvsadm(&topology, &["-A", "-t", &service.to_string(), "-s", "rr"])?;
    ipvsadm(&topology, &["-a", "-t", &service.to_string(), "-r", &server.to_string(), method])?;
    if method == "-b" {
        ipvsadm(&topology, &["-P", "-t", &service.to_string(), "-z", LOCAL])?;
    }
    let tally = Burst { connections: CONNECTIONS, ..Burst::new(service) }.run(&topology)?;
    let challenged = counter(&topology.servers[0], "TcpExt", "TCPACKSkippedTimeWait")?;
    println!(
        "connections/{name}: {:.0} connections/s; of {CONNECTIONS}, {} failed, {} SYNs and {} other segments were sent again; \
         {challenged} SYNs met a TIME_WAIT that refused them",
        tally.rate(),
        tally.failed,
        tally.syns_sent_again,
        tally.sent_again - tally.syns_sent_again,
    );
    director.signal(Signal::SIGTERM)?;
    director.wait(LIMIT)?;
    Ok(())
}

/// A director with one unpinned worker.
fn start(topology: &Topology) -> Result<Process, Failure> {
    topology.director.net().add_address("eth0", Prefix::host(topology.vip()))?;
    let mut command = Command::new(UVS);
    command.args(["run", "--unpinned", "--workers", "1", "--interface", "eth0", "--interface", "eth1"]);
    let mut director = Process::start(&topology.director, &mut command)?;
    director.wait_for_line("ready", LIMIT)?;
    Ok(director)
}

fn ipvsadm(topology: &Topology, arguments: &[&str]) -> Result<(), Failure> {
    let mut command = Command::new(UVS);
    command.arg("ipvsadm").args(arguments).stdin(Stdio::null());
    let status = topology.director.start(&mut command)?.wait()?;
    if status.success() { Ok(()) } else { Err(format!("ipvsadm: {status}").into()) }
}
