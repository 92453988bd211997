//! What the director learns from the kernel and asks of it, in network namespaces of the tests' own.

#![allow(clippy::unwrap_used)]

mod director;
mod monitor;
mod neighbours;
mod routes;
mod support;
mod vips;
