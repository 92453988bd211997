//! `uvs replay` with captures of a kernel's director: the same each time, and the same as what IPVS sent.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use uvs_engine::link::pcap::{self, Direction, Reader, Record};

/// As the rules that the captures were taken with.
const NAT: [(&str, &str, [&str; 2]); 4] = [
    ("10.0.0.1:80", "tcp", ["10.2.1.11:80", "10.2.2.12:80"]),
    ("10.0.0.1:53", "udp", ["10.2.1.11:53", "10.2.2.12:53"]),
    ("[fd00::1]:80", "tcp", ["[fd02:1::11]:80", "[fd02:2::12]:80"]),
    ("[fd00::1]:53", "udp", ["[fd02:1::11]:53", "[fd02:2::12]:53"]),
];

/// The kernel's director's devices, and their link-layer addresses.
const DEVICES: [(&str, [u8; 6]); 3] =
    [("nat.d-dc", [2, 0, 0, 0, 1, 1]), ("nat.d-dr1", [2, 0, 0, 0, 2, 1]), ("nat.d-dr2", [2, 0, 0, 0, 2, 2])];

struct Bench(PathBuf);

impl Bench {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("uvs-replay-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let mut text = String::new();
        for (address, protocol, servers) in NAT {
            text += &format!(
                "[[service]]\naddress = \"{address}\"\nprotocol = \"{protocol}\"\nscheduler = \"rr\"\n"
            );
            for server in servers {
                text += &format!("[[service.server]]\naddress = \"{server}\"\nmethod = \"nat\"\n");
            }
        }
        std::fs::write(directory.join("uvs.toml"), text).unwrap();
        Bench(directory)
    }

    /// Replays captures of all the director's devices.
    fn replay(&self, arguments: &[&str]) -> Output {
        let files = DEVICES.map(|(name, _)| golden(name).display().to_string());
        let inputs = files.iter().flat_map(|file| ["--in", file]);
        self.run(&inputs.chain(arguments.iter().copied()).collect::<Vec<_>>())
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uvs"));
        command.args(["replay", "--config", "uvs.toml"]).args(arguments).current_dir(&self.0);
        command.output().unwrap()
    }

    fn read(&self, name: &str) -> Vec<Record> {
        frames(&self.0.join(name))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/pcap/{name}.pcap"))
}

fn frames(path: &Path) -> Vec<Record> {
    Reader::new(File::open(path).unwrap()).unwrap().map(Result::unwrap).collect()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What the kernel sent, in order: the frames that the director's devices are the source of.
fn sent_by_the_kernel() -> Vec<Vec<u8>> {
    let all = DEVICES.iter().flat_map(|(name, mac)| {
        frames(&golden(name)).into_iter().filter(move |frame| frame.bytes[6..12] == *mac)
    });
    let mut all: Vec<Record> = all.collect();
    all.sort_by_key(|frame| frame.time);
    all.into_iter().map(|frame| frame.bytes).collect()
}

#[test]
fn what_is_sent_is_what_the_kernel_sent() {
    let bench = Bench::new("kernel");
    let output = bench.replay(&["--out", "sent.pcap"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let ours: Vec<Vec<u8>> = bench.read("sent.pcap").into_iter().map(|frame| frame.bytes).collect();
    let kernels = sent_by_the_kernel();
    assert_eq!(ours.len(), kernels.len());
    for (number, (ours, kernels)) in ours.iter().zip(&kernels).enumerate() {
        assert_eq!(ours, kernels, "frame {number}");
    }
    // The other frames are those that the kernel sent.
    let total = kernels.len();
    let summary = text(&output.stdout);
    let expected =
        format!("frames: {total} sent, 0 left to the host, {total} dropped\n  other_host {total}\n");
    assert!(summary.ends_with(&expected), "{summary}");
    assert!(summary.starts_with("nat.d-dc: 02:00:00:00:01:01\n"), "{summary}");
}

#[test]
fn two_replays_are_the_same() {
    let bench = Bench::new("twice");
    let runs = ["first.pcapng", "second.pcapng"].map(|name| {
        let output = bench.replay(&["--explain", "--out", name]);
        assert!(output.status.success());
        (output.stdout, std::fs::read(bench.0.join(name)).unwrap())
    });
    assert!(runs[0] == runs[1]);
    let records = bench.read("first.pcapng");
    assert_eq!(records[0].direction, Some(Direction::Out));
    // By the second device of which there was a frame.
    assert_eq!((records[0].interface, records[0].comment.as_deref()), (1, Some("sent on frame 1")));
}

#[test]
fn each_frame_is_explained() {
    let bench = Bench::new("explain");
    let output = bench.replay(&["--explain"]);
    let lines: Vec<&str> = text(&output.stdout).lines().take(5).collect();
    assert_eq!(
        lines,
        [
            "1 0.000000 nat.d-dc: tcp 10.1.0.2:40001 > 10.0.0.1:80 [S]: sent by nat.d-dr2",
            "  > nat.d-dr2: tcp 10.1.0.2:40001 > 10.2.2.12:80 [S]",
            "2 0.000026 nat.d-dr2: tcp 10.1.0.2:40001 > 10.2.2.12:80 [S]: dropped, other_host: The link-layer address is \
             another host's.",
            "3 0.000042 nat.d-dr2: tcp 10.2.2.12:80 > 10.1.0.2:40001 [S.]: sent by nat.d-dc",
            "  > nat.d-dc: tcp 10.0.0.1:80 > 10.1.0.2:40001 [S.]",
        ]
    );
}

#[test]
fn what_is_wrong_is_said() {
    let bench = Bench::new("wrong");
    let whole = std::fs::read(golden("nat.d-dc")).unwrap();
    std::fs::write(bench.0.join("cut.pcap"), &whole[..200]).unwrap();
    std::fs::write(bench.0.join("picture.pcap"), b"GIF89a").unwrap();
    std::os::unix::fs::symlink("cut.pcap", bench.0.join("link.pcap")).unwrap();
    nix::unistd::mkfifo(&bench.0.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let cut = bench.run(&["--in", "cut.pcap"]);
    assert_eq!(cut.status.code(), Some(1), "what came before the end is replayed");
    assert_eq!(
        text(&cut.stderr),
        "uvs replay: cut.pcap ends in the middle of a record, at byte 200: what came before it is whole\n"
    );
    assert!(text(&cut.stdout).contains("1 frames: 1 sent, "), "{}", text(&cut.stdout));
    for (arguments, expected) in [
        (&["--in", "picture.pcap"][..], "uvs replay: picture.pcap is neither a pcap nor a pcapng file\n"),
        (
            &["--in", "nowhere.pcap"],
            "uvs replay: nowhere.pcap cannot be read: No such file or directory (os error 2)\n",
        ),
        (
            &["--in", "-"],
            "uvs replay: - cannot be read: it is no regular file, and captures are read twice: copy it to one\n",
        ),
        (
            &["--in", "pipe"],
            "uvs replay: pipe cannot be read: it is no regular file, and captures are read twice: copy it to one\n",
        ),
        (
            &["--in", "cut.pcap", "--out", "link.pcap"],
            "uvs replay: link.pcap is cut.pcap, which is read: name another file after --out\n",
        ),
        (
            &["--in", "cut.pcap", "--out", "no/where"],
            "uvs replay: no/where cannot be written: No such file or directory (os error 2)\n",
        ),
    ] {
        let output = bench.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(text(&output.stderr), expected);
    }
    assert_eq!(std::fs::read(bench.0.join("cut.pcap")).unwrap().len(), 200, "what is read is not written");
}

#[test]
fn standard_output_is_a_file_too() {
    let bench = Bench::new("dash");
    let output = bench.replay(&["--out", "-"]);
    let mut sent = Vec::new();
    for record in Reader::new(&output.stdout[..]).unwrap() {
        sent.push(record.unwrap().bytes);
    }
    assert_eq!(sent, sent_by_the_kernel());
    assert!(text(&output.stderr).contains("0 left to the host"), "{}", text(&output.stderr));
    assert!(!bench.0.join("-").exists());
}

/// Behind tunnels: the clients' side, and what the kernel's director sent to the real servers.
#[test]
fn tunnels_begin_where_the_kernels_did() {
    const FILES: [&str; 3] = ["tun.c-c0", "tun.d-dr1", "tun.d-dr2"];
    let bench = Bench::new("tunnels");
    let mut configuration = String::new();
    for (address, protocol, servers) in [
        ("10.0.0.1", "tcp 80", ["10.2.1.11", "10.2.2.12"]),
        ("10.0.0.1", "udp 53", ["10.2.1.11", "10.2.2.12"]),
        ("[fd00::1]", "tcp 80", ["fd02:1::11", "fd02:2::12"]),
        ("[fd00::1]", "udp 53", ["fd02:1::11", "fd02:2::12"]),
    ] {
        let (protocol, port) = protocol.split_once(' ').unwrap();
        configuration += &format!(
            "[[service]]\naddress = \"{address}:{port}\"\nprotocol = \"{protocol}\"\nscheduler = \"rr\"\n"
        );
        for server in servers {
            configuration += &format!("[[service.server]]\naddress = \"{server}\"\nmethod = \"tunnel\"\n");
        }
    }
    std::fs::write(bench.0.join("uvs.toml"), configuration).unwrap();
    let files = FILES.map(|name| golden(name).display().to_string());
    let inputs =
        |of: &[String]| of.iter().flat_map(|file| ["--in".into(), file.clone()]).collect::<Vec<String>>();
    let all = inputs(&files);
    let mut arguments: Vec<&str> = all.iter().map(String::as_str).collect();
    arguments.extend(["--out", "sent.pcap"]);
    let output = bench.run(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    for line in ["tunnel to 10.2.1.11: from 10.2.1.1\n", "tunnel to fd02:2::12: from fd02:2::1\n"] {
        assert!(said.contains(line), "{said}");
    }
    // The packets around have numbers of their own.
    let unnumbered = |mut frame: Vec<u8>| {
        if frame[12..14] == [8, 0] {
            frame[18..20].fill(0);
            frame[24..26].fill(0);
        }
        frame
    };
    let ours: Vec<_> = bench.read("sent.pcap").into_iter().map(|frame| unnumbered(frame.bytes)).collect();
    let mut kernels: Vec<_> = FILES[1..].iter().flat_map(|name| frames(&golden(name))).collect();
    kernels.sort_by_key(|frame| frame.time);
    let kernels: Vec<_> = kernels.into_iter().map(|frame| unnumbered(frame.bytes)).collect();
    let same = kernels.iter().filter(|frame| ours.contains(frame)).count();
    assert_eq!((ours.len(), same), (kernels.len(), kernels.len()), "{said}");

    let clients = inputs(&files[..1]);
    let output = bench.run(&clients.iter().map(String::as_str).collect::<Vec<_>>());
    let said = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(said.contains("tunnel to 10.2.1.11: from 192.0.0.8 (made up: no capture shows it)\n"), "{said}");
    assert!(
        said.contains("tunnel to fd02:2::12: from 100:0:0:1::1 (made up: no capture shows it)\n"),
        "{said}"
    );
}

#[test]
fn pcapng_with_several_interfaces_is_one_director() {
    let bench = Bench::new("one");
    let mut all: Vec<(usize, Record)> = [("nat.d-dc", 0), ("nat.d-dr2", 1)]
        .iter()
        .flat_map(|(name, device)| frames(&golden(name)).into_iter().map(move |frame| (*device, frame)))
        .collect();
    all.sort_by_key(|(_, frame)| frame.time);
    // By device, and as `uvs capture` has them, by device and way.
    for names in [&["clients", "servers"][..], &["clients in", "clients out", "servers in", "servers out"]] {
        let mut file = Vec::new();
        pcap::pcapng_section(&mut file);
        names.iter().for_each(|name| pcap::pcapng_interface(&mut file, name, 0));
        for (device, Record { time, wire_len, bytes, .. }) in &all {
            // The director's addresses all begin so.
            let sent = bytes[6..11] == [2, 0, 0, 0, 1];
            let interface = if names.len() == 2 { *device } else { 2 * device + usize::from(sent) };
            let (interface, time, wire_len) = (u32::try_from(interface).unwrap(), *time, *wire_len);
            let frame = pcap::Frame { interface, time, wire_len, direction: None, comment: "", bytes };
            pcap::pcapng_packet(&mut file, &frame);
        }
        std::fs::write(bench.0.join("all.pcapng"), file).unwrap();
        let output = bench.run(&["--in", "all.pcapng", "--explain"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let said = text(&output.stdout);
        let first = "1 0.000000 clients: tcp 10.1.0.2:40001 > 10.0.0.1:80 [S]: sent by servers\n";
        assert!(said.starts_with(first), "{said}");
        assert!(!said.contains(" in:") && !said.contains(" out:"), "{said}");
    }
}

#[test]
fn complaints_that_nobody_reads_are_no_panic() {
    let bench = Bench::new("unread");
    std::fs::write(bench.0.join("wrong.toml"), "wrong").unwrap();
    for arguments in [
        &["replay", "--config", "uvs.toml", "--in", "absent.pcap"][..],
        &["replay", "--config", "wrong.toml", "--in", "absent.pcap"],
        &["check", "wrong.toml"],
        &["capture", "port", "http"],
        &["status", "--socket", "absent"],
        &["run"],
        &["real-server", "start", "--vip", "0.0.0.0", "--method", "dr"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_uvs"));
        let status = command.args(arguments).current_dir(&bench.0).stderr(writer).status().unwrap();
        assert_eq!(status.code(), Some(2), "{arguments:?}");
    }
}
