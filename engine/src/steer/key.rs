//! What the steering maps are keyed by.

use std::net::{IpAddr, Ipv6Addr};

/// An address, perhaps with a port and a protocol, as the programs in the kernel look it up.
///
/// Both families share one form of 20 bytes without padding, all in network byte order. IPv4 addresses are mapped into
/// IPv6 ones (`::ffff:a.b.c.d`); `family` keeps them apart from IPv6 packets that carry such an address on the wire.
/// Port 0 means any port; protocol 0 with port 0 is the address alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    address: [u8; 16],
    port: [u8; 2],
    protocol: u8,
    family: u8,
}

/// Offsets of the parts of a [`Key`], for the programs that build one on their stack. The family is the fourth byte of
/// the word at `PORT`.
pub(super) mod at {
    pub(in crate::steer) const ADDRESS: i16 = 0;
    pub(in crate::steer) const PORT: i16 = 16;
    pub(in crate::steer) const PROTOCOL: i16 = 18;
}

/// [`Key`]'s mark of IPv4.
pub(super) const IPV4: u8 = 4;
/// [`Key`]'s mark of IPv6.
pub(super) const IPV6: u8 = 6;

impl Key {
    /// The key of nothing.
    pub(super) const ZERO: Self = Key { address: [0; 16], port: [0; 2], protocol: 0, family: 0 };

    /// The key of `address`, `port` (0: any) and the IANA `protocol` number.
    pub fn new(address: IpAddr, port: u16, protocol: u8) -> Self {
        let (address, family): (Ipv6Addr, u8) = match address {
            IpAddr::V4(address) => (address.to_ipv6_mapped(), IPV4),
            IpAddr::V6(address) => (address, IPV6),
        };
        Key { address: address.octets(), port: port.to_be_bytes(), protocol, family }
    }

    /// The key of an address alone.
    pub fn address(address: IpAddr) -> Self {
        Key::new(address, 0, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn the_programs_and_the_type_agree() {
        assert_eq!(
            (
                offset_of!(Key, address),
                offset_of!(Key, port),
                offset_of!(Key, protocol),
                offset_of!(Key, family),
                size_of::<Key>(),
            ),
            (
                usize::from(at::ADDRESS.unsigned_abs()),
                usize::from(at::PORT.unsigned_abs()),
                usize::from(at::PROTOCOL.unsigned_abs()),
                usize::from(at::PORT.unsigned_abs()) + 3,
                20
            )
        );
    }

    #[test]
    fn families_do_not_meet() {
        let v4 = Key::address("192.0.2.1".parse().unwrap());
        let mapped = Key::address("::ffff:192.0.2.1".parse().unwrap());
        assert_eq!(v4.address, mapped.address);
        assert_ne!(v4, mapped);
    }
}
