//! Whether traffic for a virtual address can come to the devices held.
//!
//! Frames for an address reach a device in two ways: a neighbour finds the address by ARP or neighbour discovery, for
//! which it must be an address of this host; or a router sends them here, which this host cannot see. So a missing
//! address is no error, and may be put in place after the service. What is not in order after a little while is said
//! once.

use crate::netlink::{HostAddress, Link, Monitor, masked};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// Time for whoever configures the director to put the address in place after the service.
const GRACE: Duration = Duration::from_secs(5);

/// This host's devices and addresses, and which of the devices the director holds.
#[derive(Debug)]
pub struct Host<'a> {
    links: Vec<&'a Link>,
    /// The devices that have each address.
    addresses: HashMap<IpAddr, u32>,
    /// One device for each connected subnet, by its network and prefix length: one held, if there is one.
    subnets: HashMap<(IpAddr, u8), u32>,
    /// The lengths there are, the longest first.
    lengths: Vec<u8>,
    /// The addresses of all hosts of a subnet.
    broadcasts: HashSet<IpAddr>,
    held: &'a [u32],
}

impl<'a> Host<'a> {
    /// As the monitor knows it; `held` are the indices of the director's devices, in their order.
    pub fn of(monitor: &'a Monitor, held: &'a [u32]) -> Self {
        Self::with(monitor.links().collect(), monitor.addresses(), held)
    }

    fn with(links: Vec<&'a Link>, all: impl Iterator<Item = &'a HostAddress>, held: &'a [u32]) -> Self {
        let (mut addresses, mut subnets, mut broadcasts) = (HashMap::new(), HashMap::new(), HashSet::new());
        for host in all {
            let HostAddress { ifindex, address, prefix_len } = host;
            broadcasts.extend(host.broadcast().map(IpAddr::V4));
            addresses.entry(*address).or_insert(*ifindex);
            let whole = if address.is_ipv4() { 32 } else { 128 };
            if *prefix_len < whole {
                let device = subnets.entry((masked(*address, *prefix_len), *prefix_len)).or_insert(*ifindex);
                if held.contains(ifindex) {
                    *device = *ifindex;
                }
            }
        }
        let lengths: BTreeSet<u8> = subnets.keys().map(|(_, length)| *length).collect();
        Host { links, addresses, subnets, lengths: lengths.into_iter().rev().collect(), broadcasts, held }
    }

    /// The device that has `address`.
    pub(super) fn device_with(&self, address: IpAddr) -> Option<u32> {
        self.addresses.get(&address).copied()
    }

    /// The device held whose subnet `address` belongs to.
    pub(super) fn subnet_of(&self, address: IpAddr) -> Option<u32> {
        self.subnet(address).map(|subnet| subnet.ifindex).filter(|ifindex| self.held.contains(ifindex))
    }

    /// The first device held that is there.
    pub(super) fn first(&self) -> Option<u32> {
        self.held.iter().copied().find(|ifindex| self.has(*ifindex))
    }

    /// Whether the device is there.
    pub(super) fn has(&self, ifindex: u32) -> bool {
        self.links.iter().any(|link| link.ifindex == ifindex)
    }

    /// Whether there are several devices held.
    pub(super) fn has_several(&self) -> bool {
        self.held.iter().filter(|ifindex| self.has(**ifindex)).nth(1).is_some()
    }

    /// Whether `address` is that of all hosts of a link (RFC 919): of one of this host's, or of whichever.
    pub(super) fn is_broadcast(&self, address: IpAddr) -> bool {
        address == Ipv4Addr::BROADCAST || self.broadcasts.contains(&address)
    }

    /// The narrowest connected subnet that `address` belongs to, by its network's address; of several devices in it, one
    /// held.
    fn subnet(&self, address: IpAddr) -> Option<HostAddress> {
        let whole = if address.is_ipv4() { 32 } else { 128 };
        self.lengths.iter().filter(|length| **length < whole).find_map(|length| {
            let network = masked(address, *length);
            let ifindex = *self.subnets.get(&(network, *length))?;
            Some(HostAddress { ifindex, address: network, prefix_len: *length })
        })
    }

    /// Why nothing for `vip` will come to the devices held, as one sentence that says what to do; `None` when it may.
    pub fn objection(&self, vip: IpAddr) -> Option<String> {
        let ours = self.device_with(vip).is_some();
        let Some(subnet) = self.subnet(vip) else {
            let alone = format!(
                "{vip} is no address of this host and on none of its subnets: only what a router sends here will \
                 reach this director; use --assign-vips, or 'ip address add {vip} dev {}'",
                self.name(self.first().unwrap_or(0)),
            );
            return (!ours).then_some(alone);
        };
        let name = self.name(subnet.ifindex);
        let network = format!("{}/{}", subnet.address, subnet.prefix_len);
        if !self.held.contains(&subnet.ifindex) {
            return Some(format!(
                "{vip} is on the subnet {network} of device {name}, which this director does not hold: traffic for \
                 it goes to the kernel; add --interface {name}",
            ));
        }
        (!ours).then(|| {
            format!(
                "{vip} is on the subnet {network} of device {name}, but no host there will find it, because it is no \
                 address of this host; use --assign-vips, or 'ip address add {vip} dev {name}'",
            )
        })
    }

    fn name(&self, ifindex: u32) -> &str {
        self.links.iter().find(|link| link.ifindex == ifindex).map_or("DEVICE", |link| &link.name)
    }
}

#[derive(Debug)]
struct Watch {
    services: usize,
    /// Since when something is to be said of it; `None` while it is in order.
    since: Option<Instant>,
    told: bool,
}

/// Watches over the virtual addresses of services.
#[derive(Debug, Default)]
pub struct Reach {
    vips: BTreeMap<IpAddr, Watch>,
    due: Option<Instant>,
}

impl Reach {
    /// A service has the address `vip`.
    pub fn watch(&mut self, vip: IpAddr, now: Instant) {
        let new = || {
            self.due.get_or_insert(now + GRACE);
            Watch { services: 0, since: Some(now), told: false }
        };
        self.vips.entry(vip).or_insert_with(new).services += 1;
    }

    /// A service with the address `vip` is gone.
    pub fn unwatch(&mut self, vip: IpAddr) {
        if let Some(watch) = self.vips.get_mut(&vip) {
            watch.services -= 1;
            if watch.services == 0 {
                self.vips.remove(&vip);
            }
        }
    }

    /// When [`Reach::objections`] may have something new to say of addresses that do not change.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// What is to be said now, one sentence an address, each once until it was in order again. To be called when the host's
    /// links or addresses changed, and when it is [due](Reach::due): it looks at every address, which takes its time.
    pub fn objections(&mut self, host: &Host<'_>, now: Instant) -> Vec<String> {
        let mut sentences = Vec::new();
        self.due = None;
        for (vip, watch) in &mut self.vips {
            match host.objection(*vip) {
                None => *watch = Watch { since: None, told: false, ..*watch },
                Some(_) if watch.told => {}
                Some(sentence) => {
                    let due = *watch.since.get_or_insert(now) + GRACE;
                    if now >= due {
                        watch.told = true;
                        sentences.push(sentence);
                    } else {
                        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
                    }
                }
            }
        }
        sentences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(ifindex: u32, name: &str) -> Link {
        Link {
            ifindex,
            name: name.into(),
            mac: None,
            mtu: 1500,
            up: true,
            loopback: name == "lo",
            lower: None,
            controller: None,
            kind: None,
        }
    }

    fn address(ifindex: u32, text: &str) -> HostAddress {
        let (address, prefix_len) = text.split_once('/').unwrap();
        HostAddress { ifindex, address: address.parse().unwrap(), prefix_len: prefix_len.parse().unwrap() }
    }

    /// `lo`, and `eth0` and `eth1`, the latter not held, with one address more.
    fn with_host<R>(more: Option<(u32, &str)>, look: impl FnOnce(Host<'_>) -> R) -> R {
        let links = [link(1, "lo"), link(2, "eth0"), link(3, "eth1")];
        let mut addresses = vec![
            address(1, "127.0.0.1/8"),
            address(2, "10.0.0.1/24"),
            address(2, "fd00::1/64"),
            address(3, "10.0.1.1/24"),
        ];
        addresses.extend(more.map(|(ifindex, text)| address(ifindex, text)));
        look(Host::with(links.iter().collect(), addresses.iter(), &[2]))
    }

    #[test]
    fn what_stands_between_a_vip_and_its_traffic_is_said() {
        let (assign, hold, router) = (
            Some("no host there will find it"),
            Some("add --interface eth1"),
            Some("only what a router sends"),
        );
        for (shows, more, vip, expected) in [
            ("on the device held", Some((2, "10.0.0.80/32")), "10.0.0.80", None),
            ("on lo, in a subnet held", Some((1, "10.0.0.80/32")), "10.0.0.80", None),
            ("on lo, routed here", Some((1, "192.0.2.80/32")), "192.0.2.80", None),
            ("the host's own address", None, "10.0.0.1", None),
            ("IPv6", Some((2, "fd00::80/128")), "fd00::80", None),
            ("in a subnet held, but nowhere", None, "10.0.0.80", assign),
            ("IPv6 in a subnet held, but nowhere", None, "fd00::80", assign),
            ("in a subnet not held", None, "10.0.1.80", hold),
            ("on a device not held", Some((3, "10.0.1.80/32")), "10.0.1.80", hold),
            ("nowhere at all", None, "192.0.2.80", router),
            ("IPv6 nowhere at all", None, "2001:db8::80", router),
            ("in a subnet held within one that is not", Some((3, "10.0.0.1/16")), "10.0.0.80", assign),
        ] {
            let sentence = with_host(more, |host| host.objection(vip.parse().unwrap()));
            match expected {
                None => assert_eq!(sentence, None, "{shows}"),
                Some(part) => {
                    let sentence = sentence.unwrap_or_else(|| panic!("{shows}: nothing was said"));
                    assert!(sentence.contains(part) && sentence.starts_with(vip), "{shows}: {sentence}");
                }
            }
        }
    }

    #[test]
    fn it_is_said_after_a_while_and_once() {
        let start = Instant::now();
        let vip = IpAddr::from([10, 0, 0, 80]);
        let mut reach = Reach::default();
        reach.watch(vip, start);
        reach.watch(vip, start);
        assert_eq!(reach.due(), Some(start + GRACE));
        let say = |reach: &mut Reach, more, seconds| {
            with_host(more, |host| reach.objections(&host, start + Duration::from_secs(seconds)).len())
        };
        let there = Some((1, "10.0.0.80/32"));
        assert_eq!(say(&mut reach, None, 1), 0, "not at once");
        assert_eq!(reach.due(), Some(start + GRACE), "no look is due before");
        assert_eq!(say(&mut reach, None, 5), 1);
        assert_eq!(reach.due(), None);
        assert_eq!(say(&mut reach, None, 60), 0, "not again");
        assert_eq!(say(&mut reach, there, 70), 0, "in order");
        assert_eq!(reach.due(), None, "nothing is due while nothing changes");
        assert_eq!(say(&mut reach, None, 71), 0, "not at once");
        assert_eq!(say(&mut reach, None, 80), 1, "lost again");
        reach.unwatch(vip);
        assert_eq!(reach.vips.len(), 1, "one service is left");
        reach.unwatch(vip);
        assert_eq!(reach.vips.len(), 0);
    }
}
