//! twos, power of two choices: of two destinations drawn at random by weight, the one with the least overhead per weight.

use crate::draw::Urn;
use crate::pool::{Destination, Pool, Removed, Slot};
use crate::scheduler::{Request, Scheduler};

#[derive(Debug, Default)]
pub(crate) struct TwoChoices {
    urn: Urn,
}

impl Scheduler for TwoChoices {
    fn choose(&mut self, pool: &Pool, _request: &Request) -> Option<Slot> {
        let ((first, one), (second, other)) = (self.urn.draw(pool)?, self.urn.draw(pool)?);
        let load = |of: &Destination, by: &Destination| u128::from(of.overhead()) * u128::from(by.weight);
        Some(if load(one, other) > load(other, one) { second } else { first })
    }

    fn attached(&mut self, pool: &Pool) {
        self.urn.fill(pool);
    }

    fn added(&mut self, pool: &Pool, slot: Slot) {
        self.urn.refresh(pool, slot);
    }

    fn removed(&mut self, _pool: &Pool, gone: &Removed) {
        self.urn.remove(gone);
    }

    fn edited(&mut self, pool: &Pool, slot: Slot) {
        self.urn.refresh(pool, slot);
    }

    #[inline]
    fn load_changed(&mut self, pool: &Pool, slot: Slot) {
        self.urn.refresh(pool, slot);
    }

    fn renumbered(&mut self, pool: &Pool) {
        self.urn.fill(pool);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Balancer, by_name};
    use std::net::SocketAddr;

    /// How often each of the servers is chosen, oldest first, whose (weight, active connections) these are.
    fn frequencies(servers: &[(u32, u32)]) -> Vec<f64> {
        const CHOICES: u32 = 200_000;
        let mut service = Balancer::new(by_name("twos").unwrap());
        for (n, &(weight, active)) in (1_u8..).zip(servers) {
            let address = SocketAddr::from(([10, 2, 0, n], 80));
            service.add(Destination { active, ..Destination::new(address, weight) }).unwrap();
        }
        let request = Request::new(([10, 1, 0, 1], 1024).into(), ([10, 0, 0, 1], 80).into());
        let mut chosen = vec![0_u32; servers.len()];
        for _ in 0..CHOICES {
            if let Some(slot) = service.choose(&request) {
                chosen[slot.index()] += 1;
            }
        }
        chosen.iter().map(|times| f64::from(*times) / f64::from(CHOICES)).collect()
    }

    /// What the kernel's two draws give, exactly: in list order the first may be drawn by 0 and by its weight's numbers.
    fn expected(servers: &[(u32, u32)]) -> Vec<f64> {
        let total: u32 = servers.iter().map(|(weight, _)| weight).sum();
        let newest = servers.iter().rposition(|(weight, _)| *weight > 0);
        let drawn: Vec<f64> = servers
            .iter()
            .enumerate()
            .map(|(n, (weight, _))| f64::from(weight + u32::from(Some(n) == newest)) / f64::from(total + 1))
            .collect();
        let mut chosen = vec![0.0; servers.len()];
        for (first, one) in servers.iter().enumerate() {
            for (second, other) in servers.iter().enumerate() {
                let taken = if other.0 * one.1 > one.0 * other.1 { second } else { first };
                chosen[taken] += drawn[first] * drawn[second];
            }
        }
        chosen
    }

    #[test]
    fn chooses_as_often_as_two_draws_of_the_kernel_do() {
        for servers in [
            &[(1, 0), (2, 0), (3, 0), (4, 0)][..],
            &[(1, 3), (2, 1), (3, 9), (4, 4)],
            &[(5, 9), (0, 0), (1, 1)],
            &[(3, 1), (4, 1), (0, 7)],
            &[(1, 0); 9],
            &[(1, 100), (1, 0)],
        ] {
            let (got, want) = (frequencies(servers), expected(servers));
            for (got, want) in got.iter().zip(&want) {
                // Eight standard deviations at least.
                assert!((got - want).abs() < 0.01, "{servers:?}: {got} and not {want}");
            }
        }
        assert_eq!(frequencies(&[(0, 0), (0, 1)]), [0.0, 0.0]);
    }
}
