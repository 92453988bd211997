//! Whatever happens to a service, the schedulers choose what the kernel's walk over the list would.

mod kernel;

use kernel::{Rule, Service};
use proptest::prelude::*;
use std::net::{Ipv4Addr, SocketAddr};
use uvs_schedulers::{Balancer, Destination, Request, Slot, by_name};

/// What can happen to a service. A destination is named by a number that is taken modulo how many there are.
#[derive(Clone, Debug)]
enum Event {
    Add {
        weight: u32,
        upper: u32,
        lower: u32,
        known_connections: u32,
    },
    Remove(usize),
    Edit {
        which: usize,
        weight: u32,
        upper: u32,
        lower: u32,
    },
    /// New connections, bound where the scheduler says.
    Connect {
        times: u32,
        active: bool,
    },
    /// One that is bound without the scheduler: persistence, synchronisation.
    BindTo {
        which: usize,
        active: bool,
    },
    /// Connections of one destination fall from active to inactive.
    Close {
        which: usize,
        times: u32,
    },
    /// Connections of one destination end.
    End {
        which: usize,
        times: u32,
    },
    /// Another process takes over.
    HandOver,
}

fn weight() -> impl Strategy<Value = u32> {
    prop_oneof![3 => 0_u32..5, 2 => (1_u32..4).prop_map(|n| n * 6), 1 => Just(100), 1 => Just(2500)]
}

fn thresholds() -> impl Strategy<Value = (u32, u32)> {
    prop_oneof![
        2 => Just((0, 0)),
        1 => (1_u32..9).prop_map(|upper| (upper, 0)),
        1 => (1_u32..9).prop_flat_map(|upper| (Just(upper), 1..=upper)),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let which = 0_usize..1000;
    prop_oneof![
        3 => (weight(), thresholds(), 0_u32..3).prop_map(|(weight, (upper, lower), known_connections)| {
            Event::Add { weight, upper, lower, known_connections }
        }),
        2 => which.clone().prop_map(Event::Remove),
        2 => (which.clone(), weight(), thresholds())
            .prop_map(|(which, weight, (upper, lower))| Event::Edit { which, weight, upper, lower }),
        8 => (1_u32..12, any::<bool>()).prop_map(|(times, active)| Event::Connect { times, active }),
        1 => (which.clone(), any::<bool>()).prop_map(|(which, active)| Event::BindTo { which, active }),
        3 => (which.clone(), 1_u32..5).prop_map(|(which, times)| Event::Close { which, times }),
        3 => (which, 1_u32..5).prop_map(|(which, times)| Event::End { which, times }),
        1 => Just(Event::HandOver),
    ]
}

/// The service under test beside the model of the kernel's.
struct Both {
    name: &'static str,
    ours: Balancer,
    /// The slot of each destination of the model, in list order.
    slots: Vec<Slot>,
    /// Slots of removed destinations, which must find nothing for ever.
    stale: Vec<Slot>,
    kernel: Service,
    added: u32,
}

fn request() -> Request {
    let address = |last| SocketAddr::from((Ipv4Addr::new(10, 0, 0, last), 80));
    Request::new(address(1), address(2))
}

impl Both {
    fn new(name: &'static str, rule: Rule) -> Self {
        let ours = Balancer::new(by_name(name).expect("a scheduler of that name"));
        Both { name, ours, slots: Vec::new(), stale: Vec::new(), kernel: Service::new(rule), added: 0 }
    }

    fn apply(&mut self, event: &Event) -> Result<(), TestCaseError> {
        let count = self.slots.len();
        match *event {
            Event::Add { weight, upper, lower, known_connections } => {
                self.added += 1;
                let address = SocketAddr::from((Ipv4Addr::from(0x0a02_0000 + self.added), 80));
                let destination = Destination {
                    inactive: known_connections,
                    ..Destination::new(address, weight).with_thresholds(upper, lower)
                };
                let slot = self.ours.add(destination);
                self.slots.insert(0, slot.expect("room for another destination"));
                self.kernel.add(weight, upper, lower, known_connections);
            }
            Event::Connect { times, active } => {
                for _ in 0..times {
                    let expected = self.kernel.choose();
                    let chosen = self.ours.choose(&request());
                    prop_assert_eq!(chosen, expected.map(|place| self.slots[place]));
                    if let Some(place) = expected {
                        self.kernel.bind(place, active);
                        self.ours.bind(self.slots[place], active);
                    }
                }
            }
            Event::HandOver => self.hand_over(),
            _ if count == 0 => {}
            Event::Remove(which) => {
                let slot = self.slots.remove(which % count);
                self.kernel.remove(which % count);
                prop_assert!(self.ours.remove(slot).is_some());
                self.stale.push(slot);
            }
            Event::Edit { which, weight, upper, lower } => {
                prop_assert!(self.ours.edit(self.slots[which % count], weight, upper, lower));
                self.kernel.edit(which % count, weight, upper, lower);
            }
            Event::BindTo { which, active } => {
                self.ours.bind(self.slots[which % count], active);
                self.kernel.bind(which % count, active);
            }
            Event::Close { which, times } => {
                (0..times).for_each(|_| self.kernel.close(which % count));
                self.settle(which % count);
            }
            Event::End { which, times } => {
                (0..times).for_each(|_| self.kernel.end(which % count));
                self.settle(which % count);
            }
        }
        for &slot in &self.stale {
            self.ours.settle(slot, 7, 7);
            self.ours.bind(slot, true);
            prop_assert!(self.ours.pool().get(slot).is_none());
            prop_assert!(self.ours.remove(slot).is_none() && !self.ours.edit(slot, 1, 0, 0));
        }
        self.compare()
    }

    fn settle(&mut self, place: usize) {
        let [active, inactive] = self.kernel.load(place);
        self.ours.settle(self.slots[place], active, inactive);
    }

    fn hand_over(&mut self) {
        let mut next = Balancer::new(by_name(self.name).expect("a scheduler of that name"));
        let list: Vec<Destination> = self.ours.pool().iter().map(|(_, destination)| *destination).collect();
        let slots = list.iter().rev().map(|destination| next.add(*destination).expect("room"));
        self.slots = slots.collect();
        self.slots.reverse();
        next.import(&self.ours.export());
        self.ours = next;
        self.stale.clear();
    }

    /// The list, the counters and the overload flags agree, and every slot finds its destination.
    fn compare(&self) -> Result<(), TestCaseError> {
        let list: Vec<_> = self.ours.pool().iter().collect();
        prop_assert_eq!(list.len(), self.slots.len());
        prop_assert_eq!(self.ours.pool().len(), self.slots.len());
        for (place, (slot, destination)) in list.into_iter().enumerate() {
            prop_assert_eq!(slot, self.slots[place]);
            prop_assert_eq!([destination.active, destination.inactive], self.kernel.load(place));
            prop_assert_eq!(destination.overloaded, self.kernel.overloaded(place));
            prop_assert_eq!(self.ours.pool().find(destination.address), Some(slot));
        }
        Ok(())
    }
}

const SCHEDULERS: &[(&str, Rule)] = &[
    ("rr", Rule::RoundRobin),
    ("wrr", Rule::WeightedRoundRobin),
    ("lc", Rule::LeastConnection),
    ("wlc", Rule::WeightedLeastConnection),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn chooses_as_the_walk_does(events in prop::collection::vec(event(), 1..250)) {
        for &(name, rule) in SCHEDULERS {
            let mut both = Both::new(name, rule);
            for event in &events {
                both.apply(event)?;
            }
        }
    }

    /// Many additions and few left: positions are given out anew on the way.
    #[test]
    fn survives_renumbering(
        removals in prop::collection::vec(0_usize..1000, 200),
        weights in prop::collection::vec(weight(), 220),
    ) {
        for &(name, rule) in SCHEDULERS {
            let mut both = Both::new(name, rule);
            for (turn, &weight) in weights.iter().enumerate() {
                both.apply(&Event::Add { weight, upper: 0, lower: 0, known_connections: 0 })?;
                both.apply(&Event::Connect { times: 2, active: turn % 3 > 0 })?;
                if let (Some(&which), true) = (removals.get(turn), turn > 8) {
                    both.apply(&Event::Remove(which))?;
                }
            }
            prop_assert!(both.ours.pool().positions() < 100);
        }
    }
}
