//! The crate `a-tree`, one tree a collection.
//!
//! All of the workloads' conditions have an exact form in it but one: it has no prefix of a text. Since all prefixes have one length, the
//! beginning of a field that is asked for its prefix is an attribute of its own, and the condition an equality of that; a general
//! prefix would cost more. An event sets the attributes that its tree has expressions on, and no others.

use std::ops::Range;

use a_tree::{ATree, AttributeDefinition, Event};
use workload::matching::{
    Answer, Condition, FIELDS, Field, PREFIX_BYTES, Pool, Shape, Test, World, ends, list, quoted,
};

use super::fields::{Fields, Scalar};
use crate::compare::{Built, Engine, EngineKind, build_timed};

pub(in crate::compare) struct Trees<'a> {
    pool: &'a Pool,
    collections: Vec<Tree>,
    answers: Vec<Answer>,
}

struct Tree {
    /// None where there is no expression: an empty tree is no help to anybody.
    tree: Option<ATree<u32>>,
    /// The field is asked for itself, and for its beginning.
    whole: [bool; FIELDS.len()],
    start: [bool; FIELDS.len()],
}

/// The attribute of a field's beginning.
const STARTS: [&str; FIELDS.len()] = [
    "status_start",
    "price_start",
    "region_start",
    "stock_start",
    "owner_start",
    "level_start",
    "label_start",
    "score_start",
    "topic_start",
    "views_start",
];

impl<'a> Trees<'a> {
    pub(in crate::compare) fn build(world: &World, pool: &'a Pool) -> Built<'a> {
        let empty = || Tree { tree: None, whole: [false; FIELDS.len()], start: [false; FIELDS.len()] };
        let collections = (0..world.places()).map(|_| empty()).collect();
        let mut trees = Self { pool, collections, answers: Vec::new() };
        let text = |world: &World, subscription| {
            let shape = world.shape(subscription);
            (expression(&shape), shape)
        };
        let (build, bytes) = build_timed(world, text, |subscription, (expression, shape): (String, Shape)| {
            let Tree { tree, whole, start } = &mut trees.collections[world.collection_of(subscription)];
            for Condition { field, test } in &shape.0 {
                let asked = if matches!(test, Test::Prefix(_)) { &mut *start } else { &mut *whole };
                asked[usize::from(field.0)] = true;
            }
            tree.get_or_insert_with(new_tree)
                .insert(&(subscription as u32), &expression)
                .expect("generated expressions are in its language");
        });
        Built { engine: Box::new(trees), build, bytes }
    }

    fn matches(&mut self, event: usize) {
        self.answers.clear();
        let event = self.pool.event(event);
        let tree = &self.collections[event.collection];
        let Some(index) = &tree.tree else { return };
        let found = |document: &[u8]| {
            let report = index.search(&event_of(tree, index, document)).expect("an event has what its tree asks for");
            report.matches().iter().map(|subscription| **subscription).collect::<Vec<u32>>()
        };
        let Some(before) = event.before else {
            let matches = found(event.after).into_iter();
            self.answers.extend(matches.map(|subscription| Answer { subscription, before: false, after: true }));
            return;
        };
        let (mut before, mut after) = (found(before), found(event.after));
        before.sort_unstable();
        after.sort_unstable();
        let one_side = |of: &[u32], other: &[u32], is_before: bool| {
            of.iter()
                .map(|subscription| (*subscription, other.binary_search(subscription).is_ok()))
                .filter(|(_, both)| is_before || !both)
                .map(|(subscription, both)| Answer { subscription, before: is_before, after: both || !is_before })
                .collect::<Vec<Answer>>()
        };
        self.answers.extend(one_side(&before, &after, true));
        self.answers.extend(one_side(&after, &before, false));
    }
}

fn new_tree() -> ATree<u32> {
    let whole = Field::all().map(|field| match field.is_text() {
        true => AttributeDefinition::string(field.name()),
        false => AttributeDefinition::integer(field.name()),
    });
    let starts = Field::all().filter(|field| field.is_text());
    let starts = starts.map(|field| AttributeDefinition::string(STARTS[usize::from(field.0)]));
    let definitions: Vec<AttributeDefinition> = whole.chain(starts).collect();
    ATree::new(&definitions).expect("no attribute is defined twice")
}

fn event_of(tree: &Tree, index: &ATree<u32>, document: &[u8]) -> Event {
    let mut event = index.make_event();
    // Generated documents have all fields, in their order.
    for (field, (name, value)) in Fields::of(document).enumerate() {
        let set = match value {
            Scalar::Text(text) => {
                let start = tree.start[field].then(|| event.with_string(STARTS[field], &text[..PREFIX_BYTES]));
                let whole = tree.whole[field].then(|| event.with_string(name, text));
                start.unwrap_or(Ok(())).and(whole.unwrap_or(Ok(())))
            }
            Scalar::Number(number) if tree.whole[field] => event.with_integer(name, number),
            Scalar::Number(_) => Ok(()),
        };
        set.expect("every field is an attribute of its type");
    }
    event.build().expect("an event may leave attributes out")
}

/// As `a-tree` writes it.
fn expression(shape: &Shape) -> String {
    let mut parts: Vec<String> = Vec::new();
    for Condition { field, test } in &shape.0 {
        let name = field.name();
        match test {
            Test::Equal(value) => parts.push(format!("{name} = {}", quoted(value, '"'))),
            Test::In(values) => parts.push(format!("{name} in {}", list(values, '"'))),
            Test::Range { lower, upper } => {
                parts.extend(ends(lower, upper).map(|(op, bound)| format!("{name} {op} {bound}")));
            }
            Test::Prefix(prefix) => parts.push(format!("{} = \"{prefix}\"", STARTS[usize::from(field.0)])),
        }
    }
    parts.join(" and ")
}

impl Engine for Trees<'_> {
    fn kind(&self) -> EngineKind {
        EngineKind::ATree
    }

    fn round(&mut self, events: Range<usize>) -> u64 {
        let mut matches = 0;
        for event in events {
            self.matches(event);
            matches += self.answers.len() as u64;
        }
        matches
    }

    fn answer(&mut self, event: usize) -> Vec<Answer> {
        self.matches(event);
        self.answers.clone()
    }
}
