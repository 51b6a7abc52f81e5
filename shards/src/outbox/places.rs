//! Which targets of a log entry something is about.

use std::ops::Range;

use smallvec::SmallVec;

/// Places of targets, as runs in their order. Nearly always there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Places(SmallVec<[Range<u32>; 2]>);

impl Places {
    /// Adds a run, if it is one, behind all that are there.
    pub(crate) fn push(&mut self, run: Range<u32>) {
        debug_assert!(self.0.last().is_none_or(|last| last.end <= run.start), "{run:?} comes too late");
        if !run.is_empty() {
            self.0.push(run);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<u32>> {
        self.0.iter().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_are_none_are_left_out() {
        let mut places = Places::default();
        places.push(2..2);
        assert!(places.is_empty());
        [3..6, 9..9, 9..10, 11..13].into_iter().for_each(|run| places.push(run));
        assert_eq!(places.ranges().collect::<Vec<_>>(), [3..6, 9..10, 11..13]);
    }
}
