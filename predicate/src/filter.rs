//! Filters: a JSON list of `{field, op, value}`, all of which must hold.

use bson::{Bson, RawBson, RawBsonRef, RawDocument};
use serde_json::value::RawValue;
use smallvec::smallvec;

use crate::extjson;
use crate::lookup::items;
use crate::mapping::Mapping;
use crate::number::is_nan;
use crate::path::Path;
use crate::plan::{self, AnchorTest, Bound, Offer, Range, has_key_alone, order_key};
use crate::value::{CanonicalBytes, Held, Value, compare, equal, write_canonical};
use crate::{Budget, CompileError};

/// Bytes of the JSON text.
pub const FILTERS_BYTES_MAX: usize = 64 << 10;
/// Filters in the list.
pub const FILTERS_MAX: usize = 100;
/// Values in the list of `in`, `not-in` and `contains-any`.
pub const LIST_MAX: usize = 1_000;

const OPS: &str = "==, !=, >, >=, <, <=, in, not-in, contains, contains-any, starts-with \
                   (also eq, ne, gt, gte, lt, lte, array-contains)";

/// What a filter asks of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Eq,
    Ne,
    Gt,
    Ge,
    Lt,
    Le,
    In,
    NotIn,
    Contains,
    ContainsAny,
    StartsWith,
}

impl Op {
    fn parse(text: &str) -> Option<Op> {
        Some(match text {
            "==" | "eq" => Op::Eq,
            "!=" | "ne" => Op::Ne,
            ">" | "gt" => Op::Gt,
            ">=" | "gte" => Op::Ge,
            "<" | "lt" => Op::Lt,
            "<=" | "lte" => Op::Le,
            "in" => Op::In,
            "not-in" => Op::NotIn,
            "contains" | "array-contains" => Op::Contains,
            "contains-any" => Op::ContainsAny,
            "starts-with" => Op::StartsWith,
            _ => return None,
        })
    }
}

#[derive(Debug)]
pub(crate) struct Filter {
    pub(crate) path: Path,
    pub(crate) check: Check,
}

#[derive(Debug)]
pub(crate) enum Check {
    Equal(Held),
    NotEqual(Held),
    Order(Op, Held),
    In(Box<Members>),
    NotIn(Box<Members>),
    Contains(Held),
    ContainsAny(Box<Members>),
    StartsWith(Box<str>),
}

/// The list of `in` and its kin.
#[derive(Debug)]
pub(crate) struct Members {
    /// Those that have a value, sorted, so that long lists are searched rather than compared one by one.
    values: Box<[Value]>,
    /// The composite ones. Those that equal nothing are left out.
    rest: Box<[RawBson]>,
}

impl Members {
    pub(crate) fn new(members: Vec<RawBson>) -> Members {
        let mut values = Vec::new();
        let mut rest = Vec::new();
        for member in members {
            match Value::of(member.as_raw_bson_ref()) {
                Some(value) => values.push(value),
                None if is_nan(member.as_raw_bson_ref()) => {}
                None => rest.push(member),
            }
        }
        values.sort_unstable();
        values.dedup();
        Members { values: values.into(), rest: rest.into() }
    }

    /// Whether the value equals one of the list.
    pub(crate) fn contain(&self, value: RawBsonRef<'_>, budget: &mut Budget) -> bool {
        budget.spend(1 + self.rest.len() as u64);
        let mut bytes = CanonicalBytes::new();
        if write_canonical(value, &mut bytes) {
            return self.values.binary_search_by(|known| known.as_bytes().cmp(&bytes)).is_ok();
        }
        self.rest.iter().any(|member| equal(value, member.as_raw_bson_ref()))
    }

    /// What it asks of a document that something of it equals a member. None where a member is no key.
    fn offer(&self, path: &Path, test: impl Fn(Value) -> AnchorTest) -> Option<Offer> {
        if !self.rest.is_empty() {
            return None;
        }
        Offer::any(self.values.iter().map(|value| Some(Offer::exactly(path, test(value.clone())))))
    }
}

impl Filter {
    /// Whether the filter holds for the image. False where the budget runs out, which the caller sees by the budget.
    pub(crate) fn holds(&self, image: &RawDocument, budget: &mut Budget) -> bool {
        budget.spend(1 + self.path.cost());
        // Nothing holds for a missing field, `!=` and `not-in` included.
        self.path.get(image).is_some_and(|found| self.holds_for(found, budget))
    }

    /// The same for the value at the path.
    pub(crate) fn holds_for(&self, found: RawBsonRef<'_>, budget: &mut Budget) -> bool {
        match &self.check {
            Check::Equal(value) => equal(found, value.as_raw()),
            Check::NotEqual(value) => !equal(found, value.as_raw()),
            Check::Order(op, value) => compare(found, value.as_raw()).is_some_and(|order| match op {
                Op::Gt => order.is_gt(),
                Op::Ge => order.is_ge(),
                Op::Lt => order.is_lt(),
                _ => order.is_le(),
            }),
            Check::In(members) => members.contain(found, budget),
            Check::NotIn(members) => !members.contain(found, budget),
            Check::Contains(value) => any_element(found, budget, |element, _| equal(element, value.as_raw())),
            Check::ContainsAny(members) => {
                any_element(found, budget, |element, budget| members.contain(element, budget))
            }
            Check::StartsWith(prefix) => found.as_str().is_some_and(|text| text.starts_with(&**prefix)),
        }
    }

    /// What it asks of a document that it holds for.
    pub(crate) fn offer(&self) -> Option<Offer> {
        let path = &self.path;
        match &self.check {
            Check::Equal(value) => plan::equality(path, value.as_raw(), AnchorTest::Equal),
            Check::In(members) => members.offer(path, AnchorTest::Equal),
            Check::Contains(value) => plan::equality(path, value.as_raw(), AnchorTest::Element),
            Check::ContainsAny(members) => members.offer(path, AnchorTest::Element),
            Check::Order(op, value) => Some(match order_key(value.as_raw()) {
                Some((order, key)) => {
                    let above = matches!(op, Op::Gt | Op::Ge);
                    let is_exact = has_key_alone(value.as_raw().element_type() as u8, key);
                    let bound = Bound::of(key, matches!(op, Op::Ge | Op::Le), is_exact);
                    let range = Range { order, lower: above.then_some(bound), upper: (!above).then_some(bound) };
                    Offer::ranges(path, smallvec![range])
                }
                None => Offer::never(),
            }),
            Check::StartsWith(prefix) => {
                (!prefix.is_empty()).then(|| Offer::exactly(path, AnchorTest::Prefix(prefix.clone())))
            }
            Check::NotEqual(_) | Check::NotIn(_) => None,
        }
    }
}

fn any_element(
    found: RawBsonRef<'_>,
    budget: &mut Budget,
    mut holds: impl FnMut(RawBsonRef<'_>, &mut Budget) -> bool,
) -> bool {
    let Some(array) = found.as_array() else { return false };
    for element in items(array) {
        budget.spend(1);
        if budget.is_spent() {
            return false;
        }
        if holds(element, budget) {
            return true;
        }
    }
    false
}

/// Where in the list an error stands, for its message.
#[derive(Clone, Copy)]
struct At<'a> {
    index: usize,
    field: Option<&'a str>,
    op: Option<&'a str>,
}

impl At<'_> {
    fn error(self, what: impl Into<String>) -> CompileError {
        CompileError::InvalidFilter {
            index: Some(self.index),
            field: self.field.map(|field| shortened(field, NAME_SHOWN_MAX)),
            op: self.op.map(|op| shortened(op, NAME_SHOWN_MAX)),
            what: shortened(&what.into(), WHAT_SHOWN_MAX),
        }
    }
}

/// Characters of a field, an op or a message that an error shows: all three may repeat what somebody sent.
const NAME_SHOWN_MAX: usize = 80;
const WHAT_SHOWN_MAX: usize = 400;

fn shortened(text: &str, shown_max: usize) -> String {
    match text.char_indices().nth(shown_max) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts<'a> {
    #[serde(borrow)]
    field: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    op: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    value: &'a RawValue,
}

/// Parses and resolves the list. Empty text is the empty list.
pub(crate) fn parse(json: &str, mapping: &Mapping) -> Result<Box<[Filter]>, CompileError> {
    let whole = |what: String| {
        let what = shortened(&what, WHAT_SHOWN_MAX);
        CompileError::InvalidFilter { index: None, field: None, op: None, what }
    };
    if json.len() > FILTERS_BYTES_MAX {
        return Err(whole(format!("{} bytes of filters; at most {FILTERS_BYTES_MAX} are allowed", json.len())));
    }
    if json.trim().is_empty() {
        return Ok(Box::default());
    }
    let items: Vec<&RawValue> = serde_json::from_str(json)
        .map_err(|error| whole(format!("expected a JSON list of {{field, op, value}}: {error}")))?;
    if items.len() > FILTERS_MAX {
        return Err(whole(format!("{} filters; at most {FILTERS_MAX} are allowed", items.len())));
    }
    items.into_iter().enumerate().map(|(index, item)| parse_one(index, item.get(), mapping)).collect()
}

fn parse_one(index: usize, json: &str, mapping: &Mapping) -> Result<Filter, CompileError> {
    let parts: Parts<'_> = serde_json::from_str(json).map_err(|error| {
        At { index, field: None, op: None }
            .error(format!("expected {{\"field\": …, \"op\": …, \"value\": …}}: {error}"))
    })?;
    let at = At { index, field: Some(&parts.field), op: Some(&parts.op) };
    let op = Op::parse(&parts.op).ok_or_else(|| at.error(format!("unknown op; allowed are {OPS}")))?;
    let path = mapping.filter_path(&parts.field).map_err(|what| at.error(format!("bad field: {what}")))?;
    let value = extjson::parse(parts.value.get()).map_err(|what| at.error(format!("bad value: {what}")))?;
    let check = check_of(op, value).map_err(|what| at.error(what))?;
    Ok(Filter { path, check })
}

fn check_of(op: Op, value: Bson) -> Result<Check, String> {
    let raw = |value: Bson| RawBson::try_from(value).map_err(|error| format!("bad value: {error}"));
    let held = |value: Bson| raw(value).map(Held::from);
    let members = |value: Bson| match value {
        Bson::Array(items) if items.len() > LIST_MAX => {
            Err(format!("{} values in the list; at most {LIST_MAX} are allowed", items.len()))
        }
        Bson::Array(items) => Ok(Box::new(Members::new(items.into_iter().map(raw).collect::<Result<_, _>>()?))),
        _ => Err("expected a list of values".to_owned()),
    };
    Ok(match op {
        Op::Eq => Check::Equal(held(value)?),
        Op::Ne => Check::NotEqual(held(value)?),
        Op::Gt | Op::Ge | Op::Lt | Op::Le => Check::Order(op, held(value)?),
        Op::In => Check::In(members(value)?),
        Op::NotIn => Check::NotIn(members(value)?),
        Op::Contains => Check::Contains(held(value)?),
        Op::ContainsAny => Check::ContainsAny(members(value)?),
        Op::StartsWith => match value {
            Bson::String(prefix) => Check::StartsWith(prefix.into()),
            _ => return Err("expected a string".into()),
        },
    })
}

#[cfg(test)]
mod tests;
