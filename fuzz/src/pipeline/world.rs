//! A director with services of every method in both IP versions.

use super::input::Input;
use crate::director::ways::{WAYS, Way};
use crate::director::*;
use std::net::SocketAddr;
use uvs_conntrack::protocol::tcp::Mode;
use uvs_conntrack::{Limits, OwnTimeouts, SharedTable};
use uvs_engine::forward::Method;
use uvs_engine::plan::Tell;
use uvs_engine::service::{Clients, DestinationConfig, Persistence, Ports, Terms};
use uvs_engine::snapshot::{OnRemove, Port};

/// How many services there are: of each way one in each IP version.
pub const SERVICES: usize = 2 * WAYS.len();

/// The client and the virtual address of one of the services, and a real server of NAT.
pub fn plan(which: usize) -> Plan {
    let plan = plans()[which % 2];
    let port = 80 + u16::try_from(which / 2).unwrap_or(0);
    Plan { service: SocketAddr::new(plan.service.ip(), port), ..plan }
}

/// Its devices and options are what `input` says.
pub fn director(input: &mut Input<'_>) -> Director {
    let limits = Limits { connections4: 200, connections6: 200, destinations: 200, first_buckets: 4 };
    let table = SharedTable::create_seeded(limits, [1, 2, 3, 4]).expect("memory for a table");
    let mut director = Director::in_table(table);
    let choice = input.byte();
    let bit = |bit: u8| choice >> bit & 1 == 1;
    let mtus = [[1500, 1500], [1500, 1300], [9000, 1500], [1500, 9000]][usize::from(choice & 3)];
    let ports = director.snapshot.ports.iter().cloned().zip(mtus);
    director.snapshot.ports = ports.map(|(port, mtu)| Port { mtu, merged: bit(2), ..port }).collect();
    director.snapshot.options.pmtu_disc = bit(3);
    director.snapshot.options.rfc6040 = bit(4);
    director.snapshot.options.expire_quiescent_template = bit(6);
    director.snapshot.options.expire_nodest_conn = bit(7);
    director.snapshot.on_remove = if bit(5) { OnRemove::Keep } else { OnRemove::Drop };
    let terms = input.byte();
    director.snapshot.options.sloppy_tcp = terms >> 4 & 1 == 1;
    director.snapshot.options.schedule_icmp = terms >> 5 & 1 == 1;
    director.snapshot.options.tcp_mode = if terms >> 6 & 1 == 1 { Mode::Secure } else { Mode::Normal };
    for which in 0..SERVICES {
        let (way, other) = WAYS[which / 2];
        let server = plans()[if other { 1 - which % 2 } else { which % 2 }].server;
        let tell = if let Way::Told(tell) = way { tell } else { Tell::Nothing };
        let terms = Terms {
            tell,
            segment_size: [0, 1200, 100, 1460][usize::from(terms & 3)],
            resets: terms >> 2 & 1 == 1,
            one_packet: terms >> 3 & 1 == 1,
            timeouts: OwnTimeouts::default(),
            persistence: (terms >> 7 & 1 == 1).then_some(Persistence {
                timeout: 60,
                clients: if which % 2 == 0 {
                    Clients::Mask([255, 255, 255, 0].into())
                } else {
                    Clients::Prefix(64)
                },
            }),
        };
        let services = director.serve_by(way, &plan(which), server, &Ports::new([7000..=7015]));
        services.iter().for_each(|service| service.set_terms(terms));
    }
    if bit(6) { with_own(director, bit(7)) } else { director }
}

/// This host's own packets come by a device of its own, too; it may be a real server of each service.
fn with_own(director: Director, local_server: bool) -> Director {
    let director = director.with_own_traffic();
    if local_server {
        for service in director.snapshot.services.iter() {
            let v4 = service.key().address.is_ipv4();
            let server = at(if v4 { "172.16.0.9:8080" } else { "[fd00:2::9]:8080" });
            service.add(&DestinationConfig::new(server, Method::Nat)).expect("room for one more");
        }
    }
    director
}
