//! The index by itself on the workloads of `compare`, for a profiler.

use workload::matching::{Workload, World};

use crate::{
    Named, Scenario,
    compare::{Endless, index_for_ever},
};

const SUBSCRIPTIONS: usize = 100_000;
/// Events of a round.
const EVENTS: usize = 4_096;
const SEED: u64 = 1;

pub fn scenarios() -> Vec<Named> {
    [Workload::Mixed, Workload::MixedOne, Workload::Cel, Workload::Range, Workload::Pairs]
        .into_iter()
        .map(|workload| Named::new(format!("index {}", workload.name()), move || Matching::new(workload)))
        .collect()
}

struct Matching {
    index: Endless,
    matches: u64,
}

impl Matching {
    fn new(workload: Workload) -> Self {
        Self { index: index_for_ever(World::new(workload, SUBSCRIPTIONS, SEED), EVENTS), matches: 0 }
    }
}

impl Scenario for Matching {
    fn prepare(&mut self) {}

    fn round(&mut self) {
        self.matches = self.index.round(0..EVENTS);
    }

    fn units(&self) -> u64 {
        EVENTS as u64
    }

    fn describe(&self) -> String {
        format!("{SUBSCRIPTIONS} subscriptions, {:.2} matches an event", self.matches as f64 / EVENTS as f64)
    }
}
