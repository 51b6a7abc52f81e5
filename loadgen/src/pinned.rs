//! Keeps a thread on some cores, so that what is measured doesn't move.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The calling thread on some of the cores that it was allowed, until this is dropped. Threads and processes that it starts meanwhile
/// inherit them.
pub struct Pinned(Option<CpuSet>);

impl Pinned {
    /// Where that can't be had the thread stays where it is, which costs steadiness and nothing else.
    pub fn to(cores: &[usize]) -> Self {
        let Ok(allowed) = sched_getaffinity(None) else { return Self(None) };
        let mut some = CpuSet::new();
        cores.iter().filter(|core| **core < CpuSet::MAX_CPU).for_each(|core| some.set(*core));
        Self(sched_setaffinity(None, &some).is_ok().then_some(allowed))
    }

    /// On the last of the cores that it is allowed.
    pub fn to_one_core() -> Self {
        let last = allowed().last().copied();
        Self::to(last.as_slice())
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(allowed) = &self.0 {
            // If that fails, the thread stays where it is, which harms nothing.
            let _ = sched_setaffinity(None, allowed);
        }
    }
}

/// Numbers of the cores that the calling thread may run on, in ascending order; none where that can't be told.
pub fn allowed() -> Vec<usize> {
    sched_getaffinity(None)
        .map_or_else(|_| Vec::new(), |allowed| (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_kept_on_a_core_for_a_time() {
        let before = allowed();
        {
            let _pinned = Pinned::to_one_core();
            assert_eq!(allowed(), before[before.len() - 1..]);
        }
        assert_eq!(allowed(), before);
    }
}
