//! The ledger's figures.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Entry, Ledger};

/// Examples kept of each kind of fault.
pub(super) const EXAMPLES_MAX: usize = 5;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub expected: u64,
    pub delivered: u64,
}

/// Figures of a run. Without a fault, `delivered == expected`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Distinct deliveries that had to happen.
    pub expected: u64,
    /// Distinct deliveries that happened, misdelivered ones included.
    pub delivered: u64,
    pub lost: u64,
    pub duplicates: u64,
    pub misdelivered: u64,
    /// Deliveries that came after a later one of the same subscription and backend.
    pub out_of_order: u64,
    /// Deliveries forgiven because of a resync; in none of the other figures.
    pub excused: u64,
    pub by_op: BTreeMap<String, Counts>,
    pub by_gateway: BTreeMap<String, Counts>,
    pub by_tenant: BTreeMap<String, Counts>,
    /// Deliveries by the shard that sent them.
    pub by_shard: BTreeMap<u16, u64>,
    /// The first few of each kind of fault, in words.
    pub examples: Vec<String>,
}

impl Report {
    /// Whether nothing was lost, repeated, misdelivered or out of order.
    pub fn is_clean(&self) -> bool {
        (self.lost, self.duplicates, self.misdelivered, self.out_of_order) == (0, 0, 0, 0)
    }
}

pub(super) fn of(ledger: &Ledger) -> Report {
    let mut report = Report {
        expected: ledger.expected,
        delivered: ledger.delivered,
        lost: ledger.owed.len() as u64,
        duplicates: ledger.duplicates.count,
        misdelivered: ledger.early.len() as u64 + ledger.wrong_transition.count,
        out_of_order: ledger.out_of_order.count,
        excused: ledger.excused,
        by_shard: ledger.by_shard.clone(),
        ..Report::default()
    };
    for subscription in &ledger.subscriptions {
        let groups = [
            (&mut report.by_op, &subscription.op),
            (&mut report.by_gateway, &subscription.gateway),
            (&mut report.by_tenant, &subscription.key.tenant),
        ];
        for (group, name) in groups {
            let counts = group.entry(name.clone()).or_default();
            counts.expected += subscription.counts.expected;
            counts.delivered += subscription.counts.delivered;
        }
    }
    let lost = first(ledger.owed.iter()).into_iter().map(|(entry, expected)| (entry, format!("expected {expected:?}")));
    let early =
        first(ledger.early.iter()).into_iter().map(|(entry, got)| (entry, format!("delivered {got:?}, not expected")));
    report.examples.extend(lost.map(|(entry, what)| describe(ledger, "lost", entry, &what)));
    report.examples.extend(early.map(|(entry, what)| describe(ledger, "misdelivered", entry, &what)));
    let kept = [
        ("misdelivered", &ledger.wrong_transition),
        ("duplicate", &ledger.duplicates),
        ("out of order", &ledger.out_of_order),
    ];
    for (kind, faults) in kept {
        report.examples.extend(faults.examples.iter().map(|(entry, what)| describe(ledger, kind, *entry, what)));
    }
    report
}

/// The first few in the order of events.
fn first<'a, V: Copy + Ord + 'a>(entries: impl Iterator<Item = (&'a Entry, &'a V)>) -> Vec<(Entry, V)> {
    let mut all: Vec<(Entry, V)> = entries.map(|(entry, value)| (*entry, *value)).collect();
    all.sort_unstable();
    all.truncate(EXAMPLES_MAX);
    all
}

fn describe(ledger: &Ledger, kind: &str, entry: Entry, what: &str) -> String {
    let subscription = &ledger.subscriptions[entry.subscription as usize];
    format!(
        "{kind}: {what}: gateway {}, tenant {}, subscription {} ({}), event time {:x} k {}",
        subscription.gateway, subscription.key.tenant, subscription.key.id, subscription.op, entry.time, entry.k
    )
}
