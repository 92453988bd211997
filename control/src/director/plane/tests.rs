//! The plane without devices: what commands make of its tables and maps.

use super::*;
use crate::api::{Method as Forwarding, Protocol};
use crate::director::load::Load;
use std::time::Instant;
use uvs_conntrack::{Limits, SharedTable};
use uvs_engine::counters::Counters;
use uvs_engine::nexthop::NextHops;
use uvs_engine::pipeline::Pipeline;
use uvs_engine::snapshot::Snapshot;
use uvs_engine::worker::{Crew, Notices};

/// A plane with one worker and no device. Needs root, as the maps of the steering program do.
fn plane() -> (Plane, Arc<SharedTable>) {
    let limits = Limits { connections4: 1000, connections6: 1000, destinations: 100, ..Limits::default() };
    let table = SharedTable::create(limits).unwrap();
    let counters = Counters::new(100);
    let destinations = Destinations::new(table.clone(), counters.clone());
    let config = Config::new(Snapshot::empty(NextHops::new(8)));
    let kernel = Kernel::open(config.clone(), None).unwrap();
    let crew = Crew::open(&[], &[None]).unwrap();
    let worker = counters.worker();
    let mut handle = Some(table.handle().unwrap());
    let make = |_| {
        let pipeline = Pipeline::new(handle.take().unwrap(), destinations.clone(), worker.clone());
        (pipeline, Box::new(|_: &[&[u8]]| false) as uvs_engine::worker::WayBack)
    };
    let running = crew.start(&config, &Notices::new().unwrap(), make).unwrap();
    let mut handle = table.handle().unwrap();
    handle.sleep();
    let report = Report {
        running: Arc::new(running),
        attachments: Vec::new(),
        handle,
        since: Instant::now(),
        drops: vec![worker],
        load: Load::default(),
        kernel: kernel.clone(),
        captures: uvs_engine::capture::Captures::new(1),
    };
    (Plane::new(config, destinations, Steering::new().unwrap(), kernel, report, false), table)
}

fn service(port: u16) -> ServiceSpec {
    let id = ServiceId::Address { protocol: Protocol::Tcp, address: ([192, 0, 2, 80], port).into() };
    ServiceSpec::new(id, "rr")
}

fn server(last: u8) -> ServerSpec {
    let address = SocketAddr::from(([198, 51, 100, last], 80));
    ServerSpec { method: Forwarding::Masquerading, ..ServerSpec::new(address) }
}

#[test]
fn a_server_that_comes_and_goes_is_claimed_once() {
    let (mut plane, _table) = plane();
    let (spec, nat) = (service(80), server(1));
    let direct = ServerSpec { method: Forwarding::Direct, ..nat };
    plane.add_service(&spec).unwrap();
    let without = plane.steering.keys();
    for _ in 0..5 {
        plane.add_server(&spec.id, &nat).unwrap();
        plane.edit_server(&spec.id, &direct).unwrap();
        plane.edit_server(&spec.id, &nat).unwrap();
        plane.delete_server(&spec.id, nat.address);
        assert_eq!(plane.lingering.len(), 2, "one by NAT and one by direct routing");
    }
    plane.release_idle();
    assert!(plane.lingering.is_empty(), "it has no connections");
    assert_eq!(plane.steering.keys(), without);
}

#[test]
fn a_service_lets_go_when_no_worker_uses_it() {
    let (mut plane, _table) = plane();
    let (spec, server) = (service(80), server(1));
    let add = |plane: &mut Plane| {
        plane.add_service(&spec).unwrap();
        plane.add_server(&spec.id, &server).unwrap();
        plane.members.values().next().unwrap()[&server.address].id
    };
    let first = add(&mut plane);
    plane.delete_service(&spec.id);
    assert!(plane.destinations.is_available(first), "a worker may have a packet for it");
    plane.settle().unwrap();
    assert!(!plane.destinations.is_available(first));
    // Deleted and added again in one session.
    add(&mut plane);
    plane.delete_service(&spec.id);
    let again = add(&mut plane);
    plane.settle().unwrap();
    assert!(plane.destinations.is_available(again), "the old service took the new one's server with it");
}

#[test]
fn removed_servers_make_room_for_others() {
    let (mut plane, _table) = plane();
    let spec = service(80);
    plane.add_service(&spec).unwrap();
    for hundred in [1..=100, 101..=200] {
        hundred.clone().for_each(|last| plane.add_server(&spec.id, &server(last)).unwrap());
        plane.add_server(&spec.id, &server(250)).unwrap_err();
        hundred.for_each(|last| plane.delete_server(&spec.id, server(last).address));
    }
}
