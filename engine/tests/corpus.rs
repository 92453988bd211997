//! What the fuzzers found worth keeping, run by the functions that they run.

#![allow(unreachable_pub, reason = "modules of another crate too")]
#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

#[path = "../../fuzz/src/captures.rs"]
mod captures;
mod director;
#[path = "../../fuzz/src/pipeline/mod.rs"]
mod pipeline;

use std::path::Path;

/// Runs each file of the corpus of a target, and names the one at which it fails.
fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{}: no files", folder.display());
    for file in files {
        let data = std::fs::read(&file).unwrap();
        assert!(std::panic::catch_unwind(|| run(&data)).is_ok(), "{}", file.display());
    }
}

#[test]
fn pipeline() {
    replay("pipeline", pipeline::run);
}

#[test]
fn captures() {
    replay("pcap", captures::run);
}
