//! Network namespaces, veth pairs and HTTP endpoints: what the demo and the end-to-end tests stand on.
//!
//! A [`Topology`] is a client, a director and real servers, each in a [`Namespace`] of its own, wired with veth pairs.
//! Everything is made through system calls and netlink, nothing in the namespace this process started in is touched, and
//! everything is removed when it is dropped, on panic, and on SIGINT and SIGTERM ([`cleanup`]).
//!
//! The endpoints check what they carry: [`http`] and [`udp`] answer with the name of the server, bodies come from one
//! deterministic [`stream`], so that a single wrong byte is found and its place told.

pub mod burst;
pub mod cleanup;
mod counters;
mod error;
pub mod http;
mod namespace;
mod netlink;
pub mod probe;
mod process;
pub mod stream;
mod topology;
pub mod udp;
pub mod wait;

pub use counters::counter;
pub use error::Error;
pub use namespace::{DIRECTORY, Namespace, has_ipv6, obstacle};
pub use netlink::{Prefix, Rtnl, Veth};
pub use process::Process;
pub use topology::{Arms, Plan, Topology};

/// What a step of building or using the lab gives.
pub type Result<T> = std::result::Result<T, Error>;
