//! What the link layer adds: tags, lengths, other protocols.

use super::Fate::{Forwarded, Kernel, Told};
use super::*;
use uvs_engine::snapshot::Port;

const CUSTOMER: u16 = 0x8100;
const PROVIDER: u16 = 0x88a8;

fn with_mtus(row: Row, mtus: [u32; 2]) -> Row {
    let setup = move |director: &mut Director, _: &Plan, _: &[Arc<Service>; 2]| {
        let ports = director.snapshot.ports.iter().cloned().zip(mtus);
        director.snapshot.ports = ports.map(|(port, mtu)| Port { mtu, ..port }).collect();
    };
    Row { setup: Box::new(setup), ..row }
}

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = vec![];
    // A tag is of the link it came by: it stays on it and is taken off what leaves by another.
    for port in [CLIENTS, SERVERS] {
        for protocol in [TCP, UDP] {
            for (what, tags) in [
                ("a VLAN", &[(CUSTOMER, 7)][..]),
                ("a priority, no VLAN", &[(CUSTOMER, 0xe000)]),
                ("a provider's tag alone", &[(PROVIDER, 9)]),
                ("QinQ", &[(PROVIDER, 9), (CUSTOMER, 7)]),
                ("two tags of the old kind", &[(CUSTOMER, 9), (CUSTOMER, 7)]),
            ] {
                let row = Row::new(format!("{what}, by {port:?}"), BOTH, (protocol, SYN), Forwarded);
                rows.push(Row { port, tags: tags.to_vec(), ..row });
            }
        }
    }
    let thrice = vec![(PROVIDER, 9), (CUSTOMER, 8), (CUSTOMER, 7)];
    rows.push(Row { tags: thrice, ..Row::new("three tags", BOTH, (TCP, SYN), Kernel).finished() });
    for (what, ethertype) in [("ARP", 0x0806), ("a length instead of a type", 0x0020), ("MPLS", 0x8847_u16)] {
        rows.push(Row::new(what, BOTH, (TCP, SYN), Kernel).finished().bytes(move |mut bytes| {
            bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
            bytes
        }));
    }
    for protocol in [TCP, UDP] {
        let jumbo = |what: &str, fate| {
            let row = Row::new(what, BOTH, (protocol, SYN), fate);
            row.frame(|frame| Frame { payload: vec![0x5a; 8800], ..frame })
        };
        let parts = vec![2048, 4096, 6144, 8192];
        rows.push(with_mtus(jumbo("jumbo, in one part", Forwarded), [9000; 2]));
        rows.push(Row { cuts: parts.clone(), ..with_mtus(jumbo("jumbo, in parts", Forwarded), [9000; 2]) });
        let told = Told(Reason::TooBig, (3, 4), (2, 0));
        let narrow = with_mtus(jumbo("jumbo, to where no such frames go", told), [9000, 1500]).finished();
        rows.push(Row { cuts: parts, ..narrow });
    }
    rows
}
