//! Workloads for comparing matching engines: subscriptions and documents in large numbers, each made from the seed and its own
//! number, and what must match by brute force.
//!
//! | workload | subscriptions | documents |
//! |---|---|---|
//! | [`Workload::Mixed`] | 100 in each collection: 60 % one equality, 20 % equality and one-sided range, 10 % range, 5 % `in` of five, 5 % two equalities and a prefix | values by Zipf's law (s = 1) over 1,000 |
//! | [`Workload::Cel`] | the same, written in CEL | the same |
//! | [`Workload::Pairs`] | the same | two images, in which 2 of the 10 fields differ |
//! | [`Workload::Miss`] | the same | in collections that nobody watches |
//! | [`Workload::MixedOne`] | the same mix in one collection | values alike over as many as there are subscriptions |
//! | [`Workload::Range`] | one collection, half with one end and half with two | integers below 2^40 |
//! | [`Workload::HotValue`] | one collection, all on one value of one field | one in 64 has the value |
//!
//! Documents are laid out as `plain`: ten fields, five texts of 12 bytes and five integers, no more. The document's id comes beside it,
//! as it does in a change event.
//!
//! Invariants:
//! - Nothing generated depends on how much was generated before it.
//! - [`expected`] compares decoded values in plain Rust, and [`confirm`] holds its answers against the oracle's.

mod brute;
mod draw;
mod shape;
#[cfg(test)]
mod tests;

use std::{ops::RangeInclusive, sync::Arc};

use bson::{RawBsonRef, RawDocumentBuf, raw::CStr};

use self::draw::{Draw, Stream, Zipf};
pub use self::{
    brute::{Answer, confirm, expected, values},
    shape::{Bound, Condition, Datum, FIELDS, Field, PREFIX_BYTES, Shape, Test, ends, list, quoted},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Workload {
    Mixed,
    MixedOne,
    Cel,
    Range,
    HotValue,
    Miss,
    Pairs,
}

impl Workload {
    pub const ALL: [Workload; 7] = [
        Workload::Mixed,
        Workload::MixedOne,
        Workload::Cel,
        Workload::Range,
        Workload::HotValue,
        Workload::Miss,
        Workload::Pairs,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Workload::Mixed => "mixed",
            Workload::MixedOne => "mixed-one",
            Workload::Cel => "cel",
            Workload::Range => "range",
            Workload::HotValue => "hot-value",
            Workload::Miss => "miss",
            Workload::Pairs => "pairs",
        }
    }

    pub fn is_one_collection(self) -> bool {
        matches!(self, Workload::MixedOne | Workload::Range | Workload::HotValue)
    }
}

/// Subscriptions of a collection, where there are many collections.
const PER_COLLECTION: usize = 100;
/// Collections of a tenant.
const PER_TENANT: usize = 100;
/// Values that documents of many collections take.
const ZIPF_VALUES: u64 = 1_000;
/// The longest range there, and how far from the end a range with one end may begin.
const ZIPF_RANGE_MAX: u64 = 64;
/// The longest range in one collection: what 10 % of the subscriptions need for two of an event's three matches.
const UNIFORM_RANGE_MAX: u64 = 40;
/// Integers of [`Workload::Range`] are below this.
const RANGE_VALUES: u64 = 1 << 40;
/// One event in this many has the value of [`Workload::HotValue`]: often enough that the 99th percentile is the time of such an event.
pub const HOT_STRIDE: usize = 64;
const HOT_FIELD: Field = Field(0);

/// A workload of a size.
#[derive(Clone, Debug)]
pub struct World {
    pub workload: Workload,
    pub subscriptions: usize,
    pub seed: u64,
    zipf: Arc<Zipf>,
}

/// A subscription as it is registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchSource {
    /// See [`World::place`].
    pub collection: usize,
    pub filters: String,
    pub expr: String,
}

impl World {
    /// # Panics
    /// Without subscriptions.
    pub fn new(workload: Workload, subscriptions: usize, seed: u64) -> Self {
        assert!(subscriptions > 0, "a workload needs at least one subscription");
        Self { workload, subscriptions, seed, zipf: Arc::new(Zipf::new(ZIPF_VALUES)) }
    }

    /// Matches of an event on average, where the workload is made for it: those of either image count once.
    pub fn matches_wanted(&self) -> Option<RangeInclusive<f64>> {
        match self.workload {
            Workload::Mixed | Workload::MixedOne | Workload::Cel | Workload::Range => Some(2.5..=3.5),
            // Two of ten fields are another's, and so are as many of the matches.
            Workload::Pairs => Some(2.5..=4.0),
            Workload::Miss => Some(0.0..=0.0),
            Workload::HotValue => None,
        }
    }

    /// Collections that have subscriptions.
    pub fn collections(&self) -> usize {
        if self.workload.is_one_collection() { 1 } else { self.subscriptions.div_ceil(PER_COLLECTION) }
    }

    /// Collections that events are in: from 0 those that are watched, then as many that are not.
    pub fn places(&self) -> usize {
        if self.workload == Workload::Miss { 2 * self.collections() } else { self.collections() }
    }

    /// Tenant and name of a collection.
    pub fn place(&self, collection: usize) -> (String, String) {
        let name = if collection < self.collections() { "orders" } else { "archive" };
        (format!("tenant-{}", collection % self.collections() / PER_TENANT), format!("{name}-{collection}"))
    }

    /// The collection of a subscription.
    pub fn collection_of(&self, subscription: usize) -> usize {
        if self.workload.is_one_collection() { 0 } else { subscription / PER_COLLECTION }
    }

    /// The subscriptions of a collection.
    pub fn subscriptions_of(&self, collection: usize) -> std::ops::Range<usize> {
        match (self.workload.is_one_collection(), collection < self.collections()) {
            (_, false) => 0..0,
            (true, true) => 0..self.subscriptions,
            (false, true) => {
                let first = collection * PER_COLLECTION;
                first..self.subscriptions.min(first + PER_COLLECTION)
            }
        }
    }

    /// How it is registered: as filters, or as CEL under [`Workload::Cel`].
    pub fn source(&self, subscription: usize) -> MatchSource {
        let shape = self.shape(subscription);
        let (filters, expr) = match self.workload {
            Workload::Cel => (String::new(), shape.to_cel()),
            _ => (shape.to_filters(), String::new()),
        };
        MatchSource { collection: self.collection_of(subscription), filters, expr }
    }

    /// What a subscription demands.
    pub fn shape(&self, subscription: usize) -> Shape {
        let mut draw = Draw::new(self.seed, Stream::Subscription, subscription);
        match self.workload {
            Workload::Range => self.range(subscription, &mut draw),
            Workload::HotValue => equality(HOT_FIELD, Datum::Text(text(0))).into(),
            _ => self.of_the_mix(subscription, &mut draw),
        }
    }

    fn of_the_mix(&self, subscription: usize, draw: &mut Draw) -> Shape {
        let [first, second, third] = distinct_fields(draw);
        // Kinds take turns within each hundred.
        match subscription % 100 * 7 % 100 {
            0..60 => equality(first, self.value(first, draw)).into(),
            60..80 => {
                let field = if second.is_text() { integer_beside(first, draw) } else { second };
                // About half of what is equal passes.
                let bound = Bound { at: self.number(draw), inclusive: draw.coin() };
                let (lower, upper) = if draw.coin() { (Some(bound), None) } else { (None, Some(bound)) };
                Shape(vec![equality(first, self.value(first, draw)), range(field, lower, upper)])
            }
            80..90 => {
                let field = Field(2 * draw.below(5) as u8 + 1);
                let (lower, upper) = self.range_of_the_mix(draw);
                range(field, lower, upper).into()
            }
            90..95 => {
                let mut values: Vec<Datum> = Vec::new();
                while values.len() < 5 {
                    let value = self.value(first, draw);
                    if !values.contains(&value) {
                        values.push(value);
                    }
                }
                Condition { field: first, test: Test::In(values) }.into()
            }
            _ => {
                let third = if third.is_text() { third } else { text_beside(first, second, draw) };
                let prefix: Box<str> = text(self.value_number(draw))[..PREFIX_BYTES].into();
                Shape(vec![
                    equality(first, self.value(first, draw)),
                    equality(second, self.value(second, draw)),
                    Condition { field: third, test: Test::Prefix(prefix) },
                ])
            }
        }
    }

    /// The ends of a range that stands alone.
    fn range_of_the_mix(&self, draw: &mut Draw) -> (Option<Bound>, Option<Bound>) {
        if self.workload.is_one_collection() {
            // With two ends: one end near that of all values would make few events match very many subscriptions.
            let length = 1 + draw.below(UNIFORM_RANGE_MAX);
            let first = draw.below(self.values().saturating_sub(length).max(1)) as i64;
            return inclusive(first, first + length as i64 - 1, draw);
        }
        let length = 1 + draw.below(ZIPF_RANGE_MAX);
        let bound = |at: u64, draw: &mut Draw| Some(Bound { at: at as i64, inclusive: draw.coin() });
        match draw.below(4) {
            0 => (bound(ZIPF_VALUES - length, draw), None),
            1 => (None, bound(length, draw)),
            _ => {
                let first = draw.below(ZIPF_VALUES - length) as i64;
                inclusive(first, first + length as i64 - 1, draw)
            }
        }
    }

    /// Under [`Workload::Range`]. Of those with two ends an event is in 1.5, and beyond the end of 1.5 of the others: the r-th of a
    /// field and side is exceeded by one event in 11 r².
    fn range(&self, subscription: usize, draw: &mut Draw) -> Shape {
        let number = subscription / 2;
        let field = Field(2 * (number % 5) as u8 + 1);
        if subscription.is_multiple_of(2) {
            let longest = (6 * RANGE_VALUES / self.subscriptions as u64).min(RANGE_VALUES / 2);
            let length = 1 + draw.below(longest);
            let first = draw.below(RANGE_VALUES - length) as i64;
            let (lower, upper) = inclusive(first, first + length as i64 - 1, draw);
            return range(field, lower, upper).into();
        }
        let rank = (number / 10 + 1) as u128;
        let from_end = (u128::from(RANGE_VALUES) / (11 * rank * rank)) as i64;
        let inclusive = draw.coin();
        if (number / 5).is_multiple_of(2) {
            range(field, Some(Bound { at: RANGE_VALUES as i64 - 1 - from_end, inclusive }), None).into()
        } else {
            range(field, None, Some(Bound { at: from_end, inclusive })).into()
        }
    }

    /// Values that a field takes.
    fn values(&self) -> u64 {
        if self.workload == Workload::MixedOne { self.subscriptions as u64 } else { ZIPF_VALUES }
    }

    /// A value, by its number.
    fn value_number(&self, draw: &mut Draw) -> u64 {
        if self.workload == Workload::MixedOne { draw.below(self.values()) } else { self.zipf.draw(draw) }
    }

    fn number(&self, draw: &mut Draw) -> i64 {
        match self.workload {
            Workload::Range => draw.below(RANGE_VALUES) as i64,
            Workload::MixedOne => self.value_number(draw) as i64,
            // So that the values which come most often are not neighbours.
            _ => ((self.value_number(draw) * 397 + 211) % ZIPF_VALUES) as i64,
        }
    }

    fn value(&self, field: Field, draw: &mut Draw) -> Datum {
        if field.is_text() { Datum::Text(text(self.value_number(draw))) } else { Datum::Number(self.number(draw)) }
    }

    /// The first `count` events.
    pub fn events(&self, count: usize) -> Pool {
        let mut pool = Pool::default();
        for event in 0..count {
            self.push_event(event, &mut pool);
        }
        pool
    }

    fn push_event(&self, event: usize, pool: &mut Pool) {
        let mut draw = Draw::new(self.seed, Stream::Event, event);
        let mut collection = draw.below(self.collections() as u64) as usize;
        if self.workload == Workload::Miss {
            collection += self.collections();
        }
        let mut values: Vec<Datum> = Field::all().map(|field| self.value(field, &mut draw)).collect();
        if self.workload == Workload::HotValue {
            let number = if event % HOT_STRIDE == HOT_STRIDE / 2 { 0 } else { 1 + draw.below(ZIPF_VALUES - 1) };
            values[usize::from(HOT_FIELD.0)] = Datum::Text(text(number));
        }
        let first = pool.bytes.len();
        if self.workload == Workload::Pairs {
            pool.bytes.extend_from_slice(document(&values).as_bytes());
            let mut later = Draw::new(self.seed, Stream::Later, event);
            let [one, other, _] = distinct_fields(&mut later);
            for field in [one, other] {
                let value = &mut values[usize::from(field.0)];
                let was = value.clone();
                while *value == was {
                    *value = self.value(field, &mut later);
                }
            }
        }
        let second = pool.bytes.len();
        pool.bytes.extend_from_slice(document(&values).as_bytes());
        let key = pool.bytes.len();
        // An `_id` of type int64, as a stored id: its type, then its bytes.
        pool.bytes.push(0x12);
        pool.bytes.extend_from_slice(&(event as i64).to_le_bytes());
        pool.events.push(Span { collection, first, second, key });
    }
}

impl From<Condition> for Shape {
    fn from(condition: Condition) -> Self {
        Shape(vec![condition])
    }
}

fn equality(field: Field, value: Datum) -> Condition {
    Condition { field, test: Test::Equal(value) }
}

fn range(field: Field, lower: Option<Bound>, upper: Option<Bound>) -> Condition {
    Condition { field, test: Test::Range { lower, upper } }
}

/// Both ends of the integers from `first` to `last`, written in one of the four ways.
fn inclusive(first: i64, last: i64, draw: &mut Draw) -> (Option<Bound>, Option<Bound>) {
    let lower =
        if draw.coin() { Bound { at: first, inclusive: true } } else { Bound { at: first - 1, inclusive: false } };
    let upper =
        if draw.coin() { Bound { at: last, inclusive: true } } else { Bound { at: last + 1, inclusive: false } };
    (Some(lower), Some(upper))
}

fn distinct_fields(draw: &mut Draw) -> [Field; 3] {
    let first = draw.below(10) as u8;
    let second = (first + 1 + draw.below(9) as u8) % 10;
    let third = (0..10).filter(|field| *field != first && *field != second).nth(draw.below(8) as usize);
    [Field(first), Field(second), Field(third.unwrap_or(first))]
}

fn integer_beside(other: Field, draw: &mut Draw) -> Field {
    let field = Field(2 * draw.below(5) as u8 + 1);
    if field == other { Field((field.0 + 2) % 10) } else { field }
}

fn text_beside(one: Field, other: Field, draw: &mut Draw) -> Field {
    let start = draw.below(5) as u8;
    let mut fields = (0..5).map(|i| Field((start + i) % 5 * 2));
    // Of five fields at most two are taken.
    fields.find(|field| *field != one && *field != other).unwrap_or(one)
}

/// The text with this number: one of 64 beginnings, and 12 bytes in all below ten million.
fn text(number: u64) -> Box<str> {
    const FIRST: [char; 8] = ['b', 'd', 'g', 'k', 'l', 'm', 'n', 'p'];
    const SECOND: [char; 8] = ['r', 's', 't', 'v', 'z', 'f', 'h', 'j'];
    let (first, second) = (FIRST[(number % 8) as usize], SECOND[(number / 8 % 8) as usize]);
    format!("{first}a{second}o-{number:07}").into()
}

fn document(values: &[Datum]) -> RawDocumentBuf {
    let mut document = RawDocumentBuf::new();
    for (field, value) in Field::all().zip(values) {
        let value = match value {
            Datum::Text(text) => RawBsonRef::String(text),
            // As a program would store it: small fields as int32, where the value has room.
            Datum::Number(number) => match i32::try_from(*number) {
                Ok(small) if matches!(field.name(), "stock" | "level") => RawBsonRef::Int32(small),
                _ => RawBsonRef::Int64(*number),
            },
        };
        document.append(name(field), value);
    }
    document
}

fn name(field: Field) -> &'static CStr {
    field.name().try_into().expect("no name of a field has a zero in it")
}

/// Events, one after the other in memory.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    bytes: Vec<u8>,
    events: Vec<Span>,
}

/// The image before is between `first` and `second`, empty where there is none; then come the image after and the key.
#[derive(Clone, Copy, Debug)]
struct Span {
    collection: usize,
    first: usize,
    second: usize,
    key: usize,
}

/// A change of one document.
#[derive(Clone, Copy, Debug)]
pub struct PoolEvent<'a> {
    /// See [`World::place`].
    pub collection: usize,
    /// `_id` as stored: one byte of BSON type, then the value.
    pub key: &'a [u8],
    pub before: Option<&'a [u8]>,
    pub after: &'a [u8],
}

/// Bytes of a key.
const KEY_BYTES: usize = 9;

impl Pool {
    pub fn len(&self) -> usize {
        self.events.len()
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub fn event(&self, event: usize) -> PoolEvent<'_> {
        let Span { collection, first, second, key } = self.events[event];
        PoolEvent {
            collection,
            key: &self.bytes[key..key + KEY_BYTES],
            before: (first < second).then(|| &self.bytes[first..second]),
            after: &self.bytes[second..key],
        }
    }

    /// Bytes of a document, on average.
    pub fn document_bytes(&self) -> f64 {
        let bytes: usize = self.events.iter().map(|event| event.key - event.second).sum();
        bytes as f64 / self.events.len().max(1) as f64
    }
}
