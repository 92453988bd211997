//! p2c, ours: of two destinations drawn at random by weight, the one with the less load per weight. Its load is its active
//! connections and those it was given lately, which count less and less (an exponentially weighted moving average), so that a
//! destination that has just come does not get them all at once.

use crate::draw::Urn;
use crate::pool::{Destination, Pool, Removed, Slot};
use crate::scheduler::{Request, Scheduler, State};
use std::net::SocketAddr;

/// After so long a connection counts half, in units of 10 ms, unless the service's options say otherwise.
const HALF_LIFE: u32 = 10 * 100;

/// Exported state: of each destination, as bits, how many connections it was given lately, and when that was so.
#[derive(Debug, Default)]
pub(crate) struct DecayingChoices {
    urn: Urn,
    /// By the index of the slot.
    given: Vec<Given>,
}

/// How many connections a destination was given lately.
#[derive(Clone, Copy, Debug, Default)]
struct Given {
    times: f64,
    at: u32,
}

impl Given {
    fn now(self, now: u32, half_life: f64) -> f64 {
        // Readings of the clock may be a little out of order.
        let age = now.wrapping_sub(self.at).cast_signed().max(0);
        self.times * (-f64::from(age) / half_life).exp2()
    }
}

fn half_life(pool: &Pool) -> f64 {
    match pool.options().half_life {
        0 => f64::from(HALF_LIFE),
        seconds => f64::from(seconds) * 100.0,
    }
}

impl DecayingChoices {
    fn load(&self, slot: Slot, destination: &Destination, now: u32, half_life: f64) -> f64 {
        let given = self.given.get(slot.index()).map_or(0.0, |given| given.now(now, half_life));
        (f64::from(destination.active) + given) / f64::from(destination.weight.max(1))
    }

    fn begin(&mut self, slot: Slot) {
        if self.given.len() <= slot.index() {
            self.given.resize(slot.index() + 1, Given::default());
        }
        self.given[slot.index()] = Given::default();
    }
}

impl Scheduler for DecayingChoices {
    fn choose(&mut self, pool: &Pool, request: &Request) -> Option<Slot> {
        let (half_life, now) = (half_life(pool), request.now);
        let ((first, one), (second, other)) = (self.urn.draw(pool)?, self.urn.draw(pool)?);
        let better = self.load(second, other, now, half_life) < self.load(first, one, now, half_life);
        let chosen = if better { second } else { first };
        if let Some(given) = self.given.get_mut(chosen.index()) {
            *given = Given { times: given.now(now, half_life) + 1.0, at: now };
        }
        Some(chosen)
    }

    fn attached(&mut self, pool: &Pool) {
        self.urn.fill(pool);
        self.given.clear();
        pool.iter().for_each(|(slot, _)| self.begin(slot));
    }

    fn added(&mut self, pool: &Pool, slot: Slot) {
        self.urn.refresh(pool, slot);
        self.begin(slot);
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

    fn export(&self, pool: &Pool) -> State {
        let given = pool.iter().filter_map(|(slot, it)| Some((it.address, self.given.get(slot.index())?)));
        let (destinations, numbers): (Vec<SocketAddr>, Vec<_>) =
            given.map(|(address, given)| (address, [given.times.to_bits(), u64::from(given.at)])).unzip();
        State { numbers: numbers.concat(), destinations }
    }

    fn import(&mut self, pool: &Pool, state: &State) {
        for (address, numbers) in state.destinations.iter().zip(state.numbers.chunks_exact(2)) {
            let (times, at) = (f64::from_bits(numbers[0]), u32::try_from(numbers[1]).unwrap_or(0));
            let place = pool.find(*address).and_then(|slot| self.given.get_mut(slot.index()));
            if let Some(given) = place.filter(|_| times.is_finite() && times >= 0.0) {
                *given = Given { times, at };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Balancer, Options, by_name};

    fn server(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 2, 0, n], 80))
    }

    fn request(now: u32) -> Request {
        Request { now, ..Request::new(([10, 1, 0, 1], 1024).into(), ([10, 0, 0, 1], 80).into()) }
    }

    fn service(weights: &[u32]) -> (Balancer, Vec<Slot>) {
        let mut service = Balancer::new(by_name("p2c").unwrap());
        let add = |(n, weight): (u8, &u32)| service.add(Destination::new(server(n), *weight)).unwrap();
        let slots = (1..).zip(weights).map(add).collect();
        (service, slots)
    }

    #[test]
    fn connections_spread_by_weight_and_a_newcomer_is_not_flooded() {
        let (mut service, slots) = service(&[1, 2, 3, 0]);
        let bind = |service: &mut Balancer, times| {
            for _ in 0..times {
                let slot = service.choose(&request(7)).unwrap();
                service.bind(slot, true);
            }
        };
        bind(&mut service, 6000);
        let active = |service: &Balancer, slot| service.pool().get(slot).unwrap().active;
        for (slot, weight) in slots.iter().zip([1, 2, 3, 0]) {
            assert!(active(&service, *slot).abs_diff(weight * 1000) <= 30, "weight {weight}");
        }
        // wlc would give the newcomer all of the next 600.
        let newcomer = service.add(Destination::new(server(9), 2)).unwrap();
        bind(&mut service, 600);
        assert!((200..450).contains(&active(&service, newcomer)), "{}", active(&service, newcomer));
        // Nothing is left to choose among.
        for slot in slots.into_iter().chain([newcomer]) {
            service.edit(slot, 0, 0, 0);
        }
        assert_eq!(service.choose(&request(8)), None);
    }

    #[test]
    fn what_was_given_is_forgotten_by_half_and_survives_a_restart() {
        for (seconds, half_life) in [(0, 1000), (3, 300)] {
            let (mut service, slots) = service(&[1, 1]);
            service.set_options(Options { half_life: seconds, ..Options::default() });
            service.edit(slots[1], 0, 0, 0);
            for _ in 0..64 {
                assert_eq!(service.choose(&request(5)), Some(slots[0]));
            }
            service.edit(slots[1], 1, 0, 0);
            let (mut next, slots) = self::service(&[1, 1]);
            next.set_options(Options { half_life: seconds, ..Options::default() });
            next.import(&service.export());
            // As good as nothing is left of the 64, so both are drawn alike; the first of equals is the first one drawn.
            let later = |next: &mut Balancer, now| {
                (0..400).filter(|_| next.choose(&request(now)) == Some(slots[0])).count()
            };
            let state = next.export();
            let soon = later(&mut next, 6);
            assert!((130..=175).contains(&soon), "{soon} of 400 while the other one catches up 64");
            next.import(&state);
            let after = later(&mut next, 5 + 12 * half_life);
            assert!((180..=220).contains(&after), "{after} of 400");
        }
    }
}
