//! The user's fields of a document: few values each, so that subscriptions match now and then, in every type that MongoDB has
//! for them.

use bson::{Bson, DateTime, Decimal128, Document, doc, oid::ObjectId};
use rand::{Rng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

pub(super) const STATUSES: [&str; 5] = ["open", "new", "held", "done", "zurückgestellt"];
pub(super) const CITIES: [&str; 5] = ["Köln", "東京", "São Paulo", "Oslo", "Cairo"];
pub(super) const NAMES: [&str; 5] = ["Zoë", "李", "Ana", "Bo", "Ökul"];
pub(super) const TAGS: [&str; 6] = ["red", "green", "blue", "été", "雪", "gold"];
pub(super) const PREFIXES: [&str; 4] = ["alpha-", "beta-", "größe-", "雪-"];
const REFERENCES: u8 = 4;
/// Integers from here on are not all doubles.
const TWO_53: i64 = 1 << 53;
/// 2024-01-01T00:00:00Z.
const YEAR_START_MS: i64 = 1_704_067_200_000;
const DAY_MS: i64 = 86_400_000;

/// Fields that an update may set.
const FIELDS: [&str; 12] =
    ["status", "qty", "price", "big", "owner", "tags", "scores", "title", "due", "ref", "flag", "note"];

pub(super) fn pick<T: Copy>(random: &mut ChaCha8Rng, from: &[T]) -> T {
    *from.choose(random).expect("the lists to pick from are constants with members")
}

/// A document with all fields that it must have, and some of those it may.
pub(super) fn document(random: &mut ChaCha8Rng) -> Document {
    FIELDS.into_iter().filter_map(|name| Some((name.to_owned(), field(random, name)?))).collect()
}

/// One to three fields with new values.
pub(super) fn changes(random: &mut ChaCha8Rng) -> Document {
    let count = random.random_range(1..=3);
    let mut changes = Document::new();
    while changes.len() < count {
        let name = pick(random, &FIELDS);
        if let Some(value) = field(random, name) {
            changes.insert(name, value);
        }
    }
    changes
}

/// `None`: the document goes without the field.
fn field(random: &mut ChaCha8Rng, name: &str) -> Option<Bson> {
    Some(match name {
        "status" => pick(random, &STATUSES).into(),
        "qty" => quantity(random),
        "price" => price(random),
        "big" => big(random),
        "owner" => Bson::Document(doc! {
            "name": pick(random, &NAMES),
            "level": random.random_range(0..6_i32),
            "address": { "city": pick(random, &CITIES) },
        }),
        "tags" => Bson::Array(TAGS.iter().filter(|_| random.random_ratio(1, 3)).map(|tag| Bson::from(*tag)).collect()),
        "scores" => {
            let count = random.random_range(0..4);
            Bson::Array((0..count).map(|_| quantity(random)).collect())
        }
        "title" => format!("{}{}", pick(random, &PREFIXES), random.random_range(0..100_u32)).into(),
        "due" => date(random),
        "ref" => reference(random),
        "flag" => match random.random_range(0..3) {
            0 => return None,
            n => Bson::Boolean(n == 1),
        },
        "note" => match random.random_range(0..5) {
            0 => return None,
            1 => Bson::Null,
            2 => quantity(random),
            _ => pick(random, &NAMES).into(),
        },
        _ => unreachable!("FIELDS names no other field"),
    })
}

/// 0 to 20, integer or double, now and then a half. Safe to use in CEL.
pub(super) fn quantity(random: &mut ChaCha8Rng) -> Bson {
    let value = random.random_range(0..20_i32);
    match random.random_range(0..4) {
        0 => Bson::Int32(value),
        1 => Bson::Int64(i64::from(value)),
        2 => Bson::Double(f64::from(value)),
        _ => Bson::Double(f64::from(value) + 0.5),
    }
}

/// Quarters from 0 to 10, in all four numeric types.
pub(super) fn price(random: &mut ChaCha8Rng) -> Bson {
    let quarters = random.random_range(0..40_i32);
    let hundredths = quarters % 4 * 25;
    match random.random_range(0..4) {
        0 => Bson::Int32(quarters / 4),
        1 => Bson::Int64(i64::from(quarters / 4)),
        2 => Bson::Double(f64::from(quarters) / 4.0),
        _ => decimal(&format!("{}.{hundredths:02}", quarters / 4)),
    }
}

/// Around 2^53, where doubles can't tell neighbours apart.
pub(super) fn big(random: &mut ChaCha8Rng) -> Bson {
    match random.random_range(0..6) {
        0 => Bson::Double(TWO_53 as f64),
        1 => decimal(&format!("{}", TWO_53 + 1)),
        2 => decimal(&format!("{TWO_53}.5")),
        _ => Bson::Int64(TWO_53 + random.random_range(-1..=1)),
    }
}

fn decimal(text: &str) -> Bson {
    Bson::Decimal128(text.parse::<Decimal128>().expect("written from integers, with two decimals at most"))
}

/// A day of 2024.
pub(super) fn date(random: &mut ChaCha8Rng) -> Bson {
    Bson::DateTime(DateTime::from_millis(YEAR_START_MS + DAY_MS * random.random_range(0..366)))
}

pub(super) fn reference(random: &mut ChaCha8Rng) -> Bson {
    let mut bytes = [0x65; 12];
    bytes[11] = random.random_range(0..REFERENCES);
    Bson::ObjectId(ObjectId::from_bytes(bytes))
}
