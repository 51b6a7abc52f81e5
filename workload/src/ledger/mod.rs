//! What was lost, repeated or misdelivered: what the oracle expects set against what Gateways were given.
//!
//! Invariants:
//! - The three faults are differences of sets over (subscription, event id): `lost` is expected and not delivered,
//!   `misdelivered` is delivered and not expected, or with another transition than expected, `duplicates` counts every delivery
//!   of what was delivered before. No delivery counts as two of them.
//! - Expectation and delivery may come in either order. Faults are final once both sides have said all; until then what is
//!   under way counts as lost or misdelivered.
//! - Duplicates are told exactly, however late. What has been both expected and delivered leaves the two maps and is kept as
//!   16 bytes (time, k) in a sorted list of its subscription; what waits for its other side takes about 50 bytes.

mod report;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use wire::{BackendId, EventId, Lineage, Position, Positions, SubscriptionKey, Transition};

pub use report::{Counts, Report};

use crate::oracle::Expected;

/// The op label of subscriptions that were never registered.
pub const UNREGISTERED: &str = "unregistered";

/// A change that a Gateway's application was given for one subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    pub gateway: String,
    pub key: SubscriptionKey,
    pub id: EventId,
    pub transition: Transition,
    /// The shard that sent it.
    pub shard: u16,
}

/// Expected and delivered changes. See the module's invariants.
#[derive(Debug, Default)]
pub struct Ledger {
    subscriptions: Vec<Subscription>,
    index: HashMap<String, HashMap<SubscriptionKey, u32>>,
    /// Expected, and not delivered yet.
    owed: HashMap<Entry, Transition>,
    /// Delivered, and not expected yet.
    early: HashMap<Entry, Transition>,
    expected: u64,
    delivered: u64,
    excused: u64,
    duplicates: Faults,
    wrong_transition: Faults,
    out_of_order: Faults,
    by_shard: BTreeMap<u16, u64>,
}

#[derive(Debug)]
struct Subscription {
    gateway: String,
    key: SubscriptionKey,
    op: String,
    counts: Counts,
    histories: Vec<History>,
}

/// One subscription's part of one backend's history.
#[derive(Debug)]
struct History {
    backend: BackendId,
    lineage: Lineage,
    /// (time, k) of what was expected and delivered, ascending.
    settled: Vec<(u64, u32)>,
    last_delivered: Option<(u64, u32)>,
}

/// A (subscription, event id), by the places of subscription and history in their lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Entry {
    time: u64,
    k: u32,
    subscription: u32,
    history: u32,
}

/// A count, and the first few of what was counted.
#[derive(Debug, Default)]
struct Faults {
    count: u64,
    examples: Vec<(Entry, String)>,
}

impl Faults {
    fn add(&mut self, entry: Entry, what: String) {
        self.count += 1;
        if self.examples.len() < report::EXAMPLES_MAX {
            self.examples.push((entry, what));
        }
    }
}

impl Ledger {
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a subscription known under the op that it exercises. Registering it again changes only that label.
    pub fn register(&mut self, gateway: &str, key: &SubscriptionKey, op: &str) {
        let number = self.number_of(gateway, key);
        self.subscriptions[number as usize].op = op.to_owned();
    }

    /// Notes that a delivery must happen. Saying it twice changes nothing.
    pub fn expect(&mut self, expected: &Expected) {
        let entry = self.entry(&expected.gateway, &expected.key, expected.id);
        if self.owed.contains_key(&entry) || self.is_settled(entry) {
            return;
        }
        self.expected += 1;
        self.subscription(entry).counts.expected += 1;
        match self.early.remove(&entry) {
            Some(transition) => self.settle(entry, expected.transition, transition),
            None => {
                self.owed.insert(entry, expected.transition);
            }
        }
    }

    /// Notes a delivery.
    pub fn deliver(&mut self, delivered: &Delivered) {
        let Delivered { gateway, key, id, transition, shard } = delivered;
        let entry = self.entry(gateway, key, *id);
        if self.early.contains_key(&entry) || self.is_settled(entry) {
            self.duplicates.add(entry, format!("delivered again, as {transition:?}"));
            return;
        }
        self.delivered += 1;
        self.subscription(entry).counts.delivered += 1;
        *self.by_shard.entry(*shard).or_default() += 1;
        self.check_order(entry);
        match self.owed.remove(&entry) {
            Some(expected) => self.settle(entry, expected, *transition),
            None => {
                self.early.insert(entry, *transition);
            }
        }
    }

    /// Forgives what is owed to a subscription at or before `live_from`: it was told to read its state anew. Returns how many
    /// deliveries that were.
    pub fn excuse(&mut self, gateway: &str, key: &SubscriptionKey, live_from: &Positions) -> u64 {
        let number = self.number_of(gateway, key);
        let histories: Vec<(BackendId, Lineage)> =
            self.subscriptions[number as usize].histories.iter().map(|h| (h.backend, h.lineage)).collect();
        let before = self.owed.len();
        self.owed.retain(|entry, _| {
            let Some((backend, lineage)) = histories.get(entry.history as usize).copied() else { return true };
            let id = Position { backend, lineage, time: entry.time, k: entry.k };
            entry.subscription != number || !live_from.covers(&id)
        });
        let excused = (before - self.owed.len()) as u64;
        self.excused += excused;
        self.expected -= excused;
        self.subscriptions[number as usize].counts.expected -= excused;
        excused
    }

    /// Expected deliveries that have not come yet.
    pub fn owed(&self) -> usize {
        self.owed.len()
    }

    /// Deliveries that nobody has expected yet.
    pub fn early(&self) -> usize {
        self.early.len()
    }

    pub fn expected(&self) -> u64 {
        self.expected
    }

    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The state so far; what is under way counts as lost or misdelivered.
    pub fn report(&self) -> Report {
        report::of(self)
    }

    fn settle(&mut self, entry: Entry, expected: Transition, delivered: Transition) {
        if expected != delivered {
            self.wrong_transition.add(entry, format!("delivered as {delivered:?} instead of {expected:?}"));
        }
        let settled = &mut self.history(entry).settled;
        let at = settled.partition_point(|place| *place < (entry.time, entry.k));
        settled.insert(at, (entry.time, entry.k));
    }

    fn is_settled(&self, entry: Entry) -> bool {
        let history = &self.subscriptions[entry.subscription as usize].histories[entry.history as usize];
        history.settled.binary_search(&(entry.time, entry.k)).is_ok()
    }

    fn check_order(&mut self, entry: Entry) {
        let place = (entry.time, entry.k);
        let last = self.history(entry).last_delivered;
        match last {
            Some(last) if place <= last => {
                self.out_of_order.add(entry, format!("delivered after time {:x} k {}", last.0, last.1));
            }
            _ => self.history(entry).last_delivered = Some(place),
        }
    }

    fn subscription(&mut self, entry: Entry) -> &mut Subscription {
        &mut self.subscriptions[entry.subscription as usize]
    }

    fn history(&mut self, entry: Entry) -> &mut History {
        &mut self.subscriptions[entry.subscription as usize].histories[entry.history as usize]
    }

    fn entry(&mut self, gateway: &str, key: &SubscriptionKey, id: EventId) -> Entry {
        let subscription = self.number_of(gateway, key);
        let histories = &mut self.subscriptions[subscription as usize].histories;
        let of_id = |h: &History| h.backend == id.backend && h.lineage == id.lineage;
        let history = histories.iter().position(of_id).unwrap_or_else(|| {
            let Position { backend, lineage, .. } = id;
            histories.push(History { backend, lineage, settled: Vec::new(), last_delivered: None });
            histories.len() - 1
        });
        Entry { time: id.time, k: id.k, subscription, history: history as u32 }
    }

    fn number_of(&mut self, gateway: &str, key: &SubscriptionKey) -> u32 {
        if let Some(number) = self.index.get(gateway).and_then(|keys| keys.get(key)) {
            return *number;
        }
        let number = u32::try_from(self.subscriptions.len()).expect("a run has fewer than 2^32 subscriptions");
        self.subscriptions.push(Subscription {
            gateway: gateway.to_owned(),
            key: key.clone(),
            op: UNREGISTERED.to_owned(),
            counts: Counts::default(),
            histories: Vec::new(),
        });
        self.index.entry(gateway.to_owned()).or_default().insert(key.clone(), number);
        number
    }
}
