//! Replays what Linux IPVS did with persistent services, step by step, through the pipeline. `tests/golden/README.md` says what is
//! in a step.

#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

mod director;

use director::*;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use uvs_conntrack::Flow;
use uvs_engine::forward::Method;
use uvs_engine::nexthop::{Route, Routes, Target};
use uvs_engine::service::{Clients, DestinationConfig, Persistence, Service, ServiceKey, Terms};
use uvs_engine::verdict::Neighbour;

const TRACES: &str = include_str!("../../tests/golden/sched/persistence-6.1.192.json");
/// What the file holds, so that none can go missing unnoticed.
const EXPECTED: (usize, usize) = (10, 228);

#[derive(Deserialize)]
struct Recording {
    traces: Vec<Trace>,
}

#[derive(Deserialize)]
struct Trace {
    name: String,
    scheduler: String,
    service: String,
    service_options: String,
    servers: Vec<Server>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Server {
    addr: SocketAddr,
    weight: u32,
}

#[derive(Deserialize)]
struct Step {
    op: String,
    cip: Option<IpAddr>,
    cport: Option<u16>,
    server: Option<SocketAddr>,
    weight: Option<u32>,
    sel: Option<String>,
    state: Option<String>,
    conns: BTreeMap<String, [u64; 3]>,
}

fn persistence(options: &str) -> Persistence {
    let words: Vec<&str> = options.split(' ').collect();
    let value = |option| words.iter().position(|word| *word == option).map(|at| words[at + 1]);
    let clients = match value("-M") {
        None => Clients::Prefix(128),
        Some(mask) => mask.parse().map_or_else(|_| Clients::Prefix(mask.parse().unwrap()), Clients::Mask),
    };
    Persistence { timeout: value("-p").unwrap().parse().unwrap(), clients }
}

/// All that is for a real server goes to one gateway.
fn begin(trace: &Trace) -> (Director, Arc<Service>, SocketAddr) {
    let mut director = Director::new();
    let gateways = ["172.16.0.1", "fd00:2::1"]
        .map(|address| Neighbour { port: SERVERS, address: address.parse().unwrap() });
    let all = ["0.0.0.0", "::"].map(|network| network.parse().unwrap());
    let route = |(network, gateway)| Route { network, length: 0, target: Target::Via(gateway) };
    let mut routes = Routes::build(all.into_iter().zip(gateways).map(route));
    for gateway in gateways {
        routes = routes.with_neighbour(&director.snapshot.hops.clone(), gateway, SERVER_MAC).unwrap();
    }
    director.snapshot.routes = Arc::new(routes);
    let vip: SocketAddr = trace.service.strip_prefix("-t ").unwrap().parse().unwrap();
    let key = ServiceKey { address: vip.ip(), port: vip.port(), protocol: TCP };
    let scheduler = uvs_schedulers::by_name(&trace.scheduler).unwrap();
    let service = Service::new(key, &trace.scheduler, scheduler, director.destinations.clone()).unwrap();
    director.snapshot.services = director.snapshot.services.with(service.clone()).unwrap();
    service.set_terms(Terms { persistence: Some(persistence(&trace.service_options)), ..Terms::default() });
    for server in &trace.servers {
        service
            .add(&DestinationConfig {
                weight: server.weight,
                ..DestinationConfig::new(server.addr, Method::Direct)
            })
            .unwrap();
    }
    (director, service, vip)
}

/// What the kernel shows after a step: the connection's real server and state, and each server's numbers.
type Shown = (Option<String>, Option<String>, BTreeMap<String, [u64; 3]>);

fn step(director: &mut Director, service: &Service, vip: SocketAddr, step: &Step) -> Shown {
    let (mut selected, mut state) = (None, None);
    match step.op.as_str() {
        "open" => {
            let client = SocketAddr::new(step.cip.unwrap(), step.cport.unwrap());
            for flags in [SYN, ACK] {
                let [v4, v6] = plans();
                let plan = Plan { client, service: vip, ..if vip.is_ipv4() { v4 } else { v6 } };
                director.run(CLIENTS, &Frame::from_client(&plan, TCP, flags).bytes());
            }
            let mut handle = director.table.handle().unwrap();
            let hit = handle.find(&Flow::new(client, vip, TCP)).unwrap();
            let connection = handle.connection(hit.id).unwrap();
            let real = connection.real().source();
            selected = Some(format!("{}:{}", real.ip(), real.port()));
            state = Some(connection.state_name().to_owned());
            handle.sleep();
        }
        "weight" => {
            let config = DestinationConfig::new(step.server.unwrap(), Method::Direct);
            service.edit(&DestinationConfig { weight: step.weight.unwrap(), ..config }).unwrap();
        }
        other => panic!("a step of another kind: {other}"),
    }
    let list = service.view().destinations;
    let numbers = list.iter().map(|it| {
        let numbers = [it.config.weight, it.connections.active, it.connections.inactive].map(u64::from);
        (it.config.address.to_string(), numbers)
    });
    (selected, state, numbers.collect())
}

#[test]
fn every_step_is_the_kernels() {
    let recording: Recording = serde_json::from_str(TRACES).expect("the recording is JSON");
    let mut mismatches = Vec::new();
    let mut steps = 0;
    for trace in &recording.traces {
        let (mut director, service, vip) = begin(trace);
        for (number, recorded) in trace.steps.iter().enumerate() {
            steps += 1;
            let ours = step(&mut director, &service, vip, recorded);
            let kernels = (recorded.sel.clone(), recorded.state.clone(), recorded.conns.clone());
            if ours != kernels {
                mismatches.push(format!("{} step {number}: kernel {kernels:?}, we {ours:?}", trace.name));
            }
        }
    }
    let traces = recording.traces.len();
    println!("replayed {traces} traces, {steps} steps, {} mismatches", mismatches.len());
    assert!(mismatches.is_empty(), "{}", mismatches.join("\n"));
    assert_eq!((traces, steps), EXPECTED);
}
