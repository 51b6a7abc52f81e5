//! The highest rate that holds a latency.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use serde::Serialize;

use crate::{
    report::Report,
    run::{Options, RunError, run},
};

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Capacity {
    /// Events a second that held the bound; 0 where not even the lowest rate tried did.
    pub rate: u64,
    pub p99_max_us: u64,
    /// What gave way first above it.
    pub bottleneck: Bottleneck,
    /// Each rate that was tried.
    pub tries: Vec<Try>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Try {
    pub rate: u64,
    pub holds: bool,
    pub p99_us: u64,
    pub events_per_s: u64,
    pub why: Option<Bottleneck>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bottleneck {
    /// Events were handed over late, and no ring was full: the source, or the ingest thread that it shares a core with.
    Ingest,
    /// A shard's ring was full.
    Shard,
    /// All was read and matched in time, and came late.
    Gateways,
    /// Deliveries were wrong, which is worse than late.
    Faults,
}

/// Rates are told apart to this share of them.
const PRECISION: f64 = 0.05;

/// Looks for it with runs of this length, between `low` and `high` events a second.
///
/// # Errors
/// When a run can't be made.
pub fn search(
    options: &Options,
    p99_max: Duration,
    (mut low, mut high): (u64, u64),
    interrupted: &Arc<AtomicBool>,
    mut told: impl FnMut(&Try),
) -> Result<Capacity, RunError> {
    let p99_max_us = p99_max.as_micros() as u64;
    let mut tries = Vec::new();
    let mut best = 0;
    let mut bottleneck = Bottleneck::Ingest;
    let mut rate = low;
    loop {
        let report = run(&Options { rate: Some(rate), ..options.clone() }, interrupted)?;
        let why = gave_way(&report, p99_max_us);
        let tried = Try { rate, holds: why.is_none(), p99_us: report.p99_us, events_per_s: report.events_per_s, why };
        told(&tried);
        tries.push(tried);
        match why {
            None => {
                best = best.max(rate);
                low = rate;
            }
            Some(why) => {
                bottleneck = why;
                high = rate;
            }
        }
        let is_found = high as f64 <= low as f64 * (1.0 + PRECISION) || best >= high || (best == 0 && high <= low);
        if is_found || interrupted.load(std::sync::atomic::Ordering::Relaxed) {
            return Ok(Capacity { rate: best, p99_max_us, bottleneck, tries });
        }
        // Doubled as long as nothing gives way, then halved between.
        let none_gave_way = tries.iter().all(|tried| tried.holds);
        rate = if none_gave_way { (low * 2).min(high) } else { low.midpoint(high) };
    }
}

/// What gave way in this run, if something did.
fn gave_way(report: &Report, p99_max_us: u64) -> Option<Bottleneck> {
    if !report.is_clean() {
        return Some(Bottleneck::Faults);
    }
    if !report.behind && report.p99_us <= p99_max_us {
        return None;
    }
    Some(match report.ring_waits.iter().any(|waits| *waits > 0) {
        true => Bottleneck::Shard,
        false if report.behind => Bottleneck::Ingest,
        false => Bottleneck::Gateways,
    })
}
