//! Views of packet headers and checksum arithmetic: one protocol per file, every file of one shape.
//!
//! A view borrows the fixed part of its header as an array, so that its accessors cannot panic and cost one load. It is
//! made by `parse` (or `parse_mut`), which promises what its documentation lists and refuses everything else with the
//! reason. The constants of each file's `field` module name byte ranges as the RFC draws them.

pub mod checksum;
pub mod ethernet;
pub mod gre;
pub mod gue;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod piece;
pub mod proxy;
pub mod segment;
pub mod split;
pub mod summary;
pub mod tcp;
pub mod tcp_options;
pub mod udp;

use crate::verdict::Reason;

/// IP protocol numbers (IANA) that the pipeline knows.
pub mod protocol {
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// IPv4 in IP (RFC 2003).
    pub const IPV4: u8 = 4;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// IPv6 in IP (RFC 2473).
    pub const IPV6: u8 = 41;
    /// Generic routing encapsulation (RFC 2784).
    pub const GRE: u8 = 47;
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
}

/// Why bytes are not the header they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes end before the header, or what it announces, does.
    #[error("the packet ends before its headers do")]
    Truncated,
    /// A field contradicts another one, or has a value that the protocol does not allow.
    #[error("a header contradicts itself")]
    Malformed,
}

impl From<Error> for Reason {
    fn from(error: Error) -> Self {
        match error {
            Error::Truncated => Reason::Truncated,
            Error::Malformed => Reason::Malformed,
        }
    }
}

/// The 16 bits at `offset` in network order.
#[inline]
const fn be16<const N: usize>(bytes: &[u8; N], offset: usize) -> u16 {
    u16::from_be_bytes([bytes[offset], bytes[offset + 1]])
}

/// The `LEN` bytes at `offset` as an array.
#[inline]
fn array<const LEN: usize>(bytes: &[u8], offset: usize) -> Result<&[u8; LEN], Error> {
    bytes.get(offset..).and_then(<[u8]>::first_chunk).ok_or(Error::Truncated)
}

/// The `LEN` bytes at `offset` as an array, to write.
#[inline]
fn array_mut<const LEN: usize>(bytes: &mut [u8], offset: usize) -> Result<&mut [u8; LEN], Error> {
    bytes.get_mut(offset..).and_then(<[u8]>::first_chunk_mut).ok_or(Error::Truncated)
}
