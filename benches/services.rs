//! What a command costs as the table of services grows: adding the 11th service, and the 10,001st, to a running director.
//!
//! `services/add/{n}`: the median time, on the control socket, of adding a service to `n` others and having every worker
//! work by it. Each is taken away again before the next. Needs root.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};
use uvs_control::api::{Protocol, Request, Response, ServiceId, ServiceSpec};
use uvs_control::client::Client;
use uvs_control::options::SocketPlace;
use uvs_lab::{Plan, Process, Topology};

type Failure = Box<dyn Error + Send + Sync>;

const LIMIT: Duration = Duration::from_secs(10);
const SIZES: [u32; 4] = [10, 100, 1_000, 10_000];
const SAMPLES: usize = 301;

fn main() -> Result<(), Failure> {
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let topology = Topology::build(&Plan::default())?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_uvs"));
    command.args(["run", "--interface", "eth0"]);
    let mut director = Process::start(&topology.director, &mut command)?;
    director.wait_for_line("ready", LIMIT)?;
    topology.director.run(measure)??;
    director.terminate()?;
    Ok(())
}

fn measure() -> Result<(), Failure> {
    let client = Client::new(SocketPlace::Namespace);
    let mut there = 0;
    for size in SIZES {
        let missing = (there..size).map(|n| Request::AddService(service(n))).collect();
        done(client.ask(&Request::Batch(missing))?)?;
        there = size;
        let mut times = (0..SAMPLES).map(|_| add_one(&client, size)).collect::<Result<Vec<_>, _>>()?;
        times.sort();
        println!("services/add/{size}: median {:?}", times[SAMPLES / 2]);
    }
    Ok(())
}

/// The time of adding service number `number`, which is removed again.
fn add_one(client: &Client, number: u32) -> Result<Duration, Failure> {
    let add = Request::AddService(service(number));
    let start = Instant::now();
    done(client.ask(&add)?)?;
    let took = start.elapsed();
    done(client.ask(&Request::DeleteService(service(number).id))?)?;
    Ok(took)
}

fn done(response: Response) -> Result<(), Failure> {
    match response {
        Response::Done => Ok(()),
        Response::Batch(responses) => responses.into_iter().try_for_each(done),
        other => Err(format!("the director refused: {other:?}").into()),
    }
}

/// Service `number` of many: a port of an address of 198.18.0.0/15, which is set aside for measuring (RFC 2544).
fn service(number: u32) -> ServiceSpec {
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + number);
    let id = ServiceId::Address { protocol: Protocol::Tcp, address: SocketAddr::from((address, 80)) };
    ServiceSpec::new(id, "rr")
}
