//! `uvs demo` as a stranger runs it.

use crate::director::{PublicCopy, UVS, unprivileged};
use crate::harness::{Outcome, Tests, check};
use libtest_mimic::Failed;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use uvs::engine::link::namespace::cookie;
use uvs_lab::{cleanup, wait};

pub(crate) const TESTS: Tests = &[
    ("it_succeeds_and_shows_what_it_should", it_succeeds),
    ("one_method", one_method),
    ("it_stays_until_it_is_removed", it_stays),
    ("it_says_what_it_needs", it_says_what_it_needs),
    ("it_cleans_up_when_interrupted", || it_cleans_up_after(Signal::SIGINT, "nat", 4)),
    ("it_cleans_up_when_terminated", || it_cleans_up_after(Signal::SIGTERM, "dr", 5)),
    ("it_cleans_up_when_told_to_quit", || it_cleans_up_after(Signal::SIGQUIT, "fullnat", 6)),
    ("it_cleans_up_when_its_terminal_is_closed", || it_cleans_up_after(Signal::SIGHUP, "tun", 6)),
    ("it_restores_real_servers_when_interrupted", it_restores_real_servers),
];

/// How long the demo may take.
const LIMIT: Duration = Duration::from_secs(20);

fn namespaces_of(pid: u32) -> usize {
    cleanup::names().iter().filter(|name| name.starts_with(&format!("uvs-{pid}-"))).count()
}

fn it_succeeds() -> Outcome {
    let begin = Instant::now();
    let child = Command::new(UVS).arg("demo").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = child.id();
    let output = child.wait_with_output()?;
    let took = begin.elapsed();
    let shown = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    check(output.status.success(), format!("{}\n{shown}\n{said}", output.status))?;
    for part in [
        "client",
        "director",
        "rs1",
        "rs2",
        "666 (66.6 %)",
        "334 (33.4 %)",
        "p99",
        "IP Virtual Server version 1.2.1",
        "TCP  203.0.113.100:80",
        "every answer was right",
        // Each method with its picture, its commands and its listing.
        "NAT  the director",
        "FULLNAT  real servers anywhere",
        "DR  real servers",
        "TUN  real servers",
        "192.168.4.11:80              FullNat 2 ",
        "203.0.113.12:80              Route   1 ",
        "[2001:db8:5::12]:80          Tunnel  1 ",
        "ipvsadm -P -t 203.0.113.100:80 -z 203.0.113.1",
        "uvs real-server start --vip 203.0.113.100 --method tun",
        "│router─┤",
        "│switch─┤",
        "-s wrr --client-address proxy-v2",
        "through the director; their client is 203.0.113.200",
        "past the director; their client is 2001:db8:113::200",
    ] {
        check(shown.contains(part), format!("{part:?} is not shown in\n{shown}"))?;
    }
    check(shown.matches("✔ IPv").count() == 8 && !shown.contains('✘'), shown.clone())?;
    check(!shown.contains('\x1b'), "colours without a terminal")?;
    check(took < LIMIT, format!("it took {took:?}"))?;
    check(namespaces_of(pid) == 0, "namespaces were left behind")
}

fn it_says_what_it_needs() -> Outcome {
    let copy = PublicCopy::make("demo")?;
    let output = unprivileged(&copy, &["demo"]).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    check(output.status.code() == Some(2), format!("it ended with {}: {said}", output.status))?;
    check(said.contains("root") && said.lines().count() == 1, said)
}

fn one_method() -> Outcome {
    let output = Command::new(UVS).args(["demo", "--method", "dr", "--requests", "30"]).output()?;
    let shown = String::from_utf8_lossy(&output.stdout);
    check(output.status.success(), format!("{}\n{shown}", output.status))?;
    for (part, expected) in
        [("DR  real", true), ("20 (66.7 %)", true), ("rs1 answered 2, rs2 1", true), ("NAT", false)]
    {
        check(shown.contains(part) == expected, format!("{part:?} is shown: {}\n{shown}", !expected))?;
    }
    let output = Command::new(UVS).args(["demo", "--method", "all", "--keep"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    check(!output.status.success() && said.contains("only one method can be kept"), said)
}

/// Removes what `--keep` left standing.
struct Kept;

impl Kept {
    fn names() -> Vec<String> {
        let mut names = cleanup::names();
        names.retain(|name| name.starts_with("uvs-demo"));
        names
    }

    fn clean() -> std::io::Result<std::process::Output> {
        Command::new(UVS).args(["demo", "--clean"]).output()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _told_by_the_test = Kept::clean();
    }
}

/// `--keep` and `--clean`: what was shown goes on working until it is removed.
fn it_stays() -> Outcome {
    check(Kept::names().is_empty(), "a demo is standing already: remove it with `uvs demo --clean`")?;
    let _kept = Kept;
    let output = Command::new(UVS).args(["demo", "--keep", "--requests", "30"]).output()?;
    let shown = String::from_utf8_lossy(&output.stdout);
    check(output.status.success(), format!("{}\n{shown}", output.status))?;
    for part in ["things to try", "ipvsadm -Ln", "demo --clean"] {
        check(shown.contains(part), format!("{part:?} is not shown in\n{shown}"))?;
    }
    let director = Kept::names().into_iter().find(|name| name.ends_with("-director"));
    let director = director.ok_or_else(|| format!("no director among {:?}", Kept::names()))?;
    let listing = inside(&Path::new(uvs_lab::DIRECTORY).join(&director), || {
        Command::new(UVS).args(["ipvsadm", "-Ln"]).output()
    })??;
    let listed = String::from_utf8_lossy(&listing.stdout);
    check(listed.matches("Masq").count() == 4, format!("it lists\n{listed}"))?;
    let again = Command::new(UVS).args(["demo", "--keep"]).output()?;
    let said = String::from_utf8_lossy(&again.stderr);
    check(!again.status.success() && said.contains("demo --clean"), format!("a second one: {said}"))?;
    let cleaned = Kept::clean()?;
    check(cleaned.status.success() && Kept::names().is_empty(), format!("left: {:?}", Kept::names()))
}

/// Does something in the network namespace that this file stands for.
fn inside<T: Send + 'static>(path: &Path, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failed> {
    let file = std::fs::File::open(path)?;
    let thread = std::thread::spawn(move || setns(&file, CloneFlags::CLONE_NEWNET).map(|()| work()));
    Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)
}

/// Starts a demo that does not end by itself, and waits until so many namespaces of it stand.
fn endless(method: &str, namespaces: usize) -> Result<Child, Failed> {
    let child = Command::new(UVS)
        .args(["demo", "--requests", "100000", "--method", method])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    wait::until("the demo to stand", LIMIT, || namespaces_of(child.id()) == namespaces)?;
    Ok(child)
}

fn it_cleans_up_after(signal: Signal, method: &str, namespaces: usize) -> Outcome {
    let mut child = endless(method, namespaces)?;
    kill(Pid::from_raw(child.id().cast_signed()), signal)?;
    let status = child.wait()?;
    check(status.code() == Some(128 + signal as i32), format!("it ended with {status}"))?;
    check(namespaces_of(child.id()) == 0, "namespaces were left behind")
}

/// A network namespace: its inode, which processes there have, and its cookie, which notes about it have.
#[derive(Clone, Copy)]
struct Place {
    inode: u64,
    cookie: u64,
}

impl Place {
    fn of(path: &Path) -> Result<Self, Failed> {
        let file = std::fs::File::open(path)?;
        let inode = file.metadata()?.ino();
        let inside = std::thread::spawn(move || -> std::io::Result<u64> {
            setns(&file, CloneFlags::CLONE_NEWNET)?;
            cookie()
        });
        Ok(Place { inode, cookie: inside.join().map_err(|_| "nobody came back")?? })
    }
}

/// The notes about real servers in these namespaces, and the processes there.
fn left_on_real_servers(namespaces: &[Place]) -> Result<Vec<String>, Failed> {
    let notes = std::fs::read_dir("/run/uvs/real-server").into_iter().flatten().flatten();
    let notes = notes
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| namespaces.iter().any(|place| name.starts_with(&format!("{}-", place.cookie))));
    let processes = std::fs::read_dir("/proc")?.flatten().filter(|entry| {
        let namespace = std::fs::metadata(entry.path().join("ns/net"));
        namespace.is_ok_and(|namespace| namespaces.iter().any(|place| place.inode == namespace.ino()))
    });
    let commands =
        processes.map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default());
    Ok(notes.chain(commands).collect())
}

fn it_restores_real_servers() -> Outcome {
    let mut child = endless("tun", 6)?;
    let place = |server| Place::of(&Path::new("/run/netns").join(format!("uvs-{}-0-rs{server}", child.id())));
    let namespaces = [place(1)?, place(2)?];
    wait::until("the real servers to be set up", LIMIT, || {
        left_on_real_servers(&namespaces).is_ok_and(|left| left.len() >= 4)
    })?;
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT)?;
    let status = child.wait()?;
    check(status.code() == Some(130), format!("it ended with {status}"))?;
    // What was killed may be on its way out.
    let gone = wait::until("what ran there to be gone", LIMIT, || {
        left_on_real_servers(&namespaces).is_ok_and(|left| left.is_empty())
    });
    gone.map_err(|error| format!("{error}: {:?}", left_on_real_servers(&namespaces).ok()))?;
    check(namespaces_of(child.id()) == 0, "namespaces were left behind")
}
