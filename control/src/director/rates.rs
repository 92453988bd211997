//! Averages per second, as IPVS's estimator computes them: every two seconds, an exponentially weighted moving average of
//! weight 1/4 in fixed point (`net/netfilter/ipvs/ip_vs_est.c`).

use crate::api::{Counters, Rates};
use std::time::Duration;

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

/// The averages of a service, a real server, or all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Estimator {
    connections: Average<10>,
    in_packets: Average<10>,
    out_packets: Average<10>,
    in_bytes: Average<5>,
    out_bytes: Average<5>,
}

impl Estimator {
    /// Takes the sums of this moment into the averages.
    pub(super) fn update(&mut self, sums: &Counters) {
        self.connections.update(sums.connections);
        self.in_packets.update(sums.in_packets);
        self.out_packets.update(sums.out_packets);
        self.in_bytes.update(sums.in_bytes);
        self.out_bytes.update(sums.out_bytes);
    }

    /// The averages per second.
    pub(super) fn rates(&self) -> Rates {
        Rates {
            connections: self.connections.per_second(),
            in_packets: self.in_packets.per_second(),
            out_packets: self.out_packets.per_second(),
            in_bytes: self.in_bytes.per_second(),
            out_bytes: self.out_bytes.per_second(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
