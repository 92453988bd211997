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
/// What needs all of IPVS to be told anything by.
const MORE_SESSIONS: [&[&str]; 2] = [&["restore"], &["mixed"]];

fn replay_all(
    name: &str,
    sessions: &[&[&str]],
    features: Features,
    schedulers: &[&str],
    engines: &[&str],
) -> (usize, Differences) {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let plane = NoPlane { features, schedulers: owned(schedulers), engines: owned(engines) };
    let mut all = (0, Differences::new());
    for (number, files) in sessions.iter().enumerate() {
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
    const SCHEDULERS: [&str; 15] = [
        "rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "twos", "none",
    ];
    let (run, mut differences) =
        replay_all("all", &[&SESSIONS[..], &MORE_SESSIONS].concat(), Features::ALL, &SCHEDULERS, &["sip"]);
    for (name, reason) in NOT_YET {
        assert!(differences.remove(name).is_some(), "{name} is the same now: it was not because {reason}");
    }
    println!("{run} commands run, {} not yet the same", NOT_YET.len());
    for (name, difference) in &differences {
        eprintln!("{name}\n{difference}\n");
    }
    assert!(differences.is_empty(), "{} of {run} differ", differences.len());
    assert_eq!(run, 1002, "recordings were lost");
}

/// The blocks of `/proc/net/ip_vs`, sorted: the heading, and each service with its real servers. The kernel's order depends on
/// where its memory is.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    for line in text.split_inclusive('\n') {
        match blocks.last_mut() {
            Some(block) if line.starts_with("  ->") => block.push_str(line),
            _ => blocks.push(line.to_owned()),
        }
    }
    blocks.sort();
    blocks
}

#[test]
fn services_are_in_proc_as_the_kernel_shows_them() {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let schedulers = owned(&["rr", "wrr", "wlc", "sh", "mh"]);
    let bench = Bench::new("proc", NoPlane { features: Features::ALL, schedulers, engines: owned(&["sip"]) });
    for command in include_str!("golden/proc/ip_vs.commands").lines() {
        assert_eq!(bench.run(command, ""), (0, String::new(), String::new()), "{command}");
    }
    symlink(env!("CARGO_BIN_EXE_uvs"), bench.directory.join("uvs")).unwrap();
    let (code, listed, errors) = bench.run("uvs proc ip_vs", "");
    assert_eq!((code, errors.as_str()), (0, ""));
    assert_eq!(blocks(&listed), blocks(include_str!("golden/proc/ip_vs.txt")));
    let (_, helpers, _) = bench.run("uvs proc ip_vs_app", "");
    assert_eq!(helpers, "prot port    usecnt name\n");
    let (_, sums, _) = bench.run("uvs proc ip_vs_stats", "");
    assert_eq!(sums.lines().nth(2), Some("       0        0        0                0                0"));
    let (code, _, errors) = bench.run("uvs proc ip_vs_nothing", "");
    assert!(code == 2 && errors.contains("ip_vs_conn_sync"), "{errors}");
}

/// What the data plane does not honour yet, and what depends on it: `file#number command`, a tab, the reason.
const LATER: &str = include_str!("golden/cli/later.txt");

#[test]
fn what_is_not_forwarded_yet_is_refused_and_the_rest_is_the_same() {
    let schedulers = uvs_schedulers::Registry::default();
    let schedulers: Vec<_> = schedulers.names().collect();
    let (run, differences) = replay_all("today", &SESSIONS, Features::HONOURED, &schedulers, &[]);
    let later: BTreeMap<&str, &str> = LATER.lines().filter_map(|line| line.split_once('\t')).collect();
    println!("{run} commands run, {} the same, {} for later", run - differences.len(), later.len());
    let new: Vec<_> = differences.iter().filter(|(name, _)| !later.contains_key(name.as_str())).collect();
    assert!(new.is_empty(), "these differ for no known reason: {new:#?}");
    let same: Vec<_> = later.keys().filter(|name| !differences.contains_key(**name)).collect();
    assert!(same.is_empty(), "these are the same now and no longer for later: {same:#?}");
}

/// Runs our binary under its own name, without a director.
fn uvs(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_uvs"))
        .args(arguments)
        .env("UVS_SOCKET", "/nonexistent/uvs.sock")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[test]
fn without_a_director_one_sentence_says_what_to_do() {
    let nobody = "no director answers at /nonexistent/uvs.sock: start one with `uvs run --interface NAME`\n";
    for (arguments, status, said) in [
        (&["ipvsadm"][..], 2, format!("Can't initialize ipvs: {nobody}")),
        (&["ipvsadm", "-Ln"], 2, format!("Can't initialize ipvs: {nobody}")),
        (&["ipvsadm", "-A", "-t", "nonsense"], 2, format!("Can't initialize ipvs: {nobody}")),
        (&["status"], 2, format!("uvs status: {nobody}")),
        (&["status", "--json"], 2, format!("uvs status: {nobody}")),
        (&["status", "--socket", "/nonexistent/uvs.sock"], 2, format!("uvs status: {nobody}")),
        (&["ipvsadm", "-v"], 0, String::new()),
        (&["ipvsadm", "--help"], 0, String::new()),
    ] {
        let (code, _, errors) = uvs(arguments);
        assert_eq!((code, errors), (status, said), "{arguments:?}");
    }
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    for (arguments, word) in [
        (&["bogus"][..], "bogus"),
        (&["run", "--io", "carrier-pigeon"], "carrier-pigeon"),
        (&["run", "--workers", "2", "--cores", "0"], "--cores"),
        (&["run", "--cores", "3-1"], "3-1"),
        (&["guard"], "off"),
        (&["check"], "FILE"),
        (&["check", "/nonexistent/uvs.toml"], "/nonexistent/uvs.toml:1:1: cannot be read"),
    ] {
        let (code, _, errors) = uvs(arguments);
        assert!(code == 2 && errors.contains(word), "{arguments:?} ended with {code}: {errors}");
    }
}

#[test]
fn the_example_passes_the_check() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/uvs.toml");
    let (code, said, errors) = uvs(&["check", example]);
    assert_eq!((code, errors.as_str()), (0, ""));
    assert_eq!(said, format!("{example}: 6 services, 7 real servers, nothing wrong\n"));
}

#[test]
fn listings_as_json_have_every_key() {
    let plane =
        NoPlane { features: Features::ALL, schedulers: vec!["sh".into(), "mh".into()], engines: vec![] };
    let bench = Bench::new("json", plane);
    for line in [
        "ipvsadm -A -t 10.0.0.1:80 -s sh -b sh-port -p 60 -M 255.255.255.0 --mss 1400 --refuse reset --state-timeouts syn_recv=9,established=3600",
        "ipvsadm -a -t 10.0.0.1:80 -r 10.0.0.2:8080 -m -w 3 -x 20 -y 10",
        "ipvsadm -P -t 10.0.0.1:80 -z 10.0.0.9",
        "ipvsadm -A -f 7 -6 -s mh --table-size 251",
        "ipvsadm -a -f 7 -6 -r 10.0.0.2 -i --tun-type gue --tun-port 6080 --tun-csum",
    ] {
        assert_eq!(bench.run(line, ""), (0, String::new(), String::new()), "{line}");
    }
    let zero = r#"{"connections":0,"in_packets":0,"out_packets":0,"in_bytes":0,"out_bytes":0}"#;
    let server = |address: &str| {
        format!(
            r#""active_connections":0,"inactive_connections":0,"persistent_connections":0,"counters":{zero},"rates":{zero},{address}"#
        )
    };
    let terms = |mss: &str, refuse: &str, timeouts: &str| {
        let toa = r#"{"kind":254,"kind_ipv6":254,"on_syn":true}"#;
        format!(r#""client_address":null,"toa":{toa},"mss":{mss},"refuse":"{refuse}","timeouts":{timeouts}"#)
    };
    let expected = format!(
        r#"{{"services":[
            {{"protocol":"tcp","address":"10.0.0.1","port":80,"fwmark":null,"family":"ipv4","scheduler":"sh",
              "flags":["sh-port"],"table_size":null,"half_life":null,"load_bound":null,"persistent":60,"netmask":"255.255.255.0","persistence_engine":null,"one_packet":false,{},
              "counters":{zero},"rates":{zero},"servers":[{{{},"port":8080,"method":"masquerading","tunnel":null,
              "weight":3,"upper_threshold":20,"lower_threshold":10}}],
              "local_addresses":[{{"address":"10.0.0.9","leaving":false,"port_conflicts":0,"connections":0}}]}},
            {{"protocol":null,"address":null,"port":null,"fwmark":7,"family":"ipv6","scheduler":"mh",
              "flags":[],"table_size":251,"half_life":null,"load_bound":null,"persistent":null,"netmask":"128","persistence_engine":null,"one_packet":false,{},
              "counters":{zero},"rates":{zero},"servers":[{{{},"port":0,"method":"tunnel",
              "tunnel":{{"type":"gue","port":6080,"checksum":"full"}},"weight":1,"upper_threshold":0,
              "lower_threshold":0}}],"local_addresses":[]}}]}}"#,
        terms("1400", "reset", r#"{"established":3600,"syn_recv":9}"#),
        server(r#""address":"10.0.0.2""#),
        terms("null", "icmp", "{}"),
        server(r#""address":"10.0.0.2""#)
    );
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let (code, listed, _) = bench.run("ipvsadm -L --json", "");
    assert_eq!(code, 0);
    assert_eq!(json(&listed), json(&expected));
    let timeouts = bench.run("ipvsadm -L --timeout --json", "").1;
    assert_eq!(json(&timeouts), json(r#"{"tcp":900,"tcp_fin":120,"udp":300}"#));
    assert_eq!(json(&bench.run("ipvsadm -L -c --json", "").1), json(r#"{"connections":[]}"#));
}
