//! A predicate taken apart for an index: its parts, all of which must hold, and the ways to find it by what a matching document
//! must have.
//!
//! Invariants:
//! - A document that the predicate holds for meets every [`Way`] of it: [`Need::One`] of its anchors, one of [`Need::Any`], all of
//!   [`Need::All`]. An empty [`Need::Any`] is met by no document: the predicate holds for none.
//! - An anchor is met by a document that has, at its path, what it says; whether the predicate's parts hold is another question, which
//!   [`Way::proves`] answers for those that an anchor that is met *surely* decides.
//! - All that is found at a path is what [`Path::get`] and [`crate::field`] find there, elements of arrays up to the first that is
//!   malformed. So texts are UTF-8 before they count as found.

use bson::RawBsonRef;
use smallvec::{SmallVec, smallvec};

use crate::number::{decimal_key, is_nan};
use crate::path::Path;
use crate::value::Value;

/// One way to find a predicate.
#[derive(Clone, Debug)]
pub struct Way {
    pub need: Need,
    /// Parts that hold for certain once any one anchor of this way is surely met (see [`AnchorTest`]), by number.
    pub proves: SmallVec<[u16; 2]>,
}

/// What a document must have.
#[derive(Clone, Debug)]
pub enum Need {
    One(Anchor),
    /// At least one of these. None of them: nothing that a document could have will do.
    Any(Vec<Need>),
    /// Each of these, so that an index may look for any one.
    All(Vec<Need>),
}

/// Something to look up.
#[derive(Clone, Debug)]
pub struct Anchor {
    pub path: Path,
    pub test: AnchorTest,
}

/// What is at the path. The keys of a range are [`order_key`]s, which many values may share: a range is surely met by a key strictly
/// between its bounds. By one that is equal to a bound it is met as the bound says if the value [has it alone](has_key_alone), else perhaps.
/// The other tests are surely met.
#[derive(Clone, Debug)]
pub enum AnchorTest {
    /// A value equal to this one.
    Equal(Value),
    /// An array with an element equal to this one, before any that is malformed.
    Element(Value),
    /// A document with a field of this name, whose value is well-formed.
    Key(Box<str>),
    /// A value of this order between the bounds, or on one of them; at least one bound is there, and the lower one is not above the
    /// upper one.
    Range { order: Order, lower: Option<Bound>, upper: Option<Bound> },
    /// A string that begins with this, which is not empty.
    Prefix(Box<str>),
}

/// An end of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    pub key: u64,
    pub on: OnBound,
}

/// Where a value is that has the key of a bound, and has it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBound {
    In,
    Out,
    /// It takes an evaluation to tell.
    Unsure,
}

impl Bound {
    pub(crate) fn unsure(key: u64) -> Bound {
        Bound { key, on: OnBound::Unsure }
    }

    /// Of a comparison with a value of this key; `is_exact` if that has its key alone.
    pub(crate) fn of(key: u64, is_inclusive: bool, is_exact: bool) -> Bound {
        let on = match (is_exact, is_inclusive) {
            (false, _) => OnBound::Unsure,
            (true, true) => OnBound::In,
            (true, false) => OnBound::Out,
        };
        Bound { key, on }
    }

    /// Both of two lower ends, or of two upper ones.
    fn both(one: Bound, other: Bound, is_lower: bool) -> Bound {
        if one.key == other.key {
            let on = match (one.on, other.on) {
                (OnBound::Out, _) | (_, OnBound::Out) => OnBound::Out,
                (OnBound::In, OnBound::In) => OnBound::In,
                _ => OnBound::Unsure,
            };
            return Bound { key: one.key, on };
        }
        if (one.key > other.key) == is_lower { one } else { other }
    }
}

/// Types whose values compare with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Order {
    Number,
    String,
    Bool,
    Date,
    ObjectId,
    Timestamp,
    Binary,
}

/// A number that keeps the order of values: of two that [`crate::compare`] as less, the first has a key that is no greater. So of two
/// values of one order, the one with the greater key is the greater one. None exactly for what has no order: other types, and NaN.
#[inline(always)]
pub fn order_key(raw: RawBsonRef<'_>) -> Option<(Order, u64)> {
    Some(match raw {
        RawBsonRef::Int32(value) => (Order::Number, int_order_key(value.into())),
        RawBsonRef::Int64(value) => (Order::Number, int_order_key(value)),
        RawBsonRef::Double(value) => (Order::Number, double_key(value)?),
        RawBsonRef::DateTime(value) => (Order::Date, date_key(value.timestamp_millis())),
        RawBsonRef::String(text) => (Order::String, leading_bytes(text.as_bytes())),
        RawBsonRef::Boolean(value) => (Order::Bool, value.into()),
        RawBsonRef::ObjectId(value) => (Order::ObjectId, leading_bytes(&value.bytes())),
        RawBsonRef::Timestamp(value) => (Order::Timestamp, u64::from(value.time) << 32 | u64::from(value.increment)),
        RawBsonRef::Binary(value) => {
            // Length, subtype, and as many bytes as there is room for. A length beyond 32 bits has no BSON.
            let length = u32::try_from(value.bytes.len()).unwrap_or(u32::MAX);
            let head = u64::from(length) << 32 | u64::from(u8::from(value.subtype)) << 24;
            (Order::Binary, head | leading_bytes(value.bytes) >> 40)
        }
        RawBsonRef::Decimal128(value) => (Order::Number, decimal_key(value)?),
        _ => return None,
    })
}

/// Whether all values of this [`order_key`], of those that have it alone, are equal to the one of this BSON type. So are doubles, and integers
/// that a double holds; dates, timestamps and truth values.
pub fn has_key_alone(kind: u8, key: u64) -> bool {
    // 2^53: from here on two integers may share a double.
    const SHARED: f64 = 9_007_199_254_740_992.0;
    match kind {
        0x12 => (key_of_bits((-SHARED).to_bits()) + 1..key_of_bits(SHARED.to_bits())).contains(&key),
        0x01 | 0x08 | 0x09 | 0x10 | 0x11 => true,
        _ => false,
    }
}

/// The [`order_key`] of an integer: that of the double next to it.
#[inline(always)]
pub fn int_order_key(value: i64) -> u64 {
    key_of_bits((value as f64).to_bits())
}

#[inline(always)]
const fn key_of_bits(bits: u64) -> u64 {
    bits ^ ((bits >> 63).wrapping_neg() | 1 << 63)
}

/// None for NaN.
#[inline]
pub(crate) fn double_key(value: f64) -> Option<u64> {
    // Plus zero makes one zero of the two.
    (!value.is_nan()).then_some(key_of_bits((value + 0.0).to_bits()))
}

#[inline]
pub(crate) fn date_key(millis: i64) -> u64 {
    millis as u64 ^ 1 << 63
}

/// The first eight bytes, as if zeros followed the last one.
#[inline]
pub(crate) fn leading_bytes(bytes: &[u8]) -> u64 {
    match bytes.first_chunk::<8>() {
        Some(first) => u64::from_be_bytes(*first),
        None => {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            u64::from_be_bytes(padded)
        }
    }
}

/// What a condition asks of a document that it holds for.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub(crate) asks: Asks,
    /// The condition holds once any one anchor is surely met.
    pub(crate) exact: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Asks {
    Need(Need),
    /// One of these ranges at one path, each of another order. Apart from other needs, because two such conditions on one path are
    /// narrower together than either is. No range: nothing will do.
    Ranges(Path, Ranges),
}

pub(crate) type Ranges = SmallVec<[Range; 2]>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) order: Order,
    pub(crate) lower: Option<Bound>,
    pub(crate) upper: Option<Bound>,
}

impl Offer {
    /// No document will do.
    pub(crate) fn never() -> Offer {
        Offer { asks: Asks::Need(Need::Any(Vec::new())), exact: true }
    }

    pub(crate) fn exactly(path: &Path, test: AnchorTest) -> Offer {
        if path.is_nowhere() {
            return Offer::never();
        }
        Offer { asks: Asks::Need(Need::One(Anchor { path: path.clone(), test })), exact: true }
    }

    pub(crate) fn ranges(path: &Path, ranges: Ranges) -> Offer {
        if path.is_nowhere() {
            return Offer::never();
        }
        Offer { asks: Asks::Ranges(path.clone(), ranges), exact: true }
    }

    pub(crate) fn need(self) -> Need {
        match self.asks {
            Asks::Need(need) => need,
            Asks::Ranges(path, ranges) => any(ranges.into_iter().map(|range| {
                let Range { order, lower, upper } = range;
                Need::One(Anchor { path: path.clone(), test: AnchorTest::Range { order, lower, upper } })
            })),
        }
    }

    /// What one of several conditions asks. None where one of them asks nothing.
    pub(crate) fn any(offers: impl IntoIterator<Item = Option<Offer>>) -> Option<Offer> {
        let offers = offers.into_iter().collect::<Option<Vec<Offer>>>()?;
        let exact = offers.iter().all(|offer| offer.exact);
        Some(Offer { asks: Asks::Need(any(offers.into_iter().map(Offer::need))), exact })
    }

    /// What all of several conditions ask. None where none of them asks anything.
    pub(crate) fn all(offers: impl IntoIterator<Item = Option<Offer>>) -> Option<Offer> {
        let offers: Vec<Option<Offer>> = offers.into_iter().collect();
        let conditions = offers.len();
        let mut ways = ways(offers);
        // One that decides all of them needs no others beside it.
        if let Some(index) = ways.iter().position(|way| way.proves.len() == conditions) {
            return Some(Offer { asks: Asks::Need(ways.swap_remove(index).need), exact: true });
        }
        if let Some(index) = ways.iter().position(|way| way.need.is_never()) {
            return Some(Offer { asks: Asks::Need(ways.swap_remove(index).need), exact: true });
        }
        let mut needs: Vec<Need> = ways.into_iter().map(|way| way.need).collect();
        let need = if needs.len() > 1 { Need::All(needs) } else { needs.pop()? };
        Some(Offer { asks: Asks::Need(need), exact: false })
    }
}

impl Need {
    /// Whether no document meets it.
    pub fn is_never(&self) -> bool {
        match self {
            Need::One(_) => false,
            Need::Any(needs) => needs.iter().all(Need::is_never),
            Need::All(needs) => needs.iter().any(Need::is_never),
        }
    }
}

/// One of these, with those that nothing meets left out.
fn any(needs: impl IntoIterator<Item = Need>) -> Need {
    let mut flat = Vec::new();
    for need in needs {
        match need {
            Need::Any(inner) => flat.extend(inner),
            other => flat.push(other),
        }
    }
    if flat.len() == 1 { flat.remove(0) } else { Need::Any(flat) }
}

/// The ways that conditions offer, by number, all of which must hold.
pub(crate) fn ways(offers: impl IntoIterator<Item = Option<Offer>>) -> Vec<Way> {
    let mut ways: Vec<Way> = Vec::new();
    let mut ranges: Vec<(Path, Ranges, Way)> = Vec::new();
    for (number, offer) in offers.into_iter().enumerate() {
        let (Some(offer), Ok(number)) = (offer, u16::try_from(number)) else { continue };
        let proves: SmallVec<[u16; 2]> = if offer.exact { smallvec![number] } else { SmallVec::new() };
        match offer.asks {
            Asks::Need(need) => ways.push(Way { need, proves }),
            Asks::Ranges(path, narrower) => match ranges.iter_mut().find(|(known, ..)| *known == path) {
                Some((_, known, way)) => {
                    *known = intersection(known, &narrower);
                    way.proves.extend(proves);
                }
                None => ranges.push((path, narrower, Way { need: Need::Any(Vec::new()), proves })),
            },
        }
    }
    for (path, ranges, way) in ranges {
        ways.push(Way { need: Offer::ranges(&path, ranges).need(), proves: way.proves });
    }
    ways
}

fn intersection(left: &Ranges, right: &Ranges) -> Ranges {
    let mut both = Ranges::new();
    for one in left {
        let Some(other) = right.iter().find(|other| other.order == one.order) else { continue };
        let both_of = |one: Option<Bound>, other: Option<Bound>, is_lower| match (one, other) {
            (Some(one), Some(other)) => Some(Bound::both(one, other, is_lower)),
            (one, other) => one.or(other),
        };
        let (lower, upper) = (both_of(one.lower, other.lower, true), both_of(one.upper, other.upper, false));
        if lower.zip(upper).is_none_or(|(lower, upper)| lower.key <= upper.key) {
            both.push(Range { order: one.order, lower, upper });
        }
    }
    both
}

/// What equality with this value asks, under the rules of filters. None where the value is no key.
pub(crate) fn equality(path: &Path, raw: RawBsonRef<'_>, test: impl FnOnce(Value) -> AnchorTest) -> Option<Offer> {
    match Value::of(raw) {
        Some(value) => Some(Offer::exactly(path, test(value))),
        // A NaN equals nothing; what else has no value is composite.
        None => is_nan(raw).then(Offer::never),
    }
}

#[cfg(test)]
mod tests;
