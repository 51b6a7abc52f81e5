//! What was measured, as rows: for people, and as JSON.

use serde::Serialize;

use super::Figures;
use crate::figures::grouped;

/// One engine in one case. What doesn't apply, or could not be had here, is null.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `delivery`, `scale` or `ingest`.
    pub bench: &'static str,
    /// `streamer`, `nats-core`, `nats-jetstream`, `quinn` or `driver`.
    pub engine: &'static str,
    /// Where a node's events came from: `direct`, `embedded` or `mongodb`.
    pub source: Option<&'static str>,
    /// Subscriptions that an event matches.
    pub fan_out: f64,
    pub gateways: usize,
    pub shards: Option<usize>,
    pub subscriptions: usize,
    /// Subscriptions beside these that no event matches.
    pub idle: usize,
    pub payload_bytes: usize,
    /// Events a second that were due; null: flat out.
    pub rate: Option<u64>,
    pub events_per_s: Option<f64>,
    pub deliveries_per_s: Option<f64>,
    /// From when an event was due; flat out, from when it was handed over, which tells the length of queues.
    pub p50_us: Option<u64>,
    pub p99_us: Option<u64>,
    pub p999_us: Option<u64>,
    /// Of all that took part: source or publisher, engine, receivers. Of `ingest`, of the reading thread alone.
    pub cpu_ns_per_event: Option<u64>,
    pub lost: u64,
    pub duplicates: u64,
    pub misdelivered: u64,
    pub out_of_order: u64,
    /// From a node's start until it was ready, the longest of all rounds.
    pub ready_ms: Option<u64>,
    /// Less was sent than was due.
    pub is_behind: bool,
    /// The machine's load average when the last round had ended.
    pub load: f64,
    /// Why it was not measured, where it wasn't.
    pub skipped: Option<String>,
}

impl Row {
    pub(super) fn new(bench: &'static str, engine: &'static str) -> Self {
        Self {
            bench,
            engine,
            source: None,
            fan_out: 0.0,
            gateways: 0,
            shards: None,
            subscriptions: 0,
            idle: 0,
            payload_bytes: 0,
            rate: None,
            events_per_s: None,
            deliveries_per_s: None,
            p50_us: None,
            p99_us: None,
            p999_us: None,
            cpu_ns_per_event: None,
            lost: 0,
            duplicates: 0,
            misdelivered: 0,
            out_of_order: 0,
            ready_ms: None,
            is_behind: false,
            load: super::load_now(),
            skipped: None,
        }
    }

    pub(super) fn with(self, figures: &Figures) -> Self {
        Self {
            events_per_s: Some(figures.events_per_s),
            deliveries_per_s: Some(figures.deliveries_per_s),
            p50_us: Some(figures.p50_us),
            p99_us: Some(figures.p99_us),
            p999_us: Some(figures.p999_us),
            cpu_ns_per_event: Some(figures.cpu_ns_per_event),
            lost: figures.faults.lost,
            duplicates: figures.faults.duplicates,
            misdelivered: figures.faults.misdelivered,
            out_of_order: figures.faults.out_of_order,
            ready_ms: figures.ready_ms,
            is_behind: figures.is_behind,
            ..self
        }
    }

    pub(super) fn skipped(self, why: &str) -> Self {
        Self { skipped: Some(why.to_owned()), ..self }
    }

    /// Deliveries that were not as they should be.
    pub fn wrong(&self) -> u64 {
        self.lost + self.duplicates + self.misdelivered + self.out_of_order
    }
}

/// The head of the table on standard output.
pub fn print_head() {
    println!(
        "{:<9} {:<14} {:<9} {:>7} {:>4} {:>6} {:>9} {:>9} {:>8} {:>10} {:>12} {:>8} {:>8} {:>8} {:>8} {:>6} {:>5}",
        "bench",
        "engine",
        "source",
        "fan-out",
        "gws",
        "shards",
        "subs",
        "idle",
        "rate",
        "events/s",
        "deliveries/s",
        "p50 µs",
        "p99 µs",
        "p99.9",
        "cpu ns",
        "wrong",
        "load"
    );
}

/// A line of it.
pub fn print_row(row: &Row) {
    let count = |value: usize| grouped(value as f64);
    let rate = row.rate.map_or("flat".to_owned(), |rate| grouped(rate as f64));
    let shards = row.shards.map_or("-".to_owned(), |shards| shards.to_string());
    print!(
        "{:<9} {:<14} {:<9} {:>7.1} {:>4} {shards:>6} {:>9} {:>9} {rate:>8} ",
        row.bench,
        row.engine,
        row.source.unwrap_or("-"),
        row.fan_out,
        row.gateways,
        count(row.subscriptions),
        count(row.idle),
    );
    if let Some(why) = &row.skipped {
        println!("skipped: {why}");
        return;
    }
    let figure = |value: Option<f64>| value.map_or("-".to_owned(), grouped);
    let whole = |value: Option<u64>| figure(value.map(|value| value as f64));
    println!(
        "{:>10} {:>12} {:>8} {:>8} {:>8} {:>8} {:>6} {:>5.1}{}",
        figure(row.events_per_s),
        figure(row.deliveries_per_s),
        whole(row.p50_us),
        whole(row.p99_us),
        whole(row.p999_us),
        whole(row.cpu_ns_per_event),
        row.wrong(),
        row.load,
        if row.is_behind { "  behind" } else { "" }
    );
}
