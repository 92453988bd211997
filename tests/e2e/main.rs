//! End to end: real traffic over real veth pairs, in network namespaces these tests make and remove themselves.
//!
//! Where they cannot run (no root, no veth) they are reported as ignored with the reason; with `CI` set in the environment
//! that fails the run.

mod capture;
mod change;
mod demo;
mod director;
mod endings;
mod faults;
mod fullnat;
#[path = "../../lab/tests/harness/mod.rs"]
mod harness;
mod icmp;
mod kernel;
mod local;
mod matrix;
mod methods;
mod own;
mod persistence;
mod proc;
mod proxy;
mod raw;
mod real_server;
mod selftest;
mod settings;
mod start;
mod tell;
mod topologies;
mod traffic;
mod uml;

use std::process::ExitCode;

fn main() -> ExitCode {
    let files: &[(&str, harness::Tests)] = &[
        ("traffic", traffic::TESTS),
        ("icmp", icmp::TESTS),
        ("kernel", kernel::TESTS),
        ("raw", raw::TESTS),
        ("capture", capture::TESTS),
        ("change", change::TESTS),
        ("faults", faults::TESTS),
        ("fullnat", fullnat::TESTS),
        ("real_server", real_server::TESTS),
        ("tell", tell::TESTS),
        ("proxy", proxy::TESTS),
        ("start", start::TESTS),
        ("endings", endings::TESTS),
        ("own", own::TESTS),
        ("persistence", persistence::TESTS),
        ("local", local::TESTS),
        ("demo", demo::TESTS),
        ("settings", settings::TESTS),
        ("proc", proc::TESTS),
        ("selftest", selftest::TESTS),
        ("uml", uml::TESTS),
        ("topologies", topologies::TESTS),
    ];
    harness::run(files, matrix::tests().into_iter().chain(topologies::tests()).collect())
}
