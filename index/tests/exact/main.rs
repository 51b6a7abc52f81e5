//! The index against each predicate by itself, under histories and documents of every kind.

mod corpora;
mod hostile;
mod model;

use bson::Bson;
use bson::doc;
use predicate::Mapping;
use proptest::prelude::*;

use self::model::{EXPRESSIONS, FILTERS, Look, Model, NAMES, Step, document};

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

fn step() -> impl Strategy<Value = Step> {
    let filters = prop::option::weighted(0.7, 0..FILTERS.len());
    // Mostly no expression beside filters.
    let add = (0..4_usize, filters, prop_oneof![2 => Just(0), 1 => 0..EXPRESSIONS.len()])
        .prop_map(|(collection, filters, expr)| Step::Add { collection: collection / 3, filters, expr });
    let event = (0..3_usize, prop::option::of(look()), prop::option::weighted(0.8, look()))
        .prop_map(|(kind, before, after)| Step::Event { kind, before, after });
    prop_oneof![3 => add, 1 => any::<usize>().prop_map(Step::Remove), 4 => event]
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

#[test]
fn broken_documents_are_what_each_predicate_finds_in_them() {
    let looks = || prop::collection::vec(look(), 2);
    let edits = || prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 0..6);
    let config = ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() };
    for mapping in [Mapping::Plain, Mapping::syntrix()] {
        let model = std::cell::RefCell::new(Model::with_each(mapping.clone()));
        proptest!(config.clone(), |(looks in looks(), edits in edits())| {
            let broken = |look: &Look, edits: &[(prop::sample::Index, u8, bool)]| {
                let whole = document(&mapping, look);
                let mut bytes = whole.as_bytes()[4..whole.as_bytes().len() - 1].to_vec();
                for (at, byte, cut) in edits {
                    if bytes.is_empty() {
                        break;
                    }
                    let at = at.index(bytes.len());
                    if *cut {
                        bytes.truncate(at);
                    } else {
                        bytes[at] = if byte % 2 == 0 { *byte } else { byte % 24 };
                    }
                }
                bytes
            };
            let half = edits.len() / 2;
            model.borrow_mut().check_bytes(&broken(&looks[0], &edits[..half]), &broken(&looks[1], &edits[half..]));
        });
    }
}
