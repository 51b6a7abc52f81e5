//! The highest rate that holds a latency.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
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
    /// What gave way at the lowest rate that didn't hold. None where all did.
    pub bottleneck: Option<Bottleneck>,
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

/// Looks for it with runs, between `from` and `to` events a second.
///
/// # Errors
/// When a run can't be made.
pub fn search(
    options: &Options,
    p99_max: Duration,
    (from, to): (u64, u64),
    interrupted: &Arc<AtomicBool>,
    mut told: impl FnMut(&Try),
) -> Result<Capacity, RunError> {
    let p99_max_us = p99_max.as_micros() as u64;
    let mut steps = Steps::new(from, to);
    let mut tries = Vec::new();
    while let Some(rate) = steps.next() {
        let report = run(&Options { rate: Some(rate), ..options.clone() }, interrupted)?;
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        let why = gave_way(&report, p99_max_us);
        let tried = Try { rate, holds: why.is_none(), p99_us: report.p99_us, events_per_s: report.events_per_s, why };
        told(&tried);
        tries.push(tried);
        steps.tried(rate, why.is_none());
    }
    // What the lowest rate that didn't hold failed by.
    let lowest = tries.iter().filter(|tried| !tried.holds).min_by_key(|tried| tried.rate);
    Ok(Capacity { rate: steps.best, p99_max_us, bottleneck: lowest.and_then(|tried| tried.why), tries })
}

/// Which rates to try: doubled as long as all hold, then halved between the highest that did and the lowest that didn't.
struct Steps {
    from: u64,
    to: u64,
    best: u64,
    lowest_failed: Option<u64>,
}

impl Steps {
    fn new(from: u64, to: u64) -> Self {
        Self { from, to, best: 0, lowest_failed: None }
    }

    fn next(&self) -> Option<u64> {
        match (self.best, self.lowest_failed) {
            (0, None) => Some(self.from),
            (0, Some(_)) => None,
            (best, None) => (best < self.to).then(|| (best * 2).min(self.to)),
            (best, Some(failed)) => {
                let is_near = failed as f64 <= best as f64 * (1.0 + PRECISION);
                (!is_near && failed > best + 1).then(|| best.midpoint(failed))
            }
        }
    }

    fn tried(&mut self, rate: u64, holds: bool) {
        if holds {
            self.best = self.best.max(rate);
        } else {
            self.lowest_failed = Some(self.lowest_failed.map_or(rate, |failed| failed.min(rate)));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found where everything up to `holds` holds, and what was tried.
    fn found(from: u64, to: u64, holds: u64) -> (u64, Vec<u64>) {
        let mut steps = Steps::new(from, to);
        let mut tried = Vec::new();
        while let Some(rate) = steps.next() {
            tried.push(rate);
            steps.tried(rate, rate <= holds);
        }
        (steps.best, tried)
    }

    #[test]
    fn the_search_ends_near_what_holds() {
        assert_eq!(found(200, 700, u64::MAX), (700, vec![200, 400, 700]));
        assert_eq!(found(200, 700, 100), (0, vec![200]));
        assert_eq!(found(1, 2, 1), (1, vec![1, 2]));
        for holds in [10_000, 12_345, 99_999, 1_234_567] {
            let (best, tried) = found(10_000, 10_000_000, holds);
            assert!(best <= holds && best as f64 * (1.0 + 2.0 * PRECISION) > holds as f64, "{holds}: {best}");
            assert!(tried.len() < 20, "{tried:?}");
        }
    }
}
