//! The monitor's events.

use crate::support::{
    Namespace, add_address, delete_address, delete_link, down, events_until, index, mac_of, set_mac, set_mtu,
    set_neighbour,
};
use netlink_packet_route::neighbour::NeighbourState as Wire;
use std::net::IpAddr;
use uvs_control::netlink::{Client, Event, Monitor, NeighbourState};

/// A namespace with the device `a`, whose other end `b` is in another namespace.
fn pair() -> (Namespace, Namespace) {
    let (here, there) = (Namespace::new(), Namespace::new());
    here.veth("a", &there, "b");
    (here, there)
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn the_first_reading_lists_everything() {
    let (here, _there) = pair();
    here.run(|| {
        add_address("a", "10.0.0.1/24");
        add_address("a", "fd00::1/64");
        set_neighbour("a", "10.0.0.9", [2, 0, 0, 0, 0, 9], Wire::Permanent);
        let ifindex = index("a");
        let mut monitor = Monitor::open().unwrap();
        let events = monitor.read().unwrap();
        assert!(events.contains(&Event::RoutesChanged));
        let link = monitor.link(ifindex).unwrap();
        assert_eq!((&link.name[..], link.mac, link.mtu), ("a", Some(mac_of("a")), 1500));
        assert!(link.up && !link.loopback);
        assert_eq!(link.kind.as_deref(), Some("veth"));
        assert_eq!(link.lower, None, "the peer's index is of another namespace");
        for host in ["10.0.0.1", "fd00::1", "127.0.0.1", "::1"] {
            let added = |event: &Event| matches!(event, Event::AddressAdded(a) if a.address == address(host));
            assert_eq!(events.iter().filter(|event| added(event)).count(), 1, "{host}");
        }
        let neighbour = monitor.neighbour(ifindex, address("10.0.0.9")).unwrap();
        assert_eq!(neighbour.resolved(), Some([2, 0, 0, 0, 0, 9]));
    });
}

#[test]
fn links_tell_of_their_changes_and_their_end() {
    let (here, _there) = pair();
    here.run(|| {
        let ifindex = index("a");
        add_address("a", "10.0.0.1/24");
        set_neighbour("a", "10.0.0.9", [2, 0, 0, 0, 0, 9], Wire::Permanent);
        let mut monitor = Monitor::open().unwrap();
        monitor.read().unwrap();
        set_mtu("a", 1400);
        set_mac("a", [2, 1, 1, 1, 1, 1]);
        events_until(&mut monitor, |events| {
            events.iter().any(|event| {
                matches!(event, Event::LinkChanged(link)
                    if link.ifindex == ifindex && link.mtu == 1400 && link.mac == Some([2, 1, 1, 1, 1, 1]) && link.up)
            })
        });
        down("a");
        events_until(&mut monitor, |events| {
            events.iter().any(|event| matches!(event, Event::LinkChanged(link) if !link.up))
                && events.contains(&Event::RoutesChanged)
        });
        delete_link("a");
        let gone = Event::LinkGone { ifindex, name: "a".into() };
        events_until(&mut monitor, |events| events.contains(&gone));
        assert!(monitor.addresses().all(|host| host.ifindex != ifindex));
        assert!(monitor.neighbours().all(|entry| entry.ifindex != ifindex));
    });
}

#[test]
fn addresses_and_routes_come_and_go() {
    let (here, _there) = pair();
    here.run(|| {
        let mut monitor = Monitor::open().unwrap();
        monitor.read().unwrap();
        for (with_prefix, host) in [("192.0.2.1/32", "192.0.2.1"), ("2001:db8::1/128", "2001:db8::1")] {
            add_address("a", with_prefix);
            events_until(&mut monitor, |events| {
                events.contains(&Event::RoutesChanged)
                    && events
                        .iter()
                        .any(|event| matches!(event, Event::AddressAdded(a) if a.address == address(host)))
            });
            delete_address("a", with_prefix);
            events_until(&mut monitor, |events| {
                events.contains(&Event::RoutesChanged)
                    && events
                        .iter()
                        .any(|event| matches!(event, Event::AddressRemoved(a) if a.address == address(host)))
            });
        }
    });
}

#[test]
fn lost_notifications_are_made_up_for() {
    let (here, _there) = pair();
    here.run(|| {
        let ifindex = index("a");
        add_address("a", "10.9.9.9/32");
        // The kernel rounds up to its least: room for a few messages.
        let mut monitor = Monitor::with_buffer(1).unwrap();
        monitor.read().unwrap();
        for last in 1..=200 {
            add_address("a", &format!("10.1.0.{last}/32"));
        }
        delete_address("a", "10.9.9.9/32");
        let events = monitor.read().unwrap();
        assert_eq!(monitor.overflows(), 1);
        let added = events
            .iter()
            .filter(|event| matches!(event, Event::AddressAdded(a) if a.address.is_ipv4()))
            .count();
        assert_eq!(added, 200, "each once, told by a notification or by the listing");
        let removed = events.iter().filter(|event| matches!(event, Event::AddressRemoved(_))).count();
        assert_eq!(removed, 1);
        assert!(events.contains(&Event::RoutesChanged));
        assert_eq!(
            monitor.addresses().filter(|host| host.ifindex == ifindex && host.address.is_ipv4()).count(),
            200
        );
        // And it goes on.
        delete_address("a", "10.1.0.7/32");
        events_until(&mut monitor, |events| {
            events
                .iter()
                .any(|event| matches!(event, Event::AddressRemoved(a) if a.address == address("10.1.0.7")))
        });
    });
}

#[test]
fn the_kernel_resolves_a_neighbour_when_asked() {
    let (here, there) = pair();
    let mac = there.run(|| {
        add_address("b", "10.0.0.2/24");
        add_address("b", "fd00::2/64");
        mac_of("b")
    });
    here.run(|| {
        add_address("a", "10.0.0.1/24");
        add_address("a", "fd00::1/64");
        let ifindex = index("a");
        let (mut monitor, mut client) = (Monitor::open().unwrap(), Client::open().unwrap());
        for target in [address("10.0.0.2"), address("fd00::2")] {
            client.resolve(ifindex, target).unwrap();
            events_until(&mut monitor, |events| {
                events.iter().any(|event| {
                    matches!(event, Event::NeighbourChanged(entry)
                        if entry.address == target && entry.resolved() == Some(mac))
                })
            });
        }
    });
}

#[test]
fn a_neighbour_that_never_answers_ends_as_failed() {
    let (here, _there) = pair();
    here.run(|| {
        add_address("a", "10.0.0.1/24");
        let target = address("10.0.0.66");
        let (mut monitor, mut client) = (Monitor::open().unwrap(), Client::open().unwrap());
        monitor.read().unwrap();
        client.resolve(index("a"), target).unwrap();
        let mut states = Vec::new();
        events_until(&mut monitor, |events| {
            states = events
                .iter()
                .filter_map(|event| match event {
                    Event::NeighbourChanged(entry) if entry.address == target => {
                        assert_eq!(entry.resolved(), None);
                        Some(entry.state)
                    }
                    _ => None,
                })
                .collect();
            states.contains(&NeighbourState::Failed)
        });
    });
}

#[test]
fn the_kernel_says_why_it_refuses() {
    let here = Namespace::new();
    here.run(|| {
        let mut client = Client::open().unwrap();
        let refusal = client.add_address(9_999, address("192.0.2.1")).unwrap_err();
        assert_eq!(refusal.errno(), Some(libc::ENODEV));
        let text = refusal.to_string();
        assert!(
            text.starts_with(
                "the kernel refused to put the address 192.0.2.1 on device 9999: No such device"
            ),
            "{text}"
        );
    });
}
