//! The order of a listing: ipvsadm's own comparison, merged as the C library's `qsort` merges.
//!
//! The comparison takes differences of 32-bit numbers as signed, so it is not transitive: 10.0.0.1 comes after 207.0.0.1, and
//! what comes out for three addresses depends on what was compared with what. That is why the merge is here, too.

use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};
use uvs_control::api::{Family, Protocol, ServerEntry, ServiceEntry, ServiceId};

/// Sorts services, and the servers of each.
pub(super) fn sort(services: &mut Vec<ServiceEntry>) {
    for service in services.iter_mut() {
        merge_sort(&mut service.servers, &|one, other| server(one, other));
    }
    merge_sort(services, &|one, other| service(&one.service.id, &other.service.id));
}

/// Sorts by a comparison that is positive when the first comes after the second.
fn merge_sort<T: Clone>(items: &mut Vec<T>, compare: &impl Fn(&T, &T) -> i32) {
    if items.len() < 2 {
        return;
    }
    let mut right = items.split_off(items.len() / 2);
    merge_sort(items, compare);
    merge_sort(&mut right, compare);
    let mut left = std::mem::take(items).into_iter().peekable();
    let mut right = right.into_iter().peekable();
    while let (Some(one), Some(other)) = (left.peek(), right.peek()) {
        let next = if compare(one, other) <= 0 { left.next() } else { right.next() };
        items.extend(next);
    }
    items.extend(left);
    items.extend(right);
}

fn service(one: &ServiceId, other: &ServiceId) -> i32 {
    let key = |id: &ServiceId| match id {
        ServiceId::Address { protocol, address } => (0, id.family(), protocol.number(), *address),
        ServiceId::Mark { mark, family } => {
            let any = match family {
                Family::Ipv4 => SocketAddr::from(([0; 4], 0)),
                Family::Ipv6 => SocketAddr::from(([0_u16; 8], 0)),
            };
            (*mark, *family, Protocol::Tcp.number(), any)
        }
    };
    let (one, other) = (key(one), key(other));
    first_difference([
        difference(one.0, other.0),
        order(one.1.cmp(&other.1)),
        order(one.2.cmp(&other.2)),
        addresses(one.3.ip(), other.3.ip()),
        order(one.3.port().cmp(&other.3.port())),
    ])
}

fn server(one: &ServerEntry, other: &ServerEntry) -> i32 {
    let (one, other) = (one.server.address, other.server.address);
    let family = |address: SocketAddr| Reverse(Family::of(address.ip()));
    first_difference([
        order(family(one).cmp(&family(other))),
        addresses(one.ip(), other.ip()),
        order(one.port().cmp(&other.port())),
    ])
}

fn addresses(one: IpAddr, other: IpAddr) -> i32 {
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => difference(one.to_bits(), other.to_bits()),
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            let words = |bits: u128| [96, 64, 32, 0].map(|shift| bits.wrapping_shr(shift) & 0xffff_ffff);
            let (one, other) = (words(one.to_bits()), words(other.to_bits()));
            first_difference([0, 1, 2, 3].map(|word| {
                let word_of = |words: [u128; 4]| u32::try_from(words[word]).unwrap_or_default();
                difference(word_of(one), word_of(other))
            }))
        }
        _ => 0,
    }
}

/// The difference as C computes it: it wraps.
fn difference(one: u32, other: u32) -> i32 {
    one.wrapping_sub(other).cast_signed()
}

fn order(ordering: std::cmp::Ordering) -> i32 {
    ordering as i32
}

fn first_difference<const N: usize>(differences: [i32; N]) -> i32 {
    differences.into_iter().find(|difference| *difference != 0).unwrap_or(0)
}
