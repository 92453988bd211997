//! Steering, the guard and the way back on real devices, in network namespaces.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "steer/frames.rs"]
mod frames;
#[path = "steer/guard.rs"]
mod guard;
#[path = "steer/live.rs"]
mod live;
#[path = "steer/way_back.rs"]
mod way_back;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use uvs_lab::probe::{RawTcp, flags};
use uvs_lab::{Namespace, Prefix, Veth, cleanup, wait};

/// What a test returns: any error becomes its failure.
type Outcome = Result<(), Failed>;

fn main() -> ExitCode {
    if let [_, role, device] = &std::env::args().collect::<Vec<_>>()[..]
        && role == guard::CHILD
    {
        return guard::child(device);
    }
    let arguments = Arguments::from_args();
    let obstacle =
        if arguments.list { None } else { uvs_lab::obstacle().map(|why| format!("because {why}")) };
    let tests = [live::TESTS, guard::TESTS, way_back::TESTS].concat();
    let trials = tests
        .into_iter()
        .map(|(name, test)| {
            let obstacle = obstacle.clone();
            Trial::ignorable_test(name, move || match obstacle {
                Some(reason) => Ok(Completion::ignored_with(reason)),
                None => test().map(|()| Completion::Completed),
            })
        })
        .collect();
    if !arguments.list {
        cleanup::remove_stale();
        if let Err(error) = cleanup::end_on_signals("interrupted; the tests' namespaces are removed") {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test fails with `message` unless `condition` holds.
#[track_caller]
fn check(condition: bool, message: impl std::fmt::Display) -> Outcome {
    let place = std::panic::Location::caller();
    if condition { Ok(()) } else { Err(format!("{}:{}: {message}", place.file(), place.line()).into()) }
}

/// How long an answer may take before it is missing.
const PATIENCE: Duration = Duration::from_secs(5);

/// A client and a real server, each by its own link to a director that has a VIP. MTU 9000.
struct Site {
    client: Namespace,
    director: Namespace,
    server: Namespace,
}

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLIENT6: &str = "fd01::2";
const SERVER6: &str = "fd02::2";
const VIP6: &str = "2001:db8::1";
/// The director's devices.
const TO_CLIENT: &str = "d0";
const TO_SERVER: &str = "d1";

impl Site {
    fn build() -> Result<Self, uvs_lab::Error> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = |role: &str| format!("uvs-{}-steer{count}-{role}", std::process::id());
        let site = Site {
            client: Namespace::create(name("c"))?,
            director: Namespace::create(name("d"))?,
            server: Namespace::create(name("s"))?,
        };
        for (end, device, net) in [(&site.client, TO_CLIENT, 1), (&site.server, TO_SERVER, 2)] {
            let veth = |name| Veth { name, queues: 1, mtu: 9000 };
            end.net().add_veth(veth("eth0"), veth(device), site.director.fd())?;
            for (namespace, device, host) in [(end, "eth0", 2), (&site.director, device, 1)] {
                let mut route = namespace.net();
                route.up(device)?;
                route.add_address(device, Prefix::new(Ipv4Addr::new(10, net, 0, host), 24))?;
                route.add_address(device, Prefix::new(address6(net, host), 64))?;
            }
            let gateways = [IpAddr::from(Ipv4Addr::new(10, net, 0, 1)), address6(net, 1)];
            for gateway in gateways {
                end.net().add_route(Prefix::everything(gateway), gateway)?;
            }
            end.wait_ready(&["eth0"])?;
        }
        site.director.net().add_address("lo", Prefix::host(VIP))?;
        site.director.net().add_address("lo", Prefix::host(VIP6.parse::<IpAddr>().unwrap()))?;
        site.director.wait_ready(&[TO_CLIENT, TO_SERVER])?;
        wait::until("the VIP to be local", PATIENCE, || site.vip6_is_local())?;
        Ok(site)
    }

    /// The kernel makes the local route of an IPv6 address some time after the address.
    fn vip6_is_local(&self) -> bool {
        const LOCAL: &str = "80200001";
        let routes = self.director.run(|| std::fs::read_to_string("/proc/thread-self/net/ipv6_route"));
        let vip: String =
            VIP6.parse::<Ipv6Addr>().unwrap().octets().iter().map(|b| format!("{b:02x}")).collect();
        let is_it = |route: &str| route.starts_with(&vip) && route.split_whitespace().nth(8) == Some(LOCAL);
        routes.is_ok_and(|routes| routes.is_ok_and(|routes| routes.lines().any(is_it)))
    }

    /// The index of a device of the director.
    fn ifindex(&self, device: &str) -> u32 {
        self.director.run(|| nix::net::if_::if_nametoindex(device).unwrap()).unwrap()
    }

    /// Whether the director's kernel answers a mid-stream segment from the client to the VIP's `port` with a RST. The
    /// one to port 9 that follows is answered for certain and cannot overtake.
    fn resets(&self, probe: &RawTcp, port: u16) -> Result<bool, Failed> {
        let from = SocketAddrV4::new(CLIENT, 4000);
        for port in [port, 9] {
            probe.send(from, SocketAddrV4::new(VIP, port), flags::ACK)?;
        }
        let reset = |port| move |s: &uvs_lab::probe::Segment| s.source == port && s.flags & flags::RST != 0;
        let either = |s: &uvs_lab::probe::Segment| reset(port)(s) || reset(9)(s);
        let first = probe.receive(PATIENCE, either)?.ok_or("no answer from port 9")?;
        if first.source == port {
            probe.receive(PATIENCE, reset(9))?.ok_or("no second answer from port 9")?;
        }
        Ok(first.source == port)
    }
}

fn address6(net: u8, host: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00 | u16::from(net), 0, 0, 0, 0, 0, 0, host.into()).into()
}
