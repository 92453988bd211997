//! A kernel that has IPVS and the decapsulator of `ipip`, run as an ordinary process (user-mode Linux, `tests/uml/run`): what it does
//! with packets, we do; what we send through a tunnel, it takes off.

use crate::director::UVS;
use crate::harness::{Outcome, Tests, check, ignore};
use crate::selftest;
use libtest_mimic::Failed;
use std::fs::{self, File};
use std::io::BufReader;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use uvs::control::settings::{Honoured, Setting};
use uvs::engine::link::pcap::Reader;

pub(crate) const TESTS: Tests = &[
    ("the_self_test_by_the_kernel", || in_guest(self_test_by_the_kernel)),
    ("the_kernels_settings_are_ours", || in_guest(settings)),
    ("the_self_test_by_packet_sockets", || in_guest(self_test_by_us)),
    ("real_servers_that_are_the_director", || in_guest(local_real_servers)),
    ("nat_by_rr", || in_guest(|guest| the_same_frames(guest, "rr", "-m"))),
    ("nat_by_wrr", || in_guest(|guest| the_same_frames(guest, "wrr", "-m"))),
    ("nat_by_lc", || in_guest(|guest| the_same_frames(guest, "lc", "-m"))),
    ("nat_by_wlc", || in_guest(|guest| the_same_frames(guest, "wlc", "-m"))),
    ("direct_routing_by_wrr", || in_guest(|guest| the_same_frames(guest, "wrr", "-g"))),
];

const RUNNER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/uml/run");
const LOCAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/uml/local");
const OBSERVE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/uml/observe");

/// The director's devices in `observe`, with their link-layer addresses.
const DEVICES: [(&str, [u8; 6]); 3] =
    [("dc", [2, 0, 0, 0, 0, 1]), ("dr1", [2, 0, 0, 0, 0, 0x11]), ("dr2", [2, 0, 0, 0, 0, 0x12])];

/// The other kernel, and the folder it shares with us.
struct Guest {
    folder: PathBuf,
}

/// Runs a test if there is such a kernel here and what its scripts need.
fn in_guest(test: impl FnOnce(&Guest) -> Outcome) -> Outcome {
    let needed = ["/usr/bin/linux.uml", "/bin/busybox", "/sbin/ipvsadm", "/sbin/ethtool", "/usr/bin/tcpdump"];
    if !needed.iter().all(|program| Path::new(program).exists()) {
        return ignore(
            "because it needs apt-get install user-mode-linux busybox-static ipvsadm ethtool tcpdump iproute2",
        );
    }
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("uml-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder)?;
    let guest = Guest { folder };
    test(&guest)
}

impl Guest {
    /// Runs a command there, which must succeed; what it prints.
    fn run(&self, words: &[&str]) -> Result<String, Failed> {
        let output = Command::new(RUNNER).arg(&self.folder).args(words).output()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        check(output.status.success(), format!("{}: {}\n{said}", words.join(" "), output.status))?;
        Ok(said)
    }

    /// The frames of a capture in the folder.
    fn frames(&self, name: &str) -> Result<Vec<Vec<u8>>, Failed> {
        let reader = Reader::new(BufReader::new(File::open(self.folder.join(name))?))?;
        Ok(reader.map(|record| record.map(|record| record.bytes)).collect::<Result<_, _>>()?)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _was_never_made = fs::remove_dir_all(&self.folder);
    }
}

/// Our settings have the kernel's defaults and take what it takes; those that mean nothing here are there, too.
fn settings(guest: &Guest) -> Outcome {
    const VALUES: [i32; 7] = [i32::MIN, -1, 0, 1, 3, 4, i32::MAX];
    let names: Vec<_> = Setting::ALL.iter().map(|setting| setting.name()).collect();
    let values = VALUES.map(|value| value.to_string());
    let script = format!(
        "modprobe ip_vs; cd /proc/sys/net/ipv4/vs; for key in {}; do echo $key = $(cat $key); for value in {}; do \
         if (echo $value >$key) 2>/dev/null; then echo $key takes $value; fi; done; done",
        names.join(" "),
        values.join(" ")
    );
    let said = guest.run(&["sh", "-c", &script])?;
    // The kernel says goodbye, too.
    let answers = said.lines().filter(|line| line.contains(" = ") || line.contains(" takes "));
    let answers: String = answers.map(|line| format!("{line}\n")).collect();
    let mut expected = String::new();
    for setting in Setting::ALL {
        let name = setting.name();
        let is_fixed = matches!(setting.honoured(), Honoured::Always(_));
        // What this one would have the kernel do is as it is here, always.
        let usual = if *setting == Setting::IgnoreTunneled { 0 } else { setting.default_value() };
        expected.push_str(&format!("{name} = {usual}\n"));
        for value in VALUES.iter().filter(|value| is_fixed || setting.fault(**value).is_none()) {
            expected.push_str(&format!("{name} takes {value}\n"));
        }
    }
    check(answers == expected, format!("the kernel said\n{said}expected was\n{expected}"))
}

/// Whether the script tests what the kernel's does.
fn self_test_by_the_kernel(guest: &Guest) -> Outcome {
    let all =
        format!("modprobe ipip; for mode in dr nat tun; do {} $mode self || exit 1; done", selftest::SCRIPT);
    guest.run(&["bash", "-c", &all]).map(drop)
}

/// We direct, by packet sockets, for there is no AF_XDP; the real server's tunnel is the kernel's.
fn self_test_by_us(guest: &Guest) -> Outcome {
    symlink(UVS, guest.folder.join("ipvsadm"))?;
    let all = format!(
        "modprobe -a ipip tun; export PATH=/out:$PATH UVS={UVS}
        for mode in tun dr nat; do {} $mode self --io raw || exit 1; done",
        selftest::SCRIPT
    );
    guest.run(&["bash", "-c", &all]).map(drop)
}

/// Neither lists real servers that are the director itself as anything but what they were added as.
fn local_real_servers(guest: &Guest) -> Outcome {
    symlink(UVS, guest.folder.join("ipvsadm"))?;
    let kernels = guest.run(&[LOCAL])?;
    let ours = guest.run(&["bash", "-c", &format!("modprobe tun; PATH=/out:$PATH UVS={UVS} {LOCAL}")])?;
    check(ours == kernels, format!("the kernel's ipvsadm said\n{kernels}and ours\n{ours}"))?;
    let methods = ["Masq", "Route", "Tunnel", "Local"].map(|name| ours.matches(&format!(" {name} ")).count());
    check(methods == [3, 3, 3, 0], ours)
}

/// What our director makes of the frames that the kernel's got: what that made of them. In which order does not count: the
/// kernel had to ask for its neighbours first.
fn the_same_frames(guest: &Guest, scheduler: &str, method: &str) -> Outcome {
    guest.run(&["bash", OBSERVE, scheduler, method])?;
    fs::write(guest.folder.join("uvs.toml"), configuration(scheduler, method))?;
    let inputs = DEVICES.iter().flat_map(|(device, _)| ["--in".into(), format!("{device}.pcap")]);
    let output = Command::new(UVS)
        .args(["replay", "--config", "uvs.toml", "--out", "sent.pcap"])
        .args(inputs)
        .current_dir(&guest.folder)
        .output()?;
    check(output.status.success(), String::from_utf8_lossy(&output.stderr))?;
    let mut kernels = Vec::new();
    for (device, mac) in DEVICES {
        let frames = guest.frames(&format!("{device}.pcap"))?;
        kernels.extend(frames.into_iter().filter(|frame| frame[6..12] == mac && counts(frame)));
    }
    let mut ours = guest.frames("sent.pcap")?;
    ours.retain(|frame| counts(frame));
    ours.sort();
    kernels.sort();
    let least = if method == "-m" { 300 } else { 24 };
    check(kernels.len() >= least, format!("the kernel forwarded {} frames", kernels.len()))?;
    let lacking = |frames: &[Vec<u8>], of: &[Vec<u8>]| {
        of.iter().find(|frame| frames.binary_search(frame).is_err()).map(|frame| format!("{frame:02x?}"))
    };
    check(
        ours == kernels,
        format!(
            "{} frames of ours, {} of the kernel's; ours alone: {:?}; the kernel's alone: {:?}",
            ours.len(),
            kernels.len(),
            lacking(&kernels, &ours),
            lacking(&ours, &kernels)
        ),
    )
}

/// As `observe` commands it.
fn configuration(scheduler: &str, method: &str) -> String {
    let services = [
        ("tcp", 80, "10.0.0.1", ["10.2.1.11", "10.2.2.12"]),
        ("tcp", 80, "[fd00::1]", ["[fd02:1::11]", "[fd02:2::12]"]),
        ("udp", 53, "10.0.0.1", ["10.2.1.11", "10.2.2.12"]),
        ("udp", 53, "[fd00::1]", ["[fd02:1::11]", "[fd02:2::12]"]),
    ];
    let name = if method == "-m" { "nat" } else { "direct" };
    let mut text = String::new();
    for (protocol, port, address, servers) in services {
        if protocol == "tcp" && name != "nat" {
            continue;
        }
        text += &format!("[[service]]\naddress = \"{address}:{port}\"\nprotocol = \"{protocol}\"\n");
        text += &format!("scheduler = \"{scheduler}\"\n");
        for (server, weight) in servers.iter().zip([2, 1]) {
            text += &format!("[[service.server]]\naddress = \"{server}:{port}\"\n");
            text += &format!("method = \"{name}\"\nweight = {weight}\n");
        }
    }
    text
}

/// Whether a frame counts that the director sent: not what it said itself at the end, and no ICMPv6. That is neighbour discovery,
/// or an error of a real server, which this kernel's IPVS forwards only where a device vouched for the checksum: itself it sums
/// without the pseudo-header (`ip_vs_checksum_complete`), and drops what is right.
fn counts(frame: &[u8]) -> bool {
    let icmpv6 = frame[12..14] == [0x86, 0xdd] && frame[20] == 58;
    !(icmpv6 || frame.ends_with(b"no more\n"))
}
