//! Schedulers by name.

use crate::chbl::BoundedLoads;
use crate::dh::DestinationHashing;
use crate::fo::FailOver;
use crate::lblc::LocalityBased;
use crate::lblcr::Replicating;
use crate::lc::LeastConnection;
use crate::mh::MaglevHashing;
use crate::none::Nobody;
use crate::nq::NeverQueue;
use crate::ovf::Overflow;
use crate::p2c::DecayingChoices;
use crate::rr::RoundRobin;
use crate::scheduler::Scheduler;
use crate::sed::ShortestExpectedDelay;
use crate::sh::SourceHashing;
use crate::twos::TwoChoices;
use crate::wlc::WeightedLeastConnection;
use crate::wrr::WeightedRoundRobin;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;

/// The schedulers of this crate, one line each.
const BUILT_IN: &[(&str, Make)] = &[
    ("chbl", make::<BoundedLoads>),
    ("dh", make::<DestinationHashing>),
    ("fo", make::<FailOver>),
    ("lblc", make::<LocalityBased>),
    ("lblcr", make::<Replicating>),
    ("lc", make::<LeastConnection>),
    ("mh", make::<MaglevHashing>),
    ("none", make::<Nobody>),
    ("nq", make::<NeverQueue>),
    ("ovf", make::<Overflow>),
    ("p2c", make::<DecayingChoices>),
    ("rr", make::<RoundRobin>),
    ("sed", make::<ShortestExpectedDelay>),
    ("sh", make::<SourceHashing>),
    ("twos", make::<TwoChoices>),
    ("wlc", make::<WeightedLeastConnection>),
    ("wrr", make::<WeightedRoundRobin>),
];

type Make = fn() -> Box<dyn Scheduler>;

fn make<S: Scheduler + Default + 'static>() -> Box<dyn Scheduler> {
    Box::new(S::default())
}

/// Makes a scheduler of this crate, for one service. `None` when no scheduler has that name.
pub fn by_name(name: &str) -> Option<Box<dyn Scheduler>> {
    let (_, make) = BUILT_IN.iter().find(|(known, _)| *known == name)?;
    Some(make())
}

/// Why a registry refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RegistryError {
    /// No scheduler has this name.
    #[error("no scheduler is called `{name}`: choose one of {known}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The name is in use.
    #[error("a scheduler called `{0}` is there already: register this one under another name")]
    Taken(String),
}

type Factory = Arc<dyn Fn() -> Box<dyn Scheduler> + Send + Sync>;

/// What was offered by name.
static OFFERED: Mutex<Vec<(String, Factory)>> = Mutex::new(Vec::new());

/// Has every registry of this process that is made from now on know a scheduler under a name: what configuration files and
/// `ipvsadm -s` may say then. To be called before the director starts.
///
/// # Errors
/// When the name is taken.
pub fn offer<F>(name: &str, make: F) -> Result<(), RegistryError>
where
    F: Fn() -> Box<dyn Scheduler> + Send + Sync + 'static,
{
    let mut offered = OFFERED.lock().unwrap_or_else(PoisonError::into_inner);
    if by_name(name).is_some() || offered.iter().any(|(taken, _)| taken == name) {
        return Err(RegistryError::Taken(name.to_owned()));
    }
    offered.push((name.to_owned(), Arc::new(make)));
    Ok(())
}

/// The schedulers a director offers: those of this crate and any that a user adds.
///
/// A scheduler of your own needs no more than a choice; it may walk the pool:
///
/// ```
/// use uvs_schedulers::{Balancer, Destination, Pool, Registry, Request, Scheduler, Slot};
///
/// /// The real server with the fewest connections per core, where the weight tells the cores; the first of equals.
/// #[derive(Debug)]
/// struct FewestPerCore;
///
/// impl Scheduler for FewestPerCore {
///     fn choose(&mut self, pool: &Pool, _request: &Request) -> Option<Slot> {
///         let usable = pool.iter().filter(|(_, destination)| destination.usable());
///         let fewest = usable.min_by_key(|(_, destination)| destination.total() / destination.weight);
///         fewest.map(|(slot, _)| slot)
///     }
/// }
///
/// let mut registry = Registry::default();
/// registry.register("fewest-per-core", || Box::new(FewestPerCore))?;
///
/// let mut service = Balancer::new(registry.make("fewest-per-core")?);
/// let small = service.add(Destination::new("10.2.0.1:80".parse()?, 1))?;
/// let large = service.add(Destination::new("10.2.0.2:80".parse()?, 8))?;
/// let request = Request::new("10.1.0.1:1024".parse()?, "10.0.0.1:80".parse()?);
/// for _ in 0..9 {
///     let slot = service.choose(&request).ok_or("no real server")?;
///     service.bind(slot, true);
/// }
/// assert_eq!(service.pool().get(large).map(Destination::total), Some(8));
/// assert_eq!(service.pool().get(small).map(Destination::total), Some(1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Registry {
    factories: BTreeMap<String, Factory>,
}

impl Default for Registry {
    /// The schedulers of this crate and those that were [offered](offer).
    fn default() -> Self {
        let built_in = BUILT_IN.iter().map(|&(name, make)| (name.to_owned(), Arc::new(make) as Factory));
        let offered = OFFERED.lock().unwrap_or_else(PoisonError::into_inner);
        Registry { factories: built_in.chain(offered.iter().cloned()).collect() }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

impl Registry {
    /// Adds a scheduler under a name that services can then ask for.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn register<F>(&mut self, name: &str, make: F) -> Result<(), RegistryError>
    where
        F: Fn() -> Box<dyn Scheduler> + Send + Sync + 'static,
    {
        if self.factories.contains_key(name) {
            return Err(RegistryError::Taken(name.to_owned()));
        }
        self.factories.insert(name.to_owned(), Arc::new(make));
        Ok(())
    }

    /// Makes a scheduler for one service.
    ///
    /// # Errors
    /// When no scheduler has that name.
    pub fn make(&self, name: &str) -> Result<Box<dyn Scheduler>, RegistryError> {
        let factory = self.factories.get(name).ok_or_else(|| RegistryError::Unknown {
            name: name.to_owned(),
            known: self.names().collect::<Vec<_>>().join(", "),
        })?;
        Ok(factory())
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.factories.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let mut registry = Registry::default();
        for (name, _) in BUILT_IN {
            assert!(by_name(name).is_some() && registry.make(name).is_ok(), "{name}");
        }
        assert!(by_name("nosuch").is_none());
        assert_eq!(
            registry.make("nosuch").unwrap_err().to_string(),
            "no scheduler is called `nosuch`: choose one of chbl, dh, fo, lblc, lblcr, lc, mh, none, nq, ovf, p2c, rr, sed, \
             sh, twos, wlc, wrr"
        );
        assert_eq!(registry.register("rr", make::<RoundRobin>), Err(RegistryError::Taken("rr".to_owned())));
        assert_eq!(registry.register("mine", make::<RoundRobin>), Ok(()));
        assert_eq!(registry.names().count(), BUILT_IN.len() + 1);
        assert!(registry.names().is_sorted() && registry.names().any(|name| name == "mine"));
    }
}
