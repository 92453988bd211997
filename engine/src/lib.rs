//! The data plane: frames in, frames out.
//!
//! A frame's way: a [`link`] hands a batch to the [`worker`], the [`pipeline`] gives each frame a [`Verdict`], the worker
//! carries the verdicts out. `unsafe` is found in `link` and `steer` only; everything that looks at packets is safe code.

pub mod batch;
pub mod capture;
mod chunked;
pub mod counters;
pub mod forward;
pub mod link;
pub mod mtu;
pub mod nexthop;
pub mod packet;
pub mod pipeline;
pub mod plan;
pub mod service;
pub mod snapshot;
pub mod steer;
pub mod verdict;
pub mod worker;

pub use batch::{BATCH, Packet, PortId};
pub use snapshot::{Config, Follower, Snapshot};
pub use verdict::{Reason, Verdict};
