//! The same traffic by packet sockets: the director takes copies, and its guard keeps the kernel from answering.

use crate::director::{LIMIT, V4, V6, World, in_world, load, uvs};
use crate::faults::{killed_under_load, without_af_xdp};
use crate::harness::{Outcome, Tests, check};
use crate::kernel::{
    a_fragmented_datagram, a_real_server_from_the_director, a_real_server_routed, a_reset,
    other_ports_and_addresses, pings, real_servers_use_their_gateway,
};
use crate::traffic::{a_thousand_at_once, both_families, jumbo_frames, run};
use std::net::SocketAddr;
use uvs_lab::{Plan, counter, udp};

pub(crate) const TESTS: Tests = &[
    ("a_thousand_at_once", || in_raw_world(a_thousand_at_once)),
    ("jumbo_frames", || raw(&Plan { mtu: 9000, ..Plan::default() }, RAW, jumbo_frames)),
    ("workers_share_a_device", || raw(&Plan::default(), &["--io", "raw", "--workers", "2"], two_workers)),
    ("other_ports_and_addresses", || in_raw_world(other_ports_and_addresses)),
    ("pings", || in_raw_world(pings)),
    ("a_real_server_from_the_director", || in_raw_world(a_real_server_from_the_director)),
    ("a_real_server_routed_through_the_director", || in_raw_world(a_real_server_routed)),
    ("real_servers_use_their_gateway", || in_raw_world(real_servers_use_their_gateway)),
    ("a_reset_for_a_packet_of_no_connection", || in_raw_world(a_reset)),
    ("a_fragmented_datagram_to_a_local_socket", || in_raw_world(a_fragmented_datagram)),
    ("the_kernel_answers_nothing_of_ours", || in_raw_world(the_kernel_answers_nothing)),
    ("the_guard_stays", || in_raw_world(the_guard_stays)),
    ("killed_under_load", || in_raw_world(killed_under_load)),
    ("super_frames_of_datagrams", || in_raw_world(super_frames_of_datagrams)),
    ("auto_without_af_xdp", auto_without_af_xdp),
];

const RAW: &[&str] = &["--io", "raw"];

fn in_raw_world(test: fn(&mut World) -> Outcome) -> Outcome {
    raw(&Plan::default(), RAW, test)
}

/// As `in_world`, once every device is known to be raw.
fn raw(plan: &Plan, arguments: &[&str], test: impl FnOnce(&mut World) -> Outcome) -> Outcome {
    in_world(plan, arguments, |world| {
        let devices = world.status()?.devices;
        check(devices.iter().all(|device| device.mode == "raw"), format!("not raw: {devices:?}"))?;
        test(world)
    })
}

fn two_workers(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    run(world, &load(world.service(V4), 500, false))?;
    let status = world.status()?;
    check(status.workers.iter().all(|worker| worker.received > 0), "one worker received nothing")?;
    check(status.workers.iter().all(|worker| worker.handed_off == 0), "a worker has no way out of its own")?;
    let dropped: Vec<_> = status.drops.iter().filter(|drop| drop.count > 0).collect();
    check(dropped.is_empty(), format!("frames were dropped: {dropped:?}"))
}

/// What the director's own stack has sent so far: resets, and ICMP messages.
fn answers_of_the_kernel(world: &World) -> Result<[u64; 2], uvs_lab::Error> {
    let counted = |protocol, name| counter(&world.topology.director, protocol, name);
    Ok([counted("Tcp", "OutRsts")?, counted("Icmp", "OutDestUnreachs")?])
}

fn the_kernel_answers_nothing(world: &mut World) -> Outcome {
    let before = answers_of_the_kernel(world)?;
    both_families(world, false)?;
    let after = answers_of_the_kernel(world)?;
    check(after == before, format!("resets and unreachables of the kernel: {before:?}, then {after:?}"))
}

/// What the client's device sends in one piece arrives as the datagrams it is, the last of them shorter.
fn super_frames_of_datagrams(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        let service = SocketAddr::new(world.vip(family), 53);
        let server = world.server(0, family, 5353);
        let echo = udp::Echo::start(&world.topology.servers[0], server, "rs1")?;
        world.ipvsadm(&format!("-A -u {service} -s rr"))?;
        world.ipvsadm(&format!("-a -u {service} -r {server} -m"))?;
        let client = udp::Client::connect(&world.topology.client, service)?;
        for (count, length) in [(2, 1400), (5, 1001), (45, 1400), (60, 17)] {
            let mut questions: Vec<_> = (0..count).map(|number| vec![number; length]).collect();
            if let Some(last) = questions.last_mut() {
                last.truncate(length / 2);
            }
            let answered = client.ask_at_once(&questions, LIMIT)?;
            let seen = echo.senders().len();
            check(
                answered == questions.len() && seen == 1,
                format!("{answered} of {count} datagrams of {length} bytes were answered, by {seen} clients"),
            )?;
        }
    }
    let status = world.status()?;
    let dropped: Vec<_> = status.drops.iter().filter(|drop| drop.count > 0).collect();
    check(dropped.is_empty(), format!("frames were dropped: {dropped:?}"))
}

/// Without its guard the kernel would answer for what the director takes.
fn the_guard_stays(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    let output = uvs(&world.topology.director, ["guard", "off"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    check(!output.status.success() && said.contains("packet sockets"), format!("guard off: {said}"))?;
    run(world, &load(world.service(V4), 50, false)).map(drop)
}

/// A kernel built without AF_XDP, as far as the director can tell: the log says why it takes packet sockets.
fn auto_without_af_xdp() -> Outcome {
    let test = || {
        // For this thread, which ends with the test, and what it starts.
        seccompiler::apply_filter(&without_af_xdp()?)?;
        raw(&Plan::default(), &[], |world| {
            for device in world.topology.director_devices() {
                let said =
                    format!("{device}: raw, 1 packet socket, MTU 1500, because this kernel has no AF_XDP");
                check(world.director.log().contains(&said), format!("the log lacks {said:?}"))?;
            }
            both_families(world, false)
        })
    };
    std::thread::scope(|scope| scope.spawn(test).join().unwrap_or_else(|_| Err("it panicked".into())))
}
