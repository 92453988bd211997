//! `uvs capture`: what goes through a director, seen without disturbing it.

use crate::director::{Configuration, LIMIT, UVS, V4, V6, World, in_default_world, in_world, load, uvs};
use crate::harness::{Outcome, Tests, check, ignore};
use crate::traffic::{run, transfer};
use etherparse::SlicedPacket;
use libtest_mimic::Failed;
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use uvs::engine::link::pcap::{Direction, Reader, Record};
use uvs_lab::http::{Connection, Load};
use uvs_lab::{Plan, Process, wait};

pub(crate) const TESTS: Tests = &[
    ("before_and_after", || in_default_world(and_replayed)),
    ("by_packet_sockets", || in_world(&Plan::default(), &["--io", "raw"], and_replayed)),
    ("by_several_workers", || {
        let plan = Plan { client_queues: 2, server_queues: 2, ..Plan::default() };
        in_world(&plan, &["--workers", "2"], |world| before_and_after(world).map(drop))
    }),
    ("what_is_dropped_and_why", || in_default_world(what_is_dropped)),
    ("several_at_once_and_one_is_killed", || in_default_world(several_at_once)),
    ("who_does_not_read", || in_default_world(who_does_not_read)),
    ("read_by_tcpdump", || in_default_world(read_by_tcpdump)),
    ("the_director_dies", || in_default_world(the_director_dies)),
    ("the_director_ends", || in_default_world(the_director_ends)),
    ("two_signals_at_once", || in_default_world(two_signals_at_once)),
    ("odd_commands", || in_default_world(odd_commands)),
];

/// A file that is removed again.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Scratch(std::env::temp_dir().join(format!("uvs-{}-{name}.pcapng", std::process::id())))
    }

    /// The frames in it, each with the name of its interface.
    fn frames(&self) -> Result<Vec<(String, Record)>, Failed> {
        let mut reader = Reader::new(std::io::BufReader::new(std::fs::File::open(&self.0)?))?;
        let mut frames = Vec::new();
        while let Some(record) = reader.next() {
            let record = record?;
            let name = reader.interfaces()[record.interface].name.clone();
            frames.push((name.unwrap_or_default(), record));
        }
        Ok(frames)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _was_never_made = std::fs::remove_file(&self.0);
    }
}

/// Starts `uvs capture` with the words of `line` and waits until it listens.
fn capture(world: &World, line: &str) -> Result<Process, Failed> {
    let mut command = Command::new(UVS);
    command.arg("capture").args(line.split_whitespace());
    let process = Process::start(&world.topology.director, &mut command)?;
    wait::until("the capture to listen", LIMIT, || process.stderr().contains("listening"))?;
    Ok(process)
}

/// Ends it as Ctrl-C does; the frames captured and lost.
fn end(capture: &mut Process) -> Result<(u64, u64), Failed> {
    capture.signal(Signal::SIGINT)?;
    let status = capture.wait(LIMIT)?;
    check(status.success(), format!("{status}: {}", capture.stderr()))?;
    counts(&capture.stderr())
}

/// The numbers of `10 frames captured, 0 lost`.
fn counts(said: &str) -> Result<(u64, u64), Failed> {
    let line = said.lines().find(|line| line.contains("frames captured"));
    let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
    match words[..] {
        [captured, _, _, lost, _] => Ok((captured.parse()?, lost.parse()?)),
        _ => Err(format!("no counts in {said:?}").into()),
    }
}

/// `timeout` signals a process, and then its group.
fn two_signals_at_once(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    let scratch = Scratch::new("signals");
    let mut both = capture(world, &format!("-w {}", scratch.0.display()))?;
    run(world, &load(world.service(V4), 10, false))?;
    both.signal(Signal::SIGINT)?;
    both.signal(Signal::SIGTERM)?;
    let status = both.wait(LIMIT)?;
    check(status.success(), format!("{status}: {}", both.stderr()))?;
    let (captured, _) = counts(&both.stderr())?;
    check(captured == scratch.frames()?.len() as u64, "not all frames are in the file")
}

fn running(world: &World, count: u64) -> Outcome {
    let counted = || world.status().is_ok_and(|status| status.captures == count);
    Ok(wait::until(&format!("{count} captures to run"), LIMIT, counted)?)
}

/// Both ends of a frame of TCP, once its checksums were found right.
fn verified(frame: &[u8]) -> Result<(SocketAddr, SocketAddr), Failed> {
    let packet = SlicedPacket::from_ethernet(frame)?;
    let (Some(net), Some(etherparse::TransportSlice::Tcp(tcp))) = (packet.net, packet.transport) else {
        return Err("not of TCP".into());
    };
    let header = tcp.to_header();
    let (from, to, due): (IpAddr, IpAddr, u16) = match net {
        etherparse::NetSlice::Ipv4(ip) => {
            let ip = ip.header();
            check(ip.header_checksum() == ip.to_header().calc_header_checksum(), "a wrong header checksum")?;
            let due = header.calc_checksum_ipv4_raw(ip.source(), ip.destination(), tcp.payload())?;
            (ip.source_addr().into(), ip.destination_addr().into(), due)
        }
        etherparse::NetSlice::Ipv6(ip) => {
            let ip = ip.header();
            let due = header.calc_checksum_ipv6_raw(ip.source(), ip.destination(), tcp.payload())?;
            (ip.source_addr().into(), ip.destination_addr().into(), due)
        }
        _ => return Err("not of IP".into()),
    };
    check(tcp.checksum() == due, format!("checksum {:#06x} where {due:#06x} is right", tcp.checksum()))?;
    Ok((SocketAddr::new(from, tcp.source_port()), SocketAddr::new(to, tcp.destination_port())))
}

/// Every frame comes and leaves rightly. Returns the captures, and of how many frames that came.
fn before_and_after(world: &mut World) -> Result<Vec<(IpAddr, Scratch, usize)>, Failed> {
    let mut captured_all = Vec::new();
    for family in [V4, V6] {
        world.balance(family, "rr", &[1, 1])?;
        let file = Scratch::new(if family.is_ipv4() { "before4" } else { "before6" });
        let client = world.topology.client_address(family);
        let mut capture = capture(world, &format!("-n -w {} tcp and host {client}", file.0.display()))?;
        run(world, &load(world.service(family), 20, false))?;
        let (captured, lost) = end(&mut capture)?;
        let frames = file.frames()?;
        check((captured, lost) == (frames.len() as u64, 0), format!("{captured} captured, {lost} lost"))?;
        running(world, 0)?;
        let service = world.service(family);
        let servers = [world.server(0, family, 80), world.server(1, family, 80)];
        // The addresses of all frames by interface, ports of clients left out.
        let mut seen: BTreeSet<(&str, IpAddr, IpAddr)> = BTreeSet::new();
        for (name, record) in &frames {
            check(record.bytes.len() == record.wire_len as usize, "a frame is cut")?;
            let packet = SlicedPacket::from_ethernet(&record.bytes)?;
            check(packet.transport.is_some(), format!("{name}: {:?}", packet.net))?;
            let leaves = name.ends_with(" out");
            let direction = if leaves { Direction::Out } else { Direction::In };
            check(record.direction == Some(direction), format!("{name} has {:?}", record.direction))?;
            if leaves {
                let (from, to) = verified(&record.bytes)?;
                let right = match name.as_str() {
                    "eth0 out" => from == service && to.ip() == client,
                    "eth1 out" => from.ip() == client && to == servers[0],
                    "eth2 out" => from.ip() == client && to == servers[1],
                    _ => false,
                };
                check(right, format!("{name}: {from} to {to}"))?;
                seen.insert((name, from.ip(), to.ip()));
            } else {
                let summary = uvs::engine::packet::summary::Summary::of(&record.bytes).ok_or("no packet")?;
                let (from, to) = summary.ends().ok_or("no ports")?;
                let right = match name.as_str() {
                    "eth0 in" => from.ip() == client && to == service,
                    "eth1 in" => from == servers[0] && to.ip() == client,
                    "eth2 in" => from == servers[1] && to.ip() == client,
                    _ => false,
                };
                check(right, format!("{name}: {from} to {to}"))?;
                seen.insert((name, from.ip(), to.ip()));
            }
        }
        check(seen.len() == 6, format!("{seen:?}"))?;
        let ways = |end: &str| frames.iter().filter(|(name, _)| name.ends_with(end)).count();
        check(ways(" in") == ways(" out"), format!("{} came and {} left", ways(" in"), ways(" out")))?;
        captured_all.push((family, file, ways(" in")));
    }
    Ok(captured_all)
}

/// One worker's capture says in what order the scheduler was asked, so that a replay chooses alike. Of several it does not.
fn and_replayed(world: &mut World) -> Outcome {
    let captured = before_and_after(world)?;
    captured.iter().try_for_each(|(family, file, frames)| replayed(world, *family, file, *frames))
}

/// A replay of the capture sends as many frames as came in, and knows those that left for the director's own.
fn replayed(world: &World, family: IpAddr, file: &Scratch, frames: usize) -> Outcome {
    let mut text = format!("[[service]]\naddress = \"{}\"\nscheduler = \"rr\"\n", world.service(family));
    for server in [world.server(0, family, 80), world.server(1, family, 80)] {
        text += &format!("[[service.server]]\naddress = \"{server}\"\nmethod = \"nat\"\n");
    }
    let name = if family.is_ipv4() { "replay4" } else { "replay6" };
    let configuration = Configuration::write(name, &text)?;
    let capture = file.0.display().to_string();
    let arguments = ["replay", "--config", &configuration.path(), "--in", &capture];
    let output = uvs(&world.topology.director, arguments)?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let expected =
        format!("frames: {frames} sent, 0 left to the host, {frames} dropped\n  other_host {frames}\n");
    check(output.status.success() && said.contains(&expected), format!("not {expected} but {said}"))
}

fn what_is_dropped(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1])?;
    let (service, server) = (world.service(V4), world.server(0, V4, 80));
    let mut connection = Connection::open(&world.topology.client, service, Duration::from_millis(300))?;
    connection.get("/")?;
    let mut drops = capture(world, "drop and not udp")?;
    world.ipvsadm(&format!("-d -t {service} -r {server}"))?;
    check(connection.get("/").is_err(), "a removed real server answered")?;
    world.wait_for_drops("destination_gone", 1)?;
    wait::until("the frame to be shown", LIMIT, || drops.stdout().contains("destination_gone"))?;
    end(&mut drops)?;
    let shown = drops.stdout();
    let first = shown.lines().next().unwrap_or_default();
    let client = connection.local()?;
    for part in [
        " eth0 drop IP ".into(),
        format!("{}.{} > {}.80: Flags [P.], seq ", client.ip(), client.port(), service.ip()),
        "(destination_gone: The connection's real server was removed from its service.)".into(),
    ] {
        check(first.contains(&part), format!("{part:?} is not in {shown}"))?;
    }
    check(shown.lines().all(|line| line.contains(" drop ")), shown.clone())
}

fn several_at_once(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    let (mut all, mut second, mut none) =
        (capture(world, "")?, capture(world, "-i eth1")?, capture(world, "udp or host 192.0.2.1")?);
    let mut killed = capture(world, "-w /dev/null")?;
    let mut few = capture(world, "-c 5 port 80")?;
    running(world, 5)?;
    run(world, &load(world.service(V4), 20, false))?;
    check(few.wait(LIMIT)?.success() && few.stdout().lines().count() == 5, few.stdout())?;
    killed.kill()?;
    running(world, 3)?;
    run(world, &load(world.service(V4), 20, false))?;
    let ended = [end(&mut all)?, end(&mut second)?, end(&mut none)?];
    let [(all_frames, 0), (second_frames, 0), (0, 0)] = ended else {
        return Err(format!("captured and lost: {ended:?}").into());
    };
    check(all_frames == all.stdout().lines().count() as u64, "each frame has its line")?;
    // Half of the connections, and of each frame one sight.
    check(
        (all_frames / 8..all_frames / 2).contains(&second_frames),
        format!("{all_frames}, {second_frames}"),
    )?;
    check(second.stdout().lines().all(|line| line.contains(" eth1 ")), second.stdout())?;
    running(world, 0)
}

fn who_does_not_read(world: &mut World) -> Outcome {
    let mut stopped = capture(world, "-w /dev/null")?;
    stopped.signal(Signal::SIGSTOP)?;
    let mut reads = capture(world, "-s 60 -w /dev/null drop")?;
    transfer(world, V4, 50_000_000)?;
    let dropped: Vec<_> = world.status()?.drops.into_iter().filter(|drop| drop.count > 0).collect();
    check(dropped.is_empty(), format!("{dropped:?}"))?;
    check(end(&mut reads)? == (0, 0), "frames of another capture were lost")?;
    stopped.signal(Signal::SIGCONT)?;
    let (captured, lost) = end(&mut stopped)?;
    check(captured > 1000 && lost > 1000, format!("{captured} captured, {lost} lost"))?;
    // One that is stopped and never goes on keeps nobody.
    let mut stopped = capture(world, "-w /dev/null")?;
    stopped.signal(Signal::SIGSTOP)?;
    run(world, &load(world.service(V4), 100, true))?;
    check(world.director.terminate()? == Some(0), "the director")?;
    stopped.kill().map(drop).map_err(Into::into)
}

/// Where tcpdump is, if it is.
fn tcpdump() -> Option<&'static str> {
    ["/usr/bin/tcpdump", "/usr/sbin/tcpdump"].into_iter().find(|path| std::path::Path::new(path).exists())
}

fn read_by_tcpdump(world: &mut World) -> Outcome {
    let Some(tcpdump) = tcpdump() else { return ignore("because tcpdump is not installed") };
    world.balance(V4, "rr", &[1, 1])?;
    let mut command = Command::new("sh");
    let pipe = format!("{UVS} capture -w - -c 40 | {tcpdump} -nv -r -");
    let mut both = Process::start(&world.topology.director, command.args(["-c", &pipe]))?;
    wait::until("the capture to listen", LIMIT, || both.stderr().contains("listening"))?;
    run(world, &load(world.service(V4), 20, false))?;
    let status = both.wait(LIMIT)?;
    let (shown, said) = (both.stdout(), both.stderr());
    check(status.success() && said.contains("40 frames captured, 0 lost"), format!("{status}: {said}"))?;
    let (client, service) = (world.topology.client_address(V4), world.service(V4));
    let server = world.server(0, V4, 80);
    for (from, to) in [(client, service), (client, server)] {
        let syn = |line: &str| {
            line.contains(&format!("{from}.")) && line.contains(&format!("> {}.80: Flags [S]", to.ip()))
        };
        check(shown.lines().any(syn), format!("no SYN from {from} to {to} in\n{shown}\n{said}"))?;
    }
    check(shown.contains("(correct)") && !shown.contains("bad cksum"), shown.clone())?;
    check(shown.matches(" IP (tos").count() == 40, shown)
}

fn the_director_ends(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    let file = Scratch::new("ends");
    let mut capture = capture(world, &format!("-w {}", file.0.display()))?;
    run(world, &load(world.service(V4), 20, false))?;
    check(world.director.terminate()? == Some(0), "the director")?;
    let status = capture.wait(LIMIT)?;
    let said = capture.stderr();
    check(status.success() && said.contains("the director ended"), format!("{status}: {said}"))?;
    let (captured, lost) = counts(&said)?;
    check(captured > 0 && lost == 0, said)?;
    check(file.frames()?.len() as u64 == captured, "the file has other frames")
}

fn the_director_dies(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    let mut capture = capture(world, "")?;
    run(world, &load(world.service(V4), 20, false))?;
    wait::until("frames to be shown", LIMIT, || capture.stdout().contains(" out "))?;
    world.director.kill()?;
    let status = capture.wait(LIMIT)?;
    let said = capture.stderr();
    check(status.code() == Some(1) && said.contains("the director died"), format!("{status}: {said}"))
}

/// Runs a shell's line, in which `$UVS` is the binary, to its end.
fn shell(world: &World, line: &str) -> Result<(ExitStatus, String, String), Failed> {
    let mut command = Command::new("sh");
    command.args(["-c", line]).env("UVS", UVS);
    let mut process = Process::start(&world.topology.director, &mut command)?;
    let status = process.wait(LIMIT)?;
    Ok((status, process.stdout(), process.stderr()))
}

/// Does something while clients make connections.
fn amid_traffic<T>(world: &World, work: impl FnOnce() -> T) -> T {
    let (stop, client) = (AtomicBool::new(false), &world.topology.client);
    let traffic = Load { requests: usize::MAX, ..load(world.service(V4), 0, false) };
    std::thread::scope(|scope| {
        let clients = scope.spawn(|| traffic.run_until(client, &stop).map(drop));
        let done = work();
        stop.store(true, Relaxed);
        let _what_became_of_it = clients.join();
        done
    })
}

fn odd_commands(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    for (line, code, said) in [
        ("$UVS capture port 99999", 2, "`99999` is no port (0 to 65535)\n  port 99999\n       ^^^^^\n"),
        ("$UVS capture -i eth9", 2, "eth9 is no device of the director, which has eth0, eth1, eth2"),
        ("$UVS capture --socket /nonexistent", 2, "no director answers at /nonexistent"),
        ("$UVS capture -w /nonexistent/file", 2, "/nonexistent/file cannot be written: No such file"),
        ("$UVS capture -w /", 2, "/ cannot be written: Is a directory"),
        ("$UVS capture -w /dev/full", 1, "/dev/full cannot be written: No space left on device"),
        ("$UVS capture > /dev/full", 1, "standard output cannot be written: No space left on device"),
        ("$UVS capture -w - | true", 0, "frames captured"),
        ("$UVS capture | true", 0, "frames captured"),
        ("$UVS capture -c 3 >&- <&-", 0, "3 frames captured"),
        ("$UVS capture -c 0", 2, "0"),
        ("$UVS capture -s 262145", 2, "262145"),
        ("timeout -s INT 0.01 $UVS capture; echo", 0, ""),
    ] {
        // Something to see, for those who only notice when they write.
        let outcome = amid_traffic(world, || shell(world, line));
        let (status, _, errors) = outcome?;
        check(status.code() == Some(code) && errors.contains(said), format!("{line}: {status}, {errors}"))?;
    }
    running(world, 0)?;
    let help = uvs(&world.topology.director, ["capture", "--help"])?;
    check(help.status.success() && help.stderr.is_empty(), "its help")
}
