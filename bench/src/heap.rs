//! An allocator that counts, for a binary that declares it as its global one.
#![allow(unsafe_code, reason = "an allocator is made of unsafe functions; each hands its arguments on to mimalloc's")]

use std::{
    alloc::{GlobalAlloc, Layout},
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use mimalloc::MiMalloc;

/// The node's allocator, counted.
#[derive(Debug)]
pub struct Counting;

static NOW_BYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK_BYTES: AtomicUsize = AtomicUsize::new(0);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static ALLOCATED_BYTES: AtomicU64 = AtomicU64::new(0);

/// Counting costs some 20 ns a call, which is not part of what a round takes.
static PAUSED: AtomicBool = AtomicBool::new(false);

fn grew(bytes: usize) {
    if PAUSED.load(Relaxed) {
        return;
    }
    let now = NOW_BYTES.fetch_add(bytes, Relaxed) + bytes;
    PEAK_BYTES.fetch_max(now, Relaxed);
    ALLOCATIONS.fetch_add(1, Relaxed);
    ALLOCATED_BYTES.fetch_add(bytes as u64, Relaxed);
}

fn shrank(bytes: usize) {
    if PAUSED.load(Relaxed) {
        return;
    }
    NOW_BYTES.fetch_sub(bytes, Relaxed);
}

// SAFETY: every function calls mimalloc's function of the same name with the same arguments and gives back what that
// gave; so what mimalloc promises of memory, and asks of its caller, holds unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: the caller keeps to the contract of `alloc_zeroed`.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        shrank(layout.size());
        grew(size);
        // SAFETY: the caller keeps to the contract of `realloc`; `memory` came from `MiMalloc`, as all memory here does.
        unsafe { MiMalloc.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        shrank(layout.size());
        // SAFETY: the caller keeps to the contract of `dealloc`; `memory` came from `MiMalloc`, as all memory here does.
        unsafe { MiMalloc.dealloc(memory, layout) }
    }
}

/// What a piece of work took from the heap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Calls for memory, those that change a size among them.
    pub allocations: u64,
    /// Bytes asked for in all.
    pub allocated_bytes: u64,
    /// The most that was held at once, over what was held before.
    pub peak_bytes: usize,
}

/// Does `work` and tells what it took. All zero in a binary whose allocator isn't [`Counting`]; right only while no other thread is at
/// work.
pub fn usage_of<R>(work: impl FnOnce() -> R) -> (R, Usage) {
    let held = NOW_BYTES.load(Relaxed);
    PEAK_BYTES.store(held, Relaxed);
    let (allocations, allocated_bytes) = (ALLOCATIONS.load(Relaxed), ALLOCATED_BYTES.load(Relaxed));
    let result = work();
    let usage = Usage {
        allocations: ALLOCATIONS.load(Relaxed) - allocations,
        allocated_bytes: ALLOCATED_BYTES.load(Relaxed) - allocated_bytes,
        peak_bytes: PEAK_BYTES.load(Relaxed).saturating_sub(held),
    };
    (result, usage)
}

/// Stops counting, or goes on. What is given back meanwhile counts as held for ever: only differences between two looks with no pause
/// between them mean something.
pub fn pause(paused: bool) {
    PAUSED.store(paused, Relaxed);
}

/// Does `work` and tells by how many bytes more is held after it, counted whether or not counting is paused otherwise. Zero in a binary
/// whose allocator isn't [`Counting`]; right only while no other thread is at work.
pub fn growth_of<R>(work: impl FnOnce() -> R) -> (R, usize) {
    let paused = PAUSED.swap(false, Relaxed);
    let held = NOW_BYTES.load(Relaxed);
    let result = work();
    // What was taken while counting was paused may be given back here, so that the count runs below where it began.
    let grown = NOW_BYTES.load(Relaxed).wrapping_sub(held);
    PAUSED.store(paused, Relaxed);
    (result, if grown > isize::MAX as usize { 0 } else { grown })
}
