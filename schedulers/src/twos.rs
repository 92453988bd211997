//! twos, power of two choices: of two destinations drawn at random by weight, the one with the least overhead per weight.

use crate::pool::{Destination, Pool, Removed, Slot};
use crate::scheduler::{Request, Scheduler};
use crate::tree::{Summary, Tree};
use std::hash::{BuildHasher, RandomState};

/// The weights of a stretch's usable destinations together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sum(u64);

impl Summary for Sum {
    const EMPTY: Self = Sum(0);

    #[inline]
    fn merge(self, other: Self) -> Self {
        Sum(self.0 + other.0)
    }
}

#[derive(Debug)]
pub(crate) struct TwoChoices {
    weights: Tree<Sum>,
    random: Random,
}

impl Default for TwoChoices {
    fn default() -> Self {
        TwoChoices { weights: Tree::default(), random: Random(RandomState::new().hash_one(0)) }
    }
}

/// SplitMix64: nobody gains by knowing the next choice.
#[derive(Debug)]
struct Random(u64);

impl Random {
    /// 0 to `last`, both included, each as likely.
    fn up_to(&mut self, last: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        u64::try_from((u128::from(mixed) * (u128::from(last) + 1)) >> 64).unwrap_or(last)
    }
}

fn weight(pool: &Pool, slot: Option<Slot>) -> Sum {
    let destination = slot.and_then(|slot| pool.get(slot)).filter(|destination| destination.usable());
    Sum(destination.map_or(0, |destination| u64::from(destination.weight)))
}

impl TwoChoices {
    fn refresh(&mut self, pool: &Pool, slot: Slot) {
        if let Some(position) = pool.position(slot) {
            self.weights.set(position, weight(pool, Some(slot)));
        }
    }

    /// The kernel draws from 0 to the sum of all weights and walks until that many are used up: the first one is as likely as
    /// if it weighed one more.
    fn draw<'a>(&mut self, pool: &'a Pool) -> Option<(Slot, &'a Destination)> {
        let drawn = self.random.up_to(self.weights.all().0).max(1);
        let mut left = drawn;
        let position = self.weights.last_after(|Sum(weight)| {
            let here = left <= weight;
            if !here {
                left -= weight;
            }
            here
        })?;
        let slot = pool.at(position)?;
        Some((slot, pool.get(slot)?))
    }
}

impl Scheduler for TwoChoices {
    fn choose(&mut self, pool: &Pool, _request: &Request) -> Option<Slot> {
        let ((first, one), (second, other)) = (self.draw(pool)?, self.draw(pool)?);
        let load = |of: &Destination, by: &Destination| u128::from(of.overhead()) * u128::from(by.weight);
        Some(if load(one, other) > load(other, one) { second } else { first })
    }

    fn attached(&mut self, pool: &Pool) {
        self.weights = Tree::new((0..pool.positions()).map(|position| weight(pool, pool.at(position))));
    }

    fn added(&mut self, pool: &Pool, slot: Slot) {
        self.refresh(pool, slot);
    }

    fn removed(&mut self, _pool: &Pool, gone: &Removed) {
        self.weights.set(gone.position, Sum::EMPTY);
    }

    fn edited(&mut self, pool: &Pool, slot: Slot) {
        self.refresh(pool, slot);
    }

    #[inline]
    fn load_changed(&mut self, pool: &Pool, slot: Slot) {
        self.refresh(pool, slot);
    }

    fn renumbered(&mut self, pool: &Pool) {
        self.attached(pool);
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
