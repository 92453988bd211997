//! The kernel's routes in the snapshot.

use crate::director::{Director, neighbour};
use crate::support::{
    Namespace, add_address, add_route, add_route_of_kind, add_rule, ask, delete_address, delete_link, down,
    route, set_mac, set_mtu,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteType;
use std::time::Duration;
use uvs_control::netlink::PortChange;
use uvs_engine::PortId;
use uvs_engine::nexthop::{Resolved, Target};

/// A namespace with devices `a` (10.0.0.1/24, fd00::1/64), `b` (10.0.1.1/24) and `c` (10.0.2.1/24).
fn three_links() -> (Namespace, Namespace) {
    let (here, there) = (Namespace::new(), Namespace::new());
    for (name, peer, address) in
        [("a", "x", "10.0.0.1/24"), ("b", "y", "10.0.1.1/24"), ("c", "z", "10.0.2.1/24")]
    {
        here.veth(name, &there, peer);
        here.run(|| add_address(name, address));
    }
    here.run(|| add_address("a", "fd00::1/64"));
    (here, there)
}

fn target(director: &Director, destination: &str) -> Target {
    director.config.load().routes.target(destination.parse().unwrap())
}

#[test]
fn the_tables_are_followed() {
    let (here, _there) = three_links();
    here.run(|| {
        add_route("0.0.0.0/0", "10.0.0.254", "a", 0);
        add_route("::/0", "fd00::fe", "a", 1024);
        add_route("192.0.2.0/24", "10.0.1.254", "b", 200);
        add_route("192.0.2.0/24", "10.0.0.253", "a", 100);
        add_route("198.51.100.0/24", "10.0.2.254", "c", 0);
        add_route_of_kind("203.0.113.0/24", RouteType::BlackHole);
        add_route_of_kind("203.0.113.0/25", RouteType::Prohibit);
        add_route_of_kind("2001:db8::/32", RouteType::Unreachable);
        let mut director = Director::holding(&["a", "b"], 64);
        let default = Target::Via(neighbour(0, "10.0.0.254"));
        for (destination, expected) in [
            ("8.8.8.8", default),
            ("10.0.0.7", Target::OnLink(PortId(0))),
            ("10.0.1.7", Target::OnLink(PortId(1))),
            ("10.0.1.1", Target::Local),
            ("127.0.0.5", Target::Local),
            ("10.0.0.255", Target::Unreachable),
            ("192.0.2.1", Target::Via(neighbour(0, "10.0.0.253"))),
            ("198.51.100.1", Target::Elsewhere),
            ("10.0.2.9", Target::Elsewhere),
            ("203.0.113.1", Target::Unreachable),
            ("203.0.113.200", Target::Unreachable),
            ("fd00::7", Target::OnLink(PortId(0))),
            ("fd00::1", Target::Local),
            ("2001:db8::1", Target::Unreachable),
            ("2001:4860::8", Target::Via(neighbour(0, "fd00::fe"))),
        ] {
            // The kernel adds the local routes of IPv6 addresses a little later.
            director.until(destination, |d| target(d, destination) == expected);
        }
        assert_eq!(director.routing.current().policy_rules, 0);
        let gateways = director.routing.current().gateways();
        let expected = [
            neighbour(0, "10.0.0.253"),
            neighbour(0, "10.0.0.254"),
            neighbour(0, "fd00::fe"),
            neighbour(1, "10.0.1.254"),
        ];
        assert!(gateways.iter().all(|gateway| expected.contains(gateway)), "{gateways:?}");
    });
}

#[test]
fn changes_are_followed() {
    let (here, _there) = three_links();
    here.run(|| {
        add_route("0.0.0.0/0", "10.0.0.254", "a", 0);
        let mut director = Director::holding(&["a", "b", "c"], 64);
        let default = Target::Via(neighbour(0, "10.0.0.254"));
        assert_eq!(target(&director, "192.0.2.1"), default);
        add_route("192.0.2.0/24", "10.0.1.254", "b", 0);
        let specific = Target::Via(neighbour(1, "10.0.1.254"));
        director.until("a more specific route", |d| target(d, "192.0.2.1") == specific);
        ask(RouteNetlinkMessage::DelRoute(route("192.0.2.0/24")), 0);
        director.until("its end", |d| target(d, "192.0.2.1") == default);
        add_address("c", "192.0.2.1/32");
        director.until("an address of our own", |d| target(d, "192.0.2.1") == Target::Local);
        delete_address("c", "192.0.2.1/32");
        director.until("its end", |d| target(d, "192.0.2.1") == default);
        down("b");
        director.until("routes of a device that went down", |d| target(d, "10.0.1.7") == default);
        delete_link("a");
        director.until("routes of a device that is gone", |d| d.resolve("10.0.0.7") == Resolved::NoRoute);
        assert_eq!(target(&director, "10.0.2.9"), Target::OnLink(PortId(2)));
    });
}

#[test]
fn a_burst_is_read_once_and_the_same_is_not_published_again() {
    let (here, _there) = three_links();
    here.run(|| {
        let mut director = Director::holding(&["a"], 64);
        let before = director.config.load().generation;
        for n in 0..100 {
            add_route(&format!("192.0.2.{n}/32"), "10.0.0.254", "a", 0);
        }
        let last = Target::Via(neighbour(0, "10.0.0.254"));
        director.until("the last of many", |d| target(d, "192.0.2.99") == last);
        assert_eq!(director.config.load().generation, before + 1, "all in one");
        // A route elsewhere that changes nothing for us: the tables are read and found the same.
        let mut other = route("198.51.100.0/24");
        other.header.table = 100;
        other.header.kind = RouteType::BlackHole;
        ask(RouteNetlinkMessage::NewRoute(other), netlink_packet_core::NLM_F_CREATE);
        director.turn(Duration::from_secs(1));
        assert!(director.routing.due().is_some());
        director.until("another reading", |d| d.routing.due().is_none());
        assert_eq!(director.config.load().generation, before + 1);
    });
}

#[test]
fn policy_routing_is_noticed() {
    let (here, _there) = three_links();
    here.run(|| {
        let mut director = Director::holding(&["a"], 64);
        assert_eq!(director.routing.current().policy_rules, 0);
        add_rule();
        director.until("the rule", |d| d.routing.current().policy_rules == 1);
    });
}

#[test]
fn ports_follow_their_devices() {
    let (here, _there) = three_links();
    here.run(|| {
        let mut director = Director::holding(&["a", "b"], 64);
        let port = |d: &Director, id: usize| d.config.load().ports[id].clone();
        assert_eq!((port(&director, 1).mtu, port(&director, 1).up), (1500, true));
        set_mtu("b", 1400);
        set_mac("b", [2, 0, 0, 0, 0, 0x42]);
        director.until("another MTU and address", |d| {
            (port(d, 1).mtu, port(d, 1).mac) == (1400, [2, 0, 0, 0, 0, 0x42])
        });
        assert_eq!(director.port_changes.first(), Some(&PortChange::Changed(PortId(1))));
        down("b");
        director.until("a device that is down", |d| !port(d, 1).up);
        delete_link("a");
        director.until("the end of a device", |d| d.port_changes.contains(&PortChange::Gone(PortId(0))));
        assert_eq!((port(&director, 0).name.as_str(), port(&director, 0).up), ("a", false));
    });
}
