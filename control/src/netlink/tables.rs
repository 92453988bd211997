//! The routing tables that a packet without policy meets, made one.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use uvs_engine::nexthop::Route;

/// `RT_TABLE_*` in the order in which the kernel's default rules look into them: local, main, default.
pub(super) const TABLES: [u32; 3] = [255, 254, 253];

/// A route of one of the tables that count.
pub(super) struct Entry {
    /// Index into [`TABLES`].
    pub(super) table: usize,
    pub(super) metric: u32,
    pub(super) route: Route,
}

/// One route a prefix: the earlier table's, then the lower metric's. A route within a prefix of an earlier table is
/// never reached and left out, because the longest match decides over all that remain.
pub(super) fn merge(mut entries: Vec<Entry>) -> Vec<Route> {
    entries.sort_by_key(|entry| (entry.table, entry.metric));
    let mut routes: Vec<Route> = Vec::with_capacity(entries.len());
    let mut earlier = Cover::default();
    let mut prefixes = HashSet::with_capacity(entries.len());
    let mut entries = entries.into_iter().peekable();
    for table in 0..TABLES.len() {
        let before = routes.len();
        while let Some(entry) = entries.next_if(|entry| entry.table == table) {
            let route = entry.route;
            let prefix = (route.network, route.length);
            if !earlier.contains(prefix.0, prefix.1) && prefixes.insert(prefix) {
                routes.push(route);
            }
        }
        for route in &routes[before..] {
            earlier.add(route.network, route.length);
        }
    }
    routes
}

/// A set of prefixes that answers whether one of them covers another prefix.
#[derive(Default)]
struct Cover {
    prefixes: HashSet<(IpAddr, u8)>,
    lengths: BTreeSet<u8>,
}

impl Cover {
    fn add(&mut self, network: IpAddr, length: u8) {
        self.prefixes.insert((masked(network, length), length));
        self.lengths.insert(length);
    }

    fn contains(&self, network: IpAddr, length: u8) -> bool {
        self.lengths
            .range(..=length)
            .any(|shorter| self.prefixes.contains(&(masked(network, *shorter), *shorter)))
    }
}

/// The first address of the prefix of `length` bits that `address` is in.
pub(crate) fn masked(address: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(length)).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length)).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uvs_engine::PortId;
    use uvs_engine::nexthop::Target;
    use uvs_engine::verdict::Neighbour;

    fn via(last: u8) -> Target {
        Target::Via(Neighbour { port: PortId(0), address: [10, 0, 0, last].into() })
    }

    fn at(table: usize, metric: u32, prefix: &str, target: Target) -> Entry {
        let (network, length) = prefix.split_once('/').unwrap();
        let route = Route { network: network.parse().unwrap(), length: length.parse().unwrap(), target };
        Entry { table, metric, route }
    }

    #[test]
    fn tables_come_in_order_and_metrics_decide_within() {
        let routes = merge(vec![
            at(1, 100, "0.0.0.0/0", via(2)),
            at(1, 50, "0.0.0.0/0", via(1)),
            at(1, 50, "0.0.0.0/0", via(3)),
            at(2, 0, "192.0.2.0/24", via(9)),
            at(0, 0, "10.1.0.0/16", Target::Local),
            at(1, 0, "10.1.2.0/24", via(4)),
            at(1, 0, "10.0.0.0/8", via(5)),
            at(1, 0, "10.1.0.0/16", via(6)),
        ]);
        let expected = [("10.1.0.0/16", Target::Local), ("10.0.0.0/8", via(5)), ("0.0.0.0/0", via(1))];
        let expected: Vec<Route> = expected.map(|(prefix, target)| at(0, 0, prefix, target).route).into();
        assert_eq!(routes, expected, "what a route of an earlier table covers is never reached");
    }

    proptest! {
        #[test]
        fn masking_keeps_the_network(bits: u128, v4: bool, length in 0..=128_u8) {
            let (address, length) = if v4 {
                #[expect(clippy::cast_possible_truncation, reason = "any 32 of them will do")]
                let address = Ipv4Addr::from_bits(bits as u32);
                (IpAddr::V4(address), length.min(32))
            } else {
                (IpAddr::V6(Ipv6Addr::from_bits(bits)), length)
            };
            let bit = |address: IpAddr, n: u8| match address {
                IpAddr::V4(a) => a.to_bits() >> (31 - n) & 1 == 1,
                IpAddr::V6(a) => a.to_bits() >> (127 - n) & 1 == 1,
            };
            let network = masked(address, length);
            for n in 0..if v4 { 32 } else { 128 } {
                prop_assert_eq!(bit(network, n), n < length && bit(address, n), "bit {}", n);
            }
        }
    }
}
