//! The index against brute force: every subscription of a change's places, evaluated on both images.

use std::collections::BTreeMap;
use std::sync::Arc;

use bson::{RawDocument, RawDocumentBuf, rawdoc};
use predicate::{Budget, ChangeType, Context, Mapping, Nested, Outcome, Predicate, Source, stored_string_id};
use proptest::prelude::*;
use wire::{BackendId, Certainty, Lineage, Operation, Position, Transition};

use super::*;
use crate::config::BareDeletes;
use crate::{Bare, Change, Image, NewChange};

const TENANTS: [&str; 2] = ["t", "u"];
const COLLECTIONS: [&str; 2] = ["c", "d/e/f"];
const IDS: [&str; 3] = ["1", "2", "3"];

/// What subscriptions ask for.
const SOURCES: [(&str, &str); 18] = [
    ("", ""),
    (r#"[{"field":"a","op":"==","value":1}]"#, ""),
    (r#"[{"field":"a","op":"==","value":2.0}]"#, ""),
    (r#"[{"field":"b","op":"==","value":"x"}]"#, ""),
    (r#"[{"field":"a","op":"==","value":1},{"field":"b","op":"==","value":"x"}]"#, ""),
    (r#"[{"field":"a","op":">","value":1}]"#, ""),
    (r#"[{"field":"a","op":"!=","value":1}]"#, ""),
    (r#"[{"field":"b","op":"in","value":["x","y"]},{"field":"a","op":"<","value":2}]"#, ""),
    (r#"[{"field":"_id","op":"==","value":"1"}]"#, ""),
    (r#"[{"field":"_id","op":"==","value":"2"},{"field":"a","op":"==","value":1}]"#, ""),
    (r#"[{"field":"_id","op":"==","value":"2"},{"field":"_id","op":"==","value":"1"}]"#, ""),
    (r#"[{"field":"_id","op":"==","value":1}]"#, ""),
    ("", "doc.a == 1 && doc.b == 'x'"),
    ("", "doc.a == 1 || doc.b == 'y'"),
    ("", "type == 'update' && doc.a == 1"),
    ("", "before == null || before.a != doc.a"),
    (r#"[{"field":"b","op":"==","value":"x"}]"#, "type != 'insert'"),
    ("", "!(doc.a == 1)"),
];

#[derive(Clone, Debug)]
enum Step {
    Add { tenant: usize, collection: usize, source: usize, transitions: bool },
    Remove { slot: u32 },
    Change { operation: u8, id: usize, before: Option<Look>, after: Option<Look>, unknown: bool },
}

#[derive(Clone, Debug)]
struct Look {
    tenant: usize,
    collection: usize,
    a: Option<i32>,
    b: Option<&'static str>,
    double: bool,
}

fn look() -> impl Strategy<Value = Look> {
    let b = prop_oneof![Just(None), Just(Some("x")), Just(Some("y"))];
    // Mostly one place, so that both images often belong to the same.
    let mostly_first = || prop_oneof![4 => Just(0_usize), 1 => Just(1)];
    (mostly_first(), mostly_first(), proptest::option::weighted(0.8, 0..4), b, any::<bool>())
        .prop_map(|(tenant, collection, a, b, double)| Look { tenant, collection, a, b, double })
}

fn step() -> impl Strategy<Value = Step> {
    let add = (0..2_usize, 0..2_usize, 0..SOURCES.len(), any::<bool>())
        .prop_map(|(tenant, collection, source, transitions)| Step::Add { tenant, collection, source, transitions });
    let remove = (0..40_u32).prop_map(|slot| Step::Remove { slot });
    let option = || proptest::option::weighted(0.7, look());
    let change = (0..3_u8, 0..3_usize, option(), option(), any::<bool>())
        .prop_map(|(operation, id, before, after, unknown)| Step::Change { operation, id, before, after, unknown });
    prop_oneof![3 => add, 1 => remove, 4 => change]
}

/// The index, and what it should hold.
struct Model {
    mapping: Arc<Mapping>,
    index: Index,
    subs: BTreeMap<u32, Sub>,
    predicates: Vec<Arc<Predicate>>,
    time: u64,
}

struct Sub {
    tenant: &'static str,
    collection: &'static str,
    source: usize,
    predicate: Arc<Predicate>,
    transitions: bool,
}

impl Model {
    fn new(mapping: Mapping, predicates: &[Arc<Predicate>]) -> Self {
        let mapping = Arc::new(mapping);
        let index = Index::new(mapping.clone(), 7);
        Self { mapping, index, subs: BTreeMap::new(), predicates: predicates.to_vec(), time: 0 }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Add { tenant, collection, source, transitions } => {
                let slot = (0..).find(|slot| !self.subs.contains_key(slot)).unwrap();
                let (tenant, collection) = (TENANTS[tenant], COLLECTIONS[collection]);
                let predicate = self.predicates[source].clone();
                self.index.insert(slot, tenant, collection, &predicate);
                self.subs.insert(slot, Sub { tenant, collection, source, predicate, transitions });
            }
            Step::Remove { slot } => {
                self.index.remove(slot);
                self.subs.remove(&slot);
            }
            Step::Change { operation, id, ref before, ref after, unknown } => {
                self.time += 1;
                let change = self.change(operation, id, before.as_ref(), after.as_ref(), unknown);
                for bare_deletes in [BareDeletes::Known, BareDeletes::Unknown] {
                    let hits = self.hits(&change, bare_deletes, u64::MAX, &|_| false).hits;
                    assert_eq!(hits, self.expected(&change, bare_deletes), "{change:?}");
                }
            }
        }
        self.index.check_invariants();
    }

    fn hits(
        &mut self,
        change: &Change,
        bare_deletes: BareDeletes,
        evaluation_units_max: u64,
        can_verify: &dyn Fn(u32) -> bool,
    ) -> Matched {
        let subs = &self.subs;
        let transitions = |slot: u32| subs[&slot].transitions;
        let rules = Rules {
            bare_deletes,
            evaluation_units_max,
            event_units_max: u64::MAX,
            can_verify,
            transitions: &transitions,
        };
        let mut matched = Matched::default();
        self.index.matches([change], &rules, &mut matched);
        matched
    }

    fn change(&self, operation: u8, id: usize, before: Option<&Look>, after: Option<&Look>, unknown: bool) -> Change {
        let operation = [Operation::Insert, Operation::Update, Operation::Delete][operation as usize];
        let place = |look: &Look| (TENANTS[look.tenant], COLLECTIONS[look.collection]);
        let home = after.or(before);
        let (tenant, collection) = home.map_or((TENANTS[0], COLLECTIONS[0]), place);
        let key = match &*self.mapping {
            Mapping::Plain => stored_string_id(IDS[id]),
            Mapping::Nested(_) => stored_string_id(&Nested::storage_id(tenant, collection, IDS[id])),
        };
        let bare = Bare {
            tenant: (operation != Operation::Insert || !unknown).then_some(tenant),
            collection: (!unknown).then_some(collection),
        };
        // A stored id belongs to one place: a move between places has a new one, and so is no change of one document.
        let before =
            before.filter(|before| matches!(*self.mapping, Mapping::Plain) || place(before) == (tenant, collection));
        let [before, after] = [before, after].map(|look| look.map(|look| (place(look), self.document(IDS[id], look))));
        Change::copied(NewChange {
            position: Position { backend: BackendId(1), lineage: Lineage(1), time: self.time, k: 1 },
            operation,
            key: key.into(),
            document_id: None,
            before: before.as_ref().map(image),
            after: after.as_ref().map(image),
            bare: Some(bare),
        })
    }

    fn document(&self, id: &str, look: &Look) -> RawDocumentBuf {
        let mut user = RawDocumentBuf::new();
        if let Some(a) = look.a {
            if look.double {
                user.append(bson::raw::cstr!("a"), f64::from(a));
            } else {
                user.append(bson::raw::cstr!("a"), a);
            }
        }
        if let Some(b) = look.b {
            user.append(bson::raw::cstr!("b"), b);
        }
        match &*self.mapping {
            Mapping::Plain => {
                user.append(bson::raw::cstr!("_id"), id);
                user
            }
            Mapping::Nested(_) => {
                rawdoc! { "fullpath": format!("{}/{id}", COLLECTIONS[look.collection]), "data": user }
            }
        }
    }

    fn expected(&self, change: &Change, bare_deletes: BareDeletes) -> Vec<Hit> {
        let mut hits: Vec<Hit> = self
            .subs
            .iter()
            .filter_map(|(slot, sub)| {
                let bare = !change.has_before() && !change.has_after();
                let (shown, transition, certainty) =
                    if bare { self.bare(*slot, sub, change, bare_deletes)? } else { seen(sub, change)? };
                Some(Hit { slot: *slot, shown, transition, certainty })
            })
            .collect();
        hits.sort_unstable();
        hits
    }

    fn bare(
        &self,
        slot: u32,
        sub: &Sub,
        change: &Change,
        bare_deletes: BareDeletes,
    ) -> Option<(Shown, Transition, Certainty)> {
        let bare = change.bare().expect("always given");
        let collection_known = bare.collection.is_some();
        if bare.tenant? != sub.tenant || bare.collection.is_some_and(|c| c != sub.collection) {
            return None;
        }
        let place = Shown::NothingAt(self.index.inner.partition_of(slot).expect("it is there"));
        let unknown = || (bare_deletes == BareDeletes::Unknown).then_some(Certainty::Unknown);
        let stored = |id: &str| match &*self.mapping {
            Mapping::Plain => stored_string_id(id),
            Mapping::Nested(_) => stored_string_id(&Nested::storage_id(sub.tenant, sub.collection, id)),
        };
        let is_this = |id: &str| *change.key() == *stored(id);
        let (shown, certainty) = match sub.source {
            0 if collection_known => (place, Certainty::Matched),
            8 => (place, is_this("1").then_some(Certainty::Matched)?),
            9 => (place, is_this("2").then(unknown)??),
            10 | 11 => return None,
            _ => (if collection_known { place } else { Shown::Nothing }, unknown()?),
        };
        Some((shown, Transition::Leave, certainty))
    }
}

fn image<'a>(((tenant, collection), document): &'a ((&'static str, &'static str), RawDocumentBuf)) -> Image<'a> {
    Image::new(tenant, collection, document.as_bytes())
}

/// What one subscription should see of a change with an image, by the rules as they are written.
fn seen(sub: &Sub, change: &Change) -> Option<(Shown, Transition, Certainty)> {
    let here = |image: &Image<'_>| image.names() == (sub.tenant, sub.collection);
    let (before, after) = (change.before().filter(here), change.after().filter(here));
    let change_type = match change.operation {
        Operation::Insert => ChangeType::Insert,
        Operation::Update => ChangeType::Update,
        Operation::Delete => ChangeType::Delete,
    };
    let holds = |image: &Option<Image<'_>>| {
        let Some(image) = image else { return false };
        let context = Context {
            tenant: sub.tenant,
            collection: sub.collection,
            change_type,
            before: before.as_ref().map(|image| RawDocument::from_bytes(image.document).unwrap()),
        };
        let document = RawDocument::from_bytes(image.document).unwrap();
        sub.predicate.evaluate(document, &context, &mut Budget { units: u64::MAX }) == Outcome::True
    };
    let has_before = change.has_before();
    let last = if has_before { (&before, Shown::Before) } else { (&after, Shown::After) };
    let (b, a) = (holds(&before), holds(&after));
    let (shown, transition) = match change.operation {
        Operation::Insert => a.then_some((Shown::After, Transition::Enter))?,
        Operation::Delete => holds(last.0).then_some((last.1, Transition::Leave))?,
        Operation::Update if sub.predicate.reads_change() => a.then_some((Shown::After, Transition::Update))?,
        Operation::Update if !has_before => a.then_some((Shown::After, Transition::Update))?,
        Operation::Update => match (b, a) {
            (false, true) => (Shown::After, Transition::Enter),
            (true, true) => (Shown::After, Transition::Update),
            (true, false) => sub.transitions.then_some((Shown::Before, Transition::Leave))?,
            (false, false) => return None,
        },
    };
    Some((shown, transition, Certainty::Matched))
}

fn predicates(mapping: &Mapping) -> Vec<Arc<Predicate>> {
    let compile = |(filters, expr): &(&str, &str)| {
        Arc::new(
            Predicate::compile(Source { filters, expr }, mapping).unwrap_or_else(|e| panic!("{filters}{expr}: {e}")),
        )
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(predicate::COMPILE_STACK_BYTES);
        thread.spawn_scoped(scope, || SOURCES.iter().map(compile).collect()).unwrap().join().unwrap()
    })
}

fn index_is_brute_force(mapping: Mapping) {
    let predicates = predicates(&mapping);
    let config = ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in prop::collection::vec(step(), 1..80))| {
        let mut model = Model::new(mapping.clone(), &predicates);
        for step in &steps {
            model.take(step);
        }
    });
}

#[test]
fn index_is_brute_force_under_plain() {
    index_is_brute_force(Mapping::Plain);
}

#[test]
fn index_is_brute_force_under_syntrix() {
    index_is_brute_force(Mapping::syntrix());
}

#[test]
fn bytes_that_are_no_document_match_nothing_and_are_counted() {
    let predicates = predicates(&Mapping::Plain);
    let mut model = Model::new(Mapping::Plain, &predicates);
    model.take(&Step::Add { tenant: 0, collection: 0, source: 0, transitions: true });
    let look = Look { tenant: 0, collection: 0, a: None, b: None, double: false };
    let whole = model.change(0, 0, None, Some(&look), false);
    let change = Change::copied(NewChange {
        position: whole.position,
        operation: whole.operation,
        key: whole.key().into(),
        document_id: None,
        before: None,
        after: Some(Image { document: b"\x05\x00\x00", ..whole.after().unwrap() }),
        bare: None,
    });
    let matched = model.hits(&change, BareDeletes::Unknown, u64::MAX, &|_| false);
    assert!(matched.hits.is_empty());
    assert_eq!(matched.ends[0].1.bad_documents, 1);
}

#[test]
fn what_costs_too_much_is_left_to_gateways_that_can_verify() {
    let predicates = predicates(&Mapping::Plain);
    let mut model = Model::new(Mapping::Plain, &predicates);
    for _ in 0..2 {
        model.take(&Step::Add { tenant: 0, collection: 0, source: 6, transitions: true });
    }
    let look = Look { tenant: 0, collection: 0, a: Some(1), b: None, double: false };
    let change = model.change(0, 0, None, Some(&look), false);
    let matched = model.hits(&change, BareDeletes::Unknown, 0, &|slot| slot == 1);
    let unverified =
        Hit { slot: 1, shown: Shown::After, transition: Transition::Enter, certainty: Certainty::Unverified };
    assert_eq!(matched.hits, [unverified], "the other one is told the truth, which is no");
    assert_eq!(matched.ends[0].1.over_budget, 2);
}
