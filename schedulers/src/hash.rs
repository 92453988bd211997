//! The kernel's hashes of addresses.

use std::net::IpAddr;

/// An address as 32 bits in host order: of IPv6, its four words by exclusive or.
pub(crate) fn fold(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => address.to_bits(),
        IpAddr::V6(address) => {
            let segments = address.segments();
            let words = segments.chunks_exact(2).map(|pair| u32::from(pair[0]) << 16 | u32::from(pair[1]));
            words.fold(0, |folded, word| folded ^ word)
        }
    }
}

/// `hash_32` of `linux/hash.h`: a number of `bits` bits, 1 to 32.
pub(crate) fn hash_32(value: u32, bits: u32) -> usize {
    (value.wrapping_mul(0x61c8_8647) >> (32 - bits)) as usize
}

/// `hsiphash` of one 32-bit number as 64-bit kernels have it: SipHash-1-3 of its four bytes, with twice the same key, folded to
/// 32 bits.
pub(crate) fn hsiphash(key: u64, value: u32) -> u32 {
    let last = 4 << 56 | u64::from(value);
    let mut v = [
        key ^ 0x736f_6d65_7073_6575,
        key ^ 0x646f_7261_6e64_6f6d,
        key ^ 0x6c79_6765_6e65_7261,
        key ^ 0x7465_6462_7974_6573 ^ last,
    ];
    round(&mut v);
    v[0] ^= last;
    v[2] ^= 0xff;
    for _ in 0..3 {
        round(&mut v);
    }
    let folded = v[0] ^ v[1] ^ v[2] ^ v[3];
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is what the kernel takes")]
    {
        folded as u32
    }
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}
