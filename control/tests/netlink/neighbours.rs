//! The kernel's neighbours among the workers' next hops.

use crate::director::Director;
use crate::support::{
    Namespace, add_address, add_route, delete_address, delete_link, mac_of, set_mac, set_neighbour,
};
use netlink_packet_route::neighbour::NeighbourState as Wire;
use std::net::IpAddr;
use std::time::Duration;
use uvs_control::netlink::NeighbourState;
use uvs_engine::nexthop::Resolved;

const SECOND: Duration = Duration::from_secs(1);
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 0x42];

/// A director's namespace with device `a` (10.0.0.1/24, fd00::1/64) and a server's with device `s` (10.0.0.2/24,
/// fd00::2/64), and the server's link-layer address.
fn with_server() -> (Namespace, Namespace, [u8; 6]) {
    let (here, there) = (Namespace::new(), Namespace::new());
    here.veth("a", &there, "s");
    let mac = there.run(|| {
        add_address("s", "10.0.0.2/24");
        add_address("s", "fd00::2/64");
        mac_of("s")
    });
    here.run(|| {
        add_address("a", "10.0.0.1/24");
        add_address("a", "fd00::1/64");
    });
    (here, there, mac)
}

/// Shortens the kernel's patience on `a` so that a test sees what takes it half a minute.
fn hurry(family: &str) {
    let knob = |name: &str, value: &str| {
        std::fs::write(format!("/proc/sys/net/{family}/neigh/a/{name}"), value).unwrap();
    };
    knob("base_reachable_time_ms", "200");
    knob("delay_first_probe_time", "0");
    knob("retrans_time_ms", "100");
}

fn state(director: &Director, address: &str) -> Option<NeighbourState> {
    let address: IpAddr = address.parse().unwrap();
    director.monitor.neighbours().find(|entry| entry.address == address).map(|entry| entry.state)
}

#[test]
fn what_a_worker_asks_for_is_resolved() {
    let (here, _there, mac) = with_server();
    here.run(|| {
        let mut director = Director::holding(&["a"], 64);
        for server in ["10.0.0.2", "fd00::2"] {
            assert!(matches!(director.resolve(server), Resolved::Unresolved(_)));
            director.request(server);
            director.until("an answer", |d| d.hop(server) == Some((0, mac)));
        }
    });
}

#[test]
fn servers_and_gateways_are_resolved_ahead() {
    let (here, there, mac) = with_server();
    there.run(|| add_address("s", "10.0.0.254/24"));
    here.run(|| {
        add_route("192.0.2.0/24", "10.0.0.254", "a", 0);
        let mut director = Director::holding(&["a"], 64);
        director.neighbours.watch("10.0.0.2".parse().unwrap());
        director.until("a server", |d| d.hop("10.0.0.2") == Some((0, mac)));
        director.until("a gateway", |d| d.hop("192.0.2.9") == Some((0, mac)));
        // A server whose route appears after it was configured.
        director.neighbours.watch("fd77::1".parse().unwrap());
        add_route("fd77::/64", "fd00::2", "a", 1024);
        director.until("a server behind a new route", |d| d.hop("fd77::1") == Some((0, mac)));
    });
}

#[test]
fn a_server_that_does_not_answer_is_asked_for_again() {
    let (here, there, mac) = with_server();
    here.run(|| hurry("ipv4"));
    there.run(|| delete_address("s", "10.0.0.2/24"));
    here.run(|| {
        let mut director = Director::holding(&["a"], 64);
        director.neighbours.watch("10.0.0.2".parse().unwrap());
        director.until("silence", |d| state(d, "10.0.0.2") == Some(NeighbourState::Failed));
        assert_eq!(director.hop("10.0.0.2"), None);
        there.run(|| add_address("s", "10.0.0.2/24"));
        director.until("an answer", |d| {
            d.skip(SECOND);
            d.hop("10.0.0.2") == Some((0, mac))
        });
    });
}

#[test]
fn one_question_a_second_is_enough() {
    let (here, _there, _mac) = with_server();
    here.run(|| {
        let mut director = Director::holding(&["a"], 64);
        let before = director.neighbours.stats().asked;
        for _ in 0..100 {
            director.request("10.0.0.66");
        }
        assert_eq!(director.neighbours.stats().asked, before + 1);
        assert_eq!(director.neighbours.stats().passed_over, 0);
        for n in 0..2000 {
            director.request(&format!("10.0.0.{}", 2 + n % 250));
            director.request(&format!("fd00::1:{n}"));
        }
        let stats = director.neighbours.stats();
        assert!(stats.asked - before <= 1024, "{stats:?}");
        assert!(stats.passed_over > 0);
    });
}

#[test]
fn a_server_that_announces_itself_anew_is_followed() {
    let (here, there, mac) = with_server();
    here.run(|| {
        let mut director = Director::holding(&["a"], 64);
        director.request("10.0.0.2");
        director.until("the server", |d| d.hop("10.0.0.2") == Some((0, mac)));
        let Resolved::Hop(place) = director.resolve("10.0.0.2") else { panic!("it was just resolved") };
        let generation = director.config.load().generation;
        set_neighbour("a", "10.0.0.2", OTHER, Wire::Reachable);
        director.until("the other address", |d| d.hop("10.0.0.2") == Some((0, OTHER)));
        assert_eq!(director.resolve("10.0.0.2"), Resolved::Hop(place), "connections keep their next hop");
        assert_eq!(director.config.load().generation, generation, "and no snapshot was needed");
        drop(there);
    });
}

#[test]
fn a_replaced_server_is_noticed_while_frames_flow() {
    for (family, server) in [("ipv4", "10.0.0.2"), ("ipv6", "fd00::2")] {
        let (here, there, mac) = with_server();
        here.run(|| {
            hurry(family);
            let mut director = Director::holding(&["a"], 64);
            director.request(server);
            director.until("the server", |d| d.hop(server) == Some((0, mac)));
            director.until("doubt", |d| state(d, server) == Some(NeighbourState::Stale));
            // The new one says nothing until it is asked.
            there.run(|| set_mac("s", OTHER));
            director.until("the new server", |d| {
                let hop = d.hop(server);
                d.skip(SECOND);
                if hop.is_none() {
                    d.request(server);
                }
                hop == Some((0, OTHER))
            });
        });
    }
}

#[test]
fn the_unused_are_left_alone() {
    let (here, _there, mac) = with_server();
    here.run(|| {
        hurry("ipv4");
        let mut director = Director::holding(&["a"], 64);
        director.request("10.0.0.2");
        director.until("the server", |d| d.hop("10.0.0.2") == Some((0, mac)));
        director.until("doubt", |d| state(d, "10.0.0.2") == Some(NeighbourState::Stale));
        let asked = |d: &Director| d.neighbours.stats().asked;
        // The last look at it above counts as use: one confirmation is due.
        let before = asked(&director);
        director.until("a confirmation", |d| {
            d.skip(SECOND);
            asked(d) == before + 1
        });
        director.until("doubt again", |d| state(d, "10.0.0.2") == Some(NeighbourState::Stale));
        for _ in 0..20 {
            director.skip(SECOND);
            director.turn(Duration::ZERO);
        }
        assert_eq!(asked(&director), before + 1);
        assert_eq!(director.hop("10.0.0.2"), Some((0, mac)), "still known, though");
    });
}

#[test]
fn permanent_neighbours_are_respected() {
    let (here, _there, _mac) = with_server();
    here.run(|| {
        set_neighbour("a", "10.0.0.2", OTHER, Wire::Permanent);
        let mut director = Director::holding(&["a"], 64);
        assert_eq!(director.hop("10.0.0.2"), Some((0, OTHER)));
        director.neighbours.watch("10.0.0.2".parse().unwrap());
        director.request("10.0.0.2");
        assert_eq!(director.neighbours.stats().asked, 0);
    });
}

#[test]
fn a_full_house_makes_room_for_who_is_needed() {
    let (here, _there, mac) = with_server();
    here.run(|| {
        let mut director = Director::holding(&["a"], 3);
        for n in 10..13 {
            set_neighbour("a", &format!("10.0.0.{n}"), OTHER, Wire::Stale);
        }
        director.until("three neighbours", |d| d.config.load().routes.neighbours().count() == 3);
        assert_eq!(director.hop("10.0.0.11"), Some((0, OTHER)), "in use");
        director.request("10.0.0.2");
        director.until("the server", |d| d.hop("10.0.0.2") == Some((0, mac)));
        assert_eq!(director.hop("10.0.0.11"), Some((0, OTHER)), "who is in use stays");
        assert!(matches!(director.resolve("10.0.0.10"), Resolved::Unresolved(_)), "who is not had to go");
        // One that had to go comes back when it is needed.
        director.request("10.0.0.10");
        director.until("its return", |d| d.hop("10.0.0.10") == Some((0, OTHER)));
        assert_eq!(director.neighbours.stats().no_room, 0);
    });
}

#[test]
fn a_device_that_goes_takes_its_neighbours_along() {
    let (here, _there, mac) = with_server();
    here.run(|| {
        let mut director = Director::holding(&["a"], 64);
        director.request("10.0.0.2");
        director.until("the server", |d| d.hop("10.0.0.2") == Some((0, mac)));
        let Resolved::Hop(place) = director.resolve("10.0.0.2") else { panic!("it was just resolved") };
        delete_link("a");
        director.until("the end", |d| d.config.load().hops.get(place).is_none());
        director.until("no way", |d| d.resolve("10.0.0.2") == Resolved::NoRoute);
    });
}
