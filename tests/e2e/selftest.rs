//! The kernel's self-test for IPVS as the shell runs it: `tests/selftest/ipvs`, with our `ipvsadm` in its path.

use crate::director::UVS;
use crate::harness::{Outcome, Tests, check, ignore};
use libtest_mimic::Failed;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) const TESTS: Tests = &[
    ("direct_routing", || run("dr", &[])),
    ("nat", || run("nat", &[])),
    ("tunnel", || run("tun", &[])),
    ("direct_routing_by_packet_sockets", || run("dr", RAW)),
    ("nat_by_packet_sockets", || run("nat", RAW)),
    ("tunnel_by_packet_sockets", || run("tun", RAW)),
];

const RAW: &[&str] = &["--io", "raw"];

/// Where it stands.
pub(crate) const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/selftest/ipvs");

/// A folder for the front of PATH: `ipvsadm` is our binary, and `modprobe` finds every module.
fn path() -> Result<PathBuf, Failed> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("selftest-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let stub = folder.join("modprobe");
    fs::write(&stub, "#!/bin/sh\nexit 0\n")?;
    fs::set_permissions(&stub, Permissions::from_mode(0o755))?;
    match symlink(UVS, folder.join("ipvsadm")) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(folder),
    }
}

fn run(mode: &str, arguments: &[&str]) -> Outcome {
    if !["/bin/busybox", "/sbin/ip"].iter().all(|program| Path::new(program).exists()) {
        return ignore("because it needs apt-get install busybox-static iproute2");
    }
    let path = format!("{}:{}", path()?.display(), std::env::var("PATH").unwrap_or_default());
    let raw = if arguments.is_empty() { "" } else { "raw" };
    let names = format!("uvs-{}-self{mode}{raw}", std::process::id());
    let output = Command::new("timeout")
        .args(["--kill-after", "10", "90", SCRIPT, mode, &names])
        .args(arguments)
        .env("PATH", path)
        .env("UVS", UVS)
        .output()?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let passed = output.status.success() && said.contains(&format!("{mode}: PASS"));
    check(passed, format!("{}\n{said}", output.status))
}
