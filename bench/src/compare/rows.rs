//! What was measured, as rows: for people, and as JSON.

use serde::Serialize;

use crate::figures::grouped;

/// One engine on one workload at one size. What does not apply, or can't be had here, is null.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub workload: &'static str,
    pub engine: &'static str,
    pub subscriptions: usize,
    /// Of the median round, like the next one.
    pub events_per_s: Option<f64>,
    pub ns_per_event: Option<f64>,
    /// 99th percentile of events that were matched one at a time.
    pub p99_ns: Option<f64>,
    pub instructions_per_event: Option<f64>,
    pub bytes_per_subscription: Option<f64>,
    pub build_ms: Option<f64>,
    pub matches_per_event: Option<f64>,
    pub doc_bytes: Option<f64>,
    pub seed: u64,
    /// Events whose answers were compared with those of brute force over all subscriptions of their collection.
    pub checked: usize,
    /// Subscriptions that were too many or too few in them.
    pub wrong: u64,
    /// Of `churn`: subscriptions added and removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operations_per_s: Option<f64>,
}

impl Row {
    pub(super) fn new(workload: &'static str, engine: &'static str, subscriptions: usize, seed: u64) -> Self {
        Self {
            workload,
            engine,
            subscriptions,
            events_per_s: None,
            ns_per_event: None,
            p99_ns: None,
            instructions_per_event: None,
            bytes_per_subscription: None,
            build_ms: None,
            matches_per_event: None,
            doc_bytes: None,
            seed,
            checked: 0,
            wrong: 0,
            operations_per_s: None,
        }
    }
}

/// The head of the table on standard output.
pub fn print_head() {
    println!(
        "{:<10} {:<12} {:>13} {:>11} {:>12} {:>12} {:>8} {:>9} {:>10} {:>9} {:>7} {:>6}",
        "workload",
        "engine",
        "subscriptions",
        "events/s",
        "ns/event",
        "p99 ns",
        "instr.",
        "bytes/sub",
        "build ms",
        "matches",
        "checked",
        "wrong"
    );
}

/// A line of it.
pub fn print_row(row: &Row) {
    println!(
        "{:<10} {:<12} {:>13} {:>11} {:>12} {:>12} {:>8} {:>9} {:>10} {:>9} {:>7} {:>6}",
        row.workload,
        row.engine,
        grouped(row.subscriptions as f64),
        figure(row.events_per_s),
        figure(row.ns_per_event),
        figure(row.p99_ns),
        figure(row.instructions_per_event),
        figure(row.bytes_per_subscription),
        figure(row.build_ms),
        row.matches_per_event.map_or_else(|| "-".into(), |matches| format!("{matches:.2}")),
        row.checked,
        row.wrong
    );
    if let Some(operations) = row.operations_per_s {
        println!("{:<10} {} subscriptions added or removed a second", "", grouped(operations));
    }
}

fn figure(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value < 10.0 => format!("{value:.2}"),
        Some(value) => grouped(value),
    }
}
