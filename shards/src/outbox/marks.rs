//! Up to where each backend has been received, and up to where nothing of it is owed.
//!
//! Invariants:
//! - Every entry of the backend before its `cleared` number is settled or gone. `cleared` only grows, because what is settled
//!   stays settled.

use std::cell::RefCell;

use wire::{BackendId, Position, Positions};

use super::Log;

#[derive(Debug, Default)]
pub(crate) struct Marks {
    received: Positions,
    /// A memory of how far a look has got, which changes no answer.
    cleared: RefCell<Vec<(BackendId, u64)>>,
}

impl Marks {
    /// The last position that came through the ring, of every backend.
    pub(crate) fn received(&self) -> &Positions {
        &self.received
    }

    /// Takes in a position that has not come before.
    pub(crate) fn receive_next(&mut self, position: Position) {
        debug_assert!(!self.received.covers(&position), "{position} has come before");
        self.received.set(position);
    }

    pub(crate) fn receive(&mut self, position: Position) {
        self.received.advance(position);
    }

    /// The highest position of each backend such that nobody is owed anything at or before it. A backend whose very first entry
    /// is owed isn't named.
    pub(crate) fn settled(&self, log: &Log) -> Positions {
        self.received.iter().filter_map(|last| self.settled_of(last, log)).collect()
    }

    fn settled_of(&self, last: &Position, log: &Log) -> Option<Position> {
        let mut all = self.cleared.borrow_mut();
        let at = all.iter().position(|(backend, _)| *backend == last.backend).unwrap_or_else(|| {
            all.push((last.backend, log.first()));
            all.len() - 1
        });
        let cleared = &mut all[at].1;
        *cleared = (*cleared).max(log.first());
        while let Some(entry) = log.get(*cleared) {
            if entry.position.backend == last.backend && entry.unsettled > 0 {
                return entry.previous;
            }
            *cleared += 1;
        }
        Some(*last)
    }
}

#[cfg(test)]
mod tests {
    use wire::{GapReason, Lineage};

    use super::*;
    use crate::outbox::{LogLimits, NewEntry, Target, What};

    fn position(backend: u32, lineage: u64, time: u64) -> Position {
        Position { backend: BackendId(backend), lineage: Lineage(lineage), time, k: 1 }
    }

    /// A log of one target an entry, and the marks beside it.
    struct Pair {
        log: Log,
        marks: Marks,
    }

    impl Pair {
        fn new() -> Self {
            let limits = LogLimits { bytes_max: 1 << 20, events_max: 100 };
            Self { log: Log::new(limits), marks: Marks::default() }
        }

        fn owe(&mut self, position: Position) -> u64 {
            let previous = self.marks.received().get(position.backend).copied();
            let what = What::Gap(GapReason::Oversize);
            let new = NewEntry { position, previous, what, of_pass: false, groups: &[] };
            let number = self.log.append(&new, [Target::of_test()].into_iter());
            self.marks.receive(position);
            number
        }

        fn settle(&mut self, number: u64) {
            let before = self.log.unsettled_entries();
            self.log.settle_all(number, 0..1);
            self.log.settle_all(number, 0..1);
            assert_eq!(self.log.unsettled_entries(), before - 1, "settled once");
        }

        fn settled(&self, backend: u32) -> Option<u64> {
            self.marks.settled(&self.log).get(BackendId(backend)).map(|position| position.time)
        }
    }

    #[test]
    fn each_backend_settles_by_itself() {
        let mut pair = Pair::new();
        let first = pair.owe(position(1, 1, 10));
        assert_eq!(pair.settled(1), None, "nothing came before it");
        pair.marks.receive(position(2, 1, 5));
        let second = pair.owe(position(2, 1, 6));
        let third = pair.owe(position(1, 1, 11));
        pair.marks.receive(position(1, 1, 20));
        assert_eq!((pair.settled(1), pair.settled(2)), (None, Some(5)));
        pair.settle(third);
        assert_eq!(pair.settled(1), None, "the first one is still owed");
        pair.settle(first);
        assert_eq!((pair.settled(1), pair.settled(2)), (Some(20), Some(5)));
        pair.settle(second);
        assert_eq!(pair.settled(2), Some(6));
    }

    #[test]
    fn settled_is_just_before_what_is_owed() {
        let mut pair = Pair::new();
        pair.marks.receive(position(1, 1, 3));
        pair.marks.receive(position(1, 1, 7));
        let first = pair.owe(position(1, 1, 8));
        pair.marks.receive(position(1, 1, 9));
        let second = pair.owe(position(1, 1, 12));
        assert_eq!(pair.settled(1), Some(7));
        pair.settle(first);
        assert_eq!(pair.settled(1), Some(9));
        pair.settle(second);
        assert_eq!(pair.settled(1), Some(12));
    }

    #[test]
    fn what_leaves_the_log_holds_nothing_back() {
        let mut pair = Pair::new();
        pair.marks.receive(position(1, 1, 1));
        pair.owe(position(1, 1, 2));
        assert_eq!(pair.settled(1), Some(1));
        pair.log.evict();
        assert_eq!(pair.settled(1), Some(2));
    }

    #[test]
    fn another_lineage_waits_for_what_is_owed_of_the_old_one() {
        let mut pair = Pair::new();
        pair.marks.receive(position(1, 1, 50));
        let old = pair.owe(position(1, 1, 51));
        pair.marks.receive(position(1, 2, 4));
        assert_eq!(pair.settled(1), Some(50));
        pair.settle(old);
        assert_eq!(pair.settled(1), Some(4));
    }
}
