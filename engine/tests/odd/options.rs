//! Options of IPv4 and TCP, extension headers of IPv6.

use super::Fate::{Dropped, Forwarded, Kernel};
use super::director::edit::{LINK, lengthen, with_extensions, with_options, with_tcp_options};
use super::*;

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = of_ipv4();
    rows.extend(of_tcp());
    rows.extend(of_ipv6());
    rows
}

/// As Linux judges them (`ip_options_compile`) before IPVS sees the packet. It takes source routes from nobody by default.
fn of_ipv4() -> Vec<Row> {
    const MALFORMED: Fate = Dropped(Reason::Malformed);
    const ROUTED: Fate = Dropped(Reason::SourceRouted);
    let table: [(&str, &'static [u8], Fate); 15] = [
        ("four bytes of nothing", &[1; 4], Forwarded),
        ("36 bytes of nothing", &[1; 36], Forwarded),
        ("40 bytes of nothing", &[1; 40], Forwarded),
        ("the end at once", &[0; 8], Forwarded),
        ("a record of the route", &[7, 7, 4, 0, 0, 0, 0, 0], Forwarded),
        ("timestamps", &[68, 8, 5, 0, 0, 0, 0, 0], Forwarded),
        ("router alert", &[148, 4, 0, 0], Forwarded),
        ("security", &[1, 130, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0], Forwarded),
        ("one that nobody knows", &[222, 4, 1, 2], Forwarded),
        ("a loose source route", &[131, 7, 4, 203, 0, 113, 9, 0], ROUTED),
        ("a strict source route behind nothing", &[1, 137, 7, 4, 203, 0, 113, 9], ROUTED),
        ("an option of no length", &[222, 0, 1, 1], MALFORMED),
        ("an option of one byte that is not nothing", &[222, 1, 1, 1], MALFORMED),
        ("an option that goes on behind the header", &[1, 222, 4, 1], MALFORMED),
        ("an option without its length", &[1, 1, 1, 222], MALFORMED),
    ];
    let row = |(what, options, fate)| {
        [TCP, UDP].map(|protocol| {
            Row::new(format!("IPv4 options: {what}"), V4, (protocol, SYN), fate)
                .bytes(move |bytes| with_options(bytes, options))
        })
    };
    table.into_iter().flat_map(row).collect()
}

/// Nobody but full NAT reads them, and what it cannot read stays as it is.
fn of_tcp() -> Vec<Row> {
    let table: [(&str, &'static [u8]); 10] = [
        ("40 bytes of nothing", &[1; 40]),
        ("what a client offers", &[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7]),
        ("the end, and garbage", &[0, 0xff, 0xff, 0xff]),
        ("an option of no length", &[8, 0, 1, 1]),
        ("an option of one byte", &[8, 1, 1, 1]),
        ("an option that goes on behind the header", &[1, 8, 10, 0]),
        ("an option without its length", &[1, 1, 1, 8]),
        ("timestamps too short for two", &[8, 4, 0, 0]),
        ("an acknowledgement of half a block", &[5, 6, 0, 0, 0, 1, 1, 1]),
        ("a segment size of no size", &[2, 2, 1, 1]),
    ];
    let row = |(what, options)| {
        [SYN, ACK].map(|flags| {
            let row = Row::new(format!("TCP options: {what}"), BOTH, (TCP, flags), Forwarded).finished();
            let known: &[bool] = if flags == SYN { &[false, true] } else { &[true] };
            Row { known, ..row.bytes(move |bytes| with_tcp_options(bytes, options)) }
        })
    };
    table.into_iter().flat_map(row).collect()
}

/// What the kernel's `ipv6_find_hdr` steps over, in a chain that may have eight headers.
fn of_ipv6() -> Vec<Row> {
    const HOP_BY_HOP: (u8, &[u8]) = (0, &[0, 1, 4, 0, 0, 0, 0]);
    const DESTINATION: (u8, &[u8]) = (60, &[0, 1, 4, 0, 0, 0, 0]);
    const VISITED: (u8, &[u8]) = (43, &[0, 4, 0, 0, 0, 0, 0]);
    const TO_VISIT: (u8, &[u8]) =
        (43, &[2, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    const ATOMIC: (u8, &[u8]) = (44, &[0, 0, 0, 0, 0, 0, 7]);
    const AUTHENTICATION: (u8, &[u8]) = (51, &[2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9]);
    const LONG: (u8, &[u8]) = (60, &[0; 263]);
    /// What they are, type and bytes of each, and what becomes of the packet.
    type Chain<'a> = (&'a str, Vec<(u8, &'static [u8])>, Fate);
    let table: [Chain<'_>; 12] = [
        ("options hop by hop", vec![HOP_BY_HOP], Forwarded),
        ("options for the destination", vec![DESTINATION], Forwarded),
        ("a way that was gone", vec![VISITED], Forwarded),
        ("a way that is yet to go", vec![TO_VISIT], Kernel),
        ("a fragment that is all of its packet", vec![ATOMIC], Forwarded),
        ("authentication", vec![AUTHENTICATION], Forwarded),
        ("one of each", vec![HOP_BY_HOP, VISITED, ATOMIC, AUTHENTICATION, DESTINATION], Forwarded),
        ("eight", vec![DESTINATION; 8], Forwarded),
        ("nine", vec![DESTINATION; 9], Dropped(Reason::Malformed)),
        ("a hundred", vec![DESTINATION; 100], Dropped(Reason::Malformed)),
        ("a long one", vec![LONG], Forwarded),
        ("encryption", vec![(50, &[0; 7])], Kernel),
    ];
    let mut rows = vec![];
    for (what, headers, fate) in table {
        for protocol in [TCP, UDP] {
            let headers = headers.clone();
            let what = format!("extension headers: {what}");
            let row = Row::new(what, V6, (protocol, SYN), fate);
            let row = row.bytes(move |bytes| {
                let mut bytes = with_extensions(bytes, &headers);
                if let [LONG] = headers[..] {
                    bytes[LINK + 41] = 32;
                }
                bytes
            });
            rows.push(if matches!(fate, Kernel) { row.finished() } else { row });
        }
    }
    rows.push(Row::new("nothing follows", V6, (UDP, 0), Kernel).finished().bytes(|mut bytes| {
        bytes[LINK + 6] = 59;
        bytes
    }));
    let beyond = Row::new("an extension header that ends behind the packet", V6, (TCP, SYN), {
        Dropped(Reason::Truncated)
    });
    rows.push(beyond.bytes(|bytes| {
        let mut bytes = with_extensions(bytes, &[DESTINATION]);
        bytes[LINK + 41] = 32;
        bytes.resize(bytes.len() + 300, 0);
        lengthen(&mut bytes, 100);
        bytes
    }));
    rows
}
