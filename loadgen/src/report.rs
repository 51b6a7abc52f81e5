//! What a run showed: a table, JSON, or a page.

use std::{fmt, time::Duration};

use serde::Serialize;
use streamer::node::Node;

use crate::{
    plan::Plan,
    run::{Options, Outcome},
    schedule::Schedule,
};

/// A second of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Moment {
    /// Since the load began.
    pub second: f64,
    pub events: u64,
    pub deliveries_by_gateway: Vec<u64>,
    pub events_by_shard: Vec<u64>,
    pub p50_us: u64,
    pub p99_us: u64,
}

/// A latency and the share of deliveries, in percent, that took no longer.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Percentile {
    pub percent: f64,
    pub us: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub profile: String,
    pub description: String,
    pub source: &'static str,
    /// Events a second that were asked for; none: flat out.
    pub rate: Option<u64>,
    pub seed: u64,
    pub subscriptions: usize,
    pub gateways: usize,
    pub shards: usize,
    pub cores: String,
    pub runtime: String,
    pub document_bytes: usize,
    pub matches_per_event: f64,

    pub events: u64,
    pub expected: u64,
    pub delivered: u64,
    pub lost: u64,
    pub duplicates: u64,
    pub misdelivered: u64,
    pub out_of_order: u64,
    /// Over the time until the last one was sent or delivered.
    pub events_per_s: u64,
    pub deliveries_per_s: u64,
    /// Of source, node and Gateways together, by the time that their threads were at work.
    pub cpu_ns_per_event: u64,
    pub latency_from: &'static str,
    pub p50_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
    pub percentiles: Vec<Percentile>,
    /// Events that were sent later than they were due, as a share: the load was more than the source could give.
    pub behind: bool,
    /// Times that a shard's full ring held up reading, by shard.
    pub ring_waits: Vec<u64>,
    pub ready_ms: u64,
    pub registered_ms: u64,
    /// Times that a subscription was too far behind for a shard's log, and was read for again.
    pub catch_ups: u64,
    /// Times that a Gateway had left and was wholly back, and the longest that it took.
    pub reconnects: u64,
    pub reconnect_ms_max: u64,
    pub by_gateway: Vec<u64>,
    pub by_shard: Vec<u64>,
    pub moments: Vec<Moment>,
    /// The first few faults, in words.
    pub faults: Vec<String>,
}

/// Points of the percentile curve.
const PERCENTS: [f64; 14] = [0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 99.999, 100.0];

impl Report {
    pub(crate) fn new(
        options: &Options,
        node: &Node,
        plan: &Plan,
        schedule: &Schedule,
        outcome: Outcome,
        moments: Vec<Moment>,
    ) -> Self {
        let latency = outcome.latency();
        let (events_per_s, deliveries_per_s) = (outcome.per_s(outcome.sent), outcome.per_s(outcome.delivered()));
        let Outcome { sent, sent_after, received, faults, work_ns, .. } = outcome;
        let by_gateway: Vec<u64> = received.iter().map(|received| received.count).collect();
        let delivered = by_gateway.iter().sum();
        let sent_per_s = sent as f64 / sent_after.as_secs_f64().max(0.001);
        let shards = &node.topology().shards;
        let stats: Vec<_> = node.state().shards.iter().map(|shard| shard.stats()).collect();
        let breaks =
            received.iter().flat_map(|received| received.checker.examples.iter().chain(received.breaks.iter().take(5)));
        let first = shards.first();
        let cores = shards.iter().map(|shard| shard.core).collect::<Vec<_>>();
        let topology = node.topology();
        Self {
            profile: options.profile_name.clone(),
            description: options.profile.description.clone(),
            source: options.source.name(),
            rate: options.rate,
            seed: options.seed,
            subscriptions: plan.subscriptions.len(),
            gateways: options.gateways,
            shards: shards.len(),
            cores: format!(
                "shards {}, ingest {}, control {}",
                streamer::affinity::show(&cores),
                streamer::affinity::show(&topology.ingest_cores),
                streamer::affinity::show(&topology.control_cores)
            ),
            runtime: first.map(|shard| shard.runtime.clone()).unwrap_or_default(),
            document_bytes: options.profile.document_bytes,
            matches_per_event: plan.deliveries(sent) as f64 / sent.max(1) as f64,
            events: sent,
            expected: plan.deliveries(sent),
            delivered,
            lost: faults.lost,
            duplicates: faults.duplicates,
            misdelivered: faults.misdelivered,
            out_of_order: faults.out_of_order,
            events_per_s: events_per_s.round() as u64,
            deliveries_per_s: deliveries_per_s.round() as u64,
            cpu_ns_per_event: work_ns / sent.max(1),
            latency_from: schedule.counts_from().describe(),
            p50_us: latency.p50_us(),
            p99_us: latency.p99_us(),
            p999_us: latency.p999_us(),
            max_us: latency.max_us(),
            percentiles: PERCENTS.map(|percent| Percentile { percent, us: latency.percentile_us(percent) }).to_vec(),
            behind: options.rate.is_some_and(|rate| sent_per_s < (rate - rate / 50) as f64),
            ring_waits: stats.iter().map(|stats| stats.ring.waits).collect(),
            ready_ms: 0,
            registered_ms: 0,
            by_shard: stats.iter().map(|stats| stats.shard.events).collect(),
            catch_ups: received.iter().map(|received| received.catch_ups).sum(),
            reconnects: received.iter().map(|received| received.reconnects.len() as u64).sum(),
            reconnect_ms_max: received
                .iter()
                .flat_map(|received| &received.reconnects)
                .max()
                .map_or(0, |longest| longest.as_millis() as u64),
            by_gateway,
            moments,
            faults: breaks.cloned().collect(),
        }
    }

    pub(crate) fn with_start(self, ready: Duration, registered: Duration) -> Self {
        Self { ready_ms: ready.as_millis() as u64, registered_ms: registered.as_millis() as u64, ..self }
    }

    /// Whether every subscription got what it should, once, in order, and nothing else.
    pub fn is_clean(&self) -> bool {
        let faults = [self.lost, self.duplicates, self.misdelivered, self.out_of_order];
        faults == [0; 4] && self.faults.is_empty() && self.delivered == self.expected
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.rate.map_or("flat out".to_owned(), |rate| format!("{rate}/s"));
        writeln!(f, "profile        {} ({}): {}, {} source", self.profile, self.description, rate, self.source)?;
        writeln!(
            f,
            "               {} subscriptions of {} Gateways, {:.2} matches an event, documents of {} bytes",
            self.subscriptions, self.gateways, self.matches_per_event, self.document_bytes
        )?;
        writeln!(f, "node           {} shards on {}; {}", self.shards, self.runtime, self.cores)?;
        writeln!(f, "start          ready after {} ms, all live {} ms later", self.ready_ms, self.registered_ms)?;
        writeln!(f, "events         {:>12}   {}/s", self.events, self.events_per_s)?;
        writeln!(f, "deliveries     {:>12}   {}/s, {} expected", self.delivered, self.deliveries_per_s, self.expected)?;
        writeln!(
            f,
            "faults         {:>12}   lost {}, duplicates {}, misdelivered {}, out of order {}",
            self.lost + self.duplicates + self.misdelivered + self.out_of_order,
            self.lost,
            self.duplicates,
            self.misdelivered,
            self.out_of_order
        )?;
        writeln!(
            f,
            "latency        {:>12}   p50 {} µs, p99 {} µs, p99.9 {} µs, max {} µs",
            "", self.p50_us, self.p99_us, self.p999_us, self.max_us
        )?;
        writeln!(f, "               {:>12}   from {}", "", self.latency_from)?;
        writeln!(f, "work           {:>12}   ns an event, of source, node and Gateways", self.cpu_ns_per_event)?;
        if self.catch_ups > 0 {
            writeln!(f, "catch-ups      {:>12}   of subscriptions that were too far behind", self.catch_ups)?;
        }
        if self.reconnects > 0 {
            let (times, most) = (self.reconnects, self.reconnect_ms_max);
            writeln!(f, "reconnects     {times:>12}   all live again after at most {most} ms")?;
        }
        if self.behind {
            writeln!(f, "               {:>12}   the source was behind: this rate is more than can be had here", "")?;
        }
        for (what, counts) in [("gateway", &self.by_gateway), ("shard", &self.by_shard)] {
            for (index, count) in counts.iter().enumerate() {
                let waits = match what {
                    "shard" => format!(", its ring was full {} times", self.ring_waits[index]),
                    _ => String::new(),
                };
                writeln!(f, "{what:<14} {count:>12}   {what}-{index}{waits}")?;
            }
        }
        self.faults.iter().try_for_each(|fault| writeln!(f, "fault: {fault}"))
    }
}
