//! ICMP errors about fragments, about ICMP and about what is not ours; tunnels that lead back.

use super::Fate::{Dropped, Forwarded, Kernel};
use super::director::edit::{LINK, is_v4, seal};
use super::director::report::{Report, error_on, routers};
use super::*;
use std::net::SocketAddr;
use uvs_engine::verdict::Neighbour;

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = about_others();
    rows.extend(about_fragments());
    rows.extend(tunnels());
    rows
}

fn plan_of(frame: &[u8]) -> Plan {
    plans()[if is_v4(frame) { 0 } else { 1 }]
}

/// An error from the clients' side about what a real server of a known connection sent. Of what NAT sends to the real server in
/// place of the client's packet, it makes what the real server is to get of the error.
fn error(row: Row, change: impl Fn(Report) -> Report + 'static) -> Row {
    let protocol = row.packet.0;
    let row = row.bytes(move |bytes| {
        let (report, relayed) = error_on(CLIENTS, &plan_of(&bytes), protocol, 8);
        change(if bytes[..6] == PORT_MACS[0] { report } else { relayed }).bytes()
    });
    Row { methods: &[Method::Nat], known: &[true], ..row.finished() }
}

fn quoting(change: impl Fn(Vec<u8>, usize) -> Vec<u8> + 'static) -> impl Fn(Report) -> Report + 'static {
    move |report| {
        let header = if report.to.is_ipv4() { 20 } else { 40 };
        Report { quote: change(report.quote, header), ..report }
    }
}

fn about_others() -> Vec<Row> {
    let at = |at: usize, value: u8| {
        quoting(move |mut quote, header| {
            quote[if at < 20 { at } else { header + at - 20 }] = value;
            quote
        })
    };
    let mut rows = vec![];
    for protocol in [TCP, UDP] {
        let row = |what, versions| Row::new(what, versions, (protocol, SYN), Kernel);
        rows.extend([
            error(row("an echo", V4), |report| Report { kind: 8, ..report }),
            error(row("an echo", V6), |report| Report { kind: 128, ..report }),
            error(row("a redirect", V4), |report| Report { kind: 5, ..report }),
            error(row("a neighbour's advertisement", V6), |report| Report { kind: 136, ..report }),
            error(
                row("an error that quotes half a port", BOTH),
                quoting(|mut quote, header| {
                    quote.truncate(header + 3);
                    quote
                }),
            ),
            error(
                row("an error that quotes seven bytes of transport", BOTH),
                quoting(|mut quote, header| {
                    quote.truncate(header + 7);
                    quote
                }),
            ),
            error(
                row("an error that quotes half an IP header", BOTH),
                quoting(|mut quote, header| {
                    quote.truncate(header / 2);
                    quote
                }),
            ),
            error(row("an error that quotes nothing", BOTH), quoting(|_, _| vec![])),
            error(row("about the other version", V4), at(0, 0x65)),
            error(row("about the other version", V6), at(0, 0x40)),
            error(row("about ICMP", V4), at(9, 1)),
            error(row("about ICMP", V6), at(6, 58)),
            error(
                row("about an error in ICMP", V4),
                quoting(|mut quote, header| {
                    (quote[9], quote[header]) = (1, 3);
                    quote
                }),
            ),
            error(
                row("about an error in ICMP", V6),
                quoting(|mut quote, header| {
                    (quote[6], quote[header]) = (58, 1);
                    quote
                }),
            ),
            error(row("about another port", BOTH), at(21, 0xff)),
            error(row("not to whom it quotes", BOTH), |report| {
                let version = if report.to.is_ipv4() { 0 } else { 1 };
                Report { to: routers(&plans()[version])[1], ..report }
            }),
        ]);
    }
    rows
}

/// The first fragment says what connection it is of, the others do not.
fn about_fragments() -> Vec<Row> {
    let mut rows = vec![];
    for protocol in [TCP, UDP] {
        for (what, v4, v6, fate) in [
            ("about a first fragment", [0x20, 0], [0, 1], Forwarded),
            ("about a later fragment", [0x20, 5], [0, 41], Kernel),
            ("about the last fragment", [0, 5], [0, 40], Kernel),
        ] {
            let row = Row::new(what, V4, (protocol, SYN), fate);
            rows.push(error(
                row,
                quoting(move |mut quote, _| {
                    quote[6..8].copy_from_slice(&v4);
                    let mut frame = [vec![0; LINK], quote].concat();
                    seal(&mut frame);
                    frame.split_off(LINK)
                }),
            ));
            let row = Row::new(what, V6, (protocol, SYN), fate);
            rows.push(error(
                row,
                quoting(move |mut quote, header| {
                    let next = std::mem::replace(&mut quote[6], 44);
                    quote.splice(header..header, [next, 0, v6[0], v6[1], 0, 0, 0, 7]);
                    quote
                }),
            ));
        }
    }
    rows
}

/// Packets in tunnels are the host's, and no tunnel leads to where its packets are for.
fn tunnels() -> Vec<Row> {
    let mut rows = vec![];
    for (what, protocol) in [("IPv4 inside", 4), ("IPv6 inside", 41), ("GRE", 47)] {
        let row = Row::new(format!("a tunnel to the service: {what}"), BOTH, (UDP, 0), Kernel);
        rows.push(row.finished().bytes(move |mut bytes| {
            if is_v4(&bytes) {
                bytes[LINK + 9] = protocol;
                seal(&mut bytes);
            } else {
                bytes[LINK + 6] = protocol;
            }
            bytes
        }));
    }
    let back = Row::new("a packet of our own tunnel, sent back to us", BOTH, (UDP, 0), Kernel).finished();
    rows.push(Row {
        port: SERVERS,
        ..back.bytes(|bytes| {
            let mut wrapped = in_tunnel(&plan_of(&bytes), &bytes);
            wrapped[..6].copy_from_slice(&PORT_MACS[1]);
            wrapped
        })
    });
    let around =
        Row::new("a tunnel to the service's own address", BOTH, (UDP, 0), Dropped(Reason::TunnelLoop));
    let setup = |director: &mut Director, plan: &Plan, [_, udp]: &[Arc<Service>; 2]| {
        let hops = director.snapshot.hops.clone();
        let neighbour = Neighbour { port: CLIENTS, address: plan.service.ip() };
        let routes = director.snapshot.routes.with_neighbour(&hops, neighbour, SERVER_MAC).unwrap();
        director.snapshot.routes = Arc::new(routes);
        let server = SocketAddr::new(plan.server.ip(), plan.service.port());
        udp.delete(server, director.now).unwrap();
        udp.add(&destination(plan.service, Method::Tunnel, plan)).unwrap();
    };
    rows.push(Row { methods: &[Method::Tunnel], setup: Box::new(setup), ..around.new_only() });
    rows
}
