//! IPVS's lists, counters and walks, written as plainly as the kernel has them.

use crate::cache::Cache;
use crate::tables;

/// Which walk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    RoundRobin,
    WeightedRoundRobin,
    LeastConnection,
    WeightedLeastConnection,
    ShortestExpectedDelay,
    NeverQueue,
    FailOver,
    Overflow,
    DestinationHashing,
    SourceHashing,
    Maglev,
    Locality,
    Replication,
}

/// What a connection is asked for with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) client: u32,
    pub(crate) port: u16,
    pub(crate) address: u32,
    /// In units of 10 ms.
    pub(crate) now: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct Real {
    /// Its address.
    pub(crate) id: u32,
    pub(crate) weight: i64,
    pub(crate) last_weight: i64,
    upper: u32,
    lower: u32,
    pub(crate) active: u32,
    inactive: u32,
    pub(crate) overloaded: bool,
}

impl Real {
    pub(crate) fn usable(&self) -> bool {
        self.weight > 0 && !self.overloaded
    }

    fn total(&self) -> u32 {
        self.active + self.inactive
    }

    pub(crate) fn overhead(&self) -> i64 {
        i64::from(self.active) * 256 + i64::from(self.total())
    }

    fn lower_limit(&self) -> u32 {
        if self.lower == 0 { self.upper - (self.upper >> 2) } else { self.lower }
    }

    fn clear_when_below(&mut self) {
        if self.upper == 0 || self.total() < self.lower_limit() {
            self.overloaded = false;
        }
    }

    fn set_when_reached(&mut self) {
        if self.upper != 0 && self.total() >= self.upper {
            self.overloaded = true;
        }
    }
}

/// A service: its list, head first, and the marks of its scheduler.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    rule: Rule,
    pub(crate) fallback: bool,
    pub(crate) by_port: bool,
    pub(crate) list: Vec<Real>,
    cache: Cache,
    /// The destination pointed to by rr and wrr; `None` is the list head.
    mark: Option<u32>,
    current: i64,
    maximum: i64,
    divisor: i64,
}

impl Service {
    pub(crate) fn new(rule: Rule) -> Self {
        Service {
            rule,
            fallback: false,
            by_port: false,
            list: Vec::new(),
            cache: Cache::default(),
            mark: None,
            current: 0,
            maximum: 0,
            divisor: 1,
        }
    }

    pub(crate) fn load(&self, place: usize) -> [u32; 2] {
        [self.list[place].active, self.list[place].inactive]
    }

    pub(crate) fn overloaded(&self, place: usize) -> bool {
        self.list[place].overloaded
    }

    pub(crate) fn add(&mut self, id: u32, weight: u32, upper: u32, lower: u32, inactive: u32) {
        let weight = i64::from(weight);
        let (last_weight, active, overloaded) = (weight, 0, false);
        self.list.insert(0, Real { id, weight, last_weight, upper, lower, active, inactive, overloaded });
        self.list[0].set_when_reached();
        self.destinations_changed();
    }

    pub(crate) fn edit(&mut self, place: usize, weight: u32, upper: u32, lower: u32) {
        let real = &mut self.list[place];
        (real.weight, real.upper, real.lower) = (i64::from(weight), upper, lower);
        if weight != 0 {
            real.last_weight = i64::from(weight);
        }
        real.clear_when_below();
        real.set_when_reached();
        self.destinations_changed();
    }

    pub(crate) fn remove(&mut self, place: usize) {
        let gone = self.list.remove(place);
        if self.mark == Some(gone.id) {
            self.mark = place.checked_sub(1).map(|before| self.list[before].id);
        }
        self.destinations_changed();
    }

    pub(crate) fn bind(&mut self, place: usize, active: bool) {
        let real = &mut self.list[place];
        *if active { &mut real.active } else { &mut real.inactive } += 1;
        real.set_when_reached();
    }

    pub(crate) fn close(&mut self, place: usize) {
        let real = &mut self.list[place];
        let falls = real.active.min(1);
        real.active -= falls;
        real.inactive += falls;
    }

    pub(crate) fn end(&mut self, place: usize) {
        let real = &mut self.list[place];
        if real.total() > 0 {
            *if real.inactive > 0 { &mut real.inactive } else { &mut real.active } -= 1;
            real.clear_when_below();
        }
    }

    pub(crate) fn choose(&mut self, ask: &Ask) -> Option<usize> {
        match self.rule {
            Rule::RoundRobin => self.round_robin(),
            Rule::WeightedRoundRobin => self.weighted_round_robin(),
            Rule::LeastConnection => self.least(|real, least| real.overhead() < least.overhead()),
            Rule::WeightedLeastConnection => self.least_per_weight(Real::overhead),
            Rule::ShortestExpectedDelay => self.least_per_weight(|real| i64::from(real.active) + 1),
            Rule::NeverQueue => {
                let idle = self.list.iter().position(|real| real.usable() && real.active == 0);
                idle.or_else(|| self.least_per_weight(|real| i64::from(real.active) + 1))
            }
            Rule::FailOver => self.least(|real, best| real.weight > best.weight),
            Rule::Overflow => {
                let fits = |real: &Real| real.usable() && i64::from(real.active) <= real.weight;
                let fitting = self.list.iter().enumerate().filter(|(_, real)| fits(real));
                // Of equals the first one in the list: the last one from its end.
                fitting.rev().max_by_key(|(_, real)| real.weight).map(|(place, _)| place)
            }
            Rule::DestinationHashing => tables::destination_hashing(self, ask),
            Rule::SourceHashing => tables::source_hashing(self, ask),
            Rule::Maglev => tables::maglev(self, ask),
            Rule::Locality | Rule::Replication => {
                let mut cache = std::mem::take(&mut self.cache);
                let replicates = self.rule == Rule::Replication;
                let chosen =
                    if replicates { cache.replication(self, ask) } else { cache.locality(self, ask) };
                self.cache = cache;
                chosen
            }
        }
    }

    pub(crate) fn least_per_weight(&self, load: impl Fn(&Real) -> i64) -> Option<usize> {
        self.least(|real, least| load(least) * real.weight > load(real) * least.weight)
    }

    pub(crate) fn place(&self, id: u32) -> Option<usize> {
        self.list.iter().position(|real| real.id == id)
    }

    fn least(&self, beats: impl Fn(&Real, &Real) -> bool) -> Option<usize> {
        let mut least: Option<usize> = None;
        for (place, real) in self.list.iter().enumerate() {
            if !real.usable() {
                continue;
            }
            if least.is_none_or(|least| beats(real, &self.list[least])) {
                least = Some(place);
            }
        }
        least
    }

    /// The place after the mark; 0 when the mark is the head.
    fn after_mark(&self) -> usize {
        self.list.iter().position(|real| Some(real.id) == self.mark).map_or(0, |place| place + 1)
    }

    fn round_robin(&mut self) -> Option<usize> {
        let mut start = self.after_mark();
        for _pass in 0..2 {
            for place in start..self.list.len() {
                let real = &self.list[place];
                if !real.overloaded && real.weight > 0 {
                    self.mark = Some(real.id);
                    return Some(place);
                }
                if Some(real.id) == self.mark {
                    return None;
                }
            }
            self.mark?;
            start = 0;
        }
        None
    }

    fn destinations_changed(&mut self) {
        if !matches!(self.rule, Rule::WeightedRoundRobin) {
            return;
        }
        let divides_all = |d: &i64| self.list.iter().all(|real| real.weight % d == 0);
        let greatest = self.list.iter().map(|real| real.weight).max().unwrap_or(0);
        self.divisor = (1..=greatest).rev().find(divides_all).unwrap_or(1);
        self.maximum = greatest - (self.divisor - 1);
        self.mark = None;
        if self.current > self.maximum || self.current == 0 {
            self.current = self.maximum;
        } else if self.divisor > 1 {
            self.current = self.current / self.divisor * self.divisor + 1;
        }
    }

    fn weighted_round_robin(&mut self) -> Option<usize> {
        if self.maximum == 0 {
            return None;
        }
        let (last, mut start) = (self.mark, self.after_mark());
        let (mut stop, mut last_pass, mut restarted) = (None, false, false);
        loop {
            for place in start..self.list.len() {
                let real = &self.list[place];
                if !real.overloaded && real.weight >= self.current {
                    self.mark = Some(real.id);
                    return Some(place);
                }
                if Some(real.id) == stop {
                    self.mark = stop;
                    return None;
                }
            }
            start = 0;
            self.current -= self.divisor;
            if self.current <= 0 {
                self.current = self.maximum;
                if last_pass || last.is_none() {
                    self.mark = None;
                    return None;
                }
                restarted = true;
            }
            last_pass = self.current <= self.divisor;
            if last_pass && restarted && last.is_some() {
                stop = last;
            }
        }
    }
}
