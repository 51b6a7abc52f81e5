//! A loop over the compiled predicates of the collection.

use std::ops::Range;

use bson::RawDocument;
use predicate::{Budget, ChangeType, Context, EVALUATION_UNITS_MAX, Mapping, Outcome, Predicate, Source};
use workload::matching::{Answer, Pool, World};

use crate::compare::{Built, Engine, EngineKind, build_timed};

pub(in crate::compare) struct Native<'a> {
    pool: &'a Pool,
    collections: Vec<Collection>,
}

struct Collection {
    tenant: String,
    name: String,
    predicates: Vec<(u32, Predicate)>,
}

impl<'a> Native<'a> {
    pub(in crate::compare) fn build(world: &World, pool: &'a Pool) -> Built<'a> {
        let place = |collection| {
            let (tenant, name) = world.place(collection);
            Collection { tenant, name, predicates: Vec::new() }
        };
        let mut native = Self { pool, collections: (0..world.places()).map(place).collect() };
        let mapping = Mapping::Plain;
        let (build, bytes) = build_timed(world, World::source, |subscription, source| {
            let what = Source { filters: &source.filters, expr: &source.expr };
            let predicate = Predicate::compile(what, &mapping).expect("generated subscriptions compile");
            native.collections[source.collection].predicates.push((subscription as u32, predicate));
        });
        Built { engine: Box::new(native), build, bytes }
    }

    fn matches(&self, event: usize, mut each: impl FnMut(Answer)) {
        let event = self.pool.event(event);
        let Collection { tenant, name: collection, predicates } = &self.collections[event.collection];
        let (before, after) = (event.before.map(raw), raw(event.after));
        let change_type = if before.is_some() { ChangeType::Update } else { ChangeType::Insert };
        let context = Context { tenant, collection, change_type, before };
        for (subscription, predicate) in predicates {
            let holds = |image: &RawDocument| {
                let mut budget = Budget { units: EVALUATION_UNITS_MAX };
                predicate.evaluate(image, &context, &mut budget) == Outcome::True
            };
            let (before, after) = (before.is_some_and(holds), holds(after));
            if before || after {
                each(Answer { subscription: *subscription, before, after });
            }
        }
    }
}

fn raw(document: &[u8]) -> &RawDocument {
    RawDocument::from_bytes(document).expect("a generated document is BSON")
}

impl Engine for Native<'_> {
    fn kind(&self) -> EngineKind {
        EngineKind::Native
    }

    fn round(&mut self, events: Range<usize>) -> u64 {
        let mut matches = 0;
        events.for_each(|event| self.matches(event, |_| matches += 1));
        matches
    }

    fn answer(&mut self, event: usize) -> Vec<Answer> {
        let mut answers = Vec::new();
        self.matches(event, |answer| answers.push(answer));
        answers
    }
}
