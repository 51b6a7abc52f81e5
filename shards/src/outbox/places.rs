//! Which targets of a log entry something is about.

use std::ops::Range;

use smallvec::SmallVec;

/// Places of targets, as runs in their order. Nearly always there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Places(SmallVec<[Range<u32>; 2]>);

impl Places {
    /// Adds a place above all that are there.
    pub(crate) fn push(&mut self, at: u32) {
        match self.0.last_mut() {
            Some(last) if last.end == at => last.end += 1,
            last => {
                debug_assert!(last.is_none_or(|last| last.end < at), "place {at} comes too late");
                self.0.push(at..at + 1);
            }
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
    fn neighbours_make_a_run() {
        let mut places = Places::default();
        assert!(places.is_empty());
        [3, 4, 5, 9, 11, 12].into_iter().for_each(|at| places.push(at));
        assert_eq!(places.ranges().collect::<Vec<_>>(), [3..6, 9..10, 11..13]);
    }
}
