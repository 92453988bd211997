//! uvs with one more scheduler, from a crate of your own: `cargo run --example scheduler -- run --interface eth0`, then
//! `ipvsadm -A -t 192.0.2.1:80 -s fewest-per-core`, or `scheduler = "fewest-per-core"` in the configuration.

use std::process::ExitCode;
use uvs::schedulers::{Pool, Request, Scheduler, Slot, offer};

/// The real server with the fewest connections for each core, where the weight tells the cores; the newest of equals.
#[derive(Debug)]
struct FewestPerCore;

impl Scheduler for FewestPerCore {
    fn choose(&mut self, pool: &Pool, _request: &Request) -> Option<Slot> {
        let usable = pool.iter().filter(|(_, server)| server.usable());
        let fewest = usable.min_by_key(|(_, server)| server.total() / server.weight);
        fewest.map(|(slot, _)| slot)
    }
}

fn main() -> ExitCode {
    if let Err(error) = offer("fewest-per-core", || Box::new(FewestPerCore)) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    uvs_cli::main()
}

#[cfg(test)]
mod tests {
    use super::*;
    use uvs::schedulers::{Balancer, Destination, Registry};

    #[test]
    fn a_server_of_eight_cores_gets_eight_times_as_many() {
        offer("fewest-per-core", || Box::new(FewestPerCore)).expect("a name of its own");
        let scheduler = Registry::default().make("fewest-per-core").expect("it was offered");
        let mut service = Balancer::new(scheduler);
        let mut server = |n: u8, cores| {
            let address = ([10, 2, 0, n], 80).into();
            service.add(Destination::new(address, cores)).expect("room for a server")
        };
        let (small, large) = (server(1, 1), server(2, 8));
        let request = Request::new(([10, 1, 0, 1], 1024).into(), ([192, 0, 2, 1], 80).into());
        for _ in 0..90 {
            let slot = service.choose(&request).expect("both may be chosen");
            service.bind(slot, true);
        }
        let total = |slot| service.pool().get(slot).map(Destination::total);
        assert_eq!((total(small), total(large)), (Some(10), Some(80)));
    }
}
