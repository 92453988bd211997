//! Two things the processor does best: fetching lines before they are needed, and comparing a bucket's tags at once.
#![allow(unsafe_code, reason = "the processor's own instructions have no safe wrapper")]

/// Asks the processor to bring the first line of `value` near.
#[inline]
pub(crate) fn prefetch<T>(value: &T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and cannot fault, and SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = value;
}

/// A mask of the bytes of `low` (bits 0 to 7) and `high` (8 to 15) that equal `byte`, counted from the lowest.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn equal_bytes(low: u64, high: u64, byte: u8) -> u32 {
    use std::arch::x86_64::{_mm_cmpeq_epi8, _mm_movemask_epi8, _mm_set_epi64x, _mm_set1_epi8};

    #[inline]
    #[target_feature(enable = "sse2")]
    fn compare(low: u64, high: u64, byte: u8) -> u32 {
        let bytes = _mm_set_epi64x(high.cast_signed(), low.cast_signed());
        _mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(byte.cast_signed()))).cast_unsigned()
    }
    // SAFETY: SSE2 is part of x86-64.
    unsafe { compare(low, high, byte) }
}

/// As the other one, on processors without SSE2.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub(crate) fn equal_bytes(low: u64, high: u64, byte: u8) -> u32 {
    equal_bytes_portable(low, high, byte)
}

#[cfg(any(test, not(target_arch = "x86_64")))]
fn equal_bytes_portable(low: u64, high: u64, byte: u8) -> u32 {
    let equal = |word: u64| {
        let difference = word ^ (u64::from(byte) * 0x0101_0101_0101_0101);
        let low_bits = (difference & 0x7f7f_7f7f_7f7f_7f7f) + 0x7f7f_7f7f_7f7f_7f7f;
        let zero = !(low_bits | difference | 0x7f7f_7f7f_7f7f_7f7f);
        // One bit per byte, gathered in the top byte.
        (zero >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
    };
    u32::try_from(equal(low) | equal(high) << 8).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_comparisons_find_the_same_bytes() {
        let mut word = 0x0123_4567_89ab_cdef_u64;
        for _ in 0..if cfg!(miri) { 2 } else { 200 } {
            word = word.wrapping_mul(0xd129_0d3d_5f6b_8a55).rotate_left(23) ^ 1;
            let low = word & 0x0303_0003_03ff_0303;
            let high = word.rotate_left(31) & 0xffff_0303_0303_0081;
            for byte in [0, 1, 2, 3, 0x80, 0x81, 0xff] {
                let bytes = low.to_le_bytes().into_iter().chain(high.to_le_bytes());
                let plain =
                    bytes.enumerate().fold(0, |mask, (n, b)| if b == byte { mask | 1 << n } else { mask });
                assert_eq!(equal_bytes(low, high, byte), plain);
                assert_eq!(equal_bytes_portable(low, high, byte), plain);
            }
        }
    }
}
