//! ipvsadm's command lines as a real kernel 6.1 and ipvsadm 1.31 answered them, against our binary and our registry.
//!
//! The files under `tests/golden/cli` hold, for each command, standard output, standard error and exit status. Each is run
//! twice: with a registry that honours all of IPVS, where everything that is a matter of command line, rules and listings
//! must be the same byte for byte; and with what today's data plane honours, where the rest must be refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use uvs_control::api::{Request, Timeouts};
use uvs_control::options::SocketPlace;
use uvs_control::registry::{Features, NoPlane, Registry};
use uvs_control::socket::Server;

#[derive(Deserialize)]
struct Recording {
    records: Vec<Record>,
}

#[derive(Deserialize)]
struct Record {
    cmd: String,
    rc: i32,
    out: String,
    err: String,
    stdin: Option<String>,
}

/// What was not the same, by file and number of the record, and how.
type Differences = BTreeMap<String, String>;

/// A director without packets, and a directory where `ipvsadm` is our binary.
struct Bench {
    directory: PathBuf,
    _server: Server,
}

impl Bench {
    fn new(name: &str, plane: NoPlane) -> Self {
        let directory = std::env::temp_dir().join(format!("uvs-cli-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        symlink(env!("CARGO_BIN_EXE_uvs"), directory.join("ipvsadm")).unwrap();
        let registry = Mutex::new(Registry::new(plane, Timeouts::default()));
        let handle = move |request: Request| registry.lock().unwrap().handle(request);
        let place = SocketPlace::Path(directory.join("socket"));
        let server = Server::start(&place, Arc::new(handle)).unwrap();
        Bench { directory, _server: server }
    }

    /// Runs a command line as the recording's shell did.
    fn run(&self, command: &str, input: &str) -> (i32, String, String) {
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.directory.display());
        let mut child = Command::new("/bin/sh")
            .args(["-c", command])
            .env("PATH", path)
            .env("UVS_SOCKET", self.directory.join("socket"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that reads nothing may be gone before it is written to.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Runs recordings one after the other on one table; the number of commands run, and what was different.
fn replay(bench: &Bench, files: &[&str]) -> (usize, Differences) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cli");
    let mut run = 0;
    let mut differences = Differences::new();
    for file in files {
        let text = std::fs::read_to_string(directory.join(format!("{file}.json"))).unwrap();
        let recording: Recording = serde_json::from_str(&text).unwrap();
        for (number, record) in recording.records.iter().enumerate() {
            if !record.cmd.starts_with("ipvsadm") {
                continue;
            }
            run += 1;
            let want = (record.rc, record.out.clone(), record.err.clone());
            let got = bench.run(&record.cmd, record.stdin.as_deref().unwrap_or_default());
            if got != want {
                let name = format!("{file}#{number} {}", record.cmd);
                differences.insert(name, format!("want {want:?}\n got {got:?}"));
            }
        }
    }
    (run, differences)
}

const SESSIONS: [&[&str]; 3] = [&["empty"], &["build", "rich", "saverestore"], &["errors"]];

fn replay_all(name: &str, features: Features, schedulers: &[&str], engines: &[&str]) -> (usize, Differences) {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let plane = NoPlane { features, schedulers: owned(schedulers), engines: owned(engines) };
    let mut all = (0, Differences::new());
    for (number, files) in SESSIONS.iter().enumerate() {
        let (run, differences) = replay(&Bench::new(&format!("{name}{number}"), plane.clone()), files);
        all.0 += run;
        all.1.extend(differences);
    }
    all
}

/// What is not answered as IPVS answers it whatever the data plane can do, and why.
const NOT_YET: [(&str, &str); 1] =
    [("errors#82 ipvsadm --start-daemon master", "connections are not synchronised, so no daemon starts")];

#[test]
fn all_of_ipvsadm_is_the_same_byte_for_byte() {
    const SCHEDULERS: [&str; 14] =
        ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "twos"];
    let (run, mut differences) = replay_all("all", Features::ALL, &SCHEDULERS, &["sip"]);
    for (name, reason) in NOT_YET {
        assert!(differences.remove(name).is_some(), "{name} is the same now: it was not because {reason}");
    }
    println!("{run} commands run, {} not yet the same", NOT_YET.len());
    for (name, difference) in &differences {
        eprintln!("{name}\n{difference}\n");
    }
    assert!(differences.is_empty(), "{} of {run} differ", differences.len());
    assert_eq!(run, 231, "recordings were lost");
}
