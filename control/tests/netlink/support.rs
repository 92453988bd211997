//! Anonymous network namespaces, and what an administrator does in them. Nothing here touches the machine's own.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
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
    }
}

/// Sends one request in the namespace of the calling thread; panics when the kernel refuses.
pub(crate) fn ask(message: RouteNetlinkMessage, flags: u16) {
    let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.bind_auto().unwrap();
    socket.connect(&SocketAddr::new(0, 0)).unwrap();
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).unwrap();
    let (answer, _) = socket.recv_from_full().unwrap();
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).unwrap().payload {
        NetlinkPayload::Error(answer) => assert_eq!(answer.code, None, "{:?}", message.payload),
        other => panic!("unexpected answer {other:?}"),
    }
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
