//! The kernel's routes as the engine's: what a packet to each prefix would meet in the tables `local`, `main` and
//! `default`, in this order, as without policy routing.
//!
//! - Of several routes to one prefix the lowest metric counts among those that are alive.
//! - Of several paths of one route the first counts that is alive and leaves through a device of ours; else the first
//!   alive one, and the target is elsewhere. Flows are not spread over paths.
//! - Routes for one source, TOS or encapsulation are left to the kernel: the first two are not read, the last leads
//!   elsewhere.
//! - The tables are read anew after a change, not patched: the kernel flushes the IPv4 routes of a device that goes down
//!   without telling.

use super::socket::Socket;
use super::tables::{Entry, TABLES, merge};
use super::{NetlinkError, rules};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteNextHopFlags,
    RouteType, RouteVia,
};
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uvs_engine::PortId;
use uvs_engine::nexthop::{Route, Target};
use uvs_engine::snapshot::Config;
use uvs_engine::verdict::Neighbour;

/// What IPv4 routes without a metric have.
const NO_METRIC: u32 = 0;
/// How long a change waits for others before the tables are read.
const QUIET: Duration = Duration::from_millis(10);
/// The tables are read for at most one part in so many of the time, however often they change.
const SHARE: u32 = 10;

/// What the kernel's tables say, and what of it is not followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelRoutes {
    /// One route a prefix.
    pub routes: Vec<Route>,
    /// How many rules there are besides the default ones.
    pub policy_rules: usize,
}

impl KernelRoutes {
    /// The gateways on links of ours.
    pub fn gateways(&self) -> BTreeSet<Neighbour> {
        self.routes
            .iter()
            .filter_map(|route| match route.target {
                Target::Via(neighbour) => Some(neighbour),
                _ => None,
            })
            .collect()
    }
}

/// Keeps the snapshot's routes in step with the kernel's.
#[derive(Debug)]
pub struct Routing {
    socket: Socket,
    config: Arc<Config>,
    current: KernelRoutes,
    due: Option<Instant>,
    cost: Duration,
}

impl Routing {
    /// Reads nothing yet; the first [`Routing::update`] does. Opened in the network namespace of the calling thread.
    pub fn open(config: Arc<Config>, now: Instant) -> Result<Self, NetlinkError> {
        let current = KernelRoutes::default();
        Ok(Routing { socket: Socket::open()?, config, current, due: Some(now), cost: Duration::ZERO })
    }

    /// Routes have changed, or the devices held have. They will be read in a little while, once for all changes till
    /// then.
    pub fn changed(&mut self, now: Instant) {
        self.due.get_or_insert(now + QUIET.max(self.cost * SHARE));
    }

    /// When [`Routing::update`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Reads the tables if it is time to and publishes the routes if they differ. `true` when they do.
    ///
    /// # Errors
    /// The tables could not be read. The routes stay as they are, and another reading is due a second later.
    pub fn update(&mut self, now: Instant) -> Result<bool, NetlinkError> {
        if self.due.is_none_or(|due| now < due) {
            return Ok(false);
        }
        let begin = Instant::now();
        let ports: BTreeMap<u32, PortId> = self
            .config
            .load()
            .ports
            .iter()
            .zip(0_u16..)
            .map(|(port, id)| (port.ifindex, PortId(id)))
            .collect();
        let read = read(&mut self.socket, &|ifindex| ports.get(&ifindex).copied());
        self.cost = begin.elapsed();
        self.due = read.is_err().then(|| now + Duration::from_secs(1).max(self.cost * SHARE));
        let routes = read?;
        let others = routes.policy_rules;
        if others > 0 && self.current.policy_rules == 0 {
            tracing::warn!(
                "policy routing is not followed: besides the default ones the kernel has {others} routing rules \
                 (see 'ip rule'); packets of virtual services take the routes of table main"
            );
        }
        let differ = routes.routes != self.current.routes;
        if differ {
            self.config.publish(|snapshot| {
                snapshot.routes = Arc::new(snapshot.routes.with_routes(routes.routes.iter().copied()));
            });
        }
        self.current = routes;
        Ok(differ)
    }

    /// Makes every reading of the tables fail from now on, or no longer; one is due.
    #[cfg(test)]
    pub(crate) fn deafen(&mut self, deaf: bool, now: Instant) {
        self.socket = if deaf { Socket::deaf() } else { Socket::open() }.unwrap();
        self.due = Some(now);
    }

    /// What the tables said when they were read last.
    pub fn current(&self) -> &KernelRoutes {
        &self.current
    }
}

/// Reads the kernel's tables; `held` tells which devices are ours.
fn read(socket: &mut Socket, held: &dyn Fn(u32) -> Option<PortId>) -> Result<KernelRoutes, NetlinkError> {
    let mut kernel = KernelRoutes::default();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut routes = RouteMessage::default();
        routes.header.address_family = family;
        let listed = socket.dump(
            &RouteNetlinkMessage::GetRoute(routes),
            &|| "list routes".to_owned(),
            Vec::new,
            |list, raw| match raw.decode() {
                Ok(RouteNetlinkMessage::NewRoute(message)) => list.extend(entry(&message, held)),
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "route left out"),
            },
        )?;
        kernel.routes.extend(merge(listed));
        kernel.policy_rules += policy_rules(socket, family)?;
    }
    Ok(kernel)
}

/// How many rules of a family there are besides the default ones. None where the kernel has no rules for the family, be it
/// without policy routing (EOPNOTSUPP) or without the family (EAFNOSUPPORT).
fn policy_rules(socket: &mut Socket, family: AddressFamily) -> Result<usize, NetlinkError> {
    let mut rules = RuleMessage::default();
    rules.header.family = family;
    let counted = socket.dump(
        &RouteNetlinkMessage::GetRule(rules),
        &|| "list routing rules".to_owned(),
        || 0,
        |others, raw| {
            *others += usize::from(
                !matches!(raw.decode(), Ok(RouteNetlinkMessage::NewRule(rule)) if rules::is_default(&rule)),
            );
        },
    );
    match counted {
        Err(error) if matches!(error.errno(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => Ok(0),
        counted => counted,
    }
}

/// Reads one message. `None` for what plays no part here: other tables, cached routes, routes for some packets only,
/// and those whose every path is dead.
fn entry(message: &RouteMessage, held: &dyn Fn(u32) -> Option<PortId>) -> Option<Entry> {
    let header = &message.header;
    let partial = header.source_prefix_length != 0 || header.tos != 0;
    if partial || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let mut table = u32::from(header.table);
    let mut metric = NO_METRIC;
    let mut network = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Destination(RouteAddress::Inet(address)) => network = IpAddr::V4(*address),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => network = IpAddr::V6(*address),
            _ => {}
        }
    }
    let table = TABLES.iter().position(|counts| *counts == table)?;
    let target = target(header, &message.attributes, held)?;
    Some(Entry { table, metric, route: Route { network, length: header.destination_prefix_length, target } })
}

fn target(
    header: &RouteHeader,
    attributes: &[RouteAttribute],
    held: &dyn Fn(u32) -> Option<PortId>,
) -> Option<Target> {
    match header.kind {
        RouteType::Unicast => {}
        RouteType::Local | RouteType::Anycast => return Some(Target::Local),
        // Blackhole, unreachable, prohibit; throw, which ends the search in the only table left to search; broadcast
        // and multicast, which no connection is made to.
        _ => return Some(Target::Unreachable),
    }
    let paths = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(paths) => Some(paths),
        _ => None,
    });
    let mut targets = match paths {
        Some(paths) => paths
            .iter()
            .filter(|path| is_alive(path))
            .map(|path| hop(path.interface_index, &path.attributes, held))
            .collect(),
        None if header.flags.contains(RouteFlags::Dead) => Vec::new(),
        None => {
            let device = attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
            vec![hop(device.unwrap_or(0), attributes, held)]
        }
    };
    let best = targets.iter().position(|target| *target != Target::Elsewhere).unwrap_or(0);
    (best < targets.len()).then(|| targets.swap_remove(best))
}

fn is_alive(path: &RouteNextHop) -> bool {
    !path.flags.contains(RouteNextHopFlags::Dead)
}

/// Where one path leads.
fn hop(ifindex: u32, attributes: &[RouteAttribute], held: &dyn Fn(u32) -> Option<PortId>) -> Target {
    let encapsulated = attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Encap(_)));
    let Some(port) = held(ifindex).filter(|_| !encapsulated) else { return Target::Elsewhere };
    let gateway = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address))
        | RouteAttribute::Via(RouteVia::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Gateway(RouteAddress::Inet6(address))
        | RouteAttribute::Via(RouteVia::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    // The kernel spells "no gateway" as an unspecified one here and there.
    match gateway.filter(|address| !address.is_unspecified()) {
        Some(address) => Target::Via(Neighbour { port, address }),
        None => Target::OnLink(port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Devices 1 and 2 are ports 0 and 1; all others are not ours.
    fn held(ifindex: u32) -> Option<PortId> {
        (1..=2).contains(&ifindex).then(|| PortId(u16::try_from(ifindex - 1).unwrap()))
    }

    fn gateway(last: u8) -> RouteAttribute {
        RouteAttribute::Gateway(RouteAddress::Inet([10, 0, 0, last].into()))
    }

    fn via(port: u16, last: u8) -> Target {
        Target::Via(Neighbour { port: PortId(port), address: [10, 0, 0, last].into() })
    }

    fn path(ifindex: u32, last: u8, flags: RouteNextHopFlags) -> RouteNextHop {
        let mut path = RouteNextHop::default();
        path.interface_index = ifindex;
        path.flags = flags;
        path.attributes = vec![gateway(last)];
        path
    }

    #[test]
    fn routes_lead_where_the_kernels_do() {
        use RouteAttribute::{MultiPath, Oif};
        let dead = RouteNextHopFlags::Dead;
        let alive = RouteNextHopFlags::empty();
        let v6 = RouteVia::Inet6(Ipv6Addr::LOCALHOST);
        let cases: &[(&str, RouteType, Vec<RouteAttribute>, Option<Target>)] = &[
            ("on a link of ours", RouteType::Unicast, vec![Oif(2)], Some(Target::OnLink(PortId(1)))),
            ("by a gateway", RouteType::Unicast, vec![Oif(1), gateway(1)], Some(via(0, 1))),
            (
                "an IPv4 destination by an IPv6 gateway",
                RouteType::Unicast,
                vec![Oif(1), RouteAttribute::Via(v6)],
                Some(Target::Via(Neighbour { port: PortId(0), address: Ipv6Addr::LOCALHOST.into() })),
            ),
            ("by a device not held", RouteType::Unicast, vec![Oif(3), gateway(1)], Some(Target::Elsewhere)),
            (
                "encapsulated",
                RouteType::Unicast,
                vec![Oif(1), RouteAttribute::Encap(vec![])],
                Some(Target::Elsewhere),
            ),
            ("to this host", RouteType::Local, vec![Oif(9)], Some(Target::Local)),
            ("to a group of hosts", RouteType::Anycast, vec![Oif(9)], Some(Target::Local)),
            ("nowhere, silently", RouteType::BlackHole, vec![], Some(Target::Unreachable)),
            ("nowhere, with a word", RouteType::Unreachable, vec![], Some(Target::Unreachable)),
            ("nowhere, by order", RouteType::Prohibit, vec![], Some(Target::Unreachable)),
            ("to all hosts of a link", RouteType::Broadcast, vec![Oif(1)], Some(Target::Unreachable)),
            (
                "by the first of two paths",
                RouteType::Unicast,
                vec![MultiPath(vec![path(1, 1, alive), path(2, 2, alive)])],
                Some(via(0, 1)),
            ),
            (
                "by the first path alive",
                RouteType::Unicast,
                vec![MultiPath(vec![path(1, 1, dead), path(2, 2, alive)])],
                Some(via(1, 2)),
            ),
            (
                "by the first path of ours",
                RouteType::Unicast,
                vec![MultiPath(vec![path(3, 1, alive), path(2, 2, alive)])],
                Some(via(1, 2)),
            ),
            (
                "by paths not ours",
                RouteType::Unicast,
                vec![MultiPath(vec![path(1, 1, dead), path(3, 2, alive)])],
                Some(Target::Elsewhere),
            ),
            ("by dead paths", RouteType::Unicast, vec![MultiPath(vec![path(1, 1, dead)])], None),
        ];
        for (shows, kind, attributes, expected) in cases {
            let header = RouteHeader { kind: *kind, ..RouteHeader::default() };
            assert_eq!(target(&header, attributes, &held), *expected, "{shows}");
        }
    }

    #[test]
    fn a_family_without_rules_has_none() {
        // No kernel has routing rules for X.25; it answers as one without IPv6 does for IPv6.
        let mut socket = Socket::open().unwrap();
        assert_eq!(policy_rules(&mut socket, AddressFamily::X25).unwrap(), 0);
    }

    #[test]
    fn what_plays_no_part_is_left_out() {
        let unicast = || {
            let mut message = RouteMessage::default();
            message.header.address_family = AddressFamily::Inet;
            message.header.kind = RouteType::Unicast;
            message.header.table = 254;
            message.attributes = vec![RouteAttribute::Oif(1)];
            message
        };
        let read = |change: fn(&mut RouteMessage)| {
            let mut message = unicast();
            change(&mut message);
            entry(&message, &held).is_some()
        };
        assert!(read(|_| {}));
        assert!(!read(|m| m.header.tos = 8), "for one type of service");
        assert!(!read(|m| m.header.source_prefix_length = 64), "for one source");
        assert!(!read(|m| m.header.flags = RouteFlags::Cloned), "learnt, not configured");
        assert!(!read(|m| m.header.flags = RouteFlags::Dead), "dead");
        assert!(!read(|m| m.header.table = 100), "of another table");
        assert!(!read(|m| m.attributes.push(RouteAttribute::Table(1000))), "of a table of a great number");
    }
}
