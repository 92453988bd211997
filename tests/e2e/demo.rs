//! `uvs demo` as a stranger runs it.

use crate::director::{PublicCopy, UVS, unprivileged};
use crate::harness::{Outcome, Tests, check};
use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use uvs_lab::{cleanup, wait};

pub(crate) const TESTS: Tests = &[
    ("it_succeeds_and_shows_what_it_should", it_succeeds),
    ("it_says_what_it_needs", it_says_what_it_needs),
    ("it_cleans_up_when_interrupted", || it_cleans_up_after(Signal::SIGINT)),
    ("it_cleans_up_when_terminated", || it_cleans_up_after(Signal::SIGTERM)),
    ("it_cleans_up_when_told_to_quit", || it_cleans_up_after(Signal::SIGQUIT)),
    ("it_cleans_up_when_its_terminal_is_closed", || it_cleans_up_after(Signal::SIGHUP)),
];

/// How long the demo may take.
const LIMIT: Duration = Duration::from_secs(10);

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
    ] {
        check(shown.contains(part), format!("{part:?} is not shown in\n{shown}"))?;
    }
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

fn it_cleans_up_after(signal: Signal) -> Outcome {
    let mut child = Command::new(UVS)
        .args(["demo", "--requests", "100000"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let pid = child.id();
    let standing = wait::until("the demo to stand", LIMIT, || namespaces_of(pid) == 4).map_err(Failed::from);
    kill(Pid::from_raw(pid.cast_signed()), signal)?;
    let status = child.wait()?;
    standing?;
    check(status.code() == Some(128 + signal as i32), format!("it ended with {status}"))?;
    check(namespaces_of(pid) == 0, "namespaces were left behind")
}
