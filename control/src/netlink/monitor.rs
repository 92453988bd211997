//! A mirror of the kernel's links, addresses and neighbours that tells what changes.
//!
//! The mirror starts empty and is filled by a full listing, so the first events describe everything there is. When the
//! kernel reports that it had to throw notifications away, the listing is taken again and the differences are told:
//! whoever follows the events is never behind for good.

use super::socket::{RawMessage, Received, Socket};
use super::{Event, HostAddress, Link, NeighbourEntry, NetlinkError, decode};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

/// `RTNLGRP_*` of linux/rtnetlink.h: LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE,
/// IPV6_RULE, NEXTHOP.
const GROUPS: [u32; 9] = [1, 3, 5, 7, 8, 9, 11, 19, 32];
/// Messages that only say that routes are to be read again: RTM_NEWROUTE, DELROUTE, NEWRULE, DELRULE, NEWNEXTHOP,
/// DELNEXTHOP.
const ROUTING: [u16; 6] = [24, 25, 32, 33, 104, 105];
/// Room for some ten thousand notifications, so that a burst (a routing daemon's start) seldom overflows.
const BUFFER: usize = 4 << 20;

type NeighbourKey = (u32, IpAddr);

/// What the kernel says there is.
#[derive(Debug, Default, Clone)]
struct Mirror {
    links: BTreeMap<u32, Link>,
    addresses: BTreeSet<HostAddress>,
    neighbours: BTreeMap<NeighbourKey, NeighbourEntry>,
}

/// Follows the kernel's notifications. Its descriptor becomes readable when there is something to [`Monitor::read`].
#[derive(Debug)]
pub struct Monitor {
    notifications: Socket,
    requests: Socket,
    mirror: Mirror,
    /// What was not told yet.
    events: Vec<Event>,
    resync: bool,
    overflows: u64,
}

impl Monitor {
    /// Subscribes, in the network namespace of the calling thread. The first [`Monitor::read`] lists everything.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::with_buffer(BUFFER)
    }

    /// The same with room for `bytes` of notifications that have not been read.
    pub fn with_buffer(bytes: usize) -> Result<Self, NetlinkError> {
        Ok(Monitor {
            notifications: Socket::subscribe(&GROUPS, bytes)?,
            requests: Socket::open()?,
            mirror: Mirror::default(),
            events: Vec::new(),
            resync: true,
            overflows: 0,
        })
    }

    /// Everything that changed since the last call, in the order in which it happened. Does not wait.
    ///
    /// Where notifications were lost, their sum: the differences to a new listing.
    ///
    /// # Errors
    /// The kernel cannot be followed, or gives no listing. Nothing is lost: the next call takes a new listing, and tells
    /// what this one did not.
    pub fn read(&mut self) -> Result<Vec<Event>, NetlinkError> {
        loop {
            match self.notifications.receive() {
                Ok(Received::Datagram) => {
                    for message in self.notifications.notifications() {
                        apply(&mut self.mirror, &message, &mut self.events);
                    }
                }
                Ok(Received::Overflow) => {
                    self.overflows += 1;
                    self.resync = true;
                }
                Ok(Received::Nothing) => break,
                Err(source) => {
                    self.resync = true;
                    return Err(NetlinkError::Receive { what: "follow changes".into(), source });
                }
            }
        }
        if self.resync {
            let listed = list(&mut self.requests)?;
            difference(&self.mirror, &listed, &mut self.events);
            self.mirror = listed;
            self.resync = false;
        }
        Ok(std::mem::take(&mut self.events))
    }

    /// Makes every listing fail from now on, or no longer. What it misses is made up for by the next one.
    #[cfg(test)]
    pub(crate) fn deafen(&mut self, deaf: bool) {
        self.requests = if deaf { Socket::deaf() } else { Socket::open() }.unwrap();
        self.resync = true;
    }

    /// The devices there are, by index.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.mirror.links.values()
    }

    /// One device.
    pub fn link(&self, ifindex: u32) -> Option<&Link> {
        self.mirror.links.get(&ifindex)
    }

    /// The addresses of this host.
    pub fn addresses(&self) -> impl Iterator<Item = &HostAddress> {
        self.mirror.addresses.iter()
    }

    /// The neighbours the kernel knows of.
    pub fn neighbours(&self) -> impl Iterator<Item = &NeighbourEntry> {
        self.mirror.neighbours.values()
    }

    /// One neighbour.
    pub fn neighbour(&self, ifindex: u32, address: IpAddr) -> Option<&NeighbourEntry> {
        self.mirror.neighbours.get(&(ifindex, address))
    }

    /// How often notifications were lost and a full listing made up for them.
    pub fn overflows(&self) -> u64 {
        self.overflows
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notifications.as_fd()
    }
}

/// Applies one notification to the mirror. What changes nothing is not told.
fn apply(mirror: &mut Mirror, message: &RawMessage<'_>, events: &mut Vec<Event>) {
    use RouteNetlinkMessage::{DelAddress, DelLink, DelNeighbour, NewAddress, NewLink, NewNeighbour};
    if ROUTING.contains(&message.kind) {
        return routes_changed(events);
    }
    match decoded(message) {
        Some(NewLink(message)) => {
            if let Some(link) = decode::link(message) {
                link_changed(mirror, link, events);
            }
        }
        Some(DelLink(message)) => {
            if let Some(link) = decode::link(message) {
                link_gone(mirror, link.ifindex, events);
            }
        }
        Some(NewAddress(message)) => {
            events.extend(
                decode::address(&message)
                    .filter(|address| mirror.addresses.insert(*address))
                    .map(Event::AddressAdded),
            );
        }
        Some(DelAddress(message)) => {
            events.extend(
                decode::address(&message)
                    .filter(|address| mirror.addresses.remove(address))
                    .map(Event::AddressRemoved),
            );
        }
        Some(NewNeighbour(message)) => {
            events.extend(
                decode::neighbour(message)
                    .filter(|entry| mirror.neighbours.insert(key(entry), *entry) != Some(*entry))
                    .map(Event::NeighbourChanged),
            );
        }
        Some(DelNeighbour(message)) => {
            events.extend(
                decode::neighbour(message)
                    .filter(|entry| mirror.neighbours.remove(&key(entry)).is_some())
                    .map(|entry| Event::NeighbourGone { ifindex: entry.ifindex, address: entry.address }),
            );
        }
        _ => {}
    }
}

fn key(entry: &NeighbourEntry) -> NeighbourKey {
    (entry.ifindex, entry.address)
}

/// A message the library cannot read is left out: one odd attribute of one odd device must not stop the director.
fn decoded(message: &RawMessage<'_>) -> Option<RouteNetlinkMessage> {
    message
        .decode()
        .inspect_err(|error| tracing::debug!(kind = message.kind, %error, "netlink message left out"))
        .ok()
}

fn link_changed(mirror: &mut Mirror, link: Link, events: &mut Vec<Event>) {
    let before = mirror.links.insert(link.ifindex, link.clone());
    if before.as_ref() == Some(&link) {
        return;
    }
    // The kernel flushes IPv4 routes of a device that goes down without a word about them.
    if before.is_some_and(|before| before.up != link.up) {
        routes_changed(events);
    }
    events.push(Event::LinkChanged(link));
}

/// What lay on the device went with it, whether the kernel said so or not.
fn link_gone(mirror: &mut Mirror, ifindex: u32, events: &mut Vec<Event>) {
    let Some(link) = mirror.links.remove(&ifindex) else { return };
    for address in mirror.addresses.extract_if(.., |address| address.ifindex == ifindex) {
        events.push(Event::AddressRemoved(address));
    }
    for ((_, address), _) in mirror.neighbours.extract_if(.., |(on, _), _| *on == ifindex) {
        events.push(Event::NeighbourGone { ifindex, address });
    }
    events.push(Event::LinkGone { ifindex, name: link.name });
    routes_changed(events);
}

/// One word is enough for any number of route changes in a row.
fn routes_changed(events: &mut Vec<Event>) {
    if events.last() != Some(&Event::RoutesChanged) {
        events.push(Event::RoutesChanged);
    }
}

/// Lists everything.
fn list(socket: &mut Socket) -> Result<Mirror, NetlinkError> {
    let mut mirror = Mirror::default();
    let asked = [
        (RouteNetlinkMessage::GetLink(LinkMessage::default()), "links"),
        (RouteNetlinkMessage::GetAddress(AddressMessage::default()), "addresses"),
        (RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()), "neighbours"),
    ];
    for (message, what) in asked {
        let earlier = mirror;
        mirror = socket.dump(
            &message,
            &|| format!("list {what}"),
            || earlier.clone(),
            |mirror, raw| apply(mirror, &raw, &mut Vec::new()),
        )?;
    }
    Ok(mirror)
}

/// Tells how to get from one listing to another: what went first, then what came, links before what lies on them.
fn difference(before: &Mirror, now: &Mirror, events: &mut Vec<Event>) {
    for ((ifindex, address), _) in missing(&before.neighbours, &now.neighbours) {
        events.push(Event::NeighbourGone { ifindex: *ifindex, address: *address });
    }
    events.extend(before.addresses.difference(&now.addresses).copied().map(Event::AddressRemoved));
    for (ifindex, link) in missing(&before.links, &now.links) {
        events.push(Event::LinkGone { ifindex: *ifindex, name: link.name.clone() });
    }
    events.extend(changed(&before.links, &now.links).cloned().map(Event::LinkChanged));
    events.extend(now.addresses.difference(&before.addresses).copied().map(Event::AddressAdded));
    events.extend(changed(&before.neighbours, &now.neighbours).copied().map(Event::NeighbourChanged));
    routes_changed(events);
}

fn missing<'a, K: Ord, V>(
    before: &'a BTreeMap<K, V>,
    now: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    before.iter().filter(|(key, _)| !now.contains_key(key))
}

fn changed<'a, K: Ord, V: PartialEq>(
    before: &'a BTreeMap<K, V>,
    now: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a V> {
    now.iter().filter(|(key, value)| before.get(key) != Some(value)).map(|(_, value)| value)
}
