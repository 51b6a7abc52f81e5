//! The demo's figures: a line each second while it runs, and the result.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use serde::Serialize;
use workload::{Latency, Ledger};

use super::{
    gateways::{Delivered, Live},
    writer::Submitted,
};
use crate::{control::NodeState, node::Node};

/// What a demo showed. `lost`, `duplicates` and `misdelivered` are differences of sets over (subscription, event id).
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Writes that the source acknowledged, each of them one event.
    pub events: u64,
    /// Deliveries that the oracle computed from these writes.
    pub expected: u64,
    pub delivered: u64,
    pub lost: u64,
    pub duplicates: u64,
    pub misdelivered: u64,
    pub out_of_order: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
    pub events_per_s: u64,
    pub deliveries_per_s: u64,
    pub latency_from: &'static str,
    /// Executor of the shards, and why that one.
    pub runtime: String,
    pub runtime_reason: String,
    /// Deliveries by what the subscription exercises.
    pub by_op: BTreeMap<String, u64>,
    pub by_gateway: BTreeMap<String, u64>,
    pub by_tenant: BTreeMap<String, u64>,
    pub by_shard: BTreeMap<String, u64>,
    /// The first few faults, in words.
    pub faults: Vec<String>,
}

impl Report {
    pub(super) fn new(node: &Node, ledger: &Ledger, delivered: &[Delivered], events: u64, wrote_for: Duration) -> Self {
        let figures = ledger.report();
        let mut latency = Latency::new();
        delivered.iter().for_each(|delivered| latency.merge(&delivered.latency));
        let counts = |group: BTreeMap<String, workload::ledger::Counts>| {
            group.into_iter().map(|(name, counts)| (name, counts.delivered)).collect()
        };
        let per_s = |count: u64| (count as f64 / wrote_for.as_secs_f64()).round() as u64;
        // A shard that has delivered nothing is to be seen.
        let shards = &node.topology().shards;
        let by_shard = shards.iter().map(|shard| {
            (shard.partition.to_string(), figures.by_shard.get(&shard.partition).copied().unwrap_or_default())
        });
        let (runtime, runtime_reason) =
            shards.first().map(|shard| (shard.runtime.clone(), shard.runtime_reason.clone())).unwrap_or_default();
        let mut faults = figures.examples;
        faults.extend(delivered.iter().flat_map(|delivered| delivered.breaks.iter().take(5).cloned()));
        Self {
            events,
            expected: figures.expected,
            delivered: figures.delivered,
            lost: figures.lost,
            duplicates: figures.duplicates,
            misdelivered: figures.misdelivered,
            out_of_order: figures.out_of_order,
            p50_us: latency.p50_us(),
            p99_us: latency.p99_us(),
            p999_us: latency.p999_us(),
            max_us: latency.max_us(),
            events_per_s: per_s(events),
            deliveries_per_s: per_s(figures.delivered),
            latency_from: "scheduled time of the write to its receipt by the application, with the sync of the change log",
            runtime,
            runtime_reason,
            by_op: counts(figures.by_op),
            by_gateway: counts(figures.by_gateway),
            by_tenant: counts(figures.by_tenant),
            by_shard: by_shard.collect(),
            faults,
        }
    }

    /// Whether every subscription got what it should, once, in order, and nothing else.
    pub fn is_clean(&self) -> bool {
        let faults = [self.lost, self.duplicates, self.misdelivered, self.out_of_order];
        faults == [0; 4] && self.faults.is_empty() && self.delivered == self.expected
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "events      {:>10}   {}/s", self.events, self.events_per_s)?;
        writeln!(f, "deliveries  {:>10}   {}/s, {} expected", self.delivered, self.deliveries_per_s, self.expected)?;
        writeln!(
            f,
            "faults      {:>10}   lost {}, duplicates {}, misdelivered {}, out of order {}",
            self.lost + self.duplicates + self.misdelivered + self.out_of_order,
            self.lost,
            self.duplicates,
            self.misdelivered,
            self.out_of_order
        )?;
        writeln!(
            f,
            "latency     {:>10}   p50 {} µs, p99 {} µs, p99.9 {} µs, max {} µs",
            "", self.p50_us, self.p99_us, self.p999_us, self.max_us
        )?;
        writeln!(f, "            {:>10}   from {}", "", self.latency_from)?;
        writeln!(f, "runtime     {:>10}   {}", self.runtime, self.runtime_reason)?;
        for (what, group) in
            [("gateway", &self.by_gateway), ("tenant", &self.by_tenant), ("shard", &self.by_shard), ("op", &self.by_op)]
        {
            for (name, count) in group {
                writeln!(f, "{what:<11} {count:>10}   {name}")?;
            }
        }
        self.faults.iter().try_for_each(|fault| writeln!(f, "fault: {fault}"))
    }
}

/// Prints a line of figures each second, until it is aborted.
pub(super) async fn progress(live: Arc<Live>, node: Arc<NodeState>, submitted: Arc<Submitted>, started: Instant) {
    const HEADER_EVERY: u32 = 20;
    let groups = [&live.gateways, &live.tenants, &live.shards];
    let mut before = (0, 0, 0);
    let mut counts_before: Vec<Vec<u64>> = groups.iter().map(|group| group.counts()).collect();
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.tick().await;
    for line in 0_u32.. {
        ticks.tick().await;
        if line % HEADER_EVERY == 0 {
            eprintln!(
                "{:>5} {:>9} {:>9} {:>12} {:>9} {:>9}   deliveries by Gateway, tenant, shard",
                "s", "events/s", "matches/s", "deliveries/s", "p50 µs", "p99 µs"
            );
        }
        let matched = node.shards.iter().map(|shard| shard.stats().shard.events_matched).sum();
        let now = (submitted.acknowledged.load(Relaxed), matched, live.total());
        let mut latency = Latency::new();
        live.recent.iter().flat_map(|recent| recent.try_iter()).for_each(|recent| latency.merge(&recent));
        let mut shown = Vec::new();
        for (group, before) in groups.iter().zip(&mut counts_before) {
            let counts = group.counts();
            let each = group.names.iter().zip(counts.iter().zip(before.iter()));
            let each: Vec<_> = each.map(|(name, (now, before))| format!("{name} {}", now - before)).collect();
            shown.push(each.join(", "));
            *before = counts;
        }
        eprintln!(
            "{:>5} {:>9} {:>9} {:>12} {:>9} {:>9}   {}",
            started.elapsed().as_secs(),
            now.0 - before.0,
            now.1 - before.1,
            now.2 - before.2,
            latency.p50_us(),
            latency.p99_us(),
            shown.join("; ")
        );
        before = now;
    }
}
