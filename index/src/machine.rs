//! What the processor does and the language has no safe words for.

/// Asks for the cache line of `value`, which is about to be read. What is asked for and not read costs nothing but the asking.
#[inline(always)]
pub(crate) fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "there is no safe form of the instruction")]
    // SAFETY: A prefetch neither reads nor writes, whatever the address; this one is that of a live value. SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// Bit by bit, which of these are equal to `one`.
#[inline(always)]
pub(crate) fn equal_to(these: &[u32; 8], one: u32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "there is no safe form of the instructions")]
    // SAFETY: SSE2 is part of x86-64, and both loads are of four numbers within the eight; they need no alignment.
    unsafe {
        use std::arch::x86_64::{_mm_castsi128_ps, _mm_cmpeq_epi32, _mm_loadu_si128, _mm_movemask_ps, _mm_set1_epi32};
        let ones = _mm_set1_epi32(one.cast_signed());
        let start = these.as_ptr();
        let lower = _mm_cmpeq_epi32(_mm_loadu_si128(start.cast()), ones);
        let upper = _mm_cmpeq_epi32(_mm_loadu_si128(start.add(4).cast()), ones);
        (_mm_movemask_ps(_mm_castsi128_ps(lower)) | _mm_movemask_ps(_mm_castsi128_ps(upper)) << 4).cast_unsigned()
    }
    #[cfg(not(target_arch = "x86_64"))]
    (0..).zip(these).map(|(place, other)| u32::from(*other == one) << place).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_has_its_bit() {
        assert_eq!(equal_to(&[7, 1, 7, 0, u32::MAX, 7, 2, 7], 7), 0b1010_0101);
        assert_eq!(equal_to(&[0, 1, 2, 3, 4, 5, 6, u32::MAX], u32::MAX), 0b1000_0000);
    }
}
