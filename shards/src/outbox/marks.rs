//! Up to where each backend has been received, and up to where nothing of it is owed.
//!
//! Invariants:
//! - Every entry of the backend before its `cleared` number is settled or gone. `cleared` only grows, because what is settled
//!   stays settled.

use wire::{BackendId, Position, Positions};

use super::Log;

#[derive(Debug, Default)]
pub(crate) struct Marks {
    received: Positions,
    cleared: Vec<(BackendId, u64)>,
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
    pub(crate) fn settled(&mut self, log: &Log) -> Positions {
        let mut settled = Positions::default();
        for last in self.received.iter() {
            let cleared = match self.cleared.iter_mut().find(|(backend, _)| *backend == last.backend) {
                Some((_, cleared)) => cleared,
                None => {
                    self.cleared.push((last.backend, log.first()));
                    &mut self.cleared.last_mut().expect("pushed just now").1
                }
            };
            *cleared = (*cleared).max(log.first());
            let owed = loop {
                match log.get(*cleared) {
                    None => break None,
                    Some(entry) if entry.position.backend == last.backend && entry.unsettled > 0 => break Some(entry),
                    Some(_) => *cleared += 1,
                }
            };
            match owed {
                None => settled.set(*last),
                Some(entry) => entry.previous.into_iter().for_each(|previous| settled.set(previous)),
            }
        }
        settled
    }
}
