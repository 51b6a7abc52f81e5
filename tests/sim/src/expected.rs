//! What each subscription must be given: the oracle's list, which grows with what is read.
//!
//! An update may be read more than once, with another look-up each time. What was read with a match may have been delivered, what was read
//! without one need not have been: an item *must* come only if every reading of its event matched.

use wire::{Certainty, GapReason, Position, Transition};

use crate::workload::Due;

/// A subscription that the run knows, by its place in the list that was generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Number(pub(crate) usize);

/// `(time, k)` of a position: there is one backend and one lineage.
pub(crate) type Order = (u64, u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Change(Transition, Certainty),
    Gap(GapReason),
}

/// What a subscription is to be given of one event.
#[derive(Debug)]
struct Item {
    id: Order,
    /// The event's place in the history.
    event: usize,
    /// One for each reading that matched.
    whats: Vec<What>,
}

pub(crate) struct Expected {
    /// By [`Number`].
    items: Vec<Vec<Item>>,
    /// How often each event was read with another look-up than before.
    readings: Vec<usize>,
    /// Gaps of the source itself: they concern everybody.
    gaps: Vec<(Order, GapReason)>,
}

impl Expected {
    pub(crate) fn new(subscriptions: usize) -> Self {
        let items = (0..subscriptions).map(|_| Vec::new()).collect();
        Self { items, readings: Vec::new(), gaps: Vec::new() }
    }

    /// The event at this place of the history was read, in a way that it wasn't read before, and this must come of it.
    pub(crate) fn read(&mut self, event: usize, id: Position, due: &[Due]) {
        if self.readings.len() <= event {
            self.readings.resize(event + 1, 0);
        }
        self.readings[event] += 1;
        let id = id.order();
        for (number, what) in due {
            let items = &mut self.items[number.0];
            let at = items.partition_point(|item| item.id < id);
            match items.get_mut(at).filter(|item| item.id == id) {
                Some(item) => item.whats.push(*what),
                None => items.insert(at, Item { id, event, whats: vec![*what] }),
            }
        }
    }

    pub(crate) fn gap(&mut self, id: Position, reason: GapReason) {
        self.gaps.push((id.order(), reason));
    }

    /// Where the next thing stands that the subscription must be given after `last`.
    pub(crate) fn next_due(&self, number: Number, last: Order) -> Option<Order> {
        let items = &self.items[number.0];
        let from = items.partition_point(|item| item.id <= last);
        let due = items[from..].iter().find(|item| item.whats.len() == self.readings[item.event]).map(|item| item.id);
        let gap = self.gaps.get(self.gaps.partition_point(|(id, _)| *id <= last)).map(|(id, _)| *id);
        match (due, gap) {
            (Some(due), Some(gap)) => Some(due.min(gap)),
            (one, other) => one.or(other),
        }
    }

    /// Whether the subscription may be given this.
    pub(crate) fn allows(&self, number: Number, id: Order, what: &What) -> bool {
        if let What::Gap(_) = what {
            return self
                .gaps
                .binary_search_by(|(gap, _)| gap.cmp(&id))
                .is_ok_and(|at| *what == What::Gap(self.gaps[at].1));
        }
        let items = &self.items[number.0];
        items.binary_search_by(|item| item.id.cmp(&id)).is_ok_and(|at| items[at].whats.contains(what))
    }
}
