//! Anonymous network namespaces, and what an administrator does in them. Nothing here touches the machine's own.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};
use uvs_control::netlink::{Event, Monitor};

/// Longest wait for anything. What is waited for takes milliseconds, or a few seconds where the kernel gives up on a
/// neighbour.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A network namespace without a name; it goes when the last handle and socket in it go.
#[derive(Debug)]
pub(crate) struct Namespace(File);

impl Namespace {
    /// A new one with its loopback device up and no duplicate address detection (which takes a second).
    pub(crate) fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
            for knob in ["default", "all"] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{knob}/accept_dad"), "0").unwrap();
            }
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let namespace = Namespace(std::thread::scope(|scope| scope.spawn(make).join().unwrap()));
        namespace.run(|| up("lo"));
        namespace
    }

    /// Runs `work` on a thread in this namespace.
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let enter = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(enter).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A veth pair, both ends up: `name` here, `peer_name` there.
    pub(crate) fn veth(&self, name: &str, there: &Namespace, peer_name: &str) {
        let mut peer = LinkMessage::default();
        peer.attributes =
            vec![LinkAttribute::IfName(peer_name.into()), LinkAttribute::NetNsFd(there.0.as_raw_fd())];
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.run(|| {
            ask(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL);
            up(name);
        });
        there.run(|| up(peer_name));
        // A frame sent before the kernel has noticed the carrier is lost without a word.
        self.run(|| wait_for_carrier(name));
        there.run(|| wait_for_carrier(peer_name));
    }
}

/// Sends one request in the namespace of the calling thread; panics when the kernel refuses.
#[track_caller]
pub(crate) fn ask(message: RouteNetlinkMessage, flags: u16) {
    match exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags) {
        NetlinkPayload::Error(answer) => assert_eq!(answer.code, None, "{answer}"),
        other => panic!("unexpected answer {other:?}"),
    }
}

fn exchange(message: RouteNetlinkMessage, flags: u16) -> NetlinkPayload<RouteNetlinkMessage> {
    let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.bind_auto().unwrap();
    socket.connect(&SocketAddr::new(0, 0)).unwrap();
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).unwrap();
    let (answer, _) = socket.recv_from_full().unwrap();
    NetlinkMessage::deserialize(&answer).unwrap().payload
}

/// The index of a device of the calling thread's namespace.
pub(crate) fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

fn change_link(name: &str, change: impl FnOnce(&mut LinkMessage)) {
    let mut link = LinkMessage::default();
    link.header.index = index(name);
    change(&mut link);
    ask(RouteNetlinkMessage::SetLink(link), 0);
}

pub(crate) fn up(name: &str) {
    change_link(name, |link| {
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
    });
}

/// Waits until the kernel has given the device a queue to send from.
fn wait_for_carrier(name: &str) {
    let end = Instant::now() + LIMIT;
    let mut link = LinkMessage::default();
    link.header.index = index(name);
    loop {
        let answer = exchange(RouteNetlinkMessage::GetLink(link.clone()), NLM_F_REQUEST);
        let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(found)) = answer else {
            panic!("unexpected answer {answer:?}")
        };
        let is =
            |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Qdisc(name) if name != "noop");
        if found.attributes.iter().any(is) && found.header.flags.contains(LinkFlags::LowerUp) {
            return;
        }
        assert!(Instant::now() < end, "{name} has no carrier");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn down(name: &str) {
    change_link(name, |link| link.header.change_mask = LinkFlags::Up);
}

pub(crate) fn set_mac(name: &str, mac: [u8; 6]) {
    change_link(name, |link| link.attributes.push(LinkAttribute::Address(mac.to_vec())));
}

pub(crate) fn set_mtu(name: &str, mtu: u32) {
    change_link(name, |link| link.attributes.push(LinkAttribute::Mtu(mtu)));
}

pub(crate) fn delete_link(name: &str) {
    let mut link = LinkMessage::default();
    link.header.index = index(name);
    ask(RouteNetlinkMessage::DelLink(link), 0);
}

pub(crate) fn mac_of(name: &str) -> [u8; 6] {
    nix::ifaddrs::getifaddrs()
        .unwrap()
        .filter(|entry| entry.interface_name == name)
        .find_map(|entry| entry.address?.as_link_addr()?.addr())
        .unwrap()
}

pub(crate) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn address_message(name: &str, address: &str) -> AddressMessage {
    let (address, prefix) = address.split_once('/').unwrap();
    let address: IpAddr = address.parse().unwrap();
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix.parse().unwrap();
    message.header.index = index(name);
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}

/// `ip address add ADDRESS/PREFIX dev NAME nodad`
pub(crate) fn add_address(name: &str, address: &str) {
    let mut message = address_message(name, address);
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    ask(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL);
}

/// `ip address del ADDRESS/PREFIX dev NAME`
pub(crate) fn delete_address(name: &str, address: &str) {
    ask(RouteNetlinkMessage::DelAddress(address_message(name, address)), 0);
}

/// `ip neighbour replace ADDRESS lladdr MAC dev NAME nud STATE`
pub(crate) fn set_neighbour(name: &str, address: &str, mac: [u8; 6], state: NeighbourState) {
    let address: IpAddr = address.parse().unwrap();
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index(name);
    message.header.state = state;
    message.attributes = vec![
        NeighbourAttribute::Destination(address.into()),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    ask(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE);
}

/// The start of `ip route add PREFIX`; the caller adds where it leads.
pub(crate) fn route(prefix: &str) -> RouteMessage {
    let (network, length) = prefix.split_once('/').unwrap();
    let network: IpAddr = network.parse().unwrap();
    let mut message = RouteMessage::default();
    message.header.address_family = family(network);
    message.header.destination_prefix_length = length.parse().unwrap();
    message.header.table = 254;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Destination(network.into())];
    message
}

/// `ip route add PREFIX via GATEWAY dev NAME metric METRIC`
pub(crate) fn add_route(prefix: &str, gateway: &str, name: &str, metric: u32) {
    let gateway: IpAddr = gateway.parse().unwrap();
    let mut message = route(prefix);
    message.attributes.extend([
        RouteAttribute::Gateway(gateway.into()),
        RouteAttribute::Oif(index(name)),
        RouteAttribute::Priority(metric),
    ]);
    ask(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL);
}

/// `ip route add KIND PREFIX`
pub(crate) fn add_route_of_kind(prefix: &str, kind: RouteType) {
    let mut message = route(prefix);
    message.header.kind = kind;
    ask(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL);
}

/// `ip rule add fwmark 1 lookup 100`
pub(crate) fn add_rule() {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = RuleAction::ToTable;
    message.header.table = 100;
    message.attributes = vec![RuleAttribute::FwMark(1)];
    ask(RouteNetlinkMessage::NewRule(message), NLM_F_CREATE | NLM_F_EXCL);
}

/// Reads the monitor until `found` says so of all the events read so far; gives them back.
pub(crate) fn events_until(monitor: &mut Monitor, mut found: impl FnMut(&[Event]) -> bool) -> Vec<Event> {
    let end = Instant::now() + LIMIT;
    let mut events = Vec::new();
    loop {
        events.extend(monitor.read().unwrap());
        if found(&events) {
            return events;
        }
        assert!(Instant::now() < end, "waited in vain; events were {events:#?}");
        let mut fds = [PollFd::new(monitor.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(100_u8)).unwrap();
    }
}
