//! `scheduler/{name}/{servers}`: what a scheduler adds to a new connection while others close.
//!
//! One element = one connection of a randomly picked real server goes from active to closing, one that closed before
//! ends, a destination is chosen for a new connection, and the new connection is bound. So each choice finds two counters
//! changed. Eight connections per server stay open; weights are 1 to 8, of ovf, which gives no server more than its weight,
//! twice that. Each connection is another client's. mh and chbl have a table of
//! 131,071 slots.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use nix::time::{ClockId, clock_gettime};
use std::collections::VecDeque;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use uvs_schedulers::{Balancer, Destination, Options, Request, Slot, by_name, flags};

const SCHEDULERS: [&str; 16] = [
    "rr", "wrr", "lc", "wlc", "sed", "nq", "fo", "ovf", "dh", "sh", "mh", "twos", "lblc", "lblcr", "p2c",
    "chbl",
];
const SERVERS: [u32; 4] = [10, 100, 1000, 10_000];
const OPEN_PER_SERVER: u32 = 8;

struct Service {
    balancer: Balancer,
    request: Request,
    open: Vec<Slot>,
    closing: VecDeque<Slot>,
    random: u64,
}

impl Service {
    fn new(name: &str, servers: u32) -> Self {
        let mut balancer = Balancer::new(by_name(name).expect("a scheduler of that name"));
        let unit = if name == "ovf" { 2 } else { 1 };
        for n in 0..servers {
            let address = SocketAddr::from((Ipv4Addr::from(0x0a02_0000 + n), 80));
            balancer.add(Destination::new(address, (n % 8 + 1) * unit)).expect("room for a real server");
        }
        let address = |last| SocketAddr::from((Ipv4Addr::new(10, 0, 0, last), 80));
        let request = Request::new(address(1), address(2));
        balancer.set_flags(flags::SCHED2);
        // The usual 4093 slots are fewer than the servers, and those without a slot would be chosen only when all others are full.
        balancer.set_options(Options { table_size: 131_071, ..Options::default() });
        let mut service =
            Service { balancer, request, open: Vec::new(), closing: VecDeque::new(), random: 0x9e37_79b9 };
        for _ in 0..servers * OPEN_PER_SERVER {
            service.connect();
        }
        for _ in 0..servers * OPEN_PER_SERVER / 4 {
            service.close();
            service.connect();
        }
        service
    }

    #[inline]
    fn connect(&mut self) {
        let port = self.request.source.port().wrapping_add(1);
        self.request.source.set_port(port);
        let slot = self.balancer.choose(black_box(&self.request)).expect("all have weight");
        self.balancer.bind(slot, true);
        self.open.push(slot);
    }

    #[inline]
    fn close(&mut self) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let count = self.open.len() as u64;
        let picked = usize::try_from(self.random % count).expect("an index");
        let slot = self.open.swap_remove(picked);
        if let Some(destination) = self.balancer.pool().get(slot) {
            self.balancer.settle(slot, destination.active - 1, destination.inactive + 1);
        }
        self.closing.push_back(slot);
    }

    #[inline]
    fn end(&mut self) {
        let slot = self.closing.pop_front().expect("some are closing");
        if let Some(destination) = self.balancer.pool().get(slot) {
            self.balancer.settle(slot, destination.active, destination.inactive - 1);
        }
    }
}

/// This thread's time on a processor: on a busy machine the other programs' turns are left out, though not what they do to the
/// caches.
fn cpu_time() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every Linux has this clock"))
}

fn schedulers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler");
    for name in SCHEDULERS {
        for servers in SERVERS {
            let mut service = Service::new(name, servers);
            group.bench_function(BenchmarkId::new(name, servers), |bencher| {
                bencher.iter_custom(|connections| {
                    let start = cpu_time();
                    for _ in 0..connections {
                        service.close();
                        service.end();
                        service.connect();
                    }
                    cpu_time() - start
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, schedulers);
criterion_main!(benches);
