//! Matching engines on the same workloads, in one run: what `compare matching` does.
//!
//! Invariants:
//! - What is measured is [`Engine::round`] on one thread: from the raw BSON of an event to the subscriptions that match, or to the frames
//!   that tell of them. What an engine needs beforehand, and what has to be cleared away after, is not measured.
//! - The engines of a workload and size are all there at once and take turns, so that what the machine does otherwise meets all of them.
//! - Every engine's answers are compared with those of brute force, and these with the oracle's, before a time is told.

mod churn;
mod goals;
mod measure;
mod ours;
mod peers;
mod rows;
#[cfg(test)]
mod tests;
mod whole;

use std::{ops::Range, time::Duration};

use workload::matching::{Answer, Pool, Workload, World};

pub use self::{
    goals::print_goals,
    measure::{Options, run},
    rows::{Row, print_head, print_row},
};
use crate::{heap::growth_of, measure::work_time};

/// What events are given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EngineKind {
    /// The crate `index`.
    OursIndex,
    /// A shard, from a change to the frames for two Gateways.
    OursShard,
    /// The ingest thread on the raw change event.
    OursIngest,
    /// Reading the raw change event and asking the filters.
    OursFilter,
    /// Reading the raw change event.
    Read,
    /// Our predicates in a loop.
    Native,
    /// The crate `a-tree`.
    ATree,
    /// The crate `cel` in a loop.
    Cel,
}

impl EngineKind {
    pub const ALL: [EngineKind; 8] = [
        EngineKind::OursIndex,
        EngineKind::OursShard,
        EngineKind::OursIngest,
        EngineKind::OursFilter,
        EngineKind::Read,
        EngineKind::Native,
        EngineKind::ATree,
        EngineKind::Cel,
    ];

    pub fn name(self) -> &'static str {
        match self {
            EngineKind::OursIndex => "ours-index",
            EngineKind::OursShard => "ours-shard",
            EngineKind::OursIngest => "ours-ingest",
            EngineKind::OursFilter => "ours-filter",
            EngineKind::Read => "read",
            EngineKind::Native => "native",
            EngineKind::ATree => "a-tree",
            EngineKind::Cel => "cel",
        }
    }

    /// Whether it is compared with on this workload, at this size.
    pub fn takes(self, workload: Workload, subscriptions: usize) -> bool {
        match self {
            EngineKind::OursIndex => true,
            // With the records of ten million subscriptions beside the index, memory is short on a machine of 16 GiB.
            EngineKind::OursShard => subscriptions <= PEER_SUBSCRIPTIONS_MAX,
            EngineKind::OursIngest | EngineKind::OursFilter | EngineKind::Read => workload == Workload::Miss,
            // Its time to build grows with the square of what is in one tree: a million would take an hour.
            EngineKind::ATree if workload.is_one_collection() => subscriptions <= TREE_SUBSCRIPTIONS_MAX,
            // A collection that nobody watches costs them a look into a table.
            EngineKind::Native | EngineKind::ATree | EngineKind::Cel => {
                workload != Workload::Miss && subscriptions <= PEER_SUBSCRIPTIONS_MAX
            }
        }
    }
}

/// Ten million programs or expressions of the peers take more memory than most machines have.
const PEER_SUBSCRIPTIONS_MAX: usize = 1_000_000;
const TREE_SUBSCRIPTIONS_MAX: usize = 100_000;

/// An engine, and the events of its workload.
trait Engine {
    fn kind(&self) -> EngineKind;

    /// Events that it takes at once at most.
    fn chunk(&self) -> usize {
        4_096
    }

    /// Makes ready for a round of these events of the pool.
    fn prepare(&mut self, _events: Range<usize>) {}

    /// Does what is measured. Gives the number of matches.
    fn round(&mut self, events: Range<usize>) -> u64;

    /// Clears away after a round.
    fn rest(&mut self) {}

    /// What an event matches, in any order.
    fn answer(&mut self, event: usize) -> Vec<Answer>;
}

/// An engine with its subscriptions.
struct Built<'a> {
    engine: Box<dyn Engine + 'a>,
    /// From the texts of the subscriptions to here.
    build: Duration,
    /// What the engine holds more than before.
    bytes: usize,
}

fn build<'a>(kind: EngineKind, world: &World, pool: &'a Pool, places: &'a [ours::Place]) -> Built<'a> {
    match kind {
        EngineKind::OursIndex => ours::OursIndex::build(world, pool, places),
        EngineKind::OursShard => ours::OursShard::build(world, pool),
        EngineKind::OursIngest => ours::Ingest::build(world, pool),
        EngineKind::OursFilter => ours::Reader::build(world, pool, true),
        EngineKind::Read => ours::Reader::build(world, pool, false),
        EngineKind::Native => peers::Native::build(world, pool),
        EngineKind::ATree => peers::Trees::build(world, pool),
        EngineKind::Cel => peers::Cel::build(world, pool),
    }
}

/// An index that lasts as long as the process, as do the events that it is asked about.
pub(crate) struct Endless(Box<dyn Engine>);

impl Endless {
    pub(crate) fn round(&mut self, events: Range<usize>) -> u64 {
        self.0.round(events)
    }
}

/// The index of this workload. Its events are never given back, since a scenario has no end. No clock is read: valgrind can't bear how
/// the one of a thread's work is found.
pub(crate) fn index_for_ever(world: World, events: usize) -> Endless {
    let pool: &'static Pool = Box::leak(Box::new(world.events(events)));
    let places: &'static [ours::Place] = Vec::leak(ours::places(&world));
    let mut index = ours::OursIndex::new(places, pool);
    for subscription in 0..world.subscriptions {
        index.insert(subscription as u32, places, &world.source(subscription));
    }
    Endless(Box::new(index))
}

/// Hands every subscription to `add`, as what `make` makes of it. Gives how long `add` was at work, and by how much more is held after.
fn build_timed<T>(
    world: &World,
    make: impl Fn(&World, usize) -> T,
    mut add: impl FnMut(usize, T),
) -> (Duration, usize) {
    const AT_ONCE: usize = 1_000;
    growth_of(|| {
        let mut took = Duration::ZERO;
        for first in (0..world.subscriptions).step_by(AT_ONCE) {
            let some = first..world.subscriptions.min(first + AT_ONCE);
            let made: Vec<(usize, T)> = some.map(|subscription| (subscription, make(world, subscription))).collect();
            let began = work_time();
            made.into_iter().for_each(|(subscription, made)| add(subscription, made));
            took += work_time().saturating_sub(began);
        }
        took
    })
}
