//! The index, on batches of raw documents.

use std::{ops::Range, sync::Arc};

use bson::RawDocument;
use index::{Event, Image, Index, Main, Rules, Verdict};
use predicate::{ChangeType, EVALUATION_UNITS_MAX, Mapping, Predicate, Source};
use wire::PlaceHash;
use workload::matching::{Answer, MatchSource, Pool, World};

use crate::compare::{Built, Engine, EngineKind, build_timed};

/// Events of a batch: what a shard takes at once under load.
pub(in crate::compare) const BATCH: usize = 32;
const SEED: u64 = 7;

pub(in crate::compare) struct OursIndex<'a> {
    pub(in crate::compare) index: Index,
    events: Vec<Event<'a>>,
}

/// A place with its hash, as the ingest thread hands it on.
pub(in crate::compare) struct Place {
    hash: PlaceHash,
    pub(in crate::compare) tenant: String,
    pub(in crate::compare) collection: String,
}

/// The places that events of this world are in.
pub(in crate::compare) fn places(world: &World) -> Vec<Place> {
    let place = |collection| {
        let (tenant, collection) = world.place(collection);
        Place { hash: PlaceHash::of(&tenant, &collection), tenant, collection }
    };
    (0..world.places()).map(place).collect()
}

impl<'a> OursIndex<'a> {
    pub(in crate::compare) fn build(world: &World, pool: &'a Pool, places: &'a [Place]) -> Built<'a> {
        let mut ours = Self::new(places, pool);
        let (build, bytes) = build_timed(world, World::source, |subscription, source| {
            ours.insert(subscription as u32, places, &source);
        });
        Built { engine: Box::new(ours), build, bytes }
    }

    pub(in crate::compare) fn new(places: &'a [Place], pool: &'a Pool) -> Self {
        let events = (0..pool.len()).map(|event| event_of(places, pool, event)).collect();
        Self { index: Index::new(Arc::new(Mapping::Plain), SEED), events }
    }

    pub(in crate::compare) fn insert(&mut self, slot: u32, places: &[Place], source: &MatchSource) {
        let place = &places[source.collection];
        self.index.insert(slot, &place.tenant, &place.collection, &Arc::new(compiled(source)));
    }

    /// Matches these events; the sink is told the event's place in the pool.
    pub(in crate::compare) fn matches(&mut self, events: Range<usize>, mut sink: impl FnMut(usize, &[index::Match])) {
        let rules =
            Rules { evaluation_units_max: EVALUATION_UNITS_MAX, event_units_max: u64::MAX, can_verify: &|_| false };
        for first in events.clone().step_by(BATCH) {
            let batch = &self.events[first..events.end.min(first + BATCH)];
            self.index.matches(batch, &rules, &mut |event, matches, _| sink(first + event, matches));
        }
    }
}

pub(in crate::compare) fn compiled(source: &MatchSource) -> Predicate {
    let what = Source { filters: &source.filters, expr: &source.expr };
    Predicate::compile(what, &Mapping::Plain).expect("generated subscriptions compile")
}

fn event_of<'a>(places: &'a [Place], pool: &'a Pool, event: usize) -> Event<'a> {
    let event = pool.event(event);
    let place = &places[event.collection];
    let image = |document: &'a [u8]| Image {
        place: place.hash,
        tenant: place.tenant.as_bytes(),
        collection: place.collection.as_bytes(),
        document: RawDocument::from_bytes(document).expect("a generated document is BSON"),
    };
    Event {
        change_type: if event.before.is_some() { ChangeType::Update } else { ChangeType::Insert },
        key: event.key,
        before: event.before.map(image),
        after: Some(image(event.after)),
        looks_before: event.before.is_some(),
        looks_after: true,
        main: Main::After,
    }
}

impl Engine for OursIndex<'_> {
    fn kind(&self) -> EngineKind {
        EngineKind::OursIndex
    }

    fn round(&mut self, events: Range<usize>) -> u64 {
        let mut matches = 0;
        self.matches(events, |_, found| matches += found.len() as u64);
        matches
    }

    fn answer(&mut self, event: usize) -> Vec<Answer> {
        let mut answers = Vec::new();
        self.matches(event..event + 1, |_, found| {
            let answer = |found: &index::Match| Answer {
                subscription: found.slot,
                before: found.before == Verdict::Holds,
                after: found.after == Verdict::Holds,
            };
            answers.extend(found.iter().map(answer));
        });
        answers
    }
}
