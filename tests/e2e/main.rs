//! End to end: real traffic over real veth pairs, in network namespaces these tests make and remove themselves.
//!
//! Where they cannot run (no root, no veth) they are reported as ignored with the reason; with `CI` set in the environment
//! that fails the run.

#[path = "../../lab/tests/harness/mod.rs"]
mod harness;

use std::process::ExitCode;

fn main() -> ExitCode {
    harness::run(&[])
}
