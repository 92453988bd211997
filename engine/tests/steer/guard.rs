//! The guard on devices, with and without its process.

use super::frames::{TCP, UDP};
use super::{CLIENT, Outcome, PATIENCE, RawTcp, SERVER, Site, TO_CLIENT, TO_SERVER, VIP, check};
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;
use uvs_engine::steer::{Guard, Guarded, SteerError, Steering, WantedMode, guard};
use uvs_lab::probe::{flags, ping};

type Test = (&'static str, fn() -> Outcome);

pub(super) const TESTS: &[Test] = &[
    ("guard::drops_ours_until_it_expires", drops_ours_until_it_expires),
    ("guard::drops_untranslated_replies", drops_untranslated_replies),
    ("guard::outlives_a_killed_process", outlives_a_killed_process),
    ("guard::is_replaced_without_a_gap", is_replaced_without_a_gap),
];

const LONG: Duration = Duration::from_secs(600);

fn steering() -> Result<Steering, SteerError> {
    let mut steering = Steering::new()?;
    steering.add_service(VIP.into(), 80, TCP)?;
    steering.add_reply(SERVER.into(), 8080, UDP)?;
    Ok(steering)
}

fn drops_ours_until_it_expires() -> Outcome {
    let site = Site::build()?;
    let probe = RawTcp::open(&site.client)?;
    let ifindex = site.ifindex(TO_CLIENT);
    let mut steering = steering()?;
    let mut guard = Guard::new(&steering, LONG, Guarded::Certain)?;
    site.director.run(|| guard.install(ifindex))??;
    check(!site.resets(&probe, 80)?, "the service is silent")?;
    check(site.resets(&probe, 81)?, "another port is not")?;
    check(ping(&site.client, VIP.into(), PATIENCE)?, "nor is a ping")?;
    steering.add_service(VIP.into(), 81, TCP)?;
    check(!site.resets(&probe, 81)?, "a service added later is silent")?;

    let standing = site.director.run(guard::status)??;
    check(standing.len() == 1 && standing[0].device == TO_CLIENT, format!("{standing:?}"))?;
    check(
        standing[0].remaining.is_some_and(|left| left > LONG / 2 && left <= LONG),
        format!("{standing:?}"),
    )?;
    guard.refresh(Duration::ZERO)?;
    check(site.resets(&probe, 80)?, "an expired guard drops nothing")?;
    check(site.director.run(guard::status)??[0].remaining == Some(Duration::ZERO), "and says so")?;
    guard.refresh(LONG)?;
    check(!site.resets(&probe, 80)?, "a refreshed one drops again")?;
    site.director.run(|| guard.remove())??;
    check(site.resets(&probe, 80)?, "a removed one does not")?;
    check(site.director.run(guard::status)??.is_empty(), "nothing stands")
}

fn drops_untranslated_replies() -> Outcome {
    let site = Site::build()?;
    site.director.sysctl("net/ipv4/ip_forward", "1")?;
    let ifindex = site.ifindex(TO_SERVER);
    let mut steering = steering()?;
    steering.set_local(["10.2.0.1".parse()?])?;
    let mut guard = Guard::new(&steering, LONG, Guarded::Certain)?;
    site.director.run(|| guard.install(ifindex))??;
    let client = site.client.run(|| UdpSocket::bind((CLIENT, 4000)))??;
    let director = site.director.run(|| UdpSocket::bind("10.2.0.1:4000"))??;
    let from = |port| site.server.run(|| UdpSocket::bind((SERVER, port)));
    let (guarded, free) = (from(8080)??, from(8081)??);
    client.set_read_timeout(Some(PATIENCE))?;
    director.set_read_timeout(Some(PATIENCE))?;
    let mut text = [0; 8];

    guarded.send_to(b"reply", (CLIENT, 4000))?;
    free.send_to(b"other", (CLIENT, 4000))?;
    client.recv(&mut text)?;
    check(text.starts_with(b"other"), "only what the real server sends from another port is forwarded")?;
    guarded.send_to(b"health", "10.2.0.1:4000")?;
    director.recv(&mut text)?;
    check(text.starts_with(b"health"), "the director's own sockets hear the real server")
}

/// The first argument of this program that makes it a process to be killed; the second is the device.
pub(super) const CHILD: &str = "hold-a-guard";

/// Guards and steers a device of its namespace, says so, and waits to be killed.
pub(super) fn child(device: &str) -> ExitCode {
    let ifindex = nix::net::if_::if_nametoindex(device).unwrap();
    let steering = steering().unwrap();
    let mut guard = Guard::new(&steering, LONG, Guarded::Certain).unwrap();
    guard.install(ifindex).unwrap();
    let _attachment = steering.attach(ifindex, WantedMode::Auto, &[]).unwrap();
    println!("ready");
    loop {
        std::thread::park();
    }
}

/// Starts [`child`] in the director's namespace, waits until it stands, and kills it.
fn start_and_kill(site: &Site) -> Outcome {
    let mut command = Command::new(std::env::current_exe()?);
    let mut child: Child = site.director.start(command.args([CHILD, TO_CLIENT]).stdout(Stdio::piped()))?;
    let mut line = String::new();
    let read = child.stdout.take().map(|out| BufReader::new(out).read_line(&mut line));
    // SIGKILL.
    child.kill()?;
    child.wait()?;
    read.ok_or("no output")??;
    check(line == "ready\n", format!("the child said {line:?}"))
}

fn outlives_a_killed_process() -> Outcome {
    let site = Site::build()?;
    let probe = RawTcp::open(&site.client)?;
    let ifindex = site.ifindex(TO_CLIENT);
    for start in ["first", "second, over what the first left"] {
        start_and_kill(&site)?;
        check(!site.resets(&probe, 80)?, format!("{start}: no RST for the service"))?;
        check(site.resets(&probe, 81)?, format!("{start}: the kernel has everything else"))?;
        check(ping(&site.client, VIP.into(), PATIENCE)?, format!("{start}: the VIP answers a ping"))?;
        let standing = site.director.run(guard::status)??;
        check(standing.len() == 1 && standing[0].ifindex == ifindex, format!("{start}: {standing:?}"))?;
        check(standing[0].remaining > Some(LONG / 2), format!("{start}: {standing:?}"))?;
    }
    let removed = site.director.run(guard::remove_all)??;
    check(removed.len() == 1, format!("{removed:?}"))?;
    check(site.resets(&probe, 80)?, "`guard off` gives the kernel its frames back")?;
    check(site.director.run(guard::remove_all)??.is_empty(), "there is nothing to remove any more")
}

fn is_replaced_without_a_gap() -> Outcome {
    let site = Site::build()?;
    let probe = RawTcp::open(&site.client)?;
    let ifindex = site.ifindex(TO_CLIENT);
    let install = move || -> Result<(), SteerError> {
        let steering = steering()?;
        Guard::new(&steering, LONG, Guarded::Certain)?.install(ifindex)
    };
    site.director.run(install)??;
    let replacing = site.director.spawn("replacing", move || (0..50).try_for_each(|_| install()))?;
    let (from, to) = (std::net::SocketAddrV4::new(CLIENT, 4000), std::net::SocketAddrV4::new(VIP, 80));
    while !replacing.is_finished() {
        probe.send(from, to, flags::ACK)?;
    }
    replacing.join().map_err(|_| "the replacing thread panicked")???;
    check(!site.resets(&probe, 80)?, "not one segment was answered")?;
    check(site.director.run(guard::status)??.len() == 1, "one guard stands")
}
