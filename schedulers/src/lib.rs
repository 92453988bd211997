//! Connection schedulers: which real server takes the next connection.
//!
//! A [`Balancer`] holds one virtual service's real servers (its [`Pool`]) and the [`Scheduler`] that chooses among them.
//! Every choice is the one that Linux IPVS makes for the same history (list order, ties, weight 0, thresholds), at a cost
//! of O(log n) where the kernel walks a list. This crate knows destinations and their load; it knows neither packets nor
//! the connection table.
//!
//! ```
//! use uvs_schedulers::{Balancer, Destination, Registry, Request};
//!
//! let mut service = Balancer::new(Registry::default().make("rr")?);
//! let first = service.add(Destination::new("10.2.0.1:80".parse()?, 1))?;
//! let second = service.add(Destination::new("10.2.0.2:80".parse()?, 1))?;
//!
//! // The newest real server stands at the head of the list, so it is chosen first.
//! let request = Request::new("10.1.0.1:1024".parse()?, "10.0.0.1:80".parse()?);
//! let chosen = service.choose(&request);
//! assert_eq!(chosen, Some(second));
//! service.bind(second, true);
//! assert_eq!(service.choose(&request), Some(first));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! To add a scheduler: one file with an implementation of [`Scheduler`], one line in `registry.rs`. To add one from
//! another crate: [`Registry::register`], or [`offer`] for a director of your own.

mod balancer;
mod cache;
mod chbl;
mod dh;
mod draw;
mod fo;
mod hash;
mod lblc;
mod lblcr;
mod lc;
mod least;
mod locality;
mod mh;
mod none;
mod nq;
mod ovf;
mod p2c;
mod pool;
mod registry;
mod rr;
mod scheduler;
mod sed;
mod sh;
mod tree;
mod twos;
mod wlc;
mod wrr;

pub use balancer::Balancer;
pub use pool::{Destination, MAX_DESTINATIONS, Pool, PoolError, Removed, Slot};
pub use registry::{Registry, RegistryError, by_name, offer};
pub use scheduler::{MH_TABLE_SIZES, Options, Request, Scheduler, State, flags};
