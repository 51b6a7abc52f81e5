//! Runs over many seeds, on all cores.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{Outcome, SimConfig, Violation, run, workload::SEEDS};

/// What came of many runs.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub seeds: u64,
    #[serde(flatten)]
    pub outcome: Outcome,
    /// By seed.
    pub violations: Vec<Violation>,
    #[serde(skip)]
    pub took: Duration,
}

impl Report {
    pub fn events_per_s(&self) -> u64 {
        (self.outcome.events as f64 / self.took.as_secs_f64().max(f64::MIN_POSITIVE)) as u64
    }
}

/// Runs `seeds` seeds from `first` on, on `jobs` threads. With `stop_at_first`, no more are begun after one that fails; the one that
/// is reported is the lowest of those that have failed by then.
pub fn run_many(
    first: u64,
    seeds: u64,
    jobs: usize,
    stop_at_first: bool,
    config: impl Fn(u64) -> SimConfig + Sync,
) -> Report {
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let work = || {
        let mut report = Report::default();
        while !stop.load(Ordering::Relaxed) {
            let index = next.fetch_add(SEEDS, Ordering::Relaxed);
            if index >= seeds {
                break;
            }
            for index in index..(index + SEEDS).min(seeds) {
                report.seeds += 1;
                match run(&config(first.wrapping_add(index))) {
                    Ok(outcome) => report.outcome.add(&outcome),
                    Err(violation) => {
                        report.violations.push(*violation);
                        stop.store(stop_at_first, Ordering::Relaxed);
                    }
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
        report
    };
    let mut report = Report::default();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let part = thread.join().expect("a run's panics are caught");
            report.seeds += part.seeds;
            report.outcome.add(&part.outcome);
            report.violations.extend(part.violations);
        }
    });
    report.violations.sort_by_key(|violation| violation.config.seed.wrapping_sub(first));
    if stop_at_first {
        report.violations.truncate(1);
    }
    report.took = started.elapsed();
    report
}
