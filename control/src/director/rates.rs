//! Averages per second, as IPVS's estimator computes them: every two seconds, an exponentially weighted moving average of
//! weight 1/4 in fixed point (`net/netfilter/ipvs/ip_vs_est.c`).

use crate::api::{Counters, Rates};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;
use uvs_engine::counters::Traffic;
use uvs_engine::service::{ServiceKey, ServiceSums};

/// How far two estimations are apart.
pub(super) const PERIOD: Duration = Duration::from_secs(2);

/// One quantity: its last sum and its average.
#[derive(Clone, Copy, Debug, Default)]
struct Average<const SCALE: u32> {
    last: u64,
    average: u64,
}

impl<const SCALE: u32> Average<SCALE> {
    /// `sum` is the quantity's sum now, two seconds after the last call.
    fn update(&mut self, sum: u64) {
        let rate = sum.saturating_sub(self.last) << (SCALE - 1);
        self.last = sum;
        // The kernel's arithmetic shift of the signed difference.
        self.average = self.average.wrapping_add_signed((rate.wrapping_sub(self.average)).cast_signed() >> 2);
    }

    /// Per second, rounded up by less than half a unit as the kernel does.
    fn per_second(self) -> u64 {
        self.average.saturating_add((1 << (SCALE - 1)) - 1) >> SCALE
    }
}

/// The averages of a service or a real server.
#[derive(Clone, Copy, Debug, Default)]
struct Estimator {
    connections: Average<10>,
    in_packets: Average<10>,
    out_packets: Average<10>,
    in_bytes: Average<5>,
    out_bytes: Average<5>,
}

impl Estimator {
    /// Takes the sums of this moment into the averages.
    fn update(&mut self, sums: &Counters) {
        self.connections.update(sums.connections);
        self.in_packets.update(sums.in_packets);
        self.out_packets.update(sums.out_packets);
        self.in_bytes.update(sums.in_bytes);
        self.out_bytes.update(sums.out_bytes);
    }

    /// The averages per second.
    fn rates(&self) -> Rates {
        Rates {
            connections: self.connections.per_second(),
            in_packets: self.in_packets.per_second(),
            out_packets: self.out_packets.per_second(),
            in_bytes: self.in_bytes.per_second(),
            out_bytes: self.out_bytes.per_second(),
        }
    }
}

/// The averages of all services and their real servers.
#[derive(Debug, Default)]
pub(super) struct Averages {
    total: Estimator,
    services: HashMap<ServiceKey, OfService>,
    /// Counts estimations.
    round: u64,
}

#[derive(Debug, Default)]
struct OfService {
    service: Estimator,
    servers: HashMap<SocketAddr, (Estimator, u64)>,
    /// The last estimation that it was among.
    round: u64,
}

impl Averages {
    /// Takes the sums of this moment into the averages. Services and real servers that are not among them are forgotten.
    pub(super) fn update(&mut self, total: Traffic, services: impl Iterator<Item = ServiceSums>) {
        self.total.update(&total.into());
        self.round += 1;
        let round = self.round;
        for sums in services {
            let averages = self.services.entry(sums.key).or_default();
            averages.round = round;
            averages.service.update(&sums.traffic.into());
            for (address, traffic) in &sums.servers {
                let (estimator, last) = averages.servers.entry(*address).or_default();
                estimator.update(&(*traffic).into());
                *last = round;
            }
            if averages.servers.len() > sums.servers.len() {
                averages.servers.retain(|_, (_, last)| *last == round);
            }
        }
        self.services.retain(|_, averages| averages.round == round);
    }

    /// A service's averages and its real servers' start from zero, as its counters do (`ip_vs_zero_estimator`).
    pub(super) fn zero(&mut self, service: &ServiceKey) {
        self.services.remove(service);
    }

    /// The averages of all services together.
    pub(super) fn of_all(&self) -> Rates {
        self.total.rates()
    }

    /// A service's averages.
    pub(super) fn of_service(&self, service: &ServiceKey) -> Rates {
        self.services.get(service).map(|averages| averages.service.rates()).unwrap_or_default()
    }

    /// A real server's averages.
    pub(super) fn of_server(&self, service: &ServiceKey, server: SocketAddr) -> Rates {
        let estimator = self.services.get(service).and_then(|averages| averages.servers.get(&server));
        estimator.map(|(estimator, _)| estimator.rates()).unwrap_or_default()
    }
}

impl From<Traffic> for Counters {
    fn from(traffic: Traffic) -> Self {
        let Traffic { connections, in_packets, out_packets, in_bytes, out_bytes } = traffic;
        Counters { connections, in_packets, out_packets, in_bytes, out_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::time::{ClockId, clock_gettime};
    use uvs_conntrack::{Limits, SharedTable};
    use uvs_engine::counters::Counters as WorkersCounters;
    use uvs_engine::forward::Method;
    use uvs_engine::service::{DestinationConfig, Destinations, Service};

    /// A service with one real server, both with so many connections scheduled.
    fn sums(key: ServiceKey, server: SocketAddr, connections: u64) -> ServiceSums {
        let traffic = Traffic { connections, ..Traffic::default() };
        ServiceSums { key, traffic, servers: vec![(server, traffic)] }
    }

    #[test]
    fn zeroed_averages_start_with_the_counters() {
        let key = ServiceKey { address: [192, 0, 2, 80].into(), port: 80, protocol: 6 };
        let other = ServiceKey { port: 81, ..key };
        let server = SocketAddr::from(([10, 0, 0, 11], 80));
        let mut averages = Averages::default();
        let both =
            |counts: [u64; 2]| [sums(key, server, counts[0]), sums(other, server, counts[1])].into_iter();
        let connections = |averages: &Averages, key| {
            (averages.of_service(key).connections, averages.of_server(key, server).connections)
        };
        let none = Traffic::default();
        averages.update(Traffic { connections: 16_000, ..none }, both([8000, 8000]));
        assert_eq!(averages.of_all().connections, 2000);
        assert_eq!(connections(&averages, &key), (1000, 1000));
        averages.zero(&key);
        assert_eq!(connections(&averages, &key), (0, 0), "the rates stay");
        assert_eq!(connections(&averages, &other), (1000, 1000), "of another service");
        averages.update(none, both([800, 8000]));
        assert_eq!(connections(&averages, &key), (100, 100), "the first period counts");
        averages.update(none, [sums(key, server, 800)].into_iter());
        assert_eq!(connections(&averages, &other), (0, 0), "a service that is gone");
        let second = SocketAddr::from(([10, 0, 0, 12], 80));
        averages.update(none, [sums(key, second, 800)].into_iter());
        assert_eq!(averages.of_server(&key, server), Rates::default(), "a real server that is gone");
    }

    /// How long this thread has been at work.
    fn worked() -> Duration {
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
    }

    /// What an estimation costs the control thread, which holds the registry meanwhile.
    #[test]
    fn ten_thousand_services_are_estimated_in_no_time() {
        const SERVICES: u16 = 10_000;
        const SERVERS: u16 = 10;
        let limits = Limits { connections4: 64, connections6: 64, destinations: 1 << 17, first_buckets: 4 };
        let counters = WorkersCounters::new(limits.destinations);
        let _worker = counters.worker();
        let destinations = Destinations::new(SharedTable::create(limits).unwrap(), counters);
        let services: Vec<_> = (1..=SERVICES)
            .map(|port| {
                let key = ServiceKey { address: [192, 0, 2, 80].into(), port, protocol: 6 };
                let scheduler = uvs_schedulers::by_name("rr").unwrap();
                let service = Service::new(key, "rr", scheduler, destinations.clone()).unwrap();
                for server in 1..=SERVERS {
                    let address = SocketAddr::from(([10, 0, 0, 11], server));
                    service.add(&DestinationConfig::new(address, Method::Nat)).unwrap();
                }
                service
            })
            .collect();
        let mut averages = Averages::default();
        for _ in 0..3 {
            let begin = worked();
            averages.update(Traffic::default(), services.iter().map(|service| service.sums()));
            let taken = worked() - begin;
            println!("{SERVICES} services of {SERVERS} real servers each: {taken:?}");
            assert!(taken < PERIOD / 2, "{taken:?}");
        }
    }

    #[test]
    fn a_steady_flow_is_approached_by_quarters() {
        let mut estimator = Estimator::default();
        let seen: Vec<_> = (1..=6)
            .map(|round| {
                estimator.update(&Counters {
                    connections: 200 * round,
                    in_bytes: 2000 * round,
                    ..Counters::default()
                });
                (estimator.rates().connections, estimator.rates().in_bytes)
            })
            .collect();
        // 100 a second: 100·(1 − 0.75ⁿ).
        assert_eq!(seen, [(25, 250), (44, 437), (58, 578), (68, 684), (76, 763), (82, 822)]);
    }

    /// Sums of a moment, and what `ipvsadm --rate` and `/proc/net/ip_vs_stats` of Linux 6.1 said four periods later.
    #[test]
    fn a_burst_decays_as_in_the_kernel() {
        for (connections, in_packets, in_bytes, rates) in [
            (40, 56, 2240, (2, 3, 118)),
            (9, 17, 680, (0, 1, 36)),
            (8, 16, 640, (0, 1, 34)),
            (6, 6, 240, (0, 0, 13)),
            (3, 3, 96, (0, 0, 5)),
            (2, 2, 64, (0, 0, 3)),
            (4, 8, 320, (0, 0, 17)),
        ] {
            let mut estimator = Estimator::default();
            let sums = Counters { connections, in_packets, in_bytes, ..Counters::default() };
            (0..4).for_each(|_| estimator.update(&sums));
            let Rates { connections, in_packets, in_bytes, .. } = estimator.rates();
            assert_eq!((connections, in_packets, in_bytes), rates, "{sums:?}");
        }
    }

    #[test]
    fn what_stops_decays_to_nothing() {
        let mut estimator = Estimator::default();
        let sums = Counters { in_packets: 1_000_000, ..Counters::default() };
        estimator.update(&sums);
        assert_eq!(estimator.rates().in_packets, 125_000);
        for _ in 0..100 {
            estimator.update(&sums);
        }
        assert_eq!(estimator.rates(), Rates::default());
    }

    #[test]
    fn zeroed_counters_are_no_negative_rate() {
        let mut estimator = Estimator::default();
        estimator.update(&Counters { connections: 5000, ..Counters::default() });
        estimator.update(&Counters::default());
        assert!(estimator.rates().connections < 700);
    }
}
