//! The index against each predicate by itself.

use std::collections::BTreeMap;

use bson::raw::cstr;
use bson::{Bson, Document, RawDocument, RawDocumentBuf, doc};
use predicate::{Budget, ChangeType, Context, Outcome, Source, stored_id, stored_string_id};
use proptest::prelude::*;

use super::*;

/// What subscriptions ask for. `F` fields hold values of [`value`].
const FILTERS: &[&str] = &[
    r#"[{"field":"a","op":"==","value":1}]"#,
    r#"[{"field":"a","op":"==","value":2.0}]"#,
    r#"[{"field":"a","op":"==","value":"x"}]"#,
    r#"[{"field":"a","op":"==","value":"a text that is longer than fifteen bytes"}]"#,
    r#"[{"field":"a","op":"==","value":null}]"#,
    r#"[{"field":"a","op":"==","value":true}]"#,
    r#"[{"field":"a","op":"==","value":[1,"x"]}]"#,
    r#"[{"field":"a","op":"==","value":{"b":1}}]"#,
    r#"[{"field":"a","op":"==","value":{"$date":"2020-01-01T00:00:00Z"}}]"#,
    r#"[{"field":"a","op":"==","value":{"$oid":"0123456789abcdef01234567"}}]"#,
    r#"[{"field":"a","op":"==","value":{"$numberDecimal":"1.5"}}]"#,
    r#"[{"field":"a","op":"==","value":{"$numberLong":"9007199254740993"}}]"#,
    r#"[{"field":"a","op":"==","value":{"$binary":{"base64":"AAECAwQFBgcICQoLDA0ODxAREhM=","subType":"00"}}}]"#,
    r#"[{"field":"a","op":"!=","value":1}]"#,
    r#"[{"field":"a","op":">","value":1}]"#,
    r#"[{"field":"a","op":">=","value":1}]"#,
    r#"[{"field":"a","op":"<","value":2}]"#,
    r#"[{"field":"a","op":"<=","value":{"$numberLong":"9007199254740992"}}]"#,
    r#"[{"field":"a","op":">","value":"x"}]"#,
    r#"[{"field":"a","op":"<=","value":"a text that is"}]"#,
    r#"[{"field":"a","op":">","value":0},{"field":"a","op":"<","value":3}]"#,
    r#"[{"field":"a","op":">","value":2},{"field":"a","op":"<","value":1}]"#,
    r#"[{"field":"a","op":">","value":null}]"#,
    r#"[{"field":"a","op":"in","value":[1,"x",null]}]"#,
    r#"[{"field":"a","op":"in","value":[]}]"#,
    r#"[{"field":"a","op":"in","value":[[1,"x"],2]}]"#,
    r#"[{"field":"a","op":"not-in","value":[1,"x"]}]"#,
    r#"[{"field":"a","op":"contains","value":"x"}]"#,
    r#"[{"field":"a","op":"contains","value":1.0}]"#,
    r#"[{"field":"a","op":"contains-any","value":["y",2,"a text that is longer than fifteen bytes"]}]"#,
    r#"[{"field":"a","op":"starts-with","value":"a te"}]"#,
    r#"[{"field":"a","op":"starts-with","value":"a text that is longer than fifteen"}]"#,
    r#"[{"field":"a","op":"starts-with","value":""}]"#,
    r#"[{"field":"b.c","op":"==","value":1}]"#,
    r#"[{"field":"b.c.d","op":"==","value":"x"}]"#,
    r#"[{"field":"b.c","op":">","value":1}]"#,
    r#"[{"field":"a","op":"==","value":1},{"field":"b.c","op":">","value":0}]"#,
    r#"[{"field":"a","op":"==","value":"x"},{"field":"d","op":"==","value":1},{"field":"d","op":"<","value":9}]"#,
    r#"[{"field":"d","op":"==","value":1},{"field":"a","op":"contains","value":"x"}]"#,
    r#"[{"field":"d","op":">","value":1},{"field":"a","op":"starts-with","value":"a"}]"#,
    r#"[{"field":"_id","op":"==","value":"1"}]"#,
    r#"[{"field":"_id","op":"==","value":"1"},{"field":"a","op":"==","value":1}]"#,
    r#"[{"field":"_id","op":"==","value":"1"},{"field":"_id","op":"==","value":"2"}]"#,
    r#"[{"field":"_id","op":"==","value":1}]"#,
    r#"[{"field":"_id","op":">","value":"1"}]"#,
    r#"[{"field":"_id","op":"in","value":["1","2"]}]"#,
    r#"[{"field":"_id","op":"starts-with","value":"1"}]"#,
    r#"[{"field":"a name longer than eight","op":"==","value":1}]"#,
    r#"[{"field":"version","op":"==","value":1}]"#,
];

const EXPRESSIONS: &[&str] = &[
    "",
    "doc.a == 1",
    "doc.a == 'x' && doc.d > 1",
    "doc.a == 1 || doc.d == 1",
    "doc.a in [1, 'x'] || (doc.d > 1 && doc.b.c == 1)",
    "doc.a > 1 && doc.a < 3",
    "doc.a >= 'g'",
    "doc.a.startsWith('a te')",
    "'x' in doc.a",
    "doc.a.exists(x, x == 'x')",
    "doc.a.all(x, x == 1)",
    "!(doc.a != 1)",
    "!(doc.a == 1)",
    "has(doc.a)",
    "type == 'update' && doc.a == 1",
    "before == null || before.a != doc.a",
    "before.a == 1 && doc.a == 2",
    "id == '1'",
    "id > '1'",
    "doc.a == null",
    "doc.a ? true : doc.d == 1",
    "doc.b.c == 1 && tenant == 't'",
    "size(doc.a) > 1",
    "doc.a == 1.5 || doc.a == 9007199254740993",
    "doc.a == timestamp('2020-01-01T00:00:00Z')",
    "doc.a == '0123456789abcdef01234567'",
];

fn value() -> impl Strategy<Value = Bson> {
    let scalar = prop_oneof![
        6 => (0..4_i32).prop_map(Bson::from),
        3 => prop_oneof![Just("x"), Just("y"), Just("a text"), Just("a text that is longer than fifteen bytes")].prop_map(Bson::from),
        2 => prop_oneof![Just(1.0), Just(1.5), Just(-0.0), Just(f64::NAN), Just(f64::INFINITY), Just(9_007_199_254_740_992.0)]
            .prop_map(Bson::from),
        1 => prop_oneof![Just(9_007_199_254_740_993_i64), Just(9_007_199_254_740_992), Just(i64::MAX)].prop_map(Bson::from),
        1 => prop_oneof![
            Just(Bson::Null),
            Just(Bson::Boolean(true)),
            Just(Bson::DateTime(bson::DateTime::from_millis(1_577_836_800_000))),
            Just(Bson::ObjectId(bson::oid::ObjectId::parse_str("0123456789abcdef01234567").unwrap())),
            Just(Bson::Decimal128("1.5".parse().unwrap())),
            Just(Bson::Decimal128("2".parse().unwrap())),
            Just(Bson::Binary(bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: (0..20).collect() })),
            Just(Bson::Timestamp(bson::Timestamp { time: 1, increment: 2 })),
            Just(Bson::RegularExpression(bson::Regex { pattern: "a".try_into().unwrap(), options: "".try_into().unwrap() })),
            Just(Bson::MinKey),
        ],
    ];
    let array = prop::collection::vec(scalar.clone(), 0..4).prop_map(Bson::Array);
    prop_oneof![6 => scalar, 1 => array, 1 => Just(Bson::Document(doc! { "b": 1, "x": 2 }))]
}

#[derive(Clone, Debug)]
struct Look {
    collection: usize,
    id: i32,
    fields: Vec<(usize, Bson)>,
    inner: Option<Bson>,
}

const NAMES: [&str; 5] = ["a", "d", "other", "a name longer than eight", "version"];

fn look() -> impl Strategy<Value = Look> {
    let fields = prop::collection::vec((0..NAMES.len(), value()), 0..5);
    (0..6_usize, 1..4_i32, fields, prop::option::of(value())).prop_map(|(collection, id, fields, inner)| Look {
        // Mostly the first one.
        collection: collection / 5,
        id,
        fields,
        inner,
    })
}

#[derive(Clone, Debug)]
enum Step {
    Add { collection: usize, filters: Option<usize>, expr: usize },
    Remove(usize),
    Event { kind: usize, before: Option<Look>, after: Option<Look> },
}

fn step() -> impl Strategy<Value = Step> {
    let filters = prop::option::weighted(0.7, 0..FILTERS.len());
    // Mostly no expression beside filters.
    let add = (0..4_usize, filters, prop_oneof![2 => Just(0), 1 => 0..EXPRESSIONS.len()])
        .prop_map(|(collection, filters, expr)| Step::Add { collection: collection / 3, filters, expr });
    let event = (0..3_usize, prop::option::of(look()), prop::option::weighted(0.8, look()))
        .prop_map(|(kind, before, after)| Step::Event { kind, before, after });
    prop_oneof![3 => add, 1 => any::<usize>().prop_map(Step::Remove), 4 => event]
}

const TENANT: &str = "t";
const COLLECTIONS: [&str; 2] = ["c", "rooms/1/messages"];

/// A document as the layout stores it, with fields of one name twice now and then.
fn document(mapping: &Mapping, look: &Look) -> RawDocumentBuf {
    let mut user = RawDocumentBuf::new();
    let id = look.id.to_string();
    let put = |document: &mut RawDocumentBuf, name: &str, value: &Bson| {
        let raw = bson::RawBson::try_from(value.clone()).unwrap();
        document.append(<&bson::raw::CStr>::try_from(name).unwrap(), raw);
    };
    if *mapping == Mapping::Plain {
        user.append(cstr!("_id"), id.as_str());
    }
    for (name, value) in &look.fields {
        put(&mut user, NAMES[*name], value);
    }
    if let Some(inner) = &look.inner {
        put(&mut user, "b", &Bson::Document(doc! { "z": 1, "c": inner.clone() }));
        put(&mut user, "b", &Bson::Document(doc! { "c": { "d": "x" } }));
    }
    if *mapping == Mapping::Plain {
        return user;
    }
    let mut whole = RawDocumentBuf::new();
    let collection = COLLECTIONS[look.collection];
    whole.append(cstr!("_id"), predicate::Nested::storage_id(TENANT, collection, &id).as_str());
    whole.append(cstr!("tenant_id"), TENANT);
    whole.append(cstr!("fullpath"), format!("{collection}/{id}").as_str());
    whole.append(cstr!("collection"), collection);
    whole.append(cstr!("data"), user);
    whole.append(cstr!("version"), 1_i64);
    whole
}

fn key_of(mapping: &Mapping, look: &Look) -> Vec<u8> {
    let id = look.id.to_string();
    match mapping {
        Mapping::Plain => stored_string_id(&id),
        Mapping::Nested(_) => {
            stored_string_id(&predicate::Nested::storage_id(TENANT, COLLECTIONS[look.collection], &id))
        }
    }
}

struct Model {
    mapping: Arc<Mapping>,
    index: Index,
    subscriptions: BTreeMap<u32, (usize, Arc<Predicate>)>,
    compiled: BTreeMap<(Option<usize>, usize), Arc<Predicate>>,
}

const KINDS: [ChangeType; 3] = [ChangeType::Insert, ChangeType::Update, ChangeType::Delete];

/// An event with the bytes that it is of.
struct Owned {
    kind: ChangeType,
    key: Vec<u8>,
    before: Option<(usize, RawDocumentBuf)>,
    after: Option<(usize, RawDocumentBuf)>,
}

fn image(owned: &Option<(usize, RawDocumentBuf)>) -> Option<Image<'_>> {
    let (collection, document) = owned.as_ref()?;
    let collection = COLLECTIONS[*collection];
    Some(Image { place: PlaceHash::of(TENANT, collection), tenant: TENANT, collection, document })
}

impl Owned {
    fn event(&self) -> Event<'_> {
        let (before, after) = (image(&self.before), image(&self.after));
        let main = if before.is_some() && self.kind == ChangeType::Delete { Main::Before } else { Main::After };
        Event {
            change_type: self.kind,
            key: &self.key,
            looks_before: before.is_some() && self.kind != ChangeType::Insert,
            looks_after: after.is_some() && !(self.kind == ChangeType::Delete && before.is_some()),
            before,
            after,
            main,
        }
    }
}

impl Model {
    fn new(mapping: Mapping) -> Self {
        let mapping = Arc::new(mapping);
        Self {
            index: Index::new(mapping.clone(), 7),
            mapping,
            subscriptions: BTreeMap::new(),
            compiled: BTreeMap::new(),
        }
    }

    fn compiled(&mut self, filters: Option<usize>, expr: usize) -> Arc<Predicate> {
        let mapping = &self.mapping;
        let known = self.compiled.entry((filters, expr)).or_insert_with(|| {
            let source = Source { filters: filters.map_or("", |at| FILTERS[at]), expr: EXPRESSIONS[expr] };
            Arc::new(predicate::compile_on_big_stack(source, mapping).unwrap())
        });
        known.clone()
    }

    fn run(&mut self, steps: &[Step]) {
        let mut waiting: Vec<Owned> = Vec::new();
        for step in steps {
            match step {
                Step::Event { kind, before, after } => {
                    let Some(home) = after.as_ref().or(before.as_ref()) else { continue };
                    let home = home.clone();
                    let owned = |look: &Option<Look>| {
                        // An event is of one document, and a nested layout's document ids name their place.
                        let mut look = look.clone()?;
                        look.id = home.id;
                        if *self.mapping != Mapping::Plain {
                            look.collection = home.collection;
                        }
                        Some((look.collection, document(&self.mapping, &look)))
                    };
                    waiting.push(Owned {
                        kind: KINDS[*kind],
                        key: key_of(&self.mapping, &home),
                        before: owned(before),
                        after: owned(after),
                    });
                }
                Step::Add { collection, filters, expr } => {
                    self.check(&std::mem::take(&mut waiting));
                    let predicate = self.compiled(*filters, *expr);
                    let slot = (0..).find(|slot| !self.subscriptions.contains_key(slot)).unwrap();
                    self.index.insert(slot, TENANT, COLLECTIONS[*collection], &predicate);
                    self.subscriptions.insert(slot, (*collection, predicate));
                }
                Step::Remove(which) => {
                    self.check(&std::mem::take(&mut waiting));
                    let slots: Vec<u32> = self.subscriptions.keys().copied().collect();
                    if let Some(slot) = slots.get(which % slots.len().max(1)) {
                        self.index.remove(*slot);
                        self.subscriptions.remove(slot);
                    }
                }
            }
        }
        self.check(&waiting);
        for slot in std::mem::take(&mut self.subscriptions).keys() {
            self.index.remove(*slot);
        }
        self.index.check_empty();
    }

    fn check(&mut self, events: &[Owned]) {
        let events: Vec<Event<'_>> = events.iter().map(Owned::event).collect();
        let rules = Rules { evaluation_units_max: u64::MAX, event_units_max: u64::MAX, can_verify: &|_| false };
        let mut found = Vec::new();
        self.index.matches(&events, &rules, &mut |at, matches, _| found.push((at, matches.to_vec())));
        let expected: Vec<_> = events.iter().map(|event| self.expected(event)).enumerate().collect();
        assert_eq!(found, expected, "{events:?}");
    }

    fn expected(&self, event: &Event<'_>) -> Vec<Match> {
        let verdict = |predicate: &Predicate, collection: &str, image: &Option<Image<'_>>, looks: bool| {
            let Some(image) = image.filter(|image| looks && image.collection == collection) else {
                return Verdict::Fails;
            };
            let before = event.before.filter(|before| before.collection == collection);
            let context = Context {
                tenant: TENANT,
                collection,
                change_type: event.change_type,
                before: before.map(|before| before.document),
            };
            match predicate.evaluate(image.document, &context, &mut Budget { units: u64::MAX }) {
                Outcome::True => Verdict::Holds,
                _ => Verdict::Fails,
            }
        };
        let mut matches = Vec::new();
        for (&slot, (collection, predicate)) in &self.subscriptions {
            let collection = COLLECTIONS[*collection];
            let about_change = predicate.reads_change();
            let looks = |main: Main, looks: bool| looks && (!about_change || event.main == main);
            let before = verdict(predicate, collection, &event.before, looks(Main::Before, event.looks_before));
            let after = verdict(predicate, collection, &event.after, looks(Main::After, event.looks_after));
            if before != Verdict::Fails || after != Verdict::Fails {
                matches.push(Match { slot, before, after, about_change });
            }
        }
        matches
    }
}

/// `INDEX_CASES` runs more of them.
fn is_brute_force(mapping: &Mapping, cases: u32) {
    let cases = std::env::var("INDEX_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(cases);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in prop::collection::vec(step(), 1..120))| {
        Model::new(mapping.clone()).run(&steps);
    });
}

#[test]
fn finds_what_each_predicate_finds_under_plain() {
    is_brute_force(&Mapping::Plain, 600);
}

#[test]
fn finds_what_each_predicate_finds_under_syntrix() {
    is_brute_force(&Mapping::syntrix(), 600);
}

/// Stored ids of another type than a string.
#[test]
fn a_document_is_watched_by_a_number() {
    let mut index = Index::new(Arc::new(Mapping::Plain), 1);
    let source = Source { filters: r#"[{"field":"_id","op":"==","value":7}]"#, expr: "" };
    let predicate = Arc::new(predicate::compile_on_big_stack(source, &Mapping::Plain).unwrap());
    index.insert(0, "t", "c", &predicate);
    let document = RawDocumentBuf::try_from(&doc! { "_id": 7_i64 }).unwrap();
    let key = stored_id(bson::RawBsonRef::Int64(7));
    let image = Image { place: PlaceHash::of("t", "c"), tenant: "t", collection: "c", document: &document };
    let event = Event {
        change_type: ChangeType::Insert,
        key: &key,
        before: None,
        after: Some(image),
        looks_before: false,
        looks_after: true,
        main: Main::After,
    };
    let rules = Rules { evaluation_units_max: u64::MAX, event_units_max: u64::MAX, can_verify: &|_| false };
    let mut slots = Vec::new();
    index.matches(&[event], &rules, &mut |_, matches, _| slots.extend(matches.iter().map(|it| it.slot)));
    assert_eq!(slots, [0]);
    let _: &RawDocument = &document;
    let _ = Document::new();
}
