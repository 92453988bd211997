//! What a director takes when it is started: devices and cores.

use crate::director::{Director, V4, World, load};
use crate::harness::{Outcome, Tests, check};
use crate::traffic::{expect_shares, run};

pub(crate) const TESTS: Tests = &[("every_device", every_device), ("cores_of_its_own", cores_of_its_own)];

/// `--interface all`: every Ethernet device that is up, and no other.
fn every_device() -> Outcome {
    let mut world = World::of(|topology| {
        topology.director.net().down("eth2")?;
        let director = Director::start_with(topology, &["--interface", "all", "--workers", "1"]);
        topology.director.net().up("eth2")?;
        director
    })?;
    let devices: Vec<String> = world.status()?.devices.into_iter().map(|device| device.name).collect();
    check(devices == ["eth0", "eth1"], format!("it took {devices:?}"))?;
    check(world.director.terminate()? == Some(0), "it did not end with 0")?;
    world.director = Director::start_with(&world.topology, &["--interface", "all", "--workers", "1"])?;
    let devices: Vec<String> = world.status()?.devices.into_iter().map(|device| device.name).collect();
    check(devices == ["eth0", "eth1", "eth2"], format!("it took {devices:?}"))?;
    world.balance(V4, "rr", &[1, 1])?;
    expect_shares(&run(&world, &load(world.service(V4), 20, false))?, &[("rs1", 10), ("rs2", 10)])
}

/// `--cores`: one worker on each, and nowhere else.
fn cores_of_its_own() -> Outcome {
    let world =
        World::of(|topology| Director::start_pinned(topology, &["--interface", "all", "--cores", "0,1"]))?;
    let cores = world.director.cores_of_workers()?;
    check(cores == ["0", "1"], format!("its workers may run on {cores:?}"))?;
    world.balance(V4, "rr", &[1, 1])?;
    expect_shares(&run(&world, &load(world.service(V4), 20, false))?, &[("rs1", 10), ("rs2", 10)])
}
