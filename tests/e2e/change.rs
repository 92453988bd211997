//! Changes while traffic flows: connections continue, new ones go where they should, none is broken.

use crate::director::{Configuration, LIMIT, V4, V6, World, in_default_world, in_world, load};
use crate::harness::{Outcome, Tests, check};
use crate::traffic::{run, shares};
use libtest_mimic::Failed;
use std::cell::Cell;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use uvs_lab::http::{Connection, Load, Report};
use uvs_lab::probe::{RawTcp, flags};
use uvs_lab::{Plan, wait};

pub(crate) const TESTS: Tests = &[
    ("weight_zero_spares_what_is_open", || in_both_families(weight_zero)),
    ("a_removed_server_breaks_nothing", || in_default_world(a_removed_server)),
    ("a_removed_server_keeps_what_is_open", || {
        let file = Configuration::write("on-remove", "[director]\non_remove = \"keep\"\n")?;
        in_world(&Plan::default(), &["--config", &file.path()], a_removed_server_that_keeps)
    }),
    ("an_added_server_gets_its_share", || in_both_families(an_added_server)),
    ("a_change_is_live_when_the_command_returns", || in_both_families(live_at_once)),
    ("a_restore_brings_everything_back", || in_default_world(a_restore)),
];

fn in_both_families(test: impl Fn(&World, IpAddr) -> Outcome) -> Outcome {
    in_default_world(|world| {
        [V4, V6].into_iter().try_for_each(|family| {
            test(world, family)?;
            world.ipvsadm("-C").map(drop)
        })
    })
}

/// Connections to the service until one is at `name`.
fn connection_at(world: &World, family: IpAddr, name: &str) -> Result<Connection, Failed> {
    for _ in 0..10 {
        let mut connection = Connection::open(&world.topology.client, world.service(family), LIMIT)?;
        if connection.get("/")?.server == name {
            return Ok(connection);
        }
    }
    Err(format!("ten connections, and none at {name}").into())
}

/// Does something while eight clients ask over kept connections, and returns what became of those.
fn under_load(world: &World, family: IpAddr, change: impl FnOnce() -> Outcome) -> Result<Report, Failed> {
    let stop = AtomicBool::new(false);
    let load = Load { requests: usize::MAX, ..load(world.service(family), 0, true) };
    std::thread::scope(|scope| {
        let clients = scope.spawn(|| load.run_until(&world.topology.client, &stop));
        let changed = wait::until("all clients to be connected", LIMIT, || {
            world.http.iter().map(uvs_lab::http::Server::open_connections).sum::<usize>() >= 8
        });
        let changed = changed.map_err(Failed::from).and_then(|()| change());
        stop.store(true, Relaxed);
        let report = clients.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        changed?;
        check(report.faults.is_empty(), format!("under way: {:?}", report.faults.first()))?;
        Ok(report)
    })
}

fn weight_zero(world: &World, family: IpAddr) -> Outcome {
    world.balance(family, "rr", &[1, 1])?;
    let report = under_load(world, family, || {
        let mut spared = connection_at(world, family, "rs1")?;
        world.ipvsadm(&format!(
            "-e -t {} -r {} -m -w 0",
            world.service(family),
            world.server(0, family, 80)
        ))?;
        let fresh = run(world, &load(world.service(family), 40, false))?;
        check(shares(&fresh).keys().eq(["rs2"]), format!("new connections went to {:?}", shares(&fresh)))?;
        let answer = spared.get("/bytes/1000000")?;
        check(answer.server == "rs1" && answer.fault("/bytes/1000000").is_none(), format!("{answer:?}"))
    })?;
    check(shares(&report).len() == 2, format!("kept connections were at {:?}", shares(&report)))
}

/// As IPVS has it: packets of a removed server's connections are dropped without a word, and flow again when it is back.
fn a_removed_server(world: &mut World) -> Outcome {
    world.balance(V4, "rr", &[1, 1])?;
    let (service, server) = (world.service(V4), world.server(0, V4, 80));
    let (mut waits, mut stays) = (connection_at(world, V4, "rs1")?, connection_at(world, V4, "rs2")?);
    let port = waits.local()?.port();
    world.ipvsadm(&format!("-d -t {service} -r {server}"))?;
    let fresh = run(world, &load(service, 40, false))?;
    check(shares(&fresh).keys().eq(["rs2"]), format!("new connections went to {:?}", shares(&fresh)))?;
    check(stays.get("/")?.server == "rs2", "a connection at the other server moved")?;
    let (world, raw) = (&*world, RawTcp::open(&world.topology.client)?);
    std::thread::scope(|scope| {
        let asking = scope.spawn(move || waits.get("/"));
        world.wait_for_drops("destination_gone", 1)?;
        world.ipvsadm(&format!("-a -t {service} -r {server} -m"))?;
        let answer = asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        check(answer.server == "rs1", format!("the connection was answered by {:?}", answer.server))?;
        let reset = Cell::new(false);
        let heard = raw.receive(LIMIT, |segment| {
            reset.set(reset.get() || segment.flags & flags::RST != 0);
            segment.source == 80 && segment.destination == port
        })?;
        check(heard.is_some(), "the answer was not heard")?;
        check(!reset.get(), "a connection was reset before the server was back")
    })
}

/// With `on_remove = "keep"` nobody notices that a server is removed but those who come new.
fn a_removed_server_that_keeps(world: &mut World) -> Outcome {
    const LENGTH: u64 = 100_000_000;
    world.balance(V4, "rr", &[1, 1])?;
    let (service, server) = (world.service(V4), world.server(0, V4, 80));
    let mut transfer = connection_at(world, V4, "rs1")?;
    let world = &*world;
    let answered = || world.http[0].answered();
    let report = under_load(world, V4, || {
        std::thread::scope(|scope| {
            let path = format!("/bytes/{LENGTH}");
            let moving = scope.spawn(move || {
                let got = transfer.get(&path)?;
                check(got.fault(&path).is_none(), format!("the transfer: {got:?}"))?;
                Ok::<_, Failed>(transfer)
            });
            world.ipvsadm(&format!("-d -t {service} -r {server}"))?;
            check(!moving.is_finished(), "the transfer was over before its server was removed")?;
            let before = answered();
            let fresh = run(world, &load(service, 40, false))?;
            check(
                shares(&fresh).keys().eq(["rs2"]),
                format!("new connections went to {:?}", shares(&fresh)),
            )?;
            let mut transfer = moving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            wait::until("kept connections to be answered by rs1", LIMIT, || answered() >= before + 100)?;
            let again = transfer.get("/")?;
            check(again.server == "rs1", format!("the kept connection was answered by {:?}", again.server))
        })
    })?;
    check(shares(&report).len() == 2, format!("kept connections were at {:?}", shares(&report)))?;
    check(world.drops("destination_gone")? == 0, "packets of the removed server were dropped")
}

fn an_added_server(world: &World, family: IpAddr) -> Outcome {
    world.balance(family, "rr", &[1])?;
    under_load(world, family, || {
        let before = run(world, &load(world.service(family), 20, false))?;
        check(shares(&before).keys().eq(["rs1"]), format!("{:?}", shares(&before)))?;
        world.ipvsadm(&format!("-a -t {} -r {} -m", world.service(family), world.server(1, family, 80)))?;
        let after = run(world, &load(world.service(family), 40, false))?;
        check(shares(&after).values().eq(&[20, 20]), format!("{:?}", shares(&after)))
    })
    .map(drop)
}

/// The very first connection after a command sees it, fifty times in a row.
fn live_at_once(world: &World, family: IpAddr) -> Outcome {
    world.balance(family, "rr", &[1])?;
    let service = world.service(family);
    for turn in 0..50 {
        let (old, new) = (turn % 2, (turn + 1) % 2);
        world.ipvsadm(&format!("-a -t {service} -r {} -m", world.server(new, family, 80)))?;
        world.ipvsadm(&format!("-d -t {service} -r {}", world.server(old, family, 80)))?;
        let answer = Connection::open(&world.topology.client, service, LIMIT)?.get("/")?;
        let expected = format!("rs{}", new + 1);
        check(answer.server == expected, format!("turn {turn}: {} answered, not {expected}", answer.server))?;
    }
    world.ipvsadm("-C")?;
    let refused = Connection::open(&world.topology.client, service, LIMIT);
    check(refused.is_err(), "a service that is gone was answered")
}

fn a_restore(world: &mut World) -> Outcome {
    world.balance(V4, "wrr", &[3, 1])?;
    let saved = world.ipvsadm("-Sn")?;
    let file = std::env::temp_dir().join(format!("uvs-{}-restore", std::process::id()));
    std::fs::write(&file, &saved)?;
    world.ipvsadm("-C")?;
    check(world.ipvsadm("-Sn")?.is_empty(), "something was left after -C")?;
    let input = std::fs::File::open(&file)?;
    std::fs::remove_file(&file)?;
    let mut command = std::process::Command::new(crate::director::UVS);
    command.args(["ipvsadm", "-R"]).stdin(input);
    let status = world.topology.director.start(&mut command)?.wait()?;
    check(status.success(), format!("ipvsadm -R: {status}"))?;
    check(world.ipvsadm("-Sn")? == saved, format!("restored:\n{}saved:\n{saved}", world.ipvsadm("-Sn")?))?;
    run(world, &load(world.service(V4), 40, false)).map(drop)
}
