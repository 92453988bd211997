//! Who sends, to whom, with which flags and how far it may go.

use super::Fate::{Dropped, Forwarded, Kernel, Told};
use super::director::edit::{LINK, is_v4, resum};
use super::*;
use std::net::SocketAddr;

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = martians();
    rows.extend(receivers());
    rows.extend(flags());
    rows.extend(hops());
    rows
}

/// Sources that Linux takes for nobody's, and IPv4's in IPv6's clothes.
fn martians() -> Vec<Row> {
    let martian = |what: &str, versions, protocol| {
        Row::new(what, versions, (protocol, SYN), Dropped(Reason::Martian)).new_only()
    };
    let mut rows = vec![];
    for protocol in [TCP, UDP] {
        for (versions, source) in [
            (V4, "224.0.0.1:5"),
            (V4, "239.255.255.250:5"),
            (V4, "127.0.0.1:5"),
            (V4, "127.255.0.9:5"),
            (V4, "255.255.255.255:5"),
            (V4, "0.0.0.0:5"),
            (V6, "[ff02::1]:5"),
            (V6, "[ff0e::1]:5"),
            (V6, "[::1]:5"),
            (V6, "[::]:5"),
            (V6, "[::ffff:10.0.0.2]:5"),
        ] {
            let from = at(source);
            rows.push(martian(source, versions, protocol).frame(move |frame| Frame { from, ..frame }));
        }
        for source in ["0.1.2.3:5", "240.0.0.1:5"] {
            let (from, what) = (at(source), format!("from {source}, reserved once"));
            let row = Row::new(what, V4, (protocol, SYN), Forwarded).new_only();
            rows.push(row.frame(move |frame| Frame { from, ..frame }));
        }
        rows.push(
            martian("from the service to itself (LAND)", BOTH, protocol)
                .frame(|frame| Frame { from: frame.to, ..frame }),
        );
        rows.push(
            martian("from the service's address", BOTH, protocol)
                .frame(|frame| Frame { from: SocketAddr::new(frame.to.ip(), 5), ..frame }),
        );
        let own = martian("from an address of this host", BOTH, protocol);
        rows.push(Row {
            setup: Box::new(|director, plan, _| director.snapshot.own = [plan.client.ip()].into()),
            ..own
        });
    }
    rows
}

/// Multicast, broadcast, and what is not for this director.
fn receivers() -> Vec<Row> {
    let to = |what, versions, to: [u8; 6], fate| {
        Row::new(what, versions, (TCP, SYN), fate).frame(move |frame| Frame { to_mac: to, ..frame })
    };
    let sent_to = |what, versions, address: &str, fate| {
        let address = at(address);
        let row = Row::new(what, versions, (UDP, 0), fate);
        row.frame(move |frame| Frame { to: address, ..frame })
    };
    let group4 = "224.0.0.18:80";
    vec![
        to("broadcast by its link-layer address", BOTH, [0xff; 6], Kernel).finished(),
        to("multicast by its link-layer address", V4, [1, 0, 0x5e, 0, 0, 18], Kernel).finished(),
        to("multicast by its link-layer address", V6, [0x33, 0x33, 0, 0, 0, 1], Kernel).finished(),
        to("for another host", BOTH, [2, 9, 9, 9, 9, 9], Dropped(Reason::OtherHost)),
        to("for a virtual router's address", V4, [0, 0, 0x5e, 0, 1, 51], Forwarded),
        to("for a virtual router's address", V6, [0, 0, 0x5e, 0, 2, 51], Forwarded),
        sent_to("to everybody", V4, "255.255.255.255:80", Kernel),
        sent_to("to a group", V4, group4, Kernel),
        sent_to("to a group", V6, "[ff02::1]:80", Kernel),
        sent_to("to another port of the service's address", V4, "10.0.0.100:81", Kernel),
        sent_to("to another port of the service's address", V6, "[fd00:1::100]:81", Kernel),
    ]
}

/// Which segments begin a connection, as IPVS has it: RST before SYN before FIN.
fn flags() -> Vec<Row> {
    const ALL_FLAGS: u8 = 0xff;
    let mut rows = vec![];
    for (what, flags, fate) in [
        ("SYN", SYN, Forwarded),
        ("SYN and FIN", SYN | FIN, Forwarded),
        ("SYN and ACK", SYN | ACK, Forwarded),
        ("SYN that offers ECN", SYN | 0xc0, Forwarded),
        ("SYN with all but RST", ALL_FLAGS & !RST, Forwarded),
        ("SYN and RST", SYN | RST, Kernel),
        ("all flags", ALL_FLAGS, Kernel),
        ("no flags", 0, Kernel),
        ("ACK", ACK, Kernel),
        ("FIN", FIN, Kernel),
        ("FIN, PSH and URG", FIN | 0x28, Kernel),
        ("RST", RST, Kernel),
    ] {
        let write = move |mut bytes: Vec<u8>| {
            let header = LINK + if is_v4(&bytes) { 20 } else { 40 };
            bytes[header + 13] = flags;
            resum(&mut bytes);
            bytes
        };
        rows.push(Row::new(what, BOTH, (TCP, 0), fate).new_only().finished().bytes(write));
        let known = Row::new(format!("{what}, of a connection"), BOTH, (TCP, 0), Forwarded).finished();
        rows.push(Row { known: &[true], ..known.bytes(write) });
    }
    rows
}

fn hops() -> Vec<Row> {
    let mut rows = vec![];
    for protocol in [TCP, UDP] {
        let expired = Told(Reason::TtlExpired, (11, 0), (3, 0));
        for (ttl, fate) in [(0, expired), (1, expired), (2, Forwarded), (255, Forwarded)] {
            let row = Row::new(format!("TTL {ttl}"), BOTH, (protocol, SYN), fate);
            let row = row.frame(move |frame| Frame { ttl, ..frame });
            rows.push(if matches!(fate, Told(..)) { row.finished() } else { row });
        }
    }
    rows
}
