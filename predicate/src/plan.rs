//! A predicate taken apart for an index: its parts, all of which must hold, and the ways to find it by what a matching document
//! must have.
//!
//! Invariants:
//! - A document that the predicate holds for meets every [`Way`] of it: [`Need::One`] of its anchors, one of [`Need::Any`], all of
//!   [`Need::All`].
//! - An anchor is met by a document that has, at its path, what it says; whether the predicate's parts hold is another question, which
//!   [`Way::proves`] answers for those that an anchor that is met *surely* decides.

use bson::RawBsonRef;
use smallvec::SmallVec;

use crate::filter::{Check, Filter};
use crate::path::Path;
use crate::value::Value;

/// One way to find a predicate.
#[derive(Clone, Debug)]
pub struct Way {
    pub need: Need,
    /// Parts that hold for certain once an anchor of this way is surely met (see [`Anchor`]), by number.
    pub proves: SmallVec<[u16; 2]>,
}

/// What a document must have.
#[derive(Clone, Debug)]
pub enum Need {
    One(Anchor),
    /// At least one of these.
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
/// between its bounds, and perhaps by one that is equal to a bound. The other tests are surely met.
#[derive(Clone, Debug)]
pub enum AnchorTest {
    /// A value equal to this one.
    Equal(Value),
    /// An array with an element equal to this one.
    Element(Value),
    /// A value of this order between the bounds; at least one of them is there.
    Range { order: Order, lower: Option<u64>, upper: Option<u64> },
    /// A string that begins with this, which is not empty.
    Prefix(Box<str>),
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

/// A number that keeps the order of values: of two that compare as less, the first has a key that is no greater. None for what
/// has no order.
pub fn order_key(raw: RawBsonRef<'_>) -> Option<(Order, u64)> {
    let _ = raw;
    None
}

/// Ways of the filters alone.
pub(crate) fn ways_of_filters(filters: &[Filter]) -> Vec<Way> {
    let mut ways = Vec::new();
    for (part, filter) in filters.iter().enumerate() {
        let Ok(part) = u16::try_from(part) else { break };
        let test = match &filter.check {
            Check::Equal(value) => Value::of(value.as_raw_bson_ref()).map(AnchorTest::Equal),
            _ => None,
        };
        if let Some(test) = test {
            let need = Need::One(Anchor { path: filter.path.clone(), test });
            ways.push(Way { need, proves: SmallVec::from_slice(&[part]) });
        }
    }
    ways
}
