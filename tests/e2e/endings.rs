//! How a director ends, and what must not end it.

use crate::director::{Director, LIMIT, UVS, V4, V6, World, in_default_world, ipvsadm, load};
use crate::harness::{Outcome, Tests, check, topology};
use crate::traffic::run;
use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use uvs_lab::http::Server;
use uvs_lab::{Prefix, Topology, probe, wait};

pub(crate) const TESTS: Tests = &[
    ("a_log_that_nobody_reads", || a_log_that_is_lost(Stdio::piped)),
    ("a_log_on_a_full_file_system", || a_log_that_is_lost(full)),
    ("its_terminal_is_closed", || ends_cleanly_after(Signal::SIGHUP)),
    ("it_is_told_to_quit", || ends_cleanly_after(Signal::SIGQUIT)),
    ("it_is_interrupted", || ends_cleanly_after(Signal::SIGINT)),
    ("a_closed_terminal_does_not_end_it_under_nohup", nohup),
    ("its_addresses_come_back_when_they_are_lost", addresses_come_back),
    ("its_addresses_go_with_the_next_one_when_it_was_killed", addresses_of_a_killed_one),
    ("started_while_the_one_killed_is_dying", || in_default_world(started_at_once)),
];

/// A director whose stderr is not the test's memory file. Dropping it ends it.
struct Bare(Child);

impl Bare {
    /// Starts one that assigns virtual addresses and waits until it is ready.
    fn start(topology: &Topology, program: &[&str], errors: Stdio) -> Result<Self, Failed> {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).args(["run", "--unpinned", "--workers", "1", "--assign-vips"]);
        for device in topology.director_devices() {
            command.args(["--interface", &device]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut child = Bare(topology.director.start(&mut command)?);
        let output = child.0.stdout.take().ok_or("it has no standard output")?;
        let ready = BufReader::new(output).lines().map_while(Result::ok).any(|line| line == "ready");
        check(ready, "it does not start")?;
        Ok(child)
    }

    fn signal(&self, signal: Signal) -> Outcome {
        Ok(kill(Pid::from_raw(self.0.id().cast_signed()), signal)?)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _gone_already = self.signal(Signal::SIGTERM);
        let _status = self.0.wait();
    }
}

fn full() -> Stdio {
    std::fs::OpenOptions::new().write(true).open("/dev/full").map_or_else(|_| Stdio::null(), Stdio::from)
}

/// Makes a service, which is logged, and asks it for something.
fn serve(topology: &Topology) -> Outcome {
    let service = SocketAddr::new(topology.vip(), 80);
    let server = SocketAddr::new(topology.server_address(0, V4), 80);
    let _server = Server::start(&topology.servers[0], server, "rs1")?;
    for line in [format!("-A -t {service} -s rr"), format!("-a -t {service} -r {server} -m")] {
        let output = ipvsadm(&topology.director, &line)?;
        check(output.status.success(), format!("{line}: {}", String::from_utf8_lossy(&output.stderr)))?;
    }
    let report = load(service, 10, false).run(&topology.client)?;
    check(report.faults.is_empty(), format!("{:?}", report.faults.first()))
}

/// Nothing that is logged can be written; all is as if it could.
fn a_log_that_is_lost(errors: impl Fn() -> Stdio) -> Outcome {
    let topology = topology()?;
    let mut director = Bare::start(&topology, &[UVS], errors())?;
    drop(director.0.stderr.take());
    serve(&topology)?;
    topology.director.net().down("eth2")?;
    topology.director.net().up("eth2")?;
    let ended = wait::until("the director to end", Duration::from_secs(1), || {
        director.0.try_wait().is_ok_and(|status| status.is_some())
    });
    check(ended.is_err(), "the director ended")?;
    director.signal(Signal::SIGTERM)?;
    let status = director.0.wait()?;
    check(status.code() == Some(0), format!("it ended with {status}"))
}

/// The virtual address is taken off, and the kernel in charge: nothing is guarded.
fn ends_cleanly_after(signal: Signal) -> Outcome {
    let topology = topology()?;
    let mut director = Bare::start(&topology, &[UVS], Stdio::null())?;
    serve(&topology)?;
    director.signal(signal)?;
    let status = director.0.wait()?;
    check(status.code() == Some(0), format!("it ended with {status}"))?;
    let answered = probe::ping(&topology.client, topology.vip(), Duration::from_millis(300))?;
    check(!answered, "the virtual address is still there")
}

fn nohup() -> Outcome {
    let topology = topology()?;
    let director = Bare::start(&topology, &["nohup", UVS], Stdio::null())?;
    director.signal(Signal::SIGHUP)?;
    serve(&topology)
}

/// A director that assigns virtual addresses, with a service at each of the topology's.
fn assigning() -> Result<(Topology, Director), Failed> {
    let topology = topology()?;
    let director = Director::start(&topology, &["--assign-vips"])?;
    for vip in [topology.vip(), topology.vip6()] {
        let output = ipvsadm(&topology.director, &format!("-A -t {}", SocketAddr::new(vip, 80)))?;
        check(output.status.success(), String::from_utf8_lossy(&output.stderr))?;
    }
    Ok((topology, director))
}

/// The kernel takes the IPv6 addresses off a device that goes down. The director's own is for whoever put it there.
fn addresses_come_back() -> Outcome {
    let (topology, director) = assigning()?;
    topology.director.net().down("eth0")?;
    wait::until("the director to see it", LIMIT, || director.log().contains("eth0 is down"))?;
    topology.director.net().up("eth0")?;
    topology.director.net().add_address("eth0", Prefix::new(topology.director_address(V6), 64))?;
    for vip in [topology.vip(), topology.vip6()] {
        wait::until(&format!("{vip} to answer pings"), LIMIT, || {
            probe::ping(&topology.client, vip, Duration::from_millis(300)).is_ok_and(|answered| answered)
        })?;
    }
    Ok(())
}

fn addresses_of_a_killed_one() -> Outcome {
    let (topology, mut director) = assigning()?;
    director.kill()?;
    for vip in [topology.vip(), topology.vip6()] {
        check(
            probe::ping(&topology.client, vip, LIMIT)?,
            format!("{vip} was taken off by nobody, but is gone"),
        )?;
    }
    let mut next = Director::start(&topology, &["--assign-vips"])?;
    check(next.terminate()? == Some(0), "the next one did not end cleanly")?;
    for vip in [topology.vip(), topology.vip6()] {
        let answered = probe::ping(&topology.client, vip, Duration::from_millis(300))?;
        check(!answered, format!("{vip} is still there"))?;
    }
    Ok(())
}

/// The next start does not wait until somebody saw that the last one was killed.
fn started_at_once(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    world.director.signal(Signal::SIGKILL)?;
    world.director = Director::start(&world.topology, &[])?;
    world.balance(V4, "rr", &[1, 1])?;
    run(world, &load(world.service(V4), 20, false)).map(drop)
}
