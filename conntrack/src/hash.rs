//! The keyed hash of flows.
//!
//! Folded 64×64→128 bit multiplications of the key with a secret drawn per table. Without the secret nobody can choose keys that
//! fall together (a CRC would be linear in the key: a seed does not help it), and it costs a fraction of SipHash.

use crate::flow::{Flow, Flow4, Flow6};

/// A table's secret.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Secret([u64; 4]);

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "both halves of the product are folded together")]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}

impl Secret {
    pub(crate) fn new(seed: [u64; 4]) -> Self {
        Secret(seed)
    }

    #[inline]
    pub(crate) fn hash4(&self, flow: &Flow4) -> u64 {
        let Secret([a, b, c, d]) = self;
        let rest = u64::from(flow.ports) | u64::from(flow.protocol) << 32;
        let mixed = fold(flow.addresses ^ a, rest ^ b);
        fold(mixed ^ c, rest.rotate_left(24) ^ d)
    }

    #[inline]
    pub(crate) fn hash6(&self, flow: &Flow6) -> u64 {
        let Secret([a, b, c, d]) = self;
        let [source0, source1, destination0, destination1] = flow.addresses;
        let rest = u64::from(flow.ports) | u64::from(flow.protocol) << 32;
        let source = fold(source0 ^ a, source1 ^ b);
        let destination = fold(destination0 ^ c, destination1 ^ d);
        let mixed = fold(source ^ c, destination ^ b.rotate_left(32));
        fold(mixed ^ d, rest ^ a)
    }

    #[inline]
    pub(crate) fn hash(&self, flow: &Flow) -> u64 {
        match flow {
            Flow::V4(flow) => self.hash4(flow),
            Flow::V6(flow) => self.hash6(flow),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const SEED: [u64; 4] =
        [0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03, 0x2545_f491_4f6c_dd1d, 0x8cb9_2ba7_2f3d_8dd7];

    /// Enough to tell a bad hash from a good one; Miri is not after that.
    const KEYS: u32 = if cfg!(miri) { 64 } else { 8192 };

    fn spread(hashes: impl Iterator<Item = u64>) -> (u32, u32) {
        let (mut buckets, mut tags) = (HashMap::<u64, u32>::new(), HashMap::<u64, u32>::new());
        for hash in hashes {
            *buckets.entry(hash & 0x3ff).or_default() += 1;
            *tags.entry(hash >> 56).or_default() += 1;
        }
        let fullest = |counts: &HashMap<u64, u32>| counts.values().copied().max().unwrap_or(0);
        (fullest(&buckets), fullest(&tags))
    }

    #[test]
    fn regular_keys_spread_evenly() {
        let secret = Secret::new(SEED);
        let wire = |n: u32| {
            let [a, b, c, d] = n.to_be_bytes();
            ([10, a, b, c, 192, 168, 0, 1], [4, d, 0, 80])
        };
        let narrow = (0..KEYS).map(|n| {
            let (addresses, ports) = wire(n);
            secret.hash4(&Flow4::from_wire(addresses, ports, 6))
        });
        // Eight to a bucket and 32 to a tag on average; the bounds are eight standard deviations away.
        let (bucket, tag) = spread(narrow);
        assert!(bucket <= 31 && tag <= 78, "fullest bucket {bucket}, commonest tag {tag}");
        let wide = (0..KEYS).map(|n| {
            let (addresses, ports) = wire(n);
            let mut long = [0; 32];
            long[8..16].copy_from_slice(&addresses);
            secret.hash6(&Flow6::from_wire(long, ports, 6))
        });
        let (bucket, tag) = spread(wide);
        assert!(bucket <= 31 && tag <= 78, "fullest bucket {bucket}, commonest tag {tag}");
    }

    #[test]
    fn the_seed_decides() {
        let flow = Flow4::from_wire([10, 0, 0, 1, 10, 0, 0, 2], [1, 2, 3, 4], 6);
        let mut other = SEED;
        other[0] ^= 1;
        assert_ne!(Secret::new(SEED).hash4(&flow), Secret::new(other).hash4(&flow));
        assert_ne!(Secret::new(SEED).hash4(&flow), Secret::new(SEED).hash4(&flow.reversed()));
    }
}
