//! What the parts of a node cost. A [`Scenario`] is a part at work, in rounds; the benches tell its time, the binary `profile` runs it
//! under callgrind, which tells instructions and where they go, and the binary `allocations` tells what it takes from the heap.
//!
//! Invariants:
//! - What is measured is [`Scenario::round`] and nothing else; what a round needs is made in [`Scenario::prepare`].
//! - Every round does the same work: what a round leaves behind has come to rest before the first one is measured.
//! - Time is that of the thread's own work. On a machine that does other things too, the wall clock tells of those.

pub mod compare;
mod figures;
pub mod filter;
pub mod gateway;
pub mod heap;
pub mod indexes;
pub mod ingest;
pub mod measure;
pub mod node;
pub mod predicates;
pub mod ring;
mod served;
pub mod shard;

/// A part of the node at work.
pub trait Scenario {
    /// Makes ready what the next round takes.
    fn prepare(&mut self);

    /// Does what is measured.
    fn round(&mut self);

    /// Units of work in a round: events, or evaluations.
    fn units(&self) -> u64;

    /// What was at work, in figures that the cost depends on. Asked after a round.
    fn describe(&self) -> String;
}

/// A scenario by its name.
pub struct Named {
    pub name: String,
    pub make: Box<dyn Fn() -> Box<dyn Scenario>>,
}

impl Named {
    pub(crate) fn new<S: Scenario + 'static>(name: impl Into<String>, make: impl Fn() -> S + 'static) -> Self {
        Self { name: name.into(), make: Box::new(move || Box::new(make())) }
    }
}

/// All of them.
pub fn scenarios() -> Vec<Named> {
    [
        ingest::scenarios(),
        filter::scenarios(),
        indexes::scenarios(),
        shard::scenarios(),
        gateway::scenarios(),
        ring::scenarios(),
        predicates::scenarios(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_scenario_runs() {
        let mut names = HashSet::new();
        for Named { name, make } in scenarios() {
            let mut scenario = make();
            scenario.prepare();
            scenario.round();
            assert!(scenario.units() > 0 && !scenario.describe().is_empty(), "{name}");
            assert!(names.insert(name));
        }
    }
}
