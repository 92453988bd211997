//! What the tests of the link stand on: network namespaces of their own, a program that redirects everything, and a
//! forwarder.
#![allow(unsafe_code)] // bpf(2)

pub(crate) mod forwarder;
pub(crate) mod namespace;
pub(crate) mod redirect;

use std::time::{Duration, Instant};

/// Waits until `condition` holds; fails when it does not within ten seconds.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
