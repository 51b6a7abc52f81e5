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

    /// Whether the ring has already brought everything up to this position.
    pub(crate) fn has_received(&self, position: &Position) -> bool {
        self.received.covers(position)
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
