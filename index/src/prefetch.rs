//! Asks for memory that is about to be read. What is asked for and not read costs nothing but the asking.

/// Fetches the cache line of `value` into all levels of the cache.
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
