//! What must match, by comparing every subscription of a collection with every event of it.
//!
//! The oracle is the judge, but takes a microsecond for each of a billion pairs. So the answers are found by plain comparisons of
//! decoded values, and the oracle, which reads filters and CEL by itself, is asked about as many of them as there is time for.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::Range,
    thread,
};

use bson::{Bson, Document};
use wire::{BackendId, Lineage, Position, SubscriptionKey, Transition};

use super::{Datum, FIELDS, Field, Pool, World};
use crate::oracle::{ChangeKind, DeletedMark, Namespace, Oracle, OracleChange, OracleSubscription, Preset};

/// A subscription that matches an image of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Answer {
    pub subscription: u32,
    pub before: bool,
    pub after: bool,
}

/// The values of an event's images.
struct Images {
    before: Option<[Datum; FIELDS.len()]>,
    after: [Datum; FIELDS.len()],
}

/// What the events match, each in the order of the subscriptions. Uses this many threads.
///
/// # Panics
/// When the pool is not of this world.
pub fn expected(world: &World, pool: &Pool, events: Range<usize>, threads: usize) -> Vec<Vec<Answer>> {
    let images: Vec<Images> = events.clone().map(|event| images(pool, event)).collect();
    let mut by_collection: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, event) in events.enumerate() {
        by_collection.entry(pool.event(event).collection).or_default().push(at);
    }
    let share = |part: usize| {
        let mut found: Vec<Vec<Answer>> = vec![Vec::new(); images.len()];
        for (collection, of_collection) in &by_collection {
            let all = world.subscriptions_of(*collection);
            let piece = |i: usize| all.start + all.len() * i / threads;
            for subscription in piece(part)..piece(part + 1) {
                let shape = world.shape(subscription);
                for at in of_collection {
                    let Images { before, after } = &images[*at];
                    let before = before.as_ref().is_some_and(|before| shape.holds(before));
                    let after = shape.holds(after);
                    if before || after {
                        found[*at].push(Answer { subscription: subscription as u32, before, after });
                    }
                }
            }
        }
        found
    };
    let parts: Vec<Vec<Vec<Answer>>> = thread::scope(|scope| {
        let share = &share;
        let running: Vec<_> = (0..threads).map(|part| scope.spawn(move || share(part))).collect();
        running.into_iter().map(|thread| thread.join().expect("comparing values can't fail")).collect()
    });
    // Each part has a later stretch of every collection than the one before it.
    let mut all: Vec<Vec<Answer>> = vec![Vec::new(); images.len()];
    for part in parts {
        all.iter_mut().zip(part).for_each(|(all, part)| all.extend(part));
    }
    all
}

fn images(pool: &Pool, event: usize) -> Images {
    let event = pool.event(event);
    Images { before: event.before.map(values), after: values(event.after) }
}

fn decoded(document: &[u8]) -> Document {
    Document::from_reader(document).expect("a generated document is BSON")
}

/// The values of a generated document.
///
/// # Panics
/// When it is none.
pub fn values(document: &[u8]) -> [Datum; FIELDS.len()] {
    let document = decoded(document);
    let value = |field: usize| match document.get(Field(field as u8).name()) {
        Some(Bson::String(text)) => Datum::Text(text.as_str().into()),
        Some(Bson::Int32(number)) => Datum::Number(i64::from(*number)),
        Some(Bson::Int64(number)) => Datum::Number(*number),
        other => panic!("a generated document has texts and integers, not {other:?}"),
    };
    std::array::from_fn(value)
}

/// Asks the oracle about the first of these answers: `answers[i]` is that of event `i`. Stops after about this many evaluations, and gives
/// their number.
///
/// # Errors
/// A text that names what the oracle sees otherwise.
pub fn confirm(world: &World, pool: &Pool, answers: &[Vec<Answer>], evaluations_max: usize) -> Result<usize, String> {
    // Of a large collection as many subscriptions as leave some fifty events.
    let subscriptions_max = (evaluations_max / EVENTS_AT_LEAST).max(1);
    let mut oracle = Oracle::new(Preset::Plain);
    let mut asked: BTreeMap<usize, Range<usize>> = BTreeMap::new();
    let mut evaluations = 0;
    for (event, answers) in answers.iter().enumerate() {
        if evaluations >= evaluations_max {
            break;
        }
        let change = change(world, pool, event);
        let collection = pool.event(event).collection;
        let some = match asked.entry(collection) {
            Entry::Occupied(some) => some.into_mut(),
            Entry::Vacant(place) => {
                let all = world.subscriptions_of(collection);
                let some = all.start..all.end.min(all.start + subscriptions_max);
                for subscription in some.clone() {
                    oracle.subscribe(subscribed(world, subscription)).map_err(|error| error.to_string())?;
                }
                place.insert(some)
            }
        };
        evaluations += some.len();
        let mut from_oracle: Vec<(u32, Transition)> = Vec::new();
        for expected in oracle.expect(&change) {
            let number = expected.key.id.parse().map_err(|_| format!("{} is no number", expected.key.id))?;
            from_oracle.push((number, expected.transition));
        }
        from_oracle.sort_unstable_by_key(|(subscription, _)| *subscription);
        let has_before = change.before.is_some();
        let of_some = answers.iter().filter(|answer| some.contains(&(answer.subscription as usize)));
        let by_brute: Vec<(u32, Transition)> =
            of_some.map(|answer| (answer.subscription, transition(answer, has_before))).collect();
        if from_oracle != by_brute {
            return Err(format!(
                "{} with {} subscriptions, seed {}: of event {event} ({:?}) the oracle says {from_oracle:?}, brute force {by_brute:?}",
                world.workload.name(),
                world.subscriptions,
                world.seed,
                change.after,
            ));
        }
    }
    Ok(evaluations)
}

const EVENTS_AT_LEAST: usize = 50;

fn transition(answer: &Answer, has_before: bool) -> Transition {
    match (has_before, answer.before, answer.after) {
        (true, true, true) => Transition::Update,
        (true, true, false) => Transition::Leave,
        _ => Transition::Enter,
    }
}

fn subscribed(world: &World, subscription: usize) -> OracleSubscription {
    let source = world.source(subscription);
    let (tenant, collection) = world.place(source.collection);
    OracleSubscription {
        gateway: "gateway".into(),
        key: SubscriptionKey { tenant, id: subscription.to_string() },
        collection,
        filters: source.filters,
        expr: source.expr,
        transitions: true,
    }
}

fn change(world: &World, pool: &Pool, number: usize) -> OracleChange {
    let event = pool.event(number);
    let (database, collection) = world.place(event.collection);
    let position = Position { backend: BackendId(1), lineage: Lineage(1), time: number as u64 + 1, k: 1 };
    OracleChange {
        id: position,
        kind: if event.before.is_some() { ChangeKind::Update(DeletedMark::Untouched) } else { ChangeKind::Insert },
        namespace: Namespace { database, collection },
        stored_id: Bson::Int64(number as i64),
        before: event.before.map(decoded),
        after: Some(decoded(event.after)),
    }
}
