//! lblc and lblcr: what they remember, with a minute's timer. Of addresses there are few here, so no sweep ever takes any.

use crate::kernel::{Ask, Real, Service};

const MINUTE: i64 = 6000;
const DAY: i64 = 24 * 60 * MINUTE;

#[derive(Clone, Debug)]
struct Entry {
    address: u32,
    last_use: i64,
    modified: i64,
    /// The newest first.
    servers: Vec<u32>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Cache {
    entries: Vec<Entry>,
    ticks: u32,
    next_tick: Option<i64>,
}

fn should_relieve(service: &Service, place: usize) -> bool {
    let real = &service.list[place];
    let idle = |real: &Real| i64::from(real.active) * 2 < real.weight;
    i64::from(real.active) > real.weight && service.list.iter().any(idle)
}

impl Cache {
    fn tick(&mut self, now: i64) {
        let next = self.next_tick.get_or_insert(now + MINUTE);
        while *next <= now {
            self.ticks += 1;
            if self.ticks.is_multiple_of(30) {
                self.entries.retain(|entry| *next < entry.last_use + DAY);
            }
            *next += MINUTE;
        }
    }

    fn entry(&mut self, ask: &Ask) -> Option<&mut Entry> {
        self.tick(ask.now);
        let entry = self.entries.iter_mut().find(|entry| entry.address == ask.address)?;
        entry.last_use = ask.now;
        Some(entry)
    }

    fn learn(&mut self, ask: &Ask, server: u32) {
        let Ask { address, now, .. } = *ask;
        self.entries.push(Entry { address, last_use: now, modified: now, servers: vec![server] });
    }

    pub(crate) fn locality(&mut self, service: &Service, ask: &Ask) -> Option<usize> {
        let known = self.entry(ask).map(|entry| entry.servers[0]);
        if let Some(place) = known.and_then(|id| service.place(id))
            && service.list[place].weight > 0
            && !should_relieve(service, place)
        {
            return Some(place);
        }
        let place = service.least_per_weight(Real::overhead)?;
        self.entries.retain(|entry| entry.address != ask.address);
        self.learn(ask, service.list[place].id);
        Some(place)
    }

    pub(crate) fn replication(&mut self, service: &Service, ask: &Ask) -> Option<usize> {
        let Some(entry) = self.entry(ask) else {
            let place = service.least_per_weight(Real::overhead)?;
            self.learn(ask, service.list[place].id);
            return Some(place);
        };
        let mut least: Option<usize> = None;
        for place in entry.servers.iter().filter_map(|id| service.place(*id)) {
            let real = &service.list[place];
            let beats = |other: &Real| other.overhead() * real.weight > real.overhead() * other.weight;
            if real.usable() && least.is_none_or(|least| beats(&service.list[least])) {
                least = Some(place);
            }
        }
        if entry.servers.len() > 1 && ask.now > entry.modified + DAY {
            let mut most: Option<usize> = None;
            for place in entry.servers.iter().filter_map(|id| service.place(*id)) {
                let real = &service.list[place];
                let beats = |other: &Real| other.overhead() * real.weight < real.overhead() * other.weight;
                if real.weight > 0 && most.is_none_or(|most| beats(&service.list[most])) {
                    most = Some(place);
                }
            }
            if let Some(most) = most {
                entry.servers.retain(|id| *id != service.list[most].id);
                entry.modified = ask.now;
            }
        }
        if let Some(place) = least.filter(|place| !should_relieve(service, *place)) {
            return Some(place);
        }
        let place = service.least_per_weight(Real::overhead)?;
        let id = service.list[place].id;
        if !entry.servers.contains(&id) {
            entry.servers.insert(0, id);
            entry.modified = ask.now;
        }
        Some(place)
    }
}
