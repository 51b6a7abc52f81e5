//! The index beside a list of subscriptions that are each evaluated by themselves, and a way from any bytes to a history of both: for
//! tests here, and for the fuzz targets.

use std::collections::BTreeMap;
use std::sync::Arc;

use bson::raw::cstr;
use bson::{Bson, RawDocumentBuf, doc};
use index::{Event, Image, Index, Main, Match, Rules, Verdict};
use predicate::{Budget, ChangeType, Context, Mapping, Outcome, Predicate, Source, stored_string_id};
use wire::PlaceHash;

/// What subscriptions ask for. `F` fields hold values of [`value`].
pub(crate) const FILTERS: &[&str] = &[
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

pub(crate) const EXPRESSIONS: &[&str] = &[
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

#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) collection: usize,
    pub(crate) id: i32,
    pub(crate) fields: Vec<(usize, Bson)>,
    pub(crate) inner: Option<Bson>,
}

pub(crate) const NAMES: [&str; 5] = ["a", "d", "other", "a name longer than eight", "version"];

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a few hundred of them at once, in tests")]
pub(crate) enum Step {
    Add { collection: usize, filters: Option<usize>, expr: usize },
    Remove(usize),
    Event { kind: usize, before: Option<Look>, after: Option<Look> },
}

pub(crate) const TENANT: &str = "t";
pub(crate) const COLLECTIONS: [&str; 2] = ["c", "rooms/1/messages"];

/// A document as the layout stores it, with fields of one name twice now and then.
pub(crate) fn document(mapping: &Mapping, look: &Look) -> RawDocumentBuf {
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

pub(crate) struct Model {
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
    let place = PlaceHash::of(TENANT, collection);
    Some(Image { place, tenant: TENANT.as_bytes(), collection: collection.as_bytes(), document })
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
    pub(crate) fn new(mapping: Mapping) -> Self {
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

    pub(crate) fn run(&mut self, steps: &[Step]) {
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
                        // With some that stay, and some that aren't there.
                        self.index.announce_removal(slot.saturating_sub(2)..slot + 2);
                        self.index.remove(*slot);
                        self.subscriptions.remove(slot);
                    }
                }
            }
        }
        self.check(&waiting);
        let subscriptions = std::mem::take(&mut self.subscriptions);
        self.index.announce_removal(subscriptions.keys().copied());
        subscriptions.keys().for_each(|slot| self.index.remove(*slot));
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
            let Some(image) = image.filter(|image| looks && image.collection == collection.as_bytes()) else {
                return Verdict::Fails;
            };
            let before = event.before.filter(|before| before.collection == collection.as_bytes());
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

impl Model {
    /// A subscription of each kind, in the first collection; but none to a single document, which is found by the key that comes with
    /// an event and not by what its bytes say.
    pub(crate) fn with_each(mapping: Mapping) -> Self {
        let mut model = Self::new(mapping);
        let filters = (0..FILTERS.len()).map(|at| (Some(at), 0));
        let expressions = (0..EXPRESSIONS.len()).map(|at| (None, at));
        for (slot, (filters, expr)) in (0..).zip(filters.chain(expressions)) {
            let predicate = model.compiled(filters, expr);
            if predicate.document_id().is_some() {
                continue;
            }
            model.index.insert(slot, TENANT, COLLECTIONS[0], &predicate);
            model.subscriptions.insert(slot, (0, predicate));
        }
        model
    }

    /// Asks about an update from one document to another, whatever their bytes are, as long as their lengths are right.
    pub(crate) fn check_bytes(&mut self, before: &[u8], after: &[u8]) {
        let framed = |bytes: &[u8]| {
            let mut framed = Vec::with_capacity(bytes.len() + 5);
            framed.extend_from_slice(&(bytes.len() as i32 + 5).to_le_bytes());
            framed.extend_from_slice(bytes);
            framed.push(0);
            RawDocumentBuf::from_bytes(framed).ok().map(|document| (0, document))
        };
        let (before, after) = (framed(before), framed(after));
        self.check(&[Owned { kind: ChangeType::Update, key: stored_string_id("1"), before, after }]);
    }
}

/// A history from any bytes: each step takes a few of them.
pub(crate) fn steps_of(bytes: &[u8]) -> Vec<Step> {
    let mut bytes = bytes.iter().copied();
    let mut steps = Vec::new();
    while let Some(what) = bytes.next() {
        let mut next = || usize::from(bytes.next().unwrap_or(0));
        steps.push(match what % 8 {
            0..3 => {
                let filters = next();
                Step::Add {
                    collection: usize::from(what / 8 % 4 == 0),
                    filters: (filters < 192).then_some(filters % FILTERS.len()),
                    expr: if what / 32 % 2 == 0 { 0 } else { next() % EXPRESSIONS.len() },
                }
            }
            3 => Step::Remove(next()),
            _ => {
                let kind = usize::from(what / 8) % 3;
                let before = look_of(what & 64 != 0, &mut next);
                let after = look_of(what & 128 != 0 || before.is_none(), &mut next);
                Step::Event { kind, before, after }
            }
        });
    }
    steps
}

fn look_of(is_there: bool, next: &mut impl FnMut() -> usize) -> Option<Look> {
    if !is_there {
        return None;
    }
    let head = next();
    let fields = (0..head % 4).map(|_| (next() % NAMES.len(), value_of(next()))).collect();
    let inner = (head & 64 != 0).then(|| value_of(next()));
    Some(Look { collection: head / 4 % 5 / 4, id: (head / 32 % 3 + 1) as i32, fields, inner })
}

fn value_of(which: usize) -> Bson {
    let scalar = |which: usize| match which % 20 {
        0 => Bson::Int32(0),
        1 => Bson::Int32(1),
        2 => Bson::Int64(2),
        3 => Bson::Double(1.0),
        4 => Bson::Double(1.5),
        5 => Bson::Double(f64::NAN),
        6 => Bson::Double(-0.0),
        7 => Bson::Int64(9_007_199_254_740_993),
        8 => Bson::Double(9_007_199_254_740_992.0),
        9 => Bson::String("x".into()),
        10 => Bson::String("a text".into()),
        11 => Bson::String("a text that is longer than fifteen bytes".into()),
        12 => Bson::Null,
        13 => Bson::Boolean(true),
        14 => Bson::DateTime(bson::DateTime::from_millis(1_577_836_800_000)),
        15 => Bson::ObjectId(bson::oid::ObjectId::from_bytes([
            0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 1, 0x23, 0x45, 0x67,
        ])),
        16 => Bson::Decimal128("1.5".parse().expect("a decimal")),
        17 => Bson::Decimal128("2".parse().expect("a decimal")),
        18 => Bson::MinKey,
        _ => Bson::Document(doc! { "b": 1, "x": 2 }),
    };
    match which {
        0..200 => scalar(which),
        _ => Bson::Array(vec![scalar(which), scalar(which / 3), Bson::String("x".into())]),
    }
}
