//! AF_XDP: rings of descriptors shared with the kernel, on nothing but `libc`.
//!
//! [`Socket`] is one queue of one device. Its four rings carry addresses of chunks of the worker's
//! [`Region`](super::Region): fill (ours to receive into), receive, transmit, completion (sent, ours again).

mod ring;
mod socket;
mod sys;

pub use socket::{Options, Probe, Socket};
pub use sys::Statistics;
