//! Whatever happens to a service, the schedulers choose what the kernel's walk over the list would.

mod cache;
mod kernel;
mod tables;

use kernel::{Ask, Rule, Service};
use proptest::prelude::*;
use std::net::{Ipv4Addr, SocketAddr};
use uvs_schedulers::flags::{SCHED1, SCHED2};
use uvs_schedulers::{Balancer, Destination, Options, Request, Slot, by_name};

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
    /// One that was removed comes back.
    Return {
        which: usize,
        weight: u32,
    },
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
    /// Nothing, for so many minutes.
    Wait(u16),
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
        1 => (which.clone(), weight()).prop_map(|(which, weight)| Event::Return { which, weight }),
        2 => (which.clone(), weight(), thresholds())
            .prop_map(|(which, weight, (upper, lower))| Event::Edit { which, weight, upper, lower }),
        8 => (1_u32..12, any::<bool>()).prop_map(|(times, active)| Event::Connect { times, active }),
        1 => (which.clone(), any::<bool>()).prop_map(|(which, active)| Event::BindTo { which, active }),
        3 => (which.clone(), 1_u32..5).prop_map(|(which, times)| Event::Close { which, times }),
        3 => (which, 1_u32..5).prop_map(|(which, times)| Event::End { which, times }),
        1 => (1_u16..2000).prop_map(Event::Wait),
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
    /// The addresses that were removed and have not come back.
    gone: Vec<u32>,
    added: u32,
    asked: u32,
    /// In units of 10 ms since the start, when the clock of ours is about to wrap.
    now: i64,
    flags: u32,
}

const START: u32 = u32::MAX - 100_000;

fn server(id: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from(id), 80))
}

impl Both {
    fn new(name: &'static str, rule: Rule, flags: u32) -> Self {
        let ours = Balancer::new(by_name(name).expect("a scheduler of that name"));
        let mut kernel = Service::new(rule);
        (kernel.fallback, kernel.by_port) = (flags & SCHED1 != 0, flags & SCHED2 != 0);
        let (slots, stale, gone) = (Vec::new(), Vec::new(), Vec::new());
        let mut both = Both { name, ours, slots, stale, kernel, gone, added: 0, asked: 0, now: 0, flags };
        both.configure();
        both
    }

    fn configure(&mut self) {
        self.ours.set_flags(self.flags);
        self.ours.set_options(Options { table_size: tables::SIZE, ..Options::default() });
    }

    /// Another client that wants one of five addresses.
    fn ask(&mut self) -> (Ask, Request) {
        self.asked += 1;
        self.now += 7;
        let mixed = self.asked.wrapping_mul(0x9e37_79b9);
        let (client, port) = (0x0a01_0000 + (mixed >> 24), 1024 + u16::from(mixed.to_be_bytes()[1]));
        let ask = Ask { client, port, address: 0x0a00_0001 + self.asked % 5, now: self.now };
        let now = START.wrapping_add(u32::try_from(self.now).expect("less than a year"));
        let source = SocketAddr::from((Ipv4Addr::from(client), port));
        (ask, Request { now, ..Request::new(source, server(ask.address)) })
    }

    fn add(&mut self, id: u32, weight: u32, (upper, lower): (u32, u32), known_connections: u32) {
        let destination = Destination {
            inactive: known_connections,
            ..Destination::new(server(id), weight).with_thresholds(upper, lower)
        };
        let slot = self.ours.add(destination);
        self.slots.insert(0, slot.expect("room for another destination"));
        self.kernel.add(id, weight, upper, lower, known_connections);
    }

    fn apply(&mut self, event: &Event) -> Result<(), TestCaseError> {
        let count = self.slots.len();
        match *event {
            Event::Add { weight, upper, lower, known_connections } => {
                self.added += 1;
                self.add(0x0a02_0000 + self.added, weight, (upper, lower), known_connections);
            }
            Event::Return { which, weight } => {
                if !self.gone.is_empty() {
                    let id = self.gone.remove(which % self.gone.len());
                    self.add(id, weight, (0, 0), 0);
                }
            }
            Event::Wait(minutes) => self.now += i64::from(minutes) * 6000,
            Event::Connect { times, active } => {
                for _ in 0..times {
                    let (ask, request) = self.ask();
                    let expected = self.kernel.choose(&ask);
                    let chosen = self.ours.choose(&request);
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
                self.gone.push(self.kernel.list[which % count].id);
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
        self.configure();
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

const SCHEDULERS: &[(&str, Rule, u32)] = &[
    ("rr", Rule::RoundRobin, 0),
    ("wrr", Rule::WeightedRoundRobin, 0),
    ("lc", Rule::LeastConnection, 0),
    ("wlc", Rule::WeightedLeastConnection, 0),
    ("sed", Rule::ShortestExpectedDelay, 0),
    ("nq", Rule::NeverQueue, 0),
    ("fo", Rule::FailOver, 0),
    ("ovf", Rule::Overflow, 0),
    ("dh", Rule::DestinationHashing, 0),
    ("sh", Rule::SourceHashing, 0),
    ("sh", Rule::SourceHashing, SCHED1 | SCHED2),
    ("mh", Rule::Maglev, SCHED2),
    ("mh", Rule::Maglev, SCHED1),
    ("lblc", Rule::Locality, 0),
    ("lblcr", Rule::Replication, 0),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn chooses_as_the_walk_does(events in prop::collection::vec(event(), 1..250)) {
        for &(name, rule, flags) in SCHEDULERS {
            let mut both = Both::new(name, rule, flags);
            for event in &events {
                both.apply(event)?;
            }
        }
    }

    /// One address needs more and more of many servers.
    #[test]
    fn sets_grow_large(
        weights in prop::collection::vec(1_u32..4, 40..80),
        events in prop::collection::vec(event(), 1..120),
    ) {
        let mut both = Both::new("lblcr", Rule::Replication, 0);
        for &weight in &weights {
            both.apply(&Event::Add { weight, upper: 0, lower: 0, known_connections: 0 })?;
        }
        for (turn, event) in events.iter().enumerate() {
            both.apply(&Event::Connect { times: 5, active: true })?;
            both.apply(&Event::Close { which: turn * 7, times: 1 })?;
            both.apply(&Event::End { which: turn * 5, times: 1 })?;
            both.apply(event)?;
        }
    }

    /// Many additions and few left: positions are given out anew on the way.
    #[test]
    fn survives_renumbering(
        removals in prop::collection::vec(0_usize..1000, 200),
        weights in prop::collection::vec(weight(), 220),
    ) {
        for &(name, rule, flags) in SCHEDULERS {
            let mut both = Both::new(name, rule, flags);
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
