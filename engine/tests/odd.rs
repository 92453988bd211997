//! Packets that are not easy: what comes in, and what becomes of it, by every forwarding method, in both IP versions, of a new
//! and of a known connection, its checksum finished or left to us.

#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

mod director;
#[path = "odd/errors.rs"]
mod errors;
#[path = "odd/headers.rs"]
mod headers;
#[path = "odd/links.rs"]
mod links;
#[path = "odd/options.rs"]
mod options;
#[path = "odd/senders.rs"]
mod senders;

use director::edit::is_v4;
use director::{oracle, *};
use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header};
use std::net::IpAddr;
use std::sync::Arc;
use uvs_engine::forward::Method;
use uvs_engine::service::Service;
use uvs_engine::{PortId, Reason, Verdict};

const V4: &[usize] = &[0];
const V6: &[usize] = &[1];
const BOTH: &[usize] = &[0, 1];
const ALL: &[Method] = &[Method::Nat, Method::FullNat, Method::Direct, Method::Tunnel];

/// What becomes of a packet.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// It goes on as its method makes it, odd as it is.
    Forwarded,
    /// It is the host's, unchanged but for a finished checksum.
    Kernel,
    /// It is dropped.
    Dropped(Reason),
    /// It is dropped, and its sender told by an ICMP error of this type and code, or this in the other version.
    Told(Reason, (u8, u8), (u8, u8)),
}

/// Changes the configuration before the packet comes.
type Setup = dyn Fn(&mut Director, &Plan, &[Arc<Service>; 2]);

/// A row of the table.
struct Row {
    what: String,
    /// Indices of the plans that it is about.
    versions: &'static [usize],
    methods: &'static [Method],
    /// Whether the connection is there before the packet.
    known: &'static [bool],
    /// Whether its checksum may be unfinished.
    unfinished: &'static [bool],
    port: PortId,
    /// A client's packet: protocol and flags.
    packet: (u8, u8),
    frame: Box<dyn Fn(Frame) -> Frame>,
    bytes: Box<dyn Fn(Vec<u8>) -> Vec<u8>>,
    tags: Vec<(u16, u16)>,
    /// How many bytes at the frame's end do not come.
    missing: usize,
    /// Where the frame is cut into parts.
    cuts: Vec<usize>,
    setup: Box<Setup>,
    fate: Fate,
}

impl Row {
    fn new(what: impl Into<String>, versions: &'static [usize], packet: (u8, u8), fate: Fate) -> Self {
        Row {
            what: what.into(),
            versions,
            methods: ALL,
            known: &[false, true],
            unfinished: &[false, true],
            port: CLIENTS,
            packet,
            frame: Box::new(|frame| frame),
            bytes: Box::new(|bytes| bytes),
            tags: vec![],
            missing: 0,
            cuts: vec![],
            setup: Box::new(|_, _, _| ()),
            fate,
        }
    }

    /// What is odd about the frame.
    fn frame(self, frame: impl Fn(Frame) -> Frame + 'static) -> Self {
        Row { frame: Box::new(frame), ..self }
    }

    /// What is odd about its bytes, which are untagged.
    fn bytes(self, bytes: impl Fn(Vec<u8>) -> Vec<u8> + 'static) -> Self {
        Row { bytes: Box::new(bytes), ..self }
    }

    /// Where nothing else matters: one method, one new connection.
    fn once(self) -> Self {
        Row { methods: &[Method::Nat], known: &[false], unfinished: &[false], ..self }
    }

    /// Of no connection yet.
    fn new_only(self) -> Self {
        Row { known: &[false], ..self }
    }

    /// Its checksum finished.
    fn finished(self) -> Self {
        Row { unfinished: &[false], ..self }
    }

    /// The packet as it comes.
    fn coming(&self, plan: &Plan, unfinished: bool) -> Vec<u8> {
        let frame = self.client(plan);
        let bytes = (self.bytes)(if unfinished { frame.unfinished() } else { frame.bytes() });
        let mut bytes = edit::tagged(bytes, &self.tags);
        bytes.truncate(bytes.len().saturating_sub(self.missing));
        bytes
    }

    fn client(&self, plan: &Plan) -> Frame {
        let frame = Frame::from_client(plan, self.packet.0, self.packet.1);
        (self.frame)(Frame { to_mac: PORT_MACS[usize::from(self.port.0)], ..frame })
    }

    /// The packet as it goes on, where that can be foretold.
    fn forwarded(&self, plan: &Plan, method: Method) -> Option<Vec<u8>> {
        let frame = self.client(plan);
        let tags = if self.port == SERVERS { &self.tags[..] } else { &[] };
        let bytes = match method {
            Method::Nat => (self.bytes)(frame.masqueraded(plan.server).bytes()),
            Method::Direct => (self.bytes)(frame.routed().bytes()),
            Method::Tunnel => in_tunnel(plan, &(self.bytes)(frame.routed().bytes())),
            Method::FullNat => return None,
        };
        Some(edit::tagged(bytes, tags))
    }

    fn check(&self, plan: &Plan, method: Method, known: bool, unfinished: bool) {
        let what = format!("{}: {method:?} of {}, known {known}", self.what, plan.client);
        let (mut director, services) = Director::with_server(plan, method);
        if known {
            let first = Frame::from_client(plan, self.packet.0, SYN).bytes();
            assert_eq!(director.run(CLIENTS, &first).0, Verdict::Transmit(SERVERS), "{what}");
        }
        (self.setup)(&mut director, plan, &services);
        let bytes = self.coming(plan, unfinished);
        let (verdict, out) = director.run_parts(self.port, &parts(&bytes, &self.cuts));
        let drops = |reason| director.counters.drops(reason);
        match self.fate {
            Fate::Forwarded => {
                assert_eq!(verdict, Verdict::Transmit(SERVERS), "{what}");
                assert_eq!(oracle::verify(&out), Ok(()), "{what}");
                if let Some(expected) = self.forwarded(plan, method) {
                    assert_eq!(out, expected, "{what}");
                }
            }
            Fate::Kernel => {
                assert_eq!((verdict, out), (Verdict::ToKernel, self.coming(plan, false)), "{what}");
            }
            Fate::Dropped(reason) => {
                assert_eq!((verdict, drops(reason)), (Verdict::Drop(reason), 1), "{what}");
            }
            Fate::Told(reason, v4, v6) => {
                assert_eq!((verdict, drops(reason)), (Verdict::Transmit(CLIENTS), 1), "{what}");
                assert_eq!(oracle::verify(&out), Ok(()), "{what}");
                assert_eq!((&out[..6], &out[6..12]), (&CLIENT_MAC[..], &PORT_MACS[0][..]), "{what}");
                let (icmp, said) = if is_v4(&out) { (34, v4) } else { (54, v6) };
                assert_eq!((out[icmp], out[icmp + 1]), said, "{what}");
                let ageless = |packet: &[u8]| {
                    let age = if packet[0] >> 4 == 4 { [8..9, 10..12] } else { [7..8, 7..8] };
                    let mut packet = packet.to_vec();
                    age.into_iter().for_each(|range| packet[range].fill(0));
                    packet
                };
                let quoted = ageless(&out[icmp + 8..]);
                assert!(ageless(&bytes[14..]).starts_with(&quoted), "{what}: not what it came as");
            }
        }
    }
}

/// A frame in an IPIP tunnel, padding cut off.
fn in_tunnel(plan: &Plan, frame: &[u8]) -> Vec<u8> {
    let packet = &frame[14..];
    let length = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let (length, hops) = if is_v4(frame) { (length(2), packet[8]) } else { (40 + length(4), packet[7]) };
    let ether_type = if plan.server.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
    let mut bytes = vec![];
    Ethernet2Header { source: PORT_MACS[1], destination: SERVER_MAC, ether_type }.write(&mut bytes).unwrap();
    match (tunnel_source(plan.server.ip()), plan.server.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let outer = Ipv4Header::new(length, hops, IpNumber::IPV4, from.octets(), to.octets());
            outer.unwrap().write(&mut bytes).unwrap();
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let (source, destination, next_header) = (from.octets(), to.octets(), IpNumber::IPV6);
            let (payload_length, hop_limit) = (length, hops);
            let rest = Ipv6Header::default();
            let outer = Ipv6Header { payload_length, next_header, hop_limit, source, destination, ..rest };
            outer.write(&mut bytes).unwrap();
        }
        _ => panic!("one IP version"),
    }
    bytes.extend(&packet[..length.into()]);
    bytes
}

fn parts<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let ends = cuts.iter().copied().chain([bytes.len()]);
    let starts = [0].into_iter().chain(cuts.iter().copied());
    starts.zip(ends).map(|(start, end)| &bytes[start..end]).collect()
}

fn check(rows: Vec<Row>) {
    for row in rows {
        for plan in row.versions.iter().map(|version| plans()[*version]) {
            for method in row.methods {
                for known in row.known {
                    for unfinished in row.unfinished {
                        row.check(&plan, *method, *known, *unfinished);
                    }
                }
            }
        }
    }
}

#[test]
fn truncated_headers() {
    check(headers::truncated());
}

#[test]
fn lengths_that_contradict_each_other() {
    check(headers::lengths());
}

#[test]
fn checksums_that_are_wrong_or_absent() {
    check(headers::checksums());
}

#[test]
fn options_and_extension_headers() {
    check(options::rows());
}

#[test]
fn senders_that_cannot_be_and_flags_that_begin_nothing() {
    check(senders::rows());
}

#[test]
fn tags_and_jumbo_frames() {
    check(links::rows());
}

#[test]
fn errors_about_what_is_not_ours_and_tunnels_that_lead_back() {
    check(errors::rows());
}
