//! Subscriptions that come and go while events flow: one event to ten of these operations, in batches.
//!
//! Each slot that is vacated is taken by a new subscription of the same collection, so that the index stays as large as it is. New
//! predicates are compiled beforehand, as they are on another thread in a node; what an old one takes to be given back counts.

use std::{sync::Arc, time::Duration};

use loadgen::pinned::Pinned;
use predicate::Predicate;
use workload::matching::{Answer, MatchSource, Pool, Workload, World, values};

use super::{
    Row,
    measure::{Options, checked, difference},
    ours::{BATCH, OursIndex, Place, compiled, places},
};
use crate::{heap::growth_of, measure::work_time};

/// Operations between two batches of events.
const OPERATIONS: usize = 10 * BATCH;
/// Batches of a round.
const BATCHES: usize = 250;
const ROUNDS: usize = 5;
const SUBSCRIPTIONS: usize = 1_000_000;

/// Subscriptions, each at its slot under a number of which its shape follows.
struct Churn<'a> {
    world: &'a World,
    places: &'a [Place],
    ours: OursIndex<'a>,
    numbers: Vec<usize>,
    replaced: usize,
}

pub(super) fn measure(options: &Options) -> Vec<Row> {
    let Some(subscriptions) = options.sizes.iter().copied().filter(|size| *size <= SUBSCRIPTIONS).max() else {
        return Vec::new();
    };
    let world = World::new(Workload::Mixed, subscriptions, options.seed);
    let pool = world.events(options.events.unwrap_or(1 << 16).max(BATCH));
    let places = places(&world);
    let mut churn = Churn {
        world: &world,
        places: &places,
        ours: OursIndex::new(&places, &pool),
        numbers: (0..subscriptions).collect(),
        replaced: 0,
    };
    let (build, bytes) = growth_of(|| {
        let mut took = Duration::ZERO;
        for slot in 0..subscriptions {
            let predicate = Arc::new(churn.compile(slot, slot));
            let began = work_time();
            churn.insert(slot, &predicate);
            took += work_time().saturating_sub(began);
        }
        took
    });
    let mut rounds: Vec<Duration> = Vec::new();
    let (mut events, mut matches, mut next) = (0, 0, 0);
    let pinned = Pinned::to_one_core();
    for _ in 0..ROUNDS {
        let mut took = Duration::ZERO;
        for _ in 0..BATCHES {
            let fresh = churn.fresh(OPERATIONS / 2);
            let began = work_time();
            // As a shard does that ends several: those that go are announced, and only then removed.
            for some in fresh.chunks(BATCH) {
                churn.ours.index.announce_removal(some.iter().map(|(slot, _)| *slot as u32));
                some.iter().for_each(|(slot, _)| churn.ours.index.remove(*slot as u32));
                some.iter().for_each(|(slot, predicate)| churn.insert(*slot, predicate));
            }
            churn.ours.matches(next..next + BATCH, |_, found| matches += found.len());
            took += work_time().saturating_sub(began);
            next = if next + 2 * BATCH > pool.len() { 0 } else { next + BATCH };
            events += BATCH;
        }
        rounds.push(took);
    }
    drop(pinned);
    rounds.sort_unstable();
    let seconds = rounds[ROUNDS / 2].as_secs_f64();
    let mut row = Row::new("churn", "ours-index", subscriptions, options.seed);
    row.operations_per_s = Some((OPERATIONS * BATCHES) as f64 / seconds);
    row.events_per_s = Some((BATCH * BATCHES) as f64 / seconds);
    row.bytes_per_subscription = (bytes > 0).then(|| bytes as f64 / subscriptions as f64);
    row.build_ms = Some(build.as_secs_f64() * 1e3);
    row.matches_per_event = Some(matches as f64 / events as f64);
    row.doc_bytes = Some(pool.document_bytes());
    row.checked = checked(&world, options, &pool);
    row.wrong = (0..row.checked).map(|event| churn.wrong(&pool, event)).sum();
    vec![row]
}

impl Churn<'_> {
    fn compile(&self, slot: usize, number: usize) -> Predicate {
        let filters = self.world.shape(number).to_filters();
        compiled(&MatchSource { collection: self.world.collection_of(slot), filters, expr: String::new() })
    }

    fn insert(&mut self, slot: usize, predicate: &Arc<Predicate>) {
        let place = &self.places[self.world.collection_of(slot)];
        self.ours.index.insert(slot as u32, &place.tenant, &place.collection, predicate);
    }

    /// New subscriptions for the next slots, which lie far apart.
    fn fresh(&mut self, count: usize) -> Vec<(usize, Arc<Predicate>)> {
        let fresh = (0..count).map(|_| {
            let slot = self.replaced * STRIDE % self.numbers.len();
            self.replaced += 1;
            // As far on as there are slots, so that the mix stays what it is.
            self.numbers[slot] += self.numbers.len().next_multiple_of(100);
            (slot, Arc::new(self.compile(slot, self.numbers[slot])))
        });
        fresh.collect()
    }

    /// Differences between what the index says now of an event, and what the subscriptions that it should hold do.
    fn wrong(&mut self, pool: &Pool, event: usize) -> u64 {
        let mut found = Vec::new();
        self.ours.matches(event..event + 1, |_, matches| {
            found.extend(matches.iter().map(|found| Answer { subscription: found.slot, before: false, after: true }));
        });
        found.sort_unstable();
        let document = values(pool.event(event).after);
        let slots = self.world.subscriptions_of(pool.event(event).collection);
        let holding = slots.filter(|slot| self.world.shape(self.numbers[*slot]).holds(&document));
        let wanted: Vec<Answer> =
            holding.map(|slot| Answer { subscription: slot as u32, before: false, after: true }).collect();
        difference(&found, &wanted)
    }
}

/// A prime that no number of subscriptions is a multiple of.
const STRIDE: usize = 611_953;
